"""What a change of schedules does to the air: all is resolved without it and with it, and the difference is told.

Used by every verb that puts something on the air, so a person sees each conflict before it is saved: who wins, by which
rule, and the ways out. Facts a maintainer must not break: the same `timeline.resolve` and `policy.check` judge here and
in the planner; clusters that hear the same are resolved once; an entry sounds only inside its own window, so only
entries whose windows hang together with a changed one are resolved (all of them where the station limits minutes).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Any, Final

from broadcast_server.domain import policy as policies
from broadcast_server.domain import precedence, stagger, timeline
from broadcast_server.domain.clock import Window
from broadcast_server.domain.places import PlaceTree, Target, TargetKind, clusters_of
from broadcast_server.domain.policy import QuietHours, StationPolicy, Violation
from broadcast_server.store import places, plans, schedules
from broadcast_server.store.schedules import ScheduledEntry
from broadcast_server.store.session import Session
from broadcast_server.store.words import ScheduleKind
from speaker_protocol.rules import BulletinClass

MOST_SHOWN: Final = 50
"""Stretches and conflicts shown of one change; the counts are of all."""

_MANY_CLUSTERS: Final = 5_000


# -- what is told -----------------------------------------------------------------------------------------------------


class Effect(enum.StrEnum):
    """What happens to the loser."""

    DROPPED = "dropped"  # it will not sound
    UNFINISHED = "unfinished"  # it begins and does not end (phát dở)
    WAITS = "waits"  # it begins later
    INTERRUPTED = "interrupted"  # it is cut and goes on later


class Way(enum.StrEnum):
    """A way out; the catalogue has its sentence as `way_{word}`."""

    MOVE = "move"
    SHORTEN = "shorten"
    ALLOW_WAIT = "allow_wait"
    OTHER_TARGETS = "other_targets"
    CANCEL_OTHER = "cancel_other"
    ACCEPT = "accept"
    APPROVE = "approve"


@dataclass(frozen=True, slots=True)
class WayOut:
    """A way out with what it takes, `{"to": …}` or `{"minutes": …}`."""

    way: Way
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Party:
    """One side of a conflict."""

    entry_id: str
    schedule_id: str
    unit_id: str
    title: str
    kind: ScheduleKind
    klass: BulletinClass
    level: int
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Clash:
    """`winner` has the air while `loser` is due. `at`: first time it happens; `times`: occurrences of the loser it
    happens to in the looked-at window; `until`: when the loser sounds after all; `reason`: the rule that decides.
    """

    effect: Effect
    at: datetime
    until: datetime | None
    loser: Party
    winner: Party | None
    reason: str
    facts: Mapping[str, Any]
    is_of_change: bool
    """Whether the loser is what is being changed; else something that was there before."""
    clusters: int
    times: int
    ways_out: tuple[WayOut, ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """What was changed sounds in `[start, end)` on so many clusters; `offset_ms`: position in its own sound."""

    entry_id: str
    start: datetime
    end: datetime
    offset_ms: int
    clusters: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know although it stops nothing."""

    code: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Preview:
    """What a change will do. `looked_until`: conflicts were looked for up to here; quiet hours 30 days on."""

    clusters: int
    stretches: tuple[Stretch, ...]
    clashes: tuple[Clash, ...]
    notices: tuple[Notice, ...]
    looked_from: datetime
    looked_until: datetime


@dataclass(frozen=True, slots=True)
class Verdict:
    """The preview, and what the stations' policies forbid of it."""

    preview: Preview
    violations: tuple[tuple[Violation, ScheduledEntry], ...]


# -- where it sounds --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sound:
    """A stretch as `policy.check` takes it."""

    entry_id: str
    start: datetime
    end: datetime
    klass: BulletinClass
    gain_db: float


@dataclass(frozen=True, slots=True)
class _Hearing:
    """What one group of clusters has in common."""

    bundles: frozenset[int]
    policy: StationPolicy
    quiet: tuple[QuietHours, ...]


@dataclass(slots=True)
class Neighbourhood:
    """Places, clusters, groups and policies on one day, read once for a verb."""

    on: date
    tree: PlaceTree
    clusters: Mapping[str, str]
    groups: Mapping[str, frozenset[str]]
    _stated: Mapping[str, StationPolicy]
    _configs: Mapping[str, Mapping[str, Any]]
    _policies: dict[str, StationPolicy] = field(default_factory=dict)
    _reached: dict[tuple[Target, ...], frozenset[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, session: Session, on: date) -> Neighbourhood:
        """As the store has it now."""
        return cls(
            on=on,
            tree=places.load_tree(session),
            clusters=places.cluster_units(session),
            groups=places.groups_of(session),
            _stated={unit: policies.policy_from_dict(body) for unit, body in plans.policies(session).items()},
            _configs=schedules.cluster_configs(session),
        )

    def reach(self, targets: tuple[Target, ...]) -> frozenset[str]:
        """The clusters that targets mean; unknown references, which only old rows have, mean none."""
        found = self._reached.get(targets)
        if found is None:
            known = [target for target in targets if self.knows(target)]
            found = self._reached[targets] = clusters_of(known, self.tree, self.clusters, self.groups, self.on)
        return found

    def knows(self, target: Target) -> bool:
        """Whether the reference names something."""
        match target.kind:
            case TargetKind.UNIT:
                return target.ref in self.tree
            case TargetKind.GROUP:
                return target.ref in self.groups
            case TargetKind.CLUSTER:
                return target.ref in self.clusters

    def naming(self, clusters: frozenset[str]) -> frozenset[Target] | None:
        """Every target that means one of these clusters; None: so many that looking at all schedules is cheaper."""
        if len(clusters) > _MANY_CLUSTERS:
            return None
        units = {place for unit in {self.clusters[c] for c in clusters} for place in self.tree.ancestors(unit, self.on)}
        groups = (group for group, members in self.groups.items() if members & clusters)
        return frozenset(
            [
                *(Target(TargetKind.UNIT, unit) for unit in units),
                *(Target(TargetKind.GROUP, group) for group in groups),
                *(Target(TargetKind.CLUSTER, cluster) for cluster in clusters),
            ]
        )

    def policy_of(self, unit_id: str) -> StationPolicy:
        """The policy of the unit or of its nearest ancestor that has one."""
        found = self._policies.get(unit_id)
        if found is None:
            line = self.tree.ancestors(unit_id, self.on)
            found = next((self._stated[place] for place in line if place in self._stated), policies.DEFAULT_POLICY)
            self._policies[unit_id] = found
        return found

    def quiet_of(self, cluster_id: str) -> tuple[QuietHours, ...]:
        """Quiet hours the cluster has beside its station's."""
        policy = self.policy_of(self.clusters[cluster_id])
        told = self._configs.get(cluster_id, {}).get("quiet")
        own = policies.policy_from_dict({"cluster_quiet": {cluster_id: told}}).quiet_of(cluster_id)[1:] if told else ()
        return (*policy.quiet_of(cluster_id)[1:], *own)

    def shift_of(self, cluster_id: str) -> timedelta:
        """How much later recorded entries begin there than at its neighbours."""
        policy = self.policy_of(self.clusters[cluster_id])
        return stagger.shift_of(self._configs.get(cluster_id, {}).get("stagger_slot", 0), policy.stagger_s)

    def hearings(
        self, entries: Iterable[ScheduledEntry], clusters: Iterable[str]
    ) -> Iterator[tuple[frozenset[str], StationPolicy, tuple[QuietHours, ...], Callable[[ScheduledEntry], bool]]]:
        """Groups of `clusters` that hear the same: who they are, what limits them, and whether an entry is for them."""
        numbers: dict[tuple[Target, ...], int] = {}
        for entry in entries:
            numbers.setdefault(entry.targets, len(numbers))
        wanted = frozenset(clusters)
        heard: dict[str, set[int]] = {cluster: set() for cluster in sorted(wanted)}
        for targets, number in numbers.items():
            for cluster in self.reach(targets) & wanted:
                heard[cluster].add(number)
        grouped: dict[_Hearing, set[str]] = {}
        for cluster, bundles in heard.items():
            policy, quiet = self.policy_of(self.clusters[cluster]), self.quiet_of(cluster)
            grouped.setdefault(_Hearing(frozenset(bundles), policy, quiet), set()).add(cluster)
        for hearing, members in grouped.items():

            def is_heard(entry: ScheduledEntry, bundles: frozenset[int] = hearing.bundles) -> bool:
                return numbers.get(entry.targets) in bundles

            yield frozenset(members), hearing.policy, hearing.quiet, is_heard


# -- the difference ---------------------------------------------------------------------------------------------------


def compare(
    around: Neighbourhood,
    *,
    before: Sequence[ScheduledEntry],
    after: Sequence[ScheduledEntry],
    ahead: Sequence[ScheduledEntry],
    window: Window,
    clusters: frozenset[str],
    notices: Sequence[Notice] = (),
) -> Verdict:
    """What turning `before` into `after` does on `clusters` inside `window`.

    `ahead`: the changed schedule's own entries of the next 30 days, for quiet hours and suspensions.
    """
    changed = _changed(before, after)
    tally = _Tally()
    violations: dict[tuple[str, str], tuple[Violation, ScheduledEntry]] = {}
    everything = {entry.id: entry for entry in (*before, *after, *ahead)}
    for members, policy, quiet, is_heard in around.hearings((*before, *after, *ahead), clusters):
        limits_minutes = policy.max_minutes_per_session is not None or policy.max_minutes_per_day is not None
        old = [entry for entry in before if entry.blocked is None and is_heard(entry)]
        new = [entry for entry in after if entry.blocked is None and is_heard(entry)]
        if not limits_minutes:
            near = _hanging_together([*old, *new], changed)
            old = [entry for entry in old if entry.id in near]
            new = [entry for entry in new if entry.id in near]
        was, will = _Line(old, window), _Line(new, window)
        tally.add(was, will, changed, len(members))
        known = {(found.code, found.entry_id) for found in policies.check(was.sounds(), policy, quiet=quiet)}
        unlimited = replace(policy, max_minutes_per_session=None, max_minutes_per_day=None)
        nominal = [_nominal(entry) for entry in ahead if entry.blocked is None and is_heard(entry)]
        for found in (
            *policies.check(will.sounds(), policy, quiet=quiet),
            *policies.check(nominal, unlimited, quiet=quiet),
        ):
            if found.entry_id in changed or (found.code, found.entry_id) not in known:
                entry = everything[found.entry_id]
                violations.setdefault((found.code, entry.schedule_id), (found, entry))
    if not clusters:  # a place that waits for its first cluster keeps quiet hours all the same
        for unit_id, entry in _named_units(around, ahead):
            unlimited = replace(around.policy_of(unit_id), max_minutes_per_session=None, max_minutes_per_day=None)
            for found in policies.check([_nominal(entry)], unlimited):
                violations.setdefault((found.code, entry.schedule_id), (found, entry))
    preview = Preview(
        clusters=len(clusters),
        stretches=tally.stretches(),
        clashes=tally.clashes(),
        notices=tuple(notices),
        looked_from=window.start,
        looked_until=window.end,
    )
    return Verdict(preview, tuple(sorted(violations.values(), key=lambda pair: (pair[0].at, pair[0].code))))


def party(entry: ScheduledEntry) -> Party:
    """An entry as a person is shown it."""
    return Party(
        entry_id=entry.id,
        schedule_id=entry.schedule_id,
        unit_id=entry.unit_id,
        title=entry.title,
        kind=entry.kind,
        klass=entry.klass,
        level=int(entry.entry.level),
        start=entry.entry.start,
        end=entry.entry.end,
    )


def clash_facts(clash: Clash) -> dict[str, Any]:
    """JSON form, for the facts of an error."""

    def told(side: Party | None) -> dict[str, Any] | None:
        if side is None:
            return None
        return {
            "entry_id": side.entry_id,
            "schedule_id": side.schedule_id,
            "unit_id": side.unit_id,
            "title": side.title,
            "kind": side.kind.value,
            "class": side.klass.value,
            "level": side.level,
            "start": side.start.isoformat(),
            "end": side.end.isoformat(),
        }

    return {
        "effect": clash.effect.value,
        "at": clash.at.isoformat(),
        "until": None if clash.until is None else clash.until.isoformat(),
        "loser": told(clash.loser),
        "winner": told(clash.winner),
        "reason": clash.reason,
        "clusters": clash.clusters,
        "times": clash.times,
        "ways_out": [{"way": out.way.value, **out.facts} for out in clash.ways_out],
    }


def reason_between(winner: ScheduledEntry | None, loser: ScheduledEntry) -> tuple[str, Mapping[str, Any]]:
    """Code and facts of the rule by which the winner has the air."""
    if winner is None:
        return "no_winner", {}
    reason = precedence.explain(winner.entry, loser.entry)
    return f"reason_{reason.code.value}", reason.facts


def _changed(before: Sequence[ScheduledEntry], after: Sequence[ScheduledEntry]) -> frozenset[str]:
    old, new = ({entry.id: entry for entry in entries} for entries in (before, after))
    return frozenset(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _hanging_together(entries: Sequence[ScheduledEntry], changed: frozenset[str]) -> frozenset[str]:
    """Ids of the entries whose windows form one unbroken run with the window of a changed one."""
    near: set[str] = set()
    run: set[str] = set()
    run_end: datetime | None = None
    for entry in sorted(entries, key=lambda one: one.entry.start):
        if run_end is not None and entry.entry.start > run_end:
            if run & changed:
                near |= run
            run, run_end = set(), None
        run.add(entry.id)
        run_end = entry.entry.end if run_end is None else max(run_end, entry.entry.end)
    return frozenset(near | run) if run & changed else frozenset(near)


def _named_units(around: Neighbourhood, entries: Sequence[ScheduledEntry]) -> Iterator[tuple[str, ScheduledEntry]]:
    for entry in entries:
        units = [target.ref for target in entry.targets if target.kind is TargetKind.UNIT and around.knows(target)]
        for unit_id in units or [entry.unit_id]:
            yield unit_id, entry


def _nominal(entry: ScheduledEntry) -> Sound:
    length = entry.entry.length
    end = entry.entry.end if length is None else entry.entry.start + length
    return Sound(entry.id, entry.entry.start, end, entry.klass, entry.gain_db)


class _Line:
    """The entries of one hearing, resolved."""

    def __init__(self, entries: Sequence[ScheduledEntry], window: Window) -> None:
        self.by_id = {entry.id: entry for entry in entries}
        self.resolution = timeline.resolve((entry.entry for entry in entries), window)

    def sounds(self) -> list[Sound]:
        """For the policy."""
        return [
            Sound(
                segment.entry_id,
                segment.start,
                segment.end,
                self.by_id[segment.entry_id].klass,
                self.by_id[segment.entry_id].gain_db,
            )
            for segment in self.resolution.segments
        ]

    def last_end(self, entry_id: str) -> datetime | None:
        """When an entry falls silent for good."""
        return max((one.end for one in self.resolution.segments if one.entry_id == entry_id), default=None)


@dataclass(slots=True)
class _Counted:
    clash: Clash
    losers: set[str]
    clusters: int


class _Tally:
    """Collects over the hearings; the same conflict elsewhere or on another day is counted, not repeated."""

    def __init__(self) -> None:
        self._clashes: dict[tuple[Any, ...], _Counted] = {}
        self._stretches: dict[tuple[Any, ...], int] = {}

    def add(self, was: _Line, will: _Line, changed: frozenset[str], clusters: int) -> None:
        """What one hearing has to tell."""
        for segment in will.resolution.segments:
            if segment.entry_id in changed:
                key = (segment.start, segment.end, segment.entry_id, segment.offset)
                self._stretches[key] = self._stretches.get(key, 0) + clusters
        known_drops = {(one.entry_id, one.reason) for one in was.resolution.dropped}
        for drop in will.resolution.dropped:
            is_new = drop.entry_id in changed
            if is_new or (drop.entry_id, drop.reason) not in known_drops:
                unfinished = drop.reason is timeline.DropReason.UNFINISHED
                effect = Effect.UNFINISHED if unfinished else Effect.DROPPED
                self._count(will, effect, drop.entry_id, drop.winner_id, drop.at, None, clusters, is_new=is_new)
        known_waits = {(one.entry_id, one.since, one.until) for one in was.resolution.waits}
        for wait in will.resolution.waits:
            is_new = wait.entry_id in changed
            if is_new or (wait.entry_id, wait.since, wait.until) not in known_waits:
                begins = wait.since == will.by_id[wait.entry_id].entry.start
                effect = Effect.WAITS if begins else Effect.INTERRUPTED
                self._count(
                    will, effect, wait.entry_id, wait.behind_id, wait.since, wait.until, clusters, is_new=is_new
                )

    def _count(
        self,
        line: _Line,
        effect: Effect,
        loser_id: str,
        winner_id: str | None,
        at: datetime,
        until: datetime | None,
        clusters: int,
        *,
        is_new: bool,
    ) -> None:
        loser = line.by_id[loser_id]
        winner = None if winner_id is None else line.by_id[winner_id]
        reason, facts = reason_between(winner, loser)
        key = (effect, loser.schedule_id, None if winner is None else winner.schedule_id, reason)
        counted = self._clashes.get(key)
        if counted is not None:
            first_time = loser_id == counted.clash.loser.entry_id
            counted.losers.add(loser_id)
            counted.clusters += clusters if first_time else 0
            if at >= counted.clash.at:
                return
        clash = Clash(
            effect=effect,
            at=at,
            until=until,
            loser=party(loser),
            winner=None if winner is None else party(winner),
            reason=reason,
            facts=facts,
            is_of_change=is_new,
            clusters=clusters,
            times=1,
            ways_out=_ways_out(effect, line, loser, winner, is_new=is_new),
        )
        if counted is None:
            self._clashes[key] = _Counted(clash, {loser_id}, clusters)
        else:
            counted.clash = clash

    def clashes(self) -> tuple[Clash, ...]:
        """The earliest first."""
        told = [
            replace(counted.clash, clusters=counted.clusters, times=len(counted.losers))
            for counted in self._clashes.values()
        ]
        return tuple(sorted(told, key=lambda clash: (clash.at, clash.loser.entry_id, clash.effect))[:MOST_SHOWN])

    def stretches(self) -> tuple[Stretch, ...]:
        """The earliest first."""
        return tuple(
            Stretch(entry_id, start, end, round(offset.total_seconds() * 1000), self._stretches[key])
            for key in sorted(self._stretches)[:MOST_SHOWN]
            for start, end, entry_id, offset in [key]
        )


def _ways_out(
    effect: Effect, line: _Line, loser: ScheduledEntry, winner: ScheduledEntry | None, *, is_new: bool
) -> tuple[WayOut, ...]:
    free_at = None if winner is None else line.last_end(winner.id)
    found: list[WayOut] = []
    if is_new:
        if free_at is not None:
            found.append(WayOut(Way.MOVE, {"to": free_at.isoformat()}))
            if effect is Effect.DROPPED and loser.entry.length is not None:
                wait_s = (free_at - loser.entry.start).total_seconds()
                found.append(WayOut(Way.ALLOW_WAIT, {"minutes": max(1, -int(-wait_s // 60))}))
        found.append(WayOut(Way.OTHER_TARGETS, {}))
    else:
        found += [WayOut(Way.MOVE, {}), WayOut(Way.SHORTEN, {})]
    if winner is not None:
        other = winner if is_new else loser
        found.append(WayOut(Way.CANCEL_OTHER, {"entry_id": other.id, "title": other.title}))
    found.append(WayOut(Way.ACCEPT, {}))
    return tuple(found)
