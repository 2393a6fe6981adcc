"""How far emergencies and stop-alls came: what nodes say of them becomes delivery rows, and lines of the play log.

A maintainer must not break: (1) a delivery is answered by the node's own word alone: its status says what it holds and
does, its signed report what its output did; a play line stands on reports only; (2) rows are read and written in bulk,
one commit a look however many nodes spoke; (3) what is over is closed with a reason, and a report that comes days later
from a node that was cut off still betters it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from broadcast_server.domain import delivery
from broadcast_server.domain.clock import Chance, Clock, Window, from_ms
from broadcast_server.domain.delivery import ALERT, Delivery
from broadcast_server.domain.errors import Unavailable
from broadcast_server.domain.proof import Report, ReportKind, judge
from broadcast_server.logs import get_logger
from broadcast_server.playout.inbox import Heard
from broadcast_server.playout.wire import Obeys
from broadcast_server.store import deliveries, reports
from broadcast_server.store.reports import Line
from broadcast_server.store.session import Session, Store

log = get_logger()

LOOK_S: Final = 0.5
HOUSE_EVERY_S: Final = 1.0
AT_ONCE: Final = 2_000


@dataclass(frozen=True, slots=True)
class _Round:
    """What a line of an emergency is held against: one round of it."""

    entry_id: str
    start: datetime
    end: datetime


class Deliveries:
    """One per process with the `inbox` role."""

    def __init__(self, *, store: Store, clock: Clock, chance: Chance, grace: timedelta) -> None:
        """`grace`: how long after its end a missing word is waited for."""
        self._store, self._clock, self._chance, self._grace = store, clock, chance, grace
        self._obeys: dict[str, Obeys] = {}
        self._told: set[tuple[str, str]] = set()
        self._housed_s = -HOUSE_EVERY_S

    def heard(self, heard: Heard) -> None:
        """The inbox committed something."""
        self._obeys.update(heard.obeys)
        self._told |= {(entry, node) for entry, node in heard.told if entry.startswith(ALERT)}

    async def run(self) -> None:
        """Look twice a second, for ever."""
        while True:
            await self._clock.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Take in what was heard, open lines of what was launched, close what is over."""
        try:
            if self._clock.monotonic() - self._housed_s >= HOUSE_EVERY_S:
                await self._open_lines()
            await self._take_statuses()
            await self._take_reports()
            if self._clock.monotonic() - self._housed_s >= HOUSE_EVERY_S:
                await self._close()
                self._housed_s = self._clock.monotonic()
        except Unavailable as away:
            log.warning("deliveries.wait", code=away.code)

    # -- what nodes say

    async def _take_statuses(self) -> None:
        obeys, self._obeys = self._obeys, {}
        if not obeys:
            return
        try:
            if not await self._store.read(deliveries.any_open):
                return
            now = self._clock.now()
            for part in _parts(sorted(obeys)):
                await self._store.begin(
                    lambda session, part=part: _take(session, part, obeys, now),  # type: ignore[misc]
                    ring=False,
                )
        except Unavailable:
            self._obeys = obeys | self._obeys  # what was said since is newer
            raise

    async def _take_reports(self) -> None:
        told, self._told = self._told, set()
        try:
            by_subject: dict[str, list[str]] = {}
            for subject, node in sorted(told):
                by_subject.setdefault(subject, []).append(node)
            for subject, nodes in by_subject.items():
                for part in _parts(nodes):
                    await self._store.begin(
                        lambda session, subject=subject, part=part: self._judge_told(session, subject, part),  # type: ignore[misc]
                        ring=False,
                    )
        except Unavailable:
            self._told |= told
            raise

    def _judge_told(self, session: Session, subject: str, nodes: Collection[str]) -> None:
        now = self._clock.now()
        said = _said(session, [subject], nodes)
        before = deliveries.of(session, subject, nodes)
        after = [delivery.reported(one, said.get((subject, one.node_id), ()), now=now) for one in before]
        deliveries.save(session, _changed(before, after))
        lines = reports.lines_of(session, [subject], nodes)
        self._judge(session, [line for line in lines if (subject, line.node_id) in said], said, now)

    # -- the play log

    async def _open_lines(self) -> None:
        """A line for every node of every emergency, so that what was launched is judged whatever happens next."""
        if not await self._store.read(deliveries.any_open):
            return
        while found := await self._store.read(lambda session: deliveries.without_line(session, limit=AT_ONCE)):
            lines = [
                Line(
                    id=self._chance.new_id(),
                    broadcast_id=row.subject,
                    unit_id=row.unit_id,
                    cluster_id=row.cluster_id,
                    node_id=row.node_id,
                    starts_at=start,
                    ends_at=end,
                    judged_at=None,
                )
                for row, start, end in found
            ]
            await self._store.begin(lambda session, lines=lines: reports.add_lines(session, lines), ring=False)  # type: ignore[misc]
            self._told |= {(line.broadcast_id, line.node_id) for line in lines}  # a report may have been faster

    def _judge(
        self,
        session: Session,
        lines: Sequence[Line],
        said: Mapping[tuple[str, str], Sequence[Report]],
        now: datetime,
    ) -> None:
        """Verdicts over these lines, by all reports there are; closed when their round is over."""
        if not lines:
            return
        first, last = min(line.starts_at for line in lines), max(line.ends_at for line in lines)
        spans = reports.reachable(session, {line.node_id for line in lines}, first, last)
        rows: list[dict[str, Any]] = []
        for line in lines:
            told = said.get((line.broadcast_id, line.node_id), ())
            end = max(line.ends_at, line.starts_at + timedelta(milliseconds=1))
            whole = [
                report.heard
                for report in told
                if report.kind is ReportKind.FINISHED and report.reason in delivery.WHOLE and report.heard
            ]
            if whole:  # the node knows best how long its own clips are
                end = min(end, line.starts_at + max(*whole, timedelta(milliseconds=1)))
            planned = _Round(line.broadcast_id, line.starts_at, end)
            reachable = [
                Window(max(span.since, planned.start), min(span.until or planned.end, planned.end))
                for span in spans.get(line.node_id, ())
                if max(span.since, planned.start) < min(span.until or planned.end, planned.end)
            ]
            found = judge(planned, [replace(report, segment_start=planned.start) for report in told], reachable)
            is_over = line.ends_at + self._grace <= now or line.judged_at is not None
            rows.append(
                {
                    "line": line.id,
                    "new_verdict": found.verdict,
                    "new_reason": found.reason,
                    "new_heard_ms": found.heard_ms,
                    "new_started_at": found.started_at,
                    "new_underruns": found.underruns,
                    "new_judged_at": now if is_over else None,
                }
            )
        reports.save_verdicts(session, rows)

    # -- ends

    async def _close(self) -> None:
        if not await self._store.read(deliveries.any_open):
            return
        now = self._clock.now()
        while await self._store.begin(lambda session: self._close_lines(session, now), ring=False) == AT_ONCE:
            pass
        while await self._store.begin(lambda session: self._close_deliveries(session, now), ring=False) == AT_ONCE:
            pass

    def _close_lines(self, session: Session, now: datetime) -> int:
        """Judge what nobody reported of; how many lines."""
        lines = deliveries.open_lines(session, ended_before=now - self._grace, limit=AT_ONCE)
        subjects, nodes = {line.broadcast_id for line in lines}, {line.node_id for line in lines}
        self._judge(session, lines, _said(session, subjects, nodes), now)
        return len(lines)

    def _close_deliveries(self, session: Session, now: datetime) -> int:
        """The last word on what is over; how many changed."""
        over = deliveries.to_close(session, now=now, grace=self._grace, limit=AT_ONCE)
        said = _said(session, {one.subject for one in over}, {one.node_id for one in over})
        after = []
        for one in over:  # with all reports there are: a process that died may have left some unread
            known = delivery.reported(one, said.get((one.subject, one.node_id), ()), now=now)
            after.append(delivery.closed(known, now=now, grace=self._grace))
        changed = _changed(over, after)
        deliveries.save(session, changed)
        return len(changed)


def _take(session: Session, nodes: Sequence[str], obeys: Mapping[str, Obeys], now: datetime) -> None:
    before = deliveries.open_at(session, nodes)
    after = []
    for one in before:
        word = obeys[one.node_id]
        progress = word.progress.get(one.subject)
        if one.is_latch:
            progress = delivery.Progress() if word.stop_all else None
        if progress is None or (one.is_latch and one.ended_at(now) is not None and not word.stop_all):
            after.append(delivery.let_go(one, now=now))
        else:
            after.append(delivery.held(one, progress, now=now))
    deliveries.save(session, _changed(before, after))


def _changed(before: Sequence[Delivery], after: Sequence[Delivery]) -> list[Delivery]:
    return [new for old, new in zip(before, after, strict=True) if new != old]


def _said(session: Session, subjects: Collection[str], nodes: Collection[str]) -> dict[tuple[str, str], list[Report]]:
    """The stored reports about these emergencies, by subject and node, whatever round they are of."""
    found: dict[tuple[str, str], list[Report]] = {}
    for row in reports.reports_of(session, subjects, nodes):
        if row.body["kind"] in _PROVING:
            found.setdefault((row.entry_id, row.node_id), []).append(
                Report(
                    id=f"{row.boot_id}/{row.sequence}",
                    entry_id=row.entry_id,
                    segment_start=row.segment_start,
                    kind=ReportKind(row.body["kind"]),
                    at=from_ms(row.body["at_ms"]),
                    heard=timedelta(milliseconds=row.body.get("heard_ms", 0)),
                    underruns=row.body.get("underruns", 0),
                    reason=None if row.body.get("reason") is None else row.body["reason"][:120],
                )
            )
    return found


_PROVING: Final = frozenset(kind.value for kind in ReportKind)


def _parts(items: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]
