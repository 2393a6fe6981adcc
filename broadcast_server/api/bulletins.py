"""Bulletins (bản tin) over HTTP: write, say in text or upload, submit, approve by hash, recall."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Literal

from fastapi import File, Query, Request, Response, UploadFile
from fastapi import Form as FormField
from pydantic import AwareDatetime, StringConstraints

from broadcast_server.api.deps import ActorDep, DeskDep, IfMatchDep, set_etag
from broadcast_server.api.fields import Form, Id, IdPath, IdQuery, SearchQuery, Shown
from broadcast_server.api.gate import Router, asks
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.control import approvals, library
from broadcast_server.control.access import Action
from broadcast_server.control.library import (
    AudioVersion,
    BulletinChange,
    BulletinView,
    LibraryQuery,
    NewBulletin,
    TextVersion,
)
from broadcast_server.store.tables import BulletinVersionRow
from broadcast_server.store.words import MediaKind, VersionState
from speaker_protocol.rules import BulletinClass

router = Router(tags=["bulletins"], route_class=IdempotentRoute)

Title = Annotated[str, StringConstraints(min_length=1, max_length=300)]
Subject = Annotated[str, StringConstraints(max_length=120)]
Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{3}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

_CHUNK_BYTES = 1 << 18


class BulletinForm(Form):
    """A bulletin to write. `klass`: thông thường, ưu tiên or khẩn cấp; it never changes."""

    unit_id: Id
    title: Title
    klass: BulletinClass = BulletinClass.NORMAL
    subject: Subject | None = None
    valid_from: AwareDatetime | None = None
    valid_to: AwareDatetime | None = None


class BulletinPatch(Form):
    """What changes; what is left out stays."""

    title: Title | None = None
    subject: Subject | None = None
    valid_from: AwareDatetime | None = None
    valid_to: AwareDatetime | None = None


class TextForm(Form):
    """What a voice shall say. `language`: ISO 639-3; `chime_asset`: an asset that sounds before and after."""

    text: Text
    language: Language = "vie"
    voice: Literal["north", "central", "south"] = "north"
    chime_asset: Sha256 | None = None


class HeardForm(Form):
    """The hash of what was heard."""

    content_hash: Sha256


class RejectionForm(HeardForm):
    """Why not, in words the author reads."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=300)]


class BulletinVersion(Shown):
    """One wording in one language. It may sound when `state` is approved."""

    id: str
    number: int
    language: str
    media: MediaKind
    text: str | None
    voice: str | None
    asset_sha256: str | None
    content_hash: str
    state: VersionState
    approved_by: str | None
    approved_at: datetime | None
    created_by: str
    created_at: datetime

    @classmethod
    def of(cls, row: BulletinVersionRow) -> BulletinVersion:
        """As callers see it."""
        return cls.model_validate(row, from_attributes=True)


class Bulletin(Shown):
    """A bulletin with its versions, the newest of a language first."""

    id: str
    unit_id: str
    title: str
    klass: BulletinClass
    subject: str | None
    valid_from: datetime | None
    valid_to: datetime | None
    key: str | None
    created_by: str
    created_at: datetime
    versions: list[BulletinVersion]
    version: int

    @classmethod
    def of(cls, view: BulletinView) -> Bulletin:
        """As callers see it."""
        row = view.row
        return cls(
            id=row.id,
            unit_id=row.unit_id,
            title=row.title,
            klass=row.klass,
            subject=row.subject,
            valid_from=row.valid_from,
            valid_to=row.valid_to,
            key=row.key,
            created_by=row.created_by,
            created_at=row.created_at,
            versions=[BulletinVersion.of(version) for version in view.versions],
            version=row.version,
        )


@router.get("/bulletins")
@asks(Action.READ)
async def list_bulletins(
    desk: DeskDep,
    actor: ActorDep,
    paging: PagingDep,
    unit: IdQuery = None,
    title: SearchQuery = None,
    klass: Annotated[BulletinClass | None, Query()] = None,
) -> Page[Bulletin]:
    """Bulletins, the newest first: under a unit, by part of the title, by class."""
    query = LibraryQuery(unit, title, klass, paging.after, paging.fetch)
    found = await library.list_bulletins(desk, actor, query)
    return paging.page(found, key=lambda view: view.row.id, item=Bulletin.of)


@router.post("/bulletins", status_code=201)
@asks(Action.BULLETIN_WRITE)
async def create_bulletin(desk: DeskDep, actor: ActorDep, form: BulletinForm, response: Response) -> Bulletin:
    """Write a bulletin; what it says comes with its versions."""
    request = NewBulletin(form.unit_id, form.title, form.klass, form.subject, form.valid_from, form.valid_to)
    view = await library.create_bulletin(desk, actor, request)
    response.headers["Location"] = f"/api/v1/bulletins/{view.row.id}"
    return _shown(view, response)


@router.get("/bulletins/{bulletin_id}")
@asks(Action.READ)
async def get_bulletin(desk: DeskDep, actor: ActorDep, bulletin_id: IdPath, response: Response) -> Bulletin:
    """One bulletin with all its versions."""
    return _shown(await library.get_bulletin(desk, actor, bulletin_id), response)


@router.patch("/bulletins/{bulletin_id}")
@asks(Action.BULLETIN_WRITE)
async def change_bulletin(
    desk: DeskDep, actor: ActorDep, bulletin_id: IdPath, form: BulletinPatch, if_match: IfMatchDep, response: Response
) -> Bulletin:
    """Change title, subject or validity."""
    change = BulletinChange(form.title, form.subject, form.valid_from, form.valid_to)
    return _shown(await library.change_bulletin(desk, actor, bulletin_id, change, version=if_match), response)


@router.post("/bulletins/{bulletin_id}/versions/text", status_code=201)
@asks(Action.BULLETIN_WRITE)
async def write_text(desk: DeskDep, actor: ActorDep, bulletin_id: IdPath, form: TextForm) -> BulletinVersion:
    """Add a version that a voice speaks, as a draft."""
    request = TextVersion(bulletin_id, form.text, form.language, form.voice, form.chime_asset)
    view = await library.write_text(desk, actor, request)
    return BulletinVersion.of(_newest(view, form.language))


@router.post("/bulletins/{bulletin_id}/versions/audio", status_code=201)
@asks(Action.BULLETIN_WRITE)
async def upload_audio(
    desk: DeskDep,
    actor: ActorDep,
    bulletin_id: IdPath,
    file: Annotated[UploadFile, File(description="at most 200 MB of any usual audio format")],
    language: Annotated[str, FormField(pattern=r"^[a-z]{3}$")] = "vie",
    text: Annotated[str | None, FormField(max_length=20_000)] = None,
) -> BulletinVersion:
    """Add a recorded version, as a draft, by a form with a `file`."""
    await library.may_write(desk, actor, bulletin_id)
    return await _upload(desk, actor, bulletin_id, _parts(file), language, text)


@router.put(
    "/bulletins/{bulletin_id}/audio/{language}",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
@asks(Action.BULLETIN_WRITE)
async def stream_audio(
    desk: DeskDep, actor: ActorDep, bulletin_id: IdPath, language: Language, request: Request
) -> BulletinVersion:
    """Add a recorded version, as a draft: the body is the file, read as it comes."""
    await library.may_write(desk, actor, bulletin_id)
    return await _upload(desk, actor, bulletin_id, request.stream(), language, None)


@router.post("/bulletins/{bulletin_id}/versions/{version_id}/submission")
@asks(Action.BULLETIN_WRITE)
async def submit_version(
    desk: DeskDep, actor: ActorDep, bulletin_id: IdPath, version_id: IdPath, form: HeardForm
) -> BulletinVersion:
    """Lay a draft, or what was rejected, before somebody who may approve it."""
    view = await approvals.submit_version(desk, actor, bulletin_id, version_id, content_hash=form.content_hash)
    return _of(view, version_id)


@router.post("/bulletins/{bulletin_id}/versions/{version_id}/withdrawal")
@asks(Action.BULLETIN_WRITE)
async def withdraw_version(desk: DeskDep, actor: ActorDep, bulletin_id: IdPath, version_id: IdPath) -> BulletinVersion:
    """Take back what was submitted."""
    return _of(await approvals.withdraw_version(desk, actor, bulletin_id, version_id), version_id)


@router.post("/bulletins/{bulletin_id}/versions/{version_id}/approval")
@asks(Action.BULLETIN_APPROVE, Action.EMERGENCY_LAUNCH)
async def approve_version(
    desk: DeskDep, actor: ActorDep, bulletin_id: IdPath, version_id: IdPath, form: HeardForm
) -> BulletinVersion:
    """Approve (duyệt) exactly what was heard, as somebody else than who wrote it."""
    return _of(await approvals.approve_version(desk, actor, bulletin_id, version_id, form.content_hash), version_id)


@router.post("/bulletins/{bulletin_id}/versions/{version_id}/rejection")
@asks(Action.BULLETIN_APPROVE, Action.EMERGENCY_LAUNCH)
async def reject_version(
    desk: DeskDep, actor: ActorDep, bulletin_id: IdPath, version_id: IdPath, form: RejectionForm
) -> BulletinVersion:
    """Say no to what was submitted, and why."""
    view = await approvals.reject_version(
        desk, actor, bulletin_id, version_id, content_hash=form.content_hash, reason=form.reason
    )
    return _of(view, version_id)


@router.post("/bulletins/{bulletin_id}/versions/{version_id}/recall")
@asks(Action.BULLETIN_APPROVE)
async def recall_version(
    desk: DeskDep, actor: ActorDep, bulletin_id: IdPath, version_id: IdPath, response: Response
) -> Bulletin:
    """Recall (thu hồi) a version: it is silent from the next plan on."""
    return _shown(await approvals.recall(desk, actor, bulletin_id, version_id), response)


@router.post("/bulletins/{bulletin_id}/recall")
@asks(Action.BULLETIN_APPROVE)
async def recall_bulletin(desk: DeskDep, actor: ActorDep, bulletin_id: IdPath, response: Response) -> Bulletin:
    """Recall every version of a bulletin."""
    return _shown(await approvals.recall(desk, actor, bulletin_id), response)


def _of(view: BulletinView, version_id: str) -> BulletinVersion:
    return BulletinVersion.of(next(one for one in view.versions if one.id == version_id))


def _shown(view: BulletinView, response: Response) -> Bulletin:
    set_etag(response, view.row.version)
    return Bulletin.of(view)


def _newest(view: BulletinView, language: str) -> BulletinVersionRow:
    return next(version for version in view.versions if version.language == language)


async def _upload(
    desk: DeskDep, actor: ActorDep, bulletin_id: str, chunks: AsyncIterator[bytes], language: str, text: str | None
) -> BulletinVersion:
    async with library.received(desk, chunks) as place:
        view = await library.write_audio(desk, actor, AudioVersion(bulletin_id, place, language, text))
    return BulletinVersion.of(_newest(view, language))


async def _parts(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK_BYTES):
        yield chunk
