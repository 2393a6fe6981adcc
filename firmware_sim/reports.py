"""The device log: what the node reports, signed once, kept on its disk until the server has acknowledged it.

`(boot_id, sequence)` makes an entry unique, so sending again is harmless. An entry is on the disk before it is sent;
with a full disk it is kept in memory and counted. Unacknowledged entries are sent again with back-off and after every
reconnect, a few at a time, so that a commune that comes back does not flood the server.
"""

from __future__ import annotations

import base64
import json
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from firmware_sim.decoder import Offload
from firmware_sim.store import JOURNAL_FILE, Disk
from speaker_protocol.messages import ReportBody
from speaker_protocol.signing import Kind, key_id_of, seal

MAX_ENTRIES: Final = 2_000
"""Beyond it the oldest entry is dropped and counted."""
AT_ONCE: Final = 20
FIRST_AGAIN_S: Final = 2.0
LONGEST_AGAIN_S: Final = 60.0
KEEP_MS: Final = 90 * 86_400_000
_COMPACT_LINES: Final = 400


@dataclass(slots=True)
class Entry:
    """One signed report on its way."""

    boot_id: str
    sequence: int
    envelope: bytes
    is_stored: bool = False
    tries: int = 0
    next_s: float = 0.0


class DeviceKey:
    """The node's own Ed25519 key, made on the node."""

    def __init__(self, private_hex: str) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private_hex))
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self._id = key_id_of(self.public)

    def seal_report(self, node_id: str, body: ReportBody, issued_ms: int) -> bytes:
        """The signed envelope of a report."""
        return seal(
            self._key,
            self._id,
            kind=Kind.REPORT,
            target=node_id,
            issued_ms=issued_ms,
            expires_ms=issued_ms + KEEP_MS,
            epoch=0,
            sequence=body.sequence,
            body=body.encode(),
        )


class DeviceLog:
    """Reports from the moment they are written until they are acknowledged."""

    def __init__(self, disk: Disk, offload: Offload, chance: random.Random) -> None:
        self._disk = disk
        self._offload = offload
        self._chance = chance
        self._entries: OrderedDict[tuple[str, int], Entry] = OrderedDict()
        self._forgotten: list[tuple[str, int]] = []
        self._lines = 0
        self.dropped = 0
        self.acknowledged = 0
        self.unstored = 0

    @property
    def waiting(self) -> int:
        """Entries nobody has acknowledged yet."""
        return len(self._entries)

    def load(self) -> None:
        """Take up what an earlier life left."""
        for line in (self._disk.read(JOURNAL_FILE) or b"").splitlines():
            self._lines += 1
            try:
                told = json.loads(line)
                for boot_id, sequence in told.get("acked", ()):
                    self._entries.pop((boot_id, sequence), None)
                if "envelope" in told:
                    entry = Entry(told["boot"], told["sequence"], base64.b64decode(told["envelope"]), is_stored=True)
                    self._entries[entry.boot_id, entry.sequence] = entry
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a line that a power cut tore

    def add(self, boot_id: str, sequence: int, envelope: bytes) -> None:
        """A new entry."""
        self._entries[boot_id, sequence] = Entry(boot_id, sequence, envelope)
        while len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)
            self.dropped += 1

    def acknowledge(self, boot_id: str, sequences: tuple[int, ...]) -> None:
        """The server has stored these."""
        for sequence in sequences:
            if self._entries.pop((boot_id, sequence), None) is not None:
                self.acknowledged += 1
                self._forgotten.append((boot_id, sequence))

    def hurry(self) -> None:
        """After a reconnect: everything is due again."""
        for entry in self._entries.values():
            entry.next_s, entry.tries = 0.0, 0

    async def store(self) -> None:
        """Bring new entries and acknowledgements to the disk."""
        new = [entry for entry in self._entries.values() if not entry.is_stored]
        acked, self._forgotten = self._forgotten, []
        if not new and not acked:
            return
        lines = [json.dumps({"acked": acked})] if acked else []
        lines += [_line(entry) for entry in new]
        self._lines += len(lines)
        try:
            if self._lines > _COMPACT_LINES + 2 * len(self._entries):
                everything = [_line(entry) for entry in self._entries.values()]
                self._lines = len(everything)
                whole = "".join(line + "\n" for line in everything).encode()
                await self._offload(lambda: self._disk.replace(JOURNAL_FILE, whole))
            else:
                added = "".join(line + "\n" for line in lines).encode()
                await self._offload(lambda: self._disk.append(JOURNAL_FILE, added))
        except OSError:
            self.unstored += len(new)
        # With a full disk the report is still better sent than kept: it lives in memory until acknowledged.
        for entry in new:
            entry.is_stored = True

    def send_due(self, now_s: float, send: Callable[[bytes], bool]) -> None:
        """Send what is due, a few at a time."""
        sent = 0
        for entry in self._entries.values():
            if sent >= AT_ONCE:
                return
            if not entry.is_stored or entry.next_s > now_s:
                continue
            if not send(entry.envelope):
                return
            sent += 1
            wait_s = min(LONGEST_AGAIN_S, FIRST_AGAIN_S * 2**entry.tries)
            entry.tries += 1
            entry.next_s = now_s + self._chance.uniform(wait_s, 1.5 * wait_s)


def _line(entry: Entry) -> str:
    return json.dumps(
        {
            "boot": entry.boot_id,
            "sequence": entry.sequence,
            "envelope": base64.b64encode(entry.envelope).decode(),
        }
    )
