"""`broadcast-server clock …`: how the server's clock is judged, and the operator's word that it is right."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from broadcast_server.cli.office import run, tell
from broadcast_server.control import timekeeping
from broadcast_server.control.access import OPERATOR

app = typer.Typer(no_args_is_help=True, help="The server's own clock (đồng hồ máy chủ).")

Json = Annotated[bool, typer.Option("--json", help="for machines")]


@app.command("status")
def status(as_json: Json = False) -> None:
    """What every process of the server says of its clock."""
    tell(
        [asdict(one) for one in run(lambda desk: timekeeping.list_clocks(desk, OPERATOR))],
        as_json=as_json,
    )


@app.command("trust")
def trust(
    reason: Annotated[str, typer.Option("--reason", help="how you know that the machine's clock is right")],
    as_json: Json = False,
) -> None:
    """Say that the machine's clock is right: the server takes its time and signs again."""
    number = run(lambda desk: timekeeping.trust_clock(desk, OPERATOR, reason))
    tell({"audit": number}, as_json=as_json)
