"""A station's feed: owned, pushed by a credential, offered, carried, withdrawn, and nobody surprised by silence."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time, timedelta

import pytest
import pytest_asyncio

from broadcast_server.control import feeds, places
from broadcast_server.control.access import OPERATOR
from broadcast_server.control.desk import Desk
from broadcast_server.control.feed_rights import NewPushRight, give_push_right
from broadcast_server.control.feeds import FeedChange, FeedQuery, NewFeed, NewObligation, NewOffer
from broadcast_server.control.places import MoveUnit
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused
from broadcast_server.domain.places import Target, TargetKind
from broadcast_server.domain.recurrence import Rule, Weekly, rule_to_dict
from broadcast_server.store import audit, conflicts, schedules
from broadcast_server.store import feeds as rows
from broadcast_server.store.tables import ConflictRow, FeedRow, ScheduleRow
from broadcast_server.store.words import (
    ConflictKind,
    ContentKind,
    FeedKind,
    FeedState,
    Role,
    ScheduleKind,
    ScheduleState,
    Tier,
)
from speaker_protocol.rules import BulletinClass, Level
from tests.support.clock import FakeClock
from tests.support.desk import a_bare_desk
from tests.support.places import COUNTRY, HAMLET, PROVINCE, QUYNH_LUU, YEN_THANH, a_country, somebody

EVERY_DAY_AT_6 = rule_to_dict(Rule(Weekly(frozenset(range(7)), (time(6),))))
HALF_AN_HOUR = timedelta(minutes=30)


@pytest_asyncio.fixture
async def desk() -> AsyncIterator[Desk]:
    async with a_bare_desk() as opened:
        await a_country(opened)
        yield opened


def clock_of(desk: Desk) -> FakeClock:
    assert isinstance(desk.clock, FakeClock)
    return desk.clock


async def a_feed(desk: Desk, name: str = "Đài tỉnh (mô phỏng)", unit_id: str = PROVINCE, **more) -> FeedRow:
    new = NewFeed(unit_id, name, Tier.PROVINCE, FeedKind.PULL, "http://127.0.0.1:9000/tinh.mp3", **more)
    return (await feeds.add_feed(desk, OPERATOR, new)).feed


async def offered(desk: Desk, feed: FeedRow, unit_id: str = PROVINCE, **more) -> str:
    return (await feeds.offer_feed(desk, OPERATOR, NewOffer(feed.id, unit_id, "CV 12/SVHTTDL", **more))).id


async def a_relay(desk: Desk, feed: FeedRow, unit_id: str = YEN_THANH) -> str:
    """The commune relays the feed every day at 06:00 for half an hour."""
    now = desk.clock.now()
    schedule_id = desk.chance.new_id()
    row = ScheduleRow(
        id=schedule_id,
        series_id=schedule_id,
        unit_id=unit_id,
        name="Tiếp âm sáng",
        kind=ScheduleKind.RELAY,
        klass=BulletinClass.NORMAL,
        level=Level.PROGRAMME,
        content_kind=ContentKind.FEED,
        content_id=feed.id,
        language="vie",
        rule=EVERY_DAY_AT_6,
        length_ms=30 * 60_000,
        state=ScheduleState.ACTIVE,
        starts_at=now,
        created_by="lan",
        created_at=now,
        version=1,
    )
    await desk.store.begin(lambda session: schedules.add_schedule(session, row, [Target(TargetKind.UNIT, unit_id)]).id)
    return schedule_id


async def watch(desk: Desk) -> list[ConflictRow]:
    """What the job of the alarm clock does."""
    now = desk.clock.now()
    return await desk.store.begin(
        lambda session: conflicts.open_offer_conflicts(session, now=now, new_id=desk.chance.new_id)
    )


async def open_conflicts(desk: Desk) -> list[ConflictRow]:
    return await feeds.list_conflicts(desk, OPERATOR)


# -- the credential ---------------------------------------------------------------------------------------------------


async def check(desk: Desk, mount: str, user: str, password: str) -> FeedRow:
    now = desk.clock.now()
    return await desk.store.read(lambda session: rows.check_push_credential(session, mount, user, password, now))


async def a_push_feed(desk: Desk, name: str = "Đài huyện Yên Thành (mô phỏng)") -> feeds.FeedMade:
    return await feeds.add_feed(desk, OPERATOR, NewFeed(PROVINCE, name, Tier.OTHER, FeedKind.PUSH))


async def test_a_push_feed_tells_its_credential_once_and_stores_a_hash(desk: Desk):
    made = await a_push_feed(desk)
    told = made.credential
    assert told is not None
    assert (told.mount, told.user, told.version) == ("dai-huyen-yen-thanh-mo-phong", "source", 1)
    assert (told.host, told.port) == ("127.0.0.1", 8010)
    assert told.password.isalnum()
    assert made.feed.push_secret_hash is not None
    assert told.password not in made.feed.push_secret_hash
    assert (await check(desk, told.mount, told.user, told.password)).id == made.feed.id
    second = (await a_push_feed(desk)).credential
    assert second is not None
    assert second.mount == "dai-huyen-yen-thanh-mo-phong-2"


async def test_a_wrong_password_user_or_mount_is_refused(desk: Desk):
    told = (await a_push_feed(desk)).credential
    assert told is not None
    with pytest.raises(Refused, match="push_wrong_password"):
        await check(desk, told.mount, told.user, "guessed")
    with pytest.raises(Refused, match="push_wrong_password"):
        await check(desk, told.mount, "admin", told.password)
    with pytest.raises(NotFound, match="mount_unknown"):
        await check(desk, "elsewhere", told.user, told.password)


async def versions(desk: Desk) -> dict[str, int]:
    now = desk.clock.now()
    return await desk.store.read(lambda session: rows.credential_versions(session, now))


async def test_rotating_voids_the_old_password_and_raises_the_version(desk: Desk):
    made = await a_push_feed(desk)
    old = made.credential
    assert old is not None
    new = await feeds.rotate_feed(desk, OPERATOR, made.feed.id)
    assert (new.mount, new.version) == (old.mount, 2)
    with pytest.raises(Refused, match="push_wrong_password"):
        await check(desk, old.mount, old.user, old.password)
    assert (await check(desk, new.mount, new.user, new.password)).credential_version == 2
    assert await versions(desk) == {made.feed.id: 2}


async def test_a_station_renews_its_own_password_and_no_more(desk: Desk):
    made = await a_push_feed(desk)
    station = await somebody(desk, Role.FEED_PUSHER, PROVINCE)
    with pytest.raises(NotFound, match="unknown_feed"):  # the role alone reaches no feed
        await feeds.rotate_feed(desk, station, made.feed.id)
    await give_push_right(desk, OPERATOR, NewPushRight(made.feed.id, user_id=station.user_id))
    assert [one.feed.id for one in await feeds.list_feeds(desk, station, feeds.FeedQuery())] == [made.feed.id]
    assert (await feeds.rotate_feed(desk, station, made.feed.id)).version == 2
    with pytest.raises(Refused, match="not_permitted"):
        await feeds.revoke_feed(desk, station, made.feed.id)


async def test_a_lapsed_right_to_push_ends_what_the_password_is_good_for(desk: Desk):
    made = await a_push_feed(desk)
    told = made.credential
    assert told is not None
    assert await check(desk, told.mount, told.user, told.password)  # nobody was given it: it rests with the owner
    ends = desk.clock.now() + timedelta(hours=1)
    await give_push_right(desk, OPERATOR, NewPushRight(made.feed.id, unit_id=PROVINCE, valid_to=ends))
    assert await check(desk, told.mount, told.user, told.password)
    assert isinstance(desk.clock, FakeClock)
    await desk.clock.advance(3_600)
    with pytest.raises(Refused, match="push_right_lapsed"):
        await check(desk, told.mount, told.user, told.password)
    assert await versions(desk) == {}


async def test_revoking_ends_it_for_good(desk: Desk):
    made = await a_push_feed(desk)
    told = made.credential
    assert told is not None
    await feeds.revoke_feed(desk, OPERATOR, made.feed.id)
    assert await versions(desk) == {}
    with pytest.raises(Refused):
        await check(desk, told.mount, told.user, told.password)
    with pytest.raises(Conflict, match="feed_revoked"):
        await feeds.rotate_feed(desk, OPERATOR, made.feed.id)
    await feeds.revoke_feed(desk, OPERATOR, made.feed.id)  # twice is once
    assert await desk.store.read(audit.verify) is None


async def test_a_feed_outside_its_validity_pushes_nothing(desk: Desk):
    now = desk.clock.now()
    new = NewFeed(PROVINCE, "Đài lễ hội", Tier.OTHER, FeedKind.PUSH, valid_to=now + timedelta(days=1))
    told = (await feeds.add_feed(desk, OPERATOR, new)).credential
    assert told is not None
    assert await check(desk, told.mount, told.user, told.password)
    await clock_of(desk).advance(86_400)
    with pytest.raises(Refused, match="feed_not_in_force"):
        await check(desk, told.mount, told.user, told.password)
    assert await versions(desk) == {}


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (None, FeedKind.PULL),
        ("ftp://example.vn/a.mp3", FeedKind.PULL),
        ("http://", FeedKind.PULL),
        ("http://a b/", FeedKind.PULL),
        ("http://[::1", FeedKind.PULL),
        ("http://example.vn/a.mp3", FeedKind.PUSH),
    ],
)
async def test_an_address_that_is_none_is_refused(desk: Desk, url: str | None, kind: FeedKind):
    with pytest.raises(Invalid) as refused:
        await feeds.add_feed(desk, OPERATOR, NewFeed(PROVINCE, "Đài", Tier.OTHER, kind, url))
    assert refused.value.facts["field"] == "url"


async def test_a_mount_is_given_once(desk: Desk):
    await feeds.add_feed(desk, OPERATOR, NewFeed(PROVINCE, "A", Tier.OTHER, FeedKind.PUSH, mount="/live"))
    with pytest.raises(Conflict, match="mount_taken"):
        await feeds.add_feed(desk, OPERATOR, NewFeed(PROVINCE, "B", Tier.OTHER, FeedKind.PUSH, mount="live"))


# -- who may own, offer, see ------------------------------------------------------------------------------------------


async def test_a_producer_offers_her_own_feed_and_no_other(desk: Desk):
    producer = await somebody(desk, Role.PRODUCER, YEN_THANH)
    mine = await a_feed(desk, "Nguồn xã", YEN_THANH)
    theirs = await a_feed(desk)
    assert await feeds.offer_feed(desk, producer, NewOffer(mine.id, QUYNH_LUU, "Thỏa thuận 3/2026"))
    for forbidden in (
        feeds.offer_feed(desk, producer, NewOffer(theirs.id, YEN_THANH, "tự cấp")),
        feeds.revoke_feed(desk, producer, theirs.id),
        feeds.update_feed(desk, producer, theirs.id, FeedChange(name="của tôi")),
    ):
        with pytest.raises(NotFound, match="unknown_feed"):
            await forbidden


async def test_a_commune_sees_what_it_owns_and_what_it_is_offered(desk: Desk):
    lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
    for_all, for_others, secret = await a_feed(desk, "A"), await a_feed(desk, "B"), await a_feed(desk, "C")
    await offered(desk, for_all, PROVINCE)
    await offered(desk, for_others, QUYNH_LUU)
    assert [view.feed.id for view in await feeds.list_feeds(desk, lan, FeedQuery())] == [for_all.id]
    assert (await feeds.get_feed(desk, lan, for_all.id)).feed.name == "A"
    for hidden in (for_others, secret):
        with pytest.raises(NotFound, match="unknown_feed"):
            await feeds.get_feed(desk, lan, hidden.id)


async def may_relay(desk: Desk, feed_id: str, unit_id: str, at: datetime) -> rows.RelayRight:
    return await desk.store.read(lambda session: rows.relay_right(session, rows.feed(session, feed_id), unit_id, at))


async def test_a_right_to_relay_reaches_down_the_tree_and_is_dated(desk: Desk):
    now = desk.clock.now()
    feed = await a_feed(desk)
    await offered(desk, feed, YEN_THANH, valid_from=now + timedelta(days=1), valid_to=now + timedelta(days=10))
    days = [await may_relay(desk, feed.id, HAMLET, now + timedelta(days=day)) for day in (0, 1, 9, 10)]
    assert [one.is_given for one in days] == [False, True, True, False]
    assert days[-1].reason is ConflictKind.OFFER_EXPIRES
    elsewhere = await may_relay(desk, feed.id, QUYNH_LUU, now + timedelta(days=2))
    assert elsewhere.reason is ConflictKind.NOT_OFFERED
    assert (await may_relay(desk, feed.id, PROVINCE, now)).is_given  # its owner
    offered_now = await feeds.list_feeds(desk, OPERATOR, FeedQuery(offered_to=YEN_THANH))
    assert offered_now == []


async def test_a_commune_that_moves_away_loses_what_its_province_was_offered(desk: Desk):
    feed = await a_feed(desk, unit_id=COUNTRY)
    await offered(desk, feed, PROVINCE)
    await places.move_unit(desk, OPERATOR, MoveUnit(QUYNH_LUU, COUNTRY, date(2026, 7, 1)))
    before, after = datetime(2026, 6, 30, 12, tzinfo=UTC), datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert (await may_relay(desk, feed.id, QUYNH_LUU, before)).is_given
    assert not (await may_relay(desk, feed.id, QUYNH_LUU, after)).is_given


async def test_the_owner_sees_who_carries_the_feed_and_others_see_their_own(desk: Desk):
    feed = await a_feed(desk)
    await offered(desk, feed)
    here, there = await a_relay(desk, feed, YEN_THANH), await a_relay(desk, feed, QUYNH_LUU)
    editor = await somebody(desk, Role.PROVINCE_EDITOR, PROVINCE)
    lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
    carriers = await feeds.list_carriers(desk, editor, feed.id)
    assert {one.schedule.id for one in carriers} == {here, there}
    assert all(one.has_right and one.targets for one in carriers)
    assert [one.schedule.id for one in await feeds.list_carriers(desk, lan, feed.id)] == [here]


# -- never a silence nobody was told of -------------------------------------------------------------------------------


async def test_an_offer_that_ends_is_a_conflict_weeks_before_and_proposes_the_successor(desk: Desk):
    now = desk.clock.now()
    successor = await a_feed(desk, "Đài tỉnh mới (mô phỏng)")
    await offered(desk, successor)
    feed = await a_feed(desk, successor_id=successor.id)
    offer_id = await offered(desk, feed, valid_to=now + timedelta(days=20))
    schedule_id = await a_relay(desk, feed)
    (opened,) = await watch(desk)
    assert (opened.kind, opened.schedule_id, opened.subject) == (ConflictKind.OFFER_EXPIRES, schedule_id, offer_id)
    assert opened.affects_from == datetime(2026, 6, 21, 23, tzinfo=UTC)  # 06:00 of the 22nd in Vietnam
    assert opened.facts["successor_id"] == successor.id
    assert opened.facts["successor_name"] == "Đài tỉnh mới (mô phỏng)"
    assert opened.facts["successor_offered"] is True
    assert await watch(desk) == []  # the same again opens nothing
    await offered(desk, feed, valid_from=now + timedelta(days=20))
    assert await open_conflicts(desk) == []  # solved by itself


async def test_an_offer_far_from_its_end_is_no_conflict_yet(desk: Desk):
    feed = await a_feed(desk)
    await offered(desk, feed, valid_to=desk.clock.now() + timedelta(days=60))
    await a_relay(desk, feed)
    assert await watch(desk) == []
    await clock_of(desk).advance(40 * 86_400)
    assert [row.kind for row in await watch(desk)] == [ConflictKind.OFFER_EXPIRES]


async def test_withdrawing_names_the_conflict_at_once(desk: Desk):
    feed = await a_feed(desk)
    offer_id = await offered(desk, feed)
    await a_relay(desk, feed)
    await feeds.withdraw_offer(desk, OPERATOR, offer_id)
    (row,) = await open_conflicts(desk)
    assert (row.kind, row.subject, row.facts["successor_id"]) == (ConflictKind.OFFER_WITHDRAWN, offer_id, None)
    lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
    elsewhere = await somebody(desk, Role.BROADCASTER, QUYNH_LUU)
    assert [one.id for one in await feeds.list_conflicts(desk, lan)] == [row.id]
    assert await feeds.list_conflicts(desk, elsewhere) == []


async def test_revoking_names_the_conflict_and_the_successor_not_yet_offered(desk: Desk):
    feed = await a_feed(desk)
    await offered(desk, feed)
    await a_relay(desk, feed)
    successor = await a_feed(desk, "Khác")
    await feeds.update_feed(desk, OPERATOR, feed.id, FeedChange(successor_id=successor.id))
    await feeds.revoke_feed(desk, OPERATOR, feed.id)
    (row,) = await open_conflicts(desk)
    assert row.kind is ConflictKind.FEED_REVOKED
    assert (row.facts["successor_id"], row.facts["successor_offered"]) == (successor.id, False)


async def test_a_dead_feed_puts_the_next_relays_in_doubt_and_a_living_one_clears_them(desk: Desk):
    feed = await a_feed(desk)
    await offered(desk, feed)
    await a_relay(desk, feed)

    async def seen(state: FeedState) -> None:
        now = desk.clock.now()
        await desk.store.begin(
            lambda session: rows.put_status(session, feed.id, state=state, reason="http_404", now=now, body={})
        )

    await seen(FeedState.DEAD)
    assert [row.kind for row in await watch(desk)] == [ConflictKind.FEED_DEAD]
    await seen(FeedState.HEALTHY)
    assert await watch(desk) == []
    assert await open_conflicts(desk) == []


async def test_a_feed_cannot_succeed_itself(desk: Desk):
    first = await a_feed(desk, "A")
    second = await a_feed(desk, "B", successor_id=first.id)
    with pytest.raises(Invalid, match="successor_circle"):
        await feeds.update_feed(desk, OPERATOR, first.id, FeedChange(successor_id=second.id))


# -- obligations ------------------------------------------------------------------------------------------------------


def must_carry(feed: FeedRow, **more) -> NewObligation:
    told = {"length": HALF_AN_HOUR, "rule": EVERY_DAY_AT_6, "unit_id": PROVINCE} | more
    return NewObligation(content_kind=ContentKind.FEED, content_id=feed.id, basis="QĐ 05/UBND", **told)


async def test_an_obligation_places_a_required_relay_and_lifting_it_takes_it_away(desk: Desk):
    feed = await a_feed(desk)
    editor = await somebody(desk, Role.PROVINCE_EDITOR, PROVINCE)
    laid = await feeds.oblige(desk, editor, must_carry(feed))
    assert laid.schedule.required
    assert (laid.schedule.level, laid.schedule.kind) == (Level.RELAY_REQUIRED, ScheduleKind.RELAY)
    targets = await desk.store.read(lambda session: schedules.targets_of(session, [laid.schedule.id]))
    assert targets[laid.schedule.id] == (Target(TargetKind.UNIT, PROVINCE),)
    lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
    (seen,) = await feeds.list_obligations(desk, lan, for_unit=HAMLET)
    assert seen.obligation.id == laid.obligation.id
    with pytest.raises(Refused, match="not_permitted"):
        await feeds.lift_obligation(desk, lan, laid.obligation.id)
    lifted = await feeds.lift_obligation(desk, editor, laid.obligation.id)
    assert (lifted.schedule.state, lifted.obligation.valid_to) == (ScheduleState.CANCELLED, desk.clock.now())


async def test_nobody_is_obliged_to_what_may_not_be_relayed_or_to_the_night(desk: Desk):
    feed = await a_feed(desk, unit_id=COUNTRY)
    with pytest.raises(Refused, match="feed_not_offered"):
        await feeds.oblige(desk, OPERATOR, must_carry(feed))
    await offered(desk, feed)
    at_night = rule_to_dict(Rule(Weekly(frozenset({0}), (time(3, 15),))))
    with pytest.raises(Refused, match="quiet_hours") as refused:
        await feeds.oblige(desk, OPERATOR, must_carry(feed, rule=at_night))
    assert refused.value.facts["at"] == "2026-06-08T03:15+07:00"
    with pytest.raises(Invalid, match="relay_length_out_of_range"):
        await feeds.oblige(desk, OPERATOR, must_carry(feed, length=None))
    outside = (Target(TargetKind.UNIT, QUYNH_LUU),)
    with pytest.raises(Invalid, match="target_outside_unit"):
        await feeds.oblige(desk, OPERATOR, must_carry(feed, unit_id=YEN_THANH, targets=outside))
    assert (await feeds.oblige(desk, OPERATOR, must_carry(feed))).obligation
