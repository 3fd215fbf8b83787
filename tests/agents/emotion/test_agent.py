"""The emotion agent on a real broker, with the model that the project ships."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import configs
from agents.emotion.agent import MODEL, EmotionAgent
from bus import BrokerAddress, Client, Wiring
from configs import Settings
from protocol import Code, LabError
from protocol.voice import EmotionQuery, EmotionReading
from tests.conftest import PlainBroker


@pytest.fixture
async def client(broker: PlainBroker, tmp_path: Path) -> AsyncIterator[Client]:
    agent = EmotionAgent(Wiring("emotion-1", tmp_path, broker.address), configs.load(Settings.read()))
    running = asyncio.create_task(agent.run())
    try:
        async with Client(broker.address) as client:
            yield client
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_plain_feelings_are_read_over_the_wire(client: Client) -> None:
    texts = {
        "I'm so happy, this is wonderful!": ("joy", "positive"),
        "I am furious, this is the worst service ever, you idiots": ("anger", "negative"),
        "I'm really scared of the operation tomorrow": ("fear", "negative"),
        "I feel so sad and lonely since she died": ("sadness", "negative"),
        "The meeting is in room 12.": ("neutral", "neutral"),
    }
    for text, expected in texts.items():
        found: EmotionReading = await client.call("emotion.analyse", EmotionQuery(text=text), timeout=20)
        assert (found.primary_emotion, found.emotional_category) == expected, text
        assert (found.emotion_intensity > 0.6) is (expected[0] != "neutral"), text
        assert found.domain_context == "personal"


async def test_a_domain_gives_the_context_and_an_unknown_one_is_refused(client: Client) -> None:
    scared = "I'm really scared of the operation tomorrow!"
    found: EmotionReading = await client.call("emotion.analyse", EmotionQuery(text=scared, domain="sleep"), timeout=20)
    assert (found.domain_context, found.professional_analysis.intervention_required) == ("healthcare", True)
    with pytest.raises(LabError) as caught:
        await client.call("emotion.analyse", EmotionQuery(text=scared, domain="slep"), timeout=20)
    assert (caught.value.code, caught.value.data["nearest"][0]) == (Code.UNKNOWN_DOMAIN, "sleep")


def test_a_damaged_model_is_refused_at_start_and_leaves_nothing(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not arrays")
    wiring = Wiring("emotion-1", tmp_path / "home", BrokerAddress("127.0.0.1", 1))
    with pytest.raises(LabError, match="model") as caught:
        EmotionAgent(wiring, configs.load(Settings.read()), model=tmp_path / "model")
    assert caught.value.code is Code.CONFIGURATION
    assert not (tmp_path / "home").exists()
