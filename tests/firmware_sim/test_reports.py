"""What a node has sounded reaches the server once at least, whatever happens between."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from firmware_sim.ledger import Ledger, Line
from firmware_sim.output import Played
from firmware_sim.player import Chunk, Sounding, Tag
from firmware_sim.reports import MAX_ENTRIES, DeviceKey, DeviceLog, Seal
from firmware_sim.store import JOURNAL_FILE, Disk, Identity, Memory
from simulation.world.time import VirtualTime
from speaker_protocol import messages as wire
from speaker_protocol.messages import ReportKind
from speaker_protocol.rules import SourceKind, Why
from speaker_protocol.signing import Kind, parse
from tests.firmware_sim.workshop import Workshop, on_virtual_time, segment
from tests.firmware_sim.world import SECRET, inline

SECOND = 48_000


def seal(sequence: int) -> Seal:
    def sealed(line: int | None, previous: str | None) -> bytes:
        body = wire.ReportBody(
            boot_id="b1",
            sequence=sequence,
            kind=ReportKind.FINISHED,
            entry_id="e",
            segment_start_ms=1,
            at_ms=2,
            line=line,
            previous=previous,
        )
        return DeviceKey(SECRET).seal_report("n1", body, 1_790_000_000_000)

    return sealed


def body_of(raw: bytes) -> wire.ReportBody:
    return wire.decode(wire.ReportBody, parse(raw).body)


def chain(log: DeviceLog) -> list[int | None]:
    """The numbers of all lines that wait, each held against the line before it."""
    raws = log.envelopes()
    bodies = [body_of(raw) for raw in raws]
    for before, raw, body in zip(bodies, raws, bodies[1:], strict=False):
        if body.line is not None and before.line is not None and body.line == before.line + 1:
            assert body.previous == hashlib.sha256(raw).hexdigest()
    return [body.line for body in bodies]


def log_on(folder: Path) -> tuple[DeviceLog, Disk]:
    disk = Disk(folder)
    log = DeviceLog(disk, inline, random.Random(1))
    log.load()
    return log, disk


async def written(log: DeviceLog, *sequences: int) -> None:
    for sequence in sequences:
        log.add("b1", sequence, seal(sequence))
        await log.store()


def sent_by(log: DeviceLog, at_s: float = 0.0) -> list[bytes]:
    sent: list[bytes] = []
    log.send_due(at_s, lambda raw: not sent.append(raw))
    return sent


async def test_a_report_is_sent_only_once_stored_and_again_until_acknowledged(tmp_path: Path):
    log, _ = log_on(tmp_path)
    log.add("b1", 1, seal(1))
    assert sent_by(log) == []
    await log.store()
    sent = [raw for at in (0.0, 0.5, 10.0, 11.0, 30.0) for raw in sent_by(log, at)]
    assert len(sent) == 3
    envelope = parse(sent[0])
    assert (envelope.kind, envelope.target, envelope.sequence) == (Kind.REPORT, "n1", 1)
    log.acknowledge("b1", (1,))
    log.acknowledge("b1", (1, 7))
    assert (sent_by(log, 1_000.0), log.waiting, log.acknowledged) == ([], 0, 1)


async def test_a_power_cut_loses_no_report_and_an_acknowledged_one_does_not_come_back(tmp_path: Path):
    log, disk = log_on(tmp_path)
    await written(log, 1, 2, 3, 4, 5)
    log.acknowledge("b1", (1, 2))
    await log.store()
    with (disk.root / JOURNAL_FILE).open("ab") as file:
        file.write(b'{"boot": "b1", "sequ')  # the power went here
    reborn, _ = log_on(tmp_path)
    assert (chain(reborn), reborn.head, reborn.damaged) == ([3, 4, 5], log.head, 0)
    await written(reborn, 6)
    again, _ = log_on(tmp_path)
    assert chain(again) == [3, 4, 5, 6]  # nothing was written behind the torn line


async def test_every_line_names_the_one_before_over_all_boots_and_acknowledgements(tmp_path: Path):
    log, _ = log_on(tmp_path)
    await written(log, 1, 2)
    first, second = log.envelopes()
    assert (body_of(first).line, body_of(first).previous) == (1, None)
    assert body_of(second).previous == hashlib.sha256(first).hexdigest()
    log.acknowledge("b1", (1, 2))
    await log.store()
    reborn, _ = log_on(tmp_path)
    await written(reborn, 3)
    (third,) = reborn.envelopes()
    assert (body_of(third).line, body_of(third).previous) == (3, hashlib.sha256(second).hexdigest())


async def test_a_full_disk_tells_outside_of_the_chain_and_never_gives_a_number_twice(tmp_path: Path):
    log, disk = log_on(tmp_path)
    await written(log, 1)
    disk.is_full = True
    await written(log, 2)
    assert ([body_of(raw).line for raw in sent_by(log)], log.unstored, log.waiting) == ([1, None], 1, 2)
    disk.is_full = False
    await written(log, 3)
    assert [line for line in chain(log) if line is not None] == [1, 2]
    assert chain(log_on(tmp_path)[0]) == [1, None, 2]


async def test_while_the_supply_is_low_lines_wait_and_are_written_after(tmp_path: Path):
    log, disk = log_on(tmp_path)
    disk.is_power_low = lambda: True
    await written(log, 1)
    log.note_heard(("e", 1), 30_000)
    assert (sent_by(log), log.is_unwritten, disk.read(JOURNAL_FILE)) == ([], True, None)
    disk.is_power_low = lambda: False
    await log.store()
    assert [body_of(raw).line for raw in sent_by(log)] == [1]


async def test_what_was_sounding_when_the_power_went_is_known_with_what_was_heard_of_it(tmp_path: Path):
    log, _ = log_on(tmp_path)
    log.add("b1", 1, seal(1), opens=("whole", 5))
    log.add("b1", 2, seal(2), closes=("whole", 5))
    log.add("b1", 3, seal(3), opens=("cut", 9))
    await log.store()
    log.note_heard(("cut", 9), 30_000)
    await log.store()
    assert log_on(tmp_path)[0].interrupted == {("cut", 9): 30_000}


async def test_rot_in_the_journal_costs_the_line_it_hit_and_no_number_is_given_again(tmp_path: Path):
    log, disk = log_on(tmp_path)
    await written(log, 1, 2, 3)
    path = disk.root / JOURNAL_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    rotten = bytearray(lines[1])
    rotten[-40] ^= 0x01  # in the envelope's text
    path.write_bytes(lines[0] + bytes(rotten) + lines[2])
    reborn, _ = log_on(tmp_path)
    assert (chain(reborn), reborn.damaged, reborn.head) == ([1, 3], 1, log.head)
    path.write_bytes(lines[0] + lines[1] + b"\x00" + lines[2][1:])
    reborn, _ = log_on(tmp_path)
    await written(reborn, 4)
    assert chain(reborn) == [1, 2, 4]


async def test_the_journal_does_not_grow_for_ever(tmp_path: Path):
    log, disk = log_on(tmp_path)
    for sequence in range(1, 700):
        await written(log, sequence)
        log.acknowledge("b1", (sequence,))
    await log.store()
    assert len((disk.read(JOURNAL_FILE) or b"").splitlines()) < 500
    reborn, _ = log_on(tmp_path)
    assert (reborn.head, reborn.waiting) == (log.head, 0)


async def test_ninety_days_without_a_server_drop_the_oldest_by_name(tmp_path: Path):
    log, _ = log_on(tmp_path)
    for sequence in range(1, MAX_ENTRIES + 4):
        log.add("b1", sequence, seal(sequence))
    await log.store()
    assert (log.dropped, log.waiting) == (3, MAX_ENTRIES)


async def test_no_connection_no_attempt_is_used_up(tmp_path: Path):
    log, _ = log_on(tmp_path)
    await written(log, 1)
    log.send_due(0.0, lambda _raw: False)
    assert len(sent_by(log)) == 1


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
ALERT = Tag("alert:a", 4_000, 6_000, SourceKind.RECORDED, alert_id="a")


def test_a_whole_programme_is_told_as_heard():
    books = Books()
    books.play(10, P)
    books.play(1, None, Sounding.SILENCE, Why.NOTHING_PLANNED)
    assert books.told() == [("started", "p", 0, None), ("finished", "p", 10_000, None)]


def test_the_pauses_of_a_round_belong_to_what_was_heard():
    books = Books()
    whole = Tag("alert:a", 0, 2_000, SourceKind.RECORDED, alert_id="a")
    books.play(1, whole, why=Why.ALERT)
    books.play(0.5, whole, Sounding.SILENCE, Why.ALERT)
    books.play(0.5, whole, why=Why.ALERT_ASSET_MISSING)
    books.play(1, None, Sounding.SILENCE, Why.NOTHING_PLANNED)
    assert books.told()[-1] == ("finished", "alert:a", 2_000, "alert_asset_missing")


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


def test_a_new_leader_hears_at_once_what_was_told_to_nobody(tmp_path: Path):
    """The broker lived on while the server was dead, so no reconnect tells the node that somebody listens again."""

    async def story(time: VirtualTime) -> None:
        bench = Workshop(time, tmp_path)
        office = bench.office
        office.keys()
        office.config()
        await bench.settle()
        office.acknowledges = False
        office.plan(segment("ban-tin", bench.now_ms + 10_000, 5, asset=office.asset((700, 1600), 5)))
        await bench.pass_s(400)
        assert bench.node.state.reports_waiting > 0, "asked again and again, ever more rarely"
        office.acknowledges = True
        office.commune.epoch = 2
        office.config()
        await bench.pass_s(2)
        assert bench.node.state.reports_waiting == 0
        await bench.stop()

    on_virtual_time(story)
