"""Who may do what where: role × subtree of the dated tree, asked once per verb, denied unless a grant says yes.

A maintainer must not break: (1) every verb of `control` calls `authorize` inside its transaction; there is no second
way; (2) `MAY` is the whole truth of roles, nobody compares a role's name elsewhere; (3) a grant reaches down the tree
as it stands at that instant, so moving a place moves who may touch it; (4) an administrator keeps the register and may
not broadcast; (5) what an actor may not even read answers exactly as what does not exist: `authorize` is given the row,
and raises for a hidden one what the store raises for an unknown one.

Source: `docs/glossary.md` (roles); Nghị định 49/2024 (the commune runs its station); Thông tư 39/2020 (classes).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Protocol

from broadcast_server.domain.errors import NotFound, Refused
from broadcast_server.store import audit, people, places
from broadcast_server.store.session import Session
from broadcast_server.store.tables import (
    ArrivalRow,
    AssetRow,
    BulletinRow,
    ClusterRow,
    EmergencyRow,
    EnrolmentTokenRow,
    FeedRow,
    GrantRow,
    GroupRow,
    Json,
    LiveSessionRow,
    NodeRow,
    ObligationRow,
    ProgrammeRow,
    ScheduleRow,
    SendingRow,
    StopAllRow,
    TieRow,
)
from broadcast_server.store.tables_approval import BreakGlassReviewRow, EmergencyTemplateRow
from broadcast_server.store.tables_devices import DeviceClaimRow
from broadcast_server.store.words import Role


class Action(StrEnum):
    """What can be permitted. A verb asks for exactly one; the words are stored in audit rows and shown in refusals."""

    READ = "read"  # see places, clusters, nodes, feeds, bulletins, schedules
    PLACE_EDIT = "place_edit"
    POLICY_EDIT = "policy_edit"
    CLUSTER_EDIT = "cluster_edit"
    VOLUME_SET = "volume_set"
    NODE_ENROL = "node_enrol"
    NODE_APPROVE = "node_approve"  # let a node sound: end its probation, release it from quarantine
    NODE_RETIRE = "node_retire"
    NODE_ORDER = "node_order"  # identify, test tone
    FEED_OWN = "feed_own"  # add, revoke, name a successor, see the address
    FEED_PUSH = "feed_push"  # take a new password for the station's encoder
    FEED_HOLD = "feed_hold"  # push a feed of which one holds the right (`control.feed_rights`)
    FEED_OFFER = "feed_offer"
    FEED_SUBSCRIBE = "feed_subscribe"  # carry an offered feed, or drop it
    OBLIGE = "oblige"
    BULLETIN_WRITE = "bulletin_write"
    BULLETIN_APPROVE = "bulletin_approve"
    PROGRAMME_WRITE = "programme_write"
    PROGRAMME_APPROVE = "programme_approve"
    SCHEDULE = "schedule"
    SCHEDULE_PRIORITY = "schedule_priority"  # place what is ưu tiên
    PLAY_NOW = "play_now"
    SEND = "send"  # send a bulletin to the units below; recall and correct it
    LIVE = "live"
    LIVE_LEAD = "live_lead"  # a voice that stands above what is ưu tiên
    EMERGENCY_PROPOSE = "emergency_propose"
    EMERGENCY_LAUNCH = "emergency_launch"
    STOP = "stop"
    STOP_ALL = "stop_all"
    LOG_READ = "log_read"
    AUDIT_READ = "audit_read"
    PEOPLE_EDIT = "people_edit"


_MAKE: Final = {Action.READ, Action.BULLETIN_WRITE, Action.PROGRAMME_WRITE, Action.LOG_READ}
_AIR: Final = {Action.SCHEDULE, Action.PLAY_NOW, Action.STOP}
_APPROVE: Final = {Action.BULLETIN_APPROVE, Action.PROGRAMME_APPROVE, Action.SCHEDULE_PRIORITY}
_DEVICES: Final = {
    Action.READ,
    Action.CLUSTER_EDIT,
    Action.VOLUME_SET,
    Action.NODE_ENROL,
    Action.NODE_RETIRE,
    Action.NODE_ORDER,
}
_FEEDS: Final = {Action.FEED_OWN, Action.FEED_OFFER, Action.FEED_PUSH}

MAY: Final[dict[Role, frozenset[Action]]] = {
    # keeps the register of places, devices, feeds and people; never on the air
    Role.ADMIN: frozenset(
        _DEVICES
        | _FEEDS
        | {Action.NODE_APPROVE}
        | {Action.PLACE_EDIT, Action.POLICY_EDIT}
        | {Action.PEOPLE_EDIT, Action.LOG_READ, Action.AUDIT_READ}
    ),
    # Sở VHTT(DL), ban biên tập tỉnh
    Role.PROVINCE_EDITOR: frozenset(
        _MAKE
        | _AIR
        | _APPROVE
        | _FEEDS
        | {Action.OBLIGE, Action.SEND, Action.LIVE, Action.STOP_ALL}
        | {Action.EMERGENCY_PROPOSE, Action.EMERGENCY_LAUNCH}
    ),
    # trung tâm truyền thông, ex-district producer: makes and offers, does not approve
    Role.PRODUCER: frozenset(_MAKE | _FEEDS),
    # chủ tịch, phó chủ tịch UBND xã; ban chỉ huy phòng thủ dân sự
    Role.LEADER: frozenset(
        _APPROVE
        | {
            Action.READ,
            Action.LIVE,
            Action.LIVE_LEAD,
            Action.STOP,
            Action.STOP_ALL,
            Action.POLICY_EDIT,
            Action.LOG_READ,
        }
        | {Action.EMERGENCY_PROPOSE, Action.EMERGENCY_LAUNCH, Action.AUDIT_READ}
    ),
    # trưởng đài, công chức VH-XH
    Role.COMMUNE_HEAD: frozenset(
        _MAKE
        | _AIR
        | _APPROVE
        | _DEVICES
        | {Action.NODE_APPROVE}
        | {Action.LIVE, Action.STOP_ALL, Action.POLICY_EDIT, Action.EMERGENCY_PROPOSE, Action.PEOPLE_EDIT}
        | _FEEDS
        | {Action.PLACE_EDIT, Action.SEND, Action.FEED_SUBSCRIBE}
    ),
    # biên tập viên, phát thanh viên xã
    Role.BROADCASTER: frozenset(_MAKE | _AIR | {Action.VOLUME_SET, Action.EMERGENCY_PROPOSE}),
    # a broadcaster's permit to speak live, for a time
    Role.LIVE_PERMIT: frozenset({Action.READ, Action.LIVE}),
    # trưởng thôn, tổ trưởng tổ dân phố: own hamlet only, for a time, within `domain.delegation`
    Role.HAMLET_HEAD: frozenset({Action.READ, Action.BULLETIN_WRITE, Action.LIVE, Action.LOG_READ}),
    Role.TECHNICIAN: frozenset(_DEVICES),
    # thanh tra, lãnh đạo xem
    Role.INSPECTOR: frozenset({Action.READ, Action.LOG_READ, Action.AUDIT_READ}),
    # a station that only pushes its feed: sees what it holds the right to push and renews its encoder's password
    Role.FEED_PUSHER: frozenset({Action.FEED_HOLD}),
}
"""The matrix. What is not here is refused."""

MAY_GRANT: Final[dict[Role, frozenset[Role]]] = {
    Role.ADMIN: frozenset(Role),
    Role.COMMUNE_HEAD: frozenset(
        {Role.BROADCASTER, Role.LIVE_PERMIT, Role.HAMLET_HEAD, Role.TECHNICIAN, Role.INSPECTOR, Role.FEED_PUSHER}
    ),
}
"""Which roles a holder of PEOPLE_EDIT may hand out, within the own subtree; nobody grants to oneself."""

DELEGATED: Final = frozenset({Role.HAMLET_HEAD})
"""Roles that are lent: they end by themselves and carry the limits of `domain.delegation`."""
TERMED: Final = DELEGATED | {Role.LIVE_PERMIT}
"""Roles that are never given without an end."""


@dataclass(frozen=True, slots=True)
class TokenScope:
    """What a token is limited to, within what its owner may; None: no limit of that kind."""

    actions: frozenset[Action] | None = None
    units: frozenset[str] | None = None
    """With all that lies below them."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and by which sign-in or token. `everywhere`: the command line of the machine, which no grant limits."""

    user_id: str
    login: str
    everywhere: bool = False
    session_id: str | None = None
    token_id: str | None = None
    token_scope: TokenScope | None = None


OPERATOR: Final = Actor("operator", "operator", everywhere=True)
"""Whoever may start the program on its machine."""

SERVER: Final = Actor("server", "server", everywhere=True)
"""The program itself, where it does what a rule or a deadline says; audit rows name it."""


_ASKED: Final[ContextVar[list[Action] | None]] = ContextVar("asked", default=None)


@contextmanager
def watching() -> Iterator[list[Action]]:
    """The actions asked for in this context, in order: proof that a route asks what it declares."""
    asked: list[Action] = []
    token = _ASKED.set(asked)
    try:
        yield asked
    finally:
        _ASKED.reset(token)


def _note(action: Action) -> None:
    asked = _ASKED.get()
    if asked is not None:
        asked.append(action)


class Placed(Protocol):
    """A row that belongs to a place."""

    @property
    def unit_id(self) -> Any:
        """The place."""
        ...


_UNKNOWN: Final[Mapping[type, tuple[str, str, str]]] = {
    ArrivalRow: ("unknown_arrival", "arrival", "id"),
    AssetRow: ("unknown_asset", "asset", "sha256"),
    BreakGlassReviewRow: ("unknown_review", "emergency", "emergency_id"),
    BulletinRow: ("unknown_bulletin", "bulletin", "id"),
    ClusterRow: ("unknown_cluster", "cluster_id", "id"),
    DeviceClaimRow: ("unknown_device_claim", "claim_id", "id"),
    EmergencyRow: ("unknown_emergency", "emergency", "id"),
    EmergencyTemplateRow: ("unknown_template", "template", "id"),
    EnrolmentTokenRow: ("unknown_enrolment_token", "token_id", "id"),
    FeedRow: ("unknown_feed", "feed_id", "id"),
    GrantRow: ("unknown_grant", "grant_id", "id"),
    GroupRow: ("unknown_group", "group_id", "id"),
    LiveSessionRow: ("unknown_live", "live", "id"),
    NodeRow: ("unknown_node", "node_id", "id"),
    ObligationRow: ("unknown_obligation", "obligation_id", "id"),
    ProgrammeRow: ("unknown_programme", "programme", "id"),
    ScheduleRow: ("unknown_schedule", "schedule", "id"),
    SendingRow: ("unknown_sending", "sending", "id"),
    StopAllRow: ("unknown_stop_all", "stop_all", "id"),
    TieRow: ("unknown_tie", "tie", "id"),
}
"""Code and fact by which the store says that there is no such row; the column the fact is from."""


def unknown(of: str | Placed) -> NotFound:
    """What is raised for a place or a row that does not exist, or that the actor may not know of."""
    if isinstance(of, str):
        return NotFound("unknown_unit", unit_id=of)
    code, fact, column = _UNKNOWN[type(of)]
    return NotFound(code, **{fact: getattr(of, column)})


def authorize(
    session: Session, actor: Actor, action: Action, of: str | Placed, *, at: datetime, seen: bool = False
) -> None:
    """Return if `actor` may do `action` at the unit, or at the unit of the row, at this instant.

    `seen`: the actor may know of it in another way than by reading at its place (a feed that is offered to them, an
    emergency from above). Raises `Refused("not_permitted")` where the actor may read it, and `unknown(of)` otherwise.
    """
    may_it, may_read = _standing(session, actor, action, of, at)
    if may_it:
        return
    unit_id: str = of if isinstance(of, str) else of.unit_id
    audit.note_denied(session, now=at, actor=actor.login, action=action.value, unit_id=unit_id)
    if not (may_read or seen):
        raise unknown(of)
    raise Refused("not_permitted", action=action.value, unit_id=unit_id)


def _standing(session: Session, actor: Actor, action: Action, of: str | Placed, at: datetime) -> tuple[bool, bool]:
    """Whether the actor may do it there, and whether they may at least read there."""
    _note(action)
    path = places.path_of(session, of if isinstance(of, str) else of.unit_id, places.local_date(at))
    if actor.everywhere:
        return True, True
    limit = actor.token_scope
    if limit is not None and limit.units is not None and limit.units.isdisjoint(path):
        return False, False
    held = [MAY[role] for role, granted_at in people.grants_at(session, actor.user_id, at) if granted_at in path]
    given: frozenset[Action] = frozenset().union(*held)
    if limit is not None and limit.actions is not None:
        given &= limit.actions
    return action in given, Action.READ in given


def sees(session: Session, actor: Actor, unit_id: str, *, at: datetime) -> bool:
    """Whether the actor may read at the unit."""
    return may(session, actor, Action.READ, unit_id, at=at)


def may(session: Session, actor: Actor, action: Action, of: str | Placed, *, at: datetime) -> bool:
    """Whether `authorize` would return; for what is shown rather than done. Raises `NotFound` for an unknown unit."""
    return _standing(session, actor, action, of, at)[0]


def is_delegated(session: Session, actor: Actor, action: Action, unit_id: str, *, at: datetime) -> bool:
    """Whether the actor may do it there by delegation alone, so that its limits hold."""
    if actor.everywhere:
        return False
    path = places.path_of(session, unit_id, places.local_date(at))
    held = {role for role, granted_at in people.grants_at(session, actor.user_id, at) if granted_at in path}
    giving = {role for role in held if action in MAY[role]}
    return bool(giving) and giving <= DELEGATED


def scope(session: Session, actor: Actor, action: Action, *, at: datetime) -> frozenset[str] | None:
    """Units at whose subtrees the actor may do `action`: the roots for `places.subtree_query`. None: everywhere."""
    _note(action)
    if actor.everywhere:
        return None
    granted = {unit_id for role, unit_id in people.grants_at(session, actor.user_id, at) if action in MAY[role]}
    return frozenset(granted) if actor.token_scope is None else _scoped(session, actor.token_scope, granted, action, at)


def _scoped(session: Session, limit: TokenScope, granted: set[str], action: Action, at: datetime) -> frozenset[str]:
    """The roots of what lies both below a granted unit and within the token's limit."""
    if limit.actions is not None and action not in limit.actions:
        return frozenset()
    if limit.units is None:
        return frozenset(granted)
    paths = places.paths_of(session, granted | limit.units, places.local_date(at))
    below = {unit for unit in granted if not limit.units.isdisjoint(paths[unit])}
    return frozenset(below | {unit for unit in limit.units if not granted.isdisjoint(paths[unit])})


def roots(
    session: Session, actor: Actor, action: Action, unit_id: str | None, *, at: datetime
) -> frozenset[str] | None:
    """The roots a list is for: the asked unit if the actor may, else `scope`. Raises as `authorize` does."""
    if unit_id is None:
        return scope(session, actor, action, at=at)
    authorize(session, actor, action, unit_id, at=at)
    return frozenset({unit_id})


def actor_of_token(session: Session, secret: str, now: datetime) -> Actor:
    """Whose bearer token this is. Raises `Refused("token_unknown")`, whatever is wrong with it."""
    found = people.user_of_token(session, secret, now)
    if found is None:
        raise Refused("token_unknown")
    user, token = found
    return Actor(user.id, user.login, token_id=token.id, token_scope=_scope_of(token.scope))


def _scope_of(kept: Json | None) -> TokenScope | None:
    """A word of the row that names no action any more permits nothing."""
    if kept is None:
        return None
    actions, units = kept.get("actions"), kept.get("units")
    return TokenScope(
        None if actions is None else frozenset(action for action in Action if action.value in actions),
        None if units is None else frozenset(units),
    )
