"""Approving where and when something sounds, and rejecting it.

A maintainer must not break: (1) the approver names the hash of the place that was shown, and the air is judged again at
that moment; (2) one approval may cover a submitted wording too, if its hash is named beside; (3) *khẩn cấp* at an hour
needs another person than who placed it, present with password and code, like any other alarm.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from broadcast_server.control import access, approvals, scheduling
from broadcast_server.control.access import Actor
from broadcast_server.control.accounts import Proof
from broadcast_server.control.clashes import Neighbourhood
from broadcast_server.control.consents import proved
from broadcast_server.control.desk import Desk
from broadcast_server.control.judging import Judge
from broadcast_server.control.places import clean_text
from broadcast_server.control.scheduling import Placed, ScheduleView, audit_schedule, end_schedule, shown
from broadcast_server.domain.errors import Conflict, Invalid, Refused
from broadcast_server.domain.places import Target
from broadcast_server.store import approvals as steps
from broadcast_server.store import library, places, schedules
from broadcast_server.store.session import Session
from broadcast_server.store.tables import ScheduleRow
from broadcast_server.store.words import ContentKind, ScheduleState, Step, StepOf, VersionState
from speaker_protocol.rules import BulletinClass


@dataclass(frozen=True, slots=True)
class ApprovePlacement:
    """Approve a schedule's place. `content_hash`: of a submitted wording that is approved with it."""

    schedule_id: str
    placement_hash: str
    content_hash: str | None = None
    accept_conflicts: bool = False


async def approve_placement(desk: Desk, actor: Actor, request: ApprovePlacement, proof: Proof | None = None) -> Placed:
    """Let it sound where and when it was placed. Approved already: nothing more happens.

    Raises `Refused("author_approves")`, `Conflict("content_changed" | "schedule_over" | "schedule_conflict")`, and
    for *khẩn cấp* as `accounts.prove` does.
    """

    def class_of(session: Session) -> BulletinClass:
        row = schedules.schedule(session, request.schedule_id)
        access.authorize(session, actor, scheduling.place_action(row), row, at=desk.clock.now())
        return row.klass

    if await desk.store.read(class_of) is BulletinClass.EMERGENCY:
        if proof is None:
            raise Invalid("proof_missing", field="proof", fix="give_proof")
        await proved(desk, actor, proof)
    now = desk.clock.now()

    def work(session: Session) -> Placed:
        row, targets = _open_row(session, actor, request.schedule_id, request.placement_hash, now)
        around = Neighbourhood.read(session, places.local_date(now))
        judge = Judge(session, around, now, around.reach(targets), max(row.starts_at, now))
        before = judge.entries(without={row.id})
        if request.content_hash is not None:
            _approve_wording(session, actor, row, request.content_hash, now)
        if not shown(session, row).is_approved:
            _not_own(session, actor, row, now)
            row.approved_hash, row.approved_by, row.approved_at = request.placement_hash, actor.login, now
            row.version += 1
            steps.clear_waits(session, row.id)
            _step(session, actor, row, Step.APPROVE, now)
            audit_schedule(session, actor, row, now, "schedule.approve", placement_hash=request.placement_hash)
        preview = judge.judge(before, (row.id,), accept_conflicts=request.accept_conflicts)
        return Placed(shown(session, row), preview)

    return await desk.store.begin(work)


async def reject_placement(
    desk: Desk, actor: Actor, schedule_id: str, *, placement_hash: str, reason: str
) -> ScheduleView:
    """Say no, and why: it is off the grid from now on."""
    now = desk.clock.now()
    kept = clean_text(reason, "reason", code="reason_missing", longest=300)

    def work(session: Session) -> ScheduleView:
        row, _ = _open_row(session, actor, schedule_id, placement_hash, now)
        end_schedule(row, now)
        _step(session, actor, row, Step.REJECT, now, kept)
        audit_schedule(session, actor, row, now, "schedule.reject", reason=kept)
        return shown(session, row)

    return await desk.store.begin(work)


def _open_row(
    session: Session, actor: Actor, schedule_id: str, placement_hash: str, now: datetime
) -> tuple[ScheduleRow, tuple[Target, ...]]:
    """A schedule with something to come, still as it was shown, for who may approve its place."""
    row = schedules.schedule(session, schedule_id)
    access.authorize(session, actor, scheduling.place_action(row), row, at=now)
    if row.state is ScheduleState.CANCELLED or (row.ends_at is not None and row.ends_at <= now):
        raise Conflict("schedule_over", field="schedule_id", fix="make_a_new_one", schedule=schedule_id)
    targets = schedules.targets_of(session, (row.id,)).get(row.id, ())
    if steps.hash_of_placement(row, targets) != placement_hash:
        raise Conflict("content_changed", field="placement_hash", fix="look_again", expected=placement_hash)
    return row, targets


def _not_own(session: Session, actor: Actor, row: ScheduleRow, now: datetime) -> None:
    people = steps.writers(session, StepOf.SCHEDULE, row.id)
    is_own = actor.user_id in people or (not people and row.created_by == actor.login)
    if row.klass is BulletinClass.EMERGENCY and (actor.everywhere or is_own):
        raise Refused("unfit_same_person" if is_own else "not_a_person", fix="find_second_person", login=actor.login)
    if is_own and not scheduling.may_approve_place(session, actor, row, now):
        raise Refused("author_approves", fix="ask_another_approver", login=actor.login)


def _approve_wording(session: Session, actor: Actor, row: ScheduleRow, content_hash: str, now: datetime) -> None:
    if row.content_kind is ContentKind.PROGRAMME:
        programme = library.programme(session, row.content_id)
        approvals.enter_programme_approval(session, actor, programme, content_hash, now)
        return
    if row.content_kind is not ContentKind.BULLETIN:
        raise Invalid("no_wording", field="content_hash", fix="leave_out")
    bulletin = library.bulletin(session, row.content_id)
    for version in library.versions(session, (bulletin.id,))[bulletin.id]:
        is_meant = version.language == row.language and version.content_hash == content_hash
        if is_meant and version.state in {VersionState.SUBMITTED, VersionState.APPROVED}:
            approvals.enter_approval(session, actor, bulletin, version, content_hash, now)
            return
    raise Conflict("content_changed", field="content_hash", fix="hear_it_again", expected=content_hash)


def _step(
    session: Session, actor: Actor, row: ScheduleRow, step: Step, now: datetime, reason: str | None = None
) -> None:
    steps.add_step(
        session,
        StepOf.SCHEDULE,
        row.id,
        step,
        user_id=actor.user_id,
        login=actor.login,
        at=now,
        content_hash=row.approved_hash,
        reason=reason,
    )
