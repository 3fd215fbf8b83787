"""A machine that somebody lends: a token from `meetara machine add`, a worker that dials in with it, and its jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bus import workers
from protocol import Progress
from protocol.job import JobEvent, State
from tests.integration.lab import DOMAIN, ROOT, Ground, RunningLab, listening, running

pytestmark = pytest.mark.timeout(900)

STEPS: dict[str, int] = {"max_steps": 12, "batch_size": 2, "sequence_length": 128}
"""Short steps, each with a checkpoint, and enough of them to be caught."""


@contextmanager
def lending(lab: RunningLab, token: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the worker on a machine that has nothing of the lab but its token."""
    folder.mkdir(exist_ok=True)
    kept = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_WAIT_POLICY": "PASSIVE", workers.VARIABLE: token}
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "agents.gguf_factory.worker", "--broker", f"mqtt://127.0.0.1:{lab.port}", "--home", str(folder)],
            cwd=ROOT, env=kept, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def asked(ground: Ground, job: str) -> list[object]:
    params = [f"--param={name}={value}" for name, value in STEPS.items()]
    return ["train", "--data", ground.rows, "--domain", DOMAIN, "--id", job, "--provider", "lent", *params]


async def train(lab: RunningLab, ground: Ground, job: str) -> None:
    outcome = await lab.cli(*asked(ground, job), "--detach")
    assert outcome.code == 0, outcome.out + outcome.error


async def test_a_lent_machine_trains_for_nothing_and_goes_on_after_it_was_switched_off(ground: Ground, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with running(tmp_path / "home", ground.configs, MEETARA_STORE=store.as_uri()) as lab:
        made = (await lab.cli("machine", "add", "gamer-pc", "--json")).json
        assert made["worker"] == "worker-lent-gamer-pc" and made["token"].startswith(workers.FORM)
        async with lab.client() as client, listening(client, "lent-1") as ears:
            with lending(lab, made["token"], tmp_path / "pc"):
                async with client.subscription("card", role="gguf_factory", agent=made["worker"]) as cards:
                    await anext(cards)
                await train(lab, ground, "lent-1")
                await ears.step(3)
            with lending(lab, made["token"], tmp_path / "pc"):
                final = await ears.end()
            assert final.state is State.DONE, f"{final.reason}\n{(tmp_path / 'pc' / 'log.txt').read_text()}"
            leased = await ears.first(JobEvent, lambda event: event.type == "leased")
            assert (leased.data["lease"]["provider"], leased.data["lease"]["machine"]) == ("lent", made["worker"])
            steps = [item.step for item in ears.all(Progress) if item.step is not None]
            assert steps == sorted(steps) and steps[-1] > 4, f"it went on from a checkpoint: {steps}"
            assert final.cost_usd == 0
        assert all(item.uri.startswith(store.as_uri()) for item in final.artefacts), "the files are where the lab can fetch them"
        again = (await lab.cli(*asked(ground, "lent-2"), "--json")).json
        assert again["state"] == "done" and again["cached_from"] == "lent-1", "nobody is there, and nobody is needed"
        assert (await lab.cli("machine", "remove", "gamer-pc", "--json")).json == {"removed": "gamer-pc"}
        assert (await lab.cli("machine", "list", "--json")).json == {"machines": []}
