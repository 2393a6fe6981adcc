"""Verbs on feeds: own one, rotate and revoke a station's credential, offer to units, oblige units, see who carries it.

A maintainer must not break: (1) a push password leaves this module once, in the answer that made it; (2) rotating and
revoking raise `credential_version`, by which the engine room cuts a live connection; (3) whatever ends a right to relay
names the conflicts it makes in the same transaction, so nobody learns of them by silence; (4) an obligation and the
required schedule it places come and go together.

Source: Nghị định 49/2024 (who carries what); ex-district stations stop relaying by 31 December 2025.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.fleet import roots_for
from broadcast_server.control.places import check_version, clean_text, policy_view
from broadcast_server.domain.clock import LOCAL, Chance, Window
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.domain.policy import policy_from_dict
from broadcast_server.domain.recurrence import Rule, occurrences, rule_from_dict, rule_to_dict
from broadcast_server.store import audit, conflicts, facts, feed_rights, feeds, library, places, schedules
from broadcast_server.store.session import Session
from broadcast_server.store.tables import (
    ConflictRow,
    FeedOfferRow,
    FeedRow,
    FeedStatusRow,
    ObligationRow,
    ScheduleRow,
)
from broadcast_server.store.types import fold
from broadcast_server.store.words import ContentKind, FeedKind, ScheduleKind, ScheduleState, Tier
from speaker_protocol.rules import BulletinClass

PUSH_USER: Final = "source"
"""The one user name every source client sends unless told otherwise."""
_MOUNT: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LONGEST_RELAY: Final = timedelta(hours=24)


# -- own a feed -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewFeed:
    """A feed to own. Pull: `url`; push: `mount` (None: made from the name)."""

    unit_id: str
    name: str
    tier: Tier
    kind: FeedKind
    url: str | None = None
    mount: str | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    successor_id: str | None = None


@dataclass(frozen=True, slots=True)
class FeedChange:
    """What changes; None: stays."""

    name: str | None = None
    tier: Tier | None = None
    url: str | None = None
    valid_to: datetime | None = None
    successor_id: str | None = None


@dataclass(frozen=True, slots=True)
class FeedView:
    """A feed and what it was last seen doing; `status` None: nobody looked yet.

    `is_own`: the asker may see its address, which can hold a key of the station's.
    """

    feed: FeedRow
    status: FeedStatusRow | None
    is_own: bool


@dataclass(frozen=True, slots=True)
class PushCredential:
    """What a station's encoder needs; the password is told only here.

    `host`, `port`: of the listener, None before the server first ran.
    """

    mount: str
    user: str
    password: str
    version: int
    host: str | None
    port: int | None


@dataclass(frozen=True, slots=True)
class FeedMade:
    """A feed, and for a push feed its credential."""

    feed: FeedRow
    credential: PushCredential | None


async def add_feed(desk: Desk, actor: Actor, request: NewFeed) -> FeedMade:
    """Own a feed. A feed of a closed kind of unit (an ex-district) ends with its kind.

    Raises `Invalid` naming the field, `Conflict("mount_taken")`, `Conflict("unit_closed")`.
    """
    now = desk.clock.now()
    feed_id = desk.chance.new_id()
    name = clean_text(request.name, "name")
    _check_url(request.kind, request.url)
    password, salt = _push_password(desk.chance), desk.chance.token_bytes(16)
    is_push = request.kind is FeedKind.PUSH
    stored = await desk.executor.run(feeds.push_hash, password, salt) if is_push else None

    def work(session: Session) -> FeedMade:
        access.authorize(session, actor, Action.FEED_OWN, request.unit_id, at=now)
        valid_to = _until_kind_closes(session, request.unit_id, request.valid_to, now)
        if request.valid_from is not None and valid_to is not None and valid_to <= request.valid_from:
            raise Invalid("empty_validity", field="valid_to", fix="until_after_from")
        _check_successor(session, actor, feed_id, request.successor_id, now)
        row = FeedRow(
            id=feed_id,
            unit_id=request.unit_id,
            name=name,
            name_folded=fold(name),
            tier=request.tier,
            kind=request.kind,
            url=request.url,
            mount=_free_mount(session, request.mount, name) if is_push else None,
            push_user=PUSH_USER if is_push else None,
            push_secret_hash=stored,
            credential_version=1 if is_push else 0,
            successor_id=request.successor_id,
            valid_from=request.valid_from,
            valid_to=valid_to,
            created_at=now,
            version=1,
        )
        session.add(row)
        session.flush()
        _tell(session, actor, "feed.add", row, now, {"name": name, "tier": row.tier.value, "kind": row.kind.value})
        return FeedMade(row, _credential(session, row, password) if is_push else None)

    return await desk.store.begin(work)


async def update_feed(
    desk: Desk, actor: Actor, feed_id: str, change: FeedChange, *, version: int | None = None
) -> FeedView:
    """Change a feed. Raises `Conflict("version_changed")`, `Conflict("feed_revoked")`."""
    now = desk.clock.now()

    def work(session: Session) -> FeedView:
        row = _mine(session, actor, Action.FEED_OWN, feed_id, now)
        check_version(row.version, version)
        _not_revoked(row)
        detail: dict[str, Any] = {}
        if change.name is not None:
            row.name = detail["name"] = clean_text(change.name, "name")
            row.name_folded = fold(row.name)
        if change.tier is not None:
            row.tier = change.tier
            detail["tier"] = change.tier.value
        if change.url is not None:
            _check_url(row.kind, change.url)
            row.url = change.url
            detail["url"] = urlsplit(change.url).hostname
        if change.valid_to is not None:
            row.valid_to = _until_kind_closes(session, row.unit_id, change.valid_to, now)
            detail["valid_to"] = change.valid_to.isoformat()
        if change.successor_id is not None:
            _check_successor(session, actor, row.id, change.successor_id, now)
            row.successor_id = detail["successor_id"] = change.successor_id
        row.version += 1
        _tell(session, actor, "feed.update", row, now, detail)
        _name_conflicts(desk, session, row.id, now)
        return _view(session, row)

    return await desk.store.begin(work)


async def rotate_feed(desk: Desk, actor: Actor, feed_id: str) -> PushCredential:
    """A new password; the old one and whoever is connected with it are cut. Raises `Conflict("feed_not_push")`."""
    now = desk.clock.now()
    password, salt = _push_password(desk.chance), desk.chance.token_bytes(16)
    stored = await desk.executor.run(feeds.push_hash, password, salt)

    def work(session: Session) -> PushCredential:
        row = pushable(session, actor, feed_id, now)
        if row.kind is not FeedKind.PUSH:
            raise Conflict("feed_not_push", feed_id=row.id)
        _not_revoked(row)
        row.push_secret_hash = stored
        row.credential_version += 1
        row.version += 1
        _tell(session, actor, "feed.rotate", row, now, {"credential_version": row.credential_version})
        return _credential(session, row, password)

    return await desk.store.begin(work)


async def revoke_feed(desk: Desk, actor: Actor, feed_id: str) -> FeedView:
    """End a feed for good: it is cut if it is live, and coming relays of it become conflicts. Twice is once."""
    now = desk.clock.now()

    def work(session: Session) -> FeedView:
        row = _mine(session, actor, Action.FEED_OWN, feed_id, now)
        if row.revoked_at is None:
            row.revoked_at = now
            row.push_secret_hash = None
            row.credential_version += 1
            row.version += 1
            _tell(session, actor, "feed.revoke", row, now, {})
            _name_conflicts(desk, session, row.id, now)
        return _view(session, row)

    return await desk.store.begin(work)


async def get_feed(desk: Desk, actor: Actor, feed_id: str) -> FeedView:
    """A feed the actor owns or may come to relay. Raises `NotFound("unknown_feed")` for any other."""
    now = desk.clock.now()

    def work(session: Session) -> FeedView:
        return _viewed(session, actor, [_seen(session, actor, feed_id, now)], now)[0]

    return await desk.store.read(work)


@dataclass(frozen=True, slots=True)
class FeedQuery:
    """Which feeds: those a unit may relay now (`offered_to`), those a unit owns (`owner`), by name."""

    offered_to: str | None = None
    owner: str | None = None
    name: str | None = None
    after: str | None = None
    limit: int = 100


async def list_feeds(desk: Desk, actor: Actor, query: FeedQuery) -> list[FeedView]:
    """Feeds that the actor's units own or are offered, by id."""
    now = desk.clock.now()

    def work(session: Session) -> list[FeedView]:
        if query.offered_to is not None:
            access.authorize(session, actor, Action.READ, query.offered_to, at=now)
        seen = feeds.list_feeds(
            session,
            visible_to=access.scope(session, actor, Action.READ, at=now),
            held=held(session, actor, now),
            at=now,
            offered_to=query.offered_to,
            owner=query.owner,
            folded=fold(query.name) if query.name else None,
            after=query.after,
            limit=query.limit,
        )
        return _viewed(session, actor, seen, now)

    return await desk.store.read(work)


# -- offers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewOffer:
    """Let a unit and all below it relay the feed, `[valid_from, valid_to)`. `basis`: the paper it rests on."""

    feed_id: str
    unit_id: str
    basis: str
    valid_from: datetime | None = None
    valid_to: datetime | None = None


async def offer_feed(desk: Desk, actor: Actor, request: NewOffer) -> FeedOfferRow:
    """Offer a feed.

    Raises `Invalid("basis_missing" | "empty_validity" | "unknown_unit")`, `Conflict("feed_revoked")`.
    """
    now = desk.clock.now()
    offer_id = desk.chance.new_id()
    begins = request.valid_from or now
    if request.valid_to is not None and request.valid_to <= begins:
        raise Invalid("empty_validity", field="valid_to", fix="until_after_from")
    basis = clean_text(request.basis, "basis", code="basis_missing", longest=300)

    def work(session: Session) -> FeedOfferRow:
        feed = _mine(session, actor, Action.FEED_OFFER, request.feed_id, now)
        _not_revoked(feed)
        if not places.units(session, [request.unit_id]):
            raise Invalid("unknown_unit", field="unit_id", unit_id=request.unit_id)
        row = FeedOfferRow(
            id=offer_id,
            feed_id=feed.id,
            unit_id=request.unit_id,
            valid_from=begins,
            valid_to=request.valid_to,
            basis=basis,
            created_at=now,
        )
        session.add(row)
        session.flush()
        detail = {"offer_id": offer_id, "to": request.unit_id, "from": begins.isoformat(), "basis": basis}
        _tell(session, actor, "feed.offer", feed, now, detail)
        _name_conflicts(desk, session, feed.id, now)
        return row

    return await desk.store.begin(work)


async def withdraw_offer(desk: Desk, actor: Actor, offer_id: str) -> FeedOfferRow:
    """Take an offer back from now on; coming relays that rest on it become conflicts. Twice is once."""
    now = desk.clock.now()

    def work(session: Session) -> FeedOfferRow:
        row = feeds.offer(session, offer_id)
        try:
            feed = _mine(session, actor, Action.FEED_OFFER, row.feed_id, now)
        except NotFound:
            raise NotFound("unknown_offer", offer_id=offer_id) from None
        if row.withdrawn_at is None:
            row.withdrawn_at = now
            session.flush()
            _tell(session, actor, "feed.withdraw", feed, now, {"offer_id": row.id, "to": row.unit_id})
            _name_conflicts(desk, session, feed.id, now)
        return row

    return await desk.store.begin(work)


async def list_offers(desk: Desk, actor: Actor, feed_id: str) -> list[FeedOfferRow]:
    """Every offer of a feed for its owner; for others those made to their places."""
    now = desk.clock.now()

    def work(session: Session) -> list[FeedOfferRow]:
        feed = seen_feed(session, actor, feed_id, now)
        offers = feeds.offers_of(session, feed_id)
        roots = access.scope(session, actor, Action.READ, at=now)
        if roots is None or access.may(session, actor, Action.READ, feed.unit_id, at=now):
            return offers
        on = places.local_date(now)
        mine = places.subtree_of(session, roots, on) | {
            place for root in roots for place in places.path_of(session, root, on)
        }
        return [offer for offer in offers if offer.unit_id in mine]

    return await desk.store.read(work)


@dataclass(frozen=True, slots=True)
class Carrier:
    """A schedule that relays the feed. `targets`: `(kind, ref)`; `has_right`: whether it may at this instant."""

    schedule: ScheduleRow
    targets: tuple[tuple[str, str], ...]
    has_right: bool


async def list_carriers(desk: Desk, actor: Actor, feed_id: str) -> list[Carrier]:
    """Who carries the feed: for its owner everybody, for others their own places."""
    now = desk.clock.now()

    def work(session: Session) -> list[Carrier]:
        feed = seen_feed(session, actor, feed_id, now)
        rows = feeds.carriers_of(session, feed_id, now)
        if not access.may(session, actor, Action.READ, feed.unit_id, at=now):
            roots = access.scope(session, actor, Action.READ, at=now) or frozenset()
            mine = places.subtree_of(session, roots, places.local_date(now))
            rows = [row for row in rows if row.unit_id in mine]
        targets = feeds.target_refs(session, [row.id for row in rows])
        return [
            Carrier(row, tuple(targets[row.id]), feeds.may_relay(session, feed, row.unit_id, max(now, row.starts_at)))
            for row in rows
        ]

    return await desk.store.read(work)


async def list_conflicts(
    desk: Desk,
    actor: Actor,
    *,
    within: str | None = None,
    feed_id: str | None = None,
    closed: bool = False,
    is_mine: bool = False,
    after: str | None = None,
    limit: int = 100,
) -> list[ConflictRow]:
    """Coming entries that will not sound as planned, each with what is in the way and the way out.

    `is_mine`: of what the actor put on the air, whoever displaced it since.
    """
    now = desk.clock.now()

    def work(session: Session) -> list[ConflictRow]:
        roots = roots_for(session, actor, Action.READ, within, now)
        on = places.local_date(now)
        return conflicts.list_conflicts(
            session,
            roots,
            on,
            closed=closed,
            feed_id=feed_id,
            placed_by=actor.login if is_mine else None,
            after=after,
            limit=limit,
        )

    return await desk.store.read(work)


# -- obligations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewObligation:
    """A unit and all below it must carry this feed or bulletin.

    `rule`: `domain.recurrence.rule_to_dict`; `length`: of one relay, needed for a feed; `targets` None: the whole unit.
    """

    unit_id: str
    content_kind: ContentKind
    content_id: str
    rule: Mapping[str, Any]
    basis: str
    length: timedelta | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    targets: tuple[Target, ...] | None = None
    language: str = "vie"


@dataclass(frozen=True, slots=True)
class ObligationView:
    """An obligation and the required schedule it placed."""

    obligation: ObligationRow
    schedule: ScheduleRow


async def oblige(desk: Desk, actor: Actor, request: NewObligation) -> ObligationView:
    """Lay an obligation and place its required schedule.

    Raises `Invalid` naming the field, `Refused("feed_not_offered" | "quiet_hours" | "not_approved")`.
    """
    now = desk.clock.now()
    obligation_id, schedule_id = desk.chance.new_id(), desk.chance.new_id()
    begins = max(request.valid_from or now, now)
    if request.valid_to is not None and request.valid_to <= begins:
        raise Invalid("empty_validity", field="valid_to", fix="until_after_from")
    rule = rule_from_dict(request.rule)
    basis = clean_text(request.basis, "basis", code="basis_missing", longest=300)
    targets = request.targets or (Target(TargetKind.UNIT, request.unit_id),)

    def work(session: Session) -> ObligationView:
        access.authorize(session, actor, Action.OBLIGE, request.unit_id, at=now)
        places.clusters_for(session, targets, places.local_date(now))
        _targets_inside(session, targets, request.unit_id, now)
        title, klass, length = _content_to_oblige(session, request, begins)
        _out_of_quiet_hours(session, request.unit_id, rule, begins, length)
        schedule = ScheduleRow(
            id=schedule_id,
            series_id=schedule_id,
            unit_id=request.unit_id,
            name=title,
            kind=ScheduleKind.RELAY if request.content_kind is ContentKind.FEED else ScheduleKind.ANNOUNCEMENT,
            klass=klass,
            level=schedules.level_of(klass, request.content_kind, required=True, is_upper=True),
            content_kind=request.content_kind,
            content_id=request.content_id,
            language=request.language,
            rule=rule_to_dict(rule),
            length_ms=None if request.length is None else request.length // timedelta(milliseconds=1),
            required=True,
            state=ScheduleState.ACTIVE,
            starts_at=begins,
            ends_at=request.valid_to,
            created_by=actor.login,
            created_at=now,
            version=1,
        )
        schedules.add_schedule(session, schedule, targets)
        row = ObligationRow(
            id=obligation_id,
            unit_id=request.unit_id,
            content_kind=request.content_kind,
            content_id=request.content_id,
            schedule_id=schedule_id,
            basis=basis,
            valid_from=begins,
            valid_to=request.valid_to,
            created_at=now,
        )
        session.add(row)
        session.flush()
        detail = {
            "content": f"{request.content_kind.value}/{request.content_id}",
            "schedule_id": schedule_id,
            "basis": basis,
        }
        _audit(session, actor, "obligation.lay", request.unit_id, f"obligation/{obligation_id}", now, detail)
        if request.content_kind is ContentKind.FEED:
            _name_conflicts(desk, session, request.content_id, now)
        return ObligationView(row, schedule)

    return await desk.store.begin(work)


async def lift_obligation(desk: Desk, actor: Actor, obligation_id: str) -> ObligationView:
    """End an obligation now, its schedule with it. Twice is once."""
    now = desk.clock.now()

    def work(session: Session) -> ObligationView:
        row = feeds.obligation(session, obligation_id)
        access.authorize(session, actor, Action.OBLIGE, row, at=now, seen=_concerns(session, actor, row, now))
        schedule = schedules.schedule(session, row.schedule_id)
        if schedule.state is ScheduleState.ACTIVE:
            schedule.state = ScheduleState.CANCELLED
            schedule.version += 1
            row.valid_to = now
            session.flush()
            _audit(session, actor, "obligation.lift", row.unit_id, f"obligation/{row.id}", now, {})
            if row.content_kind is ContentKind.FEED:
                _name_conflicts(desk, session, row.content_id, now)
        return ObligationView(row, schedule)

    return await desk.store.begin(work)


async def get_obligation(desk: Desk, actor: Actor, obligation_id: str) -> ObligationView:
    """One obligation, for whoever laid it or must carry it. Raises `NotFound("unknown_obligation")`."""
    now = desk.clock.now()

    def work(session: Session) -> ObligationView:
        row = feeds.obligation(session, obligation_id)
        if not _concerns(session, actor, row, now):
            raise NotFound("unknown_obligation", obligation_id=obligation_id)
        return ObligationView(row, schedules.schedule(session, row.schedule_id))

    return await desk.store.read(work)


async def list_obligations(
    desk: Desk, actor: Actor, *, for_unit: str | None = None, after: str | None = None, limit: int = 100
) -> list[ObligationView]:
    """Obligations laid on the actor's places, or above them, by id; `for_unit`: those it must carry."""
    now = desk.clock.now()

    def work(session: Session) -> list[ObligationView]:
        if for_unit is not None:
            access.authorize(session, actor, Action.READ, for_unit, at=now)
        roots = access.scope(session, actor, Action.READ, at=now)
        rows = feeds.list_obligations(
            session, roots, places.local_date(now), for_unit=for_unit, after=after, limit=limit
        )
        return [ObligationView(row, schedules.schedule(session, row.schedule_id)) for row in rows]

    return await desk.store.read(work)


def _concerns(session: Session, actor: Actor, row: ObligationRow, now: datetime) -> bool:
    """Whether it was laid on the actor's places, or above them."""
    roots = access.scope(session, actor, Action.READ, at=now)
    on = places.local_date(now)
    path = places.path_of(session, row.unit_id, on)
    return roots is None or any(root in path or row.unit_id in places.path_of(session, root, on) for root in roots)


def _content_to_oblige(
    session: Session, request: NewObligation, begins: datetime
) -> tuple[str, BulletinClass, timedelta | None]:
    """Title, class and length of what is obliged; raises unless it may sound."""
    match request.content_kind:
        case ContentKind.FEED:
            if request.length is None or not timedelta(seconds=1) <= request.length <= _LONGEST_RELAY:
                raise Invalid("relay_length_out_of_range", field="length_ms", most_ms=24 * 3_600_000)
            feed = feeds.feed(session, request.content_id)
            if not feeds.is_known_to(session, feed, request.unit_id, places.local_date(begins)):
                raise access.unknown(feed)
            right = feeds.relay_right(session, feed, request.unit_id, begins)
            if not right.is_given:
                raise Refused("feed_not_offered", field="content_id", feed_id=feed.id, unit_id=request.unit_id)
            return feed.name, BulletinClass.NORMAL, request.length
        case ContentKind.BULLETIN:
            bulletin = library.bulletin(session, request.content_id)
            if not places.is_on_line(session, request.unit_id, bulletin.unit_id, places.local_date(begins)):
                raise access.unknown(bulletin)
            if library.approved_version(session, bulletin.id, request.language) is None:
                raise Refused("not_approved", field="content_id", bulletin_id=bulletin.id)
            return bulletin.title, bulletin.klass, None
        case _:
            raise Invalid("cannot_be_obliged", field="content_kind", kind=request.content_kind.value)


def _out_of_quiet_hours(session: Session, unit_id: str, rule: Rule, begins: datetime, length: timedelta | None) -> None:
    """Refuse a rule whose first weeks touch the quiet hours in force at the unit; planning checks every day again."""
    policy = policy_from_dict(policy_view(session, unit_id, begins).body)
    for start in occurrences(rule, Window(begins, begins + timedelta(days=28))):
        sounding = Window(start, start + (length or timedelta(seconds=1)))
        if any(True for hours in policy.quiet_of(None) for _ in hours.windows(sounding)):
            local = start.astimezone(LOCAL).isoformat(timespec="minutes")
            raise Refused("quiet_hours", field="rule", unit_id=unit_id, at=local, fix="move_out_of_quiet_hours")


def _targets_inside(session: Session, targets: Sequence[Target], unit_id: str, now: datetime) -> None:
    on = places.local_date(now)
    for number, target in enumerate(targets):
        if unit_id not in places.path_of(session, places.unit_of_target(session, target), on):
            raise Invalid("target_outside_unit", field=f"targets[{number}].ref", ref=target.ref, unit_id=unit_id)


# -- shared -----------------------------------------------------------------------------------------------------------


def _mine(session: Session, actor: Actor, action: Action, feed_id: str, now: datetime) -> FeedRow:
    row = feeds.feed(session, feed_id)
    access.authorize(session, actor, action, row, at=now, seen=is_seen(session, actor, feed_id, now))
    return row


def seen_feed(session: Session, actor: Actor, feed_id: str, now: datetime) -> FeedRow:
    """A feed the actor owns or may come to relay. Raises `NotFound("unknown_feed")` for any other."""
    return _seen(session, actor, feed_id, now).feed


def held(session: Session, actor: Actor, now: datetime) -> frozenset[str]:
    """Feeds of which the actor holds the right to push them, as a person or as one of an organisation."""
    roots = access.scope(session, actor, Action.FEED_HOLD, at=now)
    if not roots:
        return frozenset()
    return feed_rights.held(session, actor.user_id, places.subtree_of(session, roots, places.local_date(now)), now)


def pushable(session: Session, actor: Actor, feed_id: str, now: datetime) -> FeedRow:
    """A feed the actor may push: as its owner, or by a right of its own. Raises as `access.authorize`."""
    row = feeds.feed(session, feed_id)
    if feed_id not in held(session, actor, now):
        seen = is_seen(session, actor, feed_id, now)
        access.authorize(session, actor, Action.FEED_PUSH, row, at=now, seen=seen)
    return row


def is_seen(session: Session, actor: Actor, feed_id: str, now: datetime) -> bool:
    """Whether `seen_feed` would return."""
    visible_to = access.scope(session, actor, Action.READ, at=now)
    mine = held(session, actor, now)
    return bool(feeds.list_feeds(session, visible_to=visible_to, at=now, feed_id=feed_id, held=mine))


def _seen(session: Session, actor: Actor, feed_id: str, now: datetime) -> feeds.FeedSeen:
    visible_to = access.scope(session, actor, Action.READ, at=now)
    mine = held(session, actor, now)
    seen = feeds.list_feeds(session, visible_to=visible_to, at=now, feed_id=feed_id, held=mine)
    if not seen:
        raise NotFound("unknown_feed", feed_id=feed_id)
    return seen[0]


def _view(session: Session, row: FeedRow) -> FeedView:
    return FeedView(row, session.get(FeedStatusRow, row.id), is_own=True)


def _viewed(session: Session, actor: Actor, seen: Sequence[feeds.FeedSeen], now: datetime) -> list[FeedView]:
    roots = access.scope(session, actor, Action.FEED_OWN, at=now)
    own = None if roots is None else places.subtree_of(session, roots, places.local_date(now))
    return [FeedView(one.feed, one.status, is_own=own is None or one.feed.unit_id in own) for one in seen]


def _credential(session: Session, row: FeedRow, password: str) -> PushCredential:
    ingest = facts.find(session, facts.INGEST) or {}
    return PushCredential(
        mount=row.mount or "",
        user=row.push_user or PUSH_USER,
        password=password,
        version=row.credential_version,
        host=ingest.get("host"),
        port=ingest.get("port"),
    )


def _push_password(chance: Chance) -> str:
    """120 bits in letters and digits only: encoders put it into URLs without escaping."""
    return base64.b32encode(chance.token_bytes(15)).decode().lower()


def _free_mount(session: Session, asked: str | None, name: str) -> str:
    if asked is not None:
        mount = asked.removeprefix("/")
        if not _MOUNT.fullmatch(mount):
            raise Invalid("mount_invalid", field="mount")
        if mount in feeds.mounts_like(session, mount):
            raise Conflict("mount_taken", field="mount", mount=mount)
        return mount
    stem = re.sub(r"[^a-z0-9]+", "-", fold(name)).strip("-")[:40] or "feed"
    taken = feeds.mounts_like(session, stem)
    mount, number = stem, 2
    while mount in taken:
        mount, number = f"{stem}-{number}", number + 1
    return mount


def _check_url(kind: FeedKind, url: str | None) -> None:
    """A pull feed has an http(s) address; whether it leads to where we may go, `fetch` decides each time it goes."""
    if kind is FeedKind.PUSH:
        if url is not None:
            raise Invalid("url_of_push_feed", field="url", fix="remove_field")
        return
    try:
        parts = urlsplit(url or "")
        is_good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if url is None or not is_good or len(url) > 500 or not url.isascii() or not url.isprintable() or " " in url:
        raise Invalid("url_invalid", field="url", fix="give_http_url")


def _check_successor(session: Session, actor: Actor, feed_id: str, successor_id: str | None, now: datetime) -> None:
    seen = {feed_id}
    if successor_id is not None and not is_seen(session, actor, successor_id, now):
        raise Invalid("unknown_feed", field="successor_id", feed_id=successor_id)
    while successor_id is not None:
        if successor_id in seen:
            raise Invalid("successor_circle", field="successor_id", feed_id=successor_id)
        seen.add(successor_id)
        row = session.get(FeedRow, successor_id)
        if row is None:
            raise Invalid("unknown_feed", field="successor_id", feed_id=successor_id)
        successor_id = row.successor_id


def _until_kind_closes(session: Session, unit_id: str, valid_to: datetime | None, now: datetime) -> datetime | None:
    kind = places.kind(session, places.unit(session, unit_id).kind)
    if kind is None or kind.closed_on is None:
        return valid_to
    ends = datetime.combine(kind.closed_on, time.min, tzinfo=LOCAL)
    if ends <= now:
        raise Conflict("unit_closed", field="unit_id", unit_id=unit_id, closed_on=kind.closed_on.isoformat())
    return ends if valid_to is None else min(valid_to, ends)


def _not_revoked(row: FeedRow) -> None:
    if row.revoked_at is not None:
        raise Conflict("feed_revoked", feed_id=row.id)


def _name_conflicts(desk: Desk, session: Session, feed_id: str, now: datetime) -> None:
    session.flush()
    conflicts.open_offer_conflicts(session, now=now, new_id=desk.chance.new_id, feed_ids=[feed_id])


def _tell(session: Session, actor: Actor, verb: str, row: FeedRow, now: datetime, detail: dict[str, Any]) -> None:
    _audit(session, actor, verb, row.unit_id, f"feed/{row.id}", now, detail)


def _audit(
    session: Session, actor: Actor, verb: str, unit_id: str, subject: str, now: datetime, detail: dict[str, Any]
) -> None:
    audit.append(session, now=now, actor=actor.login, verb=verb, unit_id=unit_id, subject=subject, detail=detail)
