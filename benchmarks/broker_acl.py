"""`broker_acl`: every device against every other on real brokers, judged by what was delivered.

For each ordered pair (thief, victim), each topic of the wire and each trick: subscribe (exactly, by wildcards, by `#`,
shared), find what is retained, publish (QoS 0 and 1, retained, empty to clear what is retained), leave a will, show the
victim's client id or user name. A subscription that is "granted" proves nothing and a refused publish is acknowledged:
an attempt succeeded if its message came out anywhere but at the thief's own rights. In between, everything that is
allowed is sent and must arrive. On TLS; at mosquitto a name is a certificate, at amqtt (trials) a password.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.run import bar_of
from broadcast_server.domain.errors import Refused, Unavailable
from broadcast_server.mqtt.broker import (
    AmqttBroker,
    BrokerKind,
    MosquittoBroker,
    find_mosquitto,
    password_line,
)
from broadcast_server.mqtt.probe import Login, Probe
from broadcast_server.playout import wire
from broadcast_server.signer.certificates import BrokerIdentities, LocalAuthority, client_context
from broadcast_server.supervise import Supervisor, SystemChance, SystemClock
from speaker_protocol.topics import ALL_TOPICS, Direction, Topic
from tests.signer.requests import a_device

DEVICES = 6
TRIAL_DEVICES = 3
NODE_TOPICS = tuple(kind for kind in ALL_TOPICS if kind.family == "node")
PUBLIC_TOPICS = tuple(kind for kind in ALL_TOPICS if kind.family != "node")
FILTERS = {
    "exact": lambda others: [str(kind(other)) for other in others for kind in NODE_TOPICS],
    "leaf": lambda _: [kind.every() for kind in NODE_TOPICS],
    "branch": lambda _: ["loa/1/node/#", "loa/1/node/+/+"],
    "hash": lambda _: ["#"],
    "levels": lambda _: ["+/+/+/+/+", "+/#", "loa/#"],
    "shared": lambda _: ["$share/g/#", "$share/g/loa/1/node/+/plan"],
    "broker": lambda _: ["$SYS/#"],
}
PLACE = "xa-mo-phong"


@dataclass
class Tally:
    """What was tried on one broker and what came of it."""

    tried: Counter[str] = field(default_factory=Counter)
    got_through: Counter[str] = field(default_factory=Counter)
    allowed: int = 0
    arrived: int = 0

    def attempt(self, trick: str, *, succeeded: bool) -> None:
        self.tried[trick] += 1
        self.got_through[trick] += succeeded

    def figures(self) -> dict[str, Any]:
        attempted, violations = self.tried.total(), self.got_through.total()
        return {
            "attempted": attempted,
            "ok": attempted - violations,
            "violations": violations,
            "tricks": dict(self.tried),
            "got_through": {trick: count for trick, count in self.got_through.items() if count},
            "allowed": self.allowed,
            "arrived": self.arrived,
        }


@dataclass
class Field:
    """A broker, its server and its devices."""

    host: str
    port: int
    logins: dict[str, Login]
    """By name; `server` too."""
    qos: int = 1
    """Of subscriptions. amqtt waits for each acknowledgement before it goes on, and a probe answers when it reads."""
    sessions: dict[str, Probe] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    marks: int = 0

    @property
    def devices(self) -> list[str]:
        return [name for name in self.logins if name != "server"]

    @property
    def server(self) -> Probe:
        return self.sessions["server"]

    def pairs(self) -> Iterator[tuple[str, str]]:
        for thief in self.devices:
            for victim in self.devices:
                if thief != victim:
                    yield thief, victim

    def mark(self) -> bytes:
        self.marks += 1
        return b"mark %d" % self.marks

    async def enter(self, name: str, login: Login | None = None, **how: Any) -> Probe:
        """A session with all the subscriptions that the firmware has (and the server's), in place of the last."""
        old = self.sessions.pop(name, None)
        if old is not None:
            await old.close()
        probe = self.sessions[name] = await Probe.open(self.host, self.port, login or self.logins[name], **how)
        if name == "server":
            await probe.subscribe(["loa/1/#"], qos=self.qos)
        else:
            own = [str(kind(name)) for kind in NODE_TOPICS if kind.direction is Direction.DOWN]
            await probe.subscribe([*own, *(kind.every() for kind in PUBLIC_TOPICS)], qos=self.qos)
        return probe

    async def settle(self) -> None:
        """Everybody hears a last allowed message of its own, and with it all that was sent before."""
        for name in self.devices:
            mark = self.mark()
            await self.server.publish(f"loa/1/node/{name}/ack", mark)
            self.expect(await self.sessions[name].hears(f"loa/1/node/{name}/ack", mark))
            mark = self.mark()
            await self.sessions[name].publish(f"loa/1/node/{name}/report", mark)
            self.expect(await self.server.hears(f"loa/1/node/{name}/report", mark))

    def expect(self, arrived: bool) -> None:
        self.tally.allowed += 1
        self.tally.arrived += arrived

    def heard(self, mark: bytes, *, but: Sequence[str] = ()) -> bool:
        """Whether anybody was given it, `but` these."""
        return any(
            one.payload == mark for name, session in self.sessions.items() if name not in but for one in session.heard
        )

    def forget(self) -> None:
        for session in self.sessions.values():
            session.heard.clear()


async def suite(kind: BrokerKind, devices: int, folder: Path, *, holes: Sequence[str] = ()) -> Tally:
    """Everything, on one broker. `holes`: lines added to its access list, to see that they are found."""
    async with a_field(kind, devices, folder, holes) as ground:
        for name in ground.logins:
            await ground.enter(name)
        await what_is_allowed_arrives(ground)
        for title in FILTERS:
            await reading(ground, title)
        await writing(ground)
        await wills(ground)
        await other_names(ground)
        await what_is_allowed_arrives(ground)
        return ground.tally


async def what_is_allowed_arrives(ground: Field) -> None:
    """Every topic in its own direction."""
    ground.forget()
    for name in ground.devices:
        for kind in NODE_TOPICS:
            topic, mark = str(kind(name)), ground.mark()
            speaker, listener = (
                (ground.server, ground.sessions[name])
                if kind.direction is Direction.DOWN
                else (ground.sessions[name], ground.server)
            )
            await speaker.publish(topic, mark, qos=kind.qos, retain=kind.retained)
            ground.expect(await listener.hears(topic, mark))
    for kind in PUBLIC_TOPICS:
        topic, mark = str(kind(PLACE)), ground.mark()
        await ground.server.publish(topic, mark, qos=kind.qos, retain=kind.retained)
        for name in ground.devices:
            ground.expect(await ground.sessions[name].hears(topic, mark))
    ground.forget()


async def reading(ground: Field, title: str) -> None:
    """Each device also asks for what is others'; then all that is others' is said anew, after what was retained."""
    said: dict[tuple[str, type[Topic]], bytes] = {}
    for thief in ground.devices:
        others = [name for name in ground.devices if name != thief]
        retained = {str(kind(other)) for other in others for kind in NODE_TOPICS if kind.retained}
        session = await ground.enter(thief)
        with contextlib.suppress(Unavailable):  # a broker may also close on such a filter
            for topic_filter in FILTERS[title](others):
                await session.subscribe([topic_filter], qos=ground.qos)
            await session.ping()
        got = {one.topic for one in session.heard if one.retained or one.topic in retained}
        for topic in sorted(retained):
            ground.tally.attempt(f"retained, {title}", succeeded=topic in got)
        ground.tally.attempt(f"$SYS, {title}", succeeded=any(one.topic.startswith("$") for one in session.heard))
    ground.forget()
    for name in ground.devices:
        for kind in NODE_TOPICS:
            said[name, kind] = mark = ground.mark()
            speaker = ground.server if kind.direction is Direction.DOWN else ground.sessions[name]
            with contextlib.suppress(Unavailable):
                await speaker.publish(str(kind(name)), mark, qos=kind.qos, retain=kind.retained)
    await ground.settle()
    for thief, victim in ground.pairs():
        given = {one.payload for one in ground.sessions[thief].heard}
        for kind in NODE_TOPICS:
            ground.tally.attempt(f"subscribe, {title}", succeeded=said[victim, kind] in given)
    for name in ground.devices:
        await ground.enter(name)
    ground.forget()


async def writing(ground: Field) -> None:
    """Each device speaks on what is others', and on what is the server's."""
    for thief, victim in ground.pairs():
        session = ground.sessions[thief]
        targets = [str(kind(victim)) for kind in NODE_TOPICS]
        targets += [str(kind(PLACE)) for kind in PUBLIC_TOPICS]
        targets += [str(kind(thief)) for kind in NODE_TOPICS if kind.direction is Direction.DOWN]
        targets += [f"loa/1/node/{victim}", "loa/1/node", f"loa/1/node/{victim}/status/x"]
        said: list[tuple[str, bytes]] = []
        for topic in targets:
            for trick, qos, retain in (("publish", 0, False), ("publish", 1, False), ("publish retained", 1, True)):
                mark = ground.mark()
                await session.publish(topic, mark, qos=qos, retain=retain)
                said.append((trick, mark))
        await ground.settle()
        for trick, mark in said:
            ground.tally.attempt(trick, succeeded=ground.heard(mark))
        ground.forget()
        await ground.enter(victim)
        await ground.settle()
        ground.tally.attempt("leave something retained", succeeded=any(ground.heard(mark) for _, mark in said))
        for topic in targets:
            await session.publish(topic, b"", retain=True)
        ground.forget()
        late = await ground.enter(victim)
        await ground.settle()
        kept = {one.topic for one in late.heard if one.retained}
        for kind in NODE_TOPICS:
            if kind.retained and kind.direction is Direction.DOWN:
                ground.tally.attempt("clear what is retained", succeeded=str(kind(victim)) not in kept)
        ground.forget()


async def wills(ground: Field) -> None:
    """Each device dies with a will for what is another's."""
    for thief, victim in ground.pairs():
        said = []
        for kind in (*NODE_TOPICS, *PUBLIC_TOPICS):
            topic = str(kind(victim if kind.family == "node" else PLACE))
            for retain in (False, True):
                mark = ground.mark()
                session = await ground.enter(thief, will=(topic, mark, retain))
                del ground.sessions[thief]
                await session.vanish()
                said.append(mark)
        mark = ground.mark()
        session = await ground.enter(thief, will=(f"loa/1/node/{thief}/status", mark, False))
        del ground.sessions[thief]
        await session.vanish()
        ground.expect(await ground.server.hears(f"loa/1/node/{thief}/status", mark))
        await ground.enter(thief)
        await ground.settle()
        for mark in said:
            ground.tally.attempt("will", succeeded=ground.heard(mark))
        ground.forget()


async def other_names(ground: Field) -> None:
    """Each device shows another's client id or user name, with a clean session and with one that is kept."""
    for thief, victim in ground.pairs():
        own = ground.logins[thief]
        guess = "doan-mo" if own.password is None else own.password
        tricks = {
            "client id": Login(own.user, own.password, victim, own.tls),
            "user name": Login(victim, guess, victim, own.tls),
            "server's client id": Login(own.user, own.password, "server", own.tls),
            "server's user name": Login("server", guess, "server", own.tls),
        }
        for trick, login in tricks.items():
            for is_clean in (True, False):
                mark = ground.mark()
                old = ground.sessions.pop(thief)
                await old.close()
                with contextlib.suppress(Refused, Unavailable):
                    rival = await Probe.open(ground.host, ground.port, login, is_clean=is_clean)
                    await rival.subscribe([f"loa/1/node/{victim}/plan", "#"], qos=ground.qos)
                    await rival.publish(f"loa/1/node/{victim}/report", mark)
                    await ground.server.publish(f"loa/1/node/{victim}/plan", mark + b" plan")
                    await rival.ping()
                    stolen = any(one.payload == mark + b" plan" for one in rival.heard)
                    await rival.close()
                    ground.tally.attempt(f"{trick}: its messages", succeeded=stolen)
                ground.tally.attempt(f"{trick}: its session", succeeded=not await _lives(ground, victim))
                await ground.enter(thief)
                await ground.settle()
                ground.tally.attempt(f"{trick}: its voice", succeeded=ground.heard(mark))
                ground.forget()


async def _lives(ground: Field, name: str) -> bool:
    """Whether this one's session, and the server's, were left alone."""
    try:
        await ground.sessions[name].ping()
        await ground.server.ping()
    except Unavailable:
        for each in (name, "server"):
            await ground.enter(each)
        return False
    return True


# -- the ground -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def a_field(kind: BrokerKind, devices: int, folder: Path, holes: Sequence[str]) -> AsyncIterator[Field]:
    """The embedded broker as the server starts it, on TLS, with so many devices."""
    clock, chance = SystemClock(), SystemChance()
    authority = LocalAuthority(folder / "authority", clock=clock, chance=chance, reserved={"server"})
    identities = BrokerIdentities(authority, folder / "tls", ["127.0.0.1"], clock)
    names = ["server", *(f"{number:032x}" for number in range(1, devices + 1))]
    passwords = {name: chance.token_bytes(12).hex() for name in names}
    users = {name: password_line(name, passwords[name], chance.token_bytes(12)) for name in names}
    acl = (*wire.broker_acl("server"), *holes)
    async with Supervisor(clock=clock, chance=chance) as supervisor:
        broker: MosquittoBroker | AmqttBroker
        if kind is BrokerKind.AMQTT:
            broker = AmqttBroker(acl=acl, clock=clock, chance=chance, users=users, identities=identities)
        else:
            broker = MosquittoBroker(
                data_dir=folder / "broker",
                acl=acl,
                supervisor=supervisor,
                clock=clock,
                chance=chance,
                users=users,
                identities=identities,
            )
        address = await broker.start()
        logins = {}
        for name in names:
            if kind is BrokerKind.AMQTT:
                logins[name] = Login(name, passwords[name], name, identities.context(None))
            elif name == "server":
                logins[name] = Login(client_id=name, tls=identities.context(name))
            else:
                pair = a_device(authority, name)
                logins[name] = Login(client_id=name, tls=client_context(authority.authority_pem(), pair))
        ground = Field(address.host, address.port, logins, qos=0 if kind is BrokerKind.AMQTT else 1)
        try:
            yield ground
        finally:
            for session in ground.sessions.values():
                await session.close()
            await broker.close()


def run() -> dict[str, Any]:
    """See the module."""
    figures: dict[str, Any] = {"devices": DEVICES, "trial_devices": TRIAL_DEVICES}
    bars = []
    kinds = {BrokerKind.MOSQUITTO: DEVICES, BrokerKind.AMQTT: TRIAL_DEVICES}
    for kind, devices in kinds.items():
        if kind is BrokerKind.MOSQUITTO and find_mosquitto() is None:
            bars.append(bar_of("mosquitto", "not installed", "a measurement", holds=False))
            continue
        with tempfile.TemporaryDirectory(prefix="loa-acl-") as folder:
            told = asyncio.run(suite(kind, devices, Path(folder))).figures()
        figures[kind.value] = told
        across = told["violations"]
        bars += [
            bar_of(
                f"{kind.value}: delivered across", across, f"0 of {told['attempted']}",
                holds=across == 0 < told["attempted"],
            ),
            bar_of(
                f"{kind.value}: allowed and arrived", told["arrived"], told["allowed"],
                holds=told["arrived"] == told["allowed"] > 0,
            ),
        ]  # fmt: skip
    measured = [figures[kind.value] for kind in kinds if kind.value in figures]
    figures |= {name: sum(each[name] for each in measured) for name in ("attempted", "ok", "violations")}
    return {"name": "broker_acl", "figures": figures, "bars": bars}
