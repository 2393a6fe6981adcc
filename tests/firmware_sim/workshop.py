"""A node on virtual time: its own disk and a real output, and an office in the same loop that speaks the real wire.

A story is a coroutine given to `on_virtual_time`: nothing waits, a day costs what its events cost.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from firmware_sim.box import Kit
from firmware_sim.clock import DeviceClock
from firmware_sim.decoder import DecodeCache, SoundLibrary
from firmware_sim.ear import heard
from firmware_sim.node import SpeakerNode
from firmware_sim.output import Recorder
from firmware_sim.store import Disk, Identity
from firmware_sim.trust import PlanBodies
from simulation.world.time import VirtualTime, run
from speaker_protocol import messages as wire
from speaker_protocol import topics
from speaker_protocol.rules import BulletinClass
from speaker_protocol.signing import Kind, parse
from tests.firmware_sim.station import PATH, Signer, segment
from tests.firmware_sim.tones import ogg_opus, tone
from tests.firmware_sim.world import inline

T = TypeVar("T")

START = datetime(2026, 6, 1, 1, 0, 0, tzinfo=UTC)
"""08:00 by the village's clock."""
NODE = "node-0001"
HOUR_MS = 3_600_000


def on_virtual_time(story: Callable[[VirtualTime], Awaitable[T]], *, start: datetime = START) -> T:
    """What the story returns."""

    async def told() -> T:
        return await story(VirtualTime(start))

    return run(told())


class Office:
    """The server side, in the node's loop. `reports`: envelopes by their digest, in order of arrival."""

    def __init__(self, time: VirtualTime, seed: int = 1) -> None:
        chance = random.Random(seed)
        self.time = time
        self.root, self.commune, self.server = (
            Signer(Ed25519PrivateKey.from_private_bytes(chance.randbytes(32))) for _ in range(3)
        )
        self.retained: dict[str, bytes] = {}
        self.assets: dict[str, bytes] = {}
        self.durations: dict[str, int] = {}
        self.asked: list[str] = []
        self.reports: dict[str, bytes] = {}
        self.status: wire.StatusBody | None = None
        self.due: list[tuple[wire.ItemReadiness, ...]] = []
        self.is_reachable = True
        self.acknowledges = True
        self.tells_floors = True
        self.piece_bytes = 4_096
        self.per_piece_s = 0.0
        self.links: list[OfficeLink] = []

    # -- what it says

    def seal(self, signer: Signer, kind: Kind, target: str, body: wire.Body, **changes: Any) -> bytes:
        now_ms = self.time.now_ms()
        facts = {"issued_ms": now_ms, "expires_ms": now_ms + 30 * 24 * HOUR_MS, **changes}
        return signer.seal(kind, target, body, **facts)

    def tell(self, topic: topics.Topic, payload: bytes) -> None:
        """Retain it, and tell whoever listens."""
        self.retained[str(topic)] = payload
        for link in self.links:
            link.arrives(str(topic), payload)

    def keys(self) -> None:
        now_ms = self.time.now_ms()
        for signer, unit, may in (
            (self.commune, PATH[0], ("PLAN", "CONFIG", "ALERTS", "ORDER")),
            (self.server, PATH[1], ("ACK", "HEAD", "CONFIG")),
        ):
            body = wire.DelegationBody(
                public_key=signer.public.hex(),
                unit=unit,
                may=may,
                max_class=BulletinClass.EMERGENCY,
                valid_from_ms=now_ms - HOUR_MS,
                valid_until_ms=now_ms + 1000 * HOUR_MS,
            )
            self.tell(topics.UnitKeys(unit), wire.join_keys((self.seal(self.root, Kind.KEYS, unit, body),)))

    def config(self, **facts: Any) -> None:
        told = {"quiet_from_min": 0, "quiet_to_min": 0, **facts}
        body = wire.NodeConfigBody(path=PATH, cluster="c1", assets_url="http://office/assets", **told)
        self.tell(topics.NodeConfig(NODE), self.seal(self.commune, Kind.CONFIG, NODE, body))

    def plan(self, *segments: wire.PlanSegment, days: float = 7) -> None:
        wanted = dict.fromkeys(segment.asset for segment in segments if segment.asset is not None)
        assets = tuple(
            wire.PlanAsset(sha256=sha, size_bytes=len(self.assets[sha]), duration_ms=self.durations[sha])
            for sha in wanted
        )
        packed = wire.pack_plan_body(wire.PlanBody(segments=segments, assets=assets))
        now_ms = self.time.now_ms()
        until_ms = now_ms + round(days * 24 * HOUR_MS)
        head = wire.plan_head(packed, valid_from_ms=now_ms - 60_000, valid_until_ms=until_ms)
        self.tell(topics.NodePlan(NODE), wire.join_plan(self.seal(self.commune, Kind.PLAN, NODE, head), packed))

    def alert(self, *alerts: wire.AlertBody, stop_all: bool = False) -> None:
        latch = wire.StopAllLatch(latch_id="latch", since_ms=self.time.now_ms()) if stop_all else None
        body = wire.AlertSetBody(alerts=alerts, stop_all=latch)
        self.tell(topics.UnitAlert(PATH[0]), self.seal(self.commune, Kind.ALERTS, PATH[0], body))

    def asset(self, pair: tuple[int, int], seconds: float) -> str:
        """A recorded programme; its hash."""
        content = ogg_opus(tone(pair, seconds))
        sha = hashlib.sha256(content).hexdigest()
        self.assets[sha] = content
        self.durations[sha] = round(seconds * 1000)
        return sha

    # -- what it hears

    def hears(self, link: OfficeLink, topic: str, payload: bytes) -> None:
        match topics.parse(topic):
            case topics.NodeTime():
                asked = wire.decode(wire.TimeQuestionBody, payload)
                now_ns = self.time.now_ns()
                answer = wire.TimeAnswerBody(
                    nonce=asked.nonce, asked_ns=asked.sent_ns, received_ns=now_ns, sent_ns=now_ns
                )
                if asked.resync and self.tells_floors:
                    link.arrives(str(topics.NodeAck(NODE)), self.seal(self.server, Kind.ACK, NODE, self.floors(asked)))
                link.arrives(str(topics.NodeAck(NODE)), self.seal(self.server, Kind.ACK, NODE, answer))
            case topics.NodeReport():
                self.keeps(payload)
                body = report_of(payload)
                if self.acknowledges:
                    ack = wire.ReportAckBody(boot_id=body.boot_id, sequences=(body.sequence,))
                    link.arrives(str(topics.NodeAck(NODE)), self.seal(self.server, Kind.ACK, NODE, ack))
            case topics.NodeStatus() if payload:
                self.status = wire.decode(wire.StatusBody, payload)
                if self.status.due is not None:
                    self.due.append(self.status.due)
            case _:
                pass

    def floors(self, asked: wire.TimeQuestionBody) -> wire.FloorsBody:
        """Nothing older than what is retained now."""
        told = tuple(
            wire.Floor(topic=topic, epoch=order[0], sequence=order[1])
            for topic, raw in self.retained.items()
            if not topic.endswith("/keys")
            for order in [parse(wire.split_plan(raw)[0] if topic.endswith("/plan") else raw).order]
        )
        return wire.FloorsBody(nonce=asked.nonce, floors=told)

    def keeps(self, envelope: bytes) -> None:
        self.reports[hashlib.sha256(envelope).hexdigest()] = envelope

    def told(self) -> list[wire.ReportBody]:
        """What was reported, each once."""
        return [report_of(raw) for raw in self.reports.values()]

    async def serve(self, request: httpx.Request) -> httpx.Response:
        sha = request.url.path.rpartition("/")[2]
        self.asked.append(sha)
        content = self.assets.get(sha)
        if not self.is_reachable or content is None:
            return httpx.Response(404)
        first = 0
        if request.headers.get("if-range") == f'"{sha}"':
            first = int(request.headers["range"].removeprefix("bytes=").rstrip("-"))

        async def pieces() -> Any:
            for at in range(first, len(content), self.piece_bytes):
                if self.per_piece_s:
                    await self.time.sleep(self.per_piece_s)
                yield content[at : at + self.piece_bytes]

        return httpx.Response(206 if first else 200, content=pieces())


def report_of(envelope: bytes) -> wire.ReportBody:
    return wire.decode(wire.ReportBody, parse(envelope).body)


class OfficeLink:
    """A session without a network between; while the office cannot be reached nothing passes."""

    def __init__(self, office: Office, on_message: Callable[[str, bytes], None], on_up: Callable[[], None]) -> None:
        self._office, self._on_message, self._on_up = office, on_message, on_up
        self._topics: tuple[str, ...] = ()
        self._cut_until_s = 0.0
        self._was_up = False

    @property
    def is_up(self) -> bool:
        return (
            self in self._office.links
            and self._office.is_reachable
            and self._office.time.monotonic() >= self._cut_until_s
        )

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> bool:
        del qos, retain
        if not self.is_up:
            return False
        asyncio.get_running_loop().call_soon(self._office.hears, self, topic, payload)
        return True

    def listen(self, topics: Mapping[str, int]) -> None:
        new = [topic for topic in topics if topic not in self._topics]
        self._topics = tuple(topics)
        self._deliver(new)

    def _deliver(self, topics: Sequence[str]) -> None:
        for topic in topics:
            if topic in self._office.retained:
                self.arrives(topic, self._office.retained[topic])

    def arrives(self, topic: str, payload: bytes) -> None:
        if self.is_up and topic in self._topics:
            asyncio.get_running_loop().call_soon(self._on_message, topic, payload)

    def cut(self, for_s: float) -> None:
        self._cut_until_s = self._office.time.monotonic() + for_s

    async def run(self) -> None:
        self._office.links.append(self)
        try:
            while True:
                if self.is_up and not self._was_up:
                    self._on_up()
                    self._deliver(self._topics)
                self._was_up = self.is_up
                await self._office.time.sleep(0.2)
        finally:
            self._office.links.remove(self)


class Workshop:
    """One node on the bench."""

    def __init__(
        self,
        time: VirtualTime,
        folder: Path,
        *,
        office: Office | None = None,
        seed: int = 1,
        quota_bytes: int = 10**8,
        records: bool = True,
        library: SoundLibrary | None = None,
        identity: Identity | None = None,
    ) -> None:
        self.time, self.folder = time, folder
        self.office = office or Office(time)
        chance = random.Random(f"{seed}/{time.now_ns()}")
        key = random.Random("device").randbytes(32)
        identity = identity or Identity(
            private_key=key.hex(),
            node_id=NODE,
            cluster_id="c1",
            broker={"host": "office", "port": 1},  # type: ignore[arg-type]
            username=NODE,
            password="x",
            root_public_key=self.office.root.public.hex(),
            path=PATH,
            assets_url="http://office/assets",
            asset_token="t",
        )
        client = httpx.AsyncClient(transport=httpx.MockTransport(self.office.serve))
        kit = Kit(
            time, inline, client, asyncio.Semaphore(4), library or SoundLibrary(inline), DecodeCache(), PlanBodies()
        )
        room = folder / f"rec-{time.now_ns()}"
        self.recording = room / f"{NODE}.wav"
        self.recorder = Recorder(room, NODE, "c1", time.now_ns()) if records else None
        self.disk = Disk(folder / identity.node_id, capacity_bytes=quota_bytes)
        self.node = SpeakerNode(
            identity,
            kit=kit,
            make_link=self._link,
            disk=self.disk,
            chance=chance,
            clock=DeviceClock(time),
            recorder=self.recorder,
        )
        self._life = asyncio.create_task(self.node.run(), name="test.node")

    def _link(
        self,
        identity: Identity,
        *,
        will: tuple[str, bytes],
        on_message: Callable[[str, bytes], None],
        on_up: Callable[[], None],
    ) -> OfficeLink:
        del identity, will
        return OfficeLink(self.office, on_message, on_up)

    async def pass_s(self, seconds: float) -> None:
        """Let time pass; raise what the node died of."""
        await self.time.sleep(seconds)
        if self._life.done():
            self._life.result()

    async def settle(self) -> None:
        """Past the first exchange of everything."""
        await self.pass_s(5)

    async def stop(self) -> None:
        """An orderly end."""
        self._life.cancel()
        await asyncio.gather(self._life, return_exceptions=True)

    async def sounded(self, since_ms: int) -> list[tuple[tuple[int, int], float, float]]:
        """(pair, start, end) in seconds since an instant, of all that left the horn; ends the node."""
        await self.stop()
        assert self.recorder is not None
        return heard_in(self.recording, self.recorder.sample0_utc_ns, since_ms)

    @property
    def faults(self) -> set[str]:
        """What the node says is wrong with it."""
        return {fault.value for fault in self.node.state.machine.faults}

    @property
    def now_ms(self) -> int:
        return self.time.now_ms()


def heard_in(wav: Path, sample0_ns: int, since_ms: int) -> list[tuple[tuple[int, int], float, float]]:
    """(pair, start, end) in seconds since an instant, of a recording that may lack its end."""
    raw = wav.read_bytes()[44:]
    pcm = np.frombuffer(raw[: len(raw) // 2 * 2], "<i2").astype(np.int16)
    found = heard(pcm, sample0_ns)
    return [(one.pair, one.start_ns / 1e9 - since_ms / 1000, one.end_ns / 1e9 - since_ms / 1000) for one in found]


__all__ = ["NODE", "START", "Office", "Workshop", "heard_in", "on_virtual_time", "report_of", "segment"]
