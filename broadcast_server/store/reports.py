"""What nodes say: statuses with the spans they were reachable, reports exactly once, and the play log made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from broadcast_server.store.tables import (
    BroadcastRow,
    LinkSpanRow,
    NodePlanRow,
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

    Each status: `node_id, link, boot_id, plan_sha256, highest_epoch, highest_sequence, sounding, body`. `ids`: fresh
    ids, one per status at least.
    """
    names = [status["node_id"] for status in statuses]
    before = dict(
        session.execute(select(NodeStatusRow.node_id, NodeStatusRow.link).where(NodeStatusRow.node_id.in_(names)))
        .tuples()
        .all()
    )
    since = dict(
        session.execute(select(NodeStatusRow.node_id, NodeStatusRow.since).where(NodeStatusRow.node_id.in_(names)))
        .tuples()
        .all()
    )
    changed = [status for status in statuses if before.get(status["node_id"]) != status["link"]]
    upsert(
        session,
        NodeStatusRow,
        [
            {**status, "seen_at": now, "since": since[status["node_id"]] if status not in changed else now}
            for status in statuses
        ],
        update=(
            "link",
            "since",
            "seen_at",
            "boot_id",
            "plan_sha256",
            "highest_epoch",
            "highest_sequence",
            "sounding",
            "body",
        ),
    )
    went = [status["node_id"] for status in changed]
    session.execute(
        update(LinkSpanRow).where(LinkSpanRow.node_id.in_(went), LinkSpanRow.until.is_(None)).values(until=now)
    )
    fresh = iter(ids)
    session.add_all(
        LinkSpanRow(id=next(fresh), node_id=status["node_id"], since=now, until=None)
        for status in changed
        if status["link"] == "online"
    )


def highest_seen(session: Session) -> tuple[int, int]:
    """The highest epoch and the highest sequence that any node has obeyed."""
    row = session.execute(select(func.max(NodeStatusRow.highest_epoch), func.max(NodeStatusRow.highest_sequence))).one()
    return (row[0] or 0, row[1] or 0)


def save_reports(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    """Append device log entries; one that is there already is left as it is."""
    upsert(session, ReportRow, rows)


def reports_of(session: Session, entry_ids: Sequence[str], node_ids: Sequence[str] | None = None) -> list[ReportRow]:
    """All reports about these entries, optionally of these nodes only."""
    query = select(ReportRow).where(ReportRow.entry_id.in_(entry_ids))
    if node_ids is not None:
        query = query.where(ReportRow.node_id.in_(node_ids))
    return list(session.scalars(query.order_by(ReportRow.node_id, ReportRow.boot_id, ReportRow.sequence)))


def reachable(
    session: Session, node_ids: Sequence[str], start: datetime, end: datetime
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


def broadcasts_known(session: Session, ids: Sequence[str]) -> set[str]:
    """Which of these entries are in the log of broadcasts."""
    return set(session.scalars(select(BroadcastRow.id).where(BroadcastRow.id.in_(ids))))


def nodes_by_body(session: Session) -> dict[str, list[KnownNode]]:
    """Active nodes by the plan body they were last sent."""
    rows = session.execute(
        select(NodePlanRow.body_sha256, NodeRow.id, NodeRow.unit_id, NodeRow.cluster_id, NodeRow.public_key)
        .join(NodeRow, NodeRow.id == NodePlanRow.node_id)
        .where(NodeRow.retired_at.is_(None))
    )
    found: dict[str, list[KnownNode]] = {}
    for body, node_id, unit_id, cluster_id, key in rows:
        found.setdefault(body, []).append(KnownNode(node_id, unit_id, cluster_id, bytes.fromhex(key)))
    return found


def plays_of(session: Session, broadcast_ids: Sequence[str]) -> dict[tuple[str, str, datetime], str]:
    """Ids of the rows of the play log about these broadcasts, by `(node, broadcast, segment start)`."""
    rows = session.execute(
        select(PlayRow.id, PlayRow.node_id, PlayRow.broadcast_id, PlayRow.starts_at).where(
            PlayRow.broadcast_id.in_(broadcast_ids)
        )
    )
    return {(node, broadcast, start): play_id for play_id, node, broadcast, start in rows}


def save_plays(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    """Write verdicts; a later report may better a verdict."""
    upsert(
        session,
        PlayRow,
        rows,
        update=("verdict", "reason", "heard_ms", "started_at", "underruns", "ends_at", "judged_at"),
    )
