"""The port through which the server speaks MQTT, and an in-process bus of the same semantics for tests and simulation.

A maintainer must not break: (1) QoS 1 here means "the broker has it" and nothing more (a broker killed after PUBACK
lost 200 of 200 messages in a test): delivery is proven by the nodes' own messages; (2) what could not be sent is
not sent later behind the caller's back; (3) handlers are plain functions called in the loop, each in a turn of its own,
so one that raises harms no other message; (4) every queue is bounded and counts what it drops.

`tests/contracts/test_bus.py` holds the same stories against this loopback, mosquitto and amqtt. MQTT 3.1.1, OASIS 2014.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from broadcast_server.domain.clock import Clock
from broadcast_server.domain.errors import Invalid, Unavailable

QoS = Literal[0, 1]
Right = Literal["read", "write"]
MAX_TOPIC_BYTES = 65_535


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it came in. `arrived` is stamped where the bytes were read, not where they were handled."""

    topic: str
    payload: bytes
    retained: bool
    arrived: datetime


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker says in our name when we vanish without a word (QoS 1)."""

    topic: str
    payload: bytes
    retain: bool = True


Handler = Callable[[Message], None]


class Bus(Protocol):
    """A connection to the broker that heals itself."""

    @property
    def connected(self) -> bool:
        """Whether the broker answered and all subscriptions are in place."""
        ...

    @property
    def dropped_in(self) -> int:
        """Messages thrown away because the loop was slower than the broker."""
        ...

    @property
    def dropped_out(self) -> int:
        """`publish_nowait` messages thrown away: no connection, or the socket was slower than us."""
        ...

    async def start(self) -> None:
        """Connect and stay connected. Raises `Unavailable`: `broker_unreachable`, or `broker_refused` (credentials)."""
        ...

    async def close(self) -> None:
        """Say goodbye (no will is sent) and stop. Idempotent."""
        ...

    async def publish(self, topic: str, payload: bytes, *, qos: QoS = 1, retain: bool = False) -> None:
        """Hand one message over; at QoS 1 until the broker acknowledged it.

        Raises `Unavailable` (`broker_away`, `broker_silent`) and `Invalid("topic_invalid")`.
        """
        ...

    def publish_nowait(self, topic: str, payload: bytes) -> bool:
        """QoS 0 for audio: sent now or dropped, counted and False. Late audio is worth nothing."""
        ...

    async def publish_many(self, items: Sequence[tuple[str, bytes]], *, retain: bool = True) -> None:
        """All `(topic, payload)` at QoS 1, in order, many on their way at once; returns when the last is acknowledged.

        Raises `Unavailable` with the fact `acknowledged` (a count; which ones is not known). Send all again then:
        what is published this way is state.
        """
        ...

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Call `handler` for every message that matches, from now on and after every reconnect.

        Filters of one bus must not overlap: brokers differ in how often they then deliver one message.
        """
        ...

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call back after every connect and reconnect, once the subscriptions are in place.

        The broker may have lost its retained state: this is the moment to fill it again.
        """
        ...


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a topic falls under a filter with `+` and `#` (MQTT 3.1.1 §4.7; `$` topics hide from wildcards)."""
    if topic.startswith("$") and topic_filter[:1] in {"+", "#"}:
        return False
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(levels) or level not in {"+", levels[position]}:
            return False
    return len(wanted) == len(levels)


def covers(wide: str, narrow: str) -> bool:
    """Whether every topic that falls under the filter `narrow` falls under `wide` as well."""
    wanted, levels = wide.split("/"), narrow.split("/")
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(levels) or levels[position] == "#":
            return False
        if level not in {"+", levels[position]}:
            return False
    return len(wanted) == len(levels)


def check_topic(topic: str) -> None:
    """Raise `Invalid("topic_invalid")` unless one may publish on it."""
    if not topic or "+" in topic or "#" in topic or "\0" in topic or len(topic.encode()) > MAX_TOPIC_BYTES:
        raise Invalid("topic_invalid", field="topic", topic=topic[:200])


def check_filter(topic_filter: str) -> None:
    """Raise `Invalid("topic_filter_invalid")` unless one may subscribe to it."""
    levels = topic_filter.split("/")
    good = (
        topic_filter
        and "\0" not in topic_filter
        and "#" not in levels[:-1]
        and all(level in {"+", "#"} or not {"+", "#"} & set(level) for level in levels)
    )
    if not good:
        raise Invalid("topic_filter_invalid", field="topic_filter", topic_filter=topic_filter[:200])


# -------------------------------------------------------------------------------------------------------- loopback


class LoopbackHub:
    """What a broker is to `LoopbackBus`: retained messages, wills, users, rights; can be killed and brought back."""

    def __init__(
        self,
        *,
        users: Mapping[str, str] | None = None,
        may: Callable[[str, Right, str], bool] | None = None,
    ) -> None:
        """`users`: passwords by name, None lets anybody in. `may(user, right, topic)`: the access rules."""
        self._users = users
        self._may = may
        self._members: list[LoopbackBus] = []
        self._strangers: list[LoopbackBus] = []
        self.retained: dict[str, bytes] = {}
        self.is_up = True

    def kill(self, *, forget: bool = True) -> None:
        """Die: everybody is cut off, no will is sent, and with `forget` the retained messages are lost."""
        self.is_up = False
        if forget:
            self.retained.clear()
        cut, self._members = self._members, []
        self._strangers += cut
        for member in cut:
            member.note_link(up=False)

    def revive(self) -> None:
        """Come back: whoever was cut off connects again, in the order in which they came."""
        self.is_up = True
        waiting, self._strangers = self._strangers, []
        for member in waiting:
            self._admit(member)

    def cut(self, member: LoopbackBus) -> None:
        """Break one connection without a goodbye: its will is sent, and it stays away until `mend`."""
        if member in self._members:
            self._members.remove(member)
            self._strangers.append(member)
            member.note_link(up=False)
            if member.will is not None:
                self.route(member, member.will.topic, member.will.payload, retain=member.will.retain)

    def mend(self, member: LoopbackBus) -> None:
        """Let one that was cut off connect again."""
        if member in self._strangers and self.is_up:
            self._strangers.remove(member)
            self._admit(member)

    def join(self, member: LoopbackBus) -> None:
        """A connect. Raises `Unavailable` like the real ones."""
        if not self.is_up:
            raise Unavailable("broker_unreachable")
        if self._users is not None and self._users.get(member.user, None) != member.password:
            raise Unavailable("broker_refused", user=member.user)
        self._admit(member)

    def leave(self, member: LoopbackBus) -> None:
        """A clean goodbye; no will."""
        for group in (self._members, self._strangers):
            if member in group:
                group.remove(member)

    def route(self, sender: LoopbackBus, topic: str, payload: bytes, *, retain: bool) -> None:
        """Deliver to all who subscribed and may read it. A forbidden publish vanishes, as with mosquitto."""
        if self._may is not None and not self._may(sender.user, "write", topic):
            return
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for member in self._members:
            if any(matches(wanted, topic) for wanted in member.filters) and self.may_read(member, topic):
                member.take(topic, payload, retained=False)

    def replay(self, member: LoopbackBus, topic_filter: str) -> None:
        """Give a new subscription the retained messages it matches, in order of topic."""
        for topic in sorted(self.retained):
            if matches(topic_filter, topic) and self.may_read(member, topic):
                member.take(topic, self.retained[topic], retained=True)

    def may_read(self, member: LoopbackBus, topic: str) -> bool:
        """Whether the rules let this member hear the topic."""
        return self._may is None or self._may(member.user, "read", topic)

    def _admit(self, member: LoopbackBus) -> None:
        self._members.append(member)
        member.note_link(up=True)
        for topic_filter in member.filters:
            self.replay(member, topic_filter)


class LoopbackBus:
    """A `Bus` without a network: deterministic, in order, under any clock.

    Beyond `inbox_limit` waiting messages a new one is dropped and counted, as a broker does for a slow subscriber.
    """

    def __init__(
        self,
        hub: LoopbackHub,
        *,
        clock: Clock,
        user: str = "server",
        password: str = "",
        will: Will | None = None,
        inbox_limit: int = 20_000,
    ) -> None:
        self._hub, self._clock = hub, clock
        self.user, self.password, self.will = user, password, will
        self.connected = False
        self.dropped_in = 0
        self.dropped_out = 0
        self._inbox: deque[Message] = deque()
        self._inbox_limit = inbox_limit
        self._is_draining = False
        self._handlers: dict[str, list[Handler]] = {}
        self._callbacks: list[Callable[[], None]] = []

    @property
    def filters(self) -> tuple[str, ...]:
        """What it subscribed to."""
        return tuple(self._handlers)

    async def start(self) -> None:
        """Join the hub. Raises `Unavailable`."""
        self._hub.join(self)
        await self._clock.sleep(0)

    async def close(self) -> None:
        """Leave; what waits in the inbox is dropped."""
        self._hub.leave(self)
        self.connected = False
        self._inbox.clear()
        await self._clock.sleep(0)

    async def publish(self, topic: str, payload: bytes, *, qos: QoS = 1, retain: bool = False) -> None:
        """Hand one message over."""
        del qos  # what is not lost needs no repeat
        check_topic(topic)
        if not self.connected:
            raise Unavailable("broker_away")
        self._hub.route(self, topic, payload, retain=retain)
        await self._clock.sleep(0)

    def publish_nowait(self, topic: str, payload: bytes) -> bool:
        """Sent now, or dropped and counted."""
        check_topic(topic)
        if not self.connected:
            self.dropped_out += 1
            return False
        self._hub.route(self, topic, payload, retain=False)
        return True

    async def publish_many(self, items: Sequence[tuple[str, bytes]], *, retain: bool = True) -> None:
        """All, in order."""
        for topic, _ in items:
            check_topic(topic)
        for done, (topic, payload) in enumerate(items):
            if not self.connected:
                raise Unavailable("broker_away", acknowledged=done)
            self._hub.route(self, topic, payload, retain=retain)
            if done % 64 == 63:
                await self._clock.sleep(0)
        await self._clock.sleep(0)

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Call `handler` for what matches, from now on."""
        check_filter(topic_filter)
        self._handlers.setdefault(topic_filter, []).append(handler)
        if self.connected:
            self._hub.replay(self, topic_filter)

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call back after every connect."""
        self._callbacks.append(callback)

    # -- the hub's side

    def note_link(self, *, up: bool) -> None:
        """The hub says: connected, or cut off."""
        self.connected = up
        if up:
            for callback in self._callbacks:
                asyncio.get_running_loop().call_soon(callback)

    def take(self, topic: str, payload: bytes, *, retained: bool) -> None:
        """The hub delivers."""
        if len(self._inbox) >= self._inbox_limit:
            self.dropped_in += 1
            return
        self._inbox.append(Message(topic, bytes(payload), retained, self._clock.now()))
        if not self._is_draining:
            self._is_draining = True
            asyncio.get_running_loop().call_soon(self._drain)

    def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        self._is_draining = False
        waiting, self._inbox = self._inbox, deque()
        for message in waiting:
            dispatch(loop, self._handlers, message)


def dispatch(loop: asyncio.AbstractEventLoop, handlers: Mapping[str, Sequence[Handler]], message: Message) -> None:
    """Give one message to every handler whose filter it matches, each in a loop turn of its own."""
    for topic_filter, group in handlers.items():
        if matches(topic_filter, message.topic):
            for handler in group:
                loop.call_soon(handler, message)
