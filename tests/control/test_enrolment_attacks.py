"""Whoever comes with a wrong, late, used or stolen claim code stays outside; the whole siege is `bench enrolment`."""

from benchmarks.enrolment import measure


async def test_a_short_siege_lets_in_the_right_boxes_alone():
    result = await measure(10, seed=7)

    assert result["figures"]["first_violations"] == []
    assert [bar["what"] for bar in result["bars"] if not bar["holds"]] == []
    assert result["figures"]["attempted"] > 100
