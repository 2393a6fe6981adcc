"""`plan`: from rows to signed plans published, for 10 000 nodes in 100 target sets, a week of 20 items a day.

The real planner, conductor, signing process and mosquitto; the rows are written straight into a fresh SQLite store. The
relay engine is a stand-in that runs nothing: no item of this benchmark is a relay.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as wall
from pathlib import Path
from typing import Any

from sqlalchemy import update

from broadcast_server.domain.recurrence import Rule, Weekly, rule_to_dict
from broadcast_server.mqtt.broker import SALT_BYTES, MosquittoBroker, password_line
from broadcast_server.mqtt.paho_bus import PahoBus
from broadcast_server.playout import wire
from broadcast_server.playout.conductor import Conductor
from broadcast_server.playout.configs import StationFacts
from broadcast_server.playout.planner import Planner
from broadcast_server.signer.child import POLICY, SignerChild
from broadcast_server.signer.config import Config
from broadcast_server.signer.door import SignerDoor
from broadcast_server.store import places
from broadcast_server.store.migrations import migrate
from broadcast_server.store.session import Session, Store
from broadcast_server.store.tables import (
    AssetRow,
    BulletinRow,
    BulletinVersionRow,
    ClusterRow,
    NodeRow,
    ScheduleRow,
    ScheduleTargetRow,
    UnitLinkRow,
    UnitRow,
)
from broadcast_server.store.words import ContentKind, MediaKind, ScheduleKind, ScheduleState, VersionState
from broadcast_server.supervise import Supervisor, SystemChance, SystemClock, ThreadExecutor, usage_of
from speaker_protocol.rules import BulletinClass, Level

COMMUNES = 100
NODES_EACH = 100
ITEMS_A_DAY = 20
REPEATS = 5


class NoRelay:
    """An engine for a plan without relays."""

    async def reconcile(self, desired: Mapping[str, Any], *, ending: str = "") -> None:  # noqa: ARG002
        """Nothing is wanted here."""
        assert not desired


@dataclass(slots=True)
class Rig:
    """What is measured."""

    store: Store
    conductor: Conductor
    broker: MosquittoBroker
    signer: SignerChild


def fill(session: Session, now: datetime) -> None:
    """A province of communes; each commune hears 20 bulletins a day of its own."""
    places.ensure_kinds(session)
    session.flush()
    words = {"unit_id": "tinh", "created_by": "bench", "created_at": now}
    session.add(UnitRow(id="tinh", kind="province", name="Tỉnh mô phỏng", name_folded="tinh mo phong", created_at=now))
    session.flush()
    for number in range(COMMUNES):
        unit = f"xa-{number}"
        session.add(UnitRow(id=unit, kind="commune", name=f"Xã {number}", name_folded=f"xa {number}", created_at=now))
    session.flush()
    for number in range(COMMUNES):
        session.add(UnitLinkRow(id=f"l{number}", unit_id=f"xa-{number}", parent_id="tinh", valid_from=date(2025, 7, 1)))
    for number in range(ITEMS_A_DAY):
        sha256 = f"{number:064x}"
        session.add(
            AssetRow(
                sha256=sha256, unit_id="tinh", label="", size_bytes=90_000, duration_ms=30_000, report={}, cues=[],
                created_at=now, keep_until=None, collected_at=None,
            )
        )  # fmt: skip
        session.flush()
        bulletin = f"b{number}"
        session.add(
            BulletinRow(
                id=bulletin, title=f"Bản tin {number}", title_folded=f"ban tin {number}", klass=BulletinClass.NORMAL,
                subject=None, valid_from=None, valid_to=None, **words,
            )
        )  # fmt: skip
        session.flush()
        session.add(
            BulletinVersionRow(
                id=f"v{number}", bulletin_id=bulletin, number=1, language="vie", media=MediaKind.AUDIO, text=None,
                voice=None, asset_sha256=sha256, content_hash=sha256, state=VersionState.APPROVED, approved_by="bench",
                approved_at=now, approved_hash=sha256, created_by="bench", created_at=now,
            )
        )  # fmt: skip
    session.flush()
    for commune in range(COMMUNES):
        for number in range(ITEMS_A_DAY):
            at = wall(5 + number // 2, 30 * (number % 2), commune % 60)
            session.add(_schedule(f"s{commune}-{number}", f"xa-{commune}", number, at, now))
        session.flush()
        for number in range(ITEMS_A_DAY):
            session.add(ScheduleTargetRow(schedule_id=f"s{commune}-{number}", kind="unit", ref=f"xa-{commune}"))
        for number in range(NODES_EACH):
            key = f"{commune:03d}{number:03d}"
            session.add(
                ClusterRow(
                    id=f"c{key}", unit_id=f"xa-{commune}", code=key, name=key, name_folded=key, latitude=None,
                    longitude=None, config={}, created_at=now, retired_at=None,
                )
            )  # fmt: skip
        session.flush()
        for number in range(NODES_EACH):
            key = f"{commune:03d}{number:03d}"
            session.add(
                NodeRow(
                    id=f"n{key}", unit_id=f"xa-{commune}", cluster_id=f"c{key}", public_key=key.zfill(64), hardware="",
                    firmware="", broker_password_line="", asset_token_hash=key, enrolled_at=now, retired_at=None,
                )
            )  # fmt: skip
        session.flush()
        session.expunge_all()


def _schedule(schedule_id: str, unit_id: str, number: int, at: wall, now: datetime) -> ScheduleRow:
    return ScheduleRow(
        id=schedule_id, series_id=schedule_id, unit_id=unit_id, name=schedule_id, kind=ScheduleKind.ANNOUNCEMENT,
        klass=BulletinClass.NORMAL, level=Level.NORMAL, content_kind=ContentKind.BULLETIN, content_id=f"b{number}",
        language="vie", rule=rule_to_dict(Rule(Weekly(frozenset(range(7)), (at,)))), length_ms=None, max_wait_ms=0,
        late={}, tie_order=0, gain_db=0.0, required=False, state=ScheduleState.ACTIVE, starts_at=now -
        timedelta(days=2), ends_at=None, created_by="bench", created_at=now,
    )  # fmt: skip


@asynccontextmanager
async def rig(folder: Path) -> AsyncIterator[Rig]:
    """Store, broker and conductor over 10 000 nodes."""
    clock, chance = SystemClock(), SystemChance()
    async with AsyncExitStack() as stack:
        url = f"sqlite:///{folder / 'bench.sqlite'}"
        migrate(url)
        threads = ThreadExecutor(3, name="store")
        stack.callback(threads.close)
        store = Store(url, clock=clock, chance=chance, executor=threads)
        stack.push_async_callback(store.close)
        await store.begin(lambda session: fill(session, clock.now()))
        supervisor = await stack.enter_async_context(Supervisor(clock=clock, chance=chance))
        line = password_line("server", "bench", chance.token_bytes(SALT_BYTES))
        broker = MosquittoBroker(
            data_dir=folder / "broker",
            acl=wire.broker_acl("server"),
            supervisor=supervisor,
            clock=clock,
            chance=chance,
            users={"server": line},
        )
        address = await broker.start()
        stack.push_async_callback(broker.close)
        bus = PahoBus(address.host, address.port, clock=clock, chance=chance, user="server", password="bench")
        await bus.start()
        stack.push_async_callback(bus.close)
        config = Config(
            store_url=url,
            keys=folder / "keys",
            answering=folder / "time-key",
            socket=folder / "signer.sock",
            mode=0o600,
            user=None,
            allowed=(),
            until_eof=True,
            log_json=True,
            log_level="warning",
        )
        signer = SignerDoor(config.socket, clock)
        stack.push_async_callback(signer.close)
        child = SignerChild(config, signer, clock)
        supervisor.keep("signer", child.run, POLICY)
        await signer.reached(20)
        conductor = Conductor(
            name="bench",
            store=store,
            bus=bus,
            signer=signer,
            engine=NoRelay(),
            planner=Planner(plan_days=8),
            clock=clock,
            chance=chance,
            facts=StationFacts(assets_url="http://127.0.0.1/api/v1/assets", status_interval_s=30),
            lease_s=600,
        )
        yield Rig(store, conductor, broker, child)
        await conductor.close()


async def measure(folder: Path) -> dict[str, Any]:
    """The figures: seconds by the wall, medians where it can be repeated."""
    async with rig(folder) as at:
        gc.collect()
        before_bytes = _rss_bytes()
        cold_s = await _ticked(at, "")
        await at.store.begin(lambda session: session.execute(update(ScheduleRow).values(state=ScheduleState.CANCELLED)))
        await _ticked(at, "")
        await at.store.begin(lambda session: session.execute(update(ScheduleRow).values(state=ScheduleState.ACTIVE)))
        first_s = await _ticked(at, "")
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        one_set_s = [await _ticked(at, f"s{number}-0", gain_db=-1.0) for number in range(REPEATS)]
        all_sets_s = [await _ticked(at, "s%-0", gain_db=-2.0 - number) for number in range(REPEATS)]
        assert at.broker.pid is not None
        broker = usage_of(at.broker.pid)
        assert at.signer.pid is not None
        signer = usage_of(at.signer.pid)
        desired = at.conductor.desired
        assert desired is not None
        sizes = [len(target.packed) for target in desired.targets]
        return {
            "nodes": sum(len(target.seats) for target in desired.targets),
            "target_sets": len(desired.targets),
            "segments_each": len(desired.targets[0].plan.segments),
            "body_bytes_median": statistics.median(sizes),
            "first_publication_s": round(first_s, 3),
            "cold_start_with_keys_and_configs_s": round(cold_s, 3),
            "one_schedule_of_one_set_s": round(statistics.median(one_set_s), 3),
            "one_schedule_of_every_set_s": round(statistics.median(all_sets_s), 3),
            "peak_memory_mb": round(peak_bytes / 1e6, 1),
            "memory_before_mb": round(before_bytes / 1e6, 1),
            "signer_memory_mb": round((signer.peak_rss_bytes if signer else 0) / 1e6, 1),
            "signer_cpu_s": round(signer.cpu_s if signer else 0.0, 1),
            "broker_memory_mb": round((broker.rss_bytes if broker else 0) / 1e6, 1),
        }


async def _ticked(at: Rig, schedule: str, *, gain_db: float = 0.0) -> float:
    """Change what `schedule` names (LIKE), then the seconds until everything is signed, sent and acknowledged."""
    if schedule:

        def change(session: Session) -> None:
            session.execute(
                update(ScheduleRow)
                .where(ScheduleRow.id.like(schedule))
                .values(gain_db=gain_db, version=ScheduleRow.version + 1)
            )

        await at.store.begin(change)
    at.conductor.ring()
    started = time.perf_counter()
    await at.conductor.tick()
    return time.perf_counter() - started


def _rss_bytes() -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def run() -> dict[str, Any]:
    """See the module."""
    with tempfile.TemporaryDirectory(prefix="loa-plan-") as folder:
        figures = asyncio.run(measure(Path(folder)))
    bars = [
        ("rows to signed plans published, s", "first_publication_s", 5.0),
        ("memory of the process, MB", "peak_memory_mb", 300.0),
        ("one schedule of one set (100 nodes), s", "one_schedule_of_one_set_s", 0.2),
        ("one schedule of all 10 000 nodes, s", "one_schedule_of_every_set_s", 3.0),
    ]
    return {
        "name": "plan",
        "figures": figures,
        "bars": [
            {"what": what, "value": figures[name], "bar": bar, "holds": figures[name] <= bar}
            for what, name, bar in bars
        ],
    }
