"""What a job needs elsewhere: put into real stores by its content, fetched by another home, compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from agents.gguf_factory import convert, dataset, staging, work
from agents.gguf_factory.hashes import Hashes
from agents.gguf_factory.store import filesystem
from protocol import Code, LabError, Retry
from protocol.job import Artefact, Plan, PlanRequest, Route, RunRequest, TrainRequest
from tests.agents.gguf_factory.bases import make_base

ROWS = "".join(f'{{"question": "Why {n}?", "answer": "So {n}."}}\n' for n in range(5))
PLAN = Plan(
    rows=5, held_out_rows=1, tokens=1, steps=1, parameters={}, base_parameters=1, file_bytes=1, disk_bytes=1, memory_bytes=1,
    seconds_p50=1, seconds_p90=1,
)  # fmt: skip


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "s3":
        yield f"{request.getfixturevalue('bucket')}/{uuid4().hex}"
        return
    yield (tmp_path / "store").as_uri() if request.param == "file" else f"memory://{uuid4().hex}"
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_base(tmp_path_factory.mktemp("base") / "b")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle, which nobody reads")
    return folder


def route(base: Path | str) -> Route:
    return Route(
        domain="sleep", category="health", tier="starter", base=str(base), voice="v", empathy="e", quality_floor=101.0,
        safety_critical=False,
    )  # fmt: skip


def files(uri: str) -> set[str]:
    found, root = filesystem(uri)
    return {name.removeprefix(root.rstrip("/") + "/") for name in found.find(root)}


def rows(folder: Path, name: str = "rows.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(ROWS)
    return folder / name


def test_another_home_gets_data_and_base_by_their_content(store: str, base: Path, tmp_path: Path) -> None:
    mine = rows(tmp_path / "mine")
    request = TrainRequest(domain="sleep", dataset=mine.as_uri())
    staged = staging.stage(request, route(base), f"{store}/", Hashes(tmp_path))
    assert staging.stage(request, route(base), store, Hashes(tmp_path)) == staged, "and nothing is sent again"
    assert len(files(f"{store}/data")) == 1 and "pytorch_model.bin" not in str(files(f"{store}/bases"))
    run = RunRequest(
        job="j", request=request, route=route(base), plan=PLAN.model_copy(update={"staged": staged}), lease="l", fence=1,
        attempt=1, price_micros_per_hour=1, provider="vast",
    )  # fmt: skip
    mine.unlink()
    there = staging.arrive(run, tmp_path / "elsewhere")
    found = Path(there.route.base)
    assert found.is_relative_to(tmp_path / "elsewhere") and convert.identity(found) == convert.identity(base)
    assert len(dataset.read(there.request.dataset).rows) == 5
    assert staging.arrive(run, tmp_path / "elsewhere") == there, "the base is fetched once"
    assert staging.arrive(run.model_copy(update={"provider": "local"}), tmp_path) == run.model_copy(update={"provider": "local"})


def test_a_base_that_was_changed_in_the_store_is_not_trained_on(store: str, base: Path, tmp_path: Path) -> None:
    request = TrainRequest(domain="sleep", dataset=str(rows(tmp_path / "mine")))
    staged = staging.stage(request, route(base), store, Hashes(tmp_path))
    found, root = filesystem(staged.base)
    found.pipe_file(f"{root}/config.json", b"{}")
    run = RunRequest(
        job="j", request=request, route=route(base), plan=PLAN.model_copy(update={"staged": staged}), lease="l", fence=1,
        attempt=1, price_micros_per_hour=1, provider="vast",
    )  # fmt: skip
    with pytest.raises(LabError, match="is not what it was") as caught:
        staging.arrive(run, tmp_path / "elsewhere")
    assert caught.value.code is Code.BAD_DATA and not any((tmp_path / "elsewhere" / "bases").glob("*[!g]"))


def test_finished_files_are_in_the_store_under_their_hash(store: str, tmp_path: Path) -> None:
    path = rows(tmp_path / "abc", "m.gguf")
    made = Artefact(kind="gguf", uri=path.as_uri(), sha256="abc", bytes=path.stat().st_size)
    there = staging.deliver(made, store)
    assert there.uri == f"{store}/artefacts/abc/m.gguf" and staging.deliver(made, store) == there
    with fsspec.open(there.uri, "rb") as file:
        assert file.read() == path.read_bytes()


def test_what_all_can_reach_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    monkeypatch.setattr(staging.bases, "resolve", lambda name: base)
    request = TrainRequest(domain="sleep", dataset="https://example.org/rows.jsonl", eval_dataset="s3://b/eval.jsonl")
    staged = staging.stage(request, route("Qwen/Qwen3-0.6B"), tmp_path.as_uri(), Hashes(tmp_path))
    assert (staged.dataset, staged.eval_dataset, staged.base) == (request.dataset, request.eval_dataset, "Qwen/Qwen3-0.6B")
    assert files(tmp_path.as_uri()) == set()


@pytest.mark.parametrize(
    ("changes", "staged"), [({}, False), ({"elsewhere": True}, True), ({"elsewhere": True, "staging": False}, False)]
)
def test_a_plan_stages_what_may_be_trained_elsewhere_and_a_mere_quote_nothing(
    changes: dict[str, bool], staged: bool, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MEETARA_STORE", store)
    many = rows(tmp_path / "mine")
    many.write_text("".join(f'{{"question": "Why {n}?", "answer": "So {n}."}}\n' for n in range(60)))
    asked = PlanRequest(job="j", request=TrainRequest(domain="sleep", dataset=str(many)), route=route(base), **changes)
    made = work.make_plan(asked.model_dump_json(), tmp_path / "home")["plan"]
    assert (made["staged"] is not None, (tmp_path / "store").exists()) == (staged, staged)
    if staged:
        assert made["staged"]["store"] == store and made["staged"]["dataset"].startswith(f"{store}/data/")


def test_a_store_that_cannot_be_written_is_told_with_what_reads_it(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"cannot be written at nosuch://b/x .*that nosuch is installed") as caught:
        staging.put(rows(tmp_path / "mine"), "nosuch://b/x")
    assert caught.value.code is Code.UNREACHABLE and caught.value.retry is Retry.LATER
