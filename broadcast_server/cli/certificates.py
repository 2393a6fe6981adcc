"""`broadcast-server certificates …`: the local certificate authority."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broadcast_server import app as composition
from broadcast_server.cli.office import load_settings, run, tell

app = typer.Typer(no_args_is_help=True, help="The local certificate authority (cơ quan chứng thực nội bộ).")

Json = Annotated[bool, typer.Option("--json", help="for machines")]


@app.command("show")
def show(as_json: Json = False) -> None:
    """The authority, its backup, our certificate and the nodes': until when they hold."""
    settings = load_settings()
    tell(run(lambda desk: composition.certificates(desk, settings)), as_json=as_json)


@app.command("authority")
def authority(
    out: Annotated[Path | None, typer.Option("--out", dir_okay=False, help="file to write; else it is printed")] = None,
    as_json: Json = False,
) -> None:
    """What nodes, browsers and stations must trust (PEM)."""
    settings = load_settings()
    pem = run(lambda desk: composition.authority_pem(desk, settings))
    if out is not None:
        out.write_text(pem, encoding="ascii")
    tell({"pem": pem} if out is None else {"file": str(out)}, as_json=as_json)


@app.command("rotate")
def rotate(
    stolen: Annotated[
        bool, typer.Option("--stolen", help="the authority's key was stolen: nothing it signed is trusted any longer")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let the backup sign from now on, and make a new backup; the server takes it up when it is started again."""
    settings = load_settings()
    number = run(lambda desk: composition.rotate_authority(desk, settings, is_stolen=stolen))
    tell({"audit": number}, as_json=as_json)
