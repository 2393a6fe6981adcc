"""Power that comes and goes: what a node makes of its own boots, and of an item the power cut in two."""

from __future__ import annotations

from pathlib import Path

import pytest

from firmware_sim.boots import SECOND, Boots, Return, return_of
from firmware_sim.health import CATALOGUE, ClockState, Fault, HealthState, LinkState, Signs, machine
from simulation.world.time import VirtualTime
from speaker_protocol import messages as wire
from speaker_protocol.messages import AudioState, ClockSource, ReportKind
from speaker_protocol.rules import Level
from tests.firmware_sim.workshop import Workshop, on_virtual_time, segment

A, B = (700, 1600), (500, 900)


def after(*seconds_ago: float) -> Boots:
    now_ns = 10_000 * SECOND
    return Boots.after([now_ns - round(ago * SECOND) for ago in seconds_ago], now_ns)


def test_three_boots_in_ten_minutes_are_one_too_many():
    assert not after().is_looping
    assert not after(30).is_looping
    assert after(30, 599).is_looping
    assert not after(30, 601).is_looping
    assert after(-5, -9).is_looping  # the clock was set back between them


def test_safe_mode_lasts_five_minutes_and_an_orderly_end_does_not_count():
    boots = after(30, 60)
    at_ns = boots.at_ns[-1]
    assert boots.is_safe_mode(at_ns + 299 * SECOND)
    assert not boots.is_safe_mode(at_ns + 300 * SECOND)
    assert len(boots.without_this()) == 2


@pytest.mark.parametrize(
    ("end_ms", "boots", "expected"),
    [
        (10_000, after(), Return.RESUME),
        (9_999, after(), Return.PARTIAL),
        (60_000, after(1, 2), Return.PARTIAL),
        (0, after(), Return.OVER),
        (None, after(), Return.OVER),
    ],
)
def test_what_becomes_of_an_item_the_power_cut_in_two(end_ms: int | None, boots: Boots, expected: Return):
    assert return_of(end_ms, 0, boots) is expected


def test_the_four_answers_are_independent():
    fine = Signs(is_up=True, clock=ClockSource.SERVER, has_plan=True)
    assert machine(fine).faults == ()
    assert (machine(fine).link, machine(fine).health) == (LinkState.ONLINE, HealthState.OK)
    told = machine(Signs(is_connecting=True, clock=ClockSource.HOLDOVER, is_safe_mode=True, audio=AudioState.EMERGENCY))
    assert (told.link, told.clock) == (LinkState.CONNECTING, ClockState.HOLDOVER)
    assert (told.audio, told.health) == (AudioState.EMERGENCY, HealthState.SAFE)
    assert machine(Signs(clock=ClockSource.SERVER, uncertainty_ms=60_001)).clock is ClockState.UNKNOWN
    assert set(CATALOGUE) == set(Fault)


def test_an_item_of_which_enough_is_left_goes_on_at_the_wall_clock_and_counts_what_was_noted(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        shop = Workshop(time, tmp_path)
        office = shop.office
        sha = office.asset(A, 90)
        office.keys()
        office.config()
        t0 = shop.now_ms + 30_000
        office.plan(segment("long", t0, 90, asset=sha))
        await shop.pass_s(30 + 40)
        office.is_reachable = False
        shop.node.power_cycle()
        await shop.pass_s(60)
        office.is_reachable = True
        await shop.pass_s(70)
        (first, second) = await shop.sounded(t0)
        assert first[0] == second[0] == A
        assert 39 < first[2] < 41
        assert 40 < second[1] < 45
        assert abs(second[2] - 90) < 0.1
        finished = [body for body in office.told() if body.kind is ReportKind.FINISHED]
        assert [body.reason for body in finished] == ["power_lost"]
        assert 70_000 < finished[0].heard_ms < 90_000  # the last half minute before the cut was not written down
        assert [body.line for body in office.told()] == [1, 2, 3]

    on_virtual_time(story)


def test_an_item_of_which_too_little_is_left_stays_unfinished_and_says_so(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        shop = Workshop(time, tmp_path)
        office = shop.office
        sha = office.asset(A, 50)
        office.keys()
        office.config()
        t0 = shop.now_ms + 30_000
        office.plan(segment("long", t0, 50, asset=sha), segment("next", t0 + 50_000, 5, asset=sha))
        await shop.pass_s(30 + 42)
        shop.node.power_cycle()
        await shop.pass_s(30)
        found = await shop.sounded(t0)
        assert [(round(start), round(end)) for _, start, end in found] == [(0, 42), (50, 55)]
        told = [(body.kind, body.entry_id, body.reason) for body in office.told() if body.entry_id == "long"]
        assert (
            told[-1] == (ReportKind.FINISHED, "long", "power_lost")
            or (
                ReportKind.FINISHED,
                "long",
                "power_lost",
            )
            in told
        )
        finished = next(body for body in office.told() if body.kind is ReportKind.FINISHED and body.entry_id == "long")
        assert finished.heard_ms >= 29_000

    on_virtual_time(story)


def test_a_brown_out_loop_keeps_the_amplifier_for_emergencies(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        shop = Workshop(time, tmp_path)
        office = shop.office
        sha = office.asset(A, 60)
        office.keys()
        office.config()
        await shop.settle()
        for _ in range(2):
            shop.node.faults.brown_out(for_s=1, reboots=True)
            await shop.pass_s(20)
        booted = shop.now_ms - 20_000
        assert shop.node.state.machine.health is HealthState.SAFE
        t0 = shop.now_ms + 10_000
        office.plan(segment("long", t0, 600, asset=sha))
        await shop.pass_s(40)
        assert shop.node.state.sounding is None
        raised = shop.now_ms
        office.alert(
            wire.AlertBody(alert_id="a1", level=Level.EMERGENCY_COMMUNE, issued_ms=raised, expires_ms=raised + 20_000)
        )
        await shop.pass_s(8)
        assert shop.node.state.sounding is not None
        office.alert()
        await shop.pass_s((booted + 299_000 - shop.now_ms) / 1000)
        assert shop.node.state.sounding is None
        await shop.pass_s(5)
        assert shop.node.state.machine.health is not HealthState.SAFE
        assert any(body.reason == "safe_mode" for body in office.told() if body.entry_id == "long")
        await shop.stop()

    on_virtual_time(story)


def test_three_orderly_starts_are_no_brown_out_loop(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        shop = Workshop(time, tmp_path)
        for _ in range(4):
            await shop.pass_s(10)
            shop.node.power_cycle(is_orderly=True)
        await shop.pass_s(10)
        assert shop.node.state.machine.health is not HealthState.SAFE
        await shop.stop()

    on_virtual_time(story)


def test_while_the_supply_sags_nothing_is_written_and_the_amplifier_is_off(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        shop = Workshop(time, tmp_path)
        office = shop.office
        sha = office.asset(A, 40)
        office.keys()
        office.config()
        t0 = shop.now_ms + 10_000
        office.plan(segment("long", t0, 40, asset=sha))
        await shop.pass_s(20)
        before = {path: path.stat().st_mtime_ns for path in shop.disk.root.iterdir()}
        shop.node.faults.brown_out(for_s=8)
        await shop.pass_s(1)
        office.config(max_gain_db=-3)
        await shop.pass_s(5)
        assert {path: path.stat().st_mtime_ns for path in shop.disk.root.iterdir()} == before
        assert "power_low" in shop.faults
        await shop.pass_s(40)
        found = await shop.sounded(t0)
        assert len(found) == 2
        assert 9 < found[0][2] < 12.5
        assert 17 < found[1][1] < 20
        assert {path: path.stat().st_mtime_ns for path in shop.disk.root.iterdir()} != before

    on_virtual_time(story)


def test_a_cache_that_expired_stops_the_schedule_by_name_and_lets_an_emergency_through(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        shop = Workshop(time, tmp_path)
        office = shop.office
        sha = office.asset(A, 5)
        office.keys()
        office.config()
        office.plan(segment("late", shop.now_ms + 3_600_000, 5, asset=sha), days=0.02)
        await shop.pass_s(3_700)
        assert "plan_expired" in shop.faults
        raised = shop.now_ms
        office.alert(
            wire.AlertBody(alert_id="a1", level=Level.EMERGENCY_COMMUNE, issued_ms=raised, expires_ms=raised + 60_000)
        )
        await shop.pass_s(8)
        assert shop.node.state.sounding is not None
        assert shop.node.state.sounding.alert_id == "a1"
        await shop.stop()
        assert not any(body.entry_id == "late" and body.kind is ReportKind.STARTED for body in office.told())

    on_virtual_time(story)
