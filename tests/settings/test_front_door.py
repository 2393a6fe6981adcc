"""HTTPS by the server's own authority, and whose word about a request's origin is believed."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest

from broadcast_server.app import running
from broadcast_server.domain.errors import Unavailable
from broadcast_server.settings import HttpSettings, Role, Settings


def settings_in(folder: Path, **http: object) -> Settings:
    return Settings(data_dir=folder / "data", reserve_bytes=0, http=HttpSettings.model_validate({"port": 0, **http}))


def trusted(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=folder / "data" / "authority" / "current.pem")


async def test_https_is_by_the_own_authority_and_browsers_are_told_to_stay(tmp_path: Path):
    async with running(settings_in(tmp_path, tls="on"), {Role.API}) as server:
        assert server.http_url.startswith("https://127.0.0.1:")
        async with httpx.AsyncClient(verify=trusted(tmp_path)) as client:
            answer = await client.get(f"{server.http_url}/healthz")
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        async with httpx.AsyncClient() as stranger:
            with pytest.raises(httpx.ConnectError):
                await stranger.get(f"{server.http_url}/healthz")
            with pytest.raises(httpx.TransportError):
                await stranger.get(server.http_url.replace("https", "http") + "/healthz")
        assert server.http_tls is not None
        server.authority.rotate()
        server.http_tls.renew()  # while it serves
        async with httpx.AsyncClient(verify=trusted(tmp_path)) as client:
            assert (await client.get(f"{server.http_url}/healthz")).status_code == 200


@pytest.mark.parametrize(("proxies", "is_believed"), [((), False), (("10.0.0.1",), False), (("127.0.0.1",), True)])
async def test_forwarded_headers_are_believed_of_a_named_proxy_alone(
    tmp_path: Path, proxies: tuple[str, ...], is_believed: bool
):
    async with running(settings_in(tmp_path, trusted_proxies=proxies), {Role.API}) as server:
        async with httpx.AsyncClient() as client:
            headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
            answer = await client.get(f"{server.http_url}/healthz", headers=headers)
        assert ("strict-transport-security" in answer.headers) is is_believed


async def test_a_certificate_that_is_none_is_named(tmp_path: Path):
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("none", encoding="ascii")
    settings = settings_in(tmp_path, tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    with pytest.raises(Unavailable, match="certificate_unreadable"):
        async with running(settings, {Role.API}):
            pass
