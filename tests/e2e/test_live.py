"""Somebody speaks into the real server; it is killed in the middle, and the speaker goes on."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from broadcast_server.relay.stream import PacketEncoder
from broadcast_server.supervise import SystemClock
from firmware_sim.ear import heard
from simulation.listening import decode, read_recordings
from simulation.samples import tone_pcm
from simulation.village import COMMUNE, Village
from tests.firmware_sim.world import needs_mosquitto
from tests.support.until import until

pytestmark = pytest.mark.e2e

NODES = 2
BEFORE, AFTER = (700, 1600), (500, 1900)


async def speak(village: Village, voice: str, sound: Sequence[bytes], first: int, told: list[dict[str, Any]]) -> None:
    """Send packets in real time, numbered from `first`."""
    clock = SystemClock()
    async with connect(village.url.replace("http", "ws", 1) + voice, compression=None, ssl=village.trusted) as socket:
        await socket.send(json.dumps({"token": village.token}))
        told.append(json.loads(await socket.recv()))

        async def listen() -> None:
            async for message in socket:
                told[len(told) :] = [json.loads(message)]

        listening = asyncio.create_task(listen(), name="test.listen")
        began_s = clock.monotonic()
        for number, packet in enumerate(sound):
            await clock.sleep(began_s + number * 0.02 - clock.monotonic())
            await socket.send((first + number).to_bytes(4, "big") + packet)
        listening.cancel()


@needs_mosquitto
async def test_a_server_killed_while_somebody_speaks_takes_the_voice_up_again(tmp_path: Path):
    encoder = PacketEncoder()
    before, after = encoder.encode(tone_pcm(BEFORE, 5.0)), encoder.encode(tone_pcm(AFTER, 5.0))
    told: list[dict[str, Any]] = []
    async with Village(tmp_path) as village:
        await village.settle_in()
        await village.open_day_and_night()
        record = ("--record", str(tmp_path / "recordings"))
        async with village.nodes(NODES, identity=tmp_path / "nodes", arguments=record) as fleet:
            await village.until_ready(NODES, fleet)
            opened = await village.ask("POST", "/live", unit_id=COMMUNE, title="Nói thử (mô phỏng)")
            await speak(village, opened["voice"], before, 0, told)
            assert village.server is not None
            village.server.send_signal(signal.SIGKILL)
            await village.server.wait()
            await village.start_server()
            await until(lambda: _is_back(village, opened["id"]))
            await speak(village, opened["voice"], after, 1_000, told)
            closed = await village.ask("POST", f"/live/{opened['id']}/close")
            kept = await until(lambda: _recorded(village, opened["id"]), timeout_s=30)
            sound = await village.client.get(f"/api/v1/assets/{kept['recording_sha256']}")
            await fleet.terminate()
    assert closed["end_reason"] == "closed"
    assert max(one.get("sounding") or 0 for one in told) == NODES, told
    file = tmp_path / "recording.opus"
    file.write_bytes(sound.content)
    assert [one.pair for one in heard(decode(file))] == [BEFORE, AFTER]
    recordings = read_recordings(tmp_path / "recordings")
    assert len(recordings) == NODES
    for recording in recordings:
        pairs = [one.pair for one in heard(recording.pcm, recording.sample0_ns)]
        assert (pairs[0], pairs[-1]) == (BEFORE, AFTER)


async def _is_back(village: Village, session_id: str) -> bool:
    answer = await village.client.post(f"/api/v1/live/{session_id}/renew")
    return answer.status_code == 204


async def _recorded(village: Village, session_id: str) -> dict[str, Any] | None:
    found: dict[str, Any] = await village.ask("GET", f"/live/{session_id}")
    return found if found["recording_state"] == "kept" else None
