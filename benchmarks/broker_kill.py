"""The broker is killed for 3 s while a relay plays to 500 nodes: what each of them misses, and whether all come back.

Real: a mosquitto process, our MQTT connection, engine, decoder, encoder and a station over HTTP. The nodes are raw MQTT
clients in a process of their own with the firmware's patience (`firmware_sim.link`: doubling, jittered). The gap is
media that never sounded: what no batch brought, and of a batch that came too late the part that was due before; a node
sounds everything it has, so this is what its street does not hear. Beside it snapserver, killed just as long, with
three snapclients on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import snapcast
from benchmarks.fanout import Process, free_port
from benchmarks.listeners import length_of, packet
from benchmarks.run import bar_of, failed
from broadcast_server.relay.pacing import SAFETY_MS
from firmware_sim.link import FIRST_WAIT_S, LONGEST_WAIT_S

NODES: Final = int(os.environ.get("LOA_BENCH_NODES", "500"))
DOWN_S: Final = 3.0
BEFORE_S: Final = 10.0
AFTER_S: Final = 20.0
KILLS: Final = 3
STREAM: Final = "bench"
P50_S, P99_S = 5.0, 10.0
_BATCH: Final = struct.Struct(">BBIIQB")


# -- the nodes, in a process of their own


class Node(asyncio.Protocol):
    """One connection of a node; `rows` outlives it: arrival, first sample, samples."""

    def __init__(self, number: int, topic: str, rows: list[tuple[float, int, int]]) -> None:
        self._number, self._topic, self._rows = number, topic.encode(), rows
        self.ready, self.gone = asyncio.Event(), asyncio.Event()
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say CONNECT."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        name = f"node-{self._number}".encode()
        transport.write(packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x3c" + struct.pack(">H", len(name)) + name))

    def data_received(self, data: bytes) -> None:
        """CONNACK, SUBACK, PUBLISH."""
        now_s = time.monotonic()
        buffer, at = self._buffer + data, 0
        while True:
            size, start = length_of(buffer, at)
            if size < 0 or start + size > len(buffer):
                break
            kind = buffer[at] & 0xF0
            if kind == 0x30:
                (topic,) = struct.unpack_from(">H", buffer, start)
                sample, packets = _BATCH.unpack_from(buffer, start + 2 + topic)[4:]
                self._rows.append((now_s, sample, packets * 960))
            elif kind == 0x20 and self._transport is not None:
                body = struct.pack(">HH", 1, len(self._topic)) + self._topic + b"\x00"
                self._transport.write(packet(0x82, body))
            elif kind == 0x90:
                self.ready.set()
            at = start + size
        self._buffer = buffer[at:]

    def connection_lost(self, _error: Exception | None) -> None:
        """The broker died."""
        self.gone.set()


async def live(number: int, port: int, topic: str, rows: list[tuple[float, int, int]], ready: asyncio.Event) -> None:
    """Connect, listen, and come back for ever."""
    chance, failures = random.Random(number), 0
    loop = asyncio.get_running_loop()
    while True:
        try:
            _, node = await loop.create_connection(
                lambda: Node(number, topic, rows), "127.0.0.1", port, local_addr=(f"127.0.0.{2 + number % 50}", 0)
            )
        except OSError:
            failures += 1
        else:
            waiting = asyncio.create_task(node.ready.wait(), name=f"node.ready[{number}]")
            gone = asyncio.create_task(node.gone.wait(), name=f"node.gone[{number}]")
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if node.ready.is_set():
                ready.set()
                failures = -1
            waiting.cancel()
            await gone
            failures += 1
        longest_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures, 8))
        await asyncio.sleep(chance.uniform(longest_s / 3, longest_s))


async def swarm(arguments: argparse.Namespace) -> None:
    """All nodes; prints a line when all are there, and at the end what each got."""
    rows: list[list[tuple[float, int, int]]] = [[] for _ in range(arguments.count)]
    readies = [asyncio.Event() for _ in rows]
    tasks = [
        asyncio.create_task(live(number, arguments.port, arguments.topic, rows[number], readies[number]), name="node")
        for number in range(arguments.count)
    ]
    for ready in readies:
        await ready.wait()
    print(json.dumps({"ready": arguments.count}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    print(json.dumps({"rows": rows}), flush=True)


# -- the server


@asynccontextmanager
async def relaying(port: int, folder: Path) -> AsyncIterator[dict[str, Any]]:
    """Station, engine and MQTT connection; the dictionary tells when the stream began."""
    from broadcast_server.audio.ffmpeg import Sandbox
    from broadcast_server.fetch import Fetcher
    from broadcast_server.mqtt.paho_bus import PahoBus
    from broadcast_server.relay.engine import Engine, FeedKind, StreamSpec
    from broadcast_server.signer.keys import FileSigner
    from broadcast_server.supervise import SystemChance, SystemClock, ThreadExecutor
    from simulation.radio import Faults, Station

    clock, chance = SystemClock(), SystemChance()
    executor = ThreadExecutor(2, name="bench.encode")
    bus = PahoBus("127.0.0.1", port, clock=clock, chance=chance, user="", password="")
    await bus.start()
    async with Station.of_sample("station_pull", faults=Faults(burst_s=1.0)) as station:
        engine = Engine(
            bus=bus,
            signer=FileSigner(folder / "keys", chance=chance, path_of=lambda unit: (unit,)),
            fetcher=Fetcher(clock=clock, allow_private=frozenset({station.authority})),
            sandbox=await Sandbox.probe(),
            clock=clock,
            chance=chance,
            executor=executor,
        )
        await engine.reconcile({STREAM: StreamSpec(STREAM, "feed", FeedKind.PULL, 1, NODES, url=station.url)})
        told: dict[str, Any] = {"status": lambda: engine.status()[STREAM]}
        yield told
        await engine.close()
    await bus.close()
    executor.close()


async def a_kill(folder: Path) -> dict[str, Any]:
    """One run: play, kill for `DOWN_S`, play on."""
    from broadcast_server.mqtt.broker import find_mosquitto
    from broadcast_server.supervise import Child

    program, port = find_mosquitto(), free_port()
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\nset_tcp_nodelay true\n")
    argv = [str(program), "-c", str(config)]
    nodes: Process | None = None
    broker = Child(argv, name="bench.mosquitto", stdout=False)
    await broker.start()
    try:
        async with relaying(port, folder) as told:
            nodes = Process(
                *(sys.executable, "-m", "benchmarks.broker_kill", "--swarm", "--port", str(port)),
                *("--topic", f"loa/1/stream/{STREAM}/audio", "--count", str(NODES)),
            )
            await asyncio.to_thread(nodes.line)
            await asyncio.sleep(BEFORE_S)
            runs = told["status"]().counters.runs
            killed_s = time.monotonic()
            os.kill(broker.pid, 9)
            await broker.close()
            await asyncio.sleep(DOWN_S)
            broker = Child(argv, name="bench.mosquitto", stdout=False)
            await broker.start()
            await asyncio.sleep(AFTER_S)
            same_run = told["status"]().counters.runs == runs
            ended_s = time.monotonic()
            found = await asyncio.to_thread(nodes.end)
    finally:
        if nodes is not None:
            nodes.kill()
        await broker.close()
    assert found is not None
    return {"gaps_s": [_gap_s(rows, killed_s, ended_s) for rows in found["rows"]], "same_run": same_run}


def _gap_s(rows: list[list[float]], killed_s: float, ended_s: float) -> float:
    """Seconds of media that never sounded around the kill; infinite for a node that was not back at the end."""
    before = [row for row in rows if row[0] < killed_s + 0.5]
    if not before or rows[-1][0] < ended_s - 4.0:
        return float("inf")
    # The usual age of a batch's first sample when it comes, and a second of safety: beyond, it is cut at its head.
    usual_s = float(np.median([at - sample / 48_000 for at, sample, _ in before]))
    missing_s, end = 0.0, before[0][1]
    for at, sample, samples in sorted(rows, key=lambda row: (row[1], row[0])):
        if sample + samples <= end:
            continue  # the same again
        late_s = min(samples / 48_000, max(0.0, at - sample / 48_000 - usual_s - SAFETY_MS / 1000))
        missing_s += max(0.0, (sample - end) / 48_000) + late_s
        end = sample + samples
    return missing_s


async def measure() -> list[dict[str, Any]]:
    """Several kills, each with a broker and nodes of its own."""
    runs = []
    for _ in range(KILLS):
        with tempfile.TemporaryDirectory(prefix="loa-bench-") as folder:
            runs.append(await a_kill(Path(folder)))
    return runs


def run() -> dict[str, Any]:
    """See the module."""
    from broadcast_server.mqtt.broker import find_mosquitto

    if find_mosquitto() is None:
        return failed("broker_kill", "mosquitto is not installed")
    runs = asyncio.run(measure())
    gaps = [gap for one in runs for gap in one["gaps_s"]]
    back = sum(gap != float("inf") for gap in gaps)
    p50, p99 = (float(np.percentile(gaps, rank, method="higher")) for rank in (50, 99))
    missing = snapcast.missing()
    peer = {"error": f"{missing} is not installed"} if missing else snapcast.outage(down_s=DOWN_S)
    return {
        "name": "broker_kill",
        "figures": {
            "attempted": len(gaps),
            "ok": back,
            "violations": len(gaps) - back,
            "kills": KILLS,
            "nodes": NODES,
            "down_s": DOWN_S,
            "gap_s": {"p50": p50, "p99": p99, "max": max(gaps)},
            "streams_that_kept_their_key": sum(one["same_run"] for one in runs),
            "snapserver": peer,
        },
        "bars": [
            bar_of("nodes", NODES, "≥ 500", holds=NODES >= 500),
            bar_of("gap p50", p50, f"≤ {P50_S:.0f} s", holds=p50 <= P50_S),
            bar_of("gap p99", p99, f"≤ {P99_S:.0f} s", holds=p99 <= P99_S),
            bar_of("nodes that came back", f"{back} of {len(gaps)}", "all", holds=back == len(gaps) > 0),
            bar_of("snapserver measured beside it", missing or "yes", "yes", holds=missing is None),
        ],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--swarm", action="store_true")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--topic", default="")
    parser.add_argument("--count", type=int, default=0)
    asked = parser.parse_args()
    if asked.swarm:
        asyncio.run(swarm(asked))
    else:
        print(json.dumps(run(), indent=1))
