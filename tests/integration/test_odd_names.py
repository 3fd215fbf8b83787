"""Home, configs, base and data set with spaces, quotes and umlauts in their names; rows in many scripts from a Windows editor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from protocol.job import State
from tests.integration.lab import DOMAIN, Ground, running, write_rows

pytestmark = pytest.mark.timeout(900)

TEXTS = ["كيف أنام مبكرًا؟", "怎么早点睡？", "👩‍👩‍👧‍👦 🇩🇪", "Zoe\u0308's cafe\u0301", "שלום \u200f123"]


async def test_a_job_runs_on_odd_names_and_rows_from_windows(ground: Ground, tmp_path: Path) -> None:
    odd = tmp_path / "my lab ü'1"
    odd.mkdir()
    base = odd / 'base "ü" 1'
    shutil.copytree(ground.base, base)
    configs = odd / "configs 'é"
    shutil.copytree(ground.configs, configs)
    content = yaml.safe_load((configs / "tiers.yaml").read_text(encoding="utf-8"))
    content["tiers"]["tiny"]["base"] = str(base)
    text = yaml.safe_dump(content, allow_unicode=True)
    (configs / "tiers.yaml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    rows = write_rows(odd / "plain.jsonl").read_text(encoding="utf-8").splitlines()
    rows += [json.dumps({"question": text, "answer": f"{text} {text}"}, ensure_ascii=False) for text in TEXTS]
    data = odd / "Daten “ü” 100% #1?.jsonl"
    data.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    with running(odd / "home", configs) as lab:
        done = await lab.cli("train", "--domain", DOMAIN, "--data", data, "--id", "odd-1", "--json")
        assert done.code == 0, done
        assert done.json["state"] == State.DONE.value
        model = next(item for item in done.json["artefacts"] if item["kind"] == "gguf")
        answer = await lab.cli("chat", DOMAIN, "--ask", TEXTS[0], "--max-tokens", "3", "--seed", "1", "--json")
        assert answer.code == 0, answer
        assert (odd / "home" / "artefacts" / model["sha256"]).is_dir()
        told = await lab.cli("logs", "--job", "odd-1")
        assert "job done" in told.out
