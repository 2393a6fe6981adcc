"""How ready a place is for what sounds next: "45/45 for 05:00", and who is not and why."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from pydantic import AwareDatetime

from broadcast_server.api.deps import ActorDep, DeskDep, LocaleDep
from broadcast_server.api.fields import Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.catalogue import Locale, sentence
from broadcast_server.control import readiness
from broadcast_server.control.access import Action
from broadcast_server.control.readiness import ItemReadiness, NotReady, Readiness

router = Router(tags=["readiness"])


class NotReadyShown(Shown):
    """A node that does not hold an item, and why."""

    node_id: str
    cluster_id: str
    code: str
    sentence: str
    facts: dict[str, Any]

    @classmethod
    def of(cls, one: NotReady, locale: Locale) -> NotReadyShown:
        """As callers see it."""
        return cls(
            node_id=one.node_id,
            cluster_id=one.cluster_id,
            code=one.code,
            sentence=sentence(one.code, {"node_id": one.node_id, **one.facts}, locale),
            facts=dict(one.facts),
        )


class ItemReadinessShown(Shown):
    """One recorded item and how many of the nodes it is due on hold it."""

    entry_id: str
    title: str
    start: datetime
    nodes: int
    ready: int
    not_ready: list[NotReadyShown]

    @classmethod
    def of(cls, item: ItemReadiness, locale: Locale) -> ItemReadinessShown:
        """As callers see it."""
        return cls(
            entry_id=item.entry_id,
            title=item.title,
            start=item.start,
            nodes=item.nodes,
            ready=item.ready,
            not_ready=[NotReadyShown.of(one, locale) for one in item.not_ready],
        )


class ReadinessShown(Shown):
    """How ready a place is. `at` null: nothing recorded is due in the next 24 hours."""

    unit_id: str
    at: datetime | None
    nodes: int
    ready: int
    items: list[ItemReadinessShown]

    @classmethod
    def of(cls, told: Readiness, locale: Locale) -> ReadinessShown:
        """As callers see it."""
        return cls(
            unit_id=told.unit_id,
            at=told.at,
            nodes=told.nodes,
            ready=told.ready,
            items=[ItemReadinessShown.of(item, locale) for item in told.items],
        )


@router.get("/readiness")
@asks(Action.READ)
async def get_readiness(
    desk: DeskDep,
    actor: ActorDep,
    locale: LocaleDep,
    unit: Annotated[str, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")],
    at: Annotated[AwareDatetime | None, Query(description="what begins then; left out: what is due next")] = None,
) -> ReadinessShown:
    """Who holds what begins at an instant, and who does not and why."""
    return ReadinessShown.of(await readiness.readiness(desk, actor, unit, at), locale)
