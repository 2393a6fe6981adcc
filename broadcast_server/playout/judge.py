"""Turns reports into the play log: one line for every planned segment on every node, with a verdict.

A line is opened when its segment begins, so what was planned survives whatever happens next: a cancelled schedule, a
stop, midnight, a restart of the server. A maintainer must not break: (1) a play is proven by the node's own report,
never by the schedule: without one it is MISSED only if the node was reachable the whole time, else UNKNOWN; (2) a
verdict may only get better founded: it is always made of all reports there are, a late one is judged again, nothing is
deleted; (3) lines are read and written in bulk, a segment of 10 000 nodes is a few statements; (4) what left the plan
while it sounded is judged up to the instant at which it left.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from broadcast_server.domain.clock import Chance, Clock, Window, from_ms
from broadcast_server.domain.delivery import ALERT
from broadcast_server.domain.errors import BroadcastError, Unavailable
from broadcast_server.domain.plan import PlanSegment
from broadcast_server.domain.proof import Report, ReportKind, judge
from broadcast_server.logs import get_logger
from broadcast_server.playout.inbox import Heard
from broadcast_server.playout.pace import PRODUCTION, Pace
from broadcast_server.playout.planner import Desired, TargetPlan
from broadcast_server.store import reports
from broadcast_server.store.plans import Seat
from broadcast_server.store.reports import Line
from broadcast_server.store.session import Session, Store

log = get_logger()

LOOK_BACK: Final = timedelta(hours=26)
LINES_AT_ONCE: Final = 2_000
EARLY: Final = timedelta(minutes=1)
"""So far before its broadcast's start a reported segment is believed to belong to it."""

_Key = tuple[str, datetime]
"""Entry and start of a segment."""


@dataclass(frozen=True, slots=True)
class _Planned:
    """What a line is held against."""

    entry_id: str
    start: datetime
    end: datetime


class Judge:
    """One per process with the `inbox` role; works from the last planning and from what the inbox committed."""

    def __init__(
        self, *, store: Store, clock: Clock, chance: Chance, grace: timedelta, pace: Pace = PRODUCTION
    ) -> None:
        """`grace`: how long after a segment's end a missing report is waited for."""
        self._store, self._clock, self._chance, self._grace = store, clock, chance, grace
        self._pace = pace
        self._since = clock.now()
        self._desired: Desired | None = None
        self._planned_at = self._since
        self._is_new = False
        self._told: set[tuple[str, str]] = set()
        self._open: dict[_Key, dict[str, Line]] = {}
        """Lines not judged yet, by segment and node."""
        self._begun: dict[_Key, datetime] = {}
        """Segments whose lines are there, and when they ended or will."""
        self._has_recalled = False

    def planned(self, desired: Desired) -> None:
        """The conductor planned."""
        self._desired, self._planned_at, self._is_new = desired, self._clock.now(), True

    def heard(self, heard: Heard) -> None:
        """The inbox committed reports."""
        self._told |= heard.told

    async def run(self) -> None:
        """Look every `Pace.judge_s`, for ever."""
        while True:
            await self._clock.sleep(self._pace.judge_s)
            await self.look()

    async def look(self) -> None:
        """Open lines of what began, follow what left the plan, judge what there is news of and what is over."""
        try:
            await self._recall()
            if self._desired is not None:
                if self._is_new:
                    self._is_new = False
                    await self._follow(self._desired)
                await self._open_lines(self._desired)
            await self._judge_told()
            await self._judge_over()
        except Unavailable as away:
            log.warning("judge.waits", code=away.code)

    # -- lines

    async def _recall(self) -> None:
        """After a start: what the process before left open, and the reports that nobody judged any more."""
        if self._has_recalled:
            return
        since = self._clock.now() - LOOK_BACK
        lines, begun, told = await self._store.read(
            lambda session: (
                reports.open_lines(session),
                reports.begun(session, since),
                reports.told_after_verdict(session, since),
            )
        )
        for line in lines:
            if not line.broadcast_id.startswith(ALERT):  # theirs is another account (`playout.deliveries`)
                self._open.setdefault((line.broadcast_id, line.starts_at), {})[line.node_id] = line
        self._begun |= begun
        self._told |= told
        self._has_recalled = True

    async def _follow(self, desired: Desired) -> None:
        """Ends that moved: a stop shortens, what is in the plan no more ended when it was taken out."""
        at = self._planned_at
        ends: dict[tuple[_Key, str], datetime] = {}
        for segment, seats in _cases(desired.targets, desired.window.start, at):
            key = (segment.entry_id, segment.start)
            if key in self._open:
                ends.update(((key, seat.node_id), segment.end) for seat in seats)
        moved: list[tuple[_Key, Line]] = []
        for key, lines in self._open.items():
            for line in lines.values():
                end = ends.get((key, line.node_id))
                if end is None:
                    end = max(min(line.ends_at, at), line.starts_at + timedelta(milliseconds=1))
                if end != line.ends_at:
                    moved.append((key, replace(line, ends_at=end)))
        for part in _parts(moved):
            await self._store.begin(
                lambda session, part=part: reports.move_ends(  # type: ignore[misc]
                    session, {line.id: line.ends_at for _, line in part}
                ),
                ring=False,
            )
            for key, line in part:
                self._open[key][line.node_id] = line
                self._begun[key] = max(line.ends_at for line in self._open[key].values())

    async def _open_lines(self, desired: Desired) -> None:
        now = self._clock.now()
        fresh: dict[_Key, dict[str, Line]] = {}
        for segment, seats in _cases(desired.targets, now - LOOK_BACK, now):
            key = (segment.entry_id, segment.start)
            lines = self._open.get(key, {})
            if segment.end <= now and key in self._begun:
                continue
            for seat in seats:
                if seat.node_id not in lines:
                    fresh.setdefault(key, {})[seat.node_id] = self._line(seat, segment)
        if not fresh:
            return
        known = await self._store.read(lambda session: reports.broadcast_windows(session, {key[0] for key in fresh}))
        for key, lines in fresh.items():
            if key[0] not in known:
                continue  # the conductor writes it down in a moment
            for part in _parts(list(lines.values())):
                await self._add(part)
            self._open.setdefault(key, {}).update(lines)
            self._begun[key] = max(line.ends_at for line in self._open[key].values())
        for key in [key for key, end in self._begun.items() if end < now - LOOK_BACK]:
            del self._begun[key]

    async def _add(self, lines: Sequence[Line]) -> None:
        try:
            await self._store.begin(lambda session: reports.add_lines(session, lines), ring=False)
        except Unavailable:
            raise
        except BroadcastError as error:  # its broadcast went in this very moment
            log.error("plays.not_opened", code=error.code, lines=len(lines))  # noqa: TRY400

    def _line(self, seat: Seat, segment: PlanSegment) -> Line:
        return Line(
            id=self._chance.new_id(),
            broadcast_id=segment.entry_id,
            unit_id=seat.unit_id,
            cluster_id=seat.cluster_id,
            node_id=seat.node_id,
            starts_at=segment.start,
            ends_at=segment.end,
            judged_at=None,
        )

    # -- verdicts

    async def _judge_told(self) -> None:
        told, self._told = self._told, set()
        try:
            for entry, nodes in sorted((await self._of_broadcasts(told)).items()):
                for part in _parts(sorted(nodes)):
                    await self._judge_entry(entry, part)
        except Unavailable:
            self._told |= told
            raise

    async def _of_broadcasts(self, told: Collection[tuple[str, str]]) -> dict[str, set[str]]:
        """Who spoke of which broadcast; what is about anything else (orders, inventions) proves no play."""
        found: dict[str, set[str]] = {}
        for part in _parts(sorted({entry for entry, _ in told if not entry.startswith(ALERT)})):
            known = await self._store.read(lambda session, part=part: reports.broadcast_windows(session, part))  # type: ignore[misc]
            found |= {entry: set() for entry in known}
        for entry, node in told:
            if entry in found:
                found[entry].add(node)
        return found

    async def _judge_entry(self, entry: str, nodes: Collection[str]) -> None:
        now = self._clock.now()

        def write(session: Session) -> list[Line]:
            said = _said(session, [entry], nodes)
            lines = reports.lines_of(session, [entry], nodes)
            unplanned = self._unplanned(session, entry, said, lines)
            reports.add_lines(session, unplanned)
            return self._judge(session, [*lines, *unplanned], said, now, only_said=True)

        for line in await self._store.begin(write, ring=False):
            self._keep(line)

    def _unplanned(
        self, session: Session, entry: str, said: Mapping[tuple[_Key, str], Sequence[Report]], lines: Iterable[Line]
    ) -> list[Line]:
        """Lines for what sounded of a known broadcast when nobody here looked: the server was down as it was planned.

        Only within the broadcast's own window; anything else a node may say stays in its reports.
        """
        there = {((line.broadcast_id, line.starts_at), line.node_id) for line in lines}
        missing = sorted(said.keys() - there)
        if not missing:
            return []
        window = reports.broadcast_windows(session, [entry]).get(entry)
        if window is None:
            return []
        known = reports.known_nodes(session)
        return [
            Line(
                id=self._chance.new_id(),
                broadcast_id=entry,
                unit_id=known[node].unit_id,
                cluster_id=known[node].cluster_id,
                node_id=node,
                starts_at=start,
                ends_at=window[1],
                judged_at=None,
            )
            for (_, start), node in missing
            if node in known and window[0] - EARLY <= start < window[1]
        ]

    async def _judge_over(self) -> None:
        now = self._clock.now()
        over = [
            line
            for key in list(self._open)
            for line in self._open[key].values()
            if max(line.ends_at, self._since) + self._grace <= now
        ]
        over.sort(key=lambda line: (line.broadcast_id, line.starts_at, line.node_id))
        for part in _parts(over):

            def write(session: Session, part: Sequence[Line] = part) -> list[Line]:
                entries, nodes = {line.broadcast_id for line in part}, {line.node_id for line in part}
                return self._judge(session, part, _said(session, entries, nodes), now, only_said=False)

            for line in await self._store.begin(write, ring=False):
                self._keep(line)
            log.info("plays.judged", entries=sorted({line.broadcast_id for line in part})[:5], lines=len(part))

    def _keep(self, line: Line) -> None:
        key = (line.broadcast_id, line.starts_at)
        if line.judged_at is None:
            self._open.setdefault(key, {})[line.node_id] = line
        elif key in self._open:
            self._open[key].pop(line.node_id, None)
            if not self._open[key]:
                del self._open[key]
        self._begun.setdefault(key, line.ends_at)

    def _judge(
        self,
        session: Session,
        lines: Sequence[Line],
        said: Mapping[tuple[_Key, str], Sequence[Report]],
        now: datetime,
        *,
        only_said: bool,
    ) -> list[Line]:
        """Write the verdicts over these lines; they are closed when they are over."""
        if only_said:
            lines = [line for line in lines if ((line.broadcast_id, line.starts_at), line.node_id) in said]
        if not lines:
            return []
        first, last = min(line.starts_at for line in lines), max(line.ends_at for line in lines)
        spans = reports.reachable(session, {line.node_id for line in lines}, first, last)
        rows: list[dict[str, Any]] = []
        judged: list[Line] = []
        for line in lines:
            key = (line.broadcast_id, line.starts_at)
            planned = _Planned(line.broadcast_id, line.starts_at, line.ends_at)
            reachable = [
                Window(since, until)
                for span in spans.get(line.node_id, ())
                for since, until in ((max(span.since, planned.start), min(span.until or planned.end, planned.end)),)
                if since < until
            ]
            found = judge(planned, said.get((key, line.node_id), ()), reachable)
            is_over = line.ends_at + self._grace <= now
            judged_at = now if is_over or line.judged_at is not None else None
            rows.append(
                {
                    "line": line.id,
                    "new_verdict": found.verdict,
                    "new_reason": found.reason,
                    "new_heard_ms": found.heard_ms,
                    "new_started_at": found.started_at,
                    "new_underruns": found.underruns,
                    "new_judged_at": judged_at,
                }
            )
            judged.append(replace(line, judged_at=judged_at))
        reports.save_verdicts(session, rows)
        return judged


def _cases(
    targets: Sequence[TargetPlan], after: datetime, until: datetime
) -> Iterator[tuple[PlanSegment, tuple[Seat, ...]]]:
    """Segments that began by `until` and end after `after`, with the seats they were planned for."""
    for target in targets:
        segments = target.plan.segments  # in order and disjoint
        for segment in segments[: bisect_right(segments, until, key=_start_of)]:
            if segment.end > after:
                yield segment, target.seats


def _start_of(segment: PlanSegment) -> datetime:
    return segment.start


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), LINES_AT_ONCE):
        yield items[start : start + LINES_AT_ONCE]


def _said(session: Session, entries: Collection[str], nodes: Collection[str]) -> dict[tuple[_Key, str], list[Report]]:
    """The stored reports about these entries, by segment and node; kinds that prove nothing are left out."""
    found: dict[tuple[_Key, str], list[Report]] = {}
    for row in reports.reports_of(session, entries, nodes):
        if row.body["kind"] in _PROVING:
            found.setdefault(((row.entry_id, row.segment_start), row.node_id), []).append(
                Report(
                    id=f"{row.boot_id}/{row.sequence}",
                    entry_id=row.entry_id,
                    segment_start=row.segment_start,
                    kind=ReportKind(row.body["kind"]),
                    at=from_ms(row.body["at_ms"]),
                    heard=timedelta(milliseconds=row.body.get("heard_ms", 0)),
                    underruns=row.body.get("underruns", 0),
                    reason=None if row.body.get("reason") is None else row.body["reason"][:120],
                    life=row.boot_id,
                )
            )
    return found


_PROVING: Final = frozenset(kind.value for kind in ReportKind)
