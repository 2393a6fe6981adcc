"""Keys behind checks: before anything is sealed, the rows are read again, and what has no ground in them is refused.

This is the signing service without its process: `service` puts a socket before it, simulation and tests use it as it
is. A maintainer must not break: (1) the decision rests on rows read here, never on what the request says of itself;
(2) what of consequence is signed (an emergency's content, a stop-all, an order) is in the audit chain, or while the
store is away in the journal, before the envelope leaves; (3) while the store is away only alerts that were good within
`REMEMBERED_S` are signed, and heads of streams that were, so that no warning and no voice breaks off; (4) one refused
request takes nothing from the others.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final

from broadcast_server.domain.clock import Clock, Window, to_ms
from broadcast_server.domain.errors import Refused, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.signer import checks
from broadcast_server.signer.books import Books, Line
from broadcast_server.signer.checks import AlertFacts, Fault, Fence
from broadcast_server.signer.ground import Ground
from broadcast_server.signer.limits import LIMITS, Buckets, Limits
from broadcast_server.signer.port import Signer, SignRequest
from broadcast_server.store import consents, emergencies, feeds, leases, live, outbox, places, schedules, sequences
from broadcast_server.store.journal import Journal
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import EmergencyRow
from broadcast_server.store.words import LiveState
from speaker_protocol.brief import decode_alert_set
from speaker_protocol.messages import AlertSetBody, OrderBody, StreamHeadBody, decode
from speaker_protocol.signing import EnvelopeRefused, Kind

log = get_logger()

SLICE: Final = 64
"""So many are sealed before others may go: about five milliseconds."""
REMEMBERED_S: Final = 300.0
STREAM_FRESH_S: Final = 5.0
STREAM_REMEMBERED_S: Final = 3_600.0
REFUSALS_TOLD_S: Final = 10.0
"""The same refusal of the same place is written once in so long, with how often it was."""
_KNOWN_LINES: Final = 10_000
_STREAMS: Final = 2_000
_AROUND: Final = timedelta(minutes=1)
"""A relay begins ahead of its entry and ends behind it, by lead, delay and tail."""
_GROUNDED: Final = frozenset({Kind.PLAN, Kind.CONFIG})


@dataclass(frozen=True, slots=True)
class _Decision:
    """What one look at the rows came to."""

    refusals: Mapping[int, Refused]
    lines: tuple[Line, ...]
    """What must be written down before the others are sealed."""


class CheckedSigner:
    """A `Signer` that believes nobody. `keys_for(path_of)` makes the holder of the keys.

    `machine`: the machine's own clock, where `clock` is one that steps never; `journal`: for when the store is away.
    """

    def __init__(
        self,
        keys_for: Callable[[Callable[[str], Sequence[str]]], Signer],
        *,
        store: Store,
        clock: Clock,
        machine: Clock | None = None,
        journal: Journal | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        self._store, self._clock, self._machine = store, clock, machine or clock
        self._books, self._limits, self._buckets = Books(store, clock, journal), limits, Buckets()
        self._ground, self._turn = Ground(), asyncio.Lock()
        self._paths: dict[str, tuple[str, ...]] = {}
        self._keys = keys_for(self._path_of)
        self._fence: Fence | None = None
        self._told: OrderedDict[str, None] = OrderedDict()
        """What was written down already: a set that is sent again is no news."""
        self._good_alerts: OrderedDict[tuple[str, str], tuple[bytes, float]] = OrderedDict()
        self._good_streams: OrderedDict[str, float] = OrderedDict()
        self._refused_s: dict[tuple[str, str], tuple[float, int]] = {}
        self.signed: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def root_public(self) -> bytes:
        """The raw public root key that nodes are enrolled with."""
        return self._keys.root_public()

    async def sign_many(self, requests: Sequence[SignRequest]) -> list[bytes]:
        """See `Signer.sign_many`."""
        return all_signed(await self.sign_each(requests))

    async def sign_each(self, requests: Sequence[SignRequest]) -> list[bytes | Refused]:
        """See `Signer.sign_each`. Raises `Unavailable` where the rows cannot be read or the books not be kept."""
        try:
            decision = await self._decide(requests)
        except Unavailable as away:
            decision = self._remember(requests, away)
        refusals = dict(decision.refusals)
        self._limit(requests, refusals)
        is_urgent = all(request.kind in checks.IN_ANY_DOUBT for request in requests)
        await self._books.note([*decision.lines, *self._refusal_lines(requests, refusals)], may_wait=is_urgent)
        self._told.update((_name(line), None) for line in decision.lines)
        while len(self._told) > _KNOWN_LINES:
            self._told.popitem(last=False)
        good = [index for index in range(len(requests)) if index not in refusals]
        outcomes: list[bytes | Refused] = [refusals.get(index, _UNDECIDED) for index in range(len(requests))]
        for start in range(0, len(good), SLICE):
            if start:
                await self._clock.sleep(0)  # an emergency need not wait for ten thousand plans
            part = good[start : start + SLICE]
            sealed = await self._seal([requests[index] for index in part])
            for index, envelope in zip(part, sealed, strict=True):
                outcomes[index] = envelope
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, bytes):
                self.signed[request.kind.name] += 1
            else:
                self.refused[outcome.code] += 1
        return outcomes

    async def _seal(self, requests: Sequence[SignRequest]) -> Sequence[bytes | Refused]:
        try:
            return await self._keys.sign_many(requests)
        except Refused:
            return await self._keys.sign_each(requests)  # no key may speak for one of them

    async def statements_of(
        self, units: Sequence[str], *, issued_ms: int, epoch: int, sequence: int
    ) -> list[tuple[bytes, ...] | Refused]:
        """See `Signer.statements_of`. A unit that is not in the rows is refused. Raises `Unavailable`."""
        asked = [SignRequest(Kind.KEYS, unit, unit, issued_ms, issued_ms, epoch, sequence, b"") for unit in units]
        clocks = self._clocks()

        def look(session: Session) -> dict[int, Refused]:
            known, fence = places.units(session, units), _fence(session)
            faults = (
                (index, Fault.PLACE_DIFFERS if one.unit not in known else checks.frame_fault(one, fence, clocks))
                for index, one in enumerate(asked)
            )
            return {
                index: Refused(fault, kind=Kind.KEYS.name, epoch=fence.epoch)
                for index, fault in faults
                if fault is not None
            }

        refusals = await self._store.read(look)
        self._limit(asked, refusals)
        await self._books.note(self._refusal_lines(asked, refusals), may_wait=False)
        self.refused.update(refused.code for refused in refusals.values())
        good = [unit for index, unit in enumerate(units) if index not in refusals]
        said = iter(await self._keys.statements_of(good, issued_ms=issued_ms, epoch=epoch, sequence=sequence))
        return [refusals[index] if index in refusals else next(said) for index in range(len(units))]

    # -- decide

    async def _decide(self, requests: Sequence[SignRequest]) -> _Decision:
        now, now_s, clocks = self._clock.now(), self._clock.monotonic(), self._clocks()
        grounded = [index for index, request in enumerate(requests) if request.kind in _GROUNDED]
        others = [index for index, request in enumerate(requests) if request.kind not in _GROUNDED]
        refusals: dict[int, Refused] = {}
        lines: list[Line] = []

        def look(session: Session) -> None:
            self._fence = fence = _fence(session)
            framed: dict[tuple[Kind, int, int, int, int], Fault | None] = {}
            for index, request in enumerate(requests):
                frame = (request.kind, request.epoch, request.sequence, request.issued_ms, request.expires_ms)
                if frame not in framed:  # thousands of heads share theirs
                    framed[frame] = checks.frame_fault(request, fence, clocks)
                fault = framed[frame]
                if fault is not None:
                    refusals[index] = Refused(fault, kind=request.kind.name, epoch=fence.epoch)
            named = {request.unit for request in requests if request.kind not in _GROUNDED}
            self._paths = _paths(session, [unit for unit in named if unit is not None], places.local_date(now))
            alerted = [requests[index].target for index in others if requests[index].kind is Kind.ALERTS]
            airing = _Airing(session, emergencies.airing(session, alerted, now=now) if alerted else {})
            for index in others:
                if index not in refusals:
                    found = self._judge_other(session, requests[index], airing, now, now_s)
                    if isinstance(found, Refused):
                        refusals[index] = found
                    else:
                        lines.extend(found)
            asked = [index for index in grounded if index not in refusals]
            if asked:
                faults = self._ground.judge(session, [requests[index] for index in asked], now, now_s)
                refusals.update((index, fault) for index, fault in zip(asked, faults, strict=True) if fault is not None)

        if grounded:
            async with self._turn:
                await self._store.read(look)
        else:
            await self._store.read(look)
        return _Decision(refusals, tuple({_name(line): line for line in lines}.values()))

    def _judge_other(
        self, session: Session, request: SignRequest, airing: _Airing, now: datetime, now_s: float
    ) -> Refused | Sequence[Line]:
        try:
            match request.kind:
                case Kind.ALERTS:
                    return self._judge_alerts(airing, request, now, now_s)
                case Kind.ORDER:
                    return self._judge_order(session, request)
                case Kind.HEAD:
                    return self._judge_head(session, request, now, now_s)
                case _:
                    return Refused("no_key_for_kind", kind=request.kind.name)
        except EnvelopeRefused:
            return Refused(Fault.UNREADABLE, kind=request.kind.name)

    # -- alerts

    def _judge_alerts(
        self, airing: _Airing, request: SignRequest, now: datetime, now_s: float
    ) -> Refused | Sequence[Line]:
        said, unit = decode_alert_set(request.body), request.unit
        if unit is None or request.target != unit or unit not in self._paths:
            return Refused(Fault.PLACE_DIFFERS, kind=request.kind.name)
        faults = checks.alert_faults(said, airing.facts(unit), airing.latch(unit), now)
        if faults:
            return Refused("signer_alerts_refused", unit=unit, alerts=checks.first_of(faults))
        news = [line for line in airing.lines(said, request) if _name(line) not in self._told]
        for line in news:
            emergency = line.subject.startswith("emergency/")
            if emergency and not self._buckets.take("emergency", line.unit_id or "", self._limits.emergencies, now_s):
                return Refused(Fault.LIMITED, kind="EMERGENCY", unit=line.unit_id)
        for alert in said.alerts:
            self._keep_good(unit, alert.alert_id, alert.encode(), now_s)
        if said.stop_all is not None:
            self._keep_good(unit, said.stop_all.latch_id, said.stop_all.encode(), now_s)
        return news

    def _keep_good(self, unit: str, name: str, body: bytes, now_s: float) -> None:
        self._good_alerts.pop((unit, name), None)
        self._good_alerts[unit, name] = (body, now_s)
        while len(self._good_alerts) > _KNOWN_LINES:
            self._good_alerts.popitem(last=False)

    # -- orders, heads

    def _judge_order(self, session: Session, request: SignRequest) -> Refused | Sequence[Line]:
        body = decode(OrderBody, request.body)
        row = outbox.find(session, body.order_id)
        if row is None or (row.node_id, row.unit_id) != (request.target, request.unit):
            return Refused(Fault.ORDER_UNKNOWN, order=body.order_id)
        told = (row.body.get("verb"), row.body.get("seconds", 0), row.body.get("code"))
        if told != (body.verb.value, body.seconds, body.code):
            return Refused(Fault.CONTENT_DIFFERS, order=body.order_id)
        if row.state not in outbox.OPEN or request.expires_ms > to_ms(row.expires_at):
            return Refused(Fault.LIVES_TOO_LONG, order=body.order_id)
        detail = {"node": request.target, "verb": body.verb.value, "epoch": request.epoch, "number": request.sequence}
        line = Line("signer.order", row.unit_id, f"order/{row.id}", detail)
        return () if _name(line) in self._told else (line,)

    def _judge_head(
        self, session: Session, request: SignRequest, now: datetime, now_s: float
    ) -> Refused | Sequence[Line]:
        decode(StreamHeadBody, request.body)
        stream = request.target
        if request.expires_ms <= request.issued_ms:
            return ()  # it ends the stream
        if now_s - self._good_streams.get(stream, -STREAM_REMEMBERED_S) < STREAM_FRESH_S:
            return ()
        if not (_is_spoken(session, stream, now) or _is_relayed(session, stream, now)):
            return Refused(Fault.STREAM_UNKNOWN, stream=stream)
        self._good_streams.pop(stream, None)
        self._good_streams[stream] = now_s
        while len(self._good_streams) > _STREAMS:
            self._good_streams.popitem(last=False)
        return ()

    # -- while the store is away

    def _remember(self, requests: Sequence[SignRequest], away: Unavailable) -> _Decision:
        """What was good lately stays good for a while; everything else waits. Raises `away`."""
        now, now_s, clocks = self._clock.now(), self._clock.monotonic(), self._clocks()
        fence = self._fence
        if fence is None or any(request.kind not in checks.IN_ANY_DOUBT for request in requests):
            raise away
        fence = Fence(fence.epoch, max(fence.last_number, *(request.sequence for request in requests)))
        refusals: dict[int, Refused] = {}
        lines: list[Line] = []
        for index, request in enumerate(requests):
            fault = checks.frame_fault(request, fence, clocks)
            if fault is not None:
                refusals[index] = Refused(fault, kind=request.kind.name, epoch=fence.epoch)
            elif request.kind is Kind.HEAD:
                since_s = now_s - self._good_streams.get(request.target, -STREAM_REMEMBERED_S)
                if request.expires_ms > request.issued_ms and since_s >= STREAM_REMEMBERED_S:
                    raise away
            elif not self._is_remembered(request, now, now_s):
                raise away
            else:
                detail = {"epoch": request.epoch, "number": request.sequence, "because": away.code}
                lines.append(Line("signer.from_memory", request.unit, f"unit/{request.target}", detail))
        return _Decision(refusals, tuple(lines))

    def _is_remembered(self, request: SignRequest, now: datetime, now_s: float) -> bool:
        try:
            said = decode_alert_set(request.body)
        except EnvelopeRefused:
            return False
        told = [(alert.alert_id, alert.encode(), alert.expires_ms) for alert in said.alerts]
        if said.stop_all is not None:
            told.append((said.stop_all.latch_id, said.stop_all.encode(), to_ms(now) + 1))
        if not told or request.target != request.unit:
            return False
        for name, body, expires_ms in told:
            known, at_s = self._good_alerts.get((request.target, name), (b"", -REMEMBERED_S))
            if known != body or now_s - at_s > REMEMBERED_S or expires_ms <= to_ms(now):
                return False
        return True

    # -- limits and words

    def _limit(self, requests: Sequence[SignRequest], refusals: dict[int, Refused]) -> None:
        now_s = self._clock.monotonic()
        for index, request in enumerate(requests):
            if index in refusals:
                continue
            of = request.target if request.kind is Kind.HEAD else request.unit or "server"
            most = self._limits.envelopes.get(request.kind, 0)
            if not self._buckets.take(request.kind.name, of, most, now_s):
                refusals[index] = Refused(Fault.LIMITED, kind=request.kind.name, unit=request.unit)

    def _refusal_lines(self, requests: Sequence[SignRequest], refusals: Mapping[int, Refused]) -> list[Line]:
        """What was refused, once in a while for each reason and place, with how often."""
        now_s = self._clock.monotonic()
        lines = []
        for index, refused in refusals.items():
            request = requests[index]
            name = (refused.code, request.unit or request.target)
            at_s, more = self._refused_s.get(name, (-REFUSALS_TOLD_S, 0))
            if now_s - at_s < REFUSALS_TOLD_S:
                self._refused_s[name] = (at_s, more + 1)
                continue
            if len(self._refused_s) >= _STREAMS:
                self._refused_s.clear()
            self._refused_s[name] = (now_s, 0)
            log.warning("signer.refused", code=refused.code, kind=request.kind.name, target=request.target)
            detail = {
                "code": refused.code,
                "kind": request.kind.name,
                "epoch": request.epoch,
                "number": request.sequence,
                "facts": refused.facts,
                "more": more,
            }
            lines.append(Line("signer.refused", request.unit, f"envelope/{request.target}", detail))
        return lines

    def _clocks(self) -> tuple[datetime, ...]:
        return (self._clock.now(), self._machine.now())

    def _path_of(self, unit: str) -> Sequence[str]:
        return self._paths.get(unit) or self._ground.path_of(unit)


_UNDECIDED: Final = Refused("signer_undecided")


def all_signed(outcomes: Sequence[bytes | Refused]) -> list[bytes]:
    """The envelopes; raises the first reason why one was not made."""
    for outcome in outcomes:
        if isinstance(outcome, Refused):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, bytes)]


def _name(line: Line) -> str:
    """Two lines of one name tell the same news."""
    return f"{line.verb} {line.subject} {line.detail.get('content', '')}"


def _fence(session: Session) -> Fence:
    lease = leases.look(session, leases.LEADER)
    return Fence(0 if lease is None else lease.epoch, sequences.last(session, sequences.SIGNED))


def _paths(session: Session, units: Sequence[str], on: date) -> dict[str, tuple[str, ...]]:
    """Of those that are in the rows."""
    known = places.units(session, units)
    return places.paths_of(session, list(known), on)


class _Airing:
    """What is in force by unit, each emergency judged once in a look."""

    def __init__(self, session: Session, rows: Mapping[str, emergencies.Airing]) -> None:
        self._session, self._rows = session, rows
        self._faults: dict[str, tuple[str | None, dict[str, Any] | None]] = {}

    def latch(self, unit: str) -> tuple[str, datetime] | None:
        """The stop-all of the unit."""
        return self._rows[unit].latch

    def facts(self, unit: str) -> list[AlertFacts]:
        """The unit's alerts, with why one has no ground."""
        found = []
        for alert, emergency in self._rows[unit].alerts:
            if emergency is None:
                found.append(AlertFacts(alert.body, Fault.EMERGENCY_UNKNOWN, alert.issued_at))
                continue
            if emergency.id not in self._faults:
                self._faults[emergency.id] = self._judge(emergency)
            fault, body = self._faults[emergency.id]
            if fault is None and unit not in emergency.units:
                fault = Fault.PLACE_DIFFERS
            if fault is None and body != alert.body:
                fault = Fault.ALERT_DIFFERS
            found.append(AlertFacts(alert.body, fault, alert.issued_at))
        return found

    def _judge(self, row: EmergencyRow) -> tuple[str | None, dict[str, Any] | None]:
        paths = places.paths_of(self._session, row.units, places.local_date(row.launched_at or row.proposed_at))
        if checks.outside(row.units, paths, row.unit_id):
            return Fault.PLACE_DIFFERS, None
        unfit = consents.why_unfit(self._session, row)
        return (None if unfit is None else f"unfit_{unfit.value}"), emergencies.body_of(self._session, row)

    def lines(self, said: AlertSetBody, request: SignRequest) -> list[Line]:
        """What is to be written down of a set: its emergencies by content, its stop-all."""
        order = {"epoch": request.epoch, "number": request.sequence}
        by_id = {alert.id: (alert, row) for alert, row in self._rows[request.target].alerts}
        told = {row.id: row for _, row in by_id.values() if row is not None}
        lines = []
        for alert in said.alerts:
            row = told.get(alert.alert_id)
            content = hashlib.sha256(alert.encode()).hexdigest()
            detail: dict[str, Any] = {"content": content, "first_unit": request.target, **order}
            if row is not None:
                detail |= {"content_hash": row.content_hash, "mode": row.mode.value, "units": len(row.units)}
            unit = request.unit if row is None else row.unit_id
            lines.append(Line("signer.emergency", unit, f"emergency/{alert.alert_id}", detail))
        if said.stop_all is not None:
            lines.append(Line("signer.stop_all", request.unit, f"stop_all/{said.stop_all.latch_id}", order))
        return lines


def _is_spoken(session: Session, stream: str, now: datetime) -> bool:
    """Whether it is the voice of an open live session."""
    row = live.find(session, stream)
    return row is not None and row.state is LiveState.OPEN and row.starts_at - _AROUND <= now < row.ends_at + _AROUND


def _is_relayed(session: Session, stream: str, now: datetime) -> bool:
    """Whether an entry that may sound takes this feed about now."""
    window = Window(now - _AROUND, now + _AROUND)
    carriers = [row.id for row in feeds.carriers_of(session, stream, now - _AROUND)]
    for start in range(0, len(carriers), 20):
        part = carriers[start : start + 20]
        if any(one.blocked is None for one in schedules.Expander().load(session, window, now, schedule_ids=part)):
            return True
    return False
