"""A contestant of `benchmarks.training` as a process: `python -m benchmarks.finetune lab|trl FOLDER`.

Each line of its input is a task as JSON, each line of its output that task's result. The folder holds the packed rows
of the data stage; what is one sample there is one sample for TRL, with the same labels.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from agents.gguf_factory.loop import Loop, Settings
from agents.gguf_factory.lora import Network, load_base, targets
from agents.gguf_factory.rows import IGNORED, Rows, Schedule
from benchmarks.result import PROJECT

BASE = PROJECT / "models" / "starter"
RANK, ALPHA, RATE, DECAY, BATCH, SEED = (
    8,
    16,
    1e-3,
    0.01,
    6,
    42,
)  # of configs/proven_parameters.json and the starter tier
ADAPTER = "adapter"


def network(dropout: float) -> Network:
    return Network(load_base(BASE), rank=RANK, alpha=ALPHA, dropout=dropout, seed=SEED)


def speed(marks: list[tuple[float, int]]) -> float:
    """Return tokens per second between the ends of the first and the last step: memory and code are warm by then."""
    (began, before), (ended, after) = marks[0], marks[-1]
    return (after - before) / (ended - began)


class Lab:
    """The factory's own loop."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, Rows.load(folder / "packed.safetensors")

    def train(self, steps: int, dropout: float, flat: bool = True) -> float:
        """Return real tokens per second; without `flat`, by peft on packed rows as for any other architecture."""
        schedule = Schedule.plan(
            self.rows.tokens, batch=BATCH, max_steps=steps, max_epochs=None, max_tokens=None, warmup_steps=10,
            decay="cosine", seed=SEED,
        )  # fmt: skip
        marks: list[tuple[float, int]] = []

        class Timed(Loop):
            def step(self) -> None:
                super().step()
                marks.append((time.perf_counter(), self.history.tokens))

        net = network(dropout)
        if not flat:
            net.flat = None
        place = self.folder / f"run-{time.monotonic_ns()}"
        Timed(net, self.rows, self.rows.first(1), schedule, Settings(RATE, DECAY, BATCH, 10**6, SEED), place).run(set())
        return speed(marks)

    def losses(self, batches: int) -> list[float]:
        """Return nats per label of the first batches, and save the adapter that they were computed with."""
        net = network(0.0)
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for name, parameter in net.parameters.items():
                if "lora_B" in name:  # fresh ones are zero, and would hide an adapter that is not used
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
        net.save(self.folder / ADAPTER, str(BASE))
        net.peft.eval()
        found = []
        with torch.no_grad():
            for rows in self.batches(batches):
                batch = self.rows.take(rows)
                found.append(float(net.loss(batch)) / int(batch.supervised.sum()))
        return found

    @staticmethod
    def batches(count: int) -> list[list[int]]:
        return [list(range(number * BATCH, (number + 1) * BATCH)) for number in range(count)]


class Trl:
    """TRL's SFTTrainer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, Rows.load(folder / "packed.safetensors")

    def samples(self, row: int) -> Iterator[dict[str, list[int]]]:
        """Yield the samples of a packed row."""
        ids, labels, positions = self.rows.input_ids[row], self.rows.labels[row], self.rows.position_ids[row]
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(positions)]
        for start, end in itertools.pairwise(starts):
            if bool((labels[start:end] != IGNORED).any()):
                yield {"input_ids": ids[start:end].tolist(), "labels": labels[start:end].tolist()}

    def trainer(self, model: Any, **options: Any) -> Any:
        from datasets import Dataset
        from transformers import AutoTokenizer
        from trl import SFTConfig, SFTTrainer

        config = SFTConfig(
            output_dir=str(self.folder / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no",
            report_to="none", disable_tqdm=True, dataloader_pin_memory=False, learning_rate=RATE, weight_decay=DECAY,
            warmup_steps=10, lr_scheduler_type="cosine", max_length=self.rows.input_ids.shape[1], seed=SEED,
            **options,
        )  # fmt: skip
        everything = [sample for row in range(len(self.rows)) for sample in self.samples(row)]
        return SFTTrainer(
            model=model, args=config, train_dataset=Dataset.from_list(everything),
            processing_class=AutoTokenizer.from_pretrained(str(BASE), local_files_only=True),
        )  # fmt: skip

    def train(self, steps: int, dropout: float, **options: Any) -> float:
        """Return real tokens per second in a configuration, by TRL's own count."""
        from peft import LoraConfig, get_peft_model
        from transformers import TrainerCallback

        marks: list[tuple[float, int]] = []

        class Timed(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                marks.append((time.perf_counter(), int(trainer._total_train_tokens)))

        base = load_base(BASE)
        config = LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=targets(base), task_type="CAUSAL_LM"
        )
        trainer = self.trainer(get_peft_model(base, config), max_steps=steps, **options)
        trainer.add_callback(Timed())
        trainer.train()
        return speed(marks)

    def losses(self, batches: int) -> list[float]:
        """Return nats per label of the lab's batches, with the adapter that it saved, padded by TRL's collator."""
        from peft import PeftModel

        model = PeftModel.from_pretrained(load_base(BASE), str(self.folder / ADAPTER), is_trainable=True)
        trainer = self.trainer(model, max_steps=1)
        trainer.model.eval()
        found = []
        with torch.no_grad():
            for rows in Lab.batches(batches):
                inputs = trainer.data_collator([sample for row in rows for sample in self.samples(row)])
                found.append(float(trainer.compute_loss(trainer.model, inputs)))
        return found


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # trainers print
    warnings.simplefilter("ignore")
    contestant: Any = Lab(folder) if name == "lab" else Trl(folder)
    with contextlib.suppress(BrokenPipeError):
        for line in sys.stdin:
            task = json.loads(line)
            result = getattr(contestant, task.pop("do"))(**task)
            print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
