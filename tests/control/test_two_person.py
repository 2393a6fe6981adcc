"""The suite of `bench two_person` in a short form: one person, however they turn it, puts nothing on the air."""

from __future__ import annotations

from benchmarks import two_person
from broadcast_server.store.words import EmergencyMode


async def test_no_trick_and_no_race_puts_an_alarm_of_one_person_on_the_air() -> None:
    result = await two_person.measure(9, (EmergencyMode.REAL,), every=6)
    figures = result["figures"]

    assert figures["wrong"] == []
    assert figures["attempted"] >= 25
    assert figures["races"] >= 9
    assert figures["proper_aired"] == figures["proper"] > 0
    assert {"unfit_same_person", "proof_wrong", "author_approves"} <= set(figures["answers"])
