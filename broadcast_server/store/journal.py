"""The second journal: what an emergency did while the audit log could not be written.

A file of JSON lines beside the database, each chained to the one before by its hash and on the disk before the change
it tells of is committed. Nothing is ever taken out of it: `take_over` appends to the log what it has not taken yet and
remembers in the store how far it came, so a crash between the two repeats nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from broadcast_server.domain.errors import Corrupt, Unavailable
from broadcast_server.store import audit, facts
from broadcast_server.store.session import Session

NAME: Final = "audit-journal.jsonl"
TAKEN: Final = "audit_journal_taken"
"""The fact `{lines}`: how many lines of the journal the audit log has."""


class Journal:
    """One file. Written from inside a transaction, on the executor: the one file that may be."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, rows: Sequence[Mapping[str, Any]], *, now: datetime) -> None:
        """Add rows durably. Raises `Unavailable("journal_unwritable")`; then nothing may be done."""
        previous = self._last_hash()
        lines = bytearray()
        for row in rows:
            told = json.dumps({"at": now.isoformat(), **row}, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
            previous = hashlib.sha256(f"{previous}\n{told}".encode()).hexdigest()
            lines += f"{previous} {told}\n".encode()
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                file.seek(file.read().rfind(b"\n") + 1)
                file.truncate()  # a line that a power cut tore told of nothing that was done
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Unavailable("journal_unwritable") from error

    def read(self) -> list[dict[str, Any]]:
        """All lines, oldest first. Raises `Corrupt("journal_broken")` naming the first that does not hold."""
        previous, rows = audit.GENESIS, []
        for number, line in enumerate(self._lines(), start=1):
            hash_, _, told = line.partition(" ")
            if hash_ != hashlib.sha256(f"{previous}\n{told}".encode()).hexdigest():
                raise Corrupt("journal_broken", line=number)
            previous = hash_
            rows.append(json.loads(told))
        return rows

    def _last_hash(self) -> str:
        lines = self._lines()
        return lines[-1].partition(" ")[0] if lines else audit.GENESIS

    def _lines(self) -> list[str]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return text[: text.rfind("\n") + 1].splitlines()


def take_over(session: Session, rows: Sequence[Mapping[str, Any]], *, now: datetime, fact: str = TAKEN) -> int:
    """Append to the audit log the journal's lines that it does not have yet; how many these were.

    `fact`: where it is remembered how far; another for each journal.
    """
    known = facts.find(session, fact)
    taken = 0 if known is None else int(known["lines"])
    for number, row in enumerate(rows[taken:], start=taken + 1):
        audit.append(
            session,
            now=now,
            actor=row["actor"],
            verb=row["verb"],
            unit_id=row["unit_id"],
            subject=row["subject"],
            detail={**row["detail"], "journal": {"line": number, "at": row["at"]}},
        )
    if len(rows) > taken:
        facts.put(session, fact, {"lines": len(rows)}, now=now)
    return max(0, len(rows) - taken)
