"""The audit log cannot be written: what warns and what silences still goes, and is in the log when it can be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from broadcast_server.control import auditing, emergency, places
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.accounts import Proof, prove
from broadcast_server.control.desk import Desk
from broadcast_server.control.emergency import Message, NewEmergency
from broadcast_server.control.sign_in import LogIn, log_in
from broadcast_server.domain.errors import Refused, Unavailable
from broadcast_server.store import audit
from broadcast_server.store.journal import Journal
from broadcast_server.store.words import EmergencyMode, EmergencyState
from tests.support.alarms import Duo, a_duo
from tests.support.audit import open_again, shut
from tests.support.village import DONG, Village, a_village

FLOOD = NewEmergency(DONG, EmergencyMode.REAL, Message("flood", text="Vỡ đê"), "Đê vỡ", confirm="KHẨN CẤP")


@pytest_asyncio.fixture
async def village() -> AsyncIterator[Village]:
    async with a_village() as opened:
        yield opened


@pytest.fixture
def desk(village: Village, tmp_path: Path) -> Desk:
    return replace(village.desk, journal=Journal(tmp_path / "second.jsonl"))


@pytest_asyncio.fixture
async def duo(desk: Desk) -> Duo:
    return await a_duo(desk, DONG)


async def verbs(desk: Desk) -> list[str]:
    return [row.verb for row in await desk.store.read(lambda session: audit.listed(session, None, limit=100))][::-1]


async def test_a_flood_is_warned_of_and_ended_while_the_log_is_shut(desk: Desk, duo: Duo):
    before = await verbs(desk)
    shut(desk.store)

    with pytest.raises(Unavailable, match="audit_unwritable"):
        await places.rename_unit(desk, OPERATOR, DONG, "Xã Khác")
    raised = await duo.raise_(FLOOD)
    assert raised.row.state is EmergencyState.IN_FORCE
    ended = await emergency.cancel(desk, duo.first.actor, raised.row.id, reason="Nước đã rút")
    assert ended.row.state is EmergencyState.CANCELLED
    (stopped,) = await emergency.stop_all(desk, duo.second.actor, (DONG,), reason="Tiếng lạ")
    assert stopped.row.released_at is None

    assert await verbs(desk) == before
    open_again(desk.store)
    await auditing.take_over(desk)
    told = (await verbs(desk))[len(before) :]
    assert [verb for verb in told if verb.startswith(("emergency.", "stop_all."))] == [
        "emergency.propose",
        "emergency.launch",
        "emergency.cancel",
        "stop_all.set",
    ]
    assert await desk.store.read(audit.verify) is None


async def test_who_must_warn_still_logs_in_while_the_log_is_shut(desk: Desk, duo: Duo):
    before = await verbs(desk)
    shut(desk.store)
    proof = duo.first.proof()
    entered = await log_in(desk, LogIn(duo.first.login, proof.password, proof.code, "10.0.0.7"))
    assert entered.signed_in.actor.user_id == duo.first.actor.user_id
    with pytest.raises(Refused, match="proof_wrong"):
        await prove(desk, entered.signed_in.actor, Proof("đoán bừa một câu", "123456"))
    assert (await prove(desk, entered.signed_in.actor, duo.first.proof())).user_id == duo.first.actor.user_id
    open_again(desk.store)
    await auditing.take_over(desk)
    assert [verb for verb in (await verbs(desk))[len(before) :] if verb != "audit.taken_over"][:2] == [
        "sign_in.open",
        "proof.fail",
    ]
