"""Certificates of nodes: issued at enrolment and renewed on the node's own word, signed with its device key.

A maintainer must not break: (1) a certificate carries the node's device key, never another; (2) what is issued stands
in `node_certificates`, so that retirement revokes it; (3) a renewal that was asked for once is not answered twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broadcast_server.control.desk import Desk
from broadcast_server.control.fleet import note
from broadcast_server.domain.errors import Invalid, Refused, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.store import devices
from broadcast_server.store.session import Session
from broadcast_server.store.tables import NodeRow
from broadcast_server.store.tables_devices import NodeCertificateRow
from broadcast_server.store.words import NodeState
from speaker_protocol import claims

log = get_logger()

REQUEST_LIMIT: Final = 8 * 1024
"""Characters of a request."""
RENEW_EVERY: Final = timedelta(minutes=10)
"""A node that lost its certificate may ask again so soon."""


def device_key(csr_pem: str) -> str:
    """The Ed25519 key (hex) of a request whose sender holds it. Raises `Invalid("csr_invalid")`."""
    if len(csr_pem) > REQUEST_LIMIT:
        raise Invalid("csr_invalid", field="csr", cause="too_large")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        public, is_signed = request.public_key(), request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        raise Invalid("csr_invalid", field="csr", cause="unreadable") from None
    if not isinstance(public, Ed25519PublicKey):
        raise Invalid("csr_invalid", field="csr", cause="key_type")
    if not is_signed:
        raise Invalid("csr_invalid", field="csr", cause="signature")
    return public.public_bytes_raw().hex()


async def issue(desk: Desk, node_id: str, csr_pem: str, *, nonce: str | None = None) -> str | None:
    """A certificate chain (PEM) for a node's request, written down; None where nodes get none or the authority is
    away, and the node asks again.
    """
    if desk.certifier is None:
        return None
    try:
        chain = await desk.certifier.issue_device(csr_pem.encode(), node_id)
    except Unavailable as away:
        log.warning("certificate.not_issued", node_id=node_id, code=away.code)
        return None
    certificate = x509.load_pem_x509_certificate(chain)
    now = desk.clock.now()

    def work(session: Session) -> None:
        row = session.get(NodeRow, node_id)
        if row is None or row.retired_at is not None:
            return  # retired in this very moment; the authority revokes what belongs to nobody in service
        session.add(
            NodeCertificateRow(
                serial_number=f"{certificate.serial_number:x}",
                node_id=node_id,
                nonce=nonce,
                valid_from=certificate.not_valid_before_utc,
                valid_until=certificate.not_valid_after_utc,
                issued_at=now,
            )
        )
        detail = {
            "serial_number": f"{certificate.serial_number:x}",
            "until": certificate.not_valid_after_utc.isoformat(),
        }
        note(session, f"node/{node_id}", "node.certificate", row.unit_id, f"node/{node_id}", now, detail)

    await desk.store.begin(work, ring=False)
    return chain.decode()


@dataclass(frozen=True, slots=True)
class Renewal:
    """A node asks for another certificate. `signature`: Ed25519 over `claims.renewal` with its device key, hex."""

    node_id: str
    csr: str
    nonce: str
    signature: str


@dataclass(frozen=True, slots=True)
class Renewed:
    """Another certificate (PEM chain), and the authority to trust (PEM)."""

    chain: str
    authority: str


async def renew(desk: Desk, request: Renewal) -> Renewed:
    """Another certificate for a node that is in service. The device key is the only authority.

    Raises `Invalid("csr_invalid")`, `Unavailable("certificates_unavailable")`, and `Refused("device_refused")` for
    whatever else is wrong: an unknown, retired or quarantined node, another key, a nonce that was seen, too soon.
    """
    now = desk.clock.now()
    public_key = device_key(request.csr)

    def known(session: Session) -> bool:
        row = session.get(NodeRow, request.node_id)
        return (
            row is not None
            and row.state in {NodeState.PROBATION, NodeState.ACTIVE}
            and row.public_key == public_key
            and _is_due(session, request, now)
        )

    if not await desk.store.read(known) or not _is_signed(request, public_key):
        raise Refused("device_refused")
    chain = await issue(desk, request.node_id, request.csr, nonce=request.nonce)
    if chain is None or desk.certifier is None:
        raise Unavailable("certificates_unavailable")
    authority = await desk.executor.run(desk.certifier.authority_pem)
    return Renewed(chain, authority.decode())


def _is_due(session: Session, request: Renewal, now: datetime) -> bool:
    had = devices.certificates_of(session, request.node_id)
    return not had or (had[0].issued_at + RENEW_EVERY <= now and all(one.nonce != request.nonce for one in had))


def _is_signed(request: Renewal, public_key: str) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(
            bytes.fromhex(request.signature), claims.renewal(request.node_id, request.csr, request.nonce)
        )
    except (InvalidSignature, ValueError):
        return False
    return True
