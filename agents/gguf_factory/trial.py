"""An architecture that never went the whole way is tried on the base itself, before anything is trained.

The base has to be converted for the gates anyway. What fails on it would have failed on the tuned model, after training.
"""

from __future__ import annotations

from agents.gguf_factory import chat, convert, fidelity, gates, llama, lora
from agents.gguf_factory.base import Base
from agents.gguf_factory.job import Job
from agents.gguf_factory.threads import polite
from configs import Tier
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
        LabError: TOOLCHAIN, the converter or llama.cpp does not take the base; CONFIGURATION, it has no layers that an
            adapter could learn in; GATE_MISSED, the file says something else than the base.
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
        texts = [chat.encode(tokenizer, talk)[0][:CONTEXT] for talk in TALKS]
        network = lora.load_base(base.folder).eval()
        lora.targets(network)
        divergence, _, tokens = fidelity.mean_divergences(network, model, None, texts)
    measured["f16_kl"] = gates.Measured(divergence, f"{tokens} tokens of the base")
    rules = {name: rule for name, rule in tier.gates.items() if name in GATES}
    judged = gates.judge(measured, rules)
    if error := gates.verdict(judged):
        error.message = f"Before training, on the base itself ({base.architecture}): {error.message}"
        raise error
    return judged
