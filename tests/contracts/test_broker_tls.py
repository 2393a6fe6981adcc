"""mosquitto on TLS: a name is a certificate, nobody is somebody else, and who is struck off is out at once."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broadcast_server.domain.errors import Refused, Unavailable
from broadcast_server.mqtt.broker import BrokerKind, MosquittoBroker
from broadcast_server.mqtt.probe import Login, Probe, try_connect
from broadcast_server.signer.certificates import client_context
from tests.signer.requests import a_device
from tests.support.broker import PASSWORDS, Ear, RealGround, identities_in, lines_of, mosquitto_is_missing

pytestmark = pytest.mark.skipif(mosquitto_is_missing(), reason="mosquitto is not installed here")


class Field:
    """A broker on TLS and devices with certificates."""

    def __init__(self, folder: Path) -> None:
        self.identities = identities_in(folder)
        self.authority = self.identities._authority
        self.ground = RealGround(BrokerKind.MOSQUITTO, folder / "broker", identities=self.identities)
        self.broker = self.ground.broker

    def device(self, name: str, client_id: str | None = None) -> Login:
        """A device with a certificate of the authority, made as enrolment makes it."""
        context = client_context(self.authority.authority_pem(), a_device(self.authority, name))
        return Login(client_id=client_id or name, tls=context)

    async def open(self, login: Login) -> Probe:
        assert self.ground.address is not None
        return await Probe.open(self.ground.address.host, self.ground.address.port, login)

    async def knock(self, login: Login) -> int | None:
        assert self.ground.address is not None
        return await try_connect(self.ground.address.host, self.ground.address.port, login)


@pytest.fixture
async def field(tmp_path: Path) -> AsyncIterator[Field]:
    made = Field(tmp_path)
    await made.ground.start()
    yield made
    await made.ground.close()


async def test_only_a_certificate_of_our_authority_gets_in(field: Field, tmp_path: Path) -> None:
    assert await field.knock(field.device("node-a")) == 0
    stranger = identities_in(tmp_path / "elsewhere")
    foreign = client_context(field.authority.authority_pem(), stranger._authority.issue_own("node-a"))
    as_server = client_context(field.authority.authority_pem(), field.authority.issue_server(["node-a"]))
    nobody = field.identities.context(None)
    for login in (
        Login(),
        Login("server", PASSWORDS["server"], "server"),
        Login(tls=nobody),
        Login("server", PASSWORDS["server"], "server", nobody),
        Login(tls=foreign),
        Login(tls=as_server),
    ):
        assert await field.knock(login) != 0


async def test_what_the_client_says_of_itself_is_not_believed(field: Field) -> None:
    server, ear = await field.ground.bus(), Ear()
    a = await field.open(field.device("node-a"))
    thief = await field.open(Login("node-a", PASSWORDS["node-a"], "node-a", tls=field.device("node-b").tls))
    await a.ping()  # not thrown off
    await a.subscribe(["loa/1/node/node-a/plan"])
    await thief.subscribe(["#", "loa/1/node/+/plan"])
    server.subscribe("loa/1/node/+/status", ear)
    await thief.publish("loa/1/node/node-a/status", b"forged")
    await thief.publish("loa/1/node/node-b/status", b"mine")
    await server.publish("loa/1/node/node-a/plan", b"for a")
    await server.publish("loa/1/node/node-b/plan", b"for b")
    assert await a.hears("loa/1/node/node-a/plan", b"for a")
    assert await thief.hears("loa/1/node/node-b/plan", b"for b")
    assert {one.topic for one in thief.heard} == {"loa/1/node/node-b/plan"}
    await ear.hears(1)
    assert ear.payloads == [b"mine"]
    await a.close()
    await thief.close()


async def test_a_node_struck_off_is_out_when_set_users_returns_and_the_others_stay(field: Field) -> None:
    users = lines_of(PASSWORDS)
    a, b = field.device("node-a"), field.device("node-b")
    await field.broker.set_users(users)
    staying, going = await field.open(a), await field.open(b)
    del users["node-b"]
    await field.broker.set_users(users)
    with pytest.raises(Unavailable):
        await going.ping()
    with pytest.raises(Refused):
        await field.open(b)
    await staying.ping()
    assert field.broker.restarts == 0
    await going.vanish()
    await staying.close()


async def test_a_new_node_gets_in_without_a_reload(field: Field) -> None:
    await field.broker.set_users({**lines_of(PASSWORDS), **lines_of({"node-c": "x"})})
    assert isinstance(field.broker, MosquittoBroker)
    listed = (field.broker._dir / "revoked.pem").read_bytes()
    assert await field.knock(field.device("node-c")) == 0
    await field.broker.set_users({**lines_of(PASSWORDS), **lines_of({"node-c": "x", "node-d": "x"})})
    assert (field.broker._dir / "revoked.pem").read_bytes() == listed


async def test_who_was_struck_off_cannot_resume_its_session_of_tls(field: Field) -> None:
    import socket

    users = lines_of(PASSWORDS)
    await field.broker.set_users(users)
    b = field.device("node-b")
    assert b.tls is not None
    assert field.ground.address is not None
    where = (field.ground.address.host, field.ground.address.port)

    def handshake(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
        assert b.tls is not None
        with (
            socket.create_connection(where, timeout=3) as raw,
            b.tls.wrap_socket(raw, server_hostname=where[0], session=session) as secured,
        ):
            secured.sendall(bytes.fromhex("100e00044d51545404020010") + b"\x00\x02xy")
            if secured.recv(4) != b" \x02\x00\x00":
                raise ConnectionRefusedError
            assert secured.session_reused is (session is not None)
            return secured.session

    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        b.tls.maximum_version = version
        ticket = handshake(None)
        handshake(ticket)  # it works as long as it may
    without = {name: line for name, line in users.items() if name != "node-b"}
    await field.broker.set_users(without)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(ticket)


async def test_a_restart_knows_who_was_struck_off(field: Field) -> None:
    users = lines_of(PASSWORDS)
    b = field.device("node-b")
    await field.broker.set_users(users)
    del users["node-b"]
    await field.broker.set_users(users)
    assert isinstance(field.broker, MosquittoBroker)
    await field.ground.kill_broker()
    field.ground.address = await field.broker.start()
    assert await field.knock(b) != 0
    assert await field.knock(field.device("node-a")) == 0


async def test_the_certificate_is_renewed_while_sessions_go_on(field: Field) -> None:
    a = await field.open(field.device("node-a"))
    assert isinstance(field.broker, MosquittoBroker)
    before = (field.broker._dir / "server.pem").read_bytes()
    field.authority.rotate()
    await field.broker.refresh()
    assert (field.broker._dir / "server.pem").read_bytes() != before
    await a.ping()
    assert await field.knock(field.device("node-b")) == 0
    await a.close()
