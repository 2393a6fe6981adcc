"""A private PostgreSQL for one test session: its own directory, a unix socket, no port, nothing kept.

It runs where the server binaries are installed, as an ordinary user because PostgreSQL refuses root; elsewhere the
tests that need it are skipped with the reason `why_not` gives.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql

STARTS_WITHIN_S = 30


def binaries() -> Path | None:
    """The newest installed PostgreSQL's programs."""
    found = sorted(
        (path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")),
        key=lambda path: float(path.parent.name),
    )
    if found:
        return found[-1]
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path and shutil.which("postgres") else None


def why_not() -> str | None:
    """Why there is no PostgreSQL here, or None."""
    if binaries() is None:
        return "PostgreSQL's server binaries are not installed"
    if os.geteuid() == 0 and (_ordinary_user() is None or shutil.which("setpriv") is None):
        return "PostgreSQL refuses root, and there is no ordinary user or no setpriv to run it as"
    return None


@dataclass(slots=True)
class PrivatePostgres:
    """A running server; every test gets an empty database of its own."""

    directory: Path
    _count: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def url(self, database: str) -> str:
        return f"postgresql://loa@/{database}?host={self.directory}"

    def new_database(self, template: str = "template0") -> str:
        """Address of a new database, a copy of `template`."""
        name = f"test_{next(self._count)}"
        self.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        return self.url(name)

    def drop(self, url: str) -> None:
        name = url.split("?", maxsplit=1)[0].rsplit("/", 1)[1]
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def execute(self, statement: sql.Composable) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def private_postgres() -> Iterator[PrivatePostgres]:
    """Start one, yield it, stop it by its pid."""
    programs = binaries()
    assert programs is not None
    directory = Path(tempfile.mkdtemp(prefix="loa-pg-"))
    user = _ordinary_user() if os.geteuid() == 0 else None
    become: list[str] = []
    if user is not None:
        os.chown(directory, user.pw_uid, user.pw_gid)
        become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    data = directory / "data"
    try:
        subprocess.run(
            [
                *become,
                programs / "initdb",
                "-D",
                data,
                "-U",
                "loa",
                "--auth=trust",
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C",
            ],
            check=True,
            capture_output=True,
            cwd="/",
        )
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(directory),
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_connections": "60",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (directory / "log").open("wb") as log:
            server = subprocess.Popen(
                [
                    *become,
                    *(["setpriv", "--pdeathsig=INT"] if become else []),
                    programs / "postgres",
                    "-D",
                    data,
                    *options,
                ],
                stdout=log,
                stderr=log,
                cwd="/",
            )
        try:
            postgres = PrivatePostgres(directory)
            _wait_for(postgres, server)
            yield postgres
        finally:
            server.send_signal(signal.SIGINT)  # "fast": ends sessions and goes
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _wait_for(postgres: PrivatePostgres, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            psycopg.connect(postgres.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((postgres.directory / "log").read_text()) from None
            time.sleep(0.05)
        else:
            return


def _ordinary_user() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None
