"""What the server holds at the end, written into the trace: play log, audit chain, spans, reports."""

from __future__ import annotations

from broadcast_server.domain.clock import to_ms
from broadcast_server.store import audit
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import AuditRow, LinkSpanRow, PlayRow, ReportRow
from simulation.world.trace import Trace


async def copy_books(store: Store, trace: Trace) -> None:
    """One record a row, in the order of their keys."""

    def read(session: Session) -> None:
        for play in sorted(session.query(PlayRow), key=lambda row: (row.starts_at, row.node_id, row.broadcast_id)):
            trace.note(
                "play",
                node=play.node_id,
                entry=play.broadcast_id,
                start=to_ms(play.starts_at),
                end=to_ms(play.ends_at),
                verdict=play.verdict.value,
                reason=play.reason,
                heard_ms=play.heard_ms,
                judged=play.judged_at is not None,
            )
        for row in sorted(session.query(AuditRow), key=lambda row: row.sequence):
            trace.note("audit", sequence=row.sequence, at=to_ms(row.at), verb=row.verb, subject=row.subject)
        trace.note("audit_chain", broken=audit.verify(session))
        for span in sorted(session.query(LinkSpanRow), key=lambda row: (row.node_id, row.since)):
            until = None if span.until is None else to_ms(span.until)
            trace.note("span", node=span.node_id, since=to_ms(span.since), until=until)
        for report in sorted(session.query(ReportRow), key=lambda row: (row.node_id, row.boot_id, row.sequence)):
            trace.note("stored", node=report.node_id, boot=report.boot_id, sequence=report.sequence)

    await store.read(read)
