"""What comes in at the edge: limits in order, the two forms of a body, where attributes come from."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.envelope import MAX_BYTES, MAX_DEPTH, MCPMessage, Reply, decode_call, depth, parse_json
from protocol.errors import Code, ErrorBody, LabError

PARAMS = {"domain": "sleep", "dataset": "/x.jsonl"}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
OBJECTS = st.dictionaries(TEXT.filter(lambda name: name != "_meta"), VALUES, max_size=5)


def refused(payload: bytes) -> LabError:
    with pytest.raises(LabError) as caught:
        parse_json(payload)
    return caught.value


def request(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": "r1", "method": "train.submit", "params": PARAMS, **members}).encode()


def call(payload: bytes | dict[str, Any], **properties: str) -> MCPMessage:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return decode_call("train.submit", body, list(properties.items()))


def call_refused(payload: bytes | dict[str, Any], **properties: str) -> LabError:
    with pytest.raises(LabError) as caught:
        call(payload, **properties)
    return caught.value


# limits, in order


def test_a_message_of_the_largest_size_passes_and_one_byte_more_does_not():
    filler = MAX_BYTES - len(b'{"a":""}')
    assert parse_json(b'{"a":"' + b"x" * filler + b'"}')["a"] == "x" * filler
    error = refused(b'{"a":"' + b"x" * (filler + 1) + b'"}')
    assert (error.code, error.data) == (Code.TOO_LARGE, {"bytes": MAX_BYTES + 1, "limit": MAX_BYTES})


def test_size_is_checked_before_the_encoding():
    assert refused(b"\xff" * (MAX_BYTES + 1)).code is Code.TOO_LARGE


def test_the_encoding_is_checked_before_the_depth_and_names_the_byte():
    error = refused(b"[" * 100 + b"\xff")
    assert error.code is Code.PARSE
    assert "not UTF-8" in error.message and "byte 100" in error.message


def test_the_depth_is_checked_before_the_form():
    assert "deeper than 32" in refused(b"[" * (MAX_DEPTH + 1)).message
    assert "not JSON" in refused(b"[" * MAX_DEPTH).message


def test_the_deepest_object_that_is_allowed_passes():
    nested = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert list(parse_json(nested)) == ["a"]
    assert refused(nested.replace(b"[]", b"[[]]")).code is Code.PARSE


@pytest.mark.parametrize("payload", [b"", b"{", b"{'a': 1}", b'{"a":1}x', b"\xef\xbb\xbf{}", b"domain=sleep"])
def test_what_is_not_json_is_refused_with_its_place_and_an_example(payload):
    error = refused(payload)
    assert error.code is Code.PARSE
    assert "line 1, column" in error.message and '"domain"' in error.advice


@pytest.mark.parametrize("payload", [b'{"a":' + b"1" * 5000 + b"}", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}'])
def test_numbers_that_cannot_be_carried_are_refused(payload):
    assert refused(payload).code is Code.PARSE


@pytest.mark.parametrize("escape", ["\\ud800", "\\uDFFF", "x\\udc00\\ud800"])
def test_half_a_character_is_refused_because_it_could_not_be_stored(escape):
    assert refused(f'{{"a": "{escape}"}}'.encode()).code is Code.PARSE
    assert parse_json(b'{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


@pytest.mark.parametrize(("payload", "kind"), [(b"[]", "list"), (b'"x"', "str"), (b"1", "int"), (b"null", "NoneType")])
def test_json_that_is_no_object_is_refused_by_name(payload, kind):
    error = refused(payload)
    assert error.code is Code.INVALID_REQUEST
    assert kind in error.message


def nesting(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(nesting, value.values()), default=0)
    return 1 + max(map(nesting, value), default=0) if isinstance(value, list) else 0


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_the_depth_of_a_text_is_the_nesting_that_a_parser_finds(value, ascii_only, indent):
    assert depth(json.dumps(value, ensure_ascii=ascii_only, indent=indent)) == nesting(value)


def test_brackets_and_escaped_quotes_in_strings_do_not_count():
    assert depth(json.dumps({"a": '[[{"\\', 'b"[': ["]"]})) == 2


# the two forms of a body


def test_a_json_rpc_request_is_read():
    message = call(request())
    assert (message.id, message.type, message.data, message.generated_id) == ("r1", "train.submit", PARAMS, False)


def test_a_body_without_jsonrpc_is_the_params():
    message = call({**PARAMS, "id": "mine"})
    assert (message.id, message.data, message.generated_id) == ("mine", PARAMS, False)


def test_without_any_id_one_is_made_and_that_is_known():
    first, second = call(PARAMS), call({"jsonrpc": "2.0", "id": None, "params": PARAMS})
    assert first.generated_id and second.generated_id
    assert first.id != second.id


def test_params_and_method_may_be_left_out():
    assert call({"jsonrpc": "2.0", "id": "r"}).data == {}


@pytest.mark.parametrize(
    ("members", "code", "field"),
    [
        ({"jsonrpc": "1.0"}, Code.INVALID_REQUEST, "jsonrpc"),
        ({"jsonrpc": 2.0}, Code.INVALID_REQUEST, "jsonrpc"),
        ({"method": "job.cancel"}, Code.INVALID_REQUEST, "method"),
        ({"params": [1]}, Code.INVALID_PARAMS, "params"),
        ({"params": None}, Code.INVALID_PARAMS, "params"),
    ],
)
def test_a_wrong_member_is_named_and_the_reply_can_carry_the_id(members, code, field):
    error = call_refused(request(**members))
    assert (error.code, error.data["field"], error.data["id"]) == (code, field, "r1")


# ids


def test_an_integer_id_becomes_text():
    assert call(request(id=7)).id == "7"
    assert call({**PARAMS, "id": 0}).id == "0"


@pytest.mark.parametrize("identity", [True, False, 1.5, [], {}])
def test_other_ids_are_refused(identity):
    error = call_refused(request(id=identity))
    assert (error.code, error.data) == (Code.INVALID_REQUEST, {"field": "id"})
    assert call_refused({**PARAMS, "id": identity}).data["field"] == "id"


@pytest.mark.parametrize(("length", "ok"), [(0, False), (1, True), (128, True), (129, False)])
def test_an_id_has_1_to_128_characters(length, ok):
    if ok:
        assert call(request(id="x" * length)).id == "x" * length
    else:
        error = call_refused(request(id="x" * length))
        assert (error.code, error.data["field"], error.data["id"]) == (Code.INVALID_PARAMS, "id", "x" * length)


def test_the_bodys_id_comes_before_the_propertys_and_that_before_metas():
    assert call(request(), id="p").id == "r1"
    assert call({**PARAMS, "_meta": {"id": "m"}}, id="p").id == "p"
    assert call({**PARAMS, "_meta": {"id": "m"}}).id == "m"


# attributes


def test_properties_are_read_and_unknown_ones_ignored():
    message = call(
        PARAMS, source="someone", priority="3", recipient="router-2", deadline="2026-03-01T12:00:00+02:00",
        time="2026-03-01T09:00:00Z", traceparent="00-aa-bb-01", colour="blue",
    )  # fmt: skip
    assert (message.sender, message.priority, message.recipient) == ("someone", 3, "router-2")
    assert message.deadline == datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert (message.timestamp, message.traceparent) == (datetime(2026, 3, 1, 9, tzinfo=UTC), "00-aa-bb-01")


def test_the_first_property_of_a_name_counts():
    payload = json.dumps(PARAMS).encode()
    assert decode_call("train.submit", payload, [("priority", "2"), ("priority", "3")]).priority == 2


def test_meta_gives_what_properties_lack_and_is_no_parameter():
    message = call({**PARAMS, "_meta": {"priority": 2, "source": "meta"}}, source="property")
    assert (message.priority, message.sender, message.data) == (2, "property", PARAMS)
    inside = call(request(params={**PARAMS, "_meta": {"priority": 3}}))
    assert (inside.priority, inside.data) == (3, PARAMS)
    assert call({**PARAMS, "_meta": "nothing"}).data == PARAMS


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [("priority", "0", "priority"), ("priority", "4", "priority"), ("priority", "high", "priority"),
     ("deadline", "soon", "deadline"), ("time", "noon", "timestamp")],
)  # fmt: skip
def test_a_wrong_attribute_is_an_envelope_error_that_keeps_the_id(name, value, field):
    error = call_refused(request(), **{name: value})
    assert (error.code, error.data["field"], error.data["id"]) == (Code.INVALID_PARAMS, field, "r1")


def test_a_time_without_zone_is_utc():
    assert call(PARAMS, deadline="2026-03-01T12:00:00").deadline == datetime(2026, 3, 1, 12, tzinfo=UTC)


@settings(deadline=None)
@given(
    identity=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128), data=OBJECTS, sender=TEXT,
    recipient=st.none() | TEXT.filter(bool), priority=st.integers(1, 3), traceparent=st.none() | TEXT.filter(bool),
    deadline=st.none() | st.datetimes(timezones=st.just(timezone(timedelta(hours=-5)))),
)  # fmt: skip
def test_body_and_properties_together_carry_the_whole_message(
    identity, data, sender, recipient, priority, traceparent, deadline
):
    message = MCPMessage(
        id=identity, type="train.submit", data=data, sender=sender, recipient=recipient, priority=priority,
        traceparent=traceparent, deadline=deadline,
    )  # fmt: skip
    assert decode_call("train.submit", message.body(), message.properties()) == message


# replies


def test_a_result_and_an_error_come_back_as_they_were():
    for reply in (Reply(id="a", result={"x": "ü"}), Reply(id="b", error=ErrorBody(code=-1, message="no"))):
        assert Reply.parse(reply.body()) == reply


def test_a_reply_with_an_error_has_no_result():
    body = json.loads(Reply(id="b", result={}, error=ErrorBody(code=-1, message="no")).body())
    assert "result" not in body and body["error"]["code"] == -1


@pytest.mark.parametrize("payload", [b"{}", b'{"id": 1, "error": "no"}', b'{"id": 1, "result": []}', b"[]"])
def test_what_is_no_reply_is_refused(payload):
    with pytest.raises(LabError) as caught:
        Reply.parse(payload)
    assert caught.value.code is Code.INVALID_REQUEST
