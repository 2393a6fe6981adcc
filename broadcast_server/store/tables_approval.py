"""Tables of approval: who agreed to an emergency, what one person may raise alone, and what was submitted and decided.

Consents, approvals of a template and steps are only ever added to.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from broadcast_server.domain.consent import ConsentRole
from broadcast_server.store.tables import Base
from broadcast_server.store.types import Word
from broadcast_server.store.words import ReviewFinding, Step, StepOf


class EmergencyConsentRow(Base):
    """One person agreed to exactly one content of one emergency; never changed, never deleted."""

    __tablename__ = "emergency_consents"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    emergency_id: Mapped[str] = mapped_column(ForeignKey("emergencies.id"), index=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    login: Mapped[str] = mapped_column(String(60))
    """As it was called then."""
    role: Mapped[ConsentRole] = mapped_column(Word(ConsentRole))
    content_hash: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime]
    seat: Mapped[str | None] = mapped_column(String(64))
    """The session or token it came through."""


class EmergencyTemplateRow(Base):
    """What one person may raise alone, once two others approved it. Never changed: another takes its place."""

    __tablename__ = "emergency_templates"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    name: Mapped[str] = mapped_column(String(120))
    hazard: Mapped[str | None] = mapped_column(String(40))
    phrases: Mapped[list[str]] = mapped_column(JSON)
    text: Mapped[str | None] = mapped_column(Text)
    voice: Mapped[str | None] = mapped_column(String(40))
    tone_ms: Mapped[int | None]
    times: Mapped[int | None]
    gap_ms: Mapped[int | None]
    every_min: Mapped[int | None]
    content_hash: Mapped[str] = mapped_column(String(64))
    author_id: Mapped[str] = mapped_column(String(32))
    created_by: Mapped[str] = mapped_column(String(60))
    created_at: Mapped[datetime]
    retired_at: Mapped[datetime | None]
    retired_by: Mapped[str | None] = mapped_column(String(60))


class TemplateApprovalRow(Base):
    """One person approved exactly one content of a template."""

    __tablename__ = "template_approvals"
    template_id: Mapped[str] = mapped_column(ForeignKey("emergency_templates.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), primary_key=True)
    login: Mapped[str] = mapped_column(String(60))
    content_hash: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime]


class BreakGlassReviewRow(Base):
    """Every break-glass is looked at by somebody else, by `due_at`."""

    __tablename__ = "break_glass_reviews"
    emergency_id: Mapped[str] = mapped_column(ForeignKey("emergencies.id"), primary_key=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("units.id"), index=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    """Who broke the glass."""
    login: Mapped[str] = mapped_column(String(60))
    at: Mapped[datetime] = mapped_column(index=True)
    due_at: Mapped[datetime] = mapped_column(index=True)
    reviewer_id: Mapped[str | None] = mapped_column(ForeignKey("users.id"))
    reviewed_by: Mapped[str | None] = mapped_column(String(60))
    reviewed_at: Mapped[datetime | None]
    finding: Mapped[ReviewFinding | None] = mapped_column(Word(ReviewFinding))
    note: Mapped[str | None] = mapped_column(String(300))


class ApprovalStepRow(Base):
    """One step on the way of a version, a programme or a placement to the air; only ever added to."""

    __tablename__ = "approval_steps"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    subject_kind: Mapped[StepOf] = mapped_column(Word(StepOf))
    subject_id: Mapped[str] = mapped_column(String(32), index=True)
    step: Mapped[Step] = mapped_column(Word(Step))
    user_id: Mapped[str] = mapped_column(String(32))
    """Also `operator` and `server`, who are no people of the register."""
    login: Mapped[str] = mapped_column(String(60))
    content_hash: Mapped[str | None] = mapped_column(String(64))
    reason: Mapped[str | None] = mapped_column(String(300))
    at: Mapped[datetime]
