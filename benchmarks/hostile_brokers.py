"""A broker that sends anything, and the two MQTT clients of ours in front of it: they must live, and come back.

Each connection is accepted as a broker does (CONNACK, SUBACK), then it is sent one piece of garbage, and closed. What
counts: that nothing is raised in the loop or in a thread, that the client connects again, and that it still hears a
message after all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from broadcast_server.mqtt.paho_bus import PahoBus
from broadcast_server.supervise import SystemClock
from firmware_sim.clock import MachineTime
from firmware_sim.link import Broker, MqttLink
from tests.support.clock import FakeChance

CONNACK: Final = b"\x20\x02\x00\x00"
TOPIC: Final = "loa/1/node/n1/status"
WITHIN_S: Final = 20.0


@dataclass
class Torment:
    """What it showed."""

    tried: int = 0
    reconnects: int = 0
    raised: list[str] = field(default_factory=list)


def publish(topic: bytes, payload: bytes, *, qos: int = 0, mid: int = 1) -> bytes:
    """One PUBLISH packet."""
    body = struct.pack(">H", len(topic)) + topic + (struct.pack(">H", mid) if qos else b"") + payload
    return bytes([0x30 | qos << 1]) + length(len(body)) + body


def length(number: int) -> bytes:
    """MQTT's remaining length."""
    out = bytearray()
    while True:
        number, low = divmod(number, 128)
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def garbage(dice: random.Random) -> Iterator[bytes]:
    """What a broker never sends; the first ones are built to hurt, then chance."""
    yield publish(b"\xff\xfe\x00bad", b"x")
    yield publish(b"", b"x")
    yield publish(b"a/#/+", b"x")
    yield publish(TOPIC.encode(), b"\xff" * 1000, qos=2)
    yield publish(TOPIC.encode(), b"x", qos=3)
    yield b"\x30\xff\xff\xff\x7f" + b"x" * 5_000
    yield b"\x30\xff\xff\xff\xff\xff\xff"
    yield b"\x30\x01\x00"
    yield b"\x30\x02\xff\xff"
    yield b"\x20\x00"
    yield b"\x20\x02\x00\x05"
    yield b"\x20\x02\xff\xff"
    yield b"\x40\x00"
    yield b"\x40\x01\x00"
    yield b"\x40\x02\xff\xff"
    yield b"\x90\x00"
    yield b"\x90\x02\x00\x01"
    yield b"\x90\x03\xff\xff\x80"
    yield b"\xb0\x00"
    yield b"\x62\x00"
    yield b"\x70\x01\x00"
    yield b"\xd0\x05hello"
    yield b"\xe0\x00"
    yield b"\xf0\x00"
    yield b"\x00\x00"
    yield b"HTTP/1.1 400 Bad Request\r\n\r\n"
    yield b"\x16\x03\x01\x02\x00\x01\x00"
    while True:
        match dice.randrange(3):
            case 0:
                yield dice.randbytes(dice.randrange(1, 300))
            case 1:
                body = dice.randbytes(dice.randrange(60))
                yield bytes([dice.randrange(256)]) + length(len(body)) + body
            case _:
                raw = bytearray(publish(TOPIC.encode(), dice.randbytes(20), qos=dice.randrange(3)))
                raw[dice.randrange(len(raw))] = dice.randrange(256)
                yield bytes(raw)


class MadBroker:
    """Accepts, subscribes, and sends one piece of garbage to each connection; at last it is a broker."""

    def __init__(self, pieces: Iterator[bytes], count: int) -> None:
        self._pieces, self._left = pieces, count
        self.connections = 0
        self.is_sane = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[Any]] = set()
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await self._server.wait_closed()

    async def _packet(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        command = (await reader.readexactly(1))[0]
        size, shift = 0, 0
        while True:
            byte = (await reader.readexactly(1))[0]
            size |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                break
        return command, await reader.readexactly(size)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.add(serving)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._talk(reader, writer)
        finally:
            self._serving.discard(serving)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._packet(reader)
        writer.write(CONNACK)
        self.connections += 1
        is_mad = self._left > 0
        self._left -= is_mad
        while True:
            command, body = await self._packet(reader)
            if command >> 4 == 8:  # SUBSCRIBE
                asked = self._filters(body[2:])
                writer.write(b"\x90" + length(2 + asked) + body[:2] + b"\x01" * asked)
                if is_mad:
                    writer.write(next(self._pieces))
                    await writer.drain()
                    await asyncio.sleep(0.01)
                    return
                writer.write(publish(TOPIC.encode(), b"sane again"))
                self.is_sane.set()
            elif command >> 4 == 12:
                writer.write(b"\xd0\x00")

    @staticmethod
    def _filters(body: bytes) -> int:
        count = at = 0
        while at < len(body):
            at += 3 + struct.unpack_from(">H", body, at)[0]
            count += 1
        return count


async def torment(count: int, seed: int = 1) -> Torment:
    """Send `count` pieces to each of the two clients."""
    told = Torment()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: told.raised.append(f"client: {context}"))
    threads_hook = threading.excepthook
    threading.excepthook = lambda fell: told.raised.append(f"client thread: {fell.exc_value!r}")
    try:
        for client in (_server_bus, _node_link):
            broker = MadBroker(garbage(random.Random(seed)), count)
            await broker.start()
            heard: list[bytes] = []
            stop = await client(broker, heard)
            try:
                async with asyncio.timeout(WITHIN_S + count * 1.0):
                    while not heard:  # noqa: ASYNC110  the client's own callbacks fill it
                        await asyncio.sleep(0.05)
            except TimeoutError:
                told.raised.append(f"{client.__name__}: not back after {broker.connections} of {count} connections")
            finally:
                await stop()
                await broker.stop()
            told.tried += count
            told.reconnects += broker.connections - 1
    finally:
        threading.excepthook = threads_hook
        loop.set_exception_handler(None)
    return told


async def _server_bus(broker: MadBroker, heard: list[bytes]) -> Any:
    bus = PahoBus(
        "127.0.0.1",
        broker.port,
        clock=SystemClock(),
        chance=FakeChance(1),
        start_timeout_s=None,
        ack_timeout_s=1.0,
        longest_wait_s=0.05,
        keepalive_s=5,
    )
    bus.subscribe("loa/1/node/+/status", lambda message: _sane(heard, message.payload))
    await bus.start()
    return bus.close


async def _node_link(broker: MadBroker, heard: list[bytes]) -> Any:
    link = MqttLink(
        Broker("127.0.0.1", broker.port, "n1", "x"),
        client_id="n1",
        will=(TOPIC, b"gone"),
        on_message=lambda _topic, payload: _sane(heard, payload),
        on_up=lambda: None,
        true=_Hurried(),
        chance=random.Random(1),
    )
    link.listen({TOPIC: 1})
    running = asyncio.create_task(link.run(), name="bench.link")

    async def stop() -> None:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    return partial(stop)


class _Hurried(MachineTime):
    """Waits between connects are a hundredth."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / 100)


def _sane(heard: list[bytes], payload: bytes) -> None:
    if payload == b"sane again":
        heard.append(payload)
