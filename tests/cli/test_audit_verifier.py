"""The program that reads the audit log without the server."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import audit_tampering
from broadcast_server.cli import audit_verifier
from broadcast_server.cli.audit_verifier import hash_of, read_anchors, verify

FILE = Path(audit_verifier.__file__)


def a_log(length: int, **changes: object) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    previous = audit_verifier.GENESIS
    for number in range(1, length + 1):
        row: dict[str, object] = {
            "sequence": number,
            "at": number * 1_000_000,
            "actor": "lan",
            "verb": "schedule.add",
            "unit_id": None,
            "subject": f"schedule/{number}",
            "detail": {},
            **(changes if number == length else {}),
        }
        row |= {"previous_hash": previous, "hash": hash_of(previous, row)}
        previous = str(row["hash"])
        rows.append(row)
    return rows


def test_it_needs_nothing_of_the_server_and_no_package_but_postgresqls_driver():
    imported = set()
    for node in ast.walk(ast.parse(FILE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).partition(".")[0])
    assert imported - sys.stdlib_module_names == {"psycopg"}


def test_it_runs_by_itself_on_a_copy_of_the_database(tmp_path: Path):
    import asyncio

    anchors = asyncio.run(audit_tampering._fill(tmp_path / "log.sqlite", 20))
    line = {"at": "2026-06-01T00:00:00+00:00", "sequence": anchors[-1]["sequence"], "hash": anchors[-1]["hash"]}
    (tmp_path / "witness.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    program = [sys.executable, "-I", str(FILE), "--database", str(tmp_path / "log.sqlite")]

    def told(*more: str) -> tuple[int, dict[str, object]]:
        ended = subprocess.run([*program, *more], capture_output=True, text=True, check=False)
        return ended.returncode, json.loads(ended.stdout)

    code, found = told("--anchors", str(tmp_path / "witness.jsonl"))
    assert (code, found["ok"], found["rows"], found["last_anchor"]) == (0, True, 20, 20)
    (tmp_path / "witness.jsonl").write_text(json.dumps({**line, "sequence": 21}) + "\n", encoding="utf-8")
    code, found = told("--anchors", str(tmp_path / "witness.jsonl"))
    assert (code, found["ok"]) == (1, False)
    (tmp_path / "witness.jsonl").write_text("no anchor\n", encoding="utf-8")
    assert told("--anchors", str(tmp_path / "witness.jsonl"))[0] == 2


def test_every_tampering_of_a_small_log_is_found():
    result = audit_tampering.measure(66, rows=120, seed=7)
    assert all(bar["holds"] for bar in result["bars"]), result["figures"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"actor": "ai-do"}, "changed"),
        ({"sequence": 9}, "missing"),
        ({"previous_hash": "0" * 64}, "not_after_the_one_before"),
    ],
)
def test_it_says_which_row_and_why(change: dict[str, object], why: str):
    rows = a_log(5)
    rows[2] |= change
    found = verify(rows, [])
    assert (found["ok"], found["first_broken"], found["why"], found["rows"]) == (False, 3, why, 2)


def test_a_restore_explains_lost_rows_only_to_who_says_that_there_was_one():
    rows = a_log(3, verb="store.restore", at=9_000_000)
    before = [
        {"sequence": 3, "hash": "a" * 64, "at_us": 8_000_000},
        {"sequence": 5, "hash": "b" * 64, "at_us": 8_500_000},
    ]
    after = [{"sequence": 5, "hash": "c" * 64, "at_us": 9_500_000}]

    assert len(verify(rows, before)["contradicted"]) == 2
    told = verify(rows, before, is_restored=True)
    assert (told["ok"], told["superseded"]) == (True, 2)
    assert not verify(rows, after, is_restored=True)["ok"]


def test_a_file_of_anchors_names_the_line_that_is_none(tmp_path: Path):
    file = tmp_path / "anchors.jsonl"
    file.write_text('{"at": "2026-06-01T00:00:00+00:00", "sequence": 1, "hash": "ab"}\n{"at": 1}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        read_anchors(file)
