"""Sounding at once, and ending what sounds.

A maintainer must not break: a play-now is a schedule like any other, judged like any other (`control.scheduling`); what
was heard stays in the log, only what was still to come is taken away.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.clashes import Neighbourhood, Preview, clash_facts
from broadcast_server.control.desk import Desk
from broadcast_server.control.outlook import LEAD_IN, lines
from broadcast_server.control.scheduling import (
    NewSchedule,
    ScheduleView,
    audit_schedule,
    enter_schedule,
    except_occurrence,
)
from broadcast_server.domain.clock import LOCAL, Window
from broadcast_server.domain.errors import Conflict
from broadcast_server.domain.places import Target
from broadcast_server.domain.recurrence import Once, Rule
from broadcast_server.store import places, schedules
from broadcast_server.store.schedules import LONGEST_WINDOW, ScheduledEntry
from broadcast_server.store.session import Session
from broadcast_server.store.words import ContentKind, ExceptionKind, ScheduleKind

PLAY_NOW_LEAD: Final = timedelta(seconds=5)
"""From the order to the sound: plan to every node, audio fetched, all starting on one instant."""

PLAY_NOW_QUEUE: Final = timedelta(hours=1)
_MS: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class PlayNow:
    """Sound as soon as possible. `queue`: wait for the air up to an hour rather than be refused."""

    unit_id: str
    content_kind: ContentKind
    content_id: str
    targets: tuple[Target, ...] = ()
    language: str = "vie"
    length: timedelta | None = None
    gain_db: float = 0.0
    queue: bool = False
    accept_conflicts: bool = False


@dataclass(frozen=True, slots=True)
class Playing:
    """When a play-now really sounds: the first and the last cluster's start; both None: nowhere."""

    schedule: ScheduleView
    entry_id: str
    starts_at: datetime | None
    latest_start_at: datetime | None
    preview: Preview


@dataclass(frozen=True, slots=True)
class Stopped:
    """One occurrence that was stopped. `heard_ms`: how much of it had sounded, 0: it had not begun."""

    entry_id: str
    cut_at: datetime
    heard_ms: int


async def play_now(desk: Desk, actor: Actor, request: PlayNow) -> Playing:
    """Sound as soon as the nodes can all begin together, and tell when that really is.

    Raises as `scheduling.create_schedule` does, and `Conflict("air_taken")` when the air is busy and `queue` was not
    asked for.
    """
    now = desk.clock.now()
    schedule_id = desk.chance.new_id()
    return await desk.store.begin(lambda session: enter_play_now(session, actor, request, schedule_id, now))


def enter_play_now(session: Session, actor: Actor, request: PlayNow, schedule_id: str, now: datetime) -> Playing:
    """`play_now` inside a transaction of the caller's."""
    starts = next_second(now + PLAY_NOW_LEAD)
    wanted = NewSchedule(
        unit_id=request.unit_id,
        content_kind=request.content_kind,
        content_id=request.content_id,
        rule=Rule(Once(starts.astimezone(LOCAL).replace(tzinfo=None))),
        targets=request.targets,
        language=request.language,
        length=request.length,
        max_wait=PLAY_NOW_QUEUE if request.queue else timedelta(0),
        gain_db=request.gain_db,
        accept_conflicts=request.accept_conflicts,
    )
    placed = enter_schedule(
        session, actor, wanted, schedule_id, now, kind=ScheduleKind.PLAY_NOW, verb="schedule.play_now"
    )
    stretches = placed.preview.stretches
    if not stretches and placed.preview.clashes:
        raise _air_taken(placed.preview)
    begins = [stretch.start for stretch in stretches if stretch.offset_ms == 0] or [one.start for one in stretches]
    return Playing(
        schedule=placed.schedule,
        entry_id=schedules.entry_id(schedule_id, starts),
        starts_at=min(begins, default=None),
        latest_start_at=max(begins, default=None),
        preview=placed.preview,
    )


async def stop(desk: Desk, actor: Actor, entry_id: str) -> Stopped:
    """End one occurrence that sounds or waits; it is out of the next plan. Raises `Conflict("not_sounding")`."""
    now = desk.clock.now()
    schedule_id, _ = schedules.parse_entry_id(entry_id)

    def work(session: Session) -> Stopped:
        row = schedules.schedule(session, schedule_id)
        access.authorize(session, actor, Action.STOP, row, at=now)
        return enter_stop(session, actor, entry_id, now)

    return await desk.store.begin(work)


def enter_stop(session: Session, actor: Actor, entry_id: str, now: datetime) -> Stopped:
    """`stop` inside a transaction of a caller that knows that the actor may."""
    schedule_id, occurs_at = schedules.parse_entry_id(entry_id)
    row = schedules.schedule(session, schedule_id)
    around = Neighbourhood.read(session, places.local_date(now))
    window = Window(now - LONGEST_WINDOW, now + LONGEST_WINDOW)
    own = schedules.load_entries(session, window, now, schedule_ids=(schedule_id,))
    entry = next((one for one in own if one.id == entry_id), None)
    if entry is None or not entry.entry.start <= now < entry.entry.end:
        raise Conflict("not_sounding", field="entry_id", fix="cancel_instead", entry=entry_id)
    heard = heard_until(session, around, entry, now)
    if heard is None:
        except_occurrence(session, actor, row, now, occurs_at, ExceptionKind.CANCELLED)
    else:
        before = schedules.exceptions_of(session, (row.id,))[row.id]
        moved_to = next((one.moved_to for one in before if one.occurs_at == occurs_at), None)
        except_occurrence(
            session,
            actor,
            row,
            now,
            occurs_at,
            ExceptionKind.CUT,
            moved_to=moved_to,
            length_ms=heard // _MS,
            cut_at=now,
        )
    heard_ms = 0 if heard is None else heard // _MS
    audit_schedule(session, actor, row, now, "schedule.stop", entry=entry_id, heard_ms=heard_ms)
    return Stopped(entry_id=entry_id, cut_at=now, heard_ms=heard_ms)


def heard_until(session: Session, around: Neighbourhood, entry: ScheduledEntry, now: datetime) -> timedelta | None:
    """How much of the entry's own sound has been heard, where least was; None: it has not begun anywhere."""
    heard: list[timedelta] = []
    for _, line in lines(session, around, around.reach(entry.targets), Window(now - LEAD_IN, now + LEAD_IN), now):
        reached = [
            segment.offset + (min(segment.end, now) - segment.start)
            for segment in line.resolution.segments
            if segment.entry_id == entry.id and segment.start < now
        ]
        if reached:
            heard.append(max(reached))
    least = min(heard, default=None)
    return None if least is None or least < _MS else least


def _air_taken(preview: Preview) -> Conflict:
    clash = preview.clashes[0]
    free_at = next((out.facts["to"] for out in clash.ways_out if "to" in out.facts), None)
    return Conflict(
        "air_taken",
        field="queue",
        fix="queue_it",
        title="" if clash.winner is None else clash.winner.title,
        free_at=free_at,
        conflicts=[clash_facts(one) for one in preview.clashes],
    )


def next_second(at: datetime) -> datetime:
    """The instant itself if it is a whole second, else the next one."""
    whole = at.replace(microsecond=0)
    return whole if whole == at else whole + timedelta(seconds=1)
