"""Log-in under attack in its short form, and that it would see a thief who gets in."""

from __future__ import annotations

from benchmarks import login_attack
from benchmarks.login_attack import Tally


def test_no_guess_theft_or_forged_page_gets_in_and_nobody_right_is_kept_out():
    told = login_attack.run(80, is_short=True)["figures"]
    assert told["first_violations"] == []
    assert told["attempted"] == told["ok"] > 400
    assert told["guesses_hashed"] + told["guesses_turned_away"] == 80
    assert told["csrf_tricks"] >= 100
    assert told["log_ins_under_attack"] > 0
    assert told["proofs_under_attack"] > 0
    assert 0 < told["longest_locked_s"] <= login_attack.BAR_LOCKED_S


async def test_the_suite_sees_a_guess_that_is_right():
    """It would prove nothing if it could not fail."""
    tally = Tally()
    async with login_attack.a_server() as desk:
        await login_attack.a_country(desk)
        lan = await login_attack.a_person(desk, login_attack.Role.BROADCASTER, login_attack.YEN_THANH, "lan")
        browser = login_attack.Browser(login_attack.api_of(desk))
        proof = lan.proof()
        answer = await browser.log_in("lan", proof.password, proof.code)
        tally.wrong("guess", let_in=answer.status_code not in {401, 429})
        await browser.http.aclose()
    assert tally.violations == ["guess: let in "]
