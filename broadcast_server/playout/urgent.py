"""The urgent lane: emergencies and stop-alls leave before anything else, and never wait for a planning.

It holds the sets of alerts of every unit as they should be against what was published, and publishes the difference:
at the start of every tick, and in a loop of its own that a ring wakes while a tick is busy with ten thousand plans.

A maintainer must not break: (1) one look at a time (`_turn`), so that an older set never follows a newer one onto a
topic; (2) the keys of a unit go out before its first set, else a node must hold the alert until it knows who speaks;
(3) what is sent again for nodes that did not answer are the same bytes: for all others they are a duplicate; (4) a
number is stored before it is signed, and a slice leaves only while the lease is held, as everywhere in the conductor.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

from broadcast_server.domain.clock import Clock
from broadcast_server.domain.errors import Invalid
from broadcast_server.logs import get_logger
from broadcast_server.playout import wire
from broadcast_server.signer.port import Signer
from broadcast_server.store import deliveries, emergencies, places
from broadcast_server.store.emergencies import Sets
from broadcast_server.store.session import Session, Store

log = get_logger()

SLICE: Final = 500
REPAIR_LOOK_S: Final = 1.0
ENLIST_EVERY_S: Final = 10.0
AGAIN_S: Final = 5.0
"""So long after the signer refused a set it is asked again."""
_ATTEMPTS: Final = 3
"""As it was seen, as it is now, without what has no ground."""


class Office(Protocol):
    """What the lane needs of the conductor that leads."""

    @property
    def epoch(self) -> int:
        """The fencing epoch, 0 while another leads."""
        ...

    async def number(self) -> int:
        """A fresh number, stored."""
        ...

    async def publish(self, items: Sequence[tuple[str, bytes]], *, sequence: int | None = None) -> None:
        """Retained, while the lease is held. `sequence`: their number, for who is asked for floors."""
        ...


class UrgentLane:
    """One per conductor."""

    def __init__(
        self,
        *,
        store: Store,
        signer: Signer,
        clock: Clock,
        office: Office,
        may_say_keys: Callable[[], bool],
    ) -> None:
        """`may_say_keys`: a delegation stands on its dates, so none is signed while the clock is in doubt."""
        self._store, self._signer, self._clock = store, signer, clock
        self._office, self._may_say_keys = office, may_say_keys
        self._turn = asyncio.Lock()
        self._bodies: dict[str, bytes] = {}
        self._sent: dict[str, bytes] = {}
        """Payloads by topic, as they were last published."""
        self._spoken_for: set[str] = set()
        self._marked: frozenset[str] = frozenset()
        self._done: dict[bool, object] = {}
        """What was last seen to be published, of the urgent units and of all: nothing new, nothing to compare."""
        self._again_s = math.inf
        self._life = 0
        self._repaired_s = 0.0
        self._enlisted_s = 0.0

    def forget(self) -> None:
        """The broker may have lost everything, or another leads: all of it goes out again."""
        self._life += 1
        self._bodies.clear()
        self._sent.clear()
        self._spoken_for.clear()
        self._marked = frozenset()

    async def look(self, units: Collection[str] = ()) -> None:
        """Publish the sets that changed: of these units, and of wherever something is or lately was in force.

        Raises `Unavailable`; the next look does what this one did not.
        """
        async with self._turn:
            now = self._clock.now()
            sets = await self._store.read(lambda session: emergencies.sets(session, now=now))
            wanted = sets.units.union(units)
            seen = (self._life, sets.alerts, sets.latches, wanted)
            is_again = self._clock.monotonic() >= self._again_s
            if is_again or self._done.get(bool(units)) != seen:
                self._again_s = math.inf
                await self._publish(sets, wanted, now)
                self._done[bool(units)] = seen
            await self._mark(sets, now)

    async def _publish(self, sets: Sets, units: frozenset[str], now: datetime) -> None:
        life = self._life
        states = alert_sets(sorted(units), sets.alerts, sets.latches)
        changed = [state for state in states if self._bodies.get(state.topic) != state.body]
        if not changed:
            return
        changed.sort(key=lambda state: (state.owner not in sets.latches, state.owner not in sets.alerts))
        new = [state.owner for state in changed if state.owner in sets.units and state.owner not in self._spoken_for]
        if not self._may_say_keys():
            new = []
        sequence = await self._office.number()
        epoch = self._office.epoch
        for start in range(0, len(changed), SLICE):
            part = changed[start : start + SLICE]
            fresh = [state.owner for state in part if state.owner in new]
            keys = await wire.key_messages(self._signer, fresh, now=now, epoch=epoch, sequence=sequence)
            bodies, signed = await self._sign(part, now, epoch, sequence)
            await self._office.publish([*keys, *signed], sequence=sequence)
            if life != self._life:
                return  # the broker went and came meanwhile: the ring that told of it asks for everything
            self._spoken_for.update(fresh)
            self._bodies.update(bodies)
            self._sent.update(signed)
        loud = [state.owner for state in changed if state.owner in sets.alerts or state.owner in sets.latches]
        if loud:
            log.warning("alerts.published", units=loud[:20], epoch=epoch, sequence=sequence)

    async def _sign(
        self, states: Sequence[wire.StateToSend], now: datetime, epoch: int, sequence: int
    ) -> tuple[dict[str, bytes], list[tuple[str, bytes]]]:
        """Bodies by topic and what to publish. A set that the signer refuses is made of the rows once more, for they
        may have changed meanwhile; then without the alerts it names: one without ground silences no other.
        """
        left, bodies, ready = list(states), dict[str, bytes](), list[tuple[str, bytes]]()
        barred: dict[str, frozenset[str]] = {}
        for attempt in range(_ATTEMPTS):
            signed, refused = await wire.state_messages(self._signer, left, now=now, epoch=epoch, sequence=sequence)
            ready += signed
            bodies.update((state.topic, state.body) for index, state in enumerate(left) if index not in refused)
            if not refused:
                return bodies, ready
            units = [left[index].owner for index in refused]
            if attempt > 0:
                for index, why in refused.items():
                    log.error("alerts.refused", unit_id=left[index].owner, code=why.code, facts=why.facts)
                    named = frozenset(why.facts.get("alerts", ()))
                    barred[left[index].owner] = barred.get(left[index].owner, frozenset()) | named
            self._again_s = self._clock.monotonic() + AGAIN_S
            sets = await self._store.read(lambda session: emergencies.sets(session, now=now))
            left = alert_sets(units, _without(sets.alerts, barred), sets.latches)
        return bodies, ready

    async def _mark(self, sets: Sets, now: datetime) -> None:
        """Write down that what is in force has left."""
        fresh = frozenset(sets.in_force) - self._marked
        if fresh:
            await self._store.begin(lambda session: deliveries.sent(session, fresh, now=now), ring=False)
        self._marked = frozenset(sets.in_force)

    async def repair(self) -> None:
        """Send again to nodes that are there and did not answer; count nodes that came since the launch."""
        now, now_s = self._clock.now(), self._clock.monotonic()
        if now_s - self._repaired_s < REPAIR_LOOK_S:
            return
        self._repaired_s = now_s
        if not await self._store.read(deliveries.any_open):
            return
        async with self._turn:
            sets, due = await self._store.read(
                lambda session: (emergencies.sets(session, now=now), deliveries.due(session, now=now))
            )
            if now_s - self._enlisted_s >= ENLIST_EVERY_S and sets.in_force:
                self._enlisted_s = now_s
                await self._store.begin(lambda session: _enlist(session, sets, now), ring=False)
            topics = {
                wire.alert_topic(unit) for subject in {one.subject for one in due} for unit in sets.subjects[subject]
            } & self._sent.keys()
            if not topics:
                return
            log.warning("alerts.unanswered", nodes=len(due), units=len(topics))
            await self._office.publish([(topic, self._sent[topic]) for topic in sorted(topics)])
            await self._store.begin(lambda session: deliveries.sent_again(session, due, now=now), ring=False)


def _without(
    alerts: Mapping[str, Sequence[dict[str, Any]]], barred: Mapping[str, frozenset[str]]
) -> dict[str, Sequence[dict[str, Any]]]:
    return {
        unit: [alert for alert in own if alert.get("alert_id") not in barred.get(unit, ())]
        for unit, own in alerts.items()
    }


def _enlist(session: Session, sets: Sets, now: datetime) -> None:
    for subject, expires_at in sets.in_force.items():
        deliveries.enlist(
            session, subject, sets.subjects[subject], places.local_date(now), now=now, expires_at=expires_at
        )
    deliveries.sent(session, sets.in_force, now=now)


def alert_sets(
    units: Sequence[str],
    alerts: Mapping[str, Sequence[dict[str, Any]]],
    latches: Mapping[str, tuple[str, datetime]],
) -> list[wire.StateToSend]:
    """All that is in force for each unit; one alert that is none takes nothing from the others."""
    made = []
    for unit in units:
        good = []
        for alert in alerts.get(unit, ()):
            try:
                wire.alert_set(unit, (alert,), None)
            except Invalid as error:
                log.error("alert.unreadable", unit_id=unit, facts=error.facts)  # noqa: TRY400
            else:
                good.append(alert)
        made.append(wire.alert_set(unit, good, latches.get(unit)))
    return made
