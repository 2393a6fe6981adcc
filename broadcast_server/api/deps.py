"""What a route asks for by its annotations: the desk, who acts, in which language, which version is meant.

The desk lies in `request.state`, put there by the front of the application; a route never reaches for anything global.
"""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Header, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from broadcast_server import catalogue
from broadcast_server.catalogue import Locale
from broadcast_server.control import access
from broadcast_server.control.access import Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.relays import Monitor
from broadcast_server.domain.errors import Invalid, Refused

_bearer = HTTPBearer(auto_error=False, description="`broadcast-server token create USER`")


def _desk(request: Request) -> Desk:
    return cast("Desk", request.state.desk)


DeskDep = Annotated[Desk, Depends(_desk)]
"""What every verb of `control` takes first."""


def _monitor(request: Request) -> Monitor | None:
    return cast("Monitor | None", request.state.monitor)


MonitorDep = Annotated[Monitor | None, Depends(_monitor)]
"""Who lets people listen in; None where nothing is relayed."""


def bearer_token(authorization: str | None) -> str:
    """The secret of an `Authorization: Bearer …` header. Raises `Refused("token_missing")`."""
    scheme, _, secret = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Refused("token_missing", fix="send_bearer_token")
    return secret.strip()


async def actor_of(desk: Desk, authorization: str | None) -> Actor:
    """Whose request this is. Raises `Refused` (`token_missing`, `token_unknown`: 401)."""
    secret = bearer_token(authorization)
    return await desk.store.read(lambda session: access.actor_of_token(session, secret, desk.clock.now()))


async def _actor(
    request: Request,
    desk: DeskDep,
    _described: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Actor:
    return await actor_of(desk, request.headers.get("authorization"))


ActorDep = Annotated[Actor, Depends(_actor)]
"""Who acts, by bearer token."""


def _locale(request: Request) -> Locale:
    return catalogue.locale_of(request.headers.get("accept-language"))


LocaleDep = Annotated[Locale, Depends(_locale)]
"""The language of sentences in the answer."""


# -- versions ---------------------------------------------------------------------------------------------------------


def set_etag(response: Response, version: int) -> None:
    """Tell the version of the one resource that is answered."""
    response.headers["ETag"] = f'"{version}"'


def _if_match(
    if_match: Annotated[
        str | None, Header(description="ETag of the version you saw; refused with 412 when it has changed since")
    ] = None,
) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().removeprefix("W/").strip('"')
    if not text.isdecimal() or len(text) > 18:
        raise Invalid("if_match_invalid", field="If-Match", fix="send_etag_back")
    return int(text)


IfMatchDep = Annotated[int | None, Depends(_if_match)]
"""The version the caller saw, for the verb's `version`; None: whichever stands."""
