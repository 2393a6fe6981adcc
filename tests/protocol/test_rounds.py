"""Rounds of alerts: who has the air, in which part of the round, on every pole the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from speaker_protocol import rounds
from speaker_protocol.hazards import CLIPS, HAZARDS, PHRASES, TONES, Pattern, pattern_of
from speaker_protocol.rounds import Part, PartKind, Turn, after_gap, first_due_ms, hold, learn, on_air, score, shifted
from speaker_protocol.rules import Decision, DecisionKind, Level, NodeState, Why, decide, parts_of
from tests.protocol.test_rules import ASSET, OTHER, Alert, Alerts, Plan, Segment, ms

T0 = ms("17:00")
BARE = Alert(issued_ms=T0, expires_ms=T0 + 3_600_000, asset=None, asset_ms=None)
READY = NodeState(ready_assets={ASSET})
UNDER = Plan([Segment("relay", ms("16:00"), ms("20:00"), asset=ASSET)])


def layout(alert: Alert, state: NodeState = READY) -> list[tuple[str, int, int]]:
    """The parts of a round, each as (what, from, to) in milliseconds."""
    air = on_air([alert], {}, alert.issued_ms)
    return [(part.clip or part.kind.value, part.start_ms, part.end_ms) for part in parts_of(air, state)]


def slot(*codes: str) -> int:
    return sum(CLIPS[code].slot_ms for code in codes)


# --- What a round is --------------------------------------------------------------------------------------------------


def test_a_round_is_the_tone_then_the_message_three_times_five_seconds_apart():
    alert = replace(BARE, asset=ASSET, asset_ms=8_000)
    assert layout(alert) == [
        ("tone", 0, 6_000),
        ("asset", 6_000, 14_000),
        ("pause", 14_000, 19_000),
        ("asset", 19_000, 27_000),
        ("pause", 27_000, 32_000),
        ("asset", 32_000, 40_000),
    ]


def test_a_text_alone_is_said_with_the_nodes_own_clips():
    alert = replace(BARE, hazard="flood", phrases=("go_to_high_ground", "nobody_knows_this"), times=1, tone_ms=4_000)
    said = [what for what, _, _ in layout(alert)]
    assert said == ["tone", "attention", "flood", "go_to_high_ground"]


def test_a_drill_is_announced_before_every_repetition_and_at_the_end_even_with_the_recording():
    for alert in (replace(BARE, drill=True, hazard="fire"), replace(BARE, drill=True, asset=ASSET, asset_ms=5_000)):
        said = [what for what, _, _ in layout(alert) if what != "pause"]
        message = ["asset"] if alert.asset else ["attention", "fire"]
        assert said == ["tone", *(["drill", *message] * 3), "drill"]


@pytest.mark.parametrize(("nature", "word"), [("correction", "correction"), ("final", "final")])
def test_a_correction_and_a_final_notice_say_what_they_are(nature: str, word: str):
    clips = replace(BARE, nature=nature, hazard="storm", phrases=("all_clear",), times=2)
    assert [what for what, _, _ in layout(clips) if what != "pause"] == ["tone", *([word, "storm", "all_clear"] * 2)]
    recorded = replace(BARE, nature=nature, asset=ASSET, asset_ms=5_000, times=2)
    assert [what for what, _, _ in layout(recorded) if what != "pause"] == ["tone", *([word, "asset"] * 2)]


def test_with_neither_recording_nor_words_the_tone_alone_is_repeated():
    assert [what for what, _, _ in layout(BARE)] == ["tone", "tone", "pause", "tone", "pause", "tone"]


def test_a_pole_without_the_recording_keeps_step_with_those_that_have_it():
    alert = replace(BARE, asset=OTHER, asset_ms=20_000, hazard="flood")
    own = layout(alert)
    held = layout(alert, NodeState(ready_assets={OTHER}))
    assert own[-1][2] == held[-1][2]
    starts = [at for what, at, _ in held if what == "asset"]
    assert [at for what, at, _ in own if what == "attention"] == starts


def test_a_recording_that_comes_in_the_middle_of_a_repetition_waits_for_the_next():
    alert = replace(BARE, asset=ASSET, asset_ms=8_000, hazard="flood")
    state = replace(READY, alert_assets={ASSET: T0 + 7_000})
    said = [what for what, _, _ in layout(alert, state) if what != "pause"]
    assert said == ["tone", "attention", "flood", "asset", "asset"]


def test_every_danger_has_words_numbers_and_a_tone_of_its_kind():
    assert len({pattern_of(code) for code in HAZARDS}) >= 3
    assert pattern_of("nobody_knows_this") is Pattern.GENERAL
    assert pattern_of("flood", is_final=True) is Pattern.CALM
    assert set(TONES) == set(Pattern)
    for table in (HAZARDS, PHRASES):
        assert len({one.number for one in table.values()}) == len(table)
        assert all(1 <= one.number <= 255 and one.text and one.english for one in table.values())
    assert not set(HAZARDS) & set(PHRASES)


# --- Whose turn it is -------------------------------------------------------------------------------------------------

SHORT = replace(BARE, tone_ms=4_000, times=1)  # a round of 8 s
GRAVE = replace(SHORT, alert_id="dam", level=Level.EMERGENCY_UPPER)


def sounding(alerts: Sequence[Alert], turns: dict[str, Turn], at_s: float) -> tuple[str, int] | None:
    """Who has the air so many seconds after T0, and when its round began, in the same seconds."""
    air = on_air(alerts, turns, T0 + round(at_s * 1000))
    return None if air.alert is None else (air.alert.alert_id, (air.round_ms - T0) // 1000)


def test_without_every_there_is_one_round_and_then_lower_programmes_have_the_air():
    line = [decide(UNDER, Alerts([SHORT]), READY, T0 + at).kind for at in (0, 7_999, 8_000, 3_000_000)]
    assert line == [DecisionKind.ALERT, DecisionKind.ALERT, DecisionKind.ASSET, DecisionKind.ASSET]


def test_with_every_a_round_begins_so_often_until_expiry_and_between_them_the_air_is_handed_back():
    often = replace(SHORT, every_min=2, expires_ms=T0 + 5 * 60_000)
    heard = [at for at in range(400) if decide(UNDER, Alerts([often]), READY, T0 + at * 1000).kind == "alert"]
    assert heard == [*range(8), *range(120, 128), *range(240, 248)]
    between = decide(UNDER, Alerts([often]), READY, T0 + 60_000)
    assert (between.why, between.until_ms) == (Why.PLANNED, T0 + 120_000)


def test_a_node_in_time_joins_the_others_and_one_that_returns_later_hears_the_whole_round():
    assert first_due_ms(BARE, T0 + 5_900) == T0
    assert first_due_ms(BARE, T0 + 300_000) == T0 + 300_000
    assert first_due_ms(BARE, T0 - 400) == T0  # clocks differ by so much
    assert first_due_ms(BARE, T0 - 60_000) == T0 - 60_000  # a slow clock must not delay it
    late = replace(SHORT, every_min=5)
    turns = learn((), [late], {}, T0 + 100_000)
    assert sounding([late], turns, 107) == ("flood", 100)
    assert sounding([late], turns, 109) is None
    assert sounding([late], turns, 301) == ("flood", 300)  # in step again from the second round on


def test_a_graver_alert_takes_the_air_at_once_and_the_broken_round_begins_anew():
    graver = replace(GRAVE, issued_ms=T0 + 3_000)
    both = [SHORT, graver]
    turns = learn([SHORT], both, learn((), [SHORT], {}, T0), T0 + 3_100)
    assert [sounding(both, turns, at) for at in (2, 3, 10.9, 11, 18.9, 19)] == [
        ("flood", 0),
        ("dam", 3),
        ("dam", 3),
        ("flood", 11),
        ("flood", 11),
        None,
    ]


def test_an_equal_alert_is_appended_after_the_round_that_sounds():
    newer = replace(SHORT, alert_id="fire", issued_ms=T0 + 2_000)
    both = [SHORT, newer]
    turns = learn([SHORT], both, learn((), [SHORT], {}, T0), T0 + 2_100)
    assert [sounding(both, turns, at) for at in (3, 7.9, 8, 15.9, 16)] == [
        ("flood", 0),
        ("flood", 0),
        ("fire", 8),
        ("fire", 8),
        None,
    ]


def test_two_that_are_always_due_take_turns():
    first = replace(SHORT, every_min=1, times=3, gap_ms=20_000)
    second = replace(first, alert_id="fire", issued_ms=T0 + 1_000)
    turns = learn([first], [first, second], learn((), [first], {}, T0), T0 + 1_000)
    who = [found[0] for at in range(0, 600, 5) if (found := sounding([first, second], turns, at))]
    order = [a for a, b in pairwise([*who, ""]) if a != b]
    assert order[:4] == ["flood", "fire", "flood", "fire"]


def test_a_cancelled_alert_is_silent_at_once_and_what_it_broke_into_begins_anew():
    graver = replace(GRAVE, issued_ms=T0 + 3_000)
    turns = learn([SHORT], [SHORT, graver], learn((), [SHORT], {}, T0), T0 + 3_000)
    after = learn([SHORT, graver], [SHORT], turns, T0 + 6_000)
    assert sounding([SHORT], after, 6) == ("flood", 6)
    assert sounding([], learn([SHORT], [], turns, T0 + 4_000), 4) is None


def test_an_alert_that_sounded_and_comes_back_is_not_sounded_again():
    done = learn([SHORT], [SHORT], learn((), [SHORT], {}, T0), T0 + 9_000)
    assert done["flood"].rounds == 1
    gone = learn([SHORT], [], done, T0 + 10_000)
    assert sounding([SHORT], learn([], [SHORT], gone, T0 + 20_000), 21) is None


def test_stop_all_holds_the_round_which_begins_anew_at_the_release():
    turns = learn((), [SHORT], {}, T0)
    held = hold(turns, T0 + 60_000)
    assert sounding([SHORT], held, 61) == ("flood", 60)
    assert decide(UNDER, Alerts([SHORT], stop_all=True), replace(READY, turns=turns), T0 + 1).why is Why.STOP_ALL


def test_after_a_power_dip_it_rejoins_while_a_whole_repetition_is_ahead_and_else_begins_anew():
    alert = replace(BARE, asset=ASSET, asset_ms=8_000)  # repetitions at 6, 19 and 32 s, over at 40 s
    turns = learn((), [alert], {}, T0)
    for away_until_s, begins_s in [(10, 0), (31, 0), (33, 33), (300, 300)]:
        woken = after_gap([alert], turns, T0 + away_until_s * 1000)
        assert sounding([alert], woken, away_until_s + 1) == ("flood", begins_s)
    over = learn([alert], [alert], turns, T0 + 41_000)
    assert sounding([alert], after_gap([alert], over, T0 + 60_000), 61) is None


def test_a_clock_that_is_set_does_not_tear_the_round():
    turns = learn((), [SHORT], {}, T0)
    for hours in (-1, 1):
        by_ms = hours * 3_600_000
        lasting = replace(SHORT, expires_ms=T0 + 86_400_000)
        air = on_air([lasting], shifted(turns, by_ms), T0 + 5_000 + by_ms)
        assert air.alert is not None
        assert T0 + 5_000 + by_ms - air.round_ms == 5_000


# --- Properties -------------------------------------------------------------------------------------------------------

SECONDS = st.integers(0, 240)
ALERTS = st.lists(
    st.builds(
        Alert,
        alert_id=st.sampled_from("abcdef"),
        level=st.sampled_from([Level.EMERGENCY_COMMUNE, Level.EMERGENCY_UPPER]),
        issued_ms=SECONDS.map(lambda s: T0 + s * 1000),
        expires_ms=SECONDS.map(lambda s: T0 + 60_000 + s * 3_000),
        asset=st.sampled_from([None, ASSET, OTHER]),
        asset_ms=st.sampled_from([None, 1, 9_500]),
        hazard=st.sampled_from([None, "flood", "nobody_knows_this"]),
        phrases=st.sampled_from([None, (), ("evacuate", "await_news")]),
        drill=st.booleans(),
        nature=st.sampled_from([None, "alert", "correction", "final"]),
        tone_ms=st.sampled_from([None, 4_000, 10_000]),
        times=st.sampled_from([None, 1, 5]),
        gap_ms=st.sampled_from([None, 0, 30_000]),
        every_min=st.sampled_from([None, 1, 3]),
    ),
    max_size=5,
    unique_by=lambda alert: alert.alert_id,
)


def answer(alerts: Sequence[Alert], state: NodeState, now_ms: int) -> Decision:
    return decide(UNDER, Alerts(alerts), state, now_ms)


@given(ALERTS, SECONDS, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_alerts_makes_no_difference(alerts, learned_s, chance):
    turns = learn((), alerts, {}, T0 + learned_s * 1000)
    mixed = list(alerts)
    chance.shuffle(mixed)
    assert learn((), mixed, {}, T0 + learned_s * 1000) == turns
    for at in range(0, 900_000, 17_300):
        state = replace(READY, turns=turns)
        assert answer(alerts, state, T0 + at) == answer(mixed, state, T0 + at)


@given(ALERTS, SECONDS)
@settings(max_examples=60, deadline=None)
def test_no_instant_of_a_round_belongs_to_anything_lower(alerts, learned_s):
    """Following the decisions one by one: a round once begun runs to its end or to a graver round, without a hole."""
    state = replace(READY, turns=learn((), alerts, {}, T0 + learned_s * 1000))
    levels = {alert.alert_id: alert.level for alert in alerts}
    expiries = {alert.alert_id: alert.expires_ms for alert in alerts}
    now_ms, before = T0 + learned_s * 1000, None
    while now_ms < T0 + 900_000:
        decision = answer(alerts, state, now_ms)
        assert decision.until_ms is None or decision.until_ms > now_ms
        if before is not None and before.round_end_ms is not None and now_ms < before.round_end_ms:
            assert decision.alert_id is not None
            if decision.round_ms != before.round_ms or decision.alert_id != before.alert_id:
                assert levels[decision.alert_id] > levels[before.alert_id]
        if decision.kind is DecisionKind.ALERT:
            assert now_ms < expiries[decision.alert_id]
            assert decision.round_ms <= now_ms < decision.round_end_ms
            last = answer(alerts, state, decision.until_ms - 1)
            assert replace(last, offset_ms=0) == replace(decision, offset_ms=0)
        before = decision
        if decision.until_ms is None:
            break
        now_ms = decision.until_ms


@given(ALERTS, SECONDS, st.lists(st.integers(1, 60_000), max_size=20))
@settings(max_examples=60, deadline=None)
def test_a_node_that_books_as_it_sounds_answers_what_one_that_asks_once_answers(alerts, learned_s, steps):
    """The turns moved on at any instants give the same answers as the turns of the beginning: both sides agree."""
    now_ms = T0 + learned_s * 1000
    first = learn((), alerts, {}, now_ms)
    turns = dict(first)
    for step in steps:
        now_ms += step
        turns = dict(on_air(alerts, turns, now_ms).turns)
        for ahead in (0, 900, 11_000):
            at = now_ms + ahead
            assert answer(alerts, replace(READY, turns=turns), at) == answer(alerts, replace(READY, turns=first), at)


@given(ALERTS)
@settings(max_examples=60, deadline=None)
def test_a_round_has_no_hole_and_a_drill_never_says_its_message_unannounced(alerts):
    for alert in alerts:
        plan = score(alert)
        for held in (True, False):
            parts = plan.parts([held and alert.asset is not None] * len(plan.repetitions))
            assert parts[0] == Part(PartKind.TONE, 0, plan.tone_ms)
            assert all(a.end_ms == b.start_ms for a, b in pairwise(parts))
            assert parts[-1].end_ms == plan.length_ms
            assert all(part.end_ms > part.start_ms for part in parts)
            if alert.drill:
                said = [part for part in parts if part.kind is not PartKind.PAUSE]
                assert sum(part.clip == "drill" for part in said) == len(plan.repetitions) + 1
                assert said[-1].clip == "drill"
                for repetition in plan.repetitions:
                    assert next(part.clip for part in said if part.start_ms == repetition.start_ms) == "drill"
    assert rounds.on_air(alerts, {}, T0 + 10**12).alert is None or any(alert.every_min for alert in alerts)
