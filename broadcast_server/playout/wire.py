"""The only translator between what the server means and what the wire says (live audio has its own, `relay.stream`).

Nothing else in `playout` knows topics, bodies or envelopes. What nodes say is read here into plain values; whatever
is not right is counted by reason and comes back as None, never as an exception.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from pydantic import ValidationError

from broadcast_server.domain.clock import from_ms, to_ms
from broadcast_server.domain.delivery import ALERT, Progress
from broadcast_server.domain.errors import Invalid, Refused
from broadcast_server.domain.plan import Plan
from broadcast_server.logs import get_logger
from broadcast_server.signer.port import Sealer, Signer, SignRequest
from broadcast_server.store.audit import Anchor
from speaker_protocol import brief, messages, topics
from speaker_protocol.signing import EnvelopeRefused, KeyRing, Kind, key_id_of, parse

log = get_logger()

STATUSES: Final = topics.NodeStatus.every()
REPORTS: Final = topics.NodeReport.every()
QUESTIONS: Final = topics.NodeTime.every()

TimeQuestion = messages.TimeQuestionBody

ACK_LIFE_MS: Final = 60_000
ACK_SEQUENCES: Final = 500
"""How many reports one acknowledgement names."""
SIGNED_IN_DOUBT: Final = frozenset({Kind.HEAD, Kind.ALERTS})
"""What is signed even while the server's clock is in doubt: what sounds goes on, and a warning waits for no clock."""
_MS: Final = timedelta(milliseconds=1)
STATE_LIFE_MS: Final = 30 * 24 * 3_600_000
"""How long config and alert sets hold without renewal."""
_MICRO: Final = timedelta(microseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def broker_acl(server_user: str) -> tuple[str, ...]:
    """The broker's access list: the server may all, a node its own and what is public."""
    return (f"user {server_user}", f"topic readwrite {topics.ROOT}/#", "", *topics.node_acl())


# -- plans ----------------------------------------------------------------------------------------------------------


PLAN_LIMIT_BYTES: Final = 256 * 1024 - 4 * 1024
"""Largest packed body: with its head, its topic and what MQTT adds it stays under the packet limit of 256 KiB."""
MAX_SEGMENTS: Final = messages.MAX_SEGMENTS


def pack_plan(plan: Plan) -> bytes:
    """The body that every node of a target set receives. Raises `Invalid` if the wire cannot say it."""
    try:
        body = _plan_body(plan)
    except ValidationError as error:
        raise _unsayable(error) from error
    return messages.pack_plan_body(body)


def fits(packed: bytes, *, limit_bytes: int = PLAN_LIMIT_BYTES) -> bool:
    """Whether a packed body can be sent, and will be unpacked by the nodes."""
    if len(packed) > limit_bytes:
        return False
    inflater = zlib.decompressobj()
    inflater.decompress(packed, messages.MAX_PLAN_BODY_BYTES)
    return inflater.eof


def _unsayable(error: ValidationError) -> Invalid:
    first = error.errors(include_url=False, include_input=False)[0]
    return Invalid("not_for_the_wire", field=".".join(str(part) for part in first["loc"]), said=first["type"])


def _plan_body(plan: Plan) -> messages.PlanBody:
    return messages.PlanBody(
        segments=tuple(
            messages.PlanSegment(
                entry_id=segment.entry_id,
                start_ms=to_ms(segment.start),
                end_ms=to_ms(segment.end),
                offset_ms=segment.offset // _MS,
                klass=segment.klass,
                level=segment.level,
                source=segment.source,
                asset=segment.asset,
                stream=segment.stream,
                gain_db=segment.gain_db,
                approval=segment.approval,
                late_at_most_ms=None if segment.late_at_most is None else segment.late_at_most // _MS,
                tolerates_ms=None if segment.tolerates is None else segment.tolerates // _MS,
            )
            for segment in plan.segments
        ),
        assets=tuple(
            messages.PlanAsset(
                sha256=asset.hash,
                size_bytes=asset.size_bytes,
                duration_ms=asset.duration // _MS,
            )
            for asset in plan.assets
        ),
    )


@dataclass(frozen=True, slots=True)
class PlanToSend:
    """One node's plan: the shared packed body and its place in the order."""

    node_id: str
    unit_id: str
    packed: bytes
    valid_from: datetime
    valid_until: datetime
    epoch: int
    sequence: int


Refusals = dict[int, Refused]
"""Why the signer refused, by place in what it was asked for."""


async def plan_messages(
    signer: Signer, plans: Sequence[PlanToSend], *, now: datetime
) -> tuple[list[tuple[str, bytes]], Refusals]:
    """Topic and payload for each plan, signed by the key of the node's unit; and what was refused."""
    heads: dict[int, bytes] = {}
    for plan in plans:
        if id(plan.packed) not in heads:
            heads[id(plan.packed)] = messages.plan_head(
                plan.packed, valid_from_ms=to_ms(plan.valid_from), valid_until_ms=to_ms(plan.valid_until)
            ).encode()
    issued_ms = to_ms(now)
    outcomes = await signer.sign_each(
        [
            SignRequest(
                kind=Kind.PLAN,
                unit=plan.unit_id,
                target=plan.node_id,
                issued_ms=issued_ms,
                expires_ms=to_ms(plan.valid_until),
                epoch=plan.epoch,
                sequence=plan.sequence,
                body=heads[id(plan.packed)],
                packed=plan.packed,
            )
            for plan in plans
        ]
    )
    ready = [
        (str(topics.NodePlan(plan.node_id)), messages.join_plan(outcome, plan.packed))
        for plan, outcome in zip(plans, outcomes, strict=True)
        if isinstance(outcome, bytes)
    ]
    return ready, _refusals(outcomes)


def _refusals(outcomes: Sequence[bytes | Refused]) -> Refusals:
    return {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, Refused)}


# -- config, alerts, keys ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StateToSend:
    """A retained body for one node or unit. `body` is what is compared to know whether it changed."""

    kind: Kind
    owner: str
    unit_id: str
    body: bytes

    @property
    def topic(self) -> str:
        """Where it is retained."""
        return str(topics.NodeConfig(self.owner) if self.kind is Kind.CONFIG else topics.UnitAlert(self.owner))


def node_config(
    node_id: str,
    unit_id: str,
    *,
    path: Sequence[str],
    cluster_id: str,
    groups: Sequence[str],
    is_active: bool,
    quiet_minutes: tuple[int, int],
    max_gain_db: float,
    max_minutes: tuple[int | None, int | None],
    cluster_config: Mapping[str, Any],
    assets_url: str,
    status_interval_s: int,
) -> StateToSend:
    """A node's config. `quiet_minutes`: local minutes `[from, to)`; `max_minutes`: of a day, of a session.

    Unknown keys of the cluster's own settings are left out.

    Raises `Invalid` where the cluster's own settings are nonsense.
    """
    try:
        body = messages.NodeConfigBody(
            path=tuple(path),
            cluster=cluster_id,
            groups=tuple(groups),
            active=is_active,
            quiet_from_min=quiet_minutes[0],
            quiet_to_min=quiet_minutes[1],
            max_gain_db=max_gain_db,
            max_day_min=max_minutes[0],
            max_session_min=max_minutes[1],
            alert_gain_db=cluster_config.get("alert_gain_db"),
            volume=cluster_config.get("volume", ()),
            delay_trim_ms=cluster_config.get("delay_trim_ms", 0),
            assets_url=assets_url,
            status_interval_s=status_interval_s,
        )
    except ValidationError as error:
        raise _unsayable(error) from error
    return StateToSend(Kind.CONFIG, node_id, unit_id, body.encode())


def config_topic(node_id: str) -> str:
    """Where a node's config is retained."""
    return str(topics.NodeConfig(node_id))


def departed(node_ids: Iterable[str]) -> list[tuple[str, bytes]]:
    """What takes everything that is retained for nodes that are gone off the broker: topic and nothing."""
    kinds = (topics.NodePlan, topics.NodeConfig, topics.NodeStatus)
    return [(str(kind(node_id)), b"") for node_id in node_ids for kind in kinds]


def alert_topic(unit_id: str) -> str:
    """Where a unit's set is retained."""
    return str(topics.UnitAlert(unit_id))


def alert_set(unit_id: str, alerts: Iterable[Mapping[str, Any]], latch: tuple[str, datetime] | None) -> StateToSend:
    """All that is in force for a unit; an empty set is a body too. Raises `Invalid` on an alert that is none."""
    try:
        body = messages.AlertSetBody(
            alerts=tuple(messages.AlertBody.model_validate(alert) for alert in alerts),
            stop_all=None if latch is None else messages.StopAllLatch(latch_id=latch[0], since_ms=to_ms(latch[1])),
        )
    except ValidationError as error:
        raise _unsayable(error) from error
    return StateToSend(Kind.ALERTS, unit_id, unit_id, brief.encode_alert_set(body))


async def state_messages(
    signer: Signer, states: Sequence[StateToSend], *, now: datetime, epoch: int, sequence: int
) -> tuple[list[tuple[str, bytes]], Refusals]:
    """Topic and payload for each retained state, alerts by the key of the unit, configs by the server's; and what was
    refused.
    """
    issued_ms = to_ms(now)
    outcomes = await signer.sign_each(
        [
            SignRequest(
                kind=state.kind,
                unit=None if state.kind is Kind.CONFIG else state.unit_id,
                target=state.owner,
                issued_ms=issued_ms,
                expires_ms=issued_ms + STATE_LIFE_MS,
                epoch=epoch,
                sequence=sequence,
                body=state.body,
            )
            for state in states
        ]
    )
    ready = [
        (state.topic, outcome) for state, outcome in zip(states, outcomes, strict=True) if isinstance(outcome, bytes)
    ]
    return ready, _refusals(outcomes)


async def key_messages(
    signer: Signer, units: Iterable[str], *, now: datetime, epoch: int, sequence: int
) -> list[tuple[str, bytes]]:
    """What is said about the keys of each unit. A unit that the signer refuses costs the others nothing."""
    asked = tuple(units)
    if not asked:
        return []  # an alert in doubtful time goes without
    said = await signer.statements_of(asked, issued_ms=to_ms(now), epoch=epoch, sequence=sequence)
    made = []
    for unit, statements in zip(asked, said, strict=True):
        if isinstance(statements, Refused):
            log.error("keys.refused", unit_id=unit, code=statements.code, facts=statements.facts)
            continue
        made.append((str(topics.UnitKeys(unit)), messages.join_keys(statements)))
    return made


@dataclass(frozen=True, slots=True)
class OrderToSend:
    """One true event for one node."""

    order_id: str
    node_id: str
    unit_id: str
    verb: object
    seconds: object
    """Both as the row has them, as is `code`; nonsense is refused when the message is made."""
    expires_at: datetime
    code: object = None
    """What the node shall speak."""


async def order_message(
    signer: Signer, order: OrderToSend, *, now: datetime, epoch: int, sequence: int
) -> tuple[str, bytes]:
    """Topic and payload of an order. Raises `Invalid` if it is none."""
    try:
        body = messages.OrderBody.model_validate(
            {"order_id": order.order_id, "verb": order.verb, "seconds": order.seconds, "code": order.code}
        ).encode()
    except ValidationError as error:
        raise _unsayable(error) from error
    (envelope,) = await signer.sign_many(
        [
            SignRequest(
                kind=Kind.ORDER,
                unit=order.unit_id,
                target=order.node_id,
                issued_ms=to_ms(now),
                expires_ms=to_ms(order.expires_at),
                epoch=epoch,
                sequence=sequence,
                body=body,
            )
        ]
    )
    return str(topics.NodeOrder(order.node_id)), envelope


# -- what nodes say ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Obeys:
    """What a node says it holds: how far it is with each alert, and whether a stop-all silences it."""

    progress: Mapping[str, Progress]
    stop_all: bool


def _believable(at_ms: int) -> datetime | None:
    """A status is not signed and may say any number."""
    return from_ms(at_ms) if 0 <= at_ms < _LAST_MS else None


@dataclass(frozen=True, slots=True)
class NodeWord:
    """A node's status, read. `carried`: the coming items, as an earlier word told them that was not kept yet."""

    node_id: str
    body: messages.StatusBody
    carried: tuple[messages.ItemReadiness, ...] | None = None

    @property
    def due(self) -> tuple[messages.ItemReadiness, ...] | None:
        """The coming items; None: as told before."""
        return self.carried if self.body.due is None else self.body.due

    @property
    def follows(self) -> tuple[str, int, int] | None:
        """The plan it follows: hash of the body, epoch, sequence."""
        return None if self.body.plan_sha256 is None else (self.body.plan_sha256, *self.body.plan_order)

    @property
    def highest(self) -> tuple[int, int]:
        """The highest epoch and sequence it obeyed."""
        return self.body.highest

    @property
    def is_online(self) -> bool:
        """Whether the node itself says it (not its will)."""
        return self.body.link is messages.Link.ONLINE

    @property
    def believed_time(self) -> tuple[int, float, float]:
        """What it took for the server's time (ms, 0: it does not know), how wrong that may be, what it adds (ms)."""
        clock = self.body.clock
        return self.body.sent_ms, clock.uncertainty_ms, clock.offset_ms

    @property
    def anchor(self) -> Anchor | None:
        """What it was told of the audit log, if it says so this time."""
        told = self.body.anchor
        return None if told is None else Anchor(told.sequence, told.hash, from_ms(told.at_ms))

    @property
    def obeys(self) -> Obeys | None:
        """The emergencies and stop-all it holds; None from a node that does not tell, or only its will."""
        if self.body.alerts is None or self.body.link is not messages.Link.ONLINE:
            return None
        progress = {
            f"{ALERT}{one.alert_id}": Progress(
                one.rounds,
                None if one.first_ms is None else _believable(one.first_ms),
                one.is_sounding,
                None if one.why is None else one.why[:120],
            )
            for one in self.body.alerts
        }
        return Obeys(progress, bool(self.body.stop_all))

    def row(self) -> dict[str, Any]:
        """As `store.reports.save_statuses` wants it."""
        return {
            "node_id": self.node_id,
            "link": self.body.link.value,
            "boot_id": self.body.boot_id,
            "plan_sha256": self.body.plan_sha256,
            "highest_epoch": self.body.highest[0],
            "highest_sequence": self.body.highest[1],
            "sounding": None if self.body.sounding is None else self.body.sounding[:120],
            "body": self.body.model_dump(mode="json", exclude_none=True, exclude={"due"}),
            **({} if self.due is None else {"due": {"items": [one.model_dump(mode="json") for one in self.due]}}),
        }

    def after(self, earlier: NodeWord | None) -> NodeWord:
        """With what the word before it told and it leaves out."""
        if earlier is None or self.body.due is not None or earlier.due is None:
            return self
        return NodeWord(self.node_id, self.body, earlier.due)


@dataclass(frozen=True, slots=True)
class SignedReport:
    """A report as it came, not believed yet."""

    node_id: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class Report:
    """A report whose device signature holds."""

    node_id: str
    body: messages.ReportBody
    raw: bytes

    @property
    def done_order(self) -> str | None:
        """The order it says was carried out, if that is what it tells."""
        return self.body.entry_id if self.body.kind is messages.ReportKind.ORDER_DONE else None

    def row(self, *, received_at: datetime) -> dict[str, Any]:
        """As `store.reports.save_reports` wants it."""
        return {
            "node_id": self.node_id,
            "boot_id": self.body.boot_id,
            "sequence": self.body.sequence,
            "entry_id": self.body.entry_id[:120],
            "segment_start": from_ms(self.body.segment_start_ms),
            "received_at": received_at,
            "body": self.body.model_dump(mode="json", exclude_none=True),
            "envelope": self.raw,
            "line": self.body.line,
            "previous": self.body.previous,
        }


def _owner(topic: str, refused: Counter[str]) -> str | None:
    try:
        return topics.parse(topic).owner
    except topics.TopicError:
        refused["topic"] += 1
        return None


def read_status(topic: str, payload: bytes, refused: Counter[str]) -> NodeWord | None:
    """A node's status or will; None and counted if it is not one."""
    node_id = _owner(topic, refused)
    if node_id is None:
        return None
    try:
        body = messages.decode_unsigned(messages.StatusBody, payload)
    except EnvelopeRefused as refusal:
        refused[f"status_{refusal.reason}"] += 1
        return None
    if _DOUBTFUL.search(payload) and not _can_be_kept(body):
        refused["status_range"] += 1
        return None
    return NodeWord(node_id, body)


def read_report_topic(topic: str, payload: bytes, refused: Counter[str]) -> SignedReport | None:
    """Who says it; what it says is read once the signer is known."""
    node_id = _owner(topic, refused)
    return None if node_id is None else SignedReport(node_id, payload)


def read_question(topic: str, payload: bytes, refused: Counter[str]) -> tuple[str, TimeQuestion] | None:
    """Who asks for the time, and with which nonce."""
    node_id = _owner(topic, refused)
    if node_id is None:
        return None
    try:
        return node_id, messages.decode_unsigned(messages.TimeQuestionBody, payload)
    except EnvelopeRefused as refusal:
        refused[f"question_{refusal.reason}"] += 1
        return None


@lru_cache(maxsize=20_000)
def _device_ring(public_key: bytes) -> KeyRing:
    return KeyRing(public_key)


def believe_report(signed: SignedReport, public_key: bytes, refused: Counter[str]) -> Report | None:
    """The report, if the node's own device key signed it. Its instants are evidence, not a condition: no expiry is
    judged.
    """
    try:
        envelope = _device_ring(public_key).verify(
            signed.raw, kind=Kind.REPORT, target=signed.node_id, path=(), now_ms=None
        )
        body = messages.decode(messages.ReportBody, envelope.body)
    except EnvelopeRefused as refusal:
        refused[f"report_{refusal.reason}"] += 1
        return None
    is_sane = max(body.segment_start_ms, body.at_ms) < _LAST_MS and max(body.heard_ms, body.underruns) < _MOST
    if not is_sane or (_DOUBTFUL.search(envelope.body) and not _can_be_kept(body)):
        refused["report_range"] += 1
        return None
    return Report(signed.node_id, body, signed.raw)


_LAST_MS: Final = to_ms(datetime(2200, 1, 1, tzinfo=UTC))
"""No instant of a report lies after; the wire could say many that no calendar has."""
_MOST: Final = 1 << 40
_STORED: Final = 1 << 63
_DOUBTFUL: Final = re.compile(rb"\\u0000|NaN|Infinity|[:,\[]\s*-?(?:\d{18}|\d[\d.]*[eE][+-]?\d{2})")
"""What JSON must contain for a value that no database takes; without it nobody need look (thousands of statuses)."""


def _can_be_kept(value: object) -> bool:
    """Whether a database takes it: whole numbers of 63 bits, numbers that are numbers, text without NUL."""
    match value:
        case messages.Body():
            return all(_can_be_kept(part) for _, part in value)
        case str():
            return "\0" not in value
        case int():
            return -_STORED < value < _STORED
        case float():
            return math.isfinite(value)
        case dict():
            return all(_can_be_kept(part) for pair in value.items() for part in pair)
        case tuple():
            return all(_can_be_kept(part) for part in value)
    return True


def by_boot(believed: Iterable[Report]) -> dict[str, dict[str, list[int]]]:
    """Sequence numbers by node and boot."""
    found: dict[str, dict[str, list[int]]] = {}
    for report in believed:
        found.setdefault(report.node_id, {}).setdefault(report.body.boot_id, []).append(report.body.sequence)
    return found


# -- answers ----------------------------------------------------------------------------------------------------------


def ack_topic(node_id: str) -> str:
    """Where a node is answered."""
    return str(topics.NodeAck(node_id))


async def report_ack(
    signer: Sealer,
    node_id: str,
    boot_id: str,
    sequences: Sequence[int],
    *,
    now: datetime,
    epoch: int,
    life_ms: int = ACK_LIFE_MS,
) -> bytes:
    """These entries, at most `ACK_SEQUENCES`, are stored. `life_ms`: how long it may travel."""
    body = messages.ReportAckBody(boot_id=boot_id, sequences=tuple(sequences)).encode()
    return await _ack(signer, node_id, body, now=now, epoch=epoch, life_ms=life_ms)


async def time_answer(
    signer: Sealer,
    node_id: str,
    question: TimeQuestion,
    *,
    arrived: datetime,
    now: Callable[[], datetime],
    epoch: int,
    anchor: Anchor | None = None,
) -> bytes:
    """When the question arrived and when this answer leaves. `now` is asked last, right before signing."""
    leaves = now()
    body = messages.TimeAnswerBody(
        nonce=question.nonce,
        asked_ns=question.sent_ns,
        received_ns=_ns(arrived),
        sent_ns=_ns(leaves),
        anchor=None
        if anchor is None
        else messages.Anchor(sequence=anchor.sequence, hash=anchor.hash, at_ms=to_ms(anchor.at)),
    ).encode()
    return await _ack(signer, node_id, body, now=leaves, epoch=epoch)


@dataclass(frozen=True, slots=True)
class Floors:
    """Below what a node without memory must not obey: `(epoch, sequence)` by topic, and the list of revocations."""

    by_topic: Mapping[str, tuple[int, int]]
    rl_version: int


async def floors_answer(
    signer: Sealer, node_id: str, question: TimeQuestion, floors: Floors, *, now: datetime, epoch: int
) -> bytes:
    """The floors, over the nonce of the question."""
    told = tuple(
        messages.Floor(topic=topic, epoch=order[0], sequence=order[1]) for topic, order in floors.by_topic.items()
    )
    body = messages.FloorsBody(nonce=question.nonce, floors=told, rl_ver=floors.rl_version).encode()
    return await _ack(signer, node_id, body, now=now, epoch=epoch)


def node_topics(node_id: str, path: Sequence[str]) -> tuple[str, ...]:
    """Every topic whose order a node remembers, but for its orders: `path` are its unit and those above it."""
    own = (str(topics.NodePlan(node_id)), str(topics.NodeConfig(node_id)))
    return (*own, *(str(topics.UnitAlert(unit)) for unit in path))


def order_topic(node_id: str) -> str:
    """Where a node's orders come."""
    return str(topics.NodeOrder(node_id))


def plan_topic(node_id: str) -> str:
    """Where a node's plan is retained."""
    return str(topics.NodePlan(node_id))


@dataclass(frozen=True, slots=True)
class KeyTold:
    """One delegation of ours, as nodes are told it."""

    key_id: str
    role: str
    """`authority`, `server`, `time` or `unit`."""
    unit: str
    until: datetime


def keys_told(payload: bytes) -> tuple[tuple[KeyTold, ...], int]:
    """The delegations in a payload of ours for `unit/{u}/keys`, and the highest version of a list of revocations."""
    said = [_statement_told(raw) for raw in messages.split_keys(payload)]
    return tuple(one for one in said if isinstance(one, KeyTold)), max(
        (one for one in said if isinstance(one, int)), default=0
    )


@lru_cache(maxsize=1_024)
def _statement_told(raw: bytes) -> KeyTold | int:
    said = messages.decode_key_statement(parse(raw).body)
    match said:
        case messages.DelegationBody():
            roles = {Kind.KEYS.name: "authority", Kind.ACK.name: "time", Kind.HEAD.name: "server"}
            role = next((role for kind, role in roles.items() if kind in said.may), "unit")
            key_id = key_id_of(bytes.fromhex(said.public_key)).hex()
            return KeyTold(key_id, role, said.unit, from_ms(said.valid_until_ms))
        case messages.RevocationListBody():
            return said.rl_ver
        case _:
            return 0


def _ns(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICRO * 1_000


async def _ack(
    signer: Sealer, node_id: str, body: bytes, *, now: datetime, epoch: int, life_ms: int = ACK_LIFE_MS
) -> bytes:
    issued_ms = to_ms(now)
    (envelope,) = await signer.sign_many(
        [
            SignRequest(
                kind=Kind.ACK,
                unit=None,
                target=node_id,
                issued_ms=issued_ms,
                expires_ms=issued_ms + life_ms,
                epoch=epoch,
                sequence=issued_ms,
                body=body,
            )
        ]
    )
    return envelope
