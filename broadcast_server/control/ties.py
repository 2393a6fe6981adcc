"""Bulletins of *ưu tiên* due at once: found, laid before the commune, decided by it or, at the deadline, by default.

A maintainer must not break: (1) the same collision is one row, however often it is looked for; (2) an order only moves
what sounds at that unit alone, so no commune reorders another's day; (3) a default changes nothing on the air, it is
what precedence does anyway, and has its audit row all the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from broadcast_server.control import access
from broadcast_server.control.access import SERVER, Action, Actor
from broadcast_server.control.clashes import Neighbourhood, reason_between
from broadcast_server.control.desk import Desk
from broadcast_server.control.outlook import lines, local_text
from broadcast_server.domain import ties as rules_of_ties
from broadcast_server.domain.clock import Window
from broadcast_server.domain.errors import Conflict, Invalid
from broadcast_server.domain.recurrence import Once, rule_from_dict
from broadcast_server.store import audit, places, schedules, ties
from broadcast_server.store.places import STATION_KINDS
from broadcast_server.store.schedules import ScheduledEntry
from broadcast_server.store.session import Session
from broadcast_server.store.tables import TieRow
from broadcast_server.store.words import TieState

LOOK_AHEAD: Final = timedelta(days=8)
LOOK_ANYWAY: Final = timedelta(minutes=10)


# -- the machine ------------------------------------------------------------------------------------------------------


async def attend(desk: Desk) -> str:
    """Look for collisions, take the defaults that are due. Idempotent; says in a few words what it did."""
    now = desk.clock.now()
    new_id = desk.chance.new_id
    opened, defaulted = await desk.store.begin(lambda session: enter_watch(session, new_id, now), ring=False)
    return f"{opened} ties opened, {defaulted} by default"


class Watch:
    """`attend` for an alarm clock: it looks for collisions only when something that may make one has changed."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._mark: tuple[object, ...] = ()
        self._looked_at: datetime | None = None

    async def attend(self) -> str:
        """As `attend`; defaults are taken every time, collisions looked for after a change and every ten minutes."""
        now = self._desk.clock.now()
        mark = await self._desk.store.read(ties.mark)
        is_old = self._looked_at is None or now - self._looked_at >= LOOK_ANYWAY
        if mark != self._mark or is_old:
            told = await attend(self._desk)
            self._mark, self._looked_at = mark, now
            return told
        defaulted = 0
        if await self._desk.store.read(lambda session: bool(ties.overdue(session, now))):
            defaulted = await self._desk.store.begin(lambda session: _take_defaults(session, now), ring=False)
        return f"nothing changed, {defaulted} by default"


def enter_watch(
    session: Session, new_id: Callable[[], str], now: datetime, *, units: frozenset[str] | None = None
) -> tuple[int, int]:
    """`attend` inside a transaction of the caller's: how many were opened, and how many took their default.

    `units`: look at these stations only.
    """
    found = {
        (unit_id, ties.subject_of(one.id for one in group)): group for unit_id, group in _find(session, units, now)
    }
    known = {(row.unit_id, row.subject): row for row in ties.known(session, {subject for _, subject in found}, now)}
    opened = 0
    for key, group in found.items():
        row = known.get(key)
        if row is None:
            row = _opened(session, new_id(), key, group, now)
            opened += 1
        elif row.state is TieState.GONE:
            row.state, row.opened_at, row.decided_at, row.decided_by = TieState.PENDING, now, None, None
            opened += 1
        elif row.state is not TieState.PENDING:
            continue
        _describe(row, group, now)
    for key, row in known.items():
        if key not in found and row.state is TieState.PENDING and (units is None or row.unit_id in units):
            row.state, row.decided_at, row.decided_by = TieState.GONE, now, SERVER.login
    session.flush()
    return opened, _take_defaults(session, now)


def _take_defaults(session: Session, now: datetime) -> int:
    defaulted = ties.overdue(session, now)
    for row in defaulted:
        row.state, row.decided_at, row.decided_by = TieState.DEFAULTED, now, SERVER.login
        session.flush()
        _tell(session, SERVER, "tie.default", row, now, order=row.chosen)
    return len(defaulted)


def _opened(
    session: Session, tie_id: str, key: tuple[str, str], group: Sequence[ScheduledEntry], now: datetime
) -> TieRow:
    collides_at = max(one.entry.start for one in group)
    row = TieRow(
        id=tie_id,
        unit_id=key[0],
        subject=key[1],
        state=TieState.PENDING,
        collides_at=collides_at,
        deadline=rules_of_ties.deadline_of(collides_at, now),
        options=[],
        chosen=[],
        opened_at=now,
    )
    session.add(row)
    _describe(row, group, now)
    session.flush()
    _tell(session, SERVER, "tie.open", row, now, entries=row.chosen, deadline=local_text(row.deadline))
    return row


def _describe(row: TieRow, group: Sequence[ScheduledEntry], now: datetime) -> None:
    """Options in the order of the declared default, each with why it comes before the next."""
    collides_at = max(one.entry.start for one in group)
    if row.collides_at != collides_at:
        row.collides_at, row.deadline = collides_at, rules_of_ties.deadline_of(collides_at, now)
    options = []
    for number, one in enumerate(group):
        follower = group[number + 1] if number + 1 < len(group) else None
        options.append(
            {
                "entry_id": one.id,
                "schedule_id": one.schedule_id,
                "unit_id": one.unit_id,
                "title": one.title,
                "level": int(one.entry.level),
                "start": one.entry.start.isoformat(),
                "end": one.entry.end.isoformat(),
                "before_next_by": None if follower is None else reason_between(one, follower)[0],
            }
        )
    if row.options != options:
        row.options, row.chosen = options, [one.id for one in group]


def _find(
    session: Session, units: frozenset[str] | None, now: datetime
) -> Iterator[tuple[str, tuple[ScheduledEntry, ...]]]:
    """Collisions still to be decided: the station they are at, and the entries by rank."""
    schedule_ids = ties.priority_schedules(session, now)
    if len(schedule_ids) < 2:
        return
    window = Window(now, now + LOOK_AHEAD)
    entries = [
        entry
        for entry in schedules.load_entries(session, window, now, schedule_ids=schedule_ids)
        if entry.blocked is None and entry.entry.end > now
    ]
    runs = [run for run in _runs(entries) if len(run) > 1]
    if not runs:
        return
    around = Neighbourhood.read(session, places.local_date(now))
    for run in runs:
        yield from _in_run(session, around, run, units, now)


def _runs(entries: Sequence[ScheduledEntry]) -> Iterator[list[ScheduledEntry]]:
    """Entries whose windows hang together; they come by start."""
    run: list[ScheduledEntry] = []
    for entry in entries:
        if run and entry.entry.start >= max(one.entry.end for one in run):
            yield run
            run = []
        run.append(entry)
    if run:
        yield run


def _in_run(
    session: Session,
    around: Neighbourhood,
    run: Sequence[ScheduledEntry],
    units: frozenset[str] | None,
    now: datetime,
) -> Iterator[tuple[str, tuple[ScheduledEntry, ...]]]:
    heard: dict[str, list[str]] = defaultdict(list)
    for entry in run:
        for cluster_id in around.reach(entry.targets):
            heard[cluster_id].append(entry.id)
    alike: dict[tuple[str, tuple[str, ...]], str] = {}  # one cluster speaks for those of its station that hear the same
    for cluster_id in sorted(heard):
        station = station_of(around, cluster_id)
        if len(heard[cluster_id]) > 1 and (units is None or station in units):
            alike.setdefault((station, tuple(heard[cluster_id])), cluster_id)
    window = Window(min(one.entry.start for one in run), max(one.entry.end for one in run))
    told = set()
    for (station, _), cluster_id in alike.items():
        for _, line in lines(session, around, frozenset({cluster_id}), window, now):
            began: dict[str, datetime] = {}
            for segment in line.resolution.segments:
                began.setdefault(segment.entry_id, segment.start)
            mine = [one.entry for one in line.entries.values() if one.blocked is None]
            for group in rules_of_ties.collisions(mine, began):
                starts = [began.get(one.id, one.end) for one in group]
                key = (station, tuple(one.id for one in group))
                if min(starts) > now and not rules_of_ties.is_ordered(group) and key not in told:
                    told.add(key)
                    yield station, tuple(line.entries[one.id] for one in group)


def station_of(around: Neighbourhood, cluster_id: str) -> str:
    """The unit whose station the cluster belongs to: the commune it lies in, or its own unit where there is none."""
    unit_id = around.clusters[cluster_id]
    line = around.tree.ancestors(unit_id, around.on)
    return next((place for place in line if around.tree.unit(place).kind in STATION_KINDS), unit_id)


# -- the commune ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OrderTie:
    """The order in which they shall sound: every entry of the tie, once."""

    tie_id: str
    entry_ids: tuple[str, ...]


async def order_tie(desk: Desk, actor: Actor, request: OrderTie) -> TieRow:
    """Order bulletins that are due at once; until the deadline it can be changed.

    Raises `Invalid` naming `entry_ids`, `Conflict("tie_over")` after the deadline or when they do not collide any more.
    """
    now = desk.clock.now()

    def work(session: Session) -> TieRow:
        row = ties.tie(session, request.tie_id)
        access.authorize(session, actor, Action.SCHEDULE_PRIORITY, row, at=now)
        if row.state not in {TieState.PENDING, TieState.DECIDED} or row.deadline <= now:
            raise Conflict("tie_over", field="tie_id", fix="see_tie", state=row.state.value, by=row.decided_by or "")
        known = [option["entry_id"] for option in row.options]
        if sorted(request.entry_ids) != sorted(known):
            raise Invalid("order_incomplete", field="entry_ids", fix="name_every_entry", entries=known)
        _put_in_order(session, row, request.entry_ids, now)
        row.state, row.decided_at, row.decided_by = TieState.DECIDED, now, actor.login
        row.chosen = list(request.entry_ids)
        session.flush()
        _tell(session, actor, "tie.order", row, now, order=row.chosen)
        return row

    return await desk.store.begin(work)


def _put_in_order(session: Session, row: TieRow, wanted: Sequence[str], now: datetime) -> None:
    """Write the order into what may be moved: schedules of this station alone, single ones before repeating ones."""
    around = Neighbourhood.read(session, places.local_date(now))
    fixed: dict[str, int] = {}
    repeating: dict[str, int] = {}
    ranked = [option["entry_id"] for option in row.options]
    of_entry = {entry_id: schedules.parse_entry_id(entry_id)[0] for entry_id in wanted}
    targets = schedules.targets_of(session, set(of_entry.values()))
    for entry_id, schedule_id in of_entry.items():
        schedule = schedules.schedule(session, schedule_id)
        reached = around.reach(targets.get(schedule_id, ()))
        if any(station_of(around, cluster_id) != row.unit_id for cluster_id in reached):
            fixed[entry_id] = schedule.tie_order
        elif not isinstance(rule_from_dict(schedule.rule).pattern, Once):
            repeating[entry_id] = schedule.tie_order
    try:
        orders = rules_of_ties.orders_for(wanted, fixed | repeating, ranked)
    except Invalid:
        orders = rules_of_ties.orders_for(wanted, fixed, ranked)
    for entry_id, order in orders.items():
        schedule = schedules.schedule(session, of_entry[entry_id])
        if schedule.tie_order != order:
            schedule.tie_order = order
            schedule.version += 1
    session.flush()


async def get_tie(desk: Desk, actor: Actor, tie_id: str) -> TieRow:
    """One collision. Raises `NotFound`."""
    now = desk.clock.now()

    def work(session: Session) -> TieRow:
        row = ties.tie(session, tie_id)
        access.authorize(session, actor, Action.READ, row, at=now)
        return row

    return await desk.store.read(work)


async def list_ties(
    desk: Desk,
    actor: Actor,
    *,
    unit_id: str | None = None,
    state: TieState | None = None,
    after: str | None = None,
    limit: int = 100,
) -> list[TieRow]:
    """Collisions at units the actor may see, newest first."""
    now = desk.clock.now()

    def work(session: Session) -> list[TieRow]:
        roots = access.roots(session, actor, Action.READ, unit_id, at=now)
        return ties.list_ties(session, roots, places.local_date(now), state=state, after=after, limit=limit)

    return await desk.store.read(work)


def _tell(session: Session, actor: Actor, verb: str, row: TieRow, now: datetime, **detail: Any) -> None:
    audit.append(
        session, now=now, actor=actor.login, verb=verb, unit_id=row.unit_id, subject=f"tie/{row.id}", detail=detail
    )
