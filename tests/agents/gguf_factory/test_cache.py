"""The same request again gets the finished model; anything else, and a file that is not as it was, does not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import configs
from agents.gguf_factory import cache as module
from agents.gguf_factory import fingerprint, plan, subject, work
from agents.gguf_factory.cache import Cache
from agents.gguf_factory.hashes import Hashes
from configs import Storage, Tier
from protocol.job import Artefact, Finished, Plan, PlanRequest, Route, TrainRequest
from tests.agents.gguf_factory.bases import QA, QA_EVAL, make_base
from tests.agents.gguf_factory.runs import make_job

TIERS = configs.load().tiers
LIMITS = Storage(artefacts_bytes=None, models_bytes=None, jobs_bytes=None, cache_models=3, cache_bytes=None)
PLAN = Plan(
    rows=1, held_out_rows=1, tokens=1, steps=1, parameters={}, base_parameters=1, file_bytes=1, disk_bytes=1, memory_bytes=1,
    seconds_p50=1, seconds_p90=1,
)  # fmt: skip
GATES = {
    name: rule.judge(name, rule.threshold if rule.level == "fail" else None).model_dump()
    for name, rule in TIERS["starter"].gates.items()
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("cache") / "base")


class Shelf:
    """A home in which the job `first` has made a model from the request."""

    def __init__(self, home: Path, base: Path) -> None:
        self.home, self.base = home, base
        self.data = home / "rows.jsonl"
        self.data.parent.mkdir(parents=True)
        shutil.copy(QA, self.data)
        self.cache = Cache(home, LIMITS)
        self.model = home / "artefacts" / "m.gguf"
        self.model.parent.mkdir()
        self.model.write_bytes(b"GGUF and more")
        self.card = home / "artefacts" / "README.md"
        self.card.write_text("# m")
        self.key = self.cache.find(self.request(), TIERS).key or ""
        self.keep(self.key)

    def request(self, **changes: Any) -> PlanRequest:
        domain, base = changes.pop("domain", "time_management"), changes.pop("base", self.base)
        route = Route(
            domain=domain, category="c", tier="starter", base=str(base), voice="v", empathy="e", quality_floor=101.0,
            safety_critical=False,
        )  # fmt: skip
        fields = {"domain": domain, "dataset": str(self.data), "eval_dataset": str(QA_EVAL), **changes}
        return PlanRequest(job="again", request=TrainRequest(**fields), route=route)

    def keep(self, key: str, job: str = "first") -> None:
        made = [
            Artefact(kind=kind, uri=path.as_uri(), sha256=hashlib.sha256(path.read_bytes()).hexdigest(), bytes=path.stat().st_size)
            for kind, path in (("gguf", self.model), ("card", self.card))
        ]
        self.cache.keep(key, PLAN, Finished(job=job, artefacts=made, gates=GATES, results={"loss": 1.5}), {})


@pytest.fixture
def shelf(tmp_path: Path, base: Path) -> Shelf:
    return Shelf(tmp_path / "home", base)


def test_the_same_request_again_is_answered_with_the_file_and_its_makers_name(shelf: Shelf) -> None:
    found = Cache(shelf.home, LIMITS).find(shelf.request(), TIERS).plan
    assert found is not None and found.finished is not None and found.key == shelf.key
    assert (found.finished.job, found.finished.results, found.rows) == ("first", {"loss": 1.5}, PLAN.rows)
    assert [item.kind for item in found.finished.artefacts] == ["gguf", "card"]


def test_names_urgency_and_money_change_nothing(shelf: Shelf, tmp_path: Path) -> None:
    moved = shutil.copy(shelf.data, tmp_path / "other name.jsonl")
    base = shutil.copytree(shelf.base, tmp_path / "another base")
    request = shelf.request(dataset=Path(moved).as_uri(), base=base, priority=3, budget_usd=1.0, tier="starter")
    assert shelf.cache.find(request, TIERS).plan is not None


def other_base(shelf: Shelf, tmp_path: Path) -> PlanRequest:
    base = shutil.copytree(shelf.base, tmp_path / "base")
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    return shelf.request(base=base)


def other_template(shelf: Shelf, tmp_path: Path) -> PlanRequest:
    base = shutil.copytree(shelf.base, tmp_path / "base")
    (base / "chat_template.jinja").write_text((base / "chat_template.jinja").read_text() + " ")
    return shelf.request(base=base)


def other_row(shelf: Shelf, tmp_path: Path) -> PlanRequest:
    with shelf.data.open("a") as file:
        file.write('{"question": "One more?", "answer": "Yes."}\n')
    return shelf.request()


def other_form(shelf: Shelf, tmp_path: Path) -> PlanRequest:
    return shelf.request(dataset=str(shutil.copy(shelf.data, tmp_path / "rows.csv")))


CHANGES = {
    "base": other_base, "template": other_template, "row": other_row, "form": other_form,
    "eval": lambda shelf, _: shelf.request(eval_dataset=None),
    "parameter": lambda shelf, _: shelf.request(parameters={"seed": 43}),
    "quantisation": lambda shelf, _: shelf.request(quantisation="Q8_0"),
    "domain": lambda shelf, _: shelf.request(domain="sleep"),
    "licence": lambda shelf, _: shelf.request(licence="mit"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_shapes_the_model_makes_another_one(shelf: Shelf, tmp_path: Path, change: str) -> None:
    found = shelf.cache.find(CHANGES[change](shelf, tmp_path), TIERS)
    assert found.plan is None and found.why == "" and found.key not in (None, shelf.key)


def test_other_code_packages_or_gates_make_another_one(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    for path in fingerprint.SOURCES.glob("*.py"):
        shutil.copy(path, sources)
    same = fingerprint.code_version(sources)
    assert same == fingerprint.code_version()
    (sources / "loop.py").write_text((sources / "loop.py").read_text() + "\n# faster\n")
    assert fingerprint.code_version(sources) != same
    tier: Tier = TIERS["starter"]
    rule = tier.gates["quality_percent"].model_copy(update={"threshold": 120.0})
    strict = {**TIERS, "starter": tier.model_copy(update={"gates": {**tier.gates, "quality_percent": rule}})}
    keys = {shelf.key, shelf.cache.find(shelf.request(), strict).key}
    for name, changed in (("LOADED", "other"), ("_installed", lambda package: "9.9")):
        monkeypatch.setattr(fingerprint, name, changed)
        keys.add(shelf.cache.find(shelf.request(), TIERS).key)
    assert len(keys) == 4 and None not in keys


def damage(shelf: Shelf, how: str) -> None:
    if how == "missing":
        shelf.model.unlink()
    elif how == "cut":
        shelf.model.write_bytes(shelf.model.read_bytes()[:-1])
    else:
        shelf.model.write_bytes(b"gguf and more")


@pytest.mark.parametrize(("how", "told"), [("missing", "No such file"), ("cut", "has 12 bytes"), ("changed", "another content")])
def test_a_file_that_is_not_as_published_is_a_miss_that_says_so_once(shelf: Shelf, how: str, told: str) -> None:
    damage(shelf, how)
    found = shelf.cache.find(shelf.request(), TIERS)
    assert found.plan is None and found.key == shelf.key
    assert "first" in found.why and told in found.why and str(shelf.model) in found.why
    assert shelf.cache.find(shelf.request(), TIERS).why == "" and shelf.cache.entries() == []


def elsewhere(shelf: Shelf) -> Finished:
    """Put the model into an artefact store, as a machine elsewhere does, and let the cache know."""
    import fsspec

    files = fsspec.filesystem("memory")
    files.pipe("/lab/artefacts/ab/model.gguf", shelf.model.read_bytes())
    size, sha256 = shelf.model.stat().st_size, hashlib.sha256(shelf.model.read_bytes()).hexdigest()
    artefact = Artefact(kind="gguf", uri="memory://lab/artefacts/ab/model.gguf", sha256=sha256, bytes=size)
    made = Finished(job="far", artefacts=[artefact], gates=GATES, results={})
    shelf.cache.keep(shelf.key, PLAN, made)
    return made


def test_a_model_in_the_artefact_store_is_taken_while_the_store_has_it(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    made = elsewhere(shelf)
    found = shelf.cache.find(shelf.request(), TIERS).plan
    assert found is not None and found.finished is not None and found.finished.artefacts == made.artefacts
    assert shelf.cache.find(shelf.request(), TIERS, stores=False) == module.Found(shelf.key), "an agent does not wait for a store"
    with monkeypatch.context() as broken:
        broken.setattr(MemoryFileSystem, "size", lambda self, path: 1 / 0)
        assert "cannot be looked at (ZeroDivisionError" in shelf.cache.find(shelf.request(), TIERS).why
    assert shelf.cache.find(shelf.request(), TIERS).plan is not None, "a store that is away has forgotten nothing"
    MemoryFileSystem().pipe("/lab/artefacts/ab/model.gguf", b"cut")
    assert "has 3 bytes" in shelf.cache.find(shelf.request(), TIERS).why
    elsewhere(shelf)
    MemoryFileSystem().rm("/lab/artefacts/ab/model.gguf")
    assert "is not there any more" in shelf.cache.find(shelf.request(), TIERS).why
    assert shelf.cache.entries() == []


def test_a_gate_that_is_missed_now_is_a_miss_that_says_so(shelf: Shelf) -> None:
    tier = TIERS["starter"]
    entry = json.loads(shelf.cache.path(shelf.key).read_text())
    entry["gates"]["tokenizer_ids"]["value"] = 3.0
    shelf.cache.path(shelf.key).write_text(json.dumps(entry))
    assert tier.gates["tokenizer_ids"].level == "fail"
    assert "tokenizer_ids" in shelf.cache.find(shelf.request(), TIERS).why


def test_a_paper_that_somebody_wrote_into_is_left_out(shelf: Shelf) -> None:
    shelf.card.write_text("# mine")
    found = shelf.cache.find(shelf.request(), TIERS).plan
    assert found is not None and found.finished is not None
    assert [item.kind for item in found.finished.artefacts] == ["gguf"]


def test_an_entry_that_is_not_whole_is_no_entry(shelf: Shelf) -> None:
    path = shelf.cache.path(shelf.key)
    entry = json.loads(path.read_text())
    path.write_text(path.read_text()[:100])
    assert shelf.cache.find(shelf.request(), TIERS) == module.Found(shelf.key)
    path.write_text(json.dumps({**entry, "format": 99}))
    assert shelf.cache.find(shelf.request(), TIERS) == module.Found(shelf.key), "a newer program wrote it"
    path.write_text(json.dumps({**entry, "plan": {}}))
    assert "not whole" in shelf.cache.find(shelf.request(), TIERS).why


def test_nobody_looks_where_it_is_not_wanted_or_where_data_are_far_away(shelf: Shelf) -> None:
    far = {"dataset": "hf://datasets/somebody/rows/a.jsonl", "eval_dataset": None}
    assert shelf.cache.find(shelf.request(use_cache=False), TIERS) == module.Found()
    assert shelf.cache.find(shelf.request(**far), TIERS) == module.Found()
    assert shelf.cache.find(shelf.request(**far), TIERS, {"dataset_sha256": "0" * 64}).key is not None, "the plan has read them"
    assert shelf.cache.find(shelf.request(dataset="/nowhere.jsonl"), TIERS) == module.Found(), "the plan says what is wrong"
    off = Cache(shelf.home, LIMITS.model_copy(update={"cache_models": 0}))
    assert off.find(shelf.request(), TIERS) == module.Found()


def test_the_models_asked_for_longest_ago_are_forgotten_and_their_files_stay(shelf: Shelf) -> None:
    def order() -> list[str]:
        return [name for name, _ in shelf.cache.entries()]

    def age(key: str, seconds: int) -> None:
        facts = shelf.cache.path(key).stat()
        os.utime(shelf.cache.path(key), ns=(facts.st_atime_ns, facts.st_mtime_ns - seconds * 10**9))

    age(shelf.key, 100)
    for number, key in enumerate("bc"):
        shelf.keep(key)
        age(key, 90 - number)
    assert order() == ["c", "b", shelf.key]
    assert shelf.cache.find(shelf.request(), TIERS).plan is not None
    assert order() == [shelf.key, "c", "b"], "asked for just now"
    age(shelf.key, 50)
    shelf.keep("d")
    assert order() == ["d", shelf.key, "c"] and shelf.model.exists()
    size = shelf.model.stat().st_size
    Cache(shelf.home, LIMITS.model_copy(update={"cache_bytes": 2 * size})).shrink()
    assert order() == ["d", shelf.key]


def test_a_fingerprint_is_plain_and_tells_what_differs(shelf: Shelf) -> None:
    asked = shelf.request()
    facts = fingerprint.fingerprint(asked.request, asked.route, TIERS, Hashes(shelf.home))
    assert json.loads(json.dumps(facts)) == facts and fingerprint.key(facts) == shelf.key
    assert facts["parameters"]["max_tokens"] == 150_000 and facts["profile"] == "edge"
    assert fingerprint.GENERAL == subject.GENERAL, "the text that the gates read"


# the life of an entry


class Made:
    """A job that the real planner planned and that has made a file."""

    def __init__(self, root: Path, base: Path) -> None:
        self.job = make_job(root / "home", base)
        self.job.path("plan").mkdir()
        self.planned = plan.run(self.job).results
        file = root / "home" / "artefacts" / "m.gguf"
        file.parent.mkdir()
        file.write_bytes(b"GGUF")
        artefact = Artefact(kind="gguf", uri=file.as_uri(), sha256=hashlib.sha256(b"GGUF").hexdigest(), bytes=4)
        self.outcome = {"artefacts": [artefact.model_dump(mode="json")], "gates": GATES, "results": {}}

    def keep(self) -> list[str]:
        work._keep(self.job, self.planned, self.outcome)
        return [entry["job"] for _, entry in Cache(self.job.home, LIMITS).entries()]


@pytest.fixture
def made(tmp_path: Path, base: Path) -> Made:
    return Made(tmp_path, base)


def test_a_finished_job_is_found_by_the_next_plan_of_the_same(made: Made) -> None:
    request = PlanRequest(job="j2", request=made.job.run.request, route=made.job.run.route)
    assert work.make_plan(request.model_dump_json(), made.job.home)["plan"]["finished"] is None
    assert made.keep() == ["j1"]
    again = Plan.model_validate(work.make_plan(request.model_dump_json(), made.job.home)["plan"])
    assert again.finished is not None and again.finished.job == "j1" and again.key == made.planned["fingerprint"]


def test_what_changed_while_a_job_ran_is_not_remembered(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "code_version", lambda: "upgraded meanwhile")
    assert made.keep() == []
    monkeypatch.undo()
    template = made.job.base / "chat_template.jinja"
    kept = template.read_text()
    try:
        template.write_text(kept + " ")
        assert made.keep() == []
    finally:
        template.write_text(kept)
    assert made.keep() == ["j1"]


def test_a_model_that_cannot_be_remembered_is_finished_all_the_same(made: Made) -> None:
    (made.job.home / "cache").write_text("in the way")
    assert made.keep() == []
