"""The tables of single boxes: who may enrol, how a node proves where it hangs, its certificates."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, LargeBinary, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from broadcast_server.store.tables import Base


class DeviceClaimRow(Base):
    """A box that an officer expects: its serial, where it shall hang, and the hash of its claim code.

    It is open until `open_until`, closed by wrong tries (`closed_at`) until an officer opens it again, and burned by
    the node that enrolled with it. One that is voided means nothing any more.
    """

    __tablename__ = "device_claims"
    __table_args__ = (
        Index(
            "uq_device_claims_serial_awaited",
            "serial",
            unique=True,
            sqlite_where=text("burned_at IS NULL AND voided_at IS NULL"),
            postgresql_where=text("burned_at IS NULL AND voided_at IS NULL"),
        ),
    )
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    serial: Mapped[str] = mapped_column(String(40), index=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    cluster_id: Mapped[str | None] = mapped_column(ForeignKey("clusters.id"), index=True)
    """The cluster it shall drive; None: one is made when it comes."""
    cluster_code: Mapped[str | None] = mapped_column(String(40))
    claim_key: Mapped[bytes] = mapped_column(LargeBinary)
    """scrypt of the claim code, salted by the serial."""
    open_until: Mapped[datetime | None]
    wrong_tries: Mapped[int] = mapped_column(default=0)
    wrong_since: Mapped[datetime | None]
    closed_at: Mapped[datetime | None]
    burned_at: Mapped[datetime | None]
    node_id: Mapped[str | None] = mapped_column(ForeignKey("nodes.id"), index=True)
    voided_at: Mapped[datetime | None]
    created_by: Mapped[str]
    created_at: Mapped[datetime]


class NodeBindingRow(Base):
    """The last code a node was ordered to speak, and who typed it in on site."""

    __tablename__ = "node_bindings"
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), primary_key=True)
    order_id: Mapped[str] = mapped_column(String(32))
    salt: Mapped[bytes] = mapped_column(LargeBinary)
    code_hash: Mapped[str] = mapped_column(String(64))
    asked_by: Mapped[str]
    asked_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    wrong_tries: Mapped[int] = mapped_column(default=0)
    asked_since: Mapped[datetime]
    asked_times: Mapped[int] = mapped_column(default=1)
    """How many codes were asked for since `asked_since`."""
    confirmed_at: Mapped[datetime | None]
    confirmed_by: Mapped[str | None] = mapped_column(String(32))
    """Id of the user who typed it."""


class NodeCertificateRow(Base):
    """A certificate that was issued to a node."""

    __tablename__ = "node_certificates"
    __table_args__ = (UniqueConstraint("node_id", "nonce"),)
    serial_number: Mapped[str] = mapped_column(String(48), primary_key=True)
    """Hexadecimal."""
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), index=True)
    nonce: Mapped[str | None] = mapped_column(String(64))
    """Of the request that asked for it."""
    valid_from: Mapped[datetime]
    valid_until: Mapped[datetime]
    issued_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
