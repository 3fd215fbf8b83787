from __future__ import annotations

from pathlib import Path

import pytest

from agents.gguf_factory import imatrix, quantise
from agents.gguf_factory.gguf_header import Header, Tensor, read_header
from agents.gguf_factory.job import Job
from protocol import Code, LabError
from tests.agents.gguf_factory import exports


def test_the_product_has_the_asked_type_and_its_real_bits_per_weight(exported: Job) -> None:
    path = exported.path("quantise", "sleep-Q4_K_M.gguf")
    results = exported.read_manifest("quantise")["results"]
    header = read_header(path)
    assert {tensor.type for tensor in header.tensors} == {"F32", "Q4_K", "Q6_K"}
    assert results["bits_per_weight"] == pytest.approx(8 * header.tensor_bytes / header.weights)
    assert 4.5 < results["bits_per_weight"] < 6
    assert header.data_start + header.tensor_bytes <= path.stat().st_size == results["bytes"]
    assert results["fallback_percent"] == 0


def test_the_importance_matrix_changes_the_rounding(exported: Job, tmp_path: Path) -> None:
    plain = tmp_path / "plain.gguf"
    quantise.quantise(exported.path("convert", "model-f16.gguf"), plain, "Q4_K_M", None)
    product = exported.path("quantise", "sleep-Q4_K_M.gguf")
    assert [tensor.type for tensor in read_header(plain).tensors] == [t.type for t in read_header(product).tensors]
    assert plain.read_bytes()[-1_000_000:] != product.read_bytes()[-1_000_000:]


def test_q8_0_and_f16_can_be_asked_for(exported: Job, tmp_path: Path) -> None:
    source = exported.path("convert", "model-f16.gguf")
    matrix = exported.path("quantise", quantise.IMATRIX)
    quantise.quantise(source, tmp_path / "q8.gguf", "Q8_0", matrix)
    header = read_header(tmp_path / "q8.gguf")
    assert header.bits_per_weight == pytest.approx(8.5, abs=0.05)
    assert quantise.fallback_percent(header, "Q8_0") == 0


def test_an_unknown_type_is_refused_with_the_field_and_the_known_names(exported: Job) -> None:
    job = exports.make_job(exported.folder, exported.home, exported.base, quantisation="Q4_KM")
    with pytest.raises(LabError, match=r"Q4_KM.*Q4_K_M") as caught:
        quantise.run(job)
    assert (caught.value.code, caught.value.data["field"]) == (Code.INVALID_PARAMS, "quantisation")


def test_fallbacks_are_counted_by_their_weights() -> None:
    def tensor(name: str, kind: str, rows: int) -> Tensor:
        return Tensor(name, (192, rows), kind, 0, 192 * rows, 0)

    header = Header({}, (tensor("a", "Q5_0", 3), tensor("b", "Q4_K", 1), Tensor("n", (192,), "F32", 0, 192, 768)), 0, 0, 0)
    assert quantise.fallback_percent(header, "Q4_K_M") == 75


def test_a_wrong_matrix_size_is_an_error_and_leaves_no_file(exported: Job, tmp_path: Path) -> None:
    matrix = imatrix.read(exported.path("quantise", quantise.IMATRIX))
    matrix["blk.0.attn_q.weight"] = matrix["blk.0.attn_q.weight"][:100].copy()
    imatrix.save(matrix, tmp_path / "wrong.safetensors")
    with pytest.raises(LabError, match="the quantiser failed") as caught:
        quantise.quantise(
            exported.path("convert", "model-f16.gguf"), tmp_path / "out.gguf", "Q4_K_M", tmp_path / "wrong.safetensors"
        )
    assert caught.value.code is Code.TOOLCHAIN
    assert not list(tmp_path.glob("*.gguf*"))
