"""The evening before: who holds what sounds at five, and who does not and why."""

from __future__ import annotations

from typing import Any

from broadcast_server.control import scheduling
from broadcast_server.domain.clock import to_ms
from broadcast_server.store.session import Session
from broadcast_server.store.tables import DeviceLogRow, NodeRow, NodeStatusRow
from broadcast_server.store.words import ContentKind
from tests.api.test_schedules_api import API, an_office, told
from tests.support.village import DONG, HA, PROVINCE, TAY, Village, at, daily

C1, C2 = f"c1-{DONG}", f"c2-{DONG}"


async def a_node(village: Village, cluster: str, *, link: str | None, due: list[dict[str, Any]]) -> None:
    def write(session: Session) -> None:
        now = village.clock.now()
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
                enrolled_at=now,
            )
        )
        session.flush()
        if link is not None:
            session.add(
                NodeStatusRow(
                    node_id=f"n-{cluster}", link=link, since=now, seen_at=now, boot_id="b", body={}, due={"items": due}
                )
            )

    await village.desk.store.begin(write)


async def five_oclock(village: Village) -> str:
    bulletin = await village.bulletin("Tin sáng", unit=PROVINCE)
    request = scheduling.NewSchedule(PROVINCE, ContentKind.BULLETIN, bulletin, daily("05:30"))
    schedule = (await scheduling.create_schedule(village.desk, HA, request)).schedule
    return f"{schedule.id}@{to_ms(at(5, 30, day=2))}"


async def test_it_counts_who_is_ready_and_names_who_is_not_and_why() -> None:
    async with an_office() as (village, client):
        entry = await five_oclock(village)
        start_ms = to_ms(at(5, 30, day=2))
        await a_node(village, C1, link="online", due=[{"entry_id": entry, "start_ms": start_ms, "ready": True}])
        await a_node(village, C2, link="online", due=[{"entry_id": entry, "start_ms": start_ms, "ready": False}])
        answer = await client.get(f"{API}/readiness", params={"unit": DONG})
        assert answer.status_code == 200, answer.text
        seen = answer.json()
        assert (seen["at"], seen["nodes"], seen["ready"]) == ("2026-06-01T22:30:00Z", 2, 1)
        (item,) = seen["items"]
        assert (item["entry_id"], item["title"], item["nodes"], item["ready"]) == (entry, "Tin sáng", 2, 1)
        (lacking,) = item["not_ready"]
        assert (lacking["node_id"], lacking["code"]) == (f"n-{C2}", "node_lacks_sound")
        assert "chưa có đủ âm thanh" in lacking["sentence"]


async def test_silence_is_never_readiness() -> None:
    async with an_office(HA.user_id) as (village, client):
        entry = await five_oclock(village)
        other = [{"entry_id": "other@1", "start_ms": number, "ready": True} for number in range(64)]
        await a_node(village, C1, link="offline", due=[{"entry_id": entry, "start_ms": 1, "ready": True}])
        await a_node(village, C2, link=None, due=[])
        await a_node(village, f"c1-{TAY}", link="online", due=other)
        seen = (
            await client.get(f"{API}/readiness", params={"unit": PROVINCE, "at": at(5, 30, day=2).isoformat()})
        ).json()
        assert (seen["nodes"], seen["ready"]) == (3, 0)
        codes = {one["node_id"]: one["code"] for one in seen["items"][0]["not_ready"]}
        assert codes == {
            f"n-{C1}": "node_offline",
            f"n-{C2}": "node_never_heard",
            f"n-c1-{TAY}": "node_not_asked_yet",
        }


async def test_a_copied_device_and_a_gap_in_its_log_are_seen_at_the_node() -> None:
    async with an_office() as (village, client):
        await a_node(village, C1, link="online", due=[])
        assert (await client.get(f"{API}/nodes/n-{C1}")).json()["log"] is None
        seen_at = village.clock.now()
        await village.desk.store.begin(
            lambda session: session.add(
                DeviceLogRow(node_id=f"n-{C1}", through=5, highest=9, forked_at=seen_at, forked_line=4)
            )
        )
        log = (await client.get(f"{API}/nodes/n-{C1}")).json()["log"]
        assert (log["through"], log["missing"], log["forked_line"]) == (5, 4, 4)


async def test_nothing_due_no_right_and_no_sense() -> None:
    async with an_office() as (_, client):
        seen = (await client.get(f"{API}/readiness", params={"unit": DONG})).json()
        assert (seen["at"], seen["nodes"], seen["items"]) == (None, 0, [])
        told(await client.get(f"{API}/readiness", params={"unit": TAY}), 404, "unknown_unit")
        far = {"unit": DONG, "at": at(5, day=20).isoformat()}
        told(await client.get(f"{API}/readiness", params=far), 422, "readiness_too_far")
