"""The steps of versions, programmes and placements on their way to the air, and what became of them.

A maintainer must not break: steps are added and never changed; people are known by id, so a new login hides nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import date, datetime

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from broadcast_server.domain.placement import placement_hash
from broadcast_server.domain.places import Target
from broadcast_server.store import places
from broadcast_server.store.tables import (
    BroadcastRow,
    BulletinRow,
    BulletinVersionRow,
    PlayRow,
    ProgrammeRow,
    ScheduleExceptionRow,
    ScheduleRow,
)
from broadcast_server.store.tables_approval import ApprovalStepRow
from broadcast_server.store.words import ContentKind, ScheduleState, Step, StepOf, VersionState


def add_step(
    session: Session,
    kind: StepOf,
    subject_id: str,
    step: Step,
    *,
    user_id: str,
    login: str,
    at: datetime,
    content_hash: str | None = None,
    reason: str | None = None,
) -> None:
    """Enter one step; the store has one writer at a time, so numbers have no gaps."""
    last = session.scalar(select(func.max(ApprovalStepRow.id)))
    session.add(
        ApprovalStepRow(
            id=(last or 0) + 1,
            subject_kind=kind,
            subject_id=subject_id,
            step=step,
            user_id=user_id,
            login=login,
            content_hash=content_hash,
            reason=reason,
            at=at,
        )
    )
    session.flush()


def steps_of(session: Session, kind: StepOf, subject_ids: Collection[str]) -> dict[str, list[ApprovalStepRow]]:
    """By subject, in order."""
    found: dict[str, list[ApprovalStepRow]] = defaultdict(list)
    for row in session.scalars(
        select(ApprovalStepRow)
        .where(ApprovalStepRow.subject_kind == kind, ApprovalStepRow.subject_id.in_(subject_ids))
        .order_by(ApprovalStepRow.id)
    ):
        found[row.subject_id].append(row)
    return found


def writers(session: Session, kind: StepOf, subject_id: str) -> frozenset[str]:
    """Ids of who wrote or changed it since it was approved last."""
    people: set[str] = set()
    for one in steps_of(session, kind, (subject_id,))[subject_id]:
        if one.step is Step.APPROVE:
            people.clear()
        elif one.step is Step.WRITE:
            people.add(one.user_id)
    return frozenset(people)


def approved_by_their_writers(session: Session, contents: Collection[tuple[ContentKind, str, str]]) -> set[str]:
    """Of `(kind, id, language)`, the ids of those whose wording in force was approved by who wrote it.

    What has no steps came by no verb and says nothing.
    """
    bulletins = {content_id for kind, content_id, _ in contents if kind is ContentKind.BULLETIN}
    newest: dict[tuple[str, str], str] = {}
    for bulletin_id, language, version_id in session.execute(
        select(BulletinVersionRow.bulletin_id, BulletinVersionRow.language, BulletinVersionRow.id)
        .where(BulletinVersionRow.bulletin_id.in_(bulletins), BulletinVersionRow.state == VersionState.APPROVED)
        .order_by(BulletinVersionRow.number)
    ):
        newest[bulletin_id, language] = version_id
    versions = {
        newest[content_id, language]: content_id
        for kind, content_id, language in contents
        if kind is ContentKind.BULLETIN and (content_id, language) in newest
    }
    programmes = {content_id: content_id for kind, content_id, _ in contents if kind is ContentKind.PROGRAMME}
    found: set[str] = set()
    for step_of, subjects in ((StepOf.VERSION, versions), (StepOf.PROGRAMME, programmes)):
        for subject_id, steps in steps_of(session, step_of, subjects).items():
            if _is_own(steps):
                found.add(subjects[subject_id])
    return found


def _is_own(steps: Sequence[ApprovalStepRow]) -> bool:
    """Whether the last approval was given by one of those who wrote since the one before it."""
    people: set[str] = set()
    is_own = False
    for one in steps:
        if one.step is Step.APPROVE:
            is_own, people = one.user_id in people, set()
        elif one.step is Step.WRITE:
            people.add(one.user_id)
    return is_own


def hash_of_placement(row: ScheduleRow, targets: Collection[Target]) -> str:
    """What an approval of the schedule is over, as the rows have it now."""
    return placement_hash(
        content=(row.content_kind.value, row.content_id, row.language),
        rule=row.rule,
        targets=targets,
        length_ms=row.length_ms,
        max_wait_ms=row.max_wait_ms,
    )


# -- what waits -------------------------------------------------------------------------------------------------------


def waiting_versions(
    session: Session, roots: Collection[str] | None, on: date, limit: int
) -> list[tuple[BulletinRow, BulletinVersionRow]]:
    """Versions that were submitted, oldest first."""
    query = (
        select(BulletinRow, BulletinVersionRow)
        .join(BulletinVersionRow, BulletinVersionRow.bulletin_id == BulletinRow.id)
        .where(BulletinVersionRow.state == VersionState.SUBMITTED)
        .order_by(BulletinVersionRow.created_at, BulletinVersionRow.id)
        .limit(limit)
    )
    if roots is not None:
        query = query.where(BulletinRow.unit_id.in_(places.subtree_query(roots, on)))
    return [(bulletin, version) for bulletin, version in session.execute(query)]


def waiting_programmes(session: Session, roots: Collection[str] | None, on: date, limit: int) -> list[ProgrammeRow]:
    """Programmes that were submitted and not changed since, oldest first."""
    query = (
        select(ProgrammeRow)
        .where(
            ProgrammeRow.submitted_hash == ProgrammeRow.content_hash,
            or_(ProgrammeRow.approved_hash.is_(None), ProgrammeRow.approved_hash != ProgrammeRow.content_hash),
        )
        .order_by(ProgrammeRow.created_at, ProgrammeRow.id)
        .limit(limit)
    )
    if roots is not None:
        query = query.where(ProgrammeRow.unit_id.in_(places.subtree_query(roots, on)))
    return list(session.scalars(query))


def waiting_placements(
    session: Session, roots: Collection[str] | None, on: date, now: datetime, limit: int
) -> list[ScheduleRow]:
    """Schedules with something to come whose place nobody approved, or which were moved since, oldest first."""
    moved = select(ScheduleExceptionRow.schedule_id).where(
        ScheduleExceptionRow.waits, ScheduleExceptionRow.moved_to > now
    )
    query = (
        select(ScheduleRow)
        .where(
            ScheduleRow.state == ScheduleState.ACTIVE,
            or_(ScheduleRow.ends_at.is_(None), ScheduleRow.ends_at > now),
            or_(_unapproved(), ScheduleRow.id.in_(moved)),
        )
        .order_by(ScheduleRow.created_at, ScheduleRow.id)
        .limit(limit)
    )
    if roots is not None:
        query = query.where(ScheduleRow.unit_id.in_(places.subtree_query(roots, on)))
    return list(session.scalars(query))


def _unapproved() -> ColumnElement[bool]:
    return ScheduleRow.needs_approval & ScheduleRow.approved_hash.is_(None)


def clear_waits(session: Session, schedule_id: str) -> None:
    """What was moved may sound where it was moved to."""
    for row in session.scalars(
        select(ScheduleExceptionRow).where(ScheduleExceptionRow.schedule_id == schedule_id, ScheduleExceptionRow.waits)
    ):
        row.waits = False
    session.flush()


# -- what became of it ------------------------------------------------------------------------------------------------


def placed(
    session: Session, kind: ContentKind, content_ids: Collection[str], now: datetime
) -> frozenset[tuple[str, str]]:
    """(content, language) of what has a place still to come."""
    rows = session.execute(
        select(ScheduleRow.content_id, ScheduleRow.language).where(
            ScheduleRow.content_kind == kind,
            ScheduleRow.content_id.in_(content_ids),
            ScheduleRow.state == ScheduleState.ACTIVE,
            or_(ScheduleRow.ends_at.is_(None), ScheduleRow.ends_at > now),
        )
    )
    return frozenset(rows.tuples())


def heard(session: Session, kind: ContentKind, content_ids: Collection[str]) -> frozenset[str]:
    """Hashes of what some node of some cluster has sounded."""
    return frozenset(
        one
        for one in session.scalars(
            select(BroadcastRow.approval)
            .join(ScheduleRow, ScheduleRow.id == BroadcastRow.schedule_id)
            .join(PlayRow, PlayRow.broadcast_id == BroadcastRow.id)
            .where(
                ScheduleRow.content_kind == kind,
                ScheduleRow.content_id.in_(content_ids),
                PlayRow.heard_ms > 0,
            )
            .distinct()
        )
        if one is not None
    )
