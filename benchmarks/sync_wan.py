"""Do a hundred poles on 4G sound together? Real node code on virtual time, measured where the pulse leaves the horn.

Each node has a crystal of its own (±50 ppm) and ways of its own: each direction takes 30 ms and a lognormal tail
(median `TAIL_MEDIAN_MS`, sigma `TAIL_SIGMA`), clipped at 300 ms in all, from seeds of its own. The nodes' firmware asks
the time by its own plan, disciplines its clock, steers its own render path; after 5 minutes a programme with a pulse in
every second plays for a minute, and a microphone with a perfect clock notes each pulse. `skew` is the latest node minus
the earliest one of a pulse (p99 over pulses); `pair_skew` the same over all pairs of nodes.

The physical floor: with answers alone nobody can tell a slow way up from a slow way down. If the ways of node i differ
by a_i, its best estimate is wrong by a_i / 2; two nodes are (a_i - a_j) / 2 apart, however long they measure. So ±20 ms
of constant difference, drawn evenly, floor the skew of a hundred nodes just below 20 ms. The floor printed beside is
that arithmetic over the very differences drawn; what jitter adds moves each node by a millisecond or two to either side
of it.

On a quiet link (0.5 ms and a tail of 0.5 ms) snapserver and two snapclients (file players into FIFOs, as peers do it on
one host) run for the figure beside ours.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import snapcast  # noqa: E402
from benchmarks.run import bar_of  # noqa: E402
from firmware_sim.clock import DeviceClock  # noqa: E402
from simulation.world.time import VirtualTime, dice  # noqa: E402
from simulation.world.time import run as run_virtually  # noqa: E402
from tests.firmware_sim.sky import Sky, Ways  # noqa: E402
from tests.firmware_sim.station import segment  # noqa: E402

NODES = 100
DRIFT_PPM = 50.0
SETTLE_S = 300
MEASURE_S = 60
ONE_WAY_MS = 30.0
TAIL_MEDIAN_MS = 20.0
TAIL_SIGMA = 1.0
CLIP_MS = 300.0
ASYMMETRY_MS = 20.0
START = 1_790_000_000


def lognormal_way(seed: int, node: int, direction: str, base_ms: float) -> Callable[[], float]:
    """4G: a floor and a tail, every message on its own."""
    chance = dice(seed, f"way/{node}/{direction}")
    mu = math.log(TAIL_MEDIAN_MS)
    return lambda: min(CLIP_MS, base_ms + chance.lognormvariate(mu, TAIL_SIGMA)) / 1000


def quiet_way(seed: int, node: int, direction: str) -> Callable[[], float]:
    """A wire in a house."""
    chance = dice(seed, f"quiet/{node}/{direction}")
    return lambda: (0.5 + chance.expovariate(1 / 0.5)) / 1000


def measure(nodes: int, seed: int, ways: Callable[[int], Ways], measure_s: int = MEASURE_S) -> dict[str, Any]:
    """One fleet's figures."""
    with tempfile.TemporaryDirectory(prefix="bench-wan-") as aside:
        pulses, clocks = run_virtually(_play(Path(aside), nodes, seed, ways, measure_s))
    return _figures(pulses, clocks, nodes)


async def _play(
    folder: Path, nodes: int, seed: int, ways: Callable[[int], Ways], measure_s: int
) -> tuple[dict[int, list[float]], dict[str, float]]:
    time = VirtualTime(datetime.fromtimestamp(START, UTC))
    sky = Sky(time, folder)
    sound = sky.asset("pulses", measure_s)
    start_ms = sky.now_ms + SETTLE_S * 1000
    for number in range(nodes):
        chance = dice(seed, f"node/{number}")
        node_id = f"node-{number:03d}"
        clock = DeviceClock(time, offset_ms=chance.uniform(-500, 500), drift_ppm=chance.uniform(-DRIFT_PPM, DRIFT_PPM))
        sky.node(node_id, chance=chance, clock=clock, ways=ways(number))
        sky.plan(node_id, [segment("programme", start_ms, measure_s, asset=sound)])
    await asyncio.sleep(SETTLE_S + measure_s + 3)
    clocks = {
        "uncertainty_ms_max": max(sky.statuses[node].clock.uncertainty_ms for node in sky.nodes),
        "questions_per_node": round(float(np.mean([node.state.clock.exchanges for node in sky.nodes.values()])), 1),
    }
    await sky.close()
    found: dict[int, list[float]] = {}
    for microphone in sky.microphones.values():
        for pulse in microphone.pulses():
            second, error_ms = _error(pulse.at_ns, start_ms)
            found.setdefault(second, []).append(error_ms)
    return found, clocks


def _error(at_ns: int, start_ms: int) -> tuple[int, float]:
    """Which pulse it is and how late it came, in ms."""
    since_ns = at_ns - start_ms * 1_000_000 - 500_000_000
    second = round(since_ns / 1e9)
    return second, (since_ns - second * 1_000_000_000) / 1e6


def _figures(pulses: dict[int, list[float]], clocks: dict[str, float], nodes: int) -> dict[str, Any]:
    whole = [errors for errors in pulses.values() if errors]
    skews = [max(errors) - min(errors) for errors in whole]
    pairs = [abs(a - b) for errors in whole for a, b in itertools.combinations(errors, 2)]
    every = [abs(error) for errors in whole for error in errors]
    return {
        "heard": sum(map(len, whole)),
        "skew_ms_p50": _at(skews, 50),
        "skew_ms_p99": _at(skews, 99),
        "pair_skew_ms_p50": _at(pairs, 50),
        "pair_skew_ms_p99": _at(pairs, 99),
        "error_ms_p99": _at(every, 99),
        **clocks,
        "nodes": nodes,
    }


def _at(values: list[float], percent: float) -> float:
    return round(float(np.percentile(values, percent)), 3) if values else 1e9


def four_g(seed: int, asymmetry_ms: dict[int, float] | None = None) -> Callable[[int], Ways]:
    """The ways of a fleet on 4G; `asymmetry_ms` by node: how much longer its way up is than its way down."""

    def ways(node: int) -> Ways:
        half_ms = (asymmetry_ms or {}).get(node, 0.0) / 2
        return Ways(
            lognormal_way(seed, node, "up", ONE_WAY_MS + half_ms),
            lognormal_way(seed, node, "down", ONE_WAY_MS - half_ms),
        )

    return ways


def floor_of(asymmetry_ms: list[float]) -> dict[str, float]:
    """How far apart the constant differences of the ways alone keep the nodes, however long they measure."""
    wrong = [each / 2 for each in asymmetry_ms]
    pairs = [abs(a - b) for a, b in itertools.combinations(wrong, 2)]
    return {"skew_ms": round(max(wrong) - min(wrong), 3), "pair_skew_ms_p99": _at(pairs, 99)}


def run(nodes: int = NODES, seeds: tuple[int, ...] = (1, 2), peer_s: int = 40) -> dict[str, Any]:
    """The benchmark's figures and bars."""
    wan = [measure(nodes, seed, four_g(seed)) for seed in seeds]
    quiet = measure(nodes, seeds[0], lambda n: Ways(quiet_way(seeds[0], n, "up"), quiet_way(seeds[0], n, "down")))
    drawn = dice(seeds[0], "asymmetry")
    apart = {node: drawn.uniform(-ASYMMETRY_MS, ASYMMETRY_MS) for node in range(nodes)}
    asymmetric = {**measure(nodes, seeds[0], four_g(seeds[0], apart)), "floor": floor_of(list(apart.values()))}
    absent = snapcast.missing()
    peer = {"missing": absent} if absent else snapcast.skew(3, peer_s)
    planned = nodes * MEASURE_S
    worst = max(one["skew_ms_p99"] for one in wan)
    is_heard = all(one["heard"] == planned for one in (*wan, quiet, asymmetric))
    peer_said = "snapclient is not installed" if absent else f"snapcast {peer['skew_ms_p99']} ms (3 clients, one host)"
    return {
        "name": "sync_wan",
        "figures": {
            "4g": {f"seed {seed}": one for seed, one in zip(seeds, wan, strict=True)},
            "4g, ±20 ms constant asymmetry": asymmetric,
            "quiet link": quiet,
            "snapcast, quiet link": peer,
        },
        "bars": [
            bar_of("skew on 4G p99, ms", worst, 20.0, holds=is_heard and worst <= 20.0),
            bar_of(
                f"skew on a quiet link p99, ms, beside {peer_said}",
                quiet["skew_ms_p99"],
                2.0,
                holds=is_heard and absent is None and bool(peer.get("pulses")) and quiet["skew_ms_p99"] <= 2.0,
            ),
            bar_of("pulses heard of planned", sum(one["heard"] for one in wan), planned * len(wan), holds=is_heard),
        ],
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else NODES), indent=2, ensure_ascii=False))
