"""What a delegation carries: the right of a hamlet's head to speak, lent by the commune for a time and a place.

A delegated right is smaller than a role of one's own: it ends by itself, holds in one hamlet, in daytime, for a few
minutes at a time, and for ordinary matters only. The limits are numbers here and in the station's policy, and the verbs
that may be delegated ask for them.

Source: matrix of roles (trưởng thôn, tổ trưởng tổ dân phố: own hamlet, maximum minutes, inside the window).
"""

from __future__ import annotations

from datetime import datetime, time, timedelta
from typing import Final

from broadcast_server.domain.clock import LOCAL
from broadcast_server.domain.errors import Invalid, Refused

LONGEST: Final = timedelta(days=366)
"""A delegation is renewed at least yearly, or it is over."""
PLACE_KINDS: Final = frozenset({"hamlet"})
FIRST: Final = time(6, 0)
LAST: Final = time(21, 0)
"""Local wall time `[FIRST, LAST)` in which a delegated voice may sound."""


def check_term(begins: datetime, ends: datetime | None, place_kind: str, unit_id: str) -> None:
    """Raise `Invalid` (`delegation_…`) naming the field."""
    if place_kind not in PLACE_KINDS:
        raise Invalid("delegation_not_to_hamlet", field="unit_id", fix="pick_hamlet", unit_id=unit_id)
    if ends is None:
        raise Invalid("delegation_without_end", field="valid_to", fix="give_end", most_days=LONGEST.days)
    if ends - begins > LONGEST:
        raise Invalid("delegation_too_long", field="valid_to", fix="give_end", most_days=LONGEST.days)


def check_hours(starts: datetime, ends: datetime) -> None:
    """Raise `Refused("delegated_hours")` unless all of it lies in the daytime of one local day."""
    here, there = starts.astimezone(LOCAL), ends.astimezone(LOCAL)
    opens = datetime.combine(here.date(), FIRST, tzinfo=LOCAL)
    closes = datetime.combine(here.date(), LAST, tzinfo=LOCAL)
    if here < opens or there > closes:
        raise Refused("delegated_hours", fix="wait_for_day", first=f"{FIRST:%H:%M}", last=f"{LAST:%H:%M}")


def check_length(length: timedelta, most_minutes: int, *, field: str) -> None:
    """Raise `Refused("delegated_too_long")` above so many minutes."""
    if length > timedelta(minutes=most_minutes):
        raise Refused("delegated_too_long", field=field, fix="give_fewer_minutes", most=most_minutes)
