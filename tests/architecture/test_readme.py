"""What the README says is so: files exist, libraries are imported there, tests are there by name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PRESCRIBED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "paho-mqtt": "paho",
    "pydub": "pydub",
    "ffmpeg-python": "ffmpeg",
    "sqlalchemy": "sqlalchemy",
    "apscheduler": "apscheduler",
    "pytest": "pytest",
}
STATES = {"works", "simulated only", "not yet"}
FOLDERS = ("speaker_protocol/", "broadcast_server/", "firmware_sim/", "simulation/", "schedules/", "audio_samples/")


def marked(name: str) -> str:
    """What stands between `<!-- name -->` and `<!-- /name -->`."""
    (found,) = re.findall(rf"<!-- {name} -->(.*?)<!-- /{name} -->", README, re.DOTALL)
    return str(found)


def table(text: str) -> list[list[str]]:
    """Cells of the rows under a table's head."""
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def imported(path: Path) -> set[str]:
    """Top-level names of what a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.split(".")[0] for name in names}


def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


LIBRARIES = table(marked("libraries"))
MISSION = table(marked("mission"))


def test_all_prescribed_libraries_are_told() -> None:
    assert [row[0] for row in LIBRARIES] == list(PRESCRIBED)


@pytest.mark.parametrize("row", LIBRARIES, ids=lambda row: row[0])
def test_a_library_is_really_used_where_it_is_said(row: list[str]) -> None:
    library, what, where = row
    assert what
    assert quoted(where)
    for path in quoted(where):
        assert PRESCRIBED[library] in imported(ROOT / path), f"{path} does not import {library}"


@pytest.mark.parametrize("row", MISSION, ids=lambda row: row[0])
def test_a_promise_has_its_place_its_proof_and_its_state(row: list[str]) -> None:
    _, where, proof, state = row
    assert state in STATES
    assert (state == "not yet") == (not quoted(where)) == (not quoted(proof))
    for path in quoted(where):
        assert (ROOT / path).is_file(), path
    for test in quoted(proof):
        file, _, function = test.partition("::")
        assert function.startswith("test_"), test
        assert function in functions_in(ROOT / file), test


def test_each_promise_is_told_once() -> None:
    asked = [row[0] for row in MISSION]
    assert len(asked) == len(set(asked))
    assert {row[3] for row in MISSION} == STATES, "a table without a gap is not to be believed"


def test_the_map_leads_to_files_that_exist() -> None:
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    paths = [name for name in quoted(text) if name.startswith(FOLDERS) and "::" not in name]
    assert "speaker_protocol/rules.py" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert "docs/picture.svg" in targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_commands_of_the_readme_can_be_typed() -> None:
    scripts = set(re.findall(r"\./(scripts/[a-z]+)", README))
    assert {"scripts/demo", "scripts/test"} <= scripts
    assert [script for script in sorted(scripts) if not (ROOT / script).is_file()] == []


def test_measured_things_have_their_place() -> None:
    for name in ("demo-output", "figures"):
        marked(name)
