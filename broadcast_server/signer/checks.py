"""What may be signed, decided from what was asked and what the rows say; pure, so that every rule is a table to test.

The server that asks is not believed: each check here holds one request against rows that were read by the signer
itself. A check answers with a reason code, or None. A maintainer must not break: nothing here may refuse what an honest
planner makes of the same rows, or a province falls silent; both therefore read entries by `store.schedules`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from pydantic import ValidationError

from broadcast_server.domain import policy as policies
from broadcast_server.domain.clock import from_ms, to_ms
from broadcast_server.domain.policy import QuietHours, StationPolicy
from broadcast_server.signer.port import SignRequest
from broadcast_server.store.schedules import ScheduledEntry
from speaker_protocol.messages import AlertBody, AlertSetBody, NodeConfigBody, PlanAsset, PlanBody, PlanSegment
from speaker_protocol.rules import BulletinClass
from speaker_protocol.signing import Kind

CLOCK_TOLERANCE: Final = timedelta(minutes=2)
"""How far an issue instant may lie from the signer's own clock."""
LONGEST: Final = {
    Kind.PLAN: timedelta(days=40),
    Kind.CONFIG: timedelta(days=31),
    Kind.ORDER: timedelta(days=8),
    Kind.ALERTS: timedelta(days=31),
    Kind.HEAD: timedelta(minutes=1),
}
"""Longest life of an envelope."""
IN_ANY_DOUBT: Final = frozenset({Kind.HEAD, Kind.ALERTS})
"""Signed even where the server's clock and ours are apart: what sounds goes on, a warning waits for no clock."""
BY_CLOCK: Final = frozenset({Kind.HEAD})
"""Kinds that take their place in the order from the clock, all others from the stored counter."""
OVERLOOKED: Final = timedelta(seconds=10)
"""A set may lack an alert that was launched so lately: who made the set had looked before."""
_SILENCED: Final = frozenset({policies.Code.QUIET_HOURS, policies.Code.SUSPENDED})


class Fault(StrEnum):
    """Why something is not signed; each value is a code of the catalogue."""

    EPOCH_OLD = "signer_epoch_old"
    EPOCH_AHEAD = "signer_epoch_ahead"
    NUMBER_NOT_GIVEN = "signer_number_not_given"
    CLOCK_APART = "signer_clock_apart"
    LIVES_TOO_LONG = "signer_lives_too_long"
    UNREADABLE = "signer_unreadable"
    PLACE_DIFFERS = "signer_place_differs"
    LIMITS_DIFFER = "signer_limits_differ"
    ENTRY_UNKNOWN = "signer_entry_unknown"
    CONTENT_NOT_APPROVED = "signer_content_not_approved"
    OUTSIDE_ENTRY = "signer_outside_entry"
    CLASS_DIFFERS = "signer_class_differs"
    CLASS_ABOVE_APPROVAL = "signer_class_above_approval"
    CONTENT_DIFFERS = "signer_content_differs"
    ASSET_UNKNOWN = "signer_asset_unknown"
    QUIET_HOURS = "signer_quiet_hours"
    SUSPENDED = "signer_suspended"
    NOT_ADDRESSED = "signer_not_addressed"
    ALERT_UNKNOWN = "signer_alert_unknown"
    ALERT_DIFFERS = "signer_alert_differs"
    ALERT_MISSING = "signer_alert_missing"
    EMERGENCY_UNKNOWN = "signer_emergency_unknown"
    LATCH_UNKNOWN = "signer_latch_unknown"
    LATCH_MISSING = "signer_latch_missing"
    ORDER_UNKNOWN = "signer_order_unknown"
    STREAM_UNKNOWN = "signer_stream_unknown"
    LIMITED = "signer_limited"


# -- every request ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fence:
    """Who leads and how far the counter came, as stored. `epoch` 0: nobody ever led."""

    epoch: int
    last_number: int


def frame_fault(request: SignRequest, fence: Fence, clocks: Sequence[datetime]) -> Fault | None:
    """Why nothing of this order and these instants is signed. `clocks`: what may be the time."""
    if request.epoch < fence.epoch:
        return Fault.EPOCH_OLD
    if request.epoch > max(fence.epoch, 1):
        return Fault.EPOCH_AHEAD
    if request.kind not in BY_CLOCK and not 0 < request.sequence <= fence.last_number:
        return Fault.NUMBER_NOT_GIVEN
    issued = from_ms(request.issued_ms)
    if request.kind not in IN_ANY_DOUBT and all(abs(issued - clock) > CLOCK_TOLERANCE for clock in clocks):
        return Fault.CLOCK_APART
    if request.kind in BY_CLOCK and request.sequence > request.issued_ms + 60_000:
        return Fault.NUMBER_NOT_GIVEN
    if request.expires_ms - request.issued_ms > LONGEST.get(request.kind, timedelta(0)) / _MS:
        return Fault.LIVES_TOO_LONG
    return None


_MS: Final = timedelta(milliseconds=1)


# -- plans ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sound:
    """A segment as `policy.check` wants it."""

    entry_id: str
    start: datetime
    end: datetime
    klass: BulletinClass
    gain_db: float


def segment_fault(segment: PlanSegment, entry: ScheduledEntry | None, ceiling: BulletinClass | None) -> Fault | None:
    """Why this stretch of sound has no ground in the rows. `ceiling`: the highest class its content is approved for."""
    if entry is None:
        return Fault.ENTRY_UNKNOWN
    if entry.blocked is not None:
        return Fault.CONTENT_NOT_APPROVED
    if segment.start_ms < to_ms(entry.entry.start) or segment.end_ms > to_ms(entry.entry.end):
        return Fault.OUTSIDE_ENTRY
    if segment.klass is not entry.klass or segment.level != entry.entry.level:
        return Fault.CLASS_DIFFERS
    if ceiling is None or segment.klass.severity > ceiling.severity:
        return Fault.CLASS_ABOVE_APPROVAL
    asset = None if entry.asset is None else entry.asset.sha256
    told = (segment.source, segment.asset, segment.stream, segment.approval, segment.gain_db, segment.late_at_most_ms)
    if told != (
        entry.entry.source,
        asset,
        entry.stream_id,
        entry.approval,
        entry.gain_db,
        entry.entry.late.at_most_ms,
    ):
        return Fault.CONTENT_DIFFERS
    if entry.asset is not None and segment.offset_ms * _MS >= entry.asset.duration and segment.offset_ms:
        return Fault.CONTENT_DIFFERS
    return None


def asset_fault(asset: PlanAsset, entries: Mapping[str, ScheduledEntry]) -> Fault | None:
    """Why a plan may not make its nodes fetch this. `entries` by the hash of what they sound."""
    entry = entries.get(asset.sha256)
    if entry is None or entry.asset is None:
        return Fault.ASSET_UNKNOWN
    if (asset.size_bytes, asset.duration_ms) != (entry.asset.size_bytes, entry.asset.duration // _MS):
        return Fault.ASSET_UNKNOWN
    return None


@dataclass(slots=True)
class BodyVerdict:
    """What the rows say of one shared plan body, before it is asked for whom it is."""

    faults: dict[str, Fault]
    """Reason by entry."""
    entries: Mapping[str, ScheduledEntry]
    sounds: tuple[Sound, ...]
    heard_by: frozenset[str] | None = None
    """The clusters that every entry is for, once that was asked."""
    _broken: dict[tuple[StationPolicy, tuple[QuietHours, ...]], dict[str, Fault]] = field(default_factory=dict)

    def broken_rules(self, policy: StationPolicy, quiet: tuple[QuietHours, ...]) -> dict[str, Fault]:
        """Entries that would sound when nothing may, by a station's rules; emergencies may always."""
        known = self._broken.get((policy, quiet))
        if known is None:
            known = self._broken[policy, quiet] = {
                violation.entry_id: Fault(f"signer_{violation.code.value}")
                for violation in policies.check(self.sounds, policy, quiet=quiet)
                if violation.code in _SILENCED
            }
        return known


def judge_body(
    body: PlanBody, entries: Mapping[str, ScheduledEntry], ceilings: Mapping[str, BulletinClass]
) -> BodyVerdict:
    """Every segment against its entry. `ceilings`: the highest approved class by entry."""
    faults: dict[str, Fault] = {}
    for segment in body.segments:
        fault = segment_fault(segment, entries.get(segment.entry_id), ceilings.get(segment.entry_id))
        if fault is not None:
            faults.setdefault(segment.entry_id, fault)
    used = {segment.entry_id: entries[segment.entry_id] for segment in body.segments if segment.entry_id in entries}
    by_hash = {entry.asset.sha256: entry for entry in used.values() if entry.asset is not None}
    for asset in body.assets:
        fault = asset_fault(asset, by_hash)
        if fault is not None:
            faults.setdefault(asset.sha256, fault)
    return BodyVerdict(
        faults,
        used,
        tuple(
            Sound(one.entry_id, from_ms(one.start_ms), from_ms(one.end_ms), one.klass, one.gain_db)
            for one in body.segments
        ),
    )


# -- configurations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Where a node sits and by which rules, as stored."""

    path: tuple[str, ...]
    cluster_id: str
    is_active: bool
    """Whether it may sound at all."""
    groups: tuple[str, ...]
    policy: StationPolicy
    settings: Mapping[str, Any]
    """The cluster's own."""


def config_fault(body: NodeConfigBody, facts: NodeFacts) -> Fault | None:
    """Why a node may not be told to behave so: its place and its limits are what the rows say, no wider, no tighter."""
    place = (body.path, body.cluster, tuple(sorted(body.groups)), body.active)
    if place != (facts.path, facts.cluster_id, facts.groups, facts.is_active):
        return Fault.PLACE_DIFFERS
    policy = facts.policy
    limits = (body.quiet_from_min, body.quiet_to_min, body.max_gain_db, body.max_day_min, body.max_session_min)
    if limits != (
        policy.quiet.from_min,
        policy.quiet.to_min,
        policy.max_gain_db,
        policy.max_minutes_per_day,
        policy.max_minutes_per_session,
    ):
        return Fault.LIMITS_DIFFER
    own = {name: getattr(body, name) for name in ("alert_gain_db", "volume", "delay_trim_ms")}
    if own not in (_own_settings(body, facts.settings), _own_settings(body, {})):
        return Fault.LIMITS_DIFFER
    return None


def _own_settings(body: NodeConfigBody, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a cluster's settings ask for; None where they are nonsense (its nodes are then told nothing of them)."""
    told = {
        "alert_gain_db": settings.get("alert_gain_db"),
        "volume": settings.get("volume", ()),
        "delay_trim_ms": settings.get("delay_trim_ms", 0),
    }
    try:
        made = NodeConfigBody(path=body.path, cluster=body.cluster, assets_url="", **told)
    except ValidationError:
        return None
    return {name: getattr(made, name) for name in told}


# -- alerts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AlertFacts:
    """One alert of a unit as its rows have it. `fault`: why its emergency has no ground, None for a good one."""

    body: Mapping[str, Any]
    fault: str | None
    launched_at: datetime


def alert_faults(
    said: AlertSetBody,
    alerts: Sequence[AlertFacts],
    latch: tuple[str, datetime] | None,
    now: datetime,
) -> dict[str, str]:
    """Reason by alert (or latch) id: why this is not what is in force for the unit. Empty: it is."""
    faults: dict[str, str] = {}
    known: dict[str, tuple[AlertBody, AlertFacts]] = {}
    for one in alerts:
        try:
            body = AlertBody.model_validate(one.body)
        except ValidationError:
            continue  # nobody can say it, so nobody must
        known[body.alert_id] = (body, one)
    for alert in said.alerts:
        found = known.pop(alert.alert_id, None)
        if found is None:
            faults[alert.alert_id] = Fault.ALERT_UNKNOWN
        elif found[0] != alert:
            faults[alert.alert_id] = Fault.ALERT_DIFFERS
        elif found[1].fault is not None:
            faults[alert.alert_id] = found[1].fault
    for alert_id, (_, one) in known.items():
        if one.fault is None and one.launched_at < now - OVERLOOKED:
            faults[alert_id] = Fault.ALERT_MISSING
    if said.stop_all is not None and (
        latch is None or (said.stop_all.latch_id, said.stop_all.since_ms) != (latch[0], to_ms(latch[1]))
    ):
        faults[said.stop_all.latch_id] = Fault.LATCH_UNKNOWN
    if said.stop_all is None and latch is not None and latch[1] < now - OVERLOOKED:
        faults[latch[0]] = Fault.LATCH_MISSING
    return faults


def first_of(faults: Mapping[str, str], most: int = 50) -> dict[str, str]:
    """As many as an answer carries."""
    return {name: str(fault) for name, fault in sorted(faults.items())[:most]}


def outside(places: Collection[str], paths: Mapping[str, Sequence[str]], root: str) -> list[str]:
    """Which of `places` do not lie under `root`. `paths`: each place and what lies above it."""
    return sorted(place for place in places if root not in paths.get(place, ()))
