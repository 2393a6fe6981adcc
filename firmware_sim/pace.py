"""How often a node looks after things by itself: production's figures, and a way to give others.

A simulation of days gives minutes where the field has seconds; nothing is skipped, it only happens at longer steps.
What must be prompt (plans, alerts, stops, acknowledgements) is woken by its event and waits for none of these.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from firmware_sim.clock import TrueTime


@dataclass(frozen=True, slots=True)
class Pace:
    """Periods in seconds. The defaults are the field's."""

    probe_s: tuple[float, float] = (5.0, 10.0)
    """Between two time questions, drawn from this range."""
    busy_house_s: float = 1.0
    """Between two looks around while something is going on or about to."""
    idle_house_s: float = 3.0
    nap_s: float = 5.0
    """The longest sleep of an output without samples."""


FIELD = Pace()


async def sleep_or(event: asyncio.Event, seconds: float, true: TrueTime) -> None:
    """Sleep `seconds` of true time, or until `event` is set (and clear it)."""
    if not event.is_set():
        sleeper = asyncio.ensure_future(true.sleep(seconds))
        waiter = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait((sleeper, waiter), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeper.cancel()
            waiter.cancel()
    event.clear()
