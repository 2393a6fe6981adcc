"""Rows of feeds: sources to relay, the push credential of a station, dated offers, obligations, probe status.

A maintainer must not break: (1) a unit may relay a feed only while it owns it or an offer to it or to one of its
ancestors is in force, and never a revoked or expired feed (`relay_right` says so for an instant, `store.schedules` for
whole windows); (2) `credential_version` rises whenever a credential stops being good: a live connection of an older
version is cut; (3) a push password is stored as a salted hash only.

Source: `docs/glossary.md` (nguồn tiếp âm); the Icecast source protocol for what a station's encoder can send.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from broadcast_server.domain.errors import NotFound, Refused
from broadcast_server.store import feed_rights, places
from broadcast_server.store.tables import (
    FeedOfferRow,
    FeedRow,
    FeedStatusRow,
    ObligationRow,
    ScheduleRow,
    ScheduleTargetRow,
)
from broadcast_server.store.words import ConflictKind, ContentKind, FeedKind, ScheduleState

_ROUNDS: Final = 20_000
"""PBKDF2 rounds (some 10 ms): the password is 120 random bits, the hash only has to survive a stolen backup."""
_NOBODY: Final = "pbkdf2-sha256$20000$AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
"""Checked for an unknown mount, so that it takes as long as a wrong password."""


# -- the push credential ----------------------------------------------------------------------------------------------


def push_hash(password: str, salt: bytes) -> str:
    """`pbkdf2-sha256$rounds$salt$hash`, the stored form of a push password."""
    digest = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ROUNDS)
    return f"pbkdf2-sha256${_ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def push_password_is_right(stored: str, password: str) -> bool:
    """Whether the password belongs to a hash that `push_hash` made; in constant time."""
    _, rounds, salt, digest = stored.split("$")
    made = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(rounds))
    return hmac.compare_digest(made, base64.b64decode(digest))


def check_push_credential(session: Session, mount: str, user: str, password: str, now: datetime) -> FeedRow:
    """The push feed this credential belongs to, for the listener that stations connect to.

    Raises `NotFound("mount_unknown")`, `Refused("push_wrong_password")`, or `Refused("feed_not_in_force")` on a feed
    that was revoked or is outside its validity, `Refused("push_right_lapsed")` where nobody may push it any more.
    """
    feed = session.scalar(select(FeedRow).where(FeedRow.mount == mount, FeedRow.kind == FeedKind.PUSH))
    stored = _NOBODY if feed is None or feed.push_secret_hash is None else feed.push_secret_hash
    is_right = push_password_is_right(stored, password)
    if feed is None:
        raise NotFound("mount_unknown", mount=mount)
    if not is_right or not hmac.compare_digest(user.encode(), (feed.push_user or "").encode()):
        raise Refused("push_wrong_password", mount=mount)
    if not feed_in_force(feed, now):
        raise Refused("feed_not_in_force", feed_id=feed.id)
    if feed_rights.is_lapsed(session, feed.id, now):
        raise Refused("push_right_lapsed", feed_id=feed.id)
    return feed


def credential_versions(session: Session, now: datetime) -> dict[str, int]:
    """Credential version of every push feed in force.

    A live connection of a feed that is not among them, or of another version, is cut.
    """
    rows = session.scalars(select(FeedRow).where(FeedRow.kind == FeedKind.PUSH, FeedRow.revoked_at.is_(None)))
    lapsed = feed_rights.lapsed(session, now)
    return {row.id: row.credential_version for row in rows if feed_in_force(row, now) and row.id not in lapsed}


def out_of_validity(session: Session, now: datetime) -> set[str]:
    """Push feeds that nobody revoked and whose validity, or the last right to push them, is over."""
    return set(feed_rights.lapsed(session, now)) | set(
        session.scalars(
            select(FeedRow.id).where(
                FeedRow.kind == FeedKind.PUSH, FeedRow.revoked_at.is_(None), FeedRow.valid_to <= now
            )
        )
    )


def name_of(session: Session, feed_id: str) -> str | None:
    """The feed's name, None for an unknown one."""
    return session.scalar(select(FeedRow.name).where(FeedRow.id == feed_id))


def pulled_in_force(session: Session, now: datetime) -> list[tuple[str, str]]:
    """Id and URL of every pulled feed in force, for the probe."""
    rows = session.scalars(
        select(FeedRow).where(FeedRow.kind == FeedKind.PULL, FeedRow.revoked_at.is_(None)).order_by(FeedRow.id)
    )
    return [(row.id, row.url) for row in rows if row.url is not None and feed_in_force(row, now)]


# -- feeds ------------------------------------------------------------------------------------------------------------


def feed(session: Session, feed_id: str) -> FeedRow:
    """Raises `NotFound("unknown_feed")`."""
    row = session.get(FeedRow, feed_id)
    if row is None:
        raise NotFound("unknown_feed", feed_id=feed_id)
    return row


def feed_in_force(row: FeedRow, at: datetime) -> bool:
    """Whether the feed is neither revoked nor outside its validity at this instant."""
    return (
        (row.revoked_at is None or row.revoked_at > at)
        and (row.valid_from is None or row.valid_from <= at)
        and (row.valid_to is None or row.valid_to > at)
    )


class FeedSeen(NamedTuple):
    """A feed and what it was last seen doing."""

    feed: FeedRow
    status: FeedStatusRow | None


def list_feeds(
    session: Session,
    *,
    visible_to: frozenset[str] | None,
    at: datetime,
    offered_to: str | None = None,
    owner: str | None = None,
    folded: str | None = None,
    feed_id: str | None = None,
    held: Collection[str] = (),
    after: str | None = None,
    limit: int = 100,
) -> list[FeedSeen]:
    """Feeds by id, those after `after`.

    `visible_to`: owned in, or offered to, these subtrees or what lies above them, and those `held` (None: all);
    `offered_to`: what this unit may relay at `at` by an offer or as its owner; `owner`: of this unit.
    """
    on = places.local_date(at)
    query = (
        select(FeedRow, FeedStatusRow)
        .outerjoin(FeedStatusRow, FeedStatusRow.feed_id == FeedRow.id)
        .order_by(FeedRow.id)
        .limit(limit)
    )
    if visible_to is not None:
        above = {place for root in visible_to for place in places.path_of(session, root, on)}
        inside = places.subtree_query(visible_to, on)
        offered = select(FeedOfferRow.feed_id).where(
            or_(FeedOfferRow.unit_id.in_(above), FeedOfferRow.unit_id.in_(inside)), FeedOfferRow.withdrawn_at.is_(None)
        )
        query = query.where(or_(FeedRow.unit_id.in_(inside), FeedRow.id.in_(offered), FeedRow.id.in_(held)))
    if offered_to is not None:
        path = places.path_of(session, offered_to, on)
        mine = select(FeedOfferRow.feed_id).where(FeedOfferRow.unit_id.in_(path), _offer_in_force(at))
        query = query.where(or_(FeedRow.unit_id == offered_to, FeedRow.id.in_(mine)), _feed_in_force(at))
    if owner is not None:
        query = query.where(FeedRow.unit_id == owner)
    if folded:
        query = query.where(FeedRow.name_folded.contains(folded, autoescape=True))
    if feed_id is not None:
        query = query.where(FeedRow.id == feed_id)
    if after is not None:
        query = query.where(FeedRow.id > after)
    return [FeedSeen(*row) for row in session.execute(query)]


def _feed_in_force(at: datetime) -> ColumnElement[bool]:
    return and_(
        or_(FeedRow.revoked_at.is_(None), FeedRow.revoked_at > at),
        or_(FeedRow.valid_from.is_(None), FeedRow.valid_from <= at),
        or_(FeedRow.valid_to.is_(None), FeedRow.valid_to > at),
    )


def mounts_like(session: Session, stem: str) -> set[str]:
    """Mounts in use that begin so, compared without case."""
    return set(session.scalars(select(FeedRow.mount).where(func.lower(FeedRow.mount).startswith(stem.lower()))))


def expire_of_units(session: Session, unit_ids: Collection[str], ends: datetime) -> list[FeedRow]:
    """Feeds of these units end at `ends` unless they end sooner; those whose end changed."""
    rows = session.scalars(
        select(FeedRow)
        .where(FeedRow.unit_id.in_(unit_ids), or_(FeedRow.valid_to.is_(None), FeedRow.valid_to > ends))
        .order_by(FeedRow.id)
    ).all()
    for row in rows:
        row.valid_to = ends
        row.version += 1
    session.flush()
    return list(rows)


def put_status(
    session: Session, feed_id: str, *, state: str, reason: str | None, now: datetime, body: dict[str, Any]
) -> None:
    """What the feed is doing, seen by the relay or the probe; `since` moves only when the state does."""
    row = session.get(FeedStatusRow, feed_id)
    if row is None:
        session.add(FeedStatusRow(feed_id=feed_id, state=state, reason=reason, since=now, seen_at=now, body=body))
        return
    if row.state != state:
        row.since = now
    row.state, row.reason, row.seen_at, row.body = state, reason, now, body  # type: ignore[assignment]


# -- offers -----------------------------------------------------------------------------------------------------------


def offer(session: Session, offer_id: str) -> FeedOfferRow:
    """Raises `NotFound("unknown_offer")`."""
    row = session.get(FeedOfferRow, offer_id)
    if row is None:
        raise NotFound("unknown_offer", offer_id=offer_id)
    return row


def offers_of(session: Session, feed_id: str) -> list[FeedOfferRow]:
    """Every offer of the feed, withdrawn ones too, oldest first."""
    return list(
        session.scalars(
            select(FeedOfferRow)
            .where(FeedOfferRow.feed_id == feed_id)
            .order_by(FeedOfferRow.valid_from, FeedOfferRow.created_at, FeedOfferRow.id)
        )
    )


def _offer_in_force(at: datetime) -> ColumnElement[bool]:
    return and_(
        FeedOfferRow.valid_from <= at,
        or_(FeedOfferRow.valid_to.is_(None), FeedOfferRow.valid_to > at),
        or_(FeedOfferRow.withdrawn_at.is_(None), FeedOfferRow.withdrawn_at > at),
    )


@dataclass(frozen=True, slots=True)
class RelayRight:
    """Whether a unit may relay a feed at an instant. `reason` and `subject` (offer or feed) say what is in the way."""

    is_given: bool
    offer_id: str | None = None
    reason: ConflictKind | None = None
    subject: str | None = None


def relay_right(session: Session, row: FeedRow, unit_id: str, at: datetime) -> RelayRight:
    """Whether the unit owns the feed, or it is offered to the unit or to an ancestor, at this instant."""
    if row.revoked_at is not None and row.revoked_at <= at:
        return RelayRight(is_given=False, reason=ConflictKind.FEED_REVOKED, subject=row.id)
    if not feed_in_force(row, at):
        return RelayRight(is_given=False, reason=ConflictKind.OFFER_EXPIRES, subject=row.id)
    if row.unit_id == unit_id:
        return RelayRight(is_given=True)
    path = places.path_of(session, unit_id, places.local_date(at))
    offers = session.scalars(
        select(FeedOfferRow)
        .where(FeedOfferRow.feed_id == row.id, FeedOfferRow.unit_id.in_(path))
        .order_by(FeedOfferRow.valid_from, FeedOfferRow.id)
    ).all()
    last: FeedOfferRow | None = None
    for found in offers:
        last = found
        is_withdrawn = found.withdrawn_at is not None and found.withdrawn_at <= at
        if not is_withdrawn and found.valid_from <= at and (found.valid_to is None or found.valid_to > at):
            return RelayRight(is_given=True, offer_id=found.id)
    if last is None:
        return RelayRight(is_given=False, reason=ConflictKind.NOT_OFFERED, subject=row.id)
    reason = ConflictKind.OFFER_WITHDRAWN if last.withdrawn_at is not None else ConflictKind.OFFER_EXPIRES
    return RelayRight(is_given=False, reason=reason, subject=last.id)


def is_known_to(session: Session, row: FeedRow, unit_id: str, on: date) -> bool:
    """Whether a unit may know of the feed: it is owned, or was ever offered, above it, at it or below it."""
    offered = set(session.scalars(select(FeedOfferRow.unit_id).where(FeedOfferRow.feed_id == row.id)))
    return any(places.is_on_line(session, unit_id, place, on) for place in {row.unit_id, *offered})


def may_relay(session: Session, row: FeedRow, unit_id: str, at: datetime) -> bool:
    """`relay_right`, as a yes or no."""
    return relay_right(session, row, unit_id, at).is_given


# -- who carries it ---------------------------------------------------------------------------------------------------


def carriers_of(session: Session, feed_id: str, now: datetime, *, limit: int = 500) -> list[ScheduleRow]:
    """Schedules in force that relay the feed, from now on, by unit: who carries it."""
    return list(
        session.scalars(
            select(ScheduleRow)
            .where(
                ScheduleRow.content_kind == ContentKind.FEED,
                ScheduleRow.content_id == feed_id,
                ScheduleRow.state == ScheduleState.ACTIVE,
                or_(ScheduleRow.ends_at.is_(None), ScheduleRow.ends_at > now),
            )
            .order_by(ScheduleRow.unit_id, ScheduleRow.id)
            .limit(limit)
        )
    )


def target_refs(session: Session, schedule_ids: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """`(kind, ref)` of where each schedule sounds."""
    found: dict[str, list[tuple[str, str]]] = {schedule_id: [] for schedule_id in schedule_ids}
    for schedule_id, kind, ref in session.execute(
        select(ScheduleTargetRow.schedule_id, ScheduleTargetRow.kind, ScheduleTargetRow.ref)
        .where(ScheduleTargetRow.schedule_id.in_(schedule_ids))
        .order_by(ScheduleTargetRow.kind, ScheduleTargetRow.ref)
    ):
        found[schedule_id].append((kind, ref))
    return found


# -- obligations ------------------------------------------------------------------------------------------------------


def obligation(session: Session, obligation_id: str) -> ObligationRow:
    """Raises `NotFound("unknown_obligation")`."""
    row = session.get(ObligationRow, obligation_id)
    if row is None:
        raise NotFound("unknown_obligation", obligation_id=obligation_id)
    return row


def list_obligations(
    session: Session,
    roots: frozenset[str] | None,
    on: date,
    *,
    for_unit: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> list[ObligationRow]:
    """Obligations by id laid on units within `roots` or above them; `for_unit`: those the unit must carry."""
    query = select(ObligationRow).order_by(ObligationRow.id).limit(limit)
    if roots is not None:
        above = {place for root in roots for place in places.path_of(session, root, on)}
        query = query.where(
            or_(ObligationRow.unit_id.in_(above), ObligationRow.unit_id.in_(places.subtree_query(roots, on)))
        )
    if for_unit is not None:
        query = query.where(ObligationRow.unit_id.in_(places.path_of(session, for_unit, on)))
    if after is not None:
        query = query.where(ObligationRow.id > after)
    return list(session.scalars(query))
