"""What schemathesis makes up, sent by every role and by nobody: never 500, always as described, never past the door.

`LOA_FUZZ_CASES` (20 000) requests in process, the same ones each time: some for every operation, each sent in turn by
one of the roles, by somebody with a token nobody has, and by nobody. In every second one the made-up ids are replaced
by those of rows that are there, so that it gets past the look-up. Checked: no 5xx (503 is an answer where an engine
room would be needed), content type and schema of the answer as described, and 401 for whoever shows no token that is
good, on everything that does not say that it is public or carries a secret of its own. The store begins anew after
every operation's requests, so that what a good request did does not shape the next.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import httpx
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from benchmarks.permission_world import NOW, World, a_world
from benchmarks.permissions import TABLE_OF
from benchmarks.run import bar_of
from broadcast_server.api.gate import Entry
from broadcast_server.api.router import create_api, route_table
from broadcast_server.control.desk import Desk
from broadcast_server.store.people import secret_hash
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import Base, GrantRow, TokenRow, UserRow
from broadcast_server.store.words import Role
from broadcast_server.supervise import InlineExecutor, SystemChance
from tests.support.clock import FakeClock
from tests.support.studio import an_audio_room

ORIGIN: Final = "http://127.0.0.1"
CHECKS: Final = (not_a_server_error, content_type_conformance, response_schema_conformance)
NOBODY: Final = "nobody"
STRANGER: Final = "a token that nobody has"
_REAL: Final = {
    "unit_id": "units",
    "unit": "units",
    "within": "units",
    "parent_id": "units",
    "cluster": "clusters",
    "bulletin_id": "bulletins",
    "programme_id": "programmes",
    "feed_id": "feeds",
    "template_id": "emergency_templates",
    "content_id": "bulletins",
}
CALLERS: Final = (*(role.value for role in Role), NOBODY, STRANGER)


def run() -> dict[str, Any]:
    """See `benchmarks.run`."""
    return asyncio.run(measure(int(os.environ.get("LOA_FUZZ_CASES", "20000"))))


async def measure(cases: int, *, seed: int = 1) -> dict[str, Any]:
    """At least `cases` requests, as many for each operation."""
    began = time.monotonic()
    statuses: Counter[int] = Counter()
    sent: Counter[str] = Counter()
    found: dict[str, list[str]] = {"5xx": [], "schema": [], "bypass": []}
    async with _an_office() as office:
        operations = list(_operations(office.app))
        each = -(-cases // len(operations))
        turn = itertools.cycle(CALLERS)
        for name, drawn in ((name, _drawn(make, each, seed)) for name, make in operations):
            for number, case in enumerate(drawn):
                caller = next(turn)
                if number % 2:
                    office.make_real(case)
                answer = await office.send(case, caller)
                statuses[answer.status_code] += 1
                sent[caller] += 1
                _judge(found, office.must_know[name], name, caller, case, answer)
            office.anew()
    attempted = sum(statuses.values())
    violations = sum(len(each) for each in found.values())
    figures: dict[str, Any] = {
        "operations": len(operations),
        "callers": len(CALLERS),
        "attempted": attempted,
        "ok": attempted - violations,
        "violations": violations,
        "by_status": {str(status): count for status, count in sorted(statuses.items())},
        "cases_per_s": round(attempted / (time.monotonic() - began), 1),
        "first": [each[:400] for kind in found.values() for each in kind[:5]],
    }
    bars = [
        bar_of("cases", attempted, f">= {cases}", holds=attempted >= cases and len(sent) == len(CALLERS)),
        bar_of("answers of 5xx", len(found["5xx"]), 0, holds=not found["5xx"]),
        bar_of("answers not as described", len(found["schema"]), 0, holds=not found["schema"]),
        bar_of("strangers let past the door", len(found["bypass"]), 0, holds=not found["bypass"]),
    ]
    return {"name": "contract_fuzz", "figures": figures, "bars": bars}


def _judge(
    found: dict[str, list[str]], must_know: bool, name: str, caller: str, case: Case, answer: httpx.Response
) -> None:
    what = f"{name} as {caller}: {answer.status_code} {answer.text[:300]}"
    is_stranger = caller in {NOBODY, STRANGER}
    if is_stranger and must_know and answer.status_code not in {401, 413}:
        found["bypass"].append(what)
    if answer.status_code >= 500 and answer.status_code != 503:
        found["5xx"].append(what)
        return
    checks = [check for check in CHECKS if answer.status_code != 503 or check is not not_a_server_error]
    try:
        case.validate_response(answer, checks=checks)
    except FailureGroup as failures:
        found["schema"] += [f"{what}: {failure}" for failure in failures.exceptions]


def _operations(app: FastAPI) -> Iterator[tuple[str, Any]]:
    schema = schemathesis.openapi.from_dict(app.openapi())
    for result in schema.get_all_operations():
        operation = result.ok()
        yield f"{operation.method.upper()} {operation.path}", operation


def _drawn(operation: Any, count: int, seed: int) -> list[Case]:
    """So many requests for one operation, the same ones each time."""
    made: list[Case] = []
    lightly = settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    lightly(seeded(seed)(given(case=operation.as_strategy())(lambda case: made.append(case))))()  # noqa: PLW0108
    return list(itertools.islice(itertools.cycle(made), count))  # a small operation has fewer different ones


class _Office:
    """One application on a store in memory with a country, and somebody of each role in it."""

    def __init__(self, store: Store, app: FastAPI, client: httpx.AsyncClient, world: World) -> None:
        self.app, self._client, self._world = app, client, world
        self._raw: Any = store.engine.raw_connection().driver_connection
        self._planted: bytes = self._raw.serialize()
        self.must_know = {
            f"{told.method} {told.path}": told.door.entry in {Entry.ACCOUNT, Entry.ACTION} for told in route_table()
        }

    def anew(self) -> None:
        """As it was planted."""
        self._raw.deserialize(self._planted)

    def make_real(self, case: Case) -> None:
        """Let it speak of rows that are there."""
        rows = self._world.rows["own"]
        case.path_parameters = {
            name: rows.get(TABLE_OF.get(name, ""), value) for name, value in (case.path_parameters or {}).items()
        }
        for part in (case.query, case.body):
            if isinstance(part, dict):
                for name in part.keys() & _REAL.keys():
                    part[name] = rows[_REAL[name]]

    async def send(self, case: Case, caller: str) -> httpx.Response:
        """The request as made up, but for who sends it."""
        asked = requests.Request(**case.as_transport_kwargs(base_url=ORIGIN)).prepare()
        headers = {
            name: value for name, value in asked.headers.items() if name.lower() not in {"authorization", "cookie"}
        }
        if caller != NOBODY:
            headers["Authorization"] = f"Bearer loa_{caller.replace(' ', '_')}"
        return await self._client.request(
            asked.method or "GET", asked.url or ORIGIN, headers=headers, content=cast("bytes | None", asked.body)
        )


@asynccontextmanager
async def _an_office() -> AsyncGenerator[_Office, None]:
    clock, chance, executor = FakeClock(NOW), SystemChance(), InlineExecutor()
    store = Store("sqlite://", clock=clock, chance=chance, executor=executor)
    Base.metadata.create_all(store.engine)

    def plant(session: Session) -> World:
        world = a_world(session, 1, Role.ADMIN, begins=-(NOW - NOW), ends=None)
        for role in Role:
            user = UserRow(id=role.value, login=role.value, name=role.value, created_at=NOW)
            session.add(user)
            session.flush()
            secret = secret_hash(f"loa_{role.value}")
            session.add(TokenRow(id=role.value, user_id=role.value, secret_hash=secret, name="máy", created_at=NOW))
            session.add(
                GrantRow(id=role.value, user_id=role.value, role=role, unit_id=world.units["own"], valid_from=NOW)
            )
        return world

    try:
        world = await store.begin(plant, ring=False)
        with tempfile.TemporaryDirectory(prefix="loa-fuzz-") as folder:
            async with an_audio_room(Path(folder), speaker=None) as room:
                app = create_api(Desk(store=store, clock=clock, chance=chance, executor=executor, audio=room))
                transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
                async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:
                    yield _Office(store, app, client, world)
    finally:
        await store.close()
