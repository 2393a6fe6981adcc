"""One live stream: PCM of a feed in, signed Opus batches and a signed, leased head out on the bus.

A maintainer must not break: (1) the head is out, acknowledged, before the first batch, and is renewed every 3 s under a
lease of 10 s: a dead process falls silent by itself; (2) the stream's key is made here, for this run alone, and never
leaves it; the server's key signs only heads; (3) media index, not arrival, says when a sample sounds (`pacing`);
(4) encoding goes through the executor a whole batch at once, publishing never waits: late audio is worth nothing;
(5) a jump of the machine's wall clock opens a new run (new key, new t0), because nodes follow UTC.

Opus: libopus through PyAV, 48 kHz mono, 24 kbit/s, packets of 20 ms (RFC 6716). Complexity 5 costs 0.4-1 % of a core
a stream, 10 nearly twice that for a difference that a horn does not give back (`benchmarks/fanout.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import av
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broadcast_server.audio.feed import FrameSource
from broadcast_server.audio.formats import FRAME_BYTES, SAMPLE_BYTES, SAMPLE_RATE_HZ
from broadcast_server.domain.clock import Chance, Clock, to_ms
from broadcast_server.domain.errors import Refused, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.mqtt.bus import Bus
from broadcast_server.relay.pacing import USUAL_PACE, Corrections, MediaClock, Pace, playout_delay_ms
from broadcast_server.signer.port import EPOCH_OLD, Signer, SignRequest
from broadcast_server.supervise import Executor
from speaker_protocol.frames import FLAG_AFTER_GAP, FLAG_LAST, AudioBatch, pack
from speaker_protocol.messages import StreamHeadBody
from speaker_protocol.signing import Kind
from speaker_protocol.topics import StreamAudio, StreamHead

log = get_logger()

LEASE_MS: Final = 10_000
RENEW_S: Final = 3.0
BITRATE_BPS: Final = 24_000
COMPLEXITY: Final = 5
STALE_S: Final = 0.8
"""So long after its last block an unfinished batch is sent as it is: the words before a silence shall be heard."""
AGAIN_S: Final = 6.0
"""So long after the broker came back nodes are still coming back: they are sent what is not due yet again."""
RECENT: Final = 8
WALL_STEP_MS: Final = 100
_LOOK_EVERY_S: Final = 0.6


class PacketEncoder:
    """PCM to raw Opus packets, one for each 20 ms; keeps its state from call to call."""

    def __init__(self, *, bitrate_bps: int = BITRATE_BPS, complexity: int = COMPLEXITY) -> None:
        codec = av.CodecContext.create("libopus", "w")
        assert isinstance(codec, av.AudioCodecContext)  # noqa: S101  for the type checker: "libopus" is audio
        codec.sample_rate = SAMPLE_RATE_HZ
        codec.layout = "mono"
        codec.format = "s16"
        codec.bit_rate = bitrate_bps
        codec.time_base = Fraction(1, SAMPLE_RATE_HZ)
        codec.options = {
            "compression_level": str(complexity),
            "frame_duration": "20",
            "application": "audio",
            "vbr": "constrained",
        }
        codec.open()
        self._codec = codec
        self._pts = 0

    def encode(self, pcm: bytes) -> list[bytes]:
        """Packets of a whole number of frames, in order.

        PyAV cuts the one long frame into the codec's own: the same packets as frame by frame, for half the CPU.
        """
        if not pcm:
            return []
        frame = av.AudioFrame(format="s16", layout="mono", samples=len(pcm) // SAMPLE_BYTES)
        frame.planes[0].update(pcm)
        frame.sample_rate = SAMPLE_RATE_HZ
        frame.pts = self._pts
        self._pts += frame.samples
        return [bytes(packet) for packet in self._codec.encode(frame)]


@dataclass(slots=True)
class StreamCounters:
    """What a stream has done since it was opened."""

    batches: int = 0
    packets: int = 0
    bytes_out: int = 0
    batches_dropped: int = 0
    """Made, and not sent: the broker was away or slower than us."""
    batches_again: int = 0
    """Sent once more after the broker came back."""
    gaps: int = 0
    heads: int = 0
    heads_failed: int = 0
    runs: int = 0


class RelayStream:
    """Owns one stream from `run` until it is cancelled."""

    def __init__(
        self,
        stream_id: str,
        source: FrameSource,
        *,
        epoch: int,
        packets_per_batch: int,
        bus: Bus,
        signer: Signer,
        clock: Clock,
        chance: Chance,
        executor: Executor,
        scope: tuple[str, ...] = (),
        pace: Pace = USUAL_PACE,
        delay_ms: int | None = None,
    ) -> None:
        """`delay_ms`: the head's playout delay; None: what a relay with batches of that length has."""
        self.stream_id, self.epoch, self.packets_per_batch = stream_id, epoch, packets_per_batch
        self.delay_ms = playout_delay_ms(packets_per_batch) if delay_ms is None else delay_ms
        self.counters = StreamCounters()
        self._source = source
        self._bus, self._signer, self._clock, self._chance = bus, signer, clock, chance
        self._executor, self._scope, self._pace = executor, scope, pace
        self._head_sequence = 0
        self._recent: deque[tuple[float, bytes]] = deque(maxlen=RECENT)
        self._was_away = False
        self._again_until_s = 0.0
        self._media: MediaClock | None = None

    @property
    def corrections(self) -> Corrections:
        """What pacing had to do in the present run."""
        return Corrections() if self._media is None else self._media.corrections

    async def run(self) -> None:
        """Relay until cancelled. Raises `Refused` when its first head is not signed."""
        async with contextlib.aclosing(self._source.blocks()) as blocks:
            first = await anext(blocks)
            while True:
                run = _Run(self)
                self._media = run.media
                self.counters.runs += 1
                try:
                    await run.open(first)
                    first = await run.relay(blocks)
                finally:
                    await run.close()

    # -- what a run needs of its stream

    async def seal_head(self, body: StreamHeadBody, *, lease_ms: int) -> bytes:
        """The head's envelope, with a sequence above all before it, also those of an earlier process of this epoch."""
        now_ms = to_ms(self._clock.now())
        self._head_sequence = max(self._head_sequence + 1, now_ms)
        (sealed,) = await self._signer.sign_many(
            [
                SignRequest(
                    kind=Kind.HEAD,
                    unit=None,
                    target=self.stream_id,
                    issued_ms=now_ms,
                    expires_ms=now_ms + lease_ms,
                    epoch=self.epoch,
                    sequence=self._head_sequence,
                    body=body.encode(),
                )
            ]
        )
        return sealed

    async def publish_head(self, body: StreamHeadBody, *, lease_ms: int = LEASE_MS) -> bool:
        """Retain the head; False when the broker or the signer is away, which the next renewal mends.

        Raises `Refused` when the signer finds no ground for it; a renewal then ends the stream. One that comes from an
        epoch that is over is not sent either, and not worth an end: the conductor is about to say what runs.
        """
        try:
            sealed = await self.seal_head(body, lease_ms=lease_ms)
            await self._bus.publish(str(StreamHead(self.stream_id)), sealed, qos=1, retain=True)
        except (Unavailable, Refused) as error:
            if isinstance(error, Refused) and error.code != EPOCH_OLD and lease_ms:
                raise
            self.counters.heads_failed += 1
            log.warning("stream.head_unsent", stream_id=self.stream_id, reason=error.code)
            return False
        self.counters.heads += 1
        return True

    async def encode(self, encoder: PacketEncoder, pcm: bytes) -> list[bytes]:
        """Opus packets of whole frames."""
        return await self._executor.run(encoder.encode, pcm)

    def publish_batch(self, batch: AudioBatch, key: Ed25519PrivateKey, *, until_s: float) -> None:
        """Sign and send, or drop and count. `until_s`: monotonic instant at which its last sample sounds."""
        payload = pack(batch, key, self.stream_id)
        self._recent.append((until_s, payload))
        if self._bus.publish_nowait(str(StreamAudio(self.stream_id)), payload):
            self.counters.batches += 1
            self.counters.packets += len(batch.packets)
            self.counters.bytes_out += len(payload)
        else:
            self.counters.batches_dropped += 1
            self._was_away = True

    def send_again(self) -> None:
        """After the broker was away: what is not due yet once more, for nodes that come back one by one.

        A node knows a batch by its number and takes it once.
        """
        now_s = self._clock.monotonic()
        if self._was_away and self._bus.connected:
            self._was_away, self._again_until_s = False, now_s + AGAIN_S
        if now_s >= self._again_until_s:
            return
        for until_s, payload in self._recent:
            if until_s > now_s and self._bus.publish_nowait(str(StreamAudio(self.stream_id)), payload):
                self.counters.batches_again += 1

    def new_run_parts(self) -> tuple[Clock, Pace, Ed25519PrivateKey, tuple[str, ...]]:
        """Clock, limits, a fresh key and the scope for a new run."""
        return self._clock, self._pace, Ed25519PrivateKey.from_private_bytes(self._chance.token_bytes(32)), self._scope


class _Run:
    """One head's life: one key, one t0, sequence from 1."""

    def __init__(self, stream: RelayStream) -> None:
        self._stream = stream
        self._clock, pace, self._key, self._scope = stream.new_run_parts()
        self.media = MediaClock(pace)
        self._encoder = PacketEncoder()
        self._pending = bytearray()
        self._empties: list[int] = []
        """Frame positions within `pending` before which an empty packet goes."""
        self._start = 0
        self._sequence = 0
        self._flags = 0
        self._last_block_s = 0.0
        self._batching = asyncio.Lock()
        self._head: StreamHeadBody | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._wall_minus_monotonic_ms = 0.0
        self._stepped = False

    async def open(self, first: bytes) -> None:
        """Anchor t0 with the first block and put the head out."""
        now_s = self._clock.monotonic()
        self._wall_minus_monotonic_ms = self._offset_ms()
        samples = len(first) // SAMPLE_BYTES
        stream = self._stream
        self._head = StreamHeadBody(
            public_key=self._key.public_key().public_bytes_raw().hex(),
            packets_per_batch=stream.packets_per_batch,
            t0_utc_ms=to_ms(self._clock.now()) - samples * 1000 // SAMPLE_RATE_HZ,
            playout_delay_ms=stream.delay_ms,
            scope=self._scope,
        )
        self._last_block_s = now_s
        self.media.arrived(samples, now_s)
        self._pending += first
        await stream.publish_head(self._head)
        self._keeper = asyncio.create_task(self._keep(self._head), name=f"relay.head[{stream.stream_id}]")

    async def relay(self, blocks: AsyncIterator[bytes]) -> bytes:
        """Relay block after block; returns the block with which a new run must begin."""
        async for block in blocks:
            self._last_block_s = now_s = self._clock.monotonic()
            if self._stepped:
                log.warning("stream.clock_stepped", stream_id=self._stream.stream_id)
                return block
            if self._keeper is not None and self._keeper.done():
                self._keeper.result()  # it ends only by an error, which is the stream's
            step = self.media.arrived(len(block) // SAMPLE_BYTES, now_s)
            if step.jump_samples:
                await self._jump(step.jump_samples)
            if step.conceal:
                self._empties.append(len(self._pending) // FRAME_BYTES)
            self._pending += block[:-FRAME_BYTES] if step.drop else block
            await self._send_full()
            if step.hold_s:
                await self._clock.sleep(step.hold_s)
        raise Unavailable("ended")

    async def close(self) -> None:
        """Send what is left, flagged as the last, and let the head's lease end now."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        async with self._batching:
            await self._flush(FLAG_LAST)
        if self._head is not None:
            await self._stream.publish_head(self._head, lease_ms=0)

    # -- inside

    def _offset_ms(self) -> float:
        return to_ms(self._clock.now()) - self._clock.monotonic() * 1000

    async def _keep(self, head: StreamHeadBody) -> None:
        """Renew the lease; send a batch that stays unfinished; notice a step of the wall clock."""
        renewed_s = self._clock.monotonic()
        while True:
            await self._clock.sleep(_LOOK_EVERY_S)
            now_s = self._clock.monotonic()
            if abs(self._offset_ms() - self._wall_minus_monotonic_ms) > WALL_STEP_MS:
                self._stepped = True
            is_due = now_s - renewed_s >= RENEW_S - _LOOK_EVERY_S / 2
            if is_due and not self._stepped and await self._stream.publish_head(head):
                renewed_s = now_s
            self._stream.send_again()
            if self._pending and now_s - self._last_block_s > STALE_S:
                async with self._batching:
                    await self._flush(0)

    async def _jump(self, samples: int) -> None:
        async with self._batching:
            await self._flush(0)
            self._start += samples
            self._flags |= FLAG_AFTER_GAP
            self._stream.counters.gaps += 1
            log.info("stream.gap", stream_id=self._stream.stream_id, gap_ms=samples * 1000 // SAMPLE_RATE_HZ)

    async def _send_full(self) -> None:
        async with self._batching:
            wanted = self._stream.packets_per_batch
            while len(self._pending) // FRAME_BYTES + len(self._empties) >= wanted:
                here = [at for at in self._empties if at < wanted][:wanted]
                frames = wanted - len(here)
                self._empties = [max(0, at - frames) for at in self._empties[len(here) :]]
                await self._send(frames, here, 0)

    async def _flush(self, flags: int) -> None:
        """Send what is pending as a short batch, its last frame filled with silence."""
        missing = -len(self._pending) % FRAME_BYTES
        if missing:
            self._pending += bytes(missing)
            self.media.padded(missing // SAMPLE_BYTES)
        wanted = self._stream.packets_per_batch
        left = len(self._pending) // FRAME_BYTES  # what comes while this is encoded belongs to the next batch
        while left or self._empties:
            empties, self._empties = self._empties[: wanted - 1], []
            frames = min(left, wanted - len(empties))
            await self._send(frames, empties, flags)
            left -= frames

    async def _send(self, frames: int, empties: list[int], flags: int) -> None:
        pcm = bytes(self._pending[: frames * FRAME_BYTES])
        del self._pending[: frames * FRAME_BYTES]
        encoding = asyncio.create_task(
            self._stream.encode(self._encoder, pcm), name=f"relay.encode[{self._stream.stream_id}]"
        )
        try:
            packets = await asyncio.shield(encoding)
        except asyncio.CancelledError:
            # A thread cannot be cancelled: the encoder is its own until it is done, and what it makes is sent.
            await asyncio.wait([encoding])
            self._publish(encoding.result(), empties, flags)
            raise
        self._publish(packets, empties, flags)

    def _publish(self, packets: list[bytes], empties: list[int], flags: int) -> None:
        for at in reversed(empties):
            packets.insert(min(at, len(packets)), b"")
        self._sequence += 1
        batch = AudioBatch(self._stream.epoch, self._sequence, self._start, tuple(packets), flags | self._flags)
        self._flags = 0
        self._start += batch.samples
        delay_s = 0.0 if self._head is None else self._head.playout_delay_ms / 1000
        began_s = self.media.t0_s or 0.0
        until_s = began_s + self._start / SAMPLE_RATE_HZ + delay_s
        self._stream.publish_batch(batch, self._key, until_s=until_s)
