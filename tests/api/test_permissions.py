"""The matrix of permissions in short: each role once, half of the routes; whole in `./scripts/bench security`."""

from benchmarks.permissions import ROLES, measure


async def test_nobody_reaches_further_than_their_role_and_place():
    told = await measure(len(ROLES), seed=3)

    assert told["figures"]["attempted"] > 800
    assert not told["figures"]["first"]
    assert all(bar["holds"] for bar in told["bars"])
