"""The devices' own logs as chains: what is here, what is missing, and who speaks with somebody else's key.

Every line carries its number and the digest of the line before it, so a gap is visible and a second version of a line
cannot hide. A maintainer must not break: (1) a line that contradicts the chain never takes a place in it; it is kept
as evidence, its report is kept outside of the chain (what it tells may be true), and the node is named in the audit
log, once, and silenced where two speak; (2) all of it happens in the transaction that stores the reports.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from broadcast_server.store import audit, devices
from broadcast_server.store.tables import DeviceForkRow, DeviceLogRow, NodeRow, ReportRow
from broadcast_server.store.upsert import upsert
from broadcast_server.store.words import QuarantineReason

_AT_ONCE: Final = 2_000

_Place = tuple[str, int]
"""Node and line."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a device's log is here."""

    through: int
    highest: int
    forked_at: datetime | None
    forked_line: int | None

    @property
    def missing(self) -> int:
        """How many places lie between the first missing line and the highest; 0 when nothing is missing."""
        return self.highest - self.through


@dataclass(frozen=True, slots=True)
class _Link:
    digest: str
    previous: str | None


class Taken(NamedTuple):
    """Report rows as they are to be kept, and the nodes that were silenced because two speak under their name."""

    rows: list[dict[str, Any]]
    silenced: frozenset[str]


def take(session: Session, rows: Sequence[dict[str, Any]], *, now: datetime) -> Taken:
    """Hold new report rows against the chains; the same rows, those that contradict one set outside of it.

    Moves the extents on, keeps the evidence and names the node in the audit log. A line that contradicts one that
    follows on the same line is another device: quarantine. One that follows on nothing here may be a device that lost
    all its memory and counts from 1 again: quarantine only when the chain of before goes on as well.
    """
    new = _unknown(session, [row for row in rows if row["line"] is not None])
    if not new:
        return Taken(list(rows), frozenset())
    links = _links(session, {(row["node_id"], row["line"] + step) for row in new for step in (-1, 0, 1)})
    forks: list[dict[str, Any]] = []
    parted: set[str] = set()
    taken: dict[str, set[int]] = {}
    for row in sorted(new, key=lambda row: (row["node_id"], row["line"])):
        node_id, line = row["node_id"], row["line"]
        link = _Link(hashlib.sha256(row["envelope"]).hexdigest(), row["previous"])
        if _contradicts(links, node_id, line, link):
            before = links.get((node_id, line - 1))
            if before is not None and before.digest == link.previous:
                parted.add(node_id)
            forks.append(
                {
                    "node_id": node_id,
                    "line": line,
                    "digest": link.digest,
                    "received_at": now,
                    "envelope": row["envelope"],
                }
            )
        else:
            links[node_id, line] = link
            taken.setdefault(node_id, set()).add(line)
    upsert(session, DeviceForkRow, forks)
    outside = {(fork["node_id"], fork["digest"]) for fork in forks}
    two = parted | _move_on(session, taken, forks, parted, now)
    silenced = {
        node_id
        for node_id in sorted(two)
        if devices.quarantine(session, node_id, QuarantineReason.LOG_FORK, told_by="inbox", now=now)
    }
    kept = [
        {**row, "line": None, "previous": None}
        if row["line"] is not None and (row["node_id"], hashlib.sha256(row["envelope"]).hexdigest()) in outside
        else row
        for row in rows
    ]
    return Taken(kept, frozenset(silenced))


def _contradicts(links: dict[_Place, _Link], node_id: str, line: int, link: _Link) -> bool:
    same, before, after = (links.get((node_id, line + step)) for step in (0, -1, 1))
    return (
        (same is not None and same.digest != link.digest)
        or (before is not None and before.digest != link.previous)
        or (after is not None and after.previous != link.digest)
        or (line == 1 and link.previous is not None)
    )


def _unknown(session: Session, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those not stored yet, each once."""
    key = tuple_(ReportRow.node_id, ReportRow.boot_id, ReportRow.sequence)
    wanted = {(row["node_id"], row["boot_id"], row["sequence"]): row for row in rows}
    known: set[tuple[str, str, int]] = set()
    for part in _parts(list(wanted)):
        query = select(ReportRow.node_id, ReportRow.boot_id, ReportRow.sequence).where(key.in_(part))
        known |= {(row[0], row[1], row[2]) for row in session.execute(query)}
    return [row for place, row in wanted.items() if place not in known]


def _links(session: Session, places: Collection[_Place]) -> dict[_Place, _Link]:
    found: dict[_Place, _Link] = {}
    for part in _parts(sorted(places)):
        query = select(ReportRow.node_id, ReportRow.line, ReportRow.envelope, ReportRow.previous).where(
            tuple_(ReportRow.node_id, ReportRow.line).in_(part)
        )
        for node_id, line, envelope, previous in session.execute(query):
            found[node_id, line] = _Link(hashlib.sha256(envelope).hexdigest(), previous)
    return found


def _move_on(
    session: Session,
    taken: dict[str, set[int]],
    forks: Sequence[dict[str, Any]],
    parted: Collection[str],
    now: datetime,
) -> set[str]:
    """Move the extents on; nodes whose chain goes on although another one began."""
    going_on: set[str] = set()
    first_fork: dict[str, int] = {}
    for fork in forks:
        first_fork.setdefault(fork["node_id"], fork["line"])
    rows = {
        row.node_id: row
        for row in session.scalars(
            select(DeviceLogRow).where(DeviceLogRow.node_id.in_(taken.keys() | first_fork.keys()))
        )
    }
    for node_id in sorted(taken.keys() | first_fork.keys()):
        row = rows.get(node_id)
        if row is None:
            row = DeviceLogRow(node_id=node_id, through=0, highest=0, forked_at=None, forked_line=None)
            session.add(row)
        lines = taken.get(node_id, set())
        had_gap, had = row.highest > row.through, row.through
        while row.through + 1 in lines:
            row.through += 1
        row.highest = max(row.highest, *lines) if lines else row.highest
        if had_gap:
            _close_gap(session, row, lines)
        if row.forked_at is not None and row.through > had:
            going_on.add(node_id)
        if node_id in first_fork and row.forked_at is None:
            row.forked_at, row.forked_line = now, first_fork[node_id]
            unit_id = session.scalar(select(NodeRow.unit_id).where(NodeRow.id == node_id))
            audit.append(
                session,
                now=now,
                actor="inbox",
                verb="node.cloned" if node_id in parted else "node.log_begun_anew",
                unit_id=unit_id,
                subject=f"node/{node_id}",
                detail={"line": first_fork[node_id]},
            )
    return going_on


def forgive(session: Session, node_id: str) -> None:
    """An officer looked into it: the chain that is here goes on. The evidence stays."""
    row = session.get(DeviceLogRow, node_id)
    if row is not None:
        row.forked_at = row.forked_line = None


def _close_gap(session: Session, row: DeviceLogRow, lines: Collection[int]) -> None:
    stored = session.scalars(
        select(ReportRow.line)
        .where(ReportRow.node_id == row.node_id, ReportRow.line > row.through)
        .order_by(ReportRow.line)
    )
    for line in sorted({*lines, *(line for line in stored if line is not None)}):
        if line == row.through + 1:
            row.through = line
        elif line > row.through:
            return


def extents(session: Session, node_ids: Collection[str]) -> dict[str, Extent]:
    """How much of these devices' logs is here, by node."""
    rows = session.scalars(select(DeviceLogRow).where(DeviceLogRow.node_id.in_(node_ids)))
    return {row.node_id: Extent(row.through, row.highest, row.forked_at, row.forked_line) for row in rows}


def chained(session: Session) -> list[tuple[str, str, int]]:
    """Every device with a log: node, public key (hex), the line up to which nothing may be missing."""
    rows = session.execute(
        select(DeviceLogRow.node_id, NodeRow.public_key, DeviceLogRow.through)
        .join(NodeRow, NodeRow.id == DeviceLogRow.node_id)
        .order_by(DeviceLogRow.node_id)
    )
    return [(row[0], row[1], row[2]) for row in rows]


def lines_of(session: Session, node_id: str) -> list[ReportRow]:
    """The chained lines of one device, in order."""
    return list(
        session.scalars(
            select(ReportRow).where(ReportRow.node_id == node_id, ReportRow.line.is_not(None)).order_by(ReportRow.line)
        )
    )


def latest_by_boot(session: Session, node_ids: Collection[str], *, most: int) -> dict[str, dict[str, list[int]]]:
    """Numbers of the latest `most` stored reports of each node, by boot."""
    found: dict[str, dict[str, list[int]]] = {}
    for node_id in node_ids:
        rows = session.execute(
            select(ReportRow.boot_id, ReportRow.sequence)
            .where(ReportRow.node_id == node_id)
            .order_by(ReportRow.received_at.desc(), ReportRow.sequence.desc())
            .limit(most)
        )
        for boot_id, sequence in rows:
            found.setdefault(node_id, {}).setdefault(boot_id, []).append(sequence)
    return found


def count(session: Session) -> int:
    """How many reports are here."""
    return session.scalar(select(func.count()).select_from(ReportRow)) or 0


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]
