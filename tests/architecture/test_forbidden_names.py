"""Files are named by what they are about, and nothing here speaks of the bench it was made on."""

from __future__ import annotations

from tests.architecture.sources import ROOT, files

SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "stuff", "base", "manager", "managers"}
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".ics", ".txt", ".service", ".html", ".css", ".ts", ".po", ""}

# Joined here so that this file passes its own test.
BENCH = tuple(
    "/".join(parts) for parts in (("..", "shared"), ("", "work", "main"), ("", "work", "plan"), ("", "work", "shared"))
)
MAKERS = tuple(
    "".join(parts) for parts in (("clau", "de"), ("anth", "ropic"), ("chat", "gpt"), ("open", "ai"), ("co", "pilot"))
)
UNFINISHED = tuple("".join(parts) for parts in (("TO", "DO"), ("FIX", "ME"), ("XX", "X")))


def texts() -> dict[str, str]:
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8", errors="replace")
        for path in files()
        if path.suffix in TEXT and path.name != "uv.lock" and path.stat().st_size < 3_000_000
    }


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    found = [path.relative_to(ROOT).as_posix() for path in files() if path.stem.lower() in SAYS_NOTHING]
    folders = [
        path
        for path in {parent for file in files() for parent in file.relative_to(ROOT).parents}
        if path.name in SAYS_NOTHING
    ]
    assert not found + folders, "name it by its noun"


def test_nothing_speaks_of_the_bench_it_was_made_on() -> None:
    found = [f"{path}: {word}" for path, text in texts().items() for word in BENCH if word in text]
    found += [f"{path}: {word}" for path, text in texts().items() for word in MAKERS if word in text.lower()]
    assert not found


def test_nothing_unfinished_is_left() -> None:
    found = [f"{path}: {word}" for path, text in texts().items() for word in UNFINISHED if word in text.split()]
    found += [f"{path}: {word}" for path, text in texts().items() for word in UNFINISHED if f"# {word}" in text]
    assert not found, "finish it, or write an issue"
