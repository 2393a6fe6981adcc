"""The devices' own logs, read back and held against their signatures: `broadcast-server audit verify` asks here.

A line counts only if the device signed exactly what the row says, and if it names the line before it. A line that is
missing below the mark up to which everything had arrived was taken away here; one above it has not come yet.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from broadcast_server.playout import wire
from broadcast_server.store import device_logs
from broadcast_server.store.session import Session, Store


@dataclass(frozen=True, slots=True)
class Break:
    """The first line of a device's log that does not hold. `why`: `missing`, `signature`, `changed` or `chain`."""

    node_id: str
    line: int
    why: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What was read: devices, lines that hold, lines still awaited, and the first break of each device."""

    devices: int
    lines: int
    awaited: int
    breaks: tuple[Break, ...]


async def verify(store: Store) -> Findings:
    """Check every device's log, one device at a time."""
    known = await store.read(device_logs.chained)
    lines = awaited = 0
    breaks = []
    for node_id, public_key, through in known:

        def look(session: Session, node_id: str = node_id) -> list[dict[str, Any]]:
            names = ("boot_id", "sequence", "entry_id", "segment_start", "body", "envelope", "line", "previous")
            return [
                {name: getattr(row, name) for name in names} | {"received_at": row.received_at}
                for row in device_logs.lines_of(session, node_id)
            ]

        rows = await store.read(look)
        held, broken = _hold(node_id, bytes.fromhex(public_key), rows, through)
        lines += held
        awaited += 0 if not rows else rows[-1]["line"] - len(rows) if broken is None else 0
        if broken is not None:
            breaks.append(broken)
    return Findings(len(known), lines, awaited, tuple(breaks))


def _hold(node_id: str, public_key: bytes, rows: Sequence[dict[str, Any]], through: int) -> tuple[int, Break | None]:
    """How many lines hold, and the first that does not."""
    refused: Counter[str] = Counter()
    before: tuple[int, str | None] = (0, None)
    for number, row in enumerate(rows):
        line = row["line"]
        if line != before[0] + 1 and before[0] < through:
            return number, Break(node_id, before[0] + 1, "missing")
        report = wire.believe_report(wire.SignedReport(node_id, row["envelope"]), public_key, refused)
        if report is None:
            return number, Break(node_id, line, "signature")
        told = report.row(received_at=row["received_at"])
        if any(told[name] != row[name] for name in row):
            return number, Break(node_id, line, "changed")
        if line == before[0] + 1 and row["previous"] != before[1]:
            return number, Break(node_id, line, "chain")
        before = (line, hashlib.sha256(row["envelope"]).hexdigest())
    if before[0] < through:
        return len(rows), Break(node_id, before[0] + 1, "missing")
    return len(rows), None
