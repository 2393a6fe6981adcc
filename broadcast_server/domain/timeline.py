"""From what should sound to what will sound: entries that overlap become one line of segments.

`resolve` walks the instants at which something can change: an entry comes due, the one on the air ends, somebody's wait
is over. At each it gives the air to the best rank that is due, lets it be taken only as `rules` allow, and drops, with
the reason and the winner, what can no longer start. The rules are data elsewhere; this sweep knows no class, no level
and no source by name, and a change that would teach it one belongs in `speaker_protocol.rules`.

Laws (`tests/domain/test_timeline_laws.py`): segments are ordered and disjoint; each lies in its entry's window; nothing
sounds while something that may cut it is due; the order of the input is irrelevant; two adjoining windows resolve to
the same as one; a recorded entry goes on where it stopped or at the start of an item.

The grid is law: whatever waits, ends inside its own window or does not start.
"""

from __future__ import annotations

import enum
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from broadcast_server.domain.clock import Window
from broadcast_server.domain.errors import Invalid
from broadcast_server.domain.precedence import Rank, rank_of
from speaker_protocol import rules
from speaker_protocol.rules import BulletinClass, Late, LatePolicy, Resume, SourceKind

START_NOW: Final = Late()
_ZERO: Final = timedelta(0)
_MS: Final = timedelta(milliseconds=1)
_SHORTEST_JOIN: Final = rules.SHORTEST_JOIN_MS * _MS


@dataclass(frozen=True, slots=True)
class Entry:
    """A scheduled thing for one set of clusters, allowed to sound in `[start, end)` and due at `start`.

    `length`: of its own sound; None means it lasts the window and is joined at "now" (a relay, a voice, filler).
    `boundaries`: offsets inside `length` where one item ends and the next begins, ascending; without any, the entry is
    one item. Raises `Invalid` naming the field.
    """

    id: str
    start: datetime
    end: datetime
    level: int
    klass: BulletinClass
    source: SourceKind
    length: timedelta | None = None
    origin_order: int = 0
    boundaries: tuple[timedelta, ...] = ()
    late: Late = START_NOW

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise Invalid("naive_time", field="start" if self.start.tzinfo is None else "end", entry_id=self.id)
        if self.end <= self.start:
            raise Invalid("empty_window", field="end", entry_id=self.id)
        if self.length is not None and self.length <= _ZERO:
            raise Invalid("length_not_positive", field="length", entry_id=self.id)
        cues = (_ZERO, *self.boundaries, *(() if self.length is None else (self.length,)))
        if any(later <= earlier for earlier, later in pairwise(cues)):
            raise Invalid("boundaries_not_ascending", field="boundaries", entry_id=self.id)
        if (self.klass is BulletinClass.EMERGENCY) is not (self.level >= rules.Level.EMERGENCY_COMMUNE):
            raise Invalid("level_not_of_class", field="level", entry_id=self.id, level=int(self.level))

    @property
    def is_joined(self) -> bool:
        """Whether it is entered at "now", as a relay is, and not played from a beginning of its own."""
        return (
            self.length is None
            or self.late.policy is LatePolicy.JOIN_MIDWAY
            or rules.RESUME[self.source] is Resume.REJOIN
        )


@dataclass(frozen=True, slots=True)
class Segment:
    """One stretch `[start, end)` of the line. `offset`: position in the entry's own sound at `start`."""

    entry_id: str
    start: datetime
    end: datetime
    offset: timedelta


class DropReason(enum.StrEnum):
    """Why an entry, or the rest of it, will not sound."""

    NO_ROOM = "no_room"  # its sound no longer fits its window
    TOO_LATE = "too_late"  # its late policy gave up first
    NEXT_SLOT = "next_slot"  # what sounded when it was due sends it to its next slot
    REFUSED = "refused"  # what sounded when it was due lets nothing wait
    UNFINISHED = "unfinished"  # phát dở: it began, was cut, and cannot go on


@dataclass(frozen=True, slots=True)
class Dropped:
    """An entry that gave up at `at`; `winner_id` is who had the air, None if nobody stood in its way."""

    entry_id: str
    at: datetime
    reason: DropReason
    winner_id: str | None


@dataclass(frozen=True, slots=True)
class Wait:
    """An entry was due or was cut at `since` and got the air (again) at `until`, from `behind_id`."""

    entry_id: str
    since: datetime
    until: datetime
    behind_id: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """What will sound, what will not, and what sounds later than asked."""

    segments: tuple[Segment, ...]
    dropped: tuple[Dropped, ...]
    waits: tuple[Wait, ...]

    def air_until(self, entry_id: str | None, at: datetime) -> datetime | None:
        """When an entry lets go of the air that it has at `at`, or had just before; None: it never had it by then."""
        return max((one.end for one in self.segments if one.entry_id == entry_id and one.start <= at), default=None)


def resolve(entries: Iterable[Entry], window: Window) -> Resolution:
    """The line of segments inside `window`.

    All `entries` take part, also those outside; the window only clips. So give every entry whose own window may push
    one that is asked for: a lead-in of a day before `window` is plenty. Raises `Invalid` on two entries of one id.
    """
    sweep = _Sweep(entries)
    sweep.run()
    return Resolution(
        tuple(clipped for segment in sweep.segments if (clipped := _clip(segment, window)) is not None),
        tuple(dropped for dropped in sorted(sweep.dropped, key=_by_instant) if dropped.at in window),
        tuple(wait for wait in sweep.waits if wait.until in window),
    )


def _by_instant(dropped: Dropped) -> tuple[datetime, str]:
    return dropped.at, dropped.entry_id


def _clip(segment: Segment, window: Window) -> Segment | None:
    start, end = max(segment.start, window.start), min(segment.end, window.end)
    if start >= end:
        return None
    return Segment(segment.entry_id, start, end, segment.offset + (start - segment.start))


class _Turn:
    """One entry on its way through the sweep: where its sound goes on, since when it waits, and behind whom."""

    __slots__ = (
        "begun", "behind", "cues", "entry", "is_joined", "late", "latest", "offset", "rank", "since", "started", "stop",
    )  # fmt: skip

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.rank = rank_of(entry)
        self.is_joined = entry.is_joined
        self.cues = entry.boundaries if entry.length is None else (*entry.boundaries, entry.length)
        self.late = entry.late  # until it has begun; afterwards the resume policy holds
        self.offset = _ZERO
        self.since = entry.start
        self.begun = False
        self.behind: str | None = None
        self.latest = self.latest_start()
        self.started = self.stop = entry.start  # of the stretch on the air

    def late_limit(self) -> datetime:
        """The last instant at which the late policy lets it start."""
        at_most_ms = self.late.at_most_ms
        return self.entry.end if at_most_ms is None else self.entry.start + at_most_ms * _MS

    def latest_start(self) -> datetime:
        """The last instant at which starting, or going on, still makes sense."""
        entry = self.entry
        if self.is_joined:
            end = self.stop_if_started(entry.start)
            latest = end - min(_SHORTEST_JOIN, end - entry.start)
        else:
            latest = entry.end - (self.item_end(self.offset) - self.offset)
        return min(latest, self.late_limit())

    def stop_if_started(self, now: datetime) -> datetime:
        """When it would end by itself: at its end, or at the last item's end that lies inside the window."""
        entry = self.entry
        if self.is_joined:
            return entry.end if entry.length is None else min(entry.end, entry.start + entry.length)
        room = self.offset + (entry.end - now)
        return now - self.offset + max(cue for cue in self.cues if cue <= room)

    def item_end(self, offset: timedelta) -> timedelta:
        """Where the item ends that sounds at `offset`, short of the length."""
        return next(cue for cue in self.cues if cue > offset)

    def take_air(self, now: datetime) -> None:
        """Start, or go on."""
        if self.is_joined:
            self.offset = now - self.entry.start
        self.started, self.stop = now, self.stop_if_started(now)

    def reached(self, now: datetime) -> timedelta:
        """On the air: the position in its own sound."""
        return self.offset + (now - self.started)

    def next_item(self, since: datetime) -> datetime | None:
        """On the air: the first instant from `since` on at which it comes to a further item."""
        reached = self.reached(since)
        offset = next((cue for cue in self.cues if cue >= reached and cue > self.offset), None)
        return None if offset is None else self.started + (offset - self.offset)

    def step_aside(self, now: datetime) -> bool:
        """Lose the air; whether anything is left to come back for, and where, by the resume policy."""
        if not self.is_joined:
            reached = self.reached(now)
            item_start = max((cue for cue in self.cues if cue <= reached), default=_ZERO)
            item_end = self.item_end(reached)
            restarts = rules.is_worth_restarting((item_end - item_start) // _MS, (reached - item_start) // _MS)
            self.offset = item_start if restarts else item_end
            if self.offset == self.cues[-1]:
                return False
        self.since, self.begun, self.late = now, True, START_NOW
        self.latest = self.latest_start()
        return rules.RESUME[self.entry.source] is not Resume.DROP


class _Sweep:
    """The air, who is on it, who is due and silent (best rank first), who is still to come (next one last)."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        turns = [_Turn(entry) for entry in entries]
        if len({turn.entry.id for turn in turns}) < len(turns):
            raise Invalid("duplicate_entry", field="id")
        self.coming = sorted(turns, key=lambda turn: (turn.entry.start, turn.rank), reverse=True)
        self.waiting: list[_Turn] = []
        self.on_air: _Turn | None = None
        self.segments: list[Segment] = []
        self.dropped: list[Dropped] = []
        self.waits: list[Wait] = []

    def run(self) -> None:
        """From the first instant to the last at which anything changes."""
        while (now := self.next_instant()) is not None:
            self.end_what_is_over(now)
            self.admit_what_is_due(now)
            self.drop_what_is_too_late(now)
            self.hand_over(now)
            self.drop_what_may_not_wait(now)

    def next_instant(self) -> datetime | None:
        """When something changes next; None: never again. Nobody waits for an air that is free."""
        instants = [self.coming[-1].entry.start] if self.coming else []
        if self.on_air is not None:
            instants.append(self.on_air.stop)
            instants += [at for turn in self.waiting if (at := _takeover_at(turn, self.on_air)) is not None]
        return min(instants, default=None)

    def end_what_is_over(self, now: datetime) -> None:
        """The one on the air ends by itself; a programme with its last item still to go ends unfinished."""
        turn = self.on_air
        if turn is None or turn.stop > now:
            return
        self.leave_air(turn, now)
        if not turn.is_joined and turn.reached(now) != turn.entry.length:
            self.drop(turn, now, DropReason.UNFINISHED)

    def admit_what_is_due(self, now: datetime) -> None:
        """What comes due joins the queue by its rank."""
        while self.coming and self.coming[-1].entry.start <= now:
            insort(self.waiting, self.coming.pop(), key=_by_rank)

    def drop_what_is_too_late(self, now: datetime) -> None:
        """Who could have started a moment ago at the latest gives up, at that moment."""
        for turn in [turn for turn in self.waiting if turn.latest < now]:
            self.waiting.remove(turn)
            reason = DropReason.TOO_LATE if turn.latest == turn.late_limit() else DropReason.NO_ROOM
            self.drop(turn, max(turn.since, turn.latest), DropReason.UNFINISHED if turn.begun else reason)

    def hand_over(self, now: datetime) -> None:
        """Give the air to whom it belongs: a free one to the best rank, a taken one to who may take it."""
        while (challenger := self.challenger(now)) is not None:
            self.waiting.remove(challenger)
            if self.on_air is not None:
                self.interrupt(self.on_air, challenger, now)
            challenger.take_air(now)
            self.on_air = challenger
        if self.on_air is not None:
            for turn in self.waiting:
                turn.behind = self.on_air.entry.id

    def challenger(self, now: datetime) -> _Turn | None:
        """The best rank that takes the air now."""
        if self.on_air is None:
            return self.waiting[0] if self.waiting else None
        for turn in self.waiting:
            at = _takeover_at(turn, self.on_air)
            if at is not None and at <= now:
                return turn
        return None

    def interrupt(self, turn: _Turn, by: _Turn, now: datetime) -> None:
        """`by` takes the air from `turn`, which goes back to the queue if it may come back."""
        self.leave_air(turn, now)
        goes_on = turn.started == now or turn.step_aside(now)
        turn.behind = by.entry.id
        if goes_on:
            insort(self.waiting, turn, key=_by_rank)
        else:
            self.drop(turn, now, DropReason.UNFINISHED)

    def leave_air(self, turn: _Turn, now: datetime) -> None:
        """Write down what sounded, and what it had waited for."""
        self.on_air = None
        if turn.started == now:
            return
        self.segments.append(Segment(turn.entry.id, turn.started, now, turn.offset))
        if turn.behind is not None and turn.since < turn.started:
            self.waits.append(Wait(turn.entry.id, turn.since, turn.started, turn.behind))

    def drop_what_may_not_wait(self, now: datetime) -> None:
        """A newcomer whom what sounds now sends away, at once and for good."""
        if self.on_air is None:
            return
        for turn in [turn for turn in self.waiting if not turn.begun]:
            act = rules.act_of(turn.entry, self.on_air.entry)
            if rules.TAKEOVERS[act] is None:
                self.waiting.remove(turn)
                self.drop(turn, now, DropReason.REFUSED if act is rules.Act.REFUSE else DropReason.NEXT_SLOT)

    def drop(self, turn: _Turn, at: datetime, reason: DropReason) -> None:
        """Write down who gave up, and to whom."""
        self.dropped.append(Dropped(turn.entry.id, at, reason, turn.behind))


def _takeover_at(turn: _Turn, sounding: _Turn) -> datetime | None:
    """When `turn` takes the air from `sounding`; None: not before that one ends."""
    takeover = rules.takeover_of(turn.entry, turn.late, sounding.entry)
    if takeover is None:
        return None
    instants = [] if takeover.within_ms is None else [turn.since + takeover.within_ms * _MS]
    if takeover.at_item and (boundary := sounding.next_item(turn.since)) is not None:
        instants.append(boundary)
    return min(instants, default=None)


def _by_rank(turn: _Turn) -> Rank:
    return turn.rank
