"""The short form of `benchmarks/broker_acl.py`: two devices, every trick, and a hole that must be found."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.broker_acl import suite
from broadcast_server.mqtt.broker import BrokerKind
from tests.support.broker import mosquitto_is_missing

no_mosquitto = pytest.mark.skipif(mosquitto_is_missing(), reason="mosquitto is not installed here")


@pytest.mark.parametrize(
    "kind", [pytest.param(BrokerKind.MOSQUITTO, marks=no_mosquitto), BrokerKind.AMQTT], ids=lambda kind: kind.value
)
async def test_nothing_of_one_device_reaches_another_and_all_that_is_allowed_does(
    tmp_path: Path, kind: BrokerKind
) -> None:
    told = (await suite(kind, 2, tmp_path)).figures()
    assert told["attempted"] >= 300
    assert told["got_through"] == {}
    assert told["arrived"] == told["allowed"] > 100


@no_mosquitto
@pytest.mark.parametrize(
    ("hole", "through"),
    [
        ("pattern read loa/1/node/+/plan", {"subscribe, hash", "subscribe, exact", "retained, leaf"}),
        ("pattern write loa/1/node/+/status", {"publish", "publish retained", "will"}),
        ("pattern write loa/1/node/+/plan", {"publish", "leave something retained", "clear what is retained"}),
    ],
    ids=["read", "status", "plan"],
)
async def test_a_hole_in_the_access_list_is_found(tmp_path: Path, hole: str, through: set[str]) -> None:
    told = (await suite(BrokerKind.MOSQUITTO, 2, tmp_path, holes=[hole])).figures()
    assert through <= set(told["got_through"])
