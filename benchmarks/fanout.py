"""`fanout`: what one 24 kbit/s relay to 1 000 and 5 000 listeners costs, and what icecast2 needs for the same.

Fan-out alone: our stream (pacing, batches, signature, MQTT client: the real `RelayStream`, its encoder replaced by
ready packets) and the embedded mosquitto, against icecast2 fed with the same bytes per second. Whole chain: the real
engine pulling a simulated MP3 station, with its decoder child, encoder and broker, against icecast2 with one ffmpeg
that makes the same 24 kbit/s from the same MP3. CPU is what the scheduler says of every thread
(`/proc/PID/task/*/schedstat`); latency is source to node for each 20 ms of sound, batching included. Runs alternate;
figures are medians.

`python -m benchmarks.fanout` prints the JSON; `--quick` takes one short run of each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.listeners import CELL, CELL_BYTES, MAGIC

HERE = Path(__file__).resolve().parents[1]
STREAM = "fanout"
TOPIC = f"loa/1/stream/{STREAM}/audio"
SOURCE_STEP_S = 0.1
NOBODY = 65_534


# ----------------------------------------------------------------------------------------------------- measurements


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds of all threads of the processes, as the scheduler counts them (ended threads' time is not in it)."""
    total_ns = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total_ns += int((task / "schedstat").read_text("ascii").split()[0])
    return total_ns / 1e9


def family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text("ascii", "replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children.get(one, [])
    return found


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Run:
    """One measured window."""

    seconds: float
    cpu: dict[str, float]
    latencies_ms: list[float]
    bytes_per_listener_s: float
    complete: float
    """Sound received by all listeners, of what was sent."""

    @property
    def cpu_percent(self) -> float:
        return sum(self.cpu.values()) / self.seconds * 100


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def latencies(rows: Sequence[Sequence[float]], t0_s: float) -> list[float]:
    """Milliseconds from a packet's last sample leaving the source to its arrival, for each 20 ms received."""
    # Ten points of each row stand for its packets: exact enough, and 5 000 listeners stay handy.
    told = []
    for arrived_s, first, samples in rows:
        for tenth in range(10):
            made_s = t0_s + (first + samples * (tenth + 1) / 10) / 48_000
            told.append((arrived_s - made_s) * 1000)
    return told


class Process:
    """A helper process that talks in JSON lines and ends when its input does."""

    def __init__(self, *argv: str, user: int | None = None) -> None:
        rights: dict[str, Any] = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        self._popen = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None, cwd=HERE, text=True, **rights
        )
        self.pid = self._popen.pid

    def say(self, line: str) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(line + "\n")
        self._popen.stdin.flush()

    def line(self) -> dict[str, Any]:
        assert self._popen.stdout is not None
        told = self._popen.stdout.readline()
        if not told:
            raise RuntimeError(f"{self._popen.args} ended")
        answer: dict[str, Any] = json.loads(told)
        return answer

    def end(self) -> dict[str, Any] | None:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.close()
        told = self._popen.stdout.read()
        self._popen.wait(30)
        return json.loads(told.splitlines()[-1]) if told.strip() else None

    def kill(self, *, at_once: bool = False) -> None:
        if self._popen.poll() is None and not at_once:
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(5)
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


# ------------------------------------------------------------------------------------------------------------- ours


async def serve_ours(arguments: argparse.Namespace) -> None:
    """In a process of its own: broker child and publisher, as the server has them; prints pids and t0."""
    from broadcast_server.audio.ffmpeg import Sandbox
    from broadcast_server.fetch import Fetcher
    from broadcast_server.mqtt.broker import MosquittoBroker, password_line
    from broadcast_server.mqtt.paho_bus import PahoBus
    from broadcast_server.relay.engine import Engine, FeedKind, StreamSpec
    from broadcast_server.relay.pacing import choose_batch
    from broadcast_server.relay.stream import PacketEncoder, RelayStream
    from broadcast_server.signer.keys import FileSigner
    from broadcast_server.supervise import Supervisor, SystemChance, SystemClock, ThreadExecutor
    from simulation.samples import tone_pcm

    class Ready(RelayStream):
        """Everything of a stream but the encoding."""

        packets: tuple[bytes, ...] = ()

        async def encode(self, encoder: PacketEncoder, pcm: bytes) -> list[bytes]:
            _ = encoder
            return [self.packets[at % len(self.packets)] for at in range(len(pcm) // 1920)]

    class Live:
        """A decoder's output in real time, without a decoder."""

        began_s = 0.0
        status = None

        async def blocks(self) -> AsyncGenerator[bytes, None]:
            block = bytes(int(SOURCE_STEP_S * 96_000))
            self.began_s = time.monotonic()
            count = 0
            while True:
                count += 1
                await asyncio.sleep(max(0.0, self.began_s + count * SOURCE_STEP_S - time.monotonic()))
                yield block

    clock, chance = SystemClock(), SystemChance()
    folder = Path(tempfile.mkdtemp(prefix="loa-fanout-"))
    supervisor = Supervisor(clock=clock, chance=chance)
    users = {name: password_line(name, "benchmark", chance.token_bytes(12)) for name in ("server", "node")}
    acl = ("user server", "topic readwrite loa/1/#", "user node", "topic read loa/1/#")
    broker = MosquittoBroker(  # on loopback without TLS, as the peers; all listeners are one user here
        data_dir=folder / "broker",
        acl=acl,
        supervisor=supervisor,
        clock=clock,
        chance=chance,
        users=users,
        extra=("use_username_as_clientid false",),
    )
    address = await broker.start()
    bus = PahoBus(address.host, address.port, clock=clock, chance=chance, user="server", password="benchmark")
    await bus.start()
    signer = FileSigner(folder / "keys", chance=chance, path_of=lambda unit: (unit,))
    executor = ThreadExecutor(2, name="encode")
    print(json.dumps({"broker": broker.pid, "port": address.port}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)  # the listeners are there
    told: dict[str, Any] = {}
    if arguments.url:
        fetcher = Fetcher(clock=clock, allow_private=frozenset({arguments.url.split("/")[2]}))
        engine = Engine(
            bus=bus,
            signer=signer,
            fetcher=fetcher,
            sandbox=await Sandbox.probe(),
            clock=clock,
            chance=chance,
            executor=executor,
        )
        spec = StreamSpec(STREAM, "feed", FeedKind.PULL, 1, arguments.count, url=arguments.url)
        await engine.reconcile({STREAM: spec})
        print(json.dumps(told), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        print(json.dumps({"status": repr(engine.status())}), file=sys.stderr)
        await engine.close()
    else:
        source = Live()
        stream = Ready(
            STREAM,
            source,  # type: ignore[arg-type]  # it has no state to tell
            epoch=1,
            packets_per_batch=choose_batch(arguments.count),
            bus=bus,
            signer=signer,
            clock=clock,
            chance=chance,
            executor=executor,
        )
        encoder = PacketEncoder()
        stream.packets = tuple(encoder.encode(tone_pcm((500, 1900), 10.0)))
        task = asyncio.create_task(stream.run(), name="fanout.stream")
        await asyncio.sleep(0.5)
        print(json.dumps({"t0_s": source.began_s}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        task.cancel()
        await asyncio.wait([task])
    await bus.close()
    await broker.close()
    await supervisor.close()
    executor.close()
    shutil.rmtree(folder, ignore_errors=True)


def measure_ours(count: int, seconds: float, *, station: Station | None = None) -> Run:
    url = ["--url", station.url] if station is not None else []
    ours = Process(*_python("benchmarks.fanout", "serve-ours", "--count", str(count), *url))
    swarm = None
    try:
        started = ours.line()
        swarm = Process(
            *_python("benchmarks.listeners", "--kind", "mqtt", "--port", str(started["port"]), "--topic", TOPIC),
            *("--count", str(count), "--user", "node", "--password", "benchmark"),
        )
        swarm.line()
        asked = len(station.began()) if station is not None else 0
        ours.say("go")
        t0_s = ours.line().get("t0_s")
        time.sleep(4.0)
        if station is not None:
            t0_s = station.began()[asked]
        assert t0_s is not None
        others = [pid for pid in family(ours.pid) if pid not in {ours.pid, started["broker"]}]
        parts = {"broker": [started["broker"]], "publisher": [ours.pid], "decoder": others}
        return _window(swarm, parts, count, seconds, t0_s)
    finally:
        if swarm is not None:
            swarm.kill()
        with contextlib.suppress(RuntimeError, OSError, subprocess.TimeoutExpired):
            ours.end()
        ours.kill()


def _window(swarm: Process, parts: dict[str, list[int]], count: int, seconds: float, t0_s: float) -> Run:
    swarm.say("mark")
    before = {name: cpu_s(pids) for name, pids in parts.items()}
    began_s = time.monotonic()
    time.sleep(seconds)
    after = {name: cpu_s(pids) for name, pids in parts.items()}
    took_s = time.monotonic() - began_s
    told = swarm.end()
    assert told is not None
    assert told["lost"] == 0, f"{told['lost']} of {count} listeners lost their connection"
    heard_s = sum(row[2] for row in told["rows"]) / 48_000
    listening = count if told["rows"] and len(told["rows"]) >= count else max(1, count // 20)
    return Run(
        seconds=took_s,
        cpu={name: after[name] - before[name] for name in parts},
        latencies_ms=latencies(told["rows"], t0_s),
        bytes_per_listener_s=told["bytes"] / count / took_s,
        complete=heard_s / listening / took_s,
    )


# ---------------------------------------------------------------------------------------------------------- icecast


ICECAST = """<icecast>
  <limits><clients>{clients}</clients><sources>4</sources><queue-size>524288</queue-size>
    <client-timeout>30</client-timeout><header-timeout>15</header-timeout><source-timeout>10</source-timeout>
    <burst-on-connect>0</burst-on-connect><burst-size>0</burst-size></limits>
  <authentication><source-password>benchmark</source-password><admin-user>admin</admin-user>
    <admin-password>{admin}</admin-password></authentication>
  <hostname>localhost</hostname>
  <listen-socket><port>{port}</port><bind-address>127.0.0.1</bind-address></listen-socket>
  <paths><logdir>{folder}</logdir><webroot>/usr/share/icecast2/web</webroot>
    <adminroot>/usr/share/icecast2/admin</adminroot></paths>
  <logging><accesslog>-</accesslog><errorlog>error.log</errorlog><loglevel>1</loglevel></logging>
</icecast>
"""


async def push_cells(arguments: argparse.Namespace) -> None:
    """The source of the bare fan-out: numbered cells of 60 bytes, 50 a second, as unparsed "audio/mpeg"."""
    reader, writer = await asyncio.open_connection("127.0.0.1", arguments.port)
    writer.write(
        b"SOURCE /live HTTP/1.0\r\nAuthorization: Basic c291cmNlOmJlbmNobWFyaw==\r\nContent-Type: audio/mpeg\r\n\r\n"
    )
    answer = await reader.readline()
    assert b"200" in answer, answer
    ending = asyncio.create_task(asyncio.to_thread(sys.stdin.read), name="cells.ending")
    began_s = time.monotonic()
    print(json.dumps({"t0_s": began_s}), flush=True)
    step = round(SOURCE_STEP_S / 0.02)
    sent = 0
    while not ending.done():
        due_s = began_s + (sent + step) * 0.02
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        cells = (CELL.pack(MAGIC, number) for number in range(sent, sent + step))
        writer.write(b"".join(cell + bytes(CELL_BYTES - CELL.size) for cell in cells))
        sent += step
    writer.close()


def measure_icecast(count: int, seconds: float, *, station: Station | None = None) -> Run:
    with tempfile.TemporaryDirectory(prefix="loa-icecast-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        port = free_port()
        config = folder / "icecast.xml"
        config.write_text(
            ICECAST.format(clients=count + 100, port=port, folder=folder, admin="benchmark-admin"), encoding="utf-8"
        )
        folder.chmod(0o777)
        icecast = Process("icecast2", "-c", str(config), user=NOBODY if os.geteuid() == 0 else None)
        stack.callback(icecast.kill, at_once=True)
        wait_for_port(port)
        parts = {"icecast": [icecast.pid]}
        asked = len(station.began()) if station is not None else 0
        if station is None:
            source = Process(*_python("benchmarks.fanout", "push-cells", "--port", str(port)))
            stack.callback(source.kill)
            t0_s = source.line()["t0_s"]
            kind = "cells"
        else:
            source = Process(*_ffmpeg_chain(station.url, port))
            stack.callback(source.kill)
            parts["transcoder"] = [source.pid]
            kind, t0_s = "ogg", 0.0
            time.sleep(3.0)
        time.sleep(1.0)
        swarm = Process(
            *_python("benchmarks.listeners", "--kind", kind, "--port", str(port), "--topic", "/live"),
            *("--count", str(count)),
        )
        stack.callback(swarm.kill)
        swarm.line()
        time.sleep(4.0)
        if station is not None:
            t0_s = station.began()[asked]
        return _window(swarm, parts, count, seconds, t0_s)


def _ffmpeg_chain(url: str, port: int) -> list[str]:
    return [
        "ffmpeg", "-nostdin", "-hide_banner", "-v", "error", "-probesize", "4096", "-analyzeduration", "0",
        "-f", "mp3", "-i", url, "-vn", "-ac", "1", "-ar", "48000", "-c:a", "libopus", "-b:a", "24k",
        "-vbr", "constrained", "-content_type", "application/ogg", "-f", "ogg", f"icecast://source:benchmark@127.0.0.1:{port}/live",
    ]  # fmt: skip


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int) -> None:
    import socket

    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on {port}")


# ----------------------------------------------------------------------------------------------------------- together


class Station:
    """The simulated MP3 station, in a process of its own; tells when each of its listeners began."""

    def __init__(self) -> None:
        self._process = Process(*_python("benchmarks.fanout", "station"))
        self.url: str = self._process.line()["url"]

    def began(self) -> list[float]:
        self._process.say("began")
        told: list[float] = self._process.line()["began_s"]
        return told

    def close(self) -> None:
        self._process.kill()


async def serve_station(_arguments: argparse.Namespace) -> None:
    from simulation.radio import Station as Radio

    async with Radio.of_sample("station_pull") as radio:
        print(json.dumps({"url": radio.url}), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps({"began_s": radio.began_s}), flush=True)


def run(*, quick: bool = False) -> dict[str, Any]:
    """Measure; the shape `scripts/bench` prints."""
    # A multiple of every batch length, so that a window holds as many batches as it is long.
    seconds, repeats = (8.0, 1) if quick else (16.0, 3)
    has_icecast = shutil.which("icecast2") is not None
    figures: dict[str, Any] = {"seconds_a_run": seconds, "repeats": repeats}
    if not has_icecast:
        figures["missing"] = ["icecast2"]
    bars: list[dict[str, Any]] = []

    def both(name: str, count: int, station: Station | None, repeats: int) -> tuple[list[Run], list[Run]]:
        ours, theirs = [], []
        for _ in range(repeats):
            ours.append(measure_ours(count, seconds, station=station))
            if has_icecast:
                theirs.append(measure_icecast(count, seconds, station=station))
        for whose, runs in (("loa", ours), ("icecast2", theirs)):
            if runs:
                figures[f"{name}_{whose}"] = _summary(runs)
        return ours, theirs

    def bar(what: str, value: float | None, limit: float) -> None:
        bars.append({"what": what, "value": value, "bar": limit, "holds": value is not None and value <= limit})

    def ratio(ours: Sequence[Run], theirs: Sequence[Run]) -> float | None:
        if not theirs:
            return None
        mine, peer = (statistics.median(one.cpu_percent for one in runs) for runs in (ours, theirs))
        return round(mine / peer, 3)

    for count, cpu_bar, latency_bar in ((1_000, 0.9, 2_500.0), (5_000, 1.0, 4_000.0)):
        ours, theirs = both(f"fanout_{count}", count, None, repeats if count < 5_000 else min(repeats, 2))
        bar(f"fan-out CPU at {count} listeners, of icecast2's", ratio(ours, theirs), cpu_bar)
        worst = statistics.median(percentile(one.latencies_ms, 0.99) for one in ours)
        bar(f"source-to-node p99 at {count} listeners, ms", round(worst), latency_bar)
    station = Station()
    try:
        ours, theirs = both("chain_1000", 1_000, station, min(repeats, 2))
    finally:
        station.close()
    bar("whole chain's CPU at 1000 listeners, of icecast2's with ffmpeg", ratio(ours, theirs), 1.1)
    worst = statistics.median(percentile(one.latencies_ms, 0.99) for one in ours)
    bar("whole chain: source-to-node p99 at 1000 listeners, ms", round(worst), 2_500.0)
    return {"name": "fanout", "figures": figures, "bars": bars}


def _summary(runs: Sequence[Run]) -> dict[str, Any]:
    def middle(of: Callable[[Run], float]) -> float:
        return statistics.median(of(one) for one in runs)

    return {
        "cpu_percent_of_a_core": round(middle(lambda one: one.cpu_percent), 3),
        "cpu_percent_each_run": [round(one.cpu_percent, 3) for one in runs],
        "cpu_percent_by_part": {
            part: round(middle(lambda one, part=part: one.cpu[part] / one.seconds * 100), 3)  # type: ignore[misc]
            for part in runs[0].cpu
        },
        "latency_p50_ms": round(middle(lambda one: percentile(one.latencies_ms, 0.5))),
        "latency_p99_ms": round(middle(lambda one: percentile(one.latencies_ms, 0.99))),
        "bytes_per_listener_s": round(middle(lambda one: one.bytes_per_listener_s)),
        "sound_received_share": round(middle(lambda one: one.complete), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", default="run", choices=("run", "serve-ours", "push-cells", "station"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--url", default="")
    arguments = parser.parse_args()
    match arguments.what:
        case "serve-ours":
            asyncio.run(serve_ours(arguments))
        case "push-cells":
            asyncio.run(push_cells(arguments))
        case "station":
            asyncio.run(serve_station(arguments))
        case _:
            print(json.dumps(run(quick=arguments.quick), indent=2))


if __name__ == "__main__":
    main()
