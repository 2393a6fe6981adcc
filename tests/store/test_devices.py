"""What a database of before the states of nodes becomes."""

from __future__ import annotations

import sqlalchemy
from sqlalchemy import column, insert, table

from broadcast_server.store import migrations
from tests.support.database import a_store

BEFORE = {
    "unit_kinds": {"code": "commune", "name_vi": "Xã", "name_en": "Commune"},
    "units": {"id": "x", "kind": "commune", "name": "Xã", "name_folded": "xa", "created_at": 0, "version": 1},
    "clusters": {"id": "c", "unit_id": "x", "code": "C01", "name": "Cụm", "name_folded": "cum", "config": "{}"}
    | {"created_at": 0, "version": 1},
    "enrolment_tokens": {"id": "t", "unit_id": "x", "secret_hash": "h", "uses_left": 1, "expires_at": 0}
    | {"created_by": "lan", "created_at": 0},
}
A_NODE = {"unit_id": "x", "cluster_id": "c", "hardware": "", "firmware": "", "broker_password_line": ""}


async def test_nodes_of_before_are_active_and_those_out_of_service_retired():
    async with a_store(create=False) as store:
        migrations.migrate(store.engine, "0010")
        with store.engine.begin() as connection:
            for name, row in BEFORE.items():
                connection.execute(insert(table(name, *map(column, row))).values(row))
            for name, retired_at in (("old", 5), ("new", None)):
                row = A_NODE | {"id": name, "public_key": name, "asset_token_hash": name, "enrolled_at": 0}
                row["retired_at"] = retired_at
                connection.execute(insert(table("nodes", *map(column, row))).values(row))
        migrations.migrate(store.engine)
        with store.engine.begin() as connection:
            nodes = connection.execute(sqlalchemy.text("SELECT id, state, version FROM nodes ORDER BY id")).all()
            tokens = connection.execute(sqlalchemy.text("SELECT activates FROM enrolment_tokens")).all()

    assert [tuple(row) for row in nodes] == [("new", "active", 1), ("old", "retired", 1)]
    assert [bool(row[0]) for row in tokens] == [False]
