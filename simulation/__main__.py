"""`python -m simulation` (and `firmware-sim simulate`): one world from a seed.

Exit 0: all invariants held; 1: a violation, told with the command that replays it; 2: usage.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from simulation.world.run import Options, Outcome, simulate, told
from simulation.world.trouble import load


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a world and tell what came of it."""
    parser = argparse.ArgumentParser(prog="firmware-sim simulate", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, required=True, help="everything follows from it")
    parser.add_argument("--nodes", type=int, default=20, metavar="K", help="speaker nodes (20)")
    parser.add_argument("--hours", type=float, default=24.0, metavar="H", help="virtual hours (24)")
    parser.add_argument("--faults", type=Path, metavar="FILE", help="play these instead of drawing any (YAML or JSON)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the trace there, one JSON object a line")
    try:
        asked = parser.parse_args(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    if asked.nodes < 1 or asked.hours <= 0:
        sys.stderr.write("firmware-sim simulate: at least one node and some time\n")
        return 2
    try:
        faults = load(asked.faults) if asked.faults is not None else None
    except ValueError as error:
        sys.stderr.write(f"firmware-sim simulate: {error}\n")
        return 2
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    outcome = simulate(Options(asked.seed, asked.nodes, asked.hours, faults), asked.out)
    sys.stdout.write(json.dumps(told(outcome), ensure_ascii=False, indent=1) + "\n")
    for violation in outcome.violations:
        sys.stderr.write(f"violated: {violation}\n")
    if outcome.violations:
        played = "" if asked.faults is None else f" --faults {asked.faults}"
        sys.stderr.write(f"replay: {replay(outcome)}{played}\n")
    return 1 if outcome.violations else 0


def replay(outcome: Outcome) -> str:
    """The command that runs the same world again."""
    options = outcome.options
    return f"firmware-sim simulate --seed {options.seed} --nodes {options.nodes} --hours {options.hours:g}"


if __name__ == "__main__":
    sys.exit(main())
