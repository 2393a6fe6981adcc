"""An emergency as people hear it: the tone of its danger, the words, nothing else until the round is over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from firmware_sim.alarm_sound import AMPLITUDE, attention
from firmware_sim.ear import TONES_HZ, heard, level_dbfs
from firmware_sim.phrases import FOLDER, MANIFEST, PhraseBook, burned_in
from firmware_sim.player import AlertsInForce, Chunk, Situation, Sounding
from speaker_protocol import messages as wire
from speaker_protocol.hazards import CLIPS, TONES, Pattern
from speaker_protocol.rounds import AlertNature, learn
from speaker_protocol.rules import Why
from tests.firmware_sim.station import segment
from tests.firmware_sim.test_player import NOON_MS, A, B, Shelf, at_noon, kinds, play
from tests.firmware_sim.tones import Pcm, tone

RATE = 48_000
UNDER = (500, 900)
MESSAGE = (700, 1600)
FLOOD = wire.AlertBody(
    alert_id="flood",
    level=85,
    issued_ms=NOON_MS + 1_000,
    expires_ms=NOON_MS + 3_600_000,
    asset=B,
    asset_ms=2_000,
    hazard="flood",
    phrases=("go_to_high_ground",),
    gap_ms=1_000,
    times=2,
)
WORDS = FLOOD.model_copy(update={"asset": None, "asset_ms": None})


def over_a_programme(*alerts: wire.AlertBody, learned_s: float = 1.0, **facts: object) -> Situation:
    """A programme of known tones underneath, the alerts in force."""
    turns = learn((), alerts, {}, NOON_MS + round(learned_s * 1000))
    stock = {"ready": frozenset({B}), "alert_assets": {B: 0}, **facts}
    return at_noon(segment("p", NOON_MS, 300, asset=A), alerts=AlertsInForce(alerts), turns=turns, **stock)


SHELF = Shelf(a=tone(UNDER, 300), b=tone(MESSAGE, 2))


def steps_heard(pcm: Pcm) -> list[int]:
    """The strongest frequency of each 50 ms, silence and repetitions left out, to the nearest 10 Hz."""
    found: list[int] = []
    for at in range(0, len(pcm) - 2_400, 2_400):
        window = pcm[at : at + 2_400] * np.hanning(2_400)
        if np.abs(window).max() < 3_000:
            continue
        spectrum = np.abs(np.fft.rfft(window, 48_000))
        hertz = int(np.argmax(spectrum)) // 10 * 10
        if not found or found[-1] != hertz:
            found.append(hertz)
    return found


def where(pcm: Pcm, clip: str) -> list[float]:
    """Where a phrase sounds, in seconds: its own samples, found by correlation."""
    model = burned_in().pcm(clip)
    assert model is not None
    model = model[: RATE // 2].astype(np.float64)
    wave = pcm.astype(np.float64)
    size = 1 << (len(wave) + len(model) - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(wave, size) * np.conj(np.fft.rfft(model, size)), size)[: len(wave)]
    power = np.concatenate([[0.0], np.cumsum(wave**2)])
    ends = np.minimum(np.arange(len(wave)) + len(model), len(wave))
    norm = np.sqrt(np.maximum(power[ends] - power[:-1], 1.0) * float(model @ model))
    alike = np.flatnonzero(product / norm > 0.9)
    groups = np.split(alike, np.flatnonzero(np.diff(alike) > RATE // 10) + 1)
    return [float(group[np.argmax((product / norm)[group])]) / RATE for group in groups if len(group)]


def whys(chunks: Sequence[Chunk]) -> set[Why]:
    return {chunk.why for chunk in chunks}


# --- the tone ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", Pattern)
def test_each_kind_of_danger_has_a_tone_of_its_own_and_none_is_a_test_programme(pattern: Pattern):
    pcm = attention(pattern, np.arange(4 * RATE, dtype=np.float64))
    wanted = [hertz for hertz, _ in TONES[pattern] if hertz]
    found = steps_heard(pcm)
    assert set(wanted) <= {round(hertz, -1) for hertz in found}
    assert not set(wanted) & set(TONES_HZ)
    assert np.abs(pcm).max() <= AMPLITUDE
    whole = np.concatenate([attention(pattern, np.arange(at, at + 4_801, dtype=np.float64)) for at in (0, 4_801)])
    assert (whole == attention(pattern, np.arange(9_602, dtype=np.float64))).all()  # block by block the same


def test_patterns_differ_from_each_other():
    sounds = [attention(pattern, np.arange(2 * RATE, dtype=np.float64)).tobytes() for pattern in Pattern]
    assert len(set(sounds)) == len(Pattern) >= 3


# --- the round --------------------------------------------------------------------------------------------------------


def test_from_the_first_tone_to_the_end_of_the_round_nothing_lower_sounds_and_then_it_is_handed_back():
    pcm, chunks = play(over_a_programme(FLOOD), SHELF, NOON_MS, 20)
    # tone 6 s, slot of the message 4.7 s (its words are longer than its recording), 1 s between, again
    slot_s = sum(CLIPS[code].slot_ms for code in ("attention", "flood", "go_to_high_ground")) / 1000
    end_s = 1.0 + 6.0 + 2 * slot_s + 1.0
    found = [(one.pair, one.start_ns / 1e9, one.end_ns / 1e9) for one in heard(pcm)]
    assert [pair for pair, _, _ in found] == [UNDER, MESSAGE, MESSAGE, UNDER]
    assert abs(found[0][2] - 1.0) < 0.01
    assert abs(found[1][1] - 7.0) < 0.01
    assert abs(found[2][1] - (7.0 + slot_s + 1.0)) < 0.01
    assert abs(found[3][1] - end_s) < 0.01
    lower = [chunk for chunk in chunks if chunk.tag is None or chunk.tag.entry_id == "p"]
    during = [c for c in lower if 1.0 <= (c.server_ns / 1e6 - NOON_MS) / 1000 < end_s - 1e-6]
    assert during == []
    assert steps_heard(pcm[RATE : 7 * RATE])[:4] == [590, 740, 930, 1170]
    assert whys(chunks) == {Why.PLANNED, Why.ALERT}
    tags = {(c.tag.start_ms, c.tag.end_ms) for c in chunks if c.tag and c.tag.alert_id}
    assert tags == {(NOON_MS + 1_000, NOON_MS + round(end_s * 1000))}


def test_a_text_alone_is_spoken_from_the_clips_in_the_firmware():
    pcm, chunks = play(over_a_programme(WORDS), SHELF, NOON_MS + 1_000, 17)
    assert [one.pair for one in heard(pcm)] == [UNDER]
    first, second = where(pcm, "attention")
    assert abs(first - 6.0) < 0.01
    for code, after_ms in (("flood", 1_500), ("go_to_high_ground", 2_500)):
        found = where(pcm, code)
        assert len(found) == 2
        assert abs(found[0] - first - after_ms / 1000) < 0.01
        assert abs(found[1] - second - after_ms / 1000) < 0.01
    assert Why.ALERT_ASSET_MISSING not in whys(chunks)


def test_without_the_recording_the_words_stand_in_and_without_words_the_tone():
    pcm, chunks = play(over_a_programme(FLOOD, ready=frozenset()), SHELF, NOON_MS + 1_000, 10)
    assert len(where(pcm, "flood")) == 1
    assert whys(chunks) == {Why.ALERT, Why.ALERT_ASSET_MISSING}
    bare = FLOOD.model_copy(update={"hazard": None, "phrases": None, "asset_ms": 6_000})
    pcm, _ = play(over_a_programme(bare, ready=frozenset()), SHELF, NOON_MS + 7_000, 6)
    assert set(steps_heard(pcm)) == {660, 880}


def test_a_drill_says_so_before_every_repetition_and_at_the_end_though_the_recording_is_there():
    drill = FLOOD.model_copy(update={"drill": True})
    pcm, _ = play(over_a_programme(drill), SHELF, NOON_MS, 24)
    said = where(pcm, "drill")
    messages = [one.start_ns / 1e9 for one in heard(pcm) if one.pair == MESSAGE]
    assert len(messages) == 2
    assert len(said) == 3
    slot_s = CLIPS["drill"].slot_ms / 1000
    assert all(abs(at + slot_s - message) < 0.02 for at, message in zip(said, messages, strict=False))
    back = next(one.start_ns / 1e9 for one in heard(pcm) if one.pair == UNDER and one.start_ns > 10e9)
    assert abs(said[2] + slot_s - back) < 0.02


def test_a_drill_that_cannot_say_so_does_not_sound():
    drill = FLOOD.model_copy(update={"drill": True})
    pcm, chunks = play(over_a_programme(drill, clips=frozenset({"flood"})), SHELF, NOON_MS, 12)
    assert [one.pair for one in heard(pcm)] == [UNDER]
    assert whys(chunks) == {Why.PLANNED}


@pytest.mark.parametrize("nature", [AlertNature.CORRECTION, AlertNature.FINAL])
def test_a_correction_and_a_final_notice_say_what_they_are_before_the_message(nature: AlertNature):
    pcm, _ = play(over_a_programme(FLOOD.model_copy(update={"nature": nature})), SHELF, NOON_MS, 20)
    messages = [one.start_ns / 1e9 for one in heard(pcm) if one.pair == MESSAGE]
    said = where(pcm, nature.value)
    assert len(said) == len(messages) == 2
    slot_s = CLIPS[nature.value].slot_ms / 1000
    assert all(abs(at + slot_s - message) < 0.02 for at, message in zip(said, messages, strict=True))
    calm = set(steps_heard(pcm[RATE : 7 * RATE])) == {780}
    assert calm is (nature is AlertNature.FINAL)


def test_the_volume_is_the_alarms_own_and_afterwards_the_programmes_again():
    config = wire.NodeConfigBody(
        path=("x",),
        cluster="c",
        assets_url="",
        max_gain_db=-12.0,
        volume=(wire.VolumeStep(from_minute=0, gain_db=-20.0),),
        alert_gain_db=-3.0,
    )
    pcm, _ = play(over_a_programme(FLOOD, config=config), SHELF, NOON_MS, 20)
    before, first, after = (level_dbfs(pcm[round(s * RATE) : round((s + 0.5) * RATE)]) for s in (0.2, 8.0, 19.0))
    own = level_dbfs(tone(UNDER, 0.5))
    assert abs(before - own + 12.0 + 20.0) < 0.2
    assert abs(first - own + 3.0) < 0.2
    assert abs(after - before) < 0.2
    loud, _ = play(over_a_programme(FLOOD, config=config.model_copy(update={"alert_gain_db": None})), SHELF, NOON_MS, 9)
    assert abs(level_dbfs(loud[8 * RATE : 8 * RATE + RATE // 2]) - own) < 0.2


def test_with_every_the_round_comes_again_and_between_them_the_programme_sounds():
    again = WORDS.model_copy(update={"every_min": 1, "issued_ms": NOON_MS})
    pcm, _ = play(over_a_programme(again, learned_s=0.0), SHELF, NOON_MS, 80)
    assert [round(at) for at in where(pcm, "attention")] == [6, 12, 66, 72]
    assert [one.pair for one in heard(pcm)] == [UNDER, UNDER]


def test_two_poles_that_learn_of_it_at_different_moments_sound_the_same_sample():
    one, _ = play(over_a_programme(WORDS, learned_s=1.1), SHELF, NOON_MS + 4_000, 10)
    other, _ = play(over_a_programme(WORDS, learned_s=3.8), SHELF, NOON_MS + 4_000, 10)
    assert (one == other).all()


def test_a_graver_one_cuts_in_and_the_broken_one_begins_anew():
    dam = wire.AlertBody(
        alert_id="dam",
        level=90,
        issued_ms=NOON_MS + 9_000,
        expires_ms=NOON_MS + 3_600_000,
        hazard="dam_release",
        times=1,
    )
    turns = learn([WORDS], [WORDS, dam], learn((), [WORDS], {}, NOON_MS + 1_000), NOON_MS + 9_200)
    situation = over_a_programme(WORDS, dam)
    situation.turns = turns
    pcm, chunks = play(situation, SHELF, NOON_MS + 1_000, 50)
    order = [entry for (kind, entry), _ in pairwise([*kinds(chunks), (None, None)]) if kind is Sounding.SOUND]
    assert [a for a, b in pairwise([*order, None]) if a != b] == ["alert:flood", "alert:dam", "alert:flood", "p"]
    dam_s = (6_000 + CLIPS["attention"].slot_ms + CLIPS["dam_release"].slot_ms) / 1000
    assert [round(at, 1) for at in where(pcm, "flood")] == [
        7.5,
        round(8 + dam_s + 7.5, 1),
        round(8 + dam_s + 7.5 + 4.7 + 1.0, 1),
    ]


# --- the clips --------------------------------------------------------------------------------------------------------


def test_every_phrase_has_an_intact_clip_that_fits_its_slot_and_is_small():
    book = burned_in()
    assert book.broken == ()
    manifest = {entry["code"]: entry for entry in json.loads((FOLDER / MANIFEST).read_bytes())}
    assert set(manifest) == set(CLIPS)
    for code, phrase in CLIPS.items():
        assert manifest[code]["text"] == phrase.text
        assert 200 <= manifest[code]["ms"] <= phrase.slot_ms
        pcm = book.pcm(code)
        assert pcm is not None
        assert np.abs(pcm.astype(int)).max() > 3_000
        assert (FOLDER / f"{code}.opus").stat().st_size * 8 / manifest[code]["ms"] <= 24 + 8_000 / manifest[code]["ms"]


def test_a_broken_clip_is_named_and_never_sounds(tmp_path: Path):
    folder = tmp_path / "phrases"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    broken = folder / "flood.opus"
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content)
    (folder / "drill.opus").unlink()
    book = PhraseBook.read(folder)
    assert book.broken == ("drill", "flood")
    assert book.pcm("flood") is None
    assert book.pcm("storm") is not None
    (folder / MANIFEST).write_text("{")
    assert PhraseBook.read(folder).intact == frozenset()
