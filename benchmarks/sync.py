"""Do a hundred poles sound together? 100 recorded nodes, clocks ±500 ms wrong and ±50 ppm off, one process.

A minimal real server side (mosquitto, signed plans, time answers, assets over HTTP, a relay) drives `firmware-sim
run` as a child; everything is measured in the WAV files the nodes' output stages wrote on the true clock, by the ear,
which takes the onset of each programme's own pair of tones. `start error` is |onset - planned start| over all nodes
and segments; `skew` is latest minus earliest node of one segment, over the segments (its p99 is, with so few
segments, the worst one); `pair_skew_ms_p99` is the same over all pairs of nodes of all segments.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from firmware_sim.ear import Heard, heard  # noqa: E402
from tests.firmware_sim.station import Relay, Station, now_ms, segment  # noqa: E402
from tests.firmware_sim.tones import ogg_opus, packets, read_wav, tone  # noqa: E402

NODES = 100
START_ERROR_BAR_MS = 50.0
SKEW_BAR_MS = 5.0
ANNOUNCEMENTS = 8
PAIRS = ((700, 1600), (500, 1900), (900, 1300), (1100, 2300))
RELAY_PAIR = (500, 2300)
EVERY_MS = 4_000
SETTLE_S = 25.0
RELAY_S = 8.0


def run(nodes: int = NODES) -> dict[str, Any]:
    """The benchmark's figures and bars."""
    with tempfile.TemporaryDirectory(prefix="bench-sync-") as aside:
        folder = Path(aside)
        with Station(folder) as station:
            planned, cpu = _play(station, folder, nodes)
            reports = [report for _, report in station.reports]
        figures = _measure(folder / "recorded", planned, nodes)
    figures |= {
        "nodes": nodes,
        "cpu_share_of_one_core": round(cpu, 3),
        "underruns": sum(report.underruns for report in reports if report.kind == "finished"),
        "reports": len(reports),
    }
    bars = [
        ("start error p99, ms", figures["start_error_ms_p99"], START_ERROR_BAR_MS),
        ("skew p99, ms", figures["skew_ms_p99"], SKEW_BAR_MS),
    ]
    holds_all = figures["heard"] == figures["planned"]
    return {
        "name": "sync",
        "figures": figures,
        "bars": [{"what": w, "value": v, "bar": b, "holds": holds_all and v <= b} for w, v, b in bars]
        + [
            {
                "what": "segments heard of planned",
                "value": figures["heard"],
                "bar": figures["planned"],
                "holds": holds_all,
            }
        ],
    }


def _play(station: Station, folder: Path, nodes: int) -> tuple[list[tuple[tuple[int, int], int]], float]:
    """Let the fleet play; planned (pair, start) and the fleet's CPU share while it sounded."""
    assets = [station.add_asset(ogg_opus(tone(pair, 3.0)), 3_000) for pair in PAIRS]
    fleet = subprocess.Popen(
        [
            sys.executable,
            *("-m", "firmware_sim", "run", "--server", station.url, "--nodes", str(nodes), "--token", "T"),
            *("--record", str(folder / "recorded"), "--identity", str(folder / "nodes"), "--seed", "1"),
            *("--clock-offset-ms", "-500:500", "--drift-ppm", "-50:50"),
        ],
        cwd=ROOT,
    )
    try:
        _wait(lambda: len(station.nodes) == nodes, 120)
        start_ms = now_ms() + round(SETTLE_S * 1000)
        segments = [
            segment(f"announcement-{i}", start_ms + i * EVERY_MS, 3.0, asset=assets[i % len(assets)])
            for i in range(ANNOUNCEMENTS)
        ]
        relay_ms = start_ms + ANNOUNCEMENTS * EVERY_MS
        segments.append(segment("relay", relay_ms, RELAY_S, stream="relay-1"))
        for node in list(station.nodes):
            station.plan(node, segments)
        _sleep_until(start_ms)
        cpu_s, began = _cpu_s(fleet.pid), time.monotonic()
        _sleep_until(relay_ms - 5_000)
        live = packets(tone(RELAY_PAIR, RELAY_S + 8.0))
        with Relay(station, "relay-1", live, per_batch=50, delay_ms=2_500):
            _sleep_until(relay_ms + RELAY_S * 1000 + 1_500)
        cpu = (_cpu_s(fleet.pid) - cpu_s) / (time.monotonic() - began)
        planned = [(PAIRS[i % len(PAIRS)], start_ms + i * EVERY_MS) for i in range(ANNOUNCEMENTS)]
        planned.append((RELAY_PAIR, relay_ms))
    finally:
        fleet.terminate()
        fleet.wait(30)
    return planned, cpu


def _measure(recorded: Path, planned: list[tuple[tuple[int, int], int]], nodes: int) -> dict[str, Any]:
    onsets: list[list[float]] = [[] for _ in planned]
    for meta in sorted(recorded.glob("*.json")):
        found = heard(read_wav(meta.with_suffix(".wav")), json.loads(meta.read_text())["sample0_utc_ns"])
        for index, (pair, start_ms) in enumerate(planned):
            near = [_error_ms(one, start_ms) for one in found if one.pair == pair]
            near = [error for error in near if abs(error) < 1_500]
            if near:
                onsets[index].append(min(near, key=abs))
    errors = np.array([abs(error) for segment_errors in onsets for error in segment_errors] or [1e9])
    skews = np.array([max(errors) - min(errors) for errors in onsets if errors] or [1e9])
    pairs = np.array([abs(a - b) for errors in onsets for a, b in itertools.combinations(errors, 2)] or [1e9])
    return {
        "planned": nodes * len(planned),
        "heard": sum(len(segment_errors) for segment_errors in onsets),
        "segments": len(planned),
        "start_error_ms_p50": round(float(np.percentile(errors, 50)), 3),
        "start_error_ms_p99": round(float(np.percentile(errors, 99)), 3),
        "skew_ms_p50": round(float(np.percentile(skews, 50)), 3),
        "skew_ms_p99": round(float(np.percentile(skews, 99)), 3),
        "pair_skew_ms_p99": round(float(np.percentile(pairs, 99)), 3),
        "skew_ms_by_segment": [round(float(max(e) - min(e)), 3) if e else None for e in onsets],
    }


def _error_ms(one: Heard, start_ms: int) -> float:
    return one.start_ns / 1e6 - start_ms


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _sleep_until(at_ms: float) -> None:
    time.sleep(max(0.0, (at_ms - now_ms()) / 1000))


def _wait(look: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError("the fleet did not enrol")
        time.sleep(0.1)


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else NODES), indent=2))
