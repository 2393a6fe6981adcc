"""Turns reports into the play log: one row for every planned segment on every cluster, with a verdict.

A maintainer must not break: (1) a play is proven by the node's own report, never by the schedule: without one it is
MISSED only if the node was reachable the whole time, else UNKNOWN; (2) a row may only get better founded: a late
report betters an UNKNOWN, nothing is deleted; (3) rows are written in bulk, a segment of 10 000 nodes is one
statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from broadcast_server.domain.clock import Chance, Clock, Window, from_ms
from broadcast_server.domain.plan import PlanSegment
from broadcast_server.domain.proof import Report, ReportKind, judge
from broadcast_server.logs import get_logger
from broadcast_server.playout.inbox import Heard
from broadcast_server.playout.planner import Desired, TargetPlan
from broadcast_server.store import reports
from broadcast_server.store.plans import Seat
from broadcast_server.store.session import Session, Store

log = get_logger()

LOOK_S: Final = 1.0
LOOK_BACK: Final = timedelta(hours=26)


@dataclass(frozen=True, slots=True)
class _Case:
    """One segment and the seats it was planned for."""

    segment: PlanSegment
    seats: tuple[Seat, ...]


class Judge:
    """One per process with the `inbox` role; works from the last planning and from what the inbox committed."""

    def __init__(self, *, store: Store, clock: Clock, chance: Chance, grace: timedelta) -> None:
        """`grace`: how long after a segment's end a missing report is waited for."""
        self._store, self._clock, self._chance, self._grace = store, clock, chance, grace
        self._desired: Desired | None = None
        self._entries: set[str] = set()
        self._closed: set[tuple[str, datetime]] = set()

    def planned(self, desired: Desired) -> None:
        """The conductor planned."""
        self._desired = desired

    def heard(self, heard: Heard) -> None:
        """The inbox committed reports about these entries."""
        self._entries |= heard.entries

    async def run(self) -> None:
        """Look every second, for ever."""
        while True:
            await self._clock.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Judge what there is news of, and what ended without news."""
        desired = self._desired
        if desired is None:
            return
        now = self._clock.now()
        spoken, self._entries = self._entries, set()
        ended = [case for case in _cases(desired.targets) if self._is_over(case.segment, now)]
        silent = [case for case in ended if (case.segment.entry_id, case.segment.start) not in self._closed]
        talked = [case for case in _cases(desired.targets) if case.segment.entry_id in spoken]
        for case in talked:
            await self._write(case, now, only_told=not self._is_over(case.segment, now))
        for case in silent:
            if case not in talked:
                await self._write(case, now, only_told=False)
            self._closed.add((case.segment.entry_id, case.segment.start))

    def _is_over(self, segment: PlanSegment, now: datetime) -> bool:
        return now - LOOK_BACK <= segment.end + self._grace <= now

    async def _write(self, case: _Case, now: datetime, *, only_told: bool) -> None:
        segment = case.segment
        nodes = [seat.node_id for seat in case.seats]

        def write(session: Session) -> int:
            told = _told(session, segment, nodes)
            if only_told and not told:
                return 0
            spans = reports.reachable(session, nodes, segment.start, segment.end)
            known = reports.plays_of(session, [segment.entry_id])
            rows = [
                self._row(seat, segment, told.get(seat.node_id, ()), spans.get(seat.node_id, ()), known, now)
                for seat in case.seats
                if not only_told or seat.node_id in told
            ]
            if not reports.broadcasts_known(session, [segment.entry_id]):
                return 0
            reports.save_plays(session, rows)
            return len(rows)

        written = await self._store.begin(write, ring=False)
        if written and not only_told:
            log.info("plays.judged", entry_id=segment.entry_id, nodes=written)

    def _row(
        self,
        seat: Seat,
        segment: PlanSegment,
        told: Sequence[Report],
        spans: Iterable[Any],
        known: Mapping[tuple[str, str, datetime], str],
        now: datetime,
    ) -> dict[str, Any]:
        reachable = [
            Window(max(span.since, segment.start), min(span.until or segment.end, segment.end))
            for span in spans
            if max(span.since, segment.start) < min(span.until or segment.end, segment.end)
        ]
        judgement = judge(segment, told, reachable)
        key = (seat.node_id, segment.entry_id, segment.start)
        return {
            "id": known.get(key) or self._chance.new_id(),
            "broadcast_id": segment.entry_id,
            "unit_id": seat.unit_id,
            "cluster_id": seat.cluster_id,
            "node_id": seat.node_id,
            "starts_at": segment.start,
            "ends_at": segment.end,
            "verdict": judgement.verdict,
            "reason": judgement.reason,
            "heard_ms": judgement.heard_ms,
            "started_at": judgement.started_at,
            "underruns": judgement.underruns,
            "judged_at": now,
        }


def _cases(targets: Sequence[TargetPlan]) -> Iterable[_Case]:
    for target in targets:
        for segment in target.plan.segments:
            yield _Case(segment, target.seats)


def _told(session: Session, segment: PlanSegment, nodes: Sequence[str]) -> dict[str, list[Report]]:
    """The stored reports about this segment, by node; kinds that prove nothing are left out."""
    found: dict[str, list[Report]] = {}
    seated = set(nodes)
    for row in reports.reports_of(session, [segment.entry_id]):
        if row.node_id in seated and row.segment_start == segment.start and row.body["kind"] in _PROVING:
            found.setdefault(row.node_id, []).append(
                Report(
                    id=f"{row.boot_id}/{row.sequence}",
                    entry_id=row.entry_id,
                    segment_start=row.segment_start,
                    kind=ReportKind(row.body["kind"]),
                    at=from_ms(row.body["at_ms"]),
                    heard=timedelta(milliseconds=row.body.get("heard_ms", 0)),
                    underruns=row.body.get("underruns", 0),
                    reason=row.body.get("reason"),
                )
            )
    return found


_PROVING: Final = frozenset(kind.value for kind in ReportKind)
