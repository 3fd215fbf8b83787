import pytest

from agents.gpu_orchestrator.market.estimate import cost, gpu_bytes, requoted, reservation, work
from agents.gpu_orchestrator.market.gpus import GPUS
from agents.gpu_orchestrator.market.history import Calibration
from configs.providers import Rented
from protocol.job import Probe
from protocol.machine import Offer
from tests.agents.gpu_orchestrator.market.samples import listing, plan, terms

SURE = Calibration(1.0, 1.5, 20, "")


def test_costs_are_rounded_up_to_a_micro_dollar():
    assert cost(3_600_000, 300_000) == 300_000
    assert cost(1, 1) == 1 and cost(0, 10**15) == 0
    assert reservation(1, 1) == 1 and reservation(3_600_000, 1_000_000) == 1_100_000


def test_a_faster_gpu_shortens_training_and_not_the_rest():
    job = plan(trained_tokens=50_000_000)
    slow, fast = work(job, GPUS["T4"], Rented(), SURE), work(job, GPUS["A100"], Rented(), SURE)
    rest = 600 + 120 + 48
    assert (slow.prior_s - rest) / (fast.prior_s - rest) == pytest.approx(312 / 8.1)
    assert slow.p90_ms == pytest.approx(1.5 * slow.p50_ms, abs=2)


def test_a_gpu_holds_the_base_in_sixteen_bits_and_what_training_works_with():
    assert gpu_bytes(plan()) == 1_200_000_000 + 2_000_000_000 + 1_500_000_000


def paid(**changes) -> Offer:
    fields = {
        "provider": "lambda", "machine": "a", "price_micros_per_hour": 3_600_000, "seconds_p50": 1.0, "seconds_p90": 1.0,
        "cost_p50_micros": 1, "cost_p90_micros": 1, "reservation_micros": 1,
    }  # fmt: skip
    return Offer(**(fields | changes))


def test_a_probe_replaces_the_arithmetic():
    probe = Probe(steps=20, seconds=40, step=21, elapsed_s=100)
    made = requoted(paid(), plan(), probe, None, terms(), Rented())
    seconds = 600 + 100 + (846 - 21) * 2 + 120 + 48  # boot, until the probe's end, the other steps at its pace, export
    assert made.seconds_p50 == seconds and made.seconds_p90 == pytest.approx(1.3 * seconds)
    assert made.cost_p50_micros == seconds * 1000
    assert made.reservation_micros == pytest.approx((1.3 * seconds + 120) * 1100, abs=2)


def test_control_training_and_disk_are_not_forgotten_by_a_probe():
    probe = Probe(steps=20, seconds=40, step=21, elapsed_s=100)
    more = requoted(paid(), plan(parameters={"control_share": 0.5}), probe, listing(disk_micros_per_gb_hour=1000), terms(), Rented())
    plain = requoted(paid(), plan(), probe, None, terms(), Rented())
    assert more.seconds_p50 - plain.seconds_p50 == 846
    assert more.cost_p50_micros > more.seconds_p50 * 1000


def test_a_local_offer_is_requoted_by_its_own_terms():
    made = requoted(paid(provider="local"), plan(), Probe(steps=845, seconds=400, step=846, elapsed_s=450), None, terms(), Rented())
    assert made.seconds_p50 == 450
