"""Where a bulletin finds its place: sessions (buổi) of a day, the next one, and a slot of its own.

Pure arithmetic over what will sound and what is closed (quiet hours, suspensions). Source: Thông tư 39/2020 (*ưu tiên*
is broadcast first in the nearest session).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from broadcast_server.domain.clock import Window
from broadcast_server.domain.policy import SESSION_GAP


def sessions(stretches: Iterable[Window], gap: timedelta = SESSION_GAP) -> tuple[Window, ...]:
    """Runs of sound with no silence of `gap` in them, in order; stretches may overlap and come in any order."""
    found: list[Window] = []
    for stretch in sorted(stretches, key=lambda one: (one.start, one.end)):
        if found and stretch.start - found[-1].end < gap:
            found[-1] = Window(found[-1].start, max(found[-1].end, stretch.end))
        else:
            found.append(stretch)
    return tuple(found)


def next_session(stretches: Iterable[Window], within: Window) -> datetime | None:
    """Start of the first session that begins inside `within`; None: there is none."""
    return next((session.start for session in sessions(stretches) if session.start in within), None)


def earliest_slot(length: timedelta, within: Window, closed: Sequence[Window] = ()) -> datetime | None:
    """The first instant from which `length` of sound touches nothing closed and ends inside `within`; None: none."""
    start = within.start
    for shut in sorted(closed, key=lambda one: (one.start, one.end)):
        if shut.end <= start:
            continue
        if start + length <= shut.start:
            break
        start = shut.end
    return start if start + length <= within.end else None
