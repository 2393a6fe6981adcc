"""The ladder, the matrix and the one question of a node."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone

import pytest

from speaker_protocol import rounds, rules
from speaker_protocol.rounds import PartKind
from speaker_protocol.rules import (
    MATRIX,
    OUTRANKED,
    TAKEOVERS,
    Act,
    BulletinClass,
    Decision,
    DecisionKind,
    Kind,
    Late,
    LatePolicy,
    Level,
    Limits,
    NodeState,
    SourceKind,
    Why,
    act_of,
    decide,
    is_quiet,
    kind_of,
    may_cut,
    takeover_of,
)

HANOI = timezone(timedelta(hours=7))
ASSET, OTHER = "a" * 64, "b" * 64


def ms(clock: str) -> int:
    """An instant of the test's day, "17:00" or "17:00:30"."""
    return int(datetime.fromisoformat(f"2026-06-01T{clock}").replace(tzinfo=HANOI).timestamp()) * 1000


@dataclass(frozen=True)
class Asking:
    level: int
    klass: BulletinClass = BulletinClass.NORMAL
    source: str = SourceKind.RECORDED


@dataclass(frozen=True)
class Segment:
    entry_id: str = "morning"
    start_ms: int = ms("17:00")
    end_ms: int = ms("17:30")
    offset_ms: int = 0
    klass: BulletinClass = BulletinClass.NORMAL
    level: int = Level.NORMAL
    source: str = SourceKind.RECORDED
    asset: str | None = ASSET
    stream: str | None = None
    gain_db: float = -3.0
    approval: str | None = None
    late_at_most_ms: int | None = None
    tolerates_ms: int | None = None


@dataclass(frozen=True)
class Plan:
    segments: Sequence[Segment] = ()
    valid_from_ms: int = ms("00:00")
    valid_until_ms: int = ms("00:00") + 7 * 86_400_000


@dataclass(frozen=True)
class Alert:
    alert_id: str = "flood"
    level: int = Level.EMERGENCY_COMMUNE
    issued_ms: int = ms("17:00")
    expires_ms: int = ms("18:00")
    asset: str | None = ASSET
    asset_ms: int | None = 10_000
    hazard: str | None = None
    phrases: Sequence[str] | None = None
    drill: bool = False
    nature: str | None = None
    tone_ms: int | None = None
    times: int | None = None
    gap_ms: int | None = None
    every_min: int | None = None


@dataclass(frozen=True)
class Alerts:
    alerts: Sequence[Alert] = ()
    stop_all: object | None = None


@dataclass(frozen=True)
class Cast:
    """One contender of each kind, from the bottom of the ladder to the top."""

    by_kind: dict[Kind, Asking] = field(
        default_factory=lambda: {
            Kind.FILLER: Asking(Level.FILLER, source=SourceKind.FILLER),
            Kind.NORMAL: Asking(Level.NORMAL),
            Kind.PROGRAMME: Asking(Level.PROGRAMME),
            Kind.RELAY: Asking(Level.RELAY_REQUIRED, source=SourceKind.RELAY),
            Kind.PRIORITY: Asking(Level.PRIORITY_COMMUNE, BulletinClass.PRIORITY),
            Kind.LIVE: Asking(Level.LIVE, source=SourceKind.LIVE),
            Kind.EMERGENCY: Asking(Level.EMERGENCY_COMMUNE, BulletinClass.EMERGENCY),
        }
    )


READY = NodeState(ready_assets={ASSET}, live_streams={"vov1"})
CAST = Cast().by_kind


# --- The matrix -------------------------------------------------------------------------------------------------------


def test_every_kind_has_a_row_a_column_and_every_act_a_meaning():
    assert list(MATRIX) == list(Kind)
    assert all(list(row) == list(Kind) for row in MATRIX.values())
    assert set(TAKEOVERS) == set(Act)


@pytest.mark.parametrize("kind", Kind)
def test_kind_of_its_own_example(kind: Kind):
    assert kind_of(CAST[kind]) is kind


HANDBOOK = """
over       filler normal    programme relay    priority      live   emergency
normal     fade   queue     queue     queue    queue         queue  drop_to_next_slot
priority   fade   next_item next_item boundary commune_order after  after
live       fade   fade      fade      fade     ask           refuse refuse
emergency  cut    cut       cut       cut      cut           cut    append
"""


@pytest.mark.parametrize("row", HANDBOOK.strip().splitlines()[1:])
def test_the_matrix_says_what_the_handbook_says(row: str):
    new, *acts = row.split()
    assert [act_of(CAST[Kind(new)], CAST[sounding]) for sounding in Kind] == acts


def test_the_leader_wins_over_another_voice_and_a_graver_alert_over_an_alert():
    leader, province = Asking(Level.LIVE_LEADER, source=SourceKind.LIVE), Asking(90, BulletinClass.EMERGENCY)
    assert act_of(leader, CAST[Kind.LIVE]) is Act.FADE
    assert act_of(CAST[Kind.LIVE], leader) is Act.REFUSE
    assert act_of(province, CAST[Kind.EMERGENCY]) is Act.REPLACE
    assert act_of(CAST[Kind.EMERGENCY], province) is Act.APPEND


def everyone() -> list[Asking]:
    sources, classes = list(SourceKind), list(BulletinClass)
    return [Asking(level, klass, source) for level in Level for klass in classes for source in sources]


def test_only_a_higher_level_ever_cuts_so_nobody_cuts_in_a_circle():
    for new in everyone():
        for sounding in everyone():
            if may_cut(new, sounding):
                assert new.level > sounding.level


def test_a_takeover_needs_a_higher_level_whatever_late_policy_asks():
    policies = [Late(LatePolicy.START_NOW), Late(LatePolicy.WAIT_AT_MOST, 0), Late(LatePolicy.JOIN_MIDWAY)]
    for new in everyone():
        for sounding in everyone():
            for late in policies:
                takeover = takeover_of(new, late, sounding)
                if takeover is not None and (takeover.within_ms is not None or takeover.at_item):
                    assert new.level > sounding.level


@pytest.mark.parametrize(
    ("late", "new", "sounding", "takeover"),
    [
        (Late(), Kind.RELAY, Kind.PROGRAMME, rules.Takeover(None)),
        (Late(LatePolicy.WAIT_AT_MOST, 5000), Kind.RELAY, Kind.PROGRAMME, rules.Takeover(5000)),
        (Late(LatePolicy.WAIT_AT_MOST, 5000), Kind.PROGRAMME, Kind.RELAY, rules.Takeover(None)),
        (Late(LatePolicy.WAIT_AT_MOST, 5000), Kind.PRIORITY, Kind.RELAY, rules.Takeover(5000, at_item=True)),
        (Late(LatePolicy.WAIT_AT_MOST, 90_000), Kind.PRIORITY, Kind.RELAY, rules.Takeover(60_000, at_item=True)),
        (Late(LatePolicy.WAIT_AT_MOST, 5000), Kind.PRIORITY, Kind.LIVE, rules.Takeover(None)),
        (Late(LatePolicy.NEXT), Kind.NORMAL, Kind.NORMAL, rules.Takeover(None, at_item=True)),
        (Late(LatePolicy.NEXT), Kind.NORMAL, Kind.PROGRAMME, rules.Takeover(None)),
        (Late(LatePolicy.NEXT), Kind.NORMAL, Kind.EMERGENCY, None),
    ],
)
def test_late_policy_shortens_politeness_and_nothing_else(
    late: Late, new: Kind, sounding: Kind, takeover: rules.Takeover | None
):
    assert takeover_of(CAST[new], late, CAST[sounding]) == takeover


@pytest.mark.parametrize(
    ("policy", "at_most_ms"),
    [(LatePolicy.WAIT_AT_MOST, None), (LatePolicy.START_NOW, 5), (LatePolicy.SKIP_IF_LATER_THAN, -1)],
)
def test_a_late_policy_without_sense_is_refused(policy: LatePolicy, at_most_ms: int | None):
    with pytest.raises(ValueError, match=policy.value):
        Late(policy, at_most_ms)


def test_what_is_outranked_is_data_for_cells_that_take_the_air():
    for (new, sounding), act in OUTRANKED.items():
        takeover = TAKEOVERS[MATRIX[new][sounding]]
        assert takeover is not None
        assert takeover.within_ms == 0
        assert act not in {Act.CUT, Act.FADE, Act.REPLACE}


def test_priority_shares_one_rung_and_the_rest_stand_on_their_own():
    assert rules.rung_of(CAST[Kind.PRIORITY]) == Level.PRIORITY_UPPER
    assert rules.rung_of(CAST[Kind.RELAY]) == Level.RELAY_REQUIRED


@pytest.mark.parametrize(("heard_ms", "again"), [(0, True), (4000, True), (4001, False), (10_000, False)])
def test_an_item_restarts_if_sixty_percent_is_left(heard_ms: int, again: bool):
    assert rules.is_worth_restarting(10_000, heard_ms) is again


# --- Quiet hours ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clock", "quiet"),
    [("21:59:59", False), ("22:00:00", True), ("03:15:00", True), ("04:59:59", True), ("05:00:00", False)],
)
def test_default_quiet_hours(clock: str, quiet: bool):
    assert is_quiet(Limits(), ms(clock)) is quiet


def test_quiet_hours_inside_a_day_and_none_at_all():
    nap = Limits(quiet_from_min=12 * 60, quiet_to_min=13 * 60)
    assert [is_quiet(nap, ms(clock)) for clock in ("11:59:00", "12:00:00", "13:00:00")] == [False, True, False]
    assert not is_quiet(Limits(quiet_from_min=0, quiet_to_min=0), ms("00:00:00"))


# --- decide -----------------------------------------------------------------------------------------------------------


def why(decision: Decision) -> tuple[DecisionKind, Why]:
    return decision.kind, decision.why


def test_the_planned_asset_sounds_at_the_offset_of_the_wall_clock():
    decision = decide(Plan([Segment(offset_ms=120_000)]), Alerts(), READY, ms("17:10"))
    assert decision == Decision(
        DecisionKind.ASSET,
        Why.PLANNED,
        until_ms=ms("17:30"),
        entry_id="morning",
        asset=ASSET,
        offset_ms=120_000 + 600_000,
        gain_db=-3.0,
        level=Level.NORMAL,
    )


def test_segments_are_half_open():
    plan = Plan([Segment("a", ms("17:00"), ms("17:05")), Segment("b", ms("17:05"), ms("17:10"))])
    asked = ["16:59:59", "17:00:00", "17:04:59", "17:05:00", "17:10:00"]
    assert [decide(plan, None, READY, ms(clock)).entry_id for clock in asked] == [None, "a", "a", "b", None]


def test_silence_says_until_when():
    plan = Plan([Segment()])
    assert decide(plan, None, READY, ms("16:00")).until_ms == ms("17:00")
    assert decide(plan, None, READY, ms("18:00")).until_ms == plan.valid_until_ms


def test_a_relay_sounds_its_stream():
    relay = Segment("vov", source=SourceKind.RELAY, asset=None, stream="vov1")
    decision = decide(Plan([relay]), None, READY, ms("17:10"))
    assert (decision.kind, decision.stream, decision.asset) == (DecisionKind.STREAM, "vov1", None)


STREAM_GONE = Segment(asset=None, stream="vov2")


@pytest.mark.parametrize(
    ("segment", "state", "reason"),
    [
        (Segment(klass=BulletinClass.PRIORITY), replace(READY, max_klass=BulletinClass.NORMAL), Why.CLASS_ABOVE_KEY),
        (Segment(klass=BulletinClass.EMERGENCY), replace(READY, max_klass=BulletinClass.PRIORITY), Why.CLASS_ABOVE_KEY),
        (Segment(), replace(READY, limits=Limits(quiet_from_min=17 * 60, quiet_to_min=18 * 60)), Why.QUIET_HOURS),
        (Segment(asset=OTHER), READY, Why.ASSET_MISSING),
        (STREAM_GONE, READY, Why.STREAM_DEAD),
        (Segment(asset=None), READY, Why.NO_SOURCE),
    ],
)
def test_a_refused_segment_is_silence_with_its_own_reason_and_name(segment: Segment, state: NodeState, reason: Why):
    decision = decide(Plan([segment]), None, state, ms("17:10"))
    assert why(decision) == (DecisionKind.SILENCE, reason)
    assert decision.entry_id == "morning"


def test_an_emergency_segment_passes_quiet_hours_and_nothing_else_does():
    for klass, kind in [("normal", "silence"), ("priority", "silence"), ("emergency", "asset")]:
        segment = Segment(klass=BulletinClass(klass), start_ms=ms("03:15"), end_ms=ms("03:20"))
        assert decide(Plan([segment]), None, READY, ms("03:16")).kind == kind


def test_a_relay_falls_silent_at_the_edge_of_quiet_hours():
    late = Segment(start_ms=ms("21:30"), end_ms=ms("22:30"), asset=None, stream="vov1")
    before = decide(Plan([late]), None, READY, ms("21:45"))
    assert (before.kind, before.until_ms) == (DecisionKind.STREAM, ms("22:00"))
    assert decide(Plan([late]), None, READY, ms("22:00")).why is Why.QUIET_HOURS


def test_the_gain_is_clipped_to_the_stations_maximum():
    loud = replace(READY, limits=Limits(max_gain_db=-6.0))
    assert decide(Plan([Segment(gain_db=0.0)]), None, loud, ms("17:10")).gain_db == -6.0


@pytest.mark.parametrize(
    ("plan", "state", "reason"),
    [
        (None, READY, Why.NO_PLAN),
        (Plan([Segment()], valid_from_ms=ms("17:20")), READY, Why.PLAN_NOT_YET_VALID),
        (Plan([Segment()], valid_until_ms=ms("17:10")), READY, Why.PLAN_EXPIRED),
        (Plan([Segment()]), replace(READY, is_clock_trusted=False), Why.CLOCK_UNKNOWN),
    ],
)
def test_a_plan_not_in_force_is_silence(plan: Plan | None, state: NodeState, reason: Why):
    assert why(decide(plan, None, state, ms("17:10"))) == (DecisionKind.SILENCE, reason)


def test_a_segment_ends_with_its_plan():
    plan = Plan([Segment()], valid_until_ms=ms("17:20"))
    assert decide(plan, None, READY, ms("17:10")).until_ms == ms("17:20")


def test_stop_all_silences_plan_and_alerts():
    alerts = Alerts([Alert()], stop_all="latch-1")
    assert why(decide(Plan([Segment()]), alerts, READY, ms("17:10"))) == (DecisionKind.SILENCE, Why.STOP_ALL)
    assert decide(Plan([Segment()]), Alerts(stop_all=False), READY, ms("17:10")).why is Why.PLANNED


def test_an_alert_sounds_over_the_plan_at_night_without_a_plan_and_without_a_clock():
    lost = NodeState(ready_assets={ASSET}, is_clock_trusted=False)
    night = Alert(issued_ms=ms("23:15"), expires_ms=ms("23:59"))
    for plan, state in [(Plan([Segment()]), READY), (None, READY), (None, lost)]:
        decision = decide(plan, Alerts([night]), state, ms("23:15:07"))
        assert (decision.kind, decision.alert_id, decision.asset) == (DecisionKind.ALERT, "flood", ASSET)


def test_an_alert_is_over_at_its_expiry_and_a_slow_clock_does_not_delay_it():
    alerts = Alerts([Alert(every_min=1, expires_ms=ms("17:30:20"))])
    assert decide(None, alerts, READY, ms("17:30:19")).until_ms == ms("17:30:20")
    assert decide(None, alerts, READY, ms("17:30:20")).kind is DecisionKind.SILENCE
    learned_ms = ms("16:59:00")
    slow = replace(READY, turns=rounds.learn((), alerts.alerts, {}, learned_ms))
    decision = decide(None, alerts, slow, learned_ms)
    assert (decision.kind, decision.part, decision.offset_ms) == (DecisionKind.ALERT, PartKind.TONE, 0)


def test_an_alert_whose_clip_is_not_there_still_silences_all_else():
    decision = decide(Plan([Segment()]), Alerts([Alert(asset=OTHER)]), READY, ms("17:00:07"))
    assert (decision.kind, decision.why, decision.asset) == (DecisionKind.ALERT, Why.ALERT_ASSET_MISSING, None)
    assert decision.part is PartKind.TONE


def test_a_drill_says_so_or_does_not_sound():
    drill = Alerts([Alert(drill=True)])
    decision = decide(Plan([Segment()]), drill, READY, ms("17:00:06"))
    assert (decision.is_drill, decision.part, decision.clip) == (True, PartKind.CLIP, "drill")
    mute = replace(READY, clips=frozenset({"flood"}))
    assert rules.alert_refusal(drill.alerts[0], mute) is Why.DRILL_CLIP_MISSING
    assert decide(Plan([Segment()]), drill, mute, ms("17:00:06")).why is Why.PLANNED


# --- What a node enforces by itself -----------------------------------------------------------------------------------


def minutes(**limits: int) -> NodeState:
    return replace(READY, limits=Limits(**limits))


def test_the_maximum_of_a_day_counts_what_sounded_today_and_begins_anew_at_midnight():
    day = Plan([Segment("long", ms("17:00"), ms("21:00"))])
    state = replace(minutes(max_day_min=60), heard=rules.Heard(ms("16:00"), 20 * 60_000, 0, ms("12:00")))
    assert decide(day, None, state, ms("17:00")).until_ms == ms("17:40")
    assert decide(day, None, state, ms("17:39:59")).why is Why.PLANNED
    assert decide(day, None, state, ms("17:40")).why is Why.DAY_MINUTES
    yesterday = rules.Heard(ms("16:00"), 60 * 60_000, 0, ms("12:00") - 86_400_000)
    assert decide(day, None, replace(state, heard=yesterday), ms("17:00")).why is Why.PLANNED
    grave = Segment("grave", ms("17:00"), ms("21:00"), klass=BulletinClass.EMERGENCY)
    assert decide(Plan([grave]), None, state, ms("20:00")).why is Why.PLANNED


def test_a_session_that_is_full_is_silent_for_fifteen_minutes():
    day = Plan([Segment("long", ms("17:00"), ms("20:00"))])
    state = minutes(max_session_min=30)
    said = [decide(day, None, state, ms(clock)).why for clock in ("17:29:59", "17:30", "17:44:59", "17:45", "18:15")]
    assert said == [Why.PLANNED, Why.SESSION_MINUTES, Why.SESSION_MINUTES, Why.PLANNED, Why.SESSION_MINUTES]
    fresh = replace(state, heard=rules.Heard(ms("16:50"), 0, 25 * 60_000, ms("16:50")))
    assert decide(day, None, fresh, ms("17:00")).until_ms == ms("17:05")
    rested = replace(state, heard=rules.Heard(ms("16:50"), 0, 25 * 60_000, ms("16:45")))
    assert decide(day, None, rested, ms("17:00")).until_ms == ms("17:30")


def test_what_was_heard_is_counted_by_day_and_by_session():
    limits = Limits()
    one = rules.count_heard(limits, None, ms("17:00"), ms("17:10"))
    two = rules.count_heard(limits, one, ms("17:20"), ms("17:25"))
    assert (two.day_ms, two.session_ms) == (15 * 60_000, 15 * 60_000)
    three = rules.count_heard(limits, two, ms("17:40"), ms("17:41"))
    assert (three.day_ms, three.session_ms) == (16 * 60_000, 60_000)
    midnight = ms("00:00") + 86_400_000
    four = rules.count_heard(limits, three, midnight - 60_000, midnight + 30_000)
    assert (four.day_ms, four.session_ms) == (30_000, 90_000)


def test_a_segment_that_could_not_begin_in_time_is_skipped_and_one_that_began_goes_on():
    late = Plan([Segment(late_at_most_ms=30_000), Segment("b", ms("17:30"), ms("17:40"))])
    bare = replace(READY, ready_assets=frozenset())
    waiting = decide(late, None, bare, ms("17:00"))
    assert (waiting.why, waiting.until_ms) == (Why.ASSET_MISSING, ms("17:00:30") + 1)
    assert decide(late, None, READY, ms("17:00:30")).why is Why.PLANNED
    assert decide(late, None, READY, ms("17:00:30") + 1).why is Why.TOO_LATE
    assert decide(late, None, replace(READY, begun={"morning"}), ms("17:20")).why is Why.PLANNED
    again = Plan([*late.segments, Segment(start_ms=ms("17:40"), end_ms=ms("17:50"), late_at_most_ms=30_000)])
    assert decide(again, None, READY, ms("17:40")).why is Why.TOO_LATE  # its first start counts, not its next stretch


def test_a_segment_says_how_wrong_a_clock_may_be():
    exact = Plan([Segment(tolerates_ms=2_000)])
    assert decide(exact, None, replace(READY, uncertainty_ms=2_000.0), ms("17:10")).why is Why.PLANNED
    assert decide(exact, None, replace(READY, uncertainty_ms=2_001.0), ms("17:10")).why is Why.CLOCK_UNCERTAIN


def test_asking_again_at_until_is_enough():
    """Between now and `until_ms` the answer changes in nothing but the position."""
    plan = Plan([Segment("a", ms("17:00"), ms("17:05")), Segment("b", ms("21:50"), ms("22:10"), asset=ASSET)])
    now = ms("16:50")
    while now < ms("22:20"):
        decision = decide(plan, None, READY, now)
        assert decision.until_ms is not None
        assert decision.until_ms > now
        last = decide(plan, None, READY, decision.until_ms - 1)
        assert (last.kind, last.why, last.entry_id) == (decision.kind, decision.why, decision.entry_id)
        now = decision.until_ms
