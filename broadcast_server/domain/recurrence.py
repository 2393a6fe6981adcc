"""When a schedule starts: once, a weekday grid, an RFC 5545 rule, or lunar dates, always in local wall time.

A rule knows starts, not lengths: what starts at 23:30 and lasts an hour crosses midnight like any other, and the caller
adds the length. Days a person names (`from_date`, `until_date`) are inclusive, as people mean them; windows asked of
`occurrences` are half-open. Wall time becomes an instant in one place here, by the zone's name.

A rule is checked when it is made: what cannot be understood, starts too often, or can never happen is `Invalid` with
`field` and `fix`. RFC 5545 is python-dateutil's work; it is given no rule on which it would search for minutes.
"""

from __future__ import annotations

import calendar
import enum
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Any, Final, assert_never

from dateutil.rrule import rrule, rrulestr

from broadcast_server.domain import lunar
from broadcast_server.domain.clock import LOCAL, Window
from broadcast_server.domain.errors import Invalid

WEEKDAYS: Final = ("mo", "tu", "we", "th", "fr", "sa", "su")
STARTS_A_DAY_LIMIT: Final = 96
_DAY: Final = timedelta(days=1)


class RuleKind(enum.StrEnum):
    """The pattern's name where a rule is stored or sent."""

    ONCE = "once"
    WEEKLY = "weekly"
    RRULE = "rrule"
    LUNAR = "lunar"


@dataclass(frozen=True, slots=True)
class Once:
    """One start, local wall time (a naive datetime)."""

    at: datetime

    def __post_init__(self) -> None:
        _refuse_aware(self.at, "at")

    def starts(self, first: date, last: date) -> Iterator[datetime]:
        """Local starts on the days `first` to `last`, ascending."""
        if first <= self.at.date() <= last:
            yield self.at


@dataclass(frozen=True, slots=True)
class Weekly:
    """The same times on the same days of every week. `weekdays`: 0 is Monday."""

    weekdays: frozenset[int]
    times: tuple[time, ...]

    def __post_init__(self) -> None:
        if not self.weekdays or not self.weekdays <= set(range(7)):
            raise Invalid("bad_weekdays", field="weekdays", fix="name_weekdays")
        object.__setattr__(self, "times", _sorted_times(self.times))

    def starts(self, first: date, last: date) -> Iterator[datetime]:
        """Local starts on the days `first` to `last`, ascending."""
        for day in _days(first, last):
            if day.weekday() in self.weekdays:
                for at in self.times:
                    yield datetime.combine(day, at)


@dataclass(frozen=True, slots=True)
class Recurring:
    """An RFC 5545 recurrence. `text`: the value of RRULE alone; `start`: DTSTART, local wall time."""

    text: str
    start: datetime

    def __post_init__(self) -> None:
        _refuse_aware(self.start, "start")
        object.__setattr__(self, "text", _checked_rrule(self.text, self.start))

    def starts(self, first: date, last: date) -> Iterator[datetime]:
        """Local starts on the days `first` to `last`, ascending."""
        if last < self.start.date():
            return
        rule = _forwarded(self.text, self.start, first)
        end = datetime.combine(last, time.max)
        for at in rule.xafter(datetime.combine(first, time.min), inc=True):
            if at > end:
                return
            yield at


@dataclass(frozen=True, slots=True)
class Lunar:
    """The same times on a day of the lunar month, of one month or of every month (`month` None, rằm and mùng một).

    `day` -1 is the last day, the 29th or the 30th (giao thừa). A day 30 does not happen in a short month. One month
    means the regular one: a feast is not kept twice in a leap year.
    """

    day: int
    times: tuple[time, ...]
    month: int | None = None

    def __post_init__(self) -> None:
        if self.day != -1 and not 1 <= self.day <= 30:
            raise Invalid("bad_lunar_day", field="day", day=self.day, fix="lunar_day_1_to_30_or_last")
        if self.month is not None and not 1 <= self.month <= 12:
            raise Invalid("bad_lunar_month", field="month", month=self.month, fix="lunar_month_1_to_12")
        object.__setattr__(self, "times", _sorted_times(self.times))

    def starts(self, first: date, last: date) -> Iterator[datetime]:
        """Local starts on the days `first` to `last`, ascending."""
        for day in _days(first, last):
            if self._is_on(day):
                for at in self.times:
                    yield datetime.combine(day, at)

    def _is_on(self, day: date) -> bool:
        now = lunar.to_lunar(day)
        if self.month is not None and (now.month != self.month or now.is_leap):
            return False
        return now.day == self.day or (self.day == -1 and lunar.to_lunar(day + _DAY).day == 1)


Pattern = Once | Weekly | Recurring | Lunar


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern, bounded by two inclusive days, less `exdates` (a day or one start), plus `rdates`.

    `rdates` are starts of their own: bounds and exceptions do not touch them.
    """

    pattern: Pattern
    from_date: date | None = None
    until_date: date | None = None
    exdates: tuple[date | datetime, ...] = ()
    rdates: tuple[datetime, ...] = ()

    def __post_init__(self) -> None:
        if self.from_date is not None and self.until_date is not None and self.until_date < self.from_date:
            raise Invalid("empty_validity", field="until_date", fix="until_after_from")
        for name, dates in (("exdates", self.exdates), ("rdates", self.rdates)):
            for number, at in enumerate(dates):
                if isinstance(at, datetime):
                    _refuse_aware(at, f"{name}[{number}]")

    @property
    def kind(self) -> RuleKind:
        """The pattern's name."""
        return _KINDS[type(self.pattern)]

    def without(self, at: date | datetime) -> Rule:
        """The rule that leaves out that day, or that one start."""
        return replace(self, exdates=(*self.exdates, at))

    def ending(self, last: date) -> Rule:
        """The rule that stops after that day."""
        return replace(self, until_date=last if self.until_date is None else min(last, self.until_date))


_KINDS: Final[Mapping[type, RuleKind]] = {
    Once: RuleKind.ONCE,
    Weekly: RuleKind.WEEKLY,
    Recurring: RuleKind.RRULE,
    Lunar: RuleKind.LUNAR,
}


def occurrences(rule: Rule, window: Window) -> Iterator[datetime]:
    """The starts of `rule` inside `[window.start, window.end)`: aware UTC, ascending, each once."""
    for at in local_occurrences(rule, window):
        yield to_instant(at)


def local_occurrences(rule: Rule, window: Window) -> Iterator[datetime]:
    """The same in local wall time, naive: what a person reads, and what `without` takes."""
    first, last = (_to_local(end).date() for end in (window.start, window.end))
    first = max(first, rule.from_date or first)
    last_of_pattern = min(last, rule.until_date or last)
    left_out = set(rule.exdates)
    starts = {at for at in rule.rdates if to_instant(at) in window}
    for at in rule.pattern.starts(first, last_of_pattern):
        if at not in left_out and at.date() not in left_out and to_instant(at) in window:
            starts.add(at)
    yield from sorted(starts)


def to_instant(local: datetime) -> datetime:
    """The UTC instant of a local wall time."""
    return local.replace(tzinfo=LOCAL).astimezone(UTC)


def _to_local(instant: datetime) -> datetime:
    return instant.astimezone(LOCAL).replace(tzinfo=None)


def _days(first: date, last: date) -> Iterator[date]:
    return (date.fromordinal(number) for number in range(first.toordinal(), last.toordinal() + 1))


def _refuse_aware(at: datetime, field: str) -> None:
    if at.tzinfo is not None:
        raise Invalid("wall_time_with_zone", field=field, fix="give_local_time")


def _sorted_times(times: Iterable[time]) -> tuple[time, ...]:
    ordered = tuple(sorted(set(times)))
    if not ordered:
        raise Invalid("no_times", field="times", fix="name_a_time")
    if len(ordered) > STARTS_A_DAY_LIMIT:
        raise Invalid("too_often", field="times", limit=STARTS_A_DAY_LIMIT, fix="fewer_times")
    for number, at in enumerate(ordered):
        if at.tzinfo is not None:
            raise Invalid("wall_time_with_zone", field=f"times[{number}]", fix="give_local_time")
    return ordered


# --- RFC 5545 ---------------------------------------------------------------------------------------------------------

_FREQUENCIES: Final = frozenset({"HOURLY", "DAILY", "WEEKLY", "MONTHLY", "YEARLY"})
_PARTS: Final = frozenset(
    "FREQ INTERVAL COUNT UNTIL BYDAY BYMONTHDAY BYMONTH BYHOUR BYMINUTE BYSETPOS WKST".split()  # noqa: SIM905
)
_UNTIL: Final = re.compile(r"^(\d{8})(?:T(\d{6})(Z?))?$")


def _checked_rrule(text: str, start: datetime) -> str:
    """The rule in upper case with UNTIL in local time, or `Invalid`."""
    parts = _parts_of(text)
    if parts.get("FREQ") not in _FREQUENCIES:
        raise Invalid("bad_frequency", field="text", part="FREQ", fix="hourly_or_rarer")
    for name in parts.keys() - _PARTS:
        raise Invalid("unsupported_part", field="text", part=name, fix="remove_part")
    if "COUNT" in parts and "UNTIL" in parts:
        raise Invalid("count_and_until", field="text", part="UNTIL", fix="keep_one_of_both")
    for name, most in (("INTERVAL", 1000), ("COUNT", 100_000)):
        if name in parts and not (parts[name].isdecimal() and 1 <= int(parts[name]) <= most):
            raise Invalid("bad_rrule", field="text", part=name, detail=parts[name][:40], fix="see_rfc_5545")
    if "BYSETPOS" in parts and parts["FREQ"] not in {"MONTHLY", "YEARLY"}:
        raise Invalid("unsupported_part", field="text", part="BYSETPOS", fix="remove_part")
    if "UNTIL" in parts:
        parts["UNTIL"] = _local_until(parts["UNTIL"])
    _refuse_too_often(parts)
    _refuse_days_no_month_has(parts)
    checked = ";".join(f"{name}={value}" for name, value in parts.items())
    try:
        first = next(iter(_compiled(checked, start)), None)
    except (ValueError, TypeError) as error:
        raise Invalid("bad_rrule", field="text", detail=str(error), fix="see_rfc_5545") from error
    if first is None:
        raise Invalid("never_happens", field="text", fix="check_days_and_end")
    return checked


def _parts_of(text: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    for part in text.strip().upper().removeprefix("RRULE:").split(";"):
        name, equals, value = part.partition("=")
        if not equals or not value or name in parts:
            raise Invalid("bad_rrule", field="text", detail=part[:40], fix="see_rfc_5545")
        parts[name] = value
    return parts


def _local_until(value: str) -> str:
    match = _UNTIL.match(value)
    if match is None:
        raise Invalid("bad_until", field="text", part="UNTIL", fix="see_rfc_5545")
    day, at, is_utc = match.groups()
    if at is None:
        return f"{day}T235959"  # a date means the whole of it
    if not is_utc:
        return f"{day}T{at}"
    try:
        instant = datetime.strptime(f"{day}T{at}", "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError as error:
        raise Invalid("bad_until", field="text", part="UNTIL", fix="see_rfc_5545") from error
    return _to_local(instant).strftime("%Y%m%dT%H%M%S")


def _refuse_too_often(parts: Mapping[str, str]) -> None:
    def count(name: str, otherwise: int) -> int:
        return len(set(parts[name].split(","))) if name in parts else otherwise

    a_day = count("BYHOUR", 24 if parts["FREQ"] == "HOURLY" else 1) * count("BYMINUTE", 1)
    if a_day > STARTS_A_DAY_LIMIT:
        raise Invalid("too_often", field="text", limit=STARTS_A_DAY_LIMIT, fix="fewer_times")


def _refuse_days_no_month_has(parts: Mapping[str, str]) -> None:
    """Dateutil would look for the 30th of February until the year 9999."""
    if "BYMONTHDAY" not in parts:
        return
    try:
        days = [abs(int(day)) for day in parts["BYMONTHDAY"].split(",")]
        months = [int(month) for month in parts.get("BYMONTH", "1").split(",")]
        longest = max(calendar.monthrange(2024, month)[1] for month in months)
    except (ValueError, calendar.IllegalMonthError) as error:
        raise Invalid("bad_rrule", field="text", part="BYMONTHDAY", detail=str(error), fix="see_rfc_5545") from error
    if min(days) > longest:
        raise Invalid("never_happens", field="text", part="BYMONTHDAY", fix="check_days_and_end")


@lru_cache(maxsize=4096)
def _compiled(text: str, start: datetime) -> rrule:
    rule = rrulestr(text, dtstart=start)
    if not isinstance(rule, rrule):
        raise TypeError(text)
    return rule


def _forwarded(text: str, start: datetime, first: date) -> rrule:
    """The rule begun shortly before `first`, for dateutil walks every start from DTSTART on.

    Moving DTSTART by whole intervals of days or weeks changes no later start; a COUNT would be counted anew.
    """
    rule = _compiled(text, start)
    parts = _parts_of(text)
    step_days = {"DAILY": 1, "WEEKLY": 7}.get(parts["FREQ"])
    if step_days is None or "COUNT" in parts:
        return rule
    step = timedelta(days=step_days * int(parts.get("INTERVAL", "1")))
    skipped = (datetime.combine(first, time.min) - start) // step - 1
    return rule.replace(dtstart=start + skipped * step) if skipped > 0 else rule


# --- Stored and sent --------------------------------------------------------------------------------------------------


def rule_to_dict(rule: Rule) -> dict[str, Any]:
    """JSON-ready and stable: `rule_from_dict` gives back an equal rule, and equal rules give equal text."""
    document: dict[str, Any] = {"kind": rule.kind.value}
    match rule.pattern:
        case Once(at):
            document["at"] = _datetime_text(at)
        case Weekly(weekdays, times):
            document["weekdays"] = [WEEKDAYS[number] for number in sorted(weekdays)]
            document["times"] = [_time_text(at) for at in times]
        case Recurring(text, start):
            document |= {"text": text, "start": _datetime_text(start)}
        case Lunar(day, times, month):
            document |= {"day": day, "times": [_time_text(at) for at in times]}
            if month is not None:
                document["month"] = month
        case _ as never:
            assert_never(never)
    if rule.from_date is not None:
        document["from_date"] = rule.from_date.isoformat()
    if rule.until_date is not None:
        document["until_date"] = rule.until_date.isoformat()
    for name, dates in (("exdates", rule.exdates), ("rdates", rule.rdates)):
        if dates:
            document[name] = [_datetime_text(at) if isinstance(at, datetime) else at.isoformat() for at in dates]
    return document


def rule_from_dict(document: Mapping[str, Any]) -> Rule:
    """The rule of a stored, sent or written document; dates and times may be text or, as YAML reads them, values.

    Raises `Invalid` with `field` and `fix`.
    """
    reader = _Reader(document)
    pattern: Pattern
    match reader.kind():
        case RuleKind.ONCE:
            pattern = Once(reader.wall_time("at"))
        case RuleKind.WEEKLY:
            pattern = Weekly(reader.weekdays(), reader.times())
        case RuleKind.RRULE:
            pattern = Recurring(reader.text("text"), reader.wall_time("start"))
        case RuleKind.LUNAR:
            month = None if document.get("month") is None else reader.integer("month")
            pattern = Lunar(reader.integer("day"), reader.times(), month)
        case _ as never:
            assert_never(never)
    rule = Rule(
        pattern,
        reader.day("from_date"),
        reader.day("until_date"),
        tuple(_day_or_wall_time(at, f"exdates[{number}]") for number, at in enumerate(reader.items("exdates"))),
        tuple(_wall_time(at, f"rdates[{number}]") for number, at in enumerate(reader.items("rdates"))),
    )
    unknown = document.keys() - _FIELDS[rule.kind]
    if unknown:
        raise Invalid("unknown_field", field=min(unknown), fix="remove_field")
    return rule


_BOUNDS: Final = frozenset({"kind", "from_date", "until_date", "exdates", "rdates"})
_FIELDS: Final[Mapping[RuleKind, frozenset[str]]] = {
    RuleKind.ONCE: _BOUNDS | {"at"},
    RuleKind.WEEKLY: _BOUNDS | {"weekdays", "times"},
    RuleKind.RRULE: _BOUNDS | {"text", "start"},
    RuleKind.LUNAR: _BOUNDS | {"day", "month", "times"},
}


class _Reader:
    """The fields of a document, each read with its name in the error."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def kind(self) -> RuleKind:
        try:
            return RuleKind(self._document.get("kind", ""))
        except ValueError:
            raise Invalid("bad_rule_kind", field="kind", known=list(RuleKind), fix="pick_rule_kind") from None

    def _required(self, field: str) -> Any:
        value = self._document.get(field)
        if value is None:
            raise Invalid("missing_field", field=field, fix="add_field")
        return value

    def text(self, field: str) -> str:
        value = self._required(field)
        if not isinstance(value, str):
            raise Invalid("not_text", field=field, fix="quote_the_text")
        return value

    def integer(self, field: str) -> int:
        value = self._required(field)
        if not isinstance(value, int) or isinstance(value, bool):
            raise Invalid("not_a_number", field=field, fix="give_whole_number")
        return value

    def items(self, field: str) -> list[Any]:
        value = self._document.get(field)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            raise Invalid("not_a_list", field=field, fix="give_a_list")
        return list(value)

    def wall_time(self, field: str) -> datetime:
        return _wall_time(self._required(field), field)

    def day(self, field: str) -> date | None:
        value = self._document.get(field)
        if value is None:
            return None
        day = _day_or_wall_time(value, field)
        if isinstance(day, datetime):
            raise Invalid("not_a_date", field=field, fix="write_yyyy_mm_dd")
        return day

    def weekdays(self) -> frozenset[int]:
        numbers = set()
        for number, name in enumerate(self.items("weekdays")):
            if not isinstance(name, str) or name.lower() not in WEEKDAYS:
                raise Invalid("bad_weekdays", field=f"weekdays[{number}]", known=list(WEEKDAYS), fix="name_weekdays")
            numbers.add(WEEKDAYS.index(name.lower()))
        return frozenset(numbers)

    def times(self) -> tuple[time, ...]:
        return tuple(_clock_time(at, f"times[{number}]") for number, at in enumerate(self.items("times")))


def _clock_time(value: Any, field: str) -> time:
    if isinstance(value, time):
        return value
    try:
        return time.fromisoformat(value)
    except (ValueError, TypeError):
        # An unquoted 17:00 is the number 1020 to YAML 1.1.
        raise Invalid("not_a_time", field=field, fix="write_hh_mm_quoted") from None


def _wall_time(value: Any, field: str) -> datetime:
    at = _day_or_wall_time(value, field)
    if not isinstance(at, datetime):
        raise Invalid("not_a_time", field=field, fix="write_date_and_time")
    return at


def _day_or_wall_time(value: Any, field: str) -> date | datetime:
    """A date, or a local wall time; a time with an offset is turned into local."""
    if isinstance(value, str):
        try:
            value = date.fromisoformat(value) if len(value) <= len("2026-06-01") else datetime.fromisoformat(value)
        except ValueError:
            raise Invalid("not_a_date", field=field, fix="write_yyyy_mm_dd") from None
    if isinstance(value, datetime):
        return value if value.tzinfo is None else _to_local(value)
    if isinstance(value, date):
        return value
    raise Invalid("not_a_date", field=field, fix="write_yyyy_mm_dd")


def _datetime_text(at: datetime) -> str:
    return f"{at.date().isoformat()}T{_time_text(at.time())}"


def _time_text(at: time) -> str:
    return at.isoformat(timespec="minutes" if at == at.replace(second=0, microsecond=0) else "auto")
