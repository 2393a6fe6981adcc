"""How much of an obligation was carried: seconds heard of the right feed, never seconds that were scheduled.

Pure. A stretch of the play log counts what a node reports to have sounded, less what sounded there in the feed's stead
(a substitute, filler, silence). Where the log leaves open which part of a stretch was heard, the least is claimed.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from broadcast_server.domain.clock import LOCAL, Window

_ZERO: Final = timedelta(0)


class Period(enum.StrEnum):
    """Over what seconds are added up, by the local calendar."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Stretch:
    """One planned stretch of the right content at one cluster, and how much of it was heard."""

    window: Window
    heard: timedelta


@dataclass(frozen=True, slots=True)
class Share:
    """One period at one cluster. `substituted`: heard there and then, but not of the right feed."""

    window: Window
    required: timedelta
    heard: timedelta
    substituted: timedelta

    @property
    def short(self) -> timedelta:
        """What is missing."""
        return self.required - self.heard


def periods(within: Window, period: Period) -> Iterator[Window]:
    """The days, weeks (from Monday) or months of the local calendar that `within` touches, clipped to it."""
    day = within.start.astimezone(LOCAL).date()
    while True:
        following = _after(day, period)
        start, end = _midnight(day), _midnight(following)
        if start >= within.end:
            return
        yield Window(max(start, within.start), min(end, within.end))
        day = following


def fulfil(
    required: Sequence[Window],
    stretches: Sequence[Stretch],
    substitutes: Sequence[Window],
    within: Window,
    period: Period,
) -> tuple[Share, ...]:
    """What was to be heard at one cluster and what was, period by period.

    `required`: when the feed must sound; `stretches`: the play log of the right content, in any order; `substitutes`:
    when something else sounded on the feed's stream.
    """
    shares = []
    for span in periods(within, period):
        wanted = union(clipped for one in required if (clipped := _shared(one, span)) is not None)
        heard = substituted = _ZERO
        for stretch in stretches:
            right, wrong = _counted(stretch, wanted, substitutes)
            heard, substituted = heard + right, substituted + wrong
        whole = total(wanted)
        shares.append(Share(span, whole, min(heard, whole), min(substituted, whole)))
    return tuple(shares)


def _counted(stretch: Stretch, wanted: Sequence[Window], substitutes: Sequence[Window]) -> tuple[timedelta, timedelta]:
    """The least that was heard of the right feed inside `wanted`, and what stood in for it there."""
    inside = [shared for one in wanted if (shared := _shared(one, stretch.window)) is not None]
    if not inside:
        return _ZERO, _ZERO
    outside = stretch.window.length - total(inside)
    heard = max(_ZERO, min(stretch.heard, stretch.window.length) - outside)
    wrong = total(union(shared for one in substitutes for each in inside if (shared := _shared(one, each)) is not None))
    return max(_ZERO, heard - wrong), min(heard, wrong)


def union(windows: Iterable[Window]) -> tuple[Window, ...]:
    """The same time in windows that are apart, in order."""
    found: list[Window] = []
    for one in sorted(windows):
        if found and one.start <= found[-1].end:
            found[-1] = Window(found[-1].start, max(found[-1].end, one.end))
        else:
            found.append(one)
    return tuple(found)


def total(windows: Iterable[Window]) -> timedelta:
    """Their lengths together."""
    return sum((one.length for one in windows), _ZERO)


def _shared(one: Window, other: Window) -> Window | None:
    start, end = max(one.start, other.start), min(one.end, other.end)
    return Window(start, end) if start < end else None


def _after(day: date, period: Period) -> date:
    match period:
        case Period.DAY:
            return day + timedelta(days=1)
        case Period.WEEK:
            return day + timedelta(days=7 - day.weekday())
        case Period.MONTH:
            return date(day.year + day.month // 12, day.month % 12 + 1, 1)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(0), LOCAL).astimezone(UTC)
