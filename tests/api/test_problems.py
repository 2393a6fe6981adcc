"""A commune's script and a stranger meet every kind of refusal: one shape, two languages, nothing leaked."""

from collections.abc import AsyncIterator
from datetime import date
from enum import StrEnum
from typing import Annotated, Literal

import httpx
import pytest
import pytest_asyncio
from fastapi import APIRouter, Body, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from broadcast_server import catalogue
from broadcast_server.api.router import create_api
from broadcast_server.domain.errors import (
    BroadcastError,
    Conflict,
    Corrupt,
    Invalid,
    NotFound,
    Refused,
    Unavailable,
)
from tests.support.api import a_client
from tests.support.desk import a_bare_desk

KINDS = {
    "invalid": Invalid("cursor_invalid", field="cursor", fix="use_next_of_last_page"),
    "refused": Refused("not_permitted", action="schedule", unit_id="x1"),
    "not_found": NotFound("unknown_unit", unit_id="x1"),
    "conflict": Conflict("duplicate", what="users.login"),
    "unavailable": Unavailable("store_busy"),
    "corrupt": Corrupt("unknown_word", words="Role", value="emperor"),
    "stale": Conflict("version_changed", field="version", expected=1, actual=2),
    "nobody": Refused("token_unknown"),
}


class Colour(StrEnum):
    RED = "red"


class Item(BaseModel):
    times: list[AwareDatetime]


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid")
    at: AwareDatetime
    on: date | None = None
    name: str = Field(default="x", min_length=1, max_length=5)
    minutes: int = Field(default=1, ge=1, le=60)
    colour: Colour = Colour.RED
    mode: Literal["a", "b"] = "a"
    items: list[Item] = []

    @field_validator("name")
    @classmethod
    def not_bad(cls, value: str) -> str:
        if value == "bad":
            raise ValueError("no such name")
        return value


router = APIRouter(prefix="/api/v1/trial")


@router.get("/raise/{name}")
async def raise_it(name: str) -> None:
    raise KINDS[name]


@router.get("/bug")
async def bug() -> None:
    raise RuntimeError("postgresql://loa:s3cret@10.0.0.1/loa has fallen over")


@router.post("/form")
async def take(form: Form, limit: Annotated[int, Query(le=5)] = 1) -> None:
    assert form
    assert limit


@router.post("/raw")
async def raw(body: Annotated[bytes, Body()]) -> int:
    return len(body)


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with a_bare_desk() as desk:
        app = create_api(desk)
        app.include_router(router)
        async with a_client(desk, app=app) as opened:
            yield opened


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("invalid", 422),
        ("refused", 403),
        ("not_found", 404),
        ("conflict", 409),
        ("unavailable", 503),
        ("corrupt", 500),
        ("stale", 412),
        ("nobody", 401),
    ],
)
async def test_a_kind_of_error_is_one_status_and_one_shape(client: httpx.AsyncClient, name: str, status: int):
    answer = await client.get(f"/api/v1/trial/raise/{name}")

    error: BroadcastError = KINDS[name]
    body = answer.json()
    assert answer.status_code == body["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["code"] == error.code
    assert body["type"] == f"urn:loa:problem:{error.code}"
    assert body["instance"] == f"/api/v1/trial/raise/{name}"
    assert body["title"]
    assert body["detail"] != error.code
    assert body.get("field") == error.facts.get("field")


async def test_the_reader_is_answered_in_vietnamese_unless_english_is_asked_for(client: httpx.AsyncClient):
    path = "/api/v1/trial/raise/invalid"
    plain = await client.get(path)
    english = await client.get(path, headers={"Accept-Language": "en-GB,en;q=0.9,vi;q=0.5"})
    french = await client.get(path, headers={"Accept-Language": "fr-FR, fr;q=0.9"})

    assert plain.json()["detail"] == french.json()["detail"] == "Con trỏ trang không đúng."
    assert "Dùng giá trị next" in plain.json()["fix"]
    assert english.json()["detail"] == "The page cursor is not one of ours."
    assert (plain.headers["content-language"], english.headers["content-language"]) == ("vi", "en")


async def test_an_unforeseen_error_tells_the_log_and_not_the_world(
    client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
):
    answer = await client.get("/api/v1/trial/bug")

    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "s3cret" not in answer.text
    assert "RuntimeError" not in answer.text
    logged = capsys.readouterr().err
    assert "api.failed" in logged
    assert "s3cret" not in logged


GOOD = {"at": "2026-06-01T17:00:00+07:00"}


@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        ({"at": "2026-06-01T17:00:00"}, "at", "naive_time"),
        ({"items": [{"times": ["2026-06-01T17:00:00+07:00", "2026-06-01T17:00"]}]}, "items[0].times[1]", "naive_time"),
        ({"at": "giờ Ngọ"}, "at", "not_an_instant"),
        ({"at": None}, "at", "not_an_instant"),
        ({"on": "31/12/2026"}, "on", "not_a_date"),
        ({"name": "too long a name"}, "name", "too_long"),
        ({"name": ""}, "name", "too_short"),
        ({"name": "bad"}, "name", "input_invalid"),
        ({"minutes": 61}, "minutes", "out_of_range"),
        ({"minutes": "many"}, "minutes", "not_a_number"),
        ({"colour": "blue"}, "colour", "not_a_choice"),
        ({"mode": "c"}, "mode", "not_a_choice"),
        ({"colour": "red", "volume": 11}, "volume", "unknown_field"),
    ],
)
async def test_a_wrong_field_is_named(client: httpx.AsyncClient, change: dict[str, object], field: str, code: str):
    answer = await client.post("/api/v1/trial/form", json={**GOOD, **change})

    body = answer.json()
    assert (answer.status_code, body["code"], body["field"]) == (422, code, field)
    assert body["errors"][0] == {"field": field, "code": code, "detail": body["detail"]}
    assert catalogue.has_sentence(code)


async def test_a_naive_time_comes_with_the_way_out(client: httpx.AsyncClient):
    answer = await client.post("/api/v1/trial/form", json={"at": "2026-06-01T17:00:00"})

    assert "2026-06-01T17:00:00+07:00" in answer.json()["fix"]


async def test_all_faults_of_a_form_are_listed(client: httpx.AsyncClient):
    answer = await client.post("/api/v1/trial/form?limit=9", json={"minutes": 0, "name": ""})

    assert {fault["field"] for fault in answer.json()["errors"]} == {"limit", "at", "minutes", "name"}


async def test_what_is_not_json_is_said_to_be_so(client: httpx.AsyncClient):
    answer = await client.post("/api/v1/trial/form", content=b'{"at": ', headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.json()["code"]) == (422, "json_malformed")


async def test_the_frameworks_own_refusals_have_the_same_shape(client: httpx.AsyncClient):
    nothing = await client.get("/api/v1/trumpets")
    wrong_method = await client.delete("/healthz")

    assert (nothing.status_code, nothing.json()["code"]) == (404, "no_such_address")
    assert (wrong_method.status_code, wrong_method.json()["code"]) == (405, "method_not_allowed")
    assert wrong_method.headers["allow"] == "GET"
    assert nothing.headers["content-type"] == "application/problem+json"


async def test_a_body_that_never_ends_is_cut_off(client: httpx.AsyncClient):
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 100_000

    streamed = await client.post("/api/v1/trial/raw", content=endless(), headers={"Content-Type": "application/json"})
    declared = await client.post("/api/v1/trial/raw", content=b"x" * 4_000_000)

    assert (streamed.status_code, streamed.json()["code"]) == (413, "body_too_large")
    assert (declared.status_code, declared.json()["code"]) == (413, "body_too_large")


async def test_a_strangers_host_name_is_not_answered(client: httpx.AsyncClient):
    rebound = await client.get("/healthz", headers={"Host": "evil.example:8080"})
    own = await client.get("/healthz", headers={"Host": "localhost:8080"})
    own_v6 = await client.get("/healthz", headers={"Host": "[::1]:8080"})

    assert (rebound.status_code, rebound.json()["code"]) == (421, "host_unknown_here")
    assert own.status_code == own_v6.status_code == 200


async def test_every_answer_carries_the_security_headers(client: httpx.AsyncClient):
    for path in ("/healthz", "/api/v1/trumpets", "/api/v1/trial/bug"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
