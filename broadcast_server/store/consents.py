"""Consents, templates and reviews as rows, and the one question about them: may this emergency sound?

A maintainer must not break: consents and approvals are added and never changed; `why_unfit` reads everything anew from
rows, whoever asks, `control` in its transaction or the signer in its own process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from datetime import date, datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from broadcast_server.domain.consent import Consent, Says, Template, Unfit, airworthy
from broadcast_server.domain.errors import NotFound
from broadcast_server.store import emergencies, places
from broadcast_server.store.tables import EmergencyRow, UserRow
from broadcast_server.store.tables_approval import (
    BreakGlassReviewRow,
    EmergencyConsentRow,
    EmergencyTemplateRow,
    TemplateApprovalRow,
)


def why_unfit(
    session: Session,
    row: EmergencyRow,
    *,
    launched_at: datetime | None = None,
    without: Collection[str] = (),
) -> Unfit | None:
    """None if the emergency may sound, else why not. `launched_at`: when it would be, of one that is not launched yet;
    `without`: people whose consent counts for nothing now.
    """
    at = row.launched_at if row.launched_at is not None else launched_at
    if at is None:
        return Unfit.CONSENT_MISSING
    given = [one for one in consents_of(session, (row.id,))[row.id] if one.user_id not in without]
    return airworthy(
        emergencies.alarm_of(row),
        row.content_hash,
        [Consent(one.user_id, one.role, one.content_hash, one.at, one.seat) for one in given],
        launched_at=at,
        template=None if row.template_id is None else _template_at(session, row.template_id, at),
        replaced=None
        if row.replaces_id is None
        else emergencies.alarm_of(emergencies.emergency(session, row.replaces_id)),
    )


def consents_of(session: Session, emergency_ids: Collection[str]) -> dict[str, list[EmergencyConsentRow]]:
    """By emergency, in the order they were given."""
    found: dict[str, list[EmergencyConsentRow]] = defaultdict(list)
    for row in session.scalars(
        select(EmergencyConsentRow)
        .where(EmergencyConsentRow.emergency_id.in_(emergency_ids))
        .order_by(EmergencyConsentRow.at, EmergencyConsentRow.id)
    ):
        found[row.emergency_id].append(row)
    return found


def is_enabled(session: Session, user_id: str) -> bool:
    """Whether this is a person who may still log in."""
    row = session.get(UserRow, user_id, populate_existing=True)
    return row is not None and row.disabled_at is None


# -- templates --------------------------------------------------------------------------------------------------------


def template(session: Session, template_id: str) -> EmergencyTemplateRow:
    """Raises `NotFound`."""
    row = session.get(EmergencyTemplateRow, template_id)
    if row is None:
        raise NotFound("unknown_template", template=template_id)
    return row


def approvals_of(session: Session, template_ids: Collection[str]) -> dict[str, list[TemplateApprovalRow]]:
    """By template, in the order they were given."""
    found: dict[str, list[TemplateApprovalRow]] = defaultdict(list)
    for row in session.scalars(
        select(TemplateApprovalRow)
        .where(TemplateApprovalRow.template_id.in_(template_ids))
        .order_by(TemplateApprovalRow.at, TemplateApprovalRow.user_id)
    ):
        found[row.template_id].append(row)
    return found


def as_template(
    row: EmergencyTemplateRow, approvals: Collection[TemplateApprovalRow], at: datetime | None = None
) -> Template:
    """What the pure check needs of it; `at`: as it stood then."""
    return Template(
        template_id=row.id,
        unit_id=row.unit_id,
        says=Says(
            hazard=row.hazard,
            phrases=tuple(row.phrases),
            text=row.text,
            voice=row.voice,
            tone_ms=row.tone_ms,
            times=row.times,
            gap_ms=row.gap_ms,
            every_min=row.every_min,
        ),
        author_id=row.author_id,
        approvals={one.user_id: one.content_hash for one in approvals if at is None or one.at <= at},
        is_retired=row.retired_at is not None and (at is None or row.retired_at <= at),
    )


def _template_at(session: Session, template_id: str, at: datetime) -> Template | None:
    row = session.get(EmergencyTemplateRow, template_id)
    return None if row is None else as_template(row, approvals_of(session, (template_id,))[template_id], at)


def list_templates(
    session: Session, units: Collection[str] | None, *, after: str | None, limit: int
) -> list[EmergencyTemplateRow]:
    """Of these units (None: of all), newest first."""
    query = select(EmergencyTemplateRow).order_by(EmergencyTemplateRow.id.desc()).limit(limit)
    if units is not None:
        query = query.where(EmergencyTemplateRow.unit_id.in_(units))
    if after is not None:
        query = query.where(EmergencyTemplateRow.id < after)
    return list(session.scalars(query))


# -- break-glass ------------------------------------------------------------------------------------------------------


def review(session: Session, emergency_id: str) -> BreakGlassReviewRow:
    """Raises `NotFound`."""
    row = session.get(BreakGlassReviewRow, emergency_id)
    if row is None:
        raise NotFound("unknown_review", emergency=emergency_id)
    return row


def broken_by(session: Session, user_id: str, unit_id: str, since: datetime) -> int:
    """How often the glass was broken since, by this person or at this unit."""
    rows = session.scalars(
        select(BreakGlassReviewRow.emergency_id).where(
            BreakGlassReviewRow.at >= since,
            or_(BreakGlassReviewRow.user_id == user_id, BreakGlassReviewRow.unit_id == unit_id),
        )
    )
    return len(list(rows))


def overdue_reviews(session: Session, user_id: str, unit_id: str, now: datetime) -> list[BreakGlassReviewRow]:
    """What this person did, or what was done at this unit, that nobody has looked at in time."""
    return list(
        session.scalars(
            select(BreakGlassReviewRow)
            .where(
                BreakGlassReviewRow.reviewed_at.is_(None),
                BreakGlassReviewRow.due_at <= now,
                or_(BreakGlassReviewRow.user_id == user_id, BreakGlassReviewRow.unit_id == unit_id),
            )
            .order_by(BreakGlassReviewRow.at)
        )
    )


def list_reviews(
    session: Session,
    roots: Collection[str] | None,
    on: date,
    *,
    open_only: bool,
    overdue_at: datetime | None,
    after: str | None,
    limit: int,
) -> list[BreakGlassReviewRow]:
    """Newest first; `overdue_at`: only those that were due by then."""
    query = select(BreakGlassReviewRow).order_by(BreakGlassReviewRow.emergency_id.desc()).limit(limit)
    if roots is not None:
        query = query.where(BreakGlassReviewRow.unit_id.in_(places.subtree_query(roots, on)))
    if open_only or overdue_at is not None:
        query = query.where(BreakGlassReviewRow.reviewed_at.is_(None))
    if overdue_at is not None:
        query = query.where(BreakGlassReviewRow.due_at <= overdue_at)
    if after is not None:
        query = query.where(BreakGlassReviewRow.emergency_id < after)
    return list(session.scalars(query))
