"""The leader's loop: hold the lease, plan, publish what changed, reconcile the relays, send what is overdue.

It only compares *desired* with *actual*; a new behaviour is a new kind of desired state computed elsewhere, never a
handler here. A maintainer must not break: (1) nothing is signed without the lease, and every number is stored before
it is sent; (2) `tick` is idempotent: a missed, doubled or late ring changes nothing but the time at which it acts;
(3) after every connect to the broker everything retained is published again, because a broker may have lost it; (4)
when a node has obeyed something newer than what we sign (a restored backup, an older leader), we rise above it and
send all again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.mqtt.bus import Bus
from broadcast_server.playout import wire
from broadcast_server.playout.inbox import Heard
from broadcast_server.playout.planner import Desired, Fleet, Planner, TargetPlan, Trouble
from broadcast_server.relay.engine import Engine, FeedKind, StreamSpec
from broadcast_server.signer.port import Signer
from broadcast_server.store import leases, outbox, plans, sequences
from broadcast_server.store.plans import PublishedPlan, Seat
from broadcast_server.store.session import Session, Store

log = get_logger()

LOOK_S: Final = 0.5
REPLAN_S: Final = 30.0
"""Plans are looked at again this often even if no bell rang."""
OVERDUE_AFTER: Final = timedelta(seconds=20)
OVERDUE_LOOK_S: Final = 5.0
SLICE: Final = 500
STREAM_LEAD: Final = timedelta(seconds=12)
STREAM_TAIL: Final = timedelta(seconds=6)
BROADCASTS_AHEAD: Final = timedelta(hours=26)
NOTE_ALL_EVERY: Final = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class StationFacts:
    """What nodes are told that the rows do not say."""

    assets_url: str
    status_interval_s: int


class Conductor:
    """One per process with the `conductor` role; only the one that holds the lease acts."""

    def __init__(
        self,
        *,
        name: str,
        store: Store,
        bus: Bus,
        signer: Signer,
        engine: Engine,
        planner: Planner,
        clock: Clock,
        chance: Chance,
        facts: StationFacts,
        lease_s: float,
        speak_for: Callable[[Sequence[str]], None],
    ) -> None:
        """`name`: who holds the lease. `speak_for(units)`: called before signing for new units, to give them keys."""
        self._name, self._store, self._bus, self._signer = name, store, bus, signer
        self._engine, self._planner = engine, planner
        self._clock, self._chance, self._facts, self._lease_s = clock, chance, facts, lease_s
        self._speak_for = speak_for
        self._ear = store.doorbell.ear()
        self._epoch = 0
        self._must_rise_above = 0
        self._lease: leases.Lease | None = None
        self._renewed_s = 0.0
        self._has_looked = False
        self._published: dict[str, PublishedPlan] = {}
        self._states: dict[str, bytes] = {}
        self._key_units: frozenset[str] = frozenset()
        self._must_refill = True
        self._must_plan = True
        self._planned_s = 0.0
        self._overdue_s = 0.0
        self._noted: frozenset[str] = frozenset()
        self._note_all_at = datetime.min.replace(tzinfo=UTC)
        self._named: frozenset[tuple[str, str, str]] | None = None
        self._configured: Fleet | None = None
        self.desired: Desired | None = None
        self.on_planned: Callable[[Desired], None] = lambda _: None
        bus.on_connected(self._broker_is_back)

    @property
    def epoch(self) -> int:
        """The fencing epoch while this process leads, else 0."""
        return self._epoch

    @property
    def is_in_office(self) -> bool:
        """Whether it has looked once since it began: leading, or knowing that another leads."""
        return self._has_looked

    def ring(self) -> None:
        """Look now. Harmless at any time."""
        self._must_plan = True
        self._ear.hear()

    def heard(self, heard: Heard) -> None:
        """The inbox committed something: a node that obeyed somebody newer makes us rise above it."""
        if heard.highest[0] > self._epoch > 0:
            log.warning("leader.outranked", epoch=self._epoch, seen=heard.highest[0])
            self._must_rise_above = max(self._must_rise_above, heard.highest[0])
            self._ear.hear()

    async def run(self) -> None:
        """Tick for ever: at every ring, and every `LOOK_S` without one."""
        while True:
            if await self._ear.wait(LOOK_S):
                self._must_plan = True
            await self.tick()

    async def tick(self) -> None:
        """Compare once what should be with what is, and mend the difference. Only the holder of the lease acts."""
        if not await self._hold_lease() or not self._bus.connected:
            return
        now = self._clock.now()
        try:
            desired = await self._plan(now)
            await self._publish_keys(desired, now)
            await self._publish_plans(desired, now)
            await self._publish_states(desired, now)
            self._must_refill = False
            await self._publish_overdue(desired, now)
            await self._send_orders(now)
        except Unavailable as away:
            log.warning("conductor.waits", code=away.code)
            self._must_refill = True
            return
        await self._reconcile(desired, now)

    async def close(self) -> None:
        """Give the lease back, so that another may lead at once."""
        lease, self._lease = self._lease, None
        if lease is not None:
            self._epoch = 0
            now = self._clock.now()
            await self._store.begin(lambda session: leases.release(session, lease, now=now), ring=False)

    # -- leadership

    async def _hold_lease(self) -> bool:
        now_s = self._clock.monotonic()
        if self._epoch and not self._must_rise_above and now_s - self._renewed_s < self._lease_s / 3:
            return True
        above, self._must_rise_above = self._must_rise_above, 0

        now = self._clock.now()

        def take(session: Session) -> leases.Lease | None:
            held = leases.acquire(session, LEASE, self._name, now=now, ttl=timedelta(seconds=self._lease_s))
            if held is not None and above:
                leases.raise_above(session, LEASE, above, now=now)
                held = leases.renew(session, held, now=now, ttl=timedelta(seconds=self._lease_s))
            return held

        self._lease = await self._store.begin(take, ring=False)
        self._has_looked = True
        if self._lease is None:
            if self._epoch:
                log.warning("leader.lost", epoch=self._epoch)
            self._epoch = 0
            await self._engine.reconcile({})
            return False
        self._renewed_s = now_s
        if self._lease.epoch != self._epoch:
            log.info("leader.elected", epoch=self._lease.epoch, name=self._name)
            self._epoch = self._lease.epoch
            self._published = await self._store.read(plans.published)
            self._must_refill = self._must_plan = True
        return True

    def _broker_is_back(self) -> None:
        self._must_refill = True
        self._ear.hear()

    # -- plans

    async def _plan(self, now: datetime) -> Desired:
        now_s = self._clock.monotonic()
        desired = self.desired
        is_stale = (
            desired is None
            or self._must_plan
            or now_s - self._planned_s >= REPLAN_S
            or desired.window != self._planner.window(now)
        )
        if not is_stale and desired is not None:
            return desired
        self._must_plan = False
        desired = await self._store.read(lambda session: self._planner.plan(session, now))
        self._planned_s = now_s
        self.desired = desired
        await self._note(desired, now)
        self.on_planned(desired)
        return desired

    async def _note(self, desired: Desired, now: datetime) -> None:
        """Write what was planned where people and judges look: coming broadcasts and named conflicts.

        Only what changed is written: the broadcasts of plans that are new, and from time to time those that come near.
        """
        if now >= self._note_all_at:
            self._noted, self._note_all_at = frozenset(), now + NOTE_ALL_EVERY
        rows = _broadcast_rows(desired, [each for each in desired.targets if each.sha256 not in self._noted], now)
        conflicts = _conflict_rows(desired.troubles)
        named = frozenset((row["schedule_id"], row["kind"], row["subject"]) for row in conflicts)
        if rows or named != self._named:
            ids = [self._chance.new_id() for _ in conflicts]

            def write(session: Session) -> None:
                plans.record_broadcasts(session, rows)
                if named != self._named:
                    plans.note_conflicts(
                        session, [{**row, "id": fresh} for row, fresh in zip(conflicts, ids, strict=True)], now=now
                    )

            await self._store.begin(write, ring=False)
        self._noted = frozenset(target.sha256 for target in desired.targets)
        self._named = named

    async def _publish_plans(self, desired: Desired, now: datetime) -> None:
        wanted = [
            (seat, target)
            for target in desired.targets
            for seat in target.seats
            if self._must_refill or not self._is_published(seat, target.sha256, desired.window.end)
        ]
        if wanted:
            await self._send_plans(desired, wanted, now)

    def _is_published(self, seat: Seat, sha256: str, valid_until: datetime) -> bool:
        plan = self._published.get(seat.node_id)
        return (
            plan is not None
            and plan.body_sha256 == sha256
            and plan.epoch == self._epoch
            and plan.valid_until == valid_until
        )

    async def _send_plans(self, desired: Desired, wanted: Sequence[tuple[Seat, TargetPlan]], now: datetime) -> None:
        epoch = self._epoch
        bodies = {target.sha256: target.packed for _, target in wanted}

        def number(session: Session) -> tuple[int, dict[str, PublishedPlan]]:
            sequence = sequences.take(session, "plan")
            fresh = {
                seat.node_id: PublishedPlan(
                    target.sha256, epoch, sequence, desired.window.start, desired.window.end, now, None
                )
                for seat, target in wanted
            }
            plans.record_published(session, fresh, list(bodies.items()), now=now)
            plans.drop_unused_bodies(session)
            return sequence, fresh

        sequence, fresh = await self._store.begin(number, ring=False)
        for start in range(0, len(wanted), SLICE):
            to_send = [
                wire.PlanToSend(
                    node_id=seat.node_id,
                    unit_id=seat.unit_id,
                    packed=target.packed,
                    valid_from=desired.window.start,
                    valid_until=desired.window.end,
                    epoch=epoch,
                    sequence=sequence,
                )
                for seat, target in wanted[start : start + SLICE]
            ]
            await self._bus.publish_many(await wire.plan_messages(self._signer, to_send, now=now), retain=True)
        self._published.update(fresh)
        log.info("plans.published", nodes=len(wanted), bodies=len(bodies), epoch=epoch, sequence=sequence)

    async def _publish_overdue(self, desired: Desired, now: datetime) -> None:
        """Nodes that are online and did not say they follow: send again, under a new number."""
        now_s = self._clock.monotonic()
        if now_s - self._overdue_s < OVERDUE_LOOK_S:
            return
        self._overdue_s = now_s
        late = set(await self._store.read(lambda session: plans.overdue(session, published_before=now - OVERDUE_AFTER)))
        wanted = [(seat, target) for target in desired.targets for seat in target.seats if seat.node_id in late]
        if wanted:
            log.warning("plans.unacknowledged", nodes=len(wanted))
            await self._send_plans(desired, wanted, now)

    # -- keys, configs, alerts

    async def _publish_keys(self, desired: Desired, now: datetime) -> None:
        fleet = desired.fleet
        own = frozenset(seat.unit_id for seat in fleet.seats)
        units = frozenset(place for unit in own for place in fleet.tree.ancestors(unit, fleet.on))
        if units == self._key_units and not self._must_refill:
            return
        self._speak_for(sorted(units))
        await self._bus.publish_many(await wire.key_messages(self._signer, sorted(units), now=now), retain=True)
        self._key_units = units

    async def _publish_states(self, desired: Desired, now: datetime) -> None:
        alerts, latches = await self._store.read(
            lambda session: (plans.alerts_in_force(session, now=now), plans.latches(session))
        )
        states = [wire.alert_set(unit, alerts.get(unit, ()), latches.get(unit)) for unit in sorted(self._key_units)]
        if self._must_refill or self._configured is not desired.fleet:
            states += self._configs(desired.fleet)
        changed = [state for state in states if self._must_refill or self._states.get(state.topic) != state.body]
        if changed:
            sequence = await self._store.begin(lambda session: sequences.take(session, "state"), ring=False)
            for start in range(0, len(changed), SLICE):
                part = changed[start : start + SLICE]
                await self._bus.publish_many(
                    await wire.state_messages(self._signer, part, now=now, epoch=self._epoch, sequence=sequence),
                    retain=True,
                )
            self._states.update((state.topic, state.body) for state in changed)
        self._configured = desired.fleet

    def _configs(self, fleet: Fleet) -> list[wire.StateToSend]:
        paths = {seat.unit_id: fleet.tree.ancestors(seat.unit_id, fleet.on) for seat in fleet.seats}
        groups: dict[str, list[str]] = {}
        for group_id in sorted(fleet.groups):
            for cluster_id in fleet.groups[group_id]:
                groups.setdefault(cluster_id, []).append(group_id)
        return [
            wire.node_config(
                seat.node_id,
                seat.unit_id,
                path=paths[seat.unit_id],
                cluster_id=seat.cluster_id,
                groups=groups.get(seat.cluster_id, ()),
                quiet_minutes=(policy.quiet.from_min, policy.quiet.to_min),
                max_gain_db=policy.max_gain_db,
                cluster_config=seat.config,
                assets_url=self._facts.assets_url,
                status_interval_s=self._facts.status_interval_s,
            )
            for seat in fleet.seats
            for policy in (fleet.policies[seat.unit_id],)
        ]

    # -- orders

    async def _send_orders(self, now: datetime) -> None:
        rows = await self._store.read(lambda session: outbox.due(session, now=now))
        if not rows:
            return

        def number(session: Session) -> int:
            outbox.expire(session, now=now)
            outbox.mark_sent(session, [row.id for row in rows], now=now)
            return sequences.take(session, "order", above=0)

        sequence = await self._store.begin(number, ring=False)
        for row in rows:
            order = wire.OrderToSend(
                order_id=row.id,
                node_id=row.node_id,
                unit_id=row.unit_id,
                verb=row.body["verb"],
                seconds=int(row.body.get("seconds", 0)),
                expires_at=row.expires_at,
            )
            topic, payload = await wire.order_message(
                self._signer, order, now=now, epoch=self._epoch, sequence=sequence
            )
            await self._bus.publish(topic, payload, qos=1)

    # -- relays

    async def _reconcile(self, desired: Desired, now: datetime) -> None:
        listeners: dict[str, int] = {}
        for target in desired.targets:
            for stream in {
                segment.stream
                for segment in target.plan.segments
                if segment.stream is not None and segment.start - STREAM_LEAD <= now < segment.end + STREAM_TAIL
            }:
                listeners[stream] = listeners.get(stream, 0) + len(target.seats)
        specs: dict[str, StreamSpec] = {}
        if listeners:
            feeds = await self._store.read(lambda session: plans.feed_sources(session, listeners))
            specs = {
                feed_id: StreamSpec(
                    stream_id=feed_id,
                    feed_id=feed_id,
                    kind=FeedKind(feed.kind.value),
                    url=feed.url,
                    mount=feed.mount,
                    listeners=listeners[feed_id],
                    epoch=self._epoch,
                )
                for feed_id, feed in feeds.items()
            }
        await self._engine.reconcile(specs)


LEASE: Final = "conductor"


def _broadcast_rows(desired: Desired, targets: Sequence[TargetPlan], now: datetime) -> list[dict[str, Any]]:
    """The occurrences in these plans that begin soon enough to be judged soon, each once."""
    rows: dict[str, dict[str, Any]] = {}
    for target in targets:
        for segment in target.plan.segments:
            if segment.start > now + BROADCASTS_AHEAD or segment.end < now - BROADCASTS_AHEAD:
                continue
            entry = desired.entries[segment.entry_id]
            known = rows.get(segment.entry_id)
            if known is not None:
                known["starts_at"] = min(known["starts_at"], segment.start)
                known["ends_at"] = max(known["ends_at"], segment.end)
                continue
            rows[segment.entry_id] = {
                "id": segment.entry_id,
                "schedule_id": entry.schedule_id,
                "unit_id": entry.unit_id,
                "kind": entry.kind,
                "klass": segment.klass,
                "title": entry.title[:300],
                "starts_at": segment.start,
                "ends_at": segment.end,
                "feed_id": entry.feed_id,
                "asset_sha256": segment.asset,
                "approval": entry.approval,
            }
    return [rows[key] for key in sorted(rows)]


def _conflict_rows(troubles: Sequence[Trouble]) -> list[dict[str, Any]]:
    """One row per schedule and entry; the same entry may fail for several target sets."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for trouble in troubles:
        rows.setdefault(
            (trouble.schedule_id, trouble.kind, trouble.entry_id),
            {
                "unit_id": trouble.unit_id,
                "schedule_id": trouble.schedule_id,
                "kind": trouble.kind,
                "subject": trouble.entry_id,
                "affects_from": trouble.affects_from,
                "facts": dict(trouble.facts),
            },
        )
    return list(rows.values())
