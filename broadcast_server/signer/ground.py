"""The rows that plans and configurations are held against, kept while they are fresh.

`Ground.judge` runs inside one reading snapshot on the store's executor. A maintainer must not break: (1) places and
seats are kept only while `fleet_mark` holds; (2) a good verdict on a shared body is believed for `FRESH_S`, so that ten
thousand heads of one body cost one look, and a recall is known a second later; (3) a refusal is never remembered: who
asks again is judged by the rows of that moment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Final

from broadcast_server.domain.clock import Window, from_ms
from broadcast_server.domain.errors import BroadcastError, Invalid, Refused
from broadcast_server.domain.places import PlaceTree, Target, clusters_of
from broadcast_server.domain.policy import StationPolicy
from broadcast_server.signer import checks
from broadcast_server.signer.checks import BodyVerdict, Fault, NodeFacts
from broadcast_server.signer.port import SignRequest
from broadcast_server.store import approvals, library, places, plans, schedules, stations
from broadcast_server.store.plans import Seat
from broadcast_server.store.schedules import ScheduledEntry
from broadcast_server.store.session import Session
from broadcast_server.store.words import ContentKind
from speaker_protocol.messages import NodeConfigBody, PlanBody, PlanHead, decode, open_plan_body
from speaker_protocol.rules import BulletinClass
from speaker_protocol.signing import EnvelopeRefused, Kind

FRESH_S: Final = 1.0
LEAD_IN: Final = timedelta(days=1)
"""A plan is clipped from a sweep that began so much earlier."""
MOST_ENTRIES: Final = 50_000
"""So many are kept for the next look, where their rows are still the same."""
WINDOW_NEAR: Final = timedelta(days=2)
"""A plan begins today, give or take."""
_VERDICTS: Final = 2_000
_ABOVE_ALL_BUT_EMERGENCY: Final = BulletinClass.PRIORITY


@dataclass(slots=True)
class Fleet:
    """Places and seats as of one mark."""

    mark: tuple[object, ...]
    on: date
    tree: PlaceTree
    seats: Mapping[str, Seat]
    clusters: Mapping[str, str]
    groups: Mapping[str, Iterable[str]]
    policies: Mapping[str, StationPolicy]
    groups_by_cluster: Mapping[str, tuple[str, ...]]
    paths: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _reached: dict[tuple[Target, ...], frozenset[str]] = field(default_factory=dict)

    def path(self, unit_id: str) -> tuple[str, ...]:
        """The unit and what lies above it, nearest first."""
        known = self.paths.get(unit_id)
        if known is None:
            known = self.paths[unit_id] = self.tree.ancestors(unit_id, self.on)
        return known

    def reached(self, targets: tuple[Target, ...]) -> frozenset[str]:
        """The clusters these targets mean; one that is gone means none."""
        known = self._reached.get(targets)
        if known is None:
            found: set[str] = set()
            for target in targets:
                try:
                    found |= clusters_of((target,), self.tree, self.clusters, self.groups, self.on)
                except Invalid:
                    continue
            known = self._reached[targets] = frozenset(found)
        return known

    def heard_by(self, verdict: BodyVerdict) -> frozenset[str]:
        """The clusters that every entry of a body is for. No verdict outlives the fleet it was made under."""
        if verdict.heard_by is None:
            wanted = {entry.targets for entry in verdict.entries.values()}
            verdict.heard_by = frozenset.intersection(*(self.reached(targets) for targets in wanted))
        return verdict.heard_by


@dataclass(frozen=True, slots=True)
class _Kept:
    verdict: BodyVerdict
    at_s: float


_BodyKey = tuple[str, int, int]
"""Hash of the packed body, and the window its head gives it."""


class Ground:
    """Not for two judges at once."""

    def __init__(self) -> None:
        self._fleet: Fleet | None = None
        self._verdicts: dict[_BodyKey, _Kept] = {}
        self._expander = schedules.Expander(most_kept=MOST_ENTRIES)

    def path_of(self, unit_id: str) -> Sequence[str]:
        """The unit and what lies above it, as last seen."""
        fleet = self._fleet
        return (unit_id,) if fleet is None or unit_id not in fleet.tree else fleet.path(unit_id)

    def judge(
        self, session: Session, requests: Sequence[SignRequest], now: datetime, now_s: float
    ) -> list[Refused | None]:
        """A reason for each PLAN or CONFIG request that has no ground."""
        heads = _heads(requests)
        fleet = self._look(session, _day(heads.values(), now))
        verdicts = self._judge_bodies(session, requests, heads, now, now_s)
        return [
            self._plan_fault(fleet, request, heads[index], verdicts, now)
            if request.kind is Kind.PLAN
            else _config_fault(fleet, request)
            for index, request in enumerate(requests)
        ]

    # -- plans

    def _plan_fault(
        self,
        fleet: Fleet,
        request: SignRequest,
        head: PlanHead | None,
        verdicts: Mapping[_BodyKey, BodyVerdict | None],
        now: datetime,
    ) -> Refused | None:
        if head is None:
            return Refused(Fault.UNREADABLE, kind=request.kind.name)
        key = (head.body_sha256, head.valid_from_ms, head.valid_until_ms)
        verdict = verdicts[key]
        if verdict is None:
            return Refused(Fault.UNREADABLE, kind=request.kind.name, body=head.body_sha256)
        if request.expires_ms != head.valid_until_ms or abs(from_ms(head.valid_from_ms) - now) > WINDOW_NEAR:
            return Refused(Fault.LIVES_TOO_LONG, body=head.body_sha256)
        seat = fleet.seats.get(request.target)
        if seat is None or seat.unit_id != request.unit:
            return Refused(Fault.PLACE_DIFFERS, node=request.target)
        faults = verdict.faults
        if not faults and verdict.entries and not (seat.is_active and seat.cluster_id in fleet.heard_by(verdict)):
            faults = {
                name: Fault.NOT_ADDRESSED
                for name, entry in verdict.entries.items()
                if not seat.is_active or seat.cluster_id not in fleet.reached(entry.targets)
            }
        if not faults:
            policy = fleet.policies[seat.unit_id]
            quiet = (*policy.quiet_of(seat.cluster_id)[1:], *stations.quiet_of(seat))
            faults = verdict.broken_rules(policy, quiet)
        if not faults:
            return None
        return Refused("signer_segments_refused", body=head.body_sha256, entries=checks.first_of(faults))

    def _judge_bodies(
        self,
        session: Session,
        requests: Sequence[SignRequest],
        heads: Mapping[int, PlanHead | None],
        now: datetime,
        now_s: float,
    ) -> dict[_BodyKey, BodyVerdict | None]:
        found: dict[_BodyKey, BodyVerdict | None] = {}
        fresh: dict[_BodyKey, PlanBody] = {}
        for index, head in heads.items():
            if head is None:
                continue
            key = (head.body_sha256, head.valid_from_ms, head.valid_until_ms)
            if key in found:
                continue
            kept = self._verdicts.get(key)
            if kept is not None and 0 <= now_s - kept.at_s < FRESH_S:
                found[key] = kept.verdict
                continue
            found[key] = None
            body = _open(head, requests[index].packed)
            if body is not None:
                fresh[key] = body
        for window in {(key[1], key[2]) for key in fresh}:
            bodies = {key: body for key, body in fresh.items() if (key[1], key[2]) == window}
            entries, ceilings = self._entries(session, bodies.values(), from_ms(window[0]), from_ms(window[1]), now)
            for key, body in bodies.items():
                found[key] = verdict = checks.judge_body(body, entries, ceilings)
                self._keep(key, verdict, now_s)
        return found

    def _keep(self, key: _BodyKey, verdict: BodyVerdict, now_s: float) -> None:
        self._verdicts.pop(key, None)
        if verdict.faults:
            return
        while self._verdicts:
            oldest = next(iter(self._verdicts))
            if len(self._verdicts) < _VERDICTS and 0 <= now_s - self._verdicts[oldest].at_s < FRESH_S:
                break
            del self._verdicts[oldest]  # what is not believed any more needs no room
        self._verdicts[key] = _Kept(verdict, now_s)

    def _entries(
        self, session: Session, bodies: Iterable[PlanBody], valid_from: datetime, valid_until: datetime, now: datetime
    ) -> tuple[dict[str, ScheduledEntry], dict[str, BulletinClass]]:
        """The occurrences that these bodies name, by their rows, and the highest class each was approved for."""
        wanted = sorted({segment.entry_id.rpartition("@")[0] for body in bodies for segment in body.segments})
        if not wanted or valid_until <= valid_from or valid_until - valid_from > checks.LONGEST[Kind.PLAN]:
            return {}, {}
        window = Window(valid_from - LEAD_IN, valid_until)
        found = self._expander.load(session, window, now, schedule_ids=wanted)
        bulletins = {entry.content_id for entry in found if entry.content_kind is ContentKind.BULLETIN}
        classes = library.classes_of(session, bulletins)
        recorded = {
            (entry.content_kind, entry.content_id, entry.language) for entry in found if entry.asset is not None
        }
        own = approvals.approved_by_their_writers(session, recorded)
        ceilings = {entry.id: _ceiling(entry, classes, own) for entry in found}
        return {entry.id: entry for entry in found}, ceilings

    # -- places

    def _look(self, session: Session, on: date) -> Fleet:
        mark = (on, *plans.fleet_mark(session))
        if self._fleet is not None and self._fleet.mark == mark:
            return self._fleet
        try:
            tree = places.load_tree(session)
        except BroadcastError:
            if self._fleet is None:
                raise
            return self._fleet  # as they were before somebody broke them; who plans goes on with the same
        seats = {seat.node_id: seat for seat in plans.seats(session)}
        groups = places.groups_of(session)
        by_cluster: dict[str, list[str]] = {}
        for group_id in sorted(groups):
            for cluster_id in groups[group_id]:
                by_cluster.setdefault(cluster_id, []).append(group_id)
        self._verdicts.clear()
        self._fleet = Fleet(
            mark=mark,
            on=on,
            tree=tree,
            seats=seats,
            clusters=places.cluster_units(session),
            groups=groups,
            policies=stations.policies_in_force(session, {seat.unit_id for seat in seats.values()}, tree, on),
            groups_by_cluster={cluster: tuple(names) for cluster, names in by_cluster.items()},
        )
        return self._fleet


def _heads(requests: Sequence[SignRequest]) -> dict[int, PlanHead | None]:
    """The head of each plan; read once where thousands share it."""
    read: dict[bytes, PlanHead | None] = {}
    heads: dict[int, PlanHead | None] = {}
    for index, request in enumerate(requests):
        if request.kind is not Kind.PLAN:
            continue
        if request.body not in read:
            try:
                read[request.body] = decode(PlanHead, request.body)
            except EnvelopeRefused:
                read[request.body] = None
        heads[index] = read[request.body]
    return heads


def _day(heads: Iterable[PlanHead | None], now: datetime) -> date:
    """The day whose places are asked for: that on which the plans begin, for at midnight clocks may differ."""
    first = next((head for head in heads if head is not None), None)
    return places.local_date(now if first is None else from_ms(first.valid_from_ms))


def _open(head: PlanHead, packed: bytes | None) -> PlanBody | None:
    try:
        return None if packed is None else open_plan_body(head, packed)
    except EnvelopeRefused:
        return None


def _ceiling(entry: ScheduledEntry, classes: Mapping[str, BulletinClass], own: Collection[str]) -> BulletinClass:
    """The highest class the content is approved for; a station may let writers approve what is thông thường alone."""
    if entry.content_id in own:
        return BulletinClass.NORMAL
    return classes[entry.content_id] if entry.content_kind is ContentKind.BULLETIN else _ABOVE_ALL_BUT_EMERGENCY


def _config_fault(fleet: Fleet, request: SignRequest) -> Refused | None:
    seat = fleet.seats.get(request.target)
    if seat is None or request.unit not in {None, seat.unit_id}:
        return Refused(Fault.PLACE_DIFFERS, node=request.target)
    try:
        body = decode(NodeConfigBody, request.body)
    except EnvelopeRefused:
        return Refused(Fault.UNREADABLE, kind=request.kind.name)
    facts = NodeFacts(
        path=fleet.path(seat.unit_id),
        cluster_id=seat.cluster_id,
        is_active=seat.is_active,
        groups=fleet.groups_by_cluster.get(seat.cluster_id, ()),
        policy=fleet.policies[seat.unit_id],
        settings=seat.config,
    )
    fault = checks.config_fault(body, facts)
    return None if fault is None else Refused(fault, node=request.target)
