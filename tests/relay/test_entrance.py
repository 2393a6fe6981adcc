"""Who reaches the push listener: on TLS from everywhere that is answered, plain only from where it was said."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broadcast_server.domain.errors import Refused, Unavailable
from broadcast_server.relay.entrance import HERE, Entrance, Room, Rules, is_in, plain_address
from broadcast_server.signer.certificates import LocalAuthority, ServerSide, client_context
from broadcast_server.supervise import SystemChance, SystemClock
from tests.support.until import until

QUICK = Room(connections=3, connections_per_address=2, begin_s=0.5)


class Tls:
    """An authority and both sides."""

    def __init__(self, folder: Path) -> None:
        self.authority = LocalAuthority(folder / "authority", clock=SystemClock(), chance=SystemChance())
        self.server = ServerSide(self.authority, folder / "tls", ["127.0.0.1", "127.0.0.9"], None).context
        self.client = client_context(self.authority.authority_pem())


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls(tmp_path_factory.mktemp("tls"))


@contextlib.asynccontextmanager
async def an_entrance(rules: Rules, room: Room = QUICK) -> AsyncIterator[tuple[Entrance, int]]:
    """Behind it an echo that says first whether one may stay."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, may_stay: bool) -> None:
        writer.write(b"stay\n" if may_stay else b"go\n")
        while line := await reader.readline():
            writer.write(line)

    entrance = Entrance(echo, rules=rules, room=room, clock=SystemClock())
    port = await entrance.open("127.0.0.1", 0)
    try:
        yield entrance, port
    finally:
        await entrance.close()


async def greet(port: int, context: ssl.SSLContext | None = None, *, from_: str = "127.0.0.1") -> bytes:
    """What is said to a source of this address; empty when it was closed."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, local_addr=(from_, 0))
    except (ConnectionError, ssl.SSLError):
        return b""
    try:
        writer.write(b"P")
        async with asyncio.timeout(5):
            return await reader.readline()
    except (ConnectionError, ssl.SSLError):
        return b""
    finally:
        writer.close()


async def test_one_port_serves_tls_and_from_here_also_plain(tls: Tls) -> None:
    async with an_entrance(Rules(tls=tls.server)) as (_, port):
        assert await greet(port, tls.client) == b"stay\n"
        assert await greet(port) == b"stay\n"


async def test_where_only_tls_is_taken_a_plain_source_is_told_so_and_goes(tls: Tls) -> None:
    async with an_entrance(Rules(tls=tls.server, plain_from=())) as (_, port):
        assert await greet(port, tls.client) == b"stay\n"
        assert await greet(port) == b"go\n"


async def test_plain_is_for_the_networks_that_were_named(tls: Tls) -> None:
    rules = Rules(tls=tls.server, plain_from=(ipaddress.ip_network("127.0.0.8/30"),))
    async with an_entrance(rules) as (_, port):
        assert await greet(port, from_="127.0.0.9") == b"stay\n"
        assert await greet(port, from_="127.0.0.1") == b"go\n"


async def test_without_tls_a_handshake_is_none(tls: Tls) -> None:
    async with an_entrance(Rules()) as (_, port):
        assert await greet(port, tls.client) == b""


async def test_a_source_of_another_network_gets_no_word(tls: Tls) -> None:
    networks = (ipaddress.ip_network("127.0.0.64/26"),)
    rules = Rules(tls=tls.server, networks=networks, here=(ipaddress.ip_network("127.0.0.1/32"),))
    async with an_entrance(rules) as (entrance, port):
        assert await greet(port, tls.client) == b"stay\n"
        assert await greet(port, tls.client, from_="127.0.0.66") == b"stay\n"
        for address in ("127.0.0.2", "127.0.0.63", "127.0.0.128"):
            assert await greet(port, tls.client, from_=address) == b""
            assert await greet(port, from_=address) == b""
        assert entrance.turned_away == {"network": 6}


async def test_who_says_nothing_or_stops_in_the_handshake_is_not_waited_for(tls: Tls) -> None:
    async with an_entrance(Rules(tls=tls.server)) as (entrance, port):
        silent = await asyncio.open_connection("127.0.0.1", port)
        stuck = await asyncio.open_connection("127.0.0.1", port)
        stuck[1].write(b"\x16\x03\x01\x02\x00\x01")
        assert await silent[0].read() == b""
        assert await stuck[0].read() == b""
        assert sum(entrance.turned_away.values()) == 2
        for _, writer in (silent, stuck):
            writer.close()


async def test_garbage_in_place_of_a_handshake_is_no_handshake(tls: Tls) -> None:
    async with an_entrance(Rules(tls=tls.server)) as (entrance, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16" + bytes(100))
        with contextlib.suppress(ConnectionError):
            await reader.read()
        await until(lambda: entrance.turned_away == {"tls": 1})
        writer.close()


async def test_an_address_and_all_together_have_a_limit() -> None:
    async with an_entrance(Rules()) as (entrance, port):
        opened = []
        for address in ("127.0.0.2", "127.0.0.2", "127.0.0.3"):
            opened.append(await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))
            opened[-1][1].write(b"P")
            assert await opened[-1][0].readline() == b"stay\n"
        assert await greet(port, from_="127.0.0.2") == b""
        assert await greet(port, from_="127.0.0.4") == b""
        assert entrance.turned_away == {"full": 2}
        opened[0][1].close()
        await until(lambda: len(entrance._inside) == 2)
        assert await greet(port, from_="127.0.0.4") == b"stay\n"
        await until(lambda: len(entrance._inside) == 2)
        opened[2][1].close()
        await until(lambda: len(entrance._inside) == 1)
        more = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        more[1].write(b"P")
        assert await more[0].readline() == b"stay\n"
        assert await greet(port, from_="127.0.0.2") == b""
        assert entrance.turned_away == {"full": 2, "address": 1}
        for _, writer in (*opened, more):
            writer.close()


@pytest.mark.parametrize(("host", "networks"), [("0.0.0.0", ()), ("192.0.2.1", ()), ("::", ())])  # noqa: S104
async def test_beyond_this_machine_nothing_is_opened_without_tls_or_named_networks(
    host: str, networks: tuple[ipaddress.IPv4Network, ...]
) -> None:
    entrance = Entrance(None, rules=Rules(networks=networks), room=QUICK, clock=SystemClock())  # type: ignore[arg-type]
    try:
        with pytest.raises(Refused, match="listener_without_tls"):
            await entrance.open(host, 0)
    finally:
        await entrance.close()


async def test_a_port_that_is_taken_is_named() -> None:
    async with an_entrance(Rules()) as (_, port):
        other = Entrance(None, rules=Rules(), room=QUICK, clock=SystemClock())  # type: ignore[arg-type]
        with pytest.raises(Unavailable, match="port_taken"):
            await other.open("127.0.0.1", port)


def test_addresses_are_compared_as_what_they_are() -> None:
    assert plain_address("::ffff:10.0.0.1") == "10.0.0.1"
    assert plain_address("fe80::1%eth0") == "fe80::1"
    assert is_in("127.9.9.9", HERE)
    assert is_in("::1", HERE)
    assert not is_in("localhost", HERE)
    assert not is_in("128.0.0.1", HERE)
