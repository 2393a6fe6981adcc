"""Stores for tests: `a_store()` in memory for one dialect, the fixture `store` once per dialect.

`store` is a SQLite file and a database of the session's private PostgreSQL in turn, both with every table and empty.
`store_url` gives only the address of such a database, for tests that open it more than once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.store.session import BUSY_TIMEOUT_MS, Store
from broadcast_server.store.tables import Base
from broadcast_server.supervise import Executor, InlineExecutor, SystemChance
from tests.support.clock import FakeClock
from tests.support.postgres import PrivatePostgres, private_postgres, why_not

DIALECTS = [pytest.param("sqlite", id="sqlite"), pytest.param("postgres", id="postgres", marks=pytest.mark.postgres)]


@asynccontextmanager
async def a_store(
    url: str = "sqlite://",
    *,
    clock: Clock | None = None,
    chance: Chance | None = None,
    executor: Executor | None = None,
    create: bool = True,
    busy_timeout_ms: int = BUSY_TIMEOUT_MS,
) -> AsyncIterator[Store]:
    """A store on a clock ticked by hand, run inline; in memory and with every table unless told otherwise."""
    store = Store(
        url,
        clock=clock or FakeClock(),
        chance=chance or SystemChance(),  # two stores on one database must not have one name
        executor=executor or InlineExecutor(),
        busy_timeout_ms=busy_timeout_ms,
    )
    try:
        if create:
            Base.metadata.create_all(store.engine)
        yield store
    finally:
        await store.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    """The session's private PostgreSQL, or a skip that names what is missing."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with private_postgres() as running:
        yield running


@pytest.fixture(params=DIALECTS)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of an empty database, once per dialect."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'loa.db'}"
        return
    running: PrivatePostgres = request.getfixturevalue("postgres")
    url = running.new_database()
    yield url
    running.drop(url)


@pytest_asyncio.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    """A store with every table, once per dialect."""
    async with a_store(store_url) as opened:
        yield opened
