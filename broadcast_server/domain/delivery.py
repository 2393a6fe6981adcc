"""How far an emergency or a stop-all came at one node: pure steps from what the node says.

A delivery only moves forward: a word that comes late, twice or out of order changes nothing that is better known. The
node's status says what it holds and does now; its signed report says what its output did. Nothing here guesses: who
does not answer stays SENT, and is named as unreached.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from broadcast_server.domain.proof import Report, ReportKind
from speaker_protocol.rules import Why

ANSWER_WITHIN: Final = timedelta(seconds=3)
RETRY_AFTER_S: Final = (1, 2, 4, 8, 15, 30)
"""Seconds to the next attempt after the first went unanswered; the last repeats until expiry."""
SILENT_AFTER: Final = timedelta(seconds=90)
"""A node that said nothing for so long counts as offline, whatever its link is said to be."""
GIVE_UP_CLEARING: Final = timedelta(minutes=10)
"""So long after its end a delivery waits for the node to show that it let go."""


class DeliveryState(enum.StrEnum):
    """Life of a delivery."""

    INTENT = "intent"
    SENT = "sent"
    RECEIVED = "received"  # the node holds it; for a stop-all: it obeys
    SOUNDING = "sounding"
    HEARD = "heard"  # a whole round
    PARTIAL = "partial"  # it began, and no round came to its end
    MISSED = "missed"  # the node's own word that it did not sound, or nothing was reported of it
    REFUSED = "refused"  # the node holds it and does not sound it, and says why
    EXPIRED = "expired"  # it never reached the node
    CANCELLED = "cancelled"  # it was taken back before it reached the node, or before it sounded


_RANK: Final = {
    DeliveryState.INTENT: 0,
    DeliveryState.SENT: 1,
    DeliveryState.EXPIRED: 1,
    DeliveryState.CANCELLED: 1,
    DeliveryState.RECEIVED: 2,
    DeliveryState.REFUSED: 2,
    DeliveryState.MISSED: 2,
    DeliveryState.PARTIAL: 3,
    DeliveryState.SOUNDING: 3,
    DeliveryState.HEARD: 4,
}
_KEPT: Final = {
    (DeliveryState.PARTIAL, DeliveryState.SOUNDING),
    (DeliveryState.MISSED, DeliveryState.RECEIVED),
    (DeliveryState.MISSED, DeliveryState.REFUSED),
}
"""Steps between equals that would forget what the signed log said."""
REACHED: Final = frozenset({DeliveryState.RECEIVED, DeliveryState.SOUNDING, DeliveryState.HEARD, DeliveryState.PARTIAL})
"""The node has it and did, or can be expected to do, what it says. All others are unreached."""


class Unreached(enum.StrEnum):
    """Why a node is unreached, in our own words; other reasons are the node's."""

    OFFLINE = "offline"
    NO_WORD = "no_word"  # no word for `SILENT_AFTER` although its link was never seen to end
    NEVER_SEEN = "never_seen"
    NO_ANSWER = "no_answer"
    NO_REPORT = "no_report"  # it had it, and reported nothing of it


@dataclass(frozen=True, slots=True)
class Delivery:
    """One node's delivery as rows keep it."""

    subject: str
    node_id: str
    state: DeliveryState
    reason: str | None = None
    rounds: int = 0
    expires_at: datetime | None = None
    over_at: datetime | None = None
    received_at: datetime | None = None
    sounding_at: datetime | None = None
    heard_at: datetime | None = None
    cleared_at: datetime | None = None
    closed_at: datetime | None = None

    @property
    def is_latch(self) -> bool:
        """Whether it is a stop-all."""
        return self.subject.startswith(LATCH)

    def ended_at(self, now: datetime) -> datetime | None:
        """When it was taken back or expired; None while it is in force."""
        ends = [end for end in (self.over_at, self.expires_at) if end is not None and end <= now]
        return min(ends, default=None)


WHOLE: Final = frozenset({None, Why.ALERT_ASSET_MISSING.value})
"""Reasons beside which a round was whole: a node that lacks the recording says the same in its own words."""
ALERT: Final = "alert:"
LATCH: Final = "latch:"


@dataclass(frozen=True, slots=True)
class Progress:
    """What a status says of one alert that the node holds."""

    rounds: int = 0
    first_at: datetime | None = None
    is_sounding: bool = False
    why: str | None = None


def held(delivery: Delivery, progress: Progress, *, now: datetime) -> Delivery:
    """The node's status names it."""
    received = replace(delivery, received_at=delivery.received_at or now)
    if progress.rounds > 0 and progress.first_at is not None:  # rounds go by on a node without an output too
        return replace(
            _to(received, DeliveryState.HEARD),
            rounds=max(delivery.rounds, progress.rounds),
            sounding_at=received.sounding_at or progress.first_at,
            heard_at=received.heard_at or now,
        )
    if progress.first_at is not None or progress.is_sounding:
        return replace(
            _to(received, DeliveryState.SOUNDING), sounding_at=received.sounding_at or progress.first_at or now
        )
    if progress.why is not None:
        return _to(received, DeliveryState.REFUSED, progress.why)
    return _to(received, DeliveryState.RECEIVED)


def let_go(delivery: Delivery, *, now: datetime) -> Delivery:
    """The node's status does not name it; that says something only after its end."""
    is_news = delivery.received_at is not None and delivery.cleared_at is None and delivery.ended_at(now) is not None
    return replace(delivery, cleared_at=now) if is_news else delivery


def reported(delivery: Delivery, reports: Iterable[Report], *, now: datetime) -> Delivery:
    """The node's signed log speaks of it, in any order and again and again."""
    for report in sorted(reports, key=lambda one: (one.at, one.id)):
        delivery = replace(delivery, received_at=delivery.received_at or now)
        if report.kind is ReportKind.STARTED:
            delivery = replace(
                _to(delivery, DeliveryState.SOUNDING), sounding_at=min(report.at, delivery.sounding_at or report.at)
            )
        elif report.heard <= timedelta(0):
            delivery = _to(delivery, DeliveryState.MISSED, report.reason)
        elif report.reason in WHOLE:
            delivery = replace(_to(delivery, DeliveryState.HEARD), heard_at=delivery.heard_at or report.at)
        elif delivery.state is not DeliveryState.HEARD:
            delivery = replace(delivery, state=DeliveryState.PARTIAL, reason=report.reason)
    return delivery


def closed(delivery: Delivery, *, now: datetime, grace: timedelta) -> Delivery:
    """What is to be said of it once it is over; unchanged while it is in force or its last words may still come."""
    ended_at = delivery.ended_at(now)
    if ended_at is None or now < ended_at + grace:
        return delivery
    is_settled = delivery.received_at is None or delivery.cleared_at is not None or now >= ended_at + GIVE_UP_CLEARING
    was_taken_back = delivery.over_at is not None and delivery.over_at == ended_at
    state, reason = delivery.state, delivery.reason
    if state in {DeliveryState.INTENT, DeliveryState.SENT}:
        state = DeliveryState.CANCELLED if was_taken_back else DeliveryState.EXPIRED
    elif state is DeliveryState.SOUNDING:
        state = DeliveryState.PARTIAL
    elif state is DeliveryState.RECEIVED and not delivery.is_latch:
        state = DeliveryState.CANCELLED if was_taken_back else DeliveryState.MISSED
        reason = reason or Unreached.NO_REPORT
    return replace(delivery, state=state, reason=reason, closed_at=now if is_settled else None)


def _to(delivery: Delivery, state: DeliveryState, reason: str | None = None) -> Delivery:
    """Step forward; never back to what says less."""
    if _RANK[state] < _RANK[delivery.state] or (delivery.state, state) in _KEPT:
        return delivery
    return replace(delivery, state=state, reason=reason)


def unreached_because(
    delivery: Delivery, link: str | None, seen_at: datetime | None, link_since: datetime | None, *, now: datetime
) -> tuple[str, datetime | None]:
    """Code and since when, for a delivery that is not `REACHED`. `link`: the node's last word on it."""
    if delivery.reason is not None and delivery.received_at is not None:
        return delivery.reason, delivery.received_at
    if link is None or seen_at is None:
        return Unreached.NEVER_SEEN, None
    if link != "online":
        return Unreached.OFFLINE, link_since
    if now - seen_at > SILENT_AFTER:
        return Unreached.NO_WORD, seen_at
    return Unreached.NO_ANSWER, None
