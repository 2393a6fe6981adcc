"""Audit tampering: copies of a log of 10 000 rows, each altered in one way, judged by the independent program.

`LOA_TAMPERINGS` (1 000) copies: a field flipped, a row deleted, inserted, moved, the tail cut off, everything from a
row on rewritten with a chain that holds. Whoever alters has the file and no triggers in the way; anchors are held
elsewhere, the last one after the last row. Untouched copies between them must be found whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from benchmarks.run import bar_of
from broadcast_server.cli.audit_verifier import GENESIS, RESTORE, hash_of, read_rows, verify
from broadcast_server.store import audit
from broadcast_server.store.migrations import migrate
from broadcast_server.store.session import Session, Store
from broadcast_server.supervise import InlineExecutor, SystemChance, SystemClock

ROWS: Final = 10_000
BEGAN: Final = datetime(2026, 6, 1, tzinfo=UTC)
Alter = Callable[[sqlite3.Connection, random.Random, int], None]


def run() -> dict[str, Any]:
    """See `benchmarks.run`."""
    return measure(int(os.environ.get("LOA_TAMPERINGS", "1000")), rows=ROWS)


def measure(tries: int, *, rows: int, seed: int = 1) -> dict[str, Any]:
    """`tries` alterations of a log of `rows` rows, and a tenth as many untouched copies."""
    chance = random.Random(seed)
    found: Counter[str] = Counter()
    missed: list[str] = []
    refused, false_alarms, whole = 0, 0, max(1, tries // 10)
    with tempfile.TemporaryDirectory(prefix="loa-audit-") as folder:
        log, copy = Path(folder) / "log.sqlite", Path(folder) / "copy.sqlite"
        anchors = asyncio.run(_fill(log, rows))
        for _ in range(whole):
            refused += _refused_by_the_database(log, chance, rows)
            false_alarms += not verify(read_rows(str(log)), anchors)["ok"]
        ways = list(WAYS.items())
        for number in range(tries):
            name, alter = ways[number % len(ways)]
            shutil.copyfile(log, copy)
            with closing(sqlite3.connect(copy)) as raw, raw:
                raw.execute("DROP TRIGGER audit_is_not_changed")
                raw.execute("DROP TRIGGER audit_is_not_deleted")
                alter(raw, chance, rows)
            if verify(read_rows(str(copy)), anchors)["ok"]:
                missed.append(name)
            else:
                found[name] += 1
    ok = sum(found.values())
    return {
        "name": "audit_tampering",
        "figures": {
            "attempted": tries,
            "ok": ok,
            "violations": len(missed) + false_alarms,
            "missed": dict(Counter(missed)),
            "found_by_way": dict(sorted(found.items())),
            "rows": rows,
            "anchors": len(anchors),
            "untouched_copies": whole,
            "false_alarms": false_alarms,
            "refused_by_the_database": refused,
        },
        "bars": [
            bar_of("tamperings found", f"{ok}/{tries}", f"{tries}/{tries}", holds=ok == tries > 0),
            bar_of("untouched logs found whole", whole - false_alarms, whole, holds=false_alarms == 0),
            bar_of("changes refused by the database itself", refused, 3 * whole, holds=refused == 3 * whole),
        ],
    }


async def _fill(file: Path, rows: int) -> list[dict[str, Any]]:
    """A log of so many rows, an hour's anchor every 500 of them and one at the end."""
    migrate(f"sqlite:///{file}")
    store = Store(f"sqlite:///{file}", clock=SystemClock(), chance=SystemChance(), executor=InlineExecutor())
    anchors: list[dict[str, Any]] = []

    def write(session: Session) -> None:
        for number in range(1, rows + 1):
            at = BEGAN + timedelta(seconds=number)
            audit.append(
                session,
                now=at,
                actor=f"nguoi{number % 7}",
                verb=("schedule.add", "emergency.launch", "grant.give")[number % 3],
                unit_id=f"xa-{number % 5}",
                subject=f"schedule/{number}",
                detail={"số": number, "title": "Thông báo mô phỏng"},
            )
            if number % 500 == 0 or number == rows:
                stands = audit.head(session)
                assert stands is not None
                anchors.append({"sequence": stands.sequence, "hash": stands.hash, "at_us": number})

    await store.begin(write, ring=False)
    with store.engine.connect() as raw:
        raw.exec_driver_sql("COMMIT")
        raw.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        raw.exec_driver_sql("PRAGMA journal_mode=DELETE")
        raw.exec_driver_sql("BEGIN")
    await store.close()
    return anchors


def _refused_by_the_database(log: Path, chance: random.Random, rows: int) -> int:
    """How many of three changes through an ordinary connection the database refuses."""
    refused, number = 0, chance.randint(1, rows)
    with closing(sqlite3.connect(log)) as raw:
        for statement in (
            "UPDATE audit SET actor = 'x' WHERE sequence = ?",
            "DELETE FROM audit WHERE sequence = ?",
            "UPDATE audit SET sequence = sequence + 1000000 WHERE sequence >= ?",
        ):
            try:
                raw.execute(statement, (number,))
            except sqlite3.IntegrityError:
                refused += 1
            raw.rollback()
    return refused


# -- ways to alter a log -----------------------------------------------------------------------------------------------


def _flip(raw: sqlite3.Connection, chance: random.Random, rows: int) -> None:
    """One character or figure of one field of one row."""
    number = chance.randint(1, rows)
    column = chance.choice(("at", "actor", "verb", "unit_id", "subject", "detail", "previous_hash", "hash"))
    (value,) = raw.execute(f"SELECT {column} FROM audit WHERE sequence = ?", (number,)).fetchone()  # noqa: S608
    if column == "at":
        fresh: Any = value + chance.choice((-1, 1, 60_000_000))
    elif column == "detail":
        told = json.loads(value)
        told["title"] = told["title"][:-1]
        fresh = json.dumps(told)
    else:
        at = chance.randrange(len(value))
        fresh = value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :]
    raw.execute(f"UPDATE audit SET {column} = ? WHERE sequence = ?", (fresh, number))  # noqa: S608


def _blank(raw: sqlite3.Connection, chance: random.Random, rows: int) -> None:
    raw.execute("UPDATE audit SET unit_id = NULL WHERE sequence = ?", (chance.randint(1, rows),))


def _delete(raw: sqlite3.Connection, chance: random.Random, rows: int) -> None:
    raw.execute("DELETE FROM audit WHERE sequence = ?", (chance.randint(1, rows),))


def _delete_and_close_ranks(raw: sqlite3.Connection, chance: random.Random, rows: int) -> None:
    """The gap is closed and the chain after it made anew."""
    number = chance.randint(1, rows)
    raw.execute("DELETE FROM audit WHERE sequence = ?", (number,))
    raw.execute("UPDATE audit SET sequence = -sequence WHERE sequence > ?", (number,))
    raw.execute("UPDATE audit SET sequence = -sequence - 1 WHERE sequence < 0")
    _chain_anew(raw, number)


def _insert(raw: sqlite3.Connection, chance: random.Random, rows: int) -> None:
    """A row more in the middle, with the chain after it made anew."""
    number = chance.randint(1, rows)
    raw.execute("UPDATE audit SET sequence = -sequence WHERE sequence >= ?", (number,))
    raw.execute("UPDATE audit SET sequence = -sequence + 1 WHERE sequence < 0")
    raw.execute(
        "INSERT INTO audit (sequence, at, actor, verb, unit_id, subject, detail, previous_hash, hash)"
        " SELECT ?, at, 'ai-do', 'emergency.approve', unit_id, subject, detail, previous_hash, hash"
        " FROM audit WHERE sequence = ?",
        (number, number + 1),
    )
    if chance.random() < 0.5:
        _chain_anew(raw, number)


def _append_forged(raw: sqlite3.Connection, chance: random.Random, rows: int) -> None:
    """The last row is put in another's place, with a chain that holds up to it."""
    raw.execute("UPDATE audit SET actor = ? WHERE sequence = ?", (f"khac{chance.randint(1, 9)}", rows))
    _chain_anew(raw, rows)


def _reorder(raw: sqlite3.Connection, chance: random.Random, rows: int) -> None:
    first = chance.randint(1, rows - 1)
    second = chance.randint(first + 1, rows)
    raw.execute("UPDATE audit SET sequence = -1 WHERE sequence = ?", (first,))
    raw.execute("UPDATE audit SET sequence = ? WHERE sequence = ?", (first, second))
    raw.execute("UPDATE audit SET sequence = ? WHERE sequence = -1", (second,))
    if chance.random() < 0.5:
        _chain_anew(raw, first)


def _truncate(raw: sqlite3.Connection, chance: random.Random, rows: int) -> None:
    """The tail is cut off: what is left is a chain that holds."""
    raw.execute("DELETE FROM audit WHERE sequence > ?", (chance.randint(0, rows - 1),))


def _truncate_and_restore(raw: sqlite3.Connection, chance: random.Random, rows: int) -> None:
    """The tail is cut off and called a restore, which only who asks may vouch for."""
    number = chance.randint(1, rows - 1)
    raw.execute("DELETE FROM audit WHERE sequence > ?", (number,))
    raw.execute("UPDATE audit SET verb = ?, at = at + 999000000 WHERE sequence = ?", (RESTORE, number))
    _chain_anew(raw, number)


def _rewrite(raw: sqlite3.Connection, chance: random.Random, rows: int) -> None:
    """One row is another, and everything from there on is chained anew."""
    number = chance.randint(1, rows)
    raw.execute("UPDATE audit SET actor = 'khong-ai' WHERE sequence = ?", (number,))
    _chain_anew(raw, number)


def _rewrite_all(raw: sqlite3.Connection, _chance: random.Random, _rows: int) -> None:
    raw.execute("UPDATE audit SET at = at + 1")
    _chain_anew(raw, 1)


def _chain_anew(raw: sqlite3.Connection, number: int) -> None:
    """Hash again from a row on, as who knows the rule would."""
    before = raw.execute("SELECT hash FROM audit WHERE sequence = ?", (number - 1,)).fetchone()
    previous = GENESIS if before is None else before[0]
    names = ("sequence", "at", "actor", "verb", "unit_id", "subject", "detail")
    fresh = []
    for told in raw.execute(
        f"SELECT {', '.join(names)} FROM audit WHERE sequence >= ? ORDER BY sequence",  # noqa: S608
        (number,),
    ):
        row = dict(zip(names, told, strict=True))
        row["detail"] = json.loads(row["detail"])
        hash_ = hash_of(previous, row)
        fresh.append((previous, hash_, row["sequence"]))
        previous = hash_
    raw.executemany("UPDATE audit SET previous_hash = ?, hash = ? WHERE sequence = ?", fresh)


WAYS: Final[dict[str, Alter]] = {
    "flip": _flip,
    "blank": _blank,
    "delete": _delete,
    "delete_and_close_ranks": _delete_and_close_ranks,
    "insert": _insert,
    "forged_last": _append_forged,
    "reorder": _reorder,
    "truncate": _truncate,
    "truncate_and_call_it_a_restore": _truncate_and_restore,
    "rewrite_from_a_row": _rewrite,
    "rewrite_all": _rewrite_all,
}
