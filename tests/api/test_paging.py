"""A list is read page by page while others change it: nothing repeats, nothing hides."""

import httpx
from fastapi import APIRouter
from hypothesis import given
from hypothesis import strategies as st

from broadcast_server.api.paging import Page, PagingDep, decode, encode
from broadcast_server.api.router import create_api
from broadcast_server.domain.errors import Invalid
from tests.support.api import a_client
from tests.support.desk import a_bare_desk


def a_list_of(names: list[str]) -> APIRouter:
    router = APIRouter(prefix="/api/v1/trial")

    @router.get("")
    async def names_by_page(paging: PagingDep) -> Page[str]:
        rows = sorted(name for name in names if paging.after is None or name > paging.after)[: paging.fetch]
        return paging.page(rows, key=lambda row: row, item=str.upper)

    return router


async def walk(client: httpx.AsyncClient, limit: int) -> list[list[str]]:
    pages, cursor = [], None
    while True:
        params = {"limit": limit} | ({"cursor": cursor} if cursor else {})
        body = (await client.get("/api/v1/trial", params=params)).json()
        pages.append(body["items"])
        cursor = body["next"]
        if cursor is None:
            return pages


async def test_pages_join_to_the_whole_list():
    async with a_bare_desk() as desk:
        app = create_api(desk)
        app.include_router(a_list_of(["đa", "an", "bình", "châu", "em"]))
        async with a_client(desk, app=app) as client:
            assert await walk(client, 2) == [["AN", "BÌNH"], ["CHÂU", "EM"], ["ĐA"]]
            assert await walk(client, 5) == [["AN", "BÌNH", "CHÂU", "EM", "ĐA"]]


async def test_rows_that_come_and_go_neither_repeat_nor_hide_others():
    names = ["b", "d", "f", "h"]
    async with a_bare_desk() as desk:
        app = create_api(desk)
        app.include_router(a_list_of(names))
        async with a_client(desk, app=app) as client:
            first = (await client.get("/api/v1/trial", params={"limit": 2})).json()
            names.remove("d")
            names.extend(["a", "e"])
            second = (await client.get("/api/v1/trial", params={"limit": 2, "cursor": first["next"]})).json()

    assert (first["items"], second["items"]) == (["B", "D"], ["E", "F"])


async def test_a_cursor_that_is_not_ours_is_refused():
    async with a_bare_desk() as desk:
        app = create_api(desk)
        app.include_router(a_list_of(["a"]))
        async with a_client(desk, app=app) as client:
            for cursor in ("!!", "====", "", "YQ==", "AA"):
                answer = await client.get("/api/v1/trial", params={"cursor": cursor})
                assert (answer.status_code, answer.json()["code"]) == (422, "cursor_invalid"), cursor
            for limit in (0, 201, "all"):
                answer = await client.get("/api/v1/trial", params={"limit": limit})
                assert (answer.status_code, answer.json()["field"]) == (422, "limit")


@given(st.text(min_size=1).filter(lambda key: "\0" not in key))
def test_a_cursor_keeps_any_key(key: str):
    if any("\ud800" <= letter <= "\udfff" for letter in key):
        return
    assert decode(encode(key)) == key


@given(st.text())
def test_garbage_is_a_key_or_refused_never_an_accident(cursor: str):
    try:
        assert encode(decode(cursor)) == cursor
    except Invalid as refused:
        assert refused.code == "cursor_invalid"  # noqa: PT017 - most garbage is refused, some is a key
