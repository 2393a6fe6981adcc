"""Numbers only rise, whoever takes them."""

import pytest

from broadcast_server.store import sequences
from broadcast_server.store.session import Session, Store


async def take(store: Store, name: str = "signed", **how: int) -> int:
    return await store.begin(lambda session: sequences.take(session, name, **how))


async def test_each_name_counts_by_itself_and_from_one(store: Store):
    assert [await take(store), await take(store), await take(store, "other"), await take(store)] == [1, 2, 1, 3]


async def test_several_at_once_are_nobody_elses(store: Store):
    assert [await take(store, count=5), await take(store), await take(store, count=2)] == [5, 6, 8]


async def test_it_rises_above_what_it_is_told_and_never_falls_back(store: Store):
    assert [await take(store, above=100), await take(store, above=7), await take(store)] == [101, 102, 103]


async def test_what_was_rolled_back_was_not_given(store: Store):
    class Away(Exception):  # noqa: N818
        pass

    def fail(session: Session) -> None:
        sequences.take(session, "signed")
        raise Away

    with pytest.raises(Away):
        await store.begin(fail)
    assert await store.read(lambda session: sequences.last(session, "signed")) == 0
    assert await take(store) == 1
