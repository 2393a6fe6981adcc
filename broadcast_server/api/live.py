"""Speaking live over HTTP: open, see, keep, close a session; and the socket that a microphone sends its voice into.

The socket (`/live/{session_id}/voice`) is described in `docs/live-voice.md`. A maintainer must not break: (1) a token
is taken from the header or the first message, never from the address, which proxies log, and a cookie only from a page
of ours; (2) nothing of a frame is
looked at before somebody is known to be behind it; (3) whatever ends a socket is told first as a message with a code
and a sentence, then as a close code with the sentence cut to what the protocol carries.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar, cast

from fastapi import Depends, Query, Response, WebSocket
from pydantic import Field, StringConstraints, ValidationError
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketDisconnect

from broadcast_server import catalogue
from broadcast_server.api import problems
from broadcast_server.api.deps import COOKIE, ActorDep, DeskDep, LocaleDep, actor_of, who_acts
from broadcast_server.api.fields import Form, Id, IdPath, IdQuery, Secret, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.api.schedules import PreviewShown, Targets
from broadcast_server.control import live, sign_in
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.live import Attached, LiveIngest, LiveQuery, LiveView, Opened, OpenLive, Sight
from broadcast_server.domain.errors import BroadcastError, Conflict, Invalid, Refused, Unavailable
from broadcast_server.domain.places import Target
from broadcast_server.domain.voice import USUAL_LIMITS, Bucket, VoiceFormat
from broadcast_server.logs import get_logger
from broadcast_server.store.live import Overriding
from broadcast_server.store.words import LiveEnd, LiveState, RecordingState

log = get_logger()
T = TypeVar("T", bound=Form)
router = Router(tags=["live"], route_class=IdempotentRoute)

HELLO_S: Final = 5.0
TELL_S: Final = 1.0
STANDING_EVERY: Final = 3
"""Of so many tellings, one asks whether the speaker's sign-in or token still stands."""
TEXT_BYTES: Final = 4_096
TEXTS_PER_S: Final = 10.0
TEXTS_BURST: Final = 50
SEQUENCE_BYTES: Final = 4
_REASON_BYTES: Final = 123
"""RFC 6455 §5.5: a control frame carries 125 bytes, two of them the code."""
_CLOSE_CODES: Final[Mapping[str, int]] = {
    "live_over": 4410,
    "live_lost": 4410,
    "live_taken_over": 4409,
    "voice_abusive": 4400,
    "hello_late": 4408,
}
"""Where the code says more than the kind; else 4000 and the HTTP status."""


def _ingest(connection: HTTPConnection) -> LiveIngest:
    ingest = getattr(connection.state, "live", None)
    if ingest is None:
        raise Unavailable("live_not_leading")
    return cast("LiveIngest", ingest)


IngestDep = Annotated[LiveIngest, Depends(_ingest)]
"""Where voices go in this process."""


# -- forms ------------------------------------------------------------------------------------------------------------


class LiveForm(Form):
    """A wish to speak. No `targets`: the whole unit; no `minutes`: as long as the policy allows."""

    unit_id: Id
    title: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")] | None = None
    targets: Targets = Field(default_factory=list)
    minutes: Annotated[int, Field(ge=1, le=120)] | None = None
    accept_conflicts: bool = False

    def asked(self) -> OpenLive:
        """As the verb takes it."""
        return OpenLive(
            unit_id=self.unit_id,
            title=self.title,
            targets=tuple(Target(target.kind, target.ref) for target in self.targets),
            minutes=self.minutes,
            accept_conflicts=self.accept_conflicts,
        )


class LiveShown(Shown):
    """A session. `id` is also its stream's; `ends_at` the latest end; `counts` what became of the packets."""

    id: str
    unit_id: str
    schedule_id: str
    entry_id: str
    speaker: str
    title: str
    level: int
    state: LiveState
    opened_at: datetime
    starts_at: datetime
    ends_at: datetime
    closed_at: datetime | None
    end_reason: LiveEnd | None
    nodes_planned: int
    heard_ms: int
    counts: dict[str, int]
    recording_state: RecordingState
    recording_sha256: str | None

    @classmethod
    def of(cls, view: LiveView) -> LiveShown:
        """As callers see it."""
        return cls.model_validate(view, from_attributes=True)


class SilencedShown(Shown):
    """What keeps some places from hearing the voice; `until` null: until it is released."""

    code: str
    winner_id: str
    unit_id: str
    title: str
    until: datetime | None

    @classmethod
    def of(cls, one: Overriding) -> SilencedShown:
        """As callers see it."""
        return cls.model_validate(one, from_attributes=True)


class LivePreview(Shown):
    """What speaking now would do."""

    starts_at: datetime
    ends_at: datetime
    nodes_planned: int
    preview: PreviewShown
    silenced: list[SilencedShown]

    @classmethod
    def of(cls, opened: Opened, locale: catalogue.Locale) -> LivePreview:
        """As callers see it."""
        return cls(
            starts_at=opened.live.starts_at,
            ends_at=opened.live.ends_at,
            nodes_planned=opened.live.nodes_planned,
            preview=PreviewShown.of(opened.preview, locale),
            silenced=[SilencedShown.of(one) for one in opened.silenced],
        )


class LiveOpened(LiveShown):
    """A session that was opened: connect the microphone to `voice` within 15 s."""

    voice: str
    preview: PreviewShown
    silenced: list[SilencedShown]


# -- routes -----------------------------------------------------------------------------------------------------------


@router.post("/live", status_code=201)
@asks(Action.LIVE)
async def open_live(
    desk: DeskDep, actor: ActorDep, ingest: IngestDep, form: LiveForm, locale: LocaleDep, response: Response
) -> LiveOpened:
    """Take the air for a voice. The microphone then sends to `voice`, a WebSocket (`docs/live-voice.md`)."""
    opened = await live.open_live(desk, ingest, actor, form.asked())
    address = f"/api/v1/live/{opened.live.id}"
    response.headers["Location"] = address
    return LiveOpened(
        **LiveShown.of(opened.live).model_dump(),
        voice=f"{address}/voice",
        preview=PreviewShown.of(opened.preview, locale),
        silenced=[SilencedShown.of(one) for one in opened.silenced],
    )


@router.post("/live/preview")
@asks(Action.LIVE)
async def preview_live(desk: DeskDep, actor: ActorDep, form: LiveForm, locale: LocaleDep) -> LivePreview:
    """What speaking now would cut or wait for; nothing is saved."""
    return LivePreview.of(await live.preview_live(desk, actor, form.asked()), locale)


@router.get("/live")
@asks(Action.READ)
async def list_live(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    unit: IdQuery = None,
    state: Annotated[LiveState | None, Query()] = None,
) -> Page[LiveShown]:
    """Sessions, newest first."""
    found = await live.list_live(desk, actor, LiveQuery(unit, state, paging.after, paging.fetch))
    return paging.page(found, key=lambda one: one.id, item=LiveShown.of)


@router.get("/live/{session_id}")
@asks(Action.READ)
async def get_live(desk: DeskDep, actor: ActorDep, session_id: IdPath) -> LiveShown:
    """One session."""
    return LiveShown.of(await live.get_live(desk, actor, session_id))


@router.post("/live/{session_id}/renew", status_code=204)
@asks(Action.LIVE)
async def renew_live(desk: DeskDep, actor: ActorDep, ingest: IngestDep, session_id: IdPath) -> None:
    """Keep the session without a word; at least every 5 s while no packet is sent."""
    await live.renew_live(desk, ingest, actor, session_id)


@router.post("/live/{session_id}/close")
@asks(Action.LIVE, Action.STOP)
async def close_live(desk: DeskDep, actor: ActorDep, ingest: IngestDep, session_id: IdPath) -> LiveShown:
    """End it; the air is free at once. Its recording becomes an asset soon after."""
    return LiveShown.of(await live.close_live(desk, ingest, actor, session_id))


@router.websocket("/live/{session_id}/voice")
@asks(Action.LIVE)
async def voice(socket: WebSocket, session_id: str) -> None:
    """The microphone's line."""
    await _Line(socket, session_id).serve()


# -- the line ---------------------------------------------------------------------------------------------------------


class Hello(Form):
    """The first message. `token` where no header can be set and nobody is signed in."""

    token: Secret | None = None
    format: VoiceFormat = VoiceFormat.OPUS


class Word(Form):
    """Every later text."""

    renew: bool = False
    close: bool = False


class _Hung(Exception):  # noqa: N818 - not an error: the far side hung up
    pass


class _Line:
    """One socket, from its handshake to its end."""

    def __init__(self, socket: WebSocket, session_id: str) -> None:
        self._socket, self._session_id = socket, session_id
        self._desk: Desk = socket.state.desk
        self._locale = catalogue.locale_of(socket.headers.get("accept-language"))
        self._texts = Bucket(TEXTS_PER_S, TEXTS_BURST)
        self._first: bytes | None = None
        """A packet that came instead of a greeting, from who is known by a header or a cookie."""

    async def serve(self) -> None:
        """Until either side hangs up."""
        await self._socket.accept()
        hold: Attached | None = None
        try:
            ingest = _ingest(self._socket)
            actor, fmt = await self._greeted()
            hold = await live.join_live(self._desk, ingest, actor, self._session_id, fmt)
            await self._talk(ingest, actor, hold)
        except BroadcastError as error:
            await self._refuse(error)
        except (_Hung, WebSocketDisconnect):
            pass
        finally:
            if hold is not None:
                hold.release()

    async def _greeted(self) -> tuple[Actor, VoiceFormat]:
        """Who is there and what will be sent. Raises `Refused`, `Invalid`."""
        authorization = self._socket.headers.get("authorization")
        actor = None if authorization is None else await actor_of(self._desk, authorization)
        message = await self._within(HELLO_S)
        text = message.get("text")
        hello = None if text is None else _parsed(Hello, text)
        if actor is None and hello is not None and hello.token is not None:
            actor = await actor_of(self._desk, f"Bearer {hello.token}")
        if actor is None:
            if COOKIE not in self._socket.cookies:
                raise Refused("token_missing", fix="send_token_first")
            actor = await who_acts(self._socket)
        if hello is None:
            self._first = message.get("bytes") or b""
            return actor, VoiceFormat.OPUS
        return actor, hello.format

    async def _within(self, seconds: float) -> dict[str, Any]:
        receiving = asyncio.create_task(self._receive(), name="live.hello")
        waiting = asyncio.create_task(self._desk.clock.sleep(seconds), name="live.hello_limit")
        try:
            await asyncio.wait([receiving, waiting], return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                raise Invalid("hello_late", seconds=seconds)
            return receiving.result()
        finally:
            receiving.cancel()
            waiting.cancel()

    async def _receive(self) -> dict[str, Any]:
        message = dict(await self._socket.receive())
        if message["type"] == "websocket.disconnect":
            raise _Hung
        return message

    async def _talk(self, ingest: LiveIngest, actor: Actor, hold: Attached) -> None:
        sight = await live.look_at_live(self._desk, actor, self._session_id)
        await self._say(
            ready=True,
            next=hold.next_sequence,
            ends_at=sight.ends_at.isoformat(),
            planned=sight.planned,
            renew_within_s=USUAL_LIMITS.silent_s,
        )
        tasks = [
            asyncio.create_task(self._listen(ingest, actor, hold), name="live.listen"),
            asyncio.create_task(self._tell(ingest, actor), name="live.tell"),
            asyncio.create_task(hold.over(), name="live.over"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        failures = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        failure = next((one for one in failures if one is not None), None)
        if failure is not None:
            raise failure
        raise Conflict(hold.reason or "live_over")

    async def _listen(self, ingest: LiveIngest, actor: Actor, hold: Attached) -> None:
        if self._first is not None:
            _take(hold, self._first)
        while True:
            message = await self._receive()
            data, text = message.get("bytes"), message.get("text")
            if data is not None:
                _take(hold, data)
                continue
            if not self._texts.take(1.0, self._desk.clock.monotonic()):
                raise Refused("voice_abusive", refused=TEXTS_BURST)
            word = _parsed(Word, text or "")
            if word.renew:
                hold.renew()
            if word.close:
                await live.close_live(self._desk, ingest, actor, self._session_id)
                raise Conflict("live_over")

    async def _tell(self, ingest: LiveIngest, actor: Actor) -> None:
        """About once a second: how far it was understood, who sounds it, what cuts it."""
        was_cut: Overriding | None = None
        for told in itertools.count(1):
            await self._desk.clock.sleep(TELL_S)
            state = ingest.state(self._session_id)
            sight: Sight | None = None
            try:
                if told % STANDING_EVERY == 0:
                    await sign_in.require_standing(self._desk, actor)
                sight = await live.look_at_live(self._desk, actor, self._session_id)
            except Unavailable as away:
                log.warning("live.not_seen", session_id=self._session_id, code=away.code)
            if sight is not None and sight.state is not LiveState.OPEN:
                raise Conflict("live_lost" if sight.end_reason is LiveEnd.LOST else "live_over")
            if sight is not None and sight.cut != was_cut:
                was_cut = sight.cut
                await self._say(**_cut_of(was_cut))
            if state is not None:
                await self._say(
                    ack=state.acknowledged,
                    sounding=None if sight is None else sight.sounding,
                    planned=None if sight is None else sight.planned,
                    level_dbfs=state.level_dbfs,
                    recorded=state.is_recorded,
                    counts=live.counts_of(state.counts),
                )

    async def _say(self, **told: Any) -> None:
        await self._socket.send_text(json.dumps(told, ensure_ascii=False))

    async def _refuse(self, error: BroadcastError) -> None:
        facts = error.facts
        detail = catalogue.sentence(error.code, facts, self._locale)
        told: dict[str, Any] = {"code": error.code, "detail": detail}
        if "fix" in facts:
            told["fix"] = catalogue.sentence(str(facts["fix"]), facts, self._locale)
        code = _CLOSE_CODES.get(error.code, 4000 + problems.status_of(error))
        reason = detail.encode()[:_REASON_BYTES].decode(errors="ignore")
        try:
            await self._say(error=told)
            await self._socket.close(code, reason)
        except (RuntimeError, WebSocketDisconnect):
            log.info("live.hung_up", session_id=self._session_id, code=error.code)


def _take(hold: Attached, frame: bytes) -> None:
    if len(frame) <= SEQUENCE_BYTES:
        raise Invalid("voice_frame_short", least=SEQUENCE_BYTES + 1)
    hold.take(int.from_bytes(frame[:SEQUENCE_BYTES], "big"), frame[SEQUENCE_BYTES:])


def _parsed(form: type[T], text: str) -> T:
    if len(text) > TEXT_BYTES:
        raise Invalid("body_too_large", limit_bytes=TEXT_BYTES)
    try:
        return form.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise Invalid("voice_word_unknown", field=".".join(str(part) for part in first["loc"])) from None


def _cut_of(cut: Overriding | None) -> dict[str, Any]:
    if cut is None:
        return {"cut": None}
    until = None if cut.until is None else cut.until.isoformat()
    return {"cut": cut.code, "title": cut.title, "until": until, "winner_id": cut.winner_id}
