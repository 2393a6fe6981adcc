"""From a draft to the air: submit, withdraw, approve, reject, recall; of bulletin versions and of programmes.

Placements have the same way in `control.placements`. A maintainer must not break: (1) who wrote or last changed a thing
does not approve it, whatever roles they hold and whatever they are called, unless the station declared the exception
for *thông thường* (`StationPolicy.self_approval`), which each audit row then names; (2) an approval names the hash that
was heard, and only what was submitted is approved; (3) every step is a row that stays.

Source: Nghị định 49/2024 (who answers for the station's content); `docs/adr/0045-nobody-approves-their-own.md`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.library import (
    KEEP_UNUSED,
    BulletinView,
    audit_library,
    note_step,
    programme_hash,
    version_hash,
)
from broadcast_server.control.places import clean_text
from broadcast_server.domain.errors import Conflict, Refused
from broadcast_server.domain.policy import StationPolicy, policy_from_dict
from broadcast_server.store import approvals, library, places
from broadcast_server.store.session import Session
from broadcast_server.store.tables import BulletinRow, BulletinVersionRow, ProgrammeRow, ScheduleRow
from broadcast_server.store.words import ContentKind, Step, StepOf, VersionState
from speaker_protocol.rules import BulletinClass


class Stage(StrEnum):
    """How far something has come; told from rows, kept nowhere."""

    DRAFT = "draft"
    SUBMITTED = "submitted"
    APPROVED = "approved"
    REJECTED = "rejected"
    SCHEDULED = "scheduled"
    """Approved, with a place still to come."""
    AIRED = "aired"
    """Approved, and some node has sounded it."""
    CORRECTED = "corrected"
    """A newer approved version stands in its place."""
    RECALLED = "recalled"


@dataclass(frozen=True, slots=True)
class StepView:
    """One step, as people are shown it."""

    step: Step
    login: str
    at: datetime
    reason: str | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for somebody who may approve, oldest first of each kind."""

    versions: tuple[tuple[BulletinRow, BulletinVersionRow], ...]
    programmes: tuple[ProgrammeRow, ...]
    placements: tuple[ScheduleRow, ...]


# -- versions of bulletins --------------------------------------------------------------------------------------------


async def submit_version(
    desk: Desk, actor: Actor, bulletin_id: str, version_id: str, *, content_hash: str
) -> BulletinView:
    """Lay a draft, or what was rejected, before somebody who may approve it. Submitted already: as it is."""
    now = desk.clock.now()

    def work(session: Session) -> BulletinView:
        bulletin, row = _version(session, bulletin_id, version_id)
        enter_submission(session, actor, bulletin, row, content_hash, now)
        return _view(session, bulletin)

    return await desk.store.begin(work)


def enter_submission(
    session: Session, actor: Actor, bulletin: BulletinRow, row: BulletinVersionRow, content_hash: str, now: datetime
) -> None:
    """`submit_version` inside a transaction of the caller's."""
    access.authorize(session, actor, Action.BULLETIN_WRITE, bulletin, at=now)
    _is_what_was_heard(row, content_hash)
    if row.state in {VersionState.SUBMITTED, VersionState.APPROVED}:
        return
    row.state = VersionState.SUBMITTED
    _stepped(session, actor, bulletin, row, Step.SUBMIT, "bulletin.submit", now)


async def withdraw_version(desk: Desk, actor: Actor, bulletin_id: str, version_id: str) -> BulletinView:
    """Take back what was submitted. Raises `Conflict("not_submitted")`."""
    now = desk.clock.now()

    def work(session: Session) -> BulletinView:
        bulletin, row = _version(session, bulletin_id, version_id)
        access.authorize(session, actor, Action.BULLETIN_WRITE, bulletin, at=now)
        _is_submitted(row.state)
        row.state = VersionState.DRAFT
        _stepped(session, actor, bulletin, row, Step.WITHDRAW, "bulletin.withdraw", now)
        return _view(session, bulletin)

    return await desk.store.begin(work)


async def approve_version(
    desk: Desk, actor: Actor, bulletin_id: str, version_id: str, content_hash: str
) -> BulletinView:
    """Approve (duyệt) exactly what was heard.

    Raises `Refused("author_approves")`, `Conflict("content_changed" | "not_submitted" | "version_recalled")`.
    """
    now = desk.clock.now()

    def work(session: Session) -> BulletinView:
        bulletin, row = _version(session, bulletin_id, version_id)
        enter_approval(session, actor, bulletin, row, content_hash, now)
        return _view(session, bulletin)

    return await desk.store.begin(work)


def enter_approval(
    session: Session, actor: Actor, bulletin: BulletinRow, row: BulletinVersionRow, content_hash: str, now: datetime
) -> None:
    """`approve_version` inside a transaction of the caller's."""
    access.authorize(session, actor, _approving(bulletin.klass), bulletin, at=now)
    _is_what_was_heard(row, content_hash)
    if row.state is VersionState.APPROVED:
        return
    _is_submitted(row.state)
    is_own = _own(session, actor, bulletin, row, now)
    row.state = VersionState.APPROVED
    row.approved_by, row.approved_at, row.approved_hash = actor.login, now, row.content_hash
    _stepped(session, actor, bulletin, row, Step.APPROVE, "bulletin.approve", now, is_own=is_own)


def may_approve(session: Session, actor: Actor, bulletin: BulletinRow, row: BulletinVersionRow, now: datetime) -> bool:
    """Whether `enter_approval` would let the actor."""
    if not access.may(session, actor, _approving(bulletin.klass), bulletin.unit_id, at=now):
        return False
    try:
        _own(session, actor, bulletin, row, now)
    except Refused:
        return False
    return True


async def reject_version(
    desk: Desk, actor: Actor, bulletin_id: str, version_id: str, *, content_hash: str, reason: str
) -> BulletinView:
    """Say no to what was submitted, and why. Raises `Conflict("not_submitted")`."""
    now = desk.clock.now()
    kept = clean_text(reason, "reason", code="reason_missing", longest=300)

    def work(session: Session) -> BulletinView:
        bulletin, row = _version(session, bulletin_id, version_id)
        access.authorize(session, actor, _approving(bulletin.klass), bulletin, at=now)
        _is_what_was_heard(row, content_hash)
        _is_submitted(row.state)
        row.state = VersionState.REJECTED
        _stepped(session, actor, bulletin, row, Step.REJECT, "bulletin.reject", now, reason=kept)
        return _view(session, bulletin)

    return await desk.store.begin(work)


async def recall(desk: Desk, actor: Actor, bulletin_id: str, version_id: str | None = None) -> BulletinView:
    """Recall (thu hồi) one version, or all of them: what was to sound of it is silent from the next plan on."""
    now = desk.clock.now()

    def work(session: Session) -> BulletinView:
        bulletin = library.bulletin(session, bulletin_id)
        access.authorize(session, actor, Action.BULLETIN_APPROVE, bulletin, at=now)
        rows = library.versions(session, (bulletin_id,))[bulletin_id]
        if version_id is not None:
            rows = [library.version(session, bulletin_id, version_id)]
        for row in rows:
            row.state = VersionState.RECALLED
            note_step(session, StepOf.VERSION, row.id, Step.RECALL, actor, now, row.content_hash)
            if row.asset_sha256 is not None:
                library.keep_asset_until(session, row.asset_sha256, now + KEEP_UNUSED)
        bulletin.version += 1
        session.flush()
        detail = {"versions": [row.id for row in rows]}
        audit_library(session, actor, now, "bulletin.recall", bulletin.unit_id, f"bulletin/{bulletin.id}", detail)
        return _view(session, bulletin)

    return await desk.store.begin(work)


def _version(session: Session, bulletin_id: str, version_id: str) -> tuple[BulletinRow, BulletinVersionRow]:
    return library.bulletin(session, bulletin_id), library.version(session, bulletin_id, version_id)


def _view(session: Session, row: BulletinRow) -> BulletinView:
    return BulletinView(row, tuple(library.versions(session, (row.id,))[row.id]))


def _approving(klass: BulletinClass) -> Action:
    return Action.EMERGENCY_LAUNCH if klass is BulletinClass.EMERGENCY else Action.BULLETIN_APPROVE


def _is_what_was_heard(row: BulletinVersionRow, content_hash: str) -> None:
    actual = version_hash(text=row.text, voice=row.voice, asset_sha256=row.asset_sha256)
    if content_hash != row.content_hash or row.content_hash != actual:
        raise Conflict("content_changed", field="content_hash", fix="hear_it_again", expected=content_hash)
    if row.state is VersionState.RECALLED:
        raise Conflict("version_recalled", field="version_id", fix="write_new_version")
    if row.asset_sha256 is None:
        raise Conflict("no_audio_yet", field="version_id", fix="make_audio_again")


def _is_submitted(state: VersionState) -> None:
    if state is not VersionState.SUBMITTED:
        raise Conflict("not_submitted", field="version_id", fix="submit_it", state=state.value)


def _own(session: Session, actor: Actor, bulletin: BulletinRow, row: BulletinVersionRow, now: datetime) -> bool:
    """Whether it is the actor's own work, which the station's regulations let one approve; raises where they do not."""
    people = approvals.writers(session, StepOf.VERSION, row.id)
    is_own = actor.user_id in people or (not people and row.created_by == actor.login)
    return is_own and _declared(session, actor, bulletin.unit_id, bulletin.klass, now)


def _declared(session: Session, actor: Actor, unit_id: str, klass: BulletinClass, now: datetime) -> bool:
    if klass is BulletinClass.NORMAL and policy_of(session, unit_id, now).self_approval:
        return True
    raise Refused("author_approves", fix="ask_another_approver", login=actor.login)


def policy_of(session: Session, unit_id: str, now: datetime) -> StationPolicy:
    """The regulations in force at a unit."""
    row = places.policy_in_force(session, unit_id, places.local_date(now))
    return policy_from_dict({} if row is None else row.body)


def _stepped(
    session: Session,
    actor: Actor,
    bulletin: BulletinRow,
    row: BulletinVersionRow,
    step: Step,
    verb: str,
    now: datetime,
    *,
    reason: str | None = None,
    is_own: bool = False,
) -> None:
    note_step(session, StepOf.VERSION, row.id, step, actor, now, row.content_hash, reason)
    bulletin.version += 1
    session.flush()
    detail = {"version": row.id, "language": row.language, "content_hash": row.content_hash, **_told(reason, is_own)}
    audit_library(session, actor, now, verb, bulletin.unit_id, f"bulletin/{bulletin.id}", detail)


def _told(reason: str | None, is_own: bool) -> dict[str, Any]:
    told: dict[str, Any] = {} if reason is None else {"reason": reason}
    return told | ({"self_approval": True} if is_own else {})


# -- programmes -------------------------------------------------------------------------------------------------------


async def submit_programme(desk: Desk, actor: Actor, programme_id: str, *, content_hash: str) -> ProgrammeRow:
    """Lay a rendered programme before somebody who may approve it."""
    now = desk.clock.now()

    def work(session: Session) -> ProgrammeRow:
        row = library.programme(session, programme_id)
        enter_programme_submission(session, actor, row, content_hash, now)
        return row

    return await desk.store.begin(work)


def enter_programme_submission(
    session: Session, actor: Actor, row: ProgrammeRow, content_hash: str, now: datetime
) -> None:
    """`submit_programme` inside a transaction of the caller's."""
    access.authorize(session, actor, Action.PROGRAMME_WRITE, row, at=now)
    _is_rendered(row, content_hash)
    if content_hash in {row.submitted_hash, row.approved_hash}:
        return
    row.submitted_hash = content_hash
    _programme_stepped(session, actor, row, Step.SUBMIT, "programme.submit", now)


async def withdraw_programme(desk: Desk, actor: Actor, programme_id: str) -> ProgrammeRow:
    """Take back what was submitted. Raises `Conflict("not_submitted")`."""
    now = desk.clock.now()

    def work(session: Session) -> ProgrammeRow:
        row = library.programme(session, programme_id)
        access.authorize(session, actor, Action.PROGRAMME_WRITE, row, at=now)
        _is_submitted(programme_state(row))
        row.submitted_hash = None
        _programme_stepped(session, actor, row, Step.WITHDRAW, "programme.withdraw", now)
        return row

    return await desk.store.begin(work)


async def approve_programme(desk: Desk, actor: Actor, programme_id: str, content_hash: str) -> ProgrammeRow:
    """Approve exactly what was heard. Raises as `approve_version` does, and `Conflict("no_audio_yet")`."""
    now = desk.clock.now()

    def work(session: Session) -> ProgrammeRow:
        row = library.programme(session, programme_id)
        enter_programme_approval(session, actor, row, content_hash, now)
        return row

    return await desk.store.begin(work)


def enter_programme_approval(
    session: Session, actor: Actor, row: ProgrammeRow, content_hash: str, now: datetime
) -> None:
    """`approve_programme` inside a transaction of the caller's."""
    access.authorize(session, actor, Action.PROGRAMME_APPROVE, row, at=now)
    _is_rendered(row, content_hash)
    if row.approved_hash == content_hash:
        return
    _is_submitted(programme_state(row))
    is_own = _own_programme(session, actor, row, now)
    row.approved_by, row.approved_at, row.approved_hash = actor.login, now, row.content_hash
    _programme_stepped(session, actor, row, Step.APPROVE, "programme.approve", now, is_own=is_own)


def may_approve_programme(session: Session, actor: Actor, row: ProgrammeRow, now: datetime) -> bool:
    """Whether `enter_programme_approval` would let the actor."""
    if not access.may(session, actor, Action.PROGRAMME_APPROVE, row.unit_id, at=now):
        return False
    try:
        _own_programme(session, actor, row, now)
    except Refused:
        return False
    return True


async def reject_programme(
    desk: Desk, actor: Actor, programme_id: str, *, content_hash: str, reason: str
) -> ProgrammeRow:
    """Say no to what was submitted, and why. Raises `Conflict("not_submitted")`."""
    now = desk.clock.now()
    kept = clean_text(reason, "reason", code="reason_missing", longest=300)

    def work(session: Session) -> ProgrammeRow:
        row = library.programme(session, programme_id)
        access.authorize(session, actor, Action.PROGRAMME_APPROVE, row, at=now)
        _is_rendered(row, content_hash)
        _is_submitted(programme_state(row))
        row.submitted_hash = None
        _programme_stepped(session, actor, row, Step.REJECT, "programme.reject", now, reason=kept)
        return row

    return await desk.store.begin(work)


def programme_state(row: ProgrammeRow) -> VersionState:
    """Draft, submitted or approved, as its hashes have it."""
    if row.content_hash is not None and row.approved_hash == row.content_hash:
        return VersionState.APPROVED
    is_submitted = row.content_hash is not None and row.submitted_hash == row.content_hash
    return VersionState.SUBMITTED if is_submitted else VersionState.DRAFT


def _is_rendered(row: ProgrammeRow, content_hash: str) -> None:
    if row.asset_sha256 is None or row.content_hash is None:
        raise Conflict("no_audio_yet", field="content_hash", fix="render_again")
    if content_hash != row.content_hash or row.content_hash != programme_hash(row.items, row.asset_sha256):
        raise Conflict("content_changed", field="content_hash", fix="hear_it_again", expected=content_hash)


def _own_programme(session: Session, actor: Actor, row: ProgrammeRow, now: datetime) -> bool:
    people = approvals.writers(session, StepOf.PROGRAMME, row.id)
    is_own = actor.user_id in people or (not people and row.created_by == actor.login)
    return is_own and _declared(session, actor, row.unit_id, BulletinClass.NORMAL, now)


def _programme_stepped(
    session: Session,
    actor: Actor,
    row: ProgrammeRow,
    step: Step,
    verb: str,
    now: datetime,
    *,
    reason: str | None = None,
    is_own: bool = False,
) -> None:
    note_step(session, StepOf.PROGRAMME, row.id, step, actor, now, row.content_hash, reason)
    row.version += 1
    session.flush()
    detail = {"content_hash": row.content_hash, **_told(reason, is_own)}
    audit_library(session, actor, now, verb, row.unit_id, f"programme/{row.id}", detail)


# -- looking ----------------------------------------------------------------------------------------------------------


async def waiting(desk: Desk, actor: Actor, *, unit_id: str | None = None, limit: int = 100) -> Waiting:
    """What waits for an approval at places where the actor may see it."""
    now = desk.clock.now()

    def work(session: Session) -> Waiting:
        roots, on = access.roots(session, actor, Action.READ, unit_id, at=now), places.local_date(now)
        return Waiting(
            tuple(approvals.waiting_versions(session, roots, on, limit)),
            tuple(approvals.waiting_programmes(session, roots, on, limit)),
            tuple(approvals.waiting_placements(session, roots, on, now, limit)),
        )

    return await desk.store.read(work)


async def stages(desk: Desk, views: Collection[BulletinView]) -> dict[str, Stage]:
    """By version: how far it has come. Of bulletins the caller has been shown already."""
    now = desk.clock.now()

    def work(session: Session) -> dict[str, Stage]:
        ids = [view.row.id for view in views]
        placed = approvals.placed(session, ContentKind.BULLETIN, ids, now)
        heard = approvals.heard(session, ContentKind.BULLETIN, ids)
        found: dict[str, Stage] = {}
        for view in views:
            newer: set[str] = set()
            for row in view.versions:  # the newest of a language first
                found[row.id] = _stage(row, row.language in newer, (view.row.id, row.language) in placed, heard)
                if row.state is VersionState.APPROVED:
                    newer.add(row.language)
        return found

    return await desk.store.read(work)


def _stage(row: BulletinVersionRow, is_corrected: bool, is_placed: bool, heard: frozenset[str]) -> Stage:
    if row.state is not VersionState.APPROVED:
        return Stage(row.state.value)
    if is_corrected:
        return Stage.CORRECTED
    if row.content_hash in heard:
        return Stage.AIRED
    return Stage.SCHEDULED if is_placed else Stage.APPROVED


async def history(desk: Desk, kind: StepOf, subject_ids: Collection[str]) -> dict[str, tuple[StepView, ...]]:
    """The steps of things the caller has been shown already."""

    def work(session: Session) -> dict[str, tuple[StepView, ...]]:
        found = approvals.steps_of(session, kind, subject_ids)
        return {
            subject: tuple(StepView(one.step, one.login, one.at, one.reason) for one in found[subject])
            for subject in subject_ids
        }

    return await desk.store.read(work)
