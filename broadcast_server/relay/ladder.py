"""Which of a feed's sources sounds: reconnect, next source, filler, silence; and back after it was well for a while.

Pure: handed the health of every rung at an instant, it says which one sounds and which shall be kept open. A maintainer
must not break: (1) a rung above is returned to only after `return_s` without a break, so nothing flaps; (2) over plain
silence there is nothing to return from: the source is taken back as soon as it sounds, unless it broke off within
`relapse_s` of the last time; (3) a successor that is still connecting is waited for, silently, `patience_s` at most;
(4) the last rung is silence and always there.

Source: the action ladder of the audio continuity rules (stall 2 s, silence 10 s, return after 15 s).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broadcast_server.relay.reader import Health


@dataclass(frozen=True, slots=True)
class LadderLimits:
    """How patient the ladder is, in seconds."""

    connect_s: float = 4.0
    """A source that was just opened is waited for."""
    patience_s: float = 2.5
    return_s: float = 15.0
    alone_s: float = 1.0
    relapse_s: float = 60.0


USUAL_LADDER: Final = LadderLimits()


@dataclass(frozen=True, slots=True)
class Choice:
    """What sounds from now on. `wanted`: rungs to keep open; `reason`: why it is this one, a code."""

    rung: int
    reason: str
    wanted: frozenset[int]


class Ladder:
    """Remembers where one stream stands. Rungs are numbers: 0 the feed itself, the last one silence."""

    def __init__(self, limits: LadderLimits = USUAL_LADDER) -> None:
        self._limits = limits
        self.restart(0.0)

    def restart(self, now_s: float) -> None:
        """Begin anew with the feed itself, as if nothing had happened."""
        self.rung = 0
        self.reason = "started"
        self._began_s = now_s
        self._has_sounded = False
        self._origin = 0
        self._lost = "stalled"
        self._searching_until_s: float | None = None
        self._returned_s: dict[int, float] = {}

    def decide(self, now_s: float, rungs: Sequence[Health | None], *, feeds: int, barred: str | None = None) -> Choice:
        """Choose. `rungs`: None for one that is not open; those from `feeds` on (filler, silence) need no opening.

        `barred`: a person's word (a code) that no feed may sound.
        """
        silence = len(rungs) - 1
        self.rung = min(self.rung, silence)
        if barred is not None:
            self._searching_until_s = None
            self.rung, self.reason = _first_sounding(rungs, feeds), barred
            return Choice(self.rung, self.reason, frozenset({0}))  # read on: who barred it may listen in
        own = rungs[self.rung]
        if own is not None and own.has_sound:
            self._has_sounded |= self.rung == 0
            if self._searching_until_s is None:
                self._rise(now_s, rungs)
        elif self._searching_until_s is None and not self._is_waited_for(now_s, own):
            self._origin, self._lost = self.rung, (own.reason if own is not None else None) or "stalled"
            self._searching_until_s = now_s + self._limits.patience_s
        if self._searching_until_s is not None:
            self._search(now_s, rungs, feeds)
        return Choice(self.rung, self.reason, self._wanted(rungs, feeds))

    # -- inside

    def _rise(self, now_s: float, rungs: Sequence[Health | None]) -> None:
        """Back up to the first rung that was well for long enough."""
        for number, health in enumerate(rungs[: self.rung]):
            if health is None or not health.has_sound:
                continue
            is_alone = self.rung == len(rungs) - 1 and not self._relapsed(number, now_s)
            if health.healthy_s >= (self._limits.alone_s if is_alone else self._limits.return_s):
                self._take(number, now_s, "returned" if self._has_sounded else "started")
                return

    def _search(self, now_s: float, rungs: Sequence[Health | None], feeds: int) -> None:
        """Down to the first rung that sounds; one that is still connecting has until the patience is over."""
        is_over = self._searching_until_s is not None and now_s >= self._searching_until_s
        silence = len(rungs) - 1
        for number, health in enumerate(rungs):
            if number < feeds and number < self._origin:
                is_good = health is not None and health.has_sound and health.healthy_s >= self._limits.return_s
            elif number == self._origin:
                is_good = health is not None and health.has_sound and not self._relapsed(number, now_s)
            else:
                is_good = health is not None and health.has_sound
            if is_good:
                self._take(number, now_s, "returned" if number <= self._origin else self._lost)
                return
            if number > self._origin and number < feeds and not is_over and (health is None or not health.is_final):
                break
        self.rung, self.reason = silence, self._lost

    def _take(self, number: int, now_s: float, reason: str) -> None:
        self._searching_until_s = None
        if reason == "returned":
            self._returned_s[number] = now_s
        self.rung, self.reason = number, reason

    def _relapsed(self, number: int, now_s: float) -> bool:
        return now_s - self._returned_s.get(number, float("-inf")) < self._limits.relapse_s

    def _is_waited_for(self, now_s: float, own: Health | None) -> bool:
        """The feed itself, only just opened and not refused."""
        if self.rung != 0 or self._has_sounded:
            return False
        return own is None or (not own.is_final and now_s - self._began_s < self._limits.connect_s)

    def _wanted(self, rungs: Sequence[Health | None], feeds: int) -> frozenset[int]:
        own = rungs[self.rung]
        is_in_doubt = self._has_sounded and (own is None or own.is_suspicious)
        if self._searching_until_s is not None or is_in_doubt:
            return frozenset(range(feeds))
        return frozenset(range(min(self.rung + 1, feeds)))


def _first_sounding(rungs: Sequence[Health | None], start: int) -> int:
    for number in range(start, len(rungs)):
        health = rungs[number]
        if health is not None and health.has_sound:
            return number
    return len(rungs) - 1
