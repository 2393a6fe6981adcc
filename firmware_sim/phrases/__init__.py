"""The phrases burned into the firmware: what a node can say when nothing else is left to it.

Every clip is checked against the manifest's hash when the node wakes and before it is decoded; one that is broken or
missing is named and never sounds.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import av
import numpy as np
import numpy.typing as npt

from firmware_sim.decoder import mono
from speaker_protocol.hazards import CLIPS

Pcm = npt.NDArray[np.int16]

FOLDER: Final = Path(__file__).parent
MANIFEST: Final = "manifest.json"


class PhraseBook:
    """The clips of one folder: those that are intact, decoded (48 kHz mono), and the codes of those that are not."""

    def __init__(self, clips: Mapping[str, Pcm], broken: tuple[str, ...]) -> None:
        self._clips = clips
        self.intact = frozenset(clips)
        self.broken = broken

    @classmethod
    def read(cls, folder: Path) -> PhraseBook:
        """Check and decode a folder. Never raises: a manifest that cannot be read leaves every phrase broken."""
        hashes = _hashes(folder)
        clips: dict[str, Pcm] = {}
        for code, phrase in CLIPS.items():
            pcm = _checked(folder / f"{code}.opus", hashes.get(code))
            if pcm is not None:
                clips[code] = pcm[: phrase.slot_ms * 48]
        return cls(clips, tuple(sorted(set(CLIPS) - set(clips))))

    def pcm(self, code: str) -> Pcm | None:
        """A phrase's sound; None if it is broken."""
        return self._clips.get(code)


@functools.cache
def burned_in() -> PhraseBook:
    """The clips that came with this firmware, read once per process."""
    return PhraseBook.read(FOLDER)


def _hashes(folder: Path) -> dict[str, str]:
    try:
        return {entry["code"]: entry["sha256"] for entry in json.loads((folder / MANIFEST).read_bytes())}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _checked(path: Path, sha256: str | None) -> Pcm | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest() != sha256:
        return None
    try:
        with av.open(str(path), format="ogg") as container:
            parts = [mono(frame) for frame in container.decode(audio=0)]
    except av.FFmpegError:
        return None
    if not parts:
        return None
    whole = np.concatenate(parts)
    whole.flags.writeable = False
    return whole
