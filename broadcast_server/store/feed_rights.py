"""Rows of rights on feeds: who may push one, and which unit subscribes to one.

A maintainer must not break: a feed without any push right rests with its owner; as soon as one was given, at least one
must be in force, or the feed's credential is good for nothing (`is_lapsed`).
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from broadcast_server.domain.errors import NotFound
from broadcast_server.store.tables_rights import FeedSubscriptionRow, PushRightRow


def push_right(session: Session, right_id: str) -> PushRightRow:
    """Raises `NotFound("unknown_push_right")`."""
    row = session.get(PushRightRow, right_id)
    if row is None:
        raise NotFound("unknown_push_right", right_id=right_id)
    return row


def push_rights_of(session: Session, feed_id: str) -> list[PushRightRow]:
    """Every push right of the feed, past ones too, oldest first."""
    rows = select(PushRightRow).where(PushRightRow.feed_id == feed_id)
    return list(session.scalars(rows.order_by(PushRightRow.valid_from, PushRightRow.id)))


def held(session: Session, user_id: str, unit_ids: Collection[str], at: datetime) -> frozenset[str]:
    """Feeds that the person, or people of these organisations, may push at this instant."""
    holder = or_(PushRightRow.user_id == user_id, PushRightRow.unit_id.in_(unit_ids))
    return frozenset(session.scalars(select(PushRightRow.feed_id).where(holder, _in_force(at))))


def lapsed(session: Session, at: datetime) -> frozenset[str]:
    """Feeds that somebody was given to push, and nobody may at this instant."""
    given = set(session.scalars(select(PushRightRow.feed_id).distinct()))
    return frozenset(given - set(session.scalars(select(PushRightRow.feed_id).where(_in_force(at)))))


def is_lapsed(session: Session, feed_id: str, at: datetime) -> bool:
    """Whether the feed is one of `lapsed`."""
    rows = push_rights_of(session, feed_id)
    return bool(rows) and not any(row.valid_from <= at and (row.valid_to is None or row.valid_to > at) for row in rows)


def _in_force(at: datetime) -> ColumnElement[bool]:
    return and_(PushRightRow.valid_from <= at, or_(PushRightRow.valid_to.is_(None), PushRightRow.valid_to > at))


def subscriptions_of(session: Session, feed_id: str, unit_ids: Collection[str] | None) -> list[FeedSubscriptionRow]:
    """Subscriptions to the feed of these units (None: all), past ones too, oldest first."""
    query = select(FeedSubscriptionRow).where(FeedSubscriptionRow.feed_id == feed_id)
    if unit_ids is not None:
        query = query.where(FeedSubscriptionRow.unit_id.in_(unit_ids))
    return list(session.scalars(query.order_by(FeedSubscriptionRow.valid_from, FeedSubscriptionRow.id)))


def is_dropped(session: Session, feed_id: str, unit_id: str, at: datetime) -> bool:
    """Whether the unit had subscribed to the feed, or dropped it, and does not carry it at this instant."""
    rows = [row for row in subscriptions_of(session, feed_id, {unit_id}) if row.valid_from <= at]
    return bool(rows) and all(row.valid_to is not None and row.valid_to <= at for row in rows)
