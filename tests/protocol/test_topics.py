"""Names of topics: made from one table, read back by level."""

from __future__ import annotations

import string

import aiomqtt
import pytest

from protocol.methods import METHODS
from protocol.topics import BY_NAME, TABLE, Topics

LAB = Topics("lab")


def fields(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]


def test_a_topic_is_made_from_its_row():
    assert LAB.of("job_state", job="j1") == "meetara/v1/lab/job/j1/state"
    assert Topics("other").of("cost_alert") == "meetara/v1/other/cost/alert"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_levels_give_back_what_of_was_given(row):
    topic = LAB.of(row.name, **{name: f"<{name}>" for name in fields(row.template)})
    assert "/".join(LAB.levels(topic)) == row.template.replace("{", "<").replace("}", ">")


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_filter_of_a_row_matches_its_topics_and_no_other_rows(row):
    pattern = LAB.of(row.name, **dict.fromkeys(fields(row.template), "+"))
    for other in TABLE:
        topic = LAB.of(other.name, **{name: f"a-{name}" for name in fields(other.template)})
        assert aiomqtt.Topic(topic).matches(pattern) == (other is row)


def test_a_missing_level_or_row_is_a_key_error():
    with pytest.raises(KeyError, match="job"):
        LAB.of("job_state")
    with pytest.raises(KeyError, match="nothing"):
        LAB.of("nothing")


def test_workers_of_a_role_share_its_calls():
    assert LAB.shared("router") == "$share/router/meetara/v1/lab/call/router/+"
    for method in METHODS.values():
        topic = LAB.of("call", role=method.role, method=method.name)
        assert LAB.levels(topic) == ["call", method.role, method.name]


@pytest.mark.parametrize("topic", ["meetara/v1/lab2/job/j/state", "meetara/v1/lab", "other/v1/lab/x", ""])
def test_a_topic_of_another_lab_is_refused(topic):
    with pytest.raises(ValueError, match="lab"):
        LAB.levels(topic)


def test_state_is_retained_and_facts_are_not():
    retained = {row.name for row in TABLE if row.retain}
    assert {"job_state", "card", "presence"} <= retained
    assert not retained & {"call", "direct", "reply", "job_event", "dead"}
    assert {row.name for row in TABLE if row.qos == 0} == {"job_progress"}
    assert len(BY_NAME) == len(TABLE)
