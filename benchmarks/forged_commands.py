"""Whoever reaches the channel does not reach the horn: commands that are not to be obeyed, at a real node.

A `SpeakerNode` on virtual time stands under its office (`tests.firmware_sim.siege`). An attack is a message that would
be obeyed but for one thing; it is given to the node as its session would, and the node is let act. It counts as obeyed
if anything changes that an obeyed message changes (plan, configuration, alerts, time, keys, orders, stream), or if its
name is ever heard. It must be refused under the reason that is its own. Between the attacks the office goes on saying
valid things, and each of those must be obeyed.

Held by this: while the signing keys are whole. A message signed by the right key is not forged, however foolish.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time as machine
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.run import bar_of
from simulation.world.time import VirtualTime
from speaker_protocol import FORMAT_VERSION, OLDEST_FORMAT_VERSION, frames, topics
from speaker_protocol import messages as wire
from speaker_protocol.brief import encode_alert_set
from speaker_protocol.rules import BulletinClass, Level
from speaker_protocol.signing import CLOCK_TOLERANCE_MS, EVERYWHERE, Kind, Refusal, key_id_of, parse
from tests.firmware_sim.siege import (
    EVIL,
    GOOD,
    OTHER_NODE,
    OTHER_STREAM,
    OTHER_UNIT,
    PATH,
    STREAM,
    Letter,
    Siege,
    resigned,
    separation,
)
from tests.firmware_sim.station import segment
from tests.firmware_sim.workshop import HOUR_MS, on_virtual_time

ATTACKS: Final = int(os.environ.get("FORGED_COMMANDS", "120000"))
VALID_EACH: Final = 24
"""A valid message after so many attacks."""
STORY_EACH: Final = 3_000
"""A reboot, a power cut, a wiped flash, a clock set back, a move or a new key after so many attacks."""
SECONDS_EACH: Final = 250
"""So many attacks a second: time passes, and the horn is listened to."""
ALL_KINDS: Final = (Kind.PLAN, Kind.CONFIG, Kind.ORDER, Kind.ALERTS, Kind.HEAD, Kind.ACK, Kind.KEYS)
TIMED: Final = (Kind.PLAN, Kind.CONFIG, Kind.ORDER, Kind.ALERTS, Kind.HEAD, Kind.KEYS)
"""An answer is tied to what was asked; neither its order nor its instants matter."""
ORDERED: Final = (Kind.PLAN, Kind.CONFIG, Kind.ORDER, Kind.ALERTS, Kind.HEAD)
BY_UNIT: Final = (Kind.PLAN, Kind.CONFIG, Kind.ORDER, Kind.ALERTS)
PARSED: Final = frozenset({"garbage", "signature", "version", "wrong_kind", "unknown_key", "body"})
"""What a message is refused for that was broken anywhere; a cut or a bit may hit any part of it."""
PAST: Final = frozenset({"older", "expired", "revoked_key", "unknown_key", "unasked_time"})
"""What the past is refused for: it depends on what it was. An order runs out, a key is retired and then forgotten."""


@dataclass(frozen=True)
class Shot:
    """One forged message and the reasons it may be refused for. None: it is harmless, and must change nothing."""

    topic: str
    payload: bytes
    reasons: frozenset[str] | None


Make = Callable[[Siege, Kind], Shot]
CLASSES: Final[dict[str, tuple[tuple[Kind, ...], Make]]] = {}


def attack(name: str, *kinds: Kind) -> Callable[[Make], Make]:
    """Register a class of attack, which may come as any of `kinds`."""

    def enter(make: Make) -> Make:
        CLASSES[name] = (kinds, make)
        return make

    return enter


def shot(letter: Letter, payload: bytes, *reasons: str | Refusal) -> Shot:
    return Shot(letter.topic, payload, frozenset(str(reason) for reason in reasons))


# -- who signs --------------------------------------------------------------------------------------------------------


@attack("a signature of zeros", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    return shot(one, one.wrapped(one.sealed()[:-64] + bytes(64)), Refusal.SIGNATURE)


@attack("another message's signature", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one, other = s.letter(kind), s.letter(kind)
    return shot(one, one.wrapped(one.sealed()[:-64] + other.sealed()[-64:]), Refusal.SIGNATURE)


@attack("signed without saying what it is", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    return shot(one, one.wrapped(resigned(one.sealed(), one.signer.key, b"")), Refusal.SIGNATURE)


@attack("signed as another kind", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    other = s.dice.choice([each for each in Kind if each is not kind])
    return shot(one, one.wrapped(resigned(one.sealed(), one.signer.key, separation(other))), Refusal.SIGNATURE)


@attack("a stranger's key", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    return shot(one, one.wrapped(one.sealed(signed_by=s.stranger)), Refusal.UNKNOWN_KEY)


@attack("a stranger under our name", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    return shot(one, one.wrapped(one.sealed(signed_by=s.stranger, named=one.signer)), Refusal.SIGNATURE)


@attack("the key of a neighbouring commune", *BY_UNIT, Kind.HEAD, Kind.ACK)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    return shot(one, one.wrapped(one.sealed(signed_by=s.neighbour)), Refusal.OUT_OF_SCOPE)


@attack("a key for other kinds", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    wrong = s.commune if kind in {Kind.HEAD, Kind.ACK, Kind.KEYS} else s.server
    if kind is Kind.CONFIG:  # both may: so one that may neither
        return shot(one, one.wrapped(one.sealed(signed_by=s.neighbour)), Refusal.OUT_OF_SCOPE)
    return shot(one, one.wrapped(one.sealed(signed_by=wrong)), Refusal.KIND_NOT_ALLOWED)


@attack("a revoked key", *BY_UNIT)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    return shot(one, one.wrapped(one.sealed(signed_by=s.dice.choice(s.retired[-2:]))), Refusal.REVOKED_KEY)


@attack("a key whose delegation ran out", *BY_UNIT, Kind.HEAD)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    return shot(one, one.wrapped(one.sealed(signed_by=s.late)), Refusal.OUTSIDE_DELEGATION)


@attack("a key whose delegation has not begun", *BY_UNIT, Kind.HEAD)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    return shot(one, one.wrapped(one.sealed(signed_by=s.early)), Refusal.OUTSIDE_DELEGATION)


@attack("an alert for the province by the commune's key", Kind.ALERTS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind).but(target=PATH[1], topic=str(topics.UnitAlert(PATH[1])))
    return shot(one, one.payload, Refusal.OUT_OF_SCOPE)


# -- to whom ----------------------------------------------------------------------------------------------------------


@attack("another's message on our topic", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    others = {Kind.ALERTS: OTHER_UNIT, Kind.KEYS: OTHER_UNIT, Kind.HEAD: OTHER_STREAM}
    one = s.letter(kind).but(target=others.get(kind, OTHER_NODE))
    return shot(one, one.payload, Refusal.WRONG_TARGET)


@attack("our message on a topic nobody asked for", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    family = {Kind.ALERTS: "unit", Kind.KEYS: "unit"}.get(kind, "node")
    names = [OTHER_NODE, OTHER_UNIT, "#", "a/b/c/d", ""]
    topic = f"loa/1/{family}/{s.dice.choice(names)}/{one.topic.rpartition('/')[2]}"
    return Shot(topic, one.payload, frozenset({"topic"}))


@attack("a message of another kind on our topic", *BY_UNIT, Kind.ACK)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    other = s.letter(s.dice.choice([each for each in BY_UNIT if each is not kind]))
    return shot(one, one.wrapped(other.sealed()), Refusal.WRONG_KIND)


@attack("another kind, its name rewritten", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    other = s.letter(s.dice.choice([each for each in ALL_KINDS if each is not kind])).sealed()
    return shot(one, one.wrapped(other[:1] + bytes([kind]) + other[2:]), Refusal.SIGNATURE)


@attack("the head of a stream for another place", Kind.HEAD)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    one = one.but(body=s.head_body(s.evil_voice, scope=(OTHER_UNIT,)).encode())
    return shot(one, one.payload, Refusal.OUT_OF_SCOPE)


# -- when and in which order ------------------------------------------------------------------------------------------


@attack("expired", *TIMED)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    one = one.but(expires_ms=one.issued_ms - s.dice.choice((1_000, 60_000, 400 * 24 * HOUR_MS)))
    return shot(one, one.payload, Refusal.EXPIRED)


@attack("from the future", *TIMED)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    ahead_ms = CLOCK_TOLERANCE_MS + s.dice.choice((1_000, HOUR_MS, 1 << 40))
    one = one.but(issued_ms=one.issued_ms + ahead_ms, expires_ms=one.expires_ms + ahead_ms)
    return shot(one, one.payload, Refusal.FROM_THE_FUTURE)


@attack("a number below the one obeyed", *ORDERED)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    return shot(one, one.but(sequence=s.obeyed(kind)[1] - 1).payload, Refusal.OLDER)


@attack("the same number with another body", *ORDERED)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    epoch, sequence = s.obeyed(kind)
    return shot(one, one.but(epoch=epoch, sequence=sequence).payload, Refusal.CONFLICTING)


@attack("a lower epoch", *ORDERED)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    return shot(one, one.but(epoch=0, sequence=one.sequence + 1_000_000).payload, Refusal.OLDER)


@attack("a message of the past, sent again", Kind.PLAN)
def _(s: Siege, kind: Kind) -> Shot:
    del kind
    topic, payload = s.dice.choice(s.past)
    return Shot(topic, payload, PAST)


@attack("the very same message again", *BY_UNIT)
def _(s: Siege, kind: Kind) -> Shot:
    topic, payload = s.latest(kind)
    envelope = parse(wire.split_plan(payload)[0] if kind is Kind.PLAN else payload)
    return Shot(topic, payload, None if s.time.now_ms() < envelope.expires_ms else frozenset({str(Refusal.EXPIRED)}))


# -- broken -----------------------------------------------------------------------------------------------------------


@attack("a version there is not", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    versions = [number for number in range(256) if not OLDEST_FORMAT_VERSION <= number <= FORMAT_VERSION]
    raw = bytes([s.dice.choice(versions)]) + one.sealed()[1:]
    return shot(one, one.wrapped(resigned(raw, one.signer.key, separation(kind))), Refusal.VERSION)


@attack("cut off", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    payload = one.payload
    least = (
        1 if kind is Kind.KEYS else 0
    )  # no keys at all are a topic that was emptied: nothing is said, nothing refused
    return shot(one, payload[: s.dice.randrange(least, len(payload))], *PARSED)


@attack("cut off inside, its frame mended", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    envelope = one.sealed()
    return shot(one, one.wrapped(envelope[: s.dice.randrange(len(envelope))]), Refusal.GARBAGE, Refusal.SIGNATURE)


@attack("something behind it", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    return shot(one, one.wrapped(one.sealed() + s.dice.randbytes(s.dice.randrange(1, 40))), Refusal.SIGNATURE)


@attack("one bit turned", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    raw = bytearray(one.payload)
    raw[s.dice.randrange(len(raw))] ^= 1 << s.dice.randrange(8)
    return shot(one, bytes(raw), *PARSED)


@attack("noise", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    return shot(one, s.dice.randbytes(s.dice.randrange(1, 600)), *PARSED)


@attack("nothing at all", *BY_UNIT, Kind.HEAD, Kind.ACK)
def _(s: Siege, kind: Kind) -> Shot:
    return shot(s.letter(kind), b"", Refusal.GARBAGE)


@attack("a body with one key twice", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    first = one.body[1:].split(b",")[0].rstrip(b"}")
    return shot(one, one.but(body=one.body[:-1] + b"," + first + b"}").payload, Refusal.BODY)


@attack("a body with something behind it", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    return shot(one, one.but(body=one.body + s.dice.choice((b"{}", b"x", b"\0", one.body))).payload, Refusal.BODY)


@attack("a body that is none", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    bodies = (
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 3_000,
        b"{}" if kind is not Kind.ALERTS else b"[{}]",
        b"NaN",
    )
    return shot(one, one.but(body=s.dice.choice(bodies)).payload, Refusal.BODY)


# -- plans ------------------------------------------------------------------------------------------------------------


@attack("another plan under the signed head", Kind.PLAN)
def _(s: Siege, kind: Kind) -> Shot:
    one, other = s.letter(kind, is_evil=False), s.letter(kind)
    return shot(one, one.but(packed=other.packed).payload, Refusal.BODY)


def _planned(s: Siege, packed: bytes, signer: Any = None, segments: tuple[wire.PlanSegment, ...] = ()) -> Letter:
    one = s.letter(Kind.PLAN)
    now_ms = s.time.now_ms()
    packed = packed or wire.pack_plan_body(wire.PlanBody(segments=segments))
    head = wire.plan_head(packed, valid_from_ms=now_ms - 1, valid_until_ms=now_ms + HOUR_MS)
    return one.but(packed=packed, body=head.encode(), signer=signer or one.signer)


@attack("a plan that swells", Kind.PLAN)
def _(s: Siege, kind: Kind) -> Shot:
    del kind
    one = _planned(s, BOMB)
    return shot(one, one.payload, Refusal.BODY)


@attack("a plan with something behind its end", Kind.PLAN)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    return shot(one, one.payload + s.dice.randbytes(5), Refusal.BODY)


@attack("a plan that speaks over itself", Kind.PLAN)
def _(s: Siege, kind: Kind) -> Shot:
    del kind
    now_ms = s.time.now_ms()
    pieces = (segment(f"{EVIL}-a", now_ms, 9.0, asset=s.sha), segment(f"{EVIL}-b", now_ms + 5_000, 9.0, asset=s.sha))
    one = _planned(s, b"", segments=pieces)
    return shot(one, one.payload, Refusal.BODY)


# -- alerts -----------------------------------------------------------------------------------------------------------


@attack("an alert by a key that may only say what is usual", Kind.ALERTS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind).but(signer=s.weak)
    alert = s.alert(f"{EVIL}-{s.count}", klass=s.dice.choice(tuple(BulletinClass)))
    one = one.but(body=encode_alert_set(wire.AlertSetBody(alerts=(alert,))))
    return shot(one, one.payload, Refusal.CLASS_TOO_HIGH)


@attack("a drill turned into the real thing", Kind.ALERTS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    drill = wire.AlertSetBody(alerts=(s.alert(f"{EVIL}-{s.count}", drill=True),))
    raw = one.but(body=drill.encode()).sealed()
    return shot(one, raw.replace(b'"drill":true', b'"drill":null'), Refusal.SIGNATURE)


@attack("a drill in the brief form turned into the real thing", Kind.ALERTS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    flags = [
        encode_alert_set(wire.AlertSetBody(alerts=(s.alert(f"{EVIL}-{s.count}", drill=d),))) for d in (True, False)
    ]
    raw = one.but(body=flags[0]).sealed()
    return shot(one, raw.replace(flags[0], flags[1]), Refusal.SIGNATURE)


# -- answers ----------------------------------------------------------------------------------------------------------


@attack("the time, which nobody asked", Kind.ACK)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    answer = s.answer(ahead_ms=HOUR_MS, nonce=f"{s.dice.getrandbits(64):016x}")
    return shot(one, one.but(body=answer.encode()).payload, "unasked_time")


@attack("the time, to another question", Kind.ACK)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    answer = s.answer(ahead_ms=HOUR_MS, asked_ns=s.dice.randrange(1 << 60))
    return shot(one, one.but(body=answer.encode()).payload, "unasked_time")


@attack("reports of another life, acknowledged", Kind.ACK)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    body = wire.ReportAckBody(boot_id=f"{s.dice.getrandbits(64):016x}", sequences=tuple(range(1, 400)))
    return Shot(one.topic, one.but(body=body.encode()).payload, None)


# -- keys -------------------------------------------------------------------------------------------------------------


@attack("a delegation by whom the root did not ask", Kind.KEYS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    by = s.dice.choice((s.commune, s.server, s.neighbour, s.weak))
    return shot(one, one.wrapped(one.sealed(signed_by=by)), Refusal.KIND_NOT_ALLOWED)


@attack("a delegation for more than one's own place", Kind.KEYS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    wide = s.delegation(s.stranger, PATH[1], ("PLAN", "ALERTS"))
    one = one.but(body=wide.encode(), target=PATH[1], topic=str(topics.UnitKeys(PATH[1])))
    return shot(one, one.wrapped(one.sealed(signed_by=s.commune)), Refusal.KIND_NOT_ALLOWED)


@attack("an authority that speaks itself", *BY_UNIT, Kind.HEAD, Kind.ACK)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    return shot(one, one.wrapped(one.sealed(signed_by=s.authority)), Refusal.KIND_NOT_ALLOWED)


@attack("an authority that makes another authority", Kind.KEYS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    may = s.dice.choice((("KEYS",), ("KEYS", "PLAN", "ALERTS")))
    one = one.but(body=s.delegation(s.stranger, PATH[0], may).encode(), signer=s.authority)
    return shot(one, one.payload, Refusal.KIND_NOT_ALLOWED)


@attack("an authority that delegates more than its place", Kind.KEYS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    unit = s.dice.choice((OTHER_UNIT, EVERYWHERE))
    one = one.but(body=s.delegation(s.stranger, unit, ("PLAN", "ALERTS")).encode(), signer=s.authority)
    return shot(one, one.payload, Refusal.OUT_OF_SCOPE)


@attack("a delegation by an authority that is over", Kind.KEYS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind).but(signer=s.gone_authority)
    return shot(one, one.payload, Refusal.OUTSIDE_DELEGATION)


@attack("an older list of revocations", Kind.KEYS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    body = s.revocation_list(s.dice.randrange(1, s.revocations), s.commune)
    one = one.but(body=body.encode(), signer=s.authority, target=PATH[1])
    return shot(one, one.payload, Refusal.OLDER)


@attack("the same list of revocations with other names", Kind.KEYS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    one = one.but(body=s.revocation_list(None, s.commune).encode(), signer=s.authority, target=PATH[1])
    return shot(one, one.payload, Refusal.CONFLICTING)


@attack("a revocation by whom the root did not ask", Kind.KEYS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    body = wire.RevocationBody(key_id=key_id_of(s.commune.public).hex(), at_ms=1)
    one = one.but(body=body.encode(), signer=s.dice.choice((s.authority, s.commune, s.server)))
    return shot(one, one.payload, Refusal.KIND_NOT_ALLOWED)


@attack("floors nobody asked for", Kind.ACK)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    mute = tuple(
        wire.Floor(topic=s.topic_of(each), epoch=(1 << 32) - 1, sequence=(1 << 53) - 1)
        for each in (*BY_UNIT, Kind.HEAD)
    )
    body = wire.FloorsBody(nonce=f"{s.dice.getrandbits(64):016x}", floors=mute, rl_ver=s.dice.choice((0, 1 << 50)))
    return shot(one, one.but(body=body.encode()).payload, "unasked_floors")


@attack("a field that must be understood and is not", *ALL_KINDS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    body = one.body[:-1] + b',"loudest":true,"crit":["loudest"]}'
    return shot(one, one.but(body=body).payload, Refusal.CRITICAL_FIELD)


@attack("hundreds of statements about keys", Kind.KEYS)
def _(s: Siege, kind: Kind) -> Shot:
    one = s.letter(kind)
    many = wire.join_keys((b"",) * s.dice.randrange(wire.MAX_KEY_STATEMENTS, 2_000)) + one.payload
    return shot(one, many, Refusal.GARBAGE)


# -- audio ------------------------------------------------------------------------------------------------------------

_AUDIO: Final = str(topics.StreamAudio(STREAM))


@attack("audio by another key", Kind.HEAD)
def _(s: Siege, kind: Kind) -> Shot:
    del kind
    key = s.dice.choice((s.evil_voice, s.commune, s.server, s.stranger)).key
    return Shot(_AUDIO, frames.pack(s.batch(), key, STREAM), frozenset({"audio_signature"}))


@attack("audio of another stream", Kind.HEAD)
def _(s: Siege, kind: Kind) -> Shot:
    del kind
    return Shot(_AUDIO, frames.pack(s.batch(), s.voice.key, OTHER_STREAM), frozenset({"audio_signature"}))


@attack("audio, changed on its way", Kind.HEAD)
def _(s: Siege, kind: Kind) -> Shot:
    del kind
    raw = bytearray(frames.pack(s.batch(), s.voice.key, STREAM))
    raw[s.dice.randrange(len(raw))] ^= 1 << s.dice.randrange(8)
    return Shot(_AUDIO, bytes(raw), frozenset({"audio_signature"}))


@attack("audio, cut off", Kind.HEAD)
def _(s: Siege, kind: Kind) -> Shot:
    del kind
    raw = frames.pack(s.batch(), s.voice.key, STREAM)
    return Shot(_AUDIO, raw[: s.dice.randrange(len(raw))], frozenset({"audio_signature", "audio_garbage"}))


@attack("audio of an older head", Kind.HEAD)
def _(s: Siege, kind: Kind) -> Shot:
    del kind
    batch = s.batch(epoch=s.server.epoch - 1)
    return Shot(_AUDIO, frames.pack(batch, s.voice.key, STREAM), frozenset({"audio_older"}))


BOMB: Final = zlib.compress(b'{"segments":[],"x":"' + b" " * (wire.MAX_PLAN_BODY_BYTES + 1) + b'"}', 9)

# -- stories: what a node forgets, and what it does not ---------------------------------------------------------------


@dataclass
class Tally:
    """What a siege showed."""

    tried: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    obeyed: list[str] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)
    valid: Counter[str] = field(default_factory=Counter)
    ignored: list[str] = field(default_factory=list)


async def fire(s: Siege, tally: Tally, name: str, one: Shot) -> None:
    """Give the node one forged message and judge what became of it."""
    before = s.stance()
    counted = await s.deliver(one.topic, one.payload)
    tally.tried[name] += 1
    for reason in counted:
        tally.refused[reason] += 1
    if (after := s.stance()) != before:
        changed = [(was, now) for was, now in zip(before, after, strict=True) if was != now]
        tally.obeyed.append(f"{name}: {one.topic} changed {changed}")
    if one.reasons is None:
        if counted:
            tally.misnamed.append(f"{name}: {dict(counted)}, expected nothing")
    elif not counted or (counted.total() > 1 and not one.topic.endswith("/keys")) or not counted.keys() <= one.reasons:
        tally.misnamed.append(f"{name}: {dict(counted)}, expected one of {sorted(one.reasons)}")


async def say(tally: Tally, name: str, word: Callable[[], Awaitable[bool]]) -> None:
    """Let the office say something valid; the node must obey it."""
    tally.valid[name] += 1
    if not await word():
        tally.ignored.append(name)


async def again(s: Siege, tally: Tally, name: str, reasons: frozenset[str], most: int = 60) -> None:
    """Everything that was obeyed once, sent again by whoever recorded it."""
    for topic, payload in s.dice.sample(s.past, min(most, len(s.past))):
        await fire(s, tally, name, Shot(topic, payload, reasons))


async def _after_reboot(s: Siege, tally: Tally) -> None:
    await s.reboot()
    await again(s, tally, "the past, after a reboot", PAST)


async def _after_power_cut(s: Siege, tally: Tally) -> None:
    await s.reboot(dark_s=s.dice.choice((0.5, 30.0)))
    await again(s, tally, "the past, after a power cut", PAST)


async def _after_wipe(s: Siege, tally: Tally) -> None:
    await s.wipe()
    await again(s, tally, "the past, after a factory reset", PAST | {"resync"})
    await say(tally, "everything, after a factory reset", s.all_by_unit_good)


async def _after_clock_rollback(s: Siege, tally: Tally) -> None:
    by_ms = s.dice.choice((HOUR_MS, 24 * HOUR_MS, 3_650 * 24 * HOUR_MS))
    s.node.box.clock.jump(-by_ms)
    await again(s, tally, "the past, after the clock was set back", PAST)
    s.node.box.clock.jump(by_ms)
    await s.pass_s(12)
    await s.head_good()


async def _after_move(s: Siege, tally: Tally) -> None:
    """The node hangs in another commune now; the server's key says so."""
    before, server = s.commune, s.server
    away = s.letter(Kind.CONFIG, is_evil=False)
    body = wire.decode(wire.NodeConfigBody, away.body)
    moved = away.but(signer=server, body=body.model_copy(update={"path": (OTHER_UNIT, PATH[1])}).encode())
    moved = moved.but(sequence=s.ahead(server), epoch=server.epoch)
    await say(tally, "config (move)", lambda: s.said(moved, lambda: s.firmware.gate.path[0] == OTHER_UNIT))
    for _ in range(10):
        for kind in (Kind.PLAN, Kind.CONFIG, Kind.ORDER):
            one = s.letter(kind).but(signer=before)
            await fire(s, tally, "the old commune, after a move", shot(one, one.payload, Refusal.OUT_OF_SCOPE))
        one = s.letter(Kind.ALERTS)
        await fire(s, tally, "the old commune, after a move", Shot(one.topic, one.payload, frozenset({"topic"})))
    back = moved.but(sequence=s.ahead(server), body=body.encode())
    await say(tally, "config (move)", lambda: s.said(back, lambda: s.firmware.gate.path == PATH))
    await s.pass_s(1)
    await say(tally, "head", s.head_good)


async def _after_rotation(s: Siege, tally: Tally) -> None:
    """A new key; what the old one said, and says now, is nobody's word."""
    old = s.commune
    recorded = list(s.past)
    await say(tally, "new key", s.rotation_good)
    for kind in (*BY_UNIT, *BY_UNIT):
        one = s.letter(kind).but(signer=old)
        await fire(s, tally, "the old key, after a rotation", shot(one, one.payload, Refusal.REVOKED_KEY))
    for topic, payload in s.dice.sample(recorded, min(20, len(recorded))):
        await fire(s, tally, "the old key, after a rotation", Shot(topic, payload, PAST))


async def _delegation_replayed(s: Siege, tally: Tally) -> None:
    """The delegation of a key that is revoked by now."""
    if not s.retired:
        return
    gone = s.retired[-1]
    for _ in range(5):
        topic, payload = s.dice.choice([one for one in s.past if one[0].endswith("/keys")])
        before = s.stance()
        await s.deliver(topic, payload)
        tally.tried["a revoked key's delegation, sent again"] += 1
        if s.stance() != before:
            tally.obeyed.append("a revoked key's delegation, sent again")
        one = s.letter(Kind.PLAN).but(signer=gone)
        reasons = shot(one, one.payload, Refusal.REVOKED_KEY)
        await fire(s, tally, "a revoked key's delegation, sent again", reasons)


async def _class_above_key(s: Siege, tally: Tally) -> None:
    """A plan whose key may only say what is usual: what is graver stays silent, and is counted."""
    for klass, level in (
        (BulletinClass.EMERGENCY, Level.EMERGENCY_COMMUNE),
        (BulletinClass.PRIORITY, Level.PRIORITY_COMMUNE),
    ):
        graver = (segment(f"{EVIL}-{s.count}", s.time.now_ms() - 1, 600.0, asset=s.sha, klass=klass, level=level),)
        one = _planned(s, b"", signer=s.weak, segments=graver)
        one = one.but(sequence=s.ahead(s.weak))
        counted = await s.deliver(one.topic, one.payload)
        tally.tried["a class above the key's"] += 1
        if counted != Counter({"class_too_high": 1}):
            tally.misnamed.append(f"a class above the key's: {dict(counted)}")
        await s.pass_s(7)
        await say(tally, "plan", s.plan_good)
    await say(tally, "head", s.head_good)


def _is_config(s: Siege, body: wire.NodeConfigBody) -> bool:
    return s.firmware.situation.config == body


async def _harm_limits(s: Siege, tally: Tally) -> None:
    """What is well signed, and against the node's own limits: quiet hours, minutes, a dead source."""
    offset_min = 420
    minute = (s.time.now_ms() // 60_000 + offset_min) % 1440
    limits: dict[str, dict[str, Any]] = {
        "quiet_hours": {"quiet_from_min": (minute - 5) % 1440, "quiet_to_min": (minute + 120) % 1440},
        "day_minutes": {"max_day_min": 0},
        "session_minutes": {"max_session_min": 0},
    }
    for reason, limit in limits.items():
        letter = s.letter(Kind.CONFIG, is_evil=False)
        body = wire.decode(wire.NodeConfigBody, letter.body).model_copy(update=limit)
        told = letter.but(body=body.encode())
        await say(tally, "config", partial(s.said, told, partial(_is_config, s, body)))
        loud = s.letter(Kind.PLAN)
        before = s.ear.why.copy()
        await s.deliver(loud.topic, loud.payload)
        tally.tried["against the node's own limits"] += 1
        await s.pass_s(7)
        whys = {why.partition(" ")[2] for why in s.ear.why - before if why.startswith(EVIL)}
        if whys != {reason}:
            tally.misnamed.append(f"against the node's own limits: {sorted(whys)}, expected {reason}")
        await say(tally, "plan", s.plan_good)
    await say(tally, "config", s.config_good)
    await say(tally, "head", s.head_good)


async def _lease_over(s: Siege, tally: Tally) -> None:
    """The head's lease has run out: what the stream's own key still says is not sounded."""
    await s.pass_s(LEASE_OVER_S)
    name = "audio after the lease"
    for _ in range(5):
        await s.deliver(_AUDIO, frames.pack(s.batch(), s.voice.key, STREAM))
        tally.tried[name] += 1
    before = s.ear.heard.copy()
    await s.pass_s(3)
    sounded = [entry for entry in (s.ear.heard - before) if not entry.endswith("-tune")]
    if sounded:
        tally.obeyed.append(f"{name}: {sounded}")
    await say(tally, "head", s.head_good)


LEASE_OVER_S: Final = 14
STORIES: Final = (
    _after_reboot,
    _after_power_cut,
    _after_wipe,
    _after_clock_rollback,
    _after_move,
    _after_rotation,
    _delegation_replayed,
    _class_above_key,
    _harm_limits,
    _lease_over,
)


# -- the siege --------------------------------------------------------------------------------------------------------


def names(s: Siege) -> Iterator[str]:
    """Each class as often as any other, in an order of chance."""
    while True:
        order = list(CLASSES)
        s.dice.shuffle(order)
        yield from order


async def besiege(s: Siege, attacks: int, *, story_each: int = STORY_EACH) -> Tally:
    """Attack the node so often, with valid messages and stories between."""
    tally = Tally()
    await s.begin()
    await say(tally, "new key", s.rotation_good)
    valid = {
        "plan": s.plan_good,
        "config": s.config_good,
        "alerts": s.alerts_good,
        "order": s.order_good,
        "head": s.head_good,
        "audio": s.batch_good,
        "time": s.time_good,
    }
    for word, how in valid.items():
        await say(tally, word, how)
        await say(tally, word, how)
    stories = 0
    number = 0
    for name in names(s):
        kinds, make = CLASSES[name]
        await fire(s, tally, name, make(s, s.dice.choice(kinds)))
        number = tally.tried.total()
        if number >= attacks and stories >= len(STORIES):
            break
        count = sum(tally.tried[each] for each in CLASSES)
        if count % VALID_EACH == 0:
            word = s.dice.choice(tuple(valid))
            await say(tally, word, valid[word])
        if count % SECONDS_EACH == 0:
            await s.pass_s(1)
            await say(tally, "head", s.head_good)
        if count % story_each == 0:
            await STORIES[stories % len(STORIES)](s, tally)
            stories += 1
    await s.pass_s(10)
    await s.end()
    for entry in s.heard:
        if entry != GOOD:
            tally.obeyed.append(f"heard: {entry} for {s.heard[entry]} s")
    return tally


def run(attacks: int = ATTACKS, *, story_each: int = STORY_EACH, seed: int = 1) -> dict[str, Any]:
    """Besiege one node."""
    began = machine.monotonic()
    with tempfile.TemporaryDirectory(prefix="loa-siege-", dir=_memory()) as folder:

        async def story(time: VirtualTime) -> tuple[Tally, Counter[str]]:
            s = Siege(time, Path(folder), seed=seed)
            return await besiege(s, attacks, story_each=story_each), s.heard

        tally, heard = on_virtual_time(story)
    for what in (*tally.obeyed, *tally.misnamed, *(f"not obeyed: {name}" for name in tally.ignored))[:20]:
        print(what, file=sys.stderr)
    attempted, valid = tally.tried.total(), tally.valid.total()
    violations = len(tally.obeyed) + len(tally.misnamed) + len(tally.ignored)
    figures = {
        "attempted": attempted,
        "ok": attempted - len(tally.obeyed) - len(tally.misnamed),
        "violations": violations,
        "classes": len(tally.tried),
        "valid_attempted": valid,
        "valid_obeyed": valid - len(tally.ignored),
        "refusals": dict(sorted(tally.refused.items())),
        "heard_s": dict(heard),
        "per_class": dict(sorted(tally.tried.items())),
        "took_s": round(machine.monotonic() - began, 1),
    }
    expected_valid = attempted // VALID_EACH
    bars = [
        bar_of("forged commands tried", attempted, f"≥ {attacks}", holds=attempted >= attacks),
        bar_of("attack classes", len(tally.tried), "≥ 30", holds=len(tally.tried) >= 30),
        bar_of("forged commands obeyed", len(tally.obeyed), 0, holds=attempted > 0 and not tally.obeyed),
        bar_of("refused under another's reason", len(tally.misnamed), 0, holds=attempted > 0 and not tally.misnamed),
        bar_of(
            "valid commands obeyed",
            f"{valid - len(tally.ignored)} of {valid}",
            f"all of ≥ {expected_valid}",
            holds=valid >= expected_valid and not tally.ignored,
        ),
        bar_of("seconds of the valid programme heard", heard[GOOD], "> 0", holds=heard[GOOD] > 0),
    ]
    return {"name": "forged_commands", "figures": figures, "bars": bars}


def _memory() -> str | None:
    """Where files cost nothing: a flash that is synced a hundred thousand times is not what is measured here."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  a folder of its own in it
