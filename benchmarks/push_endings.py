"""Pushed feeds that end: each in its own way, with the right reason and the right successor, and not one sample more.

Real: the push listener and its TCP sockets, the decoders, the engine, its ladder, encoder, signatures. Imitated: the
broker (a loopback in process). Every ending is a feed and a stream of its own; `LANES` of them run at once. A source
connects a second before its window opens and is heard by an ear that verifies and decodes what a speaker would.

Kinds: close (signs off) · reset (the connection breaks) · freeze (connected, no bytes) · silence (digital silence) ·
revoke · second (another source at the busy mount) · window (the window is over). Successors in turn: a substitute that
is pulled over HTTP, the filler, silence. `gap_s` is how long a speaker's listener hears nothing: from the last sound of
the feed to the first of its successor; `fault_to_speaker_s` counts from the fault, so it holds the playout delay.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import socket
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.ears import Ear, mp3_of
from benchmarks.run import bar_of
from broadcast_server.audio.ffmpeg import Sandbox
from broadcast_server.domain.clock import to_ms
from broadcast_server.domain.errors import Refused
from broadcast_server.fetch import Fetcher
from broadcast_server.mqtt.bus import LoopbackBus, LoopbackHub
from broadcast_server.relay.engine import Engine, FeedKind, SourceSpec, StreamSpec
from broadcast_server.relay.ingest import EndReason, Ingest, IngestEvent, IngestLimits
from broadcast_server.relay.switching import Sounding, SourceKind
from broadcast_server.signer.keys import FileSigner
from broadcast_server.supervise import SystemChance, SystemClock, ThreadExecutor
from simulation.radio import Faults, Station
from simulation.samples import tone_pcm

ENDINGS: Final = int(os.environ.get("LOA_BENCH_ENDINGS", "210"))
LANES: Final = int(os.environ.get("LOA_BENCH_LANES", "16"))
MAIN, SPARE, LOOP = (500, 1100), (700, 2300), (1300, 1900)
KINDS = ("close", "reset", "freeze", "silence", "revoke", "second", "window")
SUCCESSORS = (SourceKind.SUBSTITUTE, SourceKind.FILLER, SourceKind.SILENCE)
GAP_S: Final = 5.0
SILENT_GAP_S: Final = 12.0
REASONS: Final = {
    "close": ("source_clean", EndReason.CLEAN),
    "reset": ("source_cut", EndReason.CUT),
    "freeze": ("stalled", EndReason.STALLED),
    "silence": ("source_silent", None),
    "revoke": ("source_revoked", EndReason.REVOKED),
    "second": (None, EndReason.MOUNT_BUSY),
    "window": ("window_over", None),
}
FILLER: Final = "f" * 64


@dataclass
class Tally:
    """What was tried and what came of it."""

    attempted: int = 0
    right_reason: int = 0
    outside: int = 0
    gaps_s: list[float] = field(default_factory=list)
    silent_gaps_s: list[float] = field(default_factory=list)
    to_speaker_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    by_kind: Counter[str] = field(default_factory=Counter)


class Rig:
    """Listener, engine and bus; one substitute station that everybody may pull."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.chance = SystemClock(), SystemChance()
        self.folder = folder
        self.events: dict[str, list[IngestEvent]] = {}
        self.changes: dict[str, list[Sounding]] = {}
        self.specs: dict[str, StreamSpec] = {}
        self.tone = mp3_of(tone_pcm(MAIN, 20.0))
        self.quiet = mp3_of(bytes(20 * 96_000))

    def now_s(self) -> float:
        """The wall clock."""
        return to_ms(self.clock.now()) / 1000

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything up."""
        self.bus = LoopbackBus(LoopbackHub(), clock=self.clock)
        await self.bus.start()
        sandbox = await Sandbox.probe()
        executor = ThreadExecutor(2, name="bench.encode")
        self.ingest = Ingest(
            authenticate=self.authenticate,
            sandbox=sandbox,
            clock=self.clock,
            chance=self.chance,
            limits=IngestLimits(connections=1_000, connections_per_address=1_000),
            on_event=lambda event: self.events.setdefault(event.feed_id, []).append(event),
        )
        spare = mp3_of(tone_pcm(SPARE, 20.0))
        async with Station(spare, len(spare) / 20.0, faults=Faults(burst_s=1.0)) as self.spare:
            self.engine = Engine(
                bus=self.bus,
                signer=FileSigner(self.folder / "keys", chance=self.chance, path_of=lambda unit: (unit,)),
                fetcher=Fetcher(clock=self.clock, allow_private=frozenset({self.spare.authority})),
                sandbox=sandbox,
                clock=self.clock,
                chance=self.chance,
                executor=executor,
                pushed=self.ingest,
                load_filler=self.filler,
            )
            self.port = await self.ingest.start(port=0)
            yield
            await self.engine.close()
            await self.ingest.close()
        await self.bus.close()
        executor.close()

    async def filler(self, _sha256: str) -> bytes:
        """The recording."""
        return tone_pcm(LOOP, 10.0)

    async def authenticate(self, mount: str, _user: str, password: str) -> str:
        """Everybody with the right password."""
        if password != "mat-khau":
            raise Refused("push_wrong_password")
        return f"feed-{mount}"

    async def reconcile(self) -> None:
        """Tell the engine what is wanted now, and sort what it tells."""
        await self.engine.reconcile(dict(self.specs))
        self.sort()

    def sort(self) -> None:
        """What began to sound, by feed."""
        for change in self.engine.changes():
            self.changes.setdefault(change.feed_id, []).append(change)


class Pusher:
    """A station's encoder, by hand."""

    def __init__(self, rig: Rig, mount: str) -> None:
        self._rig, self._mount = rig, mount
        self.is_frozen = self.is_quiet = False

    async def connect(self) -> bytes:
        """Ask for the mount; the status line."""
        reader, self._writer = await asyncio.open_connection("127.0.0.1", self._rig.port)
        token = base64.b64encode(b"source:mat-khau").decode()
        lines = (f"PUT /{self._mount} HTTP/1.1", "Content-Type: audio/mpeg", f"Authorization: Basic {token}", "", "")
        self._writer.write("\r\n".join(lines).encode())
        await self._writer.drain()
        return await reader.readline()

    async def push(self) -> None:
        """In real time, for ever."""
        rate = len(self._rig.tone) / 20.0
        began_s, sent = asyncio.get_running_loop().time(), 0
        with contextlib.suppress(ConnectionError):
            while True:
                due = int((asyncio.get_running_loop().time() - began_s + 0.1) * rate)
                sound = self._rig.quiet if self.is_quiet else self._rig.tone
                if not self.is_frozen:
                    self._writer.write((sound + sound)[sent % len(sound) :][: due - sent])
                    await self._writer.drain()
                sent = due
                await asyncio.sleep(0.1)

    def close(self) -> None:
        """Sign off."""
        self._writer.close()

    def reset(self) -> None:
        """Break the connection."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


async def ending(rig: Rig, number: int, tally: Tally) -> None:
    """One feed's life."""
    kind, successor = KINDS[number % len(KINDS)], SUCCESSORS[number // len(KINDS) % len(SUCCESSORS)]
    mount = f"m{number}"
    feed = f"feed-{mount}"
    ear = Ear(feed, rig.bus, rig.now_s)
    pusher = Pusher(rig, mount)
    assert b" 200 " in await pusher.connect()
    pushing = asyncio.create_task(pusher.push(), name=f"bench.push[{mount}]")
    try:
        await asyncio.sleep(1.0)
        early = ear.batches
        rig.specs[feed] = StreamSpec(
            feed,
            feed,
            FeedKind.PUSH,
            1,
            45,
            mount=mount,
            substitutes=(SourceSpec(f"spare-{number}", FeedKind.PULL, url=rig.spare.url),)
            if successor is SourceKind.SUBSTITUTE
            else (),
            filler=FILLER if successor is SourceKind.FILLER else None,
        )
        await rig.reconcile()
        if not await _until(lambda: any(piece.tones == MAIN for piece in ear.pieces), 20.0):
            rig.sort()
            tally.wrong.append(f"{number} {kind}: never sounded, {rig.engine.status()[feed]}, {rig.changes.get(feed)}")
            return
        await asyncio.sleep(2.0)
        fault_s = rig.now_s()
        tally.attempted += 1
        told = await _fault(rig, kind, feed, mount, pusher)
        await _aftermath(ear, kind, successor, fault_s, tally, feed)
        if kind == "freeze":  # the listener gives the mount free after 10 s
            await _until(lambda: any(event.reason for event in rig.events[feed]), 14.0)
        rig.specs.pop(feed, None)
        await rig.reconcile()
        over_s, batches = rig.now_s(), ear.batches
        await asyncio.sleep(1.5)
        outside = early + ear.batches - batches + (ear.last_came_s > over_s + 0.05)
        if outside:
            tally.outside += outside
            tally.wrong.append(f"{number} {kind}: {outside} batches outside the window")
        _judge_reason(rig, kind, feed, told, tally, number)
    finally:
        rig.specs.pop(feed, None)
        pushing.cancel()
        await asyncio.wait([pushing])
        pusher.close()


async def _fault(rig: Rig, kind: str, feed: str, mount: str, pusher: Pusher) -> bytes:
    match kind:
        case "close":
            pusher.close()
        case "reset":
            pusher.reset()
        case "freeze":
            pusher.is_frozen = True
        case "silence":
            pusher.is_quiet = True
        case "revoke":
            await rig.ingest.revoke(feed)
        case "window":
            rig.specs.pop(feed)
            await rig.reconcile()
        case "second":
            other = Pusher(rig, mount)
            told = await other.connect()
            other.close()
            return told
    return b""


async def _aftermath(ear: Ear, kind: str, successor: SourceKind, fault_s: float, tally: Tally, feed: str) -> None:
    """Wait for what must follow, and measure when it did."""
    if kind == "second":
        goes_on = await _until(lambda: any(p.tones == MAIN and p.due_s > fault_s + 4.0 for p in ear.pieces), 8.0)
        if not goes_on:
            tally.wrong.append(f"{feed} second: the first source fell silent")
        return
    if kind == "window":
        return
    limit_s = SILENT_GAP_S if kind == "silence" else GAP_S
    wanted = {SourceKind.SUBSTITUTE: SPARE, SourceKind.FILLER: LOOP}.get(successor)
    if wanted is None:
        await asyncio.sleep(limit_s + 1.0)
        late = [piece for piece in ear.pieces if piece.came_s > fault_s + limit_s and not piece.is_quiet]
        if late:
            tally.wrong.append(f"{feed} {kind}: {len(late)} pieces sounded where silence was due")
        return
    found = await _until(
        lambda: next((p for p in ear.pieces if p.tones == wanted and p.came_s > fault_s), None), limit_s + 6.0
    )
    if found is None:
        tally.wrong.append(f"{feed} {kind}: the {successor} never sounded")
        return
    to_speaker_s = found.due_s - fault_s
    gap_s = found.due_s - max(piece.due_s + 0.1 for piece in ear.pieces if piece.tones == MAIN)
    tally.to_speaker_s.append(to_speaker_s)
    (tally.silent_gaps_s if kind == "silence" else tally.gaps_s).append(gap_s)
    if gap_s > limit_s:
        tally.wrong.append(f"{feed} {kind}: the {successor} after {gap_s:.1f} s")


def _judge_reason(rig: Rig, kind: str, feed: str, told: bytes, tally: Tally, number: int) -> None:
    rig.sort()
    reason, connection = REASONS[kind]
    ends = [event.reason for event in rig.events[feed] if event.reason is not None]
    changes = rig.changes.get(feed, [])
    after = [change.reason for change in changes[1:]]
    is_right = True
    if connection is not None:
        is_right = connection in ends
    if kind == "second":
        is_right &= b" 403 " in told and after in ([], ["window_over"])
    elif reason is not None:
        is_right &= bool(after) and after[0] == reason
    is_right &= bool(changes) and changes[-1].kind is SourceKind.OVER and changes[-1].reason == "window_over"
    tally.right_reason += is_right
    if is_right:
        tally.by_kind[kind] += 1
    else:
        tally.wrong.append(f"{number} {kind}: reasons {after}, connection {[each.value for each in ends]}")


async def _until(look: Any, timeout_s: float) -> Any:
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while not (seen := look()) and loop.time() < deadline_s:  # noqa: ASYNC110  it looks at what others do
        await asyncio.sleep(0.05)
    return seen


async def measure(endings: int = ENDINGS, lanes: int = LANES) -> Tally:
    """So many endings, `lanes` at once."""
    tally = Tally()
    numbers = itertools.count()
    with tempfile.TemporaryDirectory(prefix="loa-bench-") as folder:
        rig = Rig(Path(folder))
        async with rig.running():

            async def lane(wait_s: float) -> None:
                await asyncio.sleep(wait_s)
                while (number := next(numbers)) < endings:
                    await ending(rig, number, tally)

            async with asyncio.TaskGroup() as group:
                for at in range(lanes):
                    group.create_task(lane(at * 0.25), name=f"bench.lane[{at}]")
    return tally


def run() -> dict[str, Any]:
    """See the module."""
    tally = asyncio.run(measure())
    for line in tally.wrong[:20]:
        print(line, file=sys.stderr)
    gaps, silent = tally.gaps_s or [float("inf")], tally.silent_gaps_s or [float("inf")]
    share = tally.right_reason / tally.attempted if tally.attempted else 0.0
    return {
        "name": "push_endings",
        "figures": {
            "attempted": tally.attempted,
            "ok": tally.right_reason,
            "violations": len(tally.wrong),
            "lanes": LANES,
            "right_by_kind": dict(sorted(tally.by_kind.items())),
            "gap_s": {"p50": float(np.median(gaps)), "max": max(gaps), "measured": len(tally.gaps_s)},
            "silence_gap_s": {
                "p50": float(np.median(silent)),
                "max": max(silent),
                "measured": len(tally.silent_gaps_s),
            },
            "fault_to_speaker_s": {
                "p50": float(np.median(tally.to_speaker_s or [float("inf")])),
                "max": max(tally.to_speaker_s, default=float("inf")),
            },
            "samples_outside": tally.outside * 48_000,
        },
        "bars": [
            bar_of("pushed feeds that ended", tally.attempted, "≥ 200", holds=tally.attempted >= 200),
            bar_of("right reason", share, "100 %", holds=share == 1.0),
            bar_of("successor audible, longest gap", max(gaps), "≤ 5 s", holds=max(gaps) <= GAP_S),
            bar_of("after silence, longest gap", max(silent), "≤ 12 s", holds=max(silent) <= SILENT_GAP_S),
            bar_of("samples outside the window", tally.outside * 48_000, "0", holds=tally.outside == 0),
            bar_of("violations", len(tally.wrong), "0", holds=not tally.wrong),
        ],
    }


if __name__ == "__main__":
    print(run())
