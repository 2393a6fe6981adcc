"""A node's process is killed (SIGKILL) at a named point of its disk work, and started again on the same disk.

Each run is a real `SpeakerNode` with a real output on virtual time: three recorded items, an office in the same
process that takes reports in and acknowledges them. The first life is a forked child that kills itself at one hit of
one fault point; the second one, two seconds later, has to bring everything to its end. In some runs the network is
gone when the node returns, in some a stored clip has rotted meanwhile. What sounded is judged from the recordings,
what was told from the envelopes that reached the office.

A violation is an item that was due and neither sounded nor was told as unfinished, more than a second of an item
sounded twice, a sound that is not the item's, a line of the device log in two versions or missing, or a return that
took longer than 5 s.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import struct
import sys
import tempfile
import time as machine
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from benchmarks.run import bar_of
from firmware_sim.decoder import AssetSound, SoundLibrary
from firmware_sim.faultpoints import Point, hooked
from simulation.world.time import VirtualTime
from speaker_protocol import messages as wire
from tests.firmware_sim.workshop import NODE, START, Office, Workshop, heard_in, on_virtual_time, report_of, segment
from tests.firmware_sim.world import inline

RUNS: Final = int(os.environ.get("NODE_KILLS", "300"))
WORKERS: Final = 2
DARK_S: Final = 2.0
RECOVERY_S: Final = 5.0
BOOKS_S: Final = 46.0
"""When everything must have been sounded and told."""
OFFLINE_FROM_S: Final = 5.0
"""A node that was killed before it ever knew the time cannot play without network."""
RESUME_S: Final = 10.0
EDGE_S: Final = 0.35
ITEMS: Final = (
    ("first", 6.0, 14.0, (700, 1600)),
    ("second", 21.0, 13.0, (500, 900)),
    ("third", 36.0, 3.0, (900, 2300)),
)


@dataclass(frozen=True, slots=True)
class Ground:
    """What all runs share, made once before any child is forked."""

    retained: dict[str, bytes]
    assets: dict[str, bytes]
    durations: dict[str, int]


@dataclass(slots=True)
class Verdict:
    """What one run showed."""

    killed: bool = False
    violations: list[str] = field(default_factory=list)
    recovery_s: float = 0.0


class Ledgered(Office):
    """An office whose received envelopes outlive the process, as a server's store does."""

    def __init__(self, time: VirtualTime, ground: Ground, books: Path) -> None:
        super().__init__(time)
        self.retained, self.assets, self.durations = ground.retained, ground.assets, ground.durations
        self._books = os.open(books, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def keeps(self, envelope: bytes) -> None:
        """Stored before it is acknowledged."""
        os.write(self._books, struct.pack(">I", len(envelope)) + envelope)


class Watched(SoundLibrary):
    """A library that hashes for itself what it is given to decode."""

    def __init__(self, folder: Path) -> None:
        super().__init__(inline)
        self._folder = folder

    def give(self, sha256: str, content: bytes) -> AssetSound:
        """Note what is not what it is said to be."""
        if hashlib.sha256(content).hexdigest() != sha256:
            (self._folder / "unverified").write_text(sha256)
        return super().give(sha256, content)


def run() -> dict[str, Any]:
    """Kill, restart, judge."""
    began = machine.monotonic()
    ground = _ground()
    with tempfile.TemporaryDirectory(prefix="loa-node-kills-") as folder:
        hits = _count_hits(Path(folder) / "dry", ground)
        runs = [(number, point, nth) for number, (point, nth) in enumerate(_chosen(hits))]
        verdicts = _in_workers(Path(folder), ground, runs)
    killed = [verdict for verdict in verdicts.values() if verdict["killed"]]
    violations = [
        f"run {number} ({runs[number][1]}#{runs[number][2]}): {what}"
        for number, verdict in sorted(verdicts.items())
        for what in verdict["violations"]
    ]
    kinds = Counter(what.split(": ")[1].split(" ")[0] for what in violations)
    for what in violations[:20]:
        print(what, file=sys.stderr)
    recoveries = sorted(verdict["recovery_s"] for verdict in killed) or [float("inf")]
    figures = {
        "attempted": len(killed),
        "ok": sum(not verdict["violations"] for verdict in killed),
        "violations": len(violations),
        "points": {
            point: sum(runs[number][1] == point and verdict["killed"] for number, verdict in verdicts.items())
            for point in Point
        },
        "recovery_p50_s": round(recoveries[len(recoveries) // 2], 3),
        "recovery_max_s": round(recoveries[-1], 3),
        "took_s": round(machine.monotonic() - began, 1),
    }
    enough = len(killed) >= RUNS * 0.9
    bars = [
        bar_of("node killed at fault points", len(killed), f"≥ {round(RUNS * 0.9)}", holds=enough),
        *(
            bar_of(what, kinds[kind], 0, holds=enough and not kinds[kind])
            for what, kind in (
                ("items lost", "lost"),
                ("items doubled (> 1 s)", "doubled"),
                ("unverified bytes sounded", "foreign"),
                ("log lines forked or missing", "log"),
                ("children that ended otherwise", "ended"),
            )
        ),
        bar_of("recovery, longest", figures["recovery_max_s"], f"≤ {RECOVERY_S} s", holds=recoveries[-1] <= RECOVERY_S),
    ]
    return {"name": "node_kills", "figures": figures, "bars": bars}


# -- the ground -------------------------------------------------------------------------------------------------------


def _ground() -> Ground:
    async def story(time: VirtualTime) -> Ground:
        office = Office(time)
        hashes = {name: office.asset(pair, seconds) for name, _, seconds, pair in ITEMS}
        office.keys()
        office.config()
        t0 = time.now_ms()
        office.plan(
            *(segment(name, t0 + round(at * 1000), seconds, asset=hashes[name]) for name, at, seconds, _ in ITEMS)
        )
        return Ground(office.retained, office.assets, office.durations)

    return on_virtual_time(story)


def _count_hits(folder: Path, ground: Ground) -> dict[Point, int]:
    """How often a life without a kill passes each point."""
    folder.mkdir()
    _forked(lambda: _life(folder, ground, START, None))
    return {Point(name): count for name, count in json.loads((folder / "hits.json").read_text()).items()}


def _chosen(hits: dict[Point, int]) -> list[tuple[Point, int]]:
    """Every point alike, its hits spread over the life."""
    chance = random.Random(3)
    points = [point for point in Point if hits.get(point)]
    return [
        (point, 1 + chance.randrange(min(hits[point], 400))) for point in (points[n % len(points)] for n in range(RUNS))
    ]


# -- processes --------------------------------------------------------------------------------------------------------


def _forked(work: Any) -> int:
    """Do it in a forked child; its wait status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:  # noqa: BLE001  nothing may unwind into the parent's frames
            print(f"node_kills: {error!r}", file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(child, 0)[1]


def _in_workers(folder: Path, ground: Ground, runs: list[tuple[int, Point, int]]) -> dict[int, dict[str, Any]]:
    children = []
    for worker in range(WORKERS):
        child = os.fork()
        if child == 0:
            _work(folder, ground, worker, runs[worker::WORKERS])
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("worker-*.json")):
        found |= {int(number): verdict for number, verdict in json.loads(path.read_text()).items()}
    return found


def _work(folder: Path, ground: Ground, worker: int, runs: list[tuple[int, Point, int]]) -> NoReturn:
    try:
        told = {}
        for number, point, nth in runs:
            verdict = _one(folder / f"run-{number}", ground, number, point, nth)
            told[number] = {
                "killed": verdict.killed,
                "violations": verdict.violations,
                "recovery_s": verdict.recovery_s,
            }
        (folder / f"worker-{worker}.json").write_text(json.dumps(told))
    finally:
        os._exit(0)


def _life(
    folder: Path, ground: Ground, start: datetime, kill: tuple[Point, int] | None, *, dark_until_s: float = 0.0
) -> None:
    """One life of the node, from a power-on to the kill or to the end of the books."""
    hits: Counter[Point] = Counter()
    began = machine.monotonic()

    async def story(time: VirtualTime) -> None:
        def hit(point: Point) -> None:
            hits[point] += 1
            if kill is not None and kill[0] is point and hits[point] == kill[1]:
                (folder / "killed").write_text(str(time.now_ns()))
                os.kill(os.getpid(), signal.SIGKILL)

        with hooked(hit):
            office = Ledgered(time, ground, folder / "books")
            office.piece_bytes = 8_192
            shop = Workshop(time, folder, office=office, library=Watched(folder))
            gone_s = (start - START).total_seconds()
            office.is_reachable = gone_s >= dark_until_s
            while shop.node.firmware is None or (
                kill is None and shop.node.state.plan is None and time.monotonic() < RECOVERY_S
            ):
                await shop.pass_s(0.02)
            (folder / f"up-{time.now_ns()}").write_text(f"{machine.monotonic() - began} {time.monotonic()}")
            while gone_s + time.monotonic() < BOOKS_S:
                office.is_reachable = gone_s + time.monotonic() >= dark_until_s
                await shop.pass_s(0.5)
            await shop.stop()

    on_virtual_time(story, start=start)
    (folder / "hits.json").write_text(json.dumps({point.value: count for point, count in hits.items()}))


def _one(folder: Path, ground: Ground, number: int, point: Point, nth: int) -> Verdict:
    folder.mkdir()
    verdict = Verdict()
    status = _forked(lambda: _life(folder, ground, START, (point, nth)))
    if not os.WIFSIGNALED(status):
        return verdict  # this life never came to that hit: not an attempt
    verdict.killed = True
    killed_ns = int((folder / "killed").read_text())
    killed_s = (killed_ns - round(START.timestamp() * 1e9)) / 1e9
    chance = random.Random(number)
    if chance.random() < 0.3:
        _rot(folder, chance)
        dark_until_s = 0.0
    else:
        dark_until_s = 41.0 if killed_s > OFFLINE_FROM_S and chance.random() < 0.4 and _has_all(folder, ground) else 0.0
    again_s = killed_s + DARK_S
    start = START + timedelta(seconds=again_s)
    for left in folder.glob("up-*"):
        left.unlink()
    status = _forked(lambda: _life(folder, ground, start, None, dark_until_s=dark_until_s))
    if status != 0:
        verdict.violations.append(f"ended with status {status}")
        return verdict
    (up,) = folder.glob("up-*")
    real_s, virtual_s = map(float, up.read_text().split())
    _judge(folder, verdict, killed_s, again_s, real_s + virtual_s)
    return verdict


def _has_all(folder: Path, ground: Ground) -> bool:
    return all((folder / NODE / "assets" / f"{sha}.opus").exists() for sha in ground.assets)


def _rot(folder: Path, chance: random.Random) -> None:
    """One bit of one stored clip."""
    for path in sorted((folder / NODE / "assets").glob("*.opus"))[:1]:
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)


# -- judgement --------------------------------------------------------------------------------------------------------


def _judge(folder: Path, verdict: Verdict, killed_s: float, again_s: float, up_s: float) -> None:
    since_ms = round(START.timestamp() * 1000)
    heard = []
    for room in sorted(folder.glob("rec-*")):
        sample0_ns = int(room.name.removeprefix("rec-"))
        found = heard_in(room / f"{NODE}.wav", sample0_ns, since_ms)
        heard += found
        if _has_noise(room / f"{NODE}.wav", sample0_ns, found, since_ms):
            verdict.violations.append("foreign sound outside of every known programme")
    if (folder / "unverified").exists():
        verdict.violations.append("foreign bytes were decoded")
    told = _told(folder / "books", verdict)
    verdict.recovery_s = up_s
    for name, at_s, length_s, pair in ITEMS:
        end_s = at_s + length_s
        mine = sorted((max(start, at_s - 1), end) for found, start, end in heard if found == pair)
        if any(start < at_s - EDGE_S or end > end_s + EDGE_S for start, end in mine):
            verdict.violations.append(f"foreign time for {name}: {mine}")
        overlap = sum(max(0.0, a[1] - b[0]) for a, b in itertools.pairwise(mine))
        if overlap > 1.0:
            verdict.violations.append(f"doubled {name} by {overlap:.2f} s")
        _judge_item(verdict, name, at_s, end_s, mine, killed_s, again_s, told)


def _judge_item(
    verdict: Verdict,
    name: str,
    at_s: float,
    end_s: float,
    mine: list[tuple[float, float]],
    killed_s: float,
    again_s: float,
    told: dict[str, set[tuple[str, str | None]]],
) -> None:
    kinds = told.get(name, set())
    if not any(kind in {"finished", "not_sounded"} for kind, _ in kinds):
        verdict.violations.append(f"lost report of {name}: {sorted(map(str, kinds))}")
    total_s = sum(end - start for start, end in mine)
    if end_s <= killed_s or at_s >= again_s + RECOVERY_S:
        if total_s < end_s - at_s - EDGE_S:
            verdict.violations.append(f"lost {name}: heard {total_s:.2f} s of {end_s - at_s:.0f}")
        return
    after = [(start, end) for start, end in mine if start >= again_s - EDGE_S]
    had_begun = any(start < killed_s for start, _ in mine) or at_s < killed_s
    left_s = end_s - max(at_s, again_s)
    if after:
        verdict.recovery_s = max(verdict.recovery_s, after[0][0] - max(at_s, again_s))
        if end_s - after[-1][1] > EDGE_S:
            verdict.violations.append(f"lost the end of {name}: {mine}")
    elif left_s > (RESUME_S + RECOVERY_S if had_begun else RECOVERY_S):
        verdict.violations.append(f"lost {name} after the kill: {mine}, {left_s:.1f} s were left")
    elif had_begun and not any(reason == "power_lost" for _, reason in kinds) and any(s < killed_s for s, _ in mine):
        # What sounded less than a moment before the kill may not have reached the log: then it is told as not begun.
        begun_s = killed_s - mine[0][0]
        if begun_s > 1.5:
            verdict.violations.append(
                f"lost word of {name}, begun {begun_s:.1f} s before the kill: {sorted(map(str, kinds))}"
            )


def _has_noise(wav: Path, sample0_ns: int, found: list[tuple[tuple[int, int], float, float]], since_ms: int) -> bool:
    raw = wav.read_bytes()[44:]
    pcm = np.frombuffer(raw[: len(raw) // 2 * 2], "<i2").astype(np.float32)
    for _, start, end in found:
        low, high = (round((at + since_ms / 1000 - sample0_ns / 1e9) * 48_000) for at in (start - 0.1, end + 0.1))
        pcm[max(0, low) : max(0, high)] = 0.0
    blocks = pcm[: len(pcm) // 4_800 * 4_800].reshape(-1, 4_800)
    return bool(len(blocks)) and bool((np.sqrt((blocks**2).mean(axis=1)) > 200.0).any())


def _told(books: Path, verdict: Verdict) -> dict[str, set[tuple[str, str | None]]]:
    """What reached the office, by item; the chain judged."""
    raw = books.read_bytes() if books.exists() else b""
    lines: dict[int, dict[str, str | None]] = {}
    told: dict[str, set[tuple[str, str | None]]] = {}
    at = 0
    while at < len(raw):
        (length,) = struct.unpack_from(">I", raw, at)
        envelope = raw[at + 4 : at + 4 + length]
        at += 4 + length
        body: wire.ReportBody = report_of(envelope)
        told.setdefault(body.entry_id, set()).add((body.kind.value, body.reason))
        if body.line is not None:
            lines.setdefault(body.line, {})[hashlib.sha256(envelope).hexdigest()] = body.previous
    before: str | None = None
    for number in range(1, max(lines, default=0) + 1):
        versions = lines.get(number, {})
        if len(versions) != 1:
            verdict.violations.append(f"log line {number} is there in {len(versions)} versions")
            before = None
            continue
        ((digest, previous),) = versions.items()
        if number > 1 and previous != before and before is not None:
            verdict.violations.append(f"log line {number} does not follow the one before")
        before = digest
    return told
