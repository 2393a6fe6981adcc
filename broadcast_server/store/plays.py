"""The play log as rows: reading it, page by page, and counting the proof of a broadcast.

Read only: plays are written by the playout's inbox and nobody edits them. A page goes backwards in time; its cursor is
the (start, id) of the last row seen, so rows that arrive meanwhile neither repeat nor hide others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from broadcast_server.domain.clock import Window
from broadcast_server.domain.errors import NotFound
from broadcast_server.domain.proof import Verdict
from broadcast_server.store import beginnings, places, relays
from broadcast_server.store.tables import BroadcastRow, ClusterRow, PlayRow, ScheduleRow
from broadcast_server.store.words import ContentKind, ScheduleKind
from speaker_protocol.rules import BulletinClass


@dataclass(frozen=True, slots=True)
class Play:
    """A line of the play log (nhật ký phát). An emergency belongs to no schedule."""

    id: str
    broadcast_id: str
    schedule_id: str | None
    kind: ScheduleKind
    klass: BulletinClass
    title: str
    unit_id: str
    cluster_id: str
    cluster_code: str
    cluster_name: str
    node_id: str
    starts_at: datetime
    ends_at: datetime
    verdict: Verdict
    reason: str | None
    heard_ms: int
    started_at: datetime | None
    underruns: int
    feed_id: str | None
    asset_sha256: str | None
    approval: str | None
    judged_at: datetime | None
    late_ms: int | None = None
    late_because: str | None = None
    uncertainty_ms: float | None = None
    """How the node says it began (`store.beginnings`)."""
    instead: tuple[relays.Instead, ...] = ()
    """What sounded in place of the feed it relays, and when (`đang phát thay`)."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What is known of one broadcast. `coverage`: heard time over planned time, 0 to 1, over all its nodes."""

    broadcast_id: str
    schedule_id: str | None
    unit_id: str
    kind: ScheduleKind
    klass: BulletinClass
    title: str
    starts_at: datetime
    ends_at: datetime
    feed_id: str | None
    asset_sha256: str | None
    approval: str | None
    nodes_planned: int
    nodes_heard: int
    verdicts: dict[str, int]
    coverage: float
    underruns: int
    open: int
    """Lines not judged yet."""


def list_plays(
    session: Session,
    roots: Collection[str] | None,
    on: date,
    *,
    cluster_id: str | None = None,
    broadcast_id: str | None = None,
    schedule_id: str | None = None,
    verdict: Verdict | None = None,
    starts_from: datetime | None = None,
    starts_before: datetime | None = None,
    after: tuple[datetime, str] | None = None,
    limit: int,
) -> list[Play]:
    """Latest first, with their start in `[starts_from, starts_before)`.

    Of the places under `roots` on that date, None: of all.
    """
    query = (
        select(PlayRow, BroadcastRow, ClusterRow.code, ClusterRow.name)
        .join(BroadcastRow, BroadcastRow.id == PlayRow.broadcast_id)
        .join(ClusterRow, ClusterRow.id == PlayRow.cluster_id)
        .order_by(PlayRow.starts_at.desc(), PlayRow.id.desc())
        .limit(limit)
    )
    if roots is not None:
        query = query.where(PlayRow.unit_id.in_(places.subtree_query(roots, on)))
    if cluster_id is not None:
        query = query.where(PlayRow.cluster_id == cluster_id)
    if broadcast_id is not None:
        query = query.where(PlayRow.broadcast_id == broadcast_id)
    if schedule_id is not None:
        query = query.where(BroadcastRow.schedule_id == schedule_id)
    if verdict is not None:
        query = query.where(PlayRow.verdict == verdict)
    if starts_from is not None:
        query = query.where(PlayRow.starts_at >= starts_from)
    if starts_before is not None:
        query = query.where(PlayRow.starts_at < starts_before)
    if after is not None:
        starts_at, play_id = after
        query = query.where(
            or_(PlayRow.starts_at < starts_at, and_(PlayRow.starts_at == starts_at, PlayRow.id < play_id))
        )
    found = [
        Play(
            id=play.id,
            broadcast_id=play.broadcast_id,
            schedule_id=broadcast.schedule_id,
            kind=broadcast.kind,
            klass=broadcast.klass,
            title=broadcast.title,
            unit_id=play.unit_id,
            cluster_id=play.cluster_id,
            cluster_code=code,
            cluster_name=name,
            node_id=play.node_id,
            starts_at=play.starts_at,
            ends_at=play.ends_at,
            verdict=play.verdict,
            reason=play.reason,
            heard_ms=play.heard_ms,
            started_at=play.started_at,
            underruns=play.underruns,
            feed_id=broadcast.feed_id,
            asset_sha256=broadcast.asset_sha256,
            approval=broadcast.approval,
            judged_at=play.judged_at,
        )
        for play, broadcast, code, name in session.execute(query)
    ]
    began = beginnings.beginnings_of(session, [(one.broadcast_id, one.node_id, one.starts_at) for one in found])
    relayed = [one for one in found if one.feed_id is not None]
    instead = relays.sounded_instead(session, [(one.feed_id or "", one.starts_at, one.ends_at) for one in relayed])
    told = {one.id: stretches for one, stretches in zip(relayed, instead, strict=True)}
    return [replace(_with_beginning(one, began), instead=told.get(one.id, ())) for one in found]


def _with_beginning(play: Play, began: Mapping[beginnings.Line, beginnings.Beginning]) -> Play:
    told = began.get((play.broadcast_id, play.node_id, play.starts_at), beginnings.UNTOLD)
    return replace(play, late_ms=told.late_ms, late_because=told.because, uncertainty_ms=told.uncertainty_ms)


def broadcast(session: Session, broadcast_id: str) -> BroadcastRow:
    """Raises `NotFound`."""
    row = session.get(BroadcastRow, broadcast_id)
    if row is None:
        raise NotFound("unknown_broadcast", broadcast=broadcast_id)
    return row


def broadcast_ids(
    session: Session,
    roots: Collection[str] | None,
    on: date,
    *,
    schedule_id: str | None = None,
    starts_from: datetime | None = None,
    starts_before: datetime | None = None,
    after: tuple[datetime, str] | None = None,
    limit: int,
) -> list[str]:
    """Broadcasts that were planned for a place under `roots`, or belong to one; the latest first."""
    query = select(BroadcastRow.id).order_by(BroadcastRow.starts_at.desc(), BroadcastRow.id.desc()).limit(limit)
    if roots is not None:
        inside = places.subtree_query(roots, on)
        planned = select(PlayRow.broadcast_id).where(PlayRow.unit_id.in_(inside))
        query = query.where(or_(BroadcastRow.unit_id.in_(inside), BroadcastRow.id.in_(planned)))
    if schedule_id is not None:
        query = query.where(BroadcastRow.schedule_id == schedule_id)
    if starts_from is not None:
        query = query.where(BroadcastRow.starts_at >= starts_from)
    if starts_before is not None:
        query = query.where(BroadcastRow.starts_at < starts_before)
    if after is not None:
        starts_at, broadcast_id = after
        query = query.where(
            or_(
                BroadcastRow.starts_at < starts_at,
                and_(BroadcastRow.starts_at == starts_at, BroadcastRow.id < broadcast_id),
            )
        )
    return list(session.scalars(query))


def proof_of(session: Session, broadcast_id: str, roots: Collection[str] | None, on: date) -> Proof:
    """The counts of one broadcast, at the places under `roots` on that date, None: everywhere. Raises `NotFound`."""
    broadcast(session, broadcast_id)
    return proofs_of(session, (broadcast_id,), roots, on)[0]


def proofs_of(session: Session, broadcast_ids: Sequence[str], roots: Collection[str] | None, on: date) -> list[Proof]:
    """The counts of these broadcasts, in this order, in two queries."""
    rows = {row.id: row for row in session.scalars(select(BroadcastRow).where(BroadcastRow.id.in_(broadcast_ids)))}
    counts = {broadcast_id: _Count() for broadcast_id in rows}
    query = select(
        PlayRow.broadcast_id,
        PlayRow.node_id,
        PlayRow.starts_at,
        PlayRow.ends_at,
        PlayRow.verdict,
        PlayRow.heard_ms,
        PlayRow.underruns,
        PlayRow.judged_at,
    ).where(PlayRow.broadcast_id.in_(broadcast_ids))
    if roots is not None:
        query = query.where(PlayRow.unit_id.in_(places.subtree_query(roots, on)))
    for line in session.execute(query):
        counts[line.broadcast_id].add(line)
    return [counts[broadcast_id].proof(rows[broadcast_id]) for broadcast_id in broadcast_ids if broadcast_id in rows]


class _Count:
    """The lines of one broadcast, added up."""

    def __init__(self) -> None:
        self.planned_nodes: set[str] = set()
        self.heard_nodes: set[str] = set()
        self.verdicts: Counter[str] = Counter({verdict.value: 0 for verdict in Verdict})
        self.planned_ms = self.heard_ms = self.underruns = self.open = 0

    def add(self, line: Any) -> None:
        line_ms = round((line.ends_at - line.starts_at).total_seconds() * 1000)
        self.planned_nodes.add(line.node_id)
        if line.heard_ms > 0:
            self.heard_nodes.add(line.node_id)
        self.verdicts[line.verdict.value] += 1
        self.planned_ms += line_ms
        self.heard_ms += min(line.heard_ms, line_ms)
        self.underruns += line.underruns
        self.open += line.judged_at is None

    def proof(self, row: BroadcastRow) -> Proof:
        return Proof(
            broadcast_id=row.id,
            schedule_id=row.schedule_id,
            unit_id=row.unit_id,
            kind=row.kind,
            klass=row.klass,
            title=row.title,
            starts_at=row.starts_at,
            ends_at=row.ends_at,
            feed_id=row.feed_id,
            asset_sha256=row.asset_sha256,
            approval=row.approval,
            nodes_planned=len(self.planned_nodes),
            nodes_heard=len(self.heard_nodes),
            verdicts=dict(self.verdicts),
            coverage=round(self.heard_ms / self.planned_ms, 4) if self.planned_ms else 0.0,
            underruns=self.underruns,
            open=self.open,
        )


@dataclass(frozen=True, slots=True)
class Line:
    """How long one planned stretch was heard on one node of a cluster."""

    broadcast_id: str
    cluster_id: str
    starts_at: datetime
    ends_at: datetime
    heard_ms: int


def lines_of(
    session: Session,
    cluster_ids: Collection[str],
    within: Window,
    *,
    feed_id: str | None = None,
    bulletin_id: str | None = None,
) -> list[Line]:
    """The play log of these clusters that touches `within`: of a feed, or of a bulletin, whoever scheduled it."""
    query = (
        select(PlayRow.broadcast_id, PlayRow.cluster_id, PlayRow.starts_at, PlayRow.ends_at, PlayRow.heard_ms)
        .join(BroadcastRow, BroadcastRow.id == PlayRow.broadcast_id)
        .where(PlayRow.cluster_id.in_(cluster_ids), PlayRow.starts_at < within.end, PlayRow.ends_at > within.start)
        .order_by(PlayRow.starts_at, PlayRow.id)
    )
    if feed_id is not None:
        query = query.where(BroadcastRow.feed_id == feed_id)
    if bulletin_id is not None:
        query = query.join(ScheduleRow, ScheduleRow.id == BroadcastRow.schedule_id).where(
            ScheduleRow.content_kind == ContentKind.BULLETIN, ScheduleRow.content_id == bulletin_id
        )
    return [Line(*row) for row in session.execute(query)]
