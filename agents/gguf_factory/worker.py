"""A factory on a rented machine: it dials out to a lab, trains what that lab leases to it, and ends with its rental.

    MEETARA_TOKEN=… python -m agents.gguf_factory.worker --broker mqtts://HOST:PORT --home DIR

What happens goes to stdout as JSON lines (`kind`: worker, online, offline, lease, stage_started, progress, stage_done, done,
failed, stopped, over; the last may be `error`), the log to stderr. Exit codes: 0 when its token is over or there was nothing to
do for too long, 1 when it crashed, 2 when something must be corrected first, 3 when no broker answered.

Nothing of how it ends depends on the bus: a job whose lease is not renewed is checkpointed (agent.UNHEARD), and a worker without
a job ends after `--idle` seconds; `meetara worker`, which starts it, can turn the machine off then. Keys of a provider never
come here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import aiomqtt

from agents.gguf_factory.agent import FactoryAgent
from agents.gguf_factory.device import device
from bus import BrokerAddress, Wiring, workers
from bus.files import write_private
from bus.logs import configure, wanted
from bus.redact import clean
from bus.session import refuses_login
from configs import Configs, tiers
from protocol.access import WORKER_SERVES
from protocol.errors import Code, LabError, Retry
from protocol.job import RunRequest
from protocol.machine import Card

WAIT_S = 60.0
"""How long a broker may be silent at first. Later it may be away for as long as it likes: jobs go on, and `--idle` ends the
rest."""
IDLE_S = 600.0
"""Without a job for so long a worker is of no use: longer than a warm machine is held for a similar job, and ten minutes of the
dearest usual GPU cost 50 cents."""
REFUSED_S = 1.0
"""A login that held before and is refused for so long is over."""
REFUSED_WORKING_S = 30.0
"""The same with a job: a broker that was set up anew needs a moment to be told of its workers, and training is dear."""
TOLD = (
    "stage", "seconds", "step", "steps", "loss", "tokens_per_s", "eta_s", "note", "artefacts", "error",
)  # fmt: skip
"""What of a job's own lines is shown here."""
OK, CRASHED, WRONG, UNREACHABLE = 0, 1, 2, 3


class Worker(FactoryAgent):
    """A factory that one rental's jobs are leased to.

    Args:
        wiring: its name is the token's.
        token: who it is.
        slots: jobs at once.
        tell: takes what happens, as facts of one line.
        wait_s: seconds that the broker may be away at first.
        idle_s: seconds without a job after which it ends.
        monotonic: seconds of a clock that only goes forward.
        configs: the configuration; default: as it is found.
    """

    shares_calls: ClassVar[bool] = False

    def __init__(
        self, wiring: Wiring, token: workers.Token, *, slots: int = 1, tell: Callable[[dict[str, Any]], None],
        wait_s: float = WAIT_S, idle_s: float = IDLE_S, monotonic: Callable[[], float] = time.monotonic,
        configs: Configs | None = None,
    ) -> None:  # fmt: skip
        super().__init__(wiring, configs)
        self.token = token
        self.slots = slots
        self.own_configs: Path | None = None
        if "MEETARA_CONFIGS" not in os.environ:
            self.own_configs = self.home / "configs"
            self.own_configs.mkdir(parents=True, exist_ok=True)
            os.environ["MEETARA_CONFIGS"] = str(self.own_configs)  # for the jobs' processes
        self.tell = tell
        self.wait_s, self.idle_s = wait_s, idle_s
        self.monotonic = monotonic
        for method in ("job.plan", "model.remember"):  # for factories that have a home of the lab's
            del self.message_handlers[method]
        self._began = self._busy_at = monotonic()
        self._online_once = False
        self._refused_since: float | None = None
        self._told_offline = False

    def card(self) -> Card:
        """What this machine really has, and whose it is."""
        card = super().card()
        methods = {name: digest for name, digest in card.methods.items() if name in WORKER_SERVES}
        return card.model_copy(update={"methods": methods, "provider": self.token.provider, "rental": self.token.rental})

    async def run(self) -> None:
        """Serve until the token is over, or nothing was to be done for too long.

        Raises:
            LabError: CONFIGURATION, the broker or its certificate refuses; UNREACHABLE, it never answered.
        """
        here = device(self.home).model_dump(mode="json")
        told = {"worker": self.agent, "rental": self.token.rental, "provider": self.token.provider, "lab": self.token.lab}
        self.tell({"kind": "worker", **told, "version": self.token.version, "broker": str(self.wiring.broker), "device": here})
        self.spawn(self._leave_when_idle())
        await super().run()

    def announce(self, *, again: bool = False) -> None:
        """Publish card and presence; on every connection."""
        super().announce(again=again)
        if again:
            self._online_once, self._refused_since, self._told_offline = True, None, False
            self.tell({"kind": "online", "slots": self.slots, "jobs": sorted(self.processes)})

    def disconnected(self, error: aiomqtt.MqttError) -> None:
        """Try again, unless the broker does not know this token (any more), or never was there."""
        now = self.monotonic()
        if not self._told_offline:
            self.tell({"kind": "offline", "reason": str(error)})
            self._told_offline = True
        if refuses_login(error):
            self._login_refused(error, now)
            return
        self._refused_since = None
        if not self._online_once and now - self._began > self.wait_s:
            raise LabError(
                Code.UNREACHABLE, f"no broker answered at {self.wiring.broker} for {self.wait_s:.0f} s: {error}.",
                advice="Check the address, that the lab is up (`meetara up --listen …`), and that its port is open to this "
                "machine.",
                retry=Retry.LATER, field="broker",
            ) from error  # fmt: skip

    def _login_refused(self, error: aiomqtt.MqttError, now: float) -> None:
        if not self._online_once:
            raise LabError(
                Code.CONFIGURATION, f"the broker at {self.wiring.broker} does not take the token of {self.agent}.",
                advice="Its rental is over, or it is another lab's: rent anew, and copy the new token whole.", field="token",
            ) from error  # fmt: skip
        self._refused_since = now if self._refused_since is None else self._refused_since
        if now - self._refused_since > (REFUSED_WORKING_S if self.processes else REFUSED_S):
            self.leave("the token is over: the rental has ended.")

    def leave(self, reason: str) -> None:
        """End after a last checkpoint of every job."""
        if not self._stop.is_set():
            self.log.info("leaving", reason=reason)
            self.tell({"kind": "over", "reason": reason})
            self._stop.set()

    async def _leave_when_idle(self) -> None:
        """It does not ask the bus: a job's process is ended where nobody renews its lease."""
        while True:
            now = self.monotonic()
            if self.processes:
                self._busy_at = now
            rest = self._busy_at + self.idle_s - now
            if rest <= 0:
                self.leave(f"there was no job for {self.idle_s:.0f} s.")
                return
            await asyncio.sleep(min(rest, 5.0))

    def launch(self, run: RunRequest) -> None:
        """Start a job's process."""
        self.tell({
            "kind": "lease", "job": run.job, "attempt": run.attempt, "fence": run.fence, "domain": run.route.domain,
            "base": run.route.base, "steps": run.plan.steps,
        })  # fmt: skip
        if run.plan.terms is not None and self.own_configs is not None:  # the lab's tier, which need not be one of ours
            tiers.write(self.own_configs, run.route.tier, run.plan.terms)
        super().launch(run)

    def heard(self, run: RunRequest, line: dict[str, Any]) -> None:
        """Pass on what a job's process says, and show it here."""
        super().heard(run, line)
        facts = {name: line[name] for name in TOLD if line.get(name) is not None}
        self.tell({"kind": line["kind"], "job": run.job, **facts})


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    environment = os.environ.get
    parser = argparse.ArgumentParser(
        prog="python -m agents.gguf_factory.worker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", default=environment("MEETARA_BROKER"), help="mqtts://HOST:PORT (MEETARA_BROKER)")
    parser.add_argument("--home", type=Path, default=environment("MEETARA_HOME"), help="where it works (MEETARA_HOME)")
    parser.add_argument("--ca", type=Path, default=environment("MEETARA_BROKER_CA"), help="the authority, if not the token's")
    parser.add_argument("--slots", type=int, default=environment("MEETARA_SLOTS") or "1", help="jobs at once")
    # fmt: off
    parser.add_argument("--wait", type=float, default=environment("MEETARA_WORKER_WAIT") or str(WAIT_S),
                        help="seconds that the broker may be silent at first")
    parser.add_argument("--idle", type=float, default=environment("MEETARA_WORKER_IDLE") or str(IDLE_S),
                        help="seconds without a job after which it ends")
    # fmt: on
    return parser.parse_args(arguments)


def worker_of(given: argparse.Namespace, token: workers.Token, tell: Callable[[dict[str, Any]], None]) -> Worker:
    """Return the worker that was asked for; its home and its CA file are made.

    Raises:
        LabError: CONFIGURATION, the token does not fit, the address is wrong or not encrypted, or the home cannot be written.
    """
    token.check()
    if not given.broker or given.home is None:
        raise LabError(
            Code.CONFIGURATION, f"the worker was told no {'home' if given.broker else 'broker'}.",
            advice="Give --broker mqtts://HOST:PORT and --home DIR.", field="broker",
        )  # fmt: skip
    home = Path(given.home).absolute()
    address = BrokerAddress.read({}, broker=given.broker)
    if not address.tls and not address.loopback:
        raise LabError(
            Code.CONFIGURATION, f"a token is not sent to {address} without TLS.",
            advice=f"Write mqtts://{address}, and open the lab there with `meetara up --listen`.", field="broker",
        )  # fmt: skip
    authority = Path(given.ca) if given.ca else None
    try:
        home.mkdir(parents=True, exist_ok=True)
        if authority is None and token.ca:
            authority = home / "broker-ca.pem"
            write_private(authority, token.ca)
    except OSError as error:
        raise LabError(
            Code.CONFIGURATION, f"the home {home} cannot be written: {error.strerror}.",
            advice="Choose another one with --home.", file=str(home),
        ) from error  # fmt: skip
    address = token.address(BrokerAddress(address.host, address.port, tls=address.tls, ca=authority))
    return Worker(
        Wiring(token.worker, home, address, token.lab), token, slots=given.slots, tell=tell, wait_s=given.wait,
        idle_s=given.idle,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Be a worker until the end and return the exit code."""
    text = os.environ.pop(workers.VARIABLE, "")  # jobs must not have it, nor what their libraries print
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print goes beside the lines

    def tell(facts: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # who watched is gone; the work goes on
            print(json.dumps(facts, ensure_ascii=False), file=out, flush=True)

    try:
        given = options(arguments)
        token = workers.Token.read(text)
        configure(token.worker, *wanted())
        asyncio.run(worker_of(given, token, tell).run())
    except LabError as error:
        tell({"kind": "error", "error": error.body().model_dump(mode="json")})
        print(f"worker: {clean(str(error), quotes=False)}", file=sys.stderr, flush=True)
        return UNREACHABLE if error.code is Code.UNREACHABLE else CRASHED if error.retry is Retry.LATER else WRONG
    return OK


if __name__ == "__main__":
    sys.exit(main())
