"""What keeps the program alive: the machine's clock and chance, threads, kept-alive coroutines, child processes.

A maintainer must not break: (1) the only `except Exception` of the product is `Supervisor._keep_alive`; (2) every child
is an argument list in a session of its own, ended by SIGTERM, a grace and SIGKILL to its whole group, and dies with us
even when we are killed (`setpriv --pdeathsig`); (3) a part that fails faster than its budget allows is given up loudly:
an error in the log, a state in `status()`, and `on_give_up`, so that the process can end and be started anew by others.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import ctypes
import enum
import functools
import os
import secrets
import shutil
import signal
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar, TypeVarTuple, Unpack

from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import Unavailable
from broadcast_server.logs import get_logger, scrub

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

log = get_logger()

STDERR_LINES = 100
STDERR_LINE_BYTES = 4_096


# ------------------------------------------------------------------------------------------------ clock and chance


class SystemClock:
    """The machine's time; the only place of the server that asks it."""

    def now(self) -> datetime:
        """The instant, aware, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin; never steps."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`; a negative or zero wait lets others run once."""
        await asyncio.sleep(max(0.0, seconds))


class SteadyClock:
    """The machine's time as it was at the start, carried on by the monotonic clock.

    A step of the machine's clock moves nothing that runs on this one until `follow` is called, so a relay, a lease and
    the expiry of an emergency keep their length while somebody finds out which of the two is right.
    """

    def __init__(self, machine: Clock) -> None:
        self._machine = machine
        self._zero = machine.now() - timedelta(seconds=machine.monotonic())

    def now(self) -> datetime:
        """The instant, aware, UTC; never steps by itself."""
        return self._zero + timedelta(seconds=self._machine.monotonic())

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin; never steps."""
        return self._machine.monotonic()

    async def sleep(self, seconds: float) -> None:
        """As the machine's clock sleeps."""
        await self._machine.sleep(seconds)

    def step_s(self) -> float:
        """How far the machine's clock has stepped away from this one: positive when the machine is ahead."""
        return (self._machine.now() - self.now()).total_seconds()

    def follow(self) -> None:
        """Take the machine's time as it is now."""
        self._zero = self._machine.now() - timedelta(seconds=self._machine.monotonic())


def kernel_is_synchronised() -> bool | None:
    """Whether the kernel says that something (NTP, PTP) disciplines its clock: a hint. None where it does not say."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        told = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if told < 0 else told != _TIME_ERROR


_TIMEX_BYTES = 512  # more than `struct timex` takes anywhere; zeros ask and change nothing
_TIME_ERROR = 5


class SystemChance:
    """The machine's randomness, good enough for keys."""

    def __init__(self) -> None:
        self._random = secrets.SystemRandom()
        self._last = 0

    def new_id(self) -> str:
        """A new id: 32 lower-case hex digits, ordered by time even within a millisecond (UUIDv7, RFC 9562 §6.2)."""
        stamp = (time.time_ns() // 1_000_000) << 12
        self._last = stamp = max(stamp | secrets.randbits(8), self._last + 1)
        high = (stamp >> 12) << 16 | 0x7000 | (stamp & 0xFFF)
        low = 0b10 << 62 | secrets.randbits(62)
        return f"{high << 64 | low:032x}"

    def token_bytes(self, count: int) -> bytes:
        """`count` unpredictable bytes."""
        return secrets.token_bytes(count)

    def uniform(self, low: float, high: float) -> float:
        """A float in `[low, high]`."""
        return self._random.uniform(low, high)


# ------------------------------------------------------------------------------------------------------- executors


class Executor(Protocol):
    """Where blocking work goes: store, hashing, encoding, files. One port, so that a simulation can run it inline."""

    async def run(self, work: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """What `work(*args)` returns or raises. A cancelled wait does not stop work that has begun."""
        ...


class InlineExecutor:
    """Runs the work at once, in the loop: for tests and virtual time, where order must not depend on threads."""

    async def run(self, work: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """What `work(*args)` returns or raises, before anything else of the loop runs."""
        return work(*args)


class ThreadExecutor:
    """A bounded pool of named threads. With `max_workers=1` work is done one by one, in order of asking."""

    def __init__(self, max_workers: int, *, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=max_workers, thread_name_prefix=name)

    async def run(self, work: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """What `work(*args)` returns or raises; context variables go along."""
        context = contextvars.copy_context()
        called = functools.partial(context.run, work, *args)
        return await asyncio.get_running_loop().run_in_executor(self._pool, called)

    def close(self) -> None:
        """Drop what has not begun, wait for what has. Idempotent."""
        self._pool.shutdown(wait=True, cancel_futures=True)


# -------------------------------------------------------------------------------------------------------- back-off


class Backoff:
    """Waits that grow and never march in step: `uniform(half, whole)` of a delay that doubles up to a ceiling."""

    def __init__(self, chance: Chance, *, first_s: float = 0.2, longest_s: float = 30.0, factor: float = 2.0) -> None:
        self._chance, self._first_s, self._longest_s, self._factor = chance, first_s, longest_s, factor
        self.attempt = 0

    def next_s(self) -> float:
        """Seconds to wait before the next attempt."""
        whole_s = min(self._longest_s, self._first_s * self._factor ** min(self.attempt, 60))
        self.attempt += 1
        return self._chance.uniform(whole_s / 2, whole_s)

    def reset(self) -> None:
        """It works again: the next wait is a first one."""
        self.attempt = 0


# ------------------------------------------------------------------------------------------------------ supervisor


class TaskState(enum.StrEnum):
    """Where a kept coroutine is in its life."""

    RUNNING = "running"
    BACKING_OFF = "backing_off"
    FINISHED = "finished"
    GAVE_UP = "gave_up"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How a failed coroutine is started again, as data.

    More than `budget` failures within `window_s` and it is given up; `budget=None` never gives up. After
    `healthy_after_s` of running without a failure the back-off starts from its first delay again.
    """

    first_delay_s: float = 0.2
    longest_delay_s: float = 30.0
    budget: int | None = 10
    window_s: float = 60.0
    healthy_after_s: float = 30.0


FOREVER = RestartPolicy(budget=None)


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """What `/readyz`, the fleet page and a technician see of one kept coroutine."""

    name: str
    state: TaskState
    restarts: int
    since: datetime
    last_error: str | None


@dataclass(slots=True)
class _Kept:
    name: str
    start: Callable[[], Awaitable[None]]
    policy: RestartPolicy
    since: datetime
    state: TaskState = TaskState.RUNNING
    restarts: int = 0
    last_error: str | None = None
    failures_at_s: collections.deque[float] = field(default_factory=collections.deque)
    task: asyncio.Task[None] | None = None


class Supervisor:
    """Keeps named coroutines alive.

    A coroutine that returns is finished; one that raises is started again after a jittered back-off, until its
    restart budget is spent. `on_give_up(name, error)` is then called once, in the loop.
    """

    def __init__(
        self, *, clock: Clock, chance: Chance, on_give_up: Callable[[str, Exception], None] | None = None
    ) -> None:
        self._clock, self._chance, self._on_give_up = clock, chance, on_give_up
        self._kept: dict[str, _Kept] = {}

    def keep(self, name: str, start: Callable[[], Awaitable[None]], policy: RestartPolicy = RestartPolicy()) -> None:
        """Run `start()` in a task of this name from now on. A name is kept once: `ValueError` while it still runs."""
        known = self._kept.get(name)
        if known is not None and known.task is not None and not known.task.done():
            raise ValueError(f"{name} is kept already")
        kept = _Kept(name=name, start=start, policy=policy, since=self._clock.now())
        self._kept[name] = kept
        kept.task = asyncio.create_task(self._keep_alive(kept), name=name)

    def status(self) -> tuple[TaskStatus, ...]:
        """Every coroutine kept so far, in order of name."""
        return tuple(
            TaskStatus(kept.name, kept.state, kept.restarts, kept.since, kept.last_error)
            for _, kept in sorted(self._kept.items())
        )

    async def drop(self, name: str) -> None:
        """Cancel one, wait for its end and forget it. Unknown names are fine."""
        kept = self._kept.pop(name, None)
        if kept is not None:
            await _cancel(kept.task)

    async def close(self) -> None:
        """Cancel all, newest first, and wait for each. Idempotent; `status()` still tells how they ended."""
        for kept in reversed(self._kept.values()):
            await _cancel(kept.task)
            if kept.state in {TaskState.RUNNING, TaskState.BACKING_OFF}:
                self._enter(kept, TaskState.STOPPED)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def _keep_alive(self, kept: _Kept) -> None:
        policy = kept.policy
        backoff = Backoff(self._chance, first_s=policy.first_delay_s, longest_s=policy.longest_delay_s)
        while True:
            self._enter(kept, TaskState.RUNNING)
            started_s = self._clock.monotonic()
            try:
                await kept.start()
            except Exception as error:  # the one broad net of the product
                failed_s = self._clock.monotonic()
                kept.last_error = scrub(f"{type(error).__name__}: {error}")
                if failed_s - started_s >= policy.healthy_after_s:
                    backoff.reset()
                if self._is_spent(kept, failed_s):
                    self._give_up(kept, error)
                    return
                wait_s = backoff.next_s()
                kept.restarts += 1
                self._enter(kept, TaskState.BACKING_OFF)
                expected = isinstance(error, Unavailable)
                log.warning(
                    "task.failed",
                    task=kept.name,
                    error=kept.last_error,
                    restarts=kept.restarts,
                    wait_s=round(wait_s, 3),
                    exc_info=None if expected else error,
                )
            else:
                self._enter(kept, TaskState.FINISHED)
                return
            await self._clock.sleep(wait_s)

    def _is_spent(self, kept: _Kept, now_s: float) -> bool:
        if kept.policy.budget is None:
            return False
        failures = kept.failures_at_s
        failures.append(now_s)
        while failures and failures[0] <= now_s - kept.policy.window_s:
            failures.popleft()
        return len(failures) > kept.policy.budget

    def _give_up(self, kept: _Kept, error: Exception) -> None:
        self._enter(kept, TaskState.GAVE_UP)
        log.error("task.given_up", task=kept.name, error=kept.last_error, restarts=kept.restarts, exc_info=error)
        if self._on_give_up is not None:
            self._on_give_up(kept.name, error)

    def _enter(self, kept: _Kept, state: TaskState) -> None:
        kept.state, kept.since = state, self._clock.now()


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is None or task is asyncio.current_task():
        return
    task.cancel()
    await asyncio.wait([task])


# --------------------------------------------------------------------------------------------------- child process


@dataclass(frozen=True, slots=True)
class Usage:
    """What a child has used so far."""

    rss_bytes: int
    peak_rss_bytes: int
    cpu_s: float


@functools.cache
def _setpriv() -> str | None:
    return shutil.which("setpriv")


class Child:
    """A child process as an async context manager.

    `stdin`: chunks to feed; None gives it an empty input. stderr is read to the end always; its last 100 lines are
    kept, URLs and secrets scrubbed, and given to `on_stderr` one by one. stdout is a stream for the caller if `stdout`
    is True, else /dev/null. Raises `Unavailable("program_missing")` when the program is not there or may not be run.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        name: str,
        stdin: AsyncIterable[bytes] | None = None,
        keep_stdin: bool = False,
        stdout: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        pass_fds: Sequence[int] = (),
        grace_s: float = 2.0,
        stdout_limit_bytes: int = 1 << 16,
        on_stderr: Callable[[str], None] | None = None,
    ) -> None:
        """`keep_stdin`: leave stdin open for `write` and `end_input`, instead of a feeder."""
        self.argv = tuple(os.fspath(part) for part in argv)
        self.program = Path(self.argv[0]).name
        self.name = name
        self._feed = stdin
        self._keep_stdin = keep_stdin
        self._wants_stdout = stdout
        self._env, self._cwd, self._pass_fds = env, cwd, tuple(pass_fds)
        self._grace_s = grace_s
        self._stdout_limit_bytes = stdout_limit_bytes
        self._on_stderr = on_stderr
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._tail: collections.deque[str] = collections.deque(maxlen=STDERR_LINES)
        self._closing: asyncio.Task[None] | None = None
        self.feed_error: BaseException | None = None

    # -- life

    async def start(self) -> Self:
        """Start it. Raises `Unavailable` if the program cannot be run."""
        argv = self.argv
        if (setpriv := _setpriv()) is not None:
            if shutil.which(argv[0], path=(self._env or os.environ).get("PATH")) is None:
                raise Unavailable("program_missing", program=self.program)
            argv = (setpriv, "--pdeathsig", "KILL", "--", *argv)
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        try:
            self._process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=pipe if self._feed is not None or self._keep_stdin else null,
                stdout=pipe if self._wants_stdout else null,
                stderr=pipe,
                env=self._env,
                cwd=self._cwd,
                pass_fds=self._pass_fds,
                start_new_session=True,
                limit=self._stdout_limit_bytes,
            )
        except (FileNotFoundError, PermissionError) as error:
            raise Unavailable("program_missing", program=self.program) from error
        self._tasks.append(asyncio.create_task(self._read_stderr(self._process), name=f"{self.name}.stderr"))
        if self._feed is not None:
            feeder = asyncio.create_task(self._feed_stdin(self._feed), name=f"{self.name}.stdin")
            feeder.add_done_callback(self._note_feed_error)
            self._tasks.append(feeder)
        return self

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.close()

    async def wait(self) -> int:
        """The exit code, once it ended by itself or by `terminate`; negative: the signal that killed it.

        Does not read stdout: a caller who asked for it must, or the child blocks on a full pipe.
        """
        code = await self._running.wait()
        # Its last words: stderr ends with the process, unless a grandchild holds the pipe.
        await asyncio.wait([self._tasks[0]], timeout=1.0)
        return code

    async def terminate(self, grace_s: float | None = None) -> int:
        """SIGTERM to the group, after `grace_s` SIGKILL to the group; returns the exit code. Idempotent."""
        process = self._running
        if process.returncode is None:
            self.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), self._grace_s if grace_s is None else grace_s)
        self._signal_group(signal.SIGKILL)
        return await process.wait()

    async def close(self) -> None:
        """Terminate, stop feeding, drain, reap. Idempotent, and finished even when the caller is cancelled."""
        if self._process is None:
            return
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(self._process), name=f"{self.name}.close")
        try:
            await asyncio.shield(self._closing)
        except asyncio.CancelledError:
            await asyncio.wait([self._closing])
            raise

    async def _close(self, process: asyncio.subprocess.Process) -> None:
        for task in self._tasks[1:]:
            await _cancel(task)
        await self.terminate()
        # Ends the pipes for certain: a grandchild that left the group could hold them open for ever.
        await asyncio.wait([self._tasks[0]], timeout=0.5)
        await _cancel(self._tasks[0])
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001  asyncio has no public door for it
        await asyncio.sleep(0)

    # -- talk

    @property
    def stdout(self) -> asyncio.StreamReader:
        """Its output."""
        stream = self._running.stdout
        if stream is None:
            raise ValueError(f"{self.name} was started without stdout")
        return stream

    async def write(self, chunk: bytes) -> None:
        """Feed stdin, waiting while the child is slow. Raises `Unavailable("child_ended")` when it reads no more."""
        stream = self._running.stdin
        if stream is None:
            raise ValueError(f"{self.name} was started without stdin")
        try:
            stream.write(chunk)
            await stream.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Unavailable("child_ended", child=self.name) from error

    async def end_input(self) -> None:
        """Close stdin: the child sees the end of its input."""
        stream = self._running.stdin
        if stream is None or stream.is_closing():
            return
        stream.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await stream.wait_closed()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its group; nothing if it has ended."""
        if self._running.returncode is None:
            self._signal_group(number)

    # -- look

    @property
    def pid(self) -> int:
        """Its process id, which is also its group's."""
        return self._running.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, or None while it runs."""
        return None if self._process is None else self._process.returncode

    @property
    def stderr_tail(self) -> tuple[str, ...]:
        """The last 100 lines it complained, scrubbed."""
        return tuple(self._tail)

    def usage(self) -> Usage | None:
        """Memory and CPU so far, from /proc; None once it ended or where /proc is not."""
        return usage_of(self.pid)

    # -- inside

    @property
    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise ValueError(f"{self.name} was not started")
        return self._process

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._running.pid, number)

    async def _read_stderr(self, process: asyncio.subprocess.Process) -> None:
        stream = process.stderr
        if stream is None:
            return
        pending = b""
        while chunk := await stream.read(STDERR_LINE_BYTES):
            *lines, pending = (pending + chunk).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                self._hear(line)
            if len(pending) > STDERR_LINE_BYTES:  # a line without an end must not grow without one
                self._hear(pending)
                pending = b""
        self._hear(pending)

    def _hear(self, line: bytes) -> None:
        text = scrub(line[:STDERR_LINE_BYTES].decode(errors="replace").strip())
        if not text:
            return
        self._tail.append(text)
        if self._on_stderr is not None:
            self._on_stderr(text)

    async def _feed_stdin(self, feed: AsyncIterable[bytes]) -> None:
        stream = self._running.stdin
        try:
            async for chunk in feed:
                await self.write(chunk)
        finally:
            if stream is not None:
                stream.close()

    def _note_feed_error(self, feeder: asyncio.Task[None]) -> None:
        if not feeder.cancelled():
            self.feed_error = feeder.exception()


def usage_of(pid: int) -> Usage | None:
    """Memory and CPU of a process and of its children that were waited for; None once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return None
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    tick_hz = os.sysconf("SC_CLK_TCK")
    return Usage(
        rss_bytes=_kib(facts.get("VmRSS")),
        peak_rss_bytes=_kib(facts.get("VmHWM")),
        cpu_s=sum(int(ticks) for ticks in fields[11:15]) / tick_hz,
    )


def _kib(told: str | None) -> int:
    return int(told.split()[0]) * 1024 if told else 0
