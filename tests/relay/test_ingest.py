"""The push listener, spoken to by real source clients and by bad ones."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broadcast_server.audio.ffmpeg import Sandbox
from broadcast_server.domain.errors import NotFound, Refused
from broadcast_server.fetch import Fetcher
from broadcast_server.mqtt.bus import LoopbackBus
from broadcast_server.relay.engine import Engine, FeedKind, StreamSpec
from broadcast_server.relay.entrance import Rules
from broadcast_server.relay.ingest import EndReason, FailureGuard, Ingest, IngestEvent, IngestLimits
from broadcast_server.signer.certificates import LocalAuthority, ServerSide
from broadcast_server.signer.keys import FileSigner
from broadcast_server.supervise import Child, InlineExecutor, SystemChance, SystemClock
from simulation.samples import sample
from simulation.source_clients import Mount, SourceClient, ffmpeg_argv, find_client, pushing
from tests.relay.ear import Listener
from tests.support.clock import FakeChance, FakeClock
from tests.support.until import until

PASSWORD = "mat-khau"
SOUND = sample("station_push")
QUICK = IngestLimits(header_s=0.5, silence_s=0.6, failures=3, failure_window_s=30.0)


class Desk:
    """An ingest for the mounts `huyen` and `tinh`."""

    def __init__(self, sandbox: Sandbox, limits: IngestLimits) -> None:
        self.events: list[IngestEvent] = []
        self.ingest = Ingest(
            authenticate=self.authenticate,
            sandbox=sandbox,
            clock=SystemClock(),
            chance=FakeChance(),
            limits=limits,
            on_event=self.events.append,
        )
        self.port = 0

    async def authenticate(self, mount: str, user: str, password: str) -> str:
        if mount not in {"huyen", "tinh"}:
            raise NotFound("mount_unknown")
        if (user, password) != ("source", PASSWORD):
            raise Refused("password_wrong")
        return f"feed-{mount}"

    async def only_tls(self, folder: Path) -> Path:
        """Open again, for TLS alone; the authority's file."""
        await self.ingest.close()
        authority = LocalAuthority(folder / "authority", clock=SystemClock(), chance=SystemChance())
        side = ServerSide(authority, folder / "tls", ["127.0.0.1", "localhost"], None)
        self.ingest = Ingest(
            authenticate=self.authenticate,
            sandbox=self.ingest._sandbox,
            clock=SystemClock(),
            chance=FakeChance(),
            limits=self.ingest._limits,
            on_event=self.events.append,
            rules=Rules(tls=side.context, plain_from=()),
        )
        self.port = await self.ingest.start(port=0)
        trusted = folder / "authority.pem"
        trusted.write_bytes(authority.authority_pem())
        return trusted

    def ends(self) -> list[EndReason]:
        return [event.reason for event in self.events if event.reason is not None]


@pytest.fixture
def limits() -> IngestLimits:
    return QUICK


@pytest.fixture
async def desk(sandbox: Sandbox, limits: IngestLimits) -> AsyncIterator[Desk]:
    made = Desk(sandbox, limits)
    made.port = await made.ingest.start(port=0)
    yield made
    await made.ingest.close()


class Client:
    """A source client by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def status(self) -> int:
        async with asyncio.timeout(5):
            line = await self.reader.readline()
        return int(line.split()[1])

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def is_closed(self) -> bool:
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionResetError):
                while await self.reader.read(1_000):
                    pass
        return True


@contextlib.asynccontextmanager
async def client(
    desk: Desk,
    *,
    line: str = "PUT /huyen HTTP/1.1",
    password: str | None = PASSWORD,
    headers: tuple[str, ...] = ("Content-Type: audio/mpeg",),
) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", desk.port)
    lines = [line, *headers, "ice-name: Đài mô phỏng".encode().decode("latin-1"), "ice-public: 0"]
    if password is not None:
        lines.append("Authorization: Basic " + base64.b64encode(f"source:{password}".encode()).decode())
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


# -- real clients, all the way to the ear


@pytest.mark.e2e
@pytest.mark.parametrize("limits", [IngestLimits()], ids=[""])
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("program", list(SourceClient))
async def test_a_real_source_client_is_relayed_and_heard(
    desk: Desk,
    sandbox: Sandbox,
    bus: LoopbackBus,
    signer: FileSigner,
    tmp_path: Path,
    program: SourceClient,
    is_tls: bool,
):
    if find_client(program) is None:
        pytest.skip(f"{program} is not installed")
    trusted = None
    if is_tls:
        trusted = await desk.only_tls(tmp_path)
    engine = Engine(
        bus=bus,
        signer=signer,
        fetcher=Fetcher(clock=SystemClock()),
        sandbox=sandbox,
        clock=SystemClock(),
        chance=FakeChance(),
        executor=InlineExecutor(),
        pushed=desk.ingest,
    )
    listener = Listener(bus, "relay")
    await engine.reconcile({"relay": StreamSpec("relay", "feed-huyen", FeedKind.PUSH, 1, 45, mount="huyen")})
    async with pushing(program, Mount(desk.port, "huyen", PASSWORD, authority=trusted), SOUND.path, folder=tmp_path):
        await until(lambda: len(listener.packets) >= 100, timeout_s=25)
        assert desk.ingest.connected()["feed-huyen"].bytes_in > 0
    assert listener.heard() == SOUND.tones
    await until(lambda: not desk.ingest.connected())
    await until(lambda: engine.status()["relay"].reason is not None)
    await engine.close()


@pytest.mark.e2e
@pytest.mark.parametrize("limits", [IngestLimits()], ids=[""])
async def test_a_real_client_with_a_wrong_password_gives_up_or_keeps_asking_in_vain(desk: Desk, tmp_path: Path):
    async with pushing(SourceClient.FFMPEG, Mount(desk.port, "huyen", "sai"), SOUND.path, folder=tmp_path) as child:
        await child.wait()
        assert child.returncode != 0
        assert any("401" in line for line in child.stderr_tail)
    assert desk.events == []


@pytest.mark.e2e
@pytest.mark.parametrize("limits", [IngestLimits()], ids=[""])
async def test_ffmpegs_icecast_protocol_comes_on_tls_too(desk: Desk, tmp_path: Path):
    program = find_client(SourceClient.FFMPEG)
    assert program is not None
    await desk.only_tls(tmp_path)
    argv = ffmpeg_argv(program, Mount(desk.port, "huyen", PASSWORD), SOUND.path)
    async with Child([*argv[:-1], "-tls", "1", argv[-1]], name="source.tls", stdout=False, grace_s=1.0):
        await until(lambda: desk.ingest.connected()["feed-huyen"].bytes_in > 10_000 if desk.events else False, 25)


@pytest.mark.e2e
@pytest.mark.parametrize("limits", [IngestLimits()], ids=[""])
@pytest.mark.parametrize("program", [SourceClient.FFMPEG, SourceClient.EZSTREAM])
async def test_a_client_that_checks_does_not_speak_to_a_stranger(desk: Desk, tmp_path: Path, program: SourceClient):
    if find_client(program) is None:
        pytest.skip(f"{program} is not installed")
    await desk.only_tls(tmp_path)
    stranger = LocalAuthority(tmp_path / "stranger", clock=SystemClock(), chance=SystemChance())
    other = tmp_path / "stranger.pem"
    other.write_bytes(stranger.authority_pem())
    mount = Mount(desk.port, "huyen", PASSWORD, authority=other)
    async with pushing(program, mount, SOUND.path, folder=tmp_path) as child:
        assert await child.wait() != 0
    assert desk.events == []


async def test_a_plain_source_where_only_tls_is_taken_is_not_heard(desk: Desk, tmp_path: Path):
    await desk.only_tls(tmp_path)
    async with client(desk) as source:
        assert await source.status() == 403
    assert (desk.ingest.refusals, desk.events) == ({403: 1}, [])


# -- the protocol by hand


@pytest.mark.parametrize(
    ("line", "headers", "status"),
    [
        ("PUT /huyen HTTP/1.1", ("Content-Type: audio/mpeg", "Expect: 100-continue"), 100),
        ("PUT /huyen HTTP/1.1", ("Content-Type: audio/mpeg",), 200),
        ("SOURCE /huyen HTTP/1.0", ("Content-Type: application/ogg",), 200),
        ("SOURCE /huyen ICE/1.0", ("content-type: audio/aacp",), 200),
        ("PUT /huyen?x=1 HTTP/1.1", (), 200),
    ],
)
async def test_every_dialect_is_let_in(desk: Desk, line: str, headers: tuple[str, ...], status: int):
    async with client(desk, line=line, headers=headers) as source:
        assert await source.status() == status
        await source.send(bytes(5_000))
        await until(lambda: desk.ingest.connected()["feed-huyen"].bytes_in == 5_000)
    await until(lambda: desk.ends() == [EndReason.CLEAN])
    assert [event.reason for event in desk.events] == [None, EndReason.CLEAN]
    assert desk.events[-1].bytes_in == 5_000


@pytest.mark.parametrize(
    ("line", "password", "headers", "status"),
    [
        ("PUT /huyen HTTP/1.1", "sai", (), 401),
        ("PUT /huyen HTTP/1.1", None, (), 401),
        ("PUT /huyen HTTP/1.1", PASSWORD + "\0", (), 401),
        ("PUT /la HTTP/1.1", PASSWORD, (), 404),
        ("PUT /huyen HTTP/1.1", PASSWORD, ("Content-Type: text/html",), 415),
        ("GET /huyen HTTP/1.1", PASSWORD, (), 405),
        ("GET /admin/metadata?mode=updinfo&song=x HTTP/1.0", PASSWORD, (), 405),
        ("OPTIONS * HTTP/1.1", None, (), 400),
        ("OPTIONS / HTTP/1.1", None, (), 200),
        ("nonsense", PASSWORD, (), 400),
        ("PUT huyen HTTP/1.1", PASSWORD, (), 400),
        ("PUT /huyen HTTP/1.1", PASSWORD, ("X-Long: " + "x" * 17_000,), 431),
    ],
)
async def test_who_may_not_is_told_why(
    desk: Desk, line: str, password: str | None, headers: tuple[str, ...], status: int
):
    async with client(desk, line=line, password=password, headers=headers) as source:
        assert await source.status() == status
        rest = await source.reader.read()
        assert (b"WWW-Authenticate: Basic" in rest) == (status == 401)
    assert desk.events == []
    assert desk.ingest.refusals == {status: 1}


async def test_a_busy_mount_stays_with_who_has_it(desk: Desk):
    async with client(desk) as first:
        assert await first.status() == 200
        await first.send(b"x" * 100)
        await until(lambda: desk.ingest.connected()["feed-huyen"].bytes_in == 100)
        since = desk.ingest.connected()["feed-huyen"].since
        async with client(desk) as second:
            assert await second.status() == 403
        await first.send(b"x" * 100)
        await until(lambda: desk.ingest.connected()["feed-huyen"].bytes_in == 200)
        assert desk.ingest.connected()["feed-huyen"].since == since
        async with client(desk, line="PUT /tinh HTTP/1.1") as other:
            assert await other.status() == 200


async def test_a_revoked_feed_is_cut_at_once_and_its_neighbour_is_not(desk: Desk):
    async with client(desk) as source, client(desk, line="PUT /tinh HTTP/1.1") as other:
        assert (await source.status(), await other.status()) == (200, 200)
        began_s = asyncio.get_running_loop().time()
        assert await desk.ingest.revoke("feed-huyen")
        assert await source.is_closed()
        assert asyncio.get_running_loop().time() - began_s < 1.0
        assert desk.ends() == [EndReason.REVOKED]
        assert set(desk.ingest.connected()) == {"feed-tinh"}
    assert not await desk.ingest.revoke("feed-huyen")


async def test_a_source_that_goes_silent_frees_its_mount(desk: Desk):
    async with client(desk) as source:
        assert await source.status() == 200
        await source.send(b"x" * 100)
        assert await source.is_closed()
    assert desk.ends() == [EndReason.STALLED]


async def test_a_torn_line_is_a_cut_and_the_station_may_come_back(desk: Desk):
    async with client(desk) as source:
        assert await source.status() == 200
        await source.send(b"x" * 100)
        source.writer.transport.abort()
        await until(lambda: desk.ends() != [])
    assert desk.ends()[0] in {EndReason.CUT, EndReason.CLEAN}
    async with client(desk) as again:
        assert await again.status() == 200


async def test_a_chunked_body_is_unpacked(desk: Desk):
    headers = ("Content-Type: audio/mpeg", "Transfer-Encoding: chunked", "Expect: 100-continue")
    async with client(desk, headers=headers) as source:
        assert await source.status() == 100
        await source.send(b"5\r\nhello\r\n3;x=y\r\nabc\r\n")
        await until(lambda: desk.ingest.connected()["feed-huyen"].bytes_in == 8)
        await source.send(b"0\r\n\r\n")
        await source.reader.readline()
        assert await source.status() == 200
    assert desk.ends() == [EndReason.CLEAN]


@pytest.mark.parametrize("body", [b"zz\r\n", b"-5\r\nhello", b"5\r\nhel"])
async def test_nonsense_in_chunks_is_a_cut(desk: Desk, body: bytes):
    async with client(desk, headers=("Transfer-Encoding: chunked",)) as source:
        assert await source.status() == 200
        await source.send(body)
        source.writer.write_eof()
        await until(lambda: desk.ends() == [EndReason.CUT])


async def test_who_says_nothing_is_not_waited_for(desk: Desk):
    reader, writer = await asyncio.open_connection("127.0.0.1", desk.port)
    assert await reader.read() == b""
    assert desk.ingest.turned_away == {"slow": 1}
    writer.close()


async def test_who_speaks_too_slowly_is_not_waited_for(desk: Desk):
    reader, writer = await asyncio.open_connection("127.0.0.1", desk.port)
    writer.write(b"PUT /huyen HTTP/1.1\r\nAuthorization: ")
    assert int((await reader.readline()).split()[1]) == 408
    writer.close()


async def test_what_a_source_says_of_itself_is_shown_without_its_tricks(desk: Desk):
    agent = "Studio\x1b[2J\x00\x85\t1.0 " + "x" * 500
    async with client(desk, headers=(f"User-Agent: {agent}", "ice-name: <b>\x07</b>")) as source:
        assert await source.status() == 200
        shown = desk.ingest.connected()["feed-huyen"].user_agent
    assert shown.startswith("Studio [2J 1.0 xxx")
    assert len(shown) == 80
    await until(lambda: desk.ends() != [])
    assert "</b>" not in repr(desk.events)


@pytest.mark.parametrize("limits", [IngestLimits(rate_bytes_s=20_000, burst_bytes=10_000)], ids=[""])
async def test_nobody_is_read_faster_than_the_ceiling(desk: Desk):
    async with client(desk) as source:
        assert await source.status() == 200
        began_s = asyncio.get_running_loop().time()
        source.writer.write(bytes(40_000))
        await until(lambda: desk.ingest.connected()["feed-huyen"].bytes_in == 40_000)
        took_s = asyncio.get_running_loop().time() - began_s
        assert took_s > 0.5  # 16 KiB are read at once; what lies above the burst takes its time


async def test_guessing_passwords_is_slowed_down(desk: Desk):
    for _ in range(QUICK.failures):
        async with client(desk, password="sai") as source:
            assert await source.status() == 401
    async with client(desk) as source:
        assert await source.status() == 429


async def test_closing_the_listener_ends_its_sources(desk: Desk):
    async with client(desk) as source:
        assert await source.status() == 200
        await desk.ingest.close()
        assert await source.is_closed()
    assert desk.ends() == [EndReason.CUT]


async def test_the_table_of_failures_is_bounded_and_forgets():
    clock = FakeClock()
    guard = FailureGuard(clock, IngestLimits(failures=2, failure_window_s=10.0, failure_table=3))
    for address in ("a", "a", "b", "c", "d"):
        guard.failed(address)
    assert guard.wait_s("a") == 0  # fell out of the table
    guard.failed("d")
    assert guard.wait_s("d") == 10
    await clock.advance(10)
    assert guard.wait_s("d") == 0
