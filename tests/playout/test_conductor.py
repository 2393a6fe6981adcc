"""From a saved schedule to what a node obeys: who may speak, what is sent, what is sent again, what stays silent."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from sqlalchemy import select, update

from broadcast_server.control import fleet, relays, scheduling
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.emergency import Message, NewEmergency
from broadcast_server.control.fleet import Order, OrderVerb
from broadcast_server.control.relays import RelaySetting
from broadcast_server.control.scheduling import CancelSchedule, NewSchedule, Scope
from broadcast_server.domain.clock import from_ms
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.playout.inbox import Heard
from broadcast_server.store import sequences
from broadcast_server.store.session import Session
from broadcast_server.store.tables import (
    AlertRow,
    ClusterRow,
    ConflictRow,
    LeaseRow,
    NodePlanRow,
    OutboxRow,
    PolicyRow,
    ScheduleRow,
)
from broadcast_server.store.words import ConflictKind, ContentKind, EmergencyMode, OutboxState, ScheduleState
from speaker_protocol.messages import split_plan
from speaker_protocol.rules import Late, LatePolicy
from speaker_protocol.signing import parse
from tests.playout.rig import FAR, LEASE_S, NEIGHBOUR, NODE, Room, a_room
from tests.support.alarms import a_duo
from tests.support.village import DONG, LAN, PROVINCE, TAY, at, daily, once

ONE_CLUSTER = (Target(TargetKind.CLUSTER, f"c1-{DONG}"),)


def order_of(room: Room, node: str = NODE) -> tuple[int, int]:
    """Epoch and sequence of the plan that the broker holds for a node."""
    return parse(split_plan(room.hub.retained[f"loa/1/node/{node}/plan"])[0]).order


async def conflicts(room: Room) -> list[ConflictRow]:
    return await room.store.read(
        lambda session: list(session.scalars(select(ConflictRow).where(ConflictRow.closed_at.is_(None))))
    )


# -- a plan reaches its node ------------------------------------------------------------------------------------------


async def test_what_is_saved_is_held_signed_by_the_broker_and_sounds_at_its_minute(tmp_path: Path):
    async with a_room(tmp_path) as room:
        schedule = await room.announce(once(at(17)))
        await room.turn()

        assert room.node.refused == {}
        assert room.node.sounding(at(16, 59, 59)) is None
        assert (room.node.sounding(at(17)) or "").startswith(schedule)
        assert room.node.sounding(at(17, 3)) is None
        assert room.nodes[FAR].sounding(at(17)) is None


async def test_a_node_that_comes_late_has_the_plan_at_once(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(once(at(17)))
        await room.turn()
        await room.node.bus.close()
        again = type(room.node)(NODE, DONG, room.hub, room.clock, room.server.signer.root_public())
        await again.start()
        await room.clock.advance(0)

        assert again.sounding(at(17)) is not None


async def test_who_hears_nothing_new_is_sent_nothing(tmp_path: Path):
    async with a_room(tmp_path) as room:
        before = len(room.sent)
        await room.announce(once(at(17)), targets=ONE_CLUSTER)
        await room.turn()

        assert room.plan_topics(before) == [NODE]


async def test_an_hour_without_a_change_sends_nothing_at_all(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(daily("10:00"))
        await room.turn()
        await room.all_say_how_they_are()
        before = len(room.sent)
        await room.pass_time(600, step_s=20)

        assert room.sent[before:] == []


async def test_a_cancelled_schedule_is_gone_from_the_plan(tmp_path: Path):
    async with a_room(tmp_path) as room:
        schedule = await room.announce(once(at(17)))
        await room.turn()
        await scheduling.cancel_schedule(room.village.desk, LAN, CancelSchedule(schedule, Scope.ALL))
        await room.turn()

        assert room.node.sounding(at(17)) is None


async def test_at_midnight_the_plan_rolls_on_by_a_day(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(daily("05:00"))
        await room.turn()
        assert room.node.sounding(at(5, day=9)) is None
        await room.until(at(0, 0, 1, day=2))

        assert room.node.sounding(at(5, day=9)) is not None
        assert room.node.head is not None
        assert from_ms(room.node.head.valid_from_ms) == at(0, day=2)


async def test_a_new_node_gets_plan_keys_and_config_within_a_moment(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(daily("17:00"), targets=(Target(TargetKind.UNIT, DONG),))
        await room.turn()
        await room.enrol("n9", f"c2-{TAY}", TAY)
        await room.turn()

        fresh = room.nodes["n9"]
        assert (fresh.plans_obeyed, fresh.refused) == (1, {})
        assert fresh.config is not None
        assert fresh.config.path == (TAY, PROVINCE)


async def test_a_cluster_that_moved_to_another_unit_is_led_there(tmp_path: Path):
    """Its node does not know the new unit's key yet: the server's key tells it the way."""
    async with a_room(tmp_path) as room:
        await room.store.begin(
            lambda session: session.execute(
                update(ClusterRow)
                .where(ClusterRow.id == f"c1-{TAY}")
                .values(unit_id=DONG, code="CUM-09", version=ClusterRow.version + 1)
            )
        )
        await room.turn()

        node = room.nodes[FAR]
        assert node.config is not None
        assert node.config.path == (DONG, PROVINCE)


# -- the broker fails -------------------------------------------------------------------------------------------------


async def test_a_broker_that_lost_everything_is_filled_again(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(once(at(17)))
        await room.turn()
        topics = set(room.hub.retained)
        room.hub.kill()
        await room.pass_time(3)
        room.hub.revive()
        await room.pass_time(2)

        lost = {topic for topic in topics if not topic.endswith("/status")}
        assert lost <= set(room.hub.retained)
        assert (room.node.refused, room.node.plans_obeyed) == ({}, 3)


async def test_a_change_made_while_the_broker_is_away_comes_when_it_is_back(tmp_path: Path):
    async with a_room(tmp_path) as room:
        room.hub.kill(forget=False)
        await room.announce(once(at(17)))
        await room.pass_time(30)
        assert room.node.sounding(at(17)) is None
        room.hub.revive()
        await room.pass_time(2)

        assert room.node.sounding(at(17)) is not None


async def test_a_plan_that_nobody_confirmed_is_sent_again_and_ever_more_rarely(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(once(at(17)), targets=ONE_CLUSTER)
        await room.turn()
        before = len(room.sent)
        await room.pass_time(30, step_s=5)
        assert room.plan_topics(before) == [NODE]
        await room.pass_time(270, step_s=5)
        assert room.plan_topics(before) == [NODE] * 4

        await room.all_say_how_they_are()
        after = len(room.sent)
        await room.pass_time(700, step_s=20)
        assert room.plan_topics(after) == []


async def test_the_same_body_under_an_older_head_confirms_nothing(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.node.tell_status(plan_order=(1, 1))
        await room.announce(once(at(17)), targets=ONE_CLUSTER)
        await room.turn()
        await room.node.tell_status(plan_order=(1, 1))
        await room.turn()

        row = await room.store.read(lambda session: session.get(NodePlanRow, NODE))
        assert row is not None
        assert row.acknowledged_at is None


# -- two leaders ------------------------------------------------------------------------------------------------------


async def test_the_second_server_waits_and_takes_over_with_a_higher_epoch(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(once(at(17)))
        await room.turn()
        second = await room.serve("b")
        await room.pass_time(2 * LEASE_S)
        assert (room.server.conductor.epoch, second.conductor.epoch) == (1, 0)

        await room.kill(room.server)
        await room.pass_time(LEASE_S + 1)
        assert second.conductor.epoch == 2
        assert order_of(room)[0] == 2
        assert room.node.refused == {}
        assert room.node.sounding(at(17)) is not None


async def test_a_leader_that_ends_well_makes_nobody_wait(tmp_path: Path):
    async with a_room(tmp_path) as room:
        second = await room.serve("b")
        await room.stop(room.server)
        await room.pass_time(1)

        assert second.conductor.epoch == 2


async def test_a_leader_that_slept_says_nothing_when_it_wakes(tmp_path: Path):
    async with a_room(tmp_path) as room:
        asleep = room.server
        second = await room.serve("b")
        room.servers.remove(asleep)
        await room.pass_time(LEASE_S + 1)
        assert second.conductor.epoch == 2
        await room.announce(once(at(17)))
        held = dict(room.hub.retained)
        await asleep.conductor.tick()

        assert asleep.conductor.epoch == 0
        assert room.hub.retained == held
        room.servers.append(asleep)


async def test_one_that_loses_the_lease_in_the_middle_sends_no_further_slice(tmp_path: Path):
    async with a_room(tmp_path) as room:
        leader, other = room.server, await room.serve("b")
        room.servers.remove(leader)
        await room.announce(once(at(17)))
        leader.conductor.ring()

        def held_up(_: object) -> None:
            room.clock._elapsed_s += LEASE_S + 1

        leader.conductor.on_planned = held_up
        await room.store.begin(
            lambda session: session.execute(update(LeaseRow).values(holder="b-somewhere", epoch=9, expires_at=at(23))),
            ring=False,
        )
        before = order_of(room)
        await leader.conductor.tick()

        assert order_of(room) == before
        assert leader.conductor.epoch == 0
        assert other.conductor.epoch == 0
        room.servers.append(leader)


async def test_a_lower_epoch_is_never_published(tmp_path: Path):
    async with a_room(tmp_path) as room:
        seen: list[tuple[int, int]] = []
        for name in ("b", "c", "d"):
            await room.serve(name)
            await room.stop(room.servers[0])
            await room.pass_time(1)
            seen.append(order_of(room))

        assert seen == sorted(seen)
        assert [epoch for epoch, _ in seen] == [2, 3, 4]
        assert room.node.refused == {}


# -- yesterday's backup -----------------------------------------------------------------------------------------------


async def forget_the_future(room: Room, *, epoch: int) -> None:
    """What a restored database knows: an older lease, older numbers, and nothing the nodes said since."""

    def write(session: Session) -> None:
        session.execute(update(LeaseRow).values(holder="", epoch=epoch, expires_at=room.clock.now()))
        session.execute(sequences.SequenceRow.__table__.update().values(value=1))

    await room.store.begin(write)


async def test_after_yesterdays_backup_all_nodes_obey_again_within_a_minute(tmp_path: Path):
    async with a_room(tmp_path) as room:
        for epoch in range(7):
            await room.serve(f"era-{epoch}")
            await room.stop(room.servers[0])
            await room.pass_time(1)
        await room.all_say_how_they_are()
        assert order_of(room)[0] == 8
        await room.kill(room.server)
        await forget_the_future(room, epoch=2)
        restored = await room.serve("restored")
        await room.announce(once(at(17)))
        await room.pass_time(59)

        assert restored.conductor.epoch > 8
        assert all(node.sounding(at(17)) for name, node in room.nodes.items() if name != FAR)
        assert restored.bus.connected


async def test_a_copy_of_the_same_epoch_is_noticed_by_its_numbers(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(daily("17:00"))
        await room.turn()
        await room.all_say_how_they_are()
        await room.store.begin(
            lambda session: session.execute(sequences.SequenceRow.__table__.update().values(value=1))
        )
        await room.kill(room.server)
        await room.store.begin(
            lambda session: session.execute(update(LeaseRow).values(holder="copy", epoch=1, expires_at=at(9)))
        )
        await room.serve("copy")
        await room.announce(once(at(18)))
        await room.pass_time(5)

        assert room.server.conductor.epoch == 2
        assert room.node.sounding(at(18)) is not None


async def test_no_single_node_can_lift_the_epoch_out_of_reach(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.node.tell_status(highest=((1 << 32) - 1, 1))
        await room.pass_time(60, step_s=5)
        assert room.server.conductor.epoch == 1
        restarted = await room.serve("b")
        await room.stop(room.server)
        await room.pass_time(1)

        assert restarted.conductor.epoch == 2


async def test_it_rises_at_most_every_so_often(tmp_path: Path):
    async with a_room(tmp_path) as room:
        for claim in range(2, 60):
            room.server.conductor.heard(Heard(frozenset(), frozenset({NODE}), (claim * 10, 1)))
            await room.pass_time(0.5)

        assert room.server.conductor.epoch < 600
        assert room.sent.count(f"loa/1/node/{FAR}/plan") <= 4


async def test_keys_said_by_a_clock_that_was_set_back_are_still_the_newest(tmp_path: Path):
    async with a_room(tmp_path) as room:
        room.clock._start -= timedelta(hours=3)
        room.hub.kill()
        room.hub.revive()
        await room.pass_time(2)

        assert [reason for reason in room.node.refused if reason.startswith("keys")] == []


# -- bad rows ---------------------------------------------------------------------------------------------------------


async def test_one_unreadable_schedule_is_named_and_silences_nobody_else(tmp_path: Path):
    async with a_room(tmp_path) as room:
        broken, sound = await room.announce(once(at(16)), title="Hỏng"), await room.announce(once(at(17)))
        await room.store.begin(
            lambda session: session.execute(
                update(ScheduleRow).where(ScheduleRow.id == broken).values(rule={"kind": "weekly", "times": ["25:99"]})
            )
        )
        await room.turn()

        assert room.node.sounding(at(16)) is None
        assert (room.node.sounding(at(17)) or "").startswith(sound)
        (named,) = await conflicts(room)
        assert (named.schedule_id, named.kind) == (broken, ConflictKind.ENTRY_DROPPED)
        assert named.facts["reason"]


async def test_a_schedule_the_wire_cannot_say_is_named_and_silences_nobody_else(tmp_path: Path):
    async with a_room(tmp_path) as room:
        broken, sound = await room.announce(once(at(16)), title="Hỏng"), await room.announce(once(at(17)))
        await room.store.begin(
            lambda session: session.connection().exec_driver_sql(
                "UPDATE assets SET size_bytes = 0 WHERE label = 'Hỏng'"
            )
        )
        await room.turn()

        assert room.node.sounding(at(16)) is None
        assert (room.node.sounding(at(17)) or "").startswith(sound)
        assert [row.schedule_id for row in await conflicts(room)] == [broken]


async def test_a_target_that_is_gone_means_nobody_and_stops_nobody(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(once(at(16)), targets=(Target(TargetKind.CLUSTER, f"c2-{DONG}"),))
        await room.announce(once(at(17)))
        await room.store.begin(
            lambda session: session.execute(
                update(ClusterRow)
                .where(ClusterRow.id == f"c2-{DONG}")
                .values(retired_at=at(9), version=ClusterRow.version + 1)
            )
        )
        await room.turn()

        assert room.node.sounding(at(17)) is not None


async def test_an_unreadable_policy_leaves_the_law_in_force_and_others_alone(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(once(at(17)))
        await room.store.begin(
            lambda session: session.add(PolicyRow(unit_id=DONG, body={"quiet": "never"}, updated_at=at(9)))
        )
        await room.turn()

        assert room.node.sounding(at(17)) is not None
        assert room.node.config is not None
        assert (room.node.config.quiet_from_min, room.node.config.quiet_to_min) == (22 * 60, 5 * 60)


async def test_what_the_node_must_enforce_by_itself_reaches_it(tmp_path: Path):
    async with a_room(tmp_path) as room:
        strict = Late(LatePolicy.SKIP_IF_LATER_THAN, 1_000)
        await room.announce(once(at(17)), late=strict)
        await room.announce(once(at(18)), title="Bản tin xã")
        policy = {"max_minutes_per_day": 120, "max_minutes_per_session": 45}
        await room.store.begin(lambda session: session.add(PolicyRow(unit_id=DONG, body=policy, updated_at=at(9))))
        await room.turn()

        assert room.node.config is not None
        assert (room.node.config.max_day_min, room.node.config.max_session_min) == (120, 45)
        assert room.node.plan is not None
        limits = [(one.late_at_most_ms, one.tolerates_ms) for one in room.node.plan.segments]
        assert limits == [(1_000, 2_000), (None, None)]


async def test_nonsense_in_one_clusters_settings_costs_only_those(tmp_path: Path):
    async with a_room(tmp_path) as room:
        bad = {"volume": [{"from_minute": 99_999, "gain_db": 1}], "delay_trim_ms": "soon"}
        await room.store.begin(
            lambda session: session.execute(
                update(ClusterRow)
                .where(ClusterRow.id == f"c1-{DONG}")
                .values(config=bad, version=ClusterRow.version + 1)
            )
        )
        await room.announce(once(at(17)))
        await room.turn()

        assert room.node.config is not None
        assert room.node.config.volume == ()
        assert room.node.sounding(at(17)) is not None


async def test_an_alert_that_is_none_takes_nothing_from_the_others(tmp_path: Path):
    async with a_room(tmp_path) as room:
        duo = await a_duo(room.village.desk, DONG)
        asked = NewEmergency(DONG, EmergencyMode.REAL, Message(text="Lũ về"), "Lũ", confirm="KHẨN CẤP")
        good = (await duo.raise_(asked)).row

        def write(session: Session) -> None:
            for name, body in (("a2", {"alert_id": ""}), ("a3", {"alert_id": "a3", "issued_ms": 1, "expires_ms": 2})):
                told = {"level": 90, **body}
                session.add(AlertRow(id=name, unit_id=DONG, level=90, body=told, issued_at=at(8), expires_at=at(12)))

        await room.store.begin(write)
        await room.turn()

        assert [one.alert_id for one in room.node.sets[DONG].alerts] == [good.id]
        await room.until(at(12, 0, 1))
        assert room.node.sets[DONG].alerts == ()


async def test_a_plan_too_large_for_a_packet_is_trimmed_at_its_far_end_and_named(tmp_path: Path):
    async with a_room(tmp_path, limit_bytes=500) as room:
        schedule = await room.announce(daily("06:00", "11:00", "17:00", "18:00", "19:00"))
        await room.turn()

        assert room.node.sounding(at(11)) is not None
        assert room.node.sounding(at(17, day=8)) is None
        assert len(room.hub.retained[f"loa/1/node/{NODE}/plan"]) < 1000
        (named,) = await conflicts(room)
        assert (named.schedule_id, named.kind) == (schedule, ConflictKind.PLAN_TOO_LARGE)
        await scheduling.cancel_schedule(room.village.desk, LAN, CancelSchedule(schedule, Scope.ALL))
        await room.turn()
        assert await conflicts(room) == []


async def test_a_broken_tree_of_places_leaves_the_last_good_one_in_force(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(once(at(17)))
        await room.store.begin(
            lambda session: session.connection().exec_driver_sql(
                "INSERT INTO unit_links (id, unit_id, parent_id, valid_from) VALUES ('loop', ?, ?, '2025-07-01')",
                (PROVINCE, DONG),
            )
        )
        await room.turn()

        assert room.node.sounding(at(17)) is not None


# -- orders -----------------------------------------------------------------------------------------------------------


async def test_an_order_goes_out_again_until_the_node_says_it_is_done(tmp_path: Path):
    async with a_room(tmp_path) as room:
        order = await fleet.order_node(room.village.desk, OPERATOR, Order(NODE, OrderVerb.IDENTIFY))
        await room.pass_time(10)
        assert [one for _, _, one in room.node.orders] == [order.id] * 3

        await room.node.report("order_done", order.id, 0)
        await room.pass_time(40)
        assert len(room.node.orders) == 3
        row = await room.store.read(lambda session: session.get(OutboxRow, order.id))
        assert row is not None
        assert (row.state, row.attempts) == (OutboxState.ACKNOWLEDGED, 3)


async def test_two_orders_at_once_reach_the_same_node(tmp_path: Path):
    async with a_room(tmp_path) as room:
        for _ in range(2):
            await fleet.order_node(room.village.desk, OPERATOR, Order(NODE, OrderVerb.IDENTIFY))
        await room.turn()

        assert len({one for _, _, one in room.node.orders}) == 2
        assert room.node.refused == {}


async def test_nobody_confirms_anothers_order(tmp_path: Path):
    async with a_room(tmp_path) as room:
        order = await fleet.order_node(room.village.desk, OPERATOR, Order(NODE, OrderVerb.REBOOT))
        await room.nodes[NEIGHBOUR].report("order_done", order.id, 0)
        await room.turn()

        row = await room.store.read(lambda session: session.get(OutboxRow, order.id))
        assert row is not None
        assert row.state is OutboxState.SENT


async def test_an_order_nobody_answered_is_given_up_visibly(tmp_path: Path):
    async with a_room(tmp_path) as room:
        order = await fleet.order_node(room.village.desk, OPERATOR, Order(NODE, OrderVerb.IDENTIFY))
        await room.pass_time(62)
        row = await room.store.read(lambda session: session.get(OutboxRow, order.id))

        assert row is not None
        assert row.state is OutboxState.EXPIRED


async def test_an_order_that_is_none_stops_no_other(tmp_path: Path):
    async with a_room(tmp_path) as room:
        bad = await fleet.order_node(room.village.desk, OPERATOR, Order(NODE, OrderVerb.IDENTIFY))
        await room.store.begin(
            lambda session: session.execute(
                update(OutboxRow).where(OutboxRow.id == bad.id).values(body={"verb": "sing"})
            )
        )
        good = await fleet.order_node(room.village.desk, OPERATOR, Order(NODE, OrderVerb.IDENTIFY))
        await room.turn()

        assert [one for _, _, one in room.node.orders] == [good.id]
        row = await room.store.read(lambda session: session.get(OutboxRow, bad.id))
        assert row is not None
        assert row.state is OutboxState.EXPIRED


# -- relays -----------------------------------------------------------------------------------------------------------


async def a_relay(room: Room) -> str:
    feed = await room.village.feed()
    await scheduling.create_schedule(
        room.village.desk,
        LAN,
        NewSchedule(
            unit_id=DONG,
            content_kind=ContentKind.FEED,
            content_id=feed,
            rule=once(at(17)),
            length=timedelta(minutes=30),
        ),
    )
    return feed


async def test_a_relay_is_started_before_its_minute_and_let_go_after_it(tmp_path: Path):
    async with a_room(tmp_path) as room:
        feed = await a_relay(room)
        await room.until(at(16, 59, 40))
        assert room.server.relays.wanted == {}
        await room.until(at(16, 59, 50))
        assert room.server.relays.wanted[feed].listeners == 2
        await room.until(at(17, 30, 3))
        assert set(room.server.relays.wanted) == {feed}
        await room.until(at(17, 30, 8))
        assert room.server.relays.wanted == {}


async def test_a_held_back_feed_begins_earlier_and_a_stopped_one_is_barred_until_it_is_released(tmp_path: Path):
    async with a_room(tmp_path) as room:
        feed = await a_relay(room)
        await relays.set_relay(room.village.desk, OPERATOR, feed, RelaySetting(delay_ms=10_000))
        await room.until(at(16, 59, 30))
        assert room.server.relays.wanted == {}
        await room.until(at(16, 59, 40))
        assert room.server.relays.wanted[feed].delay_s == 10.0
        await relays.stop_feed(room.village.desk, OPERATOR, feed, "nội dung sai")
        await room.turn()
        assert room.server.relays.wanted[feed].barred == "stopped"
        await relays.release_feed(room.village.desk, OPERATOR, feed)
        await room.turn()
        assert room.server.relays.wanted[feed].barred is None


async def test_streams_carry_the_epoch_of_who_leads_and_a_deposed_leader_has_none(tmp_path: Path):
    async with a_room(tmp_path) as room:
        feed = await a_relay(room)
        first, second = room.server, await room.serve("b")
        await room.until(at(17, 5))
        leader, other = (first, second) if first.conductor.epoch else (second, first)
        epoch = leader.relays.wanted[feed].epoch
        assert (epoch, other.relays.wanted) == (leader.conductor.epoch, {})
        room.servers.remove(leader)
        await room.pass_time(LEASE_S + 1)
        await leader.conductor.tick()

        assert leader.relays.wanted == {}
        assert other.relays.wanted[feed].epoch == epoch + 1
        room.servers.append(leader)


async def test_a_feed_withdrawn_by_its_owner_is_no_longer_relayed(tmp_path: Path):
    async with a_room(tmp_path) as room:
        feed = await a_relay(room)
        await room.until(at(17, 5))
        assert set(room.server.relays.wanted) == {feed}
        await room.store.begin(lambda session: session.connection().exec_driver_sql("UPDATE feeds SET revoked_at = 1"))
        await room.turn()

        assert room.server.relays.wanted == {}


# -- without a ring ---------------------------------------------------------------------------------------------------


async def test_every_ring_is_dropped_and_every_broadcast_is_planned_all_the_same(tmp_path: Path):
    async with a_room(tmp_path) as room:
        wanted = [at(hour) for hour in (10, 11, 12)]
        for instant in wanted:
            await room.announce(once(instant), title=f"{instant:%H}")
        room.store.doorbell._ears.clear()  # nobody hears anything any more
        await room.pass_time(31)

        assert all(room.node.sounding(instant) for instant in wanted)


async def test_a_schedule_cancelled_between_planning_and_noting_stops_nothing(tmp_path: Path):
    async with a_room(tmp_path) as room:
        await room.announce(once(at(17)))
        await room.store.begin(
            lambda session: session.execute(update(ScheduleRow).values(state=ScheduleState.CANCELLED))
        )
        await room.announce(once(at(18)))
        await room.turn()

        assert room.node.sounding(at(17)) is None
        assert room.node.sounding(at(18)) is not None
