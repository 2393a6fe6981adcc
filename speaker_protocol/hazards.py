"""Dangers and the words for them: numbers for the wire, names for people, and how long a node speaks each.

A node has a clip of every phrase burned in, so an emergency needs no recording: the numbers of a danger and of what to
do are enough. The **slot** of a phrase is part of the protocol: a node speaks it within so many milliseconds and is
silent for what is left, so that neighbouring poles with other voices still stay in step. Numbers are never given anew.

Standard library only; open to everybody.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


class Pattern(enum.StrEnum):
    """The attention tone of a kind of danger: people learn to know it by ear."""

    GENERAL = "general"
    WATER = "water"
    WIND = "wind"
    FIRE = "fire"
    EARTH = "earth"
    CALM = "calm"
    """Before a final notice: the danger is over."""


TONES: Final[Mapping[Pattern, tuple[tuple[int, int], ...]]] = MappingProxyType(
    {
        Pattern.GENERAL: ((660, 250), (880, 250)),
        Pattern.WATER: ((590, 400), (740, 400), (930, 400), (1170, 400)),
        Pattern.WIND: ((780, 1000), (620, 1000)),
        Pattern.FIRE: ((1480, 150), (0, 100)),
        Pattern.EARTH: ((410, 500), (1040, 500)),
        Pattern.CALM: ((780, 600), (0, 400)),
    }
)
"""Steps of (hertz, milliseconds), over and over; 0 Hz is a rest."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words that every node can say. `number` is its place on the wire (1–255), `slot_ms` the time it is given."""

    code: str
    number: int
    text: str
    english: str
    slot_ms: int


@dataclass(frozen=True, slots=True)
class Hazard(Phrase):
    """A danger, and the tone that goes before it."""

    pattern: Pattern = Pattern.GENERAL


DRILL: Final = "drill"
ATTENTION: Final = "attention"
CORRECTION: Final = "correction"
FINAL: Final = "final"

_P, _H = Phrase, Hazard
_WATER, _WIND, _FIRE, _EARTH = Pattern.WATER, Pattern.WIND, Pattern.FIRE, Pattern.EARTH

PHRASES: Final[Mapping[str, Phrase]] = MappingProxyType(
    {
        phrase.code: phrase
        for phrase in (
            _P(DRILL, 1, "Đây là diễn tập.", "This is a drill.", 1_300),
            _P(ATTENTION, 2, "Thông báo khẩn cấp.", "Emergency announcement.", 1_500),
            _P(CORRECTION, 3, "Đính chính.", "Correction.", 900),
            _P(FINAL, 4, "Tin cuối cùng.", "Final notice.", 1_300),
            _P("all_clear", 5, "Tình hình đã an toàn.", "The situation is safe again.", 1_700),
            _P("evacuate", 10, "Sơ tán ngay đến nơi an toàn.", "Leave now for a safe place.", 2_300),
            _P("go_to_high_ground", 11, "Di chuyển ngay lên nơi cao.", "Go to high ground now.", 2_200),
            _P("stay_indoors", 12, "Ở trong nhà, đóng kín cửa.", "Stay indoors, shut doors and windows.", 2_600),
            _P("avoid_rivers", 13, "Không lại gần sông, suối.", "Keep away from rivers and streams.", 2_400),
            _P("await_news", 14, "Theo dõi loa để nghe tin tiếp theo.", "Listen to the loudspeaker for news.", 2_700),
            _P(
                "leave_buildings",
                15,
                "Ra khỏi nhà, tránh xa tường cao.",
                "Leave buildings, keep off high walls.",
                3_200,
            ),
            _P("boats_to_harbour", 16, "Tàu thuyền về nơi trú ẩn ngay.", "Boats return to shelter now.", 2_400),
            _P("cut_power", 17, "Ngắt cầu dao điện.", "Switch the electricity off.", 1_400),
            _P("help_neighbours", 18, "Giúp người già và trẻ em.", "Help the old and the children.", 2_200),
            _P("call_114", 19, "Gọi một một bốn khi cần cứu.", "Call 114 when you need rescue.", 2_500),
        )
    }
)
"""What to do, and the words that frame it."""

HAZARDS: Final[Mapping[str, Hazard]] = MappingProxyType(
    {
        hazard.code: hazard
        for hazard in (
            _H("flood", 1, "Lũ lụt.", "Flood.", 1_000, _WATER),
            _H("flash_flood", 2, "Lũ quét.", "Flash flood.", 1_100, _WATER),
            _H("storm", 3, "Bão mạnh.", "Typhoon.", 1_100, _WIND),
            _H("landslide", 4, "Sạt lở đất.", "Landslide.", 1_200, _EARTH),
            _H("dam_release", 5, "Hồ chứa xả lũ.", "A reservoir releases water.", 1_900, _WATER),
            _H("earthquake", 6, "Động đất.", "Earthquake.", 800, _EARTH),
            _H("tsunami", 7, "Sóng thần.", "Tsunami.", 1_100, _WATER),
            _H("fire", 8, "Hỏa hoạn.", "Fire.", 1_100, _FIRE),
            _H("forest_fire", 9, "Cháy rừng.", "Forest fire.", 1_000, _FIRE),
            _H("chemical", 10, "Sự cố hóa chất độc hại.", "Chemical accident.", 2_400, _FIRE),
            _H("epidemic", 11, "Dịch bệnh nguy hiểm.", "Epidemic.", 1_600),
            _H("heat", 12, "Nắng nóng gay gắt.", "Severe heat.", 1_500),
            _H("cold", 13, "Rét đậm, rét hại.", "Severe cold.", 1_800),
            _H("thunderstorm", 14, "Dông, lốc, sét, mưa đá.", "Thunderstorm, lightning, hail.", 2_800, _WIND),
            _H("security", 15, "An ninh trật tự.", "Public security.", 1_600),
            _H("saltwater", 16, "Hạn hán, xâm nhập mặn.", "Drought and salt water.", 2_200),
            _H("heavy_rain", 17, "Mưa lớn, ngập úng.", "Heavy rain.", 1_700, _WATER),
        )
    }
)
"""What threatens."""

DIGITS: Final[Mapping[str, Phrase]] = MappingProxyType(
    {
        phrase.code: phrase
        for phrase in (
            _P("digit_0", 30, "Không.", "Zero.", 700),
            _P("digit_1", 31, "Một.", "One.", 700),
            _P("digit_2", 32, "Hai.", "Two.", 700),
            _P("digit_3", 33, "Ba.", "Three.", 700),
            _P("digit_4", 34, "Bốn.", "Four.", 700),
            _P("digit_5", 35, "Năm.", "Five.", 700),
            _P("digit_6", 36, "Sáu.", "Six.", 700),
            _P("digit_7", 37, "Bảy.", "Seven.", 700),
            _P("digit_8", 38, "Tám.", "Eight.", 700),
            _P("digit_9", 39, "Chín.", "Nine.", 700),
        )
    }
)
"""For the code of the binding check."""

CLIPS: Final[Mapping[str, Phrase]] = MappingProxyType({**PHRASES, **HAZARDS, **DIGITS})
"""Every phrase a node can say, by code."""

HAZARD_NUMBERS: Final[Mapping[int, str]] = MappingProxyType({one.number: one.code for one in HAZARDS.values()})
PHRASE_NUMBERS: Final[Mapping[int, str]] = MappingProxyType({one.number: one.code for one in PHRASES.values()})


def pattern_of(hazard: str | None, *, is_final: bool = False) -> Pattern:
    """The attention tone before an alert of this danger; an unknown one has the general tone."""
    if is_final:
        return Pattern.CALM
    known = HAZARDS.get(hazard or "")
    return known.pattern if known is not None else Pattern.GENERAL
