"""Evenings in a commune, as tables: what was scheduled, and what the loudspeakers did."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from broadcast_server.domain.clock import LOCAL
from broadcast_server.domain.errors import Invalid
from broadcast_server.domain.timeline import DropReason, Entry, resolve
from speaker_protocol.rules import Late, LatePolicy, Level, SourceKind
from tests.domain.builders import (
    a_bulletin,
    a_priority,
    a_programme,
    a_relay,
    a_voice,
    an_emergency,
    an_entry,
    at,
    filler,
    late,
    minutes,
    window,
)

EVENING = window("15:00", "27:00")


@dataclass(frozen=True)
class Story:
    name: str
    entries: list[Entry]
    heard: list[str]
    dropped: Sequence[str] = ()


def told(entries: list[Entry]) -> tuple[list[str], list[str]]:
    """`17:00–17:10 relay+0` and `17:05 song no_room behind relay`, seconds only where they matter."""

    def clock(instant: datetime) -> str:
        local = instant.astimezone(LOCAL)
        return local.strftime("%H:%M:%S").removesuffix(":00")

    def position(offset: timedelta) -> str:
        whole, seconds = divmod(int(offset.total_seconds()), 60)
        return f"{whole}" if not seconds else f"{whole}:{seconds:02}"

    resolution = resolve(entries, EVENING)
    heard = [f"{clock(s.start)}–{clock(s.end)} {s.entry_id}+{position(s.offset)}" for s in resolution.segments]
    dropped = [f"{clock(d.at)} {d.entry_id} {d.reason} behind {d.winner_id}" for d in resolution.dropped]
    return heard, dropped


STORIES = [
    Story(
        "a lone announcement sounds at its second",
        [a_bulletin("notice", "17:00", "17:30", 3)],
        ["17:00–17:03 notice+0"],
    ),
    Story(
        "two notices at one time: the one entered with the smaller id first, the other after it",
        [a_bulletin("b", "17:00", "17:30", 5), a_bulletin("a", "17:00", "17:30", 5)],
        ["17:00–17:05 a+0", "17:05–17:10 b+0"],
    ),
    Story(
        "a notice due while another sounds waits for its end, although its id is smaller",
        [a_bulletin("a", "17:02", "17:30", 5), a_bulletin("b", "17:00", "17:30", 5)],
        ["17:00–17:05 b+0", "17:05–17:10 a+0"],
    ),
    Story(
        "a notice whose window closes while it waits is dropped, behind whom it waited",
        [a_bulletin("long", "17:00", "18:00", 30), a_bulletin("short", "17:05", "17:20", 3)],
        ["17:00–17:30 long+0"],
        ["17:17 short no_room behind long"],
    ),
    Story(
        "a notice longer than its own window never starts, and nobody is to blame",
        [a_bulletin("epic", "17:00", "17:10", 11)],
        [],
        ["17:00 epic no_room behind None"],
    ),
    Story(
        "a required relay and the commune's programme at 17:00: the obligation first, the programme after it",
        [a_programme("programme", "17:00", "18:00", (5, 5)), a_relay("relay", "17:00", "17:30")],
        ["17:00–17:30 relay+0", "17:30–17:40 programme+0"],
    ),
    Story(
        "a relay due while the programme speaks waits politely, then joins at now",
        [a_programme("programme", "16:55", "17:30", (5, 5)), a_relay("relay", "17:00", "17:30")],
        ["16:55–17:05 programme+0", "17:05–17:30 relay+5"],
    ),
    Story(
        "a priority bulletin takes a relay after 60 s, and the relay rejoins at now",
        [a_relay("relay", "17:00", "17:30"), a_priority("storm", "17:10", "18:00", 4)],
        ["17:00–17:11 relay+0", "17:11–17:15 storm+0", "17:15–17:30 relay+15"],
    ),
    Story(
        "a priority bulletin waits for the programme's next item, and the programme goes on with that item",
        [a_programme("programme", "17:00", "18:00", (2, 10, 8)), a_priority("storm", "17:05", "18:00", 4)],
        ["17:00–17:12 programme+0", "17:12–17:16 storm+0", "17:16–17:24 programme+12"],
    ),
    Story(
        "a priority bulletin waits for the end of a notice, which is one item",
        [a_bulletin("notice", "17:00", "17:30", 6), a_priority("storm", "17:01", "18:00", 4)],
        ["17:00–17:06 notice+0", "17:06–17:10 storm+0"],
    ),
    Story(
        "two priority bulletins: the province's first when the commune said nothing",
        [
            a_priority("ours", "17:00", "18:00", 4),
            a_priority("theirs", "17:00", "18:00", 4, level=Level.PRIORITY_UPPER),
        ],
        ["17:00–17:04 theirs+0", "17:04–17:08 ours+0"],
    ),
    Story(
        "two priority bulletins: the commune put its own first, and the law lets it",
        [
            a_priority("ours", "17:00", "18:00", 4, origin_order=1),
            a_priority("theirs", "17:00", "18:00", 4, level=Level.PRIORITY_UPPER, origin_order=2),
        ],
        ["17:00–17:04 ours+0", "17:04–17:08 theirs+0"],
    ),
    Story(
        "the province's priority never interrupts the commune's",
        [
            a_priority("ours", "17:00", "18:00", 4),
            a_priority("theirs", "17:01", "18:00", 4, level=Level.PRIORITY_UPPER),
        ],
        ["17:00–17:04 ours+0", "17:04–17:08 theirs+0"],
    ),
    Story(
        "a voice fades the relay at once, and the relay comes back at now",
        [a_relay("relay", "17:00", "17:30"), a_voice("chairman", "17:10", "17:12")],
        ["17:00–17:10 relay+0", "17:10–17:12 chairman+0", "17:12–17:30 relay+12"],
    ),
    Story(
        "a second voice is refused while the first speaks",
        [a_voice("hamlet", "17:00", "17:10"), a_voice("office", "17:05", "17:15")],
        ["17:00–17:10 hamlet+0"],
        ["17:05 office refused behind hamlet"],
    ),
    Story(
        "the leader's voice wins over another voice, which may go on afterwards",
        [a_voice("hamlet", "17:00", "17:10"), a_voice("leader", "17:05", "17:07", level=Level.LIVE_LEADER)],
        ["17:00–17:05 hamlet+0", "17:05–17:07 leader+0", "17:07–17:10 hamlet+7"],
    ),
    Story(
        "a voice asks while a priority bulletin sounds: unanswered, it waits and joins",
        [a_priority("storm", "17:00", "18:00", 4), a_voice("office", "17:02", "17:15")],
        ["17:00–17:04 storm+0", "17:04–17:15 office+2"],
    ),
    Story(
        "an emergency cuts everything in its second",
        [
            a_relay("relay", "17:00", "17:30"),
            a_voice("office", "17:05", "17:10"),
            an_emergency("flood", "17:06", "18:00", 2),
        ],
        [
            "17:00–17:05 relay+0",
            "17:05–17:06 office+0",
            "17:06–17:08 flood+0",
            "17:08–17:10 office+3",
            "17:10–17:30 relay+10",
        ],
    ),
    Story(
        "a graver emergency replaces one that sounds; of equal gravity they follow each other",
        [
            an_emergency("fire", "17:00", "18:00", 5),
            an_emergency("flood", "17:01", "18:00", 2, level=Level.EMERGENCY_UPPER),
            an_emergency("second fire", "17:02", "18:00", 3),
        ],
        ["17:00–17:01 fire+0", "17:01–17:03 flood+0", "17:03–17:08 fire+0", "17:08–17:11 second fire+0"],
    ),
    Story(
        "a notice cut with 60 % left starts again",
        [a_bulletin("notice", "17:00", "18:00", 10), an_emergency("flood", "17:04", "18:00", 2)],
        ["17:00–17:04 notice+0", "17:04–17:06 flood+0", "17:06–17:16 notice+0"],
    ),
    Story(
        "a notice cut with less than 60 % left stays unfinished (phát dở)",
        [a_bulletin("notice", "17:00", "18:00", 10), an_emergency("flood", "17:04:06", "18:00", 2)],
        ["17:00–17:04:06 notice+0", "17:04:06–17:06:06 flood+0"],
        ["17:04:06 notice unfinished behind flood"],
    ),
    Story(
        "a notice that could start again, but no longer end in its window, stays unfinished",
        [a_bulletin("notice", "17:00", "17:11", 10), an_emergency("flood", "17:02", "18:00", 2)],
        ["17:00–17:02 notice+0", "17:02–17:04 flood+0"],
        ["17:02 notice unfinished behind flood"],
    ),
    Story(
        "a programme cut late in an item goes on with the next item",
        [a_programme("programme", "17:00", "18:00", (2, 10, 8)), an_emergency("flood", "17:09", "18:00", 1)],
        ["17:00–17:09 programme+0", "17:09–17:10 flood+0", "17:10–17:18 programme+12"],
    ),
    Story(
        "a programme without slack leaves out the last item rather than the whole hour",
        [a_programme("programme", "17:00", "17:20", (2, 10, 8)), an_emergency("flood", "16:59", "18:00", 2)],
        ["16:59–17:01 flood+0", "17:01–17:13 programme+0"],
        ["17:13 programme unfinished behind flood"],
    ),
    Story(
        "a notice due during an emergency goes to its next slot; a relay waits the minute out",
        [
            an_emergency("flood", "17:00", "18:00", 2),
            a_bulletin("notice", "17:01", "18:00", 3),
            a_relay("relay", "17:01", "17:30"),
        ],
        ["17:00–17:02 flood+0", "17:02–17:30 relay+1"],
        ["17:01 notice next_slot behind flood"],
    ),
    Story(
        "filler gives way to everything and comes back",
        [filler("music", "17:00", "17:30"), a_bulletin("notice", "17:10", "17:30", 5)],
        ["17:00–17:10 music+0", "17:10–17:15 notice+0", "17:15–17:30 music+15"],
    ),
    Story(
        "nobody wants seven seconds of a relay before its window closes",
        [a_relay("relay", "17:00", "17:10"), an_emergency("flood", "17:05", "18:00", 4.9)],
        ["17:00–17:05 relay+0", "17:05–17:09:54 flood+0"],
        ["17:09:50 relay unfinished behind flood"],
    ),
    Story(
        "a test tone that was cut does not come back",
        [
            an_entry("tone", "17:00", "17:10", level=Level.TEST_TONE, source=SourceKind.TONE, length=minutes(1)),
            an_emergency("flood", "17:00:20", "18:00", 1),
        ],
        ["17:00–17:00:20 tone+0", "17:00:20–17:01:20 flood+0"],
        ["17:00:20 tone unfinished behind flood"],
    ),
    Story(
        "what ends and what begins in one instant never overlap and never wait",
        [a_bulletin("first", "17:00", "17:05", 5), a_bulletin("second", "17:05", "17:10", 5)],
        ["17:00–17:05 first+0", "17:05–17:10 second+0"],
    ),
    Story(
        "midnight is an instant like any other",
        [a_relay("news", "23:30", "24:10"), a_bulletin("notice", "23:58", "24:30", 2)],
        ["23:30–00:10 news+0", "00:10–00:12 notice+0"],
    ),
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_story(story: Story):
    heard, dropped = told(story.entries)
    assert heard == story.heard
    assert dropped == list(story.dropped)


@pytest.mark.parametrize(
    ("policy", "heard", "dropped"),
    [
        (late(LatePolicy.START_NOW), ["17:10–17:15 item+0"], []),
        (late(LatePolicy.SKIP_IF_LATER_THAN, 10), ["17:10–17:15 item+0"], []),
        (late(LatePolicy.SKIP_IF_LATER_THAN, 9.5), [], ["17:09:30 item too_late behind long"]),
        (late(LatePolicy.SKIP_IF_LATER_THAN, 0), [], ["17:00 item too_late behind long"]),
        (late(LatePolicy.WAIT_AT_MOST, 10), ["17:10–17:15 item+0"], []),
        (late(LatePolicy.WAIT_AT_MOST, 4), [], ["17:04 item too_late behind long"]),
        (late(LatePolicy.NEXT), ["17:10–17:15 item+0"], []),
    ],
    ids=lambda value: f"{value.policy}-{value.at_most_ms}" if hasattr(value, "policy") else "",
)
def test_late_policies_behind_a_peer(policy: Late, heard: list[str], dropped: list[str]):
    long = a_bulletin("long", "16:50", "18:00", 20)
    got_heard, got_dropped = told([long, a_bulletin("item", "17:00", "18:00", 5, late=policy)])
    assert got_heard == ["16:50–17:10 long+0", *heard]
    assert got_dropped == dropped


def test_wait_at_most_takes_the_air_from_what_it_outranks():
    programme = a_programme("programme", "16:50", "18:00", (30,))
    relay = a_relay("relay", "17:00", "17:20", late=late(LatePolicy.WAIT_AT_MOST, 5))
    assert told([programme, relay]) == (
        ["16:50–17:05 programme+0", "17:05–17:20 relay+5"],
        ["17:05 programme unfinished behind relay"],
    )


def test_next_takes_the_next_item_boundary_of_a_peer():
    programme = a_programme("programme", "16:55", "18:00", (10, 10), level=Level.NORMAL)
    item = a_bulletin("item", "17:00", "18:00", 5, late=late(LatePolicy.NEXT))
    assert told([programme, item]) == (
        ["16:55–17:05 programme+0", "17:05–17:10 item+0", "17:10–17:20 programme+10"],
        [],
    )


def test_join_midway_skips_what_was_missed():
    long = a_bulletin("long", "16:50", "18:00", 20)
    item = a_bulletin("item", "17:00", "18:00", 15, late=late(LatePolicy.JOIN_MIDWAY))
    assert told([long, item])[0] == ["16:50–17:10 long+0", "17:10–17:15 item+10"]


def test_a_wait_says_since_when_until_when_and_behind_whom():
    (wait,) = resolve([a_bulletin("a", "17:00", "18:00", 5), a_bulletin("b", "17:02", "18:00", 5)], EVENING).waits
    assert (wait.entry_id, wait.since, wait.until, wait.behind_id) == ("b", at("17:02"), at("17:05"), "a")


def test_the_window_clips_sound_and_keeps_the_position():
    (segment,) = resolve([a_bulletin("long", "16:50", "18:00", 20)], window("17:00", "17:05")).segments
    assert (segment.start, segment.end, segment.offset) == (at("17:00"), at("17:05"), minutes(10))


def test_what_gave_up_before_the_window_is_not_told_again():
    gone = a_bulletin("gone", "16:00", "16:01", 5)
    assert resolve([gone], window("17:00", "18:00")).dropped == ()
    assert resolve([gone], window("16:00", "18:00")).dropped[0].reason is DropReason.NO_ROOM


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"end": at("17:00")}, "empty_window", "end"),
        ({"start": at("17:00").replace(tzinfo=None)}, "naive_time", "start"),
        ({"end": at("17:30").replace(tzinfo=None)}, "naive_time", "end"),
        ({"length": timedelta(0)}, "length_not_positive", "length"),
        ({"boundaries": (minutes(3), minutes(3))}, "boundaries_not_ascending", "boundaries"),
        ({"boundaries": (minutes(5),)}, "boundaries_not_ascending", "boundaries"),
        ({"level": Level.EMERGENCY_COMMUNE}, "level_not_of_class", "level"),
    ],
)
def test_a_wrong_entry_names_its_field(changes: dict[str, Any], code: str, field: str):
    right = {"start": at("17:00"), "end": at("17:30"), "length": minutes(5)}
    entry = a_bulletin("x", "17:00", "17:30", 5)
    fields: dict[str, Any] = {"id": "x", "level": entry.level, "klass": entry.klass, "source": entry.source}
    with pytest.raises(Invalid) as refused:
        Entry(**(fields | right | changes))
    assert (refused.value.code, refused.value.facts["field"]) == (code, field)


def test_two_entries_of_one_id_are_refused():
    with pytest.raises(Invalid, match="duplicate_entry"):
        resolve([a_bulletin("x", "17:00", "17:30", 5), a_bulletin("x", "17:00", "17:30", 5)], EVENING)
