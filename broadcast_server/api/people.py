"""People over HTTP: users, dated grants of a role over a subtree, bearer tokens."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import Response
from pydantic import Field, StringConstraints

from broadcast_server.api.deps import ActorDep, DeskDep
from broadcast_server.api.fields import Form, Id, IdPath, Instant, Name, Shown
from broadcast_server.api.gate import Router, asks, signed_in
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.control import people
from broadcast_server.control.access import Action, TokenScope
from broadcast_server.control.people import NewGrant, UserView
from broadcast_server.store.tables import GrantRow, TokenRow
from broadcast_server.store.words import Role

router = Router(tags=["people"], route_class=IdempotentRoute)


class GrantForm(Form):
    """A role over a unit and all below it, from now or `valid_from` on, until `valid_to`."""

    role: Role
    unit_id: Id
    valid_from: Instant | None = None
    valid_to: Instant | None = None

    def grant(self) -> NewGrant:
        """For the verb."""
        return NewGrant(self.role, self.unit_id, self.valid_from, self.valid_to)


class UserForm(Form):
    """A person with a first role."""

    login: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._@-]{0,59}$")]
    name: Name
    grant: GrantForm | None = None


class Grant(Shown):
    """A role over a subtree, dated."""

    id: str
    role: Role
    unit_id: str
    valid_from: datetime
    valid_to: datetime | None

    @classmethod
    def of(cls, row: GrantRow) -> Grant:
        """As callers see it."""
        return cls(id=row.id, role=row.role, unit_id=row.unit_id, valid_from=row.valid_from, valid_to=row.valid_to)


class User(Shown):
    """A person and every grant they have had."""

    id: str
    login: str
    name: str
    created_at: datetime
    disabled_at: datetime | None
    grants: list[Grant]

    @classmethod
    def of(cls, view: UserView) -> User:
        """As callers see it."""
        row = view.user
        return cls(
            id=row.id,
            login=row.login,
            name=row.name,
            created_at=row.created_at,
            disabled_at=row.disabled_at,
            grants=[Grant.of(one) for one in view.grants],
        )


@router.get("/users")
@asks(Action.PEOPLE_EDIT)
async def list_users(desk: DeskDep, actor: ActorDep, paging: PagingDep) -> Page[User]:
    """People by login, of the places where one keeps the people."""
    found = await people.list_users(desk, actor, after=paging.after, limit=paging.fetch)
    return paging.page(found, key=lambda view: view.user.login, item=User.of)


@router.post("/users", status_code=201)
@asks(Action.PEOPLE_EDIT)
async def add_user(desk: DeskDep, actor: ActorDep, form: UserForm, response: Response) -> User:
    """Enter a person with a first role."""
    grant = None if form.grant is None else form.grant.grant()
    made = await people.add_user(desk, actor, form.login, form.name, grant)
    response.headers["Location"] = f"/api/v1/users/{made.user.id}"
    return User.of(made)


@router.get("/users/me")
@signed_in
async def get_me(desk: DeskDep, actor: ActorDep) -> User:
    """Who this token is."""
    return User.of(await people.get_user(desk, actor, actor.user_id))


@router.get("/users/{user_id}")
@asks(Action.PEOPLE_EDIT, or_own=True)
async def get_user(desk: DeskDep, actor: ActorDep, user_id: IdPath) -> User:
    """One person."""
    return User.of(await people.get_user(desk, actor, user_id))


@router.delete("/users/{user_id}")
@asks(Action.PEOPLE_EDIT)
async def disable_user(desk: DeskDep, actor: ActorDep, user_id: IdPath) -> User:
    """Lock a person out at once."""
    return User.of(await people.disable_user(desk, actor, user_id))


@router.post("/users/{user_id}/grants", status_code=201)
@asks(Action.PEOPLE_EDIT)
async def grant_role(desk: DeskDep, actor: ActorDep, user_id: IdPath, form: GrantForm) -> Grant:
    """Give a role over a place and all below it."""
    return Grant.of(await people.grant_role(desk, actor, user_id, form.grant()))


@router.delete("/users/{user_id}/grants/{grant_id}")
@asks(Action.PEOPLE_EDIT)
async def end_grant(desk: DeskDep, actor: ActorDep, user_id: IdPath, grant_id: IdPath) -> Grant:
    """Take a role back from now on."""
    return Grant.of(await people.end_grant(desk, actor, user_id, grant_id))


# -- tokens -----------------------------------------------------------------------------------------------------------


class ScopeForm(Form):
    """What a token is limited to: these actions, these places with all below them, or both."""

    actions: Annotated[list[Action], Field(min_length=1, max_length=100)] | None = None
    units: Annotated[list[Id], Field(min_length=1, max_length=100)] | None = None

    def scope(self) -> TokenScope:
        """For the verb."""
        return TokenScope(
            None if self.actions is None else frozenset(self.actions),
            None if self.units is None else frozenset(self.units),
        )


class TokenForm(Form):
    """A token's name, so that its owner knows it again; it lasts 90 days if `valid_for_s` is left out."""

    name: Name = Field(examples=["máy tính phòng đài"])
    valid_for_s: Annotated[int, Field(ge=60, le=people.TOKEN_LASTS_MOST // timedelta(seconds=1))] = (
        people.TOKEN_LASTS // timedelta(seconds=1)
    )
    scope: ScopeForm | None = None


class Token(Shown):
    """A bearer token; what it is for, never what it is."""

    id: str
    name: str
    scope: dict[str, list[str]] | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, row: TokenRow) -> Token:
        """As callers see it."""
        return cls(
            id=row.id,
            name=row.name,
            scope=row.scope,
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
        )


class TokenMade(Token):
    """With its secret, which is told only here."""

    token: str


@router.get("/users/{user_id}/tokens")
@asks(Action.PEOPLE_EDIT, or_own=True)
async def list_tokens(desk: DeskDep, actor: ActorDep, user_id: IdPath) -> list[Token]:
    """A person's tokens, newest first."""
    return [Token.of(row) for row in await people.list_tokens(desk, actor, user_id)]


@router.post("/users/{user_id}/tokens", status_code=201)
@asks(Action.PEOPLE_EDIT, or_own=True)
async def create_token(
    desk: DeskDep, actor: ActorDep, user_id: IdPath, form: TokenForm, response: Response
) -> TokenMade:
    """Make a token for oneself, or for somebody all of whose roles one may give."""
    made = await people.create_token(
        desk,
        actor,
        user_id,
        form.name,
        valid_for=timedelta(seconds=form.valid_for_s),
        scope=None if form.scope is None else form.scope.scope(),
    )
    response.headers["Cache-Control"] = "no-store"
    return TokenMade(**Token.of(made.token).model_dump(), token=made.secret)


@router.delete("/users/{user_id}/tokens/{token_id}")
@asks(Action.PEOPLE_EDIT, or_own=True)
async def revoke_token(desk: DeskDep, actor: ActorDep, user_id: IdPath, token_id: IdPath) -> Token:
    """Make a token worthless at once."""
    return Token.of(await people.revoke_token(desk, actor, user_id, token_id))
