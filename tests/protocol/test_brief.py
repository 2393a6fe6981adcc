"""The brief form of an alert set: whole on 200 bytes, the same set on both sides, JSON where it would lose anything."""

from __future__ import annotations

import contextlib

import hypothesis.strategies as st
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings

from speaker_protocol.brief import VERSION, decode_alert_set, encode_alert_set
from speaker_protocol.hazards import HAZARDS, PHRASES
from speaker_protocol.messages import AlertBody, AlertNature, AlertSetBody, StopAllLatch
from speaker_protocol.signing import EnvelopeRefused, Kind, Refusal, key_id_of, seal

ID = "0198c7d2a5b47e1f8c3d2a1b0c9e8f7a"
T0 = 1_790_000_000_123
FLOOD = AlertBody(
    alert_id=ID,
    level=85,
    issued_ms=T0,
    expires_ms=T0 + 180 * 60_000,
    hazard="flash_flood",
    phrases=("evacuate", "go_to_high_ground", "avoid_rivers", "await_news"),
    every_min=15,
)


@pytest.mark.parametrize("unit", ["vn-01-00025", "0198c7d2a5b47e1f8c3d2a1b0c9e8f7a"])
def test_a_signed_emergency_of_words_alone_is_at_most_200_bytes(unit: str):
    key = Ed25519PrivateKey.from_private_bytes(b"\7" * 32)
    body = encode_alert_set(
        AlertSetBody(
            alerts=(
                FLOOD.model_copy(update={"replaces": ID, "nature": AlertNature.CORRECTION, "times": 5, "drill": True}),
            )
        )
    )
    envelope = seal(
        key,
        key_id_of(key.public_key().public_bytes_raw()),
        kind=Kind.ALERTS,
        target=unit,
        issued_ms=T0,
        expires_ms=T0 + 10**9,
        epoch=7,
        sequence=123_456,
        body=body,
    )
    assert body[0] == VERSION
    assert len(envelope) <= 200
    assert len(FLOOD.encode()) > 250  # what it would be otherwise, unsigned


def test_what_the_brief_form_cannot_say_travels_as_json():
    for changes in (
        {"asset": "a" * 64},
        {"text": "Nước lên nhanh"},
        {"hazard": "volcano"},
        {"phrases": ("nobody_knows_this",)},
        {"expires_ms": T0 + 90_001},
        {"gap_ms": 4_999},
        {"tone_ms": 4_050},
        {"level": 300},
        {"klass": "normal"},
    ):
        body = AlertSetBody(alerts=(AlertBody.model_validate({**FLOOD.model_dump(), **changes}),))
        raw = encode_alert_set(body)
        assert raw[:1] == b"{"
        assert decode_alert_set(raw) == body
    assert encode_alert_set(AlertSetBody()) == b'{"alerts":[]}'


ALERT = st.builds(
    lambda minutes, **facts: AlertBody(issued_ms=T0, expires_ms=T0 + minutes * 60_000, **facts),
    minutes=st.integers(0, 1440),
    alert_id=st.sampled_from([ID, "a", "xã-1", "x" * 64]),
    level=st.sampled_from([85, 90]),
    hazard=st.sampled_from([None, *HAZARDS]),
    phrases=st.none() | st.lists(st.sampled_from(list(PHRASES)), max_size=12).map(tuple),
    drill=st.booleans(),
    nature=st.sampled_from([None, *AlertNature]),
    replaces=st.sampled_from([None, ID, "b"]),
    tone_ms=st.none() | st.integers(40, 100).map(lambda tenths: tenths * 100),
    times=st.none() | st.integers(1, 20),
    gap_ms=st.none() | st.integers(0, 240).map(lambda quarters: quarters * 250),
    every_min=st.none() | st.integers(1, 1440),
)
SET = st.builds(
    AlertSetBody,
    alerts=st.lists(ALERT, min_size=1, max_size=4).map(tuple),
    stop_all=st.sampled_from([None, StopAllLatch(latch_id=ID, since_ms=T0)]),
)


@given(SET)
@settings(max_examples=200, deadline=None)
def test_every_set_of_words_is_read_as_it_was_written(body: AlertSetBody):
    raw = encode_alert_set(body)
    assert raw[0] == VERSION
    assert decode_alert_set(raw) == body


@given(SET, st.data())
@settings(max_examples=200, deadline=None)
def test_a_torn_or_garbled_one_is_refused_and_nothing_worse(body: AlertSetBody, data: st.DataObject):
    raw = encode_alert_set(body)
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(EnvelopeRefused) as refused:
        decode_alert_set(raw[:cut])
    assert refused.value.reason is Refusal.BODY
    with pytest.raises(EnvelopeRefused):
        decode_alert_set(raw + b"\0")
    garbled = bytearray(raw)
    garbled[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(EnvelopeRefused):  # another set, or none; the signature tells them apart
        decode_alert_set(bytes(garbled))
