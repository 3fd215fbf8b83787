"""The AsyncAPI document and the topic reference: complete, consistent, valid, and no older than the tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiomqtt import Topic

from protocol import METHODS, asyncapi, reference
from protocol.access import ADDRESSES, CALLS, LOOKS_AT, ROLES, Login, rules
from protocol.examples import example
from protocol.meanings import MEANINGS
from protocol.topics import OPERATOR, TABLE, USER, Topics

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "asyncapi.yaml").read_text(encoding="utf-8"))
OPERATIONS = DOCUMENT["operations"]
MODELS = {model.__name__: model for model in asyncapi.PAYLOADS.values()} | {
    model.__name__: model for method in METHODS.values() for model in (method.params, method.result)
}


def found(reference: str) -> Any:
    """Return what a `$ref` points to."""
    place: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        place = place[part]
    return place


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [value["$ref"]] if "$ref" in value else [item for part in value.values() for item in references(part)]
    return [item for part in value for item in references(part)] if isinstance(value, list) else []


def test_the_written_documents_are_those_of_the_tables():
    assert reference.drifted(ROOT / "docs") == [], "run: python -m protocol.reference docs"


def test_a_drifted_file_is_named(tmp_path, capsys):
    assert reference.main([str(tmp_path)]) == 0 and reference.main([str(tmp_path), "--check"]) == 0
    (tmp_path / "topics.md").write_text("old")
    assert reference.main([str(tmp_path), "--check"]) == 1
    assert "topics.md has drifted; run: python -m protocol.reference" in capsys.readouterr().err


def test_it_is_asyncapi_3_with_what_that_requires():
    assert DOCUMENT["asyncapi"] == "3.0.0" and {"title", "version"} <= DOCUMENT["info"].keys()
    assert all({"host", "protocol"} <= server.keys() for server in DOCUMENT["servers"].values())
    for name, channel in DOCUMENT["channels"].items():
        assert set(re.findall(r"\{(\w+)\}", channel["address"])) == channel["parameters"].keys(), name
    for name, operation in OPERATIONS.items():
        assert operation["action"] in ("send", "receive"), name
    keys = [key for kind in DOCUMENT["components"].values() for key in kind]
    assert all(re.fullmatch(r"[\w.-]+", key) for key in keys)


def test_every_reference_resolves():
    listed = references(DOCUMENT)
    assert len(listed) > 500
    for item in listed:
        assert found(item) is not None


def test_operations_speak_of_messages_of_their_channel():
    for name, operation in OPERATIONS.items():
        for part in (operation, operation.get("reply")):
            if part is not None:
                channel = part["channel"]["$ref"]
                assert all(item["$ref"].startswith(f"{channel}/messages/") for item in part["messages"]), name


def test_every_call_has_its_reply_and_correlation():
    for name in METHODS:
        for operation in (key for key in OPERATIONS if key.endswith((f".calls.{name}", f".serves.{name}"))):
            [answer] = OPERATIONS[operation]["reply"]["messages"]
            assert answer["$ref"] == f"#/channels/reply/messages/{name}.reply"
        for message in (f"{name}.call", f"{name}.reply"):
            assert "correlationData" in DOCUMENT["components"]["messages"][message]["correlationId"]["location"]


@pytest.mark.parametrize("role", [USER, OPERATOR, *ROLES])
def test_the_operations_of_a_role_are_what_the_broker_lets_it_do(role):
    logins = [Login(f"{name}-1", name, f"{name}-1") for name in ROLES]
    login = next((item for item in logins if item.role == role), Login(role, role, role))
    allowed = rules(login, logins, Topics())
    channels = {
        action: {
            operation["channel"]["$ref"].removeprefix("#/channels/")
            for name, operation in OPERATIONS.items() if name.startswith(f"{role}.") and operation["action"] == action
        }
        for action in ("send", "receive")
    }  # fmt: skip
    levels = {"lab": "lab", "job": "j", "provider": "local", "client": "somebody"}
    for name, channel in DOCUMENT["channels"].items():
        if name.startswith(("direct.", "reply")):
            continue
        for action, kind in (("send", "publish"), ("receive", "receive")):
            seen = LOOKS_AT.get(role, {}).get("role", role) if action == "receive" else role
            whose = seen if seen in ROLES else "router"
            topic = channel["address"].format(**levels, role=whose, agent=f"{whose}-1")
            first = next((item for item in allowed if item.action == kind and Topic(topic).matches(item.topic)), None)
            assert (name in channels[action]) == (first is not None and first.allow), (role, action, topic)


def test_bindings_are_those_of_the_table():
    rows = {row.name: row for row in TABLE}
    for name, operation in OPERATIONS.items():
        channel = operation["channel"]["$ref"].removeprefix("#/channels/")
        row, binding = rows[channel.partition(".")[0]], operation["bindings"]["mqtt"]
        assert binding["qos"] == row.qos, name
        if operation["action"] == "send":
            assert binding["retain"] is row.retain and binding.get("messageExpiryInterval") == row.expiry, name


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_example_of_a_message_is_one_that_its_model_takes(name):
    assert MODELS[name].model_validate(example(MODELS[name]))


def test_every_example_in_the_document_is_valid():
    for name, message in DOCUMENT["components"]["messages"].items():
        method, _, side = name.rpartition(".")
        for item in message["examples"]:
            payload = item["payload"]
            if side == "call":
                METHODS[method].params.model_validate(payload.get("params", payload) if "jsonrpc" in payload else payload)
            elif side == "reply":
                METHODS[method].result.model_validate(payload["result"])
            else:
                asyncapi.PAYLOADS[name].model_validate(payload)


def test_every_topic_method_and_field_is_in_the_reference_with_its_meaning():
    text = (ROOT / "docs" / "topics.md").read_text(encoding="utf-8")
    for row in TABLE:
        assert f"### `{row.template}`\n" in text
    for name in METHODS:
        assert f"### {name}\n" in text
    for name, schema in asyncapi.schemas().items():
        bare = [field for field, part in schema.get("properties", {}).items() if not part.get("description")]
        assert not bare, f"{name}: describe {bare} with Field(description=…), or in protocol/meanings.py"


def test_no_meaning_is_left_of_a_field_that_is_gone():
    fields = {field for schema in asyncapi.schemas().values() for field in schema.get("properties", {})}
    assert {key.rpartition(".")[2] for key in MEANINGS} <= fields


def test_every_method_has_a_caller_beside_the_operator():
    called = {name for table in (CALLS, ADDRESSES) for role, names in table.items() if role != OPERATOR for name in names}
    assert called == set(METHODS), "a method that nobody may call, or a call of no method: see protocol/access.py"
