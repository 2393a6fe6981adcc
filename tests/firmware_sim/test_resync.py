"""A node that lost its memory: it obeys nothing, an emergency neither, before the server told it below what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from simulation.world.time import VirtualTime
from speaker_protocol import messages as wire
from speaker_protocol.signing import Kind
from tests.firmware_sim.siege import Siege
from tests.firmware_sim.station import PATH
from tests.firmware_sim.workshop import HOUR_MS, on_virtual_time


def besieged(folder: Path, story: Callable[[Siege], Awaitable[None]]) -> None:
    async def told(time: VirtualTime) -> None:
        s = Siege(time, folder)
        await s.begin()
        await s.all_by_unit_good()
        await s.all_by_unit_good()
        await story(s)
        await s.end()

    on_virtual_time(told)


async def wiped(s: Siege) -> None:
    """An empty flash, and a server that does not answer yet what is asked for."""
    await s.end()
    s.tells_floors = False
    s.node = s._new_node()
    s._life = asyncio.create_task(s.node.run(), name="siege.node")
    await s.pass_s(30)


def test_without_floors_it_is_on_time_and_obeys_nothing(tmp_path: Path):
    async def story(s: Siege) -> None:
        await wiped(s)
        assert s.firmware.clock.is_known
        assert s.firmware.gate.is_resyncing
        assert s.firmware.plan is None
        for kind in (Kind.PLAN, Kind.CONFIG, Kind.ALERTS, Kind.ORDER):
            letter = s.letter(kind)
            await s.deliver(letter.topic, letter.payload)
        await s.pass_s(30)
        assert s.firmware.plan is None
        assert s.firmware.situation.config is None
        assert not s.firmware.situation.alerts.alerts
        assert not s.firmware._memory.done_orders
        assert s.status is not None
        assert s.status.is_resyncing

        s.tells_floors = True
        await s.pass_s(15)
        assert not s.firmware.gate.is_resyncing
        assert await s.all_by_unit_good()

    besieged(tmp_path, story)


def test_the_floors_of_another_question_do_not_open_it(tmp_path: Path):
    async def story(s: Siege) -> None:
        await wiped(s)
        letter = s.letter(Kind.ACK)
        for nonce in ("0" * 16, "f" * 16):
            body = wire.FloorsBody(nonce=nonce, floors=())
            counted = await s.deliver(letter.topic, letter.but(body=body.encode()).payload)
            assert counted == {"unasked_floors": 1}
        assert s.firmware.gate.is_resyncing

        assert s.question is not None
        body = wire.FloorsBody(nonce=s.question.nonce, floors=())
        for answered in (True, False):  # once is enough: afterwards it is nobody's answer
            counted = await s.deliver(letter.topic, letter.but(body=body.encode()).payload)
            assert ("unasked_floors" not in counted) is answered
        assert not s.firmware.gate.is_resyncing

    besieged(tmp_path, story)


def test_what_lies_below_the_floors_is_the_past_and_what_lies_at_them_is_what_is_retained(tmp_path: Path):
    async def story(s: Siege) -> None:
        plan = s.obeyed(Kind.PLAN)
        past = [(topic, raw) for topic, raw in s.past if not topic.endswith("/keys")]
        await s.wipe()
        assert s.firmware.plan is not None
        assert s.firmware.plan.order == plan
        for topic, raw in past:
            counted = await s.deliver(topic, raw)
            assert counted.keys() <= {"older", "expired", "unasked_time"}, topic
        assert s.firmware.plan.order == plan

    besieged(tmp_path, story)


def test_a_reboot_is_no_loss_of_memory(tmp_path: Path):
    async def story(s: Siege) -> None:
        s.tells_floors = False
        await s.reboot(dark_s=3.0)
        assert not s.firmware.gate.is_resyncing
        assert s.firmware.plan is not None

    besieged(tmp_path, story)


def test_what_a_revoked_key_said_is_in_force_no_more(tmp_path: Path):
    async def story(s: Siege) -> None:
        alert = s.letter(Kind.ALERTS)
        assert await s.said(alert, lambda: bool(s.firmware.situation.alerts.alerts))
        assert s.firmware.plan is not None
        s.retired, s.revocations = [*s.retired, s.commune], s.revocations + 1
        s.keys()
        await s.settle()
        assert s.firmware.plan is None
        assert not s.firmware.situation.alerts.alerts
        del s.retained[s.topic_of(Kind.PLAN)], s.retained[s.topic_of(Kind.ALERTS)]
        s.node.power_cycle(is_orderly=True)
        await s.pass_s(12)
        assert s.firmware.plan is None

    besieged(tmp_path, story)


def test_a_plan_ends_with_the_delegation_of_who_signed_it(tmp_path: Path):
    async def story(s: Siege) -> None:
        until_ms = s.time.now_ms() + HOUR_MS
        body = s.delegation(s.stranger, PATH[0], ("PLAN",), valid_until_ms=until_ms)
        letter = s.letter(Kind.KEYS)
        await s.deliver(letter.topic, letter.but(body=body.encode(), signer=s.authority).payload)
        plan = s.letter(Kind.PLAN, is_evil=False).but(signer=s.stranger)
        assert await s.said(plan, lambda: s.firmware.plan is not None and s.firmware.plan.order == (1, plan.sequence))
        assert s.firmware.plan is not None
        assert s.firmware.plan.valid_until_ms == until_ms

    besieged(tmp_path, story)


def test_the_gate_itself_admits_nothing_without_floors(tmp_path: Path):
    """Whatever asks it: the inbox holds back already, a carried file does not."""

    async def story(s: Siege) -> None:
        await wiped(s)
        gate, now_ms = s.firmware.gate, s.time.now_ms()
        before = gate.snapshot()
        assert gate.plan(s.letter(Kind.PLAN).payload, now_ms) is None
        assert gate.config(s.letter(Kind.CONFIG).payload, now_ms) is None
        assert gate.alerts(PATH[0], s.letter(Kind.ALERTS).payload, now_ms) is None
        assert gate.refusals["resync"] == 3
        assert gate.snapshot() == before

    besieged(tmp_path, story)


def test_what_is_obeyed_is_stored_before_it_is_acted_upon(tmp_path: Path):
    """The power goes in the very moment; nothing of it comes a second time."""

    async def story(s: Siege) -> None:
        letter = s.letter(Kind.PLAN, is_evil=False)
        await s.deliver(letter.topic, letter.payload)
        assert s.firmware.plan is not None
        s.is_reachable = False
        s.node.cut_power(1.0)
        await s.time.sleep(3)
        assert s.firmware.plan is not None
        assert s.firmware.plan.order == (letter.epoch, letter.sequence)

    besieged(tmp_path, story)
