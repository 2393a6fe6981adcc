"""Nodes over HTTP: the register, how one is let sound or silenced, orders."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import Field, StringConstraints

from broadcast_server.api.deps import ActorDep, DeskDep
from broadcast_server.api.fields import Form, IdPath, IdQuery, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.control import devices, fleet
from broadcast_server.control.access import Action
from broadcast_server.control.devices import BindingView
from broadcast_server.control.fleet import NodeQuery, NodeView, Order, OrderVerb
from broadcast_server.store.tables import OutboxRow
from broadcast_server.store.words import NodeState, OutboxState

router = Router(tags=["nodes"], route_class=IdempotentRoute)


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
    """A networked controller; `status` null: never heard of; `log` null: it never told a numbered line.

    `state_reason`: why it is in quarantine, a code or an officer's words; on an active node it is an alarm, too.
    `bound_at`: when somebody on site typed in the code it spoke.
    """

    id: str
    state: NodeState
    state_reason: str | None
    serial: str | None
    unit_id: str
    cluster_id: str
    cluster_name: str
    public_key: str
    hardware: str
    firmware: str
    enrolled_at: datetime
    retired_at: datetime | None
    bound_at: datetime | None
    certificate_until: datetime | None
    status: NodeStatus | None
    log: NodeLog | None

    @classmethod
    def of(cls, view: NodeView) -> Node:
        """As callers see it."""
        row, status, log = view.node, view.status, view.log
        return cls(
            id=row.id,
            state=row.state,
            state_reason=row.state_reason,
            serial=row.serial,
            unit_id=row.unit_id,
            cluster_id=row.cluster_id,
            cluster_name=view.cluster.name,
            public_key=row.public_key,
            hardware=row.hardware,
            firmware=row.firmware,
            enrolled_at=row.enrolled_at,
            retired_at=row.retired_at,
            bound_at=view.bound_at,
            certificate_until=view.certificate_until,
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
    state: Annotated[NodeState | None, Query(description="only those in this state")] = None,
    retired: Annotated[bool, Query(description="also those out of service")] = False,
) -> Page[Node]:
    """Nodes by id with their last status."""
    query = NodeQuery(within, cluster_id, link, state, retired, paging.after, paging.fetch)
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


# -- let sound, and silenced ------------------------------------------------------------------------------------------


class Binding(Shown):
    """How the binding check of a node stands: the code itself is heard on site and nowhere else."""

    node_id: str
    order_id: str
    expires_at: datetime
    tries_left: int
    confirmed_at: datetime | None

    @classmethod
    def of(cls, view: BindingView) -> Binding:
        """As callers see it."""
        return cls(
            node_id=view.node_id,
            order_id=view.order_id,
            expires_at=view.expires_at,
            tries_left=view.tries_left,
            confirmed_at=view.confirmed_at,
        )


class BindingAnswer(Form):
    """The four digits that were heard."""

    code: Annotated[str, StringConstraints(pattern=r"^[0-9]{4}$")]


class Because(Form):
    """Why."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=120)]


@router.post("/nodes/{node_id}/binding", status_code=202)
@asks(Action.NODE_ENROL)
async def ask_node_binding(desk: DeskDep, actor: ActorDep, node_id: IdPath) -> Binding:
    """Let the node speak a fresh code, softly; whoever stands before it types it in within five minutes."""
    return Binding.of(await devices.ask_binding(desk, actor, node_id))


@router.post("/nodes/{node_id}/binding/answer")
@asks(Action.NODE_ENROL)
async def answer_node_binding(desk: DeskDep, actor: ActorDep, node_id: IdPath, form: BindingAnswer) -> Binding:
    """What was heard; three tries."""
    return Binding.of(await devices.answer_binding(desk, actor, node_id, form.code))


@router.post("/nodes/{node_id}/approval")
@asks(Action.NODE_APPROVE)
async def approve_node(desk: DeskDep, actor: ActorDep, node_id: IdPath) -> Node:
    """End its probation: it sounds from now on, and the node it replaces is retired. Not by who typed the code."""
    return Node.of(await devices.approve_node(desk, actor, node_id))


@router.post("/nodes/{node_id}/quarantine")
@asks(Action.NODE_RETIRE)
async def quarantine_node(desk: DeskDep, actor: ActorDep, node_id: IdPath, form: Because) -> Node:
    """Silence it at once; its plan is empty and its assets are closed to it until it is released."""
    return Node.of(await devices.quarantine_node(desk, actor, node_id, form.reason))


@router.post("/nodes/{node_id}/release")
@asks(Action.NODE_APPROVE)
async def release_node(desk: DeskDep, actor: ActorDep, node_id: IdPath, form: Because) -> Node:
    """Out of quarantine, after another binding check."""
    return Node.of(await devices.release_node(desk, actor, node_id, form.reason))


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
