"""A village where people speak live: the desk, an audio room, a broker in process and a room for voices."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from broadcast_server.control.desk import Desk
from broadcast_server.control.live import LiveKeeper
from broadcast_server.domain.clock import to_ms
from broadcast_server.mqtt.bus import LoopbackBus, LoopbackHub
from broadcast_server.relay.stream import PacketEncoder
from broadcast_server.relay.voice import VoiceRoom
from broadcast_server.signer.keys import FileSigner
from broadcast_server.store.session import Session
from broadcast_server.store.tables import AlertRow, NodeRow, NodeStatusRow
from simulation.samples import tone_pcm
from speaker_protocol.rules import Level
from tests.support.clock import FakeChance, FakeClock
from tests.support.studio import an_audio_room, with_room
from tests.support.village import DONG, NOW, TAY, Village, a_village

FIRST, SECOND = (700, 2300), (500, 1900)


def packets(pair: tuple[int, int], seconds: float) -> list[bytes]:
    """A voice: Opus packets of 20 ms of a pair of tones."""
    return PacketEncoder().encode(tone_pcm(pair, seconds))


@dataclass
class LiveVillage:
    """What a live story needs."""

    village: Village
    bus: LoopbackBus
    signer: FileSigner
    folder: Path
    room: VoiceRoom
    keeper: LiveKeeper
    epoch: int = 7

    @property
    def desk(self) -> Desk:
        return self.village.desk

    @property
    def clock(self) -> FakeClock:
        return self.village.clock

    async def pass_by(self, seconds: float, *, step_s: float = 0.25) -> None:
        """Time goes on and the keeper looks, as the server has it."""
        for _ in range(round(seconds / step_s)):
            await self.clock.advance(step_s)
            await self.keeper.look()

    async def restart(self) -> None:
        """The process dies and another begins on the same store and disk."""
        await self.room.close()
        self.room = self._a_room()
        self.keeper = LiveKeeper(self.desk, self.room)

    def _a_room(self) -> VoiceRoom:
        return VoiceRoom(
            bus=self.bus,
            signer=self.signer,
            clock=self.clock,
            chance=FakeChance(),
            executor=self.desk.executor,
            sandbox=self.desk.audio.sandbox,
            folder=self.folder / "voices",
            require_space=self.desk.audio.assets.require_space,
            epoch=lambda: self.epoch,
        )

    async def emergency(self, unit: str, *, until: datetime, text: str = "Lũ về") -> None:
        """An emergency in force for a place."""
        now = self.clock.now()
        body = {
            "alert_id": f"alert-{unit}",
            "level": int(Level.EMERGENCY_COMMUNE),
            "issued_ms": to_ms(now),
            "expires_ms": to_ms(until),
            "text": text,
        }
        row = AlertRow(
            id=f"alert-{unit}",
            unit_id=unit,
            level=int(Level.EMERGENCY_COMMUNE),
            body=body,
            issued_at=now,
            expires_at=until,
        )

        def write(session: Session) -> None:
            session.add(row)

        await self.desk.store.begin(write)

    async def says(self, node: str, stream: str | None) -> None:
        """A node's status tells which stream it sounds."""
        now = self.clock.now()

        def write(session: Session) -> None:
            row = session.get(NodeStatusRow, node)
            if row is None:
                row = NodeStatusRow(
                    node_id=node, link="online", since=now, seen_at=now, boot_id="b", plan_sha256=None, body={}
                )
                session.add(row)
            row.body = {"stream": stream}

        await self.desk.store.begin(write, ring=False)


@asynccontextmanager
async def a_live_village(folder: Path, now: datetime = NOW) -> AsyncIterator[LiveVillage]:
    """The village at 09:00 with a node on every cluster."""
    async with a_village(now) as silent, an_audio_room(folder, speaker=None) as audio:
        village = Village(with_room(silent.desk, audio))
        await village.desk.store.begin(_nodes)
        bus = LoopbackBus(LoopbackHub(), clock=village.clock)
        await bus.start()
        signer = FileSigner(folder / "keys", chance=FakeChance(), path_of=lambda unit: (unit,))
        it = LiveVillage(village, bus, signer, folder, None, None)  # type: ignore[arg-type]  made next, of itself
        it.room = it._a_room()
        it.keeper = LiveKeeper(it.desk, it.room)
        try:
            yield it
        finally:
            await it.room.close()
            await bus.close()


def _nodes(session: Session) -> None:
    for number, (unit, cluster) in enumerate((unit, f"c{n}-{unit}") for unit in (DONG, TAY) for n in (1, 2)):
        session.add(
            NodeRow(
                id=f"n{number + 1}",
                unit_id=unit,
                cluster_id=cluster,
                public_key=f"{number:064x}",
                hardware="mô phỏng",
                firmware="1",
                broker_password_line="x",
                asset_token_hash=f"{number:064x}",
                enrolled_at=NOW,
                retired_at=None,
            )
        )
    session.flush()


async def speak(it: LiveVillage, hold: object, sound: Sequence[bytes], *, first: int = 0) -> None:
    """Packets in real time."""
    for number, packet in enumerate(sound, start=first):
        await it.clock.advance(0.02)
        hold.take(number, packet)  # type: ignore[attr-defined]
