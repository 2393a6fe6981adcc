"""An upload becomes an asset: level, length, hash, and a report a person can act on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from broadcast_server.audio.assets import AssetStore
from broadcast_server.audio.ffmpeg import Sandbox, SandboxMode, find_ffmpeg, measure_pcm_argv
from broadcast_server.audio.formats import SAMPLE_RATE_HZ, to_float, to_pcm
from broadcast_server.audio.prepare import Prepared, decode_pcm, prepare, prepare_joined, prepare_pcm
from broadcast_server.domain.errors import Invalid, NotFound
from broadcast_server.supervise import InlineExecutor
from simulation.samples import all_samples, sample, tone_pcm
from tests.audio.conftest import Encode
from tests.support.tones import hear


def decoded(assets: AssetStore, prepared: Prepared) -> bytes:
    """An asset as a node's own decoder hears it."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=48_000)
    with av.open(str(assets.path(prepared.asset.hash))) as container:
        frames = [one for frame in container.decode(audio=0) for one in resampler.resample(frame)]
    frames += resampler.resample(None)
    return b"".join(bytes(frame.planes[0])[: frame.samples * 2] for frame in frames)


def loudness(pcm: bytes) -> tuple[float, float]:
    """(LUFS, dBTP) by ffmpeg's ebur128, not by ours."""
    argv = [str(find_ffmpeg()), *measure_pcm_argv()[1:]]
    told = subprocess.run(argv, input=pcm, capture_output=True, check=True).stderr.decode()
    summary = told[told.rindex("Summary:") :]
    return float(re.search(r"I:\s+(-?[\d.]+)", summary)[1]), float(re.search(r"Peak:\s+(-?[\d.]+)", summary)[1])


class Desk:
    def __init__(self, assets: AssetStore, sandbox: Sandbox) -> None:
        self.assets, self.sandbox, self.executor = assets, sandbox, InlineExecutor()

    async def upload(self, path: Path) -> Prepared:
        return await prepare(path, assets=self.assets, sandbox=self.sandbox, executor=self.executor)


@pytest.fixture
def desk(assets: AssetStore, sandbox: Sandbox) -> Desk:
    return Desk(assets, sandbox)


@pytest.mark.parametrize("name", ["announcement_a", "announcement_b", "play_now", "chime", "station_pull"])
async def test_mp3_opus_flac_and_wav_come_out_at_one_level_and_length(desk: Desk, name: str):
    one = sample(name)
    prepared = await desk.upload(one.path)
    pcm = decoded(desk.assets, prepared)
    assert abs(prepared.asset.duration_ms - one.duration_s * 1000) < 60
    assert round(len(pcm) / 96) == prepared.asset.duration_ms
    lufs, dbtp = loudness(pcm)
    assert abs(lufs + 16.0) <= 0.3
    assert dbtp <= -1.5
    if one.tones:
        [heard] = hear(pcm)
        assert heard.pair == one.tones
        assert heard.length_ms > prepared.asset.duration_ms - 150


@pytest.mark.parametrize("name", [one.name for one in all_samples() if one.name.startswith(("speech", "flood"))])
async def test_speech_with_hard_peaks_is_held_under_the_ceiling_and_still_loud(desk: Desk, name: str):
    lufs, dbtp = loudness(decoded(desk.assets, await desk.upload(sample(name).path)))
    assert -18.0 <= lufs <= -15.5
    assert dbtp <= 0.0  # −1.5 dBTP before the codec; a low rate overshoots


async def test_a_whisper_is_lifted_and_a_shout_lowered_to_the_same_level(desk: Desk, encode: Encode):
    levels = []
    for level in (0.01, 0.45):
        path = encode("take.wav", tone_pcm((700, 1300), 4.0, level=level), codec="pcm_s16le")
        prepared = await desk.upload(path)
        levels.append(loudness(decoded(desk.assets, prepared))[0])
    assert max(levels) - min(levels) < 0.3


async def test_the_same_recording_gives_the_same_hash_twice(assets: AssetStore, sandbox: Sandbox, tmp_path: Path):
    first = await Desk(assets, sandbox).upload(sample("announcement_a").path)
    elsewhere = AssetStore(tmp_path / "other", free_bytes=lambda _: 10**12)
    second = await Desk(elsewhere, sandbox).upload(sample("announcement_a").path)
    assert first == second
    assert list(assets.hashes()) == [first.asset.hash]


async def test_the_fallback_sandbox_gives_the_same_bytes(desk: Desk, assets: AssetStore):
    fallback = await Sandbox.probe(modes=[SandboxMode.SECCOMP])
    assert await Desk(assets, fallback).upload(sample("play_now").path) == await desk.upload(sample("play_now").path)


async def test_the_rate_is_what_a_sim_card_was_promised(desk: Desk, encode: Encode):
    asset = (await desk.upload(encode("long.wav", tone_pcm((500, 1900), 30.0), codec="pcm_s16le"))).asset
    kbps = asset.size_bytes * 8 / asset.duration_ms
    assert 20 <= kbps <= 26


async def test_silence_and_clipping_are_reported(desk: Desk, encode: Encode):
    clipped = np.clip(to_float(np.frombuffer(tone_pcm((500, 700), 2.0, level=0.9), "<i2")) * 3, -1, 1)
    pcm = bytes(96_000) + to_pcm(clipped).tobytes() + bytes(96_000 * 2) + tone_pcm((500, 700), 1.0) + bytes(48_000)
    report = (await desk.upload(encode("bad.wav", pcm, codec="pcm_s16le"))).report
    assert report.duration_ms == 6_500
    assert report.leading_silence_ms == 1_000
    assert report.longest_silence_ms == 2_000
    assert report.trailing_silence_ms == 500
    assert report.silence_ms == 3_500
    assert report.is_clipped
    assert report.clipped_samples > 1_000
    assert not report.is_silent


async def test_a_picture_and_names_inside_the_file_go_no_further(desk: Desk, tmp_path: Path):
    source = sample("announcement_a").path.read_bytes()
    title = b"TIT2" + (20).to_bytes(4, "big") + b"\x00\x00\x03" + b"<script>alert(1)</s"
    path = tmp_path / "tagged.mp3"
    path.write_bytes(b"ID3\x04\x00\x00" + bytes([0, 0, 0, len(title)]) + title + source[source.index(b"\xff\xfb") :])
    asset = (await desk.upload(path)).asset
    assert b"script" not in desk.assets.path(asset.hash).read_bytes()


async def test_speech_made_here_is_prepared_without_a_decoder(desk: Desk):
    prepared = await prepare_pcm(tone_pcm((900, 1600), 2.345), assets=desk.assets, executor=desk.executor)
    assert prepared.asset.duration_ms == 2_345
    assert hear(decoded(desk.assets, prepared))[0].pair == (900, 1600)
    with pytest.raises(Invalid, match="no_sound"):
        await prepare_pcm(b"", assets=desk.assets, executor=desk.executor)


async def test_long_material_is_joined_by_one_ffmpeg_and_each_part_stands_where_it_should(desk: Desk):
    parts = [(await desk.upload(sample(f"programme_item_{n}").path)).asset for n in (1, 2, 3)]
    joined = await prepare_joined(
        [part.hash for part in parts], assets=desk.assets, sandbox=desk.sandbox, executor=desk.executor
    )
    assert joined.asset.duration_ms == sum(part.duration_ms for part in parts)
    heard = hear(decoded(desk.assets, joined))
    assert [one.pair for one in heard] == [sample(f"programme_item_{n}").tones for n in (1, 2, 3)]
    starts_ms = [0, parts[0].duration_ms, parts[0].duration_ms + parts[1].duration_ms]
    assert all(abs(one.start_ms - start_ms) <= 60 for one, start_ms in zip(heard, starts_ms, strict=True))
    with pytest.raises(NotFound):
        await prepare_joined(["../../etc"], assets=desk.assets, sandbox=desk.sandbox, executor=desk.executor)


async def test_the_studio_gets_its_pcm_from_the_same_door(desk: Desk):
    pcm = await decode_pcm(
        sample("chime").path, assets=desk.assets, sandbox=desk.sandbox, executor=desk.executor, longest_s=600
    )
    assert len(pcm) == round(1.8 * SAMPLE_RATE_HZ) * 2
    with pytest.raises(Invalid, match="too_long"):
        await decode_pcm(
            sample("chime").path, assets=desk.assets, sandbox=desk.sandbox, executor=desk.executor, longest_s=1
        )
