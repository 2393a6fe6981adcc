"""`broadcast-server feed …`: own feeds, tell a station its push credential once, offer them to places."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from broadcast_server.cli.office import run, tell
from broadcast_server.control import feeds, relays
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.desk import Desk
from broadcast_server.control.feeds import FeedQuery, FeedView, NewFeed, NewOffer, PushCredential
from broadcast_server.control.relays import RelaySetting, RelayView
from broadcast_server.domain.clock import LOCAL
from broadcast_server.store.tables import FeedOfferRow
from broadcast_server.store.words import FeedKind, Tier

app = typer.Typer(no_args_is_help=True, help="Feeds to relay (nguồn tiếp âm).")

Json = Annotated[bool, typer.Option("--json", help="for machines")]
_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M%z"]
When = Annotated[datetime | None, typer.Option(formats=_FORMATS, help="instant; local time unless an offset is given")]


@app.command("add")
def add_feed(
    name: str,
    unit: Annotated[str, typer.Option(help="unit that owns it")],
    push: Annotated[bool, typer.Option("--push", help="the station pushes to us")] = False,
    url: Annotated[str | None, typer.Option(help="we pull from this http(s) address")] = None,
    tier: Annotated[Tier, typer.Option(help="whose feed it is")] = Tier.OTHER,
    mount: Annotated[str | None, typer.Option(help="mount for --push; made from the name if left out")] = None,
    as_json: Json = False,
) -> None:
    """Own a feed; with --push prints mount, user and password, once."""
    if push == (url is not None):
        raise typer.BadParameter("give either --push or --url")
    kind = FeedKind.PUSH if push else FeedKind.PULL
    made = run(lambda desk: feeds.add_feed(desk, OPERATOR, NewFeed(unit, name, tier, kind, url, mount)))
    tell(_feed(FeedView(made.feed, None, is_own=True)) | _credential(made.credential), as_json=as_json)


@app.command("list")
def list_feeds(
    offered_to: Annotated[str | None, typer.Option(help="what this unit may relay now")] = None,
    owner: Annotated[str | None, typer.Option(help="what this unit owns")] = None,
    as_json: Json = False,
) -> None:
    """Feeds and what they are doing."""

    async def errand(desk: Desk) -> list[FeedView]:
        found: list[FeedView] = []
        while page := await feeds.list_feeds(
            desk, OPERATOR, FeedQuery(offered_to, owner, after=found[-1].feed.id if found else None)
        ):
            found += page
        return found

    tell([_feed(view) for view in run(errand)], as_json=as_json)


@app.command("rotate")
def rotate_feed(feed: str, as_json: Json = False) -> None:
    """Print a new push password, once; who is connected with the old one is cut."""
    tell(_credential(run(lambda desk: feeds.rotate_feed(desk, OPERATOR, feed))), as_json=as_json)


@app.command("revoke")
def revoke_feed(feed: str, as_json: Json = False) -> None:
    """End a feed for good; it is cut if it is live."""
    tell(_feed(run(lambda desk: feeds.revoke_feed(desk, OPERATOR, feed))), as_json=as_json)


@app.command("offer")
def offer_feed(
    feed: str,
    unit: str,
    basis: Annotated[str, typer.Option(help="the paper it rests on")],
    valid_from: When = None,
    valid_to: When = None,
    as_json: Json = False,
) -> None:
    """Let a unit and all below it relay a feed."""
    request = NewOffer(feed, unit, basis, _instant(valid_from), _instant(valid_to))
    tell(_offer(run(lambda desk: feeds.offer_feed(desk, OPERATOR, request))), as_json=as_json)


@app.command("withdraw")
def withdraw_offer(offer: str, as_json: Json = False) -> None:
    """Take an offer back; coming relays that rest on it become conflicts."""
    tell(_offer(run(lambda desk: feeds.withdraw_offer(desk, OPERATOR, offer))), as_json=as_json)


@app.command("substitute")
def substitute(
    feed: str,
    substitutes: Annotated[list[str] | None, typer.Argument(help="feeds that stand in, in order; none: nobody")] = None,
    filler: Annotated[str | None, typer.Option(help="approved bulletin that is looped when nobody stands in")] = None,
    delay_ms: Annotated[int, typer.Option(help="hold sound back so long, for the cut button")] = 0,
    as_json: Json = False,
) -> None:
    """Say who stands in for a feed that gives no good sound."""
    setting = RelaySetting(tuple(substitutes or ()), filler, delay_ms)
    tell(_relay(run(lambda desk: relays.set_relay(desk, OPERATOR, feed, setting))), as_json=as_json)


@app.command("cut")
def cut_feed(feed: str, as_json: Json = False) -> None:
    """Drop what the delay still holds; no feed sounds here until `feed release`."""
    tell(_relay(run(lambda desk: relays.cut_feed(desk, OPERATOR, feed))), as_json=as_json)


@app.command("stop")
def stop_feed(
    feed: str, reason: Annotated[str, typer.Option(help="why it must sound nowhere")], as_json: Json = False
) -> None:
    """Stop relaying a feed everywhere until `feed release`."""
    tell(_relay(run(lambda desk: relays.stop_feed(desk, OPERATOR, feed, reason))), as_json=as_json)


@app.command("release")
def release_feed(feed: str, as_json: Json = False) -> None:
    """Let a feed that was cut or stopped sound again."""

    async def errand(desk: Desk) -> RelayView:
        await relays.release_cut(desk, OPERATOR, feed)
        return await relays.release_feed(desk, OPERATOR, feed)

    tell(_relay(run(errand)), as_json=as_json)


def _instant(given: datetime | None) -> datetime | None:
    return given if given is None or given.tzinfo is not None else given.replace(tzinfo=LOCAL)


def _feed(view: FeedView) -> dict[str, Any]:
    row = view.feed
    return {
        "id": row.id,
        "unit_id": row.unit_id,
        "name": row.name,
        "tier": row.tier.value,
        "kind": row.kind.value,
        "url": row.url,
        "mount": row.mount,
        "state": None if view.status is None else view.status.state.value,
        "valid_to": row.valid_to,
        "revoked_at": row.revoked_at,
    }


def _relay(view: RelayView) -> dict[str, Any]:
    row = view.feed
    return {
        "id": row.id,
        "name": row.name,
        "substitutes": [each.id for each in view.substitutes],
        "filler_id": row.filler_id,
        "delay_ms": row.delay_ms,
        "cut_at": row.cut_at,
        "stopped_at": row.stopped_at,
        "stop_reason": row.stop_reason,
        "state": None if view.status is None else view.status.state.value,
    }


def _credential(made: PushCredential | None) -> dict[str, Any]:
    if made is None:
        return {}
    return {"mount": made.mount, "user": made.user, "password": made.password, "host": made.host, "port": made.port}


def _offer(row: FeedOfferRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "feed_id": row.feed_id,
        "unit_id": row.unit_id,
        "basis": row.basis,
        "valid_from": row.valid_from,
        "valid_to": row.valid_to,
        "withdrawn_at": row.withdrawn_at,
    }
