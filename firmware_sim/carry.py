"""A node without any network takes in what was carried to it, and gives out what it has to tell.

The same `Gate` as over the network judges every message, with the same watermarks, and remembers before anything is
acted upon; a sound is taken for its hash alone. A node without memory takes the file that is carried to it for its
floors: nobody can ask the server for it there, and whoever stands at the pole with a stick could do worse.

A carried file cannot set the clock: it only says, by what is signed
in it, that the time is not earlier. If the node's own clock chip agrees (not before that, at most 60 days after), it
is used as a holdover with its uncertainty stated; otherwise instants are not judged here, and the node stays silent
until it learns the time.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from firmware_sim.assets import FetchFailed, held, put
from firmware_sim.clock import MS, Discipline, Remembered
from firmware_sim.reports import DeviceLog
from firmware_sim.store import Disk, Identity, Memory, Slots
from firmware_sim.trust import Gate, PlanBodies
from speaker_protocol import messages as wire
from speaker_protocol.carry import Carried, CarriedKind, Message, NotCarried, write
from speaker_protocol.signing import CLOCK_TOLERANCE_MS, parse
from speaker_protocol.topics import NodeAck, NodeConfig, NodePlan, NodeReport, UnitAlert, UnitKeys

T = TypeVar("T")

CHIP_UNCERTAINTY_MS: Final = 10_000.0
"""How wrong a clock chip that was set by hand may be."""
CHIP_AHEAD_MS: Final = 60 * 86_400_000
BUILT_MS: Final = 1_764_547_200_000
"""No clock is believed that shows an earlier time: 2025-12-01."""


@dataclass(slots=True)
class TakenIn:
    """What became of one carried file on one node. Refusals and lacks by name and reason."""

    node_id: str
    is_clock_known: bool = False
    accepted: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    assets: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    acknowledged: int = 0


def take_in(identity: Identity, disk: Disk, carried: Carried, *, device_ns: int) -> TakenIn:
    """Judge and keep what is for this node; it acts on it at its next power-on. Raises `OSError`, `NotCarried`."""
    slots = Slots(disk)
    memory = Memory.load(slots.load())
    own_ack = str(NodeAck(identity.node_id))
    told = carried.messages()
    messages = {topic: raw for topic, raw in told if topic != own_ack}
    reading = _Reading(identity, memory)
    now_ms = _believed_ms(identity, memory, messages, device_ns)
    reading.take(messages, now_ms)
    memory.watermarks = reading.gate.snapshot()
    memory.statements, memory.path = list(reading.gate.statements()), reading.gate.path
    memory.messages |= {topic: raw for topic, raw in reading.kept.items() if not topic.endswith(f"/{UnitKeys.leaf}")}
    memory.is_synced = memory.is_synced or bool(reading.kept)
    slots.save(memory.dump())
    taken = reading.taken
    taken.is_clock_known = now_ms is not None
    _take_sounds(disk, carried, reading.wanted, taken)
    _forget_told(disk, reading, [raw for topic, raw in told if topic == own_ack], memory)
    return taken


class _Reading:
    """The node's gate as it stood when it was last on, and what it lets pass of a carried file."""

    def __init__(self, identity: Identity, memory: Memory) -> None:
        self.node_id = identity.node_id
        self.gate = Gate(
            node_id=identity.node_id,
            root_public=bytes.fromhex(identity.root_public_key),
            path=identity.path,
            watermarks=memory.watermarks,
            bodies=PlanBodies(),
        )
        self.taken = TakenIn(identity.node_id)
        self.gate.recall(memory.statements, memory.path or identity.path)
        self.kept: dict[str, bytes] = {}
        self.wanted: dict[str, int | None] = {}
        """Sounds that what was accepted needs, with their sizes where they are told."""
        self.take(dict(memory.messages), None)
        self.taken, self.kept, self.wanted = TakenIn(identity.node_id), {}, {}

    def take(self, messages: Mapping[str, bytes], now_ms: int | None) -> None:
        """Keys first: they judge the rest; the configuration says which places are above the node."""
        known = self.gate.path
        self._keys(messages, known, now_ms)
        self._one(messages, str(NodeConfig(self.node_id)), lambda raw: self._config(raw, now_ms))
        self._keys(messages, tuple(unit for unit in self.gate.path if unit not in known), now_ms)
        for unit in self.gate.path:
            self._one(messages, str(UnitAlert(unit)), partial(self._alerts, unit, now_ms))
        self._one(messages, str(NodePlan(self.node_id)), lambda raw: self._plan(raw, now_ms))

    def _keys(self, messages: Mapping[str, bytes], units: Sequence[str], now_ms: int | None) -> None:
        for unit in units:
            self._one(messages, str(UnitKeys(unit)), partial(self._learn, unit, now_ms))

    def _learn(self, unit: str, now_ms: int | None, raw: bytes) -> bool:
        before = self.gate.refusals.total()
        return self.gate.keys(unit, raw, now_ms) or self.gate.refusals.total() == before

    def _config(self, raw: bytes, now_ms: int | None) -> bool:
        config = self.gate.config(raw, now_ms)
        if config is not None:
            self.gate.path = config.path or self.gate.path
        return config is not None

    def _alerts(self, unit: str, now_ms: int | None, raw: bytes) -> bool:
        alerts = self.gate.alerts(unit, raw, now_ms)
        if alerts is None:
            return False
        self.wanted |= {alert.asset: alert.asset_bytes for alert in alerts.body.alerts if alert.asset is not None}
        return True

    def _plan(self, raw: bytes, now_ms: int | None) -> bool:
        plan = self.gate.plan(raw, now_ms)
        if plan is None:
            return False
        self.wanted |= {asset.sha256: asset.size_bytes for asset in plan.assets}
        return True

    def _one(self, messages: Mapping[str, bytes], topic: str, take: Callable[[bytes], bool]) -> None:
        raw = messages.get(topic)
        if raw is None:
            return
        before = Counter(self.gate.refusals)
        if take(raw):
            self.kept[topic] = raw
            self.taken.accepted.append(topic)
        reasons = self.gate.refusals - before
        self.taken.refused += [(topic, reason) for reason in reasons]


def _believed_ms(identity: Identity, memory: Memory, messages: Mapping[str, bytes], device_ns: int) -> int | None:
    """Server time as the node may believe it; None while it must not judge instants."""
    clock = Discipline()
    if memory.clock is not None and clock.recall(memory.clock, device_ns):
        return clock.server_ns(device_ns) // MS
    # Nobody ever told this node the time. What is signed says that it is not earlier than this.
    blind = _Reading(identity, memory)
    blind.take(messages, None)
    floor_ms = max((_issued_ms(topic, raw) for topic, raw in blind.kept.items()), default=0)
    chip_ms = device_ns // MS
    is_plausible = max(BUILT_MS, floor_ms - CLOCK_TOLERANCE_MS) <= chip_ms <= floor_ms + CHIP_AHEAD_MS
    if not floor_ms or not is_plausible or memory.clock is not None:
        return None
    memory.clock = Remembered(device_ns, 0, 0.0, CHIP_UNCERTAINTY_MS)
    return chip_ms


def _issued_ms(topic: str, raw: bytes) -> int:
    """When a message that was believed was signed."""
    if topic.endswith(f"/{UnitKeys.leaf}"):
        return max((parse(envelope).issued_ms for envelope in wire.split_keys(raw)), default=0)
    return parse(wire.split_plan(raw)[0] if topic.endswith(f"/{NodePlan.leaf}") else raw).issued_ms


def _take_sounds(disk: Disk, carried: Carried, wanted: Mapping[str, int | None], taken: TakenIn) -> None:
    here = held(disk)
    for sha256 in wanted:
        if sha256 in here:
            continue
        content = carried.asset(sha256)
        if content is None:
            taken.missing.append(sha256)
            continue
        try:
            put(disk, sha256, content, held_bytes=sum(here.values()))
        except FetchFailed as refused:
            taken.refused.append((f"assets/{sha256}", str(refused)))
            continue
        here[sha256] = len(content)
        taken.assets.append(sha256)


def _forget_told(disk: Disk, reading: _Reading, acks: Sequence[bytes], memory: Memory) -> None:
    """The server has these reports: they need not be carried again."""
    before = Counter(reading.gate.refusals)
    answers = [reading.gate.ack(raw) for raw in acks]
    topic = str(NodeAck(reading.node_id))
    reading.taken.refused += [(topic, reason) for reason in reading.gate.refusals - before]
    log = _log(disk)
    log.load(memory.log_head)
    for answer in answers:
        if isinstance(answer, wire.ReportAckBody):
            log.acknowledge(answer.boot_id, answer.sequences)
    reading.taken.acknowledged = log.acknowledged
    if log.acknowledged:
        asyncio.run(log.store())


async def _inline(work: Callable[[], T]) -> T:
    return work()


def _log(disk: Disk) -> DeviceLog:
    return DeviceLog(disk, _inline, random.Random(0))  # noqa: S311  nothing is sent, so nothing is drawn


def give_out(nodes: Sequence[tuple[Identity, Disk]], target: Path, *, made_ms: int) -> dict[str, int]:
    """Write what these nodes have to tell into a file; how many lines each. Raises `OSError`."""
    messages: list[Message] = []
    counts: dict[str, int] = {}
    for identity, disk in nodes:
        log = _log(disk)
        log.load()
        envelopes = log.envelopes()
        messages += [(str(NodeReport(identity.node_id)), envelope) for envelope in envelopes]
        counts[identity.node_id] = len(envelopes)
    with target.open("xb") as file:
        write(file, CarriedKind.REPORTS, messages, subject=", ".join(sorted(counts)), made_ms=made_ms)
    return counts


def nodes_in(folder: Path, *, quota_bytes: int) -> list[tuple[Identity, Disk]]:
    """The nodes whose folders lie in `folder` (or the one that is it), by id."""
    found = []
    for place in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
        identity = Identity.load(place)
        if identity is not None:
            found.append((identity, Disk(place, capacity_bytes=quota_bytes)))
    return found


__all__ = ["NotCarried", "TakenIn", "give_out", "nodes_in", "take_in"]
