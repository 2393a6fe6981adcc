"""What stands before every route: whom we answer, how much we read, what each answer carries.

A maintainer must not break: (1) a body is counted as it comes in, because a length that is declared may lie or be
missing; (2) every answer carries the security headers; a page that needs a wider policy sets its own
`Content-Security-Policy`, which is then left alone; (3) an unknown host is refused before anything is read (DNS
rebinding: a page of a stranger must not reach a console on localhost).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broadcast_server.api import problems
from broadcast_server.api.deps import COOKIE
from broadcast_server.domain.errors import BroadcastError, Invalid

JSON_LIMIT_BYTES: Final = 2 * 1024 * 1024
HSTS_S: Final = 365 * 86_400
"""Browsers that saw a certificate they trust come back by HTTPS alone for so long."""
UPLOAD_LIMIT_BYTES: Final = 512 * 1024 * 1024

_UPLOADS: Final = ("multipart/", "audio/", "video/", "application/octet-stream", "application/ogg")


class Front:
    """The outermost layer of the application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        state: Mapping[str, Any],
        allowed_hosts: Collection[str],
        upload_limit_bytes: int = UPLOAD_LIMIT_BYTES,
    ) -> None:
        """`state` goes into every request's state. `allowed_hosts`: names without port; `*` allows all."""
        self._app, self._state, self._upload_limit_bytes = app, dict(state), upload_limit_bytes
        self._hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {}).update(self._state)
        headers = Headers(scope=scope)
        if "*" not in self._hosts and _host_of(headers) not in self._hosts:
            await _refuse(Invalid("host_unknown_here"), 421, scope, receive, send)
            return
        if scope["type"] == "websocket" and not self._is_own_page(headers):
            await _refuse(Invalid("host_unknown_here"), 421, scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit_bytes = self._limit_of(headers)
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit_bytes:
            await _refuse(Invalid("body_too_large", limit_bytes=limit_bytes), 413, scope, receive, send)
            return
        read_bytes = 0

        async def counted() -> Message:
            nonlocal read_bytes
            message = await receive()
            read_bytes += len(message.get("body", b""))
            if read_bytes > limit_bytes:
                raise HTTPException(413)  # the one kind that the framework's body reader lets through
            return message

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                for name, value in problems.SECURITY_HEADERS.items():
                    sent.setdefault(name, value)
                if scope.get("scheme") == "https":
                    sent.setdefault("Strict-Transport-Security", f"max-age={HSTS_S}")
            await send(message)

        await self._app(scope, counted, dressed)

    def _is_own_page(self, headers: Headers) -> bool:
        """Whether a socket is opened by a page of ours, or by no page: a browser names the page and cannot lie."""
        origin = headers.get("origin")
        return origin is None or "*" in self._hosts or _name_of(origin.lower().partition("://")[2]) in self._hosts

    def _limit_of(self, headers: Headers) -> int:
        """Much only for uploads of somebody who shows a token or a cookie, whoever that proves to be."""
        is_upload = headers.get("content-type", "").lower().startswith(_UPLOADS)
        return (
            self._upload_limit_bytes
            if is_upload and ("authorization" in headers or COOKIE in headers.get("cookie", ""))
            else JSON_LIMIT_BYTES
        )


async def _refuse(error: BroadcastError, status: int, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    language = Headers(scope=scope).get("accept-language")
    answer = problems.respond(error, path=scope["path"], accept_language=language, status=status)
    await answer(scope, receive, send)


def _host_of(headers: Headers) -> str:
    return _name_of(headers.get("host", "").lower())


def _name_of(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
