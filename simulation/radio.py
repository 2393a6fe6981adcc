"""A radio station on a loopback port: one programme round and round over HTTP, in real time, and the ways it can fail.

Service / state / use cases: `Station` is the service (a real socket), its attributes the state a test looks at
(`listeners`, `asked`, `began_s`), `station.faults` the verbs. Every station here is "mô phỏng"; what it plays are the
tone pairs of `audio_samples/`, so whoever hears it can name it. It speaks plain HTTP/1.0 as Icecast does, the Shoutcast
dialect when told, and HLS with packed-audio segments under `/hls/`. Run one by
`python -m simulation.radio --sample station_pull`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Self

from simulation.samples import sample

CONTENT_TYPES: Final = {"mp3": "audio/mpeg", "opus": "application/ogg", "ogg": "application/ogg", "aac": "audio/aac"}
_HEADER_LIMIT: Final = 16 * 1024


@dataclass(slots=True)
class Faults:
    """What is wrong with the station; set before or while it plays. Each imitates a failure seen in the field."""

    status: int = 200
    """Another than 200: the mount was renamed, the server is full."""
    redirect_to: str | None = None
    """The station moved, or somebody points it at a neighbour of ours."""
    drip: bool = False
    """One byte a second: a connection that is open and carries nothing."""
    stall_after_s: float | None = None
    """The encoder hangs: the connection stays, bytes stop."""
    die_after_s: float | None = None
    """The server is restarted: the connection breaks."""
    garbage: bool = False
    """Not audio although the header says so."""
    content_type: str | None = None
    """A wrong label."""
    icy: bool = False
    """A Shoutcast server: "ICY 200 OK"."""
    metaint: int = 0
    """It sends its titles in between, asked or not."""
    burst_s: float = 0.0
    """So much sound at once on connect, as Icecast's burst-size does."""
    speed: float = 1.0
    """Its clock is fast or slow; a file server is very fast."""
    long_header_bytes: int = 0


@dataclass(slots=True)
class Station:
    """A running station. `sound` is played round and round at `bytes_per_s`."""

    sound: bytes
    bytes_per_s: float
    content_type: str = "audio/mpeg"
    piece_s: float = 0.1
    hls_segment_s: float = 1.0
    faults: Faults = field(default_factory=Faults)
    listeners: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    began_s: list[float] = field(default_factory=list)
    """Monotonic instant of the first byte of each listener, newest last (the last thousand)."""
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _on_air_s: float = 0.0

    @classmethod
    def of_sample(cls, name: str, *, faults: Faults | None = None) -> Station:
        """A station that plays a sample of `audio_samples/`."""
        found = sample(name)
        sound = found.path.read_bytes()
        return cls(
            sound,
            len(sound) / found.duration_s,
            content_type=CONTENT_TYPES[found.path.suffix[1:]],
            faults=faults or Faults(),
        )

    async def start(self, port: int = 0) -> Self:
        """Go on the air on 127.0.0.1."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=_HEADER_LIMIT)
        self.port = self._server.sockets[0].getsockname()[1]
        self._on_air_s = time.monotonic()
        return self

    async def close(self) -> None:
        """Off the air; every connection is cut."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    def cut(self) -> None:
        """Break every connection now; the station stays on the air."""
        for task in tuple(self._tasks):
            task.cancel()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    @property
    def authority(self) -> str:
        """`host:port`, as the exception in the fetcher's settings is written."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The endless stream."""
        return f"http://{self.authority}/live"

    @property
    def hls_url(self) -> str:
        """The HLS master playlist."""
        return f"http://{self.authority}/hls/master.m3u8"

    # -- inside

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        self._tasks.add(task)
        self.listeners += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode("latin-1")
            self.asked[path] += 1
            if path.startswith("/hls/"):
                self._hls(path, writer)
                await writer.drain()
            else:
                await self._live(writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # the listener or the station went; either way this connection is over
        finally:
            self.listeners -= 1
            self._tasks.discard(task)
            writer.close()

    async def _live(self, writer: asyncio.StreamWriter) -> None:
        faults = self.faults
        if faults.redirect_to is not None:
            writer.write(f"HTTP/1.0 302 Found\r\nLocation: {faults.redirect_to}\r\n\r\n".encode())
            return await writer.drain()
        if faults.status != 200:
            writer.write(f"HTTP/1.0 {faults.status} No\r\nContent-Type: text/plain\r\n\r\nno".encode())
            return await writer.drain()
        lines = [
            "ICY 200 OK" if faults.icy else "HTTP/1.0 200 OK",
            f"Content-Type: {faults.content_type or self.content_type}",
            "icy-name: Đài mô phỏng",
            "Cache-Control: no-cache",
        ]
        if faults.metaint:
            lines.append(f"icy-metaint: {faults.metaint}")
        if faults.long_header_bytes:
            lines.append("X-Long: " + "x" * faults.long_header_bytes)
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        await self._play(writer)
        return None

    async def _play(self, writer: asyncio.StreamWriter) -> None:
        began_s = time.monotonic()
        self.began_s = [*self.began_s[-999:], began_s]
        metadata = _Metadata(self.faults.metaint)
        sent = 0
        while True:
            faults = self.faults
            elapsed_s = time.monotonic() - began_s
            if faults.die_after_s is not None and elapsed_s >= faults.die_after_s:
                return
            if faults.stall_after_s is not None and elapsed_s >= faults.stall_after_s:
                await asyncio.sleep(self.piece_s)
                continue
            if faults.drip:
                writer.write(self.sound[sent : sent + 1])
                sent += 1
                await writer.drain()
                await asyncio.sleep(1.0)
                continue
            due = int((elapsed_s * faults.speed + faults.burst_s + self.piece_s) * self.bytes_per_s)
            piece = self._piece(sent, due - sent)
            sent = due
            writer.write(metadata.mixed_into(piece))
            await writer.drain()
            # Against the plan of the whole connection, so that late wake-ups do not add up.
            next_s = (sent / self.bytes_per_s - faults.burst_s) / faults.speed
            await asyncio.sleep(max(0.0, began_s + next_s - time.monotonic()))

    def _piece(self, start: int, length: int) -> bytes:
        if self.faults.garbage:
            return bytes((start + at) * 7919 % 251 & 0x7F for at in range(length))
        start %= len(self.sound)
        piece = self.sound[start : start + length]
        while len(piece) < length:
            piece += self.sound[: length - len(piece)]
        return piece

    def _hls(self, path: str, writer: asyncio.StreamWriter) -> None:
        newest = int((time.monotonic() - self._on_air_s) / self.hls_segment_s) + 3
        body: bytes | None = None
        kind = "application/vnd.apple.mpegurl"
        name = path.removeprefix("/hls/")
        if self.faults.status != 200:
            body = None
        elif name == "master.m3u8":
            body = b'#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=64000,CODECS="mp4a.40.34"\nmedia.m3u8\n'
        elif name == "media.m3u8":
            lines = ["#EXTM3U", f"#EXT-X-TARGETDURATION:{max(1, round(self.hls_segment_s))}"]
            lines.append(f"#EXT-X-MEDIA-SEQUENCE:{max(0, newest - 4)}")
            for number in range(max(0, newest - 4), newest):
                lines += [f"#EXTINF:{self.hls_segment_s:.3f},", f"{number}.mp3"]
            body = ("\n".join(lines) + "\n").encode()
        elif name.endswith(".mp3") and name[:-4].isdecimal():
            number = int(name[:-4])
            start, end = (int(at * self.hls_segment_s * self.bytes_per_s) for at in (number, number + 1))
            kind, body = "audio/mpeg", self._piece(start, end - start)
        if body is None:
            writer.write(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        head = f"HTTP/1.0 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)


class _Metadata:
    """Shoutcast titles between the sound."""

    def __init__(self, metaint: int) -> None:
        self._metaint, self._left = metaint, metaint
        text = "StreamTitle='<b>Bài hát mô phỏng</b>';".encode()
        self._block = bytes([-(-len(text) // 16)]) + text + bytes(-len(text) % 16)

    def mixed_into(self, sound: bytes) -> bytes:
        if not self._metaint:
            return sound
        mixed = bytearray()
        while sound:
            taken, sound = sound[: self._left], sound[self._left :]
            mixed += taken
            self._left -= len(taken)
            if not self._left:
                mixed += self._block
                self._left = self._metaint
        return bytes(mixed)


async def _run(arguments: argparse.Namespace) -> None:
    station = Station.of_sample(arguments.sample)
    async with station:
        await station.close()
        await station.start(arguments.port)
        print(json.dumps({"url": station.url, "hls_url": station.hls_url}), flush=True)  # noqa: T201
        with contextlib.suppress(asyncio.CancelledError):
            # Whoever started this station ends it by closing its input, or by a signal.
            await asyncio.to_thread(sys.stdin.buffer.read)


def main() -> None:
    """Run one station until its standard input ends."""
    parser = argparse.ArgumentParser(description="A simulated radio station on 127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--sample", default="station_pull")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
