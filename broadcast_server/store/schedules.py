"""Schedules as rows, and `load_entries`: what they ask to sound in a window, ready for the timeline.

`load_entries` is the one conversion that a person's preview (`control.scheduling`) and the machine's plan
(`playout.planner`) share, so what was shown is what is sent. Facts a maintainer must not break: it makes a fixed number
of queries however many schedules there are (columns, no objects); an entry that cannot sound is returned with `blocked`
and never left out, because the planner turns it into a conflict that somebody is told of; entry ids are
`{schedule_id}@{rule instant in UTC ms}`, also for a moved occurrence; what may sound is what was approved, by hash.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, false, or_, select
from sqlalchemy.orm import Session

from broadcast_server.domain.clock import Window, from_ms, to_ms
from broadcast_server.domain.errors import BroadcastError, Conflict, Corrupt, NotFound
from broadcast_server.domain.placement import placement_hash
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.domain.recurrence import Rule, occurrences, rule_from_dict
from broadcast_server.domain.timeline import Entry
from broadcast_server.store import beginnings, places
from broadcast_server.store.shelf import Blocked, Content, EntryAsset, Feed, Shelf
from broadcast_server.store.tables import (
    ClusterRow,
    FeedStatusRow,
    NodeRow,
    NodeStatusRow,
    PlayRow,
    ScheduleExceptionRow,
    ScheduleRow,
    ScheduleTargetRow,
    StopAllRow,
)
from broadcast_server.store.words import (
    ConflictKind,
    ContentKind,
    ExceptionKind,
    FeedState,
    NodeState,
    ScheduleKind,
    ScheduleState,
    Unapproved,
)
from speaker_protocol.rules import BulletinClass, Late, LatePolicy, Level, SourceKind

LONGEST_WINDOW: Final = timedelta(hours=24)
"""Longest window of one occurrence, its wait included; `control.scheduling` refuses more."""

STREAMED: Final = frozenset({ContentKind.FEED, ContentKind.LIVE})
"""Content that comes as a stream and has no length of its own."""

_MS: Final = timedelta(milliseconds=1)
_UNKNOWN_LENGTH: Final = timedelta(minutes=1)
"""Window of an entry that has no audio yet: it is blocked, but the person is shown when it was meant to sound."""


# -- what the planner and the preview work with -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScheduledEntry:
    """One occurrence of a schedule. Exactly one of `asset` and `stream_id`, unless it is `blocked`.

    `approval`: the content hash that was approved, None for a feed. Whoever resolves a timeline leaves out the blocked.
    """

    entry: Entry
    schedule_id: str
    unit_id: str
    kind: ScheduleKind
    klass: BulletinClass
    title: str
    targets: tuple[Target, ...]
    content_kind: ContentKind
    content_id: str
    asset: EntryAsset | None
    feed_id: str | None
    approval: str | None
    gain_db: float
    language: str
    required: bool
    blocked: Blocked | None = None

    @property
    def id(self) -> str:
        """The entry's id."""
        return self.entry.id

    @property
    def stream_id(self) -> str | None:
        """The stream it sounds: a feed's, or the voice of a live session."""
        return self.content_id if self.content_kind in STREAMED else None


_MOST_DIGITS: Final = 13
"""Of an instant in UTC ms: until the year 2286. What is further cannot be calculated with."""


def entry_id(schedule_id: str, rule_instant: datetime) -> str:
    """`{schedule_id}@{rule instant in UTC ms}`."""
    return f"{schedule_id}@{to_ms(rule_instant)}"


def parse_entry_id(text: str) -> tuple[str, datetime]:
    """Schedule and rule instant. Raises `NotFound` on text that is no entry id."""
    schedule_id, _, instant = text.rpartition("@")
    if not schedule_id or not instant.isdecimal() or len(instant) > _MOST_DIGITS:
        raise NotFound("unknown_entry", entry=text)
    return schedule_id, from_ms(int(instant))


def level_of(klass: BulletinClass, content_kind: ContentKind, *, required: bool, is_upper: bool) -> Level:
    """The rung of the ladder. `is_upper`: the schedule's unit lies above the clusters it is for."""
    if klass is BulletinClass.EMERGENCY:
        return Level.EMERGENCY_UPPER if is_upper else Level.EMERGENCY_COMMUNE
    if klass is BulletinClass.PRIORITY:
        return Level.PRIORITY_UPPER if is_upper else Level.PRIORITY_COMMUNE
    if required:
        return Level.RELAY_REQUIRED
    return Level.NORMAL if content_kind is ContentKind.BULLETIN else Level.PROGRAMME


def late_to_dict(late: Late) -> dict[str, Any]:
    """JSON-stable form; empty for the default."""
    if late == Late():
        return {}
    told: dict[str, Any] = {"policy": late.policy.value}
    return told if late.at_most_ms is None else told | {"at_most_ms": late.at_most_ms}


def late_from_dict(data: Mapping[str, Any]) -> Late:
    """The reverse of `late_to_dict`. Raises `ValueError` on an unknown policy or a wrong limit."""
    if not data:
        return Late()
    return Late(LatePolicy(data["policy"]), data.get("at_most_ms"))


# -- rows -------------------------------------------------------------------------------------------------------------


def add_schedule(session: Session, row: ScheduleRow, targets: Iterable[Target]) -> ScheduleRow:
    """Enter a schedule with where it sounds."""
    session.add(row)
    session.flush()
    session.add_all(
        ScheduleTargetRow(schedule_id=row.id, kind=target.kind.value, ref=target.ref) for target in sorted(set(targets))
    )
    session.flush()
    return row


def schedule(session: Session, schedule_id: str) -> ScheduleRow:
    """Raises `NotFound`."""
    row = session.get(ScheduleRow, schedule_id)
    if row is None:
        raise NotFound("unknown_schedule", schedule=schedule_id)
    return row


def expect_version(row: ScheduleRow, expected: int | None) -> None:
    """Refuse a change made from an older copy. Raises `Conflict`; None: the caller did not look."""
    if expected is not None and row.version != expected:
        raise Conflict("version_changed", field="version", expected=expected, actual=row.version)


def replace_targets(session: Session, schedule_id: str, targets: Iterable[Target]) -> None:
    """Where the schedule sounds from now on."""
    for row in session.scalars(select(ScheduleTargetRow).where(ScheduleTargetRow.schedule_id == schedule_id)):
        session.delete(row)
    session.flush()
    session.add_all(
        ScheduleTargetRow(schedule_id=schedule_id, kind=target.kind.value, ref=target.ref)
        for target in sorted(set(targets))
    )
    session.flush()


def targets_of(session: Session, schedule_ids: Collection[str]) -> dict[str, tuple[Target, ...]]:
    """Where each schedule sounds, in order."""
    rows = session.execute(
        select(ScheduleTargetRow.schedule_id, ScheduleTargetRow.kind, ScheduleTargetRow.ref)
        .where(ScheduleTargetRow.schedule_id.in_(schedule_ids))
        .order_by(ScheduleTargetRow.schedule_id, ScheduleTargetRow.kind, ScheduleTargetRow.ref)
    )
    return _grouped_targets(rows)


def exceptions_of(session: Session, schedule_ids: Collection[str]) -> dict[str, list[ScheduleExceptionRow]]:
    """The occurrences of each schedule that differ, in order."""
    found: dict[str, list[ScheduleExceptionRow]] = {schedule_id: [] for schedule_id in schedule_ids}
    for row in session.scalars(
        select(ScheduleExceptionRow)
        .where(ScheduleExceptionRow.schedule_id.in_(schedule_ids))
        .order_by(ScheduleExceptionRow.occurs_at)
    ):
        found[row.schedule_id].append(row)
    return found


def put_exception(session: Session, row: ScheduleExceptionRow) -> None:
    """Say how one occurrence differs; what was said of it before no longer holds."""
    earlier = session.get(ScheduleExceptionRow, (row.schedule_id, row.occurs_at))
    if earlier is not None:
        session.delete(earlier)
        session.flush()
    session.add(row)
    session.flush()


def list_schedules(
    session: Session,
    roots: Collection[str] | None,
    on: date,
    *,
    state: ScheduleState | None = None,
    content: tuple[ContentKind, str] | None = None,
    series_id: str | None = None,
    in_force_after: datetime | None = None,
    after: str | None,
    limit: int,
) -> list[ScheduleRow]:
    """Newest first; `after` is the id of the last one seen, `in_force_after` leaves out what ended before."""
    query = select(ScheduleRow).order_by(ScheduleRow.id.desc()).limit(limit)
    if roots is not None:
        query = query.where(ScheduleRow.unit_id.in_(places.subtree_query(roots, on)))
    if state is not None:
        query = query.where(ScheduleRow.state == state)
    if content is not None:
        query = query.where(ScheduleRow.content_kind == content[0], ScheduleRow.content_id == content[1])
    if series_id is not None:
        query = query.where(ScheduleRow.series_id == series_id)
    if in_force_after is not None:
        query = query.where(or_(ScheduleRow.ends_at.is_(None), ScheduleRow.ends_at > in_force_after))
    if after is not None:
        query = query.where(ScheduleRow.id < after)
    return list(session.scalars(query))


def schedules_of(session: Session, unit_id: str, *, in_force_after: datetime) -> list[ScheduleRow]:
    """The unit's own schedules that have something to come, oldest first."""
    return list(
        session.scalars(
            select(ScheduleRow)
            .where(
                ScheduleRow.unit_id == unit_id,
                ScheduleRow.state == ScheduleState.ACTIVE,
                or_(ScheduleRow.ends_at.is_(None), ScheduleRow.ends_at > in_force_after),
            )
            .order_by(ScheduleRow.id)
        )
    )


def others_of_series(session: Session, row: ScheduleRow, after: datetime) -> list[ScheduleRow]:
    """The other rows of its series that have something to come after an instant."""
    return list(
        session.scalars(
            select(ScheduleRow).where(
                ScheduleRow.series_id == row.series_id,
                ScheduleRow.id != row.id,
                ScheduleRow.state == ScheduleState.ACTIVE,
                or_(ScheduleRow.ends_at.is_(None), ScheduleRow.ends_at > after),
            )
        )
    )


def carry_exceptions(session: Session, from_id: str, to_id: str, since: datetime) -> None:
    """Give the differing occurrences at `since` and after to the row that goes on with the series."""
    for row in exceptions_of(session, (from_id,))[from_id]:
        if row.occurs_at >= since:
            session.add(
                ScheduleExceptionRow(
                    schedule_id=to_id,
                    occurs_at=row.occurs_at,
                    kind=row.kind,
                    moved_to=row.moved_to,
                    length_ms=row.length_ms,
                    cut_at=row.cut_at,
                    created_by=row.created_by,
                    created_at=row.created_at,
                )
            )
            session.delete(row)
    session.flush()


def forget_exceptions(session: Session, schedule_id: str) -> None:
    """No occurrence differs any more: the rule they belonged to is gone."""
    for row in exceptions_of(session, (schedule_id,))[schedule_id]:
        session.delete(row)
    session.flush()


def schedule_of_key(session: Session, unit_id: str, key: str) -> ScheduleRow | None:
    """The schedule in force that a document calls so."""
    return session.scalars(
        select(ScheduleRow)
        .where(ScheduleRow.unit_id == unit_id, ScheduleRow.key == key, ScheduleRow.state == ScheduleState.ACTIVE)
        .order_by(ScheduleRow.starts_at.desc())
        .limit(1)
    ).first()


# -- what stands around a schedule ------------------------------------------------------------------------------------


def any_online(session: Session, cluster_ids: Collection[str]) -> bool:
    """Whether at least one node of these clusters is reachable as far as we know."""
    online = session.scalars(
        select(NodeRow.cluster_id)
        .join(NodeStatusRow, NodeStatusRow.node_id == NodeRow.id)
        .where(NodeRow.state == NodeState.ACTIVE, NodeStatusRow.link == "online")
    )
    wanted = frozenset(cluster_ids)
    return any(cluster_id in wanted for cluster_id in online)


def ailing_feeds(session: Session, feed_ids: Collection[str]) -> dict[str, str]:
    """State of those feeds that were last seen stalled or dead."""
    rows = session.execute(
        select(FeedStatusRow.feed_id, FeedStatusRow.state).where(
            FeedStatusRow.feed_id.in_(feed_ids), FeedStatusRow.state.in_([FeedState.STALLED, FeedState.DEAD])
        )
    )
    return {feed_id: state.value for feed_id, state in rows}


def stop_all_at(session: Session, path: Collection[str], at: datetime) -> StopAllRow | None:
    """The stop-all latch of a place or of what lies above it that was in force at an instant."""
    return session.scalars(
        select(StopAllRow)
        .where(
            StopAllRow.unit_id.in_(path),
            StopAllRow.since <= at,
            or_(StopAllRow.released_at.is_(None), StopAllRow.released_at > at),
        )
        .order_by(StopAllRow.since)
        .limit(1)
    ).first()


@dataclass(frozen=True, slots=True)
class Removed:
    """An occurrence that a person took off the air, wholly or from an instant on."""

    kind: ExceptionKind
    schedule_id: str
    title: str
    occurs_at: datetime
    ends_at: datetime
    """When it was meant to end."""
    moved_to: datetime | None
    cut_at: datetime | None
    by: str

    def facts(self) -> dict[str, Any]:
        """For the sentence."""
        facts = {"title": self.title, "schedule_id": self.schedule_id, "occurs_at": self.occurs_at, "by": self.by}
        return facts | {"moved_to": self.moved_to, "cut_at": self.cut_at}


def removed_at(session: Session, naming: Collection[Target] | None, at: datetime) -> Removed | None:
    """The latest cancelled, moved or stopped occurrence of a schedule naming one of these targets that was meant for
    `at`.
    """
    query = (
        select(ScheduleExceptionRow, ScheduleRow)
        .join(ScheduleRow, ScheduleRow.id == ScheduleExceptionRow.schedule_id)
        .where(ScheduleExceptionRow.occurs_at <= at, ScheduleExceptionRow.occurs_at > at - LONGEST_WINDOW)
        .order_by(ScheduleExceptionRow.occurs_at.desc(), ScheduleRow.id)
    )
    if naming is not None:
        query = query.where(ScheduleRow.id.in_(_naming(naming)))
    for difference, row in session.execute(query):
        length = _length_of(session, row)
        if at < difference.occurs_at + length:
            return Removed(
                kind=difference.kind,
                schedule_id=row.id,
                title=row.name,
                occurs_at=difference.occurs_at,
                ends_at=difference.occurs_at + length,
                moved_to=difference.moved_to,
                cut_at=difference.cut_at,
                by=difference.created_by,
            )
    return None


def _length_of(session: Session, row: ScheduleRow) -> timedelta:
    """How long an occurrence is meant to last."""
    if row.length_ms is not None:
        return row.length_ms * _MS
    shelf = Shelf(session, ScheduleRow.id == row.id, {row.content_kind})
    content, _ = shelf.content(row)
    return _UNKNOWN_LENGTH if content.asset is None else content.asset.duration


def reported_at(session: Session, cluster_id: str, at: datetime) -> list[dict[str, Any]]:
    """What the play log has of a cluster at an instant."""
    rows = session.execute(
        select(
            PlayRow.broadcast_id,
            PlayRow.verdict,
            PlayRow.reason,
            PlayRow.heard_ms,
            PlayRow.node_id,
            PlayRow.starts_at,
            PlayRow.ends_at,
            PlayRow.judged_at,
        ).where(PlayRow.cluster_id == cluster_id, PlayRow.starts_at <= at, PlayRow.ends_at > at)
    ).all()
    began = beginnings.beginnings_of(session, [(one.broadcast_id, one.node_id, one.starts_at) for one in rows])
    return [
        {
            "broadcast_id": one.broadcast_id,
            "verdict": one.verdict.value,
            "reason": one.reason,
            "heard_ms": one.heard_ms,
            "node_id": one.node_id,
            "ends_at": one.ends_at,
            "is_judged": one.judged_at is not None,
            "late_ms": told.late_ms,
            "late_because": told.because,
        }
        for one in rows
        for told in (began.get((one.broadcast_id, one.node_id, one.starts_at), beginnings.UNTOLD),)
    ]


def cluster_configs(session: Session) -> dict[str, dict[str, Any]]:
    """Settings of every cluster in service."""
    rows = session.execute(select(ClusterRow.id, ClusterRow.config).where(ClusterRow.retired_at.is_(None)))
    return {cluster_id: config for cluster_id, config in rows}  # noqa: C416 - a Row is not a pair to mypy


# -- entries ----------------------------------------------------------------------------------------------------------


def load_entries(
    session: Session,
    window: Window,
    now: datetime,
    *,
    schedule_ids: Collection[str] | None = None,
    touching: Collection[Target] | None = None,
) -> tuple[ScheduledEntry, ...]:
    """Every occurrence whose own window shares an instant with `window`, by start and id.

    `schedule_ids`: of these schedules only; `touching`: of those that name one of these targets. For the timeline ask
    with a lead-in of a day. Nothing depends on `now` yet, which is why an `Expander` may keep what it made.
    """
    expander = Expander()
    entries = expander.load(session, window, now, schedule_ids=schedule_ids, touching=touching)
    for fault in expander.faults.values():
        raise fault.error
    return entries


@dataclass(frozen=True, slots=True)
class Fault:
    """A schedule whose rows make no sense; the others are not kept from sounding by it."""

    unit_id: str
    name: str
    error: BroadcastError


class Expander:
    """`load_entries` for who asks again and again: a schedule that did not change gives the very same entries.

    A schedule's own columns and targets are read again when its `version` rose (every change raises it); what it sounds
    and how single occurrences differ is read every time. Not for two threads at once.

    `most_kept`: for who asks for a few schedules at a time and believes no `version`: every row is read every time, and
    what was made of equal rows stays, about so many entries, also of schedules that a load did not ask for. Entries
    that sound a feed do not: they rest on the tree of places too.
    """

    def __init__(self, *, most_kept: int = 0) -> None:
        self._most_kept = most_kept
        self._known: dict[str, tuple[_Made, list[ScheduledEntry]]] = {}
        self._rows: dict[str, tuple[int, Any, tuple[Target, ...]]] = {}
        self._window: Window | None = None
        self.faults: dict[str, Fault] = {}
        """By schedule: what the last `load` had to leave out."""

    def load(
        self,
        session: Session,
        window: Window,
        now: datetime,  # noqa: ARG002 - see `load_entries`
        *,
        schedule_ids: Collection[str] | None = None,
        touching: Collection[Target] | None = None,
    ) -> tuple[ScheduledEntry, ...]:
        """As `load_entries`, but a schedule that cannot be expanded goes to `faults` instead of being raised."""
        known = self._known if window == self._window else {}
        if self._most_kept:
            self._rows = {}
        wanted = _wanted(window, schedule_ids, touching)
        rows = self._look(session, wanted)
        exceptions = _exceptions(session, wanted)
        shelf = Shelf(session, wanted, {row.content_kind for _, row, _ in rows.values()})
        found: list[ScheduledEntry] = []
        made_now: dict[str, tuple[_Made, list[ScheduledEntry]]] = {}
        self.faults = {}
        for _, row, targets in rows.values():
            try:
                made = _Made(row, targets, exceptions.get(row.id, _NO_DIFFERENCE), *shelf.content(row))
                before = known.get(row.id)
                if before is None or before[0] != made:
                    before = made, list(_entries_of(row, made, shelf, window))
            except BroadcastError as error:
                self.faults[row.id] = Fault(row.unit_id, row.name, error)
                continue
            made_now[row.id] = before
            found += before[1]
        self._known, self._window = self._kept(known, made_now) if self._most_kept else made_now, window
        found.sort(key=_by_start)
        return tuple(found)

    def _kept(
        self,
        known: Mapping[str, tuple[_Made, list[ScheduledEntry]]],
        now: Mapping[str, tuple[_Made, list[ScheduledEntry]]],
    ) -> dict[str, tuple[_Made, list[ScheduledEntry]]]:
        """What was made before and what was made now, the oldest left out."""
        kept = {one: made for one, made in known.items() if one not in now}
        kept.update((one, made) for one, made in now.items() if made[0].feed is None)
        over = sum(len(entries) for _, entries in kept.values()) - self._most_kept
        for one in list(kept):
            if over <= 0:
                break
            over -= len(kept.pop(one)[1])
        return kept

    def _look(self, session: Session, wanted: ColumnElement[bool]) -> dict[str, tuple[int, Any, tuple[Target, ...]]]:
        """Version, columns and targets of the wanted schedules, in order of id; read only where the version is new."""
        heads = session.execute(select(ScheduleRow.id, ScheduleRow.version).where(wanted).order_by(ScheduleRow.id))
        versions = dict(heads.tuples().all())
        new = [one for one, version in versions.items() if one not in self._rows or self._rows[one][0] != version]
        if new:
            asked = wanted if len(new) > _FEW else and_(wanted, ScheduleRow.id.in_(new))
            targets = _grouped_targets(session.execute(_of_schedules(_TARGETS, asked).order_by(*_TARGETS)))
            for row in session.execute(select(*_COLUMNS).where(asked)):
                self._rows[row.id] = (versions[row.id], row, targets.get(row.id, ()))
        self._rows = {one: self._rows[one] for one in versions}
        return self._rows


def _by_start(one: ScheduledEntry) -> tuple[datetime, str]:
    return one.entry.start, one.entry.id


_COLUMNS: Final = (
    ScheduleRow.id,
    ScheduleRow.unit_id,
    ScheduleRow.name,
    ScheduleRow.kind,
    ScheduleRow.klass,
    ScheduleRow.level,
    ScheduleRow.content_kind,
    ScheduleRow.content_id,
    ScheduleRow.language,
    ScheduleRow.rule,
    ScheduleRow.length_ms,
    ScheduleRow.max_wait_ms,
    ScheduleRow.late,
    ScheduleRow.tie_order,
    ScheduleRow.gain_db,
    ScheduleRow.required,
    ScheduleRow.starts_at,
    ScheduleRow.ends_at,
    ScheduleRow.needs_approval,
    ScheduleRow.approved_hash,
)


_TARGETS: Final = (ScheduleTargetRow.schedule_id, ScheduleTargetRow.kind, ScheduleTargetRow.ref)
_EXCEPTIONS: Final = (
    ScheduleExceptionRow.schedule_id,
    ScheduleExceptionRow.occurs_at,
    ScheduleExceptionRow.kind,
    ScheduleExceptionRow.moved_to,
    ScheduleExceptionRow.length_ms,
    ScheduleExceptionRow.cut_at,
    ScheduleExceptionRow.waits,
)


class _Difference(NamedTuple):
    kind: ExceptionKind
    moved_to: datetime | None
    length_ms: int | None
    cut_at: datetime | None
    waits: bool


def _wanted(
    window: Window, schedule_ids: Collection[str] | None, touching: Collection[Target] | None
) -> ColumnElement[bool]:
    moved_in = select(ScheduleExceptionRow.schedule_id).where(
        ScheduleExceptionRow.moved_to > window.start - LONGEST_WINDOW, ScheduleExceptionRow.moved_to < window.end
    )
    wanted = and_(
        ScheduleRow.state == ScheduleState.ACTIVE,
        or_(
            and_(
                ScheduleRow.starts_at < window.end,
                or_(ScheduleRow.ends_at.is_(None), ScheduleRow.ends_at > window.start - LONGEST_WINDOW),
            ),
            ScheduleRow.id.in_(moved_in),
        ),
    )
    if schedule_ids is not None:
        wanted = and_(wanted, ScheduleRow.id.in_(schedule_ids))
    if touching is not None:
        wanted = and_(wanted, ScheduleRow.id.in_(_naming(touching)))
    return wanted


def _naming(targets: Collection[Target]) -> Select[tuple[str]]:
    """Ids of the schedules that name one of these targets."""
    refs: dict[TargetKind, list[str]] = defaultdict(list)
    for target in targets:
        refs[target.kind].append(target.ref)
    named = (
        and_(ScheduleTargetRow.kind == kind.value, ScheduleTargetRow.ref.in_(names)) for kind, names in refs.items()
    )
    return select(ScheduleTargetRow.schedule_id).where(or_(false(), *named))


def _of_schedules(columns: Sequence[Any], wanted: ColumnElement[bool]) -> Select[Any]:
    """Rows of a table of the schedule's own, `columns[0]` being their `schedule_id`."""
    return select(*columns).join(ScheduleRow, ScheduleRow.id == columns[0]).where(wanted)


def _grouped_targets(rows: Iterable[Any]) -> dict[str, tuple[Target, ...]]:
    found: dict[str, list[Target]] = defaultdict(list)
    for schedule_id, kind, ref in rows:
        found[schedule_id].append(_target(kind, ref))
    return {schedule_id: tuple(targets) for schedule_id, targets in found.items()}


@lru_cache(maxsize=4096)
def _target(kind: str, ref: str) -> Target:
    return Target(TargetKind(kind), ref)


def _exceptions(session: Session, wanted: ColumnElement[bool]) -> dict[str, dict[datetime, _Difference]]:
    found: dict[str, dict[datetime, _Difference]] = defaultdict(dict)
    rows = session.execute(_of_schedules(_EXCEPTIONS, wanted))
    for row in rows:
        found[row.schedule_id][row.occurs_at] = _Difference(
            row.kind, row.moved_to, row.length_ms, row.cut_at, row.waits
        )
    return found


@lru_cache(maxsize=4096)
def _rule(text: str) -> Rule:
    return rule_from_dict(json.loads(text))


_FEW: Final = 500
"""So many schedules are asked for by id; more of them all together."""
_NO_DIFFERENCE: Final[Mapping[datetime, _Difference]] = {}


class _Made(NamedTuple):
    """All that the entries of one schedule are made of; equal makings, equal entries."""

    row: Any
    targets: tuple[Target, ...]
    exceptions: Mapping[datetime, _Difference]
    content: Content
    feed: Feed | None


def _entries_of(row: Any, made: _Made, shelf: Shelf, window: Window) -> Iterator[ScheduledEntry]:
    content, targets, exceptions = made.content, made.targets, made.exceptions
    source = _SOURCES.get(row.content_kind, SourceKind.RECORDED)
    late = _late_of(row)
    is_feed, is_stream = row.content_kind is ContentKind.FEED, row.content_kind in STREAMED
    sound = content.asset.duration if content.asset is not None else None
    plain = _window_length(row, sound)
    unplaced = _unplaced(row, targets, content)
    for instant, difference in _instants(row, exceptions, window, plain):
        start = instant if difference is None or difference.moved_to is None else difference.moved_to
        length, boundaries, end = sound, content.boundaries, start + plain
        if difference is not None and difference.kind is not ExceptionKind.CUT and difference.length_ms is not None:
            end = start + max(difference.length_ms * _MS, sound or _MS) + row.max_wait_ms * _MS
        if difference is not None and difference.cut_at is not None:
            end = min(end, difference.cut_at)
            if length is not None and difference.length_ms is not None:
                length = min(length, difference.length_ms * _MS)
                boundaries = tuple(cue for cue in boundaries if cue < length)
        if end <= start or not (start < window.end and window.start < end):
            continue
        blocked = content.blocked or unplaced or shelf.blocked_at(row, content, start, end)
        if blocked is None and difference is not None and difference.waits:
            blocked = _waits_at(row, content)
        yield ScheduledEntry(
            entry=Entry(
                id=f"{row.id}@{to_ms(instant)}",
                start=start,
                end=end,
                level=row.level,
                klass=row.klass,
                source=source,
                length=None if is_stream else length,
                origin_order=row.tie_order,
                boundaries=boundaries,
                late=late,
            ),
            schedule_id=row.id,
            unit_id=row.unit_id,
            kind=row.kind,
            klass=row.klass,
            title=content.title,
            targets=targets,
            content_kind=row.content_kind,
            content_id=row.content_id,
            asset=content.asset,
            feed_id=row.content_id if is_feed else None,
            approval=content.approval,
            gain_db=row.gain_db,
            language=row.language,
            required=row.required,
            blocked=blocked,
        )


def _unplaced(row: Any, targets: Sequence[Target], content: Content) -> Blocked | None:
    """Its place waits for an approval, or is not the one that was approved."""
    if not row.needs_approval:
        return None
    if row.approved_hash is None:
        return _waits_at(row, content)
    actual = placement_hash(
        content=(row.content_kind.value, row.content_id, row.language),
        rule=row.rule,
        targets=targets,
        length_ms=row.length_ms,
        max_wait_ms=row.max_wait_ms,
    )
    if actual == row.approved_hash:
        return None
    facts = {"title": content.title, "because": Unapproved.PLACE_CHANGED.value}
    return Blocked(ConflictKind.APPROVAL_VOID, row.id, facts)


def _waits_at(row: Any, content: Content) -> Blocked:
    facts = {"title": content.title, "because": Unapproved.PLACE_WAITING.value}
    return Blocked(ConflictKind.APPROVAL_VOID, row.id, facts)


_SOURCES: Final = {ContentKind.FEED: SourceKind.RELAY, ContentKind.LIVE: SourceKind.LIVE}


def _late_of(row: Any) -> Late:
    try:
        return late_from_dict(row.late)
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt("schedule_unreadable", schedule=row.id) from error


def _window_length(row: Any, sound: timedelta | None) -> timedelta:
    asked: timedelta | None = row.length_ms * _MS if row.length_ms is not None else None
    lengths = [length for length in (asked, sound) if length is not None]
    wait: timedelta = row.max_wait_ms * _MS
    return wait + (max(lengths) if lengths else _UNKNOWN_LENGTH)


def _instants(
    row: Any, exceptions: Mapping[datetime, _Difference], window: Window, length: timedelta
) -> Iterator[tuple[datetime, _Difference | None]]:
    """The rule's instants whose occurrence may share an instant with `window`, and how they differ."""
    start = max(window.start - length, row.starts_at)
    end = window.end if row.ends_at is None else min(window.end, row.ends_at)
    if start < end:
        for instant in occurrences(_rule(json.dumps(row.rule, sort_keys=True)), Window(start, end)):
            difference = exceptions.get(instant)
            if difference is None or (difference.kind is ExceptionKind.CUT and difference.moved_to is None):
                yield instant, difference
    for instant, difference in exceptions.items():
        in_force = row.starts_at <= instant and (row.ends_at is None or instant < row.ends_at)
        if in_force and difference.moved_to is not None and difference.kind is not ExceptionKind.CANCELLED:
            yield instant, difference
