"""Judging what a change does to the air, inside the transaction that makes it: policies, conflicts, approvals.

A maintainer must not break: what waits for an approval is judged as if it had it, so that who places it is shown what
it would displace, and sounds nothing; policy and conflicts are looked at before and after, on the same clusters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from broadcast_server.control.clashes import Neighbourhood, Notice, Preview, Verdict, clash_facts, compare
from broadcast_server.control.outlook import LEAD_IN, local_text
from broadcast_server.domain.clock import Window
from broadcast_server.domain.errors import Conflict, Invalid, Refused
from broadcast_server.domain.policy import Violation
from broadcast_server.store import schedules
from broadcast_server.store.schedules import ScheduledEntry
from broadcast_server.store.session import Session
from broadcast_server.store.words import ConflictKind, Unapproved

LOOK_AHEAD: Final = timedelta(days=30)
"""Quiet hours and suspensions are held against this much of a schedule; conflicts too where few schedules touch."""

BUSY_LOOK_AHEAD: Final = timedelta(days=8)
"""Conflicts are looked for this far where many schedules touch, as on a whole province."""

MANY_ENTRIES: Final = 6_000
WAITING: Final = frozenset({Unapproved.WAITING.value, Unapproved.PLACE_WAITING.value})
"""What may be placed all the same: it sounds once somebody approves it."""

_MS: Final = timedelta(milliseconds=1)
_DAY: Final = timedelta(days=1)


def waits(entry: ScheduledEntry) -> bool:
    """Whether nothing but an approval is missing, and somebody has been asked for it."""
    blocked = entry.blocked
    return (
        blocked is not None and blocked.kind is ConflictKind.APPROVAL_VOID and blocked.facts.get("because") in WAITING
    )


def as_if_approved(entry: ScheduledEntry) -> ScheduledEntry:
    """What waits, as it would sound; anything else as it is."""
    return replace(entry, blocked=None) if waits(entry) and (entry.asset or entry.stream_id) else entry


class Judge:
    """Looks at the air of some clusters before and after rows change in this transaction."""

    def __init__(
        self, session: Session, around: Neighbourhood, now: datetime, clusters: frozenset[str], first: datetime
    ) -> None:
        """`first`: the first occurrence that may change; where it is far off, that is where to look."""
        self._session, self._around, self._now, self._clusters = session, around, now, clusters
        self._start = now if first < now + BUSY_LOOK_AHEAD else first - _DAY
        self._naming = around.naming(clusters)
        self._end = self._start + LOOK_AHEAD
        few = self._load(self._start + BUSY_LOOK_AHEAD)
        if len(few) > MANY_ENTRIES:
            self._end = self._start + BUSY_LOOK_AHEAD

    def entries(self, *, without: Collection[str] = ()) -> tuple[ScheduledEntry, ...]:
        """As the rows are now. `without`: schedules that do not count, for they are about to be approved."""
        return tuple(entry for entry in self._load(self._end) if entry.schedule_id not in without)

    def judge(
        self,
        before: Sequence[ScheduledEntry],
        schedule_ids: Collection[str],
        *,
        accept_conflicts: bool,
        start_field: str = "rule",
    ) -> Preview:
        """The preview. Raises `Refused` by policy or approval, `Conflict` on what was not accepted."""
        window = Window(self._start, self._end)
        ahead = schedules.load_entries(
            self._session,
            Window(self._start, self._start + LOOK_AHEAD),
            self._now,
            schedule_ids=schedule_ids,
        )
        notices = [*_blocked_notices(ahead, self._now), *self._notices(ahead)]
        for schedule_id in schedule_ids:
            asked_ms = schedules.schedule(self._session, schedule_id).length_ms
            sound = next((entry.asset.duration for entry in ahead if entry.asset is not None), timedelta(0))
            if asked_ms is not None and sound > asked_ms * _MS:
                raise Invalid("longer_than_window", field="length", fix="lengthen_window", sound_ms=sound // _MS)
        verdict = compare(
            self._around,
            before=before,
            after=self.entries(),
            ahead=[as_if_approved(entry) for entry in ahead],
            window=window,
            clusters=self._clusters,
            notices=notices,
        )
        if verdict.violations:
            raise forbidden(verdict, frozenset(schedule_ids), start_field)
        if verdict.preview.clashes and not accept_conflicts:
            first = verdict.preview.clashes[0]
            raise Conflict(
                "schedule_conflict",
                field=start_field,
                fix="accept_or_change",
                count=len(verdict.preview.clashes),
                title=first.loser.title,
                other="" if first.winner is None else first.winner.title,
                at=local_text(first.at),
                conflicts=[clash_facts(clash) for clash in verdict.preview.clashes],
            )
        return verdict.preview

    def _load(self, end: datetime) -> tuple[ScheduledEntry, ...]:
        window = Window(self._start - LEAD_IN, end)
        entries = schedules.load_entries(self._session, window, self._now, touching=self._naming)
        return tuple(as_if_approved(entry) for entry in entries)

    def _notices(self, ahead: Sequence[ScheduledEntry]) -> Iterator[Notice]:
        if not self._clusters:
            yield Notice("no_clusters", {})
        elif not schedules.any_online(self._session, self._clusters):
            yield Notice("no_cluster_online", {"clusters": len(self._clusters)})
        feed_ids = sorted({entry.feed_id for entry in ahead if entry.feed_id is not None})
        for feed_id, state in schedules.ailing_feeds(self._session, feed_ids).items():
            yield Notice("feed_ailing", {"feed_id": feed_id, "state": state})


_BLOCKED: Final[Mapping[ConflictKind, tuple[type[Refused | Conflict], str]]] = {
    ConflictKind.APPROVAL_VOID: (Refused, "approve_content"),
    ConflictKind.ASSET_MISSING: (Conflict, "make_audio_again"),
    ConflictKind.CONTENT_EXPIRED: (Refused, "extend_validity"),
    ConflictKind.NOT_OFFERED: (Refused, "ask_owner_for_offer"),
    ConflictKind.OFFER_EXPIRES: (Refused, "ask_owner_for_offer"),
    ConflictKind.OFFER_WITHDRAWN: (Refused, "ask_owner_for_offer"),
    ConflictKind.FEED_REVOKED: (Refused, "pick_another_feed"),
}


def _blocked_notices(ahead: Sequence[ScheduledEntry], now: datetime) -> Iterator[Notice]:
    """What blocks later occurrences; raises when the very next one is blocked."""
    coming = [entry for entry in ahead if entry.entry.end > now]
    told: set[ConflictKind] = set()
    for number, entry in enumerate(coming):
        if entry.blocked is None or entry.blocked.kind in told:
            continue
        told.add(entry.blocked.kind)
        facts = {**entry.blocked.facts, "subject": entry.blocked.subject, "at": local_text(entry.entry.start)}
        if waits(entry):
            yield Notice(f"unapproved_{facts['because']}", facts)
            continue
        if number == 0:
            error, fix = _BLOCKED[entry.blocked.kind]
            if facts.get("successor_id") is not None:
                fix = "relay_successor"
            raise error(f"blocked_{entry.blocked.kind.value}", field="content_id", fix=fix, **facts)
        yield Notice(f"blocked_{entry.blocked.kind.value}", facts)


def forbidden(verdict: Verdict, schedule_ids: frozenset[str], start_field: str) -> Refused:
    """The refusal that names the first violation, with all of them beside it."""

    def told(violation: Violation, entry: ScheduledEntry) -> dict[str, Any]:
        field_name = {"start": start_field, "end": "length"}.get(violation.facts["field"], violation.facts["field"])
        return {
            **violation.facts,
            "code": violation.code.value,
            "field": field_name if entry.schedule_id in schedule_ids else start_field,
            "title": entry.title,
            "entry_id": entry.id,
            "at": local_text(violation.at),
            "is_of_change": entry.schedule_id in schedule_ids,
        }

    listed = [told(*pair) for pair in verdict.violations]
    first = dict(min(listed, key=lambda one: not one["is_of_change"]))
    code = first.pop("code")
    return Refused(code, **first, violations=listed)
