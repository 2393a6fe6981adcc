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
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol

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


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits a node has before anyone configured it: the strict ones. Minutes of the local day."""

    quiet_from_min: int = 22 * 60
    quiet_to_min: int = 5 * 60
    utc_offset_min: int = 7 * 60
    max_gain_db: float = 0.0


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


class PlanView(Protocol):
    """A plan in force `[valid_from_ms, valid_until_ms)`; its segments are sorted and disjoint."""

    @property
    def valid_from_ms(self) -> int: ...
    @property
    def valid_until_ms(self) -> int: ...
    @property
    def segments(self) -> Sequence[SegmentView]: ...


class AlertView(Protocol):
    """An emergency, in force from the moment it is known (a slow clock must not delay it) until `expires_ms`."""

    @property
    def alert_id(self) -> str: ...
    @property
    def level(self) -> int: ...
    @property
    def issued_ms(self) -> int: ...
    @property
    def expires_ms(self) -> int: ...
    @property
    def asset(self) -> str | None: ...
    @property
    def drill(self) -> bool: ...


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
    finished_alerts: AbstractSet[str] = frozenset()  # alerts sounded to their end and not to be repeated now
    muted: Why | None = None  # why nothing at all may leave the amplifier now
    held: Why | None = None  # why nothing planned may sound now, emergencies apart
    given_up: AbstractSet[tuple[str, int]] = frozenset()  # (entry, start) of segments a power cut left unfinished


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
    ALERT_ASSET_MISSING = "alert_asset_missing"  # the node's own attention tone stands in
    STOP_ALL = "stop_all"
    NO_PLAN = "no_plan"
    CLOCK_UNKNOWN = "clock_unknown"
    PLAN_NOT_YET_VALID = "plan_not_yet_valid"
    PLAN_EXPIRED = "plan_expired"
    NOTHING_PLANNED = "nothing_planned"
    CLASS_ABOVE_KEY = "class_above_key"
    QUIET_HOURS = "quiet_hours"
    ASSET_MISSING = "asset_missing"
    STREAM_DEAD = "stream_dead"
    NO_SOURCE = "no_source"
    POWER_LOW = "power_low"  # the supply is too weak for the amplifier
    SAFE_MODE = "safe_mode"  # too many power-ons in a short time: nothing planned for a while
    POWER_LOST = "power_lost"  # a power cut interrupted it, and too little was left to go on


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
    offset_ms: int = 0  # position in the asset that sounds at now
    gain_db: float = 0.0
    level: int = 0
    is_drill: bool = False


def alert_in_force(alerts: AlertsView | None, finished: AbstractSet[str], now_ms: int) -> AlertView | None:
    """The alert to sound: the highest level, of these the newest, and never one that expired or is finished."""
    inforce = [a for a in (alerts.alerts if alerts else ()) if now_ms < a.expires_ms and a.alert_id not in finished]
    return max(inforce, key=lambda a: (a.level, a.issued_ms, a.alert_id), default=None)


def decide(plan: PlanView | None, alerts: AlertsView | None, state: NodeState, now_ms: int) -> Decision:
    """What the node sounds at `now_ms`: stop-all, else the gravest alert, else the plan's segment unless refused.

    Whether messages are signed, fresh and addressed to this node was settled when they were accepted.
    """
    if alerts is not None and alerts.stop_all:
        return Decision(DecisionKind.SILENCE, Why.STOP_ALL)
    if state.muted is not None:
        return Decision(DecisionKind.SILENCE, state.muted)
    alert = alert_in_force(alerts, state.finished_alerts, now_ms)
    if alert is not None:
        is_ready = alert.asset in state.ready_assets
        return Decision(
            DecisionKind.ALERT,
            Why.ALERT if is_ready else Why.ALERT_ASSET_MISSING,
            alert.expires_ms,
            alert_id=alert.alert_id,
            asset=alert.asset if is_ready else None,
            offset_ms=max(0, now_ms - alert.issued_ms),
            level=alert.level,
            is_drill=alert.drill,
        )
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
    refused = _refusal(segment, state, now_ms)
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


def _refusal(segment: SegmentView, state: NodeState, now_ms: int) -> Why | None:
    """Why a node will not sound a segment of its own valid plan, or None. The order is the order of gravity."""
    if state.held is not None and segment.klass is not BulletinClass.EMERGENCY:
        return state.held
    if (segment.entry_id, segment.start_ms) in state.given_up:
        return Why.POWER_LOST
    if segment.klass.severity > state.max_klass.severity:
        return Why.CLASS_ABOVE_KEY
    if segment.klass is not BulletinClass.EMERGENCY and is_quiet(state.limits, now_ms):
        return Why.QUIET_HOURS
    if segment.asset is not None:
        return None if segment.asset in state.ready_assets else Why.ASSET_MISSING
    if segment.stream is not None:
        return None if segment.stream in state.live_streams else Why.STREAM_DEAD
    return Why.NO_SOURCE
