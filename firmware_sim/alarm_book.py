"""The node's book of alerts: turns, what it refused, what it has sounded; durable, so that a reboot changes nothing.

The rules say whose round sounds (`rounds.on_air`); this book keeps what they must be told. Turns move on with what has
*sounded*, not with what was rendered ahead: a power cut finds the round where it really was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from speaker_protocol import messages as wire
from speaker_protocol import rounds
from speaker_protocol.rounds import Turn
from speaker_protocol.rules import NodeState, Trouble, Why, alert_refusal

KEEP: Final = 256
"""Alerts remembered after they left the set: one that comes back is not sounded again."""


@dataclass(slots=True)
class Entry:
    """One alert's line in the book."""

    turn: Turn
    expires_ms: int
    first_ms: int | None = None
    """When its first sample sounded."""
    refused: str | None = None


@dataclass(slots=True)
class AlarmBook:
    """The alerts of one node."""

    entries: dict[str, Entry] = field(default_factory=dict)
    alerts: tuple[wire.AlertBody, ...] = ()
    is_stopped: bool = False

    @property
    def turns(self) -> dict[str, Turn]:
        """Where the node is with each alert."""
        return {alert_id: entry.turn for alert_id, entry in self.entries.items()}

    def change(
        self,
        alerts: tuple[wire.AlertBody, ...],
        *,
        is_stopped: bool,
        state: NodeState,
        now_ms: int,
        changed_ms: int,
    ) -> tuple[tuple[wire.AlertBody, Why], ...]:
        """The alerts in force are now these. Returns those newly refused, with the reason.

        `changed_ms`: when the set was signed; what begins anew because of it begins then on every pole, if the node
        heard of it in time.
        """
        anew_ms = changed_ms if 0 <= now_ms - changed_ms <= rounds.TONE_MS else now_ms
        if self.is_stopped and not is_stopped:
            self._take(rounds.hold(self.turns, anew_ms))
        obeyed = [alert for alert in alerts if alert_refusal(alert, state) is None]
        before = [] if self.is_stopped else [a for a in self.alerts if alert_refusal(a, state) is None]
        expiry = {alert.alert_id: alert.expires_ms for alert in alerts}
        self._take(rounds.learn(before, obeyed, self.turns, now_ms, state.asset_ms, anew_ms=anew_ms), expiry)
        refused = []
        for alert in alerts:
            why = alert_refusal(alert, state)
            entry = self.entries.setdefault(alert.alert_id, Entry(Turn(now_ms), alert.expires_ms))
            if why is not None and entry.refused != why.value:
                refused.append((alert, why))
            entry.refused = why.value if why is not None else None
            entry.expires_ms = max(entry.expires_ms, alert.expires_ms)
        self.alerts, self.is_stopped = alerts, is_stopped
        self._forget(now_ms)
        return tuple(refused)

    def commit(self, state: NodeState, now_ms: int) -> bool:
        """Sound has left the output up to `now_ms`; whether a round ended (which must be stored)."""
        if not self.alerts or self.is_stopped or state.muted is not None:
            return False
        before = {alert_id: entry.turn.rounds for alert_id, entry in self.entries.items()}
        obeyed = [alert for alert in self.alerts if alert_refusal(alert, state) is None]
        self._take(dict(rounds.on_air(obeyed, self.turns, now_ms, state.asset_ms).turns))
        return any(entry.turn.rounds != before.get(alert_id) for alert_id, entry in self.entries.items())

    def wake(self, alerts: tuple[wire.AlertBody, ...], state: NodeState, now_ms: int) -> None:
        """After a power-on: of the alerts in force then, what was missed was not sounded."""
        self.alerts = tuple(alert for alert in alerts if alert.alert_id in self.entries)
        self.rejoin(state, now_ms)

    def rejoin(self, state: NodeState, now_ms: int) -> None:
        """After a while without sound: what was missed was not sounded."""
        self._take(rounds.after_gap(self.alerts, self.turns, now_ms, state.asset_ms))

    def shift(self, by_ms: int) -> None:
        """The node's clock was set."""
        self._take(rounds.shifted(self.turns, by_ms))

    def started(self, alert_id: str, at_ms: int) -> None:
        """A round of it has begun to sound."""
        entry = self.entries.get(alert_id)
        if entry is not None and entry.first_ms is None:
            entry.first_ms = at_ms

    def progress(self, sounding: str | None, *, has_output: bool) -> tuple[wire.AlertProgress, ...]:
        """How far the node is with each alert in force."""
        told = []
        for alert in sorted(self.alerts, key=lambda one: (-one.level, one.issued_ms, one.alert_id))[:32]:
            entry = self.entries[alert.alert_id]
            why = Why.STOP_ALL.value if self.is_stopped else entry.refused
            told.append(
                wire.AlertProgress(
                    alert_id=alert.alert_id,
                    rounds=entry.turn.rounds,
                    first_ms=entry.first_ms,
                    is_sounding=has_output and alert.alert_id == sounding,
                    why=why or (None if has_output else Trouble.NO_OUTPUT.value),
                )
            )
        return tuple(told)

    def _take(self, turns: Mapping[str, Turn], expiry: Mapping[str, int] | None = None) -> None:
        for alert_id, turn in turns.items():
            entry = self.entries.get(alert_id)
            if entry is None:
                self.entries[alert_id] = Entry(turn, (expiry or {}).get(alert_id, 0))
            else:
                entry.turn = turn

    def _forget(self, now_ms: int) -> None:
        inforce = {alert.alert_id for alert in self.alerts}
        gone = [alert_id for alert_id in self.entries if alert_id not in inforce]
        for alert_id in gone:
            if self.entries[alert_id].expires_ms < now_ms:
                del self.entries[alert_id]
        left = [alert_id for alert_id in self.entries if alert_id not in inforce]
        for alert_id in left[: max(0, len(left) - KEEP)]:
            del self.entries[alert_id]

    def dump(self) -> list[list[Any]]:
        """As stored."""
        return [
            [alert_id, entry.turn.due_ms, entry.turn.rounds, entry.expires_ms, entry.first_ms]
            for alert_id, entry in self.entries.items()
        ]

    def load(self, told: list[list[Any]]) -> None:
        """From the store. Raises `ValueError`, `TypeError` on what is none."""
        self.entries = {
            str(alert_id): Entry(Turn(int(due_ms), int(done)), int(expires_ms), first_ms)
            for alert_id, due_ms, done, expires_ms, first_ms in told
        }
