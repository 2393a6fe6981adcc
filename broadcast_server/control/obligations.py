"""Whether obligations were kept: seconds heard of the right feed, by cluster and period, against what was required.

A maintainer must not break: nothing that was only scheduled counts, and nothing that sounded in the feed's stead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.clashes import Neighbourhood
from broadcast_server.control.desk import Desk
from broadcast_server.control.feeds import get_obligation
from broadcast_server.domain.clock import Window
from broadcast_server.domain.errors import Invalid
from broadcast_server.domain.fulfilment import Period, Share, Stretch, fulfil
from broadcast_server.domain.recurrence import occurrences, rule_from_dict
from broadcast_server.store import feeds, library, places, plays, relays, schedules
from broadcast_server.store.session import Session
from broadcast_server.store.tables import ObligationRow, ScheduleRow
from broadcast_server.store.words import ContentKind, ExceptionKind

LONGEST_LOOK: Final = timedelta(days=366)
_MS: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class FulfilmentQuery:
    """Of which obligation, when, added up over what; `after`: id of the last cluster seen."""

    obligation_id: str
    window: Window
    period: Period = Period.DAY
    after: str | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class ClusterFulfilment:
    """One cluster's shares, in order of time."""

    cluster_id: str
    unit_id: str
    shares: tuple[Share, ...]


async def fulfilment(desk: Desk, actor: Actor, query: FulfilmentQuery) -> list[ClusterFulfilment]:
    """Cluster by cluster, by id, of those the actor may see the log of.

    Raises `NotFound("unknown_obligation")`, `Invalid("window_too_long")`.
    """
    now = desk.clock.now()
    if query.window.length > LONGEST_LOOK:
        raise Invalid("window_too_long", field="to", fix="shorten_window", hours=24 * LONGEST_LOOK.days)
    await get_obligation(desk, actor, query.obligation_id)

    def work(session: Session) -> list[ClusterFulfilment]:
        row = feeds.obligation(session, query.obligation_id)
        schedule = schedules.schedule(session, row.schedule_id)
        on = places.local_date(query.window.start)
        around = Neighbourhood.read(session, on)
        reached = around.reach(schedules.targets_of(session, (schedule.id,)).get(schedule.id, ()))
        roots = access.scope(session, actor, Action.LOG_READ, at=now)
        if roots is not None:
            seen = places.subtree_of(session, roots, on)
            reached = frozenset(one for one in reached if around.clusters[one] in seen)
        wanted = sorted(one for one in reached if query.after is None or one > query.after)[: query.limit]
        required = required_windows(session, row, schedule, query.window)
        heard = _heard(session, row, wanted, query.window)
        is_feed = row.content_kind is ContentKind.FEED
        substitutes = relays.stand_ins(session, row.content_id, query.window) if is_feed else []
        return [
            ClusterFulfilment(
                cluster_id,
                around.clusters[cluster_id],
                fulfil(required, heard.get(cluster_id, ()), substitutes, query.window, query.period),
            )
            for cluster_id in wanted
        ]

    return await desk.store.read(work)


def required_windows(session: Session, row: ObligationRow, schedule: ScheduleRow, within: Window) -> list[Window]:
    """When it must sound inside `within`: as its schedule says, as long as the obligation is in force."""
    length = _length(session, row, schedule)
    if length is None:
        return []
    ends = within.end if row.valid_to is None else min(within.end, row.valid_to)
    begins = max(within.start - length, row.valid_from)
    if begins >= ends:
        return []
    differs = {one.occurs_at: one for one in schedules.exceptions_of(session, (schedule.id,))[schedule.id]}
    starts = []
    for instant in occurrences(rule_from_dict(schedule.rule), Window(begins, ends)):
        difference = differs.get(instant)
        if difference is None or difference.kind is ExceptionKind.CUT:  # a cut frees nobody from what was to be heard
            starts.append(instant)
        elif difference.moved_to is not None:
            starts.append(difference.moved_to)
    return [Window(start, start + length) for start in starts]


def _length(session: Session, row: ObligationRow, schedule: ScheduleRow) -> timedelta | None:
    if schedule.length_ms is not None:
        return schedule.length_ms * _MS
    version = library.approved_version(session, row.content_id, schedule.language)
    if version is None or version.asset_sha256 is None:
        return None
    return library.asset(session, version.asset_sha256).duration_ms * _MS


def _heard(
    session: Session, row: ObligationRow, cluster_ids: list[str], within: Window
) -> Mapping[str, tuple[Stretch, ...]]:
    """The play log of the right content by cluster; a cluster with two nodes heard what the better one sounded."""
    best: dict[str, dict[tuple[str, datetime, datetime], int]] = defaultdict(dict)
    lines = plays.lines_of(
        session,
        cluster_ids,
        within,
        feed_id=row.content_id if row.content_kind is ContentKind.FEED else None,
        bulletin_id=row.content_id if row.content_kind is ContentKind.BULLETIN else None,
    )
    for line in lines:
        key = (line.broadcast_id, line.starts_at, line.ends_at)
        best[line.cluster_id][key] = max(best[line.cluster_id].get(key, 0), line.heard_ms)
    return {
        cluster_id: tuple(Stretch(Window(start, end), heard_ms * _MS) for (_, start, end), heard_ms in told.items())
        for cluster_id, told in best.items()
    }
