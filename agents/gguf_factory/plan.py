"""Whether a job can work and what it will take, found out before anything is reserved. Imports no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import configs
from agents.gguf_factory import base as bases
from agents.gguf_factory import chat, data, machine, packing, sizes, storage, support, targets
from agents.gguf_factory.base import Base
from agents.gguf_factory.dataset import Row
from agents.gguf_factory.fingerprint import fingerprint, key
from agents.gguf_factory.hashes import Hashes
from agents.gguf_factory.job import Job, StageResult
from agents.gguf_factory.light import LightTokenizer
from agents.gguf_factory.targets import Choice
from configs import Parameters, Storage, Tier
from configs.tiers import terms
from protocol import Code, LabError
from protocol.job import Plan, PlanRequest, Route, Stage, TrainRequest

FLOPS_PER_TOKEN = 4  # times the weights: LoRA needs the forward pass and the gradient of activations, not of weights
EFFICIENCY = 0.3  # of the probe's rate that a training step reached on two shared cores (15 % with TRL, 30 % packed)
FIXED_S = 60.0  # imports, conversion, gates; a guess, which the first finished job replaces
UNSURE = 2.5  # P90 ÷ P50 while no job has finished here: shared cores alone vary by ±25 %, the guesses do the rest
LEAST_SPREAD = 1.3  # P90 ÷ P50 at least, when few finished jobs happen to agree
PROCESS_BYTES = 700_000_000  # an idle Python with torch and transformers
SLACK_BYTES = 64_000_000  # log, packed rows, adapter and its checkpoints of a small job
PROBE = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]


@dataclass(frozen=True)
class Known:
    """What somebody has found out about a request's data already: its rows, and what they take."""

    source: data.Source
    train: data.Sizes
    held_out: data.Sizes


def plan(
    request: PlanRequest,
    home: Path,
    tiers: Mapping[str, Tier] | None = None,
    limits: Storage | None = None,
    known: Known | None = None,
) -> Plan:
    """Check a request and predict size, space, memory and time.

    Args:
        request: the routed request.
        home: MEETARA_HOME, for free space and for what earlier jobs took.
        tiers: configs' tiers; None: read from configs/.
        limits: how large the parts of the home may become; None: read from configs/.
        known: the request's data by the same tokenizer and length; None: read and encoded here.

    Raises:
        LabError: INVALID_PARAMS, NOT_FOUND (base), BAD_DATA (data set or base), NO_SPACE, NO_CAPACITY; each names the
            field or the file.
    """
    tiers = tiers or configs.load().tiers
    chosen = parameters(request.request, request.route, tiers)
    base = bases.read(bases.resolve(request.route.base))
    notes = support.check(base)
    chosen, choice = fitted(base, chosen, request.request.profile, tiers[request.route.tier])
    tokenizer = checked_tokenizer(base)
    length = chosen.sequence_length
    context = base.config.get("max_position_embeddings")
    if context and length > context:
        raise LabError(
            Code.INVALID_PARAMS, f"parameters.sequence_length is {length}, but the base reads at most {context} tokens.",
            advice=f"Give at most {context}.", field="parameters.sequence_length",
        )  # fmt: skip
    source = known.source if known else data.source(request.request)
    refuse_markers(source.train.uri, "dataset", source.rows.train, base)
    held_out_uri = source.evaluation.uri if source.evaluation else source.train.uri
    held_out_field = "eval_dataset" if source.evaluation else "dataset"
    refuse_markers(held_out_uri, held_out_field, source.rows.held_out, base)
    if known:
        train, held_out = known.train, known.held_out
    else:
        train = data.sizes(tokenizer, source.rows.train, length, source.train.uri)
        held_out = data.sizes(tokenizer, source.rows.held_out, length, held_out_uri, held_out_field)
    train, held_out = data.fitting(train, length, "training"), data.fitting(held_out, length, "held-out")
    rows = len(packing.bins(train.lengths, length))
    steps = optimiser_steps(rows, train.tokens, chosen)
    weights = base.parameters
    model_bytes = sizes.file_bytes(
        {**base.config, "tie_word_embeddings": base.tied},
        sizes.vocabulary_bytes(base.folder, base.config["vocab_size"], base.template), chosen.quantisation,
    )  # fmt: skip
    predicted = uncalibrated_seconds(weights, steps, chosen, machine.flops(home))
    p50, p90 = _quantiles(predicted, machine.calibration(machine.finished(home), str(base.folder)))
    result = Plan(
        terms=terms(tiers[request.route.tier]) if request.elsewhere else None,
        rows=len(source.rows.train), held_out_rows=len(source.rows.held_out), tokens=train.tokens, steps=steps,
        parameters={**chosen.model_dump(), **source.digests},
        base_parameters=weights, file_bytes=choice.bytes if choice else model_bytes,
        base_file_bytes=model_bytes if choice else None,
        disk_bytes=disk_bytes(weights, model_bytes, choice.bytes if choice else None, base, chosen),
        memory_bytes=training_memory(base, chosen), working_bytes=working_memory(base, chosen),
        trained_tokens=computed_tokens(steps, chosen), seconds_p50=p50, seconds_p90=p90,
        warnings=[*notes, *(choice.notes if choice else []), *_padding(base, tokenizer), *_warnings(source, train, held_out)],
    )  # fmt: skip
    try:
        check_machine(result, home)
        storage.check(result, home, limits or configs.load().storage, request.job)
    except LabError as error:
        if not request.elsewhere or error.code not in (Code.NO_SPACE, Code.NO_CAPACITY):
            raise
        return result.model_copy(update={"not_here": str(error)})
    return result


def parameters(request: TrainRequest, route: Route, tiers: Mapping[str, Tier]) -> Parameters:
    """Return the tier's parameters with the request's own values.

    Raises:
        LabError: INVALID_PARAMS, naming the field.
    """
    if route.tier not in tiers:
        raise LabError(
            Code.INVALID_PARAMS, f"The tier {route.tier} is not in this factory's configs.",
            advice=f"Known are {', '.join(tiers)}.", field="tier",
        )  # fmt: skip
    chosen = tiers[route.tier].parameters.overridden(request.parameters)
    if request.quantisation is None:
        return chosen
    try:
        return chosen.overridden({"quantisation": request.quantisation})
    except LabError as error:
        raise LabError(
            Code.INVALID_PARAMS, error.message.removeprefix("parameters."), advice=error.advice, field="quantisation"
        ) from error


def fitted(base: Base, chosen: Parameters, profile: str, tier: Tier) -> tuple[Parameters, Choice | None]:
    """Return the parameters with an adapter's layers and rank chosen for its size, and that choice; edge: None.

    Raises:
        LabError: INVALID_PARAMS with field `parameters.lora_targets`, or with `base` where no adapter is small enough.
    """
    linear = targets.modules(base.shapes)
    if profile != "adapter":
        targets.select(linear, chosen.lora_targets)
        return chosen, None
    choice = targets.choose(linear, chosen.lora_targets, chosen.lora_r, tier.gates_of(profile)["file_bytes"].threshold)
    alpha = chosen.lora_alpha * choice.rank / chosen.lora_r
    return chosen.overridden({"lora_targets": choice.spec, "lora_r": choice.rank, "lora_alpha": alpha}), choice


def checked_tokenizer(base: Base) -> LightTokenizer:
    """Load the base's tokenizer and try its chat template.

    Raises:
        LabError: BAD_DATA with field `base`: unreadable, larger than the embedding, or answers without an end.
    """
    tokenizer = LightTokenizer(base)
    if tokenizer.size > base.config["vocab_size"]:
        raise LabError(
            Code.BAD_DATA, f"The tokenizer in {base.folder} has {tokenizer.size} tokens, "
            f"but the model's embedding only {base.config['vocab_size']}.",
            advice="Tokens were added without the model; use the tokenizer that belongs to it.",
            field="base", file=str(base.folder),
        )  # fmt: skip
    sample = chat.samples(tokenizer, PROBE, 1024)[0]
    support.check_stop(base, [number for number, mark in zip(sample.ids, sample.supervised, strict=True) if mark][-1])
    return tokenizer


def refuse_markers(uri: str, field: str, rows: Iterable[Row], base: Base) -> None:
    """Refuse rows whose text holds the base's own chat markers: they would end or forge a turn.

    Raises:
        LabError: BAD_DATA with file and line.
    """
    markers = markers_of(base)
    pattern = re.compile("|".join(map(re.escape, markers)) or "(?!)")
    hits = [
        (row.line, found) for row in rows
        for found in sorted({match for turn in row.messages for match in pattern.findall(turn["content"])})
    ]  # fmt: skip
    if hits:
        listed = ", ".join(f"line {line} ({marker})" for line, marker in hits[:5])
        raise LabError(
            Code.BAD_DATA, f"The data set {uri} has text with the base's own chat markers: {listed}.",
            advice="Remove the markers; the factory writes them itself.", field=field, file=uri, line=hits[0][0],
        )  # fmt: skip


def markers_of(base: Base) -> list[str]:
    """Return the special tokens that the base's chat template is made of, and those that end a turn."""
    extra = base.tokenizer_config.get("additional_special_tokens") or []
    added = (base.tokenizer_config.get("added_tokens_decoder") or {}).values()
    named = [item["content"] if isinstance(item, dict) else item for item in extra]
    named += [item["content"] for item in added if item.get("special")]
    ends = {base.token("eos_token"), *(base.text(number) for number in base.end_ids)}
    return sorted({name for name in [*named, *ends] if name and (name in ends or name in base.template or name[:2] == "<|")})


def _padding(base: Base, tokenizer: LightTokenizer) -> Iterable[str]:
    pad = base.token("pad_token")
    if pad is None or pad == base.token("eos_token"):
        what = "has no pad_token" if pad is None else f"uses {pad} both as pad_token and as eos_token"
        number = chat.filler(None, chat.ends(tokenizer))
        yield f"The base {what}: rows are filled up with token {number}, which no sample sees and nothing learns."


def optimiser_steps(rows: int, tokens: int, chosen: Parameters) -> int:
    """Return the steps until the first limit, at least one.

    Rows count as equally full, so `max_tokens` may end the real training a step earlier or later.
    """
    limits: list[float] = [chosen.max_steps or math.inf]
    if chosen.max_epochs is not None:
        limits.append(math.ceil(max(1, round(chosen.max_epochs * rows)) / chosen.batch_size))
    if chosen.max_tokens is not None:
        limits.append(max(1, int(chosen.max_tokens / (tokens / rows * chosen.batch_size))))
    return int(min(limits))


def uncalibrated_seconds(weights: int, steps: int, chosen: Parameters, flops: float) -> float:
    """Predict a job's seconds by arithmetic alone: coarse, right within a factor of three.

    It knows nothing of attention, of other work on the machine, or of a GPU; finished jobs correct it.
    """
    return FIXED_S + FLOPS_PER_TOKEN * weights * computed_tokens(steps, chosen) / (flops * EFFICIENCY)


def computed_tokens(steps: int, chosen: Parameters) -> int:
    """Return the places that all steps compute, those of the control training too; packed rows are nearly full."""
    return math.ceil(steps * chosen.batch_size * chosen.sequence_length * (1 + chosen.control_share))


def _quantiles(predicted: float, found: tuple[float, float] | None) -> tuple[float, float]:
    if found is None:
        return predicted, predicted * UNSURE
    median, ninetieth = found
    return predicted * median, predicted * max(ninetieth, median * LEAST_SPREAD)


def adapter_weights(base: Base, chosen: Parameters) -> int:
    """Return the LoRA's weights: rank × (in + out) of each layer that learns."""
    return targets.weights(targets.select(targets.modules(base.shapes), chosen.lora_targets), chosen.lora_r)


def disk_bytes(weights: int, model_bytes: int | None, adapter_bytes: int | None, base: Base, chosen: Parameters) -> int:
    """Predict the bytes under the home: F16 files, the result and its published copy, the checkpoints.

    Args:
        weights: of the base.
        model_bytes: the quantised model, or the base that an adapter shares; None, not predicted: counts as large as in F16.
        adapter_bytes: the adapter's file; None for a merged model.
        base, chosen: what the checkpoints depend on.
    """
    model_bytes = model_bytes or 2 * weights
    checkpoints = 2 * 3 * 4 * adapter_weights(base, chosen)  # two of them, weights and two moments
    if adapter_bytes is not None:
        return 2 * weights + model_bytes + 2 * adapter_bytes + checkpoints + SLACK_BYTES
    merged = 4 * weights  # 32-bit at most
    f16 = 2 * 2 * weights  # the tuned model's, and the base's that the gates compare with
    return merged + f16 + 2 * model_bytes + checkpoints + SLACK_BYTES


def training_memory(base: Base, chosen: Parameters) -> int:
    """Predict the peak of training in bytes: 32-bit base, what training works with, the process."""
    return PROCESS_BYTES + 4 * base.parameters + working_memory(base, chosen)


def working_memory(base: Base, chosen: Parameters) -> int:
    """Predict the bytes beside base and process: adapter with moments, activations of one row in 32 bits.

    One row, because a step that does not fit is run in smaller parts. Per token and layer, about 16 vectors of the
    model's width and 5 of the feed-forward's are kept for the backward pass, and three of the vocabulary's for the loss.
    """
    config = base.config
    kept: int = config["num_hidden_layers"] * (16 * config["hidden_size"] + 5 * config["intermediate_size"])
    activations: int = 4 * chosen.sequence_length * (kept + 3 * config["vocab_size"])
    return 16 * adapter_weights(base, chosen) + activations


def check_machine(wanted: Plan, home: Path) -> None:
    """Refuse what does not fit this machine.

    Raises:
        LabError: NO_SPACE or NO_CAPACITY with the sums.
    """
    try:
        free = machine.free_bytes(home)
    except ValueError as error:
        raise LabError(
            Code.CONFIGURATION, f"{machine.DISK_LIMIT} is not a whole number of bytes.",
            advice="Correct or unset the environment variable.", field=machine.DISK_LIMIT,
        ) from error  # fmt: skip
    if wanted.disk_bytes > free:
        raise LabError(
            Code.NO_SPACE,
            f"The job needs {_mb(wanted.disk_bytes)} under {home}, but only {_mb(free)} may be used there.",
            advice=f"Free {_mb(wanted.disk_bytes - free)}, or set MEETARA_HOME to a larger disk"
            f" (or {machine.DISK_LIMIT}, if it is set, to more).",
            needed_bytes=wanted.disk_bytes, free_bytes=free, file=str(home),
        )  # fmt: skip
    memory = machine.memory_bytes()
    if wanted.memory_bytes > memory:
        raise LabError(
            Code.NO_CAPACITY,
            f"Training needs about {_mb(wanted.memory_bytes)} of memory, but this machine has {_mb(memory)}.",
            advice="Choose a smaller base, lower parameters.sequence_length, or a larger machine.",
            needed_bytes=wanted.memory_bytes, memory_bytes=memory,
        )  # fmt: skip


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _warnings(source: data.Source, train: data.Sizes, held_out: data.Sizes) -> Iterable[str]:
    if source.train.duplicates:
        yield f"{source.train.duplicates} rows of the data set are exact duplicates and were dropped."
    if source.rows.withheld:
        yield f"{source.rows.withheld} training rows were removed because their question or answer is in the evaluation."
    if source.rows.unused:
        yield f"{source.rows.unused} evaluation rows are not used; {len(source.rows.held_out)} are enough to measure by."
    for name, encoded in (("training", train), ("held-out", held_out)):
        if encoded.truncated:
            yield f"{encoded.truncated} {name} answers are longer than sequence_length and lose their end."
        if encoded.skipped:
            yield f"{encoded.skipped} {name} answers have a question that fills sequence_length and were left out."
        if encoded.continued:
            yield f"{encoded.continued} times a {name} conversation is cut between turns and goes on in a further sample."


def run(job: Job) -> StageResult:
    """Check again where the job really runs, and keep the plan: the base may be gone, the disk fuller.

    A base of an architecture that never went the whole way is tried here, while nothing is trained yet (`trial`).

    Raises:
        LabError: as `plan`, for base and machine; as `trial.run`.
        Stopped: a stop was asked for.
    """
    base = bases.read(job.base)
    support.check(base)
    checked_tokenizer(base)
    lab = configs.load()
    check_machine(job.run.plan, job.home)
    storage.check(job.run.plan, job.home, lab.storage, job.run.job)
    tried: dict[str, float | None] | None = None
    if base.architecture not in support.PROVEN:
        from agents.gguf_factory import trial  # torch, which a plan for a proven base does without

        tried = {name: gate.value for name, gate in trial.run(job, base, lab.tiers[job.run.route.tier]).items()}
    file = job.path(Stage.PLAN, "plan.json")
    file.write_text(json.dumps(job.run.plan.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    chosen = Parameters(**{name: value for name, value in job.parameters.items() if name in Parameters.model_fields})
    predicted = uncalibrated_seconds(base.parameters, job.run.plan.steps, chosen, machine.flops(job.home))
    made_from = fingerprint(job.run.request, job.run.route, lab.tiers, Hashes(job.home), job.parameters)
    return StageResult(
        files=[file],
        results={
            "base": str(base.folder), "uncalibrated_seconds": predicted, "fingerprint": key(made_from), "trial": tried,
        },
    )
