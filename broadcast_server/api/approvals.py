"""What waits for an approval, how far each wording has come, and the approval of a place on the grid."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import Query
from pydantic import StringConstraints

from broadcast_server.api.bulletins import Sha256
from broadcast_server.api.deps import ActorDep, DeskDep, LocaleDep
from broadcast_server.api.fields import Form, IdPath, IdQuery, ProofForm, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.schedules import Schedule, SchedulePlaced
from broadcast_server.control import approvals, library, placements
from broadcast_server.control.access import Action
from broadcast_server.control.approvals import Stage, StepView, Waiting
from broadcast_server.control.placements import ApprovePlacement
from broadcast_server.store.words import ScheduleKind, Step, StepOf
from speaker_protocol.rules import BulletinClass

router = Router(tags=["approvals"], route_class=IdempotentRoute)


class PlaceApprovalForm(Form):
    """Approve exactly the place that was shown. `content_hash`: of a submitted wording that is approved with it.

    `proof`: for *khẩn cấp*, which needs another person than who placed it.
    """

    placement_hash: Sha256
    content_hash: Sha256 | None = None
    accept_conflicts: bool = False
    proof: ProofForm | None = None


class PlaceRejectionForm(Form):
    """Why not, in words whoever placed it reads."""

    placement_hash: Sha256
    reason: Annotated[str, StringConstraints(min_length=1, max_length=300)]


class WaitingVersion(Shown):
    """A wording somebody should hear and decide on."""

    bulletin_id: str
    version_id: str
    unit_id: str
    title: str
    klass: BulletinClass
    language: str
    content_hash: str
    created_by: str
    created_at: datetime


class WaitingProgramme(Shown):
    """A programme somebody should hear and decide on."""

    programme_id: str
    unit_id: str
    title: str
    content_hash: str
    created_by: str
    created_at: datetime


class WaitingPlacement(Shown):
    """A schedule that does not sound until somebody approves its place."""

    schedule_id: str
    unit_id: str
    name: str
    kind: ScheduleKind
    klass: BulletinClass
    created_by: str
    created_at: datetime


class WaitingShown(Shown):
    """What waits, the oldest of each kind first."""

    versions: list[WaitingVersion]
    programmes: list[WaitingProgramme]
    placements: list[WaitingPlacement]

    @classmethod
    def of(cls, found: Waiting) -> WaitingShown:
        """As callers see it."""
        return cls(
            versions=[
                WaitingVersion(
                    bulletin_id=bulletin.id,
                    version_id=row.id,
                    unit_id=bulletin.unit_id,
                    title=bulletin.title,
                    klass=bulletin.klass,
                    language=row.language,
                    content_hash=row.content_hash,
                    created_by=row.created_by,
                    created_at=row.created_at,
                )
                for bulletin, row in found.versions
            ],
            programmes=[
                WaitingProgramme(
                    programme_id=row.id,
                    unit_id=row.unit_id,
                    title=row.title,
                    content_hash=row.content_hash or "",
                    created_by=row.created_by,
                    created_at=row.created_at,
                )
                for row in found.programmes
            ],
            placements=[
                WaitingPlacement(
                    schedule_id=row.id,
                    unit_id=row.unit_id,
                    name=row.name,
                    kind=row.kind,
                    klass=row.klass,
                    created_by=row.created_by,
                    created_at=row.created_at,
                )
                for row in found.placements
            ],
        )


class StepShown(Shown):
    """One step on the way to the air."""

    step: Step
    login: str
    at: datetime
    reason: str | None

    @classmethod
    def of(cls, step: StepView) -> StepShown:
        """As callers see it."""
        return cls.model_validate(step, from_attributes=True)


class VersionStage(Shown):
    """How far a version has come, and by whose hands."""

    version_id: str
    language: str
    number: int
    stage: Stage
    steps: list[StepShown]


@router.get("/approvals")
@asks(Action.READ)
async def list_waiting(
    desk: DeskDep, actor: ActorDep, unit: IdQuery = None, limit: Annotated[int, Query(ge=1, le=200)] = 100
) -> WaitingShown:
    """What waits for somebody who may approve it."""
    return WaitingShown.of(await approvals.waiting(desk, actor, unit_id=unit, limit=limit))


@router.get("/bulletins/{bulletin_id}/stages")
@asks(Action.READ)
async def list_stages(desk: DeskDep, actor: ActorDep, bulletin_id: IdPath) -> list[VersionStage]:
    """How far each version of a bulletin has come: submitted, approved, scheduled, aired, corrected, recalled."""
    view = await library.get_bulletin(desk, actor, bulletin_id)
    found = await approvals.stages(desk, [view])
    steps = await approvals.history(desk, StepOf.VERSION, [row.id for row in view.versions])
    return [
        VersionStage(
            version_id=row.id,
            language=row.language,
            number=row.number,
            stage=found[row.id],
            steps=[StepShown.of(step) for step in steps[row.id]],
        )
        for row in view.versions
    ]


@router.post("/schedules/{schedule_id}/approval")
@asks(Action.BULLETIN_APPROVE, Action.PROGRAMME_APPROVE, Action.EMERGENCY_LAUNCH)
async def approve_placement(
    desk: DeskDep, actor: ActorDep, schedule_id: IdPath, form: PlaceApprovalForm, locale: LocaleDep
) -> SchedulePlaced:
    """Let it sound where and when it was placed; conflicts are shown before, as at placing."""
    request = ApprovePlacement(schedule_id, form.placement_hash, form.content_hash, form.accept_conflicts)
    proof = None if form.proof is None else form.proof.given()
    return SchedulePlaced.placed(await placements.approve_placement(desk, actor, request, proof), locale)


@router.post("/schedules/{schedule_id}/rejection")
@asks(Action.BULLETIN_APPROVE, Action.PROGRAMME_APPROVE, Action.EMERGENCY_LAUNCH)
async def reject_placement(desk: DeskDep, actor: ActorDep, schedule_id: IdPath, form: PlaceRejectionForm) -> Schedule:
    """Say no, and why: it is off the grid."""
    view = await placements.reject_placement(
        desk, actor, schedule_id, placement_hash=form.placement_hash, reason=form.reason
    )
    return Schedule.of(view)
