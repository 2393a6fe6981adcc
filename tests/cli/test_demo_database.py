"""The demo's users, whose passwords everybody knows, never serve the field; the demo never enters a real database."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from broadcast_server.cli import app

PLACE = ("place", "add", "Tỉnh mô phỏng", "--kind", "province", "--id", "p")
WHO = ("user", "add", "lan", "--name", "Chị Lan", "--role", "admin", "--unit", "p")


@pytest.fixture
def run(tmp_path: Path):
    runner = CliRunner()

    def command(environment: str, *arguments: str) -> tuple[int, str]:
        env = {
            "LOA_DATA_DIR": str(tmp_path / "data"),
            "LOA_ENVIRONMENT": environment,
            "LOA_HTTP__PORT": "0",
            "LOA_BROKER__PORT": "0",
            "LOA_INGEST__PORT": "0",
        }
        ended = runner.invoke(app, list(arguments), env=env)
        return ended.exit_code, ended.output

    return command


def test_no_server_but_the_demo_runs_on_the_demos_database(run):
    assert run("demo", *PLACE)[0] == 0
    assert run("demo", *WHO)[0] == 0

    for environment in ("trial", "production"):
        code, told = run(environment, "serve")
        assert code == 3
        assert "trình diễn" in told or "demo" in told


def test_the_demo_enters_no_database_that_has_users_of_its_own(run):
    assert run("trial", *PLACE)[0] == 0
    assert run("trial", *WHO)[0] == 0

    code, told = run("demo", "user", "list")
    assert code != 0
    assert "người dùng thật" in told or "real users" in told
    assert run("trial", "user", "list")[0] == 0
