"""Audio over HTTP: the register for people, the bytes for nodes.

The bytes go out by Starlette's `FileResponse`, which speaks ranges (206, 416, If-Range); its quadratic handling of many
ranges (CVE-2025-62727) is mended in the pinned version, and a request naming more than a few ranges is refused here all
the same. An asset never changes, so its hash is its ETag and it may be kept for ever.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Header, Path, Request, Response
from fastapi.responses import FileResponse

from broadcast_server.api.deps import ActorDep, DeskDep, bearer_token, who_acts
from broadcast_server.api.fields import IdQuery, Shown
from broadcast_server.api.gate import Router, asks, by_secret
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.control import library
from broadcast_server.control.access import Action
from broadcast_server.control.library import LibraryQuery
from broadcast_server.domain.errors import Invalid
from broadcast_server.store.tables import AssetRow

router = Router(tags=["assets"], route_class=IdempotentRoute)

_MOST_RANGES = 4
_CACHE = "private, max-age=31536000, immutable"

Hash = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


class Asset(Shown):
    """A recording as it is kept: Ogg Opus, 48 kHz mono, levelled. `report`: what was measured and done."""

    sha256: str
    unit_id: str
    label: str
    size_bytes: int
    duration_ms: int
    report: dict[str, Any]
    cues: list[dict[str, Any]]
    created_at: datetime
    keep_until: datetime | None


@router.get("/assets")
@asks(Action.READ)
async def list_assets(desk: DeskDep, actor: ActorDep, paging: PagingDep, unit: IdQuery = None) -> Page[Asset]:
    """The register by hash, of a unit and what lies below it."""
    found = await library.list_assets(desk, actor, LibraryQuery(unit, after=paging.after, limit=paging.fetch))
    return paging.page(found, key=lambda row: row.sha256, item=_of)


@router.get("/assets/{sha256}/report")
@asks(Action.READ)
async def get_asset_report(desk: DeskDep, actor: ActorDep, sha256: Hash) -> Asset:
    """One asset as the register has it."""
    return _of(await library.get_asset(desk, actor, sha256))


@router.get(
    "/assets/{sha256}",
    response_class=FileResponse,
    responses={
        200: {"content": {"audio/ogg": {}}, "description": "The whole recording"},
        206: {"content": {"audio/ogg": {}}, "description": "The asked range"},
        304: {"description": "The caller has it"},
        416: {"description": "The range lies outside"},
    },
)
@by_secret(Action.READ)
async def get_asset(
    desk: DeskDep,
    request: Request,
    sha256: Hash,
    authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The bytes, for a node with its asset token or a person with a token or signed in."""
    bearer = await who_acts(request) if authorization is None else bearer_token(authorization)
    path = await library.open_asset(desk, bearer, sha256)
    etag = f'"{sha256}"'
    headers = {"ETag": etag, "Cache-Control": _CACHE}
    if if_none_match is not None and etag in {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}:
        return Response(status_code=304, headers=headers)
    if request.headers.get("range", "").count(",") >= _MOST_RANGES:
        raise Invalid("too_many_ranges", field="Range", most=_MOST_RANGES)
    return FileResponse(path, media_type="audio/ogg", headers=headers)


def _of(row: AssetRow) -> Asset:
    return Asset.model_validate(row, from_attributes=True)
