"""Programmes (chương trình) over HTTP: put together, render to one piece of audio with cues, approve."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Response
from pydantic import Field

from broadcast_server.api.bulletins import HeardForm, Language, RejectionForm, Sha256, Title
from broadcast_server.api.deps import ActorDep, DeskDep, IfMatchDep, set_etag
from broadcast_server.api.fields import Form, Id, IdPath, IdQuery, SearchQuery, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.control import approvals, library
from broadcast_server.control.access import Action
from broadcast_server.control.library import ItemRole, LibraryQuery, NewProgramme, ProgrammeItem
from broadcast_server.store.tables import ProgrammeRow

router = Router(tags=["programmes"], route_class=IdempotentRoute)


class ItemForm(Form):
    """A part: a bulletin (its approved version) or an asset."""

    role: ItemRole = ItemRole.ITEM
    bulletin_id: Id | None = None
    asset_sha256: Sha256 | None = None
    language: Language = "vie"

    def asked(self) -> ProgrammeItem:
        """As the verb takes it."""
        return ProgrammeItem(self.role, self.bulletin_id, self.asset_sha256, self.language)


Items = Annotated[list[ItemForm], Field(min_length=1, max_length=100)]


class ProgrammeForm(Form):
    """A programme to put together."""

    unit_id: Id
    title: Title
    items: Items


class ProgrammePatch(Form):
    """What changes; other items void audio and approval."""

    title: Title | None = None
    items: Items | None = None


class Programme(Shown):
    """A programme. It may sound when `approved_hash` equals `content_hash`."""

    id: str
    unit_id: str
    title: str
    items: list[dict[str, Any]]
    asset_sha256: str | None
    content_hash: str | None
    submitted_hash: str | None
    approved_hash: str | None
    approved_by: str | None
    approved_at: datetime | None
    key: str | None
    created_by: str
    created_at: datetime
    version: int


@router.get("/programmes")
@asks(Action.READ)
async def list_programmes(
    desk: DeskDep, actor: ActorDep, paging: PagingDep, unit: IdQuery = None, title: SearchQuery = None
) -> Page[Programme]:
    """Programmes, the newest first: under a unit, by part of the title."""
    query = LibraryQuery(unit, title, None, paging.after, paging.fetch)
    found = await library.list_programmes(desk, actor, query)
    return paging.page(found, key=lambda row: row.id, item=_of)


@router.post("/programmes", status_code=201)
@asks(Action.PROGRAMME_WRITE)
async def create_programme(desk: DeskDep, actor: ActorDep, form: ProgrammeForm, response: Response) -> Programme:
    """Put a programme together; rendering makes its audio."""
    request = NewProgramme(form.unit_id, form.title, tuple(item.asked() for item in form.items))
    row = await library.create_programme(desk, actor, request)
    response.headers["Location"] = f"/api/v1/programmes/{row.id}"
    return _shown(row, response)


@router.get("/programmes/{programme_id}")
@asks(Action.READ)
async def get_programme(desk: DeskDep, actor: ActorDep, programme_id: IdPath, response: Response) -> Programme:
    """One programme."""
    return _shown(await library.get_programme(desk, actor, programme_id), response)


@router.patch("/programmes/{programme_id}")
@asks(Action.PROGRAMME_WRITE)
async def change_programme(
    desk: DeskDep,
    actor: ActorDep,
    programme_id: IdPath,
    form: ProgrammePatch,
    if_match: IfMatchDep,
    response: Response,
) -> Programme:
    """Change title or items."""
    items = None if form.items is None else tuple(item.asked() for item in form.items)
    row = await library.change_programme(desk, actor, programme_id, title=form.title, items=items, version=if_match)
    return _shown(row, response)


@router.post("/programmes/{programme_id}/rendering")
@asks(Action.PROGRAMME_WRITE)
async def render_programme(desk: DeskDep, actor: ActorDep, programme_id: IdPath, response: Response) -> Programme:
    """Make one piece of audio of all items, with a cue for each."""
    return _shown(await library.render_programme(desk, actor, programme_id), response)


@router.post("/programmes/{programme_id}/submission")
@asks(Action.PROGRAMME_WRITE)
async def submit_programme(
    desk: DeskDep, actor: ActorDep, programme_id: IdPath, form: HeardForm, response: Response
) -> Programme:
    """Lay a rendered programme before somebody who may approve it."""
    row = await approvals.submit_programme(desk, actor, programme_id, content_hash=form.content_hash)
    return _shown(row, response)


@router.post("/programmes/{programme_id}/withdrawal")
@asks(Action.PROGRAMME_WRITE)
async def withdraw_programme(desk: DeskDep, actor: ActorDep, programme_id: IdPath, response: Response) -> Programme:
    """Take back what was submitted."""
    return _shown(await approvals.withdraw_programme(desk, actor, programme_id), response)


@router.post("/programmes/{programme_id}/approval")
@asks(Action.PROGRAMME_APPROVE)
async def approve_programme(
    desk: DeskDep, actor: ActorDep, programme_id: IdPath, form: HeardForm, response: Response
) -> Programme:
    """Approve exactly what was heard, as somebody else than who put it together."""
    return _shown(await approvals.approve_programme(desk, actor, programme_id, form.content_hash), response)


@router.post("/programmes/{programme_id}/rejection")
@asks(Action.PROGRAMME_APPROVE)
async def reject_programme(
    desk: DeskDep, actor: ActorDep, programme_id: IdPath, form: RejectionForm, response: Response
) -> Programme:
    """Say no to what was submitted, and why."""
    row = await approvals.reject_programme(
        desk, actor, programme_id, content_hash=form.content_hash, reason=form.reason
    )
    return _shown(row, response)


def _of(row: ProgrammeRow) -> Programme:
    return Programme.model_validate(row, from_attributes=True)


def _shown(row: ProgrammeRow, response: Response) -> Programme:
    set_etag(response, row.version)
    return _of(row)
