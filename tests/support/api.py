"""The HTTP application in process, without a socket: what a REST client sees."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from broadcast_server.api.router import create_api
from broadcast_server.control.desk import Desk
from broadcast_server.store.people import secret_hash
from broadcast_server.store.session import Session
from broadcast_server.store.tables import TokenRow, UserRow

ORIGIN = "http://127.0.0.1"


@asynccontextmanager
async def a_client(
    desk: Desk, *, token: str | None = None, app: FastAPI | None = None, headers: Mapping[str, str] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `create_api(desk)` (or of `app`), with a bearer token if one is given."""
    transport = httpx.ASGITransport(app=app or create_api(desk), raise_app_exceptions=False)
    sent = dict(headers or {})
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    async with httpx.AsyncClient(transport=transport, base_url=ORIGIN, headers=sent) as client:
        yield client


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
