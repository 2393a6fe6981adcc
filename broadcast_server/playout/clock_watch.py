"""The server's own clock, watched: while it is in doubt nobody is told the time and nothing but emergencies is signed.

Witnesses: the monotonic clock (a step of the wall clock against it), what was written down before this start, the
database server's clock, other processes, and the nodes' own holdover clocks as a quorum. The kernel's word that it is
synchronised, an independent database and the nodes may vouch for a step; otherwise the step must go back, or the
operator must say that the clock is right.

A maintainer must not break: (1) doubt begins at the first sign and ends only after `AGREE_S` without any; (2) the whole
process runs on a `SteadyClock`, so a relay, a lease or an emergency's expiry does not move while the doubt lasts; (3)
stream heads and alert sets are signed all the same: what sounds goes on, and a warning is never held back by a clock;
(4) entering and leaving doubt are audit rows, and `status` is what people are shown.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from broadcast_server.domain.clock import to_ms
from broadcast_server.domain.errors import BroadcastError, Refused, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.playout import wire
from broadcast_server.signer.port import Signer, SignRequest
from broadcast_server.store import audit, clocks, facts
from broadcast_server.store.session import Session, Store
from broadcast_server.supervise import SteadyClock

log = get_logger()

TOLERANCE_S: Final = 2.0
AGREE_S: Final = 60.0
LOOK_S: Final = 1.0
STORE_LOOK_S: Final = 2.0
BEACON_S: Final = 4.0
BEACON_SLACK_S: Final = BEACON_S + STORE_LOOK_S + 1.0
"""How old a fresh beacon may be when it is read."""
PEER_FRESH_S: Final = 30.0
NODES_AT_LEAST: Final = 3
NODE_FRESH_S: Final = 180.0
READING_S: Final = 15.0
NO_QUEUE_S: Final = 60.0
"""No message waits so long on its way."""
NODES_REMEMBERED: Final = 20_000
FORGET_PROCESS: Final = timedelta(days=1)


class Doubt(StrEnum):
    """What speaks against the clock."""

    STEPPED = "clock_stepped"
    BEHIND_STORE = "clock_behind_store"
    DATABASE = "clock_not_databases"
    PROCESSES = "clock_not_other_processes"
    NODES = "clock_not_nodes"


@dataclass(slots=True)
class _NodeView:
    """Two readings of a node, node minus server in seconds, `READING_S` apart at least; when the last came (monotonic).

    A message that waited in a queue makes its node look slow. So of the readings of one stretch the least slow counts,
    and a node is slow only when two stretches say the same; ahead of us, or behind by more than any queue holds, no
    message can look.
    """

    before_s: float | None = None
    ahead_s: float = 0.0
    slack_s: float = 0.0
    since_s: float = -1e9
    at_s: float = -1e9
    offset_ns: int | None = None
    """What it adds to its device's clock, as its last status said."""

    def take(self, ahead_s: float, slack_s: float, now_s: float) -> None:
        """One more reading."""
        if now_s - self.since_s < READING_S:
            self.ahead_s = max(self.ahead_s, ahead_s)
        else:
            self.before_s = self.ahead_s if self.at_s > -1e8 else None
            self.ahead_s, self.since_s = ahead_s, now_s
        self.slack_s, self.at_s = slack_s, now_s

    def told_s(self) -> float:
        """How far it is surely ahead of us (below 0: behind); 0 within what it may be wrong itself."""
        beyond_s = TOLERANCE_S + self.slack_s
        if self.ahead_s > beyond_s or self.ahead_s < -NO_QUEUE_S - beyond_s:
            return self.ahead_s
        is_twice = self.before_s is not None and abs(self.before_s - self.ahead_s) <= TOLERANCE_S
        return self.ahead_s if is_twice and self.ahead_s < -beyond_s else 0.0


@dataclass(frozen=True, slots=True)
class _Peer:
    """Another process: its last beacon, how far it is ahead (0: it agrees, None: not known yet), when it was new."""

    at_ms: int
    ahead_s: float | None
    heard_s: float


@dataclass(frozen=True, slots=True)
class ClockStatus:
    """How the clock is judged now."""

    is_trusted: bool
    doubts: tuple[Doubt, ...]
    since: datetime
    step_s: float
    """The machine's clock minus the one this process runs on."""
    kernel_synchronised: bool | None
    nodes_heard: int


class ClockWatch:
    """One per process of the server."""

    def __init__(
        self,
        *,
        process: str,
        host: str,
        store: Store,
        clock: SteadyClock,
        kernel: Callable[[], bool | None],
        is_database_elsewhere: bool,
    ) -> None:
        """`process`: unique per start. `is_database_elsewhere`: whether its clock is not this machine's own."""
        self._process, self._host, self._store, self._clock, self._kernel = process, host, store, clock, kernel
        self._is_database_elsewhere = is_database_elsewhere
        self._standing: dict[Doubt, float] = {}
        """Doubts with evidence now, and by how many seconds the witness differs."""
        self._overruled: set[Doubt] = set()
        self._is_trusted = True
        self._since = clock.now()
        self._evidence_s = clock.monotonic()
        self._vouched_s: float | None = None
        self._floor: datetime | None = None
        self._has_floor = False
        self._word: str | None = None
        self._nodes: OrderedDict[str, _NodeView] = OrderedDict()
        self._peers: dict[str, _Peer] = {}
        self._database_s: float | None = None
        self._looked_s = self._told_s = -1e9
        self._must_tell = True
        self._untold: list[tuple[str, dict[str, Any]]] = []

    # -- what others ask

    @property
    def is_trusted(self) -> bool:
        """Whether time may be told and plans may be signed. Looks at the step itself: it may be a second old."""
        if self._is_trusted and abs(self._clock.step_s()) > TOLERANCE_S:
            self._judge()
        return self._is_trusted

    def check(self) -> None:
        """Raises `Unavailable("clock_doubtful")` while in doubt."""
        if not self.is_trusted:
            raise Unavailable("clock_doubtful", doubts=[doubt.value for doubt in self._standing])

    def status(self) -> ClockStatus:
        """How it is judged now."""
        return ClockStatus(
            is_trusted=self._is_trusted,
            doubts=tuple(sorted(self._standing)),
            since=self._since,
            step_s=round(self._clock.step_s(), 3),
            kernel_synchronised=self._kernel(),
            nodes_heard=len(self._fresh_nodes()),
        )

    # -- what nodes say

    def heard_status(
        self, node_id: str, sent_ms: int, uncertainty_ms: float, offset_ms: float, arrived: datetime, *, retained: bool
    ) -> None:
        """A node's status: what it takes for the server's time. `sent_ms` 0: it does not know."""
        view = self._view(node_id)
        view.offset_ns = round(offset_ms * 1e6) if sent_ms else None
        if retained or not sent_ms:
            return
        view.take((sent_ms - to_ms(arrived)) / 1000, uncertainty_ms / 1000, self._clock.monotonic())

    def heard_question(self, node_id: str, device_ns: int, arrived: datetime) -> None:
        """A time question: the device's clock and what the node adds to it are its belief, before we answer."""
        view = self._view(node_id)
        if view.offset_ns is not None:
            ahead_s = (device_ns + view.offset_ns) / 1e9 - to_ms(arrived) / 1000
            view.take(ahead_s, view.slack_s, self._clock.monotonic())

    def _view(self, node_id: str) -> _NodeView:
        view = self._nodes.get(node_id)
        if view is None:
            while len(self._nodes) >= NODES_REMEMBERED:
                self._nodes.popitem(last=False)  # the one that has been silent longest
            view = self._nodes[node_id] = _NodeView()
        return view

    def _fresh_nodes(self) -> list[_NodeView]:
        now_s = self._clock.monotonic()
        return [view for view in self._nodes.values() if now_s - view.at_s <= NODE_FRESH_S]

    def _nodes_ahead_s(self) -> float | None:
        """By how much most nodes say the time is ahead of ours (0: they agree); None without a quorum."""
        fresh = self._fresh_nodes()
        if len(fresh) < NODES_AT_LEAST:
            return None
        told = [ahead_s for view in fresh if (ahead_s := view.told_s())]
        if not told:
            return 0.0
        # A wrong clock is wrong by the same for everybody; a slow crowd is not.
        middle_s = statistics.median(told)
        agreeing = sum(abs(view.told_s() - middle_s) <= TOLERANCE_S + view.slack_s for view in fresh if view.told_s())
        return middle_s if 2 * agreeing > len(fresh) else 0.0

    # -- the watch

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await self._clock.sleep(LOOK_S)

    async def look(self) -> None:
        """Weigh the witnesses once; every other time, also what stands in the store."""
        now_s = self._clock.monotonic()
        if now_s - self._looked_s >= STORE_LOOK_S:
            self._looked_s = now_s
            try:
                await self._look_at_store()
            except Unavailable as away:
                log.warning("clock.store_away", code=away.code)
        self._judge()
        if self._must_tell or self._untold or now_s - self._told_s >= BEACON_S:
            try:
                await self._tell()
            except BroadcastError as away:
                log.warning("clock.not_told", code=away.code)

    async def _look_at_store(self) -> None:
        def read(session: Session) -> tuple[datetime | None, datetime | None, dict[str, Any], dict[str, Any] | None]:
            floor = None if self._has_floor else clocks.newest_instant(session)
            word = facts.find(session, facts.CLOCK_TRUST)
            return floor, clocks.database_now(session), clocks.beacons(session), word

        before_s = self._clock.monotonic()
        floor, database, beacons, word = await self._store.read(read)
        now, took_s = self._clock.now(), self._clock.monotonic() - before_s
        if not self._has_floor:
            self._floor, self._has_floor = floor, True
            self._word = None if word is None else word["word"]
        elif word is not None and word["word"] != self._word:
            self._word = word["word"]
            self._take_the_operators_word()
            return
        if database is not None:
            apart_s = (database - now).total_seconds() + took_s / 2
            self._database_s = apart_s if abs(apart_s) > TOLERANCE_S + took_s / 2 else 0.0
        self._compare(beacons, to_ms(now))

    def _compare(self, beacons: Mapping[str, Mapping[str, Any]], now_ms: int) -> None:
        peers: dict[str, _Peer] = {}
        now_s = self._clock.monotonic()
        for process, told in beacons.items():
            if process == self._process:
                continue
            known = self._peers.get(process)
            at_ms = int(told["at_ms"])
            if known is None:
                peers[process] = _Peer(at_ms, None, now_s)  # nobody knows how old this one is
            elif known.at_ms == at_ms:
                if now_s - known.heard_s < PEER_FRESH_S:
                    peers[process] = known
            else:
                ahead_s = (at_ms - now_ms) / 1000
                is_apart = ahead_s > TOLERANCE_S or ahead_s < -(TOLERANCE_S + BEACON_SLACK_S)
                peers[process] = _Peer(at_ms, ahead_s if is_apart else 0.0, now_s)
        self._peers = peers

    def _take_the_operators_word(self) -> None:
        step_s = self._clock.step_s()
        self._clock.follow()
        self._shift(step_s)
        self._floor = None
        self._judge_now()
        self._overruled = set(self._standing)
        self._standing.clear()
        self._enter(is_trusted=True, how="operator")

    def _shift(self, by_s: float) -> None:
        """Our clock moved: readings are against it."""
        for view in self._nodes.values():
            view.ahead_s -= by_s
            view.before_s = None if view.before_s is None else view.before_s - by_s
        if self._database_s is not None:
            self._database_s = None
        self._peers.clear()

    def _judge_now(self) -> None:
        """What speaks against the clock now."""
        standing: dict[Doubt, float] = {}
        step_s = self._clock.step_s()
        if abs(step_s) > TOLERANCE_S:
            standing[Doubt.STEPPED] = step_s
        if self._floor is not None:
            behind_s = (self._floor - self._clock.now()).total_seconds()
            if behind_s > TOLERANCE_S:
                standing[Doubt.BEHIND_STORE] = behind_s
            else:
                self._floor = None
        if self._database_s:
            standing[Doubt.DATABASE] = self._database_s
        told = [peer.ahead_s for peer in self._peers.values() if peer.ahead_s is not None]
        apart = [ahead_s for ahead_s in told if ahead_s]
        if apart and 2 * len(apart) >= len(told) + 1:  # we are one of them
            standing[Doubt.PROCESSES] = statistics.median(apart)
        ahead_s = self._nodes_ahead_s()
        if ahead_s:
            standing[Doubt.NODES] = ahead_s
        self._overruled &= standing.keys()
        self._standing = {doubt: by_s for doubt, by_s in standing.items() if doubt not in self._overruled}

    def _judge(self) -> None:
        before = self._standing
        self._judge_now()
        now_s = self._clock.monotonic()
        self._must_tell |= before.keys() != self._standing.keys()
        if self._standing:
            self._evidence_s = now_s
            if self._is_trusted:
                self._enter(is_trusted=False, how="")
            self._weigh_step(now_s)
        elif not self._is_trusted and now_s - self._evidence_s >= AGREE_S:
            self._enter(is_trusted=True, how="agrees_again")

    def _weigh_step(self, now_s: float) -> None:
        """A step that an independent witness has stood by for a minute is no error: the clock was wrong before it."""
        step_s = self._standing.get(Doubt.STEPPED)
        others = [by_s for doubt, by_s in self._standing.items() if doubt is not Doubt.STEPPED]
        if step_s is None or any(abs(by_s - step_s) > TOLERANCE_S for by_s in others) or not self._is_vouched(step_s):
            self._vouched_s = None
            return
        if self._vouched_s is None:
            self._vouched_s = now_s
        elif now_s - self._vouched_s >= AGREE_S:
            self._clock.follow()
            self._shift(step_s)
            self._standing.clear()
            self._enter(is_trusted=True, how="step_vouched_for")

    def _is_vouched(self, step_s: float) -> bool:
        ahead_s = self._nodes_ahead_s()
        if ahead_s is not None:
            return abs(ahead_s - step_s) <= TOLERANCE_S
        if self._is_database_elsewhere and self._database_s is not None:
            return abs(self._database_s - step_s) <= TOLERANCE_S
        return bool(self._kernel())

    def _enter(self, *, is_trusted: bool, how: str) -> None:
        self._is_trusted, self._since, self._vouched_s, self._must_tell = is_trusted, self._clock.now(), None, True
        told = {"process": self._process, "host": self._host, "step_s": round(self._clock.step_s(), 3)}
        if is_trusted:
            log.warning("clock.trusted_again", how=how, **told)
            self._untold.append(("clock.trusted_again", {**told, "how": how}))
        else:
            doubts = {doubt.value: round(by_s, 3) for doubt, by_s in self._standing.items()}
            log.error("clock.doubtful", doubts=doubts, **told)
            self._untold.append(("clock.doubtful", {**told, "doubts": doubts}))

    async def _tell(self) -> None:
        now, status, untold = self._clock.now(), self.status(), list(self._untold)
        beacon = {
            "at_ms": to_ms(now),
            "floor_ms": to_ms(now) if status.is_trusted else None,
            "host": self._host,
            "is_trusted": status.is_trusted,
            "doubts": {doubt.value: round(by_s, 3) for doubt, by_s in self._standing.items()},
            "since_ms": to_ms(status.since),
            "step_s": status.step_s,
            "kernel_synchronised": status.kernel_synchronised,
            "nodes_heard": status.nodes_heard,
        }

        def write(session: Session) -> None:
            clocks.put_beacon(session, self._process, beacon, now=now)
            if status.is_trusted:
                clocks.drop_beacons(session, before=now - FORGET_PROCESS)
            for verb, detail in untold:
                audit.append(
                    session, now=now, actor="clock_watch", verb=verb, unit_id=None, subject="clock", detail=detail
                )

        await self._store.begin(write, ring=False)
        del self._untold[: len(untold)]
        self._must_tell, self._told_s = False, self._clock.monotonic()


class GuardedSigner:
    """A `Signer` that refuses while the clock is in doubt, but for stream heads and alert sets."""

    def __init__(self, signer: Signer, watch: ClockWatch) -> None:
        self._signer, self._watch = signer, watch

    async def sign_many(self, requests: Sequence[SignRequest]) -> list[bytes]:
        """See `Signer.sign_many`. Raises `Unavailable("clock_doubtful")`."""
        if any(request.kind not in wire.SIGNED_IN_DOUBT for request in requests):
            self._watch.check()
        return await self._signer.sign_many(requests)

    async def sign_each(self, requests: Sequence[SignRequest]) -> list[bytes | Refused]:
        """See `Signer.sign_each`. Raises `Unavailable("clock_doubtful")`."""
        if any(request.kind not in wire.SIGNED_IN_DOUBT for request in requests):
            self._watch.check()
        return await self._signer.sign_each(requests)

    def root_public(self) -> bytes:
        """The raw public root key that nodes are enrolled with."""
        return self._signer.root_public()

    async def statements_of(
        self, units: Sequence[str], *, issued_ms: int, epoch: int, sequence: int
    ) -> list[tuple[bytes, ...] | Refused]:
        """See `Signer.statements_of`. Raises `Unavailable("clock_doubtful")`."""
        self._watch.check()
        return await self._signer.statements_of(units, issued_ms=issued_ms, epoch=epoch, sequence=sequence)
