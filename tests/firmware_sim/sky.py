"""Real nodes under a station in the sky, on virtual time: keys, plans, the time of day, and ways with a delay.

Everything a node does is its own firmware's (gate, discipline, player, sound card, log). The station's clock may be
wrong, every way has delays of its own, and a microphone with a perfect clock notes when a pulse leaves the horn.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from firmware_sim.box import Kit
from firmware_sim.clock import DeviceClock
from firmware_sim.decoder import DecodeCache
from firmware_sim.node import SpeakerNode
from firmware_sim.player import SAMPLE_RATE_HZ
from firmware_sim.store import ASSETS_FOLDER, Disk, Identity
from firmware_sim.trust import PlanBodies
from simulation.world.time import VirtualTime
from speaker_protocol import messages as wire
from speaker_protocol import topics
from speaker_protocol.rules import BulletinClass
from speaker_protocol.signing import Kind, parse
from tests.firmware_sim.station import ALL_DAY, HOUR_MS, PATH, Signer
from tests.firmware_sim.world import inline

Pcm = npt.NDArray[np.int16]
Delay = Callable[[], float]
"""Seconds a message needs on its way now."""

PULSE_EVERY = SAMPLE_RATE_HZ
PULSE_AT = SAMPLE_RATE_HZ // 2
NARROWEST, WIDER = 48, 8
"""Width in samples of the pulse of second 0, and by how much each next one is wider."""
LOWEST, HIGHER = 4_000, 1_500
"""Peak of recording 0, and by how much each next one is higher."""


def _pulse(number: int, second: int) -> Pcm:
    width = NARROWEST + WIDER * (second % 20)
    return np.rint((LOWEST + HIGHER * (number % 18)) * np.hanning(width + 1)).astype(np.int16)


class Pulses:
    """An asset's sound: a pulse in the middle of every second, whose height tells the asset and whose width the second.

    Widths repeat after 20 seconds, heights after 18 assets.
    """

    is_broken = False

    def __init__(self, seconds: int, number: int) -> None:
        self.length = seconds * SAMPLE_RATE_HZ
        self.content: bytes | None = None
        self._number = number
        self._pulses = [_pulse(number, second) for second in range(20)]

    def read(self, low: int, high: int) -> Pcm:
        pcm = np.zeros(max(0, high - low), np.int16)
        first = max(0, (low - PULSE_AT) // PULSE_EVERY - 1)
        for second in range(first, high // PULSE_EVERY + 1):
            pulse = self._pulses[second % 20]
            start = second * PULSE_EVERY + PULSE_AT - len(pulse) // 2
            begin, end = max(start, low), min(start + len(pulse), high, self.length)
            if end > begin >= 0:
                pcm[begin - low : end - low] = pulse[begin - start : end - start]
        return pcm

    def is_ready(self, low: int, high: int) -> bool:
        return high >= low

    async def prepare(self, low: int, high: int) -> None:
        del low, high

    def close(self) -> None:
        pass


class PulseLibrary:
    """In the place of a decoder."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[int, int]] = {}
        """By asset: its length and its number."""

        self._sounds: dict[str, Pulses] = {}

    def sound(self, sha256: str) -> Pulses:
        return self._sounds.setdefault(sha256, Pulses(*self.seconds[sha256]))

    def give(self, sha256: str, content: bytes) -> Pulses:
        sound = self.sound(sha256)
        sound.content = content
        return sound


@dataclass(frozen=True)
class Heard:
    """One pulse: the true instant of its middle, and which pulse it is."""

    at_ns: int
    number: int
    second: int


class Microphone:
    """In front of one horn, with a perfect clock."""

    def __init__(self) -> None:
        self.sample0_utc_ns = 0
        self._weight = self._moment = self._peak = 0.0
        self._base_ns = self._last_ns = 0
        self._pulses: list[Heard] = []

    def write(self, pcm: Pcm | None, samples: int, first_true_ns: float, rate: float) -> None:
        del samples
        if pcm is None:
            return
        loud = np.flatnonzero(pcm > 0)
        if not len(loud):
            return
        per_sample_ns = 1e9 / (SAMPLE_RATE_HZ * rate)
        # A block may hold the end of one pulse and the beginning of the next.
        for part in np.split(loud, np.flatnonzero(np.diff(loud) > SAMPLE_RATE_HZ // 100) + 1):
            begin_ns = round(first_true_ns + part[0] * per_sample_ns)
            if begin_ns - self._last_ns > 10_000_000:
                self._close()
                self._base_ns = begin_ns
            weights = pcm[part].astype(np.float64)
            at_ns = first_true_ns - self._base_ns + part * per_sample_ns
            self._weight += float(weights.sum())
            self._moment += float((weights * at_ns).sum())
            self._peak = max(self._peak, float(weights.max()))
            self._last_ns = round(first_true_ns + part[-1] * per_sample_ns)

    def _close(self) -> None:
        if self._weight:
            width = 2 * self._weight / self._peak  # the area of a Hann pulse is half its width
            number, second = (self._peak - LOWEST) / HIGHER, (width - NARROWEST) / WIDER
            at_ns = self._base_ns + round(self._moment / self._weight)
            self._pulses.append(Heard(at_ns, round(number), round(second)))
        self._weight = self._moment = self._peak = 0.0

    def pulses(self) -> tuple[Heard, ...]:
        self._close()
        return tuple(self._pulses)

    def close(self, until_true_ns: int) -> None:
        del until_true_ns


class SkyLink:
    """A node's session: a TCP connection keeps the order of what is on it."""

    def __init__(
        self,
        identity: Identity,
        *,
        sky: Sky,
        will: tuple[str, bytes],
        on_message: Callable[[str, bytes], None],
        on_up: Callable[[], None],
    ) -> None:
        del will
        self.node_id = identity.node_id
        self.is_up = False
        self.topics: dict[str, int] = {}
        self._sky, self._on_message, self._on_up = sky, on_message, on_up
        self._is_over = False
        self._next_up_s = self._next_down_s = 0.0

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> bool:
        del qos, retain
        if self.is_up and self._sky.is_open:
            delay_s = self._sky.ways[self.node_id].up()
            self._next_up_s = self._carry(self._next_up_s, delay_s, lambda: self._sky.take(self, topic, payload))
        return self.is_up

    def again(self) -> None:
        """The network is back: what is retained comes again."""
        self._retained(list(self.topics))
        self._on_up()

    def deliver(self, topic: str, payload: bytes) -> None:
        """From the broker down to the node."""
        if topic in self.topics and self._sky.is_open:
            delay_s = self._sky.ways[self.node_id].down()
            self._next_down_s = self._carry(self._next_down_s, delay_s, lambda: self._hear(topic, payload))

    def _hear(self, topic: str, payload: bytes) -> None:
        if not self._is_over:
            self._on_message(topic, payload)

    def _carry(self, after_s: float, delay_s: float, then: Callable[[], None]) -> float:
        loop = asyncio.get_running_loop()
        at_s = max(after_s, loop.time() + delay_s)
        loop.call_at(at_s, then)
        return at_s

    def listen(self, topics_wanted: Mapping[str, int]) -> None:
        new = [topic for topic in topics_wanted if topic not in self.topics]
        self.topics = dict(topics_wanted)
        if self.is_up:
            self._retained(new)

    def _retained(self, names: Sequence[str]) -> None:
        for topic in names:
            if topic in self._sky.retained:
                self.deliver(topic, self._sky.retained[topic])

    def cut(self, for_s: float) -> None:
        raise NotImplementedError(f"no cut of {for_s} s in the sky")

    async def run(self) -> None:
        try:
            await self._sky.time.sleep(0.2)
            self.is_up = True
            self._sky.links[self.node_id] = self
            self._retained(list(self.topics))
            self._on_up()
            await asyncio.Event().wait()
        finally:
            self.is_up, self._is_over = False, True


@dataclass
class Ways:
    """Delays of one node's two directions."""

    up: Delay = field(default=lambda: 0.02)
    down: Delay = field(default=lambda: 0.02)


class Sky:
    """The station, the broker and the ways."""

    def __init__(self, time: VirtualTime, folder: Path) -> None:
        self.time, self.folder = time, folder
        self.root, self.commune, self.server = Signer(), Signer(), Signer()
        self.clock_error_ns = 0
        """How much the station's clock is ahead of true time."""
        self.tells_time = True
        self.wrong_answers = 0
        """So many of the next answers are wrong, by `wrong_by_ns`."""
        self.wrong_by_ns = 0
        self.is_open = True
        self.retained: dict[str, bytes] = {}
        self.ways: dict[str, Ways] = {}
        self.links: dict[str, SkyLink] = {}
        self.reports: list[tuple[str, wire.ReportBody, bytes]] = []
        self.statuses: dict[str, wire.StatusBody] = {}
        self.nodes: dict[str, SpeakerNode] = {}
        self.microphones: dict[str, Microphone] = {}
        self.library = PulseLibrary()
        self._assets: dict[str, tuple[bytes, int]] = {}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._client = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(404)))
        self.kit = Kit(
            time,
            inline,
            self._client,
            asyncio.Semaphore(4),
            self.library,
            DecodeCache(),
            PlanBodies(),  # type: ignore[arg-type]
        )
        for unit, signer, may in (
            (PATH[0], self.commune, ("PLAN", "CONFIG", "ALERTS", "ORDER")),
            (PATH[1], self.server, ("ACK", "HEAD", "CONFIG")),
        ):
            body = wire.DelegationBody(
                public_key=signer.public.hex(),
                unit=unit,
                may=may,
                max_class=BulletinClass.EMERGENCY,
                valid_from_ms=0,
                valid_until_ms=1 << 52,
            )
            raw = self._seal(self.root, Kind.KEYS, unit, body, expires_ms=1 << 52)
            self._retain(topics.UnitKeys(unit), wire.join_keys((raw,)))

    @property
    def now_ns(self) -> int:
        """The station's clock."""
        return self.time.now_ns() + self.clock_error_ns

    @property
    def now_ms(self) -> int:
        return self.now_ns // 1_000_000

    def _seal(self, signer: Signer, kind: Kind, target: str, body: wire.Body, **changes: Any) -> bytes:
        life = {"issued_ms": self.now_ms, "expires_ms": self.now_ms + 7 * 24 * HOUR_MS, **changes}
        return signer.seal(kind, target, body, **life)

    def _retain(self, topic: topics.Topic, payload: bytes) -> None:
        self.retained[str(topic)] = payload
        for link in self.links.values():
            if link.is_up:
                link.deliver(str(topic), payload)

    # -- what it says

    def asset(self, name: str, seconds: int) -> str:
        """A recording of pulses that every node holds from the beginning."""
        content = name.encode()
        sha256 = hashlib.sha256(content).hexdigest()
        self._assets[sha256] = (content, seconds * 1000)
        self.library.seconds[sha256] = (seconds, len(self.library.seconds))
        return sha256

    def config(self, node_id: str, **facts: Any) -> None:
        body = wire.NodeConfigBody(
            path=PATH, cluster="c-" + node_id, assets_url="http://loa.mo-phong", **{**ALL_DAY, **facts}
        )
        self._retain(topics.NodeConfig(node_id), self._seal(self.commune, Kind.CONFIG, node_id, body))

    def plan(
        self, node_id: str, segments: Sequence[wire.PlanSegment], *, valid_ms: tuple[int, int] | None = None
    ) -> None:
        wanted = dict.fromkeys(segment.asset for segment in segments if segment.asset is not None)
        assets = tuple(
            wire.PlanAsset(sha256=sha, size_bytes=len(self._assets[sha][0]), duration_ms=self._assets[sha][1])
            for sha in wanted
        )
        packed = wire.pack_plan_body(wire.PlanBody(segments=tuple(segments), assets=assets))
        from_ms, until_ms = valid_ms or (self.now_ms - 60_000, self.now_ms + 7 * 24 * HOUR_MS)
        head = wire.plan_head(packed, valid_from_ms=from_ms, valid_until_ms=until_ms)
        sealed = self._seal(self.commune, Kind.PLAN, node_id, head, expires_ms=until_ms)
        self._retain(topics.NodePlan(node_id), wire.join_plan(sealed, packed))

    def alerts(self, alerts: Sequence[wire.AlertBody]) -> None:
        body = wire.AlertSetBody(alerts=tuple(alerts))
        self._retain(topics.UnitAlert(PATH[0]), self._seal(self.commune, Kind.ALERTS, PATH[0], body))

    # -- what it hears

    def take(self, link: SkyLink, topic: str, payload: bytes) -> None:
        named = topics.parse(topic)
        node_id = named.owner
        match named:
            case topics.NodeTime() if self.tells_time:
                asked = wire.decode(wire.TimeQuestionBody, payload)
                wrong_ns = self.wrong_by_ns if self.wrong_answers else 0
                self.wrong_answers = max(0, self.wrong_answers - 1)
                now_ns = max(0, self.now_ns + wrong_ns)
                answer = wire.TimeAnswerBody(
                    nonce=asked.nonce, asked_ns=asked.sent_ns, received_ns=now_ns, sent_ns=now_ns
                )
                if asked.resync:
                    floors = wire.FloorsBody(nonce=asked.nonce, floors=())
                    link.deliver(str(topics.NodeAck(node_id)), self._seal(self.server, Kind.ACK, node_id, floors))
                link.deliver(str(topics.NodeAck(node_id)), self._seal(self.server, Kind.ACK, node_id, answer))
            case topics.NodeReport():
                report = wire.decode(wire.ReportBody, parse(payload).body)
                self.reports.append((node_id, report, payload))
                ack = wire.ReportAckBody(boot_id=report.boot_id, sequences=(report.sequence,))
                link.deliver(str(topics.NodeAck(node_id)), self._seal(self.server, Kind.ACK, node_id, ack))
            case topics.NodeStatus() if payload:
                self.statuses[node_id] = wire.decode(wire.StatusBody, payload)
            case _:
                pass

    # -- nodes

    def node(
        self,
        node_id: str,
        *,
        chance: random.Random,
        clock: DeviceClock,
        ways: Ways | None = None,
        is_on: bool = True,
        **kinds: Any,
    ) -> SpeakerNode:
        """A node that holds every asset named so far; its configuration lies with the broker."""
        identity = Identity.model_validate(
            {
                "private_key": chance.randbytes(32).hex(),
                "node_id": node_id,
                "cluster_id": "c-" + node_id,
                "broker": {"host": "127.0.0.1", "port": 1},
                "username": node_id,
                "password": "secret",
                "root_public_key": self.root.public.hex(),
                "path": list(PATH),
                "assets_url": "http://loa.mo-phong",
                "asset_token": "asset-token",
            }
        )
        self.ways[node_id] = ways or Ways()
        disk = Disk(self.folder / node_id)
        for sha256, (content, _) in self._assets.items():
            (disk.root / ASSETS_FOLDER / f"{sha256}.opus").write_bytes(content)
        self.config(node_id)
        microphone = self.microphones[node_id] = Microphone()
        node = self.nodes[node_id] = SpeakerNode(
            identity,
            kit=self.kit,
            make_link=partial(SkyLink, sky=self),
            disk=disk,
            chance=chance,
            clock=clock,
            recorder=microphone,  # type: ignore[arg-type]
            **kinds,
        )
        if is_on:
            self.switch_on(node_id)
        return node

    def switch_on(self, node_id: str) -> None:
        self._lives[node_id] = asyncio.create_task(self.nodes[node_id].run(), name=f"test.node[{node_id}]")

    async def switch_off(self, node_id: str) -> None:
        life = self._lives.pop(node_id)
        life.cancel()
        result = (await asyncio.gather(life, return_exceptions=True))[0]
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result

    async def close(self) -> None:
        for node_id in list(self._lives):
            await self.switch_off(node_id)
        await self._client.aclose()
