"""Who may do what where: the matrix, the dated tree, tokens, and grants."""

from datetime import UTC, date, datetime, timedelta

import pytest

from broadcast_server.control import access, people, places
from broadcast_server.control.access import MAY, OPERATOR, Action, Actor, TokenScope
from broadcast_server.control.desk import Desk
from broadcast_server.control.people import NewGrant
from broadcast_server.control.places import MoveUnit, NewUnit
from broadcast_server.domain.errors import Conflict, Invalid, NotFound, Refused
from broadcast_server.store import audit
from broadcast_server.store.places import local_date, subtree_of
from broadcast_server.store.words import Role
from tests.support.clock import FakeClock
from tests.support.desk import a_bare_desk
from tests.support.places import COUNTRY, HAMLET, PROVINCE, QUYNH_LUU, YEN_THANH, a_country, a_token_of, somebody


async def may(desk: Desk, actor: Actor, action: Action, unit_id: str, at: datetime | None = None) -> bool:
    when = at or desk.clock.now()
    return await desk.store.read(lambda session: access.may(session, actor, action, unit_id, at=when))


def test_every_role_has_its_line_in_the_matrix():
    assert set(MAY) == set(Role)


def test_the_administrator_keeps_the_register_and_is_never_on_the_air():
    on_air = {Action.SCHEDULE, Action.PLAY_NOW, Action.LIVE, Action.EMERGENCY_LAUNCH, Action.BULLETIN_APPROVE}
    assert not on_air & MAY[Role.ADMIN]


def test_only_the_leader_and_the_province_launch_an_emergency():
    assert {role for role in Role if Action.EMERGENCY_LAUNCH in MAY[role]} == {Role.LEADER, Role.PROVINCE_EDITOR}


def test_an_inspector_reads_and_changes_nothing():
    assert MAY[Role.INSPECTOR] == {Action.READ, Action.LOG_READ, Action.AUDIT_READ}


async def test_a_broadcaster_works_in_her_commune_and_below_and_nowhere_else():
    async with a_bare_desk() as desk:
        await a_country(desk)
        lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
        assert await may(desk, lan, Action.SCHEDULE, YEN_THANH)
        assert await may(desk, lan, Action.SCHEDULE, HAMLET)
        assert not await may(desk, lan, Action.SCHEDULE, QUYNH_LUU)
        assert not await may(desk, lan, Action.SCHEDULE, PROVINCE)
        assert not await may(desk, lan, Action.BULLETIN_APPROVE, YEN_THANH)


async def test_a_user_without_a_grant_may_nothing():
    async with a_bare_desk() as desk:
        await a_country(desk)
        made = await people.add_user(desk, OPERATOR, "hoa", "Hoa")
        hoa = Actor(made.user.id, "hoa")
        for action in Action:
            assert not await may(desk, hoa, action, YEN_THANH)


async def test_an_unknown_place_is_not_found_even_for_the_operator():
    async with a_bare_desk() as desk:
        with pytest.raises(NotFound, match="unknown_unit"):
            await may(desk, OPERATOR, Action.READ, "nowhere")


async def test_a_refusal_names_the_action_and_the_place():
    async with a_bare_desk() as desk:
        await a_country(desk)
        lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
        with pytest.raises(Refused) as refused:
            await places.put_policy(desk, lan, YEN_THANH, {})
        assert refused.value.code == "not_permitted"
        assert refused.value.facts == {"action": "policy_edit", "unit_id": YEN_THANH}


async def test_a_grant_is_dated():
    async with a_bare_desk() as desk:
        await a_country(desk)
        made = await people.add_user(desk, OPERATOR, "minh", "Minh")
        now = desk.clock.now()
        grant = NewGrant(Role.BROADCASTER, YEN_THANH, now + timedelta(days=1), now + timedelta(days=3))
        await people.grant_role(desk, OPERATOR, made.user.id, grant)
        minh = Actor(made.user.id, "minh")
        told = [await may(desk, minh, Action.SCHEDULE, YEN_THANH, now + timedelta(days=day)) for day in range(5)]
        assert told == [False, True, True, False, False]


async def test_moving_a_commune_moves_who_may_touch_it_on_that_date():
    async with a_bare_desk() as desk:
        await a_country(desk)
        await places.create_unit(desk, OPERATOR, NewUnit("province", "Tỉnh Hà Tĩnh", COUNTRY, "42"))
        here = await somebody(desk, Role.PROVINCE_EDITOR, PROVINCE)
        there = await somebody(desk, Role.PROVINCE_EDITOR, "42")
        await places.move_unit(desk, OPERATOR, MoveUnit(QUYNH_LUU, "42", date(2026, 7, 1)))
        before, after = datetime(2026, 6, 30, 16, 59, tzinfo=UTC), datetime(2026, 6, 30, 17, 0, tzinfo=UTC)
        assert await may(desk, here, Action.SCHEDULE, QUYNH_LUU, before)
        assert not await may(desk, there, Action.SCHEDULE, QUYNH_LUU, before)
        assert not await may(desk, here, Action.SCHEDULE, QUYNH_LUU, after)  # midnight of 1 July in Vietnam
        assert await may(desk, there, Action.SCHEDULE, QUYNH_LUU, after)


async def test_the_scope_of_a_list_is_where_the_role_allows_it():
    async with a_bare_desk() as desk:
        await a_country(desk)
        tech = await somebody(desk, Role.TECHNICIAN, YEN_THANH)
        await people.grant_role(desk, OPERATOR, tech.user_id, NewGrant(Role.INSPECTOR, QUYNH_LUU))
        now = desk.clock.now()

        def scopes(action: Action, actor: Actor) -> object:
            return desk.store.read(lambda session: access.scope(session, actor, action, at=now))

        assert await scopes(Action.READ, tech) == {YEN_THANH, QUYNH_LUU}
        assert await scopes(Action.NODE_ENROL, tech) == {YEN_THANH}
        assert await scopes(Action.SCHEDULE, tech) == frozenset()
        assert await scopes(Action.SCHEDULE, OPERATOR) is None


# -- tokens -----------------------------------------------------------------------------------------------------------


async def actor_of(desk: Desk, secret: str) -> Actor:
    return await desk.store.read(lambda session: access.actor_of_token(session, secret, desk.clock.now()))


async def test_a_token_is_its_owner_until_it_ends_is_revoked_or_its_owner_locked_out():
    async with a_bare_desk() as desk:
        await a_country(desk)
        lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
        forever = await people.create_token(desk, lan, lan.user_id, "phone")
        short = await people.create_token(desk, lan, lan.user_id, "trial", valid_for=timedelta(hours=1))
        assert await actor_of(desk, forever.secret) == Actor(lan.user_id, lan.login, token_id=forever.token.id)
        assert isinstance(desk.clock, FakeClock)
        await desk.clock.advance(3_600)
        with pytest.raises(Refused, match="token_unknown"):
            await actor_of(desk, short.secret)
        await people.revoke_token(desk, lan, lan.user_id, forever.token.id)
        with pytest.raises(Refused, match="token_unknown"):
            await actor_of(desk, forever.secret)
        last = await a_token_of(desk, lan)
        await people.disable_user(desk, OPERATOR, lan.user_id)
        with pytest.raises(Refused, match="token_unknown"):
            await actor_of(desk, last)
        with pytest.raises(Refused, match="token_unknown"):
            await actor_of(desk, "made up")


async def test_a_limited_token_reaches_only_what_both_it_and_its_owner_may():
    async with a_bare_desk() as desk:
        await a_country(desk)
        editor = await somebody(desk, Role.PROVINCE_EDITOR, PROVINCE)
        cases: list[tuple[TokenScope, set[str]]] = [
            (TokenScope(), {PROVINCE, YEN_THANH, HAMLET, QUYNH_LUU}),
            (TokenScope(units=frozenset({YEN_THANH})), {YEN_THANH, HAMLET}),
            (TokenScope(units=frozenset({HAMLET, QUYNH_LUU})), {HAMLET, QUYNH_LUU}),
            (TokenScope(units=frozenset({COUNTRY})), {PROVINCE, YEN_THANH, HAMLET, QUYNH_LUU}),
            (TokenScope(actions=frozenset({Action.READ})), set()),
            (TokenScope(actions=frozenset({Action.PEOPLE_EDIT})), set()),
        ]
        for limit, reached in cases:
            made = await people.create_token(desk, editor, editor.user_id, "part", scope=limit)
            actor = await actor_of(desk, made.secret)
            assert actor.token_scope == limit
            everywhere = (COUNTRY, PROVINCE, YEN_THANH, HAMLET, QUYNH_LUU)
            assert {one for one in everywhere if await may(desk, actor, Action.SEND, one)} == reached
            roots = await desk.store.read(
                lambda session, actor=actor: access.scope(session, actor, Action.SEND, at=desk.clock.now())
            )
            below = await desk.store.read(
                lambda session, roots=roots: subtree_of(session, roots, local_date(desk.clock.now()))
            )
            assert below & set(everywhere) == reached
            assert await may(desk, actor, Action.PEOPLE_EDIT, YEN_THANH) is False, "never wider than the owner"


async def test_secrets_are_stored_as_hashes_and_never_audited():
    async with a_bare_desk() as desk:
        await a_country(desk)
        lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
        made = await people.create_token(desk, lan, lan.user_id, "phone")
        assert made.secret.startswith("loa_")
        assert made.secret not in made.token.secret_hash
        assert await desk.store.read(audit.verify) is None


# -- who may give what ------------------------------------------------------------------------------------------------


async def test_a_station_head_gives_roles_in_the_commune_but_not_the_heads_own_nor_elsewhere():
    async with a_bare_desk() as desk:
        await a_country(desk)
        head = await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH)
        made = await people.add_user(desk, head, "tuan", "Tuấn", NewGrant(Role.BROADCASTER, HAMLET))
        assert [one.role for one in made.grants] == [Role.BROADCASTER]
        with pytest.raises(Refused, match="role_not_yours_to_give"):
            await people.grant_role(desk, head, made.user.id, NewGrant(Role.COMMUNE_HEAD, YEN_THANH))
        with pytest.raises(NotFound, match="unknown_unit"):
            await people.grant_role(desk, head, made.user.id, NewGrant(Role.BROADCASTER, QUYNH_LUU))
        with pytest.raises(Refused, match="self_grant"):
            await people.grant_role(desk, head, head.user_id, NewGrant(Role.BROADCASTER, YEN_THANH))


async def test_nobody_gets_a_token_of_somebody_mightier():
    async with a_bare_desk() as desk:
        await a_country(desk)
        head = await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH)
        editor = await somebody(desk, Role.PROVINCE_EDITOR, PROVINCE)
        leader = await somebody(desk, Role.LEADER, YEN_THANH)
        lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
        for mightier, kind in ((editor, NotFound), (leader, Refused)):
            with pytest.raises(kind):
                await people.create_token(desk, head, mightier.user_id, "stolen")
            with pytest.raises(kind):
                await people.disable_user(desk, head, mightier.user_id)
        assert (await people.create_token(desk, head, lan.user_id, "her new phone")).secret
        with pytest.raises(NotFound):
            await people.get_user(desk, lan, editor.user_id)


async def test_a_role_taken_back_ends_at_once():
    async with a_bare_desk() as desk:
        await a_country(desk)
        lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
        (grant,) = (await people.get_user(desk, OPERATOR, lan.user_id)).grants
        await people.end_grant(desk, OPERATOR, lan.user_id, grant.id)
        assert not await may(desk, lan, Action.READ, YEN_THANH)


async def test_a_login_is_taken_once_and_plain():
    async with a_bare_desk() as desk:
        await a_country(desk)
        await people.add_user(desk, OPERATOR, "lan", "Lan")
        with pytest.raises(Conflict, match="login_taken"):
            await people.add_user(desk, OPERATOR, "lan", "Lan khác")
        with pytest.raises(Invalid, match="login_invalid"):
            await people.add_user(desk, OPERATOR, "Lan Nguyễn", "Lan")
        head = await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH)
        with pytest.raises(Invalid, match="grant_missing"):
            await people.add_user(desk, head, "vo-danh", "Vô Danh")


async def test_a_head_lists_the_people_of_the_commune_only():
    async with a_bare_desk() as desk:
        await a_country(desk)
        head = await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH)
        lan = await somebody(desk, Role.BROADCASTER, HAMLET)
        await somebody(desk, Role.BROADCASTER, QUYNH_LUU)
        assert {view.user.id for view in await people.list_users(desk, head)} == {head.user_id, lan.user_id}
        assert len(await people.list_users(desk, OPERATOR)) == 3
        assert await people.list_users(desk, lan) == []
