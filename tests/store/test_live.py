"""Live sessions in both databases: who sounds a voice, what stands above it, what is over and not recorded."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest_asyncio

from broadcast_server.store import live
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import LiveSessionRow, NodeStatusRow, ScheduleRow, StopAllRow
from broadcast_server.store.words import ContentKind, LiveState, RecordingState, ScheduleKind, ScheduleState
from speaker_protocol.rules import BulletinClass, Level
from tests.store.playout_rows import NOW, settled


def session_rows(name: str, level: Level) -> list[Any]:
    words = {"unit_id": "xa", "created_by": "test", "created_at": NOW}
    schedule = ScheduleRow(
        id=f"s-{name}", series_id=f"s-{name}", name=name, kind=ScheduleKind.LIVE, klass=BulletinClass.NORMAL,
        level=level, content_kind=ContentKind.LIVE, content_id=name, rule={}, late={}, state=ScheduleState.ACTIVE,
        starts_at=NOW, **words,
    )  # fmt: skip
    row = LiveSessionRow(
        id=name, unit_id="xa", schedule_id=f"s-{name}", entry_id=f"s-{name}@1", user_id="u", speaker="lan", title=name,
        state=LiveState.OPEN, opened_at=NOW, starts_at=NOW, ends_at=NOW + timedelta(minutes=30), nodes_planned=3,
        heard_ms=0, counts={}, recording_state=RecordingState.PENDING,
    )  # fmt: skip
    return [schedule, row]


@pytest_asyncio.fixture
async def air(store: Store) -> Store:
    await settled(store)

    def put(session: Session) -> None:
        for name, level in (("voice-1", Level.LIVE), ("voice-2", Level.LIVE_LEADER)):
            schedule, row = session_rows(name, level)
            session.add(schedule)
            session.flush()
            session.add(row)
        for node, link, stream in (("n1", "online", "voice-1"), ("n2", "offline", "voice-1"), ("n3", "online", None)):
            session.add(
                NodeStatusRow(node_id=node, link=link, since=NOW, seen_at=NOW, boot_id="b", body={"stream": stream})
            )

    await store.begin(put)
    return store


async def test_who_sounds_a_voice_is_who_is_online_and_says_so(air: Store):
    assert await air.read(lambda session: live.sounding(session, "voice-1")) == 1
    assert await air.read(lambda session: live.sounding(session, "voice-2")) == 0


async def test_above_a_voice_stands_only_a_higher_one_while_it_lasts(air: Store):
    def look(session: Session) -> list[list[str]]:
        asked = (("voice-1", 1), ("voice-2", 1), ("voice-1", 31))
        return [
            [row.id for row, _ in live.higher(session, live.get(session, name), NOW + timedelta(minutes=minutes))]
            for name, minutes in asked
        ]

    assert await air.read(look) == [["voice-2"], [], []]


async def test_a_latch_is_in_force_until_it_is_released(air: Store):
    later = NOW + timedelta(minutes=5)
    assert not await air.read(lambda session: live.is_anything_overriding(session, NOW))
    latch = StopAllRow(id="latch", unit_id="xa", since=NOW, set_by="chutich", released_at=later, released_by="chutich")
    await air.begin(lambda session: session.add(latch))

    assert await air.read(lambda session: live.is_anything_overriding(session, NOW))
    [found] = await air.read(lambda session: live.overriding(session, ["xa"], NOW))
    assert (found.code, found.title, found.until) == ("stop_all", "chutich", None)
    assert await air.read(lambda session: live.overriding(session, ["elsewhere"], NOW)) == []
    assert not await air.read(lambda session: live.is_anything_overriding(session, later))


async def test_what_is_over_and_not_recorded_is_found_after_any_restart(air: Store):
    def close(session: Session) -> None:
        live.get(session, "voice-1").state = LiveState.CLOSED

    await air.begin(close)
    assert await air.read(lambda session: [row.id for row in live.unrecorded(session)]) == ["voice-1"]
    assert await air.read(lambda session: [row.id for row in live.open_sessions(session)]) == ["voice-2"]
