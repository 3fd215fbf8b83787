"""Fixtures for everything that needs a real broker."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import BrokerAddress

PROJECT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mosquitto_binary() -> str:
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.fail("mosquitto is not installed; `make setup` installs it")
    return found


class PlainBroker:
    """A Mosquitto without the lab's gate, for tests of the bus alone; can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = BrokerAddress("127.0.0.1", free_port())
        (folder / "mosquitto.conf").write_text(
            f"listener {self.address.port} 127.0.0.1\nallow_anonymous true\npersistence true\nuser root\n"
            f"persistence_location {folder}/\nmax_packet_size 1048576\nlog_dest none\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen([mosquitto_binary(), "-c", str(self.folder / "mosquitto.conf")])
        while True:
            assert self.process.poll() is None, "mosquitto ended at once"
            with socket.socket() as probe:
                if probe.connect_ex((self.address.host, self.address.port)) == 0:
                    return

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[PlainBroker]:
    folder = tmp_path / "broker"
    folder.mkdir()
    running = PlainBroker(folder)
    running.start()
    yield running
    running.kill()
