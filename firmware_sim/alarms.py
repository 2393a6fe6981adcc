"""Alerts on a node: the sets in force by unit, the time they are obeyed by, the rounds, and their recordings.

An alert waits a few seconds for trusted time, which the same link brings; then it sounds without. What is obeyed is
entered in the book as soon as there is an idea of the time; the book moves on with what has sounded. When the node's
clock is set while a round sounds, the round goes on where it is: it was the clock that was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from firmware_sim.alarm_book import AlarmBook
from firmware_sim.clock import MS, SECOND, Discipline
from firmware_sim.player import SAMPLE_RATE_HZ, AlertsInForce, AssetPcm, Chunk, Situation
from firmware_sim.trust import AlertsOf
from speaker_protocol.messages import AlertBody
from speaker_protocol.rounds import UNKNOWN_MESSAGE_MS
from speaker_protocol.rules import Why

WAIT_FOR_TIME_S: Final = 5.0
SET_NS: Final = SECOND
"""A leap of the node's time above this, between two samples that follow each other, is the clock being set."""


class Alarms:
    """The alerts of one life of a node; what `decide` must know of them is put into the situation."""

    def __init__(self, situation: Situation, clock: Discipline) -> None:
        self.book = AlarmBook()
        self._situation = situation
        self._clock = clock
        self._sets: dict[str, AlertsOf] = {}
        self._waits_since_s: float | None = None
        self._floor: tuple[int, int] | None = None
        """`(device_ns, signed_ms)`: without a clock, time is at least what a signed alert says."""
        self._changed_ms = 0
        """When the set that changed last was signed."""
        self._is_entered = False
        self._doubt_ns: int | None = None
        self._watched: tuple[int, int] | None = None

    # -- time

    def server_ns(self, device_ns: int) -> int | None:
        """Server time, be it as uncertain as it may; without any, what a signed alert says of it."""
        if self._clock.is_known:
            return self._clock.server_ns(device_ns)
        if self._floor is None:
            return None
        return self._floor[1] * MS + device_ns - self._floor[0]

    @property
    def is_waiting(self) -> bool:
        """Whether alerts came while the time was not trusted, and it still is not."""
        return self._waits_since_s is not None

    def may_sound_untimed(self, now_s: float) -> bool:
        """Whether the alerts that came have waited long enough for trusted time."""
        if self._waits_since_s is None:
            self._waits_since_s = now_s
        return now_s - self._waits_since_s >= WAIT_FOR_TIME_S

    def time_is_trusted(self) -> None:
        """Nothing waits any more."""
        self._waits_since_s = None

    def clock_was_set(self, by_ns: int, from_ns: int) -> None:
        """Samples go on at `from_ns`, which is `by_ns` off what followed; what is queued still has the old time."""
        self._shift(by_ns)
        self._doubt_ns = from_ns

    def watch(self, server_ns: int, crystal_ns: int) -> None:
        """Without a sound card: notice that the clock was set by what the crystal counted meanwhile."""
        before, self._watched = self._watched, (server_ns, crystal_ns)
        if before is not None:
            leap_ns = (server_ns - before[0]) - (crystal_ns - before[1])
            if abs(leap_ns) > SET_NS:
                self._shift(leap_ns)

    def _shift(self, by_ns: int) -> None:
        self.book.shift(by_ns // MS)
        self._situation.turns = self.book.turns

    # -- what is in force

    def take(self, unit: str, alerts: AlertsOf, path: tuple[str, ...], untimed_device_ns: int | None) -> None:
        """A verified set. `untimed_device_ns`: the device's clock now, if the set was judged without trusted time."""
        self._sets[unit] = alerts
        self._changed_ms = alerts.issued_ms
        self.merge(path)
        if untimed_device_ns is not None and self.is_waiting and not self._clock.is_known:
            floor_ns = self.server_ns(untimed_device_ns)
            if floor_ns is None or floor_ns < alerts.issued_ms * MS:
                self._floor = (untimed_device_ns, alerts.issued_ms)

    def drop(self, is_revoked: Callable[[bytes], bool], path: tuple[str, ...]) -> list[str]:
        """Forget the sets that a revoked key signed; the units they were for."""
        units = [unit for unit, alerts in self._sets.items() if alerts.key_id and is_revoked(alerts.key_id)]
        for unit in units:
            del self._sets[unit]
        if units:
            self.merge(path)
        return units

    def merge(self, path: tuple[str, ...]) -> None:
        """The sets of the units on the node's path, each alert once."""
        sets = [alerts.body for unit, alerts in self._sets.items() if unit in path]
        named = {alert.alert_id: alert for one in sets for alert in one.alerts}
        self._situation.alerts = AlertsInForce(tuple(named.values()), any(one.stop_all is not None for one in sets))

    def enter(self, device_ns: int) -> tuple[tuple[AlertBody, Why], ...] | None:
        """Bring the book up to what is in force; the alerts newly refused, None if nothing changed."""
        server_ns = self.server_ns(device_ns)
        if server_ns is None:
            return None
        now_ms, situation = server_ns // MS, self._situation
        alerts, is_stopped = situation.alerts.alerts, situation.alerts.stop_all
        refused = None
        if not self._is_entered:
            self._is_entered = True
            self.book.wake(alerts, situation.state(), now_ms)
        if (alerts, is_stopped) != (self.book.alerts, self.book.is_stopped):
            refused = self.book.change(
                alerts, is_stopped=is_stopped, state=situation.state(), now_ms=now_ms, changed_ms=self._changed_ms
            )
        situation.turns = self.book.turns
        return refused

    # -- rounds

    def played(self, chunk: Chunk) -> bool | None:
        """A chunk has left the output; whether a round ended with it. None: its time is no measure (clock set)."""
        if self._doubt_ns is not None:
            if abs(chunk.server_ns - self._doubt_ns) > SET_NS:
                return None
            self._doubt_ns = None
        if not self.book.alerts or not chunk.server_ns:
            return False
        return self.advance((chunk.server_ns + chunk.samples * SECOND // SAMPLE_RATE_HZ) // MS)

    def advance(self, now_ms: int) -> bool:
        """Move the rounds on to an instant; whether one ended."""
        if not self.book.alerts:
            return False
        is_over = self.book.commit(self._situation.state(), now_ms)
        self._situation.turns = self.book.turns
        return is_over

    def amplifier_is_back(self, server_ns: int) -> None:
        """After a while in which nothing could sound."""
        self.book.rejoin(self._situation.state(), server_ns // MS)
        self._situation.turns = self.book.turns

    # -- recordings

    def woke(self, held: Iterable[str]) -> None:
        """Recordings that were here before the power went need no repetition to wait for."""
        mine = {alert.asset for alert in self._situation.alerts.alerts}
        self._situation.alert_assets = {sha256: 0 for sha256 in held if sha256 in mine}

    def refresh_assets(self, device_ns: int, sound: Callable[[str], AssetPcm | None] | None) -> None:
        """Note which recordings can sound from their first sample on. `sound`: None on a node without samples."""
        server_ns = self.server_ns(device_ns)
        if server_ns is None:
            return
        held = dict(self._situation.alert_assets)
        for alert in self._situation.alerts.alerts:
            sha256 = alert.asset
            if sha256 is None or sha256 in held or sha256 not in self._situation.ready_assets:
                continue
            found = None if sound is None else sound(sha256)
            if sound is None or (found is not None and found.is_ready(0, self.samples_of(alert))):
                held[sha256] = server_ns // MS
        self._situation.alert_assets = held

    def samples_of(self, alert: AlertBody) -> int:
        """How long an alert's recording is."""
        told_ms = alert.asset_ms or self._situation.asset_ms.get(alert.asset or "") or UNKNOWN_MESSAGE_MS
        return told_ms * SAMPLE_RATE_HZ // 1000
