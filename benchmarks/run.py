"""`./scripts/bench [NAME …] [--json FILE] [--list]`: run benchmarks, each in its own process, and judge their bars.

A benchmark is a module here with `run() -> {"name", "figures": {…}, "bars": [{"what", "value", "bar", "holds"}]}`.
Exit 0 only if every bar of every benchmark asked for holds. What is missing (a module, a peer program, a run that
crashed or took longer than its limit) is named and counts as a bar that does not hold.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

GROUPS = {
    "foundation": ("prepare", "plan", "fanout", "startup", "sync"),
    "autonomy": (
        "simulation",
        "server_kills",
        "node_kills",
        "dead_network",
        "broker_kill",
        "emergency",
        "live_voice",
        "sync_wan",
        "push_endings",
        "feed_faults",
        "clock_faults",
        "explained",
    ),
    "security": (
        "audit_tampering",
        "bit_flips",
        "contract_fuzz",
        "enrolment",
        "broker_acl",
        "forged_commands",
        "login_attack",
        "malformed_wire",
        "permissions",
        "push_listener",
        "seeded_defects",
        "hostile_uploads",
        "two_person",
    ),
}
"""Benchmarks that answer one question together; a group's name stands for all of them."""
ALL = tuple(name for group in GROUPS.values() for name in group)
LIMIT_S = 25 * 60
LONGER_S = {"simulation": 60 * 60}
"""A seed costs 8 to 13 s of CPU, as the cores are, and there are 300."""
FAILED = "could not be measured"

Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 0 when all bars hold, 1 when one does not, 2 on a name that is unknown."""
    parser = argparse.ArgumentParser(prog="./scripts/bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join((*GROUPS, *ALL))}; none means all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and stop")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in the child: run this one, write to --json
    asked = parser.parse_args(arguments)
    if asked.one:
        asked.json.write_text(json.dumps(run_here(asked.one)), encoding="utf-8")
        return 0
    if asked.list:
        print("\n".join(ALL))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 132)
    results = []
    for name in [part for asked_for in asked.names or ALL for part in GROUPS.get(asked_for, (asked_for,))]:
        console.print(f"[bold]{name}[/bold] …", highlight=False)
        result = run_apart(name)
        results.append(result)
        show(result, console)
        if asked.json:  # after each, so that a long run that is broken off leaves what it has
            asked.json.write_text(json.dumps({"benchmarks": results}, indent=2, ensure_ascii=False) + "\n", "utf-8")
    broken = [f"{result['name']}: {bar['what']}" for result in results for bar in result["bars"] if not bar["holds"]]
    for what in broken:
        console.print(f"does not hold: {what}", style="red", highlight=False, markup=False)
    if not broken:
        console.print("every bar holds", style="green")
    return 1 if broken else 0


def run_here(name: str) -> Result:
    """Import one benchmark and run it."""
    result: Result = importlib.import_module(f"benchmarks.{name}").run()
    return result


def run_apart(name: str, limit_s: float | None = None) -> Result:
    """Run one in a process of its own: its memory and CPU are its own, and its crash is not ours."""
    limit_s = LONGER_S.get(name, LIMIT_S) if limit_s is None else limit_s
    if not name.isidentifier() or importlib.util.find_spec(f"benchmarks.{name}") is None:
        return failed(name, "there is no such benchmark")
    with tempfile.TemporaryDirectory(prefix="loa-bench-") as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.run", "--one", name, "--json", str(out)]
        try:
            code = subprocess.run(command, timeout=limit_s, check=False).returncode
        except subprocess.TimeoutExpired:
            return failed(name, f"took longer than {limit_s:.0f} s")
        if code != 0 or not out.exists():
            return failed(name, f"ended with exit code {code}, see above")
        result: Result = json.loads(out.read_text(encoding="utf-8"))
    result.setdefault("name", name)
    result.setdefault("figures", {})
    result.setdefault("bars", [])
    return result


def failed(name: str, why: str) -> Result:
    """What stands in the results for a benchmark that gave none."""
    return {"name": name, "figures": {"error": why}, "bars": [bar_of(FAILED, why, "a measurement", holds=False)]}


def bar_of(what: str, value: object, bar: object, *, holds: bool) -> dict[str, Any]:
    """One bar as the results carry it."""
    return {"what": what, "value": value, "bar": bar, "holds": holds}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print one result: its figures, then its bars."""
    figures = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in flat(result["figures"]):
        figures.add_row(name, told(value))
    console.print(figures)
    bars = Table("bar", "value", "must be", "", box=None, padding=(0, 2), header_style="dim")
    for bar in result["bars"]:
        mark = "[green]holds[/green]" if bar["holds"] else "[red]DOES NOT HOLD[/red]"
        bars.add_row(str(bar["what"]), told(bar["value"]), told(bar["bar"]), mark)
    console.print(bars)
    console.print()


def flat(figures: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """Nested figures as rows with dotted names."""
    rows: list[tuple[str, object]] = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows


def told(value: object) -> str:
    """A figure for a reader: four significant digits are enough."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main())
