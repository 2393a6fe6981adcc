"""`python -m speaker_protocol [--check]`: write `docs/protocol.md`, or say whether it is current."""

from __future__ import annotations

import sys
from pathlib import Path

from speaker_protocol.schema import document

TARGET = Path(__file__).parents[1] / "docs" / "protocol.md"


def main(arguments: list[str]) -> int:
    """Exit code 1 with `--check` if the file differs from the code."""
    told = document()
    if arguments == ["--check"]:
        if TARGET.read_text("utf-8") != told:
            sys.stderr.write("docs/protocol.md is not current: run `python -m speaker_protocol`\n")
            return 1
        return 0
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(told, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
