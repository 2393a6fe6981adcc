"""A province sets itself up over REST: places, policy, clusters, tokens, boxes; every refusal is a problem."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest_asyncio

from broadcast_server.api.router import create_api
from broadcast_server.control.access import Actor
from broadcast_server.control.desk import Desk
from broadcast_server.store.words import Role
from tests.support.api import a_client
from tests.support.desk import a_bare_desk
from tests.support.places import COUNTRY, HAMLET, PROVINCE, QUYNH_LUU, YEN_THANH, a_country, a_token_of, somebody

V1 = "/api/v1"


@dataclass
class Town:
    desk: Desk
    admin: httpx.AsyncClient
    """Keeps the province's register."""
    tech: httpx.AsyncClient
    """Technician of one commune."""
    stranger: httpx.AsyncClient
    tech_actor: Actor


@pytest_asyncio.fixture
async def town() -> AsyncIterator[Town]:
    async with a_bare_desk() as desk:
        await a_country(desk)
        admin = await a_token_of(desk, await somebody(desk, Role.ADMIN, PROVINCE))
        tech_actor = await somebody(desk, Role.TECHNICIAN, YEN_THANH)
        tech = await a_token_of(desk, tech_actor)
        english = {"Accept-Language": "en"}
        app = create_api(desk)
        async with (
            a_client(desk, app=app, token=admin, headers=english) as one,
            a_client(desk, app=app, token=tech) as two,
            a_client(desk, app=app) as three,
        ):
            yield Town(desk, one, two, three, tech_actor)


# -- places -----------------------------------------------------------------------------------------------------------


async def test_a_hamlet_is_made_renamed_and_moved(town: Town):
    form = {"kind": "hamlet", "name": "Xóm 9", "parent_id": YEN_THANH}
    made = await town.admin.post(f"{V1}/units", json=form)
    assert made.status_code == 201
    unit = made.json()
    assert made.headers["location"] == f"{V1}/units/{unit['id']}"
    assert unit["path"] == [unit["id"], YEN_THANH, PROVINCE, COUNTRY]
    where = f"{V1}/units/{unit['id']}"
    renamed = await town.admin.patch(where, json={"name": "Xóm 9A"}, headers={"If-Match": made.headers["etag"]})
    assert renamed.json()["name"] == "Xóm 9A"
    stale = await town.admin.patch(where, json={"name": "Xóm 9B"}, headers={"If-Match": made.headers["etag"]})
    assert (stale.status_code, stale.json()["code"]) == (412, "version_changed")
    moved = await town.admin.post(f"{where}/moves", json={"parent_id": QUYNH_LUU, "on": "2026-07-01"})
    assert moved.json()["parent_id"] == QUYNH_LUU
    assert (await town.admin.get(where, params={"on": "2026-06-30"})).json()["parent_id"] == YEN_THANH
    circle = await town.admin.post(f"{V1}/units/{YEN_THANH}/moves", json={"parent_id": HAMLET, "on": "2026-07-01"})
    assert (circle.status_code, circle.json()["code"], circle.json()["field"]) == (422, "circular_places", "parent_id")


async def test_places_come_in_pages_and_by_name(town: Town):
    first = (await town.admin.get(f"{V1}/units", params={"limit": 3})).json()
    rest = (await town.admin.get(f"{V1}/units", params={"limit": 3, "cursor": first["next"]})).json()
    assert [unit["id"] for unit in first["items"] + rest["items"]] == sorted(
        [COUNTRY, PROVINCE, YEN_THANH, QUYNH_LUU, HAMLET]
    )
    assert rest["next"] is None
    found = (await town.admin.get(f"{V1}/units", params={"q": "yen thanh"})).json()["items"]
    assert [unit["id"] for unit in found] == [YEN_THANH]


async def test_a_refusal_is_a_problem_in_the_readers_language(town: Town):
    form = {"kind": "hamlet", "name": "Xóm Khác", "parent_id": YEN_THANH}
    refused = await town.tech.post(f"{V1}/units", json=form)
    assert refused.status_code == 403
    assert refused.headers["content-type"] == "application/problem+json"
    problem = refused.json()
    assert problem["code"] == "not_permitted"
    assert problem["detail"] == f"Bạn không có quyền làm việc này (place_edit) tại {YEN_THANH}."
    unknown = await town.admin.get(f"{V1}/units/nowhere")
    assert (unknown.status_code, unknown.json()["detail"]) == (404, "There is no place nowhere.")
    assert (await town.stranger.get(f"{V1}/units")).status_code == 401


async def test_the_kinds_name_the_district_as_history(town: Town):
    kinds = {kind["code"]: kind for kind in (await town.tech.get(f"{V1}/unit-kinds")).json()}
    assert kinds["district"]["closed_on"] == "2025-07-01"
    assert kinds["commune"]["closed_on"] is None
    closed = await town.admin.post(f"{V1}/unit-kinds/zone/closing", json={"on": "2026-07-01"})
    assert closed.json()["code"] == "not_permitted"


async def test_the_station_policy_is_put_and_inherited(town: Town):
    where = f"{V1}/units/{YEN_THANH}/policy"
    body = {"quiet": {"from": "21:30", "to": "05:00"}, "max_minutes_per_day": 120}
    put = await town.admin.put(where, json=body)
    assert put.status_code == 200
    below = (await town.tech.get(f"{V1}/units/{HAMLET}/policy")).json()
    assert (below["from_unit_id"], below["body"]["quiet"]) == (YEN_THANH, {"from": "21:30", "to": "05:00"})
    wrong = await town.admin.put(where, json={"quiet": {"from": "9pm", "to": "05:00"}})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "quiet.from")
    refused = await town.tech.put(where, json=body)
    assert refused.json()["code"] == "not_permitted"
    assert (await town.admin.delete(where)).json()["from_unit_id"] is None


async def test_vietnam_is_imported_over_http_by_who_keeps_the_country(town: Town):
    assert (await town.admin.post(f"{V1}/units/import")).status_code == 404
    keeper = await a_token_of(town.desk, await somebody(town.desk, Role.ADMIN, COUNTRY))
    async with a_client(town.desk, token=keeper) as client:
        told = (await client.post(f"{V1}/units/import")).json()
        assert (told["provinces"], told["communes"]) == (34, 3_321)
        communes = (await client.get(f"{V1}/units", params={"parent_id": "01", "limit": 200})).json()
        assert len(communes["items"]) == 126


# -- clusters and groups ----------------------------------------------------------------------------------------------


async def test_a_cluster_is_entered_tuned_and_taken_out_of_service(town: Town):
    form = {"unit_id": HAMLET, "name": "Loa đình làng", "latitude": 18.99, "longitude": 105.4}
    made = await town.tech.post(f"{V1}/clusters", json=form)
    assert made.status_code == 201
    where = f"{V1}/clusters/{made.json()['id']}"
    config = {
        "volume": [{"from_minute": 300, "gain_db": -6.0}],
        "delay_trim_ms": 40,
        "stagger_slot": 3,
        "quiet": [{"from": "11:30", "to": "13:00"}],
    }
    tuned = await town.tech.patch(where, json={"config": config}, headers={"If-Match": made.headers["etag"]})
    assert tuned.json()["config"] == config
    assert (await town.tech.patch(where, json={"config": config}, headers={"If-Match": '"1"'})).status_code == 412
    group = await town.tech.post(
        f"{V1}/groups", json={"unit_id": YEN_THANH, "name": "Vùng lũ", "cluster_ids": [made.json()["id"]]}
    )
    assert group.status_code == 201
    retired = await town.tech.delete(where)
    assert retired.json()["retired_at"] is not None
    assert (await town.tech.get(f"{V1}/clusters")).json()["items"] == []
    assert len((await town.tech.get(f"{V1}/clusters", params={"retired": True})).json()["items"]) == 1
    assert (await town.tech.get(f"{V1}/groups/{group.json()['id']}")).json()["cluster_ids"] == [made.json()["id"]]


async def test_the_same_request_twice_enters_one_cluster(town: Town):
    form, key = {"unit_id": HAMLET}, {"Idempotency-Key": "phone-7"}
    first = await town.tech.post(f"{V1}/clusters", json=form, headers=key)
    again = await town.tech.post(f"{V1}/clusters", json=form, headers=key)
    assert first.json() == again.json()
    assert len((await town.tech.get(f"{V1}/clusters")).json()["items"]) == 1


# -- enrolment --------------------------------------------------------------------------------------------------------


def a_box(token: str, number: int = 1, **more: str) -> dict[str, str]:
    return {"token": token, "public_key": f"{number:064x}", "hardware": "sim-1", "firmware": "0.1.0"} | more


async def test_a_box_enrols_with_the_installers_token_alone(town: Town):
    form = {"unit_id": YEN_THANH, "uses": 2, "activates": True}
    refused = await town.tech.post(f"{V1}/enrolment-tokens", json=form)
    assert (refused.status_code, refused.json()["code"]) == (403, "not_permitted")
    made = await town.admin.post(f"{V1}/enrolment-tokens", json=form)
    assert made.headers["cache-control"] == "no-store"
    token = made.json()["token"]
    told = await town.stranger.post(f"{V1}/nodes/enrol", json=a_box(token))
    assert told.status_code == 201
    assert told.headers["cache-control"] == "no-store"
    body = told.json()
    assert set(body) == {
        "node_id",
        "cluster_id",
        "state",
        "certificate",
        "broker",
        "username",
        "password",
        "root_public_key",
        "path",
        "assets_url",
        "asset_token",
        "server_time",
    }
    assert body["broker"] == {"host": "127.0.0.1", "port": 1883, "tls": False, "ca_pem": None}
    assert body["username"] == body["node_id"]
    assert body["path"] == [YEN_THANH, PROVINCE, COUNTRY]
    assert body["server_time"] == "2026-06-01T09:00:00Z"
    (node,) = (await town.tech.get(f"{V1}/nodes")).json()["items"]
    assert (node["id"], node["cluster_name"], node["status"]) == (body["node_id"], "Cụm 01", None)
    replay = await town.stranger.post(f"{V1}/nodes/enrol", json=a_box(token))
    assert (replay.status_code, replay.json()["code"]) == (409, "node_already_enrolled")
    other = await town.stranger.post(f"{V1}/nodes/enrol", json=a_box(token, 2, cluster_code="C01"))
    assert other.json()["cluster_id"] == body["cluster_id"]
    spent = await town.stranger.post(f"{V1}/nodes/enrol", json=a_box(token, 3))
    assert (spent.status_code, spent.json()["code"]) == (403, "enrolment_token_spent")
    (left,) = (await town.tech.get(f"{V1}/nodes")).json()["items"]
    assert left["id"] == other.json()["node_id"]


async def test_a_box_that_sends_nonsense_is_told_the_field(town: Town):
    wrong = await town.stranger.post(f"{V1}/nodes/enrol", json=a_box("x") | {"public_key": "beef"})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "public_key")
    unknown = await town.stranger.post(f"{V1}/nodes/enrol", json=a_box("enr_guess"))
    assert (unknown.status_code, unknown.json()["code"]) == (403, "enrolment_token_unknown")
    assert unknown.json()["detail"] == "Mã đăng ký thiết bị không đúng."


async def test_a_token_is_listed_without_its_secret_and_voided(town: Town):
    made = (await town.tech.post(f"{V1}/enrolment-tokens", json={"unit_id": YEN_THANH})).json()
    (listed,) = (await town.tech.get(f"{V1}/enrolment-tokens", params={"unit_id": YEN_THANH})).json()
    assert listed == {key: value for key, value in made.items() if key != "token"}
    assert (await town.tech.delete(f"{V1}/enrolment-tokens/{made['id']}")).status_code == 204
    assert (await town.tech.get(f"{V1}/enrolment-tokens", params={"unit_id": YEN_THANH})).json() == []


async def test_a_node_is_ordered_and_retired(town: Town):
    token = (await town.tech.post(f"{V1}/enrolment-tokens", json={"unit_id": YEN_THANH})).json()["token"]
    node_id = (await town.stranger.post(f"{V1}/nodes/enrol", json=a_box(token))).json()["node_id"]
    ordered = await town.tech.post(f"{V1}/nodes/{node_id}/orders", json={"verb": "identify", "seconds": 3})
    assert (ordered.status_code, ordered.json()["state"]) == (202, "pending")
    assert len((await town.tech.get(f"{V1}/nodes/{node_id}/orders")).json()) == 1
    odd = await town.tech.post(f"{V1}/nodes/{node_id}/orders", json={"verb": "explode"})
    assert odd.json()["code"] == "not_a_choice"
    assert (await town.tech.delete(f"{V1}/nodes/{node_id}")).json()["retired_at"] is not None
    again = await town.tech.delete(f"{V1}/nodes/{node_id}")
    assert (again.status_code, again.json()["code"]) == (409, "node_retired")
    assert (await town.tech.get(f"{V1}/nodes", params={"within": QUYNH_LUU})).status_code == 404
