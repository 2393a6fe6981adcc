"""An empty server says how to begin; the first administrator is entered, logs in over HTTPS and sets up a phone."""

from __future__ import annotations

from pathlib import Path

import httpx
import pyotp
import pytest

from simulation.village import Village
from tests.firmware_sim.world import needs_mosquitto

pytestmark = pytest.mark.e2e
CHOSEN = "bảy con cá trê ngủ trưa"


@needs_mosquitto
async def test_from_nothing_to_an_administrator_with_a_phone(tmp_path: Path):
    async with Village(tmp_path) as village:
        await village.start_server()
        log = (tmp_path / "server.log").read_text("utf-8").splitlines()
        assert any("server.nobody_yet" in line and "user first-administrator" in line for line in log)
        await village.command("place", "add", "Tỉnh Mô Phỏng", "--kind", "province", "--id", "40")
        first = (await village.command("user", "first-administrator", "ha"))["first_password"]
        async with httpx.AsyncClient(base_url=f"{village.url}/api/v1", verify=village.trusted) as browser:
            entered = (await browser.post("/session", json={"login": "ha", "password": first})).json()
            assert entered["must"] == ["password_must_change", "totp_must_set_up"]
            token = {"X-CSRF-Token": entered["csrf_token"]}
            assert (await browser.get("/users")).json()["code"] == "password_must_change"
            form = {"password": first, "new_password": CHOSEN}
            changed = (await browser.put("/session/password", json=form, headers=token)).json()
            token = {"X-CSRF-Token": changed["csrf_token"]}
            offer = (await browser.post("/session/totp", json={"password": CHOSEN}, headers=token)).json()
            code = pyotp.TOTP(offer["secret"]).now()
            confirmed = await browser.put("/session/totp", json={"code": code}, headers=token)
            assert len(confirmed.json()["recovery_codes"]) == 10
            assert [one["login"] for one in (await browser.get("/users")).json()["items"]] == ["ha"]
        assert [row["agent"] for row in await village.command("user", "sign-ins", "ha")] == [
            f"python-httpx/{httpx.__version__}"
        ]
