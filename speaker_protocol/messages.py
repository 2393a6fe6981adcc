"""Every body on the wire, and how the three composed payloads (plan, keys, report) are put together.

Bodies are compact JSON. Unknown fields are ignored, unless the body's `crit` names them: then who does not know them
refuses. A name that stands twice, or bytes after the end, make it no body; unknown kinds are answered with a counted
refusal. Instants are integer UTC milliseconds (`_ms`); only the clock exchange counts nanoseconds (`_ns`). What must be
believed travels inside a `signing` envelope; a node's status and time question are trusted no further than the broker's
access list.

A signature says who speaks, not that he is sane: every number has a range in which the reader can calculate, every
id that becomes a topic has a topic's letters.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from speaker_protocol.rounds import AlertNature as AlertNature  # noqa: PLC0414  (part of the bodies' vocabulary)
from speaker_protocol.rules import BulletinClass, SourceKind
from speaker_protocol.signing import EVERYWHERE, EnvelopeRefused, Kind, KnownKey, Refusal

MAX_PLAN_BODY_BYTES: Final = 4 * 1024 * 1024
"""What an unpacked plan body may hold; a larger one is refused before it is unpacked."""
MAX_SEGMENTS: Final = 5_000
MAX_ALERTS: Final = 255
MAX_KEY_STATEMENTS: Final = 128
"""Each costs a verification; more than a unit will ever have."""
_MOST_OF_A_PLAN: Final = (4 * MAX_SEGMENTS, 50 * MAX_SEGMENTS)
"""Brackets and commas of the largest plan, and to spare: beyond it JSON is not looked at, it only costs time."""
_MOST: Final = (4_000, 20_000)
"""The same for every other body."""
_MAX_WORD_BRACKETS: Final = 1_000
"""The same for what nobody signs: a status names some hundred things at most."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Id = Annotated[str, Field(min_length=1, max_length=64)]
TopicId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._~-]{1,64}$")]
"""An id that becomes a level of a topic."""
Ms = Annotated[int, Field(ge=0, lt=1 << 53)]
AnyNs = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
"""A reading of a device's own clock, which may show anything."""
UtcNs = Annotated[int, Field(ge=10**18, lt=1 << 62)]
"""The server's time: from 2001 to 2116."""
Db = Annotated[float, Field(ge=-120, le=60)]
LevelNumber = Annotated[int, Field(ge=0, le=1_000)]
"""Place on the ladder (`rules.Level`)."""


class Body(BaseModel):
    """Root of all bodies: frozen, unknown fields ignored, None never sent, every number a number."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    def encode(self) -> bytes:
        """Compact JSON, UTF-8."""
        return self.model_dump_json(exclude_none=True).encode("utf-8")


B = TypeVar("B", bound=Body)


CRITICAL: Final = "crit"
"""In any body: names of its fields that must be understood by whoever obeys it."""


def decode(model: type[B], raw: bytes) -> B:
    """The body of an envelope, or `EnvelopeRefused` (BODY, CRITICAL_FIELD); one key twice is refused too."""
    told = _only_once(raw, _MOST_OF_A_PLAN if model is PlanBody else _MOST)
    body = _read(model, raw)
    _require_understood(told, model)
    return body


def decode_unsigned(model: type[B], raw: bytes) -> B:
    """The same for what nobody signs, thousands of times a minute: of a key that comes twice the last one counts."""
    if raw.count(b"[") + raw.count(b"{") > _MAX_WORD_BRACKETS:
        raise EnvelopeRefused(Refusal.BODY)
    return _read(model, raw)


def _read(model: type[B], raw: bytes) -> B:
    try:
        return model.model_validate_json(raw)
    except ValidationError:
        raise EnvelopeRefused(Refusal.BODY) from None


def _only_once(raw: bytes, most: tuple[int, int] = _MOST) -> Any:
    """What JSON says. Raises `EnvelopeRefused(BODY)` where it says a key twice, or is larger than what is meant."""
    if raw.count(b"[") + raw.count(b"{") > most[0] or raw.count(b",") > most[1]:
        raise EnvelopeRefused(Refusal.BODY)
    try:
        return json.loads(raw, object_pairs_hook=_object)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, a number of thousands of digits, a hole without end
        raise EnvelopeRefused(Refusal.BODY) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    told = dict(pairs)
    if len(told) != len(pairs):
        raise ValueError
    return told


def _require_understood(told: dict[str, Any], model: type[BaseModel]) -> None:
    """Raises `EnvelopeRefused(CRITICAL_FIELD)` where a body names a field that must be understood and is not."""
    critical = told.get(CRITICAL, ())
    if not isinstance(critical, list | tuple) or any(
        not isinstance(name, str) or name not in model.model_fields for name in critical
    ):
        raise EnvelopeRefused(Refusal.CRITICAL_FIELD)


# -- plan ---------------------------------------------------------------------------------------------------------


class PlanSegment(Body):
    """One stretch of the resolved timeline: sound this, from here to there."""

    entry_id: Annotated[str, Field(min_length=1, max_length=120)]
    """Occurrence it belongs to; the same id in reports and in the play log."""
    start_ms: Ms
    end_ms: Ms
    offset_ms: Ms = 0
    """Position in the asset that sounds at `start_ms`."""
    klass: BulletinClass
    level: LevelNumber
    source: SourceKind
    asset: Sha256 | None = None
    stream: TopicId | None = None
    gain_db: Db = 0.0
    approval: str | None = None
    """Content hash that was approved for this sound."""
    late_at_most_ms: Annotated[int, Field(ge=0)] | None = None
    """A node that could not begin it within so long after its first start skips it; None: it joins midway."""
    tolerates_ms: Annotated[int, Field(ge=1, le=60_000)] | None = None
    """Clock uncertainty up to which a node may sound it; None: the usual limit of a minute."""


class PlanAsset(Body):
    """One file the plan needs: Ogg Opus, 48 kHz mono, fetched by its hash and checked against it."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(gt=0)]
    duration_ms: Ms


class PlanBody(Body):
    """What all nodes of one target set share. Segments are ordered and disjoint."""

    segments: Annotated[tuple[PlanSegment, ...], Field(max_length=MAX_SEGMENTS)] = ()
    assets: Annotated[tuple[PlanAsset, ...], Field(max_length=MAX_SEGMENTS)] = ()


class PlanHead(Body):
    """Body of the PLAN envelope: validity, and which shared body it stands for."""

    valid_from_ms: Ms
    valid_until_ms: Ms
    body_sha256: Sha256
    """SHA-256 of the compressed bytes that follow the envelope."""


_LENGTH: Final = struct.Struct(">I")


def pack_plan_body(body: PlanBody) -> bytes:
    """The compressed bytes that every node of one target set receives; the same input gives the same bytes."""
    return zlib.compress(body.encode(), level=6)


def plan_head(packed_body: bytes, *, valid_from_ms: int, valid_until_ms: int) -> PlanHead:
    """The head to sign for a packed body."""
    return PlanHead(
        valid_from_ms=valid_from_ms,
        valid_until_ms=valid_until_ms,
        body_sha256=hashlib.sha256(packed_body).hexdigest(),
    )


def join_plan(envelope: bytes, packed_body: bytes) -> bytes:
    """The payload of `NodePlan`: length of the envelope, envelope, packed body."""
    return _LENGTH.pack(len(envelope)) + envelope + packed_body


def split_plan(payload: bytes) -> tuple[bytes, bytes]:
    """Envelope and packed body, nothing trusted yet. Raises `EnvelopeRefused(GARBAGE)`."""
    if len(payload) < _LENGTH.size:
        raise EnvelopeRefused(Refusal.GARBAGE)
    (length,) = _LENGTH.unpack_from(payload)
    if _LENGTH.size + length > len(payload):
        raise EnvelopeRefused(Refusal.GARBAGE)
    return payload[_LENGTH.size : _LENGTH.size + length], payload[_LENGTH.size + length :]


def open_plan_body(head: PlanHead, packed_body: bytes) -> PlanBody:
    """The body a verified head stands for. Raises `EnvelopeRefused(BODY)` unless it is exactly that body."""
    if hashlib.sha256(packed_body).hexdigest() != head.body_sha256:
        raise EnvelopeRefused(Refusal.BODY)
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(packed_body, MAX_PLAN_BODY_BYTES)
    except zlib.error:
        raise EnvelopeRefused(Refusal.BODY) from None
    if inflater.unconsumed_tail or not inflater.eof:
        raise EnvelopeRefused(Refusal.BODY)
    return decode(PlanBody, raw)


# -- config and orders ----------------------------------------------------------------------------------------------


class VolumeStep(Body):
    """From this local minute of the day on, this gain, until the next step."""

    from_minute: Annotated[int, Field(ge=0, lt=1440)]
    gain_db: Db


class NodeConfigBody(Body):
    """How a node behaves; the node enforces the policy limits by itself."""

    path: Annotated[tuple[TopicId, ...], Field(max_length=32)]
    """The node's own unit and its ancestors, nearest first; the topics it must listen to. Whoever speaks for a place
    says where a node lies within it; from that place upwards the path must be what it was, else it is refused.
    """
    cluster: Id
    groups: tuple[Id, ...] = ()
    active: bool = True
    """False: on probation or in quarantine; nothing sounds but a technician's tone and the code of the binding check.
    """
    utc_offset_min: Annotated[int, Field(ge=-1440, le=1440)] = 420
    quiet_from_min: Annotated[int, Field(ge=0, lt=1440)] = 22 * 60
    quiet_to_min: Annotated[int, Field(ge=0, lt=1440)] = 5 * 60
    """Local minutes of `[from, to)`, crossing midnight is normal; equal values mean no quiet hours."""
    max_class: BulletinClass = BulletinClass.EMERGENCY
    max_gain_db: Db = 0.0
    max_day_min: Annotated[int, Field(ge=0, le=1440)] | None = None
    max_session_min: Annotated[int, Field(ge=0, le=1440)] | None = None
    """Minutes of sound, emergencies apart, in one local day and in one session; None: no limit."""
    alert_gain_db: Db | None = None
    """Gain of an emergency, whatever the volume curve says; None: 0 dB."""
    volume: Annotated[tuple[VolumeStep, ...], Field(max_length=1440)] = ()
    delay_trim_ms: Annotated[int, Field(ge=-2_000, le=2_000)] = 0
    assets_url: str
    """An asset is at `{assets_url}/{sha256}`."""
    status_interval_s: Annotated[int, Field(ge=1, le=3_600)] = 30


class OrderVerb(StrEnum):
    """What may be ordered."""

    IDENTIFY = "identify"
    REBOOT = "reboot"
    TEST_TONE = "test_tone"
    SPEAK_CODE = "speak_code"


class OrderBody(Body):
    """A true event; done once, never after the envelope's expiry."""

    order_id: Id
    verb: OrderVerb
    seconds: Annotated[int, Field(ge=0, le=60)] = 0
    code: Annotated[str, Field(pattern=r"^[0-9]{4}$")] | None = None
    """What `speak_code` speaks, digit by digit, softly."""


# -- alerts ---------------------------------------------------------------------------------------------------------


class AlertBody(Body):
    """One emergency in force: attention tone, then the message `times` over, all of it again every `every_min`.

    The message is `asset` where the node holds it, else the node's own clips for `hazard` and `phrases`. None means the
    usual figure of `rounds`.
    """

    alert_id: Id
    level: LevelNumber
    klass: BulletinClass = BulletinClass.EMERGENCY
    issued_ms: Ms
    expires_ms: Ms
    asset: Sha256 | None = None
    asset_ms: Ms | None = None
    asset_bytes: Annotated[int, Field(gt=0)] | None = None
    text: str | None = None
    hazard: Annotated[str, Field(max_length=40)] | None = None
    phrases: Annotated[tuple[Annotated[str, Field(max_length=40)], ...], Field(max_length=12)] | None = None
    drill: bool = False
    nature: AlertNature | None = None
    replaces: Id | None = None
    tone_ms: Annotated[int, Field(ge=4_000, le=10_000)] | None = None
    times: Annotated[int, Field(ge=1, le=20)] | None = None
    gap_ms: Annotated[int, Field(ge=0, le=60_000)] | None = None
    every_min: Annotated[int, Field(ge=1, le=1440)] | None = None
    """A round begins so often until expiry or cancel; None: one round."""


class StopAllLatch(Body):
    """Everything is silent until this latch is released."""

    latch_id: Id
    since_ms: Ms


class AlertSetBody(Body):
    """All that is in force for a unit: state, not an event. An empty set is sent as an empty set."""

    alerts: Annotated[tuple[AlertBody, ...], Field(max_length=MAX_ALERTS)] = ()
    stop_all: StopAllLatch | None = None


# -- keys -----------------------------------------------------------------------------------------------------------


MAX_REVOKED: Final = 500
KeyId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class DelegationBody(Body):
    """The root, or an authority it delegated to, says: this key may speak for this unit and what lies below it.

    The envelope's target is the unit. A key that may sign KEYS is an authority: it signs nothing else, only the root
    makes it, and what it delegates lies within its own unit, class and validity.
    """

    kind: Literal["delegation"] = "delegation"
    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    unit: Id
    """`*`: every unit."""
    may: tuple[str, ...]
    """Names of `signing.Kind` this key may sign."""
    max_class: BulletinClass
    valid_from_ms: Ms
    valid_until_ms: Ms

    def key(self, issuer: bytes | None = None) -> KnownKey:
        """What a `KeyRing` learns from it, kinds this version does not know left out. `issuer`: None is the root."""
        return KnownKey(
            public=bytes.fromhex(self.public_key),
            unit=None if self.unit == EVERYWHERE else self.unit,
            kinds=frozenset(Kind[name] for name in self.may if name in Kind.__members__),
            max_class=self.max_class.value,
            valid_from_ms=self.valid_from_ms,
            valid_until_ms=self.valid_until_ms,
            issuer=issuer,
        )


class RevocationBody(Body):
    """The root says: from this instant on obey this key no more."""

    kind: Literal["revocation"] = "revocation"
    key_id: KeyId
    at_ms: Ms


class RevokedKey(Body):
    """One line of a list of revocations."""

    key_id: KeyId
    at_ms: Ms


class RevocationListBody(Body):
    """All that its signer revoked; a higher version takes the place of a lower one, never the other way.

    The root may name any key but itself; an authority is heard about keys it delegated. What was once revoked stays so.
    """

    kind: Literal["revocations"] = "revocations"
    rl_ver: Annotated[int, Field(ge=1, lt=1 << 53)]
    revoked: Annotated[tuple[RevokedKey, ...], Field(max_length=MAX_REVOKED)] = ()


KeyStatement = Annotated[DelegationBody | RevocationBody | RevocationListBody, Field(discriminator="kind")]
_KEY_STATEMENT: Final[TypeAdapter[DelegationBody | RevocationBody | RevocationListBody]] = TypeAdapter(KeyStatement)
_SHORT: Final = struct.Struct(">H")


def decode_key_statement(raw: bytes) -> DelegationBody | RevocationBody | RevocationListBody:
    """Body of one KEYS envelope. Raises `EnvelopeRefused` (BODY, CRITICAL_FIELD)."""
    told = _only_once(raw)
    try:
        body = _KEY_STATEMENT.validate_json(raw)
    except ValidationError:
        raise EnvelopeRefused(Refusal.BODY) from None
    _require_understood(told, type(body))
    return body


def join_keys(envelopes: tuple[bytes, ...]) -> bytes:
    """The payload of `UnitKeys`: every statement about the unit's keys, each after its length."""
    return b"".join(_SHORT.pack(len(envelope)) + envelope for envelope in envelopes)


def split_keys(payload: bytes) -> tuple[bytes, ...]:
    """The envelopes, nothing trusted yet. Raises `EnvelopeRefused(GARBAGE)`."""
    envelopes: list[bytes] = []
    at = 0
    while at < len(payload):
        if at + _SHORT.size > len(payload) or len(envelopes) == MAX_KEY_STATEMENTS:
            raise EnvelopeRefused(Refusal.GARBAGE)
        (length,) = _SHORT.unpack_from(payload, at)
        at += _SHORT.size
        if at + length > len(payload):
            raise EnvelopeRefused(Refusal.GARBAGE)
        envelopes.append(payload[at : at + length])
        at += length
    return tuple(envelopes)


# -- streams --------------------------------------------------------------------------------------------------------


class StreamHeadBody(Body):
    """What a live stream is. The envelope's expiry is the lease: no renewal, no sound."""

    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """The stream's own key; it signs the batches of this head only."""
    codec: Literal["opus"] = "opus"
    packets_per_batch: Annotated[int, Field(ge=1, le=250)]
    t0_utc_ms: Ms
    playout_delay_ms: Annotated[int, Field(ge=0, le=30_000)]
    """Sample m of the media is due at `t0_utc_ms + m/48 + playout_delay_ms`."""
    scope: tuple[Id, ...] = ()
    """Units that may sound it; empty: every node whose plan names the stream."""


# -- what nodes say -------------------------------------------------------------------------------------------------


class Link(StrEnum):
    """Whether the node is there."""

    ONLINE = "online"
    OFFLINE = "offline"


class ClockSource(StrEnum):
    """Where the node has its time from."""

    SERVER = "server"
    HOLDOVER = "holdover"
    UNKNOWN = "unknown"


class ClockQuality(Body):
    """What the node believes of its own clock."""

    source: ClockSource
    uncertainty_ms: Annotated[float, Field(ge=0, lt=1 << 53)]
    offset_ms: Annotated[float, Field(gt=-(1 << 53), lt=1 << 53)] = 0.0
    """Correction applied to the device's own clock."""


class AudioState(StrEnum):
    """What the output is occupied with."""

    IDLE = "idle"
    SCHEDULED = "sched"
    LIVE = "live"
    EMERGENCY = "emerg"
    LOCAL = "local"
    """A technician's tone."""


class AlertProgress(Body):
    """How far a node is with one alert."""

    alert_id: Id
    rounds: Annotated[int, Field(ge=0)] = 0
    """Rounds sounded to their end."""
    first_ms: Ms | None = None
    """When its first sample sounded."""
    is_sounding: bool = False
    why: str | None = None
    """Why it does not sound although it is in force."""


class ItemReadiness(Body):
    """Whether the node holds what a coming item needs."""

    entry_id: Annotated[str, Field(min_length=1, max_length=120)]
    start_ms: Ms
    ready: bool


class Anchor(Body):
    """Where the server's audit log stood: the hash of row `sequence`, kept by witnesses outside of its database."""

    sequence: Annotated[int, Field(ge=1, lt=1 << 53)]
    hash: Sha256
    at_ms: Ms


class StatusBody(Body):
    """How a node is; retained, and (with `link` offline) its will."""

    link: Link
    boot_id: Id
    sent_ms: Ms = 0
    plan_sha256: Sha256 | None = None
    plan_order: tuple[int, int] = (0, 0)
    """`(epoch, sequence)` of the plan in force."""
    highest: tuple[int, int] = (0, 0)
    """The highest order seen on any of its topics: a restored server first rises above it."""
    clock: ClockQuality = ClockQuality(source=ClockSource.UNKNOWN, uncertainty_ms=0.0)
    sounding: str | None = None
    stream: Id | None = None
    audio: AudioState | None = None
    health: Annotated[tuple[str, ...], Field(max_length=100)] | None = None
    """Codes of what is wrong with the node now; empty: nothing."""
    alerts: Annotated[tuple[AlertProgress, ...], Field(max_length=32)] | None = None
    """How far it is with each alert in force that it obeys."""
    stop_all: bool | None = None
    due: Annotated[tuple[ItemReadiness, ...], Field(max_length=64)] | None = None
    """The coming recorded items, the soonest first; told when they change and every few minutes, None: as before."""
    ready: Annotated[int, Field(ge=0)] = 0
    missing: Annotated[tuple[Sha256, ...], Field(max_length=200)] = ()
    refusals: Annotated[dict[str, int], Field(max_length=100)] = {}
    """How often it did not obey, by reason."""
    rl_ver: Annotated[int, Field(ge=0, lt=1 << 53)] | None = None
    """The highest version of any list of revocations it holds."""
    keys_until_ms: Ms | None = None
    """Until when it holds a key that may sign its plan; None: it holds none."""
    is_resyncing: bool | None = None
    """True: it has lost its memory and obeys nothing until the server told it the floors."""
    firmware: str = ""
    free_bytes: Annotated[int, Field(ge=0)] = 0
    anchor: Anchor | None = None
    """One of the anchors it was given, another one in each status."""


class ReportKind(StrEnum):
    """What a log entry of the device tells."""

    STARTED = "started"
    FINISHED = "finished"
    NOT_SOUNDED = "not_sounded"
    ORDER_DONE = "order_done"


class ReportBody(Body):
    """One entry of the device's log, signed by the device; `(boot_id, sequence)` makes it unique."""

    boot_id: Id
    sequence: Annotated[int, Field(ge=1)]
    kind: ReportKind
    entry_id: Annotated[str, Field(max_length=200)]
    segment_start_ms: Ms
    at_ms: Ms
    """By the node's disciplined clock: when sound began (started) or ended (finished)."""
    heard_ms: Annotated[int, Field(ge=0)] = 0
    """How long the output really sounded the right thing within this segment."""
    source: SourceKind | None = None
    asset: Sha256 | None = None
    stream: Id | None = None
    underruns: Annotated[int, Field(ge=0)] = 0
    level_dbfs: float | None = None
    uncertainty_ms: float = 0.0
    late_ms: Annotated[int, Field(ge=0)] | None = None
    """How much later than planned it began, when it did not begin on time."""
    reason: str | None = None
    """Why it did not sound, why it was late, or why it ended before its time."""
    line: Annotated[int, Field(ge=1)] | None = None
    """Place in the device's log, over all its boots, without a hole."""
    previous: Sha256 | None = None
    """SHA-256 of the envelope of the line before; None for the first."""


class ReportAckBody(Body):
    """These entries are stored; the node may forget them."""

    kind: Literal["reports"] = "reports"
    boot_id: Id
    sequences: Annotated[tuple[int, ...], Field(max_length=500)]


class TimeQuestionBody(Body):
    """What time is it?"""

    nonce: KeyId
    sent_ns: AnyNs
    """The node's own clock; comes back untouched."""
    resync: bool | None = None
    """True: the node has lost its memory and asks for the floors too."""


class TimeAnswerBody(Body):
    """The server's receive and send instants, UTC nanoseconds."""

    kind: Literal["time"] = "time"
    nonce: KeyId
    asked_ns: AnyNs
    received_ns: UtcNs
    sent_ns: UtcNs
    anchor: Anchor | None = None
    """To be kept and said again in statuses."""


class Floor(Body):
    """Nothing older than this is to be obeyed on this topic; exactly this may be what is retained there."""

    topic: Annotated[str, Field(min_length=1, max_length=160)]
    epoch: Annotated[int, Field(ge=0, lt=1 << 32)]
    sequence: Ms


class FloorsBody(Body):
    """For a node that lost its memory: below what it must not obey, and how old its list of revocations may be."""

    kind: Literal["floors"] = "floors"
    nonce: KeyId
    floors: Annotated[tuple[Floor, ...], Field(max_length=200)]
    rl_ver: Annotated[int, Field(ge=0, lt=1 << 53)] = 0


AckBody = Annotated[ReportAckBody | TimeAnswerBody | FloorsBody, Field(discriminator="kind")]
_ACK: Final[TypeAdapter[ReportAckBody | TimeAnswerBody | FloorsBody]] = TypeAdapter(AckBody)


def decode_ack(raw: bytes) -> ReportAckBody | TimeAnswerBody | FloorsBody:
    """Body of an ACK envelope. Raises `EnvelopeRefused` (BODY, CRITICAL_FIELD)."""
    told = _only_once(raw)
    try:
        body = _ACK.validate_json(raw)
    except ValidationError:
        raise EnvelopeRefused(Refusal.BODY) from None
    _require_understood(told, type(body))
    return body


ALL_BODIES: Final[tuple[type[Body], ...]] = (
    PlanHead,
    PlanBody,
    PlanSegment,
    PlanAsset,
    NodeConfigBody,
    VolumeStep,
    OrderBody,
    AlertSetBody,
    AlertBody,
    StopAllLatch,
    DelegationBody,
    RevocationBody,
    RevocationListBody,
    RevokedKey,
    StreamHeadBody,
    StatusBody,
    Anchor,
    AlertProgress,
    ItemReadiness,
    ClockQuality,
    ReportBody,
    ReportAckBody,
    TimeQuestionBody,
    TimeAnswerBody,
    FloorsBody,
    Floor,
)
