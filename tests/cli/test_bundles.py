"""A technician carries a stick to a commune without a network and back, with four commands."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner, Result

from broadcast_server import app as composition
from broadcast_server import settings as settings_of
from broadcast_server.cli import bundles, places, serve
from broadcast_server.domain.clock import to_ms
from broadcast_server.signer.keys import FileSigner
from broadcast_server.store import clocks
from broadcast_server.store.session import Session
from broadcast_server.store.tables import ClusterRow, NodeRow
from broadcast_server.supervise import SystemChance
from firmware_sim.__main__ import cli as node_cli
from firmware_sim.store import Identity


def program() -> typer.Typer:
    app = typer.Typer()
    serve.register(app)
    app.add_typer(places.app, name="place")
    app.add_typer(bundles.app, name="bundle")
    return app


def run(*arguments: str) -> Result:
    return CliRunner().invoke(program(), arguments)


def told(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def doubt() -> None:
    """A process of the server says that its clock is wrong."""
    async with composition.office(settings_of.load()) as desk:
        now = desk.clock.now()
        told = {
            "at_ms": to_ms(now),
            "floor_ms": None,
            "host": "máy",
            "is_trusted": False,
            "doubts": {"nodes": 12.0},
            "since_ms": to_ms(now),
            "step_s": 0.0,
            "kernel_synchronised": None,
            "nodes_heard": 9,
        }
        await desk.store.begin(lambda session: clocks.put_beacon(session, "serving", told, now=now))


async def enrol(data_dir: Path, poles: Path) -> None:
    """One node of xã x1, with its identity in its folder."""
    key = Ed25519PrivateKey.generate()
    async with composition.office(settings_of.load()) as desk:
        now = desk.clock.now()

        def write(session: Session) -> None:
            session.add(
                ClusterRow(
                    id="c1", unit_id="x1", code="C1", name="Cụm 1", name_folded="cum 1", config={}, created_at=now
                )
            )
            session.flush()
            session.add(
                NodeRow(
                    id="n1",
                    unit_id="x1",
                    cluster_id="c1",
                    public_key=key.public_key().public_bytes_raw().hex(),
                    hardware="mô phỏng",
                    firmware="1",
                    broker_password_line="$7$",
                    asset_token_hash="0" * 64,
                    enrolled_at=now,
                )
            )

        await desk.store.begin(write)
    signer = FileSigner(data_dir / "keys", chance=SystemChance(), path_of=lambda unit: (unit,))
    Identity(
        private_key=key.private_bytes_raw().hex(),
        node_id="n1",
        cluster_id="c1",
        broker={"host": "127.0.0.1", "port": 1},  # type: ignore[arg-type]
        username="n1",
        password="x",
        root_public_key=signer.root_public().hex(),
        path=("x1",),
        assets_url="http://127.0.0.1:1/assets",
        asset_token="t",
    ).save(poles / "n1")


def test_a_stick_goes_to_the_commune_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data_dir, poles, stick = tmp_path / "data", tmp_path / "poles", tmp_path / "stick"
    stick.mkdir()
    monkeypatch.setenv("LOA_DATA_DIR", str(data_dir))
    assert run("place", "add", "Xã Mô Phỏng", "--id", "x1").exit_code == 0
    refused = run("bundle", "export", str(stick / "x1.tar"), "--unit", "x1")
    assert refused.exit_code == 1
    assert "không có bộ điều khiển nào" in refused.stderr
    asyncio.run(enrol(data_dir, poles))

    made = told(run("bundle", "export", str(stick / "x1.tar"), "--unit", "x1", "--days", "7", "--json"))
    assert (made["nodes"], made["missing"]) == (["n1"], [])
    taken = CliRunner().invoke(node_cli, ["import", str(stick / "x1.tar"), "--identity", str(poles)])
    assert taken.exit_code == 0, taken.output
    assert "n1  accepted  loa/1/node/n1/plan" in taken.output
    again = run("bundle", "export", str(stick / "newer.tar"), "--unit", "x1")
    assert again.exit_code == 0
    assert CliRunner().invoke(node_cli, ["import", str(stick / "newer.tar"), "--identity", str(poles)]).exit_code == 0
    older = CliRunner().invoke(node_cli, ["import", str(stick / "x1.tar"), "--identity", str(poles)])
    assert older.exit_code == 1
    assert "refused   loa/1/node/n1/plan: older" in older.output

    given = CliRunner().invoke(node_cli, ["export-reports", str(stick / "back.tar"), "--identity", str(poles)])
    assert (given.exit_code, given.output.strip()) == (0, "n1  0 lines")
    returned = told(run("bundle", "reports", str(stick / "back.tar"), "--json"))
    assert returned == {"reports": 0, "new": 0, "refused": {}}
    verified = told(run("audit", "verify", "--json"))
    assert (verified["ok"], verified["breaks"]) == (True, [])

    asyncio.run(doubt())
    in_doubt = run("bundle", "export", str(stick / "doubtful.tar"), "--unit", "x1")
    assert in_doubt.exit_code == 1
    assert "Đồng hồ máy chủ" in in_doubt.stderr

    wrong = CliRunner().invoke(node_cli, ["import", str(stick / "back.tar"), "--identity", str(poles)])
    assert wrong.exit_code == 2
    damaged = run("bundle", "reports", str(stick / "x1.tar"))
    assert damaged.exit_code == 1
    assert "bị hỏng" in damaged.stderr
