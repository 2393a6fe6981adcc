"""The signing process behind its socket: who may ask, what garbage does, and that a killed one is soon back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broadcast_server.domain.errors import Corrupt, NotFound, Refused, Unavailable
from broadcast_server.signer import door
from broadcast_server.signer.door import BadFrame, Op, SignerDoor
from broadcast_server.signer.keys import FileSigner
from broadcast_server.signer.port import SignRequest
from broadcast_server.signer.service import Service, key_folder
from broadcast_server.supervise import SystemClock
from speaker_protocol.signing import Kind, parse
from tests.support.clock import FakeChance

UNIT = "20194"


def request(number: int = 7, *, body: bytes = b"{}", packed: bytes | None = None) -> SignRequest:
    return SignRequest(Kind.PLAN, UNIT, f"n{number}", 1_780_279_200_000, 1_780_279_260_000, 1, number, body, packed)


class Keys(FileSigner):
    """Real keys, and words of its own for some requests."""

    async def sign_each(self, requests: Sequence[SignRequest]) -> list[bytes | Refused]:
        if any(one.target == "n404" for one in requests):
            raise NotFound("unknown_node", node="n404")
        if any(one.target == "n503" for one in requests):
            raise Unavailable("store_unavailable")
        outcomes = await super().sign_each(requests)
        return [
            Refused("signer_segments_refused", entries={"s@1": "signer_entry_unknown"})
            if one.target == "n13"
            else outcome
            for one, outcome in zip(requests, outcomes, strict=True)
        ]


@contextlib.asynccontextmanager
async def a_service(folder: Path, *, allowed: Sequence[int] = ()) -> AsyncIterator[tuple[Service, SignerDoor]]:
    clock = SystemClock()
    keys = Keys(folder / "keys", chance=FakeChance(), path_of=lambda unit: (unit,))
    keys.ensure_units((UNIT,))
    service = Service(keys, clock=clock, allowed=allowed)
    path = folder / "signer.sock"
    async with service.listening(path, 0o600):
        asking = SignerDoor(path, clock)
        try:
            yield service, asking
        finally:
            await asking.close()


# -- what is said -----------------------------------------------------------------------------------------------------


async def test_ten_thousand_heads_of_one_body_come_back_sealed_in_order(tmp_path: Path):
    packed = os.urandom(200_000)
    async with a_service(tmp_path) as (_, asking):
        sealed = await asking.sign_many([request(number, packed=packed) for number in range(1_000, 11_000)])

    assert [parse(one).target for one in sealed] == [f"n{number}" for number in range(1_000, 11_000)]


async def test_a_refusal_keeps_its_place_its_code_and_its_facts(tmp_path: Path):
    async with a_service(tmp_path) as (_, asking):
        first, refused, last = await asking.sign_each([request(12), request(13), request(14)])

        assert [type(one) for one in (first, refused, last)] == [bytes, Refused, bytes]
        assert isinstance(refused, Refused)
        assert refused.facts == {"entries": {"s@1": "signer_entry_unknown"}}
        with pytest.raises(Refused, match="signer_segments_refused"):
            await asking.sign_many([request(12), request(13)])


@pytest.mark.parametrize(("target", "kind"), [(404, NotFound), (503, Unavailable)])
async def test_errors_arrive_as_what_they_were(tmp_path: Path, target: int, kind: type[Exception]):
    async with a_service(tmp_path) as (_, asking):
        with pytest.raises(kind):
            await asking.sign_each([request(target)])
        assert len(await asking.sign_each([request()])) == 1


async def test_the_root_and_the_keys_of_a_unit_come_through_the_same_door(tmp_path: Path):
    async with a_service(tmp_path) as (_, asking):
        with pytest.raises(Unavailable, match="signer_away"):
            asking.root_public()
        await asking.reached(1.0)
        first, second = await asking.statements_of([UNIT, "new"], issued_ms=1_780_279_200_000, epoch=1, sequence=1)

        assert len(asking.root_public()) == 32
        assert isinstance(first, tuple)
        assert isinstance(second, tuple)
        assert {parse(one).kind for one in (*first, *second)} == {Kind.KEYS}
        assert {parse(first[-1]).target, parse(second[-1]).target} == {UNIT, "new"}


# -- who may ask ------------------------------------------------------------------------------------------------------


async def test_the_socket_is_for_its_owner_and_a_dead_ones_name_is_taken_over(tmp_path: Path):
    async with a_service(tmp_path):
        assert stat.S_IMODE((tmp_path / "signer.sock").stat().st_mode) == 0o600
        with pytest.raises(Unavailable, match="signer_socket_taken"):
            async with a_service(tmp_path):
                pass
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "signer.sock"))
    async with a_service(tmp_path) as (_, asking):
        assert await asking.answers()


async def test_two_processes_never_hold_one_key_folder(tmp_path: Path):
    with (
        key_folder(tmp_path / "keys"),
        pytest.raises(Unavailable, match="signer_keys_taken"),
        key_folder(tmp_path / "keys"),
    ):
        pass
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize(("allowed", "answer"), [((), b""), ((65_534,), b"\1")])
async def test_a_user_who_is_not_allowed_is_not_even_answered(allowed: Sequence[int], answer: bytes):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # noqa: ASYNC240
        async with a_service(folder, allowed=allowed) as (service, _):
            (folder / "signer.sock").chmod(0o666)
            stranger = await asyncio.create_subprocess_exec(
                "python3",
                "-c",
                "import socket,sys\n"
                "s=socket.socket(socket.AF_UNIX)\n"
                "s.connect(sys.argv[1])\n"
                "s.sendall(bytes.fromhex('00000006'+'0101'+'00000001'))\n"
                "sys.stdout.buffer.write(s.recv(5)[4:5])",
                str(folder / "signer.sock"),
                user=65_534,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            told, _ = await stranger.communicate()

    assert told == answer
    assert service.turned_away["stranger"] == (0 if allowed else 1)


# -- garbage ----------------------------------------------------------------------------------------------------------


async def test_garbage_ends_its_connection_and_nothing_else(tmp_path: Path):
    chance = random.Random(4)
    good = door.pack_requests([request(), request(8, packed=b"x")])
    async with a_service(tmp_path) as (service, asking):
        for _ in range(300):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "signer.sock")
            payload = bytearray(door.HEADER.pack(1, Op.SIGN, 1) + good)
            for _ in range(chance.randrange(1, 6)):
                payload[chance.randrange(len(payload))] ^= 1 << chance.randrange(8)
            cut = payload[: chance.randrange(len(payload) + 1)]
            length = len(cut) if chance.random() < 0.8 else chance.randrange(1 << 32)
            writer.write(door.LENGTH.pack(length) + cut)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 5.0)
            writer.close()
        assert len(await asking.sign_each([request()])) == 1
        assert service.turned_away["garbage"] > 50
        assert service.turned_away["crowd"] == 0


async def test_another_version_is_told_so(tmp_path: Path):
    async with a_service(tmp_path):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "signer.sock")
        writer.write(door.LENGTH.pack(door.HEADER.size) + door.HEADER.pack(9, Op.HELLO, 1))
        (length,) = door.LENGTH.unpack(await reader.readexactly(4))
        frame = await reader.readexactly(length)
        writer.close()

    assert door.read_error(frame[door.HEADER.size + 1 :]).code == "signer_version"


async def test_an_answer_that_makes_no_sense_is_not_believed(tmp_path: Path):
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(door.pack_answer(1, Op.SIGN, b"\1" * 40))
        writer.close()

    server = await asyncio.start_unix_server(lie, path=tmp_path / "signer.sock")
    async with server:
        asking = SignerDoor(tmp_path / "signer.sock", SystemClock())
        with pytest.raises(Corrupt, match="signer_garbled"):
            await asking.sign_each([request()])
        await asking.close()


@given(st.binary(max_size=400))
def test_no_bytes_are_read_as_requests_by_accident(raw: bytes):
    with contextlib.suppress(BadFrame):
        requests = door.read_requests(raw)
        assert door.read_requests(door.pack_requests(requests)) == requests


# -- the process itself -----------------------------------------------------------------------------------------------


async def test_a_socket_deep_in_the_tree_is_found(tmp_path: Path):
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    async with a_service(deep) as (_, asking):
        assert await asking.answers()


async def test_while_nobody_listens_the_door_says_so(tmp_path: Path):
    asking = SignerDoor(tmp_path / "signer.sock", SystemClock())
    assert not await asking.answers()
    with pytest.raises(Unavailable, match="signer_away"):
        await asking.sign_many([request()])
    assert not asking.is_up


async def test_a_service_that_was_restarted_between_two_calls_is_asked_again(tmp_path: Path):
    async with a_service(tmp_path) as (_, asking):
        first = await asking.sign_many([request()])
    stale = asking
    async with a_service(tmp_path):
        assert await stale.sign_many([request()]) == first
        await stale.close()


async def test_a_warning_does_not_wait_for_ten_thousand_plans(tmp_path: Path):
    held = asyncio.Event()

    class Busy(Keys):
        async def sign_each(self, requests: Sequence[SignRequest]) -> list[bytes | Refused]:
            if requests[0].kind is Kind.PLAN:
                await held.wait()
            return await super().sign_each(requests)

    clock = SystemClock()
    keys = Busy(tmp_path / "keys", chance=FakeChance(), path_of=lambda unit: (unit,))
    keys.ensure_units((UNIT,))
    path = tmp_path / "signer.sock"
    async with Service(keys, clock=clock, allowed=()).listening(path, 0o600):
        asking = SignerDoor(path, clock)
        plans = asyncio.create_task(asking.sign_many([request(number) for number in range(1_000, 11_000)]))
        warning = SignRequest(Kind.ALERTS, UNIT, UNIT, 1_780_279_200_000, 1_780_279_260_000, 1, 7, b"{}")
        assert len(await asking.sign_many([warning])) == 1
        assert not plans.done()
        held.set()
        assert len(await plans) == 10_000
        await asking.close()
