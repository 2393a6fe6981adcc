"""How a server comes by its signing process: it starts one as a child and keeps it, or finds one that runs already.

A maintainer must not break: (1) a child gets its settings on stdin and an environment without any of ours; (2) its end
is an error that the supervisor answers with another start, fast enough to be back within two seconds.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from broadcast_server.domain.clock import Clock
from broadcast_server.domain.errors import Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.signer.config import Config
from broadcast_server.signer.door import SignerDoor
from broadcast_server.supervise import Child, RestartPolicy

log = get_logger()

POLICY: Final = RestartPolicy(first_delay_s=0.1, longest_delay_s=2.0, budget=None, healthy_after_s=5.0)
LOOK_S: Final = 0.5
START_S: Final = 20.0
_KEPT: Final = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "TZ", "HOME")


class SignerChild:
    """Keeps the process behind a socket. `door`: the same socket's."""

    def __init__(self, config: Config, door: SignerDoor, clock: Clock) -> None:
        self._config, self._door, self._clock = replace(config, until_eof=True), door, clock
        self.pid: int | None = None
        """Of the child that runs now."""

    async def run(self) -> None:
        """Run one until it ends; meanwhile, as long as another answers at the socket, only watch that one.

        Raises `Unavailable("signer_ended")`.
        """
        while await self._door.answers():
            await self._clock.sleep(LOOK_S)
        async with _child(_say) as child:
            self.pid = child.pid
            await child.write(self._config.line)
            code = await child.wait()
        self.pid = None
        raise Unavailable("signer_ended", exit_code=code)


def _child(on_stderr: Callable[[str], None]) -> Child:
    return Child(
        [sys.executable, "-m", "broadcast_server.signer"],
        name="signer",
        keep_stdin=True,
        stdout=False,
        env={name: os.environ[name] for name in _KEPT if name in os.environ},
        grace_s=5.0,
        on_stderr=on_stderr,
    )


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


@contextlib.asynccontextmanager
async def for_an_errand(config: Config, clock: Clock) -> AsyncIterator[SignerDoor]:
    """A door to the signing process that runs, or to one that lives as long as the errand. Raises `Unavailable`."""
    door = SignerDoor(config.socket, clock)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(door.close)
        if not await door.answers():
            child = await stack.enter_async_context(_child(lambda _line: None))
            await child.write(replace(config, until_eof=True).line)
        await door.reached(START_S)
        yield door


def make_room_for(user: str, *, keys: Path, shared: Path, store_file: Path | None) -> None:
    """As root: give the keys to the signer's user alone, and let its group write where the socket and the rows are.

    Raises `Unavailable("signer_user_unknown")`.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise Unavailable("signer_user_unknown", user=user) from None
    keys.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in (keys, *keys.iterdir()):
        os.chown(path, entry.pw_uid, entry.pw_gid)
    keys.chmod(0o700)
    os.chown(shared, -1, entry.pw_gid)
    shared.chmod(0o2770)
    files = [] if store_file is None else [store_file.with_name(store_file.name + end) for end in ("", "-wal", "-shm")]
    for file in files:
        if file.exists():
            os.chown(file, -1, entry.pw_gid)
            file.chmod(0o660)
