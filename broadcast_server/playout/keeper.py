"""Two small loops that keep the outside in step with the rows: the broker's users, and the feeds' credentials and
states.

Both follow the doorbell and look by themselves every few seconds, so a change made by another process arrives too.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.logs import get_logger
from broadcast_server.relay.engine import Metered, StreamStatus
from broadcast_server.relay.ingest import EndReason, IngestEvent, SourceInfo
from broadcast_server.relay.switching import Sounding, SourceKind
from broadcast_server.store import feeds, fleet, relays
from broadcast_server.store.session import Session, Store
from broadcast_server.store.words import FeedState, RelayedKind

log = get_logger()

USERS_LOOK_S: Final = 5.0
FEEDS_LOOK_S: Final = 1.0
METER_EVERY_S: Final = 5.0
EVENTS_KEPT: Final = 1_000


class Streams(Protocol):
    """What is asked of the relay engine."""

    def status(self) -> Mapping[str, StreamStatus]:
        """Every running stream by its id."""
        ...

    def changes(self) -> list[Sounding]:
        """What began to sound since this was last asked."""
        ...

    async def meter(self, feed_ids: Collection[str]) -> None:
        """Show the level of these pushed feeds although nobody relays them."""
        ...

    def metered(self) -> Mapping[str, Metered]:
        """What the meters show."""
        ...


class PushListener(Protocol):
    """What is asked of the push listener."""

    def connected(self) -> Mapping[str, SourceInfo]:
        """The sources that are connected now, by feed id."""
        ...

    async def revoke(self, feed_id: str, reason: EndReason) -> bool:
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
    """Lets stations in by their rows, cuts them when their credential changed, and writes down what feeds are doing.

    What it writes: a state when it changed, what sounded span by span, every push connection with how it ended, and the
    meters now and then. Events that come faster than they are written are bounded; the oldest are lost and counted.
    """

    def __init__(self, *, store: Store, clock: Clock, chance: Chance) -> None:
        self._store, self._clock, self._chance = store, clock, chance
        self._ear = store.doorbell.ear()
        self._admitted: dict[str, int] = {}
        self._told: dict[str, tuple[Any, ...]] = {}
        self._events: deque[relays.Pushed] = deque(maxlen=EVENTS_KEPT)
        self._refused: Counter[str] = Counter()
        self._metered_s = -METER_EVERY_S
        self._bytes: dict[str, int] = {}
        self.events_lost = 0

    async def authenticate(self, mount: str, user: str, password: str) -> str:
        """For the ingest: the feed's id. Raises `Refused` and `NotFound`."""
        now = self._clock.now()
        row = await self._store.read(lambda session: feeds.check_push_credential(session, mount, user, password, now))
        self._admitted.setdefault(row.id, row.credential_version)
        return row.id

    def heard(self, event: IngestEvent) -> None:
        """For the ingest: a source came, went, or was turned away."""
        self.events_lost += len(self._events) == EVENTS_KEPT
        is_refused = event.reason is EndReason.MOUNT_BUSY
        self._refused[event.feed_id] += is_refused
        self._events.append(
            relays.Pushed(
                feed_id=event.feed_id,
                at=event.at,
                reason=None if event.reason is None else event.reason.value,
                bytes_in=event.bytes_in,
                agent=event.user_agent,
                address=event.address,
                is_refused=is_refused,
            )
        )
        self._ear.hear()

    async def run(self, engine: Streams, ingest: PushListener) -> None:
        """Look at every ring, and every second, for ever."""
        while True:
            await self._ear.wait(FEEDS_LOOK_S)
            await self.look(engine, ingest)

    async def look(self, engine: Streams, ingest: PushListener) -> None:
        """Cut what may no longer push; write what changed."""
        now = self._clock.now()
        await self._cut(ingest, now)
        await engine.meter(ingest.connected().keys())
        await self._write(engine, ingest, now)

    async def _cut(self, ingest: PushListener, now: datetime) -> None:
        connected = ingest.connected()
        versions: dict[str, int] = {}
        over: set[str] = set()
        if connected:
            versions, over = await self._store.read(
                lambda session: (feeds.credential_versions(session, now), feeds.out_of_validity(session, now))
            )
        for feed_id in connected:
            if versions.get(feed_id) != self._admitted.get(feed_id):
                reason = EndReason.WINDOW_OVER if feed_id in over else EndReason.REVOKED
                log.warning("feed.credential_changed", feed_id=feed_id, reason=reason.value)
                await ingest.revoke(feed_id, reason)
                self._admitted.pop(feed_id, None)  # whoever comes next comes with the credential of now
        for feed_id in self._admitted.keys() - ingest.connected().keys():  # as of now: one may just have come in
            del self._admitted[feed_id]

    # -- writing

    async def _write(self, engine: Streams, ingest: PushListener, now: datetime) -> None:
        connected, running = ingest.connected(), engine.status()
        now_s = self._clock.monotonic()
        seen = self._seen(engine, connected, running)
        is_meter_due = now_s - self._metered_s >= METER_EVERY_S
        if is_meter_due:
            self._add_rates(seen, connected, now_s - self._metered_s)
            self._metered_s = now_s
        written = {
            feed_id: word for feed_id, word in seen.items() if is_meter_due or self._told.get(feed_id) != word.key
        }
        changes = [(self._chance.new_id(), _relayed(change)) for change in engine.changes()]
        events = [(self._chance.new_id(), self._events.popleft()) for _ in range(len(self._events))]
        if not (written or changes or events or is_meter_due):
            return

        def write(session: Session) -> None:
            for feed_id, word in written.items():
                body = word.body | _names(session, word.body)
                feeds.put_status(session, feed_id, state=word.state, reason=word.reason, now=now, body=body)
            relays.note_relayed(session, changes, now)
            relays.note_pushed(session, events)
            if is_meter_due:
                relays.still_relayed(session, [status.feed_id for status in running.values()], now)
                relays.still_pushed(session, {feed_id: each.bytes_in for feed_id, each in connected.items()}, now)

        await self._store.begin(write, ring=False)
        for feed_id, word in written.items():
            if word.state is FeedState.UNKNOWN:
                self._told.pop(feed_id, None)
            else:
                self._told[feed_id] = word.key

    def _seen(
        self, engine: Streams, connected: Mapping[str, SourceInfo], running: Mapping[str, StreamStatus]
    ) -> dict[str, _Word]:
        """What each feed is doing; one that was told of and is gone is unknown."""
        metered = engine.metered()
        seen: dict[str, _Word] = {}
        for feed_id, source in connected.items():
            body: dict[str, Any] = {"agent": source.user_agent, "bytes_in": source.bytes_in}
            reason = None
            if feed_id in metered:
                meter = metered[feed_id]
                reason = None if meter.fault is None else meter.fault.value
                body |= {"level_dbfs": round(meter.level_dbfs, 1), "drift_ppm": _rounded(meter.drift_ppm)}
            seen[feed_id] = _Word(FeedState.IDLE, reason, body)
        for status in running.values():
            body = {"bytes_in": status.bytes_in, "listeners": status.listeners, **_sounding(status)}
            body |= {"level_dbfs": _rounded(status.level_dbfs), "drift_ppm": _rounded(status.drift_ppm)}
            if status.feed_id in metered:
                body["format_changes"] = metered[status.feed_id].status.format_changes
            if status.feed_id in connected:
                body["agent"] = connected[status.feed_id].user_agent
            seen[status.feed_id] = _Word(FeedState(status.state.value), status.reason, body)
        for feed_id in self._told.keys() - seen.keys():
            seen[feed_id] = _Word(FeedState.UNKNOWN, None, {})
        for feed_id, times in self._refused.items():
            if feed_id in seen:
                seen[feed_id].body["refused"] = times
        return seen

    def _add_rates(self, seen: Mapping[str, _Word], connected: Mapping[str, SourceInfo], passed_s: float) -> None:
        before, self._bytes = self._bytes, {feed_id: each.bytes_in for feed_id, each in connected.items()}
        for feed_id, bytes_in in self._bytes.items():
            if feed_id in before and feed_id in seen and bytes_in >= before[feed_id] and passed_s < 10 * METER_EVERY_S:
                seen[feed_id].body["kbps"] = round((bytes_in - before[feed_id]) * 8 / 1000 / passed_s)


@dataclass(frozen=True, slots=True)
class _Word:
    """What is said of one feed."""

    state: FeedState
    reason: str | None
    body: dict[str, Any]

    @property
    def key(self) -> tuple[Any, ...]:
        """What must have changed for it to be written at once."""
        body = self.body
        sounding = body.get("sounding") or {}
        return (
            self.state,
            self.reason,
            sounding.get("kind"),
            sounding.get("id"),
            body.get("lost_since"),
            body.get("refused"),
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _sounding(status: StreamStatus) -> dict[str, Any]:
    sounding = status.sounding
    told: dict[str, Any] = {"lost_since": None if status.lost_since is None else status.lost_since.isoformat()}
    if sounding is not None and sounding.kind is not SourceKind.OVER:
        told["sounding"] = {
            "kind": sounding.kind.value,
            "id": sounding.source_id,
            "reason": sounding.reason,
            "since": sounding.since.isoformat(),
        }
    return told


def _names(session: Session, body: Mapping[str, Any]) -> dict[str, Any]:
    """The name of what sounds instead, looked up as it is written."""
    sounding = body.get("sounding")
    if sounding is None or sounding["id"] is None:
        return {}
    is_feed = sounding["kind"] == RelayedKind.SUBSTITUTE
    name = feeds.name_of(session, sounding["id"]) if is_feed else relays.name_of_asset(session, sounding["id"])
    return {"sounding": {**sounding, "name": name}}


def _relayed(change: Sounding) -> relays.Relayed:
    kind = None if change.kind is SourceKind.OVER else RelayedKind(change.kind.value)
    return relays.Relayed(change.feed_id, kind, change.source_id, change.reason, change.sounds_from)
