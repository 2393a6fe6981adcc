"""The documents speak of what is there: settings, commands, words, decisions."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import typer
from pydantic import BaseModel

from broadcast_server import cli
from broadcast_server.domain import errors
from broadcast_server.settings import Settings
from tests.architecture.sources import PACKAGES, ROOT, modules

DOCS = ROOT / "docs"
OPERATIONS = (DOCS / "operations.md").read_text(encoding="utf-8")
GLOSSARY = (DOCS / "glossary.md").read_text(encoding="utf-8")
DECISIONS = sorted((DOCS / "adr").glob("[0-9]*.md"))
PARTS = ["Context", "Decision", "Consequences", "Alternatives", "Enforced by"]
WRITTEN_BY_HAND = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted(DOCS.glob("*.md")),
    *sorted((DOCS / "adr").glob("*")),
]
# Words that promise instead of telling; joined so that this file passes its own test.
PROMISES = tuple(
    "".join(parts) for parts in (("seam", "less"), ("power", "ful"), ("world-", "class"), ("cutting-", "edge"))
)
MACHINES = tuple("".join(parts) for parts in (("/ro", "ot/"), ("/ho", "me/"), ("/tm", "p/")))


def rows(text: str, head: str) -> list[list[str]]:
    """Cells of the rows of every table whose head line starts with `head`."""
    found: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith(head):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---"):
            found.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return found


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# -- settings


def settings_of(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    """(environment name, default) of every field."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            yield from settings_of(kind, f"{prefix}{name.upper()}__")
        else:
            yield prefix + name.upper(), field.default


def shown(default: object) -> str:
    if default is None:
        return "none"
    return f"`{json.dumps(list(default)) if isinstance(default, tuple) else default}`"


def test_every_setting_is_told_with_its_default() -> None:
    told = [(quoted(row[0])[0], row[1]) for row in rows(OPERATIONS, "| Setting | Default |")]
    assert told == [(name, shown(default)) for name, default in settings_of(Settings, "LOA_")]


def test_no_document_names_a_setting_that_is_not_there() -> None:
    known = {name for name, _ in settings_of(Settings, "LOA_")}
    for path in WRITTEN_BY_HAND:
        named = set(re.findall(r"\bLOA_[A-Z_]+[A-Z]\b", path.read_text(encoding="utf-8")))
        assert named <= known, path.name


# -- commands


def commands_of(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command of the program that does something, as words."""
    for name, inner in getattr(command, "commands", {}).items():
        below = list(commands_of(inner, (*path, name)))
        yield from below or [(*path, name)]


@functools.cache
def commands() -> frozenset[tuple[str, ...]]:
    return frozenset(commands_of(typer.main.get_command(cli.app)))


def test_every_command_is_told_and_every_told_command_is_there() -> None:
    told = [quoted(row[0])[0] for row in rows(OPERATIONS, "| Command |")]
    assert len(told) == len(set(told))
    words = {tuple(word for word in line.split() if word.islower()) for line in told}
    assert words == commands()


def test_no_document_names_a_command_that_is_not_there() -> None:
    beginnings = {command[:length] for command in commands() for length in range(1, len(command) + 1)}
    for path in WRITTEN_BY_HAND:
        text = path.read_text(encoding="utf-8")
        for line in re.findall(r"`broadcast-server ([^`]+)`|^broadcast-server ([^#\n]+)", text, re.MULTILINE):
            words = "".join(line).split()
            named = tuple(
                words[: next((at for at, word in enumerate(words) if not re.fullmatch("[a-z-]+", word)), len(words))]
            )
            assert named == () or named in beginnings, f"{path.name}: broadcast-server {' '.join(words)}"


# -- words


@functools.cache
def names() -> frozenset[str]:
    """Every name that the code defines or uses."""
    found: set[str] = set()
    for _, tree in modules(*PACKAGES):
        for node in ast.walk(tree):
            match node:
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    found.add(name)
                case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                    found.add(name)
    return frozenset(found)


def test_the_words_of_the_glossary_are_those_of_the_code() -> None:
    entries = rows(GLOSSARY, "| Tiếng Việt |")
    assert len(entries) > 50
    missing = [word for entry in entries for word in quoted(entry[2]) if word not in names()]
    assert not missing, "a word nobody uses: mend the glossary or the code"


def test_a_word_has_one_line_in_the_glossary() -> None:
    entries = rows(GLOSSARY, "| Tiếng Việt |")
    for column in (0, 1):
        told = [entry[column] for entry in entries]
        assert sorted(told) == sorted(set(told))


def test_every_kind_of_error_is_told() -> None:
    kinds = {kind.__name__ for kind in errors.BroadcastError.__subclasses__() if kind.__module__ == errors.__name__}
    (page,) = (path for path in DECISIONS if "errors-are-codes" in path.name)
    assert kinds <= set(quoted(page.read_text(encoding="utf-8")))
    assert all(inspect.getdoc(getattr(errors, kind)) for kind in kinds)


# -- decisions


def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_decisions_are_numbered_without_a_gap() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_has_its_form(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {path.name[:4]} ")
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    assert parts[1::2] == PARTS
    body = dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
    assert all(body.values())
    assert body["Decision"].startswith("> "), "one line that can be quoted"
    assert "\n" not in body["Decision"]
    assert len(text.splitlines()) <= 60, "one page"


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_what_enforces_a_decision_is_there(path: Path) -> None:
    enforced = path.read_text(encoding="utf-8").split("## Enforced by", 1)[1]
    named = [name for name in quoted(enforced) if "/" in name or name.endswith(".toml")]
    assert named
    for name in named:
        file, _, function = name.partition("::")
        assert (ROOT / file).exists(), name
        assert not function or function in functions_in(ROOT / file), name


def test_the_index_lists_every_decision() -> None:
    listed = re.findall(r"\]\(([^)]+)\)", (DOCS / "adr" / "README.md").read_text(encoding="utf-8"))
    assert listed == [path.name for path in DECISIONS]


# -- the rest


def test_recipes_name_files_that_exist() -> None:
    named = quoted((DOCS / "recipes.md").read_text(encoding="utf-8"))
    paths = [name for name in named if re.match(r"[a-z_]+/", name) and "NOUN" not in name]
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_picture_is_drawn_and_reads_in_light_and_dark() -> None:
    text = (DOCS / "picture.svg").read_text(encoding="utf-8")
    picture = ET.fromstring(text)  # noqa: S314 - our own file
    assert picture.find("{http://www.w3.org/2000/svg}title") is not None
    assert "prefers-color-scheme: dark" in text
    assert "href" not in text, "nothing is fetched to show it"


@pytest.mark.parametrize("path", WRITTEN_BY_HAND, ids=lambda path: path.name)
def test_the_documents_tell_and_do_not_promise(path: Path) -> None:
    text = path.read_text(encoding="utf-8").lower()
    assert [word for word in (*PROMISES, *MACHINES) if word in text] == []


def test_the_changelog_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[Unreleased\]", text, re.MULTILINE)
    kinds = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
