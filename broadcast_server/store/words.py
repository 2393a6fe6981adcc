"""The words that rows hold; shared by store, control and api so that none invents a synonym."""

from __future__ import annotations

from enum import StrEnum


class Tier(StrEnum):
    """Whose feed it is (tầng của nguồn tiếp âm)."""

    NATIONAL = "national"
    PROVINCE = "province"
    DISTRICT = "district"
    OTHER = "other"


class FeedKind(StrEnum):
    """How a feed reaches us."""

    PULL = "pull"
    PUSH = "push"


class FeedState(StrEnum):
    """What a feed is doing."""

    UNKNOWN = "unknown"
    CONNECTING = "connecting"
    HEALTHY = "healthy"
    STALLED = "stalled"
    DEAD = "dead"
    IDLE = "idle"


class RelayedKind(StrEnum):
    """What sounds on a feed's stream."""

    FEED = "feed"
    SUBSTITUTE = "substitute"
    FILLER = "filler"
    SILENCE = "silence"


class ListenAt(StrEnum):
    """Where one listens in."""

    RELAY = "relay"
    """What goes out, whatever stands in, after the delay."""
    SOURCE = "source"
    """What the feed itself gives, before the delay: the ear for the cut button."""


class MediaKind(StrEnum):
    """What a bulletin version is made of."""

    TEXT = "text"
    AUDIO = "audio"


class VersionState(StrEnum):
    """Life of a bulletin version; approval is over the content hash."""

    DRAFT = "draft"
    SUBMITTED = "submitted"
    """It waits for somebody else to hear it."""
    APPROVED = "approved"
    REJECTED = "rejected"
    RECALLED = "recalled"


class StepOf(StrEnum):
    """What an approval step is about."""

    VERSION = "version"
    PROGRAMME = "programme"
    SCHEDULE = "schedule"
    """A placement: what is to sound, for whom, when."""


class Step(StrEnum):
    """One step on the way to the air; who took it is kept by user id, so a new name hides nobody."""

    WRITE = "write"
    SUBMIT = "submit"
    WITHDRAW = "withdraw"
    APPROVE = "approve"
    REJECT = "reject"
    VOID = "void"
    """Something it was over has changed."""
    RECALL = "recall"


class Unapproved(StrEnum):
    """Why something does not sound for want of an approval: the facts' `because`."""

    DRAFT = "draft"
    WAITING = "waiting"
    """Submitted, and nobody has decided."""
    REJECTED = "rejected"
    RECALLED = "recalled"
    CHANGED = "changed"
    """What was approved is not this any more."""
    PLACE_WAITING = "place_waiting"
    """Where and when it is to sound waits for an approval."""
    PLACE_CHANGED = "place_changed"


class ReviewFinding(StrEnum):
    """What a review says of a break-glass."""

    JUSTIFIED = "justified"
    UNJUSTIFIED = "unjustified"


class ContentKind(StrEnum):
    """What a schedule sounds."""

    BULLETIN = "bulletin"
    PROGRAMME = "programme"
    FEED = "feed"
    LIVE = "live"
    """A voice at a microphone; `content_id` is the live session, and its stream."""


class ScheduleKind(StrEnum):
    """Why it sounds: the broadcast's kind in reports."""

    ANNOUNCEMENT = "announcement"
    PLAY_NOW = "play_now"
    RELAY = "relay"
    LIVE = "live"
    EMERGENCY = "emergency"


class ScheduleState(StrEnum):
    """Whether it is in force."""

    ACTIVE = "active"
    CANCELLED = "cancelled"


class ExceptionKind(StrEnum):
    """How one occurrence differs from its schedule."""

    CANCELLED = "cancelled"
    MOVED = "moved"
    CUT = "cut"


class LiveState(StrEnum):
    """Whether somebody may speak."""

    OPEN = "open"
    CLOSED = "closed"


class LiveEnd(StrEnum):
    """Why a live session ended."""

    CLOSED = "closed"
    """By the speaker, or by somebody who may stop what sounds."""
    LOST = "lost"
    """No packet and no renewal for too long."""
    LIMIT = "limit"
    """The time the policy gives was over."""
    STOPPED = "stopped"
    """Its entry was taken off the air."""


class RecordingState(StrEnum):
    """What became of the recording of a live session."""

    PENDING = "pending"
    KEPT = "kept"
    EMPTY = "empty"
    """Nothing was said."""


class ConflictKind(StrEnum):
    """What is in the way of coming entries."""

    NOT_OFFERED = "not_offered"
    OFFER_EXPIRES = "offer_expires"
    OFFER_WITHDRAWN = "offer_withdrawn"
    FEED_REVOKED = "feed_revoked"
    FEED_DEAD = "feed_dead"
    ENTRY_DROPPED = "entry_dropped"
    APPROVAL_VOID = "approval_void"
    ASSET_MISSING = "asset_missing"
    CONTENT_EXPIRED = "content_expired"
    REFUSED_BY_POLICY = "refused_by_policy"
    PLAN_TOO_LARGE = "plan_too_large"
    NOT_STAGGERED = "not_staggered"


class ArrivalState(StrEnum):
    """What became of a bulletin that was sent down, at one unit."""

    WAITING = "waiting"  # in the unit's inbox, or about to be placed by the server
    PLANNED = "planned"  # it has a place on the air, or had one; the play log says what was heard
    REFUSED = "refused"  # the unit said no, with a reason
    LAPSED = "lapsed"  # the deadline passed without a decision
    UNPLACED = "unplaced"  # the server found no place for it; the reason says why
    RECALLED = "recalled"  # the sender took it back
    REPLACED = "replaced"  # the sender corrected it; another arrival stands for it


class TieState(StrEnum):
    """Whether the commune has ordered bulletins of *ưu tiên* that are due at once."""

    PENDING = "pending"
    DECIDED = "decided"  # by the commune
    DEFAULTED = "defaulted"  # by the declared default, at the deadline
    GONE = "gone"  # they are not due at once any more


class OutboxState(StrEnum):
    """Life of something a node must acknowledge."""

    PENDING = "pending"
    SENT = "sent"
    ACKNOWLEDGED = "acknowledged"
    EXPIRED = "expired"


class NodeState(StrEnum):
    """Life of a node: only an active one sounds what is planned or warned."""

    PROBATION = "probation"
    """Enrolled; nobody has approved yet that it hangs where it should."""
    ACTIVE = "active"
    QUARANTINED = "quarantined"
    """Two devices speak with its key, or an officer says so."""
    RETIRED = "retired"


class QuarantineReason(StrEnum):
    """Why a node was put into quarantine."""

    LOG_FORK = "log_fork"
    """Its log was told in two versions."""
    TWO_PLACES = "two_places"
    """Two devices take turns under its name."""
    CLAIMED_TWICE = "claimed_twice"
    """A second device came with its claim code."""
    BY_OFFICER = "by_officer"


class EmergencyMode(StrEnum):
    """Whether the danger is real; signed with the alert, so a node cannot mistake one for the other."""

    REAL = "real"
    DRILL = "drill"


class EmergencyNature(StrEnum):
    """What an emergency says of itself; the wire's `AlertNature`."""

    ALERT = "alert"
    CORRECTION = "correction"
    FINAL = "final"


class EmergencyState(StrEnum):
    """Life of an emergency. One that is in force and past its `expires_at` has expired; no row changes for that."""

    PROPOSED = "proposed"
    WITHDRAWN = "withdrawn"
    """Proposed, and never launched."""
    IN_FORCE = "in_force"
    CANCELLED = "cancelled"
    REPLACED = "replaced"
    """A correction or the final notice stands in its place."""


class Role(StrEnum):
    """Who somebody is at a place (domain.md's matrix); what a role may do stands in `control.access`."""

    ADMIN = "admin"
    PROVINCE_EDITOR = "province_editor"
    PRODUCER = "producer"
    LEADER = "leader"
    COMMUNE_HEAD = "commune_head"
    BROADCASTER = "broadcaster"
    LIVE_PERMIT = "live_permit"
    HAMLET_HEAD = "hamlet_head"
    TECHNICIAN = "technician"
    INSPECTOR = "inspector"
    FEED_PUSHER = "feed_pusher"
