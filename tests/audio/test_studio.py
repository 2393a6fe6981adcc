"""The studio: chime + speech + chime, and a programme whose every cue is heard at its second."""

from __future__ import annotations

import numpy as np
import pytest

from broadcast_server.audio.formats import dbfs, pcm_of, samples_of_ms, to_float
from broadcast_server.audio.loudness import Meter
from broadcast_server.audio.studio import (
    BED_LEAD_MS,
    BED_TAIL_MS,
    PAUSE_MS,
    Cue,
    Item,
    Role,
    announcement,
    fade,
    level,
    render_programme,
    trim,
)
from broadcast_server.domain.errors import Invalid
from simulation.samples import tone_pcm
from tests.support.tones import Heard, hear

CHIME = tone_pcm((1600, 1900), 0.8)
STING = tone_pcm((1300, 2300), 0.6)
SIGNATURE = tone_pcm((500, 2300), 2.0)
INTRO = Item("intro", tone_pcm((700, 1100), 3.0, level=0.4))
BED = tone_pcm((311, 415), 2.0, level=0.05)
ITEMS = [Item("first", tone_pcm((500, 1300), 2.5)), Item("second", tone_pcm((700, 1600), 3.25))]
PAIRS = {
    ("", Role.SIGNATURE): (500, 2300),
    ("", Role.STING): (1300, 2300),
    ("", Role.CHIME): (1600, 1900),
    ("intro", Role.INTRO): (700, 1100),
    ("first", Role.ITEM): (500, 1300),
    ("second", Role.ITEM): (700, 1600),
}


def rms_dbfs(pcm: bytes) -> float:
    return dbfs(float((to_float(pcm_of(pcm)) ** 2).mean()) ** 0.5)


def part(pcm: bytes, at_ms: int, length_ms: int) -> bytes:
    return pcm[samples_of_ms(at_ms) * 2 : samples_of_ms(at_ms + length_ms) * 2]


def assert_heard_where_cued(heard: list[Heard], cues: tuple[Cue, ...], *, edge_ms: int = 40) -> None:
    assert [one.pair for one in heard] == [PAIRS[cue.item_id, cue.role] for cue in cues]
    for one, cue in zip(heard, cues, strict=True):
        assert abs(one.start_ms - cue.at_ms) <= edge_ms
        assert abs(one.length_ms - cue.duration_ms) <= 2 * edge_ms + 10


def test_an_announcement_stands_between_two_chimes():
    speech = Item("first", bytes(96_000) + ITEMS[0].pcm + bytes(96_000 * 2))
    made = announcement(speech, chime=CHIME)
    assert_heard_where_cued(hear(made.pcm), made.cues, edge_ms=120)  # 100 ms of its silence is kept
    assert [cue.role for cue in made.cues] == [Role.CHIME, Role.ITEM, Role.CHIME]
    assert made.cues[1].at_ms == 800 + PAUSE_MS
    assert 2_500 <= made.cues[1].duration_ms <= 2_720  # its silences went


def test_a_whole_programme_is_heard_as_it_was_laid_out():
    made = render_programme(ITEMS, signature=SIGNATURE, sting=STING, intro=INTRO, bed=BED, closing=SIGNATURE)
    assert_heard_where_cued(hear(made.pcm), made.cues)
    assert [(cue.role, cue.item_id) for cue in made.cues] == [
        (Role.SIGNATURE, ""), (Role.INTRO, "intro"), (Role.STING, ""), (Role.ITEM, "first"),
        (Role.STING, ""), (Role.ITEM, "second"), (Role.SIGNATURE, ""),
    ]  # fmt: skip
    assert made.cues[1].at_ms == 2_000 + BED_LEAD_MS
    assert made.cues[2].at_ms == 2_000 + BED_LEAD_MS + 3_000 + BED_TAIL_MS
    assert made.cues[5].duration_ms == 3_250


def test_the_bed_goes_down_under_the_voice_and_comes_back():
    silent_voice = Item("intro", bytes(96_000 * 3))
    made = render_programme(ITEMS[:1], intro=silent_voice, bed=BED)
    before, under = rms_dbfs(part(made.pcm, 300, 500)), rms_dbfs(part(made.pcm, BED_LEAD_MS + 500, 2_000))
    assert 12 <= before - under <= 16
    assert rms_dbfs(part(made.pcm, BED_LEAD_MS + 3_000 + BED_TAIL_MS - 20, 15)) < before - 20


def test_a_programme_without_trimmings_is_its_items():
    made = render_programme(ITEMS, pause_ms=0)
    assert made.pcm == ITEMS[0].pcm + ITEMS[1].pcm
    assert made.cues == (Cue("first", Role.ITEM, 0, 2_500), Cue("second", Role.ITEM, 2_500, 3_250))


def test_an_introduction_without_a_bed_is_just_spoken():
    made = render_programme(ITEMS[:1], intro=INTRO)
    assert made.cues[0] == Cue("intro", Role.INTRO, 0, 3_000)


def test_a_programme_of_nothing_is_none():
    with pytest.raises(Invalid, match="programme_empty"):
        render_programme([])


def test_what_is_longer_than_ten_minutes_is_shown_the_other_door():
    long = Item("long", bytes(96_000 * 301))
    with pytest.raises(Invalid) as refusal:
        render_programme([long, long])
    assert refusal.value.code == "too_long_for_studio"
    assert refusal.value.facts["fix"] == "stream_long_programme"
    with pytest.raises(Invalid, match="too_long_for_studio"):
        trim(bytes(96_000 * 601))


def test_silence_is_trimmed_at_both_ends_and_nowhere_else():
    inside = tone_pcm((500, 700), 1.0) + bytes(96_000) + tone_pcm((500, 700), 1.0)
    trimmed = trim(bytes(96_000 * 2) + inside + bytes(96_000), keep_ms=100)
    assert abs(len(trimmed) / 96 - 3_200) <= 40
    assert trim(bytes(96_000)) == bytes(96_000)
    assert trim(inside, keep_ms=0)[:10] != b""


def test_a_fade_begins_and_ends_in_silence():
    faded = fade(tone_pcm((500, 700), 2.0), in_ms=500, out_ms=500)
    assert len(faded) == 96_000 * 2
    assert rms_dbfs(part(faded, 0, 50)) < rms_dbfs(part(faded, 900, 50)) - 12
    assert rms_dbfs(part(faded, 1_950, 50)) < rms_dbfs(part(faded, 900, 50)) - 12


def test_items_of_different_recorders_are_brought_to_one_level():
    told = []
    for loud in (0.02, 0.4):
        meter = Meter()
        meter.hear(np.frombuffer(level(tone_pcm((700, 1300), 3.0, level=loud)), "<i2"))
        told.append(meter.report().integrated_lufs or 0.0)
    assert all(abs(lufs + 16) < 0.2 for lufs in told)
