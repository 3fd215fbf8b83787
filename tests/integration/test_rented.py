"""Real processes on rented machines: a vendor's API on loopback boots real workers, which dial in over TLS and train."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol import Progress
from protocol.job import JobEvent, State
from protocol.machine import ProviderStatus
from tests.clouds.clock import real_time
from tests.clouds.cloud import Instance
from tests.clouds.vast_cloud import VastCloud
from tests.conftest import free_port
from tests.integration.lab import DOMAIN, ROOT, Ground, RunningLab, listening, program, running

pytestmark = pytest.mark.timeout(900)

STEPS: dict[str, int] = {"max_steps": 12, "batch_size": 2, "sequence_length": 128}
"""Short steps, each with a checkpoint, and enough of them to be caught."""
GPU = """#!/bin/sh
echo "NVIDIA GeForce RTX 4090, 24564"
"""
"""What nvidia-smi says on the rented machines: they have to have what was sold."""


class Machines:
    """Boots the cloud's instances as real workers, each with a home of its own and nothing of the lab's environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []
        self.environments: list[dict[str, str]] = []
        tool = folder / "bin" / "nvidia-smi"
        tool.parent.mkdir(parents=True)
        tool.write_text(GPU)
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)

    def boot(self, instance: Instance, environment: dict[str, str]) -> Any:
        home = self.folder / f"machine-{len(self.started)}"
        home.mkdir()
        kept = {"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "HOME": str(home), "OMP_WAIT_POLICY": "PASSIVE"}
        log = (home / "log.txt").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "agents.gguf_factory.worker", "--broker", environment["MEETARA_BROKER"], "--home", str(home)],
            cwd=ROOT, env={**kept, **environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        self.environments.append(environment)
        self.started.append(process)
        return Machine(process)

    def told(self) -> str:
        """What the workers have said."""
        return "\n".join(f"{path}: {path.read_text()}" for path in sorted(self.folder.glob("machine-*/log.txt")))


class Machine:
    """One machine: its end is the end of every process on it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)
        self.process.wait()

    def _send(self, number: int) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path / "machines")


@pytest.fixture
def cloud(machines: Machines) -> Iterator[VastCloud]:
    with VastCloud(real_time, boot=machines.boot, boot_seconds=0.2, end_seconds=0.2) as opened:
        for stock in opened.stock.values():
            stock.free = 5
        yield opened


async def prepared(home: Path, configs: Path) -> None:
    """Make certificates, a login and a key, as the guide says."""
    environment = {**os.environ, "MEETARA_HOME": str(home), "MEETARA_CONFIGS": str(configs)}
    for command in (["certs", "--host", "127.0.0.1"], ["user", "add", "anna"], ["keys", "make"]):
        outcome = await program(sys.executable, "-m", "meetara.cli", *command, environment=environment)
        assert outcome.code == 0, outcome.out + outcome.error


async def test_a_job_goes_on_elsewhere_when_its_rented_machine_is_taken_away_and_its_bill_is_in_the_ledger(
    ground: Ground, cloud: VastCloud, machines: Machines, tmp_path: Path
) -> None:
    port = free_port()
    home, configs = tmp_path / "home", tmp_path / "configs"
    configs.mkdir()
    for path in ground.configs.iterdir():
        (configs / path.name).write_text(path.read_text())
    terms = json.loads((ROOT / "configs" / "provider_configs.json").read_text())
    terms["rented"] |= {"idle_seconds": 1}
    (configs / "provider_configs.json").write_text(json.dumps(terms))
    await prepared(home, configs)
    more = {
        **cloud.environment(), "MEETARA_LISTEN": f"mqtts://127.0.0.1:{port}", "MEETARA_PUBLIC": f"mqtts://127.0.0.1:{port}",
        "MEETARA_WORKER_IMAGE": "registry.example/meetara-worker:1", "MEETARA_STORE": (tmp_path / "store").as_uri(),
    }  # fmt: skip
    try:
        with running(home, configs, **more) as lab:
            await rent(lab, ground, cloud, machines)
    except BaseException:
        print(machines.told())
        raise
    for environment in machines.environments:
        assert cloud.key not in environment.values(), "no worker has a key of the vendor"


async def rent(lab: RunningLab, ground: Ground, cloud: VastCloud, machines: Machines) -> None:
    async with lab.client() as client, listening(client, "rented-1") as ears:
        params = [f"--param={name}={value}" for name, value in STEPS.items()]
        outcome = await lab.cli(
            "train", "--data", ground.rows, "--domain", DOMAIN, "--id", "rented-1", "--provider", "vast", "--untrusted-hosts",
            "--fresh", "--detach", *params,
        )  # fmt: skip
        assert outcome.code == 0, outcome.out + outcome.error
        await ears.step(3)
        [first] = cloud.living()
        cloud.preempt(first.id)
        final = await ears.end()
        assert final.state is State.DONE, final.reason
        interrupted = await ears.first(JobEvent, lambda event: event.type == "interrupted")
        assert interrupted.data["counts"] is False, "it is no failure of the job"
        steps = [item.step for item in ears.all(Progress) if item.step is not None and item.attempt == 2]
        assert steps and min(steps) > 1, "it went on from a checkpoint"
        assert len(machines.started) == 2
        async with client.subscription("provider_status", provider="vast") as messages:
            async for _, payload in messages:
                if ProviderStatus.model_validate_json(payload).slots == 0:
                    break
    assert cloud.living() == []
    report = (await lab.cli("budget", "--json")).json
    assert report["providers"]["vast"] > 0
