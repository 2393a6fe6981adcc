"""The node's flash: identity, what must be remembered before acting, the report journal, and room for assets.

One folder per node. A file is replaced whole (write aside, fsync, rename, fsync of the folder), so a power cut leaves
the old one or the new one. What must be remembered lies in two slots written in turn, each with a number and a
checksum: flash that rots under one of them leaves the other, one write older. `Disk.is_full` is the fault that makes
every write fail as a real full disk does, `Disk.is_power_low` the supply's warning under which nothing is written.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import BaseModel, ConfigDict, ValidationError

from firmware_sim.clock import Remembered
from firmware_sim.faultpoints import Point, faultpoint

IDENTITY_FILE: Final = "identity.json"
MEMORY_SLOTS: Final = ("memory.a", "memory.b")
JOURNAL_FILE: Final = "reports.log"
ASSETS_FOLDER: Final = "assets"
_FRESH: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


class Disk:
    """A folder with a size, a way to be full, and a supply that may be too low to write."""

    def __init__(self, root: Path, *, capacity_bytes: int = 512 * 1024 * 1024) -> None:
        self.root = root
        self.capacity_bytes = capacity_bytes
        self.is_full = False
        self.is_power_low: Callable[[], bool] = lambda: False
        root.mkdir(parents=True, exist_ok=True)
        (root / ASSETS_FOLDER).mkdir(exist_ok=True)

    def check(self) -> None:
        """Raises `OSError`: `ENOSPC` when full, `EAGAIN` while the supply is too low to begin a write."""
        if self.is_full:
            raise OSError(errno.ENOSPC, "no space left on the node")
        if self.is_power_low():
            raise OSError(errno.EAGAIN, "the supply is too low to write")

    def replace(self, name: str, content: bytes, *, is_secret: bool = False) -> None:
        """Write a file whole and durably. Raises `OSError`; then the old content stands.

        `is_secret`: nobody but its owner may read it, not even for a moment.
        """
        self.check()
        target = self.root / name
        aside = target.with_name(target.name + ".new")
        with os.fdopen(os.open(aside, _FRESH, 0o600 if is_secret else 0o644), "wb") as file:
            file.write(content)
            sync(file)
        faultpoint(Point.ASIDE_WRITTEN)
        self.put(aside, target)

    def put(self, aside: Path, target: Path) -> None:
        """A file that is written and synced takes its place, durably. Raises `OSError`."""
        aside.replace(target)
        faultpoint(Point.RENAMED)
        self._sync_folder(target.parent)

    def append(self, name: str, content: bytes) -> None:
        """Add to a file durably. Raises `OSError`; then, where the disk allows it, nothing of it was added."""
        self.check()
        with (self.root / name).open("ab") as file:
            before = file.tell()
            try:
                half = len(content) // 2
                file.write(content[:half])
                file.flush()
                faultpoint(Point.LOG_TORN)
                file.write(content[half:])
                sync(file)
            except OSError:
                file.truncate(before)
                raise
        faultpoint(Point.LOG_WRITTEN)

    def read(self, name: str) -> bytes | None:
        """A file's bytes, None if there is none or it cannot be read."""
        try:
            return (self.root / name).read_bytes()
        except OSError:
            return None

    @staticmethod
    def _sync_folder(folder: Path) -> None:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync(file: IO[bytes]) -> None:
    """What was written to a file is on the disk. Raises `OSError`."""
    file.flush()
    os.fsync(file.fileno())


_SLOT: Final = struct.Struct(">4sQ32s")
_SLOT_MAGIC: Final = b"LOA1"


class Slots:
    """One content in two files: written into the older one, read from the newer one that is whole."""

    def __init__(self, disk: Disk, names: tuple[str, str] = MEMORY_SLOTS) -> None:
        self._disk = disk
        self._names = names
        self._number = 0
        self._next = names[0]
        self._lock = threading.Lock()  # two writers must not both find the same slot the older one
        self.lost = 0
        """How many slots were found torn or rotten when read."""

    def load(self) -> bytes | None:
        """The newest content that is whole; None if neither slot is."""
        with self._lock:
            found: dict[str, tuple[int, bytes]] = {}
            self.lost = 0
            for name in self._names:
                raw = self._disk.read(name)
                if raw is None:
                    continue
                read = _open_slot(raw)
                if read is None:
                    self.lost += 1
                else:
                    found[name] = read
            newest = max(found, key=lambda name: found[name][0], default=None)
            self._number = found[newest][0] if newest is not None else 0
            self._next = self._names[1] if newest == self._names[0] else self._names[0]
            return found[newest][1] if newest is not None else None

    def save(self, content: bytes) -> None:
        """Put content into the older slot. Raises `OSError`; then the newer slot stands."""
        with self._lock:
            number = self._number + 1
            head = struct.pack(">Q", number)
            digest = hashlib.sha256(head + content).digest()
            self._disk.replace(self._next, _SLOT.pack(_SLOT_MAGIC, number, digest) + content)
            self._number = number
            self._next = self._names[1] if self._next == self._names[0] else self._names[0]


def _open_slot(raw: bytes) -> tuple[int, bytes] | None:
    if len(raw) < _SLOT.size:
        return None
    magic, number, digest = _SLOT.unpack_from(raw)
    content = raw[_SLOT.size :]
    if magic != _SLOT_MAGIC or hashlib.sha256(struct.pack(">Q", number) + content).digest() != digest:
        return None
    return number, content


class BrokerAddress(BaseModel):
    """Where the broker is, as enrolment answered."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str
    port: int
    tls: bool = False
    ca_pem: str | None = None


class Identity(BaseModel):
    """Who the node is: its device key and what enrolment answered. Written once; the file is the node's secret."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    private_key: str
    """Raw Ed25519 device key, hex. It never leaves the node."""
    node_id: str
    cluster_id: str
    broker: BrokerAddress
    username: str
    password: str
    root_public_key: str
    path: tuple[str, ...]
    assets_url: str
    asset_token: str
    certificate: str | None = None
    """PEM chain of the device key, for the broker's TLS; None where the broker asks for the password alone."""
    state: str = "active"
    """What enrolment answered; the config says what it is since."""

    @property
    def key_pem(self) -> str:
        """The device key as TLS libraries take it (PKCS 8)."""
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self.private_key))
        return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")

    @classmethod
    def load(cls, folder: Path) -> Identity | None:
        """The identity in a node's folder; None if there is none that can be read."""
        try:
            return cls.model_validate_json((folder / IDENTITY_FILE).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def save(self, folder: Path) -> None:
        """Write it durably, readable by its owner only."""
        Disk(folder).replace(IDENTITY_FILE, self.model_dump_json(indent=1).encode(), is_secret=True)


class Memory:
    """What a node must not forget: order of what it obeyed, the signed messages in force, its time."""

    def __init__(self) -> None:
        self.is_synced = False
        """Whether it knows what it obeyed: an empty memory does not, until the server told it the floors."""
        self.watermarks: dict[str, tuple[int, int, str]] = {}
        self.path: tuple[str, ...] = ()
        """Its places as it knew them last, nearest first."""
        self.statements: list[bytes] = []
        """What is held about keys: delegations and lists of revocations. Verified again when read."""
        self.messages: dict[str, bytes] = {}
        """The last accepted payload per topic: config, plan, alerts. Verified again when read."""
        self.clock: Remembered | None = None
        self.alerts: list[list[Any]] = []
        """The book of alerts (`AlarmBook.dump`)."""
        self.heard: list[int] | None = None
        """What counts against the maximum minutes (`rules.Heard`)."""
        self.begun: list[str] = []
        """Entries begun that may not begin late."""
        self.done_orders: list[str] = []
        self.boots_ns: list[int] = []
        """When the node got power lately, by the device's clock; a life that ended in good order is taken out."""
        self.log_head: tuple[int, str | None] = (0, None)
        """The device log's last line and its digest, a second copy of what the journal knows."""
        self.anchors: list[tuple[int, str, int]] = []
        """What the server said of its audit log (`Anchors.dump`)."""

    def dump(self) -> bytes:
        """As stored."""
        clock = self.clock
        return json.dumps(
            {
                "is_synced": self.is_synced,
                "watermarks": self.watermarks,
                "path": self.path,
                "statements": [base64.b64encode(raw).decode() for raw in self.statements],
                "messages": {topic: base64.b64encode(raw).decode() for topic, raw in self.messages.items()},
                "clock": None
                if clock is None
                else [clock.device_ns, clock.offset_ns, clock.slope, clock.uncertainty_ms],
                "alerts": self.alerts,
                "heard": self.heard,
                "begun": self.begun[-100:],
                "done_orders": self.done_orders[-100:],
                "boots_ns": self.boots_ns[-16:],
                "log_head": self.log_head,
                "anchors": self.anchors,
            }
        ).encode()

    @classmethod
    def load(cls, raw: bytes | None) -> Memory:
        """From the store; what cannot be read is an empty memory, which must be resynchronised first."""
        memory = cls()
        if raw is None:
            return memory
        try:
            told = json.loads(raw)
            memory.watermarks = {name: (mark[0], mark[1], mark[2]) for name, mark in told["watermarks"].items()}
            memory.messages = {topic: base64.b64decode(text) for topic, text in told["messages"].items()}
            memory.clock = Remembered(*told["clock"]) if told["clock"] else None
            memory.done_orders = list(told["done_orders"])
            memory.boots_ns = [int(boot_ns) for boot_ns in told["boots_ns"]]
            line, digest = told["log_head"]
            memory.log_head = (int(line), digest)
            memory.alerts = [list(line) for line in told.get("alerts", ())]
            memory.heard = told.get("heard")
            memory.begun = list(told.get("begun", ()))
            memory.anchors = [(int(one[0]), str(one[1]), int(one[2])) for one in told.get("anchors", ())]
            memory.statements = [base64.b64decode(text) for text in told.get("statements", ())]
            memory.path = tuple(str(unit) for unit in told.get("path", ()))
            memory.is_synced = bool(told.get("is_synced", True))  # what was written before this field had its marks
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return cls()
        return memory
