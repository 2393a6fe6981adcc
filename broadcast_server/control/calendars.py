"""Schedules as iCalendar, so that the week can be seen, and written, in any calendar program.

A VEVENT is a schedule: UID is its key; DTSTART, RRULE, EXDATE and RDATE its rule in Vietnam's local time, DURATION a
relay's length. What a calendar has no word for stands in `X-LOA-…` properties; a rule RFC 5545 cannot say (lunar,
irregular grids) stands whole in `X-LOA-RULE` beside its next starts. An event without `X-LOA-CONTENT` announces its
DESCRIPTION, for the importer to approve. Only schedules travel this way; content is named by key.

Source: RFC 5545, by the `icalendar` package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

import icalendar

from broadcast_server.control.documents import (
    Document,
    Marks,
    check_document,
    duration_of,
    duration_text,
    rule_form,
    rule_of,
)
from broadcast_server.control.documents import read_plain as read_document
from broadcast_server.domain.clock import LOCAL, Window
from broadcast_server.domain.errors import BroadcastError, Invalid
from broadcast_server.domain.recurrence import (
    Once,
    Recurring,
    Rule,
    Weekly,
    local_occurrences,
    rule_from_dict,
    rule_to_dict,
)

ZONE: Final = "Asia/Ho_Chi_Minh"
_SOON: Final = timedelta(days=400)
_DAYS: Final = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
_LONGEST_TEXT: Final = 2_000_000


# -- out --------------------------------------------------------------------------------------------------------------


def write_calendar(told: Mapping[str, Any], *, now: datetime) -> str:
    """The schedules of a normal form as a calendar. `now` is its DTSTAMP and from where next starts are looked for."""
    calendar = icalendar.Calendar()
    calendar.add("prodid", "-//loa//broadcast-server//VI")
    calendar.add("version", "2.0")
    for form in told.get("schedules", ()):
        calendar.add_component(_event(form, now))
    text: str = calendar.to_ical().decode()
    return text


def _event(form: Mapping[str, Any], now: datetime) -> icalendar.Event:
    event = icalendar.Event()
    rule = _rule(form)
    event.add("uid", form["key"])
    event.add("dtstamp", now.astimezone(UTC))
    kind = next(name for name in ("bulletin", "programme", "relay") if name in form)
    event.add("summary", form.get("name", form[kind]))
    _add_when(event, rule, now)
    if "length" in form:
        event.add("duration", duration_of(form["length"]))
    event.add("x-loa-content", f"{kind}:{form[kind]}")
    for target in form["targets"]:
        [(word, ref)] = target.items()
        event.add("x-loa-target", f"{word}:{ref}")
    if "name" in form:
        event.add("x-loa-name", form["name"])
    if "." in form.get("length", ""):  # DURATION knows whole seconds
        event.add("x-loa-length", form["length"])
    for name in ("language", "max_wait", "order", "gain_db"):
        if name in form:
            event.add(f"x-loa-{name.replace('_', '-')}", str(form[name]))
    if "late" in form:
        event.add("x-loa-late", json.dumps(form["late"], sort_keys=True))
    return event


def _rule(form: Mapping[str, Any]) -> Rule:
    document, _ = read_document({"schedules": [dict(form)]}, "calendar")
    return rule_of(document.schedules[0], {}, Marks("calendar", {}), "", anchor=None)


def _add_when(event: icalendar.Event, rule: Rule, now: datetime) -> None:
    start, parts = _as_rrule(rule, now)
    if start is None:
        coming = list(local_occurrences(rule, Window(now, now + _SOON)))
        start = coming[0] if coming else now.astimezone(LOCAL).replace(tzinfo=None, microsecond=0)
        event.add("x-loa-rule", json.dumps(rule_to_dict(rule), sort_keys=True))
        for at in coming[1:20]:
            event.add("rdate", at.replace(tzinfo=LOCAL))
        event.add("dtstart", start.replace(tzinfo=LOCAL))
        return
    event.add("dtstart", start.replace(tzinfo=LOCAL))
    if parts:
        event.add("rrule", icalendar.vRecur.from_ical(parts))
    if isinstance(rule.pattern, Weekly) and rule.from_date is None:
        event.add("x-loa-from", "open")
    for exdate in rule.exdates:
        event.add("exdate", _exdate(exdate, start))
    for at in rule.rdates:
        event.add("rdate", at.replace(tzinfo=LOCAL))


def _exdate(at: date | datetime, start: datetime) -> datetime:
    local = at if isinstance(at, datetime) else datetime.combine(at, start.time())
    return local.replace(tzinfo=LOCAL)


def _as_rrule(rule: Rule, now: datetime) -> tuple[datetime | None, str]:
    """DTSTART and RRULE that say the same, `(None, "")` where RFC 5545 has no words for it.

    A grid without a first day begins at its next start; `X-LOA-FROM` tells that it has none.
    """
    until = ""
    if rule.until_date is not None:
        last = datetime.combine(rule.until_date, time(23, 59, 59), LOCAL).astimezone(UTC)
        until = f";UNTIL={last:%Y%m%dT%H%M%SZ}"
    if any(not isinstance(each, datetime) for each in rule.exdates):
        return None, ""  # a whole day has several starts
    match rule.pattern:
        case Once(at) if rule.from_date is None and rule.until_date is None:
            return at, ""
        case Weekly(weekdays, times) if _is_grid(times):
            first = rule.from_date or now.astimezone(LOCAL).date()
            while first.weekday() not in weekdays:
                first += timedelta(days=1)
            days = ",".join(_DAYS[number] for number in sorted(weekdays))
            hours = ",".join(str(hour) for hour in sorted({at.hour for at in times}))
            minutes = ",".join(str(minute) for minute in sorted({at.minute for at in times}))
            clock = f";BYHOUR={hours};BYMINUTE={minutes}" if len(times) > 1 else ""
            return datetime.combine(first, times[0]), f"FREQ=WEEKLY;BYDAY={days}{clock}{until}"
        case Recurring(text, start) if rule.from_date is None and rule.until_date is None:
            return start, text
    return None, ""


def _is_grid(times: tuple[time, ...]) -> bool:
    """Whether every hour goes with every minute, as BYHOUR and BYMINUTE have it."""
    if len(times) == 1:
        return True
    hours, minutes = {at.hour for at in times}, {at.minute for at in times}
    return len(times) == len(hours) * len(minutes) and all(at.second == 0 for at in times)


# -- in ---------------------------------------------------------------------------------------------------------------


def read_calendar(text: str, file: str) -> tuple[Document, Marks]:
    """A calendar as a schedule document. Raises `Invalid` with file, line (of the event) and fix."""
    lines = [number for number, line in enumerate(text.splitlines(), 1) if line.strip().upper() == "BEGIN:VEVENT"]
    if len(text) > _LONGEST_TEXT:
        raise Invalid("document_too_large", field="", file=file, line=1, fix="split_document")
    try:
        calendar = icalendar.Calendar.from_ical(text)
    except ValueError as error:
        raise Invalid("not_a_calendar", field="", file=file, line=1, fix="see_rfc_5545", detail=str(error)) from None
    marks = Marks(file, {f"schedules[{number}]": line for number, line in enumerate(lines)})
    told: dict[str, Any] = {"bulletins": [], "schedules": []}
    for number, event in enumerate(calendar.walk("VEVENT")):
        path = f"schedules[{number}]"
        with marks.at(path):
            try:
                form = _form(event, told["bulletins"])
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                # The library hands out properties it could not read, and they fail when they are looked at.
                raise Invalid("wrong_form", field="", fix="see_rfc_5545", detail=str(error)) from None
            told["schedules"].append(form)
    try:
        document, _ = read_document(told, file)
    except BroadcastError as error:
        where = str(error.facts.get("field", ""))
        raise type(error)(error.code, **error.facts | {"line": marks.line_of(where)}) from None
    check_document(document, marks)
    return document, marks


def _form(event: Any, bulletins: list[dict[str, Any]]) -> dict[str, Any]:
    key = re.sub(r"[^A-Za-z0-9._@-]", "-", str(event.get("uid", "")))[:120]
    if not key:
        raise Invalid("missing_field", field="UID", fix="add_field")
    form: dict[str, Any] = {"key": key}
    content = event.get("x-loa-content")
    if content is None:
        text = str(event.get("description", "")).strip()
        if not text:
            raise Invalid("event_without_content", field="DESCRIPTION", fix="describe_or_name_content")
        title = str(event.get("summary", "")).strip() or text[:80]
        bulletins.append({"key": key, "title": title, "versions": [{"text": text}], "approve": True})
        form["bulletin"] = key
    else:
        kind, _, name = str(content).partition(":")
        if kind not in {"bulletin", "programme", "relay"} or not name:
            raise Invalid("wrong_form", field="X-LOA-CONTENT", fix="describe_or_name_content")
        form[kind] = name
    if "x-loa-name" in event:
        form["name"] = str(event["x-loa-name"])
    targets = event.get("x-loa-target", [])
    listed = targets if isinstance(targets, list) else [targets]
    if listed:
        if not all(":" in str(target) for target in listed):  # left out, it would mean the whole unit
            raise Invalid("wrong_form", field="X-LOA-TARGET", fix="pick_target")
        form["targets"] = [dict([str(target).split(":", 1)]) for target in listed]
    form |= _when(event)
    length = event.get("duration")
    if "x-loa-length" in event:
        form["length"] = str(event["x-loa-length"])
    elif length is not None:
        form["length"] = duration_text(length.dt)
    elif event.get("dtend") is not None and "relay" in form:
        form["length"] = duration_text(_local(event["dtend"].dt) - _local(event["dtstart"].dt))
    for name, read in (("language", str), ("max_wait", str), ("order", int), ("gain_db", float)):
        value = event.get(f"x-loa-{name.replace('_', '-')}")
        if value is not None:
            try:
                form[name] = read(str(value))
            except ValueError:
                raise Invalid("not_a_number", field=f"X-LOA-{name.upper()}") from None
    if "x-loa-late" in event:
        form["late"] = _json(str(event["x-loa-late"]), "X-LOA-LATE")
    return form


def _when(event: Any) -> dict[str, Any]:
    whole = event.get("x-loa-rule")
    if whole is not None:
        return rule_form(rule_from_dict(_json(str(whole), "X-LOA-RULE")))
    if event.get("dtstart") is None:
        raise Invalid("missing_field", field="DTSTART", fix="add_field")
    start = _local(event["dtstart"].dt)
    told: dict[str, Any] = {"kind": "once", "at": start.isoformat()}
    recur = event.get("rrule")
    if recur is not None:
        if isinstance(recur, list):
            raise Invalid("wrong_form", field="RRULE", fix="see_rfc_5545")
        told = _weekly(recur, start) or {
            "kind": "rrule",
            "text": recur.to_ical().decode(),
            "start": start.isoformat(),
        }
    if "x-loa-from" in event:
        told.pop("from_date", None)
    told["exdates"] = [_local(at).isoformat() for at in _dates(event, "exdate")]
    told["rdates"] = [_local(at).isoformat() for at in _dates(event, "rdate")]
    return rule_form(rule_from_dict(told))


def _weekly(recur: Any, start: datetime) -> dict[str, Any] | None:
    """A plain weekly rule as the grid that a document would say."""
    if set(recur) - {"FREQ", "BYDAY", "BYHOUR", "BYMINUTE", "UNTIL", "WKST"} or recur.get("FREQ") != ["WEEKLY"]:
        return None
    days = [str(day).upper() for day in recur.get("BYDAY", [_DAYS[start.weekday()]])]
    if not set(days) <= set(_DAYS):
        return None
    told: dict[str, Any] = {"kind": "weekly", "weekdays": [day.lower() for day in days]}
    hours, minutes = recur.get("BYHOUR", [start.hour]), recur.get("BYMINUTE", [start.minute])
    try:
        times = [start.time().replace(hour=int(hour), minute=int(minute)) for hour in hours for minute in minutes]
    except ValueError:
        return None  # told by the domain
    if start.time() > min(times):
        return None  # the first day would lack its earlier starts
    told |= {"times": [at.isoformat() for at in times], "from_date": start.date().isoformat()}
    if "UNTIL" in recur:
        until = recur["UNTIL"][0]
        if isinstance(until, datetime) and _local(until).time() < start.time():
            return None
        told["until_date"] = (_local(until).date() if isinstance(until, datetime) else until).isoformat()
    return told


def _dates(event: Any, name: str) -> list[date | datetime]:
    found = event.get(name, [])
    listed = found if isinstance(found, list) else [found]
    return [each.dt for group in listed for each in group.dts]


def _local(at: date | datetime) -> datetime:
    """Local wall time; a floating time is local already, a whole day is no time to sound at."""
    if not isinstance(at, datetime):
        raise Invalid("not_a_time", field="DTSTART", fix="write_date_and_time")
    return at if at.tzinfo is None else at.astimezone(LOCAL).replace(tzinfo=None)


def _json(text: str, field: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Invalid("wrong_form", field=field, fix="mend_line") from None
