"""A swarm of listeners in a process of its own: minimal MQTT 3.1.1 or HTTP clients on raw asyncio protocols.

It must cost little and never be the bottleneck. It prints one JSON line when all are connected and one with what they
received when its standard input ends. Three ways to tell the age of what comes: `mqtt` reads the media sample of an
audio batch, `cells` finds numbered cells of 60 bytes, `ogg` reads granule positions (of every 20th listener).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import struct
import sys
import time

CELL_BYTES = 60
CELL = struct.Struct(">4sQ")
MAGIC = b"LOA!"
SUBSCRIBE_ID = 1


class Tally:
    """What all listeners together received: `(arrival_s, first_sample, samples)` of every message or read."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, int, int]] = []
        self.bytes = 0
        self.reads = 0
        self.lost = 0


class MqttListener(asyncio.Protocol):
    """CONNECT, SUBSCRIBE at QoS 0, then PUBLISH after PUBLISH."""

    def __init__(self, tally: Tally, number: int, arguments: argparse.Namespace, ready: asyncio.Event) -> None:
        self.tally, self._number, self._arguments, self.ready = tally, number, arguments, ready
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        parts = (f"swarm-{self._number}", self._arguments.user, self._arguments.password)
        payload = b"".join(struct.pack(">H", len(part.encode())) + part.encode() for part in parts)
        transport.write(packet(0x10, b"\x00\x04MQTT\x04\xc2" + struct.pack(">H", 600) + payload))

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        self.tally.bytes += len(data)
        buffer = self._buffer + data if self._buffer else data
        at = 0
        while True:
            size, start = length_of(buffer, at)
            if size < 0 or start + size > len(buffer):
                break
            kind = buffer[at] & 0xF0
            if kind == 0x30:
                (topic,) = struct.unpack_from(">H", buffer, start)
                self._heard(now_s, buffer, start + 2 + topic)
            elif kind == 0x20 and self._transport is not None:
                topic_filter = self._arguments.topic.encode()
                body = struct.pack(">HH", SUBSCRIBE_ID, len(topic_filter)) + topic_filter + b"\x00"
                self._transport.write(packet(0x82, body))
            elif kind == 0x90:
                self.ready.set()
            at = start + size
        self._buffer = buffer[at:]

    def _heard(self, now_s: float, buffer: bytes, at: int) -> None:
        # frames.FIELDS: version, flags, epoch, sequence, media_sample, packets
        _, _, _, _, sample, packets = struct.unpack_from(">BBIIQB", buffer, at)
        self.tally.reads += 1
        self.tally.rows.append((now_s, sample, packets * 960))

    def connection_lost(self, _error: Exception | None) -> None:
        self.tally.lost += 1


class HttpListener(asyncio.Protocol):
    """GET, then bytes without end."""

    def __init__(self, tally: Tally, number: int, arguments: argparse.Namespace, ready: asyncio.Event) -> None:
        self.tally, self._number, self._arguments, self.ready = tally, number, arguments, ready
        self._header = b""
        self._is_open = False
        self._carry = b""
        self._next_cell = -1
        self._into_cell = 0
        self._granule = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(f"GET {self._arguments.topic} HTTP/1.0\r\nHost: x\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        self.tally.bytes += len(data)
        if not self._is_open:
            self._header += data
            _, end, data = self._header.partition(b"\r\n\r\n")
            if not end:
                return
            assert b" 200 " in self._header[:20], self._header[:200]
            self._is_open = True
            self.ready.set()
        if not data:
            return
        self.tally.reads += 1
        if self._arguments.kind == "cells":
            self._cells(now_s, data)
        elif self._number % 20 == 0:
            self._pages(now_s, data)

    def _cells(self, now_s: float, data: bytes) -> None:
        if self._next_cell < 0:
            self._carry += data
            at = self._carry.find(MAGIC)
            if at < 0 or len(self._carry) < at + CELL.size:
                return
            _, self._next_cell = CELL.unpack_from(self._carry, at)
            self._into_cell, data = 0, self._carry[at:]
        whole, self._into_cell = divmod(self._into_cell + len(data), CELL_BYTES)
        if whole:
            self.tally.rows.append((now_s, self._next_cell * 960, whole * 960))
            self._next_cell += whole

    def _pages(self, now_s: float, data: bytes) -> None:
        self._carry += data
        newest = -1
        while (at := self._carry.find(b"OggS")) >= 0 and len(self._carry) >= at + 14:
            (granule,) = struct.unpack_from("<q", self._carry, at + 6)
            newest = max(newest, granule)
            self._carry = self._carry[at + 14 :]
        if newest > self._granule:
            if self._granule:
                self.tally.rows.append((now_s, self._granule, newest - self._granule))
            self._granule = newest

    def connection_lost(self, _error: Exception | None) -> None:
        self.tally.lost += 1


def packet(kind: int, body: bytes) -> bytes:
    """One MQTT packet."""
    size, left = bytearray(), len(body)
    while True:
        left, digit = left >> 7, left & 0x7F
        size.append(digit | (0x80 if left else 0))
        if not left:
            return bytes([kind]) + bytes(size) + body


def length_of(buffer: bytes, at: int) -> tuple[int, int]:
    """`(remaining length, where the body starts)` of the packet at `at`; -1 while it is not all there."""
    size = shift = 0
    place = at + 1
    while place < len(buffer):
        digit = buffer[place]
        size |= (digit & 0x7F) << shift
        place += 1
        shift += 7
        if not digit & 0x80:
            return size, place
    return -1, place


async def main(arguments: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    tally = Tally()
    at_once = asyncio.Semaphore(50)
    listener = MqttListener if arguments.kind == "mqtt" else HttpListener

    async def connect(number: int) -> None:
        # A crowded accept queue now and then loses a connection its client believes in: try again.
        for _ in range(5):
            ready = asyncio.Event()
            async with at_once:
                transport, protocol = await loop.create_connection(
                    lambda ready=ready: listener(tally, number, arguments, ready),  # type: ignore[misc]
                    arguments.host,
                    arguments.port,
                    local_addr=(f"127.0.0.{2 + number % 50}", 0),
                )
            # Not while others wait for their turn: icecast2 answers with the first sound it has to send.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(12):
                    await ready.wait()
                return
            protocol.tally = Tally()
            transport.abort()
        raise RuntimeError(f"listener {number} was not let in")

    started_s = time.monotonic()
    await asyncio.gather(*(connect(number) for number in range(arguments.count)))
    print(json.dumps({"ready": arguments.count, "connect_s": time.monotonic() - started_s}), flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    mark = 0
    while line := await reader.readline():
        if line.strip() == b"mark":  # forget what came before the measured window
            mark = len(tally.rows)
            tally.bytes = tally.reads = 0
    told = {"rows": tally.rows[mark:], "bytes": tally.bytes, "reads": tally.reads, "lost": tally.lost}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=("mqtt", "cells", "ogg"), required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--user", default="")
    parser.add_argument("--password", default="")
    asyncio.run(main(parser.parse_args()))
