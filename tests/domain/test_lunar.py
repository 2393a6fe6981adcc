"""The calendar that every family in Vietnam checks us against."""

import re
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broadcast_server.domain import lunar
from broadcast_server.domain.errors import Invalid
from broadcast_server.domain.lunar import LunarDate, from_lunar, leap_month, month_start, tet, to_lunar

# Published dates of Tết Nguyên Đán, month and day.
TET = """
2000 02-05  2001 01-24  2002 02-12  2003 02-01  2004 01-22  2005 02-09  2006 01-29  2007 02-17  2008 02-07
2009 01-26  2010 02-14  2011 02-03  2012 01-23  2013 02-10  2014 01-31  2015 02-19  2016 02-08  2017 01-28
2018 02-16  2019 02-05  2020 01-25  2021 02-12  2022 02-01  2023 01-22  2024 02-10  2025 01-29  2026 02-17
2027 02-06  2028 01-26  2029 02-13  2030 02-02  2031 01-23  2032 02-11  2033 01-31  2034 02-19  2035 02-08
2036 01-28  2037 02-15  2038 02-04  2039 01-24  2040 02-12  2041 02-01  2042 01-22  2043 02-10  2044 01-30
2045 02-17  2046 02-06  2047 01-26  2048 02-14  2049 02-02  2050 01-23
"""
TET_DATES = [date.fromisoformat(f"{year}-{day}") for year, day in re.findall(r"(\d{4}) (\d\d-\d\d)", TET)]

LEAP_MONTHS = {
    2001: 4, 2004: 2, 2006: 7, 2009: 5, 2012: 4, 2014: 9, 2017: 6, 2020: 4, 2023: 2, 2025: 6, 2028: 5, 2031: 3,
    2033: 11, 2036: 6, 2039: 5, 2042: 2, 2044: 7, 2047: 5, 2050: 3,
}  # fmt: skip


@pytest.mark.parametrize("day", TET_DATES, ids=str)
def test_tet(day: date):
    assert tet(day.year) == day
    assert to_lunar(day) == LunarDate(day.year, 1, 1)
    assert to_lunar(day - timedelta(days=1)).month == 12


@pytest.mark.parametrize(
    ("hanoi", "beijing"),
    [
        (date(1968, 1, 29), date(1968, 1, 30)),
        (date(1985, 1, 21), date(1985, 2, 20)),
        (date(2007, 2, 17), date(2007, 2, 18)),
        (date(2030, 2, 2), date(2030, 2, 3)),
    ],
)
def test_hanois_midnight_is_not_beijings(hanoi: date, beijing: date):
    assert tet(hanoi.year) == hanoi
    assert to_lunar(beijing) != LunarDate(hanoi.year, 1, 1)


def test_leap_months_of_half_a_century():
    assert {year: leap_month(year) for year in range(2000, 2051) if leap_month(year)} == LEAP_MONTHS


def test_a_leap_month_follows_the_month_whose_number_it_repeats():
    regular, days = month_start(2025, 6)
    repeated, _ = month_start(2025, 6, is_leap=True)
    assert repeated == regular + timedelta(days=days)
    assert to_lunar(repeated) == LunarDate(2025, 6, 1, is_leap=True)


@pytest.mark.parametrize(
    ("lunar_date", "solar"),
    [
        (LunarDate(2026, 3, 10), date(2026, 4, 26)),  # giỗ tổ Hùng Vương
        (LunarDate(2026, 1, 15), date(2026, 3, 3)),  # rằm tháng giêng
        (LunarDate(2025, 8, 15), date(2025, 10, 6)),  # trung thu
        (LunarDate(2024, 7, 15), date(2024, 8, 18)),  # vu lan
        (LunarDate(2025, 12, 29), date(2026, 2, 16)),  # giao thừa of a short month
    ],
)
def test_feasts(lunar_date: LunarDate, solar: date):
    assert from_lunar(lunar_date) == solar
    assert to_lunar(solar) == lunar_date


@given(st.dates(date(1900, 1, 1), date(2199, 12, 30)))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_there_and_back_and_the_next_day_is_the_next_day(day: date):
    today, tomorrow = to_lunar(day), to_lunar(day + timedelta(days=1))
    assert from_lunar(today) == day
    assert tomorrow.day == today.day + 1 or (tomorrow.day == 1 and today.day in {29, 30})
    assert (today.year, today.month) <= (tomorrow.year, tomorrow.month)


@pytest.mark.parametrize(
    ("lunar_date", "code"),
    [
        (LunarDate(2025, 12, 30), "no_such_lunar_day"),
        (LunarDate(2025, 6, 0), "no_such_lunar_day"),
        (LunarDate(2026, 6, 1, is_leap=True), "no_such_lunar_month"),
        (LunarDate(2026, 13, 1), "no_such_lunar_month"),
        (LunarDate(1800, 1, 1), "year_out_of_range"),
    ],
)
def test_dates_that_do_not_exist(lunar_date: LunarDate, code: str):
    with pytest.raises(Invalid, match=code):
        from_lunar(lunar_date)


def test_solar_days_out_of_range_are_refused():
    for day in (date(1899, 12, 31), date(2200, 1, 1)):
        with pytest.raises(Invalid, match="year_out_of_range"):
            lunar.to_lunar(day)
