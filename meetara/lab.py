"""The typed client: `async with Lab() as lab: job = await lab.train(domain="sleep", dataset="sleep.jsonl")`."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any, Literal

from bus import BrokerAddress, Client, keys
from meetara.home import locate
from meetara.job import Job
from meetara.news import JOB_TOPICS, News, heard, news, parsed
from meetara.request import checked, train_request
from protocol import Code, JobSnapshot, LabError, Progress, Retry, State, uuid7
from protocol.job import Empty, JobList, JobListQuery, Profile, Submitted, digest
from protocol.machine import Card, ListingPage, ListingQuery, Presence, Quote
from protocol.money import (
    BudgetReport,
    CapName,
    CapReply,
    CapRequest,
    EmergencyReport,
    EntriesQuery,
    Entry,
    EntryPage,
    UnfreezeRequest,
)
from protocol.signature import Signature, signed_text, submission
from protocol.voice import (
    MAX_AUDIO_PART,
    AudioPart,
    AudioQuery,
    EmotionQuery,
    EmotionReading,
    Speech,
    SpeechRequest,
    TextQuery,
    TextRoute,
    VoiceList,
)

SUBMIT_SECONDS = 180.0
"""A request is answered when it is planned and reserved; planning reads and tokenises the whole data set."""
ASK_AGAIN_SECONDS = 10.0
"""When a job was silent so long, the conductor is asked: a broker killed at a bad moment loses a retained message."""
GATE_SECONDS = 20.0
"""While the broker restarts it refuses users for some seconds, until the agents are back."""
QUIET_SECONDS = 0.3
"""Retained messages follow a subscription at once; so long a silence means that all have come."""

READ_AHEAD = 8
"""Parts of an audio file that are asked for at once, 1.4 MB: one after another each would wait a round trip."""


@dataclass(frozen=True)
class Agent:
    """An agent as it announces itself. `card` None: it has only said that it is here, or gone."""

    id: str
    role: str
    online: bool
    presence: Presence | None
    card: Card | None


class Lab:
    """A connection to a running lab. Everything not given is found as the command line finds it.

    Args:
        home: the home whose `meetara up` is meant.
        host: the broker's host.
        port: the broker's port.
        lab: the lab's name.
        name: shows in logs as the sender.
    """

    def __init__(
        self, *, home: Path | str | None = None, host: str | None = None, port: int | None = None,
        lab: str | None = None, name: str = "lab",
    ) -> None:  # fmt: skip
        address, chosen, self.home = locate(home=Path(home) if home else None, host=host, port=port, lab=lab)
        self.address = address
        self.lab = chosen
        self._name = name
        self._stack = AsyncExitStack()
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The bus client, for calls that this class does not spell out."""
        if self._client is None:
            raise RuntimeError("use it as `async with Lab() as lab`")
        return self._client

    async def __aenter__(self) -> Lab:
        """Connect.

        Raises:
            LabError: UNREACHABLE, or CONFIGURATION when the broker refuses this user.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + GATE_SECONDS
        while True:
            try:
                self._client = await self._stack.enter_async_context(Client(self.address, self.lab, name=self._name))
                return self
            except LabError as error:
                refused = "not authori" in str(error).lower()
                if refused and (self.address.tls or self.address.username is not None):
                    raise _no_login(self.address) from error
                if not refused or loop.time() > end:
                    if refused:
                        raise LabError(
                            Code.UNREACHABLE, f"the broker at {self.address} lets no users in.",
                            advice="The lab is still starting (wait for `ready`), or the broker wants a login: "
                            "MEETARA_BROKER_USER and MEETARA_BROKER_PASSWORD.",
                            retry=Retry.LATER,
                        ) from error  # fmt: skip
                    raise
            await asyncio.sleep(0.3)

    async def __aexit__(self, *details: Any) -> None:
        await self._stack.aclose()
        self._client = None

    async def train(
        self,
        *,
        dataset: str | Path,
        domain: str | None = None,
        text: str | None = None,
        eval_dataset: str | Path | None = None,
        tier: str | None = None,
        base: str | Path | None = None,
        profile: Profile = "edge",
        priority: int = 1,
        quantisation: str | None = None,
        budget_usd: float | None = None,
        parameters: dict[str, float | int | str | bool] | None = None,
        use_cache: bool = True,
        licence: str | None = None,
        checkpoints: Literal["machine", "store"] | None = None,
        deadline_hours: float | None = None,
        providers: list[str] | None = None,
        untrusted_hosts: bool = False,
        id: str | None = None,
        timeout: float = SUBMIT_SECONDS,
    ) -> Job:
        """Submit a training request; returns when it is planned and its budget is reserved, or the model is there already.

        What the model is for is a `domain`, or a `text` in free words from which the router finds it. Paths are those of this
        process: they are sent as absolute file URIs. The fields are those of `protocol.job.TrainRequest`; `id` makes the
        request repeatable (same id and body: the same job).

        Raises:
            LabError: what was wrong with the request, or why it was refused; UNKNOWN_DOMAIN with the question which domain
                is meant, and the three likeliest in `data["nearest"]`.
        """
        request = train_request(
            dataset, eval_dataset, base, domain=domain, text=text, tier=tier, profile=profile, priority=priority,
            quantisation=quantisation, budget_usd=budget_usd, parameters=parameters or {}, use_cache=use_cache,
            licence=licence, checkpoints=checkpoints, deadline_hours=deadline_hours, providers=providers,
            untrusted_hosts=untrusted_hosts,
        )  # fmt: skip
        id = id or uuid7()
        key = keys.own(self.home / keys.FOLDER)
        if key is not None:
            signature = key.sign(submission(self.lab, id, digest(request)))
            request = request.model_copy(update={"signature": signature})
        submitted: Submitted = await self.client.call(
            "train.submit", request, id=id, timeout=timeout, priority=priority
        )
        if submitted.state is State.REFUSED:
            raise LabError(
                Code.INVALID_REQUEST, submitted.message or f"the job {submitted.job} was refused.", job=submitted.job
            )
        return Job(self, submitted.job, submitted)

    async def quote(
        self, *, dataset: str | Path, eval_dataset: str | Path | None = None, base: str | Path | None = None,
        timeout: float = SUBMIT_SECONDS, **fields: Any,
    ) -> Quote:  # fmt: skip
        """Ask what a training request would take and cost on each machine; nothing is started or kept.

        Args:
            fields: as `train` takes them.

        Raises:
            LabError: what was wrong with the request, or why no machine would take it; as `train`.
        """
        request = train_request(dataset, eval_dataset, base, **fields)
        quote: Quote = await self.client.call("train.quote", request, timeout=timeout)
        return quote

    async def offers(self, *, timeout: float | None = None, **conditions: Any) -> ListingPage:
        """Return what machines are for sale, cheapest first, this lab's own among them.

        Args:
            conditions: those of `protocol.machine.ListingQuery`, such as gpu="T4" or max_price_usd=1.

        Raises:
            LabError: INVALID_PARAMS; no GPU or provider has such a name, or a number is negative.
        """
        query = checked(ListingQuery, conditions)
        page: ListingPage = await self.client.call("offer.list", query, timeout=timeout)
        return page

    async def job(self, id: str) -> Job:
        """Return a job that exists.

        Raises:
            LabError: NOT_FOUND.
        """
        job = Job(self, id)
        await job.snapshot()
        return job

    async def jobs(self, *, timeout: float | None = None) -> list[JobSnapshot]:
        """Return all jobs that the conductor knows, newest first; `timeout` in seconds, for each page of them."""
        found: list[JobSnapshot] = []
        while True:
            query = JobListQuery(before=found[-1].job if found else None)
            page: JobList = await self.client.call("job.list", query, timeout=timeout)
            found += page.jobs
            if not page.more:
                return found

    async def budget(self) -> BudgetReport:
        """Return the state of the ledger."""
        report: BudgetReport = await self.client.call("budget.report", Empty())
        return report

    async def stopped(self) -> EmergencyReport | None:
        """Return what the last freeze has stopped; None: nothing was."""
        async with self.client.subscription("cost_stopped") as messages:
            with suppress(TimeoutError):
                _, payload = await asyncio.wait_for(anext(messages), QUIET_SECONDS)
                found = parsed(EmergencyReport, payload)
                return found if isinstance(found, EmergencyReport) else None
        return None

    async def entries(self) -> AsyncGenerator[Entry, None]:
        """Yield every line of the ledger, the oldest first."""
        after, more = 0, True
        while more:
            page: EntryPage = await self.client.call("budget.entries", EntriesQuery(after=after))
            for entry in page.entries:
                yield entry
                after = entry.number
            more = page.more

    async def set_budget(self, name: CapName, usd: float, *, sign: bool = True) -> CapReply:
        """Change a budget: a lower one holds at once, a higher one when it is signed by a key that the lab trusts.

        Args:
            name: daily_usd, weekly_usd or monthly_usd.
            sign: with the home's key, where it has one.

        Raises:
            LabError: INVALID_PARAMS, no budget can be so; BUDGET, it is below what is spent and reserved.
        """
        at = datetime.now(UTC)
        request = checked(CapRequest, {"name": name, "usd": usd})
        if sign and keys.own(self.home / keys.FOLDER) is not None:
            micros = int((Decimal(str(request.usd)) * 1_000_000).to_integral_value(ROUND_FLOOR))
            signature = self.signed("budget.set", name, micros, at.isoformat())
            request = request.model_copy(update={"at": at, "signature": signature})
        reply: CapReply = await self.client.call("budget.set", request)
        return reply

    async def unfreeze(self, provider: str) -> None:
        """Trust a provider again whose bill was far from its price, signed by the home's key.

        Raises:
            LabError: NOT_FOUND, it is not frozen; else as `Job.approve`.
        """
        at = datetime.now(UTC)
        signature = self.signed("budget.unfreeze", provider, at.isoformat())
        await self.client.call("budget.unfreeze", UnfreezeRequest(provider=provider, at=at, signature=signature))

    def signed(self, method: str, *parts: str | int) -> Signature:
        """Sign a call with the home's key.

        Raises:
            LabError: CONFIGURATION, the home has none.
        """
        key = keys.own(self.home / keys.FOLDER)
        if key is None:
            raise LabError(
                Code.CONFIGURATION, f"the home {self.home} has no key to sign with.",
                advice="Make one: meetara keys make. Where the lab is another home's, its owner then adds it there.",
                file=str(self.home / keys.FOLDER),
            )  # fmt: skip
        return key.sign(signed_text(self.lab, method, *parts))

    async def route(self, text: str, *, timeout: float | None = None) -> TextRoute:
        """Ask which domain a text belongs to; nothing is started.

        Raises:
            LabError: the text is empty or too long, or the router does not answer.
        """
        found: TextRoute = await self.client.call("route.text", checked(TextQuery, {"text": text}), timeout=timeout)
        return found

    async def emotion(self, text: str, *, domain: str | None = None, timeout: float | None = None) -> EmotionReading:
        """Ask what feeling a text carries, in the context of a domain.

        Raises:
            LabError: the text is empty or too long, the domain is unknown, or the emotion agent does not answer.
        """
        query = checked(EmotionQuery, {"text": text, "domain": domain})
        found: EmotionReading = await self.client.call("emotion.analyse", query, timeout=timeout)
        return found

    async def voices(self) -> VoiceList:
        """Return the voices of the lab and which domains use them."""
        found: VoiceList = await self.client.call("speech.voices", Empty())
        return found

    async def say(
        self,
        text: str,
        *,
        domain: str | None = None,
        profile: str | None = None,
        emotion: str | None = None,
        intensity: float | None = None,
        timeout: float | None = None,
    ) -> tuple[bytes, Speech]:
        """Have a text spoken; the fields are those of `protocol.voice.SpeechRequest`.

        Returns:
            The WAV file's bytes (16-bit mono), compared with their sha256, and what is known about them.

        Raises:
            LabError: what is wrong with the request, or why there is no audio.
        """
        fields = {"text": text, "domain": domain, "profile": profile, "emotion": emotion, "intensity": intensity}
        request = checked(SpeechRequest, fields)
        speech: Speech = await self.client.call("speech.synthesise", request, timeout=timeout)
        audio = bytearray()
        places = range(0, speech.bytes, MAX_AUDIO_PART)
        for first in range(0, len(places), READ_AHEAD):
            parts: list[AudioPart] = await asyncio.gather(*(
                self.client.call("speech.read", AudioQuery(sha256=speech.sha256, offset=place), to=speech.agent)
                for place in places[first : first + READ_AHEAD]
            ))  # fmt: skip
            for part in parts:
                audio += base64.b64decode(part.base64)
        if hashlib.sha256(audio).hexdigest() != speech.sha256:
            raise LabError(
                Code.BAD_DATA, f"the audio that {speech.agent} sent is not what it announced ({speech.sha256[:12]}…).",
                advice="Say it again; if it stays so, the file on its disk is damaged: remove it.", uri=speech.uri,
            )  # fmt: skip
        return bytes(audio), speech

    async def online(self, *roles: str) -> set[str]:
        """Return which of these roles have an agent online; quick where all of them have one."""
        found: set[str] = set()
        async with self.client.subscription("presence", role="+", agent="+") as messages:
            with suppress(TimeoutError):
                while not found.issuperset(roles):
                    _, payload = await asyncio.wait_for(anext(messages), QUIET_SECONDS)
                    presence = parsed(Presence, payload)
                    if isinstance(presence, Presence) and presence.online:
                        found.add(presence.role)
        return found.intersection(roles)

    async def agents(self) -> list[Agent]:
        """Return all agents that have announced themselves, by id."""
        cards: dict[str, Card] = {}
        presences: dict[str, Presence] = {}
        async with AsyncExitStack() as stack:
            for name, found, model in (("card", cards, Card), ("presence", presences, Presence)):
                messages = await stack.enter_async_context(self.client.subscription(name, role="+", agent="+"))
                with suppress(TimeoutError):
                    while True:
                        _, payload = await asyncio.wait_for(anext(messages), QUIET_SECONDS)
                        item = parsed(model, payload)
                        if item is not None:
                            found[item.agent] = item  # type: ignore[assignment,attr-defined]
        agents = []
        for name in sorted(cards.keys() | presences.keys()):
            card, presence = cards.get(name), presences.get(name)
            role = card.role if card else presence.role if presence else ""
            agents.append(Agent(name, role, bool(presence and presence.online), presence, card))
        return agents

    async def updates(
        self, job: str = "+", *, ask_again: Callable[[], Awaitable[JobSnapshot]] | None = None
    ) -> AsyncGenerator[JobSnapshot | Progress, None]:
        """Yield snapshots and progress of one job or of all, without end; what is retained comes first.

        Args:
            job: a job's id, or `+` for all.
            ask_again: an async function that gives the snapshot after a long silence.
        """
        queue: asyncio.Queue[Any] = asyncio.Queue()
        async with heard(self.client, JOB_TOPICS, queue, job=job):
            while True:
                item: JobSnapshot | Progress
                try:
                    async with asyncio.timeout(ASK_AGAIN_SECONDS if ask_again else None):
                        item = await queue.get()
                except TimeoutError:
                    assert ask_again is not None
                    try:
                        item = await ask_again()
                    except LabError:  # the conductor is away; ask again later
                        continue
                yield item

    def news(self) -> AsyncGenerator[News, None]:
        """Yield everything that changes in the lab, typed and without end: jobs, progress, cards and presences of agents,
        providers, alerts, the ledger after each change, and a `Link` when the connection is lost or back."""
        return news(self.client)


def _no_login(address: BrokerAddress) -> LabError:
    who = "nobody in who has no login" if address.username is None else f"the login {address.username!r} not in"
    return LabError(
        Code.CONFIGURATION, f"the broker at {address} lets {who}.",
        advice="Set MEETARA_BROKER_USER and MEETARA_BROKER_PASSWORD to what `meetara user add NAME` has printed there.",
        field="broker",
    )  # fmt: skip
