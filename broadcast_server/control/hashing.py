"""The room where passwords are hashed: argon2id, few at once, everybody in turn.

One hash takes 46 MiB and some 45 ms of a core, on purpose, so whoever sends guesses must not take the cores from who
logs in, nor from a voice that is being encoded. A maintainer must not break: (1) never more than `SLOTS` at once, and
of strangers never more than `STRANGERS`: somebody who was here before (a signed-in person, a known browser) does not
wait behind a crowd, nor an address that made no mistake behind those that did; (2) within a lane addresses take turns,
so one that sends a thousand waits for itself; (3) who waits is bounded: the address that waits most is sent away;
(4) no hash inside a store transaction.

Parameters: OWASP password storage, argon2id with 46 MiB, 1 pass, 1 lane.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from broadcast_server.domain.clock import Chance
from broadcast_server.domain.errors import Refused
from broadcast_server.domain.passwords import normal

SLOTS: Final = 2
STRANGERS: Final = 1
WAITING: Final = 48
"""Who waits in one lane at most: about two seconds' worth."""
SALT_BYTES: Final = 16

_HASHER: Final = PasswordHasher(time_cost=1, memory_cost=46 * 1024, parallelism=1, hash_len=32, salt_len=SALT_BYTES)
NOBODY: Final = "$argon2id$v=19$m=47104,t=1,p=1$xl7ZcofI/XOajfnKgT7dcw$9d6H6vWpXSulDsWH8EKk2Vrw/rWApbc90GVL2Ej6JAg"
"""Of 256 random bits nobody kept: what a login without a password is compared with, so that it takes as long."""


def hash_of(password: str, chance: Chance) -> str:
    """The text that is stored. Takes a core for some 45 ms: on the executor, within a turn."""
    return _HASHER.hash(normal(password), salt=chance.token_bytes(SALT_BYTES))


def matches(stored: str | None, password: str) -> bool:
    """Whether it is that password; None: of nobody, after the same time. On the executor, within a turn."""
    try:
        _HASHER.verify(stored or NOBODY, normal(password))
    except (VerificationError, InvalidHashError):
        return False
    return stored is not None


class Lane(IntEnum):
    """Who comes first."""

    KNOWN = 0
    """Signed in, or at a browser where the person has been before."""
    NEW = 1
    """From an address without a mistake in the last quarter of an hour."""
    TRIED = 2


class HashRoom:
    """Turns, for one process."""

    def __init__(self) -> None:
        self._running = dict.fromkeys(Lane, 0)
        self._waiting = {lane: _Queue() for lane in Lane}

    @asynccontextmanager
    async def turn(self, who: str, lane: Lane = Lane.KNOWN) -> AsyncIterator[None]:
        """Room for one hash at a time. `who`: takes turns with others, an address or a sign-in.

        Raises `Refused("too_many_tries")` when too many wait and `who` is most of them.
        """
        if self._has_room(lane) and all(self._waiting[before].is_empty for before in Lane if before <= lane):
            self._running[lane] += 1
        else:
            await self._wait(who, lane)
        try:
            yield
        finally:
            self._leave(lane)

    def _has_room(self, lane: Lane) -> bool:
        strangers = self._running[Lane.NEW] + self._running[Lane.TRIED]
        return sum(self._running.values()) < SLOTS and (lane is Lane.KNOWN or strangers < STRANGERS)

    async def _wait(self, who: str, lane: Lane) -> None:
        called = self._waiting[lane].add(who)
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled() and called.exception() is None:
                self._leave(lane)  # the turn had come at the same moment
            self._waiting[lane].drop(who, called)
            raise

    def _leave(self, lane: Lane) -> None:
        self._running[lane] -= 1
        for first in Lane:
            while self._has_room(first) and (called := self._waiting[first].next()) is not None:
                self._running[first] += 1
                called.set_result(None)


class _Queue:
    """Who waits: a queue for each address, the addresses in a circle."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def is_empty(self) -> bool:
        return not self._queues

    def add(self, who: str) -> asyncio.Future[None]:
        """A place; the last of the longest queue gives up its own when there are too many."""
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(who, deque()).append(called)
        if sum(len(queue) for queue in self._queues.values()) > WAITING:
            longest = max(self._queues, key=lambda name: len(self._queues[name]))
            last = self._queues[longest][-1]
            self.drop(longest, last)
            last.set_exception(Refused("too_many_tries", retry_after_s=5))
        return called

    def next(self) -> asyncio.Future[None] | None:
        """Whose turn it is; its address goes to the end of the circle."""
        while self._queues:
            who = next(iter(self._queues))
            queue = self._queues.pop(who)
            called = queue.popleft()
            if queue:
                self._queues[who] = queue
            if not called.done():
                return called
        return None

    def drop(self, who: str, called: asyncio.Future[None]) -> None:
        queue = self._queues.get(who)
        if queue is None or called not in queue:
            return
        queue.remove(called)
        if not queue:
            del self._queues[who]
