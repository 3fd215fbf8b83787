from __future__ import annotations

import json
from pathlib import Path

import pytest

from starter import card, corpus
from starter.extrapolate import Law

TRUE = Law(floor=0.0, scale=6.0, power=0.08, error=0.0)
GAIN = 0.05


def test_the_outlook_is_the_law_less_what_the_decay_gained() -> None:
    curve = [
        {"step": step, "tokens": step * 8192, "seconds": step * 4.0, "bits_per_byte": TRUE.bits(step * 8192)}
        for step in range(200, 4000, 200)
    ]
    curve.append({"step": 4000, "tokens": 4000 * 8192, "seconds": 16000.0, "bits_per_byte": TRUE.bits(4000 * 8192) - GAIN})
    meta = {"curve": curve, "decay": {"from": 3800, "steps": 200}, "from": None}
    told = card.outlook(meta, curve[-1]["bits_per_byte"], 4000 * 8192)
    [row] = [line for line in told.splitlines() if line.startswith("| 0.00")]
    wanted = [TRUE.bits(rounds * 4000 * 8192) - GAIN for rounds in card.ROUNDS]
    assert row.split(" | ")[3:] == ["0.050", f"{wanted[0]:.2f}", f"{wanted[1]:.2f} |"]
    assert "2,048 tokens/s" in told


def test_the_overlap_counts_runs_that_stand_in_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "PARTS", ("books",))
    answer = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"  # two runs of 13 words
    for folder in ("general/pretrain", "domains_heldout"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "domains_heldout/sleep.jsonl").write_text(json.dumps({"output": answer}))
    (tmp_path / "general/pretrain/books.txt").write_text(f"nothing\n{corpus.DOCUMENT}\nZero, {answer.removesuffix(' fourteen').title()}.")
    assert card.overlap(tmp_path) == (1, 2)
