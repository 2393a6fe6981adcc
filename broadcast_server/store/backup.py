"""Everything that must survive the machine, in one archive: the rows, the keys, the list of sounds (and the sounds).

A maintainer must not break: (1) the copy of the rows is one consistent snapshot, taken while the server runs (SQLite's
online backup, `pg_dump`); (2) the archive holds private keys, so it is made with mode 0600, appears whole or not at
all, and is read back as plain files inside one folder, every hash checked; (3) nothing is restored over a server that
leads at this moment, and over existing data only by force; (4) a restored database knows nothing of what was signed
since, so its epoch leaps by `EPOCH_LEAP`: nodes obey the higher epoch (and the conductor rises further if a node shows
more).
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

from sqlalchemy import inspect, select
from sqlalchemy.engine import URL

from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import Conflict, Corrupt, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.store import audit, facts, leases, migrations
from broadcast_server.store.session import Session, Store, engine_url, opened
from broadcast_server.store.tables import AssetRow, LeaseRow
from broadcast_server.supervise import Executor

log = get_logger()

FORMAT: Final = 1
EPOCH_LEAP: Final = 100_000
KEPT: Final = 7
"""Nightly archives that stay."""
RESTORED: Final = "restored"
"""The fact a restore leaves: `{at, made_at}`."""

_MANIFEST: Final = "manifest.json"
_DATABASE: Final = {"sqlite": "loa.sqlite", "postgresql": "loa.pgdump"}
_NOT_KEPT: Final = frozenset({"assets", "quarantine", "backups", "broker", "tls"})
"""Folders of the data directory that are not copied: made anew at start, or treated apart."""
_DUMP_TIMEOUT_S: Final = 3_600


class DeskLike(Protocol):
    """What a backup needs of the desk (which lies in a layer above)."""

    @property
    def store(self) -> Store:
        """The rows."""
        ...

    @property
    def executor(self) -> Executor:
        """Where files are copied."""
        ...

    @property
    def clock(self) -> Clock:
        """Dates the archive."""
        ...


@dataclass(frozen=True, slots=True)
class Archive:
    """What was written or read back."""

    path: str
    made_at: str
    revision: str
    files: int
    assets: int
    """Sounds that the rows know."""
    assets_inside: int
    """Those whose bytes are in the archive."""
    size_bytes: int


async def back_up(desk: DeskLike, data_dir: Path) -> str:
    """The nightly job: an archive without sounds in `data_dir/backups`, the newest `KEPT` stay; returns its path."""
    folder = data_dir / "backups"
    stamp = desk.clock.now().astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    made = await write(desk, data_dir, folder / f"loa-{stamp}.tar", with_assets=False)

    def forget() -> None:
        for old in sorted(folder.glob("loa-*.tar"))[:-KEPT]:
            old.unlink()

    await desk.executor.run(forget)
    return made.path


async def write(desk: DeskLike, data_dir: Path, target: Path, *, with_assets: bool = True) -> Archive:
    """Write an archive to `target`; the server may run meanwhile.

    Raises `Conflict("backup_exists")`, `Unavailable` (`program_missing` without pg_dump, `backup_failed`,
    `disk_full`).
    """
    known = await desk.store.read(
        lambda session: [
            (row.sha256, row.size_bytes) for row in session.execute(select(AssetRow.sha256, AssetRow.size_bytes))
        ]
    )
    now = desk.clock.now()
    try:
        return await desk.executor.run(_write, desk.store.url, data_dir, target, sorted(known), now, with_assets)
    except OSError as error:
        raise Unavailable("disk_full" if error.errno == errno.ENOSPC else "backup_failed", path=str(target)) from error


def _write(
    url: URL, data_dir: Path, target: Path, known: list[tuple[str, int]], now: datetime, with_assets: bool
) -> Archive:
    if target.exists():
        raise Conflict("backup_exists", path=str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".backup-") as scratch:
        rows = Path(scratch) / _DATABASE[url.get_backend_name()]
        _dump(url, rows)
        with opened(url.render_as_string(hide_password=False)) as engine:
            revision = migrations.current(engine) or ""
        members = [(rows, rows.name), *((path, f"data/{name}") for path, name in _kept_files(data_dir, url))]
        sounds = [
            (path, f"assets/{sha256[:2]}/{path.name}")
            for sha256, _ in known
            if with_assets and (path := _sound(data_dir, sha256)) is not None
        ]
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "made_at": now.isoformat(),
            "revision": revision,
            "dialect": url.get_backend_name(),
            "files": {name: _sha256(path) for path, name in members},
            "assets": dict(known),
        }
        half = Path(scratch) / "archive.tar"
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                text = json.dumps(manifest, ensure_ascii=False, indent=1).encode()
                head = tarfile.TarInfo(_MANIFEST)
                head.size, head.mtime, head.mode = len(text), int(now.timestamp()), 0o600
                archive.addfile(head, io.BytesIO(text))
                for path, name in [*members, *sounds]:
                    archive.add(path, name, recursive=False)
            file.flush()
            os.fsync(file.fileno())
        half.rename(target)
    return Archive(
        path=str(target),
        made_at=manifest["made_at"],
        revision=revision,
        files=len(members),
        assets=len(known),
        assets_inside=len(sounds),
        size_bytes=target.stat().st_size,
    )


def _dump(url: URL, target: Path) -> None:
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(str(url.database))) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)  # in one step: readers and writers of a WAL database go on meanwhile
            copy.execute("PRAGMA journal_mode=DELETE")
            (verdict,) = copy.execute("PRAGMA quick_check").fetchone()
            if verdict != "ok":
                raise Corrupt("store_corrupt", said=str(verdict)[:200])
        return
    _run_postgres(url, "pg_dump", ["--format=custom", "--no-owner", "--no-acl", f"--file={target}"])


def _run_postgres(url: URL, program: str, arguments: list[str]) -> None:
    found = shutil.which(program)
    if found is None:
        raise Unavailable("program_missing", program=program, fix="install_postgresql_client")
    address = url.set(drivername="postgresql", password=None).render_as_string()
    environment = {**os.environ, "PGPASSWORD": url.password} if url.password else dict(os.environ)
    try:
        done = subprocess.run(
            [found, f"--dbname={address}", *arguments],
            env=environment,
            capture_output=True,
            timeout=_DUMP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable("backup_failed", program=program, said=["timed out"]) from None
    if done.returncode != 0:
        raise Unavailable("backup_failed", program=program, said=done.stderr.decode(errors="replace").splitlines()[-3:])


def _kept_files(data_dir: Path, url: URL) -> Iterator[tuple[Path, str]]:
    keys = data_dir / "keys"
    if not keys.exists() or not os.access(keys, os.R_OK | os.X_OK):
        log.warning("backup.without_keys", keys=str(keys))  # they are the signer's alone, or lie elsewhere
    database = Path(url.database or "").name if url.get_backend_name() == "sqlite" else None
    for path in sorted(data_dir.rglob("*")):
        name = path.relative_to(data_dir)
        is_rows = database is not None and len(name.parts) == 1 and name.name.startswith(database)
        if path.is_symlink() or not path.is_file() or name.parts[0] in _NOT_KEPT or is_rows:
            continue
        yield path, name.as_posix()


def _sound(data_dir: Path, sha256: str) -> Path | None:
    path = data_dir / "assets" / sha256[:2] / f"{sha256}.opus"
    return path if path.is_file() and not path.is_symlink() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- the way back -----------------------------------------------------------------------------------------------------


async def restore(
    archive: Path,
    data_dir: Path,
    url: str,
    *,
    clock: Clock,
    chance: Chance,
    executor: Executor,
    force: bool = False,
) -> Archive:
    """Put an archive back in place of what is there; afterwards the database is at this program's revision.

    Raises `Conflict`: `target_not_empty` (unless `force`), `server_running` (even then), `store_newer`,
    `other_dialect`; `Corrupt("backup_damaged")`; `Unavailable` as `write` does. What was there before is kept beside
    it under `replaced-…` (SQLite).
    """
    now = clock.now()
    found = await executor.run(_restore, archive, data_dir, engine_url(url), now, force)
    await executor.run(migrations.migrate, url)
    store = Store(url, clock=clock, chance=chance, executor=executor)

    def mark(session: Session) -> None:
        row = session.get(LeaseRow, leases.LEADER)
        if row is not None:
            row.holder, row.expires_at = "", now
        leases.raise_above(session, leases.LEADER, (0 if row is None else row.epoch) + EPOCH_LEAP, now=now)
        facts.put(session, RESTORED, {"at": now.isoformat(), "made_at": found.made_at}, now=now)
        audit.append(
            session,
            now=now,
            actor="operator",
            verb=audit.RESTORED,
            unit_id=None,
            subject=f"backup/{archive.name}",
            detail={"made_at": found.made_at, "revision": found.revision},
        )

    try:
        await store.begin(mark)
    finally:
        await store.close()
    return found


def _restore(archive: Path, data_dir: Path, url: URL, now: datetime, force: bool) -> Archive:
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".restore-") as scratch_name:
        scratch = Path(scratch_name)
        manifest = _unpack(archive, scratch)
        if manifest["revision"] > migrations.head():
            raise Conflict(
                "store_newer", found=manifest["revision"], wanted=migrations.head(), fix="install_newer_program"
            )
        dialect = url.get_backend_name()
        if manifest["dialect"] != dialect:
            raise Conflict("other_dialect", found=manifest["dialect"], wanted=dialect)
        _refuse_if_in_use(data_dir, url, now, force=force)
        rows = scratch / _DATABASE[dialect]
        if dialect == "sqlite":
            _replace_sqlite(rows, Path(str(url.database)), data_dir / f"replaced-{now:%Y%m%dT%H%M%SZ}")
        else:
            _run_postgres(
                url, "pg_restore", ["--clean", "--if-exists", "--no-owner", "--single-transaction", str(rows)]
            )
        _put_files(scratch / "data", data_dir, mode=0o600)
        sounds = _put_files(scratch / "assets", data_dir / "assets", mode=0o644)
    return Archive(
        path=str(archive),
        made_at=manifest["made_at"],
        revision=manifest["revision"],
        files=len(manifest["files"]),
        assets=len(manifest["assets"]),
        assets_inside=sounds,
        size_bytes=archive.stat().st_size,
    )


def _unpack(archive: Path, scratch: Path) -> dict[str, Any]:
    try:
        with tarfile.open(archive, mode="r:") as tar:
            _extract(tar, scratch)
        manifest = json.loads((scratch / _MANIFEST).read_text(encoding="utf-8"))
        files, assets = dict(manifest["files"]), dict(manifest["assets"])
        told = {name: str(manifest[name]) for name in ("made_at", "revision", "dialect")}
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise Unavailable("disk_full") from error
        raise Corrupt("backup_damaged", path=str(archive), cause=type(error).__name__) from error
    if manifest.get("format") != FORMAT:
        raise Corrupt("backup_damaged", path=str(archive), cause="format")
    inside = {path.relative_to(scratch).as_posix(): path for path in scratch.rglob("*") if path.is_file()}
    sounds = {name: path for name, path in inside.items() if name.startswith("assets/")}
    wrong = next(
        (
            name
            for name, path in inside.items()
            if name != _MANIFEST and _sha256(path) != (path.stem if name in sounds else files.get(name))
        ),
        None,
    ) or next((name for name in files if name not in inside), None)
    if wrong is not None:
        raise Corrupt("backup_damaged", path=str(archive), cause=wrong)
    return {**told, "files": files, "assets": assets}


def _extract(tar: tarfile.TarFile, scratch: Path) -> None:
    """Regular files under names that stay inside, as `write` makes them; anything else raises `ValueError`.

    tarfile's own `data` filter is not there before Python 3.11.4, and Debian 12 has 3.11.2.
    """
    for member in tar:
        name = PurePosixPath(member.name)
        content = tar.extractfile(member) if member.isreg() else None
        if content is None or name.is_absolute() or ".." in name.parts:
            raise ValueError(member.name)
        place = scratch / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with content, place.open("xb") as file:
            shutil.copyfileobj(content, file)


def _refuse_if_in_use(data_dir: Path, url: URL, now: datetime, *, force: bool) -> None:
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        has_rows = False
    else:
        with opened(url.render_as_string(hide_password=False)) as engine:
            has_rows = bool(inspect(engine).get_table_names())
            if inspect(engine).has_table(LeaseRow.__tablename__):
                with Session(engine) as session:
                    lease = leases.look(session, leases.LEADER)
                if lease is not None and lease.holder and lease.holds_at(now):
                    raise Conflict("server_running", holder=lease.holder, fix="stop_server")
    has_keys = any((data_dir / "keys").glob("*"))
    if (has_rows or has_keys) and not force:
        raise Conflict("target_not_empty", path=str(data_dir), fix="use_force")


def _replace_sqlite(rows: Path, target: Path, aside: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    old = [path for suffix in ("", "-wal", "-shm") if (path := Path(f"{target}{suffix}")).exists()]
    if old:
        aside.mkdir(mode=0o700)
        for path in old:
            path.rename(aside / path.name)
    rows.rename(target)


def _put_files(source: Path, target: Path, *, mode: int) -> int:
    count = 0
    for path in sorted(source.rglob("*")):
        if not path.is_file():
            continue
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if mode == 0o600 else 0o755)
        path.chmod(mode)
        path.replace(place)
        count += 1
    return count
