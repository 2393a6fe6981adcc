"""Two poles on one square: what is recorded begins one after the other, what is live begins together."""

from datetime import timedelta

import pytest

from broadcast_server.domain.errors import Invalid
from broadcast_server.domain.policy import policy_from_dict, policy_to_dict
from broadcast_server.domain.stagger import shift_of, staggered
from broadcast_server.domain.timeline import Entry
from tests.domain.builders import a_bulletin, a_programme, a_relay, a_voice, an_emergency

SIX_S = timedelta(seconds=6)


def test_the_slots_of_a_station_stand_one_step_apart():
    assert [shift_of(slot, 6).total_seconds() for slot in range(8)] == [0, 6, 12, 18, 24, 30, 36, 42]
    assert shift_of(3, 0) == timedelta(0)


@pytest.mark.parametrize("nonsense", [None, -1, 8, "2", True, 1.5])
def test_a_row_with_a_slot_that_is_none_is_the_first(nonsense: object):
    assert shift_of(nonsense, 6) == timedelta(0)


@pytest.mark.parametrize(
    "entry", [a_bulletin("tin", "17:00", "17:10", 3), a_programme("ct", "17:00", "17:30", (12, 8))], ids=lambda e: e.id
)
def test_what_is_recorded_begins_later_in_its_own_window(entry: Entry):
    moved = staggered(entry, SIX_S)
    assert moved is not None
    assert (moved.start, moved.end, moved.length) == (entry.start + SIX_S, entry.end, entry.length)


@pytest.mark.parametrize(
    "entry",
    [a_relay("ta", "17:00", "17:30"), a_voice("noi", "17:00", "17:30"), an_emergency("lu", "17:00", "17:30", 5)],
    ids=lambda e: e.id,
)
def test_what_is_one_instant_everywhere_is_never_staggered(entry: Entry):
    assert staggered(entry, SIX_S) == entry


def test_a_window_without_room_keeps_its_entry_where_it_is_and_says_so():
    assert staggered(a_bulletin("tin", "17:00", "17:03", 3), SIX_S) is None
    full = a_bulletin("tin", "17:00", "17:04", 3)
    assert staggered(full, timedelta(minutes=1)) is not None
    assert staggered(full, timedelta(seconds=61)) is None


def test_a_station_states_its_stagger_in_its_policy():
    stated = policy_from_dict({"stagger_s": 6})
    assert policy_from_dict(policy_to_dict(stated)).stagger_s == 6
    with pytest.raises(Invalid) as wrong:
        policy_from_dict({"stagger_s": 31})
    assert wrong.value.facts["field"] == "stagger_s"
