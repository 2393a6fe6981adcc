"""The chain of revisions builds what the tables say, on both dialects, and can be walked back."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from broadcast_server.domain.errors import Conflict
from broadcast_server.store import migrations
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import Base
from broadcast_server.supervise import ThreadExecutor
from tests.support.database import a_store


@pytest_asyncio.fixture
async def empty(empty_url: str) -> AsyncIterator[Store]:
    async with a_store(empty_url, create=False) as store:
        yield store


def tables_of(store: Store) -> set[str]:
    return set(sqlalchemy.inspect(store.engine).get_table_names())


async def test_from_nothing_the_chain_builds_exactly_the_tables(empty: Store):
    migrations.migrate(empty.engine)

    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        difference = compare_metadata(context, Base.metadata)
    assert difference == [], "tables changed: python -m broadcast_server.store.migrations.make --initial"
    migrations.check_current(empty.engine)


async def test_the_way_back_leaves_nothing(empty: Store):
    migrations.migrate(empty.engine)
    migrations.migrate(empty.engine, "base")

    assert tables_of(empty) == {migrations.TABLE}
    migrations.migrate(empty.engine)
    assert tables_of(empty) == {*Base.metadata.tables, migrations.TABLE}


async def test_every_revision_can_be_taken_back_alone(empty: Store):
    numbers = sorted(path.name[:4] for path in migrations.VERSIONS.glob("[0-9]*.py"))
    for number, before in zip(numbers, ["base", *numbers], strict=False):
        migrations.migrate(empty.engine, number)
        migrations.migrate(empty.engine, before)
        migrations.migrate(empty.engine, number)
        assert migrations.current(empty.engine) == number


async def test_a_start_says_what_to_do_with_an_empty_database(empty: Store):
    with pytest.raises(Conflict) as refused:
        migrations.check_current(empty.engine)

    assert (refused.value.code, refused.value.facts["fix"]) == ("store_not_migrated", "run_migrate")


async def test_a_database_of_a_newer_program_is_left_alone(empty: Store):
    migrations.migrate(empty.engine)
    with empty.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = '9999'"))

    for step in (migrations.check_current, migrations.migrate):
        with pytest.raises(Conflict, match="store_newer"):
            step(empty.engine)


async def test_two_processes_that_migrate_at_once_do_it_once(empty_url: str):
    executor = ThreadExecutor(2, name="migrate")
    async with a_store(empty_url, create=False) as one, a_store(empty_url, create=False) as two:
        await asyncio.gather(executor.run(migrations.migrate, one.engine), executor.run(migrations.migrate, two.engine))
        migrations.check_current(one.engine)
    executor.close()


async def test_foreign_keys_hold_again_after_a_migration(empty: Store):
    migrations.migrate(empty.engine)

    def orphan(session: Session) -> None:
        session.execute(
            sqlalchemy.text(
                "INSERT INTO tokens (id, user_id, secret_hash, name, created_at) VALUES ('t', 'nobody', 'x', 'x', 0)"
            )
        )

    with pytest.raises(Conflict, match="reference_broken"):
        await empty.begin(orphan)
