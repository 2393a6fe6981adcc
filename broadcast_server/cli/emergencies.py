"""`broadcast-server emergency …` and `stop-all …`: at the machine itself when nobody can reach the console.

Who may start the program may silence; to raise an alarm two people are needed here as anywhere: each names oneself by
`--as` and types password and one-time code, and each must hold the right.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from broadcast_server.cli.office import ask_proof, person, run, tell
from broadcast_server.control import break_glass, consents, emergency
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.break_glass import BreakGlass
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
Confirm = Annotated[str, typer.Option(help="KHẨN CẤP for a real one, DIỄN TẬP for a drill")]
As = Annotated[str, typer.Option("--as", help="who is at the keyboard; password and code are asked for")]


@app.command("propose")
def propose(
    unit: str,
    login: As,
    mode: Annotated[EmergencyMode, typer.Option(help="real or drill; there is no default")],
    confirm: Confirm,
    reason: Reason,
    hazard: Annotated[str | None, typer.Option(help="a danger the nodes have words for")] = None,
    phrase: Annotated[list[str] | None, typer.Option(help="what the nodes say of it; may be repeated")] = None,
    text: Annotated[str | None, typer.Option(help="what is spoken")] = None,
    times: Annotated[int | None, typer.Option(help="repetitions in a round")] = None,
    every_min: Annotated[int | None, typer.Option(help="a round begins so often")] = None,
    expires_min: Annotated[int, typer.Option(help="in force so long")] = DEFAULT_MIN,
    as_json: Json = False,
) -> None:
    """Raise an emergency or a drill at a unit and everything below; it sounds once another person has approved it."""
    message = Message(hazard=hazard, phrases=tuple(phrase or ()), text=text)
    rounds = Rounds(times=times, every_min=every_min)
    request = NewEmergency(unit, mode, message, reason, confirm, rounds=rounds, expires_min=expires_min)
    proof = ask_proof(login)

    async def errand(desk: Desk) -> EmergencyView:
        return await consents.propose(desk, await person(desk, login), request, proof)

    tell(_emergency(run(errand)), as_json=as_json)


@app.command("approve")
def approve(
    emergency_id: str,
    login: As,
    confirm: Confirm,
    content_hash: Annotated[str, typer.Option("--hash", help="of what was proposed, as `propose` and `list` tell it")],
    as_json: Json = False,
) -> None:
    """Be the second person: it sounds at once, exactly as it was proposed."""
    proof = ask_proof(login)

    async def errand(desk: Desk) -> EmergencyView:
        who = await person(desk, login)
        return await consents.approve(desk, who, emergency_id, proof, content_hash=content_hash, confirm=confirm)

    tell(_emergency(run(errand)), as_json=as_json)


@app.command("break-glass")
def break_the_glass(
    unit: str,
    login: As,
    template: Annotated[str, typer.Option(help="an approved template")],
    confirm: Confirm,
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Sound an approved template alone, at most 15 minutes; somebody else reviews it within a day."""
    proof = ask_proof(login)

    async def errand(desk: Desk) -> EmergencyView:
        request = BreakGlass(unit, template, reason, confirm)
        return await break_glass.break_glass(desk, await person(desk, login), request, proof)

    tell(_emergency(run(errand)), as_json=as_json)


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
def finish(emergency_id: str, login: As, reason: Reason, as_json: Json = False) -> None:
    """Silence it and say once, in ready words, that it is over (tin cuối cùng)."""
    proof = ask_proof(login)

    async def errand(desk: Desk) -> EmergencyView:
        who = await person(desk, login)
        await consents.proved(desk, who, proof)
        return await emergency.finish(desk, who, emergency_id, reason=reason)

    tell(_emergency(run(errand)), as_json=as_json)


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
        "content_hash": row.content_hash,
        "agreed": [f"{one.role.value}:{one.login}" for one in view.consents],
        "agree_by": view.agree_by,
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
