"""A small real-looking country for tests: a province, two communes, a hamlet, and people who work there."""

from __future__ import annotations

from typing import Final

from broadcast_server.control import people, places
from broadcast_server.control.access import OPERATOR, Actor
from broadcast_server.control.desk import Desk
from broadcast_server.control.people import NewGrant
from broadcast_server.control.places import NewUnit
from broadcast_server.store import facts
from broadcast_server.store.session import Session
from broadcast_server.store.words import Role

COUNTRY: Final = "vn"
PROVINCE: Final = "40"
YEN_THANH: Final = "17506"
QUYNH_LUU: Final = "17179"
HAMLET: Final = "17506-01"


async def a_country(desk: Desk) -> None:
    """`vn` > Nghệ An > (Yên Thành > a hamlet, Quỳnh Lưu), since the two-tier reform; the server's facts told."""
    for unit in (
        NewUnit("country", "Việt Nam", None, COUNTRY),
        NewUnit("province", "Tỉnh Nghệ An", COUNTRY, PROVINCE),
        NewUnit("commune", "Xã Yên Thành", PROVINCE, YEN_THANH),
        NewUnit("commune", "Xã Quỳnh Lưu", PROVINCE, QUYNH_LUU),
        NewUnit("hamlet", "Xóm Đồng Đức", YEN_THANH, HAMLET),
    ):
        await places.create_unit(desk, OPERATOR, unit)
    await tell_facts(desk)


async def tell_facts(desk: Desk) -> None:
    """What the engine room tells at its start."""
    now = desk.clock.now()

    def write(session: Session) -> None:
        broker = {"host": "127.0.0.1", "port": 1883, "tls": False, "ca_pem": None}
        facts.put(session, facts.BROKER, broker, now=now)
        facts.put(session, facts.ROOT_PUBLIC_KEY, {"hex": "ab" * 32}, now=now)
        facts.put(session, facts.PUBLIC_URL, {"url": "http://127.0.0.1:8080"}, now=now)
        facts.put(session, facts.INGEST, {"host": "127.0.0.1", "port": 8010}, now=now)

    await desk.store.begin(write)


async def somebody(desk: Desk, role: Role, unit_id: str, login: str | None = None) -> Actor:
    """A person with one role at one place."""
    login = login or f"{role.value.replace('_', '-')}-{unit_id}"
    made = await people.add_user(desk, OPERATOR, login, login.title(), NewGrant(role, unit_id))
    return Actor(made.user.id, made.user.login)


async def a_token_of(desk: Desk, actor: Actor) -> str:
    """A bearer token for the person."""
    return (await people.create_token(desk, OPERATOR, actor.user_id, "test")).secret
