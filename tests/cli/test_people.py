"""The first person is entered from the machine's own command line, and helped from there when all else is lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from broadcast_server.cli import people, places
from broadcast_server.cli.office import run
from broadcast_server.control import access
from broadcast_server.control.sign_in import LogIn, Must, log_in

Machine = Callable[..., Result]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Runs a command on a data folder of its own."""
    monkeypatch.setenv("LOA_DATA_DIR", str(tmp_path))
    runner = CliRunner()
    apps = {"place": places.app, "user": people.users, "token": people.tokens}
    return lambda noun, *arguments: runner.invoke(apps[noun], arguments)


def told(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_first_administrator_is_entered_once_with_a_password_told_once(machine: Machine):
    refused = machine("user", "first-administrator", "ha")
    assert (refused.exit_code, "no_place_yet" in refused.stderr) == (1, True)
    told(machine("place", "add", "Tỉnh Mô Phỏng", "--kind", "province", "--id", "40", "--json"))
    told(machine("place", "add", "Xã Mô Phỏng", "--id", "x1", "--parent", "40", "--json"))
    made = told(machine("user", "first-administrator", "ha", "--name", "Hà", "--json"))
    assert [(one["role"], one["unit_id"]) for one in made["grants"]] == [("admin", "40")]
    assert made["first_password"] not in machine("user", "list", "--json").stdout
    again = machine("user", "first-administrator", "hoa")
    assert (again.exit_code, "administrator_exists" in again.stderr) == (1, True)

    entered = run(lambda desk: log_in(desk, LogIn("ha", made["first_password"], "", "127.0.0.1", "Firefox")))
    assert entered.signed_in.must == (Must.PASSWORD, Must.TOTP)
    (row,) = told(machine("user", "sign-ins", "ha", "--json"))
    assert (row["address"], row["agent"]) == ("127.0.0.1", "Firefox")
    assert told(machine("user", "end-sign-ins", "ha", "--json")) == {"ended": 1}
    assert told(machine("user", "sign-ins", "ha", "--json")) == []


def test_a_lost_password_and_a_lost_phone_are_mended_at_the_machine(machine: Machine):
    told(machine("place", "add", "Xã Mô Phỏng", "--id", "x1", "--json"))
    told(machine("user", "add", "lan", "--role", "broadcaster", "--unit", "x1", "--json"))
    first = machine("user", "reset-password", "lan").stdout.strip()
    assert len(first) == 19
    second = told(machine("user", "reset-password", "lan", "--json"))["first_password"]
    assert second != first
    assert told(machine("user", "reset-totp", "lan", "--json"))["login"] == "lan"


def test_a_limited_token_is_made_at_the_machine(machine: Machine):
    told(machine("place", "add", "Xã Mô Phỏng", "--id", "x1", "--json"))
    told(machine("user", "add", "lan", "--role", "broadcaster", "--unit", "x1", "--json"))
    limited = ("--action", "read", "--action", "log_read", "--unit", "x1", "--days", "7", "--json")
    made = told(machine("token", "create", "lan", *limited))
    (row,) = told(machine("token", "list", "lan", "--json"))
    assert row["scope"] == {"actions": ["log_read", "read"], "units": ["x1"]}

    async def errand(desk: Any) -> access.Actor:
        actor: access.Actor = await desk.store.read(
            lambda session: access.actor_of_token(session, made["token"], desk.clock.now())
        )
        return actor

    limit = run(errand).token_scope
    assert limit == access.TokenScope(frozenset({access.Action.READ, access.Action.LOG_READ}), frozenset({"x1"}))
    assert machine("token", "create", "lan", "--days", "367").exit_code == 2
