"""Keeps the relays that are wanted alive: desired streams in, supervised streams out, their state for whoever asks.

A maintainer must not break: (1) `reconcile` is the only door and may be called as often as one likes: it starts what is
missing, stops what is not wanted, restarts what changed, and touches nothing else; (2) one stream's trouble, feed or
encoder, stays in its own supervised task; (3) the engine decides nothing: who is relayed when, with which substitutes,
filler, delay and bar, is the rows' business; which of them sounds at this second is the ladder's (`relay.ladder`);
(4) a feed has one reader, whoever wants it: its own stream, a stream it stands in for, a meter.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol

from broadcast_server.audio.feed import USUAL_LIMITS, FeedLimits, FeedState, FeedStatus, FrameSource, PullFeed, PushFeed
from broadcast_server.audio.ffmpeg import Sandbox
from broadcast_server.audio.watch import USUAL_THRESHOLDS, Fault, Thresholds
from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import BroadcastError, NotFound
from broadcast_server.fetch import Fetcher
from broadcast_server.logs import get_logger
from broadcast_server.mqtt.bus import Bus
from broadcast_server.relay.ladder import USUAL_LADDER, LadderLimits
from broadcast_server.relay.pacing import Corrections, choose_batch, playout_delay_ms
from broadcast_server.relay.reader import Reader
from broadcast_server.relay.stream import RelayStream, StreamCounters
from broadcast_server.relay.switching import Filler, Sounding, SourceKind, SwitchingSource
from broadcast_server.signer.port import Signer
from broadcast_server.supervise import FOREVER, Executor, Supervisor

log = get_logger()

METERED: Final = 16
"""So many stations that nobody relays are decoded at once, to show their level."""
CHANGES_KEPT: Final = 1_000
FILLERS_KEPT: Final = 4


class FeedKind(StrEnum):
    """How a feed's sound reaches us."""

    PULL = "pull"
    PUSH = "push"


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """Where a feed's sound comes from. `url` for a pulled feed, `mount` for a pushed one."""

    feed_id: str
    kind: FeedKind
    url: str | None = None
    mount: str | None = None


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One stream that shall be on the air. `url` for a pulled feed, `mount` for a pushed one.

    `substitutes`: who stands in, in order; `filler`: hash of the recording that is looped when nobody does; `delay_s`:
    how long sound is held before it is sent; `barred`: the code of a person's word that no feed may sound here;
    `is_revoked`: the feed itself may not, its substitutes may.
    """

    stream_id: str
    feed_id: str
    kind: FeedKind
    epoch: int
    listeners: int
    url: str | None = None
    mount: str | None = None
    scope: tuple[str, ...] = ()
    substitutes: tuple[SourceSpec, ...] = ()
    filler: str | None = None
    delay_s: float = 0.0
    barred: str | None = None
    is_revoked: bool = False

    @property
    def source(self) -> SourceSpec:
        """The feed itself."""
        return SourceSpec(self.feed_id, self.kind, self.url, self.mount)

    def same_stream(self, other: StreamSpec) -> bool:
        """Whether the stream can go on: only what may change while it sounds differs."""
        changed = replace(
            self,
            listeners=other.listeners,
            substitutes=other.substitutes,
            filler=other.filler,
            delay_s=other.delay_s,
            barred=other.barred,
            is_revoked=other.is_revoked,
        )
        return changed == other


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """How one stream is: the state of its feed, why, since when, what sounds, and what was counted."""

    stream_id: str
    feed_id: str
    state: FeedState
    reason: str | None
    since: datetime
    listeners: int
    packets_per_batch: int
    bytes_in: int
    counters: StreamCounters
    corrections: Corrections
    sounding: Sounding | None = None
    lost_since: datetime | None = None
    level_dbfs: float | None = None
    drift_ppm: float | None = None


@dataclass(frozen=True, slots=True)
class Metered:
    """What the meter shows of a feed that is being read, relayed or not."""

    level_dbfs: float
    fault: Fault | None
    drift_ppm: float | None
    status: FeedStatus


class SourceOf(Protocol):
    """Where pushed sound is to be had: the ingest."""

    def source(self, feed_id: str) -> PushFeed:
        """The feed of this id, connected or not; made when first asked for."""
        ...


OnStatus = Callable[[StreamStatus], None]
LoadFiller = Callable[[str], Awaitable[bytes]]
"""PCM of an asset by its hash. Raises `BroadcastError` where it is not to be had."""


@dataclass(slots=True)
class _Running:
    spec: StreamSpec
    source: SwitchingSource
    stream: RelayStream


@dataclass(slots=True)
class _Shared:
    """A reader and how many want it."""

    spec: SourceSpec
    reader: Reader
    task: str
    users: int = 0


@dataclass(slots=True)
class _Fillers:
    """Recordings that are loaded, being loaded, or could not be."""

    loaded: dict[str, Filler] = field(default_factory=dict)
    loading: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)


class Engine:
    """All streams of this process."""

    def __init__(
        self,
        *,
        bus: Bus,
        signer: Signer,
        fetcher: Fetcher,
        sandbox: Sandbox,
        clock: Clock,
        chance: Chance,
        executor: Executor,
        pushed: SourceOf | None = None,
        limits: FeedLimits = USUAL_LIMITS,
        ladder: LadderLimits = USUAL_LADDER,
        thresholds: Thresholds = USUAL_THRESHOLDS,
        load_filler: LoadFiller | None = None,
        on_status: OnStatus | None = None,
    ) -> None:
        self._bus, self._signer, self._fetcher, self._sandbox = bus, signer, fetcher, sandbox
        self._clock, self._chance, self._executor, self._pushed = clock, chance, executor, pushed
        self._limits, self._ladder, self._thresholds = limits, ladder, thresholds
        self._load_filler, self._on_status = load_filler, on_status
        self._supervisor = Supervisor(clock=clock, chance=chance)
        self._running: dict[str, _Running] = {}
        self._reconciling = asyncio.Lock()
        self._specs: dict[str, SourceSpec] = {}
        self._readers: dict[str, _Shared] = {}
        self._numbers = itertools.count(1)
        self._metered: set[str] = set()
        self._fillers = _Fillers()
        self._changes: deque[Sounding] = deque(maxlen=CHANGES_KEPT)

    async def reconcile(self, desired: Mapping[str, StreamSpec], *, ending: str = "window_over") -> None:
        """Make what runs equal to `desired` (by stream id).

        Returns when everything unwanted has stopped (its last head is out) and everything new has been started; a
        feed that does not answer delays nobody. `ending`: why what is not wanted any more ends. Raises
        `NotFound("no_ingest")` for a pushed feed without an ingest.
        """
        async with self._reconciling:
            for spec in desired.values():
                if spec.kind is FeedKind.PUSH and self._pushed is None:
                    raise NotFound("no_ingest", feed_id=spec.feed_id)
                self._specs |= {source.feed_id: source for source in (*spec.substitutes, spec.source)}
            stale = [
                stream_id
                for stream_id, running in self._running.items()
                if (wanted := desired.get(stream_id)) is None or not running.spec.same_stream(wanted)
            ]
            for stream_id in stale:
                source = self._running[stream_id].source
                # Where the ladder has already said so, the span tells it; here it is the revocation that ends the feed.
                sounds = source.sounding is not None and source.sounding.kind is SourceKind.FEED
                is_revoked = sounds and source.status.reason == "source_revoked"
                because = "source_revoked" if is_revoked else ending
                source.end_reason = because if stream_id not in desired else "restarted"
            await asyncio.gather(*(self._stop(stream_id) for stream_id in stale))
            for stream_id, spec in desired.items():
                running = self._running.get(stream_id)
                if running is None:
                    self._start(spec)
                else:
                    running.spec = spec
                self._arrange(stream_id)
            self._forget_fillers({spec.filler for spec in desired.values()})

    def status(self) -> Mapping[str, StreamStatus]:
        """Every running stream by its id."""
        return {stream_id: _status_of(running) for stream_id, running in self._running.items()}

    def relayed(self, feed_id: str) -> SwitchingSource | None:
        """What a feed's stream sounds here, for an ear; None where it is not relayed in this process."""
        return next((each.source for each in self._running.values() if each.spec.feed_id == feed_id), None)

    def changes(self) -> list[Sounding]:
        """What began to sound since this was last asked, in order; the oldest of more than a thousand are lost."""
        changes = list(self._changes)
        self._changes.clear()
        return changes

    async def meter(self, feed_ids: Collection[str]) -> None:
        """Read these pushed feeds although nobody relays them, as many as may be, and no others."""
        wanted = set(sorted(feed_ids)[:METERED]) if self._pushed is not None else set()
        for feed_id in self._metered - wanted:
            self._metered.discard(feed_id)
            await self.release(feed_id)
        for feed_id in wanted - self._metered:
            self._specs.setdefault(feed_id, SourceSpec(feed_id, FeedKind.PUSH))
            if await self.acquire(feed_id) is not None:
                self._metered.add(feed_id)

    def metered(self) -> Mapping[str, Metered]:
        """What the meters of all feeds that are being read show."""
        return {
            feed_id: Metered(
                shared.reader.watch.level_dbfs,
                shared.reader.watch.fault,
                shared.reader.drift.ppm,
                shared.reader.status,
            )
            for feed_id, shared in self._readers.items()
        }

    async def close(self) -> None:
        """Stop all streams, ending their leases. Idempotent."""
        await self.reconcile({}, ending="stopping")
        await self.meter(())
        for loading in self._fillers.loading.values():
            loading.cancel()
        if self._fillers.loading:
            await asyncio.wait(self._fillers.loading.values())
        await self._supervisor.close()

    # -- readers, shared

    async def acquire(self, feed_id: str) -> Reader | None:
        """See `switching.Readers`."""
        spec = self._specs.get(feed_id)
        if spec is None or (spec.kind is FeedKind.PUSH and self._pushed is None):
            return None
        shared = self._readers.get(feed_id)
        if shared is None:
            reader = Reader(self._source(spec), clock=self._clock, thresholds=self._thresholds)
            shared = _Shared(spec, reader, f"relay.read[{feed_id}]#{next(self._numbers)}")
            self._readers[feed_id] = shared
            self._supervisor.keep(shared.task, reader.run, FOREVER)
        shared.users += 1
        return shared.reader

    async def release(self, feed_id: str) -> None:
        """See `switching.Readers`."""
        shared = self._readers.get(feed_id)
        if shared is None:
            return
        shared.users -= 1
        if shared.users <= 0:
            del self._readers[feed_id]
            await self._supervisor.drop(shared.task)

    # -- inside

    def _start(self, spec: StreamSpec) -> None:
        packets = choose_batch(spec.listeners)
        source = SwitchingSource(
            spec.feed_id,
            readers=self,
            clock=self._clock,
            opening=FeedStatus(FeedState.CONNECTING, None, self._clock.now()),
            playout_delay_ms=playout_delay_ms(packets),
            limits=self._ladder,
            on_change=self._changed,
        )
        stream = RelayStream(
            spec.stream_id,
            source,
            epoch=spec.epoch,
            packets_per_batch=packets,
            bus=self._bus,
            signer=self._signer,
            clock=self._clock,
            chance=self._chance,
            executor=self._executor,
            scope=spec.scope,
        )
        self._running[spec.stream_id] = _Running(spec, source, stream)
        self._supervisor.keep(_task_name(spec.stream_id), stream.run, FOREVER)
        log.info("stream.started", stream_id=spec.stream_id, feed_id=spec.feed_id, listeners=spec.listeners)

    def _arrange(self, stream_id: str) -> None:
        running = self._running[stream_id]
        spec = running.spec
        running.source.arrange(
            substitutes=[source.feed_id for source in spec.substitutes],
            filler=None if spec.filler is None else self._filler(spec.filler),
            delay_s=spec.delay_s,
            barred=spec.barred,
            is_revoked=spec.is_revoked,
        )

    async def _stop(self, stream_id: str) -> None:
        await self._supervisor.drop(_task_name(stream_id))
        running = self._running.pop(stream_id, None)
        if running is not None:
            log.info(
                "stream.stopped",
                stream_id=stream_id,
                feed_id=running.spec.feed_id,
                reason=running.source.end_reason,
            )

    def _changed(self, sounding: Sounding) -> None:
        self._changes.append(sounding)
        self._tell(sounding.feed_id)

    def _tell(self, feed_id: str) -> None:
        if self._on_status is None:
            return
        for running in self._running.values():
            if running.spec.feed_id == feed_id:
                self._on_status(_status_of(running))

    def _source(self, spec: SourceSpec) -> FrameSource:
        def tell(_feed: FeedStatus) -> None:
            self._tell(spec.feed_id)

        if spec.kind is FeedKind.PUSH and self._pushed is not None:
            source = self._pushed.source(spec.feed_id)
            source.on_state(tell)
            return source
        return PullFeed(
            spec.feed_id,
            spec.url or "",
            fetcher=self._fetcher,
            sandbox=self._sandbox,
            clock=self._clock,
            chance=self._chance,
            limits=self._limits,
            on_state=tell,
        )

    # -- fillers

    def _filler(self, sha256: str) -> Filler | None:
        """The recording if it is here; else it is fetched, and the streams that want it are told."""
        fillers = self._fillers
        found = fillers.loaded.get(sha256)
        if found is None and sha256 not in fillers.loading and sha256 not in fillers.failed:
            name = f"relay.filler[{sha256[:8]}]"
            fillers.loading[sha256] = asyncio.create_task(self._load(sha256), name=name)
        return found

    async def _load(self, sha256: str) -> None:
        try:
            pcm = b"" if self._load_filler is None else await self._load_filler(sha256)
        except BroadcastError as error:
            log.warning("filler.missing", sha256=sha256, reason=error.code)
            pcm = b""
        del self._fillers.loading[sha256]
        if not pcm:
            self._fillers.failed.add(sha256)
            return
        self._fillers.loaded[sha256] = Filler(sha256, pcm)
        for stream_id, running in self._running.items():
            if running.spec.filler == sha256:
                self._arrange(stream_id)

    def _forget_fillers(self, wanted: Collection[str | None]) -> None:
        spare = [sha256 for sha256 in self._fillers.loaded if sha256 not in wanted]
        for sha256 in spare[: max(0, len(self._fillers.loaded) - FILLERS_KEPT)]:
            del self._fillers.loaded[sha256]
        self._fillers.failed.intersection_update(wanted)


def _task_name(stream_id: str) -> str:
    return f"relay.stream[{stream_id}]"


def _status_of(running: _Running) -> StreamStatus:
    spec, source, stream = running.spec, running.source, running.stream
    feed, reader = source.status, source.reader
    return StreamStatus(
        stream_id=spec.stream_id,
        feed_id=spec.feed_id,
        state=feed.state,
        reason=feed.reason,
        since=feed.since,
        listeners=spec.listeners,
        packets_per_batch=stream.packets_per_batch,
        bytes_in=feed.bytes_in,
        counters=stream.counters,
        corrections=stream.corrections,
        sounding=source.sounding,
        lost_since=source.lost_since,
        level_dbfs=None if reader is None else reader.watch.level_dbfs,
        drift_ppm=None if reader is None else reader.drift.ppm,
    )
