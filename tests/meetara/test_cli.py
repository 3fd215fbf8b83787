"""The command line's errors: exit codes, messages for people, JSON for programs."""

from __future__ import annotations

import json
import os
import socket

import pytest
from typer.testing import CliRunner

from bus.broker import free_port
from meetara import door
from meetara.cli import app
from meetara.home import hold
from meetara.screens import doctor, train
from protocol import Code, LabError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MEETARA_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def call():
    def invoke(*arguments: object):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


def error_of(outcome) -> dict:
    assert outcome.stdout.count("\n") == 1, outcome.stdout
    return json.loads(outcome.stdout)["error"]


@pytest.mark.parametrize(
    "command", [["jobs"], ["watch"], ["job", "x"], ["cancel", "x"], ["budget"], ["agents"], ["say", "hello"],
                ["route", "hello"], ["train", "--for", "sleeping better", "--data", "x.jsonl"],
                ["train", "--domain", "sleep", "--data", "x.jsonl"], ["budget", "set", "daily_usd", "-5"], ["budget", "unfreeze", "vast"],
                ["approve", "x"], ["approve", "budget"], ["refuse", "x"]],
)  # fmt: skip
def test_without_a_lab_every_command_says_so_and_exits_with_3(call, tmp_path, command):
    where = ["--home", tmp_path, "--port", free_port()]
    told = call(*command, *where)
    assert told.exit_code == 3
    assert "meetara up" in told.stderr and told.stdout == ""
    assert error_of(call(*command, *where, "--json"))["code"] == Code.UNREACHABLE


@pytest.mark.parametrize("arguments", [["train", "--data", "x"], ["nonsense"], ["jobs", "--port", "x"], ["job"]])
def test_wrong_usage_exits_with_2_and_is_json_when_asked(call, arguments):
    assert call(*arguments).exit_code == 2
    outcome = call(*arguments, "--json")
    assert outcome.exit_code == 2 and error_of(outcome)["code"] == Code.INVALID_PARAMS


def test_a_bad_parameter_names_the_flag(call):
    outcome = call("train", "--domain", "sleep", "--data", "x.jsonl", "--param", "lora_r")
    assert outcome.exit_code == 2
    assert "--param" in outcome.stderr and "lora_r" in outcome.stderr


def test_a_wrong_setting_names_its_variable(call, tmp_path, monkeypatch):
    monkeypatch.setenv("MEETARA_PORT", "many")
    outcome = call("jobs", "--home", tmp_path)
    assert outcome.exit_code == 2 and "MEETARA_PORT" in outcome.stderr


def test_parameters_take_the_type_that_they_look_like():
    pairs = ["lora_r=16", "learning_rate=1e-4", "packing=false", "quantisation=Q4_K_M", "note=a=b"]
    assert train.parameters(pairs) == {
        "lora_r": 16, "learning_rate": 1e-4, "packing": False, "quantisation": "Q4_K_M", "note": "a=b",
    }  # fmt: skip
    with pytest.raises(LabError, match="twice"):
        train.parameters(["a=1", "a=2"])


def test_up_on_a_taken_port_names_the_owner_and_the_flag(call, tmp_path):
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        outcome = call("up", "--home", tmp_path, "--port", owner.getsockname()[1], "--json")
    assert outcome.exit_code == 3
    error = error_of(outcome)
    assert f"pid {os.getpid()}" in error["message"] and "--port" in error["data"]["advice"]
    assert list((tmp_path / "run").iterdir()) == [], "no lock is left behind"


def test_two_ups_on_one_home_name_the_other(call, tmp_path):
    with hold(tmp_path):
        outcome = call("up", "--home", tmp_path, "--port", 0)
    assert outcome.exit_code == 3 and f"pid {os.getpid()}" in outcome.stderr


def test_up_without_mosquitto_names_the_command_that_installs_it(call, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    outcome = call("up", "--home", tmp_path, "--port", 0)
    assert outcome.exit_code == 2 and "install mosquitto" in outcome.stderr


def test_down_without_a_lab_says_so_and_is_fine(call, tmp_path):
    outcome = call("down", "--home", tmp_path)
    assert outcome.exit_code == 0 and "No lab runs" in outcome.stdout
    assert json.loads(call("down", "--home", tmp_path, "--json").stdout)["stopped"] is False


def test_every_error_code_has_an_exit_code_that_is_not_success():
    assert {door.EXITS.get(code, door.WRONG) for code in Code} <= {door.FAILED, door.WRONG, door.UNREACHABLE}
    assert door.EXITS[Code.GATE_MISSED] == door.FAILED and door.EXITS[Code.BUSY] == door.UNREACHABLE


def test_doctor_tells_what_is_wrong_and_how_to_mend_it(call, tmp_path, monkeypatch):
    fine = doctor.Finding("toolchain", True, "well")
    monkeypatch.setattr(doctor, "toolchain", lambda: fine)
    monkeypatch.setattr(doctor, "base", lambda _: fine)
    well = call("doctor", "--home", tmp_path, "--port", free_port(), "--json")
    checks = {check["name"]: check for check in json.loads(well.stdout)["checks"]}
    assert well.exit_code == 0, checks
    assert "not running" in checks["broker"]["value"] and "espeak-ng speaks" in checks["speech"]["value"]
    monkeypatch.setenv("MEETARA_MOSQUITTO", str(tmp_path / "none"))
    ill = call("doctor", "--home", tmp_path, "--port", free_port())
    assert ill.exit_code == 1 and "MEETARA_MOSQUITTO" in ill.stdout


def test_doctor_reads_the_factorys_report():
    bad = [{"name": "converter", "ok": False, "value": "missing", "advice": "Run make."}]
    finding = doctor._from_report(bad, False)
    assert not finding.ok and finding.advice == "Run make." and "converter: missing" in finding.value
