"""Verbs on relaying a feed: who stands in, the filler, the delay and its cut button, stopping it everywhere, listening
in, and what really sounded.

A maintainer must not break: (1) a cut and a stop are states that latch until a person releases them, never messages;
(2) who may stop anything at the owner's place may cut and stop the feed, for a wrong sound does not wait for an owner;
(3) listening in is audited, and its bytes never pass through the store; (4) a substitute is one that the feed's owner
may relay, asked again whenever it is needed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.feeds import is_seen, pushable, seen_feed
from broadcast_server.control.places import check_version, clean_text
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused, Unavailable
from broadcast_server.store import audit, feeds, library, places, relays
from broadcast_server.store.relays import MOST_SUBSTITUTES
from broadcast_server.store.session import Session
from broadcast_server.store.tables import FeedRow, FeedStatusRow, PushSessionRow, RelaySpanRow
from broadcast_server.store.words import ListenAt

LONGEST_DELAY_MS: Final = 30_000


class Monitor(Protocol):
    """Who lets people listen in; the relay's engine in this process."""

    def listen(self, feed_id: str, at: ListenAt) -> AsyncGenerator[bytes, None]:
        """Ogg Opus as it is relayed. Raises `Unavailable("monitor_not_here" | "monitor_full")` before any byte."""
        ...


@dataclass(frozen=True, slots=True)
class RelayView:
    """How a feed is relayed and what its stream does."""

    feed: FeedRow
    substitutes: tuple[FeedRow, ...]
    status: FeedStatusRow | None


@dataclass(frozen=True, slots=True)
class RelaySetting:
    """Substitutes in order (ids), the bulletin that fills, how long sound is held back. The whole, not a change."""

    substitutes: tuple[str, ...] = ()
    filler_id: str | None = None
    delay_ms: int = 0


async def get_relay(desk: Desk, actor: Actor, feed_id: str) -> RelayView:
    """For whoever owns the feed or may come to relay it. Raises `NotFound("unknown_feed")`."""
    now = desk.clock.now()

    def work(session: Session) -> RelayView:
        return _view(session, seen_feed(session, actor, feed_id, now))

    return await desk.store.read(work)


async def set_relay(
    desk: Desk, actor: Actor, feed_id: str, setting: RelaySetting, *, version: int | None = None
) -> RelayView:
    """Say who stands in for the feed, what fills, and the delay.

    Raises `Invalid` naming the field, `Refused("substitute_not_offered" | "not_approved")`.
    """
    now = desk.clock.now()
    if not 0 <= setting.delay_ms <= LONGEST_DELAY_MS:
        raise Invalid("delay_out_of_range", field="delay_ms", most_ms=LONGEST_DELAY_MS)
    if len(setting.substitutes) > MOST_SUBSTITUTES:
        raise Invalid("too_many_substitutes", field="substitutes", most=MOST_SUBSTITUTES)

    def work(session: Session) -> RelayView:
        row = feeds.feed(session, feed_id)
        access.authorize(session, actor, Action.FEED_OWN, row, at=now, seen=is_seen(session, actor, feed_id, now))
        check_version(row.version, version)
        for number, substitute_id in enumerate(setting.substitutes):
            field = f"substitutes[{number}]"
            if substitute_id == feed_id:
                raise Invalid("substitute_circle", field=field, feed_id=feed_id)
            if substitute_id in setting.substitutes[:number]:
                raise Invalid("substitute_twice", field=field, feed_id=substitute_id)
            _check_substitute(session, row, substitute_id, field, now)
        if setting.filler_id is not None:
            bulletin = library.bulletin(session, setting.filler_id)
            if not places.is_on_line(session, row.unit_id, bulletin.unit_id, places.local_date(now)):
                raise access.unknown(bulletin)
            if relays.filler_asset(session, bulletin.id) is None:
                raise Refused("not_approved", field="filler_id", bulletin_id=bulletin.id)
        relays.put_substitutes(session, feed_id, setting.substitutes)
        row.filler_id, row.delay_ms = setting.filler_id, setting.delay_ms
        row.version += 1
        detail = {"substitutes": list(setting.substitutes), "filler_id": row.filler_id, "delay_ms": row.delay_ms}
        _tell(session, actor, "feed.relay_set", row, now, detail)
        return _view(session, row)

    return await desk.store.begin(work)


async def cut_feed(desk: Desk, actor: Actor, feed_id: str) -> RelayView:
    """Drop what the delay still holds and sound no feed here until released. Twice is once."""
    now = desk.clock.now()

    def work(session: Session) -> RelayView:
        row = _stoppable(session, actor, feed_id, now)
        if row.cut_at is None:
            row.cut_at, row.cut_by = now, actor.login
            row.version += 1
            _tell(session, actor, "feed.cut", row, now, {})
        return _view(session, row)

    return await desk.store.begin(work)


async def release_cut(desk: Desk, actor: Actor, feed_id: str) -> RelayView:
    """Let the feed sound again, after its delay. Twice is once."""
    now = desk.clock.now()

    def work(session: Session) -> RelayView:
        row = _stoppable(session, actor, feed_id, now)
        if row.cut_at is not None:
            row.cut_at = row.cut_by = None
            row.version += 1
            _tell(session, actor, "feed.cut_release", row, now, {})
        return _view(session, row)

    return await desk.store.begin(work)


async def stop_feed(desk: Desk, actor: Actor, feed_id: str, reason: str) -> RelayView:
    """Stop relaying the feed everywhere, as itself and as anybody's substitute, until released.

    Raises `Invalid("reason_missing")`, `Conflict("feed_stopped")` when another reason stands.
    """
    now = desk.clock.now()
    said = clean_text(reason, "reason", code="reason_missing", longest=300)

    def work(session: Session) -> RelayView:
        row = _stoppable(session, actor, feed_id, now)
        if row.stopped_at is not None and row.stop_reason != said:
            raise Conflict("feed_stopped", feed_id=feed_id, by=row.stopped_by)
        if row.stopped_at is None:
            row.stopped_at, row.stopped_by, row.stop_reason = now, actor.login, said
            row.version += 1
            _tell(session, actor, "feed.stop", row, now, {"reason": said})
        return _view(session, row)

    return await desk.store.begin(work)


async def release_feed(desk: Desk, actor: Actor, feed_id: str) -> RelayView:
    """Let a stopped feed be relayed again. Twice is once."""
    now = desk.clock.now()

    def work(session: Session) -> RelayView:
        row = _stoppable(session, actor, feed_id, now)
        if row.stopped_at is not None:
            row.stopped_at = row.stopped_by = row.stop_reason = None
            row.version += 1
            _tell(session, actor, "feed.release", row, now, {})
        return _view(session, row)

    return await desk.store.begin(work)


async def list_spans(
    desk: Desk, actor: Actor, feed_id: str, *, since: datetime | None = None, until: datetime | None = None
) -> list[RelaySpanRow]:
    """What the feed's stream sounded, oldest first."""
    now = desk.clock.now()

    def work(session: Session) -> list[RelaySpanRow]:
        row = seen_feed(session, actor, feed_id, now)
        return relays.spans(session, row.id, since=since, until=until)

    return await desk.store.read(work)


async def list_pushes(
    desk: Desk, actor: Actor, feed_id: str, *, after: str | None = None, limit: int = 100
) -> list[PushSessionRow]:
    """The station's connections and the refusals of others, the latest first; for the feed's owner."""
    now = desk.clock.now()

    def work(session: Session) -> list[PushSessionRow]:
        row = pushable(session, actor, feed_id, now)
        return relays.push_sessions(session, row.id, after=after, limit=limit)

    return await desk.store.read(work)


async def listen_in(
    desk: Desk, monitor: Monitor | None, actor: Actor, feed_id: str, at: ListenAt = ListenAt.RELAY
) -> AsyncGenerator[bytes, None]:
    """The feed as Ogg Opus, for who may stop something and sees the feed.

    Raises `NotFound`, `Refused("not_permitted")`, `Unavailable("monitor_not_here" | "monitor_full")`.
    """
    now = desk.clock.now()
    if monitor is None:
        raise Unavailable("monitor_not_here", feed_id=feed_id)

    def work(session: Session) -> str:
        row = seen_feed(session, actor, feed_id, now)
        may_stop = access.scope(session, actor, Action.STOP, at=now)
        if may_stop is not None and not may_stop:
            pushable(session, actor, feed_id, now)
        _tell(session, actor, "feed.listen", row, now, {"at": at.value})
        return row.id

    return monitor.listen(await desk.store.begin(work), at)


# -- shared -----------------------------------------------------------------------------------------------------------


def _stoppable(session: Session, actor: Actor, feed_id: str, now: datetime) -> FeedRow:
    row = feeds.feed(session, feed_id)
    if not access.may(session, actor, Action.FEED_OWN, row, at=now):
        access.authorize(session, actor, Action.STOP, row, at=now, seen=is_seen(session, actor, feed_id, now))
    return row


def _check_substitute(session: Session, row: FeedRow, substitute_id: str, field: str, now: datetime) -> None:
    try:
        substitute = feeds.feed(session, substitute_id)
    except NotFound as unknown:
        raise Invalid("unknown_feed", field=field, feed_id=substitute_id) from unknown
    if not feeds.is_known_to(session, substitute, row.unit_id, places.local_date(now)):
        raise Invalid("unknown_feed", field=field, feed_id=substitute_id)
    if not feeds.may_relay(session, substitute, row.unit_id, now):
        raise Refused("substitute_not_offered", field=field, feed_id=substitute_id)


def _view(session: Session, row: FeedRow) -> RelayView:
    return RelayView(row, tuple(relays.substitutes_of(session, row.id)), session.get(FeedStatusRow, row.id))


def _tell(session: Session, actor: Actor, verb: str, row: FeedRow, now: datetime, detail: dict[str, Any]) -> None:
    audit.append(
        session,
        now=now,
        actor=actor.login,
        verb=verb,
        unit_id=row.unit_id,
        subject=f"feed/{row.id}",
        detail=detail,
    )
