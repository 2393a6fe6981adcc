"""The audit log over HTTP: who did what to what, for those who may ask."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query

from broadcast_server.api.deps import ActorDep, DeskDep
from broadcast_server.api.fields import IdQuery, Instant, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.control import auditing
from broadcast_server.control.access import Action
from broadcast_server.control.auditing import AuditQuery
from broadcast_server.domain.errors import Invalid
from broadcast_server.store.tables import AuditRow

router = Router(tags=["audit"])


class AuditLine(Shown):
    """One row of the log. `hash` is chained to the row before by `previous_hash`."""

    sequence: int
    at: datetime
    actor: str
    verb: str
    unit_id: str | None
    subject: str
    detail: dict[str, Any]
    previous_hash: str
    hash: str

    @classmethod
    def of(cls, row: AuditRow) -> AuditLine:
        """As callers see it."""
        return cls(
            sequence=row.sequence,
            at=row.at,
            actor=row.actor,
            verb=row.verb,
            unit_id=row.unit_id,
            subject=row.subject,
            detail=row.detail,
            previous_hash=row.previous_hash,
            hash=row.hash,
        )


@router.get("/audit")
@asks(Action.AUDIT_READ)
async def list_audit(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    unit_id: IdQuery = None,
    who: Annotated[str | None, Query(max_length=60, description="login, or the part of the program")] = None,
    verb: Annotated[
        str | None, Query(max_length=60, description="what was done; `emergency.` takes all of that noun")
    ] = None,
    subject: Annotated[str | None, Query(max_length=160, description="`noun/id`")] = None,
    since: Annotated[Instant | None, Query()] = None,
    until: Annotated[Instant | None, Query()] = None,
) -> Page[AuditLine]:
    """Rows of the places where one may read the log, the newest first."""
    if paging.after is not None and not paging.after.isdecimal():
        raise Invalid("cursor_invalid", field="cursor", fix="use_next_of_last_page")
    before = None if paging.after is None else int(paging.after)
    query = AuditQuery(unit_id, who, verb, subject, since, until, before, paging.fetch)
    found = await auditing.list_rows(desk, actor, query)
    return paging.page(found, key=lambda row: str(row.sequence), item=AuditLine.of)
