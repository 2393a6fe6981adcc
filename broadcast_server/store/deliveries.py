"""Deliveries as rows: one per emergency or stop-all and node, made, sent, answered and closed in bulk.

A maintainer must not break: (1) rows are made in the transaction that launches, from the register as it stands there,
by one statement; (2) nothing here loops over nodes with a statement each: ten thousand of them must cost one commit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import and_, bindparam, exists, func, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from broadcast_server.domain.delivery import (
    ALERT,
    ANSWER_WITHIN,
    GIVE_UP_CLEARING,
    REACHED,
    RETRY_AFTER_S,
    Delivery,
    DeliveryState,
    unreached_because,
)
from broadcast_server.store import places
from broadcast_server.store.reports import Line
from broadcast_server.store.tables import BroadcastRow, ClusterRow, DeliveryRow, NodeRow, NodeStatusRow, PlayRow
from broadcast_server.store.types import UtcDateTime, Word
from broadcast_server.store.words import NodeState

_COLUMNS: Final = (
    DeliveryRow.subject,
    DeliveryRow.node_id,
    DeliveryRow.state,
    DeliveryRow.reason,
    DeliveryRow.rounds,
    DeliveryRow.expires_at,
    DeliveryRow.over_at,
    DeliveryRow.received_at,
    DeliveryRow.sounding_at,
    DeliveryRow.heard_at,
    DeliveryRow.cleared_at,
    DeliveryRow.closed_at,
)
_CHANGING: Final = (
    "state",
    "reason",
    "rounds",
    "received_at",
    "sounding_at",
    "heard_at",
    "cleared_at",
    "closed_at",
)


def enlist(
    session: Session, subject: str, units: Collection[str], on: date, *, now: datetime, expires_at: datetime | None
) -> None:
    """An intent for every node that sits under these units on that date and has none yet."""
    instant, word = UtcDateTime(), Word(DeliveryState)
    source = (
        select(
            literal(subject),
            NodeRow.id,
            ClusterRow.unit_id,
            ClusterRow.id,
            literal(DeliveryState.INTENT, word),
            literal(0),
            literal(0),
            literal(now, instant),
            literal(expires_at, instant),
            literal(now, instant),
        )
        .join(ClusterRow, ClusterRow.id == NodeRow.cluster_id)
        .where(NodeRow.state == NodeState.ACTIVE, ClusterRow.unit_id.in_(places.subtree_query(units, on)))
    )
    names = (
        "subject",
        "node_id",
        "unit_id",
        "cluster_id",
        "state",
        "rounds",
        "attempts",
        "due_at",
        "expires_at",
        "created_at",
    )
    make = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    session.execute(make(DeliveryRow).from_select(names, source).on_conflict_do_nothing())


def sent(session: Session, subjects: Collection[str], *, now: datetime) -> None:
    """What was only meant has left."""
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.subject.in_(subjects), DeliveryRow.state == DeliveryState.INTENT)
        .values(state=DeliveryState.SENT, sent_at=now, attempts=1, due_at=now + ANSWER_WITHIN)
    )


def taken_back(session: Session, subject: str, *, now: datetime) -> None:
    """Cancelled, replaced or released: whoever has it must show that it let go."""
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.subject == subject, DeliveryRow.over_at.is_(None))
        .values(over_at=now, attempts=1, due_at=now + ANSWER_WITHIN)
    )


@dataclass(frozen=True, slots=True)
class Due:
    """A node that is there and has not answered."""

    subject: str
    node_id: str
    attempts: int


def due(session: Session, *, now: datetime, limit: int = 20_000) -> list[Due]:
    """Who is online and did not answer in time: neither to what is in force nor to its end."""
    in_force = and_(
        DeliveryRow.over_at.is_(None),
        or_(DeliveryRow.expires_at.is_(None), DeliveryRow.expires_at > now),
        DeliveryRow.received_at.is_(None),
    )
    ended = and_(
        DeliveryRow.over_at.is_not(None), DeliveryRow.received_at.is_not(None), DeliveryRow.cleared_at.is_(None)
    )
    rows = session.execute(
        select(DeliveryRow.subject, DeliveryRow.node_id, DeliveryRow.attempts)
        .join(NodeStatusRow, NodeStatusRow.node_id == DeliveryRow.node_id)
        .where(
            DeliveryRow.closed_at.is_(None),
            DeliveryRow.due_at <= now,
            DeliveryRow.state != DeliveryState.INTENT,
            NodeStatusRow.link == "online",
            or_(in_force, ended),
        )
        .order_by(DeliveryRow.subject, DeliveryRow.node_id)
        .limit(limit)
    )
    return [Due(*row) for row in rows]


def sent_again(session: Session, nodes: Sequence[Due], *, now: datetime) -> None:
    """One more attempt; the next comes later."""
    session.connection().execute(
        update(DeliveryRow)
        .where(DeliveryRow.subject == bindparam("one"), DeliveryRow.node_id == bindparam("node"))
        .values(attempts=bindparam("times"), due_at=bindparam("again")),
        [
            {
                "one": one.subject,
                "node": one.node_id,
                "times": one.attempts + 1,
                "again": now + timedelta(seconds=RETRY_AFTER_S[min(one.attempts, len(RETRY_AFTER_S)) - 1]),
            }
            for one in nodes
        ],
    )


def any_open(session: Session) -> bool:
    """Whether anything is under way at all; cheap, so that a quiet day costs nothing."""
    return bool(session.scalar(select(exists().where(DeliveryRow.closed_at.is_(None)))))


def open_at(session: Session, nodes: Collection[str]) -> list[Delivery]:
    """What these nodes must still answer for."""
    query = select(*_COLUMNS).where(DeliveryRow.node_id.in_(nodes), DeliveryRow.closed_at.is_(None))
    return [Delivery(*row) for row in session.execute(query)]


def of(session: Session, subject: str, nodes: Collection[str]) -> list[Delivery]:
    """The deliveries of one subject at these nodes, closed ones too."""
    query = select(*_COLUMNS).where(DeliveryRow.subject == subject, DeliveryRow.node_id.in_(nodes))
    return [Delivery(*row) for row in session.execute(query)]


def to_close(session: Session, *, now: datetime, grace: timedelta, limit: int) -> list[Delivery]:
    """What ended `grace` ago and still lacks its last word, or can be closed (`domain.delivery.closed`)."""

    def ended(before: datetime) -> Any:
        return or_(DeliveryRow.over_at <= before, DeliveryRow.expires_at <= before)

    lacks_a_word = or_(
        DeliveryRow.state.in_((DeliveryState.INTENT, DeliveryState.SENT, DeliveryState.SOUNDING)),
        and_(DeliveryRow.state == DeliveryState.RECEIVED, DeliveryRow.subject.startswith(ALERT)),
    )
    is_settled = or_(
        DeliveryRow.received_at.is_(None), DeliveryRow.cleared_at.is_not(None), ended(now - GIVE_UP_CLEARING)
    )
    query = (
        select(*_COLUMNS)
        .where(DeliveryRow.closed_at.is_(None), ended(now - grace), or_(lacks_a_word, is_settled))
        .order_by(DeliveryRow.subject, DeliveryRow.node_id)
        .limit(limit)
    )
    return [Delivery(*row) for row in session.execute(query)]


def save(session: Session, deliveries: Sequence[Delivery]) -> None:
    """Write how far these came."""
    if deliveries:
        session.connection().execute(
            update(DeliveryRow)
            .where(DeliveryRow.subject == bindparam("one"), DeliveryRow.node_id == bindparam("node"))
            .values({name: bindparam(f"new_{name}") for name in _CHANGING}),
            [
                {"one": each.subject, "node": each.node_id} | {f"new_{name}": getattr(each, name) for name in _CHANGING}
                for each in deliveries
            ],
        )


# -- for people -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """A delivery with where it is and, if it is unreached, why and since when."""

    subject: str
    node_id: str
    unit_id: str
    cluster_id: str
    cluster_code: str
    cluster_name: str
    state: DeliveryState
    reason: str | None
    since: datetime | None
    rounds: int
    attempts: int
    sent_at: datetime | None
    received_at: datetime | None
    sounding_at: datetime | None
    heard_at: datetime | None
    cleared_at: datetime | None


def list_deliveries(
    session: Session,
    subject: str,
    roots: Collection[str] | None,
    on: date,
    *,
    now: datetime,
    unreached: bool = False,
    state: DeliveryState | None = None,
    after: str | None = None,
    limit: int,
) -> list[Shown]:
    """By node id, after that of the last one seen; under `roots` on that date, None: everywhere."""
    query = (
        select(
            DeliveryRow,
            ClusterRow.code,
            ClusterRow.name,
            NodeStatusRow.link,
            NodeStatusRow.seen_at,
            NodeStatusRow.since,
        )
        .join(ClusterRow, ClusterRow.id == DeliveryRow.cluster_id)
        .outerjoin(NodeStatusRow, NodeStatusRow.node_id == DeliveryRow.node_id)
        .where(DeliveryRow.subject == subject)
        .order_by(DeliveryRow.node_id)
        .limit(limit)
    )
    if roots is not None:
        query = query.where(DeliveryRow.unit_id.in_(places.subtree_query(roots, on)))
    if unreached:
        query = query.where(DeliveryRow.state.not_in(REACHED))
    if state is not None:
        query = query.where(DeliveryRow.state == state)
    if after is not None:
        query = query.where(DeliveryRow.node_id > after)
    found = []
    for row, code, name, link, seen_at, link_since in session.execute(query):
        reason, since = row.reason, None
        if row.state not in REACHED:
            known = Delivery(row.subject, row.node_id, row.state, row.reason, received_at=row.received_at)
            reason, since = unreached_because(known, link, seen_at, link_since, now=now)
        found.append(
            Shown(
                subject=row.subject,
                node_id=row.node_id,
                unit_id=row.unit_id,
                cluster_id=row.cluster_id,
                cluster_code=code,
                cluster_name=name,
                state=row.state,
                reason=reason,
                since=since,
                rounds=row.rounds,
                attempts=row.attempts,
                sent_at=row.sent_at,
                received_at=row.received_at,
                sounding_at=row.sounding_at,
                heard_at=row.heard_at,
                cleared_at=row.cleared_at,
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Counts:
    """How far a subject came. `holding`: nodes that have it, or did when they last spoke, although it is over."""

    nodes: int = 0
    received: int = 0
    sounding: int = 0
    heard: int = 0
    unreached: int = 0
    holding: int = 0


def counts(session: Session, subject: str, roots: Collection[str] | None, on: date) -> Counts:
    """`counts_of` for one subject."""
    return counts_of(session, (subject,), roots, on)[subject]


def counts_of(
    session: Session, subjects: Collection[str], roots: Collection[str] | None, on: date
) -> dict[str, Counts]:
    """Nodes by how far they came, for each subject. `sounding` counts whoever began, `heard` whoever ended a round."""

    def many(condition: Any) -> Any:
        return func.count().filter(condition)

    is_holding = and_(
        DeliveryRow.over_at.is_not(None), DeliveryRow.received_at.is_not(None), DeliveryRow.cleared_at.is_(None)
    )
    query = (
        select(
            DeliveryRow.subject,
            func.count(),
            many(DeliveryRow.received_at.is_not(None)),
            many(DeliveryRow.sounding_at.is_not(None)),
            many(DeliveryRow.state == DeliveryState.HEARD),
            many(DeliveryRow.state.not_in(REACHED)),
            many(is_holding),
        )
        .where(DeliveryRow.subject.in_(subjects))
        .group_by(DeliveryRow.subject)
    )
    if roots is not None:
        query = query.where(DeliveryRow.unit_id.in_(places.subtree_query(roots, on)))
    found = {row[0]: Counts(*row[1:]) for row in session.execute(query)}
    return {subject: found.get(subject, Counts()) for subject in subjects}


# -- the play log -----------------------------------------------------------------------------------------------------


def without_line(session: Session, *, limit: int) -> list[tuple[DeliveryRow, datetime, datetime]]:
    """Deliveries of emergencies that have no line in the play log yet, with the window of one round."""
    has_line = exists().where(PlayRow.node_id == DeliveryRow.node_id, PlayRow.broadcast_id == DeliveryRow.subject)
    rows = session.execute(
        select(DeliveryRow, BroadcastRow.starts_at, BroadcastRow.ends_at)
        .join(BroadcastRow, BroadcastRow.id == DeliveryRow.subject)
        .where(DeliveryRow.closed_at.is_(None), ~has_line)
        .order_by(DeliveryRow.subject, DeliveryRow.node_id)
        .limit(limit)
    )
    return [(row, start, end) for row, start, end in rows]


def open_lines(session: Session, *, ended_before: datetime, limit: int) -> list[Line]:
    """Lines of emergencies not judged yet whose round ended before."""
    names = ("id", "broadcast_id", "unit_id", "cluster_id", "node_id", "starts_at", "ends_at", "judged_at")
    rows = session.execute(
        select(*(getattr(PlayRow, name) for name in names))
        .join(DeliveryRow, and_(DeliveryRow.subject == PlayRow.broadcast_id, DeliveryRow.node_id == PlayRow.node_id))
        .where(PlayRow.judged_at.is_(None), PlayRow.ends_at <= ended_before)
        .order_by(PlayRow.id)
        .limit(limit)
    )
    return [Line(*row) for row in rows]


def move_lines(session: Session, subject: str, ends_at: datetime) -> None:
    """The round of an emergency is longer or shorter than was thought, and so are its lines in the play log."""
    session.execute(update(BroadcastRow).where(BroadcastRow.id == subject).values(ends_at=ends_at))
    session.execute(
        update(PlayRow).where(PlayRow.broadcast_id == subject, PlayRow.judged_at.is_(None)).values(ends_at=ends_at)
    )
