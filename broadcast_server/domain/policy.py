"""A station's regulations (quy chế) as data, and what a coming day breaks of them.

The 03:15 accident is why this file exists: nothing but an emergency sounds in quiet hours, whoever approved it.
`check` looks at what *will sound* (resolved segments): a queue that slides past 22:00 is caught like a direct order.
The node applies quiet hours and the maximum gain a second time from its signed config.

Violations carry a code and facts, always with the `field` to mend and the `fix`. Source: Nghị định 49/2024 (the commune
issues its station's regulations, suited to people's daily habits); quiet hours are `[22:00, 05:00)` unless it decides.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, Protocol

from broadcast_server.domain.clock import LOCAL, Window
from broadcast_server.domain.errors import Invalid
from broadcast_server.domain.placement import Placing
from speaker_protocol.rules import BulletinClass

_DAY: Final = timedelta(days=1)
MOST_DELEGATED_MINUTES: Final = 30
MOST_LIVE_MINUTES: Final = 120
"""As long as one recording may be."""
LONGEST_STAGGER_S: Final = 30
SESSION_GAP: Final = timedelta(minutes=15)
"""A silence this long ends a session (buổi)."""


DEFAULT_APPROVE_PLACEMENT: Final = frozenset({Placing.SCHEDULE, Placing.RELAY})
"""A play-now sounds what somebody else approved and is over in minutes; a place on the grid comes back every day."""


class Sounding(Protocol):
    """What `check` needs of a stretch of sound; a `PlanSegment` has it."""

    @property
    def entry_id(self) -> str:
        """Whose it is."""
        ...

    @property
    def start(self) -> datetime:
        """When it begins."""
        ...

    @property
    def end(self) -> datetime:
        """When it ends."""
        ...

    @property
    def klass(self) -> BulletinClass:
        """Its legal class."""
        ...

    @property
    def gain_db(self) -> float:
        """How loud."""
        ...


@dataclass(frozen=True, slots=True)
class QuietHours:
    """Every day `[start, end)` in local wall time; an end not after the start is the next day's; equal: none at all."""

    start: time = time(22)
    end: time = time(5)

    def __post_init__(self) -> None:
        for name, at in (("quiet.from", self.start), ("quiet.to", self.end)):
            if at.tzinfo is not None or at.second or at.microsecond:
                raise Invalid("not_a_time", field=name, fix="write_hh_mm_quoted")

    @property
    def from_min(self) -> int:
        """Minute of the local day, as nodes count it."""
        return self.start.hour * 60 + self.start.minute

    @property
    def to_min(self) -> int:
        """Minute of the local day, as nodes count it."""
        return self.end.hour * 60 + self.end.minute

    def windows(self, within: Window) -> Iterator[Window]:
        """The quiet stretches that share time with `within`, unclipped."""
        if self.start == self.end:
            return
        day = within.start.astimezone(LOCAL).date() - _DAY
        last = within.end.astimezone(LOCAL).date()
        while day <= last:
            ends = day if self.start < self.end else day + _DAY
            quiet = Window(_instant(day, self.start), _instant(ends, self.end))
            if quiet.overlaps(within):
                yield quiet
            day += _DAY


@dataclass(frozen=True, slots=True)
class Suspension:
    """Days, both included, on which only `allowed` classes sound (quốc tang, a contest's exam day)."""

    first: date
    last: date
    allowed: frozenset[BulletinClass] = frozenset({BulletinClass.EMERGENCY})
    reason: str = ""

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise Invalid("empty_validity", field="suspensions.last", fix="until_after_from")

    @property
    def window(self) -> Window:
        """Its instants."""
        return Window(_instant(self.first, time(0)), _instant(self.last + _DAY, time(0)))


@dataclass(frozen=True, slots=True)
class StationPolicy:
    """The regulations of one station. Maxima are of sound, emergencies not counted; None: no maximum.

    `cluster_quiet`: more quiet hours for single clusters (a hospital, a school), as pairs of cluster id and hours.
    """

    quiet: QuietHours = QuietHours()
    cluster_quiet: tuple[tuple[str, tuple[QuietHours, ...]], ...] = ()
    max_minutes_per_session: int | None = None
    max_minutes_per_day: int | None = None
    max_gain_db: float = 0.0
    suspensions: tuple[Suspension, ...] = ()
    max_live_minutes: int = 30
    """Longest live session."""
    max_delegated_minutes: int = 10
    """Longest live session or bulletin of somebody who speaks by delegation (`domain.delegation`)."""
    filler: str | None = None
    """The approved bulletin that is looped while a relay has lost its source."""
    self_approval: bool = False
    """A one-person station: who wrote a *thông thường* may approve it; each audit row names it. Never by default."""
    approve_placement: frozenset[Placing] = DEFAULT_APPROVE_PLACEMENT
    """Ways onto the air that wait for an approval where whoever takes them may give none."""
    stagger_s: int = 0
    """Seconds between the slots of neighbouring clusters (`domain.stagger`); 0: all begin together."""

    def __post_init__(self) -> None:
        for name in ("max_minutes_per_session", "max_minutes_per_day"):
            minutes = getattr(self, name)
            if minutes is not None and not 1 <= minutes <= 24 * 60:
                raise Invalid("minutes_out_of_range", field=name, fix="give_1_to_1440")
        if not 1 <= self.max_live_minutes <= MOST_LIVE_MINUTES:
            raise Invalid("live_minutes_out_of_range", field="max_live_minutes", fix="give_1_to_120")
        if not 1 <= self.max_delegated_minutes <= MOST_DELEGATED_MINUTES:
            raise Invalid("live_minutes_out_of_range", field="max_delegated_minutes", fix="give_1_to_30")
        if not 0 <= self.stagger_s <= LONGEST_STAGGER_S:
            raise Invalid("stagger_out_of_range", field="stagger_s", most_s=LONGEST_STAGGER_S, fix="give_0_to_30")
        if not (math.isfinite(self.max_gain_db) and -60 <= self.max_gain_db <= 0):
            raise Invalid("gain_out_of_range", field="max_gain_db", fix="give_minus_60_to_0")

    def quiet_of(self, cluster_id: str | None) -> tuple[QuietHours, ...]:
        """The station's quiet hours, and those of one cluster beside them."""
        own = dict(self.cluster_quiet).get(cluster_id, ()) if cluster_id is not None else ()
        return (self.quiet, *own)


DEFAULT_POLICY: Final = StationPolicy()


class Code(enum.StrEnum):
    """What was broken."""

    QUIET_HOURS = "quiet_hours"
    SUSPENDED = "suspended"
    SESSION_TOO_LONG = "session_too_long"
    DAY_TOO_LONG = "day_too_long"
    TOO_LOUD = "too_loud"


@dataclass(frozen=True, slots=True)
class Violation:
    """One entry against one rule, at its first offending instant. `facts` name `field` and `fix`."""

    code: Code
    entry_id: str
    at: datetime
    facts: dict[str, Any] = field(default_factory=dict)


def check(
    segments: Iterable[Sounding],
    policy: StationPolicy,
    *,
    cluster_id: str | None = None,
    quiet: Sequence[QuietHours] = (),
) -> tuple[Violation, ...]:
    """Everything that segments (of one line, in any order) break, by instant; empty if the day may be published.

    `cluster_id`: whose quiet hours count beside the station's; `quiet`: further ones.
    """
    ordered = sorted(segments, key=lambda segment: segment.start)
    hours = (*policy.quiet_of(cluster_id), *quiet)
    found = [
        *_in_quiet_hours(ordered, hours),
        *_suspended(ordered, policy.suspensions),
        *_over_minutes(ordered, policy),
        *_too_loud(ordered, policy.max_gain_db),
    ]
    return tuple(sorted(found, key=lambda violation: (violation.at, violation.code, violation.entry_id)))


def _in_quiet_hours(segments: Sequence[Sounding], hours: Sequence[QuietHours]) -> Iterator[Violation]:
    if not segments:
        return
    whole = Window(segments[0].start, max(segment.end for segment in segments))
    quiet = deque(sorted(window for each in hours for window in each.windows(whole)))
    for segment in segments:
        if segment.klass is BulletinClass.EMERGENCY:
            continue
        while quiet and quiet[0].end <= segment.start:  # segments come by start: it is over for all that follow
            quiet.popleft()
        broken = next((window for window in quiet if window.start < segment.end and segment.start < window.end), None)
        if broken is not None:
            starts_inside = segment.start in broken
            yield Violation(
                Code.QUIET_HOURS,
                segment.entry_id,
                max(segment.start, broken.start),
                {
                    "field": "start" if starts_inside else "end",
                    "fix": "move_out_of_quiet_hours" if starts_inside else "end_before_quiet_hours",
                    "quiet_from": _local_text(broken.start),
                    "quiet_to": _local_text(broken.end),
                },
            )


def _suspended(segments: Sequence[Sounding], suspensions: Sequence[Suspension]) -> Iterator[Violation]:
    for segment in segments:
        sounding = Window(segment.start, segment.end)
        for suspension in suspensions:
            if segment.klass not in suspension.allowed and suspension.window.overlaps(sounding):
                yield Violation(
                    Code.SUSPENDED,
                    segment.entry_id,
                    max(segment.start, suspension.window.start),
                    {
                        "field": "start",
                        "fix": "move_out_of_suspension",
                        "first": suspension.first.isoformat(),
                        "last": suspension.last.isoformat(),
                        "reason": suspension.reason,
                        "allowed": sorted(suspension.allowed),
                    },
                )
                break


def _over_minutes(segments: Sequence[Sounding], policy: StationPolicy) -> Iterator[Violation]:
    counted = [segment for segment in segments if segment.klass is not BulletinClass.EMERGENCY]
    if policy.max_minutes_per_session is not None:
        for session in _sessions(counted):
            yield from _over(session, policy.max_minutes_per_session, Code.SESSION_TOO_LONG)
    if policy.max_minutes_per_day is not None:
        for day in _local_days(counted):
            yield from _over(day, policy.max_minutes_per_day, Code.DAY_TOO_LONG)


_Stretch = tuple[Sounding, Window]


def _sessions(segments: Sequence[Sounding]) -> Iterator[list[_Stretch]]:
    """Runs of sound with no silence of `SESSION_GAP` in them."""
    session: list[_Stretch] = []
    for segment in segments:
        if session and segment.start - session[-1][1].end >= SESSION_GAP:
            yield session
            session = []
        session.append((segment, Window(segment.start, segment.end)))
    if session:
        yield session


def _local_days(segments: Sequence[Sounding]) -> Iterator[list[_Stretch]]:
    """Sound by local day; what crosses midnight counts for both, each with its part."""
    days: dict[date, list[_Stretch]] = {}
    for segment in segments:
        start = segment.start
        while start < segment.end:
            day = start.astimezone(LOCAL).date()
            end = min(segment.end, _instant(day + _DAY, time(0)))
            days.setdefault(day, []).append((segment, Window(start, end)))
            start = end
    yield from days.values()


def _over(stretches: Sequence[_Stretch], limit_minutes: int, code: Code) -> Iterator[Violation]:
    """The first entry that passes the limit."""
    limit, heard = timedelta(minutes=limit_minutes), timedelta(0)
    total = sum((window.length for _, window in stretches), timedelta(0))
    for segment, window in stretches:
        heard += window.length
        if heard > limit:
            yield Violation(
                code,
                segment.entry_id,
                window.end - (heard - limit),
                {
                    "field": "end",
                    "fix": "shorten_or_move",
                    "limit_minutes": limit_minutes,
                    "planned_minutes": math.ceil(total / timedelta(minutes=1)),
                    "entry_ids": list(dict.fromkeys(each.entry_id for each, _ in stretches)),
                },
            )
            return


def _too_loud(segments: Sequence[Sounding], max_gain_db: float) -> Iterator[Violation]:
    for segment in segments:
        if segment.gain_db > max_gain_db and segment.klass is not BulletinClass.EMERGENCY:
            facts = {"field": "gain_db", "fix": "lower_gain", "gain_db": segment.gain_db, "max_gain_db": max_gain_db}
            yield Violation(Code.TOO_LOUD, segment.entry_id, segment.start, facts)


def _instant(day: date, at: time) -> datetime:
    return datetime.combine(day, at, LOCAL).astimezone(UTC)


def _local_text(instant: datetime) -> str:
    return instant.astimezone(LOCAL).isoformat(timespec="minutes")


# --- Stored and sent --------------------------------------------------------------------------------------------------


def policy_to_dict(policy: StationPolicy) -> dict[str, Any]:
    """JSON-ready and stable; `policy_from_dict` gives back an equal policy."""
    return {
        "quiet": _quiet_to_dict(policy.quiet),
        "cluster_quiet": {cluster: [_quiet_to_dict(q) for q in hours] for cluster, hours in policy.cluster_quiet},
        "max_minutes_per_session": policy.max_minutes_per_session,
        "max_minutes_per_day": policy.max_minutes_per_day,
        "max_gain_db": policy.max_gain_db,
        "max_live_minutes": policy.max_live_minutes,
        "max_delegated_minutes": policy.max_delegated_minutes,
        "suspensions": [
            {
                "first": suspension.first.isoformat(),
                "last": suspension.last.isoformat(),
                "allowed": sorted(suspension.allowed),
                "reason": suspension.reason,
            }
            for suspension in policy.suspensions
        ],
        "stagger_s": policy.stagger_s,
        **({} if policy.filler is None else {"filler": policy.filler}),
        **({"self_approval": True} if policy.self_approval else {}),
        **(
            {}
            if policy.approve_placement == DEFAULT_APPROVE_PLACEMENT
            else {"approve_placement": sorted(policy.approve_placement)}
        ),
    }


_FIELDS: Final = frozenset(each.name for each in fields(StationPolicy))


def policy_from_dict(document: Mapping[str, Any]) -> StationPolicy:
    """The policy of a document; what it leaves out is the default. Raises `Invalid` with `field` and `fix`."""
    unknown = document.keys() - _FIELDS
    if unknown:
        raise Invalid("unknown_field", field=min(unknown), fix="remove_field")
    clusters = _mapping(document.get("cluster_quiet", {}), "cluster_quiet")
    return StationPolicy(
        quiet=_quiet_from(document["quiet"], "quiet") if document.get("quiet") is not None else QuietHours(),
        cluster_quiet=tuple(
            (cluster, tuple(_quiet_from(each, f"cluster_quiet.{cluster}") for each in hours))
            for cluster, hours in sorted(clusters.items())
        ),
        max_minutes_per_session=_number(document, "max_minutes_per_session", None, whole=True),
        max_minutes_per_day=_number(document, "max_minutes_per_day", None, whole=True),
        max_gain_db=_number(document, "max_gain_db", 0.0, whole=False),
        max_live_minutes=_number(document, "max_live_minutes", 30, whole=True),
        max_delegated_minutes=_number(document, "max_delegated_minutes", 10, whole=True),
        suspensions=tuple(
            _suspension_from(each, f"suspensions[{number}]")
            for number, each in enumerate(document.get("suspensions", ()))
        ),
        stagger_s=_number(document, "stagger_s", 0, whole=True),
        filler=_filler_from(document.get("filler")),
        self_approval=_flag(document, "self_approval"),
        approve_placement=_placings_from(document.get("approve_placement")),
    )


def _flag(document: Mapping[str, Any], name: str) -> bool:
    value = document.get(name, False)
    if not isinstance(value, bool):
        raise Invalid("not_a_flag", field=name, fix="write_true_or_false")
    return value


def _placings_from(value: Any) -> frozenset[Placing]:
    if value is None:
        return DEFAULT_APPROVE_PLACEMENT
    try:
        return frozenset(Placing(name) for name in value)
    except (TypeError, ValueError):
        known = ", ".join(Placing)
        raise Invalid("not_a_choice", field="approve_placement", expected=known, fix="pick_placing") from None


def _filler_from(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and 0 < len(value) <= 64):
        return value
    raise Invalid("filler_invalid", field="filler", fix="give_bulletin_id")


def _quiet_to_dict(hours: QuietHours) -> dict[str, str]:
    return {"from": hours.start.isoformat("minutes"), "to": hours.end.isoformat("minutes")}


def _quiet_from(value: Any, field_name: str) -> QuietHours:
    document = _mapping(value, field_name)
    ends = []
    for end in ("from", "to"):
        try:
            ends.append(time.fromisoformat(document[end]))
        except (KeyError, TypeError, ValueError):
            raise Invalid("not_a_time", field=f"{field_name}.{end}", fix="write_hh_mm_quoted") from None
    return QuietHours(*ends)


def _suspension_from(value: Any, field_name: str) -> Suspension:
    document = _mapping(value, field_name)
    days = []
    for end in ("first", "last"):
        try:
            days.append(date.fromisoformat(document[end]))
        except (KeyError, TypeError, ValueError):
            raise Invalid("not_a_date", field=f"{field_name}.{end}", fix="write_yyyy_mm_dd") from None
    try:
        allowed = frozenset(BulletinClass(name) for name in document.get("allowed", [BulletinClass.EMERGENCY]))
    except (TypeError, ValueError):
        raise Invalid("bad_class", field=f"{field_name}.allowed", known=list(BulletinClass), fix="pick_class") from None
    return Suspension(days[0], days[1], allowed, str(document.get("reason", "")))


def _mapping(value: Any, field_name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Invalid("not_an_object", field=field_name, fix="give_an_object")
    return value


def _number(document: Mapping[str, Any], name: str, otherwise: Any, *, whole: bool) -> Any:
    value = document.get(name, otherwise)
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise Invalid("not_a_number", field=name, fix="give_whole_number" if whole else "give_number")
    return value if whole else float(value)
