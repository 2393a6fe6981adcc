"""A provincial station over REST: a feed it pulls, one that is pushed, offers, carriers, obligations, people."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest_asyncio

from broadcast_server.api.router import create_api
from broadcast_server.control.desk import Desk
from broadcast_server.store.words import Role
from tests.support.api import a_client
from tests.support.desk import a_bare_desk
from tests.support.places import PROVINCE, QUYNH_LUU, YEN_THANH, a_country, a_token_of, somebody

V1 = "/api/v1"
RULE = {"kind": "weekly", "weekdays": ["mo", "tu", "we", "th", "fr", "sa", "su"], "times": ["06:00"]}


@dataclass
class Station:
    desk: Desk
    editor: httpx.AsyncClient
    """Owns the province's feeds."""
    lan: httpx.AsyncClient
    """Broadcaster of one commune."""


@pytest_asyncio.fixture
async def station() -> AsyncIterator[Station]:
    async with a_bare_desk() as desk:
        await a_country(desk)
        editor = await a_token_of(desk, await somebody(desk, Role.PROVINCE_EDITOR, PROVINCE))
        lan = await a_token_of(desk, await somebody(desk, Role.BROADCASTER, YEN_THANH))
        app = create_api(desk)
        async with a_client(desk, app=app, token=editor) as one, a_client(desk, app=app, token=lan) as two:
            yield Station(desk, one, two)


def pull(name: str = "Đài tỉnh (mô phỏng)") -> dict[str, str]:
    return {
        "unit_id": PROVINCE,
        "name": name,
        "tier": "province",
        "kind": "pull",
        "url": "http://127.0.0.1:9000/tinh.mp3",
    }


async def test_a_pulled_feed_is_owned_offered_and_seen_by_those_it_is_offered_to(station: Station):
    made = await station.editor.post(f"{V1}/feeds", json=pull())
    assert made.status_code == 201
    feed = made.json()
    assert (feed["credential"], feed["status"], feed["mount"]) == (None, None, None)
    assert (await station.lan.get(f"{V1}/feeds/{feed['id']}")).status_code == 404
    basis = {"unit_id": YEN_THANH, "basis": "Công văn 120/SVHTTDL"}
    offer = await station.editor.post(f"{V1}/feeds/{feed['id']}/offers", json=basis)
    assert offer.status_code == 201
    (seen,) = (await station.lan.get(f"{V1}/feeds", params={"offered_to": YEN_THANH})).json()["items"]
    assert (seen["id"], seen["url"]) == (feed["id"], None)  # an address can hold a key of the station's
    assert len((await station.lan.get(f"{V1}/feeds/{feed['id']}/offers")).json()) == 1
    withdrawn = await station.editor.post(f"{V1}/offers/{offer.json()['id']}/withdrawal")
    assert withdrawn.json()["withdrawn_at"] is not None
    assert (await station.lan.get(f"{V1}/feeds", params={"offered_to": YEN_THANH})).json()["items"] == []
    assert (await station.lan.post(f"{V1}/feeds", json=pull())).json()["code"] == "unknown_unit"


async def test_a_pushed_feed_tells_its_credential_once(station: Station):
    form = {"unit_id": PROVINCE, "name": "Đài đẩy (mô phỏng)", "tier": "province", "kind": "push"}
    key = {"Idempotency-Key": "k1"}
    made = await station.editor.post(f"{V1}/feeds", json=form, headers=key)
    assert made.headers["cache-control"] == "no-store"
    credential = made.json()["credential"]
    assert (credential["mount"], credential["user"], credential["port"]) == ("dai-day-mo-phong", "source", 8010)
    again = await station.editor.post(f"{V1}/feeds", json=form, headers=key)
    assert (again.status_code, again.json()["code"]) == (409, "answer_told_once")
    where = f"{V1}/feeds/{made.json()['id']}"
    rotated = await station.editor.post(f"{where}/rotation")
    assert rotated.json()["version"] == 2
    assert rotated.json()["password"] != credential["password"]
    assert "password" not in (await station.editor.get(where)).text
    revoked = await station.editor.post(f"{where}/revocation")
    assert revoked.json()["revoked_at"] is not None
    assert (await station.editor.post(f"{where}/rotation")).json()["code"] == "feed_revoked"


async def test_two_people_change_a_feed_and_the_slower_one_is_told(station: Station):
    made = await station.editor.post(f"{V1}/feeds", json=pull())
    where, seen = f"{V1}/feeds/{made.json()['id']}", {"If-Match": made.headers["etag"]}
    assert (await station.editor.patch(where, json={"name": "Một"}, headers=seen)).status_code == 200
    assert (await station.editor.patch(where, json={"name": "Hai"}, headers=seen)).status_code == 412


async def test_naive_times_wrong_addresses_and_unknown_fields_are_named(station: Station):
    naive = await station.editor.post(f"{V1}/feeds", json=pull() | {"valid_to": "2027-01-01T00:00:00"})
    assert (naive.json()["code"], naive.json()["field"]) == ("naive_time", "valid_to")
    odd = await station.editor.post(f"{V1}/feeds", json=pull() | {"url": "file:///etc/passwd"})
    assert (odd.status_code, odd.json()["field"]) == (422, "url")
    more = await station.editor.post(f"{V1}/feeds", json=pull() | {"volume": 11})
    assert (more.json()["code"], more.json()["field"]) == ("unknown_field", "volume")


async def test_an_obligation_is_laid_carried_turned_into_a_conflict_and_lifted(station: Station):
    feed_id = (await station.editor.post(f"{V1}/feeds", json=pull())).json()["id"]
    form = {
        "unit_id": PROVINCE,
        "content_kind": "feed",
        "content_id": feed_id,
        "rule": RULE,
        "length_ms": 1_800_000,
        "basis": "QĐ 05/UBND",
    }
    laid = await station.editor.post(f"{V1}/obligations", json=form)
    assert laid.status_code == 201
    (carrier,) = (await station.editor.get(f"{V1}/feeds/{feed_id}/carriers")).json()
    assert (carrier["required"], carrier["targets"]) == (True, [["unit", PROVINCE]])
    (mine,) = (await station.lan.get(f"{V1}/obligations", params={"for_unit": YEN_THANH})).json()["items"]
    assert mine["is_in_force"]
    await station.editor.post(f"{V1}/feeds/{feed_id}/revocation")
    (conflict,) = (await station.editor.get(f"{V1}/conflicts", params={"feed_id": feed_id})).json()["items"]
    assert (conflict["kind"], conflict["affects_from"]) == ("feed_revoked", "2026-06-01T23:00:00Z")
    lifted = await station.editor.delete(f"{V1}/obligations/{laid.json()['id']}")
    assert lifted.json()["is_in_force"] is False
    assert (await station.editor.get(f"{V1}/conflicts")).json()["items"] == []
    assert (await station.lan.post(f"{V1}/obligations", json=form)).status_code == 404
    naive = await station.editor.post(f"{V1}/obligations", json=form | {"rule": {"kind": "weekly"}})
    assert naive.status_code == 422


# -- people -----------------------------------------------------------------------------------------------------------


async def test_a_head_enters_a_colleague_who_gets_a_token_and_works(station: Station):
    head = await a_token_of(station.desk, await somebody(station.desk, Role.COMMUNE_HEAD, YEN_THANH))
    async with a_client(station.desk, token=head) as client:
        form = {"login": "tuan", "name": "Tuấn", "grant": {"role": "broadcaster", "unit_id": YEN_THANH}}
        made = await client.post(f"{V1}/users", json=form)
        assert made.status_code == 201
        user_id = made.json()["id"]
        token = await client.post(f"{V1}/users/{user_id}/tokens", json={"name": "điện thoại"})
        assert token.headers["cache-control"] == "no-store"
        async with a_client(station.desk, token=token.json()["token"]) as tuan:
            me = (await tuan.get(f"{V1}/users/me")).json()
            assert (me["login"], [grant["role"] for grant in me["grants"]]) == ("tuan", ["broadcaster"])
            (listed,) = (await tuan.get(f"{V1}/users/{user_id}/tokens")).json()
            assert "token" not in listed
            assert (await tuan.get(f"{V1}/users")).json()["items"] == []
            assert (await client.delete(f"{V1}/users/{user_id}")).json()["disabled_at"] is not None
            assert (await tuan.get(f"{V1}/users/me")).status_code == 401
        mighty = {"role": "admin", "unit_id": YEN_THANH}
        refused = await client.post(f"{V1}/users/{user_id}/grants", json=mighty)
        assert (refused.status_code, refused.json()["code"]) == (403, "role_not_yours_to_give")
        elsewhere = {"login": "x", "name": "X", "grant": {"role": "broadcaster", "unit_id": QUYNH_LUU}}
        assert (await client.post(f"{V1}/users", json=elsewhere)).json()["code"] == "unknown_unit"
        listed = (await client.get(f"{V1}/users", params={"limit": 2})).json()
        assert listed["next"] is not None
