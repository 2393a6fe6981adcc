"""Virtual time and seeded chance: what the machine's clock and randomness are to a real run.

A maintainer must not break: (1) the loop never waits: with nothing ready it jumps to its next timer, so a day costs
what its events cost; (2) no thread and no socket can be made in it (both raise), because their order is not ours;
(3) every chance is a `random.Random` seeded by a text, which Python's hash randomisation does not touch.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class Stuck(RuntimeError):  # noqa: N818  reads as what happened
    """Everybody waits for somebody, and no timer is left: in a real run this would hang for ever."""


class _Jump:
    """In the place of a selector: instead of waiting, it moves the loop's time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        """Nothing ever arrives from outside."""
        if timeout is None:
            raise Stuck("nobody is ready and no timer is set")
        if timeout > 0:
            self._loop.jump(timeout)
        return []

    def close(self) -> None:
        """Nothing to close."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop whose `time()` moves only by jumps."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._selector = _Jump(self)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s

    def jump(self, seconds: float) -> None:
        """Let time pass at once."""
        self._now_s += seconds

    def run_in_executor(self, *_: object) -> NoReturn:
        """There are no threads here."""
        raise RuntimeError("no thread runs on virtual time")

    def _process_events(self, event_list: list[Any]) -> None:
        del event_list

    def _write_to_self(self) -> None:
        """`call_soon_threadsafe` from the loop's own thread needs no waking."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """What `main` returns, on a virtual loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class VirtualTime:
    """The world's time: a server `Clock` and the nodes' `TrueTime` at once."""

    def __init__(self, start: datetime) -> None:
        self._loop = asyncio.get_running_loop()
        self._start = start
        self._start_ns = (start - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1_000

    def now(self) -> datetime:
        """The instant, aware, UTC."""
        return self._start + timedelta(seconds=self._loop.time())

    def now_ns(self) -> int:
        """True UTC, in nanoseconds."""
        return self._start_ns + round(self._loop.time() * 1e9)

    def now_ms(self) -> int:
        """True UTC, in milliseconds."""
        return self.now_ns() // 1_000_000

    def monotonic(self) -> float:
        """Virtual seconds since the beginning."""
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        """Let virtual time pass."""
        await asyncio.sleep(max(0.0, seconds))

    def ring(self, seconds: float, bell: Callable[[], None]) -> Callable[[], None]:
        """See `firmware_sim.clock.TrueTime`."""
        return self._loop.call_later(seconds, bell).cancel


class SeededChance:
    """The server's `Chance` from a seed."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)  # noqa: S311  a simulation's keys guard nothing
        self._count = itertools.count(1)

    def new_id(self) -> str:
        """32 hex digits, ordered by the order of asking."""
        return f"{next(self._count):012x}{self._random.getrandbits(80):020x}"

    def token_bytes(self, count: int) -> bytes:
        """`count` bytes."""
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        """A float in `[low, high]`."""
        return self._random.uniform(low, high)


def dice(seed: int, use: str) -> random.Random:
    """A chance of its own for one use, so that one more throw here changes nothing elsewhere."""
    return random.Random(f"{seed}/{use}")  # noqa: S311  a simulation's chance must be repeatable
