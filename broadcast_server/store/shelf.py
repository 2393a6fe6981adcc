"""What schedules sound: wordings, programmes and feeds, read with one query a kind, and why something may not sound.

A maintainer must not break: what may sound is what was approved, by hash; what may not is told with its reason; a fixed
number of queries, however many schedules there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import Session

from broadcast_server.domain.errors import Corrupt
from broadcast_server.domain.places import PlaceTree
from broadcast_server.store import places
from broadcast_server.store.tables import (
    AssetRow,
    BulletinRow,
    BulletinVersionRow,
    FeedOfferRow,
    FeedRow,
    FeedSubstituteRow,
    ProgrammeRow,
    ScheduleRow,
)
from broadcast_server.store.words import ConflictKind, ContentKind, Unapproved, VersionState

_MS: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class EntryAsset:
    """The recording an entry sounds. `sha256`: of the stored file."""

    sha256: str
    size_bytes: int
    duration: timedelta


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why an entry cannot sound. `subject`: the offer, feed, asset or content it is about."""

    kind: ConflictKind
    subject: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Content:
    """What a schedule sounds: title, and either audio with its approval or the reason why not."""

    title: str
    asset: EntryAsset | None = None
    approval: str | None = None
    boundaries: tuple[timedelta, ...] = ()
    blocked: Blocked | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None


class Shelf:
    """All content the wanted schedules name, read with one query a kind."""

    def __init__(self, session: Session, wanted: ColumnElement[bool], kinds: Collection[ContentKind]) -> None:
        self._spoken: dict[tuple[str, str], Content] = {}
        self._pending: dict[tuple[str, str], Unapproved] = {}
        self._submitted: dict[tuple[str, str], Content] = {}
        self._contents: dict[tuple[ContentKind, str], Content] = {}
        self._feeds: dict[str, Feed] = {}
        self._tree: PlaceTree | None = None
        self._paths: dict[tuple[str, date], tuple[str, ...]] = {}
        if ContentKind.BULLETIN in kinds:
            self._read_bulletins(session, _named(wanted, ContentKind.BULLETIN))
        if ContentKind.PROGRAMME in kinds:
            self._read_programmes(session, _named(wanted, ContentKind.PROGRAMME))
        if ContentKind.FEED in kinds:
            self._read_feeds(session, _named(wanted, ContentKind.FEED))
            self._tree = places.load_tree(session)

    def content(self, row: Any) -> tuple[Content, Feed | None]:
        """What the schedule sounds in its language. Raises `Corrupt` when its content is gone."""
        if row.content_kind is ContentKind.LIVE:
            return Content(row.name), None
        content = self._contents.get((row.content_kind, row.content_id))
        if content is None:
            raise Corrupt("content_gone", schedule=row.id, content=row.content_id)
        if row.content_kind is not ContentKind.BULLETIN:
            return content, self._feeds.get(row.content_id)
        spoken = self._spoken.get((row.content_id, row.language))
        if spoken is not None:
            return spoken, None
        because = self._pending.get((row.content_id, row.language), Unapproved.RECALLED)
        facts = {"language": row.language, "title": content.title, "because": because.value}
        content = self._submitted.get((row.content_id, row.language), content)
        return replace(content, blocked=Blocked(ConflictKind.APPROVAL_VOID, row.content_id, facts)), None

    def blocked_at(self, row: Any, content: Content, start: datetime, end: datetime) -> Blocked | None:
        """What is in the way of this one occurrence, although the content is good."""
        if row.content_kind is ContentKind.FEED:
            return self._feed_block(self._feeds[row.content_id], row.unit_id, start, end)
        if content.valid_to is not None and start >= content.valid_to:
            facts = {"title": content.title, "valid_to": content.valid_to.isoformat()}
            return Blocked(ConflictKind.CONTENT_EXPIRED, row.content_id, facts)
        if content.valid_from is not None and start < content.valid_from:
            facts = {"title": content.title, "valid_from": content.valid_from.isoformat()}
            return Blocked(ConflictKind.CONTENT_EXPIRED, row.content_id, facts)
        return None

    def _read_bulletins(self, session: Session, named: Select[tuple[str]]) -> None:
        plain: dict[str, Content] = {}
        for bulletin_id, title, valid_from, valid_to in session.execute(
            select(BulletinRow.id, BulletinRow.title, BulletinRow.valid_from, BulletinRow.valid_to).where(
                BulletinRow.id.in_(named)
            )
        ):
            content = Content(title, valid_from=valid_from, valid_to=valid_to)
            plain[bulletin_id] = self._contents[ContentKind.BULLETIN, bulletin_id] = content
        versions = session.execute(
            select(
                BulletinVersionRow.bulletin_id,
                BulletinVersionRow.language,
                BulletinVersionRow.content_hash,
                BulletinVersionRow.approved_hash,
                *_ASSET,
            )
            .outerjoin(AssetRow, AssetRow.sha256 == BulletinVersionRow.asset_sha256)
            .where(BulletinVersionRow.bulletin_id.in_(named), BulletinVersionRow.state == VersionState.APPROVED)
            .order_by(BulletinVersionRow.number)  # so that the newest stays
        )
        for bulletin_id, language, content_hash, approved_hash, *asset in versions:
            self._spoken[bulletin_id, language] = _recorded(
                plain[bulletin_id], bulletin_id, content_hash, approved_hash, *asset
            )

        self._read_pending(session, named, plain)

    def _read_pending(self, session: Session, named: Select[tuple[str]], plain: Mapping[str, Content]) -> None:
        """What became of the newest version where none is approved; what was submitted is shown as it would sound."""
        pending = session.execute(
            select(
                BulletinVersionRow.bulletin_id,
                BulletinVersionRow.language,
                BulletinVersionRow.state,
                BulletinVersionRow.content_hash,
                *_ASSET,
            )
            .outerjoin(AssetRow, AssetRow.sha256 == BulletinVersionRow.asset_sha256)
            .where(
                BulletinVersionRow.bulletin_id.in_(named),
                BulletinVersionRow.state.in_([VersionState.DRAFT, VersionState.SUBMITTED, VersionState.REJECTED]),
            )
            .order_by(BulletinVersionRow.number)
        )
        for bulletin_id, language, state, content_hash, *asset in pending:
            key = bulletin_id, language
            if key in self._spoken:
                continue
            self._pending[key] = _UNAPPROVED[state]
            self._submitted.pop(key, None)
            if state is VersionState.SUBMITTED:
                sound = _recorded(plain[bulletin_id], bulletin_id, content_hash, content_hash, *asset)
                self._submitted[key] = sound

    def _read_programmes(self, session: Session, named: Select[tuple[str]]) -> None:
        rows = session.execute(
            select(
                ProgrammeRow.id,
                ProgrammeRow.title,
                ProgrammeRow.content_hash,
                ProgrammeRow.approved_hash,
                ProgrammeRow.submitted_hash,
                *_ASSET,
            )
            .outerjoin(AssetRow, AssetRow.sha256 == ProgrammeRow.asset_sha256)
            .where(ProgrammeRow.id.in_(named))
        )
        for programme_id, title, content_hash, approved_hash, submitted_hash, *asset in rows:
            content = _recorded(Content(title), programme_id, content_hash, approved_hash, *asset)
            if content_hash is not None and submitted_hash == content_hash != approved_hash:
                facts = {"title": title, "because": Unapproved.WAITING.value}
                content = replace(
                    _recorded(Content(title), programme_id, content_hash, content_hash, *asset),
                    blocked=Blocked(ConflictKind.APPROVAL_VOID, programme_id, facts),
                )
            self._contents[ContentKind.PROGRAMME, programme_id] = content

    def _read_feeds(self, session: Session, named: Select[tuple[str]]) -> None:
        offers: dict[str, list[_Offer]] = defaultdict(list)
        for feed_id, *offer in session.execute(
            select(
                FeedOfferRow.feed_id,
                FeedOfferRow.id,
                FeedOfferRow.unit_id,
                FeedOfferRow.valid_from,
                FeedOfferRow.valid_to,
                FeedOfferRow.withdrawn_at,
            )
            .where(FeedOfferRow.feed_id.in_(named))
            .order_by(FeedOfferRow.valid_from, FeedOfferRow.id)
        ):
            offers[feed_id].append(_Offer(*offer))
        stood_in_for = set(
            session.scalars(select(FeedSubstituteRow.feed_id).where(FeedSubstituteRow.feed_id.in_(named)))
        )
        for feed_id, name, unit_id, revoked_at, successor_id, valid_from, valid_to in session.execute(
            select(
                FeedRow.id,
                FeedRow.name,
                FeedRow.unit_id,
                FeedRow.revoked_at,
                FeedRow.successor_id,
                FeedRow.valid_from,
                FeedRow.valid_to,
            ).where(FeedRow.id.in_(named))
        ):
            self._contents[ContentKind.FEED, feed_id] = Content(name)
            self._feeds[feed_id] = Feed(
                feed_id,
                name,
                unit_id,
                revoked_at,
                successor_id,
                valid_from,
                valid_to,
                tuple(offers[feed_id]),
                feed_id in stood_in_for,
            )

    def _feed_block(self, feed: Feed, unit_id: str, start: datetime, end: datetime) -> Blocked | None:
        facts: dict[str, Any] = {"title": feed.name, "successor_id": feed.successor_id}
        if feed.revoked_at is not None and feed.revoked_at < end:
            if feed.has_substitutes and start < feed.revoked_at:
                return None  # it sounds already: its substitute carries it to the end of this window
            return Blocked(ConflictKind.FEED_REVOKED, feed.id, facts)
        if not _covers(feed.valid_from, feed.valid_to, start, end):
            return Blocked(ConflictKind.OFFER_EXPIRES, feed.id, facts | _until(feed.valid_to))
        path = self._path(unit_id, start)
        if feed.unit_id == unit_id:
            return None
        last: _Offer | None = None
        for offer in feed.offers:
            if offer.unit_id not in path:
                continue
            last = offer
            is_withdrawn = offer.withdrawn_at is not None and offer.withdrawn_at < end
            if not is_withdrawn and _covers(offer.valid_from, offer.valid_to, start, end):
                return None
        if last is None:
            return Blocked(ConflictKind.NOT_OFFERED, feed.id, facts)
        if last.withdrawn_at is not None:
            return Blocked(ConflictKind.OFFER_WITHDRAWN, last.id, facts)
        return Blocked(ConflictKind.OFFER_EXPIRES, last.id, facts | _until(last.valid_to))

    def _path(self, unit_id: str, at: datetime) -> tuple[str, ...]:
        on = places.local_date(at)
        path = self._paths.get((unit_id, on))
        if path is None:
            tree = self._tree
            path = self._paths[unit_id, on] = () if tree is None else tree.ancestors(unit_id, on)
        return path


class _Offer(NamedTuple):
    id: str
    unit_id: str
    valid_from: datetime
    valid_to: datetime | None
    withdrawn_at: datetime | None


class Feed(NamedTuple):
    """A feed with the offers it rests on."""

    id: str
    name: str
    unit_id: str
    revoked_at: datetime | None
    successor_id: str | None
    valid_from: datetime | None
    valid_to: datetime | None
    offers: tuple[_Offer, ...]
    has_substitutes: bool


_UNAPPROVED: Final = {
    VersionState.DRAFT: Unapproved.DRAFT,
    VersionState.SUBMITTED: Unapproved.WAITING,
    VersionState.REJECTED: Unapproved.REJECTED,
}
_ASSET: Final = (AssetRow.sha256, AssetRow.size_bytes, AssetRow.duration_ms, AssetRow.cues, AssetRow.collected_at)


def _named(wanted: ColumnElement[bool], kind: ContentKind) -> Select[tuple[str]]:
    return select(ScheduleRow.content_id).where(wanted, ScheduleRow.content_kind == kind)


def _recorded(
    plain: Content,
    content_id: str,
    content_hash: str | None,
    approved_hash: str | None,
    sha256: str | None,
    size_bytes: int,
    duration_ms: int,
    cues: Sequence[Mapping[str, Any]],
    collected_at: datetime | None,
) -> Content:
    """Audio with its approval; the approval must be over exactly this content."""
    facts = {"title": plain.title}
    if content_hash is None or approved_hash != content_hash:
        void = facts | {"because": Unapproved.CHANGED.value}
        return replace(plain, blocked=Blocked(ConflictKind.APPROVAL_VOID, content_id, void))
    if sha256 is None or collected_at is not None:
        return replace(plain, blocked=Blocked(ConflictKind.ASSET_MISSING, sha256 or content_id, facts))
    starts = sorted({cue["at_ms"] for cue in cues if cue.get("role") != "bed" and 0 < cue["at_ms"] < duration_ms})
    return replace(
        plain,
        asset=EntryAsset(sha256, size_bytes, duration_ms * _MS),
        approval=approved_hash,
        boundaries=tuple(start * _MS for start in starts),
    )


def _covers(valid_from: datetime | None, valid_to: datetime | None, start: datetime, end: datetime) -> bool:
    return (valid_from is None or valid_from <= start) and (valid_to is None or end <= valid_to)


def _until(valid_to: datetime | None) -> dict[str, Any]:
    return {} if valid_to is None else {"valid_to": valid_to.isoformat()}
