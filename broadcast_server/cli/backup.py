"""`backup` and `restore`: everything that must survive the machine, in one file."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from broadcast_server.cli.office import fail, load_settings, run, tell
from broadcast_server.domain.clock import to_ms
from broadcast_server.domain.errors import BroadcastError
from broadcast_server.signer import keys
from broadcast_server.signer.register import KeyRegister
from broadcast_server.signer.time_key import TimeKey, time_folder
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


def _renew_keys(folder: Path, answering: Path) -> None:
    """Of the keys in the backup some may have been revoked since; the authority in it makes others."""
    if not folder.is_dir():
        return
    now_ms = to_ms(SystemClock().now())
    register = KeyRegister(folder, chance=SystemChance())
    with register.change() as book:
        keys.renew_after_restore(register, book, now_ms)
    TimeKey(answering, chance=SystemChance()).replace_all(now_ms)


def restore(
    archive: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="file that `backup` wrote")],
    force: Annotated[bool, typer.Option(help="replace what is there")] = False,
    as_json: Json = False,
) -> None:
    """Put a backup in place, with signing keys made anew. The server must be stopped; nodes obey it when it starts."""
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
        _renew_keys(settings.keys_dir, time_folder(settings.data_dir / "keys"))
    except BroadcastError as error:
        fail(error)
    tell(asdict(found), as_json=as_json)
