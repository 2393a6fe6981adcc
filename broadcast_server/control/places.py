"""Verbs on places: make, rename and move units, close a kind of unit, write a station's policy, import Vietnam.

A maintainer must not break: (1) after every change of links the whole tree is built once more inside the transaction,
so no circle and no second parent is ever committed; (2) a move is a new dated link, the past stays as it was; (3) the
import adds what is missing and changes nothing a person wrote.

Source: PyPI `vietnam-provinces` (34 provinces and 3 321 communes in force since 1 July 2025).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from broadcast_server.control import access
from broadcast_server.control.access import Action, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.domain.clock import LOCAL
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused, Unavailable
from broadcast_server.domain.policy import DEFAULT_POLICY, policy_from_dict, policy_to_dict
from broadcast_server.store import audit, feeds, places
from broadcast_server.store.session import Session
from broadcast_server.store.tables import PolicyRow, UnitKindRow, UnitLinkRow, UnitRow
from broadcast_server.store.types import fold

COUNTRY: Final = "vn"
"""Id of the root that the import puts above the provinces."""

_UNIT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # goes into topics: no +, # or /
_KIND_OF_DIVISION: Final = {
    "tỉnh": "province",
    "thành phố trung ương": "city",
    "xã": "commune",
    "phường": "ward",
    "đặc khu": "special_zone",
}


@dataclass(frozen=True, slots=True)
class NewUnit:
    """A place to make. `id`: a GSO code or any plain name; None: one is made. `valid_from`: local date, None: today."""

    kind: str
    name: str
    parent_id: str | None = None
    id: str | None = None
    valid_from: date | None = None


@dataclass(frozen=True, slots=True)
class UnitView:
    """A place as it lies on the asked date. `path`: ids, itself first, the root last."""

    id: str
    kind: str
    name: str
    parent_id: str | None
    path: tuple[str, ...]
    version: int


@dataclass(frozen=True, slots=True)
class MoveUnit:
    """From local date `on` the unit lies in `parent_id` (None: becomes a root)."""

    unit_id: str
    parent_id: str | None
    on: date
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import found and how much of it was new."""

    provinces: int
    communes: int
    new_units: int
    new_links: int


@dataclass(frozen=True, slots=True)
class PolicyView:
    """The policy in force at a unit and whose it is; `from_unit_id` None: the law's default."""

    unit_id: str
    from_unit_id: str | None
    body: dict[str, Any]
    version: int


# -- units ------------------------------------------------------------------------------------------------------------


async def create_unit(desk: Desk, actor: Actor, request: NewUnit) -> UnitView:
    """Make a place. Raises `Invalid` on a bad id, name or kind, `Conflict("unit_exists")`."""
    now = desk.clock.now()
    unit_id = request.id or desk.chance.new_id()
    link_id = desk.chance.new_id()
    begins = request.valid_from or places.local_date(now)
    if not _UNIT_ID.fullmatch(unit_id):
        raise Invalid("unit_id_invalid", field="id", id=unit_id[:80])
    name = clean_text(request.name, "name")

    def work(session: Session) -> UnitView:
        places.ensure_kinds(session)
        if request.parent_id is None:
            _only_operator(actor, Action.PLACE_EDIT)
        else:
            _parent_there(session, request.parent_id)
            access.authorize(session, actor, Action.PLACE_EDIT, request.parent_id, at=now)
            _kind_open(session, places.unit(session, request.parent_id).kind, begins, field="parent_id")
        _kind_open(session, request.kind, begins, field="kind")
        if session.get(UnitRow, unit_id) is not None:
            raise Conflict("unit_exists", field="id", unit_id=unit_id)
        session.add(UnitRow(id=unit_id, kind=request.kind, name=name, name_folded=fold(name), created_at=now))
        session.flush()
        if request.parent_id is not None:
            session.add(UnitLinkRow(id=link_id, unit_id=unit_id, parent_id=request.parent_id, valid_from=begins))
            session.flush()
        audit.append(
            session,
            now=now,
            actor=actor.login,
            verb="place.create",
            unit_id=unit_id,
            subject=f"unit/{unit_id}",
            detail={"kind": request.kind, "name": name, "parent_id": request.parent_id, "from": begins.isoformat()},
        )
        return _view(session, unit_id, begins)

    return await desk.store.begin(work)


async def rename_unit(desk: Desk, actor: Actor, unit_id: str, name: str, *, version: int | None = None) -> UnitView:
    """Give a place another name. Raises `Conflict("version_changed")` when somebody was faster."""
    now = desk.clock.now()
    name = clean_text(name, "name")

    def work(session: Session) -> UnitView:
        access.authorize(session, actor, Action.PLACE_EDIT, unit_id, at=now)
        row = places.unit(session, unit_id)
        check_version(row.version, version)
        before, row.name, row.name_folded = row.name, name, fold(name)
        row.version += 1
        audit.append(
            session,
            now=now,
            actor=actor.login,
            verb="place.rename",
            unit_id=unit_id,
            subject=f"unit/{unit_id}",
            detail={"before": before, "after": name},
        )
        return _view(session, unit_id, places.local_date(now))

    return await desk.store.begin(work)


async def move_unit(desk: Desk, actor: Actor, request: MoveUnit) -> UnitView:
    """Put a place under another from a date on; the mover must hold both ends.

    Raises `Invalid("circular_places")`, and `Conflict("unit_moves_later")` when a later move is already written.
    """
    now = desk.clock.now()
    link_id = desk.chance.new_id()

    def work(session: Session) -> UnitView:
        access.authorize(session, actor, Action.PLACE_EDIT, request.unit_id, at=now)
        if request.parent_id is None:
            _only_operator(actor, Action.PLACE_EDIT)
        else:
            _parent_there(session, request.parent_id)
            access.authorize(session, actor, Action.PLACE_EDIT, request.parent_id, at=now)
            _kind_open(session, places.unit(session, request.parent_id).kind, request.on, field="parent_id")
        row = places.unit(session, request.unit_id)
        check_version(row.version, request.version)
        before = places.parent_of(session, row.id, request.on)
        if before == request.parent_id:
            return _view(session, row.id, request.on)
        _relink(session, row.id, request.parent_id, request.on, link_id)
        row.version += 1
        _check_tree(session)
        audit.append(
            session,
            now=now,
            actor=actor.login,
            verb="place.move",
            unit_id=row.id,
            subject=f"unit/{row.id}",
            detail={"before": before, "after": request.parent_id, "on": request.on.isoformat()},
        )
        return _view(session, row.id, request.on)

    return await desk.store.begin(work)


async def get_unit(desk: Desk, unit_id: str, *, on: date | None = None) -> UnitView:
    """One place on a date (None: today). The names and shape of the tree are public; no grant is asked."""
    day = on or places.local_date(desk.clock.now())
    return await desk.store.read(lambda session: _view(session, unit_id, day))


@dataclass(frozen=True, slots=True)
class UnitQuery:
    """Which places: directly in `parent_id`, under `within`, of a kind, with `name` in the name (accents or not)."""

    parent_id: str | None = None
    within: str | None = None
    kind: str | None = None
    name: str | None = None
    on: date | None = None
    after: str | None = None
    limit: int = 100


async def list_units(desk: Desk, query: UnitQuery) -> list[UnitView]:
    """Places by id; the tree is public."""
    day = query.on or places.local_date(desk.clock.now())

    def work(session: Session) -> list[UnitView]:
        rows = places.list_units(
            session,
            roots=None if query.within is None else frozenset({query.within}),
            on=day,
            parent_id=query.parent_id,
            kind_code=query.kind,
            folded=fold(query.name) if query.name else None,
            after=query.after,
            limit=query.limit,
        )
        paths = places.paths_of(session, [row.id for row in rows], day)
        return [_viewed(row, paths[row.id]) for row in rows]

    return await desk.store.read(work)


# -- kinds ------------------------------------------------------------------------------------------------------------


async def list_kinds(desk: Desk) -> list[UnitKindRow]:
    """Every kind of place, closed ones too."""
    return await desk.store.read(places.kinds)


async def close_kind(desk: Desk, actor: Actor, code: str, on: date) -> list[str]:
    """From local date `on` there are no units of this kind: what lay in them moves one up, and their feeds expire.

    Returns the ids of the feeds that now end on that date. Only the machine's operator may.
    """
    now = desk.clock.now()
    ends = datetime.combine(on, time.min, tzinfo=LOCAL)

    def work(session: Session) -> list[str]:
        _only_operator(actor, Action.PLACE_EDIT)
        places.ensure_kinds(session)
        row = places.kind(session, code)
        if row is None:
            raise NotFound("unknown_unit_kind", kind=code)
        row.closed_on = on
        closing = places.units_of_kind(session, code)
        for unit_id in closing:
            above = places.parent_of(session, unit_id, on)
            for link in places.children_links(session, unit_id, on):
                _relink(session, link.unit_id, above, max(on, link.valid_from), desk.chance.new_id())
        for unit_id in closing:
            _relink(session, unit_id, None, on, "")
        _check_tree(session)
        expired = feeds.expire_of_units(session, closing, ends)
        for feed in expired:
            audit.append(
                session,
                now=now,
                actor=actor.login,
                verb="feed.expire",
                unit_id=feed.unit_id,
                subject=f"feed/{feed.id}",
                detail={"valid_to": ends.isoformat(), "kind_closed": code},
            )
        audit.append(
            session,
            now=now,
            actor=actor.login,
            verb="place.close_kind",
            unit_id=None,
            subject=f"unit_kind/{code}",
            detail={"on": on.isoformat(), "units": len(closing), "feeds": len(expired)},
        )
        return [feed.id for feed in expired]

    return await desk.store.begin(work)


# -- import -----------------------------------------------------------------------------------------------------------


async def import_vietnam(desk: Desk, actor: Actor) -> Imported:
    """Add the provinces and communes in force since 1 July 2025; what is there already is left alone.

    Raises `Unavailable("places_missing")` when the package of places is not installed.
    """
    now = desk.clock.now()
    provinces = await desk.executor.run(_read_vietnam)
    country = {"id": COUNTRY, "kind": "country", "name": "Việt Nam", "parent_id": None}
    found = [country, *provinces]
    unit_rows = [
        {key: place[key] for key in ("id", "kind", "name")}
        | {"name_folded": fold(place["name"]), "created_at": now, "version": 1}
        for place in found
    ]
    link_rows = [
        {
            "id": f"vn-{place['id']}-{places.TWO_TIERS_SINCE:%Y%m%d}",
            "unit_id": place["id"],
            "parent_id": place["parent_id"],
            "valid_from": places.TWO_TIERS_SINCE,
            "valid_to": None,
        }
        for place in provinces
    ]

    def work(session: Session) -> Imported:
        if session.get(UnitRow, COUNTRY) is None:
            _only_operator(actor, Action.PLACE_EDIT)
        else:
            access.authorize(session, actor, Action.PLACE_EDIT, COUNTRY, at=now)
        places.ensure_kinds(session)
        new_units, new_links = places.import_units(session, unit_rows, link_rows)
        if new_links:
            _check_tree(session)
        told = Imported(
            provinces=sum(place["parent_id"] == COUNTRY for place in provinces),
            communes=sum(place["parent_id"] != COUNTRY for place in provinces),
            new_units=new_units,
            new_links=new_links,
        )
        audit.append(
            session,
            now=now,
            actor=actor.login,
            verb="place.import",
            unit_id=COUNTRY,
            subject="package/vietnam-provinces",
            detail={"new_units": new_units, "new_links": new_links},
        )
        return told

    return await desk.store.begin(work)


def _read_vietnam() -> list[dict[str, Any]]:
    # Its data file only: importing the package itself would build 3 321 enum members nobody asks for.
    spec = find_spec("vietnam_provinces")
    if spec is None or spec.origin is None:
        raise Unavailable("places_missing", package="vietnam-provinces")
    data = Path(spec.origin).parent / "data" / "nested-divisions.json"
    found: list[dict[str, Any]] = []
    for province in json.loads(data.read_text("utf-8")):
        above = f"{province['code']:02d}"
        found.append(_division(province, above, COUNTRY))
        found.extend(_division(ward, f"{ward['code']:05d}", above) for ward in province["wards"])
    return found


def _division(entry: dict[str, Any], unit_id: str, parent_id: str) -> dict[str, Any]:
    kind = _KIND_OF_DIVISION[entry["division_type"]]
    return {"id": unit_id, "kind": kind, "name": entry["name"], "parent_id": parent_id}


# -- policies ---------------------------------------------------------------------------------------------------------


async def put_policy(
    desk: Desk, actor: Actor, unit_id: str, body: dict[str, Any], *, version: int | None = None
) -> PolicyView:
    """Write the unit's own policy (quy chế), in force at once for all below that has none of its own.

    `body`: `domain.policy.policy_to_dict`. Raises `Invalid` naming the field that is wrong.
    """
    now = desk.clock.now()
    kept = policy_to_dict(policy_from_dict(body))

    def work(session: Session) -> PolicyView:
        access.authorize(session, actor, Action.POLICY_EDIT, unit_id, at=now)
        row = places.policy_row(session, unit_id)
        check_version(0 if row is None else row.version, version)
        before = None if row is None else row.body
        check_exception(session, actor, unit_id, policy_in_force_body(session, unit_id, now), kept, now)
        if row is None:
            row = PolicyRow(unit_id=unit_id, body=kept, updated_at=now, version=1)
            session.add(row)
        else:
            row.body, row.updated_at, row.version = kept, now, row.version + 1
        audit.append(
            session,
            now=now,
            actor=actor.login,
            verb="policy.put",
            unit_id=unit_id,
            subject=f"policy/{unit_id}",
            detail={"before": before, "after": kept},
        )
        return PolicyView(unit_id, unit_id, kept, row.version)

    return await desk.store.begin(work)


def policy_in_force_body(session: Session, unit_id: str, now: datetime) -> Mapping[str, Any]:
    """The document in force at the unit, own or inherited; empty for the law's default."""
    row = places.policy_in_force(session, unit_id, places.local_date(now))
    return {} if row is None else row.body


def check_exception(
    session: Session, actor: Actor, unit_id: str, before: Mapping[str, Any], after: Mapping[str, Any], now: datetime
) -> None:
    """Nobody declares for oneself that writers may approve. Raises `Refused("self_approval_not_yours")`."""
    is_switched_on = after.get("self_approval", False) and not before.get("self_approval", False)
    if is_switched_on and not actor.everywhere and access.may(session, actor, Action.BULLETIN_WRITE, unit_id, at=now):
        raise Refused("self_approval_not_yours", field="self_approval", fix="ask_who_does_not_write")


async def drop_policy(desk: Desk, actor: Actor, unit_id: str, *, version: int | None = None) -> PolicyView:
    """Take the unit's own policy away; the inherited one is in force. Raises `NotFound("policy_not_own")`."""
    now = desk.clock.now()

    def work(session: Session) -> PolicyView:
        access.authorize(session, actor, Action.POLICY_EDIT, unit_id, at=now)
        row = places.policy_row(session, unit_id)
        if row is None:
            raise NotFound("policy_not_own", unit_id=unit_id)
        check_version(row.version, version)
        session.delete(row)
        audit.append(
            session,
            now=now,
            actor=actor.login,
            verb="policy.drop",
            unit_id=unit_id,
            subject=f"policy/{unit_id}",
            detail={"before": row.body},
        )
        session.flush()
        return policy_view(session, unit_id, now)

    return await desk.store.begin(work)


async def get_policy(desk: Desk, actor: Actor, unit_id: str) -> PolicyView:
    """The policy in force at the unit."""
    now = desk.clock.now()

    def work(session: Session) -> PolicyView:
        access.authorize(session, actor, Action.READ, unit_id, at=now)
        return policy_view(session, unit_id, now)

    return await desk.store.read(work)


def policy_view(session: Session, unit_id: str, now: datetime) -> PolicyView:
    """The policy in force, the law's default where nobody above wrote one.

    `version` is that of the unit's own row, 0 without one: what a writer must have seen.
    """
    row = places.policy_in_force(session, unit_id, places.local_date(now))
    if row is None:
        return PolicyView(unit_id, None, policy_to_dict(DEFAULT_POLICY), 0)
    return PolicyView(unit_id, row.unit_id, row.body, row.version if row.unit_id == unit_id else 0)


# -- shared -----------------------------------------------------------------------------------------------------------


def check_version(found: int, expected: int | None) -> None:
    """Raise `Conflict("version_changed")` unless the caller saw the present version (None: did not ask)."""
    if expected is not None and expected != found:
        raise Conflict("version_changed", field="version", expected=expected, actual=found)


def clean_text(text: str, field: str, *, code: str = "name_invalid", longest: int = 120) -> str:
    """The text on one line, single blanks. Raises `Invalid(code)` when it is empty, too long or not printable."""
    kept = " ".join(text.split())
    if not kept or len(kept) > longest or not kept.isprintable():
        raise Invalid(code, field=field, longest=longest)
    return kept


def _only_operator(actor: Actor, action: Action) -> None:
    if not actor.everywhere:
        raise Refused("not_permitted", action=action.value, unit_id=None)


def _parent_there(session: Session, parent_id: str) -> None:
    if session.get(UnitRow, parent_id) is None:
        raise NotFound("unknown_unit", unit_id=parent_id)  # as one that the actor may not see


def _kind_open(session: Session, code: str, on: date, *, field: str) -> None:
    row = places.kind(session, code)
    if row is None:
        raise Invalid("unknown_unit_kind", field=field, kind=code)
    if row.closed_on is not None and on >= row.closed_on:
        raise Invalid("unit_kind_closed", field=field, kind=code, closed_on=row.closed_on.isoformat())


def _relink(session: Session, unit_id: str, parent_id: str | None, on: date, link_id: str) -> None:
    """End the link in force on `on` and begin one to `parent_id`. Raises `Conflict("unit_moves_later")`."""
    rows = places.links(session, [unit_id])
    later = next((row for row in rows if row.valid_from > on), None)
    if later is not None:
        raise Conflict("unit_moves_later", unit_id=unit_id, on=later.valid_from.isoformat())
    current = next((row for row in rows if row.valid_to is None or row.valid_to > on), None)
    if current is not None and current.valid_from == on:
        if parent_id is None:
            session.delete(current)
        else:
            current.parent_id = parent_id
        session.flush()
        return
    if current is not None:
        current.valid_to = on
    if parent_id is not None:
        session.add(UnitLinkRow(id=link_id, unit_id=unit_id, parent_id=parent_id, valid_from=on))
    session.flush()


def _check_tree(session: Session) -> None:
    try:
        places.load_tree(session)
    except Invalid as error:
        raise Invalid(error.code, **(error.facts | {"field": "parent_id"})) from None


def _view(session: Session, unit_id: str, on: date) -> UnitView:
    return _viewed(places.unit(session, unit_id), places.path_of(session, unit_id, on))


def _viewed(row: UnitRow, path: tuple[str, ...]) -> UnitView:
    return UnitView(row.id, row.kind, row.name, path[1] if len(path) > 1 else None, path, row.version)
