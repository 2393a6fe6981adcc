"""How often somebody may try a secret: five times in a quarter of an hour, ever more slowly, then not until it is over.

Pure arithmetic on counts that the store keeps. A maintainer must not break: (1) a try is counted before it is judged,
so that many at once are not more than five; (2) what is refused is not counted, so nobody is kept out for longer than
`WINDOW` after the first failure, however long others go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

WINDOW: Final = timedelta(minutes=15)
OF_ACCOUNT: Final = 5
"""Tries of one account from one place, or of one who is signed in."""
OF_ADDRESS: Final = 30
"""Tries from one address, whatever accounts they are for."""


@dataclass(frozen=True, slots=True)
class Tries:
    """What failed since the window began, and from when on the next is let in."""

    failures: int
    since: datetime
    next_at: datetime


@dataclass(frozen=True, slots=True)
class Bucket:
    """One count: `name` is who tries what; `is_slowed`: each failure makes the next wait longer."""

    name: str
    limit: int = OF_ACCOUNT
    is_slowed: bool = True


def wait(bucket: Bucket, tries: Tries | None, now: datetime) -> timedelta:
    """How long until the next try is let in; zero: now. Never more than `WINDOW`."""
    if tries is None or _is_over(tries, now):
        return timedelta(0)
    until = tries.since + WINDOW if tries.failures >= bucket.limit else tries.next_at
    return min(max(until - now, timedelta(0)), WINDOW)


def charged(bucket: Bucket, tries: Tries | None, now: datetime) -> Tries:
    """The count with one more try: 2, 4, 8 s pass after the second, third, fourth."""
    if tries is None or _is_over(tries, now):
        return Tries(1, now, now)
    failures = tries.failures + 1
    delay = timedelta(seconds=2 ** (failures - 1)) if bucket.is_slowed else timedelta(0)
    return Tries(failures, tries.since, now + min(delay, WINDOW))


def _is_over(tries: Tries, now: datetime) -> bool:
    return not timedelta(0) <= now - tries.since < WINDOW
