"""An installer sets a commune up from the command line of the machine, and a program reads what was printed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from broadcast_server.cli import clock, devices, emergencies, feeds, people, places
from broadcast_server.cli.office import run
from simulation.enter import enter

Errand = Callable[..., Any]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command on a data folder of its own."""
    monkeypatch.setenv("LOA_DATA_DIR", str(tmp_path))
    runner = CliRunner()
    apps = {
        "place": places.app,
        "user": people.users,
        "token": people.tokens,
        "feed": feeds.app,
        "device": devices.app,
        "clock": clock.app,
        "emergency": emergencies.app,
        "stop-all": emergencies.stops,
    }

    def invoke(noun: str, *arguments: str, typed: str | None = None) -> Result:
        return runner.invoke(apps[noun], arguments, input=typed)

    return invoke


def a_phone(entered: dict[str, Any]) -> Iterator[str]:
    """What a person types, time and again: the password and a code of the drawer."""
    for code in entered["drawer"]:
        yield f"{entered['password']}\n{code}\n"


def told(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_commune_is_set_up_from_the_command_line(machine: Callable[..., Result], tmp_path: Path):
    assert told(machine("place", "add", "Xã Mô Phỏng", "--id", "x1", "--json"))["id"] == "x1"
    policy = tmp_path / "policy.json"
    policy.write_text('{"max_minutes_per_day": 60}', encoding="utf-8")
    assert told(machine("place", "policy", "x1", "--set", str(policy), "--json"))["from_unit_id"] == "x1"
    user = told(machine("user", "add", "lan", "--name", "Lan", "--role", "commune_head", "--unit", "x1", "--json"))
    assert user["grants"][0]["role"] == "commune_head"
    assert machine("token", "create", "lan").stdout.startswith("loa_")
    (token,) = told(machine("token", "list", "lan", "--json"))
    assert told(machine("token", "revoke", "lan", token["id"], "--json"))["revoked_at"]
    pushed = told(machine("feed", "add", "Đài (mô phỏng)", "--unit", "x1", "--push", "--json"))
    assert (pushed["mount"], pushed["user"], len(pushed["password"])) == ("dai-mo-phong", "source", 24)
    rotated = told(machine("feed", "rotate", pushed["id"], "--json"))
    assert rotated["password"] != pushed["password"]
    offer = told(machine("feed", "offer", pushed["id"], "x1", "--basis", "CV 1", "--valid-to", "2027-01-01", "--json"))
    assert offer["valid_to"] == "2027-01-01 00:00:00+07:00"
    assert told(machine("feed", "withdraw", offer["id"], "--json"))["withdrawn_at"]
    (listed,) = told(machine("feed", "list", "--json"))
    assert "password" not in listed


def test_a_refused_errand_says_so_in_vietnamese_and_fails(machine: Callable[..., Result]):
    result = machine("token", "create", "khong-co")
    assert result.exit_code == 1
    assert "Không có người dùng này." in result.stderr


def test_a_feed_is_either_pushed_or_pulled(machine: Callable[..., Result]):
    assert machine("feed", "add", "X", "--unit", "x1").exit_code == 2
    assert machine("feed", "add", "X", "--unit", "x1", "--push", "--url", "http://127.0.0.1/a.mp3").exit_code == 2


def test_the_operator_says_that_the_machines_clock_is_right(machine: Callable[..., Result]):
    assert told(machine("clock", "status", "--json")) == []
    assert machine("clock", "trust", "--reason", "ừ").exit_code == 1
    assert told(machine("clock", "trust", "--reason", "đối chiếu GPS", "--json"))["audit"] == 1


def test_the_machines_own_hand_raises_ends_and_stops(machine: Callable[..., Result]):
    machine("place", "add", "Xã Mô Phỏng", "--id", "x1", "--json")
    typed = {}
    for login in ("minh", "binh"):
        machine("user", "add", login, "--role", "leader", "--unit", "x1")
        typed[login] = a_phone(run(lambda desk, who=login: enter(desk, who)))
    asked = ("propose", "x1", "--as", "minh", "--mode", "drill", "--hazard", "flood", "--reason", "Diễn tập")
    assert machine("emergency", *asked, "--confirm", "KHẨN CẤP", typed=next(typed["minh"])).exit_code == 1
    drill = told(machine("emergency", *asked, "--confirm", "DIỄN TẬP", "--json", typed=next(typed["minh"])))
    assert (drill["mode"], drill["in_force"], drill["agreed"]) == ("drill", False, ["initiator:minh"])
    agreed = ("approve", drill["id"], "--hash", drill["content_hash"], "--confirm", "DIỄN TẬP")
    alone = machine("emergency", *agreed, "--as", "minh", typed=next(typed["minh"]))
    assert alone.exit_code == 1
    assert "Người duyệt phải khác người đề xuất." in alone.stderr
    drill = told(machine("emergency", *agreed, "--as", "binh", "--json", typed=next(typed["binh"])))
    assert (drill["in_force"], drill["nodes"]) == (True, 0)
    assert told(machine("emergency", "unreached", drill["id"], "--json")) == []
    ended = ("final", drill["id"], "--as", "binh", "--reason", "Hết giờ", "--json")
    last = told(machine("emergency", *ended, typed=next(typed["binh"])))
    assert (last["nature"], last["says"]) == ("final", "Tin cuối cùng. Buổi diễn tập đã kết thúc.")
    assert told(machine("emergency", "cancel", last["id"], "--reason", "Đủ", "--json"))["state"] == "cancelled"
    assert told(machine("emergency", "list", "--in-force", "--json")) == []
    (latch,) = told(machine("stop-all", "set", "x1", "--reason", "Có người chiếm sóng", "--json"))
    assert [one["id"] for one in told(machine("stop-all", "list", "--in-force", "--json"))] == [latch["id"]]
    assert told(machine("stop-all", "release", latch["id"], "--reason", "Xong", "--json"))["released_at"]


def test_a_box_is_expected_from_the_command_line(machine: Callable[..., Result]):
    assert told(machine("place", "add", "Xã Mô Phỏng", "--id", "x1", "--json"))["id"] == "x1"
    made = told(machine("device", "expect", "loa-00001", "--unit", "x1", "--json"))
    assert (made["serial"], len(made["claim_code"])) == ("LOA-00001", 11)
    (shown,) = told(machine("device", "expected", "--json"))
    assert "claim_code" not in shown
    assert told(machine("device", "open", made["id"], "--json"))["open_until"]
    assert told(machine("device", "forget", made["id"], "--json"))["forgotten"]
    assert told(machine("device", "expected", "--json")) == []
    refused = machine("device", "open", made["id"])
    assert (refused.exit_code, "claim_over" in refused.stderr) == (1, True)
    assert machine("device", "token", "--unit", "x1", "--activates").stdout.startswith("enr_")
    assert told(machine("device", "list", "--state", "quarantined", "--json")) == []
    assert machine("device", "speak", "nobody").exit_code == 1
