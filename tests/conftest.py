"""Rules for every test: nothing it started may outlive it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

pytest_plugins = ["tests.support.database"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole programs in real time take turns on one worker: they mostly wait, and must not compete for a second."""
    for item in items:
        if item.get_closest_marker("e2e") is not None:
            item.add_marker(pytest.mark.xdist_group("real_time"))


@pytest_asyncio.fixture(autouse=True)
async def no_lingering_tasks() -> AsyncIterator[None]:
    """A task that survives its test would fail another one, later and elsewhere."""
    before = asyncio.all_tasks()
    yield
    for _ in range(3):  # what was cancelled a moment ago may still have its last turn to take
        await asyncio.sleep(0)
    left = {task for task in asyncio.all_tasks() - before if not task.done()} - {asyncio.current_task()}
    for task in left:
        task.cancel()
    assert not left, f"tasks outlived the test: {sorted(task.get_name() for task in left)}"
