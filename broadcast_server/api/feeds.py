"""Feeds (nguồn tiếp âm) over HTTP: own, rotate, revoke, offer, see who carries it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import Response
from pydantic import Field, StringConstraints

from broadcast_server.api.deps import ActorDep, DeskDep, IfMatchDep, set_etag
from broadcast_server.api.fields import Form, Id, IdPath, IdQuery, Instant, Name, SearchQuery, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.control import feeds
from broadcast_server.control.access import Action
from broadcast_server.control.feeds import (
    Carrier,
    FeedChange,
    FeedQuery,
    FeedView,
    NewFeed,
    NewOffer,
    PushCredential,
)
from broadcast_server.store.tables import FeedOfferRow
from broadcast_server.store.words import FeedKind, FeedState, Tier

router = Router(tags=["feeds"], route_class=IdempotentRoute)

Url = Annotated[str, StringConstraints(min_length=8, max_length=500, pattern=r"^https?://[\x21-\x7e]+$")]
Basis = Annotated[str, StringConstraints(min_length=1, max_length=300)]
Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{3}$")]


# -- own --------------------------------------------------------------------------------------------------------------


class FeedForm(Form):
    """A feed to own. `url` for pull; `mount` for push, made from the name if left out."""

    unit_id: Id
    name: Name
    tier: Tier
    kind: FeedKind
    url: Url | None = None
    mount: Annotated[str, StringConstraints(pattern=r"^/?[a-z0-9][a-z0-9._-]{0,62}$")] | None = None
    valid_from: Instant | None = None
    valid_to: Instant | None = None
    successor_id: Id | None = None


class FeedPatch(Form):
    """What changes; what is left out stays."""

    name: Name | None = None
    tier: Tier | None = None
    url: Url | None = None
    valid_to: Instant | None = None
    successor_id: Id | None = None


class FeedStatus(Shown):
    """What the feed was last seen doing, by the relay or by the probe."""

    state: FeedState
    reason: str | None
    since: datetime
    seen_at: datetime


class Feed(Shown):
    """A source to relay; `status` null: nobody looked yet; `url` is told to the owner only."""

    id: str
    unit_id: str
    name: str
    tier: Tier
    kind: FeedKind
    url: str | None
    mount: str | None
    credential_version: int
    valid_from: datetime | None
    valid_to: datetime | None
    revoked_at: datetime | None
    successor_id: str | None
    status: FeedStatus | None
    version: int

    @classmethod
    def of(cls, view: FeedView) -> Feed:
        """As callers see it."""
        row, status = view.feed, view.status
        return cls(
            id=row.id,
            unit_id=row.unit_id,
            name=row.name,
            tier=row.tier,
            kind=row.kind,
            url=row.url if view.is_own else None,
            mount=row.mount,
            credential_version=row.credential_version,
            valid_from=row.valid_from,
            valid_to=row.valid_to,
            revoked_at=row.revoked_at,
            successor_id=row.successor_id,
            status=None
            if status is None
            else FeedStatus(state=status.state, reason=status.reason, since=status.since, seen_at=status.seen_at),
            version=row.version,
        )


class Credential(Shown):
    """What a station's encoder needs; the password is told only here."""

    mount: str
    user: str
    password: str
    version: int
    host: str | None
    port: int | None

    @classmethod
    def of(cls, made: PushCredential) -> Credential:
        """As callers see it."""
        return cls(
            mount=made.mount,
            user=made.user,
            password=made.password,
            version=made.version,
            host=made.host,
            port=made.port,
        )


class FeedMade(Feed):
    """A feed, and for a push feed its credential, told once."""

    credential: Credential | None


@router.get("/feeds")
@asks(Action.READ, Action.FEED_HOLD)
async def list_feeds(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    offered_to: IdQuery = None,
    owner: IdQuery = None,
    name: SearchQuery = None,
) -> Page[Feed]:
    """Feeds by id: those a unit may relay now, those a unit owns, by part of the name."""
    found = await feeds.list_feeds(desk, actor, FeedQuery(offered_to, owner, name, paging.after, paging.fetch))
    return paging.page(found, key=lambda view: view.feed.id, item=Feed.of)


@router.post("/feeds", status_code=201)
@asks(Action.FEED_OWN)
async def add_feed(desk: DeskDep, actor: ActorDep, form: FeedForm, response: Response) -> FeedMade:
    """Own a feed. A push feed's answer has mount, user and password, once."""
    request = NewFeed(
        form.unit_id,
        form.name,
        form.tier,
        form.kind,
        form.url,
        form.mount,
        form.valid_from,
        form.valid_to,
        form.successor_id,
    )
    made = await feeds.add_feed(desk, actor, request)
    set_etag(response, made.feed.version)
    response.headers["Location"] = f"/api/v1/feeds/{made.feed.id}"
    credential = None
    if made.credential is not None:
        response.headers["Cache-Control"] = "no-store"
        credential = Credential.of(made.credential)
    return FeedMade(**Feed.of(FeedView(made.feed, None, is_own=True)).model_dump(), credential=credential)


@router.get("/feeds/{feed_id}")
@asks(Action.READ, Action.FEED_HOLD)
async def get_feed(desk: DeskDep, actor: ActorDep, feed_id: IdPath, response: Response) -> Feed:
    """One feed that one's places own or are offered."""
    found = await feeds.get_feed(desk, actor, feed_id)
    set_etag(response, found.feed.version)
    return Feed.of(found)


@router.patch("/feeds/{feed_id}")
@asks(Action.FEED_OWN)
async def update_feed(
    desk: DeskDep, actor: ActorDep, feed_id: IdPath, form: FeedPatch, version: IfMatchDep, response: Response
) -> Feed:
    """Change a feed."""
    change = FeedChange(form.name, form.tier, form.url, form.valid_to, form.successor_id)
    found = await feeds.update_feed(desk, actor, feed_id, change, version=version)
    set_etag(response, found.feed.version)
    return Feed.of(found)


@router.post("/feeds/{feed_id}/rotation")
@asks(Action.FEED_PUSH, Action.FEED_HOLD)
async def rotate_feed(desk: DeskDep, actor: ActorDep, feed_id: IdPath, response: Response) -> Credential:
    """A new password; who is connected with the old one is cut."""
    response.headers["Cache-Control"] = "no-store"
    return Credential.of(await feeds.rotate_feed(desk, actor, feed_id))


@router.post("/feeds/{feed_id}/revocation")
@asks(Action.FEED_OWN)
async def revoke_feed(desk: DeskDep, actor: ActorDep, feed_id: IdPath, response: Response) -> Feed:
    """End a feed for good; coming relays of it become conflicts."""
    found = await feeds.revoke_feed(desk, actor, feed_id)
    set_etag(response, found.feed.version)
    return Feed.of(found)


class FeedCarrier(Shown):
    """A schedule that relays the feed. `has_right`: whether it may."""

    schedule_id: str
    unit_id: str
    name: str
    required: bool
    targets: list[tuple[str, str]]
    has_right: bool

    @classmethod
    def of(cls, carrier: Carrier) -> FeedCarrier:
        """As callers see it."""
        row = carrier.schedule
        return cls(
            schedule_id=row.id,
            unit_id=row.unit_id,
            name=row.name,
            required=row.required,
            targets=list(carrier.targets),
            has_right=carrier.has_right,
        )


@router.get("/feeds/{feed_id}/carriers")
@asks(Action.READ, Action.FEED_HOLD)
async def list_carriers(desk: DeskDep, actor: ActorDep, feed_id: IdPath) -> list[FeedCarrier]:
    """Who carries the feed from now on."""
    return [FeedCarrier.of(one) for one in await feeds.list_carriers(desk, actor, feed_id)]


# -- offers -----------------------------------------------------------------------------------------------------------


class OfferForm(Form):
    """Let a unit and all below it relay the feed, `[valid_from, valid_to)`. `basis`: the paper it rests on."""

    unit_id: Id
    basis: Basis = Field(examples=["Công văn 120/SVHTTDL"])
    valid_from: Instant | None = None
    valid_to: Instant | None = None


class Offer(Shown):
    """The owner's word that a unit may relay the feed."""

    id: str
    feed_id: str
    unit_id: str
    basis: str
    valid_from: datetime
    valid_to: datetime | None
    withdrawn_at: datetime | None

    @classmethod
    def of(cls, row: FeedOfferRow) -> Offer:
        """As callers see it."""
        return cls(
            id=row.id,
            feed_id=row.feed_id,
            unit_id=row.unit_id,
            basis=row.basis,
            valid_from=row.valid_from,
            valid_to=row.valid_to,
            withdrawn_at=row.withdrawn_at,
        )


@router.get("/feeds/{feed_id}/offers")
@asks(Action.READ, Action.FEED_HOLD)
async def list_offers(desk: DeskDep, actor: ActorDep, feed_id: IdPath) -> list[Offer]:
    """Every offer for the owner, for others those made to their places."""
    return [Offer.of(row) for row in await feeds.list_offers(desk, actor, feed_id)]


@router.post("/feeds/{feed_id}/offers", status_code=201)
@asks(Action.FEED_OFFER)
async def offer_feed(desk: DeskDep, actor: ActorDep, feed_id: IdPath, form: OfferForm) -> Offer:
    """Offer a feed to a unit and all below it."""
    request = NewOffer(feed_id, form.unit_id, form.basis, form.valid_from, form.valid_to)
    return Offer.of(await feeds.offer_feed(desk, actor, request))


@router.post("/offers/{offer_id}/withdrawal")
@asks(Action.FEED_OFFER)
async def withdraw_offer(desk: DeskDep, actor: ActorDep, offer_id: IdPath) -> Offer:
    """Take an offer back from now on; coming relays that rest on it become conflicts."""
    return Offer.of(await feeds.withdraw_offer(desk, actor, offer_id))
