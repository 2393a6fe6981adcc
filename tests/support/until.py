"""Waiting for the outside world in end-to-end tests: a condition and a deadline, never a fixed pause."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T] | T], timeout_s: float = 20.0, every_s: float = 0.05) -> T:
    """Look until what is seen is truthy; returns it. Raises `TimeoutError` naming the look otherwise."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        seen = look()
        value: T = await seen if isinstance(seen, Awaitable) else seen
        if value:
            return value
        if loop.time() > deadline:
            raise TimeoutError(f"not within {timeout_s} s: {getattr(look, '__qualname__', look)}, last seen {value!r}")
        await asyncio.sleep(every_s)
