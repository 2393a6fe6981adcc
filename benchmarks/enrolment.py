"""Enrolment: whoever comes with a wrong, late, used or stolen claim code stays outside, and every right box gets in.

`LOA_ENROLMENTS` (600) boxes are expected; round each of them wrong codes, other boxes' requests, replays and late
comers are tried, and the right box in between. Then races of copied boxes for one label and of many boxes for one
token (a store on disk, real threads); copied nodes that take turns or tell a second log, and honest ones that lose
power (virtual time); and boxes hung on each other's poles, heard by the digits their clips say.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select

from benchmarks.run import bar_of
from broadcast_server.control import devices, enrolment, fleet
from broadcast_server.control.access import OPERATOR, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.enrolment import Claim, Enrol, NewEnrolmentToken
from broadcast_server.control.fleet import NodeQuery
from broadcast_server.domain.errors import BroadcastError, Refused
from broadcast_server.store.tables import NodeRow
from broadcast_server.store.words import NodeState, Role
from broadcast_server.supervise import ThreadExecutor
from speaker_protocol import claims
from speaker_protocol.messages import Link
from tests.playout.rig import Room, Speaker, a_room
from tests.support.boxes import Box, a_box, approve, expect, heard, install, spoken
from tests.support.clock import FakeClock
from tests.support.database import a_store
from tests.support.desk import a_bare_desk, a_desk_of
from tests.support.places import YEN_THANH, a_country, somebody
from tests.support.village import DONG, at

BOXES: Final = 600
FLAGGED_WITHIN_S: Final = 60.0


@dataclass(slots=True)
class Tally:
    """What was tried, and what came out otherwise than it should."""

    attempted: int = 0
    ok: int = 0
    wrong: list[str] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
    answers: set[str] = field(default_factory=set)

    def note(self, way: str, fault: str | None = None) -> None:
        """One try of a way; `fault`: what was wrong with its outcome."""
        self.attempted += 1
        self.ways[way] += 1
        if fault is None:
            self.ok += 1
        else:
            self.wrong.append(f"{way}: {fault}")


def run() -> dict[str, Any]:
    """See `benchmarks.run`."""
    return asyncio.run(measure(int(os.environ.get("LOA_ENROLMENTS", str(BOXES)))))


async def measure(boxes: int, *, seed: int = 1) -> dict[str, Any]:
    """All of it, in proportion to so many boxes."""
    chance = random.Random(seed)
    door, races, poles, twins = Tally(), Tally(), Tally(), Tally()
    async with a_bare_desk() as desk:
        await a_country(desk)
        valid = await besiege(desk, door, boxes, chance)
        await hang(desk, poles, max(2, boxes // 10))
    with tempfile.TemporaryDirectory(prefix="loa-enrolment-") as folder:
        await race(Path(folder), races, max(2, boxes // 15))
        worst_s = await copied(Path(folder), twins, max(2, boxes // 15), chance)
    tallies = {"door": door, "races": races, "poles": poles, "copies": twins}
    violations = [f"{name}: {one}" for name, tally in tallies.items() for one in tally.wrong]
    attempted = sum(tally.attempted for tally in tallies.values())
    outside, least = door.attempted - door.ways["the right box"], min(5_000, 9 * boxes)
    return {
        "name": "enrolment",
        "figures": {
            "attempted": attempted,
            "ok": sum(tally.ok for tally in tallies.values()),
            "violations": len(violations),
            "first_violations": violations[:5],
            "ways": {name: dict(tally.ways) for name, tally in tallies.items()},
            "flagged_within_s_max": worst_s,
        },
        "bars": [
            bar_of("wrong, late, used, swapped and replayed claims tried", outside, least, holds=outside >= least),
            bar_of("of them let in", len(door.wrong), 0, holds=not door.wrong and door.attempted > 0),
            bar_of("right boxes between them let in", valid, boxes, holds=valid == boxes),
            bar_of("different answers to what was refused", len(door.answers), 1, holds=len(door.answers) == 1),
            bar_of("races and tokens won more than once", len(races.wrong), 0, holds=not races.wrong),
            bar_of("copies not flagged, or honest ones flagged", len(twins.wrong), 0, holds=not twins.wrong),
            bar_of("flagged within, s (virtual)", worst_s, FLAGGED_WITHIN_S, holds=worst_s <= FLAGGED_WITHIN_S),
            bar_of("boxes on each other's poles let sound", len(poles.wrong), 0, holds=not poles.wrong),
        ],
    }


# -- the door ---------------------------------------------------------------------------------------------------------


async def besiege(desk: Desk, tally: Tally, boxes: int, chance: random.Random) -> int:
    """Tries round every box, and the box itself; how many right ones came in."""
    assert isinstance(desk.clock, FakeClock)
    legitimate: set[str] = set()
    last: Box | None = None
    for number in range(1, boxes + 1):
        box = a_box(number)
        key = claims.claim_key(box.serial, box.code)
        claim_id = await expect(desk, OPERATOR, box, YEN_THANH)
        for _ in range(4):
            way, claim = _wrong(box, key, last, chance)
            await _refused(desk, tally, way, claim)
        if number % 5 == 0:
            await desk.clock.advance(enrolment.OPEN_FOR.total_seconds())
            await _refused(desk, tally, "late", box.claim(key=key))
            await enrolment.open_window(desk, OPERATOR, claim_id)
        if number % 5 == 1:
            for _ in range(enrolment.WRONG_TRIES):
                await _refused(desk, tally, "until it closes", box.claim(key=chance.randbytes(claims.KEY_BYTES)))
            await _refused(desk, tally, "right, after five wrong", box.claim(key=key))
            await enrolment.open_window(desk, OPERATOR, claim_id)
        right = box.claim(key=key)
        try:
            told = await enrolment.enrol_by_claim(desk, right)
        except BroadcastError as error:
            tally.note("the right box", str(error))
            continue
        legitimate.add(box.public_hex)
        tally.note("the right box", None if told.state is NodeState.PROBATION else told.state)
        await _refused(desk, tally, "replay", right)
        await _refused(
            desk, tally, "replay with another nonce", box.claim(nonce=f"{chance.getrandbits(128):032x}", key=key)
        )
        await _refused(desk, tally, "used code, guessed", box.claim(key=chance.randbytes(claims.KEY_BYTES)))
        await _refused(desk, tally, "used code, other request", replace(right, csr=a_box(boxes + number).csr))
        last = box
    there = await desk.store.read(lambda session: list(session.scalars(select(NodeRow.public_key))))
    for key_hex in there:
        if key_hex not in legitimate:
            tally.note("whoever is inside", key_hex)
    if len(there) != len(legitimate):
        tally.note("whoever is inside", f"{len(there)} nodes of {len(legitimate)} boxes")
    silenced = await fleet.list_nodes(desk, OPERATOR, NodeQuery(state=NodeState.QUARANTINED, limit=boxes))
    for view in silenced:  # a box that asks again is no second box
        tally.note("replay", f"{view.node.serial} was silenced")
    return len(legitimate)


def _wrong(box: Box, key: bytes, last: Box | None, chance: random.Random) -> tuple[str, Claim]:
    other = last or a_box(99_999)
    code = claims.code_of(chance.randbytes(claims.CODE_SIGNS))
    ways: dict[str, Callable[[], Claim]] = {
        "wrong code": lambda: box.claim(key=chance.randbytes(claims.KEY_BYTES)),
        "wrong code, through scrypt": lambda: box.claim(code),
        "request of another key": lambda: replace(box.claim(key=key), csr=other.csr),
        "another nonce": lambda: replace(box.claim(key=key), nonce=f"{chance.getrandbits(128):032x}"),
        "proof of another box": lambda: replace(box.claim(key=key), proof=other.claim(key=key).proof),
        "another box's claim under this serial": lambda: replace(other.claim(), serial=box.serial),
        "flipped proof": lambda: replace(box.claim(key=key), proof=_flipped(box.claim(key=key).proof, chance)),
        "unknown serial": lambda: replace(box.claim(key=key), serial=f"LOA-X{chance.getrandbits(40):010X}"),
        "the code as the key": lambda: box.claim(key=box.code.encode().ljust(claims.KEY_BYTES, b"\0")),
    }
    way = chance.choice(list(ways))
    return way, ways[way]()


def _flipped(proof: str, chance: random.Random) -> str:
    raw = bytearray.fromhex(proof)
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    return raw.hex()


async def _refused(desk: Desk, tally: Tally, way: str, claim: Claim) -> None:
    try:
        told = await enrolment.enrol_by_claim(desk, claim)
    except Refused as refused:
        tally.answers.add(str(refused))
        tally.note(way)
    except BroadcastError as error:
        tally.note(way, f"answered {error}")
    else:
        tally.note(way, f"let in as {told.node_id}")


# -- races ------------------------------------------------------------------------------------------------------------


async def race(folder: Path, tally: Tally, rounds: int) -> None:
    """Many at once for one label, and for one token: on disk, in threads."""
    threads = ThreadExecutor(4, name="race")
    async with a_store(f"sqlite:///{folder / 'race.db'}", executor=threads) as store:
        desk = replace(a_desk_of(store), executor=threads)
        await a_country(desk)
        for number in range(rounds):
            label = a_box(10_000 + number)
            await expect(desk, OPERATOR, label, YEN_THANH)
            copies = [replace(label, number=20_000 + 10 * number + copy) for copy in range(8)]
            won = await _winners(enrolment.enrol_by_claim(desk, copy.claim()) for copy in copies)
            tally.note("copied label", None if won == 1 else f"{won} of 8 came in")
            uses = 1 + number % 4
            token = await enrolment.create_enrolment_token(desk, OPERATOR, NewEnrolmentToken(YEN_THANH, uses))
            keys = [hashlib.sha256(f"{number} {copy}".encode()).hexdigest() for copy in range(10)]
            won = await _winners(enrolment.enrol(desk, Enrol(token.secret, key, "sim", "1")) for key in keys)
            tally.note("token", None if won == uses else f"{won} came in by {uses} uses")
            key = hashlib.sha256(f"one key {number}".encode()).hexdigest()
            token = await enrolment.create_enrolment_token(desk, OPERATOR, NewEnrolmentToken(YEN_THANH, 10))
            won = await _winners(enrolment.enrol(desk, Enrol(token.secret, key, "sim", "1")) for _ in range(6))
            tally.note("one device key at once", None if won == 1 else f"{won} of 6 came in")
    threads.close()


async def _winners(racers: Any) -> int:
    async def one(racer: Awaitable[object]) -> bool:
        try:
            await racer
        except BroadcastError:
            return False
        return True

    return sum(await asyncio.gather(*(one(racer) for racer in racers)))


# -- copies -----------------------------------------------------------------------------------------------------------


async def copied(folder: Path, tally: Tally, count: int, chance: random.Random) -> float:
    """Copied nodes among honest ones; the longest time until one was flagged, in seconds of virtual time."""
    async with a_room(folder / "room") as room:
        turns = [await _a_node(room, f"turns-{number}-n") for number in range(count)]
        forks = [await _a_node(room, f"forks-{number}-n") for number in range(count)]
        honest = [await _a_node(room, f"honest-{number}-n") for number in range(count)]
        began = {node.node_id: room.clock.monotonic() for node in (*turns, *forks)}
        flagged: dict[str, float] = {}
        due = {node.node_id: began[node.node_id] + chance.uniform(0.5, 8.0) for node in turns}
        last = {node.node_id: await _line(node, 1, None, "boot-1") for node in forks}
        forked: set[str] = set()
        for second in range(round(FLAGGED_WITHIN_S) + 5):
            for node in turns:
                if due[node.node_id] <= room.clock.monotonic():
                    node.boot = "boot-copy" if node.boot == "boot-1" else "boot-1"
                    await node.tell_status()
                    due[node.node_id] += chance.uniform(1.0, 8.0)  # the one that was thrown out comes back
            for node in forks:
                if second >= 3 and node.node_id not in forked:
                    forked.add(node.node_id)
                    began[node.node_id] = room.clock.monotonic()
                    await _line(node, 2, last[node.node_id], "boot-1")
                    await _line(node, 2, last[node.node_id], "boot-copy")
            for node in honest:
                if chance.random() < 0.3:  # power that comes and goes, a link that flaps
                    await node.tell_status(link=Link.OFFLINE)
                    node.boot = f"boot-{second}" if chance.random() < 0.7 else node.boot
                    await node.tell_status()
            await room.pass_time(1.0)
            for node_id in await _quarantined(room):
                flagged.setdefault(node_id, room.clock.monotonic() - began[node_id] if node_id in began else -1.0)
        for way, nodes in (("takes turns", turns), ("tells a second log", forks)):
            for node in nodes:
                tally.note(way, None if node.node_id in flagged else f"{node.node_id} was not flagged")
        for node in honest:
            tally.note("honest", f"{node.node_id} was flagged" if node.node_id in flagged else None)
        return round(max(flagged.values(), default=float("inf")), 1)


async def _a_node(room: Room, node_id: str) -> Speaker:
    node = await room.enrol(node_id, f"c1-{DONG}", DONG)
    await node.tell_status()
    return node


async def _line(node: Speaker, line: int, previous: str | None, boot: str) -> str:
    await node.report(
        "started", "schedule@1780300800000", at(9), sequence=line, line=line, previous=previous, boot=boot
    )
    return hashlib.sha256(node.last_report).hexdigest()


async def _quarantined(room: Room) -> list[str]:
    return await room.store.read(
        lambda session: list(session.scalars(select(NodeRow.id).where(NodeRow.state == NodeState.QUARANTINED)))
    )


# -- poles ------------------------------------------------------------------------------------------------------------


async def hang(desk: Desk, tally: Tally, pairs: int) -> None:
    """Pairs of boxes hung crosswise, and pairs hung right; the installers type what they hear below their pole."""
    tech = await somebody(desk, Role.TECHNICIAN, YEN_THANH, "tho-mot")
    other = await somebody(desk, Role.TECHNICIAN, YEN_THANH, "tho-hai")
    head = await somebody(desk, Role.COMMUNE_HEAD, YEN_THANH, "truong-dai")
    for number in range(pairs):
        crossed = [(await install(desk, tech, a_box(50_000 + 2 * number + one), YEN_THANH)).node_id for one in (0, 1)]
        sounds = [await spoken(desk, who, node) for who, node in zip((tech, other), crossed, strict=True)]
        for who, node, sound in zip((tech, other), crossed, reversed(sounds), strict=True):
            fault = await _lets_sound(desk, who, head, node, heard(sound)[:4])
            tally.note("hung crosswise", fault)
        straight = (await install(desk, tech, a_box(70_000 + number), YEN_THANH)).node_id
        await approve(desk, tech, head, straight)
        state = (await fleet.get_node(desk, head, straight)).node.state
        tally.note("hung right", None if state is NodeState.ACTIVE else state)


async def _lets_sound(desk: Desk, installer: Actor, officer: Actor, node_id: str, typed: str) -> str | None:
    """What is wrong if a node that hangs elsewhere is let sound."""
    for verb in (devices.answer_binding(desk, installer, node_id, typed), devices.approve_node(desk, officer, node_id)):
        try:
            await verb
        except BroadcastError:
            continue
        return f"{node_id} took a code it did not speak, or was approved"
    return None
