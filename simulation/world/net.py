"""The broker, the ways to it, and the nodes' sessions: everything that MQTT and a bad network do to messages.

A way has a delay that keeps the order of messages (TCP), and faults that do not: `cut` loses whatever is under way and
breaks the session when one of the two notices, `deaf` and `mute` are a cut of one direction only, `slow` adds delay,
`torn` delivers out of order and twice. What a broker does is `LoopbackHub`; it is asked here by exact topic, because
nodes subscribe to nothing else.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from broadcast_server.mqtt.bus import LoopbackBus, LoopbackHub, matches
from simulation.world.time import VirtualTime

KEEPALIVE_S: Final = 30.0
BROKER_WAITS_S: Final = 1.5 * KEEPALIVE_S
"""A broker gives up a client after one and a half keepalives (MQTT 3.1.1 §3.1.2.10)."""
FIRST_WAIT_S: Final = 0.3
LONGEST_WAIT_S: Final = 300.0
USUAL_S: Final = (0.02, 0.12)
"""Delay of one direction on a good day, drawn from this range."""

Tap = Callable[[str, str, bytes, bool], None]
"""Sees every message the broker took: sender, topic, payload, retain."""


@dataclass(slots=True)
class Way:
    """The way between one node and the broker; it outlives sessions and reboots. Until when each fault lasts."""

    node_id: str
    cut_until_s: float = 0.0
    mute_until_s: float = 0.0
    """Nothing the node says arrives."""
    deaf_until_s: float = 0.0
    """Nothing arrives at the node."""
    slow_until_s: float = 0.0
    slow_by_s: float = 0.0
    torn_until_s: float = 0.0
    last_up_s: float = 0.0
    last_down_s: float = 0.0

    def is_open(self, now_s: float) -> bool:
        """Whether a connection can be made."""
        return now_s >= max(self.cut_until_s, self.mute_until_s, self.deaf_until_s)


class Ether(LoopbackHub):
    """The broker and all ways to it."""

    def __init__(self, time: VirtualTime, chance: random.Random) -> None:
        super().__init__()
        self._time, self._chance = time, chance
        self._sessions: dict[str, NodeLink] = {}
        self._subscribed: dict[str, dict[str, NodeLink]] = {}
        self.ways: dict[str, Way] = {}
        self.taps: list[Tap] = []
        self.lost = 0

    # -- the broker

    def kill(self, *, forget: bool = True) -> None:
        """Die: everybody is cut off at once, no will is sent; with `forget` the retained messages are lost."""
        super().kill(forget=forget)
        for link in list(self._sessions.values()):
            self._forget(link)
            link.note_down()

    def route(self, sender: LoopbackBus | NodeLink, topic: str, payload: bytes, *, retain: bool) -> None:
        """Keep what is retained and deliver to all who subscribed."""
        if not self.is_up:
            return
        for tap in self.taps:
            tap(sender.user, topic, payload, retain)
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for member in self._members:
            if any(matches(wanted, topic) for wanted in member.filters):
                member.take(topic, payload, retained=False)
        for link in list(self._subscribed.get(topic, {}).values()):
            self.down(link, topic, payload)

    def admit(self, link: NodeLink) -> None:
        """A node's session begins; an older one of the same name ends, with its will."""
        old = self._sessions.get(link.user)
        if old is not None:
            self._end(old)
        self._sessions[link.user] = link

    def goodbye(self, link: NodeLink) -> None:
        """The node is gone (no power, no network): the broker learns of it by silence."""
        self._time_out(link)

    def subscribe(self, link: NodeLink, topics: tuple[str, ...]) -> None:
        """From now on exactly these; what is retained of new ones is delivered, in this order."""
        if self._sessions.get(link.user) is not link:
            return
        for topic in [topic for topic in link.subscribed if topic not in topics]:
            del self._subscribed[topic][link.user]
        new = [topic for topic in topics if topic not in link.subscribed]
        for topic in new:
            self._subscribed.setdefault(topic, {})[link.user] = link
        link.subscribed = topics
        for topic in new:
            if topic in self.retained:
                self.down(link, topic, self.retained[topic])

    def _forget(self, link: NodeLink) -> None:
        if self._sessions.get(link.user) is link:
            del self._sessions[link.user]
            for topic in link.subscribed:
                del self._subscribed[topic][link.user]
            link.subscribed = ()

    def _end(self, link: NodeLink) -> None:
        """Without a goodbye: the will is told."""
        if self._sessions.get(link.user) is link:
            self._forget(link)
            link.note_down()
            self.route(link, link.will[0], link.will[1], retain=True)

    def _time_out(self, link: NodeLink) -> None:
        asyncio.get_running_loop().call_later(BROKER_WAITS_S, self._end, link)

    # -- the ways

    def way(self, node_id: str) -> Way:
        """The way of a node."""
        return self.ways.setdefault(node_id, Way(node_id))

    def break_way(self, node_id: str, for_s: float, *, up: bool = True, down: bool = True) -> None:
        """Cut a way, or one direction of it, for so long. Both ends notice by keepalive, each in its own time."""
        way, until_s = self.way(node_id), self._time.monotonic() + for_s
        if up and down:
            way.cut_until_s = max(way.cut_until_s, until_s)
        elif up:
            way.mute_until_s = max(way.mute_until_s, until_s)
        else:
            way.deaf_until_s = max(way.deaf_until_s, until_s)
        link = self._sessions.get(node_id)
        if link is not None:
            asyncio.get_running_loop().call_later(
                min(for_s, self._chance.uniform(1.0, KEEPALIVE_S)), link.note_down_of, link.generation
            )
            if up:
                self._time_out_of(link)

    def _time_out_of(self, link: NodeLink) -> None:
        generation = link.generation

        def end() -> None:
            if link.generation == generation:
                self._end(link)

        asyncio.get_running_loop().call_later(BROKER_WAITS_S, end)

    def up(self, link: NodeLink, topic: str, payload: bytes, *, retain: bool) -> None:
        """A node's message on its way to the broker."""
        way, now_s = self.way(link.user), self._time.monotonic()
        generation = link.generation

        def arrive() -> None:
            if self._sessions.get(link.user) is link and link.generation == generation and self.is_up:
                self.route(link, topic, payload, retain=retain)
            else:
                self.lost += 1

        if now_s < max(way.cut_until_s, way.mute_until_s):
            self.lost += 1
            return
        way.last_up_s = self._carry(way, way.last_up_s, arrive)

    def down(self, link: NodeLink, topic: str, payload: bytes) -> None:
        """A message on its way to a node."""
        way, now_s = self.way(link.user), self._time.monotonic()
        generation = link.generation

        def arrive() -> None:
            if link.generation == generation and link.is_up:
                link.on_message(topic, payload)
            else:
                self.lost += 1

        if now_s < max(way.cut_until_s, way.deaf_until_s):
            self.lost += 1
            return
        way.last_down_s = self._carry(way, way.last_down_s, arrive)

    def _carry(self, way: Way, last_s: float, arrive: Callable[[], None]) -> float:
        loop, now_s = asyncio.get_running_loop(), self._time.monotonic()
        at_s = now_s + self._chance.uniform(*USUAL_S)
        if now_s < way.slow_until_s:
            at_s += self._chance.uniform(0.0, way.slow_by_s)
        if now_s < way.torn_until_s:
            loop.call_at(at_s + self._chance.uniform(0.0, 2.0), arrive)
            if self._chance.random() < 0.5:
                loop.call_at(at_s + self._chance.uniform(0.0, 5.0), arrive)
            return last_s
        at_s = max(at_s, last_s)
        loop.call_at(at_s, arrive)
        return at_s


class NodeLink:
    """A node's session: the `Link` its firmware wants."""

    def __init__(
        self,
        ether: Ether,
        time: VirtualTime,
        chance: random.Random,
        *,
        user: str,
        will: tuple[str, bytes],
        on_message: Callable[[str, bytes], None],
        on_up: Callable[[], None],
    ) -> None:
        self._ether, self._time, self._chance = ether, time, chance
        self.user, self.will, self.on_message = user, will, on_message
        self.subscribed: tuple[str, ...] = ()
        self.generation = 0
        """Rises with every connection: what was under way on an older one is lost."""
        self._on_up = on_up
        self._topics: tuple[str, ...] = ()
        self._is_up = False
        self._down = asyncio.Event()

    @property
    def is_up(self) -> bool:
        """Whether the node believes to be connected."""
        return self._is_up

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> bool:
        """Hand over a message; at either QoS it is lost with the connection."""
        del qos
        if not self._is_up:
            return False
        self._ether.up(self, topic, payload, retain=retain)
        return True

    def listen(self, topics: Mapping[str, int]) -> None:
        """From now on be subscribed to exactly these topics."""
        self._topics = tuple(topics)
        if self._is_up:
            self._subscribe()

    def cut(self, for_s: float) -> None:
        """Lose the connection at once and find no network for so long."""
        self._ether.break_way(self.user, for_s)
        self.note_down()

    def note_down(self) -> None:
        """The connection broke and the node noticed."""
        self._is_up = False
        self._down.set()

    def note_down_of(self, generation: int) -> None:
        """The same, if it is still that connection."""
        if generation == self.generation:
            self.note_down()

    async def run(self) -> None:
        """Keep the session alive until cancelled."""
        try:
            wait_s = FIRST_WAIT_S
            while True:
                await self._time.sleep(self._chance.uniform(0.05, 0.3))
                if self._ether.is_up and self._ether.way(self.user).is_open(self._time.monotonic()):
                    wait_s = FIRST_WAIT_S
                    self.generation += 1
                    self._ether.admit(self)
                    self._down.clear()
                    self._is_up = True
                    self._subscribe()
                    self._on_up()
                    await self._down.wait()
                    self.generation += 1
                await self._time.sleep(self._chance.uniform(wait_s / 2, wait_s))
                wait_s = min(LONGEST_WAIT_S, wait_s * 2)
        finally:
            self._is_up = False
            self.generation += 1
            self._ether.goodbye(self)

    def _subscribe(self) -> None:
        asyncio.get_running_loop().call_later(self._chance.uniform(*USUAL_S), self._ether.subscribe, self, self._topics)
