"""Two people and one alarm: who raises it proposes, who launches it agrees to the very same hash.

Both prove to be there, with password and one-time code (`accounts.prove`), each through a log-in of their own. A
maintainer must not break: (1) nothing here decides whether an alarm may sound: `emergency.put_in_force` does, by
`domain.consent`; (2) whose account is locked or whose right has ended has not agreed, whatever stands in the rows;
(3) a consent is written in the transaction that acts on it; (4) the machine's operator is nobody's second person.
"""

from __future__ import annotations

from broadcast_server.control import access, accounts, emergency
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.accounts import Proof
from broadcast_server.control.desk import Desk
from broadcast_server.control.emergency import (
    USUAL_VOICE,
    Correction,
    EmergencyView,
    Message,
    NewEmergency,
    Rounds,
    audit_emergency,
    check,
    check_confirm,
    view_of,
)
from broadcast_server.domain.consent import FINAL_MIN, ConsentRole
from broadcast_server.domain.errors import Conflict, Refused
from broadcast_server.store import consents, emergencies
from broadcast_server.store.session import Session
from broadcast_server.store.tables import EmergencyRow
from broadcast_server.store.words import EmergencyNature, EmergencyState


async def propose(desk: Desk, actor: Actor, request: NewEmergency, proof: Proof) -> EmergencyView:
    """Raise an emergency or a drill: it sounds once a second person agrees; its speech is made meanwhile.

    Raises `Invalid` naming field and fix, `Refused`, `NotFound`, and as `accounts.prove` does.
    """
    check_confirm(request.mode, request.confirm)
    check(request.message, request.rounds, request.expires_min, request.reason)
    await _may(desk, actor, Action.EMERGENCY_PROPOSE, request.unit_id)
    await proved(desk, actor, proof)
    now, emergency_id, consent_id = desk.clock.now(), desk.chance.new_id(), desk.chance.new_id()

    def work(session: Session) -> EmergencyView:
        row = enter_proposal(session, actor, request, emergency_id, consent_id, desk)
        return view_of(session, row, None, now)

    return await desk.urgent(work)


def enter_proposal(
    session: Session,
    actor: Actor,
    request: NewEmergency,
    emergency_id: str,
    consent_id: str,
    desk: Desk,
    *,
    most_units: int = emergency.MOST_UNITS,
) -> EmergencyRow:
    """`propose` inside a transaction of a caller whose actor has proved to be there."""
    now = desk.clock.now()
    row = emergency.new_row(session, actor, request, emergency_id, now, most_units=most_units)
    emergency.consent(session, row, actor, ConsentRole.INITIATOR, consent_id, now)
    audit_emergency(session, actor, now, "emergency.propose", row)
    return row


async def correct(desk: Desk, actor: Actor, request: Correction, proof: Proof) -> EmergencyView:
    """Đính chính: what is to replace it, at the same places and in the same mode, once a second person agrees.

    What is wrong need not wait for it: `emergency.cancel` silences it at once. Raises `Conflict("emergency_replaced")`
    where something stands in its place already.
    """
    check(request.message, request.rounds, request.expires_min, request.reason)
    return await _succeed(desk, actor, request, EmergencyNature.CORRECTION, proof)


async def finish(
    desk: Desk, actor: Actor, emergency_id: str, proof: Proof, *, reason: str, text: str, voice: str = USUAL_VOICE
) -> EmergencyView:
    """Tin cuối cùng in words of one's own, once a second person agrees; `emergency.finish` has ready ones at once."""
    message = Message(text=text, voice=voice)
    check(message, Rounds(times=1), FINAL_MIN, reason)
    request = Correction(emergency_id, message, reason, Rounds(times=1), FINAL_MIN)
    return await _succeed(desk, actor, request, EmergencyNature.FINAL, proof)


async def _succeed(
    desk: Desk, actor: Actor, request: Correction, nature: EmergencyNature, proof: Proof
) -> EmergencyView:
    def whose(session: Session) -> str:
        row = emergencies.emergency(session, request.emergency_id)
        emergency.authorize_on(session, actor, Action.EMERGENCY_PROPOSE, row, desk.clock.now())
        return row.unit_id

    await desk.store.read(whose)
    await proved(desk, actor, proof)
    now, fresh_id, consent_id = desk.clock.now(), desk.chance.new_id(), desk.chance.new_id()

    def work(session: Session) -> EmergencyView:
        row = enter_successor(session, actor, request, nature, fresh_id, consent_id, desk)
        return view_of(session, row, None, now)

    return await desk.urgent(work)


def enter_successor(
    session: Session,
    actor: Actor,
    request: Correction,
    nature: EmergencyNature,
    emergency_id: str,
    consent_id: str,
    desk: Desk,
) -> EmergencyRow:
    """`correct` and `finish` inside a transaction of a caller whose actor has proved to be there."""
    check(request.message, request.rounds, request.expires_min, request.reason)
    now = desk.clock.now()
    row = emergency.new_successor(session, actor, request, nature, emergency_id, now)
    emergency.consent(session, row, actor, ConsentRole.INITIATOR, consent_id, now)
    audit_emergency(session, actor, now, "emergency.propose", row, replaces=row.replaces_id)
    return row


async def renew(desk: Desk, actor: Actor, emergency_id: str, proof: Proof, *, content_hash: str) -> EmergencyView:
    """Agree anew, as the first of the two, to what nobody launched in time: same hash, a new quarter of an hour."""
    await _may_at(desk, actor, Action.EMERGENCY_PROPOSE, emergency_id)
    await proved(desk, actor, proof)
    now, consent_id = desk.clock.now(), desk.chance.new_id()

    def work(session: Session) -> EmergencyView:
        row = _proposed(session, actor, Action.EMERGENCY_PROPOSE, emergency_id, content_hash, desk)
        if row.state is EmergencyState.PROPOSED:
            emergency.consent(session, row, actor, ConsentRole.INITIATOR, consent_id, now)
            audit_emergency(session, actor, now, "emergency.renew", row)
        return view_of(session, row, None, now)

    return await desk.urgent(work)


async def approve(
    desk: Desk, actor: Actor, emergency_id: str, proof: Proof, *, content_hash: str, confirm: str
) -> EmergencyView:
    """Be the second person: it sounds at once, exactly as it was seen. Sounding already: the same answer, nothing
    twice.

    Raises `Refused("unfit_…")` naming why two consents do not make one alarm, `Conflict("content_changed")`,
    `Conflict("emergency_withdrawn")`, and as `accounts.prove` does.
    """
    mode = (await _may_at(desk, actor, Action.EMERGENCY_LAUNCH, emergency_id)).mode
    check_confirm(mode, confirm)
    await proved(desk, actor, proof)
    now, consent_id = desk.clock.now(), desk.chance.new_id()

    def work(session: Session) -> EmergencyView:
        row = enter_approval(session, actor, emergency_id, content_hash, consent_id, desk)
        return view_of(session, row, None, now)

    return await desk.urgent(work)


def enter_approval(
    session: Session, actor: Actor, emergency_id: str, content_hash: str, consent_id: str, desk: Desk
) -> EmergencyRow:
    """`approve` inside a transaction of a caller whose actor has proved to be there and typed the word."""
    now = desk.clock.now()
    row = _proposed(session, actor, Action.EMERGENCY_LAUNCH, emergency_id, content_hash, desk)
    if row.state is EmergencyState.PROPOSED:
        emergency.consent(session, row, actor, ConsentRole.APPROVER, consent_id, now)
        emergency.put_in_force(session, desk, actor, row, now, without=_void(session, row, actor, desk))
    return row


async def proved(desk: Desk, actor: Actor, proof: Proof) -> None:
    """The actor is there, just now, with password and code. Raises `Refused` as `accounts.prove` does."""
    if actor.everywhere:
        raise Refused("not_a_person", fix="name_two_people", login=actor.login)
    presence = await accounts.prove(desk, actor, proof)
    if presence.user_id != actor.user_id:
        raise Refused("proof_wrong", field="proof")


def _void(session: Session, row: EmergencyRow, second: Actor, desk: Desk) -> frozenset[str]:
    """Who proposed and may not any more: locked out, or the right has ended since."""
    now = desk.clock.now()
    return frozenset(
        one.user_id
        for one in consents.consents_of(session, (row.id,))[row.id]
        if one.user_id != second.user_id
        and not (
            consents.is_enabled(session, one.user_id)
            and access.may(session, Actor(one.user_id, one.login), Action.EMERGENCY_PROPOSE, row.unit_id, at=now)
        )
    )


def _proposed(
    session: Session, actor: Actor, action: Action, emergency_id: str, content_hash: str, desk: Desk
) -> EmergencyRow:
    """What was proposed, still as it was seen, for somebody who may."""
    row = emergencies.emergency(session, emergency_id)
    emergency.authorize_on(session, actor, action, row, desk.clock.now())
    if row.content_hash != content_hash or emergencies.alarm_of(row).content_hash != content_hash:
        raise Conflict("content_changed", field="content_hash", fix="hear_it_again", expected=content_hash)
    if row.state is EmergencyState.WITHDRAWN:
        raise Conflict("emergency_withdrawn", emergency=row.id, fix="raise_it_anew")
    return row


async def _may(desk: Desk, actor: Actor, action: Action, unit_id: str) -> None:
    now = desk.clock.now()
    await desk.store.read(lambda session: access.authorize(session, actor, action, unit_id, at=now))


async def _may_at(desk: Desk, actor: Actor, action: Action, emergency_id: str) -> EmergencyRow:
    now = desk.clock.now()

    def look(session: Session) -> EmergencyRow:
        row = emergencies.emergency(session, emergency_id)
        emergency.authorize_on(session, actor, action, row, now)
        return row

    return await desk.store.read(look)
