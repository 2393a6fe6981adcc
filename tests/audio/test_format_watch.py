"""A source that changes its format in mid-stream: noticed where it happens, wherever the reads end."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from broadcast_server.audio.feed import FormatWatch, sniff
from broadcast_server.audio.ffmpeg import StreamFormat
from simulation.samples import tone_pcm

TONE = tone_pcm((700, 2300), 4.0)
CONTAINER = {"libmp3lame": "mp3", "aac": "adts", "libopus": "ogg"}


def encoded(codec: str, *, rate_hz: int = 48_000, kbps: int = 64) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=CONTAINER[codec]) as container:
        stream = container.add_stream(codec, rate=rate_hz)
        assert isinstance(stream, av.AudioStream)
        stream.layout, stream.bit_rate = "mono", kbps * 1_000
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate_hz)
        samples = np.ascontiguousarray(np.frombuffer(TONE, dtype="<i2").reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 48_000
        for ready in (*resampler.resample(frame), *resampler.resample(None)):
            for packet in stream.encode(ready):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return file.getvalue()


MP3, MP3_44, MP3_128, AAC, OPUS = (
    encoded("libmp3lame"),
    encoded("libmp3lame", rate_hz=44_100),
    encoded("libmp3lame", kbps=128),
    encoded("aac"),
    encoded("libopus"),
)
FLAC = OPUS.replace(b"OpusHead", b"\x7fFLAC\1\0\0")
"""As far as its first page tells."""


def change_in(first: bytes, fmt: StreamFormat, then: bytes, read_bytes: int) -> bytes | None:
    """What the watch hands on from the change; None if it noticed none."""
    watch, sent = FormatWatch(fmt), first + then
    for start in range(0, len(sent), read_bytes):
        if watch.pass_by(sent[start : start + read_bytes]) is not None:
            return watch.since_change + sent[start + read_bytes :]
    return None


@pytest.mark.parametrize("read_bytes", [100, 1_400, 16_384])
@pytest.mark.parametrize(
    ("first", "fmt", "then", "becomes"),
    [
        pytest.param(MP3, StreamFormat.MP3, MP3_44, StreamFormat.MP3, id="sampling rate"),
        pytest.param(MP3, StreamFormat.MP3, AAC, StreamFormat.AAC, id="MP3 to AAC"),
        pytest.param(AAC, StreamFormat.AAC, MP3, StreamFormat.MP3, id="AAC to MP3"),
        pytest.param(MP3, StreamFormat.MP3, OPUS, StreamFormat.OGG, id="MP3 to Ogg"),
        pytest.param(OPUS, StreamFormat.OGG, FLAC, StreamFormat.OGG, id="Opus to FLAC in Ogg"),
    ],
)
def test_a_change_is_noticed_and_what_follows_is_handed_on(
    first: bytes, fmt: StreamFormat, then: bytes, becomes: StreamFormat, read_bytes: int
):
    rest = change_in(first, fmt, then, read_bytes)
    assert rest is not None
    assert sniff(rest) is becomes
    assert len(then) - 2_000 <= len(rest) <= len(then) + 2_000


@pytest.mark.parametrize("read_bytes", [100, 1_400, 16_384])
@pytest.mark.parametrize(
    ("first", "fmt", "then"),
    [
        pytest.param(MP3, StreamFormat.MP3, MP3, id="the next title"),
        pytest.param(MP3, StreamFormat.MP3, MP3_128, id="another bit rate"),
        pytest.param(MP3, StreamFormat.MP3, MP3[1_000:], id="a piece is missing"),
        pytest.param(MP3, StreamFormat.MP3, bytes(3_000) + MP3, id="rubbish between"),
        pytest.param(AAC, StreamFormat.AAC, AAC, id="AAC and AAC"),
        pytest.param(OPUS, StreamFormat.OGG, OPUS, id="a chained Ogg"),
    ],
)
def test_what_one_decoder_can_take_is_no_change(first: bytes, fmt: StreamFormat, then: bytes, read_bytes: int):
    assert change_in(first, fmt, then, read_bytes) is None
