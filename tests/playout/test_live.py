"""A live session in the engine room: planned at once, left to its own room, judged like any sound."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import select

from broadcast_server.audio.ffmpeg import Sandbox
from broadcast_server.control.live import OpenLive, close_live, open_live
from broadcast_server.domain.clock import to_ms
from broadcast_server.domain.proof import Verdict
from broadcast_server.relay.voice import VoiceRoom
from broadcast_server.store.tables import BroadcastRow, PlayRow
from broadcast_server.store.words import ScheduleKind
from speaker_protocol.rules import SourceKind
from tests.playout.rig import FAR, NEIGHBOUR, NODE, Room, a_room
from tests.support.clock import FakeChance
from tests.support.village import DONG, LAN


@asynccontextmanager
async def voices_of(room: Room, folder: Path) -> AsyncIterator[VoiceRoom]:
    """Where the voices of the room's server go."""
    voices = VoiceRoom(
        bus=room.server.bus,
        signer=room.server.signer,
        clock=room.clock,
        chance=FakeChance(),
        executor=room.village.desk.executor,
        sandbox=Sandbox.__new__(Sandbox),
        folder=folder / "voices",
        require_space=lambda _: None,
        epoch=lambda: room.server.conductor.epoch,
    )
    try:
        yield voices
    finally:
        await voices.close()


async def test_the_plan_names_the_voice_at_once_and_the_relays_leave_it_alone(tmp_path: Path):
    async with a_room(tmp_path) as room, voices_of(room, tmp_path) as voices:
        await room.turn()
        made = await open_live(room.village.desk, voices, LAN, OpenLive(DONG))
        await room.turn()

        for node in (NODE, NEIGHBOUR):
            plan = room.nodes[node].plan
            assert plan is not None
            assert [(one.stream, one.source) for one in plan.segments] == [(made.live.id, SourceKind.LIVE)]
        assert room.nodes[FAR].plan is not None
        assert room.nodes[FAR].plan.segments == ()
        await room.pass_time(4)
        assert room.server.relays.wanted == {}
        await close_live(room.village.desk, voices, LAN, made.live.id)
        await room.turn()
        plan = room.node.plan
        assert plan is not None
        assert [one.end_ms for one in plan.segments] == [to_ms(room.clock.now())]


async def test_what_was_heard_of_a_voice_is_judged_against_the_time_it_really_had(tmp_path: Path):
    async with a_room(tmp_path) as room, voices_of(room, tmp_path) as voices:
        made = await open_live(room.village.desk, voices, LAN, OpenLive(DONG, title="Họp thôn"))
        await room.pass_time(61)
        await close_live(room.village.desk, voices, LAN, made.live.id)
        await room.turn()
        heard = {"stream": made.live.id, "source": SourceKind.LIVE}
        await room.node.report("started", made.live.entry_id, made.live.starts_at, at=made.live.starts_at, **heard)
        await room.node.report("finished", made.live.entry_id, made.live.starts_at, heard_ms=59_000, **heard)
        await room.pass_time(60)

        def read(session):
            rows = session.scalars(select(PlayRow).where(PlayRow.broadcast_id == made.live.entry_id))
            broadcast = session.get(BroadcastRow, made.live.entry_id)
            return {row.node_id: row.verdict for row in rows}, broadcast.kind, broadcast.feed_id, broadcast.title

        verdicts, kind, feed, title = await room.store.read(read)
        assert verdicts[NODE] is Verdict.PLAYED
        assert (kind, feed, title) == (ScheduleKind.LIVE, None, "Họp thôn")
