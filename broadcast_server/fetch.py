"""The one way out: every byte that comes from an address a person or a feed has named is fetched here.

A maintainer must not break: (1) a name is resolved once, every address it has must be public, and the connection goes
to the very address that was checked, with Host and SNI still the name, so a second answer of the DNS is never asked;
(2) nothing is followed by the library: a redirect is a new target that passes the whole examination again, or is
refused; (3) header, time, rate and size have limits before anything is believed; (4) exceptions for loopback and
private stations are exact `host:port` texts handed in by settings, never patterns.

Source: security rules SR-19; RFC 6890 and its registries through `ipaddress`; RFC 6052 (NAT64), RFC 3056 (6to4);
the ICY dialect of Shoutcast servers ("ICY 200 OK", icy-metaint) as found in the field.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import quote, urljoin, urlsplit

import httpcore

from broadcast_server.domain.clock import Clock
from broadcast_server.domain.errors import Invalid, Refused, Unavailable

DEFAULT_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}
RADIO_PORTS: Final = frozenset({80, 443, 8000, 8001, 8002, 8004, 8006, 8008, 8010, 8020, 8080, 8081, 8088, 8443, 9000})
"""Where public stations and web servers serve; not where data bases, brokers and consoles do."""

USER_AGENT: Final = "loa-relay/1"
MAX_URL_CHARS: Final = 2_048
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_NAT64: Final = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_V4_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Connect = Callable[[str, int], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What a server may take of us, as data. Seconds of waiting count only while we wait, not while we are busy."""

    connect_s: float = 10.0
    header_s: float = 10.0
    header_bytes: int = 16 * 1024
    silence_s: float = 5.0
    floor_bytes_per_s: int = 1_024
    floor_window_s: float = 10.0
    redirects: int = 3


@dataclass(frozen=True, slots=True)
class Target:
    """An address that may be asked: scheme, host (ASCII, lower case), port and request target are separate facts."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """`host:port`, as an exception in the settings is written; IPv6 in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole address again."""
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: what "same origin" compares."""
        return (self.scheme, self.host, self.port)


def parse_target(url: str) -> Target:
    """Take a URL apart. Raises `Invalid` (`url_malformed`, `url_scheme`, `url_credentials`), naming the field."""
    if not 0 < len(url) <= MAX_URL_CHARS or any(char <= " " or char == "\x7f" for char in url):
        raise Invalid("url_malformed", field="url")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").rstrip(".")
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError as error:
        raise Invalid("url_malformed", field="url") from error
    if parts.scheme not in DEFAULT_PORTS:
        raise Invalid("url_scheme", field="url", scheme=parts.scheme)
    if "@" in parts.netloc:
        raise Invalid("url_credentials", field="url")
    if not host or "%" in host or "\\" in parts.netloc:
        raise Invalid("url_malformed", field="url")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else ""
    return Target(parts.scheme, host, DEFAULT_PORTS[parts.scheme] if port is None else port, path + query)


def is_public(address: str) -> bool:
    """Whether an IP address is somebody else's public one, also when it is an IPv4 address in IPv6 clothes."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast and not ip.is_reserved
    if ip.scope_id is not None or ip in _V4_COMPATIBLE:
        return False
    if ip.ipv4_mapped is not None:
        return is_public(str(ip.ipv4_mapped))
    if ip.sixtofour is not None:
        return is_public(str(ip.sixtofour))
    if ip.teredo is not None:
        return False
    for network in _NAT64:
        if ip in network:
            return network.prefixlen == 96 and is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not (ip.is_multicast or ip.is_site_local or ip.is_reserved)


async def resolve_by_system(host: str, port: int) -> Sequence[str]:
    """All addresses of a name, by the machine's resolver. Raises `Unavailable("host_unknown")`."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unavailable("host_unknown", host=host) from error
    return tuple(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


async def connect_by_system(address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A TCP connection to an IP address. Raises `OSError`."""
    return await asyncio.open_connection(address, port)


class Response:
    """An answer being received: header known, body read piece by piece with `chunks`."""

    def __init__(
        self,
        *,
        url: str,
        status: int,
        headers: Mapping[str, str],
        body: AsyncIterator[bytes],
        clock: Clock,
        limits: FetchLimits,
    ) -> None:
        self.url, self.status, self.headers = url, status, headers
        self.bytes_in = 0
        self._body, self._clock, self._limits = body, clock, limits

    @property
    def content_type(self) -> str:
        """Media type without parameters, lower case; empty if the server said none."""
        return media_type(self.headers.get("content-type", ""))

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body without ICY metadata, as it comes.

        Raises `Unavailable`: `stalled` after `silence_s` without a byte, `too_slow` under the rate floor over a whole
        window, `connection_lost` when cut in the middle.
        """
        limits, clock = self._limits, self._clock
        metaint = self.headers.get("icy-metaint", "")
        icy = IcyStripper(int(metaint)) if metaint.isdecimal() and int(metaint) > 0 else None
        waited_s, window_bytes = 0.0, 0
        while True:
            asked_s = clock.monotonic()
            try:
                async with asyncio.timeout(limits.silence_s):
                    chunk = await anext(self._body, None)
            except TimeoutError as error:
                raise Unavailable("stalled", silent_s=limits.silence_s) from error
            except (httpcore.ProtocolError, httpcore.NetworkError, OSError) as error:
                raise Unavailable("connection_lost") from error
            if chunk is None:
                return
            self.bytes_in += len(chunk)
            waited_s += clock.monotonic() - asked_s
            window_bytes += len(chunk)
            if waited_s >= limits.floor_window_s:
                if window_bytes < limits.floor_bytes_per_s * waited_s:
                    raise Unavailable("too_slow", bytes_per_s=round(window_bytes / waited_s))
                waited_s, window_bytes = 0.0, 0
            if icy is not None:
                chunk = icy.strip(chunk)
            if chunk:
                yield chunk


class IcyStripper:
    """Takes Shoutcast's metadata out: after every `metaint` bytes of sound a length byte and 16 × as much text."""

    def __init__(self, metaint: int) -> None:
        self._metaint, self._sound_left, self._text_left = metaint, metaint, 0

    def strip(self, chunk: bytes) -> bytes:
        """The sound in `chunk`; state carries over to the next."""
        sound = bytearray()
        at = 0
        while at < len(chunk):
            if self._text_left:
                skipped = min(self._text_left, len(chunk) - at)
                self._text_left -= skipped
                at += skipped
            elif self._sound_left:
                taken = chunk[at : at + self._sound_left]
                sound += taken
                self._sound_left -= len(taken)
                at += len(taken)
            else:
                self._text_left, self._sound_left = chunk[at] * 16, self._metaint
                at += 1
        return bytes(sound)


def media_type(header: str) -> str:
    """`audio/mpeg; charset=x` → `audio/mpeg`."""
    return header.partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole answer."""

    url: str
    content_type: str
    body: bytes


class Fetcher:
    """The way out with its policy.

    `allow_private`: exact `host:port` texts that may be asked although their address or port is not public.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        allow_private: frozenset[str] = frozenset(),
        ports: frozenset[int] = RADIO_PORTS,
        limits: FetchLimits = FetchLimits(),
        resolve: Resolve = resolve_by_system,
        connect: Connect = connect_by_system,
    ) -> None:
        self._clock, self._allow_private, self._ports = clock, allow_private, ports
        self._limits, self._resolve, self._connect = limits, resolve, connect
        self._tls: ssl.SSLContext | None = None

    def examine(self, url: str) -> Target:
        """The target, if its form is allowed (no look-up is made). Raises `Invalid`."""
        target = parse_target(url)
        if target.port not in self._ports and target.authority not in self._allow_private:
            raise Invalid("url_port", field="url", port=target.port)
        return target

    @contextlib.asynccontextmanager
    async def open_stream(
        self, url: str, *, accept: frozenset[str] | None = None, limits: FetchLimits | None = None
    ) -> AsyncIterator[Response]:
        """Ask for `url`; the body is the caller's to read until the context ends.

        `accept`: media types that may come back; None for any. Raises `Invalid` (the URL), `Refused`
        (`private_address`, `redirect_refused` with its cause, `content_type`, `header_too_large`), `Unavailable`
        (`host_unknown`, `connect_failed`, `tls_failed`, `timed_out`, `http_malformed`, `http_<status>`).
        """
        limits = self._limits if limits is None else limits
        target = self.examine(url)
        for hop in range(limits.redirects + 1):
            async with self._ask(target, limits, redirected=hop > 0) as response:
                if response.status in _REDIRECTS:
                    target = self._next_target(target, response.headers.get("location", ""), hop, limits)
                    continue
                if not 200 <= response.status < 300:
                    raise Unavailable(f"http_{response.status}", status=response.status)
                if accept is not None and response.content_type not in accept:
                    raise Refused("content_type", content_type=response.content_type[:80])
                yield response
                return
        raise Refused("redirect_refused", cause="too_many")

    async def get(
        self, url: str, *, limit_bytes: int, accept: frozenset[str] | None = None, limits: FetchLimits | None = None
    ) -> Fetched:
        """The whole body, at most `limit_bytes`. Raises as `open_stream`, and `Refused("too_large")`."""
        async with self.open_stream(url, accept=accept, limits=limits) as response:
            body = bytearray()
            async with contextlib.aclosing(response.chunks()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > limit_bytes:
                        raise Refused("too_large", limit_bytes=limit_bytes)
            return Fetched(response.url, response.content_type, bytes(body))

    # -- inside

    def _next_target(self, asked: Target, location: str, hop: int, limits: FetchLimits) -> Target:
        if hop >= limits.redirects:
            raise Refused("redirect_refused", cause="too_many")
        try:
            target = self.examine(urljoin(asked.url, location))
        except (Invalid, ValueError) as error:
            cause = error.code if isinstance(error, Invalid) else "url_malformed"
            raise Refused("redirect_refused", cause=cause) from error
        if asked.scheme == "https" and target.scheme != "https":
            raise Refused("redirect_refused", cause="downgrade")
        return target

    @contextlib.asynccontextmanager
    async def _ask(self, target: Target, limits: FetchLimits, *, redirected: bool) -> AsyncIterator[Response]:
        try:
            addresses = await self._addresses_of(target, limits)
        except Refused as error:
            if redirected:
                raise Refused("redirect_refused", cause=error.code, host=target.host) from error
            raise
        host = target.host.encode("ascii")
        authority = host if target.port == DEFAULT_PORTS[target.scheme] else target.authority.encode("ascii")
        connection = httpcore.AsyncHTTPConnection(
            origin=httpcore.Origin(target.scheme.encode(), host, target.port),
            ssl_context=self._tls_context() if target.scheme == "https" else None,
            network_backend=_CheckedBackend(addresses, self._connect, limits),
        )
        request = httpcore.Request(
            method="GET",
            url=httpcore.URL(
                scheme=target.scheme.encode(), host=host, port=target.port, target=target.path.encode("ascii")
            ),
            headers=[
                (b"Host", authority),
                (b"User-Agent", USER_AGENT.encode()),
                (b"Accept", b"*/*"),
                (b"Accept-Encoding", b"identity"),
                (b"Icy-MetaData", b"0"),
                (b"Connection", b"close"),
            ],
            extensions={"timeout": {"connect": limits.connect_s}},
        )
        try:
            raw = await self._answer(connection, request, limits)
            try:
                headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw.headers}
                yield Response(
                    url=target.url,
                    status=raw.status,
                    headers=headers,
                    body=aiter(raw.aiter_stream()),
                    clock=self._clock,
                    limits=limits,
                )
            finally:
                await raw.aclose()
        finally:
            await connection.aclose()

    async def _answer(
        self, connection: httpcore.AsyncHTTPConnection, request: httpcore.Request, limits: FetchLimits
    ) -> httpcore.Response:
        try:
            async with asyncio.timeout(limits.connect_s + limits.header_s):
                return await connection.handle_async_request(request)
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise Unavailable("timed_out") from error
        except httpcore.ProtocolError as error:
            raise Unavailable("http_malformed") from error
        except ssl.SSLError as error:
            raise Unavailable("tls_failed") from error
        except (httpcore.NetworkError, OSError) as error:
            raise Unavailable("connect_failed") from error

    async def _addresses_of(self, target: Target, limits: FetchLimits) -> Sequence[str]:
        try:
            async with asyncio.timeout(limits.connect_s):
                addresses = await self._resolve(target.host, target.port)
        except TimeoutError as error:
            raise Unavailable("host_unknown", host=target.host) from error
        if not addresses:
            raise Unavailable("host_unknown", host=target.host)
        if target.authority not in self._allow_private:
            for address in addresses:
                if not is_public(address):
                    raise Refused("private_address", host=target.host)
        return addresses

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the addresses that were checked and to nothing else, whatever name the library asks for."""

    def __init__(self, addresses: Sequence[str], connect: Connect, limits: FetchLimits) -> None:
        self._addresses, self._connect, self._limits = addresses, connect, limits

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  the library's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        _ = host, local_address, socket_options
        failure: Exception | None = None
        for address in self._addresses:
            try:
                async with asyncio.timeout(timeout):
                    reader, writer = await self._connect(address, port)
            except OSError as error:  # TimeoutError is one
                failure = error
            else:
                return _Stream(reader, writer, self._limits.header_bytes)
        raise httpcore.ConnectError("no address answered") from failure


class _Stream(httpcore.AsyncNetworkStream):
    """Bytes of one connection; translates the ICY status line and counts the header before h11 sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, header_bytes: int) -> None:
        self._reader, self._writer = reader, writer
        self._transport = cast("asyncio.ReadTransport", writer.transport)
        self._is_tls = False
        self._header_limit = header_bytes
        self._header: bytearray | None = bytearray()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        if self._header is None and not self._is_tls:
            # Bytes wait in the kernel until they are asked for: an endless stream costs turns only when somebody
            # wants it, and back-pressure reaches the sender. (Over TLS the loop's transport has its own buffers.)
            self._transport.resume_reading()
            try:
                async with asyncio.timeout(timeout):
                    return await self._reader.read(max_bytes)
            finally:
                if not self._transport.is_closing():
                    self._transport.pause_reading()
        async with asyncio.timeout(timeout):
            data = await self._reader.read(max_bytes)
            if self._header is None:
                return data
            while data and len(self._header) + len(data) < 4:  # too short to tell whether it speaks ICY
                more = await self._reader.read(max_bytes)
                if not more:
                    break
                data += more
        if not self._header and data.startswith(b"ICY "):
            data = b"HTTP/1.0 " + data[4:]
        self._header += data
        end = min((at for at in (self._header.find(b"\r\n\r\n"), self._header.find(b"\n\n")) if at >= 0), default=-1)
        if end > self._header_limit or (end < 0 and len(self._header) > self._header_limit):
            raise Refused("header_too_large", limit_bytes=self._header_limit)
        if end >= 0:
            self._header = None
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        async with asyncio.timeout(timeout):
            self._writer.write(buffer)
            await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        async with asyncio.timeout(timeout):
            await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        self._is_tls = True
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._writer.get_extra_info(info)
