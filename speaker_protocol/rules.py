"""Who sounds, and when: ladder, matrix, resume and late policy as data, and `decide`, the one question of a node.

The **ladder** (`Level`) says *who*: only the higher level takes the air from another. The **matrix** (`MATRIX`) says
*when*: at once, at an item's end, or never. A new wish of the field is a row, a column or a cell here; neither the
timeline nor a node has a branch for it. Server and node call this same file, so they cannot disagree.

Three laws a change must keep: `may_cut` implies a higher level (so it has no cycle); stop-all beats everything and only
the `emergency` class passes quiet hours; `decide` answers from its arguments alone and never raises.

Standard library only, integers in UTC milliseconds. Sources: Thông tư 39/2020 (the three classes; the commune orders
ties of *ưu tiên*), Nghị định 49/2024 (the commune owns its station), `docs/glossary.md` for the terms.
"""

# ruff: noqa: D102  (the fields of the views say what they are by name, unit and the table in docs/protocol.md)

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Protocol

from speaker_protocol.hazards import CLIPS, DRILL
from speaker_protocol.rounds import Air, AlertView, Part, PartKind, Turn, on_air

# --- The nouns --------------------------------------------------------------------------------------------------------


class BulletinClass(enum.StrEnum):
    """Legal class of what sounds (Thông tư 39/2020)."""

    NORMAL = "normal"  # thông thường: the commune may place it
    PRIORITY = "priority"  # ưu tiên: plays first, the commune orders ties
    EMERGENCY = "emergency"  # khẩn cấp: plays at once, everywhere it is addressed

    @property
    def severity(self) -> int:
        """0, 1, 2: a key may sign classes up to its own severity."""
        return _SEVERITY[self]


_SEVERITY: Final = {klass: severity for severity, klass in enumerate(BulletinClass)}


class SourceKind(enum.StrEnum):
    """Where the sound comes from."""

    RECORDED = "recorded"  # an asset the node holds
    RELAY = "relay"  # tiếp âm: a feed of a station
    LIVE = "live"  # a voice at a microphone
    FILLER = "filler"  # music that gives way to everything
    TONE = "tone"  # a technician's test tone


class Level(enum.IntEnum):
    """The ladder: the higher level wins. Gaps are left on purpose; the wire carries the integer."""

    STOP_ALL = 100
    EMERGENCY_UPPER = 90  # khẩn cấp of the centre or the province
    EMERGENCY_COMMUNE = 85
    LIVE_LEADER = 70
    PRIORITY_UPPER = 60  # ưu tiên sent down
    PRIORITY_COMMUNE = 55
    LIVE = 50
    RELAY_REQUIRED = 40  # an obligation
    PROGRAMME = 30  # chương trình xã
    NORMAL = 20
    FILLER = 10
    TEST_TONE = 5


class Contender(Protocol):
    """Whatever asks for the air: a domain `Entry`, a plan's segment."""

    @property
    def klass(self) -> BulletinClass: ...
    @property
    def level(self) -> int: ...
    @property
    def source(self) -> str: ...


# --- The matrix -------------------------------------------------------------------------------------------------------


class Kind(enum.StrEnum):
    """What a contender counts as: a row when it is new, a column when it sounds."""

    FILLER = "filler"
    NORMAL = "normal"
    PROGRAMME = "programme"
    RELAY = "relay"
    PRIORITY = "priority"
    LIVE = "live"
    EMERGENCY = "emergency"


def kind_of(contender: Contender) -> Kind:
    """The row and column of a contender. An emergency is one by its class alone, a voice by its source."""
    if contender.klass is BulletinClass.EMERGENCY:
        return Kind.EMERGENCY
    if contender.source == SourceKind.LIVE:
        return Kind.LIVE
    if contender.klass is BulletinClass.PRIORITY:
        return Kind.PRIORITY
    if contender.source == SourceKind.RELAY:
        return Kind.RELAY
    if contender.level <= Level.FILLER:
        return Kind.FILLER
    return Kind.PROGRAMME if contender.level >= Level.PROGRAMME else Kind.NORMAL


ORDERED_BY_COMMUNE: Final[Mapping[Kind, Level]] = MappingProxyType({Kind.PRIORITY: Level.PRIORITY_UPPER})
"""Kinds whose members are peers on one rung whoever sent them, so that the commune's order decides between them."""


def rung_of(contender: Contender) -> int:
    """The rung a contender queues on: its level, or the one rung of its kind where the commune orders."""
    return ORDERED_BY_COMMUNE.get(kind_of(contender), contender.level)


class Act(enum.StrEnum):
    """What a new item does to the one that sounds."""

    CUT = "cut"  # at once, silence within CUT_WITHIN_MS
    FADE = "fade"  # at once, the old one faded out over FADE_MS
    REPLACE = "replace"  # at once, an alert by a graver one
    BOUNDARY = "boundary"  # at the next item's start, at most BOUNDARY_WAIT_MS from now
    NEXT_ITEM = "next_item"  # at the next item's start, however long that takes
    QUEUE = "queue"  # when what sounds has ended
    AFTER = "after"  # the same, and nothing may shorten the wait
    APPEND = "append"  # an alert after an alert of its level
    COMMUNE_ORDER = "commune_order"  # when what sounds has ended, ties in the order the commune gave
    ASK = "ask"  # waits as AFTER; the operator is asked and may end what sounds
    DROP_TO_NEXT_SLOT = "drop_to_next_slot"  # not now: its next occurrence, or a new one by hand
    REFUSE = "refuse"  # not at all


CUT_WITHIN_MS: Final = 2_000
FADE_MS: Final = 1_000
BOUNDARY_WAIT_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Takeover:
    """How long what sounds keeps the air: `within_ms` at most (None: to its end); to its next item if `at_item`."""

    within_ms: int | None
    at_item: bool = False


TAKEOVERS: Final[Mapping[Act, Takeover | None]] = MappingProxyType(
    {
        Act.CUT: Takeover(within_ms=0),
        Act.FADE: Takeover(within_ms=0),
        Act.REPLACE: Takeover(within_ms=0),
        Act.BOUNDARY: Takeover(within_ms=BOUNDARY_WAIT_MS, at_item=True),
        Act.NEXT_ITEM: Takeover(within_ms=None, at_item=True),
        Act.QUEUE: Takeover(within_ms=None),
        Act.AFTER: Takeover(within_ms=None),
        Act.APPEND: Takeover(within_ms=None),
        Act.COMMUNE_ORDER: Takeover(within_ms=None),
        Act.ASK: Takeover(within_ms=None),
        Act.DROP_TO_NEXT_SLOT: None,  # does not wait
        Act.REFUSE: None,
    }
)


def _table() -> Mapping[Kind, Mapping[Kind, Act]]:
    cut, fade, replace = Act.CUT, Act.FADE, Act.REPLACE
    item, bound, queue, after = Act.NEXT_ITEM, Act.BOUNDARY, Act.QUEUE, Act.AFTER
    order, ask, slot, refuse = Act.COMMUNE_ORDER, Act.ASK, Act.DROP_TO_NEXT_SLOT, Act.REFUSE
    # Filler has a column of its own because it exists to give way. Programmes and relays wait out an alert, which is
    # short, where a lone bulletin goes to its next slot.
    # fmt: off
    rows = {
        # new, down; sounding, across: filler  normal  programme  relay  priority  live    emergency
        Kind.FILLER:                  (queue,  queue,  queue,     queue, queue,    queue,  queue),
        Kind.NORMAL:                  (fade,   queue,  queue,     queue, queue,    queue,  slot),
        Kind.PROGRAMME:               (fade,   queue,  queue,     queue, queue,    queue,  after),
        Kind.RELAY:                   (fade,   queue,  queue,     queue, queue,    queue,  after),
        Kind.PRIORITY:                (fade,   item,   item,      bound, order,    after,  after),
        Kind.LIVE:                    (fade,   fade,   fade,      fade,  ask,      fade,   refuse),
        Kind.EMERGENCY:               (cut,    cut,    cut,       cut,   cut,      cut,    replace),
    }
    # fmt: on
    return MappingProxyType({new: MappingProxyType(dict(zip(Kind, row, strict=True))) for new, row in rows.items()})


MATRIX: Final = _table()
"""MATRIX[new][sounding]: what the new one does *if it outranks* what sounds."""

OUTRANKED: Final[Mapping[tuple[Kind, Kind], Act]] = MappingProxyType(
    {(Kind.LIVE, Kind.LIVE): Act.REFUSE, (Kind.EMERGENCY, Kind.EMERGENCY): Act.APPEND}
)
"""What it does if it does not outrank (same level or lower) where the matrix would give it the air; else it queues."""


def act_of(new: Contender, sounding: Contender) -> Act:
    """What `new` does when it comes due while `sounding` sounds: the matrix's cell, bounded by the ladder."""
    pair = kind_of(new), kind_of(sounding)
    act = MATRIX[pair[0]][pair[1]]
    takeover = TAKEOVERS[act]
    if takeover is None or takeover == _TO_THE_END or new.level > sounding.level:
        return act
    return OUTRANKED.get(pair, Act.QUEUE)


_TO_THE_END: Final = Takeover(within_ms=None)


def may_cut(new: Contender, sounding: Contender) -> bool:
    """Whether `sounding` must be silent from the very instant `new` is due."""
    takeover = TAKEOVERS[act_of(new, sounding)]
    return takeover is not None and takeover.within_ms == 0


# --- Late policy ------------------------------------------------------------------------------------------------------


class LatePolicy(enum.StrEnum):
    """What an item does when it cannot have the air at its start. Chosen per item; the words are Rivendell's."""

    START_NOW = "start_now"  # as soon as the air is free, from its first second
    WAIT_AT_MOST = "wait_at_most"  # waits n, then takes the air from what it outranks; outranking nothing, is dropped
    NEXT = "next"  # takes the next item boundary of what does not outrank it, from its first second
    SKIP_IF_LATER_THAN = "skip_if_later_than"  # waits n, then is dropped
    JOIN_MIDWAY = "join_midway"  # as soon as the air is free, at the second it would have reached by then


@dataclass(frozen=True, slots=True)
class Late:
    """A late policy with its n. An item exactly n late still starts."""

    policy: LatePolicy = LatePolicy.START_NOW
    at_most_ms: int | None = None

    def __post_init__(self) -> None:
        if (self.at_most_ms is not None) is not (self.policy in _LIMITED) or (self.at_most_ms or 0) < 0:
            raise ValueError(f"{self.policy} with at_most_ms={self.at_most_ms}")


_LIMITED: Final = frozenset({LatePolicy.WAIT_AT_MOST, LatePolicy.SKIP_IF_LATER_THAN})
_SHORTENED: Final = frozenset({Act.QUEUE, Act.NEXT_ITEM, Act.BOUNDARY})


def takeover_of(new: Contender, late: Late, sounding: Contender) -> Takeover | None:
    """How and when `new` gets the air from `sounding`; None: it does not wait for it.

    The item's own late policy shortens the matrix's wait where the matrix only means politeness (`_SHORTENED`), never
    against the ladder.
    """
    act = act_of(new, sounding)
    takeover = TAKEOVERS[act]
    if act not in _SHORTENED or takeover is None:
        return takeover
    if late.policy is LatePolicy.NEXT and new.level >= sounding.level:
        return Takeover(takeover.within_ms, at_item=True)
    if late.policy is LatePolicy.WAIT_AT_MOST and late.at_most_ms is not None and new.level > sounding.level:
        limits = [ms for ms in (takeover.within_ms, late.at_most_ms) if ms is not None]
        return Takeover(min(limits), takeover.at_item)
    return takeover


# --- Resume policy ----------------------------------------------------------------------------------------------------


class Resume(enum.StrEnum):
    """What a source does after it was cut."""

    REJOIN = "rejoin"  # at now, never at the past
    RESTART = "restart"  # the item from its start, if enough of it was left; else it stays unfinished ("phát dở")
    DROP = "drop"


RESUME: Final[Mapping[SourceKind, Resume]] = MappingProxyType(
    {
        SourceKind.RECORDED: Resume.RESTART,
        SourceKind.RELAY: Resume.REJOIN,
        SourceKind.LIVE: Resume.REJOIN,
        SourceKind.FILLER: Resume.REJOIN,
        SourceKind.TONE: Resume.DROP,
    }
)
RESTART_IF_LEFT_PERCENT: Final = 60
SHORTEST_JOIN_MS: Final = 10_000  # nobody wants three seconds of a relay before the window closes


def is_worth_restarting(item_ms: int, heard_ms: int) -> bool:
    """Whether an item of `item_ms` that was cut after `heard_ms` starts again: at least 60 % of it is left."""
    return 100 * (item_ms - heard_ms) >= RESTART_IF_LEFT_PERCENT * item_ms


# --- Quiet hours and limits -------------------------------------------------------------------------------------------


class LimitsView(Protocol):
    """What the station's policy lets a node do; part of its signed config."""

    @property
    def quiet_from_min(self) -> int: ...
    @property
    def quiet_to_min(self) -> int: ...
    @property
    def utc_offset_min(self) -> int: ...
    @property
    def max_gain_db(self) -> float: ...
    @property
    def max_day_min(self) -> int | None: ...
    @property
    def max_session_min(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits a node has before anyone configured it: the strict ones. Minutes of the local day; None: no limit."""

    quiet_from_min: int = 22 * 60
    quiet_to_min: int = 5 * 60
    utc_offset_min: int = 7 * 60
    max_gain_db: float = 0.0
    max_day_min: int | None = None
    max_session_min: int | None = None


SESSION_GAP_MS: Final = 15 * 60_000
"""A silence this long ends a session (buổi)."""


@dataclass(frozen=True, slots=True)
class Heard:
    """How much a node has sounded, emergencies apart, as it stood at `at_ms`."""

    at_ms: int = 0
    day_ms: int = 0  # in the local day of `last_ms`
    session_ms: int = 0  # in the session that was on at `last_ms`
    last_ms: int = 0  # when it last sounded


_DAY_MIN: Final = 24 * 60
_MIN_MS: Final = 60_000


def is_quiet(limits: LimitsView, now_ms: int) -> bool:
    """Whether `now_ms` lies in the quiet hours `[from, to)` of the local day; equal ends mean none."""
    minute = (now_ms // _MIN_MS + limits.utc_offset_min) % _DAY_MIN
    start, end = limits.quiet_from_min, limits.quiet_to_min
    return start <= minute < end if start <= end else minute >= start or minute < end


def _next_quiet_edge_ms(limits: LimitsView, now_ms: int) -> int:
    now_min = now_ms // _MIN_MS
    minute = (now_min + limits.utc_offset_min) % _DAY_MIN
    waits_min = ((edge - minute) % _DAY_MIN or _DAY_MIN for edge in (limits.quiet_from_min, limits.quiet_to_min))
    return (now_min + min(waits_min)) * _MIN_MS


# --- The decision -----------------------------------------------------------------------------------------------------


class SegmentView(Protocol):
    """One stretch of a plan, `[start_ms, end_ms)`."""

    @property
    def entry_id(self) -> str: ...
    @property
    def start_ms(self) -> int: ...
    @property
    def end_ms(self) -> int: ...
    @property
    def offset_ms(self) -> int: ...
    @property
    def klass(self) -> BulletinClass: ...
    @property
    def level(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def asset(self) -> str | None: ...
    @property
    def stream(self) -> str | None: ...
    @property
    def gain_db(self) -> float: ...
    @property
    def approval(self) -> str | None: ...
    @property
    def late_at_most_ms(self) -> int | None: ...
    @property
    def tolerates_ms(self) -> int | None: ...


class PlanView(Protocol):
    """A plan in force `[valid_from_ms, valid_until_ms)`; its segments are sorted and disjoint."""

    @property
    def valid_from_ms(self) -> int: ...
    @property
    def valid_until_ms(self) -> int: ...
    @property
    def segments(self) -> Sequence[SegmentView]: ...


class AlertsView(Protocol):
    """The set of alerts of a node's places, and the stop-all latch."""

    @property
    def stop_all(self) -> object | None: ...  # the latch; None or False: released
    @property
    def alerts(self) -> Sequence[AlertView]: ...


@dataclass(frozen=True, slots=True)
class NodeState:
    """What the node knows of itself. The server, asking what a node *would* sound, says everything is ready."""

    ready_assets: AbstractSet[str] = frozenset()  # sha256 hex of the assets held and verified
    live_streams: AbstractSet[str] = frozenset()  # streams with a lease and batches in the buffer
    max_klass: BulletinClass = BulletinClass.EMERGENCY  # the gravest class the plan's key may sign
    limits: LimitsView = field(default_factory=Limits)
    is_clock_trusted: bool = True
    muted: Why | None = None  # why nothing at all may leave the amplifier now
    held: Why | None = None  # why nothing planned may sound now, emergencies apart
    barred: Mapping[tuple[str, int], Why] = field(default_factory=dict)  # (entry, start): what a step of time forbids
    given_up: AbstractSet[tuple[str, int]] = frozenset()  # (entry, start) of segments a power cut left unfinished
    uncertainty_ms: float = 0.0  # how wrong its clock may be
    turns: Mapping[str, Turn] = field(default_factory=dict)  # where it is with each alert, by its id
    alert_assets: Mapping[str, int] | None = None  # recordings of alerts -> held since; None: all that are ready
    asset_ms: Mapping[str, int] = field(default_factory=dict)  # lengths that an alert does not tell itself
    clips: AbstractSet[str] = frozenset(CLIPS)  # phrases it can say, by code
    heard: Heard | None = None  # what counts against the maximum minutes
    begun: AbstractSet[str] = frozenset()  # entries it has begun; the asker adds what `decide` let begin


class DecisionKind(enum.StrEnum):
    """What the output stage does."""

    SILENCE = "silence"
    ASSET = "asset"
    STREAM = "stream"
    ALERT = "alert"


class Why(enum.StrEnum):
    """Reason code of a decision: why this sound, or why none. Counted by nodes, shown by `explain`."""

    PLANNED = "planned"
    ALERT = "alert"
    ALERT_ASSET_MISSING = "alert_asset_missing"  # the node's own clips or tone stand in
    DRILL_CLIP_MISSING = "drill_clip_missing"  # a drill that cannot say that it is one must not sound
    STOP_ALL = "stop_all"
    NO_PLAN = "no_plan"
    CLOCK_UNKNOWN = "clock_unknown"
    CLOCK_STEPPED = "clock_stepped"  # time stepped forward over its beginning
    ALREADY_SOUNDED = "already_sounded"  # time stepped back: it sounded up to a later instant
    PLAN_NOT_YET_VALID = "plan_not_yet_valid"
    PLAN_EXPIRED = "plan_expired"
    NOTHING_PLANNED = "nothing_planned"
    CLASS_ABOVE_KEY = "class_above_key"
    QUIET_HOURS = "quiet_hours"
    DAY_MINUTES = "day_minutes"
    SESSION_MINUTES = "session_minutes"
    CLOCK_UNCERTAIN = "clock_uncertain"  # worse than this segment tolerates
    TOO_LATE = "too_late"  # it could not begin in time
    ASSET_MISSING = "asset_missing"
    STREAM_DEAD = "stream_dead"
    NO_SOURCE = "no_source"
    POWER_LOW = "power_low"  # the supply is too weak for the amplifier
    SAFE_MODE = "safe_mode"  # too many power-ons in a short time: nothing planned for a while
    NOT_ACTIVE = "not_active"  # on probation or in quarantine: nothing planned and no alert sounds
    POWER_LOST = "power_lost"  # a power cut interrupted it, and too little was left to go on


class Trouble(enum.StrEnum):
    """Why less was heard than was decided: a node's reports carry these beside the codes of `Why`."""

    HOLE = "hole"  # a batch was lost, a stretch not decoded in time
    UNDERRUN = "underrun"  # the sound card ran dry
    NO_SOUND_FROM_HORN = "no_sound_from_horn"
    NO_OUTPUT = "no_output"  # a node that verifies and decides but has no sound card
    NO_SOUND = "no_sound"
    CUT = "cut"  # it was taken back or replaced
    POWER_OFF = "power_off"
    REBOOT = "reboot"


@dataclass(frozen=True, slots=True)
class Decision:
    """What sounds now. `until_ms`: ask again then at the latest, or when plan, alerts or state change before."""

    kind: DecisionKind
    why: Why
    until_ms: int | None = None
    entry_id: str | None = None  # the segment's, also when it is refused
    alert_id: str | None = None
    asset: str | None = None
    stream: str | None = None
    offset_ms: int = 0  # position in the asset, the clip or the tone that sounds at now
    gain_db: float = 0.0
    level: int = 0
    is_drill: bool = False
    part: PartKind | None = None  # of an alert's round
    clip: str | None = None  # the phrase, by code
    round_ms: int | None = None  # when the round began
    round_end_ms: int | None = None


def alert_refusal(alert: AlertView, state: NodeState) -> Why | None:
    """Why a node will not sound an alert that is in force, or None."""
    return Why.DRILL_CLIP_MISSING if alert.drill and DRILL not in state.clips else None


def alerts_on_air(alerts: AlertsView | None, state: NodeState, now_ms: int) -> Air:
    """Whose round sounds at an instant, refused alerts left out. Stop-all is not asked here."""
    obeyed = [alert for alert in (alerts.alerts if alerts else ()) if alert_refusal(alert, state) is None]
    return on_air(obeyed, state.turns, now_ms, state.asset_ms)


def decide(plan: PlanView | None, alerts: AlertsView | None, state: NodeState, now_ms: int) -> Decision:
    """What the node sounds at `now_ms`: stop-all, else the round of an alert, else the plan's segment unless refused.

    Whether messages are signed, fresh and addressed to this node was settled when they were accepted.
    """
    if alerts is not None and alerts.stop_all:
        return Decision(DecisionKind.SILENCE, Why.STOP_ALL)
    if state.muted is not None:
        return Decision(DecisionKind.SILENCE, state.muted)
    if alerts is None or not alerts.alerts:
        return _without_alert(plan, state, now_ms)
    air = alerts_on_air(alerts, state, now_ms)
    if air.alert is not None:
        return _in_round(air, state, now_ms)
    decision = _without_alert(plan, state, now_ms)
    if air.until_ms is None or (decision.until_ms is not None and decision.until_ms <= air.until_ms):
        return decision
    return replace(decision, until_ms=air.until_ms)


def parts_of(air: Air, state: NodeState) -> tuple[Part, ...]:
    """The parts of the round on the air. A recording that came in the middle of a repetition waits for the next."""
    if air.alert is None or air.score is None:
        return ()
    held_ms = _held_since_ms(air.alert, state)
    return air.score.parts(
        [held_ms is not None and held_ms <= air.round_ms + one.start_ms for one in air.score.repetitions]
    )


def _held_since_ms(alert: AlertView, state: NodeState) -> int | None:
    if alert.asset is None or alert.asset not in state.ready_assets:
        return None
    return 0 if state.alert_assets is None else state.alert_assets.get(alert.asset)


def _in_round(air: Air, state: NodeState, now_ms: int) -> Decision:
    alert, rounds = air.alert, air.score
    assert alert is not None  # noqa: S101  the caller asked
    assert rounds is not None  # noqa: S101
    at_ms = now_ms - air.round_ms
    part = next(part for part in parts_of(air, state) if at_ms < part.end_ms)
    until_ms = air.round_ms + part.end_ms
    stands_in = alert.asset is not None and part.kind is not PartKind.ASSET
    is_message = any(one.message_ms <= at_ms < one.end_ms for one in rounds.repetitions)
    return Decision(
        DecisionKind.ALERT,
        Why.ALERT_ASSET_MISSING if stands_in and is_message else Why.ALERT,
        until_ms if air.until_ms is None else min(until_ms, air.until_ms),
        alert_id=alert.alert_id,
        asset=alert.asset if part.kind is PartKind.ASSET else None,
        offset_ms=at_ms - part.start_ms,
        level=alert.level,
        is_drill=alert.drill,
        part=part.kind,
        clip=part.clip,
        round_ms=air.round_ms,
        round_end_ms=min(air.round_ms + rounds.length_ms, alert.expires_ms),
    )


def _without_alert(plan: PlanView | None, state: NodeState, now_ms: int) -> Decision:
    if plan is None:
        return Decision(DecisionKind.SILENCE, Why.NO_PLAN)
    if not state.is_clock_trusted:
        return Decision(DecisionKind.SILENCE, Why.CLOCK_UNKNOWN)
    if now_ms < plan.valid_from_ms:
        return Decision(DecisionKind.SILENCE, Why.PLAN_NOT_YET_VALID, plan.valid_from_ms)
    if now_ms >= plan.valid_until_ms:
        return Decision(DecisionKind.SILENCE, Why.PLAN_EXPIRED)
    return _from_plan(plan, state, now_ms)


def _from_plan(plan: PlanView, state: NodeState, now_ms: int) -> Decision:
    after = bisect_right(plan.segments, now_ms, key=lambda segment: segment.start_ms)
    segment = plan.segments[after - 1] if after else None
    if segment is None or now_ms >= segment.end_ms:
        coming_ms = plan.segments[after].start_ms if after < len(plan.segments) else plan.valid_until_ms
        return Decision(DecisionKind.SILENCE, Why.NOTHING_PLANNED, min(coming_ms, plan.valid_until_ms))

    until_ms = min(segment.end_ms, plan.valid_until_ms)
    if segment.klass is not BulletinClass.EMERGENCY:
        until_ms = min(until_ms, _next_quiet_edge_ms(state.limits, now_ms))
    refused, changes_ms = _refusal(plan, segment, state, now_ms)
    if changes_ms is not None:
        until_ms = min(until_ms, changes_ms)
    if refused is not None:
        return Decision(DecisionKind.SILENCE, refused, until_ms, entry_id=segment.entry_id, level=segment.level)
    return Decision(
        DecisionKind.ASSET if segment.asset is not None else DecisionKind.STREAM,
        Why.PLANNED,
        until_ms,
        entry_id=segment.entry_id,
        asset=segment.asset,
        stream=segment.stream if segment.asset is None else None,
        offset_ms=segment.offset_ms + now_ms - segment.start_ms,
        gain_db=min(segment.gain_db, state.limits.max_gain_db),
        level=segment.level,
    )


def _refusal(plan: PlanView, segment: SegmentView, state: NodeState, now_ms: int) -> tuple[Why | None, int | None]:
    """Why a node will not sound a segment of its own valid plan, or None; and when that may change by itself.

    The order is the order of gravity.
    """
    if state.held is not None and segment.klass is not BulletinClass.EMERGENCY:
        return state.held, None
    if (segment.entry_id, segment.start_ms) in state.given_up:
        return Why.POWER_LOST, None
    barred = state.barred.get((segment.entry_id, segment.start_ms))
    if barred is not None:
        return barred, None
    if segment.klass.severity > state.max_klass.severity:
        return Why.CLASS_ABOVE_KEY, None
    if segment.klass is not BulletinClass.EMERGENCY and is_quiet(state.limits, now_ms):
        return Why.QUIET_HOURS, None
    if segment.tolerates_ms is not None and state.uncertainty_ms > segment.tolerates_ms:
        return Why.CLOCK_UNCERTAIN, None
    latest_ms = _latest_ms(plan, segment, state)
    if latest_ms is not None and now_ms > latest_ms:
        return Why.TOO_LATE, None
    missing = _missing(segment, state)
    if missing is not None:
        return missing, None if latest_ms is None else latest_ms + 1
    return _over_minutes(segment, state, now_ms)


def _missing(segment: SegmentView, state: NodeState) -> Why | None:
    if segment.asset is not None:
        return None if segment.asset in state.ready_assets else Why.ASSET_MISSING
    if segment.stream is not None:
        return None if segment.stream in state.live_streams else Why.STREAM_DEAD
    return Why.NO_SOURCE


def _latest_ms(plan: PlanView, segment: SegmentView, state: NodeState) -> int | None:
    """The last instant at which an entry may begin, counted from its first segment; None: it has begun, or no limit."""
    if segment.late_at_most_ms is None or segment.entry_id in state.begun:
        return None
    first_ms = next((one.start_ms for one in plan.segments if one.entry_id == segment.entry_id), segment.start_ms)
    return first_ms + segment.late_at_most_ms


def _over_minutes(segment: SegmentView, state: NodeState, now_ms: int) -> tuple[Why | None, int | None]:
    """Whether the maximum minutes of day or session are used up, and when that changes if it sounds on."""
    limits, heard = state.limits, state.heard
    if segment.klass is BulletinClass.EMERGENCY or (limits.max_day_min is None and limits.max_session_min is None):
        return None, None
    heard = heard or Heard(segment.start_ms, last_ms=segment.start_ms)
    base_ms = min(now_ms, max(heard.at_ms, segment.start_ms))  # from here on it is taken to sound: it is rendered ahead
    midnight_ms = _midnight_ms(limits, now_ms)
    changes_ms = midnight_ms + _DAY_MIN * _MIN_MS
    if limits.max_day_min is not None:
        used_ms = now_ms - max(base_ms, midnight_ms) + (heard.day_ms if heard.last_ms >= midnight_ms else 0)
        left_ms = limits.max_day_min * _MIN_MS - used_ms
        if left_ms <= 0:
            return Why.DAY_MINUTES, changes_ms
        changes_ms = min(changes_ms, now_ms + left_ms)
    if limits.max_session_min is not None:
        allowed_ms = limits.max_session_min * _MIN_MS
        used_ms = 0 if base_ms - heard.last_ms >= SESSION_GAP_MS else heard.session_ms
        if used_ms >= allowed_ms:
            base_ms, used_ms = heard.last_ms + SESSION_GAP_MS, 0
            if now_ms < base_ms:
                return Why.SESSION_MINUTES, min(changes_ms, base_ms)
        phase_ms = (now_ms - base_ms + used_ms) % (allowed_ms + SESSION_GAP_MS)
        if phase_ms >= allowed_ms:
            return Why.SESSION_MINUTES, min(changes_ms, now_ms + allowed_ms + SESSION_GAP_MS - phase_ms)
        changes_ms = min(changes_ms, now_ms + allowed_ms - phase_ms)
    return None, changes_ms


def _midnight_ms(limits: LimitsView, now_ms: int) -> int:
    """When the local day of an instant began."""
    shift_ms = limits.utc_offset_min * _MIN_MS
    day_ms = _DAY_MIN * _MIN_MS
    return (now_ms + shift_ms) // day_ms * day_ms - shift_ms


def count_heard(limits: LimitsView, heard: Heard | None, start_ms: int, end_ms: int) -> Heard:
    """What counts after it sounded in `[start_ms, end_ms)`: a new local day and a silence of 15 min begin at 0."""
    before = heard or Heard()
    is_new_session = start_ms - before.last_ms >= SESSION_GAP_MS
    midnight_ms = _midnight_ms(limits, end_ms)
    today_ms = end_ms - max(start_ms, midnight_ms)
    return Heard(
        at_ms=end_ms,
        day_ms=today_ms + (before.day_ms if before.last_ms >= midnight_ms else 0),
        session_ms=end_ms - start_ms + (0 if is_new_session else before.session_ms),
        last_ms=end_ms,
    )
