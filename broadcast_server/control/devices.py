"""How a node is let sound, and silenced: the spoken code, approval, quarantine and release.

A maintainer must not break: (1) the code travels in the signed order to the node and nowhere else, no answer, log or
audit row has it; (2) whoever approves is somebody else than who typed the code in; (3) a node is approved only after
its code was heard on its pole; (4) approval retires the node it replaces in the same transaction.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.fleet import NodeView, check_node_in_service, node_view, note, retire
from broadcast_server.control.places import clean_text
from broadcast_server.domain.errors import BroadcastError, Conflict, Invalid, Refused
from broadcast_server.logs import get_logger
from broadcast_server.store import device_logs, devices, fleet
from broadcast_server.store.session import Session
from broadcast_server.store.tables import NodeRow, OutboxRow
from broadcast_server.store.tables_devices import NodeBindingRow
from broadcast_server.store.words import NodeState, OutboxState, QuarantineReason

log = get_logger()

CODE_DIGITS: Final = 4
CODE_LIFE: Final = timedelta(minutes=5)
TRIES: Final = 3
CODES_AN_HOUR: Final = 6
"""So many codes a node speaks an hour: 18 guesses among 10 000."""
CONFIRMED_FOR: Final = timedelta(days=7)
"""An approval must follow the check within so long."""


@dataclass(frozen=True, slots=True)
class BindingView:
    """How a binding check stands; never the code."""

    node_id: str
    order_id: str
    expires_at: datetime
    tries_left: int
    confirmed_at: datetime | None
    confirmed_by: str | None


async def ask_binding(desk: Desk, actor: Actor, node_id: str) -> BindingView:
    """Order a node that is not active to speak a fresh code, softly, at whatever hour: somebody stands before it.

    Raises `NotFound("unknown_node")`, `Conflict` (`node_retired`, `node_active`), `Refused("binding_too_often")`.
    """
    now = desk.clock.now()
    order_id = desk.chance.new_id()
    code = f"{int.from_bytes(desk.chance.token_bytes(8), 'big') % 10**CODE_DIGITS:0{CODE_DIGITS}}"
    salt = desk.chance.token_bytes(16)

    def work(session: Session) -> BindingView:
        node = fleet.node(session, node_id)
        access.authorize(session, actor, Action.NODE_ENROL, node, at=now)
        _in_doubt(node)
        row = devices.binding(session, node.id)
        if row is None:
            row = NodeBindingRow(node_id=node.id, asked_since=now, asked_times=0)
            session.add(row)
        else:
            devices.forget_code(session, node.id)
        if now - row.asked_since >= timedelta(hours=1):
            row.asked_since, row.asked_times = now, 0
        if row.asked_times >= CODES_AN_HOUR:
            raise Refused("binding_too_often", fix="wait_an_hour", most=CODES_AN_HOUR)
        row.asked_times += 1
        row.order_id, row.salt, row.code_hash = order_id, salt, _hash(salt, code)
        row.asked_by, row.asked_at, row.expires_at, row.wrong_tries = actor.login, now, now + CODE_LIFE, 0
        row.confirmed_at = row.confirmed_by = None
        session.add(
            OutboxRow(
                id=order_id,
                node_id=node.id,
                unit_id=node.unit_id,
                subject=f"order/{order_id}",
                body={"order_id": order_id, "verb": "speak_code", "seconds": 0, "code": code},
                state=OutboxState.PENDING,
                attempts=0,
                due_at=now,
                expires_at=now + CODE_LIFE,
                created_at=now,
            )
        )
        session.flush()
        note(session, actor.login, "node.binding_ask", node.unit_id, f"node/{node.id}", now, {"order_id": order_id})
        return _shown(row)

    return await desk.store.begin(work)


async def answer_binding(desk: Desk, actor: Actor, node_id: str, code: str) -> BindingView:
    """Somebody on site types in what was heard. The third wrong answer makes the code worthless.

    Raises `NotFound("unknown_node")`, `Invalid("binding_code_invalid")`, `Conflict` (`node_retired`, `node_active`,
    `binding_not_asked`), `Refused` (`binding_wrong`, `binding_expired`, `binding_tries_spent`).
    """
    now = desk.clock.now()
    typed = "".join(code.split())
    if len(typed) != CODE_DIGITS or not (typed.isascii() and typed.isdigit()):
        raise Invalid("binding_code_invalid", field="code", digits=CODE_DIGITS)

    def work(session: Session) -> BindingView | BroadcastError:
        node = fleet.node(session, node_id)
        access.authorize(session, actor, Action.NODE_ENROL, node, at=now)
        _in_doubt(node)
        row = devices.binding(session, node.id)
        if row is None or row.confirmed_at is not None:
            raise Conflict("binding_not_asked", fix="ask_for_a_code")
        if row.wrong_tries >= TRIES:
            raise Refused("binding_tries_spent", fix="ask_for_a_code")
        if row.expires_at <= now:
            raise Refused("binding_expired", fix="ask_for_a_code")
        subject = f"node/{node.id}"
        if not hmac.compare_digest(row.code_hash, _hash(row.salt, typed)):
            row.wrong_tries += 1
            left = TRIES - row.wrong_tries
            if not left:
                devices.forget_code(session, node.id)
            note(session, actor.login, "node.binding_wrong", node.unit_id, subject, now, {"tries_left": left})
            return Refused("binding_wrong", field="code", tries_left=left)  # told after the count is kept
        row.confirmed_at, row.confirmed_by = now, actor.user_id
        devices.forget_code(session, node.id)
        note(session, actor.login, "node.binding_confirm", node.unit_id, subject, now, {})
        return _shown(row)

    told = await desk.store.begin(work)
    if isinstance(told, BroadcastError):
        raise told
    return told


async def approve_node(desk: Desk, actor: Actor, node_id: str) -> NodeView:
    """Let a node sound, and retire the one it replaces.

    Raises `NotFound("unknown_node")`, `Conflict` (`node_retired`, `node_active`, `node_quarantined`,
    `binding_missing`), `Refused("approver_typed_the_code")`.
    """
    now = desk.clock.now()

    def work(session: Session) -> NodeView:
        node = fleet.node(session, node_id)
        access.authorize(session, actor, Action.NODE_APPROVE, node, at=now)
        _in_doubt(node)
        if node.state is NodeState.QUARANTINED:
            raise Conflict("node_quarantined", node_id=node.id, fix="release_first")
        _check_bound(session, actor, node, now)
        _activate(session, actor, node, now, "node.approve", None)
        return node_view(session, node.id, now)

    return await desk.store.begin(work)


async def quarantine_node(desk: Desk, actor: Actor, node_id: str, reason: str) -> NodeView:
    """Silence a node at once. Raises `NotFound("unknown_node")`, `Conflict` (`node_retired`, `node_quarantined`)."""
    now = desk.clock.now()
    said = clean_text(reason, "reason")

    def work(session: Session) -> NodeView:
        node = fleet.node(session, node_id)
        access.authorize(session, actor, Action.NODE_RETIRE, node, at=now)
        check_node_in_service(node)
        why = QuarantineReason.BY_OFFICER
        if not devices.quarantine(session, node.id, why, told_by=actor.login, now=now, said=said):
            raise Conflict("node_quarantined", node_id=node.id)
        return node_view(session, node.id, now)

    told = await desk.store.begin(work)
    log.error("node.quarantined", node_id=node_id, why=QuarantineReason.BY_OFFICER.value)
    return told


async def release_node(desk: Desk, actor: Actor, node_id: str, reason: str) -> NodeView:
    """Let a quarantined node sound again, after its code was heard on its pole once more.

    Raises as `approve_node`, and `Conflict("node_not_quarantined")`.
    """
    now = desk.clock.now()
    said = clean_text(reason, "reason")

    def work(session: Session) -> NodeView:
        node = fleet.node(session, node_id)
        access.authorize(session, actor, Action.NODE_APPROVE, node, at=now)
        check_node_in_service(node)
        if node.state is not NodeState.QUARANTINED:
            raise Conflict("node_not_quarantined", node_id=node.id)
        _check_bound(session, actor, node, now)
        device_logs.forgive(session, node.id)
        _activate(session, actor, node, now, "node.release", said)
        return node_view(session, node.id, now)

    return await desk.store.begin(work)


def _activate(session: Session, actor: Actor, node: NodeRow, now: datetime, verb: str, said: str | None) -> None:
    replaced = [other for other in fleet.nodes_in_service(session, [node.cluster_id]) if other.id != node.id]
    for other in replaced:
        retire(session, actor.login, other, now, "replaced")
    was = node.state_reason
    devices.change_state(node, NodeState.ACTIVE)
    detail = {"replaced": [other.id for other in replaced]} | ({} if said is None else {"reason": said, "was": was})
    note(session, actor.login, verb, node.unit_id, f"node/{node.id}", now, detail)


def _check_bound(session: Session, actor: Actor, node: NodeRow, now: datetime) -> None:
    """Its code was typed in since it came to be in doubt, by somebody else."""
    row = devices.binding(session, node.id)
    if row is None or row.confirmed_at is None or now - row.confirmed_at > CONFIRMED_FOR:
        raise Conflict("binding_missing", node_id=node.id, fix="ask_for_a_code")
    if row.confirmed_by == actor.user_id and not actor.everywhere:
        raise Refused("approver_typed_the_code", fix="let_another_officer_approve")


def _in_doubt(node: NodeRow) -> None:
    check_node_in_service(node)
    if node.state is NodeState.ACTIVE:
        raise Conflict("node_active", node_id=node.id)


def _hash(salt: bytes, code: str) -> str:
    """Four digits are guessed in no time by whoever reads the row; this keeps them out of sight, no more."""
    return hashlib.sha256(salt + code.encode()).hexdigest()


def _shown(row: NodeBindingRow) -> BindingView:
    return BindingView(
        node_id=row.node_id,
        order_id=row.order_id,
        expires_at=row.expires_at,
        tries_left=max(0, TRIES - row.wrong_tries),
        confirmed_at=row.confirmed_at,
        confirmed_by=row.confirmed_by,
    )
