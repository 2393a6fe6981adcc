"""One life of a node, from power-on to power-off: session, trust, plan, clock, stock, player and log, joined.

What must survive is on the disk before it is acted upon; everything else is in this object and dies with it. The
order at power-on: memory, keys, plan (so a node without network already plays), then the network. All of a node runs
in the one loop as named tasks; only disk work and decoding leave it, through the kit's `offload`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Final, TypeVar

import structlog

from firmware_sim import own_sound
from firmware_sim.alarms import SET_NS, Alarms
from firmware_sim.anchors import Anchors
from firmware_sim.assets import AssetKeeper, Lane
from firmware_sim.boots import Boots, Return, return_of
from firmware_sim.box import Box, FlashWork, Kit, MakeLink
from firmware_sim.clock import MS, SECOND, STEP_NS, Discipline, Exchange
from firmware_sim.decoder import AssetSound
from firmware_sim.dry import DryCard
from firmware_sim.faultpoints import Point, faultpoint
from firmware_sim.health import TRUSTED_WITHIN_MS, Machine, Signs, machine
from firmware_sim.jitter import StreamReceiver
from firmware_sim.lateness import Because, Marks, lateness
from firmware_sim.ledger import Ledger, Line
from firmware_sim.output import Dac, Played, join
from firmware_sim.own_sound import OwnSound
from firmware_sim.pace import Wake, sleep_or
from firmware_sim.past import PAST_FILE, Past
from firmware_sim.player import (
    SAMPLE_RATE_HZ,
    Chunk,
    Pcm,
    Situation,
    Sounding,
    next_change_ms,
    render,
    segment_at,
    stretches,
)
from firmware_sim.reports import DeviceKey, DeviceLog, Key
from firmware_sim.resync import ASK_AGAIN_S, Resync
from firmware_sim.stock import Stock
from firmware_sim.store import Identity, Memory, Slots
from firmware_sim.trust import Gate, PlanInForce
from speaker_protocol import messages as wire
from speaker_protocol.rules import BulletinClass, Heard, SourceKind, Trouble, Why, count_heard, is_quiet
from speaker_protocol.topics import (
    NodeAck,
    NodeConfig,
    NodeOrder,
    NodePlan,
    NodeReport,
    NodeStatus,
    NodeTime,
    StreamAudio,
    StreamHead,
    UnitAlert,
    UnitKeys,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")

FIRMWARE: Final = "firmware-sim 0.1"
AHEAD_S: Final = 1.2
"""What is rendered ahead of the sound card: a late tick shorter than this is not heard. A change rewinds it."""
PATIENT_S: Final = 0.35
"""While more than this is queued, a hole is not yet a hole: the batch or the stretch may still come."""
VOICE_PATIENT_S: Final = 0.25
"""The same for a live voice, whose batches come later before they are due."""
VOICE_BLOCK_SAMPLES: Final = SAMPLE_RATE_HZ // 10
"""A live voice is rendered in blocks so short that the end of a batch need not wait for the next one."""
KEEP_ON_CHANGE_S: Final = 0.12
"""What stays queued when plan or alerts change: the soonest a change can be heard."""
BLOCK_SAMPLES: Final = SAMPLE_RATE_HZ // 4
IDLE_SAMPLES: Final = SAMPLE_RATE_HZ
RATE_LIMIT: Final = 0.02
"""How much faster or slower than nominal a sounding programme may be steered."""
JUMP_NS: Final = 50 * MS
BURST: Final = 8
BURST_EVERY_S: Final = 0.25
HURRIED: Final = 18
HURRY_SLOWS: Final = 1.3
"""While the way is too unsteady for a good estimate more is asked, ever slower: the crowd may be what makes it so."""
STREAM_LEAD_MS: Final = 8_000
STREAM_DEAD_NS: Final = 10 * SECOND
PREPARE_AHEAD_MS: Final = 15_000
REMEMBER_CLOCK_S: Final = 600.0
MAX_ORDERS: Final = 16
CONNECTING_S: Final = 60.0
"""A node that was up so lately is connecting; later it is offline, though it tries all the same."""
NOTE_HEARD_S: Final = 30.0
"""So much of what was heard a power cut may take from the log: the flash is written so often while something sounds."""
MOST_DUE: Final = 64
TELL_DUE_S: Final = 600.0
REMEMBER_HEARD_S: Final = 60.0
KEEP_BEGUN: Final = 256
TELL_ALERT_S: Final = (1.5, 2.5)
"""When a changed set of alerts is answered by a status: sounding comes first, and a thousand nodes spread theirs."""


@lru_cache(maxsize=4_096)
def _readiness(entry_id: str, start_ms: int, is_ready: bool) -> wire.ItemReadiness:
    """Frozen, and the same in status after status."""
    return wire.ItemReadiness(entry_id=entry_id, start_ms=start_ms, ready=is_ready)


OWN_SOUNDS_IN: Final = frozenset({Why.NOTHING_PLANNED, Why.NO_PLAN, Why.NOT_ACTIVE})
"""Silences in which what a technician ordered may sound."""


class Firmware:
    """A node that has power."""

    def __init__(
        self,
        identity: Identity,
        box: Box,
        kit: Kit,
        make_link: MakeLink,
        chance: random.Random,
        on_reboot: Callable[[], None],
    ) -> None:
        self.identity = identity
        self.node_id = identity.node_id
        self.boot_id = f"{chance.getrandbits(64):016x}"
        self.clock = Discipline()
        self.situation = Situation()
        self.plan: PlanInForce | None = None
        self.streams: dict[str, StreamReceiver] = {}
        self.lines: deque[Line] = deque(maxlen=500)
        """The latest lines of the ledger, for whoever inspects the node."""
        self._box = box
        self._kit = kit
        self._chance = chance
        self._on_reboot = on_reboot
        self._key = DeviceKey(identity.private_key)
        self._sequence = 0
        self._memory = Memory()
        self._flash = FlashWork(kit.offload)
        self._slots = Slots(box.disk)
        self._saving = asyncio.Lock()
        self._is_unsaved = False
        self.past = Past()
        self.marks = Marks()
        self._woke_ns = 0
        self._apart_ns = box.clock.now_ns() - box.clock.crystal_ns()
        self.boots = Boots((box.clock.now_ns(),))
        self._noted_ms: tuple[Key, int] | None = None
        self._epoch = 0
        self._alerts_changed = asyncio.Event()
        self._owes_answer = False
        """A changed set of alerts is obeyed, and told in a moment: no other status runs ahead of the others' tones."""
        self._decided: tuple[Any, ...] = ()
        self._is_memory_due = False
        self.anchors = Anchors()
        self._is_remembered = False
        self._heard_stored_s = 0.0
        self._is_timed = False
        """Whether what came has been acted on since the time is trusted."""
        self._pending: OrderedDict[str, bytes] = OrderedDict()
        self._orders: deque[bytes] = deque(maxlen=MAX_ORDERS)
        self._held: dict[str, bytes] = {}
        """Messages by a key not yet known: judged again when keys are learned."""
        self._inbox = asyncio.Event()
        self._journal = asyncio.Event()
        self._probe_now = asyncio.Event()
        self._questions: OrderedDict[str, int] = OrderedDict()
        self._resync = Resync()
        self._status_due = True
        self._status_sent_s = -1e9
        self._cursor_ns = 0
        self._own: OwnSound | None = None
        """What a technician ordered: a tone, the code of the binding check."""
        self._followed: PlanInForce | None = None
        self._listening: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self._awaited: frozenset[str] = frozenset()
        """The topics asked for: a broker that sends others fills no memory with them."""
        self._silent_until_ns: int | None = None
        self._dry = DryCard(box.horn) if box.is_dry else None
        self._awaits_voice = False
        """Whether the output waits for the next batch of a live voice."""
        self._wake_output = Wake()
        self._wake_house = Wake()
        self._remembered_s = 0.0
        self._due_told: tuple[tuple[wire.ItemReadiness, ...], float] | None = None
        self._up_s = kit.true.now_ns() / 1e9
        """When the link was last seen up; at first, when the power came."""
        self.gate = Gate(
            node_id=self.node_id,
            root_public=bytes.fromhex(identity.root_public_key),
            path=identity.path,
            watermarks={},
            bodies=kit.bodies,
        )
        self.alarms = Alarms(self.situation, self.clock)
        self.ledger = Ledger(self._write)
        self.log = DeviceLog(box.disk, self._flash, chance)
        self.assets = AssetKeeper(
            box.disk,
            kit.http,
            at_once={Lane.URGENT: kit.urgent_downloads, Lane.BULK: kit.downloads},
            token=identity.asset_token,
            true=kit.true,
            offload=self._flash,
            chance=chance,
            on_change=self._stock_changed,
        )
        self.assets.assets_url = identity.assets_url
        self.stock = Stock(self.assets, kit.library, self._close_dry)
        will = wire.StatusBody(link=wire.Link.OFFLINE, boot_id=self.boot_id, firmware=FIRMWARE)
        self.link = make_link(
            identity,
            will=(str(NodeStatus(self.node_id)), will.encode()),
            on_message=self._arrived,
            on_up=self._link_up,
        )
        self.dac = Dac(box.clock, kit.true, box.horn, box.recorder, self._played) if box.has_output else None

    # -- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From power-on until cancelled."""
        await self._wake()
        name = self.node_id
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._output(), name=f"node.output[{name}]")
            tasks.create_task(self.link.run(), name=f"node.link[{name}]")
            tasks.create_task(self._read_inbox(), name=f"node.inbox[{name}]")
            tasks.create_task(self._ask_the_time(), name=f"node.clock[{name}]")
            tasks.create_task(self._keep_house(), name=f"node.house[{name}]")
            tasks.create_task(self._answer_alerts(), name=f"node.alerts[{name}]")
            for lane in Lane:
                tasks.create_task(self._fetch_assets(lane), name=f"node.assets.{lane}[{name}]")
            tasks.create_task(self._keep_journal(), name=f"node.journal[{name}]")

    async def say_goodbye(self, reason: str) -> None:
        """Close the books before an orderly power-off; `run` has been cancelled."""
        if self.dac is not None:
            self.dac.run(is_last=True)
        self.ledger.close(reason)
        self._memory.clock = self.clock.remember(self._box.clock.now_ns())
        self._memory.boots_ns = list(self.boots.without_this())
        await self.log.store()
        await self._save()

    async def settle(self) -> None:
        """After the power went: what the disk was writing is written."""
        await self._flash.settle()

    async def _wake(self) -> None:
        offload = self._flash
        self._memory = Memory.load(await offload(self._slots.load))
        self.anchors = Anchors(self._memory.anchors)
        self.boots = Boots.after(self._memory.boots_ns, self._box.clock.now_ns())
        self._memory.boots_ns = list(self.boots.at_ns)
        self.gate = Gate(
            node_id=self.node_id,
            root_public=bytes.fromhex(self.identity.root_public_key),
            path=self.identity.path,
            watermarks=self._memory.watermarks,
            bodies=self._kit.bodies,
            is_resyncing=not self._memory.is_synced,
        )
        if self._memory.clock is not None:
            self.gate.past_is((self._memory.clock.device_ns + self._memory.clock.offset_ns) // MS)
        self.gate.recall(self._memory.statements, self._memory.path or self.identity.path)
        self._woke_ns = self._box.clock.crystal_ns()
        self._apart_ns = self._box.clock.now_ns() - self._woke_ns
        if self._memory.clock is not None and self.clock.recall(self._memory.clock, self._box.clock.now_ns()):
            self.marks.woke_ms = self.clock.server_ns(self._box.clock.now_ns()) // MS
        self._note_past()
        self.past.load(await offload(lambda: self._box.disk.read(PAST_FILE)))
        remembered = self._memory.log_head
        await offload(lambda: self.log.load(remembered))
        await self._save()  # this power-on counts even if the next dip comes at once
        await self.assets.check_stock()
        try:
            self.alarms.book.load(self._memory.alerts)
            self.situation.heard = None if self._memory.heard is None else Heard(*self._memory.heard)
        except (ValueError, TypeError):
            self.gate.count("memory")
        self._is_remembered = True
        self.situation.begun = dict.fromkeys(self._memory.begun)
        self.situation.clips = self._box.phrases.intact
        # Without trusted time the stored messages are judged without instants: the plan carries its own validity.
        self._judge(dict(self._memory.messages), None)
        self.alarms.woke(self.assets.ready)
        self._follow()

    @property
    def is_active(self) -> bool:
        """Whether anything may sound: not on probation, not in quarantine."""
        config = self.situation.config
        return self.identity.state == "active" if config is None else config.active

    @property
    def is_ready(self) -> bool:
        """Connected, on time, with a plan and everything it needs in the next half day."""
        is_told = self.plan is not None and self.plan is self._followed
        return self.link.is_up and self.clock.exchanges > 0 and is_told and not self.assets.is_behind

    # -- what arrives -------------------------------------------------------------------------------------------------

    def _arrived(self, topic: str, payload: bytes) -> None:
        self._notice_jump()
        if topic not in self._awaited:
            if f"/{StreamAudio.family}/" not in topic:  # the last batches of a stream that is over are nobody's fault
                self.gate.count("topic")
            return
        device_ns = self._box.clock.now_ns()
        if self._box.faultline.garble and payload:
            self._box.faultline.garble -= 1
            at = self._chance.randrange(len(payload))
            payload = payload[:at] + bytes([payload[at] ^ 0x55]) + payload[at + 1 :]
        _, _, family, owner, leaf = topic.split("/")
        if family == "stream":
            self._stream_arrived(owner, leaf, payload, device_ns)
        elif leaf == NodeAck.leaf:
            self._ack_arrived(payload, device_ns)
        elif leaf == NodeOrder.leaf:
            self._orders.append(payload)
            self._inbox.set()
        else:
            self._pending[topic] = payload
            self._inbox.set()

    def _stream_arrived(self, stream: str, leaf: str, payload: bytes, device_ns: int) -> None:
        receiver = self.streams.get(stream)
        if receiver is None:
            return
        if leaf == StreamHead.leaf:
            if self.clock.is_known:
                head = self.gate.head(stream, payload, self.clock.server_ns(device_ns) // MS)
                if head is not None:
                    receiver.take_head(head)
            return
        if self._box.faultline.drop_frames:
            self._box.faultline.drop_frames -= 1
            return
        if self._awaits_voice:
            self._wake_output.set()
        receiver.take_batch(payload, device_ns, self.clock.server_ns(device_ns) if self.clock.is_known else None)

    def _ack_arrived(self, payload: bytes, device_ns: int) -> None:
        answer = self.gate.ack(payload)
        if isinstance(answer, wire.ReportAckBody):
            self.log.acknowledge(answer.boot_id, answer.sequences)
            self._journal.set()
        elif isinstance(answer, wire.FloorsBody):
            if not (self.gate.is_resyncing and self._resync.is_answered_by(answer.nonce)):
                self.gate.count("unasked_floors")
                return
            self.gate.floors(answer)
            self._inbox.set()
        elif isinstance(answer, wire.TimeAnswerBody):
            asked_ns = self._questions.pop(answer.nonce, None)
            if asked_ns is None or asked_ns != answer.asked_ns:
                self.gate.count("unasked_time")
                return
            if self.anchors.take(answer.anchor):
                self._memory.anchors = self.anchors.dump()
                self._is_memory_due = True  # written with what comes next: a witness may be an hour behind
            before_ns = self.clock.server_ns(device_ns) if self.clock.is_known else None
            self.catch_up()  # what was due until now was due by the time believed until now
            self.clock.take(Exchange(asked_ns, answer.received_ns, answer.sent_ns, device_ns))
            if self.clock.is_known:
                self._time_moved(before_ns, self.clock.server_ns(device_ns))

    async def _read_inbox(self) -> None:
        while True:
            await self._inbox.wait()
            self._inbox.clear()
            now_ms = self._now_ms()
            self._note_past()
            if self.dac is None:
                self._tick_without_output()  # what was decided until now was decided by the plan until now
            batch = dict(self._pending)
            self._pending.clear()
            if now_ms is None or self.gate.is_resyncing:
                # All but keys wait for trusted time, which the same link brings within a second; alerts not for long.
                # A node that lost its memory waits for the floors with all of it.
                is_alert_due = not self.gate.is_resyncing and self._are_alerts_due(batch)
                at_once = (f"/{UnitKeys.leaf}", f"/{UnitAlert.leaf}") if is_alert_due else f"/{UnitKeys.leaf}"
                later = {topic: raw for topic, raw in batch.items() if not topic.endswith(at_once)}
                for topic, raw in later.items():
                    del batch[topic]
                    self._pending.setdefault(topic, raw)
                was_resyncing = self.gate.is_resyncing
                is_news = self._judge(batch, now_ms)
                if was_resyncing and not self.gate.is_resyncing:
                    self._inbox.set()  # the keys that came were what it waited for
                if self.gate.is_resyncing and not is_news:
                    continue  # nothing was learned: nothing need be written
                self._enter_alerts()
                self._rerender()
            else:
                is_asked = bool(batch or self._orders)
                is_news = self._judge(batch, now_ms)
                self._notice_leader()
                orders = [self.gate.order(self._orders.popleft(), now_ms) for _ in range(len(self._orders))]
                if is_asked and self._is_timed and not is_news and not any(orders):
                    continue  # nothing of it is obeyed: whoever sends rubbish wears out no flash
                self._is_timed = True
                due = [order for order in orders if order is not None and self._is_first(order)]
                await self._save()
                self._follow()
                for order in due:
                    self._obey(order, now_ms)
                continue
            await self._save()

    def _notice_leader(self) -> None:
        """A new epoch is a server that took up its work: what was sent to nobody meanwhile is sent again now."""
        before, self._epoch = self._epoch, self.gate.highest()[0]
        if 0 < before < self._epoch:
            self.log.hurry()
            self._journal.set()

    def _judge(self, batch: dict[str, bytes], now_ms: int | None) -> bool:
        """Verify messages, keys first; what is obeyed is taken over (and stored by the caller before it acts).

        False: nothing of it is obeyed.
        """
        path = self.gate.path
        is_news = self._learn_keys(batch, path, now_ms)
        if is_news:
            for topic, raw in self._held.items():
                batch.setdefault(topic, raw)
            self._held.clear()
            self._probe_now.set()
            self._drop_revoked(now_ms)
        is_news |= self._judged(batch, str(NodeConfig(self.node_id)), now_ms, self._take_config)
        is_news |= self._learn_keys(batch, tuple(unit for unit in self.gate.path if unit not in path), now_ms)
        for unit in self.gate.path:
            is_news |= self._judged(batch, str(UnitAlert(unit)), now_ms, partial(self._take_alerts, unit))
        return is_news | self._judged(batch, str(NodePlan(self.node_id)), now_ms, self._take_plan)

    def _learn_keys(self, batch: dict[str, bytes], units: tuple[str, ...], now_ms: int | None) -> bool:
        learned = False
        for unit in units:
            topic = str(UnitKeys(unit))
            if topic in batch and self.gate.keys(unit, batch[topic], now_ms):
                learned = True
                if self._box.witness is not None:
                    self._box.witness.obeyed(topic, batch[topic])
        return learned

    def _drop_revoked(self, now_ms: int | None) -> None:
        """What a revoked key once said is in force no more, though it was believed when it came."""
        if self.plan is not None and self.gate.is_revoked(self.plan.key_id, now_ms):
            self.gate.count("plan_of_revoked_key")
            self.plan = self.situation.plan = None
            self._memory.messages.pop(str(NodePlan(self.node_id)), None)
        for unit in self.alarms.drop(lambda key_id: self.gate.is_revoked(key_id, now_ms), self.gate.path):
            self.gate.count("alerts_of_revoked_key")
            self._memory.messages.pop(str(UnitAlert(unit)), None)

    def _judged(
        self, batch: dict[str, bytes], topic: str, now_ms: int | None, take: Callable[[bytes, int | None], bool]
    ) -> bool:
        raw = batch.get(topic)
        if raw is None:
            return False
        unknown = self.gate.refusals["unknown_key"]
        if take(raw, now_ms):
            self._memory.messages[topic] = raw
            if self._box.witness is not None:
                self._box.witness.obeyed(topic, raw)
            return True
        if self.gate.refusals["unknown_key"] > unknown:
            self._held[topic] = raw
        return False

    def _take_config(self, raw: bytes, now_ms: int | None) -> bool:
        config = self.gate.config(raw, now_ms)
        if config is None:
            return False
        self.situation.config = config
        self.gate.path = config.path or self.gate.path
        self.alarms.merge(self.gate.path)
        self.assets.assets_url = config.assets_url
        return True

    def _take_alerts(self, unit: str, raw: bytes, now_ms: int | None) -> bool:
        alerts = self.gate.alerts(unit, raw, now_ms)
        if alerts is None:
            return False
        self.alarms.take(unit, alerts, self.gate.path, self._box.clock.now_ns() if now_ms is None else None)
        return True

    def _are_alerts_due(self, batch: dict[str, bytes]) -> bool:
        """Whether alerts among these have waited long enough for trusted time."""
        is_any = any(topic.endswith(f"/{UnitAlert.leaf}") for topic in batch)
        return is_any and self.alarms.may_sound_untimed(self._kit.true.now_ns() / 1e9)

    def _enter_alerts(self) -> None:
        """Obey what is in force now; say what is refused."""
        device_ns = self._box.clock.now_ns()
        refused = self.alarms.enter(device_ns)
        if refused is None:
            return
        now_ms = (self.alarms.server_ns(device_ns) or device_ns) // MS
        for alert, why in refused:
            self._report(
                wire.ReportKind.NOT_SOUNDED,
                f"alert:{alert.alert_id}",
                alert.issued_ms,
                now_ms,
                reason=why.value,
                source=SourceKind.RECORDED,
            )
        self._status_due = self._is_memory_due = True
        if refused:
            self._journal.set()
        self._owes_answer = True
        self._alerts_changed.set()

    async def _answer_alerts(self) -> None:
        """Say soon that a changed set is obeyed: who launched it counts those who do not answer."""
        while True:
            await self._alerts_changed.wait()
            self._alerts_changed.clear()
            await self._kit.true.sleep(self._chance.uniform(*TELL_ALERT_S))
            self._owes_answer = False
            self._journal.set()  # the turn it stands at is written down; the set itself was before it was obeyed
            if self.link.is_up:
                self._say_status()

    def _take_plan(self, raw: bytes, now_ms: int | None) -> bool:
        plan = self.gate.plan(raw, now_ms)
        if plan is None:
            return False
        self.plan = self.situation.plan = plan
        if now_ms is not None:
            self.marks.plan_ms = now_ms
        self.situation.max_class = plan.max_class
        return True

    async def _save(self) -> None:
        faultpoint(Point.VERIFIED)
        async with self._saving:
            self._is_memory_due = False
            memory, heard = self._memory, self.situation.heard
            memory.watermarks = self.gate.snapshot()
            memory.statements, memory.path = list(self.gate.statements()), self.gate.path
            memory.is_synced = not self.gate.is_resyncing
            memory.log_head = self.log.head
            if self._is_remembered:
                memory.alerts = self.alarms.book.dump()
                memory.heard = None if heard is None else [heard.at_ms, heard.day_ms, heard.session_ms, heard.last_ms]
            content = memory.dump()
            try:
                await self._flash(lambda: self._slots.save(content))
                self._is_unsaved = False
            except OSError:
                # It acts all the same: silence is the worse failure, the replay window is small. It is tried again.
                self._is_unsaved = True
        faultpoint(Point.PERSISTED)

    def _follow(self) -> None:
        """Act on what plan, configuration or alerts now say."""
        self._followed = self.plan
        self.alarms.time_is_trusted()
        self._enter_alerts()
        self._wake_house.set()
        self._want_assets()
        self._listen()
        self._status_due = True
        self._probe_now.set()
        self._rerender()
        self._note_decision()

    def _is_first(self, order: wire.OrderBody) -> bool:
        """Whether it is not done yet; it is noted before it is done, for it is to happen once at most."""
        if order.order_id in self._memory.done_orders:
            return False
        self._memory.done_orders.append(order.order_id)
        return True

    def _obey(self, order: wire.OrderBody, now_ms: int) -> None:
        reason = None
        match order.verb:
            case wire.OrderVerb.REBOOT:
                self._on_reboot()
            case wire.OrderVerb.IDENTIFY | wire.OrderVerb.TEST_TONE:
                limits = self.situation.state().limits
                if is_quiet(limits, now_ms):
                    reason = Why.QUIET_HOURS.value
                else:
                    reason = self._sound_own(own_sound.tone(order.seconds or 3))
            case wire.OrderVerb.SPEAK_CODE:
                # Softly, so at any hour: somebody stands before it and waits.
                reason = self._sound_own(own_sound.spoken(order.code or "", self.clip))
        self._report(wire.ReportKind.ORDER_DONE, order.order_id, 0, now_ms, reason=reason)

    def _sound_own(self, sound: OwnSound | None) -> str | None:
        """Begin what was ordered; why not."""
        if sound is None:
            return Trouble.NO_SOUND.value
        if self.dac is None:
            return Trouble.NO_OUTPUT.value
        self._own = sound
        self._rerender()
        return None

    # -- time ---------------------------------------------------------------------------------------------------------

    def _notice_jump(self) -> None:
        """A jump of the device's clock is seen by the crystal beside it, and taken out before anybody asks."""
        clock = self._box.clock
        apart_ns = clock.now_ns() - clock.crystal_ns()
        by_ns, self._apart_ns = apart_ns - self._apart_ns, apart_ns
        if abs(by_ns) > MS:
            self.clock.jumped(by_ns)
            self._questions.clear()
            self._memory.clock = self.clock.remember(clock.now_ns())
            self._is_unsaved = True
            log.warning("clock.jumped", node_id=self.node_id, by_ms=round(by_ns / MS))

    def _time_moved(self, before_ns: int | None, now_ns: int) -> None:
        """What follows from a new idea of the time: nothing is played twice, nothing after the fact."""
        if before_ns is None:
            self.marks.knew_ms = now_ns // MS
            self.marks.woke_ms = (now_ns - (self._box.clock.crystal_ns() - self._woke_ns)) // MS
            self._inbox.set()
            return
        by_ns = now_ns - before_ns
        if abs(by_ns) < STEP_NS:
            return
        log.warning("clock.stepped", node_id=self.node_id, by_ms=round(by_ns / MS))
        self.marks.stepped_ms = now_ns // MS
        account = self.ledger.current
        if account is not None and account.is_started and account.tag.alert_id is None:
            self.past.heard(account.tag.key, account.last_ms, is_over=True)
        if by_ns > 0 and self.plan is not None:
            for segment in self.past.skip(self.plan.segments, before_ns // MS, now_ns // MS):
                self._report(
                    wire.ReportKind.NOT_SOUNDED,
                    segment.entry_id,
                    segment.start_ms,
                    now_ns // MS,
                    source=segment.source,
                    asset=segment.asset,
                    stream=segment.stream,
                    reason=Why.CLOCK_STEPPED.value,
                )
        self._silent_until_ns = None
        self._status_due = True
        self._rerender()

    def _now_ms(self) -> int | None:
        """Server time as the node believes it; None while it must not be trusted."""
        self._notice_jump()
        device_ns = self._box.clock.now_ns()
        if not self.clock.is_known or self.clock.uncertainty_ms(device_ns) > TRUSTED_WITHIN_MS:
            return None
        return self.clock.server_ns(device_ns) // MS

    def _note_past(self) -> None:
        """Even a time that is too uncertain to act by says what is surely over."""
        device_ns = self._box.clock.now_ns()
        if self.clock.is_known:
            self.gate.past_is(self.clock.server_ns(device_ns) // MS - round(self.clock.uncertainty_ms(device_ns)))

    async def _ask_the_time(self) -> None:
        asked, hurry_s = 0, 2 * BURST_EVERY_S
        while True:
            if not (self.link.is_up and self.gate.may_hear_the_time):
                self._probe_now.clear()
                await self._probe_now.wait()
                continue
            nonce = f"{self._chance.getrandbits(64):016x}"
            sent_ns = self._box.clock.now_ns()
            self._questions[nonce] = sent_ns
            while len(self._questions) > 16:
                self._questions.popitem(last=False)
            is_resyncing = self.gate.is_resyncing
            if is_resyncing:
                self._resync.asked(nonce)
            question = wire.TimeQuestionBody(nonce=nonce, sent_ns=sent_ns, resync=is_resyncing or None)
            self.link.publish(str(NodeTime(self.node_id)), question.encode(), qos=NodeTime.qos)
            asked += 1
            # A burst first: the clock must be right before the first programme, not within the hour.
            wait_s = self._chance.uniform(*self._kit.pace.probe_s)
            if self.clock.exchanges < BURST and asked < 4 * BURST:
                wait_s = BURST_EVERY_S * self._chance.uniform(0.7, 1.3)
            elif self.clock.is_doubtful() and asked < HURRIED:
                wait_s = min(wait_s, hurry_s * self._chance.uniform(0.7, 1.3))
                hurry_s *= HURRY_SLOWS
            if self.gate.is_resyncing:
                wait_s = min(wait_s, ASK_AGAIN_S * self._chance.uniform(0.7, 1.3))
            await self._kit.true.sleep(wait_s)

    # -- stock --------------------------------------------------------------------------------------------------------

    def _want_assets(self) -> None:
        now_ms = self._now_ms() or 0
        config = self.situation.config
        offset_min = config.utc_offset_min if config is not None else 420
        alerts = self.situation.alerts.alerts if self.is_active else ()  # nobody gives it sounds before
        self.situation.asset_ms = self.stock.want(self.plan, alerts, now_ms, utc_offset_min=offset_min)
        self._refresh_stock()

    def _refresh_stock(self) -> None:
        self._close_dry()
        self.situation.ready_assets = self.stock.playable()
        self.alarms.refresh_assets(self._box.clock.now_ns(), None if self.dac is None else self.asset)

    def _stock_changed(self) -> None:
        self._refresh_stock()
        self._status_due = True
        self._rerender()

    async def _fetch_assets(self, lane: Lane) -> None:
        while True:
            wait_s = await self.stock.called(lane)
            if wait_s < self._kit.pace.idle_house_s:
                await self._kit.true.sleep(wait_s)
                await self.assets.fetch_due(lane, self._now_ms())
                await self._prepare()

    def asset(self, sha256: str) -> AssetSound | None:
        """Sound of a ready asset whose bytes were checked for what sounds now (for the player)."""
        return self.stock.sound(sha256)

    def stream(self, stream: str) -> StreamReceiver | None:
        """Buffer of a stream (for the player)."""
        return self.streams.get(stream)

    def clip(self, code: str) -> Pcm | None:
        """Sound of a phrase (for the player)."""
        return self._box.phrases.pcm(code)

    async def _prepare(self) -> None:
        """Check and decode what will sound soon."""
        now_ms = self._now_ms()
        if self.dac is None and self._dry is None:
            return
        for alert in self.situation.alerts.alerts:
            sound = await self.stock.checked(alert.asset, (alert.alert_id, alert.issued_ms)) if alert.asset else None
            if sound is not None:
                if self.dac is not None and not sound.is_ready(0, self.alarms.samples_of(alert)):
                    await sound.prepare(0, self.alarms.samples_of(alert))
                if alert.asset not in self.situation.alert_assets:
                    self._refresh_stock()
        if self.plan is None or now_ms is None:
            return
        until_ms = now_ms + PREPARE_AHEAD_MS
        for segment in self.plan.segments:
            if segment.end_ms <= now_ms or segment.asset is None:
                continue
            if segment.start_ms >= until_ms:
                break
            sound = await self.stock.checked(segment.asset, (segment.entry_id, segment.start_ms))
            if sound is None or self.dac is None:
                continue
            low_ms = segment.offset_ms + max(0, now_ms - segment.start_ms)
            high_ms = segment.offset_ms + min(until_ms, segment.end_ms) - segment.start_ms
            low, high = low_ms * 48, high_ms * 48 + SAMPLE_RATE_HZ
            if not sound.is_ready(low, high):
                await sound.prepare(low, high)
                self._refresh_stock()

    # -- listening ----------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Subscribe to what concerns this node (keys first: they judge the rest), streams only around their time."""
        node, path = self.node_id, self.gate.path
        wanted = self._streams_wanted()
        if (path, wanted) == self._listening:
            return
        self._listening = (path, wanted)
        for stream in wanted:
            if stream not in self.streams:
                self.streams[stream] = StreamReceiver(stream, self._kit.streams, self.gate.count)
        for stream in [stream for stream in self.streams if stream not in wanted]:
            del self.streams[stream]
        topics = [UnitKeys(unit) for unit in path]
        own = [NodeAck(node), NodeConfig(node), *(UnitAlert(unit) for unit in path), NodePlan(node), NodeOrder(node)]
        live = [topic for stream in wanted for topic in (StreamHead(stream), StreamAudio(stream))]
        asked = {str(topic): topic.qos for topic in (*topics, *own, *live)}
        self._awaited = frozenset(asked)
        self.link.listen(asked)

    def _streams_wanted(self) -> tuple[str, ...]:
        now_ms = self._now_ms()
        if now_ms is None or self.plan is None or not self.plan.valid_from_ms <= now_ms < self.plan.valid_until_ms:
            return ()
        wanted: dict[str, None] = {}
        for segment in self.plan.segments:
            if segment.start_ms - STREAM_LEAD_MS > now_ms:
                break
            if segment.stream is not None and segment.asset is None and now_ms < segment.end_ms + 1_000:
                wanted[segment.stream] = None
        return tuple(wanted)

    def _link_up(self) -> None:
        self._due_told = None
        self.log.hurry()
        self._status_due = True
        self._probe_now.set()
        self._journal.set()
        self._say_status()

    # -- sound --------------------------------------------------------------------------------------------------------

    async def _output(self) -> None:
        while True:
            wait_s = self._tick() if self.dac is not None else self._tick_without_output()
            self._note_decision()
            await sleep_or(self._wake_output, wait_s, self._kit.true)

    def _note_decision(self) -> None:
        """For whoever watches the fleet: what sounds now, or would."""
        tell, server_ns = self._kit.decided, self.alarms.server_ns(self._box.clock.now_ns())
        if tell is None or server_ns is None:
            return
        decision = next(stretches(self.situation, server_ns, server_ns + MS)).decision
        decided = (decision.kind, decision.why, decision.entry_id, decision.alert_id)
        if decided != self._decided:
            self._decided = decided
            tell(self.node_id, self._kit.true.now_ns(), decision)

    def _tick(self) -> float:
        dac = self.dac
        assert dac is not None  # noqa: S101  only called with one
        self._notice_jump()
        dac.run()
        is_full = self._fill(dac)
        # Half a block of play: the nodes of a fleet must not all be late because they all wake at once.
        if is_full:
            return min(1.0, max(0.02, dac.ahead_s() - AHEAD_S + self._chance.uniform(0.1, 0.2)))
        return max(0.02, dac.ahead_s() - VOICE_PATIENT_S) if self._awaits_voice else 0.1

    def _rerender(self) -> None:
        """Something changed: what is queued further ahead than a moment is rendered again."""
        dac = self.dac
        if dac is not None:
            dac.run()
            if dac.rewind(KEEP_ON_CHANGE_S):
                last = dac.last_queued()
                if last is not None:
                    self._cursor_ns = last.server_ns + last.samples * SECOND // SAMPLE_RATE_HZ
            self._fill(dac)
        else:
            self.catch_up()

    def _close_dry(self) -> None:
        """A card without samples decides afterwards: what was, was by what held until now."""
        if self._dry is not None:
            self.catch_up()

    def catch_up(self) -> None:
        """Account for what has sounded until now, before something changes what sounds from now on."""
        if self.dac is not None:
            self.dac.run()
        else:
            self._tick_without_output()
            self._wake_output.set()

    def _fill(self, dac: Dac) -> bool:
        """Render until enough is queued; False if something is awaited that may still come."""
        self._awaits_voice = False
        while (ahead_s := dac.ahead_s()) < AHEAD_S:
            device_ns = dac.device_ns(dac.cursor)
            server_ns = self.alarms.server_ns(device_ns)
            if server_ns is None:
                self.situation.is_clock_trusted = False
                dac.queue(Chunk(BLOCK_SAMPLES, 0, Sounding.SILENCE, Why.CLOCK_UNKNOWN))
                continue
            trim_ns = self.situation.config.delay_trim_ms * MS if self.situation.config is not None else 0
            low_ns = server_ns - trim_ns
            before = dac.last_queued()
            is_dated = before is not None and before.server_ns > 0
            if is_dated and abs(low_ns - self._cursor_ns) > SET_NS:
                self.alarms.clock_was_set(low_ns - self._cursor_ns, low_ns)
            if before is not None and before.kind is Sounding.SOUND and abs(low_ns - self._cursor_ns) < JUMP_NS:
                low_ns = self._cursor_ns
            self._refresh_situation(low_ns, device_ns)
            is_sounding = before is not None and before.kind is Sounding.SOUND
            segment = segment_at(self.plan, low_ns // MS)
            is_voice = segment is not None and segment.source == SourceKind.LIVE
            samples = BLOCK_SAMPLES if is_sounding else self._quiet_samples(low_ns)
            samples = min(samples, VOICE_BLOCK_SAMPLES) if is_voice else samples
            span_ns = samples * SECOND // SAMPLE_RATE_HZ
            is_final = ahead_s <= (VOICE_PATIENT_S if is_voice else PATIENT_S)
            if not is_final and not self._has_arrived(low_ns + span_ns):
                self._awaits_voice = is_voice
                return False
            high_ns = (self.alarms.server_ns(device_ns + span_ns) or server_ns + span_ns) - trim_ns
            # The programme is steered, never torn: a sounding block is stretched within limits onto the server's time.
            high_ns = low_ns + min(
                max(high_ns - low_ns, round(span_ns * (1 - RATE_LIMIT))), round(span_ns * (1 + RATE_LIMIT))
            )
            chunks = render(self.situation, self, low_ns, high_ns, samples, is_final=is_final)
            if not is_final and any(chunk.kind is Sounding.HOLE for chunk in chunks):
                self._awaits_voice = is_voice
                return False
            for chunk in chunks:
                self._begin(chunk)
                self._add_own(chunk, dac.cursor)
                join(dac.last_queued(), chunk)
                dac.queue(chunk)
            self._cursor_ns = high_ns
        return True

    def _has_arrived(self, until_ns: int) -> bool:
        """Whether the stream of this moment's segment is here up to an instant (or nothing is to be waited for)."""
        segment = segment_at(self.plan, until_ns // MS)
        if segment is None or segment.stream is None or segment.stream not in self.situation.live_streams:
            return True
        return self.streams[segment.stream].is_covered(until_ns + MS)

    def _quiet_samples(self, low_ns: int) -> int:
        """A long block while nothing sounds for long."""
        now_ms = low_ns // MS
        if self._own is not None or self.ledger.sounding is not None:
            return BLOCK_SAMPLES
        change_ms = next_change_ms(self.situation, now_ms)
        first = next(stretches(self.situation, low_ns, low_ns + MS))
        is_idle = first.tag is None and (change_ms is None or change_ms - now_ms > 1_100)
        return IDLE_SAMPLES if is_idle else BLOCK_SAMPLES

    def _refresh_situation(self, server_ns: int, device_ns: int) -> None:
        situation = self.situation
        situation.uncertainty_ms = self.clock.uncertainty_ms(device_ns)
        situation.is_clock_trusted = self.clock.is_known and situation.uncertainty_ms <= TRUSTED_WITHIN_MS
        was_muted = situation.muted is not None
        situation.barred = self.past.barred(server_ns // MS)
        situation.muted = Why.POWER_LOW if self._box.is_power_low() else None if self.is_active else Why.NOT_ACTIVE
        if was_muted and situation.muted is None:
            self.alarms.amplifier_is_back(server_ns)
        situation.held = Why.SAFE_MODE if self.boots.is_safe_mode(self._box.clock.now_ns()) else None
        if self.log.interrupted and situation.is_clock_trusted:
            self._settle_interrupted(server_ns // MS)
        if self.streams or situation.live_streams:
            now_ns = self._box.clock.now_ns()
            situation.live_streams = frozenset(
                stream for stream, receiver in self.streams.items() if self._is_live(receiver, server_ns, now_ns)
            )

    def _settle_interrupted(self, now_ms: int) -> None:
        """What a power cut interrupted goes on at the wall clock's offset, or is told as unfinished."""
        interrupted, self.log.interrupted = self.log.interrupted, {}
        for (entry_id, start_ms), heard_ms in interrupted.items():
            if now_ms < start_ms and not entry_id.startswith("alert:"):  # the clock fell back while the power was off
                self.past.heard((entry_id, start_ms), start_ms + heard_ms, is_over=True)
            if entry_id.startswith("alert:"):
                self.ledger.carried[entry_id, start_ms] = heard_ms  # the alert set says whether it goes on
                continue
            segment = segment_at(self.plan, now_ms)
            is_on = segment is not None and (segment.entry_id, segment.start_ms) == (entry_id, start_ms)
            match return_of(segment.end_ms if segment is not None and is_on else None, now_ms, self.boots):
                case Return.RESUME:
                    self.ledger.carried[entry_id, start_ms] = heard_ms
                    continue
                case Return.PARTIAL:
                    self.situation.given_up |= {(entry_id, start_ms)}
            self._report(
                wire.ReportKind.FINISHED,
                entry_id,
                start_ms,
                now_ms,
                heard_ms=heard_ms,
                reason=Why.POWER_LOST.value,
                closes=(entry_id, start_ms),
            )

    @staticmethod
    def _is_live(receiver: StreamReceiver, server_ns: int, device_ns: int) -> bool:
        if receiver.lease_ms * MS <= server_ns:
            return False
        arrived_ns = receiver.last_arrival_ns
        is_recent = arrived_ns is not None and device_ns - arrived_ns < STREAM_DEAD_NS
        return is_recent or receiver.has_sound_from(server_ns)

    def _add_own(self, chunk: Chunk, first: int) -> None:
        """What a technician ordered, which gives way to everything. `first`: the chunk's first sample on the card."""
        own = self._own
        if own is None or chunk.tag is not None or chunk.why not in OWN_SOUNDS_IN:
            return
        chunk.pcm = own.read(first, chunk.samples)
        if own.is_over(first):
            self._own = None

    def _begin(self, chunk: Chunk) -> None:
        """Remember that an entry has begun, so that the limit of its lateness no longer holds."""
        tag = chunk.tag
        if (
            chunk.kind is not Sounding.SOUND
            or tag is None
            or not tag.is_limited
            or tag.entry_id in self.situation.begun
        ):
            return
        self.situation.begun[tag.entry_id] = None
        while len(self.situation.begun) > KEEP_BEGUN:
            del self.situation.begun[next(iter(self.situation.begun))]

    def _played(self, piece: Played) -> None:
        self.ledger.played(piece)
        account = self.ledger.current
        if account is not None and account.is_started:
            faultpoint(Point.SOUNDING)
            noted = self._noted_ms
            if noted is None or noted[0] != account.tag.key:
                self._noted_ms = (account.tag.key, account.untold_ms)
            elif account.untold_ms - noted[1] >= NOTE_HEARD_S * 1000:
                self._noted_ms = (account.tag.key, account.untold_ms)
                self.log.note_heard(*self._noted_ms)
                self._journal.set()
        chunk, tag = piece.chunk, piece.chunk.tag
        self._begin(chunk)
        is_round_over = self.alarms.played(chunk)
        if is_round_over is None:
            return
        self._note_round(is_round_over)
        end_ns = chunk.server_ns + chunk.samples * SECOND // SAMPLE_RATE_HZ
        if tag is not None and tag.klass is not BulletinClass.EMERGENCY and piece.is_heard:
            limits = self.situation.state().limits
            self.situation.heard = count_heard(limits, self.situation.heard, chunk.server_ns // MS, end_ns // MS)
        elif self.situation.heard is not None and chunk.server_ns:
            self.situation.heard = replace(self.situation.heard, at_ms=end_ns // MS)

    def _note_round(self, is_over: bool) -> None:
        if is_over:
            self._status_due = self._is_memory_due = True
            self._journal.set()

    def _tick_without_output(self) -> float:
        """The output that has no samples: a dry card's durations, or nothing at all; how long it may sleep."""
        self._notice_jump()
        device_ns = self._box.clock.now_ns()
        if not self.clock.is_known:
            if self._dry is not None:
                self._dry.stop()
            return 0.5
        now_ns = self.clock.server_ns(device_ns)
        self.alarms.watch(now_ns, self._box.clock.crystal_ns())
        self._refresh_situation(now_ns, device_ns)
        for receiver in self.streams.values():
            receiver.forget_before(now_ns)
        if self._dry is not None:
            for piece in self._dry.catch_up(
                self.situation, self.stock.is_fit, self._box.clock.crystal_ns(), now_ns, JUMP_NS
            ):
                self._played(piece)
                if self._box.witness is not None:
                    self._box.witness.sounded(piece)
        else:
            self._pass_in_silence(now_ns)
        self._note_round(self.alarms.advance(now_ns // MS))
        change_ms = next_change_ms(self.situation, now_ns // MS)
        is_held = self.situation.held is not None or self.situation.muted is not None  # what ends by no instant
        longest_s = 1.0 if self.streams or is_held else self._kit.pace.nap_s
        return longest_s if change_ms is None else min(longest_s, max(0.001, change_ms / 1000 - now_ns / SECOND))

    def _pass_in_silence(self, now_ns: int) -> None:
        """A node that verifies and decides but has no output: it says so, and never claims to have been heard."""
        low_ns = self._silent_until_ns or now_ns
        for stretch in stretches(self.situation, low_ns, now_ns):
            samples = (stretch.end_ns - stretch.start_ns) * SAMPLE_RATE_HZ // SECOND
            chunk = Chunk(samples, stretch.start_ns, Sounding.SILENCE, stretch.decision.why, stretch.tag)
            self.ledger.played(Played(chunk))
            if self.ledger.current is not None:
                self.ledger.current.trouble = self.ledger.current.trouble or Trouble.NO_OUTPUT.value
        self._silent_until_ns = max(now_ns, low_ns)

    # -- what goes up -------------------------------------------------------------------------------------------------

    def _write(self, line: Line) -> None:
        self.lines.append(line)
        self._status_due = True
        if line.kind is wire.ReportKind.STARTED:
            if line.tag.alert_id is not None:
                self.alarms.book.started(line.tag.alert_id, line.at_ms)
            elif line.tag.is_limited:
                self._memory.begun = [*self._memory.begun[-99:], line.tag.entry_id]
                self._is_memory_due = True
        trim_ms = self.situation.config.delay_trim_ms if self.situation.config is not None else 0
        late_ms, because = None, line.reason
        if line.tag.alert_id is None:
            is_start = line.kind is wire.ReportKind.STARTED
            self.past.heard(line.tag.key, line.at_ms, is_over=not is_start)
            if is_start:
                account = self.ledger.current
                trouble = account.trouble if account is not None else None
                late_ms, because = lateness(line.tag.start_ms, line.at_ms, trouble, self.marks)
                if because is None and not self.clock.is_confirmed:
                    because = Because.CLOCK_UNCONFIRMED
        self._report(
            line.kind,
            line.tag.entry_id,
            line.tag.start_ms,
            max(0, line.at_ms + trim_ms),
            heard_ms=line.heard_ms,
            source=line.tag.source,
            asset=line.tag.asset,
            stream=line.tag.stream,
            underruns=line.underruns,
            level_dbfs=line.level_dbfs,
            late_ms=late_ms,
            reason=because,
            opens=line.tag.key if line.kind is wire.ReportKind.STARTED else None,
            closes=line.tag.key if line.kind is not wire.ReportKind.STARTED else None,
        )

    def _report(
        self,
        kind: wire.ReportKind,
        entry_id: str,
        start_ms: int,
        at_ms: int,
        *,
        opens: Key | None = None,
        closes: Key | None = None,
        **facts: Any,
    ) -> None:
        self._sequence += 1
        device_ns = self._box.clock.now_ns()
        body = wire.ReportBody(
            boot_id=self.boot_id,
            sequence=self._sequence,
            kind=kind,
            entry_id=entry_id,
            segment_start_ms=start_ms,
            at_ms=at_ms,
            uncertainty_ms=round(self.clock.uncertainty_ms(device_ns), 2),
            **facts,
        )
        now_ns = self.clock.server_ns(device_ns) if self.clock.is_known else device_ns

        def seal(line: int | None, previous: str | None) -> bytes:
            told = body.model_copy(update={"line": line, "previous": previous})
            return self._key.seal_report(self.node_id, told, now_ns // MS)

        self.log.add(self.boot_id, self._sequence, seal, opens=opens, closes=closes)
        self._journal.set()

    async def _keep_journal(self) -> None:
        while True:
            await self._journal.wait()
            self._journal.clear()
            if self._is_memory_due:
                await self._save()
            await self.log.store()
            await self._store_past()
            self._send_reports()

    async def _store_past(self) -> None:
        lines = self.past.take_unwritten()
        if not lines:
            return
        disk, is_long = self._box.disk, self.past.is_long
        whole = self.past.dump() if is_long else b""
        try:
            await self._flash(lambda: disk.replace(PAST_FILE, whole) if is_long else disk.append(PAST_FILE, lines))
        except OSError:
            self.gate.count("disk_full")  # the log above told it, and the next line tells it again

    def _send_reports(self) -> None:
        topic = str(NodeReport(self.node_id))
        self.log.send_due(self._kit.true.now_ns() / 1e9, lambda raw: self.link.publish(topic, raw, qos=NodeReport.qos))

    def _say_status(self) -> None:
        self._status_due = False
        self._status_sent_s = self._kit.true.now_ns() / 1e9
        device_ns = self._box.clock.now_ns()
        sounding = self.ledger.sounding
        disk = self._box.disk
        is_known = self.clock.is_known
        missing = self.assets.missing
        body = wire.StatusBody(
            link=wire.Link.ONLINE,
            boot_id=self.boot_id,
            sent_ms=self.clock.server_ns(device_ns) // MS if is_known else 0,
            plan_sha256=self.plan.sha256 if self.plan is not None else None,
            plan_order=self.plan.order if self.plan is not None else (0, 0),
            highest=self.gate.highest(),
            clock=wire.ClockQuality(
                source=self.clock.source(device_ns),
                uncertainty_ms=round(self.clock.uncertainty_ms(device_ns), 3),
                offset_ms=round(self.clock.offset_ns(device_ns) / MS, 3) if is_known else 0.0,
            ),
            sounding=sounding.entry_id if sounding is not None else None,
            stream=sounding.stream if sounding is not None else None,
            audio=self._audio(),
            alerts=self.alarms.book.progress(
                sounding.alert_id if sounding is not None else None, has_output=self._box.has_output or self._box.is_dry
            ),
            stop_all=self.situation.alerts.stop_all,
            ready=len(self.situation.ready_assets),
            missing=missing[:200],
            health=(
                *(fault.value for fault in self.machine().faults),
                *(f"phrase_broken:{code}" for code in self._box.phrases.broken),
            ),
            due=self._due_news(),
            refusals=dict(self.gate.refusals),
            rl_ver=self.gate.rl_version or None,
            keys_until_ms=self.gate.keys_until_ms(),
            is_resyncing=self.gate.is_resyncing or None,
            firmware=FIRMWARE,
            free_bytes=0 if disk.is_full else max(0, disk.capacity_bytes - self.assets.held_bytes()),
            anchor=self.anchors.next(),
        )
        self.link.publish(str(NodeStatus(self.node_id)), body.encode(), qos=NodeStatus.qos, retain=True)

    def machine(self) -> Machine:
        """The node's state: link, clock, audio, health."""
        device_ns = self._box.clock.now_ns()
        now_ms = self._now_ms()
        account = self.ledger.current
        refusals = self.gate.refusals
        return machine(
            Signs(
                is_up=self.link.is_up,
                is_connecting=self._kit.true.now_ns() / 1e9 - self._up_s < CONNECTING_S,
                clock=self.clock.source(device_ns),
                uncertainty_ms=self.clock.uncertainty_ms(device_ns),
                is_clock_confirmed=self.clock.is_confirmed,
                is_clock_contradicted=self.clock.is_contradicted(device_ns),
                audio=self._audio(),
                is_safe_mode=self.boots.is_safe_mode(device_ns),
                is_power_low=self._box.is_power_low(),
                has_plan=self.plan is not None,
                is_plan_over=self.plan is not None and now_ms is not None and now_ms >= self.plan.valid_until_ms,
                rotten=self.assets.rotten,
                due_missing=len(self.assets.missing_within(3_600_000)),
                unplayable=len(set(self.assets.ready) - self.situation.ready_assets),
                is_storage_full=self._box.disk.is_full,
                is_quota_full=self.assets.is_quota_full,
                slots_lost=self._slots.lost,
                is_resyncing=self.gate.is_resyncing,
                log_damaged=self.log.damaged,
                log_dropped=self.log.dropped,
                is_horn_silent=account is not None and bool(account.mute_samples),
                forged=refusals["signature"] + refusals["garbage"],
                phrases_broken=len(self._box.phrases.broken),
            )
        )

    def _audio(self) -> wire.AudioState:
        tag = self.ledger.sounding
        if tag is None:
            return wire.AudioState.LOCAL if self._own is not None else wire.AudioState.IDLE
        if tag.alert_id is not None:
            return wire.AudioState.EMERGENCY
        return wire.AudioState.SCHEDULED if tag.stream is None else wire.AudioState.LIVE

    def _due_news(self) -> tuple[wire.ItemReadiness, ...] | None:
        """The coming items if they are not as they were told lately: they weigh more than all the rest of a status."""
        due, told = self._due(), self._due_told
        if told is not None and told[0] == due and self._status_sent_s - told[1] < TELL_DUE_S:
            return None
        self._due_told = (due, self._status_sent_s)
        return due

    def _due(self) -> tuple[wire.ItemReadiness, ...]:
        """The coming recorded items, and whether what they need is here."""
        now_ms = self._now_ms()
        if self.plan is None or now_ms is None:
            return ()
        ready = self.situation.ready_assets
        coming = (segment for segment in self.plan.segments if segment.start_ms >= now_ms and segment.asset is not None)
        return tuple(
            _readiness(segment.entry_id, segment.start_ms, segment.asset in ready)
            for segment in itertools.islice(coming, MOST_DUE)
        )

    def _is_busy(self, now_ms: int | None, change_ms: int | None) -> bool:
        """Whether anything is going on or about to."""
        if self.streams or self.ledger.current is not None or self.log.waiting:
            return True
        if now_ms is None or self.situation.alerts.alerts:
            return True
        return change_ms is not None and change_ms - now_ms < PREPARE_AHEAD_MS

    def _house_s(self) -> float:
        """How long nobody needs to look around: what sounds next is prepared before it does."""
        now_ms = self._now_ms()
        change_ms = None if now_ms is None else next_change_ms(self.situation, now_ms)
        pace = self._kit.pace
        longest_s = pace.busy_house_s if self._is_busy(now_ms, change_ms) else pace.idle_house_s
        if self.assets.missing:
            longest_s = min(longest_s, max(pace.busy_house_s, self.assets.wait_s()))
        if change_ms is None or now_ms is None:
            return longest_s
        if change_ms - now_ms < PREPARE_AHEAD_MS:  # prepared already; what follows closely on it may not be
            return min(longest_s, (change_ms - now_ms) / 1000 + 1.0)
        return min(longest_s, (change_ms - now_ms - PREPARE_AHEAD_MS) / 1000 + 2.0)

    async def _keep_house(self) -> None:
        while True:
            now_s = self._kit.true.now_ns() / 1e9
            if self.link.is_up:
                self._up_s = now_s
                interval_s = self.situation.config.status_interval_s if self.situation.config is not None else 30
                since_s = now_s - self._status_sent_s
                if not self._owes_answer and (since_s >= interval_s or (self._status_due and since_s >= 2.0)):
                    self._say_status()
                self._send_reports()
            self._listen()
            if self.assets.wait_s() <= 0:
                self.stock.call()
            await self._prepare()
            if self.alarms.is_waiting:
                self._inbox.set()
            if self.ledger.sounding is not None and now_s - self._heard_stored_s >= REMEMBER_HEARD_S:
                self._heard_stored_s = now_s
                self._is_memory_due = True
                self._journal.set()
            if self.clock.exchanges >= BURST and now_s - self._remembered_s >= REMEMBER_CLOCK_S:
                is_first, self._remembered_s = not self._remembered_s, now_s
                self._memory.clock = self.clock.remember(self._box.clock.now_ns())
                await self._save()
                if is_first:
                    await self._save()  # in both slots: a node that loses one still knows the time
            elif self._is_unsaved and not self._box.is_power_low():
                await self._save()
            if self.log.is_unwritten:
                self._journal.set()
            await sleep_or(self._wake_house, self._chance.uniform(0.8, 1.0) * self._house_s(), self._kit.true)
