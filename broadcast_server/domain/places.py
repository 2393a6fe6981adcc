"""The dated tree of places, and what a target means in it.

A unit is a row with a kind from data (province, commune, hamlet, or whatever a law names next); no level is wired in.
Who belongs to whom is a dated link `[valid_from, valid_to)`, because communes merge and districts close: the tree is
always asked *on a day*. A unit without a link on that day is a root, so history stays readable.

Links of one child never overlap and never form a circle on any day; `PlaceTree` refuses the data otherwise.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import pairwise

from broadcast_server.domain.errors import Invalid, NotFound


@dataclass(frozen=True, slots=True)
class Unit:
    """An org unit. `id` is text that never changes meaning (a GSO code, or an id of ours); `kind` is data."""

    id: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Link:
    """`unit_id` belongs to `parent_id` on the days `[valid_from, valid_to)`; None: until further notice."""

    unit_id: str
    parent_id: str
    valid_from: date
    valid_to: date | None = None

    def __post_init__(self) -> None:
        if self.valid_to is not None and self.valid_to <= self.valid_from:
            raise Invalid("empty_validity", field="valid_to", unit_id=self.unit_id)

    def holds_on(self, on: date) -> bool:
        """Whether it is in force on that day."""
        return self.valid_from <= on and (self.valid_to is None or on < self.valid_to)


class TargetKind(enum.StrEnum):
    """What a target's reference names."""

    UNIT = "unit"
    GROUP = "group"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """Where something should sound: everything under a unit, a group of clusters, or one cluster."""

    kind: TargetKind
    ref: str


class PlaceTree:
    """Units and their dated links, indexed once; every question names the day it is asked for.

    Raises `Invalid` with `field` (`units[3].id`, `links[7].parent_id`) on a duplicate unit, an unknown unit,
    overlapping links of one child, or a circle on any day.
    """

    def __init__(self, units: Iterable[Unit], links: Iterable[Link]) -> None:
        self._units: dict[str, Unit] = {}
        for place, unit in enumerate(units):
            if unit.id in self._units:
                raise Invalid("duplicate_unit", field=f"units[{place}].id", unit_id=unit.id)
            self._units[unit.id] = unit
        self._links: dict[str, list[Link]] = defaultdict(list)  # of a child, by day
        self._children: dict[str, list[Link]] = defaultdict(list)  # of a parent, by child
        numbers = self._index(links)
        self._refuse_overlaps(numbers)
        self._refuse_circles(numbers)

    def __contains__(self, unit_id: object) -> bool:
        return unit_id in self._units

    def __iter__(self) -> Iterator[Unit]:
        return iter(self._units.values())

    def __len__(self) -> int:
        return len(self._units)

    def unit(self, unit_id: str) -> Unit:
        """The unit. Raises `NotFound`."""
        try:
            return self._units[unit_id]
        except KeyError:
            raise NotFound("unknown_unit", unit_id=unit_id) from None

    def parent(self, unit_id: str, on: date) -> str | None:
        """Whom the unit belongs to on that day; None for a root. Raises `NotFound`."""
        self.unit(unit_id)
        links = self._links.get(unit_id, ())
        place = bisect_right(links, on, key=lambda link: link.valid_from) - 1
        return links[place].parent_id if place >= 0 and links[place].holds_on(on) else None

    def children(self, unit_id: str, on: date) -> tuple[str, ...]:
        """The units directly under it on that day, by id. Raises `NotFound`."""
        self.unit(unit_id)
        return tuple(link.unit_id for link in self._children.get(unit_id, ()) if link.holds_on(on))

    def ancestors(self, unit_id: str, on: date) -> tuple[str, ...]:
        """Itself first, the root last. Raises `NotFound`."""
        line = [unit_id]
        while (parent := self.parent(line[-1], on)) is not None:
            line.append(parent)
        return tuple(line)

    def path(self, unit_id: str, on: date) -> tuple[Unit, ...]:
        """The units from the root down to itself, as a person reads an address. Raises `NotFound`."""
        return tuple(self._units[place] for place in reversed(self.ancestors(unit_id, on)))

    def subtree(self, unit_id: str, on: date) -> frozenset[str]:
        """Itself and everything under it on that day. Raises `NotFound`."""
        found = {unit_id}
        to_visit = [unit_id]
        while to_visit:
            below = self.children(to_visit.pop(), on)
            found.update(below)
            to_visit.extend(below)
        return frozenset(found)

    def is_under(self, unit_id: str, ancestor_id: str, on: date) -> bool:
        """Whether `unit_id` is `ancestor_id` or lies under it on that day. Raises `NotFound`."""
        return ancestor_id in self.ancestors(unit_id, on)

    def _index(self, links: Iterable[Link]) -> dict[Link, int]:
        numbers: dict[Link, int] = {}
        for number, link in enumerate(links):
            for field, ref in (("unit_id", link.unit_id), ("parent_id", link.parent_id)):
                if ref not in self._units:
                    raise Invalid("unknown_unit", field=f"links[{number}].{field}", unit_id=ref)
            numbers[link] = number
            self._links[link.unit_id].append(link)
            self._children[link.parent_id].append(link)
        for line in self._links.values():
            line.sort(key=lambda link: link.valid_from)
        for brood in self._children.values():
            brood.sort(key=lambda link: (link.unit_id, link.valid_from))
        return numbers

    def _refuse_overlaps(self, numbers: Mapping[Link, int]) -> None:
        for line in self._links.values():
            for earlier, later in pairwise(line):
                if earlier.valid_to is None or later.valid_from < earlier.valid_to:
                    raise Invalid(
                        "overlapping_links",
                        field=f"links[{numbers[later]}].valid_from",
                        unit_id=later.unit_id,
                        fix="close_earlier_link",
                    )

    def _refuse_circles(self, numbers: Mapping[Link, int]) -> None:
        # A circle comes into being on the first day of one of its links, so only links' first days need a look, and
        # of each only the one line upwards from the link.
        for link, number in numbers.items():
            seen = {link.unit_id}
            above: str | None = link.parent_id
            while above is not None:
                if above in seen:
                    raise Invalid("circular_places", field=f"links[{number}].parent_id", unit_id=link.unit_id)
                seen.add(above)
                above = self.parent(above, link.valid_from)


def clusters_of(
    targets: Iterable[Target],
    tree: PlaceTree,
    clusters: Mapping[str, str],
    groups: Mapping[str, Iterable[str]],
    on: date,
) -> frozenset[str]:
    """The clusters that targets mean on a day.

    `clusters`: cluster id to the unit it stands in. `groups`: group id to its cluster ids; gone ones are skipped.
    Raises `Invalid` naming `targets[i].ref` when a reference is unknown.
    """
    found: set[str] = set()
    places: set[str] = set()
    for number, target in enumerate(targets):
        if target.kind is TargetKind.UNIT and target.ref in tree:
            places |= tree.subtree(target.ref, on)
        elif target.kind is TargetKind.GROUP and target.ref in groups:
            found.update(member for member in groups[target.ref] if member in clusters)
        elif target.kind is TargetKind.CLUSTER and target.ref in clusters:
            found.add(target.ref)
        else:
            raise Invalid(
                "unknown_target",
                field=f"targets[{number}].ref",
                kind=str(target.kind),
                ref=target.ref,
                fix="pick_target",
            )
    if places:
        found.update(cluster for cluster, unit in clusters.items() if unit in places)
    return frozenset(found)
