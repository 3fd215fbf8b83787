"""What a home tells about a running lab: `run/up.lock` (who holds it) and `run/up.json` (where its broker is)."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel

from bus import BrokerAddress
from bus.broker import PASSWORDS
from bus.files import read_json
from configs import Settings
from protocol import Code, LabError, Retry
from protocol.address import Endpoint
from protocol.format import FORMAT, check_format
from protocol.topics import OPERATOR


class Up(BaseModel):
    """A running `meetara up`. `ready` once all agents are present and users are let in."""

    format: int = FORMAT
    pid: int
    host: str
    port: int
    lab: str
    tls: bool = False
    ready: bool = False
    private_broker: bool = True


def record_path(home: Path) -> Path:
    """Where `up` writes down what it runs."""
    return home / "run" / "up.json"


def write_record(home: Path, up: Up) -> None:
    """Replace the record in one step."""
    path = record_path(home)
    temporary = path.with_suffix(".new")
    temporary.write_text(up.model_dump_json() + "\n", encoding="utf-8")
    temporary.replace(path)


def running(home: Path) -> Up | None:
    """Return what runs on a home, or None. A record whose writer was killed does not count.

    Raises:
        LabError: CONFIGURATION, a newer program runs there.
    """
    owner = lock_owner(home)
    if owner is None:
        return None
    try:
        facts = json.loads(record_path(home).read_bytes())
        check_format(facts, record_path(home))
        up = Up.model_validate(facts)
    except (FileNotFoundError, ValueError, AttributeError):  # it is just starting
        return None
    return up if up.pid == owner else None


def operator_of(home: Path) -> BrokerAddress | None:
    """Return the operator's address at the private broker that runs on a home, or None."""
    up = running(home)
    password = read_json(home / "broker" / PASSWORDS).get(OPERATOR)
    if up is None or not up.private_broker or password is None:
        return None
    return BrokerAddress(up.host, up.port, OPERATOR, password)


def lock_owner(home: Path) -> int | None:
    """Return the pid of the process that holds a home, or None."""
    try:
        descriptor = os.open(home / "run" / "up.lock", os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32).decode("ascii", "replace").strip()
        return int(text) if text.isdecimal() else 0
    finally:
        os.close(descriptor)
    return None


@contextmanager
def hold(home: Path) -> Iterator[None]:
    """Hold a home for one supervisor; the system frees it when the process ends, however it ends.

    Raises:
        LabError: BUSY, with the pid of the other; CONFIGURATION when the home cannot be written.
    """
    path = home / "run" / "up.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path, home)
    except OSError as error:
        raise LabError(
            Code.CONFIGURATION, f"the home {home} cannot be written: {error.strerror}.",
            advice="Choose another one with --home or MEETARA_HOME.", file=str(home),
        ) from error  # fmt: skip
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:  # else the folder was replaced: it is another's
                record_path(home).unlink(missing_ok=True)
                path.unlink()  # while it is still held, so that nobody loses a lock of his own
        os.close(descriptor)


def _locked(path: Path, home: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except BlockingIOError as error:
            owner = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise LabError(
                Code.BUSY, f"`meetara up` runs on the home {home} already (pid {owner}).",
                advice=f"Stop it with `meetara down --home {home}`, or give this one another --home.",
                retry=Retry.LATER, pid=int(owner) if owner.isdecimal() else None,
            ) from error  # fmt: skip
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its owner removed the file between open and lock: take the new one


def locate(
    *, home: Path | None = None, host: str | None = None, port: int | None = None, lab: str | None = None
) -> tuple[BrokerAddress, str, Path]:
    """Find the broker: flags, then the environment, then what runs on the home, then lab.yaml.

    Returns:
        The broker's address, the lab's name, the home.

    Raises:
        LabError: CONFIGURATION, naming the wrong setting.
    """
    settings = Settings.read(home=home, broker=host, port=port, lab=lab)
    up = running(settings.home)
    named = host or port or os.environ.get("MEETARA_BROKER") or os.environ.get("MEETARA_PORT")
    if up is not None and not named:
        chosen = lab or os.environ.get("MEETARA_LAB") or up.lab
        return BrokerAddress.of(Endpoint(up.host, up.port, up.tls), os.environ), chosen, settings.home
    return BrokerAddress.of(settings.endpoint, os.environ), settings.lab, settings.home
