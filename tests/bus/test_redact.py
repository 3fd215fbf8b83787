"""What a log line may hold: a table of facts, cleaned sentences, exceptions without their texts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from bus.redact import FACTS, HIDDEN, clean, described, of_error, redact
from protocol import Code, LabError, TrainRequest

ROOT = Path(__file__).resolve().parents[2]
PERSONAL = "I cannot sleep since my divorce"


@pytest.mark.parametrize(
    "text",
    [
        "mqtts://zoe:hunter2@broker.example:8883 refused", "s3://key:hunter2@bucket/rows.jsonl", "password=hunter2", "Password: hunter2",
        "MEETARA_BROKER_PASSWORD='hunter2'", '{"token": "hunter2"}', "api_key=hunter2&x=1", "Authorization: Bearer hunter2hunter2",
        "bearer hunter2hunter2", "the worker has mtw1.hunter2hunter2", "AWS_SECRET_ACCESS_KEYs: hunter2", "the value 'hunter2' is wrong", 'the value "hunter2" is wrong',
        "input_value={'text': hunter2, 'x': 1}, input_type=dict", "secret : hunter2; next",
    ],
)  # fmt: skip
def test_secrets_are_taken_out_of_sentences(text: str) -> None:
    assert "hunter2" not in clean(text) and HIDDEN in clean(text)


def test_e_mail_addresses_are_taken_out() -> None:
    assert "zoe" not in clean("sent by zoe.smith+lab@mail.example.org today")


@pytest.mark.parametrize(
    "text",
    [
        "the day's budget doesn't hold it: $1.00 of $5.00", "no broker answers at 127.0.0.1:1883", "[Errno 28] No space left on device",
        "database is locked", "the tokenizer has 8192 tokens", "file:///data/sleep.jsonl", "mqtts://broker.example:8883",
    ],
)  # fmt: skip
def test_sentences_about_machines_stay_as_they_are(text: str) -> None:
    assert clean(text) == text


def test_facts_that_nobody_knows_and_ids_that_are_sentences_are_hidden() -> None:
    line = redact(None, "info", {
        "event": "routed", "job": "sleep-1", "message": PERSONAL, "topic": f"meetara/v1/lab/call/router/{PERSONAL}", "text": PERSONAL,
        "rows": 12, "ok": True, "params": {"text": PERSONAL}, "code": "BAD_DATA", "extra": [PERSONAL],
    })  # fmt: skip
    assert line == {
        "event": "routed", "job": "sleep-1", "message": HIDDEN, "topic": HIDDEN, "text": HIDDEN, "rows": 12, "ok": True,
        "params": HIDDEN, "code": "BAD_DATA", "extra": HIDDEN,
    }  # fmt: skip


def test_an_error_is_told_by_code_and_place_and_its_sentence_only_where_that_quotes_nobody() -> None:
    bad = LabError(Code.BAD_DATA, f"row 7: {PERSONAL}", file="/data/rows.jsonl", line=7, field=PERSONAL)
    assert of_error(bad) == {"code": "BAD_DATA", "file": "/data/rows.jsonl", "line": 7, "field": HIDDEN}
    full = LabError(Code.NO_SPACE, "3 MB are free.")
    assert of_error(full) == {"code": "NO_SPACE", "reason": "3 MB are free."}
    remote = LabError(Code.BAD_DATA, "x", file="s3://key:hunter2@bucket/rows.jsonl")
    assert "hunter2" not in str(of_error(remote))


def test_an_exception_is_told_by_types_and_places() -> None:
    try:
        try:
            TrainRequest.model_validate({"domain": [PERSONAL], "dataset": "x", PERSONAL: 1})
        except ValueError as error:
            raise KeyError(PERSONAL) from error
    except KeyError as error:
        told = described(error, error.__traceback__)
    assert told["type"] == "KeyError" and told["cause"]["type"] == "ValidationError"
    assert "test_redact.py" in told["frames"][0] and PERSONAL not in str(told)
    space = OSError(28, "No space left on device")
    assert described(space, None)["text"] == "[Errno 28] No space left on device"


def test_every_fact_that_the_program_logs_is_in_the_table_or_a_number() -> None:
    """A fact with an unknown name would be hidden, which its author should learn here and not in the log."""
    numbers = {
        "amount_micros", "attempt", "cap", "fence", "reserved", "rows", "seconds", "spent", "status", "steps", "threshold",
        "exc_info", "billed_micros", "cap_micros", "correction_micros", "own_micros",
    }  # fmt: skip
    found = 0
    for path in [path for folder in ("bus", "agents", "meetara") for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            logger = ast.unparse(node.func.value)
            if not (logger in ("log", "self.log") and node.func.attr in ("debug", "info", "warning", "error", "exception", "critical")):
                continue
            found += 1
            names = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
            assert names <= FACTS.keys() | numbers, f"{path}:{node.lineno}: {names - FACTS.keys() - numbers}"
    assert found > 20
