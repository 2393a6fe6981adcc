"""Faults are named verbs and a timeline a person can write."""

from __future__ import annotations

from pathlib import Path

import pytest

from firmware_sim.__main__ import cli
from firmware_sim.faults import UseCases, load_timeline
from firmware_sim.fleet import Spread


def test_a_timeline_is_read_in_order_of_time(tmp_path: Path):
    path = tmp_path / "storm.yaml"
    path.write_text(
        "- {at_s: 20, verb: cut_link, args: {for_s: 5}}\n- {at_s: 3, node: 0, verb: skew_clock, args: {ms: 400}}\n"
    )
    faults = load_timeline(path)
    assert [(f.at_s, f.node, f.verb) for f in faults] == [(3, 0, "skew_clock"), (20, "*", "cut_link")]


@pytest.mark.parametrize(
    "text", ["- {at_s: 1, verb: explode}", "- {at_s: -1, verb: reboot}", "- {verb: reboot}", "{", "- {at_s: 1, x: 2}"]
)
def test_a_wrong_timeline_is_refused_before_anything_starts(tmp_path: Path, text: str):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"wrong\.yaml"):
        load_timeline(path)


def test_every_verb_names_the_failure_it_imitates():
    for verb in UseCases.VERBS:
        assert getattr(UseCases, verb).__doc__


def test_a_spread_is_read_as_two_ends_or_one_figure():
    assert Spread.parse("-500:500") == Spread(-500, 500)
    assert Spread.parse("20") == Spread(20, 20)
    for text in ("500:-500", "a:b", ""):
        with pytest.raises(ValueError, match=r"lower end|could not convert"):
            Spread.parse(text)


def test_wrong_usage_ends_with_2():
    from typer.testing import CliRunner

    assert CliRunner().invoke(cli, ["run", "--server", "http://127.0.0.1:1", "--drift-ppm", "x"]).exit_code == 2
    assert CliRunner().invoke(cli, ["run"]).exit_code == 2
