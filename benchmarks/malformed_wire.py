"""Whatever comes over the wire: nothing of it kills, nothing of it takes long, nothing of it fills the memory.

To a real node on virtual time, on all its topics and on others; to the server's inbox on a real store; to both as
carried files; and to the MQTT clients of both, from a broker that sends anything. Bytes of chance, messages spoilt,
JSON as hypothesis grows it, and things built to hurt (bombs, holes, numbers without end, lengths that lie). Much of it
is signed by the right key: a key that was stolen, or a server gone mad, may say what it likes about the programme, but
must not be able to kill a node. Counted against it: whatever is raised, more than 50 ms of the thread's CPU for one
input, and memory that grows.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import struct
import sys
import tempfile
import time as machine
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.run import bar_of
from broadcast_server.domain.errors import BroadcastError
from broadcast_server.mqtt.bus import Message
from broadcast_server.playout import bundles
from firmware_sim import carry
from firmware_sim.reports import DeviceKey
from firmware_sim.store import Disk, Identity
from simulation.world.time import VirtualTime
from speaker_protocol import frames, topics
from speaker_protocol import messages as wire
from speaker_protocol.carry import Carried, CarriedKind, NotCarried
from speaker_protocol.carry import write as write_carried
from speaker_protocol.signing import Kind, key_id_of, seal
from tests.firmware_sim.siege import PATH, STREAM, Siege
from tests.firmware_sim.workshop import NODE, on_virtual_time
from tests.playout.rig import NODE as SEAT
from tests.playout.rig import Room
from tests.playout.test_clock_watch import watched

INPUTS: Final = int(os.environ.get("MALFORMED_WIRE", "200000"))
CPU_LIMIT_MS: Final = 50.0
GROWTH_LIMIT_MB: Final = 50.0
KINDS: Final = (Kind.PLAN, Kind.CONFIG, Kind.ORDER, Kind.ALERTS, Kind.HEAD, Kind.ACK, Kind.KEYS)
RESTORE_EACH: Final = 80
REBOOT_EACH: Final = 4_000
FLUSH_EACH: Final = 100


@dataclass
class Tally:
    """What was tried, and what it did."""

    tried: Counter[str] = field(default_factory=Counter)
    raised: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    longest_ms: float = 0.0
    longest: str = ""
    growth_mb: dict[str, float] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)

    def took(self, what: str, seconds: float, payload: bytes) -> None:
        """Note an input's CPU."""
        took_ms = seconds * 1000
        if took_ms > self.longest_ms:
            self.longest_ms, self.longest = took_ms, f"{what}, {len(payload)} bytes {payload[:60]!r}"
        if took_ms > CPU_LIMIT_MS:
            self.slow.append(f"{what}: {took_ms:.0f} ms for {len(payload)} bytes {payload[:60]!r}")


# -- what is sent -----------------------------------------------------------------------------------------------------

_SPICE: Final = (
    b"\x00",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00\x00\x00\x00\x00",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"null",
    b"true",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-1",
    b"9" * 30,
    b"9" * 5_000,
    b"\\u0000",
    b"\\ud800",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"[" * 500,
    b'{"a":' * 300,
    b" " * 3_000,
    "xã".encode(),
)


def mutated(dice: random.Random, raw: bytes, others: Sequence[bytes]) -> bytes:
    """One to four things done to it."""
    out = bytearray(raw)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(out) + 1)
        match dice.randrange(8):
            case 0 if out:
                out[at % len(out)] ^= 1 << dice.randrange(8)
            case 1 if out:
                out[at % len(out)] = dice.randrange(256)
            case 2:
                del out[at : at + dice.randint(1, 40)]
            case 3:
                out[at:at] = out[at : at + dice.randint(1, 200)]
            case 4:
                out[at:at] = dice.choice(_SPICE)
            case 5:
                out[at:at] = dice.randbytes(dice.randint(1, 30))
            case 6:
                out = out[:at]
            case _:
                other = dice.choice(others)
                cut = dice.randrange(len(other) + 1)
                out = out[:at] + other[cut:]
    return bytes(out[: 256 * 1024])


def grown(count: int, seed: int) -> list[bytes]:
    """JSON as hypothesis grows it, with the words of our own bodies among its keys."""
    words = sorted({name for body in wire.ALL_BODIES for name in body.model_fields})
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.integers(min_value=-(1 << 70), max_value=1 << 70)
        | st.floats()
        | st.text(max_size=20)
        | st.sampled_from(["normal", "emergency", "reports", "time", "delegation", "revocation", "online", "started"])
        | st.sampled_from(["0" * 64, "0" * 16, "ab" * 32])
    )
    keys = st.sampled_from(words) | st.text(max_size=6)
    values = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(keys, inner, max_size=8), max_leaves=25
    )
    found: list[bytes] = []

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.dictionaries(keys, values, max_size=10) | values)
    def collect(value: Any) -> None:
        found.append(json.dumps(value).encode("utf-8", "surrogatepass"))

    collect()
    random.Random(seed).shuffle(found)
    return found


def bombs() -> list[bytes]:
    """Built to hurt."""
    swelling = zlib.compress(b"x" * (8 << 20), 9)
    return [
        swelling,
        zlib.compress(swelling, 9),
        struct.pack(">I", 0xFFFFFFFF) + b"x" * 200,
        struct.pack(">H", 0xFFFF) * 90_000,
        b"\0\0" * 120_000,
        b"\0\1x" * 80_000,
        b"[" * 250_000,
        b'{"a":' * 50_000,
        b'{"alerts":[' + b"{}," * 80_000 + b"{}]}",
        b'{"refusals":{' + b",".join(b'"%d":1' % number for number in range(25_000)) + b"}}",
        b'{"sequences":[' + b"1," * 120_000 + b'1],"kind":"reports","boot_id":"b"}',
        b'{"x":' + b"9" * 250_000 + b"}",
        b'{"x":"' + b"\\u0000" * 40_000 + b'"}',
        b'{"x":"' + b"\xff" * 200_000 + b'"}',
        b" " * 250_000 + b"{}",
        b'{"link":"online","boot_id":"b",' + b'"x":1,' * 40_000 + b'"y":1}',
        b"\x01\xff\x00" + bytes(250_000),
        b"\x01\xff\x01" + b"\x01a" * 120_000,
    ]


# -- the node ---------------------------------------------------------------------------------------------------------


class Assault:
    """Sends a node what nobody means."""

    def __init__(self, s: Siege, tally: Tally, corpus: Sequence[bytes], hurting: Sequence[bytes]) -> None:
        self.s, self.tally, self.corpus, self.hurting = s, tally, corpus, hurting
        self.valid: dict[Kind, bytes] = {}

    def shots(self) -> Iterator[tuple[str, str, bytes]]:
        """What it is, its topic, its bytes; for ever."""
        s, dice = self.s, self.s.dice
        while True:
            kind = dice.choice(KINDS)
            roll = dice.randrange(100)
            if roll < 30:  # spoilt on its way
                letter = s.letter(kind, is_evil=kind not in {Kind.ORDER, Kind.ACK})
                yield "spoilt", letter.topic, mutated(dice, letter.payload, self.corpus)
            elif roll < 75:  # nonsense by the right key
                yield self._nonsense(kind)
            elif roll < 87:
                yield self._audio()
            elif roll < 93:
                yield "chance", s.topic_of(kind), dice.randbytes(dice.randrange(1, 400))
            elif roll < 97:
                yield "json", s.topic_of(kind), dice.choice(self.corpus)
            elif roll < 99:
                yield "topic", self._topic(), dice.choice(self.corpus)
            else:
                yield "bomb", s.topic_of(kind), dice.choice(self.hurting)

    def _nonsense(self, kind: Kind) -> tuple[str, str, bytes]:
        s, dice = self.s, self.s.dice
        letter = s.letter(kind, is_evil=kind not in {Kind.ORDER, Kind.ACK})
        if kind is Kind.PLAN:
            assert letter.packed is not None
            inner = zlib.decompress(letter.packed)
            body = dice.choice(self.hurting) if dice.random() < 0.01 else self._body(inner)
            packed = dice.choice((zlib.compress(body, 1), mutated(dice, letter.packed, self.corpus), letter.packed))
            now_ms = s.time.now_ms()
            head = wire.plan_head(packed, valid_from_ms=now_ms - 1, valid_until_ms=now_ms + 3_600_000).encode()
            letter = letter.but(packed=packed, body=head if dice.random() < 0.8 else self._body(head))
        else:
            letter = letter.but(body=dice.choice(self.hurting) if dice.random() < 0.01 else self._body(letter.body))
        if dice.random() < 0.05:
            odd = (0, 1, (1 << 64) - 1, 1 << 63)
            letter = letter.but(expires_ms=dice.choice(odd), issued_ms=dice.choice(odd))
        if kind is Kind.KEYS:
            letter = letter.but(body=letter.body[: 60 << 10])  # a statement's length is told in two bytes
        return "signed nonsense", letter.topic, letter.payload

    def _body(self, raw: bytes) -> bytes:
        dice = self.s.dice
        match dice.randrange(4):
            case 0:
                return dice.choice(self.corpus)
            case 1:  # whole JSON, one value another
                try:
                    told = json.loads(raw)
                    told[dice.choice(list(told))] = json.loads(dice.choice(self.corpus))
                    return json.dumps(told).encode("utf-8", "surrogatepass")
                except (ValueError, TypeError, IndexError):
                    return mutated(dice, raw, self.corpus)
            case _:
                return mutated(dice, raw, self.corpus)

    def _audio(self) -> tuple[str, str, bytes]:
        s, dice = self.s, self.s.dice
        topic = str(topics.StreamAudio(STREAM))
        raw = frames.pack(s.batch(), s.voice.key, STREAM)
        if dice.random() < 0.5:
            return "audio", topic, mutated(dice, raw, self.corpus)
        signed = mutated(dice, raw[:-64], self.corpus)
        return "audio by its key", topic, signed + s.voice.key.sign(b"loa/1 AUDIO\0" + STREAM.encode() + b"\0" + signed)

    def _topic(self) -> str:
        dice = self.s.dice
        odd = ("", "loa", "loa/1/node", f"loa/1/node/{NODE}", "loa/1/node/../plan", "a/b/c/d/e/f/g", "\x00", "/" * 400)
        return dice.choice(
            (*odd, f"loa/1/node/{dice.randbytes(4).hex()}/plan", f"loa/1/stream/{dice.randbytes(2).hex()}/audio")
        )

    async def run(self, count: int, what: str) -> None:
        """So many of them; the node must live through each."""
        s, tally = self.s, self.tally
        shots = self.shots()
        for number in range(1, count + 1):
            name, topic, payload = next(shots)
            tally.tried[f"{what}: {name}"] += 1
            before_s = machine.thread_time()
            try:
                tally.refused.update(await s.deliver(topic, payload))
            except Exception as error:  # noqa: BLE001  what is looked for
                tally.raised.append(f"{what}: {name} on {topic[:80]!r}: {error!r} {payload[:300]!r}")
                await s.wipe()
                await self.restore()
            tally.took(f"{what}: {name} on {topic[:60]!r}", machine.thread_time() - before_s, payload)
            if number % RESTORE_EACH == 0:
                await self._guarded(what, self.restore)
            if number % REBOOT_EACH == 0:  # what was believed is read again at the next power-on
                await self._guarded(what, s.reboot)

    async def _guarded(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except Exception as error:  # noqa: BLE001  what is looked for
            self.tally.raised.append(f"{what}: {step.__name__} after it: {error!r}")
            await self.s.wipe()

    async def restore(self) -> None:
        """Let it sound what it was made to believe, then say again what holds."""
        s = self.s
        await s.pass_s(1)
        epoch, sequence = s.firmware.gate.highest()  # a server rises above what statuses show, and so does this one
        for signer in (s.server, s.commune):
            signer.epoch = max(signer.epoch, epoch)
            signer.sequence = max(signer.sequence, sequence) + 2
        config = wire.NodeConfigBody(path=PATH, cluster="c", quiet_from_min=0, quiet_to_min=0, assets_url="http://o/a")
        letter = s.letter(Kind.CONFIG).but(signer=s.server, body=config.encode())
        letter = letter.but(sequence=s.server.sequence, epoch=s.server.epoch)
        s.retained[letter.topic] = letter.payload
        await s.deliver(letter.topic, letter.payload)
        s.keys()
        await s.settle()
        if not await s.all_by_unit_good():
            raise RuntimeError("what holds is not obeyed any more")
        await s.pass_s(3)
        if not await s.head_good():
            raise RuntimeError("the stream's head is not obeyed any more")


def on_node(tally: Tally, count: int, *, has_samples: bool, corpus: Sequence[bytes], hurting: Sequence[bytes]) -> None:
    """Attack a node; its memory is looked at between."""
    what = "node with samples" if has_samples else "node"
    with tempfile.TemporaryDirectory(prefix="loa-malformed-", dir=_memory()) as folder:

        async def story(time: VirtualTime) -> None:
            s = Siege(time, Path(folder), seed=3, has_samples=has_samples)
            await s.begin()
            assault = Assault(s, tally, corpus, hurting)
            await assault.run(max(1, count // 5), what)
            before_mb = rss_mb()
            await assault.run(count - max(1, count // 5), what)
            tally.growth_mb[what] = rss_mb() - before_mb
            await s.end()

        on_virtual_time(story)


# -- the server -------------------------------------------------------------------------------------------------------


class Post:
    """What nodes and others send to the server's inbox."""

    def __init__(self, room: Room, dice: random.Random, corpus: Sequence[bytes], hurting: Sequence[bytes]) -> None:
        self.room, self.dice, self.corpus, self.hurting = room, dice, corpus, hurting
        self.key = DeviceKey(room.node.key.private_bytes_raw().hex())
        self.number = 0
        status = wire.StatusBody(
            link=wire.Link.ONLINE,
            boot_id="b",
            sent_ms=room.node.now_ms,
            clock=wire.ClockQuality(source=wire.ClockSource.SERVER, uncertainty_ms=1.5, offset_ms=-3.25),
            alerts=(wire.AlertProgress(alert_id="a", rounds=2, first_ms=1, is_sounding=True),),
            due=(wire.ItemReadiness(entry_id="e", start_ms=1, ready=True),),
            refusals={"signature": 3},
        )
        self.statuses = (status.encode(), wire.StatusBody(link=wire.Link.OFFLINE, boot_id="b").encode())
        self.question = wire.TimeQuestionBody(nonce="0123456789abcdef", sent_ns=42).encode()

    def report(self) -> bytes:
        self.number += 1
        body = wire.ReportBody(
            boot_id="boot-1",
            sequence=self.number,
            kind=wire.ReportKind.FINISHED,
            entry_id="schedule@1780300800000",
            segment_start_ms=self.room.node.now_ms,
            at_ms=self.room.node.now_ms,
            heard_ms=1_000,
        )
        return body.encode()

    def sealed(self, body: bytes) -> bytes:
        """By the device's own key, whatever it says."""
        key = self.room.node.key
        now_ms = self.room.node.now_ms
        return seal(
            key,
            key_id_of(self.key.public),
            kind=Kind.REPORT,
            target=SEAT,
            issued_ms=now_ms,
            expires_ms=now_ms + 1,
            epoch=0,
            sequence=1,
            body=body,
        )

    def next(self) -> tuple[str, str, bytes]:
        """What it is, its topic, its bytes."""
        dice = self.dice
        node = dice.choice((SEAT, SEAT, SEAT, "n2", "stranger", f"x{dice.randrange(300)}"))
        leaf = dice.choice(("status", "report", "time"))
        topic = f"loa/1/node/{node}/{leaf}"
        whole = {"status": dice.choice(self.statuses), "report": self.report(), "time": self.question}[leaf]
        match dice.randrange(100):
            case roll if roll < 40:
                bent = mutated(dice, whole, self.corpus)
                return f"{leaf}, spoilt", topic, self.sealed(bent) if leaf == "report" else bent
            case roll if roll < 60:
                told = json.loads(whole)
                told[dice.choice(list(told))] = json.loads(dice.choice(self.corpus))
                odd = json.dumps(told).encode("utf-8", "surrogatepass")
                return f"{leaf}, one value another", topic, self.sealed(odd) if leaf == "report" else odd
            case roll if roll < 75:
                return f"{leaf}, json", topic, dice.choice(self.corpus)
            case roll if roll < 85:
                return f"{leaf}, envelope spoilt", topic, mutated(dice, self.sealed(whole), self.corpus)
            case roll if roll < 93:
                return f"{leaf}, chance", topic, dice.randbytes(dice.randrange(400))
            case roll if roll < 95:
                bomb = dice.choice(self.hurting)
                return f"{leaf}, bomb", topic, self.sealed(bomb[: 250 << 10]) if leaf == "report" else bomb
            case roll if roll < 97:
                odd_topic = dice.choice(("", "loa/1", "loa/1/node//status", "loa/1/node/+/status", "\x00", "/" * 300))
                return "topic", odd_topic, whole
            case _:
                return f"{leaf}, valid", topic, self.sealed(whole) if leaf == "report" else whole


async def on_server(tally: Tally, count: int, corpus: Sequence[bytes], hurting: Sequence[bytes]) -> None:
    """Attack the inbox, its store behind it, the clock's watch beside it."""
    with tempfile.TemporaryDirectory(prefix="loa-malformed-", dir=_memory()) as folder:
        async with watched(Path(folder)) as one:
            room = one.room
            server = await room.serve(watch=one.watch)
            await room.turn()
            await room.all_say_how_they_are()
            post = Post(room, random.Random(5), corpus, hurting)
            inbox = server.inbox
            answering = asyncio.create_task(inbox.answer(), name="bench.answer")
            takers = {"status": inbox._take_status, "report": inbox._take_report, "time": inbox._take_question}  # noqa: SLF001
            before_mb = 0.0
            for number in range(1, count + 1):
                name, topic, payload = post.next()
                tally.tried[f"server: {name}"] += 1
                take = takers.get(topic.rpartition("/")[2], inbox._take_status)  # noqa: SLF001
                message = Message(topic, payload, retained=post.dice.random() < 0.1, arrived=room.clock.now())
                before_s = machine.thread_time()
                try:
                    take(message)
                except Exception as error:  # noqa: BLE001  what is looked for
                    tally.raised.append(f"server: {name}: {error!r} {payload[:300]!r}")
                tally.took(f"server: {name}", machine.thread_time() - before_s, payload)
                if number % FLUSH_EACH == 0:
                    before_s = machine.thread_time()
                    try:
                        await inbox.flush()
                        await room.clock.advance(1)
                        if number % (20 * FLUSH_EACH) == 0:
                            await server.turn()
                            await one.watch.look()
                    except Exception as error:  # noqa: BLE001  what is looked for
                        tally.raised.append(f"server: flush after {name}: {error!r}")
                    tally.took("server: flush", (machine.thread_time() - before_s) / FLUSH_EACH, b"")
                    if answering.done():
                        tally.raised.append(f"server: answers ended: {answering.exception()!r}")
                        answering = asyncio.create_task(inbox.answer(), name="bench.answer")
                if number == max(1, count // 5):
                    before_mb = rss_mb()
            tally.growth_mb["server"] = rss_mb() - before_mb
            tally.refused.update({f"server {name}": many for name, many in inbox.refused.items()})
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)


# -- carried files ----------------------------------------------------------------------------------------------------


async def on_carried(tally: Tally, count: int, corpus: Sequence[bytes], hurting: Sequence[bytes]) -> None:
    """Sticks of strangers: to a node that is off, and to the server."""
    dice = random.Random(7)
    with tempfile.TemporaryDirectory(prefix="loa-malformed-", dir=_memory()) as room_name:
        folder = Path(room_name)
        async with watched(folder) as one:
            room = one.room
            server = await room.serve(watch=one.watch)
            await room.turn()
            post = Post(room, dice, corpus, hurting)
            identity = Identity(
                private_key=room.node.key.private_bytes_raw().hex(),
                node_id=SEAT,
                cluster_id="c",
                broker={"host": "127.0.0.1", "port": 1},  # type: ignore[arg-type]
                username=SEAT,
                password="x",
                root_public_key=server.signer.root_public().hex(),
                path=room.node.path,
                assets_url="http://127.0.0.1/",
                asset_token="t",
            )
            before_mb = rss_mb()
            for number in range(count):
                kind = dice.choice(tuple(CarriedKind))
                file = folder / "stick.loa"
                file.write_bytes(_stick(dice, kind, post, corpus))
                tally.tried[f"carried: {kind}"] += 1
                before_s = machine.thread_time()
                try:
                    if kind is CarriedKind.REPORTS:
                        await bundles.take_reports(room.store, server.inbox, server.judge, file)
                    else:
                        with Carried(file, CarriedKind.BUNDLE) as carried:
                            disk = Disk(folder / "disks" / str(number % 50)) if _made(folder / "disks") else None
                            assert disk is not None
                            await asyncio.to_thread(
                                carry.take_in, identity, disk, carried, device_ns=room.node.now_ms * 1_000_000
                            )
                except (NotCarried, BroadcastError):
                    pass
                except Exception as error:  # noqa: BLE001  what is looked for
                    tally.raised.append(f"carried: {kind}: {error!r}")
                tally.took(f"carried: {kind}", machine.thread_time() - before_s, b"")
            tally.growth_mb["carried"] = rss_mb() - before_mb


def _made(folder: Path) -> bool:
    folder.mkdir(exist_ok=True)
    return True


def _stick(dice: random.Random, kind: CarriedKind, post: Post, corpus: Sequence[bytes]) -> bytes:
    import io  # only here

    messages = []
    for _ in range(dice.randrange(1, 4)):
        name, topic, payload = post.next()
        del name
        if kind is CarriedKind.BUNDLE:
            leaf = dice.choice(("plan", "config", "ack", "alert", "keys"))
            owner = SEAT if leaf in {"plan", "config", "ack"} else dice.choice(post.room.node.path)
            topic = f"loa/1/{'node' if owner == SEAT else 'unit'}/{owner}/{leaf}"
        messages.append((topic, payload))
    made = io.BytesIO()
    write_carried(made, kind, messages, subject="x", made_ms=1)
    raw = made.getvalue()
    return raw if dice.random() < 0.2 else mutated(dice, raw, corpus)


# -- the whole --------------------------------------------------------------------------------------------------------


def run(inputs: int = INPUTS) -> dict[str, Any]:
    """Most of them to node and server; some as carried files; the brokers that send anything come last."""
    from benchmarks.hostile_brokers import torment  # beside this: sockets and real time

    began = machine.monotonic()
    tally = Tally()
    corpus, hurting = grown(min(1_000, max(200, inputs // 40)), 1), bombs()
    on_node(tally, inputs * 40 // 100, has_samples=False, corpus=corpus, hurting=hurting)
    on_node(tally, inputs * 12 // 100, has_samples=True, corpus=corpus, hurting=hurting)
    asyncio.run(on_server(tally, inputs * 45 // 100, corpus, hurting))
    asyncio.run(on_carried(tally, inputs * 3 // 200, corpus, hurting))
    garbage = asyncio.run(torment(max(20, inputs // 1_000)))
    tally.tried["client: garbage from a broker"] = garbage.tried
    tally.raised += garbage.raised
    left = inputs - tally.tried.total()
    if left > 0:
        on_node(tally, left, has_samples=False, corpus=corpus, hurting=hurting)
    for what in (*tally.raised, *tally.slow)[:20]:
        print(what, file=sys.stderr)
    attempted = tally.tried.total()
    growth_mb = max(tally.growth_mb.values(), default=0.0)
    figures = {
        "attempted": attempted,
        "ok": attempted - len(tally.raised) - len(tally.slow),
        "violations": len(tally.raised) + len(tally.slow),
        "longest_cpu_ms": round(tally.longest_ms, 1),
        "longest": tally.longest,
        "growth_mb": {name: round(mb, 1) for name, mb in tally.growth_mb.items()},
        "reconnects": garbage.reconnects,
        "refused": dict(sorted(tally.refused.items())),
        "tried": dict(sorted(tally.tried.items())),
        "took_s": round(machine.monotonic() - began, 1),
    }
    bars = [
        bar_of("malformed inputs", attempted, f"≥ {inputs}", holds=attempted >= inputs),
        bar_of("unhandled", len(tally.raised), 0, holds=attempted > 0 and not tally.raised),
        bar_of(
            "longest CPU of one input", round(tally.longest_ms, 1), f"≤ {CPU_LIMIT_MS:.0f} ms", holds=not tally.slow
        ),
        bar_of("memory grown", round(growth_mb, 1), f"< {GROWTH_LIMIT_MB:.0f} MB", holds=growth_mb < GROWTH_LIMIT_MB),
        bar_of(
            "connected again after garbage",
            garbage.reconnects,
            f"≥ {garbage.tried}",
            holds=0 < garbage.tried <= garbage.reconnects,
        ),
    ]
    return {"name": "malformed_wire", "figures": figures, "bars": bars}


def rss_mb() -> float:
    """Resident memory of this process, garbage collected."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  a folder of its own in it
