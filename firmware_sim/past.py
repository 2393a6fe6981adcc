"""What has sounded already, and when: so that no step of time lets it sound twice, or bursts what was skipped.

For each segment the node keeps up to which instant of its window it was heard. While the believed time is before that
instant (time stepped back), the segment stays silent: it goes on where it was, or never again. What a step forward
skipped by more than `SKIP_AFTER_MS` is told as missed and not played after the fact. Kept durably, one short line for
each segment that ended: after a power cut the clock may be wrong, the past may not.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from speaker_protocol.rules import SegmentView, Why

Key = tuple[str, int]
"""(entry, start of the segment)."""

PAST_FILE: Final = "heard.log"
KEPT: Final = 600
SKIP_AFTER_MS: Final = 90_000
_NOTHING: Final[Mapping[Key, Why]] = MappingProxyType({})


class Past:
    """The memory of one node."""

    def __init__(self) -> None:
        self._until_ms: OrderedDict[Key, int] = OrderedDict()
        self._skipped: dict[Key, int] = {}
        """Segments that a step forward passed, and their ends."""
        self._latest_ms = 0
        self._unwritten: dict[Key, int] = {}
        self._lines = 0

    def heard(self, key: Key, until_ms: int, *, is_over: bool = False) -> None:
        """A segment sounded up to this instant. `is_over`: worth a line on the disk."""
        until_ms = max(until_ms, self._until_ms.pop(key, 0))
        self._until_ms[key] = until_ms
        self._latest_ms = max(self._latest_ms, until_ms)
        if is_over:
            self._unwritten[key] = until_ms
        while len(self._until_ms) > KEPT:
            self._until_ms.popitem(last=False)

    def skip(self, segments: Iterable[SegmentView], from_ms: int, to_ms: int) -> list[SegmentView]:
        """Time stepped forward over `[from_ms, to_ms)`: what began in it and is too late to begin, now barred."""
        missed = [
            segment
            for segment in segments
            if from_ms < segment.start_ms < to_ms
            and (segment.end_ms <= to_ms or (segment.asset is not None and to_ms - segment.start_ms > SKIP_AFTER_MS))
            and (segment.entry_id, segment.start_ms) not in self._until_ms
        ]
        self._skipped = {key: end_ms for key, end_ms in self._skipped.items() if end_ms > to_ms}
        self._skipped |= {(segment.entry_id, segment.start_ms): segment.end_ms for segment in missed}
        return missed

    def barred(self, now_ms: int) -> Mapping[Key, Why]:
        """What must not sound at an instant, and why."""
        if now_ms >= self._latest_ms and not self._skipped:
            return _NOTHING
        again = {key: Why.ALREADY_SOUNDED for key, until_ms in self._until_ms.items() if until_ms > now_ms}
        return again | {key: Why.CLOCK_STEPPED for key, end_ms in self._skipped.items() if end_ms > now_ms}

    # -- durable

    def load(self, raw: bytes | None) -> None:
        """What earlier lives heard; a torn line is left out."""
        for line in (raw or b"").splitlines():
            self._lines += 1
            try:
                entry_id, start_ms, until_ms = json.loads(line)
                self.heard((str(entry_id), int(start_ms)), int(until_ms))
            except (ValueError, TypeError):
                continue

    def take_unwritten(self) -> bytes:
        """Lines for the disk since the last time."""
        told, self._unwritten = self._unwritten, {}
        self._lines += len(told)
        return b"".join(_line(key, until_ms) for key, until_ms in told.items())

    @property
    def is_long(self) -> bool:
        """Whether the file should be written anew, without what nobody asks for any more."""
        return self._lines > 2 * KEPT

    def dump(self) -> bytes:
        """The whole file."""
        self._lines = len(self._until_ms)
        return b"".join(_line(key, until_ms) for key, until_ms in self._until_ms.items())


def _line(key: Key, until_ms: int) -> bytes:
    return json.dumps([*key, until_ms]).encode() + b"\n"
