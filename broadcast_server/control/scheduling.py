"""Placing sound on the air: schedule, change, cancel. Playing at once and stopping stand in `control.playing`.

Every verb that adds sound writes its rows, resolves the affected clusters with and without them inside the same
transaction (`control.clashes`), and rolls back when the stations' policies forbid it or when it displaces something and
the person has not accepted that. Facts a maintainer must not break: nothing is saved that was not judged; the past is
not rewritten ("all" means from the next occurrence on); content must be approved, by hash, before it can be placed.

Source: Thông tư 39/2020 (classes; the commune orders ties of *ưu tiên*), Nghị định 49/2024 (station regulations).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, time, timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeVar

from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.approvals import policy_of
from broadcast_server.control.clashes import Neighbourhood, Preview
from broadcast_server.control.desk import Desk
from broadcast_server.control.judging import Judge
from broadcast_server.control.outlook import local_text
from broadcast_server.domain.clock import Window
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused
from broadcast_server.domain.placement import Placing
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.domain.recurrence import Once, Rule, occurrences, rule_from_dict, rule_to_dict, to_instant
from broadcast_server.store import approvals, audit, feed_rights, feeds, library, places, schedules
from broadcast_server.store.schedules import LONGEST_WINDOW, late_from_dict, late_to_dict, level_of
from broadcast_server.store.session import Session
from broadcast_server.store.tables import ScheduleExceptionRow, ScheduleRow
from broadcast_server.store.words import ContentKind, ExceptionKind, ScheduleKind, ScheduleState, Step, StepOf
from speaker_protocol.rules import BulletinClass, Late, Level

T = TypeVar("T")

NEXT_OCCURRENCE_WITHIN: Final = timedelta(days=800)
"""A yearly lunar feast has one in it; a rule without any is over."""

_LANGUAGE: Final = re.compile(r"[a-z]{3}")
_MS: Final = timedelta(milliseconds=1)
_DAY: Final = timedelta(days=1)


# -- requests and answers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """What should sound. No `targets`: the whole unit. `length`: a relay needs it; recorded sound has its own."""

    unit_id: str
    content_kind: ContentKind
    content_id: str
    rule: Rule
    targets: tuple[Target, ...] = ()
    name: str | None = None
    language: str = "vie"
    length: timedelta | None = None
    max_wait: timedelta = timedelta(0)
    late: Late = field(default_factory=Late)
    tie_order: int = 0
    gain_db: float = 0.0
    accept_conflicts: bool = False
    key: str | None = None


class Scope(StrEnum):
    """How much of a repeating schedule is meant."""

    THIS = "this"
    FROM_HERE = "from_here"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class ScheduleChange:
    """What should be different; None: as it is. Of THIS occurrence only `moved_to` and `length` can differ."""

    moved_to: datetime | None = None
    length: timedelta | None = None
    rule: Rule | None = None
    name: str | None = None
    content_kind: ContentKind | None = None
    content_id: str | None = None
    targets: tuple[Target, ...] | None = None
    language: str | None = None
    max_wait: timedelta | None = None
    late: Late | None = None
    tie_order: int | None = None
    gain_db: float | None = None


@dataclass(frozen=True, slots=True)
class ChangeSchedule:
    """Change a schedule. `occurrence`: the instant the rule gives, needed unless all is meant."""

    schedule_id: str
    scope: Scope
    change: ScheduleChange
    occurrence: datetime | None = None
    version: int | None = None
    accept_conflicts: bool = False


@dataclass(frozen=True, slots=True)
class CancelSchedule:
    """Take a schedule, or a part of it, off the air."""

    schedule_id: str
    scope: Scope
    occurrence: datetime | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class ScheduleView:
    """A schedule as it stands."""

    id: str
    series_id: str
    unit_id: str
    name: str
    kind: ScheduleKind
    klass: BulletinClass
    level: int
    content_kind: ContentKind
    content_id: str
    language: str
    rule: Mapping[str, Any]
    targets: tuple[Target, ...]
    length_ms: int | None
    max_wait_ms: int
    late: Mapping[str, Any]
    tie_order: int
    gain_db: float
    required: bool
    state: ScheduleState
    starts_at: datetime
    ends_at: datetime | None
    exceptions: tuple[ExceptionView, ...]
    needs_approval: bool
    placement_hash: str
    approved_by: str | None
    approved_at: datetime | None
    is_approved: bool
    """Its place needs no approval, or has one over exactly this; its content has one of its own."""
    created_by: str
    created_at: datetime
    version: int
    key: str | None


@dataclass(frozen=True, slots=True)
class ExceptionView:
    """One occurrence that differs."""

    occurs_at: datetime
    kind: ExceptionKind
    moved_to: datetime | None
    length_ms: int | None
    cut_at: datetime | None


@dataclass(frozen=True, slots=True)
class Placed:
    """A schedule that was saved, and what it does."""

    schedule: ScheduleView
    preview: Preview


class _DryRun(Exception):  # noqa: N818 - not an error: it carries the answer past a transaction that must not commit
    def __init__(self, preview: Preview) -> None:
        super().__init__()
        self.preview = preview


# -- verbs: placing ---------------------------------------------------------------------------------------------------


async def create_schedule(desk: Desk, actor: Actor, request: NewSchedule) -> Placed:
    """Put something on the air.

    Raises `Invalid` naming the field (naive or past time, unknown target), `Refused` by policy, permission or missing
    approval, `Conflict("schedule_conflict")` with every conflict and its ways out unless they are accepted.
    """
    now = desk.clock.now()
    schedule_id = desk.chance.new_id()
    return await desk.store.begin(lambda session: enter_schedule(session, actor, request, schedule_id, now))


async def preview_schedule(desk: Desk, actor: Actor, request: NewSchedule) -> Preview:
    """What `create_schedule` would do, conflicts included; nothing is saved. Raises as it does, but for conflicts."""
    now = desk.clock.now()
    schedule_id = desk.chance.new_id()

    def work(session: Session) -> None:
        placed = enter_schedule(session, actor, replace(request, accept_conflicts=True), schedule_id, now)
        raise _DryRun(placed.preview)

    return await _dry_run(desk, work)


_ACTIONS: Final[Mapping[ScheduleKind | None, Action]] = {
    ScheduleKind.PLAY_NOW: Action.PLAY_NOW,
    ScheduleKind.LIVE: Action.LIVE,
}
"""What whoever places it must be allowed; everything else is a schedule."""


def enter_schedule(
    session: Session,
    actor: Actor,
    request: NewSchedule,
    schedule_id: str,
    now: datetime,
    *,
    kind: ScheduleKind | None = None,
    level: Level | None = None,
    verb: str = "schedule.create",
    around: Neighbourhood | None = None,
) -> Placed:
    """`create_schedule` inside a transaction of the caller's. `level`: None, as its class and content have it.

    `around`: as it stands in this transaction, for a caller that has read it already.
    """
    around = around or Neighbourhood.read(session, places.local_date(now))
    if (kind is ScheduleKind.LIVE) is not (request.content_kind is ContentKind.LIVE):
        raise Invalid("live_is_opened", field="content_kind", fix="open_live")
    action = _ACTIONS.get(kind, Action.SCHEDULE)
    access.authorize(session, actor, action, request.unit_id, at=now)
    draft = _draft(session, actor, around, request, now, begins=now, is_required=False)
    row = ScheduleRow(
        id=schedule_id,
        series_id=schedule_id,
        unit_id=request.unit_id,
        required=False,
        state=ScheduleState.ACTIVE,
        key=request.key,
        created_by=actor.login,
        created_at=now,
        version=1,
        **draft.columns | ({} if kind is None else {"kind": kind}) | ({} if level is None else {"level": int(level)}),
    )
    judge = Judge(session, around, now, draft.reached, draft.first)
    before = judge.entries()
    schedules.add_schedule(session, row, draft.targets)
    stamp(session, actor, row, draft.targets, now)
    _waits_in_vain(row)
    preview = judge.judge(before, (row.id,), accept_conflicts=request.accept_conflicts)
    audit_schedule(
        session,
        actor,
        row,
        now,
        verb,
        content=f"{row.content_kind.value}/{row.content_id}",
        rule=row.rule,
        targets=[f"{target.kind.value}/{target.ref}" for target in draft.targets],
        clusters=len(draft.reached),
        conflicts_accepted=len(preview.clashes),
    )
    return Placed(shown(session, row), preview)


# -- verbs: changing --------------------------------------------------------------------------------------------------


async def change_schedule(desk: Desk, actor: Actor, request: ChangeSchedule) -> Placed:
    """Change one occurrence, everything from one on, or all that is still to come. Raises as `create_schedule` does."""
    now = desk.clock.now()
    return await desk.store.begin(lambda session: enter_change(session, desk.chance.new_id, actor, request, now))


async def preview_change(desk: Desk, actor: Actor, request: ChangeSchedule) -> Preview:
    """What `change_schedule` would do; nothing is saved."""
    now = desk.clock.now()

    def work(session: Session) -> None:
        accepting = replace(request, accept_conflicts=True)
        raise _DryRun(enter_change(session, desk.chance.new_id, actor, accepting, now).preview)

    return await _dry_run(desk, work)


def enter_change(
    session: Session, new_id: Callable[[], str], actor: Actor, request: ChangeSchedule, now: datetime
) -> Placed:
    """`change_schedule` inside a transaction of the caller's."""
    row, targets = _open_row(session, actor, request.schedule_id, request.version, now)
    around = Neighbourhood.read(session, places.local_date(now))
    if request.scope is Scope.THIS:
        return _change_this(session, actor, around, row, targets, request, now)
    if request.change.moved_to is not None:
        raise Invalid("moves_one_occurrence_only", field="change.moved_to", fix="change_the_rule")
    split = now if request.scope is Scope.ALL else _coming_occurrence(row, request.occurrence, now)
    return _change_onwards(session, new_id, actor, around, row, targets, split, request, now)


def _change_this(
    session: Session,
    actor: Actor,
    around: Neighbourhood,
    row: ScheduleRow,
    targets: tuple[Target, ...],
    request: ChangeSchedule,
    now: datetime,
) -> Placed:
    change = request.change
    occurs_at = _coming_occurrence(row, request.occurrence, now)
    for name in _CHANGES - {"moved_to", "length"}:
        if getattr(change, name) is not None:
            raise Invalid("not_for_one_occurrence", field=f"change.{name}", fix="change_from_here")
    moved_to = _future(occurs_at if change.moved_to is None else change.moved_to, now, "change.moved_to")
    length_ms = None
    if change.length is not None:
        length_ms = _length_ms(row.content_kind, change.length, row.max_wait_ms * _MS, "change.length")
    judge = Judge(session, around, now, around.reach(targets), min(moved_to, occurs_at))
    before = judge.entries()
    except_occurrence(
        session,
        actor,
        row,
        now,
        occurs_at,
        ExceptionKind.MOVED,
        moved_to=moved_to,
        length_ms=length_ms,
        waits=needs_approval(session, row, now) and not may_approve_place(session, actor, row, now),
    )
    preview = judge.judge(before, (row.id,), accept_conflicts=request.accept_conflicts, start_field="change.moved_to")
    audit_schedule(session, actor, row, now, "schedule.move", occurrence=occurs_at.isoformat(), to=moved_to.isoformat())
    return Placed(shown(session, row), preview)


def _change_onwards(
    session: Session,
    new_id: Callable[[], str],
    actor: Actor,
    around: Neighbourhood,
    row: ScheduleRow,
    targets: tuple[Target, ...],
    split: datetime,
    request: ChangeSchedule,
    now: datetime,
) -> Placed:
    """From `split` on: in place if nothing of it has happened by then, else this row ends and another begins."""
    change = request.change
    has_begun = any(True for _ in _row_occurrences(row, row.starts_at, split))
    is_all = request.scope is Scope.ALL
    wanted = _merged(row, targets, change, accept_conflicts=request.accept_conflicts)
    draft = _draft(session, actor, around, wanted, now, begins=split - _MS, is_required=row.required)
    if not is_all and row.ends_at is not None:
        ends = draft.columns["ends_at"]
        draft.columns["ends_at"] = row.ends_at if ends is None else min(ends, row.ends_at)
    others = schedules.others_of_series(session, row, split) if is_all else []
    reached = around.reach(targets) | draft.reached
    for other_targets in schedules.targets_of(session, [other.id for other in others]).values():
        reached |= around.reach(other_targets)
    judge = Judge(session, around, now, reached, min(split, draft.first))
    before = judge.entries()
    for other in others:
        end_schedule(other, split)
    keeps_rule = change.rule is None
    if has_begun:
        fresh = ScheduleRow(
            id=new_id(),
            series_id=row.series_id,
            unit_id=row.unit_id,
            required=row.required,
            state=ScheduleState.ACTIVE,
            key=row.key,
            created_by=actor.login,
            created_at=now,
            version=1,
            **draft.columns,
        )
        row.ends_at, row.key, row.version = split, None, row.version + 1
        schedules.add_schedule(session, fresh, draft.targets)
        if keeps_rule:
            schedules.carry_exceptions(session, row.id, fresh.id, split)
    else:
        fresh = row
        for name, value in draft.columns.items():
            setattr(row, name, value)
        row.version += 1
        schedules.replace_targets(session, row.id, draft.targets)
        if not keeps_rule:
            schedules.forget_exceptions(session, row.id)
    stamp(session, actor, fresh, draft.targets, now)
    preview = judge.judge(before, (fresh.id,), accept_conflicts=request.accept_conflicts, start_field="change.rule")
    audit_schedule(
        session, actor, fresh, now, "schedule.change", scope=request.scope.value, since=split.isoformat(), was=row.id
    )
    return Placed(shown(session, fresh), preview)


# -- verbs: taking off ------------------------------------------------------------------------------------------------


async def cancel_schedule(desk: Desk, actor: Actor, request: CancelSchedule) -> ScheduleView:
    """Take one occurrence, everything from one on, or all that is still to come off the air.

    What sounds at this moment goes on to its end; `stop` ends it.
    """
    now = desk.clock.now()

    def work(session: Session) -> ScheduleView:
        row, _ = _open_row(session, actor, request.schedule_id, request.version, now)
        if request.scope is Scope.THIS:
            occurs_at = _coming_occurrence(row, request.occurrence, now)
            except_occurrence(session, actor, row, now, occurs_at, ExceptionKind.CANCELLED)
            told = {"occurrence": occurs_at.isoformat()}
        else:
            split = now if request.scope is Scope.ALL else _coming_occurrence(row, request.occurrence, now)
            others = schedules.others_of_series(session, row, split) if request.scope is Scope.ALL else []
            for each in (row, *others):
                end_schedule(each, split)
            session.flush()
            told = {"since": split.isoformat()}
        audit_schedule(session, actor, row, now, "schedule.cancel", scope=request.scope.value, **told)
        return shown(session, row)

    return await desk.store.begin(work)


# -- lists ------------------------------------------------------------------------------------------------------------


async def get_schedule(desk: Desk, actor: Actor, schedule_id: str) -> ScheduleView:
    """One schedule. Raises `NotFound`."""
    now = desk.clock.now()

    def work(session: Session) -> ScheduleView:
        row = schedules.schedule(session, schedule_id)
        access.authorize(session, actor, Action.READ, row, at=now)
        return shown(session, row)

    return await desk.store.read(work)


@dataclass(frozen=True, slots=True)
class ScheduleQuery:
    """Which schedules: under `unit_id`, of a state, a content, a series; `after`: id of the last one seen."""

    unit_id: str | None = None
    state: ScheduleState | None = None
    content: tuple[ContentKind, str] | None = None
    series_id: str | None = None
    is_coming: bool = False
    after: str | None = None
    limit: int = 100


async def list_schedules(desk: Desk, actor: Actor, query: ScheduleQuery) -> list[ScheduleView]:
    """Schedules the actor may see, newest first."""
    now = desk.clock.now()

    def work(session: Session) -> list[ScheduleView]:
        roots = access.roots(session, actor, Action.READ, query.unit_id, at=now)
        rows = schedules.list_schedules(
            session,
            roots,
            places.local_date(now),
            state=query.state,
            content=query.content,
            series_id=query.series_id,
            in_force_after=now if query.is_coming else None,
            after=query.after,
            limit=query.limit,
        )
        ids = [row.id for row in rows]
        targets, exceptions = schedules.targets_of(session, ids), schedules.exceptions_of(session, ids)
        return [_view(row, targets.get(row.id, ()), exceptions[row.id]) for row in rows]

    return await desk.store.read(work)


# -- guards -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Draft:
    """A request that passed the guards, as columns."""

    columns: dict[str, Any]
    targets: tuple[Target, ...]
    reached: frozenset[str]
    first: datetime


class _Content(NamedTuple):
    title: str
    klass: BulletinClass
    kind: ScheduleKind


def _draft(
    session: Session,
    actor: Actor,
    around: Neighbourhood,
    request: NewSchedule,
    now: datetime,
    *,
    begins: datetime,
    is_required: bool,
) -> _Draft:
    """Everything that can be said about a request without looking at the air. `begins`: nothing of it is before."""
    targets = _targets(around, request.unit_id, request.targets)
    content = _content(session, around, request, now)
    _authorize_class(session, actor, content.klass, request.unit_id, now)
    first = _first_occurrence(request.rule, max(begins, now))
    if request.max_wait < timedelta(0):
        raise Invalid("out_of_range", field="max_wait", ge="0")
    length_ms = None
    if request.length is not None or request.content_kind in schedules.STREAMED:
        length_ms = _length_ms(request.content_kind, request.length, request.max_wait, "length")
    elif request.max_wait > LONGEST_WINDOW / 2:
        raise Invalid("window_too_long", field="max_wait", fix="shorten_window", hours=12)
    if not -60 <= request.gain_db <= 12:
        raise Invalid("out_of_range", field="gain_db", ge="-60", le="12")
    if not _LANGUAGE.fullmatch(request.language):
        raise Invalid("language_invalid", field="language", fix="use_iso_639_3")
    reached = around.reach(targets)
    is_upper = bool(reached) and request.unit_id not in {around.clusters[cluster] for cluster in reached}
    level = level_of(content.klass, request.content_kind, required=is_required, is_upper=is_upper)
    return _Draft(
        columns={
            "name": (request.name or content.title)[:200],
            "kind": content.kind,
            "klass": content.klass,
            "level": int(level),
            "content_kind": request.content_kind,
            "content_id": request.content_id,
            "language": request.language,
            "rule": rule_to_dict(request.rule),
            "length_ms": length_ms,
            "max_wait_ms": request.max_wait // _MS,
            "late": late_to_dict(request.late),
            "tie_order": request.tie_order,
            "gain_db": request.gain_db,
            "starts_at": first,
            "ends_at": _end_of(request.rule),
        },
        targets=targets,
        reached=reached,
        first=first,
    )


def _targets(around: Neighbourhood, unit_id: str, asked: tuple[Target, ...]) -> tuple[Target, ...]:
    """In order, each once; the whole unit where none is named. A unit puts sound on what lies under it only."""
    inside = around.tree.subtree(unit_id, around.on)
    for number, target in enumerate(asked):
        if not around.knows(target):
            raise Invalid(
                "unknown_target",
                field=f"targets[{number}].ref",
                kind=target.kind.value,
                ref=target.ref,
                fix="pick_target",
            )
        is_inside = (
            target.ref in inside
            if target.kind is TargetKind.UNIT
            else all(around.clusters[cluster] in inside for cluster in around.reach((target,)))
        )
        if not is_inside and target.kind is not TargetKind.UNIT:
            raise Invalid(
                "unknown_target",
                field=f"targets[{number}].ref",
                kind=target.kind.value,
                ref=target.ref,
                fix="pick_target",
            )
        if not is_inside:
            raise Invalid(
                "target_outside_unit",
                field=f"targets[{number}].ref",
                ref=target.ref,
                unit_id=unit_id,
                fix="pick_target",
            )
    return tuple(sorted(set(asked))) or (Target(TargetKind.UNIT, unit_id),)


def _content(session: Session, around: Neighbourhood, request: NewSchedule, now: datetime) -> _Content:
    """What is to sound: the unit's own, or handed down from above or up from below. Raises `NotFound`."""
    if request.content_kind is ContentKind.LIVE:
        return _Content(request.name or "", BulletinClass.NORMAL, ScheduleKind.LIVE)
    if request.content_kind is ContentKind.FEED:
        feed = _found(feeds.feed, session, request.content_id)
        if not feeds.is_known_to(session, feed, request.unit_id, around.on):
            raise NotFound("unknown_feed", field="content_id", fix="pick_content", feed_id=request.content_id)
        if feed.unit_id != request.unit_id and feed_rights.is_dropped(session, feed.id, request.unit_id, now):
            raise Refused("feed_dropped", field="content_id", fix="subscribe_again", feed_id=feed.id)
        return _Content(feed.name, BulletinClass.NORMAL, ScheduleKind.RELAY)
    if request.content_kind is ContentKind.PROGRAMME:
        programme = _found(library.programme, session, request.content_id)
        owner = programme.unit_id
        content = _Content(programme.title, BulletinClass.NORMAL, ScheduleKind.ANNOUNCEMENT)
    else:
        bulletin = _found(library.bulletin, session, request.content_id)
        owner = bulletin.unit_id
        is_emergency = bulletin.klass is BulletinClass.EMERGENCY
        kind = ScheduleKind.EMERGENCY if is_emergency else ScheduleKind.ANNOUNCEMENT
        content = _Content(bulletin.title, bulletin.klass, kind)
    tree, on = around.tree, around.on
    if not (tree.is_under(request.unit_id, owner, on) or tree.is_under(owner, request.unit_id, on)):
        word = request.content_kind.value
        raise NotFound(f"unknown_{word}", field="content_id", fix="pick_content", **{word: request.content_id})
    return content


def _found(find: Callable[[Session, str], T], session: Session, content_id: str) -> T:
    try:
        return find(session, content_id)
    except NotFound as error:
        raise NotFound(error.code, **error.facts | {"field": "content_id", "fix": "pick_content"}) from None


def _authorize_class(session: Session, actor: Actor, klass: BulletinClass, unit_id: str, now: datetime) -> None:
    if klass is BulletinClass.PRIORITY:
        access.authorize(session, actor, Action.SCHEDULE_PRIORITY, unit_id, at=now)
    elif klass is BulletinClass.EMERGENCY:
        access.authorize(session, actor, Action.EMERGENCY_LAUNCH, unit_id, at=now)


def _length_ms(kind: ContentKind, length: timedelta | None, max_wait: timedelta, field_name: str) -> int:
    if length is None:
        raise Invalid("length_missing", field=field_name, fix="give_length", content=kind.value)
    if length <= timedelta(0):
        raise Invalid("length_not_positive", field=field_name, fix="give_length")
    if length + max_wait > LONGEST_WINDOW:
        raise Invalid("window_too_long", field=field_name, fix="shorten_window", hours=24)
    return length // _MS


def _future(at: datetime, now: datetime, field_name: str) -> datetime:
    if at.tzinfo is None:
        raise Invalid("naive_time", field=field_name, fix="add_offset")
    if at <= now:
        raise Invalid("past_time", field=field_name, fix="give_future_time", at=local_text(at), now=local_text(now))
    return at


def _first_occurrence(rule: Rule, after: datetime) -> datetime:
    """The first start later than `after`. Raises `Invalid("past_time")` when there is none."""
    for span in (timedelta(days=8), NEXT_OCCURRENCE_WITHIN):
        first = next(occurrences(rule, Window(after + _MS, after + span)), None)
        if first is not None:
            return first
    field_name = "rule.at" if isinstance(rule.pattern, Once) else "rule"
    told = {"at": local_text(to_instant(rule.pattern.at))} if isinstance(rule.pattern, Once) else {}
    raise Invalid("past_time", field=field_name, fix="give_future_time", now=local_text(after), **told)


def _end_of(rule: Rule) -> datetime | None:
    """No occurrence begins at or after; None: open."""
    last = rule.until_date
    if isinstance(rule.pattern, Once):
        last = rule.pattern.at.date()
    if last is None:
        return None
    last = max((last, *(at.date() for at in rule.rdates)))
    return to_instant(datetime.combine(last + _DAY, time(0)))


def _row_occurrences(row: ScheduleRow, start: datetime, end: datetime) -> Iterator[datetime]:
    start = max(start, row.starts_at)
    end = end if row.ends_at is None else min(end, row.ends_at)
    if start < end:
        yield from occurrences(rule_from_dict(row.rule), Window(start, end))


def _coming_occurrence(row: ScheduleRow, occurrence: datetime | None, now: datetime) -> datetime:
    """The named occurrence, which must be the rule's and still to come."""
    if occurrence is None:
        raise Invalid("missing_field", field="occurrence", fix="name_occurrence")
    if occurrence.tzinfo is None:
        raise Invalid("naive_time", field="occurrence", fix="add_offset")
    if occurrence not in set(_row_occurrences(row, occurrence, occurrence + _MS)):
        raise Invalid("unknown_occurrence", field="occurrence", fix="see_preview", at=local_text(occurrence))
    return _future(occurrence, now, "occurrence")


def _open_row(
    session: Session, actor: Actor, schedule_id: str, version: int | None, now: datetime
) -> tuple[ScheduleRow, tuple[Target, ...]]:
    """A schedule that still has something to come, for whoever may change it."""
    row = schedules.schedule(session, schedule_id)
    access.authorize(session, actor, Action.SCHEDULE, row, at=now)
    if row.kind is ScheduleKind.LIVE:
        raise Conflict("live_is_closed_not_changed", field="schedule_id", fix="close_live", live=row.content_id)
    schedules.expect_version(row, version)
    if row.state is ScheduleState.CANCELLED or (row.ends_at is not None and row.ends_at <= now):
        raise Conflict("schedule_over", field="schedule_id", fix="make_a_new_one", schedule=schedule_id)
    return row, schedules.targets_of(session, (row.id,)).get(row.id, ())


_CHANGES: Final = frozenset(each.name for each in fields(ScheduleChange))


def _merged(
    row: ScheduleRow, targets: tuple[Target, ...], change: ScheduleChange, *, accept_conflicts: bool
) -> NewSchedule:
    """The schedule as it should be from now on, as a request."""
    as_is = NewSchedule(
        unit_id=row.unit_id,
        content_kind=row.content_kind,
        content_id=row.content_id,
        rule=rule_from_dict(row.rule),
        targets=targets,
        name=row.name,
        language=row.language,
        length=None if row.length_ms is None else row.length_ms * _MS,
        max_wait=row.max_wait_ms * _MS,
        late=late_from_dict(row.late),
        tie_order=row.tie_order,
        gain_db=row.gain_db,
        accept_conflicts=accept_conflicts,
        key=row.key,
    )
    wanted = {name: getattr(change, name) for name in _CHANGES - {"moved_to"} if getattr(change, name) is not None}
    return replace(as_is, **wanted)


def end_schedule(row: ScheduleRow, at: datetime) -> None:
    """No occurrence at or after `at`; one that has none before is cancelled as a whole."""
    row.version += 1
    if next(_row_occurrences(row, row.starts_at, at), None) is None:
        row.state = ScheduleState.CANCELLED
    else:
        row.ends_at = at if row.ends_at is None else min(row.ends_at, at)


def except_occurrence(
    session: Session,
    actor: Actor,
    row: ScheduleRow,
    now: datetime,
    occurs_at: datetime,
    kind: ExceptionKind,
    *,
    moved_to: datetime | None = None,
    length_ms: int | None = None,
    cut_at: datetime | None = None,
    waits: bool = False,
) -> None:
    """Say how one occurrence differs; the schedule is another version then."""
    schedules.put_exception(
        session,
        ScheduleExceptionRow(
            schedule_id=row.id,
            occurs_at=occurs_at,
            kind=kind,
            moved_to=moved_to,
            length_ms=length_ms,
            cut_at=cut_at,
            waits=waits,
            created_by=actor.login,
            created_at=now,
        ),
    )
    row.version += 1
    session.flush()


# -- approval of the place --------------------------------------------------------------------------------------------


def placing_of(row: ScheduleRow) -> Placing | None:
    """By which way it comes onto the air; None for a live voice, which needs a permit and no approval."""
    if row.kind is ScheduleKind.LIVE:
        return None
    if row.kind is ScheduleKind.PLAY_NOW:
        return Placing.PLAY_NOW
    return Placing.RELAY if row.content_kind is ContentKind.FEED else Placing.SCHEDULE


def needs_approval(session: Session, row: ScheduleRow, now: datetime) -> bool:
    """Whether somebody must approve where and when it sounds: of *khẩn cấp* always, else as the station decided."""
    if row.klass is BulletinClass.EMERGENCY:
        return True
    return placing_of(row) in policy_of(session, row.unit_id, now).approve_placement


def place_action(row: ScheduleRow) -> Action:
    """What whoever approves the place must be allowed."""
    if row.klass is BulletinClass.EMERGENCY:
        return Action.EMERGENCY_LAUNCH
    return Action.PROGRAMME_APPROVE if row.content_kind is ContentKind.PROGRAMME else Action.BULLETIN_APPROVE


def may_approve_place(session: Session, actor: Actor, row: ScheduleRow, now: datetime) -> bool:
    """Whether placing it is approving the place; *khẩn cấp* always needs another person."""
    if row.klass is BulletinClass.EMERGENCY:
        return False
    return access.may(session, actor, place_action(row), row.unit_id, at=now)


def stamp(session: Session, actor: Actor, row: ScheduleRow, targets: Collection[Target], now: datetime) -> None:
    """What was approved of the place before is void; who places it and may approve it has approved it."""
    row.needs_approval = needs_approval(session, row, now)
    row.approved_hash = row.approved_by = row.approved_at = None
    told = approvals.hash_of_placement(row, targets)
    _stepped(session, actor, row, Step.WRITE, told, now)
    if row.needs_approval and may_approve_place(session, actor, row, now):
        row.approved_hash, row.approved_by, row.approved_at = told, actor.login, now
        _stepped(session, actor, row, Step.APPROVE, told, now)
    session.flush()


def _waits_in_vain(row: ScheduleRow) -> None:
    """What is meant for this very moment cannot wait for somebody to approve it."""
    if not row.needs_approval or row.approved_hash is not None:
        return
    if row.kind is ScheduleKind.PLAY_NOW:
        is_emergency = row.klass is BulletinClass.EMERGENCY
        code, fix = ("emergency_is_raised", "find_second_person") if is_emergency else _NOT_NOW
        raise Refused(code, field="content_id", fix=fix)


_NOT_NOW: Final = ("play_now_needs_approver", "ask_another_approver")


def _stepped(session: Session, actor: Actor, row: ScheduleRow, step: Step, told: str, now: datetime) -> None:
    if row.needs_approval:
        approvals.add_step(
            session,
            StepOf.SCHEDULE,
            row.id,
            step,
            user_id=actor.user_id,
            login=actor.login,
            at=now,
            content_hash=told,
        )


# -- small things -----------------------------------------------------------------------------------------------------


async def _dry_run(desk: Desk, work: Callable[[Session], None]) -> Preview:
    try:
        await desk.store.begin(work, ring=False)
    except _DryRun as dry:
        return dry.preview
    raise AssertionError("a dry run ends with its preview")


def audit_schedule(session: Session, actor: Actor, row: ScheduleRow, now: datetime, verb: str, **detail: Any) -> None:
    """The audit row of a verb on a schedule."""
    audit.append(
        session,
        now=now,
        actor=actor.login,
        verb=verb,
        unit_id=row.unit_id,
        subject=f"schedule/{row.id}",
        detail={"name": row.name, "class": row.klass.value, **detail},
    )


def shown(session: Session, row: ScheduleRow) -> ScheduleView:
    """A schedule as it stands in this transaction."""
    ids = (row.id,)
    return _view(row, schedules.targets_of(session, ids).get(row.id, ()), schedules.exceptions_of(session, ids)[row.id])


def _view(row: ScheduleRow, targets: tuple[Target, ...], exceptions: Iterable[ScheduleExceptionRow]) -> ScheduleView:
    exceptions = tuple(exceptions)
    told = approvals.hash_of_placement(row, targets)
    waits = any(one.waits for one in exceptions) or (row.needs_approval and row.approved_hash != told)
    return ScheduleView(
        id=row.id,
        series_id=row.series_id,
        unit_id=row.unit_id,
        name=row.name,
        kind=row.kind,
        klass=row.klass,
        level=row.level,
        content_kind=row.content_kind,
        content_id=row.content_id,
        language=row.language,
        rule=row.rule,
        targets=targets,
        length_ms=row.length_ms,
        max_wait_ms=row.max_wait_ms,
        late=row.late,
        tie_order=row.tie_order,
        gain_db=row.gain_db,
        required=row.required,
        state=row.state,
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        exceptions=tuple(
            ExceptionView(one.occurs_at, one.kind, one.moved_to, one.length_ms, one.cut_at) for one in exceptions
        ),
        needs_approval=row.needs_approval,
        placement_hash=told,
        approved_by=row.approved_by,
        approved_at=row.approved_at,
        is_approved=not waits,
        created_by=row.created_by,
        created_at=row.created_at,
        version=row.version,
        key=row.key,
    )
