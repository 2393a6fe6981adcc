"""Stories of bulletins sent down: the inbox of a commune, the place the server finds, recall and correction."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest

from broadcast_server.control import emergency, outlook, places, scheduling, sending
from broadcast_server.control.access import OPERATOR, Actor
from broadcast_server.control.scheduling import NewSchedule
from broadcast_server.control.sending import Correction, NewSending, ScheduleArrival, SendingView
from broadcast_server.domain.clock import Window
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused
from broadcast_server.domain.recurrence import Rule
from broadcast_server.store import audit, emergencies, schedules
from broadcast_server.store.session import Session
from broadcast_server.store.tables import AuditRow, ClusterRow, ScheduleRow, UnitLinkRow, UnitRow
from broadcast_server.store.words import ArrivalState, ContentKind, Role
from speaker_protocol.rules import BulletinClass, Level
from tests.support.alarms import Duo
from tests.support.people import a_person, with_password
from tests.support.village import DONG, HA, LAN, NGOC, PROVINCE, TAY, Village, a_village, at, daily, once

MIN = timedelta(minutes=1)
C1_DONG, C1_TAY = f"c1-{DONG}", f"c1-{TAY}"


def to(bulletin: str, *units: str, **more: Any) -> NewSending:
    return NewSending(
        unit_id=more.pop("unit_id", PROVINCE),
        bulletin_id=bulletin,
        basis="Công văn mô phỏng 12",
        deadline=more.pop("deadline", at(9, day=3)),
        unit_ids=units,
        **more,
    )


async def heard(village: Village, cluster: str = C1_DONG, *, day: int = 1) -> list[tuple[str, Any]]:
    window = Window(at(0, day=day), at(0, day=day + 1))
    hearing = await outlook.preview_cluster(village.desk, HA, cluster, window)
    return [(one.title, one.start) for one in hearing.segments]


async def programme(village: Village, rule: Rule, unit: str = DONG, *, minutes: int = 20, wait: int = 15) -> str:
    bulletin = await village.bulletin("Tin xã", unit=unit, minutes=minutes)
    placed = await scheduling.create_schedule(
        village.desk,
        OPERATOR,
        NewSchedule(unit, ContentKind.BULLETIN, bulletin, rule, max_wait=wait * MIN),
    )
    return placed.schedule.id


async def audited(village: Village) -> list[tuple[str, str, str | None]]:
    def read(session: Session) -> list[tuple[str, str, str | None]]:
        rows = session.query(AuditRow).order_by(AuditRow.sequence)
        assert audit.verify(session) is None
        return [(row.verb, row.actor, row.unit_id) for row in rows]

    return await village.desk.store.read(read)


# -- thông thường -----------------------------------------------------------------------------------------------------


async def test_a_normal_bulletin_waits_in_the_inbox_until_the_commune_gives_it_an_hour() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin("Phòng cháy rừng", unit=PROVINCE)
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, below=PROVINCE))
        assert [one.arrival.unit_id for one in sent.arrivals] == [DONG, TAY]
        assert await heard(village) == []

        inbox = await sending.list_arrivals(village.desk, LAN, unit_id=DONG, state=ArrivalState.WAITING)
        assert [one.sending.title for one in inbox] == ["Phòng cháy rừng"]
        arrival = inbox[0].arrival.id
        seen = await sending.receive(village.desk, LAN, arrival)
        assert (seen.arrival.received_by, seen.arrival.received_at) == ("lan", at(9))
        placed, preview = await sending.schedule_arrival(
            village.desk, LAN, arrival, ScheduleArrival((at(17), at(5, 30, day=2)))
        )
        assert placed.arrival.decided_by == "lan"
        assert [stretch.start for stretch in preview.stretches] == [at(17), at(5, 30, day=2)]
        assert await heard(village) == [("Phòng cháy rừng", at(17))]
        assert await heard(village, C1_TAY) == []

        entry = preview.stretches[0].entry_id
        await village.heard(entry, C1_DONG, at(17), planned=3 * MIN, heard=3 * MIN)
        await village.heard(entry, f"c2-{DONG}", at(17), planned=3 * MIN, heard=0 * MIN)
        told = (await sending.get_sending(village.desk, HA, sent.sending.id)).arrivals
        assert [one.arrival.state for one in told] == [ArrivalState.PLANNED, ArrivalState.WAITING]
        assert (told[0].heard.nodes_heard, told[0].heard.nodes_planned) == (1, 2)
        assert told[0].heard.heard_ms == 180_000

        rows = await audited(village)
        assert ("sending.send", "ha", PROVINCE) in rows
        assert [row for row in rows if row[0] == "arrival.send"] == [
            ("arrival.send", "ha", DONG),
            ("arrival.send", "ha", TAY),
        ]
        assert ("arrival.schedule", "lan", DONG) in rows


async def test_a_commune_plays_it_now_or_says_no_with_a_reason() -> None:
    async with a_village() as village:
        first = await village.bulletin("Lịch cắt điện", unit=PROVINCE, minutes=1)
        second = await village.bulletin("Giải bóng đá", unit=PROVINCE)
        one = (await sending.send_bulletin(village.desk, HA, to(first, DONG))).arrivals[0].arrival.id
        other = (await sending.send_bulletin(village.desk, HA, to(second, DONG))).arrivals[0].arrival.id
        view, playing = await sending.play_arrival(village.desk, LAN, one)
        assert playing.starts_at == view.arrival.sounds_at == at(9, 0, 5)
        with pytest.raises(Invalid, match="note_missing"):
            await sending.refuse(village.desk, LAN, other, "   ")
        refused = await sending.refuse(village.desk, LAN, other, "Trùng lễ hội của xã")
        assert (refused.arrival.state, refused.arrival.reason) == (ArrivalState.REFUSED, "refused_by_unit")
        assert (refused.arrival.decided_by, refused.arrival.note) == ("lan", "Trùng lễ hội của xã")
        with pytest.raises(Conflict, match="arrival_decided"):
            await sending.play_arrival(village.desk, LAN, other)


async def test_what_nobody_decides_lapses_at_the_deadline_and_the_sender_sees_it() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin("Tuyển quân", unit=PROVINCE)
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, DONG, deadline=at(12)))
        await village.clock.advance(3 * 3600)
        with pytest.raises(Conflict, match="arrival_overdue"):
            await sending.play_arrival(village.desk, LAN, sent.arrivals[0].arrival.id)
        assert await sending.attend(village.desk) == "0 placed or refused, 1 lapsed"
        assert await sending.attend(village.desk) == "0 placed or refused, 0 lapsed"
        told = (await sending.get_sending(village.desk, HA, sent.sending.id)).arrivals[0].arrival
        assert (told.state, told.reason, told.decided_by) == (ArrivalState.LAPSED, "deadline_passed", "server")
        assert ("arrival.lapse", "server", DONG) in await audited(village)


async def test_a_bulletin_is_not_placed_after_its_validity() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin("Họp dân", unit=PROVINCE)
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, DONG, valid_to=at(16)))
        arrival = sent.arrivals[0].arrival.id
        with pytest.raises(Invalid, match="after_validity") as refused:
            await sending.schedule_arrival(village.desk, LAN, arrival, ScheduleArrival((at(11), at(17))))
        assert (refused.value.facts["field"], refused.value.facts["fix"]) == ("starts[1]", "choose_before")


async def test_who_may_send_to_whom_and_who_may_decide() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin("Tin tỉnh", unit=PROVINCE)
        draft = await village.bulletin("Nháp", unit=PROVINCE, approved=False)
        own = await village.bulletin("Tin xã", unit=DONG)
        hamlet = await places.create_unit(village.desk, OPERATOR, places.NewUnit("hamlet", "Thôn Thượng", DONG))
        cases: list[tuple[Actor, NewSending, type[Exception], str, str | None]] = [
            (LAN, to(bulletin, DONG), NotFound, "unknown_unit", None),
            (NGOC, to(bulletin, DONG), Refused, "not_permitted", None),
            (HA, to(draft, DONG), Refused, "not_approved", "bulletin_id"),
            (HA, to(own, DONG), NotFound, "unknown_bulletin", "bulletin_id"),
            (HA, to(bulletin, DONG, PROVINCE), Invalid, "not_below", "unit_ids[1]"),
            (LAN, to(own, TAY, unit_id=DONG), Invalid, "not_below", "unit_ids[0]"),
            (HA, to(bulletin), Invalid, "no_receiver", "unit_ids"),
            (HA, to(bulletin, below=DONG, kinds=("district",)), Invalid, "no_receiver", "unit_ids"),
            (HA, to(bulletin, DONG, deadline=at(8)), Invalid, "past_time", "deadline"),
            (HA, to(bulletin, DONG, earliest=at(10, day=9)), Invalid, "empty_wish", "earliest"),
            (
                HA,
                to(bulletin, DONG, deadline=at(9) + timedelta(days=90)),
                Invalid,
                "deadline_too_far",
                "deadline",
            ),
        ]
        for actor, request, kind, code, field in cases:
            with pytest.raises(kind, match=code) as refused:
                await sending.send_bulletin(village.desk, actor, request)
            assert refused.value.facts.get("field") == field  # type: ignore[attr-defined]
        down = await sending.send_bulletin(village.desk, LAN, to(own, hamlet.id, unit_id=DONG))
        with pytest.raises(Refused, match="not_permitted"):
            await sending.refuse(village.desk, NGOC, down.arrivals[0].arrival.id, "không")
        with pytest.raises(Refused, match="not_permitted"):
            await sending.recall(village.desk, NGOC, down.sending.id, "nhầm")
        assert await sending.list_sendings(village.desk, NGOC, unit_id=DONG) != []


# -- ưu tiên ----------------------------------------------------------------------------------------------------------


async def test_a_priority_bulletin_is_first_in_the_communes_next_session() -> None:
    async with a_village() as village:
        await programme(village, daily("17:00"))
        bulletin = await village.bulletin("Dịch tả lợn", unit=PROVINCE, klass=BulletinClass.PRIORITY)
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, below=PROVINCE))
        dong, tay = (one.arrival for one in sent.arrivals)
        assert (dong.state, dong.sounds_at, dong.decided_by) == (ArrivalState.PLANNED, at(17), "server")
        assert await heard(village) == [("Dịch tả lợn", at(17)), ("Tin xã", at(17, 3))]
        assert tay.sounds_at == at(9, 1)  # no session there: a slot of its own, at once

        def level(session: Session) -> int:
            row = session.get(ScheduleRow, dong.schedule_id)
            assert row is not None
            return row.level

        assert await village.desk.store.read(level) == Level.PRIORITY_UPPER
        with pytest.raises(Conflict, match="placed_by_server"):
            await sending.refuse(village.desk, LAN, dong.id, "để sau")


async def test_at_night_a_slot_of_its_own_waits_for_the_end_of_quiet_hours() -> None:
    async with a_village(at(23)) as village:
        bulletin = await village.bulletin("Sạt lở", unit=PROVINCE, klass=BulletinClass.PRIORITY)
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, DONG))
        assert sent.arrivals[0].arrival.sounds_at == at(5, day=2)


async def test_a_deadline_within_quiet_hours_is_told_to_the_sender() -> None:
    async with a_village(at(23)) as village:
        bulletin = await village.bulletin("Sạt lở", unit=PROVINCE, klass=BulletinClass.PRIORITY)
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, DONG, deadline=at(4, day=2)))
        told = sent.arrivals[0].arrival
        assert (told.state, told.reason) == (ArrivalState.UNPLACED, "no_slot_before_deadline")
        assert await heard(village, day=2) == []


async def test_a_station_whose_session_is_full_gets_it_in_a_slot_away_from_it() -> None:
    async with a_village() as village:
        await places.put_policy(village.desk, OPERATOR, DONG, {"max_minutes_per_session": 20})
        await programme(village, daily("17:00"))
        bulletin = await village.bulletin("Dịch tả lợn", unit=PROVINCE, klass=BulletinClass.PRIORITY)
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, DONG))
        assert sent.arrivals[0].arrival.sounds_at == at(9, 1)


async def test_a_commune_without_a_loudspeaker_is_told_as_such() -> None:
    async with a_village() as village:
        bare = await places.create_unit(village.desk, OPERATOR, places.NewUnit("commune", "Xã Mới", PROVINCE))
        bulletin = await village.bulletin("Dịch tả lợn", unit=PROVINCE, klass=BulletinClass.PRIORITY)
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, bare.id))
        assert (sent.arrivals[0].arrival.state, sent.arrivals[0].arrival.reason) == ("unplaced", "no_clusters")


async def test_what_a_crash_left_unplaced_the_alarm_clock_places() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin("Dịch tả lợn", unit=PROVINCE, klass=BulletinClass.PRIORITY)
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, DONG))

        def forget(session: Session) -> None:
            row = sending.sendings.arrival(session, sent.arrivals[0].arrival.id)
            schedules.schedule(session, row.schedule_id or "").state = scheduling.ScheduleState.CANCELLED
            row.state, row.schedule_id, row.sounds_at = ArrivalState.WAITING, None, None

        await village.desk.store.begin(forget)
        assert await sending.attend(village.desk) == "1 placed or refused, 0 lapsed"
        assert await heard(village) == [("Dịch tả lợn", at(9, 1))]
        assert await sending.attend(village.desk) == "0 placed or refused, 0 lapsed"


async def test_a_province_of_many_communes_is_answered_before_all_are_placed() -> None:
    async with a_village() as village:
        many = sending.PLACE_AT_ONCE + 1

        def found(session: Session) -> None:
            now = village.clock.now()
            for number in range(many):
                unit = f"xa-{number}"
                session.add(UnitRow(id=unit, kind="commune", name=unit, name_folded=unit, created_at=now))
                session.flush()
                session.add(UnitLinkRow(id=f"l{number}", unit_id=unit, parent_id=PROVINCE, valid_from=date(2025, 7, 1)))
                session.add(
                    ClusterRow(
                        id=f"c-{unit}", unit_id=unit, code="1", name="1", name_folded="1", config={}, created_at=now
                    )
                )

        await village.desk.store.begin(found)
        bulletin = await village.bulletin("Dịch tả lợn", unit=PROVINCE, klass=BulletinClass.PRIORITY)
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, below=PROVINCE))
        states = [one.arrival.state for one in sent.arrivals]
        assert states.count(ArrivalState.PLANNED) == sending.PLACE_AT_ONCE
        assert await sending.attend(village.desk) == f"{many + 2 - sending.PLACE_AT_ONCE} placed or refused, 0 lapsed"
        told = await sending.get_sending(village.desk, HA, sent.sending.id)
        assert {one.arrival.state for one in told.arrivals} == {ArrivalState.PLANNED}
        assert {one.arrival.sounds_at for one in told.arrivals} == {at(9, 1)}


# -- khẩn cấp ---------------------------------------------------------------------------------------------------------


async def in_force(village: Village, unit: str) -> list[dict[str, Any]]:
    now = village.clock.now()
    return list(
        (await village.desk.store.read(lambda session: emergencies.sets(session, now=now))).alerts.get(unit, ())
    )


async def province(village: Village) -> Duo:
    """The editor, and a leader of the province."""
    second = await a_person(village.desk, Role.LEADER, PROVINCE)
    return Duo(village.desk, await with_password(village.desk, HA), second)


async def agree(duo: Duo, sent: SendingView) -> None:
    """The second person agrees to what was sent as an alarm."""
    (alert_id,) = {one.arrival.alert_id for one in sent.arrivals}
    assert alert_id is not None
    await duo.agree(await emergency.get_emergency(duo.desk, duo.second.actor, alert_id))


async def test_an_emergency_sounds_once_two_agree_and_only_by_who_may_launch_one_and_types_the_word() -> None:
    async with a_village(at(2)) as village:
        bulletin = await village.bulletin("Vỡ đập", unit=PROVINCE, klass=BulletinClass.EMERGENCY)
        own = await village.bulletin("Lũ quét", unit=DONG, klass=BulletinClass.EMERGENCY)
        duo = await province(village)
        with pytest.raises(Refused, match="not_permitted"):
            await sending.send_bulletin(village.desk, LAN, to(own, DONG, unit_id=DONG, confirm="khẩn cấp"))
        with pytest.raises(Invalid, match="proof_missing"):
            await sending.send_bulletin(village.desk, HA, to(bulletin, DONG, confirm="khẩn cấp"))
        with pytest.raises(Invalid, match="confirm_wrong") as refused:
            await sending.send_bulletin(village.desk, HA, to(bulletin, DONG), duo.first.proof())
        assert refused.value.facts["field"] == "confirm"
        assert await sending.list_sendings(village.desk, HA) == []
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, DONG, confirm="khẩn cấp"), duo.first.proof())
        assert sent.arrivals[0].arrival.state is ArrivalState.WAITING
        assert await in_force(village, DONG) == []
        await agree(duo, sent)
        told = (await sending.get_sending(village.desk, HA, sent.sending.id)).arrivals[0].arrival
        assert (told.state, told.sounds_at, told.decided_by) == (ArrivalState.PLANNED, at(2), duo.second.login)
        assert [body["alert_id"] for body in await in_force(village, DONG)] == [told.alert_id]
        assert await in_force(village, TAY) == []


async def test_an_emergency_is_corrected_and_recalled_down_the_same_road() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin("Vỡ đập", unit=PROVINCE, klass=BulletinClass.EMERGENCY)
        duo = await province(village)
        request = to(bulletin, below=PROVINCE, confirm="KHẨN CẤP")
        sent = await sending.send_bulletin(village.desk, HA, request, duo.first.proof())
        await agree(duo, sent)
        await village.newer_version(bulletin)
        change = Correction(sent.sending.id, "mực nước", at(9, day=2))
        mended = await sending.correct(village.desk, HA, change, duo.first.proof())
        standing = await in_force(village, DONG)
        assert [body["alert_id"] for body in standing] == [sent.arrivals[0].arrival.alert_id]
        await agree(duo, mended)
        before = (await sending.get_sending(village.desk, HA, sent.sending.id)).arrivals
        assert [(one.arrival.state, one.arrival.reason) for one in before] == [
            (ArrivalState.REPLACED, "while_it_sounded")
        ] * 2
        for unit in (DONG, TAY):
            (body,) = await in_force(village, unit)
            assert (body["nature"], body["replaces"]) == ("correction", before[0].arrival.alert_id)
        await sending.recall(village.desk, HA, mended.sending.id, "đập an toàn")
        assert await in_force(village, DONG) == await in_force(village, TAY) == []


# -- recall and correction --------------------------------------------------------------------------------------------


async def test_a_recall_empties_inboxes_takes_off_plans_and_cuts_what_sounds() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin("Tin nhầm", unit=PROVINCE, minutes=10)
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, below=PROVINCE))
        dong, tay = (one.arrival.id for one in sent.arrivals)
        await sending.schedule_arrival(village.desk, LAN, dong, ScheduleArrival((at(9, 30), at(17))))
        await village.clock.advance(33 * 60)
        told = await sending.recall(village.desk, HA, sent.sending.id, "Sai số liệu")
        assert [(one.arrival.state, one.arrival.reason) for one in told.arrivals] == [
            (ArrivalState.RECALLED, "while_it_sounded"),
            (ArrivalState.RECALLED, "before_it_sounded"),
        ]
        hearing = await outlook.preview_cluster(village.desk, HA, C1_DONG, Window(at(0), at(0, day=2)))
        assert [(one.start, one.end) for one in hearing.segments] == [(at(9, 30), at(9, 33))]
        assert (await sending.recall(village.desk, HA, sent.sending.id, "lần nữa")).sending.note == "Sai số liệu"
        with pytest.raises(Conflict, match="arrival_decided"):
            await sending.play_arrival(village.desk, OPERATOR, tay)
        with pytest.raises(Conflict, match="sending_recalled"):
            await sending.correct(village.desk, HA, Correction(sent.sending.id, "sửa", at(9, day=4)))
        rows = await audited(village)
        assert [row for row in rows if row[0] == "arrival.recall"] == [
            ("arrival.recall", "ha", DONG),
            ("arrival.recall", "ha", TAY),
        ]


async def test_a_correction_follows_what_sounded_and_replaces_what_had_not() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin("Giá điện", unit=PROVINCE, klass=BulletinClass.PRIORITY)
        await programme(village, daily("17:00"), unit=TAY)
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, below=PROVINCE))
        await village.clock.advance(3600)  # it sounded in Đông at 09:01, in Tây it waits for 17:00
        with pytest.raises(Conflict, match="nothing_newer"):
            await sending.correct(village.desk, HA, Correction(sent.sending.id, "sửa giá", at(9, day=4)))
        version = await village.newer_version(bulletin, minutes=2)
        mended = await sending.correct(village.desk, HA, Correction(sent.sending.id, "sửa giá", at(9, day=4)))
        assert (mended.sending.version_id, mended.sending.corrects_id) == (version, sent.sending.id)
        before = (await sending.get_sending(village.desk, HA, sent.sending.id)).arrivals
        assert [(one.arrival.state, one.arrival.reason) for one in before] == [
            (ArrivalState.REPLACED, "after_it_sounded"),
            (ArrivalState.REPLACED, "before_it_sounded"),
        ]
        assert await heard(village) == [("Giá điện", at(9, 1)), ("Giá điện", at(10, 1))]
        assert await heard(village, C1_TAY) == [("Giá điện", at(17)), ("Tin xã", at(17, 2))]


async def test_a_correction_leaves_alone_who_refused() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin("Giá nước", unit=PROVINCE)
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, below=PROVINCE))
        await sending.refuse(village.desk, LAN, sent.arrivals[0].arrival.id, "không liên quan")
        await village.newer_version(bulletin)
        mended = await sending.correct(village.desk, HA, Correction(sent.sending.id, "sửa giá", at(9, day=4)))
        assert [one.arrival.unit_id for one in mended.arrivals] == [TAY]


async def test_the_sender_sees_that_a_commune_took_it_off_again() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin("Giá nước", unit=PROVINCE)
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, DONG))
        placed, _ = await sending.schedule_arrival(
            village.desk, LAN, sent.arrivals[0].arrival.id, ScheduleArrival((at(17),))
        )
        cancel = scheduling.CancelSchedule(placed.arrival.schedule_id or "", scheduling.Scope.ALL)
        await scheduling.cancel_schedule(village.desk, LAN, cancel)
        assert (await sending.get_sending(village.desk, HA, sent.sending.id)).arrivals[0].is_off


async def test_one_whose_hour_is_taken_says_so_before_it_is_placed() -> None:
    async with a_village() as village:
        await programme(village, once(at(17)), wait=0)
        bulletin = await village.bulletin("Giá nước", unit=PROVINCE)
        sent = await sending.send_bulletin(village.desk, HA, to(bulletin, DONG))
        arrival = sent.arrivals[0].arrival.id
        with pytest.raises(Conflict, match="schedule_conflict"):
            await sending.schedule_arrival(village.desk, LAN, arrival, ScheduleArrival((at(17, 5),)))
        assert (await sending.get_arrival(village.desk, LAN, arrival)).arrival.state is ArrivalState.WAITING
