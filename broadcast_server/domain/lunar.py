"""The Vietnamese lunar calendar, reckoned at UTC+7, between solar and lunar dates of 1900 to 2199.

A month begins on the day, in Hanoi, of the new moon. Month 11 holds the winter solstice. In a year of thirteen months
the first one in which the sun enters no new major term repeats the number before it (tháng nhuận). Hanoi's midnight is
an hour after Beijing's, so Tết now and then differs from China's new year (2007, 2030).

Source: Hồ Ngọc Đức, *Computing the Vietnamese lunar calendar*, with the new moons and the sun's longitude of Jean
Meeus, *Astronomical Algorithms*, 1998. The tests hold it to the published dates of Tết.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Final

from broadcast_server.domain.errors import Invalid

_HANOI_DAYS: Final = 7 / 24
_SYNODIC_MONTH_DAYS: Final = 29.530588853
_FIRST_NEW_MOON_JD: Final = 2415021.076998695  # of 1900-01-01, number 0
_JD_OF_ORDINAL_0: Final = 1721425  # Julian day number at noon of a date = its ordinal + this
_FIRST_YEAR: Final = 1900
_LAST_YEAR: Final = 2199


@dataclass(frozen=True, slots=True, order=True)
class LunarDate:
    """A day of the lunar calendar. `year`: the Gregorian year in which its Tết falls."""

    year: int
    month: int
    day: int
    is_leap: bool = False


def to_lunar(day: date) -> LunarDate:
    """The lunar date of a solar one. Raises `Invalid` outside 1900 to 2199."""
    if not _FIRST_YEAR <= day.year <= _LAST_YEAR:
        raise Invalid("year_out_of_range", field="day", year=day.year, first=_FIRST_YEAR, last=_LAST_YEAR)
    starts_11 = _month_11(day.year)
    year = day.year if day < starts_11 else day.year + 1
    months = _months(year)
    starts, number, is_leap = max(month for month in months if month[0] <= day)
    lunar_year = year - 1 if number >= 11 else year
    return LunarDate(lunar_year, number, (day - starts).days + 1, is_leap)


def from_lunar(lunar: LunarDate) -> date:
    """The solar date of a lunar one. Raises `Invalid` if that year has no such month or that month no such day."""
    starts, length_days = month_start(lunar.year, lunar.month, is_leap=lunar.is_leap)
    if not 1 <= lunar.day <= length_days:
        raise Invalid("no_such_lunar_day", field="day", day=lunar.day, month_days=length_days)
    return starts + timedelta(days=lunar.day - 1)


def month_start(year: int, month: int, *, is_leap: bool = False) -> tuple[date, int]:
    """First solar day of a lunar month, and its length in days (29 or 30). Raises `Invalid` if the year lacks it."""
    if not _FIRST_YEAR - 1 <= year <= _LAST_YEAR:
        raise Invalid("year_out_of_range", field="year", year=year, first=_FIRST_YEAR, last=_LAST_YEAR)
    months = _months(year + 1 if month >= 11 else year)
    for (starts, number, leap), (next_starts, _, _) in pairwise(months):
        if (number, leap) == (month, is_leap):
            return starts, (next_starts - starts).days
    raise Invalid("no_such_lunar_month", field="month", year=year, month=month, is_leap=is_leap)


def tet(year: int) -> date:
    """The first day of the lunar year."""
    return from_lunar(LunarDate(year, 1, 1))


def leap_month(year: int) -> int | None:
    """The number that the lunar year has twice, if any."""
    months = [*_months(year), *_months(year + 1)]
    starts, ends = tet(year), tet(year + 1)
    return next((number for day, number, is_leap in months if is_leap and starts <= day < ends), None)


@lru_cache(maxsize=64)
def _months(year: int) -> tuple[tuple[date, int, bool], ...]:
    """The months from number 11 before Tết of `year` to the next number 11, inclusive: first day, number, is leap."""
    starts, ends = _month_11(year - 1), _month_11(year)
    count = round((ends - starts).days / _SYNODIC_MONTH_DAYS)
    first = _moon_number(starts)
    days = [_new_moon_day(first + place) for place in range(count + 1)]
    terms = [_major_term(day) for day in days]
    leap_place = next((place for place in range(1, count) if count == 13 and terms[place] == terms[place + 1]), None)
    months = []
    for place, day in enumerate(days):
        repeats = leap_place is not None and place >= leap_place
        number = (place - repeats + 10) % 12 + 1
        months.append((day, number, place == leap_place))
    return tuple(months)


@lru_cache(maxsize=64)
def _month_11(year: int) -> date:
    """First day of the month that holds the winter solstice of `year`."""
    moon = _moon_number(date(year, 12, 31))
    day = _new_moon_day(moon)
    if day.year > year:
        moon -= 1
        day = _new_moon_day(moon)
    return day if _major_term(day) < 9 else _new_moon_day(moon - 1)  # term 9 begins at the solstice, 270°


def _moon_number(day: date) -> int:
    """Number of the new moon nearest to a day on which, or next to which, a month begins."""
    return round((day.toordinal() + _JD_OF_ORDINAL_0 - _FIRST_NEW_MOON_JD) / _SYNODIC_MONTH_DAYS)


@lru_cache(maxsize=2048)
def _new_moon_day(number: int) -> date:
    """The day, in Hanoi, of a new moon."""
    return date.fromordinal(math.floor(_new_moon_jd(number) + 0.5 + _HANOI_DAYS) - _JD_OF_ORDINAL_0)


def _major_term(day: date) -> int:
    """Which twelfth of the ecliptic, 0 to 11 from the spring equinox, the sun is in when the day begins in Hanoi."""
    return math.floor(_sun_longitude_rad(day.toordinal() + _JD_OF_ORDINAL_0 - 0.5 - _HANOI_DAYS) / math.pi * 6)


def _new_moon_jd(number: int) -> float:
    """Julian date, UT, of the new moon `number` months after that of 1900-01-01 (Meeus, chapter 49, shortened)."""
    t = number / 1236.85  # Julian centuries from 1900-01-00.5
    t2, t3 = t * t, t * t * t
    mean = 2415020.75933 + 29.53058868 * number + 0.0001178 * t2 - 0.000000155 * t3
    mean += 0.00033 * math.sin(math.radians(166.56 + 132.87 * t - 0.009173 * t2))
    sun = math.radians(359.2242 + 29.10535608 * number - 0.0000333 * t2 - 0.00000347 * t3)
    moon = math.radians(306.0253 + 385.81691806 * number + 0.0107306 * t2 + 0.00001236 * t3)
    node = math.radians(21.2964 + 390.67050646 * number - 0.0016528 * t2 - 0.00000239 * t3)
    correction = (
        (0.1734 - 0.000393 * t) * math.sin(sun)
        + 0.0021 * math.sin(2 * sun)
        - 0.4068 * math.sin(moon)
        + 0.0161 * math.sin(2 * moon)
        - 0.0004 * math.sin(3 * moon)
        + 0.0104 * math.sin(2 * node)
        - 0.0051 * math.sin(sun + moon)
        - 0.0074 * math.sin(sun - moon)
        + 0.0004 * math.sin(2 * node + sun)
        - 0.0004 * math.sin(2 * node - sun)
        - 0.0006 * math.sin(2 * node + moon)
        + 0.0010 * math.sin(2 * node - moon)
        + 0.0005 * math.sin(sun + 2 * moon)
    )
    # Earth's clock lags behind the ephemeris; the second form of the source serves from the year 800 on.
    delta_t = -0.000278 + 0.000265 * t + 0.000262 * t2
    return mean + correction - delta_t


def _sun_longitude_rad(jd: float) -> float:
    """Apparent longitude of the sun in [0, 2π) at a Julian date (Meeus, chapter 25, low accuracy)."""
    t = (jd - 2451545.0) / 36525  # Julian centuries from J2000
    t2 = t * t
    anomaly = math.radians(357.52910 + 35999.05030 * t - 0.0001559 * t2 - 0.00000048 * t * t2)
    mean = 280.46645 + 36000.76983 * t + 0.0003032 * t2
    centre = (
        (1.914600 - 0.004817 * t - 0.000014 * t2) * math.sin(anomaly)
        + (0.019993 - 0.000101 * t) * math.sin(2 * anomaly)
        + 0.000290 * math.sin(3 * anomaly)
    )
    return math.radians(mean + centre) % (2 * math.pi)
