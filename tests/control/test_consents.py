"""Two chairs, two telephones, one alarm: who is the second person, and who only looks like one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select

from broadcast_server.control import break_glass, consents, emergency, people
from broadcast_server.control.access import OPERATOR, Actor
from broadcast_server.control.accounts import Proof
from broadcast_server.control.break_glass import BreakGlass, ReviewQuery
from broadcast_server.control.emergency import Correction, EmergencyView, Message, NewEmergency
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused
from broadcast_server.store import approvals, emergencies
from broadcast_server.store import consents as rows
from broadcast_server.store.session import Session
from broadcast_server.store.tables import AuditRow, EmergencyRow, UserRow
from broadcast_server.store.tables_approval import EmergencyTemplateRow
from broadcast_server.store.words import EmergencyMode, ReviewFinding, Role, Step, StepOf
from tests.support.alarms import Duo, a_duo, a_template
from tests.support.people import Person, a_person, with_password
from tests.support.village import DONG, LAN, NOW, PROVINCE, TAY, Village, a_village

FLOOD = NewEmergency(DONG, EmergencyMode.REAL, Message("flood", text="Vỡ đê"), "Đê vỡ", confirm="KHẨN CẤP")
ALONE = BreakGlass(DONG, "", "Không gọi được ai", "KHẨN CẤP")


@pytest_asyncio.fixture
async def village() -> AsyncIterator[Village]:
    async with a_village() as opened:
        yield opened


@pytest_asyncio.fixture
async def duo(village: Village) -> Duo:
    return await a_duo(village.desk, DONG)


async def sounding(village: Village, *units: str) -> list[str]:
    def read(session: Session) -> list[str]:
        alerts = emergencies.sets(session, now=village.clock.now()).alerts
        return [body["alert_id"] for unit in units or (DONG, TAY, PROVINCE) for body in alerts.get(unit, ())]

    return await village.desk.store.read(read)


async def refused(duo: Duo, second: Person, proposed: EmergencyView) -> str:
    """The code of the refusal of that second person."""
    with pytest.raises((Refused, Conflict, NotFound)) as error:
        await replace(duo, second=second).agree(proposed)
    assert await sounding(Village(duo.desk)) == []
    return error.value.code


# -- the second person ------------------------------------------------------------------------------------------------


async def test_nobody_is_their_own_second_person_not_in_another_session_nor_by_another_name(
    village: Village, duo: Duo
) -> None:
    proposed = await duo.propose(FLOOD)
    assert await refused(duo, duo.first, proposed) == "unfit_same_person"
    elsewhere = replace(duo.first, actor=replace(duo.first.actor, session_id="another-browser"))
    assert await refused(duo, elsewhere, proposed) == "unfit_same_person"

    def rename(session: Session) -> None:
        session.get_one(UserRow, duo.first.actor.user_id).login = "nguyen-van-khac"

    await village.desk.store.begin(rename)
    renamed = replace(duo.first, actor=Actor(duo.first.actor.user_id, "nguyen-van-khac"))
    await village.clock.advance(60)
    assert await refused(duo, renamed, proposed) == "unfit_same_person"


async def test_two_people_in_one_browser_are_one_seat(duo: Duo) -> None:
    seated = [replace(one, actor=replace(one.actor, session_id="s1")) for one in (duo.first, duo.second)]
    proposed = await replace(duo, first=seated[0]).propose(FLOOD)
    assert await refused(duo, seated[1], proposed) == "unfit_same_seat"


async def test_the_machines_operator_is_nobodys_second_person(village: Village, duo: Duo) -> None:
    proposed = await duo.propose(FLOOD)
    proof = Proof("x", "000000")
    with pytest.raises(Refused, match="not_a_person"):
        await consents.propose(village.desk, OPERATOR, FLOOD, proof)
    with pytest.raises(Refused, match="not_a_person"):
        await consents.approve(
            village.desk, OPERATOR, proposed.row.id, proof, content_hash=proposed.row.content_hash, confirm="KHẨN CẤP"
        )
    running = await duo.agree(proposed)
    with pytest.raises(Refused, match="not_a_person"):
        await emergency.finish(village.desk, OPERATOR, running.row.id, reason="Hết")


async def test_who_may_not_launch_there_is_no_second_person(village: Village, duo: Duo) -> None:
    proposed = await duo.propose(FLOOD)
    for role, unit in ((Role.BROADCASTER, DONG), (Role.ADMIN, PROVINCE), (Role.LEADER, TAY)):
        stranger = await a_person(village.desk, role, unit)
        assert await refused(duo, stranger, proposed) in {"not_permitted", "unknown_emergency"}


async def test_a_wrong_password_a_used_code_and_a_drawers_code_twice_agree_to_nothing(duo: Duo) -> None:
    proposed = await duo.propose(FLOOD)
    told = {"content_hash": proposed.row.content_hash, "confirm": "KHẨN CẤP"}
    used = duo.second.phone.of_step(duo.first.phone.step)
    await consents.approve(duo.desk, duo.second.actor, proposed.row.id, Proof(duo.second.password, used), **told)
    again = await duo.propose(FLOOD)
    told["content_hash"] = again.row.content_hash
    for proof in (
        Proof("sai mật khẩu rồi", duo.second.proof().code),
        Proof(duo.second.password, used),
        Proof(duo.second.password, "000000"),
        Proof(duo.first.password, duo.first.proof().code),
    ):
        with pytest.raises(Refused, match="proof_wrong"):
            await consents.approve(duo.desk, duo.second.actor, again.row.id, proof, **told)
        await Village(duo.desk).clock.advance(30)
    assert (await emergency.get_emergency(duo.desk, duo.second.actor, again.row.id)).is_in_force is False


async def test_a_consent_is_a_quarter_of_an_hour_old_at_most_and_may_be_given_anew(village: Village, duo: Duo) -> None:
    proposed = await duo.propose(FLOOD)
    await village.clock.advance(15 * 60 + 1)
    assert await refused(duo, duo.second, proposed) == "unfit_consent_expired"
    renewed = await consents.renew(
        village.desk, duo.first.actor, proposed.row.id, duo.first.proof(), content_hash=proposed.row.content_hash
    )
    assert renewed.agree_by == village.clock.now() + timedelta(minutes=15)
    await village.clock.advance(60)
    assert (await duo.agree(proposed)).is_in_force


async def test_whose_account_was_locked_or_right_ended_in_between_has_not_agreed(village: Village, duo: Duo) -> None:
    proposed = await duo.propose(FLOOD)
    await people.disable_user(village.desk, OPERATOR, duo.first.actor.user_id)
    assert await refused(duo, duo.second, proposed) == "unfit_consent_missing"

    other = await a_duo(village.desk, DONG)
    again = await other.propose(FLOOD)
    view = await people.get_user(village.desk, OPERATOR, other.first.actor.user_id)
    await people.end_grant(village.desk, OPERATOR, view.user.id, view.grants[0].id)
    assert await refused(other, other.second, again) == "unfit_consent_missing"

    await people.disable_user(village.desk, OPERATOR, other.second.actor.user_id)
    with pytest.raises(Exception, match="unknown_user"):
        await other.agree(again)


@pytest.mark.parametrize(
    "change",
    [
        {"units": [DONG, TAY]},
        {"expires_min": 1_440},
        {"mode": EmergencyMode.DRILL},
        {"text": "Không có gì đâu"},
        {"phrases": ["stay_inside"]},
        {"level": 7},
        {"times": 20},
        {"template_id": "t1"},
    ],
)
async def test_what_was_changed_under_their_hands_does_not_sound(
    village: Village, duo: Duo, change: dict[str, Any]
) -> None:
    proposed = await duo.propose(FLOOD)

    def write(session: Session) -> None:
        row = session.get_one(EmergencyRow, proposed.row.id)
        for name, value in change.items():
            setattr(row, name, value)

    await village.desk.store.begin(write)
    confirm = "DIỄN TẬP" if "mode" in change else "KHẨN CẤP"
    with pytest.raises(Conflict, match="content_changed"):
        await duo.agree(proposed, confirm=confirm)

    def and_its_hash(session: Session) -> str:
        row = session.get_one(EmergencyRow, proposed.row.id)
        row.content_hash = emergencies.alarm_of(row).content_hash
        return row.content_hash

    forged = await village.desk.store.begin(and_its_hash)
    with pytest.raises(Refused, match="unfit_"):
        await duo.agree(proposed, confirm=confirm, content_hash=forged)
    assert await sounding(village) == []


async def test_a_correction_in_new_words_needs_two_and_what_is_wrong_is_silenced_by_one(
    village: Village, duo: Duo
) -> None:
    wrong = await duo.raise_(FLOOD)
    right = Correction(wrong.row.id, Message(text="Đính chính: đê chưa vỡ."), "Báo sai")
    proposed = await consents.correct(village.desk, duo.first.actor, right, duo.first.proof())
    assert await sounding(village) == [wrong.row.id]
    with pytest.raises(Refused, match="unfit_same_person"):
        await replace(duo, second=duo.first).agree(proposed)
    await emergency.cancel(village.desk, duo.second.actor, wrong.row.id, reason="Sai")
    assert await sounding(village) == []
    await duo.agree(proposed)
    assert await sounding(village) == [proposed.row.id]

    own = await consents.finish(
        village.desk, duo.first.actor, proposed.row.id, duo.first.proof(), reason="Hết", text="Về nhà được rồi"
    )
    assert await sounding(village) == [proposed.row.id]
    last = await emergency.finish(village.desk, duo.second.actor, proposed.row.id, reason="Hết")
    assert await sounding(village) == [last.row.id]
    await village.clock.advance(60)
    with pytest.raises(Conflict, match="emergency_replaced"):
        await duo.agree(own)


# -- break-glass ------------------------------------------------------------------------------------------------------


async def alone(village: Village, who: Person, template: str, **more: Any) -> EmergencyView:
    await village.clock.advance(60)
    request = replace(ALONE, template_id=template, **more)
    return await break_glass.break_glass(village.desk, who.actor, request, who.proof())


async def test_one_person_raises_an_approved_template_alone_and_everybody_hears_of_it(
    village: Village, duo: Duo
) -> None:
    template = await a_template(duo, await with_password(village.desk, LAN), DONG)
    view = await alone(village, duo.first, template.row.id)

    assert await sounding(village) == [view.row.id]
    assert view.row.expires_at == village.clock.now() + timedelta(minutes=15)
    (review,) = await break_glass.list_reviews(village.desk, duo.second.actor, ReviewQuery(is_open=True))
    assert (review.login, review.due_at) == (duo.first.login, village.clock.now() + timedelta(hours=24))
    verbs = await village.desk.store.read(
        lambda session: list(
            session.scalars(select(AuditRow.verb).where(AuditRow.subject == f"emergency/{view.row.id}"))
        )
    )
    assert verbs == ["emergency.launch", "emergency.break_glass"]


async def test_break_glass_is_short_at_home_twice_a_day_and_rests_until_it_was_reviewed(
    village: Village, duo: Duo
) -> None:
    lan = await with_password(village.desk, LAN)
    template = (await a_template(duo, lan, DONG)).row.id
    with pytest.raises(Invalid, match="out_of_range"):
        await alone(village, duo.first, template, expires_min=16)
    with pytest.raises(NotFound, match="unknown_unit"):
        await alone(village, duo.first, template, unit_id=TAY)
    with pytest.raises(Refused, match="unit_outside"):
        await alone(village, duo.first, template, units=(TAY,))
    upper = await a_person(village.desk, Role.LEADER, PROVINCE)
    with pytest.raises(Refused, match="template_elsewhere"):
        await alone(village, upper, template, unit_id=TAY)
    with pytest.raises(Refused, match="not_permitted"):
        await alone(village, lan, template)
    assert await sounding(village) == []

    first = await alone(village, duo.first, template)
    await alone(village, duo.first, template)
    with pytest.raises(Refused, match="break_glass_spent"):
        await alone(village, duo.first, template)
    await village.clock.advance(25 * 3_600)
    for who in (duo.first, duo.second):  # the place rests, not the person alone
        with pytest.raises(Refused, match="break_glass_unreviewed"):
            await alone(village, who, template)
    overdue = await break_glass.list_reviews(village.desk, upper.actor, ReviewQuery(is_overdue=True))
    assert len(overdue) == 2
    with pytest.raises(Refused, match="own_break_glass"):
        await break_glass.review(
            village.desk, duo.first.actor, first.row.id, finding=ReviewFinding.JUSTIFIED, note="Ổn"
        )
    with pytest.raises(Refused, match="not_a_person"):
        await break_glass.review(village.desk, OPERATOR, first.row.id, finding=ReviewFinding.JUSTIFIED, note="Ổn")
    for one in overdue:
        await break_glass.review(
            village.desk, upper.actor, one.emergency_id, finding=ReviewFinding.UNJUSTIFIED, note="Gọi được mà"
        )
    assert (await alone(village, duo.second, template)).is_in_force


async def test_a_template_needs_two_beside_its_author_and_serves_only_as_it_was(village: Village, duo: Duo) -> None:
    lan = await with_password(village.desk, LAN)
    written = await break_glass.write_template(
        village.desk, duo.first.actor, break_glass.NewTemplate(DONG, "Lũ", Message("flood"))
    )

    async def approve(who: Person) -> bool:
        told = written.row.content_hash
        view = await break_glass.approve_template(
            village.desk, who.actor, written.row.id, who.proof(), content_hash=told
        )
        return view.is_approved

    with pytest.raises(Refused, match="author_approves"):
        await approve(duo.first)
    with pytest.raises(Refused, match="not_permitted"):
        await approve(lan)
    assert [await approve(duo.second), await approve(duo.second)] == [False, False]
    with pytest.raises(Refused, match="unfit_template_unapproved"):
        await alone(village, duo.second, written.row.id)
    third = await a_person(village.desk, Role.LEADER, DONG)
    assert await approve(third)

    def alter(session: Session) -> None:
        session.get_one(EmergencyTemplateRow, written.row.id).hazard = "storm"

    await village.desk.store.begin(alter)
    with pytest.raises(Refused, match="unfit_template_unapproved"):
        await alone(village, duo.second, written.row.id)
    assert await sounding(village) == []


async def test_a_template_retired_while_it_sounds_silences_nothing(village: Village, duo: Duo) -> None:
    template = await a_template(duo, await with_password(village.desk, LAN), DONG)
    view = await alone(village, duo.first, template.row.id)
    await village.clock.advance(1)
    await break_glass.retire_template(village.desk, duo.second.actor, template.row.id)

    def look(session: Session) -> Any:
        return rows.why_unfit(session, emergencies.emergency(session, view.row.id))

    assert await village.desk.store.read(look) is None
    with pytest.raises(Refused, match="unfit_template_unapproved"):
        await alone(village, duo.first, template.row.id)


async def test_the_database_itself_keeps_consents_and_steps(village: Village, duo: Duo) -> None:
    await duo.raise_(FLOOD)

    for statement in ("UPDATE emergency_consents SET user_id = 'ai-do'", "DELETE FROM approval_steps"):

        def work(session: Session, told: str = statement) -> None:
            session.connection().exec_driver_sql(told)

        if "steps" in statement:
            await village.desk.store.begin(a_step)
        with pytest.raises(Exception, match="append-only"):
            await village.desk.store.begin(work)


def a_step(session: Session) -> None:
    """Somebody wrote something."""
    approvals.add_step(session, StepOf.VERSION, "v1", Step.WRITE, user_id="u", login="u", at=NOW)
