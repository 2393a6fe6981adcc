"""Each guard taken out in turn, and the tests must notice: what is not tested is not promised.

`defects.toml` lists the guards of node and server: the exact text, what stands in its place, the tests nearest to it,
and what would happen in the field. A worker patches a copy of the tree, runs those tests in a fresh interpreter forked
from one that has only other people's libraries loaded, and mends the copy. A defect whose text is not found exactly
once, or that no test catches, is a violation; so is a test that fails on the clean copy, for it would catch anything.
"""

from __future__ import annotations

import ast
import compileall
import contextlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from benchmarks.run import bar_of

ROOT: Final = Path(__file__).resolve().parent.parent
LIST: Final = Path(__file__).with_name("defects.toml")
WORKERS: Final = 2
LIMIT_S: Final = 240.0
TELLS_ALL: Final = bool(os.environ.get("SEEDED_DEFECTS_TELL"))
"""Whether each that was caught is told too, as it is."""
COPIED: Final = (
    "speaker_protocol",
    "broadcast_server",
    "firmware_sim",
    "simulation",
    "tests",
    "benchmarks",
    "schedules",
    "audio_samples",
    "scripts",
    "deploy",
    "docs",
)
OURS: Final = ("speaker_protocol", "broadcast_server", "firmware_sim", "simulation", "tests", "benchmarks")
PYTEST: Final = (
    "-x",
    "-q",
    "-n0",
    "-p",
    "no:cacheprovider",
    "--no-header",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",  # hypothesis was loaded before the fork; none of its asserts matter
)
PRELOADED: Final = (
    "alembic",
    "argon2",
    "av",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "cryptography.x509",
    "fastapi",
    "fastapi.testclient",
    "httpx",
    "hypothesis",
    "numpy",
    "paho.mqtt.client",
    "pydantic",
    "pydantic_settings",
    "pytest",
    "pytest_asyncio",
    "sqlalchemy.orm",
    "structlog",
    "yaml",
)


@dataclass(frozen=True, slots=True)
class Defect:
    """One guard, and what is left without it."""

    id: str
    why: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def seeded(self, source: str) -> str:
        """The source with the defect. Raises `ValueError` where the guard is not there exactly once."""
        found = source.count(self.old)
        if found != 1:
            raise ValueError(f"{self.id}: its text stands {found} times in {self.file}")
        return source.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Run:
    """What pytest said: its exit code, the last lines, how long it took, and how much CPU."""

    code: int
    said: str
    took_s: float
    cpu_s: float


def listed(file: Path = LIST) -> list[Defect]:
    """All of them, in the order of the list."""
    told = tomllib.loads(file.read_text(encoding="utf-8"))["defect"]
    return [Defect(**{**one, "tests": tuple(one["tests"])}) for one in told]


def misfits(defects: Iterable[Defect], root: Path = ROOT) -> list[str]:
    """Entries that cannot be seeded: text not found once, no Python afterwards, no such test, one id twice."""
    wrong: list[str] = []
    seen: set[str] = set()
    for defect in defects:
        if defect.id in seen:
            wrong.append(f"{defect.id}: twice in the list")
        seen.add(defect.id)
        try:
            ast.parse(defect.seeded((root / defect.file).read_text(encoding="utf-8")))
        except (OSError, ValueError, SyntaxError) as error:
            wrong.append(f"{defect.id}: {error}")
        wrong += [
            f"{defect.id}: no test file {test}" for test in defect.tests if not (root / test.split("::")[0]).is_file()
        ]
        if not defect.tests or defect.old == defect.new:
            wrong.append(f"{defect.id}: nothing to run, or nothing changed")
    return wrong


# -- one worker -------------------------------------------------------------------------------------------------------


class Tree:
    """A copy of the tree that is patched and mended, compiled once."""

    def __init__(self, folder: Path, like: Tree | None = None) -> None:
        """`like`: a clean tree that is compiled already."""
        self.root = folder
        if like is not None:
            shutil.copytree(like.root, folder)
            return
        ignored = shutil.ignore_patterns("__pycache__", ".*_cache", "*.new")
        for name in COPIED:
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Dockerfile"):
            if (ROOT / name).exists():
                shutil.copy2(ROOT / name, folder / name)
        with contextlib.redirect_stdout(io.StringIO()):
            for name in OURS:
                compileall.compile_dir(folder / name, quiet=2)

    def write(self, file: str, source: str) -> None:
        """One file, so that no interpreter takes it for what it was."""
        path = self.root / file
        path.write_text(source, encoding="utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()


def _in_child(root: str, tests: Sequence[str], pipe: Connection) -> None:
    """Run pytest on a tree in this process, which is forked for it and ends with it."""
    os.chdir(root)
    os.environ["PYTHONPATH"] = root
    sys.dont_write_bytecode = True
    sys.path[:] = [root, *(place for place in sys.path if place and Path(place).resolve() != ROOT)]
    for name in [one for one in sys.modules if one.split(".")[0] in OURS]:
        del sys.modules[name]
    said = io.StringIO()
    import pytest  # loaded before the fork

    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main([*PYTEST, *tests])
    pipe.send((int(code), "\n".join(said.getvalue().splitlines()[-12:]), time.process_time()))
    pipe.close()


def pytest_on(tree: Tree, tests: Sequence[str]) -> Run:
    """Run these tests on the tree as it stands."""
    began = time.monotonic()
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(str(tree.root), list(tests), there))
    child.start()
    there.close()
    code, said, cpu_s = -1, f"it took longer than {LIMIT_S:.0f} s", 0.0
    if here.poll(LIMIT_S):
        try:
            code, said, cpu_s = here.recv()
        except EOFError:
            said = "the process died"
    child.join(5)
    if child.is_alive():
        child.kill()
        child.join()
    here.close()
    return Run(code, said, time.monotonic() - began, cpu_s)


def seed(tree: Tree, defect: Defect) -> Run:
    """Put the defect in, run its tests, take it out again."""
    whole = (tree.root / defect.file).read_text(encoding="utf-8")
    tree.write(defect.file, defect.seeded(whole))
    try:
        return pytest_on(tree, defect.tests)
    finally:
        tree.write(defect.file, whole)


def in_workers(jobs: Sequence[Callable[[Tree], Run]], folder: Path, workers: int = WORKERS) -> list[Run]:
    """Each job on a tree of its own worker; the results in the order of the jobs."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOADED))
    trees: SimpleQueue[Tree] = SimpleQueue()
    first = Tree(folder / "tree-0")
    trees.put(first)
    for number in range(1, workers):
        trees.put(Tree(folder / f"tree-{number}", first))

    def work(job: Callable[[Tree], Run]) -> Run:
        tree = trees.get()
        try:
            return job(tree)
        finally:
            trees.put(tree)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, jobs))


def _told(defect: Defect, done: Run) -> Run:
    """Say at once what was not caught: the whole takes minutes."""
    if done.code == 1 and TELLS_ALL:
        print(f"{defect.id}: caught, {done.cpu_s:.1f} s of CPU", file=sys.stderr, flush=True)
    if done.code != 1:
        print(f"{defect.id}: {'not caught' if done.code == 0 else done.said}", file=sys.stderr, flush=True)
    return done


def run(chosen: Sequence[str] = (), *, is_clean_run: bool = True, workers: int = WORKERS) -> dict[str, Any]:
    """Seed all defects (or those named), after the tests have passed without one."""
    began = time.monotonic()
    wanted = chosen or tuple(filter(None, os.environ.get("SEEDED_DEFECTS", "").split(",")))
    defects = [one for one in listed() if not wanted or one.id in wanted]
    wrong = misfits(defects)
    fitting = [one for one in defects if not any(what.startswith(f"{one.id}:") for what in wrong)]
    suites = sorted({test for one in fitting for test in one.tests}) if is_clean_run else []

    def clean(tests: tuple[str, ...]) -> Callable[[Tree], Run]:
        return lambda tree: pytest_on(tree, tests)

    def seeded(defect: Defect) -> Callable[[Tree], Run]:
        return lambda tree: _told(defect, seed(tree, defect))

    halves = [tuple(suites[number::4]) for number in range(4)]
    with tempfile.TemporaryDirectory(prefix="loa-defects-") as folder:
        jobs = [clean(half) for half in halves if half] + [seeded(one) for one in fitting]
        runs = in_workers(jobs, Path(folder), workers)
    cleans, rest = runs[: len(jobs) - len(fitting)], runs[len(jobs) - len(fitting) :]
    unclean = [f"without any defect: {one.said}" for one in cleans if one.code != 0]
    uncaught = [
        f"{defect.id} ({defect.why}): {'not caught' if one.code == 0 else one.said}"
        for defect, one in zip(fitting, rest, strict=True)
        if one.code != 1  # 1: tests failed; anything else is a run that proves nothing
    ]
    for what in (*wrong, *unclean):
        print(what, file=sys.stderr)
    slowest = sorted(zip(fitting, rest, strict=True), key=lambda pair: -pair[1].cpu_s)[:8]
    figures = {
        "attempted": len(defects),
        "ok": len(fitting) - len(uncaught),
        "violations": len(wrong) + len(unclean) + len(uncaught),
        "cpu_s": round(sum(one.cpu_s for one in runs), 1),
        "clean_cpu_s": round(sum(one.cpu_s for one in cleans), 1),
        "slowest_cpu_s": {defect.id: round(one.cpu_s, 1) for defect, one in slowest},
        "took_s": round(time.monotonic() - began, 1),
    }
    bars = [
        bar_of("seeded defects", len(defects), "≥ 40", holds=len(defects) >= 40),
        bar_of("caught by the tests", len(fitting) - len(uncaught), len(defects), holds=not (wrong or uncaught)),
        bar_of("test runs that fail without a defect", len(unclean), 0, holds=not unclean),
    ]
    return {"name": "seeded_defects", "figures": figures, "bars": bars}
