"""The suite of clock faults in its short form: two runs of each family, and that it can see what it looks for."""

from __future__ import annotations

from benchmarks import clock_faults
from benchmarks.clock_faults import FAMILIES, case_of


def test_two_runs_of_each_family_sound_nothing_wrong():
    told = clock_faults.run(2 * len(FAMILIES))["figures"]
    assert (told["attempted"], told["violations"]) == (2 * len(FAMILIES), 0), told["first_violations"]
    assert told["pulses_heard"] > 80 * len(FAMILIES)


def test_the_same_number_is_the_same_case():
    assert [(case_of(n).family, case_of(n).what) for n in range(40)] == [
        (case_of(n).family, case_of(n).what) for n in range(40)
    ]
