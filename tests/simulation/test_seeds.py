"""A few short worlds with drawn faults in every test run; the long ones are `./scripts/bench simulation`."""

from __future__ import annotations

import pytest

from simulation.world.run import Options, simulate


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_world_of_faults_breaks_no_invariant(seed: int) -> None:
    outcome = simulate(Options(seed, 5, 9.0))
    assert outcome.violations == []
    assert sum(outcome.faults.values()) >= 10
    assert outcome.attempted["I1"] > 0
    assert outcome.attempted["I2"] > 0


def test_a_clock_that_jumped_five_minutes_is_mended_by_the_next_answers() -> None:
    """Found by seed 1: answers were refused as expired by the very clock they were to mend."""
    from simulation.world.trouble import Fault

    jump = Fault(at_s=1_000.0, verb="clock_jump", node=0, args={"ms": 308_000.0})
    outcome = simulate(Options(1, 2, 14.0, (jump,), is_peaceful=True))
    late = [
        one
        for one in outcome.records
        if one["what"] == "sound" and one["true_from"] > outcome.records[0]["t"] + 3 * 3_600_000
    ]
    assert {one["node"] for one in late} == {"n000", "n001"}
    assert all(abs(one["server_from"] - one["true_from"]) < 1_000 for one in late)


def test_a_look_exactly_fifteen_seconds_before_an_item_still_prepares_it() -> None:
    """Found by seed 69: just then the house found nothing to do yet, and nothing to wait for any more."""
    assert simulate(Options(69, 20, 3.0)).violations == []
