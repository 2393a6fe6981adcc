"""Obligations (bắt buộc tiếp âm) over HTTP: lay, lift, and how far they were kept."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

from fastapi import Query, Response
from pydantic import Field

from broadcast_server.api.deps import ActorDep, DeskDep
from broadcast_server.api.feeds import Basis, Language
from broadcast_server.api.fields import Form, Id, IdPath, IdQuery, Instant, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.control import feeds, obligations
from broadcast_server.control.access import Action
from broadcast_server.control.feeds import NewObligation, ObligationView
from broadcast_server.control.obligations import ClusterFulfilment, FulfilmentQuery
from broadcast_server.domain.clock import Window
from broadcast_server.domain.errors import Invalid
from broadcast_server.domain.fulfilment import Period
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.store.words import ContentKind

router = Router(tags=["feeds"], route_class=IdempotentRoute)

_MS: Final = timedelta(milliseconds=1)


class TargetForm(Form):
    """Where it sounds."""

    kind: TargetKind
    ref: Id


class ObligationForm(Form):
    """A unit and all below it must carry this feed or bulletin; it places a required schedule.

    `rule`: as in schedules; `length_ms`: of one relay, needed for a feed; `targets` left out: the whole unit.
    """

    unit_id: Id
    content_kind: Literal[ContentKind.FEED, ContentKind.BULLETIN]
    content_id: Id
    rule: dict[str, Any]
    basis: Basis
    length_ms: Annotated[int, Field(ge=1_000, le=86_400_000)] | None = None
    valid_from: Instant | None = None
    valid_to: Instant | None = None
    targets: Annotated[tuple[TargetForm, ...], Field(min_length=1, max_length=1000)] | None = None
    language: Language = "vie"


class Obligation(Shown):
    """What must be carried, on what basis, and the schedule it placed."""

    id: str
    unit_id: str
    content_kind: ContentKind
    content_id: str
    schedule_id: str
    basis: str
    valid_from: datetime
    valid_to: datetime | None
    is_in_force: bool

    @classmethod
    def of(cls, view: ObligationView) -> Obligation:
        """As callers see it."""
        row = view.obligation
        return cls(
            id=row.id,
            unit_id=row.unit_id,
            content_kind=row.content_kind,
            content_id=row.content_id,
            schedule_id=row.schedule_id,
            basis=row.basis,
            valid_from=row.valid_from,
            valid_to=row.valid_to,
            is_in_force=view.schedule.state == "active",
        )


@router.get("/obligations")
@asks(Action.READ)
async def list_obligations(
    desk: DeskDep, actor: ActorDep, paging: PagingDep, for_unit: IdQuery = None
) -> Page[Obligation]:
    """Obligations by id; `for_unit`: those it must carry."""
    found = await feeds.list_obligations(desk, actor, for_unit=for_unit, after=paging.after, limit=paging.fetch)
    return paging.page(found, key=lambda view: view.obligation.id, item=Obligation.of)


@router.post("/obligations", status_code=201)
@asks(Action.OBLIGE)
async def lay_obligation(desk: DeskDep, actor: ActorDep, form: ObligationForm, response: Response) -> Obligation:
    """Oblige a unit and all below it."""
    made = await feeds.oblige(
        desk,
        actor,
        NewObligation(
            form.unit_id,
            form.content_kind,
            form.content_id,
            form.rule,
            form.basis,
            None if form.length_ms is None else timedelta(milliseconds=form.length_ms),
            form.valid_from,
            form.valid_to,
            None if form.targets is None else tuple(Target(one.kind, one.ref) for one in form.targets),
            form.language,
        ),
    )
    response.headers["Location"] = f"/api/v1/obligations/{made.obligation.id}"
    return Obligation.of(made)


@router.get("/obligations/{obligation_id}")
@asks(Action.READ)
async def get_obligation(desk: DeskDep, actor: ActorDep, obligation_id: IdPath) -> Obligation:
    """One obligation."""
    return Obligation.of(await feeds.get_obligation(desk, actor, obligation_id))


@router.delete("/obligations/{obligation_id}")
@asks(Action.OBLIGE)
async def lift_obligation(desk: DeskDep, actor: ActorDep, obligation_id: IdPath) -> Obligation:
    """End an obligation now, its schedule with it."""
    return Obligation.of(await feeds.lift_obligation(desk, actor, obligation_id))


class ShareShown(Shown):
    """One period at one cluster: what had to be heard, what was, and what stood in for it, in milliseconds."""

    since: datetime
    until: datetime
    required_ms: int
    heard_ms: int
    short_ms: int
    substituted_ms: int


class ClusterFulfilled(Shown):
    """How far one cluster kept the obligation."""

    cluster_id: str
    unit_id: str
    required_ms: int
    heard_ms: int
    periods: list[ShareShown]

    @classmethod
    def of(cls, told: ClusterFulfilment) -> ClusterFulfilled:
        """As callers see it."""
        shares = [
            ShareShown(
                since=one.window.start,
                until=one.window.end,
                required_ms=one.required // _MS,
                heard_ms=one.heard // _MS,
                short_ms=one.short // _MS,
                substituted_ms=one.substituted // _MS,
            )
            for one in told.shares
        ]
        return cls(
            cluster_id=told.cluster_id,
            unit_id=told.unit_id,
            required_ms=sum(one.required_ms for one in shares),
            heard_ms=sum(one.heard_ms for one in shares),
            periods=shares,
        )


@router.get("/obligations/{obligation_id}/fulfilment")
@asks(Action.LOG_READ)
async def get_fulfilment(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    obligation_id: IdPath,
    since: Annotated[Instant, Query(alias="from")],
    until: Annotated[Instant, Query(alias="to")],
    period: Annotated[Period, Query()] = Period.DAY,
) -> Page[ClusterFulfilled]:
    """Seconds heard of the right feed, cluster by cluster, against what was required; never what was scheduled."""
    if until <= since:
        raise Invalid("empty_validity", field="to", fix="until_after_from")
    query = FulfilmentQuery(obligation_id, Window(since, until), period, paging.after, paging.fetch)
    found = await obligations.fulfilment(desk, actor, query)
    return paging.page(found, key=lambda one: one.cluster_id, item=ClusterFulfilled.of)
