"""The lab in containers as a test handles it: one Compose project on an engine, used from outside like a person does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.compose.engine import Engine, run

ROOT = Path(__file__).resolve().parents[2]
HOME = "/var/lib/meetara"
ROLES = ("conductor", "router", "cost_monitor", "gpu_orchestrator", "gguf_factory", "emotion", "tts")
TOPICS = "meetara/v1/lab"
LIMIT = 600.0
"""Seconds that any one event may take on a busy machine; a quiet one needs a tenth."""
POLL = 0.5
"""Seconds between two looks at what tells nobody when it changes."""


@dataclass
class Clock:
    """Tells each phase and its seconds at once, and all of them at the end."""

    phases: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            self.phases.append((name, seconds))
            print(f"compose-test: {seconds:7.1f} s  {name}", file=sys.stderr, flush=True)


@dataclass
class Cluster:
    """One project. `folder` holds the data, configs and everything else that the test writes."""

    engine: Engine
    project: str
    port: int
    folder: Path
    clock: Clock

    @property
    def image(self) -> str:
        return f"meetara-lab:{self.project}"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in self.engine.environment.items() if not name.startswith("MEETARA_")}
        return {
            **kept, "MEETARA_IMAGE": self.image, "MEETARA_PORT": str(self.port), "MEETARA_SLOTS": "1",
            "MEETARA_DATA": str(self.folder / "data"), "MEETARA_CONFIGS": str(self.folder / "configs"),
            "PYTHONWARNINGS": "ignore",
        }  # fmt: skip

    # Compose and Docker

    def compose(self, *arguments: str) -> str:
        """Run Compose on the project's own file, as the guide says."""
        return run(
            *self.engine.compose, "--project-name", self.project, *arguments, environment=self.environment, cwd=ROOT
        )  # fmt: skip

    def container(self, service: str) -> str:
        """Return a service's container, running or not."""
        label = f"com.docker.compose.service={service}"
        found = self.engine.docker("ps", "--all", "--quiet", "--no-trunc", *self.mine(), "--filter", f"label={label}")
        [container] = found.split()
        return container

    def mine(self) -> tuple[str, str]:
        return "--filter", f"label=com.docker.compose.project={self.project}"

    def inspect(self, service: str) -> Any:
        return json.loads(self.engine.docker("inspect", self.container(service)))[0]

    def inside(self, service: str, *command: str, check: bool = True) -> str:
        """Run a program in a service's container, as its user."""
        return self.engine.docker("exec", self.container(service), *command, check=check)

    def health(self, service: str) -> str:
        state = self.inspect(service)["State"]
        return state.get("Health", {}).get("Status", "none") if state["Running"] else state["Status"]

    def wait_until_healthy(self) -> None:
        """Return when every service that goes on is healthy."""
        services = ("broker", *ROLES, "door")
        until(lambda: all(self.health(service) == "healthy" for service in services), "healthy services", self.states)

    def states(self) -> str:
        return ", ".join(f"{service} {self.health(service)}" for service in ("broker", *ROLES, "door"))

    def kill(self, service: str) -> None:
        """Kill a service's process, in its own container and under its own user, and see the container started again."""
        before = self.inspect(service)["RestartCount"]
        # the first process is Docker's init, which nobody in the container can kill; the service is its child
        self.inside(service, "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)", check=False)
        until(
            lambda: self.inspect(service)["RestartCount"] > before and self.inspect(service)["State"]["Running"],
            f"a restart of {service}",
        )

    # from outside

    def publish(self, method: str, body: dict[str, Any]) -> None:
        """Publish a call to the router with Mosquitto's tool."""
        run(
            "mosquitto_pub", "-h", "127.0.0.1", "-p", str(self.port), "-V", "5", "-q", "1",
            "-t", f"{TOPICS}/call/router/{method}", "-m", json.dumps(body),
        )  # fmt: skip

    def listen(self, topic: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first message with mosquitto_sub that is wanted; while the door is closed, try again."""
        end = time.monotonic() + LIMIT
        last: dict[str, Any] = {}
        while time.monotonic() < end:
            command = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(self.port), "-V", "5", "-q", "1"]
            command += ["-t", f"{TOPICS}/{topic}", "-W", str(int(end - time.monotonic()) + 1)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
                assert process.stdout is not None
                try:
                    for line in process.stdout:
                        last = json.loads(line)
                        if wanted(last):
                            return last
                finally:
                    process.kill()
            time.sleep(POLL)
        raise AssertionError(f"nothing wanted on {topic} within {LIMIT:.0f} s; the last was {last}")

    def meetara(self, *arguments: str) -> Any:
        """Run the command line on this machine and return its JSON."""
        home = {"MEETARA_HOME": str(self.folder / "home"), "MEETARA_PORT": str(self.port)}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MEETARA_")}
        command = (sys.executable, "-m", "meetara.cli", *arguments, "--json")
        return json.loads(run(*command, environment={**kept, **home}, cwd=ROOT))


def until(happened: Callable[[], bool], what: str, told: Callable[[], str] = lambda: "") -> None:
    """Wait for something that tells nobody when it happens."""
    end = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < end, f"no {what} within {LIMIT:.0f} s {told()}"
        time.sleep(POLL)
