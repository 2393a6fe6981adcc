"""Break-glass: one person, when nobody else can be reached; only from a template two others approved; and loud.

A maintainer must not break: (1) what it says is the template's, to the letter; (2) at a place of one's own, for at most
`BREAK_GLASS_LONGEST_MIN`, at most `BREAK_GLASS_A_DAY` a day; (3) every one has a row in `break_glass_reviews` from the
moment it sounds; (4) a review that is overdue takes the right away, from the person and from the place, until somebody
else has looked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, time
from typing import Any

from broadcast_server.control import access, emergency
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.accounts import Proof
from broadcast_server.control.consents import proved
from broadcast_server.control.desk import Desk
from broadcast_server.control.emergency import (
    USUAL_VOICE,
    EmergencyView,
    Message,
    NewEmergency,
    Rounds,
    audit_emergency,
    check,
    check_confirm,
    view_of,
)
from broadcast_server.control.places import clean_text
from broadcast_server.domain.clock import LOCAL
from broadcast_server.domain.consent import BREAK_GLASS_A_DAY, BREAK_GLASS_LONGEST_MIN, REVIEW_WITHIN, ConsentRole
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused
from broadcast_server.store import audit, consents, places
from broadcast_server.store.session import Session
from broadcast_server.store.tables_approval import BreakGlassReviewRow, EmergencyTemplateRow, TemplateApprovalRow
from broadcast_server.store.words import EmergencyMode, ReviewFinding


@dataclass(frozen=True, slots=True)
class BreakGlass:
    """An approved template to sound now. `units`: of what lies under `unit_id`; none: all of it."""

    unit_id: str
    template_id: str
    reason: str
    confirm: str
    units: tuple[str, ...] = ()
    expires_min: int = BREAK_GLASS_LONGEST_MIN


@dataclass(frozen=True, slots=True)
class NewTemplate:
    """What one person may raise alone at a unit or below it, once two others approve. `message`: without a bulletin."""

    unit_id: str
    name: str
    message: Message
    rounds: Rounds = field(default_factory=Rounds)


@dataclass(frozen=True, slots=True)
class TemplateView:
    """A template, who approved it, and whether it may be used."""

    row: EmergencyTemplateRow
    approvals: tuple[TemplateApprovalRow, ...]
    is_approved: bool


@dataclass(frozen=True, slots=True)
class ReviewQuery:
    """Which reviews: at units under `unit_id`; only open ones, only overdue ones."""

    unit_id: str | None = None
    is_open: bool = False
    is_overdue: bool = False
    after: str | None = None
    limit: int = 100


async def break_glass(desk: Desk, actor: Actor, request: BreakGlass, proof: Proof) -> EmergencyView:
    """Raise a real emergency alone, at once, from an approved template.

    Raises `Refused`: `break_glass_spent`, `break_glass_unreviewed`, `template_elsewhere`, `unfit_…`; `Invalid` naming
    field and fix; and as `accounts.prove` does.
    """
    check_confirm(EmergencyMode.REAL, request.confirm)
    if not 1 <= request.expires_min <= BREAK_GLASS_LONGEST_MIN:
        most = BREAK_GLASS_LONGEST_MIN
        raise Invalid("out_of_range", field="expires_min", low=1, high=most, fix="give_value_in_range")

    def look(session: Session) -> None:
        access.authorize(session, actor, Action.EMERGENCY_LAUNCH, request.unit_id, at=desk.clock.now())
        consents.template(session, request.template_id)

    await desk.store.read(look)
    await proved(desk, actor, proof)
    now, emergency_id, consent_id = desk.clock.now(), desk.chance.new_id(), desk.chance.new_id()

    def work(session: Session) -> EmergencyView:
        access.authorize(session, actor, Action.EMERGENCY_LAUNCH, request.unit_id, at=now)
        template = consents.template(session, request.template_id)
        _within_limits(session, actor, request, template, now)
        asked = NewEmergency(
            unit_id=request.unit_id,
            mode=EmergencyMode.REAL,
            message=Message(template.hazard, tuple(template.phrases), template.text, template.voice or USUAL_VOICE),
            reason=request.reason,
            confirm=request.confirm,
            units=request.units,
            rounds=Rounds(template.times, template.gap_ms, template.tone_ms, template.every_min),
            expires_min=request.expires_min,
        )
        row = emergency.new_row(session, actor, asked, emergency_id, now, template_id=template.id)
        emergency.consent(session, row, actor, ConsentRole.BREAK_GLASS, consent_id, now)
        emergency.put_in_force(session, desk, actor, row, now)
        session.add(
            BreakGlassReviewRow(
                emergency_id=row.id,
                unit_id=row.unit_id,
                user_id=actor.user_id,
                login=actor.login,
                at=now,
                due_at=now + REVIEW_WITHIN,
            )
        )
        session.flush()
        due = (now + REVIEW_WITHIN).isoformat()
        audit_emergency(session, actor, now, "emergency.break_glass", row, template=template.id, review_due=due)
        return view_of(session, row, None, now)

    return await desk.urgent(work)


def _within_limits(
    session: Session, actor: Actor, request: BreakGlass, template: EmergencyTemplateRow, now: datetime
) -> None:
    if template.unit_id not in places.path_of(session, request.unit_id, places.local_date(now)):
        raise Refused("template_elsewhere", field="template_id", fix="pick_template", unit_id=template.unit_id)
    overdue = consents.overdue_reviews(session, actor.user_id, request.unit_id, now)
    if overdue:
        raise Refused("break_glass_unreviewed", fix="have_it_reviewed", emergency=overdue[0].emergency_id)
    midnight = datetime.combine(places.local_date(now), time(0), LOCAL)
    if consents.broken_by(session, actor.user_id, request.unit_id, midnight) >= BREAK_GLASS_A_DAY:
        raise Refused("break_glass_spent", fix="find_second_person", most=BREAK_GLASS_A_DAY)


# -- reviews ----------------------------------------------------------------------------------------------------------


async def review(
    desk: Desk, actor: Actor, emergency_id: str, *, finding: ReviewFinding, note: str
) -> BreakGlassReviewRow:
    """Say, as somebody else, whether it was right. Reviewed already: what stands.

    Raises `Refused("own_break_glass")`.
    """
    now = desk.clock.now()
    kept = clean_text(note, "note", code="note_missing", longest=300)

    def work(session: Session) -> BreakGlassReviewRow:
        row = consents.review(session, emergency_id)
        access.authorize(session, actor, Action.EMERGENCY_LAUNCH, row, at=now)
        if actor.user_id == row.user_id:
            raise Refused("own_break_glass", fix="find_second_person")
        if actor.everywhere or not consents.is_enabled(session, actor.user_id):
            raise Refused("not_a_person", fix="name_two_people", login=actor.login)
        if row.reviewed_at is None:
            row.reviewer_id, row.reviewed_by, row.reviewed_at = actor.user_id, actor.login, now
            row.finding, row.note = finding, kept
            session.flush()
            detail = {"finding": finding.value, "note": kept, "broken_by": row.login, "was_due": row.due_at.isoformat()}
            _tell(session, actor, now, "break_glass.review", row.unit_id, f"emergency/{emergency_id}", detail)
        return row

    return await desk.urgent(work)


async def list_reviews(desk: Desk, actor: Actor, query: ReviewQuery) -> list[BreakGlassReviewRow]:
    """Reviews at places where the actor may read the log, newest first."""
    now = desk.clock.now()

    def work(session: Session) -> list[BreakGlassReviewRow]:
        return consents.list_reviews(
            session,
            access.roots(session, actor, Action.LOG_READ, query.unit_id, at=now),
            places.local_date(now),
            open_only=query.is_open,
            overdue_at=now if query.is_overdue else None,
            after=query.after,
            limit=query.limit,
        )

    return await desk.store.read(work)


# -- templates --------------------------------------------------------------------------------------------------------


async def write_template(desk: Desk, actor: Actor, request: NewTemplate) -> TemplateView:
    """Write a template; it serves once two others approved it. It is never changed: write another, retire this one."""
    now, template_id = desk.clock.now(), desk.chance.new_id()
    name = clean_text(request.name, "name")
    message, rounds = request.message, request.rounds
    if message.bulletin_id is not None:
        raise Invalid("template_without_bulletin", field="message.bulletin_id", fix="give_hazard_or_text")
    check(message, rounds, BREAK_GLASS_LONGEST_MIN, "template")

    def work(session: Session) -> TemplateView:
        access.authorize(session, actor, Action.EMERGENCY_PROPOSE, request.unit_id, at=now)
        row = EmergencyTemplateRow(
            id=template_id,
            unit_id=request.unit_id,
            name=name,
            hazard=message.hazard,
            phrases=list(message.phrases),
            text=message.text,
            voice=message.voice if message.text is not None else None,
            tone_ms=rounds.tone_ms,
            times=rounds.times,
            gap_ms=rounds.gap_ms,
            every_min=rounds.every_min,
            author_id=actor.user_id,
            created_by=actor.login,
            created_at=now,
        )
        row.content_hash = consents.as_template(row, ()).content_hash
        session.add(row)
        session.flush()
        _tell_template(session, actor, now, "template.write", row)
        return _viewed(session, row)

    return await desk.store.begin(work)


async def approve_template(
    desk: Desk, actor: Actor, template_id: str, proof: Proof, *, content_hash: str
) -> TemplateView:
    """Be one of the two who approve exactly this. Twice is once.

    Raises `Refused("author_approves")`, `Conflict("content_changed" | "template_retired")`, and as `accounts.prove`.
    """

    def look(session: Session) -> None:
        row = consents.template(session, template_id)
        _authorize_on(session, actor, Action.EMERGENCY_LAUNCH, row, desk.clock.now())

    await desk.store.read(look)
    await proved(desk, actor, proof)
    now = desk.clock.now()

    def work(session: Session) -> TemplateView:
        row = consents.template(session, template_id)
        _authorize_on(session, actor, Action.EMERGENCY_LAUNCH, row, now)
        if not consents.is_enabled(session, actor.user_id):
            raise Refused("not_a_person", fix="name_two_people", login=actor.login)
        given = consents.approvals_of(session, (template_id,))[template_id]
        if content_hash != row.content_hash or consents.as_template(row, given).content_hash != content_hash:
            raise Conflict("content_changed", field="content_hash", fix="hear_it_again", expected=content_hash)
        if row.retired_at is not None:
            raise Conflict("template_retired", template=row.id, fix="pick_template")
        if actor.user_id == row.author_id:
            raise Refused("author_approves", fix="ask_another_approver", login=actor.login)
        if all(one.user_id != actor.user_id for one in given):
            session.add(
                TemplateApprovalRow(
                    template_id=row.id, user_id=actor.user_id, login=actor.login, content_hash=content_hash, at=now
                )
            )
            session.flush()
            _tell_template(session, actor, now, "template.approve", row)
        return _viewed(session, row)

    return await desk.store.begin(work)


async def retire_template(desk: Desk, actor: Actor, template_id: str) -> TemplateView:
    """Nobody raises it any more. Retired already: nothing more happens."""
    now = desk.clock.now()

    def work(session: Session) -> TemplateView:
        row = consents.template(session, template_id)
        _authorize_on(session, actor, Action.EMERGENCY_PROPOSE, row, now)
        if row.retired_at is None:
            row.retired_at, row.retired_by = now, actor.login
            session.flush()
            _tell_template(session, actor, now, "template.retire", row)
        return _viewed(session, row)

    return await desk.store.begin(work)


def _authorize_on(session: Session, actor: Actor, action: Action, row: EmergencyTemplateRow, now: datetime) -> None:
    """`access.authorize` at the template's place; who may use it below may know of it."""
    around = _around(session, access.scope(session, actor, Action.READ, at=now), now)
    access.authorize(session, actor, action, row, at=now, seen=around is None or row.unit_id in around)


async def get_template(desk: Desk, actor: Actor, template_id: str) -> TemplateView:
    """One template. Raises `NotFound`."""
    now = desk.clock.now()

    def work(session: Session) -> TemplateView:
        row = consents.template(session, template_id)
        around = _around(session, access.scope(session, actor, Action.READ, at=now), now)
        if around is not None and row.unit_id not in around:
            raise NotFound("unknown_template", template=template_id)
        return _viewed(session, row)

    return await desk.store.read(work)


async def list_templates(
    desk: Desk, actor: Actor, *, unit_id: str | None = None, after: str | None = None, limit: int = 100
) -> list[TemplateView]:
    """Templates of the places the actor may see and of what lies above them, newest first."""
    now = desk.clock.now()

    def work(session: Session) -> list[TemplateView]:
        roots = access.roots(session, actor, Action.READ, unit_id, at=now)
        rows = consents.list_templates(session, _around(session, roots, now), after=after, limit=limit)
        return [_viewed(session, row) for row in rows]

    return await desk.store.read(work)


def _around(session: Session, roots: frozenset[str] | None, now: datetime) -> frozenset[str] | None:
    """Units under the roots, and above them, whose templates serve there too; None: all."""
    if roots is None:
        return None
    on = places.local_date(now)
    above = {place for root in roots for place in places.path_of(session, root, on)}
    return places.subtree_of(session, roots, on) | above


def _viewed(session: Session, row: EmergencyTemplateRow) -> TemplateView:
    given = consents.approvals_of(session, (row.id,))[row.id]
    return TemplateView(row, tuple(given), consents.as_template(row, given).is_approved)


# -- audit ------------------------------------------------------------------------------------------------------------


def _tell_template(session: Session, actor: Actor, now: datetime, verb: str, row: EmergencyTemplateRow) -> None:
    detail = {"name": row.name, "content_hash": row.content_hash}
    _tell(session, actor, now, verb, row.unit_id, f"template/{row.id}", detail)


def _tell(
    session: Session, actor: Actor, now: datetime, verb: str, unit_id: str, subject: str, detail: dict[str, Any]
) -> None:
    audit.append(session, now=now, actor=actor.login, verb=verb, unit_id=unit_id, subject=subject, detail=detail)
