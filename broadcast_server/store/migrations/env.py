"""Alembic's entry: works on the connection it is handed, never opens one."""

from alembic import context

from broadcast_server.store.migrations.autogenerate import OPTIONS
from broadcast_server.store.tables import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, **OPTIONS)
with context.begin_transaction():
    context.run_migrations()
