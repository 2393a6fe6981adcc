"""Conflicts over HTTP: what will not sound as placed, told to who placed it: who won, until when, what to change."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query

from broadcast_server.api.deps import ActorDep, DeskDep, LocaleDep
from broadcast_server.api.fields import IdQuery, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.api.schedules import WayOutShown
from broadcast_server.catalogue import Locale, sentence
from broadcast_server.control import feeds
from broadcast_server.control.access import Action
from broadcast_server.control.grounds import of_conflict
from broadcast_server.control.outlook import local_text
from broadcast_server.store.tables import ConflictRow
from broadcast_server.store.words import ConflictKind

router = Router(tags=["feeds"], route_class=IdempotentRoute)


class ScheduleConflict(Shown):
    """Coming entries that will not sound as planned: the rule, who won, until when, and the ways out.

    `until` null: `until_sentence` says what must happen first. `facts` tell the rest, the successor proposed too.
    """

    id: str
    unit_id: str
    schedule_id: str
    kind: ConflictKind
    subject: str
    title: str
    affects_from: datetime
    sentence: str
    rule: str
    rule_sentence: str
    winner_id: str | None
    winner_title: str | None
    until: datetime | None
    until_sentence: str
    ways_out: list[WayOutShown]
    facts: dict[str, Any]
    opened_at: datetime
    closed_at: datetime | None

    @classmethod
    def of(cls, row: ConflictRow, locale: Locale) -> ScheduleConflict:
        """As callers see it."""
        loss = of_conflict(row)
        grounds = loss.grounds
        words = {**loss.facts, "at": local_text(row.affects_from)}
        if grounds.until is not None:
            words["until"] = local_text(grounds.until)
        return cls(
            id=row.id,
            unit_id=row.unit_id,
            schedule_id=row.schedule_id,
            kind=row.kind,
            subject=row.subject,
            title=str(loss.facts["title"]),
            affects_from=row.affects_from,
            sentence=sentence(loss.code, words, locale),
            rule=grounds.rule,
            rule_sentence=sentence(grounds.rule, words, locale),
            winner_id=grounds.winner_id,
            winner_title=grounds.winner_title,
            until=grounds.until,
            until_sentence=sentence(grounds.ends_with or "until_instant", words, locale),
            ways_out=[
                WayOutShown(
                    way=out.way.value,
                    sentence=sentence(f"way_{out.way.value}", out.facts, locale),
                    facts=dict(out.facts),
                )
                for out in loss.ways_out
            ],
            facts=row.facts,
            opened_at=row.opened_at,
            closed_at=row.closed_at,
        )


@router.get("/conflicts")
@asks(Action.READ)
async def list_conflicts(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    locale: LocaleDep,
    within: IdQuery = None,
    feed_id: IdQuery = None,
    closed: Annotated[bool, Query(description="solved ones too")] = False,
    mine: Annotated[bool, Query(description="only of what you put on the air yourself")] = False,
) -> Page[ScheduleConflict]:
    """What is in the way of coming entries, by id: in the subtree of `within`, of one feed, of your own."""
    found = await feeds.list_conflicts(
        desk,
        actor,
        within=within,
        feed_id=feed_id,
        closed=closed,
        is_mine=mine,
        after=paging.after,
        limit=paging.fetch,
    )
    return paging.page(found, key=lambda row: row.id, item=lambda row: ScheduleConflict.of(row, locale))
