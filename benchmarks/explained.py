"""`explained`: whatever is refused or lost, `explain` names the rule, the winner where there is one, and until when.

Every way there is, built through the doors people and nodes use: verbs of `control`, the planner, `rules.decide` for
what a node says of itself, rows of the play log as the judge writes them. Then days of many items in conflict, from a
seed, in which every single loss is asked for. Virtual time, a store in memory.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.run import bar_of  # noqa: E402
from broadcast_server.api.schedules import ExplanationShown, MissingShown  # noqa: E402
from broadcast_server.catalogue import Locale  # noqa: E402
from broadcast_server.control import (  # noqa: E402
    emergency,
    feeds,
    outlook,
    placements,
    places,
    playing,
    scheduling,
    sending,
    ties,
)
from broadcast_server.control.access import OPERATOR  # noqa: E402
from broadcast_server.control.emergency import Message, NewEmergency  # noqa: E402
from broadcast_server.control.grounds import NODE_UNTIL  # noqa: E402
from broadcast_server.control.outlook import local_text  # noqa: E402
from broadcast_server.control.scheduling import CancelSchedule, ChangeSchedule, NewSchedule, ScheduleChange, Scope  # noqa: E402
from broadcast_server.control.sending import Correction, NewSending, ScheduleArrival  # noqa: E402
from broadcast_server.domain.clock import Window, to_ms  # noqa: E402
from broadcast_server.domain.places import Target, TargetKind  # noqa: E402
from broadcast_server.domain.proof import Missing as NoReport  # noqa: E402
from broadcast_server.domain.proof import Verdict  # noqa: E402
from broadcast_server.playout.planner import Planner, Trouble  # noqa: E402
from broadcast_server.store import library, plans, schedules  # noqa: E402
from broadcast_server.store.session import Session  # noqa: E402
from broadcast_server.store.tables import (  # noqa: E402
    NodePlanRow,
    NodeStatusRow,
    PlanBodyRow,
    PlayRow,
    ScheduleRow,
)
from broadcast_server.store.words import (  # noqa: E402
    ConflictKind,
    ContentKind,
    EmergencyMode,
    Role,
    ScheduleKind,
    VersionState,
)
from speaker_protocol import rules  # noqa: E402
from speaker_protocol.rules import BulletinClass, Late, LatePolicy, SourceKind, Why  # noqa: E402
from speaker_protocol.signing import Refusal  # noqa: E402
from tests.support.alarms import a_duo  # noqa: E402
from tests.support.people import a_person  # noqa: E402
from tests.support.village import DONG, HA, LAN, PROVINCE, Village, a_village, at, once  # noqa: E402

MIN = timedelta(minutes=1)
CLUSTER = f"c1-{DONG}"
NODE = f"n-{CLUSTER}"
DAYS = 40
ITEMS = 24


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that will not sound, or did not, and what its explanation must name."""

    name: str
    title: str
    at: datetime
    rule: str
    winner: str | None = None
    until: datetime | None = None
    ends_with: str | None = None


@dataclass(slots=True)
class Tally:
    """What was asked, and what was wrong."""

    attempted: int = 0
    ok: int = 0
    wrong: list[str] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, rule: str, wrong: list[str]) -> None:
        self.attempted += 1
        self.rules[rule] += 1
        self.ok += not wrong
        self.wrong += [f"{name}: {one}" for one in wrong]


async def ask(village: Village, loss: Loss) -> list[str]:
    """What is missing or wrong in the explanation of one loss; empty: all is named."""
    told = await outlook.explain(village.desk, LAN, CLUSTER, loss.at)
    wrong: list[str] = []
    for locale in Locale:
        shown = _about(ExplanationShown.of(told, locale), loss.title)
        if shown is None:
            return [f"{told.code} says nothing of “{loss.title}”"]
        wrong += _gaps(shown, locale)
        if shown.rule != loss.rule:
            wrong.append(f"rule {shown.rule}, not {loss.rule}")
        if loss.winner is not None and shown.winner_title != loss.winner:
            wrong.append(f"winner {shown.winner_title}, not {loss.winner}")
        if loss.until is not None and shown.until != local_text(loss.until):
            wrong.append(f"until {shown.until}, not {local_text(loss.until)}")
        if loss.ends_with is not None and shown.facts.get("ends_with") != loss.ends_with:
            wrong.append(f"ends with {shown.facts.get('ends_with')}, not {loss.ends_with}")
    return wrong


def _about(shown: ExplanationShown, title: str) -> ExplanationShown | MissingShown | None:
    """The part of the answer that is about the item: among what is missing, or the answer itself."""
    for missing in shown.missing:
        if missing.title == title:
            return missing
    is_about = title in {shown.facts.get("title"), shown.facts.get("loser_title")} and shown.rule is not None
    return shown if is_about else None


def _gaps(shown: ExplanationShown | MissingShown, locale: Locale) -> list[str]:
    """What every loss must have, whatever it is."""
    wrong = []
    if shown.rule is None or shown.rule_sentence in {None, shown.rule}:
        wrong.append(f"no sentence for the rule {shown.rule} ({locale})")
    if shown.until is None and shown.facts.get("ends_with") is None:
        wrong.append("neither an instant nor what must happen")
    texts = {"sentence": shown.sentence, "rule": shown.rule_sentence, "until": shown.until_sentence}
    wrong += [f"the {name} lacks a fact: {text} ({locale})" for name, text in texts.items() if "…" in (text or "")]
    if shown.sentence == shown.code or shown.until_sentence == shown.facts.get("ends_with"):
        wrong.append(f"a code without a sentence ({locale})")
    return wrong


# -- things to put on the air -----------------------------------------------------------------------------------------


async def item(village: Village, title: str, start: datetime, minutes: float = 10, **more: Any) -> str:
    """A bulletin of Đông's own at an hour, conflicts accepted; returns its schedule's id."""
    klass = more.pop("klass", BulletinClass.NORMAL)
    unit = more.pop("unit", DONG)
    actor = OPERATOR if unit == PROVINCE or klass is not BulletinClass.NORMAL else LAN
    bulletin = await village.bulletin(title, minutes=minutes, klass=klass, unit=unit, **_bulletin_words(more))
    request = NewSchedule(unit, ContentKind.BULLETIN, bulletin, once(start), accept_conflicts=True, **more)
    placed = (await scheduling.create_schedule(village.desk, actor, request)).schedule
    if klass is BulletinClass.EMERGENCY:
        second = await a_person(village.desk, Role.LEADER, PROVINCE)
        approval = placements.ApprovePlacement(placed.id, placed.placement_hash, accept_conflicts=True)
        await placements.approve_placement(village.desk, second.actor, approval, second.proof())
    return placed.id


def _bulletin_words(more: dict[str, Any]) -> dict[str, Any]:
    return {name: more.pop(name) for name in ("valid_to",) if name in more}


async def relay(village: Village, feed: str, start: datetime, minutes: int = 30) -> str:
    request = NewSchedule(DONG, ContentKind.FEED, feed, once(start), length=minutes * MIN, accept_conflicts=True)
    return (await scheduling.create_schedule(village.desk, LAN, request)).schedule.id


async def write(village: Village, change: Callable[[Session], object]) -> None:
    def work(session: Session) -> None:
        change(session)

    await village.desk.store.begin(work)


# -- the ways to lose -------------------------------------------------------------------------------------------------


async def dropped(village: Village) -> AsyncIterator[Loss]:
    """The timeline's own reasons."""
    day = iter(range(2, 20))
    on = next(day)
    await item(village, "Dài", at(17, day=on), 20)
    await item(village, "Không chỗ", at(17, 5, day=on), 5)
    yield Loss("no room", "Không chỗ", at(17, 6, day=on), "reason_earlier_start", "Dài", at(17, 20, day=on))
    on = next(day)
    await item(village, "Dài", at(17, day=on), 20)
    skip = Late(LatePolicy.SKIP_IF_LATER_THAN, 120_000)
    await item(village, "Trễ", at(17, 5, day=on), 5, late=skip, max_wait=60 * MIN)
    yield Loss("skipped when late", "Trễ", at(17, 8, day=on), "reason_earlier_start", "Dài", at(17, 20, day=on))
    on = next(day)
    await item(village, "Dài", at(17, day=on), 20)
    wait = Late(LatePolicy.WAIT_AT_MOST, 60_000)
    await item(village, "Chờ ít", at(17, 5, day=on), 5, late=wait, max_wait=60 * MIN)
    yield Loss("waited its most", "Chờ ít", at(17, 7, day=on), "reason_earlier_start", "Dài", at(17, 20, day=on))
    on = next(day)
    await item(village, "Vỡ đập", at(17, day=on), 10, klass=BulletinClass.EMERGENCY)
    await item(village, "Tin thường", at(17, 5, day=on), 5, max_wait=30 * MIN)
    yield Loss("next slot", "Tin thường", at(17, 6, day=on), "reason_ladder", "Vỡ đập", at(17, 10, day=on))
    on = next(day)
    await item(village, "Tin dở", at(17, day=on), 10, max_wait=2 * MIN)
    await item(village, "Vỡ đập", at(17, 8, day=on), 10, klass=BulletinClass.EMERGENCY)
    yield Loss("unfinished", "Tin dở", at(17, 9, day=on), "reason_ladder", "Vỡ đập", at(17, 18, day=on))
    on = next(day)
    await item(village, "Dài", at(17, day=on), 20)
    await item(village, "Đợi", at(17, 5, day=on), 5, max_wait=60 * MIN)
    yield Loss("waits", "Đợi", at(17, 6, day=on), "reason_earlier_start", "Dài", at(17, 20, day=on))
    on = next(day)
    await item(village, "Xã", at(17, day=on), 5, klass=BulletinClass.PRIORITY)
    await item(village, "Tỉnh", at(17, 2, day=on), 5, klass=BulletinClass.PRIORITY, unit=PROVINCE)
    yield Loss("may not interrupt", "Tỉnh", at(17, 3, day=on), "reason_matrix", "Xã", at(17, 5, day=on))
    on = next(day)
    await item(village, "Sau", at(17, day=on), 5, klass=BulletinClass.PRIORITY, tie_order=2, max_wait=30 * MIN)
    await item(village, "Trước", at(17, day=on), 5, klass=BulletinClass.PRIORITY, tie_order=1, max_wait=30 * MIN)
    yield Loss("the commune's order", "Sau", at(17, 1, day=on), "reason_commune_order", "Trước", at(17, 5, day=on))
    on = next(day)
    await item(village, "Một", at(17, day=on), 5)
    await item(village, "Hai", at(17, day=on), 5)
    yield Loss("equal in all", "Hai", at(17, 1, day=on), "reason_entry_id", "Một", at(17, 5, day=on))
    on = next(day)
    for speaker, minute in (("Chủ tịch", 0), ("Trưởng thôn", 5)):
        await write(village, lambda session, s=speaker, m=minute, d=on: _voice(village, session, s, at(17, m, day=d)))
    yield Loss(
        "a second voice", "Trưởng thôn", at(17, 6, day=on), "reason_earlier_start", "Chủ tịch", at(17, 20, day=on)
    )


def _voice(village: Village, session: Session, speaker: str, start: datetime) -> None:
    request = NewSchedule(
        DONG, ContentKind.LIVE, village.desk.chance.new_id(), once(start), name=speaker, length=20 * MIN,
        accept_conflicts=True,
    )  # fmt: skip
    now, made = village.clock.now(), village.desk.chance.new_id()
    scheduling.enter_schedule(
        session, LAN, request, made, now, kind=ScheduleKind.LIVE, level=rules.Level.LIVE, verb="live.open"
    )


async def tied(village: Village) -> AsyncIterator[Loss]:
    """Two of ưu tiên due at once: pending, ordered, by default."""
    for day in (2, 3, 4):
        for title in ("Một", "Hai"):
            await item(
                village, title, at(17, day=day), 5, klass=BulletinClass.PRIORITY, unit=PROVINCE, max_wait=30 * MIN,
                targets=(Target(TargetKind.UNIT, DONG),),
            )  # fmt: skip
    await ties.attend(village.desk)
    pending, decided, _ = sorted(await ties.list_ties(village.desk, HA), key=lambda row: -row.collides_at.timestamp())
    order = ties.OrderTie(decided.id, tuple(reversed(decided.chosen)))
    await ties.order_tie(village.desk, LAN, order)
    await village.clock.advance((at(16, 56, day=2) - village.clock.now()).total_seconds())
    await ties.attend(village.desk)
    yield Loss("tie by default", "Hai", at(17, 1, day=2), "reason_tie_defaulted", "Một", at(17, 5, day=2))
    yield Loss("tie ordered", "Một", at(17, 1, day=3), "reason_tie_decided", "Hai", at(17, 5, day=3))
    yield Loss("tie pending", "Hai", at(17, 1, day=4), "reason_tie_pending", "Một", at(17, 5, day=4))
    assert pending.state == "pending"


async def blocked(village: Village) -> AsyncIterator[Loss]:
    """Content and rights that went after it was placed."""
    titles = ("Bị rút", "Mất tệp", "Hết hạn")
    made = {title: await item(village, title, at(17 + number)) for number, title in enumerate(titles)}

    def spoil(session: Session) -> None:
        for title, schedule_id in made.items():
            row = schedules.schedule(session, schedule_id)
            version = library.approved_version(session, row.content_id, "vie")
            assert version is not None
            if title == "Bị rút":
                version.state = VersionState.RECALLED
            elif title == "Mất tệp":
                library.asset(session, version.asset_sha256 or "").collected_at = village.clock.now()
            else:
                library.bulletin(session, row.content_id).valid_to = at(12)

    await write(village, spoil)
    yield Loss("recalled", "Bị rút", at(17, 5), "blocked_approval_void", ends_with="until_approved")
    yield Loss("audio gone", "Mất tệp", at(18, 5), "blocked_asset_missing", ends_with="until_audio_is_made")
    yield Loss("expired", "Hết hạn", at(19, 5), "blocked_content_expired", ends_with="until_extended")
    waits = await item(village, "Chờ duyệt giờ", at(8, day=3))

    def unapproved(session: Session) -> None:
        row = schedules.schedule(session, waits)
        row.approved_hash, row.version = None, row.version + 1

    await write(village, unapproved)
    void = "blocked_approval_void"
    yield Loss("place not approved", "Chờ duyệt giờ", at(8, 5, day=3), void, ends_with="until_approved")
    await item(village, "Chưa đến hạn", at(20))

    def later(session: Session) -> None:
        bulletin = next(row for row in library.bulletins_of(session, DONG) if row.title == "Chưa đến hạn")
        bulletin.valid_from = at(8, day=2)

    await write(village, later)
    yield Loss("not valid yet", "Chưa đến hạn", at(20, 5), "blocked_content_expired", until=at(8, day=2))
    stations = {name: await village.feed(name) for name in ("Đài rút", "Đài thu hồi", "Đài hết", "Đài lạ", "Đài kế")}
    for number, name in enumerate(("Đài rút", "Đài thu hồi", "Đài hết", "Đài lạ", "Đài kế")):
        await relay(village, stations[name], at(9 + number, day=2))
    await feeds.withdraw_offer(village.desk, HA, (await feeds.list_offers(village.desk, HA, stations["Đài rút"]))[0].id)
    await feeds.revoke_feed(village.desk, HA, stations["Đài thu hồi"])
    heir = await village.feed("Đài thay")
    await feeds.update_feed(village.desk, HA, stations["Đài kế"], feeds.FeedChange(successor_id=heir))
    await feeds.revoke_feed(village.desk, HA, stations["Đài kế"])
    ends = feeds.FeedChange(valid_to=at(10, day=2))
    await feeds.update_feed(village.desk, HA, stations["Đài hết"], ends)
    (offer,) = await feeds.list_offers(village.desk, HA, stations["Đài lạ"])

    def never_offered(session: Session) -> None:
        session.delete(session.merge(offer))

    await write(village, never_offered)
    yield Loss("offer withdrawn", "Đài rút", at(9, 5, day=2), "blocked_offer_withdrawn", ends_with="until_offered")
    yield Loss("revoked", "Đài thu hồi", at(10, 5, day=2), "blocked_feed_revoked", ends_with="until_another_feed")
    yield Loss("offer over", "Đài hết", at(11, 5, day=2), "blocked_offer_expires", ends_with="until_offered")
    yield Loss("not offered", "Đài lạ", at(12, 5, day=2), "blocked_not_offered", ends_with="until_offered")
    yield Loss("revoked, with an heir", "Đài kế", at(13, 5, day=2), "blocked_feed_revoked", ends_with="until_successor")


async def silenced(village: Village) -> AsyncIterator[Loss]:
    """A policy that changed after it was placed; rows that make no sense."""
    await item(village, "Tối", at(20, 30, day=2))
    await item(village, "Tang", at(9, day=3))
    broken = await item(village, "Hỏng", at(10, day=4))
    policy = {
        "quiet": {"from": "20:00", "to": "05:00"},
        "suspensions": [{"first": "2026-06-03", "last": "2026-06-03", "reason": "quốc tang"}],
    }
    await places.put_policy(village.desk, OPERATOR, DONG, policy)
    yield Loss("quiet hours", "Tối", at(20, 35, day=2), "quiet_hours", until=at(5, day=3))
    yield Loss("suspended", "Tang", at(9, 5, day=3), "suspended", until=at(0, day=4))

    def spoil(session: Session) -> None:
        row = session.get(ScheduleRow, broken)
        assert row is not None
        row.late, row.version = {"policy": "nonsense"}, row.version + 1

    await write(village, spoil)
    yield Loss("rows without sense", "Hỏng", at(10, 5, day=4), "schedule_unreadable", ends_with="until_mended")


async def removed(village: Village) -> AsyncIterator[Loss]:
    """What a person took off, moved or stopped."""
    gone = await item(village, "Đã hủy", at(17, day=2))
    moved = await item(village, "Đã dời", at(18, day=2))
    await item(village, "Đã dừng", at(9, 10))
    await scheduling.cancel_schedule(village.desk, LAN, CancelSchedule(gone, Scope.THIS, at(17, day=2)))
    change = ScheduleChange(moved_to=at(19, day=2))
    await scheduling.change_schedule(village.desk, LAN, ChangeSchedule(moved, Scope.THIS, change, at(18, day=2)))
    await village.clock.advance(12 * 60)
    sounding = await outlook.explain(village.desk, LAN, CLUSTER, village.clock.now())
    assert sounding.sounding is not None
    await playing.stop(village.desk, LAN, sounding.sounding.entry_id)
    yield Loss("cancelled", "Đã hủy", at(17, 5, day=2), "cancelled", until=at(17, 10, day=2))
    yield Loss("moved", "Đã dời", at(18, 5, day=2), "moved", until=at(19, day=2))
    yield Loss("stopped", "Đã dừng", at(9, 15), "cut", until=at(9, 20))


async def overruled(village: Village) -> AsyncIterator[Loss]:
    """Stop-all, an emergency, a drill."""
    await item(village, "Tin sáng", at(9, 5), 40)
    await village.clock.advance(6 * 60)
    duo = await a_duo(village.desk, PROVINCE)
    for mode, title in ((EmergencyMode.DRILL, "Diễn tập báo bão"), (EmergencyMode.REAL, "Lũ về")):
        confirm = emergency.CONFIRM[mode]
        request = NewEmergency(PROVINCE, mode, Message(text=title), "báo động", confirm=confirm, expires_min=20)
        launched = await duo.raise_(request)
        soon = village.clock.now() + timedelta(seconds=5)
        yield Loss(mode.value, "Tin sáng", soon, "emergency", title)
        await emergency.cancel(village.desk, HA, launched.row.id, reason="hết")
        await village.clock.advance(60)
    (stopped,) = await emergency.stop_all(village.desk, HA, (DONG,), reason="sai nội dung")
    yield Loss("stop-all", "Tin sáng", at(9, 20), "stop_all", ends_with="until_released")
    await village.clock.advance(5 * 60)
    await emergency.release(village.desk, HA, stopped.row.id, reason="xong")
    yield Loss("stop-all, released", "Tin sáng", village.clock.now() - MIN, "stop_all", until=village.clock.now())


# -- what nodes say ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Segment:
    """A stretch as a node reads it: 17:00 to 17:10, recorded, unless said otherwise."""

    entry_id: str = "e"
    start_ms: int = to_ms(at(17))
    end_ms: int = to_ms(at(17, 10))
    offset_ms: int = 0
    klass: BulletinClass = BulletinClass.NORMAL
    level: int = rules.Level.NORMAL
    source: str = SourceKind.RECORDED
    asset: str | None = "a" * 64
    stream: str | None = None
    gain_db: float = 0.0
    approval: str | None = None
    late_at_most_ms: int | None = None
    tolerates_ms: int | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """A plan of one day with one stretch."""

    segments: tuple[_Segment, ...] = (_Segment(),)
    valid_from_ms: int = to_ms(at(0))
    valid_until_ms: int = to_ms(at(0, day=2))


@dataclass(frozen=True, slots=True)
class _Latched:
    """The set of a place where everything is stopped."""

    stop_all: bool = True
    alerts: tuple[Any, ...] = ()


def decided() -> set[Why]:
    """Every refusal `rules.decide` gives for one planned stretch, by really asking it."""
    ready = rules.NodeState(ready_assets=frozenset({"a" * 64}))
    half_past = to_ms(at(17, 5))
    quiet = rules.Limits(quiet_from_min=16 * 60, quiet_to_min=5 * 60)
    asked: list[tuple[_Plan | None, _Latched | None, rules.NodeState, int]] = [
        (None, None, ready, half_past),
        (_Plan(), _Latched(), ready, half_past),
        (_Plan(), None, replace(ready, is_clock_trusted=False), half_past),
        (_Plan(), None, ready, to_ms(at(0)) - 1),
        (_Plan(), None, ready, to_ms(at(0, day=2))),
        (
            _Plan((_Segment(klass=BulletinClass.PRIORITY),)),
            None,
            replace(ready, max_klass=BulletinClass.NORMAL),
            half_past,
        ),
        (_Plan(), None, replace(ready, limits=quiet), half_past),
        (_Plan((_Segment(tolerates_ms=10),)), None, replace(ready, uncertainty_ms=500.0), half_past),
        (_Plan((_Segment(late_at_most_ms=0),)), None, ready, half_past),
        (_Plan(), None, rules.NodeState(), half_past),
        (_Plan((_Segment(asset=None, stream="s"),)), None, ready, half_past),
        (_Plan((_Segment(asset=None),)), None, ready, half_past),
        (_Plan(), None, replace(ready, muted=Why.POWER_LOW), half_past),
        (_Plan(), None, replace(ready, held=Why.SAFE_MODE), half_past),
    ]
    found = set()
    for plan, alerts, state, now_ms in asked:
        decision = rules.decide(plan, alerts, state, now_ms)
        assert decision.kind is rules.DecisionKind.SILENCE, decision
        found.add(decision.why)
    assert len(found) == len(asked), found
    return found


async def unheard(village: Village) -> AsyncIterator[Loss]:
    """What a node reports, what the judge says where it is silent, and what its gate refused."""
    schedule = await item(village, "Đã lên lịch", at(17))
    entry = f"{schedule}@{to_ms(at(17))}"
    await village.heard(entry, CLUSTER, at(17), planned=10 * MIN, heard=0 * MIN, verdict=Verdict.MISSED, reason="x")
    sounds = {Why.PLANNED, Why.ALERT, Why.NOTHING_PLANNED}
    said = [
        *(why for why in Why if why not in sounds),
        *rules.Trouble,
        *NoReport,
    ]
    assert decided() <= set(said)
    for reason in said:
        verdict = Verdict.UNKNOWN if reason is NoReport.UNREACHABLE else Verdict.MISSED
        await write(village, lambda session, r=reason.value, v=verdict: _judged(session, v, r))
        until = {Why.DAY_MINUTES: at(0, day=2)}.get(reason, at(17, 10))
        yield Loss(
            f"node: {reason.value}",
            "Đã lên lịch",
            at(17, 5),
            reason.value,
            until=until,
            ends_with=NODE_UNTIL.get(reason),
        )
    await write(village, lambda session: _judged(session, Verdict.PARTIAL, None))
    yield Loss("heard in part", "Đã lên lịch", at(17, 5), "heard_in_part", until=at(17, 10))
    await write(village, lambda session: _judged(session, Verdict.MISSED, "from_next_year"))
    yield Loss("a reason of a newer node", "Đã lên lịch", at(17, 5), "not_heard", until=at(17, 10))
    await write(village, lambda session: session.delete(session.query(PlayRow).one()))
    await write(village, lambda session: _deaf(session, village.clock.now()))
    for refusal in Refusal:
        await write(village, lambda session, r=refusal.value: _refused(session, "online", {r: 3, "zz": 1}))
        yield Loss(
            f"gate: {refusal.value}", "Đã lên lịch", at(17, 5), f"gate_{refusal.value}", ends_with="until_node_follows"
        )
    await write(village, lambda session: _refused(session, "offline", {}))
    yield Loss("offline", "Đã lên lịch", at(17, 5), "node_unreachable", ends_with="until_node_follows")
    await write(village, lambda session: _refused(session, "online", {}))
    yield Loss("says nothing", "Đã lên lịch", at(17, 5), "node_behind", ends_with="until_node_follows")


def _judged(session: Session, verdict: Verdict, reason: str | None) -> None:
    row = session.query(PlayRow).one()
    row.verdict, row.reason = verdict, reason


def _deaf(session: Session, now: datetime) -> None:
    """The node was sent a plan ten minutes ago and has not said that it follows it."""
    session.add(PlanBodyRow(sha256="b" * 64, packed=b"", created_at=now))
    session.flush()
    session.add(
        NodePlanRow(
            node_id=NODE, body_sha256="b" * 64, epoch=1, sequence=1, valid_from=at(0), valid_until=at(0, day=9),
            published_at=now - 10 * MIN, acknowledged_at=None,
        )
    )  # fmt: skip
    session.add(NodeStatusRow(node_id=NODE, link="online", since=now, seen_at=now, boot_id="b", body={}))


def _refused(session: Session, link: str, refusals: dict[str, int]) -> None:
    row = session.get(NodeStatusRow, NODE)
    assert row is not None
    row.link, row.body = link, {"refusals": {name: count for name, count in refusals.items() if name != "zz"}}


async def too_large(village: Village) -> AsyncIterator[Loss]:
    """A plan that does not fit one packet: the far end of it is not held yet."""
    for number in range(24):
        await item(village, f"Tin {number}", at(9 + number % 12, 30 * (number // 12), day=2), 5)
    near = await item(village, "Gần", at(9, 50), 1)
    await village.heard(f"{near}@{to_ms(at(9, 50))}", CLUSTER, at(9, 50), planned=MIN, heard=MIN)
    now = village.clock.now()
    planner = Planner(plan_days=3, limit_bytes=1_200)
    desired = await village.desk.store.read(lambda session: planner.plan(session, now))
    cut = [trouble for trouble in desired.troubles if trouble.kind is ConflictKind.PLAN_TOO_LARGE]
    assert cut
    await write(village, lambda session: plans.note_conflicts(session, [_row(village, one) for one in cut], now=now))
    titles = {one.schedule_id: desired.entries[one.entry_id] for one in cut}
    for entry in titles.values():
        yield Loss(
            "plan too large", entry.title, entry.entry.start + MIN, "plan_too_large", ends_with="until_plan_reaches"
        )


def _row(village: Village, trouble: Trouble) -> dict[str, Any]:
    return {
        "id": village.desk.chance.new_id(),
        "schedule_id": trouble.schedule_id,
        "unit_id": trouble.unit_id,
        "kind": trouble.kind,
        "subject": trouble.kind.value,
        "affects_from": trouble.affects_from,
        "facts": dict(trouble.facts),
    }


async def declined(village: Village) -> AsyncIterator[Loss]:
    """Bulletins sent down that no one will hear."""

    async def sent(title: str, **more: Any) -> sending.SendingView:
        klass = more.pop("klass", BulletinClass.NORMAL)
        bulletin = await village.bulletin(title, unit=PROVINCE, klass=klass)
        deadline = more.pop("deadline", at(20, day=2))
        return await sending.send_bulletin(
            village.desk, HA, NewSending(PROVINCE, bulletin, "công văn", deadline, (DONG,), **more)
        )

    refused = await sent("Bị từ chối")
    await sending.refuse(village.desk, LAN, refused.arrivals[0].arrival.id, "trùng lễ hội")
    yield Loss("refused by the commune", "Bị từ chối", at(12), "refused_by_unit", until=at(20, day=2))
    recalled = await sent("Bị thu hồi")
    await sending.recall(village.desk, HA, recalled.sending.id, "sai số")
    yield Loss("recalled by the sender", "Bị thu hồi", at(12), "before_it_sounded", until=at(20, day=2))
    mended = await sent("Có đính chính")
    await village.newer_version(mended.sending.bulletin_id)
    await sending.correct(village.desk, HA, Correction(mended.sending.id, "sửa", at(20, day=3)))
    yield Loss("replaced", "Có đính chính", at(12), "before_it_sounded", "Có đính chính", at(20, day=2))
    await sent("Không chỗ", klass=BulletinClass.PRIORITY, earliest=at(23), latest=at(4, day=2))
    yield Loss("no slot", "Không chỗ", at(23, 30), "no_slot_before_deadline", until=at(4, day=2))
    await places.put_policy(village.desk, OPERATOR, DONG, {"max_minutes_per_day": 2})
    await sent("Đủ phút", klass=BulletinClass.PRIORITY)
    yield Loss("the day is full", "Đủ phút", at(12), "day_too_long", until=at(20, day=2))
    await places.put_policy(village.desk, OPERATOR, DONG, {})
    await sent("Quá hạn", deadline=at(15))
    await village.clock.advance(7 * 3600)
    await sending.attend(village.desk)
    yield Loss("lapsed", "Quá hạn", at(14), "deadline_passed", until=at(15))
    off = await sent("Xếp rồi hủy")
    placed, _ = await sending.schedule_arrival(
        village.desk, LAN, off.arrivals[0].arrival.id, ScheduleArrival((at(17),))
    )
    cancel = CancelSchedule(placed.arrival.schedule_id or "", Scope.THIS, at(17))
    await scheduling.cancel_schedule(village.desk, LAN, cancel)
    yield Loss("taken off again", "Xếp rồi hủy", at(17, 1), "cancelled", until=at(17, 3))


WAYS = (dropped, tied, blocked, silenced, removed, overruled, unheard, too_large, declined)


async def every_way(tally: Tally) -> None:
    """Each way to lose, asked for at once."""
    for way in WAYS:
        async with a_village() as village:
            async for loss in way(village):
                tally.add(loss.name, loss.rule, await ask(village, loss))


# -- days full of conflicts -------------------------------------------------------------------------------------------


async def crowded_day(tally: Tally, seed: int, items: int) -> None:
    """A day of random items that all collide: every loss in it is asked for, at the minute it happens."""
    chance = random.Random(seed)
    async with a_village() as village:
        feed = await village.feed()
        for number in range(items):
            start = at(17, day=2) + chance.randrange(90) * MIN
            if chance.random() < 0.2:
                await relay(village, feed, start, chance.randrange(5, 40))
                continue
            limit = chance.choice([None, 0, 60_000, 600_000])
            policy = chance.choice(list(LatePolicy))
            limited = policy in {LatePolicy.WAIT_AT_MOST, LatePolicy.SKIP_IF_LATER_THAN}
            late = Late(policy, (limit or 0) if limited else None)
            klass = chance.choices(list(BulletinClass), [6, 3, 1])[0]
            await item(
                village, f"Tin {number}", start, chance.randrange(1, 25), klass=klass, late=late,
                max_wait=chance.choice([0, 5, 60]) * MIN, tie_order=chance.randrange(3),
                unit=chance.choice([DONG, DONG, PROVINCE]),
            )  # fmt: skip
        await ties.attend(village.desk)
        window = Window(at(16, day=2), at(22, day=2))
        hearing = await outlook.preview_cluster(village.desk, LAN, CLUSTER, window)
        for missing in hearing.missing:
            told = await outlook.explain(village.desk, LAN, CLUSTER, max(missing.at, missing.facts["start_at"]))
            wrong: list[str] = []
            for locale in Locale:
                shown = ExplanationShown.of(told, locale)
                about = next((one for one in shown.missing if one.entry_id == missing.entry_id), None)
                if about is None:
                    wrong.append(f"{missing.code} of “{missing.title}” is not told at {local_text(missing.at)}")
                    break
                wrong += _gaps(about, locale)
                if about.rule != "no_winner" and about.winner_id is None:
                    wrong.append("no winner")
            tally.add(f"day {seed}, {missing.code}", str(missing.facts["rule"]), wrong)


async def measure(days: int, items: int) -> Tally:
    """All of it."""
    tally = Tally()
    await every_way(tally)
    for seed in range(days):
        await crowded_day(tally, seed, items)
    return tally


def run(days: int = DAYS, items: int = ITEMS) -> dict[str, Any]:
    """See the module."""
    tally = asyncio.run(measure(days, items))
    for wrong in tally.wrong[:20]:
        sys.stderr.write(f"{wrong}\n")
    share = round(100 * tally.ok / tally.attempted, 2) if tally.attempted else 0.0
    return {
        "name": "explained",
        "figures": {
            "attempted": tally.attempted,
            "ok": tally.ok,
            "violations": tally.attempted - tally.ok,
            "rules_named": len(tally.rules),
            "days_of_conflicts": days,
        },
        "bars": [bar_of("refused or lost items explained, %", share, 100.0, holds=tally.ok == tally.attempted > 0)],
    }
