"""`server_kills`: the server is killed (SIGKILL) at random instants under load; nothing accepted is lost or done twice.

Two villages at once, each the real program on SQLite with a mosquitto that survives it, four nodes that sound, and an
office that writes schedules the whole time with an `Idempotency-Key` each and repeats whatever was not answered. What
counts: an accepted schedule is there once, an unanswered one at most once; what was accepted in time sounds on every
node once, by the nodes' own signed reports; the audit chain holds; and after each kill `/readyz` says yes soon.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from benchmarks.run import bar_of
from broadcast_server.mqtt.broker import find_mosquitto
from broadcast_server.supervise import Child
from simulation.samples import sample
from simulation.village import COMMUNE, Village, VillageError, free_port

KILLS = 200
VILLAGES = 2
NODES = 4
SLOT_S = 10.0
"""Between two schedules that sound; the sound itself takes 8 s."""
LEAD_S = 25.0
"""A schedule that sounds is written so long before its start: killed or not, the plan reaches the nodes meanwhile."""
WITHIN_S = 5.0
SETTLE_S = 5.0
SOON = timedelta(seconds=15)
LAST_WORDS_S = 40.0


@dataclass(slots=True)
class Office:
    """What was asked of the server, and what it answered."""

    accepted: dict[str, datetime | None] = field(default_factory=dict)
    """Names of accepted schedules; the instant for those that sound."""
    unanswered: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    repeated: int = 0


@contextlib.asynccontextmanager
async def a_broker(folder: Path, port: int) -> AsyncIterator[None]:
    """A mosquitto of its own process that the kills do not touch."""
    program, config = find_mosquitto(), _broker_config(folder, port)
    if program is None:
        raise VillageError("mosquitto is not installed")
    async with Child([str(program), "-c", str(config)], name="kills.mosquitto", stdout=False):
        yield


def _broker_config(folder: Path, port: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "mosquitto.conf"
    # Any user with any password, but nobody without a name: the server does not start on a broker that is open.
    who = "allow_anonymous true\nuse_username_as_clientid true"
    config.write_text(f"listener {port} 127.0.0.1\n{who}\nuser root\nset_tcp_nodelay true\n")
    return config


async def one_village(number: int, folder: Path, kills: int) -> dict[str, Any]:
    """`kills` kills of one server; what was found."""
    chance = random.Random(f"server_kills/{number}")
    port = free_port()
    async with a_broker(folder / "mosquitto", port), Village(folder, is_tls=False) as village:
        village.settings = {
            "LOA_BROKER__KIND": "external",
            "LOA_BROKER__PORT": str(port),
            "LOA_LOG_LEVEL": "warning",
        }
        await village.settle_in()
        await village.open_day_and_night()
        bulletin = await village.bulletin("Thông báo mô phỏng", sample("announcement_b").path)
        async with village.nodes(NODES, identity=folder / "nodes") as fleet:
            # Soon, so that the nodes hold the sound before anything is killed.
            await village.schedule(bulletin_id=bulletin, starts_at=datetime.now(UTC) + SOON, name="sẵn")
            await asyncio.sleep(SETTLE_S)
            await village.until_ready(NODES, fleet)
            office, stop = Office(), asyncio.Event()
            writing = asyncio.create_task(_write(village, office, bulletin, stop), name="kills.office")
            recovery_s = await _kill(village, kills, chance)
            stop.set()
            await writing
            last = max((at for at in office.accepted.values() if at is not None), default=datetime.now(UTC))
            await asyncio.sleep(max(0.0, (last - datetime.now(UTC)).total_seconds()) + SLOT_S)
            await _until_judged(village)
            there = await _names(village)
            await fleet.terminate()
        await village.stop_server()
        audit = await village.command("audit", "verify")
    return {**_judge(office, there, folder), "recovery_s": recovery_s, "audit": audit}


async def _write(village: Village, office: Office, bulletin: str, stop: asyncio.Event) -> None:
    """Write schedules until told to stop; whatever is not answered is asked again under its key."""
    next_start = datetime.now(UTC) + timedelta(seconds=LEAD_S)
    far = datetime.now(UTC) + timedelta(days=2)
    async with httpx.AsyncClient(base_url=village.url, timeout=5.0) as client:
        client.headers["Authorization"] = f"Bearer {village.token}"
        while not stop.is_set():
            office.asked += 1
            name = f"kt-{office.asked}"
            is_near = datetime.now(UTC) + timedelta(seconds=LEAD_S) >= next_start
            if is_near:
                starts_at = max(next_start, datetime.now(UTC) + timedelta(seconds=LEAD_S))
                next_start = starts_at + timedelta(seconds=SLOT_S)
            else:
                starts_at = far = far + timedelta(seconds=SLOT_S)
            form = {
                "unit_id": COMMUNE,
                "bulletin_id": bulletin,
                "name": name,
                "starts_at": starts_at.isoformat(),
                "accept_conflicts": True,
            }
            status = await _ask(client, form, office)
            if status == 201:
                # What was accepted only shortly before its start may lack the time to reach the nodes of a dead server.
                in_time = starts_at - datetime.now(UTC) > timedelta(seconds=LEAD_S / 2)
                office.accepted[name] = starts_at if is_near and in_time else None
            elif status == 409:
                office.unanswered.add(name)
            else:
                office.refused[str(status)] += 1


async def _ask(client: httpx.AsyncClient, form: dict[str, Any], office: Office) -> int:
    key = f"{form['name']}-key"
    while True:
        try:
            answer = await client.post("/api/v1/schedules", json=form, headers={"Idempotency-Key": key})
        except httpx.HTTPError:
            office.repeated += 1
            await asyncio.sleep(0.05)
            continue
        if answer.status_code == 503:
            await asyncio.sleep(0.05)
            continue
        return answer.status_code


async def _kill(village: Village, kills: int, chance: random.Random) -> list[float]:
    """Kill it again and again, some times while it starts; seconds from each start to `/readyz`."""
    recovery_s = []
    for _ in range(kills):
        if chance.random() < 0.15:
            await _kill_while_starting(village, chance)
        else:
            await asyncio.sleep(chance.uniform(0.0, 1.5))
            await _sigkill(village)
        started = time.perf_counter()
        await village.start_server()
        recovery_s.append(time.perf_counter() - started)
    return recovery_s


async def _kill_while_starting(village: Village, chance: random.Random) -> None:
    await _sigkill(village)
    starting = asyncio.create_task(village.start_server(), name="kills.start")
    await asyncio.sleep(chance.uniform(0.1, 2.0))
    await _sigkill(village)
    with contextlib.suppress(VillageError):
        await starting


async def _sigkill(village: Village) -> None:
    server = village.server
    if server is not None:
        server.send_signal(signal.SIGKILL)
        await server.wait()


async def _until_judged(village: Village) -> None:
    """Until no line of the play log waits for a report, at most for `LAST_WORDS_S`."""
    deadline_s = time.monotonic() + LAST_WORDS_S
    while time.monotonic() < deadline_s:
        await asyncio.sleep(1.0)
        with contextlib.closing(sqlite3.connect(village.folder / "data" / "loa.sqlite")) as store:
            open_lines = "SELECT count(*) FROM plays WHERE judged_at IS NULL OR verdict = 'unknown'"
            (waiting,) = store.execute(open_lines).fetchone()
        if not waiting:
            return


async def _names(village: Village) -> Counter[str]:
    found: Counter[str] = Counter()
    cursor = ""
    while True:
        page = await village.ask("GET", f"/schedules?limit=200{cursor}")
        found.update(each["name"] for each in page["items"])
        if page["next"] is None:
            return found
        cursor = f"&cursor={page['next']}"


def _judge(office: Office, there: Counter[str], folder: Path) -> dict[str, Any]:
    lost = [name for name in office.accepted if there[name] == 0]
    doubled = [name for name, count in there.items() if name.startswith("kt-") and count > 1]
    invented = [
        name for name in there if name.startswith("kt-") and name not in office.accepted.keys() | office.unanswered
    ]
    due = {name: at for name, at in office.accepted.items() if at is not None}
    with contextlib.closing(sqlite3.connect(folder / "data" / "loa.sqlite")) as store:
        ids = dict(store.execute("SELECT name, id FROM schedules WHERE name LIKE 'kt-%'").fetchall())
        verdicts: dict[tuple[str, str], list[str]] = {}
        for schedule, node, *verdict in store.execute(
            "SELECT b.schedule_id, p.node_id, p.verdict, p.reason, p.heard_ms, p.started_at, p.starts_at"
            " FROM plays p JOIN broadcasts b ON b.id = p.broadcast_id"
        ):
            verdicts.setdefault((schedule, node), []).append(" ".join(map(str, verdict)))
        nodes = [row[0] for row in store.execute("SELECT id FROM nodes")]
        heard: Counter[tuple[str, str]] = Counter()
        for entry, node, body in store.execute("SELECT entry_id, node_id, body FROM reports"):
            if '"finished"' in body:
                heard[entry.partition("@")[0], node] += 1
    pairs = [(ids[name], node) for name in due if name in ids for node in nodes]
    return {
        "schedules_accepted": len(office.accepted),
        "schedules_unanswered": len(office.unanswered),
        "requests_repeated": office.repeated,
        "refused": dict(office.refused),
        "lost": lost,
        "doubled": doubled,
        "invented": invented,
        "due_on_nodes": len(pairs),
        "not_played": [(pair, verdicts.get(pair)) for pair in pairs if not _is_played(verdicts.get(pair, []))],
        "played_twice": [(pair, verdicts[pair]) for pair in pairs if heard[pair] > 1],
    }


def _is_played(verdicts: list[str]) -> bool:
    return any(each.startswith("played") for each in verdicts)


async def measure(folder: Path, kills: int = KILLS) -> list[dict[str, Any]]:
    """Both villages."""
    shares = [kills // VILLAGES + (number < kills % VILLAGES) for number in range(VILLAGES)]
    villages = [one_village(number, folder / f"v{number}", share) for number, share in enumerate(shares)]
    return list(await asyncio.gather(*villages))


def run() -> dict[str, Any]:
    """See the module."""
    with tempfile.TemporaryDirectory(prefix="loa-server-kills-") as folder:
        found = asyncio.run(measure(Path(folder)))
    recovery_s = sorted(each for village in found for each in village["recovery_s"])
    names = ("lost", "doubled", "invented", "not_played", "played_twice")
    violations = {name: sum(len(village[name]) for village in found) for name in names}
    figures = {
        "attempted": len(recovery_s),
        "ok": len(recovery_s),
        "violations": sum(violations.values()),
        **violations,
        "schedules_accepted": sum(village["schedules_accepted"] for village in found),
        "schedules_unanswered": sum(village["schedules_unanswered"] for village in found),
        "requests_repeated": sum(village["requests_repeated"] for village in found),
        "due_on_nodes": sum(village["due_on_nodes"] for village in found),
        "recovery_s_p50": round(recovery_s[len(recovery_s) // 2], 2),
        "recovery_s_max": round(recovery_s[-1], 2),
        "audit": [village["audit"] for village in found],
        "examples": {name: [village[name][:3] for village in found] for name in names if violations[name]},
    }
    due = figures["due_on_nodes"]
    return {
        "name": "server_kills",
        "figures": figures,
        "bars": [
            bar_of("kills", len(recovery_s), f">= {KILLS}", holds=len(recovery_s) >= KILLS),
            bar_of("accepted and lost", violations["lost"], 0, holds=violations["lost"] == 0),
            bar_of("there twice", violations["doubled"], 0, holds=violations["doubled"] == 0),
            bar_of("due and not played once", violations["not_played"] + violations["played_twice"], f"0 of {due}",
                   holds=due > 0 and violations["not_played"] + violations["played_twice"] == 0),
            bar_of("recovery, worst, s", figures["recovery_s_max"], WITHIN_S,
                   holds=figures["recovery_s_max"] <= WITHIN_S),
        ],
    }  # fmt: skip
