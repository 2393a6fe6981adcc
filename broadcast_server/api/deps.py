"""What a route asks for by its annotations: the desk, who acts, in which language, which version is meant.

The desk lies in `request.state`, put there by the front of the application; a route never reaches for anything global.
All of these are coroutines although none waits: the framework sends a plain function to a thread, at every request.

Who acts is told by a bearer token in the header, or by the cookie of a sign-in. A maintainer must not break: (1) a
header is what counts where there is one, and a cookie is never read as a token nor a token as a cookie; (2) a cookie
is sent by the browser whoever wrote the page, so it counts only for a page of our own origin (`Origin`,
`Sec-Fetch-Site`), and for a change only with the sign-in's own token in `X-CSRF-Token`; (3) the prefix `__Host-` holds
the cookie to this host and to HTTPS, or to loopback, which browsers trust alike.

Sources: RFC 6265bis §4.1.3; W3C Fetch Metadata; OWASP on CSRF.
"""

from __future__ import annotations

import hmac
from typing import Annotated, Final, cast

from fastapi import Depends, Header, Request, Response
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection

from broadcast_server import catalogue
from broadcast_server.catalogue import Locale
from broadcast_server.control import access, sign_in
from broadcast_server.control.access import Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.relays import Monitor
from broadcast_server.control.sign_in import SignedIn
from broadcast_server.domain.errors import Invalid, Refused

COOKIE: Final = "__Host-sid"
CSRF_HEADER: Final = "X-CSRF-Token"
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_bearer = HTTPBearer(auto_error=False, description="`broadcast-server token create USER`")
_cookie = APIKeyCookie(
    name=COOKIE, auto_error=False, description=f"from `POST /api/v1/session`; changes need `{CSRF_HEADER}` as well"
)


async def _desk(request: Request) -> Desk:
    return cast("Desk", request.state.desk)


DeskDep = Annotated[Desk, Depends(_desk)]
"""What every verb of `control` takes first."""


async def _monitor(request: Request) -> Monitor | None:
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


async def signed_in_of(connection: HTTPConnection) -> SignedIn | None:
    """Who is at the browser; None: nobody came with a cookie. For requests without an `Authorization` header.

    Raises `Refused`: `origin_refused`, `csrf_refused`, `sign_in_over` (401).
    """
    cookie = connection.cookies.get(COOKIE)
    if cookie is None:
        return None
    require_own_page(connection)
    desk: Desk = connection.state.desk
    signed_in = await sign_in.who(desk, cookie)
    if _changes(connection) and not hmac.compare_digest(
        signed_in.csrf.encode(), connection.headers.get(CSRF_HEADER, "").encode()
    ):
        raise Refused("csrf_refused", fix="send_csrf_token")
    return signed_in


async def who_acts(connection: HTTPConnection, *, is_own_account: bool = False) -> Actor:
    """Whose request this is, by header or cookie; `is_own_account`: what they must do first is what they are doing.

    Raises `Refused`: 401 (`token_missing`, `token_unknown`, `sign_in_over`), 403 (`origin_refused`, `csrf_refused`,
    `password_must_change`, `totp_must_set_up`).
    """
    kept: Actor | SignedIn | None = getattr(connection.state, "who", None)
    if kept is None:
        authorization = connection.headers.get("authorization")
        if authorization is not None:
            kept = await actor_of(connection.state.desk, authorization)
        else:
            kept = await signed_in_of(connection)
        if kept is None:
            raise Refused("token_missing", fix="send_bearer_token")
        connection.state.who = kept
    if isinstance(kept, Actor):
        return kept
    if kept.must and not is_own_account:
        raise Refused(kept.must[0].value)
    return kept.actor


def require_own_page(connection: HTTPConnection) -> None:
    """Raise `Refused("origin_refused")` if a browser says that the page of another origin sent this.

    A browser names the page with every change and every socket, and no page can make it lie; a program that is no
    browser names none.
    """
    origin = connection.headers.get("origin")
    if origin is not None and _origin_parts(origin) != _own_origin(connection):
        raise Refused("origin_refused")
    if origin is None and connection.scope["type"] == "websocket":
        raise Refused("origin_refused")
    site = connection.headers.get("sec-fetch-site")
    allowed = {"same-origin"} if _changes(connection) else {"same-origin", "none"}
    if site is not None and site not in allowed:
        raise Refused("origin_refused")


def _changes(connection: HTTPConnection) -> bool:
    return connection.scope["type"] == "http" and connection.scope["method"] not in _SAFE


def _own_origin(connection: HTTPConnection) -> tuple[str, str, int]:
    scheme = {"ws": "http", "wss": "https"}.get(connection.url.scheme, connection.url.scheme)
    return _origin_parts(f"{scheme}://{connection.headers.get('host', '')}")


def _origin_parts(origin: str) -> tuple[str, str, int]:
    """Scheme, host, port; nonsense is like nothing of ours."""
    scheme, _, rest = origin.strip().lower().partition("://")
    host, colon, port = rest.rpartition(":")
    if not colon or rest.endswith("]"):
        host, port = rest, "443" if scheme == "https" else "80"
    return scheme, host, int(port) if port.isascii() and port.isdecimal() and len(port) < 6 else -1


async def _actor(
    request: Request,
    _token: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    _sid: Annotated[str | None, Depends(_cookie)],
) -> Actor:
    return await who_acts(request)


ActorDep = Annotated[Actor, Depends(_actor)]
"""Who acts, by bearer token or sign-in."""


async def _owner(
    request: Request,
    _token: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    _sid: Annotated[str | None, Depends(_cookie)],
) -> Actor:
    return await who_acts(request, is_own_account=True)


OwnerDep = Annotated[Actor, Depends(_owner)]
"""The same on one's own account: also who has a first password to change or codes to set up."""


async def _locale(request: Request) -> Locale:
    return catalogue.locale_of(request.headers.get("accept-language"))


LocaleDep = Annotated[Locale, Depends(_locale)]
"""The language of sentences in the answer."""


# -- versions ---------------------------------------------------------------------------------------------------------


def set_etag(response: Response, version: int) -> None:
    """Tell the version of the one resource that is answered."""
    response.headers["ETag"] = f'"{version}"'


async def _if_match(
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
