"""Two small loops that keep the outside in step with the rows: the broker's users, and the feeds' credentials and
states.

Both follow the doorbell and look by themselves every few seconds, so a change made by another process arrives too.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Protocol

from broadcast_server.domain.clock import Clock
from broadcast_server.logs import get_logger
from broadcast_server.relay.engine import StreamStatus
from broadcast_server.relay.ingest import SourceInfo
from broadcast_server.store import feeds, fleet
from broadcast_server.store.session import Session, Store
from broadcast_server.store.words import FeedState

log = get_logger()

USERS_LOOK_S: Final = 5.0
FEEDS_LOOK_S: Final = 1.0


class Streams(Protocol):
    """What is asked of the relay engine."""

    def status(self) -> Mapping[str, StreamStatus]:
        """Every running stream by its id."""
        ...


class Pushed(Protocol):
    """What is asked of the push listener."""

    def connected(self) -> Mapping[str, SourceInfo]:
        """The sources that are connected now, by feed id."""
        ...

    async def revoke(self, feed_id: str) -> bool:
        """End the feed's connection now; whether there was one."""
        ...


class Users(Protocol):
    """What is asked of the embedded broker."""

    async def set_users(self, users: Mapping[str, str]) -> None:
        """Let exactly these in: password lines by name."""
        ...


class BrokerKeeper:
    """Gives the embedded broker the users that the rows name: the server itself and every node that is not retired."""

    def __init__(self, *, store: Store, broker: Users, server_line: tuple[str, str]) -> None:
        """`server_line`: our own user and its password line."""
        self._store, self._broker, self._server_line = store, broker, server_line
        self._ear = store.doorbell.ear()
        self._given: Mapping[str, str] | None = None

    async def run(self) -> None:
        """Look at every ring, and every few seconds, for ever."""
        while True:
            await self._ear.wait(USERS_LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Give the broker the users of now, if they changed."""
        users = await self._store.read(fleet.password_lines)
        wanted = {**users, self._server_line[0]: self._server_line[1]}
        if wanted != self._given:
            await self._broker.set_users(wanted)
            self._given = wanted
            log.info("broker.users_set", users=len(wanted))


class FeedKeeper:
    """Lets stations in by their rows, cuts them when their credential changed, and writes down what feeds are doing."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._ear = store.doorbell.ear()
        self._admitted: dict[str, int] = {}
        self._told: dict[str, tuple[FeedState, str | None]] = {}

    async def authenticate(self, mount: str, user: str, password: str) -> str:
        """For the ingest: the feed's id. Raises `Refused` and `NotFound`."""
        now = self._clock.now()
        row = await self._store.read(lambda session: feeds.check_push_credential(session, mount, user, password, now))
        self._admitted.setdefault(row.id, row.credential_version)
        return row.id

    async def run(self, engine: Streams, ingest: Pushed) -> None:
        """Look at every ring, and every second, for ever."""
        while True:
            await self._ear.wait(FEEDS_LOOK_S)
            await self.look(engine, ingest)

    async def look(self, engine: Streams, ingest: Pushed) -> None:
        """Cut what may no longer push; write states that changed."""
        now = self._clock.now()
        connected = ingest.connected()
        versions: dict[str, int] = {}
        if connected:
            versions = await self._store.read(lambda session: feeds.credential_versions(session, now))
        for feed_id in connected:
            if versions.get(feed_id) != self._admitted.get(feed_id):
                log.warning("feed.credential_changed", feed_id=feed_id)
                await ingest.revoke(feed_id)
                self._admitted.pop(feed_id, None)  # whoever comes next comes with the credential of now
        for feed_id in self._admitted.keys() - ingest.connected().keys():  # as of now: one may just have come in
            del self._admitted[feed_id]
        await self._write_states(engine, ingest, now)

    async def _write_states(self, engine: Streams, ingest: Pushed, now: datetime) -> None:
        seen: dict[str, tuple[FeedState, str | None, dict[str, Any]]] = {}
        for feed_id, source in ingest.connected().items():
            seen[feed_id] = (FeedState.IDLE, None, {"agent": source.user_agent, "bytes_in": source.bytes_in})
        for status in engine.status().values():
            facts = {"bytes_in": status.bytes_in, "listeners": status.listeners}
            seen[status.feed_id] = (FeedState(status.state.value), status.reason, facts)
        for feed_id in self._told.keys() - seen.keys():
            seen[feed_id] = (FeedState.UNKNOWN, None, {})
        changed = {feed_id: word for feed_id, word in seen.items() if self._told.get(feed_id) != (word[0], word[1])}
        if not changed:
            return

        def write(session: Session) -> None:
            for feed_id, (state, reason, facts) in changed.items():
                feeds.put_status(session, feed_id, state=state, reason=reason, now=now, body=facts)

        await self._store.begin(write, ring=False)
        for feed_id, (state, reason, _) in changed.items():
            if state is FeedState.UNKNOWN:
                del self._told[feed_id]
            else:
                self._told[feed_id] = (state, reason)
