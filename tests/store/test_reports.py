"""Statuses with the spans of reach, reports exactly once, and the lines of the play log."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import Any

import pytest_asyncio
from sqlalchemy import func, select

from broadcast_server.domain.errors import Conflict
from broadcast_server.domain.proof import Verdict
from broadcast_server.store import reports
from broadcast_server.store.reports import Line
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import LinkSpanRow, PlayRow, ReportRow
from tests.store.playout_rows import ENTRY, NODES, NOW, OTHER, settled

MINUTE = timedelta(minutes=1)
LONG_AGO = NOW - timedelta(days=9)


@pytest_asyncio.fixture
async def rows(store: Store) -> Store:
    return await settled(store)


def status(node: str, link: str = "online", highest: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    return {
        "node_id": node,
        "link": link,
        "boot_id": "b",
        "plan_sha256": None,
        "highest_epoch": highest[0],
        "highest_sequence": highest[1],
        "sounding": None,
        "body": {},
    }


async def tell(store: Store, at: datetime, *statuses: dict[str, Any]) -> None:
    ids = [f"{at.timestamp():.0f}-{number}" for number in range(len(statuses))]
    await store.begin(lambda session: reports.save_statuses(session, statuses, now=at, ids=ids))


def line(node: str, *, entry: str = ENTRY, start: datetime = NOW, minutes: int = 3, name: str = "") -> Line:
    return Line(name or f"{entry}-{node}"[-32:], entry, "xa", f"c-{node}", node, start, start + minutes * MINUTE, None)


def report(node: str, sequence: int, *, entry: str = ENTRY, at: datetime = NOW) -> dict[str, Any]:
    return {
        "node_id": node,
        "boot_id": "b",
        "sequence": sequence,
        "entry_id": entry,
        "segment_start": NOW,
        "received_at": at,
        "body": {"kind": "started"},
        "envelope": b"raw",
    }


# -- statuses ---------------------------------------------------------------------------------------------------------


async def test_reach_is_told_in_spans(rows: Store):
    await tell(rows, NOW, *(status(node) for node in NODES))
    await tell(rows, NOW + MINUTE, status("n1", "offline"), status("n2"))
    await tell(rows, NOW + 3 * MINUTE, status("n1"))

    def spans(session: Session) -> dict[str, list[tuple[int, int | None]]]:
        found = reports.reachable(session, NODES, NOW, NOW + 10 * MINUTE)
        return {
            node: [((s.since - NOW) // MINUTE, None if s.until is None else (s.until - NOW) // MINUTE) for s in each]
            for node, each in found.items()
        }

    assert await rows.read(spans) == {"n1": [(0, 1), (3, None)], "n2": [(0, None)], "n3": [(0, None)]}
    between = await rows.read(lambda session: reports.reachable(session, ["n1"], NOW + MINUTE, NOW + 3 * MINUTE))
    assert between == {}


async def test_a_word_that_changes_nothing_opens_no_span(rows: Store):
    for minute in range(5):
        await tell(rows, NOW + minute * MINUTE, status("n1"))
    assert await rows.read(lambda session: session.scalar(select(func.count()).select_from(LinkSpanRow))) == 1


async def test_the_highest_is_an_order_not_two_maxima(rows: Store):
    assert await rows.read(reports.highest_seen) == (0, 0)
    await tell(rows, NOW, status("n1", highest=(2, 900)), status("n2", highest=(3, 5)), status("n3", highest=(3, 4)))

    assert await rows.read(reports.highest_seen) == (3, 5)


async def test_a_status_of_nobody_is_refused_whole(rows: Store):
    with contextlib.suppress(Conflict):
        await tell(rows, NOW, status("n1"), status("ghost"))
    assert await rows.read(reports.highest_seen) == (0, 0)


# -- reports ----------------------------------------------------------------------------------------------------------


async def test_a_report_is_kept_once_and_its_first_form_stays(rows: Store):
    for at in (NOW, NOW + MINUTE):
        await rows.begin(lambda session, at=at: reports.save_reports(session, [report("n1", 1, at=at)]))

    (kept,) = await rows.read(lambda session: reports.reports_of(session, [ENTRY]))
    assert kept.received_at == NOW


async def test_reports_are_found_by_entry_and_node(rows: Store):
    told = [report(node, 1) for node in NODES] + [report("n1", 2, entry=OTHER)]
    await rows.begin(lambda session: reports.save_reports(session, told))

    found = await rows.read(lambda session: reports.reports_of(session, [ENTRY], ["n1", "n2"]))
    assert [row.node_id for row in found] == ["n1", "n2"]
    assert await rows.read(lambda session: session.scalar(select(func.count()).select_from(ReportRow))) == 4


# -- lines ------------------------------------------------------------------------------------------------------------


async def judge(store: Store, node: str, verdict: Verdict, at: datetime | None) -> None:
    row = {
        "line": line(node).id,
        "new_verdict": verdict,
        "new_reason": "why",
        "new_heard_ms": 5,
        "new_started_at": NOW,
        "new_underruns": 1,
        "new_judged_at": at,
    }
    await store.begin(lambda session: reports.save_verdicts(session, [row]))


async def test_lines_are_opened_once_and_found_until_they_are_judged(rows: Store):
    await rows.begin(lambda session: reports.add_lines(session, [line(node) for node in NODES]))
    await rows.begin(lambda session: reports.add_lines(session, [line("n1", name="double"), line("n2", name="twice")]))
    assert sorted(each.id for each in await rows.read(reports.open_lines)) == sorted(line(node).id for node in NODES)

    await judge(rows, "n1", Verdict.PLAYED, NOW + MINUTE)
    await judge(rows, "n2", Verdict.PARTIAL, None)
    assert {each.node_id for each in await rows.read(reports.open_lines)} == {"n2", "n3"}
    row = await rows.read(lambda session: session.get(PlayRow, line("n1").id))
    assert row is not None
    assert (row.verdict, row.reason, row.heard_ms, row.started_at, row.underruns, row.judged_at) == (
        Verdict.PLAYED,
        "why",
        5,
        NOW,
        1,
        NOW + MINUTE,
    )


async def test_ends_can_be_moved_in_bulk(rows: Store):
    await rows.begin(lambda session: reports.add_lines(session, [line(node) for node in NODES]))
    await rows.begin(lambda session: reports.move_ends(session, {line("n1").id: NOW + MINUTE}))
    await rows.begin(lambda session: reports.move_ends(session, {}))

    ends = {each.node_id: each.ends_at for each in await rows.read(reports.open_lines)}
    assert ends == {"n1": NOW + MINUTE, "n2": NOW + 3 * MINUTE, "n3": NOW + 3 * MINUTE}
    assert await rows.read(lambda session: reports.begun(session, LONG_AGO)) == {(ENTRY, NOW): NOW + 3 * MINUTE}
    assert await rows.read(lambda session: reports.begun(session, NOW + MINUTE * 3)) == {}


async def test_reports_that_came_after_the_verdict_are_found(rows: Store):
    def write(session: Session) -> None:
        reports.add_lines(session, [line(node) for node in NODES])
        later = NOW + 10 * MINUTE
        reports.save_reports(session, [report("n1", 1, at=later), report("n2", 1), report("n3", 1, at=later)])

    await rows.begin(write)
    for node, verdict in (("n1", Verdict.UNKNOWN), ("n2", Verdict.UNKNOWN), ("n3", Verdict.PLAYED)):
        await judge(rows, node, verdict, NOW + 5 * MINUTE)

    assert await rows.read(lambda session: reports.told_after_verdict(session, LONG_AGO)) == {(ENTRY, "n1")}


async def test_lines_are_asked_for_by_entry_and_node(rows: Store):
    await rows.begin(lambda session: reports.add_lines(session, [line(node) for node in NODES]))

    found = await rows.read(lambda session: reports.lines_of(session, [ENTRY, OTHER], ["n1", "n9"]))
    assert [each.node_id for each in found] == ["n1"]
    windows = await rows.read(lambda session: reports.broadcast_windows(session, [ENTRY, "nothing"]))
    assert windows == {ENTRY: (NOW, NOW)}
