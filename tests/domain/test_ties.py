"""Orders of what is due at once: laws over any order and whatever cannot be moved."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broadcast_server.domain.clock import Window
from broadcast_server.domain.errors import Invalid
from broadcast_server.domain.ties import collisions, deadline_of, is_ordered, orders_for
from broadcast_server.domain.timeline import Entry, resolve
from speaker_protocol.rules import BulletinClass, Level, SourceKind

NOON = datetime(2026, 6, 1, 5, tzinfo=UTC)
MIN = timedelta(minutes=1)
ids = st.permutations(["a", "b", "c", "d", "e"]).flatmap(
    lambda order: st.integers(2, 5).map(lambda count: tuple(order[:count]))
)


def bulletin(name: str, minute: int, *, order: int = 0, wait: int = 60, level: int = Level.PRIORITY_UPPER) -> Entry:
    start = NOON + minute * MIN
    return Entry(
        name,
        start,
        start + (3 + wait) * MIN,
        level,
        BulletinClass.PRIORITY,
        SourceKind.RECORDED,
        length=3 * MIN,
        origin_order=order,
    )


def began(*entries: Entry) -> dict[str, datetime]:
    found: dict[str, datetime] = {}
    for segment in resolve(entries, Window(NOON - 600 * MIN, NOON + 600 * MIN)).segments:
        found.setdefault(segment.entry_id, segment.start)
    return found


@given(ids, st.dictionaries(st.sampled_from("abcde"), st.integers(-5, 5)))
def test_what_may_move_comes_in_the_wanted_order_around_what_may_not(wanted: tuple[str, ...], held: dict) -> None:
    fixed = {one: order for one, order in held.items() if one in wanted}
    ranked = sorted(wanted, key=lambda one: (fixed.get(one, 0), one))
    try:
        orders = orders_for(wanted, fixed, ranked)
    except Invalid:
        is_kept = [one for one in wanted if one in fixed] == [one for one in ranked if one in fixed]
        assert len(fixed) > 1
        assert not is_kept or len(fixed) < len(wanted)
        return
    assert orders.keys() | fixed.keys() == set(wanted)
    assert not orders.keys() & fixed.keys()
    whole = [fixed.get(one, orders.get(one, 0)) for one in wanted]
    assert whole == sorted(whole)
    for first, second in itertools.pairwise(wanted):
        if first in orders or second in orders:
            assert whole[wanted.index(first)] < whole[wanted.index(second)]


@given(st.permutations(["a", "b", "c"]))
def test_an_order_given_is_the_order_heard(wanted: list[str]) -> None:
    orders = orders_for(wanted, {}, wanted)
    entries = [bulletin(name, 0, order=orders[name]) for name in "abc"]
    heard = sorted(began(*entries).items(), key=lambda pair: pair[1])
    assert [name for name, _ in heard] == wanted


def test_what_is_due_at_once_collides_and_what_comes_later_does_not() -> None:
    first, second, later = bulletin("first", 0), bulletin("second", 0), bulletin("later", 30)
    entries = (later, second, first)
    groups = collisions(entries, began(*entries))
    assert [[one.id for one in group] for group in groups] == [["first", "second"]]
    assert not is_ordered(groups[0])


def test_two_that_wait_behind_the_same_item_collide_although_one_was_due_earlier() -> None:
    item = Entry(
        "item", NOON - 5 * MIN, NOON + 5 * MIN, Level.PROGRAMME, BulletinClass.NORMAL, SourceKind.RECORDED,
        length=10 * MIN,
    )  # fmt: skip
    one, other = bulletin("one", 0), bulletin("other", 2)
    groups = collisions((item, one, other), began(item, one, other))
    assert [[entry.id for entry in group] for group in groups] == [["one", "other"]]


def test_one_that_gets_no_turn_because_of_the_other_collides_too() -> None:
    one, other = bulletin("one", 0, wait=0), bulletin("other", 0, wait=0)
    assert [len(group) for group in collisions((one, other), began(one, other))] == [2]


def test_a_collision_found_late_still_leaves_a_minute() -> None:
    assert deadline_of(NOON, NOON - 60 * MIN) == NOON - 5 * MIN
    assert deadline_of(NOON, NOON - 3 * MIN) == NOON - 2 * MIN
    assert deadline_of(NOON, NOON - MIN / 2) == NOON


def test_a_contradiction_names_the_field_and_the_fix() -> None:
    with pytest.raises(Invalid, match="order_fixed") as refused:
        orders_for(("a", "b", "c"), {"a": 0, "c": 0}, ("a", "b", "c"))
    assert refused.value.facts == {"field": "entry_ids", "fix": "keep_their_order"}
