"""Bulletins sent down as rows: the sending, an arrival per unit, and what was heard of each.

A maintainer must not break: an arrival is never deleted and its state only goes on from `waiting`; what was heard is
counted from the play log, never from what was planned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from broadcast_server.domain.errors import NotFound
from broadcast_server.store import places
from broadcast_server.store.tables import ArrivalRow, BroadcastRow, ConflictRow, PlayRow, ScheduleRow, SendingRow
from broadcast_server.store.words import ArrivalState, ScheduleState
from speaker_protocol.rules import BulletinClass


def add(session: Session, sending: SendingRow, arrivals: Iterable[ArrivalRow]) -> None:
    """Enter a sending with its arrivals."""
    session.add(sending)
    session.flush()
    session.add_all(arrivals)
    session.flush()


def sending(session: Session, sending_id: str) -> SendingRow:
    """Raises `NotFound`."""
    row = session.get(SendingRow, sending_id)
    if row is None:
        raise NotFound("unknown_sending", sending=sending_id)
    return row


def arrival(session: Session, arrival_id: str) -> ArrivalRow:
    """Raises `NotFound`."""
    row = session.get(ArrivalRow, arrival_id)
    if row is None:
        raise NotFound("unknown_arrival", arrival=arrival_id)
    return row


def arrivals_of(session: Session, sending_ids: Collection[str]) -> dict[str, list[ArrivalRow]]:
    """By sending, in order of unit."""
    found: dict[str, list[ArrivalRow]] = {sending_id: [] for sending_id in sending_ids}
    for row in session.scalars(
        select(ArrivalRow).where(ArrivalRow.sending_id.in_(sending_ids)).order_by(ArrivalRow.unit_id)
    ):
        found[row.sending_id].append(row)
    return found


def of_alert(session: Session, emergency_id: str, state: ArrivalState) -> list[ArrivalRow]:
    """Arrivals that sound, or are to sound, as this emergency."""
    return list(
        session.scalars(
            select(ArrivalRow)
            .where(ArrivalRow.alert_id == emergency_id, ArrivalRow.state == state)
            .order_by(ArrivalRow.unit_id)
        )
    )


def list_sendings(
    session: Session, roots: Collection[str] | None, on: date, *, after: str | None, limit: int
) -> list[SendingRow]:
    """Those of senders under `roots`, newest first; `after` is the id of the last one seen."""
    query = select(SendingRow).order_by(SendingRow.id.desc()).limit(limit)
    if roots is not None:
        query = query.where(SendingRow.unit_id.in_(places.subtree_query(roots, on)))
    if after is not None:
        query = query.where(SendingRow.id < after)
    return list(session.scalars(query))


def list_arrivals(
    session: Session,
    roots: Collection[str] | None,
    on: date,
    *,
    state: ArrivalState | None = None,
    after: str | None,
    limit: int,
) -> list[ArrivalRow]:
    """Arrivals to units under `roots`, newest first; `after` is the id of the last one seen."""
    query = select(ArrivalRow).order_by(ArrivalRow.id.desc()).limit(limit)
    if roots is not None:
        query = query.where(ArrivalRow.unit_id.in_(places.subtree_query(roots, on)))
    if state is not None:
        query = query.where(ArrivalRow.state == state)
    if after is not None:
        query = query.where(ArrivalRow.id < after)
    return list(session.scalars(query))


def to_place(session: Session, sending_id: str | None = None) -> list[str]:
    """Ids of arrivals the server must place by itself, oldest first; of one sending only, if it is named."""
    query = (
        select(ArrivalRow.id)
        .join(SendingRow, SendingRow.id == ArrivalRow.sending_id)
        .where(ArrivalRow.state == ArrivalState.WAITING, SendingRow.klass == BulletinClass.PRIORITY)
        .order_by(ArrivalRow.id)
    )
    if sending_id is not None:
        query = query.where(ArrivalRow.sending_id == sending_id)
    return list(session.scalars(query))


def overdue(session: Session, now: datetime) -> list[ArrivalRow]:
    """Arrivals that wait for a unit although their deadline has passed."""
    return list(
        session.scalars(
            select(ArrivalRow)
            .join(SendingRow, SendingRow.id == ArrivalRow.sending_id)
            .where(
                ArrivalRow.state == ArrivalState.WAITING,
                SendingRow.klass == BulletinClass.NORMAL,
                SendingRow.deadline <= now,
            )
            .order_by(ArrivalRow.id)
        )
    )


def declined_at(session: Session, unit_ids: Collection[str], at: datetime) -> list[tuple[ArrivalRow, SendingRow]]:
    """Arrivals to these units that will not sound and were wished for an instant, in order."""
    rows = session.execute(
        select(ArrivalRow, SendingRow)
        .join(SendingRow, SendingRow.id == ArrivalRow.sending_id)
        .where(
            ArrivalRow.unit_id.in_(unit_ids),
            ArrivalRow.state.not_in([ArrivalState.WAITING, ArrivalState.PLANNED]),
            func.coalesce(SendingRow.earliest, SendingRow.created_at) <= at,
            func.coalesce(SendingRow.latest, SendingRow.deadline) > at,
        )
        .order_by(ArrivalRow.id)
    )
    return [(arrival_row, sending_row) for arrival_row, sending_row in rows]


@dataclass(frozen=True, slots=True)
class Heard:
    """What the play log has of some broadcasts: nodes, and how long the best of them was heard."""

    nodes_planned: int = 0
    nodes_heard: int = 0
    heard_ms: int = 0


def heard_of(session: Session, series_ids: Collection[str]) -> dict[str, Heard]:
    """By series of schedules; one that has no line in the play log yet is left out."""
    nodes: dict[str, set[str]] = defaultdict(set)
    heard: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for series_id, node_id, heard_ms in session.execute(
        select(ScheduleRow.series_id, PlayRow.node_id, PlayRow.heard_ms)
        .join(BroadcastRow, BroadcastRow.schedule_id == ScheduleRow.id)
        .join(PlayRow, PlayRow.broadcast_id == BroadcastRow.id)
        .where(ScheduleRow.series_id.in_(series_ids))
    ):
        nodes[series_id].add(node_id)
        if heard_ms > 0:
            heard[series_id][node_id] += heard_ms
    return {
        series_id: Heard(len(planned), len(heard[series_id]), max(heard[series_id].values(), default=0))
        for series_id, planned in nodes.items()
    }


def troubles_of(session: Session, series_ids: Collection[str]) -> dict[str, ConflictRow]:
    """The first open conflict of each series: why it will not sound as planned."""
    rows = session.execute(
        select(ScheduleRow.series_id, ConflictRow)
        .join(ConflictRow, ConflictRow.schedule_id == ScheduleRow.id)
        .where(ScheduleRow.series_id.in_(series_ids), ConflictRow.closed_at.is_(None))
        .order_by(ConflictRow.affects_from.desc(), ConflictRow.id)
    )
    return {series_id: row for series_id, row in rows}  # noqa: C416 - a Row is not a pair to mypy


def taken_off(session: Session, series_ids: Collection[str]) -> frozenset[str]:
    """Which of these series have nothing on the plan at all, because somebody cancelled them."""
    alive = session.scalars(
        select(ScheduleRow.series_id).where(
            ScheduleRow.series_id.in_(series_ids), ScheduleRow.state == ScheduleState.ACTIVE
        )
    )
    return frozenset(series_ids) - frozenset(alive)


def sendings_of(session: Session, sending_ids: Collection[str]) -> dict[str, SendingRow]:
    """By id."""
    return {row.id: row for row in session.scalars(select(SendingRow).where(SendingRow.id.in_(sending_ids)))}


def correction_of(session: Session, sending_id: str) -> SendingRow | None:
    """What was sent to correct it, the latest."""
    return session.scalars(
        select(SendingRow).where(SendingRow.corrects_id == sending_id).order_by(SendingRow.id.desc()).limit(1)
    ).first()
