"""A clock ticked by hand and a chance with a seed, the same ports as in production."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from datetime import UTC, datetime, timedelta


class FakeClock:
    """Time moves only by `advance`; sleepers wake in order of their due time."""

    def __init__(self, start: datetime = datetime(2026, 6, 1, 9, 0, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed_s)

    def monotonic(self) -> float:
        return self._elapsed_s

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed_s + seconds, next(self._order), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass; everything due on the way runs, in order, before this returns."""
        end_s = self._elapsed_s + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end_s:
            due_s, _, woken = heapq.heappop(self._sleepers)
            self._elapsed_s = max(self._elapsed_s, due_s)
            if not woken.done():
                woken.set_result(None)
            await settle()
        self._elapsed_s = end_s
        await settle()


async def settle(turns: int = 20) -> None:
    """Let every ready task of the loop take its turns."""
    for _ in range(turns):
        await asyncio.sleep(0)


class FakeChance:
    """Ids, secrets and jitter from a seed; the same seed gives the same day."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._count = itertools.count(1)

    def new_id(self) -> str:
        return f"{next(self._count):08x}{self._random.getrandbits(96):024x}"

    def token_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)
