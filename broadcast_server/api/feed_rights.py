"""Rights on feeds over HTTP: who may push one, who carries one."""

from __future__ import annotations

from datetime import datetime

from broadcast_server.api.deps import ActorDep, DeskDep
from broadcast_server.api.fields import Form, Id, IdPath, Instant, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.control import feed_rights
from broadcast_server.control.access import Action
from broadcast_server.control.feed_rights import NewPushRight

router = Router(tags=["feeds"], route_class=IdempotentRoute)


class PushRightForm(Form):
    """Who may push: a person (`user_id`) or an organisation's people (`unit_id`), from now or `valid_from` on."""

    user_id: Id | None = None
    unit_id: Id | None = None
    valid_from: Instant | None = None
    valid_to: Instant | None = None


class PushRight(Shown):
    """The dated right to push one feed."""

    id: str
    feed_id: str
    user_id: str | None
    unit_id: str | None
    valid_from: datetime
    valid_to: datetime | None
    given_by: str


class SubscriptionForm(Form):
    """Which unit carries the feed; until further notice if `valid_to` is left out."""

    unit_id: Id
    valid_to: Instant | None = None


class Subscription(Shown):
    """A unit carries a feed; one whose `valid_to` is over was dropped or ran out."""

    id: str
    feed_id: str
    unit_id: str
    valid_from: datetime
    valid_to: datetime | None
    created_by: str
    ended_by: str | None


@router.get("/feeds/{feed_id}/push-rights")
@asks(Action.FEED_OWN)
async def list_push_rights(desk: DeskDep, actor: ActorDep, feed_id: IdPath) -> list[PushRight]:
    """Who may push it, and who might before."""
    rows = await feed_rights.list_push_rights(desk, actor, feed_id)
    return [PushRight.model_validate(row, from_attributes=True) for row in rows]


@router.post("/feeds/{feed_id}/push-rights", status_code=201)
@asks(Action.FEED_OWN)
async def give_push_right(desk: DeskDep, actor: ActorDep, feed_id: IdPath, form: PushRightForm) -> PushRight:
    """Let somebody push it. Once one was given, the feed's password is good only while one is in force."""
    request = NewPushRight(feed_id, form.user_id, form.unit_id, form.valid_from, form.valid_to)
    made = await feed_rights.give_push_right(desk, actor, request)
    return PushRight.model_validate(made, from_attributes=True)


@router.delete("/push-rights/{right_id}")
@asks(Action.FEED_OWN)
async def end_push_right(desk: DeskDep, actor: ActorDep, right_id: IdPath) -> PushRight:
    """Take it back from now on."""
    ended = await feed_rights.end_push_right(desk, actor, right_id)
    return PushRight.model_validate(ended, from_attributes=True)


@router.get("/feeds/{feed_id}/subscriptions")
@asks(Action.READ)
async def list_subscriptions(desk: DeskDep, actor: ActorDep, feed_id: IdPath) -> list[Subscription]:
    """Who carries it and who dropped it, at places one may see."""
    rows = await feed_rights.list_subscriptions(desk, actor, feed_id)
    return [Subscription.model_validate(row, from_attributes=True) for row in rows]


@router.post("/feeds/{feed_id}/subscriptions", status_code=201)
@asks(Action.FEED_SUBSCRIBE)
async def subscribe_feed(desk: DeskDep, actor: ActorDep, feed_id: IdPath, form: SubscriptionForm) -> Subscription:
    """Carry an offered feed from now on."""
    made = await feed_rights.subscribe(desk, actor, feed_id, form.unit_id, valid_to=form.valid_to)
    return Subscription.model_validate(made, from_attributes=True)


@router.delete("/feeds/{feed_id}/subscriptions/{unit_id}")
@asks(Action.FEED_SUBSCRIBE)
async def drop_feed(desk: DeskDep, actor: ActorDep, feed_id: IdPath, unit_id: IdPath) -> Subscription:
    """Carry it no longer; what is obliged cannot be dropped."""
    ended = await feed_rights.drop(desk, actor, feed_id, unit_id)
    return Subscription.model_validate(ended, from_attributes=True)
