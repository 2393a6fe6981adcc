"""Feeds that fail or attack: what stands in is heard in time, nobody private is asked, nothing flaps.

A hostile server on loopback plays every part: it serves a good stream and then turns on us, in the middle of it or when
we come back. Real: fetcher, decoders, engine, ladder, encoder, the sockets. Imitated: the broker (a loopback in
process) and the DNS. Every fault is a feed and a stream of its own with a filler behind it; `LANES` at once.

Loopback is allowed for exactly the hostile server's own addresses. Every connection is written down; one to any other
address that is not public is a request to a private address, and so is any byte that reaches the trap, a server on
another loopback port that redirects, playlists and a turned DNS point to. `gap_s`: how long a speaker's listener hears
nothing good, from the last good sound to the next (the feed's own again, or the filler).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import io
import itertools
import os
import socket
import ssl
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.ears import Ear, mp3_of
from benchmarks.run import bar_of
from broadcast_server.audio.ffmpeg import Sandbox
from broadcast_server.domain.clock import to_ms
from broadcast_server.fetch import Fetcher, connect_by_system, is_public, resolve_by_system
from broadcast_server.mqtt.bus import LoopbackBus, LoopbackHub
from broadcast_server.relay.engine import Engine, FeedKind, StreamSpec
from broadcast_server.relay.switching import Sounding, SourceKind
from broadcast_server.signer.keys import FileSigner
from broadcast_server.supervise import SystemChance, SystemClock, ThreadExecutor
from simulation.samples import tone_pcm

FAULTS: Final = int(os.environ.get("LOA_BENCH_FAULTS", "165"))
LANES: Final = int(os.environ.get("LOA_BENCH_LANES", "16"))
MAIN, LOOP = (500, 1100), (1300, 1900)
GAP_S, SILENT_GAP_S = 5.0, 12.0
WATCH_S: Final = 8.0
"""So long a lane is watched after something stood in: does it flap?"""
LOOP_S: Final = 20.0
LIFE_S: Final = 120.0
FILLER: Final = "f" * 64
PUBLIC: Final = "8.8.8.8"

MIDSTREAM = (
    "reset", "stall", "drip", "silence", "stuck", "noise", "overdriven", "constant", "garbage",
    "codec", "rate", "bitrate", "title", "comes_and_goes",
)  # fmt: skip
"""While it plays."""
COMEBACK = (
    "404", "401", "503", "302_private", "302_trap", "302_circle", "m3u8_private", "m3u8_trap", "ffconcat", "sdp",
    "html", "gzip", "endless_header", "header_drip", "nothing", "rebind_v4", "rebind_v6",
)  # fmt: skip
"""It breaks off, and this is what we find when we come back."""
OUTSET = ("tls_expired", "tls_wrong_host")
"""From the beginning."""
KINDS: Final = (*MIDSTREAM, *COMEBACK, *OUTSET)


@dataclass
class Tally:
    """What was tried and what came of it."""

    attempted: int = 0
    gaps_s: dict[str, float] = field(default_factory=dict)
    private: list[str] = field(default_factory=list)
    flaps: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    longest: dict[str, float] = field(default_factory=dict)


class Hostile:
    """The far side. `modes`: what each path does now."""

    def __init__(self, trap_port: Callable[[], int]) -> None:
        self.modes: dict[str, str] = {}
        self.port = 0
        self._trap_port = trap_port
        squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
        self._bomb = squeeze.compress(bytes(50_000_000)) + squeeze.flush()
        speech = _speechlike(6.0)
        stuck = np.tile(speech[:9_600], 100)
        loud = np.clip(speech * 40.0, -1.0, 1.0)
        chance = np.random.default_rng(5)
        self.sounds = {
            "good": mp3_of(tone_pcm(MAIN, LOOP_S)),
            "silence": mp3_of(bytes(round(LOOP_S) * 96_000)),
            "stuck": mp3_of(_pcm(stuck), kbps=128),
            "noise": mp3_of(_pcm(chance.uniform(-1, 1, 20 * 48_000)), kbps=128),
            "overdriven": mp3_of(_pcm(np.tile(loud, 3)), kbps=128),
            "constant": _adts(_pcm(np.clip(np.tile(speech, 3) * 0.2 + 0.4, -1, 1))),
            "codec": _adts(tone_pcm(MAIN, LOOP_S)),
            "rate": mp3_of(tone_pcm(MAIN, LOOP_S), rate_hz=44_100),
            "bitrate": mp3_of(tone_pcm(MAIN, LOOP_S), kbps=128),
            "garbage": np.random.default_rng(9).bytes(200_000),
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode("latin-1").strip("/").partition("/")[0]
            mode = self.modes.get(path, "404")
            if mode in ("good", *MIDSTREAM):
                await self._play(writer, path)
            else:
                await self._answer(writer, mode)
        writer.close()

    async def _play(self, writer: asyncio.StreamWriter, path: str) -> None:
        titled = self.modes[path] == "title" or path.startswith("title")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: audio/mpeg\r\n")
        writer.write(b"icy-metaint: 1000\r\n\r\n" if titled else b"\r\n")
        loop = asyncio.get_running_loop()
        last_s, sent, into, mode = loop.time() - 1.0, 0, 0, "good"
        while True:
            told = self.modes[path]
            if told != mode:
                mode, sent = told, 0
            if mode in COMEBACK or mode == "reset":
                if mode == "reset":
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    writer.transport.abort()
                return
            now_s = loop.time()
            passed_s, last_s = now_s - last_s, now_s
            if mode == "drip":
                writer.write(b"\xff" if int(now_s) != int(now_s - passed_s) else b"")
            elif mode != "stall":
                sound = self.sounds.get(mode, self.sounds["good"])
                seconds = (
                    LOOP_S
                    if mode in {"good", "title", "silence", "codec", "rate", "bitrate", "noise", "stuck"}
                    else 18.0
                )
                count = int(passed_s * len(sound) / seconds)
                piece = (sound + sound)[sent % len(sound) :][:count]
                sent += count
                if titled:
                    piece, into = _with_titles(piece, into, huge=mode == "title")
                writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.1)

    async def _answer(self, writer: asyncio.StreamWriter, mode: str) -> None:
        trap = f"http://127.0.0.1:{self._trap_port()}/secret"
        body, kind, status, more = b"", "audio/mpeg", "200 OK", ""
        match mode:
            case "404" | "401" | "503":
                status = f"{mode} No"
            case "302_private":
                status, more = "302 Found", "Location: http://169.254.169.254/latest/meta-data\r\n"
            case "302_trap":
                status, more = "302 Found", f"Location: {trap}\r\n"
            case "302_circle":
                status, more = "302 Found", f"Location: http://127.0.0.1:{self.port}/circle\r\n"
            case "m3u8_private":
                kind = "application/vnd.apple.mpegurl"
                body = b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nhttp://10.0.0.1/a.mp3\n"
            case "m3u8_trap":
                kind = "application/vnd.apple.mpegurl"
                body = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{trap}\n".encode()
            case "ffconcat":
                body = f"ffconcat version 1.0\nfile '{trap}'\n".encode() * 200
            case "sdp":
                body = b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 10.0.0.1\nm=audio 5004 RTP/AVP 14\n" * 200
            case "html":
                body = b"<html>khong co gi o day</html>" * 900
            case "gzip":
                more, body = "Content-Encoding: gzip\r\n", self._bomb
            case "endless_header":
                writer.write(b"HTTP/1.0 200 OK\r\n")
                while True:
                    writer.write(b"X-More: " + b"x" * 1_000 + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(0)
            case "header_drip":
                for byte in b"HTTP/1.0 200 OK\r\nX: " + b"x" * 200:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(1.0)
            case "nothing":
                await asyncio.sleep(60.0)
        writer.write(f"HTTP/1.0 {status}\r\nContent-Type: {kind}\r\n{more}\r\n".encode() + body)
        await writer.drain()


def _with_titles(sound: bytes, into: int, *, huge: bool) -> tuple[bytes, int]:
    text = b"StreamTitle='" + b"\xff\xfb\x50\xc4" * 1_000 + b"';" if huge else b""
    block = bytes([min(255, -(-len(text) // 16))])
    block += text[: 255 * 16].ljust(block[0] * 16, b"\0")
    out = bytearray()
    while sound:
        taken, sound = sound[: 1_000 - into], sound[1_000 - into :]
        out += taken
        into += len(taken)
        if into == 1_000:
            out += block
            into = 0
    return bytes(out), into


def _speechlike(seconds: float) -> np.ndarray:
    at_s = np.arange(round(seconds * 48_000)) / 48_000
    pitch = 140 + 30 * np.sin(2 * np.pi * 0.37 * at_s) + 9 * np.sin(2 * np.pi * 1.9 * at_s)
    phase = 2 * np.pi * np.cumsum(pitch) / 48_000
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    return np.asarray(0.2 * voice * np.clip(np.sin(2 * np.pi * 2.7 * at_s) + 0.4, 0, 1))


def _pcm(sound: np.ndarray) -> bytes:
    return np.clip(np.rint(sound * 32_767), -32_768, 32_767).astype("<i2").tobytes()


def _adts(pcm: bytes) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="adts") as container:
        stream = container.add_stream("aac", rate=48_000)
        assert isinstance(stream, av.AudioStream)
        stream.layout, stream.bit_rate = "mono", 64_000
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=48_000)
        samples = np.ascontiguousarray(np.frombuffer(pcm, dtype="<i2").reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 48_000
        for ready in (*resampler.resample(frame), *resampler.resample(None)):
            for packet in stream.encode(ready):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return file.getvalue()


def _certificate(folder: Path, name: str, *, days: tuple[int, int]) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=days[0]))
        .not_valid_after(now + dt.timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


class Rig:
    """The hostile server, the trap, and a relay that writes down whom it asks."""

    def __init__(self, folder: Path, kinds: Sequence[str]) -> None:
        self.folder, self.clock, self.chance = folder, SystemClock(), SystemChance()
        self.kinds = tuple(kinds)
        self.specs: dict[str, StreamSpec] = {}
        self.changes: dict[str, list[Sounding]] = {}
        self.private: list[str] = []
        self.turned: set[str] = set()
        self.trap_port = 0
        self.hostile = Hostile(lambda: self.trap_port)

    def now_s(self) -> float:
        """The wall clock."""
        return to_ms(self.clock.now()) / 1000

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """A DNS that is turned for some names: first a public address, then one of ours."""
        if not host.endswith(".example"):
            return await resolve_by_system(host, port)
        if host not in self.turned:
            return (PUBLIC,)
        return ("127.0.0.1",) if "v4" in host else ("::1",)

    async def connect(self, address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Every connection, written down; the public address is the hostile server."""
        if address == PUBLIC:
            return await connect_by_system("127.0.0.1", self.hostile.port)
        if (address, port) not in self.allowed and not is_public(address):
            self.private.append(f"{address}:{port}")
        return await connect_by_system(address, port)

    async def trapped(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody was led here."""
        self.private.append("trap")
        writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything up."""
        servers = [await asyncio.start_server(self.hostile.serve, "127.0.0.1", 0, limit=1 << 16)]
        servers.append(await asyncio.start_server(self.trapped, "127.0.0.1", 0))
        for name, days in (("localhost", (-400, -30)), ("other.example", (-1, 30))):
            context = _certificate(self.folder, name, days=days)
            servers.append(await asyncio.start_server(self.hostile.serve, "127.0.0.1", 0, ssl=context))
        ports = [int(server.sockets[0].getsockname()[1]) for server in servers]
        self.hostile.port, self.trap_port, self.expired_port, self.other_port = ports
        own = (ports[0], *ports[2:])
        self.allowed = {("127.0.0.1", port) for port in own}
        self.bus = LoopbackBus(LoopbackHub(), clock=self.clock)
        await self.bus.start()
        executor = ThreadExecutor(2, name="bench.encode")
        self.engine = Engine(
            bus=self.bus,
            signer=FileSigner(self.folder / "keys", chance=self.chance, path_of=lambda unit: (unit,)),
            fetcher=Fetcher(
                clock=self.clock,
                allow_private=frozenset(f"127.0.0.1:{port}" for port in own),
                resolve=self.resolve,
                connect=self.connect,
            ),
            sandbox=await Sandbox.probe(),
            clock=self.clock,
            chance=self.chance,
            executor=executor,
            load_filler=_filler,
        )
        yield
        await self.engine.close()
        for server in servers:
            server.close()
        await self.bus.close()
        executor.close()

    async def reconcile(self) -> None:
        """Tell the engine what is wanted now, and sort what it tells."""
        await self.engine.reconcile(dict(self.specs))
        for change in self.engine.changes():
            self.changes.setdefault(change.feed_id, []).append(change)


async def _filler(_sha256: str) -> bytes:
    return tone_pcm(LOOP, 10.0)


async def fault(rig: Rig, number: int, tally: Tally) -> None:
    """One feed's life."""
    kind = rig.kinds[number % len(rig.kinds)]
    path, feed = f"{kind}-{number}", f"feed-{number}"
    rig.hostile.modes[path] = "good"
    ear = Ear(feed, rig.bus, rig.now_s)
    rig.specs[feed] = StreamSpec(feed, feed, FeedKind.PULL, 1, 45, url=_url(rig, kind, path, number), filler=FILLER)
    began_s = rig.now_s()
    try:
        await rig.reconcile()
        if kind not in OUTSET:
            if not await _until(lambda: any(piece.tones == MAIN for piece in ear.pieces), 20.0):
                tally.wrong.append(f"{feed} {kind}: never sounded")
                return
            await asyncio.sleep(1.5)
        tally.attempted += 1
        fault_s = rig.now_s()
        rig.turned.add(f"{kind.replace('_', '-')}-{number}.example")
        if kind == "comes_and_goes":
            for _ in range(4):
                rig.hostile.modes[path] = "stall"
                await asyncio.sleep(4.0)
                rig.hostile.modes[path] = "good"
                await asyncio.sleep(3.0)
        else:
            rig.hostile.modes[path] = kind
        limit_s = SILENT_GAP_S if kind == "silence" else GAP_S
        wait_s = limit_s + 4.0
        await _until(lambda: any(p.tones == LOOP and p.came_s > fault_s for p in ear.pieces), wait_s)
        await asyncio.sleep(WATCH_S)
        rig.specs.pop(feed)
        await rig.reconcile()
        _judge(rig, ear, kind, feed, began_s, limit_s, tally)
    finally:
        rig.specs.pop(feed, None)
        rig.hostile.modes[path] = "404"


def _url(rig: Rig, kind: str, path: str, number: int) -> str:
    if kind == "tls_expired":
        return f"https://127.0.0.1:{rig.expired_port}/{path}"
    if kind == "tls_wrong_host":
        return f"https://127.0.0.1:{rig.other_port}/{path}"
    if kind.startswith("rebind"):
        return f"http://{kind.replace('_', '-')}-{number}.example:8000/{path}"
    return f"http://127.0.0.1:{rig.hostile.port}/{path}"


def _judge(rig: Rig, ear: Ear, kind: str, feed: str, began_s: float, limit_s: float, tally: Tally) -> None:
    good = sorted(piece.due_s for piece in ear.pieces if piece.tones in (MAIN, LOOP))
    if kind in OUTSET:
        delay_s = ear.heads[-1].playout_delay_ms / 1000 if ear.heads else 0.0
        gap_s = good[0] - began_s - delay_s if good else float("inf")
    elif len(good) < 2:
        gap_s = float("inf")
    else:
        gap_s = max(late - early - 0.1 for early, late in itertools.pairwise(good))
        # Nothing good until the end is a gap as well.
        gap_s = max(gap_s, ear.pieces[-1].due_s - good[-1] - 0.1)
    tally.gaps_s[feed] = gap_s
    tally.longest[kind] = max(gap_s, tally.longest.get(kind, 0.0))
    changes = rig.changes.get(feed, [])
    tally.reasons.update(f"{kind}: {each.reason}" for each in changes[1:-1])
    if gap_s > limit_s:
        tally.wrong.append(f"{feed} {kind}: nothing good for {gap_s:.1f} s ({[each.reason for each in changes]})")
    returns = sum(each.kind is SourceKind.FEED for each in changes[1:])
    if returns > 1:
        tally.flaps.append(f"{feed} {kind}: came back {returns} times")


async def _until(look: Callable[[], Any], timeout_s: float) -> Any:
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while not (seen := look()) and loop.time() < deadline_s:  # noqa: ASYNC110  it looks at what others do
        await asyncio.sleep(0.05)
    return seen


async def measure(faults: int = FAULTS, lanes: int = LANES, kinds: Sequence[str] = KINDS) -> Tally:
    """So many faults of these kinds in turn, `lanes` at once."""
    tally = Tally()
    numbers = itertools.count()
    with tempfile.TemporaryDirectory(prefix="loa-bench-") as folder:
        rig = Rig(Path(folder), kinds)
        async with rig.running():

            async def lane(wait_s: float) -> None:
                await asyncio.sleep(wait_s)
                while (number := next(numbers)) < faults:
                    try:
                        async with asyncio.timeout(LIFE_S):
                            await fault(rig, number, tally)
                    except TimeoutError:
                        tally.wrong.append(f"feed-{number} {kinds[number % len(kinds)]}: not over after {LIFE_S:.0f} s")

            async with asyncio.TaskGroup() as group:
                for at in range(lanes):
                    group.create_task(lane(at * 0.25), name=f"bench.lane[{at}]")
        tally.private = rig.private
    return tally


def run() -> dict[str, Any]:
    """See the module."""
    tally = asyncio.run(measure())
    for line in (*tally.wrong, *tally.flaps, *tally.private[:5]):
        print(line, file=sys.stderr)
    violations = len(tally.wrong) + len(tally.flaps) + len(tally.private)
    quick = [gap for kind, gap in tally.longest.items() if kind != "silence"] or [float("inf")]
    return {
        "name": "feed_faults",
        "figures": {
            "attempted": tally.attempted,
            "ok": tally.attempted - len(tally.wrong),
            "violations": violations,
            "kinds": len(KINDS),
            "lanes": LANES,
            "longest_gap_s": {kind: round(gap, 2) for kind, gap in sorted(tally.longest.items())},
            "private_requests": len(tally.private),
        },
        "bars": [
            bar_of("faults injected", tally.attempted, "≥ 150", holds=tally.attempted >= 150),
            bar_of("fallback audible, longest gap", max(quick), "≤ 5 s", holds=max(quick) <= GAP_S),
            bar_of(
                "after silence, longest gap",
                tally.longest.get("silence", float("inf")),
                "≤ 12 s",
                holds=tally.longest.get("silence", float("inf")) <= SILENT_GAP_S,
            ),
            bar_of("requests to private addresses", len(tally.private), "0", holds=not tally.private),
            bar_of("streams that flapped", len(tally.flaps), "0", holds=not tally.flaps),
        ],
    }


if __name__ == "__main__":
    print(run())
