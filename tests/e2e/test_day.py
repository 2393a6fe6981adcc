"""The demo's day is a test: if it does not sound, nothing else matters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulation import demo

pytestmark = pytest.mark.e2e


async def test_every_node_is_heard_for_announcements_play_now_and_both_relays(tmp_path: Path):
    report = tmp_path / "out.json"
    assert await demo.run(90, report, tmp_path / "village") == 0
    told = json.loads(report.read_text("utf-8"))
    assert told["ok"] is True
    kinds = {(each["kind"], each.get("ingest")) for each in told["broadcasts"]}
    assert kinds == {("announcement", None), ("play_now", None), ("relay", "pull"), ("relay", "push")}
    for broadcast in told["broadcasts"]:
        assert broadcast["nodes_heard"] == broadcast["nodes_planned"] == demo.NODES
        assert broadcast["verdicts"] == {"played": demo.NODES}, "the play log says what the recordings say"
        assert set(broadcast["start_error_ms"]) == {"p50", "p99"}
