"""The repository's own files, for the tests that read code instead of running it."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("speaker_protocol", "broadcast_server", "firmware_sim", "simulation")
NOT_OURS = {"__pycache__", "node_modules", "data", "out", "dist", "build"}


def files(*folders: str) -> Iterator[Path]:
    """Every file under the folders (none: the whole repository), without what tools left there."""
    for folder in folders or (".",):
        for place, subfolders, names in os.walk(ROOT / folder):
            hidden = {name for name in subfolders if name.startswith(".") and name != ".ci"}
            subfolders[:] = sorted(set(subfolders) - NOT_OURS - hidden)
            yield from (Path(place) / name for name in sorted(names))


def modules(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """(path inside the repository, syntax tree) of every Python file under the folders."""
    for path in files(*folders):
        if path.suffix == ".py":
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""
