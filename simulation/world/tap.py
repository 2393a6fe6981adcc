"""What went over the broker, read into the trace: signed intents as they were published, and what nodes reported.

It reads the bytes on the wire with the wire's own code and trusts nobody: a plan is written down by its hash, its
segments once per hash; a report once per boot and number, a different one under the same number as a fork.
"""

from __future__ import annotations

from typing import Any

from simulation.world.trace import Trace
from speaker_protocol import messages as wire
from speaker_protocol.signing import EnvelopeRefused, parse


class Tap:
    """Listens at the broker."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._bodies: set[str] = set()
        self._reports: dict[tuple[str, str, int], str] = {}

    def heard(self, sender: str, topic: str, payload: bytes, retain: bool) -> None:
        """One message the broker took."""
        del retain
        _, _, family, owner, leaf = topic.split("/")
        try:
            if family == "node" and leaf == "plan":
                self._plan(sender, owner, topic, payload)
            elif family == "unit" and leaf == "alert":
                self._alerts(sender, owner, topic, payload)
            elif family == "node" and leaf == "config":
                self._signed(sender, topic, payload, {})
            elif family == "node" and leaf == "report":
                self._report(owner, payload)
        except EnvelopeRefused:
            self._trace.note("nonsense", sender=sender, topic=topic)

    def _signed(self, sender: str, topic: str, raw: bytes, facts: dict[str, Any]) -> None:
        envelope = parse(raw)
        self._trace.note(
            "published",
            by=sender,
            topic=topic,
            order=[envelope.epoch, envelope.sequence],
            digest=envelope.digest.hex()[:16],
            expires_ms=envelope.expires_ms,
            **facts,
        )

    def _plan(self, sender: str, node: str, topic: str, payload: bytes) -> None:
        raw, packed = wire.split_plan(payload)
        head = wire.decode(wire.PlanHead, parse(raw).body)
        body = head.body_sha256[:16]
        if body not in self._bodies:
            self._bodies.add(body)
            segments = wire.open_plan_body(head, packed).segments
            told = [[one.entry_id, one.start_ms, one.end_ms, one.offset_ms, one.asset] for one in segments]
            self._trace.note("body", body=body, segments=told)
        facts = {"node": node, "body": body, "from_ms": head.valid_from_ms, "until_ms": head.valid_until_ms}
        self._signed(sender, topic, raw, facts)

    def _alerts(self, sender: str, unit: str, topic: str, payload: bytes) -> None:
        body = wire.decode(wire.AlertSetBody, parse(payload).body)
        latch = None if body.stop_all is None else body.stop_all.latch_id
        alerts = [[one.alert_id, one.level, one.expires_ms] for one in body.alerts]
        self._signed(sender, topic, payload, {"unit": unit, "alerts": alerts, "latch": latch})

    def _report(self, node: str, payload: bytes) -> None:
        envelope = parse(payload)
        body = wire.decode(wire.ReportBody, envelope.body)
        key, digest = (node, body.boot_id, body.sequence), envelope.digest.hex()[:16]
        if self._reports.get(key) == digest:
            return
        self._reports[key] = digest
        self._trace.note(
            "reported",
            node=node,
            boot=body.boot_id,
            sequence=body.sequence,
            line=body.line,
            kind=body.kind.value,
            entry=body.entry_id,
            start=body.segment_start_ms,
            heard_ms=body.heard_ms,
            reason=body.reason,
            digest=digest,
        )
