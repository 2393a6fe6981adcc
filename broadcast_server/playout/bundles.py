"""What nodes without a network are brought by hand, and what comes back from them the same way.

A bundle holds the very payloads the broker would retain (keys, configuration, alerts, plan) and acknowledgements,
signed with a fresh number of the one counter and the epoch of the lease in force, beside the sounds they need. Reports
come back through the inbox itself: the same belief, the same chain, the same judge. A maintainer must not break: a
number is taken and the export is in the audit log before anything is signed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from broadcast_server.domain.clock import Clock, to_ms
from broadcast_server.domain.errors import Conflict, Corrupt, NotFound, Refused, Unavailable
from broadcast_server.playout import wire
from broadcast_server.playout.configs import StationFacts, node_configs
from broadcast_server.playout.inbox import Inbox
from broadcast_server.playout.judge import Judge
from broadcast_server.playout.planner import Desired, Planner
from broadcast_server.playout.urgent import alert_sets
from broadcast_server.signer.port import Sealer, Signer
from broadcast_server.store import audit, device_logs, emergencies, leases, sequences
from broadcast_server.store.emergencies import Sets
from broadcast_server.store.session import Session, Store
from broadcast_server.supervise import Executor
from speaker_protocol.carry import Carried, CarriedKind, Message, NotCarried, write

COUNTER: Final = sequences.SIGNED
_ROUNDS: Final = 10
"""So often a plan is made anew without what the signer refused."""
MOST_ACKS: Final = 12_000
"""So many of its latest reports are acknowledged to each node: as many as it keeps."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What was written. `missing`: sounds that the plan needs and this server has not."""

    path: str
    unit_id: str
    nodes: tuple[str, ...]
    messages: int
    assets: int
    missing: tuple[str, ...]
    valid_until: datetime
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Parts:
    """What an export is made with."""

    store: Store
    signer: Signer
    answers: Sealer
    """Signs acknowledgements."""
    planner: Planner
    clock: Clock
    executor: Executor
    sound: Callable[[str], Path]
    """Where a sound lies, by hash."""
    facts: StationFacts


async def export(parts: Parts, unit_id: str, target: Path) -> Bundle:
    """Write the bundle of the nodes under a unit.

    Raises `NotFound("unknown_unit")`, `Conflict` (`bundle_exists`, `bundle_no_nodes`), `Unavailable`.
    """
    now = parts.clock.now()
    desired, sets = await parts.store.read(
        lambda session: (parts.planner.plan(session, now), emergencies.sets(session, now=now))
    )
    fleet = desired.fleet
    if unit_id not in fleet.tree:
        raise NotFound("unknown_unit", unit_id=unit_id)
    paths = {seat.unit_id: fleet.tree.ancestors(seat.unit_id, fleet.on) for seat in fleet.seats}
    seats = [seat for seat in fleet.seats if unit_id in paths[seat.unit_id]]
    if not seats:
        raise Conflict("bundle_no_nodes", unit_id=unit_id)
    if await parts.executor.run(target.exists):
        raise Conflict("bundle_exists", path=str(target))
    nodes = tuple(seat.node_id for seat in seats)
    told = {"nodes": len(nodes), "days": (desired.window.end - desired.window.start).days, "file": target.name}

    def number(session: Session) -> tuple[int, int, dict[str, dict[str, list[int]]]]:
        audit.append(
            session,
            now=now,
            actor="operator",
            verb="bundle.export",
            unit_id=unit_id,
            subject=f"unit/{unit_id}",
            detail=told,
        )
        lease = leases.look(session, leases.LEADER)
        known = device_logs.latest_by_boot(session, nodes, most=MOST_ACKS)
        return sequences.take(session, COUNTER), max(1, 0 if lease is None else lease.epoch), known

    sequence, epoch, known = await parts.store.begin(number)
    units = sorted({unit for seat in seats for unit in paths[seat.unit_id]})
    signing = _Signing(parts.signer, parts.answers, now, epoch, sequence)
    messages = await signing.keys(units)
    messages += await signing.states(fleet_states(desired, parts.facts, frozenset(nodes), sets, units))
    desired, signed = await signing.plans(parts, desired, frozenset(nodes))
    messages += signed
    messages += await signing.acks(known)
    wanted = _sounds(desired, frozenset(nodes), sets, units)
    files = {sha256: parts.sound(sha256) for sha256 in sorted(wanted)}

    def put() -> tuple[list[str], int]:
        here = [(sha256, path) for sha256, path in files.items() if path.is_file()]
        half = target.with_name(target.name + ".part")
        with half.open("wb") as file:
            write(file, CarriedKind.BUNDLE, messages, here, subject=unit_id, made_ms=to_ms(now))
            file.flush()
            os.fsync(file.fileno())
        half.rename(target)
        return [sha256 for sha256, _ in here], target.stat().st_size

    try:
        carried, size_bytes = await parts.executor.run(put)
    except OSError as error:
        raise Unavailable("bundle_failed", path=str(target), said=str(error)) from error
    return Bundle(
        path=str(target),
        unit_id=unit_id,
        nodes=nodes,
        messages=len(messages),
        assets=len(carried),
        missing=tuple(sorted(wanted - set(carried))),
        valid_until=desired.window.end,
        size_bytes=size_bytes,
    )


def fleet_states(
    desired: Desired, facts: StationFacts, nodes: frozenset[str], sets: Sets, units: Sequence[str]
) -> list[wire.StateToSend]:
    """Configurations of these nodes and the alert sets of all places above them."""
    configs = [state for state in node_configs(desired.fleet, facts) if state.owner in nodes]
    return [*configs, *alert_sets(units, sets.alerts, sets.latches)]


def _sounds(desired: Desired, nodes: frozenset[str], sets: Sets, units: Sequence[str]) -> frozenset[str]:
    planned = {
        asset.hash
        for target in desired.targets
        if any(seat.node_id in nodes for seat in target.seats)
        for asset in target.plan.assets
    }
    alerted = {alert["asset"] for unit in units for alert in sets.alerts.get(unit, ()) if alert.get("asset")}
    return frozenset(planned | alerted)


@dataclass(frozen=True, slots=True)
class _Signing:
    """One number for all of a bundle."""

    signer: Signer
    answers: Sealer
    now: datetime
    epoch: int
    sequence: int

    async def keys(self, units: Sequence[str]) -> list[Message]:
        return await wire.key_messages(self.signer, units, now=self.now, epoch=self.epoch, sequence=self.sequence)

    async def states(self, states: Sequence[wire.StateToSend]) -> list[Message]:
        ready, refused = await wire.state_messages(
            self.signer, states, now=self.now, epoch=self.epoch, sequence=self.sequence
        )
        for why in refused.values():
            raise why
        return ready

    async def plans(self, parts: Parts, desired: Desired, nodes: frozenset[str]) -> tuple[Desired, list[Message]]:
        """The plans, and what they were made of; without entries that the signer finds no ground for."""
        for _ in range(_ROUNDS):
            seated = [(seat, target) for target in desired.targets for seat in target.seats if seat.node_id in nodes]
            to_send = [
                wire.PlanToSend(
                    node_id=seat.node_id,
                    unit_id=seat.unit_id,
                    packed=target.packed,
                    valid_from=desired.window.start,
                    valid_until=desired.window.end,
                    epoch=self.epoch,
                    sequence=self.sequence,
                )
                for seat, target in seated
            ]
            ready, refused = await wire.plan_messages(self.signer, to_send, now=self.now)
            if not refused:
                return desired, ready
            for index, why in refused.items():
                if not why.facts.get("entries"):
                    raise why
                parts.planner.bar(seated[index][1].sha256, why.facts["entries"], self.now)
            desired = await parts.store.read(lambda session: parts.planner.plan(session, self.now))
        raise Refused("signer_segments_refused", nodes=len(nodes))

    async def acks(self, known: Mapping[str, Mapping[str, Sequence[int]]]) -> list[Message]:
        made = []
        for node_id, boots in sorted(known.items()):
            for boot_id, numbers in sorted(boots.items()):
                for start in range(0, len(numbers), wire.ACK_SEQUENCES):
                    ack = await wire.report_ack(
                        self.answers,
                        node_id,
                        boot_id,
                        numbers[start : start + wire.ACK_SEQUENCES],
                        now=self.now,
                        epoch=self.epoch,
                        life_ms=wire.STATE_LIFE_MS,
                    )
                    made.append((wire.ack_topic(node_id), ack))
        return made


# -- the way back -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Returned:
    """What a file of reports held: how many there were, how many are here now that were not, and why not the others."""

    reports: int
    new: int
    refused: Mapping[str, int]


async def take_reports(store: Store, inbox: Inbox, judge: Judge, file: Path) -> Returned:
    """Give the inbox what was carried, as if the nodes had said it. Raises `Corrupt("bundle_damaged")`."""
    try:
        with Carried(file, CarriedKind.REPORTS) as carried:
            messages = carried.messages()
    except (NotCarried, OSError) as error:
        raise Corrupt("bundle_damaged", path=str(file), said=str(error)) from error
    before = await store.read(device_logs.count)
    for start in range(0, len(messages), _AT_ONCE):
        for topic, payload in messages[start : start + _AT_ONCE]:
            inbox.hear_report(topic, payload)
        await inbox.flush()
    await judge.look()
    return Returned(len(messages), await store.read(device_logs.count) - before, dict(inbox.refused))


_AT_ONCE: Final = 1_000


def told(made: Bundle | Returned) -> dict[str, Any]:
    """As the command line prints it."""
    return {name: getattr(made, name) for name in made.__slots__}
