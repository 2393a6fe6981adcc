"""The one door to the database: a unit of work in, committed rows out.

`await store.begin(fn)` runs `fn(session)` in one writing transaction, `await store.read(fn)` in one reading snapshot.
A maintainer must not break: (1) commit happens here and nowhere else, and any error rolls everything back; (2) there is
one writer at a time, in this process by a lock and across processes by the database (SQLite `BEGIN IMMEDIATE`,
PostgreSQL an advisory lock), so "check, then write" in one `fn` is safe on both dialects and the audit chain cannot
fork; (3) SQLite writes through one single connection, because `PRAGMA data_version` on it then tells exactly the
commits of others (https://sqlite.org/pragma.html#pragma_data_version); (4) database errors leave as typed errors.

The engine is synchronous and runs on the executor port: a worker thread in production, inline under virtual time,
where an async driver's own thread broke determinism.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Engine, event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import BroadcastError, Conflict, Corrupt, Invalid, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.store.doorbell import CHANNEL, Doorbell, PostgresEar, SqliteEar
from broadcast_server.supervise import Executor

__all__ = ["AFTER_FAILURE", "Session", "Store", "engine_url", "opened"]

log = get_logger()

T = TypeVar("T")

BUSY_TIMEOUT_MS = 10_000
"""How long a writer waits for one in another process before it gives up with `store_busy`."""

READERS = 4
AFTER_FAILURE = "after_failure"
"""Key of `Session.info`: functions of a fresh session, run and committed after the transaction at hand has failed."""
_WRITER_LOCK = 0x6C6F61  # "loa": PostgreSQL's advisory lock of the one writer
_UNIQUE_SQLITE = re.compile(r"UNIQUE constraint failed: (.+)")


class Store:
    """The database behind two verbs.

    `url`: `sqlite:///path`, `sqlite://` (in memory, for tests and simulation) or `postgresql://…`.
    """

    def __init__(
        self, url: str, *, clock: Clock, chance: Chance, executor: Executor, busy_timeout_ms: int = BUSY_TIMEOUT_MS
    ) -> None:
        self.clock = clock
        self._executor = executor
        self._url = engine_url(url)
        self._ring_name = chance.new_id()
        self._writing = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        in_memory = self._is_sqlite and self._url.database in {None, "", ":memory:"}
        if self._is_sqlite:
            self._writer = _sqlite_engine(self._url, connections=1, busy_ms=busy_timeout_ms, reads=False)
            self._reader = self._writer
            if not in_memory:
                self._reader = _sqlite_engine(self._url, connections=READERS, busy_ms=busy_timeout_ms, reads=True)
        else:
            self._writer = self._reader = _postgres_engine(self._url, busy_ms=busy_timeout_ms)
        self._ear = None if in_memory else SqliteEar() if self._is_sqlite else PostgresEar(self._url, self._ring_name)
        self.doorbell = Doorbell(clock=clock, look=self._look)

    @property
    def engine(self) -> Engine:
        """The writing engine: for migrations, backups and tests, never for a verb."""
        return self._writer

    @property
    def url(self) -> URL:
        """Where it is, password included."""
        return self._url

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._url.get_backend_name()

    async def begin(self, fn: Callable[[Session], T], *, ring: bool = True) -> T:
        """What `fn(session)` returns, committed; the doorbell rings after the commit unless `ring` is False.

        `fn` must only use its session: no waiting, no files. Rows it returns stay readable. Raises what `fn` raises,
        `Conflict` where rows contradict each other, `Unavailable` when the database is away, busy or its disk full.
        """
        self._loop = asyncio.get_running_loop()
        if not self._is_sqlite:
            return await self._executor.run(self._write, fn, ring)
        async with self._writing:
            return await self._executor.run(self._write, fn, ring)

    async def read(self, fn: Callable[[Session], T]) -> T:
        """What `fn(session)` returns from one consistent snapshot; nothing it changes is kept."""
        return await self._executor.run(self._read, fn)

    async def close(self) -> None:
        """Give all connections back. Idempotent."""
        if self._ear is not None:
            self._ear.close()
        await self._executor.run(self._writer.dispose)
        if self._reader is not self._writer:
            await self._executor.run(self._reader.dispose)

    # -- on the executor ----------------------------------------------------------------------------------------------

    def _write(self, fn: Callable[[Session], T], ring: bool) -> T:
        session = Session(self._writer, expire_on_commit=False)
        try:
            result = self._written(session, fn, ring)
        except BroadcastError:
            self._after_failure(session)
            raise
        # From here and not from `begin`: a caller that was cancelled meanwhile must not swallow the ring of a commit.
        if ring and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.doorbell.ring)
        return result

    def _written(self, session: Session, fn: Callable[[Session], T], ring: bool) -> T:
        with _typed_errors(), session:
            if not self._is_sqlite:
                session.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})"))
            result = fn(session)
            if ring and not self._is_sqlite:
                session.execute(sqlalchemy.text(f"SELECT pg_notify('{CHANNEL}', '{self._ring_name}')"))
            session.commit()
        return result

    def _after_failure(self, failed: Session) -> None:
        """What must be kept of a transaction of which nothing is kept: refusals. The first error stands whatever."""
        jobs: list[Callable[[Session], None]] = failed.info.pop(AFTER_FAILURE, [])
        if not jobs:
            return
        try:
            self._written(
                Session(self._writer, expire_on_commit=False), lambda fresh: [job(fresh) for job in jobs], False
            )
        except BroadcastError as error:
            log.error("store.after_failure", code=error.code)  # noqa: TRY400  the refusal is the error

    def _read(self, fn: Callable[[Session], T]) -> T:
        engine = self._reader
        if not self._is_sqlite:
            engine = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        session = Session(engine, expire_on_commit=False, autoflush=False)
        try:
            return self._seen(session, fn)
        except BroadcastError:
            self._after_failure(session)
            raise

    def _seen(self, session: Session, fn: Callable[[Session], T]) -> T:
        with _typed_errors(), session:
            result = fn(session)
            session.expunge_all()  # so that the rollback expires no row that goes out
            session.rollback()
            return result

    async def _look(self) -> bool:
        """Whether another process has committed since the last look."""
        ear = self._ear
        if ear is None:
            return False
        async with self._writing:
            return await self._executor.run(self._look_now, ear)

    def _look_now(self, ear: SqliteEar | PostgresEar) -> bool:
        with _typed_errors():
            if isinstance(ear, PostgresEar):
                return ear.look()
            raw = self._writer.raw_connection()
            try:
                return ear.look(raw.cursor())
            finally:
                raw.close()


@contextlib.contextmanager
def opened(url: str) -> Iterator[Engine]:
    """A writing engine for one piece of work beside any `Store`, as a migration is; errors leave typed."""
    parsed = engine_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = _sqlite_engine(parsed, connections=1, busy_ms=BUSY_TIMEOUT_MS, reads=False)
    else:
        engine = _postgres_engine(parsed, busy_ms=BUSY_TIMEOUT_MS)
    try:
        with _typed_errors():
            yield engine
    finally:
        engine.dispose()


def engine_url(url: str) -> URL:
    """The address with the driver we use. Raises `Invalid("database_url")` on one we do not speak."""
    try:
        parsed = make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise Invalid("database_url", field="database_url") from None
    match parsed.get_backend_name():
        case "sqlite":
            return parsed.set(drivername="sqlite+pysqlite")
        case "postgresql":
            return parsed.set(drivername="postgresql+psycopg")
    raise Invalid("database_url", field="database_url")


def _sqlite_engine(url: URL, *, connections: int, busy_ms: int, reads: bool) -> Engine:
    engine = sqlalchemy.create_engine(
        url,
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=busy_ms / 1_000,
        connect_args={"check_same_thread": False, "timeout": busy_ms / 1_000},
    )

    @event.listens_for(engine, "connect")
    def set_up(raw: sqlite3.Connection, _record: object) -> None:
        raw.isolation_level = None  # the driver begins nothing by itself; `take_turn` does
        cursor = raw.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        if reads:
            cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def take_turn(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _postgres_engine(url: URL, *, busy_ms: int) -> Engine:
    return sqlalchemy.create_engine(
        url,
        pool_size=READERS + 2,
        max_overflow=4,
        pool_pre_ping=True,  # a database that was restarted costs nobody an error
        connect_args={"options": f"-c lock_timeout={busy_ms} -c timezone=UTC", "connect_timeout": 5},
    )


@contextlib.contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except StatementError as error:
        if isinstance(error.orig, BroadcastError):  # a column type refused the value
            raise error.orig from None
        if not isinstance(error, DBAPIError):
            raise
        typed = _typed(error)
        if typed is None:
            raise
        raise typed from error
    except sqlite3.Error as error:
        raise Unavailable("store_unavailable") from error
    except PoolTimeoutError as error:
        raise Unavailable("store_busy") from error


def _typed(error: DBAPIError) -> BroadcastError | None:
    """The error for callers, or None where the fault is in our own statement and must surface as it is."""
    cause: Any = error.orig
    state: str = getattr(cause, "sqlstate", None) or ""
    name: str = getattr(cause, "sqlite_errorname", None) or ""
    if isinstance(error, IntegrityError):
        return _contradiction(state, name, cause)
    if state == "53100" or name == "SQLITE_FULL":
        return Unavailable("disk_full")
    if state in {"55P03", "40001", "40P01"} or name.startswith("SQLITE_BUSY") or name == "SQLITE_LOCKED":
        return Unavailable("store_busy")
    if name.startswith("SQLITE_CORRUPT") or name == "SQLITE_NOTADB" or state in {"XX001", "XX002"}:
        return Corrupt("store_corrupt")
    if (
        error.connection_invalidated
        or state[:2] in {"08", "53", "57", "58"}
        or name.startswith(("SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_PERM"))
        or (isinstance(error, OperationalError) and not state and not name)  # PostgreSQL: no connection was made
    ):
        return Unavailable("store_unavailable")
    return None


def _contradiction(state: str, name: str, cause: Any) -> BroadcastError | None:
    if state == "23505":
        return Conflict("duplicate", what=str(cause.diag.constraint_name))
    if name in {"SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"}:
        found = _UNIQUE_SQLITE.search(str(cause))
        return Conflict("duplicate", what=found.group(1) if found else "")
    if state == "23503" or name == "SQLITE_CONSTRAINT_FOREIGNKEY":
        return Conflict("reference_broken")
    return None
