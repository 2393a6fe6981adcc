"""Reading the audit log over HTTP: one's own places, the newest first, and nothing of one's neighbours."""

from __future__ import annotations

from broadcast_server.control import places
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.places import NewUnit
from broadcast_server.store.words import Role
from tests.support.api import a_client
from tests.support.desk import a_bare_desk
from tests.support.places import PROVINCE, QUYNH_LUU, YEN_THANH, a_country, a_token_of, somebody


async def test_an_inspector_reads_who_did_what_at_the_own_place_and_not_next_door():
    async with a_bare_desk() as desk:
        await a_country(desk)
        inspector = await somebody(desk, Role.INSPECTOR, YEN_THANH)
        await places.create_unit(desk, OPERATOR, NewUnit("hamlet", "Xóm Mới", YEN_THANH, "17506-02"))
        await places.create_unit(desk, OPERATOR, NewUnit("hamlet", "Xóm Bên", QUYNH_LUU, "17179-01"))
        async with a_client(desk, token=await a_token_of(desk, inspector)) as client:
            everything = (await client.get("/api/v1/audit")).json()["items"]
            first = (await client.get("/api/v1/audit", params={"limit": 1})).json()
            rest = (await client.get("/api/v1/audit", params={"cursor": first["next"]})).json()["items"]
            places_only = (await client.get("/api/v1/audit", params={"verb": "place."})).json()["items"]
            next_door = await client.get("/api/v1/audit", params={"unit_id": QUYNH_LUU})
            above = await client.get("/api/v1/audit", params={"unit_id": PROVINCE})

    sequences = [row["sequence"] for row in everything]
    assert sequences == sorted(sequences, reverse=True)
    assert {row["unit_id"] for row in everything} <= {YEN_THANH, "17506-01", "17506-02"}
    assert [first["items"][0], *rest] == everything
    assert {row["subject"] for row in places_only} >= {"unit/17506-02"}
    assert "17179" not in str(everything)
    assert next_door.is_error
    assert above.is_error


async def test_a_broadcaster_has_no_log_to_read_and_a_wrong_cursor_is_named():
    async with a_bare_desk() as desk:
        await a_country(desk)
        broadcaster = await somebody(desk, Role.BROADCASTER, YEN_THANH)
        leader = await somebody(desk, Role.LEADER, YEN_THANH)
        async with a_client(desk, token=await a_token_of(desk, broadcaster)) as client:
            assert (await client.get("/api/v1/audit", params={"unit_id": YEN_THANH})).status_code == 403
            assert (await client.get("/api/v1/audit")).json()["items"] == []
        async with a_client(desk, token=await a_token_of(desk, leader)) as client:
            answer = await client.get("/api/v1/audit", params={"cursor": "YWJj"})
            assert (answer.status_code, answer.json()["code"]) == (422, "cursor_invalid")
