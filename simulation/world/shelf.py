"""Where nodes fetch recorded sound: the server's asset route as an HTTP transport, with the ways' faults upon it.

The bytes stand for Ogg Opus that nobody decodes here; they are hashed, stored and checked as the real ones are.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable

import httpx

from simulation.world.net import Ether
from simulation.world.time import VirtualTime

_PIECES = 4


class Shelf(httpx.AsyncBaseTransport):
    """Serves assets by hash to whoever shows a node's token. `is_open`: whether a server is there to answer."""

    def __init__(self, ether: Ether, time: VirtualTime, chance: random.Random, is_open: Callable[[], bool]) -> None:
        self._ether, self._time, self._chance, self._is_open = ether, time, chance, is_open
        self._assets: dict[str, bytes] = {}
        self._tokens: dict[str, str] = {}
        self.break_next = 0
        """So many answers break off in their middle."""
        self.corrupt_next = 0
        """So many answers carry a wrong byte."""

    def put(self, sha256: str, content: bytes) -> None:
        """One more asset."""
        self._assets[sha256] = content

    def content(self, sha256: str) -> bytes:
        """The bytes of an asset. Raises `KeyError`."""
        return self._assets[sha256]

    def admit(self, token: str, node_id: str) -> None:
        """One more node that may fetch."""
        self._tokens[token] = node_id

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One GET, with Range. Raises `httpx.ConnectError` where no way or no server is."""
        node_id = self._tokens.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        await self._time.sleep(self._chance.uniform(0.1, 0.5))
        if node_id is None:
            return httpx.Response(401)
        if not self._is_open() or not self._ether.way(node_id).is_open(self._time.monotonic()):
            raise httpx.ConnectError("no way to the server")
        sha256 = request.url.path.rpartition("/")[2]
        content = self._assets.get(sha256)
        if content is None:
            return httpx.Response(404)
        start = 0
        wanted = request.headers.get("Range")
        if wanted is not None and request.headers.get("If-Range") == f'"{sha256}"':
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return httpx.Response(416)
        body = bytearray(content[start:])
        if self.corrupt_next:
            self.corrupt_next -= 1
            body[self._chance.randrange(len(body))] ^= 0x40
        breaks = self.break_next > 0
        self.break_next -= breaks
        return httpx.Response(206 if start else 200, stream=_Body(bytes(body), self._time, self._chance, breaks=breaks))


class _Body(httpx.AsyncByteStream):
    def __init__(self, content: bytes, time: VirtualTime, chance: random.Random, *, breaks: bool) -> None:
        self._content, self._time, self._chance, self._breaks = content, time, chance, breaks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = max(1, len(self._content) // _PIECES)
        for number, start in enumerate(range(0, len(self._content), size)):
            if self._breaks and number == _PIECES // 2:
                raise httpx.ReadError("the connection broke")
            await self._time.sleep(self._chance.uniform(0.05, 0.5))
            yield self._content[start : start + size]
