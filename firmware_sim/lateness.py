"""Late by how much, because of what: what a node says of a segment that did not begin on time. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

LATE_FROM_MS: Final = 250
_PASSING: Final = frozenset({"hole", "underrun"})
"""What a moment of decoding leaves: no reason of its own where something greater happened."""


class Because(StrEnum):
    """Why, where no reason of the segment's own (a missing asset, an alert) was seen."""

    CLOCK_STEPPED = "clock_stepped"
    CLOCK_UNKNOWN = "clock_unknown"
    RESTARTED = "restarted"
    PLAN_CAME_LATE = "plan_came_late"
    LATE = "late"
    CLOCK_UNCONFIRMED = "clock_unconfirmed"
    """Not late: nobody has confirmed the time since power-on, so its instants are the device clock's word alone."""


@dataclass(slots=True)
class Marks:
    """Instants of this life by the believed time, 0 while they have not come."""

    woke_ms: int = 0
    knew_ms: int = 0
    """When the time became known."""
    stepped_ms: int = 0
    """Where the last step led."""
    plan_ms: int = 0


def lateness(start_ms: int, at_ms: int, trouble: str | None, marks: Marks) -> tuple[int | None, str | None]:
    """`(late by ms, because)` of a segment that began at `at_ms`; `(None, None)` when it was on time."""
    late_ms = at_ms - start_ms
    if late_ms < LATE_FROM_MS:
        return None, None
    if trouble is not None and trouble not in _PASSING:
        return late_ms, trouble
    for at, because in (
        (marks.stepped_ms, Because.CLOCK_STEPPED),
        (marks.knew_ms, Because.CLOCK_UNKNOWN),
        (marks.woke_ms, Because.RESTARTED),
        (marks.plan_ms, Because.PLAN_CAME_LATE),
    ):
        if start_ms < at <= at_ms + LATE_FROM_MS:
            return late_ms, because
    return late_ms, trouble or Because.LATE
