"""A province with two communes, their clusters and people, and things ready to be put on the air."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from broadcast_server.control.access import Actor
from broadcast_server.control.desk import Desk
from broadcast_server.domain.proof import Verdict
from broadcast_server.domain.recurrence import Rule, rule_from_dict
from broadcast_server.store import library, places, schedules
from broadcast_server.store.session import Session
from broadcast_server.store.tables import (
    BroadcastRow,
    ClusterRow,
    FeedOfferRow,
    FeedRow,
    GrantRow,
    GroupMemberRow,
    GroupRow,
    NodeRow,
    PlayRow,
    UnitLinkRow,
    UnitRow,
    UserRow,
)
from broadcast_server.store.types import fold
from broadcast_server.store.words import ContentKind, FeedKind, MediaKind, Role, Tier, VersionState
from speaker_protocol.rules import BulletinClass
from tests.support.clock import FakeClock
from tests.support.database import a_store
from tests.support.desk import a_desk_of

PROVINCE, DONG, TAY = "48", "20194", "20195"
NOW = datetime(2026, 6, 1, 2, 0, tzinfo=UTC)
"""Monday, 1 June 2026, 09:00 in the village."""

LAN = Actor("user-lan", "lan")
"""Announcer and head of the station of xã Đông."""
HA = Actor("user-ha", "ha")
"""Editor of the province."""
NGOC = Actor("user-ngoc", "ngoc")
"""An inspector: reads everything, touches nothing."""


def at(hour: int, minute: int = 0, second: int = 0, *, day: int = 1) -> datetime:
    """An instant of June 2026 by the village's clock."""
    return datetime(2026, 6, day, hour, minute, second, tzinfo=UTC) - timedelta(hours=7)


def once(when: datetime) -> Rule:
    return rule_from_dict({"kind": "once", "at": when.isoformat()})


def daily(*times: str) -> Rule:
    days = ["mo", "tu", "we", "th", "fr", "sa", "su"]
    return rule_from_dict({"kind": "weekly", "weekdays": days, "times": list(times)})


@dataclass(frozen=True, slots=True)
class Village:
    desk: Desk

    @property
    def clock(self) -> FakeClock:
        assert isinstance(self.desk.clock, FakeClock)
        return self.desk.clock

    async def bulletin(
        self,
        title: str = "Lịch tiêm chủng",
        *,
        unit: str = DONG,
        minutes: float = 3,
        klass: BulletinClass = BulletinClass.NORMAL,
        approved: bool = True,
        with_asset: bool = True,
        valid_to: datetime | None = None,
        sound: bytes | None = None,
    ) -> str:
        """A recorded bulletin; returns its id. `sound`: the recording, where somebody is going to decode it."""
        made = self.desk.chance.new_id()
        sha256 = hashlib.sha256(made.encode() if sound is None else sound).hexdigest()

        def work(session: Session) -> None:
            now = self.desk.clock.now()
            if with_asset:
                library.add_asset(
                    session,
                    sha256=sha256,
                    unit_id=unit,
                    label=title,
                    size_bytes=1000 if sound is None else len(sound),
                    duration_ms=round(minutes * 60_000),
                    report={},
                    created_at=now,
                )
            library.add_bulletin(
                session,
                bulletin_id=made,
                unit_id=unit,
                title=title,
                klass=klass,
                subject=None,
                valid_from=None,
                valid_to=valid_to,
                created_by="test",
                created_at=now,
            )
            version = library.add_version(
                session,
                version_id=f"v{made[1:]}",
                bulletin_id=made,
                language="vie",
                media=MediaKind.AUDIO,
                text=None,
                voice=None,
                asset_sha256=sha256 if with_asset else None,
                content_hash=f"hash-{made}",
                created_by="test",
                created_at=now,
            )
            if approved:
                version.state = VersionState.APPROVED
                version.approved_hash, version.approved_by, version.approved_at = version.content_hash, "test", now

        await self.desk.store.begin(work)
        return made

    async def newer_version(self, bulletin: str, *, minutes: float = 3) -> str:
        """A further approved version in Vietnamese; returns its id."""
        made = self.desk.chance.new_id()
        sha256 = hashlib.sha256(made.encode()).hexdigest()

        def work(session: Session) -> None:
            now = self.desk.clock.now()
            library.add_asset(
                session,
                sha256=sha256,
                unit_id=library.bulletin(session, bulletin).unit_id,
                label="đính chính",
                size_bytes=1000,
                duration_ms=round(minutes * 60_000),
                report={},
                created_at=now,
            )
            version = library.add_version(
                session,
                version_id=made,
                bulletin_id=bulletin,
                language="vie",
                media=MediaKind.AUDIO,
                text=None,
                voice=None,
                asset_sha256=sha256,
                content_hash=f"hash-{made}",
                created_by="test",
                created_at=now,
            )
            version.state = VersionState.APPROVED
            version.approved_hash, version.approved_by, version.approved_at = version.content_hash, "test", now

        await self.desk.store.begin(work)
        return made

    async def heard(
        self,
        entry_id: str,
        cluster_id: str,
        start: datetime,
        *,
        planned: timedelta,
        heard: timedelta,
        verdict: Verdict = Verdict.PLAYED,
        reason: str | None = None,
    ) -> None:
        """What the play log has of one entry on one cluster, whose node is put there if it has none."""
        schedule_id, _ = schedules.parse_entry_id(entry_id)

        def work(session: Session) -> None:
            unit_id = cluster_id.partition("-")[2]
            node_id = f"n-{cluster_id}"
            if session.get(NodeRow, node_id) is None:
                session.add(
                    NodeRow(
                        id=node_id,
                        unit_id=unit_id,
                        cluster_id=cluster_id,
                        public_key=node_id.encode().hex().ljust(64, "0")[:64],
                        hardware="",
                        firmware="",
                        broker_password_line="",
                        asset_token_hash=node_id,
                        enrolled_at=start,
                    )
                )
                session.flush()
            row = schedules.schedule(session, schedule_id)
            if session.get(BroadcastRow, entry_id) is None:
                is_feed = row.content_kind is ContentKind.FEED
                session.add(
                    BroadcastRow(
                        id=entry_id,
                        schedule_id=schedule_id,
                        unit_id=row.unit_id,
                        kind=row.kind,
                        klass=row.klass,
                        title=row.name,
                        starts_at=start,
                        ends_at=start + planned,
                        feed_id=row.content_id if is_feed else None,
                    )
                )
                session.flush()
            session.add(
                PlayRow(
                    id=f"p-{cluster_id}-{start.timestamp():.0f}",
                    broadcast_id=entry_id,
                    unit_id=unit_id,
                    cluster_id=cluster_id,
                    node_id=node_id,
                    starts_at=start,
                    ends_at=start + planned,
                    verdict=verdict,
                    reason=reason,
                    heard_ms=heard // timedelta(milliseconds=1),
                    started_at=start if heard else None,
                    judged_at=start + planned,
                )
            )

        await self.desk.store.begin(work)

    async def feed(
        self,
        name: str = "Đài mô phỏng Một",
        *,
        owner: str = PROVINCE,
        offered_to: str | None = PROVINCE,
        until: datetime | None = None,
    ) -> str:
        """A pulled feed with an offer; returns its id."""
        made = self.desk.chance.new_id()
        offer = self.desk.chance.new_id()

        def work(session: Session) -> None:
            now = self.desk.clock.now()
            session.add(
                FeedRow(
                    id=made,
                    unit_id=owner,
                    name=name,
                    name_folded=fold(name),
                    tier=Tier.PROVINCE,
                    kind=FeedKind.PULL,
                    url="http://127.0.0.1:1/a.mp3",
                    created_at=now,
                )
            )
            session.flush()
            if offered_to is not None:
                session.add(
                    FeedOfferRow(
                        id=offer,
                        feed_id=made,
                        unit_id=offered_to,
                        valid_from=now - timedelta(days=1),
                        valid_to=until,
                        basis="kế hoạch tiếp âm 2026",
                        created_at=now,
                    )
                )

        await self.desk.store.begin(work)
        return made


@asynccontextmanager
async def a_village(now: datetime = NOW) -> AsyncIterator[Village]:
    """On a store in memory, at 09:00 of 1 June 2026."""
    async with a_store(clock=FakeClock(now)) as store:
        desk = a_desk_of(store)
        await store.begin(lambda session: settle(session, now))
        yield Village(desk)


def settle(session: Session, now: datetime) -> None:
    """Places, clusters, one group, people."""
    places.ensure_kinds(session)
    for unit_id, kind, name in (
        (PROVINCE, "province", "Tỉnh Mẫu"),
        (DONG, "commune", "Xã Đông"),
        (TAY, "commune", "Xã Tây"),
    ):
        session.add(UnitRow(id=unit_id, kind=kind, name=name, name_folded=fold(name), created_at=now))
    session.flush()
    for unit_id in (DONG, TAY):
        session.add(UnitLinkRow(id=f"link-{unit_id}", unit_id=unit_id, parent_id=PROVINCE, valid_from=date(2025, 7, 1)))
        for number in (1, 2):
            session.add(
                ClusterRow(
                    id=f"c{number}-{unit_id}",
                    unit_id=unit_id,
                    code=f"CUM-{number:02}",
                    name=f"Cụm {number}",
                    name_folded=f"cum {number}",
                    config={},
                    created_at=now,
                )
            )
    session.flush()
    session.add(GroupRow(id="group-cho", unit_id=DONG, name="Chợ", created_at=now))
    session.flush()
    session.add(GroupMemberRow(group_id="group-cho", cluster_id=f"c1-{DONG}"))
    people = ((LAN, Role.COMMUNE_HEAD, DONG), (HA, Role.PROVINCE_EDITOR, PROVINCE), (NGOC, Role.INSPECTOR, PROVINCE))
    for actor, role, unit_id in people:
        session.add(UserRow(id=actor.user_id, login=actor.login, name=actor.login.title(), created_at=now))
        session.flush()
        session.add(
            GrantRow(
                id=f"grant-{actor.login}",
                user_id=actor.user_id,
                role=role,
                unit_id=unit_id,
                valid_from=now - timedelta(days=1),
            )
        )
    session.flush()
