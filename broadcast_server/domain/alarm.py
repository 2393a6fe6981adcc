"""What the server knows of an alert's rounds: the body it tells its nodes, held against the rules they follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, Final

from broadcast_server.domain.clock import from_ms, to_ms
from speaker_protocol import rounds
from speaker_protocol.rounds import Alert

_NAMES: Final = tuple(field.name for field in fields(Alert))


def alert_of(body: Mapping[str, Any]) -> Alert:
    """`body`: what the nodes are told, in the wire's words."""
    return Alert(**{name: body[name] for name in _NAMES if name in body})


def round_length(body: Mapping[str, Any]) -> timedelta:
    """How long one round of it takes on every node."""
    return timedelta(milliseconds=rounds.score(alert_of(body)).length_ms)


def on_air(bodies: Iterable[Mapping[str, Any]], at: datetime) -> tuple[str, datetime] | None:
    """The alert whose round sounds at an instant, and the end of that round; None between rounds."""
    air = rounds.on_air([alert_of(body) for body in bodies], {}, to_ms(at))
    return None if air.alert is None or air.until_ms is None else (air.alert.alert_id, from_ms(air.until_ms))
