"""Tables of rights beside the roles: who may push which feed, and which unit carries which feed."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from broadcast_server.store.tables import Base


class PushRightRow(Base):
    """A person, or an organisation's people, may push one feed in `[valid_from, valid_to)`; given by its owner."""

    __tablename__ = "push_rights"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    feed_id: Mapped[str] = mapped_column(ForeignKey("feeds.id"), index=True)
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id"), index=True)
    unit_id: Mapped[str | None] = mapped_column(ForeignKey("units.id"), index=True)
    """The organisation; one of the two is set."""
    valid_from: Mapped[datetime]
    valid_to: Mapped[datetime | None]
    given_by: Mapped[str] = mapped_column(String(60))
    created_at: Mapped[datetime]


class FeedSubscriptionRow(Base):
    """A unit carries a feed in `[valid_from, valid_to)`; the last one of a unit that is over says it was dropped."""

    __tablename__ = "feed_subscriptions"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    feed_id: Mapped[str] = mapped_column(ForeignKey("feeds.id"), index=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    valid_from: Mapped[datetime]
    valid_to: Mapped[datetime | None]
    created_by: Mapped[str] = mapped_column(String(60))
    created_at: Mapped[datetime]
    ended_by: Mapped[str | None] = mapped_column(String(60))
