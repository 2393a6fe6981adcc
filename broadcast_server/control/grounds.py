"""The ground of every loss: which rule, who won, until when; in the same words wherever something does not sound.

`Grounds` goes into the facts of each thing `explain` names. A maintainer must not break: a loss always has a `rule`
with a sentence in the catalogue, and either an instant `until` or `ends_with`, the code of what must happen first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from broadcast_server.domain.proof import Missing
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
    Trouble.POWER_OFF: "until_power_returns",
    Missing.UNREACHABLE: "until_node_returns",
    Missing.NO_REPORT: "until_node_reports",
    Missing.NOT_FINISHED: "until_node_reports",
}
"""What ends a node's own reason; one that is not here ends with its stretch."""


NODE_REASONS: Final = frozenset(one.value for reasons in (Why, Trouble, Missing) for one in reasons)
"""Why a node was not heard: its own reasons, and ours where it said nothing. Each has a sentence, `node_` before it."""
