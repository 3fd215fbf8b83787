"""`meetara say` and the client's part of speech: a real broker, the real tts agent, stand-ins for router and emotion."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agents.tts.agent import SpeechAgent
from bus import DEFERRED, BaseAgent, Deferred, Transaction, Wiring
from configs import Settings
from meetara.lab import Lab
from meetara.player import play
from meetara.screens import say as screen
from meetara.screens.say import Saying
from meetara.supervise import supervised
from protocol import Code, LabError, MCPMessage
from protocol.voice import Analysis, AudioPart, DomainMatch, EmotionReading, TextRoute
from tests.conftest import PlainBroker

TEXT = "I cannot sleep, and I am afraid of tomorrow."


class Router(BaseAgent):
    """Is sure of `sleep`, or of nothing."""

    role = "router"

    def __init__(self, wiring: Wiring, sure: bool = True) -> None:
        super().__init__(wiring)
        self.sure = sure
        self.message_handlers["route.text"] = self.route

    def route(self, message: MCPMessage, tx: Transaction) -> TextRoute:
        return TextRoute(
            primary_domain="sleep" if self.sure else None, domain_confidence=0.87 if self.sure else 0.21,
            domain_category="healthcare" if self.sure else None, voice="meditative" if self.sure else None,
            nearest=[DomainMatch(domain=name, confidence=0.2) for name in ("sleep", "fitness", "nutrition")],
            routing_strategy="single_domain" if self.sure else "clarification_needed", empathy_level=None,
            question=None if self.sure else "Is it about sleep, fitness or nutrition?", processing_time_ms=1.0,
        )  # fmt: skip


class Feeler(BaseAgent):
    """Hears fear of a given intensity; None: never answers."""

    role = "emotion"

    def __init__(self, wiring: Wiring, intensity: float | None = 0.9, confused: bool = False) -> None:
        super().__init__(wiring)
        self.intensity = intensity
        self.confused = confused
        self.domains: list[str | None] = []
        self.message_handlers["emotion.analyse"] = self.analyse

    def analyse(self, message: MCPMessage, tx: Transaction) -> EmotionReading | Deferred:
        self.domains.append(self.params(message).domain)
        if self.intensity is None:
            return DEFERRED
        analysis = Analysis(
            intervention_required=False, empathy_level="high", professional_recommendations=[], risk_assessment="low"
        )
        return EmotionReading(
            primary_emotion="surprise" if self.confused else "fear",
            nuance="confusion" if self.confused else None, emotion_confidence=0.8, emotion_intensity=self.intensity,
            emotional_category="negative", secondary_emotions=[], domain_context="healthcare",
            professional_analysis=analysis, processing_time_ms=1.0,
        )  # fmt: skip


class Liar(SpeechAgent):
    """Sends other bytes than it announced."""

    def read(self, message: MCPMessage, tx: Transaction) -> AudioPart:
        part = super().read(message, tx)
        return part.model_copy(update={"base64": part.base64[:-8] + "AAAAAAA="})


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MEETARA_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a machine without any player."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    return tmp_path / "here"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class World:
    """A broker with some agents on it."""

    def __init__(self, broker: PlainBroker, home: Path) -> None:
        self.broker = broker
        self.home = home
        self.where: dict[str, Any] = {"home": home, "host": "127.0.0.1", "port": broker.address.port, "lab": None}

    @asynccontextmanager
    async def with_agents(self, *agents: type[BaseAgent], **options: Any) -> AsyncIterator[dict[str, Any]]:
        made = {
            kind.role: kind(Wiring(f"{kind.role}-1", self.home, self.broker.address), **options.get(kind.role, {}))
            for kind in agents
        }
        tasks = [asyncio.create_task(agent.run()) for agent in made.values()]
        async with AsyncExitStack() as stack:
            lab = await stack.enter_async_context(Lab(**self.where))
            while await lab.online(*made) != set(made):
                await asyncio.sleep(0.01)
            try:
                yield made
            finally:
                for agent in made.values():
                    agent._stop.set()
                await asyncio.gather(*tasks)

    async def say(self, text: str = TEXT, *, out: Path | None = None, as_json: bool = False, **given: str) -> str:
        """Run the screen and return what a person sees."""
        written = io.StringIO()
        saying = Saying(text, given.get("domain"), given.get("profile"), given.get("emotion"))
        console = Console(file=written, width=200)
        async with asyncio.timeout(60):
            assert await screen.say(self.where, saying, out=out, as_json=as_json, console=console) == 0
        return written.getvalue()


@pytest.fixture
def world(broker: PlainBroker, tmp_path: Path) -> World:
    return World(broker, tmp_path / "home")


async def test_a_text_is_routed_felt_and_spoken_into_a_file(world: World, tmp_path: Path) -> None:
    async with world.with_agents(Router, Feeler, SpeechAgent) as agents:
        told = await world.say(out=tmp_path / "said.wav")
        async with Lab(**world.where) as lab:
            audio, speech = await lab.say(TEXT, domain="sleep", emotion="fear", intensity=0.9)
    lines = {line.split()[0]: line.split(None, 1)[1].strip() for line in told.splitlines()}
    assert lines["domain"] == "sleep (confidence 0.87)" and lines["emotion"] == "fear (intensity 0.90)"
    assert lines["profile"] == "therapeutic (the emotion asks for it instead of meditative, the domain's)"
    assert lines["speech"].startswith(f"{speech.seconds:.1f} s") and lines["written"].endswith("said.wav")
    assert (tmp_path / "said.wav").read_bytes() == audio
    assert agents["emotion"].domains == ["sleep"], "the feeling is read in the domain's context"


async def test_a_weak_emotion_leaves_the_domains_voice(world: World, tmp_path: Path) -> None:
    async with world.with_agents(Router, Feeler, SpeechAgent, emotion={"intensity": 0.5}):
        assert "meditative (the domain's voice)" in await world.say(out=tmp_path / "said.wav")


async def test_confusion_within_surprise_has_a_voice_of_its_own(world: World, tmp_path: Path) -> None:
    async with world.with_agents(Router, Feeler, SpeechAgent, emotion={"confused": True}):
        told = await world.say(out=tmp_path / "said.wav")
    assert "confusion (intensity 0.90)" in told
    assert "educational (the emotion asks for it instead of meditative, the domain's)" in told


async def test_a_router_that_asks_back_is_shown_and_no_domain_is_used(world: World, tmp_path: Path) -> None:
    async with world.with_agents(Router, Feeler, SpeechAgent, router={"sure": False}, emotion={"intensity": 0.1}) as agents:
        told = await world.say(out=tmp_path / "said.wav")
    assert "not clear (nearest: sleep 0.20, fitness 0.20, nutrition 0.20). Is it about sleep" in told
    assert "professional (the lab's default)" in told and agents["emotion"].domains == [None]


async def test_what_is_given_is_not_asked_for(world: World, tmp_path: Path) -> None:
    async with world.with_agents(SpeechAgent):
        told = await world.say(out=tmp_path / "said.wav", domain="programming", emotion="joy")
        assert "programming (given)" in told and "joy (given)" in told and "agent" not in told
        assert "creative (the emotion asks for it)" in told
        assert "technical (given)" in await world.say(
            out=tmp_path / "said.wav", domain="sleep", emotion="joy", profile="technical"
        )


async def test_agents_that_are_away_are_named_and_not_waited_for(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "ASK_SECONDS", 1000.0)
    async with world.with_agents(SpeechAgent):
        told = await world.say(out=tmp_path / "said.wav")
    assert "no router agent is online: the voice follows no domain." in told
    assert "no emotion agent is online: the text is spoken as a neutral one." in told
    assert (tmp_path / "said.wav").exists()


async def test_an_agent_that_does_not_answer_is_given_up_soon(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.with_agents(Router, Feeler, SpeechAgent, emotion={"intensity": None}):
        monkeypatch.setattr(screen, "ASK_SECONDS", 3.0)
        told = await world.say(out=tmp_path / "said.wav")
    assert "the emotion agent gives no answer (emotion did not answer emotion.analyse within 3 s)" in told
    assert "meditative (the domain's voice)" in told


async def test_without_a_tts_agent_nothing_is_said_and_the_reason_is(world: World) -> None:
    async with world.with_agents(Router):
        with pytest.raises(LabError, match="no tts agent is online") as caught:
            await world.say()
    assert caught.value.code is Code.UNREACHABLE


@pytest.mark.parametrize("given", [{"domain": "slep"}, {"profile": "loud"}, {"emotion": "rage"}, {"text": "x" * 8001}])
async def test_a_wrong_value_is_an_error_that_names_it(world: World, given: dict[str, str]) -> None:
    async with world.with_agents(Router, Feeler, SpeechAgent):
        with pytest.raises(LabError) as caught:
            await world.say(**given)
    assert caught.value.data["field"] == next(iter(given))


async def test_audio_that_is_not_what_was_announced_is_refused(world: World) -> None:
    async with world.with_agents(Liar), Lab(**world.where) as lab:
        with pytest.raises(LabError, match="not what it announced") as caught:
            await lab.say("Hello.")
    assert caught.value.code is Code.BAD_DATA


async def test_long_audio_comes_whole_over_the_wire(world: World) -> None:
    async with world.with_agents(SpeechAgent), Lab(**world.where) as lab:
        audio, speech = await lab.say("Write down three things, not thirty. " * 70)
    assert len(audio) == speech.bytes > 10 * 128 * 1024
    assert hashlib.sha256(audio).hexdigest() == speech.sha256


async def test_json_is_one_document_with_everything(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with world.with_agents(Router, Feeler, SpeechAgent):
        await world.say(out=tmp_path / "said.wav", as_json=True)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["domain"] == "sleep" and told["route"]["domain_confidence"] == 0.87
    assert told["emotion"]["primary_emotion"] == "fear" and told["speech"]["overridden"] is True
    assert (told["file"], told["player"], told["notes"]) == (str(tmp_path / "said.wav"), None, [])


async def test_without_a_player_the_audio_is_written_into_the_current_folder(world: World, folder: Path) -> None:
    async with world.with_agents(SpeechAgent):
        told = await world.say("Hello.", domain="sleep", emotion="neutral")
    assert "no player and sound device here: written to meetara-say.wav" in told
    assert (folder / "meetara-say.wav").read_bytes()[:4] == b"RIFF" and names(folder) == ["meetara-say.wav"]


def install(folder: Path, name: str, body: str) -> None:
    """Put a program on the path of a machine without players."""
    programs = folder.parent / "programs"
    programs.mkdir(exist_ok=True)
    (programs / name).write_text(f"#!/bin/sh\n{body}\n")
    (programs / name).chmod(0o755)


async def test_the_first_player_that_works_plays_it(world: World, folder: Path) -> None:
    install(folder, "paplay", "exit 1  # no sound server")
    install(folder, "aplay", f'/bin/cat "$2" > {folder.parent}/played.wav')
    install(folder, "ffplay", "exit 1")
    async with world.with_agents(SpeechAgent):
        assert "played with aplay" in await world.say("Hello.", domain="sleep", emotion="neutral")
    assert (folder.parent / "played.wav").read_bytes()[:4] == b"RIFF"
    assert names(folder) == [], "nothing is left in the current folder"


async def test_a_player_that_hangs_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meetara.player.GRACE", 0.2)
    install(folder, "aplay", f"echo $$ > {folder}/pid; exec {sys.executable} -c 'import time; time.sleep(600)'")
    assert await play(folder / "none.wav", 0.5) is None
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)


async def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(world: World, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="folder does not exist") as caught:
        await world.say(out=tmp_path / "none" / "said.wav")
    assert caught.value.code is Code.CONFIGURATION and "--out" in caught.value.advice
    async with world.with_agents(SpeechAgent):
        (tmp_path / "taken").mkdir()
        with pytest.raises(LabError, match="cannot be written"):
            await world.say("Hello.", domain="sleep", emotion="joy", out=tmp_path / "taken")
    assert not [name for name in names(tmp_path) if name.endswith(".part")]


async def test_a_dash_reads_the_text_from_stdin(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stdin(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    async with world.with_agents(SpeechAgent):
        stdin("Grüße, été.".encode())
        assert "written" in await world.say("-", domain="sleep", emotion="joy", out=tmp_path / "said.wav")
        stdin(b"\xff")
        with pytest.raises(LabError, match="not UTF-8"):
            await world.say("-")


async def test_a_person_hears_speech_from_a_lab_with_a_private_broker(tmp_path: Path) -> None:
    settings = Settings.read(home=tmp_path)
    async with supervised(settings, port=0, tell=lambda _: None, roles=("tts",)), Lab(home=tmp_path) as lab:
        assert await lab.online("tts") == {"tts"}
        audio, speech = await lab.say("Good morning.")
        assert len((await lab.voices()).voices) == 6
    assert len(audio) == speech.bytes and speech.seconds > 0.5
