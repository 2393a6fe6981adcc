"""What a node does not obey: each reason is told apart and counted, and nothing of it acts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from firmware_sim.trust import Gate, PlanBodies
from speaker_protocol import messages as wire
from speaker_protocol.rules import BulletinClass, Level
from speaker_protocol.signing import Kind
from tests.firmware_sim.station import HOUR_MS, PATH, Signer, Station, now_ms, segment


@pytest.fixture
def station(tmp_path: Path) -> Station:
    return Station(tmp_path)  # its pen only: nothing is started


@pytest.fixture(autouse=True)
def closed(station: Station):
    yield
    station._http.server_close()


def gate_of(station: Station, marks: dict[str, tuple[int, int, str]] | None = None) -> Gate:
    gate = Gate(node_id="n1", root_public=station.root.public, path=PATH, watermarks=marks or {}, bodies=PlanBodies())
    for unit, raw in zip(PATH, station.delegations(), strict=True):
        assert gate.keys(unit, wire.join_keys((raw,)), now_ms())
    return gate


def a_plan(station: Station, node: str = "n1", **changes: object) -> bytes:
    return station.plan_payload(node, [segment("e", now_ms(), 5, asset=None, stream="s")], **changes)


REFUSED: dict[str, tuple[str, Callable[[Station], bytes]]] = {
    "nothing": ("garbage", lambda _: b""),
    "noise": ("garbage", lambda _: bytes(range(256))),
    "half of it": ("garbage", lambda s: a_plan(s)[:40]),
    "one flipped bit": ("signature", lambda s: _flip(a_plan(s), 60)),
    "another body": ("body", lambda s: a_plan(s) + b"x"),
    "a stranger's key": ("unknown_key", lambda s: a_plan(s, signer=Signer())),
    "the key for acks": ("kind_not_allowed", lambda s: a_plan(s, signer=s.server)),
    "another node's": ("wrong_target", lambda s: a_plan(s, "n2")),
    "yesterday's": ("expired", lambda s: a_plan(s, expires_ms=now_ms() - 1)),
    "tomorrow's": ("from_the_future", lambda s: a_plan(s, issued_ms=now_ms() + HOUR_MS)),
    "a config": ("wrong_kind", lambda s: wire.join_plan(_config(s), b"")),
}


def _flip(payload: bytes, at: int) -> bytes:
    return payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]


def _config(station: Station) -> bytes:
    config = wire.NodeConfigBody(path=PATH, cluster="c", assets_url="http://127.0.0.1/")
    return station.commune.seal(Kind.CONFIG, "n1", config)


@pytest.mark.parametrize("what", REFUSED)
def test_a_plan_that_is_not_to_be_obeyed_is_counted_by_its_reason(station: Station, what: str):
    reason, make = REFUSED[what]
    gate = gate_of(station)
    before = gate.snapshot()
    assert gate.plan(make(station), now_ms()) is None
    assert dict(gate.refusals) == {reason: 1}
    assert gate.snapshot() == before


def test_an_older_epoch_is_refused_even_after_a_reboot_and_the_same_again_is_harmless(station: Station):
    gate = gate_of(station)
    station.commune.epoch = 5
    new = a_plan(station)
    assert gate.plan(new, now_ms()) is not None
    assert gate.plan(new, now_ms()) is not None
    station.commune.epoch = 4
    reborn = gate_of(station, gate.snapshot())
    assert reborn.plan(a_plan(station), now_ms()) is None
    assert dict(reborn.refusals) == {"older": 1}
    assert reborn.highest()[0] == 5


def test_a_commune_may_not_raise_an_alert_for_its_province(station: Station):
    gate = gate_of(station)
    body = wire.AlertSetBody()
    taken = gate.alerts(PATH[0], station.commune.seal(Kind.ALERTS, PATH[0], body), now_ms())
    assert taken is not None
    assert taken.body == body
    assert gate.alerts(PATH[1], station.commune.seal(Kind.ALERTS, PATH[1], body), now_ms()) is None
    assert dict(gate.refusals) == {"out_of_scope": 1}


def test_only_a_key_for_emergencies_may_raise_an_alert_whatever_it_calls_itself(station: Station):
    gate = Gate(node_id="n1", root_public=station.root.public, path=PATH, watermarks={}, bodies=PlanBodies())
    delegation = wire.DelegationBody(
        public_key=station.commune.public.hex(),
        unit=PATH[0],
        may=("ALERTS",),
        max_class=BulletinClass.PRIORITY,
        valid_from_ms=0,
        valid_until_ms=now_ms() + HOUR_MS,
    )
    assert gate.keys(PATH[0], wire.join_keys((station.root.seal(Kind.KEYS, PATH[0], delegation),)), now_ms())
    for klass in BulletinClass:
        alert = wire.AlertBody(alert_id="a", level=85, klass=klass, issued_ms=now_ms(), expires_ms=now_ms() + HOUR_MS)
        body = wire.AlertSetBody(alerts=(alert,))
        assert gate.alerts(PATH[0], station.commune.seal(Kind.ALERTS, PATH[0], body), now_ms()) is None
    assert dict(gate.refusals) == {"class_too_high": 3}


def test_a_revoked_key_is_obeyed_no_more_and_a_replayed_delegation_does_not_bring_it_back(station: Station):
    gate = gate_of(station)
    old = station.delegations()[0]
    revocation = wire.RevocationBody(key_id=_key_id(station.commune), at_ms=now_ms() - 1)
    assert gate.keys(PATH[0], wire.join_keys((station.root.seal(Kind.KEYS, PATH[0], revocation),)), now_ms())
    gate.keys(PATH[0], wire.join_keys((old,)), now_ms())
    assert gate.plan(a_plan(station), now_ms()) is None
    assert gate.refusals["revoked_key"] == 1


def test_only_the_root_says_whose_keys_count(station: Station):
    gate = gate_of(station)
    stranger = Signer()
    body = wire.DelegationBody(
        public_key=stranger.public.hex(),
        unit=PATH[0],
        may=("PLAN",),
        max_class=BulletinClass.EMERGENCY,
        valid_from_ms=0,
        valid_until_ms=now_ms() + HOUR_MS,
    )
    assert not gate.keys(PATH[0], wire.join_keys((station.commune.seal(Kind.KEYS, PATH[0], body),)), now_ms())
    assert gate.refusals["kind_not_allowed"] == 1


def test_a_plan_above_its_keys_class_is_counted_and_its_other_segments_stand(station: Station):
    gate = gate_of(station)
    low = Signer()
    body = wire.DelegationBody(
        public_key=low.public.hex(),
        unit=PATH[0],
        may=("PLAN",),
        max_class=BulletinClass.NORMAL,
        valid_from_ms=0,
        valid_until_ms=now_ms() + HOUR_MS,
    )
    assert gate.keys(PATH[0], wire.join_keys((station.root.seal(Kind.KEYS, PATH[0], body),)), now_ms())
    graver = segment("g", now_ms(), 5, stream="s", klass=BulletinClass.PRIORITY, level=Level.PRIORITY_COMMUNE)
    plan = gate.plan(station.plan_payload("n1", [graver], signer=low), now_ms())
    assert plan is not None
    assert plan.max_class is BulletinClass.NORMAL
    assert dict(gate.refusals) == {"class_too_high": 1}


def test_a_plan_whose_segments_overlap_is_no_plan(station: Station):
    gate = gate_of(station)
    start = now_ms()
    segments = [segment("a", start, 5, stream="s"), segment("b", start + 4_000, 5, stream="s")]
    assert gate.plan(station.plan_payload("n1", segments), now_ms()) is None
    assert dict(gate.refusals) == {"body": 1}


def _key_id(signer: Signer) -> str:
    from speaker_protocol.signing import key_id_of

    return key_id_of(signer.public).hex()
