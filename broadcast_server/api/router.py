"""The application of `/api/v1` and the three addresses machines ask: `/healthz`, `/readyz`, `/metrics`.

`create_api` is the one constructor; the composition root hands it what it needs and may mount the console beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from importlib.metadata import version
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Response
from fastapi.routing import APIRoute
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from broadcast_server.api import (
    approvals,
    assets,
    audit,
    break_glass,
    bulletins,
    clusters,
    conflicts,
    emergencies,
    enrolment,
    feed_rights,
    feeds,
    gate,
    live,
    nodes,
    obligations,
    people,
    plays,
    problems,
    programmes,
    readiness,
    relays,
    schedules,
    sendings,
    session,
    system,
    ties,
    units,
)
from broadcast_server.api.front import UPLOAD_LIMIT_BYTES, Front
from broadcast_server.api.gate import Router, RouteTold, public
from broadcast_server.control import signing_keys
from broadcast_server.control.desk import Desk
from broadcast_server.control.live import LiveIngest
from broadcast_server.control.relays import Monitor
from broadcast_server.domain.errors import Unavailable
from broadcast_server.store import system as rows

PREFIX: Final = "/api/v1"
LOCAL_HOSTS: Final = ("127.0.0.1", "localhost", "[::1]")

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class KeyEnding(BaseModel):
    """A kind of signing key: `authority`, `server`, `time` or `unit`."""

    role: str
    until: datetime


class Readiness(BaseModel):
    """Whether the server can do its work, part by part."""

    ready: bool
    parts: dict[str, bool]
    keys_ending: list[KeyEnding] = []
    """Signing keys that end soon and have no successor; the server is ready all the same."""


class Api(FastAPI):
    """FastAPI, describing problems under their own media type."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document; made once."""
        if self.openapi_schema is None:
            for operations in super().openapi()["paths"].values():
                for operation in operations.values():
                    told = operation.get("responses", {}).get("default", {}).get("content", {})
                    if "application/json" in told:
                        told[problems.MEDIA_TYPE] = told.pop("application/json")
        return super().openapi()


NOUNS: Final = (
    units,
    clusters,
    enrolment,
    nodes,
    feeds,
    feed_rights,
    conflicts,
    obligations,
    relays,
    session,
    people,
    bulletins,
    programmes,
    assets,
    schedules,
    sendings,
    ties,
    emergencies,
    break_glass,
    approvals,
    live,
    readiness,
    plays,
    audit,
    system,
)


def build_router() -> APIRouter:
    """Every noun under `/api/v1`."""
    router = APIRouter(prefix=PREFIX, responses=problems.RESPONSES)
    for noun in NOUNS:
        router.include_router(noun.router)
    return router


def route_table() -> list[RouteTold]:
    """Every address under `/api/v1` and what it asks. Raises `gate.UndeclaredError`."""
    return gate.table((noun.router for noun in NOUNS), PREFIX)


def create_api(
    desk: Desk,
    *,
    allowed_hosts: Collection[str] = LOCAL_HOSTS,
    parts: Callable[[], Mapping[str, bool]] = dict,
    registry: CollectorRegistry = REGISTRY,
    ingest: LiveIngest | None = None,
    monitor: Monitor | None = None,
    upload_limit_bytes: int = UPLOAD_LIMIT_BYTES,
    lifespan: Lifespan | None = None,
) -> FastAPI:
    """The HTTP application.

    `allowed_hosts`: host names this origin is reached by (`*`: any); `parts`: name of each part of the engine room and
    whether it is ready, for `/readyz`; `registry`: counters for `/metrics`; `ingest`: where live voices go in this
    process, `monitor`: who lets people listen in, if anywhere; `upload_limit_bytes`: largest body that is not JSON.
    """
    app = Api(
        title="Loa: control server of grassroots radio",
        version=version("loa"),
        summary="Truyền thanh cơ sở: what should sound, where and when, and the proof that it did.",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # the usual pages load scripts from a CDN
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
        separate_input_output_schemas=False,
    )
    problems.install(app)
    app.include_router(build_router())
    app.include_router(_machine_router(desk, parts, registry))
    gate.close(app)
    app.add_middleware(
        Front,
        state={"desk": desk, "live": ingest, "monitor": monitor},
        allowed_hosts=allowed_hosts,
        upload_limit_bytes=upload_limit_bytes,
    )
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _machine_router(desk: Desk, parts: Callable[[], Mapping[str, bool]], registry: CollectorRegistry) -> APIRouter:
    router = Router(include_in_schema=False)

    @router.get("/healthz")
    @public
    async def healthz() -> dict[str, bool]:
        """The process answers."""
        return {"alive": True}

    @router.get("/readyz")
    @public
    async def readyz(response: Response) -> Readiness:
        """The store answers and every part says it is ready; 503 otherwise."""
        told = {"store": await _store_answers(desk), **parts()}
        is_ready = all(told.values())
        response.status_code = 200 if is_ready else 503
        ending = await _ending_keys(desk) if told["store"] else []
        return Readiness(ready=is_ready, parts=told, keys_ending=ending)

    @router.get("/metrics")
    @public
    async def metrics() -> Response:
        """Counters in Prometheus's text form."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router


async def _ending_keys(desk: Desk) -> list[KeyEnding]:
    now = desk.clock.now()
    try:
        found = await desk.store.read(lambda session: signing_keys.ending(session, now))
    except Unavailable:
        return []
    return [KeyEnding(role=one.role, until=one.until) for one in found]


async def _store_answers(desk: Desk) -> bool:
    try:
        return await desk.store.read(rows.alive)
    except Unavailable:
        return False
