"""Choosing a machine among thousands of listings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from random import Random

import configs
from agents.gpu_orchestrator.market.desk import Desk
from agents.gpu_orchestrator.market.gpus import GIB, GPUS
from benchmarks.result import Goal, Series, ratios
from configs import Settings
from protocol.job import Plan
from protocol.machine import Listing, ListingQuery, QuoteRequest

TITLE = "Choosing a machine"
METHOD = """\
{count} synthetic listings of four providers and {gpus} GPUs, a third of which have something wrong with them. "Choose" is
`select_optimal_provider` for a job of the tier balanced, with every listing weighed, the next {others} offers and the reasons of the others.
"Judge and choose" is the same after a provider has told its prices anew, so that all listings are compared with the medians again. "List"
answers `meetara offers`. In one process, with a random job for each round. The goal is a ratio to the limit of {limit:g} ms; beside it,
in the same round, what ten times as many listings cost: 10 would be in proportion."""

ROUNDS = 40
COUNT = 5000
LIMIT_MS = 50.0
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PROVIDERS = ("lambda", "runpod", "vast", "elsewhere")


def listings(random: Random, provider: str, count: int) -> list[Listing]:
    """Return made-up listings whose prices follow the GPUs' speed, give or take half."""
    made = []
    for number in range(count):
        gpu = random.choice(list(GPUS.values()))
        gpus = random.choice([1, 1, 2, 4, 8])
        price = gpu.tflops / 100 * random.uniform(0.5, 1.5) * gpus * random.choice([1, 1, 1, 1, 1, 1, 1, 0, 8, 0.1])
        made.append(Listing(
            provider=provider, id=f"{provider}-{number}", gpu=gpu.name, gpus=gpus, gpu_memory_bytes=gpu.memory_gib * GIB,
            region=f"region-{number % 30}", spot=random.random() < 0.2, secure=random.random() < 0.8,
            price_micros_per_hour=round(price * 1e6), disk_micros_per_gb_hour=random.choice([0, 140]), seen_at=NOW,
        ))  # fmt: skip
    return made


def request(random: Random) -> QuoteRequest:
    """Return a job on a base of four billion weights."""
    plan = Plan(
        rows=1000, held_out_rows=100, tokens=500_000, steps=846, parameters={}, base_parameters=4_000_000_000,
        file_bytes=2_500_000_000, disk_bytes=20_000_000_000, memory_bytes=30_000_000_000, seconds_p50=1e6, seconds_p90=2e6,
        working_bytes=4_000_000_000, trained_tokens=random.randrange(10**6, 10**7),
    )  # fmt: skip
    return QuoteRequest(job="bench", tier="balanced", plan=plan, deadline_hours=random.choice([None, 12.0]), untrusted_hosts=True)


def filled(stock: Mapping[str, Sequence[Listing]]) -> Desk:
    """Return a desk that knows these listings."""
    desk = Desk(configs.load(Settings.read()), {}, PROVIDERS)
    for name, listed in stock.items():
        desk.book.note(name, listed)
    return desk


def run(rounds: int, seed: int) -> Sequence[Series]:
    """Run the rounds; see METHOD."""
    random = Random(seed)
    stock = {name: listings(random, name, COUNT // len(PROVIDERS)) for name in PROVIDERS}
    desk, small = filled(stock), filled({name: listed[::10] for name, listed in stock.items()})
    at = NOW + timedelta(minutes=1)
    chosen, tenth, judged, listed_ms = [], [], [], []
    for each in (desk, small):
        each.quote(request(random), (), at)
    for _ in range(rounds):
        wanted = request(random)
        chosen.append(timed(lambda wanted=wanted: desk.quote(wanted, (), at)))  # type: ignore[misc]
        tenth.append(timed(lambda wanted=wanted: small.quote(wanted, (), at)))  # type: ignore[misc]
        desk.book.note("vast", stock["vast"])
        judged.append(timed(lambda wanted=wanted: desk.quote(wanted, (), at)))  # type: ignore[misc]
        listed_ms.append(timed(lambda: desk.page(ListingQuery(gpu="A100", max_price_usd=20), (), at)))
    group = f"{COUNT:,} listings: milliseconds"
    return [
        Series(
            name=f"choose among {COUNT:,} ÷ the limit of {LIMIT_MS:g} ms", unit="×", values=[ms / LIMIT_MS for ms in chosen],
            goal=Goal(kind="at most", value=1),
        ),
        Series(name=f"choose among {COUNT:,} ÷ among {COUNT // 10:,}", unit="×", values=ratios(chosen, tenth)),
        Series(name=f"choose among {COUNT:,}", unit="ms", values=chosen, group=group, label="choose"),
        Series(name="judge all and choose", unit="ms", values=judged, group=group, label="judge and choose"),
        Series(name="list what fits a question", unit="ms", values=listed_ms, group=group, label="list"),
    ]  # fmt: skip


def timed(act: Callable[[], object]) -> float:
    """Return how many milliseconds something takes."""
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1e3


def method() -> str:
    """Return METHOD with its numbers."""
    from agents.gpu_orchestrator.market.choice import OTHERS

    return METHOD.format(count=f"{COUNT:,}", gpus=len(GPUS), others=OTHERS, limit=LIMIT_MS)
