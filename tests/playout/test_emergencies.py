"""From the button to the horn and back: emergencies and stop-alls through the engine room, node by node."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from broadcast_server.control import emergency
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.emergency import DeliveryQuery, EmergencyView, Message, NewEmergency
from broadcast_server.domain.clock import to_ms
from broadcast_server.domain.delivery import DeliveryState
from broadcast_server.domain.errors import Unavailable
from broadcast_server.playout.planner import Planner
from broadcast_server.store.deliveries import Shown
from broadcast_server.store.session import Session
from broadcast_server.store.words import EmergencyMode
from speaker_protocol import messages as wire
from tests.playout.rig import FAR, NEIGHBOUR, NODE, Room, a_room
from tests.support.alarms import a_duo
from tests.support.village import DONG, PROVINCE, TAY, at, once


def an_alarm(**changes: Any) -> NewEmergency:
    asked = NewEmergency(
        PROVINCE, EmergencyMode.REAL, Message(hazard="flood", text="Vỡ đê"), "Đê vỡ", confirm="KHẨN CẤP"
    )
    return replace(asked, **changes)


async def launch(room: Room, request: NewEmergency) -> EmergencyView:
    """By two leaders of the province, within the same instant."""
    return await (await a_duo(room.village.desk, PROVINCE)).raise_(request)


async def deliveries(room: Room, view: EmergencyView, *, unreached: bool = False) -> dict[str, Shown]:
    found = await emergency.list_deliveries(
        room.village.desk, OPERATOR, view.row.id, DeliveryQuery(unreached=unreached)
    )
    return {one.node_id: one for one in found}


async def states(room: Room, view: EmergencyView) -> dict[str, str]:
    return {node: one.state.value for node, one in (await deliveries(room, view)).items()}


def alert_topics(room: Room, since: int) -> list[str]:
    return [topic for topic in room.sent[since:] if topic.endswith("/alert")]


class Stuck(Planner):
    """A planner that cannot plan any more."""

    is_stuck = False

    def plan(self, session: Session, now: Any) -> Any:
        if self.is_stuck:
            raise Unavailable("store_unavailable")
        return super().plan(session, now)


async def test_one_publish_for_the_province_warns_every_commune(tmp_path: Path):
    async with a_room(tmp_path) as room:
        before = len(room.sent)
        view = await launch(room, an_alarm())
        await room.server.conductor.tick()
        await room.clock.advance(0)

        assert alert_topics(room, before) == [f"loa/1/unit/{PROVINCE}/alert"]
        assert {node.warns() for node in room.nodes.values()} == {view.row.id}


async def test_it_leaves_before_any_plan_and_although_planning_fails(tmp_path: Path):
    stuck = Stuck(plan_days=8)
    async with a_room(tmp_path, planner=stuck) as room:
        stuck.is_stuck = True
        await room.announce(once(at(17)))
        view = await launch(room, an_alarm())
        room.server.conductor.ring()
        await room.server.conductor.tick()
        await room.clock.advance(0)
        assert room.node.warns() == view.row.id
        assert room.node.sounding(at(17)) is None, "nothing was planned"

        stuck.is_stuck = False
        await emergency.cancel(room.village.desk, OPERATOR, view.row.id, reason="Hết")
        before = len(room.sent)
        await room.turn()
        topics = [topic.rpartition("/")[2] for topic in room.sent[before:] if topic.endswith(("/alert", "/plan"))]
        assert topics[0] == "alert"
        assert "plan" in topics


async def test_a_broker_that_lost_everything_hears_of_the_danger_first(tmp_path: Path):
    async with a_room(tmp_path) as room:
        view = await launch(room, an_alarm())
        await room.turn()
        before = len(room.sent)
        room.hub.kill()
        room.hub.revive()
        await room.turn()

        kinds = [tuple(topic.split("/")[2:]) for topic in room.sent[before:]]
        firsts = [kind for kind in kinds if kind[0] == "unit" or kind[2] in {"plan", "config"}]
        assert firsts[:2] == [("unit", PROVINCE, "keys"), ("unit", PROVINCE, "alert")]
        assert room.node.warns() == view.row.id


async def test_a_server_that_starts_anew_says_again_what_is_in_force(tmp_path: Path):
    async with a_room(tmp_path) as room:
        view = await launch(room, an_alarm())
        await room.turn()
        await room.kill(room.server)
        await room.clock.advance(6)
        before = len(room.sent)
        await room.serve("b")
        await room.turn()

        assert f"loa/1/unit/{PROVINCE}/alert" in room.sent[before:]
        assert room.node.warns() == view.row.id


async def test_what_was_cancelled_while_the_server_was_away_is_taken_back_when_it_returns(tmp_path: Path):
    async with a_room(tmp_path) as room:
        view = await launch(room, an_alarm())
        await room.turn()
        await room.kill(room.server)
        await emergency.cancel(room.village.desk, OPERATOR, view.row.id, reason="Hết")
        assert room.node.warns() == view.row.id
        await room.clock.advance(6)
        await room.serve("b")
        await room.turn()

        assert {node.warns() for node in room.nodes.values()} == {None}


async def test_who_has_it_who_sounds_it_and_who_heard_it_to_the_end(tmp_path: Path):
    async with a_room(tmp_path) as room:
        view = await launch(room, an_alarm())
        await room.turn()
        assert await states(room, view) == {NODE: "sent", NEIGHBOUR: "sent", FAR: "sent"}

        progress = wire.AlertProgress(alert_id=view.row.id, is_sounding=True, first_ms=to_ms(room.clock.now()))
        await room.nodes[NODE].tell_status(alerts=(progress,))
        await room.nodes[NEIGHBOUR].tell_status()
        await room.nodes[FAR].tell_status(alerts=(wire.AlertProgress(alert_id=view.row.id, why="no_output"),))
        await room.turn()
        assert await states(room, view) == {NODE: "sounding", NEIGHBOUR: "received", FAR: "refused"}
        unreached = await deliveries(room, view, unreached=True)
        assert {node: one.reason for node, one in unreached.items()} == {FAR: "no_output"}

        entry = f"alert:{view.row.id}"
        await room.nodes[NODE].report("started", entry, room.clock.now())
        await room.clock.advance(30)
        await room.nodes[NODE].report("finished", entry, room.clock.now(), heard_ms=29_000)
        await room.turn()
        assert (await states(room, view))[NODE] == "heard"
        counted = await emergency.get_emergency(room.village.desk, OPERATOR, view.row.id)
        assert (counted.counts.nodes, counted.counts.heard, counted.counts.received) == (3, 1, 3)


async def test_the_play_log_stands_on_signed_reports_alone(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.all_say_how_they_are()
        view = await launch(room, an_alarm(expires_min=5))
        await room.turn()
        entry = f"alert:{view.row.id}"
        told = wire.AlertProgress(alert_id=view.row.id, rounds=1)
        await room.nodes[NEIGHBOUR].tell_status(alerts=(told,))
        await room.nodes[NODE].report("started", entry, room.clock.now())
        await room.clock.advance(40)
        await room.nodes[NODE].report(
            "finished", entry, room.clock.now(), heard_ms=19_000, reason="alert_asset_missing"
        )  # in its own words, which are shorter
        await room.nodes[FAR].report("not_sounded", entry, room.clock.now(), reason="no_output")
        await room.turn()
        await room.pass_time(90, step_s=10)

        lines = {row.node_id: row for row in await room.plays()}
        assert {node: row.verdict.value for node, row in lines.items()} == {
            NODE: "played",
            NEIGHBOUR: "missed",
            FAR: "missed",
        }
        assert (lines[NEIGHBOUR].reason, lines[FAR].reason) == ("no_report", "no_output")
        assert all(row.judged_at is not None for row in lines.values())


async def test_a_node_that_does_not_answer_is_sent_it_again_and_stays_on_the_list(tmp_path: Path):
    async with a_room(tmp_path) as room:
        view = await launch(room, an_alarm())
        await room.turn()
        for node in (NODE, FAR):
            await room.nodes[node].tell_status()
        await room.clock.advance(0)
        before = len(room.sent)
        await room.pass_time(13)

        assert len(alert_topics(room, before)) in {3, 4}, "after 3, 1, 2, 4 s"
        (deaf,) = (await deliveries(room, view, unreached=True)).values()
        assert (deaf.node_id, deaf.reason, deaf.state) == (NEIGHBOUR, "no_answer", DeliveryState.SENT)
        assert deaf.attempts >= 4
        assert room.nodes[NODE].refused == {}
        await room.nodes[NEIGHBOUR].tell_status()
        await room.turn()
        assert await deliveries(room, view, unreached=True) == {}


async def test_a_node_that_is_offline_is_named_and_not_pestered(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.nodes[FAR].tell_status(link=wire.Link.OFFLINE)
        await room.turn()
        view = await launch(room, an_alarm())
        await room.turn()
        await room.nodes[NODE].tell_status()
        await room.nodes[NEIGHBOUR].tell_status()
        await room.turn()
        before = len(room.sent)
        await room.pass_time(15)

        assert alert_topics(room, before) == []
        unreached = await deliveries(room, view, unreached=True)
        assert [(node, one.reason, one.cluster_code) for node, one in unreached.items()] == [(FAR, "offline", "CUM-01")]
        await room.nodes[FAR].tell_status()  # back: the retained set was waiting for it
        await room.turn()
        assert (await states(room, view))[FAR] == "received"


async def test_it_ends_with_a_reason_for_everybody_and_a_late_report_still_counts(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.nodes[FAR].tell_status(link=wire.Link.OFFLINE)
        view = await launch(room, an_alarm(expires_min=1))
        await room.turn()
        started = wire.AlertProgress(alert_id=view.row.id, is_sounding=True)
        await room.nodes[NODE].tell_status(alerts=(started,))
        await room.nodes[NEIGHBOUR].tell_status()
        await room.pass_time(62, step_s=2)
        for node in (NODE, NEIGHBOUR):
            await room.nodes[node].tell_status(alerts=())
        await room.pass_time(25, step_s=5)

        assert await states(room, view) == {NODE: "partial", NEIGHBOUR: "missed", FAR: "expired"}
        entry = f"alert:{view.row.id}"
        await room.nodes[FAR].report("started", entry, view.row.launched_at or room.clock.now())
        await room.nodes[FAR].report("finished", entry, room.clock.now(), heard_ms=30_000)
        await room.turn()
        assert (await states(room, view))[FAR] == "heard"


async def test_cancelled_everybody_shows_that_it_let_go_or_is_told_again(tmp_path: Path):
    async with a_room(tmp_path) as room:
        view = await launch(room, an_alarm())
        await room.turn()
        await room.all_say_how_they_are()
        await emergency.cancel(room.village.desk, OPERATOR, view.row.id, reason="Báo nhầm")
        await room.turn()
        assert {node.warns() for node in room.nodes.values()} == {None}
        holding = await emergency.get_emergency(room.village.desk, OPERATOR, view.row.id)
        assert holding.counts.holding == 3

        for node in (NODE, NEIGHBOUR):
            await room.nodes[node].tell_status()
        before = len(room.sent)
        await room.pass_time(5)
        assert alert_topics(room, before) != []
        await room.nodes[FAR].tell_status()
        await room.turn()
        done = await emergency.get_emergency(room.village.desk, OPERATOR, view.row.id)
        assert done.counts.holding == 0


async def test_stop_all_silences_until_released_and_a_node_that_was_away_obeys_when_it_returns(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(once(at(9, 5)))
        await room.turn()
        await room.nodes[NEIGHBOUR].bus.close()
        (latch,) = await emergency.stop_all(room.village.desk, OPERATOR, (DONG,), reason="Có người chiếm sóng")
        await room.turn()
        assert room.node.sounding(at(9, 6)) is None
        assert room.nodes[NEIGHBOUR].alerts.stop_all is False

        await room.clock.advance(300)
        away = room.nodes[NEIGHBOUR]
        await away.start()
        await room.clock.advance(0)
        assert away.alerts.stop_all
        for node in (room.node, away):
            await node.tell_status()
        await room.turn()
        obeyed = await emergency.get_stop_all(room.village.desk, OPERATOR, latch.row.id)
        assert (obeyed.counts.nodes, obeyed.counts.received, obeyed.counts.unreached) == (2, 2, 0)

        await emergency.release(room.village.desk, OPERATOR, latch.row.id, reason="Đã xử lý")
        await room.turn()
        assert room.node.sounding(at(9, 6)) is not None
        assert room.nodes[FAR].alerts.stop_all is False


async def test_a_new_node_in_the_flooded_commune_is_owed_it_too(tmp_path: Path):
    async with a_room(tmp_path) as room:
        view = await launch(room, an_alarm())
        await room.turn()
        fresh = await room.enrol("n9", f"c2-{TAY}", TAY)
        await room.pass_time(12)
        assert fresh.warns() == view.row.id
        assert (await states(room, view))["n9"] == "sent"


async def test_the_lane_publishes_while_a_tick_is_busy(tmp_path: Path):
    async with a_room(tmp_path) as room:
        lane = asyncio.create_task(room.server.conductor.run_urgent(), name="test.lane")
        try:
            await room.clock.advance(0)
            view = await launch(room, an_alarm())
            await room.clock.advance(0.01)
            assert room.node.warns() == view.row.id, "no tick was needed"
        finally:
            lane.cancel()
            await asyncio.wait([lane])


async def test_nothing_is_said_twice_while_nothing_changes(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await launch(room, an_alarm())
        await room.turn()
        await room.all_say_how_they_are()
        before = len(room.sent)
        await room.pass_time(30)

        assert alert_topics(room, before) == []
