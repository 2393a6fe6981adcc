"""One stream on a clock ticked by hand: heads under a lease, batches in time, silences and steps told apart."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import datetime, timedelta

import pytest

from broadcast_server.audio.feed import FeedState, FeedStatus
from broadcast_server.domain.clock import to_ms
from broadcast_server.mqtt.bus import LoopbackBus, LoopbackHub
from broadcast_server.relay.stream import RelayStream
from broadcast_server.signer.keys import FileSigner
from broadcast_server.supervise import InlineExecutor
from simulation.samples import tone_pcm
from speaker_protocol.frames import FLAG_AFTER_GAP, FLAG_LAST
from speaker_protocol.signing import Kind
from tests.relay.ear import Listener
from tests.support.clock import FakeChance, FakeClock, settle

TONE = tone_pcm((700, 2300), 10.0)


class WallClock(FakeClock):
    """A machine whose wall clock can be set by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.set_by = timedelta()

    def now(self) -> datetime:
        return super().now() + self.set_by


class Tape:
    """A source that gives what the test puts in."""

    def __init__(self, clock: FakeClock) -> None:
        self.status = FeedStatus(FeedState.HEALTHY, None, clock.now())
        self._blocks: asyncio.Queue[bytes] = asyncio.Queue()
        self._clock = clock
        self._at = 0
        self.waiting = 0

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        while True:
            self.waiting = self._blocks.qsize()
            yield await self._blocks.get()

    async def play(self, seconds: float, *, block_s: float = 0.1) -> None:
        """Tone in real time."""
        for _ in range(round(seconds / block_s)):
            await self._clock.advance(block_s)
            self.give(block_s)
            await settle()

    def give(self, seconds: float) -> None:
        size = round(seconds * 48_000) * 2
        block = (TONE + TONE)[self._at : self._at + size]
        self._at = (self._at + size) % len(TONE)
        self._blocks.put_nowait(block)


class Studio:
    """A running stream with a listener."""

    def __init__(self, signer: FileSigner) -> None:
        self.clock = WallClock()
        self.hub = LoopbackHub()
        self.bus = LoopbackBus(self.hub, clock=self.clock)
        self.tape = Tape(self.clock)
        self.stream = RelayStream(
            "dai-1",
            self.tape,
            epoch=7,
            packets_per_batch=50,
            bus=self.bus,
            signer=signer,
            clock=self.clock,
            chance=FakeChance(),
            executor=InlineExecutor(),
        )
        self.listener = Listener(self.bus, "dai-1")
        self.task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self.bus.start()
        self.task = asyncio.create_task(self.stream.run(), name="test.stream")
        await settle()

    async def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
            await settle()


@pytest.fixture
async def studio(signer: FileSigner) -> AsyncIterator[Studio]:
    made = Studio(signer)
    await made.open()
    yield made
    await made.close()
    await made.bus.close()


async def test_a_second_of_sound_is_a_batch_after_its_head(studio: Studio):
    began_ms = to_ms(studio.clock.now())
    assert studio.listener.heads == []
    await studio.tape.play(3.0)
    head, envelope = studio.listener.heads[0], studio.listener.envelopes[0]
    assert (envelope.kind, envelope.target, envelope.epoch) == (Kind.HEAD, "dai-1", 7)
    assert (head.codec, head.packets_per_batch, head.playout_delay_ms) == ("opus", 50, 2_000)
    assert head.t0_utc_ms == began_ms
    assert [batch.sequence for batch in studio.listener.batches] == [1, 2, 3]
    assert [batch.media_sample for batch in studio.listener.batches] == [0, 48_000, 96_000]
    assert all(len(batch.packets) == 50 and batch.epoch == 7 for batch in studio.listener.batches)
    assert studio.listener.heard() == (700, 2300)


async def test_24_kilobits_are_24_kilobits(studio: Studio):
    await studio.tape.play(10.0)
    sent = sum(len(packet) for packet in studio.listener.packets)
    assert sent * 8 / 10 <= 26_000


async def test_the_lease_is_ten_seconds_renewed_every_three(studio: Studio):
    await studio.tape.play(10.0)
    envelopes = studio.listener.envelopes
    assert all(envelope.expires_ms - envelope.issued_ms == 10_000 for envelope in envelopes)
    assert [envelope.sequence for envelope in envelopes] == sorted({envelope.sequence for envelope in envelopes})
    gaps = [(late.issued_ms - early.issued_ms) / 1000 for early, late in itertools.pairwise(envelopes)]
    assert len(gaps) >= 3
    assert all(2.5 <= gap_s <= 3.7 for gap_s in gaps)
    assert len({head.public_key for head in studio.listener.heads}) == 1


async def test_when_it_ends_the_rest_is_sent_and_the_lease_is_over(studio: Studio):
    await studio.tape.play(1.5)
    await studio.close()
    last = studio.listener.batches[-1]
    assert (len(last.packets), last.flags & FLAG_LAST) == (25, FLAG_LAST)
    final = studio.listener.envelopes[-1]
    assert final.expires_ms == final.issued_ms == to_ms(studio.clock.now())
    assert studio.hub.retained["loa/1/stream/dai-1/head"] == final.raw


async def test_the_words_before_a_silence_are_not_kept_back(studio: Studio):
    await studio.tape.play(1.3)
    await studio.clock.advance(2.0)
    assert [len(batch.packets) for batch in studio.listener.batches] == [50, 15]


async def test_sound_that_comes_while_a_short_batch_is_being_made_belongs_to_the_next(studio: Studio):
    """Blocks that are no whole frames, one of them arriving in the very moment the words before a pause go out."""
    for _ in range(6):
        studio.tape.give(0.1 + 1 / 96)
        await settle()
        await studio.clock.advance(0.9)
        studio.tape.give(0.003)
        await studio.clock.advance(0.9)
    assert studio.stream.counters.runs == 1
    assert all(batch.packets for batch in studio.listener.batches)


async def test_after_a_silence_media_time_is_the_wall_again(studio: Studio):
    await studio.tape.play(2.0)
    await studio.clock.advance(5.0)
    await studio.tape.play(2.0)
    head = studio.listener.heads[-1]
    first_after = next(batch for batch in studio.listener.batches if batch.flags & FLAG_AFTER_GAP)
    due_ms = head.t0_utc_ms + first_after.media_sample / 48 + head.playout_delay_ms
    # Its first sample came at second 7.0 + 0.1 and is due a batch and the safety later.
    assert abs(due_ms - (head.t0_utc_ms + 7_000 + 2_000)) <= 120
    assert studio.stream.counters.gaps == 1
    samples = [batch.media_sample for batch in studio.listener.batches]
    assert samples == sorted(samples)
    assert studio.listener.heard() == (700, 2300)


async def test_a_source_faster_than_time_is_held_back(studio: Studio):
    for _ in range(60):
        studio.tape.give(0.1)
    await settle(200)
    assert studio.tape.waiting > 30
    assert len(studio.listener.batches) == 2
    await studio.clock.advance(2.0)
    assert len(studio.listener.batches) in {3, 4}


async def test_while_the_broker_is_away_audio_is_dropped_and_the_head_comes_back(studio: Studio):
    await studio.tape.play(2.0)
    studio.hub.kill()
    await studio.tape.play(4.0)
    assert studio.stream.counters.batches_dropped == 4
    assert studio.stream.counters.heads_failed >= 1
    heads = len(studio.listener.heads)
    studio.hub.revive()
    await studio.tape.play(2.0)
    assert len(studio.listener.heads) > heads
    assert studio.listener.batches[-1].media_sample == 7 * 48_000


async def test_after_an_outage_what_is_not_due_yet_is_sent_again_and_nothing_older(studio: Studio):
    await studio.tape.play(3.0)
    studio.hub.kill()
    await studio.tape.play(6.0)
    assert studio.stream.counters.batches_dropped == 6
    back_ms = to_ms(studio.clock.now())
    before = len(studio.listener.batches)
    studio.hub.revive()
    await studio.tape.play(3.0)
    head = studio.listener.heads[-1]
    again = [batch for batch in studio.listener.batches[before:] if batch.sequence <= 9]
    assert {batch.sequence for batch in again} == {8, 9}
    for batch in again:
        assert head.t0_utc_ms + (batch.media_sample + batch.samples) / 48 + head.playout_delay_ms > back_ms
    assert studio.stream.counters.batches_again >= 2
    assert next(batch.sequence for batch in studio.listener.batches if batch.sequence > 9) == 10


async def test_a_step_of_the_wall_clock_opens_a_new_head(studio: Studio):
    await studio.tape.play(3.0)
    studio.clock.set_by = timedelta(seconds=2)
    await studio.tape.play(3.0)
    keys = list(dict.fromkeys(head.public_key for head in studio.listener.heads))
    assert len(keys) == 2
    assert studio.stream.counters.runs == 2
    fresh = studio.listener.heads[-1]
    due_ms = fresh.t0_utc_ms + studio.listener.batches[-1].media_sample / 48 + fresh.playout_delay_ms
    assert 900 <= due_ms - to_ms(studio.clock.now()) <= 2_100


@pytest.mark.parametrize(
    ("speed", "looks"),
    [
        (0.999, lambda stream: stream.corrections.concealed),
        (1.001, lambda stream: stream.corrections.dropped),
    ],
)
async def test_a_drifting_source_is_corrected_frame_by_frame(
    studio: Studio, speed: float, looks: Callable[[RelayStream], int]
):
    for _ in range(800):
        await studio.clock.advance(0.25 / speed)
        studio.tape.give(0.25)
    await settle(50)
    assert looks(studio.stream) >= 2
    assert studio.stream.corrections.jumps == 0
    empties = sum(packet == b"" for packet in studio.listener.packets)
    assert empties == studio.stream.corrections.concealed
    ends = [batch.media_sample + batch.samples for batch in studio.listener.batches]
    assert [batch.media_sample for batch in studio.listener.batches[1:]] == ends[:-1]
