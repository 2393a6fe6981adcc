"""Keeps the relays that are wanted alive: desired streams in, supervised streams out, their state for whoever asks.

A maintainer must not break: (1) `reconcile` is the only door and may be called as often as one likes: it starts what is
missing, stops what is not wanted, restarts what changed, and touches nothing else; (2) one stream's trouble, feed or
encoder, stays in its own supervised task; (3) the engine decides nothing: who is relayed when is the plan's business,
and a fail-over to another feed is a changed `StreamSpec` for the same stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from broadcast_server.audio.feed import USUAL_LIMITS, FeedLimits, FeedState, FeedStatus, FrameSource, PullFeed, PushFeed
from broadcast_server.audio.ffmpeg import Sandbox
from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import NotFound
from broadcast_server.fetch import Fetcher
from broadcast_server.logs import get_logger
from broadcast_server.mqtt.bus import Bus
from broadcast_server.relay.pacing import Corrections, choose_batch
from broadcast_server.relay.stream import RelayStream, StreamCounters
from broadcast_server.signer.port import Signer
from broadcast_server.supervise import FOREVER, Executor, Supervisor

log = get_logger()


class FeedKind(StrEnum):
    """How a feed's sound reaches us."""

    PULL = "pull"
    PUSH = "push"


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One stream that shall be on the air. `url` for a pulled feed, `mount` for a pushed one."""

    stream_id: str
    feed_id: str
    kind: FeedKind
    epoch: int
    listeners: int
    url: str | None = None
    mount: str | None = None
    scope: tuple[str, ...] = ()

    def same_stream(self, other: StreamSpec) -> bool:
        """Whether `other` can go on as it is: only the number of listeners differs."""
        return replace(self, listeners=other.listeners) == other


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """How one stream is: the state of its source, why, since when, and what was counted."""

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


class SourceOf(Protocol):
    """Where pushed sound is to be had: the ingest."""

    def source(self, feed_id: str) -> PushFeed:
        """The feed of this id, connected or not; made when first asked for."""
        ...


OnStatus = Callable[[StreamStatus], None]


@dataclass(slots=True)
class _Running:
    spec: StreamSpec
    source: FrameSource
    stream: RelayStream


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
        on_status: OnStatus | None = None,
    ) -> None:
        self._bus, self._signer, self._fetcher, self._sandbox = bus, signer, fetcher, sandbox
        self._clock, self._chance, self._executor, self._pushed = clock, chance, executor, pushed
        self._limits, self._on_status = limits, on_status
        self._supervisor = Supervisor(clock=clock, chance=chance)
        self._running: dict[str, _Running] = {}
        self._reconciling = asyncio.Lock()

    async def reconcile(self, desired: Mapping[str, StreamSpec]) -> None:
        """Make what runs equal to `desired` (by stream id).

        Returns when everything unwanted has stopped (its last head is out) and everything new has been started; a
        feed that does not answer delays nobody. Raises `NotFound("no_ingest")` for a pushed feed without an ingest.
        """
        async with self._reconciling:
            stale = [
                stream_id
                for stream_id, running in self._running.items()
                if (wanted := desired.get(stream_id)) is None or not running.spec.same_stream(wanted)
            ]
            await asyncio.gather(*(self._stop(stream_id) for stream_id in stale))
            for stream_id, spec in desired.items():
                running = self._running.get(stream_id)
                if running is None:
                    self._start(spec)
                else:
                    running.spec = spec

    def status(self) -> Mapping[str, StreamStatus]:
        """Every running stream by its id."""
        return {stream_id: _status_of(running) for stream_id, running in self._running.items()}

    async def close(self) -> None:
        """Stop all streams, ending their leases. Idempotent."""
        await self.reconcile({})
        await self._supervisor.close()

    # -- inside

    def _start(self, spec: StreamSpec) -> None:
        source = self._source(spec)
        stream = RelayStream(
            spec.stream_id,
            source,
            epoch=spec.epoch,
            packets_per_batch=choose_batch(spec.listeners),
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

    async def _stop(self, stream_id: str) -> None:
        await self._supervisor.drop(_task_name(stream_id))
        running = self._running.pop(stream_id, None)
        if running is not None:
            log.info("stream.stopped", stream_id=stream_id, feed_id=running.spec.feed_id)

    def _source(self, spec: StreamSpec) -> FrameSource:
        def tell(_feed: FeedStatus) -> None:
            running = self._running.get(spec.stream_id)
            if running is not None and self._on_status is not None:
                self._on_status(_status_of(running))

        if spec.kind is FeedKind.PUSH:
            if self._pushed is None:
                raise NotFound("no_ingest", feed_id=spec.feed_id)
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


def _task_name(stream_id: str) -> str:
    return f"relay.stream[{stream_id}]"


def _status_of(running: _Running) -> StreamStatus:
    spec, source, stream = running.spec, running.source, running.stream
    feed = source.status
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
    )
