"""How a feed is relayed, over HTTP: substitutes, filler, delay, cut, stop everywhere, what sounded, listening in."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import Query, Response
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime, Field, StringConstraints

from broadcast_server.api.deps import ActorDep, DeskDep, IfMatchDep, LocaleDep, MonitorDep, set_etag
from broadcast_server.api.fields import Form, Id, IdPath, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.catalogue import Locale, has_sentence, sentence
from broadcast_server.control import relays, sign_in
from broadcast_server.control.access import Action
from broadcast_server.control.relays import RelaySetting, RelayView
from broadcast_server.domain.clock import LOCAL
from broadcast_server.domain.errors import Refused, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.store.tables import FeedStatusRow, PushSessionRow, RelaySpanRow
from broadcast_server.store.words import FeedState, ListenAt, RelayedKind

log = get_logger()
router = Router(tags=["feeds"], route_class=IdempotentRoute)

STANDING_S: Final = 5.0
"""How often it is asked whether a listener's sign-in or token still stands."""

Since = Annotated[AwareDatetime | None, Query(alias="from", description="sounded at or after")]
Until = Annotated[AwareDatetime | None, Query(description="sounded before")]


class RelayForm(Form):
    """Substitutes in order, the bulletin that fills, how long sound is held back for the cut button."""

    substitutes: Annotated[tuple[Id, ...], Field(max_length=5)] = ()
    filler_id: Id | None = None
    delay_ms: Annotated[int, Field(ge=0, le=30_000)] = 0


class StopForm(Form):
    """Why the feed must sound nowhere."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f]*$")]


class Substitute(Shown):
    """A feed that stands in."""

    feed_id: str
    name: str


class SoundingNow(Shown):
    """What the stream sounds. `source_id`: the substitute feed, or the filler's hash; `why`: `reason` as a sentence."""

    kind: RelayedKind
    source_id: str | None
    name: str | None
    reason: str
    why: str
    since: datetime


class Relay(Shown):
    """How a feed is relayed and what its stream does.

    `signal`: what the station reads ("mất tín hiệu từ 17:12:03"); `instead`: what the communes read ("đang phát thay:
    …"), null while the feed itself sounds; `format_changes`: how often the source changed its codec, sampling rate or
    channels in mid-stream; `is_drifting`: its clock is off by more than 200 ppm; `refused`: sources turned away from a
    busy mount since the server started.
    """

    feed_id: str
    substitutes: list[Substitute]
    filler_id: str | None
    delay_ms: int
    cut_at: datetime | None
    cut_by: str | None
    stopped_at: datetime | None
    stopped_by: str | None
    stop_reason: str | None
    state: FeedState
    reason: str | None
    why: str | None
    lost_since: datetime | None
    signal: str | None
    sounding: SoundingNow | None
    instead: str | None
    level_dbfs: float | None
    kbps: int | None
    drift_ppm: float | None
    is_drifting: bool
    format_changes: int
    refused: int

    @classmethod
    def of(cls, view: RelayView, locale: Locale) -> Relay:
        """As callers see it."""
        feed, status = view.feed, view.status
        body: Mapping[str, Any] = {} if status is None else status.body
        sounding = _sounding(body, locale)
        lost_since = _instant(body.get("lost_since"))
        reason = None if status is None else status.reason
        drift_ppm = body.get("drift_ppm")
        return cls(
            feed_id=feed.id,
            substitutes=[Substitute(feed_id=each.id, name=each.name) for each in view.substitutes],
            filler_id=feed.filler_id,
            delay_ms=feed.delay_ms,
            cut_at=feed.cut_at,
            cut_by=feed.cut_by,
            stopped_at=feed.stopped_at,
            stopped_by=feed.stopped_by,
            stop_reason=feed.stop_reason,
            state=FeedState.UNKNOWN if status is None else status.state,
            reason=reason,
            why=None if reason is None else _why(reason, locale),
            lost_since=lost_since,
            signal=_signal(status, lost_since, locale),
            sounding=sounding,
            instead=_instead(view, sounding, locale),
            level_dbfs=body.get("level_dbfs"),
            kbps=body.get("kbps"),
            drift_ppm=drift_ppm,
            is_drifting=drift_ppm is not None and abs(drift_ppm) > DRIFTING_PPM,
            format_changes=body.get("format_changes", 0),
            refused=body.get("refused", 0),
        )


DRIFTING_PPM = 200.0


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _clock_time(at: datetime) -> str:
    return at.astimezone(LOCAL).strftime("%H:%M:%S")


def _why(reason: str, locale: Locale) -> str:
    return sentence(reason, {}, locale) if has_sentence(reason) else reason


def _sounding(body: Mapping[str, Any], locale: Locale) -> SoundingNow | None:
    told = body.get("sounding")
    if told is None:
        return None
    return SoundingNow(
        kind=told["kind"],
        source_id=told["id"],
        name=told.get("name"),
        reason=told["reason"],
        why=_why(told["reason"], locale),
        since=told["since"],
    )


def _signal(status: FeedStatusRow | None, lost_since: datetime | None, locale: Locale) -> str | None:
    if status is None or status.state is FeedState.UNKNOWN:
        return None
    if lost_since is not None:
        return sentence("feed_lost", {"at": _clock_time(lost_since)}, locale)
    if status.state is FeedState.IDLE:
        return sentence("feed_off_air", {}, locale)
    if status.state is FeedState.HEALTHY:
        return sentence("feed_heard", {}, locale)
    return sentence("feed_lost", {"at": _clock_time(status.since)}, locale)


def _instead(view: RelayView, sounding: SoundingNow | None, locale: Locale) -> str | None:
    for at, code in ((view.feed.stopped_at, "relay_stopped"), (view.feed.cut_at, "relay_cut")):
        if at is not None:
            return sentence(code, {"at": _clock_time(at)}, locale)
    if sounding is None or sounding.kind is RelayedKind.FEED:
        return None
    facts = {"name": sounding.name or sounding.source_id or "", "at": _clock_time(sounding.since)}
    return sentence(f"relay_{sounding.kind.value}", facts, locale)


@router.get("/feeds/{feed_id}/relay")
@asks(Action.READ, Action.FEED_HOLD)
async def get_relay(desk: DeskDep, actor: ActorDep, feed_id: IdPath, locale: LocaleDep, response: Response) -> Relay:
    """Who stands in for the feed, what sounds now, and why."""
    found = await relays.get_relay(desk, actor, feed_id)
    set_etag(response, found.feed.version)
    return Relay.of(found, locale)


@router.put("/feeds/{feed_id}/relay")
@asks(Action.FEED_OWN)
async def set_relay(
    desk: DeskDep,
    actor: ActorDep,
    feed_id: IdPath,
    form: RelayForm,
    version: IfMatchDep,
    locale: LocaleDep,
    response: Response,
) -> Relay:
    """Say who stands in, what fills, and the delay; the whole."""
    setting = RelaySetting(form.substitutes, form.filler_id, form.delay_ms)
    found = await relays.set_relay(desk, actor, feed_id, setting, version=version)
    set_etag(response, found.feed.version)
    return Relay.of(found, locale)


@router.post("/feeds/{feed_id}/cut")
@asks(Action.FEED_OWN, Action.STOP)
async def cut_feed(desk: DeskDep, actor: ActorDep, feed_id: IdPath, locale: LocaleDep) -> Relay:
    """The cut button: what the delay still holds is dropped; no feed sounds here until it is released."""
    return Relay.of(await relays.cut_feed(desk, actor, feed_id), locale)


@router.delete("/feeds/{feed_id}/cut")
@asks(Action.FEED_OWN, Action.STOP)
async def release_cut(desk: DeskDep, actor: ActorDep, feed_id: IdPath, locale: LocaleDep) -> Relay:
    """Let the feed sound again."""
    return Relay.of(await relays.release_cut(desk, actor, feed_id), locale)


@router.post("/feeds/{feed_id}/stop")
@asks(Action.FEED_OWN, Action.STOP)
async def stop_feed(desk: DeskDep, actor: ActorDep, feed_id: IdPath, form: StopForm, locale: LocaleDep) -> Relay:
    """Stop relaying the feed everywhere until it is released."""
    return Relay.of(await relays.stop_feed(desk, actor, feed_id, form.reason), locale)


@router.delete("/feeds/{feed_id}/stop")
@asks(Action.FEED_OWN, Action.STOP)
async def release_feed(desk: DeskDep, actor: ActorDep, feed_id: IdPath, locale: LocaleDep) -> Relay:
    """Let a stopped feed be relayed again."""
    return Relay.of(await relays.release_feed(desk, actor, feed_id), locale)


class RelaySpan(Shown):
    """What the speakers sounded of a feed's stream, `[since, until)`; `until` null: still."""

    id: str
    kind: RelayedKind
    source_id: str | None
    reason: str
    why: str
    since: datetime
    until: datetime | None
    end_reason: str | None

    @classmethod
    def of(cls, row: RelaySpanRow, locale: Locale) -> RelaySpan:
        """As callers see it."""
        return cls(
            id=row.id,
            kind=row.kind,
            source_id=row.source_id,
            reason=row.reason,
            why=_why(row.reason, locale),
            since=row.since,
            until=row.until,
            end_reason=row.end_reason,
        )


@router.get("/feeds/{feed_id}/spans")
@asks(Action.READ, Action.FEED_HOLD)
async def list_spans(
    desk: DeskDep, actor: ActorDep, feed_id: IdPath, locale: LocaleDep, since: Since = None, until: Until = None
) -> list[RelaySpan]:
    """What really sounded: the feed, a substitute, the filler, nothing; oldest first, a thousand at most."""
    found = await relays.list_spans(desk, actor, feed_id, since=since, until=until)
    return [RelaySpan.of(row, locale) for row in found]


class PushSession(Shown):
    """A station's connection, or an attempt that was turned away (`is_alarm`). `reason` null: connected now."""

    id: str
    since: datetime
    until: datetime | None
    reason: str | None
    why: str | None
    bytes_in: int
    agent: str
    address: str
    attempts: int
    is_alarm: bool

    @classmethod
    def of(cls, row: PushSessionRow, locale: Locale) -> PushSession:
        """As callers see it."""
        return cls(
            id=row.id,
            since=row.since,
            until=row.until,
            reason=row.reason,
            why=None if row.reason is None else _why(row.reason, locale),
            bytes_in=row.bytes_in,
            agent=row.agent,
            address=row.address,
            attempts=row.attempts,
            is_alarm=row.reason == "mount_busy",
        )


@router.get("/feeds/{feed_id}/pushes")
@asks(Action.FEED_PUSH, Action.FEED_HOLD)
async def list_pushes(
    desk: DeskDep, actor: ActorDep, feed_id: IdPath, paging: PagingDep, locale: LocaleDep
) -> Page[PushSession]:
    """The station's connections and how they ended, and who was turned away; the latest first."""
    found = await relays.list_pushes(desk, actor, feed_id, after=paging.after, limit=paging.fetch)
    return paging.page(found, key=lambda row: row.id, item=lambda row: PushSession.of(row, locale))


@router.get(
    "/feeds/{feed_id}/monitor",
    response_class=StreamingResponse,
    responses={200: {"description": "Ogg Opus without end", "content": {"audio/ogg": {}}}},
)
@asks(Action.STOP, Action.FEED_PUSH, Action.FEED_HOLD)
async def listen_in(
    desk: DeskDep,
    monitor: MonitorDep,
    actor: ActorDep,
    feed_id: IdPath,
    at: Annotated[ListenAt, Query(description="what goes out, or the feed itself before the delay")] = ListenAt.RELAY,
) -> StreamingResponse:
    """Listen in on what is relayed, as it is relayed."""
    sound = await relays.listen_in(desk, monitor, actor, feed_id, at)
    first = await anext(sound)  # so that a refusal is an answer, not a broken stream

    async def whole() -> AsyncGenerator[bytes, None]:
        looked_at = desk.clock.monotonic()
        async with contextlib.aclosing(sound):
            yield first
            async for page in sound:
                if desk.clock.monotonic() - looked_at >= STANDING_S:
                    looked_at = desk.clock.monotonic()
                    try:
                        await sign_in.require_standing(desk, actor)
                    except Refused:  # in the middle of the sound there is no other way to say so
                        return
                    except Unavailable as away:
                        log.warning("feeds.listener_not_seen", code=away.code)
                yield page

    return StreamingResponse(whole(), media_type="audio/ogg", headers={"Cache-Control": "no-store"})
