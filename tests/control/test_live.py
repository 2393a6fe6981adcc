"""Somebody speaks live: who may, for how long, over what, how it ends, and what is kept of it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from broadcast_server.control import live, playing, scheduling
from broadcast_server.control.access import OPERATOR, Actor
from broadcast_server.control.live import (
    LiveQuery,
    OpenLive,
    close_live,
    get_live,
    join_live,
    list_live,
    look_at_live,
    open_live,
    preview_live,
    renew_live,
)
from broadcast_server.control.outlook import explain, local_text
from broadcast_server.control.places import put_policy
from broadcast_server.control.scheduling import NewSchedule
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused, Unavailable
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.domain.voice import VoiceFormat
from broadcast_server.playout.planner import Planner
from broadcast_server.store.session import Session
from broadcast_server.store.tables import AuditRow, GrantRow, UserRow
from broadcast_server.store.words import ContentKind, LiveEnd, LiveState, RecordingState, Role, ScheduleKind
from speaker_protocol.rules import BulletinClass, Level, SourceKind
from tests.relay.ear import Listener
from tests.support.live import FIRST, SECOND, LiveVillage, a_live_village, packets, speak
from tests.support.tones import hear
from tests.support.village import DONG, HA, LAN, NGOC, PROVINCE, TAY, at, daily, once

CHAIR = Actor("user-chair", "chutich")


async def opened(it: LiveVillage, actor: Actor = LAN, unit: str = DONG, **more: object) -> live.Opened:
    return await open_live(it.desk, it.room, actor, OpenLive(unit, **more))  # type: ignore[arg-type]


async def segments(it: LiveVillage) -> dict[str, list[tuple[SourceKind, str | None, float]]]:
    """By node: source, stream and length in seconds of what the plan holds from now on."""
    now = it.clock.now()
    desired = await it.desk.store.read(lambda session: Planner(plan_days=2).plan(session, now))
    return {
        seat.node_id: [
            (one.source, one.stream, (one.end - one.start).total_seconds())
            for one in target.plan.segments
            if one.end > now
        ]
        for target in desired.targets
        for seat in target.seats
    }


async def hire_a_chair(it: LiveVillage) -> None:
    now = it.clock.now()

    def write(session: Session) -> None:
        session.add(UserRow(id=CHAIR.user_id, login=CHAIR.login, name="Chủ tịch xã", created_at=now))
        session.flush()
        session.add(GrantRow(id="grant-chair", user_id=CHAIR.user_id, role=Role.LEADER, unit_id=DONG, valid_from=now))

    await it.desk.store.begin(write)


async def test_a_voice_takes_the_air_of_its_commune_and_of_nobody_else(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        made = await opened(it, title="Họp thôn")

        assert made.live.starts_at - it.clock.now() == timedelta(seconds=1)
        assert made.live.ends_at - made.live.starts_at == timedelta(minutes=30)
        assert (made.live.nodes_planned, made.live.level) == (2, Level.LIVE)
        assert await segments(it) == {
            "n1": [(SourceKind.LIVE, made.live.id, 1_800.0)],
            "n2": [(SourceKind.LIVE, made.live.id, 1_800.0)],
            "n3": [],
            "n4": [],
        }


async def test_a_voice_may_be_for_one_group_and_what_lies_outside_is_refused(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        made = await opened(it, targets=(Target(TargetKind.GROUP, "group-cho"),))
        assert [node for node, held in (await segments(it)).items() if held] == ["n1"]
        assert made.live.nodes_planned == 1
        with pytest.raises(Invalid, match="unknown_target"):
            await opened(it, targets=(Target(TargetKind.CLUSTER, f"c1-{TAY}"),))
        assert it.room.sessions() == {made.live.id}


async def test_who_may_not_speak_there_is_refused_and_leaves_no_trace(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        for actor, unit, kind in ((LAN, TAY, NotFound), (LAN, PROVINCE, NotFound), (NGOC, DONG, Refused)):
            with pytest.raises(kind):
                await opened(it, actor, unit)
        assert it.room.sessions() == frozenset()
        assert await list_live(it.desk, HA, LiveQuery()) == []


async def test_the_leader_speaks_on_a_higher_rung(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        await hire_a_chair(it)
        first = await opened(it)
        made = await opened(it, CHAIR, accept_conflicts=True)

        assert (first.live.level, made.live.level) == (Level.LIVE, Level.LIVE_LEADER)
        assert (await segments(it))["n1"][0][1] == made.live.id


async def test_a_second_voice_of_the_same_rung_is_told_who_speaks(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        await opened(it, HA, PROVINCE, title="Tỉnh nói")
        with pytest.raises(Conflict) as refused:
            await opened(it, accept_conflicts=True)

        assert (refused.value.code, refused.value.facts["title"]) == ("live_air_taken", "Tỉnh nói")


async def test_what_it_cuts_is_shown_before_and_must_be_accepted(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        feed = await it.village.feed("Đài mô phỏng Tỉnh")
        relay = NewSchedule(DONG, ContentKind.FEED, feed, daily("09:30"), length=timedelta(hours=1))
        await scheduling.create_schedule(it.desk, LAN, relay)
        await it.clock.advance(3_600 - 60)

        shown = await preview_live(it.desk, LAN, OpenLive(DONG))
        assert [clash.loser.title for clash in shown.preview.clashes] == ["Đài mô phỏng Tỉnh"]
        assert await list_live(it.desk, LAN, LiveQuery()) == []
        with pytest.raises(Conflict, match="schedule_conflict"):
            await opened(it)
        made = await opened(it, accept_conflicts=True, minutes=10)
        assert [one[:2] for one in (await segments(it))["n1"]][:3] == [
            (SourceKind.RELAY, feed),
            (SourceKind.LIVE, made.live.id),
            (SourceKind.RELAY, feed),
        ]


async def test_a_priority_bulletin_is_waited_for_and_the_person_is_told_when_the_air_is_free(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        bulletin = await it.village.bulletin("Tiêm chủng", klass=BulletinClass.PRIORITY, minutes=3)
        await scheduling.create_schedule(
            it.desk, LAN, NewSchedule(DONG, ContentKind.BULLETIN, bulletin, once(at(9, 1)))
        )
        await it.clock.advance(90)
        with pytest.raises(Conflict, match="schedule_conflict"):
            await opened(it)
        made = await opened(it, accept_conflicts=True)

        assert made.live.starts_at == at(9, 4)


@pytest.mark.parametrize("role", ["head", "chair"])
async def test_nobody_speaks_over_an_emergency_and_is_told_which_and_until_when(tmp_path: Path, role: str):
    async with a_live_village(tmp_path) as it:
        await hire_a_chair(it)
        await it.emergency(PROVINCE, until=at(9, 30), text="Lũ về")
        with pytest.raises(Refused) as refused:
            await opened(it, LAN if role == "head" else CHAIR, accept_conflicts=True)

        told = refused.value.facts
        assert (refused.value.code, told["title"], told["winner_id"]) == (
            "live_under_emergency",
            "Lũ về",
            f"alert-{PROVINCE}",
        )
        assert told["until"] == at(9, 30).isoformat()


async def test_an_emergency_of_one_commune_does_not_silence_the_province_elsewhere(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        await it.emergency(TAY, until=at(9, 30))
        made = await opened(it, HA, PROVINCE)

        assert [one.code for one in made.silenced] == ["emergency"]


async def test_in_quiet_hours_nobody_speaks_and_before_them_only_until_they_begin(tmp_path: Path):
    async with a_live_village(tmp_path, at(22, 10)) as it:
        with pytest.raises(Refused, match="quiet_hours"):
            await opened(it)
    folder = tmp_path / "evening"
    folder.mkdir()
    async with a_live_village(folder, at(21, 50)) as it:
        made = await opened(it)
        assert made.live.ends_at == at(22, 0)


async def test_the_policy_says_how_long(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        await put_policy(it.desk, OPERATOR, DONG, {"max_live_minutes": 12})
        with pytest.raises(Refused) as refused:
            await opened(it, minutes=13)
        assert (refused.value.code, refused.value.facts["most"]) == ("live_too_long", 12)
        made = await opened(it)
        assert made.live.ends_at - made.live.starts_at == timedelta(minutes=12)
        hold = await join_live(it.desk, it.room, LAN, made.live.id, VoiceFormat.OPUS)
        for _ in range(12 * 60 // 4):
            hold.renew()
            await it.pass_by(4.0, step_s=2.0)
        await it.pass_by(4.0)

        over = await get_live(it.desk, LAN, made.live.id)
        assert (over.state, over.end_reason) == (LiveState.CLOSED, LiveEnd.LIMIT)
        assert it.room.sessions() == frozenset()


async def test_the_maximum_of_a_session_bounds_what_is_given_unasked(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        await put_policy(it.desk, OPERATOR, DONG, {"max_minutes_per_session": 10})
        with pytest.raises(Refused, match="session_too_long"):
            await opened(it, minutes=20)
        made = await opened(it)
        assert made.live.ends_at - made.live.starts_at == timedelta(minutes=10)


async def test_closing_frees_the_air_at_once_ends_the_lease_and_keeps_what_was_said(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        made = await opened(it, title="Họp thôn")
        listener = Listener(it.bus, made.live.id)
        hold = await join_live(it.desk, it.room, LAN, made.live.id, VoiceFormat.OPUS)
        await speak(it, hold, [*packets(FIRST, 2.0), *packets(SECOND, 2.0)])
        await it.clock.advance(0.2)
        closed = await close_live(it.desk, it.room, LAN, made.live.id)

        assert (closed.state, closed.end_reason) == (LiveState.CLOSED, LiveEnd.CLOSED)
        assert closed.heard_ms >= 4_000
        assert closed.counts["taken"] == 200
        assert all(held == [] for held in (await segments(it)).values())
        last = listener.envelopes[-1]
        assert last.expires_ms == last.issued_ms
        await it.keeper.keep_recordings()
        kept = await get_live(it.desk, LAN, made.live.id)
        assert kept.recording_state is RecordingState.KEPT
        assert kept.recording_sha256 is not None
        assert [one.pair for one in hear(said(it.desk.audio.assets.path(kept.recording_sha256)))] == [FIRST, SECOND]
        assert not it.room.recording(made.live.id).exists()
        verbs = await it.desk.store.read(lambda session: session.scalars(select(AuditRow.verb)).all())
        assert {"live.open", "live.end", "live.record"} <= set(verbs)


def said(path: Path) -> bytes:
    from simulation.listening import decode

    return decode(path).tobytes()


async def test_a_session_in_which_nothing_was_said_says_so(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        made = await opened(it)
        await close_live(it.desk, it.room, LAN, made.live.id)
        await it.keeper.keep_recordings()

        over = await get_live(it.desk, LAN, made.live.id)
        assert (over.recording_state, over.recording_sha256) == (RecordingState.EMPTY, None)


async def test_a_lease_that_is_not_renewed_ends_the_voice_and_frees_the_air(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        made = await opened(it)
        hold = await join_live(it.desk, it.room, LAN, made.live.id, VoiceFormat.OPUS)
        await speak(it, hold, packets(FIRST, 1.0))
        await it.pass_by(4.0)
        await renew_live(it.desk, it.room, LAN, made.live.id)
        await it.pass_by(4.5)
        assert (await get_live(it.desk, LAN, made.live.id)).state is LiveState.OPEN
        await it.pass_by(1.0)

        over = await get_live(it.desk, LAN, made.live.id)
        assert (over.state, over.end_reason) == (LiveState.CLOSED, LiveEnd.LOST)
        assert all(held == [] for held in (await segments(it)).values())
        with pytest.raises(Conflict, match="live_over"):
            await join_live(it.desk, it.room, LAN, made.live.id, VoiceFormat.OPUS)


async def test_a_session_nobody_speaks_in_gives_the_air_back(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        made = await opened(it)
        await it.pass_by(14.0)
        assert (await get_live(it.desk, LAN, made.live.id)).state is LiveState.OPEN
        await it.pass_by(2.0)
        assert (await get_live(it.desk, LAN, made.live.id)).end_reason is LiveEnd.LOST


async def test_only_the_speaker_speaks_and_whoever_may_stop_can_end_it(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        made = await opened(it)
        with pytest.raises(Refused, match="live_of_another"):
            await join_live(it.desk, it.room, HA, made.live.id, VoiceFormat.OPUS)
        with pytest.raises(Refused, match="live_of_another"):
            await renew_live(it.desk, it.room, HA, made.live.id)
        with pytest.raises(Refused, match="not_permitted"):
            await close_live(it.desk, it.room, NGOC, made.live.id)
        with pytest.raises(NotFound, match="unknown_live"):
            await join_live(it.desk, it.room, LAN, "khong-co", VoiceFormat.OPUS)
        closed = await close_live(it.desk, it.room, HA, made.live.id)
        assert closed.end_reason is LiveEnd.CLOSED


async def test_an_entry_that_is_stopped_ends_the_session_too(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        made = await opened(it)
        await it.clock.advance(5.0)
        await playing.stop(it.desk, LAN, made.live.entry_id)
        await it.keeper.look()

        over = await get_live(it.desk, LAN, made.live.id)
        assert (over.state, over.end_reason) == (LiveState.CLOSED, LiveEnd.STOPPED)
        assert it.room.sessions() == frozenset()


async def test_a_process_that_dies_leaves_the_speaker_five_seconds_to_come_back(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        made = await opened(it)
        hold = await join_live(it.desk, it.room, LAN, made.live.id, VoiceFormat.OPUS)
        await speak(it, hold, packets(FIRST, 2.0))
        await it.clock.advance(0.2)
        await it.restart()
        with pytest.raises(Unavailable, match="live_not_here"):
            await join_live(it.desk, it.room, LAN, made.live.id, VoiceFormat.OPUS)
        await it.keeper.look()
        await it.pass_by(4.5)
        again = await join_live(it.desk, it.room, LAN, made.live.id, VoiceFormat.OPUS)
        assert again.next_sequence is None
        await speak(it, again, packets(SECOND, 2.0), first=100)
        await it.clock.advance(0.2)
        await close_live(it.desk, it.room, LAN, made.live.id)
        await it.keeper.keep_recordings()

        kept = await get_live(it.desk, LAN, made.live.id)
        assert kept.recording_sha256 is not None
        assert [one.pair for one in hear(said(it.desk.audio.assets.path(kept.recording_sha256)))] == [FIRST, SECOND]


async def test_a_process_that_dies_ends_what_nobody_comes_back_to(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        made = await opened(it)
        await it.restart()
        await it.keeper.look()
        await it.pass_by(5.5)

        assert (await get_live(it.desk, LAN, made.live.id)).end_reason is LiveEnd.LOST


async def test_the_speaker_is_told_who_sounds_it_and_what_cuts_it(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        made = await opened(it)
        await it.says("n1", made.live.id)
        await it.says("n2", None)
        await it.says("n3", "another")
        sight = await look_at_live(it.desk, LAN, made.live.id)
        assert (sight.sounding, sight.planned, sight.cut) == (1, 2, None)
        await it.emergency(DONG, until=at(9, 10), text="Lũ về")
        cut = (await look_at_live(it.desk, LAN, made.live.id)).cut
        assert cut is not None
        assert (cut.code, cut.title, cut.until) == ("emergency", "Lũ về", at(9, 10))


async def test_a_speaker_whom_the_leader_displaces_is_told_by_whom(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        await hire_a_chair(it)
        first = await opened(it)
        await it.clock.advance(5.0)
        leader = await opened(
            it, CHAIR, title="Chủ tịch nói", targets=(Target(TargetKind.GROUP, "group-cho"),), accept_conflicts=True
        )
        assert (await look_at_live(it.desk, LAN, first.live.id)).cut is None
        await it.clock.advance(2.0)

        cut = (await look_at_live(it.desk, LAN, first.live.id)).cut
        assert cut is not None
        assert (cut.code, cut.title, cut.until) == ("live_leader", "Chủ tịch nói", leader.live.ends_at)
        assert (await look_at_live(it.desk, CHAIR, leader.live.id)).cut is None


async def test_a_live_session_cannot_be_scheduled_or_changed_like_a_schedule(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        made = await opened(it)
        wanted = NewSchedule(DONG, ContentKind.LIVE, made.live.id, once(at(17)), length=timedelta(minutes=1))
        with pytest.raises(Invalid, match="live_is_opened"):
            await scheduling.create_schedule(it.desk, LAN, wanted)
        with pytest.raises(Conflict, match="live_is_closed_not_changed"):
            await scheduling.cancel_schedule(
                it.desk, LAN, scheduling.CancelSchedule(made.live.schedule_id, scheduling.Scope.ALL)
            )
        view = await scheduling.get_schedule(it.desk, LAN, made.live.schedule_id)
        assert (view.kind, view.content_kind) == (ScheduleKind.LIVE, ContentKind.LIVE)


async def test_a_server_that_does_not_lead_opens_nothing(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        it.epoch = 0
        with pytest.raises(Unavailable, match="live_not_leading"):
            await opened(it)


async def test_explain_names_what_ended_a_voice_and_what_silences_it(tmp_path: Path):
    async with a_live_village(tmp_path) as it:
        made = await opened(it, title="Họp thôn")
        await it.clock.advance(3.0)
        now = await explain(it.desk, LAN, f"c1-{DONG}", it.clock.now())
        assert now.sounding is not None
        assert (now.sounding.title, now.sounding.kind) == ("Họp thôn", ScheduleKind.LIVE)
        await it.emergency(DONG, until=at(9, 10))
        under = await explain(it.desk, LAN, f"c1-{DONG}", it.clock.now())
        assert (under.code, under.facts["winner_title"], under.facts["loser_title"]) == (
            "explain_emergency",
            "Lũ về",
            "Họp thôn",
        )
        await it.pass_by(20.0)
        ended = await get_live(it.desk, LAN, made.live.id)
        assert ended.end_reason is LiveEnd.LOST
        after = await explain(it.desk, LAN, f"c1-{DONG}", at(9, 15))
        assert ended.closed_at is not None
        told = (after.code, after.facts["by"], after.facts["cut_at"])
        assert told == ("explain_cut", "live_keeper", local_text(ended.closed_at))
