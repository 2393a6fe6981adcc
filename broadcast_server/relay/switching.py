"""One stream's sound out of many sources: the feed, its substitutes, the filler or nothing, in one unbroken PCM path.

A maintainer must not break: (1) who listens to the stream hears one stream: switching changes neither id nor key;
(2) no switch clicks: 10 ms are always held back, faded out, and mixed with the fade-in of what follows; (3) what is
silent sends nothing, so that a node's report tells of a silence as a silence; (4) the filler stands at the same second
in every process and after every restart, because its place is the wall clock's; (5) a person's cut drops what has not
sounded yet, a fault of wrong sound too, a mere loss lets it sound to its end; (6) every change is told once, with the
instant at which speakers sound it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol

import numpy as np

from broadcast_server.audio.feed import FeedState, FeedStatus
from broadcast_server.audio.formats import SAMPLE_BYTES, SAMPLE_RATE_HZ, pcm_of
from broadcast_server.domain.clock import Clock, to_ms
from broadcast_server.logs import get_logger
from broadcast_server.relay.ladder import USUAL_LADDER, Ladder, LadderLimits
from broadcast_server.relay.reader import Health, Reader, Tap

log = get_logger()

LOOK_S: Final = 0.1
KEEP_OPEN_S: Final = 15.0
"""A substitute that was opened stays open so long, even if it is not needed after all."""
_EDGE: Final = SAMPLE_RATE_HZ // 100
_FADE_AFTER_S: Final = 0.3
_FILL_AT_MOST_S: Final = 1.0
_EAR_BYTES: Final = 4 * SAMPLE_RATE_HZ * SAMPLE_BYTES

_SOUNDS: Final = Health(has_sound=True, healthy_s=float("inf"))
_REVOKED: Final = Health(has_sound=False, reason="source_revoked", is_final=True, is_wrong=True)


class SourceKind(StrEnum):
    """What sounds on a stream."""

    FEED = "feed"
    SUBSTITUTE = "substitute"
    FILLER = "filler"
    SILENCE = "silence"
    OVER = "over"
    """Nothing: the stream has ended."""


@dataclass(frozen=True, slots=True)
class Sounding:
    """What a feed's stream has sounded since `since`, and why.

    `source_id`: the substitute feed, or the filler's hash. `sounds_from`: when the speakers follow; `since` is ours.
    """

    feed_id: str
    kind: SourceKind
    source_id: str | None
    reason: str
    since: datetime
    sounds_from: datetime


@dataclass(frozen=True, slots=True)
class Filler:
    """An approved recording that is looped while nothing else sounds: its hash and its PCM."""

    sha256: str
    pcm: bytes

    def at(self, sample: int, count: int) -> bytes:
        """`count` samples from the loop's sample `sample` on."""
        length = len(self.pcm) // SAMPLE_BYTES
        start = sample % length
        out = self.pcm[start * SAMPLE_BYTES : (start + count) * SAMPLE_BYTES]
        while len(out) < count * SAMPLE_BYTES:
            out += self.pcm[: count * SAMPLE_BYTES - len(out)]
        return out


class Readers(Protocol):
    """Where readers come from: shared among all streams of the process."""

    async def acquire(self, feed_id: str) -> Reader | None:
        """The reader of a feed, started if need be; None for one that cannot be read here."""
        ...

    async def release(self, feed_id: str) -> None:
        """It is no longer needed by this one."""
        ...


@dataclass(slots=True)
class _Open:
    reader: Reader
    tap: Tap
    wanted_until_s: float = 0.0


class SwitchingSource:
    """A `FrameSource` over the rungs of one feed's ladder."""

    def __init__(
        self,
        feed_id: str,
        *,
        readers: Readers,
        clock: Clock,
        opening: FeedStatus,
        playout_delay_ms: int = 0,
        limits: LadderLimits = USUAL_LADDER,
        on_change: Callable[[Sounding], None] | None = None,
    ) -> None:
        """`opening`: what the status says before the feed was opened."""
        self.feed_id = feed_id
        self._readers, self._clock, self._opening = readers, clock, opening
        self._playout = timedelta(milliseconds=playout_delay_ms)
        self._on_change = on_change
        self._ladder = Ladder(limits)
        self._feeds: tuple[str, ...] = (feed_id,)
        self._filler: Filler | None = None
        self._delay_s = 0.0
        self._barred: str | None = None
        self._is_revoked = False
        self._open: dict[str, _Open] = {}
        self._current = 0
        self._sounding: Sounding | None = None
        self._lost_since: datetime | None = None
        self._joiner = _Joiner()
        self._fill_from: int | None = None
        self._last_s = 0.0
        self._wake = asyncio.Event()
        self._ears: list[Ear] = []
        self._early_ears: list[Ear] = []
        self.end_reason = "ended"
        """Why the stream ends, said by who ends it."""

    # -- what the engine says

    def arrange(
        self,
        *,
        substitutes: Sequence[str],
        filler: Filler | None,
        delay_s: float,
        barred: str | None = None,
        is_revoked: bool = False,
    ) -> None:
        """The rungs below the feed, the delay, and whether a person has barred all feeds (`cut`, `stopped`).

        `is_revoked`: the feed itself may not sound any more, its substitutes may.
        """
        self._is_revoked = is_revoked
        feeds = (self.feed_id, *(each for each in dict.fromkeys(substitutes) if each != self.feed_id))
        if feeds != self._feeds:
            sounding = self._feeds[self._current] if self._current < len(self._feeds) else None
            self._feeds = feeds
            self._ladder.rung = self._current = feeds.index(sounding) if sounding in feeds else len(self._rungs()) - 1
        self._filler = filler
        if delay_s != self._delay_s:
            self._delay_s = delay_s
            for opened in self._open.values():
                opened.tap.delay_s = delay_s
        if barred != self._barred:
            self._barred = barred
            for opened in self._open.values():
                opened.tap.clear()
            self._ladder.restart(self._clock.monotonic())
            log.warning("stream.barred" if barred else "stream.released", feed_id=self.feed_id, reason=barred)
        self._wake.set()

    # -- what others see

    @property
    def status(self) -> FeedStatus:
        """Of the feed itself, whatever sounds instead."""
        opened = self._open.get(self.feed_id)
        if opened is None:
            return self._opening
        status, health = opened.reader.status, opened.reader.health()
        if status.state is not FeedState.HEALTHY or health.has_sound:
            return status
        return replace(status, state=FeedState.STALLED, reason=health.reason, since=self._lost_since or status.since)

    @property
    def sounding(self) -> Sounding | None:
        """What sounds now; None before anything did."""
        return self._sounding

    @property
    def lost_since(self) -> datetime | None:
        """Since when the feed itself gives no good sound; None while it does, or before it ever did."""
        return self._lost_since

    @property
    def reader(self) -> Reader | None:
        """The feed's own reader while the stream runs."""
        opened = self._open.get(self.feed_id)
        return None if opened is None else opened.reader

    @contextlib.contextmanager
    def listening(self, *, before_delay: bool = False) -> Iterator[Ear]:
        """An ear on what is relayed, or on what the feed itself gives before it is delayed, for the context's time."""
        ear = Ear()
        ears = self._early_ears if before_delay else self._ears
        ears.append(ear)
        try:
            yield ear
        finally:
            ears.remove(ear)

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """See `FrameSource.blocks`."""
        self._ladder.restart(self._clock.monotonic())
        self._current, self._joiner, self._fill_from = 0, _Joiner(), None
        ticking = asyncio.create_task(self._tick(), name=f"relay.switch.tick[{self.feed_id}]")
        try:
            while True:
                self._wake.clear()
                await self._look()
                for block in self._due():
                    for ear in self._ears:
                        ear.put(block)
                    yield block
                await self._wake.wait()
        finally:
            ticking.cancel()
            await asyncio.wait([ticking])
            await self._close_all()
            for ear in (*self._ears, *self._early_ears):
                ear.end()
            self._tell(SourceKind.OVER, None, self.end_reason)

    # -- inside

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(LOOK_S)
            self._wake.set()

    def _rungs(self) -> list[tuple[SourceKind, str | None]]:
        rungs: list[tuple[SourceKind, str | None]] = [(SourceKind.FEED, None)]
        rungs += ((SourceKind.SUBSTITUTE, feed_id) for feed_id in self._feeds[1:])
        if self._filler is not None:
            rungs.append((SourceKind.FILLER, self._filler.sha256))
        return [*rungs, (SourceKind.SILENCE, None)]

    async def _look(self) -> None:
        now_s = self._clock.monotonic()
        rungs = self._rungs()
        health = [self._health(number) for number in range(len(rungs))]
        choice = self._ladder.decide(now_s, health, feeds=len(self._feeds), barred=self._barred)
        await self._keep_open(choice.wanted, now_s)
        self._note_loss(health[0])
        own = health[self._current] if self._current < len(rungs) else None
        if choice.rung != self._current and self._may_leave(own):
            self._switch(choice.rung, rungs)
        kind, source_id = rungs[min(self._current, len(rungs) - 1)]
        if self._is_first_sound(kind, health[0]) or self._differs(kind, source_id):
            self._tell(kind, source_id, choice.reason)

    def _health(self, number: int) -> Health | None:
        if number >= len(self._feeds):
            return _SOUNDS
        if number == 0 and self._is_revoked:
            return _REVOKED
        opened = self._open.get(self._feeds[number])
        if opened is None:
            return None
        health = opened.reader.health()
        return replace(health, healthy_s=max(0.0, health.healthy_s - self._delay_s))

    def _may_leave(self, own: Health | None) -> bool:
        """What still waits in the delay may sound to its end, unless it is wrong or a person has cut it."""
        if self._barred is not None or own is None or own.is_wrong or own.has_sound:
            return True
        opened = self._open.get(self._feeds[self._current])
        return opened is None or opened.tap.is_empty

    def _switch(self, rung: int, rungs: Sequence[tuple[SourceKind, str | None]]) -> None:
        log.info("stream.switched", feed_id=self.feed_id, to=rungs[rung][0].value, source_id=rungs[rung][1])
        self._current, self._fill_from = rung, None
        for number, feed_id in enumerate(self._feeds):
            if feed_id in self._open:
                self._open[feed_id].tap.is_attentive = number == rung
        self._joiner.turn()

    def _note_loss(self, own: Health | None) -> None:
        if own is not None and own.has_sound:
            self._lost_since = None
        elif self._lost_since is None and self._sounding is not None:
            self._lost_since = self._clock.now()

    def _is_first_sound(self, kind: SourceKind, own: Health | None) -> bool:
        return self._sounding is None and kind is SourceKind.FEED and own is not None and own.has_sound

    def _differs(self, kind: SourceKind, source_id: str | None) -> bool:
        known = self._sounding
        if known is None:
            return kind is not SourceKind.FEED
        return (known.kind, known.source_id) != (kind, source_id)

    def _tell(self, kind: SourceKind, source_id: str | None, reason: str) -> None:
        if kind is SourceKind.OVER and self._sounding is None:
            return
        now = self._clock.now()
        told = Sounding(self.feed_id, kind, source_id, reason, now, now + self._playout)
        self._sounding = None if kind is SourceKind.OVER else told
        if self._on_change is not None:
            self._on_change(told)

    async def _keep_open(self, wanted: frozenset[int], now_s: float) -> None:
        for number in sorted(wanted):
            if number == 0 and self._is_revoked:
                continue
            feed_id = self._feeds[number]
            if feed_id not in self._open:
                reader = await self._readers.acquire(feed_id)
                if reader is None:
                    continue
                tap = Tap(self._wake.set, delay_s=self._delay_s, early=self._early_ears if number == 0 else ())
                tap.is_attentive = number == self._current
                reader.attach(tap)
                self._open[feed_id] = _Open(reader, tap)
            self._open[feed_id].wanted_until_s = now_s + KEEP_OPEN_S
        for feed_id in [each for each, opened in self._open.items() if opened.wanted_until_s <= now_s]:
            await self._close(feed_id)
        unwanted = {self.feed_id} if self._is_revoked else set()
        for feed_id in self._open.keys() - (set(self._feeds) - unwanted):
            await self._close(feed_id)

    async def _close(self, feed_id: str) -> None:
        opened = self._open.pop(feed_id)
        opened.reader.detach(opened.tap)
        await self._readers.release(feed_id)

    async def _close_all(self) -> None:
        for feed_id in tuple(self._open):
            await self._close(feed_id)

    def _due(self) -> list[bytes]:
        """What is to be sent at this instant."""
        now_s = self._clock.monotonic()
        taken = self._filling() if self._is_filling() else self._taking(now_s)
        out = [ready for block in taken if (ready := self._joiner.join(block))]
        if taken:
            self._last_s = now_s
        elif now_s - self._last_s >= _FADE_AFTER_S and (rest := self._joiner.fade_out()):
            out.append(rest)
        return out

    def _is_filling(self) -> bool:
        return self._filler is not None and self._current == len(self._feeds)

    def _taking(self, now_s: float) -> list[bytes]:
        opened = self._open.get(self._feeds[self._current]) if self._current < len(self._feeds) else None
        taken: list[bytes] = []
        while opened is not None and (block := opened.tap.take(now_s)) is not None:
            taken.append(block)
        return taken

    def _filling(self) -> list[bytes]:
        filler = self._filler
        if filler is None:
            return []
        now_sample = to_ms(self._clock.now()) * (SAMPLE_RATE_HZ // 1000)
        if self._fill_from is None or not 0 <= now_sample - self._fill_from <= _FILL_AT_MOST_S * SAMPLE_RATE_HZ:
            self._fill_from = now_sample - int(LOOK_S * SAMPLE_RATE_HZ)
        count = now_sample - self._fill_from
        if count == 0:
            return []
        sound = filler.at(self._fill_from, count)
        self._fill_from = now_sample
        return [sound]


class Ear:
    """What a person who listens in has still to hear; loses its oldest sound when it does not keep up."""

    def __init__(self) -> None:
        self._blocks: deque[bytes] = deque()
        self._size = 0
        self._is_over = False
        self._changed = asyncio.Event()

    def end(self) -> None:
        """There will be no more."""
        self._is_over = True
        self._changed.set()

    def put(self, block: bytes) -> None:
        """A block was relayed."""
        self._blocks.append(block)
        self._size += len(block)
        while self._size > _EAR_BYTES and len(self._blocks) > 1:
            self._size -= len(self._blocks.popleft())
        self._changed.set()

    async def get(self) -> bytes:
        """All that is there, waiting for it if need be; nothing when it is over."""
        while not self._blocks and not self._is_over:
            self._changed.clear()
            await self._changed.wait()
        sound = b"".join(self._blocks)
        self._blocks.clear()
        self._size = 0
        return sound


class _Joiner:
    """Puts blocks of changing sources end to end without a click, 10 ms late."""

    def __init__(self) -> None:
        self._tail = self._crumbs = b""
        self._is_turning = True
        self._rise = np.sin(np.linspace(0.0, np.pi / 2, _EDGE)) ** 2

    def turn(self) -> None:
        """What comes next is of another source."""
        self._is_turning, self._crumbs = True, b""

    def join(self, block: bytes) -> bytes:
        """What may be sent now that this has come."""
        if self._is_turning:
            block = self._crumbs + block
            if len(block) < _EDGE * SAMPLE_BYTES:
                self._crumbs = block
                return b""
            self._crumbs = b""
            edge = pcm_of(block[: _EDGE * SAMPLE_BYTES]) * self._rise
            if len(self._tail) == _EDGE * SAMPLE_BYTES:
                edge = edge + pcm_of(self._tail) * self._rise[::-1]
            block = np.clip(np.rint(edge), -32768, 32767).astype("<i2").tobytes() + block[_EDGE * SAMPLE_BYTES :]
            self._tail, self._is_turning = b"", False
        whole = self._tail + block
        keep = min(len(whole), _EDGE * SAMPLE_BYTES)
        self._tail = whole[len(whole) - keep :]
        return whole[: len(whole) - keep]

    def fade_out(self) -> bytes:
        """The end of a source after which nothing comes for now."""
        tail, self._tail, self._is_turning = self._tail, b"", True
        if not tail:
            return b""
        fall = np.linspace(1.0, 0.0, len(tail) // SAMPLE_BYTES)
        return np.rint(pcm_of(tail) * fall).astype("<i2").tobytes()
