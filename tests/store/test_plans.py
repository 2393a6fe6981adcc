"""What was sent to whom, what nodes said of it, and the conflicts planning names."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest_asyncio
from sqlalchemy import select

from broadcast_server.store import emergencies, plans, reports
from broadcast_server.store.plans import PublishedPlan
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import AlertRow, ConflictRow, NodeRow, PlanBodyRow, PolicyRow, StopAllRow
from broadcast_server.store.words import ConflictKind
from tests.store.playout_rows import NODES, NOW, settled

BODY, NEXT = "a" * 64, "b" * 64
DAY = timedelta(days=1)


@pytest_asyncio.fixture
async def rows(store: Store) -> Store:
    return await settled(store)


def sent(body: str, sequence: int, *, epoch: int = 1) -> PublishedPlan:
    return PublishedPlan(body, epoch, sequence, NOW, NOW + DAY, NOW, None)


async def publish(store: Store, body: str, sequence: int, nodes: tuple[str, ...] = NODES) -> None:
    def write(session: Session) -> None:
        plan = sent(body, sequence)
        plans.record_published(session, dict.fromkeys(nodes, plan), [(body, body.encode())], now=NOW)
        plans.drop_unused_bodies(session)

    await store.begin(write)


async def acknowledge(store: Store, **told: tuple[str, int, int]) -> None:
    await store.begin(lambda session: plans.acknowledge(session, told, now=NOW))


async def test_what_is_sent_replaces_what_was_and_unused_bodies_go(rows: Store):
    await publish(rows, BODY, 1)
    await publish(rows, NEXT, 2, ("n1", "n2"))
    assert {node: plan.body_sha256 for node, plan in (await rows.read(plans.published)).items()} == {
        "n1": NEXT,
        "n2": NEXT,
        "n3": BODY,
    }
    await publish(rows, NEXT, 3, ("n3",))

    assert await rows.read(lambda session: list(session.scalars(select(PlanBodyRow.sha256)))) == [NEXT]
    assert await rows.read(lambda session: plans.bodies(session, [BODY, NEXT])) == {NEXT: NEXT.encode()}


async def test_only_exactly_this_plan_is_confirmed(rows: Store):
    await publish(rows, BODY, 7)
    await acknowledge(rows, n1=(BODY, 1, 7), n2=(BODY, 1, 6), n3=(NEXT, 1, 7), stranger=(BODY, 1, 7))

    known = await rows.read(plans.published)
    assert {node for node, plan in known.items() if plan.acknowledged_at is not None} == {"n1"}
    await publish(rows, BODY, 8)
    assert (await rows.read(plans.published))["n1"].acknowledged_at is None


async def test_overdue_is_who_is_online_and_silent(rows: Store):
    await publish(rows, BODY, 1)

    def statuses(session: Session) -> None:
        words = {"boot_id": "b", "plan_sha256": None, "highest_epoch": 0, "highest_sequence": 0, "sounding": None}
        told: list[dict[str, Any]] = [
            {"node_id": node, "link": link, "body": {}, **words}
            for node, link in (("n1", "online"), ("n2", "offline"), ("n3", "online"))
        ]
        reports.save_statuses(session, told, now=NOW, ids=["1", "2", "3"])

    await rows.begin(statuses)
    await acknowledge(rows, n3=(BODY, 1, 1))

    assert await rows.read(lambda session: plans.overdue(session, published_before=NOW)) == []
    assert await rows.read(lambda session: plans.overdue(session, published_before=NOW + DAY)) == ["n1"]


async def test_the_fleets_mark_moves_with_nodes_and_policies(rows: Store):
    marks = [await rows.read(plans.fleet_mark)]
    await rows.begin(lambda session: session.add(PolicyRow(unit_id="xa", body={}, updated_at=NOW)))
    marks.append(await rows.read(plans.fleet_mark))

    def retire(session: Session) -> None:
        row = session.get(NodeRow, "n3")
        assert row is not None
        row.retired_at = NOW

    await rows.begin(retire)
    marks.append(await rows.read(plans.fleet_mark))

    assert len(set(marks)) == 3
    assert [seat.node_id for seat in await rows.read(plans.seats)] == ["n1", "n2"]


async def test_alerts_and_latches_are_those_in_force(rows: Store):
    def write(session: Session) -> None:
        for name, expires, cancelled in (("a", DAY, None), ("b", -DAY, None), ("c", DAY, NOW)):
            session.add(
                AlertRow(
                    id=name, unit_id="xa", level=90, body={"id": name}, issued_at=NOW - 2 * DAY,
                    expires_at=NOW + expires, cancelled_at=cancelled,
                )
            )  # fmt: skip
        for name, since, released in (("first", NOW - DAY, None), ("second", NOW, None), ("old", NOW - 2 * DAY, NOW)):
            session.add(StopAllRow(id=name, unit_id="xa", since=since, set_by="x", released_at=released))

    await rows.begin(write)

    sets = await rows.read(lambda session: emergencies.sets(session, now=NOW))
    assert sets.alerts == {"xa": [{"id": "a"}]}
    assert sets.latches == {"xa": ("first", NOW - DAY)}
    assert sets.in_force == {"latch:first": None, "latch:second": None}


async def test_conflicts_open_close_and_open_again_under_one_row(rows: Store):
    def conflict(one: str, reason: str) -> dict[str, Any]:
        return {
            "id": one,
            "unit_id": "xa",
            "schedule_id": "s1",
            "kind": ConflictKind.PLAN_TOO_LARGE,
            "subject": "s1@1",
            "affects_from": NOW,
            "facts": {"reason": reason},
        }

    async def note(*found: dict[str, Any], at: int) -> list[tuple[str, int, bool, str]]:
        when = NOW + timedelta(hours=at)
        await rows.begin(lambda session: plans.note_conflicts(session, found, now=when))
        return await rows.read(
            lambda session: [
                (row.id, (row.opened_at - NOW) // timedelta(hours=1), row.closed_at is None, row.facts["reason"])
                for row in session.scalars(select(ConflictRow))
            ]
        )

    assert await note(conflict("x", "one"), at=0) == [("x", 0, True, "one")]
    assert await note(conflict("y", "two"), at=1) == [("x", 0, True, "two")]
    assert await note(at=2) == [("x", 0, False, "two")]
    assert await note(conflict("z", "three"), at=3) == [("x", 3, True, "three")]
