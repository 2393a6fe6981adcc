"""What a technician and a monitor ask of the machine itself."""

from datetime import timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter
from sqlalchemy import select

from broadcast_server.api.router import create_api
from broadcast_server.store import clocks, facts, leases
from broadcast_server.store.session import Session
from broadcast_server.store.tables import FeedRow, FeedStatusRow, GrantRow, JobRow, UnitKindRow, UnitRow, UserRow
from broadcast_server.store.words import FeedKind, FeedState, Role, Tier
from tests.support.api import a_client, a_token
from tests.support.clock import FakeClock
from tests.support.database import a_store
from tests.support.desk import a_bare_desk, a_desk_of


async def test_a_clock_in_doubt_is_seen_with_what_speaks_against_it():
    async with a_bare_desk() as desk, a_client(desk, token=await a_token(desk)) as client:
        now = desk.clock.now()
        said = {
            "at_ms": 0,
            "floor_ms": None,
            "host": "may-1",
            "is_trusted": False,
            "doubts": {"clock_stepped": 3600.0},
            "since_ms": 1_780_000_000_000,
            "step_s": 3600.0,
            "kernel_synchronised": None,
            "nodes_heard": 12,
        }
        await desk.store.begin(lambda session: clocks.put_beacon(session, "p1", said, now=now))
        told = (await client.get("/api/v1/system")).json()

    (clock,) = told["clocks"]
    assert (clock["host"], clock["is_trusted"], clock["doubts"]) == ("may-1", False, {"clock_stepped": 3600.0})


async def test_the_server_at_a_glance():
    async with a_bare_desk() as desk, a_client(desk, token=await a_token(desk)) as client:
        now = desk.clock.now()

        def as_the_engine_room_wrote_it(session: Session) -> None:
            session.add(UnitKindRow(code="province", name_vi="Tỉnh", name_en="Province"))
            session.flush()
            session.add(UnitRow(id="40", kind="province", name="Nghệ An", name_folded="nghe an", created_at=now))
            session.flush()
            lan = session.scalars(select(UserRow)).one()
            session.add(GrantRow(id="g1", user_id=lan.id, role=Role.TECHNICIAN, unit_id="40", valid_from=now))
            session.add(
                FeedRow(
                    id="f1",
                    unit_id="40",
                    name="Đài tỉnh (mô phỏng)",
                    name_folded="dai tinh (mo phong)",
                    tier=Tier.PROVINCE,
                    kind=FeedKind.PULL,
                    url="http://127.0.0.1:1/live.mp3",
                    created_at=now,
                )
            )
            session.flush()
            session.add(
                FeedStatusRow(feed_id="f1", state=FeedState.STALLED, reason="too_slow", since=now, seen_at=now, body={})
            )
            session.add(JobRow(name="backup", next_at=now + timedelta(hours=1), last_at=None, last_outcome=None))
            facts.put(session, facts.BROKER, {"kind": "mosquitto", "host": "127.0.0.1", "port": 1883}, now=now)
            leases.acquire(session, leases.LEADER, "server-1", now=now)

        await desk.store.begin(as_the_engine_room_wrote_it)
        told = (await client.get("/api/v1/system")).json()
        assert isinstance(desk.clock, FakeClock)
        await desk.clock.advance(leases.TTL / timedelta(seconds=1))
        later = (await client.get("/api/v1/system")).json()

    assert (told["broker"], told["database"], told["units"], told["nodes"]) == ("mosquitto", "sqlite", 1, 0)
    assert (told["leader"]["holder"], told["leader"]["epoch"], told["leader"]["is_in_force"]) == ("server-1", 1, True)
    assert later["leader"]["is_in_force"] is False
    assert [(feed["name"], feed["state"], feed["reason"]) for feed in told["feeds"]] == [
        ("Đài tỉnh (mô phỏng)", "stalled", "too_slow")
    ]
    assert "url" not in told["feeds"][0]
    assert [job["name"] for job in told["jobs"]] == ["backup"]


async def test_a_stranger_to_a_place_sees_the_machine_and_nothing_of_the_place():
    async with a_bare_desk() as desk, a_client(desk, token=await a_token(desk)) as client:
        now = desk.clock.now()

        def a_place(session: Session) -> None:
            session.add(UnitKindRow(code="province", name_vi="Tỉnh", name_en="Province"))
            session.flush()
            session.add(UnitRow(id="40", kind="province", name="Nghệ An", name_folded="nghe an", created_at=now))
            session.flush()
            facts.put(session, facts.BROKER, {"kind": "mosquitto", "host": "127.0.0.1", "port": 1883}, now=now)
            session.add(
                FeedRow(
                    id="f1",
                    unit_id="40",
                    name="Đài tỉnh (mô phỏng)",
                    name_folded="dai tinh (mo phong)",
                    tier=Tier.PROVINCE,
                    kind=FeedKind.PULL,
                    url="http://127.0.0.1:1/live.mp3",
                    created_at=now,
                )
            )

        await desk.store.begin(a_place)
        told = (await client.get("/api/v1/system")).json()

    assert (told["broker"], told["units"], told["feeds"]) == ("mosquitto", 0, [])


async def test_nobody_looks_into_the_machine_without_a_token():
    async with a_bare_desk() as desk, a_client(desk) as client:
        answer = await client.get("/api/v1/system")

    assert (answer.status_code, answer.json()["code"]) == (401, "token_missing")
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_ready_only_when_every_part_is():
    parts = {"broker": True, "conductor": False}
    async with a_bare_desk() as desk, a_client(desk, app=create_api(desk, parts=lambda: parts)) as client:
        not_yet = await client.get("/readyz")
        parts["conductor"] = True
        ready = await client.get("/readyz")
        alive = await client.get("/healthz")

    assert (not_yet.status_code, not_yet.json()["parts"]) == (503, {"store": True, "broker": True, "conductor": False})
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    assert alive.status_code == 200


async def test_alive_but_not_ready_without_the_database(tmp_path: Path):
    async with a_store(f"sqlite:///{tmp_path}/no/folder/loa.db", create=False) as store:
        desk = a_desk_of(store)
        async with a_client(desk, app=create_api(desk)) as client:
            ready, alive = await client.get("/readyz"), await client.get("/healthz")
            refused = await client.get("/api/v1/system", headers={"Authorization": "Bearer x"})

    assert (ready.status_code, ready.json()["parts"]) == (503, {"store": False})
    assert alive.status_code == 200
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert refused.headers["retry-after"]


async def test_counters_are_told_in_prometheus_form():
    registry = CollectorRegistry()
    Counter("loa_frames_late", "Frames that came too late", registry=registry).inc(3)
    async with a_bare_desk() as desk, a_client(desk, app=create_api(desk, registry=registry)) as client:
        answer = await client.get("/metrics")

    assert "loa_frames_late_total 3.0" in answer.text
    assert answer.headers["content-type"].startswith("text/plain")
