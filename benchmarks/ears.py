"""Ears on many streams of one bus: who sounds, and at which instant a speaker would sound it."""

from __future__ import annotations

from dataclasses import dataclass, field

import av
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broadcast_server.mqtt.bus import Bus, Message
from simulation.samples import TONES_HZ
from speaker_protocol.frames import AudioBatch, unpack
from speaker_protocol.messages import StreamHeadBody, decode
from speaker_protocol.signing import parse
from speaker_protocol.topics import StreamAudio, StreamHead

_PIECE = 4_800
_WINDOW = np.hanning(_PIECE)
_BINS = np.array(TONES_HZ) * _PIECE // 48_000
_QUIET = 0.002


@dataclass(frozen=True, slots=True)
class Heard:
    """100 ms as a speaker sounds them, `due_s` on the wall clock. `tones` None: nothing that is ours."""

    due_s: float
    came_s: float
    tones: tuple[int, int] | None
    is_quiet: bool


@dataclass
class Ear:
    """Verifies, decodes and names one stream's sound as it comes."""

    stream: str
    bus: Bus
    now: object
    heads: list[StreamHeadBody] = field(default_factory=list)
    pieces: list[Heard] = field(default_factory=list)
    batches: int = 0
    last_came_s: float = 0.0

    def __post_init__(self) -> None:
        self._new_decoder()
        self._pcm = np.zeros(0, dtype=np.float32)
        self._next = 0
        self.bus.subscribe(str(StreamHead(self.stream)), self._head)
        self.bus.subscribe(str(StreamAudio(self.stream)), self._audio)

    def _new_decoder(self) -> None:
        codec = av.CodecContext.create("opus", "r")
        assert isinstance(codec, av.AudioCodecContext)
        codec.sample_rate = 48_000
        codec.layout = "mono"
        self._codec = codec

    def _head(self, message: Message) -> None:
        if not message.payload:
            return
        head = decode(StreamHeadBody, parse(message.payload).body)
        if not self.heads or head.public_key != self.heads[-1].public_key:
            self.heads.append(head)
            self._new_decoder()
            self._pcm, self._next = self._pcm[:0], 0

    def _audio(self, message: Message) -> None:
        head = self.heads[-1]
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(head.public_key))
        batch = unpack(message.payload, key, self.stream)
        self.batches += 1
        self.last_came_s = self._now_s()
        self._sound(head, batch)

    def _now_s(self) -> float:
        return float(self.now())  # type: ignore[operator]

    def _sound(self, head: StreamHeadBody, batch: AudioBatch) -> None:
        if batch.media_sample != self._next:
            self._pcm = self._pcm[:0]
        start = batch.media_sample - len(self._pcm)
        frames = [
            frame.to_ndarray().reshape(-1)
            for packet in batch.packets
            if packet
            for frame in self._codec.decode(av.Packet(packet))
        ]
        self._next = batch.media_sample + len(batch.packets) * 960
        self._pcm = np.concatenate((self._pcm, *(frame.astype(np.float32) for frame in frames)))
        while len(self._pcm) >= _PIECE:
            piece, self._pcm = self._pcm[:_PIECE], self._pcm[_PIECE:]
            due_s = (head.t0_utc_ms + head.playout_delay_ms) / 1000 + start / 48_000
            self.pieces.append(Heard(due_s, self._now_s(), tones_of(piece), bool(np.std(piece) < _QUIET)))
            start += _PIECE


def tones_of(piece: np.ndarray) -> tuple[int, int] | None:
    """The tone pair of 100 ms, None where none stands out."""
    levels = np.abs(np.fft.rfft(piece * _WINDOW)[_BINS])
    order = np.argsort(levels)[::-1]
    if levels[order[1]] < 5 * levels[order[2]] or levels[order[1]] < 10.0:
        return None
    first, second = sorted((TONES_HZ[order[0]], TONES_HZ[order[1]]))
    return first, second


def mp3_of(pcm: bytes, *, rate_hz: int = 48_000, kbps: int = 64) -> bytes:
    """PCM (48 kHz mono) as an MP3 of this rate."""
    import io

    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=rate_hz)
        assert isinstance(stream, av.AudioStream)
        stream.layout, stream.bit_rate = "mono", kbps * 1000
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate_hz)
        samples = np.frombuffer(pcm, dtype="<i2").reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="s16", layout="mono")
        frame.sample_rate = 48_000
        for ready in (*resampler.resample(frame), *resampler.resample(None)):
            for packet in stream.encode(ready):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return file.getvalue()
