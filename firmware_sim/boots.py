"""What a node makes of its own power-ons: whether it is in a brown-out loop, and what becomes of an item that a power
cut interrupted. Pure: instants in, decisions out.

An amplifier that starts with every boot is what pulls a weak supply down again: after `LOOP_BOOTS` power-ons within
`LOOP_WITHIN_NS` nothing planned sounds for `SAFE_FOR_NS`; an emergency still does. A life that was ended in good order
is no sign of a weak supply and does not count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SECOND: Final = 1_000_000_000
LOOP_BOOTS: Final = 3
LOOP_WITHIN_NS: Final = 600 * SECOND
SAFE_FOR_NS: Final = 300 * SECOND
RESUME_IF_LEFT_MS: Final = 10_000
"""An item of which less is left when the power returns stays unfinished."""


@dataclass(frozen=True, slots=True)
class Boots:
    """The power-ons of the last ten minutes by the device's clock, this one last."""

    at_ns: tuple[int, ...]

    @classmethod
    def after(cls, earlier_ns: Iterable[int], now_ns: int) -> Boots:
        """With the one that is happening now. A clock that was set back makes nothing older than it is."""
        recent = [boot_ns for boot_ns in earlier_ns if abs(now_ns - boot_ns) < LOOP_WITHIN_NS]
        return cls((*recent, now_ns))

    @property
    def is_looping(self) -> bool:
        """Whether this power-on is one too many."""
        return len(self.at_ns) >= LOOP_BOOTS

    def is_safe_mode(self, now_ns: int) -> bool:
        """Whether nothing planned may sound yet."""
        return self.is_looping and 0 <= now_ns - self.at_ns[-1] < SAFE_FOR_NS

    def without_this(self) -> tuple[int, ...]:
        """What remains to be remembered when this life ends in good order."""
        return self.at_ns[:-1]


class Return(StrEnum):
    """What becomes of an item that was sounding when the power went."""

    RESUME = "resume"
    """It goes on at the wall clock's offset."""
    PARTIAL = "partial"
    """It stays unfinished."""
    OVER = "over"
    """Its time is over, or it is not in the plan any more."""


def return_of(end_ms: int | None, now_ms: int, boots: Boots) -> Return:
    """Decide it. `end_ms`: when the item ends by the plan in force; None if that does not know it."""
    if end_ms is None or now_ms >= end_ms:
        return Return.OVER
    if boots.is_looping or end_ms - now_ms < RESUME_IF_LEFT_MS:
        return Return.PARTIAL
    return Return.RESUME
