"""The description that other programs are written against: complete, unambiguous, and the one in the repository."""

import functools
import json
from typing import Any

from broadcast_server.api import openapi
from broadcast_server.api.problems import MEDIA_TYPE


@functools.cache
def described() -> dict[str, Any]:
    return json.loads(openapi.description())["paths"]


def test_the_description_in_the_repository_is_current():
    assert openapi.main(["--check"]) == 0, "run python -m broadcast_server.api.openapi"


def test_the_same_code_describes_itself_with_the_same_bytes():
    assert openapi.description() == openapi.description()


def test_every_operation_has_a_name_of_its_own_and_may_answer_with_a_problem():
    operations = [operation for operations in described().values() for operation in operations.values()]
    names = [operation["operationId"] for operation in operations]

    assert len(names) == len(set(names))
    for operation in operations:
        assert set(operation["responses"]["default"]["content"]) == {MEDIA_TYPE}, operation["operationId"]
        assert "422" not in operation["responses"], operation["operationId"]


def test_every_post_honours_the_request_key_except_where_it_asks_no_one_s_name():
    """Enrolment has a token of its own, settled by the device's key; a log-in belongs to nobody yet."""
    without = {
        path
        for path, operations in described().items()
        if "post" in operations
        and not any(each["name"] == "Idempotency-Key" for each in operations["post"].get("parameters", []))
    }

    assert without <= {"/api/v1/nodes/enrol", "/api/v1/nodes/me/certificate", "/api/v1/session"}


def test_what_grows_is_listed_by_pages():
    growing = {"units", "clusters", "nodes", "feeds", "users", "bulletins", "programmes", "schedules", "plays"}
    for path, operations in described().items():
        if path.rsplit("/", 1)[-1] in growing and "get" in operations:
            schema = operations["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            assert schema.get("$ref", "").split("/")[-1].startswith("Page_"), path
