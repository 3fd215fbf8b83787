"""Vendors' names of GPUs in the catalogue's words."""

from __future__ import annotations

import pytest

from agents.gpu_orchestrator.providers.gpus import neutral_name


@pytest.mark.parametrize(
    ("vendors", "neutral"),
    [("A10", "A10"), ("A100 SXM4", "A100"), ("NVIDIA A100 80GB PCIe", "A100"), ("NVIDIA A100-SXM4-80GB", "A100"), ("A100 PCIE", "A100"),
     ("RTX 4090", "RTX4090"), ("NVIDIA GeForce RTX 4090", "RTX4090"), ("RTX A6000", "A6000"), ("NVIDIA RTX A4500", "A4500"),
     ("Tesla V100", "V100"), ("Tesla T4", "T4"), ("NVIDIA L4", "L4"), ("NVIDIA L40S", "L40S"), ("H100 SXM", "H100"),
     ("NVIDIA H100 80GB HBM3", "H100"), ("H100 NVL", "H100NVL"), ("H200 NVL", "H200NVL"), ("GH200", "GH200"), ("B200", "B200"),
     ("RTX_4090", "RTX4090"), ("GTX 1080 Ti", "GTX1080Ti"), ("A10G", "A10G"), ("Imaginary RTX 9999", "ImaginaryRTX9999"), ("", "")],
)  # fmt: skip
def test_a_gpu_has_one_name_whoever_sells_it(vendors: str, neutral: str) -> None:
    assert neutral_name(vendors) == neutral
