"""The machine's clock, chance and threads keep what their ports promise."""

from __future__ import annotations

import threading
from datetime import UTC

from broadcast_server.supervise import InlineExecutor, SystemChance, SystemClock, ThreadExecutor


def test_ids_are_ordered_by_time_even_within_a_millisecond() -> None:
    chance = SystemChance()
    ids = [chance.new_id() for _ in range(5000)]
    assert ids == sorted(set(ids))
    assert all(len(made) == 32 and made[12] == "7" and made[16] in "89ab" for made in ids), "RFC 9562 UUIDv7"


async def test_instants_are_aware_and_in_utc() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(-1)
    assert clock.now().tzinfo is UTC
    assert clock.monotonic() >= before


async def test_one_worker_does_one_thing_after_the_other_off_the_loop() -> None:
    executor = ThreadExecutor(1, name="store")
    names = [await executor.run(lambda: threading.current_thread().name) for _ in range(2)]
    assert names == ["store_0", "store_0"]
    assert await executor.run(pow, 2, 10) == 1024
    executor.close()
    executor.close()


async def test_inline_work_is_done_before_anything_else_runs() -> None:
    assert await InlineExecutor().run(lambda: threading.current_thread() is threading.main_thread())
