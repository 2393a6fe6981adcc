"""The alarm clock: APScheduler rings named jobs, what they do is decided by whoever is rung.

Memory job store, derived at start: the truth is in the store. Every job is coalesced, has one instance and is never
dropped for being late (APScheduler's default drops a job 1 s late). A missed or doubled ring is harmless: the
conductor looks by itself every half second, and the housekeeping jobs are idempotent. `jobs` rows tell
`broadcast-server jobs` what ran.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from broadcast_server.domain.clock import LOCAL, Clock
from broadcast_server.domain.errors import BroadcastError, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.store import jobs
from broadcast_server.store.session import Store

log = get_logger()

NEXT_EDGE: Final = "next_plan_edge"
LATEST: Final = timedelta(hours=25)
CATCH_UP: Final = timedelta(minutes=2)


class Bell(Protocol):
    """What can be rung."""

    def ring(self) -> None:
        """Look now."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """A named piece of housekeeping. Exactly one of `every` and `daily_at` (local hour, minute)."""

    name: str
    work: Callable[[], Awaitable[str]]
    """Does it and says in a few words what came of it."""
    every: timedelta | None = None
    daily_at: tuple[int, int] | None = None


class Alarms:
    """One scheduler per process with the `conductor` role."""

    def __init__(self, *, store: Store, clock: Clock, bell: Bell, housekeeping: Sequence[Job]) -> None:
        self._store, self._clock, self._bell = store, clock, bell
        self._jobs = {job.name: job for job in housekeeping}
        self._scheduler: Any = AsyncIOScheduler(
            jobstores={"default": MemoryJobStore()},
            executors={"default": AsyncIOExecutor()},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone=LOCAL,
        )

    async def start(self) -> None:
        """Set every job and write down when it will ring."""
        ran = await self._store.read(jobs.last_runs)
        now = self._clock.now()
        for job in self._jobs.values():
            # Power fails at night: what rings once a day and was missed is made up for soon after the start.
            is_missed = job.daily_at is not None and job.name in ran and now - ran[job.name] > LATEST
            first = {"next_run_time": now + CATCH_UP} if is_missed else {}
            self._scheduler.add_job(self._run, _trigger(job), args=(job.name,), id=job.name, name=job.name, **first)
        self._scheduler.start()
        told = {job.id: job.next_run_time for job in self._scheduler.get_jobs()}
        told[NEXT_EDGE] = None
        await self._store.begin(lambda session: jobs.plan(session, told), ring=False)

    def close(self) -> None:
        """Ring no more. Idempotent."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def set_edge(self, at: datetime | None) -> None:
        """The next instant at which something begins or ends: ring then."""
        if at is None:
            if self._scheduler.get_job(NEXT_EDGE) is not None:
                self._scheduler.remove_job(NEXT_EDGE)
            return
        self._scheduler.add_job(self._edge, DateTrigger(at), id=NEXT_EDGE, name=NEXT_EDGE, replace_existing=True)

    def drop_every_ring(self) -> None:
        """Take all jobs off the clock; everything planned must sound all the same."""
        self._scheduler.remove_all_jobs()

    async def _edge(self) -> None:
        self._bell.ring()
        await self._note(NEXT_EDGE, self._clock.now(), "rang")

    async def _run(self, name: str) -> None:
        started = self._clock.now()
        outcome = (
            "failed: unexpectedly"  # what is raised and not foreseen goes on to APScheduler's log, and is told here
        )
        try:
            outcome = await self._jobs[name].work()
        except asyncio.CancelledError:
            outcome = ""
            raise
        except (BroadcastError, OSError) as error:
            code = error.code if isinstance(error, BroadcastError) else type(error).__name__
            outcome = f"failed: {code}"
            log.warning("job.failed", job=name, code=code)
        finally:
            if outcome:
                await self._note(name, started, outcome)

    async def _note(self, name: str, at: datetime, outcome: str) -> None:
        scheduled = self._scheduler.get_job(name)
        next_at = None if scheduled is None else scheduled.next_run_time
        try:
            await self._store.begin(lambda session: jobs.note(session, name, at, outcome, next_at), ring=False)
        except Unavailable as away:
            log.warning("job.not_noted", job=name, code=away.code)


def _trigger(job: Job) -> Any:
    if job.daily_at is not None:
        return CronTrigger(hour=job.daily_at[0], minute=job.daily_at[1], timezone=LOCAL)
    if job.every is None:
        raise ValueError(f"job {job.name} has no time")
    return IntervalTrigger(seconds=job.every.total_seconds())
