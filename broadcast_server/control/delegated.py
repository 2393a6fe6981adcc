"""The limits of a delegation at the verbs that write bulletins; `control.live` asks them for a voice."""

from __future__ import annotations

from datetime import datetime, timedelta

from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.places import policy_view
from broadcast_server.domain import delegation
from broadcast_server.domain.errors import Refused
from broadcast_server.domain.policy import policy_from_dict
from broadcast_server.store.session import Session
from speaker_protocol.rules import BulletinClass


def check_class(session: Session, actor: Actor, unit_id: str, klass: BulletinClass, now: datetime) -> None:
    """Raise `Refused("delegated_class")` where somebody who writes by delegation asks for more than *thông thường*."""
    if klass is not BulletinClass.NORMAL and _is_lent(session, actor, unit_id, now):
        raise Refused("delegated_class", field="klass", fix="ask_commune", klass=klass.value)


def check_duration(session: Session, actor: Actor, unit_id: str, duration_ms: int, now: datetime) -> None:
    """Raise `Refused("delegated_too_long")` where it is longer than the station lends."""
    if _is_lent(session, actor, unit_id, now):
        policy = policy_from_dict(policy_view(session, unit_id, now).body)
        length = timedelta(milliseconds=duration_ms)
        delegation.check_length(length, policy.max_delegated_minutes, field="audio")


def _is_lent(session: Session, actor: Actor, unit_id: str, now: datetime) -> bool:
    return access.is_delegated(session, actor, Action.BULLETIN_WRITE, unit_id, at=now)
