"""The folder of signing keys: one file of 32 private bytes for each key, and the register that says what each is for.

`keys/` holds the root (until it is carried away), the authorities, the server's key, one or two keys of each unit, and
`register.json`: public halves, places, dates, who is revoked, and what the root signed. It belongs to whoever signs;
nobody else needs to read it. A maintainer must not break: (1) a private key lies on the disk, its name included, before
the register names it, and the register is replaced whole; (2) it is changed under the lock only, by whoever it is (the
server, the command line), on what is on the disk then; (3) a damaged file is said loudly and never replaced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broadcast_server.domain.clock import Chance
from broadcast_server.domain.errors import Corrupt, Refused
from speaker_protocol.signing import EVERYWHERE, key_id_of

KEY_BYTES: Final = 32
FORMAT: Final = 1
REGISTER: Final = "register.json"
LOCK: Final = "register.lock"
ROOT: Final = "root"
DAY_MS: Final = 24 * 3_600_000
UNIT_ID: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}")  # what a topic's level may be; never a way out of the folder
_NAMED: Final = re.compile(r"(?P<stem>authority|server|unit-(?P<unit>[A-Za-z0-9._~-]{1,64}))(@[0-9a-f]{16})?")


class KeyRole(StrEnum):
    """What a key is for."""

    AUTHORITY = "authority"
    """Delegates to the others, and does nothing else."""
    SERVER = "server"
    """Stream heads, and the configuration that tells a node its places."""
    TIME = "time"
    """Time answers and acknowledgements; its private half lies with whoever answers."""
    UNIT = "unit"
    """Plans, configuration, orders and alerts of one unit."""


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key. `until_ms` 0: not delegated yet. `unit`: the place it speaks for, `*` everywhere."""

    key_id: str
    role: KeyRole
    unit: str
    public: str
    file: str | None
    made_ms: int = 0
    until_ms: int = 0
    certificate: str | None = None
    """Of an authority: what the root signed, hex; None: not yet."""

    @property
    def public_bytes(self) -> bytes:
        """The raw public key."""
        return bytes.fromhex(self.public)


@dataclass(frozen=True, slots=True)
class Revoked:
    """One line of the list of revocations. `until_ms`: when the last delegation of it would have ended."""

    key_id: str
    role: KeyRole
    unit: str
    at_ms: int
    until_ms: int
    reason: str


@dataclass(slots=True)
class Book:
    """What the register holds, in memory."""

    root: str = ""
    """The public root key, hex."""
    version: int = 0
    """Rises with every change."""
    rl_ver: int = 0
    keys: dict[str, KeyEntry] = field(default_factory=dict)
    revoked: dict[str, Revoked] = field(default_factory=dict)
    lists: dict[str, str] = field(default_factory=dict)
    """The signed lists of revocations by the key that signed, hex."""

    def of(self, role: KeyRole, unit: str | None = None) -> list[KeyEntry]:
        """The keys of a role (of a unit), the newest last."""
        found = [key for key in self.keys.values() if key.role is role and (unit is None or key.unit == unit)]
        return sorted(found, key=lambda key: (key.made_ms, key.key_id))

    def few(self) -> Book:
        """The same without the keys of units, of which there are thousands."""
        return dataclasses.replace(
            self, keys={name: key for name, key in self.keys.items() if key.role is not KeyRole.UNIT}
        )


class KeyRegister:
    """The folder. One object per process; other processes may work on the same folder."""

    def __init__(self, folder: Path, *, chance: Chance) -> None:
        """Raises `Corrupt` (`key_file_damaged`, `keys_without_register`), `Refused("root_key_differs")`."""
        self.folder = folder
        self._chance = chance
        self._private: dict[str, Ed25519PrivateKey] = {}
        self._stamp: tuple[int, int, int] | None = None
        self._book = Book()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.change() as book:
            self._adopt(book)
        for name in [ROOT, *(key.file for key in self._book.keys.values() if key.file is not None)]:
            path = self._path(name)
            if path.exists() and path.stat().st_size != KEY_BYTES:
                raise Corrupt("key_file_damaged", name=name)

    # -- the register

    @property
    def chance(self) -> Chance:
        """Where keys come from."""
        return self._chance

    @property
    def book(self) -> Book:
        """As it is on the disk now. To be read only. Raises `Corrupt`."""
        path = self.folder / REGISTER
        try:
            told = path.stat()
        except FileNotFoundError:
            return self._book
        stamp = (told.st_mtime_ns, told.st_size, told.st_ino)
        if stamp != self._stamp:
            self._book, self._stamp = _read(path), stamp
        return self._book

    @contextlib.contextmanager
    def change(self) -> Iterator[Book]:
        """The register, to be changed; written when left without an error and if something changed."""
        with (self.folder / LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._own(self.folder / LOCK)
            book = _copy(self.book)
            before = _dump(book)
            yield book
            if _dump(book) != before:
                book.version += 1
                self._sync_folder()  # what it names is there by name before it names it
                self._write(REGISTER, _dump(book))
                self._book, self._stamp = book, None

    def _adopt(self, book: Book) -> None:
        """Enter what lies in the folder and is in no register: a folder of an earlier version, or a lost register."""
        if self.has_root:
            public = self.root().public_key().public_bytes_raw().hex()
            if book.root not in {"", public}:
                raise Refused("root_key_differs")
            book.root = public
        known = {key.file for key in book.keys.values()}
        for path in sorted(self.folder.glob("*.key")):
            named = _NAMED.fullmatch(path.stem)
            if named is None or path.stem in known:
                continue
            role = KeyRole.UNIT if named["unit"] else KeyRole(named["stem"])
            if role is KeyRole.AUTHORITY:
                continue  # without what the root signed it is nobody
            self.enter(book, role, named["unit"] or EVERYWHERE, self._load(path.stem), file=path.stem)
        if not book.root:
            if any(self.folder.glob("*.key")):
                raise Corrupt("keys_without_register")
            self._make(ROOT)
            book.root = self.root().public_key().public_bytes_raw().hex()
        if not book.of(KeyRole.SERVER):
            self.make(book, KeyRole.SERVER, EVERYWHERE)

    # -- keys

    @property
    def has_root(self) -> bool:
        """Whether the private root key is on this machine."""
        return self._path(ROOT).exists()

    def root(self) -> Ed25519PrivateKey:
        """The private root key. Raises `Refused("root_is_away")`."""
        if not self.has_root:
            raise Refused("root_is_away")
        return self._load(ROOT)

    def make(self, book: Book, role: KeyRole, unit: str, *, made_ms: int = 0, until_ms: int = 0) -> KeyEntry:
        """A fresh key, on the disk and in the register. Raises `Refused("no_key_for_unit")` on a name that is none."""
        if unit != EVERYWHERE and not UNIT_ID.fullmatch(unit):
            raise Refused("no_key_for_unit", unit=unit)
        secret = self._chance.token_bytes(KEY_BYTES)
        private = Ed25519PrivateKey.from_private_bytes(secret)
        key_id = key_id_of(private.public_key().public_bytes_raw()).hex()
        stem = role.value if role is not KeyRole.UNIT else f"unit-{unit}"
        name = f"{stem}@{key_id}"
        write_secret(self._path(name), secret, is_last=False)
        return self.enter(book, role, unit, private, file=name, made_ms=made_ms, until_ms=until_ms)

    def enter(
        self,
        book: Book,
        role: KeyRole,
        unit: str,
        private: Ed25519PrivateKey,
        *,
        file: str,
        made_ms: int = 0,
        until_ms: int = 0,
    ) -> KeyEntry:
        """Name a key that lies in the folder in the register."""
        public = private.public_key().public_bytes_raw()
        entry = KeyEntry(key_id_of(public).hex(), role, unit, public.hex(), file, made_ms, until_ms)
        book.keys[entry.key_id] = entry
        self._private[entry.key_id] = private
        return entry

    def private(self, entry: KeyEntry) -> Ed25519PrivateKey:
        """The private half. Raises `Corrupt("key_file_damaged")`, also where the two halves do not belong together."""
        found = self._private.get(entry.key_id)
        if found is None:
            if entry.file is None:
                raise Refused("key_is_elsewhere", key_id=entry.key_id)
            found = self._load(entry.file)
            if found.public_key().public_bytes_raw() != entry.public_bytes:
                raise Corrupt("key_file_damaged", name=entry.file)
            self._private[entry.key_id] = found
        return found

    def drop(self, book: Book, entry: KeyEntry) -> None:
        """A key that is over: its private half is not kept."""
        del book.keys[entry.key_id]
        self._private.pop(entry.key_id, None)
        if entry.file is not None:
            self._path(entry.file).unlink(missing_ok=True)

    def drop_root(self) -> None:
        """Take the private root key off this machine."""
        path = self._path(ROOT)
        with path.open("r+b") as file:  # where the disk overwrites in place, nothing of it stays
            file.write(bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
        self._sync_folder()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def _load(self, name: str) -> Ed25519PrivateKey:
        try:
            raw = self._path(name).read_bytes()
        except FileNotFoundError:
            raise Corrupt("key_file_damaged", name=name) from None
        if len(raw) != KEY_BYTES:
            raise Corrupt("key_file_damaged", name=name)
        return Ed25519PrivateKey.from_private_bytes(raw)

    def _make(self, name: str) -> None:
        self._write(f"{name}.key", self._chance.token_bytes(KEY_BYTES))

    def _write(self, name: str, content: bytes) -> None:
        write_secret(self.folder / name, content)

    def _own(self, path: Path) -> None:
        keep_owner(path)

    def _sync_folder(self) -> None:
        sync_folder(self.folder)


def write_secret(path: Path, content: bytes, *, is_last: bool = True) -> None:
    """A file for its owner alone, whole and durable, its name included; it belongs to whom its folder belongs.

    `is_last`: False where the caller makes many and syncs their names (`sync_folder`) after the last.
    """
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    keep_owner(draft)
    draft.rename(path)
    if is_last:
        sync_folder(path.parent)


def keep_owner(path: Path) -> None:
    """What the administrator makes in a service's folder stays the service's."""
    if os.geteuid() == 0:
        folder = path.parent.stat()
        os.chown(path, folder.st_uid, folder.st_gid)


def sync_folder(folder: Path) -> None:
    """A key that was spoken with must be there after a power cut, its name included."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(book: Book) -> Book:
    return dataclasses.replace(book, keys=dict(book.keys), revoked=dict(book.revoked), lists=dict(book.lists))


def _dump(book: Book) -> bytes:
    told: dict[str, Any] = {
        "format": FORMAT,
        "root": book.root,
        "version": book.version,
        "rl_ver": book.rl_ver,
        "keys": [_line_of(key) for key in book.keys.values()],
        "revoked": [_line_of(line) for line in book.revoked.values()],
        "lists": book.lists,
    }
    return json.dumps(told, separators=(",", ":")).encode()


def _line_of(entry: KeyEntry | Revoked) -> dict[str, Any]:
    """`asdict` without its copies: there are thousands."""
    return {name: getattr(entry, name) for name in entry.__slots__}


def _read(path: Path) -> Book:
    try:
        told = json.loads(path.read_bytes())
        if told["format"] != FORMAT:
            raise Corrupt("key_file_damaged", name=path.name)
        keys = [KeyEntry(**{**line, "role": KeyRole(line["role"])}) for line in told["keys"]]
        revoked = [Revoked(**{**line, "role": KeyRole(line["role"])}) for line in told["revoked"]]
        return Book(
            root=told["root"],
            version=told["version"],
            rl_ver=told["rl_ver"],
            keys={key.key_id: key for key in keys},
            revoked={line.key_id: line for line in revoked},
            lists=dict(told["lists"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt("key_file_damaged", name=path.name) from error
