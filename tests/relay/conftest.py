"""What the relay's tests share: a bus, a signer, the sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broadcast_server.audio.ffmpeg import Sandbox
from broadcast_server.mqtt.bus import LoopbackBus, LoopbackHub
from broadcast_server.signer.keys import FileSigner
from broadcast_server.supervise import SystemClock
from tests.support.clock import FakeChance


@pytest.fixture
async def bus() -> AsyncIterator[LoopbackBus]:
    loopback = LoopbackBus(LoopbackHub(), clock=SystemClock())
    await loopback.start()
    yield loopback
    await loopback.close()


@pytest.fixture
def signer(tmp_path: Path) -> FileSigner:
    return FileSigner(tmp_path / "keys", chance=FakeChance(), path_of=lambda unit: (unit,))


@pytest.fixture
async def sandbox() -> Sandbox:
    return await Sandbox.probe()
