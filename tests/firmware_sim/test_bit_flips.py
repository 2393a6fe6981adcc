"""Turned bits in their short form."""

from __future__ import annotations

from benchmarks import bit_flips


def test_no_turned_bit_and_no_cut_message_is_obeyed_and_each_whole_one_is():
    told = bit_flips.run(53)["figures"]
    assert told["violations"] == 0
    assert told["attempted"] > 500
    assert min(told["bits"].values()) > 0
