"""Dockerfile, docker-compose.yml and what belongs to them keep up with the code, without an engine."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

from agents.gguf_factory import toolchain
from tests.compose.cluster import HOME, ROLES, ROOT
from tests.compose.engine import BROKER_IMAGE, PYTHON_IMAGE

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def services() -> dict[str, Any]:
    """Return the services with the variables' defaults put in."""
    return yaml.safe_load(VARIABLE.sub(lambda found: found[2] or "", COMPOSE_TEXT))["services"]  # type: ignore[no-any-return]


def test_every_agent_is_a_service_with_a_home_of_its_own() -> None:
    agents = {path.parent.name for path in (ROOT / "agents").glob("*/__main__.py")}
    assert agents == set(ROLES)
    made = services()
    given = dict(volume.split(":/access/") for volume in made["init"]["volumes"] if ":/access/" in volume)
    ids = ",".join(f"{role}-1" for role in ROLES)
    assert f"--agents={ids}" in made["init"]["command"] and f"--agents={ids}" in made["door"]["command"]
    for role in agents:
        service = made[role]
        assert service["command"] == ["python", "-m", f"agents.{role}"]
        assert service["environment"]["MEETARA_BROKER_USER"] == f"{role}-1"
        homes = [volume for volume in service["volumes"] if volume.endswith(f":{HOME}")]
        assert homes == [f"{role}:{HOME}"] and given[role] == f"{role}-1"
        assert f"--owner={role}-1=10001" in made["init"]["command"]
        assert made["door"]["depends_on"][role] == {"condition": "service_healthy"}


@pytest.mark.parametrize("name", services())
def test_every_service_is_confined(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and service["init"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] and service["pids_limit"] and service["logging"]["options"]["max-size"]
    if name == "init":
        assert service["network_mode"] == "none" and service["restart"] == "no"
        return
    assert service["restart"] == "unless-stopped" and service["healthcheck"]["test"]
    assert "ports" not in service or service["ports"] == ["127.0.0.1:1883:1883"]
    assert "user" not in service or service["user"] == "1883:1883"


def test_settings_of_compose_are_those_of_its_example() -> None:
    passed_on = re.findall(r"^ +(MEETARA_\w+): *(?:#.*)?$", COMPOSE_TEXT, re.MULTILINE)
    used = {name for name, _ in VARIABLE.findall(COMPOSE_TEXT)} | set(passed_on)
    shown = dict(re.findall(r"^#(\w+)=(.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert used | {"COMPOSE_PROJECT_NAME"} == shown.keys()
    for name, default in VARIABLE.findall(COMPOSE_TEXT):
        if default and name not in ("MEETARA_LOG", "MEETARA_FACTORY_CPUS"):
            assert shown[name] == default, name


def test_the_image_holds_the_code_and_no_more() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    packages = {name.removesuffix("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages - {"starter"} <= let_in, "starter/ is for making the base, not for running the lab"
    assert let_in - packages == {
        "pyproject.toml", "constraints.txt", "docker/wheels", "models", "data/general.txt", "data/time_management.jsonl",
        "data/time_management_eval.jsonl",
    }  # fmt: skip
    assert all((ROOT / name).exists() for name in let_in)


def test_versions_in_the_dockerfile_are_those_of_the_project() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE, re.MULTILINE))
    assert arguments["LLAMA_CPP_PYTHON"] == toolchain.VERSION
    assert arguments["VERSION"] == PROJECT["project"]["version"]
    assert arguments["TORCH_INDEX"] == "", "no package index is named"
    assert arguments["PYTHON_IMAGE"] == PYTHON_IMAGE and services()["broker"]["image"] == BROKER_IMAGE
    for pin in re.findall(r"(\S+)==([\d.]+)", (ROOT / "docker/wheels/README.md").read_text(encoding="utf-8")):
        assert f"{pin[0].replace('-', '_')}=={pin[1]}" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_the_workers_image_is_the_labs_and_what_is_built_by_default_is_not_it() -> None:
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", DOCKERFILE, re.MULTILINE)
    assert ("lab", "worker") in stages and stages[-1] == ("lab", "")
    worker = DOCKERFILE.partition("FROM lab AS worker")[2].partition("FROM lab\n")[0]
    assert 'CMD ["meetara", "worker"]' in worker and "utility" in worker, "nvidia-smi comes with that capability"
    assert "TOKEN=" not in DOCKERFILE


def test_the_broker_can_write_down_its_workers() -> None:
    assert "broker:/mosquitto/config" in services()["broker"]["volumes"]
