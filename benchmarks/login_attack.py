"""Log-in under attack: guesses against the real application with real argon2id, while people log in.

Three parts. *Siege*: `LOA_GUESSES` (10 000) wrong passwords, unknown logins and wrong codes from many addresses against
one process on SQLite, on the machine's clock; every quarter of a second somebody logs in from a known or a new browser,
and an approver who is signed in proves to be there. *Thefts*: codes used again (also at once, with threads), planted
and stolen cookies after log-out, expiry, a new password, a reset, a lock-out. *Pages*: changes and sockets sent by the
pages of others: without the sign-in's token, with another's, from another origin, under another host.

Anything let in that should not be is a violation; so is somebody right who is kept out.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import httpx
from starlette.types import ASGIApp, Message

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.run import bar_of
from broadcast_server.api.router import create_api
from broadcast_server.control import accounts, hashing, people
from broadcast_server.control.access import OPERATOR, Actor
from broadcast_server.control.accounts import Proof
from broadcast_server.control.desk import AudioRoom, Desk
from broadcast_server.domain.errors import BroadcastError
from broadcast_server.domain.throttle import WINDOW
from broadcast_server.store import accounts as rows
from broadcast_server.store.migrations import migrate
from broadcast_server.store.session import Session, Store
from broadcast_server.store.words import Role
from broadcast_server.supervise import SystemChance, SystemClock, ThreadExecutor
from tests.support.api import api_of
from tests.support.browser import API, PAGE, Browser
from tests.support.clock import FakeClock
from tests.support.desk import a_bare_desk
from tests.support.microphone import a_microphone
from tests.support.people import PASSWORD, Person, a_person
from tests.support.places import YEN_THANH, a_country

GUESSES: Final = int(os.environ.get("LOA_GUESSES", "10000"))
ATTACKERS: Final = 12
ADDRESSES: Final = 40
BAR_P95_MS: Final = 400
BAR_LOCKED_S: Final = WINDOW.total_seconds()


@dataclass
class Tally:
    """What was tried, and what went wrong."""

    attempted: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def wrong(self, kind: str, *, let_in: bool, what: str = "") -> None:
        """Something that must not be let in."""
        self.attempted[kind] += 1
        if let_in:
            self.violations.append(f"{kind}: let in {what}")

    def right(self, kind: str, *, let_in: bool, what: str = "") -> None:
        """Somebody who must be let in."""
        self.attempted[kind] += 1
        if not let_in:
            self.violations.append(f"{kind}: kept out {what}")


def run(guesses: int = GUESSES, *, seed: int = 1, is_short: bool = False) -> dict[str, Any]:
    """See `benchmarks.run`."""
    return asyncio.run(measure(guesses, seed=seed, is_short=is_short))


async def measure(guesses: int, *, seed: int, is_short: bool) -> dict[str, Any]:
    """All parts."""
    tally = Tally()
    siege = await besiege(tally, guesses, random.Random(seed), is_short=is_short)
    await thefts(tally, is_short=is_short)
    tricks = await pages(tally)
    longest_s = await locked(tally, minutes=20 if is_short else 180)
    attempted = sum(tally.attempted.values())
    figures = {
        "attempted": attempted,
        "ok": attempted - len(tally.violations),
        "violations": len(tally.violations),
        "first_violations": tally.violations[:10],
        "guesses": guesses,
        "csrf_tricks": tricks,
        "by_kind": dict(sorted(tally.attempted.items())),
        **siege,
        "longest_locked_s": longest_s,
    }
    p95 = siege["log_in_p95_ms"]
    return {
        "name": "login_attack",
        "figures": figures,
        "bars": [
            bar_of("violations", len(tally.violations), 0, holds=not tally.violations),
            bar_of("guesses tried", guesses, 10_000, holds=guesses >= 10_000),
            bar_of("forged pages tried", tricks, 100, holds=tricks >= 100),
            bar_of("valid log-in under attack, p95, ms", p95, BAR_P95_MS, holds=p95 <= BAR_P95_MS),
            bar_of("somebody right kept out at most, s", longest_s, BAR_LOCKED_S, holds=longest_s <= BAR_LOCKED_S),
        ],
    }


# -- the siege --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def a_server() -> AsyncIterator[Desk]:
    """A desk as the server has it: a file, threads, the machine's clock and chance."""
    with tempfile.TemporaryDirectory(prefix="loa-login-") as folder:
        url = f"sqlite:///{folder}/loa.sqlite"
        migrate(url)
        clock, chance = SystemClock(), SystemChance()
        store_threads, work = ThreadExecutor(3, name="store"), ThreadExecutor(3, name="work")
        store = Store(url, clock=clock, chance=chance, executor=store_threads)
        try:
            yield Desk(store=store, clock=clock, chance=chance, executor=work, audio=cast("AudioRoom", None))
        finally:
            await store.close()
            store_threads.close()
            work.close()


async def besiege(tally: Tally, guesses: int, dice: random.Random, *, is_short: bool) -> dict[str, Any]:
    """Guesses from all sides, people in between."""
    async with a_server() as desk:
        await a_country(desk)
        app = create_api(desk)
        staff = [await a_person(desk, Role.BROADCASTER, YEN_THANH, f"nguoi-{number}") for number in range(24)]
        at_home = [Browser(app, f"192.168.1.{number}") for number in range(len(staff))]
        for person, browser in zip(staff[::2], at_home[::2], strict=True):
            await browser.log_in_as(person)
        leader = await a_person(desk, Role.LEADER, YEN_THANH, "chu-tich")
        await fill_drawers(desk, [*staff, leader])
        told: Counter[int] = Counter()
        over = asyncio.Event()
        taken_ms: dict[str, list[float]] = {"known_browser": [], "new_browser": [], "proof": []}
        queue = iter(_guesses(guesses, staff, leader, dice))
        began = time.perf_counter()

        async def attack() -> None:
            for address, body in queue:
                status = await _knock(app, f"10.{address}.0.1", body)
                told[status] += 1
                tally.wrong("guess", let_in=status not in {401, 429}, what=f"{status} {body}")

        async def attackers() -> None:
            await asyncio.gather(*(attack() for _ in range(ATTACKERS)))
            over.set()

        async def owners() -> None:
            turns = itertools.cycle(range(len(staff) - 1))  # the last one's password is known to the attackers
            while not over.is_set():
                number = next(turns)
                kind = "known_browser" if number % 2 == 0 else "new_browser"
                browser = at_home[number] if number % 2 == 0 else Browser(app, f"172.16.{dice.randrange(250)}.{number}")
                proof = _proof(staff[number], desk)
                start = time.perf_counter()
                answer = await browser.log_in(staff[number].login, proof.password, proof.code)
                taken_ms[kind].append((time.perf_counter() - start) * 1_000)
                tally.right(f"log-in {kind}", let_in=answer.status_code == 201, what=answer.text[:200])
                if number % 2:
                    await browser.http.aclose()
                await asyncio.sleep(0.25)

        async def approver() -> None:
            signed_in = Actor(leader.actor.user_id, leader.login, session_id="since this morning")
            while not over.is_set():
                proof = _proof(leader, desk)
                start = time.perf_counter()
                code = await _answer(accounts.prove(desk, signed_in, proof))
                taken_ms["proof"].append((time.perf_counter() - start) * 1_000)
                tally.right("proof of an approver", let_in=code == "let in", what=code)
                await asyncio.sleep(0.5)

        await asyncio.gather(attackers(), owners(), approver())
        lasted_s = time.perf_counter() - began
        asked = 4 if is_short else len(staff) - 1
        known_ms = await _enumeration(app, [person.login for person in staff[:asked]], dice)
        unknown_ms = await _enumeration(app, [f"khong-co-{number}" for number in range(asked)], dice)
        await reuse_at_once(tally, desk, rounds=3 if is_short else 20)
        for browser in at_home:
            await browser.http.aclose()
        log_ins = taken_ms["known_browser"] + taken_ms["new_browser"]
        return {
            "siege_s": round(lasted_s, 1),
            "guesses_per_s": round(guesses / lasted_s),
            "guesses_hashed": told[401],
            "guesses_turned_away": told[429],
            "log_ins_under_attack": len(log_ins),
            "log_in_p50_ms": _quantile(log_ins, 0.5),
            "log_in_p95_ms": _quantile(log_ins, 0.95),
            "log_in_new_browser_p95_ms": _quantile(taken_ms["new_browser"], 0.95),
            "proofs_under_attack": len(taken_ms["proof"]),
            "proof_p95_ms": _quantile(taken_ms["proof"], 0.95),
            "guess_known_login_p50_ms": known_ms,
            "guess_unknown_login_p50_ms": unknown_ms,
            "hash_ms": _hash_ms(),
        }


async def _knock(app: ASGIApp, address: str, body: dict[str, str]) -> int:
    """A guess straight at the application, for an attacker's own program runs elsewhere; the status it is told."""
    content = json.dumps(body).encode()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "path": f"{API}/session",
        "raw_path": f"{API}/session".encode(),
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        "client": (address, 50_000),
        "server": ("127.0.0.1", 443),
        "state": {},
    }
    status = 0

    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    await app(scope, receive, send)
    return status


async def fill_drawers(desk: Desk, staff: list[Person]) -> None:
    """So many recovery codes that nobody waits for the phone's next."""
    for person in staff:
        person.drawer = [f"DRAWER{number:010}" for number in range(1_000)]

    def write(session: Session) -> None:
        for person in staff:
            rows.put_recovery_codes(session, person.actor.user_id, person.drawer)

    await desk.store.begin(write)


def _proof(person: Person, desk: Desk) -> Proof:
    """A code of the phone that does not lapse on the way, the next step's; where that has served, one of the drawer."""
    step = int(desk.clock.now().timestamp()) // accounts.STEP_S + 1
    if step > person.phone.step:
        return Proof(person.password, person.phone.show(step))
    return Proof(person.password, person.drawer.pop())


def _guesses(
    count: int, staff: list[Person], leader: Person, dice: random.Random
) -> Iterator[tuple[int, dict[str, str]]]:
    """`(address, form)`: half for logins that exist, a part of them with the right password and a made-up code."""
    common = ("123456", "matkhau123456", "Admin@123456", "truyenthanh2026", "password1234", "nghean@2026")
    for number in range(count):
        login = dice.choice(staff).login if dice.random() < 0.4 else f"khong-co-{number}"
        if dice.random() < 0.1:
            login = leader.login
        kind = dice.random()
        password = dice.choice(common) if kind < 0.6 else PASSWORD[: dice.randrange(1, len(PASSWORD))]
        if kind > 0.9:
            # with the password of the last of the staff: only the code keeps the thief out
            login, password = staff[-1].login, PASSWORD
        code = f"{dice.randrange(1_000_000):06}" if dice.random() < 0.7 else ""
        yield dice.randrange(ADDRESSES), {"login": login, "password": password, "code": code}


async def reuse_at_once(tally: Tally, desk: Desk, *, rounds: int) -> None:
    """One code, six sign-ins at once, threads: one gets in."""
    for number in range(rounds):
        person = await a_person(desk, Role.LEADER, YEN_THANH, f"lanh-dao-{number}")
        proof = person.proof()
        actors = [Actor(person.actor.user_id, person.login, session_id=f"{number}/{one}") for one in range(6)]
        told = await asyncio.gather(*(_answer(accounts.prove(desk, actor, proof)) for actor in actors))
        tally.right("code at once, the first", let_in="let in" in told, what=str(told))
        for nth in range(1, len(told)):
            tally.wrong("code at once, again", let_in=nth < told.count("let in"), what=str(told))


# -- thefts -----------------------------------------------------------------------------------------------------------


async def thefts(tally: Tally, *, is_short: bool) -> None:
    """Codes used again, cookies planted and stolen; on a clock ticked by hand."""
    for number in range(1 if is_short else 6):
        async with a_bare_desk() as desk:
            clock = cast("FakeClock", desk.clock)
            await a_country(desk)
            lan = await a_person(desk, Role.BROADCASTER, YEN_THANH, "lan")
            mallory = await a_person(desk, Role.BROADCASTER, YEN_THANH, "mallory")
            app = api_of(desk)
            await clock.advance(60 + number)
            await _codes_again(tally, Browser(app), lan, clock)
            for steal in (
                _after_log_out,
                _after_idling,
                _after_ten_hours,
                _after_new_password,
                _after_reset,
                _after_lock,
            ):
                await clock.advance(1_000)
                owner, thief = Browser(app), Browser(app, "10.66.6.6")
                await owner.log_in_as(lan)
                stolen = owner.cookie
                await steal(owner, lan, desk)
                for cookie in (stolen, (stolen or "")[:-1], (stolen or "") + "A", (stolen or "").swapcase()):
                    thief.shows(cookie)
                    answer = await thief.send("GET", "/users/me")
                    tally.wrong(f"theft {steal.__name__[1:]}", let_in=answer.status_code != 401, what=answer.text)
                lan = await a_person(
                    desk, Role.BROADCASTER, YEN_THANH, f"lan-{steal.__name__.strip('_')}-{number}".replace("_", "-")
                )
            await _fixation(tally, app, lan, mallory)


async def _codes_again(tally: Tally, browser: Browser, lan: Person, clock: FakeClock) -> None:
    """The code of a step that has served, of the one before, and a recovery code, again and again."""
    drawer = lan.drawer.pop()
    codes = [drawer]
    answer = await browser.log_in(lan.login, lan.password, drawer)
    tally.right("log-in with a recovery code", let_in=answer.status_code == 201)
    early = lan.phone.fresh() or ""
    late = lan.phone.fresh() or ""
    answer = await browser.log_in(lan.login, lan.password, late)
    tally.right("log-in with a code", let_in=answer.status_code == 201)
    codes += [late, early]
    for code in codes:
        answer = await browser.log_in(lan.login, lan.password, code)
        tally.wrong("code again", let_in=answer.status_code == 201, what=code)
        await clock.advance(8)
    await clock.advance(900)
    for code in codes:
        answer = await browser.log_in(lan.login, lan.password, code)
        tally.wrong("code again, later", let_in=answer.status_code == 201, what=code)
        await clock.advance(8)


async def _fixation(tally: Tally, app: Any, lan: Person, mallory: Person) -> None:
    thief = Browser(app, "10.66.6.6")
    await thief.log_in_as(mallory)
    for planted in (thief.cookie or "", "A" * 43, "", "loa_token"):
        browser = Browser(app)
        if planted:
            browser.shows(planted)
        await browser.log_in_as(lan)
        tally.wrong("fixation: cookie kept", let_in=browser.cookie == planted)
        late = Browser(app, "10.66.6.6")
        if planted:
            late.shows(planted)
        answer = await late.send("GET", "/users/me")
        tally.wrong(
            "fixation: planted cookie", let_in=answer.status_code == 200 and answer.json()["login"] == lan.login
        )


async def _after_log_out(owner: Browser, _lan: Person, _desk: Desk) -> None:
    await owner.send("DELETE", "/session")


async def _after_idling(_owner: Browser, _lan: Person, desk: Desk) -> None:
    await cast("FakeClock", desk.clock).advance(30 * 60)


async def _after_ten_hours(owner: Browser, _lan: Person, desk: Desk) -> None:
    for _ in range(31):
        await cast("FakeClock", desk.clock).advance(20 * 60)
        await owner.send("GET", "/users/me")


async def _after_new_password(owner: Browser, lan: Person, _desk: Desk) -> None:
    proof = lan.proof()
    body = {"password": proof.password, "code": proof.code, "new_password": "bảy con cá trê ngủ trưa"}
    answer = await owner.send("PUT", "/session/password", body)
    assert answer.status_code == 200, answer.text


async def _after_reset(_owner: Browser, lan: Person, desk: Desk) -> None:
    await people.reset_totp(desk, OPERATOR, lan.actor.user_id)


async def _after_lock(_owner: Browser, lan: Person, desk: Desk) -> None:
    await people.disable_user(desk, OPERATOR, lan.actor.user_id)


# -- the pages of others ----------------------------------------------------------------------------------------------

ORIGINS: Final = (
    "https://evil.example",
    "https://127.0.0.1.evil.example",
    "https://127.0.0.1:8443",
    "http://127.0.0.1",
    "https://localhost",
    "https://127.0.0.1@evil.example",
    "https://evil.example/https://127.0.0.1",
    "null",
    "file://",
    "https://[::1]",
    "https://127.0.0.1%00.evil.example",
    "chrome-extension://abcdef",
)
HOSTS: Final = ("evil.example", "127.0.0.1.evil.example", "evil.example:443", "", "127.0.0.1@evil.example")


async def pages(tally: Tally) -> int:
    """Forged changes with the victim's cookie, in every way a page or a link can send one; returns how many."""
    async with a_bare_desk() as desk:
        await a_country(desk)
        app = api_of(desk)
        victim = await a_person(desk, Role.BROADCASTER, YEN_THANH, "lan")
        mallory = await a_person(desk, Role.BROADCASTER, YEN_THANH, "mallory")
        browser, second, thief = Browser(app), Browser(app), Browser(app, "10.66.6.6")
        await browser.log_in_as(victim)
        await second.log_in_as(victim)
        await thief.log_in_as(mallory)
        user_id = victim.actor.user_id
        targets: list[tuple[str, str, Any]] = [
            ("POST", f"/users/{user_id}/tokens", {"name": "stolen"}),
            ("DELETE", f"/users/{user_id}/sign-ins", None),
            ("DELETE", "/session", None),
            ("PUT", "/session/password", {"password": PASSWORD, "code": "1", "new_password": "kẻ trộm đổi mật khẩu"}),
            ("POST", "/session/totp", {"password": PASSWORD, "code": victim.drawer[0]}),
        ]
        tricks = 0
        for method, path, body in targets:
            for name, send in _forgeries(browser, second, thief, method, path, body):
                answer = await send()
                tricks += 1
                tokens = (await browser.send("GET", f"/users/{user_id}/tokens")).json()
                is_done = answer.status_code < 300 and answer.request.method not in {"GET", "HEAD"}
                tally.wrong("forged page", let_in=is_done or tokens != [], what=f"{name} {method} {path}")
        still = await browser.send("GET", "/session")
        tally.right("the victim is still signed in", let_in=still.status_code == 200)
        for target in targets[:1]:
            done = await browser.send(*target)
            tally.right("the page of one's own", let_in=done.status_code == 201, what=done.text)
        await _sockets(tally, app, desk, browser)
        return tricks


def _forgeries(
    browser: Browser, second: Browser, thief: Browser, method: str, path: str, body: Any
) -> Iterator[tuple[str, Callable[[], Awaitable[httpx.Response]]]]:
    def sent(**headers: str) -> Callable[[], Awaitable[httpx.Response]]:
        return lambda: browser.send(method, path, body, **headers)

    def raw(content: bytes, kind: str | None) -> Callable[[], Awaitable[httpx.Response]]:
        headers = {} if kind is None else {"Content-Type": kind}
        return lambda: browser.http.request(method, API + path, content=content, headers=headers)

    csrf = browser.csrf
    for token in ("", second.csrf, thief.csrf, csrf[:-1], csrf + "0", csrf.upper(), browser.cookie or "", "null"):
        yield f"token {token[:6]}", sent(X_CSRF_Token=token)
    for origin in ORIGINS:
        yield f"origin {origin}", sent(Origin=origin)
    for site in ("cross-site", "same-site", "none", "SAME-ORIGIN", "nonsense"):
        yield f"site {site}", sent(Origin="", Sec_Fetch_Site=site)
    for host in HOSTS:
        yield f"host {host}", sent(Host=host or "evil")
    yield "host told by a proxy", sent(X_CSRF_Token="", X_Forwarded_Host="evil.example", Forwarded="host=evil.example")
    yield "token under another name", sent(X_CSRF_Token="", X_XSRF_Token=csrf, CSRF_Token=csrf)
    yield "token in the address", lambda: browser.send(method, f"{path}?csrf_token={csrf}", body, X_CSRF_Token="")
    yield "token in a cookie", sent(X_CSRF_Token="", Cookie=f"__Host-sid={browser.cookie}; csrf_token={csrf}")
    yield "token as bearer", sent(X_CSRF_Token="", Authorization=f"Bearer {csrf}")
    yield "cookie as bearer", sent(X_CSRF_Token="", Authorization=f"Bearer {browser.cookie}")
    text = httpx.Request("POST", PAGE, json=body).content
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None):
        yield f"body as {kind}", raw(text, kind)
    for other in ("GET", "HEAD", "OPTIONS", "POST", "PATCH", "TRACE"):
        if other != method:
            yield f"override {other}", _overridden(browser, other, method, path, body)


def _overridden(
    browser: Browser, sent_as: str, method: str, path: str, body: Any
) -> Callable[[], Awaitable[httpx.Response]]:
    headers = {"X-HTTP-Method-Override": method, "X-HTTP-Method": method, "X-Method-Override": method}
    return lambda: browser.http.request(sent_as, f"{API}{path}?_method={method}", json=body, headers=headers)


async def _sockets(tally: Tally, app: Any, desk: Desk, browser: Browser) -> None:
    """A socket and a stream opened by the page of another, with the victim's cookie."""
    cookie = f"__Host-sid={browser.cookie}"
    for origin in (*ORIGINS[:3], *ORIGINS[4:], "", "http://127.0.0.1:1"):
        headers = {"cookie": cookie, **({"origin": origin} if origin else {})}
        async with a_microphone(app, cast("FakeClock", desk.clock), "no-such", headers) as microphone:
            await microphone.say(format="opus")
            codes = [one.get("error", {}).get("code") for one in microphone.told]
            refused = microphone.closed is not None and microphone.closed[0] in {1008, 4403, 4503}
            tally.wrong(
                "socket of another page", let_in=not refused or "unknown_live" in codes, what=f"{origin} {codes}"
            )
    for origin in ORIGINS:
        answer = await browser.send("GET", "/feeds/no-such/monitor", Origin=origin)
        tally.wrong("stream of another page", let_in=answer.status_code != 403, what=origin)
    for site in ("cross-site", "same-site"):
        answer = await browser.send("GET", "/feeds/no-such/monitor", Sec_Fetch_Site=site)
        tally.wrong("stream of another page", let_in=answer.status_code != 403, what=site)


# -- how long somebody right is kept out ------------------------------------------------------------------------------


async def locked(tally: Tally, *, minutes: int) -> float:
    """Hours of guesses at one login, from its owner's own address and from others; the longest the owner waited, s."""
    async with a_bare_desk() as desk:
        clock = cast("FakeClock", desk.clock)
        await a_country(desk)
        lan = await a_person(desk, Role.BROADCASTER, YEN_THANH, "lan")
        app = api_of(desk)
        at_home = Browser(app)
        await at_home.log_in_as(lan)
        for minute in range(minutes):
            for address in ("10.0.0.7", "10.1.1.1"):
                answer = await Browser(app, address).log_in("lan", "đoán bừa một câu", "123456")
                tally.wrong("guess at a neighbour's", let_in=answer.status_code == 201)
            await clock.advance(60)
            if minute % 20 == 7:
                for kind, browser in (("home", at_home), ("elsewhere", Browser(app, f"10.2.0.{minute % 250}"))):
                    proof = lan.proof()
                    answer = await browser.log_in("lan", proof.password, proof.code)
                    tally.right(f"log-in {kind} beside guesses", let_in=answer.status_code == 201, what=answer.text)
        await clock.advance(WINDOW.total_seconds())
        for _ in range(5):
            await at_home.log_in("lan", "gõ nhầm mật khẩu", "000000")
            await clock.advance(8)
        waited_s = 0.0
        while True:
            proof = lan.proof()
            answer = await at_home.log_in("lan", proof.password, proof.code)
            if answer.status_code == 201:
                break
            assert waited_s <= 2 * BAR_LOCKED_S, answer.text
            await clock.advance(float(answer.headers["retry-after"]))
            waited_s += float(answer.headers["retry-after"])
        return waited_s


# -- arithmetic -------------------------------------------------------------------------------------------------------


async def _answer(proving: Awaitable[Any]) -> str:
    try:
        await proving
    except BroadcastError as error:
        return error.code
    return "let in"


async def _enumeration(app: Any, logins: list[str], dice: random.Random) -> float:
    """How long one guess takes in the median, each login from an address of its own, ms."""
    taken_ms = []
    for login in logins:
        browser = Browser(app, f"10.250.{dice.randrange(250)}.{dice.randrange(250)}")
        start = time.perf_counter()
        await browser.log_in(login, "đoán bừa một câu", "123456")
        taken_ms.append((time.perf_counter() - start) * 1_000)
    return _quantile(taken_ms, 0.5)


def _quantile(values: list[float], q: float) -> float:
    """Of an empty list, infinity: what was not measured holds no bar."""
    return round(sorted(values)[min(len(values) - 1, int(q * len(values)))], 1) if values else float("inf")


def _hash_ms() -> float:
    began = time.perf_counter()
    for _ in range(5):
        hashing.matches(None, "đoán bừa một câu")
    return round((time.perf_counter() - began) / 5 * 1_000, 1)


if __name__ == "__main__":
    print(json.dumps(run(), ensure_ascii=False, indent=2))
