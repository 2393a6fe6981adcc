"""The way out: whom we never ask, and what we never take, whatever a person or a feed names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from broadcast_server.domain.errors import BroadcastError, Invalid, Refused, Unavailable
from broadcast_server.fetch import Fetcher, FetchLimits, IcyStripper, connect_by_system, is_public, parse_target
from broadcast_server.supervise import SystemClock
from simulation.radio import Faults, Station

QUICK = FetchLimits(connect_s=2.0, header_s=0.6, silence_s=0.6, floor_window_s=0.8)


class Wire:
    """A server that says what it was told to and remembers what it was asked."""

    def __init__(self, *pieces: bytes, close: bool = True) -> None:
        self.asked: list[bytes] = []
        self.port = 0
        self._pieces, self._close = pieces, close
        self._open: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            for piece in self._pieces:
                writer.write(piece)
                await writer.drain()
        if self._close:
            writer.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/x"

    def fetcher(self, limits: FetchLimits = QUICK) -> Fetcher:
        return Fetcher(clock=SystemClock(), allow_private=frozenset({f"127.0.0.1:{self.port}"}), limits=limits)


@contextlib.asynccontextmanager
async def saying(*pieces: bytes, close: bool = True) -> AsyncIterator[Wire]:
    wire = Wire(*pieces, close=close)
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        for writer in wire._open:
            writer.close()
        await server.wait_closed()


def to_station(station: Station, limits: FetchLimits = QUICK) -> Fetcher:
    return Fetcher(clock=SystemClock(), allow_private=frozenset({station.authority}), limits=limits)


def station(faults: Faults) -> Station:
    return Station(bytes(range(256)) * 64, 8_000.0, faults=faults)


async def read(fetcher: Fetcher, url: str, *, most: int = 4_000, accept: frozenset[str] | None = None) -> bytes:
    got = b""
    async with fetcher.open_stream(url, accept=accept) as response, contextlib.aclosing(response.chunks()) as chunks:
        async for chunk in chunks:
            got += chunk
            if len(got) >= most:
                break
    return got


async def refusal(fetcher: Fetcher, url: str, *, most: int = 1 << 20) -> BroadcastError:
    with pytest.raises(BroadcastError) as caught:
        await read(fetcher, url, most=most)
    return caught.value


# -- whom


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.10",
        "0.0.0.0",  # noqa: S104  refused, not bound
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fc00::1",
        "fd12::1",
        "ff02::1",
        "2001:db8::1",
        "2001::1",
        "2002:7f00:1::",
        "2002:c0a8:101::1",
        "64:ff9b::7f00:1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "not an address",
    ],
)
def test_addresses_that_are_not_somebody_elses_are_not_asked(address: str):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "123.30.10.1", "2a00:1450::1", "::ffff:8.8.8.8", "2002:808:808::1", "64:ff9b::808:808"]
)
def test_public_addresses_are_asked_also_in_other_clothes(address: str):
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("file:///etc/passwd", "url_scheme"),
        ("ftp://host/x", "url_scheme"),
        ("gopher://host/", "url_scheme"),
        ("concat:http://a|http://b", "url_scheme"),
        ("//host/x", "url_scheme"),
        ("http://", "url_malformed"),
        ("http:///x", "url_malformed"),
        ("http://host:99999/", "url_malformed"),
        ("http://ho st/", "url_malformed"),
        ("http://host/\r\nX: y", "url_malformed"),
        ("http://[fe80::1%25eth0]/", "url_malformed"),
        ("http://user:pw@host/", "url_credentials"),
        ("http://good.example\\@127.0.0.1/", "url_credentials"),
        ("http://good.example\\.evil/", "url_malformed"),
        ("http://" + "a" * 3000, "url_malformed"),
        ("", "url_malformed"),
    ],
)
def test_an_address_of_a_wrong_form_is_named(url: str, code: str):
    with pytest.raises(Invalid) as caught:
        parse_target(url)
    assert caught.value.code == code
    assert caught.value.facts["field"] == "url"


def test_a_vietnamese_name_and_path_become_what_the_wire_takes():
    target = parse_target("HTTP://Đài.Example:8000/phát thanh".replace(" ", "%20") + "?q=Ấp")
    assert target.host.startswith("xn--")
    assert target.port == 8000
    assert target.path.isascii()


async def test_a_port_of_something_else_is_not_asked():
    with pytest.raises(Invalid) as caught:
        Fetcher(clock=SystemClock()).examine("http://radio.example:5432/live")
    assert caught.value.code == "url_port"


async def test_one_private_address_among_public_ones_is_enough_to_refuse():
    connected: list[str] = []

    async def connect(address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connected.append(address)
        return await connect_by_system("127.0.0.1", port)

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return ("8.8.8.8", "192.168.1.10")

    fetcher = Fetcher(clock=SystemClock(), resolve=resolve, connect=connect)
    assert (await refusal(fetcher, "http://radio.example/live")).code == "private_address"
    assert connected == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "2130706433", "[::1]", "[::ffff:127.0.0.1]"])
async def test_loopback_by_any_name_is_refused(host: str):
    error = await refusal(Fetcher(clock=SystemClock()), f"http://{host}/")
    assert error.code in {"private_address", "host_unknown"}


async def test_a_name_is_asked_once_and_the_checked_address_is_connected_under_the_name():
    """DNS rebinding: the second answer would be our own machine; nobody asks for it."""
    answers = iter([("8.8.8.8",), ("127.0.0.1",)])
    connected: list[str] = []
    async with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as wire:

        async def resolve(_host: str, _port: int) -> Sequence[str]:
            return next(answers)

        async def connect(address: str, _port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            connected.append(address)
            return await connect_by_system("127.0.0.1", wire.port)

        fetcher = Fetcher(clock=SystemClock(), resolve=resolve, connect=connect)
        assert await read(fetcher, "http://Radio.Example/live?x=1") == b"ok"
        assert connected == ["8.8.8.8"]
        assert next(answers) == ("127.0.0.1",)
        assert wire.asked[0].startswith(b"GET /live?x=1 HTTP/1.1\r\n")
        assert b"Host: radio.example\r\n" in wire.asked[0]


# -- redirects


@pytest.mark.parametrize(
    ("location", "cause"),
    [
        ("http://192.168.1.1/admin", "private_address"),
        ("http://169.254.169.254/latest/meta-data", "private_address"),
        ("http://127.0.0.1:5432/", "url_port"),
        ("file:///etc/passwd", "url_scheme"),
        ("http://user:pw@example.com/", "url_credentials"),
    ],
)
async def test_a_redirect_is_a_new_target_and_refused_like_one(location: str, cause: str):
    async with station(Faults(redirect_to=location)) as moved:
        error = await refusal(to_station(moved), moved.url)
    assert isinstance(error, Refused)
    assert (error.code, error.facts["cause"]) == ("redirect_refused", cause)


async def test_a_redirect_to_an_allowed_place_is_followed_but_not_for_ever():
    async with station(Faults()) as there, station(Faults(redirect_to=there.url)) as moved:
        both = Fetcher(clock=SystemClock(), allow_private=frozenset({there.authority, moved.authority}), limits=QUICK)
        assert len(await read(both, moved.url)) >= 4_000
        moved.faults.redirect_to = moved.url
        error = await refusal(both, moved.url)
        assert (error.code, error.facts["cause"]) == ("redirect_refused", "too_many")


# -- what


async def test_shoutcast_s_own_status_line_is_understood():
    async with station(Faults(icy=True)) as radio:
        assert len(await read(to_station(radio), radio.url)) >= 4_000


async def test_titles_between_the_sound_are_taken_out():
    async with station(Faults(metaint=1_000)) as radio:
        assert (await read(to_station(radio), radio.url))[:4_000] == (bytes(range(256)) * 64)[:4_000]


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_the_stripper_does_not_care_where_reads_end(size: int):
    sound = bytes(range(250))
    mixed = b"".join(sound[at : at + 50] + b"\x01" + b"t" * 16 for at in range(0, 250, 50))
    icy = IcyStripper(50)
    assert b"".join(icy.strip(mixed[at : at + size]) for at in range(0, len(mixed), size)) == sound


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        (Faults(status=404), "http_404"),
        (Faults(status=503), "http_503"),
        (Faults(stall_after_s=0.2), "stalled"),
        (Faults(speed=0.06), "too_slow"),
        (Faults(long_header_bytes=20_000), "header_too_large"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
async def test_every_trouble_has_its_name(faults: Faults, code: str):
    async with station(faults) as radio:
        radio.piece_s = 0.01
        assert (await refusal(to_station(radio), radio.url)).code == code


async def test_a_wrong_label_is_refused():
    async with station(Faults(content_type="text/html")) as radio:
        with pytest.raises(Refused) as caught:
            await read(to_station(radio), radio.url, accept=frozenset({"audio/mpeg"}))
    assert (caught.value.code, caught.value.facts["content_type"]) == ("content_type", "text/html")


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "http_malformed"),
        (b"", "http_malformed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "connection_lost"),
    ],
)
async def test_what_is_no_http_or_only_half_of_it(said: bytes, code: str):
    async with saying(said) as wire:
        assert (await refusal(wire.fetcher(), wire.url)).code == code


async def test_a_server_that_says_nothing_is_given_up():
    async with saying(b"HTTP/1.1 200 OK\r\nX-Half:", close=False) as wire:
        limits = FetchLimits(connect_s=0.2, header_s=0.2)
        assert (await refusal(wire.fetcher(limits), wire.url)).code == "timed_out"


async def test_a_whole_answer_has_a_limit():
    async with saying(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + b"x" * 100) as wire:
        fetched = await wire.fetcher().get(wire.url, limit_bytes=100)
        assert (fetched.content_type, len(fetched.body)) == ("text/plain", 100)
        with pytest.raises(Refused) as caught:
            await wire.fetcher().get(wire.url, limit_bytes=99)
    assert caught.value.code == "too_large"


async def test_nobody_there_is_unavailable_and_may_be_tried_again():
    async with saying(b"") as wire:
        fetcher, url = wire.fetcher(), wire.url
    error = await refusal(fetcher, url)
    assert isinstance(error, Unavailable)
    assert error.code == "connect_failed"
