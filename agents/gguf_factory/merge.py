"""Stage merge: the adapter goes into the base's weights, in fp32, and the result is proven equal to base + adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor

from agents.gguf_factory.job import Job, StageResult
from agents.gguf_factory.lora import load_base, masks
from agents.gguf_factory.rows import Batch, Rows
from protocol import Code, LabError

TOLERANCE = 1e-4  # largest difference of logits; fp32 rounding gives about 1e-5, a wrong scale or a lost tensor 0.1
CHECKED_ROWS = 2
TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "vocab.json", "merges.txt", "generation_config.json",
)  # fmt: skip
"""What a tokenizer may consist of; transformers 5 keeps the chat template in a file of its own."""


def run(job: Job) -> StageResult:
    """Merge train/adapter into job.base; write merge/model/ (fp32 safetensors with the base's tokenizer).

    Raises:
        LabError: CONFIGURATION, the adapter has what no merge can carry; INTERNAL, the merged logits differ.
    """
    adapter, target = job.path("train", "adapter"), job.path("merge", "model")
    if target.exists():
        shutil.rmtree(target)
    job.progress(note="loading base and adapter")
    model = load_adapted(job.base, adapter)
    modules = check_adapter(adapter)
    held_out = Rows.load(job.path("data", "held_out.safetensors"))
    batches = [held_out.take([row]) for row in range(min(CHECKED_ROWS, len(held_out)))]
    before = [logits(model.get_base_model(), batch) for batch in batches]
    job.progress(note="merging")
    merged = model.merge_and_unload(safe_merge=True)
    after = [logits(merged, batch) for batch in batches]
    worst = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    allowed = TOLERANCE * max(1.0, *(float(values.abs().max()) / 10 for values in before))
    if not worst <= allowed:
        raise LabError(
            Code.INTERNAL, f"the merged model's logits differ from base + adapter by {worst:.2g}, more than {allowed:.2g}.",
            advice="The adapter is untouched; report this with the adapter's configuration.", difference=worst,
        )  # fmt: skip
    target.mkdir(parents=True)
    job.progress(note="writing the merged model")
    merged.save_pretrained(target)
    for name in TOKENIZER_FILES:
        if (job.base / name).is_file():
            shutil.copyfile(job.base / name, target / name)
    return StageResult(
        files=sorted(path for path in target.rglob("*") if path.is_file()),
        results={"max_logit_difference": worst, "modules": len(modules), "adapter_tensors": 2 * len(modules)},
    )


def load_adapted(base: Path, adapter: Path) -> PeftModel:
    """Load base + adapter in torch, not merged.

    Raises:
        LabError: CONFIGURATION, as `check_adapter`; INTERNAL, a tensor of the adapter was not used.
    """
    modules = check_adapter(adapter)
    model = PeftModel.from_pretrained(load_base(base), str(adapter)).eval()
    check_used(model, adapter, sum(isinstance(module, LoraLayer) for module in model.modules()), modules)
    return model


def check_adapter(folder: Path, also: Sequence[str] = ()) -> set[str]:
    """Return the names of the modules that an adapter changes.

    Args:
        folder: adapter_config.json and adapter_model.safetensors, as peft writes them.
        also: further settings that may not be set.

    Raises:
        LabError: CONFIGURATION, the adapter uses DoRA, extra modules or tokens, or its tensors are not pairs.
    """
    settings: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    for name in ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias", *also):
        if settings.get(name):
            raise _unfit(f"sets {name}, which neither a merged file nor a GGUF adapter can carry")
    if settings.get("bias", "none") != "none":
        raise _unfit("trains biases, which a GGUF adapter cannot carry")
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        names = set(file.keys())
    modules = {name.partition(".lora_")[0] for name in names}
    wanted = {f"{module}.lora_{side}.weight" for module in modules for side in "AB"}
    if names != wanted or not modules:
        raise _unfit(f"does not hold one A and one B per module: {sorted(names ^ wanted)[:4]}")
    return modules


def check_used(model: PeftModel, adapter: Path, layers: int, modules: set[str]) -> None:
    """Compare each tensor of the file with the one in the model; peft only warns about those it could not place.

    Raises:
        LabError: INTERNAL, a tensor of the adapter was not used.
    """
    loaded = {name.replace(".default.", "."): tensor for name, tensor in model.named_parameters() if ".lora_" in name}
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        saved = {name: file.get_tensor(name) for name in list(file.keys())}
    lost = [name for name, tensor in saved.items() if name not in loaded or not _equal(loaded[name], tensor)]
    if lost or len(loaded) != 2 * layers or len(modules) != layers:
        raise LabError(
            Code.INTERNAL,
            f"the adapter has {len(modules)} modules, the model took {layers}; not used: {lost[:4]}.",
            advice="The adapter belongs to another base; train it again on this one.",
        )


@torch.no_grad()
def logits(model: Any, batch: Batch) -> Tensor:
    """Return the logits of a batch's supervised positions."""
    states = model.get_decoder()(
        input_ids=batch.input_ids, attention_mask=masks(model.config, batch), position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state
    return model.get_output_embeddings()(states[:, :-1][batch.supervised])


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a.detach().float(), b.float()))


def _unfit(what: str) -> LabError:
    return LabError(
        Code.CONFIGURATION, f"the adapter {what}.", advice="Train a plain LoRA on linear layers.", field="parameters"
    )
