"""Nodes nobody has approved yet, nodes that are two, nodes that are gone: what the engine room tells them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from sqlalchemy import select

from broadcast_server.control import devices, fleet
from broadcast_server.control.access import OPERATOR
from broadcast_server.playout.twins import Twins
from broadcast_server.store import deliveries, device_logs, places
from broadcast_server.store.session import Session
from broadcast_server.store.tables import AuditRow, DeliveryRow, NodePlanRow, NodeRow
from broadcast_server.store.words import NodeState
from speaker_protocol.messages import Link
from tests.playout.rig import NEIGHBOUR, NODE, Room, a_room
from tests.support.village import DONG, at, once


async def change(room: Room, state: NodeState, node_id: str = NODE) -> None:
    def write(session: Session) -> None:
        row = session.get(NodeRow, node_id)
        assert row is not None
        row.state, row.version = state, row.version + 1

    await room.store.begin(write)
    await room.turn()


async def state_of(room: Room, node_id: str = NODE) -> tuple[NodeState, str | None]:
    row = await room.store.read(lambda session: session.get(NodeRow, node_id))
    assert row is not None
    return row.state, row.state_reason


@pytest.mark.parametrize("state", [NodeState.PROBATION, NodeState.QUARANTINED])
async def test_a_node_in_doubt_has_an_empty_plan_and_is_told_to_be_silent(tmp_path: Path, state: NodeState):
    async with a_room(tmp_path) as room:
        await room.announce(once(at(17)))
        await room.turn()
        assert room.node.sounding(at(17)) is not None
        await change(room, state)

        assert room.node.plan is not None
        assert (room.node.plan.segments, room.node.sounding(at(17))) == ((), None)
        assert room.node.config is not None
        assert not room.node.config.active
        assert room.nodes[NEIGHBOUR].sounding(at(17)) is not None
        await change(room, NodeState.ACTIVE)
        assert room.node.sounding(at(17)) is not None
        assert room.node.config.active


@pytest.mark.parametrize("state", [NodeState.PROBATION, NodeState.QUARANTINED, NodeState.RETIRED])
async def test_a_node_in_doubt_is_not_among_those_an_alarm_must_reach(tmp_path: Path, state: NodeState):
    async with a_room(tmp_path) as room:
        await change(room, state)
        now = room.clock.now()

        def launch(session: Session) -> set[str]:
            deliveries.enlist(session, "alert:a", {DONG}, places.local_date(now), now=now, expires_at=None)
            return set(session.scalars(select(DeliveryRow.node_id)))

        assert await room.store.begin(launch) == {NEIGHBOUR}


async def test_the_code_reaches_the_node_in_its_signed_order_and_nowhere_else(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await change(room, NodeState.PROBATION)
        told: list[tuple[str, bytes]] = []
        room.server.bus.subscribe("loa/1/#", lambda message: told.append((message.topic, message.payload)))
        view = await devices.ask_binding(room.village.desk, OPERATOR, NODE)
        await room.turn()

        assert [one for _, _, one in room.node.orders] == [view.order_id]
        carried = [topic for topic, payload in told if b'"code"' in payload]
        assert carried == [f"loa/1/node/{NODE}/order"]


async def test_two_devices_that_take_turns_under_one_name_are_silenced_within_a_minute(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(once(at(17)))
        await room.turn()
        began_s = room.clock.monotonic()
        for boot in ("boot-1", "boot-copy") * 4:
            room.node.boot = boot
            await room.node.tell_status()
            await room.pass_time(5)
            if (await state_of(room))[0] is NodeState.QUARANTINED:
                break

        assert await state_of(room) == (NodeState.QUARANTINED, "two_places")
        assert room.clock.monotonic() - began_s <= 60
        await room.turn()
        assert room.node.sounding(at(17)) is None


async def test_a_node_that_loses_power_again_and_again_is_one_node(tmp_path: Path):
    async with a_room(tmp_path) as room:
        for number in range(30):
            await room.node.tell_status(link=Link.OFFLINE)
            room.node.boot = f"boot-{number}"
            await room.node.tell_status()
            await room.pass_time(1)

        assert await state_of(room) == (NodeState.ACTIVE, None)


async def test_a_log_told_in_two_versions_silences_the_node_at_once(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(once(at(17)))
        await room.turn()
        entry = "schedule@1780300800000"
        await room.node.report("started", entry, at(9), sequence=1, line=1, previous=None)
        first = hashlib.sha256(room.node.last_report).hexdigest()
        await room.node.report("started", entry, at(9), sequence=2, line=2, previous=first, boot="boot-copy")
        await room.turn()
        await room.node.report("started", entry, at(9), sequence=2, line=2, previous=first)
        await room.pass_time(2)

        assert await state_of(room) == (NodeState.QUARANTINED, "log_fork")
        await room.turn()
        assert room.node.sounding(at(17)) is None
        assert len(room.node.acknowledged()) == 3
        told = await room.store.read(
            lambda session: list(session.scalars(select(AuditRow.verb).where(AuditRow.subject == f"node/{NODE}")))
        )
        assert sorted(told) == ["node.cloned", "node.quarantine"]


async def test_a_node_that_lost_all_its_memory_counts_anew_and_is_no_copy_until_the_old_count_goes_on(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry = "schedule@1780300800000"

        async def say(line: int, previous: str | None, boot: str) -> str:
            await room.node.report("started", entry, at(9), line=line, previous=previous, boot=boot)
            await room.turn()
            return hashlib.sha256(room.node.last_report).hexdigest()

        old = None
        for line in (1, 2, 3):
            old = await say(line, old, "boot-1")
        anew = None
        for line in (1, 2, 3, 4, 5, 6):
            anew = await say(line, anew, "boot-2")
        assert await state_of(room) == (NodeState.ACTIVE, None)
        await say(4, old, "boot-1")
        assert await state_of(room) == (NodeState.QUARANTINED, "log_fork")
        told = await room.store.read(
            lambda session: list(session.scalars(select(AuditRow.verb).where(AuditRow.subject == f"node/{NODE}")))
        )
        assert told == ["node.log_begun_anew", "node.quarantine"]


async def test_a_released_node_goes_on_with_its_log(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry = "schedule@1780300800000"
        await room.node.report("started", entry, at(9), sequence=1, line=1, previous=None)
        first = hashlib.sha256(room.node.last_report).hexdigest()
        await room.turn()
        await room.node.report("started", entry, at(9), sequence=2, line=2, previous=first)
        second = hashlib.sha256(room.node.last_report).hexdigest()
        await room.turn()
        await room.node.report("started", entry, at(9), sequence=2, line=2, previous=first, boot="boot-copy")
        await room.turn()
        assert await state_of(room) == (NodeState.QUARANTINED, "log_fork")
        await room.store.begin(lambda session: device_logs.forgive(session, NODE))
        await change(room, NodeState.ACTIVE)
        await room.node.report("started", entry, at(9), sequence=3, line=3, previous=second)
        await room.turn()

        assert (await state_of(room))[0] is NodeState.ACTIVE


async def test_a_retired_node_leaves_nothing_on_the_broker(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(once(at(17)))
        await room.all_say_how_they_are()
        retained: dict[str, bytes] = {}

        def note(topic: str, payload: bytes) -> None:
            retained[topic] = payload

        room.server.bus.subscribe(f"loa/1/node/{NODE}/+", lambda message: note(message.topic, message.payload))
        await room.turn()
        assert {topic.rsplit("/", 1)[1] for topic, payload in retained.items() if payload} >= {
            "plan",
            "config",
            "status",
        }
        await fleet.retire_node(room.village.desk, OPERATOR, NODE)
        await room.turn()

        assert [topic for topic, payload in retained.items() if payload] == []
        left = await room.store.read(lambda session: list(session.scalars(select(NodePlanRow.node_id))))
        assert NODE not in left


def test_whoever_takes_turns_is_named_and_whoever_restarts_is_not():
    twins = Twins()
    for node, boots, every_s in (
        ("honest", "abcdefghijklmnop", 1.0),
        ("copied", "ababa", 10.0),
        ("copied thrice", "abcacb", 5.0),
        ("one word long on its way", "abab", 1.0),
        ("who repeats itself", "abaaaa", 1.0),
        ("slow", "ababababa", 31.0),
    ):
        for number, boot in enumerate(boots):
            twins.heard(node, boot, number * every_s)

    assert twins.found == {"copied", "copied thrice"}
    twins.settle({"copied", "copied thrice"})
    assert twins.found == frozenset()
