"""Nodes whose time goes wrong, and what the street hears of it: by pulses that tell which second of what they are."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from firmware_sim.clock import DeviceClock
from firmware_sim.health import ClockState, Fault
from firmware_sim.lateness import Because
from simulation.world.time import VirtualTime
from simulation.world.time import run as run_virtually
from speaker_protocol import messages as wire
from speaker_protocol.signing import Kind
from speaker_protocol.topics import NodeAck
from tests.firmware_sim.sky import Heard, Sky
from tests.firmware_sim.station import segment

NODE = "n1"
LONG_S = 10


class Street:
    """One pole with recordings at given seconds of the story."""

    def __init__(self, folder: Path, starts_s: tuple[float, ...], *, seconds: int = LONG_S, **clock: float) -> None:
        self.time = VirtualTime(datetime(2026, 9, 21, 22, 10, tzinfo=UTC))
        self.sky = Sky(self.time, folder)
        self.clock = DeviceClock(self.time, **clock)
        self.zero_ms = self.sky.now_ms
        assets = [self.sky.asset(f"r{number}", seconds) for number in range(len(starts_s))]
        self.node = self.sky.node(NODE, chance=random.Random(1), clock=self.clock)
        self.starts_ms = [self.zero_ms + round(at_s * 1000) for at_s in starts_s]
        self.sky.plan(
            NODE,
            [segment(f"item-{n}", start, seconds, asset=assets[n]) for n, start in enumerate(self.starts_ms)],
        )

    async def until(self, at_s: float) -> None:
        await self.time.sleep(at_s - self.time.monotonic())

    async def off_for(self, seconds: float, rtc_moves_s: float) -> None:
        """Power off, in good order; the battery clock goes its own way; power on without a network."""
        self.sky.is_open = False
        await self.sky.switch_off(NODE)
        self.clock.jump(rtc_moves_s * 1000)
        await self.time.sleep(seconds)
        self.sky.switch_on(NODE)

    def network_returns(self) -> None:
        self.sky.is_open = True
        self.sky.links[NODE].again()

    def heard(self) -> tuple[Heard, ...]:
        return self.sky.microphones[NODE].pulses()

    def seconds_of(self, number: int) -> list[int]:
        return [pulse.second for pulse in self.heard() if pulse.number == number]

    def reports(self, kind: str, number: int) -> list[wire.ReportBody]:
        return [body for _, body, _ in self.sky.reports if (body.kind, body.entry_id) == (kind, f"item-{number}")]

    def faults(self) -> tuple[Fault, ...]:
        assert self.node.firmware is not None
        return self.node.firmware.machine().faults


def told(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    run_virtually(story())


def test_a_drifting_pole_is_steered_through_a_slew_without_a_lost_or_doubled_moment(tmp_path: Path):
    async def story() -> None:
        street = Street(tmp_path, (20.0,), seconds=100, drift_ppm=50.0)
        await street.until(60)
        street.sky.clock_error_ns = 300_000_000  # the station corrects itself: a slew for the node
        await street.until(125)
        await street.sky.close()
        pulses = street.heard()
        assert len(pulses) == 100
        gaps_s = [(b.at_ns - a.at_ns) / 1e9 for a, b in itertools.pairwise(pulses)]
        assert all(0.98 <= gap_s <= 1.02 for gap_s in gaps_s)
        before, after = pulses[30], pulses[-1]
        assert abs(before.at_ns / 1e6 - (street.starts_ms[0] + 30_500)) < 3
        assert abs(after.at_ns / 1e6 + 300 - (street.starts_ms[0] + 99_500)) < 3

    told(story)


def test_a_jump_of_the_devices_clock_in_the_middle_of_a_programme_is_not_heard(tmp_path: Path):
    async def story() -> None:
        street = Street(tmp_path, (20.0,), seconds=30)
        await street.until(33)
        street.clock.jump(-86_400_000)
        await street.until(41)
        street.clock.jump(7_200_000)
        await street.until(60)
        await street.sky.close()
        assert len(street.heard()) == 30
        errors_ms = [p.at_ns / 1e6 - (street.starts_ms[0] + 500 + n * 1000) for n, p in enumerate(street.heard())]
        assert max(map(abs, errors_ms)) < 25

    told(story)


def test_nobody_but_the_server_moves_a_nodes_time(tmp_path: Path):
    async def story() -> None:
        street = Street(tmp_path, (40.0,))
        await street.until(20)
        life = street.node.firmware
        assert life is not None
        street.sky.tells_time = False
        await street.until(45)
        for nonce, sent_ns in list(life._questions.items()):
            wrong_ns = street.sky.now_ns + 3_600_000_000_000
            lie = wire.TimeAnswerBody(nonce=nonce, asked_ns=sent_ns, received_ns=wrong_ns, sent_ns=wrong_ns)
            forged = street.sky.commune.seal(
                Kind.ACK, NODE, lie, issued_ms=street.sky.now_ms, expires_ms=street.sky.now_ms + 60_000
            )
            street.sky.links[NODE].deliver(str(NodeAck(NODE)), forged)
        await street.until(60)
        assert life.gate.refusals["kind_not_allowed"] > 0
        await street.sky.close()
        assert street.seconds_of(0) == list(range(LONG_S))
        assert abs(street.heard()[0].at_ns / 1e6 - (street.starts_ms[0] + 500)) < 25

    told(story)


@pytest.mark.parametrize("shows", [datetime(1970, 1, 1, tzinfo=UTC), datetime(2000, 1, 1, tzinfo=UTC)])
def test_a_dead_battery_clock_sounds_nothing_until_an_answer_comes(tmp_path: Path, shows: datetime):
    async def story() -> None:
        street = Street(tmp_path, (70.0, 130.0))
        await street.until(30)
        await street.off_for(5, shows.timestamp() - street.clock.now_ns() / 1e9)
        await street.until(90)
        assert Fault.CLOCK_UNKNOWN in street.faults()
        assert street.node.firmware is not None
        assert street.node.firmware.machine().clock is ClockState.UNKNOWN
        street.network_returns()
        await street.until(145)
        await street.sky.close()
        assert street.seconds_of(0) == []
        assert street.seconds_of(1) == list(range(LONG_S))

    told(story)


def test_without_a_network_a_restarted_pole_sounds_on_time_and_says_that_nobody_confirmed_it(tmp_path: Path):
    async def story() -> None:
        street = Street(tmp_path, (60.0, 100.0))
        await street.until(30)
        await street.off_for(5, 0.0)
        await street.until(75)
        assert Fault.CLOCK_UNCONFIRMED in street.faults()
        street.network_returns()
        await street.until(115)
        assert Fault.CLOCK_UNCONFIRMED not in street.faults()
        await street.sky.close()
        assert street.seconds_of(0) == street.seconds_of(1) == list(range(LONG_S))
        (unsure,), (sure,) = street.reports("started", 0), street.reports("started", 1)
        assert (unsure.reason, unsure.late_ms) == (Because.CLOCK_UNCONFIRMED, None)
        assert (sure.reason, sure.late_ms) == (None, None)

    told(story)


def test_a_pole_that_restarts_inside_its_item_says_late_by_because(tmp_path: Path):
    async def story() -> None:
        street = Street(tmp_path, (60.0,), seconds=40)
        await street.until(50)
        await street.off_for(20, 0.0)
        street.sky.is_open = True
        await street.until(115)
        await street.sky.close()
        (began,) = street.reports("started", 0)
        assert began.late_ms is not None
        assert 9_000 < began.late_ms < 16_000
        assert began.reason == Because.RESTARTED

    told(story)


def test_what_a_step_forward_passed_is_missed_by_name_and_not_played_after_the_fact(tmp_path: Path):
    async def story() -> None:
        street = Street(tmp_path, (200.0, 260.0, 640.0))
        await street.until(30)
        await street.off_for(560, -540.0)  # its battery clock stood still for nine minutes
        street.network_returns()
        await street.until(700)
        await street.sky.close()
        assert street.seconds_of(0) == street.seconds_of(1) == []
        assert street.seconds_of(2) == list(range(LONG_S))
        for number in (0, 1):
            (missed,) = street.reports("not_sounded", number)
            assert missed.reason == "clock_stepped"

    told(story)


def test_what_sounded_too_early_is_flagged_and_not_sounded_again_at_its_hour(tmp_path: Path):
    async def story() -> None:
        street = Street(tmp_path, (160.0, 300.0))
        await street.until(30)
        await street.off_for(10, 90.0)  # its battery clock ran ahead
        await street.until(100)
        street.network_returns()
        await street.until(320)
        await street.sky.close()
        times = Counter((pulse.number, pulse.second) for pulse in street.heard())
        assert set(times.values()) == {1}
        assert street.seconds_of(0) == street.seconds_of(1) == list(range(LONG_S))
        assert street.heard()[0].at_ns / 1e6 < street.starts_ms[0] - 80_000
        assert street.reports("started", 0)[0].reason == Because.CLOCK_UNCONFIRMED
        assert street.reports("finished", 0)[-1].heard_ms > 9_000

    told(story)
