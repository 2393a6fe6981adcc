"""A real node under siege: its office speaks the real wire, and between its words comes whatever an attacker sends.

Each message is given to the node as its session would give it, one at a time on virtual time, and the node is let act
on it. `Siege.stance` is all that an obeyed message changes; `Siege.heard` is what left the horn, by name.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from firmware_sim.box import Kit
from firmware_sim.clock import DeviceClock
from firmware_sim.decoder import DecodeCache, SoundLibrary
from firmware_sim.firmware import Firmware
from firmware_sim.node import SpeakerNode
from firmware_sim.output import Played
from firmware_sim.player import Sounding
from firmware_sim.store import Disk, Identity
from firmware_sim.trust import PlanBodies
from simulation.world.time import VirtualTime
from speaker_protocol import frames, topics
from speaker_protocol import messages as wire
from speaker_protocol.rules import BulletinClass
from speaker_protocol.signing import SIGNATURE_BYTES, Kind, key_id_of, parse, seal
from tests.firmware_sim.station import PATH, Signer, segment
from tests.firmware_sim.workshop import HOUR_MS, NODE, Office, OfficeLink
from tests.firmware_sim.world import inline

STREAM = "relay-1"
OTHER_STREAM = "relay-2"
OTHER_NODE = "node-0002"
OTHER_UNIT = "xa-2"
EVIL = "evil"
GOOD = "good"
LEASE_MS = 10_000
BATCH_PACKETS = 50
UNIT_MAY = ("PLAN", "CONFIG", "ALERTS", "ORDER")
SERVER_MAY = ("ACK", "HEAD", "CONFIG")


@dataclass(frozen=True)
class Letter:
    """A message that would be obeyed as it is; whoever attacks spoils one thing of it."""

    topic: str
    signer: Signer
    kind: Kind
    target: str
    body: bytes
    issued_ms: int
    expires_ms: int
    epoch: int
    sequence: int
    packed: bytes | None = None
    """What follows the envelope of a plan."""

    def sealed(self, *, signed_by: Signer | None = None, named: Signer | None = None) -> bytes:
        """The envelope. `signed_by`: whose signature; `named`: whose name it bears."""
        return seal(
            (signed_by or self.signer).key,
            key_id_of((named or signed_by or self.signer).public),
            kind=self.kind,
            target=self.target,
            issued_ms=self.issued_ms,
            expires_ms=self.expires_ms,
            epoch=self.epoch,
            sequence=self.sequence,
            body=self.body,
        )

    def wrapped(self, envelope: bytes) -> bytes:
        """As its topic carries it."""
        if self.kind is Kind.KEYS:
            return wire.join_keys((envelope,))
        return envelope if self.packed is None else wire.join_plan(envelope, self.packed)

    @property
    def payload(self) -> bytes:
        return self.wrapped(self.sealed())

    def but(self, **changes: Any) -> Letter:
        return replace(self, **changes)


def resigned(envelope: bytes, key: Ed25519PrivateKey, separation: bytes) -> bytes:
    """An envelope whose bytes were changed, signed again over whatever `separation` says."""
    signed = envelope[:-SIGNATURE_BYTES]
    return signed + key.sign(separation + signed)


def separation(kind: Kind) -> bytes:
    """As `signing` separates the kinds; written down again here, so that a change of it is noticed."""
    return b"loa/1 " + kind.name.encode() + b"\0"


@dataclass
class Ear:
    """In front of the horn: what was heard, by entry, in seconds."""

    heard: Counter[str] = field(default_factory=Counter)
    why: Counter[str] = field(default_factory=Counter)
    obeyed_topics: Counter[str] = field(default_factory=Counter)

    def sounded(self, piece: Played) -> None:
        chunk = piece.chunk
        if chunk.kind is Sounding.SOUND and piece.is_heard and chunk.tag is not None:
            self.heard[chunk.tag.entry_id] += chunk.samples
        elif chunk.tag is not None:
            self.why[f"{chunk.tag.entry_id.partition('-')[0]} {chunk.why.value}"] += 1

    def obeyed(self, topic: str, raw: bytes) -> None:
        del raw
        self.obeyed_topics[topic] += 1


class Siege(Office):
    """The office, the node, and the attacker's pen."""

    def __init__(self, time: VirtualTime, folder: Path, *, seed: int = 1, has_samples: bool = False) -> None:
        """`has_samples`: a real output that decodes and renders, instead of one that is heard by name."""
        super().__init__(time, seed)
        self._has_samples = has_samples
        self.folder = folder
        self.dice = random.Random(f"{seed}/siege")
        self.stranger, self.neighbour, self.weak, self.late, self.early = (self._signer() for _ in range(5))
        self.authority, self.gone_authority = self._signer(), self._signer()
        self.revocations = 1
        """Version of the list of revocations."""
        self.retired: list[Signer] = []
        self.voice = self._signer()
        self.evil_voice = self._signer()
        self.batch_number = 0
        self.question: wire.TimeQuestionBody | None = None
        self.answers = True
        self.count = 0
        self.past: list[tuple[str, bytes]] = []
        """What the node obeyed once and something newer has replaced."""
        self._latest: dict[str, bytes] = {}
        self.ear = Ear()
        self.tune = b"a tune of the commune's own"
        self.sha = hashlib.sha256(self.tune).hexdigest()
        self.assets[self.sha], self.durations[self.sha] = self.tune, 2 * HOUR_MS
        self._life: asyncio.Task[None] | None = None
        self._key = random.Random("device").randbytes(32)
        self._disks = 0
        self.node = self._new_node()

    def _signer(self) -> Signer:
        return Signer(Ed25519PrivateKey.from_private_bytes(self.dice.randbytes(32)))

    # -- the node

    def _new_node(self) -> SpeakerNode:
        self._disks += 1
        identity = Identity(
            private_key=self._key.hex(),
            node_id=NODE,
            cluster_id="c1",
            broker={"host": "office", "port": 1},  # type: ignore[arg-type]
            username=NODE,
            password="x",
            root_public_key=self.root.public.hex(),
            path=PATH,
            assets_url="http://office/assets",
            asset_token="t",
        )
        client = httpx.AsyncClient(transport=httpx.MockTransport(self.serve))
        kit = Kit(
            self.time,
            inline,
            client,
            asyncio.Semaphore(4),
            SoundLibrary(inline),
            DecodeCache(),
            PlanBodies(),
        )
        return SpeakerNode(
            identity,
            kit=kit,
            make_link=lambda _identity, *, will, on_message, on_up: (will, OfficeLink(self, on_message, on_up))[1],
            disk=Disk(self.folder / f"disk-{self._disks}"),
            chance=random.Random(f"node/{self._disks}"),
            clock=DeviceClock(self.time),
            witness=None if self._has_samples else self.ear,
        )

    @property
    def firmware(self) -> Firmware:
        assert self.node.firmware is not None
        return self.node.firmware

    async def begin(self) -> None:
        """Everything in force, the node on the air."""
        self.keys()
        self.config()
        await self.plan_good(tells=False)
        self._life = asyncio.create_task(self.node.run(), name="siege.node")
        await self.pass_s(12)
        await self.head_good()
        self.base()

    def base(self) -> None:
        """The rig itself stands: without this no attack proves anything."""
        assert self.firmware.clock.is_known
        assert self.firmware.plan is not None
        assert STREAM in self.firmware.streams

    async def pass_s(self, seconds: float) -> None:
        await self.time.sleep(seconds)
        assert self._life is not None
        if self._life.done():
            self._life.result()
        if self.node.firmware is not None:
            await self.settle()

    async def end(self) -> None:
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)

    async def reboot(self, dark_s: float | None = None) -> None:
        """Off and on: in good order, or by a cut of the power."""
        if dark_s is None:
            self.node.power_cycle(is_orderly=True)
        else:
            self.node.cut_power(dark_s)
        await self.pass_s((dark_s or 0.0) + 12)
        await self.head_good()
        self.base()

    async def wipe(self) -> None:
        """The same box with an empty flash: whoever has its identity, but remembers nothing."""
        await self.end()
        self.node = self._new_node()
        self._life = asyncio.create_task(self.node.run(), name="siege.node")
        await self.pass_s(12)
        await self.head_good()
        self.base()

    async def deliver(self, topic: str, payload: bytes) -> Counter[str]:
        """Give the node one message and let it act; what it counted because of it."""
        before = self.firmware.gate.refusals.copy()
        self.firmware._arrived(topic, payload)
        await self.settle()
        return self.firmware.gate.refusals - before

    async def settle(self) -> None:
        """Until the node has done with what lies before it."""
        firmware, quiet = self.firmware, 0
        for _ in range(200):
            await asyncio.sleep(0)
            quiet = 0 if firmware._inbox.is_set() or firmware._saving.locked() else quiet + 1
            if quiet == 3:
                return
        assert self._life is not None
        if self._life.done():
            self._life.result()
        raise AssertionError("the node does not come to rest")

    def stance(self) -> tuple[object, ...]:
        """All that a message changes where it is obeyed."""
        node = self.firmware
        plan = node.plan
        return (
            None if plan is None else (plan.sha256, plan.order, plan.valid_until_ms, plan.max_class),
            node.situation.config,
            node.situation.alerts,
            node.gate.path,
            node.clock.exchanges,
            node.clock.steps,
            tuple(node._memory.done_orders[-1:]),
            len(node._memory.done_orders),
            node._own,
            self.node.boots,
            tuple(
                (stream, one.counts.received, *(track.head for track in one._tracks))
                for stream, one in node.streams.items()
            ),
        )

    # -- what the office says, each word followed by its proof

    def hears(self, link: OfficeLink, topic: str, payload: bytes) -> None:
        if topic.endswith("/time"):
            self.question = wire.decode_unsigned(wire.TimeQuestionBody, payload)
            if not self.answers:
                return
        super().hears(link, topic, payload)

    def tell(self, topic: topics.Topic, payload: bytes) -> None:
        self.remember(str(topic), payload)
        super().tell(topic, payload)

    def remember(self, topic: str, payload: bytes) -> None:
        """What the node will obey; what it replaces belongs to the past from now on."""
        before = self._latest.get(topic)
        if before is not None and before != payload:
            self.past.append((topic, before))
            del self.past[:-400]
        self._latest[topic] = payload

    def delegation(self, signer: Signer, unit: str, may: Sequence[str], **changes: Any) -> wire.DelegationBody:
        now_ms = self.time.now_ms()
        told: dict[str, Any] = {
            "public_key": signer.public.hex(),
            "unit": unit,
            "may": tuple(may),
            "max_class": BulletinClass.EMERGENCY,
            "valid_from_ms": now_ms - HOUR_MS,
            "valid_until_ms": now_ms + 10_000 * HOUR_MS,
            **changes,
        }
        return wire.DelegationBody(**told)

    def keys(self) -> None:
        """Root, authority, commune; the server's; one of a neighbour, one too weak, one run out, one not begun."""
        now_ms = self.time.now_ms()
        chain = [
            self.delegation(self.authority, PATH[1], ("KEYS",)),
            self.delegation(self.gone_authority, PATH[1], ("KEYS",), valid_until_ms=now_ms - 1),
        ]
        neighbour = self.delegation(self.neighbour, OTHER_UNIT, (*UNIT_MAY, *SERVER_MAY))  # known here, for there
        own = [
            self.delegation(self.commune, PATH[0], UNIT_MAY),
            *(self.delegation(one, PATH[0], UNIT_MAY) for one in self.retired[-2:]),  # which the list then takes back
            self.delegation(self.weak, PATH[0], UNIT_MAY, max_class=BulletinClass.NORMAL),
            self.delegation(self.late, PATH[0], (*UNIT_MAY, *SERVER_MAY), valid_until_ms=now_ms - 1),
            self.delegation(self.early, PATH[0], (*UNIT_MAY, *SERVER_MAY), valid_from_ms=now_ms + 5_000 * HOUR_MS),
        ]
        sealed = [self.seal(self.root, Kind.KEYS, body.unit, body) for body in chain]
        sealed.append(self.seal(self.root, Kind.KEYS, PATH[0], neighbour))
        sealed += [self.seal(self.authority, Kind.KEYS, body.unit, body) for body in own]
        sealed.append(self.seal(self.authority, Kind.KEYS, PATH[1], self.revocation_list()))
        self.tell(topics.UnitKeys(PATH[0]), wire.join_keys(tuple(sealed)))
        server = self.delegation(self.server, PATH[1], SERVER_MAY)
        self.tell(topics.UnitKeys(PATH[1]), wire.join_keys((self.seal(self.root, Kind.KEYS, PATH[1], server),)))

    def revocation_list(self, version: int | None = None, *more: Signer) -> wire.RevocationListBody:
        """All that the authority revoked."""
        at_ms = self.time.now_ms() - 1
        gone = tuple(wire.RevokedKey(key_id=key_id_of(one.public).hex(), at_ms=at_ms) for one in (*self.retired, *more))
        return wire.RevocationListBody(rl_ver=version or self.revocations, revoked=gone)

    def floors(self, asked: wire.TimeQuestionBody) -> wire.FloorsBody:
        """As the server tells them: the orders too, which nobody retains."""
        told = super().floors(asked)
        orders = wire.Floor(
            topic=str(topics.NodeOrder(NODE)), epoch=self.commune.epoch, sequence=self.ahead(self.commune)
        )
        return told.model_copy(update={"floors": (*told.floors, orders), "rl_ver": self.revocations})

    def segments(self, name: str) -> tuple[wire.PlanSegment, ...]:
        """The relay now, a tune of the commune's own in a moment."""
        now_ms = self.time.now_ms()
        return (
            segment(f"{name}-relay", now_ms - 600_000, 600 + 5.0, stream=STREAM),
            segment(f"{name}-tune", now_ms + 5_000, 6.0, asset=self.sha),
            segment(f"{name}-more", now_ms + 11_000, 7_200.0, stream=STREAM),
        )

    def evil_segments(self, name: str) -> tuple[wire.PlanSegment, ...]:
        return (segment(name, self.time.now_ms() - 1_000, 7_200.0, asset=self.sha),)

    def topic_of(self, kind: Kind) -> str:
        """Where a message of this kind comes to the node."""
        named = {
            Kind.PLAN: topics.NodePlan(NODE),
            Kind.CONFIG: topics.NodeConfig(NODE),
            Kind.ORDER: topics.NodeOrder(NODE),
            Kind.ACK: topics.NodeAck(NODE),
            Kind.ALERTS: topics.UnitAlert(PATH[0]),
            Kind.KEYS: topics.UnitKeys(PATH[0]),
            Kind.HEAD: topics.StreamHead(STREAM),
        }
        return str(named[kind])

    def latest(self, kind: Kind) -> tuple[str, bytes]:
        """The last valid message of a kind, with its topic."""
        topic = self.topic_of(kind)
        return topic, self._latest[topic]

    def obeyed(self, kind: Kind) -> tuple[int, int]:
        """The order of the last valid message of a kind."""
        raw = self.latest(kind)[1]
        return parse(wire.split_plan(raw)[0] if kind is Kind.PLAN else raw).order

    def letter(self, kind: Kind, *, is_evil: bool = True) -> Letter:
        """What would be obeyed, whole and well signed. An attacker's has a name of its own in it."""
        self.count += 1
        now_ms = self.time.now_ms()
        name = f"{EVIL if is_evil else GOOD}-{self.count}"
        signer, target, topic = self.commune, NODE, ""
        expires_ms, packed = now_ms + 24 * HOUR_MS, None
        body: wire.Body
        match kind:
            case Kind.PLAN:
                segments = self.evil_segments(name) if is_evil else self.segments(name)
                asset = wire.PlanAsset(sha256=self.sha, size_bytes=len(self.tune), duration_ms=2 * HOUR_MS)
                packed = wire.pack_plan_body(wire.PlanBody(segments=segments, assets=(asset,)))
                body = wire.plan_head(packed, valid_from_ms=now_ms - 60_000, valid_until_ms=expires_ms)
                topic = str(topics.NodePlan(NODE))
            case Kind.CONFIG:
                loud = {"alert_gain_db": 12.0, "max_gain_db": 12.0} if is_evil else {"alert_gain_db": -(self.count % 9)}
                body = wire.NodeConfigBody(
                    path=PATH,
                    cluster=name,
                    quiet_from_min=0,
                    quiet_to_min=0,
                    assets_url="http://office/assets",
                    **loud,
                )
                topic = str(topics.NodeConfig(NODE))
            case Kind.ORDER:
                verb = self.dice.choice(tuple(wire.OrderVerb)) if is_evil else wire.OrderVerb.IDENTIFY
                body = wire.OrderBody(order_id=name, verb=verb, seconds=3)
                topic, expires_ms = str(topics.NodeOrder(NODE)), now_ms + 60_000
            case Kind.ALERTS:
                body = wire.AlertSetBody(alerts=(self.alert(name),))
                target, topic = PATH[0], str(topics.UnitAlert(PATH[0]))
            case Kind.HEAD:
                voice = self.evil_voice if is_evil else self.voice
                body = self.head_body(voice)
                signer, target, topic = self.server, STREAM, str(topics.StreamHead(STREAM))
                expires_ms = now_ms + LEASE_MS
            case Kind.ACK:
                body = self.answer(ahead_ms=HOUR_MS if is_evil else 0)
                signer, topic = self.server, str(topics.NodeAck(NODE))
                expires_ms = now_ms + 60_000
            case Kind.KEYS:
                body = self.delegation(self.stranger, PATH[0], (*UNIT_MAY, *SERVER_MAY))
                signer, target, topic = self.root, PATH[0], str(topics.UnitKeys(PATH[0]))
            case _:
                raise AssertionError(kind)
        self.ahead(signer)
        return Letter(
            topic, signer, kind, target, body.encode(), now_ms, expires_ms, signer.epoch, signer.sequence, packed
        )

    def ahead(self, signer: Signer) -> int:
        """All keys of one server count as one; an attacker who stole one knows the number."""
        known = (self.commune, self.server, self.weak, self.neighbour, self.late, self.early, self.stranger, self.root)
        known = (*known, self.authority, self.gone_authority)
        signer.sequence = 2 + max(one.sequence for one in (*known, *self.retired[-1:], signer))
        return signer.sequence

    def alert(self, name: str, **facts: Any) -> wire.AlertBody:
        now_ms = self.time.now_ms()
        told = {"level": 85, "issued_ms": now_ms, "expires_ms": now_ms + 2 * HOUR_MS, "hazard": "flood", **facts}
        return wire.AlertBody(alert_id=name, **told)

    def head_body(self, voice: Signer, **facts: Any) -> wire.StreamHeadBody:
        told = {"t0_utc_ms": self.time.now_ms() // 1000 * 1000 - 600_000, "playout_delay_ms": 1_500, **facts}
        return wire.StreamHeadBody(public_key=voice.public.hex(), packets_per_batch=BATCH_PACKETS, **told)

    def answer(
        self, *, ahead_ms: int = 0, nonce: str | None = None, asked_ns: int | None = None
    ) -> wire.TimeAnswerBody:
        asked = self.question
        now_ns = self.time.now_ns() + ahead_ms * 1_000_000
        return wire.TimeAnswerBody(
            nonce=nonce or (f"{self.dice.getrandbits(64):016x}" if asked is None else asked.nonce),
            asked_ns=asked_ns if asked_ns is not None else (0 if asked is None else asked.sent_ns),
            received_ns=now_ns,
            sent_ns=now_ns,
        )

    def batch(self, *, sequence: int | None = None, epoch: int | None = None) -> frames.AudioBatch:
        if sequence is None:
            self.batch_number += 1
            sequence = self.batch_number
        passed_samples = 48 * 600_000 + sequence % 100 * BATCH_PACKETS * frames.PACKET_SAMPLES
        packets = tuple(self.dice.randbytes(20) for _ in range(4))
        return frames.AudioBatch(self.server.epoch if epoch is None else epoch, sequence, passed_samples, packets)

    # -- valid messages: each must be obeyed; False where it was not

    async def said(self, letter: Letter, is_obeyed: Callable[[], bool]) -> bool:
        """Retain it, give it to the node, and look."""
        if letter.kind not in {Kind.ORDER, Kind.ACK}:
            self.retained[letter.topic] = letter.payload
        self.remember(letter.topic, letter.payload)
        await self.deliver(letter.topic, letter.payload)
        return is_obeyed()

    async def plan_good(self, *, tells: bool = True) -> bool:
        letter = self.letter(Kind.PLAN, is_evil=False)
        if not tells:
            self.retained[letter.topic] = letter.payload
            self.remember(letter.topic, letter.payload)
            return True
        return await self.said(
            letter,
            lambda: self.firmware.plan is not None and self.firmware.plan.order == (letter.epoch, letter.sequence),
        )

    async def config_good(self) -> bool:
        letter = self.letter(Kind.CONFIG, is_evil=False)
        body = wire.decode(wire.NodeConfigBody, letter.body)
        return await self.said(letter, lambda: self.firmware.situation.config == body)

    async def alerts_good(self) -> bool:
        """One that is over in a second, and none after it."""
        name = f"{GOOD}-{self.count + 1}"
        letter = self.letter(Kind.ALERTS, is_evil=False)
        none = letter.but(body=wire.AlertSetBody().encode(), sequence=letter.sequence + 1)
        letter.signer.sequence += 1
        raised = await self.said(
            letter, lambda: [one.alert_id for one in self.firmware.situation.alerts.alerts] == [name]
        )
        return raised and await self.said(none, lambda: not self.firmware.situation.alerts.alerts)

    async def order_good(self) -> bool:
        letter = self.letter(Kind.ORDER, is_evil=False)
        order_id = wire.decode(wire.OrderBody, letter.body).order_id
        return await self.said(letter, lambda: self.firmware._memory.done_orders[-1:] == [order_id])

    async def head_good(self) -> bool:
        letter = self.letter(Kind.HEAD, is_evil=False)
        return await self.said(letter, lambda: self.firmware.streams[STREAM].lease_ms == letter.expires_ms)

    async def batch_good(self) -> bool:
        receiver = self.firmware.streams[STREAM]
        before = receiver.counts.received
        raw = frames.pack(self.batch(), self.voice.key, STREAM)
        await self.deliver(str(topics.StreamAudio(STREAM)), raw)
        return receiver.counts.received == before + 1

    async def time_good(self) -> bool:
        """The node's own question, answered once."""
        self.answers, self.question = False, None
        while self.question is None:
            await self.pass_s(0.5)
        before = self.firmware.clock.exchanges
        letter = self.letter(Kind.ACK, is_evil=False)
        is_obeyed = await self.said(letter, lambda: self.firmware.clock.exchanges == before + 1)
        self.answers = True
        return is_obeyed

    async def rotation_good(self) -> bool:
        """A new key for the commune; the old one is revoked."""
        self.retired = [*self.retired, self.commune][-40:]
        self.revocations += 1
        self.commune = self._signer()
        self.keys()
        await self.settle()
        # With the old key went its plan, and with the plan the stream.
        return await self.all_by_unit_good() and await self.head_good()

    async def all_by_unit_good(self) -> bool:
        """One of each, so that the node knows where each stands."""
        words = (self.config_good, self.plan_good, self.alerts_good, self.order_good)
        return all([await word() for word in words])

    @property
    def heard(self) -> Counter[str]:
        """Seconds of sound by whose it was: `good`, `evil`, and anything else by its whole name."""
        told: Counter[str] = Counter()
        for entry, samples in self.ear.heard.items():
            name = entry.removeprefix("alert:").partition("-")[0]
            told[name if name in {GOOD, EVIL} else entry] += samples
        return Counter({name: round(samples / frames.SAMPLE_RATE_HZ) for name, samples in told.items()})


__all__ = [
    "EVIL",
    "GOOD",
    "OTHER_NODE",
    "OTHER_STREAM",
    "OTHER_UNIT",
    "PATH",
    "STREAM",
    "Letter",
    "Siege",
    "resigned",
    "separation",
]
