"""The station push listener: Icecast's source protocol, spoken by ffmpeg, liquidsoap, ezstream and every encoder box.

It has a TCP port of its own because source clients send a body without a length, which HTTP servers read as empty. A
maintainer must not break: (1) nothing of a request is believed before the password was checked, and nothing of the body
is read before; (2) who holds a mount keeps it: a second source is turned away with 403 and never touches the first;
(3) header bytes, header time, silence, bytes a second, failures of one address and connections have limits; (4) a
source is always read, listened to or not, and what nobody hears is dropped from a bounded ring; (5) `revoke` ends a
connection at once; (6) nothing that a source says of itself (`ice-*`, titles) is kept but its program's name, without
control characters, cut short. Who reaches the port, and whether on TLS, is `entrance`'s.

Source: icecast.org's source protocol as its clients really speak it: `PUT` (HTTP/1.1, often `Expect: 100-continue`,
sometimes chunked) and the older `SOURCE /mount HTTP/1.0` or `ICE/1.0`; Basic credentials, user "source" by custom.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import unicodedata
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final
from urllib.parse import unquote

from broadcast_server.audio.feed import USUAL_LIMITS, FeedLimits, PushConnection, PushFeed
from broadcast_server.audio.ffmpeg import Sandbox
from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import BroadcastError, Conflict, NotFound, Refused
from broadcast_server.logs import get_logger
from broadcast_server.relay.entrance import Entrance, Room, Rules, plain_address

log = get_logger()

Authenticate = Callable[[str, str, str], Awaitable[str]]
"""`(mount, user, password)` → feed id. Raises `NotFound` (no such mount) or `Refused` (wrong credentials)."""


@dataclass(frozen=True, slots=True)
class IngestLimits:
    """What a source may take of us, as data."""

    header_bytes: int = 16 * 1024
    header_s: float = 10.0
    silence_s: float = 10.0
    """Icecast's `source-timeout`: after it the mount is free for a reconnecting source."""
    connections: int = 400
    connections_per_address: int = 80
    """A province's studio pushes all its feeds from one address."""
    rate_bytes_s: int = 256 * 1024
    """Faster than this, on average, nobody is read: no format that is relayed needs it."""
    burst_bytes: int = 4 * 1024 * 1024
    failures: int = 10
    """Wrong passwords from one address within `failure_window_s` before it is turned away unheard."""
    failure_window_s: float = 60.0
    failure_table: int = 1_024
    read_bytes: int = 16 * 1024


USUAL_INGEST_LIMITS: Final = IngestLimits()


class EndReason(StrEnum):
    """How a source's connection ended."""

    CLEAN = "clean"
    CUT = "cut"
    STALLED = "stalled"
    REVOKED = "revoked"
    WINDOW_OVER = "window_over"
    """The feed's validity is over."""
    MOUNT_BUSY = "mount_busy"
    """It never was a source: another held the mount."""


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """A source that is connected now."""

    feed_id: str
    mount: str
    since: datetime
    user_agent: str
    content_type: str
    address: str
    bytes_in: int


@dataclass(frozen=True, slots=True)
class IngestEvent:
    """A source came (`reason` None), went, or was turned away from a busy mount."""

    feed_id: str
    mount: str
    at: datetime
    reason: EndReason | None
    bytes_in: int
    user_agent: str
    address: str


OnEvent = Callable[[IngestEvent], None]


@dataclass(slots=True)
class _Source:
    feed_id: str
    mount: str
    since: datetime
    user_agent: str
    content_type: str
    address: str
    connection: PushConnection
    revoked: asyncio.Event = field(default_factory=asyncio.Event)
    revoked_because: EndReason = EndReason.REVOKED
    gone: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    mount: str
    headers: Mapping[str, str]


class _Answer(Exception):  # noqa: N818  it is what the client is told, not a fault of ours
    """Turn the client away with this status."""

    def __init__(self, status: int, text: str, *headers: str) -> None:
        super().__init__(status, text)
        self.status, self.text, self.headers = status, text, headers


class Ingest:
    """The listener. `source(feed_id)` is where the relay hears a pushed feed."""

    def __init__(
        self,
        *,
        authenticate: Authenticate,
        sandbox: Sandbox,
        clock: Clock,
        chance: Chance,
        limits: IngestLimits = USUAL_INGEST_LIMITS,
        feed_limits: FeedLimits = USUAL_LIMITS,
        on_event: OnEvent | None = None,
        rules: Rules | None = None,
    ) -> None:
        """`rules`: who may come in, and how; None: anybody, without TLS, from this machine."""
        self._authenticate, self._sandbox, self._clock, self._chance = authenticate, sandbox, clock, chance
        self._limits, self._feed_limits, self._on_event = limits, feed_limits, on_event
        room = Room(limits.connections, limits.connections_per_address, limits.header_s, limits.header_bytes)
        self._entrance = Entrance(self._serve, rules=rules or Rules(), room=room, clock=clock)
        self._feeds: dict[str, PushFeed] = {}
        self._sources: dict[str, _Source] = {}
        self._guard = FailureGuard(clock, limits)
        self.refusals: dict[int, int] = {}
        """How often clients were turned away, by status."""

    @property
    def turned_away(self) -> Mapping[str, int]:
        """How many were not even heard, by reason (`Entrance`)."""
        return self._entrance.turned_away

    async def start(self, host: str = "127.0.0.1", port: int = 8010) -> int:
        """Listen; returns the port (0 picks one).

        Raises `Unavailable("port_taken")`, and `Refused("listener_without_tls")` beyond this machine.
        """
        return await self._entrance.open(host, port)

    async def close(self) -> None:
        """End every source and stop listening. Idempotent."""
        await self._entrance.close()

    def source(self, feed_id: str) -> PushFeed:
        """The feed of this id, connected or not; the same object as long as the listener lives."""
        feed = self._feeds.get(feed_id)
        if feed is None:
            feed = self._feeds[feed_id] = PushFeed(
                feed_id, sandbox=self._sandbox, clock=self._clock, chance=self._chance, limits=self._feed_limits
            )
        return feed

    def connected(self) -> Mapping[str, SourceInfo]:
        """The sources that are connected now, by feed id."""
        return {
            feed_id: SourceInfo(
                feed_id=feed_id,
                mount=source.mount,
                since=source.since,
                user_agent=source.user_agent,
                content_type=source.content_type,
                address=source.address,
                bytes_in=source.connection.bytes_in,
            )
            for feed_id, source in self._sources.items()
        }

    async def revoke(self, feed_id: str, reason: EndReason = EndReason.REVOKED) -> bool:
        """End the feed's connection now; whether there was one. Its credentials are the caller's business."""
        source = self._sources.get(feed_id)
        if source is None:
            return False
        source.revoked_because = reason
        source.revoked.set()
        await source.gone.wait()
        return True

    # -- one connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, may_stay: bool) -> None:
        try:
            await self._converse(reader, writer, may_stay)
        except _Answer as answer:
            self.refusals[answer.status] = self.refusals.get(answer.status, 0) + 1
            await _say(writer, answer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # it went away before it was a source

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, may_stay: bool) -> None:
        address = plain_address(str((writer.get_extra_info("peername") or ("?",))[0]))
        if not may_stay:  # before the header is read: it holds a password
            raise _Answer(403, "TLS required")
        request = await self._request(reader)
        if request.method == "OPTIONS":
            raise _Answer(200, "OK", "Allow: PUT, SOURCE, OPTIONS")
        if request.method not in {"PUT", "SOURCE"}:
            raise _Answer(405, "Method Not Allowed", "Allow: PUT, SOURCE, OPTIONS")
        feed_id = await self._admit(request, address)
        source = self._seat(feed_id, request, address)
        reason = EndReason.CUT
        try:
            expects = request.headers.get("expect", "").lower() == "100-continue"
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" if expects else b"HTTP/1.0 200 OK\r\n\r\n")
            await writer.drain()
            chunked = request.headers.get("transfer-encoding", "").lower() == "chunked"
            reason = await self._take(source, _Chunked(reader) if chunked else _Raw(reader), self._limits)
            if expects and reason is EndReason.CLEAN:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        finally:
            self._unseat(source, reason)

    async def _request(self, reader: asyncio.StreamReader) -> _Request:
        try:
            async with asyncio.timeout(self._limits.header_s):
                head = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError as error:
            raise _Answer(408, "Request Timeout") from error
        except asyncio.LimitOverrunError as error:
            raise _Answer(431, "Request Header Fields Too Large") from error
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[1].startswith("/") or not words[2].startswith(("HTTP/1.", "ICE/1.")):
            raise _Answer(400, "Bad Request")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if colon and name == name.strip():
                headers.setdefault(name.lower(), value.strip())
        return _Request(words[0], unquote(words[1].partition("?")[0]).removeprefix("/"), headers)

    async def _admit(self, request: _Request, address: str) -> str:
        """The feed that these credentials may feed, else an `_Answer`."""
        wait_s = self._guard.wait_s(address)
        if wait_s > 0:
            raise _Answer(429, "Too Many Requests", f"Retry-After: {int(wait_s) + 1}")
        challenge = 'WWW-Authenticate: Basic realm="loa", charset="UTF-8"'
        credentials = _basic(request.headers.get("authorization", ""))
        if credentials is None:  # libshout asks first how one wants to be asked: no failure yet
            raise _Answer(401, "Unauthorized", challenge)
        try:
            return await self._authenticate(request.mount, *credentials)
        except NotFound as error:
            self._guard.failed(address)
            log.warning("ingest.refused", mount=_printable(request.mount), address=address, reason=error.code)
            raise _Answer(404, "Not Found") from error
        except Refused as error:
            self._guard.failed(address)
            log.warning("ingest.refused", mount=_printable(request.mount), address=address, reason=error.code)
            raise _Answer(401, "Unauthorized", challenge) from error
        except Conflict as error:
            raise _Answer(403, "Forbidden") from error
        except BroadcastError as error:
            log.warning("ingest.undecided", mount=_printable(request.mount), reason=error.code)
            raise _Answer(503, "Service Unavailable", "Retry-After: 5") from error

    def _seat(self, feed_id: str, request: _Request, address: str) -> _Source:
        if feed_id in self._sources:
            log.warning("ingest.busy", feed_id=feed_id, address=address)
            agent = _printable(request.headers.get("user-agent", ""))
            self._report(feed_id, request.mount, agent, address, EndReason.MOUNT_BUSY, 0)
            raise _Answer(403, "Mountpoint in use")
        content_type = request.headers.get("content-type", "audio/mpeg")
        try:
            connection = PushConnection(content_type)
        except Refused as error:
            raise _Answer(415, "Unsupported Media Type") from error
        user_agent = _printable(request.headers.get("user-agent", ""))
        source = _Source(feed_id, request.mount, self._clock.now(), user_agent, content_type, address, connection)
        self._sources[feed_id] = source
        self.source(feed_id).attach(connection)
        self._tell(source, None)
        return source

    async def _take(self, source: _Source, body: _Raw | _Chunked, limits: IngestLimits) -> EndReason:
        """Read until the end. Waiting for a listener that is behind is not the source's silence."""
        revoked = asyncio.create_task(source.revoked.wait(), name=f"relay.ingest.revoked[{source.feed_id}]")
        reading = asyncio.create_task(self._read(source, body, limits), name=f"relay.ingest.read[{source.feed_id}]")
        try:
            await asyncio.wait({revoked, reading}, return_when=asyncio.FIRST_COMPLETED)
            return source.revoked_because if revoked.done() else reading.result()
        finally:
            revoked.cancel()
            reading.cancel()
            await asyncio.wait({revoked, reading})

    async def _read(self, source: _Source, body: _Raw | _Chunked, limits: IngestLimits) -> EndReason:
        began_s = self._clock.monotonic()
        while True:
            # What lies in the kernel's buffers waits there, and then at the source.
            allowed_s = (source.connection.bytes_in - limits.burst_bytes) / limits.rate_bytes_s
            ahead_s = allowed_s - (self._clock.monotonic() - began_s)
            if ahead_s > 0:
                await self._clock.sleep(min(ahead_s, limits.silence_s))
                continue
            try:
                async with asyncio.timeout(limits.silence_s):
                    chunk = await body.read(limits.read_bytes)
            except TimeoutError:
                return EndReason.STALLED
            except (OSError, asyncio.IncompleteReadError, ValueError):
                return EndReason.CUT
            if not chunk:
                return EndReason.CLEAN
            await source.connection.write(chunk)

    def _unseat(self, source: _Source, reason: EndReason) -> None:
        source.connection.end(reason.value)
        self.source(source.feed_id).detach(source.connection)
        del self._sources[source.feed_id]
        source.gone.set()
        self._tell(source, reason)

    def _tell(self, source: _Source, reason: EndReason | None) -> None:
        event = "ingest.connected" if reason is None else "ingest.ended"
        log.info(
            event,
            feed_id=source.feed_id,
            mount=source.mount,
            user_agent=source.user_agent,
            reason=reason,
            bytes_in=source.connection.bytes_in,
        )
        self._report(
            source.feed_id, source.mount, source.user_agent, source.address, reason, source.connection.bytes_in
        )

    def _report(
        self, feed_id: str, mount: str, agent: str, address: str, reason: EndReason | None, bytes_in: int
    ) -> None:
        if self._on_event is not None:
            self._on_event(
                IngestEvent(
                    feed_id=feed_id,
                    mount=mount,
                    at=self._clock.now(),
                    reason=reason,
                    bytes_in=bytes_in,
                    user_agent=agent,
                    address=address,
                )
            )


class FailureGuard:
    """How many wrong passwords came from an address lately; the table is bounded, the oldest address is forgotten."""

    def __init__(self, clock: Clock, limits: IngestLimits) -> None:
        self._clock, self._limits = clock, limits
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def failed(self, address: str) -> None:
        """One more."""
        now_s = self._clock.monotonic()
        recent = self._recent(address, now_s)
        self._failures[address] = [*recent[-self._limits.failures :], now_s]
        self._failures.move_to_end(address)
        while len(self._failures) > self._limits.failure_table:
            self._failures.popitem(last=False)

    def wait_s(self, address: str) -> float:
        """How long the address must wait; 0 when it may try."""
        now_s = self._clock.monotonic()
        recent = self._recent(address, now_s)
        if len(recent) < self._limits.failures:
            return 0.0
        return recent[-self._limits.failures] + self._limits.failure_window_s - now_s

    def _recent(self, address: str, now_s: float) -> list[float]:
        oldest_s = now_s - self._limits.failure_window_s
        return [at_s for at_s in self._failures.get(address, ()) if at_s > oldest_s]


class _Raw:
    """A body that ends with the connection."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def read(self, most: int) -> bytes:
        """The next bytes; empty at the end."""
        return await self._reader.read(most)


class _Chunked:
    """A chunked body (RFC 9112 §7.1). Raises `ValueError` on nonsense, `IncompleteReadError` when cut."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader, self._left = reader, 0

    async def read(self, most: int) -> bytes:
        """The next bytes; empty after the last chunk."""
        if self._left == 0:
            try:
                line = await self._reader.readuntil(b"\r\n")
            except asyncio.LimitOverrunError as error:
                raise ValueError("chunk size line too long") from error
            self._left = int(line.partition(b";")[0].strip()[:8] or b"x", 16)
            if self._left == 0:
                return b""
        data = await self._reader.read(min(most, self._left))
        if not data:
            raise asyncio.IncompleteReadError(b"", self._left)
        self._left -= len(data)
        if self._left == 0:
            await self._reader.readexactly(2)
        return data


def _printable(text: str) -> str:
    """What a stranger says of itself, fit to be shown: no control or format characters, one line, cut short."""
    return " ".join("".join(each if unicodedata.category(each)[0] != "C" else " " for each in text[:400]).split())[:80]


def _basic(header: str) -> tuple[str, str] | None:
    """User and password of a Basic header, None if it is none."""
    scheme, _, coded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(coded.strip(), validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    # A password hash takes a NUL at the end for nothing; no credential of ours has a control character.
    is_clean = colon and not any(unicodedata.category(each) == "Cc" for each in user + password)
    return (user, password) if is_clean else None


async def _say(writer: asyncio.StreamWriter, answer: _Answer) -> None:
    lines = [
        f"HTTP/1.1 {answer.status} {answer.text}",
        "Server: loa",
        *answer.headers,
        "Content-Length: 0",
        "Connection: close",
    ]
    with contextlib.suppress(OSError):
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        await writer.drain()
