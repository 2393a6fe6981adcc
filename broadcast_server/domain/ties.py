"""Bulletins of *ưu tiên* that are due at once: which they are, the declared default, and what an order asks of them.

Pure. The declared default is the order precedence gives anyway: the higher level first (what was sent down), then the
earlier start, then the id. Source: Thông tư 39/2020 (the commune orders ties of *ưu tiên*).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from broadcast_server.domain.errors import Invalid
from broadcast_server.domain.precedence import rank_of
from broadcast_server.domain.timeline import Entry
from speaker_protocol import rules

DECIDE_BEFORE: Final = timedelta(minutes=5)
"""So long before they collide the commune must have decided."""

SHORTEST_NOTICE: Final = timedelta(minutes=1)
"""A collision that is found late still leaves so long to decide, if it has not begun by then."""


def deadline_of(collides_at: datetime, now: datetime) -> datetime:
    """Until when the commune decides on a collision that is found now."""
    return max(collides_at - DECIDE_BEFORE, min(now + SHORTEST_NOTICE, collides_at))


def collisions(entries: Sequence[Entry], began: Mapping[str, datetime]) -> tuple[tuple[Entry, ...], ...]:
    """Groups of entries the commune orders that are due while one of them gets the air, each by rank.

    `began`: when each first has the air, as resolved; one that is not in it never gets it.
    """
    ordered = sorted(
        (entry for entry in entries if rules.kind_of(entry) in rules.ORDERED_BY_COMMUNE),
        key=lambda entry: (began.get(entry.id, entry.end), rank_of(entry)),
    )
    groups: list[list[Entry]] = []
    for entry in ordered:
        home = next((group for group in groups if any(_collide(one, entry, began) for one in group)), None)
        if home is None:
            groups.append([entry])
        else:
            home.append(entry)
    return tuple(tuple(sorted(group, key=rank_of)) for group in groups if len(group) > 1)


def _collide(first: Entry, other: Entry, began: Mapping[str, datetime]) -> bool:
    """Whether `other` was due when `first` got the air; then it is the order that decides between them."""
    at = began.get(first.id)
    return at is not None and other.start <= at < other.end


def is_ordered(group: Sequence[Entry]) -> bool:
    """Whether the commune has given every one of them a place of its own already."""
    return all(first.origin_order != second.origin_order for first, second in pairwise(group))


def orders_for(wanted: Sequence[str], fixed: Mapping[str, int], ranked: Sequence[str]) -> dict[str, int]:
    """An `origin_order` for every wanted id that is not `fixed`, so that they come in this order.

    `ranked`: the same ids as they come now; what is fixed keeps that order among its like.
    Raises `Invalid("order_fixed")` when what cannot be moved leaves no room for it.
    """
    held = [(place, fixed[one]) for place, one in enumerate(wanted) if one in fixed]
    found: dict[str, int] = {}
    if not held:
        return {one: place for place, one in enumerate(wanted)}
    if [one for one in wanted if one in fixed] != [one for one in ranked if one in fixed]:
        raise Invalid("order_fixed", field="entry_ids", fix="keep_their_order")
    first_place, first_order = held[0]
    for place in range(first_place):
        found[wanted[place]] = first_order - (first_place - place)
    for (place, order), (next_place, next_order) in pairwise(held):
        between = next_place - place - 1
        if between and next_order - order <= between:
            raise Invalid("order_fixed", field="entry_ids", fix="keep_their_order")
        for step in range(1, between + 1):
            found[wanted[place + step]] = order + step
    last_place, last_order = held[-1]
    for place in range(last_place + 1, len(wanted)):
        found[wanted[place]] = last_order + (place - last_place)
    return found
