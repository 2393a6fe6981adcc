"""The node's stock of recorded sound: fetched by hash, checked against it, resumed where it broke, kept within a
quota.

A file is not there until its last byte was hashed and the hash was right; a wrong one is deleted and never sounded.
Fetching spreads itself by jitter over the time until first use. Over plain HTTP with the node's own token: Range and
If-Range (RFC 9110 §13.1.5) with the hash as the validator.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import httpx
import structlog

from firmware_sim.clock import TrueTime
from firmware_sim.decoder import Offload
from firmware_sim.store import ASSETS_FOLDER, Disk

log = structlog.get_logger(__name__)

FIRST_AGAIN_S: Final = 1.0
LONGEST_AGAIN_S: Final = 60.0
LONGEST_JITTER_S: Final = 600.0
URGENT_S: Final = 20.0
"""What is used this soon is fetched at once."""
_PIECE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """One asset the plan or an alert needs."""

    sha256: str
    size_bytes: int | None
    first_use_ms: int


@dataclass(slots=True)
class AssetCounts:
    """What happened to downloads."""

    fetched: int = 0
    resumed: int = 0
    wrong_hash: int = 0
    failed: int = 0
    evicted: int = 0
    received_bytes: int = 0


class FetchFailed(OSError):  # noqa: N818 - reads as what happened
    """An attempt is over; another may follow."""


class AssetKeeper:
    """Fetches what is wanted, one at a time, the soonest first."""

    def __init__(
        self,
        disk: Disk,
        client: httpx.AsyncClient,
        *,
        at_once: asyncio.Semaphore,
        token: str,
        true: TrueTime,
        offload: Offload,
        chance: random.Random,
        on_change: Callable[[], None],
    ) -> None:
        self._disk = disk
        self._client = client
        self._at_once = at_once
        self._token = token
        self._true = true
        self._offload = offload
        self._chance = chance
        self._on_change = on_change
        self._folder = disk.root / ASSETS_FOLDER
        self._wanted: dict[str, Wanted] = {}
        self._due_s: dict[str, float] = {}
        self._tries: dict[str, int] = {}
        self.assets_url = ""
        self.ready: dict[str, int] = {}
        """Checked assets and their sizes."""
        self.counts = AssetCounts()

    def path(self, sha256: str) -> Path:
        """Where a checked asset is."""
        return self._folder / f"{sha256}.opus"

    @property
    def missing(self) -> tuple[str, ...]:
        """Wanted and not here, the soonest first."""
        return tuple(wanted.sha256 for wanted in self._soonest() if wanted.sha256 not in self.ready)

    def held_bytes(self) -> int:
        """What the stock takes."""
        return sum(self.ready.values())

    async def check_stock(self) -> None:
        """At power-on: believe no file whose bytes do not give its name."""
        self.ready.update(await self._offload(lambda: _checked(self._folder)))

    def want(self, wanted: Mapping[str, Wanted], now_ms: int) -> None:
        """From now on keep exactly these at least."""
        now_s = self._now_s()
        for sha256, what in wanted.items():
            if sha256 not in self._wanted and sha256 not in self.ready:
                to_spare_s = max(0.0, (what.first_use_ms - now_ms) / 1000 - URGENT_S)
                self._due_s[sha256] = now_s + self._chance.uniform(0.0, min(LONGEST_JITTER_S, to_spare_s / 10))
        self._wanted = dict(wanted)

    def wait_s(self) -> float:
        """How long until a download is due (an hour if none is)."""
        due = [self._due_s.get(sha256, 0.0) for sha256 in self.missing]
        return max(0.0, min(due) - self._now_s()) if due else 3600.0

    async def fetch_due(self) -> None:
        """Fetch everything that is due now."""
        for sha256 in self.missing:
            if self._due_s.get(sha256, 0.0) > self._now_s():
                continue
            try:
                async with self._at_once:
                    wanted = self._wanted.get(sha256)  # a new plan may have come while others were served
                    if wanted is not None:
                        await self._fetch(wanted)
            except (FetchFailed, httpx.HTTPError, OSError) as error:
                self.counts.failed += 1
                tries = self._tries[sha256] = self._tries.get(sha256, 0) + 1
                wait_s = min(LONGEST_AGAIN_S, FIRST_AGAIN_S * 2 ** min(tries - 1, 8))
                self._due_s[sha256] = self._now_s() + self._chance.uniform(wait_s / 2, wait_s)
                log.debug("asset.failed", sha256=sha256, error=str(error), tries=tries)
            else:
                self._tries.pop(sha256, None)
                self.counts.fetched += 1
                self._on_change()

    def _now_s(self) -> float:
        return self._true.now_ns() / 1e9

    def _soonest(self) -> list[Wanted]:
        return sorted(self._wanted.values(), key=lambda wanted: (wanted.first_use_ms, wanted.sha256))

    async def _fetch(self, wanted: Wanted) -> None:
        self._disk.check()
        self._make_room(wanted)
        part = self._folder / f"{wanted.sha256}.part"
        have = part.stat().st_size if part.exists() else 0
        headers = {"Authorization": f"Bearer {self._token}", "Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": f'"{wanted.sha256}"'}
        digest = hashlib.sha256()
        async with self._client.stream("GET", f"{self.assets_url}/{wanted.sha256}", headers=headers) as answer:
            if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink(missing_ok=True)
                raise FetchFailed("the range was refused")
            if answer.status_code == httpx.codes.PARTIAL_CONTENT and have:
                await self._offload(lambda: _hash_into(digest, part))
                self.counts.resumed += 1
                mode = "ab"
            elif answer.status_code == httpx.codes.OK:
                mode = "wb"
            else:
                raise FetchFailed(f"status {answer.status_code}")
            limit = wanted.size_bytes or self._disk.capacity_bytes
            size = have if mode == "ab" else 0
            with part.open(mode) as file:
                async for piece in answer.aiter_raw():  # as it comes: what arrived before a break counts
                    self._disk.check()
                    size += len(piece)
                    self.counts.received_bytes += len(piece)
                    digest.update(piece)
                    file.write(piece)
                    if size > limit:
                        break
                await self._offload(lambda: _sync(file))
        if digest.hexdigest() != wanted.sha256 or size > limit:
            part.unlink(missing_ok=True)
            self.counts.wrong_hash += 1
            raise FetchFailed("the bytes are not the asset's")
        part.replace(self.path(wanted.sha256))
        self.ready[wanted.sha256] = size

    def _make_room(self, wanted: Wanted) -> None:
        need = wanted.size_bytes or 0
        spare = [sha256 for sha256 in self.ready if sha256 not in self._wanted]
        while self.held_bytes() + need > self._disk.capacity_bytes and spare:
            sha256 = spare.pop(0)
            self.path(sha256).unlink(missing_ok=True)
            del self.ready[sha256]
            self.counts.evicted += 1
        if self.held_bytes() + need > self._disk.capacity_bytes:
            raise FetchFailed("the quota is used up by what the plan needs")


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _hash_into(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)


def _checked(folder: Path) -> dict[str, int]:
    found = {}
    for path in folder.glob("*.opus"):
        digest = hashlib.sha256()
        _hash_into(digest, path)
        if digest.hexdigest() == path.stem:
            found[path.stem] = path.stat().st_size
        else:
            path.unlink()
    return found
