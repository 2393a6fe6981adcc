"""A real browser on plain `http://127.0.0.1` keeps the cookie of a log-in, sends it back, and hides it from pages."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from websockets.asyncio.client import connect

from broadcast_server.api.router import create_api
from broadcast_server.store.words import Role
from broadcast_server.supervise import SystemClock
from tests.support.database import a_store
from tests.support.desk import a_desk_of
from tests.support.people import a_person
from tests.support.places import YEN_THANH, a_country
from tests.support.until import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian package chromium)"),
]

LOG_IN = """
(async () => {
  const sent = (method, path, body, token) => fetch('/api/v1' + path, {method, body: body && JSON.stringify(body),
    headers: {'Content-Type': 'application/json', ...(token ? {'X-CSRF-Token': token} : {})}});
  const entered = await sent('POST', '/session', FORM);
  const told = await entered.json();
  const me = await sent('GET', '/users/me');
  const bare = await sent('DELETE', '/session');
  const out = await sent('DELETE', '/session', null, told.csrf_token);
  const after = await sent('GET', '/users/me');
  return JSON.stringify({entered: entered.status, me: me.status, bare: bare.status, out: out.status,
    after: after.status, seen: document.cookie});
})()
"""


class Page:
    """One tab, by the DevTools protocol."""

    def __init__(self, line: Any) -> None:
        self._line, self._count = line, 0

    async def call(self, method: str, **params: Any) -> Any:
        self._count += 1
        await self._line.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            told = json.loads(await self._line.recv())
            if told.get("id") == self._count:
                assert "error" not in told, told
                return told["result"]

    async def open_again(self) -> None:
        """Load the page anew, without its policy. A tab that is still being opened is not attached yet."""
        for _ in range(50):
            try:
                await self.call("Page.setBypassCSP", enabled=True)
                await self.call("Page.reload")
            except AssertionError:
                await SystemClock().sleep(0.1)
            else:
                return
        raise AssertionError("the tab never came")


@asynccontextmanager
async def a_tab(folder: Path, url: str) -> AsyncIterator[Page]:
    """Chromium without a window, its profile in a folder of its own."""
    assert CHROMIUM is not None
    child = await asyncio.create_subprocess_exec(
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
        url,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        told = folder / "DevToolsActivePort"
        await until(lambda: told.exists() and len(told.read_text().splitlines()) >= 1, timeout_s=60)
        port = told.read_text().splitlines()[0]
        async with httpx.AsyncClient() as client:
            tabs = (await client.get(f"http://127.0.0.1:{port}/json/list")).json()
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        async with connect(address, max_size=None) as line:
            yield Page(line)
    finally:
        child.terminate()
        await child.wait()


async def test_chromium_keeps_the_cookie_on_loopback_and_hides_it_from_the_page(tmp_path: Path):
    async with a_store(clock=SystemClock()) as store:
        desk = a_desk_of(store)
        await a_country(desk)
        lan = await a_person(desk, Role.BROADCASTER, YEN_THANH, "lan")
        server = uvicorn.Server(uvicorn.Config(create_api(desk), port=0, log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve(), name="test.http")
        await until(lambda: server.started, timeout_s=20)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            async with a_tab(tmp_path / "profile", f"http://127.0.0.1:{port}/healthz") as page:
                await page.open_again()
                form = {"login": "lan", "password": lan.password, "code": lan.drawer[0]}
                result = await page.call(
                    "Runtime.evaluate",
                    expression=LOG_IN.replace("FORM", json.dumps(form)),
                    awaitPromise=True,
                    returnByValue=True,
                )
                told = json.loads(result["result"]["value"])
        finally:
            server.should_exit = True
            await serving
    assert told == {"entered": 201, "me": 200, "bare": 403, "out": 204, "after": 401, "seen": ""}
