"""Keys in files: made once, never readable by others, each for its own purpose; what they sign, a node verifies."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broadcast_server.domain.errors import Corrupt, Refused
from broadcast_server.signer import keys
from broadcast_server.signer.keys import FileSigner
from broadcast_server.signer.port import SignRequest
from broadcast_server.signer.register import DAY_MS, KeyRole
from broadcast_server.signer.time_key import TimeKey, time_folder
from speaker_protocol import chain
from speaker_protocol.messages import DelegationBody, RevocationListBody, decode_key_statement
from speaker_protocol.signing import (
    EVERYWHERE,
    EnvelopeRefused,
    KeyRing,
    Kind,
    Refusal,
    Watermarks,
    key_id_of,
    parse,
    seal,
)
from tests.support.clock import FakeChance

PROVINCE, COMMUNE, OTHER = "48", "20194", "20195"
PATHS = {COMMUNE: (COMMUNE, PROVINCE), OTHER: (OTHER, PROVINCE), PROVINCE: (PROVINCE,)}
NOW_MS = 1_780_279_200_000
UNITS_KINDS = (Kind.PLAN, Kind.CONFIG, Kind.ORDER, Kind.ALERTS)
SERVERS_KINDS = (Kind.HEAD, Kind.CONFIG)


def signer_in(folder: Path, *, units: Sequence[str] = (COMMUNE, PROVINCE), seed: int = 1) -> FileSigner:
    TimeKey(time_folder(folder), chance=FakeChance(seed + 100))
    signer = FileSigner(folder, chance=FakeChance(seed), path_of=lambda unit: PATHS.get(unit, (unit,)))
    signer.ensure_units(units)
    return signer


def request(kind: Kind, unit: str | None, target: str = "n1", at_ms: int = NOW_MS) -> SignRequest:
    return SignRequest(
        kind=kind,
        unit=unit,
        target=target,
        issued_ms=at_ms,
        expires_ms=at_ms + 60_000,
        epoch=3,
        sequence=7,
        body=b"{}",
    )


async def statements(signer: FileSigner, unit: str, *, sequence: int = 1, at_ms: int = NOW_MS) -> tuple[bytes, ...]:
    return await signer.key_statements(unit, issued_ms=at_ms, epoch=1, sequence=sequence)


class Listener:
    """What a node of a unit has learned from its path's topics."""

    def __init__(self, signer: FileSigner, unit: str = COMMUNE) -> None:
        self.signer, self.path = signer, PATHS[unit]
        self.ring, self.marks = KeyRing(signer.root_public()), Watermarks()
        self.sequence = 0

    async def hear(self, at_ms: int = NOW_MS) -> Listener:
        self.sequence += 1
        for place in self.path:
            told = await statements(self.signer, place, sequence=self.sequence, at_ms=at_ms)
            for raw in chain.in_order(told, self.ring):
                above = self.path[self.path.index(place) :]
                chain.take(self.ring, self.marks, raw, above=above, now_ms=at_ms)
        return self

    def obeys(self, raw: bytes, kind: Kind, at_ms: int = NOW_MS) -> bool:
        return self.why_not(raw, kind, at_ms) is None

    def why_not(self, raw: bytes, kind: Kind, at_ms: int = NOW_MS) -> Refusal | None:
        try:
            self.ring.verify(raw, kind=kind, target=parse(raw).target, path=self.path, now_ms=at_ms)
        except EnvelopeRefused as refused:
            return refused.reason
        return None


async def told(signer: FileSigner, unit: str = COMMUNE, at_ms: int = NOW_MS) -> list[DelegationBody]:
    said = [decode_key_statement(parse(raw).body) for raw in await statements(signer, unit, at_ms=at_ms)]
    return [one for one in said if isinstance(one, DelegationBody)]


# -- files ------------------------------------------------------------------------------------------------------------


async def test_key_files_are_for_their_owner_alone(tmp_path: Path):
    signer = signer_in(tmp_path / "keys")
    await statements(signer, COMMUNE)
    files = sorted((tmp_path / "keys").iterdir())
    private = [file for file in files if file.suffix == ".key"]

    assert [file.name.partition("@")[0].removesuffix(".key") for file in private] == [
        "authority",
        "root",
        "server",
        f"unit-{COMMUNE}",
        f"unit-{PROVINCE}",
    ]
    assert {stat.S_IMODE(file.stat().st_mode) for file in private} == {0o600}
    assert stat.S_IMODE((tmp_path / "keys" / "register.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert {file.stat().st_size for file in private} == {32}
    register = (tmp_path / "keys" / "register.json").read_text("utf-8")
    assert not any(file.read_bytes().hex() in register for file in private), "the register names public halves only"


async def test_keys_are_made_once_and_used_ever_after(tmp_path: Path):
    first = signer_in(tmp_path / "keys")
    await statements(first, COMMUNE)
    again = signer_in(tmp_path / "keys", seed=2)

    assert again.root_public() == first.root_public()
    for kind, unit in ((Kind.PLAN, COMMUNE), (Kind.HEAD, None)):
        assert await again.sign_many([request(kind, unit)]) == await first.sign_many([request(kind, unit)])
    assert await statements(again, COMMUNE) == await statements(first, COMMUNE)


@pytest.mark.parametrize("name", ["root", "server", f"unit-{COMMUNE}"])
@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 33])
def test_a_damaged_key_is_said_loudly_and_never_replaced(tmp_path: Path, name: str, damage: bytes):
    signer_in(tmp_path / "keys")
    (file,) = (tmp_path / "keys").glob(f"{name}*.key")
    file.write_bytes(damage)

    with pytest.raises(Corrupt) as refused:
        signer_in(tmp_path / "keys")
    assert (refused.value.code, refused.value.facts) == ("key_file_damaged", {"name": file.stem})
    assert file.read_bytes() == damage


async def test_a_key_exchanged_for_another_is_found_before_it_signs(tmp_path: Path):
    signer_in(tmp_path / "keys")
    (file,) = (tmp_path / "keys").glob(f"unit-{COMMUNE}*.key")
    file.write_bytes(b"\x07" * 32)

    with pytest.raises(Corrupt, match="key_file_damaged"):
        await signer_in(tmp_path / "keys").sign_many([request(Kind.PLAN, COMMUNE)])


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"format":2}', b"\xff"])
def test_a_damaged_register_is_said_loudly(tmp_path: Path, damage: bytes):
    signer_in(tmp_path / "keys")
    (tmp_path / "keys" / "register.json").write_bytes(damage)
    with pytest.raises(Corrupt, match="register"):
        signer_in(tmp_path / "keys")


def test_a_draft_left_by_a_power_cut_is_no_key(tmp_path: Path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "root.key.new").write_bytes(b"half")
    signer_in(tmp_path / "keys")

    assert (tmp_path / "keys" / "root.key").stat().st_size == 32


@pytest.mark.parametrize("unit", ["../root", "a/b", "", "x" * 65, "a\0b", "*"])
def test_no_units_name_leads_out_of_the_folder(tmp_path: Path, unit: str):
    signer = signer_in(tmp_path / "keys")
    if unit == EVERYWHERE:
        signer.ensure_units([unit])  # a key for everywhere is made by nobody's asking for a unit's
        assert not list((tmp_path / "keys").glob("unit-\\*"))
        return
    with pytest.raises(Refused):
        signer.ensure_units([unit])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys", "time-key"]


# -- who may sign what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in UNITS_KINDS])
async def test_a_units_key_signs_nothing_of_the_servers(tmp_path: Path, kind: Kind):
    with pytest.raises(Refused, match="no_key_for_kind"):
        await signer_in(tmp_path / "keys").sign_many([request(kind, COMMUNE)])


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in SERVERS_KINDS])
async def test_the_servers_key_signs_nothing_of_a_units_and_tells_no_time(tmp_path: Path, kind: Kind):
    with pytest.raises(Refused, match="no_key_for_kind"):
        await signer_in(tmp_path / "keys").sign_many([request(kind, None)])


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.ACK])
async def test_the_time_key_signs_answers_and_nothing_else(tmp_path: Path, kind: Kind):
    with pytest.raises(Refused, match="no_key_for_kind"):
        await TimeKey(tmp_path, chance=FakeChance()).sign_many([request(kind, None)])


async def test_one_refused_request_means_that_none_is_made(tmp_path: Path):
    signer = signer_in(tmp_path / "keys")
    with pytest.raises(Refused):
        await signer.sign_many([request(Kind.PLAN, COMMUNE), request(Kind.ACK, COMMUNE)])


async def test_a_unit_without_a_key_is_spoken_for_by_the_next_above(tmp_path: Path):
    signer = signer_in(tmp_path / "keys", units=[PROVINCE])
    for_commune, for_province = await signer.sign_many([request(Kind.PLAN, COMMUNE), request(Kind.PLAN, PROVINCE)])

    assert parse(for_commune).key_id == parse(for_province).key_id
    with pytest.raises(Refused, match="no_key_for_unit"):
        await signer.sign_many([request(Kind.PLAN, "nowhere")])


# -- what a node makes of it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "unit"), [*((kind, COMMUNE) for kind in UNITS_KINDS), *((kind, None) for kind in SERVERS_KINDS)]
)
async def test_a_node_verifies_all_that_its_own_path_says(tmp_path: Path, kind: Kind, unit: str | None):
    signer = signer_in(tmp_path / "keys")
    (raw,) = await signer.sign_many([request(kind, unit)])
    assert (await Listener(signer).hear()).obeys(raw, kind)


async def test_a_node_believes_the_time_key_its_answers_and_nothing_else(tmp_path: Path):
    signer = signer_in(tmp_path / "keys")
    node = await Listener(signer).hear()
    answers = TimeKey(time_folder(tmp_path / "keys"), chance=FakeChance(9))
    (ack,) = await answers.sign_many([request(Kind.ACK, None)])
    assert node.obeys(ack, Kind.ACK)

    (file,) = time_folder(tmp_path / "keys").glob("*.key")  # stolen, and used for what it was not given for
    stolen = Ed25519PrivateKey.from_private_bytes(file.read_bytes())
    for kind in (Kind.PLAN, Kind.ALERTS, Kind.HEAD, Kind.KEYS, Kind.ORDER, Kind.CONFIG):
        raw = seal(
            stolen,
            key_id_of(stolen.public_key().public_bytes_raw()),
            kind=kind,
            target="n1",
            issued_ms=NOW_MS,
            expires_ms=NOW_MS + 60_000,
            epoch=9,
            sequence=9,
            body=b"{}",
        )
        assert node.why_not(raw, kind) is Refusal.KIND_NOT_ALLOWED


async def test_a_neighbours_key_commands_nobody_here(tmp_path: Path):
    signer = signer_in(tmp_path / "keys", units=[COMMUNE, OTHER, PROVINCE])
    (raw,) = await signer.sign_many([request(Kind.PLAN, OTHER)])
    node = await Listener(signer).hear()
    assert node.why_not(raw, Kind.PLAN) is Refusal.UNKNOWN_KEY

    refused = []
    for statement in await statements(signer, OTHER):  # somebody hands its delegation over, as if it were our own
        try:
            chain.take(node.ring, node.marks, statement, above=node.path, now_ms=NOW_MS)
        except EnvelopeRefused as why:
            refused.append(why.reason)
    assert refused == [Refusal.WRONG_TARGET]
    assert node.why_not(raw, Kind.PLAN) is Refusal.UNKNOWN_KEY


async def test_the_chain_hands_out_no_more_than_was_handed_to_it(tmp_path: Path):
    signer, stranger = signer_in(tmp_path / "ours" / "keys"), signer_in(tmp_path / "theirs" / "keys", seed=5)
    said = await told(signer)

    assert [set(one.may) for one in said] == [
        {"KEYS"},
        {kind.name for kind in SERVERS_KINDS},
        {"ACK"},
        {kind.name for kind in UNITS_KINDS},
    ]
    assert [one.unit for one in said] == [EVERYWHERE, EVERYWHERE, EVERYWHERE, COMMUNE]
    authority, *others = said
    assert authority.valid_until_ms - NOW_MS == keys.AUTHORITY_LIFE_MS == 90 * DAY_MS
    assert {one.valid_until_ms - NOW_MS for one in others} == {30 * DAY_MS}
    ours = KeyRing(signer.root_public())
    for raw in await statements(stranger, COMMUNE):
        with pytest.raises(EnvelopeRefused, match="unknown_key"):
            chain.take(ours, Watermarks(), raw, above=PATHS[COMMUNE], now_ms=NOW_MS)


async def test_a_later_number_is_newer_although_the_clock_went_back(tmp_path: Path):
    signer = signer_in(tmp_path / "keys")
    node = Listener(signer)
    for at_ms in (NOW_MS, NOW_MS - 600_000):
        await node.hear(at_ms)


# -- what time does ---------------------------------------------------------------------------------------------------


async def test_a_key_is_replaced_before_it_ends_and_both_are_good_meanwhile(tmp_path: Path):
    signer = signer_in(tmp_path / "keys", units=[COMMUNE])
    node = Listener(signer)
    speakers: dict[str, list[int]] = {}
    for day in range(0, 60, 2):
        at_ms = NOW_MS + day * DAY_MS
        await node.hear(at_ms)
        later_ms = at_ms + 3_600_000
        (raw,) = await signer.sign_many([request(Kind.PLAN, COMMUNE, at_ms=later_ms)])
        assert node.obeys(raw, Kind.PLAN, later_ms)
        key_id = parse(raw).key_id
        speakers.setdefault(key_id.hex(), []).append(day)
        left_days = (node.ring.ends_ms(key_id) - later_ms) / DAY_MS
        assert left_days >= 8, "a plan of eight days never outlives the key that signed it"
    assert len(speakers) == 4
    assert all(7 <= len(days) <= 11 for days in list(speakers.values())[:-1])
    on_disk = list((tmp_path / "keys").glob("unit-*.key"))
    assert len(on_disk) <= 2, "what is over is not kept"


async def test_a_successor_signs_nothing_before_nodes_could_hear_of_it(tmp_path: Path):
    signer = signer_in(tmp_path / "keys", units=[COMMUNE])
    await statements(signer, COMMUNE)
    (before,) = await signer.sign_many([request(Kind.PLAN, COMMUNE)])
    later_ms = NOW_MS + DAY_MS
    with signer.register.change() as book:
        made = keys.rotate(signer.register, book, KeyRole.UNIT, COMMUNE, later_ms)

    (soon,) = await signer.sign_many([request(Kind.PLAN, COMMUNE, at_ms=later_ms + keys.SETTLE_MS - 1)])
    (then,) = await signer.sign_many([request(Kind.PLAN, COMMUNE, at_ms=later_ms + keys.SETTLE_MS)])
    assert parse(soon).key_id == parse(before).key_id
    assert parse(then).key_id.hex() == made.key_id


async def test_the_authority_is_replaced_while_the_root_is_at_hand(tmp_path: Path):
    signer = signer_in(tmp_path / "keys", units=[COMMUNE])
    node = Listener(signer)
    for day in range(0, 200, 4):
        at_ms = NOW_MS + day * DAY_MS
        await node.hear(at_ms)
        (raw,) = await signer.sign_many([request(Kind.PLAN, COMMUNE, at_ms=at_ms + 3_600_000)])
        assert node.obeys(raw, Kind.PLAN, at_ms + 3_600_000)
    assert len([one for one in await told(signer, at_ms=at_ms) if one.may == ("KEYS",)]) == 2


async def test_the_time_key_is_replaced_and_nodes_never_miss_an_answer(tmp_path: Path):
    signer = signer_in(tmp_path / "keys")
    answers = TimeKey(time_folder(tmp_path / "keys"), chance=FakeChance(3))
    node = Listener(signer)
    speakers = set()
    for day in range(50):
        at_ms = NOW_MS + day * DAY_MS
        await answers.sign_many([request(Kind.ACK, None, at_ms=at_ms)])
        await node.hear(at_ms)
        for hour in (1, 12, 23):
            (ack,) = await answers.sign_many([request(Kind.ACK, None, at_ms=at_ms + hour * 3_600_000)])
            assert node.obeys(ack, Kind.ACK, at_ms + hour * 3_600_000), (day, hour)
            speakers.add(parse(ack).key_id)
    assert len(speakers) >= 3
    assert len(list(time_folder(tmp_path / "keys").glob("*.key"))) <= 2


# -- a folder of an earlier version -----------------------------------------------------------------------------------


async def test_a_folder_of_an_earlier_version_goes_on_with_its_keys_and_its_nodes(tmp_path: Path):
    """One root, one server key that did everything, one key for each unit; nodes know the root only."""
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    secrets = {name: bytes([number]) * 32 for number, name in enumerate(("root", "server", f"unit-{COMMUNE}"), start=1)}
    for name, secret in secrets.items():
        (folder / f"{name}.key").write_bytes(secret)
    root, server, unit = (Ed25519PrivateKey.from_private_bytes(secret) for secret in secrets.values())
    enrolled_with = root.public_key().public_bytes_raw()
    node_marks, ring = Watermarks(), KeyRing(enrolled_with)
    for key, may in ((server, ("ACK", "HEAD", "CONFIG")), (unit, ("PLAN", "CONFIG", "ORDER", "ALERTS"))):
        body = DelegationBody(
            public_key=key.public_key().public_bytes_raw().hex(),
            unit=COMMUNE,
            may=may,
            max_class="emergency",
            valid_from_ms=NOW_MS - DAY_MS,
            valid_until_ms=NOW_MS + 400 * DAY_MS,
        )
        old = seal(
            root,
            key_id_of(enrolled_with),
            kind=Kind.KEYS,
            target=COMMUNE,
            issued_ms=NOW_MS - DAY_MS,
            expires_ms=NOW_MS + 400 * DAY_MS,
            epoch=4,
            sequence=900,
            body=body.encode(),
        )
        chain.take(ring, node_marks, old, above=PATHS[COMMUNE], now_ms=NOW_MS)

    signer = signer_in(folder, units=[COMMUNE])
    assert signer.root_public() == enrolled_with
    for raw in chain.in_order(await signer.key_statements(COMMUNE, issued_ms=NOW_MS, epoch=5, sequence=1), ring):
        chain.take(ring, node_marks, raw, above=PATHS[COMMUNE], now_ms=NOW_MS)
    plan, head = await signer.sign_many([request(Kind.PLAN, COMMUNE), request(Kind.HEAD, None)])
    assert parse(plan).key_id == key_id_of(unit.public_key().public_bytes_raw()), "the unit's own key goes on"
    for raw, kind in ((plan, Kind.PLAN), (head, Kind.HEAD)):
        assert ring.verify(raw, kind=kind, target="n1", path=PATHS[COMMUNE], now_ms=NOW_MS)
    known = ring.known(key_id_of(server.public_key().public_bytes_raw()))
    assert known is not None
    assert Kind.ACK not in known.kinds, "the old server key tells the time no more"


def test_a_lost_register_is_made_again_from_the_files_while_the_root_is_there(tmp_path: Path):
    first = signer_in(tmp_path / "keys")
    held = {entry.key_id for entry in first.register.book.keys.values() if entry.role is KeyRole.UNIT}
    (tmp_path / "keys" / "register.json").unlink()
    again = signer_in(tmp_path / "keys", seed=3)
    assert {entry.key_id for entry in again.register.book.keys.values() if entry.role is KeyRole.UNIT} == held

    (tmp_path / "keys" / "register.json").unlink()
    (tmp_path / "keys" / "root.key").unlink()
    with pytest.raises(Corrupt, match="keys_without_register"):
        signer_in(tmp_path / "keys", seed=4)


# -- revocation -------------------------------------------------------------------------------------------------------


async def test_a_revoked_key_has_a_successor_at_once_and_is_told_by_everybody_who_may_revoke_it(tmp_path: Path):
    signer = signer_in(tmp_path / "keys", units=[COMMUNE])
    node = await Listener(signer).hear()
    (stolen,) = await signer.sign_many([request(Kind.PLAN, COMMUNE)])
    with signer.register.change() as book:
        keys.revoke(
            signer.register, book, parse(stolen).key_id.hex(), at_ms=NOW_MS, now_ms=NOW_MS, reason="máy tính bị mất"
        )

    lists = [
        body
        for raw in await statements(signer, COMMUNE)
        if isinstance(body := decode_key_statement(parse(raw).body), RevocationListBody)
    ]
    assert [(one.rl_ver, [line.key_id for line in one.revoked]) for one in lists] == [
        (1, [parse(stolen).key_id.hex()])
    ] * 2, "the authority's and the root's"
    assert not any("máy tính" in raw.decode("utf-8", "replace") for raw in await statements(signer, COMMUNE))
    await node.hear()
    (fresh,) = await signer.sign_many([request(Kind.PLAN, COMMUNE)])
    assert node.why_not(stolen, Kind.PLAN) is Refusal.REVOKED_KEY
    assert node.obeys(fresh, Kind.PLAN)
    assert json.loads((tmp_path / "keys" / "register.json").read_text("utf-8"))["rl_ver"] == 1
