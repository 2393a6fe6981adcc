"""`python -m broadcast_server.signer`: the signing process. Its settings come as one line of JSON on stdin.

Whoever starts it says everything: `broadcast-server signer` by handing its own process over, `serve` as a child. With
`until_eof` it ends when stdin does, so that it does not outlive a server that was killed. It imports little: no web
framework, no codec, no broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import sys
from typing import Final

from broadcast_server.domain.errors import BroadcastError
from broadcast_server.logs import configure, get_logger
from broadcast_server.signer.books import NAME as JOURNAL_NAME
from broadcast_server.signer.checked import CheckedSigner
from broadcast_server.signer.config import CONFIG_BYTES, Config
from broadcast_server.signer.keys import FileSigner
from broadcast_server.signer.service import Service, key_folder
from broadcast_server.store.journal import Journal
from broadcast_server.store.session import Store
from broadcast_server.supervise import SteadyClock, SystemChance, SystemClock, ThreadExecutor

log = get_logger()

STORE_THREADS: Final = 3
BUSY_MS: Final = 1_000
"""So long an audit row waits for another writer; an emergency's then goes into the journal."""
COULD_NOT_START: Final = 3


def become(user: str) -> None:
    """Give up root for good, its groups too. Raises `KeyError` where there is no such user."""
    entry = pwd.getpwnam(user)
    os.initgroups(user, entry.pw_gid)
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)


def _hear_the_end(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        stop.set()


async def run(config: Config) -> None:
    """Sign until told to stop. Raises `BroadcastError` where it cannot begin."""
    clock, chance = SteadyClock(SystemClock()), SystemChance()
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if config.until_eof:
        loop.add_reader(sys.stdin.fileno(), _hear_the_end, stop)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(key_folder(config.keys))
        threads = ThreadExecutor(STORE_THREADS, name="store")
        stack.callback(threads.close)
        store = Store(config.store_url, clock=clock, chance=chance, executor=threads, busy_timeout_ms=BUSY_MS)
        stack.push_async_callback(store.close)
        signer = CheckedSigner(
            lambda path_of: FileSigner(config.keys, chance=chance, path_of=path_of, answering=config.answering),
            store=store,
            clock=clock,
            machine=SystemClock(),
            journal=Journal(config.keys / JOURNAL_NAME),
        )
        service = Service(signer, clock=clock, allowed=config.allowed)
        await stack.enter_async_context(service.listening(config.socket, config.mode))
        await stop.wait()
        log.info("signer.stopping", signed=dict(signer.signed), refused=dict(signer.refused))


def main() -> int:
    """The program."""
    try:
        config = Config.read(sys.stdin.buffer.readline(CONFIG_BYTES))
        os.umask(0o077)
        configure(as_json=config.log_json, level=config.log_level)
        if config.user is not None and os.geteuid() == 0:
            become(config.user)
    except (ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"signer: no settings: {error!r}\n")
        return COULD_NOT_START
    try:
        asyncio.run(run(config))
    except BroadcastError as error:
        log.error("signer.could_not_start", code=error.code, facts=error.facts)  # noqa: TRY400
        return COULD_NOT_START
    return 0


if __name__ == "__main__":
    sys.exit(main())
