"""No engine builds the image here, so its file is at least held to the rules that engines and reviewers hold it to."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load_reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_dockerfile", ROOT / "scripts" / "_dockerfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reader = load_reader()
STAGES = reader.read((ROOT / "Dockerfile").read_text())
LAST = STAGES[-1]


def test_it_is_built_in_stages_on_the_slim_debian() -> None:
    assert len(STAGES) >= 2
    assert {stage.base for stage in STAGES} == {"debian:bookworm-slim"}
    names = [stage.name for stage in STAGES]
    for stage in STAGES:
        for step in stage.of("COPY"):
            assert step.flags.get("from", names[0]) in names[: names.index(stage.name) or 1], step


def test_it_runs_as_nobody_of_importance() -> None:
    assert [step.text for step in LAST.of("USER")][-1] not in {"root", "0", ""}
    positions = [LAST.steps.index(step) for step in LAST.of("USER")]
    assert not any(step.word == "RUN" for step in LAST.steps[positions[-1] :]), "what installs must come before USER"


def test_signals_reach_the_server_and_its_health_is_asked() -> None:
    assert LAST.of("ENTRYPOINT")[-1].is_exec
    assert LAST.of("CMD")[-1].is_exec
    (health,) = LAST.of("HEALTHCHECK")
    assert "/healthz" in health.text
    assert {"interval", "timeout", "retries"} <= health.flags.keys()


def test_nothing_comes_from_a_url_and_no_secret_is_baked_in() -> None:
    for stage in STAGES:
        assert not stage.of("ADD"), "COPY says what it does; ADD unpacks and downloads"
        for step in (*stage.of("ENV"), *stage.of("ARG")):
            assert not any(word in step.text.lower() for word in ("password", "secret", "token")), step


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_apt_leaves_nothing_behind(stage: object) -> None:
    for step in stage.of("RUN"):  # type: ignore[attr-defined]
        if "apt-get" not in step.text:
            continue
        assert "--no-install-recommends" in step.text
        assert "rm -rf /var/lib/apt/lists/*" in step.text, "in the same layer, or it stays in the image"
        assert step.text.index("apt-get update") < step.text.index("apt-get install")
        assert "--yes" in step.text
        assert "sudo" not in step.text


def test_what_is_copied_exists_and_is_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*", "only what is named goes to the build"
    for stage in STAGES:
        for step in stage.of("COPY"):
            if "from" in step.flags:
                continue
            for source in step.operands[:-1]:
                assert (ROOT / source).exists(), step
                assert f"!{source}" in ignored, step


def test_paths_are_absolute() -> None:
    for stage in STAGES:
        assert all(step.text.startswith("/") for step in stage.of("WORKDIR"))


def test_a_file_that_is_no_dockerfile_is_told_by_its_line() -> None:
    with pytest.raises(ValueError, match="line 2"):
        reader.read("FROM debian\nINSTALL everything\n")
    with pytest.raises(ValueError, match="line 1"):
        reader.read("RUN true\n")
    with pytest.raises(ValueError, match="continuation"):
        reader.read("FROM debian\nRUN true \\\n")
