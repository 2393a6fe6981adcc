"""The node's flash: identity, what must be remembered before acting, the report journal, and room for assets.

One folder per node. A file is replaced whole (write aside, fsync, rename, fsync of the folder), so a power cut leaves
the old one or the new one. `Disk.is_full` is the fault that makes every write fail as a real full disk does.
"""

from __future__ import annotations

import base64
import errno
import json
import os
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from firmware_sim.clock import Remembered

IDENTITY_FILE: Final = "identity.json"
MEMORY_FILE: Final = "memory.json"
JOURNAL_FILE: Final = "reports.log"
ASSETS_FOLDER: Final = "assets"


class Disk:
    """A folder with a size and a way to be full."""

    def __init__(self, root: Path, *, capacity_bytes: int = 512 * 1024 * 1024) -> None:
        self.root = root
        self.capacity_bytes = capacity_bytes
        self.is_full = False
        root.mkdir(parents=True, exist_ok=True)
        (root / ASSETS_FOLDER).mkdir(exist_ok=True)

    def check(self) -> None:
        """Raises `OSError(ENOSPC)` when full."""
        if self.is_full:
            raise OSError(errno.ENOSPC, "no space left on the node")

    def replace(self, name: str, content: bytes) -> None:
        """Write a file whole and durably. Raises `OSError`."""
        self.check()
        target = self.root / name
        aside = target.with_name(target.name + ".new")
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
        self._sync_folder(target.parent)

    def append(self, name: str, content: bytes) -> None:
        """Add to a file durably. Raises `OSError`."""
        self.check()
        with (self.root / name).open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def read(self, name: str) -> bytes | None:
        """A file's bytes, None if there is none."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    @staticmethod
    def _sync_folder(folder: Path) -> None:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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

    @classmethod
    def load(cls, folder: Path) -> Identity | None:
        """The identity in a node's folder; None if there is none that can be read."""
        try:
            return cls.model_validate_json((folder / IDENTITY_FILE).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def save(self, folder: Path) -> None:
        """Write it durably, readable by its owner only."""
        Disk(folder).replace(IDENTITY_FILE, self.model_dump_json(indent=1).encode())
        (folder / IDENTITY_FILE).chmod(0o600)


class Memory:
    """What a node must not forget: order of what it obeyed, the signed messages in force, its time."""

    def __init__(self) -> None:
        self.watermarks: dict[str, tuple[int, int, str]] = {}
        self.messages: dict[str, bytes] = {}
        """The last accepted payload per topic: keys, config, plan, alerts. Verified again when read."""
        self.clock: Remembered | None = None
        self.finished_alerts: set[str] = set()
        self.done_orders: list[str] = []

    def dump(self) -> bytes:
        """As stored."""
        clock = self.clock
        return json.dumps(
            {
                "watermarks": self.watermarks,
                "messages": {topic: base64.b64encode(raw).decode() for topic, raw in self.messages.items()},
                "clock": None
                if clock is None
                else [clock.device_ns, clock.offset_ns, clock.slope, clock.uncertainty_ms],
                "finished_alerts": sorted(self.finished_alerts),
                "done_orders": self.done_orders[-100:],
            }
        ).encode()

    @classmethod
    def load(cls, raw: bytes | None) -> Memory:
        """From the store; an unreadable file is an empty memory (the retained state fills it again)."""
        memory = cls()
        if raw is None:
            return memory
        try:
            told = json.loads(raw)
            memory.watermarks = {name: (mark[0], mark[1], mark[2]) for name, mark in told["watermarks"].items()}
            memory.messages = {topic: base64.b64decode(text) for topic, text in told["messages"].items()}
            memory.clock = Remembered(*told["clock"]) if told["clock"] else None
            memory.finished_alerts = set(told["finished_alerts"])
            memory.done_orders = list(told["done_orders"])
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return cls()
        return memory
