"""Where a bulletin finds its place: laws over any day."""

import itertools
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from broadcast_server.domain.clock import Window
from broadcast_server.domain.policy import SESSION_GAP
from broadcast_server.domain.sessions import earliest_slot, next_session, sessions

DAY = datetime(2026, 6, 1, tzinfo=UTC)
MIN = timedelta(minutes=1)


def window(start: int, length: int) -> Window:
    return Window(DAY + start * MIN, DAY + (start + length) * MIN)


windows = st.lists(st.builds(window, st.integers(0, 1000), st.integers(1, 200)), max_size=8)


@given(windows)
def test_sessions_are_apart_and_hold_every_stretch(stretches: list[Window]) -> None:
    found = sessions(stretches)
    for earlier, later in itertools.pairwise(found):
        assert later.start - earlier.end >= SESSION_GAP
    for stretch in stretches:
        assert any(one.start <= stretch.start and stretch.end <= one.end for one in found)
    assert {one.start for one in found} <= {one.start for one in stretches}


@given(windows, st.integers(1, 60), st.integers(0, 600), st.integers(1, 700))
def test_a_slot_touches_nothing_closed_and_none_is_earlier(
    closed: list[Window], length: int, begins: int, room: int
) -> None:
    within = window(begins, room)

    def is_free(start: datetime) -> bool:
        mine = Window(start, start + length * MIN)
        return mine.end <= within.end and not any(mine.overlaps(shut) for shut in closed)

    slot = earliest_slot(length * MIN, within, closed)
    minutes = [within.start + number * MIN for number in range(room)]
    assert slot == next((start for start in minutes if is_free(start)), None)


def test_the_next_session_is_one_that_begins_in_time() -> None:
    morning, evening = window(300, 30), window(1020, 30)
    assert next_session([evening, morning], window(310, 1000)) == evening.start
    assert next_session([evening, morning], window(310, 100)) is None
