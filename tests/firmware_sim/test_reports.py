"""What a node has sounded reaches the server once at least, whatever happens between."""

from __future__ import annotations

import random
from pathlib import Path

from firmware_sim.ledger import Ledger, Line
from firmware_sim.output import Played
from firmware_sim.player import Chunk, Sounding, Tag
from firmware_sim.reports import DeviceKey, DeviceLog
from firmware_sim.store import JOURNAL_FILE, Disk, Identity, Memory
from speaker_protocol import messages as wire
from speaker_protocol.messages import ReportKind
from speaker_protocol.rules import SourceKind, Why
from speaker_protocol.signing import Kind, parse
from tests.firmware_sim.world import SECRET, inline

SECOND = 48_000


def report(sequence: int) -> bytes:
    body = wire.ReportBody(
        boot_id="b1", sequence=sequence, kind=ReportKind.FINISHED, entry_id="e", segment_start_ms=1, at_ms=2
    )
    return DeviceKey(SECRET).seal_report("n1", body, 1_790_000_000_000)


def log_on(folder: Path) -> tuple[DeviceLog, Disk]:
    disk = Disk(folder)
    log = DeviceLog(disk, inline, random.Random(1))
    log.load()
    return log, disk


async def test_a_report_is_sent_only_once_stored_and_again_until_acknowledged(tmp_path: Path):
    log, _ = log_on(tmp_path)
    sent: list[bytes] = []
    log.add("b1", 1, report(1))
    log.send_due(0.0, lambda raw: not sent.append(raw))
    assert sent == []
    await log.store()
    for at in (0.0, 0.5, 10.0, 11.0, 30.0):
        log.send_due(at, lambda raw: not sent.append(raw))
    assert len(sent) == 3
    envelope = parse(sent[0])
    assert (envelope.kind, envelope.target, envelope.sequence) == (Kind.REPORT, "n1", 1)
    log.acknowledge("b1", (1,))
    log.acknowledge("b1", (1, 7))
    log.send_due(1_000.0, lambda raw: not sent.append(raw))
    assert (len(sent), log.waiting, log.acknowledged) == (3, 0, 1)


async def test_a_power_cut_loses_no_report_and_an_acknowledged_one_does_not_come_back(tmp_path: Path):
    log, disk = log_on(tmp_path)
    for sequence in range(1, 6):
        log.add("b1", sequence, report(sequence))
    await log.store()
    log.acknowledge("b1", (1, 2))
    await log.store()
    with (disk.root / JOURNAL_FILE).open("ab") as file:
        file.write(b'{"boot": "b1", "sequ')  # the power went here
    reborn, _ = log_on(tmp_path)
    assert reborn.waiting == 3


async def test_a_full_disk_keeps_reports_in_memory_and_counts(tmp_path: Path):
    log, disk = log_on(tmp_path)
    disk.is_full = True
    log.add("b1", 1, report(1))
    await log.store()
    sent: list[bytes] = []
    log.send_due(0.0, lambda raw: not sent.append(raw))
    assert (len(sent), log.unstored, log.waiting) == (1, 1, 1)


async def test_the_journal_does_not_grow_for_ever(tmp_path: Path):
    log, disk = log_on(tmp_path)
    for sequence in range(1, 700):
        log.add("b1", sequence, report(sequence))
        await log.store()
        log.acknowledge("b1", (sequence,))
    await log.store()
    assert len((disk.read(JOURNAL_FILE) or b"").splitlines()) < 500


async def test_no_connection_no_attempt_is_used_up(tmp_path: Path):
    log, _ = log_on(tmp_path)
    log.add("b1", 1, report(1))
    await log.store()
    log.send_due(0.0, lambda _raw: False)
    sent: list[bytes] = []
    log.send_due(0.0, lambda raw: not sent.append(raw))
    assert len(sent) == 1


class Books:
    """A ledger and what it wrote."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.ledger = Ledger(self.lines.append)
        self.at_ms = 0

    def play(
        self, seconds: float, tag: Tag | None, kind: Sounding = Sounding.SOUND, why: Why = Why.PLANNED, **facts: bool
    ) -> None:
        chunk = Chunk(round(seconds * SECOND), self.at_ms * 1_000_000, kind, why, tag)
        heard = facts.pop("is_heard", kind is Sounding.SOUND)
        self.ledger.played(Played(chunk, power=1e6, is_heard=heard, **facts))
        self.at_ms += round(seconds * 1000)

    def told(self) -> list[tuple[str, str, int, str | None]]:
        return [(line.kind.value, line.tag.entry_id, line.heard_ms, line.reason) for line in self.lines]


P = Tag("p", 0, 10_000, SourceKind.RECORDED)
ALERT = Tag("alert:a", 4_000, 60_000, SourceKind.RECORDED, is_alert=True)


def test_a_whole_programme_is_told_as_heard():
    books = Books()
    books.play(10, P)
    books.play(1, None, Sounding.SILENCE, Why.NOTHING_PLANNED)
    assert books.told() == [("started", "p", 0, None), ("finished", "p", 10_000, None)]


def test_an_alert_in_the_middle_is_told_and_the_programme_goes_on_counting():
    books = Books()
    books.play(4, P)
    books.play(2, ALERT, why=Why.ALERT)
    books.play(4, P)
    books.play(1, None, Sounding.SILENCE, Why.NOTHING_PLANNED)
    assert books.told() == [
        ("started", "p", 0, None),
        ("finished", "p", 4_000, "alert"),
        ("started", "alert:a", 0, None),
        ("finished", "alert:a", 2_000, None),
        ("started", "p", 0, None),
        ("finished", "p", 8_000, None),
    ]


def test_silence_is_never_told_as_sound():
    for kind, why, facts, reason in (
        (Sounding.SILENCE, Why.ASSET_MISSING, {}, "asset_missing"),
        (Sounding.SILENCE, Why.QUIET_HOURS, {}, "quiet_hours"),
        (Sounding.SOUND, Why.PLANNED, {"is_heard": False}, "no_sound_from_horn"),
        (Sounding.HOLE, Why.PLANNED, {}, "hole"),
        (Sounding.HOLE, Why.PLANNED, {"is_underrun": True}, "underrun"),
    ):
        books = Books()
        books.play(10, P, kind, why, **facts)
        books.play(1, None, Sounding.SILENCE, Why.NOTHING_PLANNED)
        assert books.told() == [("not_sounded", "p", 0, reason)]


def test_holes_and_dry_buffers_are_taken_off_what_was_heard():
    books = Books()
    books.play(4, P)
    books.play(2, P, Sounding.HOLE, is_underrun=True)
    books.play(4, P)
    books.play(1, None, Sounding.SILENCE, Why.NOTHING_PLANNED)
    assert books.told()[-1] == ("finished", "p", 8_000, "underrun")
    assert books.lines[-1].underruns == 1


def test_power_off_in_the_middle_says_so():
    books = Books()
    books.play(4, P)
    books.ledger.close("power_off")
    assert books.told()[-1] == ("finished", "p", 4_000, "power_off")


def test_a_torn_memory_is_an_empty_one_and_identity_survives_whole(tmp_path: Path):
    memory = Memory()
    memory.messages["t"] = b"\x00\xff"
    memory.watermarks["t k"] = (1, 2, "d")
    again = Memory.load(memory.dump())
    assert (again.messages, again.watermarks) == (memory.messages, memory.watermarks)
    for torn in (memory.dump()[:-9], b"", b"[]", b"{}"):
        assert Memory.load(torn).messages == {}
    assert Identity.load(tmp_path) is None
