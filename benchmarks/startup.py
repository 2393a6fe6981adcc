"""`startup`: how soon a server with the whole country's places is ready, and what it weighs with a province's nodes
on it.

The real program as a process on a migrated store with 3 321 communes; two pulled feeds relayed to a simulated fleet.
The server's own memory is judged; its children (broker, decoders) are printed apart.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from broadcast_server.supervise import SystemClock, usage_of
from simulation.radio import Station
from simulation.village import COMMUNE, PROVINCE, Village

NODES = 1_000
STARTS = 5


async def measure(folder: Path) -> dict[str, Any]:
    """The figures: seconds by the wall, memory as resident now."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        stations = [
            await stack.enter_async_context(Station.of_sample(name)) for name in ("station_pull", "station_push")
        ]
        village = await stack.enter_async_context(Village(folder))
        village.settings = {"LOA_RELAY__ALLOW_PRIVATE": json.dumps([station.authority for station in stations])}
        await village.settle_in()
        await village.stop_server()
        imported = await village.command("place", "import-vietnam")
        ready_s = []
        for _ in range(STARTS):
            started = time.perf_counter()
            await village.start_server()
            ready_s.append(time.perf_counter() - started)
            if len(ready_s) < STARTS:
                await village.stop_server()
        await village.open_day_and_night()
        feeds = []
        for number, station in enumerate(stations):
            told = {"kind": "pull", "url": station.url, "tier": "province", "name": f"Đài mô phỏng {number}"}
            made = await village.ask("POST", "/feeds", by=village.editor_token, unit_id=PROVINCE, **told)
            offer = {"unit_id": COMMUNE, "basis": "Mô phỏng"}
            await village.ask("POST", f"/feeds/{made['id']}/offers", by=village.editor_token, **offer)
            feeds.append(made["id"])
        arguments = ["--listen", "0"]
        fleet = await stack.enter_async_context(village.nodes(NODES, identity=folder / "nodes", arguments=arguments))
        await _until_online(village, NODES, clock)
        starts = datetime.now(UTC) + timedelta(seconds=5)
        for number, feed in enumerate(feeds):
            # Both are relayed at once: the second to one cluster, so that neither waits for the other.
            targets = await _targets(village, number)
            await village.schedule(feed_id=feed, starts_at=starts, length_s=60, targets=targets)
        await clock.sleep(25)
        assert village.server is not None
        assert village.server.pid is not None
        server = usage_of(village.server.pid)
        children = {name: usage.rss_bytes for name, usage in _children(village.server.pid)}
        assert server is not None
        assert fleet.returncode is None
        return {
            "communes": imported.get("communes", 0),
            "nodes_online": NODES,
            "streams": len(feeds),
            "ready_s_median": round(statistics.median(ready_s), 2),
            "ready_s_all": [round(each, 2) for each in ready_s],
            "server_mb": round(server.rss_bytes / 1e6, 1),
            "server_peak_mb": round(server.peak_rss_bytes / 1e6, 1),
            "children_mb": {name: round(size / 1e6, 1) for name, size in children.items()},
        }


async def _until_online(village: Village, count: int, clock: SystemClock) -> None:
    deadline_s = clock.monotonic() + 240
    while True:
        seen, cursor = 0, ""
        while True:
            page = await village.ask("GET", f"/nodes?limit=200&link=online{cursor}")
            seen += len(page["items"])
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        if seen >= count:
            return
        if clock.monotonic() > deadline_s:
            raise TimeoutError(f"{seen} of {count} nodes are online\n{village.last_words()}")
        await clock.sleep(2)


async def _targets(village: Village, number: int) -> list[dict[str, str]]:
    """Other clusters for each feed: the first 200 but one, and that one."""
    page = await village.ask("GET", "/clusters?limit=200")
    refs = [cluster["id"] for cluster in page["items"]]
    return [{"kind": "cluster", "ref": ref} for ref in (refs[1:] if number == 0 else refs[:1])]


def _children(pid: int) -> list[tuple[str, Any]]:
    """Name and usage of every process below `pid`."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text("ascii").split():
            name = Path(f"/proc/{child}/comm").read_text("ascii").strip()
            usage = usage_of(int(child))
            if usage is not None:
                found.append((f"{name}[{child}]", usage))
            found += _children(int(child))
    return found


def run() -> dict[str, Any]:
    """See the module."""
    with tempfile.TemporaryDirectory(prefix="loa-startup-") as folder:
        figures = asyncio.run(measure(Path(folder)))
    bars = [("/readyz, s", "ready_s_median", 3.0), ("memory of the server process, MB", "server_mb", 220.0)]
    return {
        "name": "startup",
        "figures": figures,
        "bars": [
            {"what": what, "value": figures[name], "bar": bar, "holds": figures[name] <= bar}
            for what, name, bar in bars
        ],
    }
