"""One contract for both dialects: what `Store`, the audit chain and the typed errors promise."""

import asyncio
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select, text, update

from broadcast_server.domain.errors import Conflict, Corrupt, Invalid, NotFound, Unavailable
from broadcast_server.store import audit
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import AuditRow, GrantRow, UnitKindRow, UnitRow, UserRow
from broadcast_server.store.words import Role
from broadcast_server.supervise import ThreadExecutor
from tests.support.audit import take_the_guards_away
from tests.support.database import a_store

NOON = datetime(2026, 6, 1, 5, 0, tzinfo=UTC)


def a_user(login: str = "lan", user_id: str = "u1") -> UserRow:
    return UserRow(id=user_id, login=login, name="Chị Lan", created_at=NOON, disabled_at=None)


def logins(session: Session) -> list[str]:
    return list(session.scalars(select(UserRow.login).order_by(UserRow.login)))


async def test_what_is_begun_is_committed_and_stays_readable(store: Store):
    def register(session: Session) -> UserRow:
        user = a_user()
        session.add(user)
        return user

    user = await store.begin(register)

    assert (user.login, user.created_at) == ("lan", NOON)
    read = await store.read(lambda session: session.get_one(UserRow, "u1"))
    assert (read.name, read.created_at, read.disabled_at) == ("Chị Lan", NOON, None)


async def test_any_error_takes_everything_back_and_rings_nobody(store: Store):
    def half(session: Session) -> None:
        session.add(a_user())
        session.flush()
        raise NotFound("unknown_unit", unit_id="x")

    with pytest.raises(NotFound, match="unknown_unit"):
        await store.begin(half)

    await asyncio.sleep(0)
    assert await store.read(logins) == []
    assert store.doorbell.rings == 0


async def test_a_reader_changes_nothing(store: Store):
    def meddle(session: Session) -> None:
        session.add(a_user())

    await store.read(meddle)

    assert await store.read(logins) == []


async def test_a_commit_rings_unless_it_is_told_not_to(store: Store):
    await store.begin(lambda session: session.add(a_user("lan", "u1")), ring=False)
    await asyncio.sleep(0)
    assert store.doorbell.rings == 0

    await store.begin(lambda session: session.add(a_user("mai", "u2")))
    await asyncio.sleep(0)
    assert store.doorbell.rings == 1


async def test_the_same_login_twice_is_a_conflict_that_names_it(store: Store):
    await store.begin(lambda session: session.add(a_user("lan", "u1")))

    with pytest.raises(Conflict) as refused:
        await store.begin(lambda session: session.add(a_user("lan", "u2")))

    assert refused.value.code == "duplicate"
    assert "login" in refused.value.facts["what"]
    assert await store.read(logins) == ["lan"]


async def test_a_grant_to_nobody_is_a_conflict(store: Store):
    def grant(session: Session) -> None:
        session.add(
            GrantRow(id="g1", user_id="nobody", role=Role.ADMIN, unit_id="nowhere", valid_from=NOON, valid_to=None)
        )

    with pytest.raises(Conflict) as refused:
        await store.begin(grant)

    assert refused.value.code == "reference_broken"


async def test_a_naive_time_never_reaches_a_row(store: Store):
    user = a_user()
    user.created_at = datetime(2026, 6, 1, 5, 0)  # noqa: DTZ001 - the fault under test

    with pytest.raises(Invalid) as refused:
        await store.begin(lambda session: session.add(user))

    assert refused.value.code == "naive_time"


async def test_a_word_nobody_knows_is_corrupt_not_passed_on(store: Store):
    def plant(session: Session) -> None:
        session.add_all([UnitKindRow(code="commune", name_vi="Xã", name_en="Commune"), a_user()])
        session.flush()
        session.add(UnitRow(id="x1", kind="commune", name="Xã Một", name_folded="xa mot", created_at=NOON))
        session.flush()
        session.add(GrantRow(id="g1", user_id="u1", role=Role.ADMIN, unit_id="x1", valid_from=NOON, valid_to=None))
        session.flush()
        session.execute(text("UPDATE grants SET role = 'emperor'"))

    await store.begin(plant)

    with pytest.raises(Corrupt, match="unknown_word"):
        await store.read(lambda session: session.get(GrantRow, "g1"))


async def test_a_hundred_writers_at_once_lose_no_update(store_url: str):
    executor = ThreadExecutor(8, name="store")
    async with a_store(store_url, create=False, executor=executor) as store:
        await store.begin(lambda session: session.add(a_user("0")))

        def count_up(session: Session) -> None:
            user = session.get_one(UserRow, "u1")
            user.login = str(int(user.login) + 1)

        async with asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(store.begin(count_up), name=f"writer[{number}]")

        assert await store.read(logins) == ["100"]
    executor.close()


async def test_two_stores_on_one_database_take_turns(store_url: str):
    """A command line next to the server: both check, then write."""
    executor = ThreadExecutor(4, name="store")
    async with (
        a_store(store_url, create=False, executor=executor) as server,
        a_store(store_url, create=False, executor=executor) as command,
    ):
        await server.begin(lambda session: session.add(a_user("0")))

        def count_up(session: Session) -> None:
            user = session.get_one(UserRow, "u1")
            user.login = str(int(user.login) + 1)

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(server.begin(count_up), name=f"server[{number}]")
                group.create_task(command.begin(count_up), name=f"command[{number}]")

        assert await command.read(logins) == ["40"]
    executor.close()


async def test_a_caller_that_gives_up_does_not_swallow_the_ring_of_its_commit(store_url: str):
    executor = ThreadExecutor(2, name="store")
    async with a_store(store_url, create=False, executor=executor) as store:
        in_the_middle, go_on = asyncio.Event(), threading.Event()
        ear = store.doorbell.ear()
        loop = asyncio.get_running_loop()

        def slow(session: Session) -> None:
            session.add(a_user())
            loop.call_soon_threadsafe(in_the_middle.set)
            assert go_on.wait(10)

        caller = asyncio.create_task(store.begin(slow), name="caller")
        await in_the_middle.wait()
        caller.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await caller

        assert await ear.wait(1)
        assert await store.read(logins) == ["lan"]
    executor.close()


async def test_a_database_that_is_not_there_is_unavailable(tmp_path: Path):
    for url in (f"sqlite:///{tmp_path}/no/such/folder/loa.db", f"postgresql://loa@/loa?host={tmp_path}"):
        async with a_store(url, create=False) as store:
            with pytest.raises(Unavailable) as refused:
                await store.read(logins)
            assert refused.value.code == "store_unavailable"


async def test_a_file_that_is_no_database_is_corrupt(tmp_path: Path):
    (tmp_path / "loa.db").write_bytes(b"not a database at all, " * 500)
    async with a_store(f"sqlite:///{tmp_path / 'loa.db'}", create=False) as store:
        with pytest.raises(Corrupt) as refused:
            await store.read(logins)
        assert refused.value.code == "store_corrupt"


async def test_a_full_disk_is_said_as_such_and_nothing_is_half_written(tmp_path: Path):
    async with a_store(f"sqlite:///{tmp_path / 'loa.db'}") as store:
        await store.begin(lambda session: session.add(a_user()))

        def fill(session: Session) -> None:
            pages = session.execute(text("PRAGMA page_count")).scalar_one()
            session.execute(text(f"PRAGMA max_page_count={pages}"))
            session.add_all([a_user(f"{number}" * 50, f"u{number}") for number in range(100, 400)])

        with pytest.raises(Unavailable) as refused:
            await store.begin(fill)

        assert refused.value.code == "disk_full"
        assert await store.read(logins) == ["lan"]


async def test_a_busy_database_is_said_as_such(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'loa.db'}"
    async with a_store(url) as store, a_store(url, busy_timeout_ms=20) as other:

        def meanwhile(session: Session) -> None:
            session.add(a_user())
            session.flush()
            with pytest.raises(Unavailable) as refused:
                other._write(logins, ring=False)
            assert refused.value.code == "store_busy"

        await store.begin(meanwhile)


async def test_an_address_we_do_not_speak_is_refused():
    for url in ("mysql://root@localhost/loa", "no address"):
        with pytest.raises(Invalid, match="database_url"):
            async with a_store(url):
                pass


# -- audit ------------------------------------------------------------------------------------------------------------


def tell(session: Session, number: int) -> int:
    return audit.append(
        session,
        now=NOON,
        actor="lan",
        verb="schedule.cancel",
        unit_id=None,
        subject=f"schedule/{number}",
        detail={"lý do": "mưa bão", "number": number, "gain_db": -3.5},
    )


async def test_the_chain_has_no_gaps_and_holds(store: Store):
    def refused(session: Session) -> None:
        tell(session, 0)
        raise NotFound("unknown_schedule")

    assert await store.begin(lambda session: [tell(session, 1), tell(session, 2)]) == [1, 2]
    with pytest.raises(NotFound):
        await store.begin(refused)
    assert await store.begin(lambda session: tell(session, 3)) == 3

    assert await store.read(audit.verify) is None


@pytest.mark.parametrize(
    "change",
    [{"detail": {"lý do": "nắng"}}, {"actor": "mai"}, {"at": datetime(2026, 6, 1, 5, 0, 0, 1, tzinfo=UTC)}],
    ids=["detail", "actor", "instant"],
)
async def test_a_changed_row_is_found(store: Store, change: dict[str, object]):
    await store.begin(lambda session: [tell(session, number) for number in range(5)])
    take_the_guards_away(store)
    await store.begin(lambda session: session.execute(update(AuditRow).where(AuditRow.sequence == 3).values(change)))

    assert await store.read(audit.verify) == 3


async def test_a_missing_row_is_found(store: Store):
    await store.begin(lambda session: [tell(session, number) for number in range(5)])
    take_the_guards_away(store)
    await store.begin(lambda session: session.delete(session.get_one(AuditRow, 2)))

    assert await store.read(audit.verify) == 2


async def test_fifty_writers_in_two_processes_worth_of_stores_make_one_chain(store_url: str):
    executor = ThreadExecutor(4, name="store")
    async with (
        a_store(store_url, create=False, executor=executor) as server,
        a_store(store_url, create=False, executor=executor) as command,
    ):
        async with asyncio.TaskGroup() as group:
            for number in range(25):
                for name, opened in (("server", server), ("command", command)):
                    work = opened.begin(lambda session, number=number: tell(session, number))
                    group.create_task(work, name=f"{name}[{number}]")

        assert await server.read(audit.verify) is None
        assert await server.read(lambda session: session.get(AuditRow, 50)) is not None
    executor.close()
