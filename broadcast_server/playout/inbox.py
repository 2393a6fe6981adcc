"""What nodes say, taken in: statuses coalesced, reports believed only when signed and stored before they are answered.

A maintainer must not break: (1) a report is acknowledged only after the commit that holds it; the node keeps it until
then, so dropping one under load loses nothing; (2) one commit per `Pace.flush_s` at most, however many nodes speak, and
it does not ring the doorbell: what nodes say changes no plan; (3) a time question is answered with the instant its
bytes arrived, stamped by the bus, and the instant the answer left; (4) what the database does not take is found by
halving, counted and left out: one node's nonsense costs nobody else a word.

Everything refused is counted by reason in `refused`; nothing a node sends can raise out of here.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import BroadcastError, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.mqtt.bus import Bus, Message
from broadcast_server.playout import wire
from broadcast_server.playout.anchoring import Anchoring
from broadcast_server.playout.clock_watch import ClockWatch
from broadcast_server.playout.pace import PRODUCTION, Pace
from broadcast_server.playout.twins import Twins
from broadcast_server.signer.port import Sealer
from broadcast_server.store import device_logs, devices, outbox, plans, reports
from broadcast_server.store.doorbell import Ear
from broadcast_server.store.reports import KnownNode
from broadcast_server.store.session import Session, Store
from broadcast_server.store.words import QuarantineReason

log = get_logger()

REPORTS_WAITING: Final = 20_000
QUESTIONS_WAITING: Final = 5_000
REPORTS_AT_ONCE: Final = 2_000
STATUSES_WAITING: Final = 200_000
STATUSES_AT_ONCE: Final = 5_000
STRANGERS_REMEMBERED: Final = 1_000
ACKS_IN_A_TURN: Final = 50
RELOAD_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Heard:
    """What one flush brought in, for those who act on it."""

    told: frozenset[tuple[str, str]]
    """`(entry, node)` about which new reports came."""
    nodes: frozenset[str]
    """Nodes that told their status."""
    highest: tuple[int, int]
    """The highest epoch and sequence any of these statuses named; `(0, 0)` if none did."""
    obeys: Mapping[str, wire.Obeys] = field(default_factory=dict)
    """What nodes say of emergencies and stop-alls."""


class Inbox:
    """One per process that has the `inbox` role."""

    def __init__(
        self,
        *,
        bus: Bus,
        store: Store,
        answers: Sealer,
        clock: Clock,
        chance: Chance,
        epoch: Callable[[], int],
        on_heard: Callable[[Heard], None],
        floors: Callable[[str], wire.Floors | None] = lambda _: None,
        watch: ClockWatch | None = None,
        anchoring: Anchoring | None = None,
        pace: Pace = PRODUCTION,
    ) -> None:
        """`answers`: signs what nodes are told. `epoch`: the leader's epoch, for what is signed. `floors`: what a node
        without memory is told (None: not known here yet). `on_heard` is called in the loop after each commit. `watch`:
        told what nodes believe of the time; while it doubts the clock nobody is told the time. `anchoring`: gives the
        audit log's anchor that goes out with the time, and is told of those that come back.
        """
        self._watch, self._anchoring = watch, anchoring
        self._bus, self._store, self._answers = bus, store, answers
        self._clock, self._chance = clock, chance
        self._epoch, self._on_heard, self._floors = epoch, on_heard, floors
        self._pace, self._news = pace, Ear(clock)
        self._links: dict[str, str] = {}
        """Each node's link as it was last told, to know news from routine."""
        self._known: dict[str, KnownNode] = {}
        self._strangers: set[str] = set()
        self._loaded_s = -RELOAD_S
        self._statuses: dict[str, wire.NodeWord] = {}
        self._reports: deque[wire.SignedReport] = deque(maxlen=REPORTS_WAITING)
        self._questions: asyncio.Queue[tuple[str, wire.TimeQuestion, datetime]] = asyncio.Queue(QUESTIONS_WAITING)
        self._twins = Twins()
        self.refused: Counter[str] = Counter()
        self.answered = 0
        bus.subscribe(wire.STATUSES, self._take_status)
        bus.subscribe(wire.REPORTS, self._take_report)
        bus.subscribe(wire.QUESTIONS, self._take_question)

    async def run(self) -> None:
        """Commit what came in, at most every `Pace.flush_s`, for ever."""
        while True:
            if self._pace.statuses_s:
                await self._news.wait(self._pace.statuses_s)
            await self._clock.sleep(self._pace.flush_s)
            await self.flush()

    async def answer(self) -> None:
        """Answer time questions as they come, for ever."""
        while True:
            node_id, question, arrived = await self._questions.get()
            if self._watch is not None:
                self._watch.heard_question(node_id, question.sent_ns, arrived)
            try:
                await self._tell_floors(node_id, question)
                if self._watch is not None:
                    self._watch.check()
                payload = await wire.time_answer(
                    self._answers,
                    node_id,
                    question,
                    arrived=arrived,
                    now=self._clock.now,
                    epoch=self._epoch(),
                    anchor=None if self._anchoring is None else self._anchoring.current,
                )
            except Unavailable as away:
                self.refused[away.code] += 1  # the node asks again
                continue
            self._bus.publish_nowait(wire.ack_topic(node_id), payload)
            self.answered += 1

    async def _tell_floors(self, node_id: str, question: wire.TimeQuestion) -> None:
        payload = await self.floors_for(node_id, question)
        if payload is not None:
            self._bus.publish_nowait(wire.ack_topic(node_id), payload)
            log.info("inbox.floors_told", node_id=node_id)

    async def floors_for(self, node_id: str, question: wire.TimeQuestion) -> bytes | None:
        """What a node that lost its memory is answered, whatever is thought of our clock; None if it did not ask, or
        nothing is known here.
        """
        floors = self._floors(node_id) if question.resync else None
        if floors is None:
            return None
        return await wire.floors_answer(
            self._answers, node_id, question, floors, now=self._clock.now(), epoch=self._epoch()
        )

    async def flush(self) -> None:
        """Commit what has come in so far and acknowledge it. While the store is away it is kept for the next time."""
        if not self._statuses and not self._reports:
            return
        try:
            await self._know_everybody()
        except Unavailable as away:
            log.warning("inbox.waits", code=away.code)
            return
        statuses = [self._statuses.pop(node) for node in list(self._statuses)[:STATUSES_AT_ONCE]]
        taken = [self._reports.popleft() for _ in range(min(len(self._reports), REPORTS_AT_ONCE))]
        words = [word for word in statuses if self._is_known(word.node_id)]
        believed = [report for signed in taken if (report := self._believe(signed)) is not None]
        if not words and not believed:
            return
        try:
            await self._silence_twins()
            kept_words, kept = await self._keep(words, believed)
        except Unavailable as away:
            log.warning("inbox.waits", code=away.code, statuses=len(words), reports=len(believed))
            self._put_back(words, taken)
            return
        try:
            await self._acknowledge(kept)
        except Unavailable as away:  # they are kept; the nodes send them again and are answered then
            log.warning("inbox.not_acknowledged", code=away.code, reports=len(kept))
        self._on_heard(
            Heard(
                told=frozenset((report.body.entry_id, report.node_id) for report in kept),
                nodes=frozenset(word.node_id for word in kept_words),
                highest=max((word.highest for word in kept_words), default=(0, 0)),
                obeys={word.node_id: obeys for word in kept_words if (obeys := word.obeys) is not None},
            )
        )

    async def _keep(
        self, words: list[wire.NodeWord], believed: list[wire.Report]
    ) -> tuple[list[wire.NodeWord], list[wire.Report]]:
        """Commit them, without those the database refuses; what was kept. Raises `Unavailable`: nothing is lost."""
        try:
            await self._commit(words, believed)
        except Unavailable:
            raise
        except BroadcastError as error:
            if len(words) + len(believed) == 1:
                self.refused[f"store_{error.code}"] += 1
                node_id = (words or believed)[0].node_id
                log.warning("inbox.not_kept", node_id=node_id, code=error.code)
                return [], []
            middle, half = len(words) // 2, len(believed) // 2
            if words and believed:
                middle, half = len(words), 0
            first = await self._keep(words[:middle], believed[:half])
            second = await self._keep(words[middle:], believed[half:])
            return first[0] + second[0], first[1] + second[1]
        return words, believed

    async def _commit(self, words: list[wire.NodeWord], believed: list[wire.Report]) -> None:
        now = self._clock.now()
        ids = [self._chance.new_id() for _ in words]
        follows = {word.node_id: follows for word in words if (follows := word.follows) is not None}
        done = {(report.node_id, order) for report in believed if (order := report.done_order) is not None}

        def write(session: Session) -> frozenset[str]:
            if words:
                reports.save_statuses(session, [word.row() for word in words], now=now, ids=ids)
                plans.acknowledge(session, follows, now=now)
            rows = [report.row(received_at=now) for report in believed]
            taken = device_logs.take(session, rows, now=now)
            reports.save_reports(session, taken.rows)
            outbox.acknowledge(session, done, now=now)
            return taken.silenced

        silenced = await self._store.begin(write, ring=False)
        if silenced:
            _alarm(silenced, QuarantineReason.LOG_FORK)
            await self._store.begin(lambda _: None)  # this changes plans: whoever makes them is rung

    async def _silence_twins(self) -> None:
        """Put nodes that speak from two places into quarantine. Raises `Unavailable`; then they are still named."""
        twins = self._twins.found
        if not twins:
            return
        now = self._clock.now()

        def write(session: Session) -> frozenset[str]:
            why = QuarantineReason.TWO_PLACES
            return frozenset(
                node_id
                for node_id in sorted(twins)
                if devices.quarantine(session, node_id, why, told_by="inbox", now=now)
            )

        silenced = await self._store.begin(write)
        self._twins.settle(twins)
        if silenced:
            _alarm(silenced, QuarantineReason.TWO_PLACES)

    def _put_back(self, words: list[wire.NodeWord], taken: list[wire.SignedReport]) -> None:
        for word in words:
            self._statuses.setdefault(word.node_id, word)  # what it said since is newer
        room = REPORTS_WAITING - len(self._reports)
        self.refused["report_queue_full"] += max(0, len(taken) - room)
        self._reports.extendleft(reversed(taken[: max(0, room)]))

    # -- the bus's side: plain functions, bounded, never raising

    def _take_status(self, message: Message) -> None:
        word = wire.read_status(message.topic, message.payload, self.refused)
        if word is None:
            return
        if len(self._statuses) >= STATUSES_WAITING and word.node_id not in self._statuses:
            self.refused["status_queue_full"] += 1  # it tells again
            return
        self._statuses[word.node_id] = word.after(self._statuses.get(word.node_id))
        if word.is_online and not message.retained:
            self._twins.heard(word.node_id, word.body.boot_id, self._clock.monotonic())
        if self._watch is not None and word.is_online:
            believed = word.believed_time
            self._watch.heard_status(word.node_id, *believed, message.arrived, retained=message.retained)
        if self._anchoring is not None and (claim := word.anchor) is not None:
            self._anchoring.heard(word.node_id, claim)
        link = word.body.link.value
        if self._links.get(word.node_id) != link:
            if len(self._links) >= STATUSES_WAITING:
                self._links.clear()  # names nobody knows; the next word of each is news again
            self._links[word.node_id] = link
            self._news.hear()

    def _take_report(self, message: Message) -> None:
        self.hear_report(message.topic, message.payload)

    def hear_report(self, topic: str, payload: bytes) -> None:
        """A report as a node sent it, however it came here; believed or not at the next flush."""
        signed = wire.read_report_topic(topic, payload, self.refused)
        if signed is not None:
            if len(self._reports) == REPORTS_WAITING:
                self.refused["report_queue_full"] += 1  # the oldest goes; its node sends it again
            self._reports.append(signed)
            self._news.hear()

    def _take_question(self, message: Message) -> None:
        asked = wire.read_question(message.topic, message.payload, self.refused)
        if asked is None:
            return
        if self._questions.full():
            self.refused["question_queue_full"] += 1
            return
        self._questions.put_nowait((asked[0], asked[1], message.arrived))

    # -- belief

    def _is_known(self, node_id: str) -> bool:
        if node_id in self._known:
            return True
        self.refused["unknown_node"] += 1
        return False

    def _believe(self, signed: wire.SignedReport) -> wire.Report | None:
        known = self._known.get(signed.node_id)
        if known is None:
            self.refused["unknown_node"] += 1
            return None
        return wire.believe_report(signed, known.public_key, self.refused)

    async def _know_everybody(self) -> None:
        """Read the register again when it is old, or when somebody speaks who was not asked after yet."""
        unknown = {*self._statuses, *(signed.node_id for signed in self._reports)} - self._known.keys()
        now_s = self._clock.monotonic()
        if now_s - self._loaded_s >= RELOAD_S:
            self._strangers.clear()
        elif not unknown - self._strangers or len(self._strangers) >= STRANGERS_REMEMBERED:
            return
        self._known = await self._store.read(reports.known_nodes)
        self._strangers |= unknown - self._known.keys()
        self._loaded_s = now_s

    async def _acknowledge(self, kept: list[wire.Report]) -> None:
        if self._watch is not None:
            self._watch.check()
        sent = 0
        for node_id, boots in wire.by_boot(kept).items():
            for boot_id, sequences in boots.items():
                for start in range(0, len(sequences), wire.ACK_SEQUENCES):
                    part = sequences[start : start + wire.ACK_SEQUENCES]
                    payload = await wire.report_ack(
                        self._answers, node_id, boot_id, part, now=self._clock.now(), epoch=self._epoch()
                    )
                    self._bus.publish_nowait(wire.ack_topic(node_id), payload)
                    sent += 1
                    if sent % ACKS_IN_A_TURN == 0:
                        await self._clock.sleep(0)  # a time question must not wait for a thousand signatures


def _alarm(node_ids: Iterable[str], why: QuarantineReason) -> None:
    for node_id in sorted(node_ids):
        log.error("node.quarantined", node_id=node_id, why=why.value)
