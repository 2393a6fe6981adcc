"""Speaking live: a session with its place on the air, its limits, its end and its recording.

A session is a schedule of source LIVE whose stream is the session itself, so planner, timeline, judge and play log
treat it like any sound. The bytes of the voice do not pass through the store: `LiveIngest` (`relay.voice`, joined by
the composition root) has them. A maintainer must not break: (1) what an open session says to the plan and what the
ingest does agree within a second, because `LiveKeeper` ends the row when the voice is lost and the voice when the row
is over; (2) only the person that opened it speaks, from one socket at a time; (3) a process that starts anew gives
every open session `silent_s` to come back and ends it otherwise; (4) what was said is recorded, and the recording
becomes an asset whoever was alive in between.

Source: Thông tư 39/2020 (nobody speaks over *khẩn cấp*); `docs/live-voice.md` for the socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from broadcast_server.audio.prepare import prepare_recording
from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.clashes import Neighbourhood, Preview, clash_facts
from broadcast_server.control.desk import Desk
from broadcast_server.control.playing import next_second
from broadcast_server.control.scheduling import NewSchedule, enter_schedule, except_occurrence
from broadcast_server.domain import delegation
from broadcast_server.domain.clock import LOCAL, Window
from broadcast_server.domain.errors import Conflict, Invalid, Refused, Unavailable
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.domain.recurrence import Once, Rule
from broadcast_server.domain.voice import VoiceCounts, VoiceFormat, VoiceState
from broadcast_server.logs import get_logger
from broadcast_server.store import audit, library, live, places, schedules
from broadcast_server.store.live import Overriding
from broadcast_server.store.session import Session
from broadcast_server.store.tables import LiveSessionRow
from broadcast_server.store.words import (
    ContentKind,
    ExceptionKind,
    LiveEnd,
    LiveState,
    RecordingState,
    ScheduleKind,
)
from speaker_protocol.rules import Level

log = get_logger()

LIVE_LEAD: Final = timedelta(seconds=1)
"""From the order to the first instant of the air: the plan must be at the nodes."""
LOOK_S: Final = 0.25
IDLE_LOOK_S: Final = 2.0
"""With no voice here the store is asked this often whether there should be one."""
RECORD_LOOK_S: Final = 2.0
RECORDING_KEPT: Final = timedelta(days=365)
KEEPER: Final = Actor("live_keeper", "live_keeper", everywhere=True)
"""Who ends what nobody ended."""


class Attached(Protocol):
    """One socket's hold on a voice."""

    @property
    def next_sequence(self) -> int | None:
        """The number expected; None: whichever comes first."""
        ...

    @property
    def reason(self) -> str | None:
        """Why it ended."""
        ...

    def take(self, sequence: int, payload: bytes) -> None:
        """A packet as it came. Raises `Conflict`, `Refused`."""
        ...

    def renew(self) -> None:
        """Still there. Raises `Conflict`."""
        ...

    def release(self) -> None:
        """The socket is gone."""
        ...

    async def over(self) -> None:
        """Return when it has ended: replaced, or the voice is over."""
        ...


class LiveIngest(Protocol):
    """Where the bytes of a voice go; `relay.voice.VoiceRoom` is one."""

    @property
    def is_leading(self) -> bool:
        """Whether a voice may begin in this process."""
        ...

    def sessions(self) -> frozenset[str]:
        """The sessions whose voice is here."""
        ...

    def open(self, session_id: str, *, is_resumed: bool = False) -> None:
        """Make room for a voice. Raises `Unavailable`."""
        ...

    def attach(self, session_id: str, fmt: VoiceFormat) -> Attached:
        """A socket takes hold. Raises `Unavailable`, `Conflict`."""
        ...

    def renew(self, session_id: str) -> None:
        """Keep a voice without a word. Raises `NotFound`, `Conflict`."""
        ...

    def state(self, session_id: str) -> VoiceState | None:
        """How a voice is; None: not here."""
        ...

    def is_lost(self, session_id: str) -> bool:
        """Whether it was silent for too long."""
        ...

    async def finish(self, session_id: str) -> None:
        """Silence, and the recording whole. Idempotent."""
        ...

    def recording(self, session_id: str) -> Path:
        """Where the session's PCM is."""
        ...


@dataclass(frozen=True, slots=True)
class OpenLive:
    """A wish to speak. No `targets`: the whole unit. `minutes`: None, as long as the policy allows."""

    unit_id: str
    title: str | None = None
    targets: tuple[Target, ...] = ()
    minutes: int | None = None
    accept_conflicts: bool = False


@dataclass(frozen=True, slots=True)
class LiveView:
    """A session as it stands."""

    id: str
    unit_id: str
    schedule_id: str
    entry_id: str
    speaker: str
    title: str
    targets: tuple[Target, ...]
    level: int
    state: LiveState
    opened_at: datetime
    starts_at: datetime
    ends_at: datetime
    closed_at: datetime | None
    end_reason: LiveEnd | None
    nodes_planned: int
    heard_ms: int
    counts: Mapping[str, int]
    recording_state: RecordingState
    recording_sha256: str | None


@dataclass(frozen=True, slots=True)
class Opened:
    """A session that was opened, and what it does to the air. `silenced`: what keeps some places from hearing it."""

    live: LiveView
    preview: Preview
    silenced: tuple[Overriding, ...]


@dataclass(frozen=True, slots=True)
class Sight:
    """What a speaker is told while speaking."""

    state: LiveState
    end_reason: LiveEnd | None
    ends_at: datetime
    sounding: int
    planned: int
    cut: Overriding | None


# -- verbs ------------------------------------------------------------------------------------------------------------


async def open_live(desk: Desk, ingest: LiveIngest, actor: Actor, request: OpenLive) -> Opened:
    """Take the air for a voice; the microphone then connects.

    Raises `Refused`: `not_permitted`, `quiet_hours` and what else the policy forbids, `live_too_long`,
    `live_under_emergency` and `live_under_stop_all` (with winner and until when); `Conflict`: `schedule_conflict` with
    all that is cut or waited for unless accepted, `live_air_taken` where nothing would be heard; `Unavailable`.
    """
    if not ingest.is_leading:
        raise Unavailable("live_not_leading")
    now = desk.clock.now()
    session_id, schedule_id = desk.chance.new_id(), desk.chance.new_id()
    ingest.open(session_id)
    opened: Opened | None = None
    try:
        opened = await desk.store.begin(lambda session: _enter(session, actor, request, session_id, schedule_id, now))
    finally:
        if opened is None:
            await ingest.finish(session_id)
    return opened


class _DryRun(Exception):  # noqa: N818 - not an error: it carries the answer past a transaction that must not commit
    def __init__(self, opened: Opened) -> None:
        super().__init__()
        self.opened = opened


async def preview_live(desk: Desk, actor: Actor, request: OpenLive) -> Opened:
    """What `open_live` would do, conflicts included; nothing is saved. Raises as it does, but for conflicts."""
    now = desk.clock.now()
    session_id, schedule_id = desk.chance.new_id(), desk.chance.new_id()
    accepting = OpenLive(request.unit_id, request.title, request.targets, request.minutes, accept_conflicts=True)

    def work(session: Session) -> None:
        raise _DryRun(_enter(session, actor, accepting, session_id, schedule_id, now))

    try:
        await desk.store.begin(work, ring=False)
    except _DryRun as dry:
        return dry.opened
    raise AssertionError("a dry run ends with its answer")


async def join_live(desk: Desk, ingest: LiveIngest, actor: Actor, session_id: str, fmt: VoiceFormat) -> Attached:
    """The speaker's microphone takes hold of an open session, again or for the first time.

    Raises `NotFound`, `Refused("not_permitted")`, `Refused("live_of_another")`, `Conflict("live_over")`,
    `Conflict("live_lost")`, `Unavailable("live_not_here")`.
    """
    now = desk.clock.now()

    await desk.store.read(lambda session: _expect_speaker(session, actor, session_id, now))
    return ingest.attach(session_id, fmt)


async def renew_live(desk: Desk, ingest: LiveIngest, actor: Actor, session_id: str) -> None:
    """The speaker is still there although nothing is said. It leaves no trace: opening and closing are the record.

    Raises as `join_live`.
    """
    now = desk.clock.now()

    await desk.store.read(lambda session: _expect_speaker(session, actor, session_id, now))
    ingest.renew(session_id)


def _expect_speaker(session: Session, actor: Actor, session_id: str, now: datetime) -> None:
    row = live.get(session, session_id)
    access.authorize(session, actor, Action.LIVE, row, at=now)
    if row.user_id != actor.user_id:
        raise Refused("live_of_another", speaker=row.speaker)
    if row.state is not LiveState.OPEN:
        raise Conflict("live_over")


async def close_live(desk: Desk, ingest: LiveIngest, actor: Actor, session_id: str) -> LiveView:
    """End a session: the speaker's own, or any for whoever may stop what sounds. Over already: as it stands."""
    now = desk.clock.now()
    state = ingest.state(session_id)

    def work(session: Session) -> LiveView:
        row = live.get(session, session_id)
        action = Action.LIVE if row.user_id == actor.user_id else Action.STOP
        access.authorize(session, actor, action, row, at=now)
        if row.state is LiveState.OPEN:
            _end(session, actor, row, LiveEnd.CLOSED, state, now)
        return _view(session, row)

    closed = await desk.store.begin(work)
    await ingest.finish(session_id)
    return closed


@dataclass(frozen=True, slots=True)
class LiveQuery:
    """Which sessions: under `unit_id`, in a state; `after`: id of the last one seen."""

    unit_id: str | None = None
    state: LiveState | None = None
    after: str | None = None
    limit: int = 100


async def list_live(desk: Desk, actor: Actor, query: LiveQuery) -> list[LiveView]:
    """Sessions the actor may see, newest first."""
    now = desk.clock.now()

    def work(session: Session) -> list[LiveView]:
        roots = access.roots(session, actor, Action.READ, query.unit_id, at=now)
        on = places.local_date(now)
        rows = live.list_sessions(session, roots, on, state=query.state, after=query.after, limit=query.limit)
        return [_view(session, row) for row in rows]

    return await desk.store.read(work)


async def get_live(desk: Desk, actor: Actor, session_id: str) -> LiveView:
    """One session. Raises `NotFound`."""
    now = desk.clock.now()

    def work(session: Session) -> LiveView:
        row = live.get(session, session_id)
        access.authorize(session, actor, Action.READ, row, at=now)
        return _view(session, row)

    return await desk.store.read(work)


async def look_at_live(desk: Desk, actor: Actor, session_id: str) -> Sight:
    """What the speaker is told: who sounds it, and what cuts it. Raises `NotFound`."""
    now = desk.clock.now()

    def work(session: Session) -> Sight:
        row = live.get(session, session_id)
        access.authorize(session, actor, Action.LIVE, row, at=now)
        cut = _cut_of(session, row, now) if row.state is LiveState.OPEN else None
        return Sight(
            state=row.state,
            end_reason=row.end_reason,
            ends_at=row.ends_at,
            sounding=live.sounding(session, session_id),
            planned=row.nodes_planned,
            cut=cut,
        )

    return await desk.store.read(work)


def _cut_of(session: Session, row: LiveSessionRow, now: datetime) -> Overriding | None:
    """What the nodes sound instead; asked every second, so places are read only when there may be something."""
    above = live.higher(session, row, now)
    if not above and not live.is_anything_overriding(session, now):
        return None
    around = Neighbourhood.read(session, places.local_date(now))
    targets = schedules.targets_of(session, [row.schedule_id, *(other.schedule_id for other, _ in above)])
    reached = around.reach(targets.get(row.schedule_id, ()))
    overriding, _ = _overriding(session, around, reached, row.unit_id, now)
    leaders = [
        Overriding("live_leader", other.id, other.unit_id, other.title, other.starts_at, other.ends_at)
        for other, _ in above
        if reached & around.reach(targets.get(other.schedule_id, ()))
    ]
    return next(iter([*overriding, *leaders]), None)


# -- opening ----------------------------------------------------------------------------------------------------------


def _enter(
    session: Session, actor: Actor, request: OpenLive, session_id: str, schedule_id: str, now: datetime
) -> Opened:
    access.authorize(session, actor, Action.LIVE, request.unit_id, at=now)
    around = Neighbourhood.read(session, places.local_date(now))
    reached = around.reach(request.targets or (Target(TargetKind.UNIT, request.unit_id),))
    silenced, is_everywhere = _overriding(session, around, reached, request.unit_id, now)
    if is_everywhere:
        first = silenced[0]
        raise Refused(
            f"live_under_{first.code}",
            fix="wait_until_over",
            title=first.title,
            winner_id=first.winner_id,
            unit_id=first.unit_id,
            until=None if first.until is None else first.until.isoformat(),
        )
    starts = next_second(now + LIVE_LEAD)
    title = (request.title or "").strip()[:200] or f"Phát trực tiếp: {actor.login}"
    may_lead = access.may(session, actor, Action.LIVE_LEAD, request.unit_id, at=now)
    placed = enter_schedule(
        session,
        actor,
        NewSchedule(
            unit_id=request.unit_id,
            content_kind=ContentKind.LIVE,
            content_id=session_id,
            rule=Rule(Once(starts.astimezone(LOCAL).replace(tzinfo=None))),
            targets=request.targets,
            name=title,
            length=_length(session, actor, around, reached, request, starts),
            accept_conflicts=request.accept_conflicts,
        ),
        schedule_id,
        now,
        kind=ScheduleKind.LIVE,
        level=Level.LIVE_LEADER if may_lead else Level.LIVE,
        verb="live.open",
    )
    stretches, clashes = placed.preview.stretches, placed.preview.clashes
    if clashes and not stretches:
        raise Conflict(
            "live_air_taken",
            field="targets",
            fix="wait_or_stop_other",
            title="" if clashes[0].winner is None else clashes[0].winner.title,
            free_at=next((out.facts["to"] for out in clashes[0].ways_out if "to" in out.facts), None),
            conflicts=[clash_facts(one) for one in clashes],
        )
    length = timedelta(milliseconds=placed.schedule.length_ms or 0)
    row = LiveSessionRow(
        id=session_id,
        unit_id=request.unit_id,
        schedule_id=schedule_id,
        entry_id=schedules.entry_id(schedule_id, starts),
        user_id=actor.user_id,
        speaker=actor.login,
        title=title,
        state=LiveState.OPEN,
        opened_at=now,
        starts_at=min((stretch.start for stretch in stretches), default=starts),
        ends_at=starts + length,
        nodes_planned=live.nodes_of(session, reached),
        heard_ms=0,
        counts={},
        recording_state=RecordingState.PENDING,
    )
    live.add(session, row)
    return Opened(_view(session, row), placed.preview, silenced)


def _length(
    session: Session,
    actor: Actor,
    around: Neighbourhood,
    reached: frozenset[str],
    request: OpenLive,
    starts: datetime,
) -> timedelta:
    """As long as asked and allowed; shorter where quiet hours begin before.

    Raises `Refused` (`live_too_long`; `delegated_too_long`, `delegated_hours` for who speaks by delegation), `Invalid`
    on a length that is none.
    """
    units = {around.clusters[cluster] for cluster in reached} | {request.unit_id}
    policies = [around.policy_of(unit) for unit in sorted(units)]
    most = min(policy.max_live_minutes for policy in policies)
    if access.is_delegated(session, actor, Action.LIVE, request.unit_id, at=starts):
        lent = min(policy.max_delegated_minutes for policy in policies)
        asked_for = timedelta(minutes=lent if request.minutes is None else request.minutes)
        delegation.check_length(asked_for, lent, field="minutes")
        delegation.check_hours(starts, starts + asked_for)
        most = min(most, lent)
    if request.minutes is not None and request.minutes < 1:
        raise Invalid("out_of_range", field="minutes", ge="1", le=str(most))
    if request.minutes is not None and request.minutes > most:
        raise Refused("live_too_long", field="minutes", fix="give_fewer_minutes", most=most)
    sessions = [policy.max_minutes_per_session for policy in policies if policy.max_minutes_per_session is not None]
    asked = timedelta(minutes=request.minutes or min([most, *sessions]))
    hours = {policy.quiet for policy in policies} | {one for cluster in reached for one in around.quiet_of(cluster)}
    wanted = Window(starts, starts + asked)
    begins = [window.start for each in hours for window in each.windows(wanted) if window.start > starts]
    return min([asked, *(begin - starts for begin in begins)])


def _overriding(
    session: Session, around: Neighbourhood, reached: frozenset[str], unit_id: str, now: datetime
) -> tuple[tuple[Overriding, ...], bool]:
    """Emergencies and latches over any of these places, and whether every one of them is under one."""
    units = {around.clusters[cluster] for cluster in reached} or {unit_id}
    paths = {unit: frozenset(around.tree.ancestors(unit, around.on)) for unit in units}
    found = live.overriding(session, frozenset().union(*paths.values()), now)
    places_of = {one.unit_id for one in found}
    return tuple(found), bool(found) and all(path & places_of for path in paths.values())


def _view(session: Session, row: LiveSessionRow) -> LiveView:
    schedule = schedules.schedule(session, row.schedule_id)
    return LiveView(
        id=row.id,
        unit_id=row.unit_id,
        schedule_id=row.schedule_id,
        entry_id=row.entry_id,
        speaker=row.speaker,
        title=row.title,
        targets=schedules.targets_of(session, (row.schedule_id,)).get(row.schedule_id, ()),
        level=schedule.level,
        state=row.state,
        opened_at=row.opened_at,
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        closed_at=row.closed_at,
        end_reason=row.end_reason,
        nodes_planned=row.nodes_planned,
        heard_ms=row.heard_ms,
        counts=row.counts,
        recording_state=row.recording_state,
        recording_sha256=row.recording_sha256,
    )


# -- ending -----------------------------------------------------------------------------------------------------------


def _end(
    session: Session, actor: Actor, row: LiveSessionRow, reason: LiveEnd, state: VoiceState | None, now: datetime
) -> None:
    """The row is closed and its entry leaves the plan at this instant."""
    row.state, row.closed_at, row.end_reason = LiveState.CLOSED, now, reason
    if state is not None:
        row.heard_ms, row.counts = state.heard_ms, counts_of(state.counts)
    _, occurs_at = schedules.parse_entry_id(row.entry_id)
    if now < row.ends_at and not live.was_taken_off(session, row.schedule_id):
        schedule = schedules.schedule(session, row.schedule_id)
        has_begun = occurs_at < now
        kind = ExceptionKind.CUT if has_begun else ExceptionKind.CANCELLED
        except_occurrence(session, actor, schedule, now, occurs_at, kind, cut_at=now if has_begun else None)
    audit.append(
        session,
        now=now,
        actor=actor.login,
        verb="live.end",
        unit_id=row.unit_id,
        subject=f"live/{row.id}",
        detail={
            "reason": reason.value,
            "heard_ms": row.heard_ms,
            "is_recorded": state is None or state.is_recorded,
            "counts": row.counts,
            "entry": row.entry_id,
        },
    )


def counts_of(counts: VoiceCounts) -> dict[str, int]:
    """As stored and sent."""
    told: dict[str, int] = asdict(counts)
    return told


class LiveKeeper:
    """Brings sessions and voices together, and recordings into the register. One per process that has an ingest."""

    def __init__(self, desk: Desk, ingest: LiveIngest) -> None:
        self._desk, self._ingest = desk, ingest
        self._looked_s = float("-inf")

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
            except Unavailable as away:
                log.warning("live.waits", code=away.code)
            await self._desk.clock.sleep(LOOK_S)

    async def look(self) -> None:
        """End what is lost, over or taken off; give what another process left its time to come back."""
        now_s = self._desk.clock.monotonic()
        here = self._ingest.sessions()
        if not self._ingest.is_leading or (not here and now_s - self._looked_s < IDLE_LOOK_S):
            return
        self._looked_s = now_s
        now = self._desk.clock.now()
        rows = await self._desk.store.read(
            lambda session: [
                (row.id, row.ends_at, live.was_taken_off(session, row.schedule_id))
                for row in live.open_sessions(session)
            ]
        )
        for session_id, ends_at, is_off in rows:
            if session_id not in here:
                self._ingest.open(session_id, is_resumed=True)
            reason = (
                LiveEnd.STOPPED
                if is_off
                else LiveEnd.LIMIT
                if now >= ends_at
                else LiveEnd.LOST
                if self._ingest.is_lost(session_id)
                else None
            )
            if reason is not None:
                await self._finish(session_id, reason)
        for session_id in here - {row[0] for row in rows}:
            await self._let_go(session_id)

    async def _finish(self, session_id: str, reason: LiveEnd) -> None:
        now, state = self._desk.clock.now(), self._ingest.state(session_id)

        def work(session: Session) -> None:
            row = live.get(session, session_id)
            if row.state is LiveState.OPEN:
                _end(session, KEEPER, row, reason, state, now)

        await self._desk.store.begin(work)
        await self._ingest.finish(session_id)
        log.info("live.ended", session_id=session_id, reason=reason.value)

    async def _let_go(self, session_id: str) -> None:
        """A voice whose row is over (or is only being written: then the next look finds it open)."""

        def is_over(session: Session) -> bool:
            return any(row.id == session_id for row in live.unrecorded(session))

        if await self._desk.store.read(is_over):
            await self._ingest.finish(session_id)

    async def run_recordings(self) -> None:
        """Make assets of what was said, for ever."""
        while True:
            try:
                await self.keep_recordings()
            except Unavailable as away:
                log.warning("live.recordings_wait", code=away.code)
            await self._desk.clock.sleep(RECORD_LOOK_S)

    async def keep_recordings(self) -> None:
        """Every finished recording becomes an asset of its unit, or is told to be empty."""
        if not self._ingest.is_leading:
            return
        rows = await self._desk.store.read(
            lambda session: [(row.id, row.unit_id, row.title) for row in live.unrecorded(session)]
        )
        for session_id, unit_id, title in rows:
            if session_id not in self._ingest.sessions():  # whole only when the voice is finished
                await self._keep(session_id, unit_id, title)

    async def _keep(self, session_id: str, unit_id: str, title: str) -> None:
        desk, path, now = self._desk, self._ingest.recording(session_id), self._desk.clock.now()
        try:
            made = await prepare_recording(path, assets=desk.audio.assets, executor=desk.executor)
        except FileNotFoundError:
            await self._note(session_id, "no_sound")
            return
        except Invalid as empty:
            await self._note(session_id, empty.code)
            await desk.executor.run(lambda: path.unlink(missing_ok=True))
            return

        def work(session: Session) -> None:
            row = live.get(session, session_id)
            library.add_asset(
                session,
                sha256=made.asset.hash,
                unit_id=unit_id,
                label=title,
                size_bytes=made.asset.size_bytes,
                duration_ms=made.asset.duration_ms,
                report=asdict(made.report),
                created_at=now,
                keep_until=now + RECORDING_KEPT,
            )
            row.recording_state, row.recording_sha256 = RecordingState.KEPT, made.asset.hash
            _audit_recording(session, row, now, asset=made.asset.hash, duration_ms=made.asset.duration_ms)

        await desk.store.begin(work, ring=False)
        await desk.executor.run(lambda: path.unlink(missing_ok=True))

    async def _note(self, session_id: str, reason: str) -> None:
        now = self._desk.clock.now()

        def work(session: Session) -> None:
            row = live.get(session, session_id)
            row.recording_state = RecordingState.EMPTY
            _audit_recording(session, row, now, reason=reason)

        await self._desk.store.begin(work, ring=False)


def _audit_recording(session: Session, row: LiveSessionRow, now: datetime, **detail: Any) -> None:
    audit.append(
        session,
        now=now,
        actor=KEEPER.login,
        verb="live.record",
        unit_id=row.unit_id,
        subject=f"live/{row.id}",
        detail={"state": row.recording_state.value, **detail},
    )
