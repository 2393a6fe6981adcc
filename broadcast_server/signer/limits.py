"""How much may be signed: a bucket for each place and kind. Plans and emergencies never share one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from speaker_protocol.signing import Kind

PER_S: Final = 600.0
"""What the figures are for: ten minutes."""
_BUCKETS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Limits:
    """So many in ten minutes for one place (a stream, for heads). Far above what an honest server asks.

    `emergencies`: new ones of the unit that launches, not what is sent again.
    """

    emergencies: int = 60
    envelopes: Mapping[Kind, int] = field(
        default_factory=lambda: {
            Kind.PLAN: 1_000_000,
            Kind.CONFIG: 1_000_000,
            Kind.ORDER: 20_000,
            Kind.ALERTS: 20_000,
            Kind.KEYS: 20_000,
            Kind.HEAD: 3_000,
        }
    )


LIMITS: Final = Limits()


class Buckets:
    """Token buckets by name; the one that was idle longest is forgotten first, and is full by then."""

    def __init__(self) -> None:
        self._left: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def take(self, what: str, of: str, capacity: int, now_s: float) -> bool:
        """Whether one more is within the limit."""
        left, since_s = self._left.pop((what, of), (float(capacity), now_s))
        left = min(float(capacity), left + max(0.0, now_s - since_s) * capacity / PER_S)
        is_within = left >= 1.0
        self._left[what, of] = (left - 1.0 if is_within else left, now_s)
        while len(self._left) > _BUCKETS:
            self._left.popitem(last=False)
        return is_within
