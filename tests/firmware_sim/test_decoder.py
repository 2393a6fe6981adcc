"""Assets decode to what was encoded, from any second, in stretches that fit together."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from firmware_sim.decoder import STRETCH_SAMPLES, SoundLibrary
from firmware_sim.ear import heard
from tests.firmware_sim.tones import ogg_opus, sequence
from tests.firmware_sim.world import inline

PARTS = [((700, 1600), 4.0), ((500, 900), 4.0), ((1100, 2300), 4.0), ((900, 1300), 2.5)]


def asset(folder: Path) -> Path:
    path = folder / "a.opus"
    path.write_bytes(ogg_opus(sequence(PARTS)))
    return path


async def test_an_asset_opens_with_its_first_sample_and_ends_with_its_last(tmp_path: Path):
    library = SoundLibrary(inline)
    sound = library.give("a" * 64, asset(tmp_path).read_bytes())
    await sound.prepare(0, 60 * 48_000)
    assert sound.length is not None
    assert abs(sound.length - 14.5 * 48_000) <= 960
    whole = sound.read(0, sound.length)
    assert whole is not None
    found = heard(whole)
    assert [one.pair for one in found] == [pair for pair, _ in PARTS]
    assert [abs(one.start_ns / 1e6 - ms) < 2 for one, ms in zip(found, (0, 4_000, 8_000, 12_000), strict=True)]
    beyond = sound.read(sound.length, sound.length + 100)
    assert beyond is not None
    assert not beyond.any()
    library.close()


async def test_joining_in_the_middle_decodes_the_same_sound_as_from_the_start(tmp_path: Path):
    library = SoundLibrary(inline)
    path = asset(tmp_path)
    whole = library.give("a" * 64, path.read_bytes())
    await whole.prepare(0, 60 * 48_000)
    late = library.give("b" * 64, path.read_bytes())
    low, high = 2 * STRETCH_SAMPLES, 2 * STRETCH_SAMPLES + 96_000
    assert late.read(low, high) is None
    await late.prepare(low, high)
    one, other = whole.read(low, high), late.read(low, high)
    assert one is not None
    assert other is not None
    assert np.abs(one.astype(int) - other.astype(int)).mean() < 200
    library.close()


async def test_what_is_not_audio_is_broken_and_sounds_nothing(tmp_path: Path):
    library = SoundLibrary(inline)
    path = tmp_path / "x.opus"
    path.write_bytes(b"#EXTM3U\nfile:///etc/passwd\n" * 50)
    sound = library.give("c" * 64, path.read_bytes())
    await sound.prepare(0, 48_000)
    assert sound.is_broken
    assert sound.read(0, 48_000) is None
    library.close()


async def test_memory_is_bounded_and_what_was_dropped_is_decoded_again(tmp_path: Path):
    library = SoundLibrary(inline, keep_bytes=STRETCH_SAMPLES * 2)
    sound = library.give("a" * 64, asset(tmp_path).read_bytes())
    await sound.prepare(0, 48_000)
    await sound.prepare(STRETCH_SAMPLES, STRETCH_SAMPLES + 48_000)
    assert not sound.is_ready(0, 48_000)
    await sound.prepare(0, 48_000)
    again = sound.read(0, 48_000)
    assert again is not None
    assert [one.pair for one in heard(again)] == [(700, 1600)]
    library.close()
