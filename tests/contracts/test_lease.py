"""Two servers, one leader: who may sign, from when, and with which epoch."""

import asyncio
from datetime import timedelta

import pytest

from broadcast_server.domain.errors import Invalid
from broadcast_server.store import leases
from broadcast_server.store.leases import LEADER, RENEW_EVERY_S, TTL, Lease
from broadcast_server.store.session import Store
from broadcast_server.supervise import ThreadExecutor
from tests.support.clock import FakeClock
from tests.support.database import a_store

TTL_S = TTL / timedelta(seconds=1)


@pytest.fixture
def clock(store: Store) -> FakeClock:
    assert isinstance(store.clock, FakeClock)
    return store.clock


async def acquire(store: Store, holder: str) -> Lease | None:
    return await store.begin(lambda session: leases.acquire(session, LEADER, holder, now=store.clock.now()))


async def renew(store: Store, lease: Lease) -> Lease | None:
    return await store.begin(lambda session: leases.renew(session, lease, now=store.clock.now()))


def must(found: Lease | None) -> Lease:
    assert found is not None
    return found


async def test_the_first_to_ask_leads_and_the_second_waits(store: Store):
    lease = await acquire(store, "a")

    assert lease == Lease(LEADER, "a", 1, store.clock.now() + TTL)
    assert await acquire(store, "b") is None


async def test_a_lease_ends_at_its_instant_and_not_before(store: Store, clock: FakeClock):
    first = must(await acquire(store, "a"))
    await clock.advance(TTL_S - 0.001)
    assert first.holds_at(clock.now())
    assert await acquire(store, "b") is None

    await clock.advance(0.001)
    assert not first.holds_at(clock.now())
    second = must(await acquire(store, "b"))
    assert (second.holder, second.epoch) == ("b", 2)


async def test_a_leader_that_renews_stays_and_keeps_its_epoch(store: Store, clock: FakeClock):
    lease = must(await acquire(store, "a"))
    for _ in range(20):
        await clock.advance(RENEW_EVERY_S)
        lease = must(await renew(store, lease))
        assert await acquire(store, "b") is None

    assert (lease.epoch, lease.expires_at) == (1, clock.now() + TTL)


async def test_a_leader_that_slept_learns_that_it_lost(store: Store, clock: FakeClock):
    slept = must(await acquire(store, "a"))
    await clock.advance(60)
    await acquire(store, "b")

    assert await renew(store, slept) is None
    assert await acquire(store, "a") is None


async def test_a_leader_that_slept_alone_goes_on_with_its_epoch(store: Store, clock: FakeClock):
    slept = must(await acquire(store, "a"))
    await clock.advance(60)

    assert (must(await renew(store, slept))).epoch == 1


async def test_a_released_lease_is_free_at_once_and_its_epoch_is_remembered(store: Store, clock: FakeClock):
    for epoch, holder in enumerate(["a", "b", "a", "c"], start=1):
        lease = must(await acquire(store, holder))
        assert lease.epoch == epoch
        await store.begin(lambda session, lease=lease: leases.release(session, lease, now=clock.now()))

    assert await renew(store, lease) is None


async def test_releasing_what_was_lost_takes_nothing_from_the_new_holder(store: Store, clock: FakeClock):
    lost = must(await acquire(store, "a"))
    await clock.advance(TTL_S)
    await acquire(store, "b")
    await store.begin(lambda session: leases.release(session, lost, now=clock.now()))

    assert await acquire(store, "c") is None


async def test_a_restored_server_rises_above_what_nodes_have_seen(store: Store, clock: FakeClock):
    lease = must(await acquire(store, "a"))

    raised = await store.begin(lambda session: leases.raise_above(session, LEADER, 41, now=clock.now()))
    again = await store.begin(lambda session: leases.raise_above(session, LEADER, 7, now=clock.now()))
    renewed = must(await renew(store, lease))

    assert (raised, again, renewed.epoch) == (42, 42, 42)


async def test_rising_before_anybody_led_leaves_the_lease_free(store: Store, clock: FakeClock):
    await store.begin(lambda session: leases.raise_above(session, LEADER, 9, now=clock.now()))

    assert (must(await acquire(store, "a"))).epoch == 11


async def test_of_many_that_ask_at_once_one_leads(store_url: str):
    clock, executor = FakeClock(), ThreadExecutor(8, name="store")
    async with (
        a_store(store_url, create=False, clock=clock, executor=executor) as one,
        a_store(store_url, create=False, clock=clock, executor=executor) as two,
    ):
        answers = await asyncio.gather(
            *(acquire(opened, f"{name}{number}") for number in range(10) for name, opened in (("a", one), ("b", two)))
        )

    executor.close()
    assert len([lease for lease in answers if lease is not None]) == 1


async def test_a_holder_has_a_name(store: Store):
    with pytest.raises(Invalid, match="holder_missing"):
        await acquire(store, "")


async def test_who_knows_the_holder_dead_inherits_at_once_with_a_higher_epoch(store: Store, clock: FakeClock):
    """A server killed by SIGKILL and started anew on the same disk must not be silent for a lease's length."""
    await acquire(store, "killed")
    heir = must(
        await store.begin(lambda session: leases.acquire(session, LEADER, "anew", now=clock.now(), inherits=True))
    )

    assert (heir.holder, heir.epoch) == ("anew", 2)
    assert await acquire(store, "killed") is None, "what is left of it, if anything, leads no more"
