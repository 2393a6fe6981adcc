"""Named instants in a node's disk work at which a kill suite can stop the process; nothing happens by default.

A point lies on each side of every durable step, so that stopping at any of them leaves the disk as a power cut there
would. The hook is the process's own: a suite sets it in the child that it is going to kill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum


class Point(StrEnum):
    """Where."""

    VERIFIED = "verified"
    """A message was verified, nothing of it is on the disk."""
    PERSISTED = "persisted"
    """It is on the disk, nothing was done about it."""
    ASIDE_WRITTEN = "aside_written"
    """A file's new content is written and synced beside it, not in its place."""
    RENAMED = "renamed"
    """It is in its place, the folder is not synced."""
    DOWNLOADING = "downloading"
    """A piece of an asset was written, more is to come."""
    DOWNLOADED = "downloaded"
    """All of an asset is written and its hash right, it is not in its place."""
    LOG_TORN = "log_torn"
    """Half of what was to be added to the device log is in the file."""
    LOG_WRITTEN = "log_written"
    """It is in the file and synced, nothing was sent."""
    LOG_SENT = "log_sent"
    """A line was handed to the network, no acknowledgement came."""
    SOUNDING = "sounding"
    """Samples of a programme left the output."""
    CHECKED = "checked"
    """An asset was hashed because it is about to sound."""


def _nothing(_point: Point) -> None:
    return


_hook: Callable[[Point], None] = _nothing


def faultpoint(point: Point) -> None:
    """The process is at this point now."""
    _hook(point)


@contextmanager
def hooked(hook: Callable[[Point], None]) -> Iterator[None]:
    """Within it every point calls `hook`, in the thread that reached it."""
    global _hook  # noqa: PLW0603  one hook per process: a kill takes the process
    before, _hook = _hook, hook
    try:
        yield
    finally:
        _hook = before
