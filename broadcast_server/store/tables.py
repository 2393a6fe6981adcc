"""The core's tables: flat, no methods, no relationships loaded by surprise.

Every row that belongs to a place has a `unit_id`. Instants are `UtcDateTime` columns; local dates of the law (a
district's closing day) are dates. JSON columns hold what is read whole and never searched. Features bring tables of
their own.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from broadcast_server.domain.delivery import DeliveryState
from broadcast_server.domain.proof import Verdict
from broadcast_server.store.types import UtcDateTime, Word
from broadcast_server.store.words import (
    ArrivalState,
    ConflictKind,
    ContentKind,
    EmergencyMode,
    EmergencyNature,
    EmergencyState,
    ExceptionKind,
    FeedKind,
    FeedState,
    LiveEnd,
    LiveState,
    MediaKind,
    NodeState,
    OutboxState,
    RecordingState,
    RelayedKind,
    Role,
    ScheduleKind,
    ScheduleState,
    Tier,
    TieState,
    VersionState,
)
from speaker_protocol.rules import BulletinClass

Json = dict[str, Any]


class Base(DeclarativeBase):
    """Root of all tables; constraints are named so that both dialects can migrate them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's contract
        datetime: UtcDateTime(),
        str: String(120),
        Json: JSON(),
        list[str]: JSON(),
        int: BigInteger(),
    }


# -- places -----------------------------------------------------------------------------------------------------------


class UnitKindRow(Base):
    """A type of place: province, commune, hamlet; a closed type (district) stays for its history."""

    __tablename__ = "unit_kinds"
    code: Mapped[str] = mapped_column(String(40), primary_key=True)
    name_vi: Mapped[str]
    name_en: Mapped[str]
    closed_on: Mapped[date | None]


class UnitRow(Base):
    """A place, an org unit."""

    __tablename__ = "units"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(ForeignKey("unit_kinds.code"))
    name: Mapped[str]
    name_folded: Mapped[str] = mapped_column(String(120), index=True)
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)


class UnitLinkRow(Base):
    """From `valid_from` up to, not including, `valid_to` the unit lies in the parent."""

    __tablename__ = "unit_links"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    parent_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    valid_from: Mapped[date]
    valid_to: Mapped[date | None]


class PolicyRow(Base):
    """Station policy (quy chế) of a unit, inherited by what lies below until overridden."""

    __tablename__ = "policies"
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), primary_key=True)
    body: Mapped[Json]
    """`domain.policy.policy_to_dict`."""
    updated_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)


class GroupRow(Base):
    """A named set of clusters of one unit."""

    __tablename__ = "groups"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    name: Mapped[str]
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)


class GroupMemberRow(Base):
    """A cluster in a group."""

    __tablename__ = "group_members"
    group_id: Mapped[str] = mapped_column(ForeignKey("groups.id"), primary_key=True)
    cluster_id: Mapped[str] = mapped_column(ForeignKey("clusters.id"), primary_key=True, index=True)


# -- fleet ------------------------------------------------------------------------------------------------------------


class ClusterRow(Base):
    """The thing in the place: receiver, amplifier, horns (cụm loa)."""

    __tablename__ = "clusters"
    __table_args__ = (UniqueConstraint("unit_id", "code"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    code: Mapped[str] = mapped_column(String(40))
    name: Mapped[str]
    name_folded: Mapped[str] = mapped_column(String(120), index=True)
    latitude: Mapped[float | None]
    longitude: Mapped[float | None]
    config: Mapped[Json]
    """`volume` steps, `delay_trim_ms`, `quiet` windows; keys of the wire's node config."""
    created_at: Mapped[datetime]
    retired_at: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(default=1)


class NodeRow(Base):
    """The networked controller that drives a cluster; a repair swaps it, the cluster stays."""

    __tablename__ = "nodes"
    __table_args__ = (
        # One life at a time for a device key: a retired node's box may be enrolled again, its old row keeps its
        # evidence.
        Index(
            "uq_nodes_public_key_live",
            "public_key",
            unique=True,
            sqlite_where=text("retired_at IS NULL"),
            postgresql_where=text("retired_at IS NULL"),
        ),
    )
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    cluster_id: Mapped[str] = mapped_column(ForeignKey("clusters.id"), index=True)
    public_key: Mapped[str] = mapped_column(String(64), index=True)
    hardware: Mapped[str]
    firmware: Mapped[str]
    broker_password_line: Mapped[str] = mapped_column(String(300))
    """Mosquitto's salted hash form; the password itself is told once, at enrolment."""
    asset_token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    enrolled_at: Mapped[datetime]
    retired_at: Mapped[datetime | None]
    state: Mapped[NodeState] = mapped_column(Word(NodeState), default=NodeState.ACTIVE)
    state_reason: Mapped[str | None] = mapped_column(String(300))
    serial: Mapped[str | None] = mapped_column(String(40), index=True)
    version: Mapped[int] = mapped_column(default=1)
    """Rises with every change of state."""


class NodeStatusRow(Base):
    """The node's last word, rewritten often, so apart from the register. `since` is when `link` changed.

    `due`: the coming recorded items and whether they are there, told only now and then: older than the rest.
    """

    __tablename__ = "node_statuses"
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), primary_key=True)
    link: Mapped[str] = mapped_column(String(10))
    since: Mapped[datetime]
    seen_at: Mapped[datetime]
    boot_id: Mapped[str] = mapped_column(String(64))
    plan_sha256: Mapped[str | None] = mapped_column(String(64))
    highest_epoch: Mapped[int] = mapped_column(default=0)
    highest_sequence: Mapped[int] = mapped_column(default=0)
    sounding: Mapped[str | None]
    body: Mapped[Json]
    due: Mapped[Json | None]


class LinkSpanRow(Base):
    """When a node was reachable, `[since, until)`; proof needs it to tell MISSED from UNKNOWN."""

    __tablename__ = "link_spans"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), index=True)
    since: Mapped[datetime]
    until: Mapped[datetime | None] = mapped_column(index=True)


class EnrolmentTokenRow(Base):
    """The right to enrol so many nodes for one unit."""

    __tablename__ = "enrolment_tokens"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    uses_left: Mapped[int]
    activates: Mapped[bool] = mapped_column(default=False)
    """Whether what enrols with it is active at once."""
    expires_at: Mapped[datetime]
    created_by: Mapped[str]
    created_at: Mapped[datetime]


# -- feeds ------------------------------------------------------------------------------------------------------------


class FeedRow(Base):
    """A source to relay (nguồn tiếp âm): a noun with an owner."""

    __tablename__ = "feeds"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    name: Mapped[str]
    name_folded: Mapped[str] = mapped_column(String(120), index=True)
    tier: Mapped[Tier] = mapped_column(Word(Tier))
    kind: Mapped[FeedKind] = mapped_column(Word(FeedKind))
    url: Mapped[str | None] = mapped_column(String(500))
    mount: Mapped[str | None] = mapped_column(String(64), unique=True)
    push_user: Mapped[str | None]
    push_secret_hash: Mapped[str | None] = mapped_column(String(200))
    credential_version: Mapped[int] = mapped_column(default=0)
    """Rises with rotate and revoke; a live connection of an older version is cut."""
    revoked_at: Mapped[datetime | None]
    successor_id: Mapped[str | None] = mapped_column(ForeignKey("feeds.id"))
    valid_from: Mapped[datetime | None]
    valid_to: Mapped[datetime | None]
    filler_id: Mapped[str | None] = mapped_column(String(32))
    """An approved bulletin that is looped when neither the feed nor a substitute sounds and the communes name none."""
    delay_ms: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    """So long sound is held before it goes out, for the cut button."""
    cut_at: Mapped[datetime | None]
    cut_by: Mapped[str | None]
    stopped_at: Mapped[datetime | None]
    """Relayed nowhere from here on, until released."""
    stopped_by: Mapped[str | None]
    stop_reason: Mapped[str | None] = mapped_column(String(300))
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)


class FeedSubstituteRow(Base):
    """Who stands in for a feed that gives no good sound, in order of `position`."""

    __tablename__ = "feed_substitutes"
    feed_id: Mapped[str] = mapped_column(ForeignKey("feeds.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    substitute_id: Mapped[str] = mapped_column(ForeignKey("feeds.id"), index=True)


class RelaySpanRow(Base):
    """What a feed's stream sounded on the speakers, `[since, until)`: the feed, a substitute, the filler, nothing.

    `until` null: still so as of `seen_at`. `reason`: why it began; `end_reason`: why it ended, codes both.
    """

    __tablename__ = "relay_spans"
    __table_args__ = (Index("ix_relay_spans_feed", "feed_id", "since"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    feed_id: Mapped[str] = mapped_column(ForeignKey("feeds.id"))
    kind: Mapped[RelayedKind] = mapped_column(Word(RelayedKind))
    source_id: Mapped[str | None] = mapped_column(String(64))
    """The substitute feed's id, or the filler's SHA-256."""
    reason: Mapped[str]
    since: Mapped[datetime]
    until: Mapped[datetime | None] = mapped_column(index=True)
    end_reason: Mapped[str | None]
    seen_at: Mapped[datetime]


class PushSessionRow(Base):
    """One connection of a station's source client, or its refusal, and how it ended. `reason` null: connected."""

    __tablename__ = "push_sessions"
    __table_args__ = (Index("ix_push_sessions_feed", "feed_id", "since"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    feed_id: Mapped[str] = mapped_column(ForeignKey("feeds.id"))
    since: Mapped[datetime]
    until: Mapped[datetime | None]
    reason: Mapped[str | None]
    seen_at: Mapped[datetime]
    bytes_in: Mapped[int] = mapped_column(default=0)
    agent: Mapped[str] = mapped_column(String(200))
    address: Mapped[str]
    attempts: Mapped[int] = mapped_column(default=1)
    """How often it was refused so, within minutes, from one address."""


class FeedStatusRow(Base):
    """What the feed was last seen doing, by the relay or by the probe."""

    __tablename__ = "feed_statuses"
    feed_id: Mapped[str] = mapped_column(ForeignKey("feeds.id"), primary_key=True)
    state: Mapped[FeedState] = mapped_column(Word(FeedState))
    reason: Mapped[str | None]
    since: Mapped[datetime]
    seen_at: Mapped[datetime]
    body: Mapped[Json]


class FeedOfferRow(Base):
    """The owner lets a unit and what lies below it relay the feed, `[valid_from, valid_to)`, on a stated basis."""

    __tablename__ = "feed_offers"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    feed_id: Mapped[str] = mapped_column(ForeignKey("feeds.id"), index=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    valid_from: Mapped[datetime]
    valid_to: Mapped[datetime | None]
    basis: Mapped[str] = mapped_column(String(300))
    withdrawn_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class ObligationRow(Base):
    """A unit and what lies below it must carry this feed or bulletin; it places a required schedule."""

    __tablename__ = "obligations"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    content_kind: Mapped[ContentKind] = mapped_column(Word(ContentKind))
    content_id: Mapped[str] = mapped_column(String(32), index=True)
    schedule_id: Mapped[str] = mapped_column(ForeignKey("schedules.id"))
    basis: Mapped[str] = mapped_column(String(300))
    valid_from: Mapped[datetime]
    valid_to: Mapped[datetime | None]
    created_at: Mapped[datetime]


# -- library ----------------------------------------------------------------------------------------------------------


class AssetRow(Base):
    """Audio by the hash of its bytes; the file lies in the asset store."""

    __tablename__ = "assets"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    label: Mapped[str] = mapped_column(String(200))
    size_bytes: Mapped[int]
    duration_ms: Mapped[int]
    report: Mapped[Json]
    """Loudness, true peak, silence, clipping as measured."""
    cues: Mapped[list[Any]] = mapped_column(JSON)
    """`{item_id, role, at_ms, duration_ms}` of a rendered programme."""
    created_at: Mapped[datetime]
    keep_until: Mapped[datetime | None]
    collected_at: Mapped[datetime | None]
    """When retention took the file; the row stays, because the play log names it."""


class BulletinRow(Base):
    """A bulletin (bản tin); what is said stands in its versions."""

    __tablename__ = "bulletins"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    title: Mapped[str] = mapped_column(String(300))
    title_folded: Mapped[str] = mapped_column(String(300), index=True)
    klass: Mapped[BulletinClass] = mapped_column(Word(BulletinClass))
    subject: Mapped[str | None]
    valid_from: Mapped[datetime | None]
    valid_to: Mapped[datetime | None]
    key: Mapped[str | None] = mapped_column(String(120), index=True)
    """Its name in an imported document: the same key of the same unit again changes this one instead of adding another.
    """
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)


class BulletinVersionRow(Base):
    """One wording in one language (ISO 639-3). The approval is over `content_hash`: any change voids it."""

    __tablename__ = "bulletin_versions"
    __table_args__ = (UniqueConstraint("bulletin_id", "language", "number"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    bulletin_id: Mapped[str] = mapped_column(ForeignKey("bulletins.id"), index=True)
    number: Mapped[int]
    language: Mapped[str] = mapped_column(String(3))
    media: Mapped[MediaKind] = mapped_column(Word(MediaKind))
    text: Mapped[str | None] = mapped_column(Text)
    voice: Mapped[str | None]
    asset_sha256: Mapped[str | None] = mapped_column(ForeignKey("assets.sha256"))
    content_hash: Mapped[str] = mapped_column(String(64))
    state: Mapped[VersionState] = mapped_column(Word(VersionState))
    approved_by: Mapped[str | None]
    approved_at: Mapped[datetime | None]
    approved_hash: Mapped[str | None] = mapped_column(String(64))
    created_by: Mapped[str]
    created_at: Mapped[datetime]


class ProgrammeRow(Base):
    """A programme (chương trình): ordered items rendered to one asset."""

    __tablename__ = "programmes"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    title: Mapped[str] = mapped_column(String(300))
    title_folded: Mapped[str] = mapped_column(String(300), index=True)
    items: Mapped[list[Any]] = mapped_column(JSON)
    """`{item_id, role, bulletin_id | asset_sha256, gain_db}` in order."""
    asset_sha256: Mapped[str | None] = mapped_column(ForeignKey("assets.sha256"))
    content_hash: Mapped[str | None] = mapped_column(String(64))
    submitted_hash: Mapped[str | None] = mapped_column(String(64))
    """What waits for somebody else to hear it."""
    approved_by: Mapped[str | None]
    approved_at: Mapped[datetime | None]
    approved_hash: Mapped[str | None] = mapped_column(String(64))
    key: Mapped[str | None] = mapped_column(String(120), index=True)
    """Its name in an imported document: the same key of the same unit again changes this one instead of adding another.
    """
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)


# -- schedules --------------------------------------------------------------------------------------------------------


class ScheduleRow(Base):
    """What should sound: content, targets, rule. "From here on" ends one row and begins another of the same
    `series_id`.
    """

    __tablename__ = "schedules"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    series_id: Mapped[str] = mapped_column(String(32), index=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    kind: Mapped[ScheduleKind] = mapped_column(Word(ScheduleKind))
    klass: Mapped[BulletinClass] = mapped_column(Word(BulletinClass))
    level: Mapped[int]
    """Place on the ladder (`rules.Level`)."""
    content_kind: Mapped[ContentKind] = mapped_column(Word(ContentKind))
    content_id: Mapped[str] = mapped_column(String(32), index=True)
    language: Mapped[str] = mapped_column(String(3), default="vie")
    rule: Mapped[Json]
    """`domain.recurrence.rule_to_dict`."""
    length_ms: Mapped[int | None]
    """Window of one occurrence: a relay lasts so long; None: as long as the content."""
    max_wait_ms: Mapped[int] = mapped_column(default=0)
    """How long a recorded item may wait for its turn."""
    late: Mapped[Json] = mapped_column(default=dict)
    """`rules.LatePolicy` as data."""
    tie_order: Mapped[int] = mapped_column(default=0)
    """The commune's order among equals of *ưu tiên*; lower goes first."""
    gain_db: Mapped[float] = mapped_column(default=0.0)
    required: Mapped[bool] = mapped_column(default=False)
    needs_approval: Mapped[bool] = mapped_column(default=False, server_default=false())
    """The station's regulations ask for somebody to approve the placement; without it nothing sounds."""
    approved_by: Mapped[str | None]
    approved_at: Mapped[datetime | None]
    approved_hash: Mapped[str | None] = mapped_column(String(64))
    """`domain.placement.placement_hash` as it was approved: other content, targets or window, and it is void."""
    state: Mapped[ScheduleState] = mapped_column(Word(ScheduleState), index=True)
    starts_at: Mapped[datetime] = mapped_column(index=True)
    """No occurrence begins before; the planner's index."""
    ends_at: Mapped[datetime | None] = mapped_column(index=True)
    """No occurrence begins at or after; None: open."""
    key: Mapped[str | None] = mapped_column(String(120), index=True)
    """Its name in an imported document: the same key of the same unit again changes this one instead of adding another.
    """
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)


class ScheduleTargetRow(Base):
    """Where a schedule sounds; `kind` is `domain.places.TargetKind`."""

    __tablename__ = "schedule_targets"
    schedule_id: Mapped[str] = mapped_column(ForeignKey("schedules.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(10), primary_key=True)
    ref: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)


class ScheduleExceptionRow(Base):
    """One occurrence that differs: `occurs_at` is the instant the rule gives."""

    __tablename__ = "schedule_exceptions"
    schedule_id: Mapped[str] = mapped_column(ForeignKey("schedules.id"), primary_key=True)
    occurs_at: Mapped[datetime] = mapped_column(primary_key=True)
    kind: Mapped[ExceptionKind] = mapped_column(Word(ExceptionKind))
    moved_to: Mapped[datetime | None]
    length_ms: Mapped[int | None]
    cut_at: Mapped[datetime | None]
    waits: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Moved by somebody whose placements need approval."""
    """CUT: it was stopped here while it sounded."""
    created_by: Mapped[str]
    created_at: Mapped[datetime]


class LiveSessionRow(Base):
    """Somebody at a microphone. The id is that of the stream on the wire; the air is its schedule's."""

    __tablename__ = "live_sessions"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    schedule_id: Mapped[str] = mapped_column(ForeignKey("schedules.id"), unique=True)
    entry_id: Mapped[str] = mapped_column(String(120))
    user_id: Mapped[str] = mapped_column(String(32))
    """Who may speak: the person that opened it, from one socket at a time."""
    speaker: Mapped[str]
    title: Mapped[str] = mapped_column(String(200))
    state: Mapped[LiveState] = mapped_column(Word(LiveState), index=True)
    opened_at: Mapped[datetime]
    starts_at: Mapped[datetime]
    ends_at: Mapped[datetime]
    """The latest end, by the policy."""
    closed_at: Mapped[datetime | None]
    end_reason: Mapped[LiveEnd | None] = mapped_column(Word(LiveEnd))
    nodes_planned: Mapped[int]
    heard_ms: Mapped[int] = mapped_column(default=0)
    counts: Mapped[Json] = mapped_column(default=dict)
    """What became of the packets (`domain.voice.VoiceCounts`)."""
    recording_state: Mapped[RecordingState] = mapped_column(Word(RecordingState), index=True)
    recording_sha256: Mapped[str | None] = mapped_column(ForeignKey("assets.sha256"))


class ConflictRow(Base):
    """Coming entries that will not sound as planned, with the way out that is proposed; never a silence nobody was told
    of.
    """

    __tablename__ = "conflicts"
    __table_args__ = (UniqueConstraint("schedule_id", "kind", "subject"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    schedule_id: Mapped[str] = mapped_column(ForeignKey("schedules.id"), index=True)
    kind: Mapped[ConflictKind] = mapped_column(Word(ConflictKind))
    subject: Mapped[str]
    """The offer, feed or entry it is about."""
    affects_from: Mapped[datetime]
    facts: Mapped[Json]
    """Winner, rule, `successor_id` proposed."""
    opened_at: Mapped[datetime]
    closed_at: Mapped[datetime | None] = mapped_column(index=True)


# -- bulletins sent down ----------------------------------------------------------------------------------------------


class SendingRow(Base):
    """One version of a bulletin sent by a unit to units below it: wishes, deadline and the paper it rests on."""

    __tablename__ = "sendings"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    """The sender."""
    bulletin_id: Mapped[str] = mapped_column(ForeignKey("bulletins.id"), index=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("bulletin_versions.id"))
    number: Mapped[int]
    """Of the version."""
    language: Mapped[str] = mapped_column(String(3))
    title: Mapped[str] = mapped_column(String(300))
    klass: Mapped[BulletinClass] = mapped_column(Word(BulletinClass))
    basis: Mapped[str] = mapped_column(String(300))
    earliest: Mapped[datetime | None]
    latest: Mapped[datetime | None]
    """Wishes: it should sound in `[earliest, latest)`."""
    times: Mapped[int] = mapped_column(default=1)
    """Wish: how often it should sound."""
    deadline: Mapped[datetime]
    """Until when a unit decides, or the server places it."""
    valid_to: Mapped[datetime | None]
    """It may not begin at or after."""
    corrects_id: Mapped[str | None] = mapped_column(ForeignKey("sendings.id"), index=True)
    note: Mapped[str | None] = mapped_column(String(300))
    """Why it was recalled, or what it corrects."""
    recalled_at: Mapped[datetime | None]
    recalled_by: Mapped[str | None]
    created_by: Mapped[str]
    created_at: Mapped[datetime]


class ArrivalRow(Base):
    """A sending at one unit: what became of it, who decided, and why not."""

    __tablename__ = "arrivals"
    __table_args__ = (UniqueConstraint("sending_id", "unit_id"), Index("ix_arrivals_inbox", "unit_id", "state"))
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    sending_id: Mapped[str] = mapped_column(ForeignKey("sendings.id"))
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"))
    state: Mapped[ArrivalState] = mapped_column(Word(ArrivalState), index=True)
    reason: Mapped[str | None]
    """Code of why not."""
    facts: Mapped[Json | None]
    """Of the reason."""
    note: Mapped[str | None] = mapped_column(String(300))
    """In the words of who said so."""
    received_at: Mapped[datetime | None]
    received_by: Mapped[str | None]
    decided_at: Mapped[datetime | None]
    decided_by: Mapped[str | None]
    schedule_id: Mapped[str | None] = mapped_column(ForeignKey("schedules.id"), index=True)
    alert_id: Mapped[str | None] = mapped_column(String(32))
    """*Khẩn cấp* sounds as an alert."""
    sounds_at: Mapped[datetime | None]
    """First start as planned."""


class TieRow(Base):
    """Bulletins of *ưu tiên* due at once at one unit: the options, the declared default, and what was decided."""

    __tablename__ = "ties"
    __table_args__ = (UniqueConstraint("unit_id", "subject"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    subject: Mapped[str] = mapped_column(String(64))
    """SHA-256 over the entries' ids: the same collision is one row."""
    state: Mapped[TieState] = mapped_column(Word(TieState), index=True)
    collides_at: Mapped[datetime] = mapped_column(index=True)
    deadline: Mapped[datetime]
    options: Mapped[list[Any]] = mapped_column(JSON)
    """`{entry_id, schedule_id, unit_id, title, level, start, end}` in the order of the declared default."""
    chosen: Mapped[list[str]]
    """Entry ids in the order that holds; the default's until the unit decides."""
    opened_at: Mapped[datetime]
    decided_at: Mapped[datetime | None]
    decided_by: Mapped[str | None]


# -- playout ----------------------------------------------------------------------------------------------------------


class PlanBodyRow(Base):
    """A packed body that the nodes of one target set share, by its hash."""

    __tablename__ = "plan_bodies"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    packed: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]


class NodePlanRow(Base):
    """The plan last published to a node, and what the node said of it."""

    __tablename__ = "node_plans"
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(ForeignKey("plan_bodies.sha256"), index=True)
    epoch: Mapped[int]
    sequence: Mapped[int]
    valid_from: Mapped[datetime]
    valid_until: Mapped[datetime]
    published_at: Mapped[datetime]
    acknowledged_at: Mapped[datetime | None]


class OutboxRow(Base):
    """Something one node must acknowledge: sent again with back-off until it does or it expires."""

    __tablename__ = "outbox"
    __table_args__ = (UniqueConstraint("node_id", "subject"), Index("ix_outbox_due", "state", "due_at"))
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), index=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"))
    subject: Mapped[str]
    """What it is: `plan`, `config`, or `order/{id}`; unique per node."""
    body: Mapped[Json]
    state: Mapped[OutboxState] = mapped_column(Word(OutboxState))
    attempts: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    sent_at: Mapped[datetime | None]
    acknowledged_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class BroadcastRow(Base):
    """One occurrence as it was planned for a target set, or an emergency: what plays are judged against."""

    __tablename__ = "broadcasts"
    id: Mapped[str] = mapped_column(String(120), primary_key=True)
    """The entry id: `{schedule_id}@{rule instant in ms}`, or `alert:{emergency_id}`, whose window is one round."""
    schedule_id: Mapped[str | None] = mapped_column(ForeignKey("schedules.id"), index=True)
    """None: an emergency."""
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    kind: Mapped[ScheduleKind] = mapped_column(Word(ScheduleKind))
    klass: Mapped[BulletinClass] = mapped_column(Word(BulletinClass))
    title: Mapped[str] = mapped_column(String(300))
    starts_at: Mapped[datetime] = mapped_column(index=True)
    ends_at: Mapped[datetime] = mapped_column(index=True)
    feed_id: Mapped[str | None] = mapped_column(ForeignKey("feeds.id"))
    asset_sha256: Mapped[str | None] = mapped_column(String(64))
    approval: Mapped[str | None] = mapped_column(String(64))


class PlayRow(Base):
    """The play log: one planned segment on one cluster, and the verdict over it."""

    __tablename__ = "plays"
    __table_args__ = (
        UniqueConstraint("node_id", "broadcast_id", "starts_at"),
        Index("ix_plays_unit_start", "unit_id", "starts_at"),
    )
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    broadcast_id: Mapped[str] = mapped_column(ForeignKey("broadcasts.id"), index=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"))
    cluster_id: Mapped[str] = mapped_column(ForeignKey("clusters.id"), index=True)
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"))
    starts_at: Mapped[datetime]
    ends_at: Mapped[datetime] = mapped_column(index=True)
    verdict: Mapped[Verdict] = mapped_column(Word(Verdict))
    reason: Mapped[str | None]
    heard_ms: Mapped[int] = mapped_column(default=0)
    started_at: Mapped[datetime | None]
    underruns: Mapped[int] = mapped_column(default=0)
    judged_at: Mapped[datetime | None]


class ReportRow(Base):
    """A device's own log entry as it signed it; append-only, exactly once by its key and, in the chain, by its line.

    `line`, `previous`: place in the device's log and digest of the line before; None outside of the chain (a device
    whose flash was full, one of an older program, a line that another one was there before).
    """

    __tablename__ = "reports"
    __table_args__ = (UniqueConstraint("node_id", "line"),)
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), primary_key=True)
    boot_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    entry_id: Mapped[str] = mapped_column(String(120), index=True)
    segment_start: Mapped[datetime]
    received_at: Mapped[datetime]
    body: Mapped[Json]
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    line: Mapped[int | None]
    previous: Mapped[str | None] = mapped_column(String(64))


class DeviceLogRow(Base):
    """How much of a device's log is here: all lines up to `through`, some up to `highest`. `forked_*`: the first line
    that was told in two versions.
    """

    __tablename__ = "device_logs"
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), primary_key=True)
    through: Mapped[int] = mapped_column(default=0)
    highest: Mapped[int] = mapped_column(default=0)
    forked_at: Mapped[datetime | None]
    forked_line: Mapped[int | None]


class DeviceForkRow(Base):
    """A line that contradicts the chain that is here: evidence that two devices speak with one key."""

    __tablename__ = "device_forks"
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    received_at: Mapped[datetime]
    envelope: Mapped[bytes] = mapped_column(LargeBinary)


class EmergencyRow(Base):
    """A *khẩn cấp*, from its proposal on; what a unit's nodes are told of it stands in `alerts`, one row per unit."""

    __tablename__ = "emergencies"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    """Who launches it; its place gives the level."""
    units: Mapped[list[str]] = mapped_column(JSON)
    """Where it sounds: units of which none lies in another."""
    state: Mapped[EmergencyState] = mapped_column(Word(EmergencyState), index=True)
    mode: Mapped[EmergencyMode] = mapped_column(Word(EmergencyMode))
    nature: Mapped[EmergencyNature] = mapped_column(Word(EmergencyNature))
    replaces_id: Mapped[str | None] = mapped_column(ForeignKey("emergencies.id"), index=True)
    template_id: Mapped[str | None] = mapped_column(String(32))
    """The approved template it was raised from by one person (break-glass)."""
    level: Mapped[int]
    hazard: Mapped[str | None] = mapped_column(String(40))
    phrases: Mapped[list[str]] = mapped_column(JSON)
    text: Mapped[str | None] = mapped_column(Text)
    voice: Mapped[str | None] = mapped_column(String(40))
    bulletin_version_id: Mapped[str | None] = mapped_column(ForeignKey("bulletin_versions.id"))
    asset_sha256: Mapped[str | None] = mapped_column(ForeignKey("assets.sha256"))
    speech_error: Mapped[str | None]
    """Code of why the text could not be spoken; the nodes' own clips stand in."""
    tone_ms: Mapped[int | None]
    times: Mapped[int | None]
    gap_ms: Mapped[int | None]
    every_min: Mapped[int | None]
    expires_min: Mapped[int]
    content_hash: Mapped[str] = mapped_column(String(64))
    """Over what sounds, where, how long, and whether it is a drill: what two people agree to (`domain.consent`)."""
    reason: Mapped[str] = mapped_column(String(300))
    proposed_by: Mapped[str]
    proposed_at: Mapped[datetime] = mapped_column(index=True)
    approved_by: Mapped[str | None]
    launched_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None] = mapped_column(index=True)
    ended_at: Mapped[datetime | None]
    ended_by: Mapped[str | None]
    end_reason: Mapped[str | None] = mapped_column(String(300))


class AlertRow(Base):
    """What is in force for a unit: the body of the wire's alert, until it is cancelled or expires."""

    __tablename__ = "alerts"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    emergency_id: Mapped[str | None] = mapped_column(ForeignKey("emergencies.id"), index=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    level: Mapped[int]
    body: Mapped[Json]
    issued_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    cancelled_at: Mapped[datetime | None]


class StopAllRow(Base):
    """The stop-all latch of a unit: in force until released."""

    __tablename__ = "stop_alls"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    since: Mapped[datetime]
    set_by: Mapped[str]
    reason: Mapped[str | None] = mapped_column(String(300))
    released_at: Mapped[datetime | None] = mapped_column(index=True)
    released_by: Mapped[str | None]
    release_reason: Mapped[str | None] = mapped_column(String(300))


class DeliveryRow(Base):
    """How one node came by one emergency or stop-all, from the intent to what it did."""

    __tablename__ = "deliveries"
    __table_args__ = (
        Index("ix_deliveries_open", "closed_at", "due_at"),
        Index("ix_deliveries_node", "node_id", "closed_at"),
    )
    subject: Mapped[str] = mapped_column(String(80), primary_key=True)
    """`alert:{emergency_id}` or `latch:{stop_all_id}`."""
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    cluster_id: Mapped[str] = mapped_column(ForeignKey("clusters.id"))
    state: Mapped[DeliveryState] = mapped_column(Word(DeliveryState))
    reason: Mapped[str | None]
    rounds: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[datetime]
    """When it is sent again unless the node has answered."""
    expires_at: Mapped[datetime | None]
    over_at: Mapped[datetime | None]
    """When it was cancelled, replaced or released."""
    created_at: Mapped[datetime]
    sent_at: Mapped[datetime | None]
    received_at: Mapped[datetime | None]
    sounding_at: Mapped[datetime | None]
    heard_at: Mapped[datetime | None]
    cleared_at: Mapped[datetime | None]
    """When the node showed, after its end, that it holds it no more."""
    closed_at: Mapped[datetime | None]


class SequenceRow(Base):
    """The last sequence number signed for a topic; numbers only rise."""

    __tablename__ = "sequences"
    name: Mapped[str] = mapped_column(String(160), primary_key=True)
    value: Mapped[int]
    content: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 of the body that carries it: the same body is not given a new number."""


class LeaseRow(Base):
    """Who leads, until when, and the fencing epoch that rises with every change."""

    __tablename__ = "leases"
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    holder: Mapped[str]
    epoch: Mapped[int]
    expires_at: Mapped[datetime]


class FactRow(Base):
    """What the engine room tells the front doors: broker address, root public key, public URL."""

    __tablename__ = "facts"
    name: Mapped[str] = mapped_column(String(60), primary_key=True)
    value: Mapped[Json]
    updated_at: Mapped[datetime]


class JobRow(Base):
    """What a named job of the alarm clock did last."""

    __tablename__ = "jobs"
    name: Mapped[str] = mapped_column(String(60), primary_key=True)
    next_at: Mapped[datetime | None]
    last_at: Mapped[datetime | None]
    last_outcome: Mapped[str | None] = mapped_column(String(200))


# -- people -----------------------------------------------------------------------------------------------------------


class UserRow(Base):
    """A person; how one proves to be them is `store.tables_identity`."""

    __tablename__ = "users"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    login: Mapped[str] = mapped_column(String(60), unique=True)
    name: Mapped[str]
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class GrantRow(Base):
    """A role over a subtree, dated."""

    __tablename__ = "grants"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    role: Mapped[Role] = mapped_column(Word(Role))
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"))
    valid_from: Mapped[datetime]
    valid_to: Mapped[datetime | None]


class TokenRow(Base):
    """A bearer token, by the hash of its secret."""

    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str]
    scope: Mapped[Json | None]
    """`actions` and `units` it is limited to, each a list or absent; null: all that its owner may."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class AuditRow(Base):
    """Who did what to what: append-only, each row chained to the one before by its hash."""

    __tablename__ = "audit"
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(index=True)
    actor: Mapped[str]
    verb: Mapped[str] = mapped_column(String(60), index=True)
    unit_id: Mapped[str | None] = mapped_column(String(64), index=True)
    subject: Mapped[str] = mapped_column(String(160), index=True)
    detail: Mapped[Json]
    previous_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class IdempotencyRow(Base):
    """The answer given to a request key, so that a repeated request does nothing twice."""

    __tablename__ = "idempotency"
    user_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    key: Mapped[str] = mapped_column(String(120), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    status: Mapped[int]
    body: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(index=True)
