from datetime import timedelta

import pytest

from agents.gpu_orchestrator.market.sanity import judged, medians, stale
from configs.providers import Rented
from tests.agents.gpu_orchestrator.market.samples import NOW, listing

USUAL = [listing(name, "1", "H100", usd) for name, usd in (("a", 2.0), ("b", 2.4), ("c", 2.4), ("lambda", 3.0))]
"""Median $2.40, also with one more that is far off."""


def reason(item, *others) -> str | None:
    *_, found = judged([*others, item], {"a", "b", "c", "lambda"})
    return found.rejected


def test_a_price_of_zero_or_less_is_refused():
    assert reason(listing(gpu="H100", usd=0.0, spot=True), *USUAL) == "a price of $0.00 per hour cannot be right"
    assert "cannot be right" in reason(listing(usd=-1.0))


@pytest.mark.parametrize(("usd", "told"), [(0.59, "below 25% of"), (9.7, "above 4 times"), (0.61, None), (9.5, None)])
def test_a_price_far_from_the_median_of_its_gpu_is_refused(usd, told):
    found = reason(listing(gpu="H100", usd=usd), *USUAL)
    assert (found is None) if told is None else (told in found and "the median for H100" in found)


def test_prices_are_compared_per_gpu_and_a_type_in_many_regions_counts_once():
    assert reason(listing(gpu="H100", usd=19.2, gpus=8), *USUAL) is None
    everywhere = [listing("a", f"zone-{n}", "H100", 40.0) for n in range(48)]
    assert medians([*USUAL, *everywhere]) == {"H100": 2_400_000.0}


def test_a_price_for_one_gpu_on_a_machine_of_eight_is_refused():
    assert "below 25% of the median" in reason(listing(gpu="H100", usd=2.4, gpus=8), *USUAL)


def test_a_price_that_was_multiplied_by_the_number_of_gpus_twice_is_refused():
    one = listing(id="one", gpu="H100", usd=2.4)
    for gpus in (2, 4, 8):
        again = listing(gpu="H100", usd=2.4 * gpus * gpus, gpus=gpus)
        assert f"multiplied by its {gpus} GPUs twice" in reason(again, one)
        assert reason(listing(gpu="H100", usd=2.4 * gpus, gpus=gpus), one) is None


def test_of_two_prices_nobody_knows_which_is_wrong():
    assert reason(listing(gpu="H100", usd=30.0), listing("a", "1", "H100", 2.0)) is None


def test_what_cannot_be_launched_is_shown_and_never_chosen():
    assert "no word of the provider itself" in reason(listing(source="catalogue"))
    assert "a person has to" in reason(listing("colab", source="configs"))
    assert reason(listing(usd=None)) == "its price is not known"
    assert reason(listing(gpu="", gpus=0)) == "it has no GPU"


def test_the_adapters_own_reason_stays():
    assert reason(listing(rejected="sold out", usd=0.0)) == "sold out"


@pytest.mark.parametrize(
    ("source", "age", "told"),
    [
        ("live", timedelta(minutes=10), None),
        ("live", timedelta(minutes=12), "seen 12 minutes ago; a provider's own word counts for 10"),
        ("catalogue", timedelta(days=13), None), ("catalogue", timedelta(days=15), "seen 15 days ago; a catalogue counts for 14"),
        ("configs", timedelta(days=89), None), ("configs", timedelta(days=100), "a price that a person looked up counts for 90"),
    ],
)  # fmt: skip
def test_each_source_has_its_own_limit_of_age(source, age, told):
    found = stale(listing(source=source, seen_at=NOW - age), NOW, Rented())
    assert (found is None) if told is None else (told in found)
