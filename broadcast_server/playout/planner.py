"""From rows to plans: entries for every set of clusters that hears the same, resolved, guarded and packed once per set.

A maintainer must not break: (1) a plan's window starts at local midnight of today and is clipped from a sweep that
began a day earlier, so a plan changes only when something that sounds changes, and once a day; (2) everything that
will not sound as asked comes out as a named conflict: blocked content, a dropped entry, a refusal by policy; (3) what
did not change is not computed again: places and seats are kept while `fleet_mark` holds, a target set's plan while
its entries are equal.

`plan` runs inside one reading snapshot, on the store's executor; it keeps memory between calls, so one planner serves
one caller at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from typing import Any, Final

from broadcast_server.domain import plan as planning
from broadcast_server.domain import policy as policies
from broadcast_server.domain import timeline
from broadcast_server.domain.clock import LOCAL, Window
from broadcast_server.domain.places import PlaceTree, Target, clusters_of
from broadcast_server.domain.plan import Plan, PlanAsset, PlanSegment
from broadcast_server.domain.policy import DEFAULT_POLICY, QuietHours, StationPolicy
from broadcast_server.playout import wire
from broadcast_server.store import places, plans, schedules
from broadcast_server.store.plans import Seat
from broadcast_server.store.schedules import ScheduledEntry
from broadcast_server.store.session import Session
from broadcast_server.store.words import ConflictKind

LEAD_IN: Final = timedelta(days=1)


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
    digest: str
    seats: tuple[Seat, ...]


@dataclass(frozen=True, slots=True)
class Desired:
    """What should be: the output of one planning."""

    window: Window
    targets: tuple[TargetPlan, ...]
    entries: Mapping[str, ScheduledEntry]
    troubles: tuple[Trouble, ...]
    tree: PlaceTree
    policies: Mapping[str, StationPolicy]
    """The policy in force for each unit that has seats."""

    def next_edge(self, now: datetime) -> datetime | None:
        """The next instant after `now` at which something begins or ends."""
        edges = (
            edge
            for target in self.targets
            for segment in target.plan.segments
            for edge in (segment.start, segment.end)
            if edge > now
        )
        return min(edges, default=None)


@dataclass(slots=True)
class _Fleet:
    """Places and seats, kept while their mark holds."""

    mark: tuple[object, ...]
    tree: PlaceTree
    seats: tuple[Seat, ...]
    clusters: Mapping[str, str]
    groups: Mapping[str, Iterable[str]]
    policies: Mapping[str, StationPolicy]
    reached: dict[tuple[Target, ...], frozenset[str] | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Known:
    """A set's last result and what it was made of."""

    entries: tuple[ScheduledEntry, ...]
    plan: Plan
    packed: bytes
    sha256: str
    digest: str
    troubles: tuple[Trouble, ...]


_SetKey = tuple[tuple[int, ...], StationPolicy, tuple[QuietHours, ...]]


class Planner:
    """Turns what operators want into what nodes shall do."""

    def __init__(self, *, plan_days: int) -> None:
        """`plan_days`: days of plan that nodes hold, today included."""
        self._plan_days = plan_days
        self._fleet: _Fleet | None = None
        self._known: dict[tuple[Any, ...], _Known] = {}

    def window(self, now: datetime) -> Window:
        """From local midnight of today, `plan_days` days."""
        midnight = datetime.combine(now.astimezone(LOCAL).date(), time(0), LOCAL)
        return Window(
            midnight.astimezone(now.tzinfo), (midnight + timedelta(days=self._plan_days)).astimezone(now.tzinfo)
        )

    def plan(self, session: Session, now: datetime) -> Desired:
        """Everything that should sound in the window, for every node there is."""
        window = self.window(now)
        fleet = self._look_at_fleet(session, now)
        entries = schedules.load_entries(session, Window(window.start - LEAD_IN, window.end), now)
        bundles, troubles = self._bundle(fleet, entries, now)
        known: dict[tuple[Any, ...], _Known] = {}
        seated: dict[tuple[Any, ...], list[Seat]] = {}
        for seat in fleet.seats:
            key = self._set_key(fleet, seat, bundles)
            seated.setdefault(key, []).append(seat)
        targets = []
        for key, seats in seated.items():
            numbers, policy, quiet = key
            mine = tuple(entry for number in numbers for entry in bundles.entries[number])
            memo = (window, tuple(bundles.targets[number] for number in numbers), policy, quiet)
            before = self._known.get(memo)
            made = before if before is not None and before.entries == mine else _make(mine, window, policy, quiet)
            known[memo] = made
            troubles += (trouble for trouble in made.troubles if trouble.until > now)
            targets.append(TargetPlan(made.plan, made.packed, made.sha256, made.digest, tuple(seats)))
        self._known = known
        return Desired(
            window=window,
            targets=tuple(targets),
            entries={entry.entry.id: entry for entry in entries},
            troubles=tuple(troubles),
            tree=fleet.tree,
            policies=fleet.policies,
        )

    # -- who hears what

    def _look_at_fleet(self, session: Session, now: datetime) -> _Fleet:
        on = places.local_date(now)
        mark = (on, *plans.fleet_mark(session))
        if self._fleet is None or self._fleet.mark != mark:
            tree = places.load_tree(session)
            seats = plans.seats(session)
            stated = {unit: policies.policy_from_dict(body) for unit, body in plans.policies(session).items()}
            self._fleet = _Fleet(
                mark=mark,
                tree=tree,
                seats=seats,
                clusters=places.cluster_units(session),
                groups=places.groups_of(session),
                policies={
                    unit: next((stated[place] for place in tree.ancestors(unit, on) if place in stated), DEFAULT_POLICY)
                    for unit in {seat.unit_id for seat in seats}
                },
            )
        return self._fleet

    def _bundle(
        self, fleet: _Fleet, entries: Sequence[ScheduledEntry], now: datetime
    ) -> tuple[_Bundles, list[Trouble]]:
        on = places.local_date(now)
        bundles = _Bundles()
        troubles: list[Trouble] = []
        for entry in entries:
            if entry.blocked is not None:
                if entry.entry.end > now:
                    facts = {"subject": entry.blocked.subject, **entry.blocked.facts}
                    troubles.append(_trouble(entry, entry.blocked.kind, facts))
                continue
            bundles.add(entry)
        for targets in bundles.targets:
            if targets not in fleet.reached:
                fleet.reached[targets] = clusters_of(targets, fleet.tree, fleet.clusters, fleet.groups, on)
        for number, targets in enumerate(bundles.targets):
            for cluster in fleet.reached[targets] or ():
                bundles.of_cluster.setdefault(cluster, []).append(number)
        return bundles, troubles

    def _set_key(self, fleet: _Fleet, seat: Seat, bundles: _Bundles) -> _SetKey:
        policy = fleet.policies[seat.unit_id]
        quiet = (*policy.quiet_of(seat.cluster_id)[1:], *_quiet_of(seat))
        return (tuple(bundles.of_cluster.get(seat.cluster_id, ())), policy, quiet)


class _Bundles:
    """Entries by the exact targets they name, in order of first appearance."""

    def __init__(self) -> None:
        self.targets: list[tuple[Target, ...]] = []
        self.entries: list[list[ScheduledEntry]] = []
        self.of_cluster: dict[str, list[int]] = {}
        self._numbers: dict[tuple[Target, ...], int] = {}

    def add(self, entry: ScheduledEntry) -> None:
        """Put an entry to those of the same targets."""
        number = self._numbers.get(entry.targets)
        if number is None:
            number = self._numbers[entry.targets] = len(self.targets)
            self.targets.append(entry.targets)
            self.entries.append([])
        self.entries[number].append(entry)


def _make(
    entries: tuple[ScheduledEntry, ...], window: Window, policy: StationPolicy, quiet: tuple[QuietHours, ...]
) -> _Known:
    """One target set's plan: resolved, held against the station's policy, packed."""
    by_id = {entry.entry.id: entry for entry in entries}
    resolution = timeline.resolve((entry.entry for entry in entries), window)
    troubles = [
        _trouble(by_id[dropped.entry_id], ConflictKind.ENTRY_DROPPED, _why(dropped)) for dropped in resolution.dropped
    ]
    segments = [_segment(by_id[segment.entry_id], segment) for segment in resolution.segments]
    forbidden = set()
    for violation in policies.check(segments, policy, quiet=quiet):
        entry = by_id[violation.entry_id]
        facts = {"code": violation.code.value, **violation.facts}
        troubles.append(_trouble(entry, ConflictKind.REFUSED_BY_POLICY, facts))
        if violation.code in _SILENCED:
            forbidden.add(violation.entry_id)
    allowed = tuple(segment for segment in segments if segment.entry_id not in forbidden)
    plan = Plan(
        target_set="",
        valid_from=window.start,
        valid_until=window.end,
        segments=allowed,
        assets=_assets(by_id[segment.entry_id] for segment in allowed),
    )
    packed = wire.pack_plan(plan)
    return _Known(
        entries=entries,
        plan=plan,
        packed=packed,
        sha256=hashlib.sha256(packed).hexdigest(),
        digest=planning.digest(plan),
        troubles=tuple(troubles),
    )


_SILENCED: Final = frozenset({policies.Code.QUIET_HOURS, policies.Code.SUSPENDED})
"""What must not sound even if it was saved before the policy changed; the maxima are told, not enforced, here."""


def _segment(entry: ScheduledEntry, segment: timeline.Segment) -> PlanSegment:
    return PlanSegment(
        entry_id=segment.entry_id,
        start=segment.start,
        end=segment.end,
        klass=entry.klass,
        level=entry.entry.level,
        source=entry.entry.source,
        offset=segment.offset if entry.asset is not None else timedelta(0),
        asset=None if entry.asset is None else entry.asset.sha256,
        stream=entry.feed_id if entry.asset is None else None,
        gain_db=entry.gain_db,
        approval=entry.approval,
    )


def _assets(entries: Iterable[ScheduledEntry]) -> tuple[PlanAsset, ...]:
    found = {
        entry.asset.sha256: PlanAsset(entry.asset.sha256, entry.asset.size_bytes, entry.asset.duration)
        for entry in entries
        if entry.asset is not None
    }
    return tuple(found[sha256] for sha256 in sorted(found))


def _quiet_of(seat: Seat) -> tuple[QuietHours, ...]:
    """The cluster's own quiet hours, from its settings."""
    told = seat.config.get("quiet")
    if not told:
        return ()
    return policies.policy_from_dict({"cluster_quiet": {seat.cluster_id: told}}).quiet_of(seat.cluster_id)[1:]


def _why(dropped: timeline.Dropped) -> dict[str, Any]:
    return {"reason": dropped.reason.value, "winner_id": dropped.winner_id, "at": dropped.at.isoformat()}


def _trouble(entry: ScheduledEntry, kind: ConflictKind, facts: Mapping[str, Any]) -> Trouble:
    return Trouble(
        kind=kind,
        schedule_id=entry.schedule_id,
        unit_id=entry.unit_id,
        entry_id=entry.entry.id,
        affects_from=entry.entry.start,
        until=entry.entry.end,
        facts=facts,
    )
