"""Verbs on the fleet: clusters and groups, the register of nodes, their retirement, orders to single nodes.

A maintainer must not break: a technician's tone obeys the quiet hours; a node that is retired leaves nothing behind
that opens a door (`store.fleet.retire_node`). How a node comes in is `control.enrolment`, how it is let sound
`control.devices`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from enum import StrEnum
from typing import Any, Final

from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.places import check_version, clean_text, policy_view
from broadcast_server.domain.clock import Chance, Window
from broadcast_server.domain.errors import Conflict, Invalid, Refused
from broadcast_server.domain.policy import QuietHours, policy_from_dict
from broadcast_server.domain.stagger import SLOTS
from broadcast_server.store import audit, devices, fleet, places
from broadcast_server.store.session import Session
from broadcast_server.store.tables import (
    ClusterRow,
    DeviceLogRow,
    GroupRow,
    NodeRow,
    NodeStatusRow,
    OutboxRow,
)
from broadcast_server.store.types import fold
from broadcast_server.store.words import NodeState, OutboxState

MOST_GAIN_DB: Final = 12.0
LEAST_ALERT_GAIN_DB: Final = -20.0
"""An emergency may be made softer for a near house, never inaudible."""
_CODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


# -- what a cluster's node is told ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VolumeStep:
    """From this local minute of the day on, this gain, until the next step."""

    from_minute: int
    gain_db: float


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The cluster's own settings.

    `delay_trim_ms`: how much later (or earlier) it sounds, to meet its neighbours; `quiet`: hours of silence beside the
    station's (a school, a hospital); `alert_gain_db`: gain of an emergency, None for the usual 0 dB;
    `stagger_slot`: its turn among neighbours that would talk over each other (`domain.stagger`).
    """

    volume: tuple[VolumeStep, ...] = ()
    delay_trim_ms: int = 0
    quiet: tuple[QuietHours, ...] = ()
    alert_gain_db: float | None = None
    stagger_slot: int = 0

    def __post_init__(self) -> None:
        minutes = [step.from_minute for step in self.volume]
        if minutes != sorted(set(minutes)):
            raise Invalid("volume_steps_unordered", field="config.volume")
        for number, step in enumerate(self.volume):
            if not 0 <= step.from_minute < 24 * 60:
                raise Invalid("minute_out_of_range", field=f"config.volume[{number}].from_minute")
            if not -60.0 <= step.gain_db <= MOST_GAIN_DB:
                raise Invalid("gain_out_of_range", field=f"config.volume[{number}].gain_db", most_db=MOST_GAIN_DB)
        for number, hours in enumerate(self.quiet):
            if hours.start == hours.end:
                raise Invalid("empty_window", field=f"config.quiet[{number}]")
        if not -2_000 <= self.delay_trim_ms <= 2_000:
            raise Invalid("delay_trim_out_of_range", field="config.delay_trim_ms", most_ms=2_000)
        if not 0 <= self.stagger_slot < SLOTS:
            raise Invalid("stagger_slot_out_of_range", field="config.stagger_slot", last=SLOTS - 1, fix="give_0_to_7")
        if self.alert_gain_db is not None and not LEAST_ALERT_GAIN_DB <= self.alert_gain_db <= MOST_GAIN_DB:
            raise Invalid(
                "alert_gain_out_of_range",
                field="config.alert_gain_db",
                fix="give_an_audible_gain",
                least_db=LEAST_ALERT_GAIN_DB,
                most_db=MOST_GAIN_DB,
            )

    def to_dict(self) -> dict[str, Any]:
        """The stored form: keys of the wire's node config, quiet hours as `domain.policy` writes them."""
        own = {} if self.alert_gain_db is None else {"alert_gain_db": self.alert_gain_db}
        return own | {
            "volume": [{"from_minute": step.from_minute, "gain_db": step.gain_db} for step in self.volume],
            "delay_trim_ms": self.delay_trim_ms,
            "stagger_slot": self.stagger_slot,
            "quiet": [
                {"from": hours.start.isoformat("minutes"), "to": hours.end.isoformat("minutes")} for hours in self.quiet
            ],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> ClusterConfig:
        """The reverse of `to_dict`; what is missing is as by default."""
        return cls(
            tuple(VolumeStep(step["from_minute"], step["gain_db"]) for step in stored.get("volume", ())),
            stored.get("delay_trim_ms", 0),
            tuple(
                QuietHours(time.fromisoformat(hours["from"]), time.fromisoformat(hours["to"]))
                for hours in stored.get("quiet", ())
            ),
            stored.get("alert_gain_db"),
            stored.get("stagger_slot", 0),
        )


# -- clusters ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewCluster:
    """A cluster to enter. `code`: short, unique in its unit; None: the next `C01`, `C02`, …"""

    unit_id: str
    name: str | None = None
    code: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    config: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass(frozen=True, slots=True)
class ClusterChange:
    """What changes; None: stays."""

    name: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    config: ClusterConfig | None = None


@dataclass(frozen=True, slots=True)
class ClusterView:
    """A cluster and the node that drives it now."""

    cluster: ClusterRow
    node_id: str | None


async def create_cluster(desk: Desk, actor: Actor, request: NewCluster) -> ClusterView:
    """Enter a cluster. Raises `Conflict("cluster_code_taken")`."""
    now = desk.clock.now()
    cluster_id = desk.chance.new_id()
    _position(request.latitude, request.longitude)

    def work(session: Session) -> ClusterView:
        access.authorize(session, actor, Action.CLUSTER_EDIT, request.unit_id, at=now)
        row = new_cluster(session, cluster_id, request, now)
        tell(session, actor.login, "cluster.create", row, now, {"code": row.code, "name": row.name})
        return ClusterView(row, None)

    return await desk.store.begin(work)


async def update_cluster(
    desk: Desk, actor: Actor, cluster_id: str, change: ClusterChange, *, version: int | None = None
) -> ClusterView:
    """Change a cluster. Raises `Conflict("version_changed")` when somebody was faster."""
    now = desk.clock.now()
    _position(change.latitude, change.longitude)

    def work(session: Session) -> ClusterView:
        row = fleet.cluster(session, cluster_id)
        only_volume = change.config is not None and change.name is None and change.latitude is None
        access.authorize(session, actor, Action.VOLUME_SET if only_volume else Action.CLUSTER_EDIT, row, at=now)
        check_version(row.version, version)
        detail: dict[str, Any] = {}
        if change.name is not None:
            detail["name"] = {"before": row.name, "after": change.name}
            row.name, row.name_folded = clean_text(change.name, "name"), fold(change.name)
        if change.latitude is not None:
            row.latitude, row.longitude = change.latitude, change.longitude
            detail["position"] = [row.latitude, row.longitude]
        if change.config is not None:
            detail["config"] = {"before": row.config, "after": change.config.to_dict()}
            row.config = change.config.to_dict()
        row.version += 1
        tell(session, actor.login, "cluster.update", row, now, detail)
        return _cluster_view(session, row)

    return await desk.store.begin(work)


async def retire_cluster(desk: Desk, actor: Actor, cluster_id: str, *, version: int | None = None) -> ClusterView:
    """Take a cluster out of service, its node with it; its play log stays. Raises `Conflict("cluster_retired")`."""
    now = desk.clock.now()

    def work(session: Session) -> ClusterView:
        row = fleet.cluster(session, cluster_id)
        access.authorize(session, actor, Action.CLUSTER_EDIT, row, at=now)
        check_in_service(row)
        check_version(row.version, version)
        for node in fleet.nodes_in_service(session, [row.id]):
            retire(session, actor.login, node, now, "cluster_retired")
        row.retired_at = now
        row.version += 1
        tell(session, actor.login, "cluster.retire", row, now, {})
        return ClusterView(row, None)

    return await desk.store.begin(work)


async def get_cluster(desk: Desk, actor: Actor, cluster_id: str) -> ClusterView:
    """One cluster."""
    now = desk.clock.now()

    def work(session: Session) -> ClusterView:
        row = fleet.cluster(session, cluster_id)
        access.authorize(session, actor, Action.READ, row, at=now)
        return _cluster_view(session, row)

    return await desk.store.read(work)


@dataclass(frozen=True, slots=True)
class ClusterQuery:
    """Which clusters: within a unit's subtree, with `name` in the name or as the code."""

    within: str | None = None
    name: str | None = None
    retired: bool = False
    after: str | None = None
    limit: int = 100


async def list_clusters(desk: Desk, actor: Actor, query: ClusterQuery) -> list[ClusterView]:
    """Clusters the actor may see, by id."""
    now = desk.clock.now()

    def work(session: Session) -> list[ClusterView]:
        roots = roots_for(session, actor, Action.READ, query.within, now)
        rows = fleet.list_clusters(
            session,
            roots,
            places.local_date(now),
            folded=fold(query.name) if query.name else None,
            retired=query.retired,
            after=query.after,
            limit=query.limit,
        )
        nodes = fleet.live_nodes_of_clusters(session, [row.id for row in rows])
        return [ClusterView(row, nodes[row.id].id if row.id in nodes else None) for row in rows]

    return await desk.store.read(work)


# -- groups -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GroupView:
    """A named set of clusters of one unit."""

    group: GroupRow
    cluster_ids: tuple[str, ...]


async def create_group(desk: Desk, actor: Actor, unit_id: str, name: str, cluster_ids: tuple[str, ...]) -> GroupView:
    """Name a set of clusters that lie in the unit's subtree. Raises `Invalid("unknown_cluster")`."""
    now = desk.clock.now()
    group_id = desk.chance.new_id()

    def work(session: Session) -> GroupView:
        access.authorize(session, actor, Action.CLUSTER_EDIT, unit_id, at=now)
        row = GroupRow(id=group_id, unit_id=unit_id, name=clean_text(name, "name"), created_at=now, version=1)
        session.add(row)
        session.flush()
        _set_members(session, row, cluster_ids, now)
        note(session, actor.login, "group.create", unit_id, f"group/{group_id}", now, {"name": row.name})
        return _group_view(session, row)

    return await desk.store.begin(work)


async def update_group(
    desk: Desk,
    actor: Actor,
    group_id: str,
    *,
    name: str | None = None,
    cluster_ids: tuple[str, ...] | None = None,
    version: int | None = None,
) -> GroupView:
    """Rename a group or say anew who is in it; None: stays."""
    now = desk.clock.now()

    def work(session: Session) -> GroupView:
        row = fleet.group(session, group_id)
        access.authorize(session, actor, Action.CLUSTER_EDIT, row, at=now)
        check_version(row.version, version)
        if name is not None:
            row.name = clean_text(name, "name")
        if cluster_ids is not None:
            _set_members(session, row, cluster_ids, now)
        row.version += 1
        detail = {"name": row.name, "clusters": None if cluster_ids is None else len(cluster_ids)}
        note(session, actor.login, "group.update", row.unit_id, f"group/{row.id}", now, detail)
        return _group_view(session, row)

    return await desk.store.begin(work)


async def get_group(desk: Desk, actor: Actor, group_id: str) -> GroupView:
    """One group."""
    now = desk.clock.now()

    def work(session: Session) -> GroupView:
        row = fleet.group(session, group_id)
        access.authorize(session, actor, Action.READ, row, at=now)
        return _group_view(session, row)

    return await desk.store.read(work)


async def list_groups(
    desk: Desk, actor: Actor, *, within: str | None = None, after: str | None = None, limit: int = 100
) -> list[GroupView]:
    """Groups the actor may see, by id."""
    now = desk.clock.now()

    def work(session: Session) -> list[GroupView]:
        roots = roots_for(session, actor, Action.READ, within, now)
        rows = fleet.list_groups(session, roots, places.local_date(now), after=after, limit=limit)
        members = fleet.members_of(session, [row.id for row in rows])
        return [GroupView(row, members[row.id]) for row in rows]

    return await desk.store.read(work)


# -- nodes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node, its cluster, its last word (`status` None: never heard of), and how much of its log is here.

    `bound_at`: when somebody on site typed in the code it spoke; `certificate_until`: None where it has none.
    """

    node: NodeRow
    cluster: ClusterRow
    status: NodeStatusRow | None
    log: DeviceLogRow | None
    bound_at: datetime | None = None
    certificate_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class NodeQuery:
    """Which nodes: within a unit's subtree, of one cluster, whose last `link` was `online` or `offline`, in a state."""

    within: str | None = None
    cluster_id: str | None = None
    link: str | None = None
    state: NodeState | None = None
    retired: bool = False
    after: str | None = None
    limit: int = 100


async def list_nodes(desk: Desk, actor: Actor, query: NodeQuery) -> list[NodeView]:
    """Nodes the actor may see, by id."""
    now = desk.clock.now()

    def work(session: Session) -> list[NodeView]:
        seen = fleet.list_nodes(
            session,
            roots_for(session, actor, Action.READ, query.within, now),
            places.local_date(now),
            cluster_id=query.cluster_id,
            link=query.link,
            state=query.state,
            retired=query.retired,
            after=query.after,
            limit=query.limit,
        )
        return node_views(session, seen)

    return await desk.store.read(work)


async def get_node(desk: Desk, actor: Actor, node_id: str) -> NodeView:
    """One node, retired or not."""
    now = desk.clock.now()

    def work(session: Session) -> NodeView:
        row = fleet.node(session, node_id)
        access.authorize(session, actor, Action.READ, row, at=now)
        return node_view(session, node_id, now)

    return await desk.store.read(work)


async def retire_node(desk: Desk, actor: Actor, node_id: str) -> NodeView:
    """Take a node out of service; its cluster stays. Raises `Conflict("node_retired")`."""
    now = desk.clock.now()

    def work(session: Session) -> NodeView:
        row = fleet.node(session, node_id)
        access.authorize(session, actor, Action.NODE_RETIRE, row, at=now)
        check_node_in_service(row)
        retire(session, actor.login, row, now, "retired")
        return node_view(session, node_id, now)

    return await desk.store.begin(work)


# -- orders -----------------------------------------------------------------------------------------------------------


class OrderVerb(StrEnum):
    """What may be ordered of one node; the words of the wire."""

    IDENTIFY = "identify"
    TEST_TONE = "test_tone"
    REBOOT = "reboot"


@dataclass(frozen=True, slots=True)
class Order:
    """Do this once, within `expires_in`. `seconds`: how long it sounds or blinks."""

    node_id: str
    verb: OrderVerb
    seconds: int = 5
    expires_in: timedelta = timedelta(seconds=60)


async def order_node(desk: Desk, actor: Actor, request: Order) -> OutboxRow:
    """Put an order into the outbox. Raises `Refused("quiet_hours")` for a tone at night, `Conflict("node_retired")`."""
    now = desk.clock.now()
    order_id = desk.chance.new_id()
    if not 0 <= request.seconds <= 60:
        raise Invalid("seconds_out_of_range", field="seconds", most=60)
    if not timedelta(0) < request.expires_in <= timedelta(minutes=10):
        raise Invalid("lifetime_out_of_range", field="expires_in_s", most_s=600)

    def work(session: Session) -> OutboxRow:
        node = fleet.node(session, request.node_id)
        needed = Action.NODE_RETIRE if request.verb is OrderVerb.REBOOT else Action.NODE_ORDER
        access.authorize(session, actor, needed, node, at=now)
        check_node_in_service(node)
        if request.verb is OrderVerb.TEST_TONE:
            _not_at_night(session, node, Window(now, now + request.expires_in + timedelta(seconds=request.seconds)))
        row = OutboxRow(
            id=order_id,
            node_id=node.id,
            unit_id=node.unit_id,
            subject=f"order/{order_id}",
            body={"order_id": order_id, "verb": request.verb.value, "seconds": request.seconds},
            state=OutboxState.PENDING,
            attempts=0,
            due_at=now,
            expires_at=now + request.expires_in,
            created_at=now,
        )
        session.add(row)
        detail = {"verb": request.verb.value, "seconds": request.seconds, "order_id": order_id}
        note(session, actor.login, "node.order", node.unit_id, f"node/{node.id}", now, detail)
        return row

    return await desk.store.begin(work)


async def list_orders(desk: Desk, actor: Actor, node_id: str) -> list[OutboxRow]:
    """The node's latest orders and what became of them."""
    now = desk.clock.now()

    def work(session: Session) -> list[OutboxRow]:
        row = fleet.node(session, node_id)
        access.authorize(session, actor, Action.READ, row, at=now)
        return list(fleet.orders_of(session, node_id))

    return await desk.store.read(work)


def _not_at_night(session: Session, node: NodeRow, sounding: Window) -> None:
    policy = policy_from_dict(policy_view(session, node.unit_id, sounding.start).body)
    own = ClusterConfig.from_dict(fleet.cluster(session, node.cluster_id).config).quiet
    for hours in (*policy.quiet_of(node.cluster_id), *own):
        if any(True for _ in hours.windows(sounding)):
            raise Refused("quiet_hours", unit_id=node.unit_id, fix="wait_for_day")


# -- shared -----------------------------------------------------------------------------------------------------------


def new_secret(chance: Chance, prefix: str) -> str:
    """A secret of 192 bits in URL-safe letters. The prefix says what it is, to people and to secret scanners."""
    return prefix + base64.urlsafe_b64encode(chance.token_bytes(24)).decode()


def roots_for(
    session: Session, actor: Actor, action: Action, within: str | None, now: datetime
) -> frozenset[str] | None:
    """Subtrees a list may show: all the actor may see, or `within` after asking whether that is allowed."""
    if within is None:
        return access.scope(session, actor, action, at=now)
    access.authorize(session, actor, action, within, at=now)
    return frozenset({within})


def new_cluster(session: Session, cluster_id: str, request: NewCluster, now: datetime) -> ClusterRow:
    """Enter a cluster's row. Raises `Invalid("cluster_code_invalid")`, `Conflict("cluster_code_taken")`."""
    number = fleet.free_cluster_number(session, request.unit_id)
    code = request.code or f"C{number:02d}"
    if not _CODE.fullmatch(code):
        raise Invalid("cluster_code_invalid", field="code")
    if fleet.cluster_of_code(session, request.unit_id, code) is not None:
        raise Conflict("cluster_code_taken", field="code", code_taken=code)
    name = clean_text(request.name or (f"Cụm {number:02d}" if request.code is None else f"Cụm {code}"), "name")
    row = ClusterRow(
        id=cluster_id,
        unit_id=request.unit_id,
        code=code,
        name=name,
        name_folded=fold(name),
        latitude=request.latitude,
        longitude=request.longitude,
        config=request.config.to_dict(),
        created_at=now,
        version=1,
    )
    session.add(row)
    session.flush()
    return row


def _set_members(session: Session, group: GroupRow, cluster_ids: tuple[str, ...], now: datetime) -> None:
    inside = places.subtree_of(session, {group.unit_id}, places.local_date(now))
    for number, cluster_id in enumerate(cluster_ids):
        row = session.get(ClusterRow, cluster_id)
        if row is None or row.retired_at is not None or row.unit_id not in inside:
            raise Invalid("unknown_cluster", field=f"cluster_ids[{number}]", cluster_id=cluster_id)
    fleet.set_members(session, group.id, cluster_ids)


def node_view(session: Session, node_id: str, now: datetime) -> NodeView:
    """One node, retired or not."""
    (view,) = node_views(
        session, fleet.list_nodes(session, None, places.local_date(now), node_id=node_id, retired=True)
    )
    return view


def node_views(session: Session, seen: Sequence[fleet.NodeSeen]) -> list[NodeView]:
    """Rows of nodes with what single boxes are about."""
    ids = [one.node.id for one in seen]
    bindings, ends = devices.bindings_of(session, ids), devices.valid_until_of(session, ids)
    return [
        NodeView(*one, bindings[one.node.id].confirmed_at if one.node.id in bindings else None, ends.get(one.node.id))
        for one in seen
    ]


def _group_view(session: Session, row: GroupRow) -> GroupView:
    return GroupView(row, fleet.members_of(session, [row.id])[row.id])


def _cluster_view(session: Session, row: ClusterRow) -> ClusterView:
    node = fleet.live_nodes_of_clusters(session, [row.id]).get(row.id)
    return ClusterView(row, None if node is None else node.id)


def retire(session: Session, told_by: str, row: NodeRow, now: datetime, why: str) -> None:
    """Take a node out of service and say who did and why."""
    fleet.retire_node(session, row, now)
    note(session, told_by, "node.retire", row.unit_id, f"node/{row.id}", now, {"why": why})


def check_in_service(row: ClusterRow) -> None:
    """Raises `Conflict("cluster_retired")`."""
    if row.retired_at is not None:
        raise Conflict("cluster_retired", cluster_id=row.id)


def check_node_in_service(row: NodeRow) -> None:
    """Raises `Conflict("node_retired")`."""
    if row.retired_at is not None:
        raise Conflict("node_retired", node_id=row.id)


def _position(latitude: float | None, longitude: float | None) -> None:
    if (latitude is None) != (longitude is None):
        raise Invalid("position_incomplete", field="latitude")
    if latitude is not None and longitude is not None and not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        raise Invalid("position_out_of_range", field="latitude")


def tell(session: Session, told_by: str, verb: str, row: ClusterRow, now: datetime, detail: dict[str, Any]) -> None:
    """Append the audit row of what was done to a cluster."""
    note(session, told_by, verb, row.unit_id, f"cluster/{row.id}", now, detail)


def note(
    session: Session, told_by: str, verb: str, unit_id: str, subject: str, now: datetime, detail: dict[str, Any]
) -> None:
    """Append an audit row."""
    audit.append(session, now=now, actor=told_by, verb=verb, unit_id=unit_id, subject=subject, detail=detail)
