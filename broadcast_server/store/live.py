"""Live sessions as rows, and what of the air a speaker must be told: who sounds the voice, and what cuts it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from broadcast_server.domain.errors import NotFound
from broadcast_server.store import places
from broadcast_server.store.tables import (
    AlertRow,
    LiveSessionRow,
    NodeRow,
    NodeStatusRow,
    ScheduleExceptionRow,
    ScheduleRow,
    StopAllRow,
)
from broadcast_server.store.words import LiveState, NodeState, RecordingState, ScheduleState


def add(session: Session, row: LiveSessionRow) -> LiveSessionRow:
    """Enter a session, whose schedule is there."""
    session.add(row)
    session.flush()
    return row


def get(session: Session, session_id: str) -> LiveSessionRow:
    """Raises `NotFound`."""
    row = session.get(LiveSessionRow, session_id)
    if row is None:
        raise NotFound("unknown_live", live=session_id)
    return row


def find(session: Session, session_id: str) -> LiveSessionRow | None:
    """The session, if there is one of this id."""
    return session.get(LiveSessionRow, session_id)


def open_sessions(session: Session) -> list[LiveSessionRow]:
    """Those that are on the air, oldest first."""
    query = select(LiveSessionRow).where(LiveSessionRow.state == LiveState.OPEN)
    return list(session.scalars(query.order_by(LiveSessionRow.id)))


def unrecorded(session: Session) -> list[LiveSessionRow]:
    """Those that are over and whose recording is not an asset yet, oldest first."""
    query = select(LiveSessionRow).where(
        LiveSessionRow.state == LiveState.CLOSED, LiveSessionRow.recording_state == RecordingState.PENDING
    )
    return list(session.scalars(query.order_by(LiveSessionRow.id)))


def list_sessions(
    session: Session,
    roots: Collection[str] | None,
    on: date,
    *,
    state: LiveState | None,
    after: str | None,
    limit: int,
) -> list[LiveSessionRow]:
    """Newest first; `after` is the id of the last one seen."""
    query = select(LiveSessionRow).order_by(LiveSessionRow.id.desc()).limit(limit)
    if roots is not None:
        query = query.where(LiveSessionRow.unit_id.in_(places.subtree_query(roots, on)))
    if state is not None:
        query = query.where(LiveSessionRow.state == state)
    if after is not None:
        query = query.where(LiveSessionRow.id < after)
    return list(session.scalars(query))


def nodes_of(session: Session, clusters: Collection[str]) -> int:
    """How many active nodes these clusters have."""
    wanted = frozenset(clusters)
    rows = session.scalars(select(NodeRow.cluster_id).where(NodeRow.state == NodeState.ACTIVE))
    return sum(cluster in wanted for cluster in rows)


def sounding(session: Session, session_id: str) -> int:
    """How many nodes say that they sound this voice."""
    query = select(func.count()).where(
        NodeStatusRow.link == "online", NodeStatusRow.body["stream"].as_string() == session_id
    )
    return session.scalar(query) or 0


def was_taken_off(session: Session, schedule_id: str) -> bool:
    """Whether somebody stopped or cancelled the session's entry."""
    row = session.get(ScheduleRow, schedule_id)
    if row is None or row.state is ScheduleState.CANCELLED:
        return True
    query = select(func.count()).where(ScheduleExceptionRow.schedule_id == schedule_id)
    return bool(session.scalar(query))


@dataclass(frozen=True, slots=True)
class Overriding:
    """What silences a voice: an emergency or a leader's voice until `until`, or stop-all until somebody releases it."""

    code: str
    winner_id: str
    unit_id: str
    title: str
    since: datetime
    until: datetime | None


def is_anything_overriding(session: Session, now: datetime) -> bool:
    """Whether any emergency or stop-all is in force anywhere; cheap."""
    return any(session.scalar(query.limit(1)) is not None for query in (_latches(now), _alerts(now)))


def overriding(session: Session, units: Collection[str], now: datetime) -> list[Overriding]:
    """The stop-all latches and emergencies in force at these units, the gravest first."""
    latches = session.scalars(_latches(now).where(StopAllRow.unit_id.in_(units)))
    alerts = session.scalars(_alerts(now).where(AlertRow.unit_id.in_(units)))
    return [
        *(Overriding("stop_all", row.id, row.unit_id, row.set_by, row.since, None) for row in latches),
        *(Overriding("emergency", row.id, row.unit_id, _title(row), row.issued_at, row.expires_at) for row in alerts),
    ]


def higher(session: Session, own: LiveSessionRow, now: datetime) -> list[tuple[LiveSessionRow, int]]:
    """Other voices on the air that stand above this one, with their levels; the highest first."""
    level = select(ScheduleRow.level).where(ScheduleRow.id == own.schedule_id).scalar_subquery()
    rows = session.execute(
        select(LiveSessionRow, ScheduleRow.level)
        .join(ScheduleRow, ScheduleRow.id == LiveSessionRow.schedule_id)
        .where(
            LiveSessionRow.state == LiveState.OPEN,
            LiveSessionRow.starts_at <= now,
            LiveSessionRow.ends_at > now,
            ScheduleRow.level > level,
        )
        .order_by(ScheduleRow.level.desc(), LiveSessionRow.id)
    )
    return [(row, above) for row, above in rows]


def _latches(now: datetime) -> Select[tuple[StopAllRow]]:
    in_force = or_(StopAllRow.released_at.is_(None), StopAllRow.released_at > now)
    return select(StopAllRow).where(StopAllRow.since <= now, in_force).order_by(StopAllRow.since)


def _alerts(now: datetime) -> Select[tuple[AlertRow]]:
    in_force = select(AlertRow).where(AlertRow.cancelled_at.is_(None), AlertRow.expires_at > now)
    return in_force.order_by(AlertRow.level.desc(), AlertRow.issued_at.desc(), AlertRow.id)


def _title(row: AlertRow) -> str:
    told = row.body.get("text") or row.body.get("hazard") or row.id
    return str(told)[:120]
