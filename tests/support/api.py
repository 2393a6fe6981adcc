"""The HTTP application in process, without a socket: what a REST client sees."""

from __future__ import annotations

import copy
import functools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import cast

import httpx
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broadcast_server.api.front import Front
from broadcast_server.api.gate import Door, Entry
from broadcast_server.api.router import create_api
from broadcast_server.control import access
from broadcast_server.control.desk import Desk
from broadcast_server.store.people import secret_hash
from broadcast_server.store.session import Session
from broadcast_server.store.tables import TokenRow, UserRow

ORIGIN = "http://127.0.0.1"


def api_of(desk: Desk) -> FastAPI:
    """`create_api(desk)` with the routes of one application made once: making them takes most of a second.

    What machines ask (`/readyz`) has no desk here.
    """
    app = copy.copy(_made())
    front = app.user_middleware[-1]
    state = {**front.kwargs["state"], "desk": desk}
    app.user_middleware = [*app.user_middleware[:-1], Middleware(Front, **{**front.kwargs, "state": state})]
    return app


@functools.cache
def _made() -> FastAPI:
    app = create_api(cast("Desk", None))
    assert [one.cls for one in app.user_middleware] == [Front]
    return app


@asynccontextmanager
async def a_client(
    desk: Desk, *, token: str | None = None, app: FastAPI | None = None, headers: Mapping[str, str] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `api_of(desk)` (or of `app`), with a bearer token if one is given.

    Every route that says yes is watched: it must have asked for what it declares (`api.gate`).
    """
    unasked: list[str] = []
    transport = httpx.ASGITransport(app=watched(app or api_of(desk), unasked), raise_app_exceptions=False)
    sent = dict(headers or {})
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    async with httpx.AsyncClient(transport=transport, base_url=ORIGIN, headers=sent) as client:
        yield client
    assert not unasked, unasked


def watched(app: ASGIApp, unasked: list[str]) -> ASGIApp:
    """`app`, entering into `unasked` each route that said yes without asking for an action it declares."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        is_yes = False

        async def seen(message: Message) -> None:
            nonlocal is_yes
            if message["type"] == "http.response.start":
                replayed = any(name == b"idempotency-replayed" for name, _ in message["headers"])
                is_yes = message["status"] < 400 and not replayed
            await send(message)

        with access.watching() as asked:
            await app(scope, receive, seen)
        endpoint = scope.get("endpoint")
        door = getattr(endpoint, "__door__", None)
        is_asking = isinstance(door, Door) and door.entry is Entry.ACTION and not door.or_own
        if is_yes and is_asking and not door.actions & set(asked):
            unasked.append(f"{scope['method']} {scope['path']} asked {asked}, declares {sorted(door.actions)}")

    return call


async def a_token(desk: Desk, login: str = "lan", *, secret: str | None = None) -> str:
    """A user without any grant and a bearer token of theirs; returns the secret."""
    secret = secret or f"{login}-secret"
    now = desk.clock.now()
    user = UserRow(id=desk.chance.new_id(), login=login, name=login.title(), created_at=now, disabled_at=None)
    token = TokenRow(
        id=desk.chance.new_id(),
        user_id=user.id,
        secret_hash=secret_hash(secret),
        name="test",
        created_at=now,
        expires_at=None,
        revoked_at=None,
    )

    def write(session: Session) -> None:
        session.add(user)
        session.flush()
        session.add(token)

    await desk.store.begin(write)
    return secret
