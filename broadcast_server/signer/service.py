"""The signing process: a unix socket before a `Signer` (`checked`), for the users that may ask and nobody else.

A maintainer must not break: (1) the kernel says who asks (`SO_PEERCRED`), nothing the other side sends does; (2) a
frame that is none, is too large or takes too long ends the connection and is counted; (3) one process at a time holds a
key folder (`flock`), so no key is made twice; (4) each connection is answered in order and on its own, so a flood on
one costs the others only their share of this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path
from typing import Final

from broadcast_server.domain.clock import Clock
from broadcast_server.domain.errors import BroadcastError, Refused, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.signer import door
from broadcast_server.signer.door import HEADER, LENGTH, MAX_FRAME_BYTES, VERSION, BadFrame, Op
from broadcast_server.signer.port import Signer

log = get_logger()

FRAME_S: Final = 10.0
"""A frame that began is there in so long, or its connection ends."""
MOST_CONNECTIONS: Final = 32
_CREDENTIALS: Final = struct.Struct("3i")
_ROOT_UID: Final = 0


class Service:
    """Answers on one socket."""

    def __init__(self, signer: Signer, *, clock: Clock, allowed: Collection[int]) -> None:
        """`allowed`: user ids that may ask, beside our own and root's."""
        self._signer, self._clock = signer, clock
        self._allowed = frozenset({*allowed, os.geteuid(), _ROOT_UID})
        self._talking: set[asyncio.StreamWriter] = set()
        self.turned_away: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def listening(self, path: Path, mode: int) -> AsyncIterator[None]:
        """Answer as long as it is entered. Raises `Unavailable("signer_socket_taken")`."""
        listener = bind(path, mode)
        server = await asyncio.start_unix_server(self._meet, sock=listener)
        log.info("signer.ready", socket=str(path))
        try:
            yield
        finally:
            server.close()
            for writer in tuple(self._talking):
                writer.close()
            with contextlib.suppress(FileNotFoundError):
                path.unlink()  # noqa: ASYNC240  one name, at the end

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._may_enter(writer):
                self._talking.add(writer)
                await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # it hung up
        except (BadFrame, TimeoutError) as error:
            self.turned_away["garbage" if isinstance(error, BadFrame) else "slow"] += 1
            log.warning("signer.bad_frame", reason=type(error).__name__)
        finally:
            self._talking.discard(writer)
            writer.close()

    def _may_enter(self, writer: asyncio.StreamWriter) -> bool:
        link: socket.socket = writer.get_extra_info("socket")
        told = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(told)
        if uid not in self._allowed:
            self.turned_away["stranger"] += 1
            log.error("signer.stranger", uid=uid, pid=pid)
            return False
        if len(self._talking) >= MOST_CONNECTIONS:
            self.turned_away["crowd"] += 1
            log.warning("signer.crowd", uid=uid, pid=pid)
            return False
        return True

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            if not HEADER.size <= length <= MAX_FRAME_BYTES:
                raise BadFrame
            async with asyncio.timeout(FRAME_S):
                frame = await reader.readexactly(length)
            version, op, number = HEADER.unpack_from(frame)
            answer = await self._answer(version, op, frame[HEADER.size :])
            writer.write(door.pack_answer(number, op, answer))
            async with asyncio.timeout(FRAME_S):
                await writer.drain()

    async def _answer(self, version: int, op: int, payload: bytes) -> bytes | BroadcastError:
        if version != VERSION:
            return Refused("signer_version", version=version, known=VERSION)
        try:
            match op:
                case Op.HELLO if not payload:
                    return self._signer.root_public()
                case Op.SIGN:
                    return door.pack_outcomes(await self._signer.sign_each(door.read_requests(payload)))
                case Op.KEYS:
                    units, issued_ms, epoch, sequence = door.read_keys(payload)
                    return door.pack_statements(
                        await self._signer.statements_of(units, issued_ms=issued_ms, epoch=epoch, sequence=sequence)
                    )
        except BroadcastError as error:
            return error
        raise BadFrame


def bind(path: Path, mode: int) -> socket.socket:
    """A listening socket of this file mode; one that nobody listens on any more is taken over.

    Raises `Unavailable("signer_socket_taken")`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with door.short_path(path) as short:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(short) == 0:
                    listener.close()
                    raise Unavailable("signer_socket_taken", path=str(path))
            path.unlink()
        before = os.umask(0o777)  # nobody enters before the mode is right
        try:
            listener.bind(short)
        except OSError as error:
            listener.close()
            raise Unavailable("signer_socket_taken", path=str(path)) from error
        finally:
            os.umask(before)
        path.chmod(mode)
    listener.listen(MOST_CONNECTIONS)
    listener.setblocking(False)
    return listener


@contextlib.contextmanager
def key_folder(folder: Path) -> Iterator[None]:
    """Hold the folder alone, readable by us alone. Raises `Unavailable` (`signer_keys_away`, `signer_keys_taken`)."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        file = (folder / "signer.lock").open("ab")
    except OSError as error:
        raise Unavailable("signer_keys_away", path=str(folder), said=str(error)) from error
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Unavailable("signer_keys_taken", path=str(folder)) from error
        yield
