"""Emergencies and stop-alls as rows: what is in force for whom, and what was."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from broadcast_server.domain.clock import to_ms
from broadcast_server.domain.consent import Alarm, Says
from broadcast_server.domain.delivery import ALERT, LATCH
from broadcast_server.domain.errors import Conflict, NotFound
from broadcast_server.store import library
from broadcast_server.store.tables import AlertRow, BroadcastRow, EmergencyRow, StopAllRow
from broadcast_server.store.words import EmergencyMode, EmergencyNature, EmergencyState
from speaker_protocol.hazards import HAZARDS
from speaker_protocol.rules import BulletinClass

RECENT: Final = timedelta(days=1)
"""So long after its end the set of a unit is still watched: a broker may hold an older one."""


def emergency(session: Session, emergency_id: str) -> EmergencyRow:
    """Raises `NotFound`."""
    row = session.get(EmergencyRow, emergency_id)
    if row is None:
        raise NotFound("unknown_emergency", emergency=emergency_id)
    return row


def stop_all(session: Session, latch_id: str) -> StopAllRow:
    """Raises `NotFound`."""
    row = session.get(StopAllRow, latch_id)
    if row is None:
        raise NotFound("unknown_stop_all", stop_all=latch_id)
    return row


def successor_of(session: Session, emergency_id: str) -> EmergencyRow | None:
    """What stands in its place: the correction or final notice that replaced it."""
    return session.scalars(
        select(EmergencyRow)
        .where(EmergencyRow.replaces_id == emergency_id, EmergencyRow.launched_at.is_not(None))
        .order_by(EmergencyRow.launched_at.desc(), EmergencyRow.id.desc())
        .limit(1)
    ).first()


def alarm_of(row: EmergencyRow) -> Alarm:
    """What people agree to, as the row has it now."""
    return Alarm(
        emergency_id=row.id,
        unit_id=row.unit_id,
        units=tuple(row.units),
        mode=row.mode.value,
        nature=row.nature.value,
        level=row.level,
        says=Says(
            hazard=row.hazard,
            phrases=tuple(row.phrases),
            text=row.text,
            voice=row.voice,
            tone_ms=row.tone_ms,
            times=row.times,
            gap_ms=row.gap_ms,
            every_min=row.every_min,
        ),
        expires_min=row.expires_min,
        replaces=row.replaces_id,
        bulletin_version=row.bulletin_version_id,
        asset=None if row.bulletin_version_id is None else row.asset_sha256,
        template_id=row.template_id,
    )


def body_of(session: Session, row: EmergencyRow) -> dict[str, Any]:
    """What its nodes are told, in the wire's words. Raises `Conflict("emergency_not_launched")`."""
    if row.launched_at is None or row.expires_at is None:
        raise Conflict("emergency_not_launched", emergency=row.id, fix="withdraw_instead")
    body: dict[str, Any] = {
        "alert_id": row.id,
        "level": row.level,
        "klass": BulletinClass.EMERGENCY.value,
        "issued_ms": to_ms(row.launched_at),
        "expires_ms": to_ms(row.expires_at),
        "drill": row.mode is EmergencyMode.DRILL,
        "text": row.text,
        "hazard": row.hazard,
        "phrases": list(row.phrases) or None,
        "nature": None if row.nature is EmergencyNature.ALERT else row.nature.value,
        "replaces": row.replaces_id,
        "tone_ms": row.tone_ms,
        "times": row.times,
        "gap_ms": row.gap_ms,
        "every_min": row.every_min,
    }
    if row.asset_sha256 is not None:
        asset = library.asset(session, row.asset_sha256)
        body |= {"asset": asset.sha256, "asset_ms": asset.duration_ms, "asset_bytes": asset.size_bytes}
    return {name: value for name, value in body.items() if value is not None}


def list_emergencies(
    session: Session,
    units: Collection[str] | None,
    *,
    in_force_at: datetime | None = None,
    after: str | None = None,
    limit: int,
) -> list[EmergencyRow]:
    """The newest first; launched or proposed by these units, None: by any."""
    query = select(EmergencyRow).order_by(EmergencyRow.proposed_at.desc(), EmergencyRow.id.desc()).limit(limit)
    if units is not None:
        query = query.where(EmergencyRow.unit_id.in_(units))
    if in_force_at is not None:
        query = query.where(EmergencyRow.state == EmergencyState.IN_FORCE, EmergencyRow.expires_at > in_force_at)
    if after is not None:
        last = session.get(EmergencyRow, after)
        if last is not None:
            query = query.where(
                or_(
                    EmergencyRow.proposed_at < last.proposed_at,
                    (EmergencyRow.proposed_at == last.proposed_at) & (EmergencyRow.id < last.id),
                )
            )
    return list(session.scalars(query))


def list_stop_alls(
    session: Session, units: Collection[str] | None, *, in_force: bool, after: str | None = None, limit: int
) -> list[StopAllRow]:
    """The newest first."""
    query = select(StopAllRow).order_by(StopAllRow.since.desc(), StopAllRow.id.desc()).limit(limit)
    if units is not None:
        query = query.where(StopAllRow.unit_id.in_(units))
    if in_force:
        query = query.where(StopAllRow.released_at.is_(None))
    if after is not None:
        last = session.get(StopAllRow, after)
        if last is not None:
            query = query.where(
                or_(StopAllRow.since < last.since, (StopAllRow.since == last.since) & (StopAllRow.id < last.id))
            )
    return list(session.scalars(query))


def latches_over(session: Session, units: Collection[str]) -> list[StopAllRow]:
    """Stop-alls in force at any of these units."""
    return list(
        session.scalars(
            select(StopAllRow)
            .where(StopAllRow.unit_id.in_(units), StopAllRow.released_at.is_(None))
            .order_by(StopAllRow.since, StopAllRow.id)
        )
    )


def set_bodies(session: Session, emergency_id: str, body: Mapping[str, Any]) -> None:
    """What the units' nodes are told changes; who is told stays."""
    session.execute(update(AlertRow).where(AlertRow.emergency_id == emergency_id).values(body=dict(body)))


def was_in_force(session: Session, emergency_id: str, now: datetime) -> bool:
    """Whether it could sound until this very instant."""
    row = emergency(session, emergency_id)
    is_open = row.ended_at is None or row.ended_at >= now
    return row.launched_at is not None and is_open and row.expires_at is not None and row.expires_at > now


def cancel_alerts(session: Session, emergency_id: str, *, now: datetime) -> None:
    """Its alerts leave the sets."""
    session.execute(
        update(AlertRow)
        .where(AlertRow.emergency_id == emergency_id, AlertRow.cancelled_at.is_(None))
        .values(cancelled_at=now)
    )


def to_be_spoken(session: Session, *, now: datetime, limit: int = 20) -> list[EmergencyRow]:
    """Emergencies with a text that has no sound yet: those in force first, then what waits for a launcher."""
    query = (
        select(EmergencyRow)
        .where(
            EmergencyRow.text.is_not(None),
            EmergencyRow.asset_sha256.is_(None),
            EmergencyRow.speech_error.is_(None),
            or_(
                (EmergencyRow.state == EmergencyState.IN_FORCE) & (EmergencyRow.expires_at > now),
                EmergencyRow.state == EmergencyState.PROPOSED,
            ),
        )
        .order_by(EmergencyRow.state, EmergencyRow.proposed_at)
        .limit(limit)
    )
    return list(session.scalars(query))


def broadcast(session: Session, emergency_id: str) -> BroadcastRow | None:
    """Its line in the log of broadcasts, if it was launched."""
    return session.get(BroadcastRow, f"{ALERT}{emergency_id}")


# -- for the engine room ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sets:
    """What is in force by unit, and every unit whose set may have changed lately."""

    alerts: Mapping[str, Sequence[dict[str, Any]]] = field(default_factory=dict)
    latches: Mapping[str, tuple[str, datetime]] = field(default_factory=dict)
    units: frozenset[str] = frozenset()
    """Where something is in force or was within `RECENT`."""
    subjects: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Units by `alert:{id}` and `latch:{id}`, ended ones of late too."""
    in_force: Mapping[str, datetime | None] = field(default_factory=dict)
    """Subjects in force, and when they expire."""


def sets(session: Session, *, now: datetime) -> Sets:
    """All a conductor must know to publish the sets."""
    alerts: dict[str, list[dict[str, Any]]] = {}
    latches: dict[str, tuple[str, datetime]] = {}
    subjects: dict[str, list[str]] = {}
    in_force: dict[str, datetime | None] = {}
    units: set[str] = set()
    for row in session.scalars(
        select(AlertRow).where(AlertRow.expires_at > now - RECENT).order_by(AlertRow.issued_at, AlertRow.id)
    ):
        units.add(row.unit_id)
        subject = None if row.emergency_id is None else f"{ALERT}{row.emergency_id}"
        if subject is not None:
            subjects.setdefault(subject, []).append(row.unit_id)
        if row.cancelled_at is None and row.expires_at > now:
            alerts.setdefault(row.unit_id, []).append(row.body)
            if subject is not None:
                in_force[subject] = row.expires_at
    for latch in session.scalars(
        select(StopAllRow)
        .where(or_(StopAllRow.released_at.is_(None), StopAllRow.released_at > now - RECENT))
        .order_by(StopAllRow.since.desc(), StopAllRow.id)
    ):
        units.add(latch.unit_id)
        subjects.setdefault(f"{LATCH}{latch.id}", []).append(latch.unit_id)
        if latch.released_at is None:
            latches[latch.unit_id] = (latch.id, latch.since)  # the oldest one is the unit's latch
            in_force[f"{LATCH}{latch.id}"] = None
    return Sets(
        alerts,
        latches,
        frozenset(units),
        {subject: tuple(where) for subject, where in subjects.items()},
        in_force,
    )


@dataclass(frozen=True, slots=True)
class Airing:
    """What is in force for one unit: its alerts with the emergency each tells of, and its stop-all."""

    alerts: tuple[tuple[AlertRow, EmergencyRow | None], ...] = ()
    latch: tuple[str, datetime] | None = None


def airing(session: Session, units: Collection[str], *, now: datetime) -> dict[str, Airing]:
    """By unit, for each that is asked for: what whoever signs its set must find there."""
    alerts: dict[str, list[tuple[AlertRow, EmergencyRow | None]]] = {unit: [] for unit in units}
    for alert, emergency_row in session.execute(
        select(AlertRow, EmergencyRow)
        .outerjoin(
            EmergencyRow,
            (EmergencyRow.id == AlertRow.emergency_id) & (EmergencyRow.state == EmergencyState.IN_FORCE),
        )
        .where(AlertRow.cancelled_at.is_(None), AlertRow.expires_at > now)
        .order_by(AlertRow.issued_at, AlertRow.id)
    ):
        if alert.unit_id in alerts:
            alerts[alert.unit_id].append((alert, emergency_row))
    latches: dict[str, tuple[str, datetime]] = {}
    for latch in session.scalars(
        select(StopAllRow).where(StopAllRow.released_at.is_(None)).order_by(StopAllRow.since.desc(), StopAllRow.id)
    ):
        latches[latch.unit_id] = (latch.id, latch.since)  # the oldest one is the unit's latch
    return {unit: Airing(tuple(found), latches.get(unit)) for unit, found in alerts.items()}


def title_of(text: str | None, hazard: str | None, otherwise: str) -> str:
    """What people call an emergency: its words, else what the nodes say of its danger."""
    known = HAZARDS.get(hazard or "")
    return text or (hazard if known is None else known.text.rstrip(".")) or otherwise


@dataclass(frozen=True, slots=True)
class AlertSpan:
    """An emergency that was in force over a place. `until`: its end, also one to come."""

    emergency_id: str | None
    unit_id: str
    level: int
    body: Mapping[str, Any]
    issued_at: datetime
    until: datetime

    @property
    def title(self) -> str:
        """What people call it."""
        return title_of(
            self.body.get("text"), self.body.get("hazard"), self.body.get("nature") or self.emergency_id or ""
        )


def alerts_at(session: Session, path: Collection[str], at: datetime) -> list[AlertSpan]:
    """Emergencies of a place or of what lies above it that were in force at an instant; the gravest, newest first."""
    rows = session.scalars(
        select(AlertRow)
        .where(
            AlertRow.unit_id.in_(path),
            AlertRow.issued_at <= at,
            AlertRow.expires_at > at,
            or_(AlertRow.cancelled_at.is_(None), AlertRow.cancelled_at > at),
        )
        .order_by(AlertRow.level.desc(), AlertRow.issued_at.desc(), AlertRow.id.desc())
    )
    return [
        AlertSpan(
            row.emergency_id,
            row.unit_id,
            row.level,
            row.body,
            row.issued_at,
            row.expires_at if row.cancelled_at is None else min(row.expires_at, row.cancelled_at),
        )
        for row in rows
    ]
