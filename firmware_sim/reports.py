"""The device log: what the node reports, chained and signed once, kept on its disk until the server acknowledged it.

`(boot_id, sequence)` makes an entry unique, so sending again is harmless. A line gets its number (over all boots,
without a hole) and the digest of the line before it when it is written to the disk, and is sent only after that: a
power cut can lose a line that nobody has seen, and never make two lines of one number. A disk that takes nothing gets
no line: the entry is told outside of the chain, kept in memory and counted, because a report is better sent than
kept. While the supply is too low to write, entries wait. The journal also knows which segment was sounding and how
much of it was heard, so that the next life can tell what a power cut interrupted.

Unacknowledged entries are sent again with back-off and after every reconnect, a few at a time, so that a commune that
comes back does not flood the server.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import json
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from firmware_sim.decoder import Offload
from firmware_sim.faultpoints import Point, faultpoint
from firmware_sim.store import JOURNAL_FILE, Disk
from speaker_protocol.messages import ReportBody
from speaker_protocol.signing import Kind, key_id_of, seal

MAX_ENTRIES: Final = 12_000
"""A busy node's 90 days. Beyond it the oldest entry is dropped and counted: its line stays missing at the server."""
AT_ONCE: Final = 20
FIRST_AGAIN_S: Final = 2.0
LONGEST_AGAIN_S: Final = 60.0
KEEP_MS: Final = 90 * 86_400_000
_COMPACT_LINES: Final = 400

Key = tuple[str, int]
"""Entry and start of a segment, in ms."""
Head = tuple[int, str | None]
"""The last line's number and its envelope's SHA-256."""
Seal = Callable[[int | None, str | None], bytes]
"""Signs an entry as that line after that digest; `(None, None)`: outside of the chain."""


@dataclass(slots=True)
class Entry:
    """One report on its way. `envelope` is empty until the entry was written down (or could not be)."""

    boot_id: str
    sequence: int
    seal: Seal | None = None
    envelope: bytes = b""
    line: int | None = None
    opens: Key | None = None
    closes: Key | None = None
    tries: int = 0
    next_s: float = 0.0

    @property
    def digest(self) -> str:
        """SHA-256 of the envelope."""
        return hashlib.sha256(self.envelope).hexdigest()


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
        self._fresh: list[Entry] = []
        self._forgotten: list[tuple[str, int]] = []
        self._heard: dict[Key, int] = {}
        self._open: dict[Key, int] = {}
        self._is_storing = asyncio.Lock()
        self._must_rewrite = False
        self._lines = 0
        self.head: Head = (0, None)
        self.interrupted: dict[Key, int] = {}
        """What was sounding when the power went, and how many ms of it were heard and not told yet."""
        self.dropped = 0
        self.acknowledged = 0
        self.unstored = 0
        self.damaged = 0
        """Journal lines that could not be read, apart from a torn last one."""

    @property
    def waiting(self) -> int:
        """Entries nobody has acknowledged yet."""
        return len(self._entries)

    @property
    def is_unwritten(self) -> bool:
        """Whether something is not on the disk yet."""
        return bool(self._fresh or self._forgotten)

    def envelopes(self) -> list[bytes]:
        """All that is written down and not acknowledged, in order."""
        return [entry.envelope for entry in self._entries.values() if entry.envelope]

    # -- life ---------------------------------------------------------------------------------------------------------

    def load(self, remembered: Head = (0, None)) -> None:
        """Take up what an earlier life left. `remembered`: the second copy of the log's head."""
        raw = self._disk.read(JOURNAL_FILE) or b""
        *whole, torn = raw.split(b"\n")
        self._must_rewrite = bool(torn)  # a power cut tore the last line: nothing may be added behind it
        unread = 0
        for line in whole:
            self._lines += 1
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                self.damaged += 1
                unread += 1
                continue
            unread = 0
        # Lines that rotted away at the end may have been sent: their numbers are not given again.
        self.head = max(self.head, remembered, key=lambda head: head[0])
        if unread:
            self.head = (self.head[0] + unread, self.head[1])
        self._must_rewrite |= bool(self.damaged)
        self.interrupted, self._open = dict(self._open), dict(self._open)

    def _take(self, told: dict[str, Any]) -> None:
        if "head" in told:
            self.head = (int(told["head"][0]), told["head"][1])
            self._open = {(entry, start_ms): heard_ms for entry, start_ms, heard_ms in told["open"]}
        for boot_id, sequence in told.get("acked", ()):
            self._entries.pop((boot_id, sequence), None)
        if "heard" in told:
            entry, start_ms, heard_ms = told["heard"]
            if (entry, start_ms) in self._open:
                self._open[entry, start_ms] = heard_ms
        if "envelope" not in told:
            return
        line: int | None = told["line"]
        if line is not None and line > self.head[0]:
            self.head = (line, told["digest"])
        self._turn(*(None if key is None else (key[0], key[1]) for key in (told["opens"], told["closes"])))
        entry = Entry(told["boot"], told["sequence"], envelope=base64.b64decode(told["envelope"]), line=line)
        if entry.digest != told["digest"]:
            self.damaged += 1  # its number is used, its words are gone
            return
        self._entries[entry.boot_id, entry.sequence] = entry

    def _turn(self, opens: Key | None, closes: Key | None) -> None:
        if opens is not None:
            self._open.setdefault(opens, 0)
        if closes is not None:
            self._open.pop(closes, None)

    # -- writing ------------------------------------------------------------------------------------------------------

    def add(
        self, boot_id: str, sequence: int, seal: Seal, *, opens: Key | None = None, closes: Key | None = None
    ) -> None:
        """A new entry; the segment it opens or closes."""
        entry = Entry(boot_id, sequence, seal, opens=opens, closes=closes)
        self._entries[boot_id, sequence] = entry
        self._fresh.append(entry)
        while len(self._entries) > MAX_ENTRIES:
            key, oldest = self._entries.popitem(last=False)
            self.dropped += 1
            if oldest.envelope:
                self._forgotten.append(key)
            else:
                self._fresh.remove(oldest)

    def note_heard(self, key: Key, heard_ms: int) -> None:
        """So much of the open segment was heard and not told: written down with whatever is written next."""
        self._heard[key] = heard_ms

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
        """Bring new entries, acknowledgements and what was heard to the disk."""
        async with self._is_storing:
            await self._store()

    async def _store(self) -> None:
        fresh, acked, heard = self._fresh, self._forgotten, self._heard
        if not (fresh or acked or heard):
            return
        self._fresh, self._forgotten, self._heard = [], [], {}
        head = self.head
        for entry in fresh:
            assert entry.seal is not None  # noqa: S101  a fresh entry is not sealed
            entry.line = head[0] + 1
            entry.envelope = entry.seal(entry.line, head[1])
            head = (entry.line, entry.digest)
        records: list[dict[str, Any]] = [{"acked": acked}] if acked else []
        records += [{"heard": [*key, heard_ms]} for key, heard_ms in heard.items()]
        records += [_record(entry) for entry in fresh]
        try:
            await self._write(records, head, fresh, heard)
        except OSError as error:
            self._must_rewrite = True
            if error.errno == errno.EAGAIN:
                for entry in fresh:
                    entry.envelope, entry.line = b"", None
                self._fresh, self._forgotten = fresh + self._fresh, acked + self._forgotten
                self._heard = heard | self._heard
                return
            self.unstored += len(fresh)
            for entry in fresh:
                assert entry.seal is not None  # noqa: S101
                entry.envelope, entry.line = entry.seal(None, None), None
            self._forgotten = acked + self._forgotten
            self._heard = heard | self._heard
        else:
            self.head = head
        for entry in fresh:
            entry.seal = None
            self._turn(entry.opens, entry.closes)
        for key, heard_ms in heard.items():
            if key in self._open:
                self._open[key] = heard_ms

    async def _write(
        self, records: list[dict[str, Any]], head: Head, fresh: list[Entry], heard: dict[Key, int]
    ) -> None:
        self._lines += len(records)
        if not self._must_rewrite and self._lines <= _COMPACT_LINES + 2 * len(self._entries):
            added = _text(records)
            await self._offload(lambda: self._disk.append(JOURNAL_FILE, added))
            return
        still_open = {**self._open, **{key: ms for key, ms in heard.items() if key in self._open}}
        for entry in fresh:
            if entry.opens is not None:
                still_open.setdefault(entry.opens, 0)
            if entry.closes is not None:
                still_open.pop(entry.closes, None)
        everything: list[dict[str, Any]] = [{"head": head, "open": [[*key, ms] for key, ms in still_open.items()]}]
        kept = [entry for entry in self._entries.values() if entry.envelope]
        everything += [_record(entry, turns=False) for entry in kept]
        whole = _text(everything)
        await self._offload(lambda: self._disk.replace(JOURNAL_FILE, whole))
        self._lines, self._must_rewrite = len(everything), False

    # -- sending ------------------------------------------------------------------------------------------------------

    def send_due(self, now_s: float, send: Callable[[bytes], bool]) -> None:
        """Send what is due, a few at a time."""
        sent = 0
        for entry in self._entries.values():
            if sent >= AT_ONCE:
                return
            if entry.seal is not None or entry.next_s > now_s:
                continue
            if not send(entry.envelope):
                return
            faultpoint(Point.LOG_SENT)
            sent += 1
            wait_s = min(LONGEST_AGAIN_S, FIRST_AGAIN_S * 2**entry.tries)
            entry.tries += 1
            entry.next_s = now_s + self._chance.uniform(wait_s, 1.5 * wait_s)


def _record(entry: Entry, *, turns: bool = True) -> dict[str, Any]:
    return {
        "boot": entry.boot_id,
        "sequence": entry.sequence,
        "line": entry.line,
        "digest": entry.digest,
        "opens": entry.opens if turns else None,
        "closes": entry.closes if turns else None,
        "envelope": base64.b64encode(entry.envelope).decode(),
    }


def _text(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()
