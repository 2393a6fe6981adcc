"""Every single bit of every signed message turned, and every message cut at every byte: none is obeyed, none kills.

What goes down is given to a real node on virtual time, whole: what must change the node if it is obeyed, must not
change it (`tests.firmware_sim.siege`). What comes up (a report) is given to the server's own reader. At last each
message itself is given, and must be obeyed: so the bits were not refused for another reason. A node's status and its
time question are not signed; their bits may mean something else, and must only do no harm.
"""

from __future__ import annotations

import sys
import tempfile
import time as machine
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.run import bar_of
from broadcast_server.playout import wire as server
from firmware_sim.reports import DeviceKey
from simulation.world.time import VirtualTime
from speaker_protocol import frames, topics
from speaker_protocol import messages as wire
from speaker_protocol.brief import encode_alert_set
from speaker_protocol.rules import SourceKind
from speaker_protocol.signing import Kind
from tests.firmware_sim.siege import PATH, STREAM, Siege
from tests.firmware_sim.workshop import NODE, on_virtual_time


@dataclass
class Tally:
    """What the bits did."""

    bits: Counter[str] = field(default_factory=Counter)
    cuts: Counter[str] = field(default_factory=Counter)
    accepted: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    unproved: list[str] = field(default_factory=list)
    """Messages that were not obeyed as they are: their bits prove nothing."""


def spoilt(raw: bytes, every: int) -> Iterator[tuple[str, bytes]]:
    """Each with one bit turned, then each cut short; of both every `every`-th."""
    for at in range(0, len(raw) * 8, every):
        bent = bytearray(raw)
        bent[at // 8] ^= 1 << at % 8
        yield f"bit {at}", bytes(bent)
    for length in range(0, len(raw), every):
        yield f"cut {length}", raw[:length]


def letters(s: Siege) -> Iterator[tuple[str, str, bytes]]:
    """One of each kind that would be obeyed now: what it is, its topic, its bytes."""
    for kind in (Kind.PLAN, Kind.CONFIG, Kind.ORDER, Kind.ACK, Kind.KEYS, Kind.HEAD):
        letter = s.letter(kind, is_evil=kind not in {Kind.ORDER, Kind.ACK})  # nor off, nor into another hour
        yield kind.name.lower(), letter.topic, letter.payload
    spoken = s.letter(Kind.ALERTS)
    words = wire.AlertSetBody(alerts=(s.alert("evil-words", text="Lũ về, bà con sơ tán.", drill=True),))
    yield "alerts", spoken.topic, spoken.but(body=words.encode()).payload
    brief = s.letter(Kind.ALERTS)
    few = encode_alert_set(wire.AlertSetBody(alerts=(s.alert("evil-brief", drill=True),)))
    assert few[:1] != b"{"
    yield "alerts, brief", brief.topic, brief.but(body=few).payload
    raw = frames.pack(s.batch(), s.voice.key, STREAM)
    yield "audio", str(topics.StreamAudio(STREAM)), raw
    gone = s.letter(Kind.KEYS).but(signer=s.authority, target=PATH[1])
    yield "revocations", gone.topic, gone.but(body=s.revocation_list(s.revocations + 1, s.weak).encode()).payload


async def down(s: Siege, tally: Tally, every: int) -> None:
    """Everything the server says."""
    await s.begin()
    s.answers = False
    s.question = None
    while s.question is None:
        await s.pass_s(0.5)
    await s.head_good()
    for name, topic, payload in letters(s):
        before = s.stance()
        for what, raw in spoilt(payload, every):
            (tally.bits if what.startswith("bit") else tally.cuts)[name] += 1
            try:
                counted = await s.deliver(topic, raw)
            except Exception as error:  # noqa: BLE001  what is looked for
                tally.crashed.append(f"{name} {what}: {error!r}")
                continue
            is_silent = (
                name in {"keys", "revocations"} and not raw
            )  # it says nothing of any key: there is nothing to refuse
            if s.stance() != before or not (counted or is_silent):
                tally.accepted.append(f"{name} {what}: {dict(counted)}")
        if not await is_obeyed(s, name, topic, payload):
            tally.unproved.append(name)
        if name == "plan":  # the relay must be on the air again for what follows
            await s.plan_good()
            await s.head_good()
    await s.end()


async def is_obeyed(s: Siege, name: str, topic: str, payload: bytes) -> bool:
    """Give the whole message, and look. What was said of a key shows in its use."""
    before = s.stance()
    counted = await s.deliver(topic, payload)
    if name == "keys":
        one = s.letter(Kind.CONFIG).but(signer=s.stranger)
        counted = await s.deliver(one.topic, one.payload)
    if name == "revocations":
        one = s.letter(Kind.CONFIG).but(signer=s.weak)
        return await s.deliver(one.topic, one.payload) == {"revoked_key": 1}
    return not counted and s.stance() != before


def up(tally: Tally, every: int) -> None:
    """What a node says: a report, signed; a status and a question, which are not."""
    key = DeviceKey("11" * 32)
    body = wire.ReportBody(
        boot_id="b" * 16,
        sequence=7,
        kind=wire.ReportKind.FINISHED,
        entry_id="schedule@1",
        segment_start_ms=1_790_000_000_000,
        at_ms=1_790_000_000_000,
        heard_ms=180_000,
        source=SourceKind.RECORDED,
        asset="ab" * 32,
        line=3,
        previous="cd" * 32,
    )
    raw = key.seal_report(NODE, body, 1_790_000_000_000)
    refused: Counter[str] = Counter()
    for what, bent in spoilt(raw, every):
        (tally.bits if what.startswith("bit") else tally.cuts)["report"] += 1
        try:
            believed = server.believe_report(server.SignedReport(NODE, bent), key.public, refused)
        except Exception as error:  # noqa: BLE001  what is looked for
            tally.crashed.append(f"report {what}: {error!r}")
            continue
        if believed is not None:
            tally.accepted.append(f"report {what}")
    if server.believe_report(server.SignedReport(NODE, raw), key.public, refused) is None:
        tally.unproved.append("report")
    status = wire.StatusBody(
        link=wire.Link.ONLINE,
        boot_id="b",
        sent_ms=1_790_000_000_000,
        clock=wire.ClockQuality(source=wire.ClockSource.SERVER, uncertainty_ms=1.5, offset_ms=-3.25),
        alerts=(wire.AlertProgress(alert_id="a", rounds=2, is_sounding=True),),
        due=(wire.ItemReadiness(entry_id="e", start_ms=1, ready=True),),
        refusals={"signature": 3},
    )
    question = wire.TimeQuestionBody(nonce="0123456789abcdef", sent_ns=42)
    readers = (
        ("status (not signed)", str(topics.NodeStatus(NODE)), status.encode(), server.read_status),
        ("question (not signed)", str(topics.NodeTime(NODE)), question.encode(), server.read_question),
    )
    for name, topic, whole, read in readers:
        for what, bent in spoilt(whole, every):
            (tally.bits if what.startswith("bit") else tally.cuts)[name] += 1
            try:
                read(topic, bent, refused)
            except Exception as error:  # noqa: BLE001  what is looked for
                tally.crashed.append(f"{name} {what}: {error!r}")
        if read(topic, whole, refused) is None:
            tally.unproved.append(name)


def run(every: int = 1) -> dict[str, Any]:
    """Turn every bit (or every `every`-th) and cut at every byte."""
    began = machine.monotonic()
    tally = Tally()
    room = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  a folder of its own in it
    with tempfile.TemporaryDirectory(prefix="loa-bits-", dir=room) as folder:

        async def story(time: VirtualTime) -> None:
            await down(Siege(time, Path(folder)), tally, every)

        on_virtual_time(story)
    up(tally, every)
    for what in (*tally.accepted, *tally.crashed, *tally.unproved)[:20]:
        print(what, file=sys.stderr)
    attempted = tally.bits.total() + tally.cuts.total()
    kinds = [name for name in tally.bits if "not signed" not in name]
    figures = {
        "attempted": attempted,
        "ok": attempted - len(tally.accepted) - len(tally.crashed),
        "violations": len(tally.accepted) + len(tally.crashed) + len(tally.unproved),
        "bits": dict(tally.bits),
        "cuts": dict(tally.cuts),
        "took_s": round(machine.monotonic() - began, 1),
    }
    bars = [
        bar_of("signed message kinds", len(kinds), "≥ 10", holds=len(kinds) >= 10),
        bar_of("bits and cuts accepted", len(tally.accepted), 0, holds=attempted > 0 and not tally.accepted),
        bar_of("crashes", len(tally.crashed), 0, holds=attempted > 0 and not tally.crashed),
        bar_of("messages not obeyed as they are", len(tally.unproved), 0, holds=not tally.unproved),
    ]
    return {"name": "bit_flips", "figures": figures, "bars": bars}
