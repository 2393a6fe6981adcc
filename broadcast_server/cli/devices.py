"""`broadcast-server device …`: boxes that are to come, and how a node is let sound, silenced or retired."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from broadcast_server.cli.office import run, tell
from broadcast_server.control import devices, enrolment, fleet
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.desk import Desk
from broadcast_server.control.devices import BindingView
from broadcast_server.control.enrolment import ClaimQuery, NewDevice, NewEnrolmentToken
from broadcast_server.control.fleet import NodeQuery, NodeView
from broadcast_server.store.tables_devices import DeviceClaimRow
from broadcast_server.store.words import NodeState
from speaker_protocol import claims

app = typer.Typer(no_args_is_help=True, help="Boxes and nodes: claim codes, the binding check, quarantine.")

Json = Annotated[bool, typer.Option("--json", help="for machines")]
Node = Annotated[str, typer.Argument(metavar="NODE", help="id of the node")]


@app.command("expect")
def expect(
    serial: str,
    unit: Annotated[str, typer.Option(help="unit it shall hang in")],
    cluster: Annotated[str | None, typer.Option(help="code of its cluster, also of one whose node it replaces")] = None,
    claim_code: Annotated[str | None, typer.Option(help="printed on the box; made here if left out")] = None,
    as_json: Json = False,
) -> None:
    """Register a box that is to come; it may come within a quarter of an hour from now."""

    async def errand(desk: Desk) -> dict[str, Any]:
        made = await enrolment.register_device(desk, OPERATOR, NewDevice(serial, unit, cluster, claim_code))
        shown = None if made.code is None else claims.shown(made.code)
        return _claim(made.claim) | ({} if shown is None else {"claim_code": shown})

    tell(run(errand), as_json=as_json)


@app.command("open")
def open_again(claim: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """Let an expected box come within a quarter of an hour from now; wrong tries are forgiven."""
    tell(_claim(run(lambda desk: enrolment.open_window(desk, OPERATOR, claim))), as_json=as_json)


@app.command("expected")
def expected(within: Annotated[str | None, typer.Option(help="under this unit")] = None, as_json: Json = False) -> None:
    """Boxes that are expected and have not come."""
    tell([_claim(row) for row in run(lambda desk: _all_claims(desk, within))], as_json=as_json)


@app.command("forget")
def forget(claim: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """Expect a box no more; its claim code is worthless."""
    run(lambda desk: enrolment.void_claim(desk, OPERATOR, claim))
    tell({"id": claim, "forgotten": True}, as_json=as_json)


@app.command("token")
def token(
    unit: Annotated[str, typer.Option(help="unit the nodes belong to")],
    uses: Annotated[int, typer.Option(min=1, help="how many nodes")] = 1,
    activates: Annotated[bool, typer.Option("--activates", help="they sound at once, unseen: for trials")] = False,
    as_json: Json = False,
) -> None:
    """Print an enrolment token for a fleet in a trial, once."""

    async def errand(desk: Desk) -> dict[str, Any]:
        made = await enrolment.create_enrolment_token(
            desk, OPERATOR, NewEnrolmentToken(unit, uses, activates=activates)
        )
        return {"id": made.token.id, "token": made.secret, "expires_at": made.token.expires_at}

    told = run(errand)
    tell(told if as_json else told["token"], as_json=as_json)


@app.command("list")
def list_nodes(
    within: Annotated[str | None, typer.Option(help="under this unit")] = None,
    state: Annotated[NodeState | None, typer.Option(help="only those in this state")] = None,
    as_json: Json = False,
) -> None:
    """Nodes by id."""
    tell([_node(view) for view in run(lambda desk: _all_nodes(desk, within, state))], as_json=as_json)


@app.command("speak")
def speak(node: Node, as_json: Json = False) -> None:
    """Let a node speak a fresh code, softly; type in what is heard within five minutes."""
    tell(_binding(run(lambda desk: devices.ask_binding(desk, OPERATOR, node))), as_json=as_json)


@app.command("heard")
def heard(node: Node, code: str, as_json: Json = False) -> None:
    """The four digits that were heard below the pole."""
    tell(_binding(run(lambda desk: devices.answer_binding(desk, OPERATOR, node, code))), as_json=as_json)


@app.command("approve")
def approve(node: Node, as_json: Json = False) -> None:
    """Let a node sound, and retire the one it replaces."""
    tell(_node(run(lambda desk: devices.approve_node(desk, OPERATOR, node))), as_json=as_json)


@app.command("quarantine")
def quarantine(node: Node, reason: str, as_json: Json = False) -> None:
    """Silence a node at once."""
    tell(_node(run(lambda desk: devices.quarantine_node(desk, OPERATOR, node, reason))), as_json=as_json)


@app.command("release")
def release(node: Node, reason: str, as_json: Json = False) -> None:
    """Let a node out of quarantine, after another code was heard."""
    tell(_node(run(lambda desk: devices.release_node(desk, OPERATOR, node, reason))), as_json=as_json)


@app.command("retire")
def retire(node: Node, as_json: Json = False) -> None:
    """Take a node out of service: its credentials are void and its certificate is revoked."""
    tell(_node(run(lambda desk: fleet.retire_node(desk, OPERATOR, node))), as_json=as_json)


async def _all_claims(desk: Desk, within: str | None) -> list[DeviceClaimRow]:
    found: list[DeviceClaimRow] = []
    while page := await enrolment.list_claims(
        desk, OPERATOR, ClaimQuery(within, found[-1].id if found else None, 1_000)
    ):
        found += page
    return found


async def _all_nodes(desk: Desk, within: str | None, state: NodeState | None) -> list[NodeView]:
    found: list[NodeView] = []
    while page := await fleet.list_nodes(
        desk, OPERATOR, NodeQuery(within, state=state, after=found[-1].node.id if found else None, limit=1_000)
    ):
        found += page
    return found


def _claim(row: DeviceClaimRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "serial": row.serial,
        "unit_id": row.unit_id,
        "cluster_code": row.cluster_code,
        "open_until": row.open_until,
        "closed_at": row.closed_at,
    }


def _binding(view: BindingView) -> dict[str, Any]:
    return {
        "node_id": view.node_id,
        "expires_at": view.expires_at,
        "tries_left": view.tries_left,
        "confirmed_at": view.confirmed_at,
    }


def _node(view: NodeView) -> dict[str, Any]:
    return {
        "id": view.node.id,
        "unit_id": view.node.unit_id,
        "cluster": view.cluster.code,
        "state": view.node.state.value,
        "reason": view.node.state_reason,
        "serial": view.node.serial,
        "bound_at": view.bound_at,
        "certificate_until": view.certificate_until,
    }
