"""What vendors call a GPU, in the words of the catalogue (gpuhunt): A100, A6000, H100NVL, RTX4090."""

from __future__ import annotations

import re

NOISE = re.compile(r"\b(NVIDIA|Tesla|GeForce|Quadro)\b", re.IGNORECASE)
FAMILY = re.compile(r"^(RTX )?(?P<name>[ABHLVTGP]{1,2}\d+S?)\b(?P<rest>.*)$")
"""Data-centre and workstation names: the letter and number are the GPU; what follows is its socket and memory."""


def neutral_name(vendors: str) -> str:
    """Return the vendor-neutral name of a GPU; one that follows no known rule keeps its words, without spaces.

    >>> neutral_name("NVIDIA A100-SXM4-80GB"), neutral_name("RTX A6000"), neutral_name("NVIDIA GeForce RTX 4090")
    ('A100', 'A6000', 'RTX4090')
    """
    words = " ".join(NOISE.sub(" ", vendors).replace("-", " ").replace("_", " ").split())
    family = FAMILY.match(words)
    if family is None:
        return words.replace(" ", "")
    # The NVL boards differ from their family in memory, so the catalogue tells them apart.
    return family["name"] + ("NVL" if re.search(r"\bNVL\b", family["rest"]) else "")
