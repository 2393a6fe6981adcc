"""Two people, or nothing: every way one person, or no person, might put an alarm on the air, and none does.

A store on disk, real threads, the real API. Each trick is followed by a look at what is in force and, by reckoning of
this file alone, at what every alarm that ever sounded rests on. Between the tricks two people raise alarms as they
should, and those sound. `LOA_RACES` (110): so many of the tricks are races of requests at once.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
from sqlalchemy import select

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.run import bar_of  # noqa: E402
from broadcast_server.api.router import create_api  # noqa: E402
from broadcast_server.control import (  # noqa: E402
    approvals,
    break_glass,
    consents,
    emergency,
    library,
    people,
    placements,
    playing,
    scheduling,
    sending,
)
from broadcast_server.control.access import DELEGATED, MAY, OPERATOR, SERVER, TERMED, Action, Actor  # noqa: E402
from broadcast_server.control.accounts import Proof  # noqa: E402
from broadcast_server.control.break_glass import BreakGlass, NewTemplate  # noqa: E402
from broadcast_server.control.desk import Desk  # noqa: E402
from broadcast_server.control.emergency import Correction, EmergencyView, Message, NewEmergency, Rounds  # noqa: E402
from broadcast_server.domain.errors import BroadcastError  # noqa: E402
from broadcast_server.domain.recurrence import rule_from_dict  # noqa: E402
from broadcast_server.store import emergencies  # noqa: E402
from broadcast_server.store import library as shelf  # noqa: E402
from broadcast_server.store.session import Session  # noqa: E402
from broadcast_server.store.tables import (  # noqa: E402
    AlertRow,
    AuditRow,
    EmergencyRow,
    ScheduleRow,
)
from broadcast_server.store.tables_approval import (  # noqa: E402
    EmergencyConsentRow,
    EmergencyTemplateRow,
    TemplateApprovalRow,
)
from broadcast_server.store.words import ContentKind, EmergencyMode, MediaKind, ReviewFinding, Role  # noqa: E402
from broadcast_server.supervise import ThreadExecutor  # noqa: E402
from speaker_protocol.rules import BulletinClass  # noqa: E402
from tests.support.alarms import Duo, a_duo, a_template  # noqa: E402
from tests.support.api import ORIGIN  # noqa: E402
from tests.support.clock import FakeClock  # noqa: E402
from tests.support.database import a_store  # noqa: E402
from tests.support.desk import a_desk_of  # noqa: E402
from tests.support.people import Person, a_person  # noqa: E402
from tests.support.village import DONG, NOW, PROVINCE, TAY, settle  # noqa: E402

RACES: Final = 110
HANDS: Final = 6
"""Requests at once in a race."""
WORD: Final = emergency.CONFIRM
LIVES: Final = timedelta(minutes=15)

Deed = Callable[[], Awaitable[object]]
Trick = tuple[str, Deed]


@dataclass(slots=True)
class Stage:
    """The store, what was tried on it, and what came of it."""

    desk: Desk
    attempted: int = 0
    races: int = 0
    proper: int = 0
    proper_aired: int = 0
    aired: list[str] = field(default_factory=list)
    """Tricks after which something sounded that should not."""
    answers: Counter[str] = field(default_factory=Counter)

    @property
    def clock(self) -> FakeClock:
        assert isinstance(self.desk.clock, FakeClock)
        return self.desk.clock

    async def tried(self, name: str, deed: Deed) -> None:
        """One trick: refused or not, nothing sounds after it."""
        self.attempted += 1
        try:
            await deed()
        except BroadcastError as error:
            self.answers[error.code] += 1
        else:
            self.answers["no refusal"] += 1
        in_force = await self.in_force()
        if in_force:
            self.aired.append(f"{name}: {len(in_force)} in force")
            await self.silence()
        self.aired += [f"{name}: {fault}" for fault in await self.unfounded()]
        await self.clock.advance(60)

    async def raced(self, name: str, *deeds: Deed, most: int) -> None:
        """A race: at most so many of the deeds put something on the air, and what is there rests on two people."""
        self.attempted += 1
        self.races += 1
        for told in await asyncio.gather(*(deed() for deed in deeds), return_exceptions=True):
            if isinstance(told, BroadcastError):
                self.answers[told.code] += 1
            elif isinstance(told, BaseException):
                raise told
        in_force = await self.in_force()
        if len(in_force) > most:
            self.aired.append(f"{name}: {len(in_force)} of {most} in force")
        self.aired += [f"{name}: {fault}" for fault in await self.unfounded()]
        await self.silence()
        await self.clock.advance(60)

    async def raised(self, duo: Duo, mode: EmergencyMode = EmergencyMode.REAL) -> None:
        """Two people, as it should be: it sounds."""
        self.proper += 1
        view = await duo.raise_(wanted(mode))
        self.proper_aired += view.row.id in await self.in_force()
        await self.silence()
        await self.clock.advance(60)

    async def in_force(self) -> list[str]:
        """Alarms that the nodes are told of."""

        def look(session: Session) -> list[str]:
            alerts = emergencies.sets(session, now=self.clock.now()).alerts
            return [body["alert_id"] for bodies in alerts.values() for body in bodies]

        return await self.desk.store.read(look)

    async def silence(self) -> None:
        for alert_id in set(await self.in_force()):
            await emergency.cancel(self.desk, OPERATOR, alert_id, reason="hết")

    async def unfounded(self) -> list[str]:
        """What sounded, ever, without two people or a template; by this file's own reckoning."""
        return await self.desk.store.read(_unfounded)


def _unfounded(session: Session) -> list[str]:
    found = []
    for row in session.scalars(select(EmergencyRow).where(EmergencyRow.launched_at.is_not(None))):
        assert row.launched_at is not None
        given = list(session.scalars(select(EmergencyConsentRow).where(EmergencyConsentRow.emergency_id == row.id)))
        mine = [one for one in given if one.content_hash == row.content_hash and one.at <= row.launched_at]
        told = {role: [one for one in mine if one.role == role] for role in ("initiator", "approver", "break_glass")}
        pairs = [
            (a, b)
            for a in told["initiator"]
            for b in told["approver"]
            if a.user_id != b.user_id and timedelta(0) <= b.at - a.at <= LIVES and (a.seat is None or a.seat != b.seat)
        ]
        alone = row.template_id is not None and bool(told["break_glass"]) and row.expires_min <= 15
        if alone:
            approvers = session.scalars(
                select(TemplateApprovalRow.user_id).where(TemplateApprovalRow.template_id == row.template_id)
            )
            alone = len(set(approvers)) >= 2
        if not (pairs or alone):
            found.append(f"{row.id} sounded on the word of {sorted(one.login for one in given)}")
        alerts = list(session.scalars(select(AlertRow).where(AlertRow.emergency_id == row.id)))
        if sorted(one.unit_id for one in alerts) != sorted(row.units):
            found.append(f"{row.id} sounded at other places than agreed, or twice")
        _in_order(session, row, [one.user_id for one in mine], found)
    return found


def _in_order(session: Session, row: EmergencyRow, people_ids: list[str], found: list[str]) -> None:
    """Nobody agreed whose account was locked before it sounded."""
    launched = session.scalar(
        select(AuditRow.sequence).where(
            AuditRow.subject == f"emergency/{row.id}", AuditRow.verb.in_(["emergency.launch", "emergency.drill"])
        )
    )
    for user_id in people_ids:
        locked = session.scalar(
            select(AuditRow.sequence).where(AuditRow.subject == f"user/{user_id}", AuditRow.verb == "user.disable")
        )
        if launched is not None and locked is not None and locked < launched:
            found.append(f"{row.id} sounded on the word of somebody locked out before")


def wanted(mode: EmergencyMode = EmergencyMode.REAL, **more: Any) -> NewEmergency:
    request = NewEmergency(DONG, mode, Message("flood", text="Vỡ đê"), "mô phỏng", confirm=WORD[mode])
    return replace(request, **more)


# -- one after the other ----------------------------------------------------------------------------------------------


async def write(desk: Desk, change: Callable[[Session], object]) -> None:
    def work(session: Session) -> None:
        change(session)

    await desk.store.begin(work)


async def second_persons(stage: Stage, mode: EmergencyMode) -> list[Trick]:
    """Who is no second person."""
    desk, word = stage.desk, WORD[mode]
    duo = await a_duo(desk, DONG)
    proposed = await duo.propose(wanted(mode))

    def by(person: Person, **more: Any) -> Deed:
        seat = {name: more.pop(name) for name in ("session_id", "token_id") if name in more}
        who = replace(person, actor=replace(person.actor, **seat))
        return lambda: replace(duo, second=who).agree(proposed, word, **more)

    async def one_browser() -> object:
        seated = [replace(one, actor=replace(one.actor, session_id="s")) for one in (duo.first, duo.second)]
        return await Duo(desk, seated[0], seated[1]).raise_(wanted(mode))

    def proposing(machine: Actor) -> Deed:
        return lambda: consents.propose(desk, machine, wanted(mode), Proof("x", "000000"))

    def typing(wrong: str) -> Deed:
        return lambda: duo.agree(proposed, wrong)

    tricks: list[Trick] = [("oneself", by(duo.first))]
    tricks += [(f"oneself, {name}", by(duo.first, **{name: "x"})) for name in ("session_id", "token_id")]
    tricks.append(("two in one browser", one_browser))
    renamed = replace(duo.first, actor=Actor(duo.first.actor.user_id, f"ten-moi-{mode.value}"))
    tricks.append(("oneself, renamed", by(renamed)))
    for role in Role:
        if Action.EMERGENCY_LAUNCH not in MAY[role] and role not in DELEGATED | TERMED:
            tricks.append((f"a {role.value} there", by(await a_person(desk, role, DONG))))
    for role in (Role.LEADER, Role.COMMUNE_HEAD, Role.BROADCASTER):
        tricks.append((f"a {role.value} of the neighbour", by(await a_person(desk, role, TAY))))
    tricks.append(("an administrator of the province", by(await a_person(desk, Role.ADMIN, PROVINCE))))
    for machine in (OPERATOR, SERVER):
        tricks.append((machine.login, by(replace(duo.second, actor=machine))))
        tricks.append((f"{machine.login} proposes", proposing(machine)))
    other = WORD[EmergencyMode.REAL if mode is EmergencyMode.DRILL else EmergencyMode.DRILL]
    for wrong in ("", other, "khan cap"):
        tricks.append((f"the word {wrong!r}", typing(wrong)))
    return [tricks[0], *[(name, _fresh(stage, duo, deed, proposed)) for name, deed in tricks[1:]]]


def _fresh(stage: Stage, duo: Duo, deed: Deed, proposed: EmergencyView) -> Deed:
    """The first person agrees anew before each trick, so that it is never too late for it."""

    async def later() -> object:
        await consents.renew(
            stage.desk, duo.first.actor, proposed.row.id, duo.first.proof(), content_hash=proposed.row.content_hash
        )
        return await deed()

    return later


def proofs(stage: Stage, mode: EmergencyMode) -> Iterator[Trick]:
    """Codes that have served, passwords that are not theirs."""
    desk, word = stage.desk, WORD[mode]

    def agreeing(typed: Callable[[Duo], Proof]) -> Deed:
        async def deed() -> object:
            duo = await a_duo(desk, DONG)
            earlier = await duo.raise_(wanted(mode))
            await emergency.cancel(desk, OPERATOR, earlier.row.id, reason="hết")
            proposed = await duo.propose(wanted(mode))
            told = {"content_hash": proposed.row.content_hash, "confirm": word}
            return await consents.approve(desk, duo.second.actor, proposed.row.id, typed(duo), **told)

        return deed

    def drawers(duo: Duo) -> Proof:
        return Proof(duo.second.password, duo.first.drawer[0])

    yield (
        "the same code again",
        agreeing(lambda duo: Proof(duo.second.password, duo.second.phone.of_step(duo.second.phone.step))),
    )
    yield (
        "an older code",
        agreeing(lambda duo: Proof(duo.second.password, duo.second.phone.of_step(duo.second.phone.step - 1))),
    )
    yield "the first one's code", agreeing(lambda duo: Proof(duo.second.password, duo.first.proof().code))
    yield "the first one's proof", agreeing(lambda duo: duo.first.proof())
    yield "the first one's drawer", agreeing(drawers)
    yield "a wrong password", agreeing(lambda duo: Proof("nồi cơm", duo.second.proof().code))
    yield "no code", agreeing(lambda duo: Proof(duo.second.password, ""))

    async def drawer_twice() -> object:
        duo = await a_duo(desk, DONG)
        code = duo.second.drawer.pop()
        for _ in range(2):
            proposed = await duo.propose(wanted(mode))
            told = {"content_hash": proposed.row.content_hash, "confirm": word}
            view = await consents.approve(
                desk, duo.second.actor, proposed.row.id, Proof(duo.second.password, code), **told
            )
            await emergency.cancel(desk, OPERATOR, view.row.id, reason="hết")
            await stage.clock.advance(30)
        return None

    yield "a drawer's code twice", drawer_twice


CHANGES: Final[tuple[dict[str, Any], ...]] = (
    {"units": [DONG, TAY]}, {"unit_id": PROVINCE}, {"expires_min": 1_440}, {"text": "Không sao"}, {"hazard": "storm"},
    {"phrases": ["stay_inside"]}, {"level": 7}, {"times": 20}, {"every_min": 1}, {"voice": "south"}, {"tone_ms": 9_000},
    {"template_id": "t"},
)  # fmt: skip


def changes(stage: Stage, mode: EmergencyMode) -> Iterator[Trick]:
    """What they agreed to is not what would sound."""
    desk, word = stage.desk, WORD[mode]
    flipped = EmergencyMode.DRILL if mode is EmergencyMode.REAL else EmergencyMode.REAL
    for change in (*CHANGES, {"mode": flipped}):
        for with_hash in (False, True):

            async def deed(change: dict[str, Any] = change, with_hash: bool = with_hash) -> object:
                duo = await a_duo(desk, DONG)
                proposed = await duo.propose(wanted(mode))
                told = proposed.row.content_hash

                def alter(session: Session) -> str:
                    row = session.get_one(EmergencyRow, proposed.row.id)
                    for name, value in change.items():
                        setattr(row, name, value)
                    if with_hash:
                        row.content_hash = emergencies.alarm_of(row).content_hash
                    return row.content_hash

                told = await desk.store.begin(alter)
                typed = WORD[change.get("mode", mode)]
                return await duo.agree(proposed, typed, content_hash=told)

            yield f"{next(iter(change))} changed{' with its hash' if with_hash else ''}", deed

    async def replayed() -> object:
        duo = await a_duo(desk, DONG)
        agreed = await duo.raise_(wanted(mode))
        await emergency.cancel(desk, OPERATOR, agreed.row.id, reason="hết")
        proposed = await duo.propose(wanted(mode))

        def copy(session: Session) -> None:
            for number, one in enumerate(agreed.consents):
                session.add(
                    EmergencyConsentRow(
                        id=f"{proposed.row.id[:30]}{number}",
                        emergency_id=proposed.row.id,
                        user_id=one.user_id,
                        login=one.login,
                        role=one.role,
                        content_hash=one.content_hash,
                        at=one.at,
                        seat=one.seat,
                    )
                )

        await write(desk, copy)
        return await replace(duo, second=duo.first).agree(proposed, word)

    yield "another alarm's consents", replayed

    async def with_its_hash() -> object:
        duo = await a_duo(desk, DONG)
        one, other = await duo.propose(wanted(mode)), await duo.propose(wanted(mode))
        return await duo.agree(one, word, content_hash=other.row.content_hash)

    yield "another alarm's hash", with_its_hash


def in_between(stage: Stage, mode: EmergencyMode) -> Iterator[Trick]:
    """Time passes, accounts are locked, rights end, the proposal is taken back."""
    desk, word = stage.desk, WORD[mode]

    def after(event: Callable[[Duo, EmergencyView], Awaitable[object]]) -> Deed:
        async def deed() -> object:
            duo = await a_duo(desk, DONG)
            proposed = await duo.propose(wanted(mode))
            await event(duo, proposed)
            return await duo.agree(proposed, word)

        return deed

    async def end_right(person: Person) -> None:
        view = await people.get_user(desk, OPERATOR, person.actor.user_id)
        for grant in view.grants:
            await people.end_grant(desk, OPERATOR, view.user.id, grant.id)

    def late(minutes: int) -> Deed:
        return after(lambda _duo, _one: stage.clock.advance(minutes * 60))

    for minutes in (16, 60, 24 * 60):
        yield f"{minutes} min later", late(minutes)
    yield "a second too late", after(lambda _duo, _one: stage.clock.advance(15 * 60 + 1))
    yield "the first locked", after(lambda duo, _: people.disable_user(desk, OPERATOR, duo.first.actor.user_id))
    yield "the second locked", after(lambda duo, _: people.disable_user(desk, OPERATOR, duo.second.actor.user_id))
    yield "the first's right ended", after(lambda duo, _: end_right(duo.first))
    yield "the second's right ended", after(lambda duo, _: end_right(duo.second))
    yield "withdrawn", after(lambda duo, one: emergency.cancel(desk, duo.first.actor, one.row.id, reason="thôi"))

    async def alone_after(own: str) -> object:
        duo = await a_duo(desk, DONG)
        running = await duo.raise_(wanted(mode))
        if own == "correction":
            request = Correction(running.row.id, Message(text="Ở yên tại chỗ"), "sửa")
            fresh = await consents.correct(desk, duo.first.actor, request, duo.first.proof())
        else:
            fresh = await consents.finish(
                desk, duo.first.actor, running.row.id, duo.first.proof(), reason="hết", text="Ở yên tại chỗ"
            )
        await emergency.cancel(desk, duo.first.actor, running.row.id, reason="hết")
        return await replace(duo, second=duo.first).agree(fresh, word)

    yield "a correction of one's own alone", lambda: alone_after("correction")
    yield "last words of one's own alone", lambda: alone_after("last words")


async def templates(stage: Stage) -> list[Trick]:
    """Break-glass that is none."""
    desk = stage.desk
    duo, third = await a_duo(desk, DONG), await a_person(desk, Role.LEADER, DONG)
    head = await a_person(desk, Role.COMMUNE_HEAD, DONG)
    good = (await a_template(duo, head, DONG)).row.id
    ask = BreakGlass(DONG, good, "mô phỏng", "KHẨN CẤP")

    def alone(who: Person = duo.first, **more: Any) -> Deed:
        return lambda: break_glass.break_glass(desk, who.actor, replace(ask, **more), who.proof())

    async def written(author: Person, *approvers: Person, **message: Any) -> str:
        view = await break_glass.write_template(
            desk, author.actor, NewTemplate(DONG, "mẫu", Message("flood", **message))
        )
        for one in approvers:
            await break_glass.approve_template(
                desk, one.actor, view.row.id, one.proof(), content_hash=view.row.content_hash
            )
        return view.row.id

    drafted, half = await written(head), await written(head, duo.second)
    retired = await written(head, duo.first, duo.second)
    await break_glass.retire_template(desk, head.actor, retired)
    tricks: list[Trick] = [
        ("16 minutes", alone(expires_min=16)),
        ("a day", alone(expires_min=1_440)),
        ("the neighbour", alone(unit_id=TAY)),
        ("the neighbour's clusters", alone(units=(TAY,))),
        ("the province", alone(unit_id=PROVINCE)),
        ("a template of elsewhere", alone(await a_person(desk, Role.LEADER, TAY), unit_id=TAY)),
        ("a template nobody approved", alone(template_id=drafted)),
        ("a template one approved", alone(template_id=half)),
        ("a retired template", alone(template_id=retired)),
        ("no such template", alone(template_id="khong-co")),
        ("the drill's word", alone(confirm="DIỄN TẬP")),
        ("who may only propose", alone(head)),
        ("the operator", lambda: break_glass.break_glass(desk, OPERATOR, ask, Proof("x", "000000"))),
    ]

    async def own_approval() -> object:
        made = await written(third, duo.second)
        return await break_glass.approve_template(
            desk, third.actor, made, third.proof(), content_hash=(await _template(desk, made)).content_hash
        )

    tricks.append(("a template of one's own", own_approval))
    for name, value in {
        "hazard": "storm",
        "text": "Khác",
        "phrases": ["stay_inside"],
        "times": 9,
        "unit_id": TAY,
    }.items():

        async def altered(name: str = name, value: Any = value) -> object:
            made = await written(head, duo.first, duo.second)
            await write(desk, lambda session: setattr(session.get_one(EmergencyTemplateRow, made), name, value))
            await stage.clock.advance(30)
            return await alone(template_id=made, unit_id=DONG)()

        tricks.append((f"{name} of a template altered", altered))
    return tricks


async def _template(desk: Desk, template_id: str) -> EmergencyTemplateRow:
    return await desk.store.read(lambda session: session.get_one(EmergencyTemplateRow, template_id))


async def spent(stage: Stage) -> list[Trick]:
    """The third of a day, and any while a review is overdue."""
    desk = stage.desk
    duo = await a_duo(desk, DONG)
    template = (await a_template(duo, await a_person(desk, Role.COMMUNE_HEAD, DONG), DONG)).row.id
    ask = BreakGlass(DONG, template, "mô phỏng", "KHẨN CẤP")

    def alone(who: Person) -> Deed:
        return lambda: break_glass.break_glass(desk, who.actor, ask, who.proof())

    await stage.clock.advance(24 * 3_600)
    for _ in range(2):
        stage.proper += 1
        await stage.clock.advance(60)
        view = await break_glass.break_glass(desk, duo.first.actor, ask, duo.first.proof())
        stage.proper_aired += view.row.id in await stage.in_force()
        await stage.silence()

    async def overdue(who: Person) -> object:
        await stage.clock.advance(25 * 3_600)
        return await alone(who)()

    return [
        ("the third of a day", alone(duo.first)),
        ("the third of a day, another person", alone(duo.second)),
        ("unreviewed", lambda: overdue(duo.first)),
        ("unreviewed, another person", lambda: overdue(duo.second)),
    ]


async def wordings(stage: Stage) -> list[Trick]:
    """A bulletin's author lets it sound: as an alarm, at an hour, sent down, played now."""
    desk = stage.desk
    author = await a_person(desk, Role.COMMUNE_HEAD, DONG, "tac-gia")
    for role, unit in ((Role.LEADER, DONG), (Role.PROVINCE_EDITOR, PROVINCE)):
        await people.grant_role(desk, OPERATOR, author.actor.user_id, people.NewGrant(role, unit))

    async def drafted() -> tuple[str, str, str]:
        made, version = desk.chance.new_id(), desk.chance.new_id()
        sha256 = made.rjust(64, "0")[-64:]

        def work(session: Session) -> str:
            now = desk.clock.now()
            audio = library.Audio(sha256, 1, 30_000, {})
            row = library.enter_bulletin(
                session, author.actor, library.NewBulletin(DONG, "tin", BulletinClass.EMERGENCY), made, now
            )
            return library.enter_version(
                session, author.actor, row, version, now,
                language="vie", media=MediaKind.AUDIO, text=None, voice=None, audio=audio,
            ).content_hash  # fmt: skip

        return made, version, await desk.store.begin(work)

    async def approved_by(who: Actor) -> str:
        made, version, told = await drafted()
        await approvals.submit_version(desk, author.actor, made, version, content_hash=told)
        await approvals.approve_version(desk, who, made, version, told)
        return made

    async def raised_by(who: Actor) -> object:
        made = await approved_by(who)
        duo = await a_duo(desk, DONG)
        return await duo.raise_(wanted(message=Message(bulletin_id=made)))

    async def at_an_hour() -> object:
        made = await approved_by((await a_person(desk, Role.LEADER, DONG)).actor)
        soon = stage.clock.now() + timedelta(seconds=30)
        rule = rule_from_dict({"kind": "once", "at": soon.isoformat()})
        request = scheduling.NewSchedule(DONG, ContentKind.BULLETIN, made, rule)
        placed = (await scheduling.create_schedule(desk, author.actor, request)).schedule
        approval = placements.ApprovePlacement(placed.id, placed.placement_hash)
        return await placements.approve_placement(desk, author.actor, approval, author.proof())

    async def played() -> object:
        made = await approved_by((await a_person(desk, Role.LEADER, DONG)).actor)
        return await playing.play_now(desk, author.actor, playing.PlayNow(DONG, ContentKind.BULLETIN, made))

    async def sent() -> object:
        made = await approved_by((await a_person(desk, Role.LEADER, DONG)).actor)

        def hand_up(session: Session) -> None:
            shelf.bulletin(session, made).unit_id = PROVINCE

        await write(desk, hand_up)
        deadline = stage.clock.now() + timedelta(hours=2)
        request = sending.NewSending(PROVINCE, made, "mô phỏng", deadline, (DONG,), confirm="KHẨN CẤP")
        view = await sending.send_bulletin(desk, author.actor, request, author.proof())
        alert_id = view.arrivals[0].arrival.alert_id or ""
        shown = await emergency.get_emergency(desk, author.actor, alert_id)
        return await Duo(desk, author, author).agree(shown)

    token, session = replace(author.actor, token_id="t"), replace(author.actor, session_id="s")
    return [
        ("its author", lambda: raised_by(author.actor)),
        ("its author through a token", lambda: raised_by(token)),
        ("its author through another log-in", lambda: raised_by(session)),
        ("its author at an hour", at_an_hour),
        ("its author at once", played),
        ("its author, sent down", sent),
    ]


async def sounds_on_the_grid(stage: Stage) -> list[str]:
    """Schedules of class emergency whose place nobody else approved, and which would sound all the same."""

    def look(session: Session) -> list[str]:
        rows = session.scalars(select(ScheduleRow).where(ScheduleRow.klass == BulletinClass.EMERGENCY))
        return [row.id for row in rows if row.approved_hash is not None or not row.needs_approval]

    return await stage.desk.store.read(look)


# -- at once ----------------------------------------------------------------------------------------------------------


class Hands:
    """People at browsers of the real API, all pressing at once."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        transport = httpx.ASGITransport(app=create_api(stage.desk), raise_app_exceptions=True)
        self.client = httpx.AsyncClient(transport=transport, base_url=ORIGIN)
        self.tokens: dict[str, str] = {}

    async def press(self, who: Person, path: str, **body: Any) -> int:
        """The status of the answer; a fault of the server is one of the suite."""
        user_id = who.actor.user_id
        if user_id not in self.tokens:
            made = await people.create_token(self.stage.desk, OPERATOR, user_id, "hands")
            self.tokens[user_id] = made.secret
        headers = {"Authorization": f"Bearer {self.tokens[user_id]}"}
        answer = await self.client.post(f"/api/v1{path}", json=body, headers=headers)
        if answer.status_code >= 500 and answer.status_code != 503:
            raise AssertionError(f"{path}: {answer.status_code} {answer.text}")
        self.stage.answers[str(answer.json().get("code", answer.status_code))] += 1
        return answer.status_code

    def agreeing(self, who: Person, proposed: EmergencyView, proof: Proof | None = None) -> Deed:
        typed = who.proof() if proof is None else proof
        body = {
            "content_hash": proposed.row.content_hash,
            "confirm": WORD[proposed.row.mode],
            "proof": {"password": typed.password, "code": typed.code},
        }
        return lambda: self.press(who, f"/emergencies/{proposed.row.id}/approval", **body)


async def race(stage: Stage, hands: Hands, number: int) -> None:
    """One race, of a kind by its number."""
    desk = stage.desk
    duo = await a_duo(desk, DONG)
    mode = EmergencyMode.DRILL if number % 3 == 0 else EmergencyMode.REAL
    proposed = await duo.propose(wanted(mode))
    kind = number % 8
    if kind == 0:
        deeds = [
            hands.agreeing(duo.first, proposed, Proof(duo.first.password, code)) for code in duo.first.drawer[:HANDS]
        ]
        await stage.raced("oneself, many times at once", *deeds, most=0)
    elif kind == 1:
        other = await duo.propose(wanted(mode, rounds=Rounds(times=2)))
        proof = duo.second.proof()
        deeds = [hands.agreeing(duo.second, one, proof) for one in (proposed, other)] * (HANDS // 2)
        await stage.raced("one code for two alarms", *deeds, most=1)
    elif kind == 2:
        deeds = [
            hands.agreeing(duo.second, proposed),
            lambda: people.disable_user(desk, OPERATOR, duo.first.actor.user_id),
        ]
        await stage.raced("agreed while the first is locked", *deeds, most=1)
    elif kind == 3:
        deeds = [
            hands.agreeing(duo.second, proposed),
            lambda: emergency.cancel(desk, duo.first.actor, proposed.row.id, reason="thôi"),
        ]
        await stage.raced("agreed while it is taken back", *deeds, most=1)
    elif kind == 4:

        def widen(session: Session) -> None:
            row = session.get_one(EmergencyRow, proposed.row.id)
            if row.launched_at is None:
                row.units = [DONG, TAY]

        await stage.raced(
            "agreed while it is changed", hands.agreeing(duo.second, proposed), lambda: write(desk, widen), most=1
        )
    elif kind == 5:
        third = await a_person(desk, Role.LEADER, DONG)
        deeds = [hands.agreeing(one, proposed) for one in (duo.second, third, duo.second, third)]
        await stage.raced("two second persons at once", *deeds, most=1)
    elif kind == 6:
        head = await a_person(desk, Role.COMMUNE_HEAD, DONG)
        view = await break_glass.write_template(desk, head.actor, NewTemplate(DONG, "mẫu", Message("flood")))
        told = view.row.content_hash
        path, codes = f"/emergency-templates/{view.row.id}/approval", duo.second.drawer[:HANDS]

        def approving(code: str) -> Deed:
            proof = {"password": duo.second.password, "code": code}
            return lambda: hands.press(duo.second, path, content_hash=told, proof=proof)

        async def break_it() -> object:
            ask = BreakGlass(DONG, view.row.id, "mô phỏng", "KHẨN CẤP")
            return await break_glass.break_glass(desk, duo.first.actor, ask, duo.first.proof())

        await stage.raced("one person approves a template twice", *map(approving, codes), break_it, most=0)
    else:
        view_of_user = await people.get_user(desk, OPERATOR, duo.second.actor.user_id)
        grant = view_of_user.grants[0].id
        deeds = [
            hands.agreeing(duo.first, proposed),
            hands.agreeing(duo.second, proposed, Proof(duo.second.password, "000000")),
            lambda: people.end_grant(desk, OPERATOR, duo.second.actor.user_id, grant),
        ]
        await stage.raced("oneself while the other's right ends", *deeds, most=0)


async def glass_races(stage: Stage, races: int) -> None:
    """Many break the glass at once: two a day, whoever is quickest."""
    desk = stage.desk
    for _ in range(races):
        await stage.clock.advance(24 * 3_600)
        duo = await a_duo(desk, TAY)
        template = (await a_template(duo, await a_person(desk, Role.COMMUNE_HEAD, TAY), TAY)).row.id
        ask = BreakGlass(TAY, template, "mô phỏng", "KHẨN CẤP")
        others = [await a_person(desk, Role.LEADER, TAY) for _ in range(HANDS - 2)]
        await stage.clock.advance(60)

        def alone(who: Person, ask: BreakGlass = ask) -> Deed:
            proof = who.proof()
            return lambda: break_glass.break_glass(desk, who.actor, ask, proof)

        await stage.raced("many break the glass", *map(alone, (duo.first, duo.second, *others)), most=2)
        await review_all(stage)


async def review_all(stage: Stage) -> None:
    """Somebody of the province looks at every break-glass."""
    reviewer = await a_person(stage.desk, Role.LEADER, PROVINCE)
    for one in await break_glass.list_reviews(stage.desk, reviewer.actor, break_glass.ReviewQuery(is_open=True)):
        await break_glass.review(
            stage.desk, reviewer.actor, one.emergency_id, finding=ReviewFinding.JUSTIFIED, note="mô phỏng"
        )


# -- all of it --------------------------------------------------------------------------------------------------------


async def measure(
    races: int, modes: tuple[EmergencyMode, ...] = tuple(EmergencyMode), *, every: int = 1
) -> dict[str, Any]:
    """Every trick in these modes, or each so manieth, and so many races."""
    executor = ThreadExecutor(8, name="two-person")
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/two.db"
        async with a_store(url, clock=FakeClock(NOW), executor=executor) as store:
            await store.begin(lambda session: settle(session, NOW))
            stage = Stage(replace(a_desk_of(store), executor=executor))
            await _play(stage, races, modes, every)
            on_the_grid = await sounds_on_the_grid(stage)
    executor.close()
    wrong = stage.aired + [f"schedule {one} would sound" for one in on_the_grid]
    figures = {
        "attempted": stage.attempted,
        "ok": stage.attempted - len(stage.aired),
        "violations": len(wrong),
        "races": stage.races,
        "proper": stage.proper,
        "proper_aired": stage.proper_aired,
        "answers": dict(sorted(stage.answers.items())),
        "wrong": wrong[:20],
    }
    bars = [
        bar_of("tricks tried", stage.attempted, 200, holds=stage.attempted >= 200),
        bar_of("races among them", stage.races, 100, holds=stage.races >= 100),
        bar_of("aired without two people", len(wrong), 0, holds=not wrong),
        bar_of("proper ones aired", stage.proper_aired, stage.proper, holds=stage.proper_aired == stage.proper >= 20),
    ]
    return {"name": "two_person", "figures": figures, "bars": bars}


async def _play(stage: Stage, races: int, modes: tuple[EmergencyMode, ...], every: int) -> None:
    tricks: list[Trick] = []
    for mode in modes:
        tricks += [(f"{mode.value}: {name}", deed) for name, deed in await second_persons(stage, mode)]
        for family in (proofs, changes, in_between):
            tricks += [(f"{mode.value}: {name}", deed) for name, deed in family(stage, mode)]
    for number, (name, deed) in enumerate(tricks[::every]):
        await stage.tried(name, deed)
        if number % 6 == 5:
            await stage.raised(await a_duo(stage.desk, DONG), modes[number % len(modes)])
    for make in (wordings, templates, spent):
        for name, deed in (await make(stage))[::every]:
            await stage.tried(name, deed)
        await review_all(stage)
    hands = Hands(stage)
    for number in range(races):
        await race(stage, hands, number)
    await hands.client.aclose()
    await glass_races(stage, max(1, races // 20))


def run() -> dict[str, Any]:
    """See `benchmarks.run`."""
    return asyncio.run(measure(int(os.environ.get("LOA_RACES", str(RACES)))))


if __name__ == "__main__":
    import json

    print(json.dumps(run(), indent=2, ensure_ascii=False))
