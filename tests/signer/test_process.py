"""The process as it runs in the field: killed in the middle of a batch, taken for dead, and one that runs already."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from broadcast_server.domain.clock import to_ms
from broadcast_server.domain.errors import Unavailable
from broadcast_server.signer.child import POLICY, SignerChild, for_an_errand
from broadcast_server.signer.config import Config
from broadcast_server.signer.door import SignerDoor
from broadcast_server.signer.port import SignRequest
from broadcast_server.store import leases, places, sequences
from broadcast_server.store.migrations import migrate
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import UnitRow
from broadcast_server.supervise import Supervisor, SystemChance, SystemClock, ThreadExecutor
from speaker_protocol.messages import AlertSetBody
from speaker_protocol.signing import Kind
from tests.support.until import until

UNITS = [f"xa-{number}" for number in range(300)]


def config_in(folder: Path) -> Config:
    return Config(
        store_url=f"sqlite:///{folder / 'loa.sqlite'}",
        keys=folder / "keys",
        answering=folder / "time-key",
        socket=folder / "signer.sock",
        mode=0o600,
        user=None,
        allowed=(),
        until_eof=False,
        log_json=True,
        log_level="warning",
    )


async def a_led_store(config: Config) -> None:
    """Three hundred communes, a leader, a number that was given."""
    clock = SystemClock()
    migrate(config.store_url)
    threads = ThreadExecutor(1, name="test.store")
    store = Store(config.store_url, clock=clock, chance=SystemChance(), executor=threads)

    def write(session: Session) -> None:
        places.ensure_kinds(session)
        session.flush()
        now = clock.now()
        for unit in UNITS:
            session.add(UnitRow(id=unit, kind="commune", name=unit, name_folded=unit, created_at=now))
        leases.acquire(session, leases.LEADER, "test", now=now, ttl=timedelta(hours=1))
        sequences.take(session, sequences.SIGNED)

    await store.begin(write)
    await store.close()
    threads.close()


@contextlib.asynccontextmanager
async def a_child(config: Config) -> AsyncIterator[tuple[SignerChild, SignerDoor]]:
    clock = SystemClock()
    door = SignerDoor(config.socket, clock)
    child = SignerChild(config, door, clock)
    async with Supervisor(clock=clock, chance=SystemChance()) as supervisor:
        supervisor.keep("signer", child.run, POLICY)
        await door.reached(30.0)
        try:
            yield child, door
        finally:
            await door.close()


def silence(unit: str) -> SignRequest:
    """The empty set of a unit, which is always true of these rows."""
    now_ms = to_ms(SystemClock().now()) // 600_000 * 600_000  # the same for all that this test asks
    return SignRequest(Kind.ALERTS, unit, unit, now_ms, now_ms + 60_000, 1, 1, AlertSetBody().encode())


async def test_a_signer_killed_in_the_middle_of_batches_loses_nothing(tmp_path: Path):
    config = config_in(tmp_path)
    await a_led_store(config)
    async with a_child(config) as (child, door):
        now_ms = silence("xa-0").issued_ms
        said = await door.statements_of(UNITS, issued_ms=to_ms(SystemClock().now()), epoch=1, sequence=1)
        assert all(isinstance(one, tuple) for one in said)
        batch = [silence(unit) for unit in UNITS]
        batch = [SignRequest(one.kind, one.unit, one.target, now_ms, now_ms + 60_000, 1, 1, one.body) for one in batch]
        first = await door.sign_many(batch)
        dead: set[int] = set()
        broken = 0
        for number in range(3):
            assert child.pid is not None
            asked = asyncio.create_task(door.sign_many(batch))
            await until(lambda asked=asked: door._lanes["urgent"].turn.locked() or asked.done(), timeout_s=10)
            pid = child.pid
            os.kill(pid, signal.SIGKILL)
            dead.add(pid)
            try:
                assert await asked == first
            except Unavailable:
                broken += 1
            await until(lambda: child.pid not in {None, *dead}, timeout_s=30)
            await door.reached(30.0)
            assert await door.sign_many(batch) == first, number
        assert len(dead) == 3


async def test_an_errand_uses_the_process_that_runs_and_starts_one_where_none_does(tmp_path: Path):
    config = config_in(tmp_path)
    await a_led_store(config)
    async with for_an_errand(config, SystemClock()) as door:
        root = door.root_public()
        (said,) = await door.statements_of(["xa-1"], issued_ms=to_ms(SystemClock().now()), epoch=1, sequence=1)
        assert isinstance(said, tuple)
    assert not config.socket.exists()
    async with a_child(config) as (child, _):
        pid = child.pid
        async with for_an_errand(config, SystemClock()) as door:
            assert door.root_public() == root
        assert child.pid == pid
