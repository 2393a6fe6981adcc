"""The engine room and its keys: what nodes are told of them, what a stolen one costs, what a wiped node is told."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from broadcast_server.control import signing_keys
from broadcast_server.control.access import OPERATOR
from broadcast_server.domain.clock import to_ms
from broadcast_server.signer import keys
from broadcast_server.signer.register import KeyRegister, KeyRole
from broadcast_server.store import facts
from broadcast_server.store.tables import AuditRow
from speaker_protocol import messages as wire
from speaker_protocol.topics import NodeAck, NodeConfig, NodeOrder, NodePlan, UnitAlert
from tests.playout.rig import FAR, NODE, Room, a_room
from tests.support.clock import FakeChance
from tests.support.village import DONG, PROVINCE, TAY, at, once


async def revoked(room: Room, role: KeyRole, unit: str) -> str:
    """As `broadcast-server keys revoke` does it; the key's id."""
    register, now_ms = KeyRegister(room.keys, chance=FakeChance(5)), to_ms(room.clock.now())
    (key,) = [key for key in register.book.of(role, unit) if key.key_id not in register.book.revoked]

    def do() -> dict[str, Any]:
        with register.change() as book:
            keys.revoke(register, book, key.key_id, at_ms=now_ms, now_ms=now_ms, reason="máy bị mất")
        return {"key_id": key.key_id}

    await signing_keys.change(room.village.desk, OPERATOR, "keys.revoke", {}, do, must_resign=lambda _: True)
    return key.key_id


async def test_a_stolen_communes_key_is_refused_within_a_turn_and_everything_is_signed_anew(tmp_path: Path):
    async with a_room(tmp_path / "keys") as room:
        await room.announce(once(at(10)))
        await room.turn()
        node, before = room.node, room.node.plans_obeyed
        key_id = await revoked(room, KeyRole.UNIT, DONG)
        await room.turn()

        assert node.ring.is_revoked(bytes.fromhex(key_id), node.now_ms)
        assert node.ring.rl_version == 1
        assert node.plans_obeyed == before + 1, "the same plan, by the new key"
        assert not node.refused
        told = await signing_keys.known(room.village.desk, OPERATOR)
        assert told.nodes == 3
        verbs = await room.store.read(lambda session: [row.verb for row in session.query(AuditRow)])
        assert [verb for verb in verbs if verb.startswith("keys.")] == [
            "keys.delegated",
            "keys.revoke.asked",
            "keys.revoke",
            "keys.delegated",
        ]


async def test_a_rotated_key_costs_no_plan_a_second_message(tmp_path: Path):
    async with a_room(tmp_path / "keys") as room:
        register = KeyRegister(room.keys, chance=FakeChance(6))

        def do() -> dict[str, Any]:
            with register.change() as book:
                made = keys.rotate(register, book, KeyRole.UNIT, DONG, to_ms(room.clock.now()))
            return {"key_id": made.key_id}

        sent = len(room.sent)
        done = await signing_keys.change(room.village.desk, OPERATOR, "keys.rotate", {}, do)
        await room.turn()
        assert room.node.ring.known(bytes.fromhex(done["key_id"])) is not None
        assert room.plan_topics(sent) == []


async def test_what_ends_soon_is_told_before_it_ends(tmp_path: Path):
    async with a_room(tmp_path / "keys") as room:
        now = room.clock.now()
        for ahead, roles in ((0, set()), (70, {"authority"}), (95, {"authority", "server", "time", "unit"})):
            found = await room.store.read(
                lambda session, when=now + timedelta(days=ahead): signing_keys.ending(session, when)  # type: ignore[misc]
            )
            assert {one.role for one in found} >= roles or ahead == 0
            assert ahead or not found
        held = await room.store.read(lambda session: facts.get(session, facts.KEYS_HELD))
        assert set(held["ends"]) == {"authority", "server", "time", "unit"}


async def test_a_node_without_memory_is_told_where_each_of_its_topics_stands(tmp_path: Path):
    async with a_room(tmp_path / "keys") as room:
        await room.announce(once(at(10)))
        await room.turn()
        floors = room.server.conductor.floors(NODE)
        assert floors is not None
        marks = {name.rpartition(" ")[0]: mark[:2] for name, mark in room.node.marks.snapshot().items()}
        mine = {str(NodePlan(NODE)), str(NodeConfig(NODE)), str(UnitAlert(DONG)), str(UnitAlert(PROVINCE))}
        assert set(floors.by_topic) == mine | {str(NodeOrder(NODE))}
        for topic in mine:
            assert floors.by_topic[topic] == marks[topic], topic
        assert floors.by_topic[str(NodeOrder(NODE))] >= max(floors.by_topic[topic] for topic in mine)
        assert room.server.conductor.floors("nobody") is None
        far = room.server.conductor.floors(FAR)
        assert far is not None
        assert str(UnitAlert(TAY)) in far.by_topic


async def test_the_floors_come_over_the_nodes_own_nonce_signed_by_the_time_key(tmp_path: Path):
    async with a_room(tmp_path / "keys") as room:
        payload = await room.server.inbox.floors_for(
            NODE, wire.TimeQuestionBody(nonce="00112233aabbccdd", sent_ns=1, resync=True)
        )
        assert payload is not None
        await room.server.bus.publish(str(NodeAck(NODE)), payload)
        await room.clock.advance(0)
        (answer,) = [ack for ack in room.node.acks if isinstance(ack, wire.FloorsBody)]
        assert answer.nonce == "00112233aabbccdd"
        plain = wire.TimeQuestionBody(nonce="00112233aabbccdd", sent_ns=1)
        assert await room.server.inbox.floors_for(NODE, plain) is None
        stranger = wire.TimeQuestionBody(nonce="00112233aabbccdd", sent_ns=1, resync=True)
        assert await room.server.inbox.floors_for("nobody", stranger) is None


async def test_who_does_not_lead_tells_no_floors(tmp_path: Path):
    async with a_room(tmp_path / "keys") as room:
        second = await room.serve("b")
        await room.turn()
        assert room.server.conductor.floors(NODE) is not None
        assert second.conductor.floors(NODE) is None
