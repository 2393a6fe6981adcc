"""The canaries notice every way in which a broker fails to keep nodes apart, and are content with ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broadcast_server.domain.errors import Unavailable
from broadcast_server.mqtt.broker import CANARIES, BrokerKind, MosquittoBroker
from broadcast_server.mqtt.canary import Ground, Leak, look
from broadcast_server.mqtt.probe import Login
from broadcast_server.playout import wire
from tests.support.broker import PASSWORDS, RealGround, identities_in, lines_of, mosquitto_is_missing

no_mosquitto = pytest.mark.skipif(mosquitto_is_missing(), reason="mosquitto is not installed here")
ACL = wire.broker_acl("server")


def ground_of(real: RealGround, publish: object = None) -> Ground:
    assert real.address is not None
    first, second = CANARIES
    stranger = Login(tls=None if real.identities is None else real.identities.context(None))
    return Ground(
        real.address.host,
        real.address.port,
        real.clock,
        ((first, real.broker.login(first)), (second, real.broker.login(second))),
        stranger,
        publish,  # type: ignore[arg-type]  a bus's own, or nothing
    )


@pytest.fixture(
    params=[
        pytest.param("mosquitto", marks=no_mosquitto),
        pytest.param("mosquitto tls", marks=no_mosquitto),
        "amqtt",
        "amqtt tls",
    ]
)
async def real(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RealGround]:
    kind, _, tls = request.param.partition(" ")
    made = RealGround(BrokerKind(kind), tmp_path / "broker", ACL, identities=identities_in(tmp_path) if tls else None)
    await made.start()
    yield made
    await made.close()


async def test_our_brokers_keep_nodes_apart(real: RealGround) -> None:
    bus = await real.bus()
    for number in range(2):
        assert await look(ground_of(real, bus.publish), b"m%d" % number) == set()


@no_mosquitto
@pytest.mark.parametrize(
    ("acl", "extra", "leaks"),
    [
        ((*ACL, "pattern readwrite #"), (), {Leak.READ_ACROSS, Leak.WRITE_ACROSS, Leak.WILL_ACROSS}),
        ((*ACL, "pattern read #"), (), {Leak.READ_ACROSS}),
        ((*ACL, "pattern read loa/1/node/+/plan"), (), {Leak.READ_ACROSS}),
        ((*ACL, "pattern write loa/1/node/+/status"), (), {Leak.WRITE_ACROSS, Leak.WILL_ACROSS}),
        ((*ACL, "pattern write loa/1/node/%u/plan"), (), {Leak.WRITE_ACROSS}),
        ((*ACL, "pattern write loa/1/unit/+/alert"), (), {Leak.WRITE_ACROSS}),
        (ACL, ("use_username_as_clientid false",), {Leak.TAKE_OVER}),
    ],
    ids=["all", "hash", "plans", "statuses", "own plan", "alerts", "take-over"],
)
async def test_a_hole_is_found_by_its_name(
    tmp_path: Path, acl: tuple[str, ...], extra: tuple[str, ...], leaks: set[Leak]
) -> None:
    real = RealGround(BrokerKind.MOSQUITTO, tmp_path / "broker", acl)
    assert isinstance(real.broker, MosquittoBroker)
    real.broker._extra = extra
    await real.start()
    bus = await real.bus()
    assert await look(ground_of(real, bus.publish), b"m") == leaks
    await real.close()


@no_mosquitto
async def test_an_open_door_is_found(tmp_path: Path) -> None:
    from broadcast_server.domain.errors import Refused

    real = RealGround(BrokerKind.MOSQUITTO, tmp_path / "broker", ACL)
    assert isinstance(real.broker, MosquittoBroker)
    real.broker._extra = ("use_username_as_clientid false", "allow_anonymous true")
    with pytest.raises(Refused, match="broker_open"):
        await real.start()
    await real.close()


@no_mosquitto
async def test_a_broker_that_delivers_nothing_does_not_pass(tmp_path: Path) -> None:
    real = RealGround(BrokerKind.MOSQUITTO, tmp_path / "broker", ("user server", "topic readwrite #"))
    await real.start()
    with pytest.raises(Unavailable, match="broker_canary_unheard"):
        await look(ground_of(real), b"m")
    await real.close()


async def test_amqtt_keeps_the_session_of_who_is_named_by_a_stranger(tmp_path: Path) -> None:
    """Its own fault: it deleted the session before it asked for the password."""
    from broadcast_server.mqtt.probe import Probe, try_connect

    real = RealGround(BrokerKind.AMQTT, tmp_path / "broker")
    address = await real.start()
    node = Login("node-a", PASSWORDS["node-a"], "node-a")
    a = await Probe.open(address.host, address.port, node)
    await a.subscribe(["loa/1/node/node-a/plan"])
    for rival in (Login(client_id="node-a"), Login("node-b", PASSWORDS["node-b"], "node-a")):
        assert await try_connect(address.host, address.port, rival) not in {0, None}
    server = await real.bus()
    await server.publish("loa/1/node/node-a/plan", b"for a", retain=True)
    assert await a.hears("loa/1/node/node-a/plan", b"for a")
    b = await Probe.open(address.host, address.port, Login("node-b", PASSWORDS["node-b"], "node-b"))
    await b.subscribe(["loa/1/node/node-b/plan"])
    await server.publish("loa/1/node/node-b/plan", b"for b")
    assert await b.hears("loa/1/node/node-b/plan", b"for b")
    assert {one.topic for one in b.heard} == {"loa/1/node/node-b/plan"}  # not what others wait for
    users = lines_of(PASSWORDS)
    del users["node-b"]
    await real.broker.set_users(users)
    with pytest.raises(Unavailable):
        await b.ping()
    await a.ping()
    await a.close()
    await b.vanish()
    await real.close()
