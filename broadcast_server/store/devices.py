"""Rows of single boxes: claims that wait for them, the spoken code of a node, its certificates, its state.

A maintainer must not break: (1) every change of a node's state goes through `change_state`, which lets its version
rise, so that plans and configs follow; (2) what a node was ordered to speak is forgotten as soon as it is of no use.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from broadcast_server.domain.errors import NotFound
from broadcast_server.store import audit, places
from broadcast_server.store.tables import NodeRow, OutboxRow
from broadcast_server.store.tables_devices import DeviceClaimRow, NodeBindingRow, NodeCertificateRow
from broadcast_server.store.words import NodeState, OutboxState, QuarantineReason

IN_DOUBT = frozenset({NodeState.PROBATION, NodeState.QUARANTINED})
"""States in which a node is told to be silent and may be approved or released."""


# -- claims -----------------------------------------------------------------------------------------------------------


def claim(session: Session, claim_id: str) -> DeviceClaimRow:
    """Raises `NotFound("unknown_device_claim")`."""
    row = session.get(DeviceClaimRow, claim_id)
    if row is None:
        raise NotFound("unknown_device_claim", claim_id=claim_id)
    return row


def claim_of_serial(session: Session, serial: str) -> DeviceClaimRow | None:
    """The last claim of a serial that was not voided: awaited or burned."""
    return session.scalar(
        select(DeviceClaimRow)
        .where(DeviceClaimRow.serial == serial, DeviceClaimRow.voided_at.is_(None))
        .order_by(DeviceClaimRow.created_at.desc(), DeviceClaimRow.id.desc())
        .limit(1)
    )


def list_claims(
    session: Session, roots: frozenset[str] | None, on: date, *, after: str | None = None, limit: int = 100
) -> list[DeviceClaimRow]:
    """Claims that wait for their box, by id within `roots` (None: everywhere), those after `after`."""
    query = (
        select(DeviceClaimRow)
        .where(DeviceClaimRow.burned_at.is_(None), DeviceClaimRow.voided_at.is_(None))
        .order_by(DeviceClaimRow.id)
        .limit(limit)
    )
    if roots is not None:
        query = query.where(DeviceClaimRow.unit_id.in_(places.subtree_query(roots, on)))
    if after is not None:
        query = query.where(DeviceClaimRow.id > after)
    return list(session.scalars(query))


def node_of_serial(session: Session, serial: str) -> NodeRow | None:
    """The node in service that came with this serial."""
    return session.scalar(select(NodeRow).where(NodeRow.serial == serial, NodeRow.retired_at.is_(None)).limit(1))


# -- states -----------------------------------------------------------------------------------------------------------


def change_state(row: NodeRow, state: NodeState, reason: str | None = None) -> None:
    """A node is something else from now on."""
    row.state, row.state_reason, row.version = state, reason, row.version + 1


def quarantine(
    session: Session, node_id: str, reason: QuarantineReason, *, told_by: str, now: datetime, said: str | None = None
) -> bool:
    """Silence a node that may be two; False if it is silenced, retired or unknown already. `said`: an officer's words.

    What it still had to carry out is given up.
    """
    row = session.get(NodeRow, node_id)
    if row is None or row.state not in {NodeState.PROBATION, NodeState.ACTIVE}:
        return False
    before = row.state
    change_state(row, NodeState.QUARANTINED, said or reason.value)
    forget_code(session, node_id)
    heard = binding(session, node_id)
    if heard is not None:  # what was heard on its pole was before
        heard.confirmed_at = heard.confirmed_by = None
        heard.expires_at = now
    session.execute(
        update(OutboxRow)
        .where(OutboxRow.node_id == node_id, OutboxRow.state.in_((OutboxState.PENDING, OutboxState.SENT)))
        .values(state=OutboxState.EXPIRED)
    )
    audit.append(
        session,
        now=now,
        actor=told_by,
        verb="node.quarantine",
        unit_id=row.unit_id,
        subject=f"node/{node_id}",
        detail={"why": reason.value, "was": before.value} | ({} if said is None else {"reason": said}),
    )
    return True


# -- the spoken code --------------------------------------------------------------------------------------------------


def binding(session: Session, node_id: str) -> NodeBindingRow | None:
    """The last code of a node and what became of it."""
    return session.get(NodeBindingRow, node_id)


def bindings_of(session: Session, node_ids: Collection[str]) -> dict[str, NodeBindingRow]:
    """`binding` of each of these nodes that has one."""
    rows = session.scalars(select(NodeBindingRow).where(NodeBindingRow.node_id.in_(node_ids)))
    return {row.node_id: row for row in rows}


def forget_code(session: Session, node_id: str) -> None:
    """The code a node was ordered to speak is taken out of the order, which is given up if it is still on its way."""
    row = session.get(NodeBindingRow, node_id)
    order = None if row is None else session.get(OutboxRow, row.order_id)
    if order is not None:
        order.body = {name: value for name, value in order.body.items() if name != "code"}
        if order.state in {OutboxState.PENDING, OutboxState.SENT}:
            order.state = OutboxState.EXPIRED


# -- certificates -----------------------------------------------------------------------------------------------------


def certificates_of(session: Session, node_id: str) -> list[NodeCertificateRow]:
    """A node's certificates, newest first."""
    return list(
        session.scalars(
            select(NodeCertificateRow)
            .where(NodeCertificateRow.node_id == node_id)
            .order_by(NodeCertificateRow.issued_at.desc(), NodeCertificateRow.serial_number)
        )
    )


def valid_until_of(session: Session, node_ids: Collection[str]) -> dict[str, datetime]:
    """When the certificate of each of these nodes ends; who has none is left out."""
    found: dict[str, datetime] = {}
    rows = session.execute(
        select(NodeCertificateRow.node_id, NodeCertificateRow.valid_until).where(
            NodeCertificateRow.node_id.in_(node_ids), NodeCertificateRow.revoked_at.is_(None)
        )
    )
    for node_id, valid_until in rows:
        found[node_id] = max(valid_until, found.get(node_id, valid_until))
    return found


def revoke_certificates(session: Session, node_id: str, now: datetime) -> None:
    """None of a node's certificates is worth anything from now on."""
    session.execute(
        update(NodeCertificateRow)
        .where(NodeCertificateRow.node_id == node_id, NodeCertificateRow.revoked_at.is_(None))
        .values(revoked_at=now)
    )
