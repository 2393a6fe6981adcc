"""The player puts the right second of the right programme at the right sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from firmware_sim.clock import MS, SECOND
from firmware_sim.ear import heard
from firmware_sim.phrases import burned_in
from firmware_sim.player import (
    AlertsInForce,
    Chunk,
    Situation,
    Sounding,
    gain_db,
    next_change_ms,
    render,
    resample,
    stretches,
)
from firmware_sim.trust import PlanInForce
from speaker_protocol import messages as wire
from speaker_protocol.rules import BulletinClass, Why
from tests.firmware_sim.station import segment
from tests.firmware_sim.tones import Pcm, sequence, tone

NOON_MS = 1_790_000_000_000 // 86_400_000 * 86_400_000 + 5 * 3_600_000  # 12:00 in Vietnam
A, B = "a" * 64, "b" * 64


class Shelf:
    """Decoded assets."""

    def __init__(self, **sounds: Pcm) -> None:
        self.sounds = {name * 64: pcm for name, pcm in sounds.items()}

    def asset(self, sha256: str) -> Any:
        pcm = self.sounds[sha256]

        class Sound:
            length = len(pcm)

            def read(self, low: int, high: int) -> Pcm:
                out = np.zeros(high - low, np.int16)
                part = pcm[low:high]
                out[: len(part)] = part
                return out

        return Sound()

    def stream(self, stream: str) -> Any:
        raise AssertionError(stream)

    def clip(self, code: str) -> Pcm | None:
        return burned_in().pcm(code)


def at_noon(*segments: wire.PlanSegment, **facts: Any) -> Situation:
    plan = PlanInForce(NOON_MS - 10**7, NOON_MS + 10**7, segments, (), "0" * 64, (1, 1), BulletinClass.EMERGENCY)
    ready = frozenset(s.asset for s in segments if s.asset) | facts.pop("ready", frozenset())
    return Situation(plan=plan, ready_assets=ready, max_class=BulletinClass.EMERGENCY, is_clock_trusted=True, **facts)


def play(
    situation: Situation, shelf: Shelf, from_ms: float, seconds: float, ppm: float = 0.0
) -> tuple[Pcm, list[Chunk]]:
    """Blocks of 200 ms as a card consumes them that is `ppm` fast."""
    chunks: list[Chunk] = []
    at = round(from_ms * MS)
    for _ in range(round(seconds * 5)):
        chunks += render(situation, shelf, at, at + round(0.2 * SECOND / (1 + ppm * 1e-6)), 9_600)
        at += round(0.2 * SECOND / (1 + ppm * 1e-6))
    return np.concatenate([c.pcm if c.pcm is not None else np.zeros(c.samples, np.int16) for c in chunks]), chunks


def kinds(chunks: Sequence[Chunk]) -> list[tuple[Sounding, str | None]]:
    found: list[tuple[Sounding, str | None]] = []
    for chunk in chunks:
        one = (chunk.kind, chunk.tag.entry_id if chunk.tag else None)
        if not found or found[-1] != one:
            found.append(one)
    return found


def test_a_bulletin_starts_at_its_millisecond_inside_a_block_and_ends_with_its_last_sample():
    situation = at_noon(segment("bulletin", NOON_MS + 333, 2.0, asset=A))
    pcm, chunks = play(situation, Shelf(a=tone((700, 1600), 1.5)), NOON_MS, 3)
    (one,) = heard(pcm)
    assert one.pair == (700, 1600)
    assert abs(one.start_ns / 1e6 - 333) < 0.3
    assert abs(one.end_ns / 1e6 - 1_833) < 0.3
    assert sum(c.samples for c in chunks if c.kind is Sounding.SOUND) == 1.5 * 48_000
    assert kinds(chunks) == [
        (Sounding.SILENCE, None),
        (Sounding.SOUND, "bulletin"),
        (Sounding.SILENCE, "bulletin"),
        (Sounding.SILENCE, None),
    ]


def test_a_node_that_joins_late_is_where_the_others_are():
    programme = sequence([((500, 900), 1.0), ((700, 1600), 1.0)])
    situation = at_noon(segment("p", NOON_MS, 2.0, asset=A))
    pcm, _ = play(situation, Shelf(a=programme), NOON_MS + 400, 1.6)
    first, second = heard(pcm)
    assert (first.pair, second.pair) == ((500, 900), (700, 1600))
    assert abs(second.start_ns / 1e6 - 600) < 1.0


def test_a_fast_card_is_steered_so_that_the_programme_keeps_the_servers_time():
    programme = sequence([((500, 900), 3.0), ((700, 1600), 1.0)])
    situation = at_noon(segment("p", NOON_MS, 4.0, asset=A))
    pcm, _ = play(situation, Shelf(a=programme), NOON_MS, 4, ppm=50_000 / 1_000)
    second = heard(pcm)[1]
    assert abs(second.start_ns / 1e9 * (1 / 1.00005) - 3.0) < 0.001


def test_offset_and_the_volume_curve_are_obeyed_up_to_the_stations_limit():
    config = wire.NodeConfigBody(
        path=("x",),
        cluster="c",
        assets_url="",
        max_gain_db=-3.0,
        volume=(wire.VolumeStep(from_minute=6 * 60, gain_db=-6), wire.VolumeStep(from_minute=13 * 60, gain_db=6)),
    )
    situation = at_noon(segment("p", NOON_MS, 3.0, asset=A, offset_ms=1_000), config=config)
    programme = sequence([((500, 900), 1.0), ((700, 1600), 2.0)])
    pcm, _ = play(situation, Shelf(a=programme), NOON_MS, 1)
    (one,) = heard(pcm)
    assert one.pair == (700, 1600)
    decision = next(stretches(situation, NOON_MS * MS, NOON_MS * MS + 1)).decision
    assert decision.gain_db == -3.0
    assert gain_db(situation, decision, NOON_MS) == -9.0
    assert gain_db(situation, decision, NOON_MS + 3_600_000) == -3.0
    assert gain_db(situation, decision, NOON_MS + 17 * 3_600_000) == -3.0  # before the first step: last evening's


def test_nothing_sounds_in_quiet_hours_or_under_stop_all_and_the_reason_is_kept():
    night_ms = NOON_MS + 15 * 3_600_000  # 03:00
    segments = (segment("hijacked", night_ms, 5.0, asset=A),)
    plan = PlanInForce(0, night_ms + 10**7, segments, (), "0" * 64, (1, 1), BulletinClass.EMERGENCY)
    situation = Situation(
        plan=plan, ready_assets=frozenset({A}), max_class=BulletinClass.EMERGENCY, is_clock_trusted=True
    )
    pcm, chunks = play(situation, Shelf(a=tone((500, 900), 5)), night_ms, 1)
    assert not pcm.any()
    assert {(c.why, c.tag.entry_id if c.tag else None) for c in chunks} == {(Why.QUIET_HOURS, "hijacked")}
    stopped = at_noon(segment("p", NOON_MS, 5, asset=A), alerts=AlertsInForce(stop_all=True))
    pcm, chunks = play(stopped, Shelf(a=tone((500, 900), 5)), NOON_MS, 1)
    assert not pcm.any()
    assert {c.why for c in chunks} == {Why.STOP_ALL}


def test_when_the_decision_changes_next_is_known():
    situation = at_noon(segment("p", NOON_MS + 5_000, 5, asset=A))
    assert next_change_ms(situation, NOON_MS) == NOON_MS + 5_000


def test_the_quick_interpolation_is_the_plain_one():
    pcm = (np.random.default_rng(3).normal(0, 5_000, 12_100)).astype(np.int16)
    for step in (1.0, 1.00005, 0.99995, 1.0009, 0.9991, 1.02, 0.5):
        for offset in (0.0, 0.25, 0.999999, 7.5):
            plain = np.interp(offset + step * np.arange(9_600), np.arange(len(pcm)), pcm)
            assert np.abs(resample(pcm, offset, step, 9_600) - plain).max() < 1.5
