"""What nodes say: kept before it is answered, believed only when signed, and nobody's nonsense costs others a word."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import func, select

from broadcast_server.domain.errors import Unavailable
from broadcast_server.playout import inbox as inbox_module
from broadcast_server.store.session import Session
from broadcast_server.store.tables import LinkSpanRow, NodeRow, NodeStatusRow, ReportRow
from speaker_protocol.messages import ItemReadiness, Link, TimeAnswerBody
from tests.playout.rig import FAR, NEIGHBOUR, NODE, Room, a_room
from tests.support.village import at

ENTRY = "schedule@1780300800000"
MINUTE = timedelta(minutes=1)


async def count(room: Room, table: type) -> int:
    found = await room.store.read(lambda session: session.scalar(select(func.count()).select_from(table)))
    return found or 0


async def flush(room: Room) -> None:
    await room.clock.advance(0)
    await room.server.inbox.flush()
    await room.clock.advance(0)


# -- statuses ---------------------------------------------------------------------------------------------------------


async def test_what_a_hundred_statuses_say_is_one_commit_and_rings_no_bell(tmp_path: Path):
    async with a_room(tmp_path) as room:
        commits = []
        begin = room.store.begin
        rings = room.store.doorbell.rings

        async def counted(work, **how):
            commits.append(work)
            return await begin(work, **how)

        room.server.inbox._store = type("Counting", (), {"begin": staticmethod(counted), "read": room.store.read})()
        for _ in range(30):
            for node in room.nodes.values():
                await node.tell_status()
        await flush(room)

        assert len(commits) == 1
        assert room.store.doorbell.rings == rings
        assert await count(room, NodeStatusRow) == 3


async def test_the_coming_items_stay_as_told_until_they_are_told_anew(tmp_path: Path):
    async def due(room: Room) -> list[bool]:
        row = await room.store.read(lambda session: session.get(NodeStatusRow, NODE))
        assert row is not None
        assert "due" not in row.body
        return [one["ready"] for one in (row.due or {}).get("items", ())]

    async with a_room(tmp_path) as room:
        first = (ItemReadiness(entry_id="a@1", start_ms=1, ready=False),)
        await room.node.tell_status(due=first)
        await room.node.tell_status(sounding="x")  # in the same moment, and without the list
        await flush(room)
        assert await due(room) == [False]
        await room.node.tell_status(sounding="y")
        await flush(room)
        assert await due(room) == [False]
        await room.node.tell_status(due=(*first, ItemReadiness(entry_id="b@2", start_ms=2, ready=True)))
        await flush(room)
        assert await due(room) == [False, True]


async def test_spans_of_reach_open_and_close_with_the_will(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.clock.advance(60)
        await room.node.tell_status(link=Link.OFFLINE)
        await flush(room)
        await room.clock.advance(60)
        await room.node.tell_status()
        await flush(room)
        await room.node.tell_status()
        await flush(room)

        def spans(session: Session) -> list[tuple[object, object]]:
            rows = session.execute(
                select(LinkSpanRow.since, LinkSpanRow.until)
                .where(LinkSpanRow.node_id == NODE)
                .order_by(LinkSpanRow.since)
            )
            return [tuple(row) for row in rows]

        start = at(9)
        assert await room.store.read(spans) == [(start, start + MINUTE), (start + 2 * MINUTE, None)]


async def test_a_stranger_is_counted_and_the_register_is_not_read_for_each_of_its_words(tmp_path: Path):
    async with a_room(tmp_path) as room:
        reads = 0
        read = room.store.read

        async def counted(work):
            nonlocal reads
            reads += 1
            return await read(work)

        room.server.inbox._store = type("Counting", (), {"begin": room.store.begin, "read": staticmethod(counted)})()
        for _ in range(10):
            await room.node.bus.publish("loa/1/node/stranger/status", b'{"link":"online","boot_id":"b"}', retain=True)
            await flush(room)
            await room.clock.advance(0.2)

        assert room.server.inbox.refused["unknown_node"] == 10
        assert reads <= 2


async def test_a_node_enrolled_this_second_is_heard_at_its_first_word(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.node.tell_status()
        await flush(room)
        fresh = await room.enrol("n9", "c2-20195", "20195")
        await fresh.tell_status()
        await flush(room)

        assert await count(room, NodeStatusRow) == 4


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "status_body"),
        (b"\xff\x00garbage", "status_body"),
        (b'{"link":"maybe","boot_id":"b"}', "status_body"),
        (b'{"link":"online","boot_id":"b","highest":[1,99999999999999999999]}', "status_range"),
        (b'{"link":"online","boot_id":"a\\u0000b"}', "status_range"),
        (b'{"link":"online","boot_id":"b","clock":{"source":"server","uncertainty_ms":NaN}}', "status_range"),
        (b'{"link":"online","boot_id":"b","refusals":{"\\u0000":1}}', "status_range"),
        (b'{"link":"online","boot_id":"b","free_bytes":99999999999999999999999}', "status_range"),
    ],
)
async def test_garbage_is_counted_by_reason_and_stops_nothing(tmp_path: Path, payload: bytes, reason: str):
    async with a_room(tmp_path) as room:
        await room.nodes[NEIGHBOUR].tell_status()
        await room.node.bus.publish(f"loa/1/node/{NODE}/status", payload)
        await flush(room)

        assert sum(room.server.inbox.refused.values()) == 1
        assert set(room.server.inbox.refused) <= {reason, "status_body"}


async def test_a_long_title_in_a_status_is_shortened_not_refused(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.node.tell_status(sounding="x" * 500)
        await flush(room)
        row = await room.store.read(lambda session: session.get(NodeStatusRow, NODE))

        assert row is not None
        assert len(row.sounding or "") == 120


# -- reports ----------------------------------------------------------------------------------------------------------


async def test_a_report_is_acknowledged_and_twice_is_harmless(tmp_path: Path):
    async with a_room(tmp_path) as room:
        number = await room.node.report("started", ENTRY, at(9))
        await flush(room)
        await room.node.report("started", ENTRY, at(9), sequence=number)
        await flush(room)

        assert room.node.acknowledged() == [number, number]
        assert await count(room, ReportRow) == 1


async def test_nothing_is_acknowledged_that_is_not_committed(tmp_path: Path):
    async with a_room(tmp_path) as room:
        begin = room.store.begin

        async def away(*_, **__):
            raise Unavailable("store_unavailable")

        room.server.inbox._store = type("Away", (), {"begin": staticmethod(away), "read": room.store.read})()
        number = await room.node.report("started", ENTRY, at(9))
        await room.node.tell_status(sounding="late")
        await flush(room)
        assert room.node.acknowledged() == []

        room.server.inbox._store = type("Back", (), {"begin": staticmethod(begin), "read": room.store.read})()
        await flush(room)
        assert room.node.acknowledged() == [number]
        row = await room.store.read(lambda session: session.get(NodeStatusRow, NODE))
        assert row is not None
        assert row.sounding == "late"


async def test_a_forged_report_is_refused_and_counted(tmp_path: Path):
    async with a_room(tmp_path) as room:
        stranger = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
        await room.node.report("finished", ENTRY, at(9), key=stranger, heard_ms=180_000)
        await room.node.report("finished", ENTRY, at(9), key=room.nodes[NEIGHBOUR].key, heard_ms=180_000)
        await flush(room)

        assert room.server.inbox.refused == {"report_unknown_key": 2}
        assert (await count(room, ReportRow), room.node.acknowledged()) == (0, [])


async def test_a_report_sent_on_anothers_topic_is_refused(tmp_path: Path):
    async with a_room(tmp_path) as room:
        said: list[bytes] = []
        listener = room.nodes[FAR].bus
        listener.subscribe(f"loa/1/node/{NODE}/report", lambda message: said.append(message.payload))
        await room.node.report("started", ENTRY, at(9))
        await room.clock.advance(0)
        await listener.publish(f"loa/1/node/{NEIGHBOUR}/report", said[0])
        await flush(room)

        assert sum(room.server.inbox.refused.values()) == 1
        assert await count(room, ReportRow) == 1


@pytest.mark.parametrize(
    "facts",
    [
        {"start": (1 << 53) - 1},
        {"at": (1 << 53) - 1},
        {"heard_ms": 1 << 70},
        {"underruns": 1 << 70},
        {"sequence": 1 << 63},
        {"boot": "a\0b"},
        {"reason": "a\0b"},
    ],
    ids=lambda facts: next(iter(facts)),
)
async def test_what_no_calendar_and_no_column_holds_is_counted_and_the_others_are_kept(tmp_path: Path, facts):
    async with a_room(tmp_path) as room:
        facts = dict(facts)
        await room.node.report("finished", ENTRY, facts.pop("start", at(9)), **facts)
        await room.nodes[NEIGHBOUR].report("finished", ENTRY, at(9), heard_ms=1)
        await flush(room)

        assert sum(room.server.inbox.refused.values()) == 1
        assert set(room.server.inbox.refused) <= {"report_range", "report_body"}
        assert room.nodes[NEIGHBOUR].acknowledged() == [1]


async def test_a_row_the_database_refuses_costs_nobody_else_a_word(tmp_path: Path):
    """A node that vanished from the register between two reads: its words break a reference."""
    async with a_room(tmp_path) as room:
        ghost = await room.enrol("ghost", "c2-20195", "20195")
        await ghost.tell_status()
        await flush(room)
        await room.store.begin(
            lambda session: [
                session.query(LinkSpanRow).filter_by(node_id="ghost").delete(),
                session.query(NodeStatusRow).filter_by(node_id="ghost").delete(),
                session.query(NodeRow).filter_by(id="ghost").delete(),
            ],
            ring=False,
        )
        await ghost.tell_status()
        await ghost.report("started", ENTRY, at(9))
        for node in room.nodes.values():
            await node.report("started", ENTRY, at(9))
            await node.tell_status()
        await flush(room)

        assert room.server.inbox.refused["store_reference_broken"] >= 2
        assert [room.nodes[name].acknowledged() for name in (NODE, NEIGHBOUR, FAR)] == [[1], [1], [1]]
        assert ghost.acknowledged() == []


async def test_six_hundred_reports_of_one_node_are_all_acknowledged(tmp_path: Path):
    async with a_room(tmp_path) as room:
        for _ in range(600):
            await room.node.report("started", ENTRY, at(9))
        await flush(room)

        assert sorted(room.node.acknowledged()) == list(range(1, 601))


async def test_when_too_much_waits_the_oldest_goes_and_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with a_room(tmp_path) as room:
        del monkeypatch
        box = room.server.inbox
        for number in range(inbox_module.REPORTS_WAITING + 3):
            box._reports.append(inbox_module.wire.SignedReport("stranger", b"%d" % number))
        await room.node.report("started", ENTRY, at(9))
        await room.clock.advance(0)

        assert box.refused["report_queue_full"] == 1
        assert len(box._reports) == inbox_module.REPORTS_WAITING


# -- time -------------------------------------------------------------------------------------------------------------


async def test_a_time_question_is_answered_with_the_instant_it_arrived(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.node.ask_the_time()
        await room.clock.advance(0)
        arrived = room.clock.now()
        room.clock._elapsed_s += 0.75  # the loop was busy; nobody looked
        answering = inbox_module.asyncio.create_task(room.server.inbox.answer(), name="test.answer")
        await room.clock.advance(0)
        answering.cancel()
        await inbox_module.asyncio.wait([answering])

        (answer,) = room.node.acks
        assert isinstance(answer, TimeAnswerBody)
        received, sent = answer.received_ns, answer.sent_ns
        assert (answer.asked_ns, answer.nonce) == (42, "0123456789abcdef")
        assert received == round(arrived.timestamp() * 1000) * 1_000_000
        assert sent - received == 750_000_000


async def test_a_question_that_is_none_is_counted(tmp_path: Path):
    async with a_room(tmp_path) as room:
        room.node.bus.publish_nowait(f"loa/1/node/{NODE}/time", json.dumps({"nonce": "x"}).encode())
        await flush(room)

        assert room.server.inbox.refused == {"question_body": 1}


@pytest.mark.parametrize(
    "payload",
    [
        b'{"nonce":"0123456789abcdef","sent_ns":1%s}' % (b"0" * 400),
        b'{"nonce":"0123456789abcdef","sent_ns":1%s}' % (b"0" * 9_000),
        b'{"nonce":"0123456789abcdef","sent_ns":1e400}',
        b'{"nonce":"0123456789abcdef","sent_ns":%s}' % (b"[" * 9_000),
    ],
    ids=["400 digits", "9 000 digits", "no number", "a hole"],
)
async def test_a_question_nobody_can_calculate_with_stops_no_clock(tmp_path: Path, payload: bytes):
    async with a_room(tmp_path) as room:
        room.node.bus.publish_nowait(f"loa/1/node/{NODE}/time", payload)
        await flush(room)

        assert room.server.inbox.refused == {"question_body": 1}


@pytest.mark.parametrize("clock", ['"uncertainty_ms":1,"offset_ms":1e308', '"uncertainty_ms":1e308'])
async def test_a_status_whose_clock_is_beyond_all_numbers_is_counted(tmp_path: Path, clock: str):
    async with a_room(tmp_path) as room:
        told = '"link":"online","boot_id":"b","sent_ms":1790000000000,"clock":'
        status = "{" + told + '{"source":"server",' + clock + "}}"
        await room.node.bus.publish(f"loa/1/node/{NODE}/status", status.encode())
        await flush(room)

        assert room.server.inbox.refused == {"status_body": 1}
