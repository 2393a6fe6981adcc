"""From a draft to the air: who may let it sound, and what takes that back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
import pytest_asyncio
from sqlalchemy import select

from broadcast_server.control import approvals, library, outlook, people, placements, places, playing, scheduling
from broadcast_server.control.access import OPERATOR, Actor
from broadcast_server.control.approvals import Stage
from broadcast_server.control.library import BulletinChange
from broadcast_server.control.people import NewGrant
from broadcast_server.control.placements import ApprovePlacement
from broadcast_server.control.playing import PlayNow
from broadcast_server.control.scheduling import (
    CancelSchedule,
    ChangeSchedule,
    NewSchedule,
    Placed,
    ScheduleChange,
    Scope,
)
from broadcast_server.domain.clock import Window
from broadcast_server.domain.errors import BroadcastError, Conflict, Refused
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.store import library as shelf
from broadcast_server.store import schedules
from broadcast_server.store.session import Session
from broadcast_server.store.tables import AuditRow, BroadcastRow, UserRow
from broadcast_server.store.words import ContentKind, MediaKind, Role, ScheduleState, StepOf
from speaker_protocol.rules import BulletinClass
from tests.support.village import DONG, LAN, PROVINCE, Village, a_village, at, daily, once

C1 = f"c1-{DONG}"


@dataclass(frozen=True, slots=True)
class Station:
    """Lan heads it and writes; Tuấn announces; Minh is the chairman."""

    village: Village
    tuan: Actor
    minh: Actor

    async def write(self, actor: Actor = LAN, *, klass: BulletinClass = BulletinClass.NORMAL) -> tuple[str, str, str]:
        """A bulletin with one recorded version; its id, the version's and the hash."""
        desk = self.village.desk
        made, version = desk.chance.new_id(), desk.chance.new_id()
        sha256 = f"{made:0>64}"[-64:]

        def work(session: Session) -> str:
            now = desk.clock.now()
            shelf.add_asset(
                session,
                sha256=sha256,
                unit_id=DONG,
                label="tin",
                size_bytes=1,
                duration_ms=180_000,
                report={},
                created_at=now,
            )
            request = library.NewBulletin(DONG, "Lịch tiêm chủng", klass)
            bulletin = library.enter_bulletin(session, actor, request, made, now)
            row = library.enter_version(
                session,
                actor,
                bulletin,
                version,
                now,
                language="vie",
                media=MediaKind.AUDIO,
                text=None,
                voice=None,
                asset_sha256=sha256,
            )
            return row.content_hash

        return made, version, await desk.store.begin(work)

    async def submit(self, written: tuple[str, str, str], actor: Actor = LAN) -> None:
        bulletin, version, told = written
        await approvals.submit_version(self.village.desk, actor, bulletin, version, content_hash=told)

    async def approve(self, written: tuple[str, str, str], actor: Actor) -> None:
        await approvals.approve_version(self.village.desk, actor, *written)

    async def approved(self) -> tuple[str, str, str]:
        written = await self.write()
        await self.submit(written)
        await self.approve(written, self.minh)
        return written

    async def place(self, bulletin: str, actor: Actor, **more: object) -> Placed:
        request = NewSchedule(DONG, ContentKind.BULLETIN, bulletin, once(at(17)))
        return await scheduling.create_schedule(self.village.desk, actor, replace(request, **more))  # type: ignore[arg-type]

    async def allow(self, placed: Placed, actor: Actor, **more: object) -> Placed:
        request = ApprovePlacement(placed.schedule.id, placed.schedule.placement_hash)
        return await placements.approve_placement(self.village.desk, actor, replace(request, **more))  # type: ignore[arg-type]

    async def heard(self, day: int = 1) -> list[str]:
        window = Window(at(0, day=day), at(0, day=day + 1))
        line = await outlook.preview_cluster(self.village.desk, LAN, C1, window)
        return [one.start.astimezone(at(0).tzinfo).strftime("%H:%M") for one in line.segments]

    async def why(self, hour: int = 17, day: int = 1) -> str:
        return (await outlook.explain(self.village.desk, LAN, C1, at(hour, 1, day=day))).code

    async def stage(self, bulletin: str) -> Stage:
        view = await library.get_bulletin(self.village.desk, LAN, bulletin)
        return (await approvals.stages(self.village.desk, [view]))[view.versions[0].id]


@pytest_asyncio.fixture
async def station() -> AsyncIterator[Station]:
    async with a_village() as village:
        made = [
            await people.add_user(village.desk, OPERATOR, login, login, NewGrant(role, DONG))
            for login, role in (("tuan", Role.BROADCASTER), ("minh", Role.LEADER))
        ]
        tuan, minh = (Actor(view.user.id, view.user.login) for view in made)
        yield Station(village, tuan, minh)


async def refusal(work: object) -> str:
    with pytest.raises(BroadcastError) as refused:
        await work  # type: ignore[misc]
    return refused.value.code


# -- the wording ------------------------------------------------------------------------------------------------------


async def test_nobody_approves_their_own_by_no_role_no_name_and_no_token(station: Station) -> None:
    desk = station.village.desk
    written = await station.write()
    assert await refusal(station.approve(written, station.minh)) == "not_submitted"
    await station.submit(written)
    assert await refusal(station.approve(written, LAN)) == "author_approves"
    assert await refusal(station.approve(written, replace(LAN, token_id="t1"))) == "author_approves"
    await people.grant_role(desk, OPERATOR, LAN.user_id, NewGrant(Role.LEADER, DONG))
    await people.grant_role(desk, OPERATOR, LAN.user_id, NewGrant(Role.PROVINCE_EDITOR, PROVINCE))
    assert await refusal(station.approve(written, LAN)) == "author_approves"

    def rename(session: Session) -> None:
        session.get_one(UserRow, LAN.user_id).login = "hoa"

    await desk.store.begin(rename)
    assert await refusal(station.approve(written, Actor(LAN.user_id, "hoa"))) == "author_approves"
    assert await refusal(station.approve(written, station.tuan)) == "not_permitted"
    assert await refusal(approvals.approve_version(desk, station.minh, *written[:2], "0" * 64)) == "content_changed"
    await station.approve(written, station.minh)
    assert await station.stage(written[0]) is Stage.APPROVED


async def test_the_way_of_a_wording_is_told_step_by_step(station: Station) -> None:
    desk = station.village.desk
    bulletin, version, told = written = await station.write()
    stages = [await station.stage(bulletin)]
    await station.submit(written)
    stages.append(await station.stage(bulletin))
    await approvals.reject_version(desk, station.minh, bulletin, version, content_hash=told, reason="Sai ngày")
    stages.append(await station.stage(bulletin))
    await station.submit(written)
    await approvals.withdraw_version(desk, LAN, bulletin, version)
    await station.submit(written)
    await station.approve(written, station.minh)
    stages.append(await station.stage(bulletin))
    placed = await station.place(bulletin, LAN)
    stages.append(await station.stage(bulletin))
    entry = schedules.entry_id(placed.schedule.id, at(17))
    three = timedelta(minutes=3)
    await station.village.heard(entry, C1, at(17), planned=three, heard=three)

    def as_the_log_has_it(session: Session) -> None:
        session.get_one(BroadcastRow, entry).approval = told

    await desk.store.begin(as_the_log_has_it)
    stages.append(await station.stage(bulletin))
    await approvals.recall(desk, station.minh, bulletin)
    stages.append(await station.stage(bulletin))
    assert stages == ["draft", "submitted", "rejected", "approved", "scheduled", "aired", "recalled"]
    assert await station.why() == "unapproved_recalled"
    steps = (await approvals.history(desk, StepOf.VERSION, [version]))[version]
    assert [(one.step, one.login) for one in steps] == [
        ("write", "lan"),
        ("submit", "lan"),
        ("reject", "minh"),
        ("submit", "lan"),
        ("withdraw", "lan"),
        ("submit", "lan"),
        ("approve", "minh"),
        ("recall", "minh"),
    ]
    assert steps[2].reason == "Sai ngày"


async def test_a_submitted_wording_may_be_placed_and_sounds_once_it_is_approved(station: Station) -> None:
    written = await station.write()
    assert await refusal(station.place(written[0], LAN)) == "blocked_approval_void"
    await station.submit(written)
    placed = await station.place(written[0], LAN)
    assert "unapproved_waiting" in [notice.code for notice in placed.preview.notices]
    assert [stretch.start for stretch in placed.preview.stretches] == [at(17)], "shown as it would sound"
    assert (await station.heard(), await station.why()) == ([], "unapproved_waiting")
    await station.approve(written, station.minh)
    assert await station.heard() != []


async def test_another_validity_voids_the_approval_until_somebody_approves_it_again(station: Station) -> None:
    desk = station.village.desk
    written = await station.approved()
    await station.place(written[0], LAN)
    assert await station.heard() != []
    await library.change_bulletin(desk, station.tuan, written[0], BulletinChange(valid_to=at(20, day=9)))
    assert (await station.heard(), await station.why()) == ([], "unapproved_waiting")
    await people.grant_role(desk, OPERATOR, station.tuan.user_id, NewGrant(Role.LEADER, DONG))
    assert await refusal(station.approve(written, station.tuan)) == "author_approves"
    await station.approve(written, station.minh)
    assert await station.heard() != []


async def test_a_station_of_one_may_approve_routine_of_its_own_if_somebody_else_declared_it(station: Station) -> None:
    desk = station.village.desk
    declared = {"self_approval": True}
    assert await refusal(places.put_policy(desk, LAN, DONG, declared)) == "self_approval_not_yours"
    await places.put_policy(desk, station.minh, DONG, declared)
    await places.put_policy(desk, LAN, DONG, declared | {"max_minutes_per_day": 60})  # it stays declared
    written = await station.write()
    await station.submit(written)
    await station.approve(written, LAN)
    urgent = await station.write(klass=BulletinClass.PRIORITY)
    await station.submit(urgent)
    assert await refusal(station.approve(urgent, LAN)) == "author_approves"

    def told(session: Session) -> list[object]:
        rows = session.scalars(select(AuditRow).where(AuditRow.verb == "bulletin.approve"))
        return [row.detail.get("self_approval") for row in rows]

    assert await desk.store.read(told) == [True]


# -- the place --------------------------------------------------------------------------------------------------------


async def test_where_an_announcer_places_it_waits_for_who_may_approve(station: Station) -> None:
    bulletin = (await station.approved())[0]
    placed = await station.place(bulletin, station.tuan)
    assert (placed.schedule.needs_approval, placed.schedule.is_approved) == (True, False)
    assert "unapproved_place_waiting" in [notice.code for notice in placed.preview.notices]
    assert (await station.heard(), await station.why()) == ([], "unapproved_place_waiting")
    waiting = await approvals.waiting(station.village.desk, station.minh)
    assert [row.id for row in waiting.placements] == [placed.schedule.id]

    assert await refusal(station.allow(placed, station.tuan)) == "not_permitted"
    assert await refusal(station.allow(placed, station.minh, placement_hash="0" * 64)) == "content_changed"
    allowed = await station.allow(placed, station.minh)
    assert (allowed.schedule.is_approved, allowed.schedule.approved_by) == (True, "minh")
    assert await station.heard() != []
    assert (await approvals.waiting(station.village.desk, station.minh)).placements == ()


async def test_who_may_approve_has_approved_what_they_place(station: Station) -> None:
    placed = await station.place((await station.approved())[0], LAN)
    assert (placed.schedule.is_approved, placed.schedule.approved_by) == (True, "lan")


async def test_one_approval_covers_wording_and_place(station: Station) -> None:
    written = await station.write(station.tuan)
    await station.submit(written, station.tuan)
    placed = await station.place(written[0], station.tuan)
    assert await station.heard() == []
    await station.allow(placed, station.minh, content_hash=written[2])
    assert await station.heard() != []


@pytest.mark.parametrize(
    "change",
    [
        ScheduleChange(rule=once(at(18))),
        ScheduleChange(targets=(Target(TargetKind.CLUSTER, C1),)),
        ScheduleChange(max_wait=timedelta(minutes=20)),
    ],
)
async def test_other_hours_or_places_void_the_approval(station: Station, change: ScheduleChange) -> None:
    placed = await station.place((await station.approved())[0], LAN)
    request = ChangeSchedule(placed.schedule.id, Scope.ALL, change)
    changed = await scheduling.change_schedule(station.village.desk, station.tuan, request)
    assert changed.schedule.is_approved is False
    assert await station.heard() == []
    await station.allow(changed, station.minh)
    assert await station.heard() != []


async def test_other_content_in_an_approved_place_is_another_place(station: Station) -> None:
    first, second = await station.approved(), await station.approved()
    placed = await station.place(first[0], LAN)
    change = ScheduleChange(content_id=second[0])
    request = ChangeSchedule(placed.schedule.id, Scope.ALL, change)
    changed = await scheduling.change_schedule(station.village.desk, station.tuan, request)
    assert (changed.schedule.is_approved, await station.heard()) == (False, [])


async def test_rows_changed_behind_our_back_do_not_sound(station: Station) -> None:
    placed = await station.place((await station.approved())[0], LAN)

    def widen(session: Session) -> None:
        schedules.replace_targets(session, placed.schedule.id, [Target(TargetKind.CLUSTER, C1)])
        row = schedules.schedule(session, placed.schedule.id)
        row.version += 1

    await station.village.desk.store.begin(widen)
    assert (await station.heard(), await station.why()) == ([], "unapproved_place_changed")


async def test_one_occurrence_moved_by_an_announcer_waits_and_the_others_go_on(station: Station) -> None:
    desk = station.village.desk
    placed = await station.place((await station.approved())[0], LAN, rule=daily("17:00"))
    move = ChangeSchedule(placed.schedule.id, Scope.THIS, ScheduleChange(moved_to=at(19)), occurrence=at(17))
    moved = await scheduling.change_schedule(desk, station.tuan, move)
    assert [await station.heard(), len(await station.heard(2))] == [[], 1]
    assert await station.why(19) == "unapproved_place_waiting"
    await station.allow(moved, station.minh)
    assert len(await station.heard()) == 1


async def test_a_rejected_place_is_off_the_grid(station: Station) -> None:
    desk = station.village.desk
    placed = await station.place((await station.approved())[0], station.tuan)
    view = await placements.reject_placement(
        desk, station.minh, placed.schedule.id, placement_hash=placed.schedule.placement_hash, reason="Trùng họp dân"
    )
    assert view.state is ScheduleState.CANCELLED
    with pytest.raises(Conflict, match="schedule_over"):
        await station.allow(placed, station.minh)


async def test_what_an_approval_would_displace_is_shown_before_it_is_given(station: Station) -> None:
    bulletin = (await station.approved())[0]
    placed = await station.place(bulletin, station.tuan)
    other = await station.place((await station.approved())[0], LAN, accept_conflicts=True)
    assert await refusal(station.allow(placed, station.minh)) == "schedule_conflict"
    await scheduling.cancel_schedule(station.village.desk, LAN, CancelSchedule(other.schedule.id, Scope.ALL))
    await station.allow(placed, station.minh)
    assert len(await station.heard()) == 1


async def test_the_stations_regulations_say_which_ways_wait(station: Station) -> None:
    desk = station.village.desk
    bulletin = (await station.approved())[0]
    order = PlayNow(DONG, ContentKind.BULLETIN, bulletin)
    await playing.play_now(desk, station.tuan, order)
    await places.put_policy(desk, station.minh, DONG, {"approve_placement": ["play_now"]})
    assert await refusal(playing.play_now(desk, station.tuan, order)) == "play_now_needs_approver"
    placed = await station.place(bulletin, station.tuan)
    assert (placed.schedule.needs_approval, placed.schedule.is_approved) == (False, True)
    with pytest.raises(Refused, match="not_permitted"):
        await places.put_policy(desk, station.tuan, DONG, {"approve_placement": []})
