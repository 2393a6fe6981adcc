"""Is everybody ready for five o'clock? Asked before it is too late to do something about it.

What is due comes from the same resolution as the plan; whether a node holds it is the node's own word in its latest
status. A maintainer must not break: a node that says nothing about an item is never called ready, and everyone who is
not ready is named with a code of the catalogue.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from broadcast_server.control import access, outlook
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.clashes import Neighbourhood
from broadcast_server.control.desk import Desk
from broadcast_server.control.outlook import Sounding
from broadcast_server.domain.clock import Window, to_ms
from broadcast_server.domain.errors import Invalid
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.store import fleet, places
from broadcast_server.store.session import Session
from broadcast_server.store.tables import NodeRow, NodeStatusRow
from broadcast_server.store.words import NodeState

AHEAD: Final = timedelta(hours=24)
"""How far the next item is looked for."""
FARTHEST: Final = timedelta(days=7)
TOGETHER: Final = timedelta(minutes=1)
"""What begins within so long of the instant belongs to it."""
MOST_TOLD: Final = 64
"""So many coming items a node names in its status."""


@dataclass(frozen=True, slots=True)
class NotReady:
    """A node that does not hold an item, as far as is known. `code`: of the catalogue."""

    node_id: str
    cluster_id: str
    code: str
    facts: Mapping[str, Any]


@dataclass(slots=True)
class ItemReadiness:
    """One recorded item and the nodes it is due on."""

    entry_id: str
    title: str
    start: datetime
    ready: int = 0
    not_ready: list[NotReady] = field(default_factory=list)

    @property
    def nodes(self) -> int:
        """On how many nodes it is due."""
        return self.ready + len(self.not_ready)


@dataclass(frozen=True, slots=True)
class Readiness:
    """How ready a place is for an instant: a node counts as ready when it holds all that is due on it then."""

    unit_id: str
    at: datetime | None
    """None: nothing recorded is due in the next 24 hours."""
    nodes: int
    ready: int
    items: tuple[ItemReadiness, ...]


async def readiness(desk: Desk, actor: Actor, unit_id: str, at: datetime | None = None) -> Readiness:
    """How ready the nodes under a unit are for what begins at `at` (None: for what is due next).

    Raises `NotFound("unknown_unit")`, `Refused`, `Invalid` (`naive_time`, `readiness_too_far`).
    """
    now = desk.clock.now()
    if at is not None and at.tzinfo is None:
        raise Invalid("naive_time", field="at", fix="add_offset")
    if at is not None and not now - TOGETHER <= at <= now + FARTHEST:
        raise Invalid("readiness_too_far", field="at", days=FARTHEST.days)

    def work(session: Session) -> Readiness:
        access.authorize(session, actor, Action.READ, unit_id, at=now)
        around = Neighbourhood.read(session, places.local_date(at or now))
        clusters = around.reach((Target(TargetKind.UNIT, unit_id),))
        window = Window(now, now + AHEAD) if at is None else Window(at, at + TOGETHER)
        due = list(_due(session, around, clusters, window, now))
        first = min((one.start for _, one in due), default=None)
        if first is None:
            return Readiness(unit_id, at, 0, 0, ())
        due = [(members, one) for members, one in due if one.start < first + TOGETHER]
        drivers = fleet.live_nodes_of_clusters(session, clusters)
        nodes = {cluster: row for cluster, row in drivers.items() if row.state is NodeState.ACTIVE}
        words = fleet.statuses_of(session, [row.id for row in nodes.values()])
        return _judge(unit_id, at or first, due, nodes, words)

    return await desk.store.read(work)


def _due(
    session: Session, around: Neighbourhood, clusters: frozenset[str], window: Window, now: datetime
) -> Iterator[tuple[frozenset[str], Sounding]]:
    """The recorded items that begin in the window, with the clusters that hear them."""
    for members, line in outlook.lines(session, around, clusters, window, now):
        for sounding in line.told(window)[0]:
            if sounding.asset_sha256 is not None and window.start <= sounding.start < window.end:
                yield members, sounding


def _judge(
    unit_id: str,
    at: datetime,
    due: Sequence[tuple[frozenset[str], Sounding]],
    nodes: Mapping[str, NodeRow],
    words: Mapping[str, NodeStatusRow],
) -> Readiness:
    items: dict[tuple[str, datetime], ItemReadiness] = {}
    asked: set[str] = set()
    lacking: set[str] = set()
    for members, sounding in due:
        item = items.setdefault(
            (sounding.entry_id, sounding.start), ItemReadiness(sounding.entry_id, sounding.title, sounding.start)
        )
        for cluster_id in sorted(members & nodes.keys()):
            node = nodes[cluster_id]
            asked.add(node.id)
            code, facts = _lack(words.get(node.id), sounding)
            if code is None:
                item.ready += 1
            else:
                lacking.add(node.id)
                item.not_ready.append(NotReady(node.id, cluster_id, code, facts))
    told = sorted(items.values(), key=lambda item: (item.start, item.entry_id))
    return Readiness(unit_id, at, len(asked), len(asked - lacking), tuple(told))


def _lack(word: NodeStatusRow | None, sounding: Sounding) -> tuple[str | None, dict[str, Any]]:
    """Why a node is not ready for an item; `(None, {})` if it is."""
    if word is None:
        return "node_never_heard", {}
    if word.link != "online":
        return "node_offline", {"since": outlook.local_text(word.since)}
    told: Collection[Mapping[str, Any]] = (word.due or {}).get("items", ())
    start_ms = to_ms(sounding.start)
    mine = [one for one in told if one["entry_id"] == sounding.entry_id and one["start_ms"] == start_ms]
    if mine:
        return (None, {}) if all(one["ready"] for one in mine) else ("node_lacks_sound", {})
    if len(told) >= MOST_TOLD and start_ms > max(one["start_ms"] for one in told):
        return "node_not_asked_yet", {"items": MOST_TOLD}
    return "node_has_other_plan", {}
