"""A whole village on this machine, through public doors only: the real server, stations, and speaker nodes as
processes.

The demo, the end-to-end tests and the benchmarks stand on it. Everything listens on 127.0.0.1 on free ports, is
started by us and stopped by its process id. What is asked of the server is asked over its command line and its REST
interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

import httpx

from broadcast_server.supervise import Child, SystemClock
from simulation.leaders import Leader

PROVINCE: Final = "tinh-mo-phong"
COMMUNE: Final = "xa-mo-phong"
PULLED: Final = "Đài mô phỏng Tỉnh"
PUSHED: Final = "Đài mô phỏng Trung tâm"
_START_S: Final = 30.0


class VillageError(RuntimeError):
    """A part of the village did not do what it was asked; the text holds its last words."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class Village:
    """The server's side: its process, its addresses, a client with an administrator's token."""

    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    is_tls: bool = True
    """HTTPS, MQTT and the push listener on TLS; without, everything is plain on 127.0.0.1."""
    http_port: int = field(default_factory=free_port)
    broker_port: int = field(default_factory=free_port)
    ingest_port: int = field(default_factory=free_port)
    token: str = ""
    """Of the head of the commune's station (trưởng đài): makes and places, keeps the clusters."""
    editor_token: str = ""
    """Of the province's editor: owns the feeds and offers them."""
    proposer: Leader | None = None
    """The province's editor again, who raises an alarm; `approver`: a leader, who agrees to it and approves content."""
    approver: Leader | None = None
    push: Mapping[str, Any] = field(default_factory=dict)
    feeds: dict[str, str] = field(default_factory=dict)
    """Feed ids by name."""
    server: Child | None = None
    _client: httpx.AsyncClient | None = None
    _trusted: ssl.SSLContext | None = None
    _clock: SystemClock = field(default_factory=SystemClock)

    @property
    def url(self) -> str:
        """Where the server answers."""
        return f"{'https' if self.is_tls else 'http'}://127.0.0.1:{self.http_port}"

    @property
    def authority(self) -> Path:
        """What the server's certificate is signed by (PEM), as an operator hands it out."""
        return self.folder / "authority.pem"

    @property
    def trusted(self) -> ssl.SSLContext:
        """A client's side of TLS that trusts the village's server."""
        if self._trusted is None:
            self._trusted = ssl.create_default_context(cafile=self.authority if self.is_tls else None)
        return self._trusted

    @property
    def environment(self) -> dict[str, str]:
        """Settings of the server and of its command line."""
        mine = {
            "LOA_DATA_DIR": str(self.folder / "data"),
            "LOA_ENVIRONMENT": "demo",
            "LOA_HTTP__PORT": str(self.http_port),
            "LOA_BROKER__PORT": str(self.broker_port),
            "LOA_INGEST__PORT": str(self.ingest_port),
            "LOA_HTTP__TLS": "on" if self.is_tls else "off",
            "LOA_BROKER__TLS": "auto" if self.is_tls else "off",
            "LOA_INGEST__TLS": "only" if self.is_tls else "off",
            "LOA_PLAYOUT__STATUS_INTERVAL_S": "5",
            "LOA_PLAYOUT__GRACE_S": "3",
            "LOA_RESERVE_BYTES": "0",
            **self.settings,
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LOA_")}
        return {**kept, **mine}

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None
        await self.stop_server()

    # -- the server

    async def start_server(self) -> None:
        """Start it and wait until `/readyz` says yes. Raises `VillageError` with its last words."""
        if self.is_tls and not self.authority.exists():
            await self.command("certificates", "authority", "--out", str(self.authority))
        self.server = await Child(
            [sys.executable, "-m", "broadcast_server", "serve"],
            name="village.server",
            env=self.environment,
            stdout=False,
            grace_s=10.0,
            on_stderr=self._keep_line,
        ).start()
        try:
            async with asyncio.timeout(_START_S):
                while not await self._is_ready():
                    if self.server.returncode is not None:
                        raise VillageError("the server ended: " + "\n".join(self.server.stderr_tail[-20:]))
                    await self._clock.sleep(0.05)
        except TimeoutError:
            raise VillageError("the server is not ready: " + "\n".join(self.server.stderr_tail[-20:])) from None

    async def stop_server(self) -> None:
        """Ask it to end and wait. Idempotent."""
        if self.server is not None:
            await self.server.close()
            self.server = None

    def _keep_line(self, line: str) -> None:
        with (self.folder / "server.log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def last_words(self) -> str:
        """What the server said last, one line a line."""
        return "" if self.server is None else "\n".join(line[:400] for line in self.server.stderr_tail[-20:])

    async def _is_ready(self) -> bool:
        async with httpx.AsyncClient(verify=self.trusted) as client:
            try:
                answer = await client.get(f"{self.url}/readyz")
            except httpx.HTTPError:
                return False
            return answer.status_code == 200

    # -- what an operator does

    async def command(self, *arguments: str) -> Any:
        """`broadcast-server …` with `--json`; what it printed. Raises `VillageError`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "broadcast_server", *arguments, "--json",
            env=self.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        told, complaint = await process.communicate()
        if process.returncode != 0:
            raise VillageError(f"broadcast-server {' '.join(arguments)}: {complaint.decode()[-2000:]}")
        return json.loads(told) if told.strip() else None

    async def ask(self, method: str, path: str, *, by: str | None = None, **body: Any) -> Any:
        """A REST call; the JSON it answered. `by`: another token than the station head's. Raises `VillageError`."""
        headers = {} if by is None else {"Authorization": f"Bearer {by}"}
        answer = await self.client.request(method, f"/api/v1{path}", json=body or None, headers=headers)
        if answer.is_error:
            raise VillageError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    @property
    def client(self) -> httpx.AsyncClient:
        """With the station head's token, on the server's origin."""
        if self._client is None:
            self._client = httpx.AsyncClient(base_url=self.url, timeout=30.0, verify=self.trusted)
        self._client.headers["Authorization"] = f"Bearer {self.token}"
        return self._client

    async def settle_in(self) -> None:
        """A province with one commune, its editor and the head of the commune's station; starts the server."""
        await self.command("place", "add", "Tỉnh mô phỏng", "--kind", "province", "--id", PROVINCE)
        who = ("quantri", "--name", "Quản trị mô phỏng", "--role", "admin", "--unit", PROVINCE)
        await self.command("user", "add", *who)
        admin = (await self.command("token", "create", "quantri"))["token"]
        await self.start_server()
        commune = {"kind": "commune", "id": COMMUNE, "name": "Xã mô phỏng", "parent_id": PROVINCE}
        await self.ask("POST", "/units", by=admin, **commune)
        self.editor_token = await self._hire(admin, "bientap", "province_editor", PROVINCE)
        self.token = await self._hire(admin, "truongdai", "commune_head", COMMUNE)
        leader = await self._hire(admin, "lanhdao", "leader", PROVINCE)
        self.proposer = await self._enter("bientap", self.editor_token)
        self.approver = await self._enter("lanhdao", leader)

    async def _hire(self, admin: str, login: str, role: str, unit: str) -> str:
        """A user with one role; a token of theirs."""
        grant = {"role": role, "unit_id": unit}
        user = await self.ask("POST", "/users", by=admin, login=login, name=f"{login} (mô phỏng)", grant=grant)
        made = await self.ask("POST", f"/users/{user['id']}/tokens", by=admin, name="mô phỏng")
        token: str = made["token"]
        return token

    async def _enter(self, login: str, token: str) -> Leader:
        """The person has a password and a telephone from now on."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "simulation.enter", login,
            env=self.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        told, complaint = await process.communicate()
        if process.returncode != 0:
            raise VillageError(f"{login} did not enter: {complaint.decode()[-2000:]}")
        made = json.loads(told)
        return Leader(token, made["password"], made["seed"], self._clock, int(self._clock.now().timestamp()) // 30)

    async def propose_emergency(self, **form: Any) -> dict[str, Any]:
        """An emergency or a drill for the second person to agree to. Raises `VillageError`."""
        if self.proposer is None:
            raise VillageError("nobody has settled in")
        proof = await self.proposer.proof()
        made: dict[str, Any] = await self.ask("POST", "/emergencies", by=self.proposer.token, proof=proof, **form)
        return made

    async def approve_emergency(self, proposed: Mapping[str, Any], *, confirm: str) -> dict[str, Any]:
        """The second person agrees: it sounds. Raises `VillageError`."""
        if self.approver is None:
            raise VillageError("nobody has settled in")
        agreed = {"content_hash": proposed["content_hash"], "confirm": confirm, "proof": await self.approver.proof()}
        path = f"/emergencies/{proposed['id']}/approval"
        made: dict[str, Any] = await self.ask("POST", path, by=self.approver.token, **agreed)
        return made

    async def open_day_and_night(self) -> None:
        """No quiet hours in the demo's commune: it must sound whenever somebody starts it."""
        await self.ask("PUT", f"/units/{COMMUNE}/policy", quiet={"from": "00:00", "to": "00:00"})

    async def add_feeds(self, *, pulled_url: str) -> None:
        """The two stations, owned by the province and offered to the commune."""
        for name, told in (
            (PULLED, {"kind": "pull", "url": pulled_url, "tier": "province"}),
            (PUSHED, {"kind": "push", "tier": "national"}),
        ):
            made = await self.ask("POST", "/feeds", by=self.editor_token, unit_id=PROVINCE, name=name, **told)
            self.feeds[name] = made["id"]
            if made.get("credential") is not None:
                self.push = made["credential"]
            offer = {"unit_id": COMMUNE, "basis": "Mô phỏng"}
            await self.ask("POST", f"/feeds/{self.feeds[name]}/offers", by=self.editor_token, **offer)

    async def import_day(self, file: Path, *, anchor: datetime) -> None:
        """Import a schedule file whose times are counted from `anchor`."""
        await self.command(
            "schedule", "import", str(file), "--unit", COMMUNE, "--anchor", anchor.isoformat(), "--accept-conflicts"
        )
        await self.approve_all()

    async def approve_all(self) -> None:
        """The leader hears and approves what waits: nobody approves what they wrote themselves."""
        if self.approver is None:
            raise VillageError("nobody has settled in")
        token = self.approver.token
        found = await self.ask("GET", f"/approvals?unit={COMMUNE}", by=token)
        for one in found["versions"]:
            path = f"/bulletins/{one['bulletin_id']}/versions/{one['version_id']}/approval"
            await self.ask("POST", path, by=token, content_hash=one["content_hash"])
        for one in found["programmes"]:
            path = f"/programmes/{one['programme_id']}/approval"
            await self.ask("POST", path, by=token, content_hash=one["content_hash"])

    async def bulletin(self, title: str, sound: Path) -> str:
        """A bulletin with this recording, uploaded and approved; its id."""
        bulletin = await self.ask("POST", "/bulletins", unit_id=COMMUNE, title=title, klass="normal")
        version = await self.upload(bulletin["id"], sound)
        path = f"/bulletins/{bulletin['id']}/versions/{version['id']}/submission"
        await self.ask("POST", path, content_hash=version["content_hash"])
        await self.approve_all()
        bulletin_id: str = bulletin["id"]
        return bulletin_id

    async def upload(self, bulletin_id: str, sound: Path) -> dict[str, Any]:
        """Add a recorded version to a bulletin; the draft. Raises `VillageError`."""
        file = (sound.name, await asyncio.to_thread(sound.read_bytes))
        answer = await self.client.post(f"/api/v1/bulletins/{bulletin_id}/versions/audio", files={"file": file})
        if answer.is_error:
            raise VillageError(f"upload: {answer.status_code} {answer.text}")
        version: dict[str, Any] = answer.json()
        return version

    async def schedule(self, *, starts_at: datetime, **what: Any) -> str:
        """Place something on all clusters of the commune; the schedule's id."""
        form = {"unit_id": COMMUNE, "starts_at": starts_at.isoformat(), "accept_conflicts": True, **what}
        made = await self.ask("POST", "/schedules", **form)
        schedule_id: str = made["id"]
        return schedule_id

    # -- the nodes

    @contextlib.asynccontextmanager
    async def nodes(self, count: int, *, identity: Path, arguments: Sequence[str] = ()) -> AsyncIterator[Child]:
        """A fleet in a process of its own, enrolled with a fresh token; SIGTERM lets it finish its files."""
        ticket = await self.ask(
            "POST", "/enrolment-tokens", unit_id=COMMUNE, uses=count, valid_for_s=3_600, activates=True
        )
        trusted = ("--ca", str(self.authority)) if self.is_tls else ()
        async with Child(
            [
                sys.executable, "-m", "firmware_sim", "run", "--server", self.url, "--nodes", str(count),
                "--token", ticket["token"], "--identity", str(identity), *trusted, *arguments,
            ],
            name="village.nodes",
            stdout=False,
            grace_s=30.0,
        ) as fleet:  # fmt: skip
            yield fleet

    async def until_ready(self, count: int, fleet: Child, *, timeout_s: float = 60.0) -> list[dict[str, Any]]:
        """Wait until `count` nodes are online with nothing missing; their rows. Raises `VillageError`."""
        found: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    found = (await self.ask("GET", "/nodes?limit=200"))["items"]
                    ready = [node for node in found if _is_ready(node)]
                    if len(ready) >= count:
                        return ready
                    if fleet.returncode is not None:
                        raise VillageError("the fleet ended: " + "\n".join(fleet.stderr_tail[-20:]))
                    await self._clock.sleep(0.25)
        except TimeoutError:
            statuses = json.dumps([node["status"] for node in found])[:1500]
            raise VillageError(f"nodes are not ready: {statuses}\n{self.last_words()}") from None


def _is_ready(node: Mapping[str, Any]) -> bool:
    status = node["status"]
    if status is None or status["link"] != "online":
        return False
    body = status["body"]
    return bool(body.get("plan_sha256")) and not body.get("missing") and body.get("clock", {}).get("source") == "server"
