"""The way to the signing process: one small binary protocol over a unix socket, and the `Signer` that speaks it.

Frame, big-endian: length (4), `VERSION` (1), operation (1), number of the call (4), payload. An answer repeats
operation and number, then says 0 and what was asked for, or 1 and an error as JSON. What is signed a hundred times (a
body, a packed plan) travels once a frame. A maintainer must not break: (1) both sides read strictly and bounded, a
frame that is none ends the connection; (2) emergencies, streams and all the rest go by connections of their own, so
that none waits for ten thousand plans; (3) a call may be made again after a broken connection: the same request gives
the same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from broadcast_server.domain.clock import Clock
from broadcast_server.domain.errors import BroadcastError, Corrupt, Invalid, NotFound, Refused, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.signer.port import SignRequest
from speaker_protocol.signing import Kind

log = get_logger()

VERSION: Final = 1
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
MAX_REQUESTS: Final = 512
_UNITS_AT_ONCE: Final = 100
MAX_STATEMENTS: Final = 10_000
"""KEYS envelopes about one unit."""
_SPLIT_BYTES: Final = 8 * 1024 * 1024
"""A batch with more than this goes in several frames."""
CALL_S: Final = 30.0
URGENT_CALL_S: Final = 10.0
CONNECT_S: Final = 2.0
LOOK_S: Final = 1.0
_LONGEST_PATH: Final = 100
"""What the kernel takes as the name of a socket, and some room."""

LENGTH: Final = struct.Struct(">I")
HEADER: Final = struct.Struct(">BBI")
_COUNTS: Final = struct.Struct(">HHH")
_REQUEST: Final = struct.Struct(">BBQQIQHhBB")
_KEYS: Final = struct.Struct(">QIQ")
_OUTCOME: Final = struct.Struct(">BI")


class Op(IntEnum):
    """What may be asked of the signing process."""

    HELLO = 1
    """Whose root is it."""
    SIGN = 2
    KEYS = 3


class BadFrame(ValueError):  # noqa: N818  reads as what it is
    """Bytes that are no frame of this protocol."""


# -- frames -----------------------------------------------------------------------------------------------------------


def pack_requests(requests: Sequence[SignRequest]) -> bytes:
    """Payload of SIGN."""
    bodies: dict[bytes, int] = {}
    packed: dict[int, int] = {}
    attached: list[bytes] = []
    parts = []
    for request in requests:
        body = bodies.setdefault(request.body, len(bodies))
        number = -1
        if request.packed is not None:
            number = packed.setdefault(id(request.packed), len(packed))
            if number == len(attached):
                attached.append(request.packed)
        unit, target = (request.unit or "").encode(), request.target.encode()
        parts.append(
            _REQUEST.pack(
                request.kind,
                request.unit is not None,
                request.issued_ms,
                request.expires_ms,
                request.epoch,
                request.sequence,
                body,
                number,
                len(unit),
                len(target),
            )
            + unit
            + target
        )
    counts = _COUNTS.pack(len(requests), len(bodies), len(attached))
    return b"".join([counts, *map(_long, bodies), *map(_long, attached), *parts])


def read_requests(payload: bytes) -> list[SignRequest]:
    """The reverse of `pack_requests`. Raises `BadFrame`."""
    reader = Reader(payload)
    count, bodies_count, packed_count = reader.unpack(_COUNTS)
    if count > MAX_REQUESTS or bodies_count > count or packed_count > count:
        raise BadFrame
    bodies = [reader.long() for _ in range(bodies_count)]
    attached = [reader.long() for _ in range(packed_count)]
    requests = []
    for _ in range(count):
        kind, has_unit, issued, expires, epoch, sequence, body, number, unit_bytes, target_bytes = reader.unpack(
            _REQUEST
        )
        unit, target = reader.text(unit_bytes), reader.text(target_bytes)
        if has_unit not in {0, 1} or (unit and not has_unit) or body >= len(bodies) or not -1 <= number < len(attached):
            raise BadFrame
        try:
            request = SignRequest(
                kind=Kind(kind),
                unit=unit if has_unit else None,
                target=target,
                issued_ms=issued,
                expires_ms=expires,
                epoch=epoch,
                sequence=sequence,
                body=bodies[body],
                packed=None if number < 0 else attached[number],
            )
        except ValueError:
            raise BadFrame from None
        requests.append(request)
    reader.end()
    return requests


def pack_outcomes(outcomes: Sequence[bytes | Refused]) -> bytes:
    """Payload of the answer to SIGN."""
    parts = []
    for outcome in outcomes:
        raw = outcome if isinstance(outcome, bytes) else _error(outcome)
        parts.append(_OUTCOME.pack(isinstance(outcome, bytes), len(raw)) + raw)
    return b"".join(parts)


def read_outcomes(payload: bytes, count: int) -> list[bytes | Refused]:
    """The reverse of `pack_outcomes`. Raises `BadFrame`."""
    reader = Reader(payload)
    outcomes: list[bytes | Refused] = []
    for _ in range(count):
        is_sealed, length = reader.unpack(_OUTCOME)
        raw = reader.take(length)
        if is_sealed:
            outcomes.append(raw)
            continue
        error = read_error(raw)
        if not isinstance(error, Refused):
            raise BadFrame
        outcomes.append(error)
    reader.end()
    return outcomes


def pack_keys(units: Sequence[str], *, issued_ms: int, epoch: int, sequence: int) -> bytes:
    """Payload of KEYS."""
    return _KEYS.pack(issued_ms, epoch, sequence) + pack_many([unit.encode() for unit in units])


def read_keys(payload: bytes) -> tuple[tuple[str, ...], int, int, int]:
    """Units, instant, epoch and number. Raises `BadFrame`."""
    reader = Reader(payload)
    issued_ms, epoch, sequence = reader.unpack(_KEYS)
    try:
        units = tuple(raw.decode() for raw in reader.many(MAX_REQUESTS))
    except UnicodeDecodeError:
        raise BadFrame from None
    return units, issued_ms, epoch, sequence


def pack_many(parts: Sequence[bytes]) -> bytes:
    """Several byte strings, each after its length."""
    return b"".join(map(_long, parts))


def pack_statements(said: Sequence[tuple[bytes, ...] | Refused]) -> bytes:
    """Payload of the answer to KEYS."""
    return pack_outcomes([pack_many(one) if isinstance(one, tuple) else one for one in said])


def read_statements(payload: bytes, count: int) -> list[tuple[bytes, ...] | Refused]:
    """The reverse of `pack_statements`. Raises `BadFrame`."""
    return [
        one if isinstance(one, Refused) else tuple(Reader(one).many(MAX_STATEMENTS))
        for one in read_outcomes(payload, count)
    ]


def _long(raw: bytes) -> bytes:
    return LENGTH.pack(len(raw)) + raw


_KINDS: Final[Mapping[str, type[BroadcastError]]] = {
    kind.__name__: kind for kind in (Invalid, Refused, NotFound, Unavailable, Corrupt)
}


def _error(error: BroadcastError) -> bytes:
    told = {"kind": type(error).__name__, "code": error.code, "facts": error.facts}
    return json.dumps(told, ensure_ascii=False, default=str).encode()


def pack_answer(number: int, op: int, answer: bytes | BroadcastError) -> bytes:
    """A whole frame that answers a call."""
    body = b"\1" + _error(answer) if isinstance(answer, BroadcastError) else b"\0" + answer
    return LENGTH.pack(HEADER.size + len(body)) + HEADER.pack(VERSION, op, number) + body


def read_error(raw: bytes) -> BroadcastError:
    """An error as it was told. Raises `BadFrame`."""
    try:
        told = json.loads(raw)
        return _KINDS[told["kind"]](str(told["code"]), **{str(name): value for name, value in told["facts"].items()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadFrame from None


class Reader:
    """Takes a payload apart; raises `BadFrame` at its end."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    @property
    def is_done(self) -> bool:
        """Whether nothing is left."""
        return self._at == len(self._raw)

    def take(self, size: int) -> bytes:
        """So many bytes."""
        part = self._raw[self._at : self._at + size]
        if len(part) != size:
            raise BadFrame
        self._at += size
        return part

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Fields of a fixed layout."""
        at, end = self._at, self._at + layout.size
        if end > len(self._raw):
            raise BadFrame
        self._at = end
        return layout.unpack_from(self._raw, at)

    def long(self) -> bytes:
        """A byte string after its length."""
        (length,) = self.unpack(LENGTH)
        return self.take(length)

    def many(self, most: int) -> Iterator[bytes]:
        """All that is left, each after its length."""
        for _ in range(most):
            if self.is_done:
                return
            yield self.long()
        self.end()

    def text(self, size: int) -> str:
        """UTF-8 of so many bytes."""
        try:
            return self.take(size).decode()
        except UnicodeDecodeError:
            raise BadFrame from None

    def end(self) -> None:
        """Nothing may be left."""
        if not self.is_done:
            raise BadFrame


# -- the client -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name of the socket that the kernel takes, however deep it lies."""
    plain = str(path.absolute())
    if len(plain.encode()) <= _LONGEST_PATH:
        yield plain
        return
    folder = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@dataclass(slots=True)
class _Lane:
    """One connection and whose turn it is on it."""

    timeout_s: float
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    calls: int = 0


class SignerDoor:
    """The `Signer` of a process that holds no keys."""

    def __init__(self, socket: Path, clock: Clock) -> None:
        self._socket, self._clock = socket, clock
        self._lanes = {
            "urgent": _Lane(URGENT_CALL_S),
            "streams": _Lane(URGENT_CALL_S),
            "plans": _Lane(CALL_S),
            "keys": _Lane(CALL_S),
            "looks": _Lane(CONNECT_S),
        }
        self._root: bytes | None = None
        self.is_up = False
        """Whether it answered when it was last asked."""

    # -- the port

    def root_public(self) -> bytes:
        """The raw public root key that nodes are enrolled with. Raises `Unavailable` before it was `reached`."""
        if self._root is None:
            raise Unavailable("signer_away")
        return self._root

    async def sign_many(self, requests: Sequence[SignRequest]) -> list[bytes]:
        """See `Signer.sign_many`."""
        sealed = []
        for outcome in await self.sign_each(requests):
            if isinstance(outcome, Refused):
                raise outcome
            sealed.append(outcome)
        return sealed

    async def sign_each(self, requests: Sequence[SignRequest]) -> list[bytes | Refused]:
        """See `Signer.sign_each`. Raises `Unavailable`."""
        outcomes: list[bytes | Refused] = []
        for part in _split(requests):
            answer = await self._call(_lane_of(part), Op.SIGN, pack_requests(part))
            try:
                outcomes += read_outcomes(answer, len(part))
            except BadFrame:
                raise Corrupt("signer_garbled") from None
        return outcomes

    async def statements_of(
        self, units: Sequence[str], *, issued_ms: int, epoch: int, sequence: int
    ) -> list[tuple[bytes, ...] | Refused]:
        """See `Signer.statements_of`. Raises `Unavailable`."""
        said: list[tuple[bytes, ...] | Refused] = []
        for start in range(0, len(units), _UNITS_AT_ONCE):
            part = units[start : start + _UNITS_AT_ONCE]
            asked = pack_keys(part, issued_ms=issued_ms, epoch=epoch, sequence=sequence)
            try:
                said += read_statements(await self._call("keys", Op.KEYS, asked), len(part))
            except BadFrame:
                raise Corrupt("signer_garbled") from None
        return said

    # -- life

    async def reached(self, within_s: float) -> None:
        """Return as soon as it answers. Raises `Unavailable("signer_away")` where it does not in time."""
        until_s = self._clock.monotonic() + within_s
        while True:
            try:
                await self._hello()
            except Unavailable:
                if self._clock.monotonic() >= until_s:
                    raise
                await self._clock.sleep(0.05)
            else:
                return

    async def answers(self) -> bool:
        """Whether it is there now."""
        try:
            await self._hello()
        except Unavailable:
            return False
        return True

    async def watch(self) -> None:
        """Ask for ever whether it is there, for who wants to know."""
        while True:
            await self.answers()
            await self._clock.sleep(LOOK_S)

    async def close(self) -> None:
        """Hang up. Idempotent."""
        for lane in self._lanes.values():
            _hang_up(lane)

    async def _hello(self) -> None:
        root = await self._call("looks", Op.HELLO, b"")
        if self._root is not None and root != self._root:
            log.error("signer.another_root")
        self._root = root

    async def _call(self, name: str, op: Op, payload: bytes) -> bytes:
        lane = self._lanes[name]
        async with lane.turn:
            is_fresh = lane.link is None
            try:
                answer = await self._talk(lane, op, payload)
            except Unavailable:
                if is_fresh:
                    raise
                answer = await self._talk(lane, op, payload)  # it went and came back since the last call
        status, body = answer[:1], answer[1:]
        if status == b"\0":
            return body
        try:
            error = read_error(body)
        except BadFrame:
            error = Corrupt("signer_garbled")
        raise error

    async def _talk(self, lane: _Lane, op: Op, payload: bytes) -> bytes:
        lane.calls = number = (lane.calls + 1) & 0xFFFF_FFFF
        called = HEADER.pack(VERSION, op, number)
        frame = b""
        try:
            async with asyncio.timeout(lane.timeout_s):
                if lane.link is None:
                    with short_path(self._socket) as path:
                        lane.link = await asyncio.open_unix_connection(path)
                reader, writer = lane.link
                writer.write(LENGTH.pack(len(called) + len(payload)) + called + payload)
                await writer.drain()
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                if length <= MAX_FRAME_BYTES:
                    frame = await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self.is_up = False
            raise Unavailable("signer_away") from error
        finally:
            if not frame.startswith(called):
                _hang_up(lane)  # also where nobody waits any more: an answer must not be taken for the next one's
        if not frame.startswith(called):
            raise Unavailable("signer_garbled")
        self.is_up = True
        return frame[len(called) :]


def _hang_up(lane: _Lane) -> None:
    link, lane.link = lane.link, None
    if link is not None:
        link[1].close()


def _lane_of(requests: Sequence[SignRequest]) -> str:
    kinds = {request.kind for request in requests}
    if Kind.ALERTS in kinds:
        return "urgent"
    return "streams" if kinds <= {Kind.HEAD} else "plans"


def _split(requests: Sequence[SignRequest]) -> Iterator[list[SignRequest]]:
    part: list[SignRequest] = []
    size, attached = 0, set[int]()
    for request in requests:
        more = len(request.body) + 600
        if request.packed is not None and id(request.packed) not in attached:
            attached.add(id(request.packed))
            more += len(request.packed)
        if part and (len(part) == MAX_REQUESTS or size + more > _SPLIT_BYTES):
            yield part
            part, size, attached = [], 0, set()
        part.append(request)
        size += more
    if part:
        yield part
