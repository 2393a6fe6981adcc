"""A voice on a clock ticked by hand: what a microphone sends is what the nodes hear and what the recording holds."""

from __future__ import annotations

import random
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from broadcast_server.audio.ffmpeg import Sandbox, find_ffmpeg
from broadcast_server.audio.formats import FRAME_BYTES
from broadcast_server.domain.errors import Conflict, Refused, Unavailable
from broadcast_server.domain.voice import Gap, Sequencer, VoiceCounts, VoiceFormat, VoiceLimits
from broadcast_server.mqtt.bus import LoopbackBus, LoopbackHub
from broadcast_server.relay.stream import PacketEncoder
from broadcast_server.relay.voice import DELAY_MS, MOST_LEAD_MS, MOST_VOICES, PACKETS_PER_BATCH, Attachment, VoiceRoom
from broadcast_server.signer.keys import FileSigner
from broadcast_server.supervise import InlineExecutor
from simulation.samples import tone_pcm
from speaker_protocol.frames import FLAG_LAST
from tests.relay.ear import Listener, decoded
from tests.support.clock import FakeChance, FakeClock, settle
from tests.support.tones import hear
from tests.support.until import until

FIRST, SECOND = (700, 2300), (500, 1900)
SESSION = "buoi-noi-1"


def packets(pair: tuple[int, int], seconds: float) -> list[bytes]:
    return PacketEncoder().encode(tone_pcm(pair, seconds))


@dataclass
class Studio:
    """A room with one voice, a microphone in front of it and a listener behind."""

    room: VoiceRoom
    clock: FakeClock
    listener: Listener
    leads: list[int] = field(default_factory=lambda: [7])
    sequence: int = 0

    @property
    def counts(self) -> VoiceCounts:
        state = self.room.state(SESSION)
        assert state is not None
        return state.counts

    async def speak(self, hold: Attachment, sound: Sequence[bytes]) -> None:
        """Packets in real time, numbered on."""
        for packet in sound:
            await self.clock.advance(0.02)
            hold.take(self.sequence, packet)
            self.sequence += 1

    def pcm(self) -> bytes:
        return self.room.recording(SESSION).read_bytes()


@asynccontextmanager
async def a_studio(
    signer: FileSigner,
    folder: Path,
    *,
    sandbox: Sandbox | None = None,
    limits: VoiceLimits | None = None,
    require_space: Callable[[int], None] = lambda _: None,
) -> AsyncIterator[Studio]:
    clock = FakeClock()
    bus = LoopbackBus(LoopbackHub(), clock=clock)
    await bus.start()
    leads = [7]
    room = VoiceRoom(
        bus=bus,
        signer=signer,
        clock=clock,
        chance=FakeChance(),
        executor=InlineExecutor(),
        sandbox=sandbox or Sandbox.__new__(Sandbox),
        folder=folder / "voices",
        require_space=require_space,
        epoch=lambda: leads[0],
        limits=limits or VoiceLimits(),
    )
    room.open(SESSION)
    await settle()
    try:
        yield Studio(room, clock, Listener(bus, SESSION), leads)
    finally:
        await room.close()
        await bus.close()


async def test_what_is_said_is_what_goes_out_and_what_is_recorded(signer: FileSigner, tmp_path: Path):
    async with a_studio(signer, tmp_path) as studio:
        hold = studio.room.attach(SESSION, VoiceFormat.OPUS)
        await studio.speak(hold, [*packets(FIRST, 1.0), *packets(SECOND, 1.1)])
        await studio.clock.advance(0.2)
        await studio.room.finish(SESSION)

        [head] = {head.public_key: head for head in studio.listener.heads}.values()
        assert (head.packets_per_batch, head.playout_delay_ms) == (PACKETS_PER_BATCH, DELAY_MS)
        sent = (decoded([packet for packet in studio.listener.packets if packet]) * 32767).astype(np.int16)
        assert [heard.pair for heard in hear(sent)] == [FIRST, SECOND]
        assert [heard.pair for heard in hear(studio.pcm())] == [FIRST, SECOND]
        assert studio.listener.batches[-1].flags & FLAG_LAST
        last = studio.listener.envelopes[-1]
        assert last.expires_ms == last.issued_ms  # the last head has no lease


async def test_the_stream_stands_a_second_behind_the_microphone_in_batches_of_400_ms(
    signer: FileSigner, tmp_path: Path
):
    async with a_studio(signer, tmp_path) as studio:
        hold = studio.room.attach(SESSION, VoiceFormat.OPUS)
        await studio.speak(hold, packets(FIRST, 3.0))
        head = studio.listener.heads[-1]
        now_ms = studio.clock.now().timestamp() * 1000
        batch = studio.listener.batches[-1]
        last_sample_due_ms = head.t0_utc_ms + (batch.media_sample + batch.samples) / 48 + head.playout_delay_ms

        assert {len(each.packets) for each in studio.listener.batches} == {20}
        assert DELAY_MS - 500 <= last_sample_due_ms - now_ms <= DELAY_MS


async def test_packets_that_are_lost_doubled_and_swapped_are_counted_and_the_tone_goes_on(
    signer: FileSigner, tmp_path: Path
):
    async with a_studio(signer, tmp_path) as studio:
        hold = studio.room.attach(SESSION, VoiceFormat.OPUS)
        sound = packets(FIRST, 4.0)
        order = list(range(len(sound)))
        order[40], order[42] = order[42], order[40]
        order.remove(100)
        order.remove(101)
        order.insert(60, 55)
        order.insert(130, 100)  # far too late
        for sequence in order:
            await studio.clock.advance(0.02)
            hold.take(sequence, sound[sequence])
        await studio.clock.advance(0.2)
        counts = studio.counts

        assert (counts.lost, counts.duplicate, counts.late, counts.refused) == (2, 1, 1, 0)
        assert counts.taken == 198
        await studio.room.finish(SESSION)
        heard = hear(studio.pcm())
        assert {each.pair for each in heard} == {FIRST}
        assert sum(each.length_ms for each in heard) > 3_700


async def test_a_microphone_that_comes_back_within_five_seconds_goes_on_under_the_same_head(
    signer: FileSigner, tmp_path: Path
):
    async with a_studio(signer, tmp_path) as studio:
        hold = studio.room.attach(SESSION, VoiceFormat.OPUS)
        await studio.speak(hold, packets(FIRST, 1.0))
        hold.release()
        await studio.clock.advance(4.9)
        again = studio.room.attach(SESSION, VoiceFormat.OPUS)
        assert again.next_sequence == studio.sequence
        await studio.speak(again, packets(SECOND, 1.0))
        await studio.clock.advance(0.2)
        await studio.room.finish(SESSION)

        assert len({head.public_key for head in studio.listener.heads}) == 1
        heard = hear(studio.pcm())
        assert [each.pair for each in heard] == [FIRST, SECOND]
        assert 4_500 < heard[1].start_ms - heard[0].end_ms < 5_100  # comfort silence, in step with the wall
        starts = [batch.media_sample for batch in studio.listener.batches]
        ends = [batch.media_sample + batch.samples for batch in studio.listener.batches]
        assert starts[1:] == ends[:-1]  # no hole in what the nodes are sent


async def test_after_five_seconds_without_a_packet_or_a_renewal_the_voice_is_lost(signer: FileSigner, tmp_path: Path):
    async with a_studio(signer, tmp_path) as studio:
        hold = studio.room.attach(SESSION, VoiceFormat.OPUS)
        await studio.speak(hold, packets(FIRST, 1.0))
        await studio.clock.advance(4.0)
        hold.renew()
        await studio.clock.advance(4.9)
        hold.renew()
        assert not studio.room.is_lost(SESSION)
        await studio.clock.advance(5.1)

        assert studio.room.is_lost(SESSION)
        for attempt in (hold.renew, lambda: hold.take(studio.sequence, packets(FIRST, 0.1)[0])):
            with pytest.raises(Conflict, match="live_lost"):
                attempt()
        with pytest.raises(Conflict, match="live_lost"):
            studio.room.attach(SESSION, VoiceFormat.OPUS)


async def test_a_second_socket_takes_over_and_the_first_is_told(signer: FileSigner, tmp_path: Path):
    async with a_studio(signer, tmp_path) as studio:
        first = studio.room.attach(SESSION, VoiceFormat.OPUS)
        second = studio.room.attach(SESSION, VoiceFormat.OPUS)

        assert (first.ended.is_set(), first.reason) == (True, "live_taken_over")
        with pytest.raises(Conflict, match="live_lost"):
            first.renew()
        first.release()  # its late goodbye takes nothing from the second
        second.renew()
        state = studio.room.state(SESSION)
        assert state is not None
        assert state.is_connected


async def test_words_held_back_by_the_network_go_out_late_rather_than_never_and_pauses_win_the_time_back(
    signer: FileSigner, tmp_path: Path
):
    pause = PacketEncoder().encode(bytes(FRAME_BYTES) * 100)
    async with a_studio(signer, tmp_path) as studio:
        hold = studio.room.attach(SESSION, VoiceFormat.OPUS)
        await studio.speak(hold, packets(FIRST, 1.0))
        await studio.clock.advance(1.0)  # the network stands still, the person goes on
        for packet in packets(SECOND, 1.0):
            hold.take(studio.sequence, packet)
            studio.sequence += 1
        await studio.speak(hold, pause)
        await studio.clock.advance(0.2)
        counts = studio.counts
        await studio.room.finish(SESSION)

        heard = hear(studio.pcm())
        assert [each.pair for each in heard] == [FIRST, SECOND]
        assert heard[1].length_ms > 950
        assert counts.dropped == 0
        assert counts.skipped > 10


async def test_more_than_may_wait_is_given_away_the_oldest_first(signer: FileSigner, tmp_path: Path):
    async with a_studio(signer, tmp_path) as studio:
        hold = studio.room.attach(SESSION, VoiceFormat.OPUS)
        await studio.speak(hold, packets(FIRST, 0.5))
        for packet in packets(SECOND, 4.0):
            hold.take(studio.sequence, packet)
            studio.sequence += 1
        await studio.clock.advance(0.2)

        assert studio.counts.dropped * 20 >= 4_000 - MOST_LEAD_MS - 400
        batch = studio.listener.batches[-1]
        head = studio.listener.heads[-1]
        ahead_ms = head.t0_utc_ms + (batch.media_sample + batch.samples) / 48 - studio.clock.now().timestamp() * 1000
        assert ahead_ms <= MOST_LEAD_MS


@pytest.mark.parametrize(
    "garbage",
    [
        lambda rng: rng.randbytes(rng.randrange(1, 1_500)),
        lambda rng: rng.randbytes(5_000),
        lambda _: b"",
    ],
    ids=["noise", "huge", "empty"],
)
async def test_garbage_is_refused_and_ends_the_socket_when_it_is_too_much(
    garbage: Callable[[random.Random], bytes], signer: FileSigner, tmp_path: Path
):
    rng = random.Random(4)
    async with a_studio(signer, tmp_path, limits=VoiceLimits(refusals=150)) as studio:
        hold = studio.room.attach(SESSION, VoiceFormat.OPUS)
        await studio.speak(hold, packets(FIRST, 0.5))
        with pytest.raises(Refused, match="voice_abusive"):
            await studio.speak(hold, [garbage(rng) for _ in range(1_000)])
        again = studio.room.attach(SESSION, VoiceFormat.OPUS)
        assert again.next_sequence is not None


async def test_noise_dressed_as_a_packet_of_20_ms_costs_20_ms_and_no_more(signer: FileSigner, tmp_path: Path):
    rng = random.Random(4)
    async with a_studio(signer, tmp_path) as studio:
        hold = studio.room.attach(SESSION, VoiceFormat.OPUS)
        await studio.speak(hold, [bytes([0x78]) + rng.randbytes(rng.randrange(1, 400)) for _ in range(100)])
        await studio.speak(hold, packets(FIRST, 1.0))
        await studio.clock.advance(0.2)
        state = studio.room.state(SESSION)
        assert state is not None
        assert state.heard_ms == pytest.approx(3_000, abs=200)
        await studio.room.finish(SESSION)

        assert hear(studio.pcm())[-1].pair == FIRST


async def test_a_sender_faster_than_the_limit_is_held_to_it(signer: FileSigner, tmp_path: Path):
    limits = VoiceLimits(packets_burst=50, refusals=10_000)
    async with a_studio(signer, tmp_path, limits=limits) as studio:
        hold = studio.room.attach(SESSION, VoiceFormat.OPUS)
        packet = packets(FIRST, 0.02)[0]
        for sequence in range(1_000):
            hold.take(sequence, packet)
        await studio.clock.advance(1.0)
        hold.take(50, packet)

        assert (studio.counts.taken, studio.counts.refused) == (51, 950)


def make(pcm: bytes, *arguments: str) -> bytes:
    command = [str(find_ffmpeg()), "-v", "error", "-f", "s16le", "-ar", "48000", "-ac", "1", "-i", "pipe:0"]
    return subprocess.run([*command, *arguments, "pipe:1"], input=pcm, capture_output=True, check=True).stdout


def webm(pcm: bytes) -> bytes:
    return make(pcm, "-c:a", "libopus", "-b:a", "32k", "-f", "webm", "-live", "1", "-cluster_time_limit", "200")


def mp4(pcm: bytes) -> bytes:
    fragmented = ("-movflags", "frag_keyframe+empty_moov+default_base_moof", "-frag_duration", "200000")
    return make(pcm, "-c:a", "aac", "-b:a", "64k", "-f", "mp4", *fragmented)


async def said(studio: Studio, hold: Attachment, pair: tuple[int, int]) -> bool:
    """Whether more than a second of the pair is recorded; a moment passes."""
    hold.renew()
    await studio.clock.advance(0.2)
    return sum(one.length_ms for one in hear(studio.pcm()) if one.pair == pair) > 1_200


@pytest.mark.parametrize(("fmt", "record"), [(VoiceFormat.WEBM, webm), (VoiceFormat.MP4, mp4)])
async def test_a_media_recorders_chunks_are_heard_and_a_recorder_begun_anew_is_heard_again(
    fmt: VoiceFormat, record: Callable[[bytes], bytes], signer: FileSigner, sandbox: Sandbox, tmp_path: Path
):
    async with a_studio(signer, tmp_path, sandbox=sandbox) as studio:
        hold = studio.room.attach(SESSION, fmt)
        for pair in (FIRST, SECOND):
            container = record(tone_pcm(pair, 2.0))
            chunks = deque(container[at : at + 2_000] for at in range(0, len(container), 2_000))
            each_s = 2.0 / len(chunks)

            async def is_fed(chunks: deque[bytes] = chunks, each_s: float = each_s) -> bool:
                hold.take(studio.sequence, chunks.popleft())
                studio.sequence += 1
                await studio.clock.advance(each_s)
                return not chunks

            await until(is_fed, every_s=0.1)  # the decoder is a real child
            await until(lambda pair=pair: said(studio, hold, pair))
        counts = studio.counts
        assert (counts.refused, counts.lost) == (0, 0)


async def test_a_container_that_is_not_what_it_says_never_reaches_a_decoder(
    signer: FileSigner, sandbox: Sandbox, tmp_path: Path
):
    async with a_studio(signer, tmp_path, sandbox=sandbox) as studio:
        hold = studio.room.attach(SESSION, VoiceFormat.WEBM)
        for sequence, chunk in enumerate((b"#EXTM3U\nfile:///etc/passwd\n", mp4(tone_pcm(FIRST, 0.3)), b"OggS" * 100)):
            hold.take(sequence, chunk[:60_000])
        await studio.clock.advance(0.5)

        state = studio.room.state(SESSION)
        assert state is not None
        assert (state.counts.refused, state.heard_ms) == (3, 0)


async def test_a_new_leader_epoch_gives_the_voice_a_new_head_of_that_epoch(signer: FileSigner, tmp_path: Path):
    async with a_studio(signer, tmp_path) as studio:
        hold = studio.room.attach(SESSION, VoiceFormat.OPUS)
        await studio.speak(hold, packets(FIRST, 1.0))
        studio.leads[0] = 0
        await studio.speak(hold, packets(FIRST, 1.0))
        silent = len(studio.listener.batches)
        await studio.speak(hold, packets(FIRST, 0.5))
        assert len(studio.listener.batches) == silent  # who does not lead sends nothing
        studio.leads[0] = 8
        await studio.speak(hold, packets(SECOND, 2.0))

        assert [envelope.epoch for envelope in studio.listener.envelopes][-1] == 8
        assert studio.listener.batches[-1].epoch == 8


async def test_a_disk_without_room_ends_the_recording_and_not_the_voice(signer: FileSigner, tmp_path: Path):
    left = [2 * 96_000]

    def require_space(count: int) -> None:
        if count > left[0]:
            raise Unavailable("disk_full")
        left[0] -= count

    async with a_studio(signer, tmp_path, require_space=require_space) as studio:
        hold = studio.room.attach(SESSION, VoiceFormat.OPUS)
        await studio.speak(hold, packets(FIRST, 4.0))
        state = studio.room.state(SESSION)
        assert state is not None
        assert not state.is_recorded
        assert studio.listener.heard() == FIRST
        assert 1.0 <= len(studio.pcm()) / 96_000 <= 2.0


async def test_a_room_holds_so_many_voices_and_says_so(signer: FileSigner, tmp_path: Path):
    async with a_studio(signer, tmp_path) as studio:
        for number in range(MOST_VOICES - 1):
            studio.room.open(f"buoi-{number}")
        studio.room.open(SESSION)  # it is there already
        with pytest.raises(Unavailable, match="too_many_voices"):
            studio.room.open("buoi-cuoi")
        with pytest.raises(Unavailable, match="live_not_here"):
            studio.room.attach("buoi-khac", VoiceFormat.OPUS)


def test_the_sequencer_gives_a_number_up_after_so_many_later_ones():
    counts = VoiceCounts()
    order = Sequencer(counts, reorder=2, ahead=10)

    assert order.take(5, b"5") == [b"5"]
    assert order.take(7, b"7") == []
    assert order.take(6, b"6") == [b"6", b"7"]
    assert order.take(10, b"10") == []
    assert order.take(11, b"11") == []
    assert order.take(12, b"12") == [Gap(2), b"10", b"11", b"12"]
    assert order.take(8, b"8") == []
    assert order.take(12, b"12") == []
    assert order.take(100, b"far") == []
    assert counts == VoiceCounts(taken=6, lost=2, late=1, duplicate=1, refused=1)
