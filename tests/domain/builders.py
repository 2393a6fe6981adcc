"""Entries the way people speak of them: `at("17:00")`, `a_bulletin("16:55", minutes=3)`."""

from datetime import date, datetime, time, timedelta
from typing import Any

from broadcast_server.domain.clock import LOCAL, Window
from broadcast_server.domain.timeline import Entry
from speaker_protocol.rules import BulletinClass, Late, LatePolicy, Level, SourceKind

DAY = date(2026, 6, 1)


def at(clock: str, day: date = DAY) -> datetime:
    """The instant of a local wall time; "24:30" is half past midnight of the next day."""
    hours, _, rest = clock.partition(":")
    days, hour = divmod(int(hours), 24)
    return datetime.combine(day + timedelta(days=days), time.fromisoformat(f"{hour:02}:{rest}"), LOCAL)


def window(start: str, end: str) -> Window:
    return Window(at(start), at(end))


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


def late(policy: LatePolicy, at_most_min: float | None = None) -> Late:
    return Late(policy, None if at_most_min is None else int(at_most_min * 60_000))


def an_entry(name: str, start: str, end: str, **changes: Any) -> Entry:
    given: dict[str, Any] = {
        "level": Level.NORMAL,
        "klass": BulletinClass.NORMAL,
        "source": SourceKind.RECORDED,
        "length": at(end) - at(start),
    }
    return Entry(name, at(start), at(end), **(given | changes))


def a_bulletin(name: str, start: str, end: str, length_min: float, **changes: Any) -> Entry:
    return an_entry(name, start, end, length=minutes(length_min), **changes)


def a_programme(name: str, start: str, end: str, items_min: tuple[float, ...], **changes: Any) -> Entry:
    ends = [minutes(sum(items_min[: count + 1])) for count in range(len(items_min))]
    given: dict[str, Any] = {"level": Level.PROGRAMME, "length": ends[-1], "boundaries": tuple(ends[:-1])}
    return an_entry(name, start, end, **(given | changes))


def a_relay(name: str, start: str, end: str, **changes: Any) -> Entry:
    given: dict[str, Any] = {"level": Level.RELAY_REQUIRED, "source": SourceKind.RELAY, "length": None}
    return an_entry(name, start, end, **(given | changes))


def filler(name: str, start: str, end: str, **changes: Any) -> Entry:
    given: dict[str, Any] = {"level": Level.FILLER, "source": SourceKind.FILLER, "length": None}
    return an_entry(name, start, end, **(given | changes))


def a_voice(name: str, start: str, end: str, **changes: Any) -> Entry:
    given: dict[str, Any] = {"level": Level.LIVE, "source": SourceKind.LIVE, "length": None}
    return an_entry(name, start, end, **(given | changes))


def a_priority(name: str, start: str, end: str, length_min: float, **changes: Any) -> Entry:
    given: dict[str, Any] = {"level": Level.PRIORITY_COMMUNE, "klass": BulletinClass.PRIORITY}
    return a_bulletin(name, start, end, length_min, **(given | changes))


def an_emergency(name: str, start: str, end: str, length_min: float, **changes: Any) -> Entry:
    given: dict[str, Any] = {"level": Level.EMERGENCY_COMMUNE, "klass": BulletinClass.EMERGENCY}
    return a_bulletin(name, start, end, length_min, **(given | changes))
