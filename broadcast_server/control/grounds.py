"""The ground of every loss: which rule, who won, until when; in the same words wherever something does not sound.

`Grounds` goes into the facts of each thing `explain` names. A maintainer must not break: a loss always has a `rule`
with a sentence in the catalogue, and either an instant `until` or `ends_with`, the code of what must happen first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from broadcast_server.control.clashes import Way, WayOut
from broadcast_server.domain.proof import Missing
from broadcast_server.domain.timeline import DropReason
from broadcast_server.store.tables import ConflictRow
from broadcast_server.store.words import ConflictKind
from speaker_protocol.rules import Trouble, Why


@dataclass(frozen=True, slots=True)
class Grounds:
    """Why something does not sound. `until` None: `ends_with` says what ends it."""

    rule: str
    until: datetime | None = None
    ends_with: str | None = None
    winner_id: str | None = None
    winner_title: str | None = None

    def facts(self) -> dict[str, Any]:
        """For the facts of a loss: always with `rule`, `until` and `winner_id`."""
        told: dict[str, Any] = {"rule": self.rule, "until": self.until, "winner_id": self.winner_id}
        more = {"ends_with": self.ends_with, "winner_title": self.winner_title}
        return told | {name: value for name, value in more.items() if value is not None}


BLOCKED_UNTIL: Final[Mapping[ConflictKind, str]] = {
    ConflictKind.APPROVAL_VOID: "until_approved",
    ConflictKind.ASSET_MISSING: "until_audio_is_made",
    ConflictKind.CONTENT_EXPIRED: "until_extended",
    ConflictKind.NOT_OFFERED: "until_offered",
    ConflictKind.OFFER_EXPIRES: "until_offered",
    ConflictKind.OFFER_WITHDRAWN: "until_offered",
    ConflictKind.FEED_REVOKED: "until_another_feed",
}
"""What ends what is in the way of an entry."""

NODE_UNTIL: Final[Mapping[str, str]] = {
    Why.STOP_ALL: "until_released",
    Why.NO_PLAN: "until_plan_arrives",
    Why.PLAN_NOT_YET_VALID: "until_plan_arrives",
    Why.PLAN_EXPIRED: "until_plan_arrives",
    Why.NOTHING_PLANNED: "until_plan_arrives",
    Why.CLOCK_UNKNOWN: "until_clock_known",
    Why.CLOCK_UNCERTAIN: "until_clock_known",
    Why.CLASS_ABOVE_KEY: "until_key_allows",
    Why.ASSET_MISSING: "until_audio_fetched",
    Why.ALERT_ASSET_MISSING: "until_audio_fetched",
    Why.DRILL_CLIP_MISSING: "until_audio_fetched",
    Why.STREAM_DEAD: "until_stream_returns",
    Why.NO_SOURCE: "until_plan_arrives",
    Why.POWER_LOW: "until_power_returns",
    Why.POWER_LOST: "until_power_returns",
    Why.SAFE_MODE: "until_power_returns",
    Why.NOT_ACTIVE: "until_node_approved",
    Trouble.POWER_OFF: "until_power_returns",
    Missing.UNREACHABLE: "until_node_returns",
    Missing.NO_REPORT: "until_node_reports",
    Missing.NOT_FINISHED: "until_node_reports",
}
"""What ends a node's own reason; one that is not here ends with its stretch."""


NODE_REASONS: Final = frozenset(one.value for reasons in (Why, Trouble, Missing) for one in reasons)
"""Why a node was not heard: its own reasons, and ours where it said nothing. Each has a sentence, `node_` before it."""


def code_of(kind: ConflictKind, facts: Mapping[str, Any]) -> str:
    """The sentence of what is in the way: of a missing approval it says why it is missing."""
    because = facts.get("because")
    return f"blocked_{kind.value}" if because is None else f"unapproved_{because}"


# -- conflicts, for who placed what loses -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loss:
    """What the author of a coming entry is told: the sentence, the ground, and what to change."""

    code: str
    facts: Mapping[str, Any]
    grounds: Grounds
    ways_out: tuple[WayOut, ...]


def of_conflict(row: ConflictRow) -> Loss:
    """A conflict in words: who won and until when, or what is missing and who can mend it."""
    facts = {"title": "", "at": row.affects_from.isoformat(), "affects_from": row.affects_from, **row.facts}
    reason = str(row.facts.get("reason", ""))
    if row.kind is ConflictKind.ENTRY_DROPPED and reason in frozenset(DropReason):
        until = datetime.fromisoformat(row.facts["until"])
        winner_id, winner = row.facts.get("winner_id"), row.facts.get("winner_title")
        facts |= {"winner_title": winner or "", "winner": winner or "", "loser": facts["title"]}
        grounds = Grounds(row.facts["rule"], until, None, winner_id, winner)
        return Loss(f"dropped_{reason}", facts, grounds, _ways_of_the_dropped(row, DropReason(reason), until))
    if row.kind is ConflictKind.ENTRY_DROPPED:
        return Loss("blocked_unreadable", facts, Grounds(reason, ends_with="until_mended"), ())
    if row.kind is ConflictKind.REFUSED_BY_POLICY:
        code = str(row.facts["code"])
        return Loss(code, facts, Grounds(code, ends_with=str(row.facts["fix"])), (WayOut(Way.MOVE, {}),))
    if row.kind is ConflictKind.PLAN_TOO_LARGE:
        return Loss("explain_plan_too_large", facts, Grounds("plan_too_large", ends_with="until_plan_reaches"), ())
    if row.kind is ConflictKind.NOT_STAGGERED:  # it sounds all the same, at its own second
        minutes = -(-int(row.facts["shift_s"]) // 60)
        ways = (WayOut(Way.ALLOW_WAIT, {"minutes": minutes}),)
        return Loss("not_staggered", facts, Grounds("not_staggered", ends_with=str(row.facts["fix"])), ways)
    if row.kind is ConflictKind.FEED_DEAD:
        return Loss("conflict_feed_dead", facts, Grounds("conflict_feed_dead", ends_with="until_stream_returns"), ())
    successor_id = row.facts.get("successor_id")
    ends_with = BLOCKED_UNTIL[row.kind] if successor_id is None else "until_successor"
    ways_out = (WayOut(Way.APPROVE, {}),) if row.kind is ConflictKind.APPROVAL_VOID else ()
    grounds = Grounds(f"blocked_{row.kind.value}", None, ends_with, successor_id)
    return Loss(code_of(row.kind, row.facts), facts, grounds, ways_out)


def _ways_of_the_dropped(row: ConflictRow, reason: DropReason, until: datetime) -> tuple[WayOut, ...]:
    ways = [WayOut(Way.MOVE, {"to": until.isoformat()})]
    wait_s = (until - row.affects_from).total_seconds()
    if reason in {DropReason.NO_ROOM, DropReason.TOO_LATE} and wait_s > 0:
        ways.append(WayOut(Way.ALLOW_WAIT, {"minutes": -int(-wait_s // 60)}))
    return (*ways, WayOut(Way.OTHER_TARGETS, {}), WayOut(Way.SHORTEN, {}))
