"""What one node must acknowledge: again and again, with patience, until it does or its time is over."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest_asyncio

from broadcast_server.store import outbox
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import OutboxRow
from broadcast_server.store.words import OutboxState
from tests.store.playout_rows import NOW, settled

LIFE = timedelta(minutes=5)


@pytest_asyncio.fixture
async def box(store: Store) -> Store:
    await settled(store)

    def put(session: Session) -> None:
        for number, node in enumerate(("n1", "n1", "n2")):
            session.add(
                OutboxRow(
                    id=f"o{number}", node_id=node, unit_id="xa", subject=f"order/o{number}", body={},
                    state=OutboxState.PENDING, attempts=0, due_at=NOW + timedelta(seconds=number),
                    expires_at=NOW + LIFE, created_at=NOW,
                )
            )  # fmt: skip

    await store.begin(put)
    return store


async def due(store: Store, at: datetime) -> list[str]:
    return await store.read(lambda session: [row.id for row in outbox.due(session, now=at)])


async def state(store: Store, one: str) -> OutboxState:
    def read(session: Session) -> OutboxState:
        row = session.get(OutboxRow, one)
        assert row is not None
        return row.state

    return await store.read(read)


async def test_what_is_due_comes_oldest_first_and_not_before_its_time(box: Store):
    assert await due(box, NOW) == ["o0"]
    assert await due(box, NOW + timedelta(seconds=9)) == ["o0", "o1", "o2"]
    assert await due(box, NOW + LIFE) == []


async def test_waits_grow_from_attempt_to_attempt(box: Store):
    at, waits = NOW, []
    for _ in range(7):
        await box.begin(lambda session, at=at: outbox.mark_sent(session, ["o0"], now=at))
        after = at
        while "o0" not in await due(box, after):
            after += timedelta(seconds=1)
        waits.append((after - at).seconds)
        at = after

    assert waits == [2, 4, 8, 15, 30, 30, 30]


async def test_done_is_done_for_the_node_that_was_meant_alone(box: Store):
    done = {("n1", "o0"), ("n1", "o2"), ("n2", "o1"), ("n1", "nothing")}
    await box.begin(lambda session: outbox.acknowledge(session, done, now=NOW))

    assert [await state(box, one) for one in ("o0", "o1", "o2")] == [
        OutboxState.ACKNOWLEDGED,
        OutboxState.PENDING,
        OutboxState.PENDING,
    ]


async def test_nothing_done_is_no_statement(box: Store):
    before = await state(box, "o0")
    await box.begin(lambda session: outbox.acknowledge(session, set(), now=NOW))
    assert await state(box, "o0") is before


async def test_what_nobody_answered_is_given_up_and_a_late_answer_still_counts(box: Store):
    assert not await box.read(lambda session: outbox.has_expired(session, now=NOW))
    assert await box.read(lambda session: outbox.has_expired(session, now=NOW + LIFE))
    await box.begin(lambda session: outbox.expire(session, now=NOW + LIFE))
    assert await state(box, "o0") is OutboxState.EXPIRED
    assert not await box.read(lambda session: outbox.has_expired(session, now=NOW + LIFE))

    await box.begin(lambda session: outbox.acknowledge(session, {("n1", "o0")}, now=NOW + LIFE))
    assert await state(box, "o0") is OutboxState.ACKNOWLEDGED


async def test_what_cannot_be_sent_is_given_up(box: Store):
    await box.begin(lambda session: outbox.give_up(session, ["o1"]))

    assert await due(box, NOW + timedelta(seconds=9)) == ["o0", "o2"]
