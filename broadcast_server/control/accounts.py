"""How a person proves to be one: a password and a one-time code, asked for again where it matters.

`prove` is what a verb of weight asks for besides its actor: this person, just now, with password and code. A maintainer
must not break: (1) a try is counted in the store before the password is hashed, and passwords are hashed on the
executor, never in a transaction; (2) a step of one-time codes serves once, which one writing transaction decides, so
that of any number of tries at once one succeeds; (3) nobody is told which part was wrong, nor whether a login exists;
(4) tries of one who is signed in are counted by sign-in: no stranger's guesses keep an approver from approving;
(5) secrets leave this module once, and neither a log nor an audit row holds one.

Sources: RFC 6238 (TOTP, §5.2 on single use); NIST SP 800-63B §5.1.1, §5.2.2.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, TypeVar

import pyotp

from broadcast_server.control import hashing
from broadcast_server.control.access import Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.hashing import Lane
from broadcast_server.domain import passwords
from broadcast_server.domain.errors import Conflict, NotFound, Refused
from broadcast_server.domain.throttle import OF_ACCOUNT, Bucket
from broadcast_server.store import accounts, audit, people, places, sessions
from broadcast_server.store.people import secret_hash
from broadcast_server.store.session import Session
from broadcast_server.store.tables import UserRow
from broadcast_server.store.tables_identity import CredentialRow, SignInRow

T = TypeVar("T")

STEP_S: Final = 30
RECOVERY_CODES: Final = 10
FIRST_PASSWORD_LASTS: Final = timedelta(days=7)
ISSUER: Final = "Loa"
_SEED_BYTES: Final = 20  # RFC 4226 §4: 160 bits
_CODE_BYTES: Final = 10


@dataclass(frozen=True, slots=True)
class Proof:
    """What a person types to prove who they are. `code`: of the phone, or a recovery code."""

    password: str = field(repr=False)
    code: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Presence:
    """A person who was there at that instant, with password and one-time code."""

    user_id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class TotpOffer:
    """The seed of one-time codes, told once: as text, and as the address that a QR code carries."""

    secret: str = field(repr=False)
    uri: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Renewed:
    """What a change of one's own secrets gives back. `cookie`: takes the place of the sign-in's, if it was by one."""

    cookie: str | None = field(repr=False)
    recovery_codes: tuple[str, ...] = field(default=(), repr=False)


async def prove(desk: Desk, actor: Actor, proof: Proof) -> Presence:
    """The actor, present now.

    Raises `Refused`: `proof_wrong` (password, code, or a code that has served), `totp_not_set_up`,
    `password_must_change`, `too_many_tries` with `retry_after_s`.
    """

    def settle(session: Session, user: UserRow, credential: CredentialRow, is_right: bool) -> datetime | Refused:
        now = desk.clock.now()
        if not is_right or not use_code(session, credential, proof.code, now):
            return _failed(session, actor, user, "proof.fail", now)
        accounts.forgive(session, _bucket(actor), all_of_it=True)
        return now

    return Presence(actor.user_id, await _at_the_door(desk, actor, proof.password, settle, is_for_weight=True))


# -- one's own secrets ------------------------------------------------------------------------------------------------


async def change_password(desk: Desk, actor: Actor, proof: Proof, new_password: str) -> Renewed:
    """Take a new password; all other sign-ins end. The code counts where one is set up.

    Raises as `prove`, and `Invalid` naming what the new password lacks.
    """
    require_whole(actor)
    await _check_new(desk, actor, proof.password, new_password)
    async with desk.hashing.turn(_bucket(actor).name):
        hashed = await desk.executor.run(hashing.hash_of, new_password, desk.chance)
    cookie = new_cookie(desk)

    def settle(session: Session, user: UserRow, credential: CredentialRow, is_right: bool) -> Renewed | Refused:
        now = desk.clock.now()
        if not is_right or not _code_if_set_up(session, credential, proof.code, now):
            return _failed(session, actor, user, "proof.fail", now)
        credential.password_hash, credential.password_set_at, credential.must_change = hashed, now, False
        return _renewed(session, actor, user, "password.change", cookie, now)

    return await _at_the_door(desk, actor, proof.password, settle)


async def begin_totp(desk: Desk, actor: Actor, proof: Proof) -> TotpOffer:
    """A new seed of one-time codes, in force once `confirm_totp` was shown a code of it.

    The code of the present seed counts where one is set up. Raises as `prove`.
    """
    require_whole(actor)
    seed = base64.b32encode(desk.chance.token_bytes(_SEED_BYTES)).decode()

    def settle(session: Session, user: UserRow, credential: CredentialRow, is_right: bool) -> TotpOffer | Refused:
        now = desk.clock.now()
        if not is_right or not _code_if_set_up(session, credential, proof.code, now):
            return _failed(session, actor, user, "proof.fail", now)
        if credential.must_change:
            raise Refused("password_must_change")
        accounts.forgive(session, _bucket(actor), all_of_it=True)
        credential.totp_pending = seed
        _note(session, actor.login, "totp.offer", user, now)
        return TotpOffer(seed, pyotp.TOTP(seed).provisioning_uri(name=user.login, issuer_name=ISSUER))

    return await _at_the_door(desk, actor, proof.password, settle)


async def confirm_totp(desk: Desk, actor: Actor, code: str) -> Renewed:
    """Put the offered seed in force; ten recovery codes are told, all other sign-ins end.

    Raises `Conflict("totp_not_offered")`, `Refused("proof_wrong" | "too_many_tries")`.
    """
    require_whole(actor)
    cookie, codes = new_cookie(desk), _new_codes(desk)
    bucket = _bucket(actor)

    def work(session: Session) -> Renewed | Refused:
        now = desk.clock.now()
        user, credential = _mine(session, actor)
        if credential.totp_pending is None:
            raise Conflict("totp_not_offered")
        waiting = accounts.charge(session, [bucket], now)
        if waiting:
            return too_many(waiting)
        step = step_of(credential.totp_pending, code, now)
        if step is None:
            return _failed(session, actor, user, "proof.fail", now)
        credential.totp_secret, credential.totp_pending, credential.totp_step = credential.totp_pending, None, step
        accounts.put_recovery_codes(session, user.id, [_bare(code) for code in codes])
        return replace(_renewed(session, actor, user, "totp.set_up", cookie, now), recovery_codes=codes)

    return _or_raise(await desk.store.begin(work, ring=False))


async def renew_recovery_codes(desk: Desk, actor: Actor, proof: Proof) -> tuple[str, ...]:
    """Ten new recovery codes; the old ones serve no more. Raises as `prove`."""
    require_whole(actor)
    presence, codes = await prove(desk, actor, proof), _new_codes(desk)

    def work(session: Session) -> tuple[str, ...]:
        user, _ = _mine(session, actor)
        accounts.put_recovery_codes(session, user.id, [_bare(code) for code in codes])
        _note(session, actor.login, "recovery_codes.renew", user, presence.at)
        return codes

    return await desk.store.begin(work)


# -- codes ------------------------------------------------------------------------------------------------------------


def use_code(session: Session, credential: CredentialRow, code: str, now: datetime) -> bool:
    """Whether the code is right and has not served; it has now. In the writing transaction of what it permits."""
    given = _bare(code)
    if credential.totp_secret is None:
        return False
    if len(given) != 6 or not given.isdecimal():
        return accounts.use_recovery_code(session, credential.user_id, given, now)
    step = step_of(credential.totp_secret, given, now)
    if step is None or step <= credential.totp_step:
        return False
    credential.totp_step = step
    session.flush()
    return True


def step_of(seed: str, code: str, now: datetime) -> int | None:
    """The step of 30 s, of the one that runs, the one before and the next, whose code this is."""
    codes, running, found = pyotp.TOTP(seed, interval=STEP_S), int(now.timestamp()) // STEP_S, None
    for step in (running - 1, running, running + 1):
        if hmac.compare_digest(codes.generate_otp(step).encode(), _bare(code).encode()):
            found = step
    return found


def _bare(code: str) -> str:
    """As it is compared, however it was typed."""
    return "".join(code.split()).replace("-", "").upper()


def _code_if_set_up(session: Session, credential: CredentialRow, code: str, now: datetime) -> bool:
    return credential.totp_secret is None or use_code(session, credential, code, now)


def _new_codes(desk: Desk) -> tuple[str, ...]:
    """`ABCD-EFGH-IJKL-MNOP`, 80 bits each."""
    made = (base64.b32encode(desk.chance.token_bytes(_CODE_BYTES)).decode() for _ in range(RECOVERY_CODES))
    return tuple("-".join(one[at : at + 4] for at in range(0, len(one), 4)) for one in made)


def new_cookie(desk: Desk) -> str:
    """256 random bits."""
    return base64.urlsafe_b64encode(desk.chance.token_bytes(32)).decode().rstrip("=")


# -- the way in -------------------------------------------------------------------------------------------------------


async def judged(
    desk: Desk,
    password: str,
    buckets: Sequence[Bucket],
    find: Callable[[Session], CredentialRow | None],
    *,
    who: str,
    lane: Lane,
) -> str | None:
    """The stored hash that `password` matches, None if it matches none: a try, counted in all `buckets`.

    Takes the same time whether there is a credential or not. Who calls has asked `require_let_in` in a reading of its
    own, so that a flood of guesses costs neither a write nor a hash. Raises `Refused("too_many_tries")`.
    """

    def charge(session: Session) -> str | Refused | None:
        now = desk.clock.now()
        waiting = accounts.charge(session, buckets, now)
        if waiting:
            return too_many(waiting)
        credential = find(session)
        return None if credential is None or _has_lapsed(credential, now) else credential.password_hash

    async with desk.hashing.turn(who, lane):
        stored = _or_raise(await desk.store.begin(charge, ring=False))
        is_right = await desk.executor.run(hashing.matches, stored, password)
    return stored if is_right else None


async def _at_the_door(
    desk: Desk,
    actor: Actor,
    password: str,
    settle: Callable[[Session, UserRow, CredentialRow, bool], T | Refused],
    *,
    is_for_weight: bool = False,
) -> T:
    """What `settle` returns, in a transaction, once the password was judged; a `Refused` it returns is committed."""
    bucket = _bucket(actor)

    def find(session: Session) -> CredentialRow | None:
        credential = session.get(CredentialRow, actor.user_id)
        if credential is not None and is_for_weight and credential.must_change:
            raise Refused("password_must_change")
        if is_for_weight and (credential is None or credential.totp_secret is None):
            raise Refused("totp_not_set_up", fix="set_up_totp")
        return credential

    def work(session: Session) -> T | Refused:
        user, credential = _mine(session, actor)
        # what was judged must still be what counts: another tab may have changed it meanwhile
        return settle(session, user, credential, stored is not None and stored == credential.password_hash)

    def look(session: Session) -> None:
        find(session)
        require_let_in(session, [bucket], desk.clock.now())

    await desk.store.read(look)
    stored = await judged(desk, password, [bucket], find, who=bucket.name, lane=Lane.KNOWN)
    if is_for_weight:
        return _or_raise(await desk.urgent(work, ring=False))
    return _or_raise(await desk.store.begin(work, ring=False))


def _bucket(actor: Actor) -> Bucket:
    return Bucket(f"sign-in/{actor.session_id}" if actor.session_id is not None else f"user/{actor.user_id}")


def require_let_in(session: Session, buckets: Sequence[Bucket], now: datetime) -> None:
    """Raise `Refused("too_many_tries")` while one of the buckets is full; counts nothing."""
    waiting = accounts.wait(session, buckets, now)
    if waiting:
        raise too_many(waiting)


def too_many(waiting: timedelta) -> Refused:
    """What one is told who tries too often."""
    return Refused("too_many_tries", retry_after_s=max(1, -(-waiting // timedelta(seconds=1))))


def _or_raise(found: T | Refused) -> T:
    if isinstance(found, Refused):
        raise found
    return found


def _failed(session: Session, actor: Actor, user: UserRow, verb: str, now: datetime) -> Refused:
    detail = {"is_last": accounts.failures(session, _bucket(actor), now) >= OF_ACCOUNT}
    audit.append(session, now=now, actor=actor.login, verb=verb, unit_id=None, subject=f"user/{user.id}", detail=detail)
    return Refused("proof_wrong")


def _has_lapsed(credential: CredentialRow, now: datetime) -> bool:
    """A password that somebody else made and its owner never changed."""
    set_at = credential.password_set_at
    return credential.must_change and (set_at is None or now - set_at >= FIRST_PASSWORD_LASTS)


def _user(session: Session, actor: Actor) -> UserRow:
    user = session.get(UserRow, actor.user_id)
    if user is None or user.disabled_at is not None:
        raise NotFound("unknown_user", user_id=actor.user_id)
    return user


def _mine(session: Session, actor: Actor) -> tuple[UserRow, CredentialRow]:
    user = _user(session, actor)
    return user, accounts.credential_of(session, user.id)


def require_whole(actor: Actor) -> None:
    """Raise `Refused("token_is_limited")` for a token with a scope: it never touches accounts."""
    if actor.token_scope is not None:
        raise Refused("token_is_limited", fix="sign_in_or_whole_token")


def _renewed(session: Session, actor: Actor, user: UserRow, verb: str, cookie: str, now: datetime) -> Renewed:
    """One's own secrets have changed: other sign-ins end, this one gets a new cookie."""
    accounts.forgive(session, _bucket(actor), all_of_it=True)
    ended = sessions.end_all(session, user.id, now, but=actor.session_id)
    audit.append(
        session,
        now=now,
        actor=actor.login,
        verb=verb,
        unit_id=None,
        subject=f"user/{user.id}",
        detail={"sign_ins_ended": ended},
    )
    row = None if actor.session_id is None else session.get(SignInRow, actor.session_id)
    if row is None:
        return Renewed(None)
    row.secret_hash = secret_hash(cookie)
    session.flush()
    return Renewed(cookie)


async def _check_new(desk: Desk, actor: Actor, old: str, new: str) -> None:
    now = desk.clock.now()

    def work(session: Session) -> list[str]:
        user = _user(session, actor)
        held = {unit for _, unit in people.grants_at(session, user.id, now)}
        around = {unit for path in places.paths_of(session, held, places.local_date(now)).values() for unit in path}
        return [user.login, user.name, *(row.name for row in places.units(session, around).values())]

    passwords.check(new, await desk.store.read(work))
    if passwords.normal(old) == passwords.normal(new):
        raise Conflict("password_same", field="new_password", fix="take_three_words")


def _note(session: Session, login: str, verb: str, user: UserRow, now: datetime) -> None:
    audit.append(session, now=now, actor=login, verb=verb, unit_id=None, subject=f"user/{user.id}", detail={})
