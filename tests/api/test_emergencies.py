"""Khẩn cấp over HTTP: the whole way, its refusals in both languages, and a thumb that presses twice."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from broadcast_server.store.session import Session
from broadcast_server.store.tables import GrantRow, NodeRow
from broadcast_server.store.words import Role
from tests.api.test_schedules_api import API, an_office, told
from tests.support.village import DONG, LAN, TAY, Village


async def settle(village: Village) -> None:
    """The head of the station stands in for the chairman today; one node is enrolled."""
    now = village.clock.now()

    def write(session: Session) -> None:
        session.add(
            GrantRow(
                id="grant-deputy",
                user_id=LAN.user_id,
                role=Role.LEADER,
                unit_id=DONG,
                valid_from=now - timedelta(days=1),
            )
        )
        session.add(
            NodeRow(
                id="n1",
                unit_id=DONG,
                cluster_id=f"c1-{DONG}",
                public_key="1" * 64,
                hardware="mô phỏng",
                firmware="1",
                broker_password_line="$7$",
                asset_token_hash="n1",
                enrolled_at=now,
            )
        )

    await village.desk.store.begin(write)


def wanted(**more: Any) -> dict[str, Any]:
    return {
        "unit_id": DONG,
        "mode": "real",
        "confirm": "KHẨN CẤP",
        "message": {"hazard": "flood", "text": "Vỡ đê, sơ tán ngay."},
        "reason": "Đê Tả Lai vỡ",
        **more,
    }


async def test_raise_look_correct_and_end() -> None:
    async with an_office() as (village, client):
        await settle(village)
        answer = await client.post(f"{API}/emergencies", json=wanted())
        assert answer.status_code == 201, answer.text
        made = answer.json()
        assert (made["state"], made["is_in_force"], made["counts"]["nodes"]) == ("in_force", True, 1)
        where = answer.headers["location"]
        (unreached,) = (await client.get(f"{where}/deliveries", params={"unreached": True})).json()["items"]
        assert (unreached["node_id"], unreached["state"], unreached["reason"]) == ("n1", "intent", "never_seen")

        correction = {"message": {"text": "Đính chính: đê chưa vỡ."}, "reason": "Báo sai"}
        second = (await client.post(f"{where}/correction", json=correction)).json()
        assert (second["nature"], second["replaces_id"]) == ("correction", made["id"])
        assert (await client.get(where)).json()["successor_id"] == second["id"]
        last = await client.post(f"{API}/emergencies/{second['id']}/final", json={"reason": "Nước đã rút"})
        assert (last.status_code, last.json()["nature"]) == (201, "final")
        ended = await client.post(f"{API}/emergencies/{last.json()['id']}/cancellation", json={"reason": "Đủ rồi"})
        assert ended.json()["state"] == "cancelled"
        listed = (await client.get(f"{API}/emergencies", params={"unit": DONG})).json()["items"]
        assert [one["state"] for one in listed] == ["cancelled", "replaced", "replaced"]
        assert (await client.get(f"{API}/emergencies", params={"in_force": True})).json()["items"] == []


async def test_a_thumb_that_presses_twice_raises_one_alarm() -> None:
    async with an_office() as (village, client):
        await settle(village)
        for _ in range(2):
            answer = await client.post(f"{API}/emergencies", json=wanted(), headers={"Idempotency-Key": "press-1"})
            assert answer.status_code == 201
        assert len((await client.get(f"{API}/emergencies")).json()["items"]) == 1


async def test_every_wrong_request_names_field_and_fix_in_both_languages() -> None:
    async with an_office() as (village, client):
        await settle(village)
        without_mode = {name: value for name, value in wanted().items() if name != "mode"}
        cases: list[tuple[dict[str, Any], int, str, str]] = [
            (wanted(confirm="DIỄN TẬP"), 422, "confirm_wrong", "confirm"),
            (wanted(mode="drill"), 422, "confirm_wrong", "confirm"),
            (wanted(reason=" "), 422, "reason_missing", "reason"),
            (wanted(message={}), 422, "emergency_says_nothing", "message"),
            (wanted(units=[TAY]), 403, "unit_outside", "units[0]"),
            (wanted(message={"bulletin_id": "unknown"}), 404, "unknown_bulletin", "bulletin_id"),
        ]
        for body, status, code, field in cases:
            for language in ("vi", "en"):
                answer = await client.post(f"{API}/emergencies", json=body, headers={"Accept-Language": language})
                problem = told(answer, status, code)
                assert problem.get("field", "bulletin_id") == field
                assert code not in problem["detail"]
        missing = await client.post(f"{API}/emergencies", json=without_mode)
        assert (missing.status_code, missing.json()["field"]) == (422, "mode")
        told(await client.post(f"{API}/emergencies", json=wanted(unit_id=TAY)), 403, "not_permitted")
        assert (await client.get(f"{API}/emergencies")).json()["items"] == []


async def test_stop_all_and_release() -> None:
    async with an_office() as (village, client):
        await settle(village)
        answer = await client.post(f"{API}/stop-alls", json={"units": [DONG], "reason": "Có người chiếm sóng"})
        (latch,) = answer.json()
        assert (answer.status_code, latch["released_at"], latch["counts"]["nodes"]) == (201, None, 1)
        raised = (await client.post(f"{API}/emergencies", json=wanted())).json()
        assert raised["stopped_by"] == [latch["id"]]
        where = f"{API}/stop-alls/{latch['id']}"
        assert [one["node_id"] for one in (await client.get(f"{where}/deliveries")).json()["items"]] == ["n1"]
        released = (await client.post(f"{where}/release", json={"reason": "Đã xử lý"})).json()
        assert released["released_by"] == "lan"
        assert (await client.get(f"{API}/stop-alls", params={"in_force": True})).json()["items"] == []
        assert (await client.get(where)).json()["release_reason"] == "Đã xử lý"
        told(await client.get(f"{API}/stop-alls/unknown"), 404, "unknown_stop_all")
