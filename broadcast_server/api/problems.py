"""Every refusal of the API as one shape: `application/problem+json` (RFC 9457) in the reader's language.

`type` (URN of the code), `title` (the kind), `status`, `code` (stable, for programs), `detail` (a sentence for
people), `instance` (the path asked), and where they are known `field` (dotted path of the wrong input), `fix` (a
sentence) and `facts` (what the sentence was made of); a refused form lists all its faults in `errors`.

A maintainer must not break: (1) here, and only here, a kind of error becomes a status; (2) an unforeseen error leaves
as 500 `internal` and tells its cause to the log alone; (3) what the framework refuses by itself (form, route, method)
has the same shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from broadcast_server import catalogue
from broadcast_server.api.fields import TAG
from broadcast_server.domain.errors import BroadcastError, Conflict, Corrupt, Invalid, NotFound, Refused, Unavailable
from broadcast_server.logs import get_logger

log = get_logger()

MEDIA_TYPE: Final = "application/problem+json"

SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""On every answer (`api.front`), and set here as well because an unforeseen error is answered outside of the front."""

_STATUS: Final[Mapping[type[BroadcastError], int]] = {
    Invalid: 422,
    Refused: 403,
    NotFound: 404,
    Conflict: 409,
    Unavailable: 503,
    Corrupt: 500,
}
_STATUS_OF_CODE: Final[Mapping[str, int]] = {
    "token_missing": 401,
    "token_unknown": 401,
    "sign_in_over": 401,
    "login_wrong": 401,
    "too_many_tries": 429,
    "version_changed": 412,
    "version_stale": 412,
    "body_too_large": 413,
    "disk_full": 507,
}
"""Where HTTP has a more telling word than the kind's."""

_CODE_OF_STATUS: Final[Mapping[int, str]] = {
    400: "request_malformed",
    401: "token_missing",
    404: "no_such_address",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "media_type_refused",
}


class FieldFault(BaseModel):
    """One wrong field of a form."""

    field: str
    code: str
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem details with this program's members."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:loa:problem:naive_time"])
    title: str
    status: int
    code: str = Field(examples=["naive_time"])
    detail: str
    instance: str
    field: str | None = None
    fix: str | None = None
    facts: dict[str, Any] | None = None
    errors: list[FieldFault] | None = None


RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    "default": {"description": "Problem (RFC 9457)", "model": Problem},
}
"""For the description: every operation may answer with a problem."""


def status_of(error: BroadcastError) -> int:
    """The HTTP status of an error."""
    by_code = _STATUS_OF_CODE.get(error.code)
    if by_code is not None:
        return by_code
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)


def respond(
    error: BroadcastError,
    *,
    path: str,
    accept_language: str | None,
    errors: Sequence[FieldFault] | None = None,
    headers: Mapping[str, str] | None = None,
    status: int | None = None,
) -> JSONResponse:
    """The answer that tells `error`."""
    locale = catalogue.locale_of(accept_language)
    status = status or status_of(error)
    facts = dict(error.facts)
    field, fix = facts.pop("field", None), facts.pop("fix", None)
    body = Problem(
        type=f"urn:loa:problem:{error.code}",
        title=catalogue.sentence(f"kind_{_kind(error)}", {}, locale),
        status=status,
        code=error.code,
        detail=catalogue.sentence(error.code, error.facts, locale),
        instance=path,
        field=None if field is None else str(field),
        fix=None if fix is None else catalogue.sentence(str(fix), error.facts, locale),
        facts=facts or None,
        errors=list(errors) if errors else None,
    )
    sent = {**SECURITY_HEADERS, "Content-Language": locale.value, "Vary": "Accept-Language", **(headers or {})}
    if status == 401:
        sent["WWW-Authenticate"] = 'Bearer realm="loa"'
    if status == 503:
        sent["Retry-After"] = "2"
    if "retry_after_s" in error.facts:
        sent["Retry-After"] = str(error.facts["retry_after_s"])
    return JSONResponse(
        body.model_dump(mode="json", exclude_none=True), status_code=status, media_type=MEDIA_TYPE, headers=sent
    )


def _kind(error: BroadcastError) -> str:
    return next((kind.__name__.lower() for kind in _STATUS if isinstance(error, kind)), "corrupt")


# -- handlers ---------------------------------------------------------------------------------------------------------


def install(app: FastAPI) -> None:
    """Let `app` answer every error as a problem."""
    app.add_exception_handler(BroadcastError, _on_ours)
    app.add_exception_handler(RequestValidationError, _on_form)
    app.add_exception_handler(HTTPException, _on_framework)
    app.add_exception_handler(Exception, _on_unforeseen)


def _answer(request: Request, error: BroadcastError, **more: Any) -> Response:
    return respond(error, path=request.url.path, accept_language=request.headers.get("accept-language"), **more)


async def _on_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, BroadcastError)  # noqa: S101 - registered for it
    if isinstance(error, Corrupt):
        log.error("api.corrupt", path=request.url.path, code=error.code, facts=error.facts, exc_info=error)
    return _answer(request, error)


async def _on_form(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    locale = catalogue.locale_of(request.headers.get("accept-language"))
    faults = [_fault(told) for told in error.errors()]
    listed = [
        FieldFault(
            field=str(fault.facts.get("field", "")),
            code=fault.code,
            detail=catalogue.sentence(fault.code, fault.facts, locale),
        )
        for fault in faults
    ]
    return _answer(request, faults[0], errors=listed)


async def _on_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    status = error.status_code
    code = _CODE_OF_STATUS.get(status, "request_refused" if status < 500 else "internal")
    ours = Invalid(code, method=request.method, path=request.url.path)
    return _answer(request, ours, status=status, headers=error.headers)


async def _on_unforeseen(request: Request, error: Exception) -> Response:
    log.error("api.failed", method=request.method, path=request.url.path, exc_info=error)
    return _answer(request, Corrupt("internal"))


# -- what the form checker says, in our codes ------------------------------------------------------------------------

_FORM_CODES: Final[Mapping[str, tuple[str, str | None]]] = {
    "timezone_aware": ("naive_time", "add_offset"),
    "missing": ("missing_field", "add_field"),
    "extra_forbidden": ("unknown_field", "remove_field"),
    "json_invalid": ("json_malformed", None),
    "enum": ("not_a_choice", None),
    "literal_error": ("not_a_choice", None),
    "union_tag_invalid": ("not_a_choice", None),
    "union_tag_not_found": ("missing_field", "add_field"),
    "string_too_short": ("too_short", None),
    "string_too_long": ("too_long", None),
    "too_short": ("too_short", None),
    "too_long": ("too_long", None),
    "string_pattern_mismatch": ("wrong_form", None),
    "greater_than": ("out_of_range", None),
    "greater_than_equal": ("out_of_range", None),
    "less_than": ("out_of_range", None),
    "less_than_equal": ("out_of_range", None),
    "finite_number": ("not_a_number", None),
}
_FORM_FAMILIES: Final[tuple[tuple[str, str, str | None], ...]] = (
    ("datetime_", "not_an_instant", "write_rfc_3339"),
    ("date_", "not_a_date", "write_yyyy_mm_dd"),
    ("time_", "not_a_time", "write_hh_mm_quoted"),
    ("int_", "not_a_number", None),
    ("float_", "not_a_number", None),
    ("bool_", "not_a_boolean", None),
    ("string_", "not_text", None),
    ("list_", "not_a_list", None),
)
_LIMITS: Final = ("min_length", "max_length", "gt", "ge", "lt", "le", "expected", "pattern")


def _fault(told: Mapping[str, Any]) -> Invalid:
    raised = (told.get("ctx") or {}).get("error")
    if isinstance(raised, Invalid):  # a validator of ours
        return raised
    kind: str = told["type"]
    code, fix = _FORM_CODES.get(kind) or next(
        ((code, fix) for family, code, fix in _FORM_FAMILIES if kind.startswith(family)), ("input_invalid", None)
    )
    context: Mapping[str, Any] = told.get("ctx") or {}
    facts: dict[str, Any] = {name: str(context[name]) for name in _LIMITS if name in context}
    if fix is not None:
        facts["fix"] = fix
    return Invalid(code, field=_path(told["loc"]), **facts)


def _path(loc: Sequence[str | int]) -> str:
    parts = list(loc)
    if len(parts) > 1 and parts[0] in {"body", "query", "path", "header", "cookie"}:
        parts = parts[1:]
    path = ""
    for part in parts:
        if isinstance(part, str) and part.startswith(TAG):
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path
