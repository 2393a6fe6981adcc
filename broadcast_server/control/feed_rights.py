"""Verbs on rights beside the roles: who may push a feed, and which unit carries one.

Pushing is a right of its own, per feed and dated: the owner gives it to a person or to an organisation. A unit above
offers a feed or obliges to it; the commune's head subscribes, and may drop what nobody obliges the commune to.
A maintainer must not break: a lapsed right ends what its credential is good for (`store.feed_rights.is_lapsed`), and a
dropped feed takes the unit's own relays of it along.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.feeds import is_seen, seen_feed
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused
from broadcast_server.store import audit, feed_rights, feeds, people, places
from broadcast_server.store.session import Session
from broadcast_server.store.tables import FeedRow
from broadcast_server.store.tables_rights import FeedSubscriptionRow, PushRightRow
from broadcast_server.store.words import FeedKind, ScheduleState


@dataclass(frozen=True, slots=True)
class NewPushRight:
    """Let a person or an organisation's people push the feed, from now or `valid_from` on. One of the two is given."""

    feed_id: str
    user_id: str | None = None
    unit_id: str | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None


async def give_push_right(desk: Desk, actor: Actor, request: NewPushRight) -> PushRightRow:
    """Give it, as the feed's owner.

    Raises `Invalid` naming the field, `Conflict("feed_not_push")`, `Refused("not_permitted")`.
    """
    now, right_id = desk.clock.now(), desk.chance.new_id()
    begins = request.valid_from or now
    if request.valid_to is not None and request.valid_to <= begins:
        raise Invalid("empty_validity", field="valid_to", fix="until_after_from")
    if (request.user_id is None) is (request.unit_id is None):
        raise Invalid("person_or_organisation", field="user_id", fix="name_one_of_both")

    def work(session: Session) -> PushRightRow:
        feed = _mine(session, actor, request.feed_id, now)
        if feed.kind is not FeedKind.PUSH:
            raise Conflict("feed_not_push", feed_id=feed.id)
        if request.unit_id is not None and not places.units(session, [request.unit_id]):
            raise Invalid("unknown_unit", field="unit_id", unit_id=request.unit_id)
        if request.user_id is not None and not people.grants_of(session, [request.user_id]):
            raise Invalid("unknown_user", field="user_id", user_id=request.user_id)
        row = PushRightRow(
            id=right_id,
            feed_id=feed.id,
            user_id=request.user_id,
            unit_id=request.unit_id,
            valid_from=begins,
            valid_to=request.valid_to,
            given_by=actor.login,
            created_at=now,
        )
        session.add(row)
        session.flush()
        holder = f"user/{row.user_id}" if row.user_id is not None else f"unit/{row.unit_id}"
        ends = None if row.valid_to is None else row.valid_to.isoformat()
        _tell(session, actor, "push_right.give", feed, now, right_id=row.id, holder=holder, until=ends)
        return row

    return await desk.store.begin(work)


async def end_push_right(desk: Desk, actor: Actor, right_id: str) -> PushRightRow:
    """Take it back from now on; whoever pushes by it alone is cut. Twice is once."""
    now = desk.clock.now()

    def work(session: Session) -> PushRightRow:
        row = feed_rights.push_right(session, right_id)
        try:
            feed = _mine(session, actor, row.feed_id, now)
        except NotFound:
            raise NotFound("unknown_push_right", right_id=right_id) from None
        if row.valid_to is None or row.valid_to > now:
            row.valid_to = max(now, row.valid_from)
            _tell(session, actor, "push_right.end", feed, now, right_id=row.id)
        return row

    return await desk.store.begin(work)


async def list_push_rights(desk: Desk, actor: Actor, feed_id: str) -> list[PushRightRow]:
    """Every push right of a feed, for its owner."""
    now = desk.clock.now()

    def work(session: Session) -> list[PushRightRow]:
        return feed_rights.push_rights_of(session, _mine(session, actor, feed_id, now).id)

    return await desk.store.read(work)


# -- subscriptions ----------------------------------------------------------------------------------------------------


async def subscribe(
    desk: Desk, actor: Actor, feed_id: str, unit_id: str, *, valid_to: datetime | None = None
) -> FeedSubscriptionRow:
    """Carry an offered feed from now on. Raises `Refused("feed_not_offered")`, `Invalid("empty_validity")`."""
    now, fresh_id = desk.clock.now(), desk.chance.new_id()
    if valid_to is not None and valid_to <= now:
        raise Invalid("empty_validity", field="valid_to", fix="until_after_from")

    def work(session: Session) -> FeedSubscriptionRow:
        access.authorize(session, actor, Action.FEED_SUBSCRIBE, unit_id, at=now)
        feed = seen_feed(session, actor, feed_id, now)
        if not feeds.may_relay(session, feed, unit_id, now):
            raise Refused("feed_not_offered", field="unit_id", feed_id=feed.id, unit_id=unit_id)
        for row in feed_rights.subscriptions_of(session, feed_id, {unit_id}):
            if row.valid_to is None or row.valid_to > now:
                row.valid_to, row.ended_by = now, actor.login
        fresh = FeedSubscriptionRow(
            id=fresh_id,
            feed_id=feed_id,
            unit_id=unit_id,
            valid_from=now,
            valid_to=valid_to,
            created_by=actor.login,
            created_at=now,
        )
        session.add(fresh)
        session.flush()
        _tell_unit(session, actor, "feed.subscribe", unit_id, feed_id, now)
        return fresh

    return await desk.store.begin(work)


async def drop(desk: Desk, actor: Actor, feed_id: str, unit_id: str) -> FeedSubscriptionRow:
    """Carry a feed no longer: the unit's own relays of it end, and new ones are refused until it subscribes again.

    Raises `Conflict("feed_obliged")` where somebody obliges the unit to it.
    """
    now, fresh_id = desk.clock.now(), desk.chance.new_id()

    def work(session: Session) -> FeedSubscriptionRow:
        access.authorize(session, actor, Action.FEED_SUBSCRIBE, unit_id, at=now)
        feed = seen_feed(session, actor, feed_id, now)
        for laid in feeds.list_obligations(session, None, places.local_date(now), for_unit=unit_id, limit=1_000):
            is_in_force = laid.valid_from <= now and (laid.valid_to is None or laid.valid_to > now)
            if laid.content_id == feed.id and is_in_force:
                raise Conflict("feed_obliged", field="feed_id", fix="ask_who_obliges", basis=laid.basis)
        rows = feed_rights.subscriptions_of(session, feed_id, {unit_id})
        last = rows[-1] if rows else None
        if last is None:
            last = FeedSubscriptionRow(
                id=fresh_id,
                feed_id=feed_id,
                unit_id=unit_id,
                valid_from=now,
                valid_to=now,
                created_by=actor.login,
                created_at=now,
                ended_by=actor.login,
            )
            session.add(last)
        for row in rows:
            if row.valid_to is None or row.valid_to > now:
                row.valid_to, row.ended_by = now, actor.login
        ended = 0
        for schedule in feeds.carriers_of(session, feed_id, now):
            if schedule.unit_id == unit_id and not schedule.required:
                schedule.state = ScheduleState.CANCELLED
                schedule.version += 1
                ended += 1
        session.flush()
        _tell_unit(session, actor, "feed.drop", unit_id, feed_id, now, schedules=ended)
        return last

    return await desk.store.begin(work)


async def list_subscriptions(desk: Desk, actor: Actor, feed_id: str) -> list[FeedSubscriptionRow]:
    """Who carries the feed: for its owner everybody, for others their own places."""
    now = desk.clock.now()

    def work(session: Session) -> list[FeedSubscriptionRow]:
        feed = seen_feed(session, actor, feed_id, now)
        if access.may(session, actor, Action.READ, feed, at=now):
            return feed_rights.subscriptions_of(session, feed_id, None)
        roots = access.scope(session, actor, Action.READ, at=now) or frozenset()
        mine = places.subtree_of(session, roots, places.local_date(now))
        return feed_rights.subscriptions_of(session, feed_id, mine)

    return await desk.store.read(work)


# -- shared -----------------------------------------------------------------------------------------------------------


def _mine(session: Session, actor: Actor, feed_id: str, now: datetime) -> FeedRow:
    row = feeds.feed(session, feed_id)
    access.authorize(session, actor, Action.FEED_OWN, row, at=now, seen=is_seen(session, actor, feed_id, now))
    return row


def _tell(session: Session, actor: Actor, verb: str, feed: FeedRow, now: datetime, **detail: Any) -> None:
    subject = f"feed/{feed.id}"
    audit.append(session, now=now, actor=actor.login, verb=verb, unit_id=feed.unit_id, subject=subject, detail=detail)


def _tell_unit(
    session: Session, actor: Actor, verb: str, unit_id: str, feed_id: str, now: datetime, **detail: Any
) -> None:
    subject = f"feed/{feed_id}"
    audit.append(session, now=now, actor=actor.login, verb=verb, unit_id=unit_id, subject=subject, detail=detail)
