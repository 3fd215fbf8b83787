"""An architecture that never went the whole way is tried on the base itself, before anything is trained.

The base has to be converted for the gates anyway. What fails on it would have failed on the tuned model, after training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from agents.gguf_factory import chat, convert, fidelity, gates, llama, lora, packing
from agents.gguf_factory.base import Base
from agents.gguf_factory.chat import Sample
from agents.gguf_factory.job import Job
from agents.gguf_factory.rows import Rows
from agents.gguf_factory.threads import polite
from configs import Tier
from protocol import Code, LabError
from protocol.job import Gate

TALKS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "How many days has May?"}, {"role": "assistant", "content": "It has 31 days."}],
    [{"role": "user", "content": "Warum?\n\n  日本 🙂"}, {"role": "assistant", "content": "Darum: 1, 22, 333."}],
]
"""Short, but with letters, digits, spaces and scripts enough to tell wrong ids or logits by."""

GATES = ("tokenizer_ids", "chat_template", "f16_kl")
CONTEXT = 512


def run(job: Job, base: Base, tier: Tier) -> dict[str, Gate]:
    """Convert the base, compare the file with torch, and return the gates that can be measured already.

    Raises:
        LabError: TOOLCHAIN, the converter or llama.cpp does not take the base; CONFIGURATION, as `check_training`;
            GATE_MISSED, the file says something else than the base.
        Stopped: a stop was asked for.
    """
    job.progress(note=f"trying {base.architecture} on the base itself")
    file = convert.convert_base(base.folder, job.home, stop=job.stop)
    tokenizer = chat.load(base.folder)
    renders = [chat.render(tokenizer, talk) for talk in TALKS]
    with llama.load(file, n_ctx=CONTEXT, exact=True) as model, polite():
        measured = {
            "tokenizer_ids": fidelity.tokenizer_ids(tokenizer, model, renders),
            "chat_template": fidelity.chat_template(tokenizer, model, TALKS),
        }
        samples = [sample for talk in TALKS for sample in chat.samples(tokenizer, talk, CONTEXT // len(TALKS))]
        network = lora.load_base(base.folder).eval()
        divergence, _, tokens = fidelity.mean_divergences(network, model, None, [sample.ids for sample in samples])
        check_training(network, samples)
    measured["f16_kl"] = gates.Measured(divergence, f"{tokens} tokens of the base")
    rules = {name: rule for name, rule in tier.gates.items() if name in GATES}
    judged = gates.judge(measured, rules)
    if error := gates.verdict(judged):
        error.message = f"Before training, on the base itself ({base.architecture}): {error.message}"
        raise error
    return judged


def check_training(model: PreTrainedModel, samples: Sequence[Sample]) -> None:
    """Put an adapter on a model and compare what training computes with what the model itself does.

    Raises:
        LabError: CONFIGURATION, there is no layer that an adapter could learn in, the head does something unknown, or
            samples cannot share a row.
    """
    packed = packing.pack(samples, sum(len(sample.ids) for sample in samples), 0)
    arrays = (torch.from_numpy(array) for array in (packed.input_ids, packed.labels, packed.position_ids))
    batch = Rows(*arrays).take([0])
    try:
        network = lora.Network(model, rank=1, alpha=1, dropout=0.0, seed=0)
        network.check_head(batch)
        network.check_apart(batch)
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        # whatever a network of a foreign form raises at a mask or at packed positions
        raise LabError(
            Code.CONFIGURATION, f"the base model ({model.config.model_type}) cannot be trained on rows of several samples: {error}.",
            advice="Choose a base such as those of docs/bases.md.", field="base",
        ) from error  # fmt: skip
