"""What keeps a planned occurrence from the horns, as rows: plans too large, nodes that do not follow theirs."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from broadcast_server.store import devices, fleet
from broadcast_server.store.tables import ConflictRow, NodePlanRow, NodeRow, NodeStatusRow
from broadcast_server.store.words import ConflictKind, NodeState


def not_held(session: Session, schedule_id: str, start: datetime) -> ConflictRow | None:
    """The open conflict that says that nodes do not hold this occurrence, because their plan would be too large."""
    return session.scalars(
        select(ConflictRow).where(
            ConflictRow.schedule_id == schedule_id,
            ConflictRow.kind == ConflictKind.PLAN_TOO_LARGE,
            ConflictRow.closed_at.is_(None),
            ConflictRow.affects_from <= start,
        )
    ).first()


def node_behind(session: Session, cluster_id: str, now: datetime, patience: timedelta) -> NodeStatusRow | None:
    """The status of the cluster's node if it has not said for so long that it follows the plan it was sent."""
    return session.scalars(
        select(NodeStatusRow)
        .join(NodeRow, NodeRow.id == NodeStatusRow.node_id)
        .join(NodePlanRow, NodePlanRow.node_id == NodeRow.id)
        .where(
            NodeRow.cluster_id == cluster_id,
            NodeRow.state == NodeState.ACTIVE,
            NodePlanRow.acknowledged_at.is_(None),
            NodePlanRow.published_at < now - patience,
        )
    ).first()


def node_in_doubt(session: Session, cluster_id: str) -> NodeRow | None:
    """The node that is to drive the cluster and may not sound yet, or no more; None where another one sounds."""
    row = fleet.live_nodes_of_clusters(session, [cluster_id]).get(cluster_id)
    return row if row is not None and row.state in devices.IN_DOUBT else None
