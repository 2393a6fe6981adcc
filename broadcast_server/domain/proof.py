"""What really sounded: the reports of a node, held against its plan, become a verdict.

Silence is not proof of silence: without a report the verdict is UNKNOWN unless the node was reachable all the time and
would have reported. A node's own word that it did not sound, and why, is a proof. Verdicts only get better informed:
judging again with more reports is safe, in any order, with duplicates.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from broadcast_server.domain.clock import Window
from broadcast_server.domain.errors import Corrupt

_ZERO: Final = timedelta(0)
TOLERANCE: Final = timedelta(seconds=2)


class Verdict(enum.StrEnum):
    """What may be claimed of one planned stretch on one node."""

    PLAYED = "played"
    PARTIAL = "partial"
    MISSED = "missed"
    UNKNOWN = "unknown"


class ReportKind(enum.StrEnum):
    """What a report tells."""

    STARTED = "started"
    FINISHED = "finished"
    NOT_SOUNDED = "not_sounded"


@dataclass(frozen=True, slots=True)
class Report:
    """One report of one node. `id` is unique on the node.

    `heard` (FINISHED): sound of the segment up to here in this `life` of the node, from one power-on to the next; with
    no life named, sound of the one stretch that ends here.
    """

    id: str
    entry_id: str
    segment_start: datetime
    kind: ReportKind
    at: datetime
    heard: timedelta = _ZERO
    underruns: int = 0
    reason: str | None = None
    life: str | None = None


class Planned(Protocol):
    """What was to sound; a `PlanSegment` has it."""

    @property
    def entry_id(self) -> str:
        """Whose it is."""
        ...

    @property
    def start(self) -> datetime:
        """When it was to begin."""
        ...

    @property
    def end(self) -> datetime:
        """When it was to end."""
        ...


class Missing(enum.StrEnum):
    """Reason codes of our own; all others are the node's."""

    NO_REPORT = "no_report"  # reachable throughout, and said nothing
    UNREACHABLE = "unreachable"
    NOT_FINISHED = "not_finished"  # it began, and the end is not reported (yet)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict and what it stands on. `start_error`: positive when late; None if no start is known."""

    verdict: Verdict
    heard: timedelta = _ZERO
    started_at: datetime | None = None
    start_error: timedelta | None = None
    underruns: int = 0
    reason: str | None = None

    @property
    def heard_ms(self) -> int:
        """Milliseconds of the right sound."""
        return self.heard // timedelta(milliseconds=1)


def judge(
    planned: Planned,
    reports: Iterable[Report],
    reachable: Iterable[Window] = (),
    *,
    tolerance: timedelta = TOLERANCE,
) -> Judgement:
    """What the reports say about one planned segment.

    `reports`: all of one node for this segment, any order, duplicates allowed; several stretches (cut and resumed) add
    up, within one life by the node's own count. `reachable`: when the node was in contact. PLAYED when at most
    `tolerance` is lacking, and never less than half was heard; PARTIAL below that; MISSED if the node says so, or was
    reachable for the whole segment and reported nothing; else UNKNOWN. Raises `Corrupt` if a report names another
    segment.
    """
    told = {report.id: report for report in reports}.values()
    for report in told:
        if (report.entry_id, report.segment_start) != (planned.entry_id, planned.start):
            raise Corrupt("report_of_another_segment", report_id=report.id, entry_id=report.entry_id)
    length = planned.end - planned.start
    by_kind = {kind: [report for report in told if report.kind is kind] for kind in ReportKind}
    started, finished = by_kind[ReportKind.STARTED], by_kind[ReportKind.FINISHED]
    heard = min(length, sum((report.heard for report in _last_of_lives(finished)), _ZERO))
    started_at = min((report.at for report in started), default=None)
    verdict: Verdict = Verdict.UNKNOWN
    reason: str | None = Missing.UNREACHABLE
    if heard > _ZERO:
        is_whole = length - heard <= tolerance and 2 * heard >= length
        verdict = Verdict.PLAYED if is_whole else Verdict.PARTIAL
        reason = _last_reason((*finished, *by_kind[ReportKind.NOT_SOUNDED]))
    elif len(started) > len(finished):
        reason = Missing.NOT_FINISHED
    elif told:
        verdict, reason = Verdict.MISSED, _last_reason(told)
    elif _covers(reachable, planned):
        verdict, reason = Verdict.MISSED, Missing.NO_REPORT
    return Judgement(
        verdict,
        heard,
        started_at,
        None if started_at is None else started_at - planned.start,
        sum(report.underruns for report in _last_of_lives(finished)),
        None if verdict is Verdict.PLAYED else reason,
    )


def _last_of_lives(finished: Iterable[Report]) -> list[Report]:
    """The report of each life that counts most: a later one of the same life includes the earlier ones."""
    most: dict[str, Report] = {}
    for report in finished:
        key = report.id if report.life is None else f"life {report.life}"
        if key not in most or report.heard > most[key].heard:
            most[key] = report
    return list(most.values())


def _last_reason(reports: Iterable[Report]) -> str | None:
    last = max((report for report in reports if report.reason), key=lambda report: (report.at, report.id), default=None)
    return None if last is None else last.reason


def _covers(windows: Iterable[Window], planned: Planned) -> bool:
    covered = planned.start
    for window in sorted(windows):
        if window.start > covered:
            break
        covered = max(covered, window.end)
    return covered >= planned.end


@dataclass(frozen=True, slots=True)
class Coverage:
    """A broadcast over all its nodes. `heard_ratio`: heard time of planned time, 0 to 1."""

    nodes_planned: int
    nodes_heard: int
    verdicts: Mapping[Verdict, int]
    heard_ratio: float
    start_errors: tuple[timedelta, ...]  # ascending, one per node that reported a start
    underruns: int

    def start_error(self, quantile: float) -> timedelta | None:
        """The start error, its sign left out, that `quantile` (0 to 1) of the nodes kept; None if none is known."""
        errors = sorted(abs(error) for error in self.start_errors)
        return errors[min(len(errors) - 1, int(quantile * len(errors)))] if errors else None


def coverage(planned: Mapping[str, Sequence[Planned]], judged: Mapping[str, Sequence[Judgement]]) -> Coverage:
    """How far a broadcast came.

    `planned`: segments of the broadcast by node; `judged`: the judgement of each, in the same order. A node counts
    once: as PLAYED, MISSED or UNKNOWN if all its segments were that, else as PARTIAL if any was heard.
    """
    verdicts: Counter[Verdict] = Counter(dict.fromkeys(Verdict, 0))
    length = heard = _ZERO
    errors: list[timedelta] = []
    underruns = 0
    for node, segments in planned.items():
        judgements = judged.get(node, ())
        verdicts[_of_node([judgement.verdict for judgement in judgements])] += 1
        length += sum((segment.end - segment.start for segment in segments), _ZERO)
        heard += sum((judgement.heard for judgement in judgements), _ZERO)
        underruns += sum(judgement.underruns for judgement in judgements)
        first = next((each.start_error for each in judgements if each.start_error is not None), None)
        if first is not None:
            errors.append(first)
    return Coverage(
        len(planned),
        verdicts[Verdict.PLAYED] + verdicts[Verdict.PARTIAL],
        dict(verdicts),
        heard / length if length else 0.0,
        tuple(sorted(errors)),
        underruns,
    )


def _of_node(verdicts: Sequence[Verdict]) -> Verdict:
    kinds = set(verdicts)
    if not kinds:
        return Verdict.UNKNOWN
    if len(kinds) == 1:
        return verdicts[0]
    return Verdict.PARTIAL if kinds & {Verdict.PLAYED, Verdict.PARTIAL} else Verdict.UNKNOWN
