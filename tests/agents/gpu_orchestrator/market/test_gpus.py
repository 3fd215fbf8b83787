import pytest

from agents.gpu_orchestrator.market.gpus import GPUS, fits, gpu_name, wanted_gpu
from protocol import Code, LabError

GIB = 2**30

WRITTEN = {
    ("NVIDIA GeForce RTX 4090", 24): "RTX 4090", ("RTX4090", 24): "RTX 4090", ("RTX 4090", 0): "RTX 4090",
    ("A100 SXM4", 40): "A100", ("A100 SXM4", 80): "A100-80GB", ("NVIDIA A100-SXM4-80GB", 0): "A100-80GB",
    ("NVIDIA A100 80GB PCIe", 0): "A100-80GB", ("A100-80GB", 80): "A100-80GB", ("A100 PCIE", 0): "A100",
    ("A100 (40 GB SXM4)", 40): "A100", ("A100X", 80): "A100X",
    ("Tesla T4", 15): "T4", ("t4", 0): "T4", ("Tesla V100-SXM2-16GB", 16): "V100", ("V100", 32): "V100-32GB",
    ("NVIDIA H100 80GB HBM3", 80): "H100", ("H100 (80 GB SXM5)", 80): "H100", ("H100 PCIe", 80): "H100",
    ("H100NVL", 94): "H100 NVL", ("NVIDIA H100 NVL", 94): "H100 NVL", ("H200 SXM", 141): "H200",
    ("NVIDIA RTX A6000", 48): "A6000", ("A6000", 48): "A6000", ("RTX6000Ada", 48): "RTX 6000 Ada",
    ("NVIDIA RTX 6000 Ada Generation", 48): "RTX 6000 Ada", ("RTX6000-Ada", 48): "RTX 6000 Ada", ("Quadro RTX 6000", 24): "RTX 6000",
    ("NVIDIA L4", 24): "L4", ("L40S", 48): "L40S", ("A10 (24 GB PCIe)", 24): "A10", ("NVIDIA A10G", 24): "A10G",
    ("GH200 (96 GB)", 96): "GH200", ("NVIDIA GeForce RTX 3090 Ti", 24): "RTX 3090 TI", ("AMD Instinct MI300X", 192): "AMD INSTINCT MI300X",
    ("", 0): "",
}  # fmt: skip


@pytest.mark.parametrize(("written", "name"), WRITTEN.items(), ids=lambda value: str(value))
def test_a_gpu_has_one_name_however_it_is_written(written, name):
    text, memory = written
    assert gpu_name(text, memory * GIB) == name
    assert gpu_name(name, memory * GIB) == name, "a second call changes nothing"


def test_a_tier_means_every_size_of_its_gpu_and_no_other_gpu():
    assert fits("A100", "A100-80GB") and fits("A100-80GB", "A100-80GB")
    assert not fits("A100-80GB", "A100") and not fits("A10", "A100") and not fits("A10", "A10G")


def test_an_unknown_gpu_is_refused_with_the_nearest_names():
    assert wanted_gpu("rtx4090", ()) == "RTX 4090"
    assert wanted_gpu("mi300x", ["MI300X"]) == "MI300X"
    with pytest.raises(LabError, match="no GPU is called 'A1000'") as caught:
        wanted_gpu("A1000", ())
    assert caught.value.code is Code.INVALID_PARAMS and caught.value.data["field"] == "gpu"
    assert "A100" in caught.value.advice


def test_every_figure_has_a_source_and_a_plausible_size():
    for gpu in GPUS.values():
        assert gpu.source and 8 < gpu.tflops < 3000 and 8 < gpu.memory_gib < 300, gpu
        assert gpu_name(gpu.name, gpu.memory_gib * 2**30) == gpu.name
