"""The server's own clock goes wrong: who notices, what stops, what goes on, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from broadcast_server.control import timekeeping
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.emergency import Message, NewEmergency
from broadcast_server.domain.clock import to_ms
from broadcast_server.domain.errors import Refused, Unavailable
from broadcast_server.playout.clock_watch import AGREE_S, ClockWatch, Doubt
from broadcast_server.store import clocks, facts
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import AuditRow
from broadcast_server.store.words import EmergencyMode
from broadcast_server.supervise import SteadyClock, SystemClock, kernel_is_synchronised
from speaker_protocol.topics import UnitAlert
from tests.playout.rig import Room, a_room
from tests.support.alarms import a_duo
from tests.support.clock import FakeClock
from tests.support.village import DONG, LAN, at, daily


class Machine:
    """The machine's clock, which somebody may set."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.shift = clock, timedelta(0)

    def now(self) -> datetime:
        return self.clock.now() + self.shift

    def monotonic(self) -> float:
        return self.clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self.clock.sleep(seconds)


@dataclass
class Watched:
    room: Room
    machine: Machine
    steady: SteadyClock
    watch: ClockWatch
    kernel: list[bool | None]

    async def pass_s(self, seconds: float, step_s: float = 5.0) -> None:
        left_s = seconds
        while left_s > 0:
            await self.room.clock.advance(min(step_s, left_s))
            left_s -= step_s
            await self.watch.look()

    def nodes_say(self, ahead_s: float, *, count: int = 3, times: int = 2) -> None:
        """Nodes tell a status whose time is so far ahead of true time."""
        for _ in range(times):
            for number in range(count):
                true = self.room.clock.now()
                sent_ms = to_ms(true + timedelta(seconds=ahead_s))
                self.watch.heard_status(f"n{number}", sent_ms, 5.0, 0.0, self.steady.now(), retained=False)

    async def audited(self) -> list[str]:
        def read(session: Session) -> list[str]:
            rows = session.query(AuditRow).filter(AuditRow.verb.startswith("clock."))
            return [row.verb for row in rows.order_by(AuditRow.sequence)]

        return await self.room.store.read(read)


def a_watch(
    store: Store, machine: Machine, process: str = "here", kernel: list[bool | None] | None = None
) -> tuple[SteadyClock, ClockWatch]:
    steady = SteadyClock(machine)
    told = kernel or [None]
    watch = ClockWatch(
        process=process,
        host=f"host-{process}",
        store=store,
        clock=steady,
        kernel=lambda: told[0],
        is_database_elsewhere=False,
    )
    return steady, watch


@asynccontextmanager
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    async with a_room(tmp_path, serving=False) as room:
        machine = Machine(room.clock)
        kernel: list[bool | None] = [None]
        steady, watch = a_watch(room.store, machine, kernel=kernel)
        await watch.look()
        yield Watched(room, machine, steady, watch, kernel)


async def test_a_quiet_day_raises_no_doubt(tmp_path: Path):
    async with watched(tmp_path) as one:
        for _ in range(12):
            one.nodes_say(0.4)
            await one.pass_s(60)
        assert one.watch.is_trusted
        assert await one.audited() == []


@pytest.mark.parametrize("step_s", [-31_536_000, -3_600, -2.5, 2.5, 3_600, 315_360_000])
async def test_a_step_of_the_machines_clock_stops_the_signing_at_once_and_moves_nothing(tmp_path: Path, step_s: float):
    async with watched(tmp_path) as one:
        before = one.steady.now()
        one.machine.shift = timedelta(seconds=step_s)
        with pytest.raises(Unavailable) as refused:
            one.watch.check()
        assert refused.value.facts["doubts"] == [Doubt.STEPPED]
        assert one.steady.now() == before


async def test_a_step_that_goes_back_is_forgiven_after_a_minute(tmp_path: Path):
    async with watched(tmp_path) as one:
        one.machine.shift = timedelta(hours=1)
        await one.pass_s(10)
        one.machine.shift = timedelta(0)
        await one.pass_s(AGREE_S - 10)
        assert not one.watch.is_trusted
        await one.pass_s(15)
        assert one.watch.is_trusted
        assert await one.audited() == ["clock.doubtful", "clock.trusted_again"]


async def test_two_small_steps_add_up(tmp_path: Path):
    async with watched(tmp_path) as one:
        one.machine.shift = timedelta(seconds=1.5)
        await one.pass_s(3_600, 60)
        assert one.watch.is_trusted
        one.machine.shift += timedelta(seconds=1.5)
        assert not one.watch.is_trusted


async def test_nodes_that_kept_the_time_vouch_for_the_step_that_puts_it_right(tmp_path: Path):
    async with watched(tmp_path) as one:
        one.nodes_say(3_600)  # we were started an hour slow
        await one.pass_s(1)
        assert one.watch.status().doubts == (Doubt.NODES,)
        one.machine.shift = timedelta(hours=1)
        for _ in range(15):
            one.nodes_say(3_600)
            await one.pass_s(5)
        assert one.watch.is_trusted
        assert one.steady.now() == one.machine.now()


async def test_a_clock_that_no_witness_vouches_for_waits_for_the_operator(tmp_path: Path):
    async with watched(tmp_path) as one:
        one.machine.shift = timedelta(days=2)
        await one.pass_s(600)
        assert not one.watch.is_trusted
        with pytest.raises(Refused):
            await timekeeping.trust_clock(one.room.village.desk, LAN, "tôi đoán vậy")
        await timekeeping.trust_clock(one.room.village.desk, OPERATOR, "đã đối chiếu với đồng hồ GPS")
        await one.pass_s(5)
        assert one.watch.is_trusted
        assert one.steady.now() == one.machine.now()
        assert await one.audited() == ["clock.doubtful", "clock.trust", "clock.trusted_again"]
        one.machine.shift += timedelta(seconds=5)  # the word was for that step, not for the next
        assert not one.watch.is_trusted


async def test_a_kernel_that_found_its_time_server_vouches(tmp_path: Path):
    async with watched(tmp_path) as one:
        one.kernel[0] = False
        one.machine.shift = timedelta(seconds=40)
        await one.pass_s(90)
        assert not one.watch.is_trusted
        one.kernel[0] = True
        await one.pass_s(70)
        assert one.watch.is_trusted


async def test_a_start_before_what_was_written_last_is_not_believed(tmp_path: Path):
    async with watched(tmp_path) as one:
        await one.pass_s(30)
        slow = Machine(one.room.clock)
        slow.shift = -timedelta(minutes=10)
        _, reborn = a_watch(one.room.store, slow, "reborn")
        await reborn.look()
        assert reborn.status().doubts == (Doubt.BEHIND_STORE,)
        slow.shift = timedelta(0)  # set right: that is a step, but it leads where the store says
        await timekeeping.trust_clock(one.room.village.desk, OPERATOR, "chỉnh lại giờ máy chủ")
        await one.room.clock.advance(3)
        await reborn.look()
        assert reborn.is_trusted


async def test_two_processes_that_disagree_both_stop(tmp_path: Path):
    async with watched(tmp_path) as one:
        fast = Machine(one.room.clock)
        fast.shift = timedelta(seconds=20)
        _, other = a_watch(one.room.store, fast, "other")
        for _ in range(5):
            await one.room.clock.advance(4)
            await other.look()
            await one.watch.look()
        assert Doubt.PROCESSES in one.watch.status().doubts
        assert Doubt.PROCESSES in other.status().doubts


async def test_a_few_nodes_are_no_quorum_and_a_queue_that_empties_itself_is_no_clock(tmp_path: Path):
    async with watched(tmp_path) as one:
        one.nodes_say(0.0, count=9)
        await one.pass_s(20)
        for _ in range(3):
            one.nodes_say(-40.0, count=4)
            await one.pass_s(20)
        assert one.watch.is_trusted
        one.nodes_say(-40.0, count=9)
        await one.pass_s(5)
        assert one.watch.is_trusted  # once: it may have waited on its way
        await one.pass_s(15)
        one.nodes_say(-40.0, count=9)
        await one.pass_s(1)
        assert one.watch.status().doubts == (Doubt.NODES,)


async def test_a_crowd_that_is_late_by_all_kinds_of_delays_is_a_slow_network(tmp_path: Path):
    async with watched(tmp_path) as one:
        for _ in range(3):
            for number in range(20):
                late = one.steady.now() - timedelta(seconds=3 + 2.5 * number)
                one.watch.heard_status(f"n{number}", to_ms(late), 5.0, 0.0, one.steady.now(), retained=False)
            await one.pass_s(20)
        assert one.watch.is_trusted


async def test_a_nodes_question_tells_its_belief_before_it_is_answered(tmp_path: Path):
    async with watched(tmp_path) as one:
        now = one.steady.now()
        for node in ("a", "b", "c"):
            one.watch.heard_status(node, to_ms(now), 1.0, 5_000.0, now, retained=True)
            device = round((now + timedelta(seconds=60) - timedelta(seconds=5)).timestamp() * 1e9)
            one.watch.heard_question(node, device, now)
        await one.pass_s(1)
        assert one.watch.status().doubts == (Doubt.NODES,)


async def test_in_doubt_nobody_is_told_the_time_no_plan_leaves_and_an_emergency_does(tmp_path: Path):
    async with watched(tmp_path) as one:
        room = one.room
        server = await room.serve("watched", watch=one.watch)
        await room.announce(daily("17:00"))
        await room.turn()
        await room.all_say_how_they_are()
        obeyed = room.node.plans_obeyed
        answering = asyncio.create_task(server.inbox.answer(), name="test.answer")
        await room.node.ask_the_time()
        await room.clock.advance(0.1)
        assert server.inbox.answered == 1

        one.machine.shift = timedelta(minutes=5)
        await room.announce(daily("18:00"), title="Tin mới")
        await room.turn()
        await room.node.ask_the_time("00000000000000aa")
        await room.clock.advance(0.1)
        assert (server.inbox.answered, server.inbox.refused["clock_doubtful"]) == (1, 1)
        assert room.node.plans_obeyed == obeyed
        told = len(room.sent)

        asked = NewEmergency(DONG, EmergencyMode.REAL, Message(hazard="flood"), "Lũ", confirm="KHẨN CẤP")
        await (await a_duo(room.village.desk, DONG)).raise_(asked)
        await room.turn()
        assert room.sent[told:].count(str(UnitAlert(DONG))) == 1

        one.machine.shift = timedelta(0)
        await one.pass_s(AGREE_S + 5)
        await room.turn()
        assert room.node.plans_obeyed > obeyed
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


async def test_a_report_is_kept_in_doubt_and_acknowledged_after_it(tmp_path: Path):
    async with watched(tmp_path) as one:
        room = one.room
        await room.serve("watched", watch=one.watch)
        await room.announce(daily("17:00"))
        await room.turn()
        one.machine.shift = timedelta(minutes=-5)
        number = await room.node.report("order_done", "order-1", at(9))
        await room.turn()
        assert number not in room.node.acknowledged()
        one.machine.shift = timedelta(0)
        await one.pass_s(AGREE_S + 5)
        await room.node.report("order_done", "order-1", at(9), sequence=number)
        await room.turn()
        assert number in room.node.acknowledged()


async def test_what_people_see_of_it(tmp_path: Path):
    async with watched(tmp_path) as one:
        one.machine.shift = timedelta(hours=-1)
        await one.watch.look()
        (seen,) = await timekeeping.list_clocks(one.room.village.desk, OPERATOR)
        assert (seen.is_trusted, seen.doubts, seen.host) == (False, {"clock_stepped": -3600.0}, "host-here")
        floors = await one.room.store.read(clocks.beacons)
        assert floors["here"]["floor_ms"] is None
        assert await one.room.store.read(lambda session: facts.find(session, facts.CLOCK_TRUST)) is None


def test_this_machine_answers_for_itself():
    assert kernel_is_synchronised() in {True, False, None}
    steady = SteadyClock(SystemClock())
    assert abs(steady.step_s()) < 1.0
