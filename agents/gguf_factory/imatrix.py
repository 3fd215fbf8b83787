"""The importance matrix: mean square of what enters each linear layer, measured on the domain's own training text.

llama.cpp's quantiser takes it as weights of the rounding error. Its own tool needs a binary; forward pre-hooks do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

Matrix = dict[str, npt.NDArray[np.float32]]

TOKENS = 4_096  # text that is read: seconds on two cores, and thousands of values behind each mean
HEAD = "output.weight"
EMBEDDING = "token_embd.weight"


@torch.no_grad()
def measure(
    model: nn.Module,
    texts: Iterable[Sequence[int]],
    names: Callable[[list[str]], dict[str, str]],
    *,
    tokens: int = TOKENS,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Matrix, int]:
    """Run texts through a model and return GGUF tensor name to mean square per column, and the tokens that were read.

    Args:
        model: a causal language model of transformers.
        texts: token ids of each text.
        names: maps module names to GGUF tensor names without `.weight`; those that it leaves out are not measured.
        tokens: stop reading after this many.
        stop: asked before each text; true ends the measurement early.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    mapped = names(list(layers))
    sums: dict[str, Tensor] = {}
    hooks = []

    def watch(tensor: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            squares = inputs[0].detach().float().flatten(0, -2).square().sum(0)
            sums[tensor] = squares if tensor not in sums else sums[tensor] + squares

        return hook

    head = model.get_output_embeddings()  # type: ignore[operator]
    for name, module in layers.items():
        tensor = HEAD if module is head else f"{mapped[name]}.weight" if name in mapped else None
        if tensor:
            hooks.append(module.register_forward_pre_hook(watch(tensor)))
    seen = 0
    try:
        for ids in texts:
            if seen >= tokens or stop():
                break
            model(input_ids=torch.tensor([list(ids[: tokens - seen])]), use_cache=False)
            seen += min(len(ids), tokens - seen)
    finally:
        for handle in hooks:
            handle.remove()
    matrix = {name: (total / max(seen, 1)).numpy() for name, total in sums.items()}
    if head is not None and HEAD in matrix and _tied(model, head):
        matrix[EMBEDDING] = matrix.pop(HEAD)  # one tensor in the file, and it is the head that multiplies with it
    return matrix, seen


def _tied(model: Any, head: Any) -> bool:
    embedding = model.get_input_embeddings()
    return bool(head.weight is embedding.weight)


def save(matrix: Matrix, path: Path) -> None:
    """Write a matrix as safetensors."""
    save_file(matrix, path)


def read(path: Path) -> Matrix:
    """Read what `save` wrote."""
    return load_file(path)
