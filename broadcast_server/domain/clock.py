"""Time and chance as parameters, and the one zone of wall-clock rules.

Instants are aware UTC `datetime`s made only by a `Clock`; windows are half-open `[start, end)`. Wall-clock rules
("17:00 every weekday") live in `recurrence` with `LOCAL`, by zone name although Vietnam has one offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from broadcast_server.domain.errors import Invalid

LOCAL = ZoneInfo("Asia/Ho_Chi_Minh")


class Clock(Protocol):
    """Where instants come from: the system's, one ticked by hand in tests, a virtual one in simulation."""

    def now(self) -> datetime:
        """The instant, aware, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin; never steps. For pacing and deadlines."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of this clock."""
        ...


class Chance(Protocol):
    """Where ids, nonces, keys and jitter come from."""

    def new_id(self) -> str:
        """A new id: 32 lower-case hex digits, ordered by time (UUIDv7)."""
        ...

    def token_bytes(self, count: int) -> bytes:
        """`count` unpredictable bytes, for secrets and keys."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """A float in `[low, high]`, for jitter."""
        ...


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A stretch of time `[start, end)`; never empty, both ends aware."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise Invalid("naive_time", field="window")
        if self.end <= self.start:
            raise Invalid("empty_window", field="window")

    @property
    def length(self) -> timedelta:
        """How long it lasts."""
        return self.end - self.start

    def __contains__(self, instant: object) -> bool:
        return isinstance(instant, datetime) and self.start <= instant < self.end

    def overlaps(self, other: Window) -> bool:
        """Whether the two share any instant; touching ends do not."""
        return self.start < other.end and other.start < self.end

    def clip(self, other: Window) -> Window | None:
        """The part both share, or None."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return Window(start, end) if start < end else None


def to_ms(instant: datetime) -> int:
    """Integer UTC milliseconds since 1970, as the wire counts them. Raises `Invalid` on a naive time."""
    if instant.tzinfo is None:
        raise Invalid("naive_time", field="instant")
    return (instant.astimezone(UTC) - _EPOCH) // timedelta(milliseconds=1)


def from_ms(ms: int) -> datetime:
    """The instant of integer UTC milliseconds since 1970."""
    return _EPOCH + timedelta(milliseconds=ms)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
