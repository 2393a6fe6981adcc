"""The short form of `benchmarks/push_listener.py`: a station on the air while everybody else tries to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.push_listener import KINDS, siege


@pytest.mark.e2e
async def test_nobody_sounds_who_may_not_and_the_station_goes_on(tmp_path: Path) -> None:
    told = await siege(120, 1, tmp_path)
    assert set(KINDS) | {"revoked in mid-stream", "the old password"} == set(told["tried"])
    assert told["attempted"] >= 120
    assert (told["late"], told["seated"], told["samples_sounded"], told["violations"]) == ([], {}, 0, 0)
    assert told["station"]["ends"] == 0
    assert told["station"]["pieces"] > 0
