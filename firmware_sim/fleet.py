"""Many nodes in one process and one loop: no thread or child per node.

What is shared is in the `Kit`: true time, one HTTP connection pool, a few worker threads for disk and decoding, and
caches of pure functions of bytes every node has verified itself (decoded stretches of an asset by hash, decoded
batches by their chain, parsed plan bodies by hash). Each node has a session, clock, disk, stock, log, player and
recording of its own.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import httpx
import structlog

from firmware_sim.box import Kit
from firmware_sim.clock import DeviceClock, MachineTime, TrueTime
from firmware_sim.decoder import DecodeCache, SoundLibrary
from firmware_sim.enrol import BoxLabel, EnrolmentRefused, enrol, is_renewal_due, renewed
from firmware_sim.faults import TimedFault
from firmware_sim.firmware import FIRMWARE
from firmware_sim.link import Broker, MqttLink
from firmware_sim.node import SpeakerNode
from firmware_sim.output import Recorder
from firmware_sim.store import Disk, Identity
from firmware_sim.trust import PlanBodies
from speaker_protocol.rules import Decision

log = structlog.get_logger(__name__)

T = TypeVar("T")

CONNECTS_PER_S: Final = 60
"""How fast a fleet is switched on."""
ENROL_AT_ONCE: Final = 8
CERTIFICATES_EVERY_S: Final = 3_600.0
SWITCH_S: Final = 0.0005
DISK_THREADS: Final = 6
DOWNLOADS_AT_ONCE: Final = 24
QUOTA_BYTES: Final = 512 * 1024 * 1024


class ThreadOffload:
    """A few threads, however many nodes, for what would block the loop (mostly: waiting for a disk)."""

    def __init__(self, workers: int = DISK_THREADS) -> None:
        # A write is a dozen short system calls. After each the thread must get the interpreter back from a loop that is
        # busy with a thousand nodes, and would wait the usual 5 ms for it.
        sys.setswitchinterval(SWITCH_S)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="node-work")

    async def __call__(self, work: Callable[[], T]) -> T:
        """Its result."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Wait for what runs."""
        self._pool.shutdown()


class InlineOffload:
    """Work done in the loop: where the nodes' folders lie in memory, handing it over costs more than doing it."""

    async def __call__(self, work: Callable[[], T]) -> T:
        """Its result."""
        return work()

    def close(self) -> None:
        """Nothing runs."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A range a seed draws from."""

    low: float = 0.0
    high: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Spread:
        """`A:B` (or one figure). Raises `ValueError`."""
        low, _, high = text.partition(":")
        spread = cls(float(low), float(high or low))
        if spread.low > spread.high:
            raise ValueError(f"{text!r}: the lower end comes first")
        return spread

    def draw(self, chance: random.Random) -> float:
        """A value of it."""
        return chance.uniform(self.low, self.high)


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """What a fleet is made of."""

    server: str
    nodes: int
    identity_dir: Path
    token: str | None = None
    authority: Path | None = None
    """PEM of what the server's HTTPS certificate must be signed by; None: what the machine trusts."""
    labels: tuple[BoxLabel, ...] = ()
    """Boxes that enrol by their claim code; what is new beyond them takes the token."""
    record_dir: Path | None = None
    clock_offset_ms: Spread = Spread()
    drift_ppm: Spread = Spread()
    faults: tuple[TimedFault, ...] = ()
    seed: int | None = None
    listen: int | None = None
    """How many nodes decode and (with `record_dir`) record; the others verify and decide only. None: all."""
    decisions: Path | None = None
    """Where each change of what a node sounds, or would sound, is written, a line of JSON each."""
    quota_bytes: int = QUOTA_BYTES
    disk_threads: int = DISK_THREADS
    """Threads that wait for the nodes' disks; 0: none, their folders lie in memory."""


class DecisionLog:
    """What nodes decide, as lines of JSON: `node`, `at_ns` (true time), `kind`, `why`, `entry` (or `alert:{id}`)."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file.open("a", encoding="utf-8", buffering=1)

    def note(self, node_id: str, at_ns: int, decision: Decision) -> None:
        """From now on it sounds, or would sound, this."""
        entry = decision.entry_id if decision.alert_id is None else f"alert:{decision.alert_id}"
        line = {
            "node": node_id,
            "at_ns": at_ns,
            "kind": decision.kind.value,
            "why": decision.why.value,
            "entry": entry,
        }
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """No more."""
        self._file.close()


@dataclass(slots=True)
class Fleet:
    """The nodes of a process."""

    options: FleetOptions
    true: TrueTime = field(default_factory=MachineTime)
    nodes: list[SpeakerNode] = field(default_factory=list)
    failed: dict[str, BaseException] = field(default_factory=dict)

    async def run(self, stop: asyncio.Event, on_ready: Callable[[SpeakerNode], None] | None = None) -> None:
        """Enrol whoever is new, switch everybody on, play the faults, and end cleanly when `stop` is set.

        Raises `EnrolmentRefused`.
        """
        options = self.options
        offload = ThreadOffload(options.disk_threads) if options.disk_threads else InlineOffload()
        library = SoundLibrary(offload)
        limits = httpx.Limits(max_connections=DOWNLOADS_AT_ONCE, max_keepalive_connections=DOWNLOADS_AT_ONCE)
        timeout = httpx.Timeout(10.0, pool=None)
        trusted = ssl.create_default_context(cafile=options.authority)
        async with httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False, verify=trusted) as client:
            decisions = None if options.decisions is None else DecisionLog(options.decisions)
            kit = Kit(
                self.true,
                offload,
                client,
                asyncio.Semaphore(DOWNLOADS_AT_ONCE),
                library,
                DecodeCache(),
                PlanBodies(),
                decided=None if decisions is None else decisions.note,
            )
            try:
                identities = await self._identities(client)
                self.nodes.extend(self._box(index, identity, kit) for index, identity in enumerate(identities))
                keeping = asyncio.create_task(self._keep_certificates(client), name="fleet.certificates")
                try:
                    await self._power(stop, on_ready, options.faults)
                finally:
                    keeping.cancel()
                    await asyncio.gather(keeping, return_exceptions=True)
            finally:
                if decisions is not None:
                    decisions.close()
                library.close()
                offload.close()

    async def _identities(self, client: httpx.AsyncClient) -> list[Identity]:
        options = self.options
        options.identity_dir.mkdir(parents=True, exist_ok=True)
        found = [Identity.load(folder) for folder in sorted(options.identity_dir.iterdir()) if folder.is_dir()]
        identities = [identity for identity in found if identity is not None][: options.nodes]
        new = options.nodes - len(identities)
        authorities: list[str | BoxLabel] = [*options.labels[:new]]
        if options.token is not None:
            authorities += [options.token] * (new - len(authorities))
        if not authorities:
            return identities
        at_once = asyncio.Semaphore(ENROL_AT_ONCE)

        async def one(index: int, authority: str | BoxLabel) -> Identity:
            async with at_once:
                identity = await enrol(
                    options.server,
                    authority,
                    client=client,
                    true=self.true,
                    chance=self._chance("enrol", index),
                    firmware=FIRMWARE,
                )
                identity.save(options.identity_dir / identity.node_id)
                return identity

        identities += await _all_of(
            {
                f"node.enrol[{index}]": one(index, authority)
                for index, authority in enumerate(authorities, start=len(identities))
            }
        )
        return identities

    async def _keep_certificates(self, client: httpx.AsyncClient) -> None:
        """Let every node ask for another certificate when two thirds of its own are over, for ever."""
        chance = self._chance("certificates", 0)
        while True:
            await self.true.sleep(chance.uniform(0.5, 1.0) * CERTIFICATES_EVERY_S)
            for node in self.nodes:
                if is_renewal_due(node.identity, self.true.now_ns()):
                    await self.renew(node, client, chance)

    async def renew(self, node: SpeakerNode, client: httpx.AsyncClient, chance: random.Random) -> bool:
        """Another certificate for one node, kept and used from its next connect on; False if it was not given."""
        try:
            identity = await renewed(node.identity, client=client, true=self.true, chance=chance)
            identity.save(self.options.identity_dir / identity.node_id)
        except (EnrolmentRefused, OSError) as error:
            log.warning("certificate.not_renewed", node=node.node_id, error=str(error))
            return False
        node.identity = identity
        link = None if node.firmware is None else node.firmware.link
        if isinstance(link, MqttLink) and identity.certificate is not None:
            link.certify(ca_pem=identity.broker.ca_pem, certificate_pem=identity.certificate)
        return True

    def _chance(self, use: str, index: int) -> random.Random:
        seed = self.options.seed
        # Chance of a simulated node: reproducible with a seed, unguessable (its device key!) without.
        return random.Random(f"{seed}/{use}/{index}") if seed is not None else random.Random(secrets.token_bytes(32))  # noqa: S311

    def _box(self, index: int, identity: Identity, kit: Kit) -> SpeakerNode:
        options = self.options
        chance = self._chance("box", index)
        clock = DeviceClock(
            self.true,
            offset_ms=options.clock_offset_ms.draw(chance),
            drift_ppm=options.drift_ppm.draw(chance),
        )
        has_output = options.listen is None or index < options.listen
        recorder = None
        if options.record_dir is not None and has_output:
            recorder = Recorder(options.record_dir, identity.node_id, identity.cluster_id, self.true.now_ns())
        return SpeakerNode(
            identity,
            kit=kit,
            make_link=partial(mqtt_link, true=self.true, chance=chance),
            disk=Disk(options.identity_dir / identity.node_id, capacity_bytes=options.quota_bytes),
            chance=chance,
            clock=clock,
            recorder=recorder,
            has_output=has_output,
        )

    async def _power(
        self, stop: asyncio.Event, on_ready: Callable[[SpeakerNode], None] | None, faults: tuple[TimedFault, ...]
    ) -> None:
        lives: dict[asyncio.Task[None], SpeakerNode] = {}
        started_ns = self.true.now_ns()
        waiting: list[SpeakerNode] = []
        left = list(faults)
        stopping = asyncio.create_task(stop.wait(), name="fleet.stop")
        try:
            while not stopping.done():
                now_s = (self.true.now_ns() - started_ns) / 1e9
                for node in self.nodes[len(lives) : min(len(self.nodes), int(now_s * CONNECTS_PER_S) + 1)]:
                    lives[asyncio.create_task(node.run(), name=f"node[{node.node_id}]")] = node
                    waiting.append(node)
                while left and left[0].at_s <= now_s:
                    self._break(left.pop(0))
                for node in [node for node in waiting if node.is_ready]:
                    waiting.remove(node)
                    if on_ready is not None:
                        on_ready(node)
                for task in [task for task in lives if task.done() and lives[task].node_id not in self.failed]:
                    error = task.exception()
                    if error is not None:
                        self.failed[lives[task].node_id] = error
                        log.error("node.failed", node=lives[task].node_id, error=repr(error))
                await self.true.sleep(0.1)
        finally:
            stopping.cancel()
            for task in lives:
                task.cancel()
            await asyncio.gather(*lives, stopping, return_exceptions=True)

    def _break(self, fault: TimedFault) -> None:
        for index, node in enumerate(self.nodes):
            if fault.node in {"*", index, node.node_id}:
                node.faults.apply(fault.verb, fault.args)


def mqtt_link(
    identity: Identity,
    *,
    true: TrueTime,
    chance: random.Random,
    will: tuple[str, bytes],
    on_message: Callable[[str, bytes], None],
    on_up: Callable[[], None],
) -> MqttLink:
    """A session with the broker an identity names."""
    at = identity.broker
    return MqttLink(
        Broker(
            at.host,
            at.port,
            identity.username,
            identity.password,
            at.ca_pem,
            at.tls,
            certificate_pem=identity.certificate,
            key_pem=None if identity.certificate is None else identity.key_pem,
        ),
        client_id=identity.node_id,
        will=will,
        on_message=on_message,
        on_up=on_up,
        true=true,
        chance=chance,
    )


async def _all_of(work: Mapping[str, Awaitable[T]]) -> list[T]:
    """All results in order; the first failure cancels the rest and is raised as itself."""
    tasks = [asyncio.ensure_future(one) for one in work.values()]
    for task, name in zip(tasks, work, strict=True):
        if isinstance(task, asyncio.Task):
            task.set_name(name)
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
