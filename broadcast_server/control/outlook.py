"""The two questions about the air: what will sound, and why it does or does not at a minute.

Answered from the same entries and the same resolution as the plan, held against the same policy, so an answer is what
the nodes are sent. A maintainer must not break: what is missing always has a code of the catalogue; a past minute comes
with what the play log has of it beside what was planned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from typing import Any, Final

from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.clashes import Neighbourhood, Sound, reason_between
from broadcast_server.control.desk import Desk
from broadcast_server.domain import policy as policies
from broadcast_server.domain.alarm import on_air
from broadcast_server.domain.clock import LOCAL, Window
from broadcast_server.domain.delivery import ALERT
from broadcast_server.domain.errors import Invalid, NotFound
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.domain.policy import Violation
from broadcast_server.domain.proof import Verdict
from broadcast_server.domain.timeline import Resolution, Segment, resolve
from broadcast_server.store import emergencies, places, schedules
from broadcast_server.store.schedules import ScheduledEntry
from broadcast_server.store.session import Session
from broadcast_server.store.words import ScheduleKind
from speaker_protocol.rules import BulletinClass, Trouble, Why

LEAD_IN: Final = timedelta(days=1)
_MS: Final = timedelta(milliseconds=1)
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Sounding:
    """What will sound in `[start, end)`, from `offset_ms` of its own sound on."""

    entry_id: str
    schedule_id: str
    unit_id: str
    title: str
    kind: ScheduleKind
    klass: BulletinClass
    level: int
    start: datetime
    end: datetime
    offset_ms: int
    feed_id: str | None
    asset_sha256: str | None
    language: str


@dataclass(frozen=True, slots=True)
class Missing:
    """What was meant to sound and will not, with the code and facts of why."""

    entry_id: str
    schedule_id: str
    title: str
    at: datetime
    code: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Hearing:
    """The coming line of clusters that hear the same."""

    cluster_ids: tuple[str, ...]
    segments: tuple[Sounding, ...]
    missing: tuple[Missing, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a cluster sounds or does not at an instant. `code` is the catalogue's; `sounding`: what has the air then."""

    cluster_id: str
    at: datetime
    code: str
    facts: Mapping[str, Any]
    sounding: Sounding | None
    missing: tuple[Missing, ...]
    reported: tuple[Mapping[str, Any], ...]
    """What the play log has of that minute."""


LONGEST_PREVIEW: Final = timedelta(days=31)


async def preview_unit(desk: Desk, actor: Actor, unit_id: str, window: Window) -> tuple[Hearing, ...]:
    """What will sound at every cluster under a unit, by groups that hear the same."""
    now = desk.clock.now()
    _check_window(window)

    def work(session: Session) -> tuple[Hearing, ...]:
        access.authorize(session, actor, Action.READ, unit_id, at=now)
        around = Neighbourhood.read(session, places.local_date(window.start))
        return _hearings(session, around, around.reach((Target(TargetKind.UNIT, unit_id),)), window, now)

    return await desk.store.read(work)


async def preview_cluster(desk: Desk, actor: Actor, cluster_id: str, window: Window) -> Hearing:
    """What will sound at one cluster. Raises `NotFound`."""
    now = desk.clock.now()
    _check_window(window)

    def work(session: Session) -> Hearing:
        around = Neighbourhood.read(session, places.local_date(window.start))
        _authorize_cluster(session, actor, around, cluster_id, now)
        return _hearings(session, around, frozenset({cluster_id}), window, now)[0]

    return await desk.store.read(work)


async def explain(desk: Desk, actor: Actor, cluster_id: str, at: datetime) -> Explanation:
    """Why the cluster sounds, or does not, at an instant. Raises `NotFound`, `Invalid("naive_time")`."""
    now = desk.clock.now()
    if at.tzinfo is None:
        raise Invalid("naive_time", field="at", fix="add_offset")

    def work(session: Session) -> Explanation:
        around = Neighbourhood.read(session, places.local_date(at))
        _authorize_cluster(session, actor, around, cluster_id, now)
        return _explain(session, around, cluster_id, at, now)

    return await desk.store.read(work)


def _explain(session: Session, around: Neighbourhood, cluster_id: str, at: datetime, now: datetime) -> Explanation:
    window = Window(at - LEAD_IN, at + _DAY)
    hearing = _hearings(session, around, frozenset({cluster_id}), window, now)[0]
    reported = tuple(schedules.reported_at(session, cluster_id, at))
    sounding = next((one for one in hearing.segments if one.start <= at < one.end), None)
    due = tuple(one for one in hearing.missing if one.facts.get("start_at", at) <= at < one.facts.get("end_at", at))
    told: dict[str, Any] = {"at": local_text(at), "cluster": cluster_id}

    def answer(code: str, facts: Mapping[str, Any]) -> Explanation:
        shown = tuple(replace(one, facts=_plain(one.facts)) for one in due)
        return Explanation(cluster_id, at, code, told | dict(_plain(facts)), sounding, shown, reported)

    unit_id = around.clusters[cluster_id]
    stopped = schedules.stop_all_at(session, around.tree.ancestors(unit_id, around.on), at)
    if stopped is not None:
        until = None if stopped.released_at is None else local_text(stopped.released_at)
        told |= {"rule": "stop_all", "winner_id": stopped.id, "until": until}
        return answer("explain_stop_all", {"unit_id": stopped.unit_id, "since": local_text(stopped.since)})
    alerts = emergencies.alerts_at(session, around.tree.ancestors(unit_id, around.on), at)
    warning = on_air([span.body for span in alerts], at)
    if warning is not None:
        alert_id, round_end = warning
        span = next(span for span in alerts if span.body["alert_id"] == alert_id)
        told |= {"rule": "emergency", "winner_id": span.emergency_id, "unit_id": span.unit_id}
        facts = {
            "title": span.title,
            "level": span.level,
            "until": local_text(min(round_end, span.until)),
            "in_force_until": local_text(span.until),
        }
        if sounding is not None:
            facts["loser_title"] = sounding.title
        refused = _reason_of(reported, f"{ALERT}{alert_id}")
        if refused is not None:
            told |= {"rule": refused}
            return answer(f"node_{refused}", facts)
        return answer("explain_drill" if span.body.get("drill") else "explain_emergency", facts)
    if sounding is not None:
        facts = {"title": sounding.title, "start": local_text(sounding.start), "end": local_text(sounding.end)}
        refused = _reason_of(reported, sounding.entry_id)
        if refused is not None:
            told |= {
                "rule": refused,
                "winner_id": None,
                "until": local_text(_until(around, cluster_id, at, refused, sounding)),
            }
            return answer(f"node_{refused}", facts)
        losers = [one for one in due if one.entry_id != sounding.entry_id]
        return answer("explain_sounds_over" if losers else "explain_sounds", facts | _first_loser(losers))
    if due:
        return answer(due[0].code, {**due[0].facts, "title": due[0].title})
    quiet = _quiet_at(around, cluster_id, at)
    removed = schedules.removed_at(session, around.naming(frozenset({cluster_id})) or frozenset(), at)
    if removed is not None:
        return answer(f"explain_{removed.kind.value}", removed.facts())
    following = next((one for one in hearing.segments if one.start > at), None)
    later = {} if following is None else {"next_title": following.title, "next_start": local_text(following.start)}
    if quiet is not None:
        return answer("explain_quiet_hours", {"from": local_text(quiet.start), "to": local_text(quiet.end)} | later)
    return answer("explain_nothing_scheduled" if following is None else "explain_nothing_until", later)


NODE_REASONS: Final = frozenset(one.value for reasons in (Why, Trouble) for one in reasons)
"""What a node may give as its reason; the catalogue has a sentence for each, `node_` before the code."""


def _reason_of(reported: Sequence[Mapping[str, Any]], broadcast_id: str) -> str | None:
    """Why the cluster's node was not heard with this, by its own report; None where it was, or said nothing."""
    return next(
        (
            str(row["reason"])
            for row in reported
            if row["broadcast_id"] == broadcast_id
            and row["verdict"] != Verdict.PLAYED
            and row["reason"] in NODE_REASONS
        ),
        None,
    )


def _until(around: Neighbourhood, cluster_id: str, at: datetime, reason: str, sounding: Sounding) -> datetime:
    """Until when a node's reason holds, at the latest to the end of what it refused."""
    quiet = _quiet_at(around, cluster_id, at)
    if reason == Why.QUIET_HOURS and quiet is not None:
        return quiet.end
    if reason == Why.DAY_MINUTES:
        return datetime.combine(places.local_date(at) + _DAY, time(0), LOCAL)
    return sounding.end


def _first_loser(losers: Sequence[Missing]) -> dict[str, Any]:
    return {"loser_title": losers[0].title, "reason": losers[0].code} if losers else {}


def _quiet_at(around: Neighbourhood, cluster_id: str, at: datetime) -> Window | None:
    policy = around.policy_of(around.clusters[cluster_id])
    instant = Window(at, at + _MS)
    hours = (policy.quiet, *around.quiet_of(cluster_id))
    return next((quiet for each in hours for quiet in each.windows(instant)), None)


def _authorize_cluster(session: Session, actor: Actor, around: Neighbourhood, cluster_id: str, now: datetime) -> None:
    unit_id = around.clusters.get(cluster_id)
    if unit_id is None:
        raise NotFound("unknown_cluster", cluster_id=cluster_id)
    access.authorize(session, actor, Action.READ, unit_id, at=now)


def _check_window(window: Window) -> None:
    if window.length > LONGEST_PREVIEW:
        raise Invalid("window_too_long", field="until", fix="shorten_window", hours=24 * LONGEST_PREVIEW.days)


def local_text(at: datetime) -> str:
    """An instant as people here read it."""
    return at.astimezone(LOCAL).isoformat(timespec="seconds")


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: local_text(value) if isinstance(value, datetime) else value for name, value in facts.items()}


def _hearings(
    session: Session, around: Neighbourhood, clusters: frozenset[str], window: Window, now: datetime
) -> tuple[Hearing, ...]:
    found = []
    for members, line in lines(session, around, clusters, window, now):
        found.append(Hearing(tuple(sorted(members)), *line.told(window)))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Line:
    """What one hearing hears: resolved, held against its policy."""

    entries: Mapping[str, ScheduledEntry]
    resolution: Resolution
    silenced: Mapping[str, Violation]

    def told(self, window: Window) -> tuple[tuple[Sounding, ...], tuple[Missing, ...]]:
        """What sounds, and what is missing and why."""
        sounding = tuple(
            _sounding(self.entries[segment.entry_id], segment)
            for segment in self.resolution.segments
            if segment.entry_id not in self.silenced
        )
        missing = [
            self._missing(entry, entry.entry.start, f"blocked_{entry.blocked.kind.value}", dict(entry.blocked.facts))
            for entry in self.entries.values()
            if entry.blocked is not None and entry.entry.start < window.end and window.start < entry.entry.end
        ]
        missing += [
            self._lost(f"dropped_{drop.reason.value}", drop.entry_id, drop.winner_id, drop.at)
            for drop in self.resolution.dropped
        ]
        for wait in self.resolution.waits:
            lost = self._lost("waits_behind", wait.entry_id, wait.behind_id, wait.since)
            missing.append(replace(lost, facts={**lost.facts, "until": wait.until, "end_at": wait.until}))
        for entry_id, violation in self.silenced.items():
            missing.append(
                self._missing(
                    self.entries[entry_id], violation.at, f"silenced_{violation.code.value}", dict(violation.facts)
                )
            )
        return sounding, tuple(sorted(missing, key=lambda one: (one.at, one.entry_id, one.code)))

    def _lost(self, code: str, loser_id: str, winner_id: str | None, at: datetime) -> Missing:
        loser = self.entries[loser_id]
        winner = None if winner_id is None else self.entries[winner_id]
        reason, facts = reason_between(winner, loser)
        told = {"reason": reason, **facts}
        if winner is not None:
            told |= {"winner_id": winner.id, "winner_title": winner.title}
        return self._missing(loser, at, code, told)

    def _missing(self, entry: ScheduledEntry, at: datetime, code: str, facts: Mapping[str, Any]) -> Missing:
        span = {"start_at": entry.entry.start, "end_at": entry.entry.end}
        return Missing(entry.id, entry.schedule_id, entry.title, at, code, {**span, **facts})


def lines(
    session: Session, around: Neighbourhood, clusters: frozenset[str], window: Window, now: datetime
) -> Iterator[tuple[frozenset[str], Line]]:
    """What clusters hear around `window`, by groups that hear the same."""
    wide = Window(window.start - LEAD_IN, window.end)
    entries = schedules.load_entries(session, wide, now, touching=around.naming(clusters))
    for members, policy, quiet, is_heard in around.hearings(entries, clusters):
        mine = {entry.id: entry for entry in entries if is_heard(entry)}
        resolution = resolve((entry.entry for entry in mine.values() if entry.blocked is None), window)
        sounds = [
            Sound(one.entry_id, one.start, one.end, mine[one.entry_id].klass, mine[one.entry_id].gain_db)
            for one in resolution.segments
        ]
        silenced = {
            found.entry_id: found
            for found in policies.check(sounds, policy, quiet=quiet)
            if found.code in {policies.Code.QUIET_HOURS, policies.Code.SUSPENDED}
        }
        yield members, Line(mine, resolution, silenced)


def _sounding(entry: ScheduledEntry, segment: Segment) -> Sounding:
    return Sounding(
        entry_id=entry.id,
        schedule_id=entry.schedule_id,
        unit_id=entry.unit_id,
        title=entry.title,
        kind=entry.kind,
        klass=entry.klass,
        level=int(entry.entry.level),
        start=segment.start,
        end=segment.end,
        offset_ms=0 if entry.asset is None else segment.offset // _MS,
        feed_id=entry.feed_id,
        asset_sha256=None if entry.asset is None else entry.asset.sha256,
        language=entry.language,
    )
