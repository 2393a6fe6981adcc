"""`bundle`: what is carried by hand to communes without a network, and what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broadcast_server import app as composition
from broadcast_server.cli.office import load_settings, run, tell
from broadcast_server.playout.bundles import told

app = typer.Typer(no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="for machines")]


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="file to write")],
    unit: Annotated[str, typer.Option(help="place whose nodes it is for, with all below it")],
    days: Annotated[int, typer.Option(min=1, max=14, help="days of plan, today included")] = 14,
    as_json: Json = False,
) -> None:
    """Write keys, configuration, alerts, plan and sounds to one file, signed. The server may run meanwhile."""
    settings = load_settings()
    made = run(lambda desk: composition.export_bundle(desk, settings, unit, file, days=days))
    tell(told(made), as_json=as_json)


@app.command("reports")
def reports(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="what `firmware-sim export-reports` wrote")],
    as_json: Json = False,
) -> None:
    """Take in what nodes without a network have to tell."""
    settings = load_settings()
    tell(told(run(lambda desk: composition.take_reports(desk, settings, file))), as_json=as_json)
