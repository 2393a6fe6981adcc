"""Laws of what counts for an obligation: only what was heard, of the right feed, in its hours."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from broadcast_server.domain.clock import Window
from broadcast_server.domain.fulfilment import Period, Stretch, fulfil, periods, total, union

DAY = datetime(2026, 6, 1, tzinfo=UTC)
MIN = timedelta(minutes=1)
WITHIN = Window(DAY, DAY + timedelta(days=3))


def window(start: int, length: int) -> Window:
    return Window(DAY + start * MIN, DAY + (start + length) * MIN)


windows = st.lists(st.builds(window, st.integers(0, 4200), st.integers(1, 120)), max_size=6)
stretches = st.lists(
    st.builds(
        lambda one, share: Stretch(one, one.length * share / 100),
        st.builds(window, st.integers(0, 4200), st.integers(1, 120)),
        st.integers(0, 120),
    ),
    max_size=8,
)


@given(windows, stretches, windows, st.sampled_from(Period))
def test_no_more_counts_than_was_required_nor_than_was_heard(required, heard, wrong, period) -> None:
    shares = fulfil(required, heard, wrong, WITHIN, period)
    assert all(timedelta(0) <= share.heard <= share.required for share in shares)
    assert sum((share.heard for share in shares), timedelta(0)) <= sum((one.heard for one in heard), timedelta(0))
    assert sum((share.required for share in shares), timedelta(0)) == total(
        union(Window(max(one.start, WITHIN.start), min(one.end, WITHIN.end)) for one in required
              if one.start < WITHIN.end)
    )  # fmt: skip


@given(windows, stretches, windows, st.builds(window, st.integers(0, 4200), st.integers(1, 600)))
def test_a_substitute_never_raises_what_counts(required, heard, wrong, more) -> None:
    before = fulfil(required, heard, wrong, WITHIN, Period.DAY)
    after = fulfil(required, heard, [*wrong, more], WITHIN, Period.DAY)
    assert all(new.heard <= old.heard for new, old in zip(after, before, strict=True))


@given(windows)
def test_all_heard_is_all_kept_and_nothing_heard_is_nothing(required) -> None:
    whole = [Stretch(one, one.length) for one in union(required)]
    for share in fulfil(required, whole, [], WITHIN, Period.DAY):
        assert share.short == timedelta(0)
    scheduled = [Stretch(one.window, timedelta(0)) for one in whole]
    assert all(share.heard == timedelta(0) for share in fulfil(required, scheduled, [], WITHIN, Period.DAY))


@given(st.sampled_from(Period), st.integers(0, 4000), st.integers(1, 60_000))
def test_periods_are_one_unbroken_line(period, start, length) -> None:
    within = window(start, length)
    found = list(periods(within, period))
    assert (found[0].start, found[-1].end) == (within.start, within.end)
    assert all(one.end == other.start for one, other in zip(found, found[1:], strict=False))  # noqa: RUF007


def test_a_week_begins_on_monday_and_a_month_on_its_first_by_the_local_calendar() -> None:
    whole = Window(datetime(2026, 5, 27, tzinfo=UTC), datetime(2026, 6, 10, tzinfo=UTC))
    midnight = datetime(2026, 5, 31, 17, tzinfo=UTC)
    assert [one.start for one in periods(whole, Period.WEEK)][1] == midnight  # Monday, 1 June
    assert [one.start for one in periods(whole, Period.MONTH)][1] == midnight


def test_half_an_hour_of_another_feed_in_its_stead_does_not_count() -> None:
    relay = window(600, 60)
    (share, *_) = fulfil([relay], [Stretch(relay, 60 * MIN)], [window(620, 30)], WITHIN, Period.DAY)
    assert (share.required, share.heard, share.substituted) == (60 * MIN, 30 * MIN, 30 * MIN)


def test_what_was_heard_before_the_hour_is_not_counted_for_it() -> None:
    # 60 minutes planned from ten minutes before the hour on, 30 of them heard: at least 20 were inside
    (share, *_) = fulfil([window(610, 60)], [Stretch(window(600, 60), 30 * MIN)], [], WITHIN, Period.DAY)
    assert share.heard == 20 * MIN
