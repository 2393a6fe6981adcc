"""From rows to entries, on both dialects: what is moved, stopped, ended, blocked; and that it stays quick."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import update

from broadcast_server.domain.clock import Window, to_ms
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.store import library, schedules
from broadcast_server.store.schedules import Expander, ScheduledEntry, load_entries
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import (
    AssetRow,
    BulletinVersionRow,
    FeedOfferRow,
    FeedRow,
    ScheduleExceptionRow,
    ScheduleRow,
)
from broadcast_server.store.words import (
    ConflictKind,
    ContentKind,
    ExceptionKind,
    FeedKind,
    MediaKind,
    ScheduleKind,
    ScheduleState,
    Tier,
    VersionState,
)
from speaker_protocol.rules import BulletinClass, Late, LatePolicy, Level, SourceKind
from tests.support.village import DONG, NOW, PROVINCE, at, settle

DAILY = {"kind": "weekly", "weekdays": ["mo", "tu", "we", "th", "fr", "sa", "su"], "times": ["17:00"]}
HERE = (Target(TargetKind.UNIT, DONG),)


def put(session: Session, name: str, **more: Any) -> ScheduleRow:
    values: dict[str, Any] = {
        "id": name,
        "series_id": name,
        "unit_id": DONG,
        "name": name,
        "kind": ScheduleKind.ANNOUNCEMENT,
        "klass": BulletinClass.NORMAL,
        "level": int(Level.NORMAL),
        "content_kind": ContentKind.BULLETIN,
        "content_id": "tin",
        "rule": DAILY,
        "state": ScheduleState.ACTIVE,
        "starts_at": NOW,
        "created_by": "test",
        "created_at": NOW,
    } | more
    return schedules.add_schedule(session, ScheduleRow(**values), HERE)


def put_bulletin(session: Session, name: str = "tin", *, minutes: int = 3) -> None:
    sha256 = name.encode().hex().ljust(64, "0")
    library.add_asset(
        session,
        sha256=sha256,
        unit_id=DONG,
        label=name,
        size_bytes=10,
        duration_ms=minutes * 60_000,
        report={},
        created_at=NOW,
    )
    library.add_bulletin(
        session,
        bulletin_id=name,
        unit_id=DONG,
        title=f"Tin {name}",
        klass=BulletinClass.NORMAL,
        subject=None,
        valid_from=None,
        valid_to=at(0, day=20),
        created_by="test",
        created_at=NOW,
    )
    version = library.add_version(
        session,
        version_id=f"v-{name}",
        bulletin_id=name,
        language="vie",
        media=MediaKind.AUDIO,
        text=None,
        voice=None,
        asset_sha256=sha256,
        content_hash=f"hash-{name}",
        created_by="test",
        created_at=NOW,
    )
    version.state, version.approved_hash = VersionState.APPROVED, version.content_hash


def differ(session: Session, occurs_at: datetime, kind: ExceptionKind, **more: Any) -> None:
    schedules.put_exception(
        session,
        ScheduleExceptionRow(
            schedule_id="a", occurs_at=occurs_at, kind=kind, created_by="test", created_at=NOW, **more
        ),
    )


async def starts(store: Store, first: datetime, last: datetime) -> list[tuple[datetime, datetime]]:
    found = await store.read(lambda session: load_entries(session, Window(first, last), NOW))
    return [(one.entry.start, one.entry.end) for one in found]


async def test_occurrences_differ_one_by_one_and_keep_their_ids(store: Store) -> None:
    def work(session: Session) -> None:
        settle(session, NOW)
        put_bulletin(session)
        put(session, "a", max_wait_ms=60_000, late={"policy": "wait_at_most", "at_most_ms": 30_000})
        differ(session, at(17, day=2), ExceptionKind.CANCELLED)
        differ(session, at(17, day=3), ExceptionKind.MOVED, moved_to=at(6, day=9))
        differ(session, at(17, day=4), ExceptionKind.CUT, cut_at=at(17, 2, day=4), length_ms=60_000)

    await store.begin(work)
    window = Window(at(0, day=1), at(0, day=6))
    found = await store.read(lambda session: load_entries(session, window, NOW))
    assert [one.entry.start for one in found] == [at(17, day=day) for day in (1, 4, 5)]
    first, cut, _ = (one.entry for one in found)
    assert (first.id, first.end, first.length) == (f"a@{to_ms(at(17))}", at(17, 4), timedelta(minutes=3))
    assert first.late == Late(LatePolicy.WAIT_AT_MOST, 30_000)
    assert (cut.end, cut.length) == (at(17, 2, day=4), timedelta(minutes=1))
    later = await store.read(lambda session: load_entries(session, Window(at(5, day=9), at(7, day=9)), NOW))
    assert [(one.id, one.entry.start) for one in later] == [(f"a@{to_ms(at(17, day=3))}", at(6, day=9))]


async def test_a_series_that_ended_gives_nothing_after_and_what_runs_into_the_window_is_there(store: Store) -> None:
    def work(session: Session) -> None:
        settle(session, NOW)
        put_bulletin(session, minutes=30)
        put(session, "a", ends_at=at(17, day=3))
        put(session, "b", state=ScheduleState.CANCELLED)

    await store.begin(work)
    assert await starts(store, at(17, 10, day=2), at(0, day=9)) == [(at(17, day=2), at(17, 30, day=2))]
    assert await starts(store, at(17, 30, day=2), at(0, day=9)) == []


async def test_what_cannot_sound_is_there_with_its_reason(store: Store) -> None:
    def work(session: Session) -> None:
        settle(session, NOW)
        for name in ("tin", "thu-hoi", "mat", "doi"):
            put_bulletin(session, name)
        for recalled in library.versions(session, ["thu-hoi"])["thu-hoi"]:
            recalled.state = VersionState.RECALLED
        changed = library.version(session, "doi", "v-doi")
        changed.content_hash = "another"
        asset = session.get(AssetRow, b"mat".hex().ljust(64, "0"))
        assert asset is not None
        asset.collected_at = NOW
        for name in ("tin", "thu-hoi", "mat", "doi"):
            put(session, f"s-{name}", content_id=name)
        for name, more in {
            "cua-minh": {"unit_id": DONG},
            "khong-cap": {},
            "da-rut": {},
            "thu-hoi": {"revoked_at": NOW},
        }.items():
            session.add(
                FeedRow(
                    id=name,
                    name=name,
                    name_folded=name,
                    tier=Tier.PROVINCE,
                    kind=FeedKind.PULL,
                    created_at=NOW,
                    successor_id=None,
                    **({"unit_id": PROVINCE} | more),
                )
            )
            session.flush()
            put(
                session,
                f"r-{name}",
                content_kind=ContentKind.FEED,
                content_id=name,
                length_ms=600_000,
                kind=ScheduleKind.RELAY,
                level=int(Level.PROGRAMME),
            )
        session.add(
            FeedOfferRow(
                id="o",
                feed_id="da-rut",
                unit_id=PROVINCE,
                valid_from=NOW,
                basis="x",
                withdrawn_at=NOW,
                created_at=NOW,
            )
        )

    await store.begin(work)
    window = Window(at(16), at(18))
    found = await store.read(lambda session: load_entries(session, window, NOW))
    blocked = {one.schedule_id: one.blocked.kind if one.blocked else None for one in found}
    assert blocked == {
        "s-tin": None,
        "s-thu-hoi": ConflictKind.APPROVAL_VOID,
        "s-doi": ConflictKind.APPROVAL_VOID,
        "s-mat": ConflictKind.ASSET_MISSING,
        "r-cua-minh": None,
        "r-khong-cap": ConflictKind.NOT_OFFERED,
        "r-da-rut": ConflictKind.OFFER_WITHDRAWN,
        "r-thu-hoi": ConflictKind.FEED_REVOKED,
    }
    relay = next(one for one in found if one.schedule_id == "r-cua-minh")
    assert (relay.entry.source, relay.entry.length, relay.feed_id) == (SourceKind.RELAY, None, "cua-minh")
    after = await store.read(lambda session: load_entries(session, Window(at(16, day=21), at(18, day=21)), NOW))
    kinds = {one.schedule_id: one.blocked.kind if one.blocked else None for one in after}
    assert kinds["s-tin"] is ConflictKind.CONTENT_EXPIRED


async def test_unchanged_schedules_give_the_very_same_entries(store: Store) -> None:
    def work(session: Session) -> None:
        settle(session, NOW)
        put_bulletin(session)
        put(session, "a")
        put(session, "b")

    await store.begin(work)
    expander, window = Expander(), Window(at(0), at(0, day=5))
    first = await store.read(lambda session: expander.load(session, window, NOW))
    await store.begin(lambda session: differ(session, at(17, day=2), ExceptionKind.CANCELLED))
    second = await store.read(lambda session: expander.load(session, window, NOW))
    kept = {id(one) for one in first} & {id(one) for one in second}
    assert len(second) == len(first) - 1
    assert kept == {id(one) for one in first if one.schedule_id == "b"}
    only = await store.read(
        lambda session: load_entries(session, window, NOW, touching=[Target(TargetKind.CLUSTER, "other")])
    )
    assert only == ()


async def test_who_asks_for_a_part_at_a_time_believes_rows_and_no_version(store: Store) -> None:
    def work(session: Session) -> None:
        settle(session, NOW)
        put_bulletin(session)
        put(session, "a")
        put(session, "b")

    await store.begin(work)
    expander, window = Expander(most_kept=1_000), Window(at(0), at(0, day=5))

    async def look(schedule_id: str) -> tuple[ScheduledEntry, ...]:
        return await store.read(lambda session: expander.load(session, window, NOW, schedule_ids=[schedule_id]))

    first = await look("a")
    await look("b")
    again = await look("a")
    assert [id(one) for one in again] == [id(one) for one in first] != []
    louder = update(ScheduleRow).where(ScheduleRow.id == "a").values(gain_db=-3.0)  # and the version as it was
    await store.begin(lambda session: session.execute(louder))
    assert {one.gain_db for one in await look("a")} == {-3.0}
    withdrawn = update(BulletinVersionRow).values(state=VersionState.RECALLED)
    await store.begin(lambda session: session.execute(withdrawn))
    assert all(one.blocked is not None for one in await look("a"))


async def test_what_is_kept_of_parts_is_bounded(store: Store) -> None:
    def work(session: Session) -> None:
        settle(session, NOW)
        put_bulletin(session)
        put(session, "a")
        put(session, "b")

    await store.begin(work)
    window = Window(at(0), at(0, day=5))
    expander = Expander(most_kept=4)  # a schedule has as many

    async def look(schedule_id: str) -> tuple[ScheduledEntry, ...]:
        return await store.read(lambda session: expander.load(session, window, NOW, schedule_ids=[schedule_id]))

    first, other = await look("a"), await look("b")
    assert len(first) == len(other) == 4
    assert {id(one) for one in await look("b")} == {id(one) for one in other}
    assert not {id(one) for one in await look("a")} & {id(one) for one in first}


async def test_a_province_is_expanded_in_a_breath(store: Store) -> None:
    """14 000 occurrences; the bar of the plan benchmark leaves 1.5 s for this, the test only catches a slip by far."""

    def work(session: Session) -> None:
        settle(session, NOW)
        put_bulletin(session)
        for number in range(2_000):
            put(session, f"s{number}", rule=DAILY | {"times": [f"{5 + number % 16:02}:{number % 60:02}"]})

    await store.begin(work)
    window = Window(at(0), at(0, day=8))

    def look(session: Session) -> tuple[int, float]:
        began = time.process_time()
        return len(load_entries(session, window, NOW)), time.process_time() - began

    count, spent_s = await store.read(look)
    assert count > 13_000
    assert spent_s < 6.0
