"""Nodes over HTTP: enrolment by token (the one door a device uses without a person), the register, orders."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import Query, Response
from pydantic import Field, StringConstraints

from broadcast_server.api.deps import ActorDep, DeskDep
from broadcast_server.api.fields import Form, Id, IdPath, IdQuery, Secret, Shown
from broadcast_server.api.gate import Router, asks, by_secret
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.control import fleet
from broadcast_server.control.access import Action
from broadcast_server.control.fleet import Enrol, NewEnrolmentToken, NodeQuery, NodeView, Order, OrderVerb
from broadcast_server.store.tables import EnrolmentTokenRow, OutboxRow
from broadcast_server.store.words import OutboxState

router = Router(tags=["nodes"], route_class=IdempotentRoute)


# -- enrolment --------------------------------------------------------------------------------------------------------


class EnrolmentTokenForm(Form):
    """The right to enrol `uses` nodes for one unit, for so long."""

    unit_id: Id
    uses: Annotated[int, Field(ge=1, le=20_000)] = 1
    valid_for_s: Annotated[int, Field(ge=60, le=90 * 86_400)] = 86_400


class EnrolmentToken(Shown):
    """A token; what it is worth, never what it is."""

    id: str
    unit_id: str
    uses_left: int
    expires_at: datetime
    created_by: str

    @classmethod
    def of(cls, row: EnrolmentTokenRow) -> EnrolmentToken:
        """As callers see it."""
        return cls(
            id=row.id,
            unit_id=row.unit_id,
            uses_left=row.uses_left,
            expires_at=row.expires_at,
            created_by=row.created_by,
        )


class EnrolmentTokenMade(EnrolmentToken):
    """With its secret, which is told only here."""

    token: str


@router.post("/enrolment-tokens", status_code=201)
@asks(Action.NODE_ENROL)
async def create_enrolment_token(
    desk: DeskDep, actor: ActorDep, form: EnrolmentTokenForm, response: Response
) -> EnrolmentTokenMade:
    """Make a token for installers."""
    request = NewEnrolmentToken(form.unit_id, form.uses, timedelta(seconds=form.valid_for_s))
    made = await fleet.create_enrolment_token(desk, actor, request)
    response.headers["Cache-Control"] = "no-store"
    return EnrolmentTokenMade(**EnrolmentToken.of(made.token).model_dump(), token=made.secret)


@router.get("/enrolment-tokens")
@asks(Action.NODE_ENROL)
async def list_enrolment_tokens(
    desk: DeskDep,
    actor: ActorDep,
    unit_id: Annotated[str, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")],
) -> list[EnrolmentToken]:
    """Tokens of the unit that can still be used."""
    return [EnrolmentToken.of(row) for row in await fleet.list_enrolment_tokens(desk, actor, unit_id)]


@router.delete("/enrolment-tokens/{token_id}", status_code=204)
@asks(Action.NODE_ENROL)
async def void_enrolment_token(desk: DeskDep, actor: ActorDep, token_id: IdPath) -> None:
    """Make a token worthless."""
    await fleet.void_enrolment_token(desk, actor, token_id)


class EnrolForm(Form):
    """What a device says of itself. `public_key`: its Ed25519 key."""

    token: Secret
    public_key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    hardware: Annotated[str, StringConstraints(max_length=120)]
    firmware: Annotated[str, StringConstraints(max_length=120)]
    cluster_code: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")] | None = None


class BrokerAddress(Shown):
    """Where the node connects."""

    host: str
    port: int
    tls: bool
    ca_pem: str | None


class Enrolled(Shown):
    """What a device needs to begin; `password` and `asset_token` are told only here."""

    node_id: str
    cluster_id: str
    broker: BrokerAddress
    username: str
    password: str
    root_public_key: str
    path: list[str]
    assets_url: str
    asset_token: str
    server_time: datetime


@router.post("/nodes/enrol", status_code=201)
@by_secret()
async def enrol_node(desk: DeskDep, form: EnrolForm, response: Response) -> Enrolled:
    """Register a device; the token is its authority.

    With the `cluster_code` of a cluster that has a node, that node is replaced: its credentials are void.
    """
    request = Enrol(form.token, form.public_key, form.hardware, form.firmware, form.cluster_code)
    told = await fleet.enrol(desk, request)
    response.headers["Cache-Control"] = "no-store"
    return Enrolled(
        node_id=told.node_id,
        cluster_id=told.cluster_id,
        broker=BrokerAddress(
            host=told.broker["host"],
            port=told.broker["port"],
            tls=told.broker.get("tls", False),
            ca_pem=told.broker.get("ca_pem"),
        ),
        username=told.node_id,
        password=told.password,
        root_public_key=told.root_public_key,
        path=list(told.path),
        assets_url=told.assets_url,
        asset_token=told.asset_token,
        server_time=told.server_time,
    )


# -- the register -----------------------------------------------------------------------------------------------------


class NodeStatus(Shown):
    """The node's last word about itself. `since`: when `link` changed."""

    link: str
    since: datetime
    seen_at: datetime
    plan_sha256: str | None
    sounding: str | None
    body: dict[str, Any]


class NodeLog(Shown):
    """The device's own log at the server: all lines up to `through`, some up to `highest`, of which `missing` may lack.

    `forked_at`: since when another device is known to speak with this one's key.
    """

    through: int
    highest: int
    missing: int
    forked_at: datetime | None
    forked_line: int | None


class Node(Shown):
    """A networked controller; `status` null: never heard of; `log` null: it never told a numbered line."""

    id: str
    unit_id: str
    cluster_id: str
    cluster_name: str
    public_key: str
    hardware: str
    firmware: str
    enrolled_at: datetime
    retired_at: datetime | None
    status: NodeStatus | None
    log: NodeLog | None

    @classmethod
    def of(cls, view: NodeView) -> Node:
        """As callers see it."""
        row, status, log = view.node, view.status, view.log
        return cls(
            id=row.id,
            unit_id=row.unit_id,
            cluster_id=row.cluster_id,
            cluster_name=view.cluster.name,
            public_key=row.public_key,
            hardware=row.hardware,
            firmware=row.firmware,
            enrolled_at=row.enrolled_at,
            retired_at=row.retired_at,
            status=None
            if status is None
            else NodeStatus(
                link=status.link,
                since=status.since,
                seen_at=status.seen_at,
                plan_sha256=status.plan_sha256,
                sounding=status.sounding,
                body=status.body,
            ),
            log=None
            if log is None
            else NodeLog(
                through=log.through,
                highest=log.highest,
                missing=log.highest - log.through,
                forked_at=log.forked_at,
                forked_line=log.forked_line,
            ),
        )


@router.get("/nodes")
@asks(Action.READ)
async def list_nodes(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    within: IdQuery = None,
    cluster_id: IdQuery = None,
    link: Annotated[Literal["online", "offline"] | None, Query(description="by the node's last word")] = None,
    retired: Annotated[bool, Query(description="also those out of service")] = False,
) -> Page[Node]:
    """Nodes by id with their last status."""
    query = NodeQuery(within, cluster_id, link, retired, paging.after, paging.fetch)
    found = await fleet.list_nodes(desk, actor, query)
    return paging.page(found, key=lambda view: view.node.id, item=Node.of)


@router.get("/nodes/{node_id}")
@asks(Action.READ)
async def get_node(desk: DeskDep, actor: ActorDep, node_id: IdPath) -> Node:
    """One node, retired or not."""
    return Node.of(await fleet.get_node(desk, actor, node_id))


@router.delete("/nodes/{node_id}")
@asks(Action.NODE_RETIRE)
async def retire_node(desk: DeskDep, actor: ActorDep, node_id: IdPath) -> Node:
    """Take a node out of service; its cluster stays."""
    return Node.of(await fleet.retire_node(desk, actor, node_id))


# -- orders -----------------------------------------------------------------------------------------------------------


class OrderForm(Form):
    """Do this once, before it expires. `seconds`: how long it sounds or blinks."""

    verb: OrderVerb
    seconds: Annotated[int, Field(ge=0, le=60)] = 5
    expires_in_s: Annotated[int, Field(ge=1, le=600)] = 60


class NodeOrder(Shown):
    """An order and what became of it."""

    id: str
    node_id: str
    verb: str
    seconds: int
    state: OutboxState
    attempts: int
    created_at: datetime
    expires_at: datetime
    acknowledged_at: datetime | None

    @classmethod
    def of(cls, row: OutboxRow) -> NodeOrder:
        """As callers see it."""
        return cls(
            id=row.id,
            node_id=row.node_id,
            verb=row.body["verb"],
            seconds=row.body["seconds"],
            state=row.state,
            attempts=row.attempts,
            created_at=row.created_at,
            expires_at=row.expires_at,
            acknowledged_at=row.acknowledged_at,
        )


@router.post("/nodes/{node_id}/orders", status_code=202)
@asks(Action.NODE_ORDER, Action.NODE_RETIRE)
async def order_node(desk: DeskDep, actor: ActorDep, node_id: IdPath, form: OrderForm) -> NodeOrder:
    """Order one node to identify itself, sound a test tone or reboot. A tone obeys the quiet hours."""
    request = Order(node_id, form.verb, form.seconds, timedelta(seconds=form.expires_in_s))
    return NodeOrder.of(await fleet.order_node(desk, actor, request))


@router.get("/nodes/{node_id}/orders")
@asks(Action.READ)
async def list_node_orders(desk: DeskDep, actor: ActorDep, node_id: IdPath) -> list[NodeOrder]:
    """The node's latest orders, newest first."""
    return [NodeOrder.of(row) for row in await fleet.list_orders(desk, actor, node_id)]
