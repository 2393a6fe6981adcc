"""What was published to whom: the fleet's seats, plan bodies, plans in force and their acknowledgement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import FromClause, Select, bindparam, delete, func, or_, select, true, update
from sqlalchemy.orm import Session

from broadcast_server.store.tables import (
    BroadcastRow,
    ClusterRow,
    ConflictRow,
    GroupMemberRow,
    GroupRow,
    NodePlanRow,
    NodeRow,
    NodeStatusRow,
    PlanBodyRow,
    PolicyRow,
    UnitLinkRow,
    UnitRow,
)
from broadcast_server.store.upsert import upsert
from broadcast_server.store.words import ConflictKind, NodeState


@dataclass(frozen=True, slots=True)
class Seat:
    """A node where it sits. `config`: the cluster's own settings; `is_active`: whether anything may sound on it."""

    node_id: str
    unit_id: str
    cluster_id: str
    config: Mapping[str, Any]
    is_active: bool = True


@dataclass(frozen=True, slots=True)
class PublishedPlan:
    """The plan a node was last sent."""

    body_sha256: str
    epoch: int
    sequence: int
    valid_from: datetime
    valid_until: datetime
    published_at: datetime
    acknowledged_at: datetime | None


def seats(session: Session) -> tuple[Seat, ...]:
    """All nodes that are not retired, in order of id."""
    rows = session.execute(
        select(NodeRow.id, ClusterRow.unit_id, NodeRow.cluster_id, ClusterRow.config, NodeRow.state)
        .join(ClusterRow, ClusterRow.id == NodeRow.cluster_id)
        .where(NodeRow.retired_at.is_(None))
        .order_by(NodeRow.id)
    )
    return tuple(Seat(row[0], row[1], row[2], row[3], row[4] is NodeState.ACTIVE) for row in rows)


def policies(session: Session) -> dict[str, dict[str, Any]]:
    """The station policies that units stated themselves, by unit."""
    return {row.unit_id: row.body for row in session.scalars(select(PolicyRow))}


def published(session: Session) -> dict[str, PublishedPlan]:
    """What every node was last sent."""
    columns = (
        NodePlanRow.body_sha256,
        NodePlanRow.epoch,
        NodePlanRow.sequence,
        NodePlanRow.valid_from,
        NodePlanRow.valid_until,
        NodePlanRow.published_at,
        NodePlanRow.acknowledged_at,
    )
    return {row[0]: PublishedPlan(*row[1:]) for row in session.execute(select(NodePlanRow.node_id, *columns))}


def bodies(session: Session, hashes: Iterable[str]) -> dict[str, bytes]:
    """Packed bodies by hash."""
    rows = session.execute(select(PlanBodyRow.sha256, PlanBodyRow.packed).where(PlanBodyRow.sha256.in_(tuple(hashes))))
    return dict(rows.tuples().all())


def record_published(
    session: Session,
    plans: Mapping[str, PublishedPlan],
    new_bodies: Sequence[tuple[str, bytes]],
    *,
    now: datetime,
) -> None:
    """Write down what is about to be sent, before it is sent: a number that left must never be given again.

    `new_bodies`: `(sha256, packed)`.
    """
    upsert(
        session,
        PlanBodyRow,
        [{"sha256": sha256, "packed": packed, "created_at": now} for sha256, packed in new_bodies],
    )
    upsert(
        session,
        NodePlanRow,
        [
            {
                "node_id": node_id,
                "body_sha256": plan.body_sha256,
                "epoch": plan.epoch,
                "sequence": plan.sequence,
                "valid_from": plan.valid_from,
                "valid_until": plan.valid_until,
                "published_at": plan.published_at,
                "acknowledged_at": plan.acknowledged_at,
            }
            for node_id, plan in plans.items()
        ],
        update=(
            "body_sha256",
            "epoch",
            "sequence",
            "valid_from",
            "valid_until",
            "published_at",
            "acknowledged_at",
        ),
    )


def forget_published(session: Session, node_ids: Sequence[str]) -> None:
    """These nodes are sent nothing any more."""
    for start in range(0, len(node_ids), 5_000):
        session.execute(delete(NodePlanRow).where(NodePlanRow.node_id.in_(node_ids[start : start + 5_000])))


def acknowledge(session: Session, told: Mapping[str, tuple[str, int, int]], *, now: datetime) -> None:
    """Nodes said which plan they follow: `told` is `(body hash, epoch, sequence)` by node.

    The order counts, not the body alone: a node that refuses a newer head may still follow the same body.
    """
    if not told:
        return
    statement = (
        update(NodePlanRow)
        .where(
            NodePlanRow.node_id == bindparam("node"),
            NodePlanRow.body_sha256 == bindparam("body"),
            NodePlanRow.epoch == bindparam("at_epoch"),
            NodePlanRow.sequence == bindparam("at_sequence"),
            NodePlanRow.acknowledged_at.is_(None),
        )
        .values(acknowledged_at=now)
    )
    session.connection().execute(
        statement,
        [
            {"node": node, "body": body, "at_epoch": epoch, "at_sequence": sequence}
            for node, (body, epoch, sequence) in told.items()
        ],
    )


def drop_unused_bodies(session: Session) -> None:
    """Forget bodies that no node follows any more."""
    used = select(NodePlanRow.body_sha256)
    session.execute(delete(PlanBodyRow).where(PlanBodyRow.sha256.not_in(used)))


def record_broadcasts(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    """Occurrences as planned; times and title follow a change, the identity stays."""
    upsert(session, BroadcastRow, rows, update=("title", "starts_at", "ends_at", "asset_sha256", "approval"))


def fleet_mark(session: Session) -> tuple[int, ...]:
    """Numbers that change whenever places, clusters, groups, nodes or policies do; cheap to ask."""
    return tuple(session.execute(_FLEET_MARK).one())


def _each_table_once(*counted: Sequence[Any]) -> Select[Any]:
    """One row of aggregates: those of one table are taken in one pass over it."""
    tables = [select(*(value.label(f"n{number}") for number, value in enumerate(one))).subquery() for one in counted]
    joined: FromClause = tables[0]
    for table in tables[1:]:
        joined = joined.join(table, true())
    return select(*(column for table in tables for column in table.c)).select_from(joined)


_FLEET_MARK: Final = _each_table_once(
    (func.count(UnitRow.id), func.coalesce(func.sum(UnitRow.version), 0)),
    (func.count(UnitLinkRow.id), func.count(UnitLinkRow.valid_to)),
    (
        func.count(ClusterRow.id),
        func.coalesce(func.sum(ClusterRow.version), 0),
        func.count(ClusterRow.retired_at),
    ),
    (func.count(NodeRow.id), func.count(NodeRow.retired_at), func.coalesce(func.sum(NodeRow.version), 0)),
    (func.count(GroupRow.id), func.coalesce(func.sum(GroupRow.version), 0)),
    (func.count(GroupMemberRow.group_id),),
    (func.count(PolicyRow.unit_id), func.coalesce(func.sum(PolicyRow.version), 0)),
)


def overdue(session: Session, *, published_before: datetime) -> list[str]:
    """Nodes that are online and have not said that they follow the plan they were sent before that instant."""
    return list(
        session.scalars(
            select(NodePlanRow.node_id)
            .join(NodeStatusRow, NodeStatusRow.node_id == NodePlanRow.node_id)
            .where(
                NodePlanRow.acknowledged_at.is_(None),
                NodePlanRow.published_at < published_before,
                NodeStatusRow.link == "online",
            )
            .order_by(NodePlanRow.node_id)
        )
    )


PLANNED_CONFLICTS = (
    ConflictKind.APPROVAL_VOID,
    ConflictKind.ASSET_MISSING,
    ConflictKind.CONTENT_EXPIRED,
    ConflictKind.ENTRY_DROPPED,
    ConflictKind.NOT_OFFERED,
    ConflictKind.NOT_STAGGERED,
    ConflictKind.PLAN_TOO_LARGE,
    ConflictKind.REFUSED_BY_POLICY,
)
"""What planning finds entry by entry; offers and feeds are watched as such (`control.feeds`)."""


def note_conflicts(session: Session, rows: Sequence[dict[str, Any]], *, now: datetime) -> None:
    """Open conflicts that are not open, close those of the same kinds that are gone. Rows: columns of `ConflictRow`."""
    wanted = {(row["schedule_id"], row["kind"], row["subject"]): row for row in rows}
    of_concern = or_(ConflictRow.closed_at.is_(None), ConflictRow.schedule_id.in_({row["schedule_id"] for row in rows}))
    known = {
        (row.schedule_id, row.kind, row.subject): row
        for row in session.scalars(select(ConflictRow).where(ConflictRow.kind.in_(PLANNED_CONFLICTS), of_concern))
    }
    for key, row in wanted.items():
        found = known.get(key)
        if found is None:
            session.add(ConflictRow(**row, opened_at=now, closed_at=None))
            continue
        if found.closed_at is not None:
            found.opened_at, found.closed_at = now, None
        found.affects_from, found.facts = row["affects_from"], row["facts"]
    for key, found in known.items():
        if key not in wanted and found.closed_at is None:
            found.closed_at = now
