"""What the node was told of the server's audit log, kept so that the server cannot unsay it.

The node judges nothing: it keeps `KEPT` anchors, the latest hours and one of each day before, and says one of them in
each status, in turn. A server whose database was rewritten meets its own old words again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final

from speaker_protocol.messages import Anchor

KEPT: Final = 32
_DAY_MS: Final = 86_400_000


class Anchors:
    """The anchors a node holds, oldest first."""

    def __init__(self, stored: Iterable[tuple[int, str, int]] = ()) -> None:
        self._held = [Anchor(sequence=one[0], hash=one[1], at_ms=one[2]) for one in stored][-KEPT:]
        self._turn = 0

    def take(self, anchor: Anchor | None) -> bool:
        """Keep an anchor; whether it is news. One that contradicts another is kept beside it: both were said."""
        if anchor is None or any(held.sequence == anchor.sequence and held.hash == anchor.hash for held in self._held):
            return False
        self._held.append(anchor)
        if len(self._held) > KEPT:
            del self._held[self._least_missed()]
        return True

    def _least_missed(self) -> int:
        """The oldest one that another of its day stands for; where each day has one, the oldest."""
        days = [one.at_ms // _DAY_MS for one in self._held]
        return next((at for at, (day, after) in enumerate(itertools.pairwise(days)) if day == after), 0)

    def next(self) -> Anchor | None:
        """The one whose turn it is to be said; None while none is held."""
        if not self._held:
            return None
        self._turn += 1
        return self._held[self._turn % len(self._held)]

    def dump(self) -> list[tuple[int, str, int]]:
        """As stored."""
        return [(one.sequence, one.hash, one.at_ms) for one in self._held]
