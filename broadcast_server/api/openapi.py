"""`python -m broadcast_server.api.openapi [--check]`: writes `docs/openapi.json`, or says whether it is current.

The text is made from the code alone: same code, same bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import cast

from broadcast_server.api.router import create_api
from broadcast_server.control.desk import Desk

TARGET = Path(__file__).parents[2] / "docs" / "openapi.json"


def description() -> str:
    """The OpenAPI document as it stands in the repository."""
    nobody = cast("Desk", None)  # describing calls no route
    told = create_api(nobody).openapi()
    return json.dumps(told, ensure_ascii=False, indent=2, sort_keys=True) + "\n"


def main(arguments: list[str]) -> int:
    """0: written, or current; 1: not current."""
    text = description()
    if "--check" not in arguments:
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write("docs/openapi.json is not current: run python -m broadcast_server.api.openapi\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
