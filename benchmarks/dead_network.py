"""A network that is dead for 72 hours, 200 nodes, on virtual time: everything due is played, nothing else; and what
happens when it stays dead: with plans of 14 days every node falls silent at the plan's very end.

`LOA_DEAD_NODES` and `LOA_DEAD_HOURS` make it smaller.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from benchmarks.run import bar_of
from firmware_sim.pace import Pace
from simulation.world.run import Options, Outcome, simulate
from simulation.world.trouble import Fault

SEED: Final = 72
CUT_AT_S: Final = 26 * 3_600.0 + 600.0
"""After a first night, in which what is not urgent is fetched."""
PLAN_DAYS: Final = 14
EXPIRY_NODES: Final = 4
SLACK_MS: Final = 1_000
PACE: Final = Pace(probe_s=(900.0, 1_800.0), busy_house_s=12.0, idle_house_s=900.0, nap_s=3_600.0)


@dataclass(slots=True)
class Figures:
    """What the nodes sounded while the network was dead."""

    due: int = 0
    played: int = 0
    extra: int = 0
    errors_ms: list[int] = field(default_factory=list)
    after_expiry: int = 0
    last_before_expiry_ms: int | None = None


def run() -> dict[str, Any]:
    """See `benchmarks.run`."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    nodes, hours = int(os.environ.get("LOA_DEAD_NODES", "200")), float(os.environ.get("LOA_DEAD_HOURS", "72"))
    dead = measure(_dead(nodes, hours, plan_days=8))
    expiry = measure(_dead(EXPIRY_NODES, (PLAN_DAYS + 1) * 24.0, plan_days=PLAN_DAYS))
    worst_ms = max(dead.errors_ms, default=0)
    checks = dead.due + expiry.due
    violations = dead.due - dead.played + dead.extra + expiry.due - expiry.played + expiry.extra + expiry.after_expiry
    return {
        "name": "dead_network",
        "figures": {
            "nodes": nodes,
            "dead_h": hours,
            "attempted": checks,
            "ok": dead.played + expiry.played,
            "violations": violations,
            "due": dead.due,
            "played": dead.played,
            "extra": dead.extra,
            "start_error_ms_max": worst_ms,
            "expiry": {
                "plan_days": PLAN_DAYS,
                "due": expiry.due,
                "played": expiry.played,
                "after_expiry": expiry.after_expiry,
            },
        },
        "bars": [
            bar_of("due items played", f"{dead.played}/{dead.due}", "all", holds=dead.played == dead.due > 0),
            bar_of("start error to the node's clock, ms", worst_ms, "<= 1000", holds=worst_ms <= 1_000),
            bar_of("sounded beyond what was due", dead.extra, 0, holds=dead.extra == 0),
            bar_of(
                "due up to the plan's end, played",
                f"{expiry.played}/{expiry.due}",
                "all",
                holds=expiry.played == expiry.due > 0,
            ),
            bar_of("sounds after the plan's end", expiry.after_expiry, 0, holds=expiry.after_expiry == 0),
        ],
    }


def _dead(nodes: int, hours: float, *, plan_days: int) -> Outcome:
    """Everybody's way is cut after the first night, for good."""
    cuts = tuple(Fault(at_s=CUT_AT_S, verb="cut", node=number, args={"for_s": 1e9}) for number in range(nodes))
    options = Options(
        SEED, nodes, CUT_AT_S / 3_600 + hours, cuts, plan_days=plan_days, is_peaceful=True, node_pace=PACE
    )
    return simulate(options)


def measure(outcome: Outcome) -> Figures:
    """Hold what each node sounded while dead against the plan it had."""
    figures = Figures()
    records = outcome.records
    cut_ms = next(one["t"] for one in records if one["what"] == "fault")
    end_ms = cut_ms + round((outcome.options.hours * 3_600 - CUT_AT_S) * 1_000)
    bodies = {one["body"]: one["segments"] for one in records if one["what"] == "body"}
    lengths = {one["asset"]: one["length_ms"] for one in records if one["what"] == "asset"}
    published = {one["digest"]: one for one in records if one["what"] == "published"}
    plan_of: dict[str, dict[str, Any]] = {}
    heard: dict[str, dict[tuple[str, int], list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for one in records:
        if one["what"] == "obeyed" and one["topic"].endswith("/plan"):
            plan_of[one["node"]] = published[one["digest"]]
        elif one["what"] == "sound" and one["true_from"] >= cut_ms:
            heard[one["node"]][one["entry"], one["start"]].append(one)
    for node, plan in plan_of.items():
        until_ms = min(end_ms, plan["until_ms"])
        due = {
            (entry, start): min(end - start, lengths[asset] - offset)
            for entry, start, end, offset, asset in bodies[plan["body"]]
            if cut_ms <= start and end < until_ms
        }
        figures.due += len(due)
        for key, length_ms in due.items():
            sounds = heard[node].get(key, [])
            is_played = sum(one["true_to"] - one["true_from"] for one in sounds) >= length_ms - SLACK_MS
            figures.played += is_played
            if sounds:
                figures.errors_ms.append(abs(min(one["server_from"] for one in sounds) - key[1]))
        for key, sounds in heard[node].items():
            figures.extra += key not in due and sounds[0]["server_to"] < until_ms
            figures.after_expiry += any(one["server_to"] > plan["until_ms"] + SLACK_MS for one in sounds)
    return figures
