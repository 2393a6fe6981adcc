"""The API against its own description: what schemathesis makes up is answered as described, never with 500.

Few examples, the same ones each time, in process; they are sent by somebody who may do everything in one province, so
that they get past the door.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from broadcast_server.api.router import create_api
from broadcast_server.store.session import Session
from broadcast_server.store.tables import GrantRow, UnitKindRow, UnitRow, UserRow
from broadcast_server.store.words import Role
from tests.support.api import ORIGIN, a_client, a_token
from tests.support.desk import a_bare_desk

NOON = datetime(2026, 6, 1, 5, 0, tzinfo=UTC)
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


LIGHTLY = settings(
    max_examples=5,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


def everything(session: Session) -> None:
    """The one user may do all there is in one province."""
    session.add(UnitKindRow(code="province", name_vi="Tỉnh", name_en="Province"))
    session.flush()
    session.add(UnitRow(id="40", kind="province", name="Nghệ An", name_folded="nghe an", created_at=NOON))
    session.flush()
    user = session.query(UserRow).one()
    for role in Role:
        session.add(GrantRow(id=role.value, user_id=user.id, role=role, unit_id="40", valid_from=NOON, valid_to=None))


def cases_of(app: FastAPI) -> Iterator[Case]:
    """A few requests for each operation, the same ones each time."""
    schema = schemathesis.openapi.from_dict(app.openapi())
    for found in schema.get_all_operations():
        yield from drawn(found.ok().as_strategy())


def drawn(strategy: SearchStrategy[Case]) -> list[Case]:
    made: list[Case] = []
    LIGHTLY(given(case=strategy)(lambda case: made.append(case)))()  # noqa: PLW0108 - given() asks for a function
    return made


async def test_what_is_described_is_what_is_answered():
    wrong = []
    async with a_bare_desk() as desk:
        app = create_api(desk)
        async with a_client(desk, app=app, token=await a_token(desk)) as client:
            await desk.store.begin(everything)
            for case in cases_of(app):
                asked = requests.Request(**case.as_transport_kwargs(base_url=ORIGIN)).prepare()
                headers = {name: value for name, value in asked.headers.items() if name != "Authorization"}
                answer = await client.request(
                    asked.method or "GET", asked.url or ORIGIN, headers=headers, content=asked.body
                )
                # Here is no engine room: what needs it says 503, which is an answer and not an accident.
                checks = CHECKS if answer.status_code != 503 else [c for c in CHECKS if c is not not_a_server_error]
                try:
                    case.validate_response(answer, checks=checks)
                except FailureGroup as failures:
                    wrong += [f"{case.method} {case.path}: {each}\n{answer.text[:300]}" for each in failures.exceptions]

    assert not wrong, "\n\n".join(wrong)
