from datetime import timedelta

import pytest

from agents.gpu_orchestrator.market.book import PAGE_BYTES, OfferBook
from configs.providers import Rented
from protocol import Code, LabError
from protocol.machine import ListingPage, ListingQuery
from tests.agents.gpu_orchestrator.market.samples import GIB, NOW, listing


def book(*launchable: str) -> OfferBook:
    return OfferBook(Rented(), launchable or ("lambda", "vast"))


def page(found: OfferBook, now=NOW, **query) -> ListingPage:
    return found.page(ListingQuery(**query), [], now)


def ids(found: ListingPage) -> list[str]:
    return [item.id for item in found.listings]


def test_what_a_provider_lists_replaces_what_it_listed_before():
    found = book()
    found.note("lambda", [listing(id="old"), listing(id="stays")])
    found.note("vast", [listing("vast", "other")])
    found.note("lambda", [listing(id="stays", usd=0.7)])
    assert ids(page(found)) == ["other", "stays"]
    assert found.find("lambda", "old") is None and found.find("lambda", "stays").price_micros_per_hour == 700_000


def test_gpus_get_their_one_name_and_are_found_by_any():
    found = book()
    found.note("lambda", [listing(gpu="NVIDIA A100-SXM4-80GB", gpu_memory_bytes=80 * GIB), listing(id="b", gpu="A100", gpu_memory_bytes=40 * GIB)])
    assert [item.gpu for item in page(found, gpu="a100").listings] == ["A100-80GB", "A100"]
    assert ids(page(found, gpu="A100 80GB")) == ["a"]


def test_old_listings_stay_with_their_reason_and_a_failure_forgets_nothing():
    found = book()
    found.note("lambda", [listing()])
    found.failed("lambda", "no answer within 30 s")
    assert page(found).stale == {"lambda": "it could not be asked: no answer within 30 s"} and ids(page(found)) == ["a"]
    late = page(found, NOW + timedelta(minutes=20))
    assert (ids(late), late.rejected) == ([], 1)
    (old,) = page(found, NOW + timedelta(minutes=20), all=True).listings
    assert "it was seen 21 minutes ago" in old.rejected
    found.note("lambda", [listing()])
    assert page(found).stale == {}


def test_a_live_word_stands_beside_the_catalogue_which_is_never_chosen():
    found = book()
    found.note("lambda", [listing(id="type", source="catalogue")], "catalogue")
    assert (ids(page(found)), page(found).rejected) == ([], 1)
    found.note("lambda", [listing(id="type")])
    assert ids(page(found)) == ["type"] and len(page(found, all=True).listings) == 2


def test_a_query_narrows_by_price_memory_region_spot_and_provider():
    found = book()
    found.note("lambda", [listing(id="a", region="us-west-1"), listing(id="b", usd=0.9, gpu="A10", gpu_memory_bytes=24 * GIB)])
    found.note("vast", [listing("vast", "c", usd=0.2, spot=True), listing("vast", "d", usd=None)])
    assert ids(page(found, max_price_usd=0.5)) == ["c", "a"]
    assert ids(page(found, min_gpu_memory_gb=20)) == ["b"]
    assert ids(page(found, region="us-")) == ["a"]
    assert ids(page(found, spot=False)) == ["a", "b"]
    assert ids(page(found, provider="Vast")) == ["c"]
    assert ids(page(found, provider="vast", all=True)) == ["c", "d"], "what has no price comes last"


@pytest.mark.parametrize(
    ("query", "field", "near"), [({"gpu": "H10O"}, "gpu", "H100"), ({"provider": "lamda"}, "provider", "lambda")]
)
def test_an_unknown_name_is_refused_with_the_nearest(query, field, near):
    with pytest.raises(LabError) as caught:
        page(book(), **query)
    assert (caught.value.code, caught.value.data["field"]) == (Code.INVALID_PARAMS, field)
    assert near in caught.value.advice


def test_a_page_says_why_nothing_of_a_provider_is_on_it():
    assert "VAST_API_KEY is not set" in page(OfferBook(Rented(), ["lambda"]), provider="vast").stale["vast"]
    assert page(book(), provider="vast").stale == {"vast": "it lists nothing"} and page(book(), provider="local").stale == {}


def test_a_page_holds_as_much_as_a_message_and_counts_the_rest():
    found = book()
    found.note("lambda", [listing(id=f"{n:04}", usd=1 + n / 1e4) for n in range(2000)])
    made = page(found)
    assert 100 < len(made.listings) < 2000 and made.more == 2000 - len(made.listings)
    assert ids(made)[0] == "0000" and len(made.model_dump_json()) < PAGE_BYTES * 1.1


def test_a_provider_of_which_nothing_can_be_rented_says_why():
    found = book("lambda")
    assert "no adapter" in found.missing("aws") and "VAST_API_KEY is not set" in found.missing("vast") and found.missing("lambda") == "it lists nothing"
    found.failed("lambda", "the key is revoked")
    assert found.missing("lambda") == "it could not be asked: the key is revoked"
