"""People who can prove who they are: with a password and one-time codes, at the injected clock."""

from __future__ import annotations

import base64
import functools
import itertools
from dataclasses import dataclass, field

import pyotp

from broadcast_server.control import accounts, hashing, people
from broadcast_server.control.access import OPERATOR, Actor
from broadcast_server.control.accounts import Proof
from broadcast_server.control.desk import Desk
from broadcast_server.control.people import NewGrant
from broadcast_server.domain.clock import Clock
from broadcast_server.store import accounts as rows
from broadcast_server.store.session import Session
from broadcast_server.store.words import Role
from tests.support.clock import FakeChance

PASSWORD = "nồi cơm bò kho 47"
_count = itertools.count(1)


@dataclass
class Phone:
    """Shows the one-time codes of a seed, and remembers which it has shown."""

    seed: str
    clock: Clock
    _last: int = 0

    def fresh(self) -> str | None:
        """The first code that would serve now and was not shown yet; None: one must wait for the next step."""
        running, gone_s = divmod(int(self.clock.now().timestamp()), accounts.STEP_S)
        for step in (running - 1, running, running + 1):
            lapses = step < running and gone_s > accounts.STEP_S // 2  # while it is typed on a busy machine
            if step > self._last and not lapses:
                return self.show(step)
        return None

    def show(self, step: int) -> str:
        """The code of a step, remembered."""
        self._last = step
        return self.of_step(step)

    def of_step(self, step: int) -> str:
        return pyotp.TOTP(self.seed).generate_otp(step)

    @property
    def step(self) -> int:
        """The step of the last code shown."""
        return self._last


@dataclass
class Person:
    """Somebody with a password, a phone, and recovery codes in a drawer."""

    actor: Actor
    login: str
    password: str
    phone: Phone
    drawer: list[str] = field(default_factory=list)

    def proof(self) -> Proof:
        """What the person types now; never the same twice: three codes of the phone each 30 s, then the drawer's."""
        code = self.phone.fresh()
        if code is None:
            assert self.drawer, "too many proofs within 30 s of the clock: advance it"
            code = self.drawer.pop()
        return Proof(self.password, code)


async def a_person(desk: Desk, role: Role, unit_id: str, login: str | None = None) -> Person:
    """A person with one role at one place, with a password of their own and a phone."""
    login = login or f"{role.value.replace('_', '-')}-{unit_id}-{next(_count)}"
    made = await people.add_user(desk, OPERATOR, login, login.title(), NewGrant(role, unit_id))
    return await with_password(desk, Actor(made.user.id, login))


async def with_password(desk: Desk, actor: Actor) -> Person:
    """Give somebody who is there already a password and a phone, as if they had set both up long ago."""
    seed = base64.b32encode(desk.chance.token_bytes(20)).decode()
    drawer = [f"{seed[:8]}{number:08}" for number in range(10)]

    def write(session: Session) -> None:
        credential = rows.credential_of(session, actor.user_id)
        credential.password_hash, credential.password_set_at = _hashed(), desk.clock.now()
        credential.totp_secret = seed
        rows.put_recovery_codes(session, actor.user_id, drawer)

    await desk.store.begin(write)
    return Person(actor, actor.login, PASSWORD, Phone(seed, desk.clock), drawer)


async def who_enters(desk: Desk, actor: Actor) -> Person:
    """The same as it goes in the field: change the first password, set up codes on a phone."""
    first = await people.reset_password(desk, OPERATOR, actor.user_id)
    password = f"nồi cơm bò kho {desk.chance.new_id()[:8]}"
    await accounts.change_password(desk, actor, Proof(first, ""), password)
    offer = await accounts.begin_totp(desk, actor, Proof(password, ""))
    phone = Phone(offer.secret, desk.clock)
    kept = await accounts.confirm_totp(desk, actor, phone.fresh() or "")
    return Person(actor, actor.login, password, phone, list(kept.recovery_codes))


@functools.cache
def _hashed() -> str:
    """One real hash for everybody: 46 MiB each would be most of a test's time."""
    return hashing.hash_of(PASSWORD, FakeChance())
