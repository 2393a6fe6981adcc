"""What the engine room tells the front doors, which may not ask it: broker address, root public key, public URL.

Written at start by whoever builds the process; read in the same transaction as what depends on it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.orm import Session

from broadcast_server.domain.errors import Unavailable
from broadcast_server.store.tables import FactRow

BROKER: Final = "broker"
"""`{host, port, tls, ca_pem | None}`: where nodes connect."""
ROOT_PUBLIC_KEY: Final = "root_public_key"
"""`{hex}`: what a node is enrolled with."""
PUBLIC_URL: Final = "public_url"
"""`{url}`: the HTTP origin as nodes and people reach it, without a slash at the end."""
INGEST: Final = "ingest"
"""`{host, port, tls}`: where stations push."""
KEYS_CHANGED: Final = "keys_changed"
"""`{word, must_resign}`: the operator changed the signing keys; `word` differs each time. `must_resign`: what is
retained was signed by a key that is revoked.
"""
KEYS_HELD: Final = "keys_held"
"""`{rl_version, ends: {role: {until_ms, unit}}}`: what was last said of keys, and which ends first of each role."""
KEYS_TOLD: Final = "keys_told"
"""`{key_ids}`: every key nodes were told of, so that a new one is written down once."""
CLOCK_TRUST: Final = "clock_trust"
"""`{word, by, reason, audit}`: the operator's last word that the machine's clock is right; `word` differs each time."""
DEMO: Final = "demo"
"""`{}`: the database was made by the demo: its users are known to everybody, and no other server runs on it."""
AUDIT_ANCHOR: Final = "audit_anchor"
"""`{sequence, hash, at}`: the last head of the audit log that was given to witnesses."""
AUDIT_CONTRADICTED: Final = "audit_contradicted"
"""`{open, answered: [[sequence, hash]]}`: what nodes hold and the audit log does not; the operator answers."""


def keys_end_soon(role: str) -> timedelta:
    """How long before its end a key of this role is warned of: an authority takes a person and the root's machine."""
    return timedelta(days=21 if role == "authority" else 7)


def put(session: Session, name: str, value: dict[str, Any], *, now: datetime) -> None:
    """Tell a fact; the same name again replaces it."""
    row = session.get(FactRow, name)
    if row is None:
        session.add(FactRow(name=name, value=value, updated_at=now))
    else:
        row.value, row.updated_at = value, now


def find(session: Session, name: str) -> dict[str, Any] | None:
    """The fact, if it was told."""
    row = session.get(FactRow, name)
    return None if row is None else row.value


def get(session: Session, name: str) -> dict[str, Any]:
    """The fact. Raises `Unavailable("fact_unknown")` before the engine room first told it."""
    value = find(session, name)
    if value is None:
        raise Unavailable("fact_unknown", name=name)
    return value
