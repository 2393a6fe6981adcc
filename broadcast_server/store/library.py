"""Bulletins with their versions, programmes and assets, as rows.

Facts a maintainer must not break: a version is never rewritten, a change is a new version; what may sound is the
newest *approved* version of a language whose approval is over exactly its content (`approved_hash == content_hash`);
the row of an asset outlives its file, because the play log names it. Search columns hold `types.fold` of the text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from broadcast_server.domain.errors import Conflict, NotFound
from broadcast_server.store import places
from broadcast_server.store.tables import AssetRow, BulletinRow, BulletinVersionRow, ProgrammeRow
from broadcast_server.store.types import fold
from broadcast_server.store.words import MediaKind, VersionState
from speaker_protocol.rules import BulletinClass

# -- assets -----------------------------------------------------------------------------------------------------------


def add_asset(
    session: Session,
    *,
    sha256: str,
    unit_id: str,
    label: str,
    size_bytes: int,
    duration_ms: int,
    report: dict[str, Any],
    cues: Sequence[dict[str, Any]] = (),
    created_at: datetime,
    keep_until: datetime | None = None,
) -> AssetRow:
    """Enter an asset; the same bytes again are the same asset, kept the longer of the two times, back if collected."""
    row = session.get(AssetRow, sha256)
    if row is None:
        row = AssetRow(
            sha256=sha256,
            unit_id=unit_id,
            label=label,
            size_bytes=size_bytes,
            duration_ms=duration_ms,
            report=report,
            cues=list(cues),
            created_at=created_at,
            keep_until=keep_until,
        )
        session.add(row)
        session.flush()
        return row
    row.collected_at = None
    if row.keep_until is not None and (keep_until is None or keep_until > row.keep_until):
        row.keep_until = keep_until
    return row


def asset(session: Session, sha256: str) -> AssetRow:
    """Raises `NotFound`, also for one whose file retention took."""
    row = session.get(AssetRow, sha256)
    if row is None or row.collected_at is not None:
        raise NotFound("unknown_asset", asset=sha256)
    return row


def list_assets(
    session: Session, roots: Collection[str] | None, on: date, *, after: str | None, limit: int
) -> list[AssetRow]:
    """By hash; of the places under `roots` on that date, None: of every place."""
    query = select(AssetRow).where(AssetRow.collected_at.is_(None)).order_by(AssetRow.sha256).limit(limit)
    if roots is not None:
        query = query.where(AssetRow.unit_id.in_(places.subtree_query(roots, on)))
    if after is not None:
        query = query.where(AssetRow.sha256 > after)
    return list(session.scalars(query))


def asset_sources(session: Session, unit_id: str) -> dict[str, str]:
    """SHA-256 of the recordings a unit handed in, to the asset each became."""
    rows = session.execute(
        select(AssetRow.sha256, AssetRow.report).where(AssetRow.unit_id == unit_id, AssetRow.collected_at.is_(None))
    )
    return {report["source_sha256"]: sha256 for sha256, report in rows if "source_sha256" in report}


def keep_asset_until(session: Session, sha256: str, keep_until: datetime) -> None:
    """From `keep_until` on the file may go, if nothing that may still sound uses it."""
    session.execute(update(AssetRow).where(AssetRow.sha256 == sha256).values(keep_until=keep_until))


def collectable_assets(session: Session, now: datetime) -> list[AssetRow]:
    """Assets past their `keep_until` that nothing which may still sound refers to."""
    query = select(AssetRow).where(AssetRow.collected_at.is_(None), AssetRow.keep_until <= now)
    due = list(session.scalars(query.order_by(AssetRow.sha256)))
    if not due:
        return []
    used = used_assets(session)
    return [row for row in due if row.sha256 not in used]


def used_assets(session: Session) -> frozenset[str]:
    """Hashes that a programme, or a version which may still sound or be approved, refers to."""
    newest = newest_approved_numbers(session)
    versions = session.execute(
        select(
            BulletinVersionRow.bulletin_id,
            BulletinVersionRow.language,
            BulletinVersionRow.number,
            BulletinVersionRow.asset_sha256,
        ).where(BulletinVersionRow.state != VersionState.RECALLED, BulletinVersionRow.asset_sha256.is_not(None))
    )
    used = {row.asset_sha256 for row in versions if row.number >= newest.get((row.bulletin_id, row.language), 0)}
    for items, rendered in session.execute(select(ProgrammeRow.items, ProgrammeRow.asset_sha256)):
        used.add(rendered)
        used.update(item.get("asset_sha256") for item in items)
    return frozenset(sha for sha in used if sha is not None)


def kept_assets(session: Session) -> frozenset[str]:
    """Hashes whose files must stay."""
    return frozenset(session.scalars(select(AssetRow.sha256).where(AssetRow.collected_at.is_(None))))


# -- bulletins --------------------------------------------------------------------------------------------------------


def add_bulletin(
    session: Session,
    *,
    bulletin_id: str,
    unit_id: str,
    title: str,
    klass: BulletinClass,
    subject: str | None,
    valid_from: datetime | None,
    valid_to: datetime | None,
    created_by: str,
    created_at: datetime,
) -> BulletinRow:
    """Enter a bulletin without a version."""
    row = BulletinRow(
        id=bulletin_id,
        unit_id=unit_id,
        title=title,
        title_folded=fold(title),
        klass=klass,
        subject=subject,
        valid_from=valid_from,
        valid_to=valid_to,
        created_by=created_by,
        created_at=created_at,
        version=1,
    )
    session.add(row)
    session.flush()
    return row


def bulletin(session: Session, bulletin_id: str) -> BulletinRow:
    """Raises `NotFound`."""
    row = session.get(BulletinRow, bulletin_id)
    if row is None:
        raise NotFound("unknown_bulletin", bulletin=bulletin_id)
    return row


def classes_of(session: Session, bulletin_ids: Collection[str]) -> dict[str, BulletinClass]:
    """The class each of these bulletins has."""
    rows = session.execute(select(BulletinRow.id, BulletinRow.klass).where(BulletinRow.id.in_(bulletin_ids)))
    return dict(rows.tuples().all())


def bulletin_of_key(session: Session, unit_id: str, key: str) -> BulletinRow | None:
    """The unit's bulletin that a document calls so, or that has this id."""
    return session.scalars(
        select(BulletinRow)
        .where(BulletinRow.unit_id == unit_id, or_(BulletinRow.key == key, BulletinRow.id == key))
        .order_by(BulletinRow.id.desc())
        .limit(1)
    ).first()


def bulletins_of(session: Session, unit_id: str) -> list[BulletinRow]:
    """All bulletins of one unit, oldest first."""
    return list(session.scalars(select(BulletinRow).where(BulletinRow.unit_id == unit_id).order_by(BulletinRow.id)))


def list_bulletins(
    session: Session,
    roots: Collection[str] | None,
    on: date,
    *,
    text: str | None = None,
    klass: BulletinClass | None = None,
    after: str | None,
    limit: int,
) -> list[BulletinRow]:
    """Newest first; `text` is searched folded in the title, `after` is the id of the last one seen."""
    query = select(BulletinRow).order_by(BulletinRow.id.desc()).limit(limit)
    if roots is not None:
        query = query.where(BulletinRow.unit_id.in_(places.subtree_query(roots, on)))
    if text:
        query = query.where(BulletinRow.title_folded.contains(fold(text), autoescape=True))
    if klass is not None:
        query = query.where(BulletinRow.klass == klass)
    if after is not None:
        query = query.where(BulletinRow.id < after)
    return list(session.scalars(query))


def add_version(
    session: Session,
    *,
    version_id: str,
    bulletin_id: str,
    language: str,
    media: MediaKind,
    text: str | None,
    voice: str | None,
    asset_sha256: str | None,
    content_hash: str,
    created_by: str,
    created_at: datetime,
) -> BulletinVersionRow:
    """Enter the next version of a language, as a draft."""
    last = session.scalar(
        select(func.max(BulletinVersionRow.number)).where(
            BulletinVersionRow.bulletin_id == bulletin_id, BulletinVersionRow.language == language
        )
    )
    row = BulletinVersionRow(
        id=version_id,
        bulletin_id=bulletin_id,
        number=(last or 0) + 1,
        language=language,
        media=media,
        text=text,
        voice=voice,
        asset_sha256=asset_sha256,
        content_hash=content_hash,
        state=VersionState.DRAFT,
        created_by=created_by,
        created_at=created_at,
    )
    session.add(row)
    session.flush()
    return row


def versions(session: Session, bulletin_ids: Collection[str]) -> dict[str, list[BulletinVersionRow]]:
    """All versions of each bulletin, by language, the newest of a language first."""
    rows = session.scalars(
        select(BulletinVersionRow)
        .where(BulletinVersionRow.bulletin_id.in_(bulletin_ids))
        .order_by(BulletinVersionRow.bulletin_id, BulletinVersionRow.language, BulletinVersionRow.number.desc())
    )
    found: dict[str, list[BulletinVersionRow]] = {bulletin_id: [] for bulletin_id in bulletin_ids}
    for row in rows:
        found[row.bulletin_id].append(row)
    return found


def version(session: Session, bulletin_id: str, version_id: str) -> BulletinVersionRow:
    """Raises `NotFound`, also for another bulletin's version."""
    row = session.get(BulletinVersionRow, version_id)
    if row is None or row.bulletin_id != bulletin_id:
        raise NotFound("unknown_bulletin_version", bulletin=bulletin_id, version=version_id)
    return row


def newest_approved_numbers(session: Session) -> dict[tuple[str, str], int]:
    """(bulletin, language) → number of the newest approved version."""
    rows = session.execute(
        select(BulletinVersionRow.bulletin_id, BulletinVersionRow.language, func.max(BulletinVersionRow.number))
        .where(BulletinVersionRow.state == VersionState.APPROVED)
        .group_by(BulletinVersionRow.bulletin_id, BulletinVersionRow.language)
    )
    return {(bulletin_id, language): number for bulletin_id, language, number in rows}


def approved_version(session: Session, bulletin_id: str, language: str) -> BulletinVersionRow | None:
    """The version that may sound, None if none may."""
    row = session.scalars(
        select(BulletinVersionRow)
        .where(
            BulletinVersionRow.bulletin_id == bulletin_id,
            BulletinVersionRow.language == language,
            BulletinVersionRow.state == VersionState.APPROVED,
        )
        .order_by(BulletinVersionRow.number.desc())
        .limit(1)
    ).first()
    return row if row is not None and row.approved_hash == row.content_hash else None


# -- programmes -------------------------------------------------------------------------------------------------------


def add_programme(
    session: Session,
    *,
    programme_id: str,
    unit_id: str,
    title: str,
    items: Sequence[dict[str, Any]],
    created_by: str,
    created_at: datetime,
) -> ProgrammeRow:
    """Enter a programme that is not rendered yet."""
    row = ProgrammeRow(
        id=programme_id,
        unit_id=unit_id,
        title=title,
        title_folded=fold(title),
        items=list(items),
        created_by=created_by,
        created_at=created_at,
        version=1,
    )
    session.add(row)
    session.flush()
    return row


def programme(session: Session, programme_id: str) -> ProgrammeRow:
    """Raises `NotFound`."""
    row = session.get(ProgrammeRow, programme_id)
    if row is None:
        raise NotFound("unknown_programme", programme=programme_id)
    return row


def programme_of_key(session: Session, unit_id: str, key: str) -> ProgrammeRow | None:
    """The unit's programme that a document calls so, or that has this id."""
    return session.scalars(
        select(ProgrammeRow)
        .where(ProgrammeRow.unit_id == unit_id, or_(ProgrammeRow.key == key, ProgrammeRow.id == key))
        .order_by(ProgrammeRow.id.desc())
        .limit(1)
    ).first()


def programmes_of(session: Session, unit_id: str) -> list[ProgrammeRow]:
    """All programmes of one unit, oldest first."""
    return list(session.scalars(select(ProgrammeRow).where(ProgrammeRow.unit_id == unit_id).order_by(ProgrammeRow.id)))


def list_programmes(
    session: Session, roots: Collection[str] | None, on: date, *, text: str | None = None, after: str | None, limit: int
) -> list[ProgrammeRow]:
    """Newest first; `text` is searched folded in the title, `after` is the id of the last one seen."""
    query = select(ProgrammeRow).order_by(ProgrammeRow.id.desc()).limit(limit)
    if roots is not None:
        query = query.where(ProgrammeRow.unit_id.in_(places.subtree_query(roots, on)))
    if text:
        query = query.where(ProgrammeRow.title_folded.contains(fold(text), autoescape=True))
    if after is not None:
        query = query.where(ProgrammeRow.id < after)
    return list(session.scalars(query))


# -- both -------------------------------------------------------------------------------------------------------------


def expect_version(row: BulletinRow | ProgrammeRow, expected: int | None) -> None:
    """Refuse a change made from an older copy. Raises `Conflict`; None: the caller did not look."""
    if expected is not None and row.version != expected:
        raise Conflict("version_changed", field="version", expected=expected, actual=row.version)


def rename(row: BulletinRow | ProgrammeRow, title: str) -> None:
    """Change the title and its search form together."""
    row.title, row.title_folded = title, fold(title)
