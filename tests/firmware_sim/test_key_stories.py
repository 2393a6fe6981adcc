"""Whose word counts at the pole: keys that were replaced, stolen, run out in a valley; and a box that lost its memory.

The office signs with the server's real signer (root, authority, unit keys, time key); the node is the real firmware on
virtual time.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broadcast_server.signer import ceremony, keys
from broadcast_server.signer.keys import FileSigner
from broadcast_server.signer.port import SignRequest
from broadcast_server.signer.register import DAY_MS, KeyRole
from broadcast_server.signer.time_key import TimeKey, time_folder
from firmware_sim.store import MEMORY_SLOTS, Memory, Slots
from simulation.world.time import VirtualTime
from speaker_protocol import messages as wire
from speaker_protocol import topics
from speaker_protocol.brief import encode_alert_set
from speaker_protocol.rules import BulletinClass
from speaker_protocol.signing import Kind, key_id_of, parse, seal
from tests.firmware_sim.station import PATH, Signer
from tests.firmware_sim.workshop import HOUR_MS, NODE, Office, Workshop, on_virtual_time, segment
from tests.support.clock import FakeChance

MINUTE_MS = 60_000


class Chancery(Office):
    """An office whose keys are the server's."""

    def __init__(self, time: VirtualTime, folder: Path) -> None:
        super().__init__(time)
        self.folder = folder / "keys"
        self.answers = TimeKey(time_folder(self.folder), chance=FakeChance(3))
        self.signer = self.again()
        self.root = Signer(Ed25519PrivateKey.from_private_bytes((self.folder / "root.key").read_bytes()))
        self.number, self.epoch = 100, 1
        self.rl_ver = 0

    def again(self) -> FileSigner:
        """The server, started (again)."""
        signer = FileSigner(self.folder, chance=FakeChance(len(list(self.folder.glob("*"))) + 7), path_of=self.path_of)
        signer.ensure_units([*PATH])
        return signer

    @staticmethod
    def path_of(unit: str) -> tuple[str, ...]:
        return PATH[PATH.index(unit) :] if unit in PATH else (unit,)

    def next(self) -> int:
        self.number += 1
        return self.number

    def seal(self, signer: Signer, kind: Kind, target: str, body: wire.Body, **changes: Any) -> bytes:
        """What `Office` says in its own name is said by the server's keys here."""
        del signer
        if kind is Kind.ACK:
            return run(self.answers.sign_many([self.request(kind, None, target, body.encode())]))[0]
        return self.by_server(kind, PATH[0], target, body.encode(), **changes)

    def by_server(self, kind: Kind, unit: str | None, target: str, body: bytes, **changes: Any) -> bytes:
        (raw,) = run(self.signer.sign_many([self.request(kind, unit, target, body, **changes)]))
        return raw

    def request(self, kind: Kind, unit: str | None, target: str, body: bytes, **changes: Any) -> Any:
        now_ms = self.time.now_ms()
        facts = {"issued_ms": now_ms, "expires_ms": now_ms + 30 * DAY_MS, **changes}
        return SignRequest(kind, unit, target, epoch=self.epoch, sequence=self.next(), body=body, **facts)

    def floors(self, asked: wire.TimeQuestionBody) -> wire.FloorsBody:
        return super().floors(asked).model_copy(update={"rl_ver": self.rl_ver})

    def keys(self) -> None:
        now_ms, number = self.time.now_ms(), self.next()
        for unit in PATH:
            told = run(self.signer.key_statements(unit, issued_ms=now_ms, epoch=self.epoch, sequence=number))
            self.tell(topics.UnitKeys(unit), wire.join_keys(told))

    def stolen(self, key: str) -> Signer:
        """A copy of a private key, in somebody else's hands. `key`: beginning of its file's name."""
        folder = time_folder(self.folder) if key == "time" else self.folder
        (file,) = sorted(folder.glob(f"{key}@*.key"))[:1]
        return _signer_of(file)

    def by_thief(self, thief: Signer, kind: Kind, target: str, body: bytes) -> bytes:
        thief.sequence += 1
        now_ms = self.time.now_ms()
        return seal(
            thief.key,
            key_id_of(thief.public),
            kind=kind,
            target=target,
            issued_ms=now_ms,
            expires_ms=now_ms + 40 * DAY_MS,
            epoch=thief.epoch,
            sequence=thief.sequence,
            body=body,
        )

    def revoke(self, thief: Signer, **facts: Any) -> None:
        now_ms = self.time.now_ms()
        with self.signer.register.change() as book:
            keys.revoke(
                self.signer.register,
                book,
                key_id_of(thief.public).hex(),
                at_ms=now_ms,
                now_ms=now_ms,
                reason="bị trộm",
                **facts,
            )


def run(work: Awaitable[Any]) -> Any:
    """The signer waits for nothing, so its coroutines end in one step."""
    try:
        work.send(None)  # type: ignore[attr-defined]
    except StopIteration as done:
        return done.value
    raise AssertionError("the signer waited")


class Pole:
    """The bench with a chancery, a plan and a tune of an hour that the node holds."""

    def __init__(self, time: VirtualTime, folder: Path) -> None:
        self.time, self.office = time, Chancery(time, folder)
        self.bench = Workshop(time, folder, office=self.office, records=False, identity=None)
        self.sha = ""

    async def begin(self) -> None:
        self.office.keys()
        self.office.config()
        self.sha = self.office.asset((600, 900), 4.0)
        self.plan("ours")
        await self.bench.pass_s(8)
        assert self.plan_name == "ours"

    def plan(self, name: str, **facts: Any) -> bytes:
        """Publish one; its payload."""
        now_ms = self.time.now_ms()
        self.office.plan(segment(name, now_ms + HOUR_MS, 4, asset=self.sha), **facts)
        return self.office.retained[str(topics.NodePlan(NODE))]

    def evil_plan(self, thief: Signer, name: str) -> bytes:
        now_ms = self.time.now_ms()
        asset = wire.PlanAsset(sha256=self.sha, size_bytes=len(self.office.assets[self.sha]), duration_ms=4_000)
        one = segment(name, now_ms + HOUR_MS, 4, asset=self.sha)
        packed = wire.pack_plan_body(wire.PlanBody(segments=(one,), assets=(asset,)))
        head = wire.plan_head(packed, valid_from_ms=now_ms - MINUTE_MS, valid_until_ms=now_ms + 40 * DAY_MS)
        return wire.join_plan(self.office.by_thief(thief, Kind.PLAN, NODE, head.encode()), packed)

    @property
    def firmware(self) -> Any:
        assert self.bench.node.firmware is not None
        return self.bench.node.firmware

    @property
    def plan_name(self) -> str | None:
        """What its plan is called by, if it follows one now."""
        plan = self.firmware.plan
        if plan is None or not plan.valid_from_ms <= self.time.now_ms() < plan.valid_until_ms:
            return None
        return str(plan.segments[0].entry_id)

    @property
    def refused(self) -> dict[str, int]:
        return dict(self.firmware.gate.refusals)

    async def hears(self, topic: topics.Topic, payload: bytes) -> None:
        """Whoever has the broker says this; it is retained nowhere."""
        self.firmware._arrived(str(topic), payload)
        await self.bench.pass_s(1)

    async def boots(self, *, dark_s: float = 1.0, wiped: bool = False) -> None:
        """Power off and on; with an empty flash."""
        self.bench.node.cut_power(dark_s)
        await self.bench.pass_s(0.5)
        if wiped:
            for name in MEMORY_SLOTS:
                (self.bench.disk.root / name).unlink(missing_ok=True)
        await self.bench.pass_s(dark_s + 8)


def told(story: Callable[[Pole], Awaitable[None]], folder: Path) -> None:
    async def all_of_it(time: VirtualTime) -> None:
        pole = Pole(time, folder)
        await pole.begin()
        await story(pole)
        await pole.bench.stop()

    on_virtual_time(all_of_it)


# -- a chain ----------------------------------------------------------------------------------------------------------


def test_through_sixty_days_keys_come_and_go_and_the_node_never_misses_its_plan(tmp_path: Path):
    """It has power for a moment every third day only; what is retained then must do."""

    async def story(pole: Pole) -> None:
        speakers = set()
        for day in range(0, 60, 3):
            pole.office.keys()
            pole.plan(f"day-{day}", days=8)
            raw = pole.office.retained[str(topics.NodePlan(NODE))]
            speakers.add(parse(wire.split_plan(raw)[0]).key_id)
            await pole.bench.pass_s(3)
            assert pole.plan_name == f"day-{day}", (day, pole.refused)
            await pole.boots(dark_s=3 * DAY_MS / 1000 - 12)
        assert len(speakers) >= 3
        memory = Memory.load(Slots(pole.bench.disk).load())
        assert len(memory.statements) <= 14, "what is long over is not kept"

    told(story, tmp_path)


def test_a_key_that_was_replaced_does_not_bring_back_what_it_once_signed(tmp_path: Path):
    async def story(pole: Pole) -> None:
        old = pole.office.retained[str(topics.NodePlan(NODE))]
        with pole.office.signer.register.change() as book:
            keys.rotate(pole.office.signer.register, book, KeyRole.UNIT, PATH[0], pole.time.now_ms())
        pole.office.keys()
        await pole.boots(dark_s=20 * 60)
        pole.plan("by the new key")
        await pole.bench.pass_s(5)
        new = pole.office.retained[str(topics.NodePlan(NODE))]
        assert parse(wire.split_plan(new)[0]).key_id != parse(wire.split_plan(old)[0]).key_id

        await pole.hears(topics.NodePlan(NODE), old)
        assert pole.plan_name == "by the new key"
        assert pole.refused["older"] == 1

    told(story, tmp_path)


def test_a_neighbours_key_says_nothing_here_even_with_its_delegation(tmp_path: Path):
    async def story(pole: Pole) -> None:
        pole.office.signer.ensure_units(["xa-2"])
        now_ms = pole.time.now_ms()
        theirs = run(pole.office.signer.key_statements("xa-2", issued_ms=now_ms, epoch=1, sequence=pole.office.next()))
        await pole.hears(topics.UnitKeys(PATH[0]), wire.join_keys(theirs))
        assert pole.refused["wrong_target"] == 1
        neighbour = pole.office.stolen("unit-xa-2")
        await pole.hears(topics.NodePlan(NODE), pole.evil_plan(neighbour, "theirs"))
        assert (pole.plan_name, pole.refused["unknown_key"]) == ("ours", 1)

    told(story, tmp_path)


def test_a_stolen_authority_cannot_make_another_authority_nor_speak_itself(tmp_path: Path):
    async def story(pole: Pole) -> None:
        thief, accomplice = pole.office.stolen("authority"), Signer()
        now_ms = pole.time.now_ms()
        for unit, may in (("*", ("KEYS",)), (PATH[0], ("KEYS", "PLAN"))):
            body = wire.DelegationBody(
                public_key=accomplice.public.hex(),
                unit=unit,
                may=may,
                max_class=BulletinClass.EMERGENCY,
                valid_from_ms=now_ms,
                valid_until_ms=now_ms + 300 * DAY_MS,
            )
            raw = pole.office.by_thief(thief, Kind.KEYS, unit, body.encode())
            await pole.hears(topics.UnitKeys(PATH[0]), wire.join_keys((raw,)))
        await pole.hears(topics.NodePlan(NODE), pole.evil_plan(thief, "evil"))
        assert pole.plan_name == "ours"
        assert pole.refused["kind_not_allowed"] == 3

    told(story, tmp_path)


def test_an_authority_for_one_commune_delegates_nothing_above_it(tmp_path: Path):
    async def story(pole: Pole) -> None:
        register = pole.office.signer.register
        with register.change() as book:
            now_ms = pole.time.now_ms()
            asked = ceremony.request_authority(register, book, now_ms, unit=PATH[0], days=30)
            ceremony.install(register, book, ceremony.sign(asked, register.root(), now_ms), now_ms)
        pole.office.keys()
        await pole.bench.pass_s(2)
        thief = next(
            one
            for one in map(_signer_of, sorted(pole.office.folder.glob("authority@*.key")))
            if one.public.hex() == asked["public_key"]
        )
        for unit in (PATH[1], "*"):
            body = wire.DelegationBody(
                public_key=Signer().public.hex(),
                unit=unit,
                may=("ALERTS",),
                max_class=BulletinClass.EMERGENCY,
                valid_from_ms=now_ms,
                valid_until_ms=now_ms + DAY_MS,
            )
            raw = pole.office.by_thief(thief, Kind.KEYS, unit, body.encode())
            await pole.hears(topics.UnitKeys(PATH[0]), wire.join_keys((raw,)))
        assert pole.refused["out_of_scope"] == 2

    told(story, tmp_path)


def _signer_of(file: Path) -> Signer:
    return Signer(Ed25519PrivateKey.from_private_bytes(file.read_bytes()), epoch=9, sequence=1_000_000)


# -- stolen keys ------------------------------------------------------------------------------------------------------


def test_a_stolen_key_sounds_until_it_is_revoked_and_what_it_said_ends_at_once(tmp_path: Path):
    async def story(pole: Pole) -> None:
        thief = pole.office.stolen(f"unit-{PATH[0]}")
        highest = replace(thief, epoch=0xFFFF_FFFF, sequence=1 << 52)
        alert = wire.AlertBody(
            alert_id="evil",
            level=85,
            issued_ms=pole.time.now_ms(),
            expires_ms=pole.time.now_ms() + HOUR_MS,
            hazard="flood",
        )
        body = encode_alert_set(wire.AlertSetBody(alerts=(alert,)))
        await pole.hears(topics.NodePlan(NODE), pole.evil_plan(highest, "evil"))
        await pole.hears(topics.UnitAlert(PATH[0]), pole.office.by_thief(highest, Kind.ALERTS, PATH[0], body))
        assert pole.plan_name == "evil", "it is a good key until somebody says that it is not"
        assert [one.alert_id for one in pole.firmware.situation.alerts.alerts] == ["evil"]

        pole.office.revoke(thief)
        pole.office.keys()
        await pole.bench.pass_s(2)
        assert pole.plan_name is None
        assert pole.firmware.situation.alerts.alerts == ()
        pole.plan("ours again")  # though the thief had taken the highest number there is
        await pole.bench.pass_s(3)
        assert pole.plan_name == "ours again"
        await pole.hears(topics.NodePlan(NODE), pole.evil_plan(highest, "evil"))
        assert pole.refused["revoked_key"] >= 1
        await pole.boots()
        assert pole.plan_name == "ours again"
        await pole.hears(topics.NodePlan(NODE), pole.evil_plan(highest, "evil"))
        assert pole.plan_name == "ours again", "what was revoked is remembered over a power cut"
        assert pole.office.status is not None
        assert pole.office.status.rl_ver == 1

    told(story, tmp_path)


def test_an_older_list_is_refused_and_the_keys_topic_of_last_week_makes_nobody_forget(tmp_path: Path):
    async def story(pole: Pole) -> None:
        thief = pole.office.stolen(f"unit-{PATH[0]}")
        before = {unit: pole.office.retained[str(topics.UnitKeys(unit))] for unit in PATH}
        server = pole.office.stolen("server")
        pole.office.revoke(server)
        first = pole.office
        first.keys()
        await pole.bench.pass_s(2)
        one = {unit: first.retained[str(topics.UnitKeys(unit))] for unit in PATH}
        pole.office.revoke(thief)
        pole.office.keys()
        await pole.bench.pass_s(2)
        assert pole.firmware.gate.rl_version == 2

        for old in (one, before):
            for unit in PATH:
                await pole.hears(topics.UnitKeys(unit), old[unit])
        assert pole.refused["older"] >= 2
        await pole.boots()
        for old in (one, before):
            for unit in PATH:
                await pole.hears(topics.UnitKeys(unit), old[unit])
        await pole.hears(topics.NodePlan(NODE), pole.evil_plan(thief, "evil"))
        assert pole.plan_name != "evil"
        assert pole.firmware.gate.rl_version == 2

    told(story, tmp_path)


def test_an_authority_revokes_what_it_delegated_and_nothing_else(tmp_path: Path):
    async def story(pole: Pole) -> None:
        thief = pole.office.stolen("authority")
        register = pole.office.signer.register
        with register.change() as book:  # a second authority, that speaks for the commune from now on
            now_ms = pole.time.now_ms()
            keys.rotate(register, book, KeyRole.AUTHORITY, "*", now_ms + 1)
        pole.office.signer.ensure_units([PATH[0]])
        with register.change() as book:
            fresh = keys.rotate(register, book, KeyRole.UNIT, PATH[0], pole.time.now_ms())
        pole.office.keys()
        await pole.boots(dark_s=20 * 60)
        pole.plan("by the second's key")
        await pole.bench.pass_s(3)
        speaker = parse(wire.split_plan(pole.office.retained[str(topics.NodePlan(NODE))])[0]).key_id
        assert speaker.hex() == fresh.key_id

        line = wire.RevokedKey(key_id=speaker.hex(), at_ms=1)
        body = wire.RevocationListBody(rl_ver=9, revoked=(line,))
        raw = pole.office.by_thief(thief, Kind.KEYS, "*", body.encode())
        await pole.hears(topics.UnitKeys(PATH[0]), wire.join_keys((raw,)))
        pole.plan("still")
        await pole.bench.pass_s(3)
        assert pole.plan_name == "still", "the first authority did not delegate this key, so nobody hears it"

    told(story, tmp_path)


def test_a_valley_without_network_refuses_a_stolen_key_when_its_delegation_ends(tmp_path: Path):
    """Nobody can tell this node that the key was stolen. The thief stands at the pole with a broker of his own."""

    def warning(pole: Pole, thief: Signer, name: str) -> bytes:
        now_ms = pole.time.now_ms()
        alert = wire.AlertBody(
            alert_id=name, level=85, issued_ms=now_ms, expires_ms=now_ms + 20 * DAY_MS, hazard="flood"
        )
        return pole.office.by_thief(thief, Kind.ALERTS, PATH[0], encode_alert_set(wire.AlertSetBody(alerts=(alert,))))

    async def story(pole: Pole) -> None:
        thief = pole.office.stolen(f"unit-{PATH[0]}")
        pole.office.is_reachable = False
        pole.office.revoke(thief)
        ends_ms = pole.firmware.gate.keys_until_ms()
        assert 29 * DAY_MS < ends_ms - pole.time.now_ms() <= 30 * DAY_MS
        await pole.hears(topics.NodePlan(NODE), pole.evil_plan(thief, "evil"))
        assert pole.plan_name == "evil"
        assert pole.firmware.plan.valid_until_ms == ends_ms, "no plan outlives who signed it"
        await pole.boots(dark_s=(ends_ms - pole.time.now_ms()) / 1000 - 3_600)
        await pole.hears(topics.UnitAlert(PATH[0]), warning(pole, thief, "a"))
        await pole.hears(topics.NodePlan(NODE), pole.evil_plan(thief, "evil to the end"))
        await pole.bench.pass_s(8)
        assert [one.alert_id for one in pole.firmware.situation.alerts.alerts] == ["a"]

        await pole.boots(dark_s=7_200)
        assert pole.firmware.situation.alerts.alerts == (), "neither does what it said count any longer"
        assert pole.plan_name is None
        await pole.hears(topics.UnitAlert(PATH[0]), warning(pole, thief, "b"))
        await pole.hears(topics.NodePlan(NODE), pole.evil_plan(thief, "evil for ever"))
        await pole.bench.pass_s(8)
        assert pole.firmware.situation.alerts.alerts == ()
        assert pole.plan_name is None
        assert pole.refused["outside_delegation"] >= 1

    told(story, tmp_path)


# -- a box that lost its memory ---------------------------------------------------------------------------------------


def record(pole: Pole) -> dict[str, bytes]:
    return dict(pole.office.retained)


async def replay(pole: Pole, recorded: dict[str, bytes]) -> None:
    for topic, payload in recorded.items():
        pole.firmware._arrived(topic, payload)
    await pole.bench.pass_s(6)


def warn(pole: Pole, alert_id: str) -> None:
    now_ms = pole.time.now_ms()
    pole.office.alert(
        wire.AlertBody(alert_id=alert_id, level=85, issued_ms=now_ms, expires_ms=now_ms + 20 * HOUR_MS, hazard="flood")
    )


def test_a_wiped_node_is_played_yesterday_and_sounds_nothing_of_it(tmp_path: Path):
    async def story(pole: Pole) -> None:
        warn(pole, "yesterday's flood")
        await pole.bench.pass_s(3)
        recorded = record(pole)
        await pole.boots(dark_s=10 * 3_600)
        pole.office.alert()  # cancelled
        pole.plan("today's")
        await pole.bench.pass_s(3)

        pole.office.is_reachable = False  # the attacker has the wire; the server cannot answer
        await pole.boots(wiped=True)
        assert pole.firmware.gate.is_resyncing
        await replay(pole, recorded)
        assert pole.plan_name is None
        assert pole.firmware.situation.alerts.alerts == (), "an emergency neither"
        assert "resyncing" in pole.bench.faults
        await pole.boots()
        await replay(pole, recorded)
        assert pole.plan_name is None, "a second power cut does not make it trust"

        pole.office.is_reachable = True
        await pole.bench.pass_s(10)
        assert not pole.firmware.gate.is_resyncing
        assert pole.plan_name == "today's"
        await replay(pole, recorded)
        assert pole.plan_name == "today's"
        assert pole.firmware.situation.alerts.alerts == ()
        assert pole.refused["older"] >= 2
        assert pole.office.status is not None
        assert pole.office.status.is_resyncing is None

    told(story, tmp_path)


def test_a_wiped_node_hears_an_emergency_in_force_as_soon_as_it_has_its_floors(tmp_path: Path):
    async def story(pole: Pole) -> None:
        warn(pole, "flood")
        await pole.bench.pass_s(3)
        pole.bench.node.cut_power(1.0)
        for name in MEMORY_SLOTS:
            (pole.bench.disk.root / name).unlink(missing_ok=True)
        await pole.bench.pass_s(5)
        assert [one.alert_id for one in pole.firmware.situation.alerts.alerts] == ["flood"]

    told(story, tmp_path)


@pytest.mark.parametrize("what", ["another nonce", "a key that may not", "asked by nobody"])
def test_floors_count_only_as_the_answer_to_its_own_question(tmp_path: Path, what: str):
    async def story(pole: Pole) -> None:
        pole.office.tells_floors = False
        await pole.boots(wiped=True)
        assert pole.firmware.gate.is_resyncing
        nonces = list(pole.firmware._resync._open)
        nonce = nonces[-1] if what == "a key that may not" else "0123456789abcdef"
        body = wire.FloorsBody(nonce=nonce, floors=())
        thief = pole.office.stolen(f"unit-{PATH[0]}" if what == "a key that may not" else "time")
        await pole.hears(topics.NodeAck(NODE), pole.office.by_thief(thief, Kind.ACK, NODE, body.encode()))
        assert pole.firmware.gate.is_resyncing
        reason = "kind_not_allowed" if what == "a key that may not" else "unasked_floors"
        assert pole.refused[reason] == 1

    told(story, tmp_path)


def test_a_wiped_node_waits_for_the_list_of_revocations_the_server_speaks_of(tmp_path: Path):
    async def story(pole: Pole) -> None:
        thief = pole.office.stolen(f"unit-{PATH[0]}")
        before = {unit: pole.office.retained[str(topics.UnitKeys(unit))] for unit in PATH}
        pole.office.revoke(thief)
        pole.office.keys()
        pole.plan("after the theft")
        await pole.bench.pass_s(2)
        fresh = {unit: pole.office.retained[str(topics.UnitKeys(unit))] for unit in PATH}
        for unit in PATH:  # a broker that keeps the list from the node
            pole.office.retained[str(topics.UnitKeys(unit))] = before[unit]
        pole.office.rl_ver = 1
        await pole.boots(wiped=True)
        assert pole.firmware.gate.is_resyncing
        await pole.hears(topics.NodePlan(NODE), pole.evil_plan(thief, "evil"))
        assert pole.plan_name is None
        for unit in PATH:
            pole.office.tell(topics.UnitKeys(unit), fresh[unit])
        pole.plan("after the theft")
        await pole.bench.pass_s(8)
        assert not pole.firmware.gate.is_resyncing
        assert pole.plan_name == "after the theft"

    told(story, tmp_path)


def test_an_order_is_carried_out_once_though_the_power_goes_between(tmp_path: Path):
    async def story(pole: Pole) -> None:
        body = wire.OrderBody(order_id="o-1", verb=wire.OrderVerb.IDENTIFY, seconds=3)
        raw = pole.office.by_server(Kind.ORDER, PATH[0], NODE, body.encode())
        pole.firmware._arrived(str(topics.NodeOrder(NODE)), raw)
        await asyncio.sleep(0)
        await pole.bench.pass_s(0.2)
        memory = Memory.load(Slots(pole.bench.disk).load())
        assert memory.done_orders == ["o-1"], "it is noted before it is done"
        await pole.boots()
        again = pole.office.by_server(Kind.ORDER, PATH[0], NODE, body.encode())  # sent again under a new number
        await pole.hears(topics.NodeOrder(NODE), again)
        await pole.hears(topics.NodeOrder(NODE), raw)
        assert pole.firmware._own is None
        assert pole.refused.get("older") == 1

    told(story, tmp_path)


def test_a_server_from_an_old_backup_is_obeyed_though_its_keys_were_revoked_since(tmp_path: Path):
    async def story(pole: Pole) -> None:
        office = pole.office
        backup = tmp_path / "backup"
        shutil.copytree(office.folder, backup)
        thief = office.stolen(f"unit-{PATH[0]}")
        office.revoke(thief)
        office.keys()
        await pole.bench.pass_s(2)
        assert pole.firmware.gate.rl_version == 1

        shutil.rmtree(office.folder)
        shutil.copytree(backup, office.folder)
        office.signer = office.again()
        with office.signer.register.change() as book:
            keys.renew_after_restore(office.signer.register, book, pole.time.now_ms())
        office.answers.replace_all(pole.time.now_ms())
        office.epoch += 1
        office.keys()
        pole.plan("restored")
        await pole.bench.pass_s(5)
        assert pole.plan_name == "restored"
        await pole.hears(topics.NodePlan(NODE), pole.evil_plan(thief, "evil"))
        assert pole.plan_name == "restored"
        assert pole.firmware.gate.rl_version > 1

    told(story, tmp_path)
