"""The root's journey to a drawer, seen from the command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from broadcast_server.cli import app
from broadcast_server.domain.clock import to_ms
from broadcast_server.signer.keys import FileSigner
from broadcast_server.signer.time_key import TimeKey, time_folder
from broadcast_server.supervise import SystemChance, SystemClock
from speaker_protocol import chain
from speaker_protocol.signing import KeyRing, Watermarks

Command = Callable[..., Result]
COMMUNE, PROVINCE = "20194", "48"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a server that ran for a while has."""
    keys = tmp_path / "data" / "keys"
    TimeKey(time_folder(keys), chance=SystemChance())
    signer = FileSigner(keys, chance=SystemChance(), path_of=lambda unit: (unit, PROVINCE))
    signer.ensure_units([COMMUNE, PROVINCE])
    return keys


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("LOA_DATA_DIR", str(tmp_path / "data"))

    def invoke(*words: str | Path) -> Result:
        return CliRunner().invoke(app, ["keys", *map(str, words)])

    return invoke


def signer_of(folder: Path) -> FileSigner:
    return FileSigner(folder, chance=SystemChance(), path_of=lambda unit: (unit, PROVINCE))


def heard(folder: Path) -> KeyRing:
    """What a node of the commune that has just been unpacked learns."""
    return asyncio.run(_heard(folder))


async def _heard(folder: Path) -> KeyRing:
    signer = signer_of(folder)
    ring, marks = KeyRing(signer.root_public()), Watermarks()
    now_ms = to_ms(SystemClock().now())
    for place in (COMMUNE, PROVINCE):
        told = await signer.key_statements(place, issued_ms=now_ms, epoch=1, sequence=1)
        above = (COMMUNE, PROVINCE)[(COMMUNE, PROVINCE).index(place) :]
        for raw in chain.in_order(told, ring):
            chain.take(ring, marks, raw, above=above, now_ms=now_ms)
    return ring


def printed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_root_goes_into_a_drawer_and_the_server_lives_on_and_is_renewed_by_files(
    folder: Path, run: Command, tmp_path: Path
):
    ring_before = heard(folder)
    usb = tmp_path / "usb"
    usb.mkdir()
    assert printed(run("root-export", usb / "root.key", "--json"))["file"] == "root.key"
    assert (usb / "root.key").stat().st_mode & 0o777 == 0o600
    assert run("root-export", usb / "root.key").exit_code == 1, "what is there is not overwritten"
    told = printed(run("root-remove", usb / "root.key", "--json"))
    assert told["authority_until"] is not None
    assert not (folder / "root.key").exists()
    shown = printed(run("show", "--json"))
    assert (shown["root_is_here"], shown["root"]) == (
        False,
        heard(folder).known(ring_before.root_id).public.hex(),
    )

    # weeks later: a new authority, asked for here, signed there, taken in here
    assert run("rotate", "authority").exit_code == 1
    asked = printed(run("request-authority", usb / "ask.json", "--days", "60", "--json"))
    assert {
        key["state"] for key in printed(run("show", "--json"))["keys"] if key["key_id"] not in (usb / "x").name
    } >= {"awaits_root"}
    signed = printed(run("sign", usb / "ask.json", usb / "answer.json", "--root", usb / "root.key", "--json"))
    assert signed["public_key"] == asked["public_key"]
    installed = printed(run("install", usb / "answer.json", "--json"))
    assert timedelta(milliseconds=installed["until_ms"] - to_ms(SystemClock().now())) > timedelta(days=59)
    ring = heard(folder)
    assert ring.known(bytes.fromhex(installed["key_id"])) is not None

    # and the old one was stolen: only the root may say so
    old = next(
        key
        for key in printed(run("show", "--json"))["keys"]
        if key["role"] == "authority" and key["key_id"] != installed["key_id"]
    )
    refused = run("revoke", old["key_id"], "--reason", "máy chủ bị trộm")
    assert refused.exit_code == 1
    assert "root_is_away" in refused.output
    printed(run("request-revocation", old["key_id"], usb / "gone.json", "--reason", "máy chủ bị trộm", "--json"))
    printed(run("sign", usb / "gone.json", usb / "gone-answer.json", "--root", usb / "root.key", "--json"))
    assert printed(run("install", usb / "gone-answer.json", "--json"))["revoked"] == [old["key_id"]]
    assert run("install", usb / "gone-answer.json").exit_code == 1, "the same list again is older than none"
    ring = heard(folder)
    assert ring.is_revoked(bytes.fromhex(old["key_id"]), None)
    assert ring.rl_version == 1
    assert [line["reason"] for line in printed(run("revocations", "--json"))] == ["máy chủ bị trộm"]


def test_who_has_the_files_but_not_the_root_gets_nothing_signed(folder: Path, run: Command, tmp_path: Path):
    stranger = tmp_path / "stranger.key"
    stranger.write_bytes(b"\x05" * 32)
    printed(run("request-authority", tmp_path / "ask.json", "--json"))
    refused = run("sign", tmp_path / "ask.json", tmp_path / "answer.json", "--root", stranger)
    assert refused.exit_code == 1
    assert "root_key_differs" in refused.output
    answer = json.loads((tmp_path / "ask.json").read_text("utf-8"))
    (tmp_path / "answer.json").write_text(json.dumps({**answer, "signed": "00" * 200}), "utf-8")
    assert run("install", tmp_path / "answer.json").exit_code == 1
    run("sign", tmp_path / "ask.json", tmp_path / "good.json", "--root", folder / "root.key")
    good = json.loads((tmp_path / "good.json").read_text("utf-8"))
    wide = {**good, "unit": "*", "signed": good["signed"][:-2] + ("00" if good["signed"][-2:] != "00" else "01")}
    (tmp_path / "bent.json").write_text(json.dumps(wide), "utf-8")
    assert "signature" in run("install", tmp_path / "bent.json").output
    (tmp_path / "rubbish.json").write_text("[1]", "utf-8")
    assert "key_request_damaged" in run("install", tmp_path / "rubbish.json").output
    assert run("root-remove", stranger).exit_code == 1
    assert (folder / "root.key").exists()


def test_a_stolen_unit_key_is_revoked_and_another_speaks_at_once(folder: Path, run: Command):
    heard(folder)
    stolen = next(key for key in printed(run("show", "--unit", COMMUNE, "--json"))["keys"] if key["role"] == "unit")
    assert run("revoke", stolen["key_id"], "--reason", "x").exit_code == 1, "a reason is a sentence"
    done = printed(run("revoke", stolen["key_id"], "--reason", "máy của xã bị mất", "--json"))
    assert (done["role"], done["unit"], done["root_must_sign_too"]) == ("unit", COMMUNE, False)
    states = {
        key["key_id"]: key["state"]
        for key in printed(run("show", "--unit", COMMUNE, "--json"))["keys"]
        if key["role"] == "unit"
    }
    assert sorted(states.values()) == ["good", "revoked"]
    assert states[stolen["key_id"]] == "revoked"
    assert run("revoke", "0" * 16, "--reason", "không có khóa này").exit_code == 1


def test_each_kind_is_rotated_and_usage_is_told(folder: Path, run: Command):
    heard(folder)
    for what in (["unit", COMMUNE], ["units"], ["server"], ["time"], ["authority"]):
        assert printed(run("rotate", *what, "--json"))["count"] == (2 if what == ["units"] else 1)
    assert run("rotate", "unit").exit_code == 2
    assert run("rotate", "server", COMMUNE).exit_code == 2
    assert run("rotate", "unit", "99999").exit_code == 1
    assert run("revoke", "0" * 16, "--reason", "không rõ", "--at", "2026-06-01").exit_code == 2
    assert len(list(time_folder(folder).glob("*.key"))) == 2


def test_every_act_stands_in_the_audit_log_before_and_after(folder: Path, run: Command):
    heard(folder)
    printed(run("rotate", "server", "--json"))
    run("rotate", "unit", "99999")
    listed = CliRunner().invoke(app, ["audit", "verify"])
    assert listed.exit_code == 0
    verbs = [row["verb"] for row in audited(folder.parent)]
    assert [verb for verb in verbs if verb.startswith("keys.")] == [
        "keys.rotate.asked",
        "keys.rotate",
        "keys.rotate.asked",
        "keys.rotate.refused",
    ]
    private = [file.read_bytes().hex() for file in folder.glob("*.key")]
    assert not any(secret in row["detail"] for row in audited(folder.parent) for secret in private)


def audited(data_dir: Path) -> list[dict[str, Any]]:
    with sqlite3.connect(data_dir / "loa.sqlite") as database:
        rows = database.execute("SELECT verb, detail FROM audit ORDER BY sequence").fetchall()
    return [{"verb": verb, "detail": detail} for verb, detail in rows]


def test_a_machine_that_never_served_has_no_keys(run: Command, tmp_path: Path):
    assert run("show").exit_code == 1
    assert not (tmp_path / "data" / "keys").exists()
