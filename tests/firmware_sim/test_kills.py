"""The kill suite in a short seeded form: one kill at every fault point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from firmware_sim.faultpoints import Point


def test_a_kill_at_every_fault_point_loses_doubles_and_forges_nothing(tmp_path: Path):
    out = tmp_path / "kills.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--one", "node_kills", "--json", str(out)],
        check=True,
        env={**os.environ, "NODE_KILLS": str(len(Point))},
        timeout=300,
    )
    told = json.loads(out.read_text(encoding="utf-8"))
    assert told["figures"]["attempted"] == len(Point)
    assert [bar["what"] for bar in told["bars"] if not bar["holds"]] == []
