"""Why a node was not heard with what its plan held: the rule it followed, and until when."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import delete

from broadcast_server import catalogue
from broadcast_server.control import outlook, scheduling
from broadcast_server.control.scheduling import NewSchedule
from broadcast_server.domain.proof import Verdict
from broadcast_server.store.session import Session
from broadcast_server.store.tables import BroadcastRow, NodeRow, PlayRow
from broadcast_server.store.words import ContentKind, NodeState, ScheduleKind
from speaker_protocol.rules import BulletinClass, Trouble, Why
from tests.support.village import DONG, LAN, Village, a_village, at, once

CLUSTER = f"c1-{DONG}"


async def a_line(village: Village, verdict: Verdict, reason: str | None) -> None:
    """A bulletin of 17:00, and what the play log says of it at one cluster."""
    bulletin = await village.bulletin("Lịch tiêm chủng", minutes=10)
    request = NewSchedule(DONG, ContentKind.BULLETIN, bulletin, once(at(17)))
    schedule = (await scheduling.create_schedule(village.desk, LAN, request)).schedule
    broadcast = f"{schedule.id}@{int(at(17).timestamp() * 1000)}"

    def write(session: Session) -> None:
        session.add(
            NodeRow(
                id="n1",
                unit_id=DONG,
                cluster_id=CLUSTER,
                public_key="0" * 64,
                hardware="sim",
                firmware="1",
                broker_password_line="x",
                asset_token_hash="x",
                enrolled_at=village.clock.now(),
            )
        )
        session.add(
            BroadcastRow(
                id=broadcast,
                schedule_id=schedule.id,
                unit_id=DONG,
                kind=ScheduleKind.ANNOUNCEMENT,
                klass=BulletinClass.NORMAL,
                title="Lịch tiêm chủng",
                starts_at=at(17),
                ends_at=at(17, 10),
            )
        )
        session.flush()
        session.add(
            PlayRow(
                id="p1",
                broadcast_id=broadcast,
                unit_id=DONG,
                cluster_id=CLUSTER,
                node_id="n1",
                starts_at=at(17),
                ends_at=at(17) + timedelta(minutes=10),
                verdict=verdict,
                reason=reason,
                heard_ms=0,
                judged_at=at(17, 10),
            )
        )

    await village.desk.store.begin(write)


@pytest.mark.parametrize(
    ("reason", "until"),
    [
        (Why.DAY_MINUTES, "2026-06-02T00:00:00+07:00"),
        (Why.TOO_LATE, "2026-06-01T17:10:00+07:00"),
        (Why.CLOCK_UNCERTAIN, "2026-06-01T17:10:00+07:00"),
        (Trouble.NO_SOUND_FROM_HORN, "2026-06-01T17:10:00+07:00"),
    ],
)
async def test_explain_names_the_rule_a_node_followed_and_until_when(reason: Why | Trouble, until: str) -> None:
    async with a_village() as village:
        await a_line(village, Verdict.MISSED, reason.value)

        told = await outlook.explain(village.desk, LAN, CLUSTER, at(17, 5))

        assert told.code == f"node_{reason.value}"
        assert (told.facts["rule"], told.facts["until"]) == (reason.value, until)
        assert told.facts["title"] == "Lịch tiêm chủng"
        for locale in ("vi", "en"):
            assert "…" not in catalogue.sentence(told.code, told.facts, locale)  # no fact is missing


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [(Verdict.PLAYED, Why.PLANNED.value), (Verdict.UNKNOWN, None)],
)
async def test_what_was_heard_or_is_not_understood_stays_the_plans_own_answer(
    verdict: Verdict, reason: str | None
) -> None:
    async with a_village() as village:
        await a_line(village, verdict, reason)

        assert (await outlook.explain(village.desk, LAN, CLUSTER, at(17, 5))).code == "explain_sounds"


async def test_a_reason_nobody_knows_here_is_a_loss_all_the_same() -> None:
    async with a_village() as village:
        await a_line(village, Verdict.MISSED, "nobody_knows_this")

        told = await outlook.explain(village.desk, LAN, CLUSTER, at(17, 5))

        assert (told.code, told.facts["rule"]) == ("explain_not_heard", "not_heard")
        assert told.facts["until"] == "2026-06-01T17:10:00+07:00"


@pytest.mark.parametrize("state", [NodeState.PROBATION, NodeState.QUARANTINED])
async def test_a_node_nobody_approved_is_named_before_the_minute_comes(state: NodeState):
    async with a_village() as village:
        await a_line(village, Verdict.UNKNOWN, None)

        def doubt(session: Session) -> None:
            row = session.get(NodeRow, "n1")
            assert row is not None
            row.state = state
            session.execute(delete(PlayRow))

        await village.desk.store.begin(doubt)
        told = await outlook.explain(village.desk, LAN, CLUSTER, at(17, 5))

        assert (told.code, told.facts["node_id"], told.facts["state"]) == (
            "explain_node_not_active",
            "n1",
            state.value,
        )
        assert (told.facts["rule"], told.facts["ends_with"]) == ("node_not_active", "until_node_approved")
