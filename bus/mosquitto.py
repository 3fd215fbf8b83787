"""The program Mosquitto: where it is, where its plugin is, and the settings that all brokers of a lab share."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from bus.session import MAX_PACKET, RECEIVE_MAXIMUM, SESSION_EXPIRY
from protocol.errors import Code, LabError

PLUGIN = "mosquitto_dynamic_security.so"
"""The plugin that enforces the access rules; every package of Mosquitto 2 has it."""


def find_mosquitto(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the Mosquitto program: `MEETARA_MOSQUITTO`, then the PATH, then where Debian and Homebrew put it.

    Raises:
        LabError: TOOLCHAIN, with the command that installs it.
    """
    named = environment.get("MEETARA_MOSQUITTO")
    if named:
        if os.access(named, os.X_OK) and Path(named).is_file():
            return Path(named)
        raise LabError(
            Code.TOOLCHAIN, f"MEETARA_MOSQUITTO names {named}, which is not a program.",
            advice="Correct or unset MEETARA_MOSQUITTO.", file=named,
        )  # fmt: skip
    places = [environment.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"]
    found = shutil.which("mosquitto", path=os.pathsep.join(places))
    if found is None:
        command = "brew install mosquitto" if sys.platform == "darwin" else "sudo apt-get install mosquitto"
        raise LabError(
            Code.TOOLCHAIN, "no MQTT broker: the program mosquitto was not found.",
            advice=f"Install it with: {command}; or name it in MEETARA_MOSQUITTO; or name a running broker in "
            "MEETARA_BROKER.",
        )  # fmt: skip
    return Path(found)


def find_plugin(program: Path) -> str:
    """Return the path of the plugin that belongs to a Mosquitto, or its bare name, which the system's loader finds.

    Debian has it in the multi-arch folder and Homebrew beside the program; the loader knows the first, not the second.
    """
    for start in (program, program.resolve()):
        found = start.parent.parent / "lib" / PLUGIN
        if found.is_file():
            return str(found)
    return PLUGIN


def storage(folder: str) -> list[str]:
    """Return the lines of mosquitto.conf that say what is kept, where, and how much of it."""
    return [
        "persistence true",
        f"persistence_location {folder}",
        # The database is written after each change: with the stock half hour, kill -9 loses every queued message.
        # What is left is the time of one write, milliseconds. Costs about 3 ms per message sent one by one.
        "autosave_on_changes true",
        "autosave_interval 1",
        # A client that never came back is forgotten when its session would be.
        f"persistent_client_expiration {SESSION_EXPIRY // 86_400}d",
        # Above the limit of a message, so that the agent can answer with an error instead of a cut connection.
        f"max_packet_size {MAX_PACKET}",
        # What one absent agent may have waiting; beyond it Mosquitto acknowledges and drops, so it must be more
        # than anybody sends in the time of a restart, yet bounded.
        "max_queued_messages 20000",
        "max_queued_bytes 67108864",
        f"max_inflight_messages {RECEIVE_MAXIMUM}",
        # Calls are small packets with answers: waiting to fill a segment only delays them.
        "set_tcp_nodelay true",
    ]


def logging(destination: str) -> list[str]:
    """Return the lines of mosquitto.conf about its log; without `information`, which notes each write."""
    return [
        f"log_dest {destination}", "log_type error", "log_type warning", "log_type notice",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
    ]  # fmt: skip
