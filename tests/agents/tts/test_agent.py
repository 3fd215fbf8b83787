"""The agent on a real broker with the real synthesiser: answers, restarts, crashes, audio over the wire."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from agents.tts import synthesis
from agents.tts.agent import SpeechAgent
from agents.tts.recordings import Recordings
from bus import Client, Wiring
from bus.process import utc_now
from protocol import Code, LabError
from protocol.job import Empty
from protocol.voice import MAX_AUDIO_PART, AudioQuery, Speech, SpeechRequest, VoiceList
from tests.conftest import PlainBroker

PAGE = "Plan the week on Sunday evening. Write down three things, not thirty. " * 15


class Counted(SpeechAgent):
    """Counts the syntheses; each waits while `gate` is closed."""

    def __init__(self, wiring: Wiring, **given: Any) -> None:
        super().__init__(wiring, **given)
        self.made: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def record(self, key: str, utterance: Any) -> Any:
        self.made.append(utterance.text)
        await self.gate.wait()
        return await super().record(key, utterance)


@asynccontextmanager
async def running(agent: SpeechAgent) -> AsyncIterator[SpeechAgent]:
    task = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        agent._stop.set()
        await task


@pytest.fixture
def wiring(broker: PlainBroker, tmp_path: Path) -> Wiring:
    return Wiring("tts-1", tmp_path / "home", broker.address)


async def say(client: Client, text: str = "Good morning.", **fields: Any) -> Speech:
    speech: Speech = await client.call("speech.synthesise", SpeechRequest(text=text, **fields))
    return speech


async def fetch(client: Client, speech: Speech) -> bytes:
    audio, parts = b"", 0
    while len(audio) < speech.bytes:
        part = await client.call("speech.read", AudioQuery(sha256=speech.sha256, offset=len(audio)), to=speech.agent)
        audio += base64.b64decode(part.base64)
        parts += 1
    assert parts == -(-speech.bytes // MAX_AUDIO_PART)
    return audio


async def test_a_text_becomes_audio_that_is_fetched_in_parts(wiring: Wiring) -> None:
    async with running(Counted(wiring)), Client(wiring.broker) as client:
        speech = await say(client, PAGE, domain="sleep", emotion="joy", intensity=0.9)
        audio = await fetch(client, speech)
    assert hashlib.sha256(audio).hexdigest() == speech.sha256 and len(audio) == speech.bytes > MAX_AUDIO_PART
    assert (speech.profile, speech.emotion, speech.overridden) == ("creative", "joy", True)
    assert speech.seconds == pytest.approx((speech.bytes - 44) / 2 / speech.sample_rate, abs=0.001)
    assert speech.uri == (wiring.home / "speech" / f"{speech.sha256}.wav").as_uri()
    assert speech.generation_time_ms is not None and "espeak-ng" in speech.system


async def test_the_same_text_and_voice_again_is_the_same_file_without_a_synthesis(wiring: Wiring) -> None:
    agent = Counted(wiring)
    async with running(agent), Client(wiring.broker) as client:
        first = await say(client)
        second = await say(client, profile="professional", emotion="neutral")
        assert (second.sha256, second.generation_time_ms, second.emotion) == (first.sha256, None, "neutral")
        other = await say(client, profile="creative")
        assert other.sha256 != first.sha256 and len(agent.made) == 2
        agent.recordings.path(first.sha256).unlink()
        third = await say(client)
        assert third.sha256 == first.sha256 and third.generation_time_ms is not None, "made again, of the same bytes"
        shutil.rmtree(agent.recordings.folder)
        assert (await say(client)).sha256 == first.sha256


async def test_calls_for_the_same_audio_at_once_share_one_synthesis(wiring: Wiring) -> None:
    agent = Counted(wiring)
    async with running(agent), Client(wiring.broker) as client:
        agent.gate.clear()
        calls = [asyncio.create_task(say(client, emotion=emotion, intensity=0.1)) for emotion in ("joy", "fear", "anger")]
        while not agent.orders or len(next(iter(agent.orders.values())).calls) < 3:
            await asyncio.sleep(0.01)
        agent.gate.set()
        speeches = await asyncio.gather(*calls)
    assert len(agent.made) == 1 and len({speech.sha256 for speech in speeches}) == 1
    assert [speech.emotion for speech in speeches] == ["joy", "fear", "anger"]


async def test_a_call_that_was_open_when_the_agent_was_stopped_is_answered_after_the_restart(wiring: Wiring) -> None:
    first = Counted(wiring)
    first.gate.clear()
    async with Client(wiring.broker) as client:
        async with running(first):
            asking = asyncio.create_task(say(client))
            while not first.made:
                await asyncio.sleep(0.01)
        assert not asking.done()
        second = Counted(wiring)
        async with running(second):
            speech = await asking
    assert speech.profile == "professional" and second.made == ["Good morning."]


async def test_a_killed_agent_and_its_synthesiser_leave_nothing_and_answer_after_the_restart(
    wiring: Wiring, broker: PlainBroker
) -> None:
    """The whole process is killed while its synthesiser works, as the out-of-memory killer does it."""
    port = str(broker.address.port)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agents.tts", "--home", str(wiring.home), "--port", port
    )
    async with Client(wiring.broker) as client:
        asking = asyncio.create_task(say(client, PAGE * 3))
        while not (children := psutil.Process(process.pid).children()):
            await asyncio.sleep(0.005)
        children[0].suspend()
        process.kill()
        await process.wait()
        children[0].kill()
        assert list((wiring.home / "speech").glob(".*.part"))
        agent = Counted(wiring)
        async with running(agent):
            speech = await asking
            assert len(await fetch(client, speech)) == speech.bytes
    assert [path.name for path in (wiring.home / "speech").iterdir()] == [f"{speech.sha256}.wav"]


async def test_a_crash_of_the_synthesiser_is_answered_and_the_agent_lives_on(
    wiring: Wiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Counted(wiring)) as agent, Client(wiring.broker) as client:
        with monkeypatch.context() as patch:
            patch.setattr(synthesis.sys, "executable", "/bin/false")
            with pytest.raises(LabError, match="ended with status 1") as caught:
                await say(client)
            assert caught.value.code is Code.INTERNAL and caught.value.advice
            patch.setattr(synthesis.sys, "executable", "/nowhere/python")
            with pytest.raises(LabError, match="cannot start"):
                await say(client)
        assert (await say(client)).seconds > 0.5
        assert agent.orders == {} and not list(agent.recordings.folder.glob(".*"))


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"domain": "slep"}, Code.UNKNOWN_DOMAIN, "domain"), ({"profile": "loud"}, Code.INVALID_PARAMS, "profile"),
        ({"emotion": "rage"}, Code.INVALID_PARAMS, "emotion"), ({"text": "…"}, Code.INVALID_PARAMS, "text"),
    ],
)  # fmt: skip
async def test_wrong_requests_are_answered_with_their_field(
    wiring: Wiring, fields: dict[str, Any], code: Code, field: str
) -> None:
    async with running(Counted(wiring)), Client(wiring.broker) as client:
        with pytest.raises(LabError) as caught:
            await say(client, **fields)
    assert (caught.value.code, caught.value.data["field"]) == (code, field)


async def test_unknown_audio_is_not_found_over_the_wire(wiring: Wiring) -> None:
    async with running(Counted(wiring)), Client(wiring.broker) as client:
        with pytest.raises(LabError, match="say the text again") as caught:
            await client.call("speech.read", AudioQuery(sha256="0" * 64))
    assert caught.value.code is Code.NOT_FOUND


async def test_the_voices_are_listed_with_their_domains(wiring: Wiring) -> None:
    async with running(Counted(wiring)), Client(wiring.broker) as client:
        listed: VoiceList = await client.call("speech.voices", Empty())
    voices = {voice.profile: voice for voice in listed.voices}
    assert list(voices) == ["meditative", "therapeutic", "professional", "educational", "creative", "technical"]
    assert voices["meditative"].domains == ["sleep", "stress_management"] and voices["meditative"].style == "peaceful"
    assert sum(len(voice.domains) for voice in voices.values()) == 62


async def test_urgent_texts_come_first_and_too_many_are_told_to_come_again(
    wiring: Wiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.tts.agent.WAITING_LIMIT", 5)
    agent = Counted(wiring)
    agent.gate.clear()
    async with running(agent), Client(wiring.broker) as client:

        async def ask(text: str, priority: int) -> Speech:
            speech: Speech = await client.call("speech.synthesise", SpeechRequest(text=text), priority=priority)
            return speech

        calls = []
        for count, (text, priority) in enumerate([("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 3)], 1):
            calls.append(asyncio.create_task(ask(text, priority)))
            while len(agent.orders) < count:
                await asyncio.sleep(0.01)
        with pytest.raises(LabError, match="5 texts waiting") as caught:
            await ask("f", 1)
        assert (caught.value.code, caught.value.data["retry_after"]) == (Code.BUSY, 10)
        agent.gate.set()
        await asyncio.gather(*calls)
    assert agent.made == ["a", "b", "e", "c", "d"]


async def test_files_and_rows_beyond_the_limits_go(wiring: Wiring) -> None:
    clock = [utc_now()]
    timed = Wiring(wiring.agent, wiring.home, wiring.broker, now=lambda: clock[0])
    agent = Counted(timed, recordings=Recordings(wiring.home / "speech", "tts-1", size_limit=50_000))
    async with running(agent), Client(wiring.broker) as client:
        first = await say(client, "One.")
        clock[0] += timedelta(seconds=1)
        second = await say(client, "Something longer.")
        assert first.bytes + second.bytes > 50_000
        rows = agent.store.connection.execute("SELECT sha256 FROM recordings").fetchall()
    assert [row["sha256"] for row in rows] == [second.sha256] == [path.stem for path in agent.recordings.folder.iterdir()]
