"""Real brokers and buses for tests, all on free loopback ports, all ended by their own close."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from broadcast_server.domain.clock import Clock
from broadcast_server.mqtt.broker import (
    AccessRules,
    Address,
    AmqttBroker,
    BrokerKind,
    MosquittoBroker,
    find_mosquitto,
    password_line,
)
from broadcast_server.mqtt.bus import Bus, LoopbackBus, LoopbackHub, Message, Will
from broadcast_server.mqtt.paho_bus import PahoBus
from broadcast_server.signer.certificates import BrokerIdentities, LocalAuthority
from broadcast_server.supervise import Supervisor, SystemChance, SystemClock
from tests.support.clock import settle
from tests.support.until import until

# The shape of the real rules: a node reads its own branch and writes what goes up, the server may do all.
ACL = (
    "user server",
    "topic readwrite #",
    "user server-2",  # a session each: the name is the client id
    "topic readwrite #",
    "pattern read loa/1/node/%u/plan",
    "pattern read loa/1/node/%u/order",
    "pattern read loa/1/unit/+/alert",
    "pattern write loa/1/node/%u/status",
    "pattern write loa/1/node/%u/report",
)
PASSWORDS = {"server": "server-secret", "server-2": "server-2-secret", "node-a": "a-secret", "node-b": "b-secret"}


def lines_of(passwords: Mapping[str, str]) -> dict[str, str]:
    """The lines of a password file, with a salt that needs no chance."""
    return {user: password_line(user, told, f"salt-{user:_<12}".encode()[:12]) for user, told in passwords.items()}


class Ground(Protocol):
    """A broker and the buses on it: what the contract stands on."""

    name: str

    @property
    def asks_for_certificates(self) -> bool:
        """Whether passwords are not looked at."""
        ...

    async def bus(
        self, user: str = "server", *, password: str | None = None, will: Will | None = None, **limits: int
    ) -> Bus:
        """A started bus."""
        ...

    async def kill_broker(self) -> None:
        """End it without a goodbye and lose what it retained; ends when the buses noticed."""
        ...

    async def revive_broker(self) -> None:
        """Bring it back on the same address."""
        ...

    async def cut(self, bus: Bus) -> None:
        """Break one bus's connection without a goodbye."""
        ...

    async def close(self) -> None:
        """End everything."""
        ...


@dataclass
class LoopbackGround:
    clock: Clock = field(default_factory=SystemClock)
    name: str = "loopback"
    asks_for_certificates: bool = False

    def __post_init__(self) -> None:
        self.hub = LoopbackHub(users=PASSWORDS, may=AccessRules(ACL).may)
        self.buses: list[LoopbackBus] = []

    async def bus(
        self, user: str = "server", *, password: str | None = None, will: Will | None = None, **limits: int
    ) -> LoopbackBus:
        bus = LoopbackBus(
            self.hub,
            clock=self.clock,
            user=user,
            password=PASSWORDS[user] if password is None else password,
            will=will,
            **limits,
        )
        await bus.start()
        self.buses.append(bus)
        await settle()
        return bus

    async def kill_broker(self) -> None:
        self.hub.kill()
        await settle()

    async def revive_broker(self) -> None:
        self.hub.revive()
        await settle()

    async def cut(self, bus: Bus) -> None:
        assert isinstance(bus, LoopbackBus)
        self.hub.cut(bus)
        await settle()

    async def close(self) -> None:
        for bus in self.buses:
            await bus.close()


class RealGround:
    """mosquitto or amqtt, and `PahoBus` on it."""

    def __init__(
        self,
        kind: BrokerKind,
        data_dir: Path,
        acl: Sequence[str] = ACL,
        *,
        identities: BrokerIdentities | None = None,
    ) -> None:
        self.name = kind.value
        self.clock, self.chance = SystemClock(), SystemChance()
        self.supervisor = Supervisor(clock=self.clock, chance=self.chance)
        self.buses: list[PahoBus] = []
        self.kind = kind
        self.acl = acl
        self.data_dir = data_dir
        self.identities = identities
        self.asks_for_certificates = kind is BrokerKind.MOSQUITTO and identities is not None
        self.broker = self._make(0)
        self.address: Address | None = None

    def _make(self, port: int) -> MosquittoBroker | AmqttBroker:
        users = lines_of(PASSWORDS)
        if self.kind is BrokerKind.AMQTT:
            return AmqttBroker(
                acl=self.acl, clock=self.clock, chance=self.chance, port=port, users=users, identities=self.identities
            )
        return MosquittoBroker(
            data_dir=self.data_dir,
            acl=self.acl,
            supervisor=self.supervisor,
            clock=self.clock,
            chance=self.chance,
            port=port,
            users=users,
            identities=self.identities,
        )

    async def start(self) -> Address:
        self.address = await self.broker.start()
        return self.address

    async def bus(
        self, user: str = "server", *, password: str | None = None, will: Will | None = None, **limits: float
    ) -> PahoBus:
        assert self.address is not None
        bus = PahoBus(
            self.address.host,
            self.address.port,
            clock=self.clock,
            chance=self.chance,
            user=user,
            password=PASSWORDS[user] if password is None else password,
            client_id=user,
            tls=None if self.identities is None else self.identities.context(user),
            will=will,
            longest_wait_s=0.5,
            **limits,  # type: ignore[arg-type]  # whatever limit of the bus a story is about
        )
        self.buses.append(bus)
        await bus.start()
        return bus

    async def kill_broker(self) -> None:
        await self.broker.close()
        await until(lambda: not any(bus.connected for bus in self.buses))

    async def revive_broker(self) -> None:
        assert self.address is not None
        self.broker = self._make(self.address.port)
        await self.broker.start()

    async def cut(self, bus: Bus) -> None:
        assert isinstance(bus, PahoBus)
        assert bus._link is not None
        sock = bus._link._client.socket()
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)
        await until(lambda: not bus.connected)

    async def close(self) -> None:
        for bus in self.buses:
            await bus.close()
        await self.broker.close()
        await self.supervisor.close()


def identities_in(folder: Path) -> BrokerIdentities:
    """An authority of its own, for a broker on loopback."""
    clock = SystemClock()
    authority = LocalAuthority(folder / "authority", clock=clock, chance=SystemChance(), reserved={"server"})
    return BrokerIdentities(authority, folder / "tls", ["127.0.0.1", "localhost"], clock)


class Ear:
    """A handler that keeps what it heard."""

    def __init__(self) -> None:
        self.heard: list[Message] = []

    def __call__(self, message: Message) -> None:
        self.heard.append(message)

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.heard]

    async def hears(self, count: int, timeout_s: float = 10.0) -> list[Message]:
        """Wait until it heard at least so many."""
        await until(lambda: len(self.heard) >= count, timeout_s)
        return self.heard


def mosquitto_is_missing() -> bool:
    return find_mosquitto() is None
