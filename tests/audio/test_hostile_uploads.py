"""The short form of `bench hostile_uploads`: every crafted file and a few mutants, and every valid variant."""

from __future__ import annotations

from benchmarks import hostile_uploads


def test_no_crafted_upload_gets_further_than_it_should_and_every_valid_variant_is_taken():
    result = hostile_uploads.measure(120, seed=3, processes=1)
    figures = result["figures"]
    assert figures["crafted"] >= 60
    assert figures["attempted"] >= 120
    assert all(bar["holds"] for bar in result["bars"]), figures
