"""Nodes as witnesses of the audit log: what they were told is held against what stands there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

from sqlalchemy import update

from broadcast_server.store import audit, facts
from broadcast_server.store.session import Session
from broadcast_server.store.tables import AuditRow
from firmware_sim.anchors import KEPT, Anchors
from speaker_protocol import messages as wire
from tests.playout.rig import Room, a_room
from tests.support.audit import take_the_guards_away

DAY_MS = 86_400_000


async def something_is_done(room: Room) -> None:
    def write(session: Session) -> None:
        audit.append(
            session, now=room.clock.now(), actor="lan", verb="schedule.add", unit_id=None, subject="schedule/s1"
        )

    await room.store.begin(write, ring=False)


async def heard_with_the_time(room: Room) -> wire.Anchor | None:
    """The anchor in the answer to the node's question about the time."""
    answering = asyncio.create_task(room.server.inbox.answer(), name="test.answer")
    await room.node.ask_the_time()
    await room.clock.advance(0.1)
    answering.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await answering
    answer = room.node.acks[-1]
    assert isinstance(answer, wire.TimeAnswerBody)
    return answer.anchor


async def say(room: Room, anchor: wire.Anchor) -> None:
    await room.node.tell_status(anchor=anchor)
    await room.clock.advance(0)
    await room.server.anchoring.look()


async def contradictions(room: Room) -> tuple[list[list[object]], list[str]]:
    """What waits for an answer, and the rows that tell of it."""

    def read(session: Session) -> tuple[list[list[object]], list[str]]:
        told = facts.find(session, facts.AUDIT_CONTRADICTED)
        rows = audit.listed(session, None, verb="audit.contradicted", limit=10)
        return ([] if told is None else told["open"], [row.subject for row in rows])

    return await room.store.read(read)


async def test_an_anchor_goes_to_the_file_and_with_the_time_and_comes_back_without_complaint(tmp_path: Path):
    async with a_room(tmp_path / "keys") as room:
        assert await heard_with_the_time(room) is None
        await something_is_done(room)
        await room.server.anchoring.anchor()
        stands = await room.store.read(audit.head)
        assert stands is not None

        heard = await heard_with_the_time(room)
        assert heard is not None
        assert (heard.sequence, heard.hash) == (stands.sequence, stands.hash)
        lines = (tmp_path / "anchors.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["hash"] for line in lines] == [stands.hash]
        await say(room, heard)
        assert await contradictions(room) == ([], [])


async def test_rows_that_were_rewritten_meet_what_the_poles_heard_last_week(tmp_path: Path):
    async with a_room(tmp_path / "keys") as room:
        await something_is_done(room)
        await room.server.anchoring.anchor()
        heard = await heard_with_the_time(room)
        assert heard is not None
        take_the_guards_away(room.store)
        fresh = update(AuditRow).where(AuditRow.sequence == heard.sequence).values(hash="f" * 64)
        await room.store.begin(lambda session: session.execute(fresh), ring=False)

        await say(room, heard)
        await say(room, heard)  # a thousand nodes say the same
        open_, rows = await contradictions(room)
        assert open_ == [[heard.sequence, heard.hash]]
        assert rows == [f"audit/{heard.sequence}"]


async def test_what_a_node_invents_costs_one_row_and_is_named(tmp_path: Path):
    async with a_room(tmp_path / "keys") as room:
        invented = wire.Anchor(sequence=10**9, hash="a" * 64, at_ms=0)
        await say(room, invented)
        row = (await room.store.read(lambda session: audit.listed(session, None, limit=1)))[0]
        assert (row.verb, row.detail) == (
            "audit.contradicted",
            {"told": "a" * 64, "stands": None, "by": room.node.node_id},
        )


async def test_another_process_learns_the_anchor_from_the_store(tmp_path: Path):
    async with a_room(tmp_path / "keys") as room:
        await something_is_done(room)
        await room.server.anchoring.anchor()
        other = await room.serve("b")
        assert other.anchoring.current is None
        await other.anchoring.look()
        assert other.anchoring.current == room.server.anchoring.current


# -- what a node keeps ------------------------------------------------------------------------------------------------


def anchor(hour: int) -> wire.Anchor:
    return wire.Anchor(sequence=hour + 1, hash=f"{hour:064x}", at_ms=hour * 3_600_000)


def test_a_node_keeps_the_last_day_by_the_hour_and_the_days_before_by_one_and_says_each_in_turn():
    anchors = Anchors()
    for hour in range(24 * 20):
        assert anchors.take(anchor(hour))
        assert not anchors.take(anchor(hour))
    held = anchors.dump()
    assert len(held) == KEPT
    assert [one[2] for one in held[-9:]] == [hour * 3_600_000 for hour in range(24 * 20 - 9, 24 * 20)]
    days = {one[2] // DAY_MS for one in held}
    assert len(days) >= 9
    said = {anchors.next() for _ in range(KEPT)}
    assert len(said) == KEPT
    assert Anchors(held).dump() == held


def test_two_words_of_the_server_about_one_row_are_both_kept():
    anchors = Anchors()
    first = anchor(3)
    second = first.model_copy(update={"hash": "f" * 64})
    assert anchors.take(first)
    assert anchors.take(second)
    assert {one.hash for one in (anchors.next(), anchors.next()) if one is not None} == {first.hash, second.hash}


def test_a_node_that_was_told_nothing_says_nothing():
    assert Anchors().next() is None
    assert not Anchors().take(None)
