"""One MQTT 3.1.1 session by hand: what a stranger, a node or our own part really gets of a broker.

Not for traffic: `Bus` is. Here every packet is ours, so that a check can say what no client library would: a foreign
client id, no password, a will for somebody else's topic, a subscription that is none of ours. A maintainer must not
break: what counts is what was delivered (`heard`); mosquitto grants a subscription of which it then delivers nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from broadcast_server.domain.errors import Refused, Unavailable

TIMEOUT_S: Final = 3.0
_CONNACK, _PUBLISH, _PUBACK, _SUBACK, _PINGRESP = 2, 3, 4, 9, 13
CLOSED: Final = 5
"""The code of a refusal without a word: the connection was closed, or the TLS handshake failed."""


@dataclass(frozen=True, slots=True)
class Login:
    """As whom to knock. None: without that part. `tls`: also carries a client certificate, if there is one."""

    user: str | None = None
    password: str | None = None
    client_id: str = "loa-check"
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Delivered:
    """One message that the broker gave us."""

    topic: str
    payload: bytes
    retained: bool


class Probe:
    """A session that is open. Reads only while one of its methods runs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout_s: float) -> None:
        self._reader, self._writer, self._timeout_s = reader, writer, timeout_s
        self._last_id = 0
        self.heard: list[Delivered] = []

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        login: Login,
        *,
        will: tuple[str, bytes, bool] | None = None,
        is_clean: bool = True,
        keepalive_s: int = 30,
        timeout_s: float = TIMEOUT_S,
    ) -> Self:
        """Connect. `will`: topic, payload, retained.

        Raises `Unavailable("broker_unreachable")` (nobody there, or no answer in time) and `Refused("broker_refused")`
        with the fact `return_code`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(host, port, ssl=login.tls)
        except ssl.SSLError as error:
            raise Refused("broker_refused", user=login.user, return_code=CLOSED) from error
        except (OSError, TimeoutError) as error:
            raise Unavailable("broker_unreachable", host=host, port=port) from error
        made = cls(reader, writer, timeout_s)
        try:
            writer.write(_connect(login, will, is_clean, keepalive_s))
            answer = await made._until(_CONNACK)
            code = answer[1] if len(answer) >= 2 else CLOSED
        except (asyncio.IncompleteReadError, OSError):  # TLS 1.3: a certificate is refused only now
            code = CLOSED
        except TimeoutError as error:
            await made.vanish()
            raise Unavailable("broker_unreachable", host=host, port=port) from error
        if code != 0:
            await made.vanish()
            raise Refused("broker_refused", user=login.user, return_code=code)
        return made

    async def subscribe(self, filters: Sequence[str], *, qos: int = 1) -> bytes:
        """Ask for filters; the granted codes (0x80: refused). Raises `Unavailable("broker_away")`."""
        body = self._next_id() + b"".join(_text(each) + bytes([qos]) for each in filters)
        return (await self._ask(_packet(0x82, body), _SUBACK))[2:]

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Publish; at QoS 1 until it is acknowledged, which does not say that it was allowed.

        Raises `Unavailable("broker_away")`.
        """
        head = 0x30 | (qos << 1) | retain
        body = _text(topic) + (self._next_id() if qos else b"") + payload
        if qos:
            await self._ask(_packet(head, body), _PUBACK)
        else:
            await self._send(_packet(head, body))

    async def ping(self) -> None:
        """A round trip. Raises `Unavailable("broker_away")` when the session is over."""
        await self._ask(b"\xc0\x00", _PINGRESP)

    async def hears(self, topic: str, payload: bytes) -> bool:
        """Read until this message came; False if it did not in time, or the session ended."""
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(self._timeout_s):
                while not any(one.topic == topic and one.payload == payload for one in self.heard):
                    await self._packet()
        return any(one.topic == topic and one.payload == payload for one in self.heard)

    async def close(self) -> None:
        """Say goodbye: no will is sent."""
        with contextlib.suppress(OSError):
            self._writer.write(b"\xe0\x00")
            await self._writer.drain()
        await self._shut()

    async def vanish(self) -> None:
        """Be gone without a word, so that the will is sent."""
        self._writer.transport.abort()
        await self._shut()

    # -- inside

    async def _shut(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                await self._writer.wait_closed()

    def _next_id(self) -> bytes:
        self._last_id = self._last_id % 65_535 + 1
        return struct.pack(">H", self._last_id)

    async def _send(self, packet: bytes) -> None:
        try:
            self._writer.write(packet)
            await self._writer.drain()
        except OSError as error:
            raise Unavailable("broker_away") from error

    async def _ask(self, packet: bytes, answer: int) -> bytes:
        await self._send(packet)
        try:
            return await self._until(answer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise Unavailable("broker_away") from error

    async def _until(self, kind: int) -> bytes:
        async with asyncio.timeout(self._timeout_s):
            while True:
                came, body = await self._packet()
                if came == kind:
                    return body

    async def _packet(self) -> tuple[int, bytes]:
        """The next packet; a message goes to `heard` and is acknowledged."""
        head = (await self._reader.readexactly(1))[0]
        size, shift = 0, 0
        while True:
            digit = (await self._reader.readexactly(1))[0]
            size |= (digit & 0x7F) << shift
            shift += 7
            if digit < 0x80 or shift > 21:
                break
        body = await self._reader.readexactly(size)
        if head >> 4 == _PUBLISH:
            length = struct.unpack_from(">H", body)[0]
            rest = body[2 + length :]
            if head & 0x06:
                await self._send(b"\x40\x02" + rest[:2])
                rest = rest[2:]
            self.heard.append(Delivered(body[2 : 2 + length].decode(errors="replace"), rest, bool(head & 1)))
        return head >> 4, body


async def try_connect(host: str, port: int, login: Login = Login(), *, timeout_s: float = 2.0) -> int | None:
    """One CONNECT and its return code: 0 let in, else refused (`CLOSED` when it was closed without a word).

    None: nobody listens there, or no answer in time. Without user, password and certificate it is an anonymous one.
    """
    try:
        probe = await Probe.open(host, port, login, timeout_s=timeout_s)
    except Unavailable:
        return None
    except Refused as refusal:
        code: int = refusal.facts["return_code"]
        return code
    await probe.close()
    return 0


def _connect(login: Login, will: tuple[str, bytes, bool] | None, is_clean: bool, keepalive_s: int) -> bytes:
    flags = 0x02 if is_clean else 0
    body = _text(login.client_id)
    if will is not None:
        topic, payload, retain = will
        flags |= 0x04 | 0x08 | (0x20 if retain else 0)  # QoS 1
        body += _text(topic) + struct.pack(">H", len(payload)) + payload
    if login.user is not None:
        flags |= 0x80
        body += _text(login.user)
    if login.password is not None:
        flags |= 0x40
        body += _text(login.password)
    return _packet(0x10, _text("MQTT") + bytes([4, flags]) + struct.pack(">H", keepalive_s) + body)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack(">H", len(raw)) + raw


def _packet(head: int, body: bytes) -> bytes:
    size, digits = len(body), bytearray()
    while True:
        size, digit = divmod(size, 128)
        digits.append(digit | (0x80 if size else 0))
        if not size:
            return bytes([head]) + bytes(digits) + body
