"""A checker that cannot fail proves nothing: a true trace holds, and each lie told in it is found by its invariant."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from simulation.world.invariants import check
from simulation.world.run import Options, simulate
from simulation.world.trouble import Fault

Records = list[dict[str, Any]]

STORY = (
    Fault(at_s=3_000.0, verb="dark", node=1, args={"for_s": 1_000.0}),
    Fault(at_s=9_000.0, verb="cut", node=2, args={"for_s": 600.0}),
)


@pytest.fixture(scope="module")
def told() -> Records:
    """Half a day of four poles, one of which is without power for a while."""
    outcome = simulate(Options(11, 4, 14.0, STORY))
    assert outcome.violations == []
    for invariant in ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10"):
        assert outcome.attempted[invariant] > 0, invariant
    return outcome.records


def first(records: Records, what: str, **facts: Any) -> dict[str, Any]:
    return next(one for one in records if one["what"] == what and facts.items() <= one.items())


def a_planned_sound(records: Records) -> dict[str, Any]:
    return next(
        one
        for one in records
        if one["what"] == "sound" and not one["entry"].startswith("alert:") and _lasts(one) > 20_000
    )


def an_alarm(records: Records) -> dict[str, Any]:
    return next(one for one in records if one["what"] == "sound" and one["entry"].startswith("alert:"))


def _lasts(one: dict[str, Any]) -> int:
    return int(one["true_to"] - one["true_from"])


def sounds_what_nobody_asked_for(records: Records) -> None:
    one = a_planned_sound(records)
    one["entry"] = "f" * 32 + "@" + one["entry"].partition("@")[2]


def sounds_another_file(records: Records) -> None:
    a_planned_sound(records)["asset"] = "0" * 64


def sounds_after_the_plan(records: Records) -> None:
    one = a_planned_sound(records)
    one["true_to"] += 60_000
    one["server_to"] += 60_000


def falls_silent(records: Records) -> None:
    one = a_planned_sound(records)
    records.remove(one)


def sounds_twice(records: Records) -> None:
    one = a_planned_sound(records)
    again = {**one, "true_from": one["true_to"] + 5_000, "true_to": one["true_to"] + 25_000}
    again["server_to"] = again["server_from"] + 20_000
    records.insert(records.index(one) + 1, again)


def lets_an_alarm_wait(records: Records) -> None:
    entry = an_alarm(records)["entry"]
    for one in records:
        if one["what"] == "sound" and one["entry"] == entry:
            one["true_from"] += 9_000


def sounds_under_stop_all(records: Records) -> None:
    published = next(one for one in records if one["what"] == "published" and one.get("latch"))
    known = first(records, "obeyed", digest=published["digest"])
    sound = {**a_planned_sound(records), "node": known["node"]}
    sound |= {"true_from": known["t"] + 5_000, "true_to": known["t"] + 9_000}
    records.append({**sound, "t": records[-1]["t"]})


def forgets_an_audit_row(records: Records) -> None:
    rows = [one for one in records if one["what"] == "audit" and one["verb"].startswith("schedule")]
    rows[0]["subject"] = "schedule/none"


def breaks_the_audit_chain(records: Records) -> None:
    first(records, "audit_chain")["broken"] = 3


def claims_more_than_was_heard(records: Records) -> None:
    first(records, "play", verdict="played")["heard_ms"] += 60_000


def denies_what_was_heard(records: Records) -> None:
    first(records, "play", verdict="played")["verdict"] = "unknown"


def loses_a_report(records: Records) -> None:
    records.remove(first(records, "stored"))


def sounds_in_another_village(records: Records) -> None:
    one = a_planned_sound(records)
    intent = first(records, "intent", schedule=one["entry"].partition("@")[0])
    intent["aims"] = [["cluster", "nowhere"]]


def obeys_what_is_for_another(records: Records) -> None:
    one = next(one for one in records if one["what"] == "obeyed" and one["topic"].endswith("/plan"))
    one["topic"] = one["topic"].replace(one["node"], "n999")


def goes_back(records: Records) -> None:
    plans = [one for one in records if one["what"] == "obeyed" and one["topic"].endswith("/plan")]
    last = [one for one in plans if one["node"] == plans[0]["node"]][-1]
    last["order"] = [0, 1]


def takes_the_dead_for_living(records: Records) -> None:
    for one in records:
        if one["what"] == "span":
            one["until"] = None


LIES: tuple[tuple[str, Callable[[Records], None]], ...] = (
    ("I1", sounds_what_nobody_asked_for),
    ("I1", sounds_another_file),
    ("I1", sounds_after_the_plan),
    ("I2", falls_silent),
    ("I3", sounds_twice),
    ("I4", lets_an_alarm_wait),
    ("I5", sounds_under_stop_all),
    ("I6", forgets_an_audit_row),
    ("I6", breaks_the_audit_chain),
    ("I7", claims_more_than_was_heard),
    ("I7", denies_what_was_heard),
    ("I7", loses_a_report),
    ("I8", sounds_in_another_village),
    ("I8", obeys_what_is_for_another),
    ("I9", goes_back),
    ("I10", takes_the_dead_for_living),
)


@pytest.mark.parametrize(("invariant", "lie"), LIES, ids=[lie.__name__ for _, lie in LIES])
def test_a_lie_is_found(told: Records, invariant: str, lie: Callable[[Records], None]) -> None:
    records = copy.deepcopy(told)
    lie(records)
    assert any(found.startswith(f"{invariant}:") for found in check(records).violations)
