"""Deliveries in bulk, on both databases: made, sent, answered, taken back, closed, counted."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest_asyncio

from broadcast_server.domain.delivery import ANSWER_WITHIN, GIVE_UP_CLEARING, DeliveryState
from broadcast_server.store import deliveries
from broadcast_server.store.deliveries import Counts
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import BroadcastRow, NodeRow, NodeStatusRow
from broadcast_server.store.words import NodeState, ScheduleKind
from speaker_protocol.rules import BulletinClass
from tests.store.playout_rows import NODES, NOW, settled

ALARM, LATCH = "alert:e1", "latch:s1"
ON = date(2026, 6, 1)
HOUR = timedelta(hours=1)
GRACE = timedelta(seconds=20)


@pytest_asyncio.fixture
async def rows(store: Store) -> Store:
    """Three nodes online, one alarm owed to them."""
    store = await settled(store)

    def write(session: Session) -> None:
        for node in NODES:
            session.add(NodeStatusRow(node_id=node, link="online", since=NOW, seen_at=NOW, boot_id="b", body={}))
        session.add(
            BroadcastRow(
                id=ALARM,
                schedule_id=None,
                unit_id="xa",
                kind=ScheduleKind.EMERGENCY,
                klass=BulletinClass.EMERGENCY,
                title="Lũ",
                starts_at=NOW,
                ends_at=NOW + timedelta(seconds=30),
            )
        )
        enlist(session)

    await store.begin(write)
    return store


def enlist(session: Session) -> None:
    deliveries.enlist(session, ALARM, ("xa",), ON, now=NOW, expires_at=NOW + HOUR)


async def change(store: Store, node: str, **facts: Any) -> None:
    def write(session: Session) -> None:
        (one,) = deliveries.of(session, ALARM, (node,))
        deliveries.save(session, [replace(one, **facts)])

    await store.begin(write)


async def test_every_node_is_owed_it_once_and_a_retired_one_is_not(rows: Store):
    def retire(session: Session) -> None:
        gone = session.get_one(NodeRow, "n3")
        gone.retired_at, gone.state = NOW, NodeState.RETIRED
        session.flush()
        enlist(session)
        deliveries.enlist(session, LATCH, ("xa",), ON, now=NOW, expires_at=None)

    await rows.begin(retire)
    counted = await rows.read(lambda session: deliveries.counts_of(session, (ALARM, LATCH, "alert:x"), None, ON))
    assert [counted[subject].nodes for subject in (ALARM, LATCH, "alert:x")] == [3, 2, 0]
    assert counted[ALARM] == Counts(nodes=3, unreached=3)


async def test_who_does_not_answer_is_due_again_ever_later(rows: Store):
    await rows.begin(lambda session: deliveries.sent(session, (ALARM,), now=NOW))
    await change(rows, "n1", state=DeliveryState.RECEIVED, received_at=NOW)
    assert await rows.read(lambda session: deliveries.due(session, now=NOW)) == []

    at, waits = NOW + ANSWER_WITHIN, []
    for _ in range(7):
        due = await rows.read(lambda session, at=at: deliveries.due(session, now=at))  # type: ignore[misc]
        assert [one.node_id for one in due] == ["n2", "n3"]
        await rows.begin(lambda session, due=due, at=at: deliveries.sent_again(session, due, now=at))  # type: ignore[misc]
        step = at
        while not await rows.read(lambda session, step=step: deliveries.due(session, now=step)):  # type: ignore[misc]
            step += timedelta(seconds=1)
        waits.append((step - at).total_seconds())
        at = step
    assert waits == [1, 2, 4, 8, 15, 30, 30]
    expired = NOW + HOUR
    assert await rows.read(lambda session: deliveries.due(session, now=expired)) == []


async def test_taken_back_it_is_due_until_the_node_lets_go(rows: Store):
    await rows.begin(lambda session: deliveries.sent(session, (ALARM,), now=NOW))
    await change(rows, "n1", state=DeliveryState.SOUNDING, received_at=NOW)
    await rows.begin(lambda session: deliveries.taken_back(session, ALARM, now=NOW))
    later = NOW + ANSWER_WITHIN

    assert [one.node_id for one in await rows.read(lambda session: deliveries.due(session, now=later))] == ["n1"]
    assert (await rows.read(lambda session: deliveries.counts(session, ALARM, None, ON))).holding == 1
    await change(rows, "n1", cleared_at=later)
    assert await rows.read(lambda session: deliveries.due(session, now=later)) == []
    assert (await rows.read(lambda session: deliveries.counts(session, ALARM, ("xa",), ON))).holding == 0


async def test_only_what_can_be_closed_is_read_for_it(rows: Store):
    await rows.begin(lambda session: deliveries.sent(session, (ALARM,), now=NOW))
    await change(rows, "n1", state=DeliveryState.HEARD, received_at=NOW)
    await change(rows, "n2", state=DeliveryState.SOUNDING, received_at=NOW)

    async def closing(after: timedelta) -> list[str]:
        at = NOW + HOUR + after
        found = await rows.read(lambda session: deliveries.to_close(session, now=at, grace=GRACE, limit=10))
        return [one.node_id for one in found]

    assert await closing(timedelta(0)) == []
    assert await closing(GRACE) == ["n2", "n3"], "n1 is waited for until it lets go"
    assert await closing(GIVE_UP_CLEARING) == ["n1", "n2", "n3"]


async def test_the_unreached_are_listed_page_by_page(rows: Store):
    await change(rows, "n2", state=DeliveryState.RECEIVED, received_at=NOW)

    async def page(after: str | None) -> list[tuple[str, str | None]]:
        found = await rows.read(
            lambda session: deliveries.list_deliveries(
                session, ALARM, ("xa",), ON, now=NOW, unreached=True, after=after, limit=1
            )
        )
        return [(one.node_id, one.reason) for one in found]

    assert await page(None) == [("n1", "no_answer")]
    assert await page("n1") == [("n3", "no_answer")]
    assert await page("n3") == []


async def test_lines_of_the_play_log_are_missing_until_they_are_written_and_follow_the_round(rows: Store):
    missing = await rows.read(lambda session: deliveries.without_line(session, limit=10))
    assert [(row.node_id, end - start) for row, start, end in missing] == [
        (node, timedelta(seconds=30)) for node in NODES
    ]
