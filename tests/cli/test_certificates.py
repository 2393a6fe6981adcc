"""An operator asks for the authority, hands it out, and lets the backup take over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from typer.testing import CliRunner

from broadcast_server.cli import certificates


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOA_DATA_DIR", str(tmp_path / "data"))


def ask(*arguments: str) -> Any:
    done = CliRunner().invoke(certificates.app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_authority_is_shown_handed_out_and_rotated(tmp_path: Path):
    before = ask("show")
    assert [one["role"] for one in before] == ["authority", "backup"]
    file = tmp_path / "ca.pem"
    ask("authority", "--out", str(file))
    told = x509.load_pem_x509_certificates(file.read_bytes())
    assert [one.subject.rfc4514_string() for one in told] == [one["name"] for one in before]
    assert ask("rotate")["audit"] >= 1
    assert ask("show")[0]["name"] == before[1]["name"]
    assert "PRIVATE" not in ask("authority")["pem"]


def test_without_the_backups_key_nothing_is_rotated(tmp_path: Path):
    before = ask("show")
    (tmp_path / "data" / "authority" / "backup.key").rename(tmp_path / "safe.key")
    assert CliRunner().invoke(certificates.app, ["rotate"]).exit_code == 1
    assert ask("show") == before
