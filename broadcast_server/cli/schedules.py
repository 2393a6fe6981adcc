"""`broadcast-server schedule …`: import and export documents and calendars, and see what will sound."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from broadcast_server.cli.office import fail, run, tell
from broadcast_server.control import calendars, documents, exchange, outlook
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.desk import Desk
from broadcast_server.control.exchange import Import, ImportedDocument
from broadcast_server.control.outlook import Hearing
from broadcast_server.domain.clock import LOCAL, Window
from broadcast_server.domain.errors import BroadcastError, Invalid

app = typer.Typer(no_args_is_help=True, help="Schedules (lịch phát) as documents, and what will sound.")

Json = Annotated[bool, typer.Option("--json", help="for machines")]


@app.command("import")
def import_schedules(
    file: Annotated[Path, typer.Argument(help="a .yaml document or an .ics calendar", exists=True, dir_okay=False)],
    unit: Annotated[str, typer.Option(help="unit whose schedule it is")],
    anchor: Annotated[str | None, typer.Option(help="RFC 3339 instant that T+ times are counted from")] = None,
    accept_conflicts: Annotated[bool, typer.Option("--accept-conflicts", help="save what displaces others")] = False,
    as_json: Json = False,
) -> None:
    """Make a unit's schedule what the document says; nothing is imported if a line is wrong."""
    try:
        started = None if anchor is None else documents.instant_of(anchor)
        document, marks = read_file(file)
    except BroadcastError as error:
        fail(error)
    request = Import(document, marks, unit, file.parent, started, accept_conflicts)
    tell(_imported(run(lambda desk: exchange.import_document(desk, OPERATOR, request))), as_json=as_json)


@app.command("export")
def export_schedules(
    unit: Annotated[str, typer.Option(help="unit whose schedule it is")],
    out: Annotated[Path | None, typer.Option(help="file to write; else standard output")] = None,
    ics: Annotated[bool, typer.Option("--ics", help="as iCalendar")] = False,
) -> None:
    """Policy, bulletins, programmes and coming schedules of a unit as a document."""

    async def errand(desk: Desk) -> str:
        told = await exchange.export_document(desk, OPERATOR, unit)
        return calendars.write_calendar(told, now=desk.clock.now()) if ics else documents.write_yaml(told)

    text = run(errand)
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")


@app.command("preview")
def preview(
    unit: Annotated[str | None, typer.Option(help="everything under this unit")] = None,
    cluster: Annotated[str | None, typer.Option(help="one cluster, by id")] = None,
    days: Annotated[int, typer.Option(min=1, max=31, help="from now on")] = 1,
    as_json: Json = False,
) -> None:
    """What will sound, by groups of clusters that hear the same, and what will not and why."""
    if (unit is None) == (cluster is None):
        raise typer.BadParameter("give either --unit or --cluster")

    async def errand(desk: Desk) -> tuple[Hearing, ...]:
        now = desk.clock.now()
        window = Window(now, now + timedelta(days=days))
        if unit is not None:
            return await outlook.preview_unit(desk, OPERATOR, unit, window)
        return (await outlook.preview_cluster(desk, OPERATOR, cluster or "", window),)

    hearings = run(errand)
    if as_json:
        tell([_hearing(hearing) for hearing in hearings], as_json=True)
        return
    for hearing in hearings:
        typer.echo(f"{len(hearing.cluster_ids)} cụm loa: {', '.join(hearing.cluster_ids[:5])}")
        for segment in hearing.segments:
            typer.echo(f"  {_local(segment.start)} → {_local(segment.end)}  {segment.title}")
        for missing in hearing.missing:
            typer.echo(f"  {_local(missing.at)}  ✗ {missing.title} ({missing.code})")


@app.command("schema")
def schema() -> None:
    """The JSON schema of a document."""
    typer.echo(json.dumps(documents.schema(), ensure_ascii=False, indent=2))


def read_file(file: Path) -> tuple[documents.Document, documents.Marks]:
    """A document or a calendar, by the name's ending. Raises `Invalid` with file, line and fix."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise Invalid("not_utf8", field="", file=str(file), line=1, fix="save_as_utf8") from None
    read = calendars.read_calendar if file.suffix.lower() == ".ics" else documents.read_yaml
    return read(text, str(file))


def _imported(done: ImportedDocument) -> dict[str, Any]:
    return {
        "policy": done.policy,
        "bulletins": done.bulletins,
        "programmes": done.programmes,
        "schedules": done.schedules,
        "unchanged": done.unchanged,
        "waiting": done.waiting,
        "conflicts": {key: len(preview.clashes) for key, preview in done.previews.items() if preview.clashes},
    }


def _hearing(hearing: Hearing) -> dict[str, Any]:
    return {
        "clusters": list(hearing.cluster_ids),
        "segments": [
            {
                "entry_id": one.entry_id,
                "title": one.title,
                "kind": one.kind.value,
                "level": one.level,
                "start": _local(one.start),
                "end": _local(one.end),
                "offset_ms": one.offset_ms,
            }
            for one in hearing.segments
        ],
        "missing": [
            {"entry_id": one.entry_id, "title": one.title, "at": _local(one.at), "code": one.code}
            for one in hearing.missing
        ],
    }


def _local(at: datetime) -> str:
    return at.astimezone(LOCAL).isoformat(timespec="seconds")
