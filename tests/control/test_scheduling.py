"""Stories of the schedule: what is refused and why, what conflicts show, what a change leaves alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from broadcast_server.control import outlook, placements, places, playing, scheduling
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.clashes import Effect, Way
from broadcast_server.control.placements import ApprovePlacement
from broadcast_server.control.playing import PlayNow
from broadcast_server.control.scheduling import (
    CancelSchedule,
    ChangeSchedule,
    NewSchedule,
    ScheduleChange,
    Scope,
)
from broadcast_server.domain.clock import Window
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.store import audit
from broadcast_server.store.words import ContentKind, ExceptionKind, Role, ScheduleKind, ScheduleState
from speaker_protocol.rules import BulletinClass, Level
from tests.support.people import a_person, with_password
from tests.support.village import DONG, HA, LAN, NGOC, PROVINCE, TAY, Village, a_village, at, daily, once

MIN = timedelta(minutes=1)


def wanted(bulletin: str, rule, **more) -> NewSchedule:
    return NewSchedule(unit_id=DONG, content_kind=ContentKind.BULLETIN, content_id=bulletin, rule=rule, **more)


def relay(feed: str, rule, minutes: int = 30, **more) -> NewSchedule:
    return NewSchedule(
        unit_id=more.pop("unit_id", DONG),
        content_kind=ContentKind.FEED,
        content_id=feed,
        rule=rule,
        length=minutes * MIN,
        **more,
    )


async def heard(village: Village, cluster: str = f"c1-{DONG}", day: int = 1) -> list[tuple[str, datetime, datetime]]:
    window = Window(at(0, day=day), at(0, day=day + 1))
    hearing = await outlook.preview_cluster(village.desk, LAN, cluster, window)
    return [(one.title, one.start, one.end) for one in hearing.segments]


# -- what is refused --------------------------------------------------------------------------------------------------


async def test_nothing_is_placed_at_a_quarter_past_three() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin("Thông báo", minutes=2)
        with pytest.raises(Refused) as refused:
            await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, once(at(3, 15, day=2))))
        assert refused.value.code == "quiet_hours"
        assert refused.value.facts["field"] == "rule"
        assert refused.value.facts["fix"] == "move_out_of_quiet_hours"
        assert refused.value.facts["quiet_from"] == "2026-06-01T22:00+07:00"
        assert await heard(village, day=2) == []


async def test_a_commune_that_waits_for_its_first_cluster_has_quiet_hours_too() -> None:
    async with a_village() as village:
        commune = await places.create_unit(village.desk, OPERATOR, places.NewUnit("commune", "Xã Mới", PROVINCE))
        bulletin = await village.bulletin("Thông báo", unit=PROVINCE)
        targets = (Target(TargetKind.UNIT, commune.id),)
        for hour, code in ((3, "quiet_hours"), (17, "")):
            request = NewSchedule(PROVINCE, ContentKind.BULLETIN, bulletin, once(at(hour, 15, day=2)), targets=targets)
            if code:
                with pytest.raises(Refused, match=code):
                    await scheduling.create_schedule(village.desk, HA, request)
            else:
                placed = await scheduling.create_schedule(village.desk, HA, request)
                assert [notice.code for notice in placed.preview.notices] == ["no_clusters"]


async def test_a_weekly_item_whose_tenth_week_is_fine_but_whose_hour_is_quiet_is_refused() -> None:
    async with a_village() as village:
        feed = await village.feed()
        with pytest.raises(Refused, match="quiet_hours") as refused:
            await scheduling.create_schedule(village.desk, LAN, relay(feed, daily("21:45")))
        assert refused.value.facts["field"] == "length"


async def test_an_emergency_passes_quiet_hours_once_another_person_has_agreed_to_its_place() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin("Lũ", klass=BulletinClass.EMERGENCY, unit=PROVINCE)
        request = NewSchedule(
            unit_id=PROVINCE, content_kind=ContentKind.BULLETIN, content_id=bulletin, rule=once(at(3, 15, day=2))
        )
        placed = await scheduling.create_schedule(village.desk, HA, request)
        assert (placed.schedule.level, placed.schedule.kind) == (Level.EMERGENCY_UPPER, ScheduleKind.EMERGENCY)
        assert [notice.code for notice in placed.preview.notices] == ["unapproved_place_waiting", "no_cluster_online"]
        night = Window(at(3, day=2), at(4, day=2))
        assert (await outlook.preview_cluster(village.desk, HA, f"c1-{DONG}", night)).segments == ()
        approval = ApprovePlacement(placed.schedule.id, placed.schedule.placement_hash)
        with pytest.raises(Invalid, match="proof_missing"):
            await placements.approve_placement(village.desk, HA, approval)
        ha = await with_password(village.desk, HA)
        with pytest.raises(Refused, match="unfit_same_person"):
            await placements.approve_placement(village.desk, HA, approval, ha.proof())
        other = await a_person(village.desk, Role.LEADER, PROVINCE)
        await placements.approve_placement(village.desk, other.actor, approval, other.proof())
        heard = (await outlook.preview_cluster(village.desk, HA, f"c1-{DONG}", night)).segments
        assert [one.start for one in heard] == [at(3, 15, day=2)]
        with pytest.raises(Refused, match="emergency_is_raised"):
            await playing.play_now(village.desk, HA, PlayNow(PROVINCE, ContentKind.BULLETIN, bulletin))
        with pytest.raises(Refused, match="not_permitted"):
            await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, once(at(3, 15, day=2))))


async def test_the_past_is_refused_by_name() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin()
        with pytest.raises(Invalid, match="past_time") as refused:
            await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, once(at(8, 59))))
        assert refused.value.facts["field"] == "rule.at"
        assert refused.value.facts["fix"] == "give_future_time"


async def test_unknown_places_and_places_of_others_are_refused() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin()
        for ref, code in (("nowhere", "unknown_target"), (TAY, "target_outside_unit")):
            request = wanted(
                bulletin, once(at(17)), targets=(Target(TargetKind.UNIT, DONG), Target(TargetKind.UNIT, ref))
            )
            with pytest.raises(Invalid, match=code) as refused:
                await scheduling.create_schedule(village.desk, LAN, request)
            assert refused.value.facts["field"] == "targets[1].ref"


async def test_what_nobody_approved_is_refused() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin(approved=False)
        with pytest.raises(Refused, match="blocked_approval_void") as refused:
            await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, once(at(17))))
        assert (refused.value.facts["field"], refused.value.facts["fix"]) == ("content_id", "approve_content")


async def test_what_has_no_audio_is_refused() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin(with_asset=False)
        with pytest.raises(Conflict, match="blocked_asset_missing"):
            await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, once(at(17))))


async def test_a_language_nobody_recorded_is_refused() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin()
        with pytest.raises(Refused, match="blocked_approval_void") as refused:
            await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, once(at(17)), language="khm"))
        assert refused.value.facts["language"] == "khm"


async def test_content_that_expires_before_it_sounds_is_refused_and_later_expiry_is_told() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin(valid_to=at(0, day=3))
        with pytest.raises(Refused, match="blocked_content_expired"):
            await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, once(at(17, day=4))))
        placed = await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, daily("17:00")))
        assert "blocked_content_expired" in {notice.code for notice in placed.preview.notices}


async def test_a_feed_must_be_offered() -> None:
    async with a_village() as village:
        feed = await village.feed(offered_to=None)
        with pytest.raises(Refused, match="blocked_not_offered") as refused:
            await scheduling.create_schedule(village.desk, LAN, relay(feed, daily("05:00")))
        assert refused.value.facts["fix"] == "ask_owner_for_offer"


async def test_an_offer_that_ends_soon_is_told_not_refused() -> None:
    async with a_village() as village:
        feed = await village.feed(until=at(0, day=6))
        placed = await scheduling.create_schedule(village.desk, LAN, relay(feed, daily("05:00")))
        assert "blocked_offer_expires" in {notice.code for notice in placed.preview.notices}


async def test_a_relay_needs_a_length_and_a_unit_needs_content() -> None:
    async with a_village() as village:
        feed = await village.feed()
        request = NewSchedule(unit_id=DONG, content_kind=ContentKind.FEED, content_id=feed, rule=daily("05:00"))
        with pytest.raises(Invalid, match="length_missing"):
            await scheduling.create_schedule(village.desk, LAN, request)
        with pytest.raises(NotFound, match="unknown_bulletin"):
            await scheduling.create_schedule(village.desk, LAN, wanted("0" * 32, once(at(17))))


async def test_the_neighbour_commune_cannot_use_or_place_what_is_not_theirs() -> None:
    async with a_village() as village:
        theirs = await village.bulletin(unit=TAY)
        with pytest.raises(NotFound, match="unknown_bulletin"):
            await scheduling.create_schedule(village.desk, LAN, wanted(theirs, once(at(17))))
        mine = await village.bulletin()
        with pytest.raises(Refused, match="not_permitted"):
            await scheduling.create_schedule(village.desk, NGOC, wanted(mine, once(at(17))))


async def test_a_station_with_a_maximum_refuses_the_item_that_passes_it() -> None:
    async with a_village() as village:
        await places.put_policy(village.desk, LAN, DONG, {"max_minutes_per_day": 40})
        feed = await village.feed()
        await scheduling.create_schedule(village.desk, LAN, relay(feed, daily("05:00"), 30))
        bulletin = await village.bulletin(minutes=11)
        with pytest.raises(Refused, match="day_too_long") as refused:
            await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, once(at(17, day=2))))
        assert refused.value.facts["limit_minutes"] == 40


# -- conflicts --------------------------------------------------------------------------------------------------------


async def test_an_overlap_is_shown_with_the_winner_the_rule_and_ways_out() -> None:
    async with a_village() as village:
        feed = await village.feed("Đài mô phỏng Một")
        await scheduling.create_schedule(village.desk, LAN, relay(feed, daily("17:00")))
        bulletin = await village.bulletin("Tin xã", minutes=3)
        with pytest.raises(Conflict, match="schedule_conflict") as refused:
            await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, once(at(17, 10))))
        [clash] = refused.value.facts["conflicts"]
        assert (clash["effect"], clash["reason"], clash["clusters"]) == ("dropped", "reason_ladder", 2)
        assert (clash["winner"]["title"], clash["loser"]["title"]) == ("Đài mô phỏng Một", "Tin xã")
        ways = {out["way"]: out for out in clash["ways_out"]}
        assert datetime.fromisoformat(ways["move"]["to"]) == at(17, 30)
        assert ways["allow_wait"]["minutes"] == 20
        assert refused.value.facts["fix"] == "accept_or_change"
        assert [title for title, *_ in await heard(village)] == ["Đài mô phỏng Một"]  # nothing was saved


async def test_an_accepted_conflict_is_saved_and_does_what_was_shown() -> None:
    async with a_village() as village:
        feed = await village.feed("Đài mô phỏng Một")
        await scheduling.create_schedule(village.desk, LAN, relay(feed, daily("17:00")))
        bulletin = await village.bulletin("Ưu tiên", minutes=3, klass=BulletinClass.PRIORITY)
        request = wanted(bulletin, once(at(17, 10)), max_wait=5 * MIN)
        preview = await scheduling.preview_schedule(village.desk, LAN, request)
        told = {(clash.loser.title, clash.effect): clash for clash in preview.clashes}
        assert set(told) == {("Ưu tiên", Effect.WAITS), ("Đài mô phỏng Một", Effect.INTERRUPTED)}
        assert told["Ưu tiên", Effect.WAITS].until == at(17, 11)  # a priority bulletin waits a minute at most
        assert Way.CANCEL_OTHER in {out.way for out in told["Đài mô phỏng Một", Effect.INTERRUPTED].ways_out}
        placed = await scheduling.create_schedule(village.desk, LAN, replace(request, accept_conflicts=True))
        assert placed.schedule.level == Level.PRIORITY_COMMUNE
        line = await heard(village)
        assert [title for title, *_ in line] == ["Đài mô phỏng Một", "Ưu tiên", "Đài mô phỏng Một"]
        assert placed.preview.stretches[0].start == line[1][1]


async def test_a_preview_saves_nothing() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin()
        preview = await scheduling.preview_schedule(village.desk, LAN, wanted(bulletin, once(at(17))))
        assert [(one.start, one.clusters) for one in preview.stretches] == [(at(17), 2)]
        assert await heard(village) == []
        assert await village.desk.store.read(audit.verify) is None


async def test_only_the_clusters_that_are_meant_can_conflict() -> None:
    async with a_village() as village:
        feed = await village.feed()
        market = (Target(TargetKind.GROUP, "group-cho"),)
        other = (Target(TargetKind.CLUSTER, f"c2-{DONG}"),)
        await scheduling.create_schedule(village.desk, LAN, relay(feed, daily("17:00"), targets=market))
        bulletin = await village.bulletin()
        placed = await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, once(at(17)), targets=other))
        assert placed.preview.clashes == ()
        with pytest.raises(Conflict, match="schedule_conflict"):
            await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, once(at(17, 5))))


async def test_the_same_clash_every_day_is_told_once_with_its_count() -> None:
    async with a_village() as village:
        feed = await village.feed()
        await scheduling.create_schedule(village.desk, LAN, relay(feed, daily("17:00")))
        bulletin = await village.bulletin(minutes=3)
        preview = await scheduling.preview_schedule(village.desk, LAN, wanted(bulletin, daily("17:10")))
        [clash] = preview.clashes
        assert (clash.times, clash.at) == (30, at(17, 10))


async def test_the_provinces_priority_stands_above_the_communes() -> None:
    async with a_village() as village:
        mine = await village.bulletin("Xã", klass=BulletinClass.PRIORITY)
        theirs = await village.bulletin("Tỉnh", klass=BulletinClass.PRIORITY, unit=PROVINCE)
        low = await scheduling.create_schedule(village.desk, LAN, wanted(mine, once(at(17)), max_wait=10 * MIN))
        request = NewSchedule(
            unit_id=PROVINCE,
            content_kind=ContentKind.BULLETIN,
            content_id=theirs,
            rule=once(at(17)),
            accept_conflicts=True,
        )
        high = await scheduling.create_schedule(village.desk, HA, request)
        assert (low.schedule.level, high.schedule.level) == (Level.PRIORITY_COMMUNE, Level.PRIORITY_UPPER)
        assert [(title, start) for title, start, _ in await heard(village)] == [("Tỉnh", at(17)), ("Xã", at(17, 3))]


# -- changing ---------------------------------------------------------------------------------------------------------


async def test_one_occurrence_moves_and_the_others_stay() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin(minutes=3)
        placed = await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, daily("17:00")))
        moved = ScheduleChange(moved_to=at(18, day=2))
        request = ChangeSchedule(placed.schedule.id, Scope.THIS, moved, occurrence=at(17, day=2))
        changed = await scheduling.change_schedule(village.desk, LAN, request)
        assert [one.kind for one in changed.schedule.exceptions] == [ExceptionKind.MOVED]
        starts = [(await heard(village, day=day))[0][1] for day in (1, 2, 3)]
        assert starts == [at(17), at(18, day=2), at(17, day=3)]


async def test_from_here_on_ends_one_row_and_begins_another_of_the_series() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin(minutes=3)
        first = (await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, daily("17:00")))).schedule
        await scheduling.cancel_schedule(village.desk, LAN, CancelSchedule(first.id, Scope.THIS, at(17, day=5)))
        request = ChangeSchedule(first.id, Scope.FROM_HERE, ScheduleChange(max_wait=10 * MIN), occurrence=at(17, day=3))
        second = (await scheduling.change_schedule(village.desk, LAN, request)).schedule
        assert (second.id != first.id, second.series_id) == (True, first.series_id)
        assert second.max_wait_ms == 600_000
        old = await scheduling.get_schedule(village.desk, LAN, first.id)
        assert (old.ends_at, old.max_wait_ms) == (at(17, day=3), 0)
        assert [len(await heard(village, day=day)) for day in (1, 2, 3, 4, 5, 6)] == [1, 1, 1, 1, 0, 1]

        later = ChangeSchedule(
            second.id, Scope.FROM_HERE, ScheduleChange(rule=daily("18:00")), occurrence=at(17, day=4)
        )
        third = (await scheduling.change_schedule(village.desk, LAN, later)).schedule
        assert [(await heard(village, day=day))[0][1] for day in (3, 4, 5)] == [
            at(17, day=3),
            at(18, day=4),
            at(18, day=5),
        ]
        assert third.series_id == first.series_id


async def test_a_change_of_all_leaves_what_has_sounded() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin(minutes=3)
        placed = await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, daily("17:00")))
        await village.clock.advance(10 * 3600)  # 19:00
        request = ChangeSchedule(placed.schedule.id, Scope.ALL, ScheduleChange(rule=daily("06:00")))
        await scheduling.change_schedule(village.desk, LAN, request)
        assert (await heard(village, day=1))[0][1] == at(17)
        assert (await heard(village, day=2))[0][1] == at(6, day=2)


async def test_all_means_every_row_of_the_series_that_is_still_to_come() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin(minutes=3)
        first = (await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, daily("17:00")))).schedule
        from_here = ChangeSchedule(first.id, Scope.FROM_HERE, ScheduleChange(name="Mới"), occurrence=at(17, day=4))
        second = (await scheduling.change_schedule(village.desk, LAN, from_here)).schedule
        await village.clock.advance(24 * 3600)  # one has sounded, two of the first row are to come
        request = ChangeSchedule(second.id, Scope.ALL, ScheduleChange(rule=daily("06:00")))
        await scheduling.change_schedule(village.desk, LAN, request)
        starts = [[start for _, start, _ in await heard(village, day=day)] for day in (1, 2, 3, 4)]
        assert starts == [[at(17)], [], [at(6, day=3)], [at(6, day=4)]]


async def test_a_change_into_quiet_hours_is_refused_and_changes_nothing() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin(minutes=3)
        placed = await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, daily("17:00")))
        for scope, change, field in (
            (Scope.THIS, ScheduleChange(moved_to=at(23)), "change.moved_to"),
            (Scope.FROM_HERE, ScheduleChange(rule=daily("23:00")), "change.rule"),
        ):
            request = ChangeSchedule(placed.schedule.id, scope, change, occurrence=at(17))
            with pytest.raises(Refused, match="quiet_hours") as refused:
                await scheduling.change_schedule(village.desk, LAN, request)
            assert refused.value.facts["field"] == field
        assert await scheduling.get_schedule(village.desk, LAN, placed.schedule.id) == placed.schedule


async def test_an_older_copy_and_an_unknown_occurrence_change_nothing() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin()
        placed = await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, daily("17:00")))
        old = ChangeSchedule(placed.schedule.id, Scope.ALL, ScheduleChange(name="x"), version=7)
        with pytest.raises(Conflict, match="version_changed"):
            await scheduling.change_schedule(village.desk, LAN, old)
        with pytest.raises(Invalid, match="unknown_occurrence"):
            await scheduling.cancel_schedule(
                village.desk, LAN, CancelSchedule(placed.schedule.id, Scope.THIS, at(17, 1))
            )
        naive = datetime(2026, 6, 2, 17, 0)  # noqa: DTZ001
        with pytest.raises(Invalid, match="naive_time"):
            await scheduling.cancel_schedule(village.desk, LAN, CancelSchedule(placed.schedule.id, Scope.THIS, naive))


async def test_three_ways_of_cancelling() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin()
        series = (await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, daily("17:00")))).schedule
        await scheduling.cancel_schedule(village.desk, LAN, CancelSchedule(series.id, Scope.THIS, at(17, day=2)))
        assert [len(await heard(village, day=day)) for day in (1, 2, 3)] == [1, 0, 1]
        await scheduling.cancel_schedule(village.desk, LAN, CancelSchedule(series.id, Scope.FROM_HERE, at(17, day=4)))
        assert [len(await heard(village, day=day)) for day in (3, 4, 5)] == [1, 0, 0]
        gone = await scheduling.cancel_schedule(village.desk, LAN, CancelSchedule(series.id, Scope.ALL))
        assert gone.state is ScheduleState.CANCELLED
        with pytest.raises(Conflict, match="schedule_over"):
            await scheduling.cancel_schedule(village.desk, LAN, CancelSchedule(series.id, Scope.ALL))


# -- now --------------------------------------------------------------------------------------------------------------


async def test_play_now_tells_when_it_really_sounds() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin("Tìm trẻ lạc", minutes=1)
        order = PlayNow(unit_id=DONG, content_kind=ContentKind.BULLETIN, content_id=bulletin)
        made = await playing.play_now(village.desk, LAN, order)
        assert made.starts_at == at(9, 0, 5)
        assert made.schedule.kind is ScheduleKind.PLAY_NOW
        assert made.entry_id == f"{made.schedule.id}@{int(at(9, 0, 5).timestamp() * 1000)}"


async def test_play_now_on_a_busy_air_is_refused_or_queued() -> None:
    async with a_village() as village:
        feed = await village.feed("Đài mô phỏng Một")
        await scheduling.create_schedule(village.desk, LAN, relay(feed, once(at(9, 0, 2)), 10))
        bulletin = await village.bulletin(minutes=1)
        order = PlayNow(unit_id=DONG, content_kind=ContentKind.BULLETIN, content_id=bulletin, accept_conflicts=True)
        with pytest.raises(Conflict, match="air_taken") as refused:
            await playing.play_now(village.desk, LAN, order)
        assert refused.value.facts["title"] == "Đài mô phỏng Một"
        queued = await playing.play_now(village.desk, LAN, replace(order, queue=True))
        assert queued.starts_at == at(9, 10, 2)


async def test_play_now_at_night_is_refused() -> None:
    async with a_village(at(3, 15)) as village:
        bulletin = await village.bulletin(minutes=1)
        order = PlayNow(unit_id=DONG, content_kind=ContentKind.BULLETIN, content_id=bulletin)
        with pytest.raises(Refused, match="quiet_hours"):
            await playing.play_now(village.desk, LAN, order)


async def test_stopping_leaves_what_was_heard_and_frees_the_air() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin("Dài", minutes=10)
        placed = await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, daily("09:30")))
        entry_id = placed.preview.stretches[0].entry_id
        with pytest.raises(Conflict, match="not_sounding"):
            await playing.stop(village.desk, LAN, entry_id)
        await village.clock.advance(32 * 60)
        with pytest.raises(Refused, match="not_permitted"):
            await playing.stop(village.desk, NGOC, entry_id)
        stopped = await playing.stop(village.desk, LAN, entry_id)
        assert (stopped.cut_at, stopped.heard_ms) == (at(9, 32), 120_000)
        assert await heard(village) == [("Dài", at(9, 30), at(9, 32))]
        assert await heard(village, day=2) == [("Dài", at(9, 30, day=2), at(9, 40, day=2))]


async def test_stopping_what_waits_takes_it_off() -> None:
    async with a_village() as village:
        feed = await village.feed()
        await scheduling.create_schedule(village.desk, LAN, relay(feed, once(at(9, 30)), 10))
        bulletin = await village.bulletin()
        request = wanted(bulletin, once(at(9, 31)), max_wait=30 * MIN, accept_conflicts=True)
        placed = await scheduling.create_schedule(village.desk, LAN, request)
        await village.clock.advance(32 * 60)
        stopped = await playing.stop(village.desk, LAN, placed.preview.stretches[0].entry_id)
        assert stopped.heard_ms == 0
        assert len(await heard(village)) == 1


async def test_stopping_a_relay_that_gave_way_keeps_its_first_part() -> None:
    async with a_village() as village:
        feed = await village.feed("Đài")
        placed = await scheduling.create_schedule(village.desk, LAN, relay(feed, once(at(9, 30)), 30))
        await village.clock.advance(40 * 60)
        await playing.stop(village.desk, LAN, placed.preview.stretches[0].entry_id)
        assert await heard(village) == [("Đài", at(9, 30), at(9, 40))]


# -- why --------------------------------------------------------------------------------------------------------------


async def test_explain_names_what_sounds_who_lost_and_why_it_is_silent() -> None:
    async with a_village() as village:
        cluster = f"c1-{DONG}"
        feed = await village.feed("Đài")
        await scheduling.create_schedule(village.desk, LAN, relay(feed, daily("17:00"), 30))
        bulletin = await village.bulletin("Tin", minutes=3)
        lost = await scheduling.create_schedule(
            village.desk, LAN, wanted(bulletin, once(at(17, 10)), accept_conflicts=True)
        )
        spoken = await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, daily("18:00")))
        cancelled = CancelSchedule(spoken.schedule.id, Scope.THIS, at(18))
        await scheduling.cancel_schedule(village.desk, LAN, cancelled)

        async def why(when: datetime) -> outlook.Explanation:
            return await outlook.explain(village.desk, NGOC, cluster, when)

        assert (await why(at(17, 5))).code == "explain_sounds"
        over = await why(at(17, 11))
        assert (over.code, over.facts["loser_title"]) == ("explain_sounds_over", "Tin")
        assert over.missing[0].entry_id.startswith(lost.schedule.id)
        assert over.missing[0].facts["winner_title"] == "Đài"
        gone = await why(at(18, 1))
        assert (gone.code, gone.facts["by"]) == ("explain_cancelled", "lan")
        assert (await why(at(3, 15, day=2))).code == "explain_quiet_hours"
        later = await why(at(12))
        assert (later.code, later.facts["next_title"]) == ("explain_nothing_until", "Đài")
        with pytest.raises(NotFound, match="unknown_cluster"):
            await outlook.explain(village.desk, NGOC, "nowhere", at(12))


async def test_explain_tells_of_a_withdrawn_feed_and_of_its_successor() -> None:
    async with a_village() as village:
        feed = await village.feed("Đài huyện", until=at(0, day=6))
        await scheduling.create_schedule(village.desk, LAN, relay(feed, daily("17:00"), 30))
        told = await outlook.explain(village.desk, LAN, f"c1-{DONG}", at(17, 5, day=7))
        assert told.code == "blocked_offer_expires"
        assert (told.facts["title"], told.sounding) == ("Đài huyện", None)


async def test_a_preview_of_the_commune_groups_clusters_that_hear_the_same() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin()
        await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, once(at(17))))
        market = (Target(TargetKind.GROUP, "group-cho"),)
        await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, once(at(18)), targets=market))
        window = Window(at(0), at(0, day=2))
        hearings = await outlook.preview_unit(village.desk, NGOC, PROVINCE, window)
        heard_by = {one.cluster_ids: len(one.segments) for one in hearings}
        assert heard_by == {(f"c1-{DONG}",): 2, (f"c2-{DONG}",): 1, (f"c1-{TAY}", f"c2-{TAY}"): 0}
        with pytest.raises(Invalid, match="window_too_long"):
            await outlook.preview_unit(village.desk, NGOC, PROVINCE, Window(at(0), at(0) + timedelta(days=40)))


async def test_who_may_not_look_sees_no_schedules() -> None:
    async with a_village() as village:
        bulletin = await village.bulletin()
        await scheduling.create_schedule(village.desk, LAN, wanted(bulletin, once(at(17))))
        query = scheduling.ScheduleQuery()
        assert len(await scheduling.list_schedules(village.desk, HA, query)) == 1
        stranger = scheduling.Actor("nobody", "nobody")
        assert await scheduling.list_schedules(village.desk, stranger, query) == []
        with pytest.raises(NotFound, match="unknown_unit"):
            await scheduling.list_schedules(village.desk, stranger, scheduling.ScheduleQuery(unit_id=DONG))


def test_the_villages_clock_is_seven_hours_ahead() -> None:
    assert at(9) == datetime(2026, 6, 1, 2, tzinfo=UTC)
