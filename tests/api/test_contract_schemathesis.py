"""The API against its own description, in short: what schemathesis makes up is answered as described, never with 500.

Every role and two strangers send in turn; whole in `./scripts/bench contract_fuzz`.
"""

from benchmarks.contract_fuzz import measure


async def test_what_is_described_is_what_is_answered_and_nobody_comes_past_the_door():
    told = await measure(600)

    assert told["figures"]["attempted"] >= 600
    assert not told["figures"]["first"]
    assert all(bar["holds"] for bar in told["bars"])
