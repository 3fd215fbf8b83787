from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agents.gguf_factory import compare, convert, imatrix, quantise
from agents.gguf_factory.compare import Request, Row
from agents.gguf_factory.gguf_header import read_header
from agents.gguf_factory.job import Job, Stopped
from meetara.cli import app
from protocol import Code, LabError


@pytest.fixture
def f16(exported: Job) -> Path:
    return exported.path("convert", convert.FILE)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go, to be looked at afterwards."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def job(exported: Job, tmp_path: Path) -> Path:
    """The finished job's folder with its job.json, as the factory leaves it."""
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "job.json").write_text(exported.run.model_dump_json())
    for stage in ("data", "convert"):
        (folder / stage).symlink_to(exported.path(stage))
    return folder


def test_types_of_a_job_are_compared_on_its_own_rows_and_base(exported: Job, job: Path, scratch: Path) -> None:
    report = compare.compare(Request(job, "", types=("Q8_0", "Q2_K", "F16")), exported.home)
    rows = {row["type"]: Row(**row) for row in report["rows"]}
    assert list(rows) == ["Q2_K", "Q8_0", "F16"], "by size"
    assert rows["Q2_K"].kl > rows["Q8_0"].kl > rows["F16"].kl == 0  # type: ignore[operator]
    assert rows["F16"].top1_percent == 100 and rows["Q2_K"].top1_percent < 100  # type: ignore[operator]
    assert rows["F16"].bytes == exported.path("convert", convert.FILE).stat().st_size
    assert rows["Q8_0"].quality_percent == pytest.approx(100 * report["base_perplexity"] / rows["Q8_0"].perplexity)
    assert rows["Q8_0"].quality_percent > 1000  # type: ignore[operator]
    assert report["imatrix_tokens"] > 100 and report["tokens"] > 100
    assert list(scratch.iterdir()) == [], "nothing is kept"


def test_its_perplexity_is_what_the_gate_measures(exported: Job, job: Path) -> None:
    report = compare.compare(Request(job, "", types=("Q4_K_M",)), exported.home)
    told = exported.read_manifest("validate")["results"]
    assert report["rows"][0]["perplexity"] == pytest.approx(told["tuned_perplexity"], rel=0.01)
    assert report["base_perplexity"] == pytest.approx(told["base_perplexity"], rel=0.01)


def test_what_nothing_beats_in_size_and_distance_is_marked() -> None:
    rows = [
        Row("D", error="no"),
        Row("A", 10, kl=0.5),
        Row("B", 20, kl=0.6),
        Row("C", 30, kl=0.1),
        Row("E", 30, kl=0.2),
    ]
    assert [(row.type, row.pareto) for row in compare.marked(rows)] == [
        ("A", True), ("B", False), ("C", True), ("E", False), ("D", False)
    ]  # fmt: skip


def test_a_type_that_cannot_be_made_is_told_and_the_others_are_measured(
    f16: Path, exported: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = quantise.quantise

    def broken(source: Path, target: Path, name: str, *arguments: object, **options: object) -> None:
        if name == "Q4_0":
            raise LabError(Code.TOOLCHAIN, "the quantiser failed")
        real(source, target, name, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(quantise, "quantise", broken)
    request = Request(f16, str(exported.path("data", "held_out.jsonl")), types=("Q4_0", "Q8_0"), imatrix=False)
    rows = compare.compare(request, exported.home)["rows"]
    assert [(row["type"], row["error"]) for row in rows] == [("Q8_0", None), ("Q4_0", "the quantiser failed")]


def test_one_type_is_made_as_the_stage_makes_it(f16: Path, exported: Job, tmp_path: Path, scratch: Path) -> None:
    target = tmp_path / "made.gguf"
    told = compare.produce(
        Request(f16, train_data=str(exported.path("data", "train.jsonl")), types=("Q4_K_M",)), target, exported.home
    )
    product = exported.path("quantise", "sleep-Q4_K_M.gguf")
    assert told["bytes"] == target.stat().st_size == product.stat().st_size
    assert [tensor.type for tensor in read_header(target).tensors] == [t.type for t in read_header(product).tensors]
    assert list(scratch.iterdir()) == [] and [path.name for path in tmp_path.glob("*made*")] == ["made.gguf"]


def test_without_text_there_is_no_importance_matrix_and_so_no_file(f16: Path, exported: Job, tmp_path: Path) -> None:
    request = Request(f16, types=("Q5_K_S",))
    with pytest.raises(LabError, match="needs text of the domain"):
        compare.produce(request, tmp_path / "made.gguf", exported.home)
    plain = compare.produce(dataclasses.replace(request, imatrix=False), tmp_path / "made.gguf", exported.home)
    assert plain["imatrix_tokens"] is None


def test_a_stop_in_the_middle_leaves_nothing(f16: Path, exported: Job, tmp_path: Path, scratch: Path) -> None:
    notes: list[str] = []
    request = Request(f16, str(exported.path("data", "held_out.jsonl")), types=("Q4_K_M",), imatrix=False)
    with pytest.raises(Stopped):
        compare.compare(
            request,
            exported.home,
            progress=lambda note: notes.append(note),
            stop=lambda: bool(notes) and "Q4_K_M" in notes[-1],
        )
    with pytest.raises(Stopped):
        compare.produce(request, tmp_path / "made.gguf", exported.home, stop=lambda: True)
    assert list(scratch.iterdir()) == [] and not list(tmp_path.glob("*made*"))


def test_what_cannot_be_quantised_is_refused_with_the_reason(exported: Job, f16: Path, tmp_path: Path) -> None:
    for request, words in (
        (Request(exported.path("quantise", "sleep-Q4_K_M.gguf"), "x"), "quantised already"),
        (Request(f16, "x", types=("Q4",)), "not known"),
        (Request(f16, "x", types=("IQ2_XXS",), imatrix=False), "cannot be made without an importance matrix"),
        (Request(f16, ""), "nothing to compare on"),
        (Request(tmp_path, ""), "holds no F16 file"),
    ):
        with pytest.raises(LabError, match=words):
            compare.located(request, exported.home)
    with pytest.raises(LabError, match="is the file that is read") as caught:
        compare.produce(Request(f16, types=("F16",)), f16, exported.home)
    assert caught.value.code is Code.CONFLICT


def test_full_disks_are_seen_before(f16: Path, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="are needed") as caught:
        compare.check_space(tmp_path, f16, 10**15)
    assert caught.value.code is Code.NO_SPACE


def test_the_command_makes_a_file_and_a_table(f16: Path, exported: Job, tmp_path: Path) -> None:
    data, home = str(exported.path("data", "held_out.jsonl")), ["--home", str(exported.home)]
    made = CliRunner().invoke(
        app,
        ["quantize", str(f16), "--type", "Q8_0", "--out", str(tmp_path / "q8.gguf"), "--data", data, "--json", *home],
    )
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["bytes"] == (tmp_path / "q8.gguf").stat().st_size
    told = CliRunner().invoke(
        app, ["quantize", str(f16), "--compare", "--type", "Q8_0,F16", "--data", data, "--no-imatrix", *home]
    )
    assert told.exit_code == 0, told.output
    assert "← nothing is smaller and as close" in told.stdout and "without an importance matrix" in told.stdout


@pytest.mark.parametrize(
    "options", [[], ["--compare", "--out", "x.gguf"], ["--out", "x.gguf"], ["--out", "x", "--type", "Q4_0,Q8_0"]]
)
def test_wrong_usage_exits_with_2(options: list[str]) -> None:
    assert CliRunner().invoke(app, ["quantize", "x.gguf", *options]).exit_code == 2


def test_the_tokenizer_of_the_file_is_enough_for_the_matrix(f16: Path, exported: Job, tmp_path: Path) -> None:
    matrix = imatrix.read(exported.path("quantise", quantise.IMATRIX))
    with compare.llama.load(f16, n_ctx=512) as model:
        samples = compare.samples_of(str(exported.path("data", "train.jsonl")), compare.GgufTokenizer(model))
        found, _ = imatrix.measure(f16, (sample.ids for sample in samples))
    assert {name: values.round(2).tolist()[:3] for name, values in found.items()} == {
        name: values.round(2).tolist()[:3] for name, values in matrix.items()
    }
