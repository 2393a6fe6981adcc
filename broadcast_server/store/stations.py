"""What the rows say of a station's rules, read once for whoever plans and for whoever checks before signing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from sqlalchemy.orm import Session

from broadcast_server.domain import policy as policies
from broadcast_server.domain.errors import BroadcastError
from broadcast_server.domain.places import PlaceTree
from broadcast_server.domain.policy import DEFAULT_POLICY, QuietHours, StationPolicy
from broadcast_server.logs import get_logger
from broadcast_server.store import plans
from broadcast_server.store.plans import Seat

log = get_logger()


def policies_in_force(session: Session, units: Iterable[str], tree: PlaceTree, on: date) -> dict[str, StationPolicy]:
    """The policy of each unit: its own, else that of the nearest place above it, at last the law's own."""
    stated = {
        unit: policy for unit, body in plans.policies(session).items() if (policy := _policy_of(unit, body)) is not None
    }
    return {
        unit: next((stated[place] for place in tree.ancestors(unit, on) if place in stated), DEFAULT_POLICY)
        for unit in units
    }


def quiet_of(seat: Seat) -> tuple[QuietHours, ...]:
    """The cluster's own quiet hours, from its settings."""
    told = seat.config.get("quiet")
    policy = _policy_of(seat.cluster_id, {"cluster_quiet": {seat.cluster_id: told}}) if told else None
    return () if policy is None else policy.quiet_of(seat.cluster_id)[1:]


def _policy_of(owner: str, document: Mapping[str, Any]) -> StationPolicy | None:
    """None where the row makes no sense: what lies above holds then, at last the law's own quiet hours."""
    try:
        return policies.policy_from_dict(document)
    except BroadcastError as error:
        log.error("policy.unreadable", owner=owner, code=error.code, facts=error.facts)  # noqa: TRY400
        return None
