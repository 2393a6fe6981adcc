"""Orders and configurations at a node: each order once, none that wakes a village, none that leads it out of reach."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from simulation.world.time import VirtualTime
from speaker_protocol import messages as wire
from speaker_protocol.rules import Trouble, Why
from speaker_protocol.signing import Kind
from tests.firmware_sim.siege import PATH, Siege
from tests.firmware_sim.workshop import on_virtual_time


def besieged(folder: Path, story: Callable[[Siege], Awaitable[None]]) -> None:
    async def told(time: VirtualTime) -> None:
        s = Siege(time, folder)
        await s.begin()
        await story(s)
        await s.end()

    on_virtual_time(told)


async def order(s: Siege, order_id: str, verb: wire.OrderVerb = wire.OrderVerb.TEST_TONE) -> None:
    letter = s.letter(Kind.ORDER)
    body = wire.OrderBody(order_id=order_id, verb=verb, seconds=3)
    await s.deliver(letter.topic, letter.but(body=body.encode()).payload)
    await s.pass_s(1)


def done(s: Siege) -> list[tuple[str, str | None]]:
    return [(one.entry_id, one.reason) for one in s.told() if one.kind is wire.ReportKind.ORDER_DONE]


def test_an_order_that_is_signed_anew_is_carried_out_once(tmp_path: Path):
    async def story(s: Siege) -> None:
        await order(s, "a")
        await order(s, "a")
        await order(s, "b")
        assert [one for one, _ in done(s)] == ["a", "b"]

    besieged(tmp_path, story)


def test_an_order_to_begin_anew_is_carried_out_once_over_the_boot_it_causes(tmp_path: Path):
    async def story(s: Siege) -> None:
        await order(s, "again", wire.OrderVerb.REBOOT)
        await s.pass_s(12)
        boots = s.node.boots
        await order(s, "again", wire.OrderVerb.REBOOT)
        await s.pass_s(12)
        assert s.node.boots == boots == 2

    besieged(tmp_path, story)


def test_no_tone_sounds_in_quiet_hours(tmp_path: Path):
    async def story(s: Siege) -> None:
        await order(s, "by day")
        minute = (s.time.now_ms() // 60_000 + 420) % 1440
        letter = s.letter(Kind.CONFIG, is_evil=False)
        night = wire.decode(wire.NodeConfigBody, letter.body).model_copy(
            update={"quiet_from_min": (minute - 1) % 1440, "quiet_to_min": (minute + 60) % 1440}
        )
        config = letter.but(body=night.encode())
        assert await s.said(config, lambda: s.firmware.situation.config == night)
        await order(s, "by night")
        assert done(s) == [("by day", Trouble.NO_OUTPUT.value), ("by night", Why.QUIET_HOURS.value)]

    besieged(tmp_path, story)


def test_nobody_moves_a_node_out_of_the_own_reach_where_nothing_could_call_it_back(tmp_path: Path):
    async def story(s: Siege) -> None:
        for signer, path in ((s.server, ("xa-1", "tinh-9")), (s.server, ("xa-9",)), (s.commune, ("xa-1", "tinh-9"))):
            letter = s.letter(Kind.CONFIG).but(signer=signer)
            body = wire.decode(wire.NodeConfigBody, letter.body).model_copy(update={"path": path})
            refused = await s.deliver(letter.topic, letter.but(body=body.encode()).payload)
            assert refused == {"out_of_scope": 1}
        assert s.firmware.gate.path == PATH
        assert await s.all_by_unit_good()

        letter = s.letter(Kind.CONFIG).but(signer=s.server)
        body = wire.decode(wire.NodeConfigBody, letter.body).model_copy(update={"path": ("xa-7", PATH[-1])})
        assert await s.deliver(letter.topic, letter.but(body=body.encode()).payload) == {}
        assert s.firmware.gate.path == ("xa-7", PATH[-1])

    besieged(tmp_path, story)
