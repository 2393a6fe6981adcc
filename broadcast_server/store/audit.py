"""The audit log: who did what to what, append-only, each row chained to the one before by its hash.

A maintainer must not break: (1) `append` runs in the transaction of the change it tells of, so there is no change
without its row and no row without its change; (2) the sequence has no gaps: the store has one writer at a time
(`store.session`), and the primary key refuses a fork; (3) the hash is SHA-256 over the canonical JSON below and the
hash before it: changing that form breaks every chain that exists, and `cli.audit_verifier` reads it without us; (4)
rows are never changed nor deleted, and the database refuses whoever tries (`APPEND_ONLY`); (5) where the log cannot be
written nothing is done, except what an emergency needs, which `store.journal` takes down instead. Who can rewrite the
whole file can rewrite the chain: what shows that are anchors held elsewhere (`playout.anchoring`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import DDL, event, insert, select
from sqlalchemy.exc import DBAPIError

from broadcast_server.domain.clock import from_ms
from broadcast_server.domain.errors import Invalid, Unavailable
from broadcast_server.store.session import AFTER_FAILURE, Session
from broadcast_server.store.tables import AuditRow

GENESIS: Final = "0" * 64
"""The hash before the first row."""
APPEND_ONLY: Final[Mapping[str, Sequence[str]]] = {
    "sqlite": (
        (
            "CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit"
            " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        ),
        (
            "CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit"
            " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        ),
    ),
    "postgresql": (
        (
            "CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
        ),
        (
            "CREATE TRIGGER audit_is_not_changed BEFORE UPDATE OR DELETE ON audit"
            " FOR EACH ROW EXECUTE FUNCTION audit_is_append_only()"
        ),
        (
            "CREATE TRIGGER audit_is_not_emptied BEFORE TRUNCATE ON audit"
            " FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()"
        ),
    ),
}
"""What makes the database itself refuse; the migration has the same words."""
DENIED: Final = "access.denied"
RESTORED: Final = "store.restore"
_DENIED_ONCE_IN: Final = timedelta(minutes=10)
_JOURNAL: Final = "audit_journal"

for _dialect, _statements in APPEND_ONLY.items():
    for _statement in _statements:
        event.listen(AuditRow.__table__, "after_create", DDL(_statement).execute_if(dialect=_dialect))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where the log stood: the hash of row `sequence`, to be held by somebody else."""

    sequence: int
    hash: str
    at: datetime


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
    detail that is not JSON; `Unavailable("audit_unwritable")`, and then nothing of the transaction may stand.
    """
    kept: dict[str, Any] = json.loads(_canonical(dict(detail or {})))  # as a reader will get it back
    journaled: list[dict[str, Any]] | None = session.info.get(_JOURNAL)
    if journaled is not None:
        journaled.append({"actor": actor, "verb": verb, "unit_id": unit_id, "subject": subject, "detail": kept})
        return 0
    session.flush()  # what is wrong with the change itself is not the log's fault
    try:
        last = session.execute(
            select(AuditRow.sequence, AuditRow.hash).order_by(AuditRow.sequence.desc()).limit(1)
        ).one_or_none()
        sequence, previous = (last.sequence + 1, last.hash) if last else (1, GENESIS)
        told = (sequence, now, actor, verb, unit_id, subject, kept)
        session.execute(
            insert(AuditRow).values(
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
    except DBAPIError as error:
        raise Unavailable("audit_unwritable") from error
    return sequence


def into_journal(session: Session) -> list[dict[str, Any]]:
    """From here on rows of this transaction are not written to the log but gathered in the list that is returned."""
    rows: list[dict[str, Any]] = []
    session.info[_JOURNAL] = rows
    return rows


def note_denied(session: Session, *, now: datetime, actor: str, action: str, unit_id: str | None) -> None:
    """Have a refused action written down once this transaction has failed; the same one again only after 10 minutes."""
    after: list[Any] = session.info.setdefault(AFTER_FAILURE, [])
    after.append(lambda fresh: _write_denied(fresh, now, actor, action, unit_id))


def _write_denied(session: Session, now: datetime, actor: str, action: str, unit_id: str | None) -> None:
    subject = f"action/{action}"
    same = select(AuditRow.sequence).where(
        AuditRow.at > now - _DENIED_ONCE_IN,
        AuditRow.verb == DENIED,
        AuditRow.actor == actor,
        AuditRow.subject == subject,
        AuditRow.unit_id.is_(None) if unit_id is None else AuditRow.unit_id == unit_id,
    )
    if session.execute(same.limit(1)).first() is None:
        append(session, now=now, actor=actor, verb=DENIED, unit_id=unit_id, subject=subject)


def head(session: Session) -> Anchor | None:
    """Where the log stands; None while nothing is in it."""
    row = session.execute(
        select(AuditRow.sequence, AuditRow.hash, AuditRow.at).order_by(AuditRow.sequence.desc()).limit(1)
    ).one_or_none()
    return None if row is None else Anchor(row.sequence, row.hash, row.at)


def listed(
    session: Session,
    units: Collection[str] | None,
    *,
    actor: str | None = None,
    verb: str | None = None,
    subject: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    before: int | None = None,
    limit: int,
) -> Sequence[AuditRow]:
    """Rows, the newest first. `units` None: all rows, else those of these units; `verb` ending in a dot: a noun's."""
    rows = select(AuditRow).order_by(AuditRow.sequence.desc()).limit(limit)
    if units is not None:
        rows = rows.where(AuditRow.unit_id.in_(units))
    if actor is not None:
        rows = rows.where(AuditRow.actor == actor)
    if verb is not None:
        rows = rows.where(
            AuditRow.verb.startswith(verb, autoescape=True) if verb.endswith(".") else AuditRow.verb == verb
        )
    if subject is not None:
        rows = rows.where(AuditRow.subject == subject)
    if since is not None:
        rows = rows.where(AuditRow.at >= since)
    if until is not None:
        rows = rows.where(AuditRow.at < until)
    if before is not None:
        rows = rows.where(AuditRow.sequence < before)
    return session.scalars(rows).all()


def hashes_at(session: Session, sequences: Collection[int]) -> dict[int, str]:
    """The hash of each of these rows that is there."""
    found = session.execute(select(AuditRow.sequence, AuditRow.hash).where(AuditRow.sequence.in_(sequences)))
    return {row.sequence: row.hash for row in found}


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
