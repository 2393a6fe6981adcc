"""`serve`, `migrate`, `check`, `jobs` and `audit verify`: the life of the server itself."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from broadcast_server import app as composition
from broadcast_server.cli import audit_verifier
from broadcast_server.cli.office import COULD_NOT_START, FAILED, fail, load_settings, run, tell
from broadcast_server.control import auditing
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.desk import Desk
from broadcast_server.domain.errors import BroadcastError
from broadcast_server.logs import configure
from broadcast_server.playout import logbook
from broadcast_server.playout.anchoring import NAME as ANCHORS_NAME
from broadcast_server.settings import Role
from broadcast_server.store import facts, jobs
from broadcast_server.store.migrations import migrate

Json = Annotated[bool, typer.Option("--json", help="for machines")]


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command("serve")(serve)
    app.command("signer")(signer)
    app.command("migrate")(migrate_store)
    app.command("check")(check)
    app.command("jobs")(list_jobs)
    books = typer.Typer(help="The audit log.")
    books.command("verify")(verify_audit)
    books.command("answer")(answer_audit)
    app.add_typer(books, name="audit")


def serve(
    roles: Annotated[str, typer.Option(help="all, or some of api|conductor|relay|inbox, joined by |")] = "all",
) -> None:
    """Run the server until it is told to stop."""
    settings = load_settings()
    configure(as_json=composition.is_json_log(settings), level=settings.log_level)
    try:
        wanted = tuple(Role) if roles == "all" else tuple(Role(role) for role in roles.split("|"))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--roles") from None
    if settings.environment == "trial":
        typer.echo("LOA_ENVIRONMENT=trial: loopback and trials; set production for the field.", err=True)
    try:
        asyncio.run(composition.serve(settings, wanted))
    except BroadcastError as error:
        fail(error, COULD_NOT_START)


def signer() -> None:
    """Run the signing process as a service of its own (`LOA_SIGNER__RUN=external` for the server then)."""
    settings = load_settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        composition.make_room_for_signer(settings)
        config = composition.signer_config(settings)
    except BroadcastError as error:
        fail(error, COULD_NOT_START)
    told, tell_it = os.pipe()
    os.write(tell_it, config.line)
    os.close(tell_it)
    os.dup2(told, sys.stdin.fileno())
    os.close(told)
    # The same process from here on, without anything of the command line in its memory.
    os.execv(sys.executable, [sys.executable, "-m", "broadcast_server.signer"])  # noqa: S606


def migrate_store() -> None:
    """Bring the store to this version's shape."""
    settings = load_settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        migrate(settings.store_url)
    except BroadcastError as error:
        fail(error)


def check(as_json: Json = False) -> None:
    """Show the settings in force, secrets masked; end with 3 on nonsense."""
    tell(load_settings().model_dump(mode="json"), as_json=as_json)


def list_jobs(as_json: Json = False) -> None:
    """The named jobs: when they ran, what came of it, when they ring next."""
    rows = run(lambda desk: desk.store.read(jobs.listed))
    tell(
        [
            {"name": row.name, "last_at": row.last_at, "outcome": row.last_outcome, "next_at": row.next_at}
            for row in rows
        ],
        as_json=as_json,
    )


def verify_audit(
    anchors: Annotated[
        list[Path] | None, typer.Option("--anchors", help="a witness's file of anchors, as often as wished")
    ] = None,
    restored: Annotated[
        bool, typer.Option("--restored", help="a backup was restored, and you know of it: rows after it may be gone")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check the audit log's chain, its anchors and every device's own log; end with 1 at the first that does not hold.

    The audit log is read by `audit_verifier.py`, which needs nothing of this program and may be run by itself.
    """
    settings = load_settings()
    own = [file for file in (settings.data_dir / ANCHORS_NAME, settings.audit.anchor_file) if file is not None]
    witnesses = [file for file in own if file.exists()] + (anchors or [])

    async def errand(desk: Desk) -> tuple[logbook.Findings, dict[str, Any] | None]:
        return (
            await logbook.verify(desk.store),
            await desk.store.read(lambda session: facts.find(session, facts.AUDIT_CONTRADICTED)),
        )

    logs, contradicted = run(errand)
    try:
        told = audit_verifier.verify(
            audit_verifier.read_rows(settings.store_url),
            [one for file in witnesses for one in audit_verifier.read_anchors(file)],
            is_restored=restored,
        )
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--anchors") from None
    by_nodes = 0 if contradicted is None else len(contradicted["open"])
    is_fine = told["ok"] and not logs.breaks and not by_nodes
    tell(
        {
            **told,
            "ok": is_fine,
            "contradicted_by_nodes": by_nodes,
            "devices": logs.devices,
            "lines": logs.lines,
            "awaited": logs.awaited,
            "breaks": [asdict(one) for one in logs.breaks],
        },
        as_json=as_json,
    )
    if not is_fine:
        raise SystemExit(FAILED)


def answer_audit(
    reason: Annotated[str, typer.Option("--reason", help="what was found when it was looked into")],
    as_json: Json = False,
) -> None:
    """Say that what nodes contradicted was looked into; it is no longer shown, and stays in the log."""
    number = run(lambda desk: auditing.answer_contradiction(desk, OPERATOR, reason))
    tell({"anchors": number}, as_json=as_json)
