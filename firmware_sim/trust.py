"""The node's gate: what came over the wire is obeyed only after every check here, else it is counted and forgotten.

The checks and their order stand in `speaker_protocol.signing`. A body is opened and its class judged before its order
is remembered, so a broken body cannot push the watermark up. Order is durable for everything but stream heads, whose
lease of seconds is a better guard against replay than a flash write every 3 s. What was said of keys is kept statement
by statement, so that no later payload can make the node forget a revocation.

A node without memory does not know what it obeyed once, so anything that was ever signed could be played to it again:
it obeys nothing, an emergency neither, until the server told it the floors over its own fresh nonce (`floors`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from speaker_protocol import chain
from speaker_protocol import messages as wire
from speaker_protocol.brief import decode_alert_set
from speaker_protocol.rules import BulletinClass
from speaker_protocol.signing import EVERYWHERE, Envelope, EnvelopeRefused, KeyRing, Kind, Refusal, Watermarks
from speaker_protocol.topics import ROOT, NodeConfig, NodeOrder, NodePlan, StreamHead, UnitAlert

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
    key_id: bytes = b""
    """Who signed it: should that key be revoked, the plan is in force no more."""


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
    key_id: bytes = b""


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
        is_resyncing: bool = False,
    ) -> None:
        """`is_resyncing`: the node has no memory of what it obeyed."""
        self.node_id = node_id
        self.path = path
        self.refusals: Counter[str] = Counter()
        self._ring = KeyRing(root_public)
        self._marks = Watermarks(watermarks)
        self._brief = Watermarks()
        self._bodies = bodies
        self._statements: dict[str, bytes] = {}
        self._is_without_floors = is_resyncing
        self._least_rl_version = 0

    @property
    def is_resyncing(self) -> bool:
        """Whether it must not obey anything yet: no floors, or a list of revocations older than the server's."""
        return self._is_without_floors or self._ring.rl_version < self._least_rl_version

    @property
    def may_hear_the_time(self) -> bool:
        """Whether it knows a key that may answer it."""
        return any(
            Kind.ACK in key.kinds and key_id != self._ring.root_id and not self._ring.is_revoked(key_id, None)
            for key_id, key in self._ring.all_keys()
        )

    @property
    def rl_version(self) -> int:
        """The highest version of any list of revocations it holds."""
        return self._ring.rl_version

    def keys_until_ms(self) -> int | None:
        """Until when it holds a key that may sign its plan; None: it holds none."""
        return max(
            (
                self._ring.ends_ms(key_id)
                for key_id, key in self._ring.all_keys()
                if Kind.PLAN in key.kinds and key_id != self._ring.root_id and not self._ring.is_revoked(key_id, None)
            ),
            default=None,
        )

    def is_revoked(self, key_id: bytes, now_ms: int | None) -> bool:
        """Whether what this key signed is in force no more."""
        return self._ring.is_revoked(key_id, now_ms)

    def past_is(self, now_ms: int) -> None:
        """It is at least so late: without a clock nothing is believed that was over by then."""
        self._ring.floor_ms = max(self._ring.floor_ms, now_ms)

    def floors(self, told: wire.FloorsBody) -> None:
        """What the server answered to a question of this node. The caller has compared the nonce."""
        for floor in told.floors:
            self._marks.raise_floor(floor.topic, (floor.epoch, floor.sequence))
        self._least_rl_version = told.rl_ver
        self._is_without_floors = False

    def statements(self) -> tuple[bytes, ...]:
        """What is held about keys, to be stored."""
        return tuple(self._statements.values())

    def recall(self, statements: Iterable[bytes], path: Sequence[str]) -> None:
        """What was held about keys before the power went, on the path of then. Instants are judged when a key is
        used.
        """
        for raw in chain.in_order(tuple(statements), self._ring):
            self._guarded(lambda raw=raw: self._statement(path, raw, None))  # type: ignore[misc]

    def snapshot(self) -> dict[str, tuple[int, int, str]]:
        """The watermarks, to be stored before what was admitted is acted upon."""
        return self._marks.snapshot()

    def highest(self) -> tuple[int, int]:
        """The highest order seen on any topic."""
        own = (str(NodePlan(self.node_id)), str(NodeConfig(self.node_id)), str(NodeOrder(self.node_id)))
        units = tuple(str(UnitAlert(unit)) for unit in self.path)
        return self._marks.highest((*own, *units), revoked=self._ring.revoked(None))

    def keys(self, unit: str, payload: bytes, now_ms: int | None) -> bool:
        """Learn what is said of a unit's keys; whether anything was new."""
        learned = False
        envelopes = self._guarded(lambda: wire.split_keys(payload)) or ()
        for raw in chain.in_order(envelopes, self._ring):
            learned |= bool(self._guarded(lambda raw=raw: self._statement(self._above(unit), raw, now_ms)))  # type: ignore[misc]
        if learned and now_ms is not None:
            self._forget_over(now_ms)
        return learned

    def _statement(self, above: Sequence[str], raw: bytes, now_ms: int | None) -> bool:
        envelope, statement, is_new = chain.take(self._ring, self._marks, raw, above=above, now_ms=now_ms)
        if isinstance(statement, wire.DelegationBody):
            name = chain.mark_of(statement)
        elif isinstance(statement, wire.RevocationListBody):
            name = f"revocations {envelope.key_id.hex()}"
        else:
            name = f"revocation {statement.key_id}"
        if is_new or name not in self._statements:
            self._statements[name] = raw
        return is_new

    def _forget_over(self, now_ms: int) -> None:
        before_ms = now_ms - chain.REMEMBERED_AFTER_END_MS
        for key_id, key in [(one, key) for one, key in self._ring.all_keys() if key.valid_until_ms < before_ms]:
            name = f"{ROOT}/unit/{key.unit or EVERYWHERE}/keys {key.public.hex()[:16]}"
            self._ring.forget(key_id)
            self._statements.pop(name, None)
            self._marks.drop(name)
            self._marks.drop_key(key_id)

    def plan(self, payload: bytes, now_ms: int | None) -> PlanInForce | None:
        """A plan to obey, or None."""
        return self._guarded(lambda: self._plan(payload, now_ms))

    def _plan(self, payload: bytes, now_ms: int | None) -> PlanInForce:
        raw, packed = wire.split_plan(payload)
        envelope = self._own(raw, Kind.PLAN, now_ms)
        head = wire.decode(wire.PlanHead, envelope.body)
        body = self._bodies.open(head, packed)
        self._admit(str(NodePlan(self.node_id)), envelope, now_ms)
        max_class = self._class_of(envelope)
        if any(segment.klass.severity > max_class.severity for segment in body.segments):
            self.refusals[Refusal.CLASS_TOO_HIGH] += 1  # `decide` keeps those segments silent, the others sound
        return PlanInForce(
            valid_from_ms=head.valid_from_ms,
            # An offline node follows nobody whose delegation is over, whatever he signed while it was not.
            valid_until_ms=min(head.valid_until_ms, envelope.expires_ms, self._ring.ends_ms(envelope.key_id)),
            segments=body.segments,
            assets=body.assets,
            sha256=head.body_sha256,
            order=envelope.order,
            max_class=max_class,
            key_id=envelope.key_id,
        )

    def config(self, payload: bytes, now_ms: int | None) -> wire.NodeConfigBody | None:
        """A configuration to obey, or None."""
        return self._guarded(lambda: self._config(payload, now_ms))

    def _config(self, payload: bytes, now_ms: int | None) -> wire.NodeConfigBody:
        envelope = self._own(payload, Kind.CONFIG, now_ms)
        body = wire.decode(wire.NodeConfigBody, envelope.body)
        place = self._ring.signer(envelope).unit
        reach = () if place is None else self._above(place)
        if body.path and reach and body.path[-len(reach) :] != reach:
            # A key says where a node lies within its own place. What is above is not its to say: a node that was led
            # away from there could never be told anything by those above, nor be called back.
            raise EnvelopeRefused(Refusal.OUT_OF_SCOPE)
        self._admit(str(NodeConfig(self.node_id)), envelope, now_ms)
        return body

    def order(self, payload: bytes, now_ms: int) -> wire.OrderBody | None:
        """An order to carry out once, or None."""
        return self._guarded(lambda: self._order(payload, now_ms))

    def _order(self, payload: bytes, now_ms: int) -> wire.OrderBody | None:
        envelope = self._own(payload, Kind.ORDER, now_ms)
        body = wire.decode(wire.OrderBody, envelope.body)
        return body if self._admit(str(NodeOrder(self.node_id)), envelope, now_ms) else None

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
        self._admit(str(UnitAlert(unit)), envelope, now_ms)
        return AlertsOf(body, envelope.issued_ms, envelope.key_id)

    def ack(self, payload: bytes) -> wire.ReportAckBody | wire.TimeAnswerBody | wire.FloorsBody | None:
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
        self._require_memory()
        self._brief.admit(str(StreamHead(stream)), envelope, revoked=self._ring.revoked(now_ms))
        return Head(body, envelope.epoch, envelope.expires_ms)

    def count(self, reason: str) -> None:
        """Count a refusal found elsewhere (audio batches)."""
        self.refusals[reason] += 1

    def _admit(self, topic: str, envelope: Envelope, now_ms: int | None) -> bool:
        self._require_memory()
        return self._marks.admit(topic, envelope, revoked=self._ring.revoked(now_ms))

    def _require_memory(self) -> None:
        if self.is_resyncing:
            raise EnvelopeRefused(Refusal.RESYNC)

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
