"""Bodies: small, forgiving to what is new, merciless to what is not exactly what was signed."""

from __future__ import annotations

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
