"""A world for one node: true time that a test moves by hand, and a village of real nodes around a real station."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import pytest

from broadcast_server.mqtt.broker import find_mosquitto
from firmware_sim.box import Kit
from firmware_sim.clock import DeviceClock, MachineTime
from firmware_sim.decoder import DecodeCache, SoundLibrary
from firmware_sim.fleet import ThreadOffload, mqtt_link
from firmware_sim.node import SpeakerNode
from firmware_sim.output import Recorder
from firmware_sim.store import Disk, Identity
from firmware_sim.trust import PlanBodies
from tests.firmware_sim.station import Station

T = TypeVar("T")

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

START_NS = 1_790_000_000_000_000_000
SECRET = "11" * 32


class HandTime:
    """True time that stands still until a test moves it."""

    def __init__(self, now_ns: int = START_NS) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        return self._now_ns

    async def sleep(self, seconds: float) -> None:
        self.pass_s(seconds)

    def ring(self, seconds: float, bell: Callable[[], None]) -> Callable[[], None]:
        self.pass_s(seconds)
        bell()
        return lambda: None

    def pass_s(self, seconds: float) -> None:
        self._now_ns += round(seconds * 1e9)


async def inline(work: Callable[[], T]) -> T:
    return work()


class Village:
    """Real nodes in the test's own loop."""

    def __init__(self, station: Station, folder: Path) -> None:
        self.station, self.folder = station, folder
        self.true = MachineTime()
        self._offload = ThreadOffload()
        self._client = httpx.AsyncClient(trust_env=False, timeout=5.0)
        library = SoundLibrary(self._offload)
        self.kit = Kit(
            self.true, self._offload, self._client, asyncio.Semaphore(4), library, DecodeCache(), PlanBodies()
        )
        self._lives: dict[str, asyncio.Task[None]] = {}
        self.nodes: dict[str, SpeakerNode] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in list(self._lives):
            await self.switch_off(node)
        self.kit.library.close()
        await self._client.aclose()
        self._offload.close()

    def node(self, *, seed: int = 1, offset_ms: float = 0.0, drift_ppm: float = 0.0, **kinds: Any) -> SpeakerNode:
        """A new node, switched on."""
        chance = random.Random(seed)
        key = chance.randbytes(32)
        public = _public(key)
        identity = Identity.model_validate({**self.station.enrolment(public), "private_key": key.hex()})
        self.station.config(identity.node_id)
        recorder = None
        if kinds.get("has_output", True):
            recorder = Recorder(self.folder / "rec", identity.node_id, identity.cluster_id, self.true.now_ns())
        node = SpeakerNode(
            identity,
            kit=self.kit,
            make_link=partial(mqtt_link, true=self.true, chance=chance),
            disk=Disk(self.folder / identity.node_id),
            chance=chance,
            clock=DeviceClock(self.true, offset_ms=offset_ms, drift_ppm=drift_ppm),
            recorder=recorder,
            **kinds,
        )
        self.switch_on(node)
        return node

    def switch_on(self, node: SpeakerNode) -> None:
        self.nodes[node.node_id] = node
        self._lives[node.node_id] = asyncio.create_task(node.run(), name=f"test.node[{node.node_id}]")

    async def switch_off(self, node_id: str) -> None:
        life = self._lives.pop(node_id)
        life.cancel()
        result = (await asyncio.gather(life, return_exceptions=True))[0]
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


def _public(secret: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
