"""Logging in and out over HTTP, and one's own secrets: password, one-time codes, recovery codes, sign-ins.

A log-in sets two cookies, `__Host-sid` (the sign-in) and `__Host-did` (this browser has been here before: permits
nothing). Both are `Secure; HttpOnly; SameSite=Strict; Path=/`. Browsers treat `http://127.0.0.1` and
`http://localhost` like HTTPS for this, so a trial on one machine needs no certificate; anything else does.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

from fastapi import Request, Response
from pydantic import Field, SecretStr, StringConstraints

from broadcast_server.api import deps
from broadcast_server.api.deps import ActorDep, DeskDep, OwnerDep
from broadcast_server.api.fields import Form, IdPath, ProofForm, Shown
from broadcast_server.api.gate import Router, asks, by_secret, signed_in
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.people import User
from broadcast_server.control import accounts, people, sign_in
from broadcast_server.control.access import Action
from broadcast_server.control.accounts import Proof
from broadcast_server.control.sign_in import LogIn, Must, SignedIn
from broadcast_server.domain.errors import Refused
from broadcast_server.store import sessions
from broadcast_server.store.tables_identity import SignInRow

router = Router(tags=["session"], route_class=IdempotentRoute)

DEVICE: Final = "__Host-did"
_DEVICE_LONGEST: Final = 64

Password = Annotated[SecretStr, Field(min_length=1, max_length=400)]
Code = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z -]{0,40}$")]


class LogInForm(Form):
    """`code`: of the phone, or a recovery code; left out by who has not set up codes yet."""

    login: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]{1,120}$")]
    password: Password
    code: Code = ""


class PasswordForm(Form):
    """The present password, and a code where codes are set up."""

    password: Password
    code: Code = ""

    def proof(self) -> Proof:
        """For the verb."""
        return Proof(self.password.get_secret_value(), self.code)


class NewPasswordForm(PasswordForm):
    """The present password and a new one: at least 12 characters, not easily guessed."""

    new_password: Password


class CodeForm(Form):
    """A code that the phone shows."""

    code: Code


class SignIn(Shown):
    """A person at a browser."""

    id: str
    address: str
    agent: str
    created_at: datetime
    seen_at: datetime
    ends_at: datetime
    is_this: bool

    @classmethod
    def of(cls, row: SignInRow, this: str | None) -> SignIn:
        """As callers see it."""
        return cls(
            id=row.id,
            address=row.address,
            agent=row.agent,
            created_at=row.created_at,
            seen_at=row.seen_at,
            ends_at=row.ends_at,
            is_this=row.id == this,
        )


class SessionShown(Shown):
    """Who is signed in. `must`: what is to be done before anything else; `csrf_token`: goes with every change."""

    user_id: str
    login: str
    name: str
    must: list[Must]
    csrf_token: str
    sign_in: SignIn
    idle_s: int

    @classmethod
    def of(cls, signed: SignedIn) -> SessionShown:
        """As callers see it."""
        return cls(
            user_id=signed.user.id,
            login=signed.user.login,
            name=signed.user.name,
            must=list(signed.must),
            csrf_token=signed.csrf,
            sign_in=SignIn.of(signed.sign_in, signed.sign_in.id),
            idle_s=int(sessions.IDLE.total_seconds()),
        )


class Renewed(Shown):
    """One's secrets have changed. `csrf_token`: the sign-in's new one; null where a token was used."""

    csrf_token: str | None


class TotpOffered(Shown):
    """The seed of one-time codes, told once: `uri` is what a QR code for the phone carries."""

    secret: str
    uri: str


class RecoveryCodes(Shown):
    """Ten codes for the day the phone is lost, told once; each serves once."""

    recovery_codes: list[str]


class TotpConfirmed(RecoveryCodes, Renewed):
    """Codes are in force."""


class FirstPassword(Shown):
    """Told once; its owner must change it within seven days, before anything else."""

    first_password: str


class Ended(Shown):
    """How many sign-ins ended."""

    ended: int


# -- in and out -------------------------------------------------------------------------------------------------------


@router.post("/session", status_code=201)
@by_secret()
async def log_in(desk: DeskDep, request: Request, form: LogInForm, response: Response) -> SessionShown:
    """Log in. The answer to one that fails is the same whatever was wrong; after five, ever later, 429."""
    deps.require_own_page(request)
    device = request.cookies.get(DEVICE)
    made = await sign_in.log_in(
        desk,
        LogIn(
            login=form.login,
            password=form.password.get_secret_value(),
            code=form.code,
            address="" if request.client is None else request.client.host,
            agent=request.headers.get("user-agent", ""),
            device=device if device is not None and 0 < len(device) <= _DEVICE_LONGEST else None,
            cookie=request.cookies.get(deps.COOKIE),
        ),
    )
    _set(response, deps.COOKIE, made.cookie)
    _set(response, DEVICE, made.device, max_age_s=int(sessions.DEVICE_KNOWN.total_seconds()))
    return SessionShown.of(made.signed_in)


@router.get("/session")
@signed_in
async def get_session(request: Request, actor: OwnerDep, response: Response) -> SessionShown:
    """Who is signed in here, and the token that changes need."""
    signed = await deps.signed_in_of(request)
    if signed is None or actor.session_id is None:
        raise Refused("sign_in_over", fix="log_in_again")
    response.headers["Cache-Control"] = "no-store"
    return SessionShown.of(signed)


@router.delete("/session", status_code=204)
@signed_in
async def log_out(desk: DeskDep, actor: OwnerDep, response: Response) -> None:
    """Log out here."""
    await sign_in.log_out(desk, actor)
    response.delete_cookie(deps.COOKIE, path="/", secure=True, httponly=True, samesite="strict")


# -- one's own secrets ------------------------------------------------------------------------------------------------


@router.put("/session/password")
@signed_in
async def change_password(desk: DeskDep, actor: OwnerDep, form: NewPasswordForm, response: Response) -> Renewed:
    """Take a new password. All other sign-ins end, this one gets a new cookie."""
    made = await accounts.change_password(desk, actor, form.proof(), form.new_password.get_secret_value())
    return Renewed(csrf_token=_renewed(response, made.cookie))


@router.post("/session/totp", status_code=201)
@signed_in
async def begin_totp(desk: DeskDep, actor: OwnerDep, form: PasswordForm, response: Response) -> TotpOffered:
    """A new seed of one-time codes; in force once a code of it was confirmed."""
    offer = await accounts.begin_totp(desk, actor, form.proof())
    response.headers["Cache-Control"] = "no-store"
    return TotpOffered(secret=offer.secret, uri=offer.uri)


@router.put("/session/totp")
@signed_in
async def confirm_totp(desk: DeskDep, actor: OwnerDep, form: CodeForm, response: Response) -> TotpConfirmed:
    """Put the seed in force by a code of it. Keep the recovery codes on paper, away from the phone."""
    made = await accounts.confirm_totp(desk, actor, form.code)
    return TotpConfirmed(csrf_token=_renewed(response, made.cookie), recovery_codes=list(made.recovery_codes))


@router.post("/session/recovery-codes", status_code=201)
@signed_in
async def renew_recovery_codes(desk: DeskDep, actor: ActorDep, form: ProofForm, response: Response) -> RecoveryCodes:
    """Ten new recovery codes; the old ones serve no more."""
    codes = await accounts.renew_recovery_codes(desk, actor, form.given())
    response.headers["Cache-Control"] = "no-store"
    return RecoveryCodes(recovery_codes=list(codes))


# -- sign-ins, one's own and those of people one keeps ----------------------------------------------------------------


@router.get("/users/{user_id}/sign-ins")
@asks(Action.PEOPLE_EDIT, or_own=True)
async def list_sign_ins(desk: DeskDep, actor: ActorDep, user_id: IdPath) -> list[SignIn]:
    """Where a person is signed in, newest first."""
    return [SignIn.of(row, actor.session_id) for row in await sign_in.list_sign_ins(desk, actor, user_id)]


@router.delete("/users/{user_id}/sign-ins")
@asks(Action.PEOPLE_EDIT, or_own=True)
async def end_sign_ins(desk: DeskDep, actor: ActorDep, user_id: IdPath) -> Ended:
    """End all of a person's but the one that asks."""
    return Ended(ended=await sign_in.end_sign_ins(desk, actor, user_id))


@router.delete("/users/{user_id}/sign-ins/{sign_in_id}")
@asks(Action.PEOPLE_EDIT, or_own=True)
async def end_sign_in(desk: DeskDep, actor: ActorDep, user_id: IdPath, sign_in_id: IdPath) -> SignIn:
    """End one."""
    return SignIn.of(await sign_in.end_sign_in(desk, actor, user_id, sign_in_id), actor.session_id)


@router.post("/users/{user_id}/password", status_code=201)
@asks(Action.PEOPLE_EDIT)
async def reset_password(desk: DeskDep, actor: ActorDep, user_id: IdPath, response: Response) -> FirstPassword:
    """A first password for somebody all of whose roles one may give; the person's sign-ins end."""
    first = await people.reset_password(desk, actor, user_id)
    response.headers["Cache-Control"] = "no-store"
    return FirstPassword(first_password=first)


@router.delete("/users/{user_id}/totp")
@asks(Action.PEOPLE_EDIT)
async def reset_totp(desk: DeskDep, actor: ActorDep, user_id: IdPath) -> User:
    """The phone is lost: the person sets up codes anew at the next log-in; sign-ins end."""
    return User.of(await people.reset_totp(desk, actor, user_id))


def _set(response: Response, name: str, value: str, *, max_age_s: int | None = None) -> None:
    response.set_cookie(name, value, max_age=max_age_s, path="/", secure=True, httponly=True, samesite="strict")
    response.headers["Cache-Control"] = "no-store"


def _renewed(response: Response, cookie: str | None) -> str | None:
    response.headers["Cache-Control"] = "no-store"
    if cookie is None:
        return None
    _set(response, deps.COOKIE, cookie)
    return sign_in.csrf_of(cookie)
