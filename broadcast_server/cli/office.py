"""How a command does its errand: a desk on the server's own store, the operator as actor, errors as exit codes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import typer
from pydantic import ValidationError

from broadcast_server import app as composition
from broadcast_server import settings as settings_of
from broadcast_server.catalogue import sentence
from broadcast_server.control import people
from broadcast_server.control.access import OPERATOR, Actor
from broadcast_server.control.accounts import Proof
from broadcast_server.control.desk import Desk
from broadcast_server.domain.errors import BroadcastError
from broadcast_server.settings import Settings

T = TypeVar("T")

DONE, FAILED, USAGE, COULD_NOT_START = 0, 1, 2, 3


def load_settings() -> Settings:
    """The settings; nonsense ends the program with 3 and names the field."""
    try:
        return settings_of.load()
    except ValidationError as error:
        for problem in error.errors():
            name = "LOA_" + "__".join(str(part).upper() for part in problem["loc"])
            typer.echo(f"{name}: {problem['msg']}", err=True)
        raise SystemExit(COULD_NOT_START) from None


def run(errand: Callable[[Desk], Awaitable[T]]) -> T:
    """What the errand returns. A `BroadcastError` is told in Vietnamese on stderr and ends the program with 1."""

    async def at_the_desk() -> T:
        async with composition.office(load_settings()) as desk:
            return await errand(desk)

    try:
        return asyncio.run(at_the_desk())
    except BroadcastError as error:
        fail(error)


def fail(error: BroadcastError, code: int = FAILED) -> NoReturn:
    """Tell the error and end."""
    typer.echo(sentence(error.code, error.facts, "vi"), err=True)
    typer.echo(f"({error})", err=True)
    raise SystemExit(code)


async def person(desk: Desk, login: str) -> Actor:
    """The person of that login, who acts at this keyboard. Raises `NotFound`."""
    user = (await people.user_of_login(desk, OPERATOR, login)).user
    return Actor(user.id, user.login)


def ask_proof(login: str) -> Proof:
    """Password and one-time code, typed by the person; neither is shown, nor taken from the command line."""
    password = typer.prompt(f"Mật khẩu của {login} / password of {login}", hide_input=True, err=True)
    code = typer.prompt("Mã dùng một lần / one-time code", hide_input=True, err=True)
    return Proof(password, code)


def tell(value: Any, *, as_json: bool) -> None:
    """Print for machines or for people."""
    if as_json:
        json.dump(value, sys.stdout, ensure_ascii=False, indent=2, default=str)
        sys.stdout.write("\n")
        return
    rows = value if isinstance(value, list) else [value]
    for row in rows:
        typer.echo("  ".join(f"{name}={entry}" for name, entry in row.items()) if isinstance(row, dict) else str(row))
