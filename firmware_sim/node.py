"""The box on the pole: `SpeakerNode` is the service, `.state` what one may look at, `.faults` the verbs that break
it.

The box has a clock, a disk, a horn and maybe a microphone that records; a `Firmware` lives in it from one power-on to
the next. Nothing but disk and clock survives a power cycle.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from firmware_sim.box import Box, Kit, MakeLink
from firmware_sim.clock import DeviceClock, Discipline
from firmware_sim.dry import Witness
from firmware_sim.faults import UseCases
from firmware_sim.firmware import Firmware
from firmware_sim.health import Machine
from firmware_sim.jitter import StreamCounts
from firmware_sim.ledger import Line
from firmware_sim.output import Horn, Recorder
from firmware_sim.player import AlertsInForce, Tag
from firmware_sim.store import Disk, Identity
from firmware_sim.trust import PlanInForce
from speaker_protocol.messages import NodeConfigBody
from speaker_protocol.rules import Trouble


@dataclass(frozen=True, slots=True)
class State:
    """A look at a node."""

    node_id: str
    boot_id: str
    boots: int
    is_up: bool
    plan: PlanInForce | None
    config: NodeConfigBody | None
    alerts: AlertsInForce
    refusals: dict[str, int]
    clock: Discipline
    machine: Machine
    sounding: Tag | None
    lines: tuple[Line, ...]
    reports_waiting: int
    reports_acknowledged: int
    ready_assets: frozenset[str]
    missing_assets: tuple[str, ...]
    streams: dict[str, StreamCounts]
    underruns: int


class SpeakerNode:
    """One simulated node."""

    def __init__(
        self,
        identity: Identity,
        *,
        kit: Kit,
        make_link: MakeLink,
        disk: Disk,
        chance: random.Random,
        clock: DeviceClock,
        recorder: Recorder | None = None,
        has_output: bool = True,
        witness: Witness | None = None,
    ) -> None:
        """`witness`: the output has no samples then but durations, and this one hears them (see `dry`)."""
        self.identity = identity
        self.box = Box(
            clock=clock,
            disk=disk,
            horn=Horn(),
            recorder=recorder,
            has_output=has_output and witness is None,
            is_dry=witness is not None,
            witness=witness,
        )
        self.faults = UseCases(self)
        self.firmware: Firmware | None = None
        self.boots = 0
        self._kit = kit
        self._make_link = make_link
        self._chance = chance
        self._power_off = asyncio.Event()
        self._is_orderly = False
        self._is_over = False
        self._dark_s = 0.0

    @property
    def node_id(self) -> str:
        """Its id."""
        return self.identity.node_id

    @property
    def state(self) -> State:
        """How it is now. Raises `RuntimeError` before the first power-on."""
        life = self.firmware
        if life is None:
            raise RuntimeError("the node has no power yet")
        return State(
            node_id=self.node_id,
            boot_id=life.boot_id,
            boots=self.boots,
            is_up=life.link.is_up,
            plan=life.plan,
            config=life.situation.config,
            alerts=life.situation.alerts,
            refusals=dict(life.gate.refusals),
            clock=life.clock,
            machine=life.machine(),
            sounding=life.ledger.sounding,
            lines=tuple(life.lines),
            reports_waiting=life.log.waiting,
            reports_acknowledged=life.log.acknowledged,
            ready_assets=life.situation.ready_assets,
            missing_assets=life.assets.missing,
            streams={stream: receiver.counts for stream, receiver in life.streams.items()},
            underruns=life.dac.underruns if life.dac is not None else 0,
        )

    @property
    def is_ready(self) -> bool:
        """Connected, on time, with a plan and everything the plan needs."""
        return self.firmware is not None and self.firmware.is_ready

    def power_cycle(self, *, is_orderly: bool = False) -> None:
        """Off and on again; orderly, the books are closed first."""
        self.cut_power(0.0)
        self._is_orderly = is_orderly

    def cut_power(self, for_s: float) -> None:
        """No power for so long: nobody says goodbye, and what was only in memory is gone."""
        if self.firmware is not None:
            self.firmware.catch_up()
        self._is_orderly, self._dark_s = False, for_s
        self._power_off.set()

    async def run(self) -> None:
        """Keep the node powered until cancelled; an ordered end closes books and recording."""
        try:
            while True:
                await self._one_life()
                dark_s, self._dark_s = self._dark_s, 0.0
                if dark_s:
                    self.firmware = None
                    await self._kit.true.sleep(dark_s)
        finally:
            self._is_over = True
            life = self.firmware
            if life is not None:
                await life.say_goodbye(Trouble.POWER_OFF.value)
            if self.box.recorder is not None:
                self.box.recorder.close(self._kit.true.now_ns())

    async def _one_life(self) -> None:
        self._power_off.clear()
        self.boots += 1
        life = self.firmware = Firmware(
            self.identity,
            self.box,
            self._kit,
            self._make_link,
            self._chance,
            on_reboot=lambda: self.power_cycle(is_orderly=True),
        )
        running = asyncio.create_task(life.run(), name=f"node.life[{self.node_id}]")
        off = asyncio.create_task(self._power_off.wait(), name=f"node.power[{self.node_id}]")
        try:
            await asyncio.wait({running, off}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (running, off):
                task.cancel()
            results = await asyncio.gather(running, off, return_exceptions=True)
            await life.settle()
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result
        if self._is_orderly:
            await life.say_goodbye(Trouble.REBOOT.value)
            self._is_orderly = False
