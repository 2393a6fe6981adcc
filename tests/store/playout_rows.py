"""A commune with three nodes and two broadcasts, as rows, for the tests of what playout keeps."""

from __future__ import annotations

from datetime import UTC, datetime

from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import (
    BroadcastRow,
    BulletinRow,
    ClusterRow,
    NodeRow,
    ScheduleRow,
    UnitKindRow,
    UnitRow,
)
from broadcast_server.store.words import ContentKind, ScheduleKind, ScheduleState
from speaker_protocol.rules import BulletinClass, Level

NOW = datetime(2026, 6, 1, 10, 0, tzinfo=UTC)
NODES = ("n1", "n2", "n3")
ENTRY, OTHER = "s1@1", "s1@2"


def settle(session: Session) -> None:
    words = {"unit_id": "xa", "created_by": "test", "created_at": NOW}
    session.add(UnitKindRow(code="commune", name_vi="xã", name_en="commune", closed_on=None))
    session.flush()
    session.add(UnitRow(id="xa", kind="commune", name="Xã", name_folded="xa", created_at=NOW))
    session.flush()
    session.add(BulletinRow(id="b1", title="Tin", title_folded="tin", klass=BulletinClass.NORMAL, **words))
    session.add(
        ScheduleRow(
            id="s1", series_id="s1", name="Tin", kind=ScheduleKind.ANNOUNCEMENT, klass=BulletinClass.NORMAL,
            level=Level.NORMAL, content_kind=ContentKind.BULLETIN, content_id="b1", rule={}, late={},
            state=ScheduleState.ACTIVE, starts_at=NOW, **words,
        )
    )  # fmt: skip
    for name in NODES:
        session.add(
            ClusterRow(id=f"c-{name}", unit_id="xa", code=name, name=name, name_folded=name, config={}, created_at=NOW)
        )
    session.flush()
    for name in NODES:
        session.add(
            NodeRow(
                id=name, unit_id="xa", cluster_id=f"c-{name}", public_key=name.encode().hex().ljust(64, "0"),
                hardware="", firmware="", broker_password_line="", asset_token_hash=name, enrolled_at=NOW,
            )
        )  # fmt: skip
    for entry in (ENTRY, OTHER):
        session.add(
            BroadcastRow(
                id=entry, schedule_id="s1", unit_id="xa", kind=ScheduleKind.ANNOUNCEMENT,
                klass=BulletinClass.NORMAL, title="Tin", starts_at=NOW, ends_at=NOW,
            )
        )  # fmt: skip
    session.flush()


async def settled(store: Store) -> Store:
    await store.begin(settle)
    return store
