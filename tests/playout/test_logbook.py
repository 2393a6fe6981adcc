"""The devices' own logs at the server: exactly once, gaps visible, a second device with the same key unmasked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select, update

from broadcast_server.playout import logbook
from broadcast_server.playout.logbook import Break
from broadcast_server.store import audit, device_logs
from broadcast_server.store.device_logs import Extent
from broadcast_server.store.session import Session
from broadcast_server.store.tables import AuditRow, DeviceForkRow, ReportRow
from tests.playout.rig import NODE, Room, a_room
from tests.support.village import at

ENTRY = "schedule@1780300800000"


async def flush(room: Room) -> None:
    await room.clock.advance(0)
    await room.server.inbox.flush()
    await room.clock.advance(0)


async def say(room: Room, line: int, previous: str | None, *, boot: str = "boot-1") -> str:
    """One line of the node, not taken in yet; its digest."""
    await room.node.report("started", ENTRY, at(9), sequence=line, boot=boot, line=line, previous=previous)
    return hashlib.sha256(room.node.last_report).hexdigest()


async def chain(room: Room, count: int) -> list[str]:
    """So many lines of the node, taken in; their digests."""
    digests: list[str] = []
    for line in range(1, count + 1):
        digests.append(await say(room, line, digests[-1] if digests else None))
    await flush(room)
    return digests


async def extent(room: Room) -> Extent | None:
    return (await room.store.read(lambda session: device_logs.extents(session, [NODE]))).get(NODE)


async def count(room: Room, table: type) -> int:
    return await room.store.read(lambda session: session.scalar(select(func.count()).select_from(table))) or 0


async def test_lines_that_come_twice_and_out_of_order_make_one_chain_that_verifies(tmp_path: Path):
    async with a_room(tmp_path) as room:
        raws: list[bytes] = []
        previous: str | None = None
        for line in range(1, 7):
            previous = await say(room, line, previous)
            raws.append(room.node.last_report)
        box = room.server.inbox
        box._reports.clear()
        await room.clock.advance(0)
        box._reports.clear()
        for number in (5, 1, 1, 3):
            await room.node.bus.publish(f"loa/1/node/{NODE}/report", raws[number])
            await flush(room)
        assert await extent(room) == Extent(0, 6, None, None)
        for number in (0, 2, 4, 5):
            await room.node.bus.publish(f"loa/1/node/{NODE}/report", raws[number])
        await flush(room)

        assert await extent(room) == Extent(6, 6, None, None)
        assert (await count(room, ReportRow), await count(room, DeviceForkRow)) == (6, 0)
        found = await logbook.verify(room.store)
        assert (found.devices, found.lines, found.awaited, found.breaks) == (1, 6, 0, ())


async def test_a_gap_is_visible_and_is_no_forgery(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await chain(room, 2)
        await say(room, 4, "0" * 64)
        await flush(room)

        seen = await extent(room)
        assert seen is not None
        assert (seen.through, seen.highest, seen.missing) == (2, 4, 2)
        found = await logbook.verify(room.store)
        assert (found.lines, found.awaited, found.breaks) == (3, 1, ())


async def test_a_copied_device_is_named_once_and_takes_no_place_in_the_chain(tmp_path: Path):
    async with a_room(tmp_path) as room:
        digests = await chain(room, 3)
        twin = await say(room, 4, digests[-1], boot="boot-of-the-copy")
        await flush(room)
        fourth = await say(room, 4, digests[-1], boot="boot-1")
        await say(room, 5, twin, boot="boot-of-the-copy")
        await flush(room)

        seen = await extent(room)
        assert seen is not None
        assert (seen.through, seen.forked_line, seen.forked_at) == (5, 4, room.clock.now())
        assert fourth != twin
        assert (await count(room, DeviceForkRow), await count(room, ReportRow)) == (1, 6)
        named = await room.store.read(
            lambda session: list(session.scalars(select(AuditRow.subject).where(AuditRow.verb == "node.cloned")))
        )
        assert named == [f"node/{NODE}"]
        assert len(room.node.acknowledged()) == 6  # both are answered: neither shall send for ever
        assert (await logbook.verify(room.store)).breaks == ()


def _drop_a_line(session: Session) -> None:
    session.execute(delete(ReportRow).where(ReportRow.line == 2))


def _drop_the_last(session: Session) -> None:
    session.execute(delete(ReportRow).where(ReportRow.line == 4))


def _move_a_start(session: Session) -> None:
    session.execute(update(ReportRow).where(ReportRow.line == 2).values(segment_start=at(10)))


def _forge_a_body(session: Session) -> None:
    row = session.scalars(select(ReportRow).where(ReportRow.line == 2)).one()
    row.body = {**row.body, "heard_ms": 180_000}


def _swap_an_envelope(session: Session) -> None:
    row = session.scalars(select(ReportRow).where(ReportRow.line == 2)).one()
    row.envelope = row.envelope[:-1] + bytes([row.envelope[-1] ^ 1])


@pytest.mark.parametrize(
    ("tamper", "broken"),
    [
        (_drop_a_line, Break(NODE, 2, "missing")),
        (_drop_the_last, Break(NODE, 4, "missing")),
        (_move_a_start, Break(NODE, 2, "changed")),
        (_forge_a_body, Break(NODE, 2, "changed")),
        (_swap_an_envelope, Break(NODE, 2, "signature")),
    ],
)
async def test_what_is_changed_here_afterwards_is_found(tmp_path: Path, tamper, broken: Break):
    async with a_room(tmp_path) as room:
        await chain(room, 4)
        await room.store.begin(tamper, ring=False)
        assert (await logbook.verify(room.store)).breaks == (broken,)
        assert await room.store.read(audit.verify) is None


async def test_a_report_outside_of_the_chain_is_kept_beside_it(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.node.report("started", ENTRY, at(9))
        await flush(room)
        assert (await count(room, ReportRow), await extent(room)) == (1, None)
