"""Rows of places: units, dated links, kinds, policies, groups, and the questions asked of the tree.

A maintainer must not break: (1) a unit has at most one parent on any date, and no unit lies under itself: whoever
writes links validates the whole tree (`load_tree`) before the commit; (2) dates of links are local dates of the law,
`[from, to)`; (3) the district is a row of `KINDS` with a closing date, never a case in code.

Source: Luật Tổ chức chính quyền địa phương 2025 (two tiers from 1 July 2025), Quyết định 19/2025/QĐ-TTg (unit codes).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import date, datetime
from typing import Any, Final

from sqlalchemy import Select, and_, or_, select
from sqlalchemy.orm import Session

from broadcast_server.domain.clock import LOCAL
from broadcast_server.domain.errors import Corrupt, NotFound
from broadcast_server.domain.places import Link, PlaceTree, Target, TargetKind, Unit, clusters_of
from broadcast_server.store.tables import (
    ClusterRow,
    GroupMemberRow,
    GroupRow,
    PolicyRow,
    UnitKindRow,
    UnitLinkRow,
    UnitRow,
)
from broadcast_server.store.upsert import upsert

TWO_TIERS_SINCE: Final = date(2025, 7, 1)
"""Since this date there are provinces and communes, and no districts."""

KINDS: Final[tuple[tuple[str, str, str, date | None], ...]] = (
    ("country", "Trung ương", "Country", None),
    ("province", "Tỉnh", "Province", None),
    ("city", "Thành phố trực thuộc trung ương", "Centrally run city", None),
    ("district", "Huyện", "District", TWO_TIERS_SINCE),
    ("commune", "Xã", "Commune", None),
    ("ward", "Phường", "Ward", None),
    ("special_zone", "Đặc khu", "Special zone", None),
    ("town", "Thị trấn", "Township", TWO_TIERS_SINCE),
    ("zone", "Khu vực xã cũ", "Former-commune zone", None),
    ("hamlet", "Thôn, tổ dân phố", "Hamlet or residential group", None),
    ("organisation", "Cơ quan, đài, trung tâm truyền thông", "Body, station or media centre", None),
)
"""`(code, Vietnamese, English, closed on)`: what every new store knows; more are rows."""

STATION_KINDS: Final = ("commune", "ward", "special_zone")
"""Kinds whose units run a station of their own since July 2025: whom "all communes below" means."""

_DEEPEST: Final = 32


def local_date(at: datetime) -> date:
    """The date in Vietnam at an instant: what the tree's dates are compared with."""
    return at.astimezone(LOCAL).date()


# -- kinds ------------------------------------------------------------------------------------------------------------


def ensure_kinds(session: Session) -> None:
    """Write the kinds every store knows; what is there, closing dates too, stays as it is."""
    upsert(
        session,
        UnitKindRow,
        [{"code": code, "name_vi": vi, "name_en": en, "closed_on": closed} for code, vi, en, closed in KINDS],
    )


def kinds(session: Session) -> list[UnitKindRow]:
    """All kinds, those of an untouched store too, in order of code."""
    known = {row.code: row for row in session.scalars(select(UnitKindRow))}
    for code, vi, en, closed in KINDS:
        known.setdefault(code, UnitKindRow(code=code, name_vi=vi, name_en=en, closed_on=closed))
    return [known[code] for code in sorted(known)]


def kind(session: Session, code: str) -> UnitKindRow | None:
    """One kind."""
    return session.get(UnitKindRow, code)


# -- units and the tree -----------------------------------------------------------------------------------------------


def unit(session: Session, unit_id: str) -> UnitRow:
    """Raises `NotFound("unknown_unit")`."""
    row = session.get(UnitRow, unit_id)
    if row is None:
        raise NotFound("unknown_unit", unit_id=unit_id)
    return row


def units(session: Session, unit_ids: Collection[str]) -> dict[str, UnitRow]:
    """These units by id; unknown ids are left out."""
    return {row.id: row for row in session.scalars(select(UnitRow).where(UnitRow.id.in_(unit_ids)))}


def units_of_kind(session: Session, kind_code: str) -> list[str]:
    """Ids of all units of a kind."""
    return list(session.scalars(select(UnitRow.id).where(UnitRow.kind == kind_code).order_by(UnitRow.id)))


def parent_of(session: Session, unit_id: str, on: date) -> str | None:
    """In what the unit lies on this date; None for a root."""
    return session.scalar(
        select(UnitLinkRow.parent_id).where(
            UnitLinkRow.unit_id == unit_id,
            UnitLinkRow.valid_from <= on,
            or_(UnitLinkRow.valid_to.is_(None), UnitLinkRow.valid_to > on),
        )
    )


def roots(session: Session, on: date) -> list[str]:
    """The units that lie in no other on this date."""
    every = list(session.scalars(select(UnitRow.id).order_by(UnitRow.id)))
    inside = parents_on(session, every, on)
    return [unit_id for unit_id in every if unit_id not in inside]


def path_of(session: Session, unit_id: str, on: date) -> tuple[str, ...]:
    """The unit and its ancestors on this date, itself first. Raises `NotFound`, or `Corrupt` on a loop."""
    path = [unit(session, unit_id).id]
    while (above := parent_of(session, path[-1], on)) is not None:
        if above in path or len(path) > _DEEPEST:
            raise Corrupt("place_loop", unit_id=unit_id)
        path.append(above)
    return tuple(path)


def is_on_line(session: Session, unit_id: str, other_id: str, on: date) -> bool:
    """Whether one of the two lies in the other on this date, or they are the same."""
    return other_id in path_of(session, unit_id, on) or unit_id in path_of(session, other_id, on)


def paths_of(session: Session, unit_ids: Collection[str], on: date) -> dict[str, tuple[str, ...]]:
    """`path_of` for many units in one query per level."""
    above: dict[str, str] = {}
    to_ask = set(unit_ids)
    while to_ask:
        found = parents_on(session, to_ask, on)
        above |= found
        to_ask = set(found.values()) - above.keys()
    paths: dict[str, tuple[str, ...]] = {}
    for unit_id in unit_ids:
        path = [unit_id]
        while path[-1] in above:
            if len(path) > _DEEPEST:
                raise Corrupt("place_loop", unit_id=unit_id)
            path.append(above[path[-1]])
        paths[unit_id] = tuple(path)
    return paths


def subtree_query(roots: Collection[str], on: date) -> Select[tuple[str]]:
    """Ids of `roots` and all that lies below them on this date, for `column.in_(…)`."""
    below = select(UnitRow.id.label("id")).where(UnitRow.id.in_(roots)).cte("below", recursive=True)
    step = (
        select(UnitLinkRow.unit_id)
        .join(below, UnitLinkRow.parent_id == below.c.id)
        .where(UnitLinkRow.valid_from <= on, or_(UnitLinkRow.valid_to.is_(None), UnitLinkRow.valid_to > on))
    )
    whole = below.union(step)
    return select(whole.c.id)


def subtree_of(session: Session, roots: Collection[str], on: date) -> frozenset[str]:
    """Ids of `roots` and all that lies below them on this date."""
    return frozenset(session.scalars(subtree_query(roots, on)))


def links(session: Session, unit_ids: Collection[str] | None = None) -> list[UnitLinkRow]:
    """The links of these units (None: all), in order of unit and date."""
    query = select(UnitLinkRow).order_by(UnitLinkRow.unit_id, UnitLinkRow.valid_from)
    if unit_ids is not None:
        query = query.where(UnitLinkRow.unit_id.in_(unit_ids))
    return list(session.scalars(query))


def children_links(session: Session, parent_id: str, on: date) -> list[UnitLinkRow]:
    """Links into this unit that hold on the date or begin after it."""
    return list(
        session.scalars(
            select(UnitLinkRow).where(
                UnitLinkRow.parent_id == parent_id,
                or_(UnitLinkRow.valid_to.is_(None), UnitLinkRow.valid_to > on),
            )
        )
    )


def load_tree(session: Session) -> PlaceTree:
    """The whole dated tree (3 355 places in some 30 ms); callers keep it. Raises `Invalid` where links contradict."""
    rows = session.execute(select(UnitRow.id, UnitRow.kind, UnitRow.name))
    spans = session.execute(
        select(UnitLinkRow.unit_id, UnitLinkRow.parent_id, UnitLinkRow.valid_from, UnitLinkRow.valid_to)
    )
    return PlaceTree(tuple(Unit(*row) for row in rows), tuple(Link(*span) for span in spans))


def list_units(
    session: Session,
    *,
    roots: frozenset[str] | None,
    on: date,
    parent_id: str | None = None,
    kind_code: str | None = None,
    folded: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> list[UnitRow]:
    """Units by id, those after `after`.

    Within `roots`, lying directly in `parent_id`, of a kind, with `folded` (`types.fold`) in the name.
    """
    query = select(UnitRow).order_by(UnitRow.id).limit(limit)
    if after is not None:
        query = query.where(UnitRow.id > after)
    if roots is not None:
        query = query.where(UnitRow.id.in_(subtree_query(roots, on)))
    if parent_id is not None:
        query = query.join(
            UnitLinkRow,
            and_(
                UnitLinkRow.unit_id == UnitRow.id,
                UnitLinkRow.parent_id == parent_id,
                UnitLinkRow.valid_from <= on,
                or_(UnitLinkRow.valid_to.is_(None), UnitLinkRow.valid_to > on),
            ),
        )
    if kind_code is not None:
        query = query.where(UnitRow.kind == kind_code)
    if folded:
        query = query.where(UnitRow.name_folded.contains(folded, autoescape=True))
    return list(session.scalars(query))


def parents_on(session: Session, unit_ids: Collection[str], on: date) -> dict[str, str]:
    """Parent of each of these units on the date; roots are left out."""
    rows = session.execute(
        select(UnitLinkRow.unit_id, UnitLinkRow.parent_id).where(
            UnitLinkRow.unit_id.in_(unit_ids),
            UnitLinkRow.valid_from <= on,
            or_(UnitLinkRow.valid_to.is_(None), UnitLinkRow.valid_to > on),
        )
    )
    return {unit_id: parent for unit_id, parent in rows}  # noqa: C416 - a Row is not a pair to mypy


def import_units(
    session: Session, units_in: Iterable[Mapping[str, Any]], links_in: Iterable[Mapping[str, Any]]
) -> tuple[int, int]:
    """Insert the units that are not there yet and the links of those; how many of each are new."""
    there = set(session.scalars(select(UnitRow.id)))
    new_units = [dict(row) for row in units_in if row["id"] not in there]
    new_links = [dict(row) for row in links_in if row["unit_id"] not in there]
    upsert(session, UnitRow, new_units)
    upsert(session, UnitLinkRow, new_links)
    return len(new_units), len(new_links)


# -- groups and targets -----------------------------------------------------------------------------------------------


def groups_of(session: Session, unit_ids: Collection[str] | None = None) -> dict[str, frozenset[str]]:
    """Members (cluster ids) of each group, of these units (None: all); retired clusters are left out."""
    query = select(GroupRow.id)
    if unit_ids is not None:
        query = query.where(GroupRow.unit_id.in_(unit_ids))
    found: dict[str, set[str]] = {group_id: set() for group_id in session.scalars(query)}
    members = session.execute(
        select(GroupMemberRow.group_id, GroupMemberRow.cluster_id)
        .join(ClusterRow, ClusterRow.id == GroupMemberRow.cluster_id)
        .where(ClusterRow.retired_at.is_(None))
    )
    for group_id, cluster_id in members:
        if group_id in found:
            found[group_id].add(cluster_id)
    return {group_id: frozenset(clusters) for group_id, clusters in found.items()}


def cluster_units(session: Session) -> dict[str, str]:
    """Unit of every cluster in service."""
    rows = session.execute(select(ClusterRow.id, ClusterRow.unit_id).where(ClusterRow.retired_at.is_(None)))
    return {cluster_id: unit_id for cluster_id, unit_id in rows}  # noqa: C416 - a Row is not a pair to mypy


def unit_of_target(session: Session, target: Target) -> str:
    """The unit a target names, or to which its group or cluster belongs. Raises `NotFound`."""
    if target.kind is TargetKind.UNIT:
        return unit(session, target.ref).id
    row = session.get(GroupRow, target.ref) if target.kind is TargetKind.GROUP else session.get(ClusterRow, target.ref)
    if row is None:
        raise NotFound("unknown_target", kind=target.kind.value, ref=target.ref)
    return row.unit_id


def clusters_for(session: Session, targets: Iterable[Target], on: date) -> frozenset[str]:
    """The clusters in service that these targets mean on the date."""
    return clusters_of(tuple(targets), load_tree(session), cluster_units(session), groups_of(session), on)


# -- policies ---------------------------------------------------------------------------------------------------------


def policy_row(session: Session, unit_id: str) -> PolicyRow | None:
    """The unit's own policy."""
    return session.get(PolicyRow, unit_id)


def policy_in_force(session: Session, unit_id: str, on: date) -> PolicyRow | None:
    """The policy of the unit or of its nearest ancestor that has one; None where nobody wrote one."""
    path = path_of(session, unit_id, on)
    rows = {row.unit_id: row for row in session.scalars(select(PolicyRow).where(PolicyRow.unit_id.in_(path)))}
    return next((rows[place] for place in path if place in rows), None)
