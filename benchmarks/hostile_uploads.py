"""Hostile uploads: crafted ones and mutants of every format, through the only way in (`audio.prepare`).

`LOA_UPLOADS` (1 000) files: at least 60 crafted (playlists, ffconcat, SDP, lying headers, bombs, foreign formats, bytes
after the end), the rest mutants of valid uploads from a seed. For each: refused with a code or stored, never an
exception of another kind; nothing written beside the store; CPU and stored sound capped; no connection made, no
neighbour's sound stored. Every valid variant (VBR, ID3 with a large picture, 8 kHz, 96 kHz 24 bit, stereo …) is taken.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog

from benchmarks.run import bar_of
from broadcast_server.audio.assets import AssetStore
from broadcast_server.audio.ffmpeg import Sandbox, find_ffmpeg
from broadcast_server.audio.formats import SAMPLE_RATE_HZ
from broadcast_server.audio.prepare import prepare
from broadcast_server.domain.errors import Invalid, Unavailable
from broadcast_server.supervise import InlineExecutor
from simulation.listening import decode
from simulation.samples import sample, tone_pcm

PROCESSES: Final = 2
CPU_CAP_S: Final = 20.0
LONGEST_S: Final = 120
"""The product's cap is two hours; a bomb that stays under this one shows the same."""
MINE: Final = (500, 1100)
NEIGHBOUR: Final = (900, 1900)
"""The tones of a file that lies beside the upload and must never be heard."""
_SECONDS: Final = 1.5
_ID3: Final = b"ID3\x04\x00\x00\x00\x00\x00\x00"


def run() -> dict[str, Any]:
    """See `benchmarks.run`."""
    return measure(int(os.environ.get("LOA_UPLOADS", "1000")))


def measure(uploads: int, *, seed: int = 1, processes: int = PROCESSES) -> dict[str, Any]:
    """`uploads` hostile files and every valid variant, in so many processes."""
    began = time.monotonic()
    shares = [json.dumps([uploads, seed, number, processes]) for number in range(processes)]
    workers = [
        subprocess.Popen([sys.executable, "-m", "benchmarks.hostile_uploads", share], stdout=subprocess.PIPE, text=True)
        for share in shares
    ]
    told: list[dict[str, Any]] = []
    for worker in workers:
        out, _ = worker.communicate()
        if worker.returncode != 0:
            raise RuntimeError(f"a worker ended with {worker.returncode}")
        told += [json.loads(line) for line in out.splitlines()]
    hostile = [one for one in told if not one["is_valid"]]
    valid = [one for one in told if one["is_valid"]]
    violations = Counter(what for one in told for what in one["violations"])
    taken = sum(one["outcome"] == "stored" for one in valid)
    worst_cpu_s = max(one["cpu_s"] for one in told)
    crafted = sum(not one["name"].startswith("mutant") for one in hostile)
    return {
        "name": "hostile_uploads",
        "figures": {
            "attempted": len(hostile),
            "ok": sum(not one["violations"] for one in hostile),
            "violations": sum(violations.values()),
            "violations_by_kind": dict(violations),
            "violating": sorted({one["name"] for one in told if one["violations"]})[:20],
            "crafted": crafted,
            "outcomes": dict(Counter(one["outcome"] for one in hostile).most_common()),
            "valid_variants": len(valid),
            "valid_taken": taken,
            "valid_refused": {one["name"]: one["outcome"] for one in valid if one["outcome"] != "stored"},
            "cpu_s_worst": worst_cpu_s,
            "wall_s": time.monotonic() - began,
        },
        "bars": [
            bar_of("hostile uploads", len(hostile), f">= {uploads}", holds=len(hostile) >= uploads > 0),
            bar_of("violations", sum(violations.values()), 0, holds=not violations),
            bar_of(
                "valid variants taken",
                f"{taken}/{len(valid)}",
                f"{len(valid)}/{len(valid)}",
                holds=taken == len(valid) > 0,
            ),
            bar_of("CPU of the worst, s", worst_cpu_s, f"<= {CPU_CAP_S:.0f}", holds=worst_cpu_s <= CPU_CAP_S),
        ],
    }


# -- one process -------------------------------------------------------------------------------------------------------


async def _share(uploads: int, seed: int, number: int, processes: int) -> None:
    sandbox = await Sandbox.probe()
    with tempfile.TemporaryDirectory(prefix="loa-uploads-") as name, _listener() as (port, calls):
        room = Path(name)
        (room / "neighbour.mp3").write_bytes(_encoded("libmp3lame", "mp3", NEIGHBOUR))
        quarantine = room / "quarantine"
        quarantine.mkdir()
        for index, (told, content, is_valid) in enumerate(_cases(uploads, seed, room, port)):
            if index % processes == number:
                outcome = await _try(told, content, is_valid, room, quarantine, sandbox)
                if calls():
                    outcome["violations"].append("connection")
                print(json.dumps(outcome), flush=True)


async def _try(
    name: str, content: bytes, is_valid: bool, room: Path, quarantine: Path, sandbox: Sandbox
) -> dict[str, Any]:
    upload = quarantine / "upload"
    upload.write_bytes(content)
    store = room / "assets"
    assets = AssetStore(store, free_bytes=lambda _: 10**12)
    before, cpu_before = _beside(room), _cpu_s()
    violations: list[str] = []
    try:
        made = await prepare(upload, assets=assets, sandbox=sandbox, executor=InlineExecutor(), longest_s=LONGEST_S)
    except (Invalid, Unavailable) as refusal:
        outcome = refusal.code
        if list(assets.hashes()):
            violations.append("stored_though_refused")
    except Exception as error:  # noqa: BLE001  what this suite is there to find
        outcome = f"crash: {type(error).__name__}"
        violations.append("crash")
    else:
        outcome = "stored"
        if made.asset.duration_ms > (LONGEST_S + 1) * 1_000:
            violations.append("longer_than_the_cap")
        if not is_valid and _hears(decode(assets.path(made.asset.hash)), NEIGHBOUR):
            violations.append("neighbour_heard")
        assets.path(made.asset.hash).unlink()
    cpu_s = _cpu_s() - cpu_before
    if _beside(room) != before:
        violations.append("file_beside_the_store")
    if upload.read_bytes() != content:
        violations.append("upload_changed")
    return {
        "name": name, "is_valid": is_valid, "outcome": outcome, "violations": violations, "cpu_s": round(cpu_s, 3),
    }  # fmt: skip


def _beside(room: Path) -> frozenset[str]:
    """Every file but the stored sounds."""
    store = room / "assets"
    return frozenset(
        str(path)
        for path in room.rglob("*")
        if path.is_file() and not (path.is_relative_to(store) and path.suffix == ".opus")
    )


def _cpu_s() -> float:
    mine, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime


def _hears(pcm: Any, pair: tuple[int, int]) -> bool:
    """Whether both tones stand out anywhere."""
    wave = np.asarray(pcm, dtype=np.float64)
    for start in range(0, max(1, len(wave) - SAMPLE_RATE_HZ // 2), SAMPLE_RATE_HZ // 4):
        part = wave[start : start + SAMPLE_RATE_HZ // 2]
        if len(part) < SAMPLE_RATE_HZ // 4:
            break
        power = np.abs(np.fft.rfft(part * np.hanning(len(part)))) ** 2
        hz = np.fft.rfftfreq(len(part), 1 / SAMPLE_RATE_HZ)
        share = [power[(hz > tone - 25) & (hz < tone + 25)].sum() / max(1e-9, power.sum()) for tone in pair]
        if min(share) > 0.2:
            return True
    return False


class _listener:  # noqa: N801  used like a function
    """A port on loopback that a trick may point at; counts who comes."""

    def __enter__(self) -> tuple[int, Callable[[], int]]:
        self._door = socket.socket()
        self._door.bind(("127.0.0.1", 0))
        self._door.listen(16)
        self._door.setblocking(False)
        self._calls = 0
        return self._door.getsockname()[1], self._count

    def _count(self) -> int:
        came = 0
        while True:
            try:
                who, _ = self._door.accept()
            except BlockingIOError:
                return came
            who.close()
            came += 1

    def __exit__(self, *_: object) -> None:
        self._door.close()


# -- what is uploaded --------------------------------------------------------------------------------------------------


def _cases(uploads: int, seed: int, room: Path, port: int) -> Iterator[tuple[str, bytes, bool]]:
    """Name, bytes, whether it is a valid upload; the same for every process."""
    good = dict(_valid())
    for name, content in good.items():
        yield f"valid {name}", content, True
    crafted = list(_crafted(room, port, good))
    for name, content in crafted:
        yield name, content, False
    chance = random.Random(seed)
    names = sorted(name for name in good if not name.startswith("big"))
    for number in range(max(0, uploads - len(crafted))):
        name = names[number % len(names)]
        how = chance.choice(_MUTATIONS)
        yield f"mutant {number} {name} {how.__name__}", how(good[name], chance, good), False


def _encoded(codec: str, container: str, tones: tuple[int, int] = MINE, *more: str) -> bytes:
    """A valid upload, by the encoder of this machine."""
    with tempfile.NamedTemporaryFile(prefix="loa-upload-") as out:
        subprocess.run(
            [
                str(find_ffmpeg()), "-nostdin", "-hide_banner", "-v", "error", "-y",
                "-f", "s16le", "-ar", str(SAMPLE_RATE_HZ), "-ac", "1", "-i", "pipe:0",
                "-c:a", codec, *more, "-f", container, out.name,
            ],
            input=tone_pcm(tones, _SECONDS),
            check=True,
        )  # fmt: skip
        return Path(out.name).read_bytes()


def _valid() -> Iterator[tuple[str, bytes]]:
    mp3 = _encoded("libmp3lame", "mp3", MINE, "-b:a", "64k")
    picture = b"APIC\x00\x00\x00\x00\x00\x00"
    size = 2_000_000
    tag = b"ID3\x03\x00\x00" + bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0)) + picture.ljust(size, b"\xff")
    yield "mp3 constant rate", mp3
    yield "mp3 variable rate", _encoded("libmp3lame", "mp3", MINE, "-q:a", "4")
    yield "mp3 low rate 8 kHz", _encoded("libmp3lame", "mp3", MINE, "-ar", "8000", "-b:a", "16k")
    yield "mp3 stereo 44.1 kHz", _encoded("libmp3lame", "mp3", MINE, "-ar", "44100", "-ac", "2")
    yield "big mp3 with a picture of 2 MB", tag + mp3
    yield "wav 16 bit", _encoded("pcm_s16le", "wav")
    yield "wav 8 kHz mono", _encoded("pcm_s16le", "wav", MINE, "-ar", "8000")
    yield "wav 96 kHz 24 bit", _encoded("pcm_s24le", "wav", MINE, "-ar", "96000")
    yield "wav float", _encoded("pcm_f32le", "wav")
    yield "wav 8 bit", _encoded("pcm_u8", "wav")
    yield "wav A-law", _encoded("pcm_alaw", "wav", MINE, "-ar", "8000")
    yield "wav mu-law", _encoded("pcm_mulaw", "wav", MINE, "-ar", "8000")
    yield "wav stereo", _encoded("pcm_s16le", "wav", MINE, "-ac", "2")
    yield "flac", _encoded("flac", "flac")
    yield "flac 96 kHz 24 bit", _encoded("flac", "flac", MINE, "-ar", "96000", "-sample_fmt", "s32")
    yield "ogg vorbis", _encoded("libvorbis", "ogg")
    yield "ogg opus", _encoded("libopus", "ogg", MINE, "-b:a", "24k")
    yield "m4a aac", _encoded("aac", "ipod", MINE, "-b:a", "64k")
    yield "m4a index first", _encoded("aac", "ipod", MINE, "-movflags", "+faststart")
    yield "m4a lossless", _encoded("alac", "ipod")
    yield "aac adts", _encoded("aac", "adts", MINE, "-b:a", "64k")


def _crafted(room: Path, port: int, good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    near, far = room / "neighbour.mp3", f"http://127.0.0.1:{port}/x.mp3"
    playlists = {
        "m3u8 file": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{near}\n",
        "m3u8 path": f"#EXTM3U\n#EXTINF:9,\n{near}\n",
        "m3u8 relative": "#EXTM3U\n#EXTINF:9,\n../neighbour.mp3\n",
        "m3u8 http": f"#EXTM3U\n#EXTINF:9,\n{far}\n",
        "m3u8 key": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{far}"\n#EXTINF:9,\n{near}\n',
        "m3u8 map": f'#EXTM3U\n#EXT-X-MAP:URI="file://{near}"\n#EXTINF:9,\n{near}\n',
        "m3u8 concat": f"#EXTM3U\n#EXTINF:9,\nconcat:{near}|{near}\n",
        "m3u8 subfile": f"#EXTM3U\n#EXTINF:9,\nsubfile,,start,0,end,99999,,:{near}\n",
        "m3u8 data": "#EXTM3U\n#EXTINF:9,\ndata:audio/mpeg;base64,SUQzBAAAAAAA\n",
        "m3u": f"#EXTM3U\n{far}\n",
        "ffconcat": f"ffconcat version 1.0\nfile '{near}'\n",
        "ffconcat relative": "ffconcat version 1.0\nfile ../neighbour.mp3\n",
        "ffconcat http": f"ffconcat version 1.0\nfile {far}\n",
        "sdp": f"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nm=audio {port} RTP/AVP 14\r\n",
        "pls": f"[playlist]\nFile1={far}\nNumberOfEntries=1\n",
        "asx": f'<asx version="3.0"><entry><ref href="{far}"/></entry></asx>',
        "xspf": f"<playlist><trackList><track><location>{far}</location></track></trackList></playlist>",
        "dash": f'<?xml version="1.0"?><MPD><Period><BaseURL>{far}</BaseURL></Period></MPD>',
        "smil": f'<smil><body><audio src="{far}"/></body></smil>',
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{far}"/></svg>',
        "doctype": f'<!DOCTYPE x [<!ENTITY a SYSTEM "{far}">]><x>&a;</x>',
        "rtsp": f"RTSPtext\nrtsp://127.0.0.1:{port}/\n",
        "ffmetadata": ";FFMETADATA1\ntitle=x\n",
        "script": "#!/bin/sh\ntouch owned\n",
    }
    for name, text in playlists.items():
        yield f"{name}", text.encode()
        yield f"{name} behind a tag", _ID3 + text.encode()
    mp3, wav = good["mp3 constant rate"], good["wav 16 bit"]
    yield "playlist after sound", mp3[:4000] + playlists["m3u8 path"].encode()
    yield "sound after playlist", playlists["m3u8 path"].encode() + mp3
    for magic in _FOREIGN:
        yield f"foreign {magic!r}", magic + bytes(4_000)
    yield "empty", b""
    yield "zeros", bytes(100_000)
    yield "ones", b"\xff" * 100_000
    yield "one byte", b"\x00"
    for channels, rate_hz, bits, length in (
        (1, 8_000, 16, 0xFFFFFFF0), (65_535, 8_000, 16, 1_000), (0, 8_000, 16, 1_000), (1, 0, 16, 1_000),
        (1, 2**32 - 1, 16, 1_000), (1, 8_000, 1, 1_000), (1, 8_000, 64, 1_000), (255, 192_000, 32, 1_000),
        (2, 1, 8, 1_000), (1, 8_000, 16, 0x7FFFFFFF),
    ):  # fmt: skip
        yield f"wav {channels} ch {rate_hz} Hz {bits} bit {length}", _wav(channels, rate_hz, bits, length)
    yield "wav in wav", wav[:44] + wav
    yield "ogg page that never ends", b"OggS\x00\x02" + b"\xff" * 4_000
    yield "ogg of one page", good["ogg vorbis"][:58]
    yield "flac header alone", good["flac"][:42]
    yield "m4a index that points far", _m4a_far(good["m4a aac"])
    yield "m4a deep boxes", b"\x00\x00\x00\x20ftypM4A \x00\x00\x00\x00M4A mp42isom\x00\x00\x00\x00" + _deep_boxes(2_000)
    yield "mp3 tag larger than the file", b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + mp3
    yield "mp3 tags in tags", _ID3 * 5_000 + mp3
    yield "bomb of silence", _silent_flac(hours=24, tells=True)
    yield "bomb that tells nothing", _silent_flac(hours=2, tells=False)
    yield "sample beside", sample("announcement_a").path.read_bytes()[:300]


_FOREIGN: Final = (
    b"\x89PNG\r\n\x1a\n", b"%PDF-1.7\n", b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"BZh9", b"\xfd7zXZ\x00",
    b"Rar!\x1a\x07", b"MZ\x90\x00", b"\x7fELF\x02", b"GIF89a", b"\xff\xd8\xff\xe0", b"MThd\x00\x00\x00\x06",
    b"\x1aE\xdf\xa3", b"FLV\x01", b".RMF", b"0&\xb2u\x8ef\xcf\x11", b"RIFF\xff\xff\xff\xffAVI ", b"#!AMR\n",
    b"wvpk", b"MAC ", b"caff", b"FORM\x00\x00\x00\x00AIFF",
)  # fmt: skip


def _wav(channels: int, rate_hz: int, bits: int, length: int) -> bytes:
    align = channels * bits // 8
    told = struct.pack("<HHIIHH", 1, channels, rate_hz, rate_hz * align & 0xFFFFFFFF, align & 0xFFFF, bits)
    chunks = b"fmt " + struct.pack("<I", len(told)) + told + b"data" + struct.pack("<I", length) + bytes(1_000)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks) & 0xFFFFFFFF) + b"WAVE" + chunks


def _m4a_far(content: bytes) -> bytes:
    """Its first chunk lies at the end of a 4 GB file, it says."""
    at = content.find(b"stco")
    return content if at < 0 else content[: at + 12] + b"\xff\xff\xff\xf0" + content[at + 16 :]


def _deep_boxes(depth: int) -> bytes:
    boxes = b""
    for _ in range(depth):
        boxes = struct.pack(">I", len(boxes) + 8) + b"moov" + boxes
    return boxes


def _silent_flac(*, hours: int, tells: bool) -> bytes:
    """Hours of digital silence by CONSTANT subframes (RFC 9639): a small file that is long."""
    rate_hz, block = 8_000, 65_535
    samples = hours * 3_600 * rate_hz if tells else 0
    info = struct.pack(">HH", block, block) + bytes(6)
    info += ((rate_hz << 44) | (15 << 36) | samples).to_bytes(8, "big") + bytes(16)
    frames = bytearray()
    for number in range(hours * 3_600 * rate_hz // block):
        head = b"\xff\xf8" + bytes([0b0111_0100, 0b0000_1000]) + chr(number).encode("utf-8", "surrogatepass")
        head += struct.pack(">H", block - 1)
        frame = head + bytes([_crc(head, 8, 0x07)]) + bytes(3)
        frames += frame + struct.pack(">H", _crc(frame, 16, 0x8005))
    return b"fLaC\x80" + len(info).to_bytes(3, "big") + info + bytes(frames)


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    value, top, mask = 0, 1 << (bits - 1), (1 << bits) - 1
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = ((value << 1) ^ polynomial if value & top else value << 1) & mask
    return value


# -- mutants -----------------------------------------------------------------------------------------------------------


def flipped(content: bytes, chance: random.Random, _good: dict[str, bytes]) -> bytes:
    """Bits flipped all over, one in ten thousand to one in twenty."""
    made = bytearray(content)
    for _ in range(max(1, round(len(made) * 10 ** chance.uniform(-4, -1.3)))):
        made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
    return bytes(made)


def head_flipped(content: bytes, chance: random.Random, _good: dict[str, bytes]) -> bytes:
    """Bits flipped where the headers are."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 24)):
        made[chance.randrange(min(256, len(made)))] ^= 1 << chance.randrange(8)
    return bytes(made)


def extreme(content: bytes, chance: random.Random, _good: dict[str, bytes]) -> bytes:
    """Numbers in the headers at the edge of what fits."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        width = chance.choice((2, 4, 8))
        value = chance.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * width
        at = chance.randrange(max(1, min(512, len(made) - width)))
        made[at : at + width] = value
    return bytes(made)


def cut(content: bytes, chance: random.Random, _good: dict[str, bytes]) -> bytes:
    """Cut off anywhere."""
    return content[: chance.randrange(len(content))]


def holed(content: bytes, chance: random.Random, _good: dict[str, bytes]) -> bytes:
    """A piece is missing in the middle, or is zeros."""
    start = chance.randrange(len(content))
    end = min(len(content), start + chance.randrange(1, 2_000))
    return content[:start] + (bytes(end - start) if chance.random() < 0.5 else b"") + content[end:]


def doubled(content: bytes, chance: random.Random, _good: dict[str, bytes]) -> bytes:
    """A piece comes again, up to a hundred times."""
    start = chance.randrange(len(content))
    piece = content[start : start + chance.randrange(1, 2_000)]
    return content[:start] + piece * chance.randint(2, 100) + content[start:]


def spliced(content: bytes, chance: random.Random, good: dict[str, bytes]) -> bytes:
    """The beginning of one format with the end of another."""
    other = good[chance.choice(sorted(name for name in good if not name.startswith("big")))]
    return content[: chance.randrange(len(content))] + other[chance.randrange(len(other)) :]


def noisy(content: bytes, chance: random.Random, _good: dict[str, bytes]) -> bytes:
    """A piece is noise."""
    start = chance.randrange(len(content))
    piece = chance.randbytes(chance.randrange(1, 4_000))
    return content[:start] + piece + content[start + len(piece) :]


_MUTATIONS: Final = (flipped, head_flipped, extreme, cut, holed, doubled, spliced, noisy)


def main(arguments: Sequence[str]) -> None:
    """One process' share, a line of JSON for each file."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    asyncio.run(_share(*json.loads(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
