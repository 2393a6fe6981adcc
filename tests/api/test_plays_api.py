"""The play log over HTTP: lines page by page, and the proof of a broadcast as far as one may see."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from broadcast_server.control import scheduling
from broadcast_server.domain.proof import Verdict
from broadcast_server.store.session import Session
from broadcast_server.store.tables import BroadcastRow, NodeRow, PlayRow
from broadcast_server.store.words import ContentKind, ScheduleKind
from speaker_protocol.rules import BulletinClass
from tests.api.test_schedules_api import API, an_office, give_token, told
from tests.support.api import a_client
from tests.support.village import DONG, HA, NGOC, PROVINCE, TAY, Village, at, daily

VERDICTS = {f"c1-{DONG}": Verdict.PLAYED, f"c2-{DONG}": Verdict.MISSED, f"c1-{TAY}": Verdict.UNKNOWN}


async def a_day(village: Village) -> str:
    """The province's bulletin on three clusters, seven days; returns the schedule's id."""
    bulletin = await village.bulletin("Tin tỉnh", unit=PROVINCE)
    request = scheduling.NewSchedule(PROVINCE, ContentKind.BULLETIN, bulletin, daily("17:00"))
    schedule = (await scheduling.create_schedule(village.desk, HA, request)).schedule

    def write(session: Session) -> None:
        for cluster in VERDICTS:
            session.add(
                NodeRow(
                    id=f"n-{cluster}",
                    unit_id=cluster[3:],
                    cluster_id=cluster,
                    public_key=cluster.ljust(64, "0"),
                    hardware="sim",
                    firmware="1",
                    broker_password_line="x",
                    asset_token_hash=cluster,
                    enrolled_at=village.clock.now(),
                )
            )
        for day in range(1, 8):
            start = at(17, day=day)
            broadcast = f"{schedule.id}@{int(start.timestamp() * 1000)}"
            session.add(
                BroadcastRow(
                    id=broadcast,
                    schedule_id=schedule.id,
                    unit_id=PROVINCE,
                    kind=ScheduleKind.ANNOUNCEMENT,
                    klass=BulletinClass.NORMAL,
                    title="Tin tỉnh",
                    starts_at=start,
                    ends_at=start + timedelta(minutes=3),
                )
            )
            session.flush()
            for cluster, verdict in VERDICTS.items():
                session.add(
                    PlayRow(
                        id=f"p{day}-{cluster}",
                        broadcast_id=broadcast,
                        unit_id=cluster[3:],
                        cluster_id=cluster,
                        node_id=f"n-{cluster}",
                        starts_at=start,
                        ends_at=start + timedelta(minutes=3),
                        verdict=verdict,
                        heard_ms=180_000 if verdict is Verdict.PLAYED else 0,
                        judged_at=None if verdict is Verdict.UNKNOWN else start,
                    )
                )

    await village.desk.store.begin(write)
    return schedule.id


async def test_the_province_sees_all_and_the_commune_its_own() -> None:
    async with an_office() as (village, lan):
        schedule = await a_day(village)
        broadcast = f"{schedule}@{int(at(17).timestamp() * 1000)}"
        mine = (await lan.get(f"{API}/broadcasts/{broadcast}")).json()
        assert (mine["nodes_planned"], mine["nodes_heard"], mine["coverage"]) == (2, 1, 0.5)
        assert {name: count for name, count in mine["verdicts"].items() if count} == {"played": 1, "missed": 1}
        token = await give_token(village, NGOC.user_id)
        async with a_client(village.desk, token=token) as ngoc:
            whole = (await ngoc.get(f"{API}/broadcasts/{broadcast}")).json()
            assert (whole["nodes_planned"], whole["nodes_heard"], whole["open"]) == (3, 1, 1)
            listed = (await ngoc.get(f"{API}/broadcasts", params={"within": TAY})).json()["items"]
            assert [one["nodes_planned"] for one in listed] == [1] * 7
        told(await lan.get(f"{API}/broadcasts/nothing@1"), 404, "unknown_broadcast")


async def test_lines_are_filtered_and_paged() -> None:
    async with an_office() as (village, client):
        schedule = await a_day(village)
        seen: list[str] = []
        params: dict[str, Any] = {"limit": 4, "schedule": schedule}
        while True:
            page = (await client.get(f"{API}/plays", params=params)).json()
            seen += [line["id"] for line in page["items"]]
            if page["next"] is None:
                break
            params["cursor"] = page["next"]
        assert seen == [f"p{day}-c{number}-{DONG}" for day in range(7, 0, -1) for number in (2, 1)]
        missed = (await client.get(f"{API}/plays", params={"verdict": "missed", "cluster": f"c2-{DONG}"})).json()[
            "items"
        ]
        assert len(missed) == 7
        one_day = {"from": at(0, day=3).isoformat(), "until": at(0, day=4).isoformat()}
        lines = (await client.get(f"{API}/plays", params=one_day)).json()["items"]
        assert [line["cluster_code"] for line in lines] == ["CUM-02", "CUM-01"]
        told(await client.get(f"{API}/plays", params={"unit": TAY}), 404, "unknown_unit")
        told(await client.get(f"{API}/plays", params={"cursor": "eA"}), 422, "cursor_invalid")
