"""What holds for every day anyone can think of. A change that breaks a law here breaks a promise to a village."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from inspect import getsource
from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from broadcast_server.domain import timeline
from broadcast_server.domain.clock import Window
from broadcast_server.domain.timeline import Dropped, DropReason, Entry, Resolution, Segment, resolve
from speaker_protocol import rules
from speaker_protocol.rules import BulletinClass, Late, LatePolicy, Level, SourceKind

EPOCH = datetime(2026, 6, 1, tzinfo=UTC)
WHOLE = Window(EPOCH - timedelta(days=1), EPOCH + timedelta(days=2))
GRAIN = timedelta(seconds=30)

N, P, E = BulletinClass
CASTS: list[tuple[BulletinClass, Level, SourceKind]] = [
    (N, Level.TEST_TONE, SourceKind.TONE),
    (N, Level.FILLER, SourceKind.FILLER),
    (N, Level.NORMAL, SourceKind.RECORDED),
    (N, Level.NORMAL, SourceKind.RELAY),
    (N, Level.PROGRAMME, SourceKind.RECORDED),
    (N, Level.RELAY_REQUIRED, SourceKind.RELAY),
    (N, Level.LIVE, SourceKind.LIVE),
    (P, Level.LIVE, SourceKind.LIVE),
    (N, Level.LIVE_LEADER, SourceKind.LIVE),
    (P, Level.PRIORITY_COMMUNE, SourceKind.RECORDED),
    (P, Level.PRIORITY_UPPER, SourceKind.RECORDED),
    (P, Level.PRIORITY_UPPER, SourceKind.RELAY),
    (E, Level.EMERGENCY_COMMUNE, SourceKind.RECORDED),
    (E, Level.EMERGENCY_UPPER, SourceKind.RECORDED),
]


@st.composite
def lates(draw: st.DrawFn) -> Late:
    policy = draw(st.sampled_from(LatePolicy))
    is_limited = policy in {LatePolicy.WAIT_AT_MOST, LatePolicy.SKIP_IF_LATER_THAN}
    return Late(policy, draw(st.integers(0, 40)) * 30_000 if is_limited else None)


@st.composite
def an_entry(draw: st.DrawFn, number: int) -> Entry:
    klass, level, source = draw(st.sampled_from(CASTS))
    start = EPOCH + draw(st.integers(0, 120)) * GRAIN
    end = start + draw(st.integers(1, 80)) * GRAIN
    has_length = source in {SourceKind.RECORDED, SourceKind.TONE} or draw(st.booleans())
    length_grains = draw(st.integers(1, 60))
    cues = draw(st.sets(st.integers(1, max(1, length_grains - 1)), max_size=4)) if length_grains > 1 else set()
    return Entry(
        f"e{number:02}",
        start,
        end,
        level,
        klass,
        source,
        length=length_grains * GRAIN if has_length else None,
        origin_order=draw(st.integers(0, 2)),
        boundaries=tuple(cue * GRAIN for cue in sorted(cues)),
        late=draw(lates()),
    )


@st.composite
def days(draw: st.DrawFn) -> list[Entry]:
    return [draw(an_entry(number)) for number in range(draw(st.integers(1, 9)))]


@dataclass
class Fate:
    """What became of one entry."""

    entry: Entry
    segments: list[Segment]
    dropped: Dropped | None

    @property
    def settled(self) -> datetime:
        """From then on it wants nothing any more."""
        if self.dropped is not None:
            return self.dropped.at
        return self.segments[-1].end


def fates(entries: Sequence[Entry], resolution: Resolution) -> list[Fate]:
    dropped = {each.entry_id: each for each in resolution.dropped}
    assert len(dropped) == len(resolution.dropped), "an entry is dropped once"
    return [
        Fate(entry, [s for s in resolution.segments if s.entry_id == entry.id], dropped.get(entry.id))
        for entry in entries
    ]


def overlap(start: datetime, end: datetime, other_start: datetime, other_end: datetime) -> timedelta:
    return max(timedelta(0), min(end, other_end) - max(start, other_start))


def glued(segments: list[Segment], cut: datetime) -> list[Segment]:
    out: list[Segment] = []
    for segment in segments:
        if out and out[-1].end == cut == segment.start and out[-1].entry_id == segment.entry_id:
            last = out.pop()
            assert segment.offset == last.offset + (last.end - last.start)
            out.append(Segment(last.entry_id, last.start, segment.end, last.offset))
        else:
            out.append(segment)
    return out


def own_end(entry: Entry) -> datetime:
    return entry.end if entry.length is None else min(entry.end, entry.start + entry.length)


class Day:
    """Entries, what they resolved to, and what became of each."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.resolution = resolve(entries, WHOLE)
        self.fates = fates(entries, self.resolution)


def segments_are_ordered_and_disjoint(day: Day):
    segments = day.resolution.segments
    assert all(s.start < s.end for s in segments)
    assert all(earlier.end <= later.start for earlier, later in pairwise(segments))


def an_entry_sounds_only_inside_its_window(day: Day):
    for fate in day.fates:
        for segment in fate.segments:
            assert fate.entry.start <= segment.start < segment.end <= fate.entry.end


def every_entry_ends_its_sound_or_is_dropped_with_a_reason(day: Day):
    for fate in day.fates:
        if fate.dropped is not None:
            began = bool(fate.segments)
            assert began is (fate.dropped.reason is DropReason.UNFINISHED)
            assert not began or fate.segments[-1].end <= fate.dropped.at
        elif fate.entry.is_joined:
            assert fate.segments[-1].end == own_end(fate.entry)
        else:
            last = fate.segments[-1]
            assert last.offset + (last.end - last.start) == fate.entry.length


def nothing_sounds_while_something_that_may_cut_it_is_due(day: Day):
    for heard in day.fates:
        for other in day.fates:
            if rules.may_cut(other.entry, heard.entry):
                for segment in heard.segments:
                    assert not overlap(segment.start, segment.end, other.entry.start, other.settled)


def the_air_is_never_free_while_somebody_is_due(day: Day):
    sounding = [(s.start, s.end) for s in day.resolution.segments]
    edges = [(WHOLE.start, WHOLE.start), *sounding, (WHOLE.end, WHOLE.end)]
    for (_, start), (end, _) in pairwise(edges):
        for fate in day.fates:
            assert not overlap(start, end, fate.entry.start, fate.settled)


def a_priority_bulletin_waits_at_most_a_minute_for_a_relay(day: Day):
    for heard in day.fates:
        for other in day.fates:
            if rules.act_of(other.entry, heard.entry) is rules.Act.BOUNDARY:
                began = other.segments[0].start if other.segments else other.settled
                for segment in heard.segments:
                    wait = overlap(segment.start, segment.end, other.entry.start, began)
                    assert wait <= timedelta(minutes=1)


def the_late_limit_holds_to_the_second(day: Day):
    for fate in day.fates:
        at_most_ms = fate.entry.late.at_most_ms
        if at_most_ms is not None and fate.segments:
            assert fate.segments[0].start - fate.entry.start <= timedelta(milliseconds=at_most_ms)


def what_is_joined_sounds_at_now(day: Day):
    for fate in day.fates:
        if fate.entry.is_joined:
            assert all(segment.offset == segment.start - fate.entry.start for segment in fate.segments)


def what_is_recorded_goes_on_where_an_item_begins(day: Day):
    for fate in day.fates:
        entry = fate.entry
        if entry.is_joined or entry.length is None:
            continue
        items = (timedelta(0), *entry.boundaries)
        assert all(segment.offset in items for segment in fate.segments)
        assert all(segment.offset + (segment.end - segment.start) <= entry.length for segment in fate.segments)
        for earlier, later in pairwise(fate.segments):
            reached = earlier.offset + (earlier.end - earlier.start)
            item = max(cue for cue in items if cue <= reached)
            following = min(cue for cue in (*items, entry.length) if cue > reached)
            assert later.offset == (item if following - reached >= 0.6 * (following - item) else following)


def who_waited_is_told_behind_whom(day: Day):
    starts = {(segment.entry_id, segment.start) for segment in day.resolution.segments}
    ends = {(segment.entry_id, segment.end) for segment in day.resolution.segments}
    for wait in day.resolution.waits:
        assert wait.since < wait.until
        assert (wait.entry_id, wait.until) in starts
        assert (wait.behind_id, wait.until) in ends


LAWS: list[Callable[[Day], None]] = [
    segments_are_ordered_and_disjoint,
    an_entry_sounds_only_inside_its_window,
    every_entry_ends_its_sound_or_is_dropped_with_a_reason,
    nothing_sounds_while_something_that_may_cut_it_is_due,
    the_air_is_never_free_while_somebody_is_due,
    a_priority_bulletin_waits_at_most_a_minute_for_a_relay,
    the_late_limit_holds_to_the_second,
    what_is_joined_sounds_at_now,
    what_is_recorded_goes_on_where_an_item_begins,
    who_waited_is_told_behind_whom,
]


@given(days())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_laws_hold_on_any_day(entries: list[Entry]):
    day = Day(entries)
    for holds in LAWS:
        holds(day)


@given(days(), st.randoms(use_true_random=False), st.integers(-10, 260))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_order_is_irrelevant_and_two_adjoining_windows_equal_one(entries: list[Entry], chance: Random, cut_grains: int):
    whole = resolve(entries, WHOLE)
    shuffled = list(entries)
    chance.shuffle(shuffled)
    assert resolve(shuffled, WHOLE) == whole

    cut = EPOCH + cut_grains * GRAIN
    before, after = resolve(entries, Window(WHOLE.start, cut)), resolve(entries, Window(cut, WHOLE.end))
    assert glued([*before.segments, *after.segments], cut) == list(whole.segments)
    assert (*before.dropped, *after.dropped) == whole.dropped
    assert (*before.waits, *after.waits) == whole.waits


@given(days(), days())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_days_that_do_not_touch_do_not_know_of_each_other(today: list[Entry], someday: list[Entry]):
    apart = timedelta(hours=3)
    moved = [replace(e, id=f"later-{e.id}", start=e.start + apart, end=e.end + apart) for e in someday]
    both, one, two = (resolve(some, WHOLE) for some in ([*today, *moved], today, moved))
    assert both.segments == (*one.segments, *two.segments)
    assert both.dropped == (*one.dropped, *two.dropped)


def test_the_sweep_never_learns_names():
    code = getsource(timeline).split("class _Turn")[1]
    assert not [name for name in (*Level.__members__, *SourceKind.__members__) if f".{name}" in code]


def test_a_week_of_twenty_items_a_day_sounds_whole():
    entries = [
        Entry(
            f"e{n:03}", start, start + timedelta(minutes=30), Level.NORMAL, N, SourceKind.RECORDED, timedelta(minutes=5)
        )
        for n in range(140)
        for start in [EPOCH + n * timedelta(minutes=70)]
    ]
    assert len(resolve(entries, Window(EPOCH, EPOCH + timedelta(days=7))).segments) == 140
