"""Logging in and out: a password and a code become a cookie, and the cookie becomes an actor at every request.

A maintainer must not break: (1) the answer to a log-in that fails is one, whatever was wrong, after the same work;
(2) the cookie is made here, anew at every log-in, so one that was planted in a browser is worth nothing (fixation);
(3) it is stored as a hash and looked up by it; (4) a browser where the person has logged in before, told by a second
cookie that permits nothing, has a count and a lane of its own: a crowd of strangers who guess at a login locks out
strangers; (5) what somebody must do first (change a first password, set up codes) is all they may do.

Sources: NIST SP 800-63B §7 (sessions); OWASP on device cookies.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from broadcast_server.control import accounts, people
from broadcast_server.control.access import Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.hashing import Lane
from broadcast_server.domain.errors import NotFound, Refused
from broadcast_server.domain.throttle import OF_ACCOUNT, OF_ADDRESS, Bucket
from broadcast_server.store import accounts as rows
from broadcast_server.store import audit, sessions
from broadcast_server.store.people import secret_hash
from broadcast_server.store.session import Session
from broadcast_server.store.tables import TokenRow, UserRow
from broadcast_server.store.tables_identity import CredentialRow, SignInRow

SEEN_EVERY: Final = timedelta(minutes=1)
"""How exactly idleness is known: a request a minute is written down, the others are not."""
AT_ONCE: Final = 20
"""Sign-ins of one person; the oldest ends when there is one more."""


class Must(StrEnum):
    """What a person has to do before anything else; the code that everything else is refused with."""

    PASSWORD = "password_must_change"  # noqa: S105 - a word
    TOTP = "totp_must_set_up"


@dataclass(frozen=True, slots=True)
class LogIn:
    """A try. `address`: where it comes from; `device`: the browser's second cookie; `cookie`: its first, if any."""

    login: str
    password: str = field(repr=False)
    code: str = field(repr=False)
    address: str
    agent: str = ""
    device: str | None = field(default=None, repr=False)
    cookie: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Who is at the browser. `csrf`: what a page must show with every change."""

    actor: Actor
    user: UserRow
    sign_in: SignInRow
    must: tuple[Must, ...]
    csrf: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """With the two cookies, which are told only here."""

    signed_in: SignedIn
    cookie: str = field(repr=False)
    device: str = field(repr=False)


async def log_in(desk: Desk, request: LogIn) -> LoggedIn:
    """Somebody who showed password and code. A sign-in whose cookie came along ends.

    Raises `Refused("login_wrong")`, whatever is wrong, and `Refused("too_many_tries")` with `retry_after_s`.
    """
    login, place = request.login.strip().lower(), place_of(request.address)
    device = accounts.new_cookie(desk) if request.device is None else request.device

    def look(session: Session) -> tuple[Lane, list[Bucket]]:
        now = desk.clock.now()
        found = rows.found_by_login(session, login)
        user_id = "" if found is None else found[0].id  # asked for in any case: the same work for every login
        is_known = sessions.is_known_device(session, user_id, device, now)
        buckets = _buckets(login, secret_hash(device) if is_known else None, place)
        accounts.require_let_in(session, buckets, now)
        if is_known:
            return Lane.KNOWN, buckets
        return Lane.TRIED if rows.failures(session, buckets[1], now) else Lane.NEW, buckets

    def find(session: Session) -> CredentialRow | None:
        found = rows.found_by_login(session, login)
        return None if found is None or found[0].disabled_at is not None else found[1]

    lane, buckets = await desk.store.read(look)
    is_known = lane is Lane.KNOWN
    who = secret_hash(device) if is_known else place
    stored = await accounts.judged(desk, request.password, buckets, find, who=who, lane=lane)
    cookie, sign_in_id = accounts.new_cookie(desk), desk.chance.new_id()

    def settle(session: Session) -> LoggedIn | Refused:
        now = desk.clock.now()
        found = rows.found_by_login(session, login)
        user, credential = (None, None) if found is None else found
        if user is None or credential is None:
            return Refused("login_wrong")
        is_right = stored is not None and stored == credential.password_hash and user.disabled_at is None
        if not is_right or not _code_is_right(session, credential, request.code, is_known=is_known, now=now):
            _note_failure(session, user, request, buckets, is_password=is_right, now=now)
            return Refused("login_wrong")
        rows.forgive(session, buckets[0], all_of_it=True)
        for bucket in buckets[1:]:
            rows.forgive(session, bucket, all_of_it=False)
        _end_old(session, user.id, request.cookie, now)
        row = SignInRow(
            id=sign_in_id,
            user_id=user.id,
            secret_hash=secret_hash(cookie),
            device_hash=secret_hash(device),
            address=request.address[:64],
            agent="".join(letter for letter in request.agent if letter.isprintable())[:200],
            created_at=now,
            seen_at=now,
            ends_at=now + sessions.LONGEST,
        )
        session.add(row)
        session.flush()
        detail = {"sign_in": row.id, "address": row.address, "is_known_device": is_known}
        _audit(session, user.login, "sign_in.open", user.id, now, detail)
        return LoggedIn(_signed_in(user, row, credential, cookie), cookie, device)

    # urgent, because an emergency may wait for it; and the engine room has nothing to look for
    found = await desk.urgent(settle, ring=False)
    if isinstance(found, Refused):
        raise found
    return found


async def who(desk: Desk, cookie: str) -> SignedIn:
    """Who this cookie is. Raises `Refused("sign_in_over")`, whatever is wrong with it."""

    def look(session: Session) -> SignedIn:
        found = sessions.find(session, cookie, desk.clock.now())
        if found is None:
            raise Refused("sign_in_over", fix="log_in_again")
        user, row, credential = found
        return _signed_in(user, row, credential, cookie)

    signed_in = await desk.store.read(look)
    now = desk.clock.now()
    if now - signed_in.sign_in.seen_at >= SEEN_EVERY:
        await desk.store.begin(lambda session: sessions.touch(session, signed_in.sign_in.id, now), ring=False)
    return signed_in


async def require_standing(desk: Desk, actor: Actor) -> None:
    """Raise `Refused` if what `actor` came with has been taken back meanwhile; for a line that stays open.

    A sign-in that stands ends neither by idleness nor by age while its line is in use.
    """

    def look(session: Session) -> None:
        if actor.session_id is not None and not sessions.stands(session, actor.session_id):
            raise Refused("sign_in_over", fix="log_in_again")
        if actor.token_id is not None:
            token, user = session.get(TokenRow, actor.token_id), session.get(UserRow, actor.user_id)
            if token is None or token.revoked_at is not None or user is None or user.disabled_at is not None:
                raise Refused("token_unknown")

    await desk.store.read(look)


async def log_out(desk: Desk, actor: Actor) -> None:
    """End the sign-in the actor came with. Twice is once."""
    if actor.session_id is not None:
        await end_sign_in(desk, actor, actor.user_id, actor.session_id)


async def list_sign_ins(desk: Desk, actor: Actor, user_id: str) -> list[SignInRow]:
    """A person's sign-ins in force, newest first: one's own, or of somebody all of whose roles the actor may give."""

    def look(session: Session) -> list[SignInRow]:
        now = desk.clock.now()
        people.require_own_or_managed(session, actor, user_id, now)
        return sessions.list_of(session, user_id, now)

    return await desk.store.read(look)


async def end_sign_in(desk: Desk, actor: Actor, user_id: str, sign_in_id: str) -> SignInRow:
    """End one. Twice is once. Raises `NotFound("unknown_sign_in")`, and as `list_sign_ins`."""

    def work(session: Session) -> SignInRow:
        now = desk.clock.now()
        people.require_own_or_managed(session, actor, user_id, now)
        row = session.get(SignInRow, sign_in_id)
        if row is None or row.user_id != user_id:
            raise NotFound("unknown_sign_in", sign_in_id=sign_in_id)
        if row.ended_at is None:
            row.ended_at = now
            _audit(session, actor.login, "sign_in.end", user_id, now, {"sign_in": row.id})
        return row

    return await desk.store.begin(work)


async def end_sign_ins(desk: Desk, actor: Actor, user_id: str) -> int:
    """End all of a person's but the one the actor came with; returns how many ended."""

    def work(session: Session) -> int:
        now = desk.clock.now()
        people.require_own_or_managed(session, actor, user_id, now)
        ended = sessions.end_all(session, user_id, now, but=actor.session_id)
        _audit(session, actor.login, "sign_in.end_all", user_id, now, {"sign_ins_ended": ended})
        return ended

    return await desk.store.begin(work)


def csrf_of(cookie: str) -> str:
    """What a page of ours shows with every change; made from the cookie, which no page can read."""
    return hmac.new(cookie.encode(), b"loa csrf 1", hashlib.sha256).hexdigest()


def place_of(address: str) -> str:
    """What tries are counted by: an address, of IPv6 the network of one subscriber (/64)."""
    try:
        told = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(told, ipaddress.IPv6Address):
        if told.ipv4_mapped is not None:
            return str(told.ipv4_mapped)
        return str(ipaddress.ip_network((told, 64), strict=False))
    return str(told)


def _buckets(login: str, device_hash: str | None, place: str) -> list[Bucket]:
    """What a try is counted in; `device_hash`: of a browser where the person has been before."""
    if device_hash is not None:
        return [Bucket(f"log-in/{login}/device/{device_hash}")]
    return [Bucket(f"log-in/{login}/{place}"), Bucket(f"address/{place}", OF_ADDRESS, is_slowed=False)]


def _signed_in(user: UserRow, row: SignInRow, credential: CredentialRow, cookie: str) -> SignedIn:
    must: tuple[Must, ...] = ()
    if credential.must_change:
        must += (Must.PASSWORD,)
    if credential.totp_secret is None:
        must += (Must.TOTP,)
    return SignedIn(Actor(user.id, user.login, session_id=row.id), user, row, must, csrf_of(cookie))


def _code_is_right(session: Session, credential: CredentialRow, code: str, *, is_known: bool, now: datetime) -> bool:
    """Codes are few, so strangers who have the password try five in a quarter of an hour, from wherever they come."""
    if credential.totp_secret is None:
        return True
    bucket = Bucket(f"code/{credential.user_id}", is_slowed=False)
    if not is_known and rows.charge(session, [bucket], now):
        return False
    is_right = accounts.use_code(session, credential, code, now)
    if is_right and not is_known:
        rows.forgive(session, bucket, all_of_it=True)
    return is_right


def _note_failure(
    session: Session, user: UserRow, request: LogIn, buckets: list[Bucket], *, is_password: bool, now: datetime
) -> None:
    """Into the audit log: that the password is known to somebody without a code, and that an account is being tried.

    Once per window and place, not per guess: strangers do not fill the log.
    """
    if is_password:
        _audit(session, user.login, "sign_in.code_wrong", user.id, now, {"address": request.address[:64]})
    elif rows.failures(session, buckets[0], now) >= OF_ACCOUNT:
        _audit(session, user.login, "sign_in.tried", user.id, now, {"address": request.address[:64]})


def _end_old(session: Session, user_id: str, cookie: str | None, now: datetime) -> None:
    sessions.forget(session, user_id, now)
    in_force = sessions.list_of(session, user_id, now)
    for row in in_force[AT_ONCE - 1 :]:
        row.ended_at = now
    found = None if cookie is None else sessions.find(session, cookie, now)
    if found is not None:
        found[1].ended_at = now


def _audit(session: Session, login: str, verb: str, user_id: str, now: datetime, detail: dict[str, object]) -> None:
    audit.append(session, now=now, actor=login, verb=verb, unit_id=None, subject=f"user/{user_id}", detail=detail)
