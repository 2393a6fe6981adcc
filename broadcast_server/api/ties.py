"""Bulletins of *ưu tiên* due at once, over HTTP: what waits for the commune's order, and what was decided."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from pydantic import Field, StringConstraints

from broadcast_server.api.deps import ActorDep, DeskDep, LocaleDep
from broadcast_server.api.fields import Form, IdPath, IdQuery, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.catalogue import Locale, sentence
from broadcast_server.control import ties
from broadcast_server.control.access import Action
from broadcast_server.control.outlook import local_text
from broadcast_server.control.ties import OrderTie
from broadcast_server.store.tables import TieRow
from broadcast_server.store.words import TieState

router = Router(tags=["ties"], route_class=IdempotentRoute)

EntryId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}@\d{1,15}$")]


class OrderForm(Form):
    """The order in which they shall sound: every entry, once."""

    entry_ids: Annotated[tuple[EntryId, ...], Field(min_length=2, max_length=100)]


class Tie(Shown):
    """Bulletins due at once. `options` in the order of the declared default; `chosen`: the order that holds."""

    id: str
    unit_id: str
    state: TieState
    sentence: str
    collides_at: datetime
    deadline: datetime
    options: list[dict[str, Any]]
    chosen: list[str]
    opened_at: datetime
    decided_at: datetime | None
    decided_by: str | None

    @classmethod
    def of(cls, row: TieRow, locale: Locale) -> Tie:
        """As callers see it."""
        titles = {option["entry_id"]: option["title"] for option in row.options}
        words = {
            "at": local_text(row.collides_at),
            "deadline": local_text(row.deadline),
            "by": row.decided_by or "",
            "order": " → ".join(titles[entry_id] for entry_id in row.chosen),
        }
        return cls(
            id=row.id,
            unit_id=row.unit_id,
            state=row.state,
            sentence=sentence(f"tie_{row.state.value}", words, locale),
            collides_at=row.collides_at,
            deadline=row.deadline,
            options=list(row.options),
            chosen=row.chosen,
            opened_at=row.opened_at,
            decided_at=row.decided_at,
            decided_by=row.decided_by,
        )


@router.get("/ties")
@asks(Action.READ)
async def list_ties(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    locale: LocaleDep,
    unit: IdQuery = None,
    state: Annotated[TieState | None, Query()] = None,
) -> Page[Tie]:
    """Collisions at units you may see, the newest first."""
    found = await ties.list_ties(desk, actor, unit_id=unit, state=state, after=paging.after, limit=paging.fetch)
    return paging.page(found, key=lambda row: row.id, item=lambda row: Tie.of(row, locale))


@router.get("/ties/{tie_id}")
@asks(Action.READ)
async def get_tie(desk: DeskDep, actor: ActorDep, tie_id: IdPath, locale: LocaleDep) -> Tie:
    """One collision."""
    return Tie.of(await ties.get_tie(desk, actor, tie_id), locale)


@router.post("/ties/{tie_id}/order")
@asks(Action.SCHEDULE_PRIORITY)
async def order_tie(desk: DeskDep, actor: ActorDep, tie_id: IdPath, form: OrderForm, locale: LocaleDep) -> Tie:
    """Say which sounds first; until the deadline it can be said again."""
    return Tie.of(await ties.order_tie(desk, actor, OrderTie(tie_id, form.entry_ids)), locale)
