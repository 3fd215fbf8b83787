"""An example of every message: the values are invented, but each is one that its model takes."""

from __future__ import annotations

import types
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

AT = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

VALUES: dict[str, Any] = {
    "job": "sleep-1", "domain": "sleep", "dataset": "file:///data/sleep.jsonl", "tier": "starter",
    "base": "models/starter", "category": "healthcare", "voice": "meditative", "empathy": "high", "quality_floor": 95.0,
    "safety_critical": False, "priority": 1, "digest": SHA256, "sha256": SHA256, "agent": "gguf_factory-1",
    "machine": "gguf_factory-1", "role": "gguf_factory", "version": "0.1.0", "provider": "local", "slots": 1, "free": 0,
    "status": "up", "lease": "018f4c1e-lease", "fence": 7, "attempt": 1, "ttl_s": 30.0, "reservation": "sleep-1:1",
    "amount_micros": 250_000, "price_micros_per_hour": 0, "spent_micros": 1_200_000, "reserved_micros": 250_000,
    "cap_micros": 50_000_000, "percent": 2.9, "threshold": 80, "memory_bytes": 1_500_000_000,
    "disk_bytes": 200_000_000, "disk_free_bytes": 60_000_000_000, "file_bytes": 8_120_000, "cores": 8, "rows": 1200,
    "held_out_rows": 60, "tokens": 96_000, "steps": 600, "step": 120, "loss": 1.93, "tokens_per_s": 1100.0,
    "eta_s": 380.0, "cost_usd": 0.0, "seconds_p50": 480.0, "seconds_p90": 700.0, "base_parameters": 12_300_000,
    "stage": "train", "state": "training", "profile": "edge", "at": AT, "since": AT, "submitted_at": AT,
    "expires_at": AT, "kind": "gguf", "uri": f"file:///home/me/meetara/artefacts/{SHA256}/model.gguf", "bytes": 8_120_000,
    "text": "I cannot fall asleep before two in the morning.", "confidence": 0.83, "domain_confidence": 0.83,
    "primary_domain": "sleep", "domain_category": "healthcare", "routing_strategy": "single_domain",
    "empathy_level": "high", "processing_time_ms": 2.4, "primary_emotion": "sadness", "emotion": "sadness",
    "emotion_confidence": 0.71, "emotion_intensity": 0.55, "emotional_category": "negative", "domain_context": "healthcare",
    "intervention_required": False, "risk_assessment": "low", "professional_recommendations": ["Ask how long it has lasted."],
    "sample_rate": 22_050, "seconds": 3.2, "overridden": False, "system": "espeak-ng", "generation_time_ms": 41.0,
    "offset": 0, "total": 141_164, "base64": "UklGRg==", "words_per_minute": 150, "style": "peaceful", "pitch": 40,
    "pitch_range": 30, "volume": 80, "domains": ["sleep"], "mode": "cancel", "seq": 3, "online": True,
    "parameters": {"max_steps": 600}, "data": {"stage": "train"}, "results": {"train_seconds": 412.0},
    "value": 118.4, "ok": True, "level": "fail", "period": "month", "id": "sleep-1", "code": -32003,
    "message": "there is no job 'sleep-1'.", "topic": "train.submit", "original": '{"domain": "slep"}',
    "reason": "domain: no such domain 'slep'; the nearest is sleep.", "attempts": 1, "jobs_total": 1,
    "Report.kind": "stage_done", "JobEvent.type": "stage_done", "Gate.threshold": 101.0, "Speech.profile": "meditative",
    "Speech.uri": f"file:///home/me/meetara/speech/{SHA256}.wav", "Speech.bytes": 141_164, "Speech.agent": "tts-1",
    "SpeechRequest.profile": None, "SpeechRequest.emotion": None, "Voice.profile": "meditative",
    "DeadLetter.reason": "domain: no such domain 'slep'.", "PeriodReport.since": datetime(2026, 3, 1, tzinfo=UTC),
    "Submitted.state": "provisioning", "Progress.at": AT, "EventsQuery.since": 2, "BudgetReport.jobs": {"sleep-1": 0},
    "Quote.rejected": {}, "Card.methods": {"job.plan": SHA256}, "Presence.instance": "5f3a9c02",
    "TrainRequest.text": None, "TrainRequest.base": None, "TrainRequest.tier": None, "TrainRequest.parameters": {},
    "JobSnapshot.reason": None, "JobSnapshot.attempt": 1, "Report.reason": "", "Report.results": {},
    "EmotionReading.secondary_emotions": [], "DeadLetter.base64": None, "BudgetReport.domains": {"sleep": 0},
    "BudgetReport.providers": {"local": 0}, "quality_percent": 118.4, "JobSnapshot.quality_percent": None,
    "JobSnapshot.artefacts": [], "JobSnapshot.gates": {}, "Submitted.message": None, "cost_p50_micros": 0,
    "cost_p90_micros": 0, "reservation_micros": 0, "Report.seconds": 412.0,
    "Signature.key": "A" * 43 + "=", "Signature.value": "A" * 86 + "==", "TrainRequest.signature": None,
    "CapRequest.name": "monthly_usd", "CapReply.name": "monthly_usd", "CapRequest.usd": 80.0, "CapReply.state": "waits",
    "wished_micros": 80_000_000, "until": AT, "PeriodReport.until": datetime(2026, 4, 1, tzinfo=UTC),
    "BudgetReport.mode": "normal", "BudgetMode.mode": "optimise", "Entry.kind": "settle", "number": 7, "rental": "r-1",
    "counts_at": AT, "BillRequest.jobs": {"sleep-1": 240_000}, "billed_micros": 250_000, "own_micros": 240_000,
    "correction_micros": 10_000, "drift_percent": 4.17, "BudgetAlert.rental": None, "BudgetAlert.own_micros": None,
    "BudgetAlert.billed_micros": None, "BudgetAlert.provider": None, "SettleRequest.provider": None,
    "SettleRequest.rental": None, "cost_micros": 240_000, "note": "", "SettleRequest.part": None, "limit_micros": 1_000_000, "ReserveRequest.limit_micros": None, "Progress.note": None,
    "BudgetAlert.note": None, "Freeze.note": None,
}  # fmt: skip
"""Values by field, or by model and field where a name means something else there; None: left out, where it may be."""


def example(model: type[BaseModel]) -> dict[str, Any]:
    """Return an example of a model, as JSON values: what it requires, and what VALUES names.

    Raises:
        pydantic.ValidationError: an example value is wrong for its field.
    """
    values = {}
    for name, field in model.model_fields.items():
        key = f"{model.__name__}.{name}"
        told = VALUES.get(key, VALUES.get(name))
        if field.is_required() or (told is not None and not (key in VALUES and VALUES[key] is None)):
            values[name] = _value(key, name, field)
    return model.model_validate(values).model_dump(mode="json", exclude_unset=True)


def _value(key: str, name: str, field: FieldInfo) -> Any:
    if key in VALUES:
        return VALUES[key]
    found = _of(field.annotation, name)
    return VALUES[name] if found is _PLAIN else found


_PLAIN = object()
"""The type has no example of its own: the field's value is taken."""


def _of(annotation: Any, name: str) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return example(annotation)
    if origin in (list, set, tuple) and isinstance(arguments[0], type) and issubclass(arguments[0], BaseModel):
        return [example(arguments[0])]
    if origin is dict and isinstance(arguments[1], type) and issubclass(arguments[1], BaseModel):
        return {"quality_percent": example(arguments[1])}
    if origin in (Union, types.UnionType):
        return _of(next(item for item in arguments if item is not type(None)), name)
    if name in VALUES:
        return _PLAIN
    if origin is Literal:
        return arguments[0]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return next(iter(annotation))
    return {"list": [], "dict": {}, "str": name, "int": 1, "float": 1.0, "bool": True, "datetime": AT}[
        getattr(origin or annotation, "__name__", "str")
    ]
