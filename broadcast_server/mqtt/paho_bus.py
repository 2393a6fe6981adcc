"""The `Bus` over a real broker: paho-mqtt, one thread of ours around its sockets, everything else in the loop.

A maintainer must not break: (1) paho's callbacks run in the link's thread and only append to a queue that the loop
drains, many events per wake-up; (2) what an acknowledgement resolves is registered in the same loop step as the
`publish`, so that the acknowledgement cannot overtake it; (3) every connection has a paho client of its own: paho keeps
unacknowledged messages and would send a plan that was given up long ago after the next connect; (4) the thread waits
with `poll`, because paho's own loop uses `select`, which fails for good once the process holds 1 024 descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, cast

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import Invalid, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.mqtt.bus import Handler, Message, QoS, Will, check_filter, check_topic, dispatch
from broadcast_server.supervise import Backoff

log = get_logger()

MAX_PAYLOAD_BYTES = 278_528  # 256 KiB of body and 16 KiB for its head; the broker's own limit lies above
WINDOW_MESSAGES = 512  # unacknowledged at once by one `publish_many`; the broker must queue as many
WINDOW_BYTES = 4 << 20
AUDIO_BACKLOG_BYTES = 1 << 20  # about five minutes of one 24 kbit/s stream: beyond that nobody is reading
READ_BLOCK_BYTES = 64 << 10
MAX_PACKET_BYTES = 1 << 20  # no node may send so much; paho would take 256 MiB from whoever says so
DRAIN_MESSAGES = 256  # messages handled per loop turn, so that 10 000 statuses do not hold it


class _Flight:
    """Messages of one call that wait for their acknowledgements."""

    __slots__ = ("_limit", "_waiter", "acknowledged", "failure", "on_way", "on_way_bytes")

    def __init__(self) -> None:
        self.on_way = 0
        self.on_way_bytes = 0
        self.acknowledged = 0
        self.failure: str | None = None
        self._limit = (0, 0)
        self._waiter: asyncio.Future[None] | None = None

    def landed(self, size_bytes: int) -> None:
        self.on_way -= 1
        self.on_way_bytes -= size_bytes
        self.acknowledged += 1
        if self._waiter is not None and self._is_below():
            self._wake()

    def fail(self, code: str) -> None:
        self.failure = code
        self._wake()

    async def below(self, messages: int, size_bytes: int, timeout_s: float) -> None:
        """Wait until at most so many are on their way; raises `Unavailable` if they cannot land."""
        self._limit = (messages, size_bytes)
        while self.failure is None and not self._is_below():
            before = self.acknowledged
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._waiter
            except TimeoutError:
                if self.acknowledged == before:
                    self.failure = "broker_silent"
            finally:
                self._waiter = None
        if self.failure is not None:
            raise Unavailable(self.failure, acknowledged=self.acknowledged)

    def _is_below(self) -> bool:
        return self.on_way <= self._limit[0] and self.on_way_bytes <= self._limit[1]

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Client(paho.Client):
    """paho's client, reading its socket by the block.

    paho asks for one byte, one byte and the rest of every packet, which made three system calls per acknowledgement
    the dearest part of publishing 10 000 plans (0.9 s of 1.3 s). `_sock_recv` is not public: the contract tests and
    the version bound in pyproject.toml watch over it.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, **settings)
        self._block = memoryview(b"")

    @property
    def has_block(self) -> bool:
        """Whether bytes were read that `loop_read` has not looked at."""
        return len(self._block) > 0

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > MAX_PACKET_BYTES:
            raise ConnectionAbortedError("the broker sends a packet larger than any of ours")
        if not self._block:
            self._block = memoryview(super()._sock_recv(READ_BLOCK_BYTES))
        taken, self._block = self._block[:bufsize], self._block[bufsize:]
        return bytes(taken)

    def _send_pubrec(self, mid: int) -> MQTTErrorCode:
        """Nothing is asked for at QoS 2, and paho would keep such messages for ever."""
        del mid
        return MQTTErrorCode.MQTT_ERR_PROTOCOL


class PahoBus:
    """A `Bus` over MQTT 3.1.1. See `Bus` for what the methods promise."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        clock: Clock,
        chance: Chance,
        user: str | None = None,
        password: str | None = None,
        client_id: str | None = None,
        will: Will | None = None,
        tls: ssl.SSLContext | None = None,
        keepalive_s: int = 20,
        connect_timeout_s: float = 5.0,
        start_timeout_s: float | None = 10.0,
        ack_timeout_s: float = 10.0,
        longest_wait_s: float = 1.0,
        inbox_limit: int = 50_000,
        inbox_limit_bytes: int = 64 << 20,
    ) -> None:
        """`start_timeout_s`: how long `start` waits for the first connection; None does not wait at all.

        `inbox_limit`, `inbox_limit_bytes`: what may wait for the loop; a message beyond is dropped and counted.
        `longest_wait_s`: the ceiling of the jittered back-off between connects.
        """
        self._host, self._port = host, port
        self._clock, self._chance = clock, chance
        self._user, self._password = user, password
        self._client_id = client_id or f"loa-{chance.new_id()[-20:]}"
        self._will, self._tls = will, tls
        self._keepalive_s, self._connect_timeout_s = keepalive_s, connect_timeout_s
        self._start_timeout_s, self._ack_timeout_s = start_timeout_s, ack_timeout_s
        self._longest_wait_s = longest_wait_s
        self._inbox_limit, self._inbox_limit_bytes = inbox_limit, inbox_limit_bytes
        self._handlers: dict[str, list[Handler]] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._keeper: asyncio.Task[None] | None = None
        self._link: _Link | None = None
        self._first: asyncio.Future[str | None] | None = None
        self._is_closed = False
        self.connected = False
        self.connects = 0
        self.dropped_in = 0
        self.dropped_out = 0

    # -- life

    async def start(self) -> None:
        """Connect and stay connected."""
        self._first = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._stay_connected(), name=f"mqtt.bus[{self._client_id}]")
        if self._start_timeout_s is None:
            return
        try:
            async with asyncio.timeout(self._start_timeout_s):
                failure = await self._first
        except TimeoutError:
            failure = "broker_unreachable"
        if failure is not None:
            await self.close()
            raise Unavailable(failure, host=self._host, port=self._port, user=self._user)

    async def close(self) -> None:
        """Say goodbye and stop."""
        self._is_closed = True
        self.connected = False
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None
        if self._link is not None:
            await self._link.close()  # once more: the cancellation may have met the keeper in the middle of it
        if self._first is not None and not self._first.done():
            self._first.cancel()

    async def _stay_connected(self) -> None:
        backoff = Backoff(self._chance, first_s=0.1, longest_s=self._longest_wait_s)
        is_silent = False  # one line per outage, not one per attempt
        while True:
            link = self._link = _Link(self._make_client(), self)
            try:
                failure = await link.open(self._host, self._port, self._keepalive_s)
                if failure is None:
                    failure = await self._enter(link)
                if failure is None:
                    is_silent = False
                    backoff.reset()
                    failure = await link.ended
                    log.warning("mqtt.disconnected", reason=failure, host=self._host, port=self._port)
                elif not is_silent:
                    is_silent = True
                    log.warning("mqtt.connect_failed", reason=failure, host=self._host, port=self._port)
            finally:
                self.connected = False
                await link.close()
            if self._first is not None and not self._first.done() and failure == "broker_refused":
                self._first.set_result(failure)
            await self._clock.sleep(backoff.next_s())

    async def _enter(self, link: _Link) -> str | None:
        """Put the subscriptions in place and tell everybody; a reason if the link did not live so long."""
        if self._handlers:
            failure = await link.subscribe(tuple(self._handlers), self._ack_timeout_s)
            if failure is not None:
                return failure
        self.connected = True
        self.connects += 1
        log.info("mqtt.connected", host=self._host, port=self._port, connects=self.connects)
        if self._first is not None and not self._first.done():
            self._first.set_result(None)
        loop = asyncio.get_running_loop()
        for callback in self._callbacks:
            loop.call_soon(callback)
        return None

    def _make_client(self) -> _Client:
        client = _Client(
            client_id=self._client_id,
            clean_session=True,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages = 0  # our own window bounds what is on its way, and without paho's O(n) look
        client.connect_timeout = self._connect_timeout_s
        if self._user is not None:
            client.username_pw_set(self._user, self._password)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=self._will.retain)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        return client

    # -- out

    async def publish(self, topic: str, payload: bytes, *, qos: QoS = 1, retain: bool = False) -> None:
        """Hand one message over."""
        _check(topic, payload)
        link = self._up()
        if qos == 0:
            link.send(topic, payload, retain=retain)
            return
        flight = _Flight()
        link.send(topic, payload, retain=retain, flight=flight)
        await self._land(link, flight, 0, 0)

    def publish_nowait(self, topic: str, payload: bytes) -> bool:
        """Sent now, or dropped and counted."""
        _check(topic, payload)
        link = self._link
        if link is None or not self.connected or link.backlog_bytes > AUDIO_BACKLOG_BYTES:
            self.dropped_out += 1
            return False
        try:
            link.send(topic, payload, retain=False)
        except Unavailable:
            self.dropped_out += 1
            return False
        return True

    async def publish_many(self, items: Sequence[tuple[str, bytes]], *, retain: bool = True) -> None:
        """All, in order, `WINDOW_MESSAGES` and `WINDOW_BYTES` on their way at once."""
        for topic, payload in items:
            _check(topic, payload)
        if not items:
            return
        link = self._up()
        flight = _Flight()
        for count, (topic, payload) in enumerate(items, 1):
            link.send(topic, payload, retain=retain, flight=flight)
            if flight.on_way >= WINDOW_MESSAGES or flight.on_way_bytes >= WINDOW_BYTES:
                await self._land(link, flight, WINDOW_MESSAGES // 2, WINDOW_BYTES // 2)
            elif count % 64 == 0:
                await self._clock.sleep(0)
                if flight.failure is not None:
                    break
        await self._land(link, flight, 0, 0)

    def _up(self) -> _Link:
        if self._link is None or not self.connected:
            raise Unavailable("broker_away")
        return self._link

    async def _land(self, link: _Link, flight: _Flight, messages: int, size_bytes: int) -> None:
        try:
            await flight.below(messages, size_bytes, self._ack_timeout_s)
        except Unavailable as error:
            if error.code == "broker_silent":  # half dead: a new connection, so that nothing of this is sent later
                link.drop()
            raise

    # -- in

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Call `handler` for what matches."""
        check_filter(topic_filter)
        is_new = topic_filter not in self._handlers
        self._handlers.setdefault(topic_filter, []).append(handler)
        if is_new and self._link is not None and self.connected:
            self._link.subscribe_nowait((topic_filter,))

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call back after every connect and reconnect."""
        self._callbacks.append(callback)

    # -- the link's side

    def now(self) -> datetime:
        """The instant, for the link's thread."""
        return self._clock.now()

    def inbox_is_full(self, waiting: int, waiting_bytes: int) -> bool:
        """Whether one more message would be too many (called in the link's thread)."""
        return waiting >= self._inbox_limit or waiting_bytes >= self._inbox_limit_bytes

    def deliver(self, message: Message) -> None:
        """One message for the handlers (called in the loop)."""
        if not self._is_closed:
            dispatch(asyncio.get_running_loop(), self._handlers, message)


def _check(topic: str, payload: bytes) -> None:
    check_topic(topic)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise Invalid("message_too_large", topic=topic, size_bytes=len(payload), limit_bytes=MAX_PAYLOAD_BYTES)


class _Link:
    """One connection from first to last byte: a paho client, the thread that serves its socket, and the way back.

    The thread's callbacks append to `_events`: int = acknowledged message id, `Message` = came in, callable = to be
    run in the loop. One wake-up of the loop takes as many as there are.
    """

    def __init__(self, client: _Client, bus: PahoBus) -> None:
        self._client, self._bus = client, bus
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self._opened: asyncio.Future[str | None] = self._loop.create_future()
        self._flights: dict[int, tuple[_Flight | None, int]] = {}
        self._asked: dict[int, asyncio.Future[str | None]] = {}
        self.backlog_bytes = 0
        self._events: deque[int | Message | Callable[[], None]] = deque()
        self._events_lock = threading.Lock()
        self._is_draining = False
        self._inbox, self._inbox_bytes = 0, 0
        self._dropped = 0
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._thread: threading.Thread | None = None
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_socket_open = _tune
        client.on_socket_register_write = self._on_want_write

    # -- the loop's side

    async def open(self, host: str, port: int, keepalive_s: int) -> str | None:
        """Connect; None when the broker said yes, else why not."""
        self._thread = threading.Thread(
            target=self._serve, args=(host, port, keepalive_s), name="mqtt.link", daemon=True
        )
        self._thread.start()
        return await asyncio.shield(self._opened)

    def send(self, topic: str, payload: bytes, *, retain: bool, flight: _Flight | None = None) -> None:
        """Give one message to paho, at QoS 1 if a flight waits for it."""
        info = self._client.publish(topic, payload, qos=0 if flight is None else 1, retain=retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise Unavailable("broker_away", acknowledged=flight.acknowledged if flight is not None else 0)
        self._flights[info.mid] = (flight, len(payload))
        if flight is None:
            self.backlog_bytes += len(payload)
        else:
            flight.on_way += 1
            flight.on_way_bytes += len(payload)

    async def subscribe(self, filters: Sequence[str], timeout_s: float) -> str | None:
        """Ask and wait for the answer; a reason if there was none."""
        answer = self.subscribe_nowait(filters)
        if answer is None:
            return "broker_away"
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            return "broker_silent"

    def subscribe_nowait(self, filters: Sequence[str]) -> asyncio.Future[str | None] | None:
        """Ask for filters at QoS 1; the answer resolves the future."""
        rc, mid = self._client.subscribe([(wanted, 1) for wanted in filters])
        if rc != MQTTErrorCode.MQTT_ERR_SUCCESS or mid is None:
            return None
        answer = self._asked[mid] = self._loop.create_future()
        return answer

    def drop(self) -> None:
        """Break the connection without a goodbye; the thread sees it and ends."""
        sock = cast("socket.socket | None", self._client.socket())
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Say goodbye, break the connection if that is not heard within a second, and end the thread."""
        if self._thread is None:
            self._close_wake()
            return
        self._client.disconnect()
        self._wake()
        await asyncio.wait([self.ended], timeout=1.0)
        if not self.ended.done():
            self.drop()
            await asyncio.wait([self.ended], timeout=self._client.connect_timeout + 1.0)
        if self.ended.done():
            self._thread.join()
            self._close_wake()

    def _close_wake(self) -> None:
        self._wake_in.close()
        self._wake_out.close()

    def _drain(self) -> None:
        """Take what the thread left, in its order; messages in portions."""
        taken = 0
        while True:
            with self._events_lock:
                if not self._events:
                    self._is_draining = False
                    self._bus.dropped_in += self._dropped
                    self._dropped = 0
                    return
                event = self._events.popleft()
                if isinstance(event, Message):
                    self._inbox -= 1
                    self._inbox_bytes -= len(event.payload)
            if isinstance(event, int):
                self._acknowledge(event)
            elif isinstance(event, Message):
                self._bus.deliver(event)
                taken += 1
                if taken >= DRAIN_MESSAGES:
                    self._loop.call_soon(self._drain)
                    return
            else:
                event()

    def _acknowledge(self, mid: int) -> None:
        known = self._flights.pop(mid, None)
        if known is None:
            return
        flight, size_bytes = known
        if flight is None:
            self.backlog_bytes -= size_bytes
        else:
            flight.landed(size_bytes)

    def _end(self, reason: str) -> None:
        if not self._opened.done():
            self._opened.set_result(reason)
        for flight, _ in self._flights.values():
            if flight is not None:
                flight.fail("broker_away")
        self._flights.clear()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result("broker_away")
        if not self.ended.done():
            self.ended.set_result(reason)

    # -- the thread's side

    def _post(self, event: int | Message | Callable[[], None]) -> None:
        with self._events_lock:
            if isinstance(event, Message):
                if self._bus.inbox_is_full(self._inbox, self._inbox_bytes):
                    self._dropped += 1
                    return
                self._inbox += 1
                self._inbox_bytes += len(event.payload)
            self._events.append(event)
            if self._is_draining:
                return
            self._is_draining = True
        with contextlib.suppress(RuntimeError):  # the loop was closed under us: nobody is left to tell
            self._loop.call_soon_threadsafe(self._drain)

    def _serve(self, host: str, port: int, keepalive_s: int) -> None:
        reason = "broker_unreachable"
        try:
            self._client.connect(host, port, keepalive_s)
            reason = self._pump()
        except ssl.SSLError:
            reason = "broker_tls_failed"
        except (OSError, ValueError):  # ValueError: paho on a socket that closed between two of its looks
            pass
        self._post(lambda: self._end(reason))

    def _pump(self) -> str:
        client, poll = self._client, select.poll()
        poll.register(self._wake_in, select.POLLIN)
        registered: socket.socket | None = None
        while (sock := cast("socket.socket | None", client.socket())) is not None:
            if sock is not registered:
                poll.register(sock, select.POLLIN)
                registered = sock
            poll.modify(sock, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
            is_buffered = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
            number = sock.fileno()
            ready = dict(poll.poll(0 if is_buffered else 1000))
            if self._wake_in.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    self._wake_in.recv(4096)
            happened = ready.get(number, 0)
            if is_buffered or happened & ~select.POLLOUT:
                client.loop_read()
                while client.has_block and client.socket() is not None:
                    client.loop_read()
            if client.want_write():
                client.loop_write()
            client.loop_misc()
        return "connection_lost"

    def _on_want_write(self, _client: paho.Client, _userdata: Any, _sock: Any) -> None:
        if threading.current_thread() is not self._thread:
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            self._wake_out.send(b"\0")

    def _on_connect(
        self, _client: paho.Client, _userdata: Any, _flags: Any, code: ReasonCode, _properties: Properties | None
    ) -> None:
        refusal = None
        if code.is_failure:
            refusal = "broker_refused" if code.value in {0x86, 0x87, 0x85} else "broker_unreachable"
        self._post(lambda: None if self._opened.done() else self._opened.set_result(refusal))

    def _on_publish(
        self, _client: paho.Client, _userdata: Any, mid: int, _code: ReasonCode, _properties: Properties
    ) -> None:
        self._post(mid)

    def _on_subscribe(
        self,
        _client: paho.Client,
        _userdata: Any,
        mid: int,
        codes: Sequence[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        refused = sum(code.is_failure for code in codes)
        self._post(lambda: self._answer(mid, refused))

    def _answer(self, mid: int, refused: int) -> None:
        if refused:
            log.error("mqtt.subscribe_refused", refused=refused)
        answer = self._asked.pop(mid, None)
        if answer is not None and not answer.done():
            answer.set_result(None)

    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:  # MQTT 3.1.1 §1.5.3: not UTF-8, so not for us
            return
        self._post(Message(topic, bytes(message.payload), message.retain, self._bus.now()))


def _tune(_client: paho.Client, _userdata: Any, sock: Any) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
