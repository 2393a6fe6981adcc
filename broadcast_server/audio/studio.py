"""The studio: short edits of sound in memory by pydub, up to 10 min; a programme rendered to one file with cues.

A maintainer must not break: pydub never opens or decodes a file (it would start an ffmpeg of its own, outside the
sandbox): it is given PCM and gives PCM back; everything here blocks and is called through an executor; what lasts
more than 10 min is refused and streams through ffmpeg (`prepare.prepare_joined`). Cues are exact to 1 ms: they are
what the play log, the programme page and "from item 3 on" count by.
"""

from __future__ import annotations

import enum
import itertools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from broadcast_server.audio.formats import (
    CHANNELS,
    SAMPLE_BYTES,
    SAMPLE_RATE_HZ,
    bytes_of_ms,
    ms_of_bytes,
    pcm_of,
)
from broadcast_server.audio.loudness import BLOCK_SAMPLES, Meter, levelled
from broadcast_server.domain.errors import Invalid

with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # it looks for an ffmpeg that it shall never run
    from pydub import AudioSegment
    from pydub.silence import detect_leading_silence

LONGEST_MS: Final = 600_000
PAUSE_MS: Final = 400
QUIET_DBFS: Final = -45.0
DUCK_DB: Final = -14.0
DUCK_MS: Final = 400
BED_LEAD_MS: Final = 1_500
BED_TAIL_MS: Final = 1_500
_TRIM_STEP_MS: Final = 10


class Role(enum.StrEnum):
    """What a part of a programme is."""

    SIGNATURE = "signature"
    INTRO = "intro"
    STING = "sting"
    ITEM = "item"
    CHIME = "chime"


@dataclass(frozen=True, slots=True)
class Cue:
    """Where a part begins and how long it lasts, in the rendered file."""

    item_id: str
    role: Role
    at_ms: int
    duration_ms: int


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a programme: PCM (48 kHz mono s16le) that our decoder made."""

    item_id: str
    pcm: bytes


@dataclass(frozen=True, slots=True)
class Rendered:
    """One piece of PCM and where its parts stand in it."""

    pcm: bytes
    cues: tuple[Cue, ...]


def trim(pcm: bytes, *, quieter_than_dbfs: float = QUIET_DBFS, keep_ms: int = 100) -> bytes:
    """Without the silence at both ends, `keep_ms` of it excepted. Silence through and through stays as it is."""
    sound = _segment(pcm)
    length_ms = len(sound)
    lead_ms = detect_leading_silence(sound, silence_threshold=quieter_than_dbfs, chunk_size=_TRIM_STEP_MS)
    if lead_ms >= length_ms:
        return pcm
    tail_ms = detect_leading_silence(sound.reverse(), silence_threshold=quieter_than_dbfs, chunk_size=_TRIM_STEP_MS)
    return _pcm(sound[max(0, lead_ms - keep_ms) : length_ms - max(0, tail_ms - keep_ms)])


def fade(pcm: bytes, *, in_ms: int = 0, out_ms: int = 0) -> bytes:
    """Coming from silence in `in_ms` and going into it in `out_ms`; each at most the whole length."""
    sound = _segment(pcm)
    if in_ms:
        sound = sound.fade_in(min(in_ms, len(sound)))
    if out_ms:
        sound = sound.fade_out(min(out_ms, len(sound)))
    return _pcm(sound)


def level(pcm: bytes) -> bytes:
    """At −16 LUFS under the ceiling: items from different recorders at one loudness."""
    blocks = [pcm_of(pcm[at : at + _BLOCK_BYTES]) for at in range(0, len(pcm), _BLOCK_BYTES)]
    meter = Meter()
    for block in blocks:
        meter.hear(block)
    return b"".join(block.tobytes() for block in levelled(blocks, gain_db=meter.report().gain_db))


def announcement(speech: Item, *, chime: bytes, pause_ms: int = PAUSE_MS, closing: bytes | None = None) -> Rendered:
    """Chime, the speech without its silences, chime. `closing`: another chime for the end. Raises `Invalid`."""
    pause = bytes(bytes_of_ms(pause_ms))
    return _laid_out([
        ("", Role.CHIME, chime),
        ("", None, pause),
        (speech.item_id, Role.ITEM, trim(speech.pcm)),
        ("", None, pause),
        ("", Role.CHIME, chime if closing is None else closing),
    ])  # fmt: skip


def render_programme(
    items: Sequence[Item],
    *,
    signature: bytes = b"",
    sting: bytes = b"",
    intro: Item | None = None,
    bed: bytes = b"",
    closing: bytes = b"",
    pause_ms: int = PAUSE_MS,
) -> Rendered:
    """A whole programme: signature tune, the introduction over a ducked bed, then each item after a sting; `closing`.

    What is empty is left out. Raises `Invalid`: `programme_empty`, or `too_long_for_studio` (with the advice to let it
    stream) when it would last longer than 10 min.
    """
    if not items:
        raise Invalid("programme_empty", field="items")
    lengths = [len(part) for part in (signature, closing, *(item.pcm for item in items))]
    _require_short(sum(lengths) + len(sting) * len(items) + (len(intro.pcm) if intro else 0))
    pause = bytes(bytes_of_ms(pause_ms))
    parts: list[tuple[str, Role | None, bytes]] = [("", Role.SIGNATURE, signature)]
    if intro is not None:
        lead, spoken, tail = _over_bed(intro.pcm, bed)
        parts += [("", None, lead), (intro.item_id, Role.INTRO, spoken), ("", None, tail)]
    for item in items:
        parts += [("", Role.STING, sting), ("", None, pause), (item.item_id, Role.ITEM, item.pcm), ("", None, pause)]
    parts.append(("", Role.SIGNATURE, closing))
    return _laid_out(parts)


def _over_bed(voice: bytes, bed: bytes) -> tuple[bytes, bytes, bytes]:
    """The bed alone, the voice over the lowered bed, the bed going out."""
    if not bed:
        return b"", voice, b""
    spoken = _segment(voice)
    needed_ms = BED_LEAD_MS + len(spoken) + BED_TAIL_MS
    music = _segment(b"".join(itertools.repeat(bed, bytes_of_ms(needed_ms) // len(bed) + 1)))
    lead = music[:BED_LEAD_MS].fade(to_gain=DUCK_DB, start=BED_LEAD_MS - DUCK_MS, duration=DUCK_MS)
    under = (music[BED_LEAD_MS : BED_LEAD_MS + len(spoken)] + DUCK_DB).overlay(spoken)
    tail = music[BED_LEAD_MS + len(spoken) : needed_ms].fade(from_gain=DUCK_DB, start=0, duration=DUCK_MS)
    # pydub counts whole milliseconds; the voice keeps the rest of its last one.
    rest = voice[len(_pcm(under)) :]
    return _pcm(lead), _pcm(under) + rest, _pcm(tail.fade_out(BED_TAIL_MS - DUCK_MS))


def _laid_out(parts: Iterable[tuple[str, Role | None, bytes]]) -> Rendered:
    """Parts one after the other; those with a role get a cue."""
    pieces: list[bytes] = []
    cues: list[Cue] = []
    at_bytes = 0
    for item_id, role, pcm in parts:
        if role is not None and pcm:
            start_ms = ms_of_bytes(at_bytes)
            cues.append(Cue(item_id, role, start_ms, ms_of_bytes(at_bytes + len(pcm)) - start_ms))
        pieces.append(pcm)
        at_bytes += len(pcm)
    _require_short(at_bytes)
    return Rendered(b"".join(pieces), tuple(cues))


def _require_short(count_bytes: int) -> None:
    if ms_of_bytes(count_bytes) > LONGEST_MS:
        raise Invalid(
            "too_long_for_studio",
            field="items",
            duration_ms=ms_of_bytes(count_bytes),
            longest_ms=LONGEST_MS,
            fix="stream_long_programme",
        )


_BLOCK_BYTES: Final = BLOCK_SAMPLES * SAMPLE_BYTES


def _segment(pcm: bytes) -> Any:
    _require_short(len(pcm))
    whole = pcm[: len(pcm) // SAMPLE_BYTES * SAMPLE_BYTES]
    return AudioSegment(data=whole, sample_width=SAMPLE_BYTES, frame_rate=SAMPLE_RATE_HZ, channels=CHANNELS)


def _pcm(sound: Any) -> bytes:
    return bytes(sound.raw_data)
