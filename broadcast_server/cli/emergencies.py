"""`broadcast-server emergency …` and `stop-all …`: the machine's own hand when nobody can reach the console."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from broadcast_server.cli.office import run, tell
from broadcast_server.control import emergency
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.desk import Desk
from broadcast_server.control.emergency import (
    DEFAULT_MIN,
    DeliveryQuery,
    EmergencyQuery,
    EmergencyView,
    Message,
    NewEmergency,
    Rounds,
    StopAllView,
)
from broadcast_server.store.deliveries import Shown
from broadcast_server.store.words import EmergencyMode

app = typer.Typer(no_args_is_help=True, help="Emergencies (khẩn cấp).")
stops = typer.Typer(no_args_is_help=True, help="Stop-all (dừng tất cả).")

Json = Annotated[bool, typer.Option("--json", help="for machines")]
Reason = Annotated[str, typer.Option(help="why; kept in the audit log")]


@app.command("launch")
def launch(
    unit: str,
    mode: Annotated[EmergencyMode, typer.Option(help="real or drill; there is no default")],
    confirm: Annotated[str, typer.Option(help="KHẨN CẤP for a real one, DIỄN TẬP for a drill")],
    reason: Reason,
    hazard: Annotated[str | None, typer.Option(help="a danger the nodes have words for")] = None,
    phrase: Annotated[list[str] | None, typer.Option(help="what the nodes say of it; may be repeated")] = None,
    text: Annotated[str | None, typer.Option(help="what is spoken")] = None,
    times: Annotated[int | None, typer.Option(help="repetitions in a round")] = None,
    every_min: Annotated[int | None, typer.Option(help="a round begins so often")] = None,
    expires_min: Annotated[int, typer.Option(help="in force so long")] = DEFAULT_MIN,
    as_json: Json = False,
) -> None:
    """Raise an emergency or a drill at a unit and everything below, at once."""
    message = Message(hazard=hazard, phrases=tuple(phrase or ()), text=text)
    rounds = Rounds(times=times, every_min=every_min)
    request = NewEmergency(unit, mode, message, reason, confirm, rounds=rounds, expires_min=expires_min)
    tell(_emergency(run(lambda desk: emergency.launch(desk, OPERATOR, request))), as_json=as_json)


@app.command("list")
def list_emergencies(
    in_force: Annotated[bool, typer.Option("--in-force", help="only what is in force")] = False, as_json: Json = False
) -> None:
    """The latest emergencies and how far they came."""
    query = EmergencyQuery(in_force=in_force)
    tell(
        [_emergency(view) for view in run(lambda desk: emergency.list_emergencies(desk, OPERATOR, query))],
        as_json=as_json,
    )


@app.command("unreached")
def list_unreached(emergency_id: str, as_json: Json = False) -> None:
    """Every node it did not reach, with the reason."""

    async def errand(desk: Desk) -> list[Shown]:
        found: list[Shown] = []
        while page := await emergency.list_deliveries(
            desk, OPERATOR, emergency_id, DeliveryQuery(unreached=True, after=found[-1].node_id if found else None)
        ):
            found += page
        return found

    tell(
        [
            {
                "node": one.node_id,
                "cluster": one.cluster_code,
                "name": one.cluster_name,
                "unit": one.unit_id,
                "reason": one.reason,
                "since": one.since,
            }
            for one in run(errand)
        ],
        as_json=as_json,
    )


@app.command("cancel")
def cancel(emergency_id: str, reason: Reason, as_json: Json = False) -> None:
    """Silence it at once."""
    tell(_emergency(run(lambda desk: emergency.cancel(desk, OPERATOR, emergency_id, reason=reason))), as_json=as_json)


@app.command("final")
def finish(
    emergency_id: str,
    reason: Reason,
    text: Annotated[str | None, typer.Option(help="instead of the ready text")] = None,
    as_json: Json = False,
) -> None:
    """Silence it and say once that it is over (tin cuối cùng)."""
    view = run(lambda desk: emergency.finish(desk, OPERATOR, emergency_id, reason=reason, text=text))
    tell(_emergency(view), as_json=as_json)


@stops.command("set")
def stop(units: list[str], reason: Reason, as_json: Json = False) -> None:
    """Silence everything at these units and below, until released."""
    stopped = run(lambda desk: emergency.stop_all(desk, OPERATOR, units, reason=reason))
    tell([_stop_all(view) for view in stopped], as_json=as_json)


@stops.command("list")
def list_stops(
    in_force: Annotated[bool, typer.Option("--in-force", help="only what is in force")] = False, as_json: Json = False
) -> None:
    """The latest stop-alls."""
    query = EmergencyQuery(in_force=in_force)
    tell(
        [_stop_all(view) for view in run(lambda desk: emergency.list_stop_alls(desk, OPERATOR, query))], as_json=as_json
    )


@stops.command("release")
def release(stop_all_id: str, reason: Reason, as_json: Json = False) -> None:
    """Let the unit sound again."""
    tell(_stop_all(run(lambda desk: emergency.release(desk, OPERATOR, stop_all_id, reason=reason))), as_json=as_json)


def _emergency(view: EmergencyView) -> dict[str, Any]:
    row, counts = view.row, view.counts
    return {
        "id": row.id,
        "unit": row.unit_id,
        "state": row.state.value,
        "mode": row.mode.value,
        "nature": row.nature.value,
        "in_force": view.is_in_force,
        "expires_at": row.expires_at,
        "says": row.text or row.hazard,
        "nodes": counts.nodes,
        "received": counts.received,
        "heard": counts.heard,
        "unreached": counts.unreached,
        "stopped_by": list(view.stopped_by),
    }


def _stop_all(view: StopAllView) -> dict[str, Any]:
    row, counts = view.row, view.counts
    return {
        "id": row.id,
        "unit": row.unit_id,
        "since": row.since,
        "by": row.set_by,
        "reason": row.reason,
        "released_at": row.released_at,
        "nodes": counts.nodes,
        "obey": counts.received,
        "unreached": counts.unreached,
    }
