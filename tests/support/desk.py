"""Desks for tests that need the store, time and chance, and no audio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from broadcast_server.control.desk import AudioRoom, Desk
from broadcast_server.store.session import Store
from broadcast_server.supervise import InlineExecutor
from tests.support.clock import FakeChance
from tests.support.database import a_store


def a_desk_of(store: Store) -> Desk:
    """A desk on an open store, without an audio room."""
    no_audio = cast("AudioRoom", None)
    return Desk(store=store, clock=store.clock, chance=FakeChance(), executor=InlineExecutor(), audio=no_audio)


@asynccontextmanager
async def a_bare_desk() -> AsyncIterator[Desk]:
    """A desk on an empty store in memory, without an audio room."""
    async with a_store() as store:
        yield a_desk_of(store)
