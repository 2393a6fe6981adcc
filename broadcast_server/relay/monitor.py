"""Listening in on what is relayed: an ear on a stream's PCM, encoded once more for one person's browser.

A maintainer must not break: (1) listeners are few and counted, and one that does not keep up loses sound, never holds
the relay back; (2) a listener who goes takes everything of his with him; (3) what is heard is what goes out (or, before
the delay, what the feed gives), not a second connection to the station.
"""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator
from fractions import Fraction
from typing import Final

import av
import numpy as np

from broadcast_server.audio.formats import SAMPLE_RATE_HZ, pcm_of
from broadcast_server.domain.errors import Unavailable
from broadcast_server.relay.engine import Engine
from broadcast_server.store.words import ListenAt
from broadcast_server.supervise import Executor

MOST_LISTENERS: Final = 8
BITRATE_BPS: Final = 32_000


class EngineMonitor:
    """`control.relays.Monitor` over the streams of this process."""

    def __init__(self, engine: Engine, *, executor: Executor, most: int = MOST_LISTENERS) -> None:
        self._engine, self._executor, self._most = engine, executor, most
        self._listeners = 0

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return self._listeners

    async def listen(self, feed_id: str, at: ListenAt) -> AsyncGenerator[bytes, None]:
        """Pages of Ogg Opus until the stream ends or the listener goes.

        Raises `Unavailable("monitor_not_here")` for a feed that no stream of this process relays, and
        `Unavailable("monitor_full")`.
        """
        source = self._engine.relayed(feed_id)
        if source is None:
            raise Unavailable("monitor_not_here", feed_id=feed_id)
        if self._listeners >= self._most:
            raise Unavailable("monitor_full", most=self._most)
        self._listeners += 1
        try:
            writer = _OggWriter()
            yield await self._executor.run(writer.start)
            with source.listening(before_delay=at is ListenAt.SOURCE) as ear:
                while sound := await ear.get():
                    pages = await self._executor.run(writer.write, sound)
                    if pages:
                        yield pages
        finally:
            self._listeners -= 1


class _OggWriter:
    """PCM to Ogg Opus, page after page, in memory."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._container = av.open(self._file, "w", format="ogg", options={"page_duration": "200000"})
        stream = self._container.add_stream("libopus", rate=SAMPLE_RATE_HZ)
        assert isinstance(stream, av.AudioStream)  # noqa: S101  for the type checker: "libopus" is audio
        stream.layout = "mono"
        stream.bit_rate = BITRATE_BPS
        self._stream = stream
        self._resampler = av.AudioResampler(format=stream.format, layout="mono", rate=SAMPLE_RATE_HZ)
        self._position = 0

    def start(self) -> bytes:
        """The headers."""
        self._container.start_encoding()
        return self._taken()

    def write(self, pcm: bytes) -> bytes:
        """The pages that are full now."""
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(pcm_of(pcm)).reshape(1, -1), format="s16", layout="mono"
        )
        frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, self._position
        frame.time_base = Fraction(1, SAMPLE_RATE_HZ)
        self._position += frame.samples
        for ready in self._resampler.resample(frame):
            for packet in self._stream.encode(ready):
                self._container.mux(packet)
        return self._taken()

    def _taken(self) -> bytes:
        pages = self._file.getvalue()
        self._file.seek(0)
        self._file.truncate()
        return pages
