"""The commands people are told to type can be typed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import run
from tests.architecture.sources import ROOT

SCRIPTS = ("scripts/demo", "scripts/test", "scripts/check", "scripts/bench", ".ci/run")


@pytest.mark.parametrize("name", [*SCRIPTS, "scripts/_setup"])
def test_a_script_is_sound_bash(name: str) -> None:
    done = subprocess.run(["bash", "-n", ROOT / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_run_and_stops_at_its_first_failure(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    text = (ROOT / name).read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "_setup" in text or name == ".ci/run", "what is needed is brought by the script itself"


def test_a_benchmark_that_does_not_exist_is_a_bar_that_does_not_hold(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert run.main(["nonesuch", "--json", str(out)]) == 1
    (result,) = json.loads(out.read_text())["benchmarks"]
    assert result["name"] == "nonesuch"
    assert [bar["holds"] for bar in result["bars"]] == [False]
