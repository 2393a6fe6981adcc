"""Khẩn cấp: put in force, cancel, end; and the stop-all latch. State, not commands: the conductor publishes it.

How people come to agree stands in `control.consents` (two of them) and `control.break_glass` (one, from an approved
template). A maintainer must not break: (1) `put_in_force` is the only way on the air, and it asks `domain.consent`;
(2) the mode has no default and a typed word confirms it: a drill and a real alert cannot be mistaken for each other;
(3) deliveries are made in the transaction that launches, so nobody who should be warned is forgotten; (4) silencing
needs one person and is idempotent: a hand that presses twice cancels and releases once; (5) an emergency leaves at once
with what the nodes have themselves; its speech follows (`control.herald`), nobody waits for it.

Source: Thông tư 39/2020 (khẩn cấp plays at once, wherever it is addressed); `docs/glossary.md` (diễn tập, tin cuối
cùng, dừng tất cả).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from broadcast_server.audio.speech import Voice
from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.domain.alarm import round_length
from broadcast_server.domain.consent import CONSENT_LIVES, FINAL_MIN, ConsentRole, Unfit, ready_final
from broadcast_server.domain.delivery import ALERT, LATCH, DeliveryState
from broadcast_server.domain.errors import BroadcastError, Conflict, Invalid, NotFound, Refused
from broadcast_server.store import audit, consents, deliveries, emergencies, library, places, sendings
from broadcast_server.store.deliveries import Counts, Shown
from broadcast_server.store.emergencies import body_of
from broadcast_server.store.session import Session
from broadcast_server.store.tables import AlertRow, ArrivalRow, BroadcastRow, EmergencyRow, StopAllRow
from broadcast_server.store.tables_approval import EmergencyConsentRow
from broadcast_server.store.words import (
    ArrivalState,
    EmergencyMode,
    EmergencyNature,
    EmergencyState,
    ScheduleKind,
    VersionState,
)
from speaker_protocol.hazards import HAZARDS, PHRASES
from speaker_protocol.rules import BulletinClass, Level

CONFIRM: Final = {EmergencyMode.REAL: "KHẨN CẤP", EmergencyMode.DRILL: "DIỄN TẬP"}
"""What must be typed, capital or small, to launch in a mode."""
USUAL_VOICE: Final = Voice.NORTH.value
LONGEST_MIN: Final = 24 * 60
DEFAULT_MIN: Final = 60
MOST_UNITS: Final = 200
TEXT_MAX: Final = 2_000
_REASON_MAX: Final = 300
_COMMUNE_KINDS: Final = frozenset({"commune", "ward", "special_zone", "town", "zone", "hamlet"})


# -- requests and answers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rounds:
    """How it goes round; None means the node's usual figure."""

    times: int | None = None
    gap_ms: int | None = None
    tone_ms: int | None = None
    every_min: int | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """What it says: a hazard's own phrases, a text, an approved bulletin, or several of these."""

    hazard: str | None = None
    phrases: tuple[str, ...] = ()
    text: str | None = None
    voice: str = USUAL_VOICE
    bulletin_id: str | None = None
    language: str = "vie"


@dataclass(frozen=True, slots=True)
class NewEmergency:
    """An emergency to agree to. `units`: where it sounds, of what lies under `unit_id`; none: all of it.

    `confirm`: the word of its mode, typed by whoever raises it.
    """

    unit_id: str
    mode: EmergencyMode
    message: Message
    reason: str
    confirm: str = ""
    units: tuple[str, ...] = ()
    rounds: Rounds = Rounds()
    expires_min: int = DEFAULT_MIN


@dataclass(frozen=True, slots=True)
class Correction:
    """What replaces an emergency at the same places, in the same mode."""

    emergency_id: str
    message: Message
    reason: str
    rounds: Rounds = Rounds()
    expires_min: int = DEFAULT_MIN


@dataclass(frozen=True, slots=True)
class EmergencyView:
    """An emergency, how far it came, and what may keep it silent. `successor_id`: what stands in its place."""

    row: EmergencyRow
    counts: Counts
    is_in_force: bool
    successor_id: str | None
    stopped_by: tuple[str, ...]
    """Stop-alls in force over any of its places: there it does not sound."""
    consents: tuple[EmergencyConsentRow, ...] = ()
    agree_by: datetime | None = None
    """Until when a second person may agree to what was proposed; None: it is decided, or nobody agreed lately."""


@dataclass(frozen=True, slots=True)
class StopAllView:
    """A stop-all and how far it came."""

    row: StopAllRow
    counts: Counts


@dataclass(frozen=True, slots=True)
class EmergencyQuery:
    """Which: launched or proposed by units under `unit_id`; only those in force."""

    unit_id: str | None = None
    in_force: bool = False
    after: str | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class DeliveryQuery:
    """Deliveries of one emergency or stop-all, by node id. `unreached`: only who it did not reach, and why."""

    unreached: bool = False
    state: DeliveryState | None = None
    after: str | None = None
    limit: int = 100


# -- on the air -------------------------------------------------------------------------------------------------------


def new_row(
    session: Session,
    actor: Actor,
    request: NewEmergency,
    emergency_id: str,
    now: datetime,
    *,
    template_id: str | None = None,
    most_units: int = MOST_UNITS,
) -> EmergencyRow:
    """What was asked for, proposed, and the right to propose it. Raises `Invalid` naming field and fix, `Refused`,
    `NotFound`.
    """
    check_confirm(request.mode, request.confirm)
    check(request.message, request.rounds, request.expires_min, request.reason)
    access.authorize(session, actor, Action.EMERGENCY_PROPOSE, request.unit_id, at=now)
    return _entered(
        session,
        actor,
        emergency_id,
        unit_id=request.unit_id,
        units=_units(session, request.unit_id, request.units, now, most_units),
        mode=request.mode,
        nature=EmergencyNature.ALERT,
        message=request.message,
        rounds=request.rounds,
        expires_min=request.expires_min,
        reason=request.reason,
        now=now,
        template_id=template_id,
    )


def new_successor(
    session: Session,
    actor: Actor,
    request: Correction,
    nature: EmergencyNature,
    emergency_id: str,
    now: datetime,
) -> EmergencyRow:
    """What is to stand in the place of an emergency, proposed. Raises `Conflict("emergency_replaced")` where something
    does already.
    """
    row = emergencies.emergency(session, request.emergency_id)
    authorize_on(session, actor, Action.EMERGENCY_PROPOSE, row, now)
    _may_be_replaced(session, row)
    return _entered(
        session,
        actor,
        emergency_id,
        unit_id=row.unit_id,
        units=row.units,
        mode=row.mode,
        nature=nature,
        message=request.message,
        rounds=request.rounds,
        expires_min=request.expires_min,
        reason=request.reason,
        replaces=row.id,
        now=now,
    )


def _may_be_replaced(session: Session, row: EmergencyRow) -> None:
    if row.launched_at is None:
        raise Conflict("emergency_not_launched", emergency=row.id, fix="withdraw_instead")
    successor = emergencies.successor_of(session, row.id)
    if successor is not None:
        raise Conflict("emergency_replaced", emergency=row.id, by=successor.id, fix="act_on_successor")


def put_in_force(
    session: Session, desk: Desk, actor: Actor, row: EmergencyRow, now: datetime, *, without: Collection[str] = ()
) -> None:
    """Sound it, if exactly this was agreed to; what it replaces is over. `without`: people whose consent is void.

    Raises `Refused` with the reason why it may not sound, `Conflict("emergency_replaced")`.
    """
    unfit = consents.why_unfit(session, row, launched_at=now, without=without)
    if unfit is Unfit.CONTENT_CHANGED:
        raise Conflict("content_changed", field="content_hash", fix="hear_it_again", expected=row.content_hash)
    if unfit is not None:
        raise Refused(f"unfit_{unfit.value}", emergency=row.id, fix=_UNFIT_FIX.get(unfit, "raise_it_anew"))
    if row.replaces_id is not None:
        before = emergencies.emergency(session, row.replaces_id)
        _may_be_replaced(session, before)
        _replaced(session, actor, before, row, now)
    _sound(session, desk, actor, row, now)


_UNFIT_FIX: Final = {
    Unfit.CONSENT_MISSING: "find_second_person",
    Unfit.SAME_PERSON: "find_second_person",
    Unfit.SAME_SEAT: "find_second_person",
    Unfit.TEMPLATE_UNAPPROVED: "approve_template",
    Unfit.FINAL_OWN_WORDS: "find_second_person",
}


def consent(
    session: Session,
    row: EmergencyRow,
    actor: Actor,
    role: ConsentRole,
    consent_id: str,
    now: datetime,
) -> None:
    """The actor agrees to exactly what the row holds now. Raises `Refused("not_a_person")` for a machine's hand."""
    if actor.everywhere or not consents.is_enabled(session, actor.user_id):
        raise Refused("not_a_person", fix="name_two_people", login=actor.login)
    content_hash = emergencies.alarm_of(row).content_hash
    if content_hash != row.content_hash:
        raise Conflict("content_changed", field="content_hash", fix="hear_it_again", expected=row.content_hash)
    session.add(
        EmergencyConsentRow(
            id=consent_id,
            emergency_id=row.id,
            user_id=actor.user_id,
            login=actor.login,
            role=role,
            content_hash=content_hash,
            at=now,
            seat=seat_of(actor),
        )
    )
    session.flush()


def seat_of(actor: Actor) -> str | None:
    """The log-in somebody came through."""
    return actor.session_id or actor.token_id


def _sound(session: Session, desk: Desk, actor: Actor, row: EmergencyRow, now: datetime) -> None:
    row.state, row.approved_by, row.launched_at = EmergencyState.IN_FORCE, actor.login, now
    row.expires_at = now + timedelta(minutes=row.expires_min)
    body = body_of(session, row)
    for unit_id in row.units:
        session.add(
            AlertRow(
                id=desk.chance.new_id(),
                emergency_id=row.id,
                unit_id=unit_id,
                level=row.level,
                body=body,
                issued_at=now,
                expires_at=row.expires_at,
            )
        )
    session.add(
        BroadcastRow(
            id=f"{ALERT}{row.id}",
            schedule_id=None,
            unit_id=row.unit_id,
            kind=ScheduleKind.EMERGENCY,
            klass=BulletinClass.EMERGENCY,
            title=emergencies.title_of(row.text, row.hazard, row.nature.value)[:300],
            starts_at=now,
            ends_at=now + round_of(session, row),
            asset_sha256=row.asset_sha256,
            approval=row.content_hash,
        )
    )
    session.flush()
    deliveries.enlist(
        session, f"{ALERT}{row.id}", row.units, places.local_date(now), now=now, expires_at=row.expires_at
    )
    for arrival in sendings.of_alert(session, row.id, ArrivalState.WAITING):
        arrival.state, arrival.sounds_at = ArrivalState.PLANNED, now
        arrival.decided_at, arrival.decided_by = now, actor.login
        audit_arrival(session, actor, now, "arrival.alert", arrival, alert=row.id)
    session.flush()
    agreed = [f"{one.role.value}:{one.login}" for one in consents.consents_of(session, (row.id,))[row.id]]
    verb = "emergency.drill" if row.mode is EmergencyMode.DRILL else "emergency.launch"
    audit_emergency(session, actor, now, verb, row, agreed=agreed, template=row.template_id)


def _replaced(session: Session, actor: Actor, row: EmergencyRow, by: EmergencyRow, now: datetime) -> None:
    """It is over, and so is what was sent down as it, where the other takes its place."""
    mine = {each.unit_id for each in sendings.of_alert(session, by.id, ArrivalState.WAITING)}
    was_sounding = _is_in_force(row, now)
    if was_sounding:
        _end(session, actor, row, EmergencyState.REPLACED, by.reason, now)
    for arrival in sendings.of_alert(session, row.id, ArrivalState.PLANNED):
        if arrival.unit_id in mine:
            arrival.state = ArrivalState.REPLACED
            arrival.reason = "while_it_sounded" if was_sounding else "after_it_sounded"
            audit_arrival(session, actor, now, "arrival.replace", arrival, by=by.id)
    audit_emergency(session, actor, now, f"emergency.{by.nature.value}", row, by=by.id, reason=by.reason)


# -- ends and successors ----------------------------------------------------------------------------------------------


async def cancel(desk: Desk, actor: Actor, emergency_id: str, *, reason: str) -> EmergencyView:
    """Silence it at once, or withdraw a proposal. Over already: nothing more happens."""
    now = desk.clock.now()
    _check_reason(reason)
    return await desk.urgent(
        lambda session: view_of(session, enter_cancel(session, actor, emergency_id, reason, now), None, now)
    )


def enter_cancel(session: Session, actor: Actor, emergency_id: str, reason: str, now: datetime) -> EmergencyRow:
    """`cancel` inside a transaction of the caller's."""
    row = emergencies.emergency(session, emergency_id)
    is_proposal = row.state is EmergencyState.PROPOSED
    action = Action.EMERGENCY_PROPOSE if is_proposal else Action.EMERGENCY_LAUNCH
    authorize_on(session, actor, action, row, now)
    if is_proposal:
        _end(session, actor, row, EmergencyState.WITHDRAWN, reason, now)
        audit_emergency(session, actor, now, "emergency.withdraw", row, reason=reason)
    elif _is_in_force(row, now):
        _end(session, actor, row, EmergencyState.CANCELLED, reason, now)
        audit_emergency(session, actor, now, "emergency.cancel", row, reason=reason)
    return row


async def finish(
    desk: Desk, actor: Actor, emergency_id: str, *, reason: str, voice: str = USUAL_VOICE
) -> EmergencyView:
    """Tin cuối cùng: silences it and says once, in ready-made words, that the danger is over, to the same places.

    Ending needs one person. Finished already: the notice that stands. Words of one's own: `consents.finish`.
    """
    now, fresh_id, consent_id = desk.clock.now(), desk.chance.new_id(), desk.chance.new_id()
    _check_reason(reason)
    if voice not in set(Voice):
        raise Invalid("not_a_choice", field="voice", expected=", ".join(Voice), fix="pick_voice")

    def work(session: Session) -> EmergencyView:
        row = emergencies.emergency(session, emergency_id)
        authorize_on(session, actor, Action.EMERGENCY_LAUNCH, row, now)
        successor = emergencies.successor_of(session, row.id)
        if successor is not None and successor.nature is EmergencyNature.FINAL:
            return view_of(session, successor, None, now)
        says = ready_final(row.mode.value, emergencies.alarm_of(row).says, voice)
        message = Message(hazard=says.hazard, text=says.text, voice=voice)
        request = Correction(row.id, message, reason, Rounds(times=says.times), FINAL_MIN)
        fresh = new_successor(session, actor, request, EmergencyNature.FINAL, fresh_id, now)
        consent(session, fresh, actor, ConsentRole.FINISHER, consent_id, now)
        put_in_force(session, desk, actor, fresh, now)
        return view_of(session, fresh, None, now)

    return await desk.urgent(work)


def _end(session: Session, actor: Actor, row: EmergencyRow, state: EmergencyState, reason: str, now: datetime) -> None:
    row.state, row.ended_at, row.ended_by, row.end_reason = state, now, actor.login, reason
    if row.launched_at is None:
        return
    emergencies.cancel_alerts(session, row.id, now=now)
    deliveries.taken_back(session, f"{ALERT}{row.id}", now=now)
    line = emergencies.broadcast(session, row.id)
    if line is not None and line.ends_at > now:
        deliveries.move_lines(session, line.id, max(now, line.starts_at + timedelta(milliseconds=1)))
    session.flush()


# -- stop-all ---------------------------------------------------------------------------------------------------------


async def stop_all(desk: Desk, actor: Actor, units: Sequence[str], *, reason: str) -> list[StopAllView]:
    """Silence everything at these units and below, until released. A unit that is stopped already stays as it is."""
    now = desk.clock.now()
    _check_reason(reason)
    if not units or len(units) > MOST_UNITS:
        raise Invalid("units_count", field="units", most=MOST_UNITS, fix="pick_units")
    ids = [desk.chance.new_id() for _ in units]

    def work(session: Session) -> list[StopAllView]:
        stopped = []
        for fresh_id, unit_id in zip(ids, dict.fromkeys(units), strict=False):
            access.authorize(session, actor, Action.STOP_ALL, unit_id, at=now)
            standing = emergencies.latches_over(session, (unit_id,))
            if standing:
                stopped.append(standing[0])
                continue
            row = StopAllRow(id=fresh_id, unit_id=unit_id, since=now, set_by=actor.login, reason=reason)
            session.add(row)
            session.flush()
            deliveries.enlist(session, f"{LATCH}{row.id}", (unit_id,), places.local_date(now), now=now, expires_at=None)
            _audit_latch(session, actor, now, "stop_all.set", row, reason)
            stopped.append(row)
        return [_latch_view(session, row, None, now) for row in stopped]

    return await desk.urgent(work)


async def release(desk: Desk, actor: Actor, latch_id: str, *, reason: str) -> StopAllView:
    """Let a unit sound again. Released already: nothing more happens."""
    now = desk.clock.now()
    _check_reason(reason)

    def work(session: Session) -> StopAllView:
        row = emergencies.stop_all(session, latch_id)
        seen = _concerns(session, (row.unit_id,), access.scope(session, actor, Action.READ, at=now), now)
        access.authorize(session, actor, Action.STOP_ALL, row, at=now, seen=seen)
        if row.released_at is None:
            row.released_at, row.released_by, row.release_reason = now, actor.login, reason
            deliveries.taken_back(session, f"{LATCH}{row.id}", now=now)
            _audit_latch(session, actor, now, "stop_all.release", row, reason)
        return _latch_view(session, row, None, now)

    return await desk.urgent(work)


# -- reading ----------------------------------------------------------------------------------------------------------


async def get_emergency(desk: Desk, actor: Actor, emergency_id: str) -> EmergencyView:
    """One emergency, counted over the places the actor may see. Raises `NotFound`."""
    now = desk.clock.now()

    def work(session: Session) -> EmergencyView:
        row = emergencies.emergency(session, emergency_id)
        roots = access.scope(session, actor, Action.READ, at=now)
        if not _concerns(session, (row.unit_id, *row.units), roots, now):
            raise NotFound("unknown_emergency", emergency=emergency_id)
        return view_of(session, row, roots, now)

    return await desk.store.read(work)


async def list_emergencies(desk: Desk, actor: Actor, query: EmergencyQuery) -> list[EmergencyView]:
    """The newest first: of the places the actor may see, and what was launched above them."""
    now = desk.clock.now()

    def work(session: Session) -> list[EmergencyView]:
        roots = access.roots(session, actor, Action.READ, query.unit_id, at=now)
        rows = emergencies.list_emergencies(
            session,
            _around(session, roots, now),
            in_force_at=now if query.in_force else None,
            after=query.after,
            limit=query.limit,
        )
        counted = deliveries.counts_of(session, [f"{ALERT}{row.id}" for row in rows], roots, places.local_date(now))
        return [view_of(session, row, roots, now, counted[f"{ALERT}{row.id}"]) for row in rows]

    return await desk.store.read(work)


async def list_deliveries(desk: Desk, actor: Actor, emergency_id: str, query: DeliveryQuery) -> list[Shown]:
    """How it came to each node the actor may see. Raises `NotFound`."""
    await get_emergency(desk, actor, emergency_id)
    return await _deliveries(desk, actor, f"{ALERT}{emergency_id}", query)


async def get_stop_all(desk: Desk, actor: Actor, latch_id: str) -> StopAllView:
    """One stop-all, counted over the places the actor may see. Raises `NotFound`."""
    now = desk.clock.now()

    def work(session: Session) -> StopAllView:
        row = emergencies.stop_all(session, latch_id)
        roots = access.scope(session, actor, Action.READ, at=now)
        if not _concerns(session, (row.unit_id,), roots, now):
            raise NotFound("unknown_stop_all", stop_all=latch_id)
        return _latch_view(session, row, roots, now)

    return await desk.store.read(work)


async def list_stop_alls(desk: Desk, actor: Actor, query: EmergencyQuery) -> list[StopAllView]:
    """The newest first: of the places the actor may see, and of what lies above them."""
    now = desk.clock.now()

    def work(session: Session) -> list[StopAllView]:
        roots = access.roots(session, actor, Action.READ, query.unit_id, at=now)
        rows = emergencies.list_stop_alls(
            session, _around(session, roots, now), in_force=query.in_force, after=query.after, limit=query.limit
        )
        counted = deliveries.counts_of(session, [f"{LATCH}{row.id}" for row in rows], roots, places.local_date(now))
        return [StopAllView(row, counted[f"{LATCH}{row.id}"]) for row in rows]

    return await desk.store.read(work)


async def list_stop_all_deliveries(desk: Desk, actor: Actor, latch_id: str, query: DeliveryQuery) -> list[Shown]:
    """How a stop-all came to each node the actor may see. Raises `NotFound`."""
    await get_stop_all(desk, actor, latch_id)
    return await _deliveries(desk, actor, f"{LATCH}{latch_id}", query)


async def _deliveries(desk: Desk, actor: Actor, subject: str, query: DeliveryQuery) -> list[Shown]:
    now = desk.clock.now()
    return await desk.store.read(
        lambda session: deliveries.list_deliveries(
            session,
            subject,
            access.scope(session, actor, Action.READ, at=now),
            places.local_date(now),
            now=now,
            unreached=query.unreached,
            state=query.state,
            after=query.after,
            limit=query.limit,
        )
    )


def _around(session: Session, roots: Collection[str] | None, now: datetime) -> frozenset[str] | None:
    """Units under the roots and above them; None: all."""
    if roots is None:
        return None
    on = places.local_date(now)
    above = {place for root in roots for place in places.path_of(session, root, on)}
    return places.subtree_of(session, roots, on) | above


def authorize_on(session: Session, actor: Actor, action: Action, row: EmergencyRow, now: datetime) -> None:
    """`access.authorize` at the place that raised it; who hears it may know of it, wherever it was raised."""
    roots = access.scope(session, actor, Action.READ, at=now)
    seen = _concerns(session, (row.unit_id, *row.units), roots, now)
    access.authorize(session, actor, action, row, at=now, seen=seen)


def _concerns(session: Session, units: Collection[str], roots: Collection[str] | None, now: datetime) -> bool:
    around = _around(session, roots, now)
    return around is None or not around.isdisjoint(units)


def view_of(
    session: Session,
    row: EmergencyRow,
    roots: Collection[str] | None,
    now: datetime,
    counted: Counts | None = None,
) -> EmergencyView:
    """An emergency as a caller with these roots (None: all) sees it."""
    session.flush()
    on = places.local_date(now)
    successor = emergencies.successor_of(session, row.id)
    paths = places.paths_of(session, row.units, on)
    over = frozenset(place for path in paths.values() for place in path)
    is_in_force = _is_in_force(row, now)
    given = consents.consents_of(session, (row.id,))[row.id]
    return EmergencyView(
        row,
        deliveries.counts(session, f"{ALERT}{row.id}", roots, on) if counted is None else counted,
        is_in_force,
        None if successor is None else successor.id,
        tuple(latch.id for latch in emergencies.latches_over(session, over)) if is_in_force else (),
        tuple(given),
        _agree_by(row, given, now),
    )


def _agree_by(row: EmergencyRow, given: Sequence[EmergencyConsentRow], now: datetime) -> datetime | None:
    first = [one.at for one in given if one.role is ConsentRole.INITIATOR and one.content_hash == row.content_hash]
    if row.state is not EmergencyState.PROPOSED or not first or max(first) + CONSENT_LIVES < now:
        return None
    return max(first) + CONSENT_LIVES


def _latch_view(session: Session, row: StopAllRow, roots: Collection[str] | None, now: datetime) -> StopAllView:
    session.flush()
    return StopAllView(row, deliveries.counts(session, f"{LATCH}{row.id}", roots, places.local_date(now)))


# -- what it is made of -----------------------------------------------------------------------------------------------


def _entered(
    session: Session,
    actor: Actor,
    emergency_id: str,
    *,
    unit_id: str,
    units: Sequence[str],
    mode: EmergencyMode,
    nature: EmergencyNature,
    message: Message,
    rounds: Rounds,
    expires_min: int,
    reason: str,
    now: datetime,
    replaces: str | None = None,
    template_id: str | None = None,
) -> EmergencyRow:
    version_id, asset = None, None
    if message.bulletin_id is not None:
        version_id, asset = _approved(session, actor, message.bulletin_id, message.language, now)
    row = EmergencyRow(
        id=emergency_id,
        unit_id=unit_id,
        units=list(units),
        state=EmergencyState.PROPOSED,
        mode=mode,
        nature=nature,
        replaces_id=replaces,
        template_id=template_id,
        level=int(_level(session, unit_id, now)),
        hazard=message.hazard,
        phrases=list(message.phrases),
        text=message.text,
        voice=message.voice if message.text is not None else None,
        bulletin_version_id=version_id,
        asset_sha256=asset,
        tone_ms=rounds.tone_ms,
        times=rounds.times,
        gap_ms=rounds.gap_ms,
        every_min=rounds.every_min,
        expires_min=expires_min,
        reason=reason,
        proposed_by=actor.login,
        proposed_at=now,
    )
    row.content_hash = emergencies.alarm_of(row).content_hash
    session.add(row)
    session.flush()
    return row


def round_of(session: Session, row: EmergencyRow) -> timedelta:
    """How long one round of it takes on every node."""
    return min(round_length(body_of(session, row)), timedelta(minutes=row.expires_min))


def _approved(session: Session, actor: Actor, bulletin_id: str, language: str, now: datetime) -> tuple[str, str]:
    """The bulletin's approved version in a language, and its audio. Raises where nobody approved it."""
    bulletin = library.bulletin(session, bulletin_id)
    access.authorize(session, actor, Action.READ, bulletin, at=now)
    for version in sorted(library.versions(session, (bulletin_id,))[bulletin_id], key=lambda one: -one.number):
        is_approved = version.state is VersionState.APPROVED and version.approved_hash == version.content_hash
        if version.language == language and is_approved and version.asset_sha256 is not None:
            return version.id, version.asset_sha256
    raise Refused("blocked_approval_void", field="message.bulletin_id", fix="approve_content")


def _level(session: Session, unit_id: str, now: datetime) -> Level:
    """The ladder by where the launching unit stands."""
    path = places.path_of(session, unit_id, places.local_date(now))
    kinds = {unit.kind for unit in places.units(session, path).values()}
    return Level.EMERGENCY_COMMUNE if kinds & _COMMUNE_KINDS else Level.EMERGENCY_UPPER


def _units(session: Session, unit_id: str, asked: Sequence[str], now: datetime, most: int) -> list[str]:
    """Where it sounds: of the unit's own places, and none that lies in another of them."""
    on = places.local_date(now)
    if len(asked) > most:
        raise Invalid("units_count", field="units", most=most, fix="pick_units")
    if not asked:
        return [unit_id]
    paths: dict[str, tuple[str, ...]] = {}
    for number, unit in enumerate(dict.fromkeys(asked)):
        try:
            paths[unit] = places.path_of(session, unit, on)
        except NotFound as missing:
            raise NotFound(
                missing.code, **missing.facts | {"field": f"units[{number}]", "fix": "pick_target"}
            ) from None
        if unit_id not in paths[unit]:
            raise Refused("unit_outside", field=f"units[{number}]", unit_id=unit, within=unit_id, fix="pick_target")
    return [unit for unit, path in paths.items() if not paths.keys() & set(path[1:])]


def _is_in_force(row: EmergencyRow, now: datetime) -> bool:
    return row.state is EmergencyState.IN_FORCE and row.expires_at is not None and row.expires_at > now


# -- checks -----------------------------------------------------------------------------------------------------------


def check_confirm(mode: EmergencyMode, typed: str) -> None:
    """Raises `Invalid("confirm_wrong")` unless the mode's word was typed."""
    wanted = CONFIRM[mode]
    if unicodedata.normalize("NFC", typed).strip().casefold() != wanted.casefold():
        raise Invalid("confirm_wrong", field="confirm", expected=wanted, fix="type_confirmation")


def _check_reason(reason: str) -> None:
    if not reason.strip():
        raise Invalid("reason_missing", field="reason", fix="give_reason")
    if len(reason) > _REASON_MAX:
        raise Invalid("text_too_long", field="reason", length=len(reason), longest=_REASON_MAX, fix="shorten_text")


def check(message: Message, rounds: Rounds, expires_min: int, reason: str) -> None:
    """Raises `Invalid` naming field and fix."""
    _check_reason(reason)
    if message.hazard is None and not (message.text or "").strip() and message.bulletin_id is None:
        raise Invalid("emergency_says_nothing", field="message", fix="give_hazard_or_text")
    if message.hazard is not None and message.hazard not in HAZARDS:
        raise Invalid("not_a_choice", field="message.hazard", expected=", ".join(HAZARDS), fix="pick_hazard")
    for number, phrase in enumerate(message.phrases):
        if phrase not in PHRASES:
            expected = ", ".join(PHRASES)
            raise Invalid("not_a_choice", field=f"message.phrases[{number}]", expected=expected, fix="pick_phrase")
    if message.text is not None and len(message.text) > TEXT_MAX:
        raise Invalid(
            "text_too_long", field="message.text", length=len(message.text), longest=TEXT_MAX, fix="shorten_text"
        )
    if message.voice not in set(Voice):
        raise Invalid("not_a_choice", field="message.voice", expected=", ".join(Voice), fix="pick_voice")
    _within("expires_min", expires_min, 1, LONGEST_MIN)
    _within("rounds.times", rounds.times, 1, 20)
    _within("rounds.gap_ms", rounds.gap_ms, 0, 60_000)
    _within("rounds.tone_ms", rounds.tone_ms, 4_000, 10_000)
    _within("rounds.every_min", rounds.every_min, 1, LONGEST_MIN)


def _within(field: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise Invalid("out_of_range", field=field, low=low, high=high, fix="give_value_in_range")


# -- audit ------------------------------------------------------------------------------------------------------------


def audit_emergency(session: Session, actor: Actor, now: datetime, verb: str, row: EmergencyRow, **more: Any) -> None:
    """The audit row of a verb on an emergency."""
    detail: Mapping[str, Any] = {
        "units": list(row.units),
        "mode": row.mode.value,
        "nature": row.nature.value,
        "content_hash": row.content_hash,
        "level": row.level,
        "reason": row.reason,
        **more,
    }
    audit.append(
        session,
        now=now,
        actor=actor.login,
        verb=verb,
        unit_id=row.unit_id,
        subject=f"emergency/{row.id}",
        detail=dict(detail),
    )


def audit_arrival(session: Session, actor: Actor, now: datetime, verb: str, row: ArrivalRow, **detail: Any) -> None:
    """The audit row of what became of a bulletin that was sent down, at one unit."""
    audit.append(
        session,
        now=now,
        actor=actor.login,
        verb=verb,
        unit_id=row.unit_id,
        subject=f"arrival/{row.id}",
        detail={"sending": row.sending_id, **detail},
    )


def _audit_latch(session: Session, actor: Actor, now: datetime, verb: str, row: StopAllRow, reason: str) -> None:
    audit.append(
        session,
        now=now,
        actor=actor.login,
        verb=verb,
        unit_id=row.unit_id,
        subject=f"stop_all/{row.id}",
        detail={"reason": reason},
    )


# -- speech -----------------------------------------------------------------------------------------------------------


def enter_speech(session: Session, row: EmergencyRow, sha256: str, now: datetime) -> None:
    """The text has a sound now: rounds to come use it, on the same alert."""
    row.asset_sha256 = sha256
    session.flush()
    if not _is_in_force(row, now):
        return
    emergencies.set_bodies(session, row.id, body_of(session, row))
    line = emergencies.broadcast(session, row.id)
    if line is not None:
        line.asset_sha256 = sha256
        deliveries.move_lines(session, line.id, line.starts_at + round_of(session, row))


def note_unspoken(row: EmergencyRow, error: BroadcastError) -> None:
    """The text cannot be spoken: the nodes' own clips stand in, and the operator sees why."""
    row.speech_error = error.code
