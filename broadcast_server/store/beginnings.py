"""How nodes say they began: late by how much, because of what, and how sure of the time they were."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from broadcast_server.store import reports

Line = tuple[str, str, datetime]
"""(entry, node, start of the segment)."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """A node's own word about a segment's first beginning. `because` without `late_ms`: it was on time, but unsure."""

    late_ms: int | None = None
    because: str | None = None
    uncertainty_ms: float | None = None


UNTOLD = Beginning()


def beginnings_of(session: Session, lines: Collection[Line]) -> dict[Line, Beginning]:
    """The first beginning of each line that has one."""
    wanted = frozenset(lines)
    if not wanted:
        return {}
    entries, nodes = {entry_id for entry_id, _, _ in wanted}, {node_id for _, node_id, _ in wanted}
    first: dict[Line, tuple[int, Beginning]] = {}
    for row in reports.reports_of(session, entries, nodes):
        line, body = (row.entry_id, row.node_id, row.segment_start), row.body
        if line not in wanted or body["kind"] != "started":
            continue
        told = Beginning(body.get("late_ms"), body.get("reason"), body.get("uncertainty_ms"))
        if line not in first or body["at_ms"] < first[line][0]:
            first[line] = (body["at_ms"], told)
    return {line: told for line, (_, told) in first.items()}
