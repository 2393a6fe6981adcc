"""Who reaches the push listener, and whether on TLS: decided when a connection is accepted, before a byte is believed.

One port serves both: a TLS client begins with a handshake record (byte 0x16, RFC 8446 §5.1), a plain one with a letter.
A maintainer must not break: (1) a source outside the networks that are answered is closed without a word; (2) without
TLS nobody is answered but from the networks named for it (this machine, unless the operator says more); (3) first byte,
handshake and header share one time limit, and every address and all together have a limit of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from broadcast_server.domain.clock import Clock
from broadcast_server.domain.errors import Refused, Unavailable
from broadcast_server.logs import get_logger

log = get_logger()

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
HERE: Final[tuple[Network, ...]] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
BACKLOG: Final = 128
_HANDSHAKE: Final = b"\x16"
_TOLD_EVERY_S: Final = 60.0

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bool], Awaitable[None]]
"""One connection; the last argument: whether it may stay although it is not on TLS."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Who may come in, and how."""

    tls: ssl.SSLContext | None = None
    """None: nobody can come on TLS."""
    plain_from: tuple[Network, ...] = HERE
    """Networks whose sources may come without TLS."""
    networks: tuple[Network, ...] = ()
    """Networks whose sources are answered, this machine always; empty: all."""
    here: tuple[Network, ...] = HERE
    """What counts as this machine."""

    def check(self, host: str) -> None:
        """Raise `Refused("listener_without_tls")` where anybody beyond this machine could come without TLS."""
        if self.tls is None and not self.networks and not is_in(host, HERE) and host != "localhost":
            raise Refused("listener_without_tls", host=host, fix="use_tls_or_name_networks")

    def answers(self, address: str) -> bool:
        """Whether a source of this address is answered at all."""
        return not self.networks or is_in(address, self.here) or is_in(address, self.networks)


@dataclass(frozen=True, slots=True)
class Room:
    """How many may be here at once, and how long they may take to begin."""

    connections: int = 400
    connections_per_address: int = 80
    begin_s: float = 10.0
    header_bytes: int = 16 * 1024


class Entrance:
    """The listening socket and its rules. `turned_away` counts by reason: network, full, address, slow, tls."""

    def __init__(self, serve: Serve, *, rules: Rules, room: Room, clock: Clock) -> None:
        self._serve, self._rules, self._room, self._clock = serve, rules, room, clock
        self._listening: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._inside: dict[asyncio.Task[None], str] = {}
        self._told_s = -_TOLD_EVERY_S
        self.turned_away: Counter[str] = Counter()

    async def open(self, host: str, port: int) -> int:
        """Listen; the port (0 picks one). Raises `Unavailable("port_taken")`, `Refused("listener_without_tls")`."""
        self._rules.check(host)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            listening.close()
            raise Unavailable("port_taken", host=host, port=port) from error
        listening.listen(BACKLOG)
        self._listening = listening
        self._accepting = asyncio.create_task(self._accept(listening), name="relay.entrance")
        chosen: int = listening.getsockname()[1]
        return chosen

    async def close(self) -> None:
        """Let nobody in any more, and end who is inside. Idempotent."""
        listening, self._listening = self._listening, None
        if listening is None:
            return
        tasks = [task for task in (self._accepting, *self._inside) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        listening.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, peer = await loop.sock_accept(listening)
            except OSError as error:  # out of descriptors, or it went away while it waited
                log.warning("entrance.accept_failed", error=str(error))
                await self._clock.sleep(0.05)
                continue
            address = plain_address(str(peer[0]))
            reason = self._reason_against(address)
            if reason is not None:
                sock.close()
                self._count(reason)
                continue
            task = asyncio.create_task(self._greet(sock, address), name=f"relay.entrance[{address}]")
            self._inside[task] = address
            task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        del self._inside[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("entrance.failed", error=repr(error))

    def _reason_against(self, address: str) -> str | None:
        if not self._rules.answers(address):
            return "network"
        if len(self._inside) >= self._room.connections:
            return "full"
        if sum(known == address for known in self._inside.values()) >= self._room.connections_per_address:
            return "address"
        return None

    async def _greet(self, sock: socket.socket, address: str) -> None:
        """Find out whether it speaks TLS, and serve it."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        try:
            async with asyncio.timeout(self._room.begin_s):
                first = await _first_byte(sock)
                is_tls = first == _HANDSHAKE and self._rules.tls is not None
                reader = asyncio.StreamReader(limit=self._room.header_bytes)
                protocol = asyncio.StreamReaderProtocol(reader)
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol, sock, ssl=self._rules.tls if is_tls else None
                )
        except TimeoutError:
            sock.close()
            self._count("slow")
            return
        except OSError:  # ssl.SSLError too: no handshake that we take
            sock.close()
            self._count("tls")
            return
        except BaseException:
            sock.close()
            raise
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await self._serve(reader, writer, is_tls or is_in(address, self._rules.plain_from))
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()
            transport.abort()

    def _count(self, reason: str) -> None:
        """Count, and say so now and then: who knocks a thousand times writes no thousand lines."""
        self.turned_away[reason] += 1
        now_s = self._clock.monotonic()
        if now_s - self._told_s >= _TOLD_EVERY_S:
            self._told_s = now_s
            log.warning("entrance.turned_away", **self.turned_away)


def is_in(address: str, networks: tuple[Network, ...]) -> bool:
    """Whether an address lies in one of these; a name lies in none."""
    try:
        told = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        return False
    return any(told in network for network in networks if network.version == told.version)


def plain_address(address: str) -> str:
    """An IPv4 address as itself, also when it came through an IPv6 socket."""
    try:
        told = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = getattr(told, "ipv4_mapped", None)
    return str(mapped or told)


async def _first_byte(sock: socket.socket) -> bytes:
    """The first byte, which stays where it is; empty when it closed."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            pass
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(sock, _wake, ready)
        try:
            await ready
        finally:
            loop.remove_reader(sock)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
