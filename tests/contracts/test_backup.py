"""Yesterday's archive is put back: what comes with it, what is refused, and that nodes will obey again."""

import asyncio
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from broadcast_server.domain.clock import Clock
from broadcast_server.domain.errors import Conflict, Corrupt
from broadcast_server.store import audit, backup, facts, leases, migrations
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import AssetRow, UnitKindRow, UnitRow, UserRow
from broadcast_server.supervise import Executor, InlineExecutor, SystemChance
from tests.support.clock import FakeClock
from tests.support.database import a_store
from tests.support.postgres import PrivatePostgres

SOUND = b"OggS a short announcement"
HASH = hashlib.sha256(SOUND).hexdigest()
NOON = datetime(2026, 6, 1, 5, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Desk:
    store: Store
    executor: Executor
    clock: Clock


@dataclass
class Machine:
    """A server's database and data directory."""

    data_dir: Path
    url: str
    clock: FakeClock

    async def restore(self, archive: Path, *, force: bool = False) -> backup.Archive:
        return await backup.restore(
            archive,
            self.data_dir,
            self.url,
            clock=self.clock,
            chance=SystemChance(),
            executor=InlineExecutor(),
            force=force,
        )


def fill(session: Session) -> None:
    session.add_all(
        [
            UnitKindRow(code="commune", name_vi="Xã", name_en="Commune"),
            UserRow(id="u1", login="lan", name="Lan", created_at=NOON, disabled_at=None),
        ]
    )
    session.flush()
    session.add(UnitRow(id="x1", kind="commune", name="Xã Một", name_folded="xa mot", created_at=NOON))
    session.flush()
    session.add(
        AssetRow(
            sha256=HASH,
            unit_id="x1",
            label="Bản tin",
            size_bytes=len(SOUND),
            duration_ms=2_000,
            report={},
            cues=[],
            created_at=NOON,
            keep_until=None,
        )
    )
    leases.acquire(session, leases.LEADER, "old", now=NOON)
    audit.append(session, now=NOON, actor="lan", verb="x.y", unit_id="x1", subject="x/1")


@pytest_asyncio.fixture
async def live(tmp_path: Path, empty_url: str) -> AsyncIterator[tuple[Desk, Path]]:
    data_dir = tmp_path if empty_url.startswith("sqlite") else tmp_path / "data"
    (data_dir / "keys").mkdir(parents=True)
    (data_dir / "keys" / "root.key").write_bytes(b"\x01" * 32)
    (data_dir / "quarantine").mkdir()
    (data_dir / "quarantine" / "upload").write_bytes(b"not judged yet")
    (data_dir / "settings.env").write_text("LOA_HTTP__PORT=8080\n")
    sound = data_dir / "assets" / HASH[:2] / f"{HASH}.opus"
    sound.parent.mkdir(parents=True)
    sound.write_bytes(SOUND)
    async with a_store(empty_url, create=False) as store:
        migrations.migrate(store.engine)
        await store.begin(fill)
        yield Desk(store, InlineExecutor(), store.clock), data_dir


@pytest.fixture
def fresh(request: pytest.FixtureRequest, tmp_path: Path, empty_url: str) -> Machine:
    """A second machine with the same kind of database, empty."""
    data_dir = tmp_path / "second machine"
    url = f"sqlite:///{data_dir / 'loa.sqlite'}"
    if empty_url.startswith("postgresql"):
        running: PrivatePostgres = request.getfixturevalue("postgres")
        url = running.new_database()
    return Machine(data_dir, url, FakeClock(datetime(2026, 6, 2, 5, 0, tzinfo=UTC)))


async def test_rows_keys_and_sounds_come_back_on_an_empty_machine(
    live: tuple[Desk, Path], fresh: Machine, tmp_path: Path
):
    desk, data_dir = live
    target = tmp_path / "out" / "loa.tar"
    made = await backup.write(desk, data_dir, target)
    assert (made.assets, made.assets_inside, made.revision) == (1, 1, migrations.head())
    assert target.stat().st_mode & 0o777 == 0o600

    await fresh.restore(target)

    assert (fresh.data_dir / "keys" / "root.key").read_bytes() == b"\x01" * 32
    assert (fresh.data_dir / "keys" / "root.key").stat().st_mode & 0o777 == 0o600
    assert (fresh.data_dir / "assets" / HASH[:2] / f"{HASH}.opus").read_bytes() == SOUND
    assert (fresh.data_dir / "settings.env").exists()
    assert not (fresh.data_dir / "quarantine").exists()
    async with a_store(fresh.url, create=False) as store:
        migrations.check_current(store.engine)
        assert (await store.read(lambda session: session.get_one(UserRow, "u1"))).name == "Lan"
        assert await store.read(audit.verify) is None


async def test_after_a_restore_the_epoch_is_above_what_nodes_saw_since(
    live: tuple[Desk, Path], fresh: Machine, tmp_path: Path
):
    desk, data_dir = live
    await backup.write(desk, data_dir, tmp_path / "loa.tar")
    await fresh.restore(tmp_path / "loa.tar")

    async with a_store(fresh.url, create=False, clock=fresh.clock) as store:
        lease = await store.begin(lambda session: leases.acquire(session, leases.LEADER, "new", now=fresh.clock.now()))
        told = await store.read(lambda session: facts.find(session, backup.RESTORED))
    assert lease is not None, "the lease in the archive must not keep the new server waiting"
    assert lease.epoch > backup.EPOCH_LEAP
    assert told is not None
    assert told["at"] == fresh.clock.now().isoformat()


async def test_data_that_is_there_is_replaced_only_by_force_and_kept_aside(
    live: tuple[Desk, Path], fresh: Machine, tmp_path: Path
):
    desk, data_dir = live
    await backup.write(desk, data_dir, tmp_path / "loa.tar")
    await fresh.restore(tmp_path / "loa.tar")

    with pytest.raises(Conflict, match="target_not_empty"):
        await fresh.restore(tmp_path / "loa.tar")

    await fresh.clock.advance(1)
    await fresh.restore(tmp_path / "loa.tar", force=True)
    if desk.store.dialect == "sqlite":
        assert len(list(fresh.data_dir.glob("replaced-*/loa.sqlite"))) == 1


async def test_a_server_that_leads_is_never_restored_over(live: tuple[Desk, Path], fresh: Machine, tmp_path: Path):
    desk, data_dir = live
    await backup.write(desk, data_dir, tmp_path / "loa.tar")
    await fresh.restore(tmp_path / "loa.tar")
    async with a_store(fresh.url, create=False) as store:
        await store.begin(lambda session: leases.acquire(session, leases.LEADER, "alive", now=fresh.clock.now()))

    with pytest.raises(Conflict, match="server_running"):
        await fresh.restore(tmp_path / "loa.tar", force=True)


async def test_a_backup_is_one_moment_although_the_server_writes_on(
    live: tuple[Desk, Path], fresh: Machine, tmp_path: Path
):
    """Every commit writes two audit rows; a copy never holds an odd number."""
    desk, data_dir = live
    is_over = False

    def two(session: Session) -> None:
        for _ in range(2):
            audit.append(session, now=NOON, actor="lan", verb="x.y", unit_id="x1", subject="x/1")

    async def write_on() -> None:
        while not is_over:
            await desk.store.begin(two)
            await asyncio.sleep(0)

    writer = asyncio.create_task(write_on(), name="writer")
    for number in range(3):
        await asyncio.sleep(0)
        await backup.write(desk, data_dir, tmp_path / f"{number}.tar", with_assets=False)
    is_over = True
    await writer
    await fresh.restore(tmp_path / "2.tar")

    async with a_store(fresh.url, create=False) as store:
        assert await store.read(audit.verify) is None
        rows = await store.read(lambda session: session.query(audit.AuditRow).count())
    assert rows % 2 == 0  # one from the start, two by two, one of the restore itself


async def test_nightly_archives_are_few_and_without_sounds(live: tuple[Desk, Path]):
    desk, data_dir = live
    clock = desk.clock
    assert isinstance(clock, FakeClock)
    for _ in range(backup.KEPT + 2):
        path = Path(await backup.back_up(desk, data_dir))
        await clock.advance(86_400)

    kept = sorted((data_dir / "backups").iterdir())
    assert len(kept) == backup.KEPT
    assert kept[-1] == path
    with tarfile.open(path) as archive:
        names = archive.getnames()
        manifest = json.loads(archive.extractfile("manifest.json").read())  # type: ignore[union-attr]
    assert not any(name.startswith(("assets/", "data/backups", "data/quarantine")) for name in names)
    assert manifest["assets"] == {HASH: len(SOUND)}


def tampered(source: Path, target: Path, name: str, content: bytes | str | None) -> None:
    """A copy of the archive in which one member is changed, or left out, or added; a text makes it a link to there."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            if member.name != name:
                new.addfile(member, old.extractfile(member))
        info = tarfile.TarInfo(name)
        if isinstance(content, str):
            info.type, info.linkname = tarfile.SYMTYPE, content
            new.addfile(info)
        elif content is not None:
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data/keys/root.key", b"\x02" * 32),
        ("data/keys/root.key", None),
        (f"assets/{HASH[:2]}/{HASH}.opus", b"another sound"),
        ("data/keys/planted.key", b"\x03" * 32),
        ("../escape", b"outside"),
        ("/escape", b"outside"),
        ("data/keys/root.key", "/etc/hostname"),
        ("data/planted", "/etc"),
        ("manifest.json", b"{}"),
        ("manifest.json", None),
    ],
)
async def test_a_damaged_or_forged_archive_changes_nothing(tmp_path: Path, name: str, content: bytes | str | None):
    data_dir = tmp_path / "live"
    async with a_store(f"sqlite:///{tmp_path / 'loa.sqlite'}", create=False) as store:
        migrations.migrate(store.engine)
        await store.begin(fill)
        (data_dir / "keys").mkdir(parents=True)
        (data_dir / "keys" / "root.key").write_bytes(b"\x01" * 32)
        sound = data_dir / "assets" / HASH[:2] / f"{HASH}.opus"
        sound.parent.mkdir(parents=True)
        sound.write_bytes(SOUND)
        await backup.write(Desk(store, InlineExecutor(), store.clock), data_dir, tmp_path / "good.tar")
    tampered(tmp_path / "good.tar", tmp_path / "bad.tar", name, content)
    machine = Machine(tmp_path / "second", f"sqlite:///{tmp_path / 'second' / 'loa.sqlite'}", FakeClock())

    with pytest.raises(Corrupt, match="backup_damaged"):
        await machine.restore(tmp_path / "bad.tar")

    assert list(machine.data_dir.iterdir()) == []
    assert not (tmp_path / "escape").exists()


async def test_an_archive_is_never_written_over(live: tuple[Desk, Path], tmp_path: Path):
    desk, data_dir = live
    (tmp_path / "loa.tar").write_bytes(b"mine")

    with pytest.raises(Conflict, match="backup_exists"):
        await backup.write(desk, data_dir, tmp_path / "loa.tar")
    assert (tmp_path / "loa.tar").read_bytes() == b"mine"
