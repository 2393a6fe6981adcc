"""`emergency`: an alarm reaches a thousand speakers while a relay plays, and whom it does not reach is named in time.

The real server with its mosquitto, a real MP3 station that every node relays, and nodes as processes: a hundred decode
and are recorded, all others verify, decide and log what they would sound; each decides for itself. First a drill to
all: from the HTTP request to the first sample of the attention tone in each recording, and to each logged decision;
from there to the end of the round not one sample of the relay may sound. Then a fifth of the nodes loses its power and
a real alarm is raised: the list of the unreached must be exactly those, with a reason each, within 15 s.

`python -m benchmarks.emergency [--nodes N] [--listen L]` prints the JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
import wave
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from benchmarks.run import bar_of
from broadcast_server.domain.alarm import round_length
from broadcast_server.supervise import Child
from firmware_sim import ear
from simulation.samples import sample
from simulation.village import PROVINCE, PULLED, Village, VillageError
from speaker_protocol.hazards import TONES, pattern_of

NODES: Final = 1_000
LISTEN: Final = 100
OFFLINE_SHARE: Final = 0.2
STATION: Final = "station_pull"
HAZARD: Final = "fire"
"""Its tone lies far from the station's pair, so that a recording says which of the two sounds."""
WHO: Final = {"alert_id": "", "level": 0, "issued_ms": 0, "expires_ms": 0}
TONE_MS: Final = 8_000
FIRST_TONE_S: Final = 2.0
LIST_S: Final = 15.0
NO_OUTPUT: Final = "no_output"
RELAY_BEFORE_S: Final = 8.0
READY_S: Final = 600.0
WINDOW: Final = 1_920
"""Samples of a window in which tones are told apart: 40 ms."""
HOP: Final = 96
IN_MEMORY: Final = ("--disk-threads", "0")
"""The nodes' folders lie in `/dev/shm`."""
LOUD: Final = 1_500.0
"""Amplitude from which a tone counts as heard: a tenth of the attention tone."""
TRACE: Final = 300.0
"""Amplitude of the relay's pair that counts as its sound."""

MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
"""Where the nodes' stores lie: each has a flash of its own in the field, a thousand of them must not share one disk."""

Pcm = npt.NDArray[np.int16]


@dataclass(slots=True)
class Found:
    """What a suite counts."""

    attempted: int = 0
    ok: int = 0
    violations: list[str] = field(default_factory=list)

    def check(self, what: str, *, holds: bool) -> None:
        """One check."""
        self.attempted += 1
        self.ok += holds
        if not holds:
            self.violations.append(what)

    def figures(self) -> dict[str, Any]:
        """As the results carry it."""
        return {
            "attempted": self.attempted,
            "ok": self.ok,
            "violations": len(self.violations),
            "first_violations": self.violations[:10],
        }


def run() -> dict[str, Any]:
    """At full size; `LOA_BENCH_NODES` makes it smaller."""
    nodes = int(os.environ.get("LOA_BENCH_NODES", NODES))
    return measure(nodes, min(LISTEN, max(4, nodes // 10)))


def measure(nodes: int, listen: int) -> dict[str, Any]:
    """One village of so many nodes, of which so many are recorded."""
    flash = MEMORY if MEMORY.is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="loa-emergency-") as name,
        tempfile.TemporaryDirectory(prefix="loa-emergency-", dir=flash) as boxes,
    ):
        figures, found = asyncio.run(_village(nodes, listen, Path(name), Path(boxes)))
    heard, decided = figures["first_tone_s"], figures["decided_s"]
    bars = [
        bar_of(
            f"first tone on {listen} recorded nodes, p99, s",
            heard["p99"],
            FIRST_TONE_S,
            holds=heard["n"] == listen and heard["p99"] <= FIRST_TONE_S,
        ),
        bar_of(
            f"decision on {nodes - listen} nodes, p99, s",
            decided["p99"],
            FIRST_TONE_S,
            holds=decided["n"] == nodes - listen and decided["p99"] <= FIRST_TONE_S,
        ),
        bar_of(
            "samples of the relay between first tone and the end of the round",
            figures["relay_samples"],
            0,
            holds=figures["relay_samples"] == 0 and heard["n"] > 0,
        ),
        bar_of(
            "decisions for anything lower within the round", figures["lower_decisions"], 0,
            holds=figures["lower_decisions"] == 0 and decided["n"] > 0,
        ),
        bar_of(
            f"exact list of the unreached, {figures['offline']} of {nodes} without power, s",
            figures["list_exact_s"],
            LIST_S,
            holds=figures["list_exact_s"] is not None and figures["list_exact_s"] <= LIST_S,
        ),
        bar_of("violations", len(found.violations), 0, holds=found.attempted > 0 and not found.violations),
    ]  # fmt: skip
    return {"name": "emergency", "figures": figures | found.figures(), "bars": bars}


# -- the village ------------------------------------------------------------------------------------------------------


async def _village(nodes: int, listen: int, folder: Path, boxes: Path) -> tuple[dict[str, Any], Found]:
    found = Found()
    offline = round(nodes * OFFLINE_SHARE)
    deciding = nodes - listen - offline
    # One process runs on one core: half of those who only decide get the other.
    parts = {
        "listening": listen,
        "deciding_a": deciding // 2,
        "deciding_b": deciding - deciding // 2,
        "losing_power": offline,
    }
    decisions = {name: folder / f"{name}.jsonl" for name in parts}
    async with _told_on_failure(folder / "server") as village, _station() as url, contextlib.AsyncExitStack() as stack:
        village.settings = {
            "LOA_RELAY__ALLOW_PRIVATE": json.dumps([url.split("/")[2]]),
            "LOA_PLAYOUT__STATUS_INTERVAL_S": "30",
        }
        await village.settle_in()
        await village.open_day_and_night()
        await village.add_feeds(pulled_url=url)
        fleets: dict[str, Child] = {}
        for name, count in parts.items():
            arguments = ["--decisions", str(decisions[name])]
            is_recorded = name == "listening"
            arguments += ["--record", str(folder / "records")] if is_recorded else ["--listen", "0", *IN_MEMORY]
            fleets[name] = await stack.enter_async_context(
                village.nodes(count, identity=boxes / name, arguments=arguments)
            )
        began = time.monotonic()
        await _until_ready(village, nodes, fleets)
        ready_s = time.monotonic() - began
        _say(f"{nodes} nodes ready after {ready_s:.0f} s")
        await village.schedule(
            starts_at=datetime.now(UTC) + timedelta(seconds=15), feed_id=village.feeds[PULLED], length_s=600
        )
        await _until_relaying(decisions, parts)
        _say("everybody relays")
        await asyncio.sleep(RELAY_BEFORE_S)

        before = _cpu_s(fleets)
        await asyncio.sleep(3.0)
        usual = _cpu_s(fleets)
        drill = await _raise(village, "drill")
        await asyncio.sleep(max(0.0, 3.0 - drill.since_s()))
        alarmed = _cpu_s(fleets)
        told = {name: drill.emergency[name] for name in ("hazard", "phrases", "tone_ms", "times", "gap_ms")}
        round_s = round_length({**WHO, **told, "drill": True}).total_seconds()
        await asyncio.sleep(max(0.0, round_s + 4.0 - drill.since_s()))
        view = await village.ask("GET", f"/emergencies/{drill.alert_id}", by=village.editor_token)
        counted = view["counts"]
        found.check("not every node has the drill", holds=counted["received"] == nodes)
        found.check(f"{counted['heard']} of {listen} count as heard", holds=counted["heard"] == listen)
        for name in parts:
            found.check(f"{name}: the fleet ended", holds=fleets[name].returncode is None)
        ended = {"reason": "Hết diễn tập (mô phỏng)"}
        await village.ask("POST", f"/emergencies/{drill.alert_id}/cancellation", by=village.editor_token, **ended)
        await asyncio.sleep(2.0)

        await fleets["losing_power"].terminate(0.0)
        lost = _ids(boxes / "losing_power")
        _say(f"{len(lost)} nodes without power")
        alarm = await _raise(village, "real")
        exact_s, listed = await _until_exact(village, alarm, lost)
        await asyncio.sleep(max(0.0, LIST_S - alarm.since_s()))
        at_15 = await _unreached(village, alarm)
        without_power = {node for node, reason in at_15.items() if reason != NO_OUTPUT}
        found.check("the list at 15 s is not the nodes without power", holds=without_power == lost)
        found.check(
            "who has no output is not listed as such",
            holds=set(at_15) - without_power == _ids(boxes / "deciding_a") | _ids(boxes / "deciding_b"),
        )
        for node, reason in at_15.items():
            found.check(f"{node}: unreached without a reason", holds=bool(reason))
        counted = await village.ask("GET", f"/emergencies/{alarm.alert_id}", by=village.editor_token)
        found.check("counts and list disagree", holds=counted["counts"]["unreached"] == len(at_15))
        await fleets["listening"].terminate()

    tones = dict(_first_tones(folder / "records", drill))
    for node in _ids(boxes / "listening"):
        found.check(f"{node}: no attention tone recorded", holds=node in tones)
    relay = dict(_relay_samples(folder / "records", drill, tones, round_s))
    for node, samples in relay.items():
        found.check(f"{node}: {samples} samples of the relay within the round", holds=samples == 0)
    decided, lower = _decisions(decisions, drill, round_s)
    for name in ("deciding_a", "deciding_b", "losing_power"):
        for node in _ids(boxes / name):
            found.check(f"{node}: never decided for the alarm", holds=node in decided)
    figures = {
        "nodes": nodes,
        "recorded": listen,
        "ready_s": round(ready_s, 1),
        "http_answer_s": round(drill.answered_s, 3),
        "first_tone_s": _spread([at - drill.asked_ns for at in tones.values()]),
        "decided_s": _spread(
            [at - drill.asked_ns for node, at in decided.items() if node not in _ids(boxes / "listening")]
        ),
        "relaying_cpu_ms_per_node_s": {
            name: round(1000 * (usual[name] - before[name]) / 3.0 / count, 2) for name, count in parts.items()
        },
        "alarm_cpu_ms_per_node": {
            name: round(1000 * ((alarmed[name] - usual[name]) - (usual[name] - before[name])) / count, 2)
            for name, count in parts.items()
        },
        "round_s": round_s,
        "relay_samples": sum(relay.values()),
        "lower_decisions": lower,
        "counts_after_round": view["counts"],
        "offline": offline,
        "list_exact_s": exact_s,
        "list_reasons": dict(Counter(at_15.values())),
        "list_last": listed,
    }
    return figures, found


@contextlib.asynccontextmanager
async def _told_on_failure(folder: Path) -> AsyncIterator[Village]:
    """A village whose server's last words are told when something goes wrong."""
    async with Village(folder, is_tls=False) as village:  # thousands of sockets in one process: plain, on loopback
        try:
            yield village
        except VillageError:
            _say(village.last_words())
            raise


def _cpu_s(fleets: Mapping[str, Child]) -> dict[str, float]:
    return {name: 0.0 if (used := fleet.usage()) is None else used.cpu_s for name, fleet in fleets.items()}


def _say(text: str) -> None:
    print(f"emergency: {text}", file=sys.stderr, flush=True)


@contextlib.asynccontextmanager
async def _station() -> AsyncIterator[str]:
    async with Child(
        [sys.executable, "-m", "simulation.radio", "--sample", STATION], name="emergency.station", keep_stdin=True
    ) as station:
        line = await asyncio.wait_for(station.stdout.readline(), 30)
        yield json.loads(line)["url"]


async def _pages(village: Village, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        mark = "&" if "?" in path else "?"
        page = await village.ask("GET", f"{path}{mark}limit=200{after}", by=village.editor_token)
        found += page["items"]
        if page["next"] is None:
            return found
        after = f"&cursor={quote(page['next'])}"


async def _until_ready(village: Village, nodes: int, fleets: Mapping[str, Child]) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            ready = 0
            for node in await _pages(village, "/nodes"):
                status = node["status"]
                if status is not None and status["link"] == "online":
                    body = status["body"]
                    ready += bool(body.get("plan_sha256")) and body.get("clock", {}).get("source") == "server"
            if ready >= nodes:
                return
            for name, fleet in fleets.items():
                if fleet.returncode is not None:
                    raise RuntimeError(f"{name} ended: " + "\n".join(fleet.stderr_tail[-20:]))
            await asyncio.sleep(2.0)


async def _until_relaying(decisions: Mapping[str, Path], parts: Mapping[str, int]) -> None:
    """Until every node's own log says that the relay sounds, or would."""
    async with asyncio.timeout(120):
        while True:
            relaying = {
                line["node"] for file in decisions.values() for line in _lines(file) if line["kind"] == "stream"
            }
            if len(relaying) >= sum(parts.values()):
                return
            await asyncio.sleep(1.0)


@dataclass(slots=True)
class _Raised:
    """An alarm, when the second person agreed (true time) and how long the answer took."""

    alert_id: str
    asked_ns: int
    answered_s: float
    emergency: Mapping[str, Any]

    def since_s(self) -> float:
        """Seconds since the request."""
        return (time.time_ns() - self.asked_ns) / 1e9


async def _raise(village: Village, mode: str) -> _Raised:
    confirm = "DIỄN TẬP" if mode == "drill" else "KHẨN CẤP"
    proposed = await village.propose_emergency(
        unit_id=PROVINCE,
        mode=mode,
        confirm=confirm,
        message={"hazard": HAZARD},
        rounds={"times": 1, "tone_ms": TONE_MS},
        reason="Mô phỏng",
        expires_min=10,
    )
    asked_ns = time.time_ns()
    made = await village.approve_emergency(proposed, confirm=confirm)
    return _Raised(made["id"], asked_ns, (time.time_ns() - asked_ns) / 1e9, made)


async def _unreached(village: Village, alarm: _Raised) -> dict[str, str]:
    """Node and reason. A node that only decides has no output, says so and is listed for it."""
    path = f"/emergencies/{alarm.alert_id}/deliveries?unreached=true"
    return {one["node_id"]: one["reason"] for one in await _pages(village, path)}


async def _until_exact(village: Village, alarm: _Raised, lost: set[str]) -> tuple[float | None, int]:
    listed = 0
    while alarm.since_s() < 2 * LIST_S:
        named = await _unreached(village, alarm)
        listed = len(named)
        if {node for node, reason in named.items() if reason != NO_OUTPUT} == lost:
            return round(alarm.since_s(), 2), listed
        await asyncio.sleep(0.2)
    return None, listed


def _ids(folder: Path) -> set[str]:
    return {child.name for child in folder.iterdir() if child.is_dir()}


# -- what sounded -----------------------------------------------------------------------------------------------------


def _recorded(folder: Path, start_ns: int, end_ns: int) -> Iterator[tuple[str, Pcm, int]]:
    """Node, what sounded in `[start_ns, end_ns)`, and the instant of its first sample; one recording at a time."""
    for facts_file in sorted(folder.glob("*.json")):
        facts = json.loads(facts_file.read_text("utf-8"))
        with wave.open(str(facts_file.with_suffix(".wav")), "rb") as sound:
            first = max(0, (start_ns - facts["sample0_utc_ns"]) * 48_000 // 1_000_000_000)
            last = max(first, (end_ns - facts["sample0_utc_ns"]) * 48_000 // 1_000_000_000)
            sound.setpos(min(first, sound.getnframes()))
            pcm = np.frombuffer(sound.readframes(last - first), dtype="<i2").astype(np.int16)
        yield facts["node_id"], pcm, facts["sample0_utc_ns"] + round(first * 1e9 / 48_000)


def _amplitudes(pcm: Pcm, hertz: int) -> npt.NDArray[np.float64]:
    """Amplitude of a tone in each window of `WINDOW` samples, `HOP` apart."""
    shape = np.hanning(WINDOW)
    probe = np.exp(-2j * np.pi * hertz / 48_000 * np.arange(WINDOW)) * shape / (shape.sum() / 2)
    windows = np.lib.stride_tricks.sliding_window_view(pcm, WINDOW)[::HOP].astype(np.float64)
    return np.abs(windows @ probe)


def _first_tones(folder: Path, raised: _Raised) -> Iterator[tuple[str, int]]:
    """The instant (true time, ns) of the first sample of the attention tone in each recording that has it."""
    hertz = max(step for step, _ in TONES[pattern_of(HAZARD)])
    for node, pcm, first_ns in _recorded(folder, raised.asked_ns, raised.asked_ns + 20_000_000_000):
        if len(pcm) <= WINDOW:
            continue
        loud = np.flatnonzero(_amplitudes(pcm, hertz) > LOUD)
        if len(loud):
            # The tone has crept into this window by its end: its first sample lies within, no later than the end.
            yield node, first_ns + round((int(loud[0]) * HOP + WINDOW) * 1e9 / 48_000)


def _relay_samples(
    folder: Path, raised: _Raised, tones: Mapping[str, int], round_s: float
) -> Iterator[tuple[str, int]]:
    """Samples after the first tone and before the end of the round in which the station's pair is heard.

    While the tone sounds by a trace of either of the pair's tones, later (words are broad) by both of them together.
    """
    pair = sample(STATION).tones
    assert pair is not None
    slack_ns = WINDOW * 1_000_000_000 // 48_000
    issued = datetime.fromisoformat(raised.emergency["launched_at"])
    end_ns = round(issued.timestamp() * 1e9) + round(round_s * 1e9) - 2 * slack_ns
    for node, pcm, first_ns in _recorded(folder, raised.asked_ns, end_ns):
        if node not in tones:
            continue
        begin = (tones[node] + slack_ns - first_ns) * 48_000 // 1_000_000_000
        tone_end = max(begin, (tones[node] + (TONE_MS - 2_500) * 1_000_000 - first_ns) * 48_000 // 1_000_000_000)
        in_tone = pcm[begin:tone_end]
        samples = 0
        if len(in_tone) > WINDOW:
            traces = np.minimum(_amplitudes(in_tone, pair[0]), _amplitudes(in_tone, pair[1]))
            samples += int((traces > TRACE).sum()) * HOP
        named = [one for one in ear.heard(pcm[begin:]) if one.pair == tuple(pair)]
        samples += sum((one.end_ns - one.start_ns) * 48_000 // 1_000_000_000 for one in named)
        yield node, samples


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if file.exists():
        for line in file.read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError):  # the last one may be half written
                yield json.loads(line)


def _decisions(files: Mapping[str, Path], raised: _Raised, round_s: float) -> tuple[dict[str, int], int]:
    """When each node first decided for the alarm, and how often one decided for anything else within the round."""
    entry = f"alert:{raised.alert_id}"
    issued = datetime.fromisoformat(raised.emergency["launched_at"])
    end_ns = round(issued.timestamp() * 1e9) + round(round_s * 1e9) - 500_000_000
    decided: dict[str, int] = {}
    lower = 0
    for file in files.values():
        for line in _lines(file):
            if line["entry"] == entry:
                decided.setdefault(line["node"], line["at_ns"])
            elif line["node"] in decided and line["at_ns"] < end_ns and line["kind"] in {"stream", "asset"}:
                lower += 1
    return decided, lower


def _spread(values_ns: Sequence[int]) -> dict[str, Any]:
    ordered = sorted(values_ns)
    if not ordered:
        return {"n": 0, "p50": None, "p99": float("inf"), "max": None}
    at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e9 for share in (0.5, 0.99)]
    return {"n": len(ordered), "p50": round(at[0], 3), "p99": round(at[1], 3), "max": round(ordered[-1] / 1e9, 3)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--listen", type=int)
    asked = parser.parse_args()
    print(
        json.dumps(
            measure(asked.nodes, asked.listen or min(LISTEN, max(4, asked.nodes // 10))), indent=2, ensure_ascii=False
        )
    )
