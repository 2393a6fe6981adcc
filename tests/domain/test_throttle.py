"""Five tries in a quarter of an hour, ever more slowly."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from broadcast_server.domain import throttle
from broadcast_server.domain.throttle import WINDOW, Bucket, Tries

NOON = datetime(2026, 6, 1, 5, 0, tzinfo=UTC)
LAN = Bucket("lan")


def test_each_failure_makes_the_next_wait_longer_and_the_fifth_is_the_last():
    tries: Tries | None = None
    now, waits = NOON, []
    for _ in range(5):
        now += throttle.wait(LAN, tries, now)
        tries = throttle.charged(LAN, tries, now)
        waits.append(throttle.wait(LAN, tries, now).total_seconds())
    assert waits[:4] == [0, 2, 4, 8]
    assert waits[4] == 15 * 60 - 14


def test_the_window_ends_however_often_somebody_knocks_meanwhile():
    tries: Tries | None = None
    for _ in range(5):
        tries = throttle.charged(LAN, tries, NOON)
    assert throttle.wait(LAN, tries, NOON + WINDOW - timedelta(seconds=1)) == timedelta(seconds=1)
    assert throttle.wait(LAN, tries, NOON + WINDOW) == timedelta(0)
    assert throttle.charged(LAN, tries, NOON + WINDOW).failures == 1


def test_a_clock_that_was_set_back_keeps_nobody_out():
    tries = Tries(5, NOON, NOON)
    assert throttle.wait(LAN, tries, NOON - timedelta(hours=3)) == timedelta(0)


@given(gaps=st.lists(st.floats(0, 2_000), max_size=60), limit=st.integers(1, 30), is_slowed=st.booleans())
def test_nobody_is_kept_out_for_longer_than_the_window(gaps: list[float], limit: int, is_slowed: bool):
    bucket, tries, now = Bucket("x", limit, is_slowed), None, NOON
    let_in: list[datetime] = []
    for gap in gaps:
        now += timedelta(seconds=gap)
        waiting = throttle.wait(bucket, tries, now)
        assert timedelta(0) <= waiting <= WINDOW
        if not waiting:
            tries = throttle.charged(bucket, tries, now)
            let_in.append(now)
    for at in let_in:
        assert sum(1 for other in let_in if at <= other < at + WINDOW) <= 2 * limit
