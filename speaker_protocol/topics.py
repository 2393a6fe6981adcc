"""Every MQTT topic as a value: build it, parse it, and derive the broker's access list from the same table.

All topics live under `loa/1/`; the 1 is the version of the topic tree. An id that could break out of its level
(`/`, `+`, `#`, NUL, empty, over 64 characters) cannot become a topic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final

ROOT: Final = "loa/1"
_ID: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}\Z")


class Direction(StrEnum):
    """Who speaks on a topic."""

    DOWN = "server to node"
    UP = "node to server"


class TopicError(ValueError):
    """The id or the topic is not one of ours."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One address. Subclasses state family, leaf and properties; `owner` is the node, unit or stream id."""

    owner: str
    family: ClassVar[str]
    leaf: ClassVar[str]
    direction: ClassVar[Direction]
    retained: ClassVar[bool]
    qos: ClassVar[int] = 1
    meaning: ClassVar[str]

    def __post_init__(self) -> None:
        if not _ID.match(self.owner):
            raise TopicError(f"not an id for a topic: {self.owner!r}")

    def __str__(self) -> str:
        return f"{ROOT}/{self.family}/{self.owner}/{self.leaf}"

    @classmethod
    def every(cls) -> str:
        """The subscription filter for this topic of all owners."""
        return f"{ROOT}/{cls.family}/+/{cls.leaf}"


class NodePlan(Topic):
    """What this node shall sound."""

    family, leaf, direction, retained = "node", "plan", Direction.DOWN, True
    meaning = "signed head of the plan, then the compressed body that all nodes of one target set share"


class NodeConfig(Topic):
    """How this node shall behave."""

    family, leaf, direction, retained = "node", "config", Direction.DOWN, True
    meaning = "volume curve, policy limits, groups, delay trim, floors"


class NodeOrder(Topic):
    """A true event for this node."""

    family, leaf, direction, retained = "node", "order", Direction.DOWN, False
    meaning = "identify, reboot, test tone; with expiry"


class NodeAck(Topic):
    """The server's answer to this node."""

    family, leaf, direction, retained = "node", "ack", Direction.DOWN, False
    meaning = "acknowledgement of reports, answers to time questions, floors for a node without memory"


class UnitAlert(Topic):
    """What is in force for a place and everything below it."""

    family, leaf, direction, retained = "unit", "alert", Direction.DOWN, True
    meaning = "the set of alerts in force and the stop-all latch; never an empty payload"


class UnitKeys(Topic):
    """Who may sign for a place."""

    family, leaf, direction, retained = "unit", "keys", Direction.DOWN, True
    meaning = "delegations signed by the root or its authority, and the lists of revocations"


class StreamHead(Topic):
    """What a live stream is."""

    family, leaf, direction, retained = "stream", "head", Direction.DOWN, True
    meaning = "ephemeral key, codec, batch length, scope, epoch, lease renewed every 3 s"


class StreamAudio(Topic):
    """The sound of a live stream."""

    family, leaf, direction, retained, qos = "stream", "audio", Direction.DOWN, False, 0
    meaning = "batches of raw Opus packets signed by the stream's key"


class NodeStatus(Topic):
    """How this node is."""

    family, leaf, direction, retained = "node", "status", Direction.UP, True
    meaning = "state, highest epoch and sequence seen, clock quality, readiness; also the will"


class NodeReport(Topic):
    """What this node really sounded."""

    family, leaf, direction, retained = "node", "report", Direction.UP, False
    meaning = "one entry of the device log, kept on the node until acknowledged"


class NodeTime(Topic):
    """A question for the time."""

    family, leaf, direction, retained, qos = "node", "time", Direction.UP, False, 0
    meaning = "nonce and the node's own sending instant"


ALL_TOPICS: Final[tuple[type[Topic], ...]] = (
    NodePlan,
    NodeConfig,
    NodeOrder,
    NodeAck,
    UnitAlert,
    UnitKeys,
    StreamHead,
    StreamAudio,
    NodeStatus,
    NodeReport,
    NodeTime,
)

_BY_PLACE: Final = {(kind.family, kind.leaf): kind for kind in ALL_TOPICS}


def parse(topic: str) -> Topic:
    """The value a topic string stands for. Raises `TopicError` if it is not one of ours."""
    if not topic.startswith(f"{ROOT}/"):
        raise TopicError(f"not under {ROOT}/: {topic!r}")
    levels = topic[len(ROOT) + 1 :].split("/")
    kind = _BY_PLACE.get((levels[0], levels[2])) if len(levels) == 3 else None
    if kind is None:
        raise TopicError(f"unknown topic: {topic!r}")
    return kind(levels[1])


def node_acl() -> tuple[str, ...]:
    """Mosquitto `pattern` lines: a node (user name = node id) hears its own and public topics, speaks only its own."""
    lines = [f"pattern read {ROOT}/node/%u/+"]
    lines += [f"pattern write {ROOT}/node/%u/{kind.leaf}" for kind in ALL_TOPICS if kind.direction is Direction.UP]
    lines += [f"pattern read {kind.every()}" for kind in ALL_TOPICS if kind.family != "node"]
    return tuple(lines)
