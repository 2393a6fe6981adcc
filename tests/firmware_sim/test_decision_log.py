"""What a fleet decides, for whoever watches it: a line of JSON for each change."""

import json
from pathlib import Path

from firmware_sim.fleet import DecisionLog
from speaker_protocol.rules import Decision, DecisionKind, Why


def test_each_decision_is_a_line_that_names_the_node_the_instant_and_what_sounds(tmp_path: Path):
    file = tmp_path / "there" / "decisions.jsonl"
    log = DecisionLog(file)
    log.note("n1", 1_000, Decision(DecisionKind.STREAM, Why.PLANNED, entry_id="s1@1"))
    log.note("n1", 2_000, Decision(DecisionKind.ALERT, Why.ALERT, alert_id="e1"))
    written = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    log.close()

    assert written == [
        {"node": "n1", "at_ns": 1_000, "kind": "stream", "why": "planned", "entry": "s1@1"},
        {"node": "n1", "at_ns": 2_000, "kind": "alert", "why": "alert", "entry": "alert:e1"},
    ]
