"""Rows of relaying: who stands in for a feed, how it is held, cut or stopped, what really sounded, who pushed when.

A maintainer must not break: (1) a substitute is read only while it is in force, not stopped, and the feed's owner may
relay it; (2) a span's instants are those at which speakers sounded it; an open span is believed only as far as its
`seen_at`; (3) a filler is an approved recording of the moment it is asked for: approval withdrawn, filler gone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Select, delete, or_, select, update
from sqlalchemy.orm import Session

from broadcast_server.domain.clock import Window
from broadcast_server.store import feeds, library
from broadcast_server.store.tables import (
    BulletinRow,
    BulletinVersionRow,
    FeedRow,
    FeedSubstituteRow,
    PushSessionRow,
    RelaySpanRow,
)
from broadcast_server.store.words import FeedKind, RelayedKind

MOST_SUBSTITUTES = 5
_SAME_REFUSAL = timedelta(minutes=5)
FORGOTTEN_AFTER = timedelta(seconds=30)
"""Who writes vouches every few seconds; after so long without, the process that wrote is taken for dead."""
_FILLER_LANGUAGE = "vie"


@dataclass(frozen=True, slots=True)
class FeedSource:
    """Where the relay finds a feed."""

    feed_id: str
    kind: FeedKind
    url: str | None
    mount: str | None


@dataclass(frozen=True, slots=True)
class Arrangement:
    """All the relay must know of one feed. `filler`: asset hash; `barred`: `stopped` or `cut`, by a person's word."""

    source: FeedSource
    substitutes: tuple[FeedSource, ...]
    filler: str | None
    delay_s: float
    barred: str | None
    is_revoked: bool


def arrangements(session: Session, fillers: Mapping[str, str | None], now: datetime) -> dict[str, Arrangement]:
    """How each of these feeds is relayed; a revoked one that nobody stands in for is left out.

    `fillers`: the bulletin that its communes agree on, by feed.
    """
    found: dict[str, Arrangement] = {}
    for row in session.scalars(select(FeedRow).where(FeedRow.id.in_(tuple(fillers)))):
        is_revoked = row.revoked_at is not None and row.revoked_at <= now
        standing_in = [each for each in substitutes_of(session, row.id) if _may_stand_in(each, row, session, now)]
        if is_revoked and not standing_in:
            continue
        found[row.id] = Arrangement(
            source=_source(row),
            substitutes=tuple(_source(each) for each in standing_in),
            filler=filler_asset(session, fillers[row.id] or row.filler_id),
            delay_s=row.delay_ms / 1000,
            barred="stopped" if row.stopped_at is not None else "cut" if row.cut_at is not None else None,
            is_revoked=is_revoked,
        )
    return found


def _source(row: FeedRow) -> FeedSource:
    return FeedSource(row.id, row.kind, row.url, row.mount)


def _may_stand_in(substitute: FeedRow, feed: FeedRow, session: Session, now: datetime) -> bool:
    return (
        feeds.feed_in_force(substitute, now)
        and substitute.stopped_at is None
        and feeds.may_relay(session, substitute, feed.unit_id, now)
    )


def filler_asset(session: Session, bulletin_id: str | None) -> str | None:
    """The asset of an approved bulletin, None for none."""
    if bulletin_id is None:
        return None
    version = library.approved_version(session, bulletin_id, _FILLER_LANGUAGE)
    return None if version is None else version.asset_sha256


def name_of_asset(session: Session, sha256: str) -> str | None:
    """The title of the newest bulletin that has this recording."""
    return session.scalar(
        select(BulletinRow.title)
        .join(BulletinVersionRow, BulletinVersionRow.bulletin_id == BulletinRow.id)
        .where(BulletinVersionRow.asset_sha256 == sha256)
        .order_by(BulletinRow.id.desc())
        .limit(1)
    )


# -- substitutes ------------------------------------------------------------------------------------------------------


def substitutes_of(session: Session, feed_id: str) -> list[FeedRow]:
    """Who stands in, in order, whether they may now or not."""
    return list(
        session.scalars(
            select(FeedRow)
            .join(FeedSubstituteRow, FeedSubstituteRow.substitute_id == FeedRow.id)
            .where(FeedSubstituteRow.feed_id == feed_id)
            .order_by(FeedSubstituteRow.position)
        )
    )


def put_substitutes(session: Session, feed_id: str, substitute_ids: Sequence[str]) -> None:
    """Exactly these, in this order."""
    session.execute(delete(FeedSubstituteRow).where(FeedSubstituteRow.feed_id == feed_id))
    session.add_all(
        FeedSubstituteRow(feed_id=feed_id, position=number, substitute_id=each)
        for number, each in enumerate(substitute_ids, start=1)
    )
    session.flush()


# -- what sounded -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Relayed:
    """From `since` on the speakers sound this; `kind` None: the stream is over."""

    feed_id: str
    kind: RelayedKind | None
    source_id: str | None
    reason: str
    since: datetime


def note_relayed(session: Session, changes: Sequence[tuple[str, Relayed]], now: datetime) -> None:
    """Write changes in order, each with the id of its row: what sounded before ends where the next begins."""
    for span_id, change in changes:
        for row in session.scalars(_open_spans().where(RelaySpanRow.feed_id == change.feed_id)):
            row.until = max(row.since, change.since)
            row.end_reason, row.seen_at = change.reason, now
        if change.kind is not None:
            session.add(
                RelaySpanRow(
                    id=span_id,
                    feed_id=change.feed_id,
                    kind=change.kind,
                    source_id=change.source_id,
                    reason=change.reason,
                    since=change.since,
                    until=None,
                    end_reason=None,
                    seen_at=now,
                )
            )
        session.flush()


def still_relayed(session: Session, feed_ids: Collection[str], now: datetime) -> None:
    """The open spans of these feeds go on; one that nobody has vouched for lately ended when it was last seen."""
    session.execute(
        update(RelaySpanRow)
        .where(RelaySpanRow.until.is_(None), RelaySpanRow.feed_id.in_(tuple(feed_ids)))
        .values(seen_at=now)
    )
    for row in session.scalars(_open_spans().where(RelaySpanRow.seen_at < now - FORGOTTEN_AFTER)):
        row.until, row.end_reason = max(row.since, row.seen_at), "process_lost"


def _open_spans() -> Select[tuple[RelaySpanRow]]:
    return select(RelaySpanRow).where(RelaySpanRow.until.is_(None))


def stand_ins(session: Session, feed_id: str, within: Window) -> list[Window]:
    """When something else than the feed sounded on its stream inside `within`, in order."""
    rows = session.execute(
        select(RelaySpanRow.since, RelaySpanRow.until, RelaySpanRow.seen_at)
        .where(
            RelaySpanRow.feed_id == feed_id,
            RelaySpanRow.kind != RelayedKind.FEED,
            RelaySpanRow.since < within.end,
            or_(RelaySpanRow.until.is_(None), RelaySpanRow.until > within.start),
        )
        .order_by(RelaySpanRow.since, RelaySpanRow.id)
    )
    spans = ((max(since, within.start), min(until or seen_at, within.end)) for since, until, seen_at in rows)
    return [Window(since, until) for since, until in spans if since < until]


def spans(
    session: Session, feed_id: str, *, since: datetime | None = None, until: datetime | None = None, limit: int = 1_000
) -> list[RelaySpanRow]:
    """What the feed's stream sounded in `[since, until)`, oldest first."""
    query = select(RelaySpanRow).where(RelaySpanRow.feed_id == feed_id).order_by(RelaySpanRow.since).limit(limit)
    if since is not None:
        query = query.where(or_(RelaySpanRow.until.is_(None), RelaySpanRow.until > since))
    if until is not None:
        query = query.where(RelaySpanRow.since < until)
    return list(session.scalars(query))


@dataclass(frozen=True, slots=True)
class Instead:
    """What speakers sounded for a while instead of the feed that was planned. `name`: of the feed or recording."""

    kind: RelayedKind
    source_id: str | None
    name: str | None
    reason: str
    since: datetime
    until: datetime


def sounded_instead(session: Session, wanted: Collection[tuple[str, datetime, datetime]]) -> list[tuple[Instead, ...]]:
    """For each `(feed, from, until)`, in order, what sounded instead of the feed, clipped to the stretch."""
    if not wanted:
        return []
    rows = session.scalars(
        select(RelaySpanRow)
        .where(
            RelaySpanRow.feed_id.in_({feed_id for feed_id, _, _ in wanted}),
            RelaySpanRow.kind != RelayedKind.FEED,
            RelaySpanRow.since < max(until for _, _, until in wanted),
            or_(RelaySpanRow.until.is_(None), RelaySpanRow.until > min(since for _, since, _ in wanted)),
        )
        .order_by(RelaySpanRow.since)
    ).all()
    names = {row.source_id: _name_of(session, row) for row in rows if row.source_id is not None}
    return [
        tuple(
            Instead(row.kind, row.source_id, names.get(row.source_id or ""), row.reason, max(row.since, since), ends)
            for row in rows
            if row.feed_id == feed_id and row.since < until
            for ends in (min(row.until or row.seen_at, until),)
            if ends > max(row.since, since)
        )
        for feed_id, since, until in wanted
    ]


def _name_of(session: Session, row: RelaySpanRow) -> str | None:
    source_id = row.source_id or ""
    is_feed = row.kind is RelayedKind.SUBSTITUTE
    return feeds.name_of(session, source_id) if is_feed else name_of_asset(session, source_id)


# -- who pushed -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pushed:
    """A source client came (`reason` None), went, or was refused (`is_refused`)."""

    feed_id: str
    at: datetime
    reason: str | None
    bytes_in: int
    agent: str
    address: str
    is_refused: bool = False


def note_pushed(session: Session, events: Sequence[tuple[str, Pushed]]) -> None:
    """Write events in order, each with the id of the row it may open."""
    for session_id, event in events:
        if event.is_refused:
            _note_refused(session, session_id, event)
            continue
        for row in session.scalars(_open_sessions(event.feed_id)):
            row.until, row.bytes_in = event.at, max(row.bytes_in, event.bytes_in)
            row.reason = event.reason or "process_lost"
        if event.reason is None:
            session.add(_push_session(session_id, event, until=None))
        session.flush()


def still_pushed(session: Session, bytes_in: Mapping[str, int], now: datetime) -> None:
    """These feeds are connected, with so many bytes; a session nobody has vouched for lately ended when last seen."""
    rows = session.scalars(select(PushSessionRow).where(PushSessionRow.until.is_(None)))
    for row in rows:
        if row.feed_id in bytes_in:
            row.bytes_in, row.seen_at = bytes_in[row.feed_id], now
        elif row.seen_at < now - FORGOTTEN_AFTER:
            row.until, row.reason = row.seen_at, "process_lost"


def _note_refused(session: Session, session_id: str, event: Pushed) -> None:
    known = session.scalars(
        select(PushSessionRow)
        .where(
            PushSessionRow.feed_id == event.feed_id,
            PushSessionRow.reason == event.reason,
            PushSessionRow.address == event.address,
            PushSessionRow.until > event.at - _SAME_REFUSAL,
        )
        .order_by(PushSessionRow.since.desc())
        .limit(1)
    ).first()
    if known is None:
        session.add(_push_session(session_id, event, until=event.at))
    else:
        known.attempts += 1
        known.until = event.at
    session.flush()


def _push_session(session_id: str, event: Pushed, *, until: datetime | None) -> PushSessionRow:
    return PushSessionRow(
        id=session_id,
        feed_id=event.feed_id,
        since=event.at,
        until=until,
        reason=event.reason,
        bytes_in=event.bytes_in,
        seen_at=event.at,
        agent=event.agent[:200],
        address=event.address[:120],
    )


def _open_sessions(feed_id: str) -> Select[tuple[PushSessionRow]]:
    return select(PushSessionRow).where(PushSessionRow.feed_id == feed_id, PushSessionRow.until.is_(None))


def push_sessions(
    session: Session, feed_id: str, *, after: str | None = None, limit: int = 100
) -> list[PushSessionRow]:
    """Connections and refusals, the latest first."""
    query = select(PushSessionRow).where(PushSessionRow.feed_id == feed_id).order_by(PushSessionRow.id.desc())
    if after is not None:
        query = query.where(PushSessionRow.id < after)
    return list(session.scalars(query.limit(limit)))
