"""From rows to plans: entries for every set of clusters that hears the same, resolved, guarded and packed once per set.

A maintainer must not break: (1) a plan's window starts at local midnight of today and is clipped from a sweep that
began a day earlier, so a plan changes only when something that sounds changes, and once a day; (2) everything that
will not sound as asked comes out as a named conflict: blocked content, a dropped entry, a refusal by policy, a plan
too large for one packet; (3) what did not change is not computed again: places and seats are kept while `fleet_mark`
holds, a target set's plan while its entries are equal; (4) rows that make no sense silence their own schedule, named,
and nobody else's.

`plan` runs inside one reading snapshot, on the store's executor; it keeps memory between calls, so one planner serves
one caller at a time.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time, timedelta
from typing import Any, Final

from broadcast_server.domain import policy as policies
from broadcast_server.domain import precedence, stagger, timeline
from broadcast_server.domain.clock import LOCAL, Window, from_ms, to_ms
from broadcast_server.domain.errors import BroadcastError, Corrupt, Invalid
from broadcast_server.domain.places import PlaceTree, Target, clusters_of
from broadcast_server.domain.plan import Plan, PlanAsset, PlanSegment
from broadcast_server.domain.policy import QuietHours, StationPolicy
from broadcast_server.logs import get_logger
from broadcast_server.playout import wire
from broadcast_server.store import places, plans, schedules, stations
from broadcast_server.store.plans import Seat
from broadcast_server.store.schedules import Fault, ScheduledEntry
from broadcast_server.store.session import Session
from broadcast_server.store.words import ConflictKind

log = get_logger()

LEAD_IN: Final = timedelta(days=1)
BARRED_FOR: Final = timedelta(minutes=1)
"""So long what the signer refused is left out of the very body it refused; then it is asked again."""

_Targets = tuple[tuple[Target, ...], ...]


@dataclass(frozen=True, slots=True)
class Trouble:
    """An entry that will not sound as asked, for whom, and why."""

    kind: ConflictKind
    schedule_id: str
    unit_id: str
    entry_id: str
    affects_from: datetime
    until: datetime
    """End of the entry's window: a trouble of the past is nobody's any more."""
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TargetPlan:
    """One plan and the nodes that share it."""

    plan: Plan
    packed: bytes
    sha256: str
    seats: tuple[Seat, ...]


@dataclass(frozen=True, slots=True)
class TargetSet:
    """Nodes that hear the same under the same rules: targets they fall under, policy, quiet hours of their own.

    A node that is not active hears nothing.
    """

    targets: _Targets
    policy: StationPolicy
    quiet: tuple[QuietHours, ...]
    shift: timedelta
    """How much later recorded entries begin here (`domain.stagger`)."""
    seats: tuple[Seat, ...]


@dataclass(slots=True)
class Fleet:
    """Places and seats, kept while their mark holds."""

    mark: tuple[object, ...]
    on: date
    tree: PlaceTree
    seats: tuple[Seat, ...]
    clusters: Mapping[str, str]
    groups: Mapping[str, Iterable[str]]
    policies: Mapping[str, StationPolicy]
    """The policy in force for each unit that has seats."""
    _reached: dict[tuple[Target, ...], frozenset[str]] = field(default_factory=dict)
    _sets: tuple[_Targets, tuple[TargetSet, ...]] | None = None

    def sets_of(self, named: _Targets) -> tuple[TargetSet, ...]:
        """The seats, parted by which of the `named` targets they fall under; kept while the names stay the same."""
        if self._sets is None or self._sets[0] != named:
            self._sets = (named, self._part(named))
        return self._sets[1]

    def _part(self, named: _Targets) -> tuple[TargetSet, ...]:
        of_cluster: dict[str, list[tuple[Target, ...]]] = {}
        for targets in named:
            if targets not in self._reached:
                self._reached[targets] = self._reach(targets)
            for cluster in self._reached[targets]:
                of_cluster.setdefault(cluster, []).append(targets)
        seated: dict[tuple[_Targets, StationPolicy, tuple[QuietHours, ...], timedelta], list[Seat]] = {}
        for seat in self.seats:
            policy = self.policies[seat.unit_id]
            quiet = (*policy.quiet_of(seat.cluster_id)[1:], *stations.quiet_of(seat))
            shift = stagger.shift_of(seat.config.get("stagger_slot", 0), policy.stagger_s)
            hears = of_cluster.get(seat.cluster_id, ()) if seat.is_active else ()
            seated.setdefault((tuple(hears), policy, quiet, shift), []).append(seat)
        return tuple(TargetSet(*key, tuple(seats)) for key, seats in seated.items())

    def _reach(self, targets: tuple[Target, ...]) -> frozenset[str]:
        """The clusters these targets mean; one that is gone (a retired cluster, a dissolved group) means none."""
        found: set[str] = set()
        for target in targets:
            try:
                found |= clusters_of((target,), self.tree, self.clusters, self.groups, self.on)
            except Invalid as gone:
                log.info("target.gone", kind=target.kind.value, ref=target.ref, code=gone.code)
        return frozenset(found)


@dataclass(frozen=True, slots=True)
class Desired:
    """What should be: the output of one planning."""

    window: Window
    targets: tuple[TargetPlan, ...]
    entries: Mapping[str, ScheduledEntry]
    troubles: tuple[Trouble, ...]
    fleet: Fleet

    def next_edge(self, now: datetime) -> datetime | None:
        """The next instant after `now` at which something begins or ends."""
        edges = []
        for target in self.targets:
            segments = target.plan.segments  # in order and disjoint, so are their ends
            coming = bisect_right(segments, now, key=_end_of)
            if coming < len(segments):
                first = segments[coming]
                edges.append(first.start if first.start > now else first.end)
        return min(edges, default=None)


def _end_of(segment: PlanSegment) -> datetime:
    return segment.end


@dataclass(frozen=True, slots=True)
class _Known:
    """A set's last result and what it was made of."""

    entries: tuple[ScheduledEntry, ...]
    plan: Plan
    packed: bytes
    sha256: str
    troubles: tuple[Trouble, ...]


class Planner:
    """Turns what operators want into what nodes shall do."""

    def __init__(self, *, plan_days: int, limit_bytes: int = wire.PLAN_LIMIT_BYTES) -> None:
        """`plan_days`: days of plan that nodes hold, today included. `limit_bytes`: largest packed body."""
        self._plan_days, self._limit_bytes = plan_days, limit_bytes
        self._fleet: Fleet | None = None
        self._known: dict[tuple[object, ...], _Known] = {}
        self._expander = schedules.Expander()
        self._barred: dict[str, tuple[Mapping[str, str], datetime]] = {}

    def bar(self, sha256: str, names: Mapping[str, str], now: datetime) -> None:
        """The signer refused a body because of these: reason by entry (or asset). The next plan is without them."""
        self._barred[sha256] = (dict(names), now + BARRED_FOR)

    def window(self, now: datetime) -> Window:
        """From local midnight of today, `plan_days` days."""
        midnight = datetime.combine(now.astimezone(LOCAL).date(), time(0), LOCAL)
        return Window(
            midnight.astimezone(now.tzinfo), (midnight + timedelta(days=self._plan_days)).astimezone(now.tzinfo)
        )

    def plan(self, session: Session, now: datetime) -> Desired:
        """Everything that should sound in the window, for every node there is."""
        window = self.window(now)
        self._barred = {sha256: barred for sha256, barred in self._barred.items() if barred[1] > now}
        fleet = self._look_at_fleet(session, now)
        entries = self._expander.load(session, Window(window.start - LEAD_IN, window.end), now)
        bundles, troubles = _bundle(entries, now)
        troubles += (_fault(schedule_id, fault, now) for schedule_id, fault in self._expander.faults.items())
        known: dict[tuple[object, ...], _Known] = {}
        targets = []
        for target_set in fleet.sets_of(tuple(bundles)):
            mine = tuple(entry for targets_named in target_set.targets for entry in bundles[targets_named])
            memo = (window, target_set.targets, target_set.policy, target_set.quiet, target_set.shift)
            before = self._known.get(memo)
            if before is not None and before.entries == mine:
                made = before
            else:
                try:
                    made = _make_guarded(mine, window, target_set, self._limit_bytes)
                except BroadcastError as error:  # these nodes keep what they have; nobody else waits for them
                    log.error("plan.impossible", nodes=len(target_set.seats), code=error.code, facts=error.facts)  # noqa: TRY400
                    continue
            known[memo] = made
            made = self._allowed(made, window)
            troubles += (trouble for trouble in made.troubles if trouble.until > now)
            targets.append(TargetPlan(made.plan, made.packed, made.sha256, target_set.seats))
        self._known = known
        return Desired(
            window=window,
            targets=tuple(targets),
            entries={entry.entry.id: entry for entry in entries},
            troubles=tuple(troubles),
            fleet=fleet,
        )

    def _allowed(self, made: _Known, window: Window) -> _Known:
        while made.sha256 in self._barred:
            fewer = _without(made, self._barred[made.sha256][0], window)
            if fewer.sha256 == made.sha256:
                break  # it is not about any of its entries
            made = fewer
        return made

    # -- who hears what

    def _look_at_fleet(self, session: Session, now: datetime) -> Fleet:
        on = places.local_date(now)
        mark = (on, *plans.fleet_mark(session))
        if self._fleet is not None and self._fleet.mark == mark:
            return self._fleet
        try:
            tree = places.load_tree(session)
        except BroadcastError as error:
            if self._fleet is None:
                raise
            log.error("places.contradict", code=error.code, facts=error.facts)  # noqa: TRY400  it is told, not traced
            return self._fleet  # as they were before somebody broke them
        seats = plans.seats(session)
        self._fleet = Fleet(
            mark=mark,
            on=on,
            tree=tree,
            seats=seats,
            clusters=places.cluster_units(session),
            groups=places.groups_of(session),
            policies=stations.policies_in_force(session, {seat.unit_id for seat in seats}, tree, on),
        )
        return self._fleet


def _bundle(
    entries: Sequence[ScheduledEntry], now: datetime
) -> tuple[dict[tuple[Target, ...], list[ScheduledEntry]], list[Trouble]]:
    """Entries by the exact targets they name; what is blocked comes out as trouble."""
    bundles: dict[tuple[Target, ...], list[ScheduledEntry]] = {}
    by_identity: dict[int, list[ScheduledEntry]] = {}  # the entries of one schedule share one tuple of targets
    troubles: list[Trouble] = []
    for entry in entries:
        if entry.blocked is not None:
            if entry.entry.end > now and entry.blocked.kind in plans.PLANNED_CONFLICTS:
                troubles.append(_trouble(entry, entry.blocked.kind, entry.blocked.facts))
            continue
        bundle = by_identity.get(id(entry.targets))
        if bundle is None:
            bundle = by_identity[id(entry.targets)] = bundles.setdefault(entry.targets, [])
        bundle.append(entry)
    return bundles, troubles


def _make_guarded(
    entries: tuple[ScheduledEntry, ...],
    window: Window,
    rules_of: TargetSet,
    limit_bytes: int,
) -> _Known:
    """`_make`; where it fails, without the schedules that fail alone, each of them named."""
    try:
        return _make(entries, window, rules_of, limit_bytes)
    except BroadcastError as error:
        by_schedule: dict[str, list[ScheduledEntry]] = {}
        for entry in entries:
            by_schedule.setdefault(entry.schedule_id, []).append(entry)
        good: list[ScheduledEntry] = []
        troubles: list[Trouble] = []
        for own in by_schedule.values():
            try:
                _make(tuple(own), window, rules_of, limit_bytes)
            except BroadcastError as fault:
                facts = {**fault.facts, "reason": fault.code}
                troubles.append(_trouble(own[0], ConflictKind.ENTRY_DROPPED, facts, until=own[-1].entry.end))
            else:
                good += own
        if not troubles:
            raise Corrupt("plan_contradicts", cause=error.code) from error
        order = {entry.entry.id: number for number, entry in enumerate(entries)}
        made = _make(tuple(sorted(good, key=lambda one: order[one.entry.id])), window, rules_of, limit_bytes)
        return replace(made, entries=entries, troubles=(*troubles, *made.troubles))


def _make(
    entries: tuple[ScheduledEntry, ...],
    window: Window,
    rules_of: TargetSet,
    limit_bytes: int,
) -> _Known:
    """One target set's plan: resolved, held against the station's policy, packed, small enough to be sent."""
    by_id = {entry.entry.id: entry for entry in entries}
    lines, unmoved = _staggered(entries, rules_of.shift)
    resolution = timeline.resolve(lines, window)
    troubles = [*unmoved]
    troubles += [
        _trouble(by_id[dropped.entry_id], ConflictKind.ENTRY_DROPPED, _why(dropped, by_id, resolution))
        for dropped in resolution.dropped
    ]
    segments = [_segment(by_id[segment.entry_id], segment) for segment in resolution.segments]
    forbidden = set()
    for violation in policies.check(segments, rules_of.policy, quiet=rules_of.quiet):
        entry = by_id[violation.entry_id]
        facts = {"code": violation.code.value, **violation.facts}
        troubles.append(_trouble(entry, ConflictKind.REFUSED_BY_POLICY, facts))
        if violation.code in _SILENCED:
            forbidden.add(violation.entry_id)
    allowed = tuple(segment for segment in segments if segment.entry_id not in forbidden)
    plan, packed = _packed(allowed[: wire.MAX_SEGMENTS], by_id, window)
    if len(allowed) > wire.MAX_SEGMENTS or not wire.fits(packed, limit_bytes=limit_bytes):
        plan, packed = _trimmed(allowed[: wire.MAX_SEGMENTS], by_id, window, limit_bytes)
        troubles += _cut_off(allowed, len(plan.segments), by_id)
    return _Known(
        entries=entries,
        plan=plan,
        packed=packed,
        sha256=hashlib.sha256(packed).hexdigest(),
        troubles=tuple(troubles),
    )


def _without(made: _Known, names: Mapping[str, str], window: Window) -> _Known:
    """The plan without what the signer refused, each entry named. Raises nothing: a part of a good plan is one."""
    by_id = {entry.entry.id: entry for entry in made.entries}
    gone: dict[str, str] = {}
    for segment in made.plan.segments:
        reason = names.get(segment.entry_id) or names.get(segment.asset or "")
        if reason is not None:
            gone.setdefault(segment.entry_id, reason)
    kept = tuple(segment for segment in made.plan.segments if segment.entry_id not in gone)
    plan, packed = _packed(kept, by_id, window)
    log.error("plan.refused_by_signer", entries=dict(sorted(gone.items())[:20]))
    troubles = [
        _trouble(by_id[entry_id], ConflictKind.ENTRY_DROPPED, {"reason": reason}) for entry_id, reason in gone.items()
    ]
    return _Known(made.entries, plan, packed, hashlib.sha256(packed).hexdigest(), (*made.troubles, *troubles))


def _staggered(entries: tuple[ScheduledEntry, ...], shift: timedelta) -> tuple[list[timeline.Entry], Iterable[Trouble]]:
    """Each entry as it is due in these clusters, and those that their own window keeps where they are."""
    if not shift:
        return [each.entry for each in entries], ()
    moved = [stagger.staggered(each.entry, shift) for each in entries]
    facts = {"shift_s": int(shift.total_seconds()), "fix": "allow_waiting"}
    return (
        [each.entry if late is None else late for each, late in zip(entries, moved, strict=True)],
        [
            _trouble(each, ConflictKind.NOT_STAGGERED, facts)
            for each, late in zip(entries, moved, strict=True)
            if late is None
        ],
    )


def _packed(
    segments: tuple[PlanSegment, ...], by_id: Mapping[str, ScheduledEntry], window: Window
) -> tuple[Plan, bytes]:
    plan = Plan(
        target_set="",
        valid_from=window.start,
        valid_until=window.end,
        segments=segments,
        assets=_assets(by_id[segment.entry_id] for segment in segments),
    )
    return plan, wire.pack_plan(plan)


def _trimmed(
    segments: tuple[PlanSegment, ...], by_id: Mapping[str, ScheduledEntry], window: Window, limit_bytes: int
) -> tuple[Plan, bytes]:
    """The longest beginning that fits: what is near sounds, what is far comes with a later plan."""
    best, too_many = 0, len(segments) + 1
    while too_many - best > 1:
        middle = (best + too_many) // 2
        if wire.fits(_packed(segments[:middle], by_id, window)[1], limit_bytes=limit_bytes):
            best = middle
        else:
            too_many = middle
    return _packed(segments[:best], by_id, window)


def _cut_off(segments: Sequence[PlanSegment], kept: int, by_id: Mapping[str, ScheduledEntry]) -> Iterable[Trouble]:
    """The first entry of each schedule that the nodes do not hold yet."""
    named: set[str] = set()
    for segment in segments[kept:]:
        entry = by_id[segment.entry_id]
        if entry.schedule_id not in named:
            named.add(entry.schedule_id)
            facts = {"held_until": segments[kept].start.isoformat(), "segments": len(segments), "held": kept}
            yield _trouble(entry, ConflictKind.PLAN_TOO_LARGE, facts)


_SILENCED: Final = frozenset({policies.Code.QUIET_HOURS, policies.Code.SUSPENDED})
"""What must not sound even if it was saved before the policy changed; the maxima are told, not enforced, here."""


LEAST_TOLERANCE: Final = timedelta(seconds=2)
MOST_TOLERANCE: Final = timedelta(seconds=60)
"""Bounds of the clock error that an item with a limit of lateness tolerates: its own limit, between these."""


def _segment(entry: ScheduledEntry, segment: timeline.Segment) -> PlanSegment:
    limit_ms = entry.entry.late.at_most_ms
    late = None if limit_ms is None else timedelta(milliseconds=limit_ms)
    return PlanSegment(
        entry_id=segment.entry_id,
        start=from_ms(to_ms(segment.start)),  # as the wire counts: a report must name the very same start
        end=from_ms(to_ms(segment.end)),
        klass=entry.klass,
        level=entry.entry.level,
        source=entry.entry.source,
        offset=segment.offset if entry.asset is not None else timedelta(0),
        asset=None if entry.asset is None else entry.asset.sha256,
        stream=entry.stream_id,
        gain_db=entry.gain_db,
        approval=entry.approval,
        late_at_most=late,
        tolerates=None if late is None else min(max(late, LEAST_TOLERANCE), MOST_TOLERANCE),
    )


def _assets(entries: Iterable[ScheduledEntry]) -> tuple[PlanAsset, ...]:
    found = {
        entry.asset.sha256: PlanAsset(entry.asset.sha256, entry.asset.size_bytes, entry.asset.duration)
        for entry in entries
        if entry.asset is not None
    }
    return tuple(found[sha256] for sha256 in sorted(found))


def _why(
    dropped: timeline.Dropped, by_id: Mapping[str, ScheduledEntry], resolution: timeline.Resolution
) -> dict[str, Any]:
    """For who placed it: who won, by which rule, until when."""
    loser = by_id[dropped.entry_id]
    until = resolution.air_until(dropped.winner_id, dropped.at) or loser.entry.end
    told = {"reason": dropped.reason.value, "at": dropped.at.isoformat(), "until": until.isoformat()}
    winner = None if dropped.winner_id is None else by_id[dropped.winner_id]
    if winner is None:
        return told | {"winner_id": None, "rule": "no_winner"}
    rule = precedence.explain(winner.entry, loser.entry).code
    return told | {
        "winner_id": winner.id,
        "winner_title": winner.title,
        "winner_unit": winner.unit_id,
        "rule": f"reason_{rule.value}",
    }


def _fault(schedule_id: str, fault: Fault, now: datetime) -> Trouble:
    """A schedule whose rows make no sense: nothing of it can be planned."""
    return Trouble(
        kind=ConflictKind.ENTRY_DROPPED,
        schedule_id=schedule_id,
        unit_id=fault.unit_id,
        entry_id=schedule_id,
        affects_from=datetime.combine(places.local_date(now), time(0), LOCAL),  # the same all day: told once
        until=now,
        facts={"title": fault.name, **fault.error.facts, "reason": fault.error.code},
    )


def _trouble(
    entry: ScheduledEntry, kind: ConflictKind, facts: Mapping[str, Any], *, until: datetime | None = None
) -> Trouble:
    return Trouble(
        kind=kind,
        schedule_id=entry.schedule_id,
        unit_id=entry.unit_id,
        entry_id=entry.entry.id,
        affects_from=entry.entry.start,
        until=until or entry.entry.end,
        facts={"title": entry.title, **facts},
    )
