"""How often the engine room looks by itself: production's figures, and a way to give others.

A simulation of days gives minutes where production has parts of a second. What must be prompt comes by its event (the
doorbell, a report, a node that goes or comes) and waits for none of these; a longer period only delays what is lazy.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """Periods in seconds. The defaults are production's."""

    look_s: float = 0.5
    """The conductor looks again this often without a ring; a third of the lease at most."""
    replan_s: float = 30.0
    """Plans are looked at again this often even if no bell rang."""
    overdue_look_s: float = 5.0
    urgent_look_s: float = 5.0
    """Emergencies and stop-alls are looked at again this often without a ring."""
    flush_s: float = 0.2
    """The inbox commits at most this often, however many nodes speak."""
    statuses_s: float = 0.0
    """What is no news (a node that says it is well, as before) may wait this long for others to be stored with it."""
    judge_s: float = 1.0


PRODUCTION = Pace()
