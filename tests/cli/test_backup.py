"""A technician moves a commune's server to another machine with two commands."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from broadcast_server.cli import backup, places


def program() -> typer.Typer:
    app = typer.Typer()
    backup.register(app)
    app.add_typer(places.app, name="place")
    return app


def on(machine: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.setenv("LOA_DATA_DIR", str(machine))
    return CliRunner().invoke(program(), arguments)


def test_a_server_moves_to_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old, new, archive = tmp_path / "old", tmp_path / "new", tmp_path / "loa.tar"
    assert on(old, monkeypatch, "place", "add", "Xã Mô Phỏng", "--id", "x1").exit_code == 0
    (old / "keys").mkdir(exist_ok=True)
    (old / "keys" / "root.key").write_bytes(b"\x01" * 32)

    made = on(old, monkeypatch, "backup", str(archive), "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["path"] == str(archive)
    restored = on(new, monkeypatch, "restore", str(archive), "--json")
    assert restored.exit_code == 0, restored.output

    (place,) = json.loads(on(new, monkeypatch, "place", "list", "--json").stdout)
    assert place["name"] == "Xã Mô Phỏng"
    assert (new / "keys" / "root.key").read_bytes() == b"\x01" * 32


def test_existing_data_is_not_replaced_by_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    machine, archive = tmp_path / "machine", tmp_path / "loa.tar"
    on(machine, monkeypatch, "place", "add", "Xã Mô Phỏng", "--id", "x1")
    on(machine, monkeypatch, "backup", str(archive))

    refused = on(machine, monkeypatch, "restore", str(archive))
    assert refused.exit_code == 1
    assert "đã có dữ liệu" in refused.stderr

    assert on(machine, monkeypatch, "restore", str(archive), "--force").exit_code == 0


def test_a_file_that_is_no_backup_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "loa.tar").write_bytes(b"not an archive")

    refused = on(tmp_path / "machine", monkeypatch, "restore", str(tmp_path / "loa.tar"))
    assert refused.exit_code == 1
    assert "bị hỏng" in refused.stderr
