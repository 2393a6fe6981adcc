"""The alarm clock rings; whether it does or not, what is planned sounds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from broadcast_server.domain.errors import Unavailable
from broadcast_server.playout.alarms import NEXT_EDGE, Alarms, Job
from broadcast_server.store import jobs
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import JobRow
from broadcast_server.supervise import SystemClock
from tests.playout.rig import NODE, a_room
from tests.support.database import a_store
from tests.support.until import until
from tests.support.village import at, once


class Bell:
    def __init__(self) -> None:
        self.rings = 0

    def ring(self) -> None:
        self.rings += 1


async def done() -> str:
    return "done"


DAILY = Job("backup", done, daily_at=(1, 30))
OFTEN = Job("feed_probe", done, every=timedelta(minutes=5))


def alarms_of(store: Store, *work: Job, bell: Bell | None = None) -> Alarms:
    return Alarms(store=store, clock=SystemClock(), bell=bell or Bell(), housekeeping=work or (DAILY, OFTEN))


def jobs_of(alarms: Alarms) -> dict[str, Any]:
    return {job.id: job for job in alarms._scheduler.get_jobs()}


async def listed(store: Store) -> dict[str, JobRow]:
    return {row.name: row for row in await store.read(jobs.listed)}


async def test_every_job_is_named_coalesced_single_and_never_dropped_for_being_late():
    async with a_store() as store:
        alarms = alarms_of(store)
        await alarms.start()
        alarms.set_edge(datetime.now(UTC) + timedelta(hours=1))
        found = jobs_of(alarms)
        rows = await listed(store)
        alarms.close()

        assert set(found) == {"backup", "feed_probe", NEXT_EDGE} == set(rows)
        for job in found.values():
            assert (job.coalesce, job.max_instances, job.misfire_grace_time) == (True, 1, None)
        assert rows["backup"].next_at == found["backup"].next_run_time.astimezone(UTC)
        assert found["backup"].next_run_time.strftime("%H:%M %Z") == "01:30 +07"


async def test_an_edge_that_is_past_rings_at_once_and_the_next_one_takes_its_place():
    async with a_store() as store:
        bell = Bell()
        alarms = alarms_of(store, bell=bell)
        await alarms.start()
        now = datetime.now(UTC)
        alarms.set_edge(now - timedelta(hours=3))
        await until(lambda: bell.rings == 1, 5)
        for hours in (1, 2):
            alarms.set_edge(now + timedelta(hours=hours))
        assert jobs_of(alarms)[NEXT_EDGE].next_run_time == now + timedelta(hours=2)
        alarms.set_edge(None)
        alarms.set_edge(None)
        assert NEXT_EDGE not in jobs_of(alarms)
        await until(lambda: alarms._scheduler.running, 1)
        alarms.close()
        alarms.close()

        assert (await listed(store))[NEXT_EDGE].last_outcome == "rang"


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (Unavailable("disk_full"), "failed: disk_full"),
        (FileNotFoundError("x"), "failed: FileNotFoundError"),
        (KeyError("x"), "failed: unexpectedly"),
    ],
    ids=["ours", "the machine's", "a bug"],
)
async def test_a_job_that_fails_says_so_and_rings_again(failure: Exception, told: str):
    async def fail() -> str:
        raise failure

    async with a_store() as store:
        alarms = alarms_of(store, Job("backup", fail, daily_at=(1, 30)))
        await alarms.start()
        if isinstance(failure, KeyError):
            with pytest.raises(KeyError):
                await alarms._run("backup")
        else:
            await alarms._run("backup")
        row = (await listed(store))["backup"]
        alarms.close()

        assert row.last_outcome == told
        assert row.next_at is not None


async def test_what_a_job_did_is_written_down():
    async with a_store() as store:
        alarms = alarms_of(store)
        await alarms.start()
        await alarms._run("feed_probe")
        row = (await listed(store))["feed_probe"]
        alarms.close()

        assert (row.last_outcome, row.last_at is not None) == ("done", True)


async def test_a_nightly_job_missed_while_the_power_was_off_is_made_up_for():
    async with a_store() as store:
        long_ago = datetime.now(UTC) - timedelta(days=2)

        def ran(session: Session) -> None:
            for name in ("backup", "feed_probe"):
                jobs.note(session, name, long_ago, "done", None)

        await store.begin(ran)
        alarms = alarms_of(store)
        await alarms.start()
        found = jobs_of(alarms)
        alarms.close()

        assert found["backup"].next_run_time - datetime.now(UTC) < timedelta(minutes=3)
        assert found["feed_probe"].next_run_time - datetime.now(UTC) > timedelta(minutes=4)


async def test_jobs_that_are_no_more_leave_the_list():
    async with a_store() as store:
        await store.begin(lambda session: jobs.note(session, "old_job", datetime.now(UTC), "done", None))
        alarms = alarms_of(store)
        await alarms.start()
        alarms.close()

        assert "old_job" not in await listed(store)


async def test_a_job_without_a_time_is_a_mistake_at_start():
    async with a_store() as store:
        with pytest.raises(ValueError, match="has no time"):
            await alarms_of(store, Job("lost", done)).start()


async def test_every_ring_is_dropped_and_every_broadcast_still_starts(tmp_path: Path):
    """No job, no doorbell: the conductor looks by itself, and the nodes have it long before."""
    async with a_room(tmp_path) as room:
        alarms = alarms_of(room.store, bell=Bell())
        await alarms.start()
        room.server.conductor.on_planned = lambda desired: alarms.set_edge(desired.next_edge(room.clock.now()))
        room.store.doorbell._ears.clear()
        wanted = [at(hour, minute) for hour in (10, 14, 17) for minute in (0, 30)]
        for instant in wanted:
            await room.announce(once(instant))
        alarms.drop_every_ring()
        await room.pass_time(31)
        alarms.drop_every_ring()
        left = jobs_of(alarms)
        alarms.close()

        assert left == {}
        assert all(room.nodes[NODE].sounding(instant) for instant in wanted)


async def test_the_planning_arms_the_next_edge_ever_anew(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(once(at(10)), minutes=2)
        await room.turn()
        edges = []
        for instant in (at(9, 30), at(10, 1), at(10, 2, 1)):
            await room.until(instant)
            desired = room.server.conductor.desired
            assert desired is not None
            edges.append(desired.next_edge(room.clock.now()))

        assert edges == [at(10), at(10, 2), None]
