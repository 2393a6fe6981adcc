"""What happened, in order: one JSON object a line, and the hash over all of them.

`t` is the true instant in UTC milliseconds, `what` the kind of record; the others are facts of that kind. The checker
reads nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Trace:
    """The records of one run."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._digest = hashlib.sha256()
        self.records: list[Record] = []

    def note(self, what: str, **facts: Any) -> None:
        """One record, stamped with the true time."""
        record = {"t": self._now_ms(), "what": what, **facts}
        self.records.append(record)
        self._digest.update(line_of(record))

    @property
    def hash(self) -> str:
        """SHA-256 over the lines so far."""
        return self._digest.hexdigest()

    def write(self, path: Path) -> None:
        """As JSON lines."""
        with path.open("wb") as file:
            for record in self.records:
                file.write(line_of(record))


def line_of(record: Record) -> bytes:
    """A record as it is hashed and written."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
