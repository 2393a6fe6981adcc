"""What a node's life is lived in: the hardware of its own box, and the kit that the nodes of one process share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import httpx

from firmware_sim.clock import DeviceClock, TrueTime
from firmware_sim.decoder import DecodeCache, Offload, SoundLibrary
from firmware_sim.dry import Witness
from firmware_sim.link import Link
from firmware_sim.output import Horn, Recorder
from firmware_sim.pace import FIELD, Pace
from firmware_sim.phrases import PhraseBook, burned_in
from firmware_sim.store import Disk, Identity
from firmware_sim.trust import PlanBodies
from speaker_protocol.rules import Decision

T = TypeVar("T")

URGENT_DOWNLOADS: Final = 8


@dataclass(frozen=True, slots=True)
class Kit:
    """What the nodes of one process share: the world, the workers, and caches of pure functions of verified bytes."""

    true: TrueTime
    offload: Offload
    http: httpx.AsyncClient
    downloads: asyncio.Semaphore
    """How many download at once; the others wait here, where waiting costs nothing."""
    library: SoundLibrary
    streams: DecodeCache
    bodies: PlanBodies
    pace: Pace = FIELD
    urgent_downloads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(URGENT_DOWNLOADS))
    """The lane of its own for what sounds within the hour."""
    decided: Callable[[str, int, Decision], None] | None = None
    """Told when a node (id) decides for something else: the instant (true, ns) and what sounds, or would, from then on.
    """


class FlashWork:
    """Disk work that is finished even if whoever asked for it is gone, as a controller finishes a page when the
    supply's capacitors take over; the next life begins after it.
    """

    def __init__(self, offload: Offload) -> None:
        self._offload = offload
        self._running: set[asyncio.Future[Any]] = set()

    async def __call__(self, work: Callable[[], T]) -> T:
        """Its result."""
        running: asyncio.Future[T] = asyncio.ensure_future(self._offload(work))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return await asyncio.shield(running)

    async def settle(self) -> None:
        """Wait for what runs."""
        while self._running:
            await asyncio.wait(self._running)


@dataclass(slots=True)
class Faultline:
    """What faults have broken in the box."""

    drop_frames: int = 0
    garble: int = 0
    low_until_ns: int = 0
    """Until this instant of the device's clock the supply is too low."""


@dataclass(slots=True)
class Box:
    """The hardware, which outlives a reboot."""

    clock: DeviceClock
    disk: Disk
    horn: Horn
    recorder: Recorder | None
    has_output: bool = True
    is_dry: bool = False
    """Without samples (`has_output` is False), but with a card that consumes time: see `dry`."""
    witness: Witness | None = None
    faultline: Faultline = field(default_factory=Faultline)
    phrases: PhraseBook = field(default_factory=burned_in)

    def __post_init__(self) -> None:
        """The disk feels the supply."""
        self.disk.is_power_low = self.is_power_low

    def is_power_low(self) -> bool:
        """Whether the supply is below the threshold at which nothing is written and the amplifier is off."""
        return self.clock.now_ns() < self.faultline.low_until_ns


class MakeLink(Protocol):
    """How a session is made (real MQTT, or a loopback in a simulation)."""

    def __call__(
        self,
        identity: Identity,
        *,
        will: tuple[str, bytes],
        on_message: Callable[[str, bytes], None],
        on_up: Callable[[], None],
    ) -> Link:
        """A session, not yet running."""
        ...
