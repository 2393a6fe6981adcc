"""An engine room without machines: a village's store, a broker in process, the conductor, inbox and judge on a clock
ticked by hand, and speaker nodes that verify with a real `KeyRing` and sound by the real `rules.decide`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broadcast_server.control import scheduling
from broadcast_server.control.scheduling import NewSchedule
from broadcast_server.domain.clock import to_ms
from broadcast_server.domain.places import Target
from broadcast_server.domain.recurrence import Rule
from broadcast_server.mqtt.bus import LoopbackBus, LoopbackHub, Message
from broadcast_server.playout.anchoring import Anchoring
from broadcast_server.playout.clock_watch import ClockWatch, GuardedSigner
from broadcast_server.playout.conductor import Conductor
from broadcast_server.playout.configs import StationFacts
from broadcast_server.playout.deliveries import Deliveries
from broadcast_server.playout.inbox import Heard, Inbox
from broadcast_server.playout.judge import Judge
from broadcast_server.playout.planner import Desired, Planner
from broadcast_server.relay.engine import StreamSpec
from broadcast_server.signer.checked import CheckedSigner
from broadcast_server.signer.keys import FileSigner
from broadcast_server.signer.time_key import TimeKey, time_folder
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import NodeRow, PlayRow
from broadcast_server.store.words import ContentKind
from broadcast_server.supervise import InlineExecutor
from speaker_protocol import chain, rules
from speaker_protocol import messages as wire
from speaker_protocol.brief import decode_alert_set
from speaker_protocol.signing import EnvelopeRefused, KeyRing, Kind, Watermarks, key_id_of, seal
from speaker_protocol.topics import NodeAck, NodePlan, NodeReport, NodeStatus, NodeTime, UnitAlert, UnitKeys
from tests.support.clock import FakeChance, FakeClock
from tests.support.village import DONG, LAN, PROVINCE, TAY, Village, a_village

NODE, NEIGHBOUR, FAR = "n1", "n2", "n3"
"""Two clusters of xã Đông, one of xã Tây."""
LEASE_S = 5.0


@dataclass
class Relays:
    """The relay engine's port, remembering what was wanted last."""

    wanted: Mapping[str, StreamSpec] = field(default_factory=dict)

    async def reconcile(self, desired: Mapping[str, StreamSpec], *, ending: str = "window_over") -> None:
        self.wanted = dict(desired)
        self.ending = ending


class Speaker:
    """A node: obeys what its gate lets pass, and says what it is told to say."""

    def __init__(self, node_id: str, unit: str, hub: LoopbackHub, clock: FakeClock, root: bytes) -> None:
        self.node_id, self.path, self.clock = node_id, (unit, PROVINCE), clock
        self.key = Ed25519PrivateKey.from_private_bytes(node_id.encode().ljust(32, b"k"))
        self.bus = LoopbackBus(hub, clock=clock, user=node_id)
        self.ring = KeyRing(root)
        self.marks = Watermarks()
        self.plan: wire.PlanBody | None = None
        self.head: wire.PlanHead | None = None
        self.config: wire.NodeConfigBody | None = None
        self.order = (0, 0)
        self.orders: list[tuple[int, int, str]] = []
        self.acks: list[wire.ReportAckBody | wire.TimeAnswerBody] = []
        self.plans_obeyed = 0
        self.sets: dict[str, wire.AlertSetBody] = {}
        self.refused: Counter[str] = Counter()
        self.boot, self.said = "boot-1", 0
        self.last_report = b""

    @property
    def public_hex(self) -> str:
        return self.key.public_key().public_bytes_raw().hex()

    @property
    def now_ms(self) -> int:
        return to_ms(self.clock.now())

    async def start(self) -> None:
        await self.bus.start()
        for unit in self.path:
            self.bus.subscribe(str(UnitKeys(unit)), self._keys)
            self.bus.subscribe(str(UnitAlert(unit)), self._alerts)
        self.bus.subscribe(f"loa/1/node/{self.node_id}/+", self._own)

    def _keys(self, message: Message) -> None:
        unit = message.topic.split("/")[3]
        above = self.path[self.path.index(unit) :]
        for raw in chain.in_order(wire.split_keys(message.payload), self.ring):
            try:
                chain.take(self.ring, self.marks, raw, above=above, now_ms=self.now_ms)
            except EnvelopeRefused as refused:
                self.refused[f"keys_{refused.reason}"] += 1

    def _alerts(self, message: Message) -> None:
        unit = message.topic.split("/")[3]
        try:
            envelope = self.ring.verify(
                message.payload, kind=Kind.ALERTS, target=unit, path=self.path, now_ms=self.now_ms
            )
            if self.marks.admit(message.topic, envelope):
                self.sets[unit] = decode_alert_set(envelope.body)
        except EnvelopeRefused as refused:
            self.refused[f"alert_{refused.reason}"] += 1

    @property
    def alerts(self) -> Alerts:
        """All it holds, as the rules want it."""
        held = [self.sets[unit] for unit in self.path if unit in self.sets]
        return Alerts(
            tuple(alert for one in held for alert in one.alerts), any(one.stop_all is not None for one in held)
        )

    def warns(self) -> str | None:
        """The alert it sounds by the rules both sides share."""
        return rules.decide(None, self.alerts, rules.NodeState(), self.now_ms).alert_id

    def _own(self, message: Message) -> None:
        leaf = message.topic.rpartition("/")[2]
        kinds = {"plan": Kind.PLAN, "config": Kind.CONFIG, "order": Kind.ORDER, "ack": Kind.ACK}
        if leaf not in kinds:
            return
        raw, packed = wire.split_plan(message.payload) if leaf == "plan" else (message.payload, b"")
        try:
            envelope = self.ring.verify(raw, kind=kinds[leaf], target=self.node_id, path=self.path, now_ms=self.now_ms)
            if leaf == "ack":
                self.acks.append(wire.decode_ack(envelope.body))
                return
            if not self.marks.admit(message.topic, envelope):
                return
        except EnvelopeRefused as refused:
            self.refused[f"{leaf}_{refused.reason}"] += 1
            return
        match leaf:
            case "plan":
                self.head = wire.decode(wire.PlanHead, envelope.body)
                self.plan = wire.open_plan_body(self.head, packed)
                self.order = envelope.order
                self.plans_obeyed += 1
            case "config":
                self.config = wire.decode(wire.NodeConfigBody, envelope.body)
            case "order":
                self.orders.append((*envelope.order, wire.decode(wire.OrderBody, envelope.body).order_id))

    # -- what it does

    def sounding(self, at: datetime | None = None) -> str | None:
        """The entry it sounds by the rules both sides share."""
        if self.plan is None or self.head is None:
            return None
        view = PlanView(self.head.valid_from_ms, self.head.valid_until_ms, self.plan.segments)
        now_ms = self.now_ms if at is None else to_ms(at)
        state = rules.NodeState(ready_assets={asset.sha256 for asset in self.plan.assets})
        decision = rules.decide(view, self.alerts, state, now_ms)
        return decision.entry_id if decision.kind is rules.DecisionKind.ASSET else None

    async def tell_status(self, *, link: wire.Link = wire.Link.ONLINE, **facts: Any) -> None:
        told: dict[str, Any] = {
            "plan_sha256": None if self.head is None else self.head.body_sha256,
            "plan_order": self.order,
            "highest": max(
                (mark[:2] for name, mark in self.marks.snapshot().items() if "/keys " not in name), default=(0, 0)
            ),
            **facts,
        }
        if link is wire.Link.ONLINE:
            told.setdefault("alerts", tuple(wire.AlertProgress(alert_id=one.alert_id) for one in self.alerts.alerts))
            told.setdefault("stop_all", self.alerts.stop_all)
        body = wire.StatusBody(link=link, boot_id=self.boot, sent_ms=self.now_ms, **told)
        await self.bus.publish(str(NodeStatus(self.node_id)), body.encode(), retain=True)

    async def report(
        self, kind: str, entry_id: str, start: datetime | int, *, key: Ed25519PrivateKey | None = None, **facts: Any
    ) -> int:
        """Say it, signed by the device's key (or by another's), and return its number."""
        self.said = facts.pop("sequence", self.said + 1)
        start_ms = start if isinstance(start, int) else to_ms(start)
        at = facts.pop("at", self.clock.now())
        body = wire.ReportBody(
            boot_id=facts.pop("boot", self.boot),
            sequence=self.said,
            kind=wire.ReportKind(kind),
            entry_id=entry_id,
            segment_start_ms=start_ms,
            at_ms=at if isinstance(at, int) else to_ms(at),
            **facts,
        )
        signer = key or self.key
        envelope = seal(
            signer,
            key_id_of(signer.public_key().public_bytes_raw()),
            kind=Kind.REPORT,
            target=self.node_id,
            issued_ms=self.now_ms,
            expires_ms=self.now_ms + 1000,
            epoch=0,
            sequence=self.said,
            body=body.encode(),
        )
        self.last_report = envelope
        await self.bus.publish(str(NodeReport(self.node_id)), envelope)
        return self.said

    async def ask_the_time(self, nonce: str = "0123456789abcdef") -> None:
        body = wire.TimeQuestionBody(nonce=nonce, sent_ns=42)
        self.bus.publish_nowait(str(NodeTime(self.node_id)), body.encode())

    def acknowledged(self) -> list[int]:
        return [number for ack in self.acks if isinstance(ack, wire.ReportAckBody) for number in ack.sequences]


@dataclass(frozen=True)
class Alerts:
    alerts: tuple[wire.AlertBody, ...]
    stop_all: bool


@dataclass(frozen=True)
class PlanView:
    valid_from_ms: int
    valid_until_ms: int
    segments: tuple[wire.PlanSegment, ...]


@dataclass
class Server:
    """One process with the roles conductor and inbox."""

    name: str
    bus: LoopbackBus
    signer: CheckedSigner
    conductor: Conductor
    inbox: Inbox
    judge: Judge
    deliveries: Deliveries
    relays: Relays
    plannings: list[Desired]
    anchoring: Anchoring

    async def turn(self) -> None:
        """Everybody looks once."""
        await self.inbox.flush()
        await self.conductor.tick()
        await self.judge.look()
        await self.deliveries.look()


class Room:
    """The village, its broker, its servers and its nodes."""

    def __init__(self, village: Village, hub: LoopbackHub, keys: Path) -> None:
        self.village, self.hub, self.keys = village, hub, keys
        self.servers: list[Server] = []
        self.nodes: dict[str, Speaker] = {}
        self.sent: list[str] = []
        """Topics, in order, as somebody who hears everything notes them."""

    @property
    def store(self) -> Store:
        return self.village.desk.store

    @property
    def clock(self) -> FakeClock:
        return self.village.clock

    @property
    def server(self) -> Server:
        return self.servers[0]

    @property
    def node(self) -> Speaker:
        return self.nodes[NODE]

    async def serve(
        self, name: str = "a", *, store: Store | None = None, watch: ClockWatch | None = None, **changes: Any
    ) -> Server:
        chance = FakeChance(sum(name.encode()))
        clock, store = self.clock, store or self.store
        bus = LoopbackBus(self.hub, clock=clock, user="server")
        signer = CheckedSigner(
            lambda path_of: FileSigner(self.keys, chance=FakeChance(98), path_of=path_of), store=store, clock=clock
        )
        relays, plannings = Relays(), list[Desired]()
        conductor = Conductor(
            name=name,
            store=store,
            bus=bus,
            signer=signer if watch is None else GuardedSigner(signer, watch),
            engine=relays,
            planner=changes.pop("planner", None) or Planner(plan_days=8, **changes),
            clock=clock,
            chance=chance,
            facts=StationFacts(assets_url="http://127.0.0.1:8080/api/v1/assets", status_interval_s=30),
            lease_s=LEASE_S,
            is_clock_trusted=lambda: watch is None or watch.is_trusted,
        )
        judge = Judge(store=store, clock=clock, chance=chance, grace=timedelta(seconds=20))
        deliveries = Deliveries(store=store, clock=clock, chance=chance, grace=timedelta(seconds=20))

        def heard(what: Heard) -> None:
            conductor.heard(what)
            judge.heard(what)
            deliveries.heard(what)

        def planned(desired: Desired) -> None:
            plannings.append(desired)
            judge.planned(desired)

        conductor.on_planned = planned
        anchoring = Anchoring(
            store=store, clock=clock, executor=InlineExecutor(), files=(self.keys.parent / "anchors.jsonl",)
        )
        inbox = Inbox(
            bus=bus,
            store=store,
            answers=TimeKey(time_folder(self.keys), chance=FakeChance(97)),
            clock=clock,
            chance=chance,
            epoch=lambda: conductor.epoch,
            on_heard=heard,
            floors=conductor.floors,
            watch=watch,
            anchoring=anchoring,
        )
        await bus.start()
        server = Server(name, bus, signer, conductor, inbox, judge, deliveries, relays, plannings, anchoring)
        self.servers.append(server)
        return server

    async def stop(self, server: Server) -> None:
        """A clean end."""
        await server.conductor.close()
        await self.kill(server)

    async def kill(self, server: Server) -> None:
        """Gone without a word."""
        await server.bus.close()
        self.servers.remove(server)

    async def enrol(self, node_id: str, cluster_id: str, unit: str) -> Speaker:
        root = FileSigner(self.keys, chance=FakeChance(99), path_of=lambda one: (one,)).root_public()
        speaker = Speaker(node_id, unit, self.hub, self.clock, root)
        now = self.clock.now()

        def write(session: Session) -> None:
            session.add(
                NodeRow(
                    id=node_id,
                    unit_id=unit,
                    cluster_id=cluster_id,
                    public_key=speaker.public_hex,
                    hardware="mô phỏng",
                    firmware="1",
                    broker_password_line="$7$",
                    asset_token_hash=node_id.ljust(64, "0"),
                    enrolled_at=now,
                )
            )

        await self.store.begin(write)
        await speaker.start()
        self.nodes[node_id] = speaker
        return speaker

    async def pass_time(self, seconds: float, *, step_s: float = 0.5) -> None:
        """Let time pass; every server and every node that is online takes its turns."""
        end_s = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end_s:
            await self.clock.advance(min(step_s, end_s - self.clock.monotonic()))
            for server in self.servers:
                await server.turn()
            await self.clock.advance(0)

    async def until(self, instant: datetime) -> None:
        """Pass the time up to an instant in one leap, then take a turn."""
        await self.clock.advance((instant - self.clock.now()).total_seconds())
        await self.turn()

    async def turn(self) -> None:
        """Everybody looks, and hears what the others said."""
        await self.clock.advance(0)
        for server in self.servers:
            server.conductor.ring()
            await server.turn()
        await self.clock.advance(0)
        for server in self.servers:
            await server.inbox.flush()
            await server.judge.look()
            await server.deliveries.look()

    async def all_say_how_they_are(self, **facts: Any) -> None:
        for node in self.nodes.values():
            await node.tell_status(**facts)
        await self.clock.advance(0)
        await self.turn()

    async def announce(
        self,
        rule: Rule,
        *,
        title: str = "Lịch tiêm chủng",
        minutes: float = 3,
        targets: tuple[Target, ...] = (),
        sound: bytes | None = None,
        **more: Any,
    ) -> str:
        """Put a bulletin on the air as a person would; returns the schedule's id."""
        bulletin = await self.village.bulletin(title, minutes=minutes, sound=sound)
        placed = await scheduling.create_schedule(
            self.village.desk,
            LAN,
            NewSchedule(
                unit_id=DONG,
                content_kind=ContentKind.BULLETIN,
                content_id=bulletin,
                rule=rule,
                targets=targets,
                **more,
            ),
        )
        return placed.schedule.id

    async def plays(self) -> list[PlayRow]:
        def read(session: Session) -> list[PlayRow]:
            return sorted(session.query(PlayRow), key=lambda row: (row.starts_at, row.node_id))

        return await self.store.read(read)

    async def verdicts(self) -> dict[str, str]:
        return {row.node_id: row.verdict.value for row in await self.plays()}

    def plan_topics(self, since: int = 0) -> list[str]:
        """Nodes that were sent a plan since then."""
        return [topic.split("/")[3] for topic in self.sent[since:] if topic.endswith("/plan")]


@asynccontextmanager
async def a_room(keys: Path, *, serving: bool = True, **changes: Any) -> AsyncIterator[Room]:
    """Monday, 1 June 2026, 09:00: three nodes enrolled, one server up and settled."""
    async with a_village() as village:
        hub = LoopbackHub()
        room = Room(village, hub, keys)
        listener = LoopbackBus(hub, clock=village.clock, user="listener")
        await listener.start()
        listener.subscribe("loa/1/#", lambda message: room.sent.append(message.topic))
        await room.enrol(NODE, f"c1-{DONG}", DONG)
        await room.enrol(NEIGHBOUR, f"c2-{DONG}", DONG)
        await room.enrol(FAR, f"c1-{TAY}", TAY)
        if serving:
            await room.serve(**changes)
            await room.turn()
            await room.all_say_how_they_are()
        yield room


__all__ = ["FAR", "NEIGHBOUR", "NODE", "NodeAck", "NodePlan", "Room", "Server", "Speaker", "a_room"]
