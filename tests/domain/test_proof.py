"""What may be claimed: a play is proven by the node's own report, never by the schedule."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import permutations

import pytest

from broadcast_server.domain.errors import Corrupt
from broadcast_server.domain.proof import Judgement, Report, ReportKind, Verdict, coverage, judge
from tests.domain.builders import at, minutes, window

STARTED, FINISHED, NOT_SOUNDED = ReportKind
S = timedelta(seconds=1)
NOTHING = timedelta(0)
START, END = at("17:00"), at("17:10")


@dataclass(frozen=True)
class Segment:
    entry_id: str = "news"
    start: datetime = START
    end: datetime = END


SEGMENT = Segment()


def report(
    name: str,
    kind: ReportKind,
    clock: str,
    heard: timedelta = NOTHING,
    *,
    underruns: int = 0,
    reason: str | None = None,
) -> Report:
    return Report(name, "news", SEGMENT.start, kind, at(clock), heard, underruns, reason)


BEGAN = report("1", STARTED, "17:00:01")


@pytest.mark.parametrize(
    ("reports", "verdict", "heard", "reason"),
    [
        ([BEGAN, report("2", FINISHED, "17:10", minutes(10))], Verdict.PLAYED, minutes(10), None),
        ([BEGAN, report("2", FINISHED, "17:10", minutes(10) - 2 * S)], Verdict.PLAYED, minutes(10) - 2 * S, None),
        (
            [BEGAN, report("2", FINISHED, "17:09", minutes(10) - 2.001 * S, reason="stream_dead")],
            Verdict.PARTIAL,
            minutes(10) - 2.001 * S,
            "stream_dead",
        ),
        ([BEGAN, report("2", FINISHED, "17:20", minutes(20))], Verdict.PLAYED, minutes(10), None),
        ([BEGAN], Verdict.UNKNOWN, minutes(0), "not_finished"),
        ([report("1", NOT_SOUNDED, "17:00", reason="asset_missing")], Verdict.MISSED, minutes(0), "asset_missing"),
        ([BEGAN, report("2", FINISHED, "17:10", reason="horn_dead")], Verdict.MISSED, minutes(0), "horn_dead"),
        ([], Verdict.UNKNOWN, minutes(0), "unreachable"),
    ],
)
def test_what_the_reports_say(reports: list[Report], verdict: Verdict, heard: timedelta, reason: str | None):
    judged = judge(SEGMENT, reports)
    assert (judged.verdict, judged.heard, judged.reason) == (verdict, heard, reason)


def test_two_stretches_around_an_emergency_add_up_in_any_order_with_duplicates():
    reports = [
        BEGAN,
        report("2", FINISHED, "17:04", minutes(4), underruns=1, reason="alert"),
        report("3", STARTED, "17:06"),
        report("4", FINISHED, "17:10", minutes(4), underruns=2),
    ]
    expected = Judgement(Verdict.PARTIAL, minutes(8), at("17:00:01"), S, 3, "alert")
    for some in permutations(reports):
        assert judge(SEGMENT, [*some, *some[:2]]) == expected
    assert expected.heard_ms == 480_000


def test_half_of_a_short_jingle_is_not_the_jingle():
    jingle = Segment(end=at("17:00:03"))
    assert judge(jingle, [report("1", FINISHED, "17:00:03", S)]).verdict is Verdict.PARTIAL
    assert judge(jingle, [report("1", FINISHED, "17:00:03", 2 * S)]).verdict is Verdict.PLAYED


@pytest.mark.parametrize(
    ("reachable", "verdict", "reason"),
    [
        ([("16:00", "18:00")], Verdict.MISSED, "no_report"),
        ([("17:05", "18:00"), ("16:00", "17:05")], Verdict.MISSED, "no_report"),
        ([("16:00", "17:04"), ("17:05", "18:00")], Verdict.UNKNOWN, "unreachable"),
        ([("17:00:01", "18:00")], Verdict.UNKNOWN, "unreachable"),
        ([("16:00", "17:09:59")], Verdict.UNKNOWN, "unreachable"),
        ([("17:00", "17:10")], Verdict.MISSED, "no_report"),
    ],
)
def test_silence_is_missed_only_if_the_node_could_have_spoken(
    reachable: list[tuple[str, str]], verdict: Verdict, reason: str
):
    judged = judge(SEGMENT, [], [window(*ends) for ends in reachable])
    assert (judged.verdict, judged.reason) == (verdict, reason)


def test_a_report_that_comes_late_betters_the_verdict():
    before = judge(SEGMENT, [], [window("16:00", "18:00")])
    after = judge(SEGMENT, [BEGAN, report("2", FINISHED, "17:10", minutes(10))], [window("16:00", "18:00")])
    assert (before.verdict, after.verdict) == (Verdict.MISSED, Verdict.PLAYED)


def test_the_start_error_is_told_with_its_sign():
    early = report("1", STARTED, "16:59:59")
    assert judge(SEGMENT, [BEGAN]).start_error == S
    assert judge(SEGMENT, [BEGAN, early]).start_error == -S
    assert judge(SEGMENT, []).start_error is None


def test_a_report_of_another_segment_is_corrupt():
    with pytest.raises(Corrupt, match="report_of_another_segment"):
        judge(Segment("other"), [BEGAN])
    with pytest.raises(Corrupt, match="report_of_another_segment"):
        judge(Segment(start=at("16:59")), [BEGAN])


def test_coverage_of_a_broadcast():
    first, second = Segment(), Segment(start=at("17:10"), end=at("17:20"))
    whole = Judgement(Verdict.PLAYED, minutes(10), start_error=S, underruns=1)
    part = Judgement(Verdict.PARTIAL, minutes(5), start_error=-3 * S)
    missed, unknown = Judgement(Verdict.MISSED), Judgement(Verdict.UNKNOWN)
    judged = {
        "played": [whole, whole],
        "cut": [whole, missed],
        "partial": [part, part],
        "missed": [missed, missed],
        "lost": [missed, unknown],
    }
    found = coverage({node: [first, second] for node in (*judged, "silent")}, judged)
    assert (found.nodes_planned, found.nodes_heard) == (6, 3)
    assert found.verdicts == {Verdict.PLAYED: 1, Verdict.PARTIAL: 2, Verdict.MISSED: 1, Verdict.UNKNOWN: 2}
    assert found.heard_ratio == pytest.approx(40 / 120)
    assert found.start_errors == (-3 * S, S, S)
    assert found.underruns == 3
    assert (found.start_error(0.5), found.start_error(0.99)) == (S, 3 * S)


def test_coverage_of_nothing_is_nothing():
    found = coverage({}, {})
    assert (found.nodes_planned, found.heard_ratio, found.start_error(0.5)) == (0, 0.0, None)
