"""`firmware-sim run`: nodes against a real server. Exit 0 done, 2 usage, 3 could not start, 1 a node died.

`firmware-sim simulate` hands over to the package `simulation`, which holds both programs; a node knows nothing of it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import signal
import ssl
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import structlog
import typer

from firmware_sim import carry
from firmware_sim.clock import MS, MachineTime
from firmware_sim.enrol import BoxLabel, EnrolmentRefused
from firmware_sim.faults import load_timeline
from firmware_sim.fleet import DISK_THREADS, QUOTA_BYTES, Fleet, FleetOptions, Spread
from firmware_sim.node import SpeakerNode
from speaker_protocol.carry import Carried, CarriedKind

cli = typer.Typer(no_args_is_help=True, add_completion=False, help="Simulated speaker nodes.")


@cli.callback()
def _root() -> None:
    """Simulated speaker nodes."""


@cli.command()
def run(
    server: Annotated[str, typer.Option(help="Address of the server, as http://127.0.0.1:8080")],
    nodes: Annotated[int, typer.Option(min=1, max=5_000, help="How many nodes")] = 1,
    token: Annotated[str | None, typer.Option(help="Enrolment token, for nodes without an identity")] = None,
    claim: Annotated[
        list[str] | None, typer.Option(metavar="SERIAL:CODE", help="Label of a box that enrols by its claim code")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="PEM of the authority an HTTPS server is signed by")
    ] = None,
    identity: Annotated[Path | None, typer.Option(help="Folder of identities and stores, one folder per node")] = None,
    record: Annotated[Path | None, typer.Option(help="Write NODE.wav and NODE.json here")] = None,
    clock_offset_ms: Annotated[str, typer.Option(metavar="A:B", help="Error of the device clocks")] = "0:0",
    drift_ppm: Annotated[str, typer.Option(metavar="A:B", help="Drift of the device clocks")] = "0:0",
    faults: Annotated[Path | None, typer.Option(help="YAML or JSON timeline of {at_s, node, verb, args}")] = None,
    seed: Annotated[int | None, typer.Option(help="Make chance repeatable")] = None,
    seconds: Annotated[float | None, typer.Option(help="End by itself")] = None,
    decisions: Annotated[Path | None, typer.Option(help="Write each change of what a node would sound here")] = None,
    listen: Annotated[int | None, typer.Option(help="So many nodes decode and record, the others only decide")] = None,
    disk_threads: Annotated[int, typer.Option(min=0, help="0: the folders lie in memory, nobody waits")] = DISK_THREADS,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON per node that is ready")] = False,
) -> None:
    """Enrol what is new, connect, follow the plan, until SIGTERM (or `--seconds`)."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # whatever stderr is at that moment
    )
    with tempfile.TemporaryDirectory(prefix="firmware-sim-") as aside:
        try:
            ssl.create_default_context(cafile=ca)  # a file that is none is told before anything begins
            options = FleetOptions(
                server=server,
                nodes=nodes,
                token=token,
                authority=ca,
                labels=tuple(BoxLabel.parse(text) for text in claim or ()),
                identity_dir=identity or Path(aside),
                record_dir=record,
                clock_offset_ms=Spread.parse(clock_offset_ms),
                drift_ppm=Spread.parse(drift_ppm),
                faults=load_timeline(faults) if faults is not None else (),
                seed=seed,
                listen=listen,
                decisions=decisions,
                disk_threads=disk_threads,
            )
        except (ValueError, OSError) as error:
            typer.echo(f"firmware-sim: {error}", err=True)
            raise typer.Exit(2) from None
        raise typer.Exit(asyncio.run(_run(options, seconds, as_json=as_json)))


@cli.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def simulate(context: typer.Context) -> None:
    """Server and nodes in one process on virtual time, with faults: see `python -m simulation --help`."""
    raise typer.Exit(importlib.import_module("simulation.__main__").main(context.args))


@cli.command("import")
def take_in_file(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="what `broadcast-server bundle export` wrote")
    ],
    identity: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of identities and stores")],
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON per node")] = False,
) -> None:
    """Take in a carried bundle while the nodes are off. Exit 1 if anything was refused, 2 if the file is none."""
    try:
        with Carried(file, CarriedKind.BUNDLE) as carried:
            now_ns = MachineTime().now_ns()
            told = [
                carry.take_in(who, disk, carried, device_ns=now_ns)
                for who, disk in carry.nodes_in(identity, quota_bytes=QUOTA_BYTES)
            ]
    except (carry.NotCarried, OSError) as error:
        typer.echo(f"firmware-sim: {file}: {error}", err=True)
        raise typer.Exit(2) from None
    for one in told:
        if as_json:
            typer.echo(json.dumps(asdict(one)))
            continue
        for topic in one.accepted:
            typer.echo(f"{one.node_id}  accepted  {topic}")
        for topic, reason in one.refused:
            typer.echo(f"{one.node_id}  refused   {topic}: {reason}")
        typer.echo(
            f"{one.node_id}  {len(one.assets)} sounds taken, {len(one.missing)} not in the file, "
            f"{one.acknowledged} reports acknowledged" + ("" if one.is_clock_known else "; the time is not known")
        )
    raise typer.Exit(1 if not told or any(one.refused for one in told) else 0)


@cli.command("export-reports")
def give_out_reports(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="File to write")],
    identity: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of identities and stores")],
) -> None:
    """Write what the nodes have to tell, for `broadcast-server bundle reports`, while they are off."""
    try:
        counts = carry.give_out(
            carry.nodes_in(identity, quota_bytes=QUOTA_BYTES), file, made_ms=MachineTime().now_ns() // MS
        )
    except OSError as error:
        typer.echo(f"firmware-sim: {file}: {error}", err=True)
        raise typer.Exit(2) from None
    for node_id, count in counts.items():
        typer.echo(f"{node_id}  {count} lines")


async def _run(options: FleetOptions, seconds: float | None, *, as_json: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if seconds is not None:
        loop.call_later(seconds, stop.set)
    fleet = Fleet(options)
    try:
        await fleet.run(stop, on_ready=_tell if as_json else None)
    except EnrolmentRefused as refused:
        typer.echo(f"firmware-sim: enrolment refused: {refused}", err=True)
        return 3
    if len(fleet.nodes) < options.nodes:
        typer.echo(
            f"firmware-sim: {len(fleet.nodes)} of {options.nodes} nodes have an identity; give --token or --claim",
            err=True,
        )
        return 3
    return 1 if fleet.failed else 0


def _tell(node: SpeakerNode) -> None:
    state = node.state
    device_ns = node.box.clock.now_ns()
    line = {
        "node_id": state.node_id,
        "cluster_id": node.identity.cluster_id,
        "ready": True,
        "boot_id": state.boot_id,
        "plan_sha256": state.plan.sha256 if state.plan is not None else None,
        "clock_uncertainty_ms": round(state.clock.uncertainty_ms(device_ns), 3),
        "assets": len(state.ready_assets),
    }
    typer.echo(json.dumps(line))


def main() -> None:
    """The console script."""
    cli()


if __name__ == "__main__":
    main()
