"""What nodes say: statuses with the spans they were reachable, reports exactly once, and the play log made of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.orm import Session

from broadcast_server.domain.proof import Verdict
from broadcast_server.store.tables import (
    BroadcastRow,
    LinkSpanRow,
    NodeRow,
    NodeStatusRow,
    PlayRow,
    ReportRow,
)
from broadcast_server.store.upsert import upsert


@dataclass(frozen=True, slots=True)
class KnownNode:
    """What the inbox must know to believe a node."""

    node_id: str
    unit_id: str
    cluster_id: str
    public_key: bytes


def known_nodes(session: Session) -> dict[str, KnownNode]:
    """All nodes that are not retired, by id."""
    rows = session.execute(
        select(NodeRow.id, NodeRow.unit_id, NodeRow.cluster_id, NodeRow.public_key).where(NodeRow.retired_at.is_(None))
    )
    return {row[0]: KnownNode(row[0], row[1], row[2], bytes.fromhex(row[3])) for row in rows}


def save_statuses(
    session: Session, statuses: Sequence[Mapping[str, Any]], *, now: datetime, ids: Iterable[str]
) -> None:
    """The latest word of each node. Opens and closes the span in which it was reachable.

    Each status: `node_id, link, boot_id, plan_sha256, highest_epoch, highest_sequence, sounding, body` and, where it
    was told, `due`; else what was told before stays. `ids`: fresh ids, one per status at least.
    """
    names = [status["node_id"] for status in statuses]
    before = {
        node: (link, since)
        for node, link, since in session.execute(
            select(NodeStatusRow.node_id, NodeStatusRow.link, NodeStatusRow.since).where(
                NodeStatusRow.node_id.in_(names)
            )
        )
    }
    went = {
        status["node_id"]
        for status in statuses
        if status["node_id"] not in before or before[status["node_id"]][0] != status["link"]
    }
    rows = [
        {**status, "seen_at": now, "since": now if status["node_id"] in went else before[status["node_id"]][1]}
        for status in statuses
    ]
    upsert(session, NodeStatusRow, [row for row in rows if "due" not in row], update=_STATUS)
    upsert(session, NodeStatusRow, [row for row in rows if "due" in row], update=(*_STATUS, "due"))
    if not went:
        return
    session.execute(
        update(LinkSpanRow).where(LinkSpanRow.node_id.in_(went), LinkSpanRow.until.is_(None)).values(until=now)
    )
    fresh = iter(ids)
    session.add_all(
        LinkSpanRow(id=next(fresh), node_id=status["node_id"], since=now, until=None)
        for status in statuses
        if status["node_id"] in went and status["link"] == "online"
    )


_STATUS = (
    "link",
    "since",
    "seen_at",
    "boot_id",
    "plan_sha256",
    "highest_epoch",
    "highest_sequence",
    "sounding",
    "body",
)


def highest_seen(session: Session) -> tuple[int, int]:
    """The highest `(epoch, sequence)` that any node has obeyed; `(0, 0)` if none told."""
    row = session.execute(
        select(NodeStatusRow.highest_epoch, NodeStatusRow.highest_sequence)
        .order_by(NodeStatusRow.highest_epoch.desc(), NodeStatusRow.highest_sequence.desc())
        .limit(1)
    ).first()
    return (0, 0) if row is None else (row[0], row[1])


def save_reports(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    """Append device log entries; one that is there already is left as it is."""
    upsert(session, ReportRow, rows)


def reports_of(
    session: Session, entry_ids: Collection[str], node_ids: Collection[str] | None = None
) -> list[ReportRow]:
    """All reports about these entries, optionally of these nodes only."""
    query = select(ReportRow).where(ReportRow.entry_id.in_(entry_ids))
    if node_ids is not None:
        query = query.where(ReportRow.node_id.in_(node_ids))
    return list(session.scalars(query.order_by(ReportRow.node_id, ReportRow.boot_id, ReportRow.sequence)))


def reachable(
    session: Session, node_ids: Collection[str], start: datetime, end: datetime
) -> dict[str, list[LinkSpanRow]]:
    """Spans in which nodes were reachable that touch `[start, end)`, by node."""
    rows = session.scalars(
        select(LinkSpanRow)
        .where(
            LinkSpanRow.node_id.in_(node_ids),
            LinkSpanRow.since < end,
            (LinkSpanRow.until.is_(None)) | (LinkSpanRow.until > start),
        )
        .order_by(LinkSpanRow.since)
    )
    found: dict[str, list[LinkSpanRow]] = {}
    for row in rows:
        found.setdefault(row.node_id, []).append(row)
    return found


# -- the play log -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the play log: a stretch planned on one node. Open while `judged_at` is None."""

    id: str
    broadcast_id: str
    unit_id: str
    cluster_id: str
    node_id: str
    starts_at: datetime
    ends_at: datetime
    judged_at: datetime | None


_LINE = (
    PlayRow.id,
    PlayRow.broadcast_id,
    PlayRow.unit_id,
    PlayRow.cluster_id,
    PlayRow.node_id,
    PlayRow.starts_at,
    PlayRow.ends_at,
    PlayRow.judged_at,
)


def open_lines(session: Session) -> list[Line]:
    """All lines that were opened and not judged."""
    return [Line(*row) for row in session.execute(select(*_LINE).where(PlayRow.judged_at.is_(None)))]


def lines_of(session: Session, entry_ids: Collection[str], node_ids: Collection[str]) -> list[Line]:
    """Lines about these entries on these nodes."""
    query = select(*_LINE).where(PlayRow.broadcast_id.in_(entry_ids), PlayRow.node_id.in_(node_ids))
    return [Line(*row) for row in session.execute(query)]


def begun(session: Session, since: datetime) -> dict[tuple[str, datetime], datetime]:
    """End of every stretch that has lines and ended after `since`, by `(entry, start)`."""
    rows = session.execute(
        select(PlayRow.broadcast_id, PlayRow.starts_at, func.max(PlayRow.ends_at))
        .where(PlayRow.ends_at > since)
        .group_by(PlayRow.broadcast_id, PlayRow.starts_at)
    )
    return {(entry, start): end for entry, start, end in rows}


def add_lines(session: Session, lines: Sequence[Line]) -> None:
    """Open lines; one that is there already is left as it is."""
    upsert(
        session,
        PlayRow,
        [
            {
                "id": line.id,
                "broadcast_id": line.broadcast_id,
                "unit_id": line.unit_id,
                "cluster_id": line.cluster_id,
                "node_id": line.node_id,
                "starts_at": line.starts_at,
                "ends_at": line.ends_at,
                "verdict": Verdict.UNKNOWN,
                "reason": None,
                "heard_ms": 0,
                "started_at": None,
                "underruns": 0,
                "judged_at": line.judged_at,
            }
            for line in lines
        ],
    )


def move_ends(session: Session, ends: Mapping[str, datetime]) -> None:
    """These lines, by id, end at another instant than was planned."""
    if ends:
        session.connection().execute(
            update(PlayRow).where(PlayRow.id == bindparam("line")).values(ends_at=bindparam("until")),
            [{"line": line_id, "until": end} for line_id, end in ends.items()],
        )


def save_verdicts(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    """Write verdicts by line (`line`, and columns of `PlayRow` named `new_…`); a later report may better one."""
    if rows:
        names = ("verdict", "reason", "heard_ms", "started_at", "underruns", "judged_at")
        session.connection().execute(
            update(PlayRow)
            .where(PlayRow.id == bindparam("line"))
            .values({name: bindparam(f"new_{name}") for name in names}),
            list(rows),
        )


def told_after_verdict(session: Session, since: datetime) -> set[tuple[str, str]]:
    """`(entry, node)` of lines ended after `since` about which a report came after they were judged."""
    rows = session.execute(
        select(PlayRow.broadcast_id, PlayRow.node_id)
        .join(ReportRow, (ReportRow.entry_id == PlayRow.broadcast_id) & (ReportRow.node_id == PlayRow.node_id))
        .where(
            PlayRow.ends_at > since,
            PlayRow.verdict != Verdict.PLAYED,
            PlayRow.judged_at.is_not(None),
            ReportRow.received_at > PlayRow.judged_at,
        )
        .distinct()
    )
    return {(entry, node) for entry, node in rows}


def broadcast_windows(session: Session, ids: Collection[str]) -> dict[str, tuple[datetime, datetime]]:
    """Planned start and end of those of these entries that are in the log of broadcasts."""
    rows = session.execute(
        select(BroadcastRow.id, BroadcastRow.starts_at, BroadcastRow.ends_at).where(BroadcastRow.id.in_(ids))
    )
    return {row[0]: (row[1], row[2]) for row in rows}
