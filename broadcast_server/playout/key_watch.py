"""What nodes are told of keys, looked at as it leaves: what ends soon is said loudly, what is new is written down.

It reads the delegations themselves, so it needs no way to the private keys, wherever they lie. A maintainer must not
break: a warning stands in the store before it is only in a log, for `/readyz` and people read it there.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

from broadcast_server.domain.clock import Clock, from_ms, to_ms
from broadcast_server.logs import get_logger
from broadcast_server.playout import wire
from broadcast_server.store import audit, facts
from broadcast_server.store.session import Session, Store

log = get_logger()

SAID_EVERY: Final = timedelta(hours=12)
MOST_NAMED: Final = 20


class KeyWatch:
    """One per conductor."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._ends: dict[tuple[str, str], datetime] = {}
        """When the last key of a role and a unit ends."""
        self._heard: set[str] = set()
        self._known: set[str] | None = None
        self._held: dict[str, Any] | None = None
        self._said_at: datetime | None = None
        self.rl_version = 0

    def heard(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """These are published under `unit/{u}/keys`."""
        for _, payload in messages:
            told, rl_version = wire.keys_told(payload)
            self.rl_version = max(self.rl_version, rl_version)
            ends: dict[tuple[str, str], datetime] = {}
            for one in told:
                self._heard.add(one.key_id)
                place = (one.role, one.unit)
                ends[place] = max(one.until, ends.get(place, one.until))
            self._ends.update(ends)

    async def look(self) -> None:
        """Tell the store what changed; say what ends soon. Raises `Unavailable`."""
        now = self._clock.now()
        held = {"rl_version": self.rl_version, "ends": self._first_ends()}
        if self._known is None:
            known = await self._store.read(lambda session: facts.find(session, facts.KEYS_TOLD))
            self._known = set() if known is None else set(known["key_ids"])
        fresh = sorted(self._heard - self._known)
        if fresh or held != self._held:
            alive = sorted(self._heard | self._known)

            def write(session: Session) -> None:
                facts.put(session, facts.KEYS_HELD, held, now=now)
                if fresh:
                    facts.put(session, facts.KEYS_TOLD, {"key_ids": alive}, now=now)
                    audit.append(
                        session,
                        now=now,
                        actor="server",
                        verb="keys.delegated",
                        unit_id=None,
                        subject="keys",
                        detail={"count": len(fresh), "key_ids": fresh[:MOST_NAMED]},
                    )

            await self._store.begin(write, ring=False)
            self._held = held
            self._known |= self._heard
        self._say(held, now)

    def _first_ends(self) -> dict[str, Any]:
        first: dict[str, tuple[datetime, str]] = {}
        for (role, unit), until in self._ends.items():
            first[role] = min((until, unit), first.get(role, (until, unit)))
        return {role: {"until_ms": to_ms(until), "unit": unit} for role, (until, unit) in sorted(first.items())}

    def _say(self, held: dict[str, Any], now: datetime) -> None:
        if self._said_at is not None and now - self._said_at < SAID_EVERY:
            return
        for role, end in held["ends"].items():
            if from_ms(end["until_ms"]) - now < facts.keys_end_soon(role):
                self._said_at = now
                log.error("keys.ending", role=role, unit=end["unit"], until_ms=end["until_ms"])
