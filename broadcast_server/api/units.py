"""Places over HTTP: units of the dated tree, kinds of units, station policies, the import of Vietnam."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

from fastapi import Query, Response
from pydantic import Field, StringConstraints

from broadcast_server.api.deps import ActorDep, DeskDep, IfMatchDep, set_etag
from broadcast_server.api.fields import Day, Form, Id, IdPath, IdQuery, Name, SearchQuery, Shown
from broadcast_server.api.gate import Router, asks, signed_in
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.control import places
from broadcast_server.control.access import Action
from broadcast_server.control.places import MoveUnit, NewUnit, PolicyView, UnitQuery, UnitView
from broadcast_server.domain.placement import Placing
from broadcast_server.domain.policy import DEFAULT_APPROVE_PLACEMENT
from broadcast_server.store.tables import UnitKindRow
from speaker_protocol.rules import BulletinClass

router = Router(tags=["units"], route_class=IdempotentRoute)

OnQuery = Annotated[Day | None, Query(description="as the tree lay on this local date; today if left out")]
Word = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


# -- units ------------------------------------------------------------------------------------------------------------


class Unit(Shown):
    """A place (địa bàn). `path`: ids, itself first, the root last."""

    id: str
    kind: str
    name: str
    parent_id: str | None
    path: list[str]
    version: int

    @classmethod
    def of(cls, view: UnitView) -> Unit:
        """As callers see it."""
        return cls(
            id=view.id,
            kind=view.kind,
            name=view.name,
            parent_id=view.parent_id,
            path=list(view.path),
            version=view.version,
        )


class UnitForm(Form):
    """A place to make."""

    kind: Word = Field(examples=["commune"])
    name: Name = Field(examples=["Xã Yên Thành"])
    parent_id: Id | None = None
    id: Id | None = Field(None, description="administrative code; made if left out", examples=["17507"])
    valid_from: Day | None = None


class RenameForm(Form):
    """Another name."""

    name: Name


class MoveForm(Form):
    """Under another parent from a local date on; null makes it a root."""

    parent_id: Id | None
    on: Day


class ImportResult(Shown):
    """What was found and how much of it was new."""

    provinces: int
    communes: int
    new_units: int
    new_links: int


@router.get("/units")
@signed_in
async def list_units(
    desk: DeskDep,
    _actor: ActorDep,
    paging: PagingDep,
    parent_id: IdQuery = None,
    within: IdQuery = None,
    kind: Annotated[str | None, Query(pattern=r"^[a-z][a-z0-9_]{0,39}$")] = None,
    name: SearchQuery = None,
    on: OnQuery = None,
) -> Page[Unit]:
    """Places by id: directly in `parent_id`, under `within`, of a kind, by part of the name."""
    query = UnitQuery(parent_id, within, kind, name, on, paging.after, paging.fetch)
    return paging.page(await places.list_units(desk, query), key=lambda unit: unit.id, item=Unit.of)


@router.post("/units", status_code=201)
@asks(Action.PLACE_EDIT)
async def create_unit(desk: DeskDep, actor: ActorDep, form: UnitForm, response: Response) -> Unit:
    """Make a place."""
    request = NewUnit(form.kind, form.name, form.parent_id, form.id, form.valid_from)
    made = await places.create_unit(desk, actor, request)
    set_etag(response, made.version)
    response.headers["Location"] = f"/api/v1/units/{made.id}"
    return Unit.of(made)


@router.post("/units/import")
@asks(Action.PLACE_EDIT)
async def import_units(desk: DeskDep, actor: ActorDep) -> ImportResult:
    """Add the 34 provinces and 3 321 communes in force since 1 July 2025; what is there is left alone."""
    told = await places.import_vietnam(desk, actor)
    return ImportResult(
        provinces=told.provinces, communes=told.communes, new_units=told.new_units, new_links=told.new_links
    )


@router.get("/units/{unit_id}")
@signed_in
async def get_unit(desk: DeskDep, _actor: ActorDep, unit_id: IdPath, response: Response, on: OnQuery = None) -> Unit:
    """One place."""
    found = await places.get_unit(desk, unit_id, on=on)
    set_etag(response, found.version)
    return Unit.of(found)


@router.patch("/units/{unit_id}")
@asks(Action.PLACE_EDIT)
async def rename_unit(
    desk: DeskDep, actor: ActorDep, unit_id: IdPath, form: RenameForm, version: IfMatchDep, response: Response
) -> Unit:
    """Give a place another name."""
    found = await places.rename_unit(desk, actor, unit_id, form.name, version=version)
    set_etag(response, found.version)
    return Unit.of(found)


@router.post("/units/{unit_id}/moves")
@asks(Action.PLACE_EDIT)
async def move_unit(
    desk: DeskDep, actor: ActorDep, unit_id: IdPath, form: MoveForm, version: IfMatchDep, response: Response
) -> Unit:
    """Put a place under another from a date on; the past stays as it was."""
    found = await places.move_unit(desk, actor, MoveUnit(unit_id, form.parent_id, form.on, version))
    set_etag(response, found.version)
    return Unit.of(found)


# -- kinds ------------------------------------------------------------------------------------------------------------


class UnitKind(Shown):
    """A kind of place; from `closed_on` on there are none."""

    code: str
    name_vi: str
    name_en: str
    closed_on: date | None

    @classmethod
    def of(cls, row: UnitKindRow) -> UnitKind:
        """As callers see it."""
        return cls(code=row.code, name_vi=row.name_vi, name_en=row.name_en, closed_on=row.closed_on)


class CloseForm(Form):
    """From this local date on there are no units of the kind."""

    on: Day


class Closed(Shown):
    """Feeds that now end on that date."""

    expired_feed_ids: list[str]


@router.get("/unit-kinds")
@signed_in
async def list_unit_kinds(desk: DeskDep, _actor: ActorDep) -> list[UnitKind]:
    """Every kind of place, closed ones too."""
    return [UnitKind.of(row) for row in await places.list_kinds(desk)]


@router.post("/unit-kinds/{code}/closing")
@asks(Action.PLACE_EDIT)
async def close_unit_kind(desk: DeskDep, actor: ActorDep, code: IdPath, form: CloseForm) -> Closed:
    """Close a kind: what lay in its units moves one up, their feeds expire. Only the machine's operator may."""
    return Closed(expired_feed_ids=await places.close_kind(desk, actor, code, form.on))


# -- policies ---------------------------------------------------------------------------------------------------------

Minute = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]


class QuietForm(Form):
    """Every day `[from, to)` in local wall time; crossing midnight is normal; equal: none."""

    start: Minute = Field(alias="from", examples=["22:00"])
    end: Minute = Field(alias="to", examples=["05:00"])


class SuspensionForm(Form):
    """Days, both included, on which only `allowed` classes sound."""

    first: Day
    last: Day
    allowed: tuple[BulletinClass, ...] = (BulletinClass.EMERGENCY,)
    reason: Annotated[str, StringConstraints(max_length=300, pattern=r"^[^\x00-\x1f]*$")] = ""


class PolicyForm(Form):
    """A station's regulations (quy chế). Maxima are of sound, emergencies not counted; null: no maximum."""

    quiet: QuietForm = QuietForm.model_validate({"from": "22:00", "to": "05:00"})
    cluster_quiet: dict[Id, tuple[QuietForm, ...]] = Field(default_factory=dict)
    max_minutes_per_session: Annotated[int, Field(ge=1, le=1440)] | None = None
    max_minutes_per_day: Annotated[int, Field(ge=1, le=1440)] | None = None
    max_gain_db: Annotated[float, Field(ge=-60, le=0)] = 0.0
    max_live_minutes: Annotated[int, Field(ge=1, le=120)] = 30
    max_delegated_minutes: Annotated[int, Field(ge=1, le=30, description="of a hamlet's head")] = 10
    stagger_s: Annotated[int, Field(ge=0, le=30, description="seconds between the slots of clusters")] = 0
    suspensions: Annotated[tuple[SuspensionForm, ...], Field(max_length=200)] = ()
    self_approval: bool = Field(
        default=False, description="who wrote a thông thường may approve it; not yours to switch on where you write"
    )
    approve_placement: Annotated[
        tuple[Placing, ...],
        Field(max_length=3, description="ways onto the air that wait for somebody who may approve"),
    ] = tuple(sorted(DEFAULT_APPROVE_PLACEMENT))
    filler: Id | None = Field(default=None, description="approved bulletin, looped while a relay has lost its source")


class Policy(Shown):
    """The policy in force and whose it is; `from_unit_id` null: the law's default."""

    unit_id: str
    from_unit_id: str | None
    body: dict[str, Any]
    version: int

    @classmethod
    def of(cls, view: PolicyView) -> Policy:
        """As callers see it."""
        return cls(unit_id=view.unit_id, from_unit_id=view.from_unit_id, body=view.body, version=view.version)


@router.get("/units/{unit_id}/policy")
@asks(Action.READ)
async def get_policy(desk: DeskDep, actor: ActorDep, unit_id: IdPath, response: Response) -> Policy:
    """The policy in force at a place, its own or inherited."""
    found = await places.get_policy(desk, actor, unit_id)
    set_etag(response, found.version)
    return Policy.of(found)


@router.put("/units/{unit_id}/policy")
@asks(Action.POLICY_EDIT)
async def put_policy(
    desk: DeskDep, actor: ActorDep, unit_id: IdPath, form: PolicyForm, version: IfMatchDep, response: Response
) -> Policy:
    """Write the place's own policy; all below without one of their own follow it."""
    body = form.model_dump(mode="json", by_alias=True)
    found = await places.put_policy(desk, actor, unit_id, body, version=version)
    set_etag(response, found.version)
    return Policy.of(found)


@router.delete("/units/{unit_id}/policy")
@asks(Action.POLICY_EDIT)
async def drop_policy(
    desk: DeskDep, actor: ActorDep, unit_id: IdPath, version: IfMatchDep, response: Response
) -> Policy:
    """Take the place's own policy away; the answer is the inherited one."""
    found = await places.drop_policy(desk, actor, unit_id, version=version)
    set_etag(response, found.version)
    return Policy.of(found)
