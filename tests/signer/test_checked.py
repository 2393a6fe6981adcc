"""A web process that was broken into asks for signatures: whatever it says of itself, the rows decide."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from sqlalchemy import text, update

from broadcast_server.control import approvals as approving
from broadcast_server.control import emergency, fleet, scheduling
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.emergency import Message, NewEmergency
from broadcast_server.control.fleet import Order, OrderVerb
from broadcast_server.control.scheduling import CancelSchedule, NewSchedule, Scope
from broadcast_server.domain.clock import to_ms
from broadcast_server.domain.consent import ConsentRole
from broadcast_server.domain.errors import Refused, Unavailable
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.signer.checked import CheckedSigner
from broadcast_server.signer.keys import FileSigner
from broadcast_server.signer.limits import Limits
from broadcast_server.signer.port import SignRequest
from broadcast_server.store import append_only, approvals, audit, emergencies, leases, sequences
from broadcast_server.store.journal import Journal
from broadcast_server.store.session import Session
from broadcast_server.store.tables import AlertRow, AuditRow, EmergencyRow, PolicyRow, ScheduleRow
from broadcast_server.store.tables_approval import EmergencyConsentRow
from broadcast_server.store.words import ContentKind, EmergencyMode, Step, StepOf
from speaker_protocol import messages as wire
from speaker_protocol.rules import BulletinClass, Level
from speaker_protocol.signing import Kind
from tests.playout.rig import FAR, NEIGHBOUR, NODE, Room, a_room
from tests.support.alarms import a_duo
from tests.support.clock import FakeChance
from tests.support.village import DONG, LAN, PROVINCE, TAY, daily

MINUTE_MS = 60_000


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with a_room(tmp_path / "keys") as room:
        yield room


class Thief:
    """Speaks for the server: it knows epoch and number, and may ask for anything."""

    def __init__(self, room: Room, signer: CheckedSigner | None = None) -> None:
        self.room, self.signer = room, signer or room.server.signer

    async def ask(self, *requests: SignRequest) -> list[str]:
        """What became of each: `signed`, or the reason."""
        return [one.code if isinstance(one, Refused) else "signed" for one in await self.signer.sign_each(requests)]

    async def request(self, kind: Kind, unit: str | None, target: str, body: bytes, **facts: Any) -> SignRequest:
        def look(session: Session) -> tuple[int, int]:
            lease = leases.look(session, leases.LEADER)
            assert lease is not None
            return lease.epoch, sequences.last(session, sequences.SIGNED)

        epoch, number = await self.room.store.read(look)
        now_ms = to_ms(self.room.clock.now())
        told = {
            "issued_ms": now_ms,
            "expires_ms": now_ms + MINUTE_MS,
            "epoch": epoch,
            "sequence": now_ms if kind in {Kind.HEAD, Kind.ACK} else number,
            **facts,
        }
        return SignRequest(kind=kind, unit=unit, target=target, body=body, **told)

    async def plan(
        self,
        change: Callable[[wire.PlanSegment], wire.PlanSegment] = lambda segment: segment,
        *,
        node: str = NODE,
        of: str = NODE,
        unit: str = DONG,
        assets: Sequence[wire.PlanAsset] = (),
        **facts: Any,
    ) -> SignRequest:
        """The plan that the server made for `of`, changed, for `node`."""
        desired = self.room.server.conductor.desired
        assert desired is not None
        target = next(one for one in desired.targets if of in {seat.node_id for seat in one.seats})
        honest = wire.open_plan_body(wire.plan_head(target.packed, valid_from_ms=0, valid_until_ms=1), target.packed)
        body = wire.PlanBody(segments=tuple(map(change, honest.segments)), assets=(*honest.assets, *assets))
        packed = wire.pack_plan_body(body)
        until_ms = to_ms(desired.window.end)
        head = wire.plan_head(packed, valid_from_ms=to_ms(desired.window.start), valid_until_ms=until_ms)
        told = {"packed": packed, "expires_ms": until_ms, **facts}
        return await self.request(Kind.PLAN, unit, node, head.encode(), **told)

    async def why(self, request: SignRequest) -> set[str]:
        """The reasons of a plan's entries."""
        (outcome,) = await self.signer.sign_each((request,))
        assert isinstance(outcome, Refused)
        return set(outcome.facts["entries"].values())


async def audited(room: Room, verb: str) -> list[AuditRow]:
    return await room.store.read(lambda session: list(session.query(AuditRow).filter_by(verb=verb)))


async def morning(room: Room, **more: Any) -> str:
    """An approved bulletin every morning at seven, on the air of xã Đông."""
    schedule = await room.announce(daily("07:00", "17:00"), **more)
    await room.turn()
    return schedule


# -- plans ------------------------------------------------------------------------------------------------------------


async def test_what_people_approved_and_placed_is_signed(room: Room):
    await morning(room)
    thief = Thief(room)

    assert await thief.ask(await thief.plan(), await thief.plan(node=NEIGHBOUR)) == ["signed", "signed"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"entry_id": "0" * 32 + "@1780279200000"}, "signer_entry_unknown"),
        ({"asset": "f" * 64}, "signer_content_differs"),
        ({"approval": "f" * 64}, "signer_content_differs"),
        ({"gain_db": 12.0}, "signer_content_differs"),
        ({"asset": None, "stream": "radio"}, "signer_content_differs"),
        ({"klass": BulletinClass.EMERGENCY}, "signer_class_differs"),
        ({"level": Level.EMERGENCY_UPPER}, "signer_class_differs"),
    ],
)
async def test_a_bulletin_nobody_approved_in_the_place_of_one_that_was(room: Room, change: dict[str, Any], reason: str):
    await morning(room)
    thief = Thief(room)

    assert reason in await thief.why(await thief.plan(lambda one: one.model_copy(update=change)))


async def test_the_approved_sound_at_three_in_the_night(room: Room):
    await morning(room)
    thief = Thief(room)

    def earlier(one: wire.PlanSegment) -> wire.PlanSegment:
        shift = 4 * 60 * MINUTE_MS
        return one.model_copy(update={"start_ms": one.start_ms - shift, "end_ms": one.end_ms - shift})

    assert await thief.why(await thief.plan(earlier)) == {"signer_outside_entry"}


async def test_a_schedule_raised_to_an_emergency_behind_the_approvals_back(room: Room):
    schedule = await morning(room)

    def raise_it(session: Session) -> None:
        session.execute(
            update(ScheduleRow)
            .where(ScheduleRow.id == schedule)
            .values(klass=BulletinClass.EMERGENCY, level=Level.EMERGENCY_COMMUNE, version=ScheduleRow.version + 1)
        )

    await room.store.begin(raise_it)
    thief = Thief(room)
    change = {"klass": BulletinClass.EMERGENCY, "level": int(Level.EMERGENCY_COMMUNE)}

    assert await thief.why(await thief.plan(lambda one: one.model_copy(update=change))) == {
        "signer_class_above_approval"
    }


async def content_of(room: Room, schedule: str) -> str:
    return await room.store.read(lambda session: session.get_one(ScheduleRow, schedule).content_id)


async def test_a_bulletin_that_was_recalled_a_second_ago(room: Room):
    schedule = await morning(room)
    thief = Thief(room)
    before = await thief.plan()
    assert await thief.ask(before) == ["signed"]
    await approving.recall(room.village.desk, LAN, await content_of(room, schedule))
    await room.clock.advance(1.1)

    assert "signer_content_not_approved" in await thief.why(before)


async def cancel(room: Room, schedule: str) -> None:
    await scheduling.cancel_schedule(room.village.desk, LAN, CancelSchedule(schedule, Scope.ALL))


async def test_a_schedule_that_was_cancelled(room: Room):
    schedule = await morning(room)
    thief = Thief(room)
    before = await thief.plan()
    await cancel(room, schedule)
    await room.clock.advance(1.1)

    assert "signer_entry_unknown" in await thief.why(before)


async def test_one_communes_plan_for_another_commune(room: Room):
    await morning(room)
    thief = Thief(room)

    assert await thief.ask(await thief.plan(node=FAR)) == ["signer_place_differs"]
    assert await thief.why(await thief.plan(node=FAR, unit=TAY)) == {"signer_not_addressed"}
    assert await thief.ask(await thief.plan(node="n99")) == ["signer_place_differs"]


async def test_one_clusters_programme_on_the_cluster_beside_it(room: Room):
    await morning(room, targets=(Target(TargetKind.CLUSTER, f"c1-{DONG}"),))
    thief = Thief(room)

    assert await thief.ask(await thief.plan()) == ["signed"]
    assert await thief.why(await thief.plan(node=NEIGHBOUR)) == {"signer_not_addressed"}


async def test_hours_that_became_quiet_after_it_was_placed(room: Room):
    await morning(room)
    thief = Thief(room)
    before = await thief.plan()

    def quieter(session: Session) -> None:
        body = {"quiet": {"from": "16:00", "to": "08:00"}}
        session.add(PolicyRow(unit_id=DONG, body=body, updated_at=room.clock.now()))

    await room.store.begin(quieter)

    assert await thief.why(before) == {"signer_quiet_hours"}


async def test_a_plan_for_a_hundred_days_or_for_last_week(room: Room):
    await morning(room)
    thief = Thief(room)
    far_ms = to_ms(room.clock.now() + timedelta(days=100))

    assert await thief.ask(await thief.plan(expires_ms=far_ms)) == ["signer_lives_too_long"]
    await room.clock.advance(7 * 86_400)
    assert await thief.ask(await thief.plan()) == ["signer_lives_too_long"]


async def test_a_body_that_is_not_what_its_head_says_or_is_missing(room: Room):
    await morning(room)
    thief = Thief(room)
    other = wire.pack_plan_body(wire.PlanBody())
    await room.clock.advance(1.1)

    assert await thief.ask(await thief.plan(packed=other)) == ["signer_unreadable"]
    assert await thief.ask(await thief.plan(packed=None)) == ["signer_unreadable"]
    assert await thief.ask(await thief.request(Kind.PLAN, DONG, NODE, b"{")) == ["signer_unreadable"]


async def test_a_file_that_nothing_of_the_plan_sounds(room: Room):
    await morning(room)
    thief = Thief(room)
    extra = wire.PlanAsset(sha256="f" * 64, size_bytes=9_000_000, duration_ms=1_000)

    assert await thief.why(await thief.plan(assets=(extra,))) == {"signer_asset_unknown"}


async def test_one_bad_plan_takes_nothing_from_the_others(room: Room):
    await morning(room)
    thief = Thief(room)
    bad = await thief.plan(lambda one: one.model_copy(update={"asset": "f" * 64}))

    assert await thief.ask(await thief.plan(), bad, await thief.plan(node=NEIGHBOUR)) == [
        "signed",
        "signer_segments_refused",
        "signed",
    ]


async def test_a_priority_bulletin_that_its_writer_approved_alone(room: Room):
    bulletin = await room.village.bulletin("Lệnh sơ tán", klass=BulletinClass.PRIORITY)
    placed = await scheduling.create_schedule(
        room.village.desk,
        OPERATOR,
        NewSchedule(unit_id=DONG, content_kind=ContentKind.BULLETIN, content_id=bulletin, rule=daily("07:00")),
    )
    await room.turn()
    thief = Thief(room)
    before = await thief.plan()
    assert await thief.ask(before) == ["signed"]

    def alone(session: Session) -> None:
        for step in (Step.WRITE, Step.APPROVE):
            told = {"user_id": "user-lan", "login": "lan", "at": room.clock.now()}
            approvals.add_step(session, StepOf.VERSION, f"v{bulletin[1:]}", step, **told)

    await room.store.begin(alone)
    await room.clock.advance(1.1)

    assert placed.schedule.klass is BulletinClass.PRIORITY
    assert await thief.why(before) == {"signer_class_above_approval"}


# -- order in time ----------------------------------------------------------------------------------------------------


async def test_a_leader_that_slept_through_its_lease_signs_nothing_more(room: Room):
    await morning(room)
    thief = Thief(room)
    before = await thief.plan()
    await room.stop(room.server)
    other = await room.serve("b")
    await room.turn()
    old = Thief(room, other.signer)

    assert await old.ask(before) == ["signer_epoch_old"]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"epoch": 4_000_000_000}, "signer_epoch_ahead"),
        ({"sequence": 1 << 62}, "signer_number_not_given"),
        ({"sequence": 0}, "signer_number_not_given"),
        ({"issued_ms": 1_780_000_000_000}, "signer_clock_apart"),
    ],
)
async def test_numbers_and_instants_that_would_deafen_nodes_to_what_comes_later(
    room: Room, facts: dict[str, Any], reason: str
):
    await morning(room)
    thief = Thief(room)

    assert await thief.ask(await thief.plan(**facts)) == [reason]


async def test_a_set_that_would_hold_for_years(room: Room):
    thief = Thief(room)
    far_ms = to_ms(room.clock.now() + timedelta(days=400))
    body = wire.AlertSetBody().encode()

    assert await thief.ask(await thief.request(Kind.ALERTS, DONG, DONG, body, expires_ms=far_ms)) == [
        "signer_lives_too_long"
    ]


# -- configurations, orders, streams, keys ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"quiet_from_min": 0, "quiet_to_min": 0},
        {"max_gain_db": 12.0},
        {"max_day_min": 1},
        {"alert_gain_db": -60.0},
        {"volume": (wire.VolumeStep(from_minute=0, gain_db=-60.0),)},
        {"path": (TAY, PROVINCE)},
        {"cluster": f"c2-{DONG}"},
    ],
)
async def test_a_configuration_with_limits_or_a_place_of_its_own(room: Room, change: dict[str, Any]):
    thief, honest = Thief(room), room.node.config
    assert honest is not None
    good = await thief.request(Kind.CONFIG, None, NODE, honest.encode())
    bad = await thief.request(Kind.CONFIG, None, NODE, honest.model_copy(update=change).encode())

    assert (await thief.ask(good))[0] == "signed"
    assert (await thief.ask(bad))[0] in {"signer_limits_differ", "signer_place_differs"}


async def test_an_order_nobody_gave(room: Room):
    thief = Thief(room)
    body = wire.OrderBody(order_id="nobody", verb=wire.OrderVerb.REBOOT)

    assert await thief.ask(await thief.request(Kind.ORDER, DONG, NODE, body.encode())) == ["signer_order_unknown"]


async def test_an_order_that_was_given_is_signed_for_its_node_and_is_in_the_books(room: Room):
    order = await fleet.order_node(room.village.desk, LAN, Order(NODE, OrderVerb.IDENTIFY))
    thief = Thief(room)
    body = wire.OrderBody(order_id=order.id, verb=wire.OrderVerb.IDENTIFY, seconds=5)
    longer = body.model_copy(update={"seconds": 60})

    assert await thief.ask(
        await thief.request(Kind.ORDER, DONG, NODE, body.encode()),
        await thief.request(Kind.ORDER, DONG, NEIGHBOUR, body.encode()),
        await thief.request(Kind.ORDER, DONG, NODE, longer.encode()),
    ) == ["signed", "signer_order_unknown", "signer_content_differs"]
    (row,) = await audited(room, "signer.order")
    assert (row.subject, row.detail["verb"]) == (f"order/{order.id}", "identify")


async def test_a_stream_that_nobody_placed(room: Room):
    thief = Thief(room)
    head = wire.StreamHeadBody(public_key="a" * 64, packets_per_batch=10, t0_utc_ms=1, playout_delay_ms=1_000)
    end = await thief.request(Kind.HEAD, None, "radio", head.encode())

    assert await thief.ask(end) == ["signer_stream_unknown"]


async def test_keys_of_a_unit_that_is_not_there(room: Room):
    thief = Thief(room)
    one = await thief.request(Kind.ORDER, DONG, NODE, b"")
    told = {"issued_ms": one.issued_ms, "epoch": one.epoch, "sequence": one.sequence}

    unknown, known = await thief.signer.statements_of(["nowhere", DONG], **told)
    assert isinstance(unknown, Refused)
    assert unknown.code == "signer_place_differs"
    assert isinstance(known, tuple)


# -- alerts -----------------------------------------------------------------------------------------------------------


async def test_an_alarm_that_nobody_raised(room: Room):
    thief = Thief(room)
    now_ms = to_ms(room.clock.now())
    alert = wire.AlertBody(
        alert_id="alarm", level=Level.EMERGENCY_UPPER, issued_ms=now_ms, expires_ms=now_ms + MINUTE_MS, text="Chạy đi"
    )
    request = await thief.request(Kind.ALERTS, DONG, DONG, wire.AlertSetBody(alerts=(alert,)).encode())

    (outcome,) = await thief.signer.sign_each((request,))
    assert isinstance(outcome, Refused)
    assert outcome.facts["alerts"] == {"alarm": "signer_alert_unknown"}
    (row,) = await audited(room, "signer.refused")
    assert (row.unit_id, row.detail["code"]) == (DONG, "signer_alerts_refused")


async def test_a_silence_that_nobody_ordered(room: Room):
    thief = Thief(room)
    body = wire.AlertSetBody(stop_all=wire.StopAllLatch(latch_id="hush", since_ms=to_ms(room.clock.now())))

    assert await thief.ask(await thief.request(Kind.ALERTS, DONG, DONG, body.encode())) == ["signer_alerts_refused"]


# -- floods and the books ---------------------------------------------------------------------------------------------


async def test_a_flood_of_refused_requests_is_written_down_once_with_its_number(room: Room):
    thief = Thief(room)
    for _ in range(50):
        await thief.ask(await thief.plan(node="n99"))
    await room.clock.advance(11)
    await thief.ask(await thief.plan(node="n99"))

    rows = await audited(room, "signer.refused")
    assert [row.detail["more"] for row in rows] == [0, 49]
    assert thief.signer.refused["signer_place_differs"] == 51


async def test_a_place_that_asks_for_more_than_its_share_is_refused_and_the_others_are_not(room: Room, tmp_path: Path):
    await morning(room)
    strict = CheckedSigner(
        lambda path_of: FileSigner(tmp_path / "keys", chance=FakeChance(98), path_of=path_of),
        store=room.store,
        clock=room.clock,
        limits=Limits(envelopes={Kind.PLAN: 2, Kind.CONFIG: 2}),
    )
    thief = Thief(room, strict)
    assert await thief.ask(*[await thief.plan() for _ in range(4)]) == ["signed", "signed"] + 2 * ["signer_limited"]
    far = await thief.plan(of=FAR, node=FAR, unit=TAY)
    assert await thief.ask(far) == ["signed"]
    await room.clock.advance(300.0)
    assert await thief.ask(await thief.plan()) == ["signed"]


# -- the leader goes on -----------------------------------------------------------------------------------------------


async def test_an_entry_without_ground_is_left_out_named_and_all_others_sound(room: Room):
    good = await morning(room)
    bad = await room.announce(daily("18:00"), title="Không ai duyệt")
    planner = room.server.conductor._planner
    honest = planner._expander.load
    stuck = await room.store.read(
        lambda session: honest(session, planner.window(room.clock.now()), room.clock.now(), schedule_ids=None)
    )

    class Stuck:
        """A planner's memory that still holds what was taken off the air."""

        faults: Mapping[str, Any] = MappingProxyType({})

        def load(self, *_: Any, **__: Any) -> Any:
            return stuck

    await cancel(room, bad)
    planner._expander = Stuck()  # type: ignore[assignment]
    await room.turn()
    await room.turn()

    assert room.node.plan is not None
    assert {segment.entry_id.partition("@")[0] for segment in room.node.plan.segments} == {good}
    desired = room.server.conductor.desired
    assert desired is not None
    assert {one.facts["reason"] for one in desired.troubles if one.schedule_id == bad} == {"signer_entry_unknown"}


async def test_while_the_store_is_away_plans_wait(room: Room):
    await morning(room)
    thief = Thief(room)
    request = await thief.plan()

    thief.signer._store = Away()  # type: ignore[assignment]
    with pytest.raises(Unavailable):
        await thief.ask(request)


# -- two people -------------------------------------------------------------------------------------------------------


def unlock_consents(session: Session) -> None:
    """As who owns the database may; everybody else is refused by the database itself."""
    for statement in append_only.unmaking("emergency_consents")[session.get_bind().dialect.name]:
        session.execute(text(statement))


def flood(**changes: Any) -> NewEmergency:
    asked = NewEmergency(DONG, EmergencyMode.REAL, Message(hazard="flood", text="Lũ về"), "Lũ", confirm="KHẨN CẤP")
    return replace(asked, **changes)


async def in_force(room: Room, request: NewEmergency) -> str:
    """Raised by two leaders; its id."""
    return (await (await a_duo(room.village.desk, request.unit_id)).raise_(request)).row.id


async def the_set(room: Room, unit: str = DONG) -> wire.AlertSetBody:
    """What the rows have in force for a unit, as an honest server says it."""
    sets = await room.store.read(lambda session: emergencies.sets(session, now=room.clock.now()))
    alerts = tuple(wire.AlertBody.model_validate(body) for body in sets.alerts.get(unit, ()))
    return wire.AlertSetBody(alerts=alerts)


async def asked_for(room: Room, body: wire.AlertSetBody, unit: str = DONG) -> str | dict[str, str]:
    """`signed`, or the reasons by alert."""
    thief = Thief(room)
    (outcome,) = await thief.signer.sign_each((await thief.request(Kind.ALERTS, unit, unit, body.encode()),))
    return "signed" if isinstance(outcome, bytes) else outcome.facts.get("alerts", outcome.code)


async def test_what_two_people_agreed_to_is_signed_and_written_down_once(room: Room):
    made = await in_force(room, flood())
    said = await the_set(room)

    assert await asked_for(room, said) == "signed"
    assert await asked_for(room, said) == "signed"
    (row,) = await audited(room, "signer.emergency")
    assert (row.subject, row.unit_id, row.detail["mode"]) == (f"emergency/{made}", DONG, "real")


@pytest.mark.parametrize(
    "change",
    [
        {"text": "Chạy ngay đi"},
        {"hazard": "fire"},
        {"asset": "f" * 64},
        {"times": 20},
        {"expires_ms": 1_790_000_000_000},
    ],
)
async def test_another_wording_under_the_two_peoples_name(room: Room, change: dict[str, Any]):
    made = await in_force(room, flood())
    (alert,) = (await the_set(room)).alerts
    forged = wire.AlertSetBody(alerts=(alert.model_copy(update=change),))

    assert await asked_for(room, forged) == {made: "signer_alert_differs"}


async def test_a_drill_that_is_turned_into_the_real_thing(room: Room):
    made = await in_force(room, flood(mode=EmergencyMode.DRILL, confirm="DIỄN TẬP"))
    (alert,) = (await the_set(room)).alerts
    forged = wire.AlertSetBody(alerts=(alert.model_copy(update={"drill": False}),))

    assert await asked_for(room, forged) == {made: "signer_alert_differs"}


async def change_rows(room: Room, made: str, **values: Any) -> None:
    """As somebody does who can write the rows, bodies included."""

    def write(session: Session) -> None:
        row = session.get_one(EmergencyRow, made)
        for name, value in values.items():
            setattr(row, name, value)
        emergencies.set_bodies(session, made, emergencies.body_of(session, row))

    await room.store.begin(write)


@pytest.mark.parametrize(
    "values", [{"mode": EmergencyMode.REAL}, {"text": "Chạy ngay đi"}, {"level": 99}, {"expires_min": 1_000}]
)
async def test_rows_that_were_changed_after_two_people_agreed(room: Room, values: dict[str, Any]):
    made = await in_force(room, flood(mode=EmergencyMode.DRILL, confirm="DIỄN TẬP"))
    await change_rows(room, made, **values)

    assert await asked_for(room, await the_set(room)) == {made: "unfit_content_changed"}


async def test_an_emergency_with_one_persons_word_alone(room: Room):
    made = await in_force(room, flood())

    def forget(session: Session) -> None:
        unlock_consents(session)
        session.query(EmergencyConsentRow).filter_by(role=ConsentRole.APPROVER).delete()

    await room.store.begin(forget)
    assert await asked_for(room, await the_set(room)) == {made: "unfit_consent_missing"}


async def test_one_person_under_two_roles(room: Room):
    made = await in_force(room, flood())

    def merge(session: Session) -> None:
        unlock_consents(session)
        first, second = session.query(EmergencyConsentRow).order_by(EmergencyConsentRow.role)
        second.user_id = first.user_id

    await room.store.begin(merge)
    assert await asked_for(room, await the_set(room)) == {made: "unfit_same_person"}


async def test_yesterdays_consents_under_todays_alarm(room: Room):
    first = await in_force(room, flood())
    await room.clock.advance(3_600)
    second = await in_force(room, flood(message=Message(text="Vỡ đê")))

    def replay(session: Session) -> None:
        unlock_consents(session)
        session.query(EmergencyConsentRow).filter_by(emergency_id=second).delete()
        for row in session.query(EmergencyConsentRow).filter_by(emergency_id=first):
            row.emergency_id = second

    await room.store.begin(replay)
    assert await asked_for(room, await the_set(room)) == {second: "unfit_consent_missing"}


async def test_an_emergency_of_one_commune_in_another(room: Room):
    made = await in_force(room, flood())
    said = await the_set(room)

    assert await asked_for(room, said, TAY) == {made: "signer_alert_unknown"}

    def spread(session: Session) -> None:
        row = session.get_one(EmergencyRow, made)
        alert = session.query(AlertRow).filter_by(emergency_id=made).one()
        told = {name: getattr(alert, name) for name in ("emergency_id", "level", "body", "issued_at", "expires_at")}
        session.add(AlertRow(id="spread", unit_id=TAY, **told))
        row.units = [DONG, TAY]

    await room.store.begin(spread)
    assert await asked_for(room, said, TAY) == {made: "signer_place_differs"}


async def test_an_emergency_that_is_over_or_was_taken_back(room: Room):
    made = await in_force(room, flood())
    said = await the_set(room)
    await emergency.cancel(room.village.desk, OPERATOR, made, reason="Nhầm")

    assert await asked_for(room, said) == {made: "signer_alert_unknown"}


async def test_an_alarm_in_force_is_not_left_out(room: Room):
    made = await in_force(room, flood())
    await room.clock.advance(30)

    assert await asked_for(room, wire.AlertSetBody()) == {made: "signer_alert_missing"}


async def test_more_alarms_than_people_can_raise_are_stopped_and_what_is_in_force_goes_on(room: Room, tmp_path: Path):
    strict = CheckedSigner(
        lambda path_of: FileSigner(tmp_path / "keys", chance=FakeChance(98), path_of=path_of),
        store=room.store,
        clock=room.clock,
        limits=Limits(emergencies=1),
    )
    await in_force(room, flood())
    first = await the_set(room)
    thief = Thief(room, strict)
    assert await thief.ask(await thief.request(Kind.ALERTS, DONG, DONG, first.encode())) == ["signed"]
    await in_force(room, flood(message=Message(text="Vỡ đê")))
    both = await the_set(room)

    assert await thief.ask(await thief.request(Kind.ALERTS, DONG, DONG, both.encode())) == ["signer_limited"]
    assert await thief.ask(await thief.request(Kind.ALERTS, DONG, DONG, first.encode())) == ["signed"]


async def test_a_consent_that_vanished_silences_its_own_alarm_and_no_other(room: Room):
    bad = await in_force(room, flood())
    await room.clock.advance(20)
    good = await in_force(room, flood(message=Message(text="Vỡ đê")))

    def forget(session: Session) -> None:
        unlock_consents(session)
        session.query(EmergencyConsentRow).filter_by(emergency_id=bad).delete()

    await room.store.begin(forget)
    await room.turn()

    assert [alert.alert_id for alert in room.node.sets[DONG].alerts] == [good]


# -- while the store is away ------------------------------------------------------------------------------------------


class Away:
    """A database that answers nobody."""

    async def read(self, _fn: Any) -> Any:
        raise Unavailable("store_unavailable")

    async def begin(self, _fn: Any, **_: Any) -> Any:
        raise Unavailable("store_unavailable")


async def test_without_a_store_a_warning_in_force_is_renewed_for_five_minutes_and_nothing_else(
    room: Room, tmp_path: Path
):
    signer = CheckedSigner(
        lambda path_of: FileSigner(tmp_path / "keys", chance=FakeChance(98), path_of=path_of),
        store=room.store,
        clock=room.clock,
        journal=Journal(tmp_path / "journal.jsonl"),
    )
    await in_force(room, flood())
    thief = Thief(room, signer)
    known = await thief.request(Kind.ALERTS, DONG, DONG, (await the_set(room)).encode())
    empty = await thief.request(Kind.ALERTS, DONG, DONG, wire.AlertSetBody().encode())
    plan = await thief.plan()
    assert await thief.ask(known) == ["signed"]
    signer._store = signer._books._store = Away()  # type: ignore[assignment]

    assert await thief.ask(known) == ["signed"]
    for other in (empty, plan):
        with pytest.raises(Unavailable):
            await thief.ask(other)
    await room.clock.advance(301)
    with pytest.raises(Unavailable):
        await thief.ask(known)

    signer._store = signer._books._store = room.store
    await in_force(room, flood(message=Message(text="Vỡ đê")))
    assert await thief.ask(await thief.request(Kind.ALERTS, DONG, DONG, (await the_set(room)).encode())) == ["signed"]
    (row,) = await audited(room, "signer.from_memory")
    assert (row.unit_id, row.detail["journal"]["line"]) == (DONG, 1)
    assert await room.store.read(audit.verify) is None
