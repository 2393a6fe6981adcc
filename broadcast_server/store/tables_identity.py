"""Tables of who somebody is: passwords and one-time codes, tries, sign-ins. On the same metadata as `store.tables`.

Secrets of people are argon2id hashes, secrets of machines (cookies, recovery codes) SHA-256 of many random bits. The
one secret that must be readable is the seed of one-time codes: who reads the database reads it, so a copy of the
database is guarded like a key.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from broadcast_server.store.tables import Base


class CredentialRow(Base):
    """How a person proves to be one: a password and the seed of one-time codes."""

    __tablename__ = "credentials"
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), primary_key=True)
    password_hash: Mapped[str | None] = mapped_column(String(160))
    password_set_at: Mapped[datetime | None]
    must_change: Mapped[bool] = mapped_column(default=False)
    """The password was made by somebody else: nothing may be done with it but change it."""
    totp_secret: Mapped[str | None] = mapped_column(String(64))
    totp_pending: Mapped[str | None] = mapped_column(String(64))
    """Told to the owner, in force once a code of it was shown."""
    totp_step: Mapped[int] = mapped_column(default=0)
    """The last step of 30 s whose code has served; none at or before it serves again."""


class RecoveryCodeRow(Base):
    """A code for the day the phone is lost, by its hash; serves once."""

    __tablename__ = "recovery_codes"
    code_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    used_at: Mapped[datetime | None]


class TryRow(Base):
    """Tries that failed, or have not ended yet, of one account from one place. The key is a hash: logins are typed."""

    __tablename__ = "tries"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    failures: Mapped[int]
    since: Mapped[datetime] = mapped_column(index=True)
    next_at: Mapped[datetime]


class SignInRow(Base):
    """A person at a browser, from log-in to log-out, by the hash of the cookie's secret."""

    __tablename__ = "sign_ins"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    device_hash: Mapped[str] = mapped_column(String(64), index=True)
    """Of a second cookie that outlives the first: tells a browser where this person has been before."""
    address: Mapped[str] = mapped_column(String(64))
    agent: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    ends_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
