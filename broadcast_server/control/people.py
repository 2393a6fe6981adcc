"""Verbs on people: users, dated grants of a role over a subtree, bearer tokens.

A maintainer must not break: (1) nobody grants to oneself, nor a role or a place that is not theirs to give
(`access.MAY_GRANT`); (2) a token is a key to everything its owner may do, so only the owner, or somebody who may grant
each role the owner holds, makes one; (3) a token's secret leaves this module once.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from broadcast_server.control import access, hashing
from broadcast_server.control.access import Action, Actor, TokenScope
from broadcast_server.control.accounts import require_whole
from broadcast_server.control.desk import Desk
from broadcast_server.control.fleet import new_secret
from broadcast_server.control.places import clean_text
from broadcast_server.domain import delegation
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused
from broadcast_server.store import accounts, audit, people, places, sessions
from broadcast_server.store.people import secret_hash
from broadcast_server.store.session import Session
from broadcast_server.store.tables import GrantRow, Json, TokenRow, UserRow
from broadcast_server.store.words import Role

TOKEN_LASTS: Final = timedelta(days=90)
TOKEN_LASTS_MOST: Final = timedelta(days=366)
_LOGIN: Final = re.compile(r"[a-z0-9][a-z0-9._@-]{0,59}")


@dataclass(frozen=True, slots=True)
class NewGrant:
    """A role over a unit and all below it, from `valid_from` (None: now) to `valid_to` (None: open)."""

    role: Role
    unit_id: str
    valid_from: datetime | None = None
    valid_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class UserView:
    """A person and the grants they have had, oldest first: all of one's own, of others those at one's own places."""

    user: UserRow
    grants: tuple[GrantRow, ...]


@dataclass(frozen=True, slots=True)
class TokenMade:
    """A token with its secret, which is told only here."""

    token: TokenRow
    secret: str


@dataclass(frozen=True, slots=True)
class FirstAdministrator:
    """Who may enter everybody else, with the password for the first log-in, told only here."""

    view: UserView
    first_password: str = field(repr=False)


async def add_user(desk: Desk, actor: Actor, login: str, name: str, grant: NewGrant | None = None) -> UserView:
    """Enter a person, with a first grant unless the machine's operator adds one later.

    Raises `Invalid("login_invalid" | "grant_missing")`, `Conflict("login_taken")`, `Refused("role_not_yours_to_give")`.
    """
    now = desk.clock.now()
    user_id, grant_id = desk.chance.new_id(), desk.chance.new_id()
    kept = _clean(login, name)

    def work(session: Session) -> UserView:
        if grant is None and not actor.everywhere:
            raise Invalid("grant_missing", field="grant")
        row = UserRow(id=user_id, login=login, name=kept, created_at=now)
        _add(session, actor, row, None if grant is None else grant.unit_id)
        if grant is not None:
            _grant(session, actor, row, grant, grant_id, now)
        return _view(session, row)

    return await desk.store.begin(work)


async def grant_role(desk: Desk, actor: Actor, user_id: str, request: NewGrant) -> GrantRow:
    """Give a role. Raises `Refused("self_grant" | "role_not_yours_to_give" | "not_permitted")`."""
    now = desk.clock.now()
    grant_id = desk.chance.new_id()

    def work(session: Session) -> GrantRow:
        access.authorize(session, actor, Action.PEOPLE_EDIT, request.unit_id, at=now)  # before a user is looked for
        return _grant(session, actor, _user(session, user_id), request, grant_id, now)

    return await desk.store.begin(work)


async def end_grant(desk: Desk, actor: Actor, user_id: str, grant_id: str) -> GrantRow:
    """Take a role back from now on. Twice is once."""
    now = desk.clock.now()

    def work(session: Session) -> GrantRow:
        row = session.get(GrantRow, grant_id)
        if row is None or row.user_id != user_id:
            raise NotFound("unknown_grant", grant_id=grant_id)
        access.authorize(session, actor, Action.PEOPLE_EDIT, row, at=now)
        _may_give(session, actor, row.role, row.unit_id, now)
        if row.valid_to is None or row.valid_to > now:
            row.valid_to = now
            detail = {"role": row.role.value, "unit_id": row.unit_id}
            _audit(session, actor, "grant.end", row.unit_id, user_id, now, detail)
        return row

    return await desk.store.begin(work)


async def disable_user(desk: Desk, actor: Actor, user_id: str) -> UserView:
    """Lock a person out at once; sign-ins and tokens end. Twice is once."""
    now = desk.clock.now()

    def work(session: Session) -> UserView:
        row = _user(session, user_id)
        _may_manage(session, actor, row, now)
        if row.disabled_at is None:
            row.disabled_at = now
            sessions.end_all(session, row.id, now)
            _audit(session, actor, "user.disable", None, user_id, now, {})
        return _view_for(session, actor, row, now)

    return await desk.store.begin(work)


async def reset_password(desk: Desk, actor: Actor, user_id: str) -> str:
    """A first password for somebody, told once: its owner must change it within seven days, before anything else.

    All sign-ins of the person end. Raises `Refused`: `self_reset` for one's own account, and as `disable_user`.
    """
    first = first_password(desk)
    async with desk.hashing.turn(actor.user_id):
        hashed = await desk.executor.run(hashing.hash_of, first, desk.chance)

    def work(session: Session) -> str:
        now = desk.clock.now()
        row = _user_to_reset(session, actor, user_id, now)
        credential = accounts.credential_of(session, row.id)
        credential.password_hash, credential.password_set_at, credential.must_change = hashed, now, True
        ended = sessions.end_all(session, row.id, now)
        _audit(session, actor, "password.reset", None, row.id, now, {"sign_ins_ended": ended})
        return first

    return await desk.store.begin(work)


async def reset_totp(desk: Desk, actor: Actor, user_id: str) -> UserView:
    """Take somebody's one-time codes and recovery codes away (the phone is lost); sign-ins end. Twice is once.

    The person sets up new ones at the next log-in. Raises as `reset_password`.
    """

    def work(session: Session) -> UserView:
        now = desk.clock.now()
        row = _user_to_reset(session, actor, user_id, now)
        credential = accounts.credential_of(session, row.id)
        if credential.totp_secret is not None or credential.totp_pending is not None:
            credential.totp_secret = credential.totp_pending = None
            accounts.put_recovery_codes(session, row.id, ())
            ended = sessions.end_all(session, row.id, now)
            _audit(session, actor, "totp.reset", None, row.id, now, {"sign_ins_ended": ended})
        return _view(session, row)

    return await desk.store.begin(work)


async def first_administrator(
    desk: Desk, actor: Actor, login: str, name: str, unit_ids: Collection[str] = ()
) -> FirstAdministrator:
    """The first person who may enter others: an administrator over these units, or over every root; told once.

    For the machine's operator. Raises `Conflict("administrator_exists" | "no_place_yet" | "login_taken")`,
    `Refused("not_permitted")`, `NotFound("unknown_unit")`, and as `add_user`.
    """
    if not actor.everywhere:
        raise Refused("not_permitted", action=Action.PEOPLE_EDIT.value, unit_id=None)
    kept, user_id, first = _clean(login, name), desk.chance.new_id(), first_password(desk)
    async with desk.hashing.turn(actor.user_id):
        hashed = await desk.executor.run(hashing.hash_of, first, desk.chance)

    def work(session: Session) -> FirstAdministrator:
        now = desk.clock.now()
        if people.has_administrator(session, now):
            raise Conflict("administrator_exists", fix="ask_administrator")
        units = sorted(unit_ids) or places.roots(session, places.local_date(now))
        if not units:
            raise Conflict("no_place_yet", fix="add_place_first")
        row = _add(session, actor, UserRow(id=user_id, login=login, name=kept, created_at=now), None)
        for unit_id in units:
            _grant(session, actor, row, NewGrant(Role.ADMIN, unit_id), desk.chance.new_id(), now)
        credential = accounts.credential_of(session, row.id)
        credential.password_hash, credential.password_set_at, credential.must_change = hashed, now, True
        return FirstAdministrator(_view(session, row), first)

    return await desk.store.begin(work)


def first_password(desk: Desk) -> str:
    """80 random bits in groups that are easily read out."""
    letters = base64.b32encode(desk.chance.token_bytes(10)).decode().lower()
    return "-".join(letters[at : at + 4] for at in range(0, len(letters), 4))


async def get_user(desk: Desk, actor: Actor, user_id: str) -> UserView:
    """A person: oneself, or one with a grant within the places where the actor keeps the people."""
    now = desk.clock.now()

    def work(session: Session) -> UserView:
        row = _user(session, user_id)
        if row.id != actor.user_id and not actor.everywhere:
            _shares_a_place(session, actor, row, now)
        return _view_for(session, actor, row, now)

    return await desk.store.read(work)


async def user_of_login(desk: Desk, actor: Actor, login: str) -> UserView:
    """As `get_user`, by login."""
    found = await desk.store.read(lambda session: people.user_of_login(session, login))
    if found is None:
        raise NotFound("unknown_user", login=login)
    return await get_user(desk, actor, found.id)


async def list_users(desk: Desk, actor: Actor, *, after: str | None = None, limit: int = 100) -> list[UserView]:
    """People with a grant within the places where the actor keeps the people, by login; those after `after`."""
    now = desk.clock.now()

    def work(session: Session) -> list[UserView]:
        roots = access.scope(session, actor, Action.PEOPLE_EDIT, at=now)
        rows = people.list_users(session, roots, now, after=after, limit=limit)
        grants = people.grants_of(session, [row.id for row in rows])
        if roots is not None:
            mine = places.subtree_of(session, roots, places.local_date(now))
            grants = [one for one in grants if one.unit_id in mine]
        return [UserView(row, tuple(one for one in grants if one.user_id == row.id)) for row in rows]

    return await desk.store.read(work)


# -- tokens -----------------------------------------------------------------------------------------------------------


async def create_token(
    desk: Desk,
    actor: Actor,
    user_id: str,
    name: str,
    *,
    valid_for: timedelta = TOKEN_LASTS,
    scope: TokenScope | None = None,
) -> TokenMade:
    """A bearer token for oneself, or for somebody all of whose roles the actor may give; within `scope` if given.

    One that a token makes ends no later than that token. Raises `Invalid("lifetime_out_of_range" | "scope_empty")`,
    `NotFound("unknown_unit")`, and as `disable_user`.
    """
    now = desk.clock.now()
    token_id = desk.chance.new_id()
    secret = new_secret(desk.chance, "loa_")
    kept = clean_text(name, "name")
    if not timedelta(0) < valid_for <= TOKEN_LASTS_MOST:
        raise Invalid("lifetime_out_of_range", field="valid_for_s", most_s=TOKEN_LASTS_MOST // timedelta(seconds=1))
    if scope is not None and (scope.actions == frozenset() or scope.units == frozenset()):
        raise Invalid("scope_empty", field="scope", fix="name_actions_or_units")

    def work(session: Session) -> TokenMade:
        user = require_own_or_managed(session, actor, user_id, now)
        for unit_id in sorted(() if scope is None or scope.units is None else scope.units):
            places.unit(session, unit_id)
        parent = None if actor.token_id is None else session.get(TokenRow, actor.token_id)
        expires_at = now + valid_for
        if parent is not None and parent.expires_at is not None:
            expires_at = min(expires_at, parent.expires_at)
        if user.disabled_at is not None:
            raise Conflict("user_disabled", login=user.login)
        row = TokenRow(
            id=token_id,
            user_id=user.id,
            secret_hash=secret_hash(secret),
            name=kept,
            scope=_kept(scope),
            created_at=now,
            expires_at=expires_at,
        )
        session.add(row)
        detail = {"token_id": token_id, "name": kept, "scope": row.scope, "expires_at": expires_at.isoformat()}
        _audit(session, actor, "token.create", None, user.id, now, detail)
        return TokenMade(row, secret)

    return await desk.store.begin(work)


async def revoke_token(desk: Desk, actor: Actor, user_id: str, token_id: str) -> TokenRow:
    """Make a token worthless at once. Twice is once."""
    now = desk.clock.now()

    def work(session: Session) -> TokenRow:
        row = session.get(TokenRow, token_id)
        if row is None or row.user_id != user_id:
            raise NotFound("unknown_token", token_id=token_id)
        try:
            require_own_or_managed(session, actor, user_id, now)
        except NotFound:
            raise NotFound("unknown_token", token_id=token_id) from None
        if row.revoked_at is None:
            row.revoked_at = now
            _audit(session, actor, "token.revoke", None, user_id, now, {"token_id": token_id})
        return row

    return await desk.store.begin(work)


async def list_tokens(desk: Desk, actor: Actor, user_id: str) -> list[TokenRow]:
    """A person's tokens, newest first, without secrets."""
    now = desk.clock.now()

    def work(session: Session) -> list[TokenRow]:
        require_own_or_managed(session, actor, user_id, now)
        return people.tokens_of(session, user_id)

    return await desk.store.read(work)


def _kept(scope: TokenScope | None) -> Json | None:
    if scope is None:
        return None
    told: Json = {}
    if scope.actions is not None:
        told["actions"] = sorted(scope.actions)
    if scope.units is not None:
        told["units"] = sorted(scope.units)
    return told


# -- what is allowed --------------------------------------------------------------------------------------------------


def _clean(login: str, name: str) -> str:
    kept = clean_text(name, "name")
    if not _LOGIN.fullmatch(login):
        raise Invalid("login_invalid", field="login")
    return kept


def _add(session: Session, actor: Actor, row: UserRow, unit_id: str | None) -> UserRow:
    if people.user_of_login(session, row.login) is not None:
        raise Conflict("login_taken", field="login", login=row.login)
    session.add(row)
    session.flush()
    _audit(session, actor, "user.add", unit_id, row.id, row.created_at, {"login": row.login})
    return row


def _grant(session: Session, actor: Actor, user: UserRow, request: NewGrant, grant_id: str, now: datetime) -> GrantRow:
    begins = request.valid_from or now
    if request.valid_to is not None and request.valid_to <= begins:
        raise Invalid("empty_validity", field="valid_to", fix="until_after_from")
    if user.id == actor.user_id:
        raise Refused("self_grant")
    access.authorize(session, actor, Action.PEOPLE_EDIT, request.unit_id, at=now)
    _may_give(session, actor, request.role, request.unit_id, now)
    if request.role in access.DELEGATED:
        kind = places.unit(session, request.unit_id).kind
        delegation.check_term(begins, request.valid_to, kind, request.unit_id)
    elif request.role in access.TERMED and (request.valid_to is None or request.valid_to - begins > delegation.LONGEST):
        raise Invalid("delegation_without_end", field="valid_to", fix="give_end", most_days=delegation.LONGEST.days)
    row = GrantRow(
        id=grant_id,
        user_id=user.id,
        role=request.role,
        unit_id=request.unit_id,
        valid_from=begins,
        valid_to=request.valid_to,
    )
    session.add(row)
    session.flush()
    detail = {"role": request.role.value, "unit_id": request.unit_id, "from": begins.isoformat()}
    _audit(session, actor, "grant.give", request.unit_id, user.id, now, detail)
    return row


def _may_give(session: Session, actor: Actor, role: Role, unit_id: str, now: datetime) -> None:
    if actor.everywhere:
        return
    path = places.path_of(session, unit_id, places.local_date(now))
    for held, at in people.grants_at(session, actor.user_id, now):
        if at in path and role in access.MAY_GRANT.get(held, frozenset()):
            return
    raise Refused("role_not_yours_to_give", field="role", role=role.value, unit_id=unit_id)


def _may_manage(session: Session, actor: Actor, user: UserRow, now: datetime) -> None:
    """Raise unless the actor may give every role the user holds now or will hold; as for nobody if out of sight."""
    if actor.everywhere:
        return
    _shares_a_place(session, actor, user, now)
    held = [one for one in people.grants_of(session, [user.id]) if one.valid_to is None or one.valid_to > now]
    if not held:
        raise Refused("not_permitted", action=Action.PEOPLE_EDIT.value, unit_id=None)
    for one in held:
        access.authorize(session, actor, Action.PEOPLE_EDIT, one.unit_id, at=now)
        _may_give(session, actor, one.role, one.unit_id, now)


def require_own_or_managed(session: Session, actor: Actor, user_id: str, now: datetime) -> UserRow:
    """The user, if it is the actor or somebody all of whose roles the actor may give. Raises as `disable_user`."""
    require_whole(actor)
    row = _user(session, user_id)
    if row.id != actor.user_id:
        _may_manage(session, actor, row, now)
    return row


def _user_to_reset(session: Session, actor: Actor, user_id: str, now: datetime) -> UserRow:
    require_whole(actor)
    row = _user(session, user_id)
    if row.id == actor.user_id:
        raise Refused("self_reset", fix="change_own_password")
    _may_manage(session, actor, row, now)
    if row.disabled_at is not None:
        raise Conflict("user_disabled", login=row.login)
    return row


def _shares_a_place(session: Session, actor: Actor, user: UserRow, now: datetime) -> None:
    roots = access.scope(session, actor, Action.PEOPLE_EDIT, at=now) or frozenset()
    mine = places.subtree_of(session, roots, places.local_date(now))
    if not any(one.unit_id in mine for one in people.grants_of(session, [user.id])):
        raise NotFound("unknown_user", user_id=user.id)


def _user(session: Session, user_id: str) -> UserRow:
    row = session.get(UserRow, user_id)
    if row is None:
        raise NotFound("unknown_user", user_id=user_id)
    return row


def _view(session: Session, row: UserRow) -> UserView:
    return UserView(row, tuple(people.grants_of(session, [row.id])))


def _view_for(session: Session, actor: Actor, row: UserRow, now: datetime) -> UserView:
    """As the actor may see it: a person's rights at places of others are no concern of theirs."""
    view = _view(session, row)
    if actor.everywhere or row.id == actor.user_id:
        return view
    roots = access.scope(session, actor, Action.PEOPLE_EDIT, at=now) or frozenset()
    mine = places.subtree_of(session, roots, places.local_date(now))
    return UserView(row, tuple(one for one in view.grants if one.unit_id in mine))


def _audit(
    session: Session, actor: Actor, verb: str, unit_id: str | None, user_id: str, now: datetime, detail: dict[str, Any]
) -> None:
    subject = f"user/{user_id}"
    audit.append(session, now=now, actor=actor.login, verb=verb, unit_id=unit_id, subject=subject, detail=detail)
