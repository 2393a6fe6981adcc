"""When a schedule starts, as a commune writes it."""

import json
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest
from dateutil.rrule import rrulestr
from hypothesis import given, settings
from hypothesis import strategies as st

from broadcast_server.domain.clock import LOCAL, Window
from broadcast_server.domain.errors import Invalid
from broadcast_server.domain.recurrence import (
    Lunar,
    Once,
    Recurring,
    Rule,
    RuleKind,
    Weekly,
    local_occurrences,
    occurrences,
    rule_from_dict,
    rule_to_dict,
)

DAILY_DAWN = Weekly(frozenset(range(7)), (time(5),))


def local(text: str) -> datetime:
    return datetime.fromisoformat(text)


def days(first: str, last: str) -> Window:
    """Whole local days, both included."""
    start, end = (datetime.combine(date.fromisoformat(day), time(0), LOCAL) for day in (first, last))
    return Window(start, end + timedelta(days=1))


def heard(rule: Rule, window: Window) -> list[str]:
    return [at.isoformat(" ", "minutes") for at in local_occurrences(rule, window)]


WEEK = days("2026-06-01", "2026-06-07")  # Monday to Sunday


@pytest.mark.parametrize(
    ("document", "starts"),
    [
        ({"kind": "once", "at": "2026-06-03T17:00"}, ["2026-06-03 17:00"]),
        ({"kind": "once", "at": "2026-06-09T17:00"}, []),
        (
            {"kind": "weekly", "weekdays": ["mo", "su"], "times": ["17:00", "05:00"]},
            ["2026-06-01 05:00", "2026-06-01 17:00", "2026-06-07 05:00", "2026-06-07 17:00"],
        ),
        (
            {"kind": "weekly", "weekdays": ["fr"], "times": ["23:30"]},
            ["2026-06-05 23:30"],
        ),
        (
            {"kind": "rrule", "text": "FREQ=WEEKLY;BYDAY=TU,TH", "start": "2026-01-01T11:00"},
            ["2026-06-02 11:00", "2026-06-04 11:00"],
        ),
        (
            {"kind": "rrule", "text": "RRULE:freq=monthly;byday=1FR", "start": "2025-01-01T08:00"},
            ["2026-06-05 08:00"],
        ),
        (
            {"kind": "rrule", "text": "FREQ=DAILY;COUNT=3", "start": "2026-05-31T17:00"},
            ["2026-06-01 17:00", "2026-06-02 17:00"],
        ),
        (
            {"kind": "rrule", "text": "FREQ=DAILY;UNTIL=20260602", "start": "2026-05-31T17:00"},
            ["2026-06-01 17:00", "2026-06-02 17:00"],
        ),
        (
            {"kind": "rrule", "text": "FREQ=DAILY;UNTIL=20260602T100000Z", "start": "2026-05-31T17:00"},
            ["2026-06-01 17:00", "2026-06-02 17:00"],
        ),
        (
            {"kind": "rrule", "text": "FREQ=DAILY;UNTIL=20260602T095959Z", "start": "2026-05-31T17:00"},
            ["2026-06-01 17:00"],
        ),
        (
            {"kind": "rrule", "text": "FREQ=HOURLY;INTERVAL=6", "start": "2026-06-07T00:00"},
            ["2026-06-07 00:00", "2026-06-07 06:00", "2026-06-07 12:00", "2026-06-07 18:00"],
        ),
        # 2026-06-01 is the 16th of the fourth lunar month
        ({"kind": "lunar", "day": 20, "times": ["06:00"]}, ["2026-06-05 06:00"]),
        ({"kind": "lunar", "day": 20, "month": 4, "times": ["06:00"]}, ["2026-06-05 06:00"]),
        ({"kind": "lunar", "day": 20, "month": 5, "times": ["06:00"]}, []),
    ],
)
def test_a_week_in_june(document: dict[str, Any], starts: list[str]):
    assert heard(rule_from_dict(document), WEEK) == starts


def test_occurrences_are_instants_inside_a_half_open_window():
    window = Window(datetime(2026, 6, 1, 22, tzinfo=UTC), datetime(2026, 6, 2, 22, tzinfo=UTC))  # 05:00 to 05:00
    assert list(occurrences(Rule(DAILY_DAWN), window)) == [datetime(2026, 6, 1, 22, tzinfo=UTC)]


def test_validity_days_are_both_included():
    rule = Rule(DAILY_DAWN, date(2026, 6, 2), date(2026, 6, 3))
    assert heard(rule, WEEK) == ["2026-06-02 05:00", "2026-06-03 05:00"]


def test_leaving_out_one_start_or_a_whole_day_and_adding_one():
    grid = Rule(Weekly(frozenset({0, 1}), (time(5), time(17))))
    changed = grid.without(local("2026-06-01T17:00")).without(date(2026, 6, 2))
    assert heard(changed, WEEK) == ["2026-06-01 05:00"]
    extra = Rule(grid.pattern, exdates=changed.exdates, rdates=(local("2026-06-06T20:00"), local("2026-06-01T05:00")))
    assert heard(extra, WEEK) == ["2026-06-01 05:00", "2026-06-06 20:00"]


def test_from_here_on_no_more():
    assert heard(Rule(DAILY_DAWN).ending(date(2026, 6, 2)), WEEK) == ["2026-06-01 05:00", "2026-06-02 05:00"]
    assert Rule(DAILY_DAWN).ending(date(2026, 6, 2)).ending(date(2026, 7, 1)).until_date == date(2026, 6, 2)


def test_new_years_eve_is_the_last_day_of_a_short_month_too():
    eve = Rule(Lunar(-1, (time(23, 30),), 12))
    assert heard(eve, days("2024-01-01", "2026-12-31")) == ["2024-02-09 23:30", "2025-01-28 23:30", "2026-02-16 23:30"]


def test_a_thirtieth_does_not_happen_in_a_short_month_and_a_feast_not_twice_in_a_leap_year():
    thirtieth = Rule(Lunar(30, (time(5),), 12))
    assert heard(thirtieth, days("2025-01-01", "2026-12-31")) == []
    sixth = Rule(Lunar(1, (time(5),), 6))
    assert heard(sixth, days("2025-01-01", "2025-12-31")) == ["2025-06-25 05:00"]
    every_first = Rule(Lunar(1, (time(5),)))
    assert len(heard(every_first, days("2025-01-29", "2026-02-16"))) == 13


ROUND_TRIPS = [
    {"kind": "once", "at": "2026-06-03T17:00"},
    {"kind": "once", "at": "2026-06-03T17:00:30"},
    {"kind": "weekly", "weekdays": ["mo", "we"], "times": ["05:00", "17:30"], "from_date": "2026-01-01"},
    {
        "kind": "rrule",
        "text": "FREQ=MONTHLY;BYMONTHDAY=1,15",
        "start": "2026-01-01T06:00",
        "until_date": "2026-12-31",
        "exdates": ["2026-02-01", "2026-03-01T06:00"],
        "rdates": ["2026-02-02T06:00"],
    },
    {"kind": "lunar", "day": -1, "times": ["23:30"], "month": 12},
    {"kind": "lunar", "day": 15, "times": ["05:00"]},
]


@pytest.mark.parametrize("document", ROUND_TRIPS, ids=lambda document: document["kind"])
def test_import_export_import_is_identity(document: dict[str, Any]):
    rule = rule_from_dict(document)
    assert rule_to_dict(rule) == document
    assert rule_from_dict(json.loads(json.dumps(rule_to_dict(rule)))) == rule


def test_what_yaml_reads_and_what_an_api_sends_mean_the_same():
    plain = rule_from_dict({"kind": "weekly", "weekdays": ["MO"], "times": [time(5)], "from_date": date(2026, 1, 1)})
    assert rule_to_dict(plain)["times"] == ["05:00"]
    aware = rule_from_dict({"kind": "once", "at": "2026-06-03T10:00:00+00:00"})
    assert aware.pattern == Once(local("2026-06-03T17:00"))
    assert aware.kind is RuleKind.ONCE


@pytest.mark.parametrize(
    ("document", "field", "code"),
    [
        ({}, "kind", "bad_rule_kind"),
        ({"kind": "daily"}, "kind", "bad_rule_kind"),
        ({"kind": "once"}, "at", "missing_field"),
        ({"kind": "once", "at": "2026-06-03"}, "at", "not_a_time"),
        ({"kind": "once", "at": "tomorrow at five"}, "at", "not_a_date"),
        ({"kind": "once", "at": 5}, "at", "not_a_date"),
        ({"kind": "once", "at": "2026-06-03T17:00", "times": ["05:00"]}, "times", "unknown_field"),
        ({"kind": "weekly", "times": ["05:00"]}, "weekdays", "bad_weekdays"),
        ({"kind": "weekly", "weekdays": ["mo", "t2"], "times": ["05:00"]}, "weekdays[1]", "bad_weekdays"),
        ({"kind": "weekly", "weekdays": "mo", "times": ["05:00"]}, "weekdays", "not_a_list"),
        ({"kind": "weekly", "weekdays": ["mo"], "times": []}, "times", "no_times"),
        ({"kind": "weekly", "weekdays": ["mo"], "times": ["05:00", "25:00"]}, "times[1]", "not_a_time"),
        ({"kind": "weekly", "weekdays": ["mo"], "times": [1020]}, "times[0]", "not_a_time"),
        ({"kind": "weekly", "weekdays": ["mo"], "times": ["05:00+07:00"]}, "times[0]", "wall_time_with_zone"),
        ({"kind": "lunar", "day": 31, "times": ["05:00"]}, "day", "bad_lunar_day"),
        ({"kind": "lunar", "day": "15", "times": ["05:00"]}, "day", "not_a_number"),
        ({"kind": "lunar", "day": 15, "month": 13, "times": ["05:00"]}, "month", "bad_lunar_month"),
        ({"kind": "rrule", "start": "2026-06-01T05:00"}, "text", "missing_field"),
        ({"kind": "rrule", "text": 5, "start": "2026-06-01T05:00"}, "text", "not_text"),
        (
            {"kind": "lunar", "day": 15, "times": ["05:00"], "from_date": "2026-06-02", "until_date": "2026-06-01"},
            "until_date",
            "empty_validity",
        ),
        ({"kind": "lunar", "day": 15, "times": ["05:00"], "from_date": "2026-06-02T05:00"}, "from_date", "not_a_date"),
        ({"kind": "lunar", "day": 15, "times": ["05:00"], "exdates": ["x"]}, "exdates[0]", "not_a_date"),
        ({"kind": "lunar", "day": 15, "times": ["05:00"], "rdates": ["2026-06-01"]}, "rdates[0]", "not_a_time"),
    ],
)
def test_a_wrong_field_is_named_with_the_way_out(document: dict[str, Any], field: str, code: str):
    with pytest.raises(Invalid) as refused:
        rule_from_dict(document)
    assert (refused.value.code, refused.value.facts["field"]) == (code, field)
    assert refused.value.facts["fix"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("FREQ=SECONDLY", "bad_frequency"),
        ("FREQ=MINUTELY", "bad_frequency"),
        ("BYDAY=MO", "bad_frequency"),
        ("whenever", "bad_rrule"),
        ("FREQ=DAILY;FREQ=DAILY", "bad_rrule"),
        ("FREQ=WEEKLY;BYDAY=XX", "bad_rrule"),
        ("FREQ=DAILY;INTERVAL=0", "bad_rrule"),
        ("FREQ=DAILY;COUNT=0", "bad_rrule"),
        ("FREQ=DAILY;BYSECOND=1,2", "unsupported_part"),
        ("FREQ=YEARLY;BYEASTER=0", "unsupported_part"),
        ("FREQ=WEEKLY;BYSETPOS=2", "unsupported_part"),
        ("FREQ=DAILY;COUNT=2;UNTIL=20270101", "count_and_until"),
        ("FREQ=DAILY;UNTIL=soon", "bad_until"),
        ("FREQ=DAILY;UNTIL=20269901T000000Z", "bad_until"),
        ("FREQ=DAILY;UNTIL=20250101", "never_happens"),
        ("FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30", "never_happens"),
        ("FREQ=YEARLY;BYMONTH=4,6;BYMONTHDAY=31", "never_happens"),
        ("FREQ=HOURLY;BYMINUTE=0,5,10,15,20,25", "too_often"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_when_it_is_made(text: str, code: str):
    with pytest.raises(Invalid, match=code) as refused:
        Recurring(text, local("2026-06-01T05:00"))
    assert refused.value.facts["field"] == "text"


def test_wall_times_carry_no_zone():
    zoned = datetime(2026, 6, 1, 5, tzinfo=UTC)
    for make in (
        lambda: Once(zoned),
        lambda: Recurring("FREQ=DAILY", zoned),
        lambda: Rule(DAILY_DAWN, rdates=(zoned,)),
    ):
        with pytest.raises(Invalid, match="wall_time_with_zone"):
            make()


@st.composite
def rfc_rules(draw: st.DrawFn) -> tuple[str, datetime]:
    freq = draw(st.sampled_from(["DAILY", "WEEKLY", "MONTHLY"]))
    text = f"FREQ={freq};INTERVAL={draw(st.integers(1, 4))}"
    if freq == "WEEKLY" and draw(st.booleans()):
        some = draw(st.sets(st.sampled_from(["MO", "TU", "WE", "TH", "FR", "SA", "SU"]), min_size=1))
        text += f";BYDAY={','.join(sorted(some))};WKST={draw(st.sampled_from(['MO', 'SU']))}"
    if draw(st.booleans()):
        text += f";BYHOUR={draw(st.integers(0, 23))},{draw(st.integers(0, 23))}"
    if draw(st.booleans()):
        text += f";COUNT={draw(st.integers(1, 400))}"
    return text, datetime(2024, 1, 1) + timedelta(hours=draw(st.integers(0, 24 * 400)))  # noqa: DTZ001  (wall time)


@given(rfc_rules(), st.integers(0, 1000), st.integers(1, 40))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_starting_near_the_window_changes_nothing(rule: tuple[str, datetime], first: int, count: int):
    text, start = rule
    begin = datetime(2024, 1, 1) + timedelta(days=first)  # noqa: DTZ001  (wall time)
    end = begin + timedelta(days=count)
    plain = [at for at in rrulestr(text, dtstart=start).between(begin, end, inc=True) if at < end]
    window = Window(begin.replace(tzinfo=LOCAL), end.replace(tzinfo=LOCAL))
    assert list(local_occurrences(Rule(Recurring(text, start)), window)) == plain


@given(st.sampled_from(ROUND_TRIPS), st.integers(0, 300), st.integers(1, 200), st.integers(1, 200))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_two_adjoining_windows_have_the_starts_of_one(document: dict[str, Any], first: int, some: int, more: int):
    rule = rule_from_dict(document)
    begin = datetime(2026, 1, 1, 3, 15, tzinfo=LOCAL) + timedelta(hours=7 * first)
    middle = begin + timedelta(hours=some)
    end = middle + timedelta(hours=more)
    parts = [*occurrences(rule, Window(begin, middle)), *occurrences(rule, Window(middle, end))]
    assert parts == list(occurrences(rule, Window(begin, end)))
