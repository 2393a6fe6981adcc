"""Makes every sound of this folder and `manifest.json`: `python audio_samples/generate.py`.

Nothing here was recorded: tones and music are arithmetic, speech is espeak-ng's Vietnamese voice, and everything is
marked "mô phỏng". A sample that could pass for a real alarm opens with "Đây là bản thử". Station samples are constant
bit rate without a Xing header, so a demo station can play them round and round.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from broadcast_server.audio.ffmpeg import encode_pcm_argv, find_ffmpeg
from broadcast_server.audio.formats import SAMPLE_RATE_HZ, to_pcm
from broadcast_server.audio.speech import EspeakSpeaker, Voice
from simulation.samples import tone_pcm

HERE = Path(__file__).resolve().parent
LICENCE = "CC0-1.0, mô phỏng"
Sound = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a file is written."""

    suffix: str
    codec: str
    kbps: int
    rate_hz: int = SAMPLE_RATE_HZ
    channels: int = 1


WAV = Encoding("wav", "pcm_s16le", 0, 16_000)
FLAC = Encoding("flac", "flac", 0, 16_000)
OPUS = Encoding("opus", "libopus", 24)
MP3 = Encoding("mp3", "libmp3lame", 48, 44_100)
STATION_STEREO = Encoding("mp3", "libmp3lame", 64, 44_100, 2)
STATION_MONO = Encoding("mp3", "libmp3lame", 32, 32_000)

# name → (tone pair in Hz, seconds, encoding). Every pair is another one.
TONES: dict[str, tuple[tuple[int, int], float, Encoding]] = {
    "announcement_a": ((500, 1100), 8.0, MP3),
    "announcement_b": ((700, 1300), 8.0, OPUS),
    "announcement_c": ((1100, 1900), 8.0, OPUS),
    "play_now": ((900, 1600), 6.0, FLAC),
    "station_pull": ((500, 1900), 20.0, STATION_STEREO),
    "station_push": ((700, 2300), 20.0, STATION_MONO),
    "station_reserve": ((1300, 1900), 20.0, STATION_MONO),
    "live_voice": ((900, 1300), 8.0, OPUS),
    "emergency_test": ((1100, 2300), 8.0, OPUS),
    "programme_item_1": ((500, 1300), 5.0, MP3),
    "programme_item_2": ((700, 1600), 5.0, OPUS),
    "programme_item_3": ((900, 1900), 5.0, OPUS),
}

SPEECH: dict[str, tuple[str, Voice]] = {
    "speech_meeting": (
        "Kính mời bà con thôn Đông đến họp tại nhà văn hóa lúc 19h30 ngày 05/3. UBND xã trân trọng thông báo.",
        Voice.NORTH,
    ),
    "speech_vaccination": (
        "Trạm y tế xã tổ chức tiêm chủng cho trẻ dưới 5 tuổi từ 7h30 đến 11h, mang theo sổ tiêm.",
        Voice.SOUTH,
    ),
    "speech_introduction": ("Sau đây là chương trình phát thanh của xã. Mời bà con cùng nghe.", Voice.CENTRAL),
    "flood_warning_test": (
        (
            "Đây là bản thử. Mực nước sông đang lên nhanh, đã đạt 3,5 m. "
            "Bà con vùng trũng chuẩn bị di dời đến nơi an toàn. Đây là bản thử, không phải báo động thật."
        ),
        Voice.NORTH,
    ),
}


def seconds_of(count: int) -> Sound:
    """The instants of `count` samples, in seconds."""
    return np.arange(count, dtype=np.float64) / SAMPLE_RATE_HZ


def struck(tone_hz: float, length_s: float, level: float) -> Sound:
    """One struck note, dying away."""
    at_s = seconds_of(round(length_s * SAMPLE_RATE_HZ))
    rise = np.minimum(1.0, at_s / 0.005)
    return level * rise * np.exp(-at_s * 4.0 / length_s) * np.sin(2.0 * np.pi * tone_hz * at_s)


def placed(length_s: float, *notes: tuple[float, Sound]) -> Sound:
    """Notes laid over one another, each from its second on."""
    sound = np.zeros(round(length_s * SAMPLE_RATE_HZ))
    for start_s, note in notes:
        first = round(start_s * SAMPLE_RATE_HZ)
        heard = note[: max(0, len(sound) - first)]
        sound[first : first + len(heard)] += heard
    return sound


def chime() -> Sound:
    """Ding, dong: what opens and closes an announcement."""
    return placed(1.8, (0.0, struck(659.26, 1.2, 0.5)), (0.55, struck(523.25, 1.25, 0.5)))


def sting() -> Sound:
    """Three quick rising notes between two items."""
    return placed(1.2, *((0.18 * n, struck(hz, 0.7, 0.4)) for n, hz in enumerate((523.25, 659.26, 783.99))))


def signature_tune() -> Sound:
    """A pentatonic phrase that opens a programme."""
    phrase = (392.0, 440.0, 523.25, 587.33, 659.26, 587.33, 523.25, 659.26, 783.99, 659.26, 587.33, 523.25)
    return placed(5.0, *((0.33 * n, struck(hz, 0.9, 0.35)) for n, hz in enumerate(phrase)))


def bed() -> Sound:
    """A soft chord that swells slowly, to lie under a voice; its notes stay under the lowest tone of the grid."""
    at_s = seconds_of(8 * SAMPLE_RATE_HZ)
    swell = 0.75 + 0.25 * np.sin(2.0 * np.pi * at_s / 4.0)
    edges = np.minimum(1.0, np.minimum(at_s, at_s[::-1]) / 0.05)
    chord = sum((np.sin(2.0 * np.pi * hz * at_s) for hz in (196.0, 246.94, 293.66, 392.0)), np.zeros(len(at_s)))
    return 0.09 * swell * edges * chord


MUSIC: dict[str, tuple[Callable[[], Sound], Encoding]] = {
    "chime": (chime, WAV),
    "sting": (sting, WAV),
    "signature_tune": (signature_tune, OPUS),
    "bed": (bed, OPUS),
}


def write(name: str, pcm: bytes, encoding: Encoding) -> Path:
    """Encode PCM into this folder."""
    path = HERE / f"{name}.{encoding.suffix}"
    argv = encode_pcm_argv(
        str(path),
        codec=encoding.codec,
        kbps=encoding.kbps,
        rate_hz=encoding.rate_hz,
        channels=encoding.channels,
        endless=name.startswith("station_"),
    )
    subprocess.run([str(find_ffmpeg()), *argv[1:]], input=pcm, check=True)
    return path


def entry(path: Path, pcm: bytes, tones: tuple[int, int] | None, text: str | None) -> dict[str, object]:
    """One line of the manifest."""
    return {
        "name": path.stem,
        "file": path.name,
        "tones_hz": list(tones) if tones else None,
        "duration_s": round(len(pcm) / 2 / SAMPLE_RATE_HZ, 3),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": LICENCE,
        "text": text,
    }


async def main() -> None:
    """Make all of it."""
    made: list[dict[str, object]] = []
    for name, (pair, seconds, encoding) in TONES.items():
        pcm = tone_pcm(pair, seconds)
        made.append(entry(write(name, pcm, encoding), pcm, pair, None))
    for name, (compose, encoding) in MUSIC.items():
        pcm = to_pcm(compose().astype(np.float32)).tobytes()
        made.append(entry(write(name, pcm, encoding), pcm, None, None))
    speaker = EspeakSpeaker()
    for name, (text, voice) in SPEECH.items():
        pcm = await speaker.say(text, voice)
        made.append(entry(write(name, pcm, OPUS), pcm, None, text))
    made.sort(key=lambda one: str(one["name"]))
    manifest = json.dumps({"samples": made}, ensure_ascii=False, indent=2)
    (HERE / "manifest.json").write_text(manifest + "\n", encoding="utf-8")
    total_bytes = sum(path.stat().st_size for path in HERE.iterdir() if path.is_file())
    print(f"{len(made)} samples, {total_bytes / 1000:.0f} kB")


if __name__ == "__main__":
    asyncio.run(main())
