"""The two questions about the air: what will sound, and why it does or does not at a minute.

Answered from the same entries and the same resolution as the plan, held against the same policy, so an answer is what
the nodes are sent. A maintainer must not break: what is missing always has a code of the catalogue; a past minute comes
with what the play log has of it beside what was planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, time, timedelta
from typing import Any, Final

from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.clashes import Neighbourhood, Sound, reason_between
from broadcast_server.control.desk import Desk
from broadcast_server.control.grounds import BLOCKED_UNTIL, NODE_REASONS, NODE_UNTIL, Grounds, code_of
from broadcast_server.domain import policy as policies
from broadcast_server.domain import stagger
from broadcast_server.domain.alarm import on_air
from broadcast_server.domain.clock import LOCAL, Window
from broadcast_server.domain.delivery import ALERT
from broadcast_server.domain.errors import Invalid
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.domain.policy import QuietHours, StationPolicy, Violation
from broadcast_server.domain.proof import Missing as NoReport
from broadcast_server.domain.proof import Verdict
from broadcast_server.domain.timeline import Resolution, Segment, resolve
from broadcast_server.store import emergencies, fleet, losses, places, schedules, sendings, ties
from broadcast_server.store.schedules import Fault, ScheduledEntry
from broadcast_server.store.session import Session
from broadcast_server.store.shelf import Blocked
from broadcast_server.store.tables import TieRow
from broadcast_server.store.words import ArrivalState, ScheduleKind
from speaker_protocol.rules import BulletinClass, Why

LEAD_IN: Final = timedelta(days=1)
NODE_PATIENCE: Final = timedelta(seconds=60)
"""So long a node may take to say that it follows its plan before anybody is told that it does not."""

MISSED_FOR: Final = timedelta(minutes=15)
"""So long after its hour an item without audio is named as missing."""
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
    unit_id = around.clusters[cluster_id]
    path = around.tree.ancestors(unit_id, around.on)
    lost = tuple(
        one for one in hearing.missing if one.facts.get("start_at", at) <= at < one.facts.get("end_at", at + _MS)
    )
    due = (*lost, *_removed(session, around, cluster_id, at), *_declined(session, path, at))
    told: dict[str, Any] = {"at": local_text(at), "cluster": cluster_id}

    def answer(code: str, facts: Mapping[str, Any]) -> Explanation:
        shown = tuple(replace(one, facts=_plain(one.facts)) for one in due)
        log = tuple(_plain(one) for one in reported)
        return Explanation(cluster_id, at, code, told | dict(_plain(facts)), sounding, shown, log)

    stopped = schedules.stop_all_at(session, path, at)
    if stopped is not None:
        grounds = Grounds("stop_all", stopped.released_at, "until_released", stopped.id)
        facts = {"unit_id": stopped.unit_id, "since": local_text(stopped.since), "by": stopped.set_by}
        return answer("explain_stop_all", facts | _loser(sounding) | grounds.facts())
    alerts = emergencies.alerts_at(session, path, at)
    warning = on_air([span.body for span in alerts], at)
    if warning is not None:
        alert_id, round_end = warning
        span = next(span for span in alerts if span.body["alert_id"] == alert_id)
        until = min(round_end, span.until)
        grounds = Grounds("emergency", until, None, span.emergency_id, span.title)
        facts = dict[str, Any](title=span.title, level=span.level, unit_id=span.unit_id, in_force_until=span.until)
        refused = _reason_of(reported, f"{ALERT}{alert_id}")
        if refused is not None:
            told |= facts | _loser(sounding) | grounds.facts()
            return answer(f"node_{refused}", Grounds(refused, until, NODE_UNTIL.get(refused)).facts())
        doubt = _in_doubt(session, cluster_id, facts) if span.until > now else None
        if doubt is not None:
            return answer(*doubt)
        code = "explain_drill" if span.body.get("drill") else "explain_emergency"
        return answer(code, facts | _loser(sounding) | grounds.facts())
    if sounding is not None:
        found = _lost_on_the_way(session, around, sounding, cluster_id, reported, at, now)
        if found is not None:
            return answer(*found)
        facts = {"title": sounding.title, "start": local_text(sounding.start), "end": local_text(sounding.end)}
        losers = [one for one in lost if one.entry_id != sounding.entry_id]
        return answer("explain_sounds_over" if losers else "explain_sounds", facts | _first_loser(losers))
    if due:
        return answer(due[0].code, {**due[0].facts, "title": due[0].title})
    quiet = _quiet_at(around, cluster_id, at)
    following = next((one for one in hearing.segments if one.start > at), None)
    later = {} if following is None else {"next_title": following.title, "next_start": local_text(following.start)}
    if quiet is not None:
        return answer("explain_quiet_hours", {"from": local_text(quiet.start), "to": local_text(quiet.end)} | later)
    return answer("explain_nothing_scheduled" if following is None else "explain_nothing_until", later)


def _loser(sounding: Sounding | None) -> dict[str, Any]:
    return {} if sounding is None else {"loser_title": sounding.title, "loser_id": sounding.entry_id}


def _lost_on_the_way(
    session: Session,
    around: Neighbourhood,
    sounding: Sounding,
    cluster_id: str,
    reported: Sequence[Mapping[str, Any]],
    at: datetime,
    now: datetime,
) -> tuple[str, dict[str, Any]] | None:
    """What is planned for this minute and did not reach, or will not reach, the horns: the node's word, or its plan."""
    facts: dict[str, Any] = {"title": sounding.title, "start": sounding.start, "end": sounding.end}
    reason = _reason_of(reported, sounding.entry_id)
    if reason is not None:
        until = _until(around, cluster_id, at, reason, sounding)
        grounds = Grounds(reason, until, NODE_UNTIL.get(reason))
        return f"node_{reason}", facts | _gate(session, cluster_id, now) | grounds.facts()
    line = next((one for one in reported if one["broadcast_id"] == sounding.entry_id and one["is_judged"]), None)
    if line is not None:
        if line["verdict"] == Verdict.PLAYED.value:
            return None
        facts |= {"heard_s": line["heard_ms"] // 1000, "reason": line["reason"]}
        if line["verdict"] == Verdict.PARTIAL.value:
            return "explain_heard_in_part", facts | Grounds("heard_in_part", sounding.end).facts()
        if line["verdict"] == Verdict.MISSED.value:
            return "explain_not_heard", facts | Grounds("not_heard", sounding.end).facts()
        return None  # nobody can tell yet
    held = losses.not_held(session, sounding.schedule_id, sounding.start)
    if held is not None:
        facts |= {"held_until": held.facts.get("held_until")}
        return "explain_plan_too_large", facts | Grounds("plan_too_large", ends_with="until_plan_reaches").facts()
    doubt = _in_doubt(session, cluster_id, facts) if sounding.end > now else None
    if doubt is not None:
        return doubt
    gate = _gate(session, cluster_id, now)
    if gate and sounding.end > now:
        rule = gate.get("because", "node_behind")
        return "explain_node_behind", facts | gate | Grounds(rule, ends_with="until_node_follows").facts()
    return None


def _in_doubt(session: Session, cluster_id: str, facts: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Nothing sounds on a node that is on probation or in quarantine."""
    row = losses.node_in_doubt(session, cluster_id)
    if row is None:
        return None
    grounds = Grounds(f"node_{Why.NOT_ACTIVE.value}", ends_with=NODE_UNTIL[Why.NOT_ACTIVE])
    return "explain_node_not_active", {**facts, "node_id": row.id, "state": row.state.value} | grounds.facts()


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


def _gate(session: Session, cluster_id: str, now: datetime) -> dict[str, Any]:
    """What the node's gate says of the plan it does not follow: how often it refused, and mostly why."""
    status = losses.node_behind(session, cluster_id, now, NODE_PATIENCE)
    if status is None:
        return {}
    told = {"node_id": status.node_id, "link": status.link}
    refusals = {reason: count for reason, count in dict(status.body.get("refusals", {})).items() if count}
    if not refusals:
        return told if status.link == "online" else told | {"because": f"node_{NoReport.UNREACHABLE.value}"}
    most = max(sorted(refusals), key=lambda reason: refusals[reason])
    return told | {"because": f"gate_{most}", "refusals": refusals}


def _removed(session: Session, around: Neighbourhood, cluster_id: str, at: datetime) -> Iterator[Missing]:
    """The occurrence meant for this minute that a person cancelled, moved or stopped."""
    removed = schedules.removed_at(session, around.naming(frozenset({cluster_id})) or frozenset(), at)
    if removed is None:
        return
    until = removed.moved_to if removed.moved_to is not None and removed.moved_to > at else removed.ends_at
    entry_id = schedules.entry_id(removed.schedule_id, removed.occurs_at)
    facts = {**removed.facts(), "start_at": removed.occurs_at, "end_at": removed.ends_at}
    grounds = Grounds(removed.kind.value, until).facts()
    code = f"explain_{removed.kind.value}"
    yield Missing(entry_id, removed.schedule_id, removed.title, removed.occurs_at, code, facts | grounds)


def _declined(session: Session, path: Sequence[str], at: datetime) -> Iterator[Missing]:
    """Bulletins sent down to the place that were wished for this minute and will not sound."""
    for row, sent in sendings.declined_at(session, path, at):
        begins, ends = sent.earliest or sent.created_at, sent.latest or sent.deadline
        grounds = Grounds(row.reason or row.state.value, ends)
        if row.state is ArrivalState.REPLACED:
            mended = sendings.correction_of(session, sent.id)
            if mended is not None:
                grounds = replace(grounds, winner_id=mended.id, winner_title=mended.title)
        facts = {
            **(row.facts or {}),
            "start_at": begins,
            "end_at": ends,
            "by": row.decided_by or sent.recalled_by,
            "note": row.note or "",
        }
        yield Missing(
            row.id, "", sent.title, row.decided_at or begins, f"declined_{row.state.value}", facts | grounds.facts()
        )


def _first_loser(losers: Sequence[Missing]) -> dict[str, Any]:
    return {"loser_title": losers[0].title, "reason": losers[0].code} if losers else {}


def _quiet_at(around: Neighbourhood, cluster_id: str, at: datetime) -> Window | None:
    policy = around.policy_of(around.clusters[cluster_id])
    instant = Window(at, at + _MS)
    hours = (policy.quiet, *around.quiet_of(cluster_id))
    return next((quiet for each in hours for quiet in each.windows(instant)), None)


def _authorize_cluster(session: Session, actor: Actor, around: Neighbourhood, cluster_id: str, now: datetime) -> None:
    row = fleet.cluster(session, cluster_id)
    access.authorize(session, actor, Action.READ, row, at=now)
    if cluster_id not in around.clusters:  # out of service
        raise access.unknown(row)


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
    ties: Sequence[TieRow] = ()
    faults: Mapping[str, Fault] = field(default_factory=dict)

    def told(self, window: Window) -> tuple[tuple[Sounding, ...], tuple[Missing, ...]]:
        """What sounds, and what is missing and why."""
        sounding = tuple(
            _sounding(self.entries[segment.entry_id], segment)
            for segment in self.resolution.segments
            if segment.entry_id not in self.silenced
        )
        missing = [
            self._missing(
                entry,
                entry.entry.start,
                code_of(entry.blocked.kind, entry.blocked.facts),
                {
                    "at": entry.entry.start,
                    "end_at": _looked_for_until(entry),
                    **entry.blocked.facts,
                    **_blocked(entry.blocked).facts(),
                },
            )
            for entry in self.entries.values()
            if entry.blocked is not None and entry.entry.start < window.end and window.start < entry.entry.end
        ]
        missing += [
            self._lost(
                f"dropped_{drop.reason.value}",
                drop.entry_id,
                drop.winner_id,
                drop.at,
                self.resolution.air_until(drop.winner_id, drop.at) or self.entries[drop.entry_id].entry.end,
            )
            for drop in self.resolution.dropped
        ]
        for wait in self.resolution.waits:
            lost = self._lost("waits_behind", wait.entry_id, wait.behind_id, wait.since, wait.until)
            missing.append(replace(lost, facts={**lost.facts, "end_at": wait.until}))
        for entry_id, violation in self.silenced.items():
            facts = {**violation.facts, **_silenced(violation).facts()}
            missing.append(
                self._missing(self.entries[entry_id], violation.at, f"silenced_{violation.code.value}", facts)
            )
        for schedule_id, fault in self.faults.items():
            grounds = Grounds(fault.error.code, ends_with="until_mended")
            facts = {**fault.error.facts, "reason": fault.error.code, **grounds.facts()}
            missing.append(Missing(schedule_id, schedule_id, fault.name, window.start, "blocked_unreadable", facts))
        return sounding, tuple(sorted(missing, key=lambda one: (one.at, one.entry_id, one.code)))

    def _lost(self, code: str, loser_id: str, winner_id: str | None, at: datetime, until: datetime) -> Missing:
        loser = self.entries[loser_id]
        winner = None if winner_id is None else self.entries[winner_id]
        reason, facts = reason_between(winner, loser)
        if winner is None:
            return self._missing(
                loser, at, code, {"reason": reason, "loser": loser.title, **facts, **Grounds(reason, until).facts()}
            )
        tie = self._tie_between(winner.id, loser.id)
        if tie is not None:
            reason = f"reason_tie_{tie.state.value}"
            facts = {**facts, "tie_id": tie.id, "tie_deadline": local_text(tie.deadline), "by": tie.decided_by or ""}
        grounds = Grounds(reason, until, None, winner.id, winner.title)
        names = {"winner": winner.title, "loser": loser.title}
        return self._missing(loser, at, code, {"reason": reason, **facts, **names, **grounds.facts()})

    def _tie_between(self, winner_id: str, loser_id: str) -> TieRow | None:
        """The collision both are part of: then its decision, or its declared default, is the rule."""
        for tie in self.ties:
            entry_ids = {option["entry_id"] for option in tie.options}
            if winner_id in entry_ids and loser_id in entry_ids:
                return tie
        return None

    def _missing(self, entry: ScheduledEntry, at: datetime, code: str, facts: Mapping[str, Any]) -> Missing:
        span = {"start_at": entry.entry.start, "end_at": entry.entry.end}
        return Missing(entry.id, entry.schedule_id, entry.title, at, code, {**span, **facts})


def _looked_for_until(entry: ScheduledEntry) -> datetime:
    """What has no audio has no length: it is missed for a while, not for its first minute only."""
    if entry.asset is not None or entry.feed_id is not None:
        return entry.entry.end
    return max(entry.entry.end, entry.entry.start + MISSED_FOR)


def _blocked(blocked: Blocked) -> Grounds:
    valid_from = blocked.facts.get("valid_from")
    if valid_from is not None:
        return Grounds("blocked_content_expired", datetime.fromisoformat(valid_from))
    ends_with = BLOCKED_UNTIL[blocked.kind]
    successor_id = blocked.facts.get("successor_id")
    if successor_id is not None:
        return Grounds(f"blocked_{blocked.kind.value}", None, "until_successor", successor_id)
    return Grounds(f"blocked_{blocked.kind.value}", None, ends_with)


def _silenced(violation: Violation) -> Grounds:
    if violation.code is policies.Code.QUIET_HOURS:
        return Grounds(violation.code.value, datetime.fromisoformat(violation.facts["quiet_to"]))
    last = datetime.fromisoformat(violation.facts["last"]).replace(tzinfo=LOCAL)
    return Grounds(violation.code.value, last + _DAY)


def lines(
    session: Session, around: Neighbourhood, clusters: frozenset[str], window: Window, now: datetime
) -> Iterator[tuple[frozenset[str], Line]]:
    """What clusters hear around `window`, by groups that hear the same."""
    wide = Window(window.start - LEAD_IN, window.end)
    expander = schedules.Expander()
    entries = expander.load(session, wide, now, touching=around.naming(clusters))
    found = tuple(_by_shift(around, entries, clusters))
    collided = ties.around(session, wide) if any(one.klass is BulletinClass.PRIORITY for one in entries) else []
    for members, shift, policy, quiet, is_heard in found:
        mine = {entry.id: _moved(entry, shift) for entry in entries if is_heard(entry)}
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
        above = around.tree.ancestors(around.clusters[min(members)], around.on)
        here = tuple(tie for tie in collided if tie.unit_id in above)
        yield members, Line(mine, resolution, silenced, here, expander.faults)


def _by_shift(
    around: Neighbourhood, entries: Sequence[ScheduledEntry], clusters: frozenset[str]
) -> Iterator[
    tuple[frozenset[str], timedelta, StationPolicy, tuple[QuietHours, ...], Callable[[ScheduledEntry], bool]]
]:
    """Hearings, parted by the stagger of their clusters."""
    for members, policy, quiet, is_heard in around.hearings(entries, clusters):
        shifts = {cluster: around.shift_of(cluster) for cluster in members}
        for shift in sorted(set(shifts.values())):
            yield frozenset(one for one in members if shifts[one] == shift), shift, policy, quiet, is_heard


def _moved(entry: ScheduledEntry, shift: timedelta) -> ScheduledEntry:
    """As it is due in clusters of that stagger; what its window does not let move stays, as the planner has it."""
    late = stagger.staggered(entry.entry, shift)
    return entry if late is None or late is entry.entry else replace(entry, entry=late)


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
