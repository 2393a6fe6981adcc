"""How an emergency sounds over time: rounds, their parts, and whose turn it is; pure, for node and server alike.

A **round** is an attention tone, then the message `times` over with `gap_ms` between; with `every_min` a new round
begins so often until expiry or cancel, without it there is one. During a round nothing lower has the air, not even in
its pauses; between rounds and after the last the air is handed back. A **turn** is what must be remembered of an
alert: when its coming or running round begins, and how many rounds are over.

Laws a change must keep. Poles stay in step: whatever the parts, their times follow from the alert alone and from the
slots of `hazards`, never from what one node happens to hold. A higher level takes the air at once and the round it
broke begins anew afterwards; an equal one waits for the end of the round. A drill is never mistaken: the words stand
before every repetition and at the end. Nothing here raises, and the order of the alerts makes no difference.

Standard library only, integers in UTC milliseconds.
"""

# ruff: noqa: D102  (the fields of the views say what they are by name, unit and the table in docs/protocol.md)

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from speaker_protocol.hazards import ATTENTION, CLIPS, CORRECTION, DRILL, FINAL, HAZARDS

TONE_MS: Final = 6_000
TIMES: Final = 3
GAP_MS: Final = 5_000
LAST_WORD_GAP_MS: Final = 500
"""Before the closing words of a drill."""
UNKNOWN_MESSAGE_MS: Final = 20_000
"""What a message is given whose length nobody told."""
SLOW_MS: Final = 500
"""An alert this little in the future waits for its second: clocks differ so much. A slower clock must not delay it."""
_MIN_MS: Final = 60_000


class AlertNature(enum.StrEnum):
    """What an alert says of itself."""

    ALERT = "alert"
    CORRECTION = "correction"
    """Đính chính: takes back or mends what `replaces` said."""
    FINAL = "final"
    """Tin cuối cùng: the danger of `replaces` is over."""


class AlertView(Protocol):
    """An emergency, in force from the moment it is known (a slow clock must not delay it) until `expires_ms`.

    None means the usual figure of this module.
    """

    @property
    def alert_id(self) -> str: ...
    @property
    def level(self) -> int: ...
    @property
    def issued_ms(self) -> int: ...
    @property
    def expires_ms(self) -> int: ...
    @property
    def asset(self) -> str | None: ...
    @property
    def asset_ms(self) -> int | None: ...
    @property
    def hazard(self) -> str | None: ...
    @property
    def phrases(self) -> Sequence[str] | None: ...
    @property
    def drill(self) -> bool: ...
    @property
    def nature(self) -> str | None: ...
    @property
    def tone_ms(self) -> int | None: ...
    @property
    def times(self) -> int | None: ...
    @property
    def gap_ms(self) -> int | None: ...
    @property
    def every_min(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert for whoever asks about its rounds and has no message of the wire (an `AlertView`)."""

    alert_id: str
    level: int
    issued_ms: int
    expires_ms: int
    asset: str | None = None
    asset_ms: int | None = None
    hazard: str | None = None
    phrases: tuple[str, ...] | None = None
    drill: bool = False
    nature: str | None = None
    tone_ms: int | None = None
    times: int | None = None
    gap_ms: int | None = None
    every_min: int | None = None


# --- What a round consists of -----------------------------------------------------------------------------------------


class PartKind(enum.StrEnum):
    """What a part of a round is."""

    TONE = "tone"
    CLIP = "clip"  # a phrase of `hazards`
    ASSET = "asset"  # the recorded message
    PAUSE = "pause"  # silence that belongs to the round


@dataclass(frozen=True, slots=True)
class Part:
    """One part, `[start_ms, end_ms)` from the round's beginning. `clip`: the phrase's code."""

    kind: PartKind
    start_ms: int
    end_ms: int
    clip: str | None = None


@dataclass(frozen=True, slots=True)
class Repetition:
    """One saying of the message: where it begins (with its lead-in words), and where the message's own slot lies."""

    start_ms: int
    message_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Score:
    """A whole round of one alert."""

    tone_ms: int
    lead_in: tuple[str, ...]
    words: tuple[str, ...]
    """The node's own words, where the message is not held; empty: the tone stands in."""
    repetitions: tuple[Repetition, ...]
    length_ms: int

    def parts(self, asset: Sequence[bool]) -> tuple[Part, ...]:
        """The parts in order, without a hole. `asset`: for each repetition, whether the recorded message sounds."""
        found = [Part(PartKind.TONE, 0, self.tone_ms)]
        at = self.tone_ms
        for repetition, is_recorded in zip(self.repetitions, asset, strict=True):
            at = _pause(found, at, repetition.start_ms)
            at = self._say(found, at, self.lead_in)
            if is_recorded:
                found.append(Part(PartKind.ASSET, at, repetition.end_ms))
                at = repetition.end_ms
            elif self.words:
                at = self._say(found, at, self.words)
            elif repetition.end_ms > at:
                end = min(repetition.end_ms, at + self.tone_ms)
                found.append(Part(PartKind.TONE, at, end))
                at = end
            at = _pause(found, at, repetition.end_ms)
        if at < self.length_ms:  # a drill has the last word too
            closing = CLIPS[DRILL]
            at = _pause(found, at, self.length_ms - closing.slot_ms)
            self._say(found, at, (DRILL,))
        return tuple(found)

    @staticmethod
    def _say(found: list[Part], at: int, codes: Iterable[str]) -> int:
        for code in codes:
            end = at + CLIPS[code].slot_ms
            found.append(Part(PartKind.CLIP, at, end, code))
            at = end
        return at


def _pause(found: list[Part], at: int, until: int) -> int:
    if until > at:
        found.append(Part(PartKind.PAUSE, at, until))
    return max(at, until)


def _nature_word(alert: AlertView) -> str | None:
    return {AlertNature.CORRECTION.value: CORRECTION, AlertNature.FINAL.value: FINAL}.get(alert.nature or "")


def lead_in_of(alert: AlertView) -> tuple[str, ...]:
    """The words a node says by itself before every repetition, recorded or not."""
    nature = _nature_word(alert)
    return (*((DRILL,) if alert.drill else ()), *((nature,) if nature is not None else ()))


def words_of(alert: AlertView) -> tuple[str, ...]:
    """The phrases that say what an alert says, those of them that this version knows."""
    said = (*((alert.hazard,) if alert.hazard in HAZARDS else ()), *(alert.phrases or ()))
    known = tuple(code for code in said if code in CLIPS)
    return (ATTENTION, *known) if known and _nature_word(alert) is None else known


def score(alert: AlertView, asset_ms: int | None = None) -> Score:
    """The round of an alert. `asset_ms`: the length of its recording where the alert does not tell it."""
    tone_ms = alert.tone_ms or TONE_MS
    gap_ms = GAP_MS if alert.gap_ms is None else alert.gap_ms
    lead_in, words = lead_in_of(alert), words_of(alert)
    lead_ms = sum(CLIPS[code].slot_ms for code in lead_in)
    recorded_ms = 0 if alert.asset is None else alert.asset_ms or asset_ms or UNKNOWN_MESSAGE_MS
    own_ms = sum(CLIPS[code].slot_ms for code in words)
    if not words and _nature_word(alert) is None:
        own_ms = tone_ms
    message_ms = max(recorded_ms, own_ms)
    at = tone_ms
    repetitions = []
    for number in range(max(1, alert.times or TIMES)):
        at += gap_ms if number else 0
        repetitions.append(Repetition(at, at + lead_ms, at + lead_ms + message_ms))
        at += lead_ms + message_ms
    if alert.drill:
        at += LAST_WORD_GAP_MS + CLIPS[DRILL].slot_ms
    return Score(tone_ms, lead_in, words, tuple(repetitions), at)


# --- Whose turn it is -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Turn:
    """Where a node is with one alert. `due_ms`: when its coming or running round begins; `rounds`: those over."""

    due_ms: int
    rounds: int = 0


@dataclass(frozen=True, slots=True)
class Air:
    """Who of the alerts has the air at an instant, and the turns as they stand then."""

    turns: Mapping[str, Turn]
    alert: AlertView | None = None
    score: Score | None = None
    round_ms: int = 0
    """When the round that sounds began."""
    until_ms: int | None = None
    """When that ends or is cut; with no alert on the air, when the next round begins (None: none comes)."""


def is_over(alert: AlertView, turn: Turn) -> bool:
    """Whether an alert has no further round."""
    return alert.every_min is None and turn.rounds > 0


def next_due_ms(alert: AlertView, end_ms: int) -> int:
    """When the round after one that ended begins: on the grid of the alert's own instant, whoever began it late."""
    if alert.every_min is None:
        return end_ms
    every_ms = max(1, alert.every_min) * _MIN_MS
    return alert.issued_ms + -(-(end_ms - alert.issued_ms) // every_ms) * every_ms


def _distinct(alerts: Iterable[AlertView]) -> dict[str, AlertView]:
    """By id; of two that share one, always the same is taken."""
    found: dict[str, AlertView] = {}
    for alert in alerts:
        known = found.get(alert.alert_id)
        if known is None or _weight(alert) > _weight(known):
            found[alert.alert_id] = alert
    return found


def _weight(alert: AlertView) -> tuple[int, int, int, str]:
    return (alert.level, alert.issued_ms, alert.expires_ms, alert.asset or "")


def on_air(
    alerts: Iterable[AlertView],
    turns: Mapping[str, Turn],
    now_ms: int,
    asset_ms: Mapping[str, int] | None = None,
) -> Air:
    """Whose round sounds at `now_ms`, following the turns on from where they stand.

    An alert without a turn counts as learned of when it was issued. Turns of alerts not in `alerts` are left out.
    """
    known = _distinct(alerts)
    lengths = asset_ms or {}
    scores = {alert_id: score(alert, lengths.get(alert.asset or "")) for alert_id, alert in known.items()}
    now_turns = {alert_id: turns.get(alert_id, Turn(alert.issued_ms)) for alert_id, alert in known.items()}
    while True:
        alive = [
            alert
            for alert_id, alert in known.items()
            if not is_over(alert, now_turns[alert_id]) and now_turns[alert_id].due_ms < alert.expires_ms
        ]
        if not alive:
            return Air(now_turns)
        at = min(now_turns[alert.alert_id].due_ms for alert in alive)
        if at > now_ms:
            return Air(now_turns, until_ms=at)
        waiting = [alert for alert in alive if now_turns[alert.alert_id].due_ms <= at]
        best = max(waiting, key=lambda one: (one.level, -now_turns[one.alert_id].rounds, one.issued_ms, one.alert_id))
        end = at + scores[best.alert_id].length_ms
        stops = [end, best.expires_ms]
        stops += [
            now_turns[alert.alert_id].due_ms
            for alert in alive
            if alert.level > best.level and now_turns[alert.alert_id].due_ms > at
        ]
        stop = min(stops)
        if now_ms < stop:
            return Air(now_turns, best, scores[best.alert_id], at, stop)
        if stop == end:
            turn = now_turns[best.alert_id]
            now_turns[best.alert_id] = Turn(next_due_ms(best, end), turn.rounds + 1)
        for alert in alive:  # whoever waited, or was broken into, begins at the earliest now
            turn = now_turns[alert.alert_id]
            if turn.due_ms < stop:
                now_turns[alert.alert_id] = replace(turn, due_ms=stop)


def first_due_ms(alert: AlertView, learned_ms: int) -> int:
    """When the first round begins for a node that learned of the alert at an instant.

    In time (within the tone) it joins the others; later it sounds the whole round.
    """
    late_ms = learned_ms - alert.issued_ms
    return alert.issued_ms if -SLOW_MS <= late_ms <= (alert.tone_ms or TONE_MS) else learned_ms


def learn(
    before: Iterable[AlertView],
    now: Iterable[AlertView],
    turns: Mapping[str, Turn],
    now_ms: int,
    asset_ms: Mapping[str, int] | None = None,
    *,
    anew_ms: int | None = None,
) -> dict[str, Turn]:
    """The turns after the alerts in force changed from `before` to `now`; those of alerts gone are kept.

    If the alert on the air was taken back, whoever it had broken into begins anew, at `anew_ms` (None: at this
    instant), which all poles share.
    """
    old, new = _distinct(before), _distinct(now)
    air = on_air([alert for alert_id, alert in old.items() if alert_id in turns], turns, now_ms, asset_ms)
    after = {**turns, **air.turns}
    sounding = air.alert
    if sounding is not None and sounding.alert_id not in new:
        for alert_id, turn in after.items():
            if turn.due_ms < now_ms:
                after[alert_id] = replace(turn, due_ms=now_ms if anew_ms is None else anew_ms)
        sounding = None
    for alert in sorted(new.values(), key=_weight, reverse=True):
        if alert.alert_id in after:
            continue
        is_behind = sounding is not None and sounding.level >= alert.level
        after[alert.alert_id] = Turn(now_ms if is_behind else first_due_ms(alert, now_ms))
    return after


def hold(turns: Mapping[str, Turn], now_ms: int) -> dict[str, Turn]:
    """The turns while everything is stopped: what was due begins anew at the release."""
    return {alert_id: replace(turn, due_ms=max(turn.due_ms, now_ms)) for alert_id, turn in turns.items()}


def after_gap(
    alerts: Iterable[AlertView], turns: Mapping[str, Turn], now_ms: int, asset_ms: Mapping[str, int] | None = None
) -> dict[str, Turn]:
    """The turns of a node that was away until `now_ms` (no power): what it missed it cannot have sounded.

    A round of which a whole repetition is still to come is joined where the others are; any other begins anew. A
    round that seems further off than it can be (the clock went back) comes at once.
    """
    after = dict(turns)
    for alert_id, alert in _distinct(alerts).items():
        turn = turns.get(alert_id)
        if turn is None or is_over(alert, turn):
            continue
        plan = score(alert, (asset_ms or {}).get(alert.asset or ""))
        is_missed = turn.due_ms + plan.repetitions[-1].start_ms < now_ms
        every_ms = (alert.every_min or 0) * _MIN_MS
        if is_missed or turn.due_ms > now_ms + max(every_ms, SLOW_MS):
            after[alert_id] = replace(turn, due_ms=now_ms)
    return after


def shifted(turns: Mapping[str, Turn], by_ms: int) -> dict[str, Turn]:
    """The turns after the node's clock was set by so much: what sounds goes on, it is the clock that was wrong."""
    return {alert_id: replace(turn, due_ms=turn.due_ms + by_ms) for alert_id, turn in turns.items()}
