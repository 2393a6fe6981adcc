"""A child process is fed, heard, and never outlives us."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broadcast_server.domain.errors import Unavailable
from broadcast_server.supervise import Child, usage_of
from tests.support.until import until


async def test_what_is_fed_comes_through_however_large() -> None:
    async def feed() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 100_000

    async with Child(["wc", "-c"], name="wc", stdin=feed()) as child:
        assert await child.stdout.read() == b"5000000\n"
        assert await child.wait() == 0


async def test_one_may_talk_to_it_line_by_line() -> None:
    async with Child(["cat"], name="cat", keep_stdin=True) as child:
        await child.write("xin chào\n".encode())
        assert (await child.stdout.readline()).decode() == "xin chào\n"
        await child.end_input()
        assert await child.wait() == 0
        with pytest.raises(Unavailable):
            await child.write(b"too late" * 100_000)


async def test_its_complaints_are_kept_short_and_clean() -> None:
    heard: list[str] = []
    script = "for i in $(seq 150); do echo line $i >&2; done; echo 'open http://u:pw@radio.example/a?k=1 failed' >&2"
    async with Child(["sh", "-c", script], name="sh", stdout=False, on_stderr=heard.append) as child:
        await child.wait()
        assert len(child.stderr_tail) == 100
        assert child.stderr_tail[-1] == "open http://radio.example/[redacted] failed"
    assert len(heard) == 151


async def test_a_line_without_an_end_does_not_grow_without_one() -> None:
    async with Child(["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' 'x' >&2"], name="sh", stdout=False) as child:
        await child.wait()
        assert max(len(line) for line in child.stderr_tail) <= 4096


async def test_one_that_ignores_a_polite_word_is_killed_with_its_own_children() -> None:
    async with Child(
        ["sh", "-c", "trap '' TERM; (trap '' TERM; exec sleep 600) & echo $!; wait"], name="deaf", grace_s=0.2
    ) as child:
        grandchild = int(await child.stdout.readline())
    assert child.returncode == -signal.SIGKILL
    await until(lambda: has_ended(grandchild))


def has_ended(pid: int) -> bool:
    """Gone, or a zombie that waits for its reaper."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


async def test_a_polite_one_gets_the_time_to_say_goodbye() -> None:
    script = "trap 'echo goodbye; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    async with Child(["sh", "-c", script], name="polite", grace_s=10) as child:
        assert await child.stdout.readline() == b"ready\n"
        assert await child.terminate() == 7
        assert await child.terminate() == 7
        assert await child.stdout.read() == b"goodbye\n"


async def test_it_dies_with_us_even_when_we_are_killed() -> None:
    """A server ended by SIGKILL leaves no mosquitto behind that would hold its port."""
    program = """
import asyncio, sys
from broadcast_server.supervise import Child
async def main():
    async with Child(["sleep", "600"], name="sleep", stdout=False) as child:
        print(child.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    async with Child(
        [sys.executable, "-c", program], name="server", env={"PYTHONPATH": ".", "PATH": "/usr/bin:/bin"}
    ) as server:
        pid = int(await server.stdout.readline())
        server.send_signal(signal.SIGKILL)
        await server.wait()
        await until(lambda: has_ended(pid))


async def test_a_program_that_is_missing_is_told_by_its_name() -> None:
    with pytest.raises(Unavailable) as failure:
        async with Child(["no-such-encoder", "-v"], name="encoder"):
            pass
    assert (failure.value.code, failure.value.facts["program"]) == ("program_missing", "no-such-encoder")


async def test_a_caller_who_is_cancelled_leaves_no_child_behind() -> None:
    pids: list[int] = []

    async def decode() -> None:
        async with Child(["sleep", "600"], name="sleep", stdout=False) as child:
            pids.append(child.pid)
            await asyncio.Event().wait()

    task = asyncio.create_task(decode(), name="decode")
    await until(lambda: pids)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert has_ended(pids[0])


async def test_a_source_that_fails_closes_the_input_and_can_be_asked_why() -> None:
    async def feed() -> AsyncIterator[bytes]:
        yield b"half"
        raise OSError("cable")

    async with Child(["cat"], name="cat", stdin=feed()) as child:
        assert await child.stdout.read() == b"half"
        await child.wait()
        assert isinstance(child.feed_error, OSError)


async def test_what_it_uses_can_be_measured() -> None:
    async with Child(["cat"], name="cat", keep_stdin=True) as child:
        await until(lambda: (usage := child.usage()) is not None and usage.rss_bytes > 0)
    assert usage_of(2**22 + 1) is None
