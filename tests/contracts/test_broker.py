"""The embedded brokers keep strangers out, follow their users, and mosquitto comes back when it is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broadcast_server.domain.errors import Invalid, Refused, Unavailable
from broadcast_server.mqtt.broker import (
    AccessRules,
    BrokerKind,
    MosquittoBroker,
    choose_broker,
    find_mosquitto,
    password_is_right,
    password_line,
)
from broadcast_server.mqtt.paho_bus import MAX_PAYLOAD_BYTES
from broadcast_server.mqtt.probe import Login, try_connect
from broadcast_server.supervise import Child, Supervisor, SystemChance, SystemClock
from tests.support.broker import ACL, PASSWORDS, Ear, RealGround, lines_of, mosquitto_is_missing
from tests.support.until import until

no_mosquitto = pytest.mark.skipif(mosquitto_is_missing(), reason="mosquitto is not installed here")


@pytest.fixture(params=[pytest.param("mosquitto", marks=no_mosquitto), "amqtt"])
async def ground(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RealGround]:
    real = RealGround(BrokerKind(request.param), tmp_path / "broker")
    await real.start()
    yield real
    await real.close()


async def knock(ground: RealGround, user: str | None, password: str | None) -> int | None:
    assert ground.address is not None
    return await try_connect(ground.address.host, ground.address.port, Login(user, password, user or "loa-check"))


async def test_only_who_knows_a_password_gets_in(ground: RealGround) -> None:
    assert await knock(ground, "server", "server-secret") == 0
    for user, password in [(None, None), ("server", None), ("server", "guessed"), ("stranger", "server-secret")]:
        assert await knock(ground, user, password) != 0


async def test_a_node_enrolled_now_gets_in_now_and_one_struck_off_does_not(ground: RealGround) -> None:
    fresh = {**PASSWORDS, "node-c": "c-secret"}
    del fresh["node-b"]
    await ground.broker.set_users(lines_of(fresh))
    assert await knock(ground, "node-c", "c-secret") == 0
    assert await knock(ground, "node-b", "b-secret") != 0


async def test_many_changes_of_users_in_a_moment_all_hold(ground: RealGround) -> None:
    grown = [{**PASSWORDS, **{f"node-{number}": "x" for number in range(count)}} for count in range(1, 6)]
    await asyncio.gather(*(ground.broker.set_users(lines_of(users)) for users in grown))
    assert await knock(ground, "node-4", "x") == 0
    assert ground.broker.restarts == 0


@no_mosquitto
async def test_a_killed_mosquitto_is_back_within_two_seconds_on_the_same_port(tmp_path: Path) -> None:
    ground = RealGround(BrokerKind.MOSQUITTO, tmp_path / "broker")
    await ground.start()
    server, node, ear = await ground.bus(), await ground.bus("node-a"), Ear()
    node.subscribe("loa/1/node/node-a/plan", ear)
    server.on_connected(lambda: None)
    assert isinstance(ground.broker, MosquittoBroker)
    assert ground.broker.pid is not None
    os.kill(ground.broker.pid, signal.SIGKILL)
    killed_s = time.monotonic()
    await until(lambda: ground.broker.restarts == 1)
    await until(lambda: server.connects == 2 and node.connects == 2)
    assert time.monotonic() - killed_s < 2.0
    await server.publish("loa/1/node/node-a/plan", b"again", retain=True)
    await ear.hears(1)
    await ground.close()


@no_mosquitto
async def test_users_changed_while_mosquitto_is_down_hold_when_it_is_back(tmp_path: Path) -> None:
    ground = RealGround(BrokerKind.MOSQUITTO, tmp_path / "broker")
    await ground.start()
    assert isinstance(ground.broker, MosquittoBroker)
    assert ground.broker.pid is not None
    os.kill(ground.broker.pid, signal.SIGKILL)
    await ground.broker.set_users(lines_of({**PASSWORDS, "node-c": "c-secret"}))
    await until(lambda: ground.broker.restarts == 1)

    async def gets_in() -> bool:
        return await knock(ground, "node-c", "c-secret") == 0

    await until(gets_in)
    await ground.close()


@no_mosquitto
async def test_a_broker_that_lets_strangers_in_is_not_taken_into_service(tmp_path: Path) -> None:
    clock, chance = SystemClock(), SystemChance()
    async with Supervisor(clock=clock, chance=chance) as supervisor:
        broker = MosquittoBroker(
            data_dir=tmp_path / "broker",
            acl=ACL,
            supervisor=supervisor,
            clock=clock,
            chance=chance,
            extra=("allow_anonymous true", "use_username_as_clientid false"),
        )
        with pytest.raises(Refused) as refusal:
            await broker.start()
        assert refusal.value.code == "broker_open"
        await broker.close()


@no_mosquitto
async def test_a_port_that_is_taken_is_told_with_the_brokers_own_words(tmp_path: Path) -> None:
    clock, chance = SystemClock(), SystemChance()
    taken = RealGround(BrokerKind.MOSQUITTO, tmp_path / "first")
    address = await taken.start()
    async with Supervisor(clock=clock, chance=chance) as supervisor:
        broker = MosquittoBroker(
            data_dir=tmp_path / "second", acl=ACL, supervisor=supervisor, clock=clock, chance=chance, port=address.port
        )
        with pytest.raises(Unavailable) as failure:
            await broker.start()
        assert failure.value.code == "broker_failed"
        assert "in use" in str(failure.value.facts["said"])
        await broker.close()
    await taken.close()


@no_mosquitto
async def test_an_orphan_of_a_killed_server_is_ended_and_its_port_taken_over(tmp_path: Path) -> None:
    first = RealGround(BrokerKind.MOSQUITTO, tmp_path / "broker")
    address = await first.start()
    await first.close()
    program, conf = find_mosquitto(), tmp_path / "broker" / "mosquitto.conf"
    assert program is not None
    async with Child([program, "-c", conf], name="orphan", stdout=False) as orphan:
        (tmp_path / "broker" / "mosquitto.pid").write_text(f"{orphan.pid}\n")

        async def answers() -> bool:
            return await knock(first, "server", "server-secret") == 0

        await until(answers)
        second = RealGround(BrokerKind.MOSQUITTO, tmp_path / "broker")
        second.broker = second._make(address.port)
        assert await second.start() == address
        assert await orphan.wait() == -signal.SIGKILL
        await second.close()


@no_mosquitto
async def test_what_mosquitto_reads_is_for_our_eyes_only(tmp_path: Path) -> None:
    ground = RealGround(BrokerKind.MOSQUITTO, tmp_path / "broker")
    await ground.start()
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "broker").iterdir()} == {
        "acl": "0o600",
        "mosquitto.conf": "0o600",
        "mosquitto.pid": "0o644",
        "passwords": "0o600",
    }
    text = (tmp_path / "broker" / "mosquitto.conf").read_text()
    assert "allow_anonymous false" in text
    assert "use_username_as_clientid true" in text
    assert ("user root" in text) == (os.geteuid() == 0)
    await ground.close()


@no_mosquitto
async def test_a_broker_that_hangs_is_given_up_and_taken_back_when_it_answers(tmp_path: Path) -> None:
    ground = RealGround(BrokerKind.MOSQUITTO, tmp_path / "broker")
    await ground.start()
    server = await ground.bus(ack_timeout_s=0.2)
    assert isinstance(ground.broker, MosquittoBroker)
    assert ground.broker.pid is not None
    os.kill(ground.broker.pid, signal.SIGSTOP)
    with pytest.raises(Unavailable) as failure:
        await server.publish("loa/1/node/node-a/plan", b"x", retain=True)
    assert failure.value.code == "broker_silent"
    await until(lambda: not server.connected)
    os.kill(ground.broker.pid, signal.SIGCONT)
    await until(lambda: server.connected)
    await server.publish("loa/1/node/node-a/plan", b"y", retain=True)
    await ground.close()


@no_mosquitto
async def test_a_message_the_broker_would_not_take_is_refused_before_it_costs_the_connection(tmp_path: Path) -> None:
    ground = RealGround(BrokerKind.MOSQUITTO, tmp_path / "broker")
    await ground.start()
    server, ear = await ground.bus(), Ear()
    server.subscribe("loa/1/node/+/plan", ear)
    with pytest.raises(Invalid) as refusal:
        await server.publish("loa/1/node/node-a/plan", b"x" * (MAX_PAYLOAD_BYTES + 1))
    assert refusal.value.code == "message_too_large"
    await server.publish("loa/1/node/node-a/plan", b"x" * MAX_PAYLOAD_BYTES)
    await ear.hears(1)
    assert server.connects == 1
    await ground.close()


def test_a_password_line_is_what_mosquitto_passwd_would_write() -> None:
    line = password_line("node-a", "a-secret", b"0123456789ab")
    user, _, told = line.partition(":")
    assert user == "node-a"
    assert told.startswith("$7$101$MDEyMzQ1Njc4OWFi$")
    assert password_is_right(line, "a-secret")
    assert not password_is_right(line, "b-secret")
    assert not password_is_right("node-a:nonsense", "a-secret")


@pytest.mark.parametrize("user", ["", "+", "a/b", "#", "a:b", "a\nb", "loa đài", "x" * 65])
def test_a_name_that_would_widen_a_right_is_refused(user: str) -> None:
    with pytest.raises(Invalid):
        password_line(user, "secret", b"0123456789ab")


def test_rights_are_read_as_mosquitto_reads_them() -> None:
    rules = AccessRules(ACL)
    assert rules.may("server", "write", "loa/1/node/node-a/plan")
    assert rules.may("node-a", "read", "loa/1/node/node-a/plan")
    assert rules.may("node-a", "read", "loa/1/unit/u9/alert")
    assert not rules.may("node-a", "write", "loa/1/node/node-a/plan")
    assert not rules.may("node-a", "read", "loa/1/node/node-b/plan")
    assert not rules.may("node-a", "write", "loa/1/unit/u9/alert")
    assert rules.may_subscribe("node-a", "loa/1/unit/+/alert")
    assert not rules.may_subscribe("node-a", "loa/1/#")
    assert not rules.may_subscribe("node-a", "loa/1/node/+/plan")
    with pytest.raises(Invalid):
        AccessRules(["topic read a"])


def test_the_choice_of_broker_says_why() -> None:
    wanted = choose_broker(BrokerKind.AMQTT)
    assert (wanted.kind, wanted.code, wanted.nodes_max) == (BrokerKind.AMQTT, "broker_amqtt_wanted", 50)
    found = choose_broker()
    if mosquitto_is_missing():
        assert (found.kind, found.code) == (BrokerKind.AMQTT, "broker_amqtt_trial")
    else:
        assert (found.kind, found.code, found.nodes_max) == (BrokerKind.MOSQUITTO, "broker_mosquitto", None)
