"""`live_voice`: from a packet at the microphone's socket to the sound at the poles, 300 nodes, batches of 400 ms.

The real server with its embedded mosquitto, and `firmware-sim run` with 300 nodes of which 30 decode and are recorded
on the true clock; the others verify and decide. A microphone opens a session, sends Opus packets of 20 ms over its
WebSocket in real time and changes the pair of tones every 1.3 s. What is measured is in the recordings: the onset of a
pair against the instant at which its first packet was given to the socket; and the last sound against the instant at
which the session's end was asked for. Three sessions, so that opening and closing are measured more than once.

`python -m benchmarks.live_voice [NODES [RECORDED]]` prints the JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.run import bar_of
from broadcast_server.relay.stream import PacketEncoder
from broadcast_server.supervise import Child
from firmware_sim.ear import Heard, heard
from simulation.listening import Recording, read_recordings
from simulation.samples import tone_pcm
from simulation.village import COMMUNE, Village, VillageError

NODES = 300
RECORDED = 30
SESSIONS = 3
CHANGES = 16
"""Pairs of tones spoken in one session."""
PAIR_S = 1.3
PAIRS = ((700, 1600), (500, 1900), (900, 1300), (1100, 2300))
SETTLE_S = 12.0
"""Clocks are good to a few milliseconds by then."""
BETWEEN_S = 5.0
LATEST_MS = 4_000.0
"""A change that was not heard by then counts as this late."""
HEARD_SHARE = 0.99
LATE_NS = 1_000_000_000
P50_MS, P99_MS, STOP_MS = 1_200.0, 2_000.0, 2_000.0


@dataclass(slots=True)
class Said:
    """One session as the microphone knows it; instants in UTC nanoseconds."""

    opened_ns: int = 0
    changes: list[tuple[tuple[int, int], int]] = field(default_factory=list)
    closed_ns: int = 0
    sounding: int = 0
    counts: dict[str, int] = field(default_factory=dict)


async def measure(folder: Path, nodes: int, recorded: int) -> tuple[list[Said], tuple[Recording, ...]]:
    """Let a village hear three sessions."""
    arguments = ("--listen", str(recorded), "--record", str(folder / "recorded"), "--seed", "1")
    async with Village(folder, {"LOA_LOG_LEVEL": "warning"}) as village:
        await village.settle_in()
        await village.open_day_and_night()
        async with village.nodes(nodes, identity=folder / "nodes", arguments=arguments) as fleet:
            await _until_ready(village, fleet, nodes)
            await asyncio.sleep(SETTLE_S)
            said = []
            for number in range(SESSIONS):
                said.append(await _session(village, number))
                await asyncio.sleep(BETWEEN_S)
            await fleet.terminate()
    return said, await asyncio.to_thread(_recorded, folder / "recorded", recorded)


def _recorded(folder: Path, most: int) -> tuple[Recording, ...]:
    return tuple(one for one in read_recordings(folder) if len(one.pcm))[:most]


async def _until_ready(village: Village, fleet: Child, nodes: int, timeout_s: float = 240.0) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            found, after = 0, ""
            while True:
                page = await village.ask("GET", f"/nodes?limit=200{after}")
                found += sum(_is_ready(node) for node in page["items"])
                if page["next"] is None:
                    break
                after = f"&cursor={page['next']}"
            if found >= nodes:
                return
            if fleet.returncode is not None:
                raise VillageError("the fleet ended: " + "\n".join(fleet.stderr_tail[-20:]))
            await asyncio.sleep(1.0)


def _is_ready(node: dict[str, Any]) -> bool:
    status = node["status"]
    return bool(
        status
        and status["link"] == "online"
        and status["body"].get("plan_sha256")
        and status["body"].get("clock", {}).get("source") == "server"
    )


async def _session(village: Village, number: int) -> Said:
    """Open, speak in real time, close."""
    sound = await asyncio.to_thread(_voice, number)
    said = Said(opened_ns=time.time_ns())
    opened = await village.ask("POST", "/live", unit_id=COMMUNE, title=f"Nói thử {number} (mô phỏng)", minutes=5)
    address = village.url.replace("http", "ws", 1) + opened["voice"]
    async with connect(address, compression=None, ssl=village.trusted) as socket:
        await socket.send(json.dumps({"token": village.token, "format": "opus"}))
        ready = json.loads(await socket.recv())
        if not ready.get("ready"):
            raise VillageError(f"the microphone was not let in: {ready}")
        hearing = asyncio.create_task(_hear(socket, said), name="bench.hear")
        began_s = time.monotonic()
        sequence = 0
        for pair, packets in sound:
            for at, packet in enumerate(packets):
                await asyncio.sleep(max(0.0, began_s + (sequence + 1) * 0.02 - time.monotonic()))
                if at == 0:
                    said.changes.append((pair, time.time_ns()))
                await socket.send(sequence.to_bytes(4, "big") + packet)
                sequence += 1
        said.closed_ns = time.time_ns()
        await village.ask("POST", f"/live/{opened['id']}/close")
        await asyncio.wait([hearing], timeout=2.0)
        hearing.cancel()
    return said


def _voice(number: int) -> list[tuple[tuple[int, int], list[bytes]]]:
    """Pair after pair without a pause, as one stream of packets."""
    encoder = PacketEncoder()
    order = [PAIRS[(number + index) % len(PAIRS)] for index in range(CHANGES)]
    return [(pair, encoder.encode(tone_pcm(pair, PAIR_S))) for pair in order]


async def _hear(socket: ClientConnection, said: Said) -> None:
    async for message in socket:
        told = json.loads(message)
        said.sounding = max(said.sounding, told.get("sounding") or 0)
        said.counts = told.get("counts", said.counts)


def judge(said: Sequence[Said], recordings: Sequence[Recording]) -> dict[str, Any]:
    """Delays in milliseconds over all nodes, changes and sessions."""
    delays, stops, firsts, shares = [], [], [], []
    planned = missed = 0
    for recording in recordings:
        found = heard(recording.pcm, recording.sample0_ns)
        for one in said:
            own = [each for each in found if one.opened_ns <= each.start_ns < one.closed_ns + 5_000_000_000]
            # Between the first change and the last all must have sounded, without a hole.
            low_ns, high_ns = one.changes[1][1], one.changes[-1][1]
            sounded_ns = sum(_overlap_ns(each, low_ns + LATE_NS, high_ns + LATE_NS) for each in own)
            shares.append(sounded_ns / (high_ns - low_ns))
            stops.append((max(each.end_ns for each in own) - one.closed_ns) / 1e6 if own else LATEST_MS)
            if own:
                firsts.append((own[0].start_ns - one.opened_ns) / 1e6)
            # The first pair meets a plan that is still on its way: how soon it is heard is told apart.
            for pair, sent_ns in one.changes[1:-1]:
                planned += 1
                delay_ms = _delay_ms(own, pair, sent_ns)
                missed += delay_ms is None
                delays.append(LATEST_MS if delay_ms is None else delay_ms)
    return {
        "changes_planned": planned,
        "changes_heard": planned - missed,
        "delay_ms_p50": _percentile(delays, 50),
        "delay_ms_p99": _percentile(delays, 99),
        "delay_ms_max": _percentile(delays, 100),
        "stop_ms_p50": _percentile(stops, 50),
        "stop_ms_p99": _percentile(stops, 99),
        "open_to_first_sound_ms_p50": _percentile(firsts, 50),
        "heard_share_least": round(min(shares, default=0.0), 4),
        "heard_share_mean": round(float(np.mean(shares)), 4) if shares else 0.0,
        "sessions_heard": len(firsts),
        "sessions_planned": len(said) * len(recordings),
    }


def _delay_ms(found: Sequence[Heard], pair: tuple[int, int], sent_ns: int) -> float | None:
    after = [(one.start_ns - sent_ns) / 1e6 for one in found if one.pair == pair]
    return min((delay for delay in after if 0 <= delay < LATEST_MS), default=None)


def _overlap_ns(one: Heard, low_ns: int, high_ns: int) -> int:
    return max(0, min(one.end_ns, high_ns) - max(one.start_ns, low_ns))


def _percentile(values: Sequence[float], rank: float) -> float:
    return round(float(np.percentile(values, rank)), 1) if values else 1e9


def run(nodes: int = NODES, recorded: int = RECORDED) -> dict[str, Any]:
    """The benchmark's figures and bars."""
    with tempfile.TemporaryDirectory(prefix="bench-live-") as aside:
        said, recordings = asyncio.run(measure(Path(aside), nodes, recorded))
        figures = judge(said, recordings)
    figures |= {
        "nodes": nodes,
        "recorded": len(recordings),
        "most_told_sounding": max(one.sounding for one in said),
        "packets_refused_lost_dropped": [
            sum(one.counts.get(name, 0) for one in said) for name in ("refused", "lost", "dropped")
        ],
    }
    is_heard = 0 < figures["sessions_planned"] == figures["sessions_heard"]
    least = round(HEARD_SHARE * figures["changes_planned"])
    bars = [
        bar_of(
            "tone changes heard",
            figures["changes_heard"],
            f">= {least} of {figures['changes_planned']}",
            holds=is_heard and figures["changes_heard"] >= least,
        ),
        *(
            bar_of(what, figures[name], f"<= {bar:.0f}", holds=is_heard and figures[name] <= bar)
            for what, name, bar in (
                ("packet in to sound p50, ms", "delay_ms_p50", P50_MS),
                ("packet in to sound p99, ms", "delay_ms_p99", P99_MS),
                ("stop to silence p99, ms", "stop_ms_p99", STOP_MS),
            )
        ),
    ]
    return {"name": "live_voice", "figures": figures, "bars": bars}


if __name__ == "__main__":
    print(json.dumps(run(*(int(word) for word in sys.argv[1:3])), indent=2))
