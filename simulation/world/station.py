"""The server core as one process would hold it: store, conductor, inbox and judge, which can crash, freeze and be born
again.

A crash drops every object and keeps the database file and the keys. A freeze stops the process between two of its
steps (`SIGSTOP`, a machine that swaps, a hypervisor that moves it) and lets it go on where it was, however late that
is: every door to store, broker and time waits in `Ice`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

from broadcast_server.domain.errors import Unavailable
from broadcast_server.mqtt.bus import LoopbackBus, QoS
from broadcast_server.playout.conductor import Conductor
from broadcast_server.playout.configs import StationFacts
from broadcast_server.playout.inbox import Heard, Inbox
from broadcast_server.playout.judge import Judge
from broadcast_server.playout.pace import Pace
from broadcast_server.playout.planner import Desired, Planner
from broadcast_server.signer.checked import CheckedSigner
from broadcast_server.signer.keys import FileSigner
from broadcast_server.signer.time_key import TimeKey, time_folder
from broadcast_server.store.session import Store
from simulation.world.net import Ether
from simulation.world.time import SeededChance, VirtualTime

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

GRACE: Final = timedelta(seconds=120)
ASSETS_URL: Final = "http://loa.mo-phong/api/v1/assets"


class Ice:
    """Whether a process stands still. Its doors wait here."""

    def __init__(self) -> None:
        self._free = asyncio.Event()
        self._free.set()
        self._passes_left: int | None = None

    def freeze_after(self, passes: int) -> None:
        """Stand still at the n-th door from now (0: the next)."""
        self._passes_left = passes

    def thaw(self) -> None:
        """Go on."""
        self._passes_left = None
        self._free.set()

    @property
    def is_frozen(self) -> bool:
        """Whether it stands still now."""
        return not self._free.is_set()

    async def passing(self) -> None:
        """A door: go through, or wait until thawed."""
        if self._passes_left is not None:
            self._passes_left -= 1
            if self._passes_left < 0:
                self._passes_left = None
                self._free.clear()
        await self._free.wait()


class _IcyClock:
    """The process's own clock: the world's, with a door."""

    def __init__(self, time: VirtualTime, ice: Ice) -> None:
        self._time, self._ice = time, ice

    def now(self) -> datetime:
        return self._time.now()

    def monotonic(self) -> float:
        return self._time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._time.sleep(seconds)
        await self._ice.passing()


class _IcyExecutor:
    """Runs work inline, behind a door."""

    def __init__(self, ice: Ice) -> None:
        self._ice = ice

    async def run(self, work: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        await self._ice.passing()
        return work(*args)


class _IcyBus(LoopbackBus):
    """The process's own connection, behind a door."""

    def __init__(self, name: str, ether: Ether, clock: _IcyClock, ice: Ice) -> None:
        super().__init__(ether, clock=clock, user=name)
        self._ice = ice
        self.must_fail: Callable[[], bool] = lambda: False
        """Asked before every batch: whether the broker is said to be away for once."""

    async def publish(self, topic: str, payload: bytes, *, qos: QoS = 1, retain: bool = False) -> None:
        await self._ice.passing()
        await super().publish(topic, payload, qos=qos, retain=retain)

    async def publish_many(self, items: Sequence[tuple[str, bytes]], *, retain: bool = True) -> None:
        await self._ice.passing()
        if self.must_fail():
            raise Unavailable("broker_away", acknowledged=0)
        await super().publish_many(items, retain=retain)


class _NoRelays:
    """The relay engine's port: nothing is relayed here."""

    async def reconcile(self, desired: Any, *, ending: str = "") -> None:  # noqa: ARG002
        """No stream is kept."""
        del desired


@dataclass(frozen=True, slots=True)
class Premises:
    """What outlives a process: the database file, the keys, the broker, the world."""

    folder: Path
    ether: Ether
    time: VirtualTime
    pace: Pace
    lease_s: float
    status_interval_s: int
    plan_days: int

    @property
    def url(self) -> str:
        """The database's address."""
        return f"sqlite:///{self.folder / 'loa.db'}"


class Station:
    """One server process."""

    def __init__(self, name: str, premises: Premises, chance: SeededChance, *, is_alone: bool = True) -> None:
        self.name = name
        self.ice = Ice()
        self._premises = premises
        self._clock = clock = _IcyClock(premises.time, self.ice)
        self.store = Store(premises.url, clock=clock, chance=chance, executor=_IcyExecutor(self.ice))
        self.bus = _IcyBus(name, premises.ether, clock, self.ice)
        self.signer = CheckedSigner(
            lambda path_of: FileSigner(premises.folder / "keys", chance=chance, path_of=path_of),
            store=self.store,
            clock=clock,
        )
        self.conductor = Conductor(
            name=name,
            store=self.store,
            bus=self.bus,
            signer=self.signer,
            engine=_NoRelays(),
            planner=Planner(plan_days=premises.plan_days),
            clock=clock,
            chance=chance,
            facts=StationFacts(assets_url=ASSETS_URL, status_interval_s=premises.status_interval_s),
            lease_s=premises.lease_s,
            is_alone=is_alone,
            pace=premises.pace,
        )
        self.judge = Judge(store=self.store, clock=clock, chance=chance, grace=GRACE, pace=premises.pace)
        self.conductor.on_planned = self._planned
        self.inbox = Inbox(
            bus=self.bus,
            store=self.store,
            answers=TimeKey(time_folder(premises.folder / "keys"), chance=chance),
            clock=clock,
            chance=chance,
            epoch=lambda: self.conductor.epoch,
            on_heard=self._heard,
            floors=self.conductor.floors,
            pace=premises.pace,
        )
        self._tasks: list[asyncio.Task[None]] = []

    def _planned(self, desired: Desired) -> None:
        self.judge.planned(desired)

    def _heard(self, what: Heard) -> None:
        self.conductor.heard(what)
        self.judge.heard(what)

    @property
    def is_alive(self) -> bool:
        """Whether its process runs (frozen or not)."""
        return bool(self._tasks)

    def start(self) -> None:
        """Begin to work; where the broker is away, it is waited for."""
        parts = {
            "bus": self._connect(),
            "conductor": self.conductor.run(),
            "urgent": self.conductor.run_urgent(),
            "inbox": self.inbox.run(),
            "answers": self.inbox.answer(),
            "judge": self.judge.run(),
        }
        self._tasks = [asyncio.create_task(part, name=f"{self.name}.{role}") for role, part in parts.items()]

    async def _connect(self) -> None:
        ether = self._premises.ether
        while not ether.is_up:
            await self._clock.sleep(1.0)
        await self.bus.start()

    def check(self) -> None:
        """Raise what a part died of: nothing here may die by itself."""
        for task in self._tasks:
            if task.done() and task.get_name() != f"{self.name}.bus" and not task.cancelled():
                task.result()

    async def crash(self) -> None:
        """SIGKILL: gone between two steps, without a word; the database file stays."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        self.ice.thaw()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._premises.ether.leave(self.bus)
        await self.store.close()
