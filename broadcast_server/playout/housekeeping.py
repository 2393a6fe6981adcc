"""The named jobs of the alarm clock: what they do when they are rung. Each is idempotent and says what came of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from broadcast_server.audio.assets import AssetStore
from broadcast_server.audio.feed import FORMATS, HLS_TYPES
from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import BroadcastError
from broadcast_server.fetch import Fetcher
from broadcast_server.logs import get_logger
from broadcast_server.playout.alarms import Job
from broadcast_server.playout.keeper import Streams
from broadcast_server.store import conflicts, feeds, library
from broadcast_server.store.session import Session, Store
from broadcast_server.store.words import FeedState
from broadcast_server.supervise import Executor

log = get_logger()

PROBE_S: Final = 10.0
PROBES_AT_ONCE: Final = 8
UNTOUCHED_FOR: Final = timedelta(days=1)


class Housekeeping:
    """Probe feeds, watch validity, let go of unused audio, back up."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        chance: Chance,
        executor: Executor,
        assets: AssetStore,
        engine: Streams,
        fetcher: Fetcher,
        backup: Callable[[], Awaitable[str]],
    ) -> None:
        """`backup`: makes one and says where it lies."""
        self._store, self._clock, self._chance, self._executor = store, clock, chance, executor
        self._assets, self._engine, self._fetcher, self._backup = assets, engine, fetcher, backup

    def jobs(self) -> tuple[Job, ...]:
        """All of them, with their times. Free names for later: night_preload, reports."""
        return (
            Job("feed_probe", self.probe_feeds, every=timedelta(minutes=5)),
            Job("validity_watch", self.watch_validity, every=timedelta(minutes=10)),
            Job("asset_retention", self.let_assets_go, daily_at=(2, 30)),
            Job("backup", self._backup, daily_at=(1, 30)),
        )

    async def probe_feeds(self) -> str:
        """Ask every pulled feed that is not being relayed for its first bytes; one bad feed delays nobody for long."""
        relayed = {status.feed_id for status in self._engine.status().values()}
        pulled = await self._store.read(lambda session: feeds.pulled_in_force(session, self._clock.now()))
        asked = [(feed_id, url) for feed_id, url in pulled if feed_id not in relayed]
        answered = 0
        for start in range(0, len(asked), PROBES_AT_ONCE):
            part = asked[start : start + PROBES_AT_ONCE]
            async with asyncio.TaskGroup() as group:
                probes = [
                    group.create_task(self._probe(url), name=f"playout.probe[{feed_id}]") for feed_id, url in part
                ]
            for (feed_id, _), probe in zip(part, probes, strict=True):
                state, reason = probe.result()
                answered += state is FeedState.HEALTHY
                await self._write_state(feed_id, state, reason)
        return f"{answered} of {len(pulled)} feeds answered, {len(relayed)} on the air"

    async def watch_validity(self) -> str:
        """Turn offers and feeds that end into named conflicts of the entries that counted on them."""
        now = self._clock.now()
        opened = await self._store.begin(
            lambda session: len(conflicts.open_offer_conflicts(session, now=now, new_id=self._chance.new_id))
        )
        return f"{opened} conflicts opened"

    async def let_assets_go(self) -> str:
        """Delete files that nothing names and whose time of keeping is over; their rows stay for the play log."""
        now = self._clock.now()

        def write(session: Session) -> frozenset[str]:
            for row in library.collectable_assets(session, now):
                row.collected_at = now
            session.flush()
            return library.kept_assets(session)

        kept = await self._store.begin(write, ring=False)
        gone = await self._executor.run(
            lambda: self._assets.collect(kept, older_than=now - UNTOUCHED_FOR)  # an upload in progress is younger
        )
        return f"{len(gone)} assets let go"

    async def _probe(self, url: str) -> tuple[FeedState, str | None]:
        try:
            async with (
                asyncio.timeout(PROBE_S),
                self._fetcher.open_stream(url, accept=frozenset(FORMATS) | HLS_TYPES) as response,
                contextlib.aclosing(response.chunks()) as chunks,
            ):
                async for chunk in chunks:
                    if chunk:
                        return FeedState.HEALTHY, None
        except TimeoutError:
            return FeedState.DEAD, "timed_out"
        except BroadcastError as error:
            return FeedState.DEAD, error.code
        return FeedState.DEAD, "ended"

    async def _write_state(self, feed_id: str, state: FeedState, reason: str | None) -> None:
        now = self._clock.now()
        await self._store.begin(
            lambda session: feeds.put_status(session, feed_id, state=state, reason=reason, now=now, body={}), ring=False
        )
