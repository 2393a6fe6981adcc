"""What every verb of `control` works with: the store, time, chance and the audio room, handed down by the composition
root.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from broadcast_server.audio.assets import AssetStore
from broadcast_server.audio.ffmpeg import Sandbox
from broadcast_server.audio.speech import Speaker
from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.store.session import Store
from broadcast_server.supervise import Executor


@dataclass(frozen=True, slots=True)
class AudioRoom:
    """Where uploads become assets. `speaker` is None where no speech engine could be had."""

    assets: AssetStore
    sandbox: Sandbox
    speaker: Speaker | None
    quarantine: Path
    """Uploads lie here until they are judged; emptied at start."""


@dataclass(frozen=True, slots=True)
class Desk:
    """One per process; verbs take it first, the `Actor` second, the request third."""

    store: Store
    clock: Clock
    chance: Chance
    executor: Executor
    audio: AudioRoom
