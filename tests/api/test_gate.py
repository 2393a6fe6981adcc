"""The gate: an address that does not say what it asks does not come into being."""

import httpx
import pytest
from fastapi import APIRouter, FastAPI, WebSocket

from broadcast_server.api import gate
from broadcast_server.api.deps import ActorDep
from broadcast_server.api.front import Front
from broadcast_server.api.gate import Entry, Router, UndeclaredError, asks, public, signed_in
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.openapi import description
from broadcast_server.api.router import create_api, route_table
from broadcast_server.control.access import Action
from tests.support.api import ORIGIN, a_token, watched
from tests.support.desk import a_bare_desk


def test_a_route_without_a_declaration_fails_as_soon_as_its_module_is_read():
    router = Router(route_class=IdempotentRoute)

    with pytest.raises(UndeclaredError, match="declares no action"):

        @router.get("/units/{unit_id}/secrets")
        async def secrets(unit_id: str, actor: ActorDep) -> str:
            return unit_id + actor.login

    assert not router.routes


def test_a_web_socket_without_a_declaration_fails_too():
    router = Router()

    with pytest.raises(UndeclaredError, match="declares no action"):

        @router.websocket("/live/{session_id}/ear")
        async def ear(socket: WebSocket, session_id: str) -> None:
            await socket.send_text(session_id)

    assert not router.routes


def test_a_route_that_asks_for_an_action_must_ask_who_acts():
    router = Router()

    with pytest.raises(UndeclaredError, match="not who acts"):

        @router.delete("/units/{unit_id}")
        @asks(Action.PLACE_EDIT)
        async def remove(unit_id: str) -> str:
            return unit_id


@pytest.mark.parametrize("way", ["router", "route", "websocket", "mount"])
def test_nothing_comes_in_by_another_door(way: str):
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    plain = APIRouter()

    async def quiet() -> None:
        return None

    async def ear(socket: WebSocket) -> None:
        await socket.close()

    if way == "router":
        plain.add_api_route("/quiet", quiet)
        app.include_router(plain)
    elif way == "route":
        app.add_route("/quiet", quiet)
    elif way == "websocket":
        app.add_api_websocket_route("/ear", ear)
    else:
        app.mount("/quiet", FastAPI())

    with pytest.raises(UndeclaredError):
        gate.close(app)


def test_what_declares_itself_is_let_in():
    router = Router()

    @router.get("/alive")
    @public
    async def alive() -> bool:
        return True

    @router.get("/me")
    @signed_in
    async def me(actor: ActorDep) -> str:
        return actor.login

    assert [(told.path, told.door.entry) for told in gate.table([router])] == [
        ("/alive", Entry.PUBLIC),
        ("/me", Entry.ACCOUNT),
    ]


def test_nothing_under_api_v1_is_public_and_everything_is_described_with_what_it_asks():
    told = route_table()
    described = create_api(None).openapi()["paths"]  # type: ignore[arg-type] - describing calls no route

    assert len(told) > 100
    assert not [one.path for one in told if one.door.entry is Entry.PUBLIC]
    for one in told:
        if one.method != "WEBSOCKET":
            operation = described[one.path][one.method.lower()]
            assert operation["x-access"] == one.door.entry.value
            assert operation.get("x-action", []) == sorted(action.value for action in one.door.actions)
    assert "x-action" in description()


def test_only_what_machines_look_at_is_public():
    told = gate.close(create_api(None))  # type: ignore[arg-type] - nothing is called

    assert {one.path for one in told if one.door.entry is Entry.PUBLIC} == {"/healthz", "/readyz", "/metrics"}
    assert {one.path for one in told if one.door.entry is Entry.SECRET} == {
        "/assets/{sha256}",
        "/nodes/enrol",
        "/nodes/me/certificate",
        "/session",
    }


async def test_a_route_that_does_not_ask_what_it_declares_is_found_out():
    """What watches every test of the API sees a lie when there is one."""
    app = FastAPI()
    router = Router()

    @router.get("/policy")
    @asks(Action.POLICY_EDIT)
    async def policy(actor: ActorDep) -> str:
        return actor.login

    app.include_router(router)
    unasked: list[str] = []
    async with a_bare_desk() as desk:
        app.add_middleware(Front, state={"desk": desk}, allowed_hosts=["*"])
        secret = await a_token(desk)
        transport = httpx.ASGITransport(app=watched(app, unasked))
        async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:
            answer = await client.get("/policy", headers={"Authorization": f"Bearer {secret}"})

    assert answer.status_code == 200
    assert len(unasked) == 1
    assert "/policy" in unasked[0]
