"""What is carried by hand where no network is: one tar file, written and read alike on both sides.

`manifest.json` names every other member: `messages/NNNN.bin` are payloads exactly as the broker would carry them, each
with its topic; `assets/SHA256.opus` are sounds by their hash. The manifest is not signed and proves nothing: messages
are believed for their own signatures, sounds for their own hash, by the same checks as over the network.

A file comes from a stranger's stick: members are regular files under the names the manifest gives, of bounded size
and number, and nothing is ever written where a name in it points.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
MAX_MESSAGES: Final = 200_000
MAX_MESSAGE_BYTES: Final = 512 * 1024
MAX_MANIFEST_BYTES: Final = 64 * 1024 * 1024
MANIFEST_BYTES_PER_MEMBER: Final = 1_024
"""A manifest is as long as what it names: one that is all brackets would fill the memory of whoever reads it."""
MAX_ASSET_BYTES: Final = 512 * 1024 * 1024

Message = tuple[str, bytes]
"""Topic and payload."""


_BROKEN: Final = (tarfile.TarError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a file that is none raises: the library's own, and what JSON and numbers are not."""


class CarriedKind(StrEnum):
    """What a carried file is for."""

    BUNDLE = "bundle"
    """From the server to the nodes of a place."""
    REPORTS = "reports"
    """From nodes to the server."""


class NotCarried(ValueError):  # noqa: N818  reads as what is wrong with the file
    """The file is not a whole carried file; the text says where."""


def write(
    target: IO[bytes],
    kind: CarriedKind,
    messages: Sequence[Message],
    assets: Iterable[tuple[str, Path]] = (),
    *,
    subject: str,
    made_ms: int,
) -> None:
    """Write one. `subject`: the unit or node it is about, for people; `assets`: hash and file. Raises `OSError`."""
    sounds = [(sha256, path, path.stat().st_size) for sha256, path in assets]
    named = [
        {"topic": topic, "file": f"messages/{number:06d}.bin", "sha256": hashlib.sha256(payload).hexdigest()}
        for number, (topic, payload) in enumerate(messages, start=1)
    ]
    manifest = {
        "format": FORMAT,
        "kind": kind.value,
        "subject": subject,
        "made_ms": made_ms,
        "messages": named,
        "assets": {sha256: size for sha256, _, size in sounds},
    }
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1).encode(), made_ms)
        for name, (_, payload) in zip(named, messages, strict=True):
            _add(tar, name["file"], payload, made_ms)
        for sha256, path, size in sounds:
            head = tarfile.TarInfo(f"assets/{sha256}.opus")
            head.size, head.mtime = size, made_ms // 1000
            with path.open("rb") as content:
                tar.addfile(head, content)


def _add(tar: tarfile.TarFile, name: str, content: bytes, made_ms: int) -> None:
    head = tarfile.TarInfo(name)
    head.size, head.mtime = len(content), made_ms // 1000
    tar.addfile(head, io.BytesIO(content))


@dataclass(frozen=True, slots=True)
class Facts:
    """What the manifest says."""

    kind: CarriedKind
    subject: str
    made_ms: int
    assets: Mapping[str, int]


class Carried:
    """A carried file that is open for reading."""

    def __init__(self, path: Path, kind: CarriedKind) -> None:
        """Raises `NotCarried`, `OSError`."""
        try:
            self._tar = tarfile.open(path, mode="r:")  # noqa: SIM115  closed by `close`
        except _BROKEN as error:
            raise NotCarried(f"no tar file: {error}") from None
        try:
            self._members = self._regular()
            self.facts, self._named = self._read_manifest()
        except _BROKEN as error:
            self._tar.close()
            raise error if isinstance(error, NotCarried) else NotCarried(f"{MANIFEST}: {error!r}") from None
        if self.facts.kind is not kind:
            self._tar.close()
            raise NotCarried(f"a file of kind {self.facts.kind}, not {kind}")

    def _regular(self) -> dict[str, tarfile.TarInfo]:
        """The regular members. A sparse one is larger than the file; one that lies before the last one has no end."""
        found = {}
        last = -1
        while (member := self._tar.next()) is not None:
            if member.offset_data <= last:
                raise NotCarried("its members turn back")
            last = member.offset_data
            if member.isreg() and not member.issparse() and member.size >= 0:
                found[member.name] = member
        return found

    def _read_manifest(self) -> tuple[Facts, list[dict[str, Any]]]:
        limit = min(MAX_MANIFEST_BYTES, MANIFEST_BYTES_PER_MEMBER * (len(self._members) + 64))
        told = json.loads(self._content(MANIFEST, limit))
        if told["format"] != FORMAT:
            raise NotCarried(f"format {told['format']!r} is not known")
        named = list(told["messages"])
        if len(named) > MAX_MESSAGES:
            raise NotCarried("too many messages")
        assets = {str(sha256): int(size) for sha256, size in told["assets"].items()}
        return Facts(CarriedKind(told["kind"]), str(told["subject"]), int(told["made_ms"]), assets), named

    def _content(self, name: str, limit: int) -> bytes:
        member = self._members.get(name)
        content = self._tar.extractfile(member) if member is not None else None
        if member is None or content is None:
            raise NotCarried(f"{name} is missing")
        if member.size > limit:
            raise NotCarried(f"{name} is too large")
        try:
            raw = content.read(member.size)
        except tarfile.TarError:
            raise NotCarried(f"{name} is cut off") from None
        if len(raw) != member.size:
            raise NotCarried(f"{name} is cut off")
        return raw

    def messages(self) -> list[Message]:
        """Topics and payloads in order. Raises `NotCarried` where one is missing or not what the manifest names."""
        found = []
        for entry in self._named:
            try:
                topic, name, digest = str(entry["topic"]), str(entry["file"]), entry["sha256"]
            except (KeyError, TypeError) as error:
                raise NotCarried(f"{MANIFEST}: {error!r}") from None
            payload = self._content(name, MAX_MESSAGE_BYTES)
            if hashlib.sha256(payload).hexdigest() != digest:
                raise NotCarried(f"{name} is damaged")
            found.append((topic, payload))
        return found

    def asset(self, sha256: str) -> bytes | None:
        """A sound's bytes, not checked; None if it is not in the file. Raises `NotCarried`."""
        name = f"assets/{sha256}.opus"
        return self._content(name, MAX_ASSET_BYTES) if name in self._members else None

    def close(self) -> None:
        """Idempotent."""
        self._tar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()
