"""A speaker is installed with the real programs: claimed by its label, heard below its pole, approved, on the air."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from broadcast_server.supervise import Child
from firmware_sim.ear import heard as pairs_heard
from firmware_sim.store import Identity
from simulation.listening import read_recordings, to_ns
from simulation.samples import sample
from simulation.village import COMMUNE, Village
from tests.e2e.test_outages import in_seconds, until_at
from tests.firmware_sim.world import needs_mosquitto
from tests.support.boxes import heard

pytestmark = [pytest.mark.e2e, needs_mosquitto]

SERIAL = "LOA-2026-0001"


def so_far(recordings: Path) -> npt.NDArray[np.int16]:
    """What the one node has sounded until now, from the file it is still writing."""
    (file,) = recordings.glob("*.wav")
    raw = file.read_bytes()[44:]
    return np.frombuffer(raw[: len(raw) // 2 * 2], "<i2")


async def the_node(village: Village) -> dict[str, Any]:
    (node,) = (await village.ask("GET", "/nodes"))["items"]
    told: dict[str, Any] = node
    return told


async def test_a_box_is_claimed_heard_approved_and_on_the_air(tmp_path: Path):
    recordings = tmp_path / "recordings"
    async with Village(tmp_path) as village:
        await village.settle_in()
        await village.open_day_and_night()
        admin = (await village.command("token", "create", "quantri"))["token"]
        made = await village.ask("POST", "/devices", serial=SERIAL, unit_id=COMMUNE)
        arguments = ["--claim", f"{SERIAL}:{made['claim_code']}", "--identity", str(tmp_path / "box")]
        if village.is_tls:
            arguments += ["--ca", str(village.authority)]
        command = [sys.executable, "-m", "firmware_sim", "run", "--server", village.url, "--nodes", "1", *arguments]
        async with Child(
            [*command, "--record", str(recordings)], name="installing.box", stdout=False, grace_s=30.0, env=os.environ
        ) as box:
            (ready,) = await village.until_ready(1, box)
            node_id = ready["id"]
            node = await the_node(village)
            assert (node["state"], node["serial"]) == ("probation", SERIAL)
            bulletin = await village.bulletin("Thông báo", sample("announcement_a").path)
            unheard = in_seconds(2)
            await village.schedule(bulletin_id=bulletin, starts_at=unheard)
            asked = await village.ask("POST", f"/nodes/{node_id}/binding", by=village.token)
            spoken_s = 0.3 + 2 * 4 * 0.9 + 1.0
            await until_at(in_seconds(spoken_s + 3.0))
            digits = heard(so_far(recordings))
            assert (len(digits), digits[:4]) == (8, digits[4:])
            await village.ask("POST", f"/nodes/{node_id}/binding/answer", code=digits[:4])
            assert asked["node_id"] == node_id
            active = await village.ask("POST", f"/nodes/{node_id}/approval", by=admin)
            assert active["state"] == "active"
            start = in_seconds(6)
            await village.schedule(bulletin_id=bulletin, starts_at=start)
            await until_at(start + timedelta(seconds=4))
            await box.terminate()
        (recording,) = read_recordings(recordings)
        identity = Identity.load(tmp_path / "box" / node_id)
        assert identity is not None
        assert (identity.certificate is not None) == village.is_tls
        assert json.loads((tmp_path / "box" / node_id / "identity.json").read_bytes())["state"] == "probation"
        pair = sample("announcement_a").tones
        sounded = [one for one in pairs_heard(recording.pcm, recording.sample0_ns) if one.pair == pair]
        assert [one for one in sounded if one.start_ns < to_ns(start) - 50_000_000] == []
        assert abs(sounded[0].start_ns - to_ns(start)) < 100_000_000
