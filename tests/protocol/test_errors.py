"""Errors survive the wire, whoever wrote them."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protocol.envelope import Reply
from protocol.errors import Code, ErrorBody, LabError, Retry
from protocol.job import TrainRequest

SENTENCE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(lambda s: s == s.strip())
FACTS = st.dictionaries(
    st.sampled_from(["field", "file", "line", "job", "needed_micros"]), st.integers() | SENTENCE, max_size=3
)


@given(st.sampled_from(Code), SENTENCE, SENTENCE | st.just(""), st.sampled_from(Retry), FACTS)
def test_an_error_comes_back_from_the_wire_as_it_was(code, message, advice, retry, facts):
    error = LabError(code, message, advice=advice, retry=retry, **facts)
    body = Reply.parse(Reply(id="r", error=error.body()).body()).error
    assert body is not None
    back = LabError.from_body(body)
    assert (back.code, back.message, back.advice, back.retry, back.data) == (code, message, advice, retry, facts)
    assert str(back) == str(error)


def test_the_wires_message_is_what_a_person_reads():
    body = LabError(Code.BUDGET, "too dear.", advice="Ask for less.", retry=Retry.LATER, left_micros=5).body()
    assert body == ErrorBody(
        code=-32006, message="too dear. Ask for less.",
        data={"retry": "later", "advice": "Ask for less.", "left_micros": 5},
    )  # fmt: skip


def test_an_unknown_code_is_an_internal_error_that_keeps_its_words():
    error = LabError.from_body(ErrorBody(code=-1, message="odd", data={"x": 1}))
    assert (error.code, error.message, error.retry, error.data) == (Code.INTERNAL, "odd", Retry.NEVER, {"x": 1})


@pytest.mark.parametrize("retry", ["tomorrow", None, 3, ["later"], {}])
def test_an_unknown_retry_means_never(retry):
    assert LabError.from_body(ErrorBody(code=-32006, message="m", data={"retry": retry})).retry is Retry.NEVER


def test_a_peers_facts_may_have_any_name():
    facts = {"code": 5, "message": "inner", "self": 1, "error": None}
    error = LabError.from_body(ErrorBody(code=-32006, message="outer", data=facts))
    assert (error.code, error.message, error.data) == (Code.BUDGET, "outer", facts)


def test_json_rpcs_own_codes_and_the_servers_range():
    own = {-32700, -32600, -32601, -32602, -32603}
    assert all(code in own or -32099 <= code <= -32000 for code in Code)
    assert own <= set(Code)


def test_wrong_fields_are_all_listed_and_the_first_is_named():
    with pytest.raises(ValidationError) as caught:
        TrainRequest.model_validate({"domain": "", "priority": 9, "colour": "blue"})
    error = LabError.from_validation(caught.value, "train.submit has wrong parameters")
    assert error.code is Code.INVALID_PARAMS
    assert all(name in error.message for name in ("domain", "dataset", "priority", "colour"))
    assert error.data == {"field": "domain"}


def test_an_error_travels_between_processes_of_a_pool() -> None:
    error = LabError(Code.BAD_DATA, "It is wrong.", advice="Mend it.", retry=Retry.LATER, line=3)
    back = copy.copy(error)
    assert (back.code, back.message, back.advice, back.retry, back.data) == (error.code, error.message, error.advice, error.retry, {"line": 3})
