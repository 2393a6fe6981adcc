"""A desk with an audio room: real decoder and asset store, and a voice that hums instead of speaking."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from broadcast_server.audio.assets import AssetStore
from broadcast_server.audio.ffmpeg import Sandbox
from broadcast_server.audio.formats import SAMPLE_RATE_HZ
from broadcast_server.audio.speech import Speaker, Voice
from broadcast_server.control.desk import AudioRoom, Desk


class HummingSpeaker:
    """One second of a tone for every ten letters; text and voice decide the pitch."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Voice]] = []

    async def say(self, text: str, voice: Voice, *, lexicon: Mapping[str, str] | None = None) -> bytes:
        del lexicon
        self.said.append((text, voice))
        pitch_hz = 300 + hashlib.sha256(f"{text}{voice}".encode()).digest()[0]
        at = np.arange(SAMPLE_RATE_HZ * max(1, len(text) // 10)) / SAMPLE_RATE_HZ
        return (np.sin(2 * np.pi * pitch_hz * at) * 8000).astype("<i2").tobytes()


@asynccontextmanager
async def an_audio_room(folder: Path, *, speaker: Speaker | None, free_bytes: int = 10**12) -> AsyncIterator[AudioRoom]:
    assets = AssetStore(folder / "assets", reserve_bytes=10**9, free_bytes=lambda _: free_bytes)
    quarantine = folder / "quarantine"
    quarantine.mkdir(exist_ok=True)
    yield AudioRoom(assets=assets, sandbox=await Sandbox.probe(), speaker=speaker, quarantine=quarantine)
    assert list(quarantine.iterdir()) == [], "an upload outlived its verb"


def with_room(desk: Desk, room: AudioRoom) -> Desk:
    return replace(desk, audio=room)
