"""A commune whose two poles overlap: its plans, its named conflict, and what the preview shows."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from broadcast_server.control import fleet, outlook, places
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.fleet import ClusterChange, ClusterConfig
from broadcast_server.domain.clock import Window, to_ms
from broadcast_server.store.session import Session
from broadcast_server.store.tables import ConflictRow
from tests.playout.rig import NEIGHBOUR, NODE, Room, a_room
from tests.support.village import DONG, LAN, at, daily


async def overlap(room: Room, step_s: int = 6) -> None:
    """The second cluster of xã Đông takes the third turn."""
    desk = room.village.desk
    await places.put_policy(desk, LAN, DONG, {"stagger_s": step_s})
    await fleet.update_cluster(desk, OPERATOR, f"c2-{DONG}", ClusterChange(config=ClusterConfig(stagger_slot=2)))


def starts(room: Room, node: str) -> list[int]:
    plan = room.nodes[node].plan
    assert plan is not None
    return [segment.start_ms for segment in plan.segments][:1]


async def conflicts(room: Room) -> list[tuple[str, int]]:
    def read(session: Session) -> list[tuple[str, int]]:
        rows = session.query(ConflictRow).filter(ConflictRow.closed_at.is_(None))
        return [(row.kind.value, row.facts.get("shift_s", 0)) for row in rows]

    return await room.store.read(read)


async def test_the_neighbour_begins_two_steps_later_and_keeps_its_window(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await overlap(room)
        await room.announce(daily("17:00"), max_wait=timedelta(minutes=1))
        await room.turn()
        await room.all_say_how_they_are()
        assert starts(room, NODE) == [to_ms(at(17))]
        assert starts(room, NEIGHBOUR) == [to_ms(at(17)) + 12_000]
        assert await conflicts(room) == []
        shown = await outlook.preview_cluster(room.village.desk, LAN, f"c2-{DONG}", Window(at(16), at(18)))
        assert [one.start for one in shown.segments] == [at(17, 0, 12)]


async def test_a_window_without_room_is_a_named_conflict_and_sounds_at_its_own_time(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await overlap(room)
        await room.announce(daily("17:00"))
        await room.turn()
        await room.all_say_how_they_are()
        assert starts(room, NEIGHBOUR) == [to_ms(at(17))]
        assert set(await conflicts(room)) == {("not_staggered", 12)}
        await places.put_policy(room.village.desk, LAN, DONG, {"stagger_s": 0})
        await room.turn()
        assert await conflicts(room) == []
