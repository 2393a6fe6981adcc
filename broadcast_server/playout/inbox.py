"""What nodes say, taken in: statuses coalesced, reports believed only when signed and stored before they are answered.

A maintainer must not break: (1) a report is acknowledged only after the commit that holds it; the node keeps it until
then, so dropping one under load loses nothing; (2) one commit per `FLUSH_S` at most, however many nodes speak; (3) a
time question is answered with the instant its bytes arrived, stamped by the bus, and the instant the answer left.

Everything refused is counted by reason in `refused`; nothing a node sends can raise out of here.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.logs import get_logger
from broadcast_server.mqtt.bus import Bus, Message
from broadcast_server.playout import wire
from broadcast_server.signer.port import Signer
from broadcast_server.store import plans, reports
from broadcast_server.store.reports import KnownNode
from broadcast_server.store.session import Store

log = get_logger()

FLUSH_S: Final = 0.2
REPORTS_WAITING: Final = 20_000
QUESTIONS_WAITING: Final = 5_000
REPORTS_AT_ONCE: Final = 2_000
RELOAD_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Heard:
    """What one flush brought in, for those who act on it."""

    entries: frozenset[str]
    """Entries about which new reports came."""
    nodes: frozenset[str]
    """Nodes that told their status."""
    highest: tuple[int, int]
    """The highest epoch and sequence any of these statuses named."""


class Inbox:
    """One per process that has the `inbox` role."""

    def __init__(
        self,
        *,
        bus: Bus,
        store: Store,
        signer: Signer,
        clock: Clock,
        chance: Chance,
        epoch: Callable[[], int],
        on_heard: Callable[[Heard], None],
    ) -> None:
        """`epoch`: the leader's epoch, for what is signed. `on_heard` is called in the loop after each commit."""
        self._bus, self._store, self._signer = bus, store, signer
        self._clock, self._chance = clock, chance
        self._epoch, self._on_heard = epoch, on_heard
        self._known: dict[str, KnownNode] = {}
        self._loaded_s = -RELOAD_S
        self._statuses: dict[str, wire.NodeWord] = {}
        self._reports: deque[wire.SignedReport] = deque(maxlen=REPORTS_WAITING)
        self._questions: asyncio.Queue[tuple[str, wire.TimeQuestion, datetime]] = asyncio.Queue(QUESTIONS_WAITING)
        self.refused: Counter[str] = Counter()
        self.answered = 0
        bus.subscribe(wire.STATUSES, self._take_status)
        bus.subscribe(wire.REPORTS, self._take_report)
        bus.subscribe(wire.QUESTIONS, self._take_question)

    async def run(self) -> None:
        """Commit what came in, at most every `FLUSH_S`, for ever."""
        while True:
            await self._clock.sleep(FLUSH_S)
            await self.flush()

    async def answer(self) -> None:
        """Answer time questions as they come, for ever."""
        while True:
            node_id, question, arrived = await self._questions.get()
            payload = await wire.time_answer(
                self._signer, node_id, question, arrived=arrived, now=self._clock.now, epoch=self._epoch()
            )
            self._bus.publish_nowait(wire.ack_topic(node_id), payload)
            self.answered += 1

    async def flush(self) -> None:
        """Commit what has come in so far and acknowledge it."""
        if not self._statuses and not self._reports:
            return
        await self._know_everybody()
        statuses, self._statuses = self._statuses, {}
        taken = [self._reports.popleft() for _ in range(min(len(self._reports), REPORTS_AT_ONCE))]
        words = {node: word for node, word in statuses.items() if self._is_known(node)}
        believed = [report for signed in taken if (report := self._believe(signed)) is not None]
        if not words and not believed:
            return
        now = self._clock.now()
        ids = [self._chance.new_id() for _ in words]

        def write(session: Any) -> None:
            reports.save_statuses(session, [word.row() for word in words.values()], now=now, ids=ids)
            plans.acknowledge(
                session, {node: word.plan_sha256 for node, word in words.items() if word.plan_sha256}, now=now
            )
            reports.save_reports(session, [report.row(received_at=now) for report in believed])

        await self._store.begin(write)
        await self._acknowledge(believed)
        self._on_heard(
            Heard(
                entries=frozenset(report.body.entry_id for report in believed),
                nodes=frozenset(words),
                highest=max((word.highest for word in words.values()), default=(0, 0)),
            )
        )

    # -- the bus's side: plain functions, bounded, never raising

    def _take_status(self, message: Message) -> None:
        word = wire.read_status(message.topic, message.payload, self.refused)
        if word is not None:
            self._statuses[word.node_id] = word

    def _take_report(self, message: Message) -> None:
        signed = wire.read_report_topic(message.topic, message.payload, self.refused)
        if signed is not None:
            if len(self._reports) == REPORTS_WAITING:
                self.refused["report_queue_full"] += 1  # the oldest goes; its node sends it again
            self._reports.append(signed)

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
        speaking = {*self._statuses, *(signed.node_id for signed in self._reports)}
        now_s = self._clock.monotonic()
        if speaking <= self._known.keys() and now_s - self._loaded_s < RELOAD_S:
            return
        self._known = await self._store.read(reports.known_nodes)
        self._loaded_s = now_s

    async def _acknowledge(self, believed: list[wire.Report]) -> None:
        for node_id, boots in wire.by_boot(believed).items():
            for boot_id, sequences in boots.items():
                payload = await wire.report_ack(
                    self._signer, node_id, boot_id, sequences, now=self._clock.now(), epoch=self._epoch()
                )
                self._bus.publish_nowait(wire.ack_topic(node_id), payload)
