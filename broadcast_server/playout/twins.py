"""Two devices under one name: the broker lets one in at a time, so they take turns, and their statuses show it.

A device draws a new boot id at every power-on and never goes back to an old one. An older boot id that speaks again
after a newer one spoke is therefore another device, unless it is one word that was long on its way; two such returns
within `WITHIN_S` name the node. Only live words of the node itself count: a will or a retained status is old by nature.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Final

WITHIN_S: Final = 60.0
BOOTS_REMEMBERED: Final = 8
NODES_WATCHED: Final = 50_000
"""More names than a server has nodes; the one whose boot changed least lately is forgotten."""


class Twins:
    """Watches the boot ids that speak under each name."""

    def __init__(self) -> None:
        self._boots: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        """By node, in the order in which they first spoke."""
        self._spoke: dict[str, str] = {}
        """Who spoke last, where it was not the newest."""
        self._returned_s: dict[str, float] = {}
        """When an older one last came back."""
        self._found: set[str] = set()

    def heard(self, node_id: str, boot_id: str, now_s: float) -> None:
        """A node said of itself that it is there."""
        boots = self._boots.get(node_id, ())
        if boots and boots[-1] == boot_id:
            self._spoke.pop(node_id, None)
            return
        if boot_id not in boots:
            self._boots[node_id] = (*boots, boot_id)[-BOOTS_REMEMBERED:]
            self._boots.move_to_end(node_id)
            self._spoke.pop(node_id, None)
            if len(self._boots) > NODES_WATCHED:
                self._forget(self._boots.popitem(last=False)[0])
            return
        if self._spoke.get(node_id) == boot_id:
            return
        self._spoke[node_id] = boot_id
        before_s = self._returned_s.get(node_id)
        if before_s is not None and now_s - before_s <= WITHIN_S:
            self._found.add(node_id)
        self._returned_s[node_id] = now_s

    def _forget(self, node_id: str) -> None:
        self._boots.pop(node_id, None)
        self._spoke.pop(node_id, None)
        self._returned_s.pop(node_id, None)

    @property
    def found(self) -> frozenset[str]:
        """Nodes that are two and were not settled yet."""
        return frozenset(self._found)

    def settle(self, node_ids: Collection[str]) -> None:
        """These were seen to; what they do from now on is watched anew."""
        self._found.difference_update(node_ids)
        for node_id in node_ids:
            self._forget(node_id)
