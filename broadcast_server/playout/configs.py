"""What every node is told of how to behave, from the fleet as it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from broadcast_server.domain.errors import Invalid
from broadcast_server.logs import get_logger
from broadcast_server.playout import wire
from broadcast_server.playout.planner import Fleet
from broadcast_server.store.plans import Seat

log = get_logger()


@dataclass(frozen=True, slots=True)
class StationFacts:
    """What nodes are told that the rows do not say."""

    assets_url: str
    status_interval_s: int


def node_configs(fleet: Fleet, facts: StationFacts) -> Iterator[wire.StateToSend]:
    """The configuration of each node; a cluster whose own settings are nonsense gets one without them."""
    paths = {seat.unit_id: fleet.tree.ancestors(seat.unit_id, fleet.on) for seat in fleet.seats}
    groups: dict[str, list[str]] = {}
    for group_id in sorted(fleet.groups):
        for cluster_id in fleet.groups[group_id]:
            groups.setdefault(cluster_id, []).append(group_id)

    def config(seat: Seat, own: Mapping[str, Any]) -> wire.StateToSend:
        policy = fleet.policies[seat.unit_id]
        return wire.node_config(
            seat.node_id,
            seat.unit_id,
            path=paths[seat.unit_id],
            cluster_id=seat.cluster_id,
            groups=groups.get(seat.cluster_id, ()),
            is_active=seat.is_active,
            quiet_minutes=(policy.quiet.from_min, policy.quiet.to_min),
            max_gain_db=policy.max_gain_db,
            max_minutes=(policy.max_minutes_per_day, policy.max_minutes_per_session),
            cluster_config=own,
            assets_url=facts.assets_url,
            status_interval_s=facts.status_interval_s,
        )

    for seat in fleet.seats:
        try:
            yield config(seat, seat.config)
        except Invalid as error:
            log.error("config.unreadable", cluster_id=seat.cluster_id, facts=error.facts)  # noqa: TRY400
            yield config(seat, {})
