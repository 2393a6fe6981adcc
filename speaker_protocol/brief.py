"""The second form of an alert set: a few dozen bytes where JSON takes hundreds, for alerts of words alone.

A text-only emergency must pass where hardly anything passes (NB-IoT, a congested cell): signed, it is at most
200 bytes. The brief form holds sets whose alerts name a danger and phrases by number and carry neither recording nor
text; `encode_alert_set` takes it exactly where reading it again gives the very same set, and JSON for all else. The
first byte tells the forms apart: JSON begins with `{`.

Layout, big-endian. Set: `VERSION`, number of alerts (1), 1 if a stop-all latch follows; the latch: id, since (6, ms).
Alert: id, level (1), flags (1), hazard number (1, 0 none), issued (6, ms), minutes valid (2), number of phrases (1,
255: none named), phrase numbers (1 each); then where flagged: tone (1, in 100 ms), times (1), gap (1, in 250 ms),
every (2, minutes), id it replaces. Id: 0 and 16 bytes for 32 hex digits, else its length (1) and UTF-8.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from speaker_protocol.hazards import HAZARD_NUMBERS, HAZARDS, PHRASE_NUMBERS, PHRASES
from speaker_protocol.messages import AlertBody, AlertSetBody, StopAllLatch, decode
from speaker_protocol.rounds import AlertNature
from speaker_protocol.signing import EnvelopeRefused, Refusal

VERSION: Final = 0x01
_DRILL, _TONE, _TIMES, _GAP, _EVERY, _REPLACES = 0x01, 0x08, 0x10, 0x20, 0x40, 0x80
_NATURES: Final = (None, AlertNature.ALERT, AlertNature.CORRECTION, AlertNature.FINAL)
_NO_PHRASES: Final = 255
_MIN_MS: Final = 60_000
_TONE_STEP_MS: Final = 100
_GAP_STEP_MS: Final = 250
_HEX: Final = re.compile(r"[0-9a-f]{32}")


class _NotBriefError(ValueError):
    """The set holds something that has no place in the brief form."""


def encode_alert_set(body: AlertSetBody) -> bytes:
    """The bytes to sign: the brief form where it loses nothing, else JSON."""
    if not body.alerts:
        return body.encode()
    try:
        brief = _pack(body)
        is_same = _unpack(brief) == body
    except (KeyError, IndexError, struct.error, ValueError):
        return body.encode()
    return brief if is_same else body.encode()


def decode_alert_set(raw: bytes) -> AlertSetBody:
    """A set in either form. Raises `EnvelopeRefused(BODY)`."""
    if raw[:1] != bytes([VERSION]):
        return decode(AlertSetBody, raw)
    try:
        return _unpack(raw)
    except (IndexError, struct.error, ValueError):
        raise EnvelopeRefused(Refusal.BODY) from None


def _pack(body: AlertSetBody) -> bytes:
    latch = body.stop_all
    out = [struct.pack(">BBB", VERSION, len(body.alerts), latch is not None)]
    if latch is not None:
        out += [_id(latch.latch_id), _instant(latch.since_ms)]
    out += [_alert(alert) for alert in body.alerts]
    return b"".join(out)


def _alert(alert: AlertBody) -> bytes:
    minutes, rest_ms = divmod(alert.expires_ms - alert.issued_ms, _MIN_MS)
    if rest_ms or alert.asset is not None or alert.text is not None:
        raise _NotBriefError
    flags = (_DRILL if alert.drill else 0) | _NATURES.index(alert.nature) << 1
    tail = []
    for flag, value, code, step in (
        (_TONE, alert.tone_ms, "B", _TONE_STEP_MS),
        (_TIMES, alert.times, "B", 1),
        (_GAP, alert.gap_ms, "B", _GAP_STEP_MS),
        (_EVERY, alert.every_min, "H", 1),
    ):
        if value is not None:
            flags |= flag
            tail.append(struct.pack(">" + code, value // step))
    if alert.replaces is not None:
        flags |= _REPLACES
        tail.append(_id(alert.replaces))
    hazard = 0 if alert.hazard is None else HAZARDS[alert.hazard].number
    said = alert.phrases
    numbers = bytes(PHRASES[code].number for code in said or ())
    return b"".join(
        [
            _id(alert.alert_id),
            struct.pack(">BBB", alert.level, flags, hazard),
            _instant(alert.issued_ms),
            struct.pack(">HB", minutes, _NO_PHRASES if said is None else len(said)),
            numbers,
            *tail,
        ]
    )


def _id(text: str) -> bytes:
    if _HEX.fullmatch(text):
        return b"\0" + bytes.fromhex(text)
    raw = text.encode()
    return struct.pack(">B", len(raw)) + raw


def _instant(ms: int) -> bytes:
    return struct.pack(">Q", ms)[2:]


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def take(self, size: int) -> bytes:
        part = self._raw[self._at : self._at + size]
        if len(part) < size:
            raise IndexError
        self._at += size
        return part

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size), "big")

    def id(self) -> str:
        size = self.number()
        return self.take(size).decode() if size else self.take(16).hex()

    @property
    def is_over(self) -> bool:
        return self._at == len(self._raw)


def _unpack(raw: bytes) -> AlertSetBody:
    reader = _Reader(raw)
    reader.take(1)
    count, has_latch = reader.number(), reader.number()
    latch = StopAllLatch(latch_id=reader.id(), since_ms=reader.number(6)) if has_latch else None
    alerts = tuple(_read_alert(reader) for _ in range(count))
    if not reader.is_over or has_latch > 1:
        raise ValueError(raw)
    return AlertSetBody(alerts=alerts, stop_all=latch)


def _read_alert(reader: _Reader) -> AlertBody:
    alert_id, level, flags, hazard = reader.id(), reader.number(), reader.number(), reader.number()
    issued_ms, minutes, count = reader.number(6), reader.number(2), reader.number()
    numbers = () if count == _NO_PHRASES else tuple(reader.take(count))
    # A number that this version does not know leaves its word out; the alert sounds all the same.
    said = tuple(PHRASE_NUMBERS[number] for number in numbers if number in PHRASE_NUMBERS)
    return AlertBody(
        alert_id=alert_id,
        level=level,
        issued_ms=issued_ms,
        expires_ms=issued_ms + minutes * _MIN_MS,
        hazard=HAZARD_NUMBERS.get(hazard),
        phrases=None if count == _NO_PHRASES else said,
        drill=bool(flags & _DRILL),
        nature=_NATURES[flags >> 1 & 3],
        tone_ms=reader.number() * _TONE_STEP_MS if flags & _TONE else None,
        times=reader.number() if flags & _TIMES else None,
        gap_ms=reader.number() * _GAP_STEP_MS if flags & _GAP else None,
        every_min=reader.number(2) if flags & _EVERY else None,
        replaces=reader.id() if flags & _REPLACES else None,
    )
