"""The play log (nhật ký phát) over HTTP: lines, and the proof of each broadcast."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import Path, Query
from pydantic import AwareDatetime

from broadcast_server.api.deps import ActorDep, DeskDep
from broadcast_server.api.fields import IdQuery, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.control import plays
from broadcast_server.control.access import Action
from broadcast_server.control.plays import PlayQuery, cursor_of
from broadcast_server.domain.proof import Verdict
from broadcast_server.store.plays import Play, Proof
from broadcast_server.store.words import RelayedKind, ScheduleKind
from speaker_protocol.rules import BulletinClass

router = Router(tags=["plays"])

Since = Annotated[AwareDatetime | None, Query(alias="from", description="starts at or after")]
Until = Annotated[AwareDatetime | None, Query(description="starts before")]
BroadcastQuery = Annotated[str | None, Query(max_length=120)]


class SoundedInstead(Shown):
    """What sounded in place of the feed for a while."""

    kind: RelayedKind
    source_id: str | None
    name: str | None
    reason: str
    since: datetime
    until: datetime


class PlayShown(Shown):
    """A line of the log: one planned stretch on one cluster, and the verdict over it.

    `late_ms` and `late_because`: the node's own word that it began late, and why; `late_because` alone: it began on
    time by a clock that nobody had confirmed. `uncertainty_ms`: how wrong its clock may have been then.
    """

    id: str
    broadcast_id: str
    schedule_id: str | None
    kind: ScheduleKind
    klass: BulletinClass
    title: str
    unit_id: str
    cluster_id: str
    cluster_code: str
    cluster_name: str
    node_id: str
    starts_at: datetime
    ends_at: datetime
    verdict: Verdict
    reason: str | None
    heard_ms: int
    started_at: datetime | None
    underruns: int
    feed_id: str | None
    asset_sha256: str | None
    approval: str | None
    judged_at: datetime | None
    late_ms: int | None
    late_because: str | None
    uncertainty_ms: float | None
    instead: list[SoundedInstead]

    @classmethod
    def of(cls, play: Play) -> PlayShown:
        """As callers see it."""
        return cls.model_validate(play, from_attributes=True)


class BroadcastShown(Shown):
    """One broadcast and what is known of it. `coverage`: heard over planned time; `open`: lines not judged yet."""

    id: str
    schedule_id: str | None
    unit_id: str
    kind: ScheduleKind
    klass: BulletinClass
    title: str
    starts_at: datetime
    ends_at: datetime
    feed_id: str | None
    asset_sha256: str | None
    approval: str | None
    nodes_planned: int
    nodes_heard: int
    verdicts: dict[str, int]
    coverage: float
    underruns: int
    open: int

    @classmethod
    def of(cls, proof: Proof) -> BroadcastShown:
        """As callers see it."""
        return cls(
            id=proof.broadcast_id,
            schedule_id=proof.schedule_id,
            unit_id=proof.unit_id,
            kind=proof.kind,
            klass=proof.klass,
            title=proof.title,
            starts_at=proof.starts_at,
            ends_at=proof.ends_at,
            feed_id=proof.feed_id,
            asset_sha256=proof.asset_sha256,
            approval=proof.approval,
            nodes_planned=proof.nodes_planned,
            nodes_heard=proof.nodes_heard,
            verdicts=proof.verdicts,
            coverage=proof.coverage,
            underruns=proof.underruns,
            open=proof.open,
        )


@router.get("/plays")
@asks(Action.LOG_READ)
async def list_plays(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    unit: IdQuery = None,
    cluster: IdQuery = None,
    broadcast: BroadcastQuery = None,
    schedule: IdQuery = None,
    verdict: Annotated[Verdict | None, Query()] = None,
    since: Since = None,
    until: Until = None,
) -> Page[PlayShown]:
    """Lines of the log, the latest first."""
    query = PlayQuery(unit, cluster, broadcast, schedule, verdict, since, until, paging.after, paging.fetch)
    return paging.page(await plays.list_plays(desk, actor, query), key=cursor_of, item=PlayShown.of)


@router.get("/broadcasts")
@asks(Action.LOG_READ)
async def list_broadcasts(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    within: IdQuery = None,
    schedule: IdQuery = None,
    since: Since = None,
    until: Until = None,
) -> Page[BroadcastShown]:
    """Broadcasts with their proof, the latest first."""
    query = PlayQuery(
        unit_id=within, schedule_id=schedule, since=since, until=until, after=paging.after, limit=paging.fetch
    )
    return paging.page(await plays.list_broadcasts(desk, actor, query), key=cursor_of, item=BroadcastShown.of)


@router.get("/broadcasts/{broadcast_id}")
@asks(Action.LOG_READ)
async def get_broadcast(
    desk: DeskDep, actor: ActorDep, broadcast_id: Annotated[str, Path(max_length=120)]
) -> BroadcastShown:
    """The proof of one broadcast."""
    return BroadcastShown.of(await plays.get_proof(desk, actor, broadcast_id))
