"""The node's gate: what came over the wire is obeyed only after every check here, else it is counted and forgotten.

Checks in order: shape, signature, target, scope, time (`KeyRing.verify`), body, order (`Watermarks.admit`), class. A
body is opened before its order is remembered, so a broken body cannot push the watermark up. Order is durable for
everything but stream heads, whose lease of seconds is a better guard against replay than a flash write every 3 s.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from speaker_protocol import messages as wire
from speaker_protocol.brief import decode_alert_set
from speaker_protocol.rules import BulletinClass
from speaker_protocol.signing import Envelope, EnvelopeRefused, KeyRing, Kind, Refusal, Watermarks
from speaker_protocol.topics import NodeConfig, NodeOrder, NodePlan, StreamHead, UnitAlert, UnitKeys

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PlanInForce:
    """A plan the node obeys (a `rules.PlanView`)."""

    valid_from_ms: int
    valid_until_ms: int
    segments: tuple[wire.PlanSegment, ...]
    assets: tuple[wire.PlanAsset, ...]
    sha256: str
    order: tuple[int, int]
    max_class: BulletinClass


@dataclass(frozen=True, slots=True)
class Head:
    """A verified stream head with its lease."""

    body: wire.StreamHeadBody
    epoch: int
    lease_ms: int


@dataclass(frozen=True, slots=True)
class AlertsOf:
    """A unit's verified set of alerts, and when it was signed."""

    body: wire.AlertSetBody
    issued_ms: int


class PlanBodies:
    """Parsed plan bodies by the hash of their bytes: a pure function of what each node has hashed itself.

    Shared by the nodes of one process, because all nodes of a target set receive the same body.
    """

    def __init__(self, keep: int = 64) -> None:
        self._keep = keep
        self._bodies: OrderedDict[str, wire.PlanBody] = OrderedDict()

    def open(self, head: wire.PlanHead, packed: bytes) -> wire.PlanBody:
        """`messages.open_plan_body`, parsed once. Raises `EnvelopeRefused(BODY)`."""
        body = self._bodies.get(head.body_sha256)
        if body is None or wire.plan_head(packed, valid_from_ms=0, valid_until_ms=0).body_sha256 != head.body_sha256:
            body = wire.open_plan_body(head, packed)
            if any(a.end_ms > b.start_ms for a, b in zip(body.segments, body.segments[1:], strict=False)) or any(
                segment.start_ms >= segment.end_ms for segment in body.segments
            ):
                raise EnvelopeRefused(Refusal.BODY)
            self._bodies[head.body_sha256] = body
            while len(self._bodies) > self._keep:
                self._bodies.popitem(last=False)
        return body


class Gate:
    """Verifies for one node and counts why it did not obey."""

    def __init__(
        self,
        *,
        node_id: str,
        root_public: bytes,
        path: tuple[str, ...],
        watermarks: dict[str, tuple[int, int, str]],
        bodies: PlanBodies,
    ) -> None:
        self.node_id = node_id
        self.path = path
        self.refusals: Counter[str] = Counter()
        self._ring = KeyRing(root_public)
        self._marks = Watermarks(watermarks)
        self._brief = Watermarks()
        self._bodies = bodies
        self.may_hear_the_time = False

    def snapshot(self) -> dict[str, tuple[int, int, str]]:
        """The watermarks, to be stored before what was admitted is acted upon."""
        return self._marks.snapshot()

    def highest(self) -> tuple[int, int]:
        """The highest order seen on any topic."""
        own = (str(NodePlan(self.node_id)), str(NodeConfig(self.node_id)), str(NodeOrder(self.node_id)))
        units = tuple(str(UnitAlert(unit)) for unit in self.path)
        return self._marks.highest((*own, *units))

    def keys(self, unit: str, payload: bytes, now_ms: int | None) -> bool:
        """Learn what the root says of a unit's keys; whether anything was learned."""
        learned = False
        envelopes = self._guarded(lambda: wire.split_keys(payload)) or ()
        for raw in envelopes:
            learned |= bool(self._guarded(lambda raw=raw: self._statement(unit, raw, now_ms)))  # type: ignore[misc]
        return learned

    def _statement(self, unit: str, raw: bytes, now_ms: int | None) -> bool:
        envelope = self._ring.verify(raw, kind=Kind.KEYS, target=unit, path=self._above(unit), now_ms=now_ms)
        if envelope.key_id != self._ring.root_id:
            raise EnvelopeRefused(Refusal.OUT_OF_SCOPE)
        statement = wire.decode_key_statement(envelope.body)
        if isinstance(statement, wire.RevocationBody):
            self._ring.revoke(bytes.fromhex(statement.key_id), statement.at_ms)
            return True
        # One watermark per delegated key: the statements of a unit arrive together, each with an order of its own.
        self._marks.admit(f"{UnitKeys(unit)} {statement.public_key[:16]}", envelope)
        key = statement.key()
        self._ring.learn(key)
        self.may_hear_the_time |= Kind.ACK in key.kinds
        return True

    def plan(self, payload: bytes, now_ms: int | None) -> PlanInForce | None:
        """A plan to obey, or None."""
        return self._guarded(lambda: self._plan(payload, now_ms))

    def _plan(self, payload: bytes, now_ms: int | None) -> PlanInForce:
        raw, packed = wire.split_plan(payload)
        envelope = self._own(raw, Kind.PLAN, now_ms)
        head = wire.decode(wire.PlanHead, envelope.body)
        body = self._bodies.open(head, packed)
        self._marks.admit(str(NodePlan(self.node_id)), envelope)
        max_class = self._class_of(envelope)
        if any(segment.klass.severity > max_class.severity for segment in body.segments):
            self.refusals[Refusal.CLASS_TOO_HIGH] += 1  # `decide` keeps those segments silent, the others sound
        return PlanInForce(
            valid_from_ms=head.valid_from_ms,
            valid_until_ms=min(head.valid_until_ms, envelope.expires_ms),
            segments=body.segments,
            assets=body.assets,
            sha256=head.body_sha256,
            order=envelope.order,
            max_class=max_class,
        )

    def config(self, payload: bytes, now_ms: int | None) -> wire.NodeConfigBody | None:
        """A configuration to obey, or None."""
        return self._guarded(lambda: self._config(payload, now_ms))

    def _config(self, payload: bytes, now_ms: int | None) -> wire.NodeConfigBody:
        envelope = self._own(payload, Kind.CONFIG, now_ms)
        body = wire.decode(wire.NodeConfigBody, envelope.body)
        self._marks.admit(str(NodeConfig(self.node_id)), envelope)
        return body

    def order(self, payload: bytes, now_ms: int) -> wire.OrderBody | None:
        """An order to carry out once, or None."""
        return self._guarded(lambda: self._order(payload, now_ms))

    def _order(self, payload: bytes, now_ms: int) -> wire.OrderBody | None:
        envelope = self._own(payload, Kind.ORDER, now_ms)
        body = wire.decode(wire.OrderBody, envelope.body)
        return body if self._marks.admit(str(NodeOrder(self.node_id)), envelope) else None

    def alerts(self, unit: str, payload: bytes, now_ms: int | None) -> AlertsOf | None:
        """The set in force for a unit of the path, or None."""
        return self._guarded(lambda: self._alerts(unit, payload, now_ms))

    def _alerts(self, unit: str, payload: bytes, now_ms: int | None) -> AlertsOf:
        envelope = self._ring.verify(payload, kind=Kind.ALERTS, target=unit, path=self._above(unit), now_ms=now_ms)
        body = decode_alert_set(envelope.body)
        severity = self._class_of(envelope).severity
        # Whatever an alert calls itself, it sounds at night and over all else: only a key for emergencies may say it.
        if body.alerts and severity < BulletinClass.EMERGENCY.severity:
            raise EnvelopeRefused(Refusal.CLASS_TOO_HIGH)
        self._marks.admit(str(UnitAlert(unit)), envelope)
        return AlertsOf(body, envelope.issued_ms)

    def ack(self, payload: bytes) -> wire.ReportAckBody | wire.TimeAnswerBody | None:
        """The server's answer, or None. Neither order nor instants matter: a nonce or a boot id ties it to what was
        asked, and a clock that jumped would refuse the very answer that mends it.
        """
        return self._guarded(lambda: wire.decode_ack(self._own(payload, Kind.ACK, None).body))

    def head(self, stream: str, payload: bytes, now_ms: int) -> Head | None:
        """A stream's head, or None."""
        return self._guarded(lambda: self._head(stream, payload, now_ms))

    def _head(self, stream: str, payload: bytes, now_ms: int) -> Head:
        envelope = self._ring.verify(payload, kind=Kind.HEAD, target=stream, path=self.path, now_ms=now_ms)
        body = wire.decode(wire.StreamHeadBody, envelope.body)
        if body.scope and not set(body.scope) & set(self.path):
            raise EnvelopeRefused(Refusal.OUT_OF_SCOPE)
        self._brief.admit(str(StreamHead(stream)), envelope)
        return Head(body, envelope.epoch, envelope.expires_ms)

    def count(self, reason: str) -> None:
        """Count a refusal found elsewhere (audio batches)."""
        self.refusals[reason] += 1

    def _own(self, raw: bytes, kind: Kind, now_ms: int | None) -> Envelope:
        return self._ring.verify(raw, kind=kind, target=self.node_id, path=self.path, now_ms=now_ms)

    def _above(self, unit: str) -> tuple[str, ...]:
        """A unit's own path: nobody from below it may speak for it."""
        return self.path[self.path.index(unit) :] if unit in self.path else (unit,)

    def _class_of(self, envelope: Envelope) -> BulletinClass:
        known = self._ring.known(envelope.key_id)
        return BulletinClass(known.max_class) if known is not None else BulletinClass.NORMAL

    def _guarded(self, look: Callable[[], T]) -> T | None:
        try:
            return look()
        except EnvelopeRefused as refused:
            self.refusals[refused.reason.value] += 1
            return None
