"""The media clock: where sound lands in time when its source is late, early, fast, slow or gone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broadcast_server.audio.formats import FRAME_SAMPLES, SAMPLE_RATE_HZ
from broadcast_server.relay.pacing import MediaClock, Pace, choose_batch, playout_delay_ms

BLOCK = SAMPLE_RATE_HZ // 10
FRAME_S = 0.02


def play(
    clock: MediaClock, seconds: float, *, start_s: float = 0.0, speed: float = 1.0, jitter_s: float = 0.0
) -> float:
    """Blocks of 100 ms of a live source whose clock runs at `speed`; returns when the last came."""
    now_s = start_s
    for number in range(round(seconds * 10 * speed)):
        now_s = start_s + (number + 1) * 0.1 / speed
        clock.arrived(BLOCK, now_s + (jitter_s if number % 3 else 0.0))
    return now_s


def test_a_perfect_source_is_never_touched():
    clock = MediaClock()
    end_s = play(clock, 300)
    assert clock.corrections.jumps == clock.corrections.concealed == clock.corrections.dropped == 0
    assert abs(clock.lead_samples(end_s)) < 1


def test_jitter_is_no_drift():
    clock = MediaClock()
    play(clock, 300, jitter_s=0.12)
    assert clock.corrections == MediaClock().corrections


def test_after_a_silence_media_time_jumps_to_the_wall_and_says_so():
    clock = MediaClock()
    end_s = play(clock, 10)
    step = clock.arrived(BLOCK, end_s + 7.1)
    assert step.jump_samples % FRAME_SAMPLES == 0
    assert abs(step.jump_samples / SAMPLE_RATE_HZ - 7.0) <= FRAME_S
    assert 0 <= clock.lead_samples(end_s + 7.1) <= FRAME_SAMPLES
    assert clock.corrections.jumps == 1


def test_a_little_late_is_played_out_of_the_nodes_safety():
    clock = MediaClock()
    end_s = play(clock, 10)
    assert clock.arrived(BLOCK, end_s + 0.4).jump_samples == 0


def test_a_slow_source_is_concealed_before_the_nodes_run_dry():
    clock = MediaClock()
    end_s = play(clock, 3_000, speed=1 - 300e-6)
    assert clock.corrections.concealed > 20
    assert clock.corrections.jumps == 0
    assert clock.lead_samples(end_s) > -0.4 * SAMPLE_RATE_HZ


def test_a_fast_source_loses_a_frame_now_and_then():
    clock = MediaClock()
    end_s = play(clock, 3_000, speed=1 + 300e-6)
    assert clock.corrections.dropped > 20
    assert clock.lead_samples(end_s) < 0.4 * SAMPLE_RATE_HZ


def test_a_file_is_held_back_and_never_cut():
    clock = MediaClock()
    now_s = 0.0
    for _ in range(3_000):
        now_s += clock.arrived(BLOCK, now_s).hold_s
    assert clock.corrections.dropped == clock.corrections.jumps == 0
    assert abs(now_s - 300) < 3
    assert clock.lead_samples(now_s) <= 2.2 * SAMPLE_RATE_HZ


def test_a_burst_on_connect_is_a_lead_and_nothing_else():
    clock = MediaClock()
    hold_s = 0.0
    for _ in range(15):
        hold_s += clock.arrived(BLOCK, 0.1).hold_s
    play(clock, 100, start_s=0.1)
    assert hold_s == 0
    assert clock.corrections.dropped == clock.corrections.jumps == clock.corrections.concealed == 0


@given(st.lists(st.tuples(st.integers(1, 60_000), st.floats(0, 20)), max_size=60))
def test_media_time_only_goes_forward_and_never_far_behind_the_wall(arrivals: list[tuple[int, float]]):
    clock = MediaClock()
    now_s = 100.0
    for samples, wait_s in arrivals:
        now_s += wait_s
        before = clock.position
        step = clock.arrived(samples, now_s)
        assert step.jump_samples >= 0
        assert step.jump_samples % FRAME_SAMPLES == 0
        assert clock.position == before + step.jump_samples + samples + FRAME_SAMPLES * (step.conceal - step.drop)
        assert clock.position >= before
        assert clock.lead_samples(now_s) >= -(Pace().late_ms / 1000 * SAMPLE_RATE_HZ) - FRAME_SAMPLES
        now_s += step.hold_s
        assert clock.lead_samples(now_s) <= (Pace().ceiling_ms / 1000 + FRAME_S) * SAMPLE_RATE_HZ + 1


def test_the_more_listeners_the_longer_the_batch_and_the_delay_keeps_a_second_in_hand():
    lengths = [choose_batch(listeners) for listeners in (0, 45, 500, 1_000, 2_000, 5_000, 150_000)]
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (50, 100)
    assert all(playout_delay_ms(packets) - packets * 20 == 1_000 for packets in lengths)
