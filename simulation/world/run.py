"""One world from its first second to its last, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import random
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broadcast_server.control import signing_keys
from broadcast_server.control.access import OPERATOR
from broadcast_server.playout.pace import Pace as ServerPace
from broadcast_server.signer import keys
from broadcast_server.signer.register import KeyRegister, KeyRole
from broadcast_server.store.session import Store, opened
from broadcast_server.store.tables import Base
from broadcast_server.supervise import InlineExecutor
from firmware_sim.box import Kit
from firmware_sim.clock import DeviceClock
from firmware_sim.decoder import DecodeCache, SoundLibrary
from firmware_sim.pace import Pace as NodePace
from firmware_sim.store import BrokerAddress, Identity
from firmware_sim.trust import PlanBodies
from simulation.world.books import copy_books
from simulation.world.invariants import check
from simulation.world.net import Ether
from simulation.world.people import PROVINCE, People, a_desk
from simulation.world.pole import Pole, inline
from simulation.world.shelf import Shelf
from simulation.world.station import ASSETS_URL, Premises, Station
from simulation.world.tap import Tap
from simulation.world.time import SeededChance, VirtualTime, dice, run
from simulation.world.trace import Record, Trace
from simulation.world.trouble import Fault, Troubles

START: Final = datetime(2026, 5, 31, 21, 30, tzinfo=UTC)
"""Monday, 1 June 2026, 04:30 in the villages: half an hour before the first programme."""
SERVER_PACE: Final = ServerPace(
    look_s=600.0,
    replan_s=3_600.0,
    overdue_look_s=300.0,
    urgent_look_s=3_600.0,
    flush_s=1.0,
    statuses_s=300.0,
    judge_s=300.0,
)
NODE_PACE: Final = NodePace(probe_s=(900.0, 1_800.0), busy_house_s=30.0, idle_house_s=300.0, nap_s=3_600.0)
STATUS_INTERVAL_S: Final = 300
LEASE_S: Final = 1_800.0
"""Three looks of the conductor."""
PLAN_DAYS: Final = 3
"""Enough for a day and a dead network after it; longer plans have `benchmarks.dead_network`."""
QUIET_END_S: Final = 3_600.0
"""At the end nothing breaks any more, and what was held back must come home."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a world is made of."""

    seed: int
    nodes: int = 20
    hours: float = 24.0
    faults: tuple[Fault, ...] | None = None
    """None: drawn from the seed."""
    plan_days: int = PLAN_DAYS
    is_peaceful: bool = False
    """Nobody wants anything but the week's routine."""
    node_pace: NodePace = NODE_PACE


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    options: Options
    hash: str
    records: list[Record]
    faults: Mapping[str, int] = field(default_factory=dict)
    forced: Mapping[str, int] = field(default_factory=dict)
    deeds: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    attempted: Mapping[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


def simulate(options: Options, out: Path | None = None, *, is_last: bool = False) -> Outcome:
    """Run a world; the same options give the same outcome, to the byte. `is_last`: the process ends with it."""
    memory = Path("/dev/shm")  # noqa: S108  where it exists it is a disk in memory
    place = tempfile.TemporaryDirectory(prefix="loa-world-", dir=memory if memory.is_dir() else None)
    with place as folder, _uncollected(is_last):
        world = run(_simulate(options, Path(folder)))
    if out is not None:
        world.trace.write(out)
    verdict = check(world.trace.records)
    return Outcome(
        options,
        world.trace.hash,
        world.trace.records,
        faults=dict(world.troubles.counts),
        forced=dict(world.troubles.forced),
        deeds=dict(world.people.done),
        refused=dict(world.people.refused),
        attempted=dict(verdict.attempted),
        violations=verdict.violations,
    )


@contextlib.contextmanager
def _uncollected(is_last: bool) -> Iterator[None]:
    """A world is thrown away whole: looking through it for garbage again and again is a tenth of its cost."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not is_last:
            if was_on:
                gc.enable()
            gc.collect()


async def _simulate(options: Options, folder: Path) -> World:
    world = World(options, folder)
    await world.build()
    try:
        await world.live()
    finally:
        await world.end()
    return world


class World:
    """Server, broker, ways, poles and people of one seed."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options = options
        seed = options.seed
        self.time = VirtualTime(START)
        self.trace = Trace(self.time.now_ms)
        self.ether = Ether(self.time, dice(seed, "ether"))
        self.ether.taps.append(Tap(self.trace).heard)
        self.shelf = Shelf(self.ether, self.time, dice(seed, "shelf"), self._is_served)
        self.premises = Premises(
            folder=folder,
            ether=self.ether,
            time=self.time,
            pace=SERVER_PACE,
            lease_s=LEASE_S,
            status_interval_s=STATUS_INTERVAL_S,
            plan_days=options.plan_days,
        )
        shutil.copyfile(template(), folder / "loa.db")
        chance = SeededChance(f"{seed}/people")
        self.front = Store(self.premises.url, clock=self.time, chance=chance, executor=InlineExecutor())
        desk = a_desk(self.front, self.time, chance, InlineExecutor())
        self.people = People(desk, self.shelf, self.trace, dice(seed, "people"), self._ring)
        self.stations: list[Station] = []
        self.poles: list[Pole] = []
        self.troubles = Troubles(self, dice(seed, "troubles"))
        self._born = 0
        self._helpers: list[asyncio.Task[None]] = []
        self._client = httpx.AsyncClient(transport=self.shelf, trust_env=False)
        self._kit = Kit(
            self.time,
            inline,
            self._client,
            asyncio.Semaphore(24),
            SoundLibrary(inline),
            DecodeCache(),
            PlanBodies(),
            options.node_pace,
        )

    def _is_served(self) -> bool:
        return any(station.is_alive and not station.ice.is_frozen for station in self.stations)

    def _ring(self) -> None:
        for station in self.stations:
            if station.is_alive:
                is_late = self.troubles.buggify("late_ring", 0.1)
                self.later(30.0 if is_late else 0.3, station.conductor.ring)

    def serve(self, *, is_alone: bool = True) -> Station:
        """One more server process."""
        self._born += 1
        name = f"server-{self._born}"
        station = Station(name, self.premises, SeededChance(f"{self.options.seed}/{name}"), is_alone=is_alone)
        station.bus.must_fail = functools.partial(self.troubles.fails, "publish_fails", 0.01)
        station.start()
        self.stations.append(station)
        self.trace.note("serve", name=name)
        return station

    async def build(self) -> None:
        """Before the first second: places, people, one server, and every pole switched on."""
        await self.people.settle(self.options.nodes)
        station = self.serve()
        root = station.signer.root_public().hex()
        number = 0
        for place in self.people.places:
            for cluster in place.clusters:
                await self._pole(number, cluster, place.unit_id, root)
                number += 1
        await self.people.routine()
        for pole in self.poles:
            pole.switch_on()

    async def _pole(self, number: int, cluster: str, unit_id: str, root: str) -> None:
        chance = dice(self.options.seed, f"pole-{number}")
        node_id, token = f"n{number:03}", f"token-{number}"
        private = chance.randbytes(32)
        identity = Identity(
            private_key=private.hex(),
            node_id=node_id,
            cluster_id=cluster,
            broker=BrokerAddress(host="loa.mo-phong", port=1883),
            username=node_id,
            password="",
            root_public_key=root,
            path=(unit_id, PROVINCE),
            assets_url=ASSETS_URL,
            asset_token=token,
        )
        public = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        await self.people.seat(node_id, cluster, unit_id, public.hex(), token)
        clock = DeviceClock(
            self.time, offset_ms=chance.uniform(-90_000.0, 90_000.0), drift_ppm=chance.uniform(-50.0, 50.0)
        )
        self.poles.append(
            Pole(
                identity,
                kit=self._kit,
                ether=self.ether,
                time=self.time,
                trace=self.trace,
                folder=self.premises.folder,
                chance=chance,
                clock=clock,
            )
        )

    async def live(self) -> None:
        """The hours asked for: people and troubles until the quiet end, in which everything can be brought home."""
        until_s = self.options.hours * 3_600
        quiet_s = until_s if self.options.is_peaceful else max(0.0, until_s - QUIET_END_S)
        faults = self.options.faults
        if not self.options.is_peaceful:
            self._help("people", self._let_people_act(quiet_s))
        self._help("troubles", self.troubles.run(quiet_s) if faults is None else self.troubles.play(faults))
        await self._pass(quiet_s)
        self.trace.note("quiet")
        await self.people.make_peace()
        self._heal()
        await self._pass(until_s)

    async def _pass(self, until_s: float) -> None:
        while self.time.monotonic() < until_s:
            await self.time.sleep(min(600.0, until_s - self.time.monotonic()))
            self.check()

    async def _let_people_act(self, until_s: float) -> None:
        chance = dice(self.options.seed, "deeds")
        while True:
            await self.time.sleep(chance.uniform(1_200.0, 4_800.0))
            if self.time.monotonic() >= until_s:
                return
            await self.people.act()

    def _help(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._helpers.append(asyncio.create_task(work, name=f"world.{name}"))

    def later(self, after_s: float, do: Callable[[], None]) -> None:
        """Do something after so long."""
        asyncio.get_running_loop().call_later(after_s, do)

    def _heal(self) -> None:
        """The end of all faults that last."""
        for way in self.ether.ways.values():
            way.cut_until_s = way.mute_until_s = way.deaf_until_s = way.slow_until_s = way.torn_until_s = 0.0
        for pole in self.poles:
            pole.node.box.disk.is_full = False
        for station in self.stations:
            station.ice.thaw()

    # -- what troubles do

    def revive_broker(self) -> None:
        """The broker is back."""
        self.trace.note("broker_back")
        self.ether.revive()

    async def crash_server(self, for_s: float) -> None:
        """Every server process dies; one starts after so long."""
        for station in [station for station in self.stations if station.is_alive]:
            self.trace.note("crashed", name=station.name)
            await station.crash()
        self.stations.clear()
        self.later(for_s, self._serve_again)

    def _serve_again(self) -> None:
        if not self.stations:
            self.serve()

    async def change_key(self, chance: random.Random, *, is_stolen: bool) -> None:
        """The operator rotates or revokes a commune's key on the server's machine."""
        place = chance.choice(self.people.places)
        register = KeyRegister(self.premises.folder / "keys", chance=SeededChance(f"{chance.getrandbits(64)}/key"))
        now_ms = self.time.now_ms()

        def do() -> dict[str, str]:
            with register.change() as book:
                held = [key for key in book.of(KeyRole.UNIT, place.unit_id) if key.key_id not in book.revoked]
                if not held:
                    return {}
                if is_stolen:
                    keys.revoke(
                        register, book, held[-1].key_id, at_ms=now_ms, now_ms=now_ms, reason="bị trộm (mô phỏng)"
                    )
                else:
                    keys.rotate(register, book, KeyRole.UNIT, place.unit_id, now_ms)
                return {"key_id": held[-1].key_id}

        verb = "keys.revoke" if is_stolen else "keys.rotate"
        await signing_keys.change(self.people.desk, OPERATOR, verb, {}, do, must_resign=lambda _: is_stolen)
        self._ring()

    def cut_server(self, for_s: float) -> None:
        """No server reaches the broker."""
        for station in self.stations:
            self.ether.cut(station.bus)
            self.later(for_s, functools.partial(self.ether.mend, station.bus))

    async def freeze_server(self, passes: int, for_s: float) -> None:
        """The one that leads stands still; another is started; the first goes on after so long, and ends later."""
        if len(self.stations) != 1:
            return
        (old,) = self.stations
        old.ice.freeze_after(passes)
        old.conductor.ring()
        self.trace.note("frozen", name=old.name)
        self.serve(is_alone=False)
        self.later(for_s, functools.partial(self._thaw, old))

    def _thaw(self, old: Station) -> None:
        if old in self.stations:
            self.trace.note("thawed", name=old.name)
            old.ice.thaw()
            self.later(600.0, functools.partial(self._retire, old))

    def _retire(self, old: Station) -> None:
        if old in self.stations and len(self.stations) > 1:
            self.stations.remove(old)
            self._help("retire", old.crash())

    def check(self) -> None:
        """Raise what a part has died of."""
        for station in self.stations:
            station.check()
        for pole in self.poles:
            pole.check()
        for helper in self._helpers:
            if helper.done() and not helper.cancelled():
                helper.result()

    async def end(self) -> None:
        """Everything off; what was stored goes into the trace."""
        for helper in self._helpers:
            helper.cancel()
        await asyncio.gather(*self._helpers, return_exceptions=True)
        for pole in self.poles:
            pole.settle()
        for pole in self.poles:
            await pole.stop()
        for station in self.stations:
            if station.is_alive:
                await station.crash()
        await self._client.aclose()
        await copy_books(self.front, self.trace)
        await self.front.close()


@functools.cache
def template() -> Path:
    """A database file with every table and no row, made once per process."""
    path = Path(tempfile.mkdtemp(prefix="loa-template-")) / "loa.db"
    with opened(f"sqlite:///{path}") as engine:
        Base.metadata.create_all(engine)
    return path


def told(outcome: Outcome) -> dict[str, Any]:
    """The outcome as figures."""
    return {
        "seed": outcome.options.seed,
        "nodes": outcome.options.nodes,
        "hours": outcome.options.hours,
        "hash": outcome.hash,
        "records": len(outcome.records),
        "faults": dict(sorted(outcome.faults.items())),
        "forced": dict(sorted(outcome.forced.items())),
        "deeds": dict(sorted(outcome.deeds.items())),
        "refused": dict(sorted(outcome.refused.items())),
        "attempted": dict(sorted(outcome.attempted.items())),
        "violations": len(outcome.violations),
    }
