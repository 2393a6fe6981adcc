"""A small country for `benchmarks.permissions`: a random tree with traps in its ids, and one row of everything at each
place, every text of which says whose it is.

Rows are planted by their tables' columns, not by verbs: what a table holds beside its keys is filled by its type, so a
new table is filled too. `names()` of an answer tells which places it speaks of.
"""

from __future__ import annotations

import enum
import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

from sqlalchemy import JSON, Boolean, Date, Float, ForeignKeyConstraint, Integer, LargeBinary, String, Table, insert

from broadcast_server.domain.recurrence import Rule, Weekly, rule_to_dict
from broadcast_server.store import audit
from broadcast_server.store.people import secret_hash
from broadcast_server.store.schedules import entry_id
from broadcast_server.store.session import Session
from broadcast_server.store.tables import Base
from broadcast_server.store.types import UtcDateTime
from broadcast_server.store.words import Role

NOW: Final = datetime(2026, 6, 1, 3, 0, tzinfo=UTC)
TODAY: Final = date(2026, 6, 1)
LONG_AGO: Final = date(2025, 7, 1)
_MARK: Final = re.compile(r"zq(\d+)qz")
_SPARE: Final = ("9", "92", "921", "9-2", "9.2", "90", "099", "9_", "29", "9292", "2", "9a", "9A", "19")
"""Ids of which one begins another: a scope that compares beginnings of ids leaks at once."""
_NOT_PLANTED: Final = frozenset(
    {
        *("units", "unit_links", "unit_kinds", "users", "grants", "tokens", "audit", "leases", "jobs", "facts"),
        *("idempotency", "credentials", "recovery_codes", "tries", "sequences"),
    }
)
RELATIONS: Final = ("own", "child", "sibling", "parent", "foreign", "moved_out", "successor")
KINDS: Final = {"root": "country", "parent": "province", "other": "province", "child": "hamlet", "moved_out": "hamlet"}


def mark(number: int) -> str:
    """What every text of that place carries."""
    return f"zq{number}qz"


def names(text: str) -> set[int]:
    """The places an answer speaks of."""
    return {int(found) for found in _MARK.findall(text)}


@dataclass
class World:
    """A tree and what stands in it. `units`: relation to id; `numbers`: relation to the mark's number."""

    seed: int
    units: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Relation to table to the primary key of its row."""
    users: dict[str, str] = field(default_factory=dict)
    """Relation to the id of somebody who works there."""
    actor_id: str = ""
    token: str = ""

    @property
    def readable(self) -> set[int]:
        """Marks of the places at or below the actor's, by the tree as it lies today."""
        return {self.numbers[relation] for relation in ("own", "child", "closed")}

    @property
    def above(self) -> set[int]:
        """Marks of the places above the actor's."""
        return {self.numbers[relation] for relation in ("parent", "root")}


def a_world(session: Session, seed: int, role: Role, *, begins: timedelta, ends: timedelta | None) -> World:
    """Plant a tree and one actor with a role at `own` and at `closed`, a unit that was merged into `successor`."""
    chance = random.Random(seed)
    world = World(seed)
    ids = list(_SPARE)
    chance.shuffle(ids)
    for number, relation in enumerate((*RELATIONS, "root", "other", "closed")):
        world.units[relation] = ids[number]
        world.numbers[relation] = seed * 20 + number
    tables = Base.metadata.tables
    kinds = sorted({*KINDS.values(), "commune"})
    session.execute(insert(tables["unit_kinds"]), [{"code": code, "name_vi": code, "name_en": code} for code in kinds])
    session.execute(
        insert(tables["units"]),
        [
            {
                "id": unit_id,
                "kind": KINDS.get(relation, "commune"),
                "name": f"Đơn vị {unit_id}",
                "name_folded": f"don vi {unit_id}",
                "created_at": NOW,
                "version": 1,
            }
            for relation, unit_id in world.units.items()
        ],
    )
    _link(session, world, chance)
    _people(session, world, role, begins, ends)
    _plant(session, world)
    return world


def _link(session: Session, world: World, chance: random.Random) -> None:
    """Who lies in whom: today's tree, what was moved today or lately, and what was merged away."""
    moved = TODAY - timedelta(days=chance.choice((0, 1, 40)))
    lines = [
        ("parent", "root", LONG_AGO, None),
        ("other", "root", LONG_AGO, None),
        ("own", "parent", LONG_AGO, None),
        ("child", "own", LONG_AGO, None),
        ("sibling", "parent", LONG_AGO, None),
        ("foreign", "other", LONG_AGO, None),
        ("moved_out", "own", LONG_AGO, moved),  # lay in the actor's place, and does not any more
        ("moved_out", "sibling", moved, None),
        ("successor", "parent", moved, None),
        ("closed", "parent", LONG_AGO, moved),  # merged into the successor; the actor's grant at it still stands
    ]
    if chance.random() < 0.5:  # the actor's own place came from elsewhere
        lines[2] = ("own", "parent", moved, None)
        lines.append(("own", "other", LONG_AGO, moved))
    session.execute(
        insert(Base.metadata.tables["unit_links"]),
        [
            {
                "id": f"l{number}",
                "unit_id": world.units[unit],
                "parent_id": world.units[parent],
                "valid_from": since,
                "valid_to": until,
            }
            for number, (unit, parent, since, until) in enumerate(lines)
        ],
    )


def _people(session: Session, world: World, role: Role, begins: timedelta, ends: timedelta | None) -> None:
    tables = Base.metadata.tables
    world.actor_id, world.token = "actor", f"loa_{world.seed}"
    users = [{"id": "actor", "login": "actor", "name": "Người thử", "created_at": NOW}]
    grants = [
        {
            "id": f"g-{relation}",
            "user_id": "actor",
            "role": role,
            "unit_id": world.units[relation],
            "valid_from": NOW + begins,
            "valid_to": None if ends is None else NOW + ends,
        }
        for relation in ("own", "closed")
    ]
    tokens = [_token("actor", "t-actor", world.token, "của tôi")]
    for relation, unit_id in world.units.items():
        text = mark(world.numbers[relation])
        user_id = world.users[relation] = f"u-{relation}"
        users.append({"id": user_id, "login": f"lan-{text}", "name": f"Lan {text}", "created_at": NOW})
        grants.append(
            {
                "id": f"gu-{relation}",
                "user_id": user_id,
                "role": Role.BROADCASTER,
                "unit_id": unit_id,
                "valid_from": NOW - timedelta(days=9),
                "valid_to": None,
            }
        )
        tokens.append(_token(user_id, f"tu-{relation}", f"loa_{world.seed}_{relation}", f"máy {text}"))
    for table, lines in (("users", users), ("grants", grants), ("tokens", tokens)):
        session.execute(insert(tables[table]), lines)


def _token(user_id: str, token_id: str, secret: str, name: str) -> dict[str, Any]:
    return {
        "id": token_id,
        "user_id": user_id,
        "secret_hash": secret_hash(secret),
        "name": name,
        "created_at": NOW - timedelta(days=1),
    }


def _plant(session: Session, world: World) -> None:
    """One row of every table for each place, in the order of their references."""
    for relation, unit_id in world.units.items():
        world.rows[relation] = {
            "units": unit_id,
            "users": world.users[relation],
            "unit_kinds": "commune",
            "grants": f"gu-{relation}",
            "tokens": f"tu-{relation}",
        }
    for table in Base.metadata.sorted_tables:
        if table.name in _NOT_PLANTED:
            continue
        lines = []
        for relation, planted in world.rows.items():
            text = mark(world.numbers[relation])
            values = _row(table, planted, text, relation) | _special(table.name, planted, text)
            lines.append(values)
            keys = [values[column.name] for column in table.primary_key]
            planted[table.name] = keys[0] if len(keys) == 1 else tuple(keys)
        session.execute(insert(table), lines)
    for relation, unit_id in world.units.items():
        text = mark(world.numbers[relation])
        audit.append(session, now=NOW, actor=f"lan-{text}", verb="place.rename", unit_id=unit_id, subject=text)


def _row(table: Table, planted: Mapping[str, Any], text: str, relation: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    refers = {
        column.name: constraint.referred_table.name
        for constraint in table.constraints
        if isinstance(constraint, ForeignKeyConstraint)
        for column in constraint.columns
    }
    for column in table.columns:
        if column.name in refers:
            values[column.name] = planted.get(refers[column.name])
        elif column.primary_key and isinstance(column.type, String):
            values[column.name] = _id(table.name, column.name, relation, text)
        elif column.primary_key and isinstance(column.type, Integer):
            continue  # the database counts
        elif column.nullable:
            values[column.name] = None
        else:
            values[column.name] = _value(column.type, column.name, text)
    for column in table.primary_key:
        if column.name not in values and isinstance(column.type, Integer):
            values[column.name] = int(_MARK.findall(text)[0]) + 1
    return values


def _id(table: str, column: str, relation: str, text: str) -> str:
    if column == "sha256":
        return hashlib.sha256(f"{table}{text}".encode()).hexdigest()
    return f"{table[:12].replace('_', '-')}-{relation[:4]}"


def _value(kind: Any, name: str, text: str) -> Any:
    enumeration = getattr(kind, "enum_class", None) or getattr(kind, "words", None)
    if isinstance(enumeration, type) and issubclass(enumeration, enum.Enum):
        return next(iter(enumeration))
    if isinstance(kind, UtcDateTime):
        return NOW
    if isinstance(kind, Date):
        return TODAY
    if isinstance(kind, Boolean):
        return False
    if isinstance(kind, Float):
        return 0.0
    if isinstance(kind, Integer):
        return 1
    if isinstance(kind, LargeBinary):
        return b""
    if isinstance(kind, JSON):
        return {"mark": text}
    if "hash" in name or "sha256" in name:
        return hashlib.sha256(f"{name}{text}".encode()).hexdigest()
    return text


def _special(table: str, planted: Mapping[str, Any], text: str) -> dict[str, Any]:
    """What a column's type does not tell."""
    unit_id = planted["units"]
    later = NOW + timedelta(hours=5)
    return {
        "schedules": {
            "rule": rule_to_dict(Rule(Weekly(frozenset(range(7)), (time(17),)))),
            "late": {},
            "content_id": planted.get("bulletins"),
            "ends_at": None,
            "length_ms": None,
        },
        "feeds": {"url": f"http://127.0.0.1:9/{text}", "valid_from": None, "valid_to": None},
        "policies": {"body": {}},
        "clusters": {"config": {}},
        "schedule_targets": {"kind": "unit", "ref": unit_id},
        "emergency_templates": {"phrases": [], "text": text},
        "emergencies": {
            "state": "in_force",
            "units": [unit_id],
            "hazard": None,
            "phrases": [],
            "expires_at": later,
            "launched_at": NOW,
        },
        "alerts": {"expires_at": later, "body": {"text": text}},
        "live_sessions": {
            "ends_at": later,
            "counts": {},
            "speaker": text,
            "entry_id": entry_id(planted.get("schedules", "x"), later),
        },
        "arrivals": {},
        "sendings": {"deadline": later},
        "ties": {"deadline": later, "collides_at": later, "options": [], "chosen": []},
        "enrolment_tokens": {"expires_at": later, "uses_left": 3},
        "programmes": {"items": []},
        "assets": {"report": {"mark": text}, "cues": []},
        "outbox": {"body": {"verb": "identify", "seconds": 1}, "expires_at": later},
        "obligations": {"valid_to": None},
        "conflicts": {"facts": {"title": text, "winner_title": text}},
        "broadcasts": {"ends_at": later},
        "plays": {"ends_at": later},
    }.get(table, {})
