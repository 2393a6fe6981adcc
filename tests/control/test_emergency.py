"""A dyke breaks at night: raise, correct, end; who may, what is refused, and who was not reached."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select

from broadcast_server.control import consents, emergency, outlook, scheduling
from broadcast_server.control.access import Actor
from broadcast_server.control.emergency import (
    Correction,
    DeliveryQuery,
    EmergencyQuery,
    EmergencyView,
    Message,
    NewEmergency,
    Rounds,
)
from broadcast_server.control.herald import Herald
from broadcast_server.domain.delivery import DeliveryState
from broadcast_server.domain.errors import BroadcastError, Conflict, Invalid, NotFound, Refused
from broadcast_server.store import emergencies
from broadcast_server.store.session import Session
from broadcast_server.store.tables import (
    AlertRow,
    AuditRow,
    BroadcastRow,
    GrantRow,
    NodeRow,
    NodeStatusRow,
    StopAllRow,
    UserRow,
)
from broadcast_server.store.words import ContentKind, EmergencyMode, EmergencyNature, EmergencyState, Role
from speaker_protocol.rules import BulletinClass, Level
from tests.support.alarms import Duo
from tests.support.people import Person, with_password
from tests.support.village import DONG, HA, LAN, NGOC, PROVINCE, TAY, Village, a_village, at, once

MINH = Actor("user-minh", "minh")
"""Chairman of xã Đông: launches, and makes nothing himself."""
BINH = Actor("user-binh", "binh")
"""Vice chairman of xã Đông."""
SON = Actor("user-son", "son")
"""Vice chairman of the province."""
FLOOD = Message(hazard="flood", text="Vỡ đê Tả Lai, sơ tán ngay.")


_people: dict[str, Person] = {}


@pytest_asyncio.fixture
async def village() -> AsyncIterator[Village]:
    async with a_village() as opened:
        await opened.desk.store.begin(lambda session: settle(session, opened))
        for actor in (MINH, BINH, SON, HA, LAN, NGOC):
            _people[actor.login] = await with_password(opened.desk, actor)
        yield opened


async def launch(village: Village, first: Actor, request: NewEmergency) -> EmergencyView:
    """Raised by somebody, agreed to by the vice chairman of the place."""
    second = SON if first == HA else BINH
    return await Duo(village.desk, _people[first.login], _people[second.login]).raise_(request)


async def propose(village: Village, first: Actor, request: NewEmergency) -> EmergencyView:
    return await consents.propose(village.desk, first, request, _people[first.login].proof())


async def agree(village: Village, second: Actor, proposed: EmergencyView, **more: Any) -> EmergencyView:
    duo = Duo(village.desk, _people[second.login], _people[second.login])
    return await duo.agree(proposed, **more)


def settle(session: Session, village: Village) -> None:
    """A chairman and his vice, one of the province, and one node at each of three clusters."""
    now = village.clock.now()
    for actor, unit in ((MINH, DONG), (BINH, DONG), (SON, PROVINCE)):
        session.add(UserRow(id=actor.user_id, login=actor.login, name=actor.login, created_at=now))
        session.flush()
        since = now - timedelta(days=1)
        session.add(
            GrantRow(id=f"grant-{actor.login}", user_id=actor.user_id, role=Role.LEADER, unit_id=unit, valid_from=since)
        )
    for number, (node, cluster, unit) in enumerate(
        (("n1", f"c1-{DONG}", DONG), ("n2", f"c2-{DONG}", DONG), ("n3", f"c1-{TAY}", TAY))
    ):
        session.add(
            NodeRow(
                id=node,
                unit_id=unit,
                cluster_id=cluster,
                public_key=f"{number:064x}",
                hardware="mô phỏng",
                firmware="1",
                broker_password_line="$7$",
                asset_token_hash=node,
                enrolled_at=now,
            )
        )
    session.flush()


def real(**changes: Any) -> NewEmergency:
    asked = NewEmergency(DONG, EmergencyMode.REAL, FLOOD, "Đê Tả Lai vỡ", confirm="KHẨN CẤP")
    return replace(asked, **changes)


async def told(village: Village, unit: str) -> list[dict[str, Any]]:
    """What the nodes of a unit are told now."""
    sets = await village.desk.store.read(lambda session: emergencies.sets(session, now=village.clock.now()))
    return list(sets.alerts.get(unit, ()))


async def verbs(village: Village) -> list[str]:
    def read(session: Session) -> list[str]:
        return list(
            session.scalars(
                select(AuditRow.verb)
                .where(AuditRow.verb.startswith("emergency") | AuditRow.verb.startswith("stop_all"))
                .order_by(AuditRow.sequence)
            )
        )

    return await village.desk.store.read(read)


async def test_the_chairman_raises_it_and_every_node_of_the_commune_is_owed_it(village: Village) -> None:
    view = await launch(village, MINH, real(rounds=Rounds(times=3, every_min=15), expires_min=90))

    assert (view.row.state, view.row.level, view.is_in_force) == (
        EmergencyState.IN_FORCE,
        Level.EMERGENCY_COMMUNE,
        True,
    )
    (body,) = await told(village, DONG)
    assert body["alert_id"] == view.row.id
    assert body["expires_ms"] - body["issued_ms"] == 90 * 60_000
    assert (body["hazard"], body["drill"], body["times"], body["every_min"]) == ("flood", False, 3, 15)
    assert (view.counts.nodes, view.counts.received, view.counts.unreached) == (2, 0, 2)
    assert await verbs(village) == ["emergency.propose", "emergency.launch"]
    assert await told(village, TAY) == []


async def test_an_alert_of_the_province_stands_above_one_of_the_commune(village: Village) -> None:
    view = await launch(village, HA, real(unit_id=PROVINCE, units=(DONG, TAY)))

    assert view.row.level == Level.EMERGENCY_UPPER
    assert view.counts.nodes == 3
    assert len(await told(village, TAY)) == 1
    seen = await emergency.get_emergency(village.desk, MINH, view.row.id)
    assert seen.counts.nodes == 2, "a commune counts its own"


async def test_a_place_within_another_is_told_once(village: Village) -> None:
    view = await launch(village, HA, real(unit_id=PROVINCE, units=(DONG, PROVINCE)))

    assert view.row.units == [PROVINCE]


async def test_a_drill_and_a_real_alert_cannot_be_mistaken_for_each_other(village: Village) -> None:
    for mode, typed in (
        (EmergencyMode.REAL, "DIỄN TẬP"),
        (EmergencyMode.DRILL, "KHẨN CẤP"),
        (EmergencyMode.REAL, ""),
        (EmergencyMode.DRILL, "dien tap"),
    ):
        with pytest.raises(Invalid) as refused:
            await launch(village, MINH, real(mode=mode, confirm=typed))
        assert (refused.value.code, refused.value.facts["field"], refused.value.facts["fix"]) == (
            "confirm_wrong",
            "confirm",
            "type_confirmation",
        )
    drill = await launch(village, MINH, real(mode=EmergencyMode.DRILL, confirm=" diễn tập "))

    (body,) = await told(village, DONG)
    assert body["drill"] is True
    assert await verbs(village) == ["emergency.propose", "emergency.drill"]
    same = await propose(village, LAN, real())
    assert same.row.content_hash != drill.row.content_hash


async def test_what_is_wrong_is_named_with_its_field_and_fix(village: Village) -> None:
    cases: list[tuple[NewEmergency, str, str]] = [
        (real(message=Message()), "emergency_says_nothing", "message"),
        (real(message=Message(text="   ")), "emergency_says_nothing", "message"),
        (real(message=Message(text="x" * 3_000)), "text_too_long", "message.text"),
        (real(message=Message(text="Lũ", voice="robot")), "not_a_choice", "message.voice"),
        (real(message=Message(hazard="dragon")), "not_a_choice", "message.hazard"),
        (real(message=Message(hazard="flood", phrases=("evacuate", "hello"))), "not_a_choice", "message.phrases[1]"),
        (real(reason=" "), "reason_missing", "reason"),
        (real(expires_min=1_441), "out_of_range", "expires_min"),
        (real(rounds=Rounds(tone_ms=3_999)), "out_of_range", "rounds.tone_ms"),
        (real(rounds=Rounds(times=0)), "out_of_range", "rounds.times"),
        (real(units=(TAY,)), "unit_outside", "units[0]"),
        (real(units=(DONG, "nowhere")), "unknown_unit", "units[1]"),
    ]
    for request, code, field in cases:
        with pytest.raises(BroadcastError) as refused:
            await launch(village, MINH, request)
        assert (refused.value.code, refused.value.facts["field"]) == (code, field)
        assert refused.value.facts["fix"]
    assert await verbs(village) == []


async def test_nobody_raises_an_alarm_in_a_foreign_commune_or_without_the_right(village: Village) -> None:
    for actor, unit in ((MINH, TAY), (MINH, PROVINCE), (LAN, TAY), (NGOC, DONG)):
        with pytest.raises((Refused, NotFound)):
            await propose(village, actor, real(unit_id=unit))
    proposed = await propose(village, LAN, real())
    for actor in (LAN, NGOC):
        with pytest.raises(Refused) as refused:
            await agree(village, actor, proposed)
        assert refused.value.code == "not_permitted"
    assert await told(village, DONG) == await told(village, TAY) == []


async def test_the_station_proposes_and_the_chairman_launches_exactly_what_he_saw(village: Village) -> None:
    proposed = await propose(village, LAN, real())
    assert proposed.row.state is EmergencyState.PROPOSED
    assert await told(village, DONG) == []

    with pytest.raises(Conflict) as changed:
        await agree(village, MINH, proposed, content_hash="0" * 64)
    assert changed.value.code == "content_changed"
    with pytest.raises(Invalid):
        await agree(village, MINH, proposed, confirm="DIỄN TẬP")
    for _ in range(2):  # the second press launches nothing twice
        await village.clock.advance(30)
        view = await agree(village, MINH, proposed)
    assert (view.row.approved_by, len(await told(village, DONG)), view.counts.nodes) == ("minh", 1, 2)
    assert [(one.login, one.role) for one in view.consents] == [("lan", "initiator"), ("minh", "approver")]
    assert await verbs(village) == ["emergency.propose", "emergency.launch"]


async def test_a_proposal_that_was_withdrawn_is_never_launched(village: Village) -> None:
    proposed = await propose(village, LAN, real())
    await emergency.cancel(village.desk, LAN, proposed.row.id, reason="Nước đã rút")

    with pytest.raises(Conflict) as refused:
        await agree(village, MINH, proposed)
    assert refused.value.code == "emergency_withdrawn"


async def test_cancelled_it_is_gone_from_the_set_at_once_and_a_second_press_does_nothing(village: Village) -> None:
    view = await launch(village, MINH, real())
    for _ in range(2):
        view = await emergency.cancel(village.desk, MINH, view.row.id, reason="Báo nhầm")

    assert (view.row.state, view.is_in_force, view.row.end_reason) == (EmergencyState.CANCELLED, False, "Báo nhầm")
    assert await told(village, DONG) == []
    assert await verbs(village) == ["emergency.propose", "emergency.launch", "emergency.cancel"]


async def test_it_leaves_the_set_when_it_expires_and_stays_in_the_history(village: Village) -> None:
    view = await launch(village, MINH, real(expires_min=10))
    await village.clock.advance(10 * 60)

    assert await told(village, DONG) == []
    (kept,) = await emergency.list_emergencies(village.desk, NGOC, EmergencyQuery(unit_id=DONG))
    assert (kept.row.id, kept.is_in_force) == (view.row.id, False)
    assert await emergency.list_emergencies(village.desk, NGOC, EmergencyQuery(in_force=True)) == []


async def test_a_correction_stands_in_its_place_at_the_same_places(village: Village) -> None:
    first = await launch(village, HA, real(unit_id=PROVINCE, units=(DONG, TAY)))
    right = Message(hazard="flood", text="Đính chính: đê chưa vỡ.")
    duo = Duo(village.desk, _people["ha"], _people["son"])
    second = await duo.correct(Correction(first.row.id, right, "Sai địa điểm"))

    (body,) = await told(village, TAY)
    assert (body["alert_id"], body["nature"], body["replaces"]) == (second.row.id, "correction", first.row.id)
    assert second.row.units == [DONG, TAY]
    before = await emergency.get_emergency(village.desk, HA, first.row.id)
    assert (before.row.state, before.successor_id) == (EmergencyState.REPLACED, second.row.id)
    with pytest.raises(Conflict) as refused:
        await duo.correct(Correction(first.row.id, right, "Lần nữa"))
    assert refused.value.facts["by"] == second.row.id


async def test_the_last_notice_is_one_call_and_said_once(village: Village) -> None:
    first = await launch(village, MINH, real())
    last = [await emergency.finish(village.desk, MINH, first.row.id, reason="Nước đã rút") for _ in range(2)]

    assert last[0].row.id == last[1].row.id
    (body,) = await told(village, DONG)
    assert (body["nature"], body["times"], body["replaces"]) == ("final", 1, first.row.id)
    assert body["text"].startswith("Tin cuối cùng")
    assert body["hazard"] == "flood"
    assert last[0].row.nature is EmergencyNature.FINAL


async def test_a_drill_ends_with_a_drills_last_notice(village: Village) -> None:
    drill = await launch(village, MINH, real(mode=EmergencyMode.DRILL, confirm="DIỄN TẬP"))
    await emergency.finish(village.desk, MINH, drill.row.id, reason="Hết giờ tập")

    (body,) = await told(village, DONG)
    assert body["drill"] is True
    assert "diễn tập" in body["text"]


async def test_an_approved_bulletin_can_be_raised_and_a_draft_cannot(village: Village) -> None:
    approved = await village.bulletin("Bão số 3", klass=BulletinClass.EMERGENCY, minutes=0.5)
    draft = await village.bulletin("Nháp", klass=BulletinClass.EMERGENCY, approved=False)
    with pytest.raises(Refused) as refused:
        await launch(village, MINH, real(message=Message(bulletin_id=draft)))
    assert refused.value.code == "blocked_approval_void"

    await launch(village, MINH, real(message=Message(bulletin_id=approved)))
    (body,) = await told(village, DONG)
    assert (body["asset_ms"], body["asset_bytes"]) == (30_000, 1_000)


async def test_speech_that_cannot_be_made_is_noted_once_and_the_alert_stands(village: Village) -> None:
    silent = replace(village.desk, audio=replace_room())
    view = await Duo(silent, _people["minh"], _people["binh"]).raise_(real())
    herald = Herald(silent)
    await herald.look()
    await herald.look()

    kept = await emergency.get_emergency(silent, MINH, view.row.id)
    assert kept.row.speech_error == "speech_missing"
    assert len(await told(village, DONG)) == 1


def replace_room() -> Any:
    class Mute:
        speaker = None

    return Mute()


async def test_the_unreached_are_named_one_by_one_with_the_reason(village: Village) -> None:
    now = village.clock.now()

    def statuses(session: Session) -> None:
        for node, link, ago_s in (("n1", "offline", 400), ("n3", "online", 200)):
            since = now - timedelta(seconds=ago_s)
            session.add(NodeStatusRow(node_id=node, link=link, since=since, seen_at=since, boot_id="b", body={}))

    await village.desk.store.begin(statuses)
    view = await launch(village, HA, real(unit_id=PROVINCE))

    found = await emergency.list_deliveries(village.desk, HA, view.row.id, DeliveryQuery(unreached=True))
    assert [(one.node_id, one.reason, one.cluster_code) for one in found] == [
        ("n1", "offline", "CUM-01"),
        ("n2", "never_seen", "CUM-02"),
        ("n3", "no_word", "CUM-01"),
    ]
    assert found[0].since == now - timedelta(seconds=400)
    assert {one.state for one in found} == {DeliveryState.INTENT}
    own = await emergency.list_deliveries(village.desk, MINH, view.row.id, DeliveryQuery(unreached=True))
    assert [one.node_id for one in own] == ["n1", "n2"]
    with pytest.raises(NotFound):
        await emergency.list_deliveries(village.desk, MINH, "unknown", DeliveryQuery())


async def test_a_neighbour_does_not_see_the_commune_alarm(village: Village) -> None:
    view = await launch(village, HA, real(unit_id=TAY))
    with pytest.raises(NotFound):
        await emergency.get_emergency(village.desk, MINH, view.row.id)


async def test_stop_all_stays_until_it_is_released_by_who_may(village: Village) -> None:
    (latch,) = await emergency.stop_all(village.desk, HA, (PROVINCE,), reason="Có người chiếm sóng")
    (again,) = await emergency.stop_all(village.desk, HA, (PROVINCE,), reason="Bấm lần hai")
    assert again.row.id == latch.row.id
    assert latch.counts.nodes == 3

    with pytest.raises(Refused):
        await emergency.release(village.desk, MINH, latch.row.id, reason="Muốn phát")
    await village.clock.advance(7 * 24 * 3600)
    standing = await emergency.list_stop_alls(village.desk, MINH, EmergencyQuery(in_force=True))
    assert [view.row.id for view in standing] == [latch.row.id]
    for _ in range(2):
        released = await emergency.release(village.desk, HA, latch.row.id, reason="Đã xử lý")
    assert (released.row.released_by, released.row.release_reason) == ("ha", "Đã xử lý")
    assert await verbs(village) == ["stop_all.set", "stop_all.release"]
    rows = await village.desk.store.read(lambda session: list(session.scalars(select(StopAllRow))))
    assert len(rows) == 1


async def test_who_launches_under_a_stop_all_is_told_that_it_stays_silent(village: Village) -> None:
    (latch,) = await emergency.stop_all(village.desk, HA, (PROVINCE,), reason="Có người chiếm sóng")
    view = await launch(village, MINH, real())

    assert view.stopped_by == (latch.row.id,)


async def test_explain_names_the_alarm_as_winner_its_rule_and_until_when(village: Village) -> None:
    bulletin = await village.bulletin("Lịch tiêm chủng", minutes=30)
    await scheduling.create_schedule(
        village.desk, LAN, scheduling.NewSchedule(DONG, ContentKind.BULLETIN, bulletin, once(at(9, 5)))
    )
    await village.clock.advance(10 * 60)
    view = await launch(village, MINH, real(rounds=Rounds(times=2, every_min=10), expires_min=15))
    cluster = f"c1-{DONG}"

    told = await outlook.explain(village.desk, LAN, cluster, at(9, 10, 5))
    assert told.code == "explain_emergency"
    assert told.facts["in_force_until"] == "2026-06-01T09:25:00+07:00"
    assert "2026-06-01T09:10:10" < told.facts["until"] < "2026-06-01T09:11:00"
    assert (told.facts["rule"], told.facts["winner_id"], told.facts["loser_title"]) == (
        "emergency",
        view.row.id,
        "Lịch tiêm chủng",
    )
    for before_or_between in (at(9, 8), at(9, 15)):
        assert (await outlook.explain(village.desk, LAN, cluster, before_or_between)).code == "explain_sounds"
    assert (await outlook.explain(village.desk, LAN, cluster, at(9, 20, 5))).code == "explain_emergency"
    await emergency.stop_all(village.desk, HA, (DONG,), reason="Dừng")
    stopped = await outlook.explain(village.desk, LAN, cluster, at(9, 13))
    assert (stopped.code, stopped.facts["rule"], stopped.facts["until"]) == ("explain_stop_all", "stop_all", None)


async def test_an_emergency_has_its_line_in_the_log_of_broadcasts(village: Village) -> None:
    view = await launch(village, MINH, real())
    await emergency.cancel(village.desk, MINH, view.row.id, reason="Báo nhầm")

    def read(session: Session) -> tuple[BroadcastRow | None, list[AlertRow]]:
        return session.get(BroadcastRow, f"alert:{view.row.id}"), list(session.scalars(select(AlertRow)))

    line, alerts = await village.desk.store.read(read)
    assert line is not None
    assert (line.schedule_id, line.kind.value, line.approval) == (None, "emergency", view.row.content_hash)
    assert [alert.cancelled_at is not None for alert in alerts] == [True]
