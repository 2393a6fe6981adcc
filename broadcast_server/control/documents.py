"""The form of a schedule document, its marks, and its one normal form.

A document is what `schedules/*.yaml` hold: policy, bulletins, programmes and schedules of one unit. Facts a maintainer
must not break: shapes are checked by the models (from which `schedules/schema.json` is printed), meaning by the domain;
whatever is wrong is told with file, line and fix, so every value keeps the line it stands on; `05:00` is text here,
quoted or not (YAML 1.1 would read a number); two documents mean the same exactly if their normal forms are equal.

Source: YAML 1.1 by PyYAML's composer; RFC 3339 for instants; RFC 5545 for `rrule`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from broadcast_server.control.library import ItemRole
from broadcast_server.domain.clock import LOCAL
from broadcast_server.domain.errors import BroadcastError, Invalid
from broadcast_server.domain.policy import policy_from_dict, policy_to_dict
from broadcast_server.domain.recurrence import Lunar, Once, Recurring, Rule, Weekly, rule_from_dict, rule_to_dict
from speaker_protocol.rules import BulletinClass, Late, LatePolicy

FORMAT: Final = "loa-schedules/1"
LONGEST_TEXT: Final = 2_000_000
_MOST_NODES: Final = 200_000
_DAYS: Final = ["mo", "tu", "we", "th", "fr", "sa", "su"]

Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,119}$")]
Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{3}$")]
Title = Annotated[str, StringConstraints(min_length=1, max_length=300)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Duration = Annotated[str, StringConstraints(pattern=r"^\d{1,2}:[0-5]\d:[0-5]\d(\.\d{1,3})?$")]
Clock = Annotated[str, StringConstraints(min_length=1, max_length=40)]
Day = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\d$")]
DayOrTime = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d)?)?$")]
Wall = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?$")]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class VersionForm(_Form):
    """What is said in one language: `text` for a voice, or a recording (`audio` beside the document, or an `asset`)."""

    language: Language = "vie"
    text: str | None = Field(None, max_length=20_000)
    voice: Literal["north", "central", "south"] = "north"
    audio: str | None = Field(None, description="path of a recording, from the document's folder")
    asset: Sha256 | None = Field(None, description="a recording this server has already")
    fallback_audio: str | None = Field(None, description="path of the recording where no speech engine can be had")


class BulletinForm(_Form):
    """A bulletin (bản tin)."""

    key: Key
    title: Title
    klass: BulletinClass = Field(BulletinClass.NORMAL, alias="class")
    subject: str | None = Field(None, max_length=120)
    valid_from: str | None = Field(None, description="RFC 3339 with an offset")
    valid_to: str | None = Field(None, description="RFC 3339 with an offset")
    versions: list[VersionForm] = Field(min_length=1)
    approve: bool = Field(
        default=False, description="submitted, and approved if who imports may: nobody approves what they wrote"
    )


class ItemForm(_Form):
    """A part of a programme: a bulletin by key, a recording beside the document, or an asset."""

    role: ItemRole = ItemRole.ITEM
    bulletin: Key | None = None
    language: Language = "vie"
    audio: str | None = None
    asset: Sha256 | None = None


class ProgrammeForm(_Form):
    """A programme (chương trình)."""

    key: Key
    title: Title
    items: list[ItemForm] = Field(min_length=1)
    approve: bool = False


class TargetForm(_Form):
    """Where: one of a unit by code (`here` is the importing unit), a cluster by code, a group by name."""

    unit: str | None = None
    cluster: str | None = None
    group: str | None = None


class WeekdaysForm(_Form):
    """The same times on some days of the week. Times are `HH:MM[:SS]` or names of `sessions`."""

    days: list[Literal["mo", "tu", "we", "th", "fr", "sa", "su"]] = Field(min_length=1)
    times: list[Clock] = Field(min_length=1)


class RruleForm(_Form):
    """An RFC 5545 rule; `start` is DTSTART in local time."""

    rule: str
    start: Wall


class LunarForm(_Form):
    """A day of the lunar month (âm lịch), of one month or of each; -1 is the last."""

    day: int
    month: int | None = None
    times: list[Clock] = Field(min_length=1)


class AtForm(_Form):
    """When: exactly one of these."""

    once: str | None = Field(None, description="RFC 3339 with an offset, or T+HH:MM:SS after the anchor of the import")
    daily: list[Clock] | None = None
    weekdays: WeekdaysForm | None = None
    rrule: RruleForm | None = None
    lunar: LunarForm | None = None


class LateForm(_Form):
    """What to do when it cannot begin in time."""

    policy: LatePolicy
    at_most: Duration | None = None


class ScheduleForm(_Form):
    """What sounds when and where: exactly one of `bulletin`, `programme`, `relay` (a feed by name)."""

    key: Key
    name: Title | None = None
    bulletin: Key | None = None
    programme: Key | None = None
    relay: Title | None = None
    targets: list[TargetForm] = Field(default_factory=lambda: [TargetForm(unit="here")])
    language: Language = "vie"
    at: AtForm
    from_date: Day | None = None
    until_date: Day | None = None
    except_: list[DayOrTime] = Field(default_factory=list, alias="except", description="days or starts left out")
    also: list[Wall] = Field(default_factory=list, description="starts beside the rule, local time")
    length: Duration | None = None
    max_wait: Duration = "00:00:00"
    late: LateForm | None = None
    order: int = Field(0, description="among equals of priority: the lower goes first")
    gain_db: float = 0.0


class Document(_Form):
    """A schedule document of one unit."""

    format: Literal["loa-schedules/1"] = "loa-schedules/1"
    title: Title | None = None
    sessions: dict[str, str] = Field(default_factory=dict, description="names of times, to be used instead of times")
    policy: dict[str, Any] | None = Field(None, description="station policy (quy chế)")
    bulletins: list[BulletinForm] = Field(default_factory=list)
    programmes: list[ProgrammeForm] = Field(default_factory=list)
    schedules: list[ScheduleForm] = Field(default_factory=list)


def schema() -> dict[str, Any]:
    """JSON Schema of a document."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Loa schedule document",
        **{name: value for name, value in Document.model_json_schema().items() if name != "title"},
    }


# -- marks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Marks:
    """Which line each value stands on, by its dotted path (`schedules[2].at.daily[0]`)."""

    file: str
    lines: Mapping[str, int]

    def line_of(self, path: str) -> int:
        """The line of the value, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = re.sub(r"(\.[^.\[]+|\[\d+\]|^[^.\[]+)$", "", path)
        return self.lines.get(path, 1)

    @contextmanager
    def at(self, path: str, fields: Mapping[str, str] | None = None) -> Iterator[None]:
        """Whatever goes wrong inside is told with file, line, field and fix.

        `fields`: how the fields of inner errors are called in the document.
        """
        try:
            yield
        except BroadcastError as error:
            facts = dict(error.facts)
            if "line" in facts:
                raise
            inner = str(facts.get("field", ""))
            head = re.split(r"[.\[]", inner, maxsplit=1)[0]
            inner = (fields or {}).get(head, head) + inner[len(head) :] if inner else ""
            where = ".".join(part for part in (path, inner) if part)
            facts |= {"field": where, "file": self.file, "line": self.line_of(where)}
            facts.setdefault("fix", "mend_line")
            raise type(error)(error.code, **facts) from None

    def wrong(self, code: str, path: str, *, fix: str = "mend_line", **facts: Any) -> Invalid:
        """An error about the value at `path`."""
        return Invalid(code, field=path, file=self.file, line=self.line_of(path), fix=fix, **facts)


def read_yaml(text: str, file: str) -> tuple[Document, Marks]:
    """The document, and where everything stands. Raises `Invalid` with file, line, field and fix."""
    nothing = Marks(file, {})
    if len(text) > LONGEST_TEXT:
        raise nothing.wrong("document_too_large", "", fix="split_document")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = 1 if mark is None else mark.line + 1
        problem = str(getattr(error, "problem", None) or "YAML")
        raise Invalid("not_yaml", file=file, line=line, field="", fix="mend_line", detail=problem) from None
    if root is None:
        raise nothing.wrong("document_empty", "", fix="see_schema")
    reader = _NodeReader(file)
    plain = reader.plain(root, "")
    return _checked(plain, Marks(file, reader.lines))


def _checked(plain: Any, marks: Marks) -> tuple[Document, Marks]:
    try:
        document = Document.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        path = _path([part for part in first["loc"] if part != "function-wrap"])
        code, fix = {
            "missing": ("missing_field", "add_field"),
            "extra_forbidden": ("unknown_field", "remove_field"),
        }.get(first["type"], ("wrong_form", "see_schema"))
        raise marks.wrong(code, path, fix=fix, detail=first["msg"]) from None
    check_document(document, marks)
    return document, marks


class _NodeReader:
    """YAML nodes to plain values: numbers, booleans and null as such, everything else text."""

    def __init__(self, file: str) -> None:
        self.lines: dict[str, int] = {}
        self._file = file
        self._count = 0

    def plain(self, node: yaml.Node, path: str) -> Any:
        self._count += 1
        if self._count > _MOST_NODES:  # aliases of aliases
            raise Invalid("document_too_large", field=path, file=self._file, line=1, fix="split_document")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(each, f"{path}[{number}]") for number, each in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            inner = f"{path}.{key}" if path else key
            if key in found:
                line = key_node.start_mark.line + 1
                raise Invalid("key_twice", field=inner, file=self._file, line=line, fix="remove_field")
            found[key] = self.plain(value_node, inner)
            self.lines[inner] = key_node.start_mark.line + 1
        return found


_NUMBER: Final = re.compile(r"[-+]?(0|[1-9]\d*)(\.\d+)?")


def _scalar(node: yaml.Node) -> Any:
    text = str(node.value)
    if not isinstance(node, yaml.ScalarNode) or node.style is not None:
        return text
    if text in {"", "~", "null"}:
        return None
    if text in {"true", "false"}:
        return text == "true"
    if _NUMBER.fullmatch(text):
        return float(text) if "." in text else int(text)
    return text


def _path(parts: Sequence[str | int]) -> str:
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


# -- meaning ----------------------------------------------------------------------------------------------------------


def check_document(document: Document, marks: Marks) -> None:
    """What the models cannot say: exactly one of several, keys once, rules that can happen. Raises `Invalid`."""
    for name in ("bulletins", "programmes", "schedules"):
        seen: set[str] = set()
        for number, each in enumerate(getattr(document, name)):
            if each.key in seen:
                raise marks.wrong("key_twice", f"{name}[{number}].key", fix="rename_key", key=each.key)
            seen.add(each.key)
    if document.policy is not None:
        with marks.at("policy"):
            policy_from_dict(document.policy)
    for number, bulletin in enumerate(document.bulletins):
        path = f"bulletins[{number}]"
        for name in ("valid_from", "valid_to"):
            value = getattr(bulletin, name)
            if value is not None:
                with marks.at(f"{path}.{name}"):
                    instant_of(value)
        for place, version in enumerate(bulletin.versions):
            if version.audio is not None and version.asset is not None:
                raise marks.wrong("one_of", f"{path}.versions[{place}]", fix="name_one_of_both", names="audio, asset")
            if version.text is None and version.audio is None and version.asset is None:
                raise marks.wrong("one_of", f"{path}.versions[{place}]", fix="name_one", names="text, audio, asset")
    for number, programme in enumerate(document.programmes):
        for place, item in enumerate(programme.items):
            if sum(each is not None for each in (item.bulletin, item.audio, item.asset)) != 1:
                path = f"programmes[{number}].items[{place}]"
                raise marks.wrong("one_of", path, fix="name_one", names="bulletin, audio, asset")
    for number, schedule in enumerate(document.schedules):
        _check_schedule(schedule, f"schedules[{number}]", document.sessions, marks)


def _check_schedule(schedule: ScheduleForm, path: str, sessions: Mapping[str, str], marks: Marks) -> None:
    if sum(each is not None for each in (schedule.bulletin, schedule.programme, schedule.relay)) != 1:
        raise marks.wrong("one_of", path, fix="name_one", names="bulletin, programme, relay")
    if schedule.relay is not None and schedule.length is None:
        raise marks.wrong("length_missing", path, fix="give_length", content="feed")
    for place, target in enumerate(schedule.targets):
        if sum(each is not None for each in (target.unit, target.cluster, target.group)) != 1:
            raise marks.wrong("one_of", f"{path}.targets[{place}]", fix="name_one", names="unit, cluster, group")
    rule_of(schedule, sessions, marks, path, anchor=datetime(2026, 1, 1, tzinfo=UTC))
    late_of(schedule, marks, path)


_PATTERNS: Final = ("once", "daily", "weekdays", "rrule", "lunar")
_ANCHORED: Final = re.compile(r"T\+(\d{1,2}:[0-5]\d:[0-5]\d(?:\.\d{1,3})?)")


def rule_of(
    schedule: ScheduleForm, sessions: Mapping[str, str], marks: Marks, path: str, *, anchor: datetime | None
) -> Rule:
    """The rule a schedule's `at` means. Raises `Invalid` with file, line and fix."""
    at = schedule.at
    told: dict[str, Any]
    if sum(getattr(at, name) is not None for name in _PATTERNS) != 1:
        raise marks.wrong("one_of", f"{path}.at", fix="name_one", names=", ".join(_PATTERNS))
    inner = f"{path}.at.{pattern_of(at)}"
    fields: dict[str, str] = {}
    if at.once is not None:
        with marks.at(inner):
            told = {"kind": "once", "at": _once(at.once, anchor).isoformat()}
    elif at.daily is not None:
        told = {"kind": "weekly", "weekdays": _DAYS, "times": [sessions.get(time, time) for time in at.daily]}
        fields, inner = {"times": "daily"}, f"{path}.at"
    elif at.weekdays is not None:
        times = [sessions.get(time, time) for time in at.weekdays.times]
        told = {"kind": "weekly", "weekdays": list(at.weekdays.days), "times": times}
    elif at.rrule is not None:
        told = {"kind": "rrule", "text": at.rrule.rule, "start": at.rrule.start}
        fields = {"text": "rule"}
    else:
        lunar = at.lunar
        assert lunar is not None  # noqa: S101 - one of the five is given
        told = {"kind": "lunar", "day": lunar.day, "times": [sessions.get(time, time) for time in lunar.times]}
        if lunar.month is not None:
            told["month"] = lunar.month
    if schedule.from_date is not None:
        told["from_date"] = schedule.from_date
    if schedule.until_date is not None:
        told["until_date"] = schedule.until_date
    told["exdates"], told["rdates"] = list(schedule.except_), list(schedule.also)
    with marks.at(inner, fields):
        return rule_from_dict(told)


def pattern_of(at: AtForm) -> str:
    """Which of the five ways to say when is used; `once` if none is."""
    return next((name for name in _PATTERNS if getattr(at, name) is not None), "once")


def _once(text: str, anchor: datetime | None) -> datetime:
    anchored = _ANCHORED.fullmatch(text)
    if anchored is None:
        return instant_of(text).astimezone(LOCAL)
    if anchor is None:
        raise Invalid("anchor_missing", fix="give_anchor")
    return (anchor + duration_of(anchored[1])).astimezone(LOCAL)


def instant_of(text: str) -> datetime:
    """RFC 3339 with an offset. Raises `Invalid`: `not_an_instant`, `naive_time`."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid("not_an_instant", fix="write_rfc_3339") from None
    if instant.tzinfo is None:
        raise Invalid("naive_time", fix="add_offset")
    return instant


def duration_of(text: str) -> timedelta:
    """`HH:MM:SS[.mmm]`, which the models have checked."""
    hours, minutes, seconds = text.split(":")
    return timedelta(hours=int(hours), minutes=int(minutes), milliseconds=round(float(seconds) * 1000))


def duration_text(length: timedelta) -> str:
    """`HH:MM:SS[.mmm]`."""
    ms = length // timedelta(milliseconds=1)
    text = f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}"
    return text if ms % 1000 == 0 else f"{text}.{ms % 1000:03d}"


def late_of(schedule: ScheduleForm, marks: Marks, path: str) -> Late:
    """The late policy. Raises `Invalid`."""
    if schedule.late is None:
        return Late()
    at_most = schedule.late.at_most
    try:
        return Late(
            schedule.late.policy,
            None if at_most is None else duration_of(at_most) // timedelta(milliseconds=1),
        )
    except ValueError:
        raise marks.wrong("late_at_most", f"{path}.late", fix="at_most_with_waiting_only") from None


# -- the normal form --------------------------------------------------------------------------------------------------


def normal_form(document: Document, *, anchor: datetime | None = None, file: str = "document") -> dict[str, Any]:
    """What a document means, as plain values: defaults left out, sessions and anchors resolved, lists in order."""
    marks = Marks(file, {})
    told: dict[str, Any] = {"format": FORMAT}
    if document.policy is not None:
        told["policy"] = policy_to_dict(policy_from_dict(document.policy))
    if document.bulletins:
        told["bulletins"] = sorted((_normal_bulletin(each) for each in document.bulletins), key=_key)
    if document.programmes:
        told["programmes"] = sorted((_dumped(each) for each in document.programmes), key=_key)
    if document.schedules:
        told["schedules"] = sorted(
            (
                _normal_schedule(each, rule_of(each, document.sessions, marks, f"schedules[{number}]", anchor=anchor))
                for number, each in enumerate(document.schedules)
            ),
            key=_key,
        )
    return told


def _key(told: Mapping[str, Any]) -> str:
    key: str = told["key"]
    return key


def _dumped(form: BaseModel) -> dict[str, Any]:
    return form.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)


def _normal_bulletin(bulletin: BulletinForm) -> dict[str, Any]:
    told = _dumped(bulletin)
    for name in ("valid_from", "valid_to"):
        if name in told:
            told[name] = local_text(instant_of(told[name]))
    told["versions"] = sorted(
        (_dumped(version) for version in bulletin.versions), key=lambda version: version.get("language", "vie")
    )
    return told


def _normal_schedule(schedule: ScheduleForm, rule: Rule) -> dict[str, Any]:
    told = _dumped(schedule)
    for name in ("at", "from_date", "until_date", "except", "also"):
        told.pop(name, None)
    told |= rule_form(rule)
    for name in ("length", "max_wait"):
        if name in told:
            told[name] = duration_text(duration_of(told[name]))
    if told.get("max_wait") == "00:00:00":
        del told["max_wait"]
    if "late" in told and "at_most" in told["late"]:
        told["late"]["at_most"] = duration_text(duration_of(told["late"]["at_most"]))
    if told.get("late") == {"policy": LatePolicy.START_NOW.value}:
        del told["late"]
    targets = {tuple(sorted(target.items())) for target in told.get("targets", [{"unit": "here"}])}
    told["targets"] = [dict(target) for target in sorted(targets)]
    return told


def rule_form(rule: Rule) -> dict[str, Any]:
    """The fields of a schedule form that say when."""
    stored = rule_to_dict(rule)
    told: dict[str, Any]
    match rule.pattern:
        case Once(at):
            told = {"once": local_text(at.replace(tzinfo=LOCAL))}
        case Weekly(weekdays, _):
            days, times = stored["weekdays"], stored["times"]
            told = {"daily": times} if len(weekdays) == len(_DAYS) else {"weekdays": {"days": days, "times": times}}
        case Recurring():
            told = {"rrule": {"rule": stored["text"], "start": stored["start"]}}
        case Lunar():
            told = {"lunar": {name: stored[name] for name in ("day", "month", "times") if name in stored}}
    form: dict[str, Any] = {"at": told}
    form |= {name: stored[name] for name in ("from_date", "until_date") if name in stored}
    if rule.exdates:
        form["except"] = sorted({_wall_text(at) for at in rule.exdates})
    if rule.rdates:
        form["also"] = sorted({_wall_text(at) for at in rule.rdates})
    return form


def _wall_text(at: date | datetime) -> str:
    if not isinstance(at, datetime):
        return at.isoformat()
    return at.isoformat(timespec="minutes" if at == at.replace(second=0, microsecond=0) else "seconds")


def local_text(instant: datetime) -> str:
    """RFC 3339 by the clock of Vietnam."""
    local = instant.astimezone(LOCAL)
    return local.isoformat(timespec="seconds" if local.microsecond == 0 else "milliseconds")


def write_yaml(told: Mapping[str, Any]) -> str:
    """A normal form as a document a person can edit."""
    text: str = yaml.safe_dump(dict(told), allow_unicode=True, sort_keys=False, width=110)
    return text


def read_plain(told: Any, file: str) -> tuple[Document, Marks]:
    """A document given as plain values. Raises `Invalid`."""
    return _checked(told, Marks(file, {}))
