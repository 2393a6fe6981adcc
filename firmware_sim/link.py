"""The node's MQTT session: one paho client per node, all of them in one asyncio loop, no thread anywhere.

paho 2 (VERSION2 callbacks, MQTT 3.1.1) runs on its external-loop interface: the loop's reader and writer callbacks
call `loop_read`/`loop_write`, a tick calls `loop_misc`. Connecting never blocks the loop: the socket (and the TLS
handshake) is made ready here and handed to paho. The session is clean: everything that must survive is retained on
the broker or kept by the node. Callbacks run in the loop and must not raise.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import socket
import ssl
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, cast

import structlog
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from firmware_sim.clock import TrueTime

log = structlog.get_logger(__name__)

KEEPALIVE_S: Final = 30
MISC_EVERY_S: Final = 5.0
CONNECT_WITHIN_S: Final = 10.0
FIRST_WAIT_S: Final = 0.3
LONGEST_WAIT_S: Final = 4.0
MAX_PACKET_BYTES: Final = 512 * 1024
"""No packet of ours comes near it; paho would take 256 MiB from whoever says so."""
MAX_UNSENT: Final = 200
"""Packets paho may hold before QoS 0 is dropped and counted."""


@dataclass(frozen=True, slots=True)
class Broker:
    """Where to connect and as whom."""

    host: str
    port: int
    username: str
    password: str
    ca_pem: str | None = None
    """What the broker's certificate must be signed by; nothing else is trusted."""
    is_tls: bool = False
    certificate_pem: str | None = None
    """The node's own chain; None where nodes log in by their password alone."""
    key_pem: str | None = None


class Link(Protocol):
    """What the firmware needs of a session."""

    @property
    def is_up(self) -> bool:
        """Whether the broker has accepted this session."""
        ...

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> bool:
        """Hand over a message; False if it could not even be tried."""
        ...

    def listen(self, topics: Mapping[str, int]) -> None:
        """From now on be subscribed to exactly these topics (with their QoS), in this order."""
        ...

    def cut(self, for_s: float) -> None:
        """Lose the connection without a goodbye and find no network for so long."""
        ...

    async def run(self) -> None:
        """Keep the session alive until cancelled."""
        ...


OnMessage = Callable[[str, bytes], None]


class _HandedSocketClient(mqtt.Client):
    """paho on a socket that is connected already, and in front of a broker that may send anything."""

    ready: socket.socket | None = None

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > MAX_PACKET_BYTES:
            raise ConnectionAbortedError("the broker sends a packet larger than any of ours")
        return super()._sock_recv(bufsize)

    def _send_pubrec(self, mid: int) -> MQTTErrorCode:
        """Nothing is asked for at QoS 2, and paho would keep such messages for ever."""
        del mid
        return MQTTErrorCode.MQTT_ERR_PROTOCOL

    def _create_socket_connection(self) -> socket.socket:
        ready, self.ready = self.ready, None
        if ready is None:
            raise OSError("no socket was made ready")
        return ready


class MqttLink:
    """A `Link` over a real broker."""

    def __init__(
        self,
        broker: Broker,
        *,
        client_id: str,
        will: tuple[str, bytes],
        on_message: OnMessage,
        on_up: Callable[[], None],
        true: TrueTime,
        chance: random.Random,
    ) -> None:
        self._broker = broker
        self._true = true
        self._chance = chance
        self._on_message = on_message
        self._on_up = on_up
        self._topics: dict[str, int] = {}
        self._is_up = False
        self._is_watched = False
        self._down = asyncio.Event()
        self._no_network_until_ns = 0
        self._loop = asyncio.get_running_loop()
        self._tls = _tls(broker) if broker.is_tls else None
        self.connects = 0
        self.dropped = 0
        client = _HandedSocketClient(
            CallbackAPIVersion.VERSION2, client_id, clean_session=True, protocol=MQTTProtocolVersion.MQTTv311
        )
        client.username_pw_set(broker.username, broker.password)
        client.will_set(will[0], will[1], qos=1, retain=True)
        client.connect_async(broker.host, broker.port, keepalive=KEEPALIVE_S)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_message = self._arrived
        client.on_socket_open = self._socket_open
        client.on_socket_close = self._socket_close
        client.on_socket_register_write = self._want_write
        client.on_socket_unregister_write = self._no_write
        self._client = client

    @property
    def is_up(self) -> bool:
        """Whether the broker has accepted this session."""
        return self._is_up

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> bool:
        """Hand over a message; False if there is no session (nothing waits here: the node keeps what matters)."""
        if not self._is_up:
            return False
        if qos == 0 and len(self._client._out_packet) > MAX_UNSENT:  # noqa: SLF001  paho has no public view of its backlog
            self.dropped += 1
            return False
        return self._client.publish(topic, payload, qos=qos, retain=retain).rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def listen(self, topics: Mapping[str, int]) -> None:
        """From now on be subscribed to exactly these topics, asked for in this order."""
        gone = [topic for topic in self._topics if topic not in topics]
        new = [(topic, qos) for topic, qos in topics.items() if topic not in self._topics]
        self._topics = dict(topics)
        if not self._is_up:
            return
        if gone:
            self._client.unsubscribe(gone)
        if new:
            self._client.subscribe(new)

    def certify(self, *, ca_pem: str | None, certificate_pem: str) -> None:
        """From the next connect on come with this certificate of the same key, and trust this authority."""
        self._broker = replace(self._broker, ca_pem=ca_pem, certificate_pem=certificate_pem)
        self._tls = _tls(self._broker) if self._broker.is_tls else None

    def cut(self, for_s: float) -> None:
        """Lose the connection without a goodbye and find no network for so long."""
        self._no_network_until_ns = self._true.now_ns() + round(for_s * 1e9)
        sock = self._client.socket()
        if sock is not None:
            cast("socket.socket", sock).shutdown(socket.SHUT_RDWR)

    async def run(self) -> None:
        """Keep the session alive until cancelled; cancelled, it goes without a goodbye (the will speaks)."""
        failures = 0
        try:
            while True:
                waits_s = (self._no_network_until_ns - self._true.now_ns()) / 1e9
                if waits_s > 0:
                    await self._true.sleep(waits_s)
                    continue
                seen = self.connects
                await self._session()
                failures = 0 if self.connects > seen else failures + 1
                longest_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(failures, 8))
                await self._true.sleep(self._chance.uniform(longest_s / 3, longest_s))
        finally:
            self._hang_up()

    async def close(self) -> None:
        """Say goodbye: the will is not sent, so the caller has published what is to be believed."""
        if self._is_up:
            self._client.disconnect()
            for _ in range(50):
                if self._client.socket() is None:
                    break
                await self._true.sleep(0.01)
        self._hang_up()

    async def _session(self) -> None:
        self._down.clear()
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                self._client.ready = await self._dial()
            self._client.reconnect()
        except (OSError, TimeoutError) as error:
            log.debug("link.refused", node=self._broker.username, error=str(error))
            return
        asked_ns = self._true.now_ns()
        while not self._down.is_set():
            # Not wait_for: in Python 3.11 it loses a cancellation that comes in the turn in which the wait ends.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MISC_EVERY_S):
                    await self._down.wait()
            self._client.loop_misc()
            if not self._is_up and self._true.now_ns() - asked_ns > CONNECT_WITHIN_S * 1e9:
                break
        self._hang_up()

    async def _dial(self) -> socket.socket:
        host, port = self._broker.host, self._broker.port
        family, address = await self._resolve(host, port)
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await self._loop.sock_connect(sock, address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is None:
                return sock
            secured = self._tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        except BaseException:
            sock.close()
            raise
        try:
            await self._handshake(secured)
        except BaseException:
            secured.close()
            raise
        return secured

    async def _resolve(self, host: str, port: int) -> tuple[socket.AddressFamily, Any]:
        try:
            version = ipaddress.ip_address(host).version
        except ValueError:
            found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return found[0][0], found[0][4]
        return (socket.AF_INET if version == 4 else socket.AF_INET6), (host, port)

    async def _handshake(self, secured: ssl.SSLSocket) -> None:
        while True:
            ready: asyncio.Future[None] = self._loop.create_future()
            try:
                secured.do_handshake()
            except ssl.SSLWantReadError:
                self._loop.add_reader(secured, _wake, ready)
                try:
                    await ready
                finally:
                    self._loop.remove_reader(secured)
            except ssl.SSLWantWriteError:
                self._loop.add_writer(secured, _wake, ready)
                try:
                    await ready
                finally:
                    self._loop.remove_writer(secured)
            else:
                return

    def _hang_up(self) -> None:
        self._is_up = False
        sock = self._client.socket()
        if sock is not None:
            self._socket_close(self._client, None, sock)
            cast("socket.socket", sock).close()
            self._client._sock = None  # noqa: SLF001  paho offers no way to leave without a goodbye

    # -- paho's callbacks, all in the loop ----------------------------------------------------------------------------

    def _connected(
        self, _client: mqtt.Client, _data: Any, _flags: mqtt.ConnectFlags, reason: ReasonCode, _p: Properties | None
    ) -> None:
        if reason.is_failure:
            self._down.set()
            return
        self._is_up = True
        self.connects += 1
        if self._topics:
            self._client.subscribe(list(self._topics.items()))
        self._on_up()

    def _disconnected(
        self, _client: mqtt.Client, _data: Any, _flags: mqtt.DisconnectFlags, _reason: ReasonCode, _p: Properties | None
    ) -> None:
        self._is_up = False
        self._down.set()

    def _arrived(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:  # MQTT 3.1.1 §1.5.3: not UTF-8, so not for us
            return
        self._on_message(topic, bytes(message.payload))

    def _socket_open(self, _client: mqtt.Client, _data: Any, sock: Any) -> None:
        self._loop.add_reader(sock, self._readable, sock)

    def _readable(self, sock: Any) -> None:
        self._client.loop_read()
        pending = getattr(sock, "pending", None)
        # TLS: what was decrypted already does not wake the selector again.
        while pending is not None and self._client.socket() is sock and pending():
            self._client.loop_read()

    def _socket_close(self, _client: mqtt.Client, _data: Any, sock: Any) -> None:
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)
        self._is_watched = False
        self._down.set()

    def _want_write(self, _client: mqtt.Client, _data: Any, sock: Any) -> None:
        # A socket is nearly always writable: try at the loop's next turn, and watch it only if it was not.
        self._loop.call_soon(self._write, sock)

    def _write(self, sock: Any) -> None:
        if self._client.socket() is not sock:
            return
        self._client.loop_write()
        # The write may have closed it.
        if self._client.socket() is sock and self._client.want_write() and not self._is_watched:
            self._is_watched = True
            self._loop.add_writer(sock, self._client.loop_write)  # type: ignore[arg-type]  # it is the open socket

    def _no_write(self, _client: mqtt.Client, _data: Any, sock: Any) -> None:
        if self._is_watched:
            self._is_watched = False
            self._loop.remove_writer(sock)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _tls(broker: Broker) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=broker.ca_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if broker.certificate_pem is not None and broker.key_pem is not None:
        with tempfile.NamedTemporaryFile("w", encoding="ascii") as pair:  # mode 0600; the library reads only files
            pair.write(broker.key_pem + broker.certificate_pem)
            pair.flush()
            context.load_cert_chain(pair.name)
    return context
