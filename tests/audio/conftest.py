"""What the tests of sound share: a sandbox, a store that believes in its disk, uploads made by a real encoder."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from broadcast_server.audio.assets import AssetStore
from broadcast_server.audio.ffmpeg import Sandbox, encode_pcm_argv, find_ffmpeg
from broadcast_server.supervise import InlineExecutor

Encode = Callable[..., Path]


@pytest.fixture
async def sandbox() -> Sandbox:
    return await Sandbox.probe()


@pytest.fixture
def executor() -> InlineExecutor:
    return InlineExecutor()


@pytest.fixture
def assets(tmp_path: Path) -> AssetStore:
    return AssetStore(tmp_path / "assets", free_bytes=lambda _: 10**12)


@pytest.fixture
def encode(tmp_path: Path) -> Encode:
    """PCM → a file in quarantine, as an operator's recorder would have written it."""

    def write(name: str, pcm: bytes, *, codec: str, kbps: int = 0, rate_hz: int = 48_000, channels: int = 1) -> Path:
        path = tmp_path / name
        argv = encode_pcm_argv(str(path), codec=codec, kbps=kbps, rate_hz=rate_hz, channels=channels)
        subprocess.run([find_ffmpeg(), *argv[1:]], input=pcm, check=True)
        return path

    return write
