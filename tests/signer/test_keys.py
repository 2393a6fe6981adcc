"""Keys in files: made once, never readable by others, each for its own purpose; what they sign, a node verifies."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from broadcast_server.domain.errors import Corrupt, Refused
from broadcast_server.signer.keys import FileSigner
from broadcast_server.signer.port import SignRequest
from speaker_protocol.messages import DelegationBody, decode_key_statement
from speaker_protocol.signing import EnvelopeRefused, KeyRing, Kind, Refusal, Watermarks, parse
from tests.support.clock import FakeChance

PROVINCE, COMMUNE, OTHER = "48", "20194", "20195"
PATHS = {COMMUNE: (COMMUNE, PROVINCE), OTHER: (OTHER, PROVINCE), PROVINCE: (PROVINCE,)}
NOW_MS = 1_780_279_200_000
UNITS_KINDS = (Kind.PLAN, Kind.CONFIG, Kind.ORDER, Kind.ALERTS)
SERVERS_KINDS = (Kind.ACK, Kind.HEAD, Kind.CONFIG)


def signer_in(folder: Path, *, units: Sequence[str] = (COMMUNE, PROVINCE), seed: int = 1) -> FileSigner:
    signer = FileSigner(folder, chance=FakeChance(seed), path_of=lambda unit: PATHS.get(unit, (unit,)))
    signer.ensure_units(units)
    return signer


def request(kind: Kind, unit: str | None, target: str = "n1") -> SignRequest:
    return SignRequest(
        kind=kind,
        unit=unit,
        target=target,
        issued_ms=NOW_MS,
        expires_ms=NOW_MS + 60_000,
        epoch=3,
        sequence=7,
        body=b"{}",
    )


async def statements(signer: FileSigner, unit: str, *, sequence: int = 1, issued_ms: int = NOW_MS) -> tuple[bytes, ...]:
    return await signer.key_statements(unit, issued_ms=issued_ms, epoch=1, sequence=sequence)


async def ring_of(signer: FileSigner, unit: str = COMMUNE) -> KeyRing:
    """What a node of that unit has learned from its path's topics."""
    ring = KeyRing(signer.root_public())
    for place in PATHS[unit]:
        for raw in await statements(signer, place):
            envelope = ring.verify(raw, kind=Kind.KEYS, target=place, path=PATHS[unit], now_ms=NOW_MS)
            statement = decode_key_statement(envelope.body)
            assert isinstance(statement, DelegationBody)
            ring.learn(statement.key())
    return ring


# -- files ------------------------------------------------------------------------------------------------------------


def test_key_files_are_for_their_owner_alone(tmp_path: Path):
    signer_in(tmp_path / "keys")
    files = sorted((tmp_path / "keys").iterdir())

    assert [file.name for file in files] == ["root.key", "server.key", f"unit-{COMMUNE}.key", f"unit-{PROVINCE}.key"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert {file.stat().st_size for file in files} == {32}


async def test_keys_are_made_once_and_used_ever_after(tmp_path: Path):
    first = signer_in(tmp_path)
    again = signer_in(tmp_path, seed=2)

    assert again.root_public() == first.root_public()
    for kind, unit in ((Kind.PLAN, COMMUNE), (Kind.ACK, None)):
        assert await again.sign_many([request(kind, unit)]) == await first.sign_many([request(kind, unit)])


@pytest.mark.parametrize("name", ["root", "server", f"unit-{COMMUNE}"])
@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 33])
def test_a_damaged_key_is_said_loudly_and_never_replaced(tmp_path: Path, name: str, damage: bytes):
    signer_in(tmp_path)
    (tmp_path / f"{name}.key").write_bytes(damage)

    with pytest.raises(Corrupt) as refused:
        signer_in(tmp_path)
    assert (refused.value.code, refused.value.facts) == ("key_file_damaged", {"name": name})
    assert (tmp_path / f"{name}.key").read_bytes() == damage


def test_a_draft_left_by_a_power_cut_is_no_key(tmp_path: Path):
    (tmp_path / "root.new").write_bytes(b"half")
    signer_in(tmp_path)

    assert (tmp_path / "root.key").stat().st_size == 32


@pytest.mark.parametrize("unit", ["../root", "a/b", "", "x" * 65, "a\0b"])
def test_no_units_name_leads_out_of_the_folder(tmp_path: Path, unit: str):
    signer = signer_in(tmp_path / "keys")
    with pytest.raises(Refused):
        signer.ensure_units([unit])
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


# -- who may sign what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in UNITS_KINDS])
async def test_a_units_key_signs_nothing_of_the_servers(tmp_path: Path, kind: Kind):
    with pytest.raises(Refused, match="no_key_for_kind"):
        await signer_in(tmp_path).sign_many([request(kind, COMMUNE)])


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in SERVERS_KINDS])
async def test_the_servers_key_signs_nothing_of_a_units(tmp_path: Path, kind: Kind):
    with pytest.raises(Refused, match="no_key_for_kind"):
        await signer_in(tmp_path).sign_many([request(kind, None)])


async def test_one_refused_request_means_that_none_is_made(tmp_path: Path):
    signer = signer_in(tmp_path)
    with pytest.raises(Refused):
        await signer.sign_many([request(Kind.PLAN, COMMUNE), request(Kind.ACK, COMMUNE)])


async def test_a_unit_without_a_key_is_spoken_for_by_the_next_above(tmp_path: Path):
    signer = signer_in(tmp_path, units=[PROVINCE])
    for_commune, for_province = await signer.sign_many([request(Kind.PLAN, COMMUNE), request(Kind.PLAN, PROVINCE)])

    assert parse(for_commune).key_id == parse(for_province).key_id
    with pytest.raises(Refused, match="no_key_for_unit"):
        await signer.sign_many([request(Kind.PLAN, "nowhere")])


# -- what a node makes of it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "unit"), [*((kind, COMMUNE) for kind in UNITS_KINDS), *((kind, None) for kind in SERVERS_KINDS)]
)
async def test_a_node_verifies_all_that_its_own_path_says(tmp_path: Path, kind: Kind, unit: str | None):
    signer = signer_in(tmp_path)
    (raw,) = await signer.sign_many([request(kind, unit)])
    ring = await ring_of(signer)

    envelope = ring.verify(raw, kind=kind, target="n1", path=PATHS[COMMUNE], now_ms=NOW_MS)
    assert envelope.order == (3, 7)


async def test_a_neighbours_key_commands_nobody_here(tmp_path: Path):
    signer = signer_in(tmp_path, units=[COMMUNE, OTHER, PROVINCE])
    (raw,) = await signer.sign_many([request(Kind.PLAN, OTHER)])
    ring = await ring_of(signer)
    with pytest.raises(EnvelopeRefused) as refused:
        ring.verify(raw, kind=Kind.PLAN, target="n1", path=PATHS[COMMUNE], now_ms=NOW_MS)
    assert refused.value.reason is Refusal.UNKNOWN_KEY

    for statement in await statements(signer, OTHER):  # even if somebody hands its delegation over
        body = decode_key_statement(parse(statement).body)
        assert isinstance(body, DelegationBody)
        ring.learn(body.key())
    with pytest.raises(EnvelopeRefused) as refused:
        ring.verify(raw, kind=Kind.PLAN, target="n1", path=PATHS[COMMUNE], now_ms=NOW_MS)
    assert refused.value.reason is Refusal.OUT_OF_SCOPE


async def test_delegations_are_the_roots_word_and_fit_one_unit(tmp_path: Path):
    signer, stranger = signer_in(tmp_path / "ours"), signer_in(tmp_path / "theirs", seed=5)
    told = [decode_key_statement(parse(raw).body) for raw in await statements(signer, COMMUNE)]
    kinds = [set(one.may) for one in told if isinstance(one, DelegationBody)]

    assert kinds == [{kind.name for kind in SERVERS_KINDS}, {kind.name for kind in UNITS_KINDS}]
    assert {one.unit for one in told if isinstance(one, DelegationBody)} == {COMMUNE}
    for raw in await statements(stranger, COMMUNE):
        with pytest.raises(EnvelopeRefused):
            KeyRing(signer.root_public()).verify(
                raw, kind=Kind.KEYS, target=COMMUNE, path=PATHS[COMMUNE], now_ms=NOW_MS
            )


async def test_a_later_number_is_newer_although_the_clock_went_back(tmp_path: Path):
    signer, marks = signer_in(tmp_path), Watermarks()
    for sequence, issued_ms in ((5, NOW_MS), (6, NOW_MS - 86_400_000)):
        for raw in await statements(signer, COMMUNE, sequence=sequence, issued_ms=issued_ms):
            assert marks.admit(f"keys {parse(raw).body.hex()[:80]}", parse(raw))
