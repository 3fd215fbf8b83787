"""The orchestrator as a market: quotes and listings over a real store, with providers that say what a test tells them."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import configs
from agents.gpu_orchestrator.agent import QUOTE_WAIT, Clouds, GpuOrchestratorAgent
from agents.gpu_orchestrator.market.desk import Desk
from agents.gpu_orchestrator.providers.lambda_labs import LONGEST_NAME
from agents.gpu_orchestrator.providers.provider import AuthFailed, ProviderError, RateLimited
from bus import BrokerAddress, Wiring
from configs import Settings
from protocol import uuid7
from protocol.machine import Listing, Offer
from protocol.money import BudgetMode
from tests.agents.gpu_orchestrator.market.samples import NOW, listing, plan
from tests.agents.gpu_orchestrator.test_agent import Rig


class Seller:
    """A provider that lists, and does nothing else."""

    bills = False
    fingerprint = "0123456789abcdef"

    def __init__(self, name: str, *listings: Listing) -> None:
        self.name = name
        self.says: Sequence[Listing] | ProviderError = listings

    async def listings(self) -> Sequence[Listing]:
        if isinstance(self.says, ProviderError):
            raise self.says
        return self.says

    async def account(self) -> str | None:
        return None


class Gate:
    """Lets nobody in: nothing is rented here."""

    def token(self, rental: Any) -> str:
        return ""


class Stall(Rig):
    """An orchestrator that can rent."""

    def __init__(self, home: Path, seller: Seller, **settings: Any) -> None:
        self.seller = seller
        self.settings = settings
        super().__init__(home)
        self.time = NOW

    def _made(self) -> GpuOrchestratorAgent:
        wiring = Wiring("gpu_orchestrator-1", self.home, BrokerAddress("127.0.0.1", 1), now=lambda: self.time)
        clouds = Clouds({self.seller.name: self.seller}, admission=Gate(), image="")  # type: ignore[dict-item,arg-type]
        agent = GpuOrchestratorAgent(wiring, configs.load(Settings.read(**self.settings)), clouds)
        agent._session = object()  # type: ignore[assignment]  # as while connected
        return agent

    async def look(self) -> float:
        """Ask the seller, as the agent does every few minutes."""
        pause = await self.agent._desk.ask(self.seller)  # type: ignore[arg-type]
        self.agent._listed()
        await asyncio.sleep(0)  # it is stored by a task of its own, which repeats where the store is full
        return pause


@pytest.fixture
def stall(tmp_path: Path) -> Iterator[Stall]:
    made = Stall(tmp_path, Seller("lambda", listing(), listing(id="b", usd=0.7)), local_usd_per_hour=100.0)
    yield made
    made.agent.store.close()


def request(tier: str = "lightning", **changes: Any) -> dict[str, Any]:
    return {"job": "j", "tier": tier, "plan": plan(p50=50_000, p90=90_000).model_dump(), **changes}


async def test_a_quote_weighs_own_and_rented_machines_in_one_choice(stall):
    stall.factory()
    await stall.look()
    made = (await stall.ask("q", "offer.quote", **request(budget_usd=5000)))["result"]
    assert (made["choice"]["provider"], made["choice"]["machine"]) == ("lambda", "a")
    assert [(offer["provider"], offer["machine"]) for offer in made["others"]] == [("lambda", "b"), ("local", "f1")]
    assert "by arithmetic alone" in made["calibration"]


async def test_a_quote_waits_for_the_first_word_of_a_provider(stall):
    stall.factory()
    assert await stall.ask("q", "offer.quote", **request()) is None
    assert (await stall.ask("own", "offer.quote", **request("starter", budget_usd=5000)))["result"]["choice"]["machine"] == "f1"
    await stall.look()
    assert stall.reply("q")["result"]["choice"]["provider"] == "lambda"


async def test_a_provider_that_does_not_answer_delays_a_quote_no_longer_than_a_factory(stall):
    stall.factory()
    await stall.ask("q", "offer.quote", **request(budget_usd=5000))
    stall.pass_time(QUOTE_WAIT)
    assert stall.reply("q")["result"]["choice"]["provider"] == "local"


async def test_without_a_factory_a_job_for_named_providers_is_quoted_at_once(stall):
    await stall.look()
    made = (await stall.ask("q", "offer.quote", **request("starter", providers=["lambda"])))["result"]
    assert made["choice"]["provider"] == "lambda"


@pytest.mark.parametrize(
    ("wrong", "field", "advice"),
    [
        ({"providers": ["lamda"]}, "providers", "Did you mean lambda?"), ({"deadline_hours": 0}, "deadline_hours", "positive"),
        ({"deadline_hours": -1}, "deadline_hours", "positive"), ({"budget_usd": -1}, "budget_usd", "positive"),
    ],
)  # fmt: skip
async def test_wrong_input_is_refused_at_once_with_its_field(stall, wrong, field, advice):
    error = (await stall.ask("q", "offer.quote", **request(**wrong)))["error"]
    assert (error["code"], error["data"]["field"]) == (-32602, field) and advice in error["message"]


async def test_a_provider_without_a_key_is_named_in_the_refusal(stall):
    stall.factory()
    await stall.look()
    error = (await stall.ask("q", "offer.quote", **request(providers=["runpod"])))["error"]
    assert "runpod: this lab cannot rent there: RUNPOD_API_KEY is not set" in error["message"]
    assert "runpod" in error["data"]["rejected"]


async def test_a_provider_whose_bill_nobody_has_explained_is_not_chosen_until_it_is(stall):
    stall.factory()
    await stall.look()

    def told(**reasons: str) -> None:
        mode = BudgetMode(mode="normal", frozen_providers=reasons, at=stall.time)
        stall.agent._renting._mode_heard("meetara/v1/lab/cost/mode", mode.model_dump_json().encode())

    told(**{"lambda": "it charges $4.00 for r-1"})
    made = (await stall.ask("q", "offer.quote", **request(budget_usd=5000)))["result"]
    assert made["choice"]["provider"] == "local" and "nothing is rented from lambda: it charges $4.00" in made["rejected"]["lambda a"]
    told()
    assert (await stall.ask("again", "offer.quote", **request(budget_usd=5000)))["result"]["choice"]["provider"] == "lambda"


async def test_old_listings_are_not_chosen_and_fresh_ones_are_again(stall):
    await stall.look()
    stall.time += timedelta(minutes=12)
    error = (await stall.ask("q", "offer.quote", **request(providers=["lambda"])))["error"]
    assert "it was seen 13 minutes ago" in error["message"]
    stall.seller.says = [listing(seen_at=stall.time)]
    await stall.look()
    made = (await stall.ask("q2", "offer.quote", **request(providers=["lambda"])))["result"]["choice"]
    assert Offer.model_validate(made).expires_at == stall.time + timedelta(minutes=10)


async def test_a_provider_that_fails_keeps_its_listings_and_says_when_to_ask_again(stall):
    assert await stall.look() == 300, "half of the ten minutes for which it counts"
    stall.seller.says = RateLimited("lambda", "too many calls", 90.0)
    assert await stall.look() == 90.0
    stall.seller.says = AuthFailed("lambda", "the key is revoked")
    assert await stall.look() == 30, "what it said before does not count for long"
    page = (await stall.ask("l", "offer.list"))["result"]
    assert page["stale"] == {"lambda": "it could not be asked: the key is revoked"} and [item["id"] for item in page["listings"]] == ["a", "b"]


async def test_the_list_holds_own_machines_and_says_what_is_never_chosen(stall):
    stall.factory()
    await stall.look()
    page = (await stall.ask("l", "offer.list"))["result"]
    assert [(item["provider"], item["id"]) for item in page["listings"]] == [("lambda", "a"), ("lambda", "b"), ("local", "f1")]
    assert page["rejected"] == 3, "the three GPUs of Colab, whose price nobody has looked up"
    page = (await stall.ask("l2", "offer.list", provider="colab", all=True))["result"]
    assert {item["gpu"] for item in page["listings"]} == {"T4", "L4", "A100"}
    assert all("its price is not known" in item["rejected"] for item in page["listings"])
    error = (await stall.ask("l3", "offer.list", gpu="RTX 4O90"))["error"]
    assert error["data"]["field"] == "gpu" and "RTX 4090" in error["message"]
    assert (await stall.ask("l4", "offer.list", max_price_usd=-1))["error"]["data"]["field"] == "max_price_usd"


async def test_a_spot_machine_is_taken_only_where_a_store_keeps_the_checkpoints(tmp_path):
    seller = Seller("lambda", listing(spot=True))
    for number, (store, keep, taken) in enumerate([(None, None, False), ("s3://b/lab", None, True), ("s3://b/lab", "machine", False)]):
        stall = Stall(tmp_path / str(number), seller, store=store)
        await stall.look()
        reply = await stall.ask("q", "offer.quote", **request(providers=["lambda"], checkpoints=keep))
        assert ("result" in reply) is taken
        stall.agent.store.close()


async def test_what_a_job_took_corrects_the_next_quote(stall):
    stall.factory()
    await stall.look()
    local = {**request("starter", budget_usd=5000), "job": "a"}
    offer = (await stall.ask("q", "offer.quote", **local))["result"]["choice"]
    lease = await stall.ask(
        "l", "lease.request", job="a", reservation="r", priority=1, submitted_at=NOW.isoformat(), memory_bytes=1, offer=offer,
    )  # fmt: skip
    stall.time += timedelta(seconds=25)
    await stall.ask("r", "lease.release", job="a", lease=lease["result"]["lease"], over=True, done=True)
    made = (await stall.ask("q2", "offer.quote", **local))["result"]
    assert made["calibration"] == "the factory's own plan; 1 of 1 finished runs stayed below their P90 (100%)"
    stall.restart()
    assert stall.agent._desk.history.coverage("local") == (1, 1)


async def test_a_probe_requotes_an_offer(stall):
    await stall.look()
    offer = (await stall.ask("q", "offer.quote", **request(providers=["lambda"])))["result"]["choice"]
    probe = {"steps": 20, "seconds": 2.0, "step": 20, "elapsed_s": 60.0}
    made = (await stall.ask("p", "offer.requote", job="j", offer=offer, plan=request()["plan"], probe=probe))["result"]
    assert made["seconds_p50"] == pytest.approx(600 + 60 + 82.6 + 168, abs=0.01) and made["machine"] == "a"
    assert made["reservation_micros"] < offer["reservation_micros"]


async def test_the_agent_asks_its_providers_by_itself_and_one_that_hangs_holds_up_no_other(monkeypatch):
    class Hanging(Seller):
        async def listings(self) -> Sequence[Listing]:
            await asyncio.Event().wait()
            return []

    sellers = {"vast": Hanging("vast"), "lambda": Seller("lambda", listing())}
    desk = Desk(configs.load(Settings.read()), sellers, sellers)  # type: ignore[arg-type]
    told = asyncio.Event()
    task = asyncio.create_task(desk.keep_fresh(told.set))
    await asyncio.wait_for(told.wait(), 10)
    assert desk.book.asked == {"lambda"}
    monkeypatch.setattr("agents.gpu_orchestrator.market.desk.ANSWER_LIMIT", 0.01)
    await desk.ask(Hanging("vast"))  # type: ignore[arg-type]
    assert desk.book.asked == {"lambda", "vast"} and "no answer within" in desk.book.missing("vast")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_job_that_gets_no_machine_is_told_once_however_long_the_conductor_is_away(stall):
    await stall.look()
    offer = (await stall.ask("q", "offer.quote", **request("starter", providers=["lambda"])))["result"]["choice"]
    await stall.ask(
        "l", "lease.request", job="j", reservation="r", priority=1, submitted_at=NOW.isoformat(), memory_bytes=1, offer=offer, limit_micros=1
    )
    for _ in range(15):
        stall.pass_time(timedelta(minutes=5))
        stall.seller.says = (listing(seen_at=stall.time),)
        await stall.look()
    finals = [call for _, call in stall.calls() if call.get("final")]
    assert len(finals) == 1 and len(stall.calls()) == 1 and "Allow more with budget_usd" in finals[0]["reason"]


def test_a_tag_fits_every_vendor_however_long_the_labs_name_is(tmp_path):
    class LongNamed(Stall):
        def _made(self) -> GpuOrchestratorAgent:
            wiring = Wiring("gpu_orchestrator-1", self.home, BrokerAddress("127.0.0.1", 1), lab="l" * 64, now=lambda: self.time)
            clouds = Clouds({self.seller.name: self.seller}, admission=Gate(), image="")  # type: ignore[dict-item,arg-type]
            return GpuOrchestratorAgent(wiring, configs.load(Settings.read()), clouds)

    made = LongNamed(tmp_path, Seller("lambda"))
    assert len(made.agent._renting._prefix()) + len(uuid7()[-12:]) <= LONGEST_NAME
    made.agent.store.close()
