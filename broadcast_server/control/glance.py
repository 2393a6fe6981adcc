"""The server at a glance, for anybody with an account: the machine's own parts, and counts over one's own places."""

from __future__ import annotations

from dataclasses import dataclass

from broadcast_server.control import access, timekeeping
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.timekeeping import ProcessClock
from broadcast_server.store import system
from broadcast_server.store.session import Session
from broadcast_server.store.system import Overview


@dataclass(frozen=True, slots=True)
class Glance:
    """Leader, broker, jobs and clocks are the machine's; feeds and counts are of what the asker may read."""

    overview: Overview
    clocks: tuple[ProcessClock, ...]


async def glance(desk: Desk, actor: Actor) -> Glance:
    """What stands in the rows now."""
    now = desk.clock.now()

    def work(session: Session) -> Glance:
        roots = access.scope(session, actor, Action.READ, at=now)
        return Glance(system.overview(session, roots, now), tuple(timekeeping.process_clocks(session)))

    return await desk.store.read(work)
