"""The server at a glance, from rows alone: what the engine room wrote down about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from broadcast_server.store import facts, feeds, leases, places
from broadcast_server.store.tables import (
    BulletinRow,
    BulletinVersionRow,
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
from broadcast_server.store.tables_approval import BreakGlassReviewRow
from broadcast_server.store.words import NodeState, ScheduleState, VersionState

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
    nodes_on_probation: int
    nodes_quarantined: int
    schedules_active: int
    plans_waiting: int
    conflicts_open: int
    approvals_waiting: int
    break_glass_open: int
    break_glass_overdue: int
    feeds: Sequence[tuple[FeedRow, FeedStatusRow | None]]
    jobs: Sequence[JobRow]
    audit_contradicted: int


def overview(session: Session, roots: frozenset[str] | None, at: datetime) -> Overview:
    """What stands in the rows now, counted over these subtrees (None: all).

    At most `FEEDS_SHOWN` feeds: those owned in, or offered to, these places.
    """
    inside = None if roots is None else places.subtree_query(roots, places.local_date(at))
    broker = facts.find(session, facts.BROKER)
    contradicted = facts.find(session, facts.AUDIT_CONTRADICTED)
    seen = feeds.list_feeds(session, visible_to=roots, at=at, limit=FEEDS_SHOWN)
    in_use = _inside(select(NodeRow.id).where(NodeRow.retired_at.is_(None)), NodeRow.unit_id, inside)
    online = in_use.join(NodeStatusRow, NodeStatusRow.node_id == NodeRow.id).where(NodeStatusRow.link == "online")
    waiting = in_use.join(NodePlanRow, NodePlanRow.node_id == NodeRow.id).where(NodePlanRow.acknowledged_at.is_(None))
    clusters = select(ClusterRow.id).where(ClusterRow.retired_at.is_(None))
    active = select(ScheduleRow.id).where(ScheduleRow.state == ScheduleState.ACTIVE)
    conflicts = select(ConflictRow.id).where(ConflictRow.closed_at.is_(None))
    submitted = (
        select(BulletinVersionRow.id)
        .join(BulletinRow, BulletinRow.id == BulletinVersionRow.bulletin_id)
        .where(BulletinVersionRow.state == VersionState.SUBMITTED)
    )
    unreviewed = select(BreakGlassReviewRow.emergency_id).where(BreakGlassReviewRow.reviewed_at.is_(None))
    unreviewed = _inside(unreviewed, BreakGlassReviewRow.unit_id, inside)
    return Overview(
        leader=session.get(LeaseRow, leases.LEADER),
        broker=None if broker is None else broker.get("kind"),
        units=_count(session, _inside(select(UnitRow.id), UnitRow.id, inside)),
        clusters=_count(session, _inside(clusters, ClusterRow.unit_id, inside)),
        nodes=_count(session, in_use),
        nodes_online=_count(session, online),
        nodes_on_probation=_count(session, in_use.where(NodeRow.state == NodeState.PROBATION)),
        nodes_quarantined=_count(session, in_use.where(NodeRow.state == NodeState.QUARANTINED)),
        schedules_active=_count(session, _inside(active, ScheduleRow.unit_id, inside)),
        plans_waiting=_count(session, waiting),
        conflicts_open=_count(session, _inside(conflicts, ConflictRow.unit_id, inside)),
        approvals_waiting=_count(session, _inside(submitted, BulletinRow.unit_id, inside)),
        break_glass_open=_count(session, unreviewed),
        break_glass_overdue=_count(session, unreviewed.where(BreakGlassReviewRow.due_at <= at)),
        feeds=sorted(
            ((one.feed, one.status) for one in seen if one.feed.revoked_at is None),
            key=lambda pair: (pair[0].name_folded, pair[0].id),
        ),
        jobs=session.scalars(select(JobRow).order_by(JobRow.name)).all(),
        audit_contradicted=0 if contradicted is None else len(contradicted["open"]),
    )


def _inside(
    rows: Select[tuple[str]], unit: InstrumentedAttribute[str], inside: Select[tuple[str]] | None
) -> Select[tuple[str]]:
    return rows if inside is None else rows.where(unit.in_(inside))


def alive(session: Session) -> bool:
    """Whether the database answers at all. Raises `Unavailable` through the store otherwise."""
    return bool(session.scalar(select(1)) == 1)


def _count(session: Session, rows: Select[Any]) -> int:
    return session.scalar(select(func.count()).select_from(rows.subquery())) or 0
