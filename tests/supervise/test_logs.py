"""Nothing secret reaches a log, whatever way it takes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from broadcast_server import logs


@pytest.fixture(autouse=True)
def put_the_output_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, config = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers, root.level = handlers, level
    structlog.configure(**config)


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        ("GET http://u:p@radio.example:8000/vov1?token=1 404", "GET http://radio.example:8000/[redacted] 404"),
        ("icecast://source:hackme@127.0.0.1:8010/xa-a", "icecast://127.0.0.1:8010/[redacted]"),
        ("postgresql+psycopg://loa:pw@db/loa", "postgresql+psycopg://db/[redacted]"),
        ("at http://radio.example/ now", "at http://radio.example/ now"),
        ("Authorization: Bearer abcdef123456", "Authorization: [redacted]"),
        ("Bearer abcdef123456", "Bearer [redacted]"),
        ("password=hunter2, mount=xa", "password=[redacted], mount=xa"),
        ("passport number", "passport number"),
        ("file lists/2026-06-01T05:00", "file lists/2026-06-01T05:00"),
    ],
)
def test_a_text_is_scrubbed(said: str, logged: str) -> None:
    assert logs.scrub(said) == logged


def test_a_line_for_machines_carries_the_facts_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(as_json=True)
    logs.get_logger(feed_id="f1").warning(
        "feed.stalled",
        url="http://u:p@radio.example/live?x=1",
        password="hunter2",
        nested={"api_key": "k", "urls": ["http://a.example/b"]},
        silent_s=7.2,
        body=b"\x00\x01",
    )
    line = json.loads(capsys.readouterr().err)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "feed.stalled",
        "level": "warning",
        "feed_id": "f1",
        "url": "http://radio.example/[redacted]",
        "password": "[redacted]",
        "nested": {"api_key": "[redacted]", "urls": ["http://a.example/[redacted]"]},
        "silent_s": 7.2,
        "body": "<2 bytes>",
    }


def test_a_traceback_and_a_librarys_own_line_are_scrubbed_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(as_json=True, level="debug")
    error = ValueError("could not open http://u:hunter2@radio.example/live")
    logs.get_logger().error("task.given_up", exc_info=error)
    logging.getLogger("some.library").warning("retry %s", "http://u:hunter2@radio.example/live")
    out = capsys.readouterr()
    assert "hunter2" not in out.err
    assert out.err.count("radio.example") == 2
    assert out.out == "", "stdout belongs to what a command prints"


def test_below_the_threshold_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(level="error")
    logs.get_logger().info("feed.healthy")
    assert capsys.readouterr().err == ""
