"""The named jobs: each does its work, says what came of it, and may be rung twice."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest_asyncio
from sqlalchemy import select, update

from broadcast_server.audio.assets import AssetStore
from broadcast_server.control import scheduling
from broadcast_server.control.scheduling import NewSchedule
from broadcast_server.fetch import Fetcher
from broadcast_server.playout.housekeeping import Housekeeping
from broadcast_server.store.session import Session
from broadcast_server.store.tables import AssetRow, BulletinVersionRow, ConflictRow, FeedRow, FeedStatusRow
from broadcast_server.store.words import ConflictKind, ContentKind, FeedState, VersionState
from broadcast_server.supervise import InlineExecutor, SystemClock
from simulation.radio import Faults, Station
from simulation.samples import all_samples
from tests.support.clock import FakeChance
from tests.support.village import DONG, LAN, Village, a_village, at, daily

SOUND = b"\xff\xfb\x90\x00" + bytes(40_000)


@dataclass
class Streams:
    running: dict[str, Any] = field(default_factory=dict)

    def status(self) -> dict[str, Any]:
        return self.running


@dataclass
class House:
    village: Village
    work: Housekeeping
    assets: AssetStore
    streams: Streams
    stack: AsyncExitStack
    ports: set[str]

    async def station(self, faults: Faults) -> str:
        """A feed whose station behaves so; returns the feed's id."""
        station = await Station(SOUND, 4_000, faults=faults).start()
        self.stack.push_async_callback(station.close)
        self.ports.add(f"127.0.0.1:{station.port}")
        return await self.feed_at(f"http://127.0.0.1:{station.port}/live")

    async def feed_at(self, url: str) -> str:
        feed = await self.village.feed(f"Đài mô phỏng {url}")
        await self.village.desk.store.begin(
            lambda session: session.execute(update(FeedRow).where(FeedRow.id == feed).values(url=url))
        )
        return feed

    def listen_again(self) -> None:
        """The fetcher knows the stations that were built meanwhile."""
        self.work._fetcher = Fetcher(clock=SystemClock(), allow_private=frozenset(self.ports))

    async def states(self) -> dict[str, tuple[FeedState, str | None]]:
        rows = await self.village.desk.store.read(lambda session: list(session.scalars(select(FeedStatusRow))))
        return {row.feed_id: (row.state, row.reason) for row in rows}


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with a_village() as village, AsyncExitStack() as stack:
        assets, streams = AssetStore(tmp_path / "assets", reserve_bytes=0), Streams()

        async def backup() -> str:
            return "backups/loa.tar"

        work = Housekeeping(
            store=village.desk.store,
            clock=village.clock,
            chance=FakeChance(4),
            executor=InlineExecutor(),
            assets=assets,
            engine=streams,
            fetcher=Fetcher(clock=SystemClock()),
            backup=backup,
        )
        yield House(village, work, assets, streams, stack, set())


async def test_the_jobs_are_named_and_each_has_a_time(house: House):
    jobs = {job.name: (job.every, job.daily_at) for job in house.work.jobs()}

    assert set(jobs) == {"feed_probe", "validity_watch", "asset_retention", "backup"}
    assert all((every is None) is not (daily_at is None) for every, daily_at in jobs.values())


async def test_every_feed_is_asked_and_each_answers_for_itself(house: House):
    good = await house.station(Faults(burst_s=1.0))
    gone = await house.station(Faults(status=404))
    wrong = await house.station(Faults(content_type="text/html"))
    refused = await house.feed_at("http://127.0.0.1:8000/live")
    house.listen_again()
    told = await house.work.probe_feeds()

    states = await house.states()
    assert told == "1 of 4 feeds answered, 0 on the air"
    assert states[good] == (FeedState.HEALTHY, None)
    assert states[gone] == (FeedState.DEAD, "http_404")
    assert states[wrong] == (FeedState.DEAD, "content_type")
    assert states[refused] == (FeedState.DEAD, "private_address")


async def test_a_feed_on_the_air_is_not_asked(house: House):
    feed = await house.feed_at("http://127.0.0.1:8000/live")
    house.streams.running = {feed: SimpleNamespace(feed_id=feed)}

    assert await house.work.probe_feeds() == "0 of 1 feeds answered, 1 on the air"
    assert await house.states() == {}


async def test_an_offer_that_ends_becomes_a_named_conflict_once(house: House):
    feed = await house.village.feed(until=at(0, day=5))
    await scheduling.create_schedule(
        house.village.desk,
        LAN,
        NewSchedule(DONG, ContentKind.FEED, feed, daily("17:00"), length=timedelta(minutes=30), accept_conflicts=True),
    )

    async def conflicts() -> list[ConflictKind]:
        return await house.village.desk.store.read(lambda session: list(session.scalars(select(ConflictRow.kind))))

    await house.work.watch_validity()
    assert await house.work.watch_validity() == "0 conflicts opened"
    assert await conflicts() == [ConflictKind.OFFER_EXPIRES]


async def test_what_nothing_names_and_is_past_its_time_goes_and_its_row_stays(house: House):
    sounds = [one.path for one in all_samples() if one.path.suffix == ".opus"]
    stored = {name: house.assets.put(sound) for name, sound in zip(("kept", "old"), sounds, strict=False)}
    store = house.village.desk.store
    now = house.village.clock.now()
    for made in stored.values():
        past = (now - timedelta(days=3)).timestamp()
        os.utime(house.assets.path(made.hash), (past, past))
    bulletin = await house.village.bulletin()

    def name_them(session: Session) -> None:
        for made in stored.values():
            session.add(
                AssetRow(
                    sha256=made.hash, unit_id=DONG, label="", size_bytes=1, duration_ms=1, report={}, cues=[],
                    created_at=now, keep_until=now - timedelta(days=1),
                )
            )  # fmt: skip
        session.flush()
        session.execute(
            update(BulletinVersionRow)
            .where(BulletinVersionRow.bulletin_id == bulletin)
            .values(asset_sha256=stored["kept"].hash, state=VersionState.APPROVED)
        )

    await store.begin(name_them)
    assert await house.work.let_assets_go() == "1 assets let go"
    assert await house.work.let_assets_go() == "0 assets let go"

    assert sorted(house.assets.hashes()) == [stored["kept"].hash]
    row = await store.read(lambda session: session.get(AssetRow, stored["old"].hash))
    assert row is not None
    assert row.collected_at == now
