"""The broker is watched: a leak found later is told, kept in the audit log, and taken back when it is mended."""

from __future__ import annotations

from pathlib import Path

import pytest

from broadcast_server.domain.errors import Refused, Unavailable
from broadcast_server.mqtt.broker import CANARIES, BrokerKind, MosquittoBroker
from broadcast_server.mqtt.canary import Ground
from broadcast_server.mqtt.probe import Login
from broadcast_server.playout import wire
from broadcast_server.playout.broker_watch import BrokerWatch
from broadcast_server.store.tables import AuditRow
from broadcast_server.supervise import SystemChance, SystemClock
from tests.support.broker import RealGround, mosquitto_is_missing
from tests.support.database import a_store

pytestmark = pytest.mark.skipif(mosquitto_is_missing(), reason="mosquitto is not installed here")
ACL = wire.broker_acl("server")


def ground_of(real: RealGround) -> Ground:
    assert real.address is not None
    first, second = CANARIES
    canaries = ((first, real.broker.login(first)), (second, real.broker.login(second)))
    return Ground(real.address.host, real.address.port, SystemClock(), canaries, Login())


async def test_a_leak_is_told_audited_and_taken_back(tmp_path: Path) -> None:
    real = RealGround(BrokerKind.MOSQUITTO, tmp_path / "broker", ACL)
    await real.start()
    async with a_store() as store:
        watch = BrokerWatch(
            ground=lambda: ground_of(real), broker=real.broker, store=store, clock=store.clock, chance=SystemChance()
        )

        async def told() -> list[tuple[str, list[str]]]:
            return await store.read(
                lambda session: [
                    (row.verb, row.detail["leaks"]) for row in session.query(AuditRow).order_by(AuditRow.sequence)
                ]
            )

        await watch.check()
        assert await watch.attend() == "nodes are kept apart"
        assert (watch.is_isolated, await told()) == (True, [])
        assert isinstance(real.broker, MosquittoBroker)
        assert real.broker.pid is not None
        real.broker._acl = (*ACL, "pattern read #")
        real.broker._write_private(tmp_path / "broker" / "acl", "\n".join(real.broker._acl) + "\n")
        await real.broker._reload()
        for _ in range(2):
            assert await watch.attend() == "leaks: read_across"
        assert (watch.is_isolated, await told()) == (False, [("broker.leak", ["read_across"])])
        with pytest.raises(Refused) as refusal:
            await watch.check()
        assert (refusal.value.code, refusal.value.facts["leaks"]) == ("broker_leaks", "read_across")
        real.broker._write_private(tmp_path / "broker" / "acl", "\n".join(ACL) + "\n")
        await real.broker._reload()
        assert await watch.attend() == "nodes are kept apart"
        assert [verb for verb, _ in await told()] == ["broker.leak", "broker.tight"]
        assert watch.is_isolated
        ground = ground_of(real)
        await real.close()
        deaf = BrokerWatch(ground=lambda: ground, broker=None, store=store, clock=store.clock, chance=SystemChance())
        assert await deaf.attend() == "leaks: broker_canary_unheard"
        with pytest.raises(Unavailable):
            await deaf.check()
