"""A pole: one real `SpeakerNode` with a dry output, an in-memory disk, a session over the ether, and a witness.

The witness writes to the trace what left the output (on the true clock and on the node's), and what the node obeyed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from firmware_sim.box import Kit
from firmware_sim.clock import MS, SECOND, DeviceClock
from firmware_sim.node import SpeakerNode
from firmware_sim.output import Played
from firmware_sim.player import SAMPLE_RATE_HZ, Sounding, Tag
from firmware_sim.store import Disk, Identity
from simulation.world.net import Ether, NodeLink
from simulation.world.time import VirtualTime
from simulation.world.trace import Trace
from speaker_protocol.messages import split_keys, split_plan
from speaker_protocol.rules import Why
from speaker_protocol.signing import EnvelopeRefused, parse

T = TypeVar("T")

JOIN_MS: Final = 60
"""Pieces of one kind that follow each other this closely are one stretch."""
_NOTHING: Final = frozenset({Why.NOTHING_PLANNED, Why.NO_PLAN})


async def inline(work: Callable[[], T]) -> T:
    """An `Offload` without a thread."""
    return work()


class Witness:
    """Hears one node."""

    def __init__(self, node_id: str, trace: Trace, time: VirtualTime) -> None:
        self._node_id, self._trace, self._time = node_id, trace, time
        self._stretch: tuple[Tag | None, bool, Why] | None = None
        self._from_ms = self._server_from_ms = self._server_to_ms = 0
        self._to_ms = 0

    def sounded(self, piece: Played) -> None:
        """A piece that ended not later than now."""
        chunk = piece.chunk
        length_ms = chunk.samples * 1000 // SAMPLE_RATE_HZ
        key = (chunk.tag, chunk.kind is Sounding.SOUND and piece.is_heard, chunk.why)
        start_ms = chunk.server_ns // MS
        if key != self._stretch or abs(start_ms - self._server_to_ms) > JOIN_MS:
            self.close()
            self._stretch = key
            self._server_from_ms = start_ms
        self._server_to_ms = (chunk.server_ns + chunk.samples * SECOND // SAMPLE_RATE_HZ) // MS
        self._to_ms = self._time.now_ms()
        self._from_ms = min(self._from_ms or self._to_ms, self._to_ms - length_ms) if self._is_new() else self._from_ms

    def _is_new(self) -> bool:
        return self._from_ms == 0

    def close(self) -> None:
        """Write down the stretch that is open."""
        stretch, self._stretch = self._stretch, None
        from_ms, self._from_ms = self._from_ms, 0
        if stretch is None:
            return
        tag, is_heard, why = stretch
        if tag is None and why in _NOTHING:
            return
        told = {} if tag is None else {"entry": tag.entry_id, "start": tag.start_ms, "asset": tag.asset}
        self._trace.note(
            "sound" if is_heard else "silence",
            node=self._node_id,
            true_from=from_ms,
            true_to=self._to_ms,
            server_from=self._server_from_ms,
            server_to=self._server_to_ms,
            why=why.value,
            **told,
        )

    def obeyed(self, topic: str, raw: bytes) -> None:
        """A message is in force on this node."""
        leaf = topic.rpartition("/")[2]
        try:
            envelopes = split_keys(raw) if leaf == "keys" else (split_plan(raw)[0],) if leaf == "plan" else (raw,)
            for each in envelopes:
                envelope = parse(each)
                self._trace.note(
                    "obeyed",
                    node=self._node_id,
                    topic=topic,
                    key=envelope.key_id.hex(),
                    order=[envelope.epoch, envelope.sequence],
                    digest=envelope.digest.hex()[:16],
                )
        except EnvelopeRefused:  # pragma: no cover  the gate has parsed it
            self._trace.note("obeyed", node=self._node_id, topic=topic, order=None)


class Pole:
    """A node with its power switch."""

    def __init__(
        self,
        identity: Identity,
        *,
        kit: Kit,
        ether: Ether,
        time: VirtualTime,
        trace: Trace,
        folder: Path,
        chance: random.Random,
        clock: DeviceClock,
    ) -> None:
        self.witness = Witness(identity.node_id, trace, time)
        self._trace = trace
        way_chance = random.Random(chance.getrandbits(64))  # noqa: S311  from the seed

        def make_link(
            identity: Identity,
            *,
            will: tuple[str, bytes],
            on_message: Callable[[str, bytes], None],
            on_up: Callable[[], None],
        ) -> NodeLink:
            trace.note("boot", node=identity.node_id)
            return NodeLink(
                ether, time, way_chance, user=identity.node_id, will=will, on_message=on_message, on_up=on_up
            )

        self.node = SpeakerNode(
            identity,
            kit=kit,
            make_link=make_link,
            disk=Disk(folder / identity.node_id),
            chance=chance,
            clock=clock,
            witness=self.witness,
        )
        self._life: asyncio.Task[None] | None = None

    @property
    def node_id(self) -> str:
        """Its id."""
        return self.node.node_id

    def switch_on(self) -> None:
        """For the first time."""
        self._life = asyncio.create_task(self.node.run(), name=f"pole[{self.node_id}]")

    def settle(self) -> None:
        """Bring what was heard up to now into the trace."""
        if self.node.firmware is not None:
            self.node.firmware.catch_up()
        self.witness.close()

    def cut_power(self, for_s: float) -> None:
        """Off at once, on again after so long."""
        self.settle()
        self._trace.note("dark", node=self.node_id, for_s=for_s)
        self.node.cut_power(for_s)

    def jump_clock(self, by_ms: float) -> None:
        """The device's clock jumps."""
        if self.node.firmware is not None:
            self.node.firmware.catch_up()
        self.node.box.clock.jump(by_ms)
        if self.node.firmware is not None:
            self.node.firmware.catch_up()

    def set_drift(self, ppm: float) -> None:
        """The crystal runs at another rate from now on."""
        self.node.box.clock.run_at(ppm)

    def check(self) -> None:
        """Raise what the node died of."""
        if self._life is not None and self._life.done():
            self._life.result()

    async def stop(self) -> None:
        """The end of the world."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
