"""The long suites of failing feeds, in short: real sockets and decoders, one feed for each way that matters most.

How long everything takes is the benchmarks' business; here it is what sounds, why, and whom nobody asked.
"""

from __future__ import annotations

import pytest

from benchmarks import feed_faults, push_endings

pytestmark = pytest.mark.e2e

LURES = ("302_private", "302_trap", "m3u8_trap", "m3u8_private", "rebind_v4", "rebind_v6")


async def test_nobody_is_lured_into_the_private_network_and_the_filler_stands_in():
    tally = await feed_faults.measure(faults=len(LURES), lanes=len(LURES), kinds=LURES)

    assert tally.attempted == len(LURES)
    assert (tally.private, tally.flaps) == ([], [])
    assert sum(1 for gap_s in tally.gaps_s.values() if gap_s != float("inf")) == len(LURES)


async def test_each_of_seven_endings_has_its_own_reason_and_nothing_outlives_its_window():
    kinds = len(push_endings.KINDS)
    tally = await push_endings.measure(endings=kinds, lanes=kinds)

    assert tally.attempted == kinds
    assert (tally.right_reason, tally.outside) == (kinds, 0), tally.wrong
