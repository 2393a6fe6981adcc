"""The leader's loop: hold the lease, plan, publish what changed, reconcile the relays, send what is overdue.

It only compares *desired* with *actual*; a new behaviour is a new kind of desired state computed elsewhere, never a
handler here. A maintainer must not break: (1) nothing is signed without the lease, and every number is stored before
it is sent; (2) `tick` is idempotent: a missed, doubled or late ring changes nothing but the time at which it acts; (3)
after every connect to the broker everything retained is published again, because a broker may have lost it; (4) when a
node has obeyed something newer than what we sign (a restored backup, an older leader), we rise above it and send all
again; (5) all that is signed here takes its number from one counter, so one comparison with what a node shows tells
who is ahead; (6) a slice is sent only by who holds the lease at that moment; (7) one bad row costs its own schedule,
node or order, never the tick; (8) emergencies and stop-alls go first and wait for nothing (`urgent`).
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import BroadcastError, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.mqtt.bus import Bus
from broadcast_server.playout import wire
from broadcast_server.playout.configs import StationFacts, node_configs
from broadcast_server.playout.inbox import Heard
from broadcast_server.playout.key_watch import KeyWatch
from broadcast_server.playout.pace import PRODUCTION, Pace
from broadcast_server.playout.planner import Desired, Fleet, Planner, TargetPlan, Trouble
from broadcast_server.playout.urgent import UrgentLane
from broadcast_server.relay.engine import FeedKind, SourceSpec, StreamSpec
from broadcast_server.signer.port import Signer
from broadcast_server.store import facts, leases, outbox, plans, relays, reports, sequences
from broadcast_server.store.plans import PublishedPlan, Seat
from broadcast_server.store.session import Session, Store
from speaker_protocol.rules import SourceKind

log = get_logger()

OVERDUE_AFTER: Final = timedelta(seconds=20)
SLICE: Final = 500
STREAM_LEAD: Final = timedelta(seconds=12)
STREAM_TAIL: Final = timedelta(seconds=6)
LONGEST_DELAY: Final = timedelta(seconds=30)
"""A feed that is held back for the cut button begins so much earlier."""
BROADCASTS_AHEAD: Final = timedelta(hours=26)
NOTE_ALL_EVERY: Final = timedelta(minutes=30)
RESEND_AFTER_S: Final = (20.0, 40.0, 80.0, 160.0, 320.0, 600.0)
"""Waits before a plan that is not followed is sent again; the last repeats. A node may be deaf for days."""
RISE_EVERY_S: Final = 20.0
CONFIGS_AGAIN_S: Final = 60.0
"""So long after the signer refused a configuration it is asked again."""
HIGHEST_CLAIM: Final = 0xF000_0000
"""A status is not signed: no node's word lifts the epoch to where the wire's 32 bits end."""
COUNTER: Final = sequences.SIGNED


class Relays(Protocol):
    """What the conductor needs of the relay engine."""

    async def reconcile(self, desired: Mapping[str, StreamSpec], *, ending: str = "window_over") -> None:
        """Make what runs equal to `desired`, by stream id; `ending`: why what is not wanted any more ends."""
        ...


class _Deposed(Exception):  # noqa: N818  reads as what happened
    """The lease was lost, or its epoch rose, in the middle of a tick."""


class Conductor:
    """One per process with the `conductor` role; only the one that holds the lease acts."""

    def __init__(
        self,
        *,
        name: str,
        store: Store,
        bus: Bus,
        signer: Signer,
        engine: Relays,
        planner: Planner,
        clock: Clock,
        chance: Chance,
        facts: StationFacts,
        lease_s: float,
        is_alone: bool = False,
        is_clock_trusted: Callable[[], bool] = lambda: True,
        pace: Pace = PRODUCTION,
    ) -> None:
        """`name`: who holds the lease. `is_alone`: no other process can be alive that leads on this store, so a
        lease in force is a dead one's. `is_clock_trusted`: while it is not, only alerts and relays are looked after.
        """
        self._is_clock_trusted = is_clock_trusted
        self._name, self._store, self._bus, self._signer = name, store, bus, signer
        self._engine, self._planner = engine, planner
        self._clock, self._chance, self._facts, self._lease_s = clock, chance, facts, lease_s
        self._is_alone, self._pace = is_alone, pace
        self._ear, self._urgent_ear = store.doorbell.ear(), store.doorbell.ear()
        self._urgent = UrgentLane(store=store, signer=signer, clock=clock, office=self, may_say_keys=is_clock_trusted)
        self._holding = asyncio.Lock()
        self._epoch = 0
        self._given = 0
        self._seen = (0, 0)
        self._risen_s = -RISE_EVERY_S
        self._lease: leases.Lease | None = None
        self._renewed_s = 0.0
        self._has_looked = False
        self._published: dict[str, PublishedPlan] = {}
        self._states: dict[str, bytes] = {}
        self._numbers: dict[str, tuple[int, int]] = {}
        """Epoch and number of what is retained now, by topic."""
        self._told_all = 0
        """The epoch in which all that is retained was published once."""
        self._keys = KeyWatch(store=store, clock=clock)
        self._keys_word: object = None
        """The operator's last word that keys were changed."""
        self._must_say_keys = False
        self._places: tuple[Desired, dict[str, tuple[str, ...]]] | None = None
        self._key_units: frozenset[str] = frozenset()
        self._must_refill = True
        self._is_refilling = False
        self._owes_all = False
        """The broker lost what is retained while the clock was in doubt: it is owed all of it."""
        self._must_plan = True
        self._must_note = False
        self._renewed_on: datetime | None = None
        self._relays: tuple[_Relay, ...] = ()
        self._resent: dict[str, tuple[int, float]] = {}
        self._planned_s = 0.0
        self._overdue_s = 0.0
        self._noted: frozenset[str] = frozenset()
        self._note_all_at = datetime.min.replace(tzinfo=UTC)
        self._named: frozenset[tuple[str, str, str]] | None = None
        self._configured: Fleet | None = None
        self._configs_again_s = math.inf
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
        if heard.highest[0] >= HIGHEST_CLAIM:
            log.warning("leader.epoch_implausible", seen=heard.highest[0])
            return
        self._seen = max(self._seen, heard.highest)
        if self._is_outranked():
            self._ear.hear()

    def _is_outranked(self) -> bool:
        return self._epoch > 0 and self._seen > (self._epoch, self._given)

    async def run(self) -> None:
        """Tick for ever: at every ring, and every `Pace.look_s` without one."""
        while True:
            if await self._ear.wait(self._pace.look_s):
                self._must_plan = True
            await self.tick()

    async def run_urgent(self) -> None:
        """Publish emergencies and stop-alls at every ring, for ever, whatever a tick is busy with."""
        while True:
            await self._urgent_ear.wait(self._pace.urgent_look_s)
            if not self._epoch or not self._bus.connected:
                continue  # the tick that brings us into office, or the broker back, begins with them
            try:
                await self._urgent.look()
            except _Deposed:
                continue
            except Unavailable as away:
                log.warning("urgent.waits", code=away.code)

    async def tick(self) -> None:
        """Compare once what should be with what is, and mend the difference. Only the holder of the lease acts."""
        if not await self._hold_lease() or not self._bus.connected:
            return
        now = self._clock.now()
        self._is_refilling, self._must_refill = self._must_refill, False  # a reconnect meanwhile asks for another
        try:
            await self._look_at_keys()
            await self._urgent.look()
            desired = await self._plan(now)
            if self._is_clock_trusted():
                self._is_refilling, self._owes_all = self._is_refilling or self._owes_all, False
                await self._publish_keys(desired, now)
                await self._publish_plans(desired, now)
                await self._clear_departed(desired)
                await self._publish_states(desired, now)
                await self._publish_overdue(desired, now)
                await self._send_orders(now)
            else:
                # All that leaves while the clock is in doubt: nodes obey a set by its order, not by its clock.
                self._owes_all |= self._is_refilling
                await self._urgent.look(_units_of(desired.fleet))
            await self._urgent.repair()
        except _Deposed:
            self._must_refill = True
            return
        except Unavailable as away:
            log.warning("conductor.waits", code=away.code)
            self._must_refill |= self._is_refilling or not self._bus.connected
            return
        await self._reconcile(now)

    async def close(self) -> None:
        """Give the lease back, so that another may lead at once."""
        lease, self._lease = self._lease, None
        if lease is not None:
            self._epoch = 0
            now = self._clock.now()
            await self._store.begin(lambda session: leases.release(session, lease, now=now), ring=False)

    # -- leadership

    async def _hold_lease(self) -> bool:
        async with self._holding:
            return await self._hold_or_lose()

    async def _hold_or_lose(self) -> bool:
        now_s = self._clock.monotonic()
        must_rise = self._is_outranked() and now_s - self._risen_s >= RISE_EVERY_S
        if self._epoch and not must_rise and now_s - self._renewed_s < self._lease_s / 3:
            return True
        now, ttl, was = self._clock.now(), timedelta(seconds=self._lease_s), self._epoch

        def take(session: Session) -> tuple[leases.Lease | None, int]:
            held = leases.acquire(session, LEASE, self._name, now=now, ttl=ttl, inherits=self._is_alone)
            given = sequences.last(session, COUNTER)
            if held is not None and (must_rise or held.epoch != was):
                shown = reports.highest_seen(session)
                seen = max(self._seen, shown if shown[0] < HIGHEST_CLAIM else (0, 0))
                if seen > (held.epoch, given):
                    log.warning("leader.outranked", epoch=held.epoch, given=given, seen=seen)
                    leases.raise_above(session, LEASE, seen[0], now=now)
                    held = leases.renew(session, held, now=now, ttl=ttl)
            return held, given

        self._lease, self._given = await self._store.begin(take, ring=False)
        self._has_looked = True
        if self._lease is None:
            if was:
                log.warning("leader.lost", epoch=was)
            self._epoch = 0
            await self._engine.reconcile({}, ending="leader_lost")
            return False
        self._renewed_s = now_s
        if must_rise:
            self._risen_s = now_s
        if self._lease.epoch != was:
            log.info("leader.elected", epoch=self._lease.epoch, name=self._name)
            self._epoch = self._lease.epoch
            self._must_refill = self._must_plan = True
            self._urgent.forget()
            self._published = await self._store.read(plans.published)
        return True

    async def _hold_on(self) -> None:
        """Before each slice: nothing of ours leaves once another may lead. Raises `_Deposed`."""
        epoch = self._epoch
        if not await self._hold_lease() or self._epoch != epoch:
            raise _Deposed

    async def _publish(
        self, items: Sequence[tuple[str, bytes]], *, retain: bool = True, sequence: int | None = None
    ) -> None:
        await self._hold_on()
        epoch = self._epoch
        await self._bus.publish_many(items, retain=retain)
        if sequence is not None:
            self._numbers.update((topic, (epoch, sequence)) for topic, _ in items)

    async def publish(self, items: Sequence[tuple[str, bytes]], *, sequence: int | None = None) -> None:
        """For the urgent lane: retained, while the lease is held; `sequence`: their number. Raises `Unavailable`."""
        await self._publish(items, sequence=sequence)

    def floors(self, node_id: str) -> wire.Floors | None:
        """What a node that lost its memory is told; None while this process does not know.

        Orders are not retained, so the floor of those is the last number given: none that was sent is due any more.
        """
        if not self._epoch or self.desired is None or (self._told_all != self._epoch and self._is_clock_trusted()):
            return None
        path = self._path_of(self.desired, node_id)
        if path is None:
            return None
        floors = {topic: self._numbers.get(topic, (0, 0)) for topic in wire.node_topics(node_id, path)}
        plan = self._published.get(node_id)
        if plan is not None:
            floors[wire.plan_topic(node_id)] = (plan.epoch, plan.sequence)
        floors = {topic: order if order[0] == self._epoch else (self._epoch, 0) for topic, order in floors.items()}
        floors[wire.order_topic(node_id)] = (self._epoch, self._given)
        return wire.Floors(floors, self._keys.rl_version)

    def _path_of(self, desired: Desired, node_id: str) -> tuple[str, ...] | None:
        if self._places is None or self._places[0] is not desired:
            fleet = desired.fleet
            paths = {seat.unit_id: tuple(fleet.tree.ancestors(seat.unit_id, fleet.on)) for seat in fleet.seats}
            self._places = desired, {seat.node_id: paths[seat.unit_id] for seat in fleet.seats}
        return self._places[1].get(node_id)

    async def number(self) -> int:
        """A fresh number, stored before anything is signed with it."""
        await self._hold_on()
        number = await self._store.begin(lambda session: sequences.take(session, COUNTER), ring=False)
        self._given = max(self._given, number)
        return number

    def _broker_is_back(self) -> None:
        self._must_refill = True
        self._urgent.forget()
        self._ear.hear()
        self._urgent_ear.hear()

    # -- plans

    async def _plan(self, now: datetime) -> Desired:
        now_s = self._clock.monotonic()
        desired = self.desired
        is_stale = (
            desired is None
            or self._must_plan
            or now_s - self._planned_s >= self._pace.replan_s
            or desired.window != self._planner.window(now)
        )
        if is_stale or desired is None:
            desired = await self._plan_anew(now, now_s)
        if self._must_note:
            try:
                await self._note(desired, now)
            except Unavailable:
                raise
            except BroadcastError as error:  # a schedule that went meanwhile: the next planning knows
                log.error("plan.not_noted", code=error.code, facts=error.facts)  # noqa: TRY400
            self._must_note = False
        return desired

    async def _plan_anew(self, now: datetime, now_s: float) -> Desired:
        self._must_plan = False
        try:
            desired = await self._store.read(lambda session: self._planner.plan(session, now))
        except Unavailable:
            self._must_plan = True
            raise
        self._planned_s, self.desired, self._must_note = now_s, desired, True
        self._relays = _relays_of(desired)
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
            if self._is_refilling or not self._is_published(seat, target.sha256, desired.window.end)
        ]
        if wanted:
            await self._send_plans(desired, wanted, now)

    async def _clear_departed(self, desired: Desired) -> None:
        """Nodes that are retired leave nothing behind on the broker; the rows tell which have not been cleared yet."""
        seated = {seat.node_id for target in desired.targets for seat in target.seats}
        gone = sorted(self._published.keys() - seated - {seat.node_id for seat in desired.fleet.seats})
        if not gone:
            return
        await self._publish(wire.departed(gone))
        await self._store.begin(lambda session: plans.forget_published(session, gone), ring=False)
        for node_id in gone:
            del self._published[node_id]
            self._states.pop(wire.config_topic(node_id), None)
        log.info("plans.departed", nodes=len(gone))

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
            sequence = sequences.take(session, COUNTER)
            fresh = {
                seat.node_id: PublishedPlan(
                    target.sha256, epoch, sequence, desired.window.start, desired.window.end, now, None
                )
                for seat, target in wanted
            }
            plans.record_published(session, fresh, list(bodies.items()), now=now)
            plans.drop_unused_bodies(session)
            return sequence, fresh

        await self._hold_on()
        sequence, fresh = await self._store.begin(number, ring=False)
        self._given = sequence
        slices = [wanted[start : start + SLICE] for start in range(0, len(wanted), SLICE)]
        signing = self._sign_plans(desired, slices[0], epoch, sequence, now)
        sending: asyncio.Task[None] | None = None
        try:
            for part, coming in zip(slices, [*slices[1:], None], strict=True):
                signed, refused = await signing
                if coming is not None:  # signed while these are on their way, and no sooner
                    signing = self._sign_plans(desired, coming, epoch, sequence, now)
                self._take_refusals(refused, part, fresh, now)
                if sending is not None:
                    await sending
                await self._hold_on()
                sending = asyncio.create_task(self._bus.publish_many(signed, retain=True), name="playout.plans")
            if sending is not None:
                await sending
        finally:
            begun = [task for task in (signing, sending) if task is not None]
            for task in begun:
                task.cancel()
            await asyncio.gather(*begun, return_exceptions=True)  # what failed beside the first failure is no news
        self._published.update(fresh)
        log.info("plans.published", nodes=len(wanted), bodies=len(bodies), epoch=epoch, sequence=sequence)

    def _sign_plans(
        self, desired: Desired, part: Sequence[tuple[Seat, TargetPlan]], epoch: int, sequence: int, now: datetime
    ) -> asyncio.Task[tuple[list[tuple[str, bytes]], wire.Refusals]]:
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
            for seat, target in part
        ]
        return asyncio.create_task(wire.plan_messages(self._signer, to_send, now=now), name="playout.signing")

    def _take_refusals(
        self,
        refused: wire.Refusals,
        part: Sequence[tuple[Seat, TargetPlan]],
        fresh: dict[str, PublishedPlan],
        now: datetime,
    ) -> None:
        """What the signer found no ground for is left out of the next plan, which is made at once; named, not retried.

        A node refused for itself keeps what it has, and is asked for again as one that does not answer.
        """
        others = Counter(why.code for why in refused.values() if not why.facts.get("entries"))
        if others:
            log.error("plans.not_signed", nodes=dict(others))
        for index, why in refused.items():
            seat, target = part[index]
            entries = why.facts.get("entries")
            if not entries:
                continue
            fresh.pop(seat.node_id, None)
            self._planner.bar(target.sha256, entries, now)
            self.ring()

    async def _publish_overdue(self, desired: Desired, now: datetime) -> None:
        """Nodes that are online and did not say they follow: send again, under a new number."""
        now_s = self._clock.monotonic()
        if now_s - self._overdue_s < self._pace.overdue_look_s:
            return
        self._overdue_s = now_s
        silent = set(await self._store.read(lambda session: plans.overdue(session, published_before=now)))
        self._resent = {node: known for node, known in self._resent.items() if node in silent}
        due = {node for node in silent if self._is_due(node, now, now_s)}
        wanted = [(seat, target) for target in desired.targets for seat in target.seats if seat.node_id in due]
        if not wanted:
            return
        log.warning("plans.unacknowledged", nodes=len(wanted))
        await self._send_plans(desired, wanted, now)
        for seat, _ in wanted:
            times = self._resent.get(seat.node_id, (0, 0.0))[0] + 1
            wait_s = RESEND_AFTER_S[min(times, len(RESEND_AFTER_S) - 1)]
            self._resent[seat.node_id] = (times, now_s + wait_s)

    def _is_due(self, node_id: str, now: datetime, now_s: float) -> bool:
        if node_id in self._resent:
            return now_s >= self._resent[node_id][1]
        plan = self._published.get(node_id)
        return plan is not None and now - plan.published_at >= OVERDUE_AFTER

    # -- keys, configs

    async def _publish_keys(self, desired: Desired, now: datetime) -> None:
        units = _units_of(desired.fleet)
        must_say_all = self._must_say_keys or self._must_renew(desired)
        fresh = sorted(units if must_say_all else units - self._key_units)
        if fresh:
            sequence = await self.number()
            for start in range(0, len(fresh), SLICE):
                part = fresh[start : start + SLICE]
                told = await wire.key_messages(self._signer, part, now=now, epoch=self._epoch, sequence=sequence)
                self._keys.heard(told)
                await self._publish(told, sequence=sequence)
            await self._keys.look()
        self._key_units, self._must_say_keys = units, False

    async def _look_at_keys(self) -> None:
        """The operator rotated or revoked a key: nodes are told at once, what a revoked one signed is signed anew."""
        told = await self._store.read(lambda session: facts.find(session, facts.KEYS_CHANGED)) or {"word": ""}
        word, self._keys_word = self._keys_word, told["word"]
        if word is None or word == told["word"]:
            return
        log.warning("keys.changed", must_resign=told["must_resign"])
        self._must_say_keys = True
        if told["must_resign"]:
            self._is_refilling = True
            self._urgent.forget()

    def _must_renew(self, desired: Desired) -> bool:
        """Whether all states go out again: the broker may have lost them, or a day is over and their expiry nearer."""
        return self._is_refilling or self._renewed_on != desired.window.start

    async def _publish_states(self, desired: Desired, now: datetime) -> None:
        must_renew = self._must_renew(desired)
        if self._renewed_on != desired.window.start and not self._is_refilling:
            self._urgent.forget()  # a day is over, and their expiry nearer
        await self._urgent.look(self._key_units)
        states: list[wire.StateToSend] = []
        is_again = self._clock.monotonic() >= self._configs_again_s
        if must_renew or is_again or self._configured is not desired.fleet:
            self._configs_again_s = math.inf
            states += await self._configs(desired.fleet)
        await self._send_states(states, now, is_all=must_renew)
        self._configured, self._renewed_on = desired.fleet, desired.window.start
        self._told_all = self._epoch

    async def _send_states(self, states: Sequence[wire.StateToSend], now: datetime, *, is_all: bool) -> None:
        changed = [state for state in states if is_all or self._states.get(state.topic) != state.body]
        if changed:
            sequence = await self.number()
            for start in range(0, len(changed), SLICE):
                part = changed[start : start + SLICE]
                signed, refused = await wire.state_messages(
                    self._signer, part, now=now, epoch=self._epoch, sequence=sequence
                )
                if refused:
                    first = next(iter(refused.values()))
                    log.error("config.not_signed", nodes=len(refused), code=first.code, facts=first.facts)
                    self._configs_again_s = self._clock.monotonic() + CONFIGS_AGAIN_S
                await self._publish(signed, sequence=sequence)
                self._states.update(
                    (state.topic, state.body) for index, state in enumerate(part) if index not in refused
                )

    async def _configs(self, fleet: Fleet) -> list[wire.StateToSend]:
        made = []
        for number, state in enumerate(node_configs(fleet, self._facts), start=1):
            made.append(state)
            if number % SLICE == 0:
                await self._clock.sleep(0)  # ten thousand of them must not make the live voice wait
        return made

    # -- orders

    async def _send_orders(self, now: datetime) -> None:
        rows, has_expired = await self._store.read(
            lambda session: (outbox.due(session, now=now), outbox.has_expired(session, now=now))
        )
        if not rows and not has_expired:
            return
        await self._hold_on()

        def number(session: Session) -> int:
            outbox.expire(session, now=now)
            outbox.mark_sent(session, [row.id for row in rows], now=now)
            return sequences.take(session, COUNTER, count=len(rows)) if rows else self._given

        self._given = last = await self._store.begin(number, ring=False)
        to_send: list[tuple[str, bytes]] = []
        wrong: list[str] = []
        for sequence, row in enumerate(rows, start=last - len(rows) + 1):  # two orders of one node must differ
            order = wire.OrderToSend(
                order_id=row.id,
                node_id=row.node_id,
                unit_id=row.unit_id,
                verb=row.body.get("verb"),
                seconds=row.body.get("seconds", 0),
                expires_at=row.expires_at,
                code=row.body.get("code"),
            )
            try:
                to_send.append(
                    await wire.order_message(self._signer, order, now=now, epoch=self._epoch, sequence=sequence)
                )
            except Unavailable:
                raise  # it is due again soon
            except BroadcastError as error:
                log.error("order.unsendable", order_id=row.id, code=error.code, facts=error.facts)  # noqa: TRY400
                wrong.append(row.id)
        if wrong:
            await self._store.begin(lambda session: outbox.give_up(session, wrong), ring=False)
        if to_send:
            await self._publish(to_send, retain=False)

    # -- relays

    async def _reconcile(self, now: datetime) -> None:
        listeners: dict[str, dict[int, int]] = {}
        fillers: dict[str, set[str | None]] = {}
        starts: dict[str, datetime] = {}
        for relay in self._relays:
            if relay.start - STREAM_LEAD - LONGEST_DELAY <= now < relay.end + STREAM_TAIL:
                starts[relay.stream] = min(relay.start, starts.get(relay.stream, relay.start))
                listeners.setdefault(relay.stream, {})[relay.target] = relay.nodes
                fillers.setdefault(relay.stream, set()).update(relay.fillers)
        specs: dict[str, StreamSpec] = {}
        if listeners:
            # One stream sounds in many communes: their own filler only where all of them name the same.
            agreed = {feed_id: next(iter(named)) if len(named) == 1 else None for feed_id, named in fillers.items()}
            found = await self._store.read(lambda session: relays.arrangements(session, agreed, now))
            specs = {
                feed_id: _stream_spec(each, listeners=sum(listeners[feed_id].values()), epoch=self._epoch)
                for feed_id, each in found.items()
                if starts[feed_id] - STREAM_LEAD - timedelta(seconds=each.delay_s) <= now
            }
        await self._engine.reconcile(specs)


LEASE: Final = leases.LEADER


@dataclass(frozen=True, slots=True)
class _Relay:
    """One stretch of a plan that takes a stream. `target`: number of the target set, `nodes`: how many it has.

    `fillers`: what its communes' policies name.
    """

    stream: str
    start: datetime
    end: datetime
    target: int
    nodes: int
    fillers: frozenset[str | None]


def _stream_spec(arranged: relays.Arrangement, *, listeners: int, epoch: int) -> StreamSpec:
    source = arranged.source
    return StreamSpec(
        stream_id=source.feed_id,
        feed_id=source.feed_id,
        kind=FeedKind(source.kind.value),
        url=source.url,
        mount=source.mount,
        listeners=listeners,
        epoch=epoch,
        substitutes=tuple(
            SourceSpec(each.feed_id, FeedKind(each.kind.value), each.url, each.mount) for each in arranged.substitutes
        ),
        filler=arranged.filler,
        delay_s=arranged.delay_s,
        barred=arranged.barred,
        is_revoked=arranged.is_revoked,
    )


def _relays_of(desired: Desired) -> tuple[_Relay, ...]:
    """What the engine must relay. The stream of a live voice is not among it: the voice's own room sends that."""
    policies = desired.fleet.policies
    fillers = [frozenset(policies[seat.unit_id].filler for seat in target.seats) for target in desired.targets]
    return tuple(
        _Relay(segment.stream, segment.start, segment.end, number, len(target.seats), fillers[number])
        for number, target in enumerate(desired.targets)
        for segment in target.plan.segments
        if segment.stream is not None and segment.source is not SourceKind.LIVE
    )


def _units_of(fleet: Fleet) -> frozenset[str]:
    """Every unit that has a node at or below it."""
    own = frozenset(seat.unit_id for seat in fleet.seats)
    return frozenset(place for unit in own for place in fleet.tree.ancestors(unit, fleet.on))


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
