"""The node keeps what it needs: checked before it sounds, urgent before bulk, by night what can wait."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest

from firmware_sim.assets import AssetKeeper, Lane, Wanted
from firmware_sim.store import MEMORY_SLOTS, Disk, Memory, Slots
from simulation.world.time import VirtualTime
from speaker_protocol import messages as wire
from speaker_protocol.messages import ReportKind
from speaker_protocol.rules import Level
from tests.firmware_sim.workshop import Workshop, on_virtual_time, segment
from tests.firmware_sim.world import inline

A, B = (700, 1600), (500, 900)


# -- two slots --------------------------------------------------------------------------------------------------------


def test_memory_is_written_in_turn_and_the_newer_slot_is_read(tmp_path: Path):
    slots = Slots(Disk(tmp_path))
    for content in (b"one", b"two", b"three"):
        slots.save(content)
    again = Slots(Disk(tmp_path))
    assert (again.load(), again.lost) == (b"three", 0)
    again.save(b"four")
    assert Slots(Disk(tmp_path)).load() == b"four"


def test_a_torn_or_rotten_slot_falls_back_to_the_other(tmp_path: Path):
    slots = Slots(Disk(tmp_path))
    slots.save(b"older")
    slots.save(b"newer")
    newer = tmp_path / MEMORY_SLOTS[1]
    whole = newer.read_bytes()
    for at in range(len(whole)):
        newer.write_bytes(whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :])
        again = Slots(Disk(tmp_path))
        assert (again.load(), again.lost) == (b"older", 1)
    for length in range(len(whole)):
        newer.write_bytes(whole[:length])
        assert Slots(Disk(tmp_path)).load() == b"older"
    after = Slots(Disk(tmp_path))
    after.load()
    after.save(b"newest")
    assert Slots(Disk(tmp_path)).load() == b"newest"


def test_a_full_disk_leaves_both_slots_as_they_were(tmp_path: Path):
    disk = Disk(tmp_path)
    slots = Slots(disk)
    slots.save(b"one")
    disk.is_full = True
    with pytest.raises(OSError, match="no space"):
        slots.save(b"two")
    disk.is_full = False
    assert Slots(disk).load() == b"one"
    slots.save(b"three")
    assert Slots(disk).load() == b"three"


def test_what_is_remembered_comes_back_whole():
    memory = Memory()
    memory.boots_ns, memory.log_head = [1, 2], (7, "d" * 64)
    again = Memory.load(memory.dump())
    assert (again.boots_ns, again.log_head) == ([1, 2], (7, "d" * 64))


def test_the_newer_slot_dies_and_the_plan_still_sounds_without_network(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        shop = Workshop(time, tmp_path)
        office = shop.office
        sha = office.asset(A, 3)
        office.keys()
        office.config()
        t0 = shop.now_ms + 60_000
        office.plan(segment("p", t0, 3, asset=sha))
        await shop.pass_s(25)
        office.is_reachable = False
        shop.node.faults.lose_slot()
        shop.node.power_cycle()
        await shop.pass_s(10)
        assert shop.node.state.plan is not None
        await shop.pass_s(60)
        assert [pair for pair, _, _ in await shop.sounded(t0)] == [A]

    on_virtual_time(story)


# -- before it sounds -------------------------------------------------------------------------------------------------


def test_a_clip_that_rots_after_power_on_is_found_before_it_sounds_and_fetched_again(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        shop = Workshop(time, tmp_path)
        office = shop.office
        sha = office.asset(A, 3)
        office.keys()
        office.config()
        t0 = shop.now_ms + 60_000
        office.plan(segment("p", t0, 3, asset=sha), segment("q", t0 + 600_000, 3, asset=sha))
        await shop.settle()
        assert sha in shop.node.state.ready_assets
        shop.node.faults.rot("assets")
        await shop.pass_s(70)
        office.is_reachable = False
        await shop.pass_s(500)
        shop.node.faults.rot("assets", bits=20)  # and this time nobody can bring it again
        await shop.pass_s(80)
        assert "asset_rotten" in shop.faults
        assert shop.node.firmware is not None
        assert shop.node.firmware.assets.counts.rotten == 2
        found = await shop.sounded(t0)
        assert [(pair, round(start)) for pair, start, _ in found] == [(A, 0)]  # the second time: silence, not noise
        reasons = {body.entry_id: body.reason for body in office.told() if body.kind is not ReportKind.STARTED}
        assert reasons["p"] is None

    on_virtual_time(story)


# -- lanes ------------------------------------------------------------------------------------------------------------


def test_an_alerts_clip_does_not_wait_behind_a_big_download_which_resumes_after_it(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        shop = Workshop(time, tmp_path)
        office = shop.office
        big, alarm = office.asset(A, 60), office.asset(B, 2)
        office.keys()
        office.config()
        office.per_piece_s = 1.0
        office.plan(segment("later", shop.now_ms + 5 * 3_600_000, 60, asset=big))
        await shop.pass_s(700)
        if big not in shop.node.state.ready_assets:
            await shop.pass_s(5)
        shop.office.assets[big] = shop.office.assets[big]
        office.asked.clear()
        other = office.asset((900, 2300), 120)
        office.plan(segment("later", shop.now_ms + 2 * 3_600_000, 120, asset=other))
        while other not in office.asked:
            await shop.pass_s(1)
        await shop.pass_s(3)
        raised = shop.now_ms
        office.alert(
            wire.AlertBody(
                alert_id="a1",
                level=Level.EMERGENCY_COMMUNE,
                issued_ms=raised,
                expires_ms=raised + 600_000,
                asset=alarm,
                asset_ms=2_000,
            )
        )
        await shop.pass_s(15)
        assert alarm in shop.node.state.ready_assets
        assert other not in shop.node.state.ready_assets
        assert shop.node.firmware is not None
        assert shop.node.firmware.assets.counts.gave_way == 1
        await shop.pass_s(300)
        assert other in shop.node.state.ready_assets
        assert shop.node.firmware.assets.counts.resumed >= 1
        await shop.stop()

    on_virtual_time(story)


class Shelf:
    """An asset keeper alone, on virtual time, before a server that has everything."""

    def __init__(self, time: VirtualTime, folder: Path, *, quota_bytes: int = 10**8) -> None:
        self.time = time
        self.contents: dict[str, bytes] = {}
        self.fetched_at: dict[str, datetime] = {}
        client = httpx.AsyncClient(transport=httpx.MockTransport(self._serve))
        self.keeper = AssetKeeper(
            Disk(folder, capacity_bytes=quota_bytes),
            client,
            at_once={lane: asyncio.Semaphore(1) for lane in Lane},
            token="t",
            true=time,
            offload=inline,
            chance=random.Random(1),
            on_change=lambda: None,
        )
        self.keeper.assets_url = "http://office/assets"

    async def _serve(self, request: httpx.Request) -> httpx.Response:
        sha = request.url.path.rpartition("/")[2]
        self.fetched_at[sha] = self.time.now()

        async def whole() -> AsyncIterator[bytes]:
            yield self.contents[sha]

        return httpx.Response(200, content=whole())

    def wanted(self, name: str, in_hours: float, size: int = 1_000, *, is_alert: bool = False) -> Wanted:
        content = name.encode().ljust(size, b".")
        sha = hashlib.sha256(content).hexdigest()
        self.contents[sha] = content
        return Wanted(sha, size, self.time.now_ms() + round(in_hours * 3_600_000), is_alert)

    def want(self, *wanted: Wanted) -> None:
        self.keeper.want({one.sha256: one for one in wanted}, self.time.now_ms())

    async def pass_hours(self, hours: float) -> None:
        until_s = self.time.monotonic() + hours * 3_600
        while self.time.monotonic() < until_s:
            for lane in Lane:
                await self.keeper.fetch_due(lane, self.time.now_ms())
            await self.time.sleep(60)

    def held(self, *wanted: Wanted) -> list[bool]:
        return [one.sha256 in self.keeper.ready for one in wanted]


def local_hour(at: datetime) -> int:
    return (at + timedelta(hours=7)).hour


def test_what_is_used_tomorrow_is_fetched_by_night_and_todays_soon(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        shelf = Shelf(time, tmp_path)
        today, evening = shelf.wanted("today", 2), shelf.wanted("evening", 14.5)
        many = [shelf.wanted(f"item {number}", 30) for number in range(40)]
        shelf.want(today, evening, *many)
        await shelf.pass_hours(0.3)
        # At 22:30 it sounds: the night would be too late for it.
        assert shelf.held(today, evening, many[0]) == [True, True, False]
        assert not shelf.keeper.is_behind
        await shelf.pass_hours(24)
        hours = [local_hour(shelf.fetched_at[one.sha256]) for one in many]
        assert set(hours) <= {22, 23, 0, 1}
        assert len(set(hours)) >= 3  # spread, not all of a province at once

    on_virtual_time(story)


def test_what_is_moved_up_does_not_wait_for_the_night(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        shelf = Shelf(time, tmp_path)
        item = shelf.wanted("item", 30)
        shelf.want(item)
        await shelf.pass_hours(0.2)
        shelf.want(replace(item, first_use_ms=time.now_ms() + 60_000))
        await shelf.pass_hours(0.02)
        assert shelf.held(item) == [True]

    on_virtual_time(story)


def test_a_full_quota_never_costs_the_next_two_days_nor_an_alert(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        shelf = Shelf(time, tmp_path, quota_bytes=3_000)
        old, older = shelf.wanted("old", 1), shelf.wanted("older", 0.5)
        shelf.want(old, older)
        await shelf.pass_hours(1)
        await shelf.keeper.checked(old.sha256)  # sounded last
        alarm = shelf.wanted("alarm", 0, is_alert=True)
        far, soon, third = shelf.wanted("far", 100), shelf.wanted("soon", 5), shelf.wanted("third", 6)
        shelf.want(alarm)
        await shelf.pass_hours(0.1)
        assert shelf.held(old, older, alarm) == [True, True, True]
        shelf.want(alarm, far)
        await shelf.pass_hours(24)
        assert shelf.held(old, older, alarm, far) == [True, False, True, True]  # least used first
        far, soon, third = (
            replace(one, first_use_ms=time.now_ms() + hours * 3_600_000)
            for one, hours in ((far, 76), (soon, 5), (third, 6))
        )
        shelf.want(alarm, far, soon, third)
        await shelf.pass_hours(2)
        assert shelf.held(old, alarm, far, soon, third) == [False, True, False, True, True]
        fourth = shelf.wanted("fourth", 40)
        shelf.want(alarm, soon, third, fourth)
        await shelf.pass_hours(24)
        assert shelf.held(alarm, soon, third, fourth) == [True, True, True, False]
        assert shelf.keeper.is_quota_full

    on_virtual_time(story)


def test_a_full_flash_still_sounds_the_emergency_and_says_so(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        shop = Workshop(time, tmp_path)
        office = shop.office
        office.keys()
        office.config()
        office.plan()
        await shop.settle()
        shop.node.faults.fill_disk()
        raised = shop.now_ms
        office.alert(
            wire.AlertBody(alert_id="a1", level=Level.EMERGENCY_COMMUNE, issued_ms=raised, expires_ms=raised + 60_000)
        )
        await shop.pass_s(10)
        assert shop.node.state.sounding is not None
        assert "storage_full" in shop.faults
        assert office.status is not None
        assert "storage_full" in (office.status.health or ())
        assert {body.entry_id for body in office.told()} == {"alert:a1"}
        assert not list(shop.disk.root.glob("*.new"))
        await shop.stop()

    on_virtual_time(story)


def test_the_status_says_item_by_item_what_is_ready(tmp_path: Path):
    async def story(time: VirtualTime) -> None:
        shop = Workshop(time, tmp_path)
        office = shop.office
        here, lost = office.asset(A, 2), "e" * 64
        office.assets[lost], office.durations[lost] = b"x" * 100, 2_000  # what comes is not what was promised
        office.keys()
        office.config()
        t0 = shop.now_ms + 1_200_000
        office.plan(segment("here", t0, 2, asset=here), segment("lost", t0 + 60_000, 2, asset=lost))
        await shop.pass_s(300)
        assert [(one.entry_id, one.start_ms, one.ready) for one in office.due[-1]] == [
            ("here", t0, True),
            ("lost", t0 + 60_000, False),
        ]
        assert "asset_due_missing" in shop.faults
        told = len(office.due)
        await shop.pass_s(200)
        assert len(office.due) == told  # nothing changed: the status does without the list
        await shop.pass_s(600)
        assert len(office.due) == told + 1
        await shop.stop()

    on_virtual_time(story)
