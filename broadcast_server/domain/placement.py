"""What an approval of a placement is over: what is to sound, for whom, and in which window.

The words of a bulletin have an approval of their own, by the hash of what was heard; a placement names the bulletin. So
a newer approved wording sounds in a place that was approved before, and a place is never approved by its words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from broadcast_server.domain.places import Target


class Placing(StrEnum):
    """Ways onto the air that a station's regulations may tie to an approval; a live voice has its permit instead."""

    SCHEDULE = "schedule"
    """A recording at an hour, once or again and again."""
    RELAY = "relay"
    PLAY_NOW = "play_now"


def placement_hash(
    *,
    content: tuple[str, str, str],
    rule: Mapping[str, Any],
    targets: Iterable[Target],
    length_ms: int | None,
    max_wait_ms: int,
) -> str:
    """SHA-256 over it. `content`: kind, id and language."""
    told = {
        "content": list(content),
        "rule": dict(rule),
        "targets": sorted(f"{target.kind.value}/{target.ref}" for target in targets),
        "length_ms": length_ms,
        "max_wait_ms": max_wait_ms,
    }
    text = json.dumps(told, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
