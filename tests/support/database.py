"""Stores for tests: `a_store()` in memory for one dialect, the fixture `store` once per dialect.

`store` is a SQLite file and a database of the session's private PostgreSQL in turn, both with every table and no row.
`store_url` gives only the address of such a database, for tests that open it more than once; `empty_url` one without a
table.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.store.session import BUSY_TIMEOUT_MS, Store, opened
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


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with every table, to be copied."""
    path = tmp_path_factory.mktemp("template") / "loa.db"
    _create_tables(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres: PrivatePostgres) -> str:
    """Name of a database with every table, to be copied."""
    url = postgres.new_database()
    _create_tables(url)
    return url.split("?", maxsplit=1)[0].rsplit("/", 1)[1]


def _create_tables(url: str) -> None:
    with opened(url) as engine:
        Base.metadata.create_all(engine)


@pytest.fixture(params=DIALECTS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of a database without a table, once per dialect."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'loa.db'}"
        return
    running: PrivatePostgres = request.getfixturevalue("postgres")
    url = running.new_database()
    yield url
    running.drop(url)


@pytest.fixture(params=DIALECTS)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of a database with every table and no row, once per dialect."""
    if request.param == "sqlite":
        path = tmp_path / "loa.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    running: PrivatePostgres = request.getfixturevalue("postgres")
    url = running.new_database(request.getfixturevalue("postgres_template"))
    yield url
    running.drop(url)


@pytest_asyncio.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    """A store with every table, once per dialect."""
    async with a_store(store_url, create=False) as ready:
        yield ready
