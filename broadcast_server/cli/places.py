"""`broadcast-server place …`: the tree of places, and the import of Vietnam's provinces and communes."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer

from broadcast_server.cli.office import run, tell
from broadcast_server.control import places
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.desk import Desk
from broadcast_server.control.places import MoveUnit, NewUnit, UnitQuery, UnitView

app = typer.Typer(no_args_is_help=True, help="Places: provinces, communes, hamlets.")

Json = Annotated[bool, typer.Option("--json", help="for machines")]
Day = Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="local date")]


@app.command("import-vietnam")
def import_vietnam(as_json: Json = False) -> None:
    """Add the 34 provinces and 3 321 communes in force since 1 July 2025; what is there is left alone."""
    tell(asdict(run(lambda desk: places.import_vietnam(desk, OPERATOR))), as_json=as_json)


@app.command("add")
def add_place(
    name: str,
    kind: Annotated[str, typer.Option(help="province, commune, ward, hamlet, …")] = "commune",
    parent: Annotated[str | None, typer.Option(help="unit it lies in; none: a root")] = None,
    unit_id: Annotated[str | None, typer.Option("--id", help="administrative code; made if left out")] = None,
    as_json: Json = False,
) -> None:
    """Make a place."""
    tell(
        _unit(run(lambda desk: places.create_unit(desk, OPERATOR, NewUnit(kind, name, parent, unit_id)))),
        as_json=as_json,
    )


@app.command("list")
def list_places(
    parent: Annotated[str | None, typer.Option(help="directly in this unit")] = None,
    within: Annotated[str | None, typer.Option(help="anywhere under this unit")] = None,
    kind: Annotated[str | None, typer.Option(help="of this kind")] = None,
    name: Annotated[str | None, typer.Option(help="part of the name; accents do not matter")] = None,
    as_json: Json = False,
) -> None:
    """Places by id."""

    async def errand(desk: Desk) -> list[UnitView]:
        found: list[UnitView] = []
        while True:
            query = UnitQuery(parent, within, kind, name, None, found[-1].id if found else None, 1_000)
            page = await places.list_units(desk, query)
            found += page
            if len(page) < query.limit:
                return found

    tell([_unit(view) for view in run(errand)], as_json=as_json)


@app.command("move")
def move_place(unit: str, parent: str, on: Day, as_json: Json = False) -> None:
    """Put a place under another from a local date on."""
    tell(_unit(run(lambda desk: places.move_unit(desk, OPERATOR, MoveUnit(unit, parent, on.date())))), as_json=as_json)


@app.command("close-kind")
def close_kind(code: str, on: Day, as_json: Json = False) -> None:
    """From a local date on there are no units of this kind: what lay in them moves one up, their feeds expire."""
    tell({"expired_feed_ids": run(lambda desk: places.close_kind(desk, OPERATOR, code, on.date()))}, as_json=as_json)


@app.command("policy")
def policy(
    unit: str,
    source: Annotated[
        typer.FileText | None,
        typer.Option("--set", help="JSON file with the unit's own policy; - reads standard input"),
    ] = None,
    as_json: Json = False,
) -> None:
    """The station policy in force at a unit; with --set, write its own first."""
    if source is None:
        found = run(lambda desk: places.get_policy(desk, OPERATOR, unit))
    else:
        try:
            body = json.load(source)
        except ValueError as error:
            raise typer.BadParameter(f"not JSON: {error}") from None
        if not isinstance(body, dict):
            raise typer.BadParameter("not a JSON object")
        found = run(lambda desk: places.put_policy(desk, OPERATOR, unit, body))
    tell(asdict(found), as_json=as_json)


def _unit(view: UnitView) -> dict[str, Any]:
    return {"id": view.id, "kind": view.kind, "name": view.name, "parent_id": view.parent_id}
