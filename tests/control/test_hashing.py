"""Turns in the room where passwords are hashed: a crowd waits for itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broadcast_server.control import hashing
from broadcast_server.control.hashing import SLOTS, STRANGERS, WAITING, HashRoom, Lane
from broadcast_server.domain.errors import Refused
from tests.support.clock import FakeChance, settle


class Crowd:
    """People at the door; each hash ends when the test says so."""

    def __init__(self) -> None:
        self.room = HashRoom()
        self.order: list[str] = []
        self.inside: Counter[Lane] = Counter()
        self.most: Counter[str] = Counter()
        self._ends: list[asyncio.Event] = []
        self.tasks: list[asyncio.Task[None]] = []

    def come(self, who: str, lane: Lane) -> asyncio.Task[None]:
        task = asyncio.create_task(self._hash(who, lane), name=f"test.{who}")
        self.tasks.append(task)
        return task

    async def one_ends(self) -> None:
        self._ends.pop(0).set()
        await settle()

    async def all_end(self) -> None:
        while self._ends:
            await self.one_ends()

    async def _hash(self, who: str, lane: Lane) -> None:
        async with self.room.turn(who, lane):
            self.order.append(who)
            self.inside[lane] += 1
            strangers = self.inside[Lane.NEW] + self.inside[Lane.TRIED]
            self.most["all"] = max(self.most["all"], self.inside.total())
            self.most["strangers"] = max(self.most["strangers"], strangers)
            ended = asyncio.Event()
            self._ends.append(ended)
            await ended.wait()
            self.inside[lane] -= 1


@asynccontextmanager
async def a_crowd() -> AsyncIterator[Crowd]:
    crowd = Crowd()
    yield crowd
    await crowd.all_end()
    await asyncio.gather(*crowd.tasks, return_exceptions=True)
    assert crowd.most["all"] <= SLOTS
    assert crowd.most["strangers"] <= STRANGERS


async def test_somebody_known_finds_room_beside_any_crowd():
    async with a_crowd() as crowd:
        for number in range(20):
            crowd.come(f"thief-{number}", Lane.TRIED)
        await settle()
        crowd.come("lan", Lane.KNOWN)
        await settle()
        assert crowd.order == ["thief-0", "lan"]


async def test_an_address_without_a_mistake_comes_before_those_that_made_some():
    async with a_crowd() as crowd:
        for number in range(5):
            crowd.come(f"thief-{number}", Lane.TRIED)
        await settle()
        crowd.come("hoa", Lane.NEW)
        await settle()
        await crowd.one_ends()
        assert crowd.order == ["thief-0", "hoa"]


async def test_addresses_take_turns_however_often_one_of_them_comes():
    async with a_crowd() as crowd:
        for _ in range(10):
            crowd.come("thief", Lane.NEW)
        crowd.come("hoa", Lane.NEW)
        crowd.come("nam", Lane.NEW)
        await settle()
        for _ in range(4):
            await crowd.one_ends()
        assert crowd.order == ["thief", "thief", "hoa", "nam", "thief"]


async def test_who_waits_most_is_sent_away_and_not_who_came_last():
    async with a_crowd() as crowd:
        thieves = [crowd.come("thief", Lane.NEW) for _ in range(WAITING + 1)]
        await settle()
        late = crowd.come("hoa", Lane.NEW)
        await settle()
        sent_away = [one for one in thieves if one.done()]
        assert len(sent_away) == 1
        assert not late.done()
        with pytest.raises(Refused, match="too_many_tries"):
            await sent_away[0]


async def test_who_goes_away_leaves_the_place_to_the_next():
    async with a_crowd() as crowd:
        crowd.come("first", Lane.NEW)
        second = crowd.come("second", Lane.NEW)
        crowd.come("third", Lane.NEW)
        await settle()
        second.cancel()
        await settle()
        await crowd.one_ends()
        assert crowd.order == ["first", "third"]


async def test_a_turn_that_comes_as_its_owner_goes_is_not_lost():
    async with a_crowd() as crowd:
        crowd.come("first", Lane.NEW)
        second = crowd.come("second", Lane.NEW)
        crowd.come("third", Lane.NEW)
        await settle()
        crowd._ends.pop(0).set()
        await asyncio.sleep(0)
        second.cancel()
        await settle()
        await crowd.all_end()
        assert crowd.order[-1] == "third"


def test_the_hash_is_argon2id_with_46_mib_and_of_its_own_salt():
    chance = FakeChance()
    one, other = hashing.hash_of("nồi cơm bò kho 47", chance), hashing.hash_of("nồi cơm bò kho 47", chance)
    assert one.startswith("$argon2id$v=19$m=47104,t=1,p=1$")
    assert one != other
    assert hashing.matches(one, "nồi cơm bò kho 47")
    assert hashing.matches(one, "no\u0302\u0300i co\u031bm bo\u0300 kho 47"), "however the keyboard composes it"
    assert not hashing.matches(one, "nồi cơm bò kho 48")
    assert not hashing.matches(None, "nồi cơm bò kho 47")
    assert not hashing.matches(hashing.NOBODY, "")
