"""One stream over many sources, on a clock ticked by hand: what sounds is told by its tones, and when by the second."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from broadcast_server.audio.feed import FeedState, FeedStatus
from broadcast_server.audio.formats import SAMPLE_RATE_HZ, pcm_of
from broadcast_server.domain.clock import to_ms
from broadcast_server.relay.reader import Reader
from broadcast_server.relay.switching import Filler, Sounding, SourceKind, SwitchingSource
from simulation.samples import tone_pcm
from tests.relay.ear import pair_of
from tests.support.clock import FakeClock, settle

MAIN, SPARE, THIRD, LOOP = (500, 1100), (700, 2300), (900, 1600), (1300, 1900)
FILLER = Filler("f" * 64, tone_pcm(LOOP, 7.0))
STEP_S = 0.1


class Station:
    """A source whose sound the test turns on and off; it comes in real time, 100 ms at a time."""

    def __init__(self, clock: FakeClock, tones: tuple[int, int]) -> None:
        self._clock, self._tone, self._at = clock, tone_pcm(tones, 60.0), 9_600
        self.status = FeedStatus(FeedState.CONNECTING, None, clock.now())
        self.is_on, self.is_mute, self.readers = True, False, 0

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        self.readers += 1
        try:
            while True:
                await self._clock.sleep(STEP_S)
                if not self.is_on:
                    continue
                size = round(STEP_S * SAMPLE_RATE_HZ) * 2
                self._at = (self._at + size) % (len(self._tone) - size)
                self.status = replace(self.status, state=FeedState.HEALTHY, reason=None)
                yield bytes(size) if self.is_mute else self._tone[self._at : self._at + size]
        finally:
            self.readers -= 1

    def breaks(self, reason: str) -> None:
        """It ends and says why."""
        self.is_on = False
        failures = self.status.failures + 1
        self.status = replace(self.status, state=FeedState.STALLED, reason=reason, failures=failures)


class Studio:
    """A switching source with three stations behind it and an ear in front."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.stations = {name: Station(self.clock, tones) for name, tones in NAMES.items()}
        self.told: list[Sounding] = []
        self.refused: set[str] = set()
        self._readers: dict[str, tuple[Reader, asyncio.Task[None]]] = {}
        self.heard: list[tuple[float, bytes]] = []
        self.source = SwitchingSource(
            "main",
            readers=self,
            clock=self.clock,
            opening=FeedStatus(FeedState.CONNECTING, None, self.clock.now()),
            playout_delay_ms=2_000,
            on_change=self.told.append,
        )
        self._task: asyncio.Task[None] | None = None

    async def acquire(self, feed_id: str) -> Reader | None:
        if feed_id in self.refused:
            return None
        reader = Reader(self.stations[feed_id], clock=self.clock)
        self._readers[feed_id] = reader, asyncio.create_task(reader.run(), name=f"test.reader[{feed_id}]")
        return reader

    async def release(self, feed_id: str) -> None:
        _, task = self._readers.pop(feed_id)
        task.cancel()
        await asyncio.wait([task])

    async def listen(self) -> None:
        async with contextlib.aclosing(self.source.blocks()) as blocks:
            async for block in blocks:
                self.heard.append((self.clock.monotonic(), block))

    async def open(self, *substitutes: str, filler: Filler | None = None, delay_s: float = 0.0) -> None:
        self.arrange(*substitutes, filler=filler, delay_s=delay_s)
        self._task = asyncio.create_task(self.listen(), name="test.switching")
        await settle()

    def arrange(self, *substitutes: str, **more: object) -> None:
        self.source.arrange(**{"filler": None, "delay_s": 0.0, **more}, substitutes=substitutes)

    async def pass_s(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            await self.clock.advance(STEP_S)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def last(self, seconds: float = 0.5) -> tuple[int, int] | None:
        """What was heard in the last so many seconds; None for nothing at all."""
        since_s = self.clock.monotonic() - seconds
        sound = b"".join(block for at_s, block in self.heard if at_s > since_s)
        return pair_of(pcm_of(sound) / 32768) if len(sound) > 20_000 else None

    def first_after(self, at_s: float, tones: tuple[int, int]) -> float:
        """When these tones first sounded after `at_s`, in seconds from then."""
        for when_s, block in self.heard:
            if when_s > at_s + 0.2 and len(block) > 8_000 and any(block) and pair_of(pcm_of(block) / 32768) == tones:
                return when_s - at_s
        raise AssertionError(f"{tones} never sounded")

    def story(self) -> list[tuple[SourceKind, str | None, str]]:
        return [(each.kind, each.source_id, each.reason) for each in self.told]


NAMES = {"main": MAIN, "spare": SPARE, "third": THIRD}


@pytest.fixture
async def studio() -> AsyncIterator[Studio]:
    made = Studio()
    yield made
    await made.close()


async def test_a_station_that_stalls_is_stood_in_for_and_taken_back_after_fifteen_good_seconds(studio: Studio):
    await studio.open("spare", filler=FILLER)
    await studio.pass_s(20)
    assert studio.last() == MAIN
    assert studio.stations["spare"].readers == 0
    main = studio.stations["main"]
    main.is_on = False
    lost_s = studio.clock.monotonic()
    await studio.pass_s(5)
    assert studio.last() == SPARE
    assert studio.first_after(lost_s, SPARE) <= 3.0
    assert studio.source.status.reason == "stalled"
    assert studio.source.lost_since is not None
    main.is_on = True
    back_s = studio.clock.monotonic()
    await studio.pass_s(14)
    assert studio.last() == SPARE
    assert studio.source.lost_since is None
    await studio.pass_s(3)
    assert studio.last() == MAIN
    assert 15.0 <= studio.first_after(back_s, MAIN) <= 15.5
    await studio.pass_s(20)
    assert studio.stations["spare"].readers == 0
    assert studio.story() == [
        (SourceKind.FEED, None, "started"),
        (SourceKind.SUBSTITUTE, "spare", "stalled"),
        (SourceKind.FEED, None, "returned"),
    ]


async def test_down_the_whole_ladder_in_order(studio: Studio):
    await studio.open("spare", "third", filler=FILLER)
    await studio.pass_s(5)
    for name, successor in (("main", SPARE), ("spare", THIRD), ("third", LOOP)):
        studio.stations[name].is_on = False
        lost_s = studio.clock.monotonic()
        await studio.pass_s(6)
        assert studio.last() == successor
        assert studio.first_after(lost_s, successor) <= 5.0
    studio.arrange("spare", "third")
    await studio.pass_s(2)
    assert studio.last() is None
    assert studio.told[-1].kind is SourceKind.SILENCE


async def test_a_substitute_that_is_no_good_is_passed_over_without_making_anybody_wait_long(studio: Studio):
    studio.refused.add("spare")
    studio.stations["third"].is_on = False
    await studio.open("spare", "third", filler=FILLER)
    await studio.pass_s(5)
    studio.stations["main"].breaks("source_revoked")
    lost_s = studio.clock.monotonic()
    await studio.pass_s(6)
    assert studio.first_after(lost_s, LOOP) <= 5.0
    assert studio.told[-1].reason == "source_revoked"


@pytest.mark.parametrize("reason", ["source_clean", "source_revoked", "http_404"])
async def test_a_word_of_its_own_is_believed_at_once(studio: Studio, reason: str):
    await studio.open("spare")
    await studio.pass_s(5)
    studio.stations["main"].breaks(reason)
    lost_s = studio.clock.monotonic()
    await studio.pass_s(3)
    assert studio.first_after(lost_s, SPARE) <= 1.0
    assert studio.told[-1].reason == reason


async def test_a_silent_station_is_stood_in_for_after_ten_seconds(studio: Studio):
    await studio.open("spare")
    await studio.pass_s(5)
    studio.stations["main"].is_mute = True
    lost_s = studio.clock.monotonic()
    await studio.pass_s(13)
    assert 9.9 <= studio.first_after(lost_s, SPARE) <= 12.0
    assert studio.told[-1].reason == "source_silent"


async def test_a_source_that_comes_and_goes_does_not_flap(studio: Studio):
    await studio.open("spare", filler=FILLER)
    await studio.pass_s(5)
    for _ in range(10):
        studio.stations["main"].is_on = False
        await studio.pass_s(4)
        studio.stations["main"].is_on = True
        await studio.pass_s(6)
    assert [each.kind for each in studio.told].count(SourceKind.FEED) == 1
    assert studio.last() == SPARE


async def test_alone_it_is_taken_back_as_soon_as_it_sounds_but_only_once_a_minute(studio: Studio):
    await studio.open()
    await studio.pass_s(5)
    main = studio.stations["main"]
    main.is_on = False
    await studio.pass_s(5)
    assert studio.last() is None
    main.is_on = True
    back_s = studio.clock.monotonic()
    await studio.pass_s(3)
    assert studio.first_after(back_s, MAIN) <= 1.5
    main.is_on = False
    await studio.pass_s(5)
    main.is_on = True
    back_s = studio.clock.monotonic()
    await studio.pass_s(17)
    assert 14.9 <= studio.first_after(back_s, MAIN) <= 15.5


async def test_a_station_that_never_came_gives_way_to_its_filler(studio: Studio):
    studio.stations["main"].is_on = False
    await studio.open(filler=FILLER)
    await studio.pass_s(6)
    assert studio.last() == LOOP
    assert studio.story() == [(SourceKind.FILLER, FILLER.sha256, "connecting")]
    studio.stations["main"].is_on = True
    await studio.pass_s(16)
    assert studio.last() == MAIN


async def test_the_filler_stands_at_the_second_of_the_wall_in_every_process(studio: Studio):
    ramp = np.arange(7 * SAMPLE_RATE_HZ) % 30_000 - 15_000
    filler = Filler("e" * 64, ramp.astype("<i2").tobytes())
    studio.stations["main"].is_on = False
    await studio.open(filler=filler)
    await studio.pass_s(9)
    sample = to_ms(studio.clock.now()) * 48
    assert studio.heard[-1][1][-2:] == filler.at(sample - 481, 1)


async def test_a_switch_does_not_click(studio: Studio):
    await studio.open("spare")
    await studio.pass_s(5)
    studio.stations["main"].breaks("source_clean")
    await studio.pass_s(5)
    studio.stations["main"].is_on = True
    await studio.pass_s(20)
    assert studio.last() == MAIN
    sound = pcm_of(b"".join(block for _, block in studio.heard)).astype(float)
    steepest = np.max(np.abs(np.diff(sound)))
    # Two tones of a quarter of full scale rise at most by the sum of their slopes from one sample to the next.
    slope = sum(0.25 * 32_768 * 2 * np.pi * hz / SAMPLE_RATE_HZ for hz in SPARE)
    assert steepest <= slope * 1.3


async def test_with_a_delay_the_fault_is_known_before_it_sounds(studio: Studio):
    await studio.open("spare", delay_s=6.0)
    await studio.pass_s(5.5)
    assert studio.heard == []
    await studio.pass_s(6)
    assert studio.last() == MAIN
    studio.stations["main"].is_on = False
    lost_s = studio.clock.monotonic()
    await studio.pass_s(5)
    assert studio.last() == MAIN  # what had come sounds to its end
    await studio.pass_s(3)
    assert studio.last() == SPARE
    silent = [late - early for (early, _), (late, _) in zip(studio.heard, studio.heard[1:], strict=False)]
    assert max(silent) <= 2.5
    assert studio.first_after(lost_s, SPARE) <= 8.5


async def test_the_cut_button_drops_what_has_not_sounded_until_it_is_released(studio: Studio):
    await studio.open("spare", filler=FILLER, delay_s=5.0)
    await studio.pass_s(12)
    assert studio.last() == MAIN
    studio.arrange("spare", filler=FILLER, delay_s=5.0, barred="cut")
    cut_s = studio.clock.monotonic()
    await studio.pass_s(8)
    assert studio.last() == LOOP
    assert studio.first_after(cut_s, LOOP) <= 0.5
    with pytest.raises(AssertionError, match="never sounded"):
        studio.first_after(cut_s, MAIN)
    assert studio.told[-1].reason == "cut"
    studio.arrange("spare", filler=FILLER, delay_s=5.0)
    await studio.pass_s(7)
    assert studio.last() == MAIN


async def test_an_ear_hears_what_is_relayed_and_costs_nobody_anything(studio: Studio):
    await studio.open(filler=FILLER)
    with studio.source.listening() as ear:
        await studio.pass_s(30)
        sound = await ear.get()
    assert 3.5 <= len(sound) / 96_000 <= 4.2  # it did not keep up: the oldest is lost
    assert pair_of(pcm_of(sound) / 32768) == MAIN


async def test_every_change_tells_when_the_speakers_follow(studio: Studio):
    await studio.open("spare")
    await studio.pass_s(3)
    first = studio.told[0]
    assert first.sounds_from - first.since == timedelta(seconds=2)
    studio.source.end_reason = "window_over"
    await studio.close()
    assert studio.told[-1].kind is SourceKind.OVER
    assert studio.told[-1].reason == "window_over"
