"""What can be put on the air: bulletins in versions and languages, programmes, and the audio behind them.

Speech, decoding and rendering happen before the transaction; rows are written in one. How things are approved stands in
`control.approvals`. A maintainer must not break: every change is a new version that nobody has approved, and a step
that names who wrote it; audio of others enters only through `audio.prepare`; an upload lies in quarantine under a name
of ours and is gone when its verb ends, however it ends.

Source: Thông tư 39/2020 (classes), Nghị định 49/2024 (local languages); `docs/glossary.md` (duyệt, thu hồi).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from broadcast_server.audio import prepare, studio
from broadcast_server.audio.assets import disk_errors
from broadcast_server.audio.prepare import Prepared
from broadcast_server.audio.speech import Voice
from broadcast_server.control import access, delegated
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused, Unavailable
from broadcast_server.store import approvals, audit, fleet, library, places
from broadcast_server.store.session import Session
from broadcast_server.store.tables import AssetRow, BulletinRow, BulletinVersionRow, ProgrammeRow
from broadcast_server.store.words import MediaKind, Step, StepOf, VersionState
from speaker_protocol.rules import BulletinClass

UPLOAD_LIMIT_BYTES: Final = 200_000_000
KEEP_UNUSED: Final = timedelta(days=30)
"""How long the audio of what was recalled or never used stays."""

COLLECT_AFTER: Final = timedelta(hours=2)
"""A file younger than this may belong to a verb that has not written its rows yet."""

_LANGUAGE: Final = re.compile(r"[a-z]{3}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MOST_ITEMS: Final = 100


# -- requests and answers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewBulletin:
    """A bulletin (bản tin) to write; what it says comes with its versions. The class never changes."""

    unit_id: str
    title: str
    klass: BulletinClass = BulletinClass.NORMAL
    subject: str | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class BulletinChange:
    """What should be different about a bulletin; None: as it is."""

    title: str | None = None
    subject: str | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class TextVersion:
    """A wording that a voice speaks. `chime_asset`: an asset that sounds before and after."""

    bulletin_id: str
    text: str
    language: str = "vie"
    voice: str = Voice.NORTH.value
    chime_asset: str | None = None


@dataclass(frozen=True, slots=True)
class AudioVersion:
    """A recording. `text`: what is said in it, for those who read."""

    bulletin_id: str
    upload: Path
    language: str = "vie"
    text: str | None = None


class ItemRole(StrEnum):
    """What a part of a programme is for."""

    SIGNATURE = "signature"
    INTRO = "intro"
    BED = "bed"
    STING = "sting"
    ITEM = "item"
    CLOSING = "closing"


@dataclass(frozen=True, slots=True)
class ProgrammeItem:
    """A part: exactly one of a bulletin (its approved version of `language`) and an asset."""

    role: ItemRole = ItemRole.ITEM
    bulletin_id: str | None = None
    asset_sha256: str | None = None
    language: str = "vie"


@dataclass(frozen=True, slots=True)
class NewProgramme:
    """A programme (chương trình): items in order; at most one signature, intro, bed, sting and closing."""

    unit_id: str
    title: str
    items: tuple[ProgrammeItem, ...]
    key: str | None = None


@dataclass(frozen=True, slots=True)
class BulletinView:
    """A bulletin with all its versions, the newest of a language first."""

    row: BulletinRow
    versions: tuple[BulletinVersionRow, ...]


@dataclass(frozen=True, slots=True)
class Audio:
    """Prepared audio: in the asset store, not yet in the register."""

    sha256: str
    size_bytes: int
    duration_ms: int
    report: Mapping[str, Any]
    cues: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Collected:
    """What retention took: assets of the register, and files nobody had entered."""

    assets: tuple[str, ...]
    files: tuple[str, ...]


# -- hashes -----------------------------------------------------------------------------------------------------------


def version_hash(*, text: str | None, voice: str | None, asset_sha256: str | None) -> str:
    """SHA-256 over what a version says and sounds like: what an approval is over."""
    return _hash_of({"text": text, "voice": voice, "asset": asset_sha256})


def programme_hash(items: Sequence[Mapping[str, Any]], asset_sha256: str) -> str:
    """SHA-256 over a programme's items and the audio rendered from them."""
    return _hash_of({"items": [dict(item) for item in items], "asset": asset_sha256})


def _hash_of(told: Mapping[str, Any]) -> str:
    text = json.dumps(told, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# -- audio, outside of any transaction --------------------------------------------------------------------------------


@asynccontextmanager
async def received(
    desk: Desk, chunks: AsyncIterator[bytes], *, limit_bytes: int = UPLOAD_LIMIT_BYTES
) -> AsyncIterator[Path]:
    """What somebody sends, as a file in quarantine for as long as the block lasts.

    Counted as it comes in: a declared length is not believed. Raises `Invalid("body_too_large")`,
    `Invalid("file_empty")`, `Unavailable("disk_full")`.
    """
    place = desk.audio.quarantine / f"{desk.chance.new_id()}.upload"
    await desk.executor.run(lambda: desk.audio.quarantine.mkdir(parents=True, exist_ok=True))
    try:
        with disk_errors():
            file = await desk.executor.run(place.open, "xb")
            try:
                size = 0
                async for chunk in chunks:
                    size += len(chunk)
                    if size > limit_bytes:
                        raise Invalid("body_too_large", field="file", limit_bytes=limit_bytes)
                    await desk.executor.run(file.write, chunk)
            finally:
                await desk.executor.run(file.close)
        if size == 0:
            raise Invalid("file_empty", field="file")
        yield place
    finally:
        await desk.executor.run(lambda: place.unlink(missing_ok=True))


async def recorded(desk: Desk, source: Path) -> Audio:
    """A file as audio of ours. Raises what `audio.prepare` raises."""
    digest = await desk.executor.run(lambda: digest_of(source))
    room = desk.audio
    made = await prepare.prepare(source, assets=room.assets, sandbox=room.sandbox, executor=desk.executor)
    return _audio(made, source_sha256=digest)


async def spoken(desk: Desk, text: str, voice: str, chime_asset: str | None = None) -> Audio:
    """Text as audio. Raises `Unavailable("speech_missing")` where there is no engine, `Invalid` on text or voice."""
    if desk.audio.speaker is None:
        raise Unavailable("speech_missing", field="text", fix="install_espeak")
    if voice not in set(Voice):
        raise Invalid("not_a_choice", field="voice", expected=", ".join(Voice), fix="pick_voice")
    pcm = await desk.audio.speaker.say(text, Voice(voice))
    if chime_asset is not None:
        chime = await _pcm_of(desk, chime_asset)
        rendered = await desk.executor.run(lambda: studio.announcement(studio.Item("speech", pcm), chime=chime))
        pcm = rendered.pcm
    made = await prepare.prepare_pcm(pcm, assets=desk.audio.assets, executor=desk.executor)
    return _audio(made)


async def rendered(desk: Desk, items: Sequence[tuple[str, ItemRole, str]]) -> Audio:
    """A programme's parts `(item id, role, asset)` as one piece of audio with cues.

    In the studio up to 10 min; longer material streams through ffmpeg, without a bed.
    """
    durations = {sha: (await desk.executor.run(desk.audio.assets.verify, sha)).duration_ms for _, _, sha in items}
    parts = {role: [(item_id, sha) for item_id, its, sha in items if its is role] for role in ItemRole}
    total_ms = sum(durations[sha] for _, role, sha in items if role is not ItemRole.BED)
    total_ms += sum(durations[sha] for _, sha in parts[ItemRole.STING]) * max(0, len(parts[ItemRole.ITEM]) - 1)
    pauses_ms = 2 * studio.PAUSE_MS * len(parts[ItemRole.ITEM]) + studio.BED_LEAD_MS + studio.BED_TAIL_MS
    if total_ms + pauses_ms > studio.LONGEST_MS:
        return await _streamed(desk, parts, durations)

    async def sound(role: ItemRole) -> bytes:
        return await _pcm_of(desk, parts[role][0][1]) if parts[role] else b""

    spoken_items = [studio.Item(item_id, await _pcm_of(desk, sha)) for item_id, sha in parts[ItemRole.ITEM]]
    intro = [studio.Item(item_id, await _pcm_of(desk, sha)) for item_id, sha in parts[ItemRole.INTRO]]
    signature, sting, bed, closing = [
        await sound(role) for role in (ItemRole.SIGNATURE, ItemRole.STING, ItemRole.BED, ItemRole.CLOSING)
    ]
    whole = await desk.executor.run(
        lambda: studio.render_programme(
            spoken_items, signature=signature, sting=sting, intro=intro[0] if intro else None, bed=bed, closing=closing
        )
    )
    made = await prepare.prepare_pcm(whole.pcm, assets=desk.audio.assets, executor=desk.executor)
    cues = tuple(
        {"item_id": cue.item_id, "role": cue.role.value, "at_ms": cue.at_ms, "duration_ms": cue.duration_ms}
        for cue in whole.cues
    )
    return _audio(made, cues=cues)


async def _streamed(
    desk: Desk, parts: Mapping[ItemRole, Sequence[tuple[str, str]]], durations: Mapping[str, int]
) -> Audio:
    line = [(item_id, ItemRole.SIGNATURE, sha) for item_id, sha in parts[ItemRole.SIGNATURE]]
    line += [(item_id, ItemRole.INTRO, sha) for item_id, sha in parts[ItemRole.INTRO]]
    for item_id, sha in parts[ItemRole.ITEM]:
        line += [(sting, ItemRole.STING, sound) for sting, sound in parts[ItemRole.STING]]
        line.append((item_id, ItemRole.ITEM, sha))
    line += [(item_id, ItemRole.CLOSING, sha) for item_id, sha in parts[ItemRole.CLOSING]]
    room = desk.audio
    made = await prepare.prepare_joined(
        [sha for _, _, sha in line], assets=room.assets, sandbox=room.sandbox, executor=desk.executor
    )
    cues, at_ms = [], 0
    for item_id, role, sha in line:
        cues.append({"item_id": item_id, "role": role.value, "at_ms": at_ms, "duration_ms": durations[sha]})
        at_ms += durations[sha]
    return _audio(made, cues=tuple(cues))


async def _pcm_of(desk: Desk, sha256: str) -> bytes:
    room = desk.audio
    source = room.assets.path(sha256)
    if sha256 not in room.assets:
        raise NotFound("unknown_asset", asset=sha256)
    return await prepare.decode_pcm(
        source,
        assets=room.assets,
        sandbox=room.sandbox,
        executor=desk.executor,
        longest_s=studio.LONGEST_MS // 1000,
    )


def _audio(made: Prepared, *, cues: tuple[Mapping[str, Any], ...] = (), source_sha256: str | None = None) -> Audio:
    report = asdict(made.report)
    if source_sha256 is not None:
        report["source_sha256"] = source_sha256
    return Audio(made.asset.hash, made.asset.size_bytes, made.asset.duration_ms, report, cues)


def digest_of(source: Path) -> str:
    """SHA-256 of a file as it was handed in; blocks."""
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def enter_audio(session: Session, audio: Audio, *, unit_id: str, label: str, now: datetime) -> AssetRow:
    """Enter prepared audio in the register, inside a transaction of the caller's."""
    return library.add_asset(
        session,
        sha256=audio.sha256,
        unit_id=unit_id,
        label=label[:200],
        size_bytes=audio.size_bytes,
        duration_ms=audio.duration_ms,
        report=dict(audio.report),
        cues=[dict(cue) for cue in audio.cues],
        created_at=now,
        keep_until=now + KEEP_UNUSED,
    )


# -- bulletins --------------------------------------------------------------------------------------------------------


async def create_bulletin(desk: Desk, actor: Actor, request: NewBulletin) -> BulletinView:
    """Write a bulletin. Raises `Invalid` on an empty title or validity, `Refused`."""
    now = desk.clock.now()
    bulletin_id = desk.chance.new_id()

    def work(session: Session) -> BulletinView:
        return BulletinView(enter_bulletin(session, actor, request, bulletin_id, now), ())

    return await desk.store.begin(work)


def enter_bulletin(
    session: Session, actor: Actor, request: NewBulletin, bulletin_id: str, now: datetime
) -> BulletinRow:
    """`create_bulletin` inside a transaction of the caller's."""
    access.authorize(session, actor, Action.BULLETIN_WRITE, request.unit_id, at=now)
    delegated.check_class(session, actor, request.unit_id, request.klass, now)
    _check_validity(request.valid_from, request.valid_to)
    row = library.add_bulletin(
        session,
        bulletin_id=bulletin_id,
        unit_id=request.unit_id,
        title=_title(request.title),
        klass=request.klass,
        subject=request.subject,
        valid_from=request.valid_from,
        valid_to=request.valid_to,
        created_by=actor.login,
        created_at=now,
    )
    row.key = request.key
    detail = {"title": row.title, "class": row.klass.value}
    audit_library(session, actor, now, "bulletin.create", row.unit_id, f"bulletin/{row.id}", detail)
    return row


async def change_bulletin(
    desk: Desk, actor: Actor, bulletin_id: str, change: BulletinChange, *, version: int | None = None
) -> BulletinView:
    """Change title, subject or validity; what is said changes by a new version only.

    Another validity voids what was approved: it waits for an approval anew, and does not sound.
    """
    now = desk.clock.now()

    def work(session: Session) -> BulletinView:
        row = library.bulletin(session, bulletin_id)
        access.authorize(session, actor, Action.BULLETIN_WRITE, row, at=now)
        library.expect_version(row, version)
        if change.title is not None:
            library.rename(row, _title(change.title))
        before = row.valid_from, row.valid_to
        for name in ("subject", "valid_from", "valid_to"):
            if getattr(change, name) is not None:
                setattr(row, name, getattr(change, name))
        _check_validity(row.valid_from, row.valid_to)
        if before != (row.valid_from, row.valid_to):
            void_approvals(session, actor, row, now)
        row.version += 1
        session.flush()
        audit_library(session, actor, now, "bulletin.change", row.unit_id, f"bulletin/{row.id}", {"title": row.title})
        return _bulletin_view(session, row)

    return await desk.store.begin(work)


def void_approvals(session: Session, actor: Actor, bulletin: BulletinRow, now: datetime) -> None:
    """Its window has changed: what was approved of it waits for somebody to approve it again, and does not sound."""
    for row in library.versions(session, (bulletin.id,))[bulletin.id]:
        if row.state is not VersionState.APPROVED:
            continue
        row.state = VersionState.SUBMITTED
        row.approved_by = row.approved_at = row.approved_hash = None
        note_step(session, StepOf.VERSION, row.id, Step.WRITE, actor, now, row.content_hash)
        note_step(session, StepOf.VERSION, row.id, Step.VOID, actor, now, row.content_hash)
    session.flush()


async def write_text(desk: Desk, actor: Actor, request: TextVersion) -> BulletinView:
    """Add a version that a voice speaks, as a draft."""
    now = desk.clock.now()
    _check_language(request.language)
    await _may_write(desk, actor, request.bulletin_id, now, chime=request.chime_asset)
    audio = await spoken(desk, request.text, request.voice, request.chime_asset)
    version_id = desk.chance.new_id()

    def work(session: Session) -> BulletinView:
        row = library.bulletin(session, request.bulletin_id)
        enter_version(
            session,
            actor,
            row,
            version_id,
            now,
            language=request.language,
            media=MediaKind.TEXT,
            text=request.text,
            voice=request.voice,
            audio=audio,
        )
        return _bulletin_view(session, row)

    return await desk.store.begin(work)


async def write_audio(desk: Desk, actor: Actor, request: AudioVersion) -> BulletinView:
    """Add a recorded version, as a draft. Raises what `audio.prepare` refuses; then nothing is stored."""
    now = desk.clock.now()
    _check_language(request.language)
    await _may_write(desk, actor, request.bulletin_id, now)
    audio = await recorded(desk, request.upload)
    version_id = desk.chance.new_id()

    def work(session: Session) -> BulletinView:
        row = library.bulletin(session, request.bulletin_id)
        enter_version(
            session,
            actor,
            row,
            version_id,
            now,
            language=request.language,
            media=MediaKind.AUDIO,
            text=request.text,
            voice=None,
            audio=audio,
        )
        return _bulletin_view(session, row)

    return await desk.store.begin(work)


async def may_write(desk: Desk, actor: Actor, bulletin_id: str) -> None:
    """Return if the actor may add a version: asked before an upload is read. Raises `NotFound`, `Refused`."""
    await _may_write(desk, actor, bulletin_id, desk.clock.now())


async def _may_write(desk: Desk, actor: Actor, bulletin_id: str, now: datetime, *, chime: str | None = None) -> None:
    def look(session: Session) -> None:
        row = library.bulletin(session, bulletin_id)
        access.authorize(session, actor, Action.BULLETIN_WRITE, row, at=now)
        if chime is not None:
            _on_line(session, library.asset(session, chime), row.unit_id, now)

    await desk.store.read(look)


def enter_version(
    session: Session,
    actor: Actor,
    bulletin: BulletinRow,
    version_id: str,
    now: datetime,
    *,
    language: str,
    media: MediaKind,
    text: str | None,
    voice: str | None,
    audio: Audio | None = None,
    asset_sha256: str | None = None,
) -> BulletinVersionRow:
    """A new draft, from fresh `audio` or an asset already entered, inside a transaction of the caller's."""
    access.authorize(session, actor, Action.BULLETIN_WRITE, bulletin, at=now)
    if audio is not None:
        delegated.check_duration(session, actor, bulletin.unit_id, audio.duration_ms, now)
        asset_sha256 = enter_audio(session, audio, unit_id=bulletin.unit_id, label=bulletin.title, now=now).sha256
    elif asset_sha256 is not None:
        library.asset(session, asset_sha256)
    row = library.add_version(
        session,
        version_id=version_id,
        bulletin_id=bulletin.id,
        language=language,
        media=media,
        text=text,
        voice=voice,
        asset_sha256=asset_sha256,
        content_hash=version_hash(text=text, voice=voice, asset_sha256=asset_sha256),
        created_by=actor.login,
        created_at=now,
    )
    bulletin.version += 1
    note_step(session, StepOf.VERSION, row.id, Step.WRITE, actor, now, row.content_hash)
    detail = {"language": language, "number": row.number, "content_hash": row.content_hash}
    audit_library(session, actor, now, "bulletin.write", bulletin.unit_id, f"bulletin/{bulletin.id}", detail)
    return row


async def get_bulletin(desk: Desk, actor: Actor, bulletin_id: str) -> BulletinView:
    """One bulletin. Raises `NotFound`."""
    now = desk.clock.now()

    def work(session: Session) -> BulletinView:
        row = library.bulletin(session, bulletin_id)
        access.authorize(session, actor, Action.READ, row, at=now)
        return _bulletin_view(session, row)

    return await desk.store.read(work)


@dataclass(frozen=True, slots=True)
class LibraryQuery:
    """Which: under `unit_id`, with `text` in the title, of a class; `after`: id of the last one seen."""

    unit_id: str | None = None
    text: str | None = None
    klass: BulletinClass | None = None
    after: str | None = None
    limit: int = 100


async def list_bulletins(desk: Desk, actor: Actor, query: LibraryQuery) -> list[BulletinView]:
    """Bulletins the actor may see, newest first."""
    now = desk.clock.now()

    def work(session: Session) -> list[BulletinView]:
        rows = library.list_bulletins(
            session,
            access.roots(session, actor, Action.READ, query.unit_id, at=now),
            places.local_date(now),
            text=query.text,
            klass=query.klass,
            after=query.after,
            limit=query.limit,
        )
        versions = library.versions(session, [row.id for row in rows])
        return [BulletinView(row, tuple(versions[row.id])) for row in rows]

    return await desk.store.read(work)


# -- programmes -------------------------------------------------------------------------------------------------------


async def create_programme(desk: Desk, actor: Actor, request: NewProgramme) -> ProgrammeRow:
    """Put a programme together; `render_programme` makes its audio."""
    now = desk.clock.now()
    programme_id = desk.chance.new_id()
    return await desk.store.begin(lambda session: enter_programme(session, actor, request, programme_id, now))


def enter_programme(
    session: Session, actor: Actor, request: NewProgramme, programme_id: str, now: datetime
) -> ProgrammeRow:
    """`create_programme` inside a transaction of the caller's."""
    access.authorize(session, actor, Action.PROGRAMME_WRITE, request.unit_id, at=now)
    items = items_as_rows(session, request.items, request.unit_id, now)
    row = library.add_programme(
        session,
        programme_id=programme_id,
        unit_id=request.unit_id,
        title=_title(request.title),
        items=items,
        created_by=actor.login,
        created_at=now,
    )
    row.key = request.key
    note_step(session, StepOf.PROGRAMME, row.id, Step.WRITE, actor, now, None)
    detail = {"title": row.title, "items": len(items)}
    audit_library(session, actor, now, "programme.create", row.unit_id, f"programme/{row.id}", detail)
    return row


async def change_programme(
    desk: Desk,
    actor: Actor,
    programme_id: str,
    *,
    title: str | None = None,
    items: tuple[ProgrammeItem, ...] | None = None,
    version: int | None = None,
) -> ProgrammeRow:
    """Change title or items; other items void its audio and its approval."""
    now = desk.clock.now()

    def work(session: Session) -> ProgrammeRow:
        row = library.programme(session, programme_id)
        access.authorize(session, actor, Action.PROGRAMME_WRITE, row, at=now)
        library.expect_version(row, version)
        enter_programme_change(session, actor, row, now, title=title, items=items)
        return row

    return await desk.store.begin(work)


def enter_programme_change(
    session: Session,
    actor: Actor,
    row: ProgrammeRow,
    now: datetime,
    *,
    title: str | None = None,
    items: tuple[ProgrammeItem, ...] | None = None,
) -> None:
    """`change_programme` inside a transaction of the caller's."""
    access.authorize(session, actor, Action.PROGRAMME_WRITE, row, at=now)
    if title is not None:
        library.rename(row, _title(title))
    if items is not None:
        row.items = items_as_rows(session, items, row.unit_id, now)
        row.asset_sha256 = row.content_hash = row.submitted_hash = None
        row.approved_hash = row.approved_by = row.approved_at = None
        note_step(session, StepOf.PROGRAMME, row.id, Step.WRITE, actor, now, None)
    row.version += 1
    session.flush()
    audit_library(session, actor, now, "programme.change", row.unit_id, f"programme/{row.id}", {"title": row.title})


async def render_programme(desk: Desk, actor: Actor, programme_id: str) -> ProgrammeRow:
    """Make one piece of audio with cues of all items; it is to be approved before it may sound.

    Raises `Refused("item_not_approved")` naming the item, `Conflict("programme_changed")` if it changed meanwhile.
    """
    now = desk.clock.now()

    def look(session: Session) -> tuple[int, list[tuple[str, ItemRole, str]]]:
        row = library.programme(session, programme_id)
        access.authorize(session, actor, Action.PROGRAMME_WRITE, row, at=now)
        return row.version, sounding_items(session, row.items)

    version, items = await desk.store.read(look)
    audio = await rendered(desk, items)

    def work(session: Session) -> ProgrammeRow:
        row = library.programme(session, programme_id)
        if row.version != version:
            raise Conflict("programme_changed", field="version", fix="render_again")
        enter_rendering(session, actor, row, audio, now)
        return row

    return await desk.store.begin(work)


def enter_rendering(session: Session, actor: Actor, row: ProgrammeRow, audio: Audio, now: datetime) -> None:
    """Give a programme its audio, inside a transaction of the caller's. Whatever was approved before is void."""
    enter_audio(session, audio, unit_id=row.unit_id, label=row.title, now=now)
    row.asset_sha256 = audio.sha256
    row.content_hash = programme_hash(row.items, audio.sha256)
    row.submitted_hash = row.approved_hash = row.approved_by = row.approved_at = None
    row.version += 1
    note_step(session, StepOf.PROGRAMME, row.id, Step.WRITE, actor, now, row.content_hash)
    detail = {"content_hash": row.content_hash, "asset": audio.sha256}
    audit_library(session, actor, now, "programme.render", row.unit_id, f"programme/{row.id}", detail)


async def get_programme(desk: Desk, actor: Actor, programme_id: str) -> ProgrammeRow:
    """One programme. Raises `NotFound`."""
    now = desk.clock.now()

    def work(session: Session) -> ProgrammeRow:
        row = library.programme(session, programme_id)
        access.authorize(session, actor, Action.READ, row, at=now)
        return row

    return await desk.store.read(work)


async def list_programmes(desk: Desk, actor: Actor, query: LibraryQuery) -> list[ProgrammeRow]:
    """Programmes the actor may see, newest first."""
    now = desk.clock.now()

    def work(session: Session) -> list[ProgrammeRow]:
        roots = access.roots(session, actor, Action.READ, query.unit_id, at=now)
        on = places.local_date(now)
        return library.list_programmes(session, roots, on, text=query.text, after=query.after, limit=query.limit)

    return await desk.store.read(work)


def items_as_rows(
    session: Session, items: Sequence[ProgrammeItem], unit_id: str, now: datetime
) -> list[dict[str, Any]]:
    """Items as the register keeps them, each with an id: of the unit, of what lies above it or below it.

    Raises `Invalid`, `NotFound` naming `items[i]`.
    """
    if not any(item.role is ItemRole.ITEM for item in items):
        raise Invalid("programme_empty", field="items", fix="add_an_item")
    if len(items) > _MOST_ITEMS:
        raise Invalid("too_long", field="items", max_length=_MOST_ITEMS)
    rows: list[dict[str, Any]] = []
    roles: set[ItemRole] = set()
    for number, item in enumerate(items):
        if (item.bulletin_id is None) is (item.asset_sha256 is None):
            raise Invalid("bulletin_or_asset", field=f"items[{number}]", fix="name_one_of_both")
        if item.role is not ItemRole.ITEM and item.role in roles:
            raise Invalid("role_twice", field=f"items[{number}].role", role=item.role.value, fix="name_one_of_both")
        roles.add(item.role)
        row: dict[str, Any] = {"item_id": f"{number + 1}", "role": item.role.value}
        try:
            if item.bulletin_id is not None:
                _on_line(session, library.bulletin(session, item.bulletin_id), unit_id, now)
                row |= {"bulletin_id": item.bulletin_id, "language": item.language}
            elif item.asset_sha256 is not None:
                _on_line(session, library.asset(session, item.asset_sha256), unit_id, now)
                row["asset_sha256"] = item.asset_sha256
        except NotFound as error:
            raise NotFound(error.code, **error.facts, field=f"items[{number}]", fix="pick_content") from None
        rows.append(row)
    return rows


def _on_line(session: Session, row: BulletinRow | AssetRow, unit_id: str, now: datetime) -> None:
    """Raise as for an unknown one unless it is the unit's own, or of a unit above or below."""
    if not places.is_on_line(session, unit_id, row.unit_id, places.local_date(now)):
        raise access.unknown(row)


def sounding_items(session: Session, items: Sequence[Mapping[str, Any]]) -> list[tuple[str, ItemRole, str]]:
    """Each item with the asset that sounds for it. Raises `Refused("item_not_approved")`."""
    found = []
    for number, item in enumerate(items):
        sha256 = item.get("asset_sha256")
        if sha256 is None:
            version = library.approved_version(session, item["bulletin_id"], item.get("language", "vie"))
            if version is None or version.asset_sha256 is None:
                title = library.bulletin(session, item["bulletin_id"]).title
                raise Refused("item_not_approved", field=f"items[{number}]", fix="approve_content", title=title)
            sha256 = version.asset_sha256
        found.append((item["item_id"], ItemRole(item["role"]), sha256))
    return found


# -- assets -----------------------------------------------------------------------------------------------------------


async def list_assets(desk: Desk, actor: Actor, query: LibraryQuery) -> list[AssetRow]:
    """Audio the actor may see, by hash."""
    now = desk.clock.now()

    def work(session: Session) -> list[AssetRow]:
        roots = access.roots(session, actor, Action.READ, query.unit_id, at=now)
        return library.list_assets(session, roots, places.local_date(now), after=query.after, limit=query.limit)

    return await desk.store.read(work)


async def get_asset(desk: Desk, actor: Actor, sha256: str) -> AssetRow:
    """One asset with its report. Raises `NotFound`."""
    now = desk.clock.now()

    def work(session: Session) -> AssetRow:
        row = library.asset(session, sha256)
        access.authorize(session, actor, Action.READ, row, at=now)
        return row

    return await desk.store.read(work)


async def open_asset(desk: Desk, bearer: str | Actor, sha256: str) -> Path:
    """The file of an asset, for the bearer of a node's asset token or of a user's, or an actor, who may see it.

    A node may fetch any asset by its hash: which ones it needs is in its signed plan. Raises `Refused`, `NotFound`.
    """
    now = desk.clock.now()
    if not _SHA256.fullmatch(sha256):
        raise NotFound("unknown_asset", asset=sha256[:64])

    def look(session: Session) -> None:
        if isinstance(bearer, str) and fleet.node_of_asset_token(session, bearer) is not None:
            library.asset(session, sha256)
            return
        actor = bearer if isinstance(bearer, Actor) else access.actor_of_token(session, bearer, now)
        row = library.asset(session, sha256)
        access.authorize(session, actor, Action.READ, row, at=now)

    await desk.store.read(look)
    path = desk.audio.assets.path(sha256)
    if not await desk.executor.run(path.is_file):
        raise NotFound("unknown_asset", asset=sha256)
    return path


async def collect_assets(desk: Desk, actor: Actor) -> Collected:
    """Let go of audio that is past its time and used by nothing, and of files nobody entered. For the operator.

    The register's rows stay, marked: the play log names them.
    """
    now = desk.clock.now()
    if not actor.everywhere:
        raise Refused("not_permitted", action="asset_collect")

    def work(session: Session) -> tuple[tuple[str, ...], frozenset[str]]:
        gone = library.collectable_assets(session, now)
        for row in gone:
            row.collected_at = now
        session.flush()
        if gone:
            detail = {"assets": [row.sha256 for row in gone]}
            audit_library(session, actor, now, "asset.collect", None, "assets", detail)
        return tuple(row.sha256 for row in gone), library.kept_assets(session)

    gone, kept = await desk.store.begin(work)
    older_than = now - COLLECT_AFTER
    files = await desk.executor.run(lambda: desk.audio.assets.collect(kept, older_than=older_than))
    return Collected(gone, tuple(sha256 for sha256 in files if sha256 not in gone))


# -- small things -----------------------------------------------------------------------------------------------------


def _title(title: str) -> str:
    title = " ".join(title.split())
    if not title:
        raise Invalid("too_short", field="title", min_length=1)
    if len(title) > 300:
        raise Invalid("too_long", field="title", max_length=300)
    return title


def _check_validity(valid_from: datetime | None, valid_to: datetime | None) -> None:
    for name, instant in (("valid_from", valid_from), ("valid_to", valid_to)):
        if instant is not None and instant.tzinfo is None:
            raise Invalid("naive_time", field=name, fix="add_offset")
    if valid_from is not None and valid_to is not None and valid_to <= valid_from:
        raise Invalid("empty_validity", field="valid_to", fix="until_after_from")


def _check_language(language: str) -> None:
    if not _LANGUAGE.fullmatch(language):
        raise Invalid("language_invalid", field="language", fix="use_iso_639_3")


def _bulletin_view(session: Session, row: BulletinRow) -> BulletinView:
    return BulletinView(row, tuple(library.versions(session, (row.id,))[row.id]))


def note_step(
    session: Session,
    kind: StepOf,
    subject_id: str,
    step: Step,
    actor: Actor,
    now: datetime,
    content_hash: str | None,
    reason: str | None = None,
) -> None:
    """One step of a content's life, by whoever acts."""
    approvals.add_step(
        session,
        kind,
        subject_id,
        step,
        user_id=actor.user_id,
        login=actor.login,
        at=now,
        content_hash=content_hash,
        reason=reason,
    )


def audit_library(
    session: Session,
    actor: Actor,
    now: datetime,
    verb: str,
    unit_id: str | None,
    subject: str,
    detail: Mapping[str, Any],
) -> None:
    """The audit row of a verb on the library."""
    audit.append(session, now=now, actor=actor.login, verb=verb, unit_id=unit_id, subject=subject, detail=dict(detail))
