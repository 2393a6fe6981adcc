"""Bodies: small, forgiving to what is new, merciless to what is not exactly what was signed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speaker_protocol import messages
from speaker_protocol.messages import (
    AlertSetBody,
    PlanAsset,
    PlanBody,
    PlanHead,
    PlanSegment,
    StatusBody,
    decode,
    join_keys,
    join_plan,
    open_plan_body,
    pack_plan_body,
    plan_head,
    split_keys,
    split_plan,
)
from speaker_protocol.rules import BulletinClass, SourceKind
from speaker_protocol.signing import EnvelopeRefused, Refusal

ASSET = "ab" * 32


def a_body(count: int = 3) -> PlanBody:
    return PlanBody(
        segments=tuple(
            PlanSegment(
                entry_id=f"schedule-{number}@{number}",
                start_ms=number * 60_000,
                end_ms=number * 60_000 + 30_000,
                klass=BulletinClass.NORMAL,
                level=20,
                source=SourceKind.RECORDED,
                asset=ASSET,
            )
            for number in range(count)
        ),
        assets=(PlanAsset(sha256=ASSET, size_bytes=90_000, duration_ms=30_000),),
    )


def test_a_plan_travels_as_head_and_shared_body():
    packed = pack_plan_body(a_body())
    head = plan_head(packed, valid_from_ms=0, valid_until_ms=1_000)
    envelope, body = split_plan(join_plan(b"the envelope", packed))
    assert (envelope, body) == (b"the envelope", packed)
    assert open_plan_body(head, body) == a_body()


def test_the_same_plan_is_the_same_bytes():
    assert pack_plan_body(a_body()) == pack_plan_body(a_body())


def test_a_week_of_twenty_items_a_day_stays_far_below_the_packet_limit():
    assert len(pack_plan_body(a_body(140))) < 15_000


def test_a_body_that_is_not_the_signed_one_is_refused():
    head = plan_head(pack_plan_body(a_body()), valid_from_ms=0, valid_until_ms=1)
    with pytest.raises(EnvelopeRefused) as refused:
        open_plan_body(head, pack_plan_body(a_body(2)))
    assert refused.value.reason is Refusal.BODY


def test_a_bomb_is_refused_before_it_is_unpacked():
    bomb = zlib.compress(b" " * (messages.MAX_PLAN_BODY_BYTES + 1))
    head = plan_head(bomb, valid_from_ms=0, valid_until_ms=1)
    with pytest.raises(EnvelopeRefused):
        open_plan_body(head, bomb)


def test_a_body_is_unpacked_to_its_end_or_not_at_all():
    whole = b'{"segments":[]}'
    swelling = zlib.compress(whole + b" " * messages.MAX_PLAN_BODY_BYTES)
    cut = zlib.compress(whole)[:-4]
    for packed in (swelling, cut):
        head = plan_head(packed, valid_from_ms=0, valid_until_ms=1)
        assert reason_of(lambda given, head=head: open_plan_body(head, given), packed) is Refusal.BODY
    assert open_plan_body(plan_head(zlib.compress(whole), valid_from_ms=0, valid_until_ms=1), zlib.compress(whole))


def test_unknown_fields_are_ignored_and_wrong_ones_refused():
    assert decode(PlanHead, b'{"valid_from_ms":1,"valid_until_ms":2,"body_sha256":"%s","new":1}' % (b"0" * 64))
    with pytest.raises(EnvelopeRefused):
        decode(PlanHead, b'{"valid_from_ms":-1,"valid_until_ms":2,"body_sha256":"00"}')


def test_an_empty_alert_set_is_not_an_empty_payload():
    assert AlertSetBody().encode() == b'{"alerts":[]}'


def reason_of(read: Callable[[bytes], object], raw: bytes) -> Refusal | None:
    try:
        read(raw)
    except EnvelopeRefused as refused:
        return refused.reason
    return None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_payload_raises_anything_but_a_refusal(raw: bytes):
    readers = (split_plan, split_keys, messages.decode_ack, messages.decode_key_statement)
    for read in (*readers, lambda given: decode(StatusBody, given)):
        assert reason_of(read, raw) in {None, Refusal.GARBAGE, Refusal.BODY}


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5))
def test_key_statements_come_apart_as_they_were_joined(envelopes: list[bytes]):
    assert split_keys(join_keys(tuple(envelopes))) == tuple(envelopes)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"valid_from_ms":1,"valid_until_ms":2,"valid_until_ms":9,"body_sha256":"%s"}' % (b"0" * 64),
        b'{"valid_from_ms":1,"valid_until_ms":2,"body_sha256":"%s"} ' % (b"0" * 64) + b"x",
        b'{"valid_from_ms":NaN,"valid_until_ms":2,"body_sha256":"%s"}' % (b"0" * 64),
        b'{"valid_from_ms":1,"valid_until_ms":2,"body_sha256":"%s","x":%s}' % (b"0" * 64, b"[" * 9_000 + b"]" * 9_000),
        b'{"valid_from_ms":1,"valid_until_ms":2,"body_sha256":"%s","x":[%s{}]}' % (b"0" * 64, b"{}," * 30_000),
        b'{"valid_from_ms":1,"valid_until_ms":2,"body_sha256":"%s","x":[%s1]}' % (b"0" * 64, b"1," * 300_000),
        b'{"valid_from_ms":%s,"valid_until_ms":2,"body_sha256":"%s"}' % (b"9" * 9_000, b"0" * 64),
        b'{"valid_from_ms":1,"valid_until_ms":2,"body_sha256":"%s","x":"\xff"}' % (b"0" * 64),
    ],
    ids=["one key twice", "more behind it", "no number", "a hole", "brackets", "commas", "digits", "no text"],
)
def test_a_signed_body_is_read_in_one_way_or_not_at_all(raw: bytes):
    assert reason_of(lambda given: decode(PlanHead, given), raw) is Refusal.BODY


def test_one_key_twice_is_refused_in_every_part_of_a_body():
    statement = b'{"kind":"revocation","key_id":"%s","at_ms":1,"at_ms":2}' % (b"0" * 16)
    answer = b'{"kind":"reports","boot_id":"b","sequences":[1],"boot_id":"c"}'
    inner = b'{"alerts":[{"alert_id":"a","alert_id":"b","level":85,"issued_ms":1,"expires_ms":2}]}'
    assert reason_of(messages.decode_key_statement, statement) is Refusal.BODY
    assert reason_of(messages.decode_ack, answer) is Refusal.BODY
    assert reason_of(lambda given: decode(AlertSetBody, given), inner) is Refusal.BODY


A_REPORT = {"boot_id": "b", "sequence": 1, "kind": "started", "entry_id": "e", "segment_start_ms": 1, "at_ms": 1}


@pytest.mark.parametrize(
    ("model", "facts"),
    [
        (messages.NodeConfigBody, {"path": ["xa/1"], "cluster": "c", "assets_url": "u"}),
        (messages.NodeConfigBody, {"path": ["#"], "cluster": "c", "assets_url": "u"}),
        (messages.NodeConfigBody, {"path": ["x"], "cluster": "c", "assets_url": "u", "max_gain_db": 9e9}),
        (messages.NodeConfigBody, {"path": ["x"], "cluster": "c", "assets_url": "u", "utc_offset_min": 1 << 60}),
        (messages.VolumeStep, {"from_minute": 0, "gain_db": 1e308}),
        (messages.VolumeStep, {"from_minute": 0, "gain_db": float("nan")}),
        (messages.ReportBody, {**A_REPORT, "uncertainty_ms": float("inf")}),
        (messages.TimeQuestionBody, {"nonce": "0" * 16, "sent_ns": 10**400}),
        (messages.ClockQuality, {"source": "server", "uncertainty_ms": 1e300}),
        (messages.ClockQuality, {"source": "server", "uncertainty_ms": 1, "offset_ms": -1e300}),
        (messages.TimeAnswerBody, {"nonce": "0" * 16, "asked_ns": 0, "received_ns": 0, "sent_ns": 10**18}),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_number_nobody_can_calculate_with_and_an_id_no_topic_can_hold_are_no_body(model: type, facts: dict):
    assert reason_of(lambda given: decode(model, given), json.dumps(facts).encode()) is Refusal.BODY


def test_the_largest_plan_there_is_can_be_read():
    packed = pack_plan_body(a_body(messages.MAX_SEGMENTS))
    head = plan_head(packed, valid_from_ms=0, valid_until_ms=1)
    assert len(open_plan_body(head, packed).segments) == messages.MAX_SEGMENTS


def test_thousands_of_empty_key_statements_are_garbage_and_not_thousands_of_refusals():
    most = messages.MAX_KEY_STATEMENTS
    assert len(split_keys(join_keys((b"x",) * most))) == most
    assert reason_of(split_keys, join_keys((b"",) * (most + 1))) is Refusal.GARBAGE


class Untouched:
    """In the place of a body."""

    @classmethod
    def model_validate_json(cls, raw: bytes) -> object:
        raise AssertionError(f"it looked at {len(raw)} bytes")


def test_a_status_of_thousands_of_wrong_things_is_not_looked_at():
    """Writing down the errors of each takes a tenth of a second."""
    raw = b'{"link":"online","boot_id":"b","alerts":[' + b"{}," * 80_000 + b"{}]}"
    assert reason_of(lambda given: messages.decode_unsigned(Untouched, given), raw) is Refusal.BODY
    most = b"[" * 1_000
    with pytest.raises(AssertionError):
        messages.decode_unsigned(Untouched, most)


@pytest.mark.parametrize("critical", ['["gain"]', '"gain_db"', "1", "null", "[[1]]", "[{}]", "[null]"])
def test_what_must_be_understood_and_is_not_is_refused_however_it_is_named(critical: str):
    raw = b'{"valid_from_ms":1,"valid_until_ms":2,"body_sha256":"%s","crit":%s}' % (b"0" * 64, critical.encode())
    assert reason_of(lambda given: decode(PlanHead, given), raw) is Refusal.CRITICAL_FIELD
