"""What the machine room is doing, as rows tell it: nothing here asks a broker, a relay or a node."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version

from pydantic import BaseModel

from broadcast_server.api.deps import ActorDep, DeskDep
from broadcast_server.api.gate import Router, signed_in
from broadcast_server.control import glance
from broadcast_server.store.words import FeedState

router = Router(prefix="/system", tags=["system"])


class Leader(BaseModel):
    """Who plans and signs."""

    holder: str
    epoch: int
    expires_at: datetime
    is_in_force: bool


class FeedHealth(BaseModel):
    """One feed as it was last seen."""

    feed_id: str
    name: str
    state: FeedState
    reason: str | None
    since: datetime | None


class JobStatus(BaseModel):
    """One named job of the alarm clock."""

    name: str
    next_at: datetime | None
    last_at: datetime | None
    last_outcome: str | None


class ServerClock(BaseModel):
    """What one process of the server says of its clock. `doubts`: seconds by which each witness differs.

    While it is not trusted, nobody is told the time and nothing but emergencies is signed; what nodes hold goes on.
    """

    process: str
    host: str
    is_trusted: bool
    doubts: dict[str, float]
    since: datetime
    step_s: float
    kernel_synchronised: bool | None
    nodes_heard: int


class SystemStatus(BaseModel):
    """The whole server at a glance."""

    version: str
    time: datetime
    database: str
    leader: Leader | None
    broker: str | None
    nodes: int
    nodes_online: int
    nodes_on_probation: int
    nodes_quarantined: int
    """Silent because two devices speak under one name, or an officer says so: look into it."""
    clusters: int
    units: int
    schedules_active: int
    plans_waiting: int
    conflicts_open: int
    approvals_waiting: int
    break_glass_open: int
    """Alarms one person raised alone that nobody else has looked at yet."""
    break_glass_overdue: int
    """Of these, past their day: the right rests there until somebody does."""
    feeds: list[FeedHealth]
    jobs: list[JobStatus]
    clocks: list[ServerClock]
    audit_contradicted: int
    """Anchors of the audit log that nodes hold and the log does not; 0 unless rows were changed or lost."""


@router.get("", operation_id="get_system")
@signed_in
async def get_system(desk: DeskDep, actor: ActorDep) -> SystemStatus:
    """Version, leader, broker, jobs and clocks of the machine; feeds and counts of what one may read."""
    now = desk.clock.now()
    told = await glance.glance(desk, actor)
    seen = told.overview
    leader = seen.leader
    return SystemStatus(
        version=version("loa"),
        time=now,
        database=desk.store.dialect,
        leader=None
        if leader is None
        else Leader(
            holder=leader.holder, epoch=leader.epoch, expires_at=leader.expires_at, is_in_force=leader.expires_at > now
        ),
        broker=seen.broker,
        nodes=seen.nodes,
        nodes_online=seen.nodes_online,
        nodes_on_probation=seen.nodes_on_probation,
        nodes_quarantined=seen.nodes_quarantined,
        clusters=seen.clusters,
        units=seen.units,
        schedules_active=seen.schedules_active,
        plans_waiting=seen.plans_waiting,
        conflicts_open=seen.conflicts_open,
        approvals_waiting=seen.approvals_waiting,
        break_glass_open=seen.break_glass_open,
        break_glass_overdue=seen.break_glass_overdue,
        feeds=[
            FeedHealth(
                feed_id=feed.id,
                name=feed.name,
                state=FeedState.UNKNOWN if status is None else status.state,
                reason=None if status is None else status.reason,
                since=None if status is None else status.since,
            )
            for feed, status in seen.feeds
        ],
        jobs=[
            JobStatus(name=job.name, next_at=job.next_at, last_at=job.last_at, last_outcome=job.last_outcome)
            for job in seen.jobs
        ],
        audit_contradicted=seen.audit_contradicted,
        clocks=[
            ServerClock(
                process=one.process,
                host=one.host,
                is_trusted=one.is_trusted,
                doubts=one.doubts,
                since=one.since,
                step_s=one.step_s,
                kernel_synchronised=one.kernel_synchronised,
                nodes_heard=one.nodes_heard,
            )
            for one in told.clocks
        ],
    )
