"""Rows of the fleet: clusters, groups, nodes with their last status, enrolment tokens, orders to nodes.

A maintainer must not break: (1) one node drives a cluster, beside it at most one is on probation, and a device key
lives once; (2) a node's password and
asset token are told once and stored only as hashes; (3) `ClusterRow.config` holds the keys of the wire's node config.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Sequence
from datetime import date, datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from broadcast_server.domain.errors import NotFound
from broadcast_server.store import devices, places
from broadcast_server.store.people import secret_hash
from broadcast_server.store.tables import (
    ClusterRow,
    DeviceLogRow,
    EnrolmentTokenRow,
    GroupMemberRow,
    GroupRow,
    LinkSpanRow,
    NodeRow,
    NodeStatusRow,
    OutboxRow,
)
from broadcast_server.store.words import NodeState, OutboxState

PASSWORD_ITERATIONS: Final = 101
"""Few, because the password is 192 random bits; mosquitto's own default."""


_DRIVES: Final = (NodeState.ACTIVE, NodeState.QUARANTINED, NodeState.PROBATION)
"""Which of a cluster's nodes is named where one is asked for."""


def mosquitto_password_line(user: str, password: str, salt: bytes, iterations: int = PASSWORD_ITERATIONS) -> str:
    """`user:$7$iterations$salt$hash`: PBKDF2-HMAC-SHA512 of 64 bytes as mosquitto_passwd(1) writes it."""
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations)
    return f"{user}:$7${iterations}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


# -- clusters ---------------------------------------------------------------------------------------------------------


def cluster(session: Session, cluster_id: str) -> ClusterRow:
    """Raises `NotFound("unknown_cluster")`."""
    row = session.get(ClusterRow, cluster_id)
    if row is None:
        raise NotFound("unknown_cluster", cluster_id=cluster_id)
    return row


def cluster_of_code(session: Session, unit_id: str, code: str) -> ClusterRow | None:
    """The cluster a unit knows by this code, retired or not."""
    return session.scalar(select(ClusterRow).where(ClusterRow.unit_id == unit_id, ClusterRow.code == code))


def free_cluster_number(session: Session, unit_id: str) -> int:
    """A number whose code `C{number:02d}` no cluster of the unit has had."""
    codes = set(session.scalars(select(ClusterRow.code).where(ClusterRow.unit_id == unit_id)))
    number = len(codes) + 1
    while f"C{number:02d}" in codes:
        number += 1
    return number


def list_clusters(
    session: Session,
    roots: frozenset[str] | None,
    on: date,
    *,
    folded: str | None = None,
    retired: bool = False,
    after: str | None = None,
    limit: int = 100,
) -> list[ClusterRow]:
    """Clusters by id within `roots` (None: everywhere), those after `after`; `retired`: also those out of service."""
    query = select(ClusterRow).order_by(ClusterRow.id).limit(limit)
    if roots is not None:
        query = query.where(ClusterRow.unit_id.in_(places.subtree_query(roots, on)))
    if not retired:
        query = query.where(ClusterRow.retired_at.is_(None))
    if folded:
        query = query.where(
            or_(ClusterRow.name_folded.contains(folded, autoescape=True), func.lower(ClusterRow.code) == folded)
        )
    if after is not None:
        query = query.where(ClusterRow.id > after)
    return list(session.scalars(query))


# -- groups -----------------------------------------------------------------------------------------------------------


def group(session: Session, group_id: str) -> GroupRow:
    """Raises `NotFound("unknown_group")`."""
    row = session.get(GroupRow, group_id)
    if row is None:
        raise NotFound("unknown_group", group_id=group_id)
    return row


def list_groups(
    session: Session, roots: frozenset[str] | None, on: date, *, after: str | None = None, limit: int = 100
) -> list[GroupRow]:
    """Groups by id within `roots`, those after `after`."""
    query = select(GroupRow).order_by(GroupRow.id).limit(limit)
    if roots is not None:
        query = query.where(GroupRow.unit_id.in_(places.subtree_query(roots, on)))
    if after is not None:
        query = query.where(GroupRow.id > after)
    return list(session.scalars(query))


def members_of(session: Session, group_ids: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Cluster ids of each of these groups, in order."""
    found: dict[str, list[str]] = {group_id: [] for group_id in group_ids}
    rows = session.execute(
        select(GroupMemberRow.group_id, GroupMemberRow.cluster_id)
        .where(GroupMemberRow.group_id.in_(group_ids))
        .order_by(GroupMemberRow.group_id, GroupMemberRow.cluster_id)
    )
    for group_id, cluster_id in rows:
        found[group_id].append(cluster_id)
    return {group_id: tuple(clusters) for group_id, clusters in found.items()}


def set_members(session: Session, group_id: str, cluster_ids: Collection[str]) -> None:
    """These and no others are in the group."""
    there = {
        row.cluster_id: row
        for row in session.scalars(select(GroupMemberRow).where(GroupMemberRow.group_id == group_id))
    }
    for cluster_id, row in there.items():
        if cluster_id not in cluster_ids:
            session.delete(row)
    session.add_all(
        GroupMemberRow(group_id=group_id, cluster_id=cluster_id)
        for cluster_id in sorted(set(cluster_ids) - there.keys())
    )
    session.flush()


# -- nodes ------------------------------------------------------------------------------------------------------------


def node(session: Session, node_id: str) -> NodeRow:
    """Raises `NotFound("unknown_node")`."""
    row = session.get(NodeRow, node_id)
    if row is None:
        raise NotFound("unknown_node", node_id=node_id)
    return row


def live_node_of_key(session: Session, public_key: str) -> NodeRow | None:
    """The node in service that has this device key."""
    return session.scalar(select(NodeRow).where(NodeRow.public_key == public_key, NodeRow.retired_at.is_(None)))


def nodes_in_service(session: Session, cluster_ids: Collection[str]) -> list[NodeRow]:
    """All nodes of these clusters that are not retired, those on probation too."""
    rows = session.scalars(select(NodeRow).where(NodeRow.cluster_id.in_(cluster_ids), NodeRow.retired_at.is_(None)))
    return list(rows)


def live_nodes_of_clusters(session: Session, cluster_ids: Collection[str]) -> dict[str, NodeRow]:
    """The node that drives each of these clusters; where none does, the one that is to."""
    found: dict[str, NodeRow] = {}
    for row in sorted(nodes_in_service(session, cluster_ids), key=lambda row: (_DRIVES.index(row.state), row.id)):
        found.setdefault(row.cluster_id, row)
    return found


def words(session: Session) -> dict[str, dict[str, Any]]:
    """The last word of every node that is not retired, as it said it."""
    found = session.execute(
        select(NodeStatusRow.node_id, NodeStatusRow.body)
        .join(NodeRow, NodeRow.id == NodeStatusRow.node_id)
        .where(NodeRow.retired_at.is_(None))
    )
    return dict(found.tuples().all())


def statuses_of(session: Session, node_ids: Collection[str]) -> dict[str, NodeStatusRow]:
    """The last word of each of these nodes that was ever heard."""
    found: dict[str, NodeStatusRow] = {}
    ids = sorted(node_ids)
    for start in range(0, len(ids), 5_000):
        rows = session.scalars(select(NodeStatusRow).where(NodeStatusRow.node_id.in_(ids[start : start + 5_000])))
        found |= {row.node_id: row for row in rows}
    return found


def node_of_asset_token(session: Session, secret: str) -> NodeRow | None:
    """Whose asset credential this is, if the node is active."""
    return session.scalar(
        select(NodeRow).where(NodeRow.asset_token_hash == secret_hash(secret), NodeRow.state == NodeState.ACTIVE)
    )


def password_lines(session: Session) -> dict[str, str]:
    """Line of the broker's password file for every node in service, by node: whom the broker must know."""
    rows = session.execute(select(NodeRow.id, NodeRow.broker_password_line).where(NodeRow.retired_at.is_(None)))
    return {node_id: line for node_id, line in rows}  # noqa: C416 - a Row is not a pair to mypy


def retire_node(session: Session, row: NodeRow, now: datetime) -> None:
    """Out of service from now on: its credentials are void, what it had to acknowledge is given up."""
    row.retired_at = now
    devices.change_state(row, NodeState.RETIRED)
    devices.forget_code(session, row.id)
    devices.revoke_certificates(session, row.id, now)
    session.execute(
        update(OutboxRow)
        .where(OutboxRow.node_id == row.id, OutboxRow.state.in_((OutboxState.PENDING, OutboxState.SENT)))
        .values(state=OutboxState.EXPIRED)
    )
    session.execute(
        update(LinkSpanRow).where(LinkSpanRow.node_id == row.id, LinkSpanRow.until.is_(None)).values(until=now)
    )
    session.flush()


class NodeSeen(NamedTuple):
    """A node with its cluster, the last word it said of itself, and how much of its log is here."""

    node: NodeRow
    cluster: ClusterRow
    status: NodeStatusRow | None
    log: DeviceLogRow | None


def list_nodes(
    session: Session,
    roots: frozenset[str] | None,
    on: date,
    *,
    node_id: str | None = None,
    cluster_id: str | None = None,
    link: str | None = None,
    state: NodeState | None = None,
    retired: bool = False,
    after: str | None = None,
    limit: int = 100,
) -> list[NodeSeen]:
    """Nodes by id within `roots`, those after `after`; `link`: only those whose last word was this."""
    query = (
        select(NodeRow, ClusterRow, NodeStatusRow, DeviceLogRow)
        .join(ClusterRow, ClusterRow.id == NodeRow.cluster_id)
        .outerjoin(NodeStatusRow, NodeStatusRow.node_id == NodeRow.id)
        .outerjoin(DeviceLogRow, DeviceLogRow.node_id == NodeRow.id)
        .order_by(NodeRow.id)
        .limit(limit)
    )
    if roots is not None:
        query = query.where(NodeRow.unit_id.in_(places.subtree_query(roots, on)))
    if node_id is not None:
        query = query.where(NodeRow.id == node_id)
    if cluster_id is not None:
        query = query.where(NodeRow.cluster_id == cluster_id)
    if link is not None:
        query = query.where(NodeStatusRow.link == link)
    if state is not None:
        query = query.where(NodeRow.state == state)
    elif not retired:
        query = query.where(NodeRow.retired_at.is_(None))
    if after is not None:
        query = query.where(NodeRow.id > after)
    return [NodeSeen(*row) for row in session.execute(query)]


# -- enrolment --------------------------------------------------------------------------------------------------------


def enrolment_token(session: Session, secret: str) -> EnrolmentTokenRow | None:
    """The token of this secret, spent or expired too."""
    return session.scalar(select(EnrolmentTokenRow).where(EnrolmentTokenRow.secret_hash == secret_hash(secret)))


def enrolment_token_row(session: Session, token_id: str) -> EnrolmentTokenRow:
    """Raises `NotFound("unknown_enrolment_token")`."""
    row = session.get(EnrolmentTokenRow, token_id)
    if row is None:
        raise NotFound("unknown_enrolment_token", token_id=token_id)
    return row


def list_enrolment_tokens(session: Session, unit_id: str, now: datetime) -> list[EnrolmentTokenRow]:
    """Tokens of the unit that can still be used, soonest to expire first."""
    return list(
        session.scalars(
            select(EnrolmentTokenRow)
            .where(
                EnrolmentTokenRow.unit_id == unit_id,
                EnrolmentTokenRow.uses_left > 0,
                EnrolmentTokenRow.expires_at > now,
            )
            .order_by(EnrolmentTokenRow.expires_at, EnrolmentTokenRow.id)
        )
    )


# -- orders -----------------------------------------------------------------------------------------------------------


def orders_of(session: Session, node_id: str, *, limit: int = 50) -> Sequence[OutboxRow]:
    """The node's latest orders and what became of them."""
    return list(
        session.scalars(
            select(OutboxRow)
            .where(OutboxRow.node_id == node_id, OutboxRow.subject.startswith("order/"))
            .order_by(OutboxRow.created_at.desc(), OutboxRow.id)
            .limit(limit)
        )
    )
