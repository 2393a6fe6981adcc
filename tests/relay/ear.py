"""A listener that believes nothing it did not verify, decodes what it got, and names the tone pair it hears."""

from __future__ import annotations

import av
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broadcast_server.mqtt.bus import Bus, Message
from simulation.samples import TONES_HZ
from speaker_protocol.frames import AudioBatch, unpack
from speaker_protocol.messages import StreamHeadBody, decode
from speaker_protocol.signing import Envelope, parse
from speaker_protocol.topics import StreamAudio, StreamHead


class Listener:
    """Hears one stream on a bus."""

    def __init__(self, bus: Bus, stream: str) -> None:
        self.stream = stream
        self.envelopes: list[Envelope] = []
        self.heads: list[StreamHeadBody] = []
        self.batches: list[AudioBatch] = []
        bus.subscribe(str(StreamHead(stream)), self._head)
        bus.subscribe(str(StreamAudio(stream)), self._audio)

    def _head(self, message: Message) -> None:
        envelope = parse(message.payload)
        self.envelopes.append(envelope)
        self.heads.append(decode(StreamHeadBody, envelope.body))

    def _audio(self, message: Message) -> None:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.heads[-1].public_key))
        self.batches.append(unpack(message.payload, public, self.stream))

    @property
    def packets(self) -> list[bytes]:
        return [packet for batch in self.batches for packet in batch.packets]

    def heard(self) -> tuple[int, int]:
        """The tone pair of the last second."""
        return pair_of(decoded([packet for packet in self.packets if packet][-50:]))


def decoded(packets: list[bytes]) -> np.ndarray:
    codec = av.CodecContext.create("opus", "r")
    assert isinstance(codec, av.AudioCodecContext)
    codec.sample_rate = 48_000
    codec.layout = "mono"
    frames = [frame.to_ndarray().reshape(-1) for packet in packets for frame in codec.decode(av.Packet(packet))]
    return np.concatenate(frames) if frames else np.zeros(0)


def pair_of(pcm: np.ndarray) -> tuple[int, int]:
    """The two tones of the grid that sound loudest; fails when they do not stand out of the rest."""
    at_s = np.arange(len(pcm)) / 48_000
    window = np.hanning(len(pcm))
    levels = {hz: float(abs(np.sum(pcm * window * np.exp(-2j * np.pi * hz * at_s)))) for hz in TONES_HZ}
    first, second, third, *_ = sorted(levels, key=lambda hz: -levels[hz])
    assert levels[second] > 10 * levels[third], f"no pair stands out: {levels}"
    return (min(first, second), max(first, second))
