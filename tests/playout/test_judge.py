"""What the log may claim: only what the node itself reported, whatever happens to plan, broker and server meanwhile."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select

from broadcast_server.control import playing, scheduling
from broadcast_server.control.outlook import explain
from broadcast_server.control.plays import PlayQuery, list_plays
from broadcast_server.control.scheduling import CancelSchedule, NewSchedule, Scope
from broadcast_server.domain.clock import to_ms
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.domain.proof import Verdict
from broadcast_server.store.tables import ReportRow
from broadcast_server.store.words import ContentKind
from speaker_protocol.messages import Link
from speaker_protocol.rules import BulletinClass
from tests.playout.rig import FAR, NEIGHBOUR, NODE, Room, Speaker, a_room
from tests.support.village import DONG, LAN, at, once

START = at(17)
LENGTH = timedelta(minutes=3)
LENGTH_MS = 180_000


async def planned(room: Room) -> str:
    """A broadcast of three minutes at 17:00 for both clusters of xã Đông, on the nodes; its entry id."""
    schedule = await room.announce(once(START))
    await room.turn()
    await room.all_say_how_they_are()
    return f"{schedule}@{to_ms(START)}"


async def sound(node: Speaker, entry: str, *, heard_ms: int = LENGTH_MS, reason: str | None = None) -> None:
    await node.report("started", entry, START, at=START + timedelta(milliseconds=12))
    await node.report(
        "finished", entry, START, at=START + timedelta(milliseconds=heard_ms), heard_ms=heard_ms, reason=reason
    )


async def vanish(room: Room, node: str) -> None:
    """The broker says its will."""
    await room.nodes[node].tell_status(link=Link.OFFLINE)
    await room.clock.advance(0)
    await room.server.inbox.flush()


async def test_each_node_gets_the_verdict_it_reported(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry = await planned(room)
        await room.until(START + LENGTH)
        await sound(room.node, entry)
        await sound(room.nodes[NEIGHBOUR], entry, heard_ms=90_000, reason="underrun")
        await room.until(START + LENGTH + timedelta(seconds=21))

        rows = {row.node_id: row for row in await room.plays()}
        assert {name: row.verdict for name, row in rows.items()} == {NODE: Verdict.PLAYED, NEIGHBOUR: Verdict.PARTIAL}
        assert (rows[NODE].heard_ms, rows[NEIGHBOUR].heard_ms) == (LENGTH_MS, 90_000)
        assert rows[NEIGHBOUR].reason == "underrun"
        assert rows[NODE].started_at == START + timedelta(milliseconds=12)
        assert all(row.judged_at is not None for row in rows.values())


async def test_reachable_and_silent_is_missed_unreachable_and_silent_is_unknown(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await planned(room)
        await room.until(START + timedelta(seconds=60))
        await vanish(room, NEIGHBOUR)
        await room.until(START + LENGTH + timedelta(seconds=21))

        rows = {row.node_id: (row.verdict, row.reason) for row in await room.plays()}
        assert rows == {NODE: (Verdict.MISSED, "no_report"), NEIGHBOUR: (Verdict.UNKNOWN, "unreachable")}


async def test_a_node_that_says_why_it_was_silent_is_missed_for_that_reason(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry = await planned(room)
        await room.until(START + timedelta(seconds=1))
        await room.node.report("not_sounded", entry, START, reason="asset_missing")
        await room.turn()

        row = next(row for row in await room.plays() if row.node_id == NODE)
        assert (row.verdict, row.reason, row.judged_at) == (Verdict.MISSED, "asset_missing", None)


async def test_a_line_is_open_while_it_sounds_and_nobody_is_judged_before_the_grace_is_over(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await planned(room)
        await room.until(START - timedelta(seconds=1))
        assert await room.plays() == []
        await room.until(START + timedelta(seconds=1))
        assert [(row.verdict, row.judged_at) for row in await room.plays()] == [(Verdict.UNKNOWN, None)] * 2
        await room.until(START + LENGTH + timedelta(seconds=19))
        assert all(row.judged_at is None for row in await room.plays())


async def test_a_late_report_betters_an_unknown_hours_later(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry = await planned(room)
        await vanish(room, NODE)
        await room.until(START + timedelta(minutes=10))
        assert (await room.verdicts())[NODE] == "unknown"
        await room.clock.advance(3 * 3600)
        await sound(room.node, entry)
        await room.clock.advance(0)
        await room.turn()

        assert (await room.verdicts())[NODE] == "played"
        assert len(await room.plays()) == 2


async def test_no_duplicate_and_no_lost_line_makes_a_verdict_worse(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry = await planned(room)
        await room.until(START + LENGTH)
        await sound(room.node, entry)
        await room.turn()
        await room.node.report("started", entry, START, sequence=1)
        await room.until(START + LENGTH + timedelta(minutes=5))

        assert (await room.verdicts())[NODE] == "played"


# -- what was planned changes while it sounds -------------------------------------------------------------------------


async def test_a_broadcast_that_was_stopped_is_judged_up_to_the_stop(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry = await planned(room)
        await room.until(START + timedelta(seconds=60))
        await playing.stop(room.village.desk, LAN, entry)
        await room.turn()
        await room.node.report("started", entry, START, at=START)
        await room.node.report("finished", entry, START, heard_ms=60_200, reason="plan_changed")
        await room.until(START + timedelta(minutes=2))

        row = next(row for row in await room.plays() if row.node_id == NODE)
        assert row.verdict is Verdict.PLAYED
        assert row.ends_at == START + timedelta(seconds=60)


async def test_what_loses_its_approval_while_it_sounds_is_not_lost_from_the_log(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry = await planned(room)
        await room.until(START + timedelta(seconds=60))
        await room.store.begin(
            lambda session: session.connection().exec_driver_sql("UPDATE bulletin_versions SET approved_hash = 'other'")
        )
        await room.turn()
        assert room.node.sounding(room.clock.now()) is None
        await room.node.report("finished", entry, START, heard_ms=60_200, reason="plan_changed")
        await room.until(START + timedelta(minutes=2))

        rows = {row.node_id: row for row in await room.plays()}
        assert rows[NODE].verdict is Verdict.PLAYED
        assert rows[NEIGHBOUR].verdict is Verdict.MISSED
        assert {row.ends_at for row in rows.values()} == {START + timedelta(seconds=60)}


async def test_one_cancelled_before_it_begins_leaves_no_line(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry = await planned(room)
        await room.until(START - timedelta(seconds=10))
        await scheduling.cancel_schedule(room.village.desk, LAN, CancelSchedule(entry.partition("@")[0], Scope.ALL))
        await room.until(START + LENGTH + timedelta(minutes=1))

        assert await room.plays() == []


async def test_what_ends_just_before_midnight_is_judged_after_it(tmp_path: Path):
    """The plan has rolled on by then and names yesterday's segment no more."""
    async with a_room(tmp_path) as room:
        schedule = await room.announce(once(at(21, 56)))
        await room.turn()
        await room.until(at(21, 56, 1))
        room.server.judge._grace = timedelta(hours=3)
        await room.node.report("finished", f"{schedule}@{to_ms(at(21, 56))}", at(21, 56), heard_ms=LENGTH_MS)
        await room.until(at(0, 0, 5, day=2))
        await room.until(at(1, 0, day=2))

        assert (await room.verdicts())[NODE] == "played"
        assert all(row.ends_at == at(21, 59) for row in await room.plays())


async def test_a_node_enrolled_after_a_broadcast_is_not_charged_with_it(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await planned(room)
        await room.until(START + timedelta(minutes=5))
        await room.enrol("n9", "c1-20194", "20194")
        await room.turn()
        await room.pass_time(30, step_s=5)

        assert "n9" not in await room.verdicts()


# -- what nodes may not do --------------------------------------------------------------------------------------------


async def test_reports_about_unknown_entries_are_kept_and_harm_nothing(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await planned(room)
        strange = ["", "nothing", "@", "a@b", "x" * 120, "x" * 200, "nobody@1780300800000"]
        for entry in strange:
            await room.node.report("finished", entry, START, heard_ms=5)
        await room.turn()

        assert await room.plays() == []
        kept = await room.store.read(lambda session: session.scalar(select(func.count()).select_from(ReportRow)))
        assert kept == len(strange)


async def test_an_order_done_is_no_play(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry = await planned(room)
        await room.until(START + timedelta(seconds=1))
        await room.node.report("order_done", entry, START)
        await room.turn()

        assert (await room.verdicts())[NODE] == "unknown"


async def test_a_node_cannot_invent_stretches_outside_its_broadcast(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry = await planned(room)
        await room.node.report("finished", entry, at(3), heard_ms=LENGTH_MS)
        await room.node.report("finished", entry, START + timedelta(days=30), heard_ms=LENGTH_MS)
        await room.turn()

        assert await room.plays() == []


async def test_another_communes_node_that_sounded_it_is_on_record(tmp_path: Path):
    """It is not planned there; that it sounded is evidence all the same."""
    async with a_room(tmp_path) as room:
        entry = await planned(room)
        await room.until(START + LENGTH)
        await sound(room.nodes[FAR], entry)
        await room.turn()

        assert (await room.verdicts())[FAR] == "played"


# -- the server fails -------------------------------------------------------------------------------------------------


async def test_a_restart_in_the_middle_neither_loses_nor_doubles_a_line(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry = await planned(room)
        await room.until(START + timedelta(seconds=60))
        await room.kill(room.server)
        await room.clock.advance(60)
        await room.serve("again")
        await room.until(START + LENGTH)
        await sound(room.node, entry)
        await room.until(START + LENGTH + timedelta(seconds=41))

        assert await room.verdicts() == {NODE: "played", NEIGHBOUR: "missed"}
        assert len(await room.plays()) == 2


async def test_a_server_that_was_down_for_the_whole_broadcast_judges_it_when_it_is_back(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry = await planned(room)
        await room.until(START - timedelta(minutes=1))
        await room.kill(room.server)
        await room.clock.advance(3600)
        await room.serve("again")
        await room.turn()
        await sound(room.node, entry)
        await room.pass_time(25, step_s=1)

        assert (await room.verdicts())[NODE] == "played"
        assert len(await room.plays()) == 2


async def test_down_over_midnight_the_nodes_own_reports_still_make_the_log(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry = await planned(room)
        await room.until(START - timedelta(minutes=1))
        await room.kill(room.server)
        await room.clock.advance(9 * 3600)
        await room.serve("again")
        await room.turn()
        await sound(room.node, entry)
        await room.turn()
        await room.pass_time(25, step_s=5)

        (row,) = await room.plays()
        assert (row.node_id, row.verdict, row.ends_at) == (NODE, Verdict.PLAYED, START + LENGTH)


async def test_a_report_that_was_kept_but_not_judged_when_the_server_died_counts(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry = await planned(room)
        await vanish(room, NODE)
        await room.until(START + timedelta(minutes=10))
        await sound(room.node, entry)
        await room.clock.advance(1)
        await room.server.inbox.flush()
        await room.kill(room.server)
        assert (await room.verdicts())[NODE] == "unknown"
        await room.serve("again")
        await room.turn()

        assert (await room.verdicts())[NODE] == "played"


async def test_two_ends_of_the_same_segment_are_both_judged(tmp_path: Path):
    """One cluster is cut short by something more urgent, the other hears it all."""
    async with a_room(tmp_path) as room:
        feed = await room.village.feed()
        relay = NewSchedule(DONG, ContentKind.FEED, feed, once(START), length=timedelta(minutes=10))
        await scheduling.create_schedule(room.village.desk, LAN, relay)
        urgent = await room.village.bulletin("Ưu tiên", klass=BulletinClass.PRIORITY, minutes=4)
        await scheduling.create_schedule(
            room.village.desk,
            LAN,
            NewSchedule(
                DONG,
                ContentKind.BULLETIN,
                urgent,
                once(START + timedelta(minutes=6)),
                max_wait=timedelta(minutes=10),
                targets=(Target(TargetKind.CLUSTER, f"c1-{DONG}"),),
                accept_conflicts=True,
            ),
        )
        await room.turn()
        for minute in range(13):
            await room.until(START + timedelta(minutes=minute))

        of_relay = {row.node_id: row for row in await room.plays() if row.starts_at == START}
        assert of_relay[NEIGHBOUR].ends_at == START + timedelta(minutes=10)
        assert of_relay[NODE].ends_at < START + timedelta(minutes=10)
        assert all(row.judged_at is not None for row in of_relay.values())


async def test_a_node_that_began_late_says_by_how_much_and_because_of_what(tmp_path: Path):
    async with a_room(tmp_path) as room:
        entry, start, began = await planned(room), START, at(17, 0, 35)
        await room.until(at(17, 0, 40))
        await room.node.report(
            "started", entry, start, at=began, late_ms=35_000, reason="restarted", uncertainty_ms=4.5
        )
        await room.turn()
        lines = await list_plays(room.village.desk, LAN, PlayQuery(cluster_id=f"c1-{DONG}"))
        (line,) = [one for one in lines if one.starts_at == start]
        assert (line.late_ms, line.late_because, line.uncertainty_ms) == (35_000, "restarted", 4.5)
        told = await explain(room.village.desk, LAN, f"c1-{DONG}", at(17, 1))
        (seen,) = [one for one in told.reported if one["broadcast_id"] == entry]
        assert (seen["late_ms"], seen["late_because"]) == (35_000, "restarted")
