"""What people upload by mistake or on purpose: refused with its own reason, cheaply, and nothing is stored."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import numpy as np
import pytest

from broadcast_server.audio.assets import AssetStore
from broadcast_server.audio.ffmpeg import Sandbox
from broadcast_server.audio.prepare import prepare, recognise
from broadcast_server.domain.errors import Invalid, Unavailable
from broadcast_server.supervise import InlineExecutor
from simulation.samples import sample, tone_pcm
from tests.audio.conftest import Encode

PCM = tone_pcm((500, 1100), 6.0)
FORMATS = [
    ("cut.mp3", "libmp3lame", 64),
    ("cut.wav", "pcm_s16le", 0),
    ("cut.flac", "flac", 0),
    ("cut.ogg", "libvorbis", 64),
    ("cut.opus", "libopus", 24),
    ("cut.m4a", "aac", 64),
    ("cut.aac", "aac", 64),
]


class Desk:
    """An operator's upload form: gives a file in and is told the reason, if any."""

    def __init__(self, assets: AssetStore, sandbox: Sandbox) -> None:
        self.assets, self.sandbox, self.executor = assets, sandbox, InlineExecutor()

    async def reason(self, source: Path, longest_s: int = 7200) -> str:
        try:
            await prepare(
                source, assets=self.assets, sandbox=self.sandbox, executor=InlineExecutor(), longest_s=longest_s
            )
        except (Invalid, Unavailable) as refusal:
            assert not list(self.assets.hashes())
            assert not list((self.assets._scratch).iterdir())
            return refusal.code
        return "stored"


@pytest.fixture
def desk(assets: AssetStore, sandbox: Sandbox) -> Desk:
    return Desk(assets, sandbox)


@pytest.fixture
def quarantine(tmp_path: Path) -> Path:
    return tmp_path / "upload.mp3"


@pytest.mark.parametrize(("content", "code"), [
    (b"", "file_empty"),
    (b"hello, this is a letter\n" * 100, "not_audio"),
    (b"%PDF-1.7\n" + bytes(5000), "not_audio"),
    (b"\x89PNG\r\n\x1a\n" + bytes(5000), "not_audio"),
    (b"PK\x03\x04" + bytes(5000), "not_audio"),
    (bytes(100_000), "not_audio"),
    (np.random.default_rng(7).bytes(100_000), "not_audio"),
    (b"\xff" * 10_000, "not_audio"),
    (b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f", "not_audio"),
    (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n", "playlist_not_audio"),
    (b"\xef\xbb\xbf\r\n#EXTM3U\nhttp://127.0.0.1:8080/x.mp3\n", "playlist_not_audio"),
    (b"ffconcat version 1.0\nfile other.mp3\n", "playlist_not_audio"),
    (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nm=audio 5004 RTP/AVP 14\r\n", "playlist_not_audio"),
    (b"<?xml version='1.0'?><MPD/>", "playlist_not_audio"),
    (b"OggS" + bytes(3000), "truncated"),
    (b"fLaC" + bytes(3000), "undecodable"),
    (b"\x00\x00\x00\x20ftypM4A " + bytes(3000), "undecodable"),
], ids=lambda value: value if isinstance(value, str) else None)  # fmt: skip
async def test_what_is_no_sound_is_named(desk: Desk, quarantine: Path, content: bytes, code: str):
    await desk.executor.run(quarantine.write_bytes, content)
    assert await desk.reason(quarantine) == code


async def test_a_playlist_that_hides_behind_a_tag_is_never_opened_as_one(desk: Desk, quarantine: Path, tmp_path: Path):
    neighbour = tmp_path / "neighbour.mp3"
    neighbour.write_bytes(sample("announcement_a").path.read_bytes())
    for text in (f"#EXTM3U\n#EXTINF:8,\n{neighbour}\n", "ffconcat version 1.0\nfile neighbour.mp3\n"):
        await desk.executor.run(quarantine.write_bytes, b"ID3\x04\x00\x00\x00\x00\x00\x00" + text.encode())
        assert await desk.reason(quarantine) == "not_audio"


def wav(fmt: bytes, data_bytes: int, data: bytes) -> bytes:
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", data_bytes) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def fmt(channels: int, rate_hz: int, bits: int) -> bytes:
    align = channels * bits // 8
    return struct.pack("<HHIIHH", 1, channels, rate_hz, rate_hz * align & 0xFFFFFFFF, align & 0xFFFF, bits)


@pytest.mark.parametrize(("content", "code"), [
    (wav(fmt(1, 8000, 16), 0xFFFFFFF0, bytes(1000)), "header_lies"),
    (wav(fmt(65535, 8000, 16), 1000, bytes(1000)), "header_lies"),
    (wav(fmt(0, 8000, 16), 1000, bytes(1000)), "header_lies"),
    (wav(fmt(1, 0, 16), 1000, bytes(1000)), "header_lies"),
    (wav(fmt(1, 2**32 - 1, 16), 1000, bytes(1000)), "header_lies"),
    (wav(fmt(1, 8000, 1), 1000, bytes(1000)), "header_lies"),
    (wav(b"", 1000, bytes(1000)), "header_lies"),
    (wav(fmt(1, 8000, 16), 5000, bytes(1000)), "truncated"),
    (wav(fmt(1, 8000, 16), 0, b""), "no_sound"),
    (b"RIFF\x00\x00\x00\x00WAVE", "not_audio"),
])  # fmt: skip
async def test_a_wav_is_not_believed(desk: Desk, quarantine: Path, content: bytes, code: str):
    await desk.executor.run(quarantine.write_bytes, content)
    assert await desk.reason(quarantine) == code


@pytest.mark.parametrize(("name", "codec", "kbps"), FORMATS)
@pytest.mark.parametrize("part", [0.4, 0.97])
async def test_half_an_upload_is_no_upload(desk: Desk, encode: Encode, name: str, codec: str, kbps: int, part: float):
    path = encode(name, PCM, codec=codec, kbps=kbps)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    assert await desk.reason(path) in {"truncated", "undecodable"}


@pytest.mark.parametrize(("name", "codec", "kbps"), FORMATS)
async def test_the_whole_upload_is_taken(desk: Desk, encode: Encode, name: str, codec: str, kbps: int):
    assert await desk.reason(encode(name, PCM, codec=codec, kbps=kbps)) == "stored"


async def test_a_recording_longer_than_the_cap_is_refused_by_what_it_says(desk: Desk, encode: Encode):
    assert await desk.reason(encode("long.flac", PCM, codec="flac"), longest_s=5) == "too_long"


async def test_a_recording_that_hides_its_length_is_refused_by_what_it_is(desk: Desk, encode: Encode):
    flac = encode("long.flac", PCM, codec="flac")
    content = bytearray(flac.read_bytes())
    content[21] &= 0xF0  # STREAMINFO: 36 bits of "how many samples", 0 for unknown
    content[22:26] = bytes(4)
    flac.write_bytes(content)
    assert await desk.reason(flac, longest_s=5) == "too_long"
    assert await desk.reason(flac, longest_s=10) == "stored"


async def test_a_bomb_of_24_hours_of_silence_in_a_small_file_costs_next_to_nothing(desk: Desk, tmp_path: Path):
    bomb = tmp_path / "bomb.flac"
    content = silent_flac(hours=24, tells=True)
    assert len(content) < 400_000
    bomb.write_bytes(content)
    async with asyncio.timeout(5):
        assert await desk.reason(bomb) == "too_long"


async def test_a_bomb_that_does_not_tell_its_length_is_cut_at_the_cap(desk: Desk, tmp_path: Path):
    bomb = tmp_path / "bomb.flac"
    bomb.write_bytes(silent_flac(hours=24, tells=False))
    async with asyncio.timeout(60):
        assert await desk.reason(bomb) == "too_long"


async def test_silence_is_not_an_announcement(desk: Desk, encode: Encode):
    assert await desk.reason(encode("silent.wav", bytes(480_000), codec="pcm_s16le")) == "silent"


async def test_a_full_disk_refuses_before_anything_is_written(tmp_path: Path, sandbox: Sandbox):
    full = AssetStore(tmp_path / "assets", reserve_bytes=500_000_000, free_bytes=lambda _: 400_000_000)
    with pytest.raises(Unavailable) as refusal:
        await prepare(sample("announcement_a").path, assets=full, sandbox=sandbox, executor=InlineExecutor())
    assert refusal.value.code == "disk_full"
    assert not list(full.hashes())


async def test_a_long_upload_is_refused_when_its_pcm_would_touch_the_reserve(tmp_path: Path, sandbox: Sandbox):
    tight = AssetStore(tmp_path / "assets", reserve_bytes=500_000_000, free_bytes=lambda _: 500_500_000)
    desk = Desk(tight, sandbox)
    assert await desk.reason(sample("announcement_a").path) == "disk_full"
    assert await desk.reason(sample("chime").path) == "stored"


def test_a_link_to_somewhere_else_is_not_followed(tmp_path: Path):
    link = tmp_path / "upload.mp3"
    link.symlink_to(sample("announcement_a").path)
    with pytest.raises(OSError, match="symbolic links"):
        recognise(link)


def silent_flac(*, hours: int, tells: bool) -> bytes:
    """Hours of digital silence, frame by frame: 8 kHz mono, blocks of 65 535, CONSTANT subframes (RFC 9639)."""
    rate_hz, block = 8_000, 65_535
    samples = hours * 3600 * rate_hz if tells else 0
    info = struct.pack(">HH", block, block) + bytes(6)
    info += ((rate_hz << 44) | (0 << 41) | (15 << 36) | samples).to_bytes(8, "big") + bytes(16)
    frames = bytearray()
    for number in range(hours * 3600 * rate_hz // block):
        head = b"\xff\xf8" + bytes([0b0111_0100, 0b0000_1000]) + coded(number) + struct.pack(">H", block - 1)
        frame = head + bytes([crc(head, 8, 0x07)]) + bytes([0, 0, 0])
        frames += frame + struct.pack(">H", crc(frame, 16, 0x8005))
    return b"fLaC" + b"\x80" + len(info).to_bytes(3, "big") + info + bytes(frames)


def coded(number: int) -> bytes:
    """A number as FLAC counts frames: UTF-8's way."""
    return chr(number).encode("utf-8", "surrogatepass")


def crc(data: bytes, bits: int, polynomial: int) -> int:
    value, top, mask = 0, 1 << (bits - 1), (1 << bits) - 1
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = ((value << 1) ^ polynomial if value & top else value << 1) & mask
    return value
