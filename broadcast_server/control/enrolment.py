"""How a box becomes a node: by the claim code printed on it, or, for fleets in trials, by a token.

A maintainer must not break: (1) a secret (claim code, enrolment token, broker password, asset token) leaves this module
once, in the answer that made it, and is stored as a hash; (2) one transaction uses up the right, replaces who must go
and registers the new node, so a failed enrolment changes nothing; (3) a device key lives once: enrolling it again is a
conflict until its node is retired; (4) a wrong, late, reused or unknown claim is answered in the same words, and five
wrong ones within an hour close the door until an officer opens it; (5) what enrols sounds nothing until somebody with
the right to say so has said so (`control.devices`), a token that activates being such a word.

The enrolment's answer is the agreement with the device's firmware; broker address and root key are facts that the
engine room told the store (`store.facts`).
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from broadcast_server.control import access, certificates
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.fleet import (
    NewCluster,
    check_in_service,
    new_cluster,
    new_secret,
    note,
    retire,
    roots_for,
    tell,
)
from broadcast_server.domain.errors import Conflict, Invalid, Refused
from broadcast_server.logs import get_logger
from broadcast_server.store import devices, facts, fleet, places
from broadcast_server.store.people import secret_hash
from broadcast_server.store.session import Session
from broadcast_server.store.tables import ClusterRow, EnrolmentTokenRow, NodeRow
from broadcast_server.store.tables_devices import DeviceClaimRow
from broadcast_server.store.words import NodeState, QuarantineReason
from speaker_protocol import claims

log = get_logger()

LONGEST_TOKEN: Final = timedelta(days=90)
MOST_USES: Final = 20_000
OPEN_FOR: Final = timedelta(minutes=15)
"""How long a box may come after an officer opened the door for it."""
WRONG_TRIES: Final = 5
WITHIN: Final = timedelta(hours=1)
_PUBLIC_KEY: Final = re.compile(r"[0-9a-f]{64}")
_NO_KEY: Final = bytes(claims.KEY_BYTES)


# -- tokens -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewEnrolmentToken:
    """The right to enrol `uses` nodes for one unit, for so long.

    `activates`: what enrols with it is active at once, unseen. For trials and benches.
    """

    unit_id: str
    uses: int = 1
    valid_for: timedelta = timedelta(hours=24)
    activates: bool = False


@dataclass(frozen=True, slots=True)
class EnrolmentTicket:
    """A token with its secret, which is told only here."""

    token: EnrolmentTokenRow
    secret: str


async def create_enrolment_token(desk: Desk, actor: Actor, request: NewEnrolmentToken) -> EnrolmentTicket:
    """Make a token. Raises `Invalid` on too many uses or too long a life."""
    now = desk.clock.now()
    token_id = desk.chance.new_id()
    secret = new_secret(desk.chance, "enr_")
    if not 1 <= request.uses <= MOST_USES:
        raise Invalid("uses_out_of_range", field="uses", most=MOST_USES)
    if not timedelta(0) < request.valid_for <= LONGEST_TOKEN:
        raise Invalid("lifetime_out_of_range", field="valid_for_s", most_s=int(LONGEST_TOKEN.total_seconds()))

    def work(session: Session) -> EnrolmentTicket:
        access.authorize(session, actor, Action.NODE_ENROL, request.unit_id, at=now)
        if request.activates:
            access.authorize(session, actor, Action.NODE_APPROVE, request.unit_id, at=now)
        row = EnrolmentTokenRow(
            id=token_id,
            unit_id=request.unit_id,
            secret_hash=secret_hash(secret),
            uses_left=request.uses,
            activates=request.activates,
            expires_at=now + request.valid_for,
            created_by=actor.login,
            created_at=now,
        )
        session.add(row)
        detail = {"uses": request.uses, "expires_at": row.expires_at.isoformat(), "activates": request.activates}
        subject = f"enrolment_token/{token_id}"
        note(session, actor.login, "enrolment_token.create", request.unit_id, subject, now, detail)
        return EnrolmentTicket(row, secret)

    return await desk.store.begin(work)


async def list_enrolment_tokens(desk: Desk, actor: Actor, unit_id: str) -> list[EnrolmentTokenRow]:
    """The unit's tokens that can still be used."""
    now = desk.clock.now()

    def work(session: Session) -> list[EnrolmentTokenRow]:
        access.authorize(session, actor, Action.NODE_ENROL, unit_id, at=now)
        return fleet.list_enrolment_tokens(session, unit_id, now)

    return await desk.store.read(work)


async def void_enrolment_token(desk: Desk, actor: Actor, token_id: str) -> None:
    """Make a token worthless. Raises `NotFound("unknown_enrolment_token")`."""
    now = desk.clock.now()

    def work(session: Session) -> None:
        row = fleet.enrolment_token_row(session, token_id)
        access.authorize(session, actor, Action.NODE_ENROL, row, at=now)
        row.uses_left = 0
        note(session, actor.login, "enrolment_token.void", row.unit_id, f"enrolment_token/{row.id}", now, {})

    await desk.store.begin(work)


# -- claims -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewDevice:
    """A box that is to come: where it shall hang.

    `cluster_code`: of the cluster it shall drive, one that has a node included (a swap); None: a new cluster.
    `claim_code`: what is printed on it; None: one is made here. `is_open`: it may come from now on.
    """

    serial: str
    unit_id: str
    cluster_code: str | None = None
    claim_code: str | None = None
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class ClaimTicket:
    """A claim; `code` is what was made for it and is told only here, None if the box brings its own."""

    claim: DeviceClaimRow
    code: str | None


async def register_device(desk: Desk, actor: Actor, request: NewDevice) -> ClaimTicket:
    """Expect a box. Raises `Invalid` (`serial_invalid`, `claim_code_invalid`), `Conflict` (`serial_awaited`,
    `serial_in_service`, `cluster_retired`).
    """
    now = desk.clock.now()
    claim_id = desk.chance.new_id()
    serial = _serial(request.serial)
    made = None if request.claim_code is not None else claims.code_of(desk.chance.token_bytes(claims.CODE_SIGNS))
    code = made or claims.normal_code(request.claim_code or "")
    if code is None:
        raise Invalid("claim_code_invalid", field="claim_code", signs=claims.CODE_SIGNS)
    await desk.store.read(
        lambda session: access.authorize(session, actor, Action.NODE_ENROL, request.unit_id, at=now)
    )  # nobody else makes us work
    key = await desk.executor.run(claims.claim_key, serial, code)

    def work(session: Session) -> ClaimTicket:
        access.authorize(session, actor, Action.NODE_ENROL, request.unit_id, at=now)
        known = devices.claim_of_serial(session, serial)
        if known is not None and known.burned_at is None:
            raise Conflict("serial_awaited", field="serial", serial=serial)
        if devices.node_of_serial(session, serial) is not None:
            raise Conflict("serial_in_service", field="serial", fix="retire_node_first", serial=serial)
        cluster = None
        if request.cluster_code is not None:
            cluster = fleet.cluster_of_code(session, request.unit_id, request.cluster_code)
            if cluster is not None:
                check_in_service(cluster)
        row = DeviceClaimRow(
            id=claim_id,
            serial=serial,
            unit_id=request.unit_id,
            cluster_id=None if cluster is None else cluster.id,
            cluster_code=request.cluster_code,
            claim_key=key,
            open_until=now + OPEN_FOR if request.is_open else None,
            created_by=actor.login,
            created_at=now,
        )
        session.add(row)
        session.flush()
        detail = {"serial": serial, "cluster": request.cluster_code, "open": request.is_open}
        note(session, actor.login, "device.expect", row.unit_id, f"device_claim/{claim_id}", now, detail)
        return ClaimTicket(row, made)

    return await desk.store.begin(work)


async def open_window(desk: Desk, actor: Actor, claim_id: str) -> DeviceClaimRow:
    """Let the box come within a quarter of an hour from now; wrong tries until now are forgiven.

    Raises `NotFound("unknown_device_claim")`, `Conflict("claim_over")` when it came already or was voided.
    """
    now = desk.clock.now()

    def work(session: Session) -> DeviceClaimRow:
        row = _awaited(session, actor, claim_id, now)
        row.open_until, row.closed_at, row.wrong_tries, row.wrong_since = now + OPEN_FOR, None, 0, None
        note(session, actor.login, "device.open", row.unit_id, f"device_claim/{row.id}", now, {"serial": row.serial})
        return row

    return await desk.store.begin(work)


async def void_claim(desk: Desk, actor: Actor, claim_id: str) -> None:
    """Expect the box no more. Raises as `open_window`."""
    now = desk.clock.now()

    def work(session: Session) -> None:
        row = _awaited(session, actor, claim_id, now)
        row.voided_at = now
        note(session, actor.login, "device.void", row.unit_id, f"device_claim/{row.id}", now, {"serial": row.serial})

    await desk.store.begin(work)


@dataclass(frozen=True, slots=True)
class ClaimQuery:
    """Which claims: within a unit's subtree."""

    within: str | None = None
    after: str | None = None
    limit: int = 100


async def list_claims(desk: Desk, actor: Actor, query: ClaimQuery) -> list[DeviceClaimRow]:
    """Boxes that are expected where the actor may enrol, by id."""
    now = desk.clock.now()

    def work(session: Session) -> list[DeviceClaimRow]:
        roots = roots_for(session, actor, Action.NODE_ENROL, query.within, now)
        return devices.list_claims(session, roots, places.local_date(now), after=query.after, limit=query.limit)

    return await desk.store.read(work)


def _awaited(session: Session, actor: Actor, claim_id: str, now: datetime) -> DeviceClaimRow:
    row = devices.claim(session, claim_id)
    access.authorize(session, actor, Action.NODE_ENROL, row, at=now)
    if row.burned_at is not None or row.voided_at is not None:
        raise Conflict("claim_over", claim_id=claim_id, fix="register_device_again")
    return row


# -- enrolment --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Enrol:
    """What a device says of itself by token. `public_key`: its Ed25519 key, 64 lower-case hex digits; `csr`: its
    request for a certificate, PEM, with that key; None: it wants none.
    """

    token: str
    public_key: str
    hardware: str
    firmware: str
    cluster_code: str | None = None
    csr: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What a device says of itself by claim. `csr`: PEM, with its Ed25519 key; `proof`: `claims.proof`."""

    serial: str
    csr: str
    nonce: str
    proof: str
    hardware: str
    firmware: str


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What a device needs to begin; the two secrets are told only here. `path`: unit ids, own first, root last."""

    node_id: str
    cluster_id: str
    broker: Mapping[str, Any]
    password: str
    root_public_key: str
    path: tuple[str, ...]
    assets_url: str
    asset_token: str
    server_time: datetime
    replaced_node_id: str | None
    state: NodeState
    certificate: str | None = None
    """PEM chain, its own first; None where nodes get none or the authority is away."""


@dataclass(frozen=True, slots=True)
class _Fresh:
    """What is drawn for a new node before its transaction."""

    node_id: str
    cluster_id: str
    password: str
    asset_token: str
    line: str


async def enrol(desk: Desk, request: Enrol) -> Enrolled:
    """Register a device as the node of a cluster of the token's unit. The token is the only authority.

    Without a `cluster_code` a new cluster is made; with the code of a cluster that has a node, that node is replaced:
    at once if the token activates, else when the new one is approved.
    Raises `Refused("enrolment_token_unknown" | "enrolment_token_expired" | "enrolment_token_spent")`,
    `Invalid` (`public_key_invalid`, `csr_invalid`), `Conflict("node_already_enrolled" | "cluster_retired")`, and
    `Unavailable("fact_unknown")` before the server first ran.
    """
    now = desk.clock.now()
    if not _PUBLIC_KEY.fullmatch(request.public_key):
        raise Invalid("public_key_invalid", field="public_key")
    if request.csr is not None and certificates.device_key(request.csr) != request.public_key:
        raise Invalid("csr_invalid", field="csr", cause="other_key")
    fresh = _draw(desk)

    def work(session: Session) -> Enrolled:
        token = _spend(session, request.token, now)
        told_by = f"enrolment_token/{token.id}"
        cluster = _cluster_to_drive(session, token.unit_id, request.cluster_code, fresh.cluster_id, told_by, now)
        state = NodeState.ACTIVE if token.activates else NodeState.PROBATION
        row = _row(fresh, cluster, request.public_key, request.hardware, request.firmware, state, None, now)
        return _register(session, row, cluster, fresh, told_by, now)

    enrolled = await desk.store.begin(work)
    return await _certified(desk, enrolled, request.csr)


async def enrol_by_claim(desk: Desk, request: Claim) -> Enrolled:
    """Register an expected box; its claim code is its only authority, and is burned.

    Raises `Invalid("csr_invalid")`, `Conflict` (`node_already_enrolled`, `cluster_retired`), `Unavailable`, and
    `Refused("claim_refused")` for whatever else is wrong.
    """
    now = desk.clock.now()
    public_key = certificates.device_key(request.csr)
    serial = claims.normal_serial(request.serial)
    if serial is None or not await desk.store.read(lambda session: devices.claim_of_serial(session, serial)):
        raise _not_let_in()  # here already: whoever invents serials does not hold up writers
    fresh = _draw(desk)

    def work(session: Session) -> Enrolled | None:
        row = devices.claim_of_serial(session, serial)
        if not _is_let_in(session, row, request, public_key, now) or row is None:
            return None  # and not an error here: what was counted is kept
        told_by = f"device_claim/{row.id}"
        cluster = _cluster_of_claim(session, row, fresh.cluster_id, told_by, now)
        node = _row(
            fresh, cluster, public_key, request.hardware, request.firmware, NodeState.PROBATION, row.serial, now
        )
        enrolled = _register(session, node, cluster, fresh, told_by, now)
        row.burned_at, row.node_id, row.cluster_id = now, fresh.node_id, cluster.id
        return enrolled

    enrolled = await desk.store.begin(work)
    if enrolled is None:
        raise _not_let_in()
    return await _certified(desk, enrolled, request.csr)


def _not_let_in() -> Refused:
    return Refused("claim_refused", fix="ask_officer_to_open")


def _is_let_in(session: Session, row: DeviceClaimRow | None, request: Claim, public_key: str, now: datetime) -> bool:
    """Whether this is the box; counts what is wrong, and takes a second box with a used code for what it is."""
    key = _NO_KEY if row is None else row.claim_key
    expected = claims.proof(key, request.csr, "" if row is None else row.serial, request.nonce)
    is_right = hmac.compare_digest(expected.encode(), request.proof.encode())
    if row is None:
        return False
    if row.burned_at is not None:
        if is_right:
            _came_twice(session, row, public_key, now)
        return False
    if row.open_until is None or row.open_until <= now or row.closed_at is not None:
        return False
    if is_right:
        return True
    if row.wrong_since is None or now - row.wrong_since >= WITHIN:
        row.wrong_since, row.wrong_tries = now, 0
    row.wrong_tries += 1
    log.warning("device.claim_wrong", serial=row.serial, tries=row.wrong_tries)
    if row.wrong_tries >= WRONG_TRIES:
        row.closed_at = now
        detail = {"serial": row.serial, "tries": row.wrong_tries}
        note(session, "enrolment", "device.close", row.unit_id, f"device_claim/{row.id}", now, detail)
    return False


def _came_twice(session: Session, row: DeviceClaimRow, public_key: str, now: datetime) -> None:
    """A second device knows the code. A node nobody has approved yet may be the wrong one of the two; one that was
    heard on its pole and approved stays on the air, and the alarm is raised all the same.
    """
    node = None if row.node_id is None else session.get(NodeRow, row.node_id)
    if node is None or node.retired_at is not None or node.public_key == public_key:
        return  # over, or the same box asking again because an answer was lost
    log.error("device.claimed_twice", serial=row.serial, node_id=node.id, state=node.state.value)
    why = QuarantineReason.CLAIMED_TWICE
    if node.state is NodeState.PROBATION:
        devices.quarantine(session, node.id, why, told_by="enrolment", now=now)
    elif node.state_reason is None:
        node.state_reason = why.value
        note(session, "enrolment", "node.claimed_twice", node.unit_id, f"node/{node.id}", now, {"serial": row.serial})


def _spend(session: Session, secret: str, now: datetime) -> EnrolmentTokenRow:
    row = fleet.enrolment_token(session, secret)
    if row is None:
        raise Refused("enrolment_token_unknown", field="token")
    if row.expires_at <= now:
        raise Refused("enrolment_token_expired", field="token", expired_at=row.expires_at.isoformat())
    if row.uses_left <= 0:
        raise Refused("enrolment_token_spent", field="token")
    row.uses_left -= 1
    return row


def _cluster_of_claim(session: Session, row: DeviceClaimRow, new_id: str, told_by: str, now: datetime) -> ClusterRow:
    if row.cluster_id is not None:
        cluster = fleet.cluster(session, row.cluster_id)
        check_in_service(cluster)
        return cluster
    return _cluster_to_drive(session, row.unit_id, row.cluster_code, new_id, told_by, now)


def _cluster_to_drive(
    session: Session, unit_id: str, code: str | None, new_id: str, told_by: str, now: datetime
) -> ClusterRow:
    if code is not None:
        row = fleet.cluster_of_code(session, unit_id, code)
        if row is not None:
            check_in_service(row)
            return row
    row = new_cluster(session, new_id, NewCluster(unit_id, code=code), now)
    tell(session, told_by, "cluster.create", row, now, {"code": row.code, "name": row.name})
    return row


def _draw(desk: Desk) -> _Fresh:
    node_id, cluster_id = desk.chance.new_id(), desk.chance.new_id()
    password, asset_token = new_secret(desk.chance, ""), new_secret(desk.chance, "ast_")
    line = fleet.mosquitto_password_line(node_id, password, desk.chance.token_bytes(12))
    return _Fresh(node_id, cluster_id, password, asset_token, line)


def _row(
    fresh: _Fresh,
    cluster: ClusterRow,
    public_key: str,
    hardware: str,
    firmware: str,
    state: NodeState,
    serial: str | None,
    now: datetime,
) -> NodeRow:
    return NodeRow(
        id=fresh.node_id,
        unit_id=cluster.unit_id,
        cluster_id=cluster.id,
        public_key=public_key,
        hardware=_printable(hardware),
        firmware=_printable(firmware),
        broker_password_line=fresh.line,
        asset_token_hash=secret_hash(fresh.asset_token),
        enrolled_at=now,
        state=state,
        serial=serial,
    )


def _register(
    session: Session, row: NodeRow, cluster: ClusterRow, fresh: _Fresh, told_by: str, now: datetime
) -> Enrolled:
    known = fleet.live_node_of_key(session, row.public_key)
    if known is not None:
        raise Conflict("node_already_enrolled", field="public_key", node_id=known.id)
    replaced = None
    for other in fleet.nodes_in_service(session, [cluster.id]):
        if row.state is NodeState.ACTIVE or other.state is NodeState.PROBATION:
            retire(session, told_by, other, now, "replaced")
            replaced = other.id
    session.add(row)
    session.flush()
    detail = {
        "cluster_id": cluster.id,
        "public_key": row.public_key,
        "hardware": row.hardware,
        "serial": row.serial,
        "state": row.state.value,
        "replaced": replaced,
    }
    note(session, told_by, "node.enrol", row.unit_id, f"node/{row.id}", now, detail)
    return Enrolled(
        node_id=row.id,
        cluster_id=cluster.id,
        broker=facts.get(session, facts.BROKER),
        password=fresh.password,
        root_public_key=facts.get(session, facts.ROOT_PUBLIC_KEY)["hex"],
        path=places.path_of(session, cluster.unit_id, places.local_date(now)),
        assets_url=f"{facts.get(session, facts.PUBLIC_URL)['url']}/api/v1/assets",
        asset_token=fresh.asset_token,
        server_time=now,
        replaced_node_id=replaced,
        state=row.state,
    )


async def _certified(desk: Desk, enrolled: Enrolled, csr: str | None) -> Enrolled:
    if csr is None:
        return enrolled
    return replace(enrolled, certificate=await certificates.issue(desk, enrolled.node_id, csr))


def _serial(text: str) -> str:
    serial = claims.normal_serial(text)
    if serial is None:
        raise Invalid("serial_invalid", field="serial")
    return serial


def _printable(text: str) -> str:
    """What a device says of itself, kept as far as it is printable."""
    return "".join(sign for sign in text if sign.isprintable())[:120]
