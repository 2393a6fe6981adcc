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


async def sleep_or(wake: Wake, seconds: float, true: TrueTime) -> None:
    """Sleep `seconds` of true time, or until woken."""
    waiter = wake.waiter()
    if waiter is None:
        return
    take_back = true.ring(seconds, lambda: wake.end(waiter))
    try:
        await waiter
    finally:
        wake.forget()
        take_back()


class Wake:
    """Ends the sleep of one task; remembered until the next sleep, where it came while nobody slept."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wake, or let the next sleep end at once."""
        if self._waiter is None:
            self._is_set = True
        elif not self._waiter.done():
            self._waiter.set_result(None)

    def waiter(self) -> asyncio.Future[None] | None:
        """What the sleeper waits for; None: it was woken already."""
        if self._is_set:
            self._is_set = False
            return None
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    @staticmethod
    def end(waiter: asyncio.Future[None]) -> None:
        """The time is over."""
        if not waiter.done():
            waiter.set_result(None)

    def forget(self) -> None:
        """Nobody sleeps any more."""
        self._waiter = None
