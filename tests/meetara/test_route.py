"""The sentence of `meetara route`, and its screen over a real router."""

import asyncio
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import configs
from agents.router.agent import RouterAgent
from bus import Wiring
from configs import Settings
from meetara.screens.route import route, sentence
from protocol.voice import DomainMatch, TextRoute
from tests.conftest import PlainBroker

NIGHT = "I lie awake at night and cannot fall asleep"
SURE = TextRoute(
    primary_domain="sleep", domain_confidence=0.83, domain_category="healthcare", empathy_level="very_high",
    nearest=[DomainMatch(domain="sleep", confidence=0.83)], multi_domains=["music"], voice="meditative",
    routing_strategy="multi_domain_parallel", processing_time_ms=1,
)  # fmt: skip


def test_the_sentence_names_all_domains_and_how_sure_it_is() -> None:
    assert sentence(SURE) == "sleep (healthcare), and music: 83% sure, multi domain parallel, voice meditative"


def test_an_unsure_router_asks() -> None:
    asked = SURE.model_copy(update={"primary_domain": None, "question": "What is it about: sleep or music?"})
    assert sentence(asked) == "not sure. What is it about: sleep or music?"


async def test_the_screen_shows_what_a_router_finds(
    broker: PlainBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router = RouterAgent(Wiring("router-1", tmp_path, broker.address), configs.load(Settings.read()))
    running = asyncio.create_task(router.run())
    where = {"home": tmp_path, "host": broker.address.host, "port": broker.address.port, "lab": None}
    try:
        seen = io.StringIO()
        assert await route(where, NIGHT, as_json=False, console=Console(file=seen, width=100)) == 0
        assert "sleep (healthcare): " in seen.getvalue() and "nearest" in seen.getvalue()
        assert await route(where, NIGHT, as_json=True, console=Console(file=seen)) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])  # the router logs to the same stream
        assert found["primary_domain"] == "sleep" and len(found["nearest"]) == 3
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
