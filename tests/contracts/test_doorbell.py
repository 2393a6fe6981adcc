"""Somebody changed the store: who hears of it, and when; also when it was another process."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text

from broadcast_server.domain.errors import Unavailable
from broadcast_server.store.doorbell import LOOK_EVERY_S, Doorbell
from broadcast_server.store.session import Session, Store
from broadcast_server.supervise import FOREVER, Supervisor, SystemChance
from tests.support.clock import FakeChance, FakeClock, settle
from tests.support.database import a_store

ANOTHER_PROCESS = """
import asyncio, sys
from sqlalchemy import text
from broadcast_server.store.session import Store
from broadcast_server.supervise import InlineExecutor, SystemChance, SystemClock

async def change():
    store = Store(sys.argv[1], clock=SystemClock(), chance=SystemChance(), executor=InlineExecutor())
    await store.begin(lambda session: session.execute(text(
        "INSERT INTO facts (name, value, updated_at) VALUES ('from another process', '{}', 0)")))
    await store.close()

asyncio.run(change())
"""


def change(session: Session) -> None:
    session.execute(text("DELETE FROM facts"))


@pytest.fixture
def clock(store: Store) -> FakeClock:
    assert isinstance(store.clock, FakeClock)
    return store.clock


@asynccontextmanager
async def watching(store: Store, clock: FakeClock) -> AsyncIterator[None]:
    async with Supervisor(clock=clock, chance=FakeChance()) as supervisor:
        supervisor.keep("store.doorbell", store.doorbell.watch, FOREVER)
        await settle()
        yield


async def test_a_listener_that_waits_is_woken_by_a_commit(store: Store):
    waiting = asyncio.create_task(store.doorbell.wait(60), name="listener")
    await settle()
    assert not waiting.done()

    await store.begin(change)
    assert await waiting


async def test_nothing_rings_and_the_listener_gives_up_in_time(store: Store, clock: FakeClock):
    waiting = asyncio.create_task(store.doorbell.wait(60), name="listener")
    await clock.advance(59.9)
    assert not waiting.done()

    await clock.advance(0.1)
    assert await waiting is False


async def test_a_ring_while_the_listener_is_busy_is_kept_and_many_are_one(store: Store):
    for _ in range(5):
        await store.begin(change)
    await settle()

    assert await store.doorbell.wait(60)
    assert await store.doorbell.wait(0) is False


async def test_every_listener_has_an_ear_of_its_own(store: Store):
    conductor, relay = store.doorbell.ear(), store.doorbell.ear()
    await store.begin(change)
    await settle()

    assert await conductor.wait(0)
    assert await relay.wait(0)
    assert not await conductor.wait(0)


async def test_a_listener_that_is_cancelled_leaves_nothing_behind(store: Store):
    waiting = asyncio.create_task(store.doorbell.wait(60), name="listener")
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_the_commit_of_another_process_is_heard(store: Store, clock: FakeClock):
    ear = store.doorbell.ear()
    async with watching(store, clock):
        assert await ear.wait(0), "the start of the watch rings once"
        url = store.url.render_as_string(hide_password=False)
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", ANOTHER_PROCESS, url], check=True)
        assert not await ear.wait(0)

        await clock.advance(LOOK_EVERY_S)
        assert await ear.wait(0)

        await clock.advance(LOOK_EVERY_S * 10)
        assert not await ear.wait(0), "one commit rings once"


async def test_own_commits_do_not_ring_a_second_time(store: Store, clock: FakeClock):
    async with watching(store, clock):
        await store.begin(change)
        await settle()
        before = store.doorbell.rings
        await clock.advance(LOOK_EVERY_S * 4)

        assert store.doorbell.rings == before


async def test_a_reader_of_another_process_rings_nobody(store: Store, clock: FakeClock, store_url: str):
    async with watching(store, clock), a_store(store_url, create=False, chance=SystemChance()) as other:
        before = store.doorbell.rings
        await other.read(lambda session: session.execute(text("SELECT * FROM facts")).all())
        await clock.advance(LOOK_EVERY_S * 2)

        assert store.doorbell.rings == before


async def test_a_database_that_was_away_rings_when_it_is_back():
    """What was committed while nobody could look is not known, so it counts as a change."""
    clock = FakeClock()
    answers: list[bool | Unavailable] = [False, Unavailable("store_unavailable"), False, False]

    async def look() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    doorbell = Doorbell(clock=clock, look=look)
    ear = doorbell.ear()
    async with Supervisor(clock=clock, chance=FakeChance()) as supervisor:
        supervisor.keep("store.doorbell", doorbell.watch, FOREVER)
        await settle()
        assert await ear.wait(0)
        await clock.advance(LOOK_EVERY_S + 0.2)

        assert await ear.wait(0)
