"""Logging in and out, and what a cookie is worth: to its owner, to a thief, to another page."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from sqlalchemy import select

from broadcast_server.control import people
from broadcast_server.control.access import OPERATOR, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.people import NewGrant
from broadcast_server.store.tables_identity import SignInRow
from broadcast_server.store.words import Role
from tests.support.api import a_client, api_of
from tests.support.browser import API, PAGE, Browser, a_browser
from tests.support.clock import FakeClock
from tests.support.desk import a_bare_desk
from tests.support.people import Person, Phone, a_person, with_password
from tests.support.places import QUYNH_LUU, YEN_THANH, a_country, a_token_of, somebody

TOKEN = {"name": "máy phòng đài"}


async def later(desk: Desk, seconds: float) -> None:
    assert isinstance(desk.clock, FakeClock)
    await desk.clock.advance(seconds)


async def lan_of(desk: Desk) -> Person:
    await a_country(desk)
    return await a_person(desk, Role.BROADCASTER, YEN_THANH, "lan")


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "")


async def is_in(browser: Browser) -> bool:
    answer = await browser.send("GET", "/session")
    assert answer.status_code in {200, 401}
    return answer.status_code == 200


# -- in and out -------------------------------------------------------------------------------------------------------


async def test_lan_logs_in_works_and_logs_out():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        async with a_browser(desk) as browser:
            answer = await browser.log_in_as(lan)
            assert (answer.json()["login"], answer.json()["must"]) == ("lan", [])
            sid, did = answer.headers.get_list("set-cookie")
            assert sid.startswith("__Host-sid=")
            assert did.startswith("__Host-did=")
            for cookie in (sid, did):
                assert {"HttpOnly", "Path=/", "SameSite=strict", "Secure"} <= set(cookie.split("; "))
                assert "Domain" not in cookie
            assert answer.headers["cache-control"] == "no-store"
            assert (await browser.send("GET", f"/units?parent={YEN_THANH}")).status_code == 200
            me = await browser.send("GET", "/users/me")
            assert me.json()["login"] == "lan"
            stolen = browser.cookie
            assert (await browser.send("DELETE", "/session")).status_code == 204
            assert browser.cookie is None
            browser.shows(stolen)
            assert code_of(await browser.send("GET", "/users/me")) == (401, "sign_in_over")


async def test_the_cookie_lies_in_the_store_as_a_hash():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        async with a_browser(desk) as browser:
            await browser.log_in_as(lan)
            (row,) = await desk.store.read(lambda session: list(session.scalars(select(SignInRow))))
            assert browser.cookie is not None
            assert len(browser.cookie) == 43  # 256 bits
            assert browser.cookie not in str(vars(row))


async def test_what_is_wrong_is_not_told_and_whether_somebody_exists_neither():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        gone = await a_person(desk, Role.BROADCASTER, YEN_THANH, "gone")
        await people.disable_user(desk, OPERATOR, gone.actor.user_id)
        await somebody(desk, Role.BROADCASTER, YEN_THANH, "no-password")
        texts = set()
        tries: tuple[tuple[str, str, str], ...] = (
            ("nobody-at-all", "đoán bừa một câu", "123456"),
            ("lan", "đoán bừa một câu", "123456"),
            ("lan", lan.password, "123456"),
            ("lan", lan.password, ""),
            ("gone", gone.password, gone.proof().code),
            ("no-password", "đoán bừa một câu", ""),
        )
        for number, (login, password, code) in enumerate(tries):
            async with a_browser(desk, address=f"10.0.1.{number}") as browser:
                answer = await browser.log_in(login, password, code)
                assert code_of(answer) == (401, "login_wrong"), login
                assert "set-cookie" not in answer.headers
                texts.add(answer.text)
        assert len(texts) == 1


async def test_a_cookie_planted_before_the_log_in_is_worth_nothing_after_it():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        mallory = await a_person(desk, Role.BROADCASTER, QUYNH_LUU, "mallory")
        async with a_browser(desk) as thief, a_browser(desk) as browser:
            await thief.log_in_as(mallory)
            planted = thief.cookie
            browser.shows(planted)
            await browser.log_in_as(lan)
            assert browser.cookie != planted
            assert not await is_in(thief), "the old sign-in ended when its browser logged in as somebody else"
            browser.shows("a" * 43)
            await browser.log_in_as(lan)
            assert browser.cookie != "a" * 43


async def test_a_sign_in_ends_after_half_an_hour_of_nothing_or_ten_hours_of_work():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        async with a_browser(desk) as browser:
            await browser.log_in_as(lan)
            for _ in range(20):
                await later(desk, 29 * 60)
                assert await is_in(browser)
            await later(desk, 20 * 60)
            assert not await is_in(browser)
            await browser.log_in_as(lan)
            await later(desk, 30 * 60)
            assert not await is_in(browser)


async def test_somebody_new_can_do_nothing_but_change_the_password_and_set_up_codes():
    async with a_bare_desk() as desk:
        await a_country(desk)
        await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH, "ha")
        ha = await people.user_of_login(desk, OPERATOR, "ha")
        first = await people.reset_password(desk, OPERATOR, ha.user.id)
        async with a_browser(desk) as browser:
            answer = await browser.log_in("ha", first)
            assert answer.json()["must"] == ["password_must_change", "totp_must_set_up"]
            before = browser.cookie
            forbidden: list[tuple[str, str, Any]] = [
                ("GET", "/users", None),
                ("GET", "/users/me", None),
                ("GET", f"/users/{ha.user.id}/sign-ins", None),
                ("POST", f"/users/{ha.user.id}/tokens", TOKEN),
                ("POST", "/session/recovery-codes", {"password": first, "code": "123456"}),
            ]
            for method, path, body in forbidden:
                assert code_of(await browser.send(method, path, body)) == (403, "password_must_change"), path
            assert code_of(await browser.send("POST", "/session/totp", {"password": first})) == (
                403,
                "password_must_change",
            )
            weak = {"password": first, "new_password": "Yên Thành 2026!"}
            refused = await browser.send("PUT", "/session/password", weak)
            assert code_of(refused) == (422, "password_common")
            assert (refused.json()["field"], "three or four words" in refused.json()["fix"]) == ("new_password", True)
            good = {"password": first, "new_password": "bảy con cá trê ngủ trưa"}
            assert (await browser.send("PUT", "/session/password", good)).status_code == 200
            assert browser.cookie != before, "rotated"
            for method, path, body in forbidden:
                assert code_of(await browser.send(method, path, body)) == (403, "totp_must_set_up"), path
            offer = (await browser.send("POST", "/session/totp", {"password": good["new_password"]})).json()
            person = Person(Actor(ha.user.id, "ha"), "ha", good["new_password"], phone_of(desk, offer["secret"]))
            between = browser.cookie
            confirmed = await browser.send("PUT", "/session/totp", {"code": person.phone.fresh()})
            assert len(set(confirmed.json()["recovery_codes"])) == 10
            assert browser.cookie not in {before, between}, "rotated"
            assert (await browser.send("GET", "/users")).status_code == 200
        async with a_browser(desk) as elsewhere:
            assert code_of(await elsewhere.log_in("ha", first)) == (401, "login_wrong")
            await elsewhere.log_in_as(person)
            person.drawer = confirmed.json()["recovery_codes"]
            code = person.drawer.pop()
            assert (await elsewhere.log_in("ha", person.password, code)).status_code == 201
            assert code_of(await elsewhere.log_in("ha", person.password, code)) == (401, "login_wrong")


def phone_of(desk: Desk, seed: str) -> Phone:
    return Phone(seed, desk.clock)


# -- thieves ----------------------------------------------------------------------------------------------------------


async def test_a_new_password_ends_the_thiefs_sign_in_and_not_ones_own():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        async with a_browser(desk) as browser, a_browser(desk, address="10.9.9.9") as thief:
            await browser.log_in_as(lan)
            await thief.log_in_as(lan)
            old = browser.cookie
            proof = lan.proof()
            body = {"password": proof.password, "code": proof.code, "new_password": "bảy con cá trê ngủ trưa"}
            assert (await browser.send("PUT", "/session/password", body)).status_code == 200
            assert await is_in(browser)
            assert not await is_in(thief)
            thief.shows(old)
            assert not await is_in(thief)


async def test_a_sign_in_without_the_password_changes_no_secret():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        async with a_browser(desk) as thief:
            await thief.log_in_as(lan)
            await later(desk, 60)
            for password, code in (("đoán bừa một câu", lan.proof().code), (lan.password, "123456")):
                body = {"password": password, "code": code}
                assert code_of(await thief.send("POST", "/session/totp", body))[1] == "proof_wrong"
                changed = await thief.send("PUT", "/session/password", {**body, "new_password": "chuồn chuồn ớt kê 9"})
                assert code_of(changed)[1] in {"proof_wrong", "too_many_tries"}
                await later(desk, 30)


async def test_who_is_locked_out_or_reset_is_out_at_once():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        admin = await a_person(desk, Role.ADMIN, YEN_THANH, "quan-tri")
        async with a_browser(desk) as browser, a_browser(desk) as desk_of_admin:
            await desk_of_admin.log_in_as(admin)
            await browser.log_in_as(lan)
            told = await desk_of_admin.send("POST", f"/users/{lan.actor.user_id}/password")
            assert (told.status_code, len(told.json()["first_password"])) == (201, 19)
            assert not await is_in(browser)
            assert code_of(await browser.log_in("lan", lan.password, lan.proof().code)) == (401, "login_wrong")
            await later(desk, 60)
            entered = await browser.log_in("lan", told.json()["first_password"], lan.proof().code)
            assert entered.json()["must"] == ["password_must_change"]
            assert (await desk_of_admin.send("DELETE", f"/users/{lan.actor.user_id}/totp")).status_code == 200
            assert not await is_in(browser)
            await browser.log_in("lan", told.json()["first_password"])
            assert await is_in(browser)
            assert (await desk_of_admin.send("DELETE", f"/users/{lan.actor.user_id}")).status_code == 200
            assert not await is_in(browser)
            assert code_of(await browser.log_in("lan", told.json()["first_password"])) == (401, "login_wrong")


async def test_who_loses_the_role_keeps_the_sign_in_and_may_nothing():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        async with a_browser(desk) as browser:
            await browser.log_in_as(lan)
            assert (await browser.send("GET", "/feeds")).status_code == 200
            (grant,) = (await people.get_user(desk, OPERATOR, lan.actor.user_id)).grants
            await people.end_grant(desk, OPERATOR, lan.actor.user_id, grant.id)
            assert (
                await browser.send("POST", "/units", {"kind": "hamlet", "name": "X", "parent_id": YEN_THANH})
            ).status_code in {403, 404}
            assert (await browser.send("GET", "/users/me")).status_code == 200


async def test_sign_ins_are_listed_and_ended_by_their_owner_and_by_who_keeps_the_people():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        head = await a_person(desk, Role.COMMUNE_HEAD, YEN_THANH, "truong-dai")
        stranger = await a_person(desk, Role.COMMUNE_HEAD, QUYNH_LUU, "xa-khac")
        async with a_browser(desk) as one, a_browser(desk, address="10.0.0.9") as two, a_browser(desk) as other:
            await one.log_in_as(lan)
            await two.log_in_as(lan)
            mine = f"/users/{lan.actor.user_id}/sign-ins"
            listed = (await one.send("GET", mine)).json()
            assert {(row["address"], row["is_this"]) for row in listed} == {("10.0.0.7", True), ("10.0.0.9", False)}
            (theirs,) = [row["id"] for row in listed if not row["is_this"]]
            assert (await one.send("DELETE", f"{mine}/{theirs}")).status_code == 200
            assert not await is_in(two)
            await two.log_in_as(lan)
            assert (await one.send("DELETE", mine)).json() == {"ended": 1}
            assert await is_in(one)
            assert not await is_in(two)
            await other.log_in_as(stranger)
            assert (await other.send("GET", mine)).status_code in {403, 404}
            await other.log_in_as(head)
            assert (await other.send("DELETE", mine)).json() == {"ended": 1}
            assert not await is_in(one)


# -- tokens and cookies are two things --------------------------------------------------------------------------------


async def test_a_token_is_no_cookie_and_a_cookie_no_token():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        token = await a_token_of(desk, lan.actor)
        async with a_browser(desk) as browser:
            browser.shows(token)
            assert code_of(await browser.send("GET", "/users/me")) == (401, "sign_in_over")
            browser.shows(None)
            await browser.log_in_as(lan)
            cookie = browser.cookie
        async with a_client(desk, token=cookie) as client:
            assert (await client.get(f"{API}/users/me")).status_code == 401
        async with a_client(desk, token=token) as client:
            assert (await client.post(f"{API}/users/{lan.actor.user_id}/tokens", json=TOKEN)).status_code == 201
            assert (await client.get(f"{API}/session")).json()["code"] == "sign_in_over"


async def test_a_wrong_header_is_not_made_good_by_a_cookie():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        async with a_browser(desk) as browser:
            await browser.log_in_as(lan)
            for header in ("Basic bGFuOmxhbg==", "Bearer", "Bearer nonsense"):
                assert (await browser.send("GET", "/users/me", Authorization=header)).status_code == 401


# -- other pages ------------------------------------------------------------------------------------------------------

OTHERS = [
    "https://evil.example",
    "https://127.0.0.1.evil.example",
    "https://127.0.0.1:8443",
    "http://127.0.0.1",
    "https://127.0.0.1@evil.example",
    "null",
    "file://",
    "https://127.0.0.1:99999999",
    "https://[::1]",
    "https://127.0.0.1%00.evil.example",
]


@pytest.mark.parametrize("origin", OTHERS)
async def test_the_page_of_another_origin_changes_and_reads_nothing(origin: str):
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        async with a_browser(desk) as browser:
            await browser.log_in_as(lan)
            made = await browser.send("POST", f"/users/{lan.actor.user_id}/tokens", TOKEN, Origin=origin)
            assert code_of(made) == (403, "origin_refused")
            assert code_of(await browser.send("GET", "/users/me", Origin=origin)) == (403, "origin_refused")
            assert code_of(await browser.send("DELETE", "/session", Origin=origin)) == (403, "origin_refused")
            assert await is_in(browser)


@pytest.mark.parametrize("origin", ["https://127.0.0.1", "https://127.0.0.1:443", "HTTPS://127.0.0.1"])
async def test_our_own_page_however_it_is_written_may(origin: str):
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        async with a_browser(desk) as browser:
            await browser.log_in_as(lan)
            made = await browser.send("POST", f"/users/{lan.actor.user_id}/tokens", TOKEN, Origin=origin)
            assert made.status_code == 201


@pytest.mark.parametrize(
    ("site", "is_read", "is_changed"),
    [("cross-site", 403, 403), ("same-site", 403, 403), ("none", 200, 403), ("same-origin", 200, 201)],
)
async def test_what_the_browser_says_of_the_page_counts(site: str, is_read: int, is_changed: int):
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        async with a_browser(desk) as browser:
            await browser.log_in_as(lan)
            assert (await browser.send("GET", "/users/me", Sec_Fetch_Site=site)).status_code == is_read
            made = await browser.send(
                "POST", f"/users/{lan.actor.user_id}/tokens", TOKEN, Origin="", Sec_Fetch_Site=site
            )
            assert made.status_code == is_changed


async def test_a_change_needs_the_token_of_this_very_sign_in():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        other = await a_person(desk, Role.BROADCASTER, YEN_THANH, "hoa")
        async with a_browser(desk) as browser, a_browser(desk) as second, a_browser(desk) as third:
            await browser.log_in_as(lan)
            await second.log_in_as(other)
            await third.log_in_as(lan)
            assert browser.csrf not in {second.csrf, third.csrf}
            for token in ("", second.csrf, third.csrf, browser.csrf[:-1], browser.csrf.upper(), browser.cookie or ""):
                made = await browser.send("POST", f"/users/{lan.actor.user_id}/tokens", TOKEN, X_CSRF_Token=token)
                assert code_of(made) == (403, "csrf_refused")
            for method in ("POST", "GET"):
                sent = await browser.send(
                    method, "/session", None, X_HTTP_Method_Override="DELETE", X_CSRF_Token="", Origin=PAGE
                )
                assert sent.status_code in {200, 422}
            assert await is_in(browser)
            keyed = await browser.send(
                "POST", f"/users/{lan.actor.user_id}/tokens", TOKEN, X_CSRF_Token="", Idempotency_Key="k1"
            )
            assert code_of(keyed) == (403, "csrf_refused")


async def test_nobody_is_logged_in_by_another_page():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        async with a_browser(desk) as browser:
            proof = lan.proof()
            body = {"login": "lan", "password": proof.password, "code": proof.code}
            for headers in ({"Origin": "https://evil.example"}, {"Origin": "", "Sec_Fetch_Site": "cross-site"}):
                assert code_of(await browser.send("POST", "/session", body, **headers)) == (403, "origin_refused")
            assert browser.cookie is None


# -- throttling -------------------------------------------------------------------------------------------------------


async def test_five_guesses_from_one_address_and_the_owner_elsewhere_and_at_home_still_get_in():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        app = api_of(desk)
        async with a_browser(desk, app) as home:
            await home.log_in_as(lan)
            device = home.device
        assert device is not None
        async with a_browser(desk, app) as thief:
            told = []
            for wait_s in (0, 0, 2, 4, 8, 60):
                await later(desk, wait_s)
                told.append((await thief.log_in("lan", "đoán bừa một câu", "123456")).status_code)
            assert told == [401] * 5 + [429]
            answer = await thief.log_in("lan", lan.password, lan.proof().code)
            assert code_of(answer) == (429, "too_many_tries")
            assert 0 < int(answer.headers["retry-after"]) <= 900
        async with a_browser(desk, app, address="10.0.0.8") as elsewhere:
            await elsewhere.log_in_as(lan)
        async with a_browser(desk, app, cookies={"__Host-did": device}) as home:
            await home.log_in_as(lan)
        async with a_browser(desk, app) as neighbour:
            assert (await neighbour.log_in("lan", lan.password, lan.proof().code)).status_code == 429
            await later(desk, 15 * 60)
            await neighbour.log_in_as(lan)


async def test_one_address_may_not_try_every_login_there_is():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        async with a_browser(desk) as thief:
            told = [(await thief.log_in(f"login-{number}", "đoán bừa một câu")).status_code for number in range(32)]
            assert told == [401] * 30 + [429] * 2
            assert (await thief.log_in("lan", lan.password, lan.proof().code)).status_code == 429
        async with a_browser(desk, address="2001:db8::1") as six:
            assert (await six.log_in("lan", "đoán bừa", "")).status_code == 401
        async with a_browser(desk, address="2001:db8::ffff") as same_subscriber:
            await same_subscriber.log_in("lan", "đoán bừa", "")
            assert (await same_subscriber.log_in("lan", "đoán bừa", "")).status_code == 429


async def test_who_has_the_password_guesses_five_codes_however_many_addresses_he_has():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        app = api_of(desk)
        for number in range(5):
            async with a_browser(desk, app, address=f"10.1.0.{number}") as thief:
                assert (await thief.log_in("lan", lan.password, f"{number:06}")).status_code == 401
        async with a_browser(desk, app, address="10.1.0.99") as thief:
            assert (await thief.log_in("lan", lan.password, lan.proof().code)).status_code == 401
        await later(desk, 15 * 60)
        async with a_browser(desk, app, address="10.1.0.99") as owner:
            await owner.log_in_as(lan)


# -- scope of tokens --------------------------------------------------------------------------------------------------


async def test_a_token_does_what_it_says_and_no_more_and_never_more_than_its_owner():
    async with a_bare_desk() as desk:
        await a_country(desk)
        editor = await with_password(desk, await somebody(desk, Role.PROVINCE_EDITOR, "40"))
        async with a_browser(desk) as browser:
            await browser.log_in_as(editor)
            tokens = f"/users/{editor.actor.user_id}/tokens"
            form = {"name": "thống kê", "scope": {"actions": ["read", "people_edit"], "units": [YEN_THANH]}}
            made = (await browser.send("POST", tokens, form)).json()
            assert made["scope"] == {"actions": ["people_edit", "read"], "units": [YEN_THANH]}
            assert made["token"].startswith("loa_")
            for wrong, code in (
                ({"actions": []}, 422),
                ({"units": ["nowhere"]}, 404),
                ({"actions": ["fly"]}, 422),
                ({}, 201),
            ):
                answer = await browser.send("POST", tokens, {"name": "x", "scope": wrong})
                assert answer.status_code == code, wrong
            too_long = await browser.send("POST", tokens, {"name": "x", "valid_for_s": 367 * 86_400})
            assert too_long.status_code == 422
            unlimited = (await browser.send("POST", tokens, {"name": "x"})).json()
            assert unlimited["expires_at"][:10] == "2026-08-30"
        async with a_client(desk, token=made["token"]) as client:
            assert (await client.get(f"{API}/live", params={"unit": YEN_THANH})).status_code == 200
            for unit in (QUYNH_LUU, "40"):
                assert (await client.get(f"{API}/live", params={"unit": unit})).status_code in {403, 404}
            assert (await client.get(f"{API}/users")).json()["items"] == []  # people_edit is not the owner's to give
            for path in (tokens, f"/users/{editor.actor.user_id}/sign-ins"):
                assert (await client.get(API + path)).json()["code"] == "token_is_limited"


async def test_a_token_made_by_a_token_ends_with_it():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        async with a_browser(desk) as browser:
            await browser.log_in_as(lan)
            tokens = f"/users/{lan.actor.user_id}/tokens"
            short = (await browser.send("POST", tokens, {"name": "x", "valid_for_s": 3_600})).json()
        async with a_client(desk, token=short["token"]) as client:
            longer = (await client.post(API + tokens, json={"name": "y", "valid_for_s": 86_400})).json()
            assert longer["expires_at"] == short["expires_at"]
        await later(desk, 3_600)
        async with a_client(desk, token=longer["token"]) as client:
            assert (await client.get(f"{API}/users/me")).status_code == 401


async def test_a_grant_given_later_is_in_force_for_who_is_signed_in():
    async with a_bare_desk() as desk:
        lan = await lan_of(desk)
        async with a_browser(desk) as browser:
            await browser.log_in_as(lan)
            before = (await browser.send("GET", "/users")).json()["items"]
            await people.grant_role(desk, OPERATOR, lan.actor.user_id, NewGrant(Role.COMMUNE_HEAD, YEN_THANH))
            after = (await browser.send("GET", "/users")).json()["items"]
            assert (before, [one["login"] for one in after]) == ([], ["lan"])
