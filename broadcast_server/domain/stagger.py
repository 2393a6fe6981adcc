"""Neighbouring clusters that would talk over each other begin one after the other (phát so le).

A cluster has a slot, a station a step: what is recorded and no emergency begins `slot x step` later there, inside the
entry's own window, never beyond it. Relays, live voices and emergencies are the same instant everywhere, so nobody
staggers them. Pure.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from broadcast_server.domain.timeline import Entry
from speaker_protocol.rules import BulletinClass, SourceKind

SLOTS: Final = 8
LONGEST_STEP_S: Final = 30


def shift_of(slot: Any, step_s: int) -> timedelta:
    """How much later a cluster in `slot` begins; a slot that is none (a row older than the rule) is the first."""
    is_slot = isinstance(slot, int) and not isinstance(slot, bool) and 0 <= slot < SLOTS
    return timedelta(seconds=slot * step_s if is_slot else 0)


def is_staggered(entry: Entry) -> bool:
    """Whether such an entry is staggered at all."""
    return (
        entry.source is SourceKind.RECORDED
        and entry.length is not None
        and entry.klass is not BulletinClass.EMERGENCY
        and not entry.is_joined
    )


def staggered(entry: Entry, shift: timedelta) -> Entry | None:
    """The entry, due `shift` later in the same window; None if the window has no room for that."""
    if not shift or not is_staggered(entry) or entry.length is None:
        return entry
    if entry.start + shift + entry.length > entry.end:
        return None
    return replace(entry, start=entry.start + shift)
