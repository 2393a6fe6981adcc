"""The node's stock of recorded sound: fetched by hash, checked against it, resumed where it broke, kept within a
quota, checked again before it sounds.

A file is not there until its last byte was hashed and the hash was right. Flash rots: before every item that begins
its bytes are read once, hashed and handed to the decoder from memory, so what sounds is what was checked; wrong ones
are deleted, counted, fetched again, and until then there is silence instead of noise.

Two lanes: what sounds within the hour and what an alert names is urgent; everything else is bulk, gives way in the
middle of a download, spreads itself by jitter over the time until first use, and waits for the night if it is not
needed for long. Over plain HTTP with the node's own token: Range and If-Range (RFC 9110 §13.1.5) with the hash as the
validator.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import httpx
import structlog

from firmware_sim.clock import TrueTime
from firmware_sim.decoder import Offload
from firmware_sim.faultpoints import Point, faultpoint
from firmware_sim.store import ASSETS_FOLDER, Disk, sync

log = structlog.get_logger(__name__)

FIRST_AGAIN_S: Final = 1.0
LONGEST_AGAIN_S: Final = 60.0
LONGEST_JITTER_S: Final = 600.0
EVICTED_AGAIN_S: Final = 3_600.0
AT_ONCE_S: Final = 20.0
"""What is used this soon is fetched at once."""
URGENT_MS: Final = 3_600_000
KEEP_MS: Final = 48 * 3_600_000
"""What is used within so long is never evicted."""
FAR_MS: Final = 12 * 3_600_000
"""What is used later than this waits for the night."""
NIGHT_FROM_MIN: Final = 22 * 60
NIGHT_TO_MIN: Final = 5 * 60
NIGHT_MARGIN_MS: Final = 3_600_000
"""A night that begins later than this before the first use is too late."""
_DAY_MIN: Final = 24 * 60
_PIECE_BYTES: Final = 64 * 1024


class Lane(StrEnum):
    """Who goes first."""

    URGENT = "urgent"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One asset the plan or an alert needs. `is_alert`: never evicted, never behind anything."""

    sha256: str
    size_bytes: int | None
    first_use_ms: int
    is_alert: bool = False


@dataclass(slots=True)
class AssetCounts:
    """What happened to downloads."""

    fetched: int = 0
    resumed: int = 0
    wrong_hash: int = 0
    failed: int = 0
    evicted: int = 0
    gave_way: int = 0
    rotten: int = 0
    received_bytes: int = 0


class FetchFailed(OSError):  # noqa: N818 - reads as what happened
    """An attempt is over; another may follow."""


class GaveWay(FetchFailed):
    """A bulk download stopped in the middle because something urgent is due."""


class AssetKeeper:
    """Fetches what is wanted, one at a time in each lane, the soonest first."""

    def __init__(
        self,
        disk: Disk,
        client: httpx.AsyncClient,
        *,
        at_once: Mapping[Lane, asyncio.Semaphore],
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
        self._used_s: dict[str, float] = {}
        self._now_ms = 0
        self._rotten: set[str] = set()
        self.assets_url = ""
        self.is_quota_full = False
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

    @property
    def rotten(self) -> int:
        """How many wanted assets were found rotten and are not here again."""
        return sum(sha256 in self._wanted and sha256 not in self.ready for sha256 in self._rotten)

    def missing_within(self, ms: int) -> tuple[str, ...]:
        """Wanted for the coming `ms` (or by an alert) and not here."""
        until_ms = self._now_ms + ms
        return tuple(
            sha256
            for sha256 in self.missing
            if self._wanted[sha256].is_alert or self._wanted[sha256].first_use_ms <= until_ms
        )

    @property
    def is_behind(self) -> bool:
        """Whether something is not here that does not wait for the night."""
        return bool(self.missing_within(FAR_MS))

    def held_bytes(self) -> int:
        """What the stock takes."""
        return sum(self.ready.values())

    async def check_stock(self) -> None:
        """At power-on: believe no file whose bytes do not give its name."""
        found, rotten = await self._offload(lambda: _checked(self._folder))
        self.ready.update({sha256: size for sha256, (size, _) in found.items()})
        self._used_s |= {sha256: used_s for sha256, (_, used_s) in found.items()}
        self._rotten |= rotten
        self.counts.rotten += len(rotten)

    def want(self, wanted: Mapping[str, Wanted], now_ms: int, *, utc_offset_min: int = 420) -> None:
        """From now on keep exactly these at least. `utc_offset_min`: where the night is."""
        now_s = self._now_s()
        self._now_ms = now_ms
        for sha256, what in wanted.items():
            before = self._wanted.get(sha256)
            is_sooner = before is not None and (what.first_use_ms < before.first_use_ms or what.is_alert)
            if sha256 not in self.ready and (before is None or is_sooner) and sha256 not in self._tries:
                due_s = now_s + self._wait_s(what, now_ms, utc_offset_min)
                self._due_s[sha256] = due_s if before is None else min(due_s, self._due_s.get(sha256, due_s))
        self._wanted = dict(wanted)
        for known in (self._due_s, self._tries):
            for sha256 in [sha256 for sha256 in known if sha256 not in wanted]:
                del known[sha256]

    def _wait_s(self, what: Wanted, now_ms: int, utc_offset_min: int) -> float:
        spare_s = max(0.0, (what.first_use_ms - now_ms) / 1000 - AT_ONCE_S)
        if what.is_alert or not spare_s or not now_ms:
            return 0.0
        jitter_s = self._chance.uniform(0.0, min(LONGEST_JITTER_S, spare_s / 10))
        if what.first_use_ms - now_ms <= FAR_MS:
            return jitter_s
        minute = (now_ms // 60_000 + utc_offset_min) % _DAY_MIN
        if minute >= NIGHT_FROM_MIN or minute < NIGHT_TO_MIN:
            return jitter_s
        night_s = (NIGHT_FROM_MIN - minute) * 60.0
        if now_ms + night_s * 1000 > what.first_use_ms - NIGHT_MARGIN_MS:
            return jitter_s
        # The first half of the night, so that what fails is tried again in the second.
        half_s = ((NIGHT_TO_MIN - NIGHT_FROM_MIN) % _DAY_MIN) * 30.0
        return night_s + self._chance.uniform(0.0, min(half_s, spare_s - night_s))

    def lane_of(self, sha256: str) -> Lane:
        """Which lane a wanted asset is fetched in now."""
        what = self._wanted[sha256]
        is_urgent = what.is_alert or what.first_use_ms - self._now_ms <= URGENT_MS
        return Lane.URGENT if is_urgent else Lane.BULK

    def wait_s(self, lane: Lane | None = None) -> float:
        """How long until a download is due (an hour if none is)."""
        due = [self._due_s.get(sha256, 0.0) for sha256 in self.missing if lane in {None, self.lane_of(sha256)}]
        return max(0.0, min(due) - self._now_s()) if due else 3600.0

    async def fetch_due(self, lane: Lane, now_ms: int | None) -> None:
        """Fetch everything of a lane that is due now."""
        self._now_ms = self._now_ms if now_ms is None else now_ms
        for sha256 in self.missing:
            if lane is Lane.BULK and self.wait_s(Lane.URGENT) <= 0:
                return
            if self._due_s.get(sha256, 0.0) > self._now_s() or self.lane_of(sha256) is not lane:
                continue
            try:
                async with self._at_once[lane]:
                    wanted = self._wanted.get(sha256)  # a new plan may have come while others were served
                    if wanted is not None and sha256 not in self.ready:
                        await self._fetch(wanted, lane)
            except GaveWay:
                self.counts.gave_way += 1
                return
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

    # -- before it sounds ---------------------------------------------------------------------------------------------

    async def checked(self, sha256: str) -> bytes | None:
        """The asset's bytes, read and hashed now; None if they are not the asset's any more (then it is missing)."""
        content = await self._offload(lambda: _read(self.path(sha256)))
        if content is not None and hashlib.sha256(content).hexdigest() == sha256:
            faultpoint(Point.CHECKED)
            self._used_s[sha256] = self._now_s()
            return content
        self.lose(sha256)
        return None

    def lose(self, sha256: str) -> None:
        """Its bytes went bad: delete it and fetch it again at once."""
        if self.ready.pop(sha256, None) is None:
            return
        self.path(sha256).unlink(missing_ok=True)
        self.counts.rotten += 1
        self._rotten.add(sha256)
        self._due_s[sha256] = 0.0
        log.warning("asset.rotten", sha256=sha256)
        self._on_change()

    # -- fetching -----------------------------------------------------------------------------------------------------

    def _now_s(self) -> float:
        return self._true.now_ns() / 1e9

    def _soonest(self) -> list[Wanted]:
        return sorted(
            self._wanted.values(), key=lambda wanted: (not wanted.is_alert, wanted.first_use_ms, wanted.sha256)
        )

    async def _fetch(self, wanted: Wanted, lane: Lane) -> None:
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
                    faultpoint(Point.DOWNLOADING)
                    if size > limit:
                        break
                    if lane is Lane.BULK and self.wait_s(Lane.URGENT) <= 0:
                        raise GaveWay("something urgent is due")
                await self._offload(lambda: sync(file))
        if digest.hexdigest() != wanted.sha256 or size > limit:
            part.unlink(missing_ok=True)
            self.counts.wrong_hash += 1
            raise FetchFailed("the bytes are not the asset's")
        faultpoint(Point.DOWNLOADED)
        await self._offload(lambda: self._disk.put(part, self.path(wanted.sha256)))
        self.ready[wanted.sha256] = size
        self._rotten.discard(wanted.sha256)
        self._used_s[wanted.sha256] = self._now_s()

    def _make_room(self, wanted: Wanted) -> None:
        """Least used first what nobody wants, then what is needed last; never an alert's, never the next 48 h."""
        need = wanted.size_bytes or 0
        spare = sorted(
            (sha256 for sha256 in self.ready if sha256 not in self._wanted),
            key=lambda sha256: self._used_s.get(sha256, 0.0),
        )
        keep_until_ms = max(self._now_ms + KEEP_MS, wanted.first_use_ms)
        spare += [
            other.sha256
            for other in reversed(self._soonest())
            if other.sha256 in self.ready and not other.is_alert and other.first_use_ms > keep_until_ms
        ]
        while self.held_bytes() + need > self._disk.capacity_bytes and spare:
            sha256 = spare.pop(0)
            self.path(sha256).unlink(missing_ok=True)
            del self.ready[sha256]
            self._due_s[sha256] = self._now_s() + EVICTED_AGAIN_S
            self.counts.evicted += 1
        self.is_quota_full = self.held_bytes() + need > self._disk.capacity_bytes
        if self.is_quota_full:
            raise FetchFailed("the quota is used up by what the plan needs")


def put(disk: Disk, sha256: str, content: bytes, *, held_bytes: int) -> None:
    """Keep an asset that was carried here. Raises `FetchFailed` (not its bytes, no room in the quota), `OSError`."""
    if held_bytes + len(content) > disk.capacity_bytes:
        raise FetchFailed("the quota is used up by what the plan needs")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise FetchFailed("the bytes are not the asset's")
    disk.check()
    part = disk.root / ASSETS_FOLDER / f"{sha256}.part"
    with part.open("wb") as file:
        file.write(content)
        sync(file)
    disk.put(part, part.with_suffix(".opus"))


def held(disk: Disk) -> dict[str, int]:
    """The assets on a disk that is at rest, each hashed, and their sizes; rotten ones are deleted."""
    return {sha256: size for sha256, (size, _) in _checked(disk.root / ASSETS_FOLDER)[0].items()}


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _hash_into(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)


def _checked(folder: Path) -> tuple[dict[str, tuple[int, float]], set[str]]:
    """Size and last change of every file that is what its name says; the others are deleted and named."""
    found, rotten = {}, set()
    for path in folder.glob("*.opus"):
        digest = hashlib.sha256()
        _hash_into(digest, path)
        if digest.hexdigest() == path.stem:
            facts = path.stat()
            found[path.stem] = (facts.st_size, facts.st_mtime)
        else:
            path.unlink()
            rotten.add(path.stem)
    return found, rotten
