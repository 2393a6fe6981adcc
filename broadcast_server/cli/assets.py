"""`broadcast-server assets …`: the audio in the register, and letting go of what nothing uses."""

from __future__ import annotations

from typing import Annotated

import typer

from broadcast_server.cli.office import run, tell
from broadcast_server.control import library
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.desk import Desk
from broadcast_server.control.library import LibraryQuery
from broadcast_server.store.tables import AssetRow

app = typer.Typer(no_args_is_help=True, help="Audio (tệp âm thanh) that nodes may play.")

Json = Annotated[bool, typer.Option("--json", help="for machines")]


@app.command("list")
def list_assets(
    unit: Annotated[str | None, typer.Option(help="of this unit and all below it")] = None, as_json: Json = False
) -> None:
    """Every asset with its length and where it stands with retention."""

    async def errand(desk: Desk) -> list[AssetRow]:
        found: list[AssetRow] = []
        while page := await library.list_assets(
            desk, OPERATOR, LibraryQuery(unit, after=found[-1].sha256 if found else None)
        ):
            found += page
        return found

    shown = [
        {
            "sha256": row.sha256,
            "unit_id": row.unit_id,
            "label": row.label,
            "duration_ms": row.duration_ms,
            "size_bytes": row.size_bytes,
            "keep_until": row.keep_until,
        }
        for row in run(errand)
    ]
    tell(shown, as_json=as_json)


@app.command("collect")
def collect_assets(as_json: Json = False) -> None:
    """Delete audio past its time that nothing uses, and files nobody entered."""
    done = run(lambda desk: library.collect_assets(desk, OPERATOR))
    tell({"assets": list(done.assets), "files": list(done.files)}, as_json=as_json)
