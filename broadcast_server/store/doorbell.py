"""The doorbell: "something in the store changed, look again"; it carries no news of its own.

A maintainer must not break: (1) a ring is never lost: each listener has an `Ear` that remembers a ring which came
while it was busy, and rings that come together are one; (2) a commit of another process (a command line, another
server) rings within `LOOK_EVERY_S`, by SQLite's change counter or PostgreSQL's NOTIFY, as long as `watch` runs;
(3) who hears it reads the store: a doubled or needless ring must be harmless everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import URL

from broadcast_server.domain.clock import Clock
from broadcast_server.domain.errors import Unavailable

if TYPE_CHECKING:
    import psycopg

LOOK_EVERY_S = 0.5
CHANNEL = "loa_doorbell"


class Ear:
    """One listener's own view of the doorbell; made by `Doorbell.ear`, used by one task."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._has_rung = False
        self._waiting: asyncio.Future[bool] | None = None

    def hear(self) -> None:
        """A ring; wakes the waiter, or is kept for the next wait."""
        self._has_rung = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(True)

    async def wait(self, timeout_s: float) -> bool:
        """True as soon as it rang since the last wait, False after `timeout_s` of the injected clock."""
        if not self._has_rung:
            waiting = self._waiting = asyncio.get_running_loop().create_future()
            sleeper = asyncio.create_task(self._clock.sleep(timeout_s), name="store.doorbell.wait")
            try:
                await asyncio.wait([waiting, sleeper], return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._waiting = None
                sleeper.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await sleeper
        has_rung, self._has_rung = self._has_rung, False
        return has_rung


class Doorbell:
    """Rings in this process at once, and for the commits of other processes while `watch` runs."""

    def __init__(self, *, clock: Clock, look: Callable[[], Awaitable[bool]]) -> None:
        """`look`: whether another process has committed since the last look."""
        self._clock, self._look = clock, look
        self._ears: list[Ear] = []
        self._own = self.ear()
        self.rings = 0

    def ear(self) -> Ear:
        """A new listener; it hears what rings from now on."""
        ear = Ear(self._clock)
        self._ears.append(ear)
        return ear

    def ring(self) -> None:
        """Tell every listener. Only from the loop's own thread."""
        self.rings += 1
        for ear in self._ears:
            ear.hear()

    async def wait(self, timeout_s: float) -> bool:
        """As `Ear.wait`, for a program with a single listener."""
        return await self._own.wait(timeout_s)

    async def watch(self) -> None:
        """Look for the commits of others until cancelled; the supervisor keeps it alive.

        Rings once at its start, because nobody looked until now. Raises `Unavailable` when the database is away.
        """
        await self._look()
        self.ring()
        while True:
            await self._clock.sleep(LOOK_EVERY_S)
            if await self._look():
                self.ring()


class SqliteEar:
    """Looks at the change counter of the one writing connection: it moves only with the commits of others."""

    def __init__(self) -> None:
        self._seen: int | None = None

    def look(self, cursor: Any) -> bool:
        """Whether the counter moved since the last look."""
        cursor.execute("PRAGMA data_version")
        (now,) = cursor.fetchone()
        before, self._seen = self._seen, now
        return before is not None and before != now

    def close(self) -> None:
        """Nothing is held."""


class PostgresEar:
    """Collects the notifications that came in since the last look, on a connection of its own."""

    def __init__(self, url: URL, own_name: str) -> None:
        """`own_name`: payload of this store's rings, which it has heard already."""
        self._dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._own_name = own_name
        self._connection: psycopg.Connection | None = None

    def look(self) -> bool:
        """Whether another store rang. Raises `Unavailable` when the database is away; the next look connects anew."""
        import psycopg  # noqa: PLC0415 - a server on SQLite starts without it

        try:
            if self._connection is None:
                self._connection = psycopg.connect(self._dsn, autocommit=True, connect_timeout=5)
                self._connection.execute(f"LISTEN {CHANNEL}")
                return True  # what rang before is not known
            notes = list(self._connection.notifies(timeout=0))  # all of them: what is left behind is lost
        except psycopg.Error as error:
            self.close()
            raise Unavailable("store_unavailable") from error
        return any(note.payload != self._own_name for note in notes)

    def close(self) -> None:
        """Hang up. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
