"""A box hangs on a pole: it speaks a code, somebody below it types it in, somebody else lets it sound."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
from sqlalchemy import select

from broadcast_server.control import devices, fleet
from broadcast_server.control.access import OPERATOR, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.enrolment import Enrolled
from broadcast_server.control.fleet import NodeQuery
from broadcast_server.domain.errors import Conflict, Invalid, Refused
from broadcast_server.store.tables import AuditRow, OutboxRow
from broadcast_server.store.words import NodeState, OutboxState, Role
from tests.support.boxes import a_box, approve, heard, install, said, spoken
from tests.support.clock import FakeClock
from tests.support.desk import a_bare_desk
from tests.support.places import YEN_THANH, a_country, somebody


@pytest_asyncio.fixture
async def desk() -> AsyncIterator[Desk]:
    async with a_bare_desk() as opened:
        await a_country(opened)
        yield opened


@pytest_asyncio.fixture
async def tech(desk: Desk) -> Actor:
    return await somebody(desk, Role.TECHNICIAN, YEN_THANH)


@pytest_asyncio.fixture
async def head(desk: Desk) -> Actor:
    return await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH)


async def hung(desk: Desk, tech: Actor, number: int = 1) -> Enrolled:
    return await install(desk, tech, a_box(number), YEN_THANH)


async def state_of(desk: Desk, node_id: str) -> NodeState:
    return (await fleet.get_node(desk, OPERATOR, node_id)).node.state


def another(code: str) -> str:
    return f"{(int(code) + 1) % 10_000:04}"


@pytest.mark.parametrize("code", ["0000", "1234", "5678", "9047", "3393"])
def test_every_digit_is_known_by_its_voice(code: str):
    assert heard(said(code)) == code * 2


async def test_a_node_sounds_after_its_code_was_heard_and_somebody_else_approved(desk: Desk, tech: Actor, head: Actor):
    told = await hung(desk, tech)
    with pytest.raises(Conflict, match="binding_missing"):
        await devices.approve_node(desk, head, told.node_id)
    code = heard(await spoken(desk, tech, told.node_id))[:4]
    view = await devices.answer_binding(desk, tech, told.node_id, f"{code[:2]} {code[2:]}")
    assert view.confirmed_at == desk.clock.now()
    with pytest.raises(Refused, match="not_permitted"):
        await devices.approve_node(desk, tech, told.node_id)

    shown = await devices.approve_node(desk, head, told.node_id)
    assert (shown.node.state, shown.bound_at) == (NodeState.ACTIVE, desk.clock.now())
    with pytest.raises(Conflict, match="node_active"):
        await devices.approve_node(desk, head, told.node_id)


async def test_who_typed_the_code_does_not_approve(desk: Desk, tech: Actor, head: Actor):
    told = await hung(desk, tech)
    code = heard(await spoken(desk, tech, told.node_id))[:4]
    await devices.answer_binding(desk, head, told.node_id, code)
    with pytest.raises(Refused, match="approver_typed_the_code"):
        await devices.approve_node(desk, head, told.node_id)
    other = await somebody(desk, Role.ADMIN, YEN_THANH)
    assert (await devices.approve_node(desk, other, told.node_id)).node.state is NodeState.ACTIVE


async def test_boxes_hung_on_each_other_s_poles_are_found_out(desk: Desk, tech: Actor, head: Actor):
    """Whoever stands below the pole of one hears the other."""
    market, school = await hung(desk, tech, 1), await hung(desk, tech, 2)
    below = {market.node_id: await spoken(desk, tech, school.node_id)}
    below[school.node_id] = await spoken(desk, tech, market.node_id)
    for node_id, sound in below.items():
        with pytest.raises(Refused, match="binding_wrong"):
            await devices.answer_binding(desk, tech, node_id, heard(sound)[:4])
        with pytest.raises(Conflict, match="binding_missing"):
            await devices.approve_node(desk, head, node_id)


async def test_three_wrong_answers_make_the_code_worthless(desk: Desk, tech: Actor):
    told = await hung(desk, tech)
    code = heard(await spoken(desk, tech, told.node_id))[:4]
    for left in (2, 1, 0):
        with pytest.raises(Refused, match="binding_wrong") as refused:
            await devices.answer_binding(desk, tech, told.node_id, another(code))
        assert refused.value.facts["tries_left"] == left
    with pytest.raises(Refused, match="binding_tries_spent"):
        await devices.answer_binding(desk, tech, told.node_id, code)


async def test_a_code_holds_for_five_minutes_and_an_older_one_not_at_all(desk: Desk, tech: Actor):
    told = await hung(desk, tech)
    with pytest.raises(Conflict, match="binding_not_asked"):
        await devices.answer_binding(desk, tech, told.node_id, "1234")
    old = heard(await spoken(desk, tech, told.node_id))[:4]
    fresh = heard(await spoken(desk, tech, told.node_id))[:4]
    assert old != fresh
    with pytest.raises(Refused, match="binding_wrong"):
        await devices.answer_binding(desk, tech, told.node_id, old)
    assert isinstance(desk.clock, FakeClock)
    await desk.clock.advance(300)
    with pytest.raises(Refused, match="binding_expired"):
        await devices.answer_binding(desk, tech, told.node_id, fresh)


async def test_a_node_speaks_six_codes_an_hour(desk: Desk, tech: Actor):
    told = await hung(desk, tech)
    for _ in range(devices.CODES_AN_HOUR):
        await devices.ask_binding(desk, tech, told.node_id)
    with pytest.raises(Refused, match="binding_too_often"):
        await devices.ask_binding(desk, tech, told.node_id)
    assert isinstance(desk.clock, FakeClock)
    await desk.clock.advance(3_600)
    assert await devices.ask_binding(desk, tech, told.node_id)


@pytest.mark.parametrize("typed", ["", "123", "12345", "12a4", "１２３４"])
async def test_what_is_no_code_costs_no_try(desk: Desk, tech: Actor, typed: str):
    told = await hung(desk, tech)
    await devices.ask_binding(desk, tech, told.node_id)
    with pytest.raises(Invalid, match="binding_code_invalid"):
        await devices.answer_binding(desk, tech, told.node_id, typed)


async def test_the_code_is_in_the_order_alone_and_leaves_it_when_it_was_heard(desk: Desk, tech: Actor):
    told = await hung(desk, tech)
    code = heard(await spoken(desk, tech, told.node_id))[:4]

    async def orders() -> list[OutboxRow]:
        return list(await desk.store.read(lambda session: session.scalars(select(OutboxRow)).all()))

    (order,) = await orders()
    assert order.body["code"] == code
    audit = await desk.store.read(lambda session: [str(row.detail) for row in session.scalars(select(AuditRow))])
    assert not [line for line in audit if f"'{code}'" in line]
    await devices.answer_binding(desk, tech, told.node_id, code)
    (order,) = await orders()
    assert ("code" in order.body, order.state) == (False, OutboxState.EXPIRED)


async def test_a_quarantined_node_is_released_after_another_check_with_a_reason(desk: Desk, tech: Actor, head: Actor):
    told = await hung(desk, tech)
    await approve(desk, tech, head, told.node_id)
    shown = await devices.quarantine_node(desk, tech, told.node_id, "Hộp bị cạy")
    assert (shown.node.state, shown.node.state_reason) == (NodeState.QUARANTINED, "Hộp bị cạy")
    assert [view.node.id for view in await fleet.list_nodes(desk, tech, NodeQuery(state=NodeState.QUARANTINED))]
    with pytest.raises(Conflict, match="node_quarantined"):
        await devices.quarantine_node(desk, tech, told.node_id, "lần nữa")
    with pytest.raises(Conflict, match="node_quarantined"):
        await devices.approve_node(desk, head, told.node_id)
    with pytest.raises(Conflict, match="binding_missing"):
        await devices.release_node(desk, head, told.node_id, "Đã kiểm tra")

    code = heard(await spoken(desk, tech, told.node_id))[:4]
    await devices.answer_binding(desk, tech, told.node_id, code)
    shown = await devices.release_node(desk, head, told.node_id, "Đã kiểm tra")
    assert (shown.node.state, shown.node.state_reason) == (NodeState.ACTIVE, None)
    with pytest.raises(Conflict, match="node_not_quarantined"):
        await devices.release_node(desk, head, told.node_id, "thừa")
    row = await desk.store.read(
        lambda session: session.scalars(select(AuditRow).where(AuditRow.verb == "node.release")).one()
    )
    assert (row.actor, row.detail["reason"], row.detail["was"]) == (head.login, "Đã kiểm tra", "Hộp bị cạy")


async def test_what_a_node_heard_before_its_quarantine_is_no_ground_to_release_it(desk: Desk, tech: Actor, head: Actor):
    told = await hung(desk, tech)
    code = heard(await spoken(desk, tech, told.node_id))[:4]
    await devices.answer_binding(desk, tech, told.node_id, code)
    await devices.quarantine_node(desk, tech, told.node_id, "nghi ngờ")
    with pytest.raises(Conflict, match="binding_missing"):
        await devices.release_node(desk, head, told.node_id, "thôi")


async def test_a_check_of_last_week_is_too_old_to_approve(desk: Desk, tech: Actor, head: Actor):
    told = await hung(desk, tech)
    code = heard(await spoken(desk, tech, told.node_id))[:4]
    await devices.answer_binding(desk, tech, told.node_id, code)
    assert isinstance(desk.clock, FakeClock)
    await desk.clock.advance(timedelta(days=7, seconds=1).total_seconds())
    with pytest.raises(Conflict, match="binding_missing"):
        await devices.approve_node(desk, head, told.node_id)
    assert await state_of(desk, told.node_id) is NodeState.PROBATION


async def test_a_retired_node_is_asked_nothing(desk: Desk, tech: Actor, head: Actor):
    told = await hung(desk, tech)
    await fleet.retire_node(desk, tech, told.node_id)
    for verb in (
        devices.ask_binding(desk, tech, told.node_id),
        devices.answer_binding(desk, tech, told.node_id, "1234"),
        devices.approve_node(desk, head, told.node_id),
        devices.quarantine_node(desk, tech, told.node_id, "x"),
        devices.release_node(desk, head, told.node_id, "x"),
    ):
        with pytest.raises(Conflict, match="node_retired"):
            await verb
