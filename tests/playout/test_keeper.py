"""Outside in step with the rows: a revoked station is cut, a new node is let in, a feed's state is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from broadcast_server.audio.feed import FeedState as Heard
from broadcast_server.control import feeds
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.feeds import FeedChange, NewFeed
from broadcast_server.domain.errors import NotFound, Refused, Unavailable
from broadcast_server.playout.keeper import BrokerKeeper, FeedKeeper
from broadcast_server.relay.ingest import EndReason, IngestEvent
from broadcast_server.relay.switching import Sounding, SourceKind
from broadcast_server.store import relays
from broadcast_server.store.session import Session
from broadcast_server.store.tables import FeedStatusRow, NodeRow
from broadcast_server.store.words import FeedKind, FeedState, Tier
from tests.support.clock import FakeChance
from tests.support.village import DONG, PROVINCE, Village, a_village


class Listener:
    """The push listener's port."""

    def __init__(self) -> None:
        self.sources: dict[str, Any] = {}
        self.cut: list[str] = []
        self.why: list[EndReason] = []

    def connected(self) -> Mapping[str, Any]:
        return dict(self.sources)

    def connect(self, feed_id: str) -> None:
        self.sources[feed_id] = SimpleNamespace(user_agent="ffmpeg", bytes_in=10)

    async def revoke(self, feed_id: str, reason: EndReason) -> bool:
        self.cut.append(feed_id)
        self.why.append(reason)
        return self.sources.pop(feed_id, None) is not None


class Streams:
    def __init__(self) -> None:
        self.running: dict[str, Any] = {}

        self.told: list[Sounding] = []
        self.metering: set[str] = set()

    def status(self) -> Mapping[str, Any]:
        return self.running

    def changes(self) -> list[Sounding]:
        told, self.told = self.told, []
        return told

    async def meter(self, feed_ids: Collection[str]) -> None:
        self.metering = set(feed_ids)

    def metered(self) -> Mapping[str, Any]:
        meter = SimpleNamespace(fault=None, level_dbfs=-18.34, drift_ppm=None)
        return dict.fromkeys(self.metering, meter)


def a_keeper(village: Village) -> FeedKeeper:
    return FeedKeeper(store=village.desk.store, clock=village.clock, chance=FakeChance())


def a_stream(feed_id: str, state: Heard, **more: Any) -> Any:
    usual = {"reason": None, "bytes_in": 1, "listeners": 2, "sounding": None, "lost_since": None}
    return SimpleNamespace(feed_id=feed_id, state=state, **{**usual, "level_dbfs": -20.0, "drift_ppm": None, **more})


@pytest_asyncio.fixture
async def village() -> AsyncIterator[Village]:
    async with a_village() as opened:
        yield opened


async def a_pushed_feed(village: Village) -> tuple[str, str, str, str]:
    """Feed, mount, user, password."""
    made = await feeds.add_feed(
        village.desk, OPERATOR, NewFeed(unit_id=PROVINCE, name="Đài mô phỏng", tier=Tier.PROVINCE, kind=FeedKind.PUSH)
    )
    assert made.credential is not None
    return made.feed.id, made.credential.mount, made.credential.user, made.credential.password


async def test_a_station_is_let_in_by_its_row_and_nobody_else(village: Village):
    feed, mount, user, password = await a_pushed_feed(village)
    keeper = a_keeper(village)

    assert await keeper.authenticate(mount, user, password) == feed
    with pytest.raises(Refused):
        await keeper.authenticate(mount, user, "wrong")
    with pytest.raises(NotFound):
        await keeper.authenticate("nowhere", user, password)


async def test_rotating_cuts_the_old_connection_once_and_leaves_the_new_one_alone(village: Village):
    feed, mount, user, password = await a_pushed_feed(village)
    keeper, ingest, engine = a_keeper(village), Listener(), Streams()
    await keeper.authenticate(mount, user, password)
    ingest.connect(feed)
    await keeper.look(engine, ingest)
    assert ingest.cut == []

    fresh = await feeds.rotate_feed(village.desk, OPERATOR, feed)
    await keeper.look(engine, ingest)
    assert ingest.cut == [feed]

    await keeper.authenticate(fresh.mount, fresh.user, fresh.password)  # at once, before anybody looked again
    ingest.connect(feed)
    await keeper.look(engine, ingest)
    assert ingest.cut == [feed]
    assert set(ingest.sources) == {feed}


async def test_one_that_comes_in_while_the_keeper_looks_is_not_cut(village: Village):
    feed, mount, user, password = await a_pushed_feed(village)
    other, *credential = await a_pushed_feed(village)
    ingest, engine = Listener(), Streams()
    keeper = a_keeper(village)
    await keeper.authenticate(*credential)
    ingest.connect(other)
    read = village.desk.store.read

    async def read_slowly(work):
        found = await read(work)
        if feed not in ingest.sources:
            keeper._store = village.desk.store
            await keeper.authenticate(mount, user, password)
            ingest.connect(feed)
        return found

    keeper._store = type("Slow", (), {"read": staticmethod(read_slowly), "begin": village.desk.store.begin})()
    await keeper.look(engine, ingest)
    await keeper.look(engine, ingest)

    assert ingest.cut == []


async def test_a_revoked_feed_is_cut(village: Village):
    feed, mount, user, password = await a_pushed_feed(village)
    keeper, ingest = a_keeper(village), Listener()
    await keeper.authenticate(mount, user, password)
    ingest.connect(feed)
    await feeds.revoke_feed(village.desk, OPERATOR, feed)
    await keeper.look(Streams(), ingest)

    assert ingest.cut == [feed]


async def test_what_a_feed_is_doing_is_written_when_it_changes(village: Village):
    feed, *_ = await a_pushed_feed(village)
    keeper, ingest, engine = a_keeper(village), Listener(), Streams()

    async def told() -> FeedState | None:
        row = await village.desk.store.read(lambda session: session.get(FeedStatusRow, feed))
        return None if row is None else row.state

    states = []
    for state in (Heard.CONNECTING, Heard.HEALTHY, Heard.STALLED, Heard.DEAD):
        engine.running = {feed: a_stream(feed, state)}
        await keeper.look(engine, ingest)
        states.append(await told())
    engine.running = {}
    await keeper.look(engine, ingest)
    states.append(await told())

    assert states == [FeedState.CONNECTING, FeedState.HEALTHY, FeedState.STALLED, FeedState.DEAD, FeedState.UNKNOWN]


async def test_what_sounded_is_written_span_by_span_and_a_span_left_open_ends_when_it_was_last_seen(village: Village):
    feed, *_ = await a_pushed_feed(village)
    spare, *_ = await a_pushed_feed(village)
    keeper, ingest, engine = a_keeper(village), Listener(), Streams()
    began = village.clock.now()

    def sounds(kind: SourceKind, source_id: str | None, reason: str) -> None:
        now = village.clock.now()
        engine.told.append(Sounding(feed, kind, source_id, reason, now, now + timedelta(seconds=2)))

    engine.running = {feed: a_stream(feed, Heard.HEALTHY)}
    sounds(SourceKind.FEED, None, "started")
    await keeper.look(engine, ingest)
    await village.clock.advance(60)
    sounds(SourceKind.SUBSTITUTE, spare, "stalled")
    now = village.clock.now()
    instead = Sounding(feed, SourceKind.SUBSTITUTE, spare, "stalled", now, now)
    engine.running = {feed: a_stream(feed, Heard.STALLED, reason="stalled", sounding=instead, lost_since=now)}
    await keeper.look(engine, ingest)
    await village.clock.advance(20)
    await keeper.look(engine, ingest)
    await village.clock.advance(600)  # the process died here; another looks
    await a_keeper(village).look(Streams(), Listener())

    spans = await village.desk.store.read(lambda session: relays.spans(session, feed))
    assert [(span.kind, span.source_id, span.reason, span.end_reason) for span in spans] == [
        ("feed", None, "started", "stalled"),
        ("substitute", spare, "stalled", "process_lost"),
    ]
    assert [((s.since - began).total_seconds(), (s.until - began).total_seconds()) for s in spans if s.until] == [
        (2.0, 62.0),
        (62.0, 80.0),
    ]
    row = await village.desk.store.read(lambda session: session.get(FeedStatusRow, feed))
    assert row is not None
    assert row.body["sounding"]["name"] == "Đài mô phỏng"
    assert row.body["lost_since"] == now.isoformat()


async def test_every_connection_is_a_row_with_how_it_ended_and_a_second_one_is_an_alarm(village: Village):
    feed, *credential = await a_pushed_feed(village)
    keeper, ingest, engine = a_keeper(village), Listener(), Streams()
    await keeper.authenticate(*credential)

    def hears(reason: EndReason | None, address: str = "10.0.0.1") -> None:
        keeper.heard(IngestEvent(feed, "m", village.clock.now(), reason, 1_000, "ffmpeg", address))

    hears(None)
    ingest.connect(feed)
    for _ in range(3):
        await village.clock.advance(1)
        hears(EndReason.MOUNT_BUSY, "10.0.0.9")
    await keeper.look(engine, ingest)
    assert engine.metering == {feed}
    status = await village.desk.store.read(lambda session: session.get(FeedStatusRow, feed))
    assert status is not None
    assert (status.body["refused"], status.body["level_dbfs"]) == (3, -18.3)
    hears(EndReason.CUT)
    await keeper.look(engine, ingest)

    rows = await village.desk.store.read(lambda session: relays.push_sessions(session, feed))
    assert [(row.reason, row.attempts, row.address) for row in rows] == [
        ("mount_busy", 3, "10.0.0.9"),
        ("cut", 1, "10.0.0.1"),
    ]


async def test_a_feed_whose_validity_is_over_is_cut_for_that_reason(village: Village):
    feed, mount, user, password = await a_pushed_feed(village)
    ends = village.clock.now() + timedelta(seconds=30)
    await feeds.update_feed(village.desk, OPERATOR, feed, FeedChange(valid_to=ends))
    keeper, ingest = a_keeper(village), Listener()
    await keeper.authenticate(mount, user, password)
    ingest.connect(feed)
    await keeper.look(Streams(), ingest)
    assert ingest.cut == []
    await village.clock.advance(31)
    await keeper.look(Streams(), ingest)

    assert (ingest.cut, ingest.why) == ([feed], [EndReason.WINDOW_OVER])


class Broker:
    def __init__(self) -> None:
        self.given: list[Mapping[str, str]] = []
        self.is_down = False

    async def set_users(self, users: Mapping[str, str]) -> None:
        if self.is_down:
            raise Unavailable("broker_ended", exit_code=1)
        self.given.append(dict(users))


def enrol(session: Session, name: str) -> None:
    session.add(
        NodeRow(
            id=name,
            unit_id=DONG,
            cluster_id=f"c1-{DONG}",
            public_key=name.ljust(64, "0"),
            hardware="",
            firmware="",
            broker_password_line=f"{name}:$7$",
            asset_token_hash=name.ljust(64, "0"),
            enrolled_at=datetime(2026, 6, 1, tzinfo=UTC),
        )
    )


async def test_the_broker_gets_new_users_and_loses_retired_ones_only_when_they_change(village: Village):
    broker = Broker()
    keeper = BrokerKeeper(store=village.desk.store, broker=broker, server_line=("server", "server:$7$"))
    await keeper.look()
    await keeper.look()
    assert broker.given == [{"server": "server:$7$"}]

    await village.desk.store.begin(lambda session: enrol(session, "n1"))
    await keeper.look()
    assert set(broker.given[-1]) == {"server", "n1"}

    def retire(session: Session) -> None:
        row = session.get(NodeRow, "n1")
        assert row is not None
        row.retired_at = village.clock.now()

    await village.desk.store.begin(retire)
    await keeper.look()
    assert set(broker.given[-1]) == {"server"}


async def test_a_broker_that_was_down_gets_its_users_at_the_next_look(village: Village):
    broker = Broker()
    broker.is_down = True
    keeper = BrokerKeeper(store=village.desk.store, broker=broker, server_line=("server", "line"))
    with pytest.raises(Unavailable):
        await keeper.look()
    broker.is_down = False
    await keeper.look()

    assert broker.given == [{"server": "line"}]
