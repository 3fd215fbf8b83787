import math
import random
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction

import pytest

from agents.gpu_orchestrator.machine import Machine
from agents.gpu_orchestrator.market.choice import ranked, select_optimal_provider
from agents.gpu_orchestrator.market.estimate import gpu_bytes
from agents.gpu_orchestrator.market.gpus import GPUS
from agents.gpu_orchestrator.market.history import ENOUGH, History, Run
from agents.gpu_orchestrator.market.reasons import REASONS
from agents.gpu_orchestrator.market.requirements import Requirements, Supply, limit
from configs.providers import Rented
from protocol import Code, LabError, Retry
from protocol.job import Staged
from protocol.machine import Device, Listing, Offer, Quote
from tests.agents.gpu_orchestrator.market.samples import GIB, NOW, listing, machine, plan, terms

STAGED = Staged(store="s3://lab", dataset="s3://lab/data/a", base="org/base")
LIGHTNING = Requirements("j", plan(memory=8 * GIB), gpus=("T4",), tier="lightning")


def supply(*listings: Listing, machines: tuple[Machine, ...] = (), price: float = 3.6, history: History | None = None) -> Supply:
    return Supply(NOW, machines, terms(price), listings, Rented(), history or History())


def own(budget: float | None = None, cap: float | None = None, price: float = 3.6, *machines: Machine, memory: int = GIB) -> Quote:
    """Choose among own machines only."""
    micros, whose = limit(budget, cap)
    wanted = Requirements("j", plan(memory=memory), limit_micros=micros, limit_is=whose, tier="starter")
    return select_optimal_provider(wanted, supply(machines=machines or (machine(),), price=price))


def choose(wanted: Requirements, *listings: Listing, **more) -> Quote:
    return select_optimal_provider(wanted, supply(*listings, **more))


# this lab's own machines


def test_an_own_slot_reserves_p90_provisioning_and_grace_and_a_tenth_more():
    made = own().choice
    assert (made.provider, made.machine, made.paid) == ("local", "m1", False)
    assert (made.cost_p50_micros, made.cost_p90_micros) == (300_000, 600_000)
    assert made.reservation_micros == 731_500  # $0.001 per second x (600 + 5 + 60) x 1.1


def test_free_machines_cost_and_reserve_nothing():
    made = own(0, None, 0).choice
    assert (made.cost_p90_micros, made.reservation_micros) == (0, 0)


def test_a_machine_with_a_free_slot_is_chosen_among_equals_and_the_others_have_a_reason():
    made = own(None, None, 3.6, machine("m1", free=0), machine("m2"), machine("m3", memory=GIB // 2))
    assert made.choice.machine == "m2"
    assert made.rejected["m1"] == "as good as the chosen one" and [offer.machine for offer in made.others] == ["m1"]
    assert "1.00 GiB of memory, the machine has 0.50 GiB" in made.rejected["m3"]


def test_a_lent_machine_says_why_a_job_cannot_go_there():
    device = Device(cores=8, memory_bytes=32 * GIB, disk_free_bytes=10**9, gpu="NVIDIA GeForce RTX 4090", gpu_memory_bytes=24 * GIB)
    lent = Machine("worker-lent-pc", 1, 1, device, rental="lent-pc")
    for job, reason in (
        (plan(), "set MEETARA_STORE"),
        (plan(staged=STAGED, base_parameters=14 * 10**9), "29.34 GiB of one GPU's memory, it has 24.00 GiB"),
        (plan(staged=STAGED), "5.0 GB of disk, it has 1.0 GB"),
    ):
        with pytest.raises(LabError) as caught:
            choose(replace(LIGHTNING, plan=job), machines=(lent,))
        assert reason in caught.value.data["rejected"]["worker-lent-pc"]
    roomy = replace(lent, device=device.model_copy(update={"disk_free_bytes": 10**12}))
    made = choose(replace(LIGHTNING, plan=plan(staged=STAGED)), listing(), machines=(roomy, machine(memory=16 * GIB)), price=0.5)
    assert (made.choice.provider, made.choice.gpu, made.choice.cost_p90_micros, made.choice.paid) == ("lent", "RTX 4090", 0, False)
    assert "by arithmetic alone" in made.calibration
    here = choose(replace(LIGHTNING, plan=plan(staged=STAGED), providers=frozenset({"local"})), machines=(roomy, machine(memory=16 * GIB)))
    assert here.choice.provider == "local" and "other providers" in here.rejected["worker-lent-pc"]


def test_busy_machines_are_quoted_too():
    assert own(None, None, 3.6, machine(free=0)).choice.machine == "m1"


def test_too_little_memory_everywhere_is_no_capacity_with_the_reason():
    with pytest.raises(LabError, match=r"m1: the job needs 8\.00 GiB") as caught:
        own(memory=8 * GIB)
    assert (caught.value.code, caught.value.retry) == (Code.NO_CAPACITY, Retry.NEVER)


def test_over_the_requests_budget_is_refused_with_what_it_would_need():
    with pytest.raises(LabError, match=r"must reserve \$0\.7315 there, more than \$0\.50, the request's budget_usd") as caught:
        own(0.5)
    error = caught.value
    assert (error.code, error.data["field"]) == (Code.BUDGET, "budget_usd")
    assert (error.data["needed_micros"], error.data["cap_micros"]) == (731_500, 500_000)
    assert "0.74" in error.advice


def test_the_tiers_cap_counts_only_where_the_request_names_no_budget():
    with pytest.raises(LabError, match="the tier's cap") as caught:
        own(None, 0.5)
    assert "field" not in caught.value.data
    assert own(0.8, 0.5).choice.machine == "m1"


def test_a_machine_that_does_not_say_what_it_has_is_not_chosen():
    with pytest.raises(LabError, match="does not say what memory"):
        own(None, None, 3.6, Machine("m1", 1, 1, None))
    with pytest.raises(LabError, match="no slots"):
        own(None, None, 3.6, machine(slots=0, free=0))


def test_what_the_planning_factory_cannot_hold_goes_to_a_rented_machine_or_nowhere():
    wanted = replace(LIGHTNING, plan=plan(not_here="Training needs about 20,000 MB of memory."))
    with pytest.raises(LabError, match="m1: Training needs about 20,000 MB"):
        choose(wanted, machines=(machine(),))
    assert choose(wanted, listing(), machines=(machine(),), price=0).choice.machine == "a"


# rented ones


def test_the_lowest_cost_at_p90_is_chosen_and_not_the_lowest_price_per_hour():
    wanted = replace(LIGHTNING, gpus=("T4", "A100"), plan=plan(trained_tokens=20_000_000))
    made = choose(wanted, listing(id="slow", usd=0.5), listing(id="fast", gpu="A100", usd=0.9, gpu_memory_bytes=40 * GIB))
    assert made.choice.machine == "fast" and made.choice.paid
    assert made.choice.cost_p90_micros < made.others[0].cost_p90_micros
    assert "the lowest cost at P90" in made.reason and "lambda slow" in made.reason
    assert made.rejected["lambda slow"] == "costs more"


def test_a_rented_offer_counts_from_the_launch_and_holds_until_its_price_is_too_old():
    made = choose(LIGHTNING, listing(disk_micros_per_gb_hour=100, egress_micros_per_gb=1000, region="here")).choice
    training = 4 * 600e6 * 846 * 6 * 512 / (8.1e12 * 0.2)
    prior = 600 + 120 + 4 * 1.2e9 / 100e6 + training
    assert made.prior_s == pytest.approx(prior) and made.seconds_p50 == pytest.approx(prior, abs=0.002)
    assert made.seconds_p90 == pytest.approx(2.5 * prior, abs=0.002)
    assert made.disk_bytes == 15_000_000_000 + 1_200_000_000 + 5_000_000_000  # the image, the base, what the plan says
    hours, whole = made.seconds_p90 / 3600, (made.seconds_p90 + 120) / 3600
    assert made.cost_p90_micros == pytest.approx(500_000 * hours + 22 * 100 * hours + 3 * 1000, abs=3)
    assert made.reservation_micros == pytest.approx(500_000 * whole * 1.1 + 22 * 100 * whole + 3 * 1000, abs=3)
    assert made.expires_at == NOW + timedelta(minutes=9)


REFUSED = {
    "the job needs 4.38 GiB of one GPU's memory, it has 4.00 GiB": listing(gpu_memory_bytes=4 * GIB),
    "the job needs 21 GB of disk, it has 20 GB": listing(disk_bytes=20 * 10**9),
    "a stranger's machine, and the request does not allow untrusted_hosts": listing(secure=False),
    "it may be taken away at any time, and its checkpoints with it": listing(spot=True),
    "it is painted green": listing(rejected="it is painted green"),
    "its price is not known": listing(usd=None),
}


def test_what_nobody_asked_for_is_only_counted():
    others = [listing(id=f"a{n}", gpu="A10") for n in range(3)]
    assert choose(LIGHTNING, listing(id="b"), *others).rejected == {"…": "the tier lightning is meant for T4 (3 machines)"}
    with pytest.raises(LabError, match=r"no machine fits the job: the tier lightning is meant for T4 \(3 machines\)\."):
        choose(LIGHTNING, *others)


def test_an_error_says_a_reason_of_many_machines_once():
    with pytest.raises(LabError, match=r"lambda a0 and 2 more: a stranger's machine, and the request does not"):
        choose(LIGHTNING, *[listing(id=f"a{n}", secure=False) for n in range(3)])


@pytest.mark.parametrize(("reason", "item"), REFUSED.items(), ids=[reason[:30] for reason in REFUSED])
def test_what_does_not_fit_is_refused_with_its_reason(reason, item):
    with pytest.raises(LabError) as caught:
        choose(LIGHTNING, item)
    assert caught.value.code is Code.NO_CAPACITY and reason in caught.value.data["rejected"]["lambda a"]
    made = choose(LIGHTNING, item, listing(id="b"))
    assert made.choice.machine == "b" and reason in made.rejected["lambda a"]


def test_a_listing_that_is_refused_says_what_it_would_cost():
    made = choose(LIGHTNING, listing(rejected="only a catalogue has it"), listing(id="b", usd=0.6))
    assert made.rejected["lambda a"].startswith("would cost $1.") and "only a catalogue has it" in made.rejected["lambda a"]


def test_what_the_request_allows_is_taken():
    assert choose(replace(LIGHTNING, untrusted=True), listing(secure=False)).choice.machine == "a"
    assert choose(replace(LIGHTNING, spot=True), listing(spot=True)).choice.spot


def test_a_gpu_of_unknown_speed_is_never_chosen():
    wanted = replace(LIGHTNING, gpus=("MI300X",))
    with pytest.raises(LabError, match="nothing is known of the speed of MI300X"):
        choose(wanted, listing(gpu="MI300X"))


def test_the_starter_tier_stays_here_unless_the_request_names_a_provider():
    wanted = replace(LIGHTNING, gpus=(), tier="starter")
    with pytest.raises(LabError, match="meant for this lab's own machines"):
        choose(wanted, listing())
    assert choose(replace(wanted, providers=frozenset({"lambda"})), listing()).choice.machine == "a"
    with pytest.raises(LabError, match="the request names other providers"):
        choose(replace(wanted, providers=frozenset({"vast"})), listing(), machines=(machine(),))


def test_an_own_machine_is_taken_before_a_rented_one_at_the_same_cost():
    made = choose(replace(LIGHTNING, plan=plan()), listing(), machines=(machine(),), price=0)
    assert made.choice.provider == "local" and made.others[0].provider == "lambda"


def test_a_deadline_is_honoured_and_a_refusal_says_what_it_would_have_to_be():
    slow, fast = listing(), listing(id="fast", gpu="A100", usd=30, gpu_memory_bytes=40 * GIB)
    heavy = replace(LIGHTNING, gpus=("T4", "A100"), plan=plan(trained_tokens=50_000_000))
    assert choose(heavy, slow, fast).choice.machine == "a"
    hurried = replace(heavy, deadline_s=2 * 3600)
    assert choose(hurried, slow, fast).choice.machine == "fast"
    with pytest.raises(LabError, match="no machine is fast enough") as caught:
        choose(hurried, slow)
    assert caught.value.data["field"] == "deadline_hours" and caught.value.data["needed_hours"] > 2
    with pytest.raises(LabError, match=r"may take 10 min there \(P90\)"):
        choose(replace(heavy, plan=plan(), deadline_s=300), machines=(machine(),))


def test_while_money_is_short_only_spot_and_what_costs_at_most_the_median_is_taken():
    cheap, dear = listing(id="cheap", usd=0.4, rejected="sold out"), listing(id="dear", usd=0.6)
    short = replace(LIGHTNING, economy=True, spot=True)
    there = replace(supply(cheap, dear), usual={"T4": 500_000.0})
    with pytest.raises(LabError, match="only spot machines are taken"):
        select_optimal_provider(short, there)
    assert select_optimal_provider(replace(short, economy=False), there).choice.machine == "dear"
    assert select_optimal_provider(short, replace(there, listings=[listing(usd=0.5)])).choice.machine == "a"
    assert select_optimal_provider(short, replace(there, listings=[listing(usd=0.7, spot=True)])).choice.spot


def test_a_plan_of_an_older_factory_is_not_sent_to_a_rented_machine():
    with pytest.raises(LabError, match="the factory that made it is of an older version"):
        choose(replace(LIGHTNING, plan=plan(trained_tokens=None)), listing())


def test_a_quote_of_thousands_fits_into_a_message():
    many = [listing(id=f"machine-{n}", usd=0.5 + n / 1000) for n in range(3000)]
    made = choose(LIGHTNING, *many, *[item.model_copy(update={"secure": False, "id": f"s{item.id}"}) for item in many])
    assert made.choice.machine == "machine-0" and len(made.others) == 20
    assert len(made.rejected) == REASONS + 1 + 20
    assert made.rejected["…"] == f"machines of strangers ({3000 - REASONS} machines)"
    assert len(made.model_dump_json()) < 32_000


def test_what_can_be_launched_comes_in_the_order_of_choice():
    there = supply(listing(id="b", usd=0.6), listing(id="a", usd=0.5), listing(id="c", usd=0.4, spot=True), machines=(machine(),))
    assert [(offer.machine, item.id) for offer, item in ranked(LIGHTNING, there)] == [("a", "a"), ("b", "b")]


def test_finished_runs_correct_times_and_the_quote_says_how_often_they_held():
    runs = [Run("lambda", "T4", 100.0, 250.0, 200.0 + n) for n in range(ENOUGH)]
    before = choose(LIGHTNING, listing()).choice
    made = choose(LIGHTNING, listing(), history=History(runs))
    assert made.choice.seconds_p50 == pytest.approx(2.02 * before.seconds_p50, rel=1e-3)
    assert made.calibration == "by 5 finished runs on lambda T4; 5 of 5 finished runs stayed below their P90 (100%)"


# against exhaustive search


def reference(wanted: Requirements, there: Supply) -> tuple[str, str] | None:
    """The same choice in the slow and obvious way, with exact fractions; None: nothing fits."""
    job, best = wanted.plan, None
    for item in [*there.machines, *there.listings]:
        if isinstance(item, Machine) and item.lent:
            assert item.device is not None
            price, provider, name, before, grace = Fraction(0), "lent", item.name, 0, 0
            p90 = Fraction(str(job.seconds_p90))
            fits = item.slots > 0 and job.staged is not None and item.device.disk_free_bytes >= job.disk_bytes
            if item.device.gpu in GPUS:
                seconds = 120 + 4 * 2 * job.base_parameters / 100e6
                seconds += 4 * job.base_parameters * job.trained_tokens / (GPUS[item.device.gpu].tflops * 1e12 * 0.2)
                p90, fits = Fraction(seconds * 2.5), fits and item.device.gpu_memory_bytes >= gpu_bytes(job)
            fits = fits and item.device.memory_bytes >= job.memory_bytes
            busy, beside = item.free < 1, Fraction(0)
        elif isinstance(item, Machine):
            price, provider, name = Fraction(there.local.price_micros_per_hour), "local", item.name
            p90, before, grace = Fraction(str(job.seconds_p90)), 5, 60
            fits = item.slots > 0 and item.device is not None and item.device.memory_bytes >= job.memory_bytes
            busy, beside = item.free < 1, Fraction(0)
        else:
            if item.price_micros_per_hour is None or item.gpu not in GPUS:
                continue
            price, provider, name = Fraction(item.price_micros_per_hour), item.provider, item.id
            seconds = 600 + 120 + 4 * 2 * job.base_parameters / 100e6
            seconds += 4 * job.base_parameters * job.trained_tokens / (GPUS[item.gpu].tflops * 1e12 * 0.2)
            p90, before, grace = Fraction(math.ceil(seconds * 2.5 * 1000), 1000), 0, 120
            family = item.gpu.removesuffix("-80GB").removesuffix("-32GB")
            meant = {item.gpu, family} & set(wanted.gpus) if wanted.gpus else wanted.providers
            fits = bool(
                meant and item.rejected is None and item.gpu_memory_bytes >= gpu_bytes(job)
                and (item.disk_bytes is None or item.disk_bytes >= 15e9 + 2 * job.base_parameters + job.disk_bytes)
                and (item.secure or wanted.untrusted) and (not item.spot or wanted.spot)
            )  # fmt: skip
            disk = math.ceil((15e9 + 2 * job.base_parameters + job.disk_bytes) / 1e9)
            busy, beside = False, Fraction(item.disk_micros_per_gb_hour * disk)
        fits = fits and (wanted.providers is None or provider in wanted.providers)
        fits = fits and (wanted.deadline_s is None or p90 + before <= wanted.deadline_s)
        cost = math.ceil(price * p90 / 3600) + math.ceil(beside * p90 / 3600)
        whole = p90 + before + grace
        aside = math.ceil(price * whole / 3600 * Fraction(11, 10)) + math.ceil(beside * whole / 3600)
        if not fits or (wanted.limit_micros is not None and aside > wanted.limit_micros):
            continue
        key = (cost, provider not in ("local", "lent"), busy, p90, provider, name)
        best = min(best, key) if best is not None else key
    return None if best is None else best[4:]


def random_market(chance: random.Random) -> Supply:
    listings = [
        listing(
            provider=chance.choice(["lambda", "vast", "runpod"]), id=f"l{n}", gpu=(gpu := chance.choice(
                ["T4", "V100", "A10", "L4", "A100", "A100-80GB", "MI300X"]
            )),
            usd=chance.choice([None, 0.2, 0.2, 0.4, 0.8, 1.6, 3.2]), secure=chance.random() < 0.8, spot=chance.random() < 0.2,
            gpu_memory_bytes=(GPUS[gpu].memory_gib if gpu in GPUS else 192) * GIB,
            disk_bytes=chance.choice([None, 20 * 10**9, 10**12]), rejected=chance.choice([None, None, None, "no"]),
            disk_micros_per_gb_hour=chance.choice([0, 0, 150]),
        )
        for n in range(chance.randrange(12))
    ]  # fmt: skip
    machines = [
        machine(f"m{n}", memory=chance.choice([2, 8]) * GIB, free=chance.randrange(2), slots=chance.randrange(3))
        for n in range(chance.randrange(3))
    ]
    lent = [
        Machine(f"worker-lent-{n}", chance.randrange(2), chance.randrange(2), Device(
            cores=8, memory_bytes=chance.choice([2, 8]) * GIB, disk_free_bytes=chance.choice([2 * 10**9, 10**12]),
            gpu=chance.choice(["", "T4", "RTX 4090"]), gpu_memory_bytes=chance.choice([8, 16, 24]) * GIB,
        ), rental=f"lent-{n}")
        for n in range(chance.randrange(3))
    ]  # fmt: skip
    return Supply(NOW, [*machines, *lent], terms(chance.choice([0, 0.1, 5])), listings)


def random_requirements(chance: random.Random) -> Requirements:
    job = plan(
        memory=chance.choice([1, 4]) * GIB, p90=chance.choice([600, 30_000]), base_parameters=chance.choice([600, 4000, 8000]) * 10**6,
        trained_tokens=chance.choice([10**6, 10**7]), disk_bytes=chance.choice([10**9, 10**11]),
        staged=chance.choice([None, None, STAGED]),
    )  # fmt: skip
    return Requirements(
        "j", job, gpus=chance.choice([("T4",), ("V100", "A10", "L4"), ("A100",), ()]),
        limit_micros=chance.choice([None, 0, 200_000, 1_000_000, 12_000_000]),
        deadline_s=chance.choice([None, None, 1800, 7200, 40_000]),
        providers=chance.choice([None, None, frozenset({"lambda", "local"}), frozenset({"vast", "runpod"}), frozenset({"lent"})]),
        untrusted=chance.random() < 0.5, spot=chance.random() < 0.5,
    )  # fmt: skip


def test_the_choice_equals_exhaustive_search_on_ten_thousand_random_requirements():
    chance = random.Random(5)
    chosen = 0
    for _ in range(500):
        there = random_market(chance)
        for _ in range(20):
            wanted = random_requirements(chance)
            expected = reference(wanted, there)
            try:
                made: Offer | None = select_optimal_provider(wanted, there).choice
            except LabError as error:
                assert error.code in (Code.BUDGET, Code.NO_CAPACITY)
                made = None
            assert (None if made is None else (made.provider, made.machine)) == expected, (wanted, there)
            chosen += expected is not None
    assert 2000 < chosen < 8000, "both outcomes are common"
