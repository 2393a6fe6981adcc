"""What goes wrong in a day, drawn from the seed or read from a file: one verb per failure, each written to the trace.

A fault file is a list of `{at_s, verb, node, args}` in YAML or JSON (`node`: index, id, or absent for the server's
faults); with one, no fault is drawn. `buggify` forces branches that hardly ever run: a publish that fails, a ring that
comes late.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from simulation.world.pole import Pole

if TYPE_CHECKING:
    from simulation.world.run import World

EVERY_S: Final = (600.0, 2_400.0)
"""Between two drawn faults."""
_ASSETS: Final = "assets"


class Fault(BaseModel):
    """One line of a fault file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_s: float = Field(ge=0)
    verb: str
    node: int | str | None = None
    args: dict[str, Any] = {}


def load(path: Path) -> tuple[Fault, ...]:
    """The faults of a file in order of time. Raises `ValueError` naming what is wrong."""
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
        faults = TypeAdapter(tuple[Fault, ...]).validate_python(tuple(told or ()))
    except (OSError, yaml.YAMLError, ValidationError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    for index, fault in enumerate(faults):
        if fault.verb not in Troubles.VERBS:
            raise ValueError(f"{path}: fault {index}: no such verb {fault.verb!r}; there are {Troubles.VERBS}")
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


class Troubles:
    """The faults of one world."""

    VERBS = (
        "cut",
        "mute",
        "deaf",
        "slow",
        "torn",
        "reboot",
        "dark",
        "brown_out",
        "clock_jump",
        "drift",
        "disk_full",
        "rot_asset",
        "rot_memory",
        "bad_download",
        "broker_restart",
        "broker_wipe",
        "server_crash",
        "server_cut",
        "double_leader",
        "rotate_key",
        "revoke_key",
    )
    _WEIGHTS = (5, 3, 3, 3, 3, 4, 3, 2, 3, 2, 2, 3, 2, 2, 1, 2, 2, 1, 2, 1, 1)
    _OF_SERVER = frozenset(
        {
            *("bad_download", "broker_restart", "broker_wipe", "server_crash", "server_cut", "double_leader"),
            *("rotate_key", "revoke_key"),
        }
    )

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world, self._chance = world, chance
        self.counts: Counter[str] = Counter()
        self.forced: Counter[str] = Counter()
        self._rare = random.Random(chance.getrandbits(64))  # noqa: S311  from the seed

    # -- when

    async def run(self, until_s: float) -> None:
        """Draw faults until then."""
        clock = self._world.time
        while True:
            await clock.sleep(self._chance.uniform(*EVERY_S))
            if clock.monotonic() >= until_s:
                return
            verb = self._chance.choices(self.VERBS, self._WEIGHTS)[0]
            await self.apply(verb, None, {})

    async def play(self, faults: tuple[Fault, ...]) -> None:
        """The faults of a file."""
        clock = self._world.time
        for fault in faults:
            await clock.sleep(fault.at_s - clock.monotonic())
            await self.apply(fault.verb, fault.node, fault.args)

    async def apply(self, verb: str, node: int | str | None, args: dict[str, Any]) -> None:
        """One fault. Raises `ValueError` for a node that does not exist."""
        self.counts[verb] += 1
        if verb in self._OF_SERVER:
            self._world.trace.note("fault", verb=verb, **args)
            await getattr(self, verb)(**args)
            return
        pole = self._pole(node)
        self._world.trace.note("fault", verb=verb, node=pole.node_id, **args)
        getattr(self, verb)(pole, **args)

    def _pole(self, node: int | str | None) -> Pole:
        poles = self._world.poles
        if node is None:
            return self._chance.choice(poles)
        for index, pole in enumerate(poles):
            if node in {index, pole.node_id}:
                return pole
        raise ValueError(f"no such node: {node!r}")

    def buggify(self, site: str, probability: float) -> bool:
        """Whether a rarely taken branch is forced here and now."""
        is_forced = self._rare.random() < probability
        self.forced[site] += is_forced
        return is_forced

    def fails(self, site: str, probability: float) -> bool:
        """The same, for what may trouble everybody for a while: the trace tells of it."""
        is_forced = self.buggify(site, probability)
        if is_forced:
            self._world.trace.note("fault", verb=site)
        return is_forced

    def _later(self, after_s: float, do: Callable[[], None]) -> None:
        self._world.later(after_s, do)

    def _for(self, for_s: float | None, low: float, high: float) -> float:
        return self._chance.uniform(low, high) if for_s is None else for_s

    # -- the way

    def cut(self, pole: Pole, for_s: float | None = None) -> None:
        """The SIM is out of credit, the fibre is cut."""
        self._world.ether.break_way(pole.node_id, self._for(for_s, 10, 7_200))

    def mute(self, pole: Pole, for_s: float | None = None) -> None:
        """What the node says goes nowhere; it hears."""
        self._world.ether.break_way(pole.node_id, self._for(for_s, 10, 1_800), down=False)

    def deaf(self, pole: Pole, for_s: float | None = None) -> None:
        """The node speaks and hears nothing."""
        self._world.ether.break_way(pole.node_id, self._for(for_s, 10, 1_800), up=False)

    def slow(self, pole: Pole, for_s: float | None = None, by_s: float | None = None) -> None:
        """A crowded cell: seconds on the way."""
        way = self._world.ether.way(pole.node_id)
        way.slow_until_s = self._world.time.monotonic() + self._for(for_s, 60, 3_600)
        way.slow_by_s = self._for(by_s, 0.5, 20)

    def torn(self, pole: Pole, for_s: float | None = None) -> None:
        """Out of order, and twice."""
        self._world.ether.way(pole.node_id).torn_until_s = self._world.time.monotonic() + self._for(for_s, 60, 3_600)

    # -- power

    def reboot(self, pole: Pole) -> None:
        """A power dip."""
        pole.cut_power(0.0)

    def dark(self, pole: Pole, for_s: float | None = None) -> None:
        """No power for a while."""
        pole.cut_power(self._for(for_s, 10, 7_200))

    def brown_out(self, pole: Pole, times: int | None = None) -> None:
        """The supply falls again and again, as soon as the amplifier draws."""
        count = self._chance.randrange(3, 9) if times is None else times
        at_s = 0.0
        for _ in range(count):
            self._later(at_s, lambda: pole.cut_power(self._chance.uniform(0.0, 5.0)))
            at_s += self._chance.uniform(6.0, 60.0)

    # -- clock

    def clock_jump(self, pole: Pole, ms: float | None = None) -> None:
        """The clock chip's battery is weak: seconds, minutes, or back to the year 2000."""
        if ms is None:
            ms = self._chance.choice((-1, 1)) * 10 ** self._chance.uniform(2.0, 8.0)
        pole.jump_clock(ms)

    def drift(self, pole: Pole, ppm: float | None = None) -> None:
        """Heat: the crystal runs away."""
        pole.set_drift(self._chance.uniform(-200.0, 200.0) if ppm is None else ppm)

    # -- disk

    def disk_full(self, pole: Pole, for_s: float | None = None) -> None:
        """Logs have filled the flash."""
        disk = pole.node.box.disk
        disk.is_full = True
        self._later(self._for(for_s, 60, 3_600), lambda: setattr(disk, "is_full", False))

    def rot_asset(self, pole: Pole) -> None:
        """A bit of a stored sound turns."""
        files = sorted((pole.node.box.disk.root / _ASSETS).glob("*.opus"))
        if files:
            self._rot(self._chance.choice(files))
            self._world.trace.note("rotted", node=pole.node_id)

    def rot_memory(self, pole: Pole) -> None:
        """A bit of the memory turns; one of its two slots, the worn one."""
        files = sorted(pole.node.box.disk.root.glob("memory*"))
        if files:
            self._rot(self._chance.choice(files))

    def _rot(self, path: Path) -> None:
        content = bytearray(path.read_bytes())
        if content:
            content[self._chance.randrange(len(content))] ^= 1 << self._chance.randrange(8)
            path.write_bytes(content)

    # -- broker and server

    async def bad_download(self, breaks: int | None = None, corrupt: int | None = None) -> None:
        """A proxy on the way breaks answers off, or changes them."""
        shelf = self._world.shelf
        shelf.break_next += self._chance.randrange(3) if breaks is None else breaks
        shelf.corrupt_next += self._chance.randrange(1, 3) if corrupt is None else corrupt

    async def broker_restart(self, for_s: float | None = None) -> None:
        """The broker is restarted and has kept its retained messages."""
        self._kill_broker(for_s, forget=False)

    async def broker_wipe(self, for_s: float | None = None) -> None:
        """The broker is restarted on an empty disk."""
        self._kill_broker(for_s, forget=True)

    def _kill_broker(self, for_s: float | None, *, forget: bool) -> None:
        ether = self._world.ether
        if not ether.is_up:
            return
        ether.kill(forget=forget)
        self._later(self._for(for_s, 1, 300), self._world.revive_broker)

    async def server_crash(self, for_s: float | None = None) -> None:
        """SIGKILL, and a start some time later."""
        await self._world.crash_server(self._for(for_s, 1, 1_200))

    async def server_cut(self, for_s: float | None = None) -> None:
        """The server cannot reach the broker."""
        self._world.cut_server(self._for(for_s, 5, 900))

    async def rotate_key(self) -> None:
        """A commune's key is replaced before it is due."""
        await self._world.change_key(self._chance, is_stolen=False)

    async def revoke_key(self) -> None:
        """A commune's key was stolen; the operator revokes it."""
        await self._world.change_key(self._chance, is_stolen=True)

    async def double_leader(self, for_s: float | None = None) -> None:
        """A second server takes over from one that stands still between two of its steps, which then goes on."""
        await self._world.freeze_server(self._chance.randrange(0, 12), self._for(for_s, 300, 3_600))
