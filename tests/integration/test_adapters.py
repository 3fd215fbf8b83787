"""Two domains' adapters from one lab: their base is made once, and one living process answers with either."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from agents.gguf_factory.gguf_header import read_header
from meetara import models
from meetara.talk import talking
from protocol import JobSnapshot
from protocol.job import Artefact, Stage, State
from tests.integration.lab import DOMAIN, Ground, RunningLab, listening, submit

pytestmark = pytest.mark.timeout(900)

OTHER = "study_techniques"


async def test_two_adapters_share_a_base_that_is_made_once(lab: RunningLab, ground: Ground) -> None:
    ends: list[JobSnapshot] = []
    async with lab.client() as client:
        for domain, steps in ((DOMAIN, 3), (OTHER, 4)):
            job = f"adapter-{domain}"
            async with listening(client, job) as ears:
                await submit(client, job, ground.request({"max_steps": steps}, domain=domain, profile="adapter"))
                final = await ears.end()
                assert final.state is State.DONE, final.reason
                stages = {snapshot.stage for snapshot in ears.all(JobSnapshot)}
                assert Stage.MERGE not in stages and {Stage.CONVERT, Stage.QUANTISE} <= stages
                ends.append(final)
    products = [{item.kind: item for item in final.artefacts} for final in ends]
    first, second = products
    assert all(final.profile == "adapter" for final in ends)
    assert first["base"].uri == second["base"].uri and first["base"].sha256 == second["base"].sha256
    assert first["adapter"].sha256 != second["adapter"].sha256
    bases = [path for path in (lab.home / "models").rglob("*.gguf") if "f16" not in path.name]
    assert bases == [place(first["base"])], "one file for both"
    for final, made in zip(ends, products, strict=True):
        header = read_header(place(made["adapter"]))
        assert header.values["general.type"] == "adapter"
        assert final.gates["file_bytes"].ok and final.gates["file_bytes"].value == made["adapter"].bytes
        assert final.gates["f16_kl"].ok

    told = (await lab.cli("chat", OTHER, "--ask", "Why?", "--max-tokens", "4", "--json")).json
    assert told["tokens"] <= 4 and told["answer"]
    async with talking(models.find(DOMAIN, lab.home), home=lab.home) as talk:
        assert talk.ready["file"] == str(place(first["base"]))
        assert (await talk.switch(models.find(OTHER, lab.home)))["load_ms"] > 0
        *_, end = [piece async for piece in talk.answer([{"role": "user", "content": "Why?"}], max_tokens=4)]
        assert isinstance(end, dict) and end["tokens"] <= 4


def place(artefact: Artefact) -> Path:
    return Path(unquote(urlparse(artefact.uri).path))
