"""The screens of offers and quotes, alone and over a lab whose factory plans what a test says."""

import asyncio
import io
import json
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

import configs
from agents.conductor.agent import ConductorAgent
from agents.gpu_orchestrator.agent import GpuOrchestratorAgent
from agents.router.agent import RouterAgent
from bus import BaseAgent, Wiring
from configs import Settings
from meetara.lab import Lab
from meetara.screens.offers import offers, show_page
from meetara.screens.quote import quote, show_quote
from protocol import Code, LabError
from protocol.machine import Card, Device, ListingPage, Offer, Quote
from tests.agents.gpu_orchestrator.market.samples import GIB, NOW, listing, plan
from tests.conftest import PlainBroker


def seen(show, *given, **more) -> str:
    out = io.StringIO()
    show(*given, Console(file=out, width=200), **more)
    return out.getvalue()


def offer(provider: str, machine: str, usd: float, **changes) -> Offer:
    fields = {
        "provider": provider, "machine": machine, "price_micros_per_hour": 500_000, "seconds_p50": 1800, "seconds_p90": 7500,
        "cost_p50_micros": round(usd * 1e6 / 2), "cost_p90_micros": round(usd * 1e6), "reservation_micros": round(usd * 1.1e6),
    }  # fmt: skip
    return Offer(**(fields | changes))


RENTED = Quote(
    job="j", choice=offer("lambda", "gpu_1x_t4", 1.0, gpu="T4", gpus=1), others=[offer("vast", "77", 2.0, gpu="A100", gpus=2, spot=True)],
    rejected={"vast 77": "costs more", **{f"runpod {n}": "too little disk" for n in range(6)}}, reason="the lowest cost at P90",
    calibration="by arithmetic alone", plan=plan(),
)  # fmt: skip


def test_a_quote_shows_the_choice_the_others_the_reasons_and_what_the_times_rest_on() -> None:
    text = seen(show_quote, RENTED)
    chosen, other = (line for line in text.splitlines() if "│ lambda" in line or "│ vast" in line)
    assert "→" in chosen and "$1.00" in chosen and "30 min 0 s" in chosen and "2 h 5 min" in chosen and "$1.10" in chosen
    assert "2 x A100" in other and "spot" in other and "→" not in other
    assert "846 steps, a base of 600,000,000 weights" in text
    assert "chosen for the lowest cost at P90" in text and "times: by arithmetic alone" in text
    assert "not runpod 0, runpod 1, runpod 2, runpod 3 and 2 more: too little disk" in text
    assert "not vast 77" not in text and "Only this lab's own" not in text


def test_a_quote_of_a_lab_without_providers_says_how_to_add_some() -> None:
    text = seen(show_quote, Quote(job="j", choice=offer("local", "f1", 0), finished_by="j0"))
    assert "GPUHUNT_CATALOG_DIR" in text and "VAST_API_KEY" in text
    assert "The job j0 made this model already" in text


def test_offers_of_one_kind_in_many_regions_are_one_line() -> None:
    page = ListingPage(
        listings=[
            *(listing(id=f"t4:{n}", region=f"r{n}") for n in range(9)),
            listing("vast", "7", "RTX 4090", 0.31, gpus=2, gpu_memory_bytes=24 * GIB, spot=True, secure=False, region="FR"),
            listing("colab", "L4", "L4", None, rejected="its price is not known"),
        ],
        more=4, rejected=3, stale={"runpod": "it could not be asked: no answer within 30 s"},
    )  # fmt: skip
    text = seen(show_page, page, now=NOW + timedelta(minutes=2), reasons=False)
    assert text.count("lambda") == 1 and "9 regions" in text and "3 min ago" in text and "$0.50" in text
    assert "2 x RTX 4090" in text and "spot, a stranger's" in text and "FR" in text
    assert "4 more that cost more" in text and "3 that match are never chosen" in text
    assert "runpod: it could not be asked: no answer within 30 s" in text and "GPUHUNT" not in text
    assert "why not" in seen(show_page, page, now=NOW, reasons=True)


def test_nothing_for_sale_says_how_to_add_providers() -> None:
    text = seen(show_page, ListingPage(listings=[]), now=NOW, reasons=False)
    assert "nothing that is for sale matches" in text and "GPUHUNT_CATALOG_DIR" in text


class Planner(BaseAgent):
    """A factory that plans everything alike."""

    role = "gguf_factory"

    def __init__(self, wiring: Wiring) -> None:
        super().__init__(wiring)
        self.message_handlers["job.plan"] = lambda message, tx: plan()

    def card(self) -> Card:
        device = Device(cores=4, memory_bytes=4 * GIB, disk_free_bytes=GIB)
        return super().card().model_copy(update={"slots": 1, "device": device})


async def test_a_quote_goes_through_the_lab_and_leaves_no_job(
    broker: PlainBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = configs.load(Settings.read(local_usd_per_hour=3.6))
    agents = [
        RouterAgent(Wiring("router-1", tmp_path, broker.address), lab), ConductorAgent(Wiring("conductor-1", tmp_path, broker.address)),
        GpuOrchestratorAgent(Wiring("gpu_orchestrator-1", tmp_path, broker.address), lab), Planner(Wiring("f1", tmp_path, broker.address)),
    ]  # fmt: skip
    tasks = [asyncio.create_task(agent.run()) for agent in agents]
    where = {"home": tmp_path, "host": broker.address.host, "port": broker.address.port, "lab": None}
    fields = {"domain": "sleep", "dataset": "/data/sleep.jsonl"}
    try:
        out = io.StringIO()
        assert await quote(where, fields, as_json=False, console=Console(file=out, width=200)) == 0
        assert "local" in out.getvalue() and "$0.60" in out.getvalue() and "GPUHUNT_CATALOG_DIR" in out.getvalue()
        assert await quote(where, fields, as_json=True, console=Console(file=out)) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])  # the agents log to the same stream
        assert (found["choice"]["machine"], found["choice"]["reservation_micros"], found["plan"]["steps"]) == ("f1", 731_500, 846)
        for wrong, field in (
            ({"budget_usd": 0.1}, "budget_usd"), ({"deadline_hours": 0.1}, "deadline_hours"), ({"providers": ["lamda"]}, "providers"),
            ({"deadline_hours": 0}, "deadline_hours"), ({"budget_usd": -1}, "budget_usd"), ({"domain": "slep"}, "domain"),
        ):  # fmt: skip
            with pytest.raises(LabError) as caught:
                await quote(where, {**fields, **wrong}, as_json=False, console=Console(file=out))
            assert caught.value.data["field"] == field, caught.value
        assert await offers(where, {}, as_json=False, console=Console(file=out, width=200)) == 0
        assert "none, 4 cores" in out.getvalue() and "3 that match are never chosen" in out.getvalue()
        with pytest.raises(LabError, match="Did you mean") as caught:
            await offers(where, {"gpu": "A1000"}, as_json=False, console=Console(file=out))
        assert caught.value.code is Code.INVALID_PARAMS
        async with Lab(**where) as client:
            assert await client.jobs() == []
            assert (await client.offers(provider="local")).listings[0].price_micros_per_hour == 3_600_000
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
