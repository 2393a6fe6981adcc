"""`backup` and `restore`: everything that must survive the machine, in one file."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from broadcast_server.cli.office import fail, load_settings, run, tell
from broadcast_server.domain.errors import BroadcastError
from broadcast_server.store import backup as archives
from broadcast_server.supervise import InlineExecutor, SystemChance, SystemClock

Json = Annotated[bool, typer.Option("--json", help="for machines")]


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command("backup")(backup)
    app.command("restore")(restore)


def backup(
    target: Annotated[Path, typer.Argument(help="file to write; it holds private keys")],
    assets: Annotated[bool, typer.Option(help="the sounds too, not only their list")] = True,
    as_json: Json = False,
) -> None:
    """Write rows, keys and sounds to one file. The server may run meanwhile."""
    data_dir = load_settings().data_dir
    made = run(lambda desk: archives.write(desk, data_dir, target, with_assets=assets))
    tell(asdict(made), as_json=as_json)


def restore(
    archive: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="file that `backup` wrote")],
    force: Annotated[bool, typer.Option(help="replace what is there")] = False,
    as_json: Json = False,
) -> None:
    """Put a backup in place. The server must be stopped; it makes all nodes obey again when it starts."""
    settings = load_settings()
    work = archives.restore(
        archive,
        settings.data_dir,
        settings.store_url,
        clock=SystemClock(),
        chance=SystemChance(),
        executor=InlineExecutor(),
        force=force,
    )
    try:
        found = asyncio.run(work)
    except BroadcastError as error:
        fail(error)
    tell(asdict(found), as_json=as_json)
