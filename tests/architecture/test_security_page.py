"""The threat model names tests and suites that are there, and none of its lines is without one."""

from __future__ import annotations

import re

import pytest

from benchmarks.run import ALL
from tests.architecture.sources import ROOT

TEXT = (ROOT / "docs/security.md").read_text(encoding="utf-8")
LINES = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith(("| Threat", "|---"))
]


def test_each_line_has_a_threat_a_control_a_test_and_a_promise():
    assert len(LINES) >= 50
    assert [line for line in LINES if len(line) != 4 or not all(line)] == []


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:tests|benchmarks|scripts)/[\w/.]+\w", TEXT))))
def test_a_test_that_is_named_is_there(path: str):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`bench (\w+)", TEXT)) - {"X"}))
def test_a_suite_that_is_named_runs(name: str):
    assert name in ALL
