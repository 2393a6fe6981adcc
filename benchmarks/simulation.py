"""Deterministic simulation: seeds of 20 nodes and 24 virtual hours with drawn faults, every invariant on each.

`LOA_SIM_SEEDS` (300) seeds in two processes; `LOA_SIM_TWICE` (20) of them run twice, in processes with other hash
seeds, and must give the same trace hash.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import structlog

from benchmarks.run import bar_of

NODES: Final = 20
HOURS: Final = 24.0
PROCESSES: Final = 2
FIRST_SEED: Final = 1
LIMIT_S: Final = 3_300.0
"""No seed is begun later than this; the seeds that are run twice need a few minutes after it."""
FAULTS_PER_SEED: Final = 10_000 / 300
"""So many at least, on average: 10 000 over the full size."""


def run() -> dict[str, Any]:
    """See `benchmarks.run`."""
    seeds = int(os.environ.get("LOA_SIM_SEEDS", "300"))
    twice = min(seeds, int(os.environ.get("LOA_SIM_TWICE", "20")))
    began = time.monotonic()
    told = list(_in_processes(list(range(FIRST_SEED, FIRST_SEED + seeds)), hash_seed="1"))
    wall_s = time.monotonic() - began
    again = {one["seed"]: one["hash"] for one in _in_processes([one["seed"] for one in told[:twice]], hash_seed="2")}
    same = sum(one["hash"] == again.get(one["seed"]) for one in told[:twice])
    faults: Counter[str] = Counter()
    attempted: Counter[str] = Counter()
    for one in told:
        faults.update(one["faults"])
        attempted.update(one["attempted"])
    violated = [one for one in told if one["violations"]]
    violations = sum(one["violations"] for one in told)
    for one in violated:
        print(f"replay: firmware-sim simulate --seed {one['seed']} --nodes {NODES} --hours {HOURS:g}")
    checks = sum(attempted.values())
    total = sum(faults.values())
    return {
        "name": "simulation",
        "figures": {
            "seeds": len(told),
            "nodes": NODES,
            "virtual_h": HOURS,
            "faults": total,
            "faults_by_kind": dict(sorted(faults.items())),
            "attempted": checks,
            "ok": checks - violations,
            "violations": violations,
            "attempted_by_invariant": {key: attempted[key] for key in sorted(attempted, key=lambda key: int(key[1:]))},
            "seeds_violated": [one["seed"] for one in violated],
            "same_hash": f"{same}/{twice}",
            "virtual_h_per_s": len(told) * HOURS / wall_s,
            "cpu_s_per_seed": sum(one["cpu_s"] for one in told) / max(1, len(told)),
        },
        "bars": [
            bar_of("seeds run", len(told), f">= {seeds}", holds=len(told) >= seeds),
            bar_of(
                "faults injected", total, f">= {FAULTS_PER_SEED * seeds:.0f}", holds=total >= FAULTS_PER_SEED * seeds
            ),
            bar_of("every invariant attempted", len(attempted), 10, holds=len(attempted) == 10),
            bar_of("invariant violations", violations, 0, holds=violations == 0 and checks > 0),
            bar_of("same seed, same trace hash", f"{same}/{twice}", f"{twice}/{twice}", holds=same == twice > 0),
        ],
    }


def _in_processes(seeds: Sequence[int], *, hash_seed: str) -> Iterator[dict[str, Any]]:
    """The figures of each seed, in order of seeds; every other seed goes to the other process."""
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.simulation", *map(str, seeds[number::PROCESSES])],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )
        for number in range(PROCESSES)
    ]
    told = []
    for child in children:
        out, _ = child.communicate()
        if child.returncode != 0:
            raise RuntimeError(f"a process of seeds ended with {child.returncode}")
        told += [json.loads(line) for line in out.splitlines()]
    return iter(sorted(told, key=lambda one: one["seed"]))


def _work(seeds: Sequence[int]) -> None:
    from simulation.world.run import Options, simulate, template
    from simulation.world.run import told as figures

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    template()
    until = time.monotonic() + LIMIT_S
    for seed in seeds:
        if time.monotonic() > until:
            break  # fewer seeds are told as fewer seeds, not as none
        child = os.fork()  # a world ends with its process: nobody has to look through it for garbage
        if child == 0:
            outcome = simulate(Options(seed, NODES, HOURS), is_last=True)
            for violation in outcome.violations:
                sys.stderr.write(f"seed {seed}: {violation}\n")
            print(json.dumps({**figures(outcome), "cpu_s": time.process_time()}), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            raise SystemExit(f"seed {seed} ended with {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    _work([int(argument) for argument in sys.argv[1:]])
