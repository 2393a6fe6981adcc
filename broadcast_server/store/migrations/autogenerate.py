"""How tables are compared with the chain and written down as a revision: by plain types, in an order that repeats."""

from __future__ import annotations

from typing import Any, Literal

from alembic.autogenerate.api import AutogenContext
from sqlalchemy import TypeDecorator


def render_item(kind: str, item: Any, context: AutogenContext) -> str | Literal[False]:  # noqa: ARG001 - alembic's shape
    """Our column types as what they are in the database."""
    if kind == "type" and isinstance(item, TypeDecorator):
        return f"sa.{item.impl_instance!r}"
    return False


OPTIONS: dict[str, Any] = {
    "compare_type": True,
    "render_as_batch": True,  # SQLite can change a table only by rebuilding it
    "render_item": render_item,
    "transaction_per_migration": False,
}
