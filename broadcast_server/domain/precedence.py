"""Who wins a conflict, and the reason a person is given.

`Rank` is a total order, so the same entries give the same outcome in any order of input. It says who takes a *free* air
and who is first in the queue; who may take the air *from* another is the matrix's business (`speaker_protocol.rules`),
and it never lets a worse rank do so. `explain` names the one rule that decided.

Source: Thông tư 39/2020 (higher class first; the commune orders ties of *ưu tiên*), `docs/glossary.md`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from speaker_protocol import rules
from speaker_protocol.rules import BulletinClass, SourceKind


class Ranked(Protocol):
    """What precedence needs to know of an entry."""

    @property
    def id(self) -> str:
        """The last resort of the order."""
        ...

    @property
    def start(self) -> datetime:
        """When it is due."""
        ...

    @property
    def level(self) -> int:
        """Its rung of the ladder."""
        ...

    @property
    def klass(self) -> BulletinClass:
        """Its legal class."""
        ...

    @property
    def source(self) -> SourceKind:
        """Where its sound comes from."""
        ...

    @property
    def origin_order(self) -> int:
        """The commune's order among entries of one rung; smaller is earlier."""
        ...


class Rank(NamedTuple):
    """The better rank is the smaller one."""

    minus_rung: int
    origin_order: int
    minus_level: int
    start: datetime
    entry_id: str


def rank_of(entry: Ranked) -> Rank:
    """The higher rung, then the commune's order, then the higher level, then the earlier start, then the id."""
    return Rank(-rules.rung_of(entry), entry.origin_order, -entry.level, entry.start, entry.id)


class Rule(enum.StrEnum):
    """The rule that decided; its sentence is in the catalogue."""

    LADDER = "ladder"  # the winner stands on the higher rung
    MATRIX = "matrix"  # the loser stands higher, and still may not interrupt what sounds
    COMMUNE_ORDER = "commune_order"  # the commune put the winner first
    EARLIER_START = "earlier_start"
    ENTRY_ID = "entry_id"  # nothing tells them apart; fixed, so that every node does the same


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one entry sounded and another did not."""

    code: Rule
    facts: dict[str, Any] = field(default_factory=dict)


def explain(winner: Ranked, loser: Ranked) -> Reason:
    """The rule by which `winner` had the air while `loser` was due.

    Facts always name both entries and levels, and `act`: what the matrix lets the loser do meanwhile.
    """
    facts: dict[str, Any] = {
        "winner_id": winner.id,
        "loser_id": loser.id,
        "winner_level": int(winner.level),
        "loser_level": int(loser.level),
        "act": rules.act_of(loser, winner).value,
    }
    if rules.rung_of(winner) == rules.rung_of(loser) and winner.origin_order < loser.origin_order:
        orders = {"winner_order": winner.origin_order, "loser_order": loser.origin_order}
        return Reason(Rule.COMMUNE_ORDER, facts | orders)
    if winner.level > loser.level:
        return Reason(Rule.LADDER, facts)
    if winner.level < loser.level:
        row, column = rules.kind_of(loser).value, rules.kind_of(winner).value
        return Reason(Rule.MATRIX, facts | {"row": row, "column": column})
    if winner.start != loser.start:
        starts = {"winner_start": winner.start.isoformat(), "loser_start": loser.start.isoformat()}
        return Reason(Rule.EARLIER_START, facts | starts)
    return Reason(Rule.ENTRY_ID, facts)
