"""A live stream as the network gives it: late, twice, out of order, with holes, from a restarted server."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from firmware_sim.decoder import DecodeCache
from firmware_sim.ear import heard
from firmware_sim.jitter import StreamReceiver
from firmware_sim.trust import Head
from speaker_protocol import messages as wire
from speaker_protocol.frames import AudioBatch, pack
from tests.firmware_sim.station import Signer
from tests.firmware_sim.tones import Pcm, packets, sequence, tone

T0_MS = 1_790_000_000_000
DELAY_MS = 1_000
LOOKAHEAD_MS = 6.5


class Sender:
    def __init__(self, stream: str = "s1", epoch: int = 1, t0_ms: int = T0_MS) -> None:
        self.key, self.stream, self.epoch = Signer(), stream, epoch
        self.body = wire.StreamHeadBody(
            public_key=self.key.public.hex(), packets_per_batch=25, t0_utc_ms=t0_ms, playout_delay_ms=DELAY_MS
        )

    @property
    def head(self) -> Head:
        return Head(self.body, self.epoch, T0_MS + 3_600_000)

    def batches(self, pcm: Pcm, *, after: int = 0) -> list[bytes]:
        """`after`: how many packets went before."""
        raw = packets(pcm)
        return [
            pack(
                AudioBatch(self.epoch, after // 25 + i, (after + at) * 960, tuple(raw[at : at + 25])),
                self.key.key,
                self.stream,
            )
            for i, at in enumerate(range(0, len(raw) - 24, 25))
        ]


class Listener:
    def __init__(self, cache: DecodeCache | None = None) -> None:
        self.refusals: Counter[str] = Counter()
        self.receiver = StreamReceiver("s1", cache or DecodeCache(), self._refused)
        self.holes = 0

    def _refused(self, reason: str) -> None:
        self.refusals[reason] += 1

    def listen(self, seconds: float, from_ms: float = T0_MS + DELAY_MS) -> Pcm:
        out = []
        for block in range(round(seconds * 5)):
            at_ns = round((from_ms + block * 200) * 1_000_000)
            pcm, low, mask, position = self.receiver.read(at_ns, 9_600, step=1.0)
            self.holes += 0 if mask is None else int((~mask[:9_600]).sum())
            first = round(position) - low
            out.append(pcm[first : first + 9_600])
        return np.concatenate(out)


def test_a_clean_stream_is_sounded_to_the_sample_and_without_a_seam():
    sender, listener = Sender(), Listener()
    listener.receiver.take_head(sender.head)
    pcm = tone((700, 1600), 4)
    for raw in sender.batches(pcm):
        listener.receiver.take_batch(raw, 0)
    got = listener.listen(3.8)
    assert listener.holes == 0
    # After the codec settled nothing is steeper than in the original: one decoder, no seam.
    assert np.abs(np.diff(got[9_600:].astype(int))).max() < 1.15 * np.abs(np.diff(pcm.astype(int))).max()


@pytest.mark.parametrize(
    "wrap", [2**31, 2**32, 2**33 * 8 // 15, 2**31 * 48], ids=["12.4 h", "24.9 h", "26.5 h at 90 kHz", "24.9 d of ms"]
)
def test_a_stream_that_has_run_for_days_passes_the_ends_of_other_peoples_counters(wrap: int):
    after = (wrap // 960 - 100) // 25 * 25
    sender, listener = Sender(), Listener()
    listener.receiver.take_head(Head(sender.body, 1, T0_MS + 40 * 86_400_000))
    for raw in sender.batches(tone((700, 1600), 4), after=after):
        listener.receiver.take_batch(raw, 0)
    got = listener.listen(3.6, T0_MS + DELAY_MS + after * 20 + 200)  # its decoder has warmed up
    assert (listener.holes, listener.refusals) == (0, Counter())
    (one,) = heard(got, T0_MS * 1_000_000)
    assert one.pair == (700, 1600)
    assert (one.end_ns - one.start_ns) / 1e9 > 3.5


def test_out_of_order_and_doubled_batches_sound_as_if_nothing_was():
    sender, cache = Sender(), DecodeCache()
    plain, shaken = Listener(cache), Listener(DecodeCache())
    batches = sender.batches(tone((700, 1600), 4))
    for listener in (plain, shaken):
        listener.receiver.take_head(sender.head)
    for raw in batches:
        plain.receiver.take_batch(raw, 0)
    for i in (1, 0, 3, 2, 2, 5, 4, 7, 6, 0):
        shaken.receiver.take_batch(batches[i], 0)
    assert (plain.listen(3.8) == shaken.listen(3.8)).all()
    assert shaken.receiver.counts.duplicate == 2


def test_a_lost_batch_is_a_hole_of_its_length_and_80_ms_of_warm_up():
    sender, listener = Sender(), Listener()
    listener.receiver.take_head(sender.head)
    for i, raw in enumerate(sender.batches(tone((700, 1600), 4))):
        if i != 3:
            listener.receiver.take_batch(raw, 0)
    got = listener.listen(3.8)
    assert listener.holes == (500 + 80) * 48
    assert listener.receiver.counts.lost == 1
    before, after = heard(got)
    assert abs(before.end_ns / 1e6 - 1_500) < 10
    assert abs(after.start_ns / 1e6 - 2_080) < 10


def test_while_it_can_wait_nothing_behind_a_hole_is_touched_and_a_late_batch_still_sounds():
    sender, listener = Sender(), Listener()
    listener.receiver.take_head(sender.head)
    batches = sender.batches(tone((700, 1600), 4))
    for i in (0, 2, 3):
        listener.receiver.take_batch(batches[i], 0)
    at_ns = (T0_MS + DELAY_MS + 400) * 1_000_000
    assert not listener.receiver.is_covered(at_ns + 200_000_000)
    mask = listener.receiver.read(at_ns, 9_600, step=1.0, is_final=False)[2]
    assert mask is not None
    assert not mask.all()
    listener.receiver.take_batch(batches[1], 0)
    assert listener.receiver.is_covered(at_ns + 200_000_000)
    assert listener.receiver.read(at_ns, 9_600, step=1.0)[2] is None
    assert listener.receiver.counts.lost == 0


def test_forged_broken_and_misdirected_batches_are_counted_and_silent():
    sender, stranger, listener = Sender(), Sender(), Listener()
    listener.receiver.take_head(sender.head)
    good = sender.batches(tone((700, 1600), 1))[0]
    elsewhere = Sender("s2")
    elsewhere.key = sender.key
    old = Sender(epoch=0)
    old.key = sender.key
    for raw in (
        stranger.batches(tone((500, 900), 1))[0],
        elsewhere.batches(tone((500, 900), 1))[0],
        old.batches(tone((500, 900), 1))[0],
        good[:50],
        b"",
    ):
        listener.receiver.take_batch(raw, 0)
    assert listener.refusals == {"audio_signature": 2, "audio_garbage": 2, "audio_older": 1}
    assert not listener.listen(1).any()


def test_batches_that_came_before_the_head_are_not_lost():
    sender, listener = Sender(), Listener()
    for raw in sender.batches(tone((700, 1600), 2)):
        listener.receiver.take_batch(raw, 0)
    listener.receiver.take_head(sender.head)
    assert [one.pair for one in heard(listener.listen(1.8))] == [(700, 1600)]


def test_a_restarted_server_goes_on_with_a_new_key_where_the_old_one_stopped():
    old, listener = Sender(), Listener()
    new = Sender(epoch=2, t0_ms=T0_MS + 3_000)
    listener.receiver.take_head(old.head)
    for raw in old.batches(tone((700, 1600), 2)):
        listener.receiver.take_batch(raw, 0)
    listener.listen(0.4)
    listener.receiver.take_head(new.head)
    for raw in new.batches(tone((500, 900), 2)):
        listener.receiver.take_batch(raw, 0)
    found = heard(listener.listen(4.8))
    assert [one.pair for one in found] == [(700, 1600), (500, 900)]
    assert abs(found[0].end_ns / 1e6 - 2_000) < 15
    assert abs(found[1].start_ns / 1e6 - 3_000 - LOOKAHEAD_MS) < 10


def test_nodes_that_heard_the_same_share_one_decoding_and_one_that_lost_a_batch_does_not():
    sender, cache = Sender(), DecodeCache()
    batches = sender.batches(sequence([((700, 1600), 2), ((500, 900), 2)]))
    three = [Listener(cache) for _ in range(3)]
    for listener in three:
        listener.receiver.take_head(sender.head)
    for i, raw in enumerate(batches):
        for listener in three[:2]:
            listener.receiver.take_batch(raw, 0)
        if i != 2:
            three[2].receiver.take_batch(raw, 0)
    first, second = three[0].listen(3.8), three[1].listen(3.8)
    assert cache.decoded == len(batches)
    assert (first == second).all()
    third = three[2].listen(3.8)
    assert three[2].holes == 580 * 48
    assert [one.pair for one in heard(third[96_000:])] == [(500, 900)]


def test_a_node_without_an_output_throws_away_what_is_past():
    sender, listener = Sender(), Listener()
    listener.receiver.take_head(sender.head)
    for raw in sender.batches(tone((700, 1600), 4)):
        listener.receiver.take_batch(raw, 0, (T0_MS + 4_200) * 1_000_000)
    listener.receiver.forget_before((T0_MS + DELAY_MS + 10_000) * 1_000_000)
    assert not listener.receiver.has_sound_from(T0_MS * 1_000_000)
    assert round(min(listener.receiver.counts.delays_ms)) == 200
