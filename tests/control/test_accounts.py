"""Proving to be oneself: password, one-time codes, recovery codes, and what becomes of guesses."""

import asyncio
import json

import pytest
from sqlalchemy import select

from broadcast_server.control import accounts, people
from broadcast_server.control.access import OPERATOR, Action, Actor, TokenScope
from broadcast_server.control.accounts import Proof, prove
from broadcast_server.control.desk import Desk
from broadcast_server.domain.errors import BroadcastError, Conflict, Invalid, Refused
from broadcast_server.store import audit
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import AuditRow
from broadcast_server.store.tables_identity import CredentialRow, RecoveryCodeRow, TryRow
from broadcast_server.store.words import Role
from broadcast_server.supervise import ThreadExecutor
from tests.support.clock import FakeClock
from tests.support.desk import a_bare_desk, a_desk_of
from tests.support.people import Person, a_person, who_enters, with_password
from tests.support.places import YEN_THANH, a_country, somebody


async def later(desk: Desk, seconds: float) -> None:
    assert isinstance(desk.clock, FakeClock)
    await desk.clock.advance(seconds)


async def a_leader(desk: Desk) -> Person:
    await a_country(desk)
    leader = await a_person(desk, Role.LEADER, YEN_THANH, "chu-tich")
    await later(desk, 120)
    return leader


async def test_somebody_new_changes_the_first_password_and_sets_up_codes_before_anything():
    async with a_bare_desk() as desk:
        await a_country(desk)
        leader = await who_enters(desk, await somebody(desk, Role.LEADER, YEN_THANH))
        assert len(leader.drawer) == len(set(leader.drawer)) == 10
        assert await answer_of(desk, leader.actor, leader.proof()) == "present"
        assert await answer_of(desk, leader.actor, Proof(leader.password, leader.drawer[9])) == "present"


async def answer_of(desk: Desk, actor: Actor, proof: Proof) -> str:
    try:
        await prove(desk, actor, proof)
    except BroadcastError as error:
        return error.code
    return "present"


async def test_a_leader_proves_to_be_there_with_password_and_code():
    async with a_bare_desk() as desk:
        leader = await a_leader(desk)
        presence = await prove(desk, leader.actor, leader.proof())
        assert presence.user_id == leader.actor.user_id
        assert presence.at == desk.clock.now()


async def test_a_right_code_proves_nothing_without_the_password():
    async with a_bare_desk() as desk:
        leader = await a_leader(desk)
        code = leader.phone.fresh() or ""
        assert await answer_of(desk, leader.actor, Proof("bảy con cá trê ngủ trưa", code)) == "proof_wrong"
        assert await answer_of(desk, leader.actor, Proof(leader.password, code)) == "present"


async def test_a_code_serves_once_and_none_before_it_serves_after_it():
    async with a_bare_desk() as desk:
        leader = await a_leader(desk)
        code = leader.phone.fresh()
        assert code is not None
        early = leader.phone.of_step(leader.phone.step)
        assert await answer_of(desk, leader.actor, Proof(leader.password, leader.phone.fresh() or "")) == "present"
        assert await answer_of(desk, leader.actor, Proof(leader.password, early)) == "proof_wrong"
        running = leader.phone.of_step(leader.phone.step)
        assert await answer_of(desk, leader.actor, Proof(leader.password, running)) == "proof_wrong"
        await later(desk, 30)
        assert await answer_of(desk, leader.actor, leader.proof()) == "present"


async def test_a_code_of_two_steps_ago_or_ahead_is_no_code():
    async with a_bare_desk() as desk:
        leader = await a_leader(desk)
        running = int(desk.clock.now().timestamp()) // 30
        for step, told in ((running - 2, "proof_wrong"), (running + 2, "proof_wrong"), (running + 1, "present")):
            proof = Proof(leader.password, leader.phone.of_step(step))
            assert await answer_of(desk, leader.actor, proof) == told, step
            await later(desk, 2)


async def test_of_many_tries_at_once_with_one_code_one_succeeds(store: Store):
    """On both dialects and with real threads: the store decides."""
    store.clock = clock = FakeClock()
    threads = ThreadExecutor(4, name="test")
    desk = a_desk_of(store)
    leader = await a_leader(desk)
    desk = Desk(store=store, clock=clock, chance=desk.chance, executor=threads, audio=desk.audio)
    try:
        proof = leader.proof()
        sign_ins = [Actor(leader.actor.user_id, leader.login, session_id=f"s{number}") for number in range(8)]
        told = await asyncio.gather(*(answer_of(desk, actor, proof) for actor in sign_ins))
    finally:
        threads.close()
    assert sorted(told) == ["present"] + ["proof_wrong"] * 7


async def test_a_recovery_code_serves_once_each_and_however_it_is_typed():
    async with a_bare_desk() as desk:
        leader = await a_leader(desk)
        first, second = leader.drawer[:2]
        assert await answer_of(desk, leader.actor, Proof(leader.password, first)) == "present"
        assert await answer_of(desk, leader.actor, Proof(leader.password, first)) == "proof_wrong"
        typed = f" {second[:4].lower()}-{second[4:9]} {second[9:].lower()} "
        assert await answer_of(desk, leader.actor, Proof(leader.password, typed)) == "present"
        new = await accounts.renew_recovery_codes(desk, leader.actor, leader.proof())
        assert await answer_of(desk, leader.actor, Proof(leader.password, leader.drawer[3])) == "proof_wrong"
        assert await answer_of(desk, leader.actor, Proof(leader.password, new[0])) == "present"


async def test_nobody_proves_with_the_codes_of_another():
    async with a_bare_desk() as desk:
        leader = await a_leader(desk)
        deputy = await a_person(desk, Role.LEADER, YEN_THANH, "pho-chu-tich")
        for code in (deputy.drawer[0], deputy.phone.of_step(deputy.phone.step + 1)):
            assert await answer_of(desk, leader.actor, Proof(leader.password, code)) == "proof_wrong"


async def test_who_has_no_codes_or_somebody_elses_password_proves_nothing():
    async with a_bare_desk() as desk:
        await a_country(desk)
        lan = await somebody(desk, Role.LEADER, YEN_THANH)
        assert await answer_of(desk, lan, Proof("", "123456")) == "totp_not_set_up"
        first = await people.reset_password(desk, OPERATOR, lan.user_id)
        assert await answer_of(desk, lan, Proof(first, "123456")) == "password_must_change"
        await accounts.change_password(desk, lan, Proof(first, ""), "bảy con cá trê ngủ trưa")
        assert await answer_of(desk, lan, Proof("bảy con cá trê ngủ trưa", "")) == "totp_not_set_up"


# -- guesses ----------------------------------------------------------------------------------------------------------


async def test_guesses_of_one_sign_in_slow_down_and_stop_and_are_over_after_a_quarter_of_an_hour():
    async with a_bare_desk() as desk:
        leader = await a_leader(desk)
        told = []
        for wait_s in (0, 0, 2, 4, 8, 16, 300):
            await later(desk, wait_s)
            told.append(await answer_of(desk, leader.actor, Proof("đoán bừa một câu", "123456")))
        assert told == ["proof_wrong"] * 5 + ["too_many_tries"] * 2
        assert await answer_of(desk, leader.actor, leader.proof()) == "too_many_tries"
        await later(desk, 15 * 60 - 330)
        assert await answer_of(desk, leader.actor, leader.proof()) == "present"


async def test_guesses_all_at_once_are_no_more_than_guesses_one_by_one():
    async with a_bare_desk() as desk:
        leader = await a_leader(desk)
        guesses = [Proof(leader.password, f"{number:06}") for number in range(40)]
        told = await asyncio.gather(*(answer_of(desk, leader.actor, guess) for guess in guesses))
        assert told.count("proof_wrong") <= 2
        assert set(told) == {"proof_wrong", "too_many_tries"}


async def test_what_others_guess_does_not_keep_an_approver_who_is_signed_in_from_approving():
    async with a_bare_desk() as desk:
        leader = await a_leader(desk)
        thief = Actor(leader.actor.user_id, leader.login, session_id="stolen")
        for _ in range(20):
            await answer_of(desk, thief, Proof("đoán bừa một câu", "123456"))
        assert await answer_of(desk, thief, Proof("đoán bừa một câu", "123456")) == "too_many_tries"
        mine = Actor(leader.actor.user_id, leader.login, session_id="mine")
        assert await answer_of(desk, mine, leader.proof()) == "present"


async def test_the_counts_survive_a_restart_and_are_forgotten_when_they_are_over(store: Store):
    store.clock = clock = FakeClock()
    leader = await a_leader(a_desk_of(store))
    for wait_s in (0, 0, 2, 4, 8):
        await clock.advance(wait_s)
        await answer_of(a_desk_of(store), leader.actor, Proof("đoán bừa một câu", "123456"))
    assert await answer_of(a_desk_of(store), leader.actor, leader.proof()) == "too_many_tries"
    await clock.advance(15 * 60)
    other = await a_person(a_desk_of(store), Role.LEADER, YEN_THANH)
    await answer_of(a_desk_of(store), other.actor, Proof("đoán bừa một câu", "123456"))
    rows = await store.read(lambda session: list(session.scalars(select(TryRow))))
    assert len(rows) == 1


# -- secrets ----------------------------------------------------------------------------------------------------------


async def test_a_new_password_must_be_good_and_new_and_the_old_one_serves_no_more():
    async with a_bare_desk() as desk:
        leader = await a_leader(desk)
        for bad, code in (("ngắn", "password_too_short"), ("Yên Thành 2026!!", "password_common")):
            with pytest.raises(Invalid, match=code):
                await accounts.change_password(desk, leader.actor, leader.proof(), bad)
        with pytest.raises(Conflict, match="password_same"):
            await accounts.change_password(desk, leader.actor, leader.proof(), leader.password)
        with pytest.raises(Refused, match="proof_wrong"):
            await accounts.change_password(desk, leader.actor, Proof(leader.password, "000000"), "chuồn chuồn ớt kê 9")
        await later(desk, 60)
        await accounts.change_password(desk, leader.actor, leader.proof(), "chuồn chuồn ớt kê 9")
        assert await answer_of(desk, leader.actor, leader.proof()) == "proof_wrong"
        leader.password = "chuồn chuồn ớt kê 9"
        assert await answer_of(desk, leader.actor, leader.proof()) == "present"


async def test_a_first_password_lasts_a_week():
    async with a_bare_desk() as desk:
        await a_country(desk)
        lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
        first = await people.reset_password(desk, OPERATOR, lan.user_id)
        await later(desk, 7 * 86_400)
        with pytest.raises(Refused, match="proof_wrong"):
            await accounts.change_password(desk, lan, Proof(first, ""), "chuồn chuồn ớt kê 9")


async def test_new_codes_are_in_force_only_once_one_was_shown_and_only_with_a_code_of_the_old():
    async with a_bare_desk() as desk:
        leader = await a_leader(desk)
        with pytest.raises(Refused, match="proof_wrong"):
            await accounts.begin_totp(desk, leader.actor, Proof(leader.password, ""))
        offer = await accounts.begin_totp(desk, leader.actor, leader.proof())
        assert offer.uri.startswith("otpauth://totp/Loa:chu-tich?secret=")
        with pytest.raises(Refused, match="proof_wrong"):
            await accounts.confirm_totp(desk, leader.actor, "000000")
        assert await answer_of(desk, leader.actor, leader.proof()) == "present"
        await later(desk, 30)
        old = leader.phone.fresh()
        leader.phone.seed, leader.phone._last = offer.secret, 0
        await accounts.confirm_totp(desk, leader.actor, leader.phone.fresh() or "")
        assert await answer_of(desk, leader.actor, Proof(leader.password, old or "")) == "proof_wrong"
        await later(desk, 30)
        assert await answer_of(desk, leader.actor, leader.proof()) == "present"
        with pytest.raises(Conflict, match="totp_not_offered"):
            await accounts.confirm_totp(desk, leader.actor, "000000")


async def test_an_administrator_of_the_place_helps_who_lost_the_phone_and_nobody_else_does():
    async with a_bare_desk() as desk:
        leader = await a_leader(desk)
        head = await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH)
        for reset in (people.reset_password, people.reset_totp):
            with pytest.raises(Refused):  # a head does not give the leader's role, so does not reset the leader
                await reset(desk, head, leader.actor.user_id)
            with pytest.raises(Refused, match="self_reset"):
                await reset(desk, leader.actor, leader.actor.user_id)
        admin = await somebody(desk, Role.ADMIN, YEN_THANH)
        await people.reset_totp(desk, admin, leader.actor.user_id)
        assert await answer_of(desk, leader.actor, leader.proof()) == "totp_not_set_up"
        offer = await accounts.begin_totp(desk, leader.actor, Proof(leader.password, ""))
        assert offer.secret != leader.phone.seed


async def test_no_secret_lies_in_the_store_or_in_the_audit_log_as_it_was_typed():
    async with a_bare_desk() as desk:
        leader = await a_leader(desk)
        await prove(desk, leader.actor, leader.proof())

        def everything(session: Session) -> str:
            rows = [*session.scalars(select(RecoveryCodeRow)), *session.scalars(select(AuditRow))]
            credentials = session.scalars(select(CredentialRow.password_hash)).all()
            return json.dumps([{**vars(row)} for row in rows], default=str) + json.dumps(credentials)

        text = await desk.store.read(everything)
        assert leader.password not in text
        assert leader.phone.seed not in text
        assert not any(code in text for code in leader.drawer)
        assert "argon2id$v=19$m=47104,t=1,p=1" in text
        assert await desk.store.read(audit.verify) is None
        assert leader.password not in repr(leader.proof())


async def test_a_limited_token_never_touches_an_account():
    async with a_bare_desk() as desk:
        await a_country(desk)
        lan = await somebody(desk, Role.BROADCASTER, YEN_THANH)
        person = await with_password(desk, lan)
        limited = Actor(lan.user_id, lan.login, token_id="t", token_scope=TokenScope(frozenset({Action.READ})))
        for refused in (
            accounts.change_password(desk, limited, person.proof(), "chuồn chuồn ớt kê 9"),
            accounts.begin_totp(desk, limited, person.proof()),
            accounts.confirm_totp(desk, limited, "123456"),
            accounts.renew_recovery_codes(desk, limited, person.proof()),
        ):
            with pytest.raises(Refused, match="token_is_limited"):
                await refused
