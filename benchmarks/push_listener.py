"""`push_listener`: two thousand attempts on the real push listener, judged by ears on every stream.

Real: the listener on TLS, its sockets, the store with the feeds' hashed passwords, the keeper that cuts what was
revoked, decoders, engine, encoder, signatures. Imitated: the broker (a loopback in process), and other addresses by
127.0.0.0/8. All the while a legitimate station pushes its tone to `huyen`; the attackers push another tone, or what is
no sound, wherever they are answered and where they are not. Nothing of theirs may sound, and the station's tone must
go on. A feed that is revoked in mid-stream was legitimate until then: nothing of it may sound later than `REVOKED_S`
after.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import itertools
import random
import ssl
import tempfile
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from benchmarks.ears import Ear, mp3_of
from benchmarks.run import bar_of
from broadcast_server.audio.ffmpeg import Sandbox
from broadcast_server.domain.clock import to_ms
from broadcast_server.fetch import Fetcher
from broadcast_server.mqtt.bus import LoopbackBus, LoopbackHub
from broadcast_server.playout.keeper import FeedKeeper
from broadcast_server.relay.engine import Engine, FeedKind, StreamSpec
from broadcast_server.relay.entrance import Rules
from broadcast_server.relay.ingest import EndReason, Ingest, IngestEvent, IngestLimits
from broadcast_server.signer.certificates import LocalAuthority, ServerSide, client_context
from broadcast_server.signer.keys import FileSigner
from broadcast_server.store import feeds, places
from broadcast_server.store.migrations import migrate
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import FeedRow, UnitRow
from broadcast_server.store.types import fold
from broadcast_server.store.words import Tier
from broadcast_server.supervise import SystemChance, SystemClock, ThreadExecutor
from simulation.samples import tone_pcm

ATTEMPTS: Final = 2_200
REVOKED: Final = 6
LANES: Final = 8
STATION, EVIL, LAWFUL = (500, 1100), (700, 2300), (1300, 1900)
BUSY, FREE, GARBAGE = "huyen", "tinh", "rac"
REVOKED_S: Final = 2.5
"""A relay may run two seconds ahead; so long what was sent before the cut may still be heard."""
LIMITS: Final = IngestLimits(header_s=1.5, silence_s=3.0)
OUTSIDE: Final = 66
"""127.0.66.x stands for a network whose sources are not answered."""


@dataclass
class Tally:
    """What was tried and what came of it."""

    tried: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    seated: Counter[str] = field(default_factory=Counter)
    """Attempts that became a source although they may not."""
    late: list[str] = field(default_factory=list)
    outlived_s: list[float] = field(default_factory=list)
    """How long a revoked source was still heard after it was cut."""


class Rig:
    """Everything up, with one lawful station on the air."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.clock, self.chance = SystemClock(), SystemChance()
        self.random = random.Random(seed)
        self.folder = folder
        self.tally = Tally()
        self.events: list[IngestEvent] = []
        self.passwords: dict[str, str] = {}
        self.evil = mp3_of(tone_pcm(EVIL, 4.0))
        self.lawful = mp3_of(tone_pcm(LAWFUL, 20.0))
        self.tone = mp3_of(tone_pcm(STATION, 20.0))

    def now_s(self) -> float:
        """The wall clock."""
        return to_ms(self.clock.now()) / 1000

    @contextlib.asynccontextmanager
    async def running(self, mounts: list[str]) -> AsyncIterator[None]:
        """Store, listener, engine, ears; the station's tone is heard when it begins."""
        async with contextlib.AsyncExitStack() as stack:
            threads, work = ThreadExecutor(2, name="store"), ThreadExecutor(2, name="work")
            stack.callback(threads.close)
            stack.callback(work.close)
            url = f"sqlite:///{self.folder / 'loa.sqlite'}"
            await threads.run(migrate, url)
            store = Store(url, clock=self.clock, chance=self.chance, executor=threads)
            stack.push_async_callback(store.close)
            await store.begin(lambda session: self._fill(session, mounts))
            self.store = store
            self.keeper = FeedKeeper(store=store, clock=self.clock, chance=self.chance)
            authority = LocalAuthority(self.folder / "authority", clock=self.clock, chance=self.chance)
            stranger = LocalAuthority(self.folder / "stranger", clock=self.clock, chance=self.chance)
            self.trusted = client_context(authority.authority_pem())
            self.distrusting = client_context(stranger.authority_pem())
            side = ServerSide(authority, self.folder / "tls", ["127.0.0.1"], None)
            sandbox = await Sandbox.probe()
            self.ingest = Ingest(
                authenticate=self.keeper.authenticate,
                sandbox=sandbox,
                clock=self.clock,
                chance=self.chance,
                limits=LIMITS,
                on_event=self._heard,
                rules=Rules(
                    tls=side.context,
                    plain_from=(),
                    networks=(ipaddress.ip_network("127.0.0.0/18"),),
                    here=(ipaddress.ip_network("127.0.0.1/32"),),
                ),
            )
            bus = LoopbackBus(LoopbackHub(), clock=self.clock)
            await bus.start()
            stack.push_async_callback(bus.close)
            engine = Engine(
                bus=bus,
                signer=FileSigner(self.folder / "keys", chance=self.chance, path_of=lambda unit: (unit,)),
                fetcher=Fetcher(clock=self.clock),
                sandbox=sandbox,
                clock=self.clock,
                chance=self.chance,
                executor=work,
                pushed=self.ingest,
            )
            self.port = await self.ingest.start(port=0)
            stack.push_async_callback(self.ingest.close)
            stack.push_async_callback(engine.close)
            self.ears = {mount: Ear(f"s-{mount}", bus, self.now_s) for mount in mounts}
            await engine.reconcile(
                {
                    f"s-{mount}": StreamSpec(f"s-{mount}", _feed(mount), FeedKind.PUSH, 1, 45, mount=mount)
                    for mount in mounts
                }
            )
            keeping = asyncio.create_task(self.keeper.run(engine, self.ingest), name="bench.keeper")
            station = asyncio.create_task(self.push(BUSY, self.tone), name="bench.station")
            try:
                await until(lambda: any(piece.tones == STATION for piece in self.ears[BUSY].pieces), 30.0)
                yield
            finally:
                for task in (station, keeping):
                    task.cancel()
                await asyncio.wait({station, keeping})

    def _fill(self, session: Session, mounts: list[str]) -> None:
        now = self.clock.now()
        places.ensure_kinds(session)
        session.add(UnitRow(id="t", kind="province", name="Tỉnh mô phỏng", name_folded=fold("Tỉnh"), created_at=now))
        session.flush()
        for mount in mounts:
            self.passwords[mount] = base64.b32encode(self.chance.token_bytes(15)).decode().lower()
            session.add(
                FeedRow(
                    id=_feed(mount),
                    unit_id="t",
                    name=mount,
                    name_folded=mount,
                    tier=Tier.PROVINCE,
                    kind=FeedKind.PUSH,
                    mount=mount,
                    push_user="source",
                    push_secret_hash=feeds.push_hash(self.passwords[mount], self.chance.token_bytes(16)),
                    created_at=now - timedelta(days=1),
                )
            )

    def _heard(self, event: IngestEvent) -> None:
        self.events.append(event)
        self.keeper.heard(event)

    # -- speaking

    def head(
        self,
        mount: str,
        password: str,
        *more: str,
        user: str = "source",
        line: str | None = None,
        kind: str = "audio/mpeg",
    ) -> bytes:
        """A request's head."""
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        lines = [line or f"PUT /{mount} HTTP/1.1", f"Content-Type: {kind}", f"Authorization: Basic {token}", *more]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def address(self) -> str:
        """One of 15 000 addresses that are answered."""
        return f"127.0.{self.random.randrange(2, 62)}.{self.random.randrange(1, 250)}"

    @contextlib.asynccontextmanager
    async def connection(
        self, tls: ssl.SSLContext | None, from_: str
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Raises `OSError`."""
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=tls, local_addr=(from_, 0), server_hostname="127.0.0.1" if tls else None
            )
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def say(self, kind: str, data: bytes, *, tls: ssl.SSLContext | None, from_: str | None = None) -> bytes:
        """Send all of it and the evil tone behind, whatever is answered; the first line of the answer."""
        answer = b""
        with contextlib.suppress(OSError, TimeoutError):
            async with self.connection(tls, from_ or self.address()) as (reader, writer):
                writer.write(data)
                writer.write(self.evil[:16_000])
                async with asyncio.timeout(LIMITS.header_s + 5):
                    await writer.drain()
                    answer = await reader.readline()
                    if b" 200 " in answer or b" 100 " in answer:
                        self.tally.seated[kind] += 1
        return answer

    async def push(self, mount: str, sound: bytes) -> None:
        """A lawful source in real time, until it is cut."""
        async with self.connection(self.trusted, "127.0.0.1") as (reader, writer):
            writer.write(self.head(mount, self.passwords[mount]))
            answer = await reader.readline()
            assert b" 200 " in answer, answer
            rate, began_s, sent = len(sound) / 20.0, asyncio.get_running_loop().time(), 0
            with contextlib.suppress(ConnectionError):
                while True:
                    due = int((asyncio.get_running_loop().time() - began_s + 2.0) * rate)
                    writer.write((sound + sound)[sent % len(sound) :][: due - sent])
                    await writer.drain()
                    sent = due
                    await asyncio.sleep(0.1)


# -- the attempts ---------------------------------------------------------------------------------------------------


async def guess(rig: Rig) -> bytes:
    """A wrong password, at a busy and at a free mount."""
    mount = rig.random.choice((BUSY, FREE))
    right = rig.passwords[mount]
    wrong = rig.random.choice(
        ("", "hackme", right[:-1], right + "x", right.upper(), right[::-1], "\0" + right, right + "\0", "x" * 4_000)
    )
    return await rig.say("guess", rig.head(mount, wrong), tls=rig.trusted)


async def guess_from_one_address(rig: Rig) -> bytes:
    """Guesses that the table of failures must slow down."""
    return await rig.say("guess from one address", rig.head(FREE, "sai"), tls=rig.trusted, from_="127.0.63.1")


async def user(rig: Rig) -> bytes:
    """The right password of another user name, and credentials that are none."""
    name = rig.random.choice(("", "admin", "Source", "source ", "root", "nguồn"))
    return await rig.say("user", rig.head(FREE, rig.passwords[FREE], user=name), tls=rig.trusted)


async def no_credentials(rig: Rig) -> bytes:
    """None, or what cannot be read."""
    told = rig.random.choice(("", "Authorization: Basic", "Authorization: Basic ####", "Authorization: Bearer x"))
    head = f"PUT /{FREE} HTTP/1.1\r\nContent-Type: audio/mpeg\r\n{told}\r\n\r\n".encode()
    return await rig.say("no credentials", head, tls=rig.trusted)


async def foreign(rig: Rig) -> bytes:
    """The right password of another feed."""
    return await rig.say("foreign mount", rig.head(FREE, rig.passwords[GARBAGE]), tls=rig.trusted)


async def unknown(rig: Rig) -> bytes:
    """Mounts that are none, and ways around a name."""
    mount = rig.random.choice(
        ("khong-co", "TINH", "tinh/", "/tinh", "tinh%00", "x/../tinh", "tinh%2f..%2ftinh", "tinh;x", "a" * 3_000)
    )
    return await rig.say("unknown mount", rig.head(mount, rig.passwords[FREE]), tls=rig.trusted)


async def busy(rig: Rig) -> bytes:
    """Everything right, but somebody is there."""
    line = rig.random.choice((None, f"SOURCE /{BUSY} HTTP/1.0", f"SOURCE /{BUSY} ICE/1.0", f"PUT /{BUSY}?a=b HTTP/1.1"))
    return await rig.say("busy mount", rig.head(BUSY, rig.passwords[BUSY], line=line), tls=rig.trusted)


async def slow(rig: Rig) -> bytes:
    """A head that never ends, right as far as it goes."""
    head = rig.head(FREE, rig.passwords[FREE])[:-4]
    with contextlib.suppress(OSError, TimeoutError):
        async with rig.connection(rig.trusted, rig.address()) as (reader, writer), asyncio.timeout(LIMITS.header_s + 5):
            for at in range(0, len(head), 4):
                writer.write(head[at : at + 4])
                await writer.drain()
                if reader.at_eof():
                    break
                await asyncio.sleep(0.1)
            return await reader.readline()
    return b""


async def huge(rig: Rig) -> bytes:
    """Heads that are too long."""
    more = rig.random.choice((["X: " + "x" * 20_000], ["X: y"] * 4_000, ["x" * 40_000], ["X: " + "\0" * 17_000]))
    return await rig.say("huge head", rig.head(FREE, rig.passwords[FREE], *more), tls=rig.trusted)


async def other_verbs(rig: Rig) -> bytes:
    """What a mount may be asked for and is not given, titles among it."""
    song = "/admin/metadata?mode=updinfo&mount=/" + BUSY + "&song=%3Cscript%3E%1b%5B2J"
    line = rig.random.choice(
        (
            f"GET {song} HTTP/1.0", f"POST /{FREE} HTTP/1.1", f"GET /{BUSY} HTTP/1.1", f"DELETE /{BUSY} HTTP/1.1",
            f"PUT /{FREE} HTTP/2.0", f"put /{FREE} HTTP/1.1", f"PUT  /{FREE} HTTP/1.1", f"SOURCE {FREE}",
            f"PUT http://x/{FREE} HTTP/1.1", "PRI * HTTP/2.0", "\x16\x03\x01 / HTTP/1.1", "",
        )
    )  # fmt: skip
    return await rig.say("other verbs", rig.head(BUSY, rig.passwords[FREE], line=line), tls=rig.trusted)


async def other_formats(rig: Rig) -> bytes:
    """Formats that are not relayed."""
    kinds = ("text/html", "video/mp4", "audio/x-scpls", "application/vnd.apple.mpegurl", "audio/wav", "")
    kind = rig.random.choice(kinds)
    return await rig.say("other formats", rig.head(FREE, rig.passwords[FREE], kind=kind), tls=rig.trusted)


async def wrong_tls(rig: Rig) -> bytes:
    """Handshakes that are none, too old, or broken off; a client that does not trust us."""
    way = rig.random.randrange(4)
    if way == 0:
        return await rig.say("wrong tls", rig.head(FREE, rig.passwords[FREE]), tls=rig.distrusting)
    if way == 1:
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that it is too old is the point
            old.options &= ~(ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1)
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        return await rig.say("wrong tls", rig.head(FREE, rig.passwords[FREE]), tls=old)
    data = b"\x16" + rig.random.randbytes(rig.random.randrange(1, 2_000)) if way == 2 else b"\x16\x03\x01\x02\x00\x01"
    return await rig.say("wrong tls", data + rig.head(FREE, rig.passwords[FREE]), tls=None)


async def plain(rig: Rig) -> bytes:
    """Everything right, without TLS."""
    return await rig.say("plain", rig.head(FREE, rig.passwords[FREE]), tls=None)


async def outside(rig: Rig) -> bytes:
    """Everything right, from a network that is not answered."""
    from_ = f"127.0.{OUTSIDE}.{rig.random.randrange(1, 250)}"
    tls = rig.random.choice((rig.trusted, None))
    return await rig.say("network", rig.head(FREE, rig.passwords[FREE]), tls=tls, from_=from_)


async def garbage(rig: Rig) -> bytes:
    """A lawful source whose body is no sound: let in, and silent."""
    body = rig.random.choice(
        (
            bytes(16_000),
            b"<html><body>loi</body></html>" * 500,
            b"#EXTM3U\nfile:///etc/passwd\nhttp://127.0.0.1/x.mp3\n" * 200,
            b"ffconcat version 1.0\nfile '/etc/passwd'\n" * 300,
            b"RIFF" + bytes(4) + b"WAVEfmt " + bytes(8_000),
            b"ID3\x03\0\0\x7f\x7f\x7f\x7f" + bytes(12_000),
            b"\xff\xfb" * 8_000,
        )
    )
    with contextlib.suppress(OSError, TimeoutError):
        async with rig.connection(rig.trusted, rig.address()) as (reader, writer), asyncio.timeout(5):
            writer.write(rig.head(GARBAGE, rig.passwords[GARBAGE]) + body)
            await writer.drain()
            answer = await reader.readline()
            await asyncio.sleep(rig.random.uniform(0.0, 0.3))
            return answer
    return b""


Attempt = Callable[[Rig], Awaitable[bytes]]
KINDS: Final[dict[str, tuple[Attempt, int]]] = {
    "guess": (guess, 8),
    "guess from one address": (guess_from_one_address, 3),
    "user": (user, 3),
    "no credentials": (no_credentials, 3),
    "foreign mount": (foreign, 4),
    "unknown mount": (unknown, 4),
    "busy mount": (busy, 4),
    "slow head": (slow, 1),
    "huge head": (huge, 3),
    "other verbs": (other_verbs, 4),
    "other formats": (other_formats, 3),
    "wrong tls": (wrong_tls, 3),
    "plain": (plain, 4),
    "network": (outside, 4),
    "garbage": (garbage, 2),
}
"""With how often each comes."""


async def revoked(rig: Rig, mount: str) -> None:
    """A lawful source sounds, its password is changed under it, and the old one is tried again."""
    pushing = asyncio.create_task(rig.push(mount, rig.lawful), name=f"bench.revoked[{mount}]")
    ear = rig.ears[mount]
    try:
        if not await until(lambda: any(piece.tones == LAWFUL for piece in ear.pieces), 20.0):
            rig.tally.late.append(f"{mount}: never sounded")
            return

        def change(session: Session) -> None:
            row = session.get(FeedRow, _feed(mount))
            assert row is not None
            row.credential_version += 1
            row.push_secret_hash = feeds.push_hash(rig.chance.token_bytes(9).hex(), rig.chance.token_bytes(16))

        rig.tally.tried["revoked in mid-stream"] += 1
        await rig.store.begin(change)
        cut = (_feed(mount), EndReason.REVOKED)
        if not await until(lambda: any((each.feed_id, each.reason) == cut for each in rig.events), 6.0):
            rig.tally.late.append(f"{mount}: was not cut")
        cut_s = rig.now_s()
        for _ in range(3):
            rig.tally.tried["the old password"] += 1
            await rig.say("the old password", rig.head(mount, rig.passwords[mount]), tls=rig.trusted)
        await asyncio.sleep(REVOKED_S + 1.5)
        sounded_s = [piece.came_s for piece in ear.pieces if not piece.is_quiet]
        rig.tally.outlived_s.append(round(max(sounded_s) - cut_s, 2))
        late = [each for each in sounded_s if each > cut_s + REVOKED_S]
        if late:
            rig.tally.late.append(f"{mount}: {len(late)} pieces after it was cut")
    finally:
        pushing.cancel()
        await asyncio.wait([pushing])


async def siege(attempts: int, feeds_revoked: int, folder: Path, *, seed: int = 4) -> dict[str, Any]:
    """So many attempts while the station is on the air; the figures."""
    rig = Rig(folder, seed)
    names = [f"r{number}" for number in range(feeds_revoked)]
    deck = [kind for kind, (_, share) in KINDS.items() for _ in range(share)]
    order = [deck[number % len(deck)] for number in range(attempts)]
    rig.random.shuffle(order)
    async with rig.running([BUSY, FREE, GARBAGE, *names]):
        began_s = rig.now_s()

        async def lane() -> None:
            while order:
                kind = order.pop()
                answer = await KINDS[kind][0](rig)
                rig.tally.tried[kind] += 1
                words = answer.split(b" ", 2)
                rig.tally.answers[words[1].decode("latin-1") if len(words) > 1 else "closed"] += 1

        async def cuts() -> None:
            for mount in names:
                await revoked(rig, mount)

        async with asyncio.TaskGroup() as group:
            for number in range(LANES):
                group.create_task(lane(), name=f"bench.lane[{number}]")
            group.create_task(cuts(), name="bench.cuts")
        ended_s = rig.now_s()
        await asyncio.sleep(2.0)  # what was let in would sound by now
        return _figures(rig, began_s, ended_s)


def _figures(rig: Rig, began_s: float, ended_s: float) -> dict[str, Any]:
    evil = sum(piece.tones == EVIL for ear in rig.ears.values() for piece in ear.pieces)
    noise = sum(not piece.is_quiet for mount in (FREE, GARBAGE) for piece in rig.ears[mount].pieces)
    own = [piece for piece in rig.ears[BUSY].pieces if began_s <= piece.came_s <= ended_s]
    spoiled = sum(piece.tones != STATION for piece in own)
    dues = [piece.due_s for piece in own]
    gap_s = max((later - earlier for earlier, later in itertools.pairwise(dues)), default=float("inf"))
    station_ends = [e for e in rig.events if e.feed_id == _feed(BUSY) and e.reason not in {None, EndReason.MOUNT_BUSY}]
    seated = rig.tally.seated.total()
    attempted = rig.tally.tried.total()
    violations = seated + evil + noise + len(rig.tally.late) + len(station_ends)
    return {
        "attempted": attempted,
        "ok": attempted - seated - len(rig.tally.late),
        "violations": violations,
        "tried": dict(sorted(rig.tally.tried.items())),
        "answers": dict(sorted(rig.tally.answers.items())),
        "turned_away": dict(rig.ingest.turned_away),
        "seated": dict(rig.tally.seated),
        "late": rig.tally.late,
        "heard_after_the_cut_s": rig.tally.outlived_s,
        "samples_sounded": (evil + noise) * 4_800,
        "station": {
            "seconds": round(ended_s - began_s, 1),
            "pieces": len(own),
            "spoiled": spoiled,
            "longest_gap_s": round(gap_s - 0.1, 3),
            "ends": len(station_ends),
        },
    }


def _feed(mount: str) -> str:
    return f"feed-{mount}"


async def until(look: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it came to be."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while not (seen := look()) and loop.time() < deadline_s:  # noqa: ASYNC110  it looks at what others do
        await asyncio.sleep(0.05)
    return seen


def run() -> dict[str, Any]:
    """See the module."""
    with tempfile.TemporaryDirectory(prefix="loa-push-") as folder:
        figures = asyncio.run(siege(ATTEMPTS, REVOKED, Path(folder)))
    station, slowed = figures["station"], figures["answers"].get("429", 0)
    return {
        "name": "push_listener",
        "figures": figures,
        "bars": [
            bar_of("attempts", figures["attempted"], "≥ 2 000", holds=figures["attempted"] >= 2_000),
            bar_of("samples sounded", figures["samples_sounded"], "0", holds=figures["samples_sounded"] == 0),
            bar_of("violations", figures["violations"], "0", holds=figures["violations"] == 0),
            bar_of("guesses slowed down (429)", slowed, "≥ 1", holds=slowed >= 1),
            bar_of(
                "the station: 100 ms without its tone", station["spoiled"], f"0 of {station['pieces']}",
                holds=station["spoiled"] == 0 < station["pieces"],
            ),
            bar_of("the station: longest gap, s", station["longest_gap_s"], "0", holds=station["longest_gap_s"] < 0.01),
        ],
    }  # fmt: skip
