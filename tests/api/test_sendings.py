"""Bulletins sent down over HTTP: what the sender and the commune read, and every refusal with field and fix."""

from __future__ import annotations

from speaker_protocol.rules import BulletinClass
from tests.api.test_schedules_api import API, an_office, give_token, told
from tests.support.api import a_client
from tests.support.village import DONG, HA, PROVINCE, TAY, at

DEADLINE = "2026-06-03T09:00:00+07:00"


def letter(bulletin: str, **more: object) -> dict[str, object]:
    return {"unit_id": PROVINCE, "bulletin_id": bulletin, "basis": "Công văn 12", "deadline": DEADLINE, **more}


async def test_a_bulletin_goes_down_and_its_fate_comes_back() -> None:
    async with an_office() as (village, commune):
        bulletin = await village.bulletin("Phòng cháy", unit=PROVINCE)
        token = await give_token(village, HA.user_id)
        async with a_client(village.desk, token=token) as province:
            answer = await province.post(f"{API}/sendings", json=letter(bulletin, below=PROVINCE))
            assert answer.status_code == 201, answer.text
            here = answer.headers["location"]
            assert [one["unit_id"] for one in answer.json()["arrivals"]] == [DONG, TAY]

            inbox = (await commune.get(f"{API}/arrivals", params={"unit": DONG, "state": "waiting"})).json()["items"]
            assert [one["title"] for one in inbox] == ["Phòng cháy"]
            place = f"{API}/arrivals/{inbox[0]['id']}"
            assert (await commune.post(f"{place}/receipt")).json()["received_by"] == "lan"
            body = {"starts": [at(17).isoformat()], "late": {"policy": "wait_at_most", "at_most_s": 600}}
            placed = (await commune.post(f"{place}/schedule", json=body)).json()
            assert placed["sounds_at"] == "2026-06-01T10:00:00Z"
            assert [one["start"] for one in placed["preview"]["stretches"]] == ["2026-06-01T10:00:00Z"]
            schedule = (await commune.get(f"{API}/schedules/{placed['schedule_id']}")).json()
            assert schedule["late"] == {"policy": "wait_at_most", "at_most_ms": 600_000}

            fate = (await province.get(here)).json()["arrivals"][0]
            assert (fate["state"], fate["decided_by"]) == ("planned", "lan")
            assert fate["sentence"] == 'Xã Đông sẽ phát "Phòng cháy" lúc 2026-06-01T17:00:00+07:00 (lan xếp).'
            back = await province.post(f"{here}/recall", json={"note": "Sai ngày"})
            assert {one["state"] for one in back.json()["arrivals"]} == {"recalled"}
            english = await province.get(here, headers={"accept-language": "en"})
            assert english.json()["arrivals"][0]["sentence"].startswith("“Phòng cháy” was recalled at Xã Đông")
            assert [one["id"] for one in (await province.get(f"{API}/sendings")).json()["items"]] == [
                fate["sending_id"]
            ]


async def test_a_refusal_needs_words_and_reaches_the_sender() -> None:
    async with an_office() as (village, commune):
        bulletin = await village.bulletin("Phòng cháy", unit=PROVINCE)
        token = await give_token(village, HA.user_id)
        async with a_client(village.desk, token=token) as province:
            sent = (await province.post(f"{API}/sendings", json=letter(bulletin, unit_ids=[DONG]))).json()
            place = f"{API}/arrivals/{sent['arrivals'][0]['id']}"
            assert (await commune.post(f"{place}/refusal", json={})).status_code == 422
            assert (await commune.post(f"{place}/refusal", json={"note": "Trùng lễ hội"})).json()["state"] == "refused"
            told(await commune.post(f"{place}/play", json={}), 409, "arrival_decided")
            fate = (await province.get(f"{API}/sendings/{sent['id']}")).json()["arrivals"][0]
            assert fate["sentence"] == 'Xã Đông không phát "Phòng cháy" (lan): Trùng lễ hội'


async def test_every_wrong_sending_names_field_and_fix() -> None:
    async with an_office(HA.user_id) as (village, client):
        bulletin = await village.bulletin("Tin", unit=PROVINCE)
        draft = await village.bulletin("Nháp", unit=PROVINCE, approved=False)
        cases = [
            (letter(bulletin, unit_ids=["nowhere"]), 422, "not_below", "unit_ids[0]"),
            (letter(bulletin), 422, "no_receiver", "unit_ids"),
            (letter(draft, unit_ids=[DONG]), 403, "not_approved", "bulletin_id"),
            (letter(bulletin, unit_ids=[DONG], deadline=at(8).isoformat()), 422, "past_time", "deadline"),
            (letter(bulletin, unit_ids=[DONG], earliest=at(9, day=4).isoformat()), 422, "empty_wish", "earliest"),
        ]
        for body, status, code, field in cases:
            problem = told(await client.post(f"{API}/sendings", json=body), status, code)
            assert problem["field"] == field
        told(await client.get(f"{API}/sendings/nothing"), 404, "unknown_sending")
        told(await client.get(f"{API}/arrivals/nothing"), 404, "unknown_arrival")


async def test_the_commune_reads_a_tie_and_orders_it() -> None:
    async with an_office() as (village, commune):
        token = await give_token(village, HA.user_id)
        async with a_client(village.desk, token=token) as province:
            for title in ("Một", "Hai"):
                bulletin = await village.bulletin(title, unit=PROVINCE, klass=BulletinClass.PRIORITY)
                body = letter(bulletin, unit_ids=[DONG], earliest=at(17).isoformat())
                assert (await province.post(f"{API}/sendings", json=body)).status_code == 201
        (tie,) = (await commune.get(f"{API}/ties", params={"unit": DONG, "state": "pending"})).json()["items"]
        assert tie["sentence"].endswith("chờ xã xếp thứ tự trước 2026-06-01T16:55:00+07:00; nếu không: Một → Hai.")
        body = {"entry_ids": tie["chosen"][::-1]}
        ordered = (await commune.post(f"{API}/ties/{tie['id']}/order", json=body)).json()
        assert (ordered["state"], ordered["decided_by"]) == ("decided", "lan")
        told(await commune.get(f"{API}/ties/nothing"), 404, "unknown_tie")
        problem = told(
            await commune.post(f"{API}/ties/{tie['id']}/order", json={"entry_ids": ["a@1", "b@2"]}),
            422,
            "order_incomplete",
        )
        assert problem["field"] == "entry_ids"
