"""The sound that nodes fetch, by the hash of its bytes: `ab/abcdef….opus`.

A maintainer must not break: a file appears whole or not at all (temporary name, fsync, rename, fsync of the folder); a
name is made of hex digits only, so no input of anybody becomes a path; files are opened with `O_NOFOLLOW`; uploads stop
while the disk still has a reserve, so that the store, the log and the scheduled sound go on.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from broadcast_server.audio.formats import SAMPLE_RATE_HZ
from broadcast_server.domain.errors import Corrupt, Invalid, NotFound, Unavailable

SUFFIX: Final = ".opus"
MEDIA_TYPE: Final = "audio/ogg"
RESERVE_BYTES: Final = 500_000_000
_BLOCK_BYTES: Final = 1 << 20
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_TAIL_BYTES: Final = 1 << 17


@dataclass(frozen=True, slots=True)
class StoredAsset:
    """What the store keeps of a sound: SHA-256 of the file (hex), its size, how long it sounds."""

    hash: str
    size_bytes: int
    duration_ms: int


def disk_free_bytes(path: Path) -> int:
    """Bytes the disk under `path` can still take from us."""
    return shutil.disk_usage(path).free


class AssetReader:
    """An open asset, for serving ranges; a context manager."""

    def __init__(self, descriptor: int, *, content_hash: str) -> None:
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        self.hash = content_hash
        self.size_bytes = os.fstat(descriptor).st_size

    def read(self, start: int, count: int) -> bytes:
        """At most `count` bytes from `start` on; empty at the end."""
        return os.pread(self._file.fileno(), count, start)

    def close(self) -> None:
        """Idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _t: TracebackType | None
    ) -> None:
        self.close()


class AssetStore:
    """The folder of sounds. Every method blocks on the disk: call it through the executor."""

    def __init__(
        self,
        root: Path,
        *,
        reserve_bytes: int = RESERVE_BYTES,
        free_bytes: Callable[[Path], int] = disk_free_bytes,
    ) -> None:
        """`reserve_bytes`: what must stay free on the disk for everything else."""
        self._root = root
        self._scratch = root / "scratch"
        self._reserve_bytes = reserve_bytes
        self._free_bytes = free_bytes
        self._scratch.mkdir(parents=True, exist_ok=True)

    def put(self, source: Path | bytes) -> StoredAsset:
        """Keep an Ogg Opus file. The same bytes again change nothing and give the same answer.

        Raises `Invalid("asset_not_opus")` and `Unavailable("disk_full")`.
        """
        size_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
        self.require_space(size_bytes)
        digest = hashlib.sha256()
        with self.scratch_path() as made, made.open("w+b") as written:
            for block in _blocks(source):
                digest.update(block)
                written.write(block)
            written.flush()
            duration_ms = opus_duration_ms(written)
            os.fchmod(written.fileno(), 0o640)
            os.fsync(written.fileno())
            content_hash = digest.hexdigest()
            place = self.path(content_hash)
            place.parent.mkdir(exist_ok=True)
            made.replace(place)
            _sync_folder(place.parent)
            _sync_folder(self._root)
        return StoredAsset(content_hash, size_bytes, duration_ms)

    def path(self, content_hash: str) -> Path:
        """Where an asset of this hash stands or would stand. Raises `NotFound` for what is no hash."""
        if not _HASH.fullmatch(content_hash):
            raise NotFound("asset_unknown", hash=content_hash[:64])
        return self._root / content_hash[:2] / f"{content_hash}{SUFFIX}"

    def __contains__(self, content_hash: object) -> bool:
        return (
            isinstance(content_hash, str) and bool(_HASH.fullmatch(content_hash)) and self.path(content_hash).is_file()
        )

    def open(self, content_hash: str) -> AssetReader:
        """For reading ranges. Raises `NotFound`."""
        try:
            descriptor = os.open(self.path(content_hash), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ELOOP}:
                raise NotFound("asset_unknown", hash=content_hash) from error
            raise
        return AssetReader(descriptor, content_hash=content_hash)

    def verify(self, content_hash: str) -> StoredAsset:
        """Read it all. Raises `NotFound`, or `Corrupt("asset_corrupt")` when bytes and name disagree."""
        digest = hashlib.sha256()
        with self.open(content_hash) as reader:
            at = 0
            while block := reader.read(at, _BLOCK_BYTES):
                digest.update(block)
                at += len(block)
        if digest.hexdigest() != content_hash:
            raise Corrupt("asset_corrupt", hash=content_hash)
        with self.path(content_hash).open("rb") as file:
            return StoredAsset(content_hash, at, opus_duration_ms(file))

    def hashes(self) -> Iterator[str]:
        """Every asset here, in order."""
        for place in sorted(self._root.glob(f"[0-9a-f][0-9a-f]/*{SUFFIX}")):
            if _HASH.fullmatch(place.stem):
                yield place.stem

    def collect(self, keep: Collection[str], *, older_than: datetime) -> tuple[str, ...]:
        """Delete what `keep` does not name and what is older than `older_than`; gives back what went.

        The age keeps alive what was stored a moment ago and is named by no row yet.
        """
        wanted = frozenset(keep)
        gone = []
        for content_hash in self.hashes():
            place = self.path(content_hash)
            if content_hash not in wanted and place.stat().st_mtime < older_than.timestamp():
                place.unlink()
                gone.append(content_hash)
        for left in self._scratch.iterdir():  # what a killed process left behind
            if left.is_dir() and left.stat().st_mtime < older_than.timestamp():
                shutil.rmtree(left)
        return tuple(gone)

    def require_space(self, needs_bytes: int) -> None:
        """Raises `Unavailable("disk_full")` if `needs_bytes` more would touch the reserve."""
        free = self._free_bytes(self._root)
        if free - needs_bytes < self._reserve_bytes:
            raise Unavailable("disk_full", free_bytes=free, reserve_bytes=self._reserve_bytes)

    @contextlib.contextmanager
    def scratch(self, *, needs_bytes: int = 0) -> Iterator[IO[bytes]]:
        """A nameless file on the same disk, gone at the end or when the process dies. `Unavailable("disk_full")`."""
        self.require_space(needs_bytes)
        with disk_errors(), tempfile.TemporaryFile(dir=self._scratch, buffering=0) as file:
            yield file

    @contextlib.contextmanager
    def scratch_path(self) -> Iterator[Path]:
        """A named place on the same disk for a file that is about to be `put`; cleaned up at the end."""
        with disk_errors(), tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            yield Path(folder, f"made{SUFFIX}")


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turns the operating system's full disk into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise Unavailable("disk_full") from error
        raise


def opus_duration_ms(file: IO[bytes]) -> int:
    """How long an Ogg Opus file sounds, to the millisecond (RFC 7845: last granule position minus pre-skip).

    Raises `Invalid("asset_not_opus")`.
    """
    file.seek(0)
    head = file.read(512)
    opus_at = head.find(b"OpusHead")
    if not head.startswith(b"OggS") or opus_at < 0 or len(head) < opus_at + 12:
        raise Invalid("asset_not_opus", field="file")
    (pre_skip,) = struct.unpack_from("<H", head, opus_at + 10)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES))
    tail = file.read()
    page_at = tail.rfind(b"OggS")
    if page_at < 0 or len(tail) < page_at + 14:
        raise Invalid("asset_not_opus", field="file")
    (granule,) = struct.unpack_from("<q", tail, page_at + 6)
    samples = granule - pre_skip
    if samples <= 0:
        raise Invalid("asset_not_opus", field="file")
    return int((samples * 1000 + SAMPLE_RATE_HZ // 2) // SAMPLE_RATE_HZ)


def _blocks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
