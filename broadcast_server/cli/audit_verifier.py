"""Check the audit log of a store without any part of the server: `python audit_verifier.py --database FILE …`.

One file, the standard library alone (and psycopg for a PostgreSQL address): whoever does not trust the server reads
these lines and runs them on a copy of its database, with anchors from elsewhere. `broadcast-server audit verify` runs
the same.

The chain: row n's hash is SHA-256 of the hash before it, a line feed and the row as JSON (keys sorted, no spaces,
UTF-8; `at_us` are microseconds since 1970). Sequences begin with 1 and have no gap. An anchor says which hash a row had
when somebody else was told; lines of an anchor file are `{"at", "sequence", "hash"}`. What this proves: the log was not
changed up to the last anchor that is not the database's own, and holds together after it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

GENESIS = "0" * 64
COLUMNS = ("sequence", "at", "actor", "verb", "unit_id", "subject", "detail", "previous_hash", "hash")
RESTORE = "store.restore"


def hash_of(previous: str, row: Mapping[str, Any]) -> str:
    """The hash that a row must have after `previous`."""
    told = {
        "sequence": row["sequence"],
        "at_us": row["at"],
        "actor": row["actor"],
        "verb": row["verb"],
        "unit_id": row["unit_id"],
        "subject": row["subject"],
        "detail": row["detail"],
    }
    text = json.dumps(told, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{previous}\n{text}".encode()).hexdigest()


def verify(
    rows: Iterable[Mapping[str, Any]], anchors: Sequence[Mapping[str, Any]], *, is_restored: bool = False
) -> dict[str, Any]:
    """Findings: `ok`, `rows`, `head`, `first_broken` with `why`, and the anchors that the log contradicts.

    A backup that was restored lacks the rows that came after it, which is just what a tail cut off looks like. Only
    who knows of a restore may say so (`is_restored`): then anchors of before a row `store.restore` that name rows from
    there on are counted as `superseded` instead.
    """
    wanted: dict[int, set[str]] = {}
    for one in anchors:
        wanted.setdefault(one["sequence"], set()).add(one["hash"])
    seen: dict[int, str] = {}
    restores: list[tuple[int, int]] = []
    previous, expected, broken, why = GENESIS, 1, None, None
    for row in rows:
        if row["sequence"] != expected:
            broken, why = expected, "missing"
        elif row["previous_hash"] != previous:
            broken, why = expected, "not_after_the_one_before"
        elif row["hash"] != hash_of(previous, row):
            broken, why = expected, "changed"
        if broken is not None:
            break
        if expected in wanted:
            seen[expected] = row["hash"]
        if row["verb"] == RESTORE:
            restores.append((expected, row["at"]))
        previous, expected = row["hash"], expected + 1
    contradicted, superseded = [], 0
    for one in anchors:
        if broken is not None and one["sequence"] >= broken:
            continue  # the break is told already
        if seen.get(one["sequence"]) != one["hash"]:
            if is_restored and any(at_row <= one["sequence"] and one["at_us"] < at_us for at_row, at_us in restores):
                superseded += 1
            else:
                contradicted.append(
                    {"sequence": one["sequence"], "told": one["hash"], "stands": seen.get(one["sequence"])}
                )
    return {
        "ok": broken is None and not contradicted,
        "rows": expected - 1,
        "head": previous,
        "first_broken": broken,
        "why": why,
        "anchors": len(anchors),
        "last_anchor": max((one["sequence"] for one in anchors), default=0),
        "contradicted": contradicted,
        "superseded": superseded,
    }


def read_rows(database: str) -> Iterator[dict[str, Any]]:
    """The log's rows in order, from a SQLite file or a `postgresql://` address."""
    columns = ", ".join(COLUMNS)
    if database.startswith("postgresql"):
        import psycopg  # noqa: PLC0415  not needed for a SQLite file

        address = "postgresql://" + database.partition("://")[2]
        with psycopg.connect(address) as connection, connection.cursor(name="audit") as cursor:
            cursor.execute(f"SELECT {columns} FROM audit ORDER BY sequence")  # noqa: S608  our own words
            for told in cursor:
                yield dict(zip(COLUMNS, told, strict=True))
        return
    file = Path(database.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as book:
        for told in book.execute(f"SELECT {columns} FROM audit ORDER BY sequence"):  # noqa: S608  our own words
            row = dict(zip(COLUMNS, told, strict=True))
            try:
                row["detail"] = json.loads(row["detail"])
            except (TypeError, ValueError):
                row["detail"] = None  # no row of ours: its hash will not hold
            yield row


def read_anchors(file: Path) -> list[dict[str, Any]]:
    """The anchors of a file, with `at_us`. Raises `ValueError` naming the line that is none."""
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            told = json.loads(line)
            at = datetime.fromisoformat(told["at"])
            at_us = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
            found.append({"sequence": int(told["sequence"]), "hash": str(told["hash"]), "at_us": at_us})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: line {number} is no anchor") from error
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The program: prints findings as JSON; 0 where all holds, 1 where it does not, 2 where it could not be read."""
    parser = argparse.ArgumentParser(description="Check the audit log of a store against its own chain and anchors.")
    parser.add_argument("--database", required=True, help="SQLite file or postgresql:// address")
    parser.add_argument("--anchors", action="append", default=[], type=Path, help="anchor file, as often as wished")
    parser.add_argument("--restored", action="store_true", help="a backup was restored, and I know of it")
    told = parser.parse_args(arguments)
    try:
        anchors = [one for file in told.anchors for one in read_anchors(file)]
        findings = verify(read_rows(told.database), anchors, is_restored=told.restored)
    except (OSError, ValueError, sqlite3.Error) as error:
        print(json.dumps({"ok": False, "unreadable": str(error)}))
        return 2
    print(json.dumps(findings))
    return 0 if findings["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
