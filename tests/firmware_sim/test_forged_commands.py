"""The siege of a node in its short form, and that it would see an obeyed attack."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks import forged_commands
from benchmarks.forged_commands import CLASSES, STORIES, Shot, Tally, fire
from simulation.world.time import VirtualTime
from speaker_protocol.signing import Kind
from tests.firmware_sim.siege import GOOD, Siege
from tests.firmware_sim.workshop import on_virtual_time


def test_no_forged_command_is_obeyed_each_is_counted_by_its_reason_and_every_valid_one_is_obeyed():
    told = forged_commands.run(16 * len(CLASSES), story_each=len(CLASSES))["figures"]
    assert told["violations"] == 0
    assert told["attempted"] >= 16 * len(CLASSES)
    assert told["classes"] >= len(CLASSES) + len(STORIES) - 1
    assert told["valid_obeyed"] == told["valid_attempted"] > 30
    assert told["heard_s"][GOOD] > 0


def test_the_siege_sees_what_is_obeyed_and_what_is_refused_under_another_name(tmp_path: Path):
    """It would prove nothing if it could not fail."""

    async def story(time: VirtualTime) -> Tally:
        s, tally = Siege(time, tmp_path), Tally()
        await s.begin()
        for kind in (Kind.HEAD, Kind.PLAN, Kind.CONFIG, Kind.ALERTS):
            letter = s.letter(kind)
            await fire(s, tally, f"obeyed {kind.name}", Shot(letter.topic, letter.payload, None))
        letter = s.letter(Kind.CONFIG)
        await fire(s, tally, "misnamed", Shot(letter.topic, b"", frozenset({"signature"})))
        await s.pass_s(30)
        await s.end()
        assert s.heard["evil"] > 0
        return tally

    tally = on_virtual_time(story)
    assert [what.partition(":")[0] for what in tally.obeyed] == [
        "obeyed HEAD",
        "obeyed PLAN",
        "obeyed CONFIG",
        "obeyed ALERTS",
    ]
    assert [what.partition(":")[0] for what in tally.misnamed] == ["misnamed"]
    assert tally.refused == Counter({"garbage": 1})
