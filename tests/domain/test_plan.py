"""Equal plans are equal bytes; a diff tells what a listener would notice."""

import hashlib
from dataclasses import replace
from datetime import UTC, timedelta
from typing import Any

import pytest

from broadcast_server.domain.errors import Invalid
from broadcast_server.domain.plan import Plan, PlanAsset, PlanSegment, canonical, diff, digest
from speaker_protocol.rules import BulletinClass, Level, SourceKind
from tests.domain.builders import at, minutes

OVERLAP = "segments[1].start"
HASH, OTHER = "a" * 64, "b" * 64
ASSET = PlanAsset(HASH, 120_000, minutes(10))


def a_segment(start: str, end: str, name: str = "news", **changes: Any) -> PlanSegment:
    given: dict[str, Any] = {
        "klass": BulletinClass.NORMAL,
        "level": Level.NORMAL,
        "source": SourceKind.RECORDED,
        "asset": HASH,
        "approval": HASH,
    }
    return PlanSegment(name, at(start), at(end), **(given | changes))


def a_relay(start: str, end: str, stream: str = "vov1") -> PlanSegment:
    return a_segment(start, end, "vov", source=SourceKind.RELAY, asset=None, stream=stream, approval=None)


def a_plan(*segments: PlanSegment, **changes: Any) -> Plan:
    given: dict[str, Any] = {"valid_from": at("00:00"), "valid_until": at("168:00"), "assets": (ASSET,)}
    return Plan("set-1", segments=segments, **(given | changes))


def test_the_digest_is_that_of_what_sounds():
    plan = a_plan(a_segment("17:00", "17:10"), a_relay("17:10", "17:30"))
    assert digest(plan) == digest(a_plan(*plan.segments))
    assert digest(plan) == hashlib.sha256(canonical(plan)).hexdigest()


def test_the_canonical_form_is_fixed_text():
    plan = a_plan(a_segment("17:00", "17:10", gain_db=-3.0))
    assert canonical(plan).decode() == (
        '{"assets":[{"duration_ms":600000,"hash":"' + HASH + '","size_bytes":120000}],"segments":[{"approval":"' + HASH
        + '","asset":"' + HASH + '","end_ms":1780308600000,"entry_id":"news","gain_cdb":-300,"klass":"normal",'
        '"level":20,"offset_ms":0,"source":"recorded","start_ms":1780308000000,"stream":null}],'
        '"valid_from_ms":1780246800000,"valid_until_ms":1780851600000}'
    )  # fmt: skip


def test_limits_of_lateness_count_where_there_are_any():
    plain = a_plan(a_segment("17:00", "17:10"))
    limited = a_plan(a_segment("17:00", "17:10", late_at_most=minutes(1), tolerates=minutes(1)))
    assert b"late_at_most" not in canonical(plain)
    assert b'"late_at_most_ms":60000' in canonical(limited)
    assert b'"tolerates_ms":60000' in canonical(limited)
    assert digest(plain) != digest(limited)


def test_zone_set_and_order_of_assets_do_not_matter():
    two = (ASSET, PlanAsset(OTHER, 1, minutes(1)))
    plan = a_plan(a_segment("17:00", "17:10"), assets=two)
    same = replace(
        plan,
        target_set="set-2",
        assets=two[::-1],
        segments=tuple(
            replace(segment, start=segment.start.astimezone(UTC), gain_db=1e-9) for segment in plan.segments
        ),
    )
    assert digest(same) == digest(plan)


@pytest.mark.parametrize(
    "change",
    [
        {"end": at("17:09")},
        {"offset": timedelta(seconds=1)},
        {"klass": BulletinClass.PRIORITY},
        {"level": Level.PROGRAMME},
        {"gain_db": -1.0},
        {"approval": None},
        {"entry_id": "other"},
    ],
)
def test_whatever_is_heard_or_proven_changes_the_digest(change: dict[str, Any]):
    segment = a_segment("17:00", "17:10")
    assert digest(a_plan(replace(segment, **change))) != digest(a_plan(segment))


def test_a_changed_segment_is_taken_away_and_brought():
    old, new = a_plan(a_segment("17:00", "17:10")), a_plan(a_segment("17:05", "17:15"))
    change = diff(old, new)
    assert (change.removed, change.added) == (old.segments, new.segments)
    assert not change.is_empty
    assert diff(old, old).is_empty


def test_against_nothing_everything_is_new():
    plan = a_plan(a_segment("17:00", "17:10"))
    change = diff(None, plan)
    assert (change.added, change.assets_added) == (plan.segments, (HASH,))


def test_what_has_passed_is_no_change_and_what_sounds_is_compared_from_now_on():
    old = a_plan(a_segment("05:00", "05:10"), a_segment("16:55", "17:05", "long"))
    rolled = a_plan(
        a_segment("17:00", "17:05", "long", offset=minutes(5)), valid_from=at("17:00"), valid_until=at("192:00")
    )
    assert diff(old, rolled).is_empty
    jumped = replace(rolled, segments=(a_segment("17:00", "17:05", "long"),))
    assert not diff(old, jumped).is_empty


def test_assets_that_come_and_go():
    old = a_plan(a_segment("17:00", "17:10"))
    new = a_plan(a_segment("17:00", "17:10", asset=OTHER), assets=(PlanAsset(OTHER, 1, minutes(10)),))
    assert (diff(old, new).assets_removed, diff(old, new).assets_added) == ((HASH,), (OTHER,))


@pytest.mark.parametrize(
    ("make", "code", "field"),
    [
        (lambda: a_segment("17:00", "17:00"), "empty_window", "end"),
        (lambda: a_segment("17:00", "17:10", asset=None), "asset_or_stream", "asset"),
        (lambda: a_segment("17:00", "17:10", stream="vov1"), "asset_or_stream", "asset"),
        (lambda: a_plan(valid_until=at("00:00")), "empty_window", "valid_until"),
        (
            lambda: a_plan(a_segment("17:00", "17:10"), a_relay("17:09", "18:00")),
            "segments_overlap",
            "segments[1].start",
        ),
        (lambda: a_plan(a_segment("17:00", "17:10", asset=OTHER)), "asset_not_listed", "segments[0].asset"),
    ],
)
def test_a_wrong_plan_names_its_field(make: Any, code: str, field: str):
    with pytest.raises(Invalid) as refused:
        make()
    assert (refused.value.code, refused.value.facts["field"]) == (code, field)
