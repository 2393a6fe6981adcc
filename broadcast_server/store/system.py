"""The server at a glance, from rows alone: what the engine room wrote down about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from broadcast_server.store import facts, leases
from broadcast_server.store.tables import (
    ClusterRow,
    ConflictRow,
    FeedRow,
    FeedStatusRow,
    JobRow,
    LeaseRow,
    NodePlanRow,
    NodeRow,
    NodeStatusRow,
    ScheduleRow,
    UnitRow,
)
from broadcast_server.store.words import ScheduleState

FEEDS_SHOWN: Final = 500


@dataclass(frozen=True, slots=True)
class Overview:
    """Counts and last words."""

    leader: LeaseRow | None
    broker: str | None
    units: int
    clusters: int
    nodes: int
    nodes_online: int
    schedules_active: int
    plans_waiting: int
    conflicts_open: int
    feeds: Sequence[tuple[FeedRow, FeedStatusRow | None]]
    jobs: Sequence[JobRow]
    audit_contradicted: int


def overview(session: Session) -> Overview:
    """What stands in the rows now; at most `FEEDS_SHOWN` feeds, by name."""
    broker = facts.find(session, facts.BROKER)
    contradicted = facts.find(session, facts.AUDIT_CONTRADICTED)
    in_use = NodeRow.retired_at.is_(None)
    feeds = session.execute(
        select(FeedRow, FeedStatusRow)
        .outerjoin(FeedStatusRow, FeedStatusRow.feed_id == FeedRow.id)
        .where(FeedRow.revoked_at.is_(None))
        .order_by(FeedRow.name_folded, FeedRow.id)
        .limit(FEEDS_SHOWN)
    )
    return Overview(
        leader=session.get(LeaseRow, leases.LEADER),
        broker=None if broker is None else broker.get("kind"),
        units=_count(session, select(UnitRow.id)),
        clusters=_count(session, select(ClusterRow.id).where(ClusterRow.retired_at.is_(None))),
        nodes=_count(session, select(NodeRow.id).where(in_use)),
        nodes_online=_count(
            session,
            select(NodeRow.id)
            .join(NodeStatusRow, NodeStatusRow.node_id == NodeRow.id)
            .where(in_use, NodeStatusRow.link == "online"),
        ),
        schedules_active=_count(session, select(ScheduleRow.id).where(ScheduleRow.state == ScheduleState.ACTIVE)),
        plans_waiting=_count(session, select(NodePlanRow.node_id).where(NodePlanRow.acknowledged_at.is_(None))),
        conflicts_open=_count(session, select(ConflictRow.id).where(ConflictRow.closed_at.is_(None))),
        feeds=[(feed, status) for feed, status in feeds],
        jobs=session.scalars(select(JobRow).order_by(JobRow.name)).all(),
        audit_contradicted=0 if contradicted is None else len(contradicted["open"]),
    )


def alive(session: Session) -> bool:
    """Whether the database answers at all. Raises `Unavailable` through the store otherwise."""
    return bool(session.scalar(select(1)) == 1)


def _count(session: Session, rows: Select[Any]) -> int:
    return session.scalar(select(func.count()).select_from(rows.subquery())) or 0
