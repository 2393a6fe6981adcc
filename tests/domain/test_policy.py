"""What a station's regulations forbid, and the 03:15 that must never happen again."""

from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any

import pytest

from broadcast_server.domain.errors import Invalid
from broadcast_server.domain.policy import (
    DEFAULT_POLICY,
    Code,
    QuietHours,
    StationPolicy,
    Suspension,
    Violation,
    check,
    policy_from_dict,
    policy_to_dict,
)
from speaker_protocol.rules import BulletinClass, Limits
from tests.domain.builders import at, window

NORMAL, PRIORITY, EMERGENCY = BulletinClass


@dataclass(frozen=True)
class Sound:
    entry_id: str
    start: datetime
    end: datetime
    klass: BulletinClass = NORMAL
    gain_db: float = 0.0


def sound(start: str, end: str, name: str = "x", **changes: Any) -> Sound:
    return Sound(name, at(start), at(end), **changes)


def only(found: tuple[Violation, ...]) -> Violation:
    (violation,) = found
    return violation


@pytest.mark.parametrize(
    ("start", "end", "is_quiet"),
    [
        ("03:15", "03:20", True),
        ("05:00", "06:00", False),
        ("04:59", "06:00", True),
        ("21:00", "22:00", False),
        ("21:00", "22:01", True),
        ("22:00", "22:01", True),
        ("23:50", "24:10", True),
        ("17:00", "18:00", False),
        ("20:00", "30:00", True),
    ],
)
def test_quiet_hours_by_default(start: str, end: str, is_quiet: bool):
    found = check([sound(start, end)], DEFAULT_POLICY)
    assert [violation.code for violation in found] == ([Code.QUIET_HOURS] if is_quiet else [])


def test_a_violation_names_the_instant_the_field_and_the_way_out():
    slid = only(check([sound("21:50", "22:10")], DEFAULT_POLICY))
    assert (slid.entry_id, slid.at, slid.facts["field"]) == ("x", at("22:00"), "end")
    assert slid.facts == {
        "field": "end",
        "fix": "end_before_quiet_hours",
        "quiet_from": "2026-06-01T22:00+07:00",
        "quiet_to": "2026-06-02T05:00+07:00",
    }
    inside = only(check([sound("03:15", "03:20")], DEFAULT_POLICY))
    assert (inside.facts["field"], inside.facts["fix"]) == ("start", "move_out_of_quiet_hours")


def test_only_an_emergency_passes_quiet_hours():
    night = [sound("03:15", "03:20", klass.value, klass=klass) for klass in BulletinClass]
    assert {violation.entry_id for violation in check(night, DEFAULT_POLICY)} == {"normal", "priority"}


def test_a_clusters_own_quiet_hours_stand_beside_the_stations():
    policy = StationPolicy(cluster_quiet=(("school", (QuietHours(time(7), time(11)),)),))
    lesson = [sound("08:00", "08:05")]
    assert check(lesson, policy) == ()
    assert check(lesson, policy, cluster_id="market") == ()
    assert only(check(lesson, policy, cluster_id="school")).code is Code.QUIET_HOURS
    assert only(check(lesson, DEFAULT_POLICY, quiet=[QuietHours(time(7), time(9))])).code is Code.QUIET_HOURS


def test_equal_ends_mean_no_quiet_hours():
    assert check([sound("03:15", "03:20")], StationPolicy(quiet=QuietHours(time(0), time(0)))) == ()


def test_server_and_node_start_from_the_same_quiet_hours():
    node = Limits()
    assert (DEFAULT_POLICY.quiet.from_min, DEFAULT_POLICY.quiet.to_min) == (node.quiet_from_min, node.quiet_to_min)


def test_on_mourning_days_only_given_classes_sound():
    mourning = Suspension(date(2026, 6, 1), date(2026, 6, 2), frozenset({PRIORITY, EMERGENCY}), "quốc tang")
    policy = StationPolicy(suspensions=(mourning,))
    day = [sound("17:00", "17:10"), sound("17:10", "17:12", "p", klass=PRIORITY), sound("65:00", "65:10", "after")]
    violation = only(check(day, policy))
    assert (violation.code, violation.entry_id, violation.facts["reason"]) == (Code.SUSPENDED, "x", "quốc tang")
    assert mourning.window.start == at("00:00")
    assert mourning.window.end == at("48:00")


def test_a_session_ends_with_a_quarter_of_an_hour_of_silence():
    policy = StationPolicy(max_minutes_per_session=60)
    busy = [sound("05:00", "05:40", "a"), sound("05:54", "06:20", "b"), sound("06:20", "06:30", "c")]
    violation = only(check(busy, policy))
    assert (violation.code, violation.entry_id, violation.at) == (Code.SESSION_TOO_LONG, "b", at("06:14"))
    assert violation.facts["planned_minutes"] == 76
    assert violation.facts["entry_ids"] == ["a", "b", "c"]
    assert check([sound("05:00", "05:40", "a"), sound("05:55", "06:20", "b")], policy) == ()


def test_a_days_minutes_are_counted_by_local_day_without_emergencies():
    policy = StationPolicy(quiet=QuietHours(time(0), time(0)), max_minutes_per_day=60)
    over_midnight = [sound("23:30", "24:50")]
    assert check(over_midnight, policy) == ()
    assert only(check([*over_midnight, sound("26:00", "26:11", "y")], policy)).entry_id == "y"
    assert check([*over_midnight, sound("26:00", "26:11", "y", klass=EMERGENCY)], policy) == ()


def test_exactly_the_maximum_is_allowed():
    policy = StationPolicy(max_minutes_per_session=60, max_minutes_per_day=60)
    assert check([sound("05:00", "06:00")], policy) == ()


def test_too_loud_is_told_and_an_emergency_may_be():
    policy = StationPolicy(max_gain_db=-6.0)
    loud = [sound("17:00", "17:10"), sound("17:10", "17:12", "flood", klass=EMERGENCY)]
    violation = only(check(loud, policy))
    assert (violation.code, violation.facts["fix"]) == (Code.TOO_LOUD, "lower_gain")


def test_violations_come_by_instant_whatever_the_order_of_the_input():
    day = [sound("23:00", "23:10", "late"), sound("03:15", "03:20", "early")]
    assert [violation.entry_id for violation in check(day, DEFAULT_POLICY)] == ["early", "late"]


FULL = {
    "quiet": {"from": "21:00", "to": "05:30"},
    "cluster_quiet": {"school": [{"from": "07:00", "to": "11:00"}]},
    "max_minutes_per_session": 90,
    "max_minutes_per_day": 180,
    "stagger_s": 6,
    "max_live_minutes": 45,
    "max_delegated_minutes": 5,
    "max_gain_db": -3.0,
    "suspensions": [{"first": "2026-06-01", "last": "2026-06-02", "allowed": ["emergency"], "reason": "quốc tang"}],
}


@pytest.mark.parametrize("document", [FULL, policy_to_dict(DEFAULT_POLICY)])
def test_stored_and_read_again_it_is_the_same(document: dict[str, Any]):
    policy = policy_from_dict(document)
    assert policy_to_dict(policy) == document
    assert policy_from_dict(policy_to_dict(policy)) == policy
    assert hash(policy) == hash(policy_from_dict(document))


def test_what_is_left_out_is_the_default():
    assert policy_from_dict({}) == DEFAULT_POLICY


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"volume": 5}, "volume"),
        ({"quiet": "22-5"}, "quiet"),
        ({"quiet": {"from": "22:00"}}, "quiet.to"),
        ({"quiet": {"from": 1320, "to": "05:00"}}, "quiet.from"),
        ({"quiet": {"from": "22:00:30", "to": "05:00"}}, "quiet.from"),
        ({"cluster_quiet": []}, "cluster_quiet"),
        ({"cluster_quiet": {"school": [{"from": "x", "to": "05:00"}]}}, "cluster_quiet.school.from"),
        ({"max_minutes_per_session": 0}, "max_minutes_per_session"),
        ({"max_minutes_per_day": 1441}, "max_minutes_per_day"),
        ({"max_minutes_per_day": True}, "max_minutes_per_day"),
        ({"max_gain_db": "loud"}, "max_gain_db"),
        ({"max_gain_db": 3}, "max_gain_db"),
        ({"suspensions": [{"first": "2026-06-01"}]}, "suspensions[0].last"),
        ({"suspensions": [{"first": "2026-06-02", "last": "2026-06-01"}]}, "suspensions.last"),
        (
            {"suspensions": [{"first": "2026-06-01", "last": "2026-06-01", "allowed": [1]}]},
            "suspensions[0].allowed",
        ),
    ],
)
def test_a_wrong_field_is_named_with_the_way_out(document: dict[str, Any], field: str):
    with pytest.raises(Invalid) as refused:
        policy_from_dict(document)
    assert refused.value.facts["field"] == field
    assert refused.value.facts["fix"]


def test_quiet_windows_of_a_stretch():
    assert [(w.start, w.end) for w in QuietHours().windows(window("04:00", "23:00"))] == [
        (at("22:00", date(2026, 5, 31)), at("05:00")),
        (at("22:00"), at("29:00")),
    ]
