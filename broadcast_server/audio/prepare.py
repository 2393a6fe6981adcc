"""Turns what a person uploaded, or a machine made, into an asset that nodes may play: the only way in.

Upload in quarantine → first bytes → probe → PCM on disk → measured → levelled → Opus → asset store. A maintainer must
not break: the bytes of an upload never reach a node; nothing is believed from a header, only checked against what was
really decoded; a recording is never held in memory (2 h are 691 MB of PCM, in a nameless scratch file); the same input
gives the same bytes, so the same hash. Nothing is stored unless every step went well.

Refusals are `Invalid`: file_empty, playlist_not_audio, not_audio, header_lies, truncated, no_sound, undecodable,
too_long, too_costly, silent. A full disk is `Unavailable("disk_full")`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Final

import av

from broadcast_server.audio.assets import AssetStore, StoredAsset
from broadcast_server.audio.ffmpeg import FileFormat, Limits, Sandbox, concat_files_argv, decode_file_argv, probe_argv
from broadcast_server.audio.formats import (
    SAMPLE_BYTES,
    SAMPLE_RATE_HZ,
    Pcm,
    pcm_of,
)
from broadcast_server.audio.loudness import BLOCK_SAMPLES, CEILING_DBTP, LoudnessReport, Meter, levelled
from broadcast_server.domain.errors import Invalid, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.supervise import Executor

log = get_logger()

LONGEST_S: Final = 7_200
_GRACE_S: Final = 0.5  # an MP3 of two hours sounds up to 0.1 s longer, by its encoder's padding
KBPS: Final = 24
# Of 10 min: complexity 0 costs 2.5 s of CPU, 5 costs 3.6 s, 10 costs 11.2 s; 5 is also what live streams use.
COMPLEXITY: Final = 5
# A low-rate codec overshoots: decoded peaks of speech stand up to about 2.5 dB over what was encoded.
CODEC_HEADROOM_DB: Final = 2.0

_PROBE_TIMEOUT_S: Final = 20.0
_DECODE_TIMEOUT_S: Final = 300.0
_PROBE_LIMITS: Final = Limits(cpu_s=10, file_bytes=0)
_DECODE_LIMITS: Final = Limits(cpu_s=240, file_bytes=(LONGEST_S + 2) * SAMPLE_RATE_HZ * SAMPLE_BYTES)
# How much less than declared may come out: encoder delay and rounding, where the format counts in frames.
_EXACT_FORMATS: Final = frozenset({FileFormat.WAV, FileFormat.FLAC, FileFormat.OGG})
_EXACT_SHORT_S: Final = 0.05
_SHORT_S: Final = 0.25
_SHORT_SHARE: Final = 0.005


@dataclass(frozen=True, slots=True)
class Prepared:
    """An asset and what was found on the way."""

    asset: StoredAsset
    report: LoudnessReport


async def prepare(
    source: Path,
    *,
    assets: AssetStore,
    sandbox: Sandbox,
    executor: Executor,
    longest_s: int = LONGEST_S,
    kbps: int = KBPS,
) -> Prepared:
    """The upload at `source`, a name made by us, as an asset. Raises as the module says; `source` is left alone."""
    async with _decoded(source, assets, sandbox, executor, longest_s) as pcm:
        prepared = await executor.run(_finish, pcm, assets, kbps)
    log.info("asset.prepared", hash=prepared.asset.hash, duration_ms=prepared.asset.duration_ms)
    return prepared


async def decode_pcm(
    source: Path, *, assets: AssetStore, sandbox: Sandbox, executor: Executor, longest_s: int
) -> bytes:
    """The upload at `source` as PCM in memory, with the same checks: material for the studio, so of minutes."""
    async with _decoded(source, assets, sandbox, executor, longest_s) as pcm:
        return await executor.run(_read_all, pcm)


async def prepare_joined(
    hashes: Sequence[str],
    *,
    assets: AssetStore,
    sandbox: Sandbox,
    executor: Executor,
    longest_s: int = LONGEST_S,
    kbps: int = KBPS,
) -> Prepared:
    """Assets one after the other as one asset: material too long for the studio, streamed through one ffmpeg."""
    sources = [assets.path(content_hash) for content_hash in hashes]
    if not sources:
        raise Invalid("no_sound", field="items")
    names = sandbox.names(sources)
    with assets.scratch() as pcm:
        argv = concat_files_argv(
            [(name, FileFormat.OGG) for name in names], longest_s=longest_s + 1, output=f"pipe:{pcm.fileno()}"
        )
        await _run_decoder(argv, sources, sandbox, pcm, FileFormat.OGG)
        if _pcm_s(pcm) > longest_s + _GRACE_S:
            raise Invalid("too_long", field="items", longest_s=longest_s)
        return await executor.run(_finish, pcm, assets, kbps)


@contextlib.asynccontextmanager
async def _decoded(
    source: Path, assets: AssetStore, sandbox: Sandbox, executor: Executor, longest_s: int
) -> AsyncIterator[IO[bytes]]:
    kind = await executor.run(recognise, source)
    declared_s = await _probe(source, kind, sandbox)
    if declared_s is not None and declared_s > longest_s + _GRACE_S:
        raise Invalid("too_long", field="file", longest_s=longest_s, declared_s=round(declared_s))
    with assets.scratch(needs_bytes=round((declared_s or 0.0) * SAMPLE_RATE_HZ) * SAMPLE_BYTES) as pcm:
        [name] = sandbox.names([source])
        argv = decode_file_argv(name, kind, longest_s=longest_s + 1, output=f"pipe:{pcm.fileno()}")
        await _run_decoder(argv, [source], sandbox, pcm, kind)
        decoded_s = _pcm_s(pcm)
        if decoded_s > longest_s + _GRACE_S:
            raise Invalid("too_long", field="file", longest_s=longest_s)
        if declared_s is not None and decoded_s < declared_s - _slack_s(kind, declared_s):
            raise Invalid("truncated", field="file", declared_s=round(declared_s, 1), decoded_s=round(decoded_s, 1))
        yield pcm


def _slack_s(kind: FileFormat, declared_s: float) -> float:
    return _EXACT_SHORT_S if kind in _EXACT_FORMATS else max(_SHORT_S, declared_s * _SHORT_SHARE)


def _pcm_s(pcm: IO[bytes]) -> float:
    return os.fstat(pcm.fileno()).st_size / SAMPLE_BYTES / SAMPLE_RATE_HZ


def _read_all(pcm: IO[bytes]) -> bytes:
    return os.pread(pcm.fileno(), os.fstat(pcm.fileno()).st_size, 0)


async def prepare_pcm(pcm: bytes, *, assets: AssetStore, executor: Executor, kbps: int = KBPS) -> Prepared:
    """PCM that we made ourselves (speech, studio) as an asset. `Invalid`: no_sound, silent, too_long."""
    if len(pcm) > LONGEST_S * SAMPLE_RATE_HZ * SAMPLE_BYTES:
        raise Invalid("too_long", field="text", longest_s=LONGEST_S)

    def work() -> Prepared:
        with assets.scratch(needs_bytes=len(pcm)) as file:
            file.write(pcm)
            return _finish(file, assets, kbps)

    return await executor.run(work)


async def prepare_recording(pcm: Path, *, assets: AssetStore, executor: Executor, kbps: int = KBPS) -> Prepared:
    """PCM in a file of ours (what a live voice said) as an asset; the file is left alone. As `prepare_pcm`."""

    def work() -> Prepared:
        with pcm.open("rb") as file:
            return _finish(file, assets, kbps)

    return await executor.run(work)


def _finish(pcm: IO[bytes], assets: AssetStore, kbps: int) -> Prepared:
    """Measure, level, encode, store: blocking, twice through the scratch file, a second at a time."""
    meter = Meter()
    for block in _blocks(pcm):
        meter.hear(block)
    ceiling_dbtp = CEILING_DBTP - CODEC_HEADROOM_DB
    report = meter.report(ceiling_dbtp=ceiling_dbtp)
    if report.duration_ms == 0:
        raise Invalid("no_sound", field="file")
    if report.is_silent:
        raise Invalid("silent", field="file", duration_ms=report.duration_ms)
    with assets.scratch_path() as made:
        assets.require_space(report.duration_ms * kbps // 8)
        encode_opus(levelled(_blocks(pcm), gain_db=report.gain_db, ceiling_dbtp=ceiling_dbtp), made, kbps=kbps)
        return Prepared(assets.put(made), report)


def _blocks(pcm: IO[bytes]) -> Iterator[Pcm]:
    at = 0
    while block := os.pread(pcm.fileno(), BLOCK_SAMPLES * SAMPLE_BYTES, at):
        yield pcm_of(block)
        at += len(block)


def encode_opus(blocks: Iterator[Pcm], made: Path, *, kbps: int = KBPS, complexity: int = COMPLEXITY) -> None:
    """PCM as an Ogg Opus file of 20 ms packets; exactly as long as what came in; same input, same bytes."""
    options = {"fflags": "+bitexact", "serial_offset": "1"}
    with av.open(str(made), "w", format="ogg", options=options) as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE_HZ)
        stream.layout = "mono"
        stream.format = "s16"
        stream.bit_rate = kbps * 1000
        stream.options = {
            "flags": "+bitexact",
            "application": "audio",
            "frame_duration": "20",
            "compression_level": str(complexity),
            "vbr": "constrained",
        }
        stream.time_base = Fraction(1, SAMPLE_RATE_HZ)
        at = 0
        for block in blocks:  # the encoder cuts it into packets itself
            frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE_HZ, at, Fraction(1, SAMPLE_RATE_HZ)
            at += len(block)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


# ----------------------------------------------------------------------------------------------------------- ffmpeg

_DURATION: Final = re.compile(r"Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)")


async def _probe(source: Path, kind: FileFormat, sandbox: Sandbox) -> float | None:
    """What the file says about its length, in seconds; None where that is a guess. Raises `Invalid`."""
    [name] = sandbox.names([source])
    said: list[str] = []
    child = sandbox.child(
        probe_argv(name, kind),
        name="audio.probe",
        reads=[source],
        limits=_PROBE_LIMITS,
        stdout=False,
        on_stderr=said.append,
    )
    try:
        async with child, asyncio.timeout(_PROBE_TIMEOUT_S):
            code = await child.wait()
    except TimeoutError as error:
        raise Invalid("too_costly", field="file") from error
    told = "\n".join(said)
    if code != 0:
        _raise_if_ours(told)
        raise Invalid("no_sound" if "matches no streams" in told else "undecodable", field="file", format=kind.value)
    found = _DURATION.search(told)
    if found is None or "Estimating duration from bitrate" in told:
        return None
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])


async def _run_decoder(
    argv: Sequence[str], sources: Sequence[Path], sandbox: Sandbox, pcm: IO[bytes], kind: FileFormat
) -> None:
    """Fill `pcm`, which a cap cuts one second after the longest. The child writes it; no byte passes through us."""
    child = sandbox.child(
        argv,
        name="audio.decode",
        reads=sources,
        limits=_DECODE_LIMITS,
        stdout=False,
        pass_fds=[pcm.fileno()],
    )
    try:
        async with child, asyncio.timeout(_DECODE_TIMEOUT_S):
            code = await child.wait()
    except TimeoutError as error:
        raise Invalid("too_costly", field="file") from error
    if code != 0:
        told = "\n".join(child.stderr_tail)
        _raise_if_ours(told)
        raise Invalid("too_costly" if code in _KILLED_BY_LIMIT else "undecodable", field="file", format=kind.value)


_KILLED_BY_LIMIT: Final = frozenset({-9, -24, -25, 128 + 9, 128 + 24, 128 + 25})  # SIGKILL, SIGXCPU, SIGXFSZ


def _raise_if_ours(told: str) -> None:
    """What went wrong on our side is not the file's fault."""
    if "No space left on device" in told:
        raise Unavailable("disk_full")
    if told.startswith("bwrap:") or "Cannot allocate memory" in told:
        raise Unavailable("decoder_failed")


# ------------------------------------------------------------------------------------------------------ first bytes

_HEAD_BYTES: Final = 1 << 16
_LISTS: Final = (
    b"#extm3u",
    b"ffconcat",
    b"[playlist]",
    b"v=0",
    b"<?xml",
    b"<asx",
    b"<smil",
    b"[reference]",
    b"http:",
    b"https:",
)
_MP3_KBPS: Final = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_RATES_HZ: Final = (44_100, 48_000, 32_000)
_CHAIN: Final = 3
_FrameBytes = Callable[[bytes, int], int]
_WAV_FORMATS: Final = frozenset({1, 3, 6, 7, 0xFFFE})
_ENDLESS: Final = 0x7FFF0000


def recognise(source: Path) -> FileFormat:
    """What a file is, by its own bytes; also whether it is all there, where its format can tell.

    Raises `Invalid`: file_empty, playlist_not_audio, not_audio, header_lies, truncated, no_sound.
    """
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size == 0:
            raise Invalid("file_empty", field="file")
        head = file.read(_HEAD_BYTES)
        tail = os.pread(descriptor, _HEAD_BYTES, max(0, size - _HEAD_BYTES))
        text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if text.startswith(_LISTS):
            raise Invalid("playlist_not_audio", field="file")
        if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
            _check_wav(file, size)
            return FileFormat.WAV
        if head[:4] == b"OggS":
            _check_ogg_end(tail)
            return FileFormat.OGG
        if head[4:8] == b"ftyp":
            return FileFormat.MOV
        start = _after_id3(head)
        if start:
            head = os.pread(descriptor, _HEAD_BYTES, start)
        if head[:4] == b"fLaC":
            return FileFormat.FLAC
        for kind, length_of in ((FileFormat.MP3, _mp3_frame_bytes), (FileFormat.AAC, _adts_frame_bytes)):
            if _first_chain(head, length_of, whole=start + len(head) >= size) is not None:
                if _is_cut_short(_without_tags(tail), length_of):
                    raise Invalid("truncated", field="file")
                return kind
    raise Invalid("not_audio", field="file")


def _after_id3(head: bytes) -> int:
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    size = 0
    for part in head[6:10]:
        size = size << 7 | part & 0x7F
    return size + 10


def _mp3_frame_bytes(data: bytes, at: int) -> int:
    """The length of the MPEG audio layer III frame whose header stands at `at`; 0 if none does."""
    word = int.from_bytes(data[at : at + 4], "big")
    version, layer, rate, hz = word >> 19 & 3, word >> 17 & 3, word >> 12 & 15, word >> 10 & 3
    if word >> 21 != 0x7FF or version == 1 or layer != 1 or rate in {0, 15} or hz == 3:
        return 0
    is_first = version == 3
    rate_hz = _MP3_RATES_HZ[hz] >> (0 if is_first else 1 if version == 2 else 2)
    kbps = _MP3_KBPS[1 if is_first else 2][rate]
    return (144 if is_first else 72) * kbps * 1000 // rate_hz + (word >> 9 & 1)


def _adts_frame_bytes(data: bytes, at: int) -> int:
    """The length of the ADTS frame whose header stands at `at`; 0 if none does."""
    if len(data) < at + 7 or data[at] != 0xFF or data[at + 1] & 0xF6 != 0xF0 or data[at + 2] >> 2 & 15 > 12:
        return 0
    length = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    return length if length > 7 else 0


def _first_chain(data: bytes, length_of: _FrameBytes, *, whole: bool) -> int | None:
    """Where frames begin to follow one another; fewer than three do for a file that ends before the third."""
    at = data.find(b"\xff")
    while at >= 0:
        place, links = at, 0
        while links < _CHAIN and (length := length_of(data, place)):
            place += length
            links += 1
        if links == _CHAIN or (links and whole and place >= len(data)):
            return at
        at = data.find(b"\xff", at + 1)
    return None


def _is_cut_short(data: bytes, length_of: _FrameBytes) -> bool:
    """Whether the last frame of the file's end says that it is longer than what is there."""
    at = _first_chain(data, length_of, whole=True)
    if at is None:
        return False
    while at < len(data):
        length = length_of(data, at)
        if length == 0:
            return False  # something else follows the sound; not for us to judge
        at += length
    return at > len(data)


def _without_tags(tail: bytes) -> bytes:
    """Without an ID3v1 tag, an APE tag and padding at the end."""
    if tail[-128:-125] == b"TAG":
        tail = tail[:-128]
    ape_at = tail.rfind(b"APETAGEX")
    if ape_at >= 0 and ape_at >= len(tail) - 32:
        (ape_bytes,) = struct.unpack_from("<I", tail, ape_at + 12)
        tail = tail[: max(0, len(tail) - ape_bytes - 32)]
    return tail


def _check_ogg_end(tail: bytes) -> None:
    """The last page carries the end-of-stream flag and is whole (RFC 3533)."""
    at = tail.rfind(b"OggS")
    if at < 0 or len(tail) < at + 27:
        raise Invalid("truncated", field="file")
    segments = tail[at + 26]
    length = 27 + segments + sum(tail[at + 27 : at + 27 + segments])
    if not tail[at + 5] & 4 or len(tail) < at + length:
        raise Invalid("truncated", field="file")


def _check_wav(file: IO[bytes], size: int) -> None:
    """A WAV whose header is possible, and all of whose sound is there."""
    at, seen_format = 12, False
    for _ in range(64):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            break
        name, length = head[:4], int.from_bytes(head[4:], "little")
        if name == b"fmt ":
            _check_wav_format(file.read(min(length, 40)))
            seen_format = True
        elif name == b"data":
            if not seen_format or length >= _ENDLESS:
                raise Invalid("header_lies", field="file", chunk="data")
            if at + 8 + length > size:
                raise Invalid("truncated", field="file")
            if length == 0:
                raise Invalid("no_sound", field="file")
            return
        at += 8 + length + (length & 1)
    raise Invalid("header_lies" if seen_format else "not_audio", field="file")


def _check_wav_format(told: bytes) -> None:
    if len(told) < 16:
        raise Invalid("header_lies", field="file", chunk="fmt")
    kind, channels, rate_hz, bytes_a_second, align, bits = struct.unpack_from("<HHIIHH", told)
    is_possible = (
        kind in _WAV_FORMATS
        and 1 <= channels <= 8
        and 4_000 <= rate_hz <= 384_000
        and bits in {8, 16, 24, 32, 64}
        and align == channels * bits // 8
        and bytes_a_second == rate_hz * align
    )
    if not is_possible:
        raise Invalid("header_lies", field="file", chunk="fmt")
