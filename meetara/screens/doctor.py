"""`meetara doctor`: whether this machine can run a lab, and what to do where it cannot."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiomqtt
import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bus.migration import versions
from bus.mosquitto import find_mosquitto
from bus.session import Session
from bus.store import SCHEMA
from configs import Configs, load
from configs import Settings as LabSettings
from meetara import show
from meetara.door import FAILED, OK, emit
from meetara.home import locate, running
from protocol import LabError, uuid7

DISK_BYTES = 2_000_000_000
"""A job on the starter base works in about 0.5 GB; a 0.6 B base needs four times its 1.2 GB only once it is asked for."""
MEMORY_BYTES = 1_500_000_000
"""torch with transformers takes 0.6 GB; training the starter base at full batch about as much again."""
TOOLCHAIN_SECONDS = 120.0
"""The check quantises a tiny model; it takes 5 s, a minute on a busy machine."""


@dataclass(frozen=True)
class Finding:
    """One check. `advice` is empty where all is well."""

    name: str
    ok: bool
    value: str
    advice: str = ""


def findings(settings: LabSettings) -> Iterator[Finding]:
    """Run all checks, cheap ones first."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding("python", sys.version_info >= (3, 11), version, "" if sys.version_info >= (3, 11) else "Use 3.11+.")
    yield packages()
    yield mosquitto()
    configs: Configs | None = None
    try:
        configs = load(settings)
        yield Finding("configs", True, "all files are valid")
    except LabError as error:
        yield Finding("configs", False, error.message, error.advice)
    yield _space(settings.home)
    yield stores(settings.home)
    free = psutil.virtual_memory().available
    yield Finding(
        "memory", free >= MEMORY_BYTES, f"{show.size(free)} available",
        "" if free >= MEMORY_BYTES else f"Training needs about {show.size(MEMORY_BYTES)}; close other programs.",
    )  # fmt: skip
    if configs is not None:
        yield base(configs)
    yield speech()
    yield toolchain()


def packages() -> Finding:
    """Check that every package that the project requires is installed."""
    try:
        wanted = importlib.metadata.requires("meetara-lab") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", False, "meetara-lab is not installed", "Run `make` or `pip install -e .`.")
    names = [re.split(r"[^A-Za-z0-9_.-]", text, maxsplit=1)[0] for text in wanted if "extra ==" not in text]
    versions: dict[str, str] = {}
    missing = []
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("packages", False, f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    told = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft", "llama-cpp-python"))
    return Finding("packages", True, f"{len(versions)} installed; {told}")


def mosquitto() -> Finding:
    """Check that the broker is installed and new enough for MQTT 5."""
    try:
        program = find_mosquitto()
    except LabError as error:
        return Finding("mosquitto", False, error.message, error.advice)
    try:
        told = subprocess.run([program, "-h"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("mosquitto", False, f"{program} does not run: {error}", "Install it again.")
    found = re.search(r"mosquitto version (\d+)\.(\S+)", told)
    if found is None or int(found[1]) < 2:
        return Finding("mosquitto", False, f"{program}: {told.splitlines()[:1]}", "Install Mosquitto 2.0 or later.")
    return Finding("mosquitto", True, f"{found[1]}.{found[2]} ({program})")


def stores(home: Path) -> Finding:
    """Check that every agent's store in a home can be read and is not of a newer program."""
    found = sorted((home / "agents").glob("*.db"))
    wrong, newer, numbers = [], [], set()
    for path in found:
        try:
            number = versions(path).get("bus", 0)
        except sqlite3.Error as error:
            wrong.append(f"{path.name} cannot be read ({error})")
            continue
        numbers.add(number)
        if number > len(SCHEMA):
            newer.append(f"{path.name} has version {number}, this program knows {len(SCHEMA)}")
    if wrong or newer:
        advice = "Upgrade the program, or use another MEETARA_HOME." if newer else f"Move the damaged files out of {home / 'agents'}."
        return Finding("home", False, "; ".join([*newer, *wrong]), advice)
    copies = len(list((home / "agents").glob("*.bak")))
    kept = f", {copies} {'copy' if copies == 1 else 'copies'} from before an upgrade" if copies else ""
    told = ", ".join(str(number) for number in sorted(numbers))
    return Finding("home", True, f"{home}: {len(found)} stores of version {told}{kept}" if found else f"{home} is empty")


def base(configs: Configs) -> Finding:
    """Check that the starter base is whole."""
    folder = Path(configs.tiers["starter"].base)
    missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
    if not list(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        advice = f"Check the files of {folder} out again."
        return Finding("base model", False, f"{folder} lacks {', '.join(missing)}", advice)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Finding("base model", True, f"{folder} ({show.size(size)})")


def speech() -> Finding:
    """Have the synthesiser say a word."""
    command = [sys.executable, "-m", "agents.tts.espeak", "175", "50", "50", "100", "60"]
    done = subprocess.run(command, input=b"ready", capture_output=True, check=False)  # it ends itself after 60 s
    if done.returncode == 0 and done.stdout.startswith(b"RIFF"):
        return Finding("speech", True, f"espeak-ng speaks (espeakng-loader {importlib.metadata.version('espeakng-loader')})")
    last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"status {done.returncode}"])[-1]
    return Finding("speech", False, f"espeak-ng does not speak: {last}", "Run `make setup` again.")


def toolchain(
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run,
) -> Finding:
    """Ask the factory's own doctor about converter, quantiser and runtime."""
    command = [sys.executable, "-m", "agents.gguf_factory.toolchain", "doctor", "--json"]
    try:
        done = run(command, capture_output=True, text=True, timeout=TOOLCHAIN_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Finding("toolchain", False, f"no answer within {TOOLCHAIN_SECONDS:.0f} s", f"Run: {' '.join(command)}")
    last = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"])[-1]
    try:
        report: Any = json.loads(done.stdout)
    except json.JSONDecodeError:
        return Finding("toolchain", False, last, f"Run: {' '.join(command)}")
    return _from_report(report, done.returncode == 0)


def _from_report(report: Any, ok: bool) -> Finding:
    if isinstance(report, dict) and isinstance(report.get("error"), dict):
        error = report["error"]
        return Finding("toolchain", False, str(error.get("message")), str(error.get("data", {}).get("advice", "")))
    checks = report.get("checks", report.get("findings", [])) if isinstance(report, dict) else report
    if isinstance(checks, list) and checks and all(isinstance(check, dict) for check in checks):
        bad = [check for check in checks if check.get("ok") is False]
        if bad:
            what = "; ".join(f"{check.get('name')}: {check.get('value') or check.get('detail')}" for check in bad)
            return Finding("toolchain", False, what, " ".join(str(check.get("advice", "")) for check in bad).strip())
        return Finding("toolchain", ok, ", ".join(str(check.get("name")) for check in checks) + ": well")
    return Finding("toolchain", ok, json.dumps(report), "" if ok else "Run `make` again.")


async def broker(where: dict[str, Any]) -> Finding:
    """Look whether a broker answers; a lab that does not run is no fault."""
    address, lab, home = locate(**where)
    up = running(home)
    try:
        async with Session.connect(address, f"meetara-doctor-{uuid7()}", durable=False):
            return Finding("broker", True, f"{address} answers" + (f", lab {lab} (pid {up.pid})" if up else ""))
    except (aiomqtt.MqttError, OSError) as error:
        if up is None:
            return Finding("broker", True, f"not running ({address} does not answer); start it with `meetara up`")
        return Finding("broker", False, f"{address} does not answer: {error}", f"See {home / 'logs' / 'broker.log'}.")


def _space(home: Path) -> Finding:
    there = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(there).free
    value = f"{show.size(free)} free at {home}"
    if free < DISK_BYTES:
        return Finding("disk", False, value, f"Free {show.size(DISK_BYTES)}, or set MEETARA_HOME to another disk.")
    return Finding("disk", True, value)


async def doctor(where: dict[str, Any], *, as_json: bool, console: Console) -> int:
    """Check everything and show it; FAILED when something is wrong."""
    settings = LabSettings.read(home=where.get("home"), lab=where.get("lab"))
    found = [*findings(settings), await broker(where)]
    well = all(finding.ok for finding in found)
    if as_json:
        emit({"ok": well, "checks": [asdict(finding) for finding in found]})
        return OK if well else FAILED
    grid = Table.grid(padding=(0, 2))
    for finding in found:
        grid.add_row(
            Text("✓", style="green") if finding.ok else Text("✗", style="red"), Text(finding.name),
            Text(finding.value + (f"\n→ {finding.advice}" if finding.advice else "")),
        )  # fmt: skip
    console.print(grid)
    return OK if well else FAILED
