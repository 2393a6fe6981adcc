"""One source being read, whoever listens: a reader empties it, watches its sound and hands it to its taps.

A maintainer must not break: (1) one feed has one reader and one decoder, however many streams, substitutes and meters
want it; (2) the reader keeps to real time with `AHEAD_S` in hand and asks for no more, so a source that bursts is held
back at its own socket; (3) a tap is bounded and loses its oldest sound first: a listener that stopped asking costs
nobody anything; (4) a source's faults are seen when it *arrives*, with a delay before it sounds, and as it is: only
then it is brought to the level at which all voices sound.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Protocol

from broadcast_server.audio.dynamics import Dynamics
from broadcast_server.audio.feed import DEAD_AT_ONCE, FeedState, FeedStatus, FrameSource
from broadcast_server.audio.formats import SAMPLE_BYTES, SAMPLE_RATE_HZ, pcm_of
from broadcast_server.audio.watch import USUAL_THRESHOLDS, DriftMeter, Fault, Thresholds, Watch
from broadcast_server.domain.clock import Clock

AHEAD_S: Final = 2.0
KEEP_S: Final = 3.0
"""So much a tap holds beyond its delay."""
IDLE_KEEP_S: Final = 0.2
STALL_S: Final = 2.0
_SUSPICIOUS_S: Final = 1.0
FINAL: Final = DEAD_AT_ONCE | {"source_clean", "source_revoked", "mount_unknown"}
"""Reasons for which a reconnection is not waited for."""


@dataclass(frozen=True, slots=True)
class Health:
    """How a source is, for whoever chooses among sources.

    `healthy_s`: so long it has sounded without a break; `age_s`: since it was opened; `reason`: why it does not sound;
    `is_final`: waiting for it is vain; `is_wrong`: what it gives must not sound.
    """

    has_sound: bool
    healthy_s: float = 0.0
    age_s: float = 0.0
    reason: str | None = None
    is_final: bool = False
    is_wrong: bool = False
    is_suspicious: bool = False


class Early(Protocol):
    """Hears a source before its delay."""

    def put(self, block: bytes) -> None:
        """A block has come."""
        ...


class Tap:
    """What one listener has still to take of a source, `delay_s` after it came."""

    def __init__(self, wake: Callable[[], None], *, delay_s: float = 0.0, early: Collection[Early] = ()) -> None:
        """`early`: who hears each block at once, before the delay."""
        self.delay_s = delay_s
        self._early = early
        self.dropped_bytes = 0
        self.is_attentive = False
        """False: only the newest is kept, for a listener that may switch here at any moment."""
        self._wake = wake
        self._blocks: deque[tuple[float, bytes]] = deque()

    def put(self, block: bytes, now_s: float) -> None:
        """A block has come."""
        for ear in self._early:
            ear.put(block)
        self._blocks.append((now_s, block))
        oldest_s = now_s - self.delay_s - (KEEP_S if self.is_attentive else IDLE_KEEP_S)
        while self._blocks and self._blocks[0][0] < oldest_s:
            self.dropped_bytes += len(self._blocks.popleft()[1])
        self._wake()

    def take(self, now_s: float) -> bytes | None:
        """The next block that is due, None if none is."""
        if self._blocks and self._blocks[0][0] + self.delay_s <= now_s:
            return self._blocks.popleft()[1]
        return None

    def clear(self) -> None:
        """Forget all that has not sounded yet."""
        self._blocks.clear()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left, due or not."""
        return not self._blocks


class Reader:
    """Reads a source for ever; see the module."""

    def __init__(
        self, source: FrameSource, *, clock: Clock, thresholds: Thresholds = USUAL_THRESHOLDS, stall_s: float = STALL_S
    ) -> None:
        self.source = source
        self.watch = Watch(thresholds)
        self.drift = DriftMeter()
        self._dynamics = Dynamics()
        self._clock, self._stall_s = clock, stall_s
        self._taps: list[Tap] = []
        self._opened_s = clock.monotonic()
        self._last_s: float | None = None
        self._healthy_since_s: float | None = None
        self._failures = source.status.failures
        self._t0_s: float | None = None
        self._position = 0

    @property
    def status(self) -> FeedStatus:
        """What the source says of itself."""
        return self.source.status

    def attach(self, tap: Tap) -> None:
        """Hand the sound to this tap too."""
        self._taps.append(tap)

    def detach(self, tap: Tap) -> None:
        """No longer. Idempotent."""
        with contextlib.suppress(ValueError):
            self._taps.remove(tap)

    async def run(self) -> None:
        """Read until cancelled."""
        async with contextlib.aclosing(self.source.blocks()) as blocks:
            async for block in blocks:
                now_s = self._clock.monotonic()
                self._arrived(block, now_s)
                level = self._dynamics.hear(pcm_of(block)).tobytes() if self._taps else b""
                for tap in tuple(self._taps):
                    tap.put(level, now_s)
                ahead_s = self._ahead_s(len(block) // SAMPLE_BYTES, now_s)
                if ahead_s > AHEAD_S:
                    self.drift.reset()
                    await self._clock.sleep(ahead_s - AHEAD_S)

    def health(self) -> Health:
        """How it is at this instant."""
        now_s = self._clock.monotonic()
        age_s = now_s - self._opened_s
        status = self.source.status
        is_final = status.state in {FeedState.STALLED, FeedState.DEAD} and status.reason in FINAL
        silent_s = None if self._last_s is None else now_s - self._last_s
        if silent_s is None or silent_s >= self._stall_s or is_final:
            told = status.reason if status.state in {FeedState.STALLED, FeedState.DEAD} else None
            reason = told or ("connecting" if silent_s is None else "stalled")
            is_wrong = is_final and reason == "source_revoked"
            return Health(
                has_sound=False, age_s=age_s, reason=reason, is_final=is_final, is_wrong=is_wrong, is_suspicious=True
            )
        fault = self.watch.fault
        if fault is not None:
            wrong = fault is not Fault.SILENT
            return Health(has_sound=False, age_s=age_s, reason=fault.value, is_final=True, is_wrong=wrong)
        since_s = now_s if self._healthy_since_s is None else self._healthy_since_s
        is_suspicious = silent_s >= _SUSPICIOUS_S or self.watch.is_suspicious
        return Health(has_sound=True, healthy_s=now_s - since_s, age_s=age_s, is_suspicious=is_suspicious)

    # -- inside

    def _arrived(self, block: bytes, now_s: float) -> None:
        failures = self.source.status.failures
        is_anew = self._last_s is None or now_s - self._last_s >= self._stall_s or failures != self._failures
        if is_anew:
            self._failures = failures
            self.watch.restart()
            self.drift.reset()
        self._last_s = now_s
        self.watch.feed(block)
        self.drift.feed(len(block) // SAMPLE_BYTES, now_s)
        if is_anew or self.watch.fault is not None or self._healthy_since_s is None:
            self._healthy_since_s = now_s

    def _ahead_s(self, samples: int, now_s: float) -> float:
        """How far what has come is ahead of real time; a source that was late does not catch up for ever."""
        if self._t0_s is None:
            self._t0_s = now_s
        self._position += samples
        ahead_s = self._position / SAMPLE_RATE_HZ - (now_s - self._t0_s)
        if ahead_s < 0.0:
            self._t0_s += -ahead_s
            return 0.0
        return ahead_s
