"""The table of methods: who serves what, and a digest that tells two versions apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import BaseModel, Field, create_model

from protocol.job import Empty, JobQuery
from protocol.methods import METHODS, TABLE, Method, served_by

ROLES = {"router", "conductor", "gguf_factory", "gpu_orchestrator", "cost_monitor", "emotion", "tts"}


def digest(params: type[BaseModel], result: type[BaseModel] = Empty) -> str:
    return Method("a.b", "router", params, result).digest


def test_every_method_has_one_name_and_one_of_the_seven_roles():
    assert len(METHODS) == len(TABLE)
    assert {method.role for method in TABLE} == ROLES
    assert {name for role in ROLES for name in served_by(role)} == set(METHODS)
    assert served_by("nobody") == {}


@pytest.mark.parametrize("method", TABLE, ids=lambda method: method.name)
def test_unknown_parameters_are_errors_everywhere(method):
    assert method.params.model_config["extra"] == "forbid"
    assert method.result.model_config["extra"] == "forbid"


def test_a_digest_changes_with_any_part_of_a_schema():
    base = create_model("P", x=(int, ...))
    variants = [
        base, create_model("P", x=(str, ...)), create_model("P", x=(int, 0)), create_model("P", y=(int, ...)),
        create_model("P", x=(int, ...), y=(int, 0)), create_model("P", x=(int, Field(ge=0))),
    ]  # fmt: skip
    assert len({digest(variant) for variant in variants}) == len(variants)
    assert digest(base, Empty) != digest(base, JobQuery)
    assert digest(base, JobQuery) != digest(JobQuery, base)


def test_a_digest_stays_where_the_schemas_do():
    method = METHODS["train.submit"]
    assert method.digest == replace(method, deadline_s=1.0, role="other").digest
    assert len(method.digest) == 64
    assert digest(create_model("P", x=(int, ...))) == digest(create_model("P", x=(int, ...)))


def test_what_waits_for_people_or_machines_has_no_deadline_of_its_own():
    assert {name for name, method in METHODS.items() if method.deadline_s is None} >= {"train.route", "lease.request"}
    assert METHODS["train.submit"].deadline_s == 30.0
