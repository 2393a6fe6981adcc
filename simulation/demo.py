"""`./scripts/demo`: a village day in a minute and a half, proven by what the nodes' recordings hold.

A server with its own broker, two stations (one serves a real HTTP MP3 stream, one is pushed by a real source client),
and a commune of nodes with wrong, drifting clocks. The day is `schedules/demo-day.yaml`; not in it are the one "phát
ngay", and the last act (`simulation.outage`): server and broker are killed, the nodes go on, an emergency cuts in after
they return. With `--seconds` it ends by itself, 0 only if every planned node was heard for every broadcast and the play
log is complete and verifies.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table

from broadcast_server.domain.clock import LOCAL
from broadcast_server.supervise import Child, SystemClock
from simulation import outage
from simulation.listening import (
    CutIn,
    Recording,
    StartOf,
    attention,
    cut_in,
    decode,
    listen,
    read_recordings,
    sound_of,
    tones,
)
from simulation.samples import sample
from simulation.source_clients import Mount, SourceClient, find_client, pushing
from simulation.village import COMMUNE, PULLED, PUSHED, Village, VillageError

DAY: Final = Path(__file__).parents[1] / "schedules" / "demo-day.yaml"
NODES: Final = 12
PLAY_NOW: Final = "play_now"
STATIONS: Final = {PULLED: ("pull", "station_pull"), PUSHED: ("push", "station_push")}
HEAD_START: Final = timedelta(seconds=12)
"""Between the import and the day's T+00:00:00."""
LAST_REPORTS_S: Final = 8.0

out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True, slots=True)
class Broadcast:
    """One broadcast of the play log: the lines of all its nodes."""

    plays: tuple[Mapping[str, Any], ...]

    @property
    def first(self) -> Mapping[str, Any]:
        """Any line: what is asked of it is the same in all."""
        return min(self.plays, key=lambda play: str(play["starts_at"]))

    @property
    def start(self) -> datetime:
        """When it was to begin."""
        return datetime.fromisoformat(self.first["starts_at"])

    @property
    def end(self) -> datetime:
        """When it was to end."""
        return max(datetime.fromisoformat(play["ends_at"]) for play in self.plays)


async def run(seconds: float | None, report: Path | None, folder: Path) -> int:
    """The whole demo; its exit code."""
    shutil.rmtree(folder, ignore_errors=True)
    records = folder / "recordings"
    async with Village(folder) as village, _station(STATIONS[PULLED][1]) as station_url:
        village.settings = {"LOA_RELAY__ALLOW_PRIVATE": json.dumps([station_url.split("/")[2]])}
        out.print("Đang dựng làng mô phỏng… / setting up the simulated village…")
        await village.settle_in()
        await village.open_day_and_night()
        await village.add_feeds(pulled_url=station_url)
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(_pusher(village, folder))
            arguments = ["--record", str(records), "--clock-offset-ms", "-400:400", "--drift-ppm", "-50:50"]
            fleet = await stack.enter_async_context(
                village.nodes(NODES, identity=folder / "nodes", arguments=arguments)
            )
            await village.until_ready(NODES, fleet)
            bulletin_id = await village.bulletin("Phát ngay mô phỏng", sample(PLAY_NOW).path)
            day = datetime.now(UTC) + HEAD_START
            await village.import_day(DAY, anchor=day)
            await _play_now(village, bulletin_id)
            _greet(village, day, client)
            ends = None if seconds is None else day - HEAD_START + timedelta(seconds=seconds)
            act = asyncio.create_task(outage.play(village, day, _say), name="demo.outage")
            await _watch(village, ends, act)
            broken, emergency = await act
            broadcasts = await _broadcasts(village)
            expectations = [await _expected(village, each, folder) for each in broadcasts]
            await fleet.terminate()
            verified = await village.command("audit", "verify")
    recordings = read_recordings(records)
    told = _judge(broadcasts, expectations, recordings)
    cut = _cut_in(recordings, emergency)
    is_cut = len(cut.cut_ms) == len(cut.back_ms) == NODES and not any(cut.relay_ms)
    told |= {"outage": broken.as_json(), "cut_in": cut.as_json(), "log_verifies": bool(verified["ok"])}
    told["ok"] = told["ok"] and is_cut and told["log_verifies"]
    _show(told, broadcasts, records, report)
    return 0 if told["ok"] or seconds is None else 1


# -- the parts ------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _station(sample_name: str) -> AsyncIterator[str]:
    """A station of its own process that serves an endless MP3 stream; its URL."""
    async with Child(
        [sys.executable, "-m", "simulation.radio", "--sample", sample_name], name="demo.station", keep_stdin=True
    ) as station:
        line = await asyncio.wait_for(station.stdout.readline(), 30)
        yield json.loads(line)["url"]


@contextlib.asynccontextmanager
async def _pusher(village: Village, folder: Path) -> AsyncIterator[str]:
    """The second station: the first source client there is, pushing to the mount it was given; the client's name."""
    client = next((each for each in SourceClient if find_client(each) is not None), None)
    if client is None:
        raise VillageError("no source client: install ffmpeg, liquidsoap or ezstream")
    mount = Mount(
        port=village.ingest_port,
        mount=village.push["mount"].lstrip("/"),
        user=village.push["user"],
        password=village.push["password"],
        authority=village.authority if village.is_tls else None,
    )
    async with pushing(client, mount, sample(STATIONS[PUSHED][1]).path, folder=folder):
        yield client.value


async def _play_now(village: Village, bulletin_id: str) -> None:
    """The one thing that is not in the day's file: somebody presses "phát ngay", on a slow machine after the next."""
    form: dict[str, Any] = {"unit_id": COMMUNE, "bulletin_id": bulletin_id, "queue": True, "accept_conflicts": True}
    await village.ask("POST", "/play-now", **form)


def _greet(village: Village, day: datetime, client: str) -> None:
    out.print(f"Máy chủ / server     [bold]{village.url}[/bold]   (truongdai, token {village.token})")
    out.print(f"Đài kéo / pulled     {PULLED}: HTTP MP3")
    out.print(f"Đài đẩy / pushed     {PUSHED}: {client} → 127.0.0.1:{village.ingest_port}/{village.push['mount']}")
    out.print(f"Cụm loa / clusters   {NODES}, đồng hồ lệch ±400 ms, trôi ±50 ppm (mô phỏng)")
    out.print(f"Bắt đầu / T+00:00:00 {day.astimezone(LOCAL):%H:%M:%S}")


def _say(text: str) -> None:
    out.print(f"{datetime.now(LOCAL):%H:%M:%S}  {text}", style="bold")


async def _watch(village: Village, ends: datetime | None, act: asyncio.Task[Any]) -> None:
    """Say what is sounding whenever it changes, until `ends` and the last act is over, or somebody presses Ctrl-C."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    sounding: Counter[str] = Counter()
    while not stop.is_set() and (ends is None or datetime.now(UTC) < ends or not act.done()):
        try:
            nodes = (await village.ask("GET", "/nodes?limit=200"))["items"]
        except (httpx.HTTPError, VillageError):  # it is dead, as the act wants it
            nodes = []
        now = Counter(
            str(node["status"]["sounding"]) for node in nodes if node["status"] and node["status"]["sounding"]
        )
        if now != sounding:
            text = ", ".join(f"{entry}: {count}" for entry, count in now.items()) or "im lặng / silence"
            out.print(f"{datetime.now(LOCAL):%H:%M:%S}  {text}", style="dim")
            sounding = now
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)


async def _broadcasts(village: Village) -> list[Broadcast]:
    """What the play log holds, once every line is judged; at most `LAST_REPORTS_S` are waited for."""
    clock = SystemClock()
    deadline_s = clock.monotonic() + LAST_REPORTS_S
    while True:
        lines: list[Mapping[str, Any]] = []
        cursor = ""
        while True:
            page = await village.ask("GET", f"/plays?limit=200{cursor}")
            lines += page["items"]
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        if not any(line["verdict"] == "unknown" for line in lines) or clock.monotonic() > deadline_s:
            break
        await clock.sleep(0.5)
    by_broadcast: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        by_broadcast.setdefault(line["broadcast_id"], []).append(line)
    return sorted((Broadcast(tuple(each)) for each in by_broadcast.values()), key=lambda each: each.start)


# -- the verdict ----------------------------------------------------------------------------------------------------


async def _expected(village: Village, broadcast: Broadcast, folder: Path) -> StartOf:
    """How to know this broadcast by ear: a relay by its station's tones, an emergency by its danger's attention tone, a
    recording by its own sound.
    """
    if broadcast.first["kind"] == "emergency":
        return attention(outage.HAZARD, broadcast.start)
    feed_id = broadcast.first["feed_id"]
    if feed_id is not None:
        name = next(name for name, known in village.feeds.items() if known == feed_id)
        pair = sample(STATIONS[name][1]).tones
        if pair is None:
            raise VillageError(f"{name} has no tones")
        return tones(pair, broadcast.start, broadcast.end)
    sha256 = broadcast.first["asset_sha256"]
    answer = await village.client.get(f"/api/v1/assets/{sha256}")
    answer.raise_for_status()
    file = folder / f"{sha256}.opus"
    file.write_bytes(answer.content)
    return sound_of(decode(file), broadcast.start)


def _judge(
    broadcasts: Sequence[Broadcast], expectations: Sequence[StartOf], recordings: Sequence[Recording]
) -> dict[str, Any]:
    """The report: what the recordings say, with the play log's verdicts beside it."""
    told = []
    for broadcast, expected in zip(broadcasts, expectations, strict=True):
        first = broadcast.first
        ingest = {} if first["feed_id"] is None else {"ingest": _ingest_of(first["title"])}
        told.append(
            {
                "id": first["broadcast_id"],
                "kind": first["kind"],
                "title": first["title"],
                "starts_at": first["starts_at"],
                **ingest,
                **listen(recordings, broadcast.start, expected).as_json(),
                "underruns": sum(play["underruns"] for play in broadcast.plays),
                "verdicts": dict(Counter(str(play["verdict"]) for play in broadcast.plays)),
            }
        )
    kinds = [(each["kind"], each.get("ingest")) for each in told]
    wanted = [("announcement", None), ("play_now", None), ("relay", "pull"), ("relay", "push"), ("emergency", None)]
    is_heard = all(each["nodes_heard"] == each["nodes_planned"] == NODES for each in told)
    return {"ok": is_heard and all(kind in kinds for kind in wanted), "broadcasts": told}


def _cut_in(recordings: Sequence[Recording], emergency: outage.Emergency) -> CutIn:
    relay = sample(STATIONS[PULLED][1]).tones
    if relay is None:
        raise VillageError("the pulled station has no tones")
    tone = attention(outage.HAZARD, emergency.asked_at)
    over_at = emergency.launched_at + timedelta(milliseconds=emergency.round_ms)
    return cut_in(recordings, tone, relay, emergency.asked_at, over_at)


def _ingest_of(title: str) -> str:
    return next((ingest for name, (ingest, _) in STATIONS.items() if name in title), "pull")


def _show(told: Mapping[str, Any], broadcasts: Sequence[Broadcast], records: Path, report: Path | None) -> None:
    if report is not None:
        report.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", "utf-8")
    table = Table(title="Nghe từ bản ghi của cụm loa / heard in the nodes' recordings (mô phỏng)")
    columns = ("giờ", "nội dung", "loại", "nghe được", "lệch giờ p99 ms", "lệch nhau p99 ms", "hụt", "nhật ký")
    for column in columns:
        table.add_column(column)
    for line, broadcast in zip(told["broadcasts"], broadcasts, strict=True):
        table.add_row(
            f"{broadcast.start.astimezone(LOCAL):%H:%M:%S}",
            str(broadcast.first["title"]),
            f"{line['kind']} {line.get('ingest', '')}".strip(),
            f"{line['nodes_heard']}/{line['nodes_planned']}",
            str(line["start_error_ms"]["p99"]),
            str(line["skew_ms_p99"]),
            str(line["underruns"]),
            " ".join(f"{verdict} {count}" for verdict, count in line["verdicts"].items()),
        )
    out.print(table)
    out.print(f"Bản ghi / recordings: {records}")
    out.print(
        "Mọi cụm loa đều đã phát. / Every planned node was heard." if told["ok"] else "CHƯA ĐẠT / NOT every node."
    )


def main() -> None:
    """The program behind `./scripts/demo`."""
    parser = argparse.ArgumentParser(prog="./scripts/demo", description="A simulated village day; see README.md")
    parser.add_argument("--seconds", type=float, metavar="N", help="end after N seconds and judge")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there")
    parser.add_argument("--folder", type=Path, default=Path("out/demo"), help="where data and recordings go")
    asked = parser.parse_args()
    try:
        sys.exit(asyncio.run(run(asked.seconds, asked.json, asked.folder.absolute())))
    except VillageError as error:
        out.print(f"[red]{error}[/red]")
        sys.exit(1)


if __name__ == "__main__":
    main()
