"""A job's words: what a request may say, and what comes out of the wire as it went in."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from protocol.job import FINAL, EventsQuery, Gate, JobSnapshot, Progress, Report, Stage, State, TrainRequest


def wrong_fields(model: type, data: dict[str, object]) -> set[str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(data)
    return {str(item["loc"][0]) for item in caught.value.errors()}


def test_domain_and_dataset_are_enough():
    request = TrainRequest(domain="sleep", dataset="/x.jsonl")
    assert (request.priority, request.profile, request.tier, request.base, request.budget_usd) == (1, "edge", None, None, None)
    assert request.parameters == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("domain", ""), ("domain", "x" * 65), ("dataset", ""), ("dataset", "x" * 4097), ("priority", 0), ("priority", 4),
     ("budget_usd", -0.01), ("profile", "cloud"), ("parameters", {"a": [1]}), ("epoch", 3)],
)  # fmt: skip
def test_a_wrong_value_or_a_misspelt_option_is_named(name, value):
    assert wrong_fields(TrainRequest, {"domain": "sleep", "dataset": "/x", name: value}) == {name}


def test_parameters_keep_their_types():
    given = {"epochs": 3, "rate": 2e-4, "packing": True, "scheduler": "cosine"}
    request = TrainRequest.model_validate_json(
        TrainRequest(domain="d", dataset="x", parameters=given).model_dump_json()
    )
    assert request.parameters == given
    assert [type(value) for value in request.parameters.values()] == [int, float, bool, str]


def test_exactly_four_states_are_final():
    assert {State.DONE, State.FAILED, State.CANCELLED, State.REFUSED} == FINAL
    assert list(State)[-4:] == [State.DONE, State.FAILED, State.CANCELLED, State.REFUSED]


def test_stages_are_in_the_order_of_work():
    assert [stage.value for stage in Stage] == [
        "plan", "data", "train", "merge", "convert", "quantise", "validate", "publish",
    ]  # fmt: skip


def test_a_report_says_one_of_the_known_things():
    assert wrong_fields(Report, {"job": "j", "fence": 1, "kind": "bored"}) == {"kind"}
    assert wrong_fields(Report, {"job": "j", "fence": 1, "kind": "failed", "retry": "maybe"}) == {"retry"}
    assert Report(job="j", fence=1, kind="failed").retry == "never"


@pytest.mark.parametrize("kind", ["stage_started", "stage_done"])
def test_a_report_about_a_stage_names_it(kind):
    assert Report(job="j", fence=1, kind=kind, stage=Stage.DATA).stage is Stage.DATA
    with pytest.raises(ValidationError, match="stage"):
        Report(job="j", fence=1, kind=kind)


def test_a_snapshot_comes_back_as_it_was():
    snapshot = JobSnapshot(
        job="j", state=State.DONE, stage=Stage.PUBLISH, attempt=1, domain="sleep", tier="starter", profile="edge",
        cost_usd=0.25, quality_percent=None, artefacts=[], results={"loss": 1.5, "samples": [{"prompt": "é"}]},
        gates={"size": Gate(value=None, threshold=1.0, ok=None)}, at=datetime(2026, 3, 1, tzinfo=UTC),
    )  # fmt: skip
    assert JobSnapshot.model_validate_json(snapshot.model_dump_json()) == snapshot


def test_what_was_not_measured_is_absent_not_zero():
    progress = Progress(job="j", stage=Stage.DATA, attempt=1, at=datetime(2026, 3, 1, tzinfo=UTC))
    assert (progress.loss, progress.tokens_per_s, progress.eta_s, progress.cost_usd, progress.step) == (None,) * 5


def test_events_are_asked_for_from_a_number_on():
    assert EventsQuery(job="j").since == 0
    assert wrong_fields(EventsQuery, {"job": "j", "since": -1}) == {"since"}
