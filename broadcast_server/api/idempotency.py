"""`Idempotency-Key`: a POST that was sent twice is done once and answered twice the same.

A router takes part by `APIRouter(…, route_class=IdempotentRoute)`; nothing else is needed. A key belongs to the user
and to one request (method, address, body); a route that asks nobody who they are, as a log-in, knows no keys. Only
successes are remembered: a refusal changed nothing, so the same key may try again. An answer with `Cache-Control:
no-store` holds a secret: it is never kept, a repetition is told `answer_told_once`. An upload is never read into memory
here, so it counts by its type and length.

Source: draft-ietf-httpapi-idempotency-key-header-07.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from broadcast_server.api.deps import who_acts
from broadcast_server.api.gate import is_by_secret
from broadcast_server.control.desk import Desk
from broadcast_server.domain.errors import BroadcastError, Conflict, Invalid
from broadcast_server.store import idempotency
from broadcast_server.store.idempotency import Answer

MAX_KEY_CHARACTERS = 120
_KEPT_HEADERS = ("location", "etag")

_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key and request again: the same answer, done once",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS},
}

Handler = Callable[[Request], Awaitable[Response]]


class IdempotentRoute(APIRoute):
    """A route whose POST honours `Idempotency-Key`."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self._is_of_somebody = not is_by_secret(endpoint)
        if "POST" in (options.get("methods") or ()) and self._is_of_somebody:
            options["openapi_extra"] = {**(options.get("openapi_extra") or {}), "parameters": [_PARAMETER]}
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Any]:
        """The handler of the route, done once per key."""
        handler = cast("Handler", super().get_route_handler())

        async def once(request: Request) -> Response:
            key = request.headers.get("idempotency-key")
            if key is None or request.method != "POST" or not self._is_of_somebody:
                return await handler(request)
            return await _once(request, key, handler)

        return once


async def _once(request: Request, key: str, handler: Handler) -> Response:
    if not (0 < len(key) <= MAX_KEY_CHARACTERS and key.isascii() and key.isprintable()):
        raise Invalid("idempotency_key_invalid", field="Idempotency-Key")
    desk: Desk = request.state.desk
    user_id = (await who_acts(request, is_own_account=True)).user_id
    request_hash = await _hash_of(request)
    known = await desk.store.begin(
        lambda session: idempotency.claim(
            session, user_id=user_id, key=key, request_hash=request_hash, now=desk.clock.now()
        ),
        ring=False,
    )
    if known is not None:
        return _again(known)
    try:
        response = await handler(request)
    except (BroadcastError, RequestValidationError, HTTPException):
        # Refused, and nothing was changed. Whatever else goes wrong leaves the claim: nobody knows what was done.
        await desk.store.begin(lambda session: idempotency.release(session, user_id=user_id, key=key), ring=False)
        raise
    answer = _answer_of(response)
    await desk.store.begin(
        lambda session: idempotency.settle(session, user_id=user_id, key=key, answer=answer), ring=False
    )
    return response


def _answer_of(response: Response) -> Answer:
    if "no-store" in response.headers.get("cache-control", ""):
        return Answer(response.status_code, {"is_secret": True})
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    content = bytes(response.body)
    return Answer(response.status_code, {"headers": headers, "content": json.loads(content) if content else None})


def _again(answer: Answer) -> Response:
    if answer.body.get("is_secret"):
        raise Conflict("answer_told_once", field="Idempotency-Key")
    headers = {**answer.body["headers"], "Idempotency-Replayed": "true"}
    if answer.body["content"] is None:
        return Response(status_code=answer.status, headers=headers)
    return JSONResponse(answer.body["content"], status_code=answer.status, headers=headers)


async def _hash_of(request: Request) -> str:
    told = hashlib.sha256(f"{request.method} {request.url.path}?{request.url.query}\n".encode())
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in {"", "application/json"}:
        told.update(_without_proof(await request.body()))  # the route reads the same bytes again from the cache
    else:
        told.update(f"{kind} {request.headers.get('content-length', '')}".encode())
    return told.hexdigest()


def _without_proof(body: bytes) -> bytes:
    """What is asked for, without the password and code it came with: no trace of those is kept, not even hashed."""
    try:
        asked = json.loads(body)
    except ValueError:  # the route will say what is wrong with it
        return body
    if not isinstance(asked, dict) or "proof" not in asked:
        return body
    return json.dumps({name: value for name, value in asked.items() if name != "proof"}, sort_keys=True).encode()
