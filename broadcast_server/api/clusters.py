"""Clusters (cụm loa) and groups of them over HTTP."""

from __future__ import annotations

from datetime import datetime, time
from typing import Annotated, Any

from fastapi import Query, Response
from pydantic import Field, StringConstraints

from broadcast_server.api.deps import ActorDep, DeskDep, IfMatchDep, set_etag
from broadcast_server.api.fields import Form, Id, IdPath, IdQuery, Name, SearchQuery, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.api.units import QuietForm
from broadcast_server.control import fleet
from broadcast_server.control.access import Action
from broadcast_server.control.fleet import (
    ClusterChange,
    ClusterConfig,
    ClusterQuery,
    ClusterView,
    GroupView,
    NewCluster,
    VolumeStep,
)
from broadcast_server.domain.policy import QuietHours

router = Router(tags=["clusters"], route_class=IdempotentRoute)

Latitude = Annotated[float, Field(ge=-90, le=90)]
Longitude = Annotated[float, Field(ge=-180, le=180)]


class VolumeForm(Form):
    """From this local minute of the day on, this gain, until the next step."""

    from_minute: Annotated[int, Field(ge=0, lt=1440)]
    gain_db: Annotated[float, Field(ge=-60, le=12)]


class ConfigForm(Form):
    """The cluster's own settings. `quiet`: hours of silence beside the station's (a school, a hospital).

    `delay_trim_ms`: how much later it sounds, to meet its neighbours at the listener's ear. `stagger_slot`: its turn
    among neighbours that would talk over each other; what is recorded begins `stagger_slot x stagger_s` later here.
    """

    volume: Annotated[tuple[VolumeForm, ...], Field(max_length=48)] = ()
    delay_trim_ms: Annotated[int, Field(ge=-2000, le=2000)] = 0
    quiet: Annotated[tuple[QuietForm, ...], Field(max_length=10)] = ()
    alert_gain_db: Annotated[float, Field(ge=-20, le=12)] | None = None
    stagger_slot: Annotated[int, Field(ge=0, le=7)] = 0

    def config(self) -> ClusterConfig:
        """For the verb."""
        return ClusterConfig(
            tuple(VolumeStep(step.from_minute, step.gain_db) for step in self.volume),
            self.delay_trim_ms,
            tuple(QuietHours(time.fromisoformat(one.start), time.fromisoformat(one.end)) for one in self.quiet),
            self.alert_gain_db,
            self.stagger_slot,
        )


class ClusterForm(Form):
    """A cluster to enter. `code`: short, unique in its unit; the next C01, C02, … if left out."""

    unit_id: Id
    name: Name | None = None
    code: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")] | None = None
    latitude: Latitude | None = None
    longitude: Longitude | None = None
    config: ConfigForm = ConfigForm()


class ClusterPatch(Form):
    """What changes; what is left out stays."""

    name: Name | None = None
    latitude: Latitude | None = None
    longitude: Longitude | None = None
    config: ConfigForm | None = None


class Cluster(Shown):
    """The thing in the place; `node_id`: the controller that drives it now."""

    id: str
    unit_id: str
    code: str
    name: str
    latitude: float | None
    longitude: float | None
    config: dict[str, Any]
    node_id: str | None
    created_at: datetime
    retired_at: datetime | None
    version: int

    @classmethod
    def of(cls, view: ClusterView) -> Cluster:
        """As callers see it."""
        row = view.cluster
        return cls(
            id=row.id,
            unit_id=row.unit_id,
            code=row.code,
            name=row.name,
            latitude=row.latitude,
            longitude=row.longitude,
            config=row.config,
            node_id=view.node_id,
            created_at=row.created_at,
            retired_at=row.retired_at,
            version=row.version,
        )


@router.get("/clusters")
@asks(Action.READ)
async def list_clusters(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    within: IdQuery = None,
    name: SearchQuery = None,
    retired: Annotated[bool, Query(description="also those out of service")] = False,
) -> Page[Cluster]:
    """Clusters by id: in the subtree of `within`, by part of the name or by code."""
    query = ClusterQuery(within, name, retired, paging.after, paging.fetch)
    found = await fleet.list_clusters(desk, actor, query)
    return paging.page(found, key=lambda view: view.cluster.id, item=Cluster.of)


@router.post("/clusters", status_code=201)
@asks(Action.CLUSTER_EDIT)
async def create_cluster(desk: DeskDep, actor: ActorDep, form: ClusterForm, response: Response) -> Cluster:
    """Enter a cluster."""
    request = NewCluster(form.unit_id, form.name, form.code, form.latitude, form.longitude, form.config.config())
    made = await fleet.create_cluster(desk, actor, request)
    set_etag(response, made.cluster.version)
    response.headers["Location"] = f"/api/v1/clusters/{made.cluster.id}"
    return Cluster.of(made)


@router.get("/clusters/{cluster_id}")
@asks(Action.READ)
async def get_cluster(desk: DeskDep, actor: ActorDep, cluster_id: IdPath, response: Response) -> Cluster:
    """One cluster."""
    found = await fleet.get_cluster(desk, actor, cluster_id)
    set_etag(response, found.cluster.version)
    return Cluster.of(found)


@router.patch("/clusters/{cluster_id}")
@asks(Action.CLUSTER_EDIT, Action.VOLUME_SET)
async def update_cluster(
    desk: DeskDep, actor: ActorDep, cluster_id: IdPath, form: ClusterPatch, version: IfMatchDep, response: Response
) -> Cluster:
    """Change a cluster."""
    config = None if form.config is None else form.config.config()
    change = ClusterChange(form.name, form.latitude, form.longitude, config)
    found = await fleet.update_cluster(desk, actor, cluster_id, change, version=version)
    set_etag(response, found.cluster.version)
    return Cluster.of(found)


@router.delete("/clusters/{cluster_id}")
@asks(Action.CLUSTER_EDIT)
async def retire_cluster(
    desk: DeskDep, actor: ActorDep, cluster_id: IdPath, version: IfMatchDep, response: Response
) -> Cluster:
    """Take a cluster out of service, its node with it; its play log stays."""
    found = await fleet.retire_cluster(desk, actor, cluster_id, version=version)
    set_etag(response, found.cluster.version)
    return Cluster.of(found)


# -- groups -----------------------------------------------------------------------------------------------------------

Members = Annotated[tuple[Id, ...], Field(max_length=5000)]


class GroupForm(Form):
    """A named set of clusters that lie in the unit's subtree."""

    unit_id: Id
    name: Name
    cluster_ids: Members = ()


class GroupPatch(Form):
    """What changes; `cluster_ids` says anew who is in it."""

    name: Name | None = None
    cluster_ids: Members | None = None


class Group(Shown):
    """A named set of clusters (nhóm loa)."""

    id: str
    unit_id: str
    name: str
    cluster_ids: list[str]
    version: int

    @classmethod
    def of(cls, view: GroupView) -> Group:
        """As callers see it."""
        row = view.group
        return cls(
            id=row.id, unit_id=row.unit_id, name=row.name, cluster_ids=list(view.cluster_ids), version=row.version
        )


@router.get("/groups")
@asks(Action.READ)
async def list_groups(desk: DeskDep, actor: ActorDep, paging: PagingDep, within: IdQuery = None) -> Page[Group]:
    """Groups by id, in the subtree of `within`."""
    found = await fleet.list_groups(desk, actor, within=within, after=paging.after, limit=paging.fetch)
    return paging.page(found, key=lambda view: view.group.id, item=Group.of)


@router.post("/groups", status_code=201)
@asks(Action.CLUSTER_EDIT)
async def create_group(desk: DeskDep, actor: ActorDep, form: GroupForm, response: Response) -> Group:
    """Name a set of clusters."""
    made = await fleet.create_group(desk, actor, form.unit_id, form.name, form.cluster_ids)
    set_etag(response, made.group.version)
    response.headers["Location"] = f"/api/v1/groups/{made.group.id}"
    return Group.of(made)


@router.get("/groups/{group_id}")
@asks(Action.READ)
async def get_group(desk: DeskDep, actor: ActorDep, group_id: IdPath, response: Response) -> Group:
    """One group."""
    found = await fleet.get_group(desk, actor, group_id)
    set_etag(response, found.group.version)
    return Group.of(found)


@router.patch("/groups/{group_id}")
@asks(Action.CLUSTER_EDIT)
async def update_group(
    desk: DeskDep, actor: ActorDep, group_id: IdPath, form: GroupPatch, version: IfMatchDep, response: Response
) -> Group:
    """Rename a group or say anew who is in it."""
    found = await fleet.update_group(
        desk, actor, group_id, name=form.name, cluster_ids=form.cluster_ids, version=version
    )
    set_etag(response, found.group.version)
    return Group.of(found)
