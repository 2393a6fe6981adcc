"""What is said to ffmpeg, word for word, and that its sandbox holds."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from broadcast_server.audio import jail
from broadcast_server.audio.ffmpeg import (
    LIVE,
    FileFormat,
    Limits,
    Sandbox,
    SandboxMode,
    StreamFormat,
    concat_files_argv,
    decode_file_argv,
    decode_stream_argv,
    encode_pcm_argv,
    find_ffmpeg,
    measure_pcm_argv,
    probe_argv,
)
from broadcast_server.domain.errors import Unavailable
from simulation.samples import sample
from tests.support.tones import hear

BRISK = Limits()
CODECS = (
    "mp3,mp3float,aac,flac,vorbis,opus,alac,pcm_u8,pcm_s16le,pcm_s24le,pcm_s32le,pcm_f32le,pcm_f64le,pcm_alaw,pcm_mulaw"
)


def test_probing_says():
    assert probe_argv("/in0", FileFormat.MP3) == [
        "ffmpeg", "-f", "mp3", "-codec_whitelist", CODECS, "-format_whitelist", "mp3",
        "-protocol_whitelist", "file,pipe", "-i", "file:/in0",
        "-f", "null", "-c", "copy", "-map", "0:a:0", "-t", "0.001", "pipe:1",
        "-nostdin", "-hide_banner", "-nostats", "-v", "info",
    ]  # fmt: skip


def test_decoding_a_file_says():
    assert decode_file_argv("/in0", FileFormat.FLAC, longest_s=7201, output="pipe:9") == [
        "ffmpeg", "-f", "flac", "-codec_whitelist", CODECS, "-format_whitelist", "flac",
        "-protocol_whitelist", "file,pipe", "-i", "file:/in0",
        "-f", "s16le", "-ac", "1", "-acodec", "pcm_s16le", "-ar", "48000", "-dn", "-fs", "691296000",
        "-map", "0:a:0", "-map_chapters", "-1", "-map_metadata", "-1", "-sn", "-t", "7201", "-threads", "1", "-vn",
        "pipe:9", "-nostdin", "-hide_banner", "-nostats", "-v", "error",
    ]  # fmt: skip


def test_decoding_a_live_stream_says():
    assert decode_stream_argv("mp3") == [
        "ffmpeg", "-f", "mp3", "-analyzeduration", "0", "-format_whitelist", "mp3", "-probesize", "4096",
        "-protocol_whitelist", "pipe", "-threads", "1", "-i", "pipe:0",
        "-map", "0:a:0", "-f", "s16le", "-ac", "1", "-acodec", "pcm_s16le", "-ar", "48000", "-dn",
        "-flush_packets", "1", "-map_chapters", "-1", "-map_metadata", "-1", "-sn", "-vn", "pipe:1",
        "-nostdin", "-hide_banner", "-nostats", "-v", "error",
    ]  # fmt: skip


def test_joining_files_says():
    argv = concat_files_argv([("/in0", FileFormat.OGG), ("/in1", FileFormat.OGG)], longest_s=10)
    assert argv[argv.index("-filter_complex") + 1] == (
        "[0:a:0]aresample=48000[s0];[s0]aformat=channel_layouts=mono[s1];"
        "[1:a:0]aresample=48000[s2];[s2]aformat=channel_layouts=mono[s3];[s1][s3]concat=a=1:n=2:v=0[s4]"
    )
    assert [argv[at + 1] for at, word in enumerate(argv) if word == "-i"] == ["file:/in0", "file:/in1"]


@pytest.mark.parametrize("argv", [
    probe_argv("x", FileFormat.WAV),
    decode_file_argv("x", FileFormat.WAV, longest_s=1),
    concat_files_argv([("x", FileFormat.OGG)], longest_s=1),
    *(decode_stream_argv(kind) for kind in StreamFormat),
])  # fmt: skip
def test_nothing_that_reads_strange_bytes_may_guess_or_use_the_network(argv: list[str]):
    inputs = argv[: len(argv) - argv[::-1].index("-i")]
    assert "-f" in inputs
    assert "-format_whitelist" in inputs
    assert inputs[inputs.index("-protocol_whitelist") + 1] in {"pipe", "file,pipe"}
    assert argv[argv.index("-i") + 1] in {"file:x", "pipe:0"}
    assert "-nostdin" in argv


def test_a_pcm_second_opinion_is_given_on_stderr():
    assert "ebur128=framelog=verbose:peak=true" in measure_pcm_argv()[measure_pcm_argv().index("-filter_complex") + 1]


def test_a_station_file_carries_no_headers():
    argv = encode_pcm_argv("s.mp3", codec="libmp3lame", kbps=64, endless=True)
    assert argv[argv.index("-write_xing") + 1] == "0"


def test_a_stream_of_no_known_kind_is_no_stream():
    with pytest.raises(ValueError, match="hls"):
        decode_stream_argv("hls")


# ---------------------------------------------------------------------------------------------------------- sandbox


@pytest.fixture(params=list(SandboxMode))
async def each_sandbox(request: pytest.FixtureRequest) -> Sandbox:
    try:
        return await Sandbox.probe(modes=[request.param])
    except Unavailable:
        pytest.skip(f"{request.param} is refused here")


async def said(sandbox: Sandbox, argv: list[str], reads: tuple[Path, ...] = (), limits: Limits = BRISK) -> str:
    child = sandbox.child(argv, name="test.child", reads=reads, limits=limits, stdout=False)
    async with child:
        code = await child.wait()
    return f"{code} " + " | ".join(child.stderr_tail)


async def test_a_file_is_decoded_in_either_sandbox(each_sandbox: Sandbox):
    one = sample("announcement_a")
    [name] = each_sandbox.names([one.path])
    child = each_sandbox.child(
        decode_file_argv(name, FileFormat.MP3, longest_s=60), name="test.decode", reads=[one.path]
    )
    async with child:
        pcm = await child.stdout.read(-1)
        assert await child.wait() == 0
    assert hear(pcm)[0].pair == one.tones


async def test_a_stream_is_decoded_in_either_sandbox(each_sandbox: Sandbox):
    one = sample("station_pull")
    child = each_sandbox.child(decode_stream_argv("mp3"), name="test.stream", keep_stdin=True, limits=LIVE)

    async def feed() -> None:
        await child.write(one.path.read_bytes())
        await child.end_input()

    async with child:
        feeding = asyncio.create_task(feed(), name="test.feed")
        pcm = await child.stdout.read(-1)
        await feeding
        assert await child.wait() == 0
    [heard] = hear(pcm)
    assert heard.pair == one.tones
    assert heard.length_ms > 19_000


async def test_it_cannot_reach_a_server_that_listens_on_this_very_machine(each_sandbox: Sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        told = await said(each_sandbox, ["ffmpeg", "-v", "error", "-i", url, "-f", "null", "-"])
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not told.startswith("0 ")


async def test_in_bubblewrap_it_does_not_even_see_other_files(tmp_path: Path):
    sandbox = await probed(SandboxMode.BUBBLEWRAP)
    secret = tmp_path / "secret.wav"
    secret.write_bytes(sample("chime").path.read_bytes())
    told = await said(sandbox, probe_argv(str(secret), FileFormat.WAV))
    assert "No such file" in told


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:8,\n{0}\n", "ffconcat version 1.0\nfile {0}\n", "v=0\n{0}\n"])
@pytest.mark.parametrize("kind", FileFormat)
async def test_a_playlist_given_to_any_decoder_plays_nothing(
    each_sandbox: Sandbox, tmp_path: Path, text: str, kind: FileFormat
):
    path = tmp_path / "upload.mp3"
    path.write_text(text.format(sample("announcement_a").path))
    [name] = each_sandbox.names([path])
    child = each_sandbox.child(decode_file_argv(name, kind, longest_s=60), name="test.decode", reads=[path])
    async with child:
        assert await child.stdout.read(-1) == b""


async def test_it_is_stopped_when_it_burns_too_much(each_sandbox: Sandbox):
    endless = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "anoisesrc", "-f", "null", "-"]
    async with asyncio.timeout(20):
        told = await said(each_sandbox, endless, limits=Limits(cpu_s=1))
    assert not told.startswith("0 ")


async def test_it_cannot_fill_the_disk(each_sandbox: Sandbox, tmp_path: Path):
    with (tmp_path / "out").open("wb") as out:
        child = each_sandbox.child(
            ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "anoisesrc", "-f", "s16le", f"pipe:{out.fileno()}"],
            name="test.fill",
            stdout=False,
            limits=Limits(file_bytes=1_000_000),
            pass_fds=[out.fileno()],
        )
        async with asyncio.timeout(20), child:
            assert await child.wait() != 0
    assert (tmp_path / "out").stat().st_size <= 1_000_000


async def test_no_secret_of_the_server_stands_in_its_environment(each_sandbox: Sandbox):
    os.environ["LOA_TEST_SECRET"] = "hush"
    try:
        child = each_sandbox.child(["ffmpeg", "-version"], name="test.env", stdout=False)
        assert "LOA_TEST_SECRET" not in (child._env or os.environ)
    finally:
        del os.environ["LOA_TEST_SECRET"]


async def test_without_any_sandbox_nothing_is_decoded():
    with pytest.raises(Unavailable, match="sandbox_missing"):
        await Sandbox.probe(modes=[])


async def test_a_missing_program_is_said():
    with pytest.raises(Unavailable, match="sandbox_missing"):
        await Sandbox.probe(Path("/nowhere/ffmpeg"))
    assert find_ffmpeg().name.startswith("ffmpeg")


@pytest.mark.parametrize(("attempt", "answer"), [
    ("import socket; socket.socket()", "PermissionError"),
    ("import socket; socket.socketpair()", "PermissionError"),
    ("import os; os.fork()", "PermissionError"),
    ("import subprocess; subprocess.run(['/bin/true'])", "PermissionError"),
    ("import os; os.unshare(0x10000000) if hasattr(os, 'unshare') else os.fork()", "PermissionError"),
    ("import threading; t = threading.Thread(target=print); t.start(); t.join()", ""),
])  # fmt: skip
async def test_the_jail_lets_threads_live_and_nothing_out(attempt: str, answer: str):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", jail.__file__, "as=1500000000", "--", sys.executable, "-c", attempt,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, told = await process.communicate()
    assert answer in told.decode()
    assert (process.returncode == 0) == (answer == "")


def test_the_filter_knows_both_machines_and_no_other():
    assert len(jail.filter_program("x86_64")) % 8 == 0
    assert jail.filter_program("x86_64") != jail.filter_program("aarch64")
    with pytest.raises(KeyError):
        jail.filter_program("mips")


async def probed(mode: SandboxMode) -> Sandbox:
    try:
        return await Sandbox.probe(modes=[mode])
    except Unavailable:
        pytest.skip(f"{mode} is refused here")
