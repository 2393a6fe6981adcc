"""A browser in front of the application, in process: it keeps cookies, names the page's origin and shows its token."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from broadcast_server.api.deps import COOKIE, CSRF_HEADER
from broadcast_server.api.session import DEVICE
from broadcast_server.control.desk import Desk
from tests.support.api import api_of, watched
from tests.support.people import Person

API = "/api/v1"
PAGE = "https://127.0.0.1"


class Browser:
    """One person's, at one address."""

    def __init__(self, app: FastAPI, address: str = "10.0.0.7") -> None:
        self.unasked: list[str] = []
        self._transport = httpx.ASGITransport(
            app=watched(app, self.unasked), client=(address, 50_000), raise_app_exceptions=False
        )
        self.http = httpx.AsyncClient(transport=self._transport, base_url=PAGE)
        self.csrf = ""

    @property
    def cookie(self) -> str | None:
        return self.http.cookies.get(COOKIE)

    @property
    def device(self) -> str | None:
        return self.http.cookies.get(DEVICE)

    async def send(self, method: str, path: str, json: Any = None, **headers: str) -> httpx.Response:
        """As a page of ours sends it; `headers` go over what the browser says by itself, empty ones take away."""
        own = {"Sec-Fetch-Site": "same-origin", "Accept-Language": "en"}
        if method not in {"GET", "HEAD"}:
            own |= {"Origin": PAGE, CSRF_HEADER: self.csrf}
        own |= {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {name: value for name, value in own.items() if value}
        answer = await self.http.request(method, API + path, json=json, headers=sent)
        told = answer.json() if answer.content and "json" in answer.headers.get("content-type", "") else {}
        if isinstance(told, dict) and told.get("csrf_token"):
            self.csrf = told["csrf_token"]
        return answer

    async def log_in(self, login: str, password: str, code: str = "") -> httpx.Response:
        return await self.send("POST", "/session", {"login": login, "password": password, "code": code})

    async def log_in_as(self, person: Person) -> httpx.Response:
        """With everything right. Raises `AssertionError` if it is not let in."""
        proof = person.proof()
        answer = await self.log_in(person.login, proof.password, proof.code)
        assert answer.status_code == 201, answer.text
        return answer

    def shows(self, cookie: str | None) -> None:
        """Put a cookie into the jar that was not given to this browser."""
        self.http.cookies.delete(COOKIE) if cookie is None else self.http.cookies.set(
            COOKIE, cookie, domain="127.0.0.1"
        )


@asynccontextmanager
async def a_browser(
    desk: Desk, app: FastAPI | None = None, address: str = "10.0.0.7", cookies: Mapping[str, str] | None = None
) -> AsyncIterator[Browser]:
    """A browser that has never been here, unless it brings cookies."""
    browser = Browser(app or api_of(desk), address)
    for name, value in (cookies or {}).items():
        browser.http.cookies.set(name, value, domain="127.0.0.1")
    async with browser.http:
        yield browser
    assert not browser.unasked, browser.unasked
