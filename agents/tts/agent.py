"""The shell of speech: says what it is asked to, keeps the audio for a while, and hands it out in parts."""

from __future__ import annotations

import asyncio
import base64
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, cast

from agents.tts import core, synthesis
from agents.tts.recordings import Recording, Recordings
from bus import DEFERRED, BaseAgent, Deferred, Transaction, Wiring
from bus.redact import of_error
from configs import Configs, load
from protocol import Code, LabError, MCPMessage, Retry
from protocol.voice import MAX_AUDIO_PART, AudioPart, AudioQuery, Speech, SpeechRequest, Voice, VoiceList

WORKERS = 2
"""Processes at once: a long text must not hold up a short one, and more than a core or two belong to training."""
WAITING_LIMIT = 200
"""Texts that may wait: two minutes of work for ordinary ones."""
PRUNE_EVERY = timedelta(hours=1)

SCHEMA = """
CREATE TABLE recordings (            -- which file an utterance became; a row may outlive its file
    key TEXT PRIMARY KEY,            -- sha256 of text, settings and synthesiser
    sha256 TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    sample_rate INTEGER NOT NULL,
    seconds REAL NOT NULL
);
CREATE INDEX recordings_sha256 ON recordings (sha256);
"""


@dataclass
class Order:
    """Audio that is to be made, and the calls that wait for it."""

    utterance: core.Utterance
    calls: dict[str, core.Utterance] = field(default_factory=dict)


class SpeechAgent(BaseAgent):
    """Turns texts into speech, each in a process of its own; the same text and voice again is the same file."""

    role = "tts"
    migrations: ClassVar[tuple[str, ...]] = (SCHEMA,)

    def __init__(self, wiring: Wiring, configs: Configs | None = None, recordings: Recordings | None = None) -> None:
        self.configs = configs or load()  # before the store is opened: a bad value must leave nothing behind
        self.system = synthesis.system()
        super().__init__(wiring)
        self.recordings = recordings or Recordings(self.home / "speech", self.agent)
        self.message_handlers |= {
            "speech.synthesise": self.synthesise, "speech.read": self.read, "speech.voices": self.voices,
        }  # fmt: skip
        self.timer_handlers["prune"] = self.prune
        self.orders: dict[str, Order] = {}
        self.queue: asyncio.PriorityQueue[tuple[int, int, str]] = asyncio.PriorityQueue()
        self.taken = 0

    async def started(self) -> None:
        """Take up the texts that the last process left."""
        with self.transaction() as tx:
            tx.store.reopen(["speech.synthesise"])
            self.prune("", {}, tx)
        for _ in range(WORKERS):
            self.spawn(self.work())

    def synthesise(self, message: MCPMessage, tx: Transaction) -> Speech | Deferred:
        """Answer at once what has been said before, queue the rest."""
        utterance = core.utter(cast(SpeechRequest, self.params(message)), self.configs)
        key = utterance.key(self.system)
        known = self.known(key, tx)
        if known is not None:
            return self.speech(utterance, known, None)
        if key not in self.orders and len(self.orders) >= WAITING_LIMIT:
            raise LabError(
                Code.BUSY, f"{self.agent} has {len(self.orders)} texts waiting.", advice="Send it again in 10 seconds.",
                retry=Retry.LATER, retry_after=10,
            )  # fmt: skip

        def queue() -> None:
            if key not in self.orders:
                self.orders[key] = Order(utterance)
                self.taken += 1
                self.queue.put_nowait((-message.priority, self.taken, key))
            self.orders[key].calls[message.id] = utterance

        tx.after_commit(queue)
        return DEFERRED

    def known(self, key: str, tx: Transaction) -> Recording | None:
        """Return an utterance's recording if its file is still there."""
        row = tx.connection.execute(
            "SELECT sha256, bytes, sample_rate, seconds FROM recordings WHERE key = ?", (key,)
        ).fetchone()
        recording = Recording(*row) if row else None
        return recording if recording is not None and self.recordings.has(recording, tx.now) else None

    async def work(self) -> None:
        """Say what waits, most urgent first, one after another."""
        while True:
            _, _, key = await self.queue.get()
            order = self.orders[key]
            begin = time.monotonic()
            outcome: Recording | LabError
            try:
                outcome = await self.record(key, order.utterance)
            except LabError as error:
                self.log.warning("speech failed", **of_error(error))
                outcome = error
            milliseconds = (time.monotonic() - begin) * 1000
            with self.transaction() as tx:
                del self.orders[key]
                if isinstance(outcome, Recording):
                    tx.connection.execute(
                        "INSERT OR REPLACE INTO recordings VALUES (?, ?, ?, ?, ?)",
                        (key, outcome.sha256, outcome.bytes, outcome.sample_rate, outcome.seconds),
                    )
                    self.forget_removed(tx)
                for call, utterance in order.calls.items():
                    if isinstance(outcome, Recording):
                        tx.reply(call, self.speech(utterance, outcome, milliseconds))
                    else:
                        tx.reply(call, outcome)

    async def record(self, key: str, utterance: core.Utterance) -> Recording:
        """Make an utterance's file; nothing unfinished is left, however it ends."""
        part = self.recordings.part(key)
        try:
            await synthesis.synthesise(utterance, part)
            return await asyncio.to_thread(self.recordings.keep, part, self.now())
        finally:
            part.unlink(missing_ok=True)

    def speech(self, utterance: core.Utterance, recording: Recording, milliseconds: float | None) -> Speech:
        return Speech(
            sha256=recording.sha256, bytes=recording.bytes, uri=self.recordings.path(recording.sha256).as_uri(),
            agent=self.agent, sample_rate=recording.sample_rate, seconds=recording.seconds, profile=utterance.profile,
            emotion=utterance.emotion, overridden=utterance.overridden, system=self.system,
            generation_time_ms=None if milliseconds is None else round(milliseconds, 1),
        )  # fmt: skip

    def read(self, message: MCPMessage, tx: Transaction) -> AudioPart:
        """Give a part of a file."""
        query = cast(AudioQuery, self.params(message))
        data, total = self.recordings.read(query.sha256, query.offset, MAX_AUDIO_PART)
        return AudioPart(base64=base64.b64encode(data).decode(), offset=query.offset, total=total)

    def voices(self, message: MCPMessage, tx: Transaction) -> VoiceList:
        """List the profiles and who uses them."""
        domains = self.configs.domains.values()
        return VoiceList(
            system=self.system,
            voices=[
                Voice(
                    profile=name, **voice.model_dump(),
                    domains=[domain.name for domain in domains if domain.voice == name],
                )
                for name, voice in self.configs.voices.voices.items()
            ],
        )  # fmt: skip

    def prune(self, key: str, data: dict[str, Any], tx: Transaction) -> None:
        """Keep the folder within its limits; every hour, and whenever a file was added."""
        tx.timer("prune", "", tx.now + PRUNE_EVERY)
        self.forget_removed(tx)

    def forget_removed(self, tx: Transaction) -> None:
        removed = self.recordings.prune(tx.now)
        tx.connection.executemany("DELETE FROM recordings WHERE sha256 = ?", [(sha256,) for sha256 in removed])
