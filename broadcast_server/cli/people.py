"""`broadcast-server user …` and `broadcast-server token …`: who may do what where, and the keys to the API."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import typer

from broadcast_server.cli.office import run, tell
from broadcast_server.control import people, sign_in
from broadcast_server.control.access import OPERATOR, Action, TokenScope
from broadcast_server.control.desk import Desk
from broadcast_server.control.people import NewGrant, UserView
from broadcast_server.store.words import Role

users = typer.Typer(no_args_is_help=True, help="People and their roles.")
tokens = typer.Typer(no_args_is_help=True, help="Bearer tokens for the API.")

Json = Annotated[bool, typer.Option("--json", help="for machines")]


@users.command("add")
def add_user(
    login: str,
    name: Annotated[str, typer.Option(help="full name")] = "",
    role: Annotated[Role | None, typer.Option(help="first role")] = None,
    unit: Annotated[str | None, typer.Option(help="unit the role is over, with all below it")] = None,
    as_json: Json = False,
) -> None:
    """Enter a person, with a first role over a place if given."""
    if (role is None) != (unit is None):
        raise typer.BadParameter("--role and --unit go together")
    grant = None if role is None or unit is None else NewGrant(role, unit)
    tell(_user(run(lambda desk: people.add_user(desk, OPERATOR, login, name or login, grant))), as_json=as_json)


@users.command("first-administrator")
def first_administrator(
    login: str,
    name: Annotated[str, typer.Option(help="full name")] = "",
    unit: Annotated[list[str] | None, typer.Option(help="over this place; every root if left out")] = None,
    as_json: Json = False,
) -> None:
    """Enter the first administrator and print the first password, once. Refused once there is one."""
    made = run(lambda desk: people.first_administrator(desk, OPERATOR, login, name or login, unit or ()))
    _tell_first(_user(made.view), made.first_password, as_json=as_json)


@users.command("reset-password")
def reset_password(login: str, as_json: Json = False) -> None:
    """Print a first password for somebody, once: it must be changed within seven days. Their sign-ins end."""

    async def errand(desk: Desk) -> tuple[UserView, str]:
        view = await people.user_of_login(desk, OPERATOR, login)
        return view, await people.reset_password(desk, OPERATOR, view.user.id)

    view, first = run(errand)
    _tell_first(_user(view), first, as_json=as_json)


@users.command("reset-totp")
def reset_totp(login: str, as_json: Json = False) -> None:
    """The phone is lost: one-time codes are set up anew at the next log-in. Sign-ins end."""

    async def errand(desk: Desk) -> UserView:
        user = (await people.user_of_login(desk, OPERATOR, login)).user
        return await people.reset_totp(desk, OPERATOR, user.id)

    tell(_user(run(errand)), as_json=as_json)


@users.command("sign-ins")
def list_sign_ins(login: str, as_json: Json = False) -> None:
    """Where somebody is signed in, newest first."""

    async def errand(desk: Desk) -> list[dict[str, Any]]:
        user = (await people.user_of_login(desk, OPERATOR, login)).user
        rows = await sign_in.list_sign_ins(desk, OPERATOR, user.id)
        return [
            {
                "id": row.id,
                "address": row.address,
                "agent": row.agent,
                "created_at": row.created_at,
                "seen_at": row.seen_at,
                "ends_at": row.ends_at,
            }
            for row in rows
        ]

    tell(run(errand), as_json=as_json)


@users.command("end-sign-ins")
def end_sign_ins(
    login: str,
    sign_in_id: Annotated[str | None, typer.Option("--id", help="only this one")] = None,
    as_json: Json = False,
) -> None:
    """Log somebody out everywhere."""

    async def errand(desk: Desk) -> int:
        user = (await people.user_of_login(desk, OPERATOR, login)).user
        if sign_in_id is None:
            return await sign_in.end_sign_ins(desk, OPERATOR, user.id)
        await sign_in.end_sign_in(desk, OPERATOR, user.id, sign_in_id)
        return 1

    tell({"ended": run(errand)}, as_json=as_json)


@users.command("list")
def list_users(as_json: Json = False) -> None:
    """Everybody, with the roles they hold or held."""

    async def errand(desk: Desk) -> list[UserView]:
        found: list[UserView] = []
        while page := await people.list_users(desk, OPERATOR, after=found[-1].user.login if found else None):
            found += page
        return found

    tell([_user(view) for view in run(errand)], as_json=as_json)


@users.command("grant")
def grant_role(login: str, role: Role, unit: str, as_json: Json = False) -> None:
    """Give a person a role over a unit and all below it."""

    async def errand(desk: Desk) -> dict[str, Any]:
        user = (await people.user_of_login(desk, OPERATOR, login)).user
        row = await people.grant_role(desk, OPERATOR, user.id, NewGrant(role, unit))
        return {"id": row.id, "login": login, "role": row.role.value, "unit_id": row.unit_id}

    tell(run(errand), as_json=as_json)


@users.command("disable")
def disable_user(login: str, as_json: Json = False) -> None:
    """Lock a person out at once."""

    async def errand(desk: Desk) -> UserView:
        user = (await people.user_of_login(desk, OPERATOR, login)).user
        return await people.disable_user(desk, OPERATOR, user.id)

    tell(_user(run(errand)), as_json=as_json)


@tokens.command("create")
def create_token(
    login: Annotated[str, typer.Argument(metavar="USER")],
    name: Annotated[str, typer.Option(help="what it is for")] = "command line",
    days: Annotated[int, typer.Option(min=1, max=366, help="ends after so many days")] = 90,
    action: Annotated[list[Action] | None, typer.Option(help="limited to this action; may be given again")] = None,
    unit: Annotated[list[str] | None, typer.Option(help="limited to this place; may be given again")] = None,
    as_json: Json = False,
) -> None:
    """Print a bearer token of this person, once."""

    async def errand(desk: Desk) -> dict[str, Any]:
        user = (await people.user_of_login(desk, OPERATOR, login)).user
        scope = TokenScope(frozenset(action) if action else None, frozenset(unit) if unit else None)
        made = await people.create_token(
            desk,
            OPERATOR,
            user.id,
            name,
            valid_for=timedelta(days=days),
            scope=scope if action or unit else None,
        )
        return {"id": made.token.id, "login": login, "token": made.secret, "expires_at": made.token.expires_at}

    told = run(errand)
    tell(told if as_json else told["token"], as_json=as_json)


@tokens.command("list")
def list_tokens(login: Annotated[str, typer.Argument(metavar="USER")], as_json: Json = False) -> None:
    """A person's tokens, newest first; secrets are not among them."""

    async def errand(desk: Desk) -> list[dict[str, Any]]:
        user = (await people.user_of_login(desk, OPERATOR, login)).user
        rows = await people.list_tokens(desk, OPERATOR, user.id)
        return [
            {
                "id": row.id,
                "name": row.name,
                "scope": row.scope,
                "expires_at": row.expires_at,
                "revoked_at": row.revoked_at,
            }
            for row in rows
        ]

    tell(run(errand), as_json=as_json)


@tokens.command("revoke")
def revoke_token(
    login: Annotated[str, typer.Argument(metavar="USER")],
    token_id: Annotated[str, typer.Argument(metavar="ID")],
    as_json: Json = False,
) -> None:
    """Make a token worthless at once."""

    async def errand(desk: Desk) -> dict[str, Any]:
        user = (await people.user_of_login(desk, OPERATOR, login)).user
        row = await people.revoke_token(desk, OPERATOR, user.id, token_id)
        return {"id": row.id, "name": row.name, "revoked_at": row.revoked_at}

    tell(run(errand), as_json=as_json)


def _tell_first(user: dict[str, Any], first: str, *, as_json: bool) -> None:
    if as_json:
        tell({**user, "first_password": first}, as_json=True)
        return
    login = user["login"]
    typer.echo(f"Mật khẩu lần đầu của {login}, chỉ hiện một lần, phải đổi trong 7 ngày:", err=True)
    typer.echo(f"First password of {login}, shown once, to be changed within 7 days:", err=True)
    typer.echo(first)


def _user(view: UserView) -> dict[str, Any]:
    return {
        "id": view.user.id,
        "login": view.user.login,
        "name": view.user.name,
        "disabled_at": view.user.disabled_at,
        "grants": [
            {"id": one.id, "role": one.role.value, "unit_id": one.unit_id, "valid_to": one.valid_to}
            for one in view.grants
        ],
    }
