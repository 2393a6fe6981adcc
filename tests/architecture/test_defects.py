"""The list of guards is true of the code, and the runner that takes them out can tell caught from not caught."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import seeded_defects
from benchmarks.seeded_defects import Tree, listed, misfits, pytest_on, seed


def test_every_listed_guard_stands_in_the_code_exactly_once_and_has_its_tests():
    defects = listed()
    assert misfits(defects) == []
    assert len(defects) >= 40


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return Tree(tmp_path_factory.mktemp("tree"))


@pytest.mark.parametrize("name", ["messages.one_key_twice", "policy.too_loud"])
def test_a_guard_taken_out_is_noticed(tree: Tree, name: str):
    (defect,) = [one for one in listed() if one.id == name]
    done = seed(tree, defect)
    assert done.code == 1, done.said
    assert (tree.root / defect.file).read_text() == (seeded_defects.ROOT / defect.file).read_text()


def test_without_a_defect_the_same_tests_pass_and_a_harmless_change_is_not_called_caught(tree: Tree):
    (defect,) = [one for one in listed() if one.id == "policy.too_loud"]
    assert pytest_on(tree, defect.tests).code == 0
    assert seed(tree, replace(defect, new=defect.old + "  # the same")).code == 0


def test_a_text_that_is_not_there_or_twice_is_named(tmp_path: Path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    defect = replace(listed()[0], file="a.py", old="x = 1", new="x = 2", tests=("a.py",))
    assert "2 times" in misfits([defect], tmp_path)[0]
    assert "0 times" in misfits([replace(defect, old="y = 1")], tmp_path)[0]
