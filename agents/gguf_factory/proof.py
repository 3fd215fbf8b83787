"""The gates on any GGUF, also one that was made elsewhere.

    python -m agents.gguf_factory.proof FILE --base FOLDER_OR_NAME --data FILE [--train-data FILE] [--model FOLDER]
                                        [--f16 FILE] [--tier TIER] [--only GATE,GATE] [--general FILE]

Writes JSON lines: any number of {"progress": …}, then one {"report": …} or {"error": …}. Exit code 0 all passed, 1 a gate
was missed, 2 something cannot be read, 130 stopped by SIGINT or SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import configs
from agents.gguf_factory import adapter, convert, dataset, gates, lines, quantise, shared_base, split, toolchain
from agents.gguf_factory import base as bases
from agents.gguf_factory.formats import Messages
from agents.gguf_factory.gates import Measured
from agents.gguf_factory.gguf_header import Header, read_header
from agents.gguf_factory.job import MANIFEST, never, silent
from agents.gguf_factory.measure import SAMPLES, Measurement
from agents.gguf_factory.subject import GENERAL, ModelFile, Subject
from configs import GATES, GateRule, Tier
from protocol import Code, LabError

NOT_GIVEN = "training is not known: no manifest.json of this file lies beside it"


@dataclass(frozen=True)
class Request:
    """What a person asked to have proven.

    Args:
        file: the GGUF; an adapter is measured on its base, quantised as it was trained for.
        base: folder or hub name of the model that it was tuned from.
        data: conversations that it was never trained on.
        train_data: conversations that it was trained on.
        model: the tuned model in transformers' format, or its adapter in peft's.
        f16: the tuned model as an F16 GGUF.
        tier: whose thresholds count; None: the tier with this base, else the default one.
        only: gates to measure; empty: all.
        general: text for the forgetting gate.
    """

    file: Path
    base: str
    data: str
    train_data: str | None = None
    model: Path | None = None
    f16: Path | None = None
    tier: str | None = None
    only: tuple[str, ...] = ()
    general: Path = GENERAL


def prove(
    request: Request, home: Path, *, stop: Callable[[], bool] = never, progress: Callable[..., None] = silent
) -> dict[str, Any]:
    """Measure and judge every gate that can be measured with what was given.

    Returns:
        file, sha256, bytes, tier, ok, gates (name to value, threshold, ok, level, detail), advice (of missed gates),
        results and seconds.

    Raises:
        LabError: NOT_FOUND, BAD_DATA, TOOLCHAIN or INVALID_PARAMS; which file or option cannot be used.
        Stopped: a stop was asked for; nothing is left behind.
    """
    header = read_header(request.file)
    base = bases.resolve(request.base)
    name, wanted = rules(request, base, "adapter" if adapter.is_adapter(header) else "edge")
    held_out, train, removed = conversations(request.data, request.train_data)
    progress(note="reading the file")
    sha256 = convert.file_sha256(request.file)
    facts = beside(request.file)
    with (
        tempfile.TemporaryDirectory(prefix="meetara-validate-") as folder,
        _tuned(request, header, base, Path(folder), stop, progress) as (exact, model),
    ):
        subject = Subject(
            product=ModelFile(request.file),
            tokenizer_folder=_tokenizer(request.model, base),
            base=lambda: ModelFile(convert.convert_base(base, home, stop=stop)),
            held_out=held_out,
            train=train,
            exact=ModelFile(exact) if exact else None,
            network=(lambda: load_tuned(model, base)) if model else None,
            kind=quantise.kind(header),
            sha256=facts.get("file", {}).get("sha256"),
            lesson=_lesson(facts, sha256),
            general=request.general,
        )
        if adapter.is_adapter(header):
            kind = str(header.values.get(adapter.BASE_QUANTISATION, quantise.DEFAULT))
            shared = ModelFile(shared_base.ensure(base, home, kind, stop=stop, progress=progress)[0])
            subject.product, subject.base, subject.kind = ModelFile(shared.path, request.file), lambda: shared, kind
            subject.exact = ModelFile(convert.convert_base(base, home, stop=stop), request.file)
        state = Measurement(subject, wanted, Path(folder), stop, progress, samples=0 if request.only else SAMPLES)
        state.run()
    judged = gates.judge(state.measured, wanted)
    missed = gates.missed(judged)
    if removed:
        state.results["held_out_also_trained"] = removed
    return {
        "file": str(request.file), "sha256": sha256, "bytes": request.file.stat().st_size, "tier": name,
        "base": request.base, "ok": not missed,
        "gates": {name: gate.model_dump(mode="json") for name, gate in judged.items() if gate.level != "off"},
        "advice": {name: gates.ADVICE[name] for name in [*missed, *gates.missed(judged, "warn")]},
        "results": state.results, "seconds": state.seconds,
    }  # fmt: skip


def _tokenizer(model: Path | None, base: Path) -> Path:
    return model if model is not None and (model / "tokenizer_config.json").is_file() else base


def rules(request: Request, base: Path, profile: str) -> tuple[str, dict[str, GateRule]]:
    """Return the tier's name and the rules of the gates that are to be measured.

    Raises:
        LabError: INVALID_PARAMS, there is no such tier, or a gate of `only` is unknown or off in it.
    """
    config = configs.load()
    tier = _tier(request.tier, base, config.tiers, config.default_tier)
    known = tier.gates_of(profile)
    for name in request.only:
        rule = known.get(name)
        if rule is None or rule.level == "off":
            why = "no gate has this name" if rule is None else f"the gate is off in the tier {tier.name}"
            raise LabError(
                Code.INVALID_PARAMS, f"{name}: {why}.",
                advice=f"Known are {', '.join(gate for gate in GATES if known[gate].level != 'off')}.", field="only",
            )  # fmt: skip
    return tier.name, {name: rule for name, rule in known.items() if not request.only or name in request.only}


def _tier(name: str | None, base: Path, tiers: Mapping[str, Tier], default: str | None) -> Tier:
    if name is not None:
        if name not in tiers:
            raise LabError(
                Code.INVALID_PARAMS, f"there is no tier {name}.", advice=f"Known are {', '.join(tiers)}.", field="tier"
            )
        return tiers[name]
    own = next((tier for tier in tiers.values() if Path(tier.base) == base), None)
    return own or tiers[default or next(iter(tiers))]


def conversations(data: str, train_data: str | None) -> tuple[list[Messages], list[Messages], int]:
    """Read what is measured on: held-out rows without those that were trained on, and training rows.

    Returns:
        The held-out conversations (at most as many as a job holds out), the training conversations, and how many
        held-out rows were left out because they stand among the training rows.

    Raises:
        LabError: BAD_DATA, a file cannot be used or no held-out row is left.
    """
    rows = dataset.read(data).rows
    train = dataset.read(train_data, "train_data").rows if train_data else []
    known = {split.normalise(row.question) for row in train}
    kept = [row for row in rows if split.normalise(row.question) not in known]
    if not kept:
        raise LabError(
            Code.BAD_DATA, f"every row of {data} also stands in {train_data}: nothing is left that was not trained on.",
            advice="Give rows that were kept apart from training.", field="dataset", file=data,
        )  # fmt: skip
    chosen = {id(row) for row in sorted(kept, key=lambda row: split.fraction(row.question))[: split.MOST]}
    return [row.messages for row in kept if id(row) in chosen], [row.messages for row in train], len(rows) - len(kept)


def beside(file: Path) -> dict[str, Any]:
    """Return the manifest of a published file that lies beside it, or nothing where there is none of this file."""
    for path in sorted(file.parent.glob("manifest*.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if facts["file"]["name"] == file.name:
                return dict(facts)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another program's manifest
    return {}


def _lesson(facts: Mapping[str, Any], sha256: str) -> Measured:
    lesson = (facts.get("results", {}).get("train") or {}).get("lesson")
    if not facts or facts["file"]["sha256"] != sha256:
        return Measured(None, NOT_GIVEN, given=False)
    if lesson is None:
        return Measured(None, f"{MANIFEST} tells of no training on shuffled answers", given=False)
    return Measured(float(lesson["percent"]), f"from {MANIFEST} beside the file")


@contextmanager
def _tuned(
    request: Request, header: Header, base: Path, folder: Path, stop: Callable[[], bool], progress: Callable[..., None]
) -> Iterator[tuple[Path | None, Path | None]]:
    """Yield the tuned model as an F16 file and as a folder, as far as they were given or can be made."""
    if request.model is not None and not (request.model / "config.json").is_file() and not _adapter(request.model):
        raise LabError(
            Code.NOT_FOUND, f"{request.model} holds neither config.json nor adapter_config.json.",
            advice="Give the tuned model's folder in transformers' format, or its adapter's in peft's.",
            field="model", file=str(request.model),
        )  # fmt: skip
    if request.f16 is not None:
        read_header(request.f16)
        yield request.f16, request.model
    elif not any(tensor.type not in ("F32", "F16", "BF16") for tensor in header.tensors):
        yield request.file, request.model
    elif request.model is not None:
        progress(note="converting the tuned model to F16")
        source = request.model
        if _adapter(source):
            source = folder / "merged"
            load_tuned(request.model, base).save_pretrained(source)
            for name in convert.TOKENIZER_FILES:
                if name != "config.json" and (base / name).is_file():
                    shutil.copyfile(base / name, source / name)
        target = folder / convert.FILE
        convert.convert(source, target, program=toolchain.converter(), stop=stop)
        yield target, request.model
    else:
        yield None, None


def _adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def load_tuned(folder: Path, base: Path) -> Any:
    """Load a tuned model in torch: a whole one, or a base with peft's adapter merged in."""
    from agents.gguf_factory import lora

    if not _adapter(folder):
        return lora.load_base(folder).eval()
    from peft import PeftModel

    return PeftModel.from_pretrained(lora.load_base(base), str(folder)).merge_and_unload().eval()  # type: ignore[operator]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="proof", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--train-data")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--f16", type=Path)
    parser.add_argument("--tier")
    parser.add_argument("--only", default="")
    parser.add_argument("--general", type=Path, default=GENERAL)
    options = parser.parse_args(arguments)
    only = tuple(filter(None, options.only.split(",")))
    request = Request(**{**vars(options), "only": only})

    def work(home: Path, stop: Callable[[], bool], progress: Callable[..., None]) -> tuple[dict[str, Any], bool]:
        report = prove(request, home, stop=stop, progress=progress)
        return report, bool(report["ok"])

    return lines.run(work)


if __name__ == "__main__":
    raise SystemExit(main())
