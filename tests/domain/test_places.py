"""Communes merge, districts close, and the question is always: on which day?"""

from datetime import date

import pytest

from broadcast_server.domain.errors import Invalid, NotFound
from broadcast_server.domain.places import Link, PlaceTree, Target, TargetKind, Unit, clusters_of

MERGER = date(2025, 7, 1)
BEFORE, AFTER = date(2025, 6, 30), MERGER
ALWAYS = date(2000, 1, 1)

PROVINCE = Unit("p", "province", "Tỉnh Thanh Hóa")
DISTRICT = Unit("d", "district", "Huyện Thường Xuân")
COMMUNE = Unit("c", "commune", "Xã Bát Mọt")
OLD = Unit("o", "commune", "Xã Yên Nhân cũ")
HAMLET = Unit("h", "hamlet", "Thôn Vịn")
UNITS = [PROVINCE, DISTRICT, COMMUNE, OLD, HAMLET]
LINKS = [
    Link("d", "p", ALWAYS, MERGER),
    Link("c", "d", ALWAYS, MERGER),
    Link("c", "p", MERGER),
    Link("o", "d", ALWAYS, MERGER),
    Link("o", "c", MERGER),
    Link("h", "o", ALWAYS),
]


@pytest.fixture
def tree() -> PlaceTree:
    return PlaceTree(UNITS, LINKS)


def test_the_line_upwards_is_that_of_the_day(tree: PlaceTree):
    assert tree.ancestors("h", BEFORE) == ("h", "o", "d", "p")
    assert tree.ancestors("h", AFTER) == ("h", "o", "c", "p")
    assert tree.path("h", AFTER) == (PROVINCE, COMMUNE, OLD, HAMLET)


def test_a_closed_district_stands_alone(tree: PlaceTree):
    assert tree.parent("d", BEFORE) == "p"
    assert tree.parent("d", AFTER) is None
    assert tree.children("d", AFTER) == ()


def test_the_subtree_is_that_of_the_day(tree: PlaceTree):
    assert tree.subtree("c", BEFORE) == {"c"}
    assert tree.subtree("c", AFTER) == {"c", "o", "h"}
    assert tree.subtree("p", AFTER) == {"p", "c", "o", "h"}
    assert tree.is_under("h", "p", AFTER)
    assert not tree.is_under("d", "p", AFTER)


def test_before_any_link_a_unit_is_a_root(tree: PlaceTree):
    assert tree.ancestors("h", date(1990, 1, 1)) == ("h",)


def test_an_unknown_unit_is_not_found(tree: PlaceTree):
    for ask in (tree.ancestors, tree.subtree, tree.children, tree.parent):
        with pytest.raises(NotFound, match="unknown_unit"):
            ask("x", AFTER)


CLUSTERS = {"k1": "c", "k2": "h", "k3": "h", "k4": "p"}
GROUPS = {"market": ["k1", "k2", "gone"]}


@pytest.mark.parametrize(
    ("targets", "on", "clusters"),
    [
        ([Target(TargetKind.UNIT, "p")], AFTER, {"k1", "k2", "k3", "k4"}),
        ([Target(TargetKind.UNIT, "c")], AFTER, {"k1", "k2", "k3"}),
        ([Target(TargetKind.UNIT, "c")], BEFORE, {"k1"}),
        ([Target(TargetKind.GROUP, "market")], AFTER, {"k1", "k2"}),
        ([Target(TargetKind.CLUSTER, "k4"), Target(TargetKind.UNIT, "h")], AFTER, {"k4", "k2", "k3"}),
        ([Target(TargetKind.UNIT, "d")], AFTER, set()),
        ([], AFTER, set()),
    ],
)
def test_targets_mean_clusters(tree: PlaceTree, targets: list[Target], on: date, clusters: set[str]):
    assert clusters_of(targets, tree, CLUSTERS, GROUPS, on) == clusters


@pytest.mark.parametrize("kind", TargetKind)
def test_an_unknown_target_names_its_field(tree: PlaceTree, kind: TargetKind):
    with pytest.raises(Invalid, match="unknown_target") as refused:
        clusters_of([Target(TargetKind.UNIT, "p"), Target(kind, "nowhere")], tree, CLUSTERS, GROUPS, AFTER)
    assert refused.value.facts["field"] == "targets[1].ref"


@pytest.mark.parametrize(
    ("units", "links", "code", "field"),
    [
        ([COMMUNE, COMMUNE], [], "duplicate_unit", "units[1].id"),
        ([COMMUNE], [Link("x", "c", ALWAYS)], "unknown_unit", "links[0].unit_id"),
        ([COMMUNE], [Link("c", "x", ALWAYS)], "unknown_unit", "links[0].parent_id"),
        ([COMMUNE], [Link("c", "c", ALWAYS)], "circular_places", "links[0].parent_id"),
        (
            UNITS,
            [Link("c", "p", ALWAYS), Link("c", "d", MERGER)],
            "overlapping_links",
            "links[1].valid_from",
        ),
        (
            UNITS,
            [Link("c", "p", ALWAYS, date(2025, 7, 2)), Link("c", "d", MERGER)],
            "overlapping_links",
            "links[1].valid_from",
        ),
        (
            UNITS,
            [Link("h", "o", ALWAYS), Link("o", "c", ALWAYS), Link("c", "h", MERGER)],
            "circular_places",
            "links[2].parent_id",
        ),
    ],
)
def test_wrong_places_name_their_field(units: list[Unit], links: list[Link], code: str, field: str):
    with pytest.raises(Invalid, match=code) as refused:
        PlaceTree(units, links)
    assert refused.value.facts["field"] == field


def test_what_would_be_a_circle_on_no_day_is_none():
    PlaceTree(UNITS, [Link("o", "c", ALWAYS, MERGER), Link("c", "o", MERGER)])


def test_a_link_of_no_days_is_refused():
    with pytest.raises(Invalid, match="empty_validity"):
        Link("c", "p", MERGER, MERGER)


def test_a_country_is_indexed_once():
    communes = [Unit(f"c{n}", "commune", f"Xã {n}") for n in range(3321)]
    provinces = [Unit(f"p{n}", "province", f"Tỉnh {n}") for n in range(34)]
    nation = Unit("vn", "nation", "Việt Nam")
    links = [Link(f"c{n}", f"p{n % 34}", ALWAYS) for n in range(3321)] + [
        Link(f"p{n}", "vn", ALWAYS) for n in range(34)
    ]
    tree = PlaceTree([nation, *provinces, *communes], links)
    assert len(tree) == 3356
    clusters = {f"k{n}": f"c{n % 3321}" for n in range(10_000)}
    assert len(clusters_of([Target(TargetKind.UNIT, "vn")], tree, clusters, {}, AFTER)) == 10_000
