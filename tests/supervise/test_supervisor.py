"""A part that stumbles is started again; one that only stumbles is given up so that everybody sees it."""

from __future__ import annotations

import asyncio

import pytest

from broadcast_server.domain.errors import Unavailable
from broadcast_server.supervise import FOREVER, Backoff, RestartPolicy, Supervisor, TaskState
from tests.support.clock import FakeChance, FakeClock, settle


class Part:
    """Fails as often as told, then serves until it is stopped."""

    def __init__(self, failures: int) -> None:
        self.failures, self.starts, self.is_serving = failures, 0, False

    async def run(self) -> None:
        self.starts += 1
        if self.starts <= self.failures:
            raise Unavailable("feed_dead", url="http://user:secret@radio.example/vov1?key=1")
        self.is_serving = True
        try:
            await asyncio.Event().wait()
        finally:
            self.is_serving = False


async def test_a_part_that_fails_twice_serves_the_third_time() -> None:
    clock, part = FakeClock(), Part(failures=2)
    async with Supervisor(clock=clock, chance=FakeChance()) as supervisor:
        supervisor.keep("relay.engine", part.run)
        await settle()
        assert (part.starts, supervisor.status()[0].state) == (1, TaskState.BACKING_OFF)
        await clock.advance(5)
        status = supervisor.status()[0]
        assert (part.starts, part.is_serving) == (3, True)
        assert (status.name, status.state, status.restarts) == ("relay.engine", TaskState.RUNNING, 2)
    assert not part.is_serving
    assert supervisor.status()[0].state is TaskState.STOPPED


async def test_what_it_complained_carries_no_password() -> None:
    part = Part(failures=1)
    async with Supervisor(clock=FakeClock(), chance=FakeChance()) as supervisor:
        supervisor.keep("audio.feed[7]", part.run)
        await settle()
        told = supervisor.status()[0].last_error
    assert told is not None
    assert "feed_dead" in told
    assert "secret" not in told
    assert "key=1" not in told


async def test_a_part_that_fails_too_often_is_given_up_loudly() -> None:
    clock, part, given_up = FakeClock(), Part(failures=10**6), []
    supervisor = Supervisor(
        clock=clock, chance=FakeChance(), on_give_up=lambda name, error: given_up.append((name, str(error)[:9]))
    )
    async with supervisor:
        supervisor.keep("conductor", part.run, RestartPolicy(first_delay_s=0.1, budget=3, window_s=60))
        await clock.advance(60)
        assert part.starts == 4
        assert supervisor.status()[0].state is TaskState.GAVE_UP
        assert given_up == [("conductor", "feed_dead")]


async def test_rare_failures_never_use_the_budget_up() -> None:
    clock, starts = FakeClock(), 0

    async def fails_every_minute() -> None:
        nonlocal starts
        starts += 1
        await clock.sleep(60)
        raise OSError("cable")

    async with Supervisor(clock=clock, chance=FakeChance()) as supervisor:
        supervisor.keep("probe", fails_every_minute, RestartPolicy(first_delay_s=1, budget=3, window_s=60))
        await clock.advance(3600)
        assert supervisor.status()[0].state in {TaskState.RUNNING, TaskState.BACKING_OFF}
    assert starts >= 58, "a long healthy life starts the back-off anew"


async def test_the_broker_is_never_given_up() -> None:
    clock, part = FakeClock(), Part(failures=10**6)
    async with Supervisor(clock=clock, chance=FakeChance()) as supervisor:
        supervisor.keep("mqtt.broker", part.run, FOREVER)
        await clock.advance(3600)
        assert supervisor.status()[0].state is TaskState.BACKING_OFF
    assert part.starts > 100


async def test_one_that_returns_is_finished_and_its_name_is_free() -> None:
    async def once() -> None:
        return

    async with Supervisor(clock=FakeClock(), chance=FakeChance()) as supervisor:
        supervisor.keep("import", once)
        with pytest.raises(ValueError, match="kept already"):
            supervisor.keep("import", once)
        await settle()
        assert supervisor.status()[0].state is TaskState.FINISHED
        supervisor.keep("import", once)
        await supervisor.drop("import")
        await supervisor.drop("import")
        assert supervisor.status() == ()


def test_waits_grow_to_a_ceiling_and_never_march_in_step() -> None:
    backoff = Backoff(FakeChance(), first_s=1, longest_s=8)
    waits = [backoff.next_s() for _ in range(6)]
    assert all(low <= wait <= high for wait, (low, high) in zip(waits, [(0.5, 1), (1, 2), (2, 4)], strict=False))
    assert all(4 <= wait <= 8 for wait in waits[3:])
    assert len(set(waits)) == 6
    backoff.reset()
    assert backoff.next_s() <= 1
