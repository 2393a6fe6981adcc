"""Programmes one can tell apart: pairs of tones, as PCM, as Ogg Opus, as raw packets."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Pcm = npt.NDArray[np.int16]
RATE = 48_000


def tone(pair: tuple[int, int], seconds: float, *, amplitude: float = 8_000.0) -> Pcm:
    t = np.arange(round(seconds * RATE)) / RATE
    wave_ = sum(amplitude * np.sin(2 * np.pi * hz * t) for hz in pair)
    return np.rint(wave_).astype(np.int16)


def sequence(parts: Sequence[tuple[tuple[int, int] | None, float]]) -> Pcm:
    return np.concatenate([np.zeros(round(s * RATE), np.int16) if p is None else tone(p, s) for p, s in parts])


def ogg_opus(pcm: Pcm, *, kbps: int = 32) -> bytes:
    """Ogg Opus as the server prepares it."""
    out = io.BytesIO()
    with av.open(out, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=RATE, layout="mono")
        stream.bit_rate = kbps * 1000
        whole = np.concatenate([pcm, np.zeros(-len(pcm) % 960, np.int16)])
        for at in range(0, len(whole), 960):
            frame = av.AudioFrame.from_ndarray(whole[None, at : at + 960], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, at, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def packets(pcm: Pcm, *, kbps: int = 24) -> list[bytes]:
    """Raw Opus packets of 20 ms, as a relay sends them."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = RATE, "mono", "s16"
    encoder.bit_rate = kbps * 1000
    encoder.open()
    found: list[bytes] = []
    for at in range(0, len(pcm) - 959, 960):
        frame = av.AudioFrame.from_ndarray(pcm[None, at : at + 960], format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, at
        found += [bytes(packet) for packet in encoder.encode(frame)]
    return found


def read_wav(path: Path) -> Pcm:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16)
