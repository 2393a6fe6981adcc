"""A node's clock finds the server's time, keeps it, and does not believe everything."""

from __future__ import annotations

import itertools
import random

import pytest

from firmware_sim.clock import MS, DeviceClock, Discipline, Exchange
from speaker_protocol.messages import ClockSource
from tests.firmware_sim.world import HandTime


class Way:
    """A way to a server whose clock is true."""

    def __init__(self, offset_ms: float = 0.0, drift_ppm: float = 0.0, seed: int = 1) -> None:
        self.true = HandTime()
        self.device = DeviceClock(self.true, offset_ms=offset_ms, drift_ppm=drift_ppm)
        self.clock = Discipline()
        self.chance = random.Random(seed)

    def ask(self, there_ms: float | None = None, back_ms: float | None = None) -> bool:
        asked = self.device.now_ns()
        self.true.pass_s((self.chance.expovariate(1 / 3) + 0.3 if there_ms is None else there_ms) / 1000)
        received = self.true.now_ns()
        self.true.pass_s(0.0002)
        sent = self.true.now_ns()
        self.true.pass_s((self.chance.expovariate(1 / 3) + 0.3 if back_ms is None else back_ms) / 1000)
        return self.clock.take(Exchange(asked, received, sent, self.device.now_ns()))

    def burst(self) -> None:
        for _ in range(8):
            self.ask()
            self.true.pass_s(0.25)

    def error_ms(self) -> float:
        return (self.clock.server_ns(self.device.now_ns()) - self.true.now_ns()) / MS


@pytest.mark.parametrize(("offset_ms", "drift_ppm"), [(-500, 50), (500, -50), (86_400_000, 20)])
def test_a_burst_at_power_on_is_enough_for_a_start_within_50_ms(offset_ms: float, drift_ppm: float):
    for seed in range(20):
        way = Way(offset_ms, drift_ppm, seed)
        way.burst()
        assert abs(way.error_ms()) < 3.0
        assert way.clock.source(way.device.now_ns()) is ClockSource.SERVER


def test_the_drift_is_learned_and_carries_a_node_through_an_hour_without_network():
    way = Way(300, 50)
    way.burst()
    for _ in range(40):
        way.ask()
        way.true.pass_s(7)
    assert abs(way.error_ms()) < 1.0
    way.true.pass_s(3_600)
    assert abs(way.error_ms()) < 30  # 50 ppm uncorrected would be 180 ms
    assert way.clock.source(way.device.now_ns()) is ClockSource.HOLDOVER
    assert way.clock.uncertainty_ms(way.device.now_ns()) >= abs(way.error_ms()) / 2


def test_one_stalled_answer_moves_nothing():
    way = Way(100)
    way.burst()
    before = way.error_ms()
    assert way.ask(there_ms=1.0, back_ms=900.0)
    assert abs(way.error_ms() - before) < 0.5
    assert not way.ask(there_ms=1.0, back_ms=2_500.0)


def test_a_jump_of_the_device_clock_is_slewed_not_stepped_and_is_over_in_half_a_minute():
    way = Way()
    way.burst()
    way.device.jump(400)
    assert abs(way.error_ms() - 400) < 5
    way.ask(0.5, 0.5)
    way.true.pass_s(1)
    way.ask(0.5, 0.5)
    assert 300 < way.error_ms() < 401
    at_ns = way.device.now_ns()
    seen = [way.clock.server_ns(at_ns + step * 100 * MS) for step in range(100)]
    assert all(b > a for a, b in itertools.pairwise(seen))
    assert all(abs((b - a) / (100 * MS) - 1) < 0.02 for a, b in itertools.pairwise(seen))
    way.true.pass_s(30)
    assert abs(way.error_ms()) < 2


def test_a_jump_of_a_minute_is_stepped_once_two_signed_answers_say_so():
    way = Way()
    way.burst()
    way.device.jump(60_000)
    assert not way.ask()
    assert abs(way.error_ms()) > 59_000
    assert way.ask()
    assert abs(way.error_ms()) < 10


def test_after_a_reboot_the_node_knows_the_time_from_its_memory():
    way = Way(400, -30)
    way.burst()
    remembered = way.clock.remember(way.device.now_ns())
    assert remembered is not None
    way.true.pass_s(120)
    reborn = Discipline()
    assert reborn.recall(remembered, way.device.now_ns())
    way.clock = reborn
    assert abs(way.error_ms()) < 10
    assert reborn.source(way.device.now_ns()) is ClockSource.HOLDOVER


def test_a_device_clock_that_went_backwards_is_not_believed():
    way = Way()
    way.burst()
    remembered = way.clock.remember(way.device.now_ns())
    assert remembered is not None
    way.device.jump(-3_600_000)
    reborn = Discipline()
    assert not reborn.recall(remembered, way.device.now_ns())
    assert not reborn.is_known
    with pytest.raises(RuntimeError):
        reborn.server_ns(way.device.now_ns())


def test_on_4g_the_luckiest_question_and_the_luckiest_answer_carry_the_estimate():
    worst = 0.0
    for seed in range(12):
        way = Way(seed * 40 - 200, 50 - seed * 9, seed)
        for _ in range(50):
            up, down = (30 + min(270.0, way.chance.lognormvariate(3.0, 1.0)) for _ in range(2))
            way.ask(up, down)
            way.true.pass_s(6)
        worst = max(worst, abs(way.error_ms()))
        assert way.clock.uncertainty_ms(way.device.now_ns()) > abs(way.error_ms())
    assert worst < 8.0


def test_what_is_one_way_only_cannot_be_seen_and_stays_in_the_uncertainty():
    way = Way(0, 10)
    for _ in range(50):
        way.ask(50.0 + way.chance.expovariate(1 / 5), 10.0 + way.chance.expovariate(1 / 5))
        way.true.pass_s(6)
    assert 17 < abs(way.error_ms()) < 23  # half of the 40 ms between the two ways
    assert way.clock.uncertainty_ms(way.device.now_ns()) > abs(way.error_ms())


def test_a_jump_that_the_crystal_saw_moves_nothing():
    way = Way(120, 20)
    way.burst()
    before = way.error_ms()
    way.device.jump(3_600_000)
    way.clock.jumped(3_600_000 * MS)
    assert abs(way.error_ms() - before) < 0.01
    way.ask()
    assert abs(way.error_ms()) < 3
    assert way.clock.steps == 1


def test_an_estimate_that_was_fitted_over_seconds_only_is_not_trusted_for_days():
    way = Way(0, 40)
    way.burst()
    device_ns = way.device.now_ns()
    grown_ms = way.clock.uncertainty_ms(device_ns + 3_600_000 * MS) - way.clock.uncertainty_ms(device_ns)
    assert 150 < grown_ms < 181  # 50 ppm
    for _ in range(100):
        way.ask()
        way.true.pass_s(7)
    device_ns = way.device.now_ns()
    grown_ms = way.clock.uncertainty_ms(device_ns + 3_600_000 * MS) - way.clock.uncertainty_ms(device_ns)
    assert 15 < grown_ms < 60


def test_two_sources_that_contradict_each_other_widen_the_bound_until_one_is_confirmed():
    way = Way()
    way.burst()
    assert not way.clock.is_contradicted(way.device.now_ns())
    way.device.jump(60_000)
    assert not way.ask()
    assert way.clock.is_contradicted(way.device.now_ns())
    assert way.clock.uncertainty_ms(way.device.now_ns()) > 59_000
    assert way.ask()
    assert way.clock.uncertainty_ms(way.device.now_ns()) < 100


@pytest.mark.parametrize("shown_s", [0, 946_684_800, 1_700_000_000])
def test_a_battery_clock_that_shows_a_time_before_the_firmware_was_built_is_not_believed(shown_s: int):
    way = Way()
    way.burst()
    remembered = way.clock.remember(way.device.now_ns())
    assert remembered is not None
    way.device.jump(shown_s * 1000 - way.device.now_ns() / MS)
    assert not Discipline().recall(remembered, way.device.now_ns())
