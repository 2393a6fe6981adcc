"""The audit log: who did what to what, append-only, each row chained to the one before by its hash.

A maintainer must not break: (1) `append` runs in the transaction of the change it tells of, so there is no change
without its row and no row without its change; (2) the sequence has no gaps: the store has one writer at a time
(`store.session`), and the primary key refuses a fork; (3) the hash is SHA-256 over the canonical JSON below and the
hash before it: changing that form breaks every chain that exists. Who can rewrite the whole table can rewrite the
chain; an anchor outside of it comes with its issue.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from broadcast_server.domain.clock import from_ms
from broadcast_server.domain.errors import Invalid
from broadcast_server.store.tables import AuditRow

GENESIS = "0" * 64
"""The hash before the first row."""


def append(
    session: Session,
    *,
    now: datetime,
    actor: str,
    verb: str,
    unit_id: str | None,
    subject: str,
    detail: Mapping[str, Any] | None = None,
) -> int:
    """Add a row to the chain and return its sequence number.

    `actor`: login or name of the part of the program; `verb`: `noun.verb`; `subject`: what it was done to, as
    `noun/id`; `detail`: JSON-representable facts, no secrets. Raises `Invalid("naive_time")`; `TypeError` on a
    detail that is not JSON.
    """
    last = session.execute(
        select(AuditRow.sequence, AuditRow.hash).order_by(AuditRow.sequence.desc()).limit(1)
    ).one_or_none()
    sequence, previous = (last.sequence + 1, last.hash) if last else (1, GENESIS)
    kept: dict[str, Any] = json.loads(_canonical(dict(detail or {})))  # as a reader will get it back
    told = (sequence, now, actor, verb, unit_id, subject, kept)
    session.add(
        AuditRow(
            sequence=sequence,
            at=now,
            actor=actor,
            verb=verb,
            unit_id=unit_id,
            subject=subject,
            detail=kept,
            previous_hash=previous,
            hash=_hash_of(previous, *told),
        )
    )
    session.flush()
    return sequence


def verify(session: Session) -> int | None:
    """Sequence of the first row whose chain is broken, changed or missing; None when all holds."""
    expected, previous = 1, GENESIS
    with session.execute(_IN_ORDER.execution_options(yield_per=1_000)) as rows:
        for *told, previous_hash, hash_ in rows:
            if told[0] != expected or previous_hash != previous or hash_ != _hash_of(previous, *told):
                return expected
            expected, previous = expected + 1, hash_
    return None


_IN_ORDER = select(
    AuditRow.sequence,
    AuditRow.at,
    AuditRow.actor,
    AuditRow.verb,
    AuditRow.unit_id,
    AuditRow.subject,
    AuditRow.detail,
    AuditRow.previous_hash,
    AuditRow.hash,
).order_by(AuditRow.sequence)


def _hash_of(
    previous: str,
    sequence: int,
    at: datetime,
    actor: str,
    verb: str,
    unit_id: str | None,
    subject: str,
    detail: Mapping[str, Any],
) -> str:
    if at.tzinfo is None:
        raise Invalid("naive_time", field="now")
    told = {
        "sequence": sequence,
        "at_us": (at - from_ms(0)) // timedelta(microseconds=1),
        "actor": actor,
        "verb": verb,
        "unit_id": unit_id,
        "subject": subject,
        "detail": detail,
    }
    return hashlib.sha256(f"{previous}\n{_canonical(told)}".encode()).hexdigest()


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
