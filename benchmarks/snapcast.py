"""The peer: one snapserver fed with a pulse in every second, and snapclients that play into FIFOs on the same host.

`skew(clients, seconds)` says how far apart the clients play the same pulse. A FIFO is opened for reading and writing by
us, so a client that restarts shows no false end. A pulse's instant is where it stands in the client's stream, laid on
the real clock by the times at which that stream was read around it (the median over a second, so our own reader's
hiccups count for nothing): a figure that favours the peer.
"""

from __future__ import annotations

import itertools
import os
import select
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

RATE_HZ = 48_000
_SAMPLE_BYTES = 2
_BLOCK = RATE_HZ // 50
_WARM_UP_S = 8
_PULSE_BLOCKS = 10


def missing() -> str | None:
    """The program that is not here, if one is not."""
    return next((name for name in ("snapserver", "snapclient") if shutil.which(name) is None), None)


def skew(clients: int = 3, seconds: int = 30) -> dict[str, Any]:
    """`{"skew_ms_p50", "skew_ms_p99", "pulses"}` over the pulses that every client played."""
    with tempfile.TemporaryDirectory(prefix="bench-snapcast-") as aside:
        folder = Path(aside)
        fifos = [folder / f"client-{number}" for number in range(clients)]
        for fifo in (folder / "source", *fifos):
            os.mkfifo(fifo)
        stop = threading.Event()
        port = _free_port()
        server = _server(folder, port)
        feeder = threading.Thread(target=_feed, args=(folder / "source", stop), name="snapcast.feed")
        heard: list[list[tuple[int, float]]] = [[] for _ in fifos]
        started: list[subprocess.Popen[bytes]] = []
        try:
            feeder.start()
            time.sleep(1.0)
            started = [_client(fifo, port, number) for number, fifo in enumerate(fifos)]
            pcm = _listen(fifos, heard, _WARM_UP_S + seconds)
        finally:
            stop.set()
            for process in (*started, server):
                process.terminate()
                process.wait(10)
            feeder.join(10)
    return _compare([_pulses(one, read) for one, read in zip(pcm, heard, strict=True)])


def outage(clients: int = 3, down_s: float = 3.0, seconds: float = 25.0) -> dict[str, Any]:
    """The server killed and started anew after `down_s`: for each client the longest time without a pulse."""
    with tempfile.TemporaryDirectory(prefix="bench-snapcast-") as aside:
        folder = Path(aside)
        fifos = [folder / f"client-{number}" for number in range(clients)]
        for fifo in (folder / "source", *fifos):
            os.mkfifo(fifo)
        stop = threading.Event()
        port = _free_port()
        servers = [_server(folder, port)]
        feeder = threading.Thread(target=_feed, args=(folder / "source", stop, _PULSE_BLOCKS), name="snapcast.feed")

        def kill() -> None:
            servers[-1].kill()
            servers[-1].wait(10)
            time.sleep(down_s)
            servers.append(_server(folder, port))

        killer = threading.Timer(_WARM_UP_S + 4.0, kill)
        heard: list[list[tuple[int, float]]] = [[] for _ in fifos]
        started: list[subprocess.Popen[bytes]] = []
        try:
            feeder.start()
            time.sleep(1.0)
            started = [_client(fifo, port, number) for number, fifo in enumerate(fifos)]
            killer.start()
            pcm = _listen(fifos, heard, _WARM_UP_S + seconds)
        finally:
            killer.join()
            stop.set()
            for process in (*started, *servers):
                process.terminate()
                process.wait(10)
            feeder.join(10)
    gaps, back = [], 0
    for sound, read in zip(pcm, heard, strict=True):
        at_s = [at for at in _read_at(sound, read) if at > read[0][1] + _WARM_UP_S / 2]
        pauses = [late - early - _PULSE_BLOCKS / 50 for early, late in itertools.pairwise(at_s)]
        gaps.append(max(pauses, default=float("inf")))
        back += bool(at_s) and at_s[-1] > read[0][1] + _WARM_UP_S + seconds - 5.0
    return {"clients": clients, "back": back, "gap_s": [round(gap, 2) for gap in gaps]}


def _read_at(pcm: bytes, read: list[tuple[int, float]]) -> list[float]:
    """When each pulse was read, good to a block: an outage has no steady clock to lay it on."""
    wave = np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2")
    loud = np.flatnonzero(wave > 8_000)
    starts = loud[np.flatnonzero(np.diff(loud, prepend=-RATE_HZ) > RATE_HZ // 10)]
    ends = np.array([end // _SAMPLE_BYTES for end, _ in read])
    return [read[int(np.searchsorted(ends, start, side="right"))][1] for start in starts if start < ends[-1]]


def _server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    config = folder / "snapserver.conf"
    config.write_text(
        f"[server]\ndatadir = {folder}\n[http]\nenabled = false\n[tcp]\nenabled = false\n"
        f"[stream]\nbind_to_address = 127.0.0.1\nport = {port}\nbuffer = 1000\ncodec = pcm\n"
        f"source = pipe://{folder}/source?name=pulses&sampleformat={RATE_HZ}:16:1&mode=read\n[logging]\nsink = null\n"
    )
    return subprocess.Popen(["snapserver", "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _client(fifo: Path, port: int, number: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *("snapclient", "-h", "127.0.0.1", "-p", str(port), "-i", str(number + 1), "--hostID", f"c{number}"),
            *("--player", f"file:filename={fifo},mode=a", "--logsink", "null"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _feed(fifo: Path, stop: threading.Event, every: int = 50) -> None:
    """Real time: a block of 20 ms every 20 ms, a pulse of 1 ms at the beginning of every second (50 blocks)."""
    handle = os.open(fifo, os.O_RDWR)
    pulse = np.zeros(_BLOCK, "<i2")
    pulse[:48] = 20_000
    began = time.monotonic()
    for number in itertools.count():
        if stop.wait(max(0.0, began + number / 50 - time.monotonic())):
            break
        os.write(handle, (pulse if number % every == 0 else np.zeros(_BLOCK, "<i2")).tobytes())
    os.close(handle)


def _listen(fifos: list[Path], heard: list[list[tuple[int, float]]], seconds: float) -> list[bytes]:
    handles = [os.open(fifo, os.O_RDWR | os.O_NONBLOCK) for fifo in fifos]
    pcm = [bytearray() for _ in fifos]
    until = time.monotonic() + seconds
    while (left_s := until - time.monotonic()) > 0:
        ready, _, _ = select.select(handles, [], [], left_s)
        for handle in ready:
            number = handles.index(handle)
            pcm[number] += os.read(handle, 1 << 16)
            heard[number].append((len(pcm[number]), time.monotonic()))
    for handle in handles:
        os.close(handle)
    return [bytes(one) for one in pcm]


def _pulses(pcm: bytes, read: list[tuple[int, float]]) -> list[float]:
    """When each pulse was played, in seconds of the real clock."""
    wave = np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2")
    loud = np.flatnonzero(wave > 8_000)
    starts = [int(part[0]) for part in np.split(loud, np.flatnonzero(np.diff(loud) > RATE_HZ // 10) + 1) if len(part)]
    ends = np.array([end // _SAMPLE_BYTES for end, _ in read])
    begins = np.array([at for _, at in read]) - ends / RATE_HZ
    found = []
    for start in starts:
        near = np.abs(ends - start) < RATE_HZ // 2
        if near.any():
            found.append(start / RATE_HZ + float(np.median(begins[near])))
    return found


def _compare(clients: list[list[float]]) -> dict[str, Any]:
    if not all(clients):
        return {"skew_ms_p50": None, "skew_ms_p99": None, "pulses": 0}
    since = max(found[0] for found in clients) + _WARM_UP_S / 2
    skews = []
    for at in (at for at in clients[0] if at > since):
        beside = [min(found, key=lambda other: abs(other - at)) for found in clients]
        if max(beside) - min(beside) < 0.5:
            skews.append((max(beside) - min(beside)) * 1000)
    return {
        "skew_ms_p50": round(float(np.percentile(skews, 50)), 3) if skews else None,
        "skew_ms_p99": round(float(np.percentile(skews, 99)), 3) if skews else None,
        "pulses": len(skews),
    }


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
