"""Break-glass over HTTP: templates that two approve, the alarm one person raises from them, and its review."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query, Response
from pydantic import Field, StringConstraints

from broadcast_server.api.deps import ActorDep, DeskDep
from broadcast_server.api.emergencies import Emergency, Line, MessageForm, RoundsForm, Sha256
from broadcast_server.api.fields import Form, Id, IdPath, IdQuery, Name, ProofForm, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.control import break_glass, emergency
from broadcast_server.control.access import Action
from broadcast_server.control.break_glass import BreakGlass, NewTemplate, ReviewQuery, TemplateView
from broadcast_server.domain.consent import BREAK_GLASS_LONGEST_MIN
from broadcast_server.store.tables_approval import BreakGlassReviewRow
from broadcast_server.store.words import ReviewFinding

router = Router(tags=["emergencies"], route_class=IdempotentRoute)


class TemplateForm(Form):
    """What one person may raise alone at this unit or below it, once two others approved it."""

    unit_id: Id
    name: Name
    message: MessageForm
    rounds: RoundsForm = RoundsForm()


class TemplateApprovalForm(Form):
    """Approve exactly what was seen."""

    content_hash: Sha256
    proof: ProofForm


class BreakGlassForm(Form):
    """Sound an approved template now, alone. `confirm`: `KHẨN CẤP`; `reason`: what the reviewer reads."""

    unit_id: Id
    template_id: Id
    units: Annotated[tuple[Id, ...], Field(max_length=emergency.MOST_UNITS)] = ()
    expires_min: Annotated[int, Field(ge=1, le=BREAK_GLASS_LONGEST_MIN)] = BREAK_GLASS_LONGEST_MIN
    reason: Line
    confirm: Line
    proof: ProofForm


class ReviewForm(Form):
    """What somebody else says of it."""

    finding: ReviewFinding
    note: Annotated[str, StringConstraints(min_length=1, max_length=300)]


class TemplateApprovalShown(Shown):
    """One person approved exactly `content_hash`."""

    login: str
    content_hash: str
    at: datetime


class Template(Shown):
    """A template. `is_approved`: two people beside its author approved it as it is, and nobody retired it."""

    id: str
    unit_id: str
    name: str
    hazard: str | None
    phrases: list[str]
    text: str | None
    voice: str | None
    tone_ms: int | None
    times: int | None
    gap_ms: int | None
    every_min: int | None
    content_hash: str
    created_by: str
    created_at: datetime
    retired_at: datetime | None
    retired_by: str | None
    approvals: list[TemplateApprovalShown]
    is_approved: bool

    @classmethod
    def of(cls, view: TemplateView) -> Template:
        """As callers see it."""
        told: dict[str, Any] = {
            "approvals": [TemplateApprovalShown.model_validate(one, from_attributes=True) for one in view.approvals],
            "is_approved": view.is_approved,
        }
        return cls(**{name: getattr(view.row, name) for name in cls.model_fields if name not in told}, **told)


class Review(Shown):
    """A break-glass and what somebody else said of it. Overdue, it takes the right away from person and place."""

    emergency_id: str
    unit_id: str
    login: str
    at: datetime
    due_at: datetime
    is_overdue: bool
    reviewed_by: str | None
    reviewed_at: datetime | None
    finding: ReviewFinding | None
    note: str | None

    @classmethod
    def of(cls, row: BreakGlassReviewRow, now: datetime) -> Review:
        """As callers see it."""
        is_overdue = row.reviewed_at is None and row.due_at <= now
        return cls(
            is_overdue=is_overdue,
            **{name: getattr(row, name) for name in cls.model_fields if name != "is_overdue"},
        )


@router.get("/emergency-templates")
@asks(Action.READ)
async def list_templates(desk: DeskDep, actor: ActorDep, paging: PagingDep, unit: IdQuery = None) -> Page[Template]:
    """Templates of what one may see and of what lies above it, the newest first."""
    found = await break_glass.list_templates(desk, actor, unit_id=unit, after=paging.after, limit=paging.fetch)
    return paging.page(found, key=lambda view: view.row.id, item=Template.of)


@router.post("/emergency-templates", status_code=201)
@asks(Action.EMERGENCY_PROPOSE)
async def write_template(desk: DeskDep, actor: ActorDep, form: TemplateForm, response: Response) -> Template:
    """Write a template; it serves once two others approved it."""
    view = await break_glass.write_template(
        desk, actor, NewTemplate(form.unit_id, form.name, form.message.asked(), form.rounds.asked())
    )
    response.headers["Location"] = f"/api/v1/emergency-templates/{view.row.id}"
    return Template.of(view)


@router.get("/emergency-templates/{template_id}")
@asks(Action.READ)
async def get_template(desk: DeskDep, actor: ActorDep, template_id: IdPath) -> Template:
    """One template."""
    return Template.of(await break_glass.get_template(desk, actor, template_id))


@router.post("/emergency-templates/{template_id}/approval")
@asks(Action.EMERGENCY_LAUNCH)
async def approve_template(desk: DeskDep, actor: ActorDep, template_id: IdPath, form: TemplateApprovalForm) -> Template:
    """Be one of the two who approve exactly what was seen."""
    view = await break_glass.approve_template(
        desk, actor, template_id, form.proof.given(), content_hash=form.content_hash
    )
    return Template.of(view)


@router.post("/emergency-templates/{template_id}/retirement")
@asks(Action.EMERGENCY_PROPOSE)
async def retire_template(desk: DeskDep, actor: ActorDep, template_id: IdPath) -> Template:
    """Nobody raises it any more."""
    return Template.of(await break_glass.retire_template(desk, actor, template_id))


@router.post("/break-glass", status_code=201)
@asks(Action.EMERGENCY_LAUNCH)
async def break_the_glass(desk: DeskDep, actor: ActorDep, form: BreakGlassForm, response: Response) -> Emergency:
    """Sound an approved template alone, at once: loud, short, and reviewed by somebody else within a day."""
    request = BreakGlass(form.unit_id, form.template_id, form.reason, form.confirm, form.units, form.expires_min)
    view = await break_glass.break_glass(desk, actor, request, form.proof.given())
    response.headers["Location"] = f"/api/v1/emergencies/{view.row.id}"
    return Emergency.of(view)


@router.get("/break-glass-reviews")
@asks(Action.LOG_READ)
async def list_reviews(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    unit: IdQuery = None,
    is_open: Annotated[bool, Query(description="only what nobody has reviewed")] = False,
    overdue: Annotated[bool, Query(description="only what should have been reviewed by now")] = False,
) -> Page[Review]:
    """Every break-glass of what one may see, the newest first."""
    query = ReviewQuery(unit, is_open, overdue, paging.after, paging.fetch)
    now = desk.clock.now()
    found = await break_glass.list_reviews(desk, actor, query)
    return paging.page(found, key=lambda row: row.emergency_id, item=lambda row: Review.of(row, now))


@router.post("/break-glass-reviews/{emergency_id}/review")
@asks(Action.EMERGENCY_LAUNCH)
async def review_break_glass(desk: DeskDep, actor: ActorDep, emergency_id: IdPath, form: ReviewForm) -> Review:
    """Say, as somebody else, whether it was right."""
    row = await break_glass.review(desk, actor, emergency_id, finding=form.finding, note=form.note)
    return Review.of(row, desk.clock.now())
