"""The folder of sounds is what its manifest says, and every programme is known by its tones after any codec."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from broadcast_server.audio.ffmpeg import FileFormat, decode_file_argv, encode_pcm_argv, find_ffmpeg
from simulation.samples import SAMPLES_DIR, TONES_HZ, Sample, all_samples, sample, tone_pcm
from tests.support.tones import hear, loudest_pair

PROGRAMMES = [one for one in all_samples() if one.tones]
PAIRS = [(low, high) for at, low in enumerate(TONES_HZ) for high in TONES_HZ[at + 1 :]]


def ffmpeg(argv: list[str], given: bytes = b"") -> bytes:
    return subprocess.run([find_ffmpeg(), *argv[1:]], input=given, capture_output=True, check=True).stdout


def kind_of(path: Path) -> FileFormat:
    return FileFormat.OGG if path.suffix == ".opus" else FileFormat(path.suffix[1:])


def named(one: Sample) -> str:
    return one.name


def test_the_manifest_tells_every_file_and_its_hash():
    files = {path.name for path in SAMPLES_DIR.iterdir() if path.suffix in {".mp3", ".opus", ".wav", ".flac"}}
    assert {one.path.name for one in all_samples()} == files
    for one in all_samples():
        assert hashlib.sha256(one.path.read_bytes()).hexdigest() == one.sha256


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in SAMPLES_DIR.iterdir() if path.is_file()) < 1_500_000


def test_no_two_programmes_share_a_pair():
    assert len(PROGRAMMES) >= 9
    assert len({one.tones for one in PROGRAMMES}) == len(PROGRAMMES)


def test_what_could_pass_for_an_alarm_says_first_that_it_is_a_trial():
    assert (sample("flood_warning_test").text or "").startswith("Đây là bản thử")


@pytest.mark.parametrize("one", PROGRAMMES, ids=named)
def test_a_file_sounds_its_pair_from_beginning_to_end(one: Sample):
    pcm = ffmpeg(decode_file_argv(str(one.path), kind_of(one.path), longest_s=60))
    assert abs(len(pcm) / 96_000 - one.duration_s) < 0.1
    [stretch] = hear(pcm)
    assert stretch.pair == one.tones
    assert stretch.length_ms > one.duration_s * 1000 - 120


@pytest.mark.parametrize("one", [one for one in all_samples() if not one.tones], ids=named)
def test_speech_and_music_are_mistaken_for_no_programme(one: Sample):
    assert hear(ffmpeg(decode_file_argv(str(one.path), kind_of(one.path), longest_s=60))) == []


@pytest.mark.parametrize(("codec", "kbps", "rate_hz", "suffix"), [
    ("libopus", 16, 48_000, "opus"), ("libopus", 24, 48_000, "opus"), ("libmp3lame", 32, 32_000, "mp3"),
])  # fmt: skip
def test_every_pair_of_the_grid_is_recognised_after_a_codec(
    tmp_path: Path, codec: str, kbps: int, rate_hz: int, suffix: str
):
    row = b"".join(tone_pcm(pair, 0.5) for pair in PAIRS)
    path = tmp_path / f"row.{suffix}"
    ffmpeg(encode_pcm_argv(str(path), codec=codec, kbps=kbps, rate_hz=rate_hz), row)
    heard = hear(ffmpeg(decode_file_argv(str(path), kind_of(path), longest_s=60)))
    assert [stretch.pair for stretch in heard] == PAIRS
    assert max(abs(stretch.start_ms - at * 500) for at, stretch in enumerate(heard)) <= 40


def test_the_ear_hears_a_pair_under_noise_and_none_in_silence():
    assert loudest_pair(tone_pcm((700, 1600), 1.0, level=0.02)) == (700, 1600)
    assert loudest_pair(bytes(96_000)) is None
