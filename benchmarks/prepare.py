"""`prepare`: a 10 min 44.1 kHz stereo MP3 → a levelled asset, against a bare ffmpeg doing the same; memory for 2 h.

The peer is one ffmpeg that decodes, measures EBU R128 with true peaks and encodes Opus at the same rate and complexity:
decode + measure + encode, no levelling, no checks, no sandbox. CPU is user + system of the whole process tree (children
of the sandbox included), runs alternate, medians of each. Peak memory is the sum over the tree (RSS), sampled.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import ffmpeg
import numpy as np

from broadcast_server.audio.assets import AssetStore
from broadcast_server.audio.ffmpeg import Sandbox, encode_pcm_argv, find_ffmpeg
from broadcast_server.audio.formats import SAMPLE_RATE_HZ, Samples, to_pcm
from broadcast_server.audio.prepare import COMPLEXITY, KBPS, prepare
from broadcast_server.audio.speech import EspeakSpeaker, Voice
from broadcast_server.supervise import ThreadExecutor

REPEATS = 5
SHORT_S, LONG_S = 600, 7_200
NOTICE = (
    "Kính mời bà con đến họp tại nhà văn hóa lúc 19h30 ngày 05/3. Nội dung: bàn về phòng chống thiên tai, "
    "làm đường liên thôn dài 2,5 km và thu quỹ 50.000đ một hộ. Đề nghị bà con đi đông đủ, đúng giờ."
)
PR_SET_CHILD_SUBREAPER = 36


def bare_argv(source: Path, made: Path) -> list[str]:
    """The peer's argument list."""
    heard = ffmpeg.input(str(source))["a:0"].filter("aresample", SAMPLE_RATE_HZ)
    measured = heard.filter("aformat", channel_layouts="mono").filter("ebur128", peak="true", framelog="verbose")
    out = measured.output(
        str(made), acodec="libopus", audio_bitrate=f"{KBPS}k", compression_level=COMPLEXITY, vbr="constrained"
    )
    argv = out.overwrite_output().global_args("-nostdin", "-hide_banner", "-v", "error").compile()
    return [str(find_ffmpeg()), *argv[1:]]


def material(folder: Path, seconds: int, *, endless: bool = False) -> Path:
    """Speech with pauses, a little noise and a hum: what a commune records; 44.1 kHz stereo, 128 kbit/s."""
    speech = np.frombuffer(asyncio.run(EspeakSpeaker().say(NOTICE, Voice.NORTH)), "<i2").astype(np.float32) / 32_768
    once: Samples = np.concatenate((speech * 0.6, np.zeros(SAMPLE_RATE_HZ // 2, np.float32)))
    chance = np.random.default_rng(2)
    at_s = np.arange(len(once), dtype=np.float32) / SAMPLE_RATE_HZ
    once += (0.01 * np.sin(2 * np.pi * 100 * at_s)).astype(np.float32)
    once += (chance.standard_normal(len(once)) * 0.004).astype(np.float32)
    path = folder / f"{seconds}.mp3"
    argv = encode_pcm_argv(str(path), codec="libmp3lame", kbps=128, rate_hz=44_100, channels=2, endless=endless)
    block, left = to_pcm(once).tobytes(), seconds * SAMPLE_RATE_HZ * 2
    with subprocess.Popen([str(find_ffmpeg()), *argv[1:]], stdin=subprocess.PIPE) as encoder:
        assert encoder.stdin is not None
        while left > 0:
            encoder.stdin.write(block[:left])
            left -= len(block)
    return path


def repeated(source: Path, times: int) -> Path:
    """The same frames again and again."""
    content = source.read_bytes()
    path = source.with_name("long.mp3")
    with path.open("wb") as file:
        for _ in range(times):
            file.write(content)
    return path


async def prepare_once(source: Path, root: Path) -> dict[str, Any]:
    executor = ThreadExecutor(1, name="bench")
    sandbox = await Sandbox.probe()  # once, when a server starts
    start_s = cpu_s()
    prepared = await prepare(source, assets=AssetStore(root), sandbox=sandbox, executor=executor)
    executor.close()
    reap()
    told = {"cpu_s": cpu_s() - start_s, "start_cpu_s": start_s, "sandbox": sandbox.mode.value}
    return told | {"gain_db": prepared.report.gain_db, "duration_ms": prepared.asset.duration_ms}


def reap() -> None:
    """Wait for what the sandbox left to us, so that its CPU is counted."""
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def worker(source: str, root: str) -> None:
    """One preparation in a process of its own; children that the sandbox leaves to us are counted too."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    print(json.dumps(asyncio.run(prepare_once(Path(source), Path(root)))))


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def run_worker(source: Path, root: Path) -> tuple[dict[str, Any], int]:
    """What a worker told, and the peak memory of its process tree in bytes."""
    argv = [sys.executable, __file__, "--worker", str(source), str(root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=None) as process:
        peak, done = [0], threading.Event()
        watch = threading.Thread(target=watch_memory, args=(process.pid, peak, done), name="bench.memory")
        watch.start()
        out, _ = process.communicate()
        done.set()
        watch.join()
    assert process.returncode == 0, "the worker failed"
    return json.loads(out), peak[0]


def watch_memory(root_pid: int, peak: list[int], done: threading.Event) -> None:
    while not done.wait(0.05):
        peak[0] = max(peak[0], tree_rss_bytes(root_pid))


def tree_rss_bytes(root_pid: int) -> int:
    parents, sizes = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)], sizes[int(entry.name)] = (
                int(fields[1]),
                int(fields[21]) * os.sysconf("SC_PAGESIZE"),
            )
    total, todo = 0, [root_pid]
    while todo:
        pid = todo.pop()
        total += sizes.get(pid, 0)
        todo += [child for child, parent in parents.items() if parent == pid]
    return total


def run_bare(source: Path, made: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(bare_argv(source, made), check=True, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run() -> dict[str, Any]:
    """The figures and the bars."""
    folder = Path(tempfile.mkdtemp(prefix="prepare-"))
    try:
        short = material(folder, SHORT_S)
        # A second less each time: MP3's padding must not add up to more than 2 h.
        long = repeated(material(folder, SHORT_S - 1, endless=True), LONG_S // SHORT_S)
        ours: list[float] = []
        bare: list[float] = []
        told: dict[str, Any] = {}
        for repeat in range(REPEATS):
            told, _ = run_worker(short, folder / f"assets{repeat}")
            ours.append(told["cpu_s"])
            bare.append(run_bare(short, folder / "bare.opus"))
        long_told, peak_bytes = run_worker(long, folder / "assets-long")
    finally:
        shutil.rmtree(folder)
    ours_s, bare_s = statistics.median(ours), statistics.median(bare)
    ratio, peak_mb = ours_s / bare_s, peak_bytes / 1e6
    return {
        "name": "prepare",
        "figures": {
            "ffmpeg": str(find_ffmpeg()),
            "opus_complexity": COMPLEXITY,
            "repeats": REPEATS,
            "sandbox": told["sandbox"],
            "prepare_cpu_s": round(ours_s, 2),
            "prepare_cpu_all_s": [round(one, 2) for one in ours],
            "program_start_cpu_s": round(told["start_cpu_s"], 2),
            "bare_ffmpeg_cpu_s": round(bare_s, 2),
            "bare_ffmpeg_cpu_all_s": [round(one, 2) for one in bare],
            "cpu_ratio": round(ratio, 3),
            "gain_db": told["gain_db"],
            "two_hours_peak_mb": round(peak_mb, 1),
            "two_hours_cpu_s": round(long_told["cpu_s"], 1),
        },
        "bars": [
            {"what": "CPU of 10 min, against bare ffmpeg", "value": round(ratio, 3), "bar": 1.2, "holds": ratio <= 1.2},
            {"what": "peak memory of 2 h, MB", "value": round(peak_mb, 1), "bar": 150, "holds": peak_mb <= 150},
        ],
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:4])
    else:
        print(json.dumps(run(), indent=2))
