"""The operator's word on the machine's clock: the watch doubts by itself, a person may end the doubt."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from broadcast_server.control.access import Actor
from broadcast_server.control.desk import Desk
from broadcast_server.domain.clock import from_ms
from broadcast_server.domain.errors import Invalid, Refused
from broadcast_server.store import audit, clocks, facts
from broadcast_server.store.session import Session

SHORTEST_REASON: Final = 5
LONGEST_REASON: Final = 500
ALIVE: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class ProcessClock:
    """What one process says of its clock. `doubts`: by how many seconds each witness differs; empty: none does."""

    process: str
    host: str
    is_trusted: bool
    doubts: dict[str, float]
    since: datetime
    step_s: float
    kernel_synchronised: bool | None
    nodes_heard: int
    seen_at: datetime


async def trust_clock(desk: Desk, actor: Actor, reason: str) -> int:
    """Say that the machine's clock is right, whatever speaks against it now; the number of the audit row.

    For whoever stands at the machine: nobody else can look at its clock. Raises `Invalid("reason_missing")`.
    """
    if not actor.everywhere:
        raise Refused("not_permitted", action="clock_trust")
    reason = reason.strip()
    if not SHORTEST_REASON <= len(reason) <= LONGEST_REASON:
        raise Invalid("clock_reason_missing", field="reason", least=SHORTEST_REASON, most=LONGEST_REASON)
    now, word = desk.clock.now(), desk.chance.new_id()

    def work(session: Session) -> int:
        number = audit.append(
            session,
            now=now,
            actor=actor.login,
            verb="clock.trust",
            unit_id=None,
            subject="clock",
            detail={"reason": reason, "machine": now.isoformat()},
        )
        clocks.drop_floors(session)
        told: dict[str, Any] = {"word": word, "by": actor.login, "reason": reason, "audit": number}
        facts.put(session, facts.CLOCK_TRUST, told, now=now)
        return number

    return await desk.store.begin(work)


def process_clocks(session: Session) -> list[ProcessClock]:
    """What the processes that are alive say, the doubtful first.

    Whether one is alive is judged against the newest word of any, not against a clock that may be the wrong one.
    """
    told = clocks.beacons(session)
    newest = max((each["seen_at"] for each in told.values()), default=None)
    shown = [
        ProcessClock(
            process=process,
            host=each["host"],
            is_trusted=each["is_trusted"],
            doubts=each["doubts"],
            since=from_ms(each["since_ms"]),
            step_s=each["step_s"],
            kernel_synchronised=each["kernel_synchronised"],
            nodes_heard=each["nodes_heard"],
            seen_at=each["seen_at"],
        )
        for process, each in told.items()
        if newest is not None and newest - each["seen_at"] <= ALIVE
    ]
    return sorted(shown, key=lambda one: (one.is_trusted, one.process))


async def list_clocks(desk: Desk, actor: Actor) -> list[ProcessClock]:
    """`process_clocks`, for the operator."""
    if not actor.everywhere:
        raise Refused("not_permitted", action="clock_read")
    return await desk.store.read(process_clocks)
