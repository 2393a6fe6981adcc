"""A hamlet's head speaks by delegation: in the own hamlet, in daytime, for minutes, until it ends by itself."""

from datetime import UTC, datetime, timedelta

import pytest

from broadcast_server.control import access, library, live, people
from broadcast_server.control.access import MAY, MAY_GRANT, OPERATOR, Action, Actor
from broadcast_server.control.delegated import check_duration
from broadcast_server.control.desk import Desk
from broadcast_server.control.library import NewBulletin
from broadcast_server.control.live import OpenLive
from broadcast_server.control.people import NewGrant
from broadcast_server.domain import delegation
from broadcast_server.domain.errors import Invalid, NotFound, Refused
from broadcast_server.store.words import Role
from speaker_protocol.rules import BulletinClass
from tests.support.clock import FakeClock
from tests.support.desk import a_bare_desk
from tests.support.places import HAMLET, YEN_THANH, a_country, somebody

YEAR, HOUR = timedelta(days=366), timedelta(hours=1)


async def a_head_of_hamlet(desk: Desk, by: Actor, *, days: int = 30) -> Actor:
    ends = desk.clock.now() + timedelta(days=days)
    made = await people.add_user(desk, by, "thon", "Trưởng thôn", NewGrant(Role.HAMLET_HEAD, HAMLET, None, ends))
    return Actor(made.user.id, made.user.login)


@pytest.mark.parametrize(
    ("unit_id", "days", "code", "field"),
    [
        (HAMLET, None, "delegation_without_end", "valid_to"),
        (HAMLET, 367, "delegation_too_long", "valid_to"),
        (YEN_THANH, 30, "delegation_not_to_hamlet", "unit_id"),
    ],
)
async def test_a_delegation_has_an_end_and_one_hamlet(unit_id: str, days: int | None, code: str, field: str):
    async with a_bare_desk() as desk:
        await a_country(desk)
        head = await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH)
        ends = None if days is None else desk.clock.now() + timedelta(days=days)
        with pytest.raises(Invalid, match=code) as refused:
            await people.add_user(desk, head, "thon", "Thôn", NewGrant(Role.HAMLET_HEAD, unit_id, None, ends))
        assert refused.value.facts["field"] == field


async def test_it_ends_by_itself_and_holds_in_that_hamlet_only():
    async with a_bare_desk() as desk:
        await a_country(desk)
        thon = await a_head_of_hamlet(desk, await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH), days=1)
        assert await library.create_bulletin(desk, thon, NewBulletin(HAMLET, "Họp xóm"))
        with pytest.raises(NotFound, match="unknown_unit"):
            await library.create_bulletin(desk, thon, NewBulletin(YEN_THANH, "Họp xã"))
        assert isinstance(desk.clock, FakeClock)
        await desk.clock.advance(86_400)
        with pytest.raises(NotFound, match="unknown_unit"):
            await library.create_bulletin(desk, thon, NewBulletin(HAMLET, "Họp xóm"))


async def test_by_delegation_only_ordinary_and_short():
    async with a_bare_desk() as desk:
        await a_country(desk)
        thon = await a_head_of_hamlet(desk, OPERATOR)
        lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
        for klass in (BulletinClass.PRIORITY, BulletinClass.EMERGENCY):
            with pytest.raises(Refused, match="delegated_class"):
                await library.create_bulletin(desk, thon, NewBulletin(HAMLET, "Gấp", klass))
            assert await library.create_bulletin(desk, lan, NewBulletin(HAMLET, "Gấp", klass))
        now = desk.clock.now()

        def long_one(actor: Actor, minutes: int):
            return desk.store.read(lambda session: check_duration(session, actor, HAMLET, minutes * 60_000, now))

        await long_one(thon, 10)
        await long_one(lan, 60)
        with pytest.raises(Refused, match="delegated_too_long") as refused:
            await long_one(thon, 11)
        assert refused.value.facts["most"] == 10


@pytest.mark.parametrize(
    ("begins", "minutes", "allowed"),
    [("05:59", 5, False), ("06:00", 5, True), ("20:50", 10, True), ("20:51", 10, False), ("23:00", 5, False)],
)
def test_a_delegated_voice_sounds_in_daytime(begins: str, minutes: int, *, allowed: bool):
    hour, minute = map(int, begins.split(":"))
    starts = datetime(2026, 6, 1, hour, minute, tzinfo=UTC) - timedelta(hours=7)
    ends = starts + timedelta(minutes=minutes)
    if allowed:
        delegation.check_hours(starts, ends)
    else:
        with pytest.raises(Refused, match="delegated_hours"):
            delegation.check_hours(starts, ends)


async def test_a_role_of_ones_own_is_not_bound_by_a_delegation_held_beside_it():
    async with a_bare_desk() as desk:
        await a_country(desk)
        lan = await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH)
        now = desk.clock.now()
        grant = NewGrant(Role.HAMLET_HEAD, HAMLET, None, now + timedelta(days=3))
        await people.grant_role(desk, OPERATOR, lan.user_id, grant)

        def lent(action: Action):
            return desk.store.read(lambda session: access.is_delegated(session, lan, action, HAMLET, at=now))

        assert not await lent(Action.LIVE)
        assert not await lent(Action.STOP_ALL)


async def test_a_permit_to_speak_live_has_an_end():
    async with a_bare_desk() as desk:
        await a_country(desk)
        head = await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH)
        lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
        with pytest.raises(Invalid, match="delegation_without_end"):
            await people.grant_role(desk, head, lan.user_id, NewGrant(Role.LIVE_PERMIT, YEN_THANH))
        ends = desk.clock.now() + YEAR
        assert await people.grant_role(desk, head, lan.user_id, NewGrant(Role.LIVE_PERMIT, YEN_THANH, None, ends))


def test_no_role_hands_out_more_than_its_holder_keeps_but_the_register():
    """Who gives roles gives none that may do on the air what the giver may not; the register's keeper appoints."""
    for giver, given in MAY_GRANT.items():
        if giver is not Role.ADMIN:
            for role in given - {Role.INSPECTOR, Role.FEED_PUSHER}:
                assert MAY[role] <= MAY[giver], (giver, role)


def test_the_register_is_never_on_the_air_and_no_inspector_writes():
    on_air = {
        Action.SCHEDULE,
        Action.PLAY_NOW,
        Action.LIVE,
        Action.LIVE_LEAD,
        Action.SEND,
        Action.EMERGENCY_PROPOSE,
        Action.EMERGENCY_LAUNCH,
        Action.BULLETIN_WRITE,
        Action.BULLETIN_APPROVE,
        Action.PROGRAMME_APPROVE,
        Action.STOP_ALL,
    }
    assert not on_air & MAY[Role.ADMIN]
    assert not on_air & MAY[Role.TECHNICIAN]
    assert not on_air & (MAY[Role.FEED_PUSHER] | MAY[Role.INSPECTOR])
    assert not MAY[Role.PRODUCER] & {Action.BULLETIN_APPROVE, Action.SCHEDULE, Action.LIVE, Action.EMERGENCY_PROPOSE}
    assert not MAY[Role.PROVINCE_EDITOR] & {Action.VOLUME_SET, Action.CLUSTER_EDIT, Action.NODE_ORDER}
    assert Action.NODE_ORDER not in MAY[Role.BROADCASTER]


async def test_a_delegated_voice_is_short_and_by_day():
    async with a_bare_desk() as desk:
        await a_country(desk)
        thon = await a_head_of_hamlet(desk, OPERATOR)
        assert isinstance(desk.clock, FakeClock)
        noon = datetime.combine(desk.clock.now().date() + timedelta(days=1), datetime.min.time(), UTC) + 5 * HOUR
        await desk.clock.advance((noon - desk.clock.now()).total_seconds())
        told = await live.preview_live(desk, thon, OpenLive(HAMLET))
        assert told.live.ends_at - told.live.starts_at == timedelta(minutes=10)
        with pytest.raises(Refused, match="delegated_too_long"):
            await live.preview_live(desk, thon, OpenLive(HAMLET, minutes=11))
        await desk.clock.advance(8.9 * 3_600)  # 20:54
        with pytest.raises(Refused, match="delegated_hours"):
            await live.preview_live(desk, thon, OpenLive(HAMLET))
        assert await live.preview_live(desk, await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH), OpenLive(HAMLET))
