"""Bulletins sent down: a unit sends an approved version to units below it; each arrival is a row somebody answers for.

*Thông thường* waits in the unit's inbox until it is scheduled, played or refused with a reason, or lapses at the
deadline. *Ưu tiên* the server places first in the unit's next session, or in a slot of its own. *Khẩn cấp* sounds as
soon as a second person has agreed (`control.consents`). A recall or a correction travels the same road: what has not
sounded is taken off, what has is followed by the correction. A maintainer must not break: (1) only a version approved
by its hash is sent; (2) an arrival always says what became of it, who decided, and why not; (3) sender and unit each
have their audit row; (4) `attend` is idempotent, for it is rung by an alarm clock and after every sending.

Source: Thông tư 39/2020 (the three classes and who decides on them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from broadcast_server.control import access, consents, emergency
from broadcast_server.control.access import SERVER, Action, Actor
from broadcast_server.control.accounts import Proof
from broadcast_server.control.clashes import Neighbourhood, Preview
from broadcast_server.control.desk import Desk
from broadcast_server.control.emergency import Message, NewEmergency
from broadcast_server.control.outlook import LEAD_IN, lines, local_text
from broadcast_server.control.places import clean_text
from broadcast_server.control.playing import (
    Playing,
    PlayNow,
    enter_play_now,
    enter_stop,
    heard_until,
    next_second,
)
from broadcast_server.control.scheduling import NewSchedule, Placed, end_schedule, enter_schedule
from broadcast_server.control.ties import enter_watch
from broadcast_server.domain.clock import LOCAL, Window
from broadcast_server.domain.delivery import ALERT
from broadcast_server.domain.errors import BroadcastError, Conflict, Invalid, NotFound, Refused, Unavailable
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.domain.policy import SESSION_GAP
from broadcast_server.domain.recurrence import Once, Rule
from broadcast_server.domain.sessions import earliest_slot, sessions
from broadcast_server.store import audit, deliveries, emergencies, library, places, plans, schedules, sendings
from broadcast_server.store.schedules import LONGEST_WINDOW
from broadcast_server.store.sendings import Heard
from broadcast_server.store.session import Session
from broadcast_server.store.tables import ArrivalRow, BulletinRow, BulletinVersionRow, ConflictRow, SendingRow
from broadcast_server.store.words import ArrivalState, ContentKind, EmergencyMode, EmergencyNature, ScheduleState
from speaker_protocol.rules import BulletinClass, Late

PLACE_AT_ONCE: Final = 25
"""So many arrivals are placed before the sender is answered; `attend` places the others, a moment later."""
MOST_UNITS: Final = 5_000
MOST_TIMES: Final = 20
PLACE_LEAD: Final = timedelta(minutes=1)
"""Before a session whose plan may have left already nothing is put in front of it."""
LONGEST_WAIT: Final = timedelta(hours=1)
"""How long a placed bulletin may wait for those the commune puts before it."""
LONGEST_DEADLINE: Final = timedelta(days=60)
_MS: Final = timedelta(milliseconds=1)


# -- requests and answers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewSending:
    """What to send, to whom: `unit_ids`, or every unit of `kinds` below `below`. `earliest`, `latest`, `times`: wishes.

    `version_id` None: the newest approved one. `deadline`: until when it is decided or placed, of *khẩn cấp* until when
    nodes that were away still obey. `confirm`: the word of a real emergency, needed for that class alone, like a proof.
    """

    unit_id: str
    bulletin_id: str
    basis: str
    deadline: datetime
    unit_ids: tuple[str, ...] = ()
    below: str | None = None
    kinds: tuple[str, ...] = places.STATION_KINDS
    version_id: str | None = None
    language: str = "vie"
    earliest: datetime | None = None
    latest: datetime | None = None
    times: int = 1
    valid_to: datetime | None = None
    confirm: str = ""


@dataclass(frozen=True, slots=True)
class Correction:
    """Send a newer approved version to everybody who has, or was to have, the earlier one. `note`: what is mended."""

    sending_id: str
    note: str
    deadline: datetime
    version_id: str | None = None
    earliest: datetime | None = None
    latest: datetime | None = None
    valid_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class ScheduleArrival:
    """Give an arrival its place: one start or several. No targets: the whole unit."""

    starts: tuple[datetime, ...]
    targets: tuple[Target, ...] = ()
    max_wait: timedelta = timedelta(0)
    late: Late = field(default_factory=Late)
    gain_db: float = 0.0
    accept_conflicts: bool = False


@dataclass(frozen=True, slots=True)
class ArrivalView:
    """An arrival as both sides see it. `trouble`: why it will not sound as planned; `is_off`: its unit took it off."""

    arrival: ArrivalRow
    sending: SendingRow
    unit_name: str
    heard: Heard
    trouble: ConflictRow | None
    is_off: bool


@dataclass(frozen=True, slots=True)
class SendingView:
    """A sending with its arrivals, in order of unit."""

    sending: SendingRow
    arrivals: tuple[ArrivalView, ...]


# -- sending ----------------------------------------------------------------------------------------------------------


async def send_bulletin(desk: Desk, actor: Actor, request: NewSending, proof: Proof | None = None) -> SendingView:
    """Send a version down. Up to `PLACE_AT_ONCE` units have their place, or the reason why not, in the answer.

    *Khẩn cấp* is proposed to a second person, so it asks for `proof`. Raises `Invalid` naming the field,
    `Refused("not_approved" | "not_permitted")`, `NotFound`.
    """
    await _prove(desk, actor, proof, lambda session: _to_send(session, actor, request, desk.clock.now()).klass)
    now = desk.clock.now()
    sending_id = desk.chance.new_id()

    def work(session: Session) -> None:
        bulletin = _to_send(session, actor, request, now)
        version = _approved(session, bulletin, request.version_id, request.language)
        units = _units(session, request, now)
        _check_wishes(request.earliest, request.latest, request.deadline, request.valid_to, request.times, now)
        row = SendingRow(
            id=sending_id,
            unit_id=request.unit_id,
            bulletin_id=bulletin.id,
            version_id=version.id,
            number=version.number,
            language=request.language,
            title=bulletin.title,
            klass=bulletin.klass,
            basis=clean_text(request.basis, "basis", code="basis_missing", longest=300),
            earliest=request.earliest,
            latest=request.latest,
            times=request.times,
            deadline=request.deadline,
            valid_to=_first_end(request.valid_to, bulletin.valid_to),
            created_by=actor.login,
            created_at=now,
        )
        rows = _enter(session, desk.chance.new_id, actor, row, units, now, "sending.send")
        if bulletin.klass is BulletinClass.EMERGENCY:
            _raise_alarm(session, desk, actor, row, rows, request.confirm, now)

    await desk.store.begin(work)
    await _place_all(desk, actor, sending_id)
    return await get_sending(desk, actor, sending_id)


async def correct(desk: Desk, actor: Actor, request: Correction, proof: Proof | None = None) -> SendingView:
    """Send a correction (đính chính) after a sending; of *khẩn cấp* it is proposed to a second person, with `proof`.

    Who refused it or let it lapse is left alone. Raises `Conflict("nothing_newer")`, `Conflict("nothing_to_correct")`.
    """
    await _prove(desk, actor, proof, lambda session: _to_correct(session, actor, request, desk.clock.now()).klass)
    now = desk.clock.now()
    sending_id = desk.chance.new_id()

    def work(session: Session) -> None:
        before = _to_correct(session, actor, request, now)
        bulletin = library.bulletin(session, before.bulletin_id)
        version = _approved(session, bulletin, request.version_id, before.language)
        if version.number <= before.number:
            raise Conflict("nothing_newer", field="version_id", fix="write_new_version", number=before.number)
        _check_wishes(request.earliest, request.latest, request.deadline, request.valid_to, 1, now)
        concerned = [
            row
            for row in sendings.arrivals_of(session, (before.id,))[before.id]
            if row.state in {ArrivalState.WAITING, ArrivalState.PLANNED}
        ]
        if not concerned:
            raise Conflict("nothing_to_correct", field="sending_id", fix="send_anew", sending=before.id)
        before.note = clean_text(request.note, "note", code="note_missing", longest=300)
        alerts = {each.alert_id for each in concerned if each.alert_id is not None}
        for each in concerned:
            if each.alert_id is not None and each.state is ArrivalState.PLANNED:
                continue  # it sounds until a second person agrees to what takes its place
            _take_off(session, actor, each, ArrivalState.REPLACED, now)
            emergency.audit_arrival(session, actor, now, "arrival.replace", each, by=sending_id)
        row = SendingRow(
            id=sending_id,
            unit_id=before.unit_id,
            bulletin_id=bulletin.id,
            version_id=version.id,
            number=version.number,
            language=before.language,
            title=bulletin.title,
            klass=before.klass,
            basis=before.basis,
            earliest=request.earliest,
            latest=request.latest,
            times=before.times,
            deadline=request.deadline,
            valid_to=_first_end(request.valid_to, bulletin.valid_to),
            corrects_id=before.id,
            note=before.note,
            created_by=actor.login,
            created_at=now,
        )
        units = [each.unit_id for each in concerned]
        rows = _enter(session, desk.chance.new_id, actor, row, units, now, "sending.correct")
        was = {each.unit_id: each.alert_id for each in concerned}
        for alert_id in sorted(alerts):
            concerns = [each for each in rows if was[each.unit_id] == alert_id]
            if emergencies.emergency(session, alert_id).launched_at is None:  # nobody had agreed to it yet
                emergency.enter_cancel(session, actor, alert_id, before.note, now)
                _raise_alarm(session, desk, actor, row, concerns, emergency.CONFIRM[EmergencyMode.REAL], now)
                continue
            _correct_alert(session, desk, actor, row, concerns, alert_id, now)

    await desk.store.begin(work)
    await _place_all(desk, actor, sending_id)
    return await get_sending(desk, actor, sending_id)


async def recall(desk: Desk, actor: Actor, sending_id: str, note: str) -> SendingView:
    """Take a sending back (thu hồi): out of every inbox, off every plan and off the air. Twice is once."""
    now = desk.clock.now()
    note = clean_text(note, "note", code="note_missing", longest=300)

    def work(session: Session) -> None:
        row = sendings.sending(session, sending_id)
        access.authorize(session, actor, Action.SEND, row, at=now)
        if row.recalled_at is not None:
            return
        row.recalled_at, row.recalled_by, row.note = now, actor.login, note
        open_ones = [
            each
            for each in sendings.arrivals_of(session, (row.id,))[row.id]
            if each.state in {ArrivalState.WAITING, ArrivalState.PLANNED}
        ]
        for alert_id in sorted({each.alert_id for each in open_ones if each.alert_id is not None}):
            emergency.enter_cancel(session, actor, alert_id, note, now)
        for each in open_ones:
            _take_off(session, actor, each, ArrivalState.RECALLED, now)
            each.note = note
            emergency.audit_arrival(session, actor, now, "arrival.recall", each, note=note)
        _tell_sending(session, actor, "sending.recall", row, now, note=note, units=len(open_ones))

    await desk.store.begin(work)
    return await get_sending(desk, actor, sending_id)


def _enter(
    session: Session,
    new_id: Callable[[], str],
    actor: Actor,
    row: SendingRow,
    units: Sequence[str],
    now: datetime,
    verb: str,
) -> list[ArrivalRow]:
    rows = [
        ArrivalRow(id=new_id(), sending_id=row.id, unit_id=unit_id, state=ArrivalState.WAITING) for unit_id in units
    ]
    sendings.add(session, row, rows)
    _tell_sending(session, actor, verb, row, now, units=list(units), version=row.version_id, basis=row.basis)
    for each in rows:
        emergency.audit_arrival(
            session, actor, now, "arrival.send", each, sender=row.unit_id, title=row.title, klass=row.klass.value
        )
    return rows


def _to_send(session: Session, actor: Actor, request: NewSending, now: datetime) -> BulletinRow:
    """The bulletin, for who may send it."""
    access.authorize(session, actor, Action.SEND, request.unit_id, at=now)  # before anything is said of the bulletin
    bulletin = _of_unit(session, request, now)
    _authorize(session, actor, bulletin.klass, request.unit_id, now)
    return bulletin


def _to_correct(session: Session, actor: Actor, request: Correction, now: datetime) -> SendingRow:
    """The sending, for who may correct it."""
    row = _open_sending(session, actor, request.sending_id, now)
    _authorize(session, actor, row.klass, row.unit_id, now)
    return row


async def _prove(desk: Desk, actor: Actor, proof: Proof | None, class_of: Callable[[Session], BulletinClass]) -> None:
    """An emergency is raised by somebody who is there."""
    if await desk.store.read(class_of) is not BulletinClass.EMERGENCY:
        return
    if proof is None:
        raise Invalid("proof_missing", field="proof", fix="give_proof")
    await consents.proved(desk, actor, proof)


def _raise_alarm(
    session: Session,
    desk: Desk,
    actor: Actor,
    row: SendingRow,
    arrivals: Sequence[ArrivalRow],
    confirm: str,
    now: datetime,
) -> None:
    """Propose the emergency in this very transaction: there is no sending of *khẩn cấp* that nobody can launch."""
    proposed = consents.enter_proposal(
        session,
        actor,
        NewEmergency(
            unit_id=row.unit_id,
            mode=EmergencyMode.REAL,
            message=Message(bulletin_id=row.bulletin_id, language=row.language),
            reason=row.basis,
            confirm=confirm,
            units=tuple(each.unit_id for each in arrivals),
            expires_min=_minutes_left(row, now),
        ),
        desk.chance.new_id(),
        desk.chance.new_id(),
        desk,
        most_units=MOST_UNITS,
    )
    _waits_as(session, actor, arrivals, proposed.id, now)


def _correct_alert(
    session: Session,
    desk: Desk,
    actor: Actor,
    row: SendingRow,
    arrivals: Sequence[ArrivalRow],
    alert_id: str,
    now: datetime,
) -> None:
    request = emergency.Correction(
        emergency_id=alert_id,
        message=Message(bulletin_id=row.bulletin_id, language=row.language),
        reason=row.note or row.basis,
        expires_min=_minutes_left(row, now),
    )
    fresh = consents.enter_successor(
        session,
        actor,
        request,
        EmergencyNature.CORRECTION,
        desk.chance.new_id(),
        desk.chance.new_id(),
        desk,
    )
    _waits_as(session, actor, arrivals, fresh.id, now)


def _waits_as(session: Session, actor: Actor, arrivals: Sequence[ArrivalRow], alert_id: str, now: datetime) -> None:
    for each in arrivals:
        each.alert_id = alert_id
        emergency.audit_arrival(session, actor, now, "arrival.propose", each, alert=alert_id)
    session.flush()


def _minutes_left(row: SendingRow, now: datetime) -> int:
    """How long nodes that were away still obey."""
    ends = min(one for one in (row.deadline, row.valid_to) if one is not None)
    return max(1, min(emergency.LONGEST_MIN, (ends - now) // timedelta(minutes=1)))


def _of_unit(session: Session, request: NewSending, now: datetime) -> BulletinRow:
    """The sender's own bulletin, or one handed down to it."""
    bulletin = library.bulletin(session, request.bulletin_id)
    if bulletin.unit_id not in places.path_of(session, request.unit_id, places.local_date(now)):
        raise NotFound("unknown_bulletin", field="bulletin_id", fix="pick_content", bulletin=request.bulletin_id)
    return bulletin


def _authorize(session: Session, actor: Actor, klass: BulletinClass, unit_id: str, now: datetime) -> None:
    access.authorize(session, actor, Action.SEND, unit_id, at=now)
    if klass is BulletinClass.PRIORITY:
        access.authorize(session, actor, Action.SCHEDULE_PRIORITY, unit_id, at=now)
    elif klass is BulletinClass.EMERGENCY:
        access.authorize(session, actor, Action.EMERGENCY_LAUNCH, unit_id, at=now)


def _approved(session: Session, bulletin: BulletinRow, version_id: str | None, language: str) -> BulletinVersionRow:
    """The version that sounds in that language; naming an older one is refused, for the newest is what would sound."""
    newest = library.approved_version(session, bulletin.id, language)
    if newest is None or newest.asset_sha256 is None:
        raise Refused("not_approved", field="bulletin_id", fix="approve_content", bulletin_id=bulletin.id)
    if version_id is not None and version_id != newest.id:
        library.version(session, bulletin.id, version_id)
        raise Conflict("version_not_current", field="version_id", fix="send_newest_version", current=newest.id)
    return newest


def _units(session: Session, request: NewSending, now: datetime) -> list[str]:
    """Whom it goes to, each once, in order. Raises `Invalid` naming the field."""
    on = places.local_date(now)
    below = places.subtree_of(session, {request.unit_id}, on) - {request.unit_id}
    for number, unit_id in enumerate(request.unit_ids):
        if unit_id not in below:
            raise Invalid(
                "not_below", field=f"unit_ids[{number}]", fix="pick_unit_below", ref=unit_id, unit_id=request.unit_id
            )
    found = set(request.unit_ids)
    if request.below is not None:
        if request.below != request.unit_id and request.below not in below:
            raise Invalid("not_below", field="below", fix="pick_unit_below", ref=request.below, unit_id=request.unit_id)
        inside = places.subtree_of(session, {request.below}, on) & below
        found |= {unit_id for unit_id, row in places.units(session, inside).items() if row.kind in request.kinds}
    if not found:
        raise Invalid("no_receiver", field="unit_ids", fix="pick_unit_below")
    if len(found) > MOST_UNITS:
        raise Invalid("too_long", field="unit_ids", max_length=MOST_UNITS)
    return sorted(found)


def _check_wishes(
    earliest: datetime | None,
    latest: datetime | None,
    deadline: datetime,
    valid_to: datetime | None,
    times: int,
    now: datetime,
) -> None:
    for name, instant in (("earliest", earliest), ("latest", latest), ("deadline", deadline), ("valid_to", valid_to)):
        if instant is None:
            continue
        if instant.tzinfo is None:
            raise Invalid("naive_time", field=name, fix="add_offset")
        if name != "earliest" and instant <= now:
            raise Invalid("past_time", field=name, fix="give_future_time", at=local_text(instant), now=local_text(now))
    if deadline > now + LONGEST_DEADLINE:
        raise Invalid("deadline_too_far", field="deadline", fix="shorten_window", days=LONGEST_DEADLINE.days)
    starts_by = min(one for one in (latest, valid_to, deadline) if one is not None)
    if earliest is not None and earliest >= starts_by:
        raise Invalid("empty_wish", field="earliest", fix="until_after_from")
    if not 1 <= times <= MOST_TIMES:
        raise Invalid("out_of_range", field="times", ge="1", le=str(MOST_TIMES))


def _first_end(*ends: datetime | None) -> datetime | None:
    return min((end for end in ends if end is not None), default=None)


def _open_sending(session: Session, actor: Actor, sending_id: str, now: datetime) -> SendingRow:
    row = sendings.sending(session, sending_id)
    access.authorize(session, actor, Action.SEND, row, at=now)
    if row.recalled_at is not None:
        raise Conflict("sending_recalled", field="sending_id", fix="send_anew", by=row.recalled_by)
    return row


def _take_off(session: Session, actor: Actor, row: ArrivalRow, state: ArrivalState, now: datetime) -> None:
    """End what is still to come of an arrival; `reason` tells how far it had come."""
    row.reason = "before_it_sounded"
    if row.alert_id is not None:
        row.reason = "while_it_sounded" if emergencies.was_in_force(session, row.alert_id, now) else "after_it_sounded"
    if row.schedule_id is not None:
        first = schedules.schedule(session, row.schedule_id)
        series = [first, *schedules.others_of_series(session, first, now - LONGEST_WINDOW)]
        ids = [each.id for each in series]
        due = schedules.load_entries(session, Window(now, now + _MS), now, schedule_ids=ids)
        for entry in due:
            around = Neighbourhood.read(session, places.local_date(now))
            heard = heard_until(session, around, entry, now)
            if heard is not None and entry.asset is not None and heard >= entry.asset.duration:
                continue  # its window is still open, its sound is over
            row.reason = "before_it_sounded" if heard is None else "while_it_sounded"
            enter_stop(session, actor, entry.id, now)
        if row.reason == "before_it_sounded" and row.sounds_at is not None and row.sounds_at <= now:
            row.reason = "after_it_sounded"
        for each in series:
            if each.state is ScheduleState.ACTIVE and (each.ends_at is None or each.ends_at > now):
                end_schedule(each, now)
    row.state = state
    session.flush()


# -- what the server places by itself ---------------------------------------------------------------------------------


async def attend(desk: Desk) -> str:
    """Place what waits for the server, let lapse what waited too long. Says in a few words what it did."""
    waiting = await desk.store.read(sendings.to_place)
    surroundings = _Surroundings()
    for arrival_id in waiting:
        await _place(desk, SERVER, arrival_id, surroundings)
    now = desk.clock.now()

    def lapse(session: Session) -> int:
        late = sendings.overdue(session, now)
        for row in late:
            _lapse(session, row, now)
        return len(late)

    lapsed = 0
    if await desk.store.read(lambda session: bool(sendings.overdue(session, now))):
        lapsed = await desk.store.begin(lapse)
    return f"{len(waiting)} placed or refused, {lapsed} lapsed"


class _Surroundings:
    """Places, clusters and policies, read again only when one of them changed: many arrivals are placed in a row."""

    def __init__(self) -> None:
        self._mark: tuple[object, ...] | None = None
        self._around: Neighbourhood | None = None

    def at(self, session: Session, now: datetime) -> Neighbourhood:
        """As they stand in this transaction."""
        on = places.local_date(now)
        mark = (on, *plans.fleet_mark(session))
        if self._around is None or self._mark != mark:
            self._mark, self._around = mark, Neighbourhood.read(session, on)
        return self._around


async def _place_all(desk: Desk, actor: Actor, sending_id: str) -> None:
    """What can be placed before the sender is answered; ties that this makes are laid before their units."""
    waiting = await desk.store.read(lambda session: sendings.to_place(session, sending_id))
    surroundings = _Surroundings()
    for arrival_id in waiting[:PLACE_AT_ONCE]:
        await _place(desk, actor, arrival_id, surroundings)
    now = desk.clock.now()

    def watch(session: Session) -> None:
        units = {sendings.arrival(session, arrival_id).unit_id for arrival_id in waiting[:PLACE_AT_ONCE]}
        enter_watch(session, desk.chance.new_id, now, units=frozenset(units))

    if waiting:
        await desk.store.begin(watch, ring=False)


async def _place(desk: Desk, actor: Actor, arrival_id: str, surroundings: _Surroundings) -> None:
    """Try the places in order of preference; the first that policy allows is taken, else the first reason stands."""
    now = desk.clock.now()
    tries = await desk.store.read(lambda session: tuple(_tries(session, arrival_id, surroundings, now)))
    reason, facts = "no_slot_before_deadline", dict[str, Any]()
    for number, tried in enumerate(tries):
        schedule_id = desk.chance.new_id()
        try:
            await _begin_place(desk, actor, arrival_id, surroundings, tried, schedule_id, now)
        except Unavailable:
            raise
        except BroadcastError as error:
            if number == 0:
                reason, facts = error.code, error.facts
        else:
            return
    await desk.store.begin(lambda session: _unplaced(session, actor, arrival_id, reason, facts, now))


async def _begin_place(
    desk: Desk,
    actor: Actor,
    arrival_id: str,
    surroundings: _Surroundings,
    starts: tuple[datetime, ...],
    schedule_id: str,
    now: datetime,
) -> None:
    await desk.store.begin(
        lambda session: _take_place(
            session, actor, arrival_id, starts, schedule_id, now, around=surroundings.at(session, now)
        )
    )


def _tries(
    session: Session, arrival_id: str, surroundings: _Surroundings, now: datetime
) -> Iterator[tuple[datetime, ...]]:
    """Starts worth trying: the next sessions, the next one alone, a slot of its own, one away from all sessions."""
    row = sendings.arrival(session, arrival_id)
    sending = sendings.sending(session, row.sending_id)
    limit = min(one for one in (sending.deadline, sending.latest, sending.valid_to) if one is not None)
    begins = max(next_second(now + PLACE_LEAD), sending.earliest or now)
    length = _length(session, sending)
    around = surroundings.at(session, now)
    clusters = around.reach((Target(TargetKind.UNIT, row.unit_id),))
    if begins >= limit or length is None or not clusters:
        return
    within = Window(begins, limit)
    sounding = _sounding(session, around, clusters, within, now)
    closed = tuple(_closed(around, clusters, Window(begins, limit + length), sending.klass))
    starts = [one.start for one in sessions(sounding) if one.start in within]
    if starts[1:] and sending.times > 1:
        yield tuple(starts[: sending.times])
    if starts:
        yield (starts[0],)
    whole = Window(begins, limit + length - _MS)
    padded = [Window(one.start - SESSION_GAP, one.end + SESSION_GAP) for one in sessions(sounding)]
    for shut in (closed, (*closed, *padded)):
        slot = earliest_slot(length, whole, shut)
        if slot is not None:
            yield (slot,)


def _length(session: Session, sending: SendingRow) -> timedelta | None:
    version = library.approved_version(session, sending.bulletin_id, sending.language)
    if version is None or version.asset_sha256 is None:
        return None
    return library.asset(session, version.asset_sha256).duration_ms * _MS


def _sounding(
    session: Session, around: Neighbourhood, clusters: frozenset[str], within: Window, now: datetime
) -> list[Window]:
    """What will sound on any of the clusters, from a day before on so that a session is seen from its beginning."""
    wide = Window(within.start - LEAD_IN, within.end + LEAD_IN)
    return [
        Window(segment.start, segment.end)
        for _, line in lines(session, around, clusters, wide, now)
        for segment in line.resolution.segments
        if segment.entry_id not in line.silenced
    ]


def _closed(around: Neighbourhood, clusters: Iterable[str], within: Window, klass: BulletinClass) -> Iterator[Window]:
    """Quiet hours and suspensions of any of the clusters."""
    seen = set()
    for cluster_id in clusters:
        policy = around.policy_of(around.clusters[cluster_id])
        for hours in (policy.quiet, *around.quiet_of(cluster_id)):
            if hours not in seen:
                seen.add(hours)
                yield from hours.windows(within)
        for suspension in policy.suspensions:
            if klass not in suspension.allowed and suspension.window.overlaps(within):
                yield suspension.window


def _take_place(
    session: Session,
    actor: Actor,
    arrival_id: str,
    starts: tuple[datetime, ...],
    schedule_id: str,
    now: datetime,
    *,
    around: Neighbourhood,
) -> None:
    row = sendings.arrival(session, arrival_id)
    if row.state is not ArrivalState.WAITING:  # somebody was faster
        return
    sending = sendings.sending(session, row.sending_id)
    room = _first_end(sending.deadline, sending.latest, sending.valid_to)
    wait = timedelta(0) if room is None else max(timedelta(0), min(LONGEST_WAIT, room - starts[-1]))
    placed = enter_schedule(
        session,
        actor,
        NewSchedule(
            unit_id=sending.unit_id,
            content_kind=ContentKind.BULLETIN,
            content_id=sending.bulletin_id,
            rule=_rule_of(starts),
            targets=(Target(TargetKind.UNIT, row.unit_id),),
            language=sending.language,
            max_wait=wait,
            accept_conflicts=True,
        ),
        schedule_id,
        now,
        verb="arrival.place",
        around=around,
    )
    _planned(session, actor, row, placed.schedule.id, starts, now, received_by="server")
    emergency.audit_arrival(session, actor, now, "arrival.place", row, starts=[local_text(one) for one in starts])


def _unplaced(
    session: Session, actor: Actor, arrival_id: str, reason: str, facts: Mapping[str, Any], now: datetime
) -> None:
    row = sendings.arrival(session, arrival_id)
    if row.state is not ArrivalState.WAITING:
        return
    around = Neighbourhood.read(session, places.local_date(now))
    if not around.reach((Target(TargetKind.UNIT, row.unit_id),)):
        reason = "no_clusters"
    row.state, row.reason, row.decided_at, row.decided_by = ArrivalState.UNPLACED, reason, now, "server"
    shown = {name: value for name, value in facts.items() if isinstance(value, str | int | float | bool | None)}
    row.facts = shown
    session.flush()
    emergency.audit_arrival(session, actor, now, "arrival.unplaced", row, reason=reason, facts=shown)


def _planned(
    session: Session,
    actor: Actor,
    row: ArrivalRow,
    schedule_id: str,
    starts: Sequence[datetime],
    now: datetime,
    *,
    received_by: str,
) -> None:
    row.state, row.schedule_id, row.sounds_at = ArrivalState.PLANNED, schedule_id, min(starts, default=None)
    row.decided_at, row.decided_by = now, actor.login if received_by != "server" else "server"
    if row.received_at is None:
        row.received_at, row.received_by = now, received_by
    session.flush()


def _lapse(session: Session, row: ArrivalRow, now: datetime) -> None:
    row.state, row.reason, row.decided_at, row.decided_by = ArrivalState.LAPSED, "deadline_passed", now, "server"
    session.flush()
    emergency.audit_arrival(session, SERVER, now, "arrival.lapse", row)


def _rule_of(starts: Sequence[datetime]) -> Rule:
    """Once, or at each of several instants."""
    local = sorted({one.astimezone(LOCAL).replace(tzinfo=None) for one in starts})
    return Rule(Once(local[0]), rdates=tuple(local[1:]))


# -- the unit's inbox -------------------------------------------------------------------------------------------------


async def receive(desk: Desk, actor: Actor, arrival_id: str) -> ArrivalView:
    """Say that the unit has seen it; the first to say so stays named."""
    now = desk.clock.now()

    def work(session: Session) -> ArrivalView:
        row = sendings.arrival(session, arrival_id)
        sender = sendings.sending(session, row.sending_id).unit_id
        seen = access.sees(session, actor, sender, at=now)
        access.authorize(session, actor, Action.SCHEDULE, row, at=now, seen=seen)
        if row.received_at is None:
            row.received_at, row.received_by = now, actor.login
            session.flush()
            emergency.audit_arrival(session, actor, now, "arrival.receive", row)
        return _viewed(session, (row,), now)[0]

    return await desk.store.begin(work)


async def schedule_arrival(
    desk: Desk, actor: Actor, arrival_id: str, request: ScheduleArrival
) -> tuple[ArrivalView, Preview]:
    """Give it a place, or several. Raises as `scheduling.create_schedule` does, and `Conflict` once it is decided."""
    now = desk.clock.now()
    schedule_id = desk.chance.new_id()
    if not 1 <= len(request.starts) <= MOST_TIMES:
        raise Invalid("out_of_range", field="starts", ge="1", le=str(MOST_TIMES))

    def work(session: Session) -> tuple[ArrivalView, Preview]:
        row, sending = _to_decide(session, actor, Action.SCHEDULE, arrival_id, now)
        for number, start in enumerate(request.starts):
            if start.tzinfo is None:
                raise Invalid("naive_time", field=f"starts[{number}]", fix="add_offset")
            _still_valid(sending, start, f"starts[{number}]")
        placed: Placed = enter_schedule(
            session,
            actor,
            NewSchedule(
                unit_id=row.unit_id,
                content_kind=ContentKind.BULLETIN,
                content_id=sending.bulletin_id,
                rule=_rule_of(request.starts),
                targets=request.targets,
                language=sending.language,
                max_wait=request.max_wait,
                late=request.late,
                gain_db=request.gain_db,
                accept_conflicts=request.accept_conflicts,
            ),
            schedule_id,
            now,
        )
        _planned(session, actor, row, placed.schedule.id, request.starts, now, received_by=actor.login)
        emergency.audit_arrival(
            session, actor, now, "arrival.schedule", row, starts=[local_text(one) for one in request.starts]
        )
        return _viewed(session, (row,), now)[0], placed.preview

    return await desk.store.begin(work)


async def play_arrival(
    desk: Desk, actor: Actor, arrival_id: str, *, queue: bool = False, accept_conflicts: bool = False
) -> tuple[ArrivalView, Playing]:
    """Sound it now. Raises as `playing.play_now` does, and `Conflict` once it is decided."""
    now = desk.clock.now()
    schedule_id = desk.chance.new_id()

    def work(session: Session) -> tuple[ArrivalView, Playing]:
        row, sending = _to_decide(session, actor, Action.PLAY_NOW, arrival_id, now)
        _still_valid(sending, now, "arrival_id")
        order = PlayNow(
            unit_id=row.unit_id,
            content_kind=ContentKind.BULLETIN,
            content_id=sending.bulletin_id,
            language=sending.language,
            queue=queue,
            accept_conflicts=accept_conflicts,
        )
        playing = enter_play_now(session, actor, order, schedule_id, now)
        starts = [one for one in (playing.starts_at,) if one is not None]
        _planned(session, actor, row, schedule_id, starts, now, received_by=actor.login)
        emergency.audit_arrival(session, actor, now, "arrival.play", row)
        return _viewed(session, (row,), now)[0], playing

    return await desk.store.begin(work)


async def refuse(desk: Desk, actor: Actor, arrival_id: str, note: str) -> ArrivalView:
    """Say no, with a reason the sender reads. Only *thông thường* can be refused."""
    now = desk.clock.now()
    note = clean_text(note, "note", code="note_missing", longest=300)

    def work(session: Session) -> ArrivalView:
        row, _ = _to_decide(session, actor, Action.SCHEDULE, arrival_id, now)
        row.state, row.reason, row.note = ArrivalState.REFUSED, "refused_by_unit", note
        row.decided_at, row.decided_by = now, actor.login
        if row.received_at is None:
            row.received_at, row.received_by = now, actor.login
        session.flush()
        emergency.audit_arrival(session, actor, now, "arrival.refuse", row, note=note)
        return _viewed(session, (row,), now)[0]

    return await desk.store.begin(work)


def _to_decide(
    session: Session, actor: Actor, action: Action, arrival_id: str, now: datetime
) -> tuple[ArrivalRow, SendingRow]:
    """An arrival that waits for its unit. Raises `Conflict` naming what became of it."""
    row = sendings.arrival(session, arrival_id)
    sending = sendings.sending(session, row.sending_id)
    access.authorize(session, actor, action, row, at=now, seen=access.sees(session, actor, sending.unit_id, at=now))
    if sending.klass is not BulletinClass.NORMAL:
        raise Conflict("placed_by_server", field="arrival_id", fix="order_ties", klass=sending.klass.value)
    if row.state is not ArrivalState.WAITING:
        raise Conflict("arrival_decided", field="arrival_id", fix="ask_sender", state=row.state.value)
    if sending.deadline <= now:
        raise Conflict("arrival_overdue", field="arrival_id", fix="ask_sender", deadline=local_text(sending.deadline))
    return row, sending


def _still_valid(sending: SendingRow, start: datetime, field: str) -> None:
    if sending.valid_to is not None and start >= sending.valid_to:
        raise Invalid("after_validity", field=field, fix="choose_before", valid_to=local_text(sending.valid_to))


# -- looking ----------------------------------------------------------------------------------------------------------


async def get_sending(desk: Desk, actor: Actor, sending_id: str) -> SendingView:
    """A sending with what became of it at every unit, for the sender. Raises `NotFound`."""
    now = desk.clock.now()

    def work(session: Session) -> SendingView:
        row = sendings.sending(session, sending_id)
        access.authorize(session, actor, Action.READ, row, at=now)
        return SendingView(row, _viewed(session, sendings.arrivals_of(session, (row.id,))[row.id], now))

    return await desk.store.read(work)


async def list_sendings(
    desk: Desk, actor: Actor, *, unit_id: str | None = None, after: str | None = None, limit: int = 100
) -> list[SendingRow]:
    """What units the actor may see have sent, newest first."""
    now = desk.clock.now()

    def work(session: Session) -> list[SendingRow]:
        roots = access.roots(session, actor, Action.READ, unit_id, at=now)
        return sendings.list_sendings(session, roots, places.local_date(now), after=after, limit=limit)

    return await desk.store.read(work)


async def get_arrival(desk: Desk, actor: Actor, arrival_id: str) -> ArrivalView:
    """One arrival, for its unit and for the sender. Raises `NotFound`."""
    now = desk.clock.now()

    def work(session: Session) -> ArrivalView:
        row = sendings.arrival(session, arrival_id)
        sender = sendings.sending(session, row.sending_id).unit_id
        if not access.may(session, actor, Action.READ, sender, at=now):
            access.authorize(session, actor, Action.READ, row, at=now)
        return _viewed(session, (row,), now)[0]

    return await desk.store.read(work)


async def list_arrivals(
    desk: Desk,
    actor: Actor,
    *,
    unit_id: str | None = None,
    state: ArrivalState | None = None,
    after: str | None = None,
    limit: int = 100,
) -> list[ArrivalView]:
    """The inbox of the actor's units, newest first."""
    now = desk.clock.now()

    def work(session: Session) -> list[ArrivalView]:
        roots = access.roots(session, actor, Action.READ, unit_id, at=now)
        on = places.local_date(now)
        rows = sendings.list_arrivals(session, roots, on, state=state, after=after, limit=limit)
        return list(_viewed(session, rows, now))

    return await desk.store.read(work)


def _viewed(session: Session, rows: Sequence[ArrivalRow], now: datetime) -> tuple[ArrivalView, ...]:
    names = places.units(session, {row.unit_id for row in rows})
    schedule_ids = {row.schedule_id for row in rows if row.schedule_id is not None}
    heard = sendings.heard_of(session, schedule_ids)
    troubles = sendings.troubles_of(session, schedule_ids)
    cancelled = sendings.taken_off(session, schedule_ids)
    sent = sendings.sendings_of(session, {row.sending_id for row in rows})
    return tuple(
        ArrivalView(
            arrival=row,
            sending=sent[row.sending_id],
            unit_name=names[row.unit_id].name,
            heard=_heard_as_alert(session, row, now)
            if row.alert_id is not None
            else heard.get(row.schedule_id or "", Heard()),
            trouble=troubles.get(row.schedule_id or ""),
            is_off=row.state is ArrivalState.PLANNED and row.schedule_id in cancelled,
        )
        for row in rows
    )


def _heard_as_alert(session: Session, row: ArrivalRow, now: datetime) -> Heard:
    counts = deliveries.counts(session, f"{ALERT}{row.alert_id}", {row.unit_id}, places.local_date(now))
    return Heard(counts.nodes, counts.heard, 0)


# -- audit ------------------------------------------------------------------------------------------------------------


def _tell_sending(session: Session, actor: Actor, verb: str, row: SendingRow, now: datetime, **detail: Any) -> None:
    audit.append(
        session,
        now=now,
        actor=actor.login,
        verb=verb,
        unit_id=row.unit_id,
        subject=f"sending/{row.id}",
        detail={"bulletin": row.bulletin_id, "class": row.klass.value, **detail},
    )
