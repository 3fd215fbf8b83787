"""A Docker engine to test on: the one that answers here, else one made of Debian's packages for the time of the test.

An engine of one's own needs root, dockerd and debootstrap (Debian: docker.io, docker-compose, debootstrap). It pulls
nothing: the two images that the Dockerfile and docker-compose.yml name are made here, of Debian's packages, and behave
like the official ones as far as the lab uses them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PYTHON_IMAGE = "python:3.11-slim-bookworm"
"""What the Dockerfile starts from; Debian 12 has the same Python."""
BROKER_IMAGE = "eclipse-mosquitto:2"
"""What docker-compose.yml runs as the broker."""
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
"""The host's authorities: behind a company's proxy the index is known by one of these only."""
START_SECONDS = 60.0
"""dockerd answers after 1-3 s; a loaded machine takes longer."""
STOP_SECONDS = 60.0
"""After SIGTERM dockerd ends its containers, 10 s each at most, and unmounts."""

BROKER_DOCKERFILE = r"""
FROM {python}
RUN apt-get update && apt-get install -y --no-install-recommends mosquitto mosquitto-clients \
 && rm -rf /var/lib/apt/lists/* && groupmod -g 1883 mosquitto && usermod -u 1883 -g 1883 mosquitto \
 && mkdir -p /mosquitto/config /mosquitto/data /mosquitto/log && cp /dev/null /mosquitto/config/mosquitto.conf \
 && chown -R mosquitto:mosquitto /mosquitto \
 && printf '#!/bin/sh\nset -e\n[ "$(id -u)" != 0 ] || chown -R mosquitto:mosquitto /mosquitto || true\nexec "$@"\n' \
      >/docker-entrypoint.sh && chmod 755 /docker-entrypoint.sh
VOLUME ["/mosquitto/data", "/mosquitto/log"]
EXPOSE 1883
ENTRYPOINT ["/docker-entrypoint.sh"]
CMD ["/usr/sbin/mosquitto", "-c", "/mosquitto/config/mosquitto.conf"]
"""


class NoEngine(Exception):
    """No engine can be had here; the text says what is missing."""


@dataclass(frozen=True)
class Engine:
    """An engine that answers. `environment` is for its clients; `own`: it was made for the test."""

    environment: Mapping[str, str]
    compose: tuple[str, ...]
    own: bool

    def docker(self, *arguments: str, check: bool = True) -> str:
        """Run `docker` and return what it printed."""
        return run("docker", *arguments, environment=self.environment, check=check)


def run(
    *command: str, environment: Mapping[str, str] | None = None, check: bool = True, text: str | None = None,
    cwd: Path | None = None,
) -> str:  # fmt: skip
    """Run a program and return its stdout; a failure shows what it said."""
    done = subprocess.run(
        command, env=None if environment is None else dict(environment), input=text, capture_output=True, text=True,
        check=False, cwd=cwd,
    )  # fmt: skip
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


@contextmanager
def engine(tell: Callable[[str], None]) -> Iterator[Engine]:
    """Yield an engine; one that was made for the test is ended and removed afterwards.

    MEETARA_ENGINE names a folder in which the own engine's images are kept for the next time.

    Raises:
        NoEngine: with what is missing.
    """
    if shutil.which("docker") is None:
        raise NoEngine("the docker command is missing")
    environment = dict(os.environ)
    if answers(environment):
        yield Engine(environment, compose_command(environment), own=False)
        return
    missing = [name for name in ("dockerd", "debootstrap") if shutil.which(name, path=search_path()) is None]
    if missing or os.geteuid() != 0:
        why = f"without {' and '.join(missing)}" if missing else "as another user than root"
        raise NoEngine(f"no Docker engine answers, and {why} none can be started here")
    kept = os.environ.get("MEETARA_ENGINE")
    # dockerd's data must lie on a disk that overlays can be stacked on, which /tmp often is not
    folder = Path(kept or tempfile.mkdtemp(prefix="meetara-engine-", dir="/var/tmp"))
    try:
        with network_restored(), daemon(folder) as environment:
            made = Engine(environment, compose_command(environment), own=True)
            make_images(made, folder, tell)
            yield made
    finally:
        if not kept:
            remove(folder)


def search_path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def answers(environment: Mapping[str, str]) -> bool:
    """Whether a daemon answers the docker command."""
    done = subprocess.run(["docker", "version"], env=dict(environment), capture_output=True, check=False)
    return done.returncode == 0


def compose_command(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the Compose that is here: the plugin of Docker, else the older program.

    Raises:
        NoEngine: neither is.
    """
    plugin = subprocess.run(["docker", "compose", "version"], env=dict(environment), capture_output=True, check=False)
    if plugin.returncode == 0:
        return ("docker", "compose")
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    raise NoEngine("neither `docker compose` nor docker-compose is installed")


@contextmanager
def daemon(folder: Path) -> Iterator[dict[str, str]]:
    """Run dockerd on a folder of its own and yield its clients' environment."""
    folder.mkdir(parents=True, exist_ok=True)
    socket = folder / "docker.sock"
    environment = {**os.environ, "DOCKER_HOST": f"unix://{socket}", "PATH": search_path()}
    with (folder / "dockerd.log").open("ab") as log:
        process = subprocess.Popen(
            [
                "dockerd", "--data-root", str(folder / "data"), "--exec-root", str(folder / "run"),
                "--pidfile", str(folder / "dockerd.pid"), "--host", f"unix://{socket}",
            ],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + START_SECONDS
        while not answers(environment):
            if process.poll() is not None or time.monotonic() > end:
                words = (folder / "dockerd.log").read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
                raise NoEngine(f"dockerd does not start here: {' / '.join(words)}")
            time.sleep(0.2)
        yield environment
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def network_restored() -> Iterator[None]:
    """Undo what dockerd leaves behind when it ends: its bridge, its rules in the packet filter, and forwarding."""
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    bridge = Path("/sys/class/net/docker0")
    had_bridge, forwarded = bridge.exists(), forwarding.read_text(encoding="ascii")
    rules = run("iptables-save", environment={**os.environ, "PATH": search_path()})
    try:
        yield
    finally:
        environment = {**os.environ, "PATH": search_path()}
        run("iptables-restore", environment=environment, text=restoring(rules))
        if bridge.exists() and not had_bridge:
            run("ip", "link", "delete", "docker0", environment=environment)
        forwarding.write_text(forwarded, encoding="ascii")


def restoring(saved: str) -> str:
    """Return saved rules with the tables that were not in use then, emptied."""
    tables = {line[1:] for line in saved.splitlines() if line.startswith("*")}
    empty = {
        "filter": ("INPUT", "FORWARD", "OUTPUT"), "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    }  # fmt: skip
    for table in empty.keys() - tables:
        saved += f"*{table}\n" + "".join(f":{chain} ACCEPT [0:0]\n" for chain in empty[table]) + "COMMIT\n"
    return saved


def make_images(own: Engine, folder: Path, tell: Callable[[str], None]) -> None:
    """Make the stand-ins of the two official images where they are not there yet."""
    if not own.docker("images", "--quiet", PYTHON_IMAGE):
        tell(f"making {PYTHON_IMAGE} of Debian's packages (minutes)")
        make_python_image(own, folder / "base")
    if not own.docker("images", "--quiet", BROKER_IMAGE):
        tell(f"making {BROKER_IMAGE} of Debian's packages")
        recipe = BROKER_DOCKERFILE.format(python=PYTHON_IMAGE)
        run("docker", "build", "--quiet", "--tag", BROKER_IMAGE, "-", environment=own.environment, text=recipe)


def make_python_image(own: Engine, base: Path) -> None:
    """Bootstrap Debian 12 with Python and import it, with this machine's certificates."""
    remove(base)
    run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(base), environment=own.environment)
    for place in ("var/cache/apt/archives", "var/lib/apt/lists"):
        for path in (base / place).glob("*deb*"):
            path.unlink()
    if CERTIFICATES.is_file():
        shutil.copy(CERTIFICATES, base / CERTIFICATES.relative_to("/"))
    changes = ["ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", 'CMD ["python3"]']
    changes.append(f"ENV PIP_CERT={CERTIFICATES}")  # Debian's pip would look into its own bundle
    with subprocess.Popen(["tar", "--create", "--directory", str(base), "."], stdout=subprocess.PIPE) as archive:
        options = [word for change in changes for word in ("--change", change)]
        subprocess.run(
            ["docker", "import", *options, "-", PYTHON_IMAGE], env=dict(own.environment), stdin=archive.stdout,
            stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
    assert archive.returncode == 0
    remove(base)


def remove(folder: Path) -> None:
    """Unmount what is left below a folder, then delete it."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    for mount in sorted((place for place in mounts if place.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False)
    shutil.rmtree(folder, ignore_errors=True)
