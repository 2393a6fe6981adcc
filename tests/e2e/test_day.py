"""The demo's day is a test: if it does not sound, nothing else matters."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from simulation import demo

pytestmark = pytest.mark.e2e


async def test_every_node_is_heard_though_server_and_broker_are_killed_and_an_emergency_cuts_in(tmp_path: Path):
    report = tmp_path / "out.json"
    assert await demo.run(90, report, tmp_path / "village") == 0
    told = json.loads(report.read_text("utf-8"))
    assert told["ok"] is True
    kinds = {(each["kind"], each.get("ingest")) for each in told["broadcasts"]}
    recorded = {("announcement", None), ("play_now", None), ("emergency", None)}
    assert kinds == recorded | {("relay", "pull"), ("relay", "push")}
    killed, back = (datetime.fromisoformat(told["outage"][name]) for name in ("killed_at", "back_at"))
    for broadcast in told["broadcasts"]:
        assert broadcast["nodes_heard"] == broadcast["nodes_planned"] == demo.NODES
        is_cut_into = broadcast["kind"] == "relay" and datetime.fromisoformat(broadcast["starts_at"]) > back
        verdict = "partial" if is_cut_into else "played"
        assert broadcast["verdicts"] == {verdict: demo.NODES}, "the play log says what the recordings say"
        assert set(broadcast["start_error_ms"]) == {"p50", "p99"}
    titles = [each["title"] for each in told["broadcasts"] if killed < datetime.fromisoformat(each["starts_at"]) < back]
    assert titles == ["Thông báo khi máy chủ đã ngừng"], "it sounded while server and broker were dead"
    assert told["cut_in"]["nodes_cut"] == told["cut_in"]["nodes_handed_back"] == demo.NODES
    assert told["cut_in"]["relay_ms_during_it"] == 0
    assert told["log_verifies"] is True
