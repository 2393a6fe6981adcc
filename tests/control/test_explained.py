"""Whatever is refused or lost is explained: the suite of `bench explained` in its short form."""

from __future__ import annotations

import pytest

from benchmarks.explained import WAYS, Tally, ask, crowded_day
from tests.support.village import a_village


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_every_way_to_lose_names_rule_winner_and_until_when(way) -> None:
    tally = Tally()
    async with a_village() as village:
        async for loss in way(village):
            tally.add(loss.name, loss.rule, await ask(village, loss))
    assert tally.wrong == []
    assert tally.ok == tally.attempted > 0


async def test_a_day_full_of_conflicts_is_explained_to_the_last_loss() -> None:
    tally = Tally()
    await crowded_day(tally, seed=7, items=16)
    assert tally.wrong == []
    assert tally.ok == tally.attempted > 0
