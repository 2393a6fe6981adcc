"""Typed text into sound: a normaliser that writes out what is written short, and voices behind one port.

The voices of espeak-ng are a plain machine voice ("giọng máy đơn giản") and are called so. A maintainer must not break:
text goes in by stdin, never as an argument; control characters and `[[phonemes]]`, which the engine would obey, are
taken out; numbers, dates and times are written out in words before the engine sees them, because a wrong number in a
notice is a wrong notice. Numbers are read as Vietnamese schools teach it: mươi after two tens, mốt, lăm, linh.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources, util
from typing import Final, Protocol

import av
import av.audio.resampler
import numpy as np
import yaml

from broadcast_server.audio.formats import SAMPLE_RATE_HZ
from broadcast_server.domain.errors import Invalid, Unavailable
from broadcast_server.supervise import Child

LONGEST_TEXT: Final = 20_000
_SPEAKING_TIMEOUT_S: Final = 60.0
_LONGEST_SPEECH_BYTES: Final = 200_000_000


class Voice(enum.StrEnum):
    """Where the voice is from; the value is kept in the store."""

    NORTH = "north"
    CENTRAL = "central"
    SOUTH = "south"


class Speaker(Protocol):
    """An engine that speaks."""

    async def say(self, text: str, voice: Voice, *, lexicon: Mapping[str, str] | None = None) -> bytes:
        """`text` as PCM (48 kHz mono s16le). `lexicon`: the unit's own dictionary, written → spoken.

        Raises `Invalid` (`text_empty`, `text_too_long`) and `Unavailable` (`speech_missing`, `speech_failed`).
        """
        ...


# ---------------------------------------------------------------------------------------------------------- engine

_ESPEAK_VOICES: Final = {Voice.NORTH: "vi", Voice.CENTRAL: "vi-vn-x-central", Voice.SOUTH: "vi-vn-x-south"}
_WORDS_A_MINUTE: Final = 150


class EspeakSpeaker:
    """espeak-ng as a child process: Debian's program, else the library of the `espeakng-loader` package."""

    def __init__(self, *, program: str | None = None, words_a_minute: int = _WORDS_A_MINUTE) -> None:
        self._program = program
        self._words_a_minute = words_a_minute

    async def say(self, text: str, voice: Voice, *, lexicon: Mapping[str, str] | None = None) -> bytes:
        """See `Speaker.say`."""
        if len(text) > LONGEST_TEXT:
            raise Invalid("text_too_long", field="text", length=len(text), longest=LONGEST_TEXT)
        spoken = normalise(text, lexicon)
        if not any(letter.isalnum() for letter in spoken):
            raise Invalid("text_empty", field="text")
        return _resampled(*_parse_wav(await self._speak(spoken, voice)))

    def _command(self, voice: Voice) -> list[str]:
        chosen = [_ESPEAK_VOICES[voice], str(self._words_a_minute)]
        program = self._program or shutil.which("espeak-ng")
        if program is not None:
            return [program, "-v", chosen[0], "-s", chosen[1], "-b", "1", "--stdin", "--stdout"]
        if util.find_spec("espeakng_loader") is not None:
            return [sys.executable, "-m", "broadcast_server.audio.espeak_library", *chosen]
        raise Unavailable("speech_missing", fix="install_espeak")

    async def _speak(self, text: str, voice: Voice) -> bytes:
        child = Child(self._command(voice), name="audio.speech", keep_stdin=True)
        wav = bytearray()
        try:
            async with child, asyncio.timeout(_SPEAKING_TIMEOUT_S):
                # The whole text goes in first: the engine reads to the end of its input before the first sound.
                with contextlib.suppress(Unavailable):  # it ended already; its exit code says why
                    await child.write(text.encode() + b"\n")
                    await child.end_input()
                while chunk := await child.stdout.read(1 << 16):
                    wav += chunk
                    if len(wav) > _LONGEST_SPEECH_BYTES:
                        raise Invalid("speech_too_long", field="text")
                code = await child.wait()
        except TimeoutError as error:
            raise Unavailable("speech_failed", reason="timeout") from error
        if code != 0 or not wav:
            raise Unavailable("speech_failed", reason=child.stderr_tail[-1] if child.stderr_tail else f"exit {code}")
        return bytes(wav)


def _parse_wav(wav: bytes) -> tuple[bytes, int]:
    """PCM and rate of a WAV made for a pipe, whose lengths are not true."""
    data_at = wav.find(b"data", 12)
    if wav[:4] != b"RIFF" or data_at < 0:
        raise Unavailable("speech_failed", reason="not a WAV")
    return wav[data_at + 8 :], int.from_bytes(wav[24:28], "little")


def _resampled(pcm: bytes, rate_hz: int) -> bytes:
    """Mono s16le of any rate as mono s16le of ours."""
    resampler = av.audio.resampler.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
    frame = av.AudioFrame.from_ndarray(np.frombuffer(pcm, "<i2", len(pcm) // 2).reshape(1, -1), "s16", "mono")
    frame.sample_rate = rate_hz
    out = [*resampler.resample(frame), *resampler.resample(None)]
    return b"".join(bytes(part.planes[0])[: part.samples * 2] for part in out)


# ------------------------------------------------------------------------------------------------------ normaliser

_DIGITS: Final = ("không", "một", "hai", "ba", "bốn", "năm", "sáu", "bảy", "tám", "chín")
_SCALES: Final = ("", " nghìn", " triệu")


def read_number(number: int) -> str:
    """A whole number, 0 or more, in words: 1 005 → một nghìn không trăm linh năm."""
    if number >= 10**9:
        whole, rest = divmod(number, 10**9)
        tail = f" {_read_groups(rest, follows=True)}" if rest else ""
        return f"{read_number(whole)} tỷ{tail}"
    return _read_groups(number, follows=False) or _DIGITS[0]


def _read_groups(number: int, *, follows: bool) -> str:
    words = []
    for power in (2, 1, 0):
        group = number // 1000**power % 1000
        if group:
            words.append(_read_three(group, full=follows) + _SCALES[power])
            follows = True
    return " ".join(words)


def _read_three(group: int, *, full: bool) -> str:
    hundreds, tens, ones = group // 100, group // 10 % 10, group % 10
    words = [f"{_DIGITS[hundreds]} trăm"] if hundreds or full else []
    if tens == 0 and ones and words:
        words += ["linh", _DIGITS[ones]]
    elif tens == 0:
        words += [_DIGITS[ones]] if ones else []
    else:
        words.append("mười" if tens == 1 else f"{_DIGITS[tens]} mươi")
        if ones:
            words.append({1: "một" if tens == 1 else "mốt", 5: "lăm"}.get(ones, _DIGITS[ones]))
    return " ".join(words)


def read_digits(digits: str) -> str:
    """Digit by digit, other characters left out."""
    return " ".join(_DIGITS[int(digit)] for digit in digits if digit.isdecimal())


def read_decimal(written: str) -> str:
    """A number as Vietnamese write it: points part thousands, a comma the decimals: 1.234,5."""
    whole, comma, decimals = written.partition(",")
    if not comma and re.fullmatch(r"\d+\.\d+", written) and not re.fullmatch(r"[1-9]\d{0,2}\.\d{3}", written):
        whole, comma, decimals = written.partition(".")  # 1.5, written the foreign way
    whole = whole.replace(".", "")
    said = read_digits(whole) if len(whole) > 15 or (len(whole) > 1 and whole[0] == "0") else read_number(int(whole))
    if not comma:
        return said
    as_number = len(decimals) <= 2 and decimals[0] != "0"
    return f"{said} phẩy {read_number(int(decimals)) if as_number else read_digits(decimals)}"


@dataclass(frozen=True, slots=True)
class _Lexicon:
    abbreviations: Mapping[str, str]
    units: Mapping[str, str]
    letters: Mapping[str, str]


@functools.cache
def _shipped() -> _Lexicon:
    told = yaml.safe_load(resources.files(__package__).joinpath("lexicon.yaml").read_text(encoding="utf-8"))
    return _Lexicon(told["abbreviations"], told["units"], told["letters"])


_NUMBER: Final = r"(?:\d+\.(?:\d{1,2}|\d{4,})(?!\.?\d)|\d+(?:\.\d{3})*(?:,\d+)?(?!\d))"
_ROMAN: Final = r"(?:X{0,3}(?:IX|IV|V?I{1,3}|V)|X{1,3})"
_ROMAN_AFTER: Final = (
    r"quý|khóa|khoá|kỳ|kì|lần thứ|lần|kỳ họp thứ|thứ|thế kỷ|thế kỉ|chương|phần|mục|hạng|cấp|loại|quân khu|vùng|đợt|"
    r"giai đoạn|nhóm|báo động|đại hội|điều|trung ương|bảng|khu vực"
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]|\[\[|\]\]")


def normalise(text: str, lexicon: Mapping[str, str] | None = None) -> str:
    """What the engine is given for `text`: everything short written out. `lexicon` wins over the shipped one."""
    said = _CONTROL.sub(" ", unicodedata.normalize("NFC", text)).replace("–", "-").replace("—", "-")
    said = _apply_words(said, lexicon or {}, guard_capitals=False)
    for step in _STEPS:
        said = step(said)
    return re.sub(r"[ \t]+", " ", re.sub(r"[ \t]+([,.;:!?])", r"\1", said)).strip()


def _apply_words(text: str, words: Mapping[str, str], *, guard_capitals: bool) -> str:
    if not words:
        return text
    pattern, spoken = _matcher(tuple(words.items()))

    def say(match: re.Match[str]) -> str:
        written = match[0]
        found = spoken.get(written) or spoken.get(written.casefold())
        shouted = guard_capitals and len(written) <= 2 and _is_shouted(text[match.end() :])
        return written if found is None or shouted else _spaced(match, found)

    return pattern.sub(say, text)


@functools.lru_cache(maxsize=32)
def _matcher(words: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    spoken: dict[str, str] = {}
    parts = []
    for raw, reading in sorted(words, key=lambda word: -len(word[0])):
        written = unicodedata.normalize("NFC", raw)
        exact = sum(letter.isupper() for letter in written) > 1
        spoken[written if exact else written.casefold()] = reading
        parts.append(re.escape(written) if exact else f"(?i:{re.escape(written)})")
    return re.compile(rf"(?<![^\W\d_])(?:{'|'.join(parts)})(?![^\W\d_])"), spoken


def _is_shouted(rest: str) -> bool:
    """Whether the next word is in capitals too, so that two capitals are a word and no abbreviation (CA NHẠC)."""
    following = re.match(r"\s+([^\W\d_]{2,})", rest)
    return following is not None and following[1].isupper() and following[1] not in _shipped().abbreviations


def _addresses(text: str) -> str:
    def say(match: re.Match[str]) -> str:
        bare = re.sub(r"^https?://|/+$", "", match[0])
        return bare.replace("@", " a còng ").replace(".", " chấm ").replace("/", " gạch chéo ")

    return re.sub(r"https?://\S+|www\.\S+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+|\b[\w-]+(?:\.[\w-]+)*\.vn\b\S*", say, text)


def _legal_numbers(text: str) -> str:
    """39/2020/TT-BTTTT, 12/QĐ-UBND: the number, the year, what it is."""

    def say(match: re.Match[str]) -> str:
        year = f" năm {match['year']}" if match["year"] else ""
        kind = re.sub(r"\bTT\b", "thông tư", match["kind"].replace("-", " "))
        return f"{match['number']}{year} {kind}"

    return re.sub(
        r"(?<![\d/])(?P<number>\d{1,5})/(?:(?P<year>\d{4})/)?(?P<kind>[A-ZĐ][A-ZĐƯa-z&]*(?:-[A-ZĐ][A-ZĐƯa-z&]*)*)",
        say,
        text,
    )


def _circulars(text: str) -> str:
    """TT is a circular before a number, a township before a name."""
    text = re.sub(r"\b(?i:thông tư)(\s+(?:số\s+)?)(\d{1,4})/(\d{4})\b(?!/)", r"thông tư\1\2 năm \3", text)
    text = re.sub(r"\bTT(\.?\s*(?:số\s*)?)(\d{1,4})/(\d{4})\b(?!/)", r"thông tư \2 năm \3", text)
    text = re.sub(r"\bTT\.?(?=\s*(?:số\s*)?\d)", "thông tư ", text)
    return re.sub(r"\bTT\.?\s+(?=[^\W\d_])", "thị trấn ", text)


def _titles(text: str) -> str:
    """TP. Huế, ĐT: 0912…, ĐT 741, BS. Hòa: short words that carry a point or mean two things."""
    text = re.sub(r"\bĐT(?=\s*[:.]|\s+0\d)", "điện thoại", text)
    text = re.sub(r"\bĐT\s*(?=\d)", "đường tỉnh ", text)
    return re.sub(r"\b(TP|TX|BS|GS|PGS|ThS)\.\s*(?=[^\W\d_])(?!HCM)", r"\1 ", text)


def _abbreviations(text: str) -> str:
    return _apply_words(text, _shipped().abbreviations, guard_capitals=True)


def _phones(text: str) -> str:
    """Digit by digit, with a breath between the groups."""

    def say(match: re.Match[str]) -> str:
        written = match[0]
        groups = [group for group in re.split(r"[ .-]", written.lstrip("+")) if group]
        if len(groups) == 1:
            digits = groups[0]
            first = 4 if len(digits) in {8, 10} else len(digits) - 6
            groups = [digits] if len(digits) < 8 else [digits[:first], digits[first : first + 3], digits[first + 3 :]]
        plus = "cộng " if written[0] == "+" else ""
        return plus + ", ".join(read_digits(group) for group in groups if group)

    text = re.sub(
        r"(?<![\d.,/])(?:\+84[ .-]?\d{2,3}(?:[ .-]?\d{3}){1,2}[ .-]?\d{0,4}|0\d{9,10}|0\d{2,4}(?:[ .-]\d{2,4}){2,3}"
        r"|1[89]00[ .-]?\d{4}|1[89]00[ .-]?\d{2}[ .-]?\d{2})(?![\d/])",
        say,
        text,
    )
    asked = r"(?:(?:gọi|điện thoại|đường dây nóng|hotline|tổng đài)(?:\s+(?:số|tới|đến|tới số))?\s*:?\s*)"
    called = re.compile(rf"(?i)({asked})(1\d{{2}})\b(?!\.\d)")
    return called.sub(lambda match: match[1] + read_digits(match[2]), text)


_DAY: Final = r"(?P<day>0?[1-9]|[12]\d|3[01])"
_MONTH: Final = r"(?P<month>0?[1-9]|1[0-2])"
_DATE_AFTER: Final = (
    r"ngày|mùng|mồng|rằm|hôm nay|hôm|sáng|trưa|chiều|tối|đêm|từ|đến|hết|trước|sau|và|kỷ niệm|dịp|lễ|quốc khánh"
)
_MONTH_NAMES: Final = {4: "tư"}


def _month(written: str) -> str:
    return f"tháng {_MONTH_NAMES.get(int(written)) or read_number(int(written))}"


def _dates(text: str) -> str:
    def full(match: re.Match[str]) -> str:
        return f"{_day_word(match)}{_month(match['month'])} năm {read_number(int(match['year']))}"

    def short(match: re.Match[str]) -> str:
        return f"{_day_word(match)}{_month(match['month'])}"

    def improper(match: re.Match[str]) -> str:  # 30/4 is no fraction, 1/2 is
        return short(match) if int(match["day"]) > int(match["month"]) else match[0]

    def month_year(match: re.Match[str]) -> str:
        return f"{_month(match['month'])} năm {read_number(int(match['year']))}"

    cue = rf"(?P<cue>\b(?i:{_DATE_AFTER})\s+)?"
    text = re.sub(rf"{cue}\b{_DAY}(?P<sep>[/.-]){_MONTH}(?P=sep)(?P<year>[12]\d{{3}})\b", full, text)
    text = re.sub(rf"{cue.rstrip('?')}{_DAY}/{_MONTH}\b(?![/\d])", short, text)
    text = re.sub(rf"(?P<cue>)(?<![\d/.,-]){_DAY}/{_MONTH}\b(?![/\d])", improper, text)
    text = re.sub(rf"\b{_DAY}\s*-\s*{_DAY.replace('day', 'last')}/{_MONTH}\b(?![/\d])", _day_range, text)
    text = re.sub(rf"(?i:\btháng\s+)?(?<![\d/]){_MONTH}[/-](?P<year>(?:19|20)\d\d)\b", month_year, text)
    text = re.sub(r"\b(?i:(tháng|thứ))\s+0?4\b(?![.,/:]\d)", r"\1 tư", text)
    return re.sub(r"\b(quý\s+\w+)\s*/\s*(\d{4})\b", r"\1 năm \2", text)


def _day_range(match: re.Match[str]) -> str:
    first, last = read_number(int(match["day"])), read_number(int(match["last"]))
    return f"{first} đến {last} {_month(match['month'])}"


def _day_word(match: re.Match[str]) -> str:
    """The day in words, with the word for day unless the text has said it."""
    cue = match["cue"] or ""
    told = cue.strip().casefold() in {"ngày", "mùng", "mồng", "rằm"}
    return f"{cue}{'' if told else 'ngày '}{read_number(int(match['day']))} "


def _times(text: str) -> str:
    def say(match: re.Match[str]) -> str:
        hour, minute, second = match["hour"], match["minute"], match["second"]
        words = [read_number(int(hour)), "giờ"]
        if minute is not None and (int(minute) or second):
            words += [read_number(int(minute)), "phút"]
        if second is not None:
            words += [read_number(int(second)), "giây"]
        return " ".join(words)

    text = re.sub(r"(\d(?:[hHg]|:[0-5]\d|[hHg][0-5]\d))\s*-\s*(?=\d{1,2}(?:[hHg:]))", r"\1 đến ", text)
    text = re.sub(r"(?<![\d/])24/24\s?[hH]?(?![\w/])", "hai mươi bốn trên hai mươi bốn giờ", text)
    hour, sixty = r"(?P<hour>[01]?\d|2[0-4])", r"[0-5]\d"
    text = re.sub(
        rf"(?<![\d:.,/])\b{hour}(?:\s?[hH]|g(?=[0-5]\d))(?:(?P<minute>{sixty})(?:[mp'](?P<second>{sixty})s?)?)?p?(?![\w/])",
        say,
        text,
    )
    text = re.sub(rf"(?<![\d:.,/]){hour}:(?P<minute>{sixty})(?::(?P<second>{sixty}))?(?!\d|:)", say, text)
    return re.sub(
        rf"(?<![\d:.,/]){hour} giờ (?P<minute>{sixty}|\d)(?P<second>(?!))?(?: phút)?\b(?![.,/]?\d)", say, text
    )


def _romans(text: str) -> str:
    def say(match: re.Match[str]) -> str:
        return match[1] + re.sub(rf"\b{_ROMAN}\b", lambda one: read_number(_roman_value(one[0])), match[2])

    listed = rf"{_ROMAN}(?:(?:\s*,\s*|\s*-\s*|\s+và\s+|\s+hoặc\s+|\s+đến\s+){_ROMAN})*"
    return re.sub(rf"\b((?i:{_ROMAN_AFTER})\s+)({listed})\b", say, text)


def _roman_value(roman: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10}[letter] for letter in roman]
    after = [*values[1:], 0]
    return sum(-value if value < following else value for value, following in zip(values, after, strict=True))


def _measures(text: str) -> str:
    units = _shipped().units
    known = "|".join(re.escape(unit) for unit in sorted(units, key=len, reverse=True))
    minus = rf"(?<![\w.,])[-−](?=(?:{_NUMBER})\s?(?:°|℃|oC|độ))"
    text = re.sub(minus, "âm ", text)
    return re.sub(
        rf"(?P<number>{_NUMBER})(?P<gap>\s?)(?P<unit>{known})(?![^\W_])",
        lambda match: f"{match['number']} {units[match['unit']]}",
        text,
    )


def _numbers(text: str) -> str:
    text = re.sub(rf"({_NUMBER})( [^\W\d_ ]+)?\s*-\s*(?={_NUMBER})", r"\1\2 đến ", text)
    text = re.sub(r"\b(\d{1,2})/(\d{1,2})\b(?!/)", _fraction, text)
    text = re.sub(r"(?<=[^\W\d_])-(?=\d)", " ", text)
    return re.sub(_NUMBER, lambda match: _spaced(match, read_decimal(match[0])), text)


def _fraction(match: re.Match[str]) -> str:
    return f"{read_number(int(match[1]))} phần {read_number(int(match[2]))}"


def _spaced(match: re.Match[str], words: str) -> str:
    """`words`, apart from a letter that stood against the digits (H5N1, 2A)."""
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    return f"{' ' if before.isalpha() else ''}{words}{' ' if after.isalpha() else ''}"


def _unknown_capitals(text: str) -> str:
    """An abbreviation nobody knows and nobody could pronounce is spelt."""
    letters = _shipped().letters

    def say(match: re.Match[str]) -> str:
        return " ".join(letters[letter] for letter in match[0])

    return re.sub(r"(?<![^\W_])[BCDĐFGHJKLMNPQRSTVWXZ]{2,6}(?![^\W_])", say, text)


def _signs(text: str) -> str:
    text = re.sub(r"\s*&\s*", " và ", text)
    text = re.sub(r"(?<=\w)\s*/\s*(?=\w)", " trên ", text)
    text = re.sub(r"\s*=\s*", " bằng ", text)
    text = re.sub(r"\s*\+\s*(?=\w)", " cộng ", text)
    return re.sub(r"[\"“”*_#<>|~^`{}\[\]\\]", " ", text)


_STEPS: Final[tuple[Callable[[str], str], ...]] = (
    _addresses,
    _legal_numbers,
    _circulars,
    _titles,
    _abbreviations,
    _phones,
    _romans,
    _dates,
    _times,
    _measures,
    _numbers,
    _unknown_capitals,
    _signs,
)
