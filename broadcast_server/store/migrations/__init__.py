"""The shape of the database, as one chain of revisions: `versions/NNNN_name.py`, the highest number is the head.

A maintainer must not break: (1) a start-up only compares two short texts (`check_current`); alembic is imported by
`migrate` alone, because importing it costs more than the check may; (2) a migration runs in one transaction on both
dialects and by one process at a time; (3) revisions name plain column types, not ours, so that an old revision means
the same for ever; (4) what the chain builds from nothing equals the tables (a test compares both on both dialects).

A new revision: change `store/tables.py`, then `python -m broadcast_server.store.migrations.make "add gain to feeds"`.
Until the first release there is one revision, made anew by `… .make --initial`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from broadcast_server.domain.errors import Conflict
from broadcast_server.store.session import opened

if TYPE_CHECKING:
    from alembic.config import Config

HERE: Final = Path(__file__).parent
VERSIONS: Final = HERE / "versions"
TABLE: Final = "alembic_version"


def head() -> str:
    """The revision this program works with."""
    return max(path.name[:4] for path in VERSIONS.glob("[0-9][0-9][0-9][0-9]_*.py"))


def current(engine: Engine) -> str | None:
    """The revision the database is at; None where nothing was ever built. Raises SQLAlchemy's error when it is away."""
    with engine.connect() as connection:
        try:
            found: str | None = connection.execute(text(f"SELECT version_num FROM {TABLE}")).scalar()  # noqa: S608
        except (OperationalError, ProgrammingError) as error:
            if "no such table" in str(error.orig) or getattr(error.orig, "sqlstate", None) == "42P01":
                return None
            raise
        return found


def check_current(engine: Engine) -> None:
    """Return if the database is at the head.

    Raises `Conflict`: `store_not_migrated` where it is older or empty (the fix is `broadcast-server migrate`),
    `store_newer` where a newer program has been at it.
    """
    found, wanted = current(engine), head()
    if found == wanted:
        return
    if found is not None and found > wanted:
        raise Conflict("store_newer", found=found, wanted=wanted, fix="install_newer_program")
    raise Conflict("store_not_migrated", found=found, wanted=wanted, fix="run_migrate")


def migrate(where: str | Engine, to: str = "head") -> str:
    """Bring a database (its address, or an engine) to the head, or to `to` (a revision or `base`); returns the head.

    Cheap when there is nothing to do. Raises `Conflict("store_newer")` before it touches a database that a newer
    program has been at, and `Unavailable` when the database is away.
    """
    if isinstance(where, str):
        with opened(where) as engine:
            return migrate(engine, to)
    wanted, found = head(), current(where)
    if found is not None and found > wanted:
        raise Conflict("store_newer", found=found, wanted=wanted, fix="install_newer_program")
    if to != "head" or found != wanted:
        with where.connect() as connection:
            _run(connection, to)
    return wanted


def _run(connection: Connection, to: str) -> None:
    from alembic import command  # noqa: PLC0415 - see (1)

    is_sqlite = connection.dialect.name == "sqlite"
    if is_sqlite:  # a table that is rebuilt must not take its children along; only possible outside of a transaction
        connection.connection.driver_connection.execute("PRAGMA foreign_keys=OFF")  # type: ignore[union-attr]
    try:
        with connection.begin():
            if not is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(7105)"))
            config = alembic_config(connection)
            at = connection.scalar(text(f"SELECT version_num FROM {TABLE}")) if _has_table(connection) else None  # noqa: S608
            is_down = to == "base" or (to != "head" and at is not None and to < at)
            (command.downgrade if is_down else command.upgrade)(config, to)
            if is_sqlite:
                broken = connection.execute(text("PRAGMA foreign_key_check")).first()
                if broken is not None:
                    raise Conflict("reference_broken", what=str(broken[0]))
    finally:
        if is_sqlite:
            connection.connection.driver_connection.execute("PRAGMA foreign_keys=ON")  # type: ignore[union-attr]


def _has_table(connection: Connection) -> bool:
    return connection.dialect.has_table(connection, TABLE)


def alembic_config(connection: Connection) -> Config:
    """Alembic's own settings, without a file: where the revisions lie and on which connection to work."""
    from alembic.config import Config  # noqa: PLC0415 - see (1)

    config = Config()
    config.set_main_option("script_location", str(HERE))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
