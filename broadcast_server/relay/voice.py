"""A person's voice on the air: what a browser's microphone sends becomes a stream of signed batches, and a recording.

`VoiceRoom` implements `control.live.LiveIngest`: control owns the session, this owns the bytes. A maintainer must not
break: (1) every packet is hostile: its size, its rate and its place in the sequence are judged before a decoder sees
it, containers only by the sandboxed child with their format stated and borne out by the first bytes; (2) the stream
never falls behind the wall: where nothing comes, comfort silence goes out under the same head, and a voice that comes
back continues at the wall; (3) words are rather late than lost: after a stall up to `MOST_LEAD_MS` of speech goes out
later than usual, and the pauses between words are left out until the usual delay is reached again; (4) a voice that
sends nothing and renews nothing for `silent_s` is lost, and no packet of it is taken any more; (5) all that goes out
is recorded.

Every 40 ms what came is decoded and levelled (one turn of the executor), put in its place and handed to `RelayStream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Final

import av
import numpy as np

from broadcast_server.audio.dynamics import Dynamics
from broadcast_server.audio.feed import FeedState, FeedStatus
from broadcast_server.audio.ffmpeg import LIVE, Sandbox, StreamFormat, decode_stream_argv
from broadcast_server.audio.formats import (
    FRAME_BYTES,
    FRAME_MS,
    FRAME_SAMPLES,
    SAMPLE_BYTES,
    SAMPLE_RATE_HZ,
    SILENCE_DBFS,
    Pcm,
    dbfs,
    pcm_of,
    to_float,
)
from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import Conflict, NotFound, Refused, Unavailable
from broadcast_server.domain.voice import (
    USUAL_LIMITS,
    Bucket,
    Gap,
    Sequencer,
    VoiceCounts,
    VoiceFormat,
    VoiceLimits,
    VoiceState,
)
from broadcast_server.logs import get_logger
from broadcast_server.mqtt.bus import Bus
from broadcast_server.relay.stream import RelayStream
from broadcast_server.signer.port import Signer
from broadcast_server.supervise import FOREVER, Child, Executor, Supervisor

log = get_logger()

PACKETS_PER_BATCH: Final = 20
"""400 ms: fan-out costs per message."""
DELAY_MS: Final = 1_150
"""Playout delay: a whole batch, and 0.75 s for the way to the node and what it renders ahead."""
TICK_S: Final = 0.04
FILL_AFTER_MS: Final = 200
"""So far behind the wall is a packet's jitter; beyond it silence goes out instead."""
FILL_TO_MS: Final = 100
CALM_LEAD_MS: Final = 100
"""So far ahead of the wall is nothing to catch up with."""
MOST_LEAD_MS: Final = 1_500
QUIET_DBFS: Final = -45.0
MOST_WAITING: Final = 300
"""Frames between the socket and the decoder: 6 s; beyond it the oldest go."""
MOST_VOICES: Final = 16
METER_S: Final = 1.0
RECORD_EVERY_BYTES: Final = SAMPLE_RATE_HZ * SAMPLE_BYTES
RESTARTS_PER_S: Final = 0.5
RESTARTS_BURST: Final = 5
EPOCH_LOOK_S: Final = 0.25
_QUEUED_CHUNKS: Final = 64
_READ_BYTES: Final = 1 << 16
_SILENCE: Final = bytes(FRAME_BYTES)

_MAGIC: Final = {VoiceFormat.WEBM: (0, b"\x1a\x45\xdf\xa3"), VoiceFormat.MP4: (4, b"ftyp")}
_STREAM: Final = {VoiceFormat.WEBM: StreamFormat.WEBM, VoiceFormat.MP4: StreamFormat.MP4}
RequireSpace = Callable[[int], None]
"""Raises `Unavailable` where the disk has no room for so many bytes beside its reserve."""

_FRAMES_OF_CODE: Final = (1, 2, 2)
_SILK_SAMPLES: Final = (480, 960, 1920, 2880)
_HYBRID_SAMPLES: Final = (480, 960)
_CELT_SAMPLES: Final = (120, 240, 480, 960)


def packet_samples(packet: bytes) -> int:
    """Samples at 48 kHz in an Opus packet, by its first bytes (RFC 6716 §3.1); 0 if it cannot be one."""
    if not packet:
        return 0
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        frame = _SILK_SAMPLES[config & 3]
    elif config < 16:
        frame = _HYBRID_SAMPLES[config & 1]
    else:
        frame = _CELT_SAMPLES[config & 3]
    if code < 3:
        return frame * _FRAMES_OF_CODE[code]
    return frame * (packet[1] & 0x3F) if len(packet) > 1 else 0


class PacketDecoder:
    """Raw Opus packets to PCM by libopus; keeps its state from call to call."""

    def __init__(self) -> None:
        codec = av.CodecContext.create("libopus", "r")
        assert isinstance(codec, av.AudioCodecContext)  # noqa: S101  for the type checker: "libopus" is audio
        codec.sample_rate = SAMPLE_RATE_HZ
        codec.layout = "mono"
        self._codec = codec

    def decode(self, packet: bytes) -> bytes | None:
        """20 ms of PCM; None for what is no packet of 20 ms."""
        if packet_samples(packet) != FRAME_SAMPLES:
            return None
        try:
            frames = self._codec.decode(av.Packet(packet))
        except av.error.FFmpegError:
            return None
        pcm = b"".join(frame.to_ndarray().astype("<i2", copy=False).tobytes() for frame in frames)
        return pcm if len(pcm) == FRAME_BYTES else None


class Attachment:
    """One socket's hold on a voice; ended when another socket of the person takes over, or the voice is over."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self.ended = asyncio.Event()
        self.reason: str | None = None

    @property
    def next_sequence(self) -> int | None:
        """The number expected; None: whichever comes first."""
        return self._voice.next_sequence

    def take(self, sequence: int, payload: bytes) -> None:
        """A packet as it came.

        Raises `Conflict("live_lost")` when the voice was silent too long or the socket was replaced, and
        `Refused("voice_abusive")` when too much was refused.
        """
        self._check()
        self._voice.take(sequence, payload)

    def renew(self) -> None:
        """The person is still there, even if nothing is said. Raises as `take`."""
        self._check()
        self._voice.renew()

    async def over(self) -> None:
        """Return when it has ended."""
        await self.ended.wait()

    def release(self) -> None:
        """The socket is gone; the voice waits for another."""
        if self._voice.attachment is self:
            self._voice.attachment = None
        self.end("released")

    def end(self, reason: str) -> None:
        """Tell the socket that it is over."""
        if not self.ended.is_set():
            self.reason = reason
            self.ended.set()

    def _check(self) -> None:
        if self.ended.is_set() or self._voice.is_lost:
            raise Conflict("live_lost")


class Voice:
    """One session's sound: a `FrameSource` for its stream."""

    def __init__(
        self,
        session_id: str,
        recording: Path,
        *,
        wait_s: float,
        clock: Clock,
        executor: Executor,
        sandbox: Sandbox,
        limits: VoiceLimits,
        require_space: RequireSpace,
    ) -> None:
        self.session_id, self.recording = session_id, recording
        self.counts = VoiceCounts()
        self.attachment: Attachment | None = None
        self._clock, self._executor, self._sandbox, self._limits = clock, executor, sandbox, limits
        self._require_space = require_space
        self._since = clock.now()
        self._lost_at_s = clock.monotonic() + wait_s
        self._format = VoiceFormat.OPUS
        self._sequencer = Sequencer(self.counts, reorder=limits.reorder, ahead=limits.ahead)
        self._packets = Bucket(limits.packets_per_s, limits.packets_burst)
        self._bytes = Bucket(limits.bytes_per_s, limits.bytes_burst)
        self._restarts = Bucket(RESTARTS_PER_S, RESTARTS_BURST)
        self._waiting: deque[bytes | Gap] = deque()
        self._decoder = PacketDecoder()
        self._container: _Container | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._dynamics = Dynamics()
        self._anchor_s: float | None = None
        self._position = 0
        self._heard_bytes = 0
        self._level: tuple[float, float] = (0.0, 0.0)
        self._shown = (SILENCE_DBFS, 0.0)
        self._unrecorded = bytearray()
        self.is_recorded = True

    # -- what the socket does

    @property
    def next_sequence(self) -> int | None:
        """The number expected."""
        return self._sequencer.next

    @property
    def is_lost(self) -> bool:
        """Whether nothing came for too long."""
        return self._clock.monotonic() >= self._lost_at_s

    def attach(self, fmt: VoiceFormat) -> Attachment:
        """A socket takes hold; the one before is told that it was replaced. Raises `Conflict("live_lost")`."""
        if self.is_lost:
            raise Conflict("live_lost")
        if self.attachment is not None:
            self.attachment.end("live_taken_over")
        if fmt is not self._format:
            self._format = fmt
            reorder = self._limits.reorder if fmt is VoiceFormat.OPUS else 1
            expected = self._sequencer.next
            self._sequencer = Sequencer(self.counts, reorder=reorder, ahead=self._limits.ahead)
            self._sequencer.next = expected
        self.attachment = Attachment(self)
        return self.attachment

    def take(self, sequence: int, payload: bytes) -> None:
        """Judge one packet and put it in its place."""
        now_s = self._clock.monotonic()
        is_opus = self._format is VoiceFormat.OPUS
        longest = self._limits.packet_bytes if is_opus else self._limits.chunk_bytes
        may_pass = (
            0 < len(payload) <= longest
            and self._packets.take(1.0, now_s)
            and self._bytes.take(len(payload), now_s)
            and (not is_opus or packet_samples(payload) == FRAME_SAMPLES)
        )
        if may_pass:
            self._lost_at_s = now_s + self._limits.silent_s
            for piece in self._sequencer.take(sequence, payload):
                self._use(piece)
        else:
            self.counts.refused += 1
        if self.counts.refused > self._limits.refusals:
            raise Refused("voice_abusive", refused=self.counts.refused)

    def renew(self) -> None:
        """Still there."""
        self._lost_at_s = self._clock.monotonic() + self._limits.silent_s

    def _use(self, piece: bytes | Gap) -> None:
        if self._format is VoiceFormat.OPUS:
            self._wait(piece)
            return
        if isinstance(piece, Gap):
            return  # the demuxer finds its way again, or the browser begins anew
        at, magic = _MAGIC[self._format]
        if piece[at : at + len(magic)] == magic:
            if not self._restarts.take(1.0, self._clock.monotonic()):
                self.counts.refused += 1
                return
            self._retire()
            self._container = _Container(
                self.session_id, _STREAM[self._format], self._sandbox, self._wait, self._refused
            )
        if self._container is None or not self._container.feed(piece):
            self.counts.refused += 1

    def _refused(self) -> None:
        self.counts.refused += 1

    def _wait(self, piece: bytes | Gap) -> None:
        self._waiting.append(piece)
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            self.counts.dropped += 1

    def _retire(self) -> None:
        """Let a container's decoder finish what it has, out of the way of the next."""
        container, self._container = self._container, None
        if container is not None:
            task = asyncio.create_task(container.close(), name=f"voice.retire[{self.session_id}]")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    # -- what the stream asks

    @property
    def status(self) -> FeedStatus:
        """For whoever looks at the stream's source."""
        return FeedStatus(FeedState.HEALTHY, None, self._since, self._heard_bytes)

    def state(self) -> VoiceState:
        """How it is now."""
        expected = self._sequencer.next
        return VoiceState(
            acknowledged=-1 if expected is None else expected - 1,
            level_dbfs=round(self._shown[0], 1),
            heard_ms=self._heard_bytes // SAMPLE_BYTES * 1000 // SAMPLE_RATE_HZ,
            is_connected=self.attachment is not None,
            is_recorded=self.is_recorded,
            counts=self.counts,
        )

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """PCM in whole frames, from the first packet on without a pause, in step with the wall."""
        self._anchor_s, self._position = None, 0
        while True:
            await self._clock.sleep(TICK_S)
            pieces, behind = self._gathered()
            if not pieces and self._anchor_s is None:
                continue
            voice = await self._executor.run(self._decoded, pieces, behind) if pieces else b""
            block = self._placed(voice)
            if block:
                await self._keep(block)
                yield block

    async def close(self) -> None:
        """End decoders and write what is left of the recording."""
        if self.attachment is not None:
            self.attachment.end("live_lost" if self.is_lost else "live_over")
        self._retire()
        while self._closing:
            await asyncio.wait(set(self._closing))
        await self._keep(b"", is_last=True)

    # -- inside

    def _gathered(self) -> tuple[list[bytes | Gap], int]:
        """What came since the last tick, and how many frames the stream is behind the wall."""
        pieces = list(self._waiting)
        self._waiting.clear()
        return pieces, max(0, round(-self._lead_ms() / FRAME_MS) - 1)

    def _lead_ms(self) -> float:
        if self._anchor_s is None:
            return 0.0
        return self._position * 1000 / SAMPLE_RATE_HZ - (self._clock.monotonic() - self._anchor_s) * 1000

    def _decoded(self, pieces: list[bytes | Gap], behind: int) -> bytes:
        """Levelled PCM. A gap is filled only as far as the wall is ahead: a silence may have filled it already."""
        found = bytearray()
        for piece in pieces:
            if isinstance(piece, Gap):
                frames = min(piece.packets, behind)
                behind -= frames
                self.counts.filled += frames
                found += _SILENCE * frames
            elif len(piece) == FRAME_BYTES:  # no packet is so long: a container's decoder made it
                found += piece
            else:
                frame = self._decoder.decode(piece)
                if frame is None:
                    self.counts.refused += 1
                found += frame or _SILENCE
        pcm = pcm_of(found)
        self._measure(pcm)
        return self._dynamics.hear(pcm).tobytes()

    def _measure(self, pcm: Pcm) -> None:
        power, seconds = self._level
        power += float(np.square(to_float(pcm), dtype=np.float64).sum()) / SAMPLE_RATE_HZ
        seconds += len(pcm) / SAMPLE_RATE_HZ
        if seconds >= METER_S:
            self._shown, power, seconds = (dbfs((power / seconds) ** 0.5), seconds), 0.0, 0.0
        self._level = (power, seconds)

    def _placed(self, voice: bytes) -> bytes:
        """The block at its place: silence before it where the wall is ahead, less of it where it is behind."""
        if self._anchor_s is None:
            if not voice:
                return b""
            self._anchor_s = self._clock.monotonic() - len(voice) / SAMPLE_BYTES / SAMPLE_RATE_HZ
        lead_ms = self._lead_ms() + len(voice) / SAMPLE_BYTES * 1000 / SAMPLE_RATE_HZ
        block = voice
        if lead_ms < -FILL_AFTER_MS:
            frames = int((-lead_ms - FILL_TO_MS) // FRAME_MS)
            self.counts.filled += frames
            self._shown = self._shown if voice else (SILENCE_DBFS, 0.0)
            block = _SILENCE * frames + voice
        elif lead_ms > CALM_LEAD_MS:
            block = self._hurried(voice, lead_ms)
        self._position += len(block) // SAMPLE_BYTES
        self._heard_bytes += len(block)
        return block

    def _hurried(self, voice: bytes, lead_ms: float) -> bytes:
        """Leave out pauses while ahead, and the oldest words beyond what may wait."""
        kept = bytearray()
        for at in range(0, len(voice), FRAME_BYTES):
            frame = voice[at : at + FRAME_BYTES]
            if lead_ms > MOST_LEAD_MS:
                self.counts.dropped += 1
            elif lead_ms > CALM_LEAD_MS and _is_quiet(frame):
                self.counts.skipped += 1
            else:
                kept += frame
                continue
            lead_ms -= FRAME_MS
        return bytes(kept)

    async def _keep(self, block: bytes, *, is_last: bool = False) -> None:
        """Record what goes out, a second at a time. A disk that is nearly full ends the recording, never the voice."""
        self._unrecorded += block
        if self._unrecorded and self.is_recorded and (is_last or len(self._unrecorded) >= RECORD_EVERY_BYTES):
            pcm = bytes(self._unrecorded)
            self._unrecorded.clear()
            try:
                await self._executor.run(_append, self.recording, pcm, self._require_space)
            except (OSError, Unavailable) as error:
                self.is_recorded = False
                log.error("voice.not_recorded", session_id=self.session_id, reason=str(error))  # noqa: TRY400


def _append(path: Path, pcm: bytes, require_space: RequireSpace) -> None:
    require_space(len(pcm))
    with path.open("ab") as file:
        file.write(pcm)
        os.fdatasync(file.fileno())


def _is_quiet(frame: bytes) -> bool:
    return dbfs(float(np.sqrt(np.square(to_float(pcm_of(frame)), dtype=np.float64).mean()))) < QUIET_DBFS


class _Container:
    """A sandboxed decoder for one recording of a MediaRecorder: chunks in, frames of PCM out."""

    def __init__(
        self,
        session_id: str,
        fmt: StreamFormat,
        sandbox: Sandbox,
        on_frame: Callable[[bytes], None],
        on_refused: Callable[[], None],
    ) -> None:
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUED_CHUNKS)
        self._on_frame, self._on_refused = on_frame, on_refused
        argv = decode_stream_argv(fmt)
        self._child = sandbox.child(argv, name=f"voice.decode[{session_id}]", limits=LIVE, keep_stdin=True)
        self._task = asyncio.create_task(self._run(), name=f"voice.container[{session_id}]")

    def feed(self, chunk: bytes) -> bool:
        """Whether the decoder still takes it."""
        if self._task.done():
            return False
        try:
            self._chunks.put_nowait(chunk)
        except asyncio.QueueFull:
            return False
        return True

    async def close(self) -> None:
        """Let it decode what it has for a moment, then end it."""
        with contextlib.suppress(asyncio.QueueFull):
            self._chunks.put_nowait(None)
        await asyncio.wait([self._task], timeout=1.0)
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        heard = False
        try:
            async with self._child as child:
                pump = asyncio.create_task(self._pump(child), name=f"{child.name}.pump")
                try:
                    rest = b""
                    while block := await child.stdout.read(_READ_BYTES):
                        rest += block
                        whole = len(rest) - len(rest) % FRAME_BYTES
                        for at in range(0, whole, FRAME_BYTES):
                            self._on_frame(rest[at : at + FRAME_BYTES])
                        rest, heard = rest[whole:], True
                finally:
                    pump.cancel()
                    await asyncio.wait([pump])
        except Unavailable as error:
            log.warning("voice.no_decoder", child=self._child.name, code=error.code)
        if not heard:
            self._on_refused()

    async def _pump(self, child: Child) -> None:
        with contextlib.suppress(Unavailable):  # it reads no more: what it wrote is read to the end
            while (chunk := await self._chunks.get()) is not None:
                await child.write(chunk)
            await child.end_input()


class VoiceRoom:
    """All voices of this process (`control.live.LiveIngest`)."""

    def __init__(
        self,
        *,
        bus: Bus,
        signer: Signer,
        clock: Clock,
        chance: Chance,
        executor: Executor,
        sandbox: Sandbox,
        folder: Path,
        require_space: RequireSpace,
        epoch: Callable[[], int],
        limits: VoiceLimits = USUAL_LIMITS,
        delay_ms: int = DELAY_MS,
        packets_per_batch: int = PACKETS_PER_BATCH,
    ) -> None:
        """`folder`: recordings until they are assets, `require_space`: of its disk. `epoch`: the leader's, 0 while this
        process does not lead.
        """
        self._bus, self._signer, self._clock, self._chance = bus, signer, clock, chance
        self._executor, self._sandbox, self._limits = executor, sandbox, limits
        self._folder, self._require_space, self._epoch = folder, require_space, epoch
        self._delay_ms, self._packets_per_batch = delay_ms, packets_per_batch
        self._voices: dict[str, Voice] = {}
        self._supervisor = Supervisor(clock=clock, chance=chance)
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def is_leading(self) -> bool:
        """Whether a stream may begin here: only the leader's process signs."""
        return self._epoch() > 0

    def sessions(self) -> frozenset[str]:
        """The sessions whose voice is here."""
        return frozenset(self._voices)

    def open(self, session_id: str, *, is_resumed: bool = False) -> None:
        """Make room for a voice; again: nothing. `is_resumed`: the process before this one had it.

        Raises `Unavailable("too_many_voices")`.
        """
        if session_id in self._voices:
            return
        if len(self._voices) >= MOST_VOICES:
            raise Unavailable("too_many_voices", most=MOST_VOICES)
        voice = Voice(
            session_id,
            self.recording(session_id),
            wait_s=self._limits.silent_s if is_resumed else self._limits.connect_s,
            clock=self._clock,
            executor=self._executor,
            sandbox=self._sandbox,
            limits=self._limits,
            require_space=self._require_space,
        )
        self._voices[session_id] = voice
        self._supervisor.keep(_task_name(session_id), lambda: self._relay(voice), FOREVER)
        log.info("voice.opened", session_id=session_id, is_resumed=is_resumed)

    def attach(self, session_id: str, fmt: VoiceFormat) -> Attachment:
        """A socket takes hold of the voice. Raises `Unavailable("live_not_here")` and `Conflict("live_lost")`."""
        voice = self._voices.get(session_id)
        if voice is None:
            raise Unavailable("live_not_here", session_id=session_id)
        return voice.attach(fmt)

    def renew(self, session_id: str) -> None:
        """Keep a voice without a word. Raises `NotFound`, `Conflict("live_lost")`."""
        voice = self._voices.get(session_id)
        if voice is None:
            raise NotFound("unknown_live", live=session_id)
        if voice.is_lost:
            raise Conflict("live_lost")
        voice.renew()

    def state(self, session_id: str) -> VoiceState | None:
        """How a voice is; None where it is not here."""
        voice = self._voices.get(session_id)
        return None if voice is None else voice.state()

    def is_lost(self, session_id: str) -> bool:
        """Whether a voice of this process has been silent for too long."""
        voice = self._voices.get(session_id)
        return voice is not None and voice.is_lost

    async def finish(self, session_id: str) -> None:
        """Silence: the last batch and a head without a lease go out, the recording is whole. Idempotent."""
        voice = self._voices.pop(session_id, None)
        if voice is None:
            return
        await self._supervisor.drop(_task_name(session_id))
        await voice.close()
        log.info("voice.finished", session_id=session_id, heard_ms=voice.state().heard_ms)

    def recording(self, session_id: str) -> Path:
        """Where the session's PCM is, until it is an asset."""
        return self._folder / f"{session_id}.pcm"

    async def close(self) -> None:
        """End all voices of this process; their sessions stay open for the next one. Idempotent."""
        for session_id in tuple(self._voices):
            await self.finish(session_id)
        await self._supervisor.close()

    async def _relay(self, voice: Voice) -> None:
        """Stream while this process leads, with a new head whenever the epoch changed."""
        while True:
            epoch = self._epoch()
            if not epoch:
                await self._clock.sleep(EPOCH_LOOK_S)
                continue
            stream = RelayStream(
                voice.session_id,
                voice,
                epoch=epoch,
                packets_per_batch=self._packets_per_batch,
                bus=self._bus,
                signer=self._signer,
                clock=self._clock,
                chance=self._chance,
                executor=self._executor,
                delay_ms=self._delay_ms,
            )
            running = asyncio.create_task(stream.run(), name=f"voice.stream[{voice.session_id}]")
            try:
                while self._epoch() == epoch and not running.done():
                    await self._clock.sleep(EPOCH_LOOK_S)
            finally:
                running.cancel()
                await asyncio.wait([running])
            if not running.cancelled():
                running.result()


def _task_name(session_id: str) -> str:
    return f"relay.voice[{session_id}]"
