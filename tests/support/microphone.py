"""A browser's microphone on a WebSocket of the application, in this loop and without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp

from tests.support.clock import FakeClock, settle


class Microphone:
    """What the page sees of its socket."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.told: list[dict[str, Any]] = []
        self.closed: tuple[int, str] | None = None
        self.is_open = False
        self._sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def say(self, **word: Any) -> None:
        """A text message."""
        await self._put({"type": "websocket.receive", "text": json.dumps(word)})

    async def send(self, sequence: int, payload: bytes) -> None:
        """A frame of sound."""
        await self.send_raw(sequence.to_bytes(4, "big") + payload)

    async def send_raw(self, frame: bytes) -> None:
        """Any binary frame."""
        await self._put({"type": "websocket.receive", "bytes": frame})

    async def speak(self, sound: Sequence[bytes], *, first: int = 0) -> None:
        """Packets in real time."""
        for number, packet in enumerate(sound, start=first):
            await self.clock.advance(0.02)
            await self.send(number, packet)

    async def hang_up(self) -> None:
        """The network goes away."""
        await self._put({"type": "websocket.disconnect", "code": 1006})

    def last(self, name: str) -> dict[str, Any]:
        """The latest message that has this member."""
        return next(one for one in reversed(self.told) if name in one)

    async def _put(self, message: dict[str, Any]) -> None:
        await self._sent.put(message)
        await settle()

    async def _receive(self) -> dict[str, Any]:
        return await self._sent.get()

    async def _send(self, message: Any) -> None:
        if message["type"] == "websocket.accept":
            self.is_open = True
        elif message["type"] == "websocket.close":
            self.closed = (message["code"], message.get("reason") or "")
        else:
            self.told.append(json.loads(message["text"]))


@asynccontextmanager
async def a_microphone(
    app: ASGIApp, clock: FakeClock, session_id: str, headers: Mapping[str, str] | None = None
) -> AsyncIterator[Microphone]:
    """A socket to the session's line; hung up at the end."""
    sent = {"host": "127.0.0.1", **(headers or {})}
    path = f"/api/v1/live/{session_id}/voice"
    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 80),
        "subprotocols": [],
        "state": {},
    }
    microphone = Microphone(clock)
    await microphone._sent.put({"type": "websocket.connect"})
    line = asyncio.create_task(app(scope, microphone._receive, microphone._send), name="test.microphone")
    await settle()
    try:
        yield microphone
    finally:
        await microphone.hang_up()
        await asyncio.wait([line])
        line.result()
