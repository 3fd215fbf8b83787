"""A causal language model with LoRA on every linear layer of attention and MLP, and its loss over packed rows.

The adapter is peft's, so its file is what everyone reads. On the CPU the Llama family is computed by `flat`; every
other model, and everything on a GPU, by transformers and peft themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from agents.gguf_factory.abreast import Abreast
from agents.gguf_factory.flat import ADAPTER, Decoder
from agents.gguf_factory.rows import Batch
from agents.gguf_factory.targets import ALL, Module, select
from protocol import Code, LabError

CHUNK = 1024  # rows of logits alive at once: with 8,192 tokens 33 MB, with 152,000 tokens 620 MB


def load_base(folder: Path, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a base model for training or merging.

    torch's fused attention cannot cap its scores as Gemma 2 does, and some architectures have it not: those compute
    attention step by step.

    Raises:
        LabError: CONFIGURATION, the folder does not hold a causal language model in transformers' format.
    """
    try:
        config: Any = AutoConfig.from_pretrained(folder)
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
        fused = getattr(kind, "_supports_sdpa", True) and not getattr(config, "attn_logit_softcapping", None)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, attn_implementation="sdpa" if fused else "eager"
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise LabError(
            Code.CONFIGURATION,
            f"the base model in {folder} cannot be loaded: {error}.",
            advice="Give a folder with config.json and safetensors of a causal language model.",
            field="base",
        ) from error
    model.config.use_cache = False
    placed: PreTrainedModel = model.to(device or torch.device("cpu"))
    return placed


def targets(model: PreTrainedModel, spec: str = ALL) -> list[str]:
    """Return the linear layers that are to learn, never the head: by their last names where it is all of them.

    Args:
        model: the base.
        spec: parameter `lora_targets`; see `targets.select`.

    Raises:
        LabError: CONFIGURATION, the model has no linear layers; INVALID_PARAMS, none of that name.
    """
    head = model.get_output_embeddings()
    linear = [
        Module(name, module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    names = {module.leaf if spec == ALL else module.name for module in select(linear, spec)} if linear else set()
    if not names:
        raise LabError(
            Code.CONFIGURATION,
            f"the base model ({model.config.model_type}) has no linear layers that LoRA could adapt.",
            advice="Choose a base such as the starter base or Qwen3.",
            field="base",
        )
    return sorted(names)


def masks(config: Any, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor | dict[str, Tensor]:
    """Return the attention mask of a batch, or one for each kind of layer where some see only a window.

    A mask that is given is used by transformers as it is, so the window has to be in it.
    """
    window = getattr(config, "sliding_window", None)
    if not window or batch.input_ids.shape[1] <= window or getattr(config, "use_sliding_window", True) is False:
        return batch.mask(dtype)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return batch.mask(dtype, window)
    return {kind: batch.mask(dtype, window if kind == "sliding_attention" else None) for kind in sorted(set(kinds))}


@dataclass(frozen=True)
class Head:
    """What a head does beside multiplying: logits are scaled (Granite, Cohere), then capped (Gemma 2)."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> Head:
        divisor = getattr(config, "logits_scaling", None) or 1.0
        factor = getattr(config, "logit_scale", None) or 1.0
        return cls(factor / divisor, getattr(config, "final_logit_softcapping", None))

    def __call__(self, logits: Tensor) -> Tensor:
        """Return what the model's own logits are, from those of the matrix alone."""
        scaled = logits if self.scale == 1.0 else logits * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)


PLAIN = Head()


class Supervised(torch.autograd.Function):
    """Sum of cross-entropies in nats under a frozen head, in chunks; the gradient comes with the loss, so that no
    logits are kept (the idea of Liger's fused linear cross-entropy, arXiv 2410.10989)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, wanted: Tensor, head: Head = PLAIN) -> Tensor:  # type: ignore[override]
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            logits = head((hidden[part] @ weight.t()).float())
            slope = head.scale if head.cap is None else head.scale * (1 - (logits / head.cap).square())
            normaliser = logits.logsumexp(-1, keepdim=True)
            index = wanted[part].unsqueeze(1)
            total += (normaliser - logits.gather(1, index)).sum()
            if gradient is not None:
                logits.sub_(normaliser).exp_().scatter_add_(1, index, logits.new_full(index.shape, -1.0))
                if head is not PLAIN:
                    logits.mul_(slope)
                gradient[part] = logits.to(weight.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None


class Network:
    """A base with a fresh LoRA. `parameters` maps peft's names to the tensors that learn, in a fixed order."""

    def __init__(
        self, base: PreTrainedModel, *, rank: int, alpha: float, dropout: float, seed: int, layers: str = ALL
    ) -> None:
        torch.manual_seed(seed)
        self.config = LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout,  # type: ignore[arg-type]  # peft divides alpha, any number serves
            target_modules=targets(base, layers), bias="none", task_type="CAUSAL_LM",
        )  # fmt: skip
        self.peft: PeftModel = get_peft_model(base, self.config)
        wrapped: Any = self.peft  # transformers and peft leave most of their methods untyped
        self.causal: Any = wrapped.get_base_model()
        self.head = self.causal.get_output_embeddings()
        found = Head.of(self.causal.config)
        self.logits = PLAIN if found == PLAIN else found
        self.parameters = {name: p for name, p in self.peft.named_parameters() if p.requires_grad}
        self.flat: Abreast | None = None
        if self.logits is PLAIN and Decoder.fits(self.causal):
            self.flat = Abreast(self.causal, list(self.parameters.values()), dropout)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.head.weight.device
        return device

    def hidden(self, batch: Batch) -> Tensor:
        """Return the normalised hidden states [supervised positions, width] that predict a batch's labels."""
        return self._states(batch)[:, :-1][batch.supervised]

    def _states(self, batch: Batch) -> Tensor:
        """Return the normalised hidden states [rows, length, width]."""
        states: Tensor = self.causal.get_decoder()(
            input_ids=batch.input_ids,
            attention_mask=masks(self.causal.config, batch, self.head.weight.dtype),
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state
        return states

    def loss(self, batch: Batch) -> Tensor:
        """Return the sum of nats over the supervised tokens of a batch."""
        if self.flat is not None:
            return self.flat.loss(batch, self.peft.training)
        batch = batch.to(self.device)
        return Supervised.apply(self.hidden(batch), self.head.weight, batch.labels[:, 1:][batch.supervised], self.logits)

    @torch.no_grad()
    def check_head(self, batch: Batch) -> None:
        """Compare the loss with the one from the model's own logits, for heads that do more than multiply.

        A flat path that is wrong for this model is put aside.

        Raises:
            LabError: CONFIGURATION, the head has a bias, or does something else that `Head` does not know.
        """
        self.peft.eval()
        batch = batch.to(self.device)
        logits = self.causal(
            input_ids=batch.input_ids, attention_mask=masks(self.causal.config, batch, self.head.weight.dtype),
            position_ids=batch.position_ids, use_cache=False,
        ).logits[:, :-1][batch.supervised].float()  # fmt: skip
        wanted = float(F.cross_entropy(logits, batch.labels[:, 1:][batch.supervised], reduction="sum"))
        tolerance = (1e-3 if self.head.weight.dtype == torch.float32 else 2e-2) * max(1.0, abs(wanted))
        if self.flat is not None and not abs(float(self.loss(batch)) - wanted) <= tolerance:
            self.flat = None
        got = float(self.loss(batch))
        if not abs(got - wanted) <= tolerance:
            raise LabError(
                Code.CONFIGURATION,
                f"the head of the base model ({self.causal.config.model_type}) does more than multiply: the loss is "
                f"{wanted:.4f} by the model's own logits and {got:.4f} by its matrix.",
                advice="Choose a base whose head multiplies, scales or caps, such as those of docs/bases.md.",
                field="base",
            )

    @torch.no_grad()
    def check_apart(self, batch: Batch) -> None:
        """Compare the last sample of a row with the same sample in a row of its own, where the row has several.

        Raises:
            LabError: CONFIGURATION, the architecture lets a token see more than its own sample.
        """
        starts = (batch.position_ids[0] == 0).nonzero().flatten().tolist()
        if len(starts) < 2:
            return
        self.peft.eval()
        row, last = slice(0, 1), slice(starts[-1], None)
        packed = Batch(batch.input_ids[row], batch.labels[row], batch.position_ids[row], batch.tokens).to(self.device)
        alone = Batch(packed.input_ids[:, last], packed.labels[:, last], packed.position_ids[:, last], batch.tokens)
        ours, theirs = self._states(packed)[:, last].float(), self._states(alone).float()
        tolerance = (1e-3 if self.head.weight.dtype == torch.float32 else 5e-2) * max(1.0, float(theirs.abs().max()))
        if not float((ours - theirs).abs().max()) <= tolerance:
            raise LabError(
                Code.CONFIGURATION,
                f"the base model ({self.causal.config.model_type}) does not keep the samples of a row apart.",
                advice="Choose a base with attention in every layer, such as those of docs/bases.md.",
                field="base",
            )

    def save(self, folder: Path, base_name: str) -> list[Path]:
        """Write adapter_model.safetensors and adapter_config.json; the config names the base as `base_name`."""
        self.peft.peft_config[ADAPTER].base_model_name_or_path = base_name
        self.peft.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card; publish writes the real one
        return [folder / "adapter_model.safetensors", folder / "adapter_config.json"]
