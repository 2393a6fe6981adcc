"""The same seed is the same world, to the byte, in whatever process it runs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from simulation.world.run import Options, simulate


def in_a_process_of_its_own(folder: Path, hash_seed: str) -> tuple[bytes, dict[str, object]]:
    out = folder / f"trace-{hash_seed}.jsonl"
    command = [sys.executable, "-m", "firmware_sim", "simulate", "--seed", "5", "--nodes", "4", "--hours", "2"]
    done = subprocess.run(
        [*command, "--out", str(out)],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        timeout=120,
    )
    return out.read_bytes(), json.loads(done.stdout)


def test_two_processes_with_different_hash_seeds_write_the_same_bytes(tmp_path: Path) -> None:
    first, told = in_a_process_of_its_own(tmp_path, "1")
    second, _ = in_a_process_of_its_own(tmp_path, "2")
    assert first == second
    assert told["hash"] == hashlib.sha256(first).hexdigest()
    assert b'"what":"sound"' in first


def test_another_seed_is_another_world() -> None:
    assert simulate(Options(5, 2, 0.6)).hash != simulate(Options(6, 2, 0.6)).hash
