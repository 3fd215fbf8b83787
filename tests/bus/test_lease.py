import sqlite3
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.lease import SCHEMA, TTL, Leases
from protocol import Code, LabError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def fresh() -> Leases:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    connection.executescript(SCHEMA)
    return Leases(connection)


@pytest.fixture
def leases() -> Leases:
    return fresh()


def test_a_fence_grows_with_every_grant_of_the_job_and_only_of_that_job(leases):
    assert leases.grant("a", "l1", "m", NOON).fence == 1
    assert leases.grant("b", "l2", "m", NOON).fence == 1
    leases.release("a")
    assert leases.grant("a", "l3", "m", NOON).fence == 2


def test_a_job_that_holds_a_lease_keeps_it(leases):
    first = leases.grant("a", "l1", "m1", NOON, memory_bytes=5, price_micros_per_hour=7)
    assert leases.grant("a", "l2", "m2", NOON + seconds(5)) == first
    assert (first.memory_bytes, first.price_micros_per_hour, first.expires_at) == (5, 7, NOON + TTL)


def test_renewal_lets_it_live_for_a_ttl_from_then(leases):
    leases.grant("a", "l1", "m", NOON)
    assert leases.renew("a", "l1", 1, NOON + seconds(10)).expires_at == NOON + seconds(10) + TTL
    assert leases.expired(NOON + TTL) == []
    set_back = NOON - seconds(3600)
    assert leases.renew("a", "l1", 1, set_back).expires_at == set_back + TTL, "nobody is held for the hour that comes again"


@pytest.mark.parametrize(("job", "lease", "fence"), [("a", "l1", 1), ("a", "l2", 1), ("a", "l1", 2), ("x", "l1", 1)])
def test_an_old_or_foreign_lease_is_not_renewed(leases, job, lease, fence):
    leases.grant("a", "l1", "m", NOON)
    leases.release("a", "l1")
    leases.grant("a", "l2", "m", NOON)
    with pytest.raises(LabError, match="no longer holds job") as caught:
        leases.renew(job, lease, fence, NOON)
    assert caught.value.code is Code.FENCED
    assert leases.of("a").expires_at == NOON + TTL


def test_check_lets_only_the_current_fence_pass(leases):
    leases.grant("a", "l1", "m", NOON)
    assert leases.check("a", 1).lease == "l1"
    leases.take_expired(NOON + TTL)
    with pytest.raises(LabError, match="it is not leased"):
        leases.check("a", 1)
    leases.grant("a", "l2", "m", NOON)
    with pytest.raises(LabError, match="leased with fence 2") as caught:
        leases.check("a", 1)
    assert (caught.value.data["fence"], caught.value.data["current_fence"]) == (1, 2)


def test_release_ends_a_lease_once_and_never_another(leases):
    leases.grant("a", "l1", "m", NOON)
    assert leases.release("a", "other") is None
    assert leases.release("a", "l1").lease == "l1"
    assert leases.release("a", "l1") is None
    assert leases.release("a") is None


def test_leases_expire_oldest_first_and_are_taken_once(leases):
    leases.grant("b", "l1", "m", NOON + seconds(1))
    leases.grant("a", "l2", "m", NOON + seconds(2))
    leases.grant("c", "l3", "m", NOON + seconds(9))
    late = NOON + TTL + seconds(2)
    assert [lease.job for lease in leases.expired(late)] == ["b", "a"]
    assert [lease.job for lease in leases.take_expired(late)] == ["b", "a"]
    assert leases.take_expired(late) == []
    assert [lease.job for lease in leases.live()] == ["c"]


def test_grace_gives_every_lease_one_ttl_from_now(leases):
    leases.grant("a", "l1", "m", NOON)
    leases.grant("b", "l2", "m", NOON + seconds(100))
    leases.grace(NOON + seconds(50))
    assert leases.of("a").expires_at == leases.of("b").expires_at == NOON + seconds(50) + TTL


def test_leases_follow_a_clock_that_is_set(leases):
    leases.grant("a", "l1", "m", NOON)
    leases.shift(-3600)
    assert leases.of("a").expires_at == NOON + TTL - seconds(3600)


@given(st.lists(st.tuples(st.sampled_from(["grant", "release", "expire", "renew"]), st.sampled_from("ab"), st.integers(0, 40))))
def test_at_most_one_holder_and_no_fence_twice(steps):
    leases, now = fresh(), NOON
    seen: set[tuple[str, int]] = set()
    holders: dict[str, int] = {}
    for number, (step, job, pause) in enumerate(steps):
        now += seconds(pause)
        held = leases.of(job)
        if step == "grant":
            lease = leases.grant(job, f"l{number}", "m", now)
            if held is None:
                assert (job, lease.fence) not in seen and lease.fence > holders.get(job, 0)
                seen.add((job, lease.fence))
                holders[job] = lease.fence
        elif step == "release":
            leases.release(job)
        elif step == "expire":
            leases.take_expired(now)
        elif held is not None:
            leases.renew(job, held.lease, held.fence, now)
        for old_job, fence in seen:
            live = leases.of(old_job)
            if live is None or live.fence != fence:
                with pytest.raises(LabError):
                    leases.check(old_job, fence)
