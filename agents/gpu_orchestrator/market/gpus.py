"""GPUs by one name: vendors write the same one in many ways. And what is known of each before anything was measured. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from protocol import Code, LabError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU as its maker describes it.

    Attributes:
        name: the one name that the lab uses.
        tflops: dense bf16 matrix products with 32-bit sums, in 10^12 per second, without sparsity: the factory trains in bf16.
            GPUs before Ampere have no units for bf16 and emulate it: of them it is the 32-bit rate.
        memory_gib: in the form that is sold most.
        source: where both are from.
    """

    name: str
    tflops: float
    memory_gib: int
    source: str


_AMPERE = "NVIDIA Ampere GA102 whitepaper, appendix A"
_ADA = "NVIDIA Ada whitepaper, appendix A"
_BLACKWELL = "NVIDIA RTX Blackwell whitepaper, appendix A"

TABLE: tuple[Gpu, ...] = (
    Gpu("P100", 9.3, 16, "NVIDIA P100 PCIe datasheet, 32-bit"),
    Gpu("V100", 14.0, 16, "NVIDIA V100 PCIe datasheet, 32-bit"),
    Gpu("V100-32GB", 14.0, 32, "NVIDIA V100 PCIe datasheet, 32-bit"),
    Gpu("T4", 8.1, 16, "NVIDIA T4 datasheet, 32-bit"),
    Gpu("RTX 6000", 16.3, 24, "NVIDIA Quadro RTX 6000 datasheet, 32-bit"),
    Gpu("A10", 125.0, 24, "NVIDIA A10 datasheet"),
    Gpu("A10G", 70.0, 24, "NVIDIA A10G datasheet"),
    Gpu("A40", 149.7, 48, "NVIDIA A40 datasheet"),
    Gpu("A100", 312.0, 40, "NVIDIA A100 datasheet"),
    Gpu("A100-80GB", 312.0, 80, "NVIDIA A100 datasheet"),
    Gpu("A4000", 76.7, 16, "NVIDIA RTX A4000 datasheet, half of the figure with sparsity"),
    Gpu("A4500", 94.6, 20, "NVIDIA RTX A4500 datasheet, half of the figure with sparsity"),
    Gpu("A5000", 111.1, 24, "NVIDIA RTX A5000 datasheet, half of the figure with sparsity"),
    Gpu("A6000", 154.8, 48, "NVIDIA RTX A6000 datasheet, half of the figure with sparsity"),
    Gpu("RTX 3080", 59.5, 10, _AMPERE),
    Gpu("RTX 3090", 71.0, 24, _AMPERE),
    Gpu("RTX 4080", 97.5, 16, _ADA),
    Gpu("RTX 4090", 165.2, 24, _ADA),
    Gpu("RTX 6000 Ada", 364.2, 48, "NVIDIA RTX 6000 Ada datasheet, a quarter of the 8-bit figure with sparsity"),
    Gpu("RTX 4000 Ada", 81.9, 20, "NVIDIA RTX 4000 Ada datasheet, a quarter of the 8-bit figure with sparsity"),
    Gpu("RTX 5080", 112.6, 16, _BLACKWELL),
    Gpu("RTX 5090", 209.5, 32, _BLACKWELL),
    Gpu("L4", 121.0, 24, "NVIDIA L4 datasheet, half of the figure with sparsity"),
    Gpu("L40", 181.0, 48, "NVIDIA L40 datasheet"),
    Gpu("L40S", 362.0, 48, "NVIDIA L40S datasheet"),
    Gpu("H100", 756.0, 80, "NVIDIA H100 PCIe datasheet, half of the figure with sparsity; SXM has 989"),
    Gpu("H100 NVL", 835.0, 94, "NVIDIA H100 NVL datasheet, half of the figure with sparsity"),
    Gpu("H200", 989.0, 141, "NVIDIA H200 datasheet, half of the figure with sparsity"),
    Gpu("GH200", 989.0, 96, "NVIDIA GH200 datasheet, half of the figure with sparsity"),
    Gpu("B200", 2250.0, 180, "NVIDIA DGX B200 datasheet, half of the figure with sparsity"),
)
"""What can be estimated. A GPU that is not here is shown and never chosen: nothing is known of its speed.

A maker's peak is a ceiling; `estimate.EFFICIENCY` says which part of it training reaches, and finished runs correct that."""

GPUS = {gpu.name: gpu for gpu in TABLE}

BY_MEMORY = {"A100": (60, "A100-80GB"), "V100": (24, "V100-32GB")}
"""Names that sell two sizes: from so many GiB on it is the other one. The limits lie between 40 and 80, and 16 and 32."""

_NOISE = re.compile(
    r"\b(NVIDIA|TESLA|GEFORCE|QUADRO|GRAPHICS|GENERATION|TENSOR|CORE|GPU|PCI-?E|PCLE|SXM\d?|SMX\d?|NVLINK|HBM\d?E?|WS|WORKSTATION)\b"
)
_MEMORY = re.compile(r"[\s_(-]*\b(\d+)\s*-?\s*GI?B\b[)]?")
_KEY = {re.sub(r"[^A-Z0-9]", "", gpu.name.upper()): gpu.name for gpu in TABLE if gpu.name not in ("A100-80GB", "V100-32GB")}
_KEY |= {f"RTX{name}": name for name in ("A4000", "A4500", "A5000", "A6000")}


def gpu_name(written: str, memory_bytes: int = 0) -> str:
    """Return the lab's one name for a GPU, however a vendor writes it; a second call changes nothing.

    Args:
        written: such as "NVIDIA GeForce RTX 4090", "A100 SXM4", "NVIDIA A100-SXM4-80GB", "H100 (80 GB SXM5)"; "" stays "".
        memory_bytes: of one GPU, where known: it tells A100 from A100-80GB.
    """
    text = written.upper()
    size = _MEMORY.search(text)
    memory = memory_bytes / GIB or (float(size[1]) if size else 0.0)
    text = _NOISE.sub(" ", _MEMORY.sub(" ", text).replace("_", " ").replace("-", " "))
    text = " ".join(re.sub(r"[^A-Z0-9 ]", " ", text).split())
    name = _KEY.get(text.replace(" ", ""), re.sub(r"\bRTX(?=\d)", "RTX ", text))
    least, larger = BY_MEMORY.get(name, (0, name))
    return larger if least and memory >= least else name


def family(name: str) -> str:
    """Return a name without its size: A100-80GB is an A100."""
    return re.sub(r"-\d+GB$", "", name)


def fits(wanted: str, name: str) -> bool:
    """Tell whether a GPU is one that is wanted; a name without a size means every size."""
    return name == wanted or family(name) == wanted


def wanted_gpu(written: str, known: Iterable[str], field: str = "gpu") -> str:
    """Return the one name for a GPU that a person asked for.

    Args:
        known: names that are for sale, beside those of TABLE.

    Raises:
        LabError: INVALID_PARAMS with the nearest names.
    """
    name = gpu_name(written)
    names = sorted({*GPUS, *known, *map(family, (*GPUS, *known))} - {""})
    if name in names:
        return name
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    raise LabError(
        Code.INVALID_PARAMS, f"{field}: no GPU is called {written!r}.",
        advice=f"Did you mean {' or '.join(near)}?" if near else f"Known are {', '.join(names)}.", field=field, known=names,
    )  # fmt: skip
