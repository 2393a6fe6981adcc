"""One way to log: `noun.verb` events with fields, never sentences, and nothing secret in any of them.

A maintainer must not break: (1) `redact` runs last before rendering, after tracebacks became text, so neither a field,
a nested value nor an exception's words carry a URL's path, a password or a token; (2) library layers only call
`get_logger` at import, and nothing is cached, so a test may swap the output at any time; (3) logs go to stderr,
because stdout belongs to what a command prints for machines.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

REDACTED = "[redacted]"

_SECRET_NAMES = re.compile(
    r"(pass(word|wd|phrase)?|secret|token|authorization|cookie|credential|private_key|api_?key)$", re.IGNORECASE
)
_URL = re.compile(r"\b([a-z][a-z0-9+.-]{1,20})://(?:[^\s/?#@'\"]*@)?([^\s/?#'\"<>]*)([/?#][^\s'\"<>]*)?", re.IGNORECASE)
_BEARER = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"\b((?:source_?)?pass(?:word|wd)?|secret|(?:access_?|api_?)?token|api_?key|authorization)(\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|(?:(?:bearer|basic)\s+)?[^\s,;&]+)",
    re.IGNORECASE,
)
_LOUD_LIBRARIES = ("httpx", "httpcore", "apscheduler", "amqtt", "transitions", "alembic", "asyncio")


def scrub(text: str) -> str:
    """`text` with every URL cut to scheme and host, and every password or token it shows replaced."""
    text = _URL.sub(_without_path, text)
    text = _BEARER.sub(rf"\1 {REDACTED}", text)
    return _ASSIGNED.sub(rf"\1\2{REDACTED}", text)


def _without_path(found: re.Match[str]) -> str:
    scheme, host, rest = found.groups()
    return f"{scheme}://{host}/{REDACTED}" if rest and rest != "/" else f"{scheme}://{host}{rest or ''}"


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The one processor that keeps secrets out of the logs."""
    for name, value in event.items():
        event[name] = REDACTED if _SECRET_NAMES.search(name) and value else _clean(value)
    return event


def _clean(value: object) -> object:
    match value:
        case str():
            return scrub(value)
        case bytes() | bytearray():
            return f"<{len(value)} bytes>"
        case BaseException():
            return scrub(f"{type(value).__name__}: {value}")
        case Mapping():
            return {
                name: REDACTED if isinstance(name, str) and _SECRET_NAMES.search(name) and inner else _clean(inner)
                for name, inner in value.items()
            }
        case list() | tuple() | set() | frozenset():
            return [_clean(inner) for inner in value]
    return value


class _StderrLogger:
    """Writes one line to whatever stderr is at that moment: test runners swap it."""

    def msg(self, message: str) -> None:
        sys.stderr.write(message + "\n")

    debug = info = warning = warn = error = critical = exception = fatal = log = msg


def _make_stderr_logger(*_args: object) -> _StderrLogger:
    return _StderrLogger()


def _common() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact,
    ]


def _renderer(*, as_json: bool) -> Processor:
    if as_json:
        return structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())


def configure(*, as_json: bool = False, level: str = "info") -> None:
    """Set the output of the whole process: JSON lines in production, readable lines otherwise. May be called again.

    Libraries that use the standard `logging` are sent through the same processors; the chatty ones from warnings up.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*_common(), _renderer(as_json=as_json)],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_make_stderr_logger,
        cache_logger_on_first_use=False,
    )
    handler = _CurrentStderr()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_common()[:-1],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                redact,
                _renderer(as_json=as_json),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(threshold)
    for name in _LOUD_LIBRARIES:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


class _CurrentStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


def get_logger(**bound: Any) -> structlog.typing.FilteringBoundLogger:
    """A logger for a module or an object; `bound` fields are in every event it makes."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(**bound))


if not structlog.is_configured():  # so that secrets are out of the logs of a bare script or test as well
    structlog.configure(
        processors=[*_common(), _renderer(as_json=False)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=_make_stderr_logger,
        cache_logger_on_first_use=False,
    )
