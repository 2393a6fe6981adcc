"""A phone on a bad line presses "play now" three times: it sounds once."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest_asyncio
from fastapi import APIRouter, Response
from pydantic import BaseModel

from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.router import create_api
from broadcast_server.control.desk import Desk
from broadcast_server.domain.errors import Refused
from broadcast_server.store import idempotency
from broadcast_server.store.session import Session
from broadcast_server.store.tables import IdempotencyRow
from tests.support.api import a_client, a_token
from tests.support.clock import FakeClock
from tests.support.desk import a_bare_desk


class Order(BaseModel):
    name: str


class Station:
    """The routes under test, and how often each did its work."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.entered, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()
        self.is_closed = False
        self.router = APIRouter(prefix="/api/v1/trial", route_class=IdempotentRoute)
        self.router.add_api_route("/play", self.play, methods=["POST"], status_code=201)
        self.router.add_api_route("/secret", self.secret, methods=["POST"])
        self.router.add_api_route("/quiet", self.quiet, methods=["POST"], status_code=204)
        self.router.add_api_route("/play", self.look, methods=["GET"])

    async def play(self, order: Order, response: Response) -> dict[str, object]:
        self.entered.set()
        await self.go_on.wait()
        if self.is_closed:
            raise Refused("not_permitted", action="play_now", unit_id="x1")
        self.done.append(order.name)
        response.headers["Location"] = f"/api/v1/plays/{len(self.done)}"
        response.headers["ETag"] = '"1"'
        return {"number": len(self.done), "name": order.name}

    async def secret(self, response: Response) -> dict[str, str]:
        self.done.append("secret")
        response.headers["Cache-Control"] = "no-store"
        return {"password": "told once"}

    async def quiet(self) -> None:
        self.done.append("quiet")

    async def look(self) -> int:
        return len(self.done)


@pytest_asyncio.fixture
async def desk() -> AsyncIterator[Desk]:
    async with a_bare_desk() as opened:
        yield opened


@pytest_asyncio.fixture
async def station() -> Station:
    return Station()


@pytest_asyncio.fixture
async def client(desk: Desk, station: Station) -> AsyncIterator[httpx.AsyncClient]:
    app = create_api(desk)
    app.include_router(station.router)
    async with a_client(desk, app=app, token=await a_token(desk)) as opened:
        yield opened


PLAY = "/api/v1/trial/play"


async def press(client: httpx.AsyncClient, key: str = "k1", name: str = "Bản tin sáng") -> httpx.Response:
    return await client.post(PLAY, json={"name": name}, headers={"Idempotency-Key": key})


async def test_three_presses_are_one_broadcast_and_three_equal_answers(client: httpx.AsyncClient, station: Station):
    answers = [await press(client) for _ in range(3)]

    assert station.done == ["Bản tin sáng"]
    assert {answer.status_code for answer in answers} == {201}
    assert {answer.text for answer in answers} == {answers[0].text}
    assert {(answer.headers["location"], answer.headers["etag"]) for answer in answers} == {("/api/v1/plays/1", '"1"')}
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", "true"]


async def test_without_a_key_each_press_counts(client: httpx.AsyncClient, station: Station):
    for _ in range(2):
        await client.post(PLAY, json={"name": "a"})

    assert len(station.done) == 2


async def test_the_same_key_for_something_else_is_refused(client: httpx.AsyncClient, station: Station):
    await press(client, name="a")
    other = await press(client, name="b")

    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert station.done == ["a"]


async def test_a_second_press_during_the_first_is_told_to_wait(client: httpx.AsyncClient, station: Station):
    station.go_on.clear()
    first = asyncio.create_task(press(client), name="first press")
    await station.entered.wait()
    second = await press(client)
    station.go_on.set()

    assert (second.status_code, second.json()["code"]) == (409, "request_in_progress")
    assert (await first).status_code == 201
    assert station.done == ["Bản tin sáng"]


async def test_a_refusal_is_not_kept_because_it_changed_nothing(client: httpx.AsyncClient, station: Station):
    station.is_closed = True
    assert (await press(client)).status_code == 403
    assert (await client.post(PLAY, json={}, headers={"Idempotency-Key": "k2"})).status_code == 422
    station.is_closed = False

    assert (await press(client)).status_code == 201
    assert (await press(client, key="k2")).status_code == 201


async def test_the_key_of_one_user_is_nothing_to_another(desk: Desk, client: httpx.AsyncClient, station: Station):
    await press(client)
    mai = await a_token(desk, "mai")
    await client.post(PLAY, json={"name": "b"}, headers={"Idempotency-Key": "k1", "Authorization": f"Bearer {mai}"})

    assert station.done == ["Bản tin sáng", "b"]


async def test_a_stranger_learns_nothing_from_a_key(client: httpx.AsyncClient):
    await press(client)
    answer = await client.post(
        PLAY, json={"name": "a"}, headers={"Idempotency-Key": "k1", "Authorization": "Bearer guess"}
    )

    assert (answer.status_code, answer.json()["code"]) == (401, "token_unknown")


async def test_a_secret_is_told_once_and_not_kept(desk: Desk, client: httpx.AsyncClient, station: Station):
    headers = {"Idempotency-Key": "k1"}
    first = await client.post("/api/v1/trial/secret", headers=headers)
    again = await client.post("/api/v1/trial/secret", headers=headers)

    assert first.json() == {"password": "told once"}
    assert (again.status_code, again.json()["code"]) == (409, "answer_told_once")
    assert station.done == ["secret"]
    kept = await desk.store.read(lambda session: [row.body for row in session.query(IdempotencyRow)])
    assert "told once" not in str(kept)


async def test_an_answer_without_a_body_is_repeated_too(client: httpx.AsyncClient, station: Station):
    answers = [await client.post("/api/v1/trial/quiet", headers={"Idempotency-Key": "k1"}) for _ in range(2)]

    assert [(answer.status_code, answer.content) for answer in answers] == [(204, b""), (204, b"")]
    assert station.done == ["quiet"]


async def test_a_key_that_is_no_key_is_refused(client: httpx.AsyncClient, station: Station):
    for key in ("", "k" * 121, "k\x7f"):
        answer = await press(client, key=key)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_invalid")
    assert station.done == []


async def test_after_a_crash_in_between_the_key_is_never_worked_on_again(
    desk: Desk, client: httpx.AsyncClient, station: Station
):
    """The process died after the claim: it may have played, so nobody plays it a second time unasked."""
    first = await press(client)
    assert first.status_code == 201

    def crash(session: Session) -> None:
        session.query(IdempotencyRow).update({"status": idempotency.CLAIMED, "body": {}})

    await desk.store.begin(crash)
    clock = desk.clock
    assert isinstance(clock, FakeClock)
    assert (await press(client)).json()["code"] == "request_in_progress"
    await clock.advance(idempotency.CLAIM_IS_YOUNG / timedelta(seconds=1) + 1)
    cut_off = await press(client)

    assert (cut_off.status_code, cut_off.json()["code"]) == (409, "outcome_unknown")
    assert len(station.done) == 1


async def test_answers_are_forgotten_after_a_day(desk: Desk, client: httpx.AsyncClient, station: Station):
    await press(client)
    clock = desk.clock
    assert isinstance(clock, FakeClock)
    await clock.advance(idempotency.KEPT / timedelta(seconds=1))

    assert await desk.store.begin(lambda session: idempotency.purge(session, clock.now())) == 1
    assert (await press(client)).status_code == 201
    assert len(station.done) == 2


def test_the_description_names_the_header():
    app = create_api(None)  # type: ignore[arg-type] - describing calls no route
    app.include_router(Station().router)
    operation = app.openapi()["paths"]["/api/v1/trial/play"]["post"]

    assert [parameter["name"] for parameter in operation["parameters"]] == ["Idempotency-Key"]
