"""Khẩn cấp over HTTP: the whole way, its refusals in both languages, and a thumb that presses twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from broadcast_server.store.session import Session
from broadcast_server.store.tables import NodeRow
from broadcast_server.store.words import Role
from tests.api.test_schedules_api import API, an_office, give_token, told
from tests.support.api import a_client
from tests.support.people import Person, a_person, with_password
from tests.support.village import DONG, LAN, TAY, Village


@dataclass(frozen=True, slots=True)
class Office:
    """The head of the station at a keyboard, the chairman at another."""

    village: Village
    lan: httpx.AsyncClient
    minh: httpx.AsyncClient
    people: dict[httpx.AsyncClient, Person]

    def proof(self, who: httpx.AsyncClient) -> dict[str, str]:
        given = self.people[who].proof()
        return {"password": given.password, "code": given.code}

    async def propose(self, **more: Any) -> httpx.Response:
        return await self.lan.post(f"{API}/emergencies", json=wanted(**more) | {"proof": self.proof(self.lan)})

    async def approve(self, proposed: dict[str, Any], **more: Any) -> httpx.Response:
        body = {"content_hash": proposed["content_hash"], "confirm": "KHẨN CẤP", **more}
        body["proof"] = self.proof(self.minh)
        return await self.minh.post(f"{API}/emergencies/{proposed['id']}/approval", json=body)


@asynccontextmanager
async def two_at_work() -> AsyncIterator[Office]:
    """One node is enrolled at xã Đông."""
    async with an_office() as (village, lan):
        now = village.clock.now()

        def write(session: Session) -> None:
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
        chairman = await a_person(village.desk, Role.LEADER, DONG, "minh")
        head = await with_password(village.desk, LAN)
        async with a_client(village.desk, token=await give_token(village, chairman.actor.user_id)) as minh:
            yield Office(village, lan, minh, {lan: head, minh: chairman})


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
    async with two_at_work() as office:
        lan, minh = office.lan, office.minh
        answer = await office.propose()
        assert answer.status_code == 201, answer.text
        proposed = answer.json()
        assert (proposed["state"], proposed["is_in_force"], proposed["agree_by"]) == (
            "proposed",
            False,
            "2026-06-01T02:15:00Z",
        )
        made = (await office.approve(proposed)).json()
        assert (made["state"], made["is_in_force"], made["counts"]["nodes"]) == ("in_force", True, 1)
        assert [(one["login"], one["role"]) for one in made["consents"]] == [
            ("lan", "initiator"),
            ("minh", "approver"),
        ]
        where = answer.headers["location"]
        (unreached,) = (await lan.get(f"{where}/deliveries", params={"unreached": True})).json()["items"]
        assert (unreached["node_id"], unreached["state"], unreached["reason"]) == ("n1", "intent", "never_seen")

        correction = {"message": {"text": "Đính chính: đê chưa vỡ."}, "reason": "Báo sai", "proof": office.proof(lan)}
        second = (await lan.post(f"{where}/correction", json=correction)).json()
        assert (second["nature"], second["replaces_id"], second["state"]) == ("correction", made["id"], "proposed")
        assert (await lan.get(where)).json()["successor_id"] is None
        assert (await office.approve(second)).json()["is_in_force"]
        assert (await lan.get(where)).json()["successor_id"] == second["id"]
        own_words = {"reason": "Nước đã rút", "text": "Bà con về nhà được rồi."}
        told(await minh.post(f"{API}/emergencies/{second['id']}/final", json=own_words), 422, "proof_missing")
        last = await minh.post(f"{API}/emergencies/{second['id']}/final", json={"reason": "Nước đã rút"})
        assert (last.status_code, last.json()["nature"], last.json()["is_in_force"]) == (201, "final", True)
        ended = await minh.post(f"{API}/emergencies/{last.json()['id']}/cancellation", json={"reason": "Đủ rồi"})
        assert ended.json()["state"] == "cancelled"
        listed = (await lan.get(f"{API}/emergencies", params={"unit": DONG})).json()["items"]
        assert [one["state"] for one in listed] == ["cancelled", "replaced", "replaced"]
        assert (await lan.get(f"{API}/emergencies", params={"in_force": True})).json()["items"] == []


async def test_a_thumb_that_presses_twice_raises_one_alarm_and_leaves_no_trace_of_the_password() -> None:
    async with two_at_work() as office:
        for _ in range(2):
            body = wanted() | {"proof": office.proof(office.lan)}
            answer = await office.lan.post(f"{API}/emergencies", json=body, headers={"Idempotency-Key": "press-1"})
            assert answer.status_code == 201
        assert len((await office.lan.get(f"{API}/emergencies")).json()["items"]) == 1


async def test_every_wrong_request_names_field_and_fix_in_both_languages() -> None:
    async with two_at_work() as office:
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
                proved = body | {"proof": office.proof(office.lan)}
                answer = await office.lan.post(f"{API}/emergencies", json=proved, headers={"Accept-Language": language})
                problem = told(answer, status, code)
                assert problem.get("field", "bulletin_id") == field
                assert code not in problem["detail"]
                await office.village.clock.advance(60)
        missing = await office.lan.post(f"{API}/emergencies", json=without_mode | {"proof": office.proof(office.lan)})
        assert (missing.status_code, missing.json()["field"]) == (422, "mode")
        unproved = await office.lan.post(f"{API}/emergencies", json=wanted())
        assert (unproved.status_code, unproved.json()["field"]) == (422, "proof")
        assert (await office.lan.get(f"{API}/emergencies")).json()["items"] == []


async def test_one_person_alone_breaks_the_glass_and_is_reviewed() -> None:
    async with two_at_work() as office:
        lan, minh, desk = office.lan, office.minh, office.village.desk
        deputy = await a_person(desk, Role.LEADER, DONG, "binh")
        form = {"unit_id": DONG, "name": "Vỡ đê", "message": {"hazard": "flood"}}
        template = (await lan.post(f"{API}/emergency-templates", json=form)).json()
        place = f"{API}/emergency-templates/{template['id']}"
        alone = {"unit_id": DONG, "template_id": template["id"], "reason": "Mất liên lạc", "confirm": "KHẨN CẤP"}
        answer = await minh.post(f"{API}/break-glass", json=alone | {"proof": office.proof(minh)})
        told(answer, 403, "unfit_template_unapproved")
        agreed = {"content_hash": template["content_hash"], "proof": office.proof(minh)}
        assert (await minh.post(f"{place}/approval", json=agreed)).json()["is_approved"] is False
        async with a_client(desk, token=await give_token(office.village, deputy.actor.user_id)) as binh:
            office.people[binh] = deputy
            agreed["proof"] = office.proof(binh)
            assert (await binh.post(f"{place}/approval", json=agreed)).json()["is_approved"] is True
            await office.village.clock.advance(60)
            answer = await minh.post(f"{API}/break-glass", json=alone | {"proof": office.proof(minh)})
            made = answer.json()
            assert (answer.status_code, made["is_in_force"], made["template_id"]) == (201, True, template["id"])
            (open_one,) = (await lan.get(f"{API}/break-glass-reviews", params={"is_open": True})).json()["items"]
            assert (open_one["login"], open_one["is_overdue"]) == ("minh", False)
            review = f"{API}/break-glass-reviews/{made['id']}/review"
            verdict = {"finding": "justified", "note": "Đúng quy trình"}
            told(await minh.post(review, json=verdict), 403, "own_break_glass")
            reviewed = (await binh.post(review, json=verdict)).json()
            assert (reviewed["reviewed_by"], reviewed["finding"]) == ("binh", "justified")
        retired = (await lan.post(f"{place}/retirement")).json()
        assert (retired["retired_by"], retired["is_approved"]) == ("lan", False)


async def test_stop_all_and_release() -> None:
    async with two_at_work() as office:
        lan = office.lan
        answer = await lan.post(f"{API}/stop-alls", json={"units": [DONG], "reason": "Có người chiếm sóng"})
        (latch,) = answer.json()
        assert (answer.status_code, latch["released_at"], latch["counts"]["nodes"]) == (201, None, 1)
        raised = (await office.approve((await office.propose()).json())).json()
        assert raised["stopped_by"] == [latch["id"]]
        where = f"{API}/stop-alls/{latch['id']}"
        assert [one["node_id"] for one in (await lan.get(f"{where}/deliveries")).json()["items"]] == ["n1"]
        released = (await lan.post(f"{where}/release", json={"reason": "Đã xử lý"})).json()
        assert released["released_by"] == "lan"
        assert (await lan.get(f"{API}/stop-alls", params={"in_force": True})).json()["items"] == []
        assert (await lan.get(where)).json()["release_reason"] == "Đã xử lý"
        told(await lan.get(f"{API}/stop-alls/unknown"), 404, "unknown_stop_all")
